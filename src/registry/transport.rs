//! One request and its answer: redirects by hand, limits on time and size, errors put into words.
//!
//! The `Authorization` header goes to the registry's own origin and nowhere else.

use std::{
    error::Error as StdError,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use reqwest::{
    Method, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    time::timeout,
};
use tokio_util::io::ReaderStream;
use url::Url;

use super::{
    Client, RegistryError,
    answer::{excerpt, scrub, shown_url, words},
    retry::{Again, Failure, Limits, retry_after},
    site::{Site, same_origin},
};
use crate::trust::refusal_in;

/// Redirects that are followed.
pub(super) const HOPS_MAX: usize = 5;
/// Longest error body that is read, in bytes.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// How much of a file is read at once.
const FILE_CHUNK_BYTES: usize = 256 << 10;
/// How often the caller hears about an upload.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

pub(super) type Progress<'a> = dyn Fn(u64) + Send + Sync + 'a;

/// What is sent with a request.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    Empty,
    Bytes(&'a Bytes),
    File(FilePart<'a>),
}

/// Some bytes of a file.
#[derive(Clone, Copy)]
pub(super) struct FilePart<'a> {
    pub(super) path: &'a Path,
    /// Bytes of the whole file.
    pub(super) size: u64,
    pub(super) start: u64,
    pub(super) bytes: u64,
    /// Told bytes of the file so far.
    pub(super) progress: &'a Progress<'a>,
}

/// What a request wants to do, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Only to see who is there.
    Look,
    Pull,
    Push,
}

/// One request.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) payload: Payload<'a>,
    pub(super) action: Action,
    /// What it is about, for messages.
    pub(super) subject: &'a str,
    /// What a token has to permit.
    pub(super) scopes: &'a [String],
}

/// What came of looking whether somebody answers.
pub(super) struct ProbeFailure {
    pub(super) speaks_no_tls: bool,
    pub(super) failure: Failure,
}

