//! The cache key of a files op: what was asked for, and what was found.
//!
//! Files count by name, type, mode, owner, size, link, attributes and content, never by time. Which
//! stamps are old enough to stand for a content is the store's decision: it is asked before a file is
//! read, and keeps no digest of a file that changed within the clock's granularity of that.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::Read as _,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::{
    Context, FilesError,
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

/// Size of the piece in which a file is hashed, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// A file as the key counts it.
#[derive(Clone, Default, PartialEq, Eq)]
struct Fingerprint {
    content: Option<Digest>,
    xattrs: Xattrs,
}

/// The files that one part of a key stands for.
pub(in crate::build) struct Selection {
    /// Name of the part.
    pub(in crate::build) component: String,
    /// Op that they are of.
    pub(in crate::build) from: OpId,
    pub(super) picks: Vec<Pick>,
    /// Of each item, in order; `None` where there is nothing to hash.
    prints: Vec<Option<Fingerprint>>,
}

impl Selection {
    /// Looks at all files of these picks: those of a folder in the store's stat cache or by reading them.
    pub(super) fn of(
        store: &Store,
        tree: &Tree<'_>,
        (component, from, picks): (String, OpId, Vec<Pick>),
    ) -> Result<Self, FilesError> {
        // A socket of a folder is copied as an empty file, and has nothing to hash.
        let is_hashed = |node: &Node| match tree {
            Tree::Folder(_) => node.stamp.is_some(),
            Tree::Layers(_) | Tree::Download(_) => matches!(node.kind, Kind::File { .. }),
        };
        let files: Vec<_> = items(&picks)
            .filter(|(_, item)| is_hashed(&item.node))
            .map(|(pick, item)| (pick.path.join(&item.below), &item.node))
            .collect();
        let mut hashed = match tree {
            Tree::Folder(context) => fingerprints(store, context, &files)?,
            Tree::Layers(_) | Tree::Download(_) => hash_stored(store, tree, &files)?,
        }
        .into_iter();
        let print = |(_, item): (&Pick, &Item)| is_hashed(&item.node).then(|| hashed.next());
        let prints = items(&picks).map(print).map(Option::flatten).collect();
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
        let stamped = self.items().filter(|(_, item, _)| item.node.stamp.is_some());
        let known: Vec<_> = stamped.filter_map(|(.., print)| print).collect();
        match fingerprints(store, context, &regular_files(&self.picks)) {
            Ok(prints) => Ok(prints.iter().eq(known)),
            // It has another stamp by now.
            Err(FilesError::Invalid(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Regular files without attributes: path in the source, size and content.
    pub(super) fn plain_files(&self) -> impl Iterator<Item = (TreePath, u64, Digest)> {
        self.items().filter_map(|(pick, item, print)| {
            let print = print.filter(|print| print.xattrs.is_empty())?;
            let Kind::File { size } = item.node.kind else { return None };
            Some((pick.path.join(&item.below), size, print.content?))
        })
    }

    /// Every file that was hashed: path in the source, content and attributes.
    pub(super) fn files(&self) -> impl Iterator<Item = (TreePath, Digest, &Xattrs)> {
        self.items().filter_map(|(pick, item, print)| {
            let print = print?;
            Some((pick.path.join(&item.below), print.content?, &print.xattrs))
        })
    }

    /// In words: how many files, and a digest over all that counts of them.
    pub(super) fn describe(&self) -> String {
        let mut hasher = Hasher::new();
        let mut inodes = HashMap::new();
        let mut count = 0;
        let nothing = Fingerprint::default();
        for (pick, item, print) in self.items() {
            count += usize::from(!item.node.is_directory());
            hash_item(&mut hasher, pick, item, print.unwrap_or(&nothing));
            if let Some(inode) = &item.node.inode {
                hash_link(&mut hasher, &mut inodes, inode);
            }
        }
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} file{plural}, {}", hasher.finish())
    }

    /// Every item by its path in the context, with all that counts of it; a content by its digest, as
    /// the attribute [`CONTENT`].
    pub(in crate::build) fn listing(&self) -> Listing {
        let mut changes: Vec<Listed> = Vec::new();
        for (pick, item, print) in self.items() {
            let mut meta = item.node.meta.clone();
            meta.mtime = Timestamp::default();
            if item.role == Role::Top && item.node.is_directory() {
                meta.mode = 0;
            }
            if let Some(print) = print {
                meta.xattrs.clone_from(&print.xattrs);
                let content = print.content.map(|content| content.as_bytes().to_vec());
                meta.xattrs.extend(content.map(|content| (CONTENT.to_vec(), content)));
            }
            let path = pick.path.join(&item.below);
            let entry = Entry { path, kind: item.node.kind.clone(), meta };
            changes.push(Listed { change: Change::Put(entry), offset: 0 });
        }
        changes.sort_by(|one, other| one.change.path().cmp(other.change.path()));
        changes.dedup_by(|one, other| one.change.path() == other.change.path());
        Listing { changes }
    }

    fn items(&self) -> impl Iterator<Item = (&Pick, &Item, Option<&Fingerprint>)> {
        let prints = self.prints.iter().map(Option::as_ref);
        items(&self.picks).zip(prints).map(|((pick, item), print)| (pick, item, print))
    }
}

fn regular_files(picks: &[Pick]) -> Vec<(TreePath, &Node)> {
    let files = items(picks).filter(|(_, item)| item.node.stamp.is_some());
    files.map(|(pick, item)| (pick.path.join(&item.below), &item.node)).collect()
}

fn items(picks: &[Pick]) -> impl Iterator<Item = (&Pick, &Item)> {
    picks.iter().flat_map(|pick| pick.items.iter().map(move |item| (pick, item)))
}

fn hash_item(hasher: &mut Hasher, pick: &Pick, item: &Item, print: &Fingerprint) {
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
    let content = print.content.map(|digest| digest.to_string()).unwrap_or_default();
    let parts: [&[u8]; 6] = [
        &pick.name,
        item.below.as_bytes(),
        tag.as_bytes(),
        text,
        facts.as_bytes(),
        content.as_bytes(),
    ];
    let attributes = print.xattrs.iter().flat_map(|(name, value)| [&name[..], &value[..]]);
    for part in parts.into_iter().chain(attributes) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
}

/// Hard links count by which of the files seen before they are, not by number of inode.
fn hash_link<'a>(hasher: &mut Hasher, inodes: &mut HashMap<&'a Inode, u64>, inode: &'a Inode) {
    let next = inodes.len() as u64;
    let index = *inodes.entry(inode).or_insert(next);
    hasher.update(&index.to_le_bytes());
}

/// Content and attributes of local files: from the store where the stamp is known, else by reading.
///
/// A stamp is kept only for files without attributes, so that a known stamp says both; setting an
/// attribute changes the time of change.
fn fingerprints(
    store: &Store,
    context: &Context,
    files: &[(TreePath, &Node)],
) -> Result<Vec<Fingerprint>, FilesError> {
    let stamps: Vec<FileStamp> = files.iter().filter_map(|(_, node)| node.stamp).collect();
    let known = store.file_digests(&stamps)?;
    let mut prints: Vec<_> = known
        .iter()
        .map(|content| Fingerprint { content: *content, ..Fingerprint::default() })
        .collect();
    let missing: Vec<usize> = (0..files.len()).filter(|index| known[*index].is_none()).collect();
    let mut fresh = Vec::new();
    for (index, print) in hash_all(store, context, files, &missing)? {
        if let (Some(content), true) = (print.content, print.xattrs.is_empty()) {
            fresh.push((stamps[index], content));
        }
        prints[index] = print;
    }
    if !fresh.is_empty() {
        store.put_file_digests(&fresh)?;
    }
    Ok(prints)
}

/// The same of files in the store, which never change, but are nowhere by themselves.
fn hash_stored(
    store: &Store,
    tree: &Tree<'_>,
    files: &[(TreePath, &Node)],
) -> Result<Vec<Fingerprint>, FilesError> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut hash = |(path, node): &(TreePath, &Node)| {
        let failed = |source| FilesError::Io { path: path.to_string(), source };
        let Opened::Other(mut content) = tree.open_file(store, path, node)? else {
            unreachable!("only folders have files of their own");
        };
        let mut hasher = Hasher::new();
        loop {
            store.go_on().map_err(failed)?;
            match content.read(&mut piece).map_err(failed)? {
                0 => break,
                read => hasher.update(&piece[..read]),
            }
        }
        Ok(Fingerprint { content: Some(hasher.finish()), xattrs: node.meta.xattrs.clone() })
    };
    files.iter().map(&mut hash).collect()
}

fn hash_all(
    store: &Store,
    context: &Context,
    files: &[(TreePath, &Node)],
    missing: &[usize],
) -> Result<Vec<(usize, Fingerprint)>, FilesError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        let mut piece = vec![0; PIECE_BYTES];
        while let Some(index) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (path, node) = &files[*index];
            done.push((*index, hash(store, context, path, node, &mut piece)?));
        }
        Ok(done)
    };
    let hashers = cores.min(HASHERS_MAX).min(missing.len());
    if hashers <= 1 {
        return work();
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..hashers).map(|_| scope.spawn(work)).collect();
        let mut done = Vec::new();
        for thread in threads {
            done.extend(thread.join().expect("hashing does not panic")?);
        }
        Ok(done)
    })
}

fn hash(
    store: &Store,
    context: &Context,
    path: &TreePath,
    node: &Node,
    piece: &mut [u8],
) -> Result<Fingerprint, FilesError> {
    let failed = |source| FilesError::Io { path: context.name_of(path), source };
    let (mut file, xattrs) = match Tree::Folder(context).open_file(store, path, node)? {
        Opened::Local(file, xattrs) => (file, xattrs),
        Opened::Other(_) => return Ok(Fingerprint::default()),
    };
    let mut hasher = Hasher::new();
    // A file that grows for ever must not be read for ever: one byte more than expected is enough.
    let mut left = node.stamp.map_or(0, |stamp| stamp.size) + 1;
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
    Ok(Fingerprint { content: Some(hasher.finish()), xattrs })
}
