//! Why the store could not do something, and how the kernel's and LMDB's words become that.

use std::{
    io,
    path::{Path, PathBuf},
};

use heed::MdbError;
use rustix::io::Errno;
use thiserror::Error;

use super::{
    room::{Room, room},
    waits::Holder,
};
use crate::oci::Digest;

/// The map of the facts cannot grow.
const NO_ROOM: &str =
    "there is no address space for them to grow; raise the limit of this process (`ulimit -v`)";

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
    /// No space, or no room for one more file.
    #[error("no space left in {path}")]
    NoSpace {
        /// What was written.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The facts cannot be used as things are.
    #[error("the facts in {root} cannot be used: {reason}")]
    Facts {
        /// The store.
        root: PathBuf,
        /// Why, and what helps.
        reason: String,
    },
    /// Something that was written whole is whole no more.
    #[error(
        "{what} in {root} is damaged; `idpbuilder store check --repair` saves what can be read"
    )]
    Damaged {
        /// The store.
        root: PathBuf,
        /// What of it.
        what: String,
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
    /// Another process holds a lock for longer than this one may wait.
    #[error("waited {seconds} s for {holder}, which holds {}; nothing was changed", .path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// Who holds it.
        holder: Holder,
        /// How long was waited for it.
        seconds: u64,
    },
    /// What is read is no whole backup.
    #[error("{}: {reason}", .place.display())]
    Backup {
        /// Where it was read from.
        place: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Names in a backup stand for other images here.
    #[error("{}: {} here for other images", .place.display(), stand(.names))]
    NamesTaken {
        /// Where it was read from.
        place: PathBuf,
        /// The names.
        names: Vec<String>,
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
    #[must_use]
    pub fn at(path: &Path, source: io::Error) -> Self {
        if is_no_space(&source) {
            return Self::NoSpace { path: path.to_owned(), source };
        }
        Self::Io { path: path.to_owned(), source }
    }

    /// Says what LMDB refused in the store at `root`.
    pub(super) fn facts(root: &Path, error: heed::Error) -> Self {
        let reason = match error {
            heed::Error::Io(source) if is(&source, Errno::NOMEM) => NO_ROOM.to_owned(),
            heed::Error::Io(source) => {
                // LMDB's word for a write that was cut short (`mdb_page_flush`), which a disk does when it is full.
                let is_cut = is(&source, Errno::IO) && room(root).is_some_and(Room::is_full);
                return Self::at(root, if is_cut { Errno::NOSPC.into() } else { source });
            }
            heed::Error::Mdb(MdbError::MapFull | MdbError::MapResized) => NO_ROOM.to_owned(),
            heed::Error::Mdb(MdbError::ReadersFull) => {
                "too many processes use the store at once; end some".to_owned()
            }
            heed::Error::Mdb(MdbError::VersionMismatch) => {
                "they were written by another version of idpbuilder".to_owned()
            }
            // A page, an offset or a value is not what it must be.
            heed::Error::Mdb(_)
            | heed::Error::Encoding(_)
            | heed::Error::Decoding(_)
            | heed::Error::EnvAlreadyOpened => {
                return Self::Damaged {
                    root: root.to_owned(),
                    what: "the file of facts".to_owned(),
                };
            }
        };
        Self::Facts { root: root.to_owned(), reason }
    }

    /// Whether the kernel forbids writing here, for good.
    pub(super) fn is_read_only(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        [Errno::ROFS, Errno::ACCESS, Errno::PERM].iter().any(|errno| is(source, *errno))
    }
}

fn stand(names: &[String]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "stands" } else { "stand" })
}

/// Whether an error, or one that it came from, is that of a disk that cannot be written to.
#[must_use]
pub fn is_read_only(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
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
    [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&error.kind())
}

/// Whether an error, or one that it came from, is that of a disk without room.
#[must_use]
pub fn lacks_space(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.downcast_ref().is_some_and(is_no_space))
}
