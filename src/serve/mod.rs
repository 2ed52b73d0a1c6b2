//! The embedded registry: the distribution API (`/v2/`) over the store, with TLS and basic authentication.
//!
//! Binds where it is told (loopback in practice) and answers only to host names that mean this
//! machine, so that a web page cannot reach it by DNS rebinding. Knows nothing of builds or plans.

mod answer;
mod api;
mod blobs;
mod manifests;
mod repository;
mod route;
mod uploads;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::{
    store::{Lease, Store, StoreError},
    trust::{Identity, TrustError},
};

/// Wait for running requests when the server stops.
const DRAIN_SECONDS: u64 = 10;
/// Wait for a request's header, and for a TLS handshake.
const HEADER_SECONDS: u64 = 30;
/// Wait after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time after which a server gives up what it holds for clients, since they have not come back.
#[derive(Clone, Copy)]
struct Patience {
    /// An upload: a file that is open, and its bytes.
    upload: Duration,
    /// Content that was asked for, once to twice as long: a blob is nobody's before its manifest comes, which may follow
    /// after hours on a slow line. It is a digest in memory.
    content: Duration,
}

const PATIENCE: Patience =
    Patience { upload: Duration::from_secs(60 * 60), content: Duration::from_secs(12 * 60 * 60) };

/// What a server is told.
pub struct ServeOptions {
    /// What it serves and where it keeps what is pushed.
    pub store: Store,
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// Certificate and key; plain HTTP without.
    pub identity: Option<Identity>,
    /// Who may use it; everybody without.
    pub login: Option<Login>,
}

/// Name and password that a client must send.
#[derive(Clone)]
pub struct Login {
    /// Name.
    pub username: String,
    /// Password.
    pub password: String,
}

