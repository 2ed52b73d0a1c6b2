//! Looking at a registry: what answers, how it is secured, who we are to it.

use std::time::Instant;

use reqwest::{Method, header::HeaderMap, tls::TlsInfo};

use super::{
    Client, Credentials, RegistryError,
    answer::shown_url,
    retry::{Failure, Tries},
    transport::{Action, Ask, Payload},
};
use crate::trust::{CertificateFacts, format_fingerprint};

impl Client {
    pub(super) async fn look_at(&self, registry: &str) -> Result<Vec<String>, RegistryError> {
        let mut tries = Tries::new(self);
        loop {
            match self.look_once(registry).await {
                Ok(facts) => return Ok(facts),
                Err(failure) => tries.wait(failure).await?,
            }
        }
    }

    async fn look_once(&self, registry: &str) -> Result<Vec<String>, Failure> {
        let started = Instant::now();
        let site = self.site(registry, None).await?;
        let subject = format!("the API of {registry}");
        let ask = Ask {
            method: Method::GET,
            url: site.url(""),
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            action: Action::Look,
            subject: &subject,
            scopes: &[],
        };
        let answer = self.succeed(&site, &ask).await?;
        let took = started.elapsed().as_millis();
        let mut facts = vec![format!("{} answers in {took} ms", shown_url(&ask.url))];
        if let Some(der) = answer.extensions().get::<TlsInfo>().and_then(TlsInfo::peer_certificate)
            && let Ok(certificate) = CertificateFacts::read(der)
        {
            facts.push(format!("certificate: {}", certificate.summary()));
            facts.push(format!("SHA-256: {}", format_fingerprint(&certificate.sha256)));
        } else {
            facts.push("plain HTTP: nothing is encrypted".to_owned());
        }
        if site.options.insecure {
            facts.push("insecure: whoever answers is believed".to_owned());
        }
        facts.push(match &site.credentials {
            None => "no credentials: anonymous".to_owned(),
            Some(Credentials::Basic { username, .. }) => format!("credentials: user {username}"),
            Some(Credentials::IdentityToken(_)) => "credentials: identity token".to_owned(),
            Some(Credentials::Bearer(_)) => "credentials: bearer token".to_owned(),
        });
        if self.is_gitea(&site).await {
            facts.push("Gitea: repositories need an owner, tags do not tell case apart".to_owned());
        }
        Ok(facts)
    }
}
