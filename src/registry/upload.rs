//! The bytes of one blob on their way into one repository.
//!
//! One PUT of the whole blob is what nearly every registry takes (GHCR refuses large chunks, Artifact Registry all
//! chunks, ECR answers them wrongly). What broke goes on in small chunks where the registry says that it stopped, and
//! so does what is refused in one piece (a proxy with a limit). A registry that knows nothing of either gets the
//! whole anew, in a new session.

use std::path::Path;

use reqwest::{
    Method, Response,
    header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE},
};
use url::Url;

use super::{
    Client, RegistryError,
    answer::shown_url,
    push::Target,
    retry::{Again, Failure},
    site::Site,
    transport::{Ask, FilePart, Payload, Progress, resolve_location},
};
use crate::oci::Descriptor;

/// Bytes of a chunk, unless the registry wants more at once: what a proxy takes that says nothing else (nginx), and
/// the most that is sent again.
pub(super) const CHUNK_BYTES: u64 = 1 << 20;
/// Says how many bytes a chunk must have at least.
const CHUNK_MIN_HEADER: &str = "oci-chunk-min-length";
/// What makes a registry name an address without TLS, most often.
const NO_TLS_HELP: &str = "the proxy in front of the registry has to tell it that it is reached with TLS: \
    `X-Forwarded-Proto: https`";
/// The body was too large for somebody on the way, or is not taken as a whole.
const REFUSED_WHOLE: [u16; 5] = [405, 411, 413, 416, 501];
const NOT_FOUND: u16 = 404;
const RANGE_NOT_SATISFIABLE: u16 = 416;

/// A place to upload to, and how far it is.
#[derive(Clone)]
pub(super) struct Session {
    url: Url,
    done: u64,
    chunk_bytes: u64,
}

/// A file to send.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) blob: &'a Descriptor,
    pub(super) path: &'a Path,
    pub(super) progress: &'a Progress<'a>,
}

/// What is known of an upload from one try to the next.
#[derive(Default)]
pub(super) struct Way {
    /// Broke, and may go on.
    session: Option<Session>,
    /// Most bytes that a registry said to have.
    pub(super) furthest: u64,
    refuses_whole: bool,
    refuses_chunks: bool,
}

impl Session {
    /// Of the answer to a POST.
    pub(super) fn of(site: &Site, ask: &Ask<'_>, answer: &Response) -> Result<Self, RegistryError> {
        let url = location(answer).ok_or_else(|| RegistryError::Refused {
            registry: site.registry.clone(),
            url: shown_url(&ask.url),
            status: answer.status().as_u16(),
            reason: "the answer names no place to upload to (no Location, or one without TLS)"
                .to_owned(),
            help: named_place(answer).map(|_| NO_TLS_HELP.to_owned()),
        })?;
        let least = text(answer.headers(), CHUNK_MIN_HEADER).and_then(|text| text.parse().ok());
        Ok(Self { url, done: 0, chunk_bytes: CHUNK_BYTES.max(least.unwrap_or_default()) })
    }
}

impl Client {
    /// Goes on with an upload that broke; `false` when there is none, or nobody knows of it any more.
    pub(super) async fn resume(
        &self,
        site: &Site,
        target: &Target<'_>,
        content: Content<'_>,
        way: &mut Way,
    ) -> Result<bool, Failure> {
        let Some(session) = way.session.take().filter(|_| !way.refuses_chunks) else {
            return Ok(false);
        };
        match self.state_of(site, target, &session, content.blob.size).await {
            Ok(None) => Ok(false),
            Ok(Some(session)) => {
                self.send_chunks(site, target, content, (session, way)).await.map(|()| true)
            }
            Err(failure) => {
                way.session = Some(session);
                Err(failure)
            }
        }
    }

