//! Stacks of layers as something to look at and to run on: a merged view without mounting, and the
//! directories of an overlay.
//!
//! Layers are unpacked when something needs their directories, never before.

mod index;
mod unpacking;
mod view;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::{
    layer::{LayerError, OverlayMarks},
    oci::DiffId,
    store::{Store, StoreError},
    tree::ParseTreePathError,
};

pub use self::view::View;

/// Why a stack of layers could not be prepared.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer could not be unpacked.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The layer.
        layer: DiffId,
        /// What was wrong.
        source: LayerError,
    },
    /// Neither blob nor snapshot of the layer is here.
    #[error("layer {0} is not in the store")]
    Missing(DiffId),
    /// A path could not be followed (too many links).
    #[error("{0}: too many levels of symbolic links")]
    Loop(String),
    /// A path that no tree can have.
    #[error(transparent)]
    Path(#[from] ParseTreePathError),
    /// Something else, or nothing, where a regular file was asked for.
    #[error("{0} is no regular file")]
    NotAFile(String),
}

/// Makes sure that every layer has a snapshot directory; returns them topmost first, as overlay
/// wants them. Missing ones are unpacked from the plain tar or a compressed blob, checked against
/// the diff ID, several at once. A layer that occurs twice is returned once, where it is topmost.
///
/// # Errors
///
/// When a layer is missing or damaged.
pub fn lowers(
    store: &Store,
    layers: &[DiffId],
    marks: OverlayMarks,
) -> Result<Vec<PathBuf>, SnapshotError> {
    unpacking::lowers(store, layers, marks)
}

/// Holds a snapshot against the bytes of its layer, plain or compressed, for [`CheckDepth::Full`]; answers the first
/// path that differs, and how. As whoever made it: owners mean nothing to others.
///
/// [`CheckDepth::Full`]: crate::store::CheckDepth::Full
#[must_use]
pub fn compare(blob: File, snapshot: &Path) -> Option<(String, &'static str)> {
    unpacking::compare(blob, snapshot)
}

#[cfg(test)]
mod tests;
