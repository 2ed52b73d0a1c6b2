//! The client of the distribution API (`/v2/`): challenge, token, upload, range, mirror, retry.
//!
//! Knows nothing of the store or of images: it moves documents and blobs by digest.

mod answer;
mod auth;
mod challenge;
mod download;
mod gate;
mod ping;
mod pull;
mod push;
mod retry;
mod site;
mod transport;
mod upload;

#[cfg(test)]
mod answers;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod leaks;
#[cfg(test)]
mod mirrors;
#[cfg(test)]
pub(crate) mod rounds;
#[cfg(test)]
mod scripted;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::Path,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use thiserror::Error;
use tokio::sync::OnceCell;
use url::Url;

pub use self::download::{DownloadError, DownloadTerms, Downloaded, Validators};
pub use self::gate::Gate;
pub use self::pull::Sink;
pub use self::site::Reach;
use self::{retry::Limits, site::Site};
use crate::{
    oci::{Descriptor, Digest, MediaType, Reference},
    trust::parse_pem,
};

/// A client for any number of registries. Cheap to clone; connections and tokens are shared.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// A place for a registry, filled by who needs it first.
type SiteCell = Arc<OnceCell<Arc<Site>>>;

/// What the clones of a client share.
struct Inner {
    options: ClientOptions,
    limits: Limits,
    /// Registries by name, each looked at once; and with the credentials of a repository.
    sites: Mutex<HashMap<(String, Option<String>), SiteCell>>,
    /// HTTP clients (connection pools) by host and port.
    http: Mutex<HashMap<(String, Reach), reqwest::Client>>,
    /// Mirrors that did not do what was asked, and were told of.
    passed_over: Mutex<BTreeSet<String>>,
    /// What somebody is moving right now.
    turns: Mutex<HashMap<Travel, Weak<tokio::sync::Mutex<()>>>>,
    /// The platform's certificates, read when they are first needed.
    roots: OnceLock<rustls::RootCertStore>,
}

/// Bytes on their way, by their digest: the same ones need not travel twice at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Travel {
    /// Into the store, from wherever they can be had.
    Here(Digest),
    /// Into a repository, by its full name ([`Reference::name`]).
    To(String, Digest),
}

/// Gives the credentials of a registry, by host and port; with a repository those that are for it, or for
/// a namespace that it is in, and not for all of the registry.
pub type CredentialsFor = Arc<dyn Fn(&str, Option<&str>) -> Option<Found> + Send + Sync>;

/// Credentials that nobody gave for a registry by name.
pub struct Found {
    /// The credentials.
    pub credentials: Credentials,
    /// Where they were found, in words.
    pub place: String,
}

/// Which credentials were sent to a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// None.
    Nothing,
    /// Those that were given for it ([`RegistryOptions::credentials`]).
    Given,
    /// Those that were found, and where ([`ClientOptions::credentials`]).
    Found(String),
}

/// Takes what failed, which try comes next, and the wait before it.
pub type OnRetry = Arc<dyn Fn(&str, u32, Duration) + Send + Sync>;

/// Takes, in one line, which mirror is passed over and what it said.
pub type OnPassedOver = Arc<dyn Fn(String) + Send + Sync>;

/// What a client is told when it is made; nothing is read from the environment or the home folder.
#[derive(Default)]
pub struct ClientOptions {
    /// Settings by registry host and port.
    pub registries: BTreeMap<String, RegistryOptions>,
    /// Mirrors by registry, in order of trial.
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// Asked for credentials of a registry that `registries` gives none for.
    pub credentials: Option<CredentialsFor>,
    /// Folder with one PEM file a trusted registry (`HOST:PORT.pem`), as `cert trust` writes.
    pub trusted_certificates: Option<std::path::PathBuf>,
    /// Names that resolve to fixed addresses (`gitea.cnoe.localtest.me:8443` → 127.0.0.1).
    pub resolve: BTreeMap<String, std::net::SocketAddr>,
    /// Proxies; loopback is always reached directly.
    pub proxies: ProxyOptions,
    /// Registries that may be asked, when not all may; no other place is then.
    pub only: Option<BTreeSet<String>>,
    /// Told about retries: what failed, which try comes next, the wait before it.
    pub on_retry: Option<OnRetry>,
    /// Told, once a mirror, about one that fails while the next place is asked; not about one that has
    /// not got something.
    pub on_passed_over: Option<OnPassedOver>,
}

