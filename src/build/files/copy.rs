//! Where copied files go: destination directories, replacement rules, owners and modes.
//!
//! The order of steps is BuildKit's, since its corners are what Dockerfiles rely on.

use std::{collections::HashMap, sync::Arc};

use super::{
    FilesError,
    items::Items,
    keys,
    mode::ModeChange,
    puts::{FileNumber, Made, Puts},
    resolve::child,
    select::{Item, Pick, Role},
    source::{Inode, Node},
    target::{Maker, Rule, Target, destination_parent, over_file},
};
use crate::tree::{Kind, Timestamp, TreePath};

/// Where the bytes of a file of the layer come from.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A file of a source, seen as `node`.
    Source { tree: usize, path: TreePath, node: Box<Node>, print: Option<Print> },
    /// A heredoc.
    Bytes(Arc<[u8]>),
    /// A member of an archive, in a spool file.
    Spooled { spool: usize, offset: u64, size: u64 },
    /// A file of the base that got another name.
    Base(TreePath),
}

/// Where the key has the digest of a file: number of the selection, and of the file in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Print {
    pub(super) selection: usize,
    pub(super) number: usize,
}

/// What a pick is taken from.
pub(super) enum Origin {
    /// A source, at the path of the pick in it; and the digest of the first of its files, where the key has them.
    Tree { tree: usize, path: TreePath, first: Option<Print> },
    /// A heredoc.
    Text(Arc<[u8]>),
}

/// What the flags of a copy say.
pub(super) struct Manner<'a> {
    pub(super) destination: &'a str,
    pub(super) look: Look,
}

/// How what is copied differs from what it is copied from.
#[derive(Clone)]
pub(super) struct Look {
    /// `--chown`, in numbers.
    pub(super) owner: Option<(u32, u32)>,
    /// `--chmod`.
    pub(super) mode: Option<ModeChange>,
    pub(super) now: Timestamp,
}

impl Look {
    /// Directories on the way to the destination.
    pub(super) fn maker(&self) -> Maker {
        let (uid, gid) = self.owner.unwrap_or_default();
        Maker { mode: ModeChange::of_made(self.mode.as_ref()), uid, gid, mtime: self.now }
    }
}

/// Copies one pick, whose own time is given besides.
pub(super) fn copy(
    target: &mut Target<'_>,
    manner: &Manner<'_>,
    (pick, top_time): (&Pick, Timestamp),
    origin: Origin,
) -> Result<(), FilesError> {
    let maker = manner.look.maker();
    target.make_directories(destination_parent(manner.destination).as_bytes(), maker)?;
    let mut place = target.resolve(manner.destination.as_bytes())?;
    let standing = target.at(&place);
    let is_directory = pick.top.is_directory();
    if is_directory {
        match standing {
            Some(standing) if !standing.is_directory() => return Err(over_file(&place)),
            _ => target.make_directories_at(&place, maker)?,
        }
    } else {
        if standing.is_some_and(|standing| standing.is_directory()) {
            place = child(&place, &pick.name)?;
        }
        target.make_directories_at(&place.parent().unwrap_or_default(), maker)?;
    }
    if is_directory && top_time != Timestamp::default() {
        // The destination keeps its metadata; only the time follows, where the source has one.
        target.change_directory(&place, |meta| meta.mtime = top_time);
    }
    put_all(target, &pick.items, (place, manner.look.clone(), origin))
}

/// Puts the items of a pick at their places; hard links are kept within it, as BuildKit does.
fn put_all(
    target: &mut Target<'_>,
    items: &Arc<Items>,
    (place, look, origin): (TreePath, Look, Origin),
) -> Result<(), FilesError> {
    let mut files = of_several_names(items);
    let mut print = match origin {
        Origin::Tree { first: Some(Print { number, .. }), .. } => Some(number),
        Origin::Tree { first: None, .. } | Origin::Text(_) => None,
    };
    let copied = Copied { items: Arc::clone(items), place: place.clone(), look, origin };
    let copy = target.puts.begin(copied);
    let mut unpacked = items.unpacked();
    loop {
        let position = unpacked.position();
        let Some(item) = unpacked.next() else { return Ok(()) };
        let hashed = print.filter(|_| keys::is_hashed(&item.node));
        print = print.map(|number| number + usize::from(hashed.is_some()));
        // A directory that is copied is the destination, which stands there already.
        if item.role == Role::Top && item.node.is_directory() {
            continue;
        }
        let file = item.node.inode.as_ref().and_then(|inode| files.get_mut(inode));
        let file = file.map(|file| *file.get_or_insert_with(|| target.puts.new_file()));
        let put = Puts::of_item(copy, (position, hashed), (item.node.is_directory(), file));
        target.put(&place.join(&item.below), &put, Rule::Alike)?;
    }
}

/// Inodes that have more than one name among the items; their files have no numbers yet.
fn of_several_names(items: &Arc<Items>) -> HashMap<Inode, Option<FileNumber>> {
    let mut seen: HashMap<Inode, bool> = HashMap::new();
    let files = items.unpacked().filter(|item| matches!(item.node.kind, Kind::File { .. }));
    for inode in files.filter_map(|item| item.node.inode) {
        if inode != Inode::Alone {
            seen.entry(inode).and_modify(|several| *several = true).or_insert(false);
        }
    }
    seen.into_iter().filter_map(|(inode, several)| several.then_some((inode, None))).collect()
}

/// One pick at its place.
pub(super) struct Copied {
    pub(super) items: Arc<Items>,
    place: TreePath,
    look: Look,
    origin: Origin,
}

impl Copied {
    /// The path of an item below the pick, by where it is put.
    pub(super) fn below(&self, path: &TreePath) -> TreePath {
        path.strip_prefix(&self.place).expect("items are put below the place of their pick")
    }

    /// What becomes of an item, the number of whose digest is given.
    pub(super) fn made(&self, item: Item, print: Option<usize>) -> Made {
        let Item { below, node, role } = item;
        let mut meta = node.meta.clone();
        if let Some((uid, gid)) = self.look.owner {
            (meta.uid, meta.gid) = (uid, gid);
        }
        let mut kind = node.kind.clone();
        if let Kind::BlockDevice { major, minor } = kind {
            // BuildKit makes a character device of a block device; so does every image built with it.
            kind = Kind::CharDevice { major, minor };
        }
        if let Some(change) = &self.look.mode
            && !matches!(kind, Kind::Symlink { .. })
        {
            meta.mode = change.apply(meta.mode, &kind);
        }
        if role == Role::Passage {
            meta.mtime = self.look.now;
        }
        let content = matches!(kind, Kind::File { .. }).then(|| match &self.origin {
            Origin::Text(text) => Content::Bytes(Arc::clone(text)),
            Origin::Tree { tree, path, first } => {
                let print = first.zip(print).map(|(first, number)| Print { number, ..first });
                let path = path.join(&below);
                Content::Source { tree: *tree, path, node: Box::new(node), print }
            }
        });
        Made::alone(kind, meta, content)
    }
}
