//! Layers as streams: changes ⇄ tar, directories ⇄ changes, compression. Constant memory throughout.
//!
//! Knows tar, whiteouts and overlay directories; knows no store, no image and no registry.

mod attributes;
mod compare;
mod compress;
mod contents;
mod decompress;
mod gzip;
mod hashing;
mod header;
mod listing;
mod read;
mod snapshot;
mod unpack;
mod upper;
mod walk;
mod write;

use std::io;

use thiserror::Error;

use crate::{oci::DiffId, tree::Change};

pub use compare::{Difference, compare, is_same_content};
pub use compress::compress;
pub use decompress::{bounded, decompress, is_too_large};
pub use listing::{Changes, Listing, ListingHasher};
pub use read::read_layer;
pub use snapshot::{Settled, Surplus, settle};
pub use unpack::{Ownership, unpack, unpack_as};
pub use upper::{Below, Upper, UpperForm, write_upper};
pub use walk::open_beneath;
pub use write::LayerWriter;

/// One line of a [`Listing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The change.
    pub change: Change,
    /// Offset of a regular file's first byte in the plain tar.
    pub offset: u64,
}

/// Result of writing, reading or unpacking a layer to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSummary {
    /// Digest of the plain tar.
    pub diff_id: DiffId,
    /// Length of the plain tar in bytes.
    pub tar_bytes: u64,
    /// Sum of the sizes of its files in bytes.
    pub content_bytes: u64,
    /// What it holds.
    pub listing: Listing,
}

/// Which extended attributes carry overlay's marks in a snapshot directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverlayMarks {
    /// `trusted.overlay.*`: root in the initial user namespace.
    Trusted,
    /// `user.overlay.*`: overlay mounted with `userxattr`.
    User,
}

impl OverlayMarks {
    /// Name of the attribute that makes a directory opaque.
    #[must_use]
    pub const fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// Why a layer could not be read, written or unpacked.
#[derive(Debug, Error)]
pub enum LayerError {
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The tar breaks a rule; the entry is named.
    #[error("layer entry `{entry}`: {reason}")]
    Entry {
        /// Name in the archive.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// Not a layer at all.
    #[error("not a tar archive: {0}")]
    NotTar(String),
    /// An owner that no file can have here: this user namespace has no such id (`user_namespaces(7)`).
    #[error(
        "`{entry}` belongs to {uid}:{gid}, which are not both among the ids of this user: more of \
         them in /etc/subuid and /etc/subgid would help, or root"
    )]
    Unmapped {
        /// Name in the archive.
        entry: String,
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl LayerError {
    fn entry(name: impl AsRef<[u8]>, reason: impl AsRef<str>) -> Self {
        let entry = printable(&String::from_utf8_lossy(name.as_ref()));
        Self::Entry { entry, reason: printable(reason.as_ref()) }
    }

    fn unmapped(entry: &crate::tree::Entry) -> Self {
        let name = printable(&String::from_utf8_lossy(entry.path.as_bytes()));
        Self::Unmapped { entry: name, uid: entry.meta.uid, gid: entry.meta.gid }
    }

    /// A failure of the system at an entry; its kind stays, since a full disk has another way out.
    fn at(name: impl AsRef<[u8]>, error: &io::Error) -> Self {
        let place = printable(&String::from_utf8_lossy(name.as_ref()));
        Self::Io(io::Error::new(error.kind(), format!("`{place}`: {error}")))
    }
}

/// Names are untrusted, and control characters must not reach a terminal.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod laws;
