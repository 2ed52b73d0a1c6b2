//! What a certificate says, for people: subject, issuer, validity, names, fingerprint.
//!
//! Knows how to read certificates, not whether to believe them.

use rustls::pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::TrustError;

/// SHA-256 of a certificate's DER, as browsers and `openssl x509 -fingerprint -sha256` show it.
#[must_use]
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// `AA:BB:…`, upper case with colons.
#[must_use]
pub fn format_fingerprint(fingerprint: &[u8; 32]) -> String {
    let pairs: Vec<String> = fingerprint.iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

/// Reads 64 hex digits of either case, with or without colons, and an optional `sha256:` or
/// `SHA256 Fingerprint=` before them.
///
/// # Errors
///
/// [`TrustError::NotFingerprint`].
pub fn parse_fingerprint(text: &str) -> Result<[u8; 32], TrustError> {
    let fail = || TrustError::NotFingerprint(text.to_owned());
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.rsplit_once('=').map_or(lower.as_str(), |(_, digits)| digits);
    let digits = digits.strip_prefix("sha256:").unwrap_or(digits);
    let digits: Vec<u32> = digits
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).ok_or_else(fail))
        .collect::<Result<_, _>>()?;
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(high << 4 | low).map_err(|_| fail()),
            _ => Err(fail()),
        })
        .collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| fail())
}

/// All certificates of a PEM text, at least one. Other PEM sections are passed over.
///
/// # Errors
///
/// [`TrustError::NotPem`] naming `place`, [`TrustError::NotCertificate`].
pub fn parse_pem(text: &[u8], place: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let fail = || TrustError::NotPem(place.to_owned());
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(|_| fail())?;
    if certificates.is_empty() {
        return Err(fail());
    }
    for certificate in &certificates {
        CertificateFacts::read(certificate)?;
    }
    Ok(certificates)
}

/// PEM text of certificates.
#[must_use]
pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    const LINE_CHARS: usize = 64;
    let mut pem = String::new();
    for certificate in certificates {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text: Vec<char> = STANDARD.encode(certificate).chars().collect();
        for line in text.chunks(LINE_CHARS) {
            pem.extend(line);
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

/// The first version that names its servers as clients want it (RFC 5280, 4.1.2.1).
const VERSION_MIN: u32 = 3;

/// What a certificate says about itself. None of it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whom it is for, such as `O=cnoe.io`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// First second of validity, Unix time.
    pub not_before: i64,
    /// Last second of validity, Unix time.
    pub not_after: i64,
    /// DNS names and addresses it is for.
    pub names: Vec<String>,
    /// Whether it may sign others.
    pub is_ca: bool,
    /// Whether it may be shown by a server (no extended key usage, or one that says so).
    pub is_for_servers: bool,
    /// Version of its form: 3 for all that have names and are accepted.
    pub version: u32,
    /// SHA-256 of its DER.
    pub sha256: [u8; 32],
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    ///
    /// [`TrustError::NotCertificate`].
    pub fn read(der: &[u8]) -> Result<Self, TrustError> {
        let fail = |reason: String| TrustError::NotCertificate(reason);
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| fail(error.to_string()))?;
        let names = certificate.subject_alternative_name().map_err(|e| fail(e.to_string()))?;
        let names = names.map_or_else(Vec::new, |names| {
            names.value.general_names.iter().filter_map(shown_name).collect()
        });
        let usage = certificate.extended_key_usage().map_err(|e| fail(e.to_string()))?;
        Ok(Self {
            subject: printable(&certificate.subject().to_string()),
            issuer: printable(&certificate.issuer().to_string()),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            names,
            is_ca: certificate.is_ca(),
            is_for_servers: usage.is_none_or(|usage| usage.value.server_auth || usage.value.any),
            version: certificate.version().0.saturating_add(1),
            sha256: fingerprint(der),
        })
    }

    /// What keeps it from being accepted at a time (Unix seconds), whoever trusts it; `None` when nothing does.
    #[must_use]
    pub fn fault(&self, now: i64) -> Option<String> {
        if self.version < VERSION_MIN {
            let version = self.version;
            return Some(format!(
                "X.509 version {version}: version {VERSION_MIN} is needed, with its names as subjectAltName"
            ));
        }
        if now > self.not_after {
            return Some(format!("expired on {}", shown_time(self.not_after)));
        }
        (now < self.not_before).then(|| format!("not valid before {}", shown_time(self.not_before)))
    }

    /// Subject and validity on one line, for messages.
    #[must_use]
    pub fn summary(&self) -> String {
        let subject = if self.subject.is_empty() { "no subject" } else { &self.subject };
        let (from, to) = (shown_time(self.not_before), shown_time(self.not_after));
        format!("{subject}, valid from {from} to {to}")
    }
}

/// `2026-11-22 16:18 UTC`.
pub(super) fn shown_time(unix_seconds: i64) -> String {
    jiff::Timestamp::from_second(unix_seconds).map_or_else(
        |_| format!("{unix_seconds} s after 1970"),
        |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

fn shown_name(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        return Some(printable(name));
    }
    let GeneralName::IPAddress(bytes) = name else { return None };
    if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(*bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

/// Certificates come from strangers: no control characters reach a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_fingerprint_survives_its_text(bytes in any::<[u8; 32]>()) {
            prop_assert_eq!(parse_fingerprint(&format_fingerprint(&bytes)).unwrap(), bytes);
        }

        #[test]
        fn no_text_makes_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".*") {
            drop(CertificateFacts::read(&bytes));
            drop(parse_pem(&bytes, "x"));
            drop(parse_fingerprint(&text));
        }
    }

    #[test]
    fn fingerprints_are_read_in_every_usual_spelling() {
        let hex = "0a".repeat(32);
        let upper = vec!["0A"; 32].join(":");
        for text in
            [&hex, &upper, &format!("sha256:{hex}"), &format!("SHA256 Fingerprint={upper}\n")]
        {
            assert_eq!(parse_fingerprint(text).unwrap(), [10; 32], "{text}");
        }
        for text in ["", "0a", &"0a".repeat(33), &"zz".repeat(32)] {
            assert!(parse_fingerprint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pem_is_what_was_encoded() {
        let der = CertificateDer::from(include_bytes!("mod.rs").to_vec());
        let back = CertificateDer::from_pem_slice(to_pem(std::slice::from_ref(&der)).as_bytes());
        assert_eq!(back.unwrap(), der);
    }
}
