//! What a layer was seen to hold so far, and the rules that its entries keep among themselves.
//!
//! Shared by the reader and the writer, so that nothing is written that would not be read. What comes in path order, as
//! our own layers and most others do, is a listing at once; anything else is packed in the order in which it comes.
//! Knows no bytes of tar.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
};

use super::{LayerError, Listed, Listing, listing};
use crate::tree::{Change, Entry, Kind, TreePath};

/// What a layer holds so far.
#[derive(Default)]
pub(super) struct Contents {
    order: Order,
    bytes: u64,
}

enum Order {
    /// Every change came behind the one before it.
    Sorted(Sorted),
    Any(Box<Any>),
}

impl Default for Order {
    fn default() -> Self {
        Self::Sorted(Sorted::default())
    }
}

impl Contents {
    /// Checks an entry against what is there, and takes it in.
    pub(super) fn put(&mut self, entry: Entry, offset: u64) -> Result<(), LayerError> {
        if entry.path.is_root() && !entry.is_directory() {
            return Err(LayerError::entry("/", "the root is not a directory"));
        }
        self.bytes = self.bytes.saturating_add(entry.size());
        let listed = Listed { change: Change::Put(entry), offset };
        self.take(listed)
    }

    /// Takes in a whiteout or an opaque mark.
    pub(super) fn mark(&mut self, change: Change) -> Result<(), LayerError> {
        self.take(Listed { change, offset: 0 })
    }

    fn take(&mut self, listed: Listed) -> Result<(), LayerError> {
        if let Order::Sorted(sorted) = &mut self.order {
            if sorted.is_next(&listed.change) {
                return sorted.take(&listed);
            }
            let listing = std::mem::take(&mut sorted.listing);
            self.order = Order::Any(Box::new(Any::of(&listing)));
        }
        let Order::Any(any) = &mut self.order else { unreachable!("made so above") };
        any.take(&listed)
    }

    /// Sum of the sizes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sorted, without what later entries of the same layer replaced.
    pub(super) fn into_listing(self) -> Listing {
        match self.order {
            Order::Sorted(sorted) => sorted.listing,
            Order::Any(any) => any.into_listing(),
        }
    }
}

/// Changes in path order.
#[derive(Default)]
struct Sorted {
    listing: Listing,
    last: Option<(TreePath, u8)>,
    /// The path of the last entry, when it is no directory: nothing can come below it.
    closed: Option<TreePath>,
}

impl Sorted {
    fn is_next(&self, change: &Change) -> bool {
        self.last.as_ref().is_none_or(|(path, last)| {
            path.cmp(change.path()).then(last.cmp(&rank(change))) == Ordering::Less
        })
    }

    fn take(&mut self, listed: &Listed) -> Result<(), LayerError> {
        let path = listed.change.path();
        let closed = self.closed.as_ref().filter(|closed| path.starts_with(closed));
        match (&listed.change, closed) {
            (Change::Opaque(_), Some(closed)) if closed == path => {
                return Err(not_a_directory(path));
            }
            (_, Some(closed)) if closed != path => return Err(below_a_file(path, closed)),
            _ => {}
        }
        if let Change::Put(entry) = &listed.change {
            if let Kind::Hardlink { target } = &entry.kind {
                let found = self.listing.at(target).map(|listed| listed.change);
                let found = match &found {
                    Some(Change::Put(found)) => Some(found),
                    Some(Change::Whiteout(_) | Change::Opaque(_)) | None => None,
                };
                check_target(entry, target, found)?;
            }
            self.closed = (!entry.is_directory()).then(|| path.clone());
        }
        self.listing.push(listed);
        self.last = Some((path.clone(), rank(&listed.change)));
        Ok(())
    }
}

/// Changes in archive order, findable by path.
#[derive(Default)]
struct Any {
    /// Packed one by one: a layer may have millions.
    changes: Vec<u8>,
    /// Where each begins.
    starts: Vec<usize>,
    /// Hash of a path → where its last `Put` begins. A hash taken by another path moves to the next number.
    puts: HashMap<u64, usize>,
    hashing: RandomState,
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

impl Any {
    /// With what was checked already.
    fn of(listing: &Listing) -> Self {
        let mut any = Self::default();
        listing.iter().for_each(|listed| any.keep(&listed));
        any
    }

    fn take(&mut self, listed: &Listed) -> Result<(), LayerError> {
        self.check_parents(listed.change.path())?;
        match &listed.change {
            Change::Put(entry) => {
                if let Kind::Hardlink { target } = &entry.kind {
                    check_target(entry, target, self.last_put(target).as_ref())?;
                }
                if let Some(earlier) = self.last_put(&entry.path) {
                    self.replace(&earlier, entry)?;
                }
            }
            Change::Opaque(directory) => {
                if self.last_put(directory).is_some_and(|entry| !entry.is_directory()) {
                    return Err(not_a_directory(directory));
                }
            }
            Change::Whiteout(_) => {}
        }
        self.keep(listed);
        Ok(())
    }

