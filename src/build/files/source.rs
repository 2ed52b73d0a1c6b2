//! What files are copied from: a local folder or a stack of layers, looked at in one way.
//!
//! Knows nothing of destinations.

use std::{fs::File, io::Read};

use super::{
    Context, Download, FilesError, Root,
    resolve::{Stand, child, resolve},
};
use crate::{
    snapshot::View,
    store::{FileStamp, Store},
    tree::{Entry, Kind, Meta, TreePath, Xattrs},
};

/// What stands at a path of a source.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Never a hard link: `inode` says which names are one file.
    pub(super) kind: Kind,
    pub(super) meta: Meta,
    pub(super) inode: Option<Inode>,
    /// Of local regular files.
    pub(super) stamp: Option<FileStamp>,
}

/// Identity of a file that may have several names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Inode {
    Local(u64, u64),
    Layer(usize, TreePath),
    /// Of a file of a layer that has no other name there.
    Alone,
}

/// An opened source.
pub(super) enum Tree<'a> {
    Folder(&'a Context),
    Layers(View),
    Download(&'a Download),
}

/// An opened file of a source.
pub(super) enum Opened {
    Local(File, Xattrs),
    Other(Box<dyn Read + Send>),
}

impl Node {
    pub(super) fn empty_root() -> Self {
        Self::plain(Kind::Directory, 0o755)
    }

    /// Something that is on no disk.
    pub(super) fn plain(kind: Kind, mode: u32) -> Self {
        Self { kind, meta: Meta { mode, ..Meta::default() }, inode: None, stamp: None }
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

impl<'a> Tree<'a> {
    pub(super) fn open(store: &Store, root: Root<'a>) -> Result<Self, FilesError> {
        Ok(match root {
            Root::Context(context) => Self::Folder(context),
            Root::Layers(layers) => Self::Layers(View::open(store, layers)?),
            Root::Files(layer) => Self::Layers(View::open(store, &[layer])?),
            Root::Download(download) => Self::Download(download),
        })
    }

    /// What stands at exactly this path; links are not followed.
    pub(super) fn node(&self, path: &TreePath) -> Result<Option<Node>, FilesError> {
        match self {
            Self::Folder(context) => context.node(path),
            Self::Layers(view) => {
                view.entry(path).map(|entry| node_in_view(view, entry)).transpose()
            }
            Self::Download(_) => Ok(None),
        }
    }

    /// Names and nodes of a directory, sorted by name.
    pub(super) fn list(&self, directory: &TreePath) -> Result<Vec<(Vec<u8>, Node)>, FilesError> {
        self.nodes(directory, self.names(directory)?)
    }

    /// Names in a directory, sorted; of some of them there may be no node.
    pub(super) fn names(&self, directory: &TreePath) -> Result<Vec<Vec<u8>>, FilesError> {
        match self {
            Self::Folder(context) => context.names(directory),
            Self::Layers(view) => Ok(view.names(directory)),
            Self::Download(_) => Ok(Vec::new()),
        }
    }

    /// What stands at some names of a directory, where there is anything.
    pub(super) fn nodes(
        &self,
        directory: &TreePath,
        names: Vec<Vec<u8>>,
    ) -> Result<Vec<(Vec<u8>, Node)>, FilesError> {
        match self {
            Self::Folder(context) => context.nodes(directory, names),
            Self::Layers(view) => {
                let mut listed = Vec::new();
                for name in names {
                    if let Some(entry) = view.entry(&child(directory, &name)?) {
                        listed.push((name, node_in_view(view, entry)?));
                    }
                }
                Ok(listed)
            }
            Self::Download(_) => Ok(Vec::new()),
        }
    }

    /// Follows links inside of the source, the last component included.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<TreePath, FilesError> {
        resolve(path, |at| {
            Ok(match self.node(at)? {
                Some(Node { kind: Kind::Symlink { target }, .. }) => Stand::Link(target),
                _ => Stand::Other,
            })
        })
    }

    /// Opens the content of a regular file that was seen as `node`.
    pub(super) fn open_file(
        &self,
        store: &Store,
        path: &TreePath,
        node: &Node,
    ) -> Result<Opened, FilesError> {
        Ok(match self {
            // A socket, which is copied as an empty file.
            Self::Folder(_) if node.stamp.is_none() => Opened::Other(Box::new(std::io::empty())),
            Self::Folder(context) => {
                let file = context.open_file(path, node)?;
                let xattrs = context.attributes(&file, path)?;
                Opened::Local(file, xattrs)
            }
            Self::Layers(view) => Opened::Other(view.open_file(path)?),
            Self::Download(download) => Opened::Other(Box::new(store.open_blob(download.content)?)),
        })
    }
}

/// Only attributes that a layer may hold are taken along.
pub(super) fn travels(name: &[u8]) -> bool {
    !name.starts_with(b"user.")
        && !name.starts_with(b"trusted.overlay.")
        && name != b"security.selinux"
}

fn node_in_view(view: &View, entry: Entry) -> Result<Node, FilesError> {
    let Entry { path, mut kind, mut meta } = entry;
    if let Kind::Hardlink { target } = &kind {
        kind = Kind::File { size: linked_size(view, &path, target)? };
    }
    meta.xattrs.retain(|name, _| travels(name));
    let inode = match kind {
        Kind::File { .. } if view.has_links(&path) => {
            view.inode(&path).map(|(layer, place)| Inode::Layer(layer, place))
        }
        Kind::File { .. } => Some(Inode::Alone),
        Kind::Directory
        | Kind::Symlink { .. }
        | Kind::Hardlink { .. }
        | Kind::Fifo
        | Kind::CharDevice { .. }
        | Kind::BlockDevice { .. } => None,
    };
    Ok(Node { kind, meta, inode, stamp: None })
}

/// The name that came first may be gone from the view, or stand for something newer.
fn linked_size(view: &View, path: &TreePath, target: &TreePath) -> Result<u64, FilesError> {
    if view.inode(path) == view.inode(target)
        && let Some(Entry { kind: Kind::File { size }, .. }) = view.entry(target)
    {
        return Ok(size);
    }
    let mut content = view.open_file(path)?;
    std::io::copy(&mut content, &mut std::io::sink())
        .map_err(|source| FilesError::Io { path: path.to_string(), source })
}
