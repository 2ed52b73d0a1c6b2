//! Mirrors: who is asked, in which order, and what becomes of one whose answers are wrong.

use std::sync::{Arc, Mutex};

use super::{
    Client, ClientOptions, Mirror, RegistryError, RegistryOptions,
    faults::{MANIFEST, content, layer, manifest, pull},
    scripted::{Reply, Request, Server, impatient},
};
use crate::oci::{Digest, MediaType, Reference};

/// A registry, its mirrors in order, and what its client says of them.
struct Places {
    client: Client,
    told: Arc<Mutex<Vec<String>>>,
    origin: String,
}

impl Places {
    /// Mirrors with the path below which each keeps things, and the registry after them.
    fn new(origin: &Server, mirrors: &[(&Server, &str)]) -> Self {
        Self::with(origin, mirrors, |_| {})
    }

    /// The same without the registry itself.
    fn without_fallback(origin: &Server, mirrors: &[(&Server, &str)]) -> Self {
        Self::with(origin, mirrors, |mirror| mirror.fallback = false)
    }

    fn with(origin: &Server, mirrors: &[(&Server, &str)], change: fn(&mut Mirror)) -> Self {
        let mut options = ClientOptions::default();
        for server in mirrors.iter().map(|(server, _)| *server).chain([origin]) {
            let plain = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
            options.registries.insert(server.registry(), plain);
        }
        let mirror = |(server, prefix): &(&Server, &str)| {
            let address = format!("{}{prefix}", server.address);
            let mut mirror = Mirror { address, fallback: true };
            change(&mut mirror);
            mirror
        };
        options.mirrors.insert(origin.registry(), mirrors.iter().map(mirror).collect());
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&told);
        options.on_passed_over = Some(Arc::new(move |text| log.lock().unwrap().push(text)));
        Self { client: impatient(options).unwrap(), told, origin: origin.registry() }
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    /// What is said of a mirror of these that `fault` says something about.
    fn passed_over(&self, fault: &str) -> String {
        format!("a mirror of {} is passed over: {fault}", self.origin)
    }
}

/// A server of one blob that honours ranges.
async fn honest(bytes: Vec<u8>) -> Server {
    Server::start(move |request| ranged(request, &bytes)).await
}

fn ranged(request: &Request, bytes: &[u8]) -> Reply {
    let Some(range) = request.header("range") else { return Reply::new(200).body(bytes) };
    let start: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
    Reply::new(206).with("content-range", range).body(&bytes[start..])
}

/// The content with one bit that is another.
fn flipped() -> Vec<u8> {
    let mut bytes = content();
    bytes[7] ^= 4;
    bytes
}

