//! Manifests and indexes in and out, by tag and by digest; tags and referrers.

use std::{collections::BTreeMap, sync::Arc};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Method, StatusCode,
    body::Incoming,
    header::{self, HeaderMap},
};

use super::{
    answer::{Answer, CONTENT_DIGEST, Refusal, bytes, empty, json, put},
    repository::{Held, Repositories, Repository},
    route::Target,
};
use crate::{
    oci::{Descriptor, Digest, Document, Index, Manifest, MediaType},
    store::Store,
};

/// Largest manifest that is taken, in bytes.
const MANIFEST_BYTES_MAX: usize = 8 << 20;

/// Manifests over the store.
pub(super) struct Manifests {
    store: Store,
    repositories: Arc<Repositories>,
}

impl Manifests {
    pub(super) fn new(store: Store) -> Self {
        Self { repositories: Arc::new(Repositories::new(store.clone())), store }
    }

    /// GET and HEAD.
    pub(super) fn get(
        &self,
        method: &Method,
        name: &str,
        target: &Target,
    ) -> Result<Answer, Refusal> {
        let descriptor = self.find(name, target)?.ok_or_else(unknown)?;
        let body = self.store.read_blob(descriptor.digest)?;
        let length = body.len().to_string();
        let mut answer = match *method == Method::HEAD {
            true => empty(StatusCode::OK),
            false => bytes(StatusCode::OK, body.into()),
        };
        put(&mut answer, header::CONTENT_LENGTH, &length);
        put(&mut answer, header::CONTENT_TYPE, descriptor.media_type.as_str());
        put(&mut answer, CONTENT_DIGEST, &descriptor.digest.to_string());
        Ok(answer)
    }

