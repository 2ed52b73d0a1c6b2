//! Manifests and indexes, each kept with the exact bytes it was read from or will be sent as.
//!
//! Sources: <https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md> and `image-index.md`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use super::{Annotations, Descriptor, Digest, MediaType};

/// Largest manifest, index or config that is read, in bytes (registries refuse 4 MiB and more).
const DOCUMENT_BYTES_MAX: usize = 8 << 20;

/// One image: a config and its layers, bottom first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// OCI's or Docker's manifest type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// Set when this is an artifact and no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// Layers, bottom first. `null` is read as none.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// The manifest this one talks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free text for tools.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
}

/// Several manifests under one name, usually one a platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// OCI's index type or Docker's manifest list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// Set when this is an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    /// The manifest this one talks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free text for tools.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
}

/// A parsed JSON document and its exact bytes, which are the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document<T> {
    /// What the bytes say.
    pub value: T,
    /// The bytes, as read or as they will be sent.
    pub raw: Vec<u8>,
}

/// Why bytes are not the document they should be.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// Not the JSON of this kind of document.
    #[error("not a valid document: {0}")]
    Json(#[from] serde_json::Error),
    /// Larger than any registry accepts.
    #[error("a document of {0} bytes, the limit is {DOCUMENT_BYTES_MAX}")]
    TooLarge(usize),
    /// Both `layers` and `manifests`: one document that two readers would understand differently
    /// (CVE-2021-41190).
    #[error("a document with both `layers` and `manifests` is ambiguous")]
    Ambiguous,
}

impl<T: DeserializeOwned> Document<T> {
    /// Reads a document and keeps its bytes.
    ///
    /// # Errors
    ///
    /// When the bytes are too many, no JSON of this shape, or ambiguous between manifest and index.
    pub fn parse(raw: Vec<u8>) -> Result<Self, DocumentError> {
        if raw.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLarge(raw.len()));
        }
        let shape: Shape = serde_json::from_slice(&raw)?;
        if shape.layers.is_some() && shape.manifests.is_some() {
            return Err(DocumentError::Ambiguous);
        }
        Ok(Self { value: serde_json::from_slice(&raw)?, raw })
    }
}

impl<T: Serialize> Document<T> {
    /// Writes a document as Go's `MarshalIndent` with two spaces does: BuildKit's form of manifests.
    #[must_use]
    pub fn write(value: T) -> Self {
        let raw = serde_json::to_vec_pretty(&value).expect("documents hold only JSON values");
        Self { value, raw: escape_as_go(&raw) }
    }

    /// Writes a document on one line, as BuildKit writes configs.
    #[must_use]
    pub fn write_compact(value: T) -> Self {
        let raw = serde_json::to_vec(&value).expect("documents hold only JSON values");
        Self { value, raw: escape_as_go(&raw) }
    }
}

impl<T> Document<T> {
    /// Digest of the exact bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.raw)
    }

    /// Descriptor of the exact bytes, as `media_type`.
    #[must_use]
    pub fn descriptor(&self, media_type: &str) -> Descriptor {
        Descriptor::new(MediaType::new(media_type), self.digest(), self.raw.len() as u64)
    }
}

#[derive(Deserialize)]
struct Shape {
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Go's encoder writes `<`, `>`, `&` and the two line separators escaped; they occur in strings only.
fn escape_as_go(json: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(json.len());
    let mut rest = json;
    while let Some((&byte, tail)) = rest.split_first() {
        let (written, eaten): (&[u8], usize) = match byte {
            b'<' => (b"\\u003c", 1),
            b'>' => (b"\\u003e", 1),
            b'&' => (b"\\u0026", 1),
            0xe2 if tail.starts_with(&[0x80, 0xa8]) => (b"\\u2028", 3),
            0xe2 if tail.starts_with(&[0x80, 0xa9]) => (b"\\u2029", 3),
            _ => (&rest[..1], 1),
        };
        escaped.extend_from_slice(written);
        rest = &rest[eaten..];
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_kept_and_ambiguity_is_refused() {
        let raw = br#"{ "schemaVersion":2, "manifests": null }"#.to_vec();
        let document = Document::<Index>::parse(raw.clone()).unwrap();
        assert_eq!(document.raw, raw);
        assert!(document.value.manifests.is_empty());
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_vec();
        assert!(matches!(Document::<Index>::parse(both), Err(DocumentError::Ambiguous)));
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        assert_eq!(
            escape_as_go("\"a<b>&\u{2028}é\"".as_bytes()),
            "\"a\\u003cb\\u003e\\u0026\\u2028é\"".as_bytes()
        );
    }
}
