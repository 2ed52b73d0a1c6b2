//! The root file system that a stack of layers makes, as one tree: the `tar` and `local` outputs.
//!
//! Works on listings and plain tars; nothing is mounted and nothing unpacked on the way. Knows no
//! manifests.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write},
    os::fd::AsFd as _,
    thread,
};

use super::{ImageError, assemble, stoppable::Stoppable};
use crate::{
    layer::{LayerError, LayerWriter, Listed, Listing, OverlayMarks, Ownership, unpack_as},
    oci::DiffId,
    store::Store,
    tree::{
        Change, Entry, Kind, Meta, PathMap, TreePath,
        packed::{self, Packed},
    },
};

/// Mode of directories that no layer has an entry for.
const IMPLICIT_MODE: u32 = 0o755;

/// Who owns the files of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owners {
    /// As in the image.
    Image,
    /// Whoever runs this, as BuildKit's local output does.
    Process,
}

/// What becomes of files with several names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// They are links to one another.
    Kept,
    /// Each name is a file of its own.
    Parted,
}

/// What stands in the end: all paths, of which there may be millions, and where the listings say what stands there.
#[derive(Default)]
struct Merged(PathMap);

/// Why what is in a map can be read.
const SOUND: &str = "it was packed here";

#[derive(Clone, Copy)]
struct Standing {
    layer: usize,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// A directory that the layer has no entry for.
    Implied,
    Directory,
    Other,
}

/// Writes the tree of `layers`, bottom first, below `prefix`.
pub(super) fn write_tree<W: Write>(
    store: &Store,
    layers: &[DiffId],
    prefix: &TreePath,
    (owners, links): (Owners, Links),
    out: &mut LayerWriter<W>,
) -> Result<(), ImageError> {
    let mut listings = Vec::new();
    let mut tars = Vec::new();
    for layer in layers {
        listings.push(assemble::listing_of(store, *layer)?);
        tars.push(assemble::plain_tar(store, *layer)?);
    }
    let merged = merge(&listings);
    let mut first_names: HashMap<(usize, TreePath), TreePath> = HashMap::new();
    for (path, Standing { layer, what }) in merged.onward(&TreePath::root()) {
        let listing = &listings[layer];
        let standing = standing_at(listing, &path, what);
        let (entry, offset) = match inode(listing, &standing) {
            None => (standing.0, 0),
            Some((node, offset)) if !listing.is_linked(&node.path) => (node, offset),
            Some((node, offset)) => match first_names.get(&(layer, node.path.clone())) {
                Some(first) if links == Links::Kept => {
                    let kind = Kind::Hardlink { target: prefix.join(first) };
                    (Entry { kind, ..standing.0 }, 0)
                }
                _ => {
                    first_names.insert((layer, node.path.clone()), path.clone());
                    (node, offset)
                }
            },
        };
        let mut entry = Entry { path: prefix.join(&path), ..entry };
        if owners == Owners::Process {
            entry.meta.uid = rustix::process::geteuid().as_raw();
            entry.meta.gid = rustix::process::getegid().as_raw();
        }
        put(out, &entry, &mut tars[layer], offset)?;
    }
    Ok(())
}

/// Writes the tree as files below `directory`, all of them ours.
pub(super) fn write_folder(
    store: &Store,
    layers: &[DiffId],
    directory: &File,
) -> Result<(), ImageError> {
    let what = (Owners::Process, Links::Kept);
    write_files(store, layers, directory, (what, Ownership::Own))
}

/// Writes the root file system of `layers`, bottom first, into an empty `directory`, to run a process on where
/// overlay cannot be had. Files with several names become files of their own: as on overlay, a change of
/// one is none of the other.
///
/// # Errors
///
/// When a layer is missing, or the file system refuses.
pub fn write_root(
    store: &Store,
    layers: &[DiffId],
    directory: &File,
    ownership: Ownership,
) -> Result<(), ImageError> {
    write_files(store, layers, directory, ((Owners::Image, Links::Parted), ownership))
}

fn write_files(
    store: &Store,
    layers: &[DiffId],
    directory: &File,
    (what, ownership): ((Owners, Links), Ownership),
) -> Result<(), ImageError> {
    let (reader, writer) = io::pipe().map_err(LayerError::Io)?;
    thread::scope(|scope| {
        // The pipe's end moves in, so that an error here ends the reading side as well.
        let produced = scope.spawn(move || {
            let writer = io::BufWriter::with_capacity(1 << 20, Stoppable::new(store, writer));
            let mut out = LayerWriter::new(writer);
            write_tree(store, layers, &TreePath::root(), what, &mut out)?;
            out.finish().map(|_| ()).map_err(ImageError::from)
        });
        let unpacked = unpack_as(reader, directory.as_fd(), OverlayMarks::User, ownership);
        let produced = produced.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (unpacked, produced) {
            (Ok(_), produced) => produced,
            // A broken pipe only says that the other side failed.
            (Err(unpacked), Err(ImageError::Layer(LayerError::Io(pipe))))
                if pipe.kind() == io::ErrorKind::BrokenPipe =>
            {
                Err(unpacked.into())
            }
            (Err(_), Err(produced)) => Err(produced),
            (Err(unpacked), Ok(())) => Err(unpacked.into()),
        }
    })
}