    /// What was pushed here, or else an image of the store with this name.
    fn find(&self, name: &str, target: &Target) -> Result<Option<Descriptor>, Refusal> {
        let repository = self.repositories.get(name)?;
        let digest = match target {
            Target::Digest(digest) => Some(*digest),
            Target::Tag(tag) => repository.tags.get(tag).copied(),
        };
        let held = digest.and_then(|digest| repository.manifests.get(&digest));
        if let Some(held) = held {
            return Ok(Some(held.descriptor.clone()));
        }
        for record in self.store.images()? {
            let reference = record.reference.as_deref().and_then(|name| name.parse().ok());
            let Some::<crate::oci::Reference>(reference) = reference else { continue };
            if reference.repository() != name {
                continue;
            }
            let found = match target {
                Target::Tag(tag) => (reference.tag() == Some(tag)).then_some(record.target),
                Target::Digest(digest) => self.within(record.target, *digest)?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// What has this digest: an image, or that of one platform of it.
    fn within(&self, image: Descriptor, wanted: Digest) -> Result<Option<Descriptor>, Refusal> {
        if image.digest == wanted || !image.media_type.is_index() {
            return Ok(Some(image).filter(|image| image.digest == wanted));
        }
        let index = Document::<Index>::parse(self.store.read_blob(image.digest)?);
        let listed = index.map(|index| index.value.manifests).unwrap_or_default();
        let here =
            |one: &Descriptor| one.digest == wanted && self.store.blob_size(one.digest).is_some();
        Ok(listed.into_iter().find(here))
    }

    /// PUT.
    pub(super) async fn put(
        &self,
        name: &str,
        target: &Target,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        let body = Limited::new(body, MANIFEST_BYTES_MAX).collect().await.map_err(|error| {
            let message = format!("{error}; the limit is {MANIFEST_BYTES_MAX} bytes");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
        })?;
        let raw = body.to_bytes().to_vec();
        let digest = Digest::of(&raw);
        if let Target::Digest(wanted) = target
            && *wanted != digest
        {
            let message = format!("the body has digest {digest}");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message));
        }
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let held = self.check(raw.clone(), content_type)?;
        self.store.put_blob(&raw)?;
        let subject = held.subject;
        let target = target.clone();
        self.change(name, move |repository| {
            repository.manifests.insert(digest, held);
            if let Target::Tag(tag) = target {
                repository.tags.insert(tag, digest);
            }
        })
        .await?;
        let mut answer = empty(StatusCode::CREATED);
        put(&mut answer, header::LOCATION, &format!("/v2/{name}/manifests/{digest}"));
        put(&mut answer, CONTENT_DIGEST, &digest.to_string());
        if let Some(subject) = subject {
            let name = header::HeaderName::from_static("oci-subject");
            put(&mut answer, name, &subject.to_string());
        }
        Ok(answer)
    }

    /// Reads a manifest or index and makes sure that what it points at is here.
    fn check(&self, raw: Vec<u8>, content_type: Option<&str>) -> Result<Held, Refusal> {
        let invalid = |error: &dyn std::fmt::Display| {
            Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", error.to_string())
        };
        let (digest, size) = (Digest::of(&raw), raw.len() as u64);
        let shape: serde_json::Value =
            serde_json::from_slice(&raw).map_err(|error| invalid(&error))?;
        let written = shape.get("mediaType").and_then(serde_json::Value::as_str);
        if let (Some(written), Some(sent)) = (written, content_type)
            && written != sent
        {
            return Err(invalid(&format!("mediaType is {written}, Content-Type is {sent}")));
        }
        let is_index = shape.get("manifests").is_some();
        let default = if is_index { MediaType::INDEX } else { MediaType::MANIFEST };
        let media_type = MediaType::new(written.or(content_type).unwrap_or(default));
        let mut descriptor = Descriptor::new(media_type, digest, size);
        let (points_at, subject) = if is_index {
            let index = Document::<Index>::parse(raw).map_err(|error| invalid(&error))?.value;
            descriptor.annotations = index.annotations;
            descriptor.artifact_type = index.artifact_type;
            (index.manifests, index.subject)
        } else {
            let manifest = Document::<Manifest>::parse(raw).map_err(|error| invalid(&error))?.value;
            descriptor.annotations = manifest.annotations;
            let config_type = manifest.config.media_type.as_str().to_owned();
            descriptor.artifact_type = manifest.artifact_type.or(Some(config_type));
            let mut points_at = manifest.layers;
            // Layers that may not be distributed live elsewhere.
            points_at.retain(|layer| layer.urls.is_empty());
            points_at.push(manifest.config);
            (points_at, manifest.subject)
        };
        for wanted in &points_at {
            if self.store.blob_size(wanted.digest).is_none() {
                let message = format!("{} is not in this registry", wanted.digest);
                let code = "MANIFEST_BLOB_UNKNOWN";
                return Err(Refusal::new(StatusCode::NOT_FOUND, code, message));
            }
        }
        Ok(Held { descriptor, subject: subject.map(|subject| subject.digest) })
    }

    /// DELETE of a tag or a manifest.
    pub(super) async fn delete(&self, name: &str, target: &Target) -> Result<Answer, Refusal> {
        let target = target.clone();
        let change = move |repository: &mut Repository| match target {
            Target::Tag(tag) => repository.tags.remove(&tag).is_some(),
            Target::Digest(digest) => {
                repository.tags.retain(|_, tagged| *tagged != digest);
                repository.manifests.remove(&digest).is_some()
            }
        };
        let gone = self.change(name, change).await?;
        if gone { Ok(empty(StatusCode::ACCEPTED)) } else { Err(unknown()) }
    }

    /// Changes a repository. It waits for the disk, and may wait for another process: not where other requests are
    /// answered meanwhile.
    async fn change<T: Send + 'static>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Repository) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (repositories, name) = (Arc::clone(&self.repositories), name.to_owned());
        let work = tokio::task::spawn_blocking(move || repositories.change(&name, change));
        match work.await {
            Ok(changed) => Ok(changed?),
            Err(error) => std::panic::resume_unwind(error.into_panic()), // Nothing aborts it.
        }
    }