/// Proxies as the usual environment variables name them; the caller reads those.
#[derive(Clone, Default)]
pub struct ProxyOptions {
    /// URL of the proxy for HTTPS (`HTTPS_PROXY`).
    pub https: Option<String>,
    /// URL of the proxy for plain HTTP (`HTTP_PROXY`).
    pub http: Option<String>,
    /// Hosts that are reached directly (`NO_PROXY`).
    pub exempt: Option<String>,
}

impl ProxyOptions {
    /// Whether there is one.
    const fn any(&self) -> bool {
        self.https.is_some() || self.http.is_some()
    }

    /// Names of the proxies.
    fn hosts(&self) -> BTreeSet<String> {
        let urls = [&self.https, &self.http].into_iter().flatten();
        // As reqwest takes them: a host and port alone is one that speaks HTTP.
        let parsed = urls.filter_map(|text| match text.contains("://") {
            true => Url::parse(text).ok(),
            false => Url::parse(&format!("http://{text}")).ok(),
        });
        parsed.filter_map(|url| url.host_str().map(str::to_owned)).collect()
    }
}

/// How to talk to one registry.
#[derive(Clone, Default)]
pub struct RegistryOptions {
    /// Plain HTTP although not loopback.
    pub plain_http: bool,
    /// TLS without checking who answers; plain HTTP is tried when there is no TLS.
    pub insecure: bool,
    /// PEM text of certificates to trust for this registry.
    pub ca_pem: Option<Vec<u8>>,
    /// SHA-256 of the certificate to trust.
    pub pin: Option<[u8; 32]>,
    /// Credentials.
    pub credentials: Option<Credentials>,
    /// Realm origins besides the registry's own that may be sent the password.
    pub auth_realms: Vec<String>,
    /// Port that it really answers at, when that is not the one of its name.
    pub port: Option<u16>,
}

/// Another address for a registry.
#[derive(Clone)]
pub struct Mirror {
    /// Host, port and optional path prefix.
    pub address: String,
    /// Whether the registry itself is asked when the mirror has not got it.
    pub fallback: bool,
}

impl Mirror {
    /// Host and port of the address.
    #[must_use]
    pub fn host(&self) -> &str {
        pull::mirror_parts(&self.address).0
    }
}

/// Who we say we are. Never shown, not even in debug output.
#[derive(Clone)]
pub enum Credentials {
    /// User name and password, or personal access token.
    Basic {
        /// Name.
        username: String,
        /// Password or token.
        password: String,
    },
    /// An identity token to be exchanged for access tokens.
    IdentityToken(String),
    /// A bearer token as it is.
    Bearer(String),
}

impl Credentials {
    /// The part that nobody may see.
    fn secret(&self) -> &str {
        match self {
            Self::Basic { password: secret, .. }
            | Self::IdentityToken(secret)
            | Self::Bearer(secret) => secret,
        }
    }
}

