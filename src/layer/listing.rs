//! The listing of a layer: look-ups by path, and its compact binary form (`schema/listing.md`).
//!
//! It is held packed, as it is stored: a layer may have millions of names. Knows nothing of where listings are kept.

use std::{collections::BTreeSet, fmt};

use super::{LayerError, Listed};
use crate::{
    oci::{Digest, Hasher},
    tree::{
        Change, Entry, Kind, TreePath,
        packed::{self, Packed},
    },
};

/// First bytes of an encoded listing; the last one is the version.
const MAGIC: &[u8; 8] = b"IDPLIST\x01";

/// Bytes of the SHA-256 of everything before that end an encoded listing.
const CHECKSUM_BYTES: usize = 8;

/// Most bytes that come before the changes of an encoded listing.
const HEADER_BYTES_MAX: usize = MAGIC.len() + 10;

/// A look-up goes through as many changes one by one.
const BLOCK: usize = 16;

/// Why packed changes can be read.
const SOUND: &str = "it was packed here, or read to its end before";

/// What a layer holds, without the content: the changes in path order, each with where its content starts in the plain
/// tar. For one path a whiteout comes before what replaces it, an opaque mark after its directory.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// As they are encoded.
    changes: Vec<u8>,
    count: usize,
    /// The first change of each block.
    blocks: Vec<Block>,
    last: TreePath,
    /// Files that have other names in the layer.
    linked: BTreeSet<TreePath>,
}

/// Where in the packed changes a block begins, and the path there.
#[derive(Clone, PartialEq, Eq)]
struct Block {
    start: usize,
    path: TreePath,
}

/// Changes of a listing, in path order.
#[derive(Clone)]
pub struct Changes<'l> {
    rest: Packed<'l>,
    /// Changes of which nothing was read yet.
    left: usize,
    path: TreePath,
    /// Number of the type of the change at `path`, when it was looked at and not taken yet.
    tag: Option<u8>,
}

impl Listing {
    /// Adds a change, which comes behind all that are there.
    ///
    /// # Panics
    ///
    /// When its path comes before the last one.
    pub fn push(&mut self, listed: &Listed) {
        let path = listed.change.path();
        assert!(self.count == 0 || self.last <= *path, "changes come in path order");
        if self.count.is_multiple_of(BLOCK) {
            self.blocks.push(Block { start: self.changes.len(), path: path.clone() });
        }
        put(&mut self.changes, &self.last, listed);
        if let Change::Put(entry) = &listed.change {
            self.note_link(&entry.kind);
        }
        self.count += 1;
        self.last.clone_from(path);
    }

    fn note_link(&mut self, kind: &Kind) {
        if let Kind::Hardlink { target } = kind {
            self.linked.insert(target.clone());
        }
    }

