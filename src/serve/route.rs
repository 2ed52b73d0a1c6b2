//! Paths of the distribution API as values.
//!
//! Source: <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#endpoints>.

use crate::oci::Digest;

/// Longest repository name, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/NAME/blobs/DIGEST`
    Blob(String, Digest),
    /// `/v2/NAME/blobs/uploads/`
    Uploads(String),
    /// `/v2/NAME/blobs/uploads/ID`
    Upload(String, String),
    /// `/v2/NAME/manifests/REFERENCE`
    Manifest(String, Target),
    /// `/v2/NAME/tags/list`
    Tags(String),
    /// `/v2/NAME/referrers/DIGEST`
    Referrers(String, Digest),
}

/// What names a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// By content.
    Digest(Digest),
    /// By tag.
    Tag(String),
}

/// Why a path asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadRoute {
    /// No such endpoint.
    Unknown,
    /// The repository's name breaks the grammar.
    Name,
    /// The digest breaks the grammar, or is no SHA-256.
    Digest,
    /// The tag breaks the grammar.
    Tag,
}

impl Route {
    /// Reads a path, still percent-encoded: no name of the grammar needs an escape, so one that has
    /// an escape is refused like any other bad letter.
    pub(super) fn parse(path: &str) -> Result<Self, BadRoute> {
        let rest = path.strip_prefix("/v2").ok_or(BadRoute::Unknown)?;
        match rest {
            "" | "/" => return Ok(Self::Base),
            "/_catalog" => return Ok(Self::Catalog),
            _ => {}
        }
        let rest = rest.strip_prefix('/').ok_or(BadRoute::Unknown)?;
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Self::Tags(repository(name)?));
        }
        if let Some((name, id)) = rest.split_once("/blobs/uploads") {
            return match id.strip_prefix('/') {
                None | Some("") => Ok(Self::Uploads(repository(name)?)),
                Some(id) => Ok(Self::Upload(repository(name)?, id.to_owned())),
            };
        }
        if let Some((name, digest)) = rest.rsplit_once("/blobs/") {
            let digest = digest.parse().map_err(|_| BadRoute::Digest)?;
            return Ok(Self::Blob(repository(name)?, digest));
        }
        if let Some((name, digest)) = rest.rsplit_once("/referrers/") {
            let digest = digest.parse().map_err(|_| BadRoute::Digest)?;
            return Ok(Self::Referrers(repository(name)?, digest));
        }
        let (name, target) = rest.rsplit_once("/manifests/").ok_or(BadRoute::Unknown)?;
        let target = match target.contains(':') {
            true => Target::Digest(target.parse().map_err(|_| BadRoute::Digest)?),
            false => Target::Tag(tag(target)?),
        };
        Ok(Self::Manifest(repository(name)?, target))
    }
}

/// A repository's name, checked by the grammar of references.
fn repository(name: &str) -> Result<String, BadRoute> {
    let is_name = name.len() <= NAME_BYTES_MAX
        && format!("registry.invalid/{name}:x").parse::<crate::oci::Reference>().is_ok();
    if is_name && !name.contains([':', '@']) { Ok(name.to_owned()) } else { Err(BadRoute::Name) }
}

/// A tag, checked by the grammar of references.
pub(super) fn tag(tag: &str) -> Result<String, BadRoute> {
    let parsed = format!("registry.invalid/x:{tag}").parse::<crate::oci::Reference>();
    let is_tag = parsed.is_ok_and(|parsed| parsed.tag() == Some(tag) && parsed.digest().is_none());
    if is_tag { Ok(tag.to_owned()) } else { Err(BadRoute::Tag) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_has_one_spelling() {
        let digest = Digest::of(b"x");
        for (path, route) in [
            ("/v2", Ok(Route::Base)),
            ("/v2/", Ok(Route::Base)),
            ("/v2/_catalog", Ok(Route::Catalog)),
            ("/v2/a/b/tags/list", Ok(Route::Tags("a/b".into()))),
            ("/v2/a/blobs/uploads/", Ok(Route::Uploads("a".into()))),
            ("/v2/a/blobs/uploads", Ok(Route::Uploads("a".into()))),
            ("/v2/a/blobs/uploads/id", Ok(Route::Upload("a".into(), "id".into()))),
            ("/v2/a/manifests/v1", Ok(Route::Manifest("a".into(), Target::Tag("v1".into())))),
            ("/v3/", Err(BadRoute::Unknown)),
            ("/v2/a", Err(BadRoute::Unknown)),
        ] {
            assert_eq!(Route::parse(path), route, "{path}");
        }
        let path = format!("/v2/manifests/blobs/{digest}");
        assert_eq!(Route::parse(&path), Ok(Route::Blob("manifests".into(), digest)));
    }

    #[test]
    fn g01_hostile_names_are_refused() {
        let long = "n".repeat(300);
        for name in ["..%2f..", "%00", "a//b", "A", "../x", "a/..", "a:b", "_x", &long] {
            let path = format!("/v2/{name}/tags/list");
            assert_eq!(Route::parse(&path), Err(BadRoute::Name), "{name}");
        }
        for digest in ["sha256:..", "md5:00", "sha256:../../../x"] {
            let path = format!("/v2/a/blobs/{digest}");
            assert!(Route::parse(&path).is_err(), "{digest}");
        }
    }
}