/// Why a registry did not do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// 401 or 403 with the credentials that we have (or without any).
    #[error("{registry} refused access to {what}: {reason}")]
    Auth {
        /// Host and port.
        registry: String,
        /// Repository and action.
        what: String,
        /// The registry's words, and whether credentials were sent.
        reason: String,
        /// Which credentials it has seen.
        sent: Sent,
        /// The way out.
        help: String,
    },
    /// The certificate is not trusted, expired, or for another name.
    #[error("the certificate of {registry} is not trusted: {reason}")]
    Tls {
        /// Host and port.
        registry: String,
        /// Why.
        reason: String,
        /// SHA-256 of what was presented, `AA:BB:…`, when something was.
        fingerprint: Option<String>,
        /// Subject and validity of what was presented.
        presented: Option<String>,
    },
    /// No such image, repository or blob.
    #[error("{0} not found")]
    NotFound(String),
    /// Not reachable, or failing after all retries.
    #[error("{registry}: {reason}")]
    Network {
        /// Host and port.
        registry: String,
        /// Method, URL, what happened, how often it was tried.
        reason: String,
    },
    /// It answered, and refused for another reason.
    #[error("{registry}: {url}: HTTP {status}: {reason}")]
    Refused {
        /// Host and port.
        registry: String,
        /// URL without query.
        url: String,
        /// Status.
        status: u16,
        /// The registry's words.
        reason: String,
        /// The way out, when there is a known one.
        help: Option<String>,
    },
    /// What came does not have the digest that was asked for.
    #[error("{registry} sent content with digest {found} for {expected}")]
    DigestMismatch {
        /// Host and port.
        registry: String,
        /// Asked for.
        expected: Digest,
        /// Got.
        found: Digest,
    },
    /// Reading or writing the local side of a transfer failed.
    #[error("{0}")]
    Local(#[from] std::io::Error),
    /// Neither the registry has it nor its mirrors.
    #[error("{error}")]
    Mirrored {
        /// What the last place said: the registry itself, when it may be asked.
        #[source]
        error: Box<RegistryError>,
        /// What the mirrors before it said, in order, each with its name.
        mirrors: Vec<RegistryError>,
    },
    /// It would have to be asked, and may not be.
    #[error("{0} is not asked: this is offline")]
    Offline(String),
    /// The options make no sense (bad PEM, bad address).
    #[error("{0}")]
    Options(String),
}

