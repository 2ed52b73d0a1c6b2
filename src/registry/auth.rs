//! Who we are, to whom we say it: challenges, realms, tokens.
//!
//! The password goes to the registry's own origin, to realms that the user allowed, and to the few
//! pairs that everybody knows; never to whatever a challenge names.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use url::Url;

use super::{
    Client, Credentials, RegistryError,
    answer::{scrub, shown_url, words},
    challenge,
    retry::Failure,
    site::{Site, is_loopback, place_of, same_origin},
    transport::{Action, Ask, Payload, silent, transport_failure},
};

/// Longest answer of a token server, in bytes.
const TOKEN_BYTES_MAX: usize = 1 << 20;
/// Lifetime of a token that does not say its own (distribution's token specification).
const TOKEN_SECONDS_DEFAULT: u64 = 60;
const TOKEN_SECONDS_MAX: u64 = 3_600;
/// A token is not used in the last part of its life.
const TOKEN_MARGIN: Duration = Duration::from_secs(5);
/// Registries whose realm is another host, by agreement.
const KNOWN_REALMS: &[(&str, &str)] =
    &[("docker.io", "auth.docker.io"), ("registry.gitlab.com", "gitlab.com")];
const CLIENT_ID: &str = "idpbuilder";
/// The service that Gitea and Forgejo name.
const GITEA_SERVICE: &str = "container_registry";

/// How a registry asked for authentication.
#[derive(Clone, Debug)]
pub(super) struct KnownChallenge {
    basic: bool,
    bearer: Option<Bearer>,
}

#[derive(Clone, Debug)]
struct Bearer {
    realm: Url,
    service: Option<String>,
    scope: Option<String>,
}

/// A token, or the permission that it stands for.
pub(super) struct Grant {
    header: HeaderValue,
    until: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

impl Client {
    /// The header to send, when it is known that there must be one.
    pub(super) async fn authorization(
        &self,
        site: &Site,
        scopes: &[String],
    ) -> Result<Option<HeaderValue>, Failure> {
        if let Some(Credentials::Bearer(token)) = &site.credentials {
            return Ok(Some(secret_header(&site.registry, "Bearer", token)?));
        }
        let known = site.challenge.lock().expect("nobody panics while holding it").clone();
        let Some(known) = known else { return Ok(None) };
        let basic = match &site.credentials {
            Some(Credentials::Basic { username, password }) if known.basic => {
                let pair = STANDARD.encode(format!("{username}:{password}"));
                Some(secret_header(&site.registry, "Basic", &pair)?)
            }
            _ => None,
        };
        let Some(bearer) = &known.bearer else { return Ok(basic) };
        match realm_for(site, bearer) {
            Ok(realm) => self.granted(site, bearer, &realm, scopes).await.map(Some),
            Err(_) if basic.is_some() => Ok(basic),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn remember_challenge(site: &Site, headers: &HeaderMap) {
        let mut known = KnownChallenge { basic: false, bearer: None };
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        for challenge in values.filter_map(|v| v.to_str().ok()).flat_map(challenge::parse) {
            known.basic |= challenge.scheme == "basic";
            if challenge.scheme != "bearer" || known.bearer.is_some() {
                continue;
            }
            let realm = challenge.get("realm").and_then(|realm| site.base.join(realm).ok());
            known.bearer = realm.map(|realm| Bearer {
                realm,
                service: challenge.get("service").map(str::to_owned),
                scope: challenge.get("scope").map(str::to_owned),
            });
        }
        *site.challenge.lock().expect("nobody panics while holding it") = Some(known);
    }

    pub(super) async fn forget_grant(site: &Site, scopes: &[String]) {
        site.grants.lock().await.remove(&scopes.join(" "));
    }

    async fn granted(
        &self,
        site: &Site,
        bearer: &Bearer,
        realm: &Url,
        scopes: &[String],
    ) -> Result<HeaderValue, Failure> {
        let mut grants = site.grants.lock().await;
        let key = scopes.join(" ");
        if let Some(grant) = grants.get(&key)
            && Instant::now() < grant.until
        {
            return Ok(grant.header.clone());
        }
        let grant = self.fetch_token(site, bearer, realm, scopes).await?;
        let header = grant.header.clone();
        grants.insert(key, grant);
        Ok(header)
    }

    async fn fetch_token(
        &self,
        site: &Site,
        bearer: &Bearer,
        realm: &Url,
        scopes: &[String],
    ) -> Result<Grant, Failure> {
        let asked = TokenRequest::new(site, bearer, realm, scopes)?;
        let ask = asked.ask();
        let http = if same_origin(realm, &site.base) {
            site.http.clone()
        } else {
            self.foreign_http(realm)?
        };
        let mut request =
            http.request(ask.method.clone(), ask.url.clone()).headers(ask.headers.clone());
        if let Some(form) = &asked.form {
            request = request.body(form.clone());
        }
        let answer = tokio::time::timeout(self.limits().answer, request.send())
            .await
            .map_err(|_| silent(&site.registry, &ask.method, &ask.url, self.limits().answer))?
            .map_err(|e| transport_failure(&site.registry, &ask.method, &ask.url, e))?;
        let status = answer.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(self.refusal(site, &ask, answer).await);
        }
        let body = self.body(site, &ask, answer, TOKEN_BYTES_MAX).await?;
        let refused = |reason: String| RegistryError::Auth {
            registry: site.registry.clone(),
            what: format!("a token from {}", shown_url(realm)),
            reason: format!("HTTP {}: {reason}", status.as_u16()),
            sent: site.sent.clone(),
            help: way_in(site),
        };
        if !status.is_success() {
            return Err(refused(scrub(words(&body), &site.secrets())).into());
        }
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| refused("the answer holds no token".to_owned()))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| refused("the answer holds no token".to_owned()))?;
        let header = secret_header(&site.registry, "Bearer", &token)?;
        site.secrets.lock().expect("nobody panics while holding it").push(token);
        let lifetime = Duration::from_secs(lifetime_seconds(answer.expires_in.as_ref()));
        let margin = TOKEN_MARGIN.min(lifetime / 2);
        Ok(Grant { header, until: Instant::now() + lifetime - margin })
    }

