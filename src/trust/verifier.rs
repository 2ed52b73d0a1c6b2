//! The TLS verifier of one origin: webpki first, then what the user said about this very certificate.
//!
//! One rule is ours: a certificate that may sign others *and* is shown by a server (as the CNOE stack
//! makes them) is refused by webpki even when it is trusted itself
//! (<https://github.com/rustls/webpki/issues/205>), and so is one whose issuer is a stranger. Both are
//! accepted if and only if they are, byte for byte, a certificate that is configured for this origin,
//! and names, validity, purpose and handshake signature hold. Knows nothing of HTTP.

use std::{error::Error as StdError, io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::{
    CertificateFacts, TrustError, certificate::shown_time, fingerprint, format_fingerprint,
};

/// Whom one origin may be.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Certificates given for this origin, besides the platform's roots.
    pub given: Vec<CertificateDer<'static>>,
    /// Certificates that the user trusted for this origin earlier: the platform's roots do not count
    /// when there are any, so that a change cannot go unseen.
    pub trusted: Vec<CertificateDer<'static>>,
    /// SHA-256 of the one certificate that the server must show.
    pub pin: Option<[u8; 32]>,
    /// Whoever answers is believed.
    pub insecure: bool,
}

/// Why a certificate was not believed, with what was presented.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Why, in words.
    pub reason: String,
    /// SHA-256 of what was presented, `AA:BB:…`.
    pub fingerprint: String,
    /// Subject and validity of what was presented.
    pub presented: String,
}

/// Decides about the certificates of one origin.
#[derive(Debug)]
pub struct Verifier {
    provider: Arc<CryptoProvider>,
    chains: Option<Arc<WebPkiServerVerifier>>,
    trust: Trust,
}

impl Verifier {
    /// A verifier for `trust`; `roots` are the platform's.
    ///
    /// # Errors
    ///
    /// [`TrustError::NotCertificate`] when a given certificate cannot be an anchor.
    pub fn new(trust: Trust, roots: &RootCertStore) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut anchors =
            if trust.trusted.is_empty() { roots.clone() } else { RootCertStore::empty() };
        for certificate in trust.given.iter().chain(&trust.trusted) {
            anchors
                .add(certificate.clone())
                .map_err(|error| TrustError::NotCertificate(error.to_string()))?;
        }
        let chains = if anchors.is_empty() {
            None
        } else {
            let builder =
                WebPkiServerVerifier::builder_with_provider(anchors.into(), Arc::clone(&provider));
            Some(builder.build().map_err(|error| TrustError::NotCertificate(error.to_string()))?)
        };
        Ok(Self { provider, chains, trust })
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let Some(chains) = &self.chains else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        chains.verify_server_cert(leaf, rest, name, &[], now).map(drop)
    }

    /// What webpki checks of a certificate besides its chain.
    fn verify_alone(
        leaf: &CertificateDer<'_>,
        facts: &CertificateFacts,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let refused = if seconds < facts.not_before {
            Some(CertificateError::NotValidYet)
        } else if seconds > facts.not_after {
            Some(CertificateError::Expired)
        } else if facts.is_for_servers {
            None
        } else {
            Some(CertificateError::InvalidPurpose)
        };
        match refused {
            Some(error) => Err(Error::InvalidCertificate(error)),
            None => verify_server_name(&ParsedCertificate::try_from(leaf)?, name),
        }
    }

    /// Whether whoever shows this is believed, though webpki cannot read the key in it (X.509 version 1).
    fn is_unreadable(&self, leaf: &CertificateDer<'_>) -> bool {
        let anybody = self.trust.insecure && self.trust.pin.is_none();
        anybody && ParsedCertificate::try_from(leaf).is_err()
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), String> {
        let facts = CertificateFacts::read(leaf).map_err(|error| error.to_string())?;
        let explain = |error| explain(&error, &facts, name, now);
        if let Some(pin) = self.trust.pin {
            if pin != facts.sha256 {
                let pinned = format_fingerprint(&pin);
                return Err(changed(&[pinned], &facts));
            }
            return Self::verify_alone(leaf, &facts, name, now).map_err(explain);
        }
        let Err(error) = self.verify_chain(leaf, rest, name, now) else { return Ok(()) };
        let configured =
            self.trust.given.iter().chain(&self.trust.trusted).any(|given| given == leaf);
        if configured && (facts.is_ca && is_ca_as_leaf(&error) || is_unknown_issuer(&error)) {
            return Self::verify_alone(leaf, &facts, name, now).map_err(explain);
        }
        let another = !configured && is_about_the_issuer(&error);
        if another && !self.trust.trusted.is_empty() {
            let known = self.trust.trusted.iter().map(|der| format_fingerprint(&fingerprint(der)));
            return Err(changed(&known.collect::<Vec<_>>(), &facts));
        }
        Err(explain(error))
    }
}

/// webpki has no public error for this case but its own `CaUsedAsEndEntity`, which arrives as `Other`;
/// that the certificate is a CA is checked on the certificate itself.
const fn is_ca_as_leaf(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Other(_)))
}

/// The issuer may be a stranger: `cert trust` believes the very certificate that a server shows.
const fn is_unknown_issuer(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::UnknownIssuer))
}

const fn is_about_the_issuer(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer
                | CertificateError::BadSignature
                | CertificateError::Other(_)
        )
    )
}

