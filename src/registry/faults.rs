//! The client against a server that misbehaves: the catalogue R01–R18.

use std::{
    io::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    Client, ClientOptions, Credentials, RegistryError, RegistryOptions, Uploaded,
    retry::Limits,
    scripted::{Reply, Request, Server, impatience, impatient},
};
use crate::oci::{Descriptor, Digest, MediaType, Reference};

pub(super) const PASSWORD: &str = "correct-horse-battery";
pub(super) const MANIFEST: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;

pub(super) fn manifest() -> Reply {
    Reply::new(200)
        .with("content-type", MediaType::MANIFEST)
        .with("docker-content-digest", Digest::of(MANIFEST))
        .body(MANIFEST)
}

pub(super) fn basic() -> Option<Credentials> {
    Some(Credentials::Basic { username: "me".to_owned(), password: PASSWORD.to_owned() })
}

pub(super) fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::new(MediaType::LAYER), Digest::of(bytes), bytes.len() as u64)
}

pub(super) fn content() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// Says how many requests of this kind came before.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Counter {
    fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

pub(super) async fn pull(
    client: &Client,
    image: &Reference,
    blob: &Descriptor,
) -> Result<Vec<u8>, RegistryError> {
    let mut out = Vec::new();
    client.pull_blob(image, blob, &mut out, &|_| {}).await?;
    Ok(out)
}

pub(super) async fn push(
    client: &Client,
    image: &Reference,
    bytes: &[u8],
    from: &[&str],
) -> Result<Uploaded, RegistryError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let from: Vec<String> = from.iter().map(|from| (*from).to_owned()).collect();
    client.push_blob(image, &layer(bytes), file.path(), &from, &|_| {}).await
}

/// A server that takes uploads, but for what `fault` says instead.
pub(super) async fn taker(
    fault: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    Server::start(move |request| {
        if let Some(reply) = fault(request) {
            return reply;
        }
        match request.method.as_str() {
            "HEAD" => Reply::new(404),
            "POST" => Reply::new(202).with("location", "/v2/a/b/blobs/uploads/1?_state=secret"),
            "PUT" => Reply::new(201).with("docker-content-digest", Digest::of(&request.body)),
            _ => Reply::new(405),
        }
    })
    .await
}

