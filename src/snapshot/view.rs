//! The merged view: look-ups through a stack of listings, topmost layer first.
//!
//! A layer answers for a path, or hides what is below it, or has nothing to say. Directories that a
//! layer only implies (it has something below, and no entry) take nothing from the layers below.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{Mode, OFlags};

use crate::snapshot::{
    SnapshotError,
    index::{Indexed, Indexes, LAYERS_MIN},
    unpacking::{self, broken},
};
use crate::{
    layer::{self, LayerError, Listed, Listing, OverlayMarks},
    oci::DiffId,
    sandbox::{self, Privilege},
    store::Store,
    tree::{Change, Entry, Kind, Meta, TreePath},
};

/// Links followed for one path, as many as Linux follows.
const LINKS_MAX: usize = 40;

/// Mode of a directory that no layer has an entry for.
const IMPLIED_MODE: u32 = 0o755;

/// A read-only merged view of a stack of layers, from their listings: no mount, no unpacking for
/// look-ups.
pub struct View {
    store: Store,
    /// Topmost first.
    layers: Vec<(DiffId, Sheet)>,
    /// Which of them to ask, where they are many.
    pub(super) index: Option<Indexed>,
}

/// One layer of a view.
struct Sheet {
    listing: Arc<Listing>,
    /// What was found above the path that was asked for last: the next one is most often near it.
    above: Mutex<Above>,
}

/// What a layer does to what is below it, at a directory and above.
struct Above {
    directory: TreePath,
    /// Length of the outermost path on the way, root and the directory itself included, at which the layer hides what
    /// lower layers have.
    cover: Option<usize>,
}

/// What one layer says of a path.
enum Said {
    /// This stands there.
    Entry(Listed),
    /// A directory must be there, for something is below it; lower layers may know its owner.
    Implied,
    /// A directory must be there, and lower layers have no say in it.
    ImpliedAlone,
    /// Nothing is there, whatever lower layers say.
    Gone,
    /// Nothing: lower layers may know.
    Nothing,
}

impl View {
    /// Opens a view of `layers`, bottom first. Listings that are missing are made by reading the layer.
    ///
    /// # Errors
    ///
    /// When a layer is missing or damaged.
    pub fn open(store: &Store, layers: &[DiffId]) -> Result<Self, SnapshotError> {
        let topmost_first = layers.iter().rev();
        let layers = topmost_first.map(|layer| Ok((*layer, Sheet::new(listing(store, *layer)?))));
        let layers = layers.collect::<Result<Vec<_>, SnapshotError>>()?;
        let mut view = Self { store: store.clone(), layers, index: None };
        if view.layers.len() >= LAYERS_MIN {
            view.index = Some(view.indexed(&store.beside_listings::<Indexes>()));
        }
        Ok(view)
    }

    pub(super) fn indexed(&self, indexes: &Indexes) -> Indexed {
        let bottom_first = self.layers.iter().rev();
        let layers: Vec<_> = bottom_first.map(|(layer, sheet)| (*layer, &*sheet.listing)).collect();
        indexes.of(&layers)
    }

    /// What stands at exactly this path (links are not followed); the root is a directory always.
    /// A hard link is told as such; [`View::file`] names the file that it is.
    #[must_use]
    pub fn entry(&self, path: &TreePath) -> Option<Entry> {
        if let Some((_, listed)) = self.locate(path) {
            return put(listed);
        }
        let implied = path.is_root() || self.is_implied(path);
        implied.then(|| {
            let meta = Meta { mode: IMPLIED_MODE, ..Meta::default() };
            Entry::directory(path.clone(), meta)
        })
    }

    /// Names in a directory, sorted; empty for anything else.
    #[must_use]
    pub fn names(&self, directory: &TreePath) -> Vec<Vec<u8>> {
        if !self.entry(directory).is_some_and(|entry| entry.is_directory()) {
            return Vec::new();
        }
        let mut decided: BTreeMap<Vec<u8>, Presence> = BTreeMap::new();
        let asked = self.index.as_ref().map(|index| index.speakers_of_names(directory));
        for (_, sheet) in self.ask(asked) {
            for (name, presence) in children(sheet, directory) {
                decided.entry(name).or_insert(presence);
            }
            if sheet.covers(directory) || sheet.hides(directory) {
                break;
            }
        }
        let present = decided.into_iter().filter(|(_, presence)| *presence == Presence::There);
        present.map(|(name, _)| name).collect()
    }

