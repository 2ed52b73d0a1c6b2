//! What can be wrong with a store, in words.

use std::path::PathBuf;

use thiserror::Error;

use crate::oci::Digest;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Damage {
    /// Pages of LMDB's file contradict one another.
    #[error("the file of facts is damaged: {0}")]
    Facts(String),
    /// Bytes of a blob changed.
    #[error("blob {0} is damaged: its bytes are others")]
    Blob(Digest),
    /// A blob of which a power cut took bytes, before anything was said about it.
    #[error("blob {0} is not whole: the machine stopped while it was written")]
    Torn(Digest),
    /// A blob has another length than the image says that needs it.
    #[error("blob {blob} has {found} bytes, image `{image}` needs {wanted}")]
    Size {
        /// The blob.
        blob: Digest,
        /// Who needs it.
        image: String,
        /// Length found, in bytes.
        found: u64,
        /// Length needed, in bytes.
        wanted: u64,
    },
    /// A document or layer of an image is not there, and no registry is known to have it.
    #[error("image `{image}` lacks {blob}")]
    Missing {
        /// The blob.
        blob: Digest,
        /// Who needs it.
        image: String,
    },
    /// A layer that a cached result needs is in no form there, or a blob that it names.
    #[error("cached result {0} has lost its content")]
    LostLayer(Digest),
    /// What the embedded registry serves is not there.
    #[error("the embedded registry lacks {blob}, which {manifest} of {repository} needs")]
    Served {
        /// The blob.
        blob: Digest,
        /// Who needs it.
        manifest: Digest,
        /// Where that was pushed to: name of the note.
        repository: String,
    },
    /// A listing is cut or changed; who needs it makes it again.
    #[error("the listing of layer {0} is damaged")]
    Listing(Digest),
    /// A snapshot that was complete is not there.
    #[error("the snapshot of layer {0} is missing")]
    Snapshot(Digest),
    /// A snapshot is not what its layer says.
    #[error("the snapshot of layer {layer} is damaged: `{path}` {what}")]
    Altered {
        /// The layer.
        layer: Digest,
        /// The first path that differs.
        path: String,
        /// What differs there.
        what: &'static str,
    },
    /// A record cannot be read, or contradicts others.
    #[error("a record in the table of {table} is damaged (key {key})")]
    Record {
        /// Which table.
        table: &'static str,
        /// Key, in hex.
        key: String,
    },
    /// `index.json` does not list the images that there are.
    #[error("index.json does not say what images there are")]
    Index,
    /// A part of the folder is missing or says nonsense.
    #[error("{} is missing or damaged", .0.display())]
    Layout(PathBuf),
    /// Something that the store did not make.
    #[error("{} does not belong here", .0.display())]
    Stray(PathBuf),
}

impl Damage {
    /// Whether nothing suffers from it: what the next command mends by itself, and what nobody looks at.
    #[must_use]
    pub const fn is_harmless(&self) -> bool {
        matches!(self, Self::Torn(_) | Self::Listing(_) | Self::Index | Self::Stray(_))
    }

    /// One word for machines.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Facts(_) => "facts",
            Self::Blob(_) => "blob",
            Self::Torn(_) => "torn-blob",
            Self::Size { .. } => "size",
            Self::Missing { .. } => "missing",
            Self::LostLayer(_) => "cached-result",
            Self::Served { .. } => "served",
            Self::Listing(_) => "listing",
            Self::Snapshot(_) => "snapshot",
            Self::Altered { .. } => "snapshot-content",
            Self::Record { .. } => "record",
            Self::Index => "index",
            Self::Layout(_) => "layout",
            Self::Stray(_) => "stray",
        }
    }
}