    /// 401 or 403 although everything was said that there is to say.
    pub(super) fn access_refused(
        site: &Site,
        ask: &Ask<'_>,
        status: StatusCode,
        reason: &str,
    ) -> RegistryError {
        let (what, permission) = match ask.action {
            Action::Look => (ask.subject.to_owned(), "read"),
            Action::Pull => (format!("pulling {}", ask.subject), "read"),
            Action::Push => (format!("pushing {}", ask.subject), "write"),
        };
        let who = match &site.credentials {
            None => "no credentials were sent".to_owned(),
            Some(Credentials::Basic { username, .. }) => {
                format!("the credentials of {username} were sent")
            }
            Some(Credentials::IdentityToken(_) | Credentials::Bearer(_)) => {
                "a token was sent".to_owned()
            }
        };
        let scopes = match ask.scopes {
            [] => String::new(),
            scopes => format!(" ({})", scopes.join(" ")),
        };
        let help = match &site.credentials {
            None => way_in(site),
            Some(_) => format!(
                "check user name and password; the account needs {permission} permission there{scopes}; on Gitea a token needs \
                 `{permission}:package`, and the user must be the owner or a member"
            ),
        };
        RegistryError::Auth {
            registry: site.registry.clone(),
            what,
            reason: format!("HTTP {}: {reason}; {who}", status.as_u16()),
            sent: site.sent.clone(),
            help,
        }
    }
}

fn way_in(site: &Site) -> String {
    match site.credentials {
        None => format!("log in with `idpbuilder login {}`", site.registry),
        Some(_) => {
            format!("check user name and password; `idpbuilder login {}` sets them", site.registry)
        }
    }
}

/// A request for a token; redirects of it are not followed.
struct TokenRequest {
    method: Method,
    url: Url,
    headers: HeaderMap,
    form: Option<Bytes>,
}