impl Client {
    /// Whether anything that speaks HTTP answers; remembers how it asks for authentication.
    pub(super) async fn probe(&self, site: &Site) -> Result<(), ProbeFailure> {
        let url = site.url("");
        let request = site.http.get(url.clone()).send();
        let sent = match timeout(self.limits().answer, request).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let speaks_no_tls = site.base.scheme() == "https" && is_no_tls(&error);
                let failure = transport_failure(&site.registry, &Method::GET, &url, error);
                Err(ProbeFailure { speaks_no_tls, failure })
            }
            Err(_) => {
                let failure = silent(&site.registry, &Method::GET, &url, self.limits().answer);
                Err(ProbeFailure { speaks_no_tls: false, failure })
            }
        };
        let response = sent?;
        if response.status() == StatusCode::UNAUTHORIZED {
            Self::remember_challenge(site, response.headers());
        }
        Ok(())
    }

    /// Sends a request, authenticating once when that is asked for. The answer may have any status
    /// but 401.
    pub(super) async fn attempt(&self, site: &Site, ask: &Ask<'_>) -> Result<Response, Failure> {
        let mut authorization = self.authorization(site, ask.scopes).await?;
        let mut answer = self.follow(site, ask, authorization.as_ref()).await?;
        if answer.status() == StatusCode::UNAUTHORIZED && same_origin(answer.url(), &site.base) {
            Self::remember_challenge(site, answer.headers());
            Self::forget_grant(site, ask.scopes).await;
            authorization = self.authorization(site, ask.scopes).await?;
            if authorization.is_some() {
                answer = self.follow(site, ask, authorization.as_ref()).await?;
            }
        }
        if answer.status() == StatusCode::UNAUTHORIZED {
            return Err(self.refusal(site, ask, answer).await);
        }
        Ok(answer)
    }

    /// As [`Client::attempt`], and any status but success is a failure.
    pub(super) async fn succeed(&self, site: &Site, ask: &Ask<'_>) -> Result<Response, Failure> {
        let answer = self.attempt(site, ask).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(self.refusal(site, ask, answer).await)
    }

    async fn follow(
        &self,
        site: &Site,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut url = ask.url.clone();
        for _ in 0..=HOPS_MAX {
            let own = same_origin(&url, &site.base);
            let http = if own { site.http.clone() } else { self.foreign_http(&url)? };
            let mut headers = ask.headers.clone();
            if let (true, Some(value)) = (own, authorization) {
                headers.insert(AUTHORIZATION, value.clone());
            }
            let request = http.request(ask.method.clone(), url.clone()).headers(headers);
            let answer = self.send(site, ask, request).await?;
            if !answer.status().is_redirection() || answer.status() == StatusCode::NOT_MODIFIED {
                return Ok(answer);
            }
            url = next_hop(site, ask, &url, &answer)?;
        }
        let reason =
            format!("{} {}: more than {HOPS_MAX} redirects", ask.method, shown_url(&ask.url));
        Err(RegistryError::Network { registry: site.registry.clone(), reason }.into())
    }

    async fn send(
        &self,
        site: &Site,
        ask: &Ask<'_>,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, Failure> {
        let failed = |error| transport_failure(&site.registry, &ask.method, &ask.url, error);
        let reading = matches!(ask.method, Method::GET | Method::HEAD);
        let wait = if reading { self.limits().answer } else { self.limits().answer_to_write };
        let request = match ask.payload {
            Payload::Empty if reading => request,
            Payload::Empty => request.header(CONTENT_LENGTH, 0),
            Payload::Bytes(bytes) => request.body(bytes.clone()),
            Payload::File(part) => {
                let file = part.open().await.map_err(RegistryError::from)?;
                let sent = Arc::default();
                let request = request.header(CONTENT_LENGTH, part.bytes);
                let request = request.body(part.body(file, Arc::clone(&sent)));
                let watched = Watched { limits: self.limits(), part, sent };
                return match watched.send(request).await {
                    Some(answer) => answer.map_err(failed),
                    None => Err(silent(&site.registry, &ask.method, &ask.url, wait)),
                };
            }
        };
        match timeout(wait, request.send()).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(silent(&site.registry, &ask.method, &ask.url, wait)),
        }
    }

    /// Reads a body that must not be longer than `bytes_max`.
    pub(super) async fn body(
        &self,
        site: &Site,
        ask: &Ask<'_>,
        answer: Response,
        bytes_max: usize,
    ) -> Result<Vec<u8>, Failure> {
        match self.body_up_to(site, ask, answer, bytes_max).await? {
            (body, Rest::None) => Ok(body),
            (_, Rest::Some) => Err(RegistryError::Network {
                registry: site.registry.clone(),
                reason: format!(
                    "{} {}: the answer is longer than {bytes_max} bytes",
                    ask.method,
                    shown_url(&ask.url)
                ),
            }
            .into()),
        }
    }

    async fn body_up_to(
        &self,
        site: &Site,
        ask: &Ask<'_>,
        mut answer: Response,
        bytes_max: usize,
    ) -> Result<(Vec<u8>, Rest), Failure> {
        let started = Instant::now();
        let longest = self.limits().answer;
        let mut body = Vec::new();
        loop {
            let left = longest.saturating_sub(started.elapsed());
            let chunk = timeout(left, answer.chunk())
                .await
                .map_err(|_| silent(&site.registry, &ask.method, &ask.url, longest))?
                .map_err(|e| transport_failure(&site.registry, &ask.method, &ask.url, e))?;
            let Some(chunk) = chunk else { return Ok((body, Rest::None)) };
            let room = bytes_max - body.len();
            if chunk.len() > room {
                body.extend(chunk.iter().take(room));
                return Ok((body, Rest::Some));
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// Puts an answer that is no success into words.
    pub(super) async fn refusal(&self, site: &Site, ask: &Ask<'_>, answer: Response) -> Failure {
        let status = answer.status();
        let url = shown_url(answer.url());
        let wait = answer
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(retry_after);
        let body = match self.body_up_to(site, ask, answer, ERROR_BYTES_MAX).await {
            Ok((body, _)) => body,
            Err(_) => Vec::new(),
        };
        let reason = scrub(words(&body), &site.secrets());
        let registry = site.registry.clone();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Self::access_refused(site, ask, status, &reason).into()
            }
            StatusCode::NOT_FOUND if ask.action == Action::Pull => {
                RegistryError::NotFound(ask.subject.to_owned()).into()
            }
            _ => {
                let status = status.as_u16();
                // We put blobs before what names them. A registry may not see one for a moment, while somebody else
                // puts it as well: docker-registry writes its link anew.
                let is_unseen = ask.method == Method::PUT && reason.contains(BLOB_UNKNOWN);
                let error = RegistryError::Refused { registry, url, status, reason, help: None };
                let again = match (is_transient(status), wait) {
                    (false, _) if is_unseen => Again::Brief,
                    (false, _) => Again::Never,
                    (true, Some(wait)) => Again::After(wait),
                    (true, None) => Again::Yes,
                };
                Failure::new(error, again)
            }
        }
    }
}

