//! Getting documents and blobs: mirrors in order, ranges after failures, digests over the whole.

use std::{
    fs::File,
    io::{self, Seek as _, Write},
};

use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE},
};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::{
    Client, RegistryError,
    answer::shown_url,
    retry::{Again, Failure, Tries},
    site::Site,
    transport::{Action, Ask, Payload, Progress, silent, transport_failure},
};
use crate::oci::{Descriptor, Digest, Hasher, MediaType, Reference};

/// Longest manifest or index, in bytes.
pub(super) const MANIFEST_BYTES_MAX: usize = 8 << 20;
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DIGEST_HEADER: &str = "docker-content-digest";

/// One place that may have what a reference names.
pub(super) struct Candidate {
    pub(super) registry: String,
    pub(super) repository: String,
}

impl Candidate {
    /// What a mirror said, with its name in it: that something is not found says what it is alone.
    fn named(&self, image: &Reference, mut error: RegistryError) -> RegistryError {
        if let RegistryError::NotFound(what) = &mut error
            && self.registry != image.registry()
        {
            *what = format!("{what} (at the mirror {})", self.registry);
        }
        error
    }
}

pub(super) fn pull_scope(repository: &str) -> Vec<String> {
    vec![format!("repository:{repository}:pull")]
}

impl Client {
    /// Where to look for `image`, in order.
    pub(super) fn candidates(&self, image: &Reference) -> Vec<Candidate> {
        let mirrors = self.options().mirrors.get(image.registry());
        let mirrors = mirrors.map(Vec::as_slice).unwrap_or_default();
        let mirrored = mirrors.iter().map(|mirror| {
            let (registry, prefix) = mirror_parts(&mirror.address);
            let repository = match prefix {
                "" => image.repository().to_owned(),
                prefix => format!("{prefix}/{}", image.repository()),
            };
            Candidate { registry: registry.to_owned(), repository }
        });
        let itself = mirrors.iter().all(|mirror| mirror.fallback).then(|| Candidate {
            registry: image.registry().to_owned(),
            repository: image.repository().to_owned(),
        });
        mirrored.chain(itself).collect()
    }

    pub(super) async fn manifest_anywhere(
        &self,
        image: &Reference,
    ) -> Result<(Descriptor, Vec<u8>), RegistryError> {
        let candidates = self.candidates(image);
        let last = candidates.len() - 1;
        let mut failed = Vec::new();
        for place in &candidates[..last] {
            match self.manifest_at(place, image, Tries::few(self)).await {
                Err(error) => failed.push(self.pass_over(image, place, error)),
                found => return found,
            }
        }
        let found = self.manifest_at(&candidates[last], image, Tries::new(self)).await;
        found.map_err(|error| mirrored(candidates[last].named(image, error), failed))
    }

    /// Says, once a mirror, why the next place is asked instead. That a mirror has not got something is
    /// nothing to say.
    fn pass_over(
        &self,
        image: &Reference,
        place: &Candidate,
        error: RegistryError,
    ) -> RegistryError {
        tracing::debug!(%error, mirror = place.registry, "next place");
        let is_news = !matches!(error, RegistryError::NotFound(_) | RegistryError::Offline(_));
        if is_news
            && let Some(told) = &self.options().on_passed_over
            && self.is_first_fault(&place.registry)
        {
            told(format!("a mirror of {} is passed over: {error}", image.registry()));
        }
        place.named(image, error)
    }

    async fn manifest_at(
        &self,
        place: &Candidate,
        image: &Reference,
        mut tries: Tries<'_>,
    ) -> Result<(Descriptor, Vec<u8>), RegistryError> {
        let subject = image.to_string();
        let scopes = pull_scope(&place.repository);
        loop {
            let tried = async {
                let site = self.site(&place.registry, Some(&place.repository)).await?;
                let ask = manifest_ask(&site, place, image, Method::GET, (&subject, &scopes));
                let answer = self.succeed(&site, &ask).await?;
                self.read_manifest(&site, &ask, answer, image.digest()).await
            };
            match tried.await {
                Ok(found) => return Ok(found),
                Err(failure) => tries.wait(failure).await?,
            }
        }
    }