impl TokenRequest {
    fn new(
        site: &Site,
        bearer: &Bearer,
        realm: &Url,
        scopes: &[String],
    ) -> Result<Self, RegistryError> {
        let mut parameters: Vec<(&str, &str)> = Vec::new();
        parameters.extend(bearer.service.as_deref().map(|service| ("service", service)));
        // Gitea names a scope of its own (`*`); others only repeat what was asked for.
        let theirs = bearer.scope.as_deref().filter(|scope| !scope.contains(':'));
        let scopes: Vec<&str> = match theirs {
            Some(scope) => vec![scope],
            None => scopes.iter().map(String::as_str).collect(),
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let mut url = realm.clone();
        if let Some(Credentials::IdentityToken(token)) = &site.credentials {
            let scope = scopes.join(" ");
            parameters.push(("scope", &scope));
            parameters.extend([
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", token),
            ]);
            let form = url::form_urlencoded::Serializer::new(String::new())
                .extend_pairs(parameters)
                .finish();
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, kind);
            return Ok(Self { method: Method::POST, url, headers, form: Some(form.into()) });
        }
        if let Some(Credentials::Basic { username, password }) = &site.credentials {
            let pair = STANDARD.encode(format!("{username}:{password}"));
            headers.insert(AUTHORIZATION, secret_header(&site.registry, "Basic", &pair)?);
            parameters.push(("account", username));
        }
        parameters.extend(scopes.into_iter().map(|scope| ("scope", scope)));
        url.query_pairs_mut().extend_pairs(parameters);
        Ok(Self { method: Method::GET, url, headers, form: None })
    }

    fn ask(&self) -> Ask<'_> {
        Ask {
            method: self.method.clone(),
            url: self.url.clone(),
            headers: self.headers.clone(),
            payload: Payload::Empty,
            action: Action::Push,
            subject: "a token",
            scopes: &[],
        }
    }
}

/// The URL that is asked for a token, if it may be.
fn realm_for(site: &Site, bearer: &Bearer) -> Result<Url, RegistryError> {
    let realm = &bearer.realm;
    let place = place_of(realm);
    let allowed = |origin: &String| {
        let by_url = Url::parse(origin).is_ok_and(|origin| same_origin(&origin, realm));
        by_url || (realm.scheme() == "https" && *origin == place)
    };
    let known = realm.scheme() == "https"
        && KNOWN_REALMS.contains(&(site.registry.as_str(), place.as_str()));
    if same_origin(realm, &site.base) || known || site.options.auth_realms.iter().any(allowed) {
        return Ok(realm.clone());
    }
    // Gitea builds its realm from its configured URL, which behind an ingress is often not the one
    // that it was reached by; the same path at the registry's own origin is the same service.
    if bearer.service.as_deref() == Some(GITEA_SERVICE) && realm.path().ends_with("/v2/token") {
        return Ok(site.url("token"));
    }
    let anonymous = site.credentials.is_none();
    let loops = is_loopback(realm) && is_loopback(&site.base);
    let named = matches!(realm.host(), Some(url::Host::Domain(_)));
    if anonymous && ((realm.scheme() == "https" && named) || loops) {
        return Ok(realm.clone());
    }
    Err(RegistryError::Auth {
        registry: site.registry.clone(),
        what: "authentication".to_owned(),
        reason: format!(
            "it asks to send the credentials to {}, which is another origin than {}",
            shown_url(realm),
            shown_url(&site.base)
        ),
        // They would have been.
        sent: site.sent.clone(),
        help: format!(
            "if that server is trusted with them, allow it: `auth-realm \"{}\"` for this registry",
            realm.origin().ascii_serialization()
        ),
    })
}

/// Seconds that a token lives; whatever makes no sense counts as if it were not there.
fn lifetime_seconds(expires_in: Option<&serde_json::Value>) -> u64 {
    let said = expires_in.and_then(|value| {
        value.as_f64().or_else(|| value.as_str().and_then(|text| text.parse::<f64>().ok()))
    });
    match said {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 3600")]
        Some(seconds) if seconds >= 1.0 => seconds.min(TOKEN_SECONDS_MAX as f64) as u64,
        _ => TOKEN_SECONDS_DEFAULT,
    }
}

fn secret_header(registry: &str, scheme: &str, secret: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(&format!("{scheme} {secret}")).map_err(|_| {
        RegistryError::Options(format!("{registry}: the token holds characters no header may have"))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lifetime_that_makes_no_sense_is_the_default() {
        for (said, wanted) in [
            (json!(300), 300),
            (json!("120"), 120),
            (json!(1e300), TOKEN_SECONDS_MAX),
            (json!(-5), TOKEN_SECONDS_DEFAULT),
            (json!(0), TOKEN_SECONDS_DEFAULT),
            (json!("soon"), TOKEN_SECONDS_DEFAULT),
            (json!(null), TOKEN_SECONDS_DEFAULT),
            (json!([1]), TOKEN_SECONDS_DEFAULT),
        ] {
            assert_eq!(lifetime_seconds(Some(&said)), wanted, "{said}");
        }
        assert_eq!(lifetime_seconds(None), TOKEN_SECONDS_DEFAULT);
    }
}
