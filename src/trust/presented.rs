//! Looks at the certificates that a server shows, without believing them.
//!
//! Sends nothing but a TLS handshake.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{Trust, TrustError, Verifier, client_config};

/// Longest wait for the connection and the handshake together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The chain that `host` shows at `port`, its own certificate first. `address` is where to connect
/// instead of asking the resolver.
///
/// # Errors
///
/// [`TrustError::NoHandshake`] when nobody answers or the answer is no TLS.
pub async fn fetch_presented(
    host: &str,
    port: u16,
    address: Option<SocketAddr>,
) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let server = format!("{host}:{port}");
    let fail = |reason: String| TrustError::NoHandshake { server: server.clone(), reason };
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare.clone()).map_err(|error| fail(error.to_string()))?;
    let trust = Trust { insecure: true, ..Trust::default() };
    let config = client_config(Verifier::new(trust, &RootCertStore::empty())?)?;
    let handshake = async {
        let stream = match address {
            Some(address) => TcpStream::connect(address).await?,
            None => TcpStream::connect((bare.as_str(), port)).await?,
        };
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    let stream = timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| fail(format!("no TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())))?
        .map_err(|error| fail(error.to_string()))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(chain.iter().map(|certificate| certificate.clone().into_owned()).collect())
}
