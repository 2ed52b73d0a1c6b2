//! From request to answer: who asks, for what, by which method.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    header::{self, HeaderMap},
};

use super::{
    Login,
    answer::{Answer, Refusal, empty, put},
    blobs,
    manifests::Manifests,
    route::{BadRoute, Route},
    uploads::{self, Uploads},
};
use crate::{oci::Digest, store::Store};

/// The registry behind the connections.
pub(super) struct Api {
    store: Store,
    manifests: Manifests,
    uploads: Uploads,
    login: Option<Login>,
}

impl Api {
    pub(super) fn new(store: Store, login: Option<Login>) -> Self {
        let manifests = Manifests::new(store.clone());
        Self { manifests, uploads: Uploads::new(store.clone()), store, login }
    }

    /// Forgets uploads that nobody has gone on with for so long.
    pub(super) async fn sweep(&self, idle: Duration) {
        self.uploads.sweep(idle).await;
    }

    /// Answers one request; a refusal is an answer too.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let answered = match self.admit(request.uri().host(), request.headers()) {
            Ok(()) => self.route(request).await,
            Err(refusal) => Err(refusal),
        };
        let mut answer = answered.unwrap_or_else(|refusal| {
            let unauthorized = refusal.status == StatusCode::UNAUTHORIZED;
            let mut answer = refusal.into_answer();
            if unauthorized {
                let challenge = "Basic realm=\"idpbuilder\", charset=\"UTF-8\"";
                put(&mut answer, header::WWW_AUTHENTICATE, challenge);
            }
            answer
        });
        let name = header::HeaderName::from_static("docker-distribution-api-version");
        put(&mut answer, name, "registry/2.0");
        answer
    }

    /// Whether the request means this machine (against DNS rebinding), and who sends it.
    fn admit(&self, authority: Option<&str>, headers: &HeaderMap) -> Result<(), Refusal> {
        let from_header = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = authority.or(from_header).unwrap_or_default();
        if !is_local_name(host) {
            let message = format!("{host} is not served here");
            return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "DENIED", message));
        }
        let Some(login) = &self.login else { return Ok(()) };
        let wanted = format!("{}:{}", login.username, login.password);
        let sent = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, encoded)| BASE64_STANDARD.decode(encoded.trim()).ok());
        // Digests are compared, so that the time says nothing about the password.
        if sent.is_some_and(|sent| Digest::of(&sent) == Digest::of(wanted.as_bytes())) {
            return Ok(());
        }
        let message = "authentication required";
        Err(Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message))
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let route = Route::parse(request.uri().path()).map_err(refuse_route)?;
        let query = query(request.uri().query().unwrap_or_default());
        let (parts, body) = request.into_parts();
        let (method, headers) = (parts.method, parts.headers);
        let is_read = method == Method::GET || method == Method::HEAD;
        match route {
            Route::Base if is_read => Ok(empty(StatusCode::OK)),
            Route::Catalog if is_read => self.manifests.catalog(&query),
            Route::Tags(name) if is_read => self.manifests.tags(&name, &query),
            Route::Referrers(name, subject) if is_read => {
                self.manifests.referrers(&name, subject, &query)
            }
            Route::Blob(_, digest) if is_read => {
                blobs::get(&self.store, &method, &headers, digest).await
            }
            Route::Manifest(name, target) if is_read => self.manifests.get(&method, &name, &target),
            Route::Manifest(name, target) if method == Method::PUT => {
                self.manifests.put(&name, &target, &headers, body).await
            }
            Route::Manifest(name, target) if method == Method::DELETE => {
                self.manifests.delete(&name, &target).await
            }
            Route::Uploads(name) if method == Method::POST => {
                self.start_upload(&name, &query, body).await
            }
            Route::Upload(name, id) => {
                self.continue_upload(&name, &id, (&method, &headers, &query), body).await
            }
            Route::Base
            | Route::Catalog
            | Route::Blob(..)
            | Route::Uploads(_)
            | Route::Manifest(..)
            | Route::Tags(_)
            | Route::Referrers(..) => Err(unsupported(&method)),
        }
    }

    async fn start_upload(
        &self,
        name: &str,
        query: &BTreeMap<String, String>,
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        // All repositories share the store's blobs, so a mount needs nothing but the blob.
        if let Some(digest) = digest_of(query, "mount")?
            && self.store.blob_size(digest).is_some()
        {
            return Ok(uploads::created(name, digest));
        }
        self.uploads.start(name, digest_of(query, "digest")?, body).await
    }

    async fn continue_upload(
        &self,
        name: &str,
        id: &str,
        (method, headers, query): (&Method, &HeaderMap, &BTreeMap<String, String>),
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        match *method {
            Method::PATCH => self.uploads.patch(name, id, headers, body).await,
            Method::PUT => {
                let digest = digest_of(query, "digest")?;
                self.uploads.finish(name, id, (headers, digest), body).await
            }
            Method::GET | Method::HEAD => self.uploads.status(name, id).await,
            Method::DELETE => self.uploads.cancel(name, id).await,
            _ => Err(unsupported(method)),
        }
    }
}

fn unsupported(method: &Method) -> Refusal {
    let message = format!("{method} is not supported here");
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
}

fn refuse_route(bad: BadRoute) -> Refusal {
    let (status, code, message) = match bad {
        BadRoute::Unknown => (StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint"),
        BadRoute::Name => (StatusCode::BAD_REQUEST, "NAME_INVALID", "invalid repository name"),
        BadRoute::Digest => (StatusCode::BAD_REQUEST, "DIGEST_INVALID", "invalid digest"),
        BadRoute::Tag => (StatusCode::BAD_REQUEST, "TAG_INVALID", "invalid tag"),
    };
    Refusal::new(status, code, message)
}

fn digest_of(query: &BTreeMap<String, String>, name: &str) -> Result<Option<Digest>, Refusal> {
    let parsed = query.get(name).map(|text| text.parse::<Digest>()).transpose();
    parsed
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string()))
}

fn query(text: &str) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

/// Names that mean this machine, with or without a port: `localhost` and what is below it, loopback
/// addresses, and `*.localtest.me`, which public DNS points at 127.0.0.1.
fn is_local_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let is_loopback = name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback
        || name == "localhost"
        || name.ends_with(".localhost")
        || name == "localtest.me"
        || name.ends_with(".localtest.me")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t07_only_names_of_this_machine_are_answered() {
        for host in ["localhost:5050", "127.0.0.1:1", "[::1]:5", "gitea.cnoe.localtest.me:8443"] {
            assert!(is_local_name(host), "{host}");
        }
        for host in
            ["", "evil.example", "127.0.0.1.evil.example", "localtest.me.evil.example", "10.0.0.1"]
        {
            assert!(!is_local_name(host), "{host}");
        }
    }
}
