//! One registry as it is reached: its base URL, its HTTP client, its credentials, its tokens.
//!
//! Decides between HTTPS and HTTP, once for each registry. Knows nothing of images.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::RootCertStore;
use url::Url;

use super::{
    Client, ClientOptions, Credentials, Found, RegistryError, RegistryOptions, Sent, SiteCell,
    auth::{Grant, KnownChallenge},
    download::{Closed, gives_secrets, is_private},
    retry::Failure,
};
use crate::{
    oci::Reference,
    trust::{Trust, TrustError, TrustStore, Verifier, client_config, parse_pem},
};

/// Where the registry that is called `docker.io` really is.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Public DNS answers 127.0.0.1 for every name below it.
const LOOPBACK_DOMAIN: &str = "localtest.me";

/// A registry that can be talked to, with the credentials for it or for one of its repositories.
#[derive(Clone)]
pub(super) struct Site {
    /// As it is called in references.
    pub(super) registry: String,
    /// Scheme, host and port.
    pub(super) base: Url,
    pub(super) http: reqwest::Client,
    pub(super) options: RegistryOptions,
    pub(super) credentials: Option<Credentials>,
    /// Where those came from.
    pub(super) sent: Sent,
    /// How it asked for authentication.
    pub(super) challenge: Arc<Mutex<Option<KnownChallenge>>>,
    /// Tokens by scope. Held while one is fetched: many transfers start at once and need the same.
    pub(super) grants: Arc<tokio::sync::Mutex<HashMap<String, Grant>>>,
    /// What must never be shown, should the registry repeat it.
    pub(super) secrets: Arc<Mutex<Vec<String>>>,
}

impl Site {
    /// The URL of a path below `/v2/`.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{path}"));
        url
    }

    pub(super) fn secrets(&self) -> Vec<String> {
        self.secrets.lock().expect("nobody panics while holding it").clone()
    }
}

/// How the scheme of a registry is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SchemeRule {
    Https,
    Http,
    /// HTTPS, and HTTP when the answer is no TLS.
    Either,
}

impl Client {
    /// The registry, looked at once, as it is talked to about a repository, or about none.
    pub(super) async fn site(
        &self,
        registry: &str,
        repository: Option<&str>,
    ) -> Result<Arc<Site>, Failure> {
        let registry = registry.to_ascii_lowercase();
        self.permit(&registry)?;
        let cell = self.cell(&registry, None);
        let site = cell.get_or_try_init(|| self.find_site(&registry)).await?;
        match (repository, &site.sent) {
            (None, _) | (_, Sent::Given) => Ok(Arc::clone(site)),
            (Some(repository), Sent::Found(_) | Sent::Nothing) => {
                let cell = self.cell(&registry, Some(repository));
                Ok(Arc::clone(cell.get_or_init(async || self.site_of(site, repository)).await))
            }
        }
    }

    /// The registry of an image, as it is talked to about its repository.
    pub(super) async fn site_for(&self, image: &Reference) -> Result<Arc<Site>, Failure> {
        self.site(image.registry(), Some(image.repository())).await
    }

    fn cell(&self, registry: &str, repository: Option<&str>) -> SiteCell {
        let mut sites = self.inner.sites.lock().expect("nobody panics while holding it");
        let of = (registry.to_owned(), repository.map(str::to_owned));
        Arc::clone(sites.entry(of).or_default())
    }

    /// The same registry with the credentials of a repository, when it has its own.
    fn site_of(&self, site: &Arc<Site>, repository: &str) -> Arc<Site> {
        let find = self.options().credentials.as_ref();
        let Some(found) = find.and_then(|find| find(&site.registry, Some(repository))) else {
            return Arc::clone(site);
        };
        site.secrets
            .lock()
            .expect("nobody panics while holding it")
            .push(found.credentials.secret().to_owned());
        Arc::new(Site {
            credentials: Some(found.credentials),
            sent: Sent::Found(found.place),
            // Tokens are for who asked for them.
            grants: Arc::default(),
            ..Site::clone(site)
        })
    }

