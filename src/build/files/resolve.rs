//! Following symbolic links inside a tree, as a process chrooted into it would.
//!
//! Knows no tree: whoever asks says what stands at a path. Nothing here touches the disk.

use super::FilesError;
use crate::tree::TreePath;

/// Links followed before a path counts as a loop, as in BuildKit.
const LINKS_MAX: usize = 255;

/// What stands at a path, as far as following goes.
pub(super) enum Stand {
    /// A symbolic link with this text.
    Link(Vec<u8>),
    /// Anything else, nothing included.
    Other,
}

/// Resolves a path: `..` stops at the root, absolute links start there. The result may not exist.
pub(super) fn resolve(
    path: &[u8],
    stand: impl Fn(&TreePath) -> Result<Stand, FilesError>,
) -> Result<TreePath, FilesError> {
    resolve_from(TreePath::root(), path, stand)
}

/// As [`resolve`], of a path that begins at a place without links on the way to it.
pub(super) fn resolve_from(
    mut at: TreePath,
    path: &[u8],
    stand: impl Fn(&TreePath) -> Result<Stand, FilesError>,
) -> Result<TreePath, FilesError> {
    let mut pending = parts_reversed(path);
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if part == b".." {
            at = at.parent().unwrap_or_default();
            continue;
        }
        let next = child(&at, &part)?;
        let Stand::Link(text) = stand(&next)? else {
            at = next;
            continue;
        };
        links += 1;
        if links > LINKS_MAX {
            let path = String::from_utf8_lossy(path);
            return Err(FilesError::Invalid(format!("{path}: too many links")));
        }
        if text.starts_with(b"/") {
            at = TreePath::root();
        }
        pending.extend(parts_reversed(&text));
    }
    Ok(at)
}

/// A path one component deeper, with the error that a caller outside of the tree understands.
pub(super) fn child(directory: &TreePath, name: &[u8]) -> Result<TreePath, FilesError> {
    directory.child(name).map_err(|error| FilesError::Invalid(error.to_string()))
}

/// A path as typed: `..` stops at the root.
pub(super) fn clamped(path: &[u8]) -> Result<TreePath, FilesError> {
    TreePath::parse_clamped(path).map_err(|error| FilesError::Invalid(error.to_string()))
}

fn parts_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.rev().map(<[u8]>::to_vec).collect()
}
