//! The client against servers that answer wrongly or at the wrong time: more of the catalogue, R08, R16, R19, R21.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};

use super::{
    ClientOptions, RegistryError, RegistryOptions,
    faults::{basic, layer, manifest, pull, push, taker},
    scripted::{Reply, Server, impatient},
};
use crate::{
    oci::Digest,
    trust::{Identity, IdentityKind},
};

/// Every bit of a blob.
#[tokio::test]
async fn r08_no_blob_with_a_flipped_bit_is_accepted() {
    let bytes: Vec<u8> = (0..12).collect();
    let next = Arc::new(AtomicUsize::new(0));
    let (sent, flipping) = (bytes.clone(), Arc::clone(&next));
    let server = Server::start(move |_| {
        let mut flipped = sent.clone();
        let bit = flipping.load(Ordering::Relaxed);
        flipped[bit / 8] ^= 1 << (bit % 8);
        Reply::new(200).body(flipped)
    })
    .await;
    let (client, image, wanted) = (server.client(|_| {}), server.image("a:1"), layer(&bytes));
    for _ in 0..8 * bytes.len() {
        let error = pull(&client, &image, &wanted).await.unwrap_err();
        assert!(
            matches!(error, RegistryError::DigestMismatch { expected, .. } if expected == Digest::of(&bytes)),
            "{error}"
        );
        next.fetch_add(1, Ordering::Relaxed);
    }
}

/// How long a token lives is counted from its arrival by a clock that no registry sets.
#[tokio::test]
async fn r16_the_clock_of_a_registry_is_nothing_to_a_token() {
    for issued in ["2028-11-22T00:00:00Z", "2024-11-22T00:00:00Z", "1970-01-01T00:00:00Z"] {
        let tokens = Arc::new(AtomicUsize::new(0));
        let given = Arc::clone(&tokens);
        let server = Server::start(move |request| {
            if request.target.starts_with("/token") {
                given.fetch_add(1, Ordering::Relaxed);
                let text = format!(r#"{{"token":"t","expires_in":300,"issued_at":"{issued}"}}"#);
                return Reply::new(200).with("date", "Wed, 22 Nov 2028 00:00:00 GMT").body(text);
            }
            match request.header("authorization") {
                Some(_) => manifest().with("date", "Wed, 22 Nov 2028 00:00:00 GMT"),
                None => Reply::new(401).with("www-authenticate", "Bearer realm=\"/token\""),
            }
        })
        .await;
        let client = server.client(|options| options.credentials = basic());
        for _ in 0..3 {
            client.manifest(&server.image("a:1")).await.unwrap();
        }
        assert_eq!(tokens.load(Ordering::Relaxed), 1, "{issued}");
    }
}

/// Registries that take no chunks, or answer them wrongly, are asked for none.
#[tokio::test]
async fn r19_no_chunk_is_ever_sent() {
    let server = taker(|request| {
        (request.method == "PATCH").then(|| Reply::new(416).with("range", "0-4194303"))
    })
    .await;
    let large: Vec<u8> = vec![7; 5 << 20];
    push(&server.client(|_| {}), &server.image("a/b:1"), &large, &[]).await.unwrap();
    let lines = server.lines();
    assert!(lines.iter().all(|line| !line.starts_with("PATCH")), "{lines:?}");
    let puts: Vec<_> = server.asked().into_iter().filter(|asked| asked.method == "PUT").collect();
    assert_eq!(puts.len(), 1);
    assert!(puts[0].body == large && puts[0].header("content-range").is_none());
}

/// A connection that breaks while it is secured, or before it is answered, is made anew.
#[tokio::test]
async fn r21_connections_that_break_at_once_are_made_anew() {
    let identity = Identity::make(&["127.0.0.1".to_owned()], IdentityKind::Authority).unwrap();
    let tls = identity.server_config().unwrap();
    let server = Server::start_with(Some(tls), |_| manifest()).await;
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, behind) = (door.local_addr().unwrap(), server.address);
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((mut client, _)) = door.accept().await else { return };
            if number < 2 {
                // The greeting is heard; a reset is the answer, since more is left unread.
                drop(client.read(&mut [0; 8]).await);
                continue;
            }
            tokio::spawn(async move {
                let mut there = TcpStream::connect(behind).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut client, &mut there).await);
            });
        }
    });
    let mut options = ClientOptions::default();
    let trusted = RegistryOptions {
        ca_pem: Some(identity.authority_pem.clone().into_bytes()),
        ..RegistryOptions::default()
    };
    options.registries.insert(address.to_string(), trusted);
    let client = impatient(options).unwrap();
    let image = format!("{address}/a:1").parse().unwrap();
    let found = tokio::time::timeout(Duration::from_secs(60), client.manifest(&image)).await;
    found.unwrap().unwrap();
}
