//! What a layer will hold: additions and removals over a root file system that is only looked at.
//!
//! Nothing is written here. Knows neither sources nor tar.

use std::{
    collections::{BTreeSet, VecDeque},
    iter::Peekable,
};

use super::{
    FilesError,
    puts::{Made, Put, Puts, Raw},
    resolve::{Stand, child, resolve_from},
    source::travels,
};
use crate::{
    layer,
    snapshot::View,
    tree::{Entry, Kind, Meta, Timestamp, TreePath},
};

/// Prefix of names that take something of the layers below away.
const WHITEOUT: &[u8] = b".wh.";

/// Name that takes everything away that the layers below have in a directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A root file system with changes on top.
pub(super) struct Target<'a> {
    base: Option<&'a View>,
    pub(super) puts: Puts,
    /// Paths at which the base's entry, and what is below it, is gone.
    gone: BTreeSet<TreePath>,
    /// Directories in which everything of the base is gone.
    opaque: BTreeSet<TreePath>,
}

/// What may take the place of what.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Directories and files do not take one another's place, as with COPY.
    Alike,
    /// The last one counts, as with archives.
    Any,
}

/// Owner, mode and time of directories that are made on the way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maker {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
}

/// What stands at a path of a target.
pub(super) struct Standing {
    pub(super) kind: Kind,
    pub(super) meta: Meta,
}

/// A line of the layer that is to be written.
pub(super) enum Line<'t> {
    Whiteout(TreePath),
    Put(TreePath, Raw<'t>),
    /// A directory of the base that holds something new: other tools need it to be listed.
    Above(Entry),
    Opaque(TreePath),
}

impl Line<'_> {
    pub(super) fn path(&self) -> &TreePath {
        match self {
            Self::Whiteout(path) | Self::Opaque(path) | Self::Put(path, _) => path,
            Self::Above(entry) => &entry.path,
        }
    }
}

impl Standing {
    pub(super) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

impl Maker {
    fn meta(self) -> Meta {
        let Self { mode, uid, gid, mtime } = self;
        Meta { mode, uid, gid, mtime, ..Meta::default() }
    }
}

impl<'a> Target<'a> {
    /// `None` is an empty root file system.
    pub(super) fn new(base: Option<&'a View>) -> Self {
        let (puts, gone, opaque) = Default::default();
        Self { base, puts, gone, opaque }
    }

    /// What stands at exactly this path; links are not followed.
    pub(super) fn at(&self, path: &TreePath) -> Option<Standing> {
        if path.is_root() {
            return Some(Standing {
                kind: Kind::Directory,
                meta: Meta { mode: 0o755, ..Meta::default() },
            });
        }
        if let Some(Made { kind, meta, .. }) = self.made(path) {
            return Some(Standing { kind, meta });
        }
        self.in_base(path).map(|Entry { kind, meta, .. }| Standing { kind, meta })
    }

    /// What the base still has at a path.
    fn in_base(&self, path: &TreePath) -> Option<Entry> {
        let hidden = covers(&self.gone, path) || self.is_below_hidden(path);
        if hidden { None } else { self.base?.entry(path) }
    }

    /// What the base has at a path, whatever the layer puts there.
    pub(super) fn before(&self, path: &TreePath) -> Option<Entry> {
        let base = self.base?;
        if self.is_below_hidden(path) { None } else { layer::Below::entry(base, path) }
    }

    /// Whether what the base has in a directory above this path is gone.
    fn is_below_hidden(&self, path: &TreePath) -> bool {
        let above = path.parent();
        above.is_some_and(|above| covers(&self.gone, &above) || covers(&self.opaque, &above))
    }

    /// What the layer will hold at a path.
    pub(super) fn made(&self, path: &TreePath) -> Option<Made> {
        self.puts.get(path).map(|raw| self.puts.made(path, raw))
    }

    /// The base's own look-ups, for content that has to be copied up.
    pub(super) fn base_entry(&self, path: &TreePath) -> Option<Entry> {
        if self.puts.get(path).is_some() { None } else { self.in_base(path) }
    }

    /// Follows links inside of the target, the last component included.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<TreePath, FilesError> {
        self.resolve_within(&TreePath::root(), TreePath::root(), path)
    }

    /// As [`Target::resolve`], with `root` as the root that absolute links and `..` stop at, of a path that begins at
    /// `start` below that root, with no link on the way to it.
    pub(super) fn resolve_within(
        &self,
        root: &TreePath,
        start: TreePath,
        path: &[u8],
    ) -> Result<TreePath, FilesError> {
        let below = resolve_from(start, path, |at| {
            Ok(match self.at(&root.join(at)) {
                Some(Standing { kind: Kind::Symlink { target }, .. }) => Stand::Link(target),
                _ => Stand::Other,
            })
        })?;
        Ok(root.join(&below))
    }