    async fn read_manifest(
        &self,
        site: &Site,
        ask: &Ask<'_>,
        answer: Response,
        wanted: Option<Digest>,
    ) -> Result<(Descriptor, Vec<u8>), Failure> {
        let status = answer.status().as_u16();
        let said = digest_header(answer.headers());
        let kind = content_type(answer.headers());
        let url = shown_url(answer.url());
        let bytes = self.body(site, ask, answer, MANIFEST_BYTES_MAX).await?;
        let found = Digest::of(&bytes);
        if let Some(expected) = [wanted, said].into_iter().flatten().find(|digest| *digest != found)
        {
            let registry = site.registry.clone();
            return Err(RegistryError::DigestMismatch { registry, expected, found }.into());
        }
        match manifest_type(&bytes, kind.as_deref()) {
            Ok(media_type) => Ok((Descriptor::new(media_type, found, bytes.len() as u64), bytes)),
            Err(reason) => Err(RegistryError::Refused {
                registry: site.registry.clone(),
                url,
                status,
                reason,
                help: None,
            }
            .into()),
        }
    }

    pub(super) async fn resolve_anywhere(
        &self,
        image: &Reference,
    ) -> Result<Descriptor, RegistryError> {
        for place in self.candidates(image) {
            // A wrong answer is no answer: GET finds out who has it right, and says who has not.
            if let Ok(Some(found)) = self.head_manifest(&place, image).await {
                return Ok(found);
            }
        }
        self.manifest_anywhere(image).await.map(|(descriptor, _)| descriptor)
    }

    /// What HEAD says, when it says all that is needed; anything else is for GET to find out.
    pub(super) async fn head_manifest(
        &self,
        place: &Candidate,
        image: &Reference,
    ) -> Result<Option<Descriptor>, RegistryError> {
        let subject = image.to_string();
        let scopes = pull_scope(&place.repository);
        let tried = async {
            let site = self.site(&place.registry, Some(&place.repository)).await?;
            let ask = manifest_ask(&site, place, image, Method::HEAD, (&subject, &scopes));
            self.attempt(&site, &ask).await
        };
        let answer = match tried.await {
            Ok(answer) if answer.status().is_success() => answer,
            Ok(_) | Err(Failure { .. }) => return Ok(None),
        };
        let size = answer.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let kind = content_type(answer.headers()).map(MediaType::new);
        let kind = kind.filter(|kind| kind.is_manifest() || kind.is_index());
        let (Some(digest), Some(size), Some(kind)) = (digest_header(answer.headers()), size, kind)
        else {
            return Ok(None);
        };
        if let Some(expected) = image.digest().filter(|expected| *expected != digest) {
            let registry = place.registry.clone();
            return Err(RegistryError::DigestMismatch { registry, expected, found: digest });
        }
        Ok(Some(Descriptor::new(kind, digest, size)))
    }

    pub(super) async fn blob_anywhere(
        &self,
        image: &Reference,
        blob: &Descriptor,
        out: &mut dyn Sink,
        progress: &Progress<'_>,
    ) -> Result<(), RegistryError> {
        let candidates = self.candidates(image);
        let last = candidates.len() - 1;
        let mut landing = Landing::new(out, blob.size, progress);
        landing.begin_anew()?;
        let (mut index, mut failed) = (0, Vec::new());
        loop {
            let place = &candidates[index];
            if landing.done == 0 {
                landing.begun_by = index;
            }
            let tries = if index < last { Tries::few(self) } else { Tries::new(self) };
            let error = match self.blob_at(place, (image, blob), &mut landing, tries).await {
                Ok(()) => match landing.check(blob.digest) {
                    Ok(()) => return Ok(()),
                    Err(found) => {
                        landing.begin_anew()?;
                        if landing.begun_by != index {
                            continue; // The wrong bytes may be those of the place before.
                        }
                        let registry = place.registry.clone();
                        RegistryError::DigestMismatch { registry, expected: blob.digest, found }
                    }
                },
                Err(RegistryError::Local(error)) => return Err(error.into()),
                Err(error) => error,
            };
            if index == last {
                return Err(mirrored(place.named(image, error), failed));
            }
            failed.push(self.pass_over(image, place, error));
            index += 1;
        }
    }