/// How a blob came to be at its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// It was there.
    Existed,
    /// It was mounted from another repository.
    Mounted,
    /// Its bytes were sent.
    Sent,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::IdentityToken(_) => "IdentityToken(…)",
            Self::Bearer(_) => "Bearer(…)",
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client with these options.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Options`].
    pub fn new(options: ClientOptions) -> Result<Self, RegistryError> {
        Self::with_limits(options, Limits::default())
    }

    fn with_limits(mut options: ClientOptions, limits: Limits) -> Result<Self, RegistryError> {
        let lower = |(name, value): (String, RegistryOptions)| (name.to_ascii_lowercase(), value);
        options.registries =
            std::mem::take(&mut options.registries).into_iter().map(lower).collect();
        for (name, registry) in &options.registries {
            if let Some(pem) = &registry.ca_pem {
                parse_pem(pem, &format!("certificates of {name}"))
                    .map_err(|error| RegistryError::Options(error.to_string()))?;
            }
        }
        for mirror in options.mirrors.values().flatten() {
            let (registry, prefix) = pull::mirror_parts(&mirror.address);
            let sample = if prefix.is_empty() { "x".to_owned() } else { format!("{prefix}/x") };
            let reference = format!("{registry}/{sample}").parse::<Reference>();
            if !reference.is_ok_and(|reference| reference.registry() == registry) {
                let address = &mirror.address;
                let expected = "expected HOST[:PORT][/PREFIX]";
                return Err(RegistryError::Options(format!("mirror `{address}`: {expected}")));
            }
        }
        let inner = Inner {
            options,
            limits,
            sites: Mutex::default(),
            http: Mutex::default(),
            passed_over: Mutex::default(),
            turns: Mutex::default(),
            roots: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether only some registries may be asked.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.options().only.is_some()
    }

    /// Refuses to ask a place that may not be asked.
    fn permit(&self, place: &str) -> Result<(), RegistryError> {
        match &self.options().only {
            Some(only) if !only.contains(place) => Err(RegistryError::Offline(place.to_owned())),
            _ => Ok(()),
        }
    }

    fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Whether a mirror has not failed before; from now on it has.
    fn is_first_fault(&self, mirror: &str) -> bool {
        let mut known = self.inner.passed_over.lock().expect("nobody panics while holding it");
        known.insert(mirror.to_owned())
    }

    /// Gets a manifest or index, verified against the reference's digest when it has one.
    ///
    /// # Errors
    ///
    /// Any [`RegistryError`].
    pub async fn manifest(
        &self,
        image: &Reference,
    ) -> Result<(Descriptor, Vec<u8>), RegistryError> {
        self.manifest_anywhere(image).await
    }

    /// Descriptor of what a reference points at, by HEAD where possible.
    ///
    /// # Errors
    ///
    /// Any [`RegistryError`].
    pub async fn resolve(&self, image: &Reference) -> Result<Descriptor, RegistryError> {
        self.resolve_anywhere(image).await
    }

    /// What the tag of `image` points at in the registry itself, mirrors aside: one HEAD. `None` when
    /// there is no such tag, or HEAD does not say.
    ///
    /// # Errors
    ///
    /// [`RegistryError::DigestMismatch`] when `image` has a digest and the answer another.
    pub async fn peek(&self, image: &Reference) -> Result<Option<Descriptor>, RegistryError> {
        let place = pull::Candidate {
            registry: image.registry().to_owned(),
            repository: image.repository().to_owned(),
        };
        self.head_manifest(&place, image).await
    }

    /// Streams a blob into `out`, resuming by range after failures; verified over the whole, and begun
    /// anew from the next place when a mirror's bytes are wrong. `progress` is told bytes so far, and
    /// all of them when they are verified. On an error `out` holds garbage.
    ///
    /// # Errors
    ///
    /// Any [`RegistryError`].
    pub async fn pull_blob(
        &self,
        image: &Reference,
        blob: &Descriptor,
        out: &mut dyn Sink,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        self.blob_anywhere(image, blob, out, progress).await
    }

    /// Makes sure the repository of `image` has a blob: asks, mounts from `mount_from` (repositories
    /// of the same registry), or else sends the file at `source`.
    ///
    /// # Errors
    ///
    /// Any [`RegistryError`].
    #[expect(clippy::too_many_arguments, reason = "each is something else")]
    pub async fn push_blob(
        &self,
        image: &Reference,
        blob: &Descriptor,
        source: &Path,
        mount_from: &[String],
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Uploaded, RegistryError> {
        let cargo = push::Cargo { blob, source: Some(source), mount_from, progress };
        let uploaded = self.send_blob(image, cargo).await?;
        Ok(uploaded.expect("there is a source to send"))
    }

    /// As [`Client::push_blob`] without anything to send: `None` when the blob is neither there nor
    /// can be mounted.
    ///
    /// # Errors
    ///
    /// Any [`RegistryError`].
    pub async fn offer_blob(
        &self,
        image: &Reference,
        blob: &Descriptor,
        mount_from: &[String],
    ) -> Result<Option<Uploaded>, RegistryError> {
        let cargo = push::Cargo { blob, source: None, mount_from, progress: &|_| {} };
        self.send_blob(image, cargo).await
    }

    /// Puts a manifest or index under the tag of `image`, or under its digest when it has no tag.
    ///
    /// # Errors
    ///
    /// Any [`RegistryError`].
    pub async fn push_manifest(
        &self,
        image: &Reference,
        media_type: &MediaType,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        self.send_manifest(image, media_type, bytes).await
    }

    /// Waits until no other user of this client and its clones moves the same, then holds it until the
    /// result is dropped: two images with one base fetch it once, two tags of one image send it once.
    pub async fn turn(&self, travel: Travel) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut turns = self.inner.turns.lock().expect("nobody panics while holding it");
            turns.retain(|_, turn| turn.strong_count() > 0);
            let held = turns.get(&travel).and_then(Weak::upgrade);
            let lock = held.unwrap_or_default();
            turns.insert(travel, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }

    /// Connects, and asks `GET /v2/` with the credentials at hand: what was found, one fact a line.
    ///
    /// # Errors
    ///
    /// Any [`RegistryError`].
    pub async fn ping(&self, registry: &str) -> Result<Vec<String>, RegistryError> {
        self.look_at(registry).await
    }
}
