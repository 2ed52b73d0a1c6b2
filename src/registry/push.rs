//! Sending documents and blobs: ask, mount, or else upload.

use std::path::Path;

use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use url::Url;

use super::{
    Client, Credentials, RegistryError, Uploaded,
    pull::{DIGEST_HEADER, digest_header, pull_scope},
    retry::{Failure, Tries},
    site::Site,
    transport::{Action, Ask, Payload, Progress},
    upload::{Content, Session, Way},
};
use crate::oci::{Descriptor, Digest, MediaType, Reference};

/// Repositories that a blob is mounted from, at most: each is a request.
const MOUNTS_MAX: usize = 3;
/// Longest answer of Gitea about its version, in bytes.
const VERSION_BYTES_MAX: usize = 4 << 10;
/// The user that the CNOE stack makes.
const GITEA_OWNER: &str = "giteaadmin";

/// Where and as what something is sent.
pub(super) struct Target<'a> {
    image: &'a Reference,
    subject: String,
    scopes: Vec<String>,
}

impl Target<'_> {
    pub(super) fn ask(&self, method: Method, url: Url) -> Ask<'_> {
        Ask {
            method,
            url,
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            action: Action::Push,
            subject: &self.subject,
            scopes: &self.scopes,
        }
    }
}

/// A blob to send, and the ways to do without.
pub(super) struct Cargo<'a> {
    pub(super) blob: &'a Descriptor,
    /// The file with its bytes; `None` when there is only the hope that they are there already.
    pub(super) source: Option<&'a Path>,
    pub(super) mount_from: &'a [String],
    pub(super) progress: &'a Progress<'a>,
}

impl<'a> Cargo<'a> {
    fn content(&self) -> Option<Content<'a>> {
        let Self { blob, source, progress, .. } = *self;
        source.map(|path| Content { blob, path, progress })
    }
}

fn push_scope(image: &Reference) -> String {
    format!("repository:{}:pull,push", image.repository())
}

impl Client {
    pub(super) async fn send_blob(
        &self,
        image: &Reference,
        mut cargo: Cargo<'_>,
    ) -> Result<Option<Uploaded>, RegistryError> {
        let subject = format!("blob {} to {}", cargo.blob.digest, image.familiar_name());
        let target = Target { image, subject, scopes: vec![push_scope(image)] };
        let (mut tries, mut way) = (Tries::new(self), Way::default());
        loop {
            let before = way.furthest;
            let failure = match self.send_once(&target, &cargo, &mut way).await {
                Ok(uploaded) => return Ok(uploaded),
                Err(failure) => self.with_help(image, failure).await,
            };
            // What one mount did wrong is not tried again.
            cargo.mount_from = &[];
            if way.furthest > before {
                tries.reset();
            }
            tries.wait(failure).await?;
        }
    }

    async fn send_once(
        &self,
        target: &Target<'_>,
        cargo: &Cargo<'_>,
        way: &mut Way,
    ) -> Result<Option<Uploaded>, Failure> {
        let site = self.site_for(target.image).await?;
        let content = cargo.content();
        if let Some(content) = content
            && self.resume(&site, target, content, way).await?
        {
            return Ok(Some(Uploaded::Sent));
        }
        if self.has_blob(&site, target, cargo.blob.digest).await? {
            return Ok(Some(Uploaded::Existed));
        }
        let session = match self.mount_any(&site, target, cargo).await? {
            Mount::Done => return Ok(Some(Uploaded::Mounted)),
            Mount::Session(session) => Some(session),
            Mount::Refused => None,
        };
        let Some(content) = content else {
            if let Some(unused) = session {
                self.forget(&site, target, unused).await;
            }
            return Ok(None);
        };
        let session = match session {
            Some(session) => session,
            None => self.open_session(&site, target).await?,
        };
        self.upload(&site, target, content, (session, way)).await?;
        Ok(Some(Uploaded::Sent))
    }

