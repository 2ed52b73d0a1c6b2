//! Where copied files go: destination directories, replacement rules, owners and modes.
//!
//! The order of steps is BuildKit's, since its corners are what Dockerfiles rely on.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use super::{
    FilesError,
    items::Items,
    mode::ModeChange,
    resolve::child,
    select::{Item, Pick, Role},
    source::{Inode, Node},
    target::{self, Made, Maker, Target, destination_parent},
};
use crate::tree::{Kind, Timestamp, TreePath};

/// Where the bytes of a file of the layer come from.
#[derive(Debug)]
pub(super) enum Content {
    /// A file of a source, seen as `node`.
    Source { tree: usize, path: TreePath, node: Box<Node> },
    /// A heredoc.
    Bytes(Vec<u8>),
    /// A member of an archive, in a spool file.
    Spooled { spool: usize, offset: u64, size: u64 },
    /// A file of the base that got another name.
    Base(TreePath),
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

/// Where the bytes of a file item come from.
pub(super) type ContentOf = Rc<dyn Fn(&Item) -> Content>;

/// Copies one pick, whose own time is given besides.
pub(super) fn copy(
    target: &mut Target<'_, Content>,
    manner: &Manner<'_>,
    (pick, top_time): (&Pick, Timestamp),
    content_of: ContentOf,
) -> Result<(), FilesError> {
    let maker = manner.look.maker();
    target.make_directories(destination_parent(manner.destination).as_bytes(), maker)?;
    let mut place = target.resolve(manner.destination.as_bytes())?;
    let standing = target.at(&place);
    if pick.top.is_directory() {
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
    let several = Rc::new(of_several_names(&pick.items));
    let (items, look) = (Rc::clone(&pick.items), manner.look.clone());
    let copied = Copied { items, place, look, several, content_of };
    let is_directory = pick.top.is_directory();
    if is_directory && top_time != Timestamp::default() {
        // The destination keeps its metadata; only the time follows, where the source has one.
        target.change_directory(&copied.place, |meta| meta.mtime = top_time);
    }
    if is_directory && target.is_free_below(&copied.place) && copied.has_plain_names() {
        if target.has_base() {
            let mut places = copied.places();
            places.try_for_each(|(path, kind)| check(target, &path, &kind))?;
        }
        target.put_all(Box::new(move || Box::new(copied.all())));
        return Ok(());
    }
    for (path, made) in copied.all() {
        check(target, &path, &made.kind)?;
        target.put(path, made);
    }
    Ok(())
}

/// Whether something may be put where it goes.
fn check(target: &Target<'_, Content>, path: &TreePath, kind: &Kind) -> Result<(), FilesError> {
    match (kind, target.at(path).map(|standing| standing.is_directory())) {
        (Kind::Directory, Some(false)) => Err(over_file(path)),
        (Kind::Directory, _) | (_, Some(false) | None) => Ok(()),
        (_, Some(true)) => {
            Err(FilesError::Invalid(format!("cannot replace to directory {path} with file")))
        }
    }
}

/// Inodes that have more than one name among the items.
fn of_several_names(items: &Rc<Items>) -> HashSet<Inode> {
    let mut seen: HashMap<Inode, bool> = HashMap::new();
    for inode in items.unpacked().filter_map(|item| item.node.inode) {
        if inode != Inode::Alone {
            seen.entry(inode).and_modify(|several| *several = true).or_insert(false);
        }
    }
    seen.into_iter().filter_map(|(inode, several)| several.then_some(inode)).collect()
}

/// One pick at its place; hard links are kept within it, as BuildKit does.
struct Copied {
    items: Rc<Items>,
    place: TreePath,
    look: Look,
    several: Rc<HashSet<Inode>>,
    content_of: ContentOf,
}

impl Copied {
    /// Whether no name means that something is taken away.
    fn has_plain_names(&self) -> bool {
        let is_mark = |item: &Item| item.below.file_name().is_some_and(target::is_mark);
        !self.items.unpacked().any(|item| is_mark(&item))
    }

    /// Where its items go, and what they are.
    fn places(&self) -> impl Iterator<Item = (TreePath, Kind)> {
        let place = self.place.clone();
        let items = self.items.unpacked().filter(|item| !is_made_before(item));
        items.map(move |item| (place.join(&item.below), item.node.kind))
    }

    /// What is put, and where, in path order.
    fn all(&self) -> impl Iterator<Item = (TreePath, Made<Content>)> + use<> {
        let Self { items, place, look, several, content_of } = self;
        let (place, look, content_of) = (place.clone(), look.clone(), Rc::clone(content_of));
        let several = Rc::clone(several);
        let mut names: HashMap<Inode, Rc<Content>> = HashMap::new();
        items.unpacked().filter(|item| !is_made_before(item)).map(move |item| {
            let fresh = || Rc::new(content_of(&item));
            let content = match (&item.node.kind, &item.node.inode) {
                (Kind::File { .. }, Some(inode)) if several.contains(inode) => {
                    Some(names.entry(inode.clone()).or_insert_with(fresh).clone())
                }
                (Kind::File { .. }, _) => Some(fresh()),
                _ => None,
            };
            let mut made = made_of(&look, &item, content);
            if item.role == Role::Passage {
                made.meta.mtime = look.now;
            }
            (place.join(&item.below), made)
        })
    }
}

/// A directory that is copied is the destination, which stands there already.
fn is_made_before(item: &Item) -> bool {
    item.role == Role::Top && item.node.is_directory()
}

fn made_of(look: &Look, item: &Item, content: Option<Rc<Content>>) -> Made<Content> {
    let mut meta = item.node.meta.clone();
    if let Some((uid, gid)) = look.owner {
        (meta.uid, meta.gid) = (uid, gid);
    }
    let mut kind = item.node.kind.clone();
    if let Kind::BlockDevice { major, minor } = kind {
        // BuildKit makes a character device of a block device; so does every image built with it.
        kind = Kind::CharDevice { major, minor };
    }
    if let Some(change) = &look.mode
        && !matches!(kind, Kind::Symlink { .. })
    {
        meta.mode = change.apply(meta.mode, &kind);
    }
    Made { kind, meta, content }
}

fn over_file(path: &TreePath) -> FilesError {
    FilesError::Invalid(format!("cannot copy to non-directory: {path}"))
}
