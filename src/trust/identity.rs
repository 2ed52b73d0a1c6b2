//! What our own registry shows: a key and a certificate for this machine, made here, at most a year old.
//!
//! Names: `localhost`, the loopback addresses and `*.localtest.me` (public DNS answers 127.0.0.1 for all
//! names below it). Knows nothing of the server that uses it.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::pki_types::PrivateKeyDer;

use super::{CertificateFacts, TrustError, folder::write_private, parse_pem};

const DAY_SECONDS: u64 = 86_400;
/// How long a certificate is good for.
const VALID_DAYS: u64 = 360;
/// It is made anew when less than this is left of it.
const RENEW_DAYS: u64 = 14;
/// Clocks differ: it is valid from a little earlier.
const SKEW_SECONDS: u64 = 3_600;
const NAMES: &[&str] = &["localhost", "127.0.0.1", "::1", "localtest.me", "*.localtest.me"];
const CERTIFICATE_FILE: &str = "registry.pem";
const KEY_FILE: &str = "registry.key";
const AUTHORITY_FILE: &str = "authority.pem";

/// How an [`Identity`] is certified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityKind {
    /// By an authority made for it, confined to its names, whose key is forgotten at once.
    Authority,
    /// By itself, and able to sign others, as the CNOE stack's certificate is.
    SelfSigned,
}

/// A key with its certificate.
#[derive(Clone)]
pub struct Identity {
    /// The chain to show, PEM.
    pub certificate_pem: String,
    /// PKCS #8, PEM. Secret.
    pub key_pem: String,
    /// What a client has to trust, PEM.
    pub authority_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Makes a key and a certificate for `names` (DNS names and addresses) from now on.
    ///
    /// # Errors
    ///
    /// [`TrustError::Make`].
    pub fn make(names: &[String], kind: IdentityKind) -> Result<Self, TrustError> {
        let start = now_seconds().saturating_sub(SKEW_SECONDS);
        Self::make_valid(names, kind, start, start + VALID_DAYS * DAY_SECONDS)
    }

    /// As [`Identity::make`], valid between two Unix times.
    ///
    /// # Errors
    ///
    /// [`TrustError::Make`].
    pub fn make_valid(
        names: &[String],
        kind: IdentityKind,
        from_seconds: u64,
        to_seconds: u64,
    ) -> Result<Self, TrustError> {
        let fail = |error: rcgen::Error| TrustError::Make(error.to_string());
        let key = KeyPair::generate().map_err(fail)?;
        let valid = |params: &mut CertificateParams, common_name: &str| {
            let epoch = rcgen::date_time_ymd(1970, 1, 1);
            params.not_before = epoch + Duration::from_secs(from_seconds);
            params.not_after = epoch + Duration::from_secs(to_seconds);
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "idpbuilder");
            params.distinguished_name.push(DnType::CommonName, common_name);
        };
        let mut leaf = CertificateParams::new(names.to_vec()).map_err(fail)?;
        valid(&mut leaf, "idpbuilder registry");
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if kind == IdentityKind::SelfSigned {
            leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            leaf.key_usages.push(KeyUsagePurpose::KeyCertSign);
            let pem = leaf.self_signed(&key).map_err(fail)?.pem();
            let (certificate_pem, authority_pem) = (pem.clone(), pem);
            return Ok(Self { certificate_pem, key_pem: key.serialize_pem(), authority_pem });
        }
        let mut authority = CertificateParams::default();
        valid(&mut authority, "idpbuilder local authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        authority.name_constraints = Some(confined_to(names));
        let authority_key = KeyPair::generate().map_err(fail)?;
        let authority_pem = authority.self_signed(&authority_key).map_err(fail)?.pem();
        let issuer = Issuer::new(authority, authority_key);
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.use_authority_key_identifier_extension = true;
        let certificate_pem = leaf.signed_by(&key, &issuer).map_err(fail)?.pem();
        Ok(Self { certificate_pem, key_pem: key.serialize_pem(), authority_pem })
    }