/// Why the server could not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address is taken.
    #[error("{0} is in use")]
    InUse(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Certificate or key are not usable.
    #[error("certificate: {0}")]
    Identity(#[from] TrustError),
    /// The store refuses a lease.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A running server; it stops when dropped.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Starts serving on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn start(options: ServeOptions) -> Result<Self, ServeError> {
        Self::start_with(options, PATIENCE).await
    }

    async fn start_with(options: ServeOptions, patience: Patience) -> Result<Self, ServeError> {
        let address = options.address;
        let tls = options.identity.as_ref().map(acceptor).transpose()?;
        let refused = |source: io::Error| {
            let is_taken = source.kind() == io::ErrorKind::AddrInUse;
            if is_taken {
                ServeError::InUse(address)
            } else {
                ServeError::Listen { address, source }
            }
        };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address =
            listener.local_addr().map_err(|source| ServeError::Listen { address, source })?;
        let lease = options.store.lease()?;
        let api = Arc::new(api::Api::new(options.store, options.login));
        let (stop, stopped) = watch::channel(());
        let tidying = tidy(Arc::clone(&api), lease, patience, stopped.clone());
        let accepting = tokio::spawn(async move {
            tokio::join!(accept(listener, tls, api, stopped), tidying);
        });
        Ok(Self { address, stop, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no new requests, finishes running ones (10 s at most), and stops.
    pub async fn stop(self) {
        drop(self.stop);
        // A server that ended early has nothing left to finish.
        drop(self.accepting.await);
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    api: Arc<api::Api>,
    mut stopped: watch::Receiver<()>,
) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        // No descriptors left, or a client that is gone already: the next one may do better, but not at once.
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Otherwise a small answer that follows another waits until the client confirms that, 40 ms later.
        drop(stream.set_nodelay(true));
        let (tls, api, watcher) = (tls.clone(), Arc::clone(&api), graceful.watcher());
        tokio::spawn(async move {
            let mut server = auto::Builder::new(TokioExecutor::new());
            server
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(HEADER_SECONDS));
            let service = hyper::service::service_fn(move |request| {
                let api = Arc::clone(&api);
                async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
            });
            match tls {
                None => {
                    let connection = server.serve_connection(TokioIo::new(stream), service);
                    drop(watcher.watch(connection.into_owned()).await);
                }
                Some(tls) => {
                    let patience = Duration::from_secs(HEADER_SECONDS);
                    let handshake = tokio::time::timeout(patience, tls.accept(stream)).await;
                    let Ok(Ok(stream)) = handshake else { return };
                    let connection = server.serve_connection(TokioIo::new(stream), service);
                    drop(watcher.watch(connection.into_owned()).await);
                }
            }
        });
    }
    drop(listener);
    let patience = Duration::from_secs(DRAIN_SECONDS);
    drop(tokio::time::timeout(patience, graceful.shutdown()).await);
}

/// Holds what clients count on, until they have not come back for long, or the server stops.
async fn tidy(
    api: Arc<api::Api>,
    lease: Lease,
    patience: Patience,
    mut stopped: watch::Receiver<()>,
) -> Lease {
    let mut uploads = tokio::time::interval(patience.upload);
    let mut content = tokio::time::interval(patience.content);
    loop {
        tokio::select! {
            // What still runs counts on it to its end.
            _ = stopped.changed() => return lease,
            _ = uploads.tick() => api.sweep(patience.upload).await,
            // Where the lease cannot be written, nothing that comes can be, either: clients are told then.
            _ = content.tick() => drop(lease.age()),
        }
    }
}

fn acceptor(identity: &Identity) -> Result<TlsAcceptor, ServeError> {
    Ok(TlsAcceptor::from(Arc::new(identity.server_config()?)))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        sync::atomic::{AtomicU64, Ordering},
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        oci::{Descriptor, Digest, MediaType},
        registry::{Client, ClientOptions, Uploaded},
        store::GcPolicy,
    };

    fn options(store: &Store) -> ServeOptions {
        ServeOptions {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            store: store.clone(),
            identity: None,
            login: None,
        }
    }

    #[test]
    fn g09_what_was_uploaded_and_has_no_manifest_yet_is_not_collected() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let options = options(&store);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = runtime.block_on(Server::start(options)).unwrap();
        let blob = store.put_blob(b"a layer").unwrap();
        store.flush().unwrap();
        assert_eq!(store.gc(GcPolicy::default()).unwrap().blobs, 0);
        runtime.block_on(server.stop());
        assert_eq!(store.gc(GcPolicy::default()).unwrap().blobs, 1);
        assert_eq!(store.blob_size(blob), None);
    }

    /// The answer to a request, as it comes.
    async fn asked(server: SocketAddr, line: &str, range: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let length = body.len();
        let head = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{range}");
        let request = format!("{head}content-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn g03_bytes_that_are_not_the_next_ones_are_refused_and_the_session_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let server = Server::start(options(&store)).await.unwrap();
        let digest = Digest::of(b"helloworld");
        let opened = asked(server.address(), "POST /v2/a/blobs/uploads/", "", "").await;
        let (_, place) = opened.split_once("location: ").unwrap();
        let place = place.lines().next().unwrap();
        for (method, range, body, status, at) in [
            ("PATCH", "5-9", "world", 416, "range: 0-0"),
            ("PUT", "5-9", "world", 416, "range: 0-0"),
            ("PATCH", "0-4", "hello", 202, "range: 0-4"),
            ("PATCH", "0-4", "hello", 416, "range: 0-4"),
            ("PUT", "4-8", "oworl", 416, "range: 0-4"),
            ("PUT", "5-9", "world", 201, "docker-content-digest"),
        ] {
            let line = format!("{method} {place}?digest={digest}");
            let range = format!("content-range: {range}\r\n");
            let answer = asked(server.address(), &line, &range, body).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{method} {range}: {answer}"
            );
            assert!(answer.contains(at), "{method} {range}: {answer}");
        }
        assert_eq!(store.blob_size(digest), Some(10));
        server.stop().await;
    }

    /// A way to a server on which no connection carries more than so many bytes to it; says how many all did.
    async fn brittle(there: SocketAddr, bytes_max: u64) -> (SocketAddr, Arc<AtomicU64>) {
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, carried) = (door.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&carried);
        tokio::spawn(async move {
            while let Ok((client, _)) = door.accept().await {
                tokio::spawn(carry(client, there, bytes_max, Arc::clone(&count)));
            }
        });
        (address, carried)
    }

    async fn carry(mut client: TcpStream, to: SocketAddr, bytes_max: u64, count: Arc<AtomicU64>) {
        let mut server = TcpStream::connect(to).await.unwrap();
        let (mut answers, mut to_server) = server.split();
        let (requests, mut to_client) = client.split();
        let mut requests = requests.take(bytes_max);
        let mut buffer = vec![0; 16 << 10];
        let there = async {
            while let Ok(len @ 1..) = requests.read(&mut buffer).await {
                to_server.write_all(&buffer[..len]).await.unwrap();
                count.fetch_add(len as u64, Ordering::Relaxed);
            }
        };
        tokio::select! {
            () = there => {}
            _ = tokio::io::copy(&mut answers, &mut to_client) => {}
        }
    }

    /// More breaks than tries: what arrived is not sent again, and each piece of progress gives new tries.
    #[tokio::test(flavor = "multi_thread")]
    async fn g10_an_upload_survives_a_reset_at_every_mebibyte() {
        const SIZE: u64 = 8 << 20;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let server = Server::start(options(&store)).await.unwrap();
        let (address, carried) = brittle(server.address(), 1 << 20).await;
        let content: Vec<u8> = (0..SIZE).map(|at| (at >> 8 ^ at).to_le_bytes()[0]).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&content).unwrap();
        let digest = Digest::of(&content);
        let blob = Descriptor::new(MediaType::new(MediaType::LAYER), digest, SIZE);
        let client = Client::new(ClientOptions::default()).unwrap();
        let image = format!("{address}/shop/site:1").parse().unwrap();
        let uploaded = client.push_blob(&image, &blob, file.path(), &[], &|_| {}).await.unwrap();
        assert_eq!((uploaded, store.blob_size(digest)), (Uploaded::Sent, Some(SIZE)));
        let carried = carried.load(Ordering::Relaxed);
        assert!(carried < SIZE + (1 << 20), "{carried} bytes went to the registry");
        server.stop().await;
    }

    #[test]
    fn g09_what_nobody_has_asked_for_in_a_long_time_is_not_held_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let options = options(&store);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let short = Duration::from_millis(1);
        let patience = Patience { upload: short, content: short };
        runtime.block_on(async {
            let server = Server::start_with(options, patience).await.unwrap();
            store.put_blob(b"a layer").unwrap();
            store.flush().unwrap();
            while store.gc(GcPolicy::default()).unwrap().blobs == 0 {
                tokio::time::sleep(short).await;
            }
            server.stop().await;
        });
    }
}