    /// Sends all bytes to a new session.
    pub(super) async fn upload(
        &self,
        site: &Site,
        target: &Target<'_>,
        content: Content<'_>,
        (session, way): (Session, &mut Way),
    ) -> Result<(), Failure> {
        if way.refuses_whole {
            return self.send_chunks(site, target, content, (session, way)).await;
        }
        let size = content.blob.size;
        let mut ask = content.ask(target, Method::PUT, &session, size);
        add_digest(&mut ask.url, content.blob);
        let Err(failure) = self.close(site, &ask, content.blob).await else { return Ok(()) };
        match refused_with(&failure) {
            Some(NOT_FOUND) => Err(lost(failure)),
            Some(status) if REFUSED_WHOLE.contains(&status) && !way.refuses_chunks => {
                way.refuses_whole = true;
                way.session = Some(session);
                if self.resume(site, target, content, way).await? {
                    return Ok(());
                }
                let session = self.open_session(site, target).await?;
                self.send_chunks(site, target, content, (session, way)).await
            }
            _ => {
                way.session = (failure.again != Again::Never).then_some(session);
                Err(failure)
            }
        }
    }

    /// How far a session is, by the registry's word; `None` when it does not say.
    async fn state_of(
        &self,
        site: &Site,
        target: &Target<'_>,
        session: &Session,
        size: u64,
    ) -> Result<Option<Session>, Failure> {
        let ask = target.ask(Method::GET, session.url.clone());
        let answer = match self.attempt(site, &ask).await {
            Ok(answer) if answer.status().is_success() => answer,
            Err(failure) if failure.again != Again::Never => return Err(failure),
            Ok(_) | Err(_) => return Ok(None),
        };
        let last = text(answer.headers(), RANGE.as_str())
            .and_then(|range| range.rsplit_once('-')?.1.trim().parse::<u64>().ok());
        let Some(last) = last else { return Ok(None) };
        // `0-0` is said of nothing, too. More than all of it is for the next request to find out.
        let done = if last == 0 { 0 } else { last.saturating_add(1).min(size) };
        let url = location(&answer).unwrap_or_else(|| session.url.clone());
        Ok(Some(Session { url, done, chunk_bytes: session.chunk_bytes }))
    }

    /// Sends what is missing, chunk by chunk, and says that this was all.
    async fn send_chunks(
        &self,
        site: &Site,
        target: &Target<'_>,
        content: Content<'_>,
        (mut session, way): (Session, &mut Way),
    ) -> Result<(), Failure> {
        // Gitea says one byte too many of what it has.
        let mut may_be_one_less = session.done > 0;
        let failure = loop {
            way.furthest = way.furthest.max(session.done);
            let bytes = session.chunk_bytes.min(content.blob.size - session.done);
            let sent = match bytes {
                0 => {
                    let mut ask = content.ask(target, Method::PUT, &session, 0);
                    add_digest(&mut ask.url, content.blob);
                    match self.close(site, &ask, content.blob).await {
                        Ok(()) => return Ok(()),
                        Err(failure) => Err(failure),
                    }
                }
                bytes => {
                    let ask = content.ask(target, Method::PATCH, &session, bytes);
                    self.succeed(site, &ask).await
                }
            };
            match sent {
                Ok(answer) => {
                    session.done += bytes;
                    session.url = location(&answer).unwrap_or(session.url);
                    may_be_one_less = false;
                }
                Err(failure)
                    if may_be_one_less && refused_with(&failure) == Some(RANGE_NOT_SATISFIABLE) =>
                {
                    session.done -= 1;
                    may_be_one_less = false;
                }
                Err(failure) => break failure,
            }
        };
        match (refused_with(&failure), failure.again) {
            (Some(NOT_FOUND), _) => Err(lost(failure)),
            (Some(_), Again::Never) => {
                way.refuses_chunks = true;
                Err(if way.refuses_whole { failure } else { lost(failure) })
            }
            (_, Again::Never) => Err(failure),
            _ => {
                way.session = Some(session);
                Err(failure)
            }
        }
    }

    /// Sends a PUT that ends an upload.
    async fn close(&self, site: &Site, ask: &Ask<'_>, blob: &Descriptor) -> Result<(), Failure> {
        let answer = self.succeed(site, ask).await?;
        super::push::check_digest(site, &answer, blob.digest)
    }