    /// How many changes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Length of the packed changes in bytes.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        self.changes.len()
    }

    /// The bytes of the listing as the store keeps it (format in `schema/listing.md`).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES_MAX + self.changes.len() + CHECKSUM_BYTES);
        bytes.extend_from_slice(&self.changes);
        framed(bytes, self.count)
    }

    /// As [`Listing::encode`], without a copy of what is packed.
    #[must_use]
    pub fn into_encoded(self) -> Vec<u8> {
        framed(self.changes, self.count)
    }

    /// Reads what [`Listing::encode`] wrote.
    ///
    /// # Errors
    ///
    /// When the bytes are damaged or of another version.
    pub fn decode(bytes: impl Into<Vec<u8>>) -> Result<Self, LayerError> {
        decode(bytes.into()).map_err(|reason| LayerError::entry("listing", reason))
    }

    /// All changes.
    #[must_use]
    pub fn iter(&self) -> Changes<'_> {
        let path = TreePath::root();
        Changes { rest: Packed(&self.changes), left: self.count, path, tag: None }
    }

    /// All changes, the last one first.
    pub fn iter_back(&self) -> impl Iterator<Item = Listed> {
        (0..self.blocks.len()).rev().flat_map(|number| {
            let block: Vec<_> = self.in_block(number).take(BLOCK).collect();
            block.into_iter().rev()
        })
    }

    /// The last thing listed for exactly this path: `Put`, or else `Whiteout`. O(log n).
    #[must_use]
    pub fn at(&self, path: &TreePath) -> Option<Listed> {
        self.exactly(path).filter(|listed| !matches!(listed.change, Change::Opaque(_))).last()
    }

    /// Whether the directory is marked opaque by this layer, or taken away and made anew by it.
    #[must_use]
    pub fn is_opaque(&self, directory: &TreePath) -> bool {
        self.exactly(directory).any(|listed| !matches!(listed.change, Change::Put(_)))
    }

    /// Whether other entries of the layer are hard links to this one.
    #[must_use]
    pub fn is_linked(&self, path: &TreePath) -> bool {
        self.linked.contains(path)
    }

    /// What is listed strictly below a directory, in path order.
    pub fn below(&self, directory: &TreePath) -> impl Iterator<Item = Listed> {
        let behind = self.behind(|path| path <= directory);
        behind.take_while(move |listed| listed.change.path().starts_with(directory))
    }

    /// What comes behind all paths of which something is said that is true of the first ones alone. O(log n).
    pub fn behind(&self, passed: impl Fn(&TreePath) -> bool) -> Changes<'_> {
        let block = self.blocks.partition_point(|block| passed(&block.path));
        let mut changes = self.in_block(block.saturating_sub(1));
        while changes.peek().is_some_and(&passed) {
            changes.skip_one();
        }
        changes
    }

    /// All that is listed for exactly this path.
    pub(super) fn exactly(&self, path: &TreePath) -> impl Iterator<Item = Listed> {
        let mut changes = self.behind(|before| before < path);
        std::iter::from_fn(move || match changes.peek() {
            Some(next) if next == path => changes.next(),
            _ => None,
        })
    }

    fn in_block(&self, number: usize) -> Changes<'_> {
        let Some(Block { start, path }) = self.blocks.get(number) else {
            return Changes { rest: Packed(&[]), left: 0, path: TreePath::root(), tag: None };
        };
        let (rest, left) = (Packed(&self.changes[*start..]), self.count - number * BLOCK);
        // What the first path has in common with the one before it, it has in common with itself.
        Changes { rest, left, path: path.clone(), tag: None }
    }
}

/// The digest of what [`Listing::encode`] would give, of changes that are not kept.
pub struct ListingHasher {
    hasher: Hasher,
    pending: Vec<u8>,
    last: TreePath,
}

/// Bytes that are hashed at once.
const PENDING_BYTES: usize = 64 << 10;

impl ListingHasher {
    /// Of so many changes.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self { hasher: Hasher::new(), pending: header(count), last: TreePath::root() }
    }

    /// Takes in a change, which comes behind all before it.
    pub fn push(&mut self, listed: &Listed) {
        put(&mut self.pending, &self.last, listed);
        self.last.clone_from(listed.change.path());
        if self.pending.len() >= PENDING_BYTES {
            self.hasher.update(&self.pending);
            self.pending.clear();
        }
    }

    /// The digest.
    #[must_use]
    pub fn finish(mut self) -> Digest {
        self.hasher.update(&self.pending);
        let checksum = self.hasher.clone().finish();
        self.hasher.update(&checksum.as_bytes()[..CHECKSUM_BYTES]);
        self.hasher.finish()
    }
}

impl FromIterator<Listed> for Listing {
    fn from_iter<I: IntoIterator<Item = Listed>>(changes: I) -> Self {
        let mut listing = Self::default();
        changes.into_iter().for_each(|listed| listing.push(&listed));
        listing
    }
}

impl<'l> IntoIterator for &'l Listing {
    type Item = Listed;
    type IntoIter = Changes<'l>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl Changes<'_> {
    /// The path of the next change.
    pub fn peek(&mut self) -> Option<&TreePath> {
        if self.tag.is_none() && self.left > 0 {
            self.left -= 1;
            self.tag = Some(self.rest.byte().expect(SOUND));
            self.rest.path(&mut self.path).expect(SOUND);
        }
        self.tag.map(|_| &self.path)
    }

    fn skip_one(&mut self) {
        if let Some(tag) = self.tag.take() {
            facts(&mut self.rest, tag).expect(SOUND);
        }
    }
}

impl Iterator for Changes<'_> {
    type Item = Listed;

