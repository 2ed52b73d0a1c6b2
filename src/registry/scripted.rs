//! A server for tests that does exactly what a script says, and remembers what it was asked.
//!
//! HTTP/1.1 by hand on purpose: faults such as a connection that breaks after *n* bytes cannot be
//! told to a well-behaved server library.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::{Client, ClientOptions, RegistryError, RegistryOptions, retry::Limits};
use crate::oci::Reference;

/// What the server was asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path with query.
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// `GET /v2/x`.
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }
}

/// What it answers.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The connection breaks after this many bytes of the body.
    cut: Option<usize>,
    /// Nothing is ever sent.
    silent: bool,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None, silent: false }
    }

    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(super) fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    pub(super) fn silent(mut self) -> Self {
        self.silent = true;
        self
    }
}

type Script = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

/// The running server; it ends with the test's runtime.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(super) async fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, script).await
    }

    pub(super) async fn start_with(
        tls: Option<rustls::ServerConfig>,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (script, log): (Script, _) = (Arc::new(script), Arc::clone(&asked));
        let tls = tls.map(|mut config| {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            TlsAcceptor::from(Arc::new(config))
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, log, tls) = (Arc::clone(&script), Arc::clone(&log), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => converse(stream, &script, &log).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => converse(stream, &script, &log).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { address, asked }
    }

    pub(super) fn registry(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn image(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }

    pub(super) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.asked().iter().map(Request::line).collect()
    }

    /// A client that speaks plain HTTP to this server, with `change` made to its options for it.
    pub(super) fn client(&self, change: impl FnOnce(&mut RegistryOptions)) -> Client {
        let mut options = ClientOptions::default();
        let mut registry = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
        change(&mut registry);
        options.registries.insert(self.registry(), registry);
        impatient(options).unwrap()
    }
}

/// A client that tries again at once. Answers it awaits as long as any: how busy the machine is makes no fault.
pub(super) fn impatient(options: ClientOptions) -> Result<Client, RegistryError> {
    Client::with_limits(options, impatience())
}

/// The limits of [`impatient`].
pub(super) fn impatience() -> Limits {
    let (backoff, backoff_max) = (Duration::from_millis(1), Duration::from_millis(2));
    Limits { backoff, backoff_max, ..Limits::default() }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    script: &Script,
    log: &Mutex<Vec<Request>>,
) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let request = read_request(&mut stream, &mut buffer).await?;
        log.lock().unwrap().push(request.clone());
        let reply = script(&request);
        if reply.silent {
            std::future::pending::<()>().await;
        }
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", reply.status);
        let says_length = reply.headers.iter().any(|(name, _)| name == "content-length");
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !says_length && reply.status != 204 {
            head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await.ok()?;
        if request.method != "HEAD" {
            let end = reply.cut.unwrap_or(reply.body.len());
            stream.write_all(&reply.body[..end]).await.ok()?;
        }
        stream.flush().await.ok()?;
        if reply.cut.is_some() {
            return None;
        }
    }
}

async fn read_request<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    buffer: &mut Vec<u8>,
) -> Option<Request> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if buffer.first() == Some(&0x16) {
            // A TLS greeting on a plain port: what net/http answers.
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nnot TLS").await.ok()?;
            return None;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
    buffer.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.map_or(0, |(_, value)| value.parse().unwrap());
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer.drain(..length).collect();
    Some(Request { method, target, headers, body })
}