    /// Tells a registry that nothing will come; it forgets by itself when this fails.
    pub(super) async fn forget(&self, site: &Site, target: &Target<'_>, session: Session) {
        drop(self.attempt(site, &target.ask(Method::DELETE, session.url)).await);
    }
}

impl<'a> Content<'a> {
    /// A request with the next bytes for a session.
    fn ask(self, target: &'a Target<'_>, method: Method, session: &Session, bytes: u64) -> Ask<'a> {
        let in_chunks = method == Method::PATCH;
        let mut ask = target.ask(method, session.url.clone());
        let kind = HeaderValue::from_static("application/octet-stream");
        ask.headers.insert(CONTENT_TYPE, kind);
        let (Self { blob, path, progress }, start) = (self, session.done);
        if in_chunks {
            let range = HeaderValue::from_str(&format!("{start}-{}", start + bytes - 1));
            ask.headers.insert(CONTENT_RANGE, range.expect("digits are a header"));
        }
        if bytes > 0 {
            let part = FilePart { path, size: blob.size, start, bytes, progress };
            ask.payload = Payload::File(part);
        }
        ask
    }
}

/// The last request of an upload says what all of it must be.
fn add_digest(url: &mut Url, blob: &Descriptor) {
    url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
}

/// Where an upload goes on: never without TLS when the registry was reached with it.
fn location(answer: &Response) -> Option<Url> {
    let next = named_place(answer)?;
    (answer.url().scheme() == "http" || next.scheme() == "https").then_some(next)
}

