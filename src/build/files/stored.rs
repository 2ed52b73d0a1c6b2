//! Looks into what is in the store already: is it an archive, what does a file of it say, how new is it.

use std::io::Read as _;

use super::{
    FilesError, Root, archive,
    resolve::child,
    source::{Opened, Tree},
};
use crate::{
    oci::{DiffId, Digest},
    store::Store,
    tree::{Kind, TreePath},
};

/// Whether a blob is a tar archive with at least one member, plain or compressed.
///
/// # Errors
///
/// When the blob is not there.
pub(crate) fn holds_archive(store: &Store, content: Digest) -> Result<bool, FilesError> {
    Ok(archive::is_archive(Box::new(store.open_blob(content)?)))
}

/// The bytes of a regular file in a layer, links followed inside of it; `None` when there is none.
///
/// # Errors
///
/// When it is longer than `bytes_max`, or the layer cannot be read.
pub(crate) fn read_stored(
    store: &Store,
    layer: DiffId,
    path: &str,
    bytes_max: u64,
) -> Result<Option<Vec<u8>>, FilesError> {
    let tree = Tree::open(store, Root::Files(layer))?;
    let resolved = tree.resolve(path.as_bytes())?;
    let Some(node) = tree.node(&resolved)? else { return Ok(None) };
    let Kind::File { size } = node.kind else {
        return Err(FilesError::Invalid(format!("{path}: not a regular file")));
    };
    if size > bytes_max {
        let message = format!("{path}: {size} bytes, the limit is {bytes_max}");
        return Err(FilesError::Invalid(message));
    }
    let Opened::Other(mut content) = tree.open_file(store, &resolved, &node)? else {
        unreachable!("only folders have files of their own");
    };
    let mut bytes = Vec::new();
    content
        .read_to_end(&mut bytes)
        .map_err(|source| FilesError::Io { path: path.to_owned(), source })?;
    Ok(Some(bytes))
}

/// The time of the newest regular file in a layer, in Unix seconds; `None` when it has none.
///
/// # Errors
///
/// When the layer cannot be read.
pub(crate) fn newest(store: &Store, layer: DiffId) -> Result<Option<i64>, FilesError> {
    let tree = Tree::open(store, Root::Files(layer))?;
    let (mut newest, mut open) = (None, vec![TreePath::root()]);
    while let Some(directory) = open.pop() {
        for (name, node) in tree.list(&directory)? {
            match node.kind {
                Kind::Directory => open.push(child(&directory, &name)?),
                Kind::File { .. } => newest = newest.max(Some(node.meta.mtime.seconds)),
                Kind::Symlink { .. }
                | Kind::Hardlink { .. }
                | Kind::Fifo
                | Kind::CharDevice { .. }
                | Kind::BlockDevice { .. } => {}
            }
        }
    }
    Ok(newest)
}