    async fn find_site(&self, registry: &str) -> Result<Arc<Site>, Failure> {
        let options = self.options().registries.get(registry).cloned().unwrap_or_default();
        let trusted = self.trusted(registry)?;
        let https = self.make_site(registry, "https", &options)?;
        let explicit = options.ca_pem.is_some() || options.pin.is_some() || !trusted.is_empty();
        let rule = match (options.plain_http, options.insecure, explicit) {
            (true, ..) => SchemeRule::Http,
            (_, true, _) => SchemeRule::Either,
            (_, _, false) if is_loopback(&https.base) => SchemeRule::Either,
            _ => SchemeRule::Https,
        };
        match rule {
            SchemeRule::Https => return Ok(https),
            SchemeRule::Http => return Ok(self.make_site(registry, "http", &options)?),
            SchemeRule::Either => {}
        }
        match self.probe(&https).await {
            Ok(()) => Ok(https),
            Err(failure) if failure.speaks_no_tls => {
                let http = self.make_site(registry, "http", &options)?;
                match self.probe(&http).await {
                    Ok(()) => Ok(http),
                    Err(failure) => Err(failure.failure),
                }
            }
            Err(failure) => Err(failure.failure),
        }
    }

    fn make_site(
        &self,
        registry: &str,
        scheme: &str,
        options: &RegistryOptions,
    ) -> Result<Arc<Site>, RegistryError> {
        let host = if registry == DOCKER_HUB { DOCKER_HUB_HOST } else { registry };
        let mut base = Url::parse(&format!("{scheme}://{host}/"))
            .map_err(|error| RegistryError::Options(format!("`{registry}`: {error}")))?;
        if options.port.is_some() {
            base.set_port(options.port).expect("an http URL with a host has a port");
        }
        let find = || self.options().credentials.as_ref()?(registry, None);
        let (credentials, sent) = match &options.credentials {
            Some(given) => (Some(given.clone()), Sent::Given),
            None => find().map_or((None, Sent::Nothing), |Found { credentials, place }| {
                (Some(credentials), Sent::Found(place))
            }),
        };
        let secrets = credentials.iter().map(|known| known.secret().to_owned()).collect();
        Ok(Arc::new(Site {
            registry: registry.to_owned(),
            http: self.http(registry, &base, options, Reach::Anywhere)?,
            base,
            options: options.clone(),
            credentials,
            sent,
            challenge: Arc::default(),
            grants: Arc::default(),
            secrets: Arc::new(Mutex::new(secrets)),
        }))
    }

    /// An HTTP client for the place of `url`, which is not the registry itself (redirects, realms).
    pub(super) fn foreign_http(&self, url: &Url) -> Result<reqwest::Client, RegistryError> {
        self.place_http(url, Reach::Anywhere)
    }

    /// An HTTP client for the place of `url`, with the settings of a registry that is there.
    pub(super) fn place_http(
        &self,
        url: &Url,
        reach: Reach,
    ) -> Result<reqwest::Client, RegistryError> {
        let place = place_of(url);
        let options = self.options().registries.get(&place).cloned().unwrap_or_default();
        self.http(&place, url, &options, reach)
    }

    fn http(
        &self,
        place: &str,
        base: &Url,
        options: &RegistryOptions,
        reach: Reach,
    ) -> Result<reqwest::Client, RegistryError> {
        let mut known = self.inner.http.lock().expect("nobody panics while holding it");
        if let Some(http) = known.get(&(place.to_owned(), reach)) {
            return Ok(http.clone());
        }
        let wrong =
            |error: &dyn std::fmt::Display| RegistryError::Options(format!("{place}: {error}"));
        let trust = Trust {
            given: options
                .ca_pem
                .as_ref()
                .map(|pem| parse_pem(pem, place))
                .transpose()
                .map_err(|error| wrong(&error))?
                .unwrap_or_default(),
            trusted: self.trusted(place)?,
            pin: options.pin,
            insecure: options.insecure,
        };
        let needs_roots = trust.pin.is_none() && !trust.insecure && trust.trusted.is_empty();
        let empty = RootCertStore::empty();
        let roots = if needs_roots { self.platform_roots() } else { &empty };
        let tls = Verifier::new(trust, roots).and_then(client_config).map_err(|e| wrong(&e))?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .tls_info(true)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(self.limits().connect)
            .user_agent(concat!("idpbuilder/", env!("CARGO_PKG_VERSION")))
            .no_proxy();
        let fixed = fixed_address(self.options(), place, base);
        let mut proxies = BTreeSet::new();
        if !is_this_machine(base) {
            for proxy in self.proxies()? {
                builder = builder.proxy(proxy);
            }
            proxies = self.options().proxies.hosts();
        }
        builder = builder.dns_resolver(Resolver { fixed, reach, proxies });
        let http = builder.build().map_err(|error| wrong(&error))?;
        known.insert((place.to_owned(), reach), http.clone());
        Ok(http)
    }