#[tokio::test]
async fn r01_passing_faults_are_ridden_out_and_lasting_ones_are_told_once() {
    for status in [408, 429, 500, 502, 503, 504] {
        let count = Counter::default();
        let server = Server::start(move |_| match count.next() {
            0..3 => Reply::new(status),
            _ => manifest(),
        })
        .await;
        let told = Arc::new(Mutex::new(Vec::new()));
        let mut options = ClientOptions::default();
        let registry = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
        options.registries.insert(server.registry(), registry);
        let log = Arc::clone(&told);
        options.on_retry = Some(Arc::new(move |_, attempt, _| log.lock().unwrap().push(attempt)));
        let client = impatient(options).unwrap();
        client.manifest(&server.image("a:1")).await.unwrap();
        assert_eq!(*told.lock().unwrap(), [2, 3, 4], "{status}");
    }
    let server = Server::start(|_| {
        Reply::new(503).body(br#"{"errors":[{"code":"UNAVAILABLE","message":"try later"}]}"#)
    })
    .await;
    let error = server.client(|_| {}).manifest(&server.image("a:1")).await.unwrap_err();
    let registry = server.registry();
    assert_eq!(
        error.to_string(),
        format!(
            "{registry}: http://{registry}/v2/a/manifests/1: HTTP 503: UNAVAILABLE try later (tried 6 times)"
        )
    );
    assert_eq!(server.asked().len(), 6);
}

#[tokio::test]
async fn r01_a_manifest_is_put_again_when_its_blobs_are_not_seen_yet() {
    let unseen = br#"{"errors":[{"code":"DIGEST_INVALID"},{"code":"MANIFEST_BLOB_UNKNOWN"}]}"#;
    let counter = Counter::default();
    let server = Server::start(move |_| match counter.next() {
        0 => Reply::new(400).body(unseen),
        _ => Reply::new(201),
    })
    .await;
    let (client, media_type) = (server.client(|_| {}), MediaType::new(MediaType::MANIFEST));
    client.push_manifest(&server.image("a:1"), &media_type, MANIFEST).await.unwrap();
    assert_eq!(server.lines(), ["PUT /v2/a/manifests/1", "PUT /v2/a/manifests/1"]);
}

#[tokio::test]
async fn r01_uploads_ride_out_faults_of_each_request() {
    for method in ["HEAD", "POST", "PUT"] {
        let count = Counter::default();
        let server = taker(move |request| {
            (request.method == method && count.next() < 2).then(|| Reply::new(502))
        })
        .await;
        let sent =
            push(&server.client(|_| {}), &server.image("a/b:1"), b"layer", &[]).await.unwrap();
        assert_eq!(sent, Uploaded::Sent, "{method}");
        let last = server.asked().pop().unwrap();
        assert_eq!((last.method.as_str(), last.body.as_slice()), ("PUT", &b"layer"[..]));
    }
}

#[tokio::test]
async fn r01_other_refusals_are_final() {
    for status in [400, 405, 409, 413, 422] {
        let server = Server::start(move |_| Reply::new(status)).await;
        let result = server.client(|_| {}).manifest(&server.image("a:1")).await;
        assert!(matches!(result, Err(RegistryError::Refused { status: s, .. }) if s == status));
        assert_eq!(server.asked().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn r02_retry_after_is_kept_and_a_long_one_is_told_at_once() {
    let count = Counter::default();
    let server = Server::start(move |_| match count.next() {
        0 => Reply::new(429).with("retry-after", "0"),
        1 => Reply::new(429).with("retry-after", "garbage"),
        2 => Reply::new(429).with("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
        _ => manifest(),
    })
    .await;
    server.client(|_| {}).manifest(&server.image("a:1")).await.unwrap();
    let server = Server::start(|_| Reply::new(429).with("retry-after", "3600")).await;
    let error = server.client(|_| {}).manifest(&server.image("a:1")).await.unwrap_err();
    assert!(error.to_string().contains("it asks to wait 3600 s"), "{error}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn r02_waiting_has_an_end_however_often_a_server_asks_for_it() {
    let server = Server::start(|_| Reply::new(429).with("retry-after", "1")).await;
    let mut options = ClientOptions::default();
    let plain = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
    options.registries.insert(server.registry(), plain);
    let limits = Limits { patience: Duration::from_millis(1_500), ..Limits::default() };
    let client = Client::with_limits(options, limits).unwrap();
    let error = client.manifest(&server.image("a:1")).await.unwrap_err().to_string();
    // Once, where the first answer alone takes half a second.
    assert!(error.contains("tried 2 times") || error.contains("tried once"), "{error}");
}

#[tokio::test]
async fn r03_a_broken_pull_goes_on_where_it_was() {
    let bytes = content();
    for honours_range in [true, false] {
        let (count, body) = (Counter::default(), bytes.clone());
        let server = Server::start(move |request| {
            let start: usize = match request.header("range") {
                Some(range) if honours_range => {
                    range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
                }
                _ => 0,
            };
            let rest = &body[start..];
            let status = if start > 0 { 206 } else { 200 };
            let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
            let reply = Reply::new(status).with("content-range", range).body(rest);
            let at = count.next();
            let further = usize::from(!honours_range) * at;
            if at < 7 { reply.cut(100_000 * further.max(1)) } else { reply }
        })
        .await;
        let got = pull(&server.client(|_| {}), &server.image("a:1"), &layer(&bytes)).await.unwrap();
        assert!(got == bytes, "honours_range={honours_range}");
        let ranged = server.asked().iter().filter(|asked| asked.header("range").is_some()).count();
        assert!(ranged >= 6, "{ranged}");
    }
}

#[tokio::test]
async fn r03_a_server_without_progress_is_given_up() {
    let server = Server::start(|_| Reply::new(200).body([0; 1000]).cut(0)).await;
    let error =
        pull(&server.client(|_| {}), &server.image("a:1"), &layer(&[0; 1000])).await.unwrap_err();
    assert!(matches!(error, RegistryError::Network { .. }), "{error}");
    assert_eq!(server.asked().len(), 6);
}

#[tokio::test]
async fn r04_r05_a_broken_or_lost_upload_begins_anew_and_never_commits_a_part() {
    for broken in
        [Reply::new(404), Reply::new(500), Reply::new(201).with("content-length", 9).cut(0)]
    {
        let count = Counter::default();
        let fault = move |request: &Request| {
            (request.method == "PUT" && count.next() == 0).then(|| broken.clone())
        };
        let server = taker(fault).await;
        let sent = push(&server.client(|_| {}), &server.image("a/b:1"), &content(), &[]).await;
        assert!(sent.is_ok(), "{sent:?}");
        let puts = server.asked().into_iter().filter(|asked| asked.method == "PUT");
        assert!(puts.clone().count() <= 2 && puts.into_iter().all(|put| put.body == content()));
    }
}

#[tokio::test]
async fn r06_a_token_that_ran_out_is_fetched_anew_and_nothing_is_sent_twice() {
    let tokens = Arc::new(Counter::default());
    let server = {
        let tokens = Arc::clone(&tokens);
        Server::start(move |request| {
            if request.target.starts_with("/token") {
                let token = format!("t{}", tokens.next());
                return Reply::new(200).body(format!(r#"{{"token":"{token}"}}"#));
            }
            let host = request.header("host").unwrap();
            let wanted = if request.method == "POST" { "Bearer t1" } else { "Bearer t0" };
            let wanted = if request.method == "PUT" { "Bearer t1" } else { wanted };
            if request.header("authorization") != Some(wanted) {
                let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
                return Reply::new(401).with("www-authenticate", challenge);
            }
            match request.method.as_str() {
                "HEAD" => Reply::new(404),
                "POST" => Reply::new(202).with("location", "/v2/a/b/blobs/uploads/1"),
                _ => Reply::new(201),
            }
        })
        .await
    };
    let client = server.client(|options| options.credentials = basic());
    push(&client, &server.image("a/b:1"), b"layer", &[]).await.unwrap();
    let lines = server.lines();
    assert_eq!(lines.iter().filter(|line| line.starts_with("PUT")).count(), 1, "{lines:?}");
    assert_eq!(tokens.next(), 2);
    let asked = server.asked();
    let token = asked.iter().find(|asked| asked.target.starts_with("/token")).unwrap();
    assert_eq!(token.target, "/token?service=s&account=me&scope=repository%3Aa%2Fb%3Apull%2Cpush");
}

#[tokio::test]
async fn r07_a_refusal_says_what_is_missing_and_is_asked_once_more_only() {
    let server = Server::start(|request| {
        if request.target.starts_with("/token") {
            return Reply::new(200).body(br#"{"token":"abcdef"}"#);
        }
        let host = request.header("host").unwrap();
        Reply::new(401)
            .with("www-authenticate", format!("Bearer realm=\"http://{host}/token\""))
            .body(br#"{"errors":[{"code":"UNAUTHORIZED","message":"reqPackageAccess abcdef"}]}"#)
    })
    .await;
    let client = server.client(|options| options.credentials = basic());
    let error = push(&client, &server.image("a/b:1"), b"x", &[]).await.unwrap_err();
    let RegistryError::Auth { what, reason, help, .. } = &error else { panic!("{error}") };
    assert!(what.starts_with("pushing blob sha256:"), "{what}");
    assert_eq!(reason, "HTTP 401: no reason given; the credentials of me were sent");
    assert!(help.contains("write:package") && help.contains("repository:a/b:pull,push"), "{help}");
    assert_eq!(server.asked().len(), 3, "{:?}", server.lines());
    let error = server.client(|_| {}).manifest(&server.image("a/b:1")).await.unwrap_err();
    let RegistryError::Auth { reason, help, .. } = &error else { panic!("{error}") };
    assert_eq!(reason, "HTTP 401: UNAUTHORIZED reqPackageAccess ***; no credentials were sent");
    assert!(help.contains("idpbuilder login"), "{help}");
}

#[tokio::test]
async fn r08_wrong_bytes_and_wrong_digest_headers_are_refused() {
    let bytes = content();
    let mut flipped = bytes.clone();
    flipped[77_777] ^= 4;
    let server = Server::start(move |_| Reply::new(200).body(&flipped)).await;
    let error =
        pull(&server.client(|_| {}), &server.image("a:1"), &layer(&bytes)).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::DigestMismatch { expected, .. } if expected == Digest::of(&bytes))
    );
    let longer = Server::start(|_| Reply::new(200).body(b"longer than it should be")).await;
    assert!(pull(&longer.client(|_| {}), &longer.image("a:1"), &layer(b"short")).await.is_err());
    let lying = Server::start(|_| {
        Reply::new(200).with("docker-content-digest", Digest::of(b"other")).body(MANIFEST)
    })
    .await;
    let error = lying.client(|_| {}).manifest(&lying.image("a:1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error}");
    let server = Server::start(|_| manifest()).await;
    let pinned = server.image("a").with_digest(Digest::of(b"pinned"));
    let error = server.client(|_| {}).manifest(&pinned).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error}");
    let error = server.client(|_| {}).resolve(&pinned).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn r08_an_upload_that_is_answered_with_another_digest_is_no_upload() {
    let server = taker(|request| {
        (request.method == "PUT")
            .then(|| Reply::new(201).with("docker-content-digest", Digest::of(b"other")))
    })
    .await;
    let error = push(&server.client(|_| {}), &server.image("a/b:1"), b"x", &[]).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn r09_silence_is_given_up_and_tried_again() {
    let count = Counter::default();
    let server = Server::start(move |_| match count.next() {
        0 => manifest().silent(),
        _ => manifest(),
    })
    .await;
    let mut options = ClientOptions::default();
    let plain = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
    options.registries.insert(server.registry(), plain);
    let limits = Limits { answer: Duration::from_millis(400), ..impatience() };
    let client = Client::with_limits(options, limits).unwrap();
    client.manifest(&server.image("a:1")).await.unwrap();
    // A busy machine may be silent once more.
    assert!(server.asked().len() >= 2);
}

#[tokio::test]
async fn r10_a_body_without_end_is_cut_off() {
    let server = Server::start(|_| {
        Reply::new(200).with("content-type", MediaType::MANIFEST).body(vec![b' '; 9 << 20])
    })
    .await;
    let error = server.client(|_| {}).manifest(&server.image("a:1")).await.unwrap_err();
    assert!(error.to_string().contains("longer than 8388608 bytes"), "{error}");
}

#[tokio::test]
async fn r11_redirects_are_followed_a_few_times_and_never_to_another_scheme() {
    let server = Server::start(|request| match request.target.as_str() {
        "/v2/a/manifests/1" => Reply::new(307).with("location", "/hop"),
        "/hop" => Reply::new(302).with("location", "hop2"),
        "/hop2" => manifest(),
        "/v2/a/manifests/loop" => Reply::new(307).with("location", "/v2/a/manifests/loop"),
        _ => Reply::new(307).with("location", "ftp://elsewhere/x"),
    })
    .await;
    let client = server.client(|_| {});
    client.manifest(&server.image("a:1")).await.unwrap();
    let error = client.manifest(&server.image("a:loop")).await.unwrap_err();
    assert!(error.to_string().contains("more than 5 redirects"), "{error}");
    let error = client.manifest(&server.image("a:ftp")).await.unwrap_err();
    assert!(error.to_string().contains("no URL"), "{error}");
}

#[tokio::test]
async fn r13_a_head_that_says_too_little_is_followed_by_a_get() {
    for head in [Reply::new(405), Reply::new(200), Reply::new(500)] {
        let server = Server::start(move |request| match request.method.as_str() {
            "HEAD" => head.clone(),
            _ => manifest(),
        })
        .await;
        let found = server.client(|_| {}).resolve(&server.image("a:1")).await.unwrap();
        assert_eq!(found.digest, Digest::of(MANIFEST));
        assert_eq!(server.lines(), ["HEAD /v2/a/manifests/1", "GET /v2/a/manifests/1"]);
    }
    let server = Server::start(|_| manifest()).await;
    let found = server.client(|_| {}).resolve(&server.image("a:1")).await.unwrap();
    assert_eq!((found.digest, found.size), (Digest::of(MANIFEST), MANIFEST.len() as u64));
    assert_eq!(server.lines(), ["HEAD /v2/a/manifests/1"]);
}

#[tokio::test]
async fn r15_what_is_no_manifest_is_told_readably() {
    for (body, wanted) in [
        (&b"<html><h1>Please log in</h1></html>"[..], "no manifest (text/html): Please log in"),
        (b"\xff\xfe\x00\x1b", "no manifest (text/html): \u{fffd}\u{fffd}"),
        (br#"{"schemaVersion":1}"#, "schema 1"),
        (br#"{"schemaVersion":2}"#, "neither a manifest nor an index"),
    ] {
        let server = Server::start(move |_| {
            Reply::new(200).with("content-type", "text/html; charset=x").body(body)
        })
        .await;
        let error = server.client(|_| {}).manifest(&server.image("a:1")).await.unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(!error.to_string().contains(char::is_control));
    }
}

#[tokio::test]
async fn r18_a_mount_that_is_not_granted_becomes_an_upload() {
    let upload = || Reply::new(202).with("location", "/v2/a/b/blobs/uploads/mounted");
    for (mount, wanted) in [
        (Reply::new(201).with("docker-content-digest", Digest::of(b"layer")), Uploaded::Mounted),
        (Reply::new(201).with("docker-content-digest", Digest::of(b"other")), Uploaded::Sent),
        (Reply::new(201), Uploaded::Sent),
        (upload(), Uploaded::Sent),
        (Reply::new(404), Uploaded::Sent),
        (Reply::new(405), Uploaded::Sent),
        (Reply::new(401), Uploaded::Sent),
    ] {
        let reply = mount.clone();
        let server =
            taker(move |request| request.target.contains("mount=").then(|| reply.clone())).await;
        let done =
            push(&server.client(|_| {}), &server.image("a/b:1"), b"layer", &["base/x"]).await;
        assert_eq!(done.unwrap(), wanted, "{mount:?}");
        let asked = server.asked();
        let digest = Digest::of(b"layer").to_string().replace(':', "%3A");
        assert_eq!(asked[1].target, format!("/v2/a/b/blobs/uploads/?mount={digest}&from=base%2Fx"));
    }
}

#[tokio::test]
async fn what_is_there_is_not_sent_and_one_put_sends_the_rest() {
    let server = taker(|request| (request.method == "HEAD").then(|| Reply::new(200))).await;
    let done = push(&server.client(|_| {}), &server.image("a/b:1"), b"x", &[]).await.unwrap();
    assert_eq!((done, server.asked().len()), (Uploaded::Existed, 1));
    let server = taker(|_| None).await;
    push(&server.client(|_| {}), &server.image("a/b:1"), &content(), &[]).await.unwrap();
    let put = server.asked().pop().unwrap();
    assert_eq!(put.header("content-length"), Some("800000"));
    assert_eq!(put.header("transfer-encoding"), None);
    assert!(put.target.starts_with("/v2/a/b/blobs/uploads/1?_state=secret&digest=sha256%3A"));
}

#[tokio::test]
async fn r22_nobody_there_is_told_soon_and_by_name() {
    // Taken, so that nobody else listens there meanwhile.
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let free = taken.local_addr().unwrap();
    let tries = Arc::new(Counter::default());
    let count = Arc::clone(&tries);
    let on_retry: crate::registry::OnRetry = Arc::new(move |_, _, _| {
        count.next();
    });
    let client =
        impatient(ClientOptions { on_retry: Some(on_retry), ..ClientOptions::default() }).unwrap();
    let image: Reference = format!("{free}/a:1").parse().unwrap();
    let error = client.manifest(&image).await.unwrap_err().to_string();
    assert!(error.contains("Connection refused") && error.contains("tried 3 times"), "{error}");
    assert_eq!(tries.next(), 2);
    let error = client.manifest(&"no.such.host.invalid/a:1".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("cannot resolve no.such.host.invalid"), "{error}");
}