fn mismatch(server: &Server, expected: &[u8], found: &[u8]) -> String {
    let [expected, found] = [expected, found].map(Digest::of);
    format!("{} sent content with digest {found} for {expected}", server.address)
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_last_if_at_all() {
    let empty = Server::start(|_| Reply::new(404)).await;
    let full = Server::start(|request| match request.target.as_str() {
        "/v2/hub/library/a/manifests/1" => manifest(),
        _ => Reply::new(404),
    })
    .await;
    let origin = Server::start(|_| manifest()).await;
    let image = origin.image("library/a:1");
    let found = Places::without_fallback(&origin, &[(&empty, ""), (&full, "/hub")]);
    found.client.manifest(&image).await.unwrap();
    assert_eq!((empty.asked().len(), full.asked().len(), origin.asked().len()), (1, 1, 0));
    let alone = Places::without_fallback(&origin, &[(&empty, "")]);
    let error = alone.client.manifest(&image).await.unwrap_err();
    let wanted = format!("{image} (at the mirror {}) not found", empty.address);
    assert_eq!(error.to_string(), wanted);
    assert_eq!(origin.asked().len(), 0);
    let backed = Places::new(&origin, &[(&empty, "")]);
    backed.client.manifest(&image).await.unwrap();
    assert_eq!(origin.asked().len(), 1);
    let told = [found, alone, backed].map(|places| places.told());
    assert!(told.concat().is_empty(), "a mirror has not got everything: {told:?}");
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_are_told_once_and_had_from_the_next_place() {
    let wrong = Server::start(|_| Reply::new(200).body(flipped())).await;
    let origin = honest(content()).await;
    let places = Places::new(&origin, &[(&wrong, "")]);
    let (image, blob) = (origin.image("a:1"), layer(&content()));
    for _ in 0..2 {
        assert!(pull(&places.client, &image, &blob).await.unwrap() == content());
    }
    let fault = mismatch(&wrong, &content(), &flipped());
    assert_eq!(places.told(), [places.passed_over(&fault)]);
    assert!(origin.asked().iter().all(|asked| asked.header("range").is_none()));
}

#[tokio::test]
async fn a_mirror_that_breaks_off_is_gone_on_from_and_its_wrong_bytes_are_not_kept() {
    for (bytes, requests) in [(content(), 1), (flipped(), 2)] {
        let broken = Server::start(move |request| ranged(request, &bytes[..1000])).await;
        let origin = honest(content()).await;
        let places = Places::new(&origin, &[(&broken, "")]);
        let reported = Mutex::new(Vec::new());
        let (image, blob, mut out) = (origin.image("a:1"), layer(&content()), Vec::new());
        let progress = |done| reported.lock().unwrap().push(done);
        let pulled = places.client.pull_blob(&image, &blob, &mut out, &progress);
        pulled.await.unwrap();
        assert!(out == content());
        assert_eq!(origin.asked().len(), requests);
        assert_eq!(origin.asked()[0].header("range"), Some("bytes=1000-"));
        let told = places.told();
        assert!(told.len() == 1 && told[0].contains("ended after 1000 of 800000"), "{told:?}");
        let whole = reported.into_inner().unwrap().into_iter().filter(|done| *done == 800_000);
        assert_eq!(whole.count(), 1, "wrong bytes are not said to be there");
    }
}

#[tokio::test]
async fn documents_that_a_mirror_has_wrong_are_had_from_the_next_place() {
    const OTHER: &[u8] = br#"{"schemaVersion":2,"layers":[]}"#;
    let wrong = Server::start(|_| {
        let reply = Reply::new(200).with("content-type", MediaType::MANIFEST);
        reply.with("docker-content-digest", Digest::of(OTHER)).body(OTHER)
    })
    .await;
    let origin = Server::start(|_| manifest()).await;
    let places = Places::new(&origin, &[(&wrong, "")]);
    let pinned: Reference = origin.image("a").with_digest(Digest::of(MANIFEST));
    let (found, bytes) = places.client.manifest(&pinned).await.unwrap();
    assert_eq!((found.digest, bytes.as_slice()), (Digest::of(MANIFEST), MANIFEST));
    assert_eq!(places.client.resolve(&pinned).await.unwrap().digest, Digest::of(MANIFEST));
    assert_eq!(places.told(), [places.passed_over(&mismatch(&wrong, MANIFEST, OTHER))]);
}

#[tokio::test]
async fn when_nobody_has_it_right_each_place_is_told_with_what_it_said() {
    let empty = Server::start(|_| Reply::new(404)).await;
    let wrong = Server::start(|_| Reply::new(200).body(flipped())).await;
    let origin = Server::start(|_| Reply::new(200).body(&content()[..5])).await;
    let places = Places::new(&origin, &[(&empty, ""), (&wrong, "")]);
    let (image, blob) = (origin.image("a:1"), layer(&content()));
    let error = pull(&places.client, &image, &blob).await.unwrap_err();
    let RegistryError::Mirrored { error, mirrors } = error else { panic!("{error}") };
    let origin = origin.registry();
    let told = error.to_string();
    assert!(told.starts_with(&format!("{origin}: GET http://{origin}/v2/a/blobs/")), "{told}");
    assert!(told.contains("ended after 5 of 800000 bytes"), "{told}");
    let [first, second] = mirrors.as_slice() else { panic!("{mirrors:?}") };
    let missing = format!(
        "blob {} of {} (at the mirror {}) not found",
        blob.digest,
        image.familiar_name(),
        empty.address
    );
    assert_eq!(first.to_string(), missing);
    assert_eq!(second.to_string(), mismatch(&wrong, &content(), &flipped()));
}
