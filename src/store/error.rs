//! Why the store could not do something, and how the kernel's and LMDB's words become that.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use thiserror::Error;

use crate::oci::Digest;

/// Why the store could not do something.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file system refused; the path is named.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No space: how to get some is said with it.
    #[error("no space left in {0}; `idpbuilder prune` frees what no image needs")]
    NoSpace(PathBuf),
    /// LMDB refused.
    #[error("{root}: metadata: {reason}")]
    Facts {
        /// The store.
        root: PathBuf,
        /// LMDB's words.
        reason: String,
    },
    /// Bytes do not have the digest they were announced with.
    #[error("content has digest {found}, expected {expected}")]
    DigestMismatch {
        /// What was promised.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// Made by a newer version of this program.
    #[error("{root} has format {found}, this version reads up to {known}; use a newer idpbuilder")]
    Newer {
        /// The store.
        root: PathBuf,
        /// Format found.
        found: u32,
        /// Newest format known.
        known: u32,
    },
    /// LMDB's locks do not work on this file system.
    #[error(
        "{root} is on {kind}, where locks between machines cannot be trusted; put the store on a local disk"
    )]
    Remote {
        /// The store.
        root: PathBuf,
        /// Name of the file system.
        kind: &'static str,
    },
    /// No image has this name.
    #[error("no image is called `{0}`; `idpbuilder images` lists those there are")]
    NoImage(String),
    /// A blob that should be there is not.
    #[error("blob {0} is missing from the store")]
    MissingBlob(Digest),
}

impl StoreError {
    /// Says where the kernel refused; a full disk gets its own kind.
    pub(super) fn at(path: &Path, source: io::Error) -> Self {
        if is_no_space(&source) {
            return Self::NoSpace(path.to_owned());
        }
        Self::Io { path: path.to_owned(), source }
    }

    /// Says what LMDB refused in the store at `root`.
    pub(super) fn facts(root: &Path, error: heed::Error) -> Self {
        if let heed::Error::Io(source) = error {
            return Self::at(root, source);
        }
        Self::Facts { root: root.to_owned(), reason: error.to_string() }
    }

    /// Whether the kernel forbids writing here, for good.
    pub(super) fn is_read_only(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        [Errno::ROFS, Errno::ACCESS, Errno::PERM].iter().any(|errno| is(source, *errno))
    }
}

/// `map_err` for a path.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::at(&path, source)
}

/// `map_err` for a path, for system calls.
pub(super) fn errno_at(path: &Path) -> impl Fn(Errno) -> StoreError {
    let path = path.to_owned();
    move |errno| StoreError::at(&path, errno.into())
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn is_no_space(error: &io::Error) -> bool {
    is(error, Errno::NOSPC) || is(error, Errno::DQUOT)
}
