//! The cache key of a files op: what was asked for, and what was found.
//!
//! Files count by name, type, mode, owner, size, link, attributes and content, never by time. Which
//! stamps are old enough to stand for a content is the store's decision: it is asked before a file is
//! read, and keeps no digest of a file that changed within the clock's granularity of that.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    io::{Read as _, Seek as _, SeekFrom},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::{
    Context, FilesError,
    content::{ContentHasher, PART_BYTES, joined, part_bytes, part_count},
    select::{Item, Pick, Role},
    source::{Inode, Node, Opened, Tree},
};
use crate::{
    graph::OpId,
    layer::{Listed, Listing},
    oci::{Digest, Hasher},
    store::{FileStamp, Store},
    tree::{Change, Entry, Kind, Timestamp, TreePath, Xattrs},
};

/// Attribute under which the listing of a selection has the digest of a file's content.
pub(in crate::build) const CONTENT: &[u8] = b"content";

/// Threads that hash files which are not known yet.
const HASHERS_MAX: usize = 4;

/// Files that are looked up and hashed at once.
const FILES_AT_ONCE: usize = 1 << 12;

/// Size of the piece in which a file is hashed, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// A file as the key counts it.
#[derive(Clone, PartialEq, Eq)]
struct Fingerprint {
    content: Digest,
    xattrs: Xattrs,
}

impl Fingerprint {
    /// Of a file without attributes.
    fn plain(content: Digest) -> Self {
        Self { content, xattrs: Xattrs::new() }
    }
}

/// Whether the stamp of a file stands for its content from now on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stamp {
    Settled,
    Unsettled,
}

/// The fingerprints of files by their number.
#[derive(Default)]
struct Prints {
    contents: Vec<Digest>,
    /// Of those few that have any.
    xattrs: BTreeMap<usize, Xattrs>,
    /// Those whose stamps do not stand for what was found, in order.
    unsettled: Vec<usize>,
}

impl Prints {
    fn push(&mut self, Fingerprint { content, xattrs }: Fingerprint, stamp: Stamp) {
        let number = self.contents.len();
        if !xattrs.is_empty() {
            self.xattrs.insert(number, xattrs);
        }
        self.unsettled.extend((stamp == Stamp::Unsettled).then_some(number));
        self.contents.push(content);
    }

    fn get(&self, number: usize) -> Option<Fingerprint> {
        let content = *self.contents.get(number)?;
        Some(Fingerprint { content, xattrs: self.xattrs.get(&number).cloned().unwrap_or_default() })
    }
}

/// The files that one part of a key stands for.
pub(in crate::build) struct Selection {
    /// Name of the part.
    pub(in crate::build) component: String,
    /// Op that they are of.
    pub(in crate::build) from: OpId,
    pub(super) picks: Vec<Pick>,
    /// Of each item that is hashed, in order.
    prints: Prints,
}

impl Selection {
    /// Looks at all files of these picks: those of a folder in the store's stat cache or by reading them.
    pub(super) fn of(
        store: &Store,
        tree: &Tree<'_>,
        (component, from, picks): (String, OpId, Vec<Pick>),
    ) -> Result<Self, FilesError> {
        let mut prints = Prints::default();
        in_batches(store, files(&picks), |files| {
            let found = match tree {
                Tree::Folder(context) => fingerprints(store, context, files)?,
                Tree::Layers(_) | Tree::Download(_) => hash_stored(store, tree, files)?,
            };
            found.into_iter().for_each(|(print, stamp)| prints.push(print, stamp));
            Ok(())
        })?;
        Ok(Self { component, from, picks, prints })
    }