    fn proxies(&self) -> Result<Vec<reqwest::Proxy>, RegistryError> {
        let options = &self.options().proxies;
        let exempt = options.exempt.as_deref().and_then(reqwest::NoProxy::from_string);
        let wrong = |_| RegistryError::Options("the address of the proxy is not a URL".to_owned());
        let https = options.https.as_deref().map(reqwest::Proxy::https);
        let http = options.http.as_deref().map(reqwest::Proxy::http);
        [https, http]
            .into_iter()
            .flatten()
            .map(|proxy| proxy.map(|proxy| proxy.no_proxy(exempt.clone())).map_err(wrong))
            .collect()
    }

    fn trusted(
        &self,
        place: &str,
    ) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, RegistryError> {
        let Some(folder) = &self.options().trusted_certificates else { return Ok(Vec::new()) };
        match TrustStore::new(folder).read(place) {
            Err(TrustError::NotRegistry(_)) => Ok(Vec::new()),
            other => other.map_err(|error| RegistryError::Options(error.to_string())),
        }
    }

    fn platform_roots(&self) -> &RootCertStore {
        self.inner.roots.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            for error in found.errors {
                tracing::debug!(%error, "the platform's certificates");
            }
            roots.add_parsable_certificates(found.certs);
            roots
        })
    }
}

/// Host and port as registries are named: without the port when it is the scheme's own.
pub(super) fn place_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether two URLs have the same scheme, host and port.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Whether no proxy could lead there: what it calls by this name is another machine.
fn is_this_machine(url: &Url) -> bool {
    is_loopback(url) || url.host_str().is_some_and(is_loopback_domain)
}

fn is_loopback_domain(host: &str) -> bool {
    host == LOOPBACK_DOMAIN || host.ends_with(".localtest.me")
}

fn fixed_address(options: &ClientOptions, place: &str, base: &Url) -> Option<SocketAddr> {
    let host = base.host_str().unwrap_or_default();
    options.resolve.get(place).or_else(|| options.resolve.get(host)).copied()
}

/// Where a request may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Anywhere.
    Anywhere,
    /// To no link-local or metadata address.
    NoMetadata,
    /// To no address of this machine or of a private network either.
    Public,
}

impl Reach {
    pub(super) fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Anywhere => true,
            Self::NoMetadata => !gives_secrets(address),
            Self::Public => !gives_secrets(address) && !is_private(address),
        }
    }
}

/// Addresses of a name that may be reached, from the system, or for [`LOOPBACK_DOMAIN`] as public DNS has
/// them. Looked up at the moment of the connection, which goes to what is returned and nowhere else.
pub(super) async fn addresses(host: &str, reach: Reach) -> io::Result<Vec<SocketAddr>> {
    let local = is_loopback_domain(host);
    let found: Vec<SocketAddr> = match tokio::net::lookup_host((host, 0)).await {
        Ok(found) => found.collect(),
        Err(_) if local => vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)],
        Err(error) => {
            let message = format!("cannot resolve {host}: {error}");
            return Err(io::Error::new(error.kind(), message));
        }
    };
    let open: Vec<SocketAddr> =
        found.iter().copied().filter(|address| reach.allows(address.ip())).collect();
    match (found.first(), open.is_empty()) {
        (Some(address), true) => {
            let closed = Closed { host: host.to_owned(), address: address.ip() };
            Err(io::Error::new(io::ErrorKind::PermissionDenied, closed))
        }
        _ => Ok(open),
    }
}

/// Answers from the options first, then from the system, then for [`LOOPBACK_DOMAIN`] as public DNS
/// does, so that such names work without a network.
struct Resolver {
    fixed: Option<SocketAddr>,
    reach: Reach,
    /// Hosts of proxies: the user chose them, wherever they are.
    proxies: BTreeSet<String>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (fixed, reach) = match self.proxies.contains(name.as_str()) {
            true => (None, Reach::Anywhere),
            false => (self.fixed, self.reach),
        };
        Box::pin(async move {
            // Port 0 leaves the port to the URL.
            if let Some(address) = fixed {
                let found: Addrs = Box::new(std::iter::once(SocketAddr::new(address.ip(), 0)));
                return Ok(found);
            }
            let found = addresses(name.as_str(), reach).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}