    /// GET of the tags: sorted, `n` at most, after `last`.
    pub(super) fn tags(
        &self,
        name: &str,
        query: &BTreeMap<String, String>,
    ) -> Result<Answer, Refusal> {
        let Repository { tags, .. } = self.known(name)?;
        let names = tags.into_keys().collect();
        let (page, next) = page(names, query)?;
        let document = serde_json::json!({ "name": name, "tags": page });
        Ok(linked(json(StatusCode::OK, &document), &format!("/v2/{name}/tags/list"), next))
    }

    /// GET of the repositories' names.
    pub(super) fn catalog(&self, query: &BTreeMap<String, String>) -> Result<Answer, Refusal> {
        let names = self.repositories.names()?.into_iter().collect();
        let (page, next) = page(names, query)?;
        let document = serde_json::json!({ "repositories": page });
        Ok(linked(json(StatusCode::OK, &document), "/v2/_catalog", next))
    }

    /// GET of the manifests that talk about another: always an index.
    pub(super) fn referrers(
        &self,
        name: &str,
        subject: Digest,
        query: &BTreeMap<String, String>,
    ) -> Result<Answer, Refusal> {
        let wanted_type = query.get("artifactType");
        let repository = self.repositories.get(name)?;
        let held = repository.manifests.into_values();
        let manifests: Vec<Descriptor> = held
            .filter(|held| held.subject == Some(subject))
            .map(|held| held.descriptor)
            .filter(|found| {
                wanted_type.is_none_or(|wanted| found.artifact_type.as_ref() == Some(wanted))
            })
            .collect();
        let document = serde_json::json!({
            "schemaVersion": 2, "mediaType": MediaType::INDEX, "manifests": manifests
        });
        let mut answer = json(StatusCode::OK, &document);
        put(&mut answer, header::CONTENT_TYPE, MediaType::INDEX);
        if wanted_type.is_some() {
            let name = header::HeaderName::from_static("oci-filters-applied");
            put(&mut answer, name, "artifactType");
        }
        Ok(answer)
    }

    fn known(&self, name: &str) -> Result<Repository, Refusal> {
        let repository = self.repositories.get(name)?;
        if repository.manifests.is_empty() {
            let message = format!("repository {name} is unknown to this registry");
            return Err(Refusal::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message));
        }
        Ok(repository)
    }
}

fn unknown() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown")
}

/// Length of a page, and the name after which it starts.
type PageStart = (usize, String);

/// One page of sorted names, and where the next one starts.
fn page(
    names: Vec<String>,
    query: &BTreeMap<String, String>,
) -> Result<(Vec<String>, Option<PageStart>), Refusal> {
    let count = match query.get("n") {
        None => usize::MAX,
        Some(text) => text.parse::<u32>().map_err(|_| {
            let message = format!("n={text} is no number of results");
            Refusal::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", message)
        })? as usize,
    };
    let last = query.get("last").cloned().unwrap_or_default();
    let mut rest = names.into_iter().filter(|name| *name > last);
    let page: Vec<String> = rest.by_ref().take(count).collect();
    let next = page.last().cloned().filter(|_| rest.next().is_some());
    Ok((page, next.map(|last| (count, last))))
}

fn linked(mut answer: Answer, path: &str, next: Option<PageStart>) -> Answer {
    if let Some((count, last)) = next {
        let link = format!("<{path}?n={count}&last={last}>; rel=\"next\"");
        put(&mut answer, header::LINK, &link);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g07_pages_are_bounded_and_linked() {
        let names = || ["a", "b", "c"].map(str::to_owned).to_vec();
        let query = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let (all, next) = page(names(), &query(&[])).unwrap();
        assert_eq!((all.len(), next), (3, None));
        let (none, next) = page(names(), &query(&[("n", "0")])).unwrap();
        assert_eq!((none.len(), next), (0, None));
        let (two, next) = page(names(), &query(&[("n", "2")])).unwrap();
        assert_eq!((two.len(), next), (2, Some((2, "b".to_owned()))));
        let (rest, next) = page(names(), &query(&[("n", "2"), ("last", "b")])).unwrap();
        assert_eq!((rest, next), (vec!["c".to_owned()], None));
        for bad in ["-1", "abc", "99999999999"] {
            assert!(page(names(), &query(&[("n", bad)])).is_err());
        }
    }
}