    /// Whether files of a folder that were hashed so shortly after a change that their stamps say
    /// nothing still have the content that was hashed. Of all others, whoever reads them compares the
    /// stamps.
    pub(in crate::build) fn is_current(
        &self,
        store: &Store,
        context: &Context,
    ) -> Result<bool, FilesError> {
        let mut unsettled = self.prints.unsettled.iter().copied().peekable();
        let of_number = files(&self.picks).enumerate();
        let files = of_number.filter(|(number, _)| unsettled.next_if_eq(number).is_some());
        let mut known = self.prints.unsettled.iter().map(|number| self.prints.get(*number));
        let mut same = true;
        let compared = in_batches(store, files.map(|(_, file)| file), |files| {
            let found = fingerprints(store, context, files)?;
            same &= found.into_iter().all(|(print, _)| known.next() == Some(Some(print)));
            Ok(())
        });
        match compared {
            Ok(()) => Ok(same),
            // It has another stamp by now.
            Err(FilesError::Invalid(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Regular files without attributes, in path order: number, path in the source, size and content.
    pub(super) fn plain_files(&self) -> impl Iterator<Item = (usize, TreePath, u64, Digest)> {
        self.in_order().filter_map(|Seen { path, item, number }| {
            let print = self.prints.get(number?).filter(|print| print.xattrs.is_empty())?;
            let Kind::File { size } = item.node.kind else { return None };
            Some((number?, path, size, print.content))
        })
    }

    /// How many files were hashed.
    pub(super) fn hashed(&self) -> usize {
        self.prints.contents.len()
    }

    /// Content and attributes of the file of a number.
    pub(super) fn file(&self, number: usize) -> Option<(Digest, Xattrs)> {
        self.prints.get(number).map(|print| (print.content, print.xattrs))
    }

    /// In words: how many files, and a digest over all that counts of them.
    pub(super) fn describe(&self) -> String {
        let mut hasher = Hasher::new();
        let mut inodes = Inodes::default();
        let mut count = 0;
        for (pick, item, number) in numbered(&self.picks, 0) {
            count += usize::from(!item.node.is_directory());
            let print = number.and_then(|number| self.prints.get(number));
            hash_item(&mut hasher, pick, &item, print.as_ref());
            if let Some(inode) = item.node.inode {
                hasher.update(&inodes.number(inode).to_le_bytes());
            }
        }
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} file{plural}, {}", hasher.finish())
    }

    /// Every item by its path in the context, with all that counts of it; a content by its digest, as
    /// the attribute [`CONTENT`]. `None` when it would take more bytes.
    pub(in crate::build) fn listing(&self, bytes_max: usize) -> Option<Listing> {
        let mut listing = Listing::default();
        let mut last = None;
        for Seen { path, item, number } in self.in_order() {
            let mut meta = item.node.meta;
            meta.mtime = Timestamp::default();
            if item.role == Role::Top && item.node.kind == Kind::Directory {
                meta.mode = 0;
            }
            if let Some((content, xattrs)) = number.and_then(|number| self.file(number)) {
                meta.xattrs = xattrs;
                meta.xattrs.insert(CONTENT.to_vec(), content.as_bytes().to_vec());
            }
            if last.as_ref() == Some(&path) {
                continue;
            }
            last = Some(path.clone());
            let change = Change::Put(Entry { path, kind: item.node.kind, meta });
            listing.push(&Listed { change, offset: 0 });
            if listing.packed_bytes() > bytes_max {
                return None;
            }
        }
        Some(listing)
    }

    /// Every item by its path in the source, in the order of the paths.
    fn in_order(&self) -> Box<dyn Iterator<Item = Seen> + '_> {
        let mut picks: Vec<(&Pick, usize)> = Vec::new();
        let mut first = 0;
        for pick in &self.picks {
            picks.push((pick, first));
            first += count_hashed(pick);
        }
        let mut sorted = picks.clone();
        sorted.sort_by(|(one, _), (other, _)| one.path.cmp(&other.path));
        // Picks meet where links lead to what others hold.
        let meet = |pair: &[(&Pick, usize)]| pair[1].0.path.starts_with(&pair[0].0.path);
        if !sorted.windows(2).any(meet) {
            return Box::new(sorted.into_iter().flat_map(seen));
        }
        let mut items: Vec<_> = picks.into_iter().flat_map(seen).collect();
        items.sort_by(|one, other| one.path.cmp(&other.path));
        Box::new(items.into_iter())
    }
}

/// An item by its path in the source, with its number among those that were hashed.
struct Seen {
    path: TreePath,
    item: Item,
    number: Option<usize>,
}

/// The items of a pick, the first of its files being of a number.
fn seen((pick, first): (&Pick, usize)) -> impl Iterator<Item = Seen> {
    let items = numbered(std::slice::from_ref(pick), first);
    items.map(|(pick, item, number)| Seen { path: pick.path.join(&item.below), item, number })
}

/// Items with their numbers among those that are hashed, counted from one on.
fn numbered(picks: &[Pick], mut next: usize) -> impl Iterator<Item = (&Pick, Item, Option<usize>)> {
    items(picks).map(move |(pick, item)| {
        let number = is_hashed(&item.node).then_some(next);
        next += usize::from(number.is_some());
        (pick, item, number)
    })
}

/// How many items of a pick are hashed.
pub(super) fn count_hashed(pick: &Pick) -> usize {
    pick.items.unpacked().filter(|item| is_hashed(&item.node)).count()
}

/// A regular file; a socket of a folder is copied as an empty file, and has nothing to hash.
pub(super) fn is_hashed(node: &Node) -> bool {
    let of_layer = matches!(node.inode, Some(Inode::Layer(..) | Inode::Alone));
    node.stamp.is_some() || (of_layer && matches!(node.kind, Kind::File { .. }))
}

/// Does something with files, so many at once that nothing of them all is held twice.
fn in_batches(
    store: &Store,
    mut files: impl Iterator<Item = File>,
    mut work: impl FnMut(&[File]) -> Result<(), FilesError>,
) -> Result<(), FilesError> {
    loop {
        let batch: Vec<_> = files.by_ref().take(FILES_AT_ONCE).collect();
        let Some((first, _)) = batch.first() else { return Ok(()) };
        let stopped = |source| FilesError::Io { path: first.to_string(), source };
        store.go_on().map_err(stopped)?;
        work(&batch)?;
    }
}

/// A file of a source by its path there.
type File = (TreePath, Node);

/// All that are hashed.
fn files(picks: &[Pick]) -> impl Iterator<Item = File> {
    let hashed = items(picks).filter(|(_, item)| is_hashed(&item.node));
    hashed.map(|(pick, item)| (pick.path.join(&item.below), item.node))
}

fn items(picks: &[Pick]) -> impl Iterator<Item = (&Pick, Item)> {
    picks.iter().flat_map(|pick| pick.items.unpacked().map(move |item| (pick, item)))
}

fn hash_item(hasher: &mut Hasher, pick: &Pick, item: &Item, print: Option<&Fingerprint>) {
    let Node { kind, meta, .. } = &item.node;
    let mut facts = String::new();
    let (tag, text): (&str, &[u8]) = match kind {
        Kind::Directory => ("directory", b""),
        Kind::File { .. } => ("file", b""),
        Kind::Symlink { target } => ("symlink", target),
        Kind::Hardlink { target } => ("hardlink", target.as_bytes()),
        Kind::Fifo => ("fifo", b""),
        Kind::CharDevice { .. } => ("char", b""),
        Kind::BlockDevice { .. } => ("block", b""),
    };
    if let Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } = kind {
        write!(facts, "{major}:{minor} ").expect("a string takes everything");
    }
    let size = if let Kind::File { size } = kind { *size } else { 0 };
    // Of a folder that is copied, what it holds goes into the image, not its own mode.
    let mode = if item.role == Role::Top && *kind == Kind::Directory { 0 } else { meta.mode };
    write!(facts, "{:?} {mode:o} {}:{} {size}", item.role, meta.uid, meta.gid)
        .expect("a string takes everything");
    let content = print.map(|print| print.content.to_string()).unwrap_or_default();
    let parts: [&[u8]; 6] = [
        &pick.name,
        item.below.as_bytes(),
        tag.as_bytes(),
        text,
        facts.as_bytes(),
        content.as_bytes(),
    ];
    let attributes = print.iter().flat_map(|print| &print.xattrs);
    let attributes = attributes.flat_map(|(name, value)| [&name[..], &value[..]]);
    for part in parts.into_iter().chain(attributes) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
}

/// Hard links count by which of the files seen before they are, not by number of inode.
#[derive(Default)]
struct Inodes {
    seen: HashMap<Inode, u64>,
    count: u64,
}

impl Inodes {
    fn number(&mut self, inode: Inode) -> u64 {
        let next = self.count;
        let number = match inode {
            Inode::Alone => next,
            Inode::Local(..) | Inode::Layer(..) => *self.seen.entry(inode).or_insert(next),
        };
        self.count += u64::from(number == next);
        number
    }
}

/// Content and attributes of local files: from the store where the stamp is known, else by reading.
///
/// A stamp is kept only for files without attributes, so that a known stamp says both; setting an
/// attribute changes the time of change.
fn fingerprints(
    store: &Store,
    context: &Context,
    files: &[File],
) -> Result<Vec<(Fingerprint, Stamp)>, FilesError> {
    let stamps: Vec<FileStamp> = files.iter().filter_map(|(_, node)| node.stamp).collect();
    let known = store.file_digests(&stamps)?;
    let missing: Vec<usize> = (0..files.len()).filter(|index| known[*index].is_none()).collect();
    let known = known.into_iter();
    let known = known.map(|content| Some((Fingerprint::plain(content?), Stamp::Settled)));
    let mut prints: Vec<_> = known.collect();
    let mut fresh = Vec::new();
    for (index, print) in hash_all(store, context, files, &missing)? {
        if print.xattrs.is_empty() {
            fresh.push((index, (stamps[index], print.content)));
        }
        prints[index] = Some((print, Stamp::Unsettled));
    }
    if !fresh.is_empty() {
        let (numbers, digests): (Vec<usize>, Vec<_>) = fresh.into_iter().unzip();
        let kept = store.put_file_digests(&digests)?;
        for (index, _) in numbers.into_iter().zip(kept).filter(|(_, kept)| *kept) {
            prints[index].iter_mut().for_each(|(_, stamp)| *stamp = Stamp::Settled);
        }
    }
    Ok(prints.into_iter().flatten().collect())
}

/// The same of files in the store, which never change, but are nowhere by themselves.
fn hash_stored(
    store: &Store,
    tree: &Tree<'_>,
    files: &[File],
) -> Result<Vec<(Fingerprint, Stamp)>, FilesError> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut hash = |(path, node): &File| {
        let failed = |source| FilesError::Io { path: path.to_string(), source };
        let Opened::Other(mut content) = tree.open_file(store, path, node)? else {
            unreachable!("only folders have files of their own");
        };
        let mut hasher = ContentHasher::default();
        loop {
            store.go_on().map_err(failed)?;
            match content.read(&mut piece).map_err(failed)? {
                0 => break,
                read => hasher.update(&piece[..read]),
            }
        }
        let (content, xattrs) = (hasher.finish(), node.meta.xattrs.clone());
        Ok((Fingerprint { content, xattrs }, Stamp::Settled))
    };
    files.iter().map(&mut hash).collect()
}

