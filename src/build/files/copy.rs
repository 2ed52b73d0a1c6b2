//! Where copied files go: destination directories, replacement rules, owners and modes.
//!
//! The order of steps is BuildKit's, since its corners are what Dockerfiles rely on.

use std::{collections::HashMap, rc::Rc};

use super::{
    FilesError,
    mode::ModeChange,
    resolve::child,
    select::{Item, Pick, Role},
    source::{Inode, Node},
    target::{Made, Maker, Target, destination_parent},
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
    /// `--chown`, in numbers.
    pub(super) owner: Option<(u32, u32)>,
    /// `--chmod`.
    pub(super) mode: Option<ModeChange>,
    pub(super) now: Timestamp,
}

impl Manner<'_> {
    /// Directories on the way to the destination.
    pub(super) fn maker(&self) -> Maker {
        let (uid, gid) = self.owner.unwrap_or_default();
        Maker { mode: ModeChange::of_made(self.mode.as_ref()), uid, gid, mtime: self.now }
    }
}

/// Copies one pick, whose own time is given besides. `content_of` says where the bytes of a file item
/// come from.
pub(super) fn copy(
    target: &mut Target<'_, Content>,
    manner: &Manner<'_>,
    (pick, top_time): (&Pick, Timestamp),
    content_of: &dyn Fn(&Item) -> Content,
) -> Result<(), FilesError> {
    let maker = manner.maker();
    target.make_directories(destination_parent(manner.destination).as_bytes(), maker)?;
    let mut place = target.resolve(manner.destination.as_bytes())?;
    let standing = target.at(&place);
    let top = &pick.items[0];
    if top.node.is_directory() {
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
    let mut copying = Copying { target, manner, top_time, content_of, names: HashMap::new() };
    for item in &pick.items {
        let at = place.join(&item.below);
        if item.node.is_directory() {
            copying.directory(item, at)?;
        } else {
            copying.file(item, at)?;
        }
    }
    Ok(())
}

/// One pick on its way; hard links are kept within it, as BuildKit does.
struct Copying<'c, 't> {
    target: &'c mut Target<'t, Content>,
    manner: &'c Manner<'c>,
    top_time: Timestamp,
    content_of: &'c dyn Fn(&Item) -> Content,
    names: HashMap<Inode, Rc<Content>>,
}

impl Copying<'_, '_> {
    fn directory(&mut self, item: &Item, at: TreePath) -> Result<(), FilesError> {
        if self.target.at(&at).is_some_and(|standing| !standing.is_directory()) {
            return Err(over_file(&at));
        }
        if item.role == Role::Top {
            // The destination keeps its metadata; only the time follows, where the source has one.
            let mtime = self.top_time;
            if mtime != Timestamp::default() {
                self.target.change_directory(&at, |meta| meta.mtime = mtime);
            }
            return Ok(());
        }
        let mut made = made_of(self.manner, item, None);
        if item.role == Role::Passage {
            made.meta.mtime = self.manner.now;
        }
        self.target.put(at, made);
        Ok(())
    }

    fn file(&mut self, item: &Item, at: TreePath) -> Result<(), FilesError> {
        if self.target.at(&at).is_some_and(|standing| standing.is_directory()) {
            return Err(FilesError::Invalid(format!("cannot replace to directory {at} with file")));
        }
        let fresh = || Rc::new((self.content_of)(item));
        let content = match (&item.node.kind, &item.node.inode) {
            (Kind::File { .. }, None) => Some(fresh()),
            (Kind::File { .. }, Some(inode)) => {
                Some(self.names.entry(inode.clone()).or_insert_with(fresh).clone())
            }
            _ => None,
        };
        self.target.put(at, made_of(self.manner, item, content));
        Ok(())
    }
}

fn made_of(manner: &Manner<'_>, item: &Item, content: Option<Rc<Content>>) -> Made<Content> {
    let mut meta = item.node.meta.clone();
    if let Some((uid, gid)) = manner.owner {
        (meta.uid, meta.gid) = (uid, gid);
    }
    let mut kind = item.node.kind.clone();
    if let Kind::BlockDevice { major, minor } = kind {
        // BuildKit makes a character device of a block device; so does every image built with it.
        kind = Kind::CharDevice { major, minor };
    }
    if let Some(change) = &manner.mode
        && !matches!(kind, Kind::Symlink { .. })
    {
        meta.mode = change.apply(meta.mode, &kind);
    }
    Made { kind, meta, content }
}

fn over_file(path: &TreePath) -> FilesError {
    FilesError::Invalid(format!("cannot copy to non-directory: {path}"))
}