/// Whether a body went on after what was read of it.
enum Rest {
    None,
    Some,
}

/// What a registry says of a manifest whose blobs it does not find.
const BLOB_UNKNOWN: &str = "MANIFEST_BLOB_UNKNOWN";

pub(super) const fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

fn next_hop(
    site: &Site,
    ask: &Ask<'_>,
    from: &Url,
    answer: &Response,
) -> Result<Url, RegistryError> {
    let status = answer.status();
    let refuse = |why: &str| RegistryError::Network {
        registry: site.registry.clone(),
        reason: format!("{} {}: HTTP {status} {why}", ask.method, shown_url(from)),
    };
    let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| refuse("without a usable Location"))?;
    let next =
        resolve_location(from, location).ok_or_else(|| refuse("to something that is no URL"))?;
    if from.scheme() == "https" && next.scheme() != "https" {
        return Err(refuse("leads from HTTPS to HTTP; that is not followed"));
    }
    let reading = matches!(ask.method, Method::GET | Method::HEAD);
    let keeps_method =
        matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    if reading || keeps_method { Ok(next) } else { Err(refuse("in answer to a write")) }
}

/// A `Location`, relative or absolute, without user and password (they would become credentials).
pub(super) fn resolve_location(from: &Url, location: &str) -> Option<Url> {
    let mut url = from.join(location).ok()?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return None;
    }
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    url.set_fragment(None);
    Some(url)
}

impl FilePart<'_> {
    /// The file, at the first of the bytes.
    async fn open(&self) -> io::Result<tokio::fs::File> {
        let path = self.path.display();
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
        let mut file = tokio::fs::File::open(self.path).await.map_err(named)?;
        let found = file.metadata().await.map_err(named)?.len();
        if found != self.size {
            let message = format!("{path}: {found} bytes, {} were announced", self.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        file.seek(io::SeekFrom::Start(self.start)).await.map_err(named)?;
        Ok(file)
    }

    fn body(&self, file: tokio::fs::File, sent: Arc<AtomicU64>) -> reqwest::Body {
        let chunks = ReaderStream::with_capacity(file.take(self.bytes), FILE_CHUNK_BYTES);
        let counted = chunks.inspect_ok(move |chunk| {
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        });
        reqwest::Body::wrap_stream(counted)
    }
}

/// An upload whose pace is watched.
struct Watched<'a> {
    limits: &'a Limits,
    part: FilePart<'a>,
    sent: Arc<AtomicU64>,
}

impl Watched<'_> {
    /// `None` when it was too slow, or nobody answered when all was sent.
    async fn send(
        self,
        request: reqwest::RequestBuilder,
    ) -> Option<Result<Response, reqwest::Error>> {
        let FilePart { start, bytes, progress, .. } = self.part;
        let mut sending = std::pin::pin!(request.send());
        let mut window = (Instant::now(), 0);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        loop {
            tokio::select! {
                biased;
                answer = &mut sending => {
                    progress(start + self.sent.load(Ordering::Relaxed));
                    return Some(answer);
                }
                _ = ticks.tick() => {
                    let sent = self.sent.load(Ordering::Relaxed);
                    progress(start + sent);
                    let all = sent >= bytes;
                    let longest =
                        if all { self.limits.answer_to_write } else { self.limits.slow_window };
                    if window.0.elapsed() >= longest {
                        if all || sent - window.1 < self.limits.slow_bytes {
                            return None;
                        }
                        window = (Instant::now(), sent);
                    }
                }
            }
        }
    }
}