    /// Follows links as a process chrooted into the view would, the last component included.
    /// The result may not exist (a dangling link, a path to be made); its parents then stand in the
    /// view as far as they exist.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Loop`], and [`SnapshotError::Path`] for what is no path.
    pub fn resolve(&self, path: &[u8]) -> Result<TreePath, SnapshotError> {
        self.walk(path, LastLink::Follow)
    }

    /// As [`View::resolve`], but leaves the last component as it is.
    ///
    /// # Errors
    ///
    /// As [`View::resolve`].
    pub fn resolve_parent(&self, path: &[u8]) -> Result<TreePath, SnapshotError> {
        self.walk(path, LastLink::Keep)
    }

    /// Opens the content of a regular file (hard links included).
    ///
    /// # Errors
    ///
    /// When it is no regular file, or its layer cannot be read.
    pub fn open_file(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, SnapshotError> {
        let not_a_file = || SnapshotError::NotAFile(path.to_string());
        let (layer, listed) = self.file(path).ok_or_else(not_a_file)?;
        let offset = listed.offset;
        let entry = put(listed).ok_or_else(not_a_file)?;
        let Kind::File { size } = entry.kind else { return Err(not_a_file()) };
        let (diff_id, _) = self.layers[layer];
        let read = |error: io::Error| broken(diff_id, error.into());
        if let Some(snapshot) = self.store.snapshot(diff_id) {
            return Ok(Box::new(open_in(&snapshot, &entry.path).map_err(read)?));
        }
        if self.store.blob_size(diff_id.0).is_none() {
            match super::lowers(&self.store, &[diff_id], marks()) {
                Ok(snapshot) => {
                    let snapshot = snapshot.first().ok_or(SnapshotError::Missing(diff_id))?;
                    return Ok(Box::new(open_in(snapshot, &entry.path).map_err(read)?));
                }
                // Whose a file is matters to processes; who reads it looks that up in the listing.
                Err(SnapshotError::Layer { source: LayerError::Unmapped { .. }, .. }) => {
                    unpacking::decompress(&self.store, diff_id)?;
                }
                Err(error) => return Err(error),
            }
        }
        let mut tar = self.store.open_blob(diff_id.0)?;
        tar.seek(SeekFrom::Start(offset)).map_err(read)?;
        Ok(Box::new(tar.take(size)))
    }

    /// Whether other names of its layer are the same file as a path.
    #[must_use]
    pub fn has_links(&self, path: &TreePath) -> bool {
        let found = self.locate(path);
        found.is_some_and(|(layer, listed)| match &listed.change {
            Change::Put(Entry { kind: Kind::Hardlink { .. }, .. }) => true,
            Change::Put(_) => self.layers[layer].1.listing.is_linked(path),
            Change::Whiteout(_) | Change::Opaque(_) => false,
        })
    }

    /// Names the place of an inode: two paths with the same value are hard links of one file.
    #[must_use]
    pub fn inode(&self, path: &TreePath) -> Option<(usize, TreePath)> {
        let (layer, listed) = self.file(path)?;
        // Counted from the bottom, so that the name outlives layers put on top.
        Some((self.layers.len() - 1 - layer, listed.change.path().clone()))
    }

    /// The layer that a path's file is in, and its path there: whatever has the same is the same file.
    #[must_use]
    pub fn origin(&self, path: &TreePath) -> Option<(DiffId, TreePath)> {
        let (layer, listed) = self.file(path)?;
        Some((self.layers[layer].0, listed.change.path().clone()))
    }

    /// The entry at a path, hard links followed to the file that they name: the layer (topmost is 0)
    /// and its line.
    fn file(&self, path: &TreePath) -> Option<(usize, Listed)> {
        let (layer, mut listed) = self.locate(path)?;
        let listing = &self.layers[layer].1.listing;
        for _ in 0..LINKS_MAX {
            let target = match &listed.change {
                Change::Put(Entry { kind: Kind::Hardlink { target }, .. }) => target,
                Change::Put(_) => return Some((layer, listed)),
                Change::Whiteout(_) | Change::Opaque(_) => return None,
            };
            listed = listing.at(target)?;
        }
        None
    }

    /// The topmost line that stands at a path: number of the layer (topmost is 0) and line.
    fn locate(&self, path: &TreePath) -> Option<(usize, Listed)> {
        let mut implied = false;
        for (number, sheet) in self.speakers(path) {
            match sheet.says(path) {
                Said::Entry(listed) => {
                    let is_directory =
                        matches!(&listed.change, Change::Put(entry) if entry.is_directory());
                    return (!implied || is_directory).then_some((number, listed));
                }
                Said::Gone | Said::ImpliedAlone => return None,
                Said::Implied => implied = true,
                Said::Nothing => {}
            }
        }
        None
    }

    /// Whether a layer implies a directory here that nothing above hides.
    fn is_implied(&self, path: &TreePath) -> bool {
        for (_, sheet) in self.speakers(path) {
            match sheet.says(path) {
                Said::Implied | Said::ImpliedAlone => return true,
                Said::Gone | Said::Entry(_) => return false,
                Said::Nothing => {}
            }
        }
        false
    }

    /// Layers that may have something to say of what stands at a path, topmost (0) first.
    fn speakers(&self, path: &TreePath) -> impl Iterator<Item = (usize, &Sheet)> {
        self.ask(self.index.as_ref().map(|index| index.speakers(path)))
    }

    /// These layers, or all.
    fn ask(&self, numbers: Option<Vec<usize>>) -> impl Iterator<Item = (usize, &Sheet)> {
        let count = numbers.as_ref().map_or(self.layers.len(), Vec::len);
        (0..count).map(move |at| {
            let number = numbers.as_ref().map_or(at, |numbers| numbers[at]);
            (number, &self.layers[number].1)
        })
    }

    fn walk(&self, path: &[u8], last: LastLink) -> Result<TreePath, SnapshotError> {
        // The components to come, next one last.
        let mut ahead: Vec<Vec<u8>> = components(path).collect();
        let mut at = TreePath::root();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                at = at.parent().unwrap_or_default();
                continue;
            }
            let next = at.child(&name)?;
            let entry = match (last, ahead.is_empty()) {
                (LastLink::Keep, true) => None,
                _ => self.entry(&next),
            };
            let Some(Entry { kind: Kind::Symlink { target }, .. }) = entry else {
                at = next;
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(SnapshotError::Loop(String::from_utf8_lossy(path).into_owned()));
            }
            if target.starts_with(b"/") {
                at = TreePath::root();
            }
            ahead.extend(components(&target));
        }
        Ok(at)
    }
}