    /// The identity kept in `folder`, made when there is none and made anew when it expires soon.
    ///
    /// # Errors
    ///
    /// Any [`TrustError`].
    pub fn load_or_make(folder: &Path) -> Result<Self, TrustError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| TrustError::Io { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
        let read = |name: &str| fs::read_to_string(folder.join(name));
        let kept = (read(CERTIFICATE_FILE), read(KEY_FILE), read(AUTHORITY_FILE));
        if let (Ok(certificate_pem), Ok(key_pem), Ok(authority_pem)) = kept {
            let kept = Self { certificate_pem, key_pem, authority_pem };
            if kept.is_good_at(now_seconds()) {
                return Ok(kept);
            }
        }
        let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        let made = Self::make(&names, IdentityKind::Authority)?;
        for (name, text) in [
            (KEY_FILE, &made.key_pem),
            (AUTHORITY_FILE, &made.authority_pem),
            (CERTIFICATE_FILE, &made.certificate_pem),
        ] {
            let path = folder.join(name);
            write_private(&path, text.as_bytes()).map_err(failed(&path))?;
        }
        Ok(made)
    }

    /// A TLS server configuration that shows this identity, for HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    ///
    /// [`TrustError::Make`] when key and certificate do not belong together.
    pub fn server_config(&self) -> Result<rustls::ServerConfig, TrustError> {
        use rustls::pki_types::pem::PemObject as _;
        let fail = |error: &dyn std::fmt::Display| TrustError::Make(error.to_string());
        let chain = parse_pem(self.certificate_pem.as_bytes(), CERTIFICATE_FILE)?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|e| fail(&e))?;
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| fail(&error))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| fail(&error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    fn is_good_at(&self, now_seconds: u64) -> bool {
        let Ok(chain) = parse_pem(self.certificate_pem.as_bytes(), CERTIFICATE_FILE) else {
            return false;
        };
        let facts = chain.first().and_then(|leaf| CertificateFacts::read(leaf).ok());
        let in_time = facts.is_some_and(|facts| {
            let now = i64::try_from(now_seconds).unwrap_or(i64::MAX);
            let left = i64::try_from(RENEW_DAYS * DAY_SECONDS).unwrap_or(i64::MAX);
            facts.not_before <= now && now.saturating_add(left) < facts.not_after
        });
        in_time && self.server_config().is_ok()
    }
}

fn confined_to(names: &[String]) -> NameConstraints {
    let subtree = |name: &String| match name.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(v4)) => {
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix(v4.octets(), 32))
        }
        Ok(std::net::IpAddr::V6(v6)) => {
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(v6.octets(), 128))
        }
        Err(_) => GeneralSubtree::DnsName(name.trim_start_matches("*.").to_owned()),
    };
    NameConstraints {
        permitted_subtrees: names.iter().map(subtree).collect(),
        excluded_subtrees: Vec::new(),
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_identity_is_kept_until_it_expires_and_its_key_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serve");
        let first = Identity::load_or_make(&path).unwrap();
        let again = Identity::load_or_make(&path).unwrap();
        assert_eq!(first.certificate_pem, again.certificate_pem);
        let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(KEY_FILE), mode(CERTIFICATE_FILE)), (0o600, 0o600));
        let names = vec!["localhost".to_owned()];
        let start = now_seconds() - 100 * DAY_SECONDS;
        let old = Identity::make_valid(
            &names,
            IdentityKind::Authority,
            start,
            now_seconds() + (RENEW_DAYS - 1) * DAY_SECONDS,
        );
        let old = old.unwrap();
        fs::write(path.join(CERTIFICATE_FILE), &old.certificate_pem).unwrap();
        fs::write(path.join(KEY_FILE), &old.key_pem).unwrap();
        let renewed = Identity::load_or_make(&path).unwrap();
        assert_ne!(renewed.certificate_pem, old.certificate_pem);
        let leaf = &parse_pem(renewed.certificate_pem.as_bytes(), "x").unwrap()[0];
        let facts = CertificateFacts::read(leaf).unwrap();
        assert_eq!(
            facts.names,
            ["localhost", "127.0.0.1", "::1", "localtest.me", "*.localtest.me"]
        );
        let days = (facts.not_after - facts.not_before) / 86_400;
        assert!(days <= 366, "{days}");
    }

    #[test]
    fn a_key_of_another_certificate_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::load_or_make(folder.path()).unwrap();
        let other = Identity::make(&["localhost".to_owned()], IdentityKind::SelfSigned).unwrap();
        fs::write(folder.path().join(KEY_FILE), other.key_pem).unwrap();
        let second = Identity::load_or_make(folder.path()).unwrap();
        assert_ne!(first.certificate_pem, second.certificate_pem);
        assert!(second.server_config().is_ok());
    }

    #[test]
    fn a_key_never_shows_in_debug_output() {
        let made = Identity::make(&["localhost".to_owned()], IdentityKind::Authority).unwrap();
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }
}