    /// Makes a directory and those above it, following links; returns where it stands. What exists is
    /// left alone.
    pub(super) fn make_directories(
        &mut self,
        path: &[u8],
        maker: Maker,
    ) -> Result<TreePath, FilesError> {
        let place = self.resolve(path)?;
        self.make_directories_at(&place, maker)?;
        Ok(place)
    }

    /// As [`Target::make_directories`], at a place that has been resolved.
    pub(super) fn make_directories_at(
        &mut self,
        place: &TreePath,
        maker: Maker,
    ) -> Result<(), FilesError> {
        for directory in place.ancestors().chain([place.clone()]).filter(|path| !path.is_root()) {
            match self.at(&directory) {
                Some(standing) if standing.is_directory() => {}
                Some(_) => {
                    return Err(FilesError::Invalid(format!(
                        "cannot make directory {place}: {directory} is not a directory"
                    )));
                }
                None => {
                    let put = Puts::of_own(&Made::alone(Kind::Directory, maker.meta(), None));
                    self.put(&directory, &put, Rule::Alike)?;
                }
            }
        }
        Ok(())
    }

    /// Puts something in place of whatever stands there. Its directory must exist.
    pub(super) fn put(&mut self, path: &TreePath, put: &Put, rule: Rule) -> Result<(), FilesError> {
        if path.is_root() || self.took_away(path) {
            return Ok(());
        }
        let own = self.puts.get(path).map(|raw| self.puts.made(path, raw).kind == Kind::Directory);
        let below = self.in_base(path).map(|entry| entry.is_directory());
        match own.or(below) {
            Some(false) if put.is_directory && rule == Rule::Alike => return Err(over_file(path)),
            Some(true) if !put.is_directory && rule == Rule::Alike => {
                let text = format!("cannot replace to directory {path} with file");
                return Err(FilesError::Invalid(text));
            }
            Some(true) if !put.is_directory => self.clear(path),
            // What is put in place of a file needs no word about the file.
            Some(false) if put.is_directory && below.is_some() => {
                self.gone.insert(path.clone());
            }
            Some(_) | None => {}
        }
        self.puts.insert(path, put);
        Ok(())
    }

    /// Changes the metadata of a directory that stands there, in the base or new.
    pub(super) fn change_directory(&mut self, path: &TreePath, change: impl FnOnce(&mut Meta)) {
        let Some(Standing { kind: Kind::Directory, mut meta }) = self.at(path) else { return };
        if !path.is_root() {
            change(&mut meta);
            let put = Puts::of_own(&Made::alone(Kind::Directory, meta, None));
            self.puts.insert(path, &put);
        }
    }

    /// A name that a layer reads as a removal removes: there is no other way to write it.
    fn took_away(&mut self, path: &TreePath) -> bool {
        let name = path.file_name().unwrap_or_default();
        let Some(hidden) = name.strip_prefix(WHITEOUT) else { return false };
        let parent = path.parent().unwrap_or_default();
        if name == OPAQUE {
            let below: Vec<_> = self.strictly_below(&parent);
            below.iter().for_each(|path| self.puts.remove(path));
            if self.in_base(&parent).is_some() {
                self.opaque.insert(parent);
            }
        } else if let Ok(hidden) = child(&parent, hidden) {
            self.clear(&hidden);
        }
        true
    }

    /// Takes away whatever stands at a path, with all that is below.
    fn clear(&mut self, path: &TreePath) {
        for below in self.strictly_below(path) {
            self.puts.remove(&below);
        }
        self.puts.remove(path);
        if self.in_base(path).is_some() {
            self.gone.insert(path.clone());
        }
    }

    fn strictly_below(&self, path: &TreePath) -> Vec<TreePath> {
        let after = self.puts.onward(path).map(|(put, _)| put);
        after.take_while(|put| put.starts_with(path)).filter(|put| put != path).collect()
    }