    async fn blob_at(
        &self,
        place: &Candidate,
        (image, blob): (&Reference, &Descriptor),
        landing: &mut Landing<'_>,
        mut tries: Tries<'_>,
    ) -> Result<(), RegistryError> {
        let subject = format!("blob {} of {}", blob.digest, image.familiar_name());
        let scopes = pull_scope(&place.repository);
        loop {
            let before = landing.done;
            let tried = async {
                let site = self.site(&place.registry, Some(&place.repository)).await?;
                let mut ask = Ask {
                    method: Method::GET,
                    url: site.url(&format!("{}/blobs/{}", place.repository, blob.digest)),
                    headers: HeaderMap::new(),
                    payload: Payload::Empty,
                    action: Action::Pull,
                    subject: &subject,
                    scopes: &scopes,
                };
                if landing.done > 0 && landing.done == landing.size {
                    return Ok(());
                }
                if landing.done > 0 {
                    let range = HeaderValue::from_str(&format!("bytes={}-", landing.done));
                    ask.headers.insert(RANGE, range.expect("digits are a header"));
                }
                let answer = self.succeed(&site, &ask).await?;
                self.land(&site, &ask, answer, landing).await
            };
            match tried.await {
                Ok(()) => return Ok(()),
                Err(failure) => {
                    if landing.done > before {
                        tries.reset();
                    }
                    tries.wait(failure).await?;
                }
            }
        }
    }

    /// Takes one answer as far as it goes.
    async fn land(
        &self,
        site: &Site,
        ask: &Ask<'_>,
        mut answer: Response,
        landing: &mut Landing<'_>,
    ) -> Result<(), Failure> {
        let start = if answer.status() == StatusCode::PARTIAL_CONTENT {
            range_start(answer.headers()).unwrap_or(landing.done)
        } else {
            0
        };
        let broken = |reason: String, again| {
            let reason = format!("{} {}: {reason}", ask.method, shown_url(&ask.url));
            Failure::new(RegistryError::Network { registry: site.registry.clone(), reason }, again)
        };
        if start > landing.done {
            return Err(broken(
                format!("sent a range from {start}, wanted {}", landing.done),
                Again::Yes,
            ));
        }
        let mut skip = landing.done - start;
        let limits = self.limits();
        let mut window = (Instant::now(), 0_u64);
        loop {
            let chunk = timeout(limits.slow_window, answer.chunk())
                .await
                .map_err(|_| silent(&site.registry, &ask.method, &ask.url, limits.slow_window))?
                .map_err(|e| transport_failure(&site.registry, &ask.method, &ask.url, e))?;
            let Some(chunk) = chunk else { break };
            window.1 += chunk.len() as u64;
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let fresh = chunk.slice(usize::try_from(skipped).expect("at most a chunk")..);
            if landing.done + fresh.len() as u64 > landing.size {
                let reason = format!("sent more than the {} bytes announced", landing.size);
                return Err(broken(reason, Again::Never));
            }
            landing.take(&fresh).map_err(RegistryError::from)?;
            if window.0.elapsed() >= limits.slow_window {
                if window.1 < limits.slow_bytes {
                    return Err(silent(&site.registry, &ask.method, &ask.url, limits.slow_window));
                }
                window = (Instant::now(), 0);
            }
        }
        if landing.done < landing.size {
            let reason = format!("ended after {} of {} bytes", landing.done, landing.size);
            return Err(broken(reason, Again::Yes));
        }
        Ok(())
    }
}

