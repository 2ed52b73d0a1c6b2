//! A path within a tree that cannot name anything outside of it.

use std::{cmp::Ordering, ffi::OsStr, fmt, os::unix::ffi::OsStrExt as _, path::Path};

use thiserror::Error;

/// Longest path in a tree, in bytes. Linux takes 4096 in one call (`PATH_MAX`), and a process that goes step by step makes
/// deeper trees; somewhere they must end, for a listing holds every path.
const PATH_BYTES_MAX: usize = 16 << 10;

/// A relative path of plain components: no `..`, no `.`, no empty part, no NUL. The root is empty.
///
/// Bytes, not text: file names need not be UTF-8. The order is byte order of the components, so a
/// directory sorts right before what it holds.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TreePath(Vec<u8>);

/// Why bytes are not a path within a tree.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseTreePathError {
    /// A `..` component could leave the tree.
    #[error("`{0}` leaves the tree by `..`")]
    Escapes(String),
    /// A NUL byte ends the path early for the kernel.
    #[error("`{0}` holds a NUL byte")]
    Nul(String),
    /// Longer than a tree is deep.
    #[error("a path of {0} bytes, the limit is {PATH_BYTES_MAX}")]
    TooLong(usize),
}

impl TreePath {
    /// The root of the tree.
    #[must_use]
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Reads a path: leading `/` and `.` components are dropped, `//` is `/`.
    ///
    /// # Errors
    ///
    /// When the path has a `..` component, a NUL byte, or is too long.
    pub fn parse(bytes: impl AsRef<[u8]>) -> Result<Self, ParseTreePathError> {
        let bytes = bytes.as_ref();
        let shown = || String::from_utf8_lossy(bytes).into_owned();
        if bytes.len() > PATH_BYTES_MAX {
            return Err(ParseTreePathError::TooLong(bytes.len()));
        }
        if bytes.contains(&0) {
            return Err(ParseTreePathError::Nul(shown()));
        }
        let mut path = Self(Vec::with_capacity(bytes.len()));
        for part in bytes.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(ParseTreePathError::Escapes(shown())),
                name => path.push(name),
            }
        }
        Ok(path)
    }

    /// Reads a path as a chroot would: `..` goes up, and stops at the root.
    ///
    /// # Errors
    ///
    /// When the path has a NUL byte or is too long.
    pub fn parse_clamped(bytes: impl AsRef<[u8]>) -> Result<Self, ParseTreePathError> {
        let mut path = Self::root();
        for part in bytes.as_ref().split(|byte| *byte == b'/') {
            match part {
                b".." => {
                    let end = path.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                    path.0.truncate(end);
                }
                part => {
                    let name = Self::parse(part)?;
                    if !name.is_root() {
                        path.push(&name.0);
                    }
                }
            }
        }
        Ok(path)
    }

    /// The bytes, without a leading slash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// The last component; `None` for the root.
    #[must_use]
    pub fn file_name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// The directory that holds this path; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(Self(self.0[..cut].to_vec()))
    }

    /// Every directory above this path, outermost first, root and itself excluded.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        self.ancestors_beyond(0)
    }

    /// Those directories above this path whose own paths are longer than `length` bytes: who knows what is above
    /// another path asks for what [`TreePath::common`] leaves. Trees may be thousands of names deep.
    pub fn ancestors_beyond(&self, length: usize) -> impl Iterator<Item = Self> {
        let bytes = self.0.iter().enumerate().skip(length + 1);
        let slashes = bytes.filter(|(_, byte)| **byte == b'/');
        slashes.map(|(index, _)| Self(self.0[..index].to_vec()))
    }

    /// Length in bytes of the deepest path that this one and `other` both are, or are below.
    #[must_use]
    pub fn common(&self, other: &Self) -> usize {
        let shared = shared(&self.0, &other.0);
        let ends = |path: &Self| path.0.get(shared).is_none_or(|byte| *byte == b'/');
        if ends(self) && ends(other) {
            return shared;
        }
        self.0[..shared].iter().rposition(|byte| *byte == b'/').unwrap_or(0)
    }

    /// The path that this one's first `length` bytes are, which end at a component, as those of
    /// [`TreePath::common`] do.
    #[must_use]
    pub fn upper(&self, length: usize) -> Self {
        Self(self.0[..length].to_vec())
    }

    /// This path followed by `below`.
    #[must_use]
    pub fn join(&self, below: &Self) -> Self {
        let mut joined = Self(Vec::with_capacity(self.0.len() + 1 + below.0.len()));
        joined.0.extend_from_slice(&self.0);
        if !below.is_root() {
            joined.push(&below.0);
        }
        joined
    }

    /// This path followed by one component.
    ///
    /// # Errors
    ///
    /// When `name` is not one plain component, or the path gets too long.
    pub fn child(&self, name: &[u8]) -> Result<Self, ParseTreePathError> {
        let path = self.join(&Self::parse(name)?);
        let bytes = path.as_bytes().len();
        if bytes > PATH_BYTES_MAX { Err(ParseTreePathError::TooLong(bytes)) } else { Ok(path) }
    }

    /// Keeps the first `shared` bytes and puts `rest` behind them; `None` when no path comes of it, spelled as paths
    /// are.
    pub(super) fn change_end(&mut self, shared: usize, rest: &[u8]) -> Option<()> {
        if shared > self.0.len() || shared + rest.len() > PATH_BYTES_MAX {
            return None;
        }
        self.0.truncate(shared);
        let start = self.0.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        self.0.extend_from_slice(rest);
        let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
        let is_path = self.is_root() || self.0[start..].split(|byte| *byte == b'/').all(is_name);
        is_path.then_some(())
    }

    /// The order of two paths by their bytes: of their components.
    #[must_use]
    pub fn compare(one: &[u8], other: &[u8]) -> Ordering {
        let same = shared(one, other);
        match (one.get(same), other.get(same)) {
            // A slash sorts below every other byte, so that a directory is followed by its content.
            (Some(b'/'), Some(_)) => Ordering::Less,
            (Some(_), Some(b'/')) => Ordering::Greater,
            (one, other) => one.cmp(&other),
        }
    }

    /// Whether `above` is this path or a directory above it.
    #[must_use]
    pub fn starts_with(&self, above: &Self) -> bool {
        let rest = self.0.strip_prefix(above.0.as_slice());
        above.is_root() || rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    }

    /// The rest of this path below `above`; the root when they are equal.
    #[must_use]
    pub fn strip_prefix(&self, above: &Self) -> Option<Self> {
        if above.is_root() {
            return Some(self.clone());
        }
        let rest = self.0.strip_prefix(above.0.as_slice())?;
        match rest.split_first() {
            None => Some(Self::root()),
            Some((b'/', rest)) => Some(Self(rest.to_vec())),
            Some(_) => None,
        }
    }

    /// As a relative path for the file system; `.` for the root.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(if self.is_root() { b"." } else { &self.0 }))
    }

    fn push(&mut self, name: &[u8]) {
        if !self.0.is_empty() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(name);
    }
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> Ordering {
        Self::compare(&self.0, &other.0)
    }
}