/// A part of a file that is hashed, by the number of the file.
struct Part {
    file: usize,
    number: u64,
}

/// Reads files, all cores at once: several files, and the parts of a large one.
fn hash_all(
    store: &Store,
    context: &Context,
    files: &[File],
    missing: &[usize],
) -> Result<Vec<(usize, Fingerprint)>, FilesError> {
    let of_file = |file: &usize| {
        let (file, size) = (*file, files[*file].1.stamp.map_or(0, |stamp| stamp.size));
        (0..part_count(size)).map(move |number| Part { file, number })
    };
    let parts: Vec<Part> = missing.iter().flat_map(of_file).collect();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || -> Result<_, FilesError> {
        let mut done = Vec::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(index) else { return Ok(done) };
            let print = hash(store, context, (&files[part.file], part.number), &mut piece)?;
            done.push((index, print));
        }
    };
    let hashers = cores.min(HASHERS_MAX).min(parts.len());
    if hashers <= 1 {
        return Ok(whole_files(&parts, work()?));
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..hashers).map(|_| scope.spawn(work)).collect();
        let mut done = Vec::new();
        for thread in threads {
            done.extend(thread.join().expect("hashing does not panic")?);
        }
        done.sort_unstable_by_key(|(index, _)| *index);
        Ok(whole_files(&parts, done))
    })
}