    fn next(&mut self) -> Option<Listed> {
        self.peek()?;
        let tag = self.tag.take()?;
        let path = self.path.clone();
        let Some((kind, meta, offset)) = facts(&mut self.rest, tag).expect(SOUND) else {
            let change =
                if tag == WHITEOUT { Change::Whiteout(path) } else { Change::Opaque(path) };
            return Some(Listed { change, offset: 0 });
        };
        Some(Listed { change: Change::Put(Entry { path, kind, meta }), offset })
    }
}

const WHITEOUT: u8 = 0;
const OPAQUE: u8 = 1;

/// Packs a change behind one at the path `before`.
pub(super) fn put(bytes: &mut Vec<u8>, before: &TreePath, listed: &Listed) {
    bytes.push(tag(&listed.change));
    packed::put_path(bytes, before.as_bytes(), listed.change.path());
    if let Change::Put(entry) = &listed.change {
        packed::put_facts(bytes, &entry.kind, &entry.meta);
        if matches!(entry.kind, Kind::File { .. }) {
            packed::put_number(bytes, listed.offset);
        }
    }
}

/// The first change of bytes, packed by [`put`] behind the root.
pub(super) fn first(bytes: &[u8]) -> Listed {
    let path = TreePath::root();
    let mut changes = Changes { rest: Packed(bytes), left: 1, path, tag: None };
    changes.next().expect(SOUND)
}

/// The path of the first change of such bytes.
pub(super) fn first_path(bytes: &[u8]) -> &[u8] {
    let mut rest = Packed(&bytes[1..]);
    rest.number().and_then(|_| rest.bytes()).expect(SOUND)
}

fn tag(change: &Change) -> u8 {
    match change {
        Change::Whiteout(_) => WHITEOUT,
        Change::Opaque(_) => OPAQUE,
        Change::Put(entry) => packed::tag(&entry.kind),
    }
}

/// What comes behind tag and path: nothing of a mark.
fn facts(packed: &mut Packed<'_>, tag: u8) -> Option<Option<(Kind, crate::tree::Meta, u64)>> {
    if matches!(tag, WHITEOUT | OPAQUE) {
        return Some(None);
    }
    let (kind, meta) = packed.facts(tag)?;
    let is_file = matches!(kind, Kind::File { .. });
    let offset = if is_file { packed.number()? } else { 0 };
    Some(Some((kind, meta, offset)))
}

/// Packed changes with what comes before and behind them.
fn framed(changes: Vec<u8>, count: usize) -> Vec<u8> {
    let mut bytes = changes;
    bytes.splice(..0, header(count));
    let checksum = Digest::of(&bytes);
    bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM_BYTES]);
    bytes
}

/// What an encoded listing begins with.
fn header(count: usize) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    packed::put_number(&mut header, count as u64);
    header
}

fn decode(mut bytes: Vec<u8>) -> Result<Listing, &'static str> {
    let end = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or("is too short")?;
    let (body, checksum) = bytes.split_at(end);
    let rest = body.strip_prefix(MAGIC).ok_or("is of another version")?;
    if Digest::of(body).as_bytes()[..CHECKSUM_BYTES] != *checksum {
        return Err("is damaged: its check sum is wrong");
    }
    let (mut listing, length) = look_through(Packed(rest)).ok_or("is damaged")?;
    let start = end - length;
    bytes.truncate(end);
    bytes.drain(..start);
    listing.changes = bytes;
    Ok(listing)
}

