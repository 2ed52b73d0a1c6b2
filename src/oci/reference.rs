//! Image references: registry, repository, tag and digest, as typed and as meant.
//!
//! Grammar and normal form are those of <https://github.com/distribution/reference>; the table of
//! the corpus (`tests/corpus/reference.json`) holds this parser to it, message by message.

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::Digest;

/// The registry of names that have none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
const LEGACY_REGISTRY: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Longest repository name with its registry, in bytes.
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// A name for an image, in normal form: `busybox` is `docker.io/library/busybox:latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is not a reference. Messages are the reference library's, but for what that takes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseReferenceError {
    /// The grammar does not match.
    #[error("invalid reference format")]
    Format,
    /// Only upper-case letters keep it from matching.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// Longer than any registry takes.
    #[error("repository name must not be more than {NAME_BYTES_MAX} characters")]
    TooLong,
    /// 64 hex digits would be mistaken for an image ID.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    /// The digest's hex part has the wrong length.
    #[error("invalid checksum digest length")]
    DigestLength,
    /// The digest's hex part is not lower-case hex.
    #[error("invalid checksum digest format")]
    DigestFormat,
    /// None that anybody knows.
    #[error("unsupported digest algorithm")]
    DigestAlgorithm,
    /// A good digest, and not SHA-256, which is all that the store knows content by.
    #[error(
        "{0} digests are not supported, sha256 digests are: name the image by its tag, or by its sha256 digest"
    )]
    OtherDigest(String),
}

impl Reference {
    /// Host and port, such as `docker.io` or `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path within the registry, such as `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` is filled in only when there is no digest either.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins the content.
    #[must_use]
    pub const fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Registry and repository, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The short form people type: without `docker.io/library/`.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        match self.repository.strip_prefix(OFFICIAL) {
            Some(name) if !name.contains('/') => name.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// The short form with tag and digest.
    #[must_use]
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_name(), self.suffix())
    }

    /// The same image under another tag, without a digest.
    #[must_use]
    pub fn with_tag(&self, tag: &str) -> Self {
        Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() }
    }

    /// The same repository, pinned to `digest`, without a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same registry and tag with another repository path.
    #[must_use]
    pub fn with_repository(&self, repository: &str) -> Self {
        Self { repository: repository.to_owned(), ..self.clone() }
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}"));
        let digest = self.digest.map(|digest| format!("@{digest}"));
        tag.unwrap_or_default() + &digest.unwrap_or_default()
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if is_hex64(s) {
            return Err(ParseReferenceError::LooksLikeId(s.to_owned()));
        }
        let (registry, rest) = split_registry(s);
        let (named, digest) = match rest.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (rest, None),
        };
        let (path, tag) = match named.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (named, None),
        };
        let path = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{OFFICIAL}{path}")
        } else {
            path.to_owned()
        };
        if path.chars().any(char::is_uppercase) && is_path(&path.to_lowercase()) {
            return Err(ParseReferenceError::Uppercase(path));
        }
        let digest_shaped = digest.is_none_or(is_digest_shaped);
        if !is_registry(registry) || !is_path(&path) || !tag.is_none_or(is_tag) || !digest_shaped {
            return Err(ParseReferenceError::Format);
        }
        if path.len() > NAME_BYTES_MAX {
            return Err(ParseReferenceError::TooLong);
        }
        let digest = digest.map(parse_digest).transpose()?;
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry: registry.to_owned(), repository: path, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.suffix())
    }
}

/// The first component is a registry when nothing else could look like it.
fn split_registry(s: &str) -> (&str, &str) {
    match s.split_once('/') {
        Some((LEGACY_REGISTRY, rest)) => (DEFAULT_REGISTRY, rest),
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, s),
    }
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inner, port)) => {
            let literal = !inner.is_empty()
                && inner.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
            if !literal {
                return false;
            }
            (None, port.strip_prefix(':').or(if port.is_empty() { None } else { Some("x") }))
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    host.is_none_or(|host| host.split('.').all(is_label)) && port.is_none_or(is_port)
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_path_component)
}

/// Alphanumeric runs joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_in_word =
        bytes.first().copied().is_some_and(is_word) && bytes.last().copied().is_some_and(is_word);
    let separators = component.split(|c: char| c.is_ascii() && is_word(c as u8));
    let is_separator = |separator: &str| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    };
    ends_in_word && separators.into_iter().all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= TAG_BYTES_MAX
        && bytes.first().copied().is_some_and(is_word)
        && bytes.iter().all(|byte| is_word(*byte) || b".-".contains(byte))
}

/// `algorithm:hex`, with at least 32 hex digits, as the grammar wants it.
fn is_digest_shaped(digest: &str) -> bool {
    const HEX_DIGITS_MIN: usize = 32;
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        let is_word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_alphabetic())
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        algorithm.split(['+', '.', '-', '_']).all(is_word)
            && hex.len() >= HEX_DIGITS_MIN
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn parse_digest(digest: &str) -> Result<Digest, ParseReferenceError> {
    let (algorithm, hex) = digest.split_once(':').ok_or(ParseReferenceError::Format)?;
    let digits = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(ParseReferenceError::DigestAlgorithm),
    };
    if hex.len() != digits {
        return Err(ParseReferenceError::DigestLength);
    }
    if hex.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ParseReferenceError::DigestFormat);
    }
    digest.parse().map_err(|_| ParseReferenceError::OtherDigest(algorithm.to_owned()))
}

fn is_hex64(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Table {
        rows: Vec<Row>,
    }

    #[derive(Deserialize)]
    struct Row {
        reference: String,
        normalized: Option<String>,
        familiar: Option<String>,
        error: Option<String>,
    }

    #[test]
    fn agrees_with_the_reference_library() {
        let table: Table =
            serde_json::from_str(include_str!("../../tests/corpus/reference.json")).unwrap();
        // We verify SHA-256 only, so a longer digest is refused by name instead of being taken on trust.
        let sha512 = |row: &Row| row.error.is_none() && row.reference.contains("@sha512:");
        for row in table.rows.iter().filter(|row| !sha512(row)) {
            let parsed = row.reference.parse::<Reference>();
            let shown = parsed.as_ref().map(ToString::to_string).map_err(ToString::to_string);
            let wanted = row.normalized.clone().ok_or_else(|| row.error.clone().unwrap());
            assert_eq!(shown, wanted, "{}", row.reference);
            assert_eq!(parsed.ok().map(|parsed| parsed.familiar()), row.familiar);
        }
        for row in table.rows.iter().filter(|row| sha512(row)) {
            let refused = row.reference.parse::<Reference>().unwrap_err();
            assert_eq!(refused, ParseReferenceError::OtherDigest("sha512".to_owned()));
        }
    }
}