/// Where the bytes of a blob go.
pub trait Sink: Write + Send {
    /// Drops what was written: the blob begins anew.
    ///
    /// # Errors
    ///
    /// When the local side fails.
    fn begin_anew(&mut self) -> io::Result<()>;
}

impl Sink for Vec<u8> {
    fn begin_anew(&mut self) -> io::Result<()> {
        self.clear();
        Ok(())
    }
}

impl Sink for File {
    fn begin_anew(&mut self) -> io::Result<()> {
        self.set_len(0)?;
        self.rewind()
    }
}

/// A blob on its way to its file.
struct Landing<'a> {
    out: &'a mut dyn Sink,
    hasher: Hasher,
    done: u64,
    size: u64,
    /// Index of the place that its first bytes came from.
    begun_by: usize,
    progress: &'a Progress<'a>,
}

impl<'a> Landing<'a> {
    fn new(out: &'a mut dyn Sink, size: u64, progress: &'a Progress<'a>) -> Self {
        Self { out, hasher: Hasher::new(), done: 0, size, begun_by: 0, progress }
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        (self.hasher, self.done) = (Hasher::new(), 0);
        self.out.begin_anew()
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        if self.done < self.size {
            (self.progress)(self.done);
        }
        Ok(())
    }

    /// Whether all of it is what was wanted, which is when it is said to be there; the digest that it has
    /// when not.
    fn check(&mut self, expected: Digest) -> Result<(), Digest> {
        let found = std::mem::take(&mut self.hasher).finish();
        if found != expected {
            return Err(found);
        }
        (self.progress)(self.size);
        Ok(())
    }
}

/// What the last place said, with what those before it said.
fn mirrored(error: RegistryError, mirrors: Vec<RegistryError>) -> RegistryError {
    match mirrors.is_empty() {
        true => error,
        false => RegistryError::Mirrored { error: Box::new(error), mirrors },
    }
}

/// Host and port, and the path below which a mirror keeps what it mirrors.
pub(super) fn mirror_parts(address: &str) -> (&str, &str) {
    let address = address.trim_start_matches("https://").trim_end_matches('/');
    address.split_once('/').unwrap_or((address, ""))
}

fn manifest_ask<'a>(
    site: &Site,
    place: &Candidate,
    image: &Reference,
    method: Method,
    (subject, scopes): (&'a str, &'a [String]),
) -> Ask<'a> {
    let name = match (image.digest(), image.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    };
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
    Ask {
        method,
        url: site.url(&format!("{}/manifests/{name}", place.repository)),
        headers,
        payload: Payload::Empty,
        action: Action::Pull,
        subject,
        scopes,
    }
}

/// What a document is: its own word first, then the header's.
fn manifest_type(bytes: &[u8], header: Option<&str>) -> Result<MediaType, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: Option<u64>,
        media_type: Option<String>,
    }
    let Ok(shape) = serde_json::from_slice::<Shape>(bytes) else {
        let kind = header.unwrap_or("no type");
        return Err(format!("the answer is no manifest ({kind}): {}", super::answer::words(bytes)));
    };
    if shape.schema_version == Some(1) {
        return Err(
            "the image has Docker's schema 1, which is not supported; push it anew".to_owned()
        );
    }
    let kinds = [shape.media_type.as_deref(), header].into_iter().flatten().map(MediaType::new);
    kinds.into_iter().find(|kind| kind.is_manifest() || kind.is_index()).ok_or_else(|| {
        format!("the answer is neither a manifest nor an index ({})", header.unwrap_or("no type"))
    })
}

pub(super) fn digest_header(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DIGEST_HEADER)?.to_str().ok()?.trim().parse().ok()
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or(value).trim().to_ascii_lowercase())
}

/// First byte of `Content-Range: bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    value.trim().strip_prefix("bytes")?.trim().split('-').next()?.trim().parse().ok()
}