/// The fingerprints of files by those of all their parts, in order.
fn whole_files(parts: &[Part], prints: Vec<(usize, Fingerprint)>) -> Vec<(usize, Fingerprint)> {
    let of_one_file = prints.chunk_by(|(one, _), (next, _)| parts[*one].file == parts[*next].file);
    let whole = of_one_file.map(|prints| {
        let (first, Fingerprint { xattrs, .. }) = &prints[0];
        let content = joined(prints.iter().map(|(_, print)| print.content));
        (parts[*first].file, Fingerprint { content, xattrs: xattrs.clone() })
    });
    whole.collect()
}

/// Of one part of a file, with what all of it has.
fn hash(
    store: &Store,
    context: &Context,
    ((path, node), part): (&File, u64),
    piece: &mut [u8],
) -> Result<Fingerprint, FilesError> {
    let failed = |source| FilesError::Io { path: context.name_of(path), source };
    let (mut file, xattrs) = match Tree::Folder(context).open_file(store, path, node)? {
        Opened::Local(file, xattrs) => (file, xattrs),
        Opened::Other(_) => return Ok(Fingerprint::plain(Digest::of(&[]))),
    };
    if part > 0 {
        file.seek(SeekFrom::Start(part * PART_BYTES)).map_err(failed)?;
    }
    let mut hasher = Hasher::new();
    // No further than it was long: a file that grows for ever must not be read for ever.
    let mut left = part_bytes(node.stamp.map_or(0, |stamp| stamp.size), part);
    while left > 0 {
        store.go_on().map_err(failed)?;
        let wanted = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = file.read(&mut piece[..wanted]).map_err(failed)?;
        if read == 0 {
            break;
        }
        hasher.update(&piece[..read]);
        left -= read as u64;
    }
    context.check_unchanged(&file, path, node)?;
    Ok(Fingerprint { content: hasher.finish(), xattrs })
}