/// How many bytes are the same at the beginning of both. By words: neighbours in an order begin alike, and look-ups
/// compare them all the time.
fn shared(one: &[u8], other: &[u8]) -> usize {
    let shorter = one.len().min(other.len());
    let (one, other) = (&one[..shorter], &other[..shorter]);
    let (words, others) = (one.as_chunks::<8>().0, other.as_chunks::<8>().0);
    let mut at = 0;
    while at < words.len() {
        let differing = u64::from_le_bytes(words[at]) ^ u64::from_le_bytes(others[at]);
        if differing != 0 {
            return 8 * at + differing.trailing_zeros() as usize / 8;
        }
        at += 1;
    }
    let mut same = 8 * at;
    while same < shorter && one[same] == other[same] {
        same += 1;
    }
    same
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TreePath {
    /// With a leading slash, as seen from inside the tree.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::parse(text).unwrap()
    }

    #[test]
    fn one_spelling_for_one_place() {
        for spelling in ["a/b", "/a/b", "./a//b/", "a/./b"] {
            assert_eq!(path(spelling), path("a/b"));
        }
        assert!(path("/").is_root());
        assert!(TreePath::parse("a/../b").is_err());
        assert!(TreePath::parse(b"a\0b").is_err());
        assert_eq!(TreePath::parse_clamped("../../a/../b").unwrap(), path("b"));
    }

    #[test]
    fn paths_sort_by_their_components_whatever_they_have_in_common() {
        let ends =
            ["", "a", "b", "a/b", "a/a", "a-", "a-/b", "ab", "a/b/c", "~", "a~", "!", "a!/x"];
        for length in 0..20 {
            let beginning: String = "long/name".repeat(3).chars().take(length).collect();
            let paths: Vec<_> = ends.iter().map(|end| path(&format!("{beginning}{end}"))).collect();
            for (one, other) in
                paths.iter().flat_map(|one| paths.iter().map(move |other| (one, other)))
            {
                let parts = |path: &TreePath| -> Vec<Vec<u8>> {
                    path.components().map(<[u8]>::to_vec).collect()
                };
                assert_eq!(one.cmp(other), parts(one).cmp(&parts(other)), "{one} {other}");
            }
        }
    }

    #[test]
    fn directories_sort_right_before_their_content() {
        let mut paths = [path("a.b"), path("a/c"), path("a"), path("a/b")];
        paths.sort();
        assert_eq!(paths, [path("a"), path("a/b"), path("a/c"), path("a.b")]);
    }

    #[test]
    fn no_path_is_longer_than_the_limit_however_it_is_made() {
        let name = [b'n'; 255];
        let mut deepest = TreePath::root();
        while let Ok(deeper) = deepest.child(&name) {
            deepest = deeper;
        }
        assert_eq!(deepest.components().count(), 64);
        assert_eq!(TreePath::parse(deepest.as_bytes()), Ok(deepest.clone()));
        let longer = [deepest.as_bytes(), b"/", &name].concat();
        assert_eq!(TreePath::parse(&longer), Err(ParseTreePathError::TooLong(longer.len())));
    }

    #[test]
    fn what_two_paths_have_in_common_ends_at_a_component() {
        for (one, other, common) in [
            ("a/bc", "a/bd", "a"),
            ("a/b", "a/b/c", "a/b"),
            ("a/b", "a/b", "a/b"),
            ("ab", "ac", ""),
            ("a", "b", ""),
            ("", "a", ""),
            ("a/b/c", "a/bb", "a"),
        ] {
            assert_eq!(path(one).common(&path(other)), common.len(), "{one} {other}");
            assert_eq!(path(other).common(&path(one)), common.len(), "{other} {one}");
        }
        let (long, other) = (path(&"d/".repeat(100)), path(&["d/"; 70].join("")));
        assert_eq!(long.common(&other), 139);
        assert_eq!(long.ancestors_beyond(139).count(), 29);
        assert_eq!(path("a/b/c").ancestors_beyond(1).collect::<Vec<_>>(), [path("a/b")]);
        assert_eq!(other.cmp(&long), std::cmp::Ordering::Less);
    }

    #[test]
    fn a_prefix_ends_at_a_component() {
        assert_eq!(path("a/b").strip_prefix(&path("a")), Some(path("b")));
        assert_eq!(path("ab").strip_prefix(&path("a")), None);
        assert_eq!(path("a/b/c").ancestors().collect::<Vec<_>>(), [path("a"), path("a/b")]);
        assert_eq!(path("a/b").parent(), Some(path("a")));
    }
}