/// Reads all packed changes once: the listing without them, and their length in bytes.
fn look_through(mut packed: Packed<'_>) -> Option<(Listing, usize)> {
    let count = usize::try_from(packed.number()?).ok()?;
    let changes = packed.0;
    let mut listing = Listing { count, ..Listing::default() };
    let mut path = TreePath::root();
    for number in 0..count {
        let start = changes.len() - packed.0.len();
        let tag = packed.byte()?;
        packed.path(&mut path)?;
        if number > 0 && path < listing.last {
            return None;
        }
        if number.is_multiple_of(BLOCK) {
            listing.blocks.push(Block { start, path: path.clone() });
        }
        if let Some((kind, ..)) = facts(&mut packed, tag)? {
            listing.note_link(&kind);
        }
        listing.last.clone_from(&path);
    }
    packed.0.is_empty().then_some((listing, changes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Meta;

    fn path(text: &str) -> TreePath {
        TreePath::parse(text).unwrap()
    }

    /// Files, links and marks in several blocks, with paths that share much and little.
    fn changes() -> Vec<Listed> {
        let put = |path, kind| Change::Put(Entry { path, kind, meta: Meta::default() });
        let mut changes = Vec::new();
        for folder in ["a", "a/b", "a-", "c/d/e", "f"] {
            let folder = path(folder);
            changes.push(Change::Whiteout(folder.clone()));
            changes.push(put(folder.clone(), Kind::Directory));
            changes.push(Change::Opaque(folder.clone()));
            for number in 0..2 * BLOCK as u64 {
                let name = folder.child(format!("name-{number}").as_bytes()).unwrap();
                changes.push(match number % 3 {
                    0 => put(name, Kind::File { size: number }),
                    1 => put(name, Kind::Hardlink { target: folder.join(&path("name-0")) }),
                    _ => Change::Whiteout(name),
                });
            }
        }
        changes.sort_by(|one, other| one.path().cmp(other.path()));
        let offset = |change: &Change| match change {
            Change::Put(Entry { kind: Kind::File { size }, .. }) => 512 + size,
            Change::Put(_) | Change::Whiteout(_) | Change::Opaque(_) => 0,
        };
        changes.into_iter().map(|change| Listed { offset: offset(&change), change }).collect()
    }

    #[test]
    fn what_is_packed_answers_as_a_list_does() {
        let changes = changes();
        let packed: Listing = changes.iter().cloned().collect();
        for listing in [&packed, &Listing::decode(packed.encode()).unwrap()] {
            assert_eq!(*listing, packed);
            assert_eq!((listing.len(), listing.is_empty()), (changes.len(), false));
            assert_eq!(listing.iter().collect::<Vec<_>>(), changes);
            let mut hasher = ListingHasher::new(changes.len());
            changes.iter().for_each(|listed| hasher.push(listed));
            assert_eq!(hasher.finish(), Digest::of(&listing.encode()));
            assert_eq!(
                listing.iter_back().collect::<Vec<_>>(),
                changes.iter().rev().cloned().collect::<Vec<_>>()
            );
            let absent = ["", "a/a", "a/name-", "c", "z"].map(path);
            for at in changes.iter().map(|listed| listed.change.path()).chain(&absent) {
                let mut there = changes.iter().filter(|listed| listed.change.path() == at);
                let marked = there.clone().any(|listed| !matches!(listed.change, Change::Put(_)));
                let last = there.rfind(|listed| !matches!(listed.change, Change::Opaque(_)));
                assert_eq!(listing.at(at), last.cloned(), "{at}");
                assert_eq!(listing.is_opaque(at), marked, "{at}");
                let is_below = |listed: &&Listed| {
                    let path = listed.change.path();
                    path != at && path.starts_with(at)
                };
                let below: Vec<_> = changes.iter().filter(is_below).cloned().collect();
                assert_eq!(listing.below(at).collect::<Vec<_>>(), below, "{at}");
                assert_eq!(listing.is_linked(at), at.file_name() == Some(b"name-0"), "{at}");
            }
        }
    }

    #[test]
    fn paths_that_are_none_or_out_of_order_are_damage() {
        let of = |rest: &[u8]| {
            let mut bytes = [MAGIC.as_slice(), rest].concat();
            let sum = Digest::of(&bytes);
            bytes.extend_from_slice(&sum.as_bytes()[..CHECKSUM_BYTES]);
            Listing::decode(bytes).is_ok()
        };
        assert!(of(&[2, 0, 0, 1, b'a', 0, 1, 2, b'/', b'b']));
        assert!(!of(&[2, 0, 0, 1, b'b', 0, 0, 1, b'a']));
        for name in [&b".."[..], b"/a", b"a//b", b"a/", b"a/./b", b"a\0"] {
            let bytes = [&[1, 0, 0, name.len() as u8][..], name].concat();
            assert!(!of(&bytes), "{name:?}");
        }
        // More in common with the path before than there is of it, or a name that only ends badly.
        assert!(!of(&[2, 0, 0, 1, b'a', 0, 2, 1, b'b']));
        assert!(!of(&[2, 0, 0, 3, b'a', b'/', b'.', 0, 3, 1, b'.']));
    }
}
