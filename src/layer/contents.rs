//! What a layer was seen to hold so far, and the rules that its entries keep among themselves.
//!
//! Shared by the reader and the writer, so that nothing is written that would not be read. Knows no
//! bytes of tar.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
};

use super::{LayerError, Listed, Listing};
use crate::tree::{Change, Entry, Kind, TreePath};

/// Changes in archive order, findable by path.
#[derive(Default)]
pub(super) struct Contents {
    changes: Vec<Listed>,
    /// Hash of a path → position of its last `Put`. A hash taken by another path moves to the next
    /// number. Paths are not kept twice: a layer may have millions.
    positions: HashMap<u64, usize>,
    hashing: RandomState,
    bytes: u64,
    /// Files that other names link to: they cannot be replaced without changing what the names mean.
    targets: BTreeSet<TreePath>,
    /// How often something of another type took a place.
    replacements: usize,
    /// The parent of the last entry: nothing but directories is there and above it. The next entry is most often near,
    /// and a tree may be thousands of names deep.
    sound: TreePath,
}

/// Most changes of type within one layer; each costs a pass over the layer, and honest layers have none.
const REPLACEMENTS_MAX: usize = 1000;

impl Contents {
    /// Checks an entry against what is there, and takes it in.
    pub(super) fn put(&mut self, entry: &Entry, offset: u64) -> Result<(), LayerError> {
        if entry.path.is_root() && !entry.is_directory() {
            return Err(LayerError::entry("/", "the root is not a directory"));
        }
        self.check_parents(&entry.path)?;
        if let Kind::Hardlink { target } = &entry.kind {
            self.check_target(entry, target)?;
        }
        let slot = self.slot(&entry.path);
        if let Some(before) = self.positions.insert(slot, self.changes.len()) {
            self.replace(before, entry)?;
        }
        if let Kind::Hardlink { target } = &entry.kind {
            self.targets.insert(target.clone());
        }
        self.bytes = self.bytes.saturating_add(entry.size());
        self.changes.push(Listed { change: Change::Put(entry.clone()), offset });
        Ok(())
    }

    /// Takes in a whiteout or an opaque mark.
    pub(super) fn mark(&mut self, change: Change) -> Result<(), LayerError> {
        self.check_parents(change.path())?;
        if let Change::Opaque(directory) = &change
            && self.last_put(directory).is_some_and(|entry| !entry.is_directory())
        {
            let reason = "an opaque mark for what is no directory in the same layer";
            return Err(LayerError::entry(directory.as_bytes(), reason));
        }
        self.changes.push(Listed { change, offset: 0 });
        Ok(())
    }

    /// Sum of the sizes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sorts, and drops what later entries of the same layer replaced. In place: a layer may have millions.
    pub(super) fn into_listing(self) -> Listing {
        let Self { mut changes, replacements, positions, .. } = self;
        drop(positions);
        if replacements > 0 {
            let mut numbered: Vec<_> = changes.into_iter().enumerate().collect();
            numbered.sort_by(|(_, left), (_, right)| by_place(left, right));
            drop_buried(&mut numbered);
            changes = numbered.into_iter().map(|(_, listed)| listed).collect();
        } else if !changes.is_sorted_by(|left, right| by_place(left, right).is_le()) {
            changes.sort_by(by_place);
        }
        changes.dedup_by(|next, kept| {
            let is_newer = same_place(&kept.change, &next.change);
            if is_newer {
                std::mem::swap(kept, next);
            }
            is_newer
        });
        Listing { changes }
    }

    fn check_parents(&mut self, path: &TreePath) -> Result<(), LayerError> {
        for parent in path.ancestors_beyond(path.common(&self.sound)) {
            let Some(entry) = self.last_put(&parent) else { continue };
            if !entry.is_directory() {
                let reason = format!("`{parent}` is no directory in the same layer");
                return Err(LayerError::entry(path.as_bytes(), reason));
            }
        }
        self.sound = path.parent().unwrap_or_default();
        Ok(())
    }