    async fn has_blob(
        &self,
        site: &Site,
        target: &Target<'_>,
        digest: Digest,
    ) -> Result<bool, Failure> {
        let url = site.url(&format!("{}/blobs/{digest}", target.image.repository()));
        let ask = target.ask(Method::HEAD, url);
        let answer = self.attempt(site, &ask).await?;
        match answer.status() {
            status if status.is_success() => {
                Ok(digest_header(answer.headers()).is_none_or(|found| found == digest))
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(false),
            _ => Err(self.refusal(site, &ask, answer).await),
        }
    }

    /// Mounts from the first repository that has it. Who has not opens an upload instead; one is enough.
    async fn mount_any(
        &self,
        site: &Site,
        target: &Target<'_>,
        cargo: &Cargo<'_>,
    ) -> Result<Mount, Failure> {
        let mut outcome = Mount::Refused;
        let others = cargo.mount_from.iter().filter(|from| *from != target.image.repository());
        for from in others.take(MOUNTS_MAX) {
            match self.mount(site, target, cargo.blob.digest, from).await? {
                Mount::Refused => {}
                answered @ (Mount::Done | Mount::Session(_)) => {
                    if let Mount::Session(unused) = std::mem::replace(&mut outcome, answered) {
                        self.forget(site, target, unused).await;
                    }
                }
            }
            if matches!(outcome, Mount::Done) {
                break;
            }
        }
        Ok(outcome)
    }

    async fn mount(
        &self,
        site: &Site,
        target: &Target<'_>,
        digest: Digest,
        from: &str,
    ) -> Result<Mount, Failure> {
        let mut url = site.url(&format!("{}/blobs/uploads/", target.image.repository()));
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        let mut scopes = target.scopes.clone();
        scopes.extend(pull_scope(from));
        let ask = Ask { scopes: &scopes, ..target.ask(Method::POST, url) };
        // A mount is an offer: whatever goes wrong with it, there is the upload.
        let Ok(answer) = self.attempt(site, &ask).await else { return Ok(Mount::Refused) };
        match answer.status() {
            StatusCode::CREATED => {
                let named = digest_header(answer.headers());
                let done = match named {
                    Some(found) => found == digest,
                    None => self.has_blob(site, target, digest).await?,
                };
                Ok(if done { Mount::Done } else { Mount::Refused })
            }
            StatusCode::ACCEPTED => Ok(Mount::Session(Session::of(site, &ask, &answer)?)),
            _ => Ok(Mount::Refused),
        }
    }

    pub(super) async fn open_session(
        &self,
        site: &Site,
        target: &Target<'_>,
    ) -> Result<Session, Failure> {
        let url = site.url(&format!("{}/blobs/uploads/", target.image.repository()));
        let ask = target.ask(Method::POST, url);
        let answer = self.succeed(site, &ask).await?;
        Ok(Session::of(site, &ask, &answer)?)
    }

    pub(super) async fn send_manifest(
        &self,
        image: &Reference,
        media_type: &MediaType,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(bytes);
        let name = image.tag().map_or_else(|| digest.to_string(), str::to_owned);
        let target = Target { image, subject: image.to_string(), scopes: vec![push_scope(image)] };
        let body = Bytes::copy_from_slice(bytes);
        let kind = HeaderValue::from_str(media_type.as_str())
            .map_err(|_| RegistryError::Options(format!("`{media_type}` is no media type")))?;
        let mut tries = Tries::new(self);
        loop {
            let tried = async {
                let site = self.site_for(image).await?;
                let url = site.url(&format!("{}/manifests/{name}", image.repository()));
                let mut ask = target.ask(Method::PUT, url);
                ask.headers.insert(CONTENT_TYPE, kind.clone());
                ask.payload = Payload::Bytes(&body);
                let answer = self.succeed(&site, &ask).await?;
                check_digest(&site, &answer, digest)
            };
            match tried.await {
                Ok(()) => return Ok(digest),
                Err(failure) => {
                    let failure = self.with_help(image, failure).await;
                    tries.wait(failure).await?;
                }
            }
        }
    }

    /// Adds the way out where the registry turns out to be a Gitea that was given no owner.
    async fn with_help(&self, image: &Reference, mut failure: Failure) -> Failure {
        let wants_owner = !image.repository().contains('/')
            && image.registry() != "docker.io"
            && failure.again == super::retry::Again::Never;
        if !wants_owner
            || !matches!(*failure.error, RegistryError::Auth { .. } | RegistryError::Refused { .. })
        {
            return failure;
        }
        let Ok(site) = self.site_for(image).await else { return failure };
        if !self.is_gitea(&site).await {
            return failure;
        }
        let owner = match &site.credentials {
            Some(Credentials::Basic { username, .. }) => username.to_ascii_lowercase(),
            _ => GITEA_OWNER.to_owned(),
        };
        let meant = image.with_repository(&format!("{owner}/{}", image.repository()));
        let text = format!("Gitea needs an owner: did you mean {meant}?");
        if let RegistryError::Auth { help, .. } = &mut *failure.error {
            *help = text;
        } else if let RegistryError::Refused { help, .. } = &mut *failure.error {
            *help = Some(text);
        }
        failure
    }

    pub(super) async fn is_gitea(&self, site: &Site) -> bool {
        #[derive(serde::Deserialize)]
        struct Version {
            #[serde(rename = "version")]
            _version: String,
        }
        let mut url = site.base.clone();
        url.set_path("/api/v1/version");
        let ask = Ask {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            action: Action::Pull,
            subject: "the version",
            scopes: &[],
        };
        let Ok(answer) = self.succeed(site, &ask).await else { return false };
        let body = self.body(site, &ask, answer, VERSION_BYTES_MAX).await.unwrap_or_default();
        serde_json::from_slice::<Version>(&body).is_ok()
    }
}

/// What a registry made of the offer to mount.
enum Mount {
    Done,
    Session(Session),
    Refused,
}

pub(super) fn check_digest(
    site: &Site,
    answer: &Response,
    expected: Digest,
) -> Result<(), Failure> {
    let Some(said) = answer.headers().get(DIGEST_HEADER) else { return Ok(()) };
    match said.to_str().ok().and_then(|said| said.trim().parse::<Digest>().ok()) {
        Some(found) if found != expected => {
            let registry = site.registry.clone();
            Err(RegistryError::DigestMismatch { registry, expected, found }.into())
        }
        _ => Ok(()),
    }
}