    /// The layer, in path order.
    pub(super) fn lines(&self) -> Lines<'_> {
        let (puts, marks) = (self.puts.onward(&TreePath::root()), self.gone.union(&self.opaque));
        Lines {
            target: self,
            puts: (Box::new(puts) as Box<dyn Iterator<Item = _>>).peekable(),
            marks: (Box::new(marks) as Box<dyn Iterator<Item = _>>).peekable(),
            before: TreePath::root(),
            ready: VecDeque::new(),
        }
    }

    /// The line of a directory that something is put or taken away below.
    pub(super) fn directory(&self, path: &TreePath) -> Option<Line<'_>> {
        match self.puts.get(path) {
            Some(raw) => Some(Line::Put(path.clone(), raw)),
            None => self.above(path).map(Line::Above),
        }
    }

    /// A directory of the base, as a layer lists it.
    fn above(&self, path: &TreePath) -> Option<Entry> {
        let mut entry = self.in_base(path).filter(Entry::is_directory)?;
        entry.meta.xattrs.retain(|name, _| travels(name));
        Some(entry)
    }

    /// What becomes of a path, and what is put there.
    fn lines_at<'t>(&'t self, path: &TreePath, put: Option<Raw<'t>>) -> VecDeque<Line<'t>> {
        let mut lines = VecDeque::new();
        // A file in place of something needs no whiteout; a directory would keep what was below.
        let replaced = |raw| self.puts.made(path, raw).kind != Kind::Directory;
        if self.gone.contains(path) && !put.is_some_and(replaced) {
            lines.push_back(Line::Whiteout(path.clone()));
        }
        match put {
            Some(raw) => lines.push_back(Line::Put(path.clone(), raw)),
            None => lines.extend(self.above(path).map(Line::Above)),
        }
        if self.opaque.contains(path) {
            lines.push_back(Line::Opaque(path.clone()));
        }
        lines
    }
}

/// The lines of a layer, one by one: what is put, what is gone, and directories above both.
pub(super) struct Lines<'t> {
    target: &'t Target<'t>,
    puts: Peekable<Box<dyn Iterator<Item = (TreePath, Raw<'t>)> + 't>>,
    marks: Peekable<Box<dyn Iterator<Item = &'t TreePath> + 't>>,
    /// The path of the line before.
    before: TreePath,
    ready: VecDeque<Line<'t>>,
}

impl<'t> Iterator for Lines<'t> {
    type Item = Line<'t>;

    fn next(&mut self) -> Option<Line<'t>> {
        while self.ready.is_empty() {
            let put = self.puts.peek().map(|(path, _)| path);
            let path = put.into_iter().chain(self.marks.peek().copied()).min()?.clone();
            let put = self.puts.next_if(|(put, _)| *put == path).map(|(_, raw)| raw);
            self.marks.next_if(|mark| **mark == path);
            for above in path.ancestors_beyond(path.common(&self.before)) {
                self.ready.extend(self.target.lines_at(&above, None));
            }
            self.ready.extend(self.target.lines_at(&path, put));
            self.before = path;
        }
        self.ready.pop_front()
    }
}

pub(super) fn over_file(path: &TreePath) -> FilesError {
    FilesError::Invalid(format!("cannot copy to non-directory: {path}"))
}

/// Whether a path, or one above it, is in the set; in a few steps, however deep the path is.
fn covers(set: &BTreeSet<TreePath>, path: &TreePath) -> bool {
    let mut at = path.clone();
    // What is above `at` sorts before it, and whatever sorts between the two is below what is above.
    while let Some(before) = set.range(..=&at).next_back() {
        if path.starts_with(before) {
            return true;
        }
        at = at.upper(at.common(before));
    }
    false
}

/// Where a destination is, as typed: its last name, unless it ends in a slash.
pub(super) fn destination_parent(destination: &str) -> &str {
    let end = destination.rfind('/').map_or(0, |slash| slash + 1);
    let (directory, name) = destination.split_at(end);
    if name.is_empty() || name == "." { destination } else { directory }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_covers_what_is_in_it_and_what_is_below() {
        let path = |text: &str| TreePath::parse(text).unwrap();
        let set: BTreeSet<_> = ["a/b", "a/b.c", "a/d/e/f", "x"].into_iter().map(path).collect();
        for (text, covered) in [
            ("a/b", true),
            ("a/b/c/d", true),
            ("a/b.d", false),
            ("a/c", false),
            ("a/d/e/g", false),
            ("a", false),
            ("", false),
            ("x/y/z", true),
            ("xy", false),
        ] {
            assert_eq!(covers(&set, &path(text)), covered, "{text}");
        }
        // What sorts in between is below something else that is covered.
        let set: BTreeSet<_> = ["a", "a/b/c"].into_iter().map(path).collect();
        assert!(covers(&set, &path("a/b/d")) && !covers(&BTreeSet::new(), &path("a")));
    }
}