fn changed(known: &[String], facts: &CertificateFacts) -> String {
    format!(
        "it is not the certificate that was trusted: trusted {}, presented {}; if the server was set up \
         anew, trust the new one (`idpbuilder cert trust`), else somebody is in between",
        known.join(" or "),
        format_fingerprint(&facts.sha256)
    )
}

fn explain(
    error: &Error,
    facts: &CertificateFacts,
    name: &ServerName<'_>,
    now: UnixTime,
) -> String {
    let now = shown_time(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    let name = name.to_str();
    let Error::InvalidCertificate(error) = error else { return error.to_string() };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rustls may add reasons; its words serve then"
    )]
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("it expired on {}; it is {now} here", shown_time(facts.not_after))
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("it is valid from {} only; it is {now} here", shown_time(facts.not_before))
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let names = match facts.names.as_slice() {
                [] => "no name at all".to_owned(),
                names => names.join(", "),
            };
            format!("it is for {names}, not for {name}")
        }
        CertificateError::UnknownIssuer if facts.issuer == facts.subject => {
            "it is self-signed and nobody said to trust it".to_owned()
        }
        CertificateError::UnknownIssuer => format!("its issuer ({}) is not trusted", facts.issuer),
        CertificateError::BadSignature => "its signature is wrong".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not meant for servers".to_owned()
        }
        CertificateError::Other(_) if facts.is_ca => {
            "it is an authority's certificate used by a server, and nobody said to trust it"
                .to_owned()
        }
        CertificateError::Other(other) => format!(
            "its form is not accepted ({}): X.509 version 3 is needed, with its names as subjectAltName",
            other.0
        ),
        other => other.to_string(),
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.trust.insecure && self.trust.pin.is_none() {
            return Ok(ServerCertVerified::assertion());
        }
        let verified = self.verify(end_entity, intermediates, server_name, now);
        let Err(reason) = verified else { return Ok(ServerCertVerified::assertion()) };
        let refusal = Refusal {
            reason,
            fingerprint: format_fingerprint(&fingerprint(end_entity)),
            presented: CertificateFacts::read(end_entity)
                .map_or_else(|_| "not readable".to_owned(), |facts| facts.summary()),
        };
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal)))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.is_unreadable(cert) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.is_unreadable(cert) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A TLS client configuration that asks this verifier, for HTTP/2 and HTTP/1.1.
///
/// # Errors
///
/// [`TrustError::Make`] when the provider supports no protocol version, which would be a build fault.
pub fn client_config(verifier: Verifier) -> Result<ClientConfig, TrustError> {
    let provider = Arc::clone(&verifier.provider);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TrustError::Make(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The refusal of a [`Verifier`] somewhere among the causes of `error`.
#[must_use]
pub fn refusal_in<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Refusal> {
    let mut next = Some(error);
    while let Some(cause) = next {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = cause
            .downcast_ref::<Error>()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<Error>()));
        if let Some(Error::InvalidCertificate(CertificateError::Other(other))) = tls {
            return other.0.downcast_ref::<Refusal>();
        }
        next =
            inner.map_or_else(|| cause.source(), |inner| Some(inner as &(dyn StdError + 'static)));
    }
    None
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::trust::{Identity, IdentityKind};

    const NAME: &str = "gitea.cnoe.localtest.me";

    fn shown(kind: IdentityKind) -> CertificateDer<'static> {
        let identity = Identity::make(&[NAME.to_owned()], kind).unwrap();
        CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap()
    }

    fn verdict(
        trusted: &[&CertificateDer<'static>],
        leaf: &CertificateDer<'_>,
        name: &str,
    ) -> bool {
        let trusted = trusted.iter().map(|der| (*der).clone()).collect();
        let trust = Trust { trusted, ..Trust::default() };
        let verifier = Verifier::new(trust, &RootCertStore::empty()).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify(leaf, &[], &name, UnixTime::now()).is_ok()
    }

    #[test]
    fn the_very_certificate_that_was_trusted_is_believed_and_no_other() {
        for kind in [IdentityKind::SelfSigned, IdentityKind::Authority] {
            let (leaf, other) = (shown(kind), shown(kind));
            assert!(verdict(&[&leaf], &leaf, NAME), "{kind:?}");
            assert!(verdict(&[&other, &leaf], &leaf, NAME), "{kind:?}");
            assert!(!verdict(&[&other], &leaf, NAME), "{kind:?}");
            assert!(!verdict(&[], &leaf, NAME), "{kind:?}");
            assert!(!verdict(&[&leaf], &leaf, "other.localtest.me"), "{kind:?}");
        }
    }
    #[test]
    fn a_form_that_is_not_accepted_is_told_in_words() {
        let facts = CertificateFacts::read(&shown(IdentityKind::SelfSigned)).unwrap();
        let facts = CertificateFacts { is_ca: false, ..facts };
        let error = OtherError(Arc::new(io::Error::other("UnsupportedCertVersion")));
        let error = Error::InvalidCertificate(CertificateError::Other(error));
        let name = ServerName::try_from(NAME).unwrap();
        let said = explain(&error, &facts, &name, UnixTime::now());
        assert!(said.contains("(UnsupportedCertVersion): X.509 version 3 is needed"), "{said}");
    }
}