    fn check_target(&self, entry: &Entry, target: &TreePath) -> Result<(), LayerError> {
        let refuse = |reason: String| Err(LayerError::entry(entry.path.as_bytes(), reason));
        if *target == entry.path {
            return refuse("a hard link to itself".to_owned());
        }
        match self.last_put(target) {
            None => refuse(format!(
                "a hard link to `{target}`, which the layer does not hold before it"
            )),
            Some(found) if found.is_directory() => {
                refuse(format!("a hard link to the directory `{target}`"))
            }
            Some(_) => Ok(()),
        }
    }

    fn last_put(&self, path: &TreePath) -> Option<&Entry> {
        self.entry_at(*self.positions.get(&self.slot(path))?)
    }

    fn entry_at(&self, position: usize) -> Option<&Entry> {
        match &self.changes.get(position)?.change {
            Change::Put(entry) => Some(entry),
            Change::Whiteout(_) | Change::Opaque(_) => None,
        }
    }

    /// The number under which a path is, or would be, found.
    fn slot(&self, path: &TreePath) -> u64 {
        let mut slot = self.hashing.hash_one(path);
        while let Some(position) = self.positions.get(&slot)
            && self.entry_at(*position).is_none_or(|entry| entry.path != *path)
        {
            slot = slot.wrapping_add(1);
        }
        slot
    }

    /// Settles what becomes of an earlier entry of the same name.
    fn replace(&mut self, before: usize, entry: &Entry) -> Result<(), LayerError> {
        let Some(earlier) = self.entry_at(before) else { return Ok(()) };
        let (was_directory, is_directory) = (earlier.is_directory(), entry.is_directory());
        let buried = |target: &TreePath| target.starts_with(&entry.path);
        if !(was_directory && is_directory)
            && self.targets.range(entry.path.clone()..).next().is_some_and(buried)
        {
            let reason = "replaces a file that other names of the layer are hard links to";
            return Err(LayerError::entry(entry.path.as_bytes(), reason));
        }
        if was_directory == is_directory {
            return Ok(());
        }
        self.replacements += 1;
        if self.replacements > REPLACEMENTS_MAX {
            let reason =
                format!("more than {REPLACEMENTS_MAX} names change their type within the layer");
            return Err(LayerError::entry(entry.path.as_bytes(), reason));
        }
        if was_directory {
            let changes = &self.changes;
            self.positions.retain(|_, position| match changes.get(*position).map(|l| &l.change) {
                Some(Change::Put(put)) => {
                    put.path == entry.path || !put.path.starts_with(&entry.path)
                }
                _ => true,
            });
        }
        Ok(())
    }
}

/// The order of a listing; what was added later for the same place stays behind.
fn by_place(left: &Listed, right: &Listed) -> Ordering {
    let order = left.change.path().cmp(right.change.path());
    order.then(rank(&left.change).cmp(&rank(&right.change)))
}

/// Whiteouts first, opaque marks last.
fn rank(change: &Change) -> u8 {
    match change {
        Change::Whiteout(_) => 0,
        Change::Put(_) => 1,
        Change::Opaque(_) => 2,
    }
}

fn same_place(left: &Change, right: &Change) -> bool {
    rank(left) == rank(right) && left.path() == right.path()
}

/// Drops what stood below a path when something other than a directory took its place.
fn drop_buried(changes: &mut Vec<(usize, Listed)>) {
    let mut graves: Vec<(TreePath, usize)> = Vec::new();
    changes.retain(|(at, listed)| {
        let path = listed.change.path();
        graves.retain(|(grave, _)| path.starts_with(grave));
        let mark = matches!(listed.change, Change::Opaque(_));
        if graves.iter().any(|(grave, until)| (mark || grave != path) && at < until) {
            return false;
        }
        if let Change::Put(entry) = &listed.change
            && !entry.is_directory()
        {
            graves.push((path.clone(), *at));
        }
        true
    });
}