fn put<W: Write>(
    out: &mut LayerWriter<W>,
    entry: &Entry,
    tar: &mut File,
    offset: u64,
) -> Result<(), ImageError> {
    if matches!(entry.kind, Kind::File { .. }) {
        tar.seek(SeekFrom::Start(offset)).map_err(LayerError::Io)?;
    }
    Ok(out.put(entry, &mut tar.take(entry.size()))?)
}

impl Merged {
    fn get(&self, path: &TreePath) -> Option<Standing> {
        self.0.get(path).map(Standing::unpack)
    }

    fn insert(&mut self, path: &TreePath, Standing { layer, what }: Standing) {
        let mut bytes = vec![what as u8];
        packed::put_number(&mut bytes, layer as u64);
        self.0.insert(path, &bytes);
    }

    /// All from a path on.
    fn onward<'m>(
        &'m self,
        path: &TreePath,
    ) -> impl Iterator<Item = (TreePath, Standing)> + use<'m> {
        self.0.onward(path).map(|(path, bytes)| (path, Standing::unpack(bytes)))
    }
}

impl Standing {
    fn unpack(bytes: &[u8]) -> Self {
        let mut rest = Packed(bytes);
        let what = usize::from(rest.byte().expect(SOUND));
        let what = [What::Implied, What::Directory, What::Other][what];
        let layer = rest.number().and_then(|layer| usize::try_from(layer).ok());
        Self { layer: layer.expect(SOUND), what }
    }
}

/// Puts the layers over one another, bottom first.
fn merge(listings: &[Listing]) -> Merged {
    let mut merged = Merged::default();
    for (layer, listing) in listings.iter().enumerate() {
        // Deletions first: they are meant for the layers below.
        for listed in listing {
            match &listed.change {
                Change::Whiteout(path) => remove(&mut merged, path, Keep::Nothing),
                Change::Opaque(path) => remove(&mut merged, path, Keep::Directory),
                Change::Put(_) => {}
            }
        }
        let mut folder = TreePath::root();
        for listed in listing {
            let Change::Put(entry) = &listed.change else { continue };
            if !entry.is_directory() {
                remove(&mut merged, &entry.path, Keep::Nothing);
            }
            let parent = entry.path.parent().unwrap_or_default();
            let mut above = (parent != folder).then(|| parent.clone());
            while let Some(parent) = above.filter(|path| !path.is_root()) {
                // What stands above a directory are directories: it was made so.
                if merged.get(&parent).is_some_and(|there| there.what != What::Other) {
                    break;
                }
                above = parent.parent();
                merged.insert(&parent, Standing { layer, what: What::Implied });
            }
            // Nothing of the same layer takes its place.
            folder = parent;
            let what = if entry.is_directory() { What::Directory } else { What::Other };
            merged.insert(&entry.path, Standing { layer, what });
        }
    }
    merged
}

/// What stays of a directory whose content goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Directory,
}

fn remove(merged: &mut Merged, path: &TreePath, keep: Keep) {
    let below = merged.onward(path).take_while(|(there, _)| there.starts_with(path));
    let gone: Vec<_> = below.map(|(there, _)| there).collect();
    for there in gone.iter().filter(|there| keep == Keep::Nothing || *there != path) {
        merged.0.remove(there);
    }
}

/// What a layer has at a path, and where its content starts.
fn standing_at(listing: &Listing, path: &TreePath, what: What) -> (Entry, u64) {
    let listed = (what != What::Implied).then(|| put_at(listing, path)).flatten();
    listed.unwrap_or_else(|| {
        let meta = Meta { mode: IMPLICIT_MODE, ..Meta::default() };
        (Entry::directory(path.clone(), meta), 0)
    })
}

fn put_at(listing: &Listing, path: &TreePath) -> Option<(Entry, u64)> {
    let Listed { change: Change::Put(entry), offset } = listing.at(path)? else { return None };
    Some((entry, offset))
}

/// The first name of what stands at a path, when that is a file or another name of one; the name may
/// be hidden by now, its content is still there.
fn inode(listing: &Listing, standing: &(Entry, u64)) -> Option<(Entry, u64)> {
    let mut node = standing.clone();
    // Links to links end after as many steps as the layer has entries; honest ones have one.
    for _ in 0..=listing.len() {
        let Kind::Hardlink { target } = &node.0.kind else {
            return (!node.0.is_directory()).then_some(node);
        };
        node = put_at(listing, target)?;
    }
    None
}