impl layer::Below for View {
    fn entry(&self, path: &TreePath) -> Option<Entry> {
        let entry = Self::entry(self, path)?;
        if !matches!(entry.kind, Kind::Hardlink { .. }) {
            return Some(entry);
        }
        let file = put(self.file(path)?.1)?;
        Some(Entry { path: entry.path, ..file })
    }

    fn names(&self, directory: &TreePath) -> Vec<Vec<u8>> {
        Self::names(self, directory)
    }

    fn open(&self, path: &TreePath) -> io::Result<Box<dyn Read + '_>> {
        match self.open_file(path) {
            Ok(content) => Ok(content),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// What to do with a link at the end of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastLink {
    Follow,
    Keep,
}

/// Components of a path in reverse, `.` and empty ones left out.
fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').rev();
    parts.filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec)
}

fn put(listed: Listed) -> Option<Entry> {
    match listed.change {
        Change::Put(entry) => Some(entry),
        Change::Whiteout(_) | Change::Opaque(_) => None,
    }
}

impl Sheet {
    fn new(listing: Arc<Listing>) -> Self {
        let above = Above { directory: TreePath::root(), cover: None };
        let sheet = Self { listing, above: Mutex::new(above) };
        let cover = sheet.covers(&TreePath::root()).then_some(0);
        sheet.above.lock().unwrap_or_else(PoisonError::into_inner).cover = cover;
        sheet
    }

