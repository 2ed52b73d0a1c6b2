//! Plain downloads, as `ADD` of a URL makes them: any web server, without credentials of ours.
//!
//! Goes to no link-local or metadata address, whatever a name or a redirect says: those answer with
//! the secrets of the machine. Knows nothing of the store; what came before is told by its validators.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use reqwest::{
    Method, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_MODIFIED_SINCE,
        IF_NONE_MATCH, LAST_MODIFIED, LOCATION,
    },
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::timeout;
use url::Url;

use super::{
    Client, RegistryError,
    answer::shown_url,
    retry::{Again, Failure, Tries},
    site::{Reach, addresses, place_of, same_origin},
    transport::{HOPS_MAX, causes, is_transient, resolve_location, silent, transport_failure},
};
use crate::remote::{is_metadata, without_login};

/// Longest file that is taken, in bytes.
const DOWNLOAD_BYTES_MAX: u64 = 16 << 30;

/// What a server said of a file's state, for the question whether it has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    /// `ETag`, as it came.
    pub etag: Option<String>,
    /// `Last-Modified`, as it came.
    pub last_modified: Option<String>,
}

/// How a download is asked for.
#[derive(Clone, Copy)]
pub struct DownloadTerms<'a> {
    /// What is there already; nothing is written when it is still the same.
    pub known: &'a Validators,
    /// Where it may lead; every redirect is held to it.
    pub reach: Reach,
    /// `Authorization` header, for the server of the URL itself and none that it points at.
    pub authorization: Option<&'a str>,
}

/// What became of a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Downloaded {
    /// The server says that it is what the validators were given for; nothing was written.
    Unchanged,
    /// All of it was written.
    Fresh(Validators),
}

