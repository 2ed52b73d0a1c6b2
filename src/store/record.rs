//! The records that the store keeps about images, layers, cached results and files.
//!
//! Values only; how they become bytes is in `schema/store.md`, where they are kept in `facts`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    graph::KeyTree,
    oci::{Codec, Descriptor, DiffId, Digest, Platform},
};

/// An image as the store keeps it: one record a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Full reference with tag (`docker.io/library/x:latest`); `None` for an untagged image.
    pub reference: Option<String>,
    /// Manifest or index as stored locally.
    pub target: Descriptor,
    /// Image ID: digest of the config (of the host's platform for an index).
    pub config: Digest,
    /// Platforms, one for a single image.
    pub platforms: Vec<Platform>,
    /// Unix seconds at which the record was made.
    pub stored_at: i64,
    /// RFC 3339 `created` of the config.
    pub created: Option<String>,
    /// Bytes of all layers, uncompressed.
    pub size: u64,
    /// Whether a registry has the target as it stands here; what was built, loaded or pulled before this was noted has not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pulled: bool,
}

/// What is known of a layer, by diff ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Length of the plain tar in bytes; 0 when nobody has read the layer yet.
    pub tar_bytes: u64,
    /// Sum of its files' sizes in bytes.
    pub content_bytes: u64,
    /// Compressed forms whose blobs are (or can be) in the store, by codec and level; a pulled
    /// layer's original form is among them.
    pub compressed: Vec<CompressedForm>,
}

/// A compressed form of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressedForm {
    /// Compression.
    pub codec: Codec,
    /// Level asked for; `None` for the default, or when somebody else compressed it.
    pub level: Option<u32>,
    /// Whether the blob came from a registry or archive: it is used by images that name it, and by no other.
    pub original: bool,
    /// The blob.
    pub descriptor: Descriptor,
}

/// Result of an op, by cache key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// What the op made.
    #[serde(flatten)]
    pub made: Made,
    /// Parts of the key, for explanations.
    pub tree: KeyTree,
    /// Where the op stands (project image and Dockerfile line), to find the record of the last run.
    pub site: String,
    /// Unix seconds.
    pub made_at: i64,
    /// How long the op took, in milliseconds.
    pub took_ms: u64,
    /// Blobs with the listings of the files that parts of the key stand for, by name of the part.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selections: BTreeMap<String, Digest>,
}

/// What an op made: a layer, or several when it was split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Made {
    /// One layer.
    Layer {
        /// Which.
        diff_id: DiffId,
    },
    /// Several.
    Layers {
        /// Bottom first.
        diff_ids: Vec<DiffId>,
    },
}

impl Made {
    /// The layers, bottom first.
    #[must_use]
    pub fn layers(&self) -> &[DiffId] {
        match self {
            Self::Layer { diff_id } => std::slice::from_ref(diff_id),
            Self::Layers { diff_ids } => diff_ids,
        }
    }
}

impl From<DiffId> for Made {
    fn from(diff_id: DiffId) -> Self {
        Self::Layer { diff_id }
    }
}

impl From<Vec<DiffId>> for Made {
    fn from(diff_ids: Vec<DiffId>) -> Self {
        match diff_ids.as_slice() {
            [only] => (*only).into(),
            _ => Self::Layers { diff_ids },
        }
    }
}

/// Identity and state of a file on disk, as `statx` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileStamp {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i128,
    /// Change time, nanoseconds since the epoch.
    pub ctime_ns: i128,
}

impl LayerRecord {
    /// Takes in the compressed forms that `other` knows and this record does not. Of a blob that was made here and
    /// pulled too, it stays known how it was made.
    pub fn learn(&mut self, other: &Self) {
        for form in &other.compressed {
            let digest = form.descriptor.digest;
            match self.compressed.iter_mut().find(|known| known.descriptor.digest == digest) {
                Some(known) if known.original => *known = form.clone(),
                Some(_) => {}
                None => self.compressed.push(form.clone()),
            }
        }
        self.compressed.sort_by_key(|form| form.descriptor.digest);
    }
}

impl ImageRecord {
    /// The name that the store keeps it under: its reference, or the digest of an untagged image.
    #[must_use]
    pub fn key(&self) -> String {
        self.reference.clone().unwrap_or_else(|| self.target.digest.to_string())
    }
}