/// All causes of an error, outermost first; what an I/O error wraps is among them.
pub(super) fn causes<'a>(error: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    let mut found = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        found.push(cause);
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next =
            inner.map_or_else(|| cause.source(), |inner| Some(inner as &(dyn StdError + 'static)));
    }
    found
}

/// Whether the other side answered a TLS greeting with something else, or by hanging up.
fn is_no_tls(error: &reqwest::Error) -> bool {
    causes(error).iter().any(|cause| {
        let garbage = cause
            .downcast_ref::<rustls::Error>()
            .is_some_and(|tls| matches!(tls, rustls::Error::InvalidMessage(_)));
        let hung_up = cause.downcast_ref::<io::Error>().is_some_and(|io| {
            matches!(io.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
        });
        garbage || (hung_up && error.is_connect())
    })
}

pub(super) fn transport_failure(
    registry: &str,
    method: &Method,
    url: &Url,
    error: reqwest::Error,
) -> Failure {
    let error = error.without_url();
    let registry = registry.to_owned();
    if let Some(refusal) = refusal_in(&error) {
        return RegistryError::Tls {
            registry,
            reason: refusal.reason.clone(),
            fingerprint: Some(refusal.fingerprint.clone()),
            presented: Some(refusal.presented.clone()),
        }
        .into();
    }
    let causes = causes(&error);
    let garbled = |cause: &&(dyn StdError + 'static)| {
        matches!(cause.downcast_ref::<rustls::Error>(), Some(rustls::Error::InvalidMessage(_)))
    };
    if error.is_connect() && causes.iter().any(garbled) {
        return RegistryError::Tls {
            registry,
            reason: "it shows none: the answer is not TLS; if plain HTTP is meant, say so \
                     (`plain-http`)"
                .to_owned(),
            fingerprint: None,
            presented: None,
        }
        .into();
    }
    let innermost = causes.last().map_or_else(|| error.to_string(), ToString::to_string);
    let again = if error.is_connect() && !error.is_timeout() { Again::Brief } else { Again::Yes };
    let reason = format!("{method} {}: {}", shown_url(url), excerpt(&innermost));
    Failure::new(RegistryError::Network { registry, reason }, again)
}

pub(super) fn silent(registry: &str, method: &Method, url: &Url, waited: Duration) -> Failure {
    let reason = format!("{method} {}: too slow, gave up after {waited:?}", shown_url(url));
    Failure::new(RegistryError::Network { registry: registry.to_owned(), reason }, Again::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_relative_or_absolute_and_never_brings_credentials() {
        let from = Url::parse("https://reg.example.com:5000/v2/a/blobs/uploads/").unwrap();
        for (location, wanted) in [
            (
                "/v2/a/blobs/uploads/1?_state=x",
                Some("https://reg.example.com:5000/v2/a/blobs/uploads/1?_state=x"),
            ),
            ("2", Some("https://reg.example.com:5000/v2/a/blobs/uploads/2")),
            ("//evil.example/x", Some("https://evil.example/x")),
            ("https://reg.example.com:5000@evil.example/x", Some("https://evil.example/x")),
            ("http://u:p@other/x#f", Some("http://other/x")),
            ("file:///etc/passwd", None),
            ("https://", None),
        ] {
            let url = resolve_location(&from, location).map(String::from);
            assert_eq!(url.as_deref(), wanted, "{location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let own = Url::parse("https://reg.example.com/").unwrap();
        for (url, same) in [
            ("https://REG.example.com/x", true),
            ("https://reg.example.com:443/x", true),
            ("http://reg.example.com/x", false),
            ("https://reg.example.com:5000/x", false),
            ("https://reg.example.com.evil.io/x", false),
            ("https://reg.example.com./x", false),
        ] {
            assert_eq!(same_origin(&own, &Url::parse(url).unwrap()), same, "{url}");
        }
    }
}