/// Why a file could not be downloaded.
#[derive(Debug, Error)]
pub enum DownloadError {
    /// Not a URL of the web, or one that leads where no build may go.
    #[error("{url}: {reason}")]
    Refused {
        /// The URL, without its secrets.
        url: String,
        /// Why.
        reason: String,
    },
    /// It leads to an address that may only be reached when the user says so.
    #[error("{url}: {address} is an address of this machine or of a private network")]
    Private {
        /// The URL or host, without its secrets.
        url: String,
        /// The address.
        address: IpAddr,
    },
    /// The server has not got it, or does not give it.
    #[error("{url}: invalid response status {status}")]
    Status {
        /// The URL, without its secrets.
        url: String,
        /// Status.
        status: u16,
    },
    /// Not reachable, not trusted, or too slow.
    #[error(transparent)]
    Transport(#[from] RegistryError),
    /// It could not be written.
    #[error("{0}")]
    Local(#[from] io::Error),
}

/// A name whose addresses may not be reached.
#[derive(Clone, Debug, Error)]
#[error("{host} is at {address}, which must not be reached")]
pub(super) struct Closed {
    pub(super) host: String,
    pub(super) address: IpAddr,
}

impl Closed {
    /// In words for a place that leads there.
    pub(super) fn told(&self, url: String) -> DownloadError {
        if gives_secrets(self.address) {
            let reason = format!("{} is a link-local or metadata address", self.address);
            return DownloadError::Refused { url, reason };
        }
        DownloadError::Private { url, address: self.address }
    }
}

impl Validators {
    /// `Last-Modified` as Unix seconds.
    #[must_use]
    pub fn modified(&self) -> Option<i64> {
        let text = self.last_modified.as_deref()?;
        let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        Some(time.as_second())
    }

    fn of(headers: &HeaderMap) -> Self {
        let text =
            |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self { etag: text(ETAG), last_modified: text(LAST_MODIFIED) }
    }

    fn ask(&self, headers: &mut HeaderMap) {
        let value = |text: &Option<String>| HeaderValue::from_str(text.as_deref()?).ok();
        if let Some(etag) = value(&self.etag) {
            headers.insert(IF_NONE_MATCH, etag);
        } else if let Some(time) = value(&self.last_modified) {
            headers.insert(IF_MODIFIED_SINCE, time);
        }
    }
}

impl Client {
    /// Writes what is behind a URL (`http` or `https`) to `out`, on these terms.
    ///
    /// # Errors
    ///
    /// Any [`DownloadError`]. Something may have been written then.
    pub async fn download(
        &self,
        url: &str,
        terms: DownloadTerms<'_>,
        out: &mut (dyn Write + Send),
    ) -> Result<Downloaded, DownloadError> {
        let refused = |reason: String| DownloadError::Refused { url: without_login(url), reason };
        let start = Url::parse(url).map_err(|error| refused(error.to_string()))?;
        self.permit(start.host_str().unwrap_or_default())?;
        let mut tries = Tries::new(self);
        let answer = loop {
            match self.answer_to(&start, terms).await? {
                Ok(answer) => break answer,
                Err(failure) => tries.wait(failure).await?,
            }
        };
        match answer.status() {
            StatusCode::NOT_MODIFIED => Ok(Downloaded::Unchanged),
            status if status.is_success() => {
                let validators = Validators::of(answer.headers());
                self.write_body(answer, out).await?;
                Ok(Downloaded::Fresh(validators))
            }
            status => {
                Err(DownloadError::Status { url: shown_url(&start), status: status.as_u16() })
            }
        }
    }

    /// The answer at the end of all redirects; the inner error may go away.
    async fn answer_to(
        &self,
        start: &Url,
        DownloadTerms { known, reach, authorization }: DownloadTerms<'_>,
    ) -> Result<Result<Response, Failure>, DownloadError> {
        let mut url = start.clone();
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        known.ask(&mut headers);
        for _ in 0..=HOPS_MAX {
            check_target(&url, reach)?;
            let (place, method) = (place_of(&url), Method::GET);
            if self.options().proxies.any() {
                // Who looks the name up is the proxy then, which is told nothing of our rules.
                self.check_host(&place, reach).await?;
            }
            let http = self.place_http(&url, reach)?;
            let mut headers = headers.clone();
            if let (true, Some(value)) = (same_origin(&url, start), authorization) {
                let mut value = HeaderValue::from_str(value).map_err(|_| {
                    let reason = "its authorization is no header".to_owned();
                    DownloadError::Refused { url: shown_url(&url), reason }
                })?;
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
            let request = http.get(url.clone()).headers(headers).send();
            let answer = match timeout(self.limits().answer, request).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    if let Some(closed) = closed_in(&error) {
                        return Err(closed.told(shown_url(&url)));
                    }
                    return Ok(Err(transport_failure(&place, &method, &url, error)));
                }
                Err(_) => return Ok(Err(silent(&place, &method, &url, self.limits().answer))),
            };
            let status = answer.status();
            if is_transient(status.as_u16()) {
                let (url, status) = (shown_url(&url), status.as_u16());
                let reason = "it may answer later".to_owned();
                let error =
                    RegistryError::Refused { registry: place, url, status, reason, help: None };
                return Ok(Err(Failure::new(error, Again::Yes)));
            }
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return Ok(Ok(answer));
            }
            let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| resolve_location(&url, location));
            let next = next.ok_or_else(|| DownloadError::Refused {
                url: shown_url(&url),
                reason: format!("HTTP {status} to something that is no URL of the web"),
            })?;
            if url.scheme() == "https" && next.scheme() == "http" {
                let reason =
                    format!("HTTP {status} leads from HTTPS to HTTP; that is not followed");
                return Err(DownloadError::Refused { url: shown_url(&url), reason });
            }
            url = next;
        }
        let reason = format!("more than {HOPS_MAX} redirects");
        Err(DownloadError::Refused { url: shown_url(start), reason })
    }

    async fn write_body(
        &self,
        mut answer: Response,
        out: &mut (dyn Write + Send),
    ) -> Result<(), DownloadError> {
        let (url, limits) = (answer.url().clone(), *self.limits());
        let place = place_of(&url);
        let (mut total, mut in_window, mut window) = (0, 0, Instant::now());
        loop {
            let slow = || *silent(&place, &Method::GET, &url, limits.slow_window).error;
            let left = limits.slow_window.saturating_sub(window.elapsed());
            let chunk = timeout(left, answer.chunk()).await.map_err(|_| slow())?;
            let failed = |error| transport_failure(&place, &Method::GET, &url, error);
            let chunk = chunk.map_err(|error| *failed(error).error)?;
            let Some(chunk) = chunk else { return Ok(()) };
            total += chunk.len() as u64;
            in_window += chunk.len() as u64;
            if total > DOWNLOAD_BYTES_MAX {
                let reason = format!("longer than {DOWNLOAD_BYTES_MAX} bytes");
                return Err(DownloadError::Refused { url: shown_url(&url), reason });
            }
            out.write_all(&chunk)?;
            // A window is over early when enough has come in it.
            if in_window >= limits.slow_bytes {
                (in_window, window) = (0, Instant::now());
            }
        }
    }
}

impl Client {
    /// Whether a host (with or without a port) may be reached: for programs that connect by themselves.
    ///
    /// # Errors
    ///
    /// When none of its addresses may.
    pub async fn check_host(&self, place: &str, reach: Reach) -> Result<(), DownloadError> {
        let bare = place.trim_start_matches('[');
        let host = match bare.split_once(']') {
            Some((host, _)) => host,
            None => bare.split(':').next().unwrap_or_default(),
        };
        match addresses(host, reach).await {
            Err(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<Closed>()) {
                Some(closed) => Err(closed.told(place.to_owned())),
                // Who connects says what is wrong with the name.
                None => Ok(()),
            },
            Ok(_) => Ok(()),
        }
    }
}