    fn keep(&mut self, listed: &Listed) {
        let start = self.changes.len();
        if let Change::Put(entry) = &listed.change {
            self.puts.insert(self.slot(&entry.path), start);
            if let Kind::Hardlink { target } = &entry.kind {
                self.targets.insert(target.clone());
            }
        }
        listing::put(&mut self.changes, &TreePath::root(), listed);
        self.starts.push(start);
    }

    /// Sorts, and drops what later entries of the same layer replaced.
    fn into_listing(mut self) -> Listing {
        drop(std::mem::take(&mut self.puts));
        let mut starts = std::mem::take(&mut self.starts);
        starts.sort_unstable_by(|left, right| {
            let order = TreePath::compare(self.path_at(*left), self.path_at(*right));
            order.then_with(|| self.rank_at(*left).cmp(&self.rank_at(*right))).then(left.cmp(right))
        });
        if self.replacements > 0 {
            self.drop_buried(&mut starts);
        }
        starts.dedup_by(|next, kept| {
            let is_newer = self.rank_at(*kept) == self.rank_at(*next)
                && self.path_at(*kept) == self.path_at(*next);
            if is_newer {
                std::mem::swap(kept, next);
            }
            is_newer
        });
        starts.into_iter().map(|start| self.change_at(start)).collect()
    }

    /// Drops what stood below a path when something other than a directory took its place.
    fn drop_buried(&self, starts: &mut Vec<usize>) {
        let mut graves: Vec<(TreePath, usize)> = Vec::new();
        starts.retain(|at| {
            let change = self.change_at(*at).change;
            let path = change.path();
            graves.retain(|(grave, _)| path.starts_with(grave));
            let mark = matches!(change, Change::Opaque(_));
            if graves.iter().any(|(grave, until)| (mark || grave != path) && at < until) {
                return false;
            }
            if let Change::Put(entry) = &change
                && !entry.is_directory()
            {
                graves.push((path.clone(), *at));
            }
            true
        });
    }

    fn check_parents(&mut self, path: &TreePath) -> Result<(), LayerError> {
        for parent in path.ancestors_beyond(path.common(&self.sound)) {
            let Some(entry) = self.last_put(&parent) else { continue };
            if !entry.is_directory() {
                return Err(below_a_file(path, &parent));
            }
        }
        self.sound = path.parent().unwrap_or_default();
        Ok(())
    }

    fn last_put(&self, path: &TreePath) -> Option<Entry> {
        let start = *self.puts.get(&self.slot(path))?;
        match self.change_at(start).change {
            Change::Put(entry) => Some(entry),
            Change::Whiteout(_) | Change::Opaque(_) => None,
        }
    }

    fn change_at(&self, start: usize) -> Listed {
        listing::first(&self.changes[start..])
    }

    fn path_at(&self, start: usize) -> &[u8] {
        listing::first_path(&self.changes[start..])
    }

    fn rank_at(&self, start: usize) -> u8 {
        rank(&self.change_at(start).change)
    }

    /// The number under which a path is, or would be, found.
    fn slot(&self, path: &TreePath) -> u64 {
        let mut slot = self.hashing.hash_one(path);
        while let Some(start) = self.puts.get(&slot)
            && self.path_at(*start) != path.as_bytes()
        {
            slot = slot.wrapping_add(1);
        }
        slot
    }

    /// Settles what becomes of an earlier entry of the same name.
    fn replace(&mut self, earlier: &Entry, entry: &Entry) -> Result<(), LayerError> {
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
            let (changes, above) = (&self.changes, entry.path.as_bytes());
            self.puts.retain(|_, start| {
                let rest = listing::first_path(&changes[*start..]).strip_prefix(above);
                rest.is_none_or(|rest| rest.first() != Some(&b'/'))
            });
        }
        Ok(())
    }
}

fn check_target(entry: &Entry, target: &TreePath, found: Option<&Entry>) -> Result<(), LayerError> {
    let refuse = |reason: String| Err(LayerError::entry(entry.path.as_bytes(), reason));
    if *target == entry.path {
        return refuse("a hard link to itself".to_owned());
    }
    match found {
        None => {
            refuse(format!("a hard link to `{target}`, which the layer does not hold before it"))
        }
        Some(found) if found.is_directory() => {
            refuse(format!("a hard link to the directory `{target}`"))
        }
        Some(_) => Ok(()),
    }
}

fn below_a_file(path: &TreePath, above: &TreePath) -> LayerError {
    let reason = format!("`{above}` is no directory in the same layer");
    LayerError::entry(path.as_bytes(), reason)
}

fn not_a_directory(path: &TreePath) -> LayerError {
    let reason = "an opaque mark for what is no directory in the same layer";
    LayerError::entry(path.as_bytes(), reason)
}

/// Whiteouts first, opaque marks last.
fn rank(change: &Change) -> u8 {
    match change {
        Change::Whiteout(_) => 0,
        Change::Put(_) => 1,
        Change::Opaque(_) => 2,
    }
}