    fn says(&self, path: &TreePath) -> Said {
        if let Some(listed) = self.listing.at(path) {
            return match listed.change {
                Change::Put(_) => Said::Entry(listed),
                Change::Whiteout(_) | Change::Opaque(_) if self.has_entries_below(path) => {
                    Said::ImpliedAlone
                }
                Change::Whiteout(_) | Change::Opaque(_) => Said::Gone,
            };
        }
        match (self.has_entries_below(path), self.hides(path)) {
            (true, true) => Said::ImpliedAlone,
            (true, false) => Said::Implied,
            (false, true) => Said::Gone,
            (false, false) => Said::Nothing,
        }
    }

    /// Whether the layer hides what lower layers have at `path` by a mark or an entry above it.
    fn hides(&self, path: &TreePath) -> bool {
        let Some(parent) = path.parent() else { return false };
        let mut above = self.above.lock().unwrap_or_else(PoisonError::into_inner);
        let common = path.common(&above.directory);
        // All that is above both is known.
        if above.cover.is_some_and(|cover| cover <= common && cover < path.as_bytes().len()) {
            return true;
        }
        let mut beyond = path.ancestors_beyond(common).peekable();
        if beyond.peek().is_none() {
            return false;
        }
        let cover = beyond.find(|directory| self.covers(directory));
        let cover = cover.map(|directory| directory.as_bytes().len());
        *above = Above { directory: parent, cover };
        cover.is_some()
    }

    /// Whether the layer hides what lower layers have below `directory`, looking at that path alone.
    fn covers(&self, directory: &TreePath) -> bool {
        let replaced = || {
            let entry = self.listing.at(directory).and_then(put);
            entry.is_some_and(|entry| !entry.is_directory())
        };
        self.listing.is_opaque(directory) || replaced()
    }

    fn has_entries_below(&self, directory: &TreePath) -> bool {
        self.listing.below(directory).any(|listed| matches!(listed.change, Change::Put(_)))
    }
}

/// Whether a name is in a directory, as far as one layer decides it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    There,
    Gone,
}

/// The names that a layer has to say something about, directly in `directory`.
fn children(sheet: &Sheet, directory: &TreePath) -> Vec<(Vec<u8>, Presence)> {
    let listing = &sheet.listing;
    let mut changes = listing.behind(|path| path <= directory);
    let mut found = Vec::new();
    while let Some(path) = changes.peek() {
        let Some(rest) = path.strip_prefix(directory) else { break };
        let Some(name) = rest.components().next() else { break };
        let Ok(child) = directory.child(name) else { break };
        match sheet.says(&child) {
            Said::Entry(_) | Said::Implied | Said::ImpliedAlone => {
                found.push((name.to_vec(), Presence::There));
            }
            Said::Gone => found.push((name.to_vec(), Presence::Gone)),
            Said::Nothing => {}
        }
        drop(changes.next());
        if changes.peek().is_some_and(|next| next.starts_with(&child)) {
            changes = listing.behind(|path| *path <= child || path.starts_with(&child));
        }
    }
    found
}

fn listing(store: &Store, layer: DiffId) -> Result<Arc<Listing>, SnapshotError> {
    if let Some(listing) = store.decoded_listing(layer, |bytes| Listing::decode(bytes).ok())? {
        return Ok(listing);
    }
    let tar = unpacking::open_tar(store, layer)?;
    let summary = layer::read_layer(tar, |_, _| Ok(())).map_err(|error| broken(layer, error))?;
    unpacking::keep(store, layer, &summary)?;
    Ok(Arc::new(summary.listing))
}

/// The marks of snapshots that this process can mount.
fn marks() -> OverlayMarks {
    match sandbox::privilege() {
        Privilege::Root => OverlayMarks::Trusted,
        Privilege::Mapped | Privilege::SingleId | Privilege::None => OverlayMarks::User,
    }
}

fn open_in(snapshot: &std::path::Path, path: &TreePath) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root: OwnedFd = rustix::fs::open(snapshot, flags, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    Ok(layer::open_beneath(root.as_fd(), path, flags)?.into())
}