fn named_place(answer: &Response) -> Option<Url> {
    resolve_location(answer.url(), text(answer.headers(), LOCATION.as_str())?)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The status of a refusal.
fn refused_with(failure: &Failure) -> Option<u16> {
    if let RegistryError::Refused { status, .. } = *failure.error { Some(status) } else { None }
}

/// The session is of no use any more, the repository is: a new one may do.
fn lost(failure: Failure) -> Failure {
    Failure { again: Again::Yes, ..failure }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{
        oci::Digest,
        registry::{
            ClientOptions, RegistryOptions, Uploaded,
            faults::{layer, push},
            scripted::{Reply, Request, Server, impatient},
        },
    };

    const SIZE: usize = 5 << 20;
    const CHUNK: usize = CHUNK_BYTES as usize;

    fn content() -> Vec<u8> {
        (0..SIZE / 4).flat_map(|number| u32::try_from(number).unwrap().to_le_bytes()).collect()
    }

    /// What a registry keeps of one upload.
    #[derive(Default)]
    struct Kept {
        bytes: Vec<u8>,
        requests: usize,
    }

    fn started() -> Reply {
        Reply::new(202).with("location", "/v2/a/b/blobs/uploads/0")
    }

    /// Takes bytes in order, each time at another place, and tells how many it has.
    fn take(kept: &mut Kept, request: &Request) -> Reply {
        kept.requests += 1;
        let next = format!("/v2/a/b/blobs/uploads/{}", kept.requests);
        let progress = |status, bytes: usize| {
            let range = format!("0-{}", bytes.saturating_sub(1));
            Reply::new(status).with("location", &next).with("range", range)
        };
        match request.method.as_str() {
            "HEAD" => Reply::new(404),
            "POST" => {
                kept.bytes.clear();
                started()
            }
            "GET" => progress(204, kept.bytes.len()),
            "PATCH" => {
                let (range, end) = (request.header("content-range").unwrap(), kept.bytes.len());
                if range != format!("{end}-{}", end + request.body.len() - 1) {
                    return progress(416, end);
                }
                kept.bytes.extend_from_slice(&request.body);
                progress(202, kept.bytes.len())
            }
            "PUT" => {
                kept.bytes.extend_from_slice(&request.body);
                let digest = Digest::of(&kept.bytes).to_string().replace(':', "%3A");
                Reply::new(if request.target.ends_with(&digest) { 201 } else { 400 })
            }
            _ => Reply::new(405),
        }
    }

    /// A registry as it should be, but for what `fault` makes of a request, whose number it is told.
    async fn registry(
        fault: impl Fn(&mut Kept, &Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Server {
        let kept = Mutex::new(Kept::default());
        Server::start(move |request| {
            let mut kept = kept.lock().unwrap();
            fault(&mut kept, request).unwrap_or_else(|| take(&mut kept, request))
        })
        .await
    }

    /// The connection breaks without an answer.
    fn broken() -> Reply {
        Reply::new(500).with("content-length", 9).cut(0)
    }

    fn sent(server: &Server, method: &str) -> Vec<usize> {
        let asked = server.asked();
        let of_it = asked.iter().filter(|asked| asked.method == method);
        of_it.map(|asked| asked.body.len()).collect()
    }

    #[tokio::test]
    async fn r04_what_broke_goes_on_where_it_stopped() {
        const KEPT: usize = 1_234_567;
        // Chunks break in their middle until few bytes are left.
        let breaks = |bytes: usize| bytes > 100_000;
        let server = registry(move |kept, request| {
            let part = match (request.method.as_str(), request.body.len()) {
                ("PUT", SIZE) => KEPT,
                ("PATCH", bytes) if breaks(bytes) => bytes / 2,
                _ => return None,
            };
            kept.bytes.extend_from_slice(&request.body[..part]);
            Some(broken())
        })
        .await;
        let client = server.client(|_| {});
        let done = push(&client, &server.image("a/b:1"), &content(), &[]).await.unwrap();
        assert_eq!(done, Uploaded::Sent);
        let chunks = sent(&server, "PATCH");
        assert!(chunks.len() > 7, "more breaks than tries without progress: {chunks:?}");
        assert!(chunks.iter().all(|bytes| *bytes <= CHUNK), "{chunks:?}");
        // Of each chunk that broke, half was there; all else went once.
        let broke = chunks.iter().filter(|bytes| breaks(**bytes));
        let twice: usize = broke.map(|bytes| bytes - bytes / 2).sum();
        assert_eq!(chunks.iter().sum::<usize>(), SIZE - KEPT + twice);
        assert_eq!(sent(&server, "PUT"), [SIZE, 0]);
        assert_eq!(sent(&server, "POST").len(), 1);
    }

    #[tokio::test]
    async fn r04_a_registry_that_always_breaks_is_given_up() {
        for keeps in [0, 1] {
            let server = registry(move |kept, request| {
                let sends = matches!(request.method.as_str(), "PUT" | "PATCH");
                let free = keeps - kept.bytes.len();
                kept.bytes.extend(request.body.iter().take(free));
                sends.then(broken)
            })
            .await;
            let error = push(&server.client(|_| {}), &server.image("a/b:1"), &content(), &[]).await;
            assert!(error.unwrap_err().to_string().contains("tried 6 times"));
            assert_eq!((sent(&server, "PUT").len(), sent(&server, "PATCH").len()), (1, 5));
        }
    }

    #[tokio::test]
    async fn r05_a_session_that_is_lost_is_opened_anew() {
        // Distribution knows its session no more once a body broke.
        for status in [400, 404, 416, 500] {
            let server = registry(move |kept, request| match request.method.as_str() {
                "PUT" if kept.requests < 3 => Some(broken()),
                "GET" => Some(Reply::new(status)),
                _ => None,
            })
            .await;
            push(&server.client(|_| {}), &server.image("a/b:1"), &content(), &[]).await.unwrap();
            let puts = sent(&server, "PUT");
            assert!(puts.len() >= 2 && puts.iter().all(|bytes| *bytes == SIZE), "{puts:?}");
            assert_eq!(sent(&server, "PATCH"), Vec::<usize>::new());
        }
    }

    #[tokio::test]
    async fn r19_what_is_refused_in_one_piece_goes_in_chunks_at_once() {
        for status in REFUSED_WHOLE {
            let server = registry(move |_, request| {
                (request.body.len() > CHUNK).then(|| Reply::new(status))
            })
            .await;
            let mut options = ClientOptions::default();
            let plain = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
            options.registries.insert(server.registry(), plain);
            options.on_retry =
                Some(Arc::new(|what, _, _| panic!("nothing is tried again: {what}")));
            let client = impatient(options).unwrap();
            push(&client, &server.image("a/b:1"), &content(), &[]).await.unwrap();
            assert_eq!(sent(&server, "PATCH"), [CHUNK; SIZE / CHUNK], "{status}");
        }
        let neither = registry(|_, request| (!request.body.is_empty()).then(|| Reply::new(413)));
        let server = neither.await;
        let error = push(&server.client(|_| {}), &server.image("a/b:1"), &content(), &[]).await;
        assert!(matches!(error, Err(RegistryError::Refused { status: 413, .. })), "{error:?}");
        assert_eq!((sent(&server, "PUT"), sent(&server, "PATCH")), (vec![SIZE], vec![CHUNK]));
    }

    #[tokio::test]
    async fn r19_a_registry_without_chunks_gets_the_whole_anew() {
        let server = registry(|kept, request| match request.method.as_str() {
            "PUT" if kept.requests == 2 => {
                kept.requests += 1;
                kept.bytes = vec![0; 1000];
                Some(broken())
            }
            "PATCH" => Some(Reply::new(405)),
            _ => None,
        })
        .await;
        push(&server.client(|_| {}), &server.image("a/b:1"), &content(), &[]).await.unwrap();
        assert_eq!((sent(&server, "PUT"), sent(&server, "PATCH").len()), (vec![SIZE; 2], 1));
    }

    #[tokio::test]
    async fn r19_a_registry_says_how_large_a_chunk_must_be() {
        let server = registry(|_, request| match request.method.as_str() {
            "PUT" if !request.body.is_empty() => Some(Reply::new(413)),
            "POST" => Some(started().with(CHUNK_MIN_HEADER, 3 << 20)),
            _ => None,
        })
        .await;
        push(&server.client(|_| {}), &server.image("a/b:1"), &content(), &[]).await.unwrap();
        assert_eq!(sent(&server, "PATCH"), [3 << 20, 2 << 20]);
    }

    #[tokio::test]
    async fn r20_gitea_says_one_byte_too_many_of_what_it_has() {
        let server = registry(|kept, request| match request.method.as_str() {
            "PUT" if kept.bytes.is_empty() => {
                kept.bytes = request.body[..1000].to_vec();
                Some(broken())
            }
            "GET" => Some(Reply::new(204).with("range", format!("0-{}", kept.bytes.len()))),
            _ => None,
        })
        .await;
        push(&server.client(|_| {}), &server.image("a/b:1"), &content(), &[]).await.unwrap();
        let chunks = sent(&server, "PATCH");
        assert_eq!(
            chunks.iter().skip(1).sum::<usize>(),
            SIZE - 1000,
            "one was refused: {chunks:?}"
        );
    }

    #[tokio::test]
    async fn a_session_that_is_not_needed_is_given_back() {
        let server = registry(|_, request| {
            request.target.contains("mount=").then(|| {
                let from = request.target.rsplit("from=").next().unwrap();
                Reply::new(202).with("location", format!("/session-of-{from}"))
            })
        })
        .await;
        let (client, image) = (server.client(|_| {}), server.image("a/b:1"));
        let from = ["one".to_owned(), "two".to_owned()];
        let offered = client.offer_blob(&image, &layer(b"x"), &from).await.unwrap();
        assert_eq!(offered, None);
        let deleted = |server: &Server| {
            let lines = server.lines().into_iter().filter(|line| line.starts_with("DELETE"));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(deleted(&server), ["DELETE /session-of-one", "DELETE /session-of-two"]);
        push(&client, &image, b"x", &["one", "two"]).await.unwrap();
        assert_eq!(deleted(&server)[2..], ["DELETE /session-of-one"]);
    }
}
