//! A descriptor: type, digest and size of some content, as one document points at another.
//!
//! Source: <https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md>.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Digest, MediaType, Platform};

/// Annotations of a manifest, an index or a descriptor; sorted, so that writing them is deterministic.
pub type Annotations = BTreeMap<String, String>;

/// Points at content by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: MediaType,
    /// Digest of the content, byte for byte.
    pub digest: Digest,
    /// Length of the content in bytes.
    pub size: u64,
    /// Where else the content may be had; never followed by us.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free text for tools, such as `org.opencontainers.image.ref.name`.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// What a manifest in an index runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Type of artifact, when the descriptor points at one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor without annotations or platform.
    #[must_use]
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self {
            media_type,
            digest,
            size,
            urls: Vec::new(),
            annotations: Annotations::new(),
            platform: None,
            artifact_type: None,
        }
    }
}