/// The reason of a connection that was not made because of where it leads.
fn closed_in(error: &reqwest::Error) -> Option<Closed> {
    causes(error).iter().find_map(|cause| cause.downcast_ref::<Closed>()).cloned()
}

/// Refuses what is no URL of the web, and addresses that are written as such and may not be reached;
/// names are judged when they are resolved.
fn check_target(url: &Url, reach: Reach) -> Result<(), DownloadError> {
    let refused = |reason: String| DownloadError::Refused { url: shown_url(url), reason };
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused(format!("`{}` is not downloaded, only http and https", url.scheme())));
    }
    let address = match url.host() {
        Some(url::Host::Ipv4(address)) => IpAddr::V4(address),
        Some(url::Host::Ipv6(address)) => IpAddr::V6(address),
        Some(url::Host::Domain(_)) => return Ok(()),
        None => return Err(refused("it names no host".to_owned())),
    };
    if !reach.allows(address) {
        let closed = Closed { host: address.to_string(), address };
        return Err(closed.told(shown_url(url)));
    }
    Ok(())
}

/// Whether an address answers with what only this machine may know: link-local ones, where clouds keep
/// their metadata, and the few metadata addresses elsewhere.
pub(super) fn gives_secrets(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_unspecified() || is_metadata(IpAddr::V4(address)),
        IpAddr::V6(address) => {
            address.is_unspecified()
                || is_metadata(IpAddr::V6(address))
                || embedded(address).is_some_and(|v4| gives_secrets(IpAddr::V4(v4)))
        }
    }
}

/// Whether an address is this machine's own, or one of a network that is not public: loopback, private
/// (RFC 1918, RFC 4193), shared by a carrier (RFC 6598), or for many at once.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            address.is_loopback()
                || address.is_private()
                || address.is_broadcast()
                || address.is_multicast()
                || first == 0
                || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_multicast()
                || address.is_unique_local()
                || embedded(address).is_some_and(|v4| is_private(IpAddr::V4(v4)))
        }
    }
}

/// The address of version 4 that one of version 6 leads to: written as such, by NAT64 (RFC 6052) or by
/// 6to4 (RFC 3056).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => address.to_ipv4(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_of_a_metadata_address_is_reached() {
        // Whether it is reached without metadata, and whether it is public.
        for (url, allowed, public) in [
            ("http://169.254.169.254/latest/meta-data", false, false),
            ("http://0xa9fea9fe/", false, false),
            ("http://2852039166/", false, false),
            ("http://0251.0376.0251.0376/", false, false),
            ("http://[::ffff:169.254.169.254]/", false, false),
            ("http://[::169.254.169.254]/", false, false),
            ("http://[64:ff9b::169.254.169.254]/", false, false),
            ("http://[fe80::1]/", false, false),
            ("http://[fe80::a9fe:a9fe]/", false, false),
            ("http://[fd00:ec2::254]/", false, false),
            ("http://[fd20:ce::254]/", false, false),
            ("http://[fd00:42::42]/", false, false),
            ("http://[fd00:100::100:200]/", false, false),
            ("http://192.0.0.192/", false, false),
            ("http://0/", false, false),
            ("http://[::]/", false, false),
            ("http://168.63.129.16/", false, false),
            ("file:///etc/passwd", false, false),
            ("gopher://example.com/", false, false),
            ("ftp://example.com/x", false, false),
            ("http://127.0.0.1:8080/f", true, false),
            ("http://0x7f.1/f", true, false),
            ("http://[::1]/f", true, false),
            ("http://[::ffff:127.0.0.1]/f", true, false),
            ("http://[2002:7f00:1::]/f", true, false),
            ("http://10.0.0.1/f", true, false),
            ("http://172.16.0.1/f", true, false),
            ("http://192.168.1.1/f", true, false),
            ("http://100.64.0.1/f", true, false),
            ("http://[fd12::1]/f", true, false),
            ("http://172.32.0.1/f", true, true),
            ("http://100.128.0.1/f", true, true),
            ("http://[2606:4700::1111]/f", true, true),
            ("https://example.com/f", true, true),
        ] {
            let parsed = Url::parse(url).unwrap();
            let reached = |reach| check_target(&parsed, reach).is_ok();
            assert_eq!(reached(Reach::NoMetadata), allowed, "{url}");
            assert_eq!(reached(Reach::Public), public, "{url}");
        }
    }

    #[test]
    fn a_date_of_http_is_seconds() {
        let of = |text: &str| Validators { etag: None, last_modified: Some(text.to_owned()) };
        assert_eq!(of("Sat, 10 Oct 2015 02:34:04 GMT").modified(), Some(1_444_444_444));
        assert_eq!(of("Thu, 01 Jan 1970 00:00:00 GMT").modified(), Some(0));
        assert_eq!(of("yesterday").modified(), None);
    }
}
