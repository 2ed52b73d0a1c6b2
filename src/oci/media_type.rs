//! Media types of manifests, configs and layers, OCI's and Docker's.
//!
//! Source: <https://github.com/opencontainers/image-spec/blob/v1.1.1/media-types.md>.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A media type as written in a descriptor. Unknown ones are kept as they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MediaType(String);

/// How the bytes of a layer blob are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Plain tar.
    #[serde(rename = "uncompressed")]
    Plain,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl MediaType {
    /// `application/vnd.oci.image.manifest.v1+json`
    pub const MANIFEST: &'static str = "application/vnd.oci.image.manifest.v1+json";
    /// `application/vnd.oci.image.index.v1+json`
    pub const INDEX: &'static str = "application/vnd.oci.image.index.v1+json";
    /// `application/vnd.oci.image.config.v1+json`
    pub const CONFIG: &'static str = "application/vnd.oci.image.config.v1+json";
    /// Plain tar layer.
    pub const LAYER: &'static str = "application/vnd.oci.image.layer.v1.tar";
    /// Gzip-compressed tar layer.
    pub const LAYER_GZIP: &'static str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// Zstandard-compressed tar layer.
    pub const LAYER_ZSTD: &'static str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker's manifest, schema 2.
    pub const DOCKER_MANIFEST: &'static str =
        "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's manifest list.
    pub const DOCKER_INDEX: &'static str =
        "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's image config.
    pub const DOCKER_CONFIG: &'static str = "application/vnd.docker.container.image.v1+json";
    /// Docker's gzip-compressed layer.
    pub const DOCKER_LAYER_GZIP: &'static str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker's plain layer.
    pub const DOCKER_LAYER: &'static str = "application/vnd.docker.image.rootfs.diff.tar";

    /// Keeps `text` as a media type; no check, since unknown types must survive a copy.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, without parameters added or removed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The OCI type of a layer compressed with `codec`.
    #[must_use]
    pub fn layer(codec: Codec) -> Self {
        Self::new(match codec {
            Codec::Plain => Self::LAYER,
            Codec::Gzip => Self::LAYER_GZIP,
            Codec::Zstd => Self::LAYER_ZSTD,
        })
    }

    /// Whether this is a single image's manifest.
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        matches!(self.as_str(), Self::MANIFEST | Self::DOCKER_MANIFEST)
    }

    /// Whether this is a list of manifests.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(self.as_str(), Self::INDEX | Self::DOCKER_INDEX)
    }

    /// Compression that a layer's type promises; `None` when this is no known layer type.
    #[must_use]
    pub fn codec(&self) -> Option<Codec> {
        match self.as_str() {
            Self::LAYER | Self::DOCKER_LAYER => Some(Codec::Plain),
            Self::LAYER_GZIP | Self::DOCKER_LAYER_GZIP => Some(Codec::Gzip),
            Self::LAYER_ZSTD => Some(Codec::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
