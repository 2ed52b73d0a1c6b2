//! Certificates, pins and the TLS verifier: whom to believe, and what to say about whom not.
//!
//! [`Verifier`] decides for one origin; [`TrustStore`] keeps what the user trusted; [`fetch_presented`]
//! looks at what a server shows without believing it; [`Identity`] is what our own registry shows.
//! Knows nothing of HTTP, registries or clusters.

mod certificate;
mod folder;
mod identity;
mod presented;
mod verifier;

use std::{io, path::PathBuf};

use thiserror::Error;

pub use certificate::{
    CertificateFacts, fingerprint, format_fingerprint, parse_fingerprint, parse_pem, to_pem,
};
pub use folder::{TrustStore, Trusted};
pub use identity::{Identity, IdentityKind};
pub use presented::fetch_presented;
pub use verifier::{Refusal, Trust, Verifier, client_config, refusal_in};

/// Why something could not be done with certificates.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The text is no PEM with a certificate in it.
    #[error("{0}: not a PEM certificate (`-----BEGIN CERTIFICATE-----` is expected)")]
    NotPem(String),
    /// The bytes are no X.509 certificate.
    #[error("not an X.509 certificate: {0}")]
    NotCertificate(String),
    /// The text is no SHA-256 fingerprint.
    #[error(
        "`{0}` is not a SHA-256 fingerprint: 64 hex digits are expected, with or without colons"
    )]
    NotFingerprint(String),
    /// The name cannot stand for a registry in a file name.
    #[error("`{0}` is not a registry; expected HOST or HOST:PORT")]
    NotRegistry(String),
    /// No TLS handshake came about.
    #[error("{server}: {reason}")]
    NoHandshake {
        /// Host and port.
        server: String,
        /// What happened.
        reason: String,
    },
    /// Making a certificate failed.
    #[error("cannot make a certificate: {0}")]
    Make(String),
}
