//! The client against real TLS and against a real registry (Debian's `docker-registry`).

use std::{
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    Client, ClientOptions, Credentials, RegistryError, RegistryOptions, Uploaded,
    scripted::{Reply, Server, impatient},
};
use crate::{
    oci::{Descriptor, Digest, Document, Manifest, MediaType, Reference},
    trust::{
        CertificateFacts, Identity, IdentityKind, TrustStore, fetch_presented, fingerprint,
        format_fingerprint, parse_pem,
    },
};

const DAY_SECONDS: u64 = 86_400;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A certificate as the CNOE stack makes them: it may sign others, and a server shows it.
fn cnoe() -> Identity {
    Identity::make(&names(&["127.0.0.1"]), IdentityKind::SelfSigned).unwrap()
}

async fn serve(identity: &Identity) -> Server {
    Server::start_with(Some(identity.server_config().unwrap()), |_| Reply::new(200).body("{}"))
        .await
}

fn sha256_of(identity: &Identity) -> [u8; 32] {
    fingerprint(&parse_pem(identity.certificate_pem.as_bytes(), "x").unwrap()[0])
}

async fn ask(server: &Server, options: RegistryOptions) -> Result<Vec<String>, RegistryError> {
    let mut all = ClientOptions::default();
    all.registries.insert(server.registry(), options);
    impatient(all).unwrap().ping(&server.registry()).await
}

fn given(identity: &Identity) -> RegistryOptions {
    RegistryOptions {
        ca_pem: Some(identity.authority_pem.clone().into_bytes()),
        ..RegistryOptions::default()
    }
}

/// The words of a TLS refusal, with what was presented.
fn refusal(result: Result<Vec<String>, RegistryError>, shown: &Identity) -> String {
    let error = result.unwrap_err();
    let RegistryError::Tls { reason, fingerprint, presented, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(fingerprint, Some(format_fingerprint(&sha256_of(shown))));
    let presented = presented.unwrap();
    assert!(presented.contains("CN=idpbuilder registry, valid from 20"), "{presented}");
    reason
}

#[tokio::test]
async fn t04_a_certificate_that_is_authority_and_leaf_at_once_is_accepted_when_it_is_trusted() {
    let shown = cnoe();
    let server = serve(&shown).await;
    let facts = ask(&server, given(&shown)).await.unwrap();
    let sha256 = format_fingerprint(&sha256_of(&shown));
    assert!(facts.contains(&format!("SHA-256: {sha256}")), "{facts:?}");
    let pin = RegistryOptions { pin: Some(sha256_of(&shown)), ..RegistryOptions::default() };
    ask(&server, pin).await.unwrap();
    let insecure = RegistryOptions { insecure: true, ..RegistryOptions::default() };
    ask(&server, insecure).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = TrustStore::new(folder.path());
    store.trust(&server.registry(), shown.certificate_pem.as_bytes()).unwrap();
    let options = ClientOptions {
        trusted_certificates: Some(folder.path().to_owned()),
        ..ClientOptions::default()
    };
    impatient(options).unwrap().ping(&server.registry()).await.unwrap();
}

#[tokio::test]
async fn t04_an_authority_vouches_for_its_leaf() {
    let shown = Identity::make(&names(&["127.0.0.1"]), IdentityKind::Authority).unwrap();
    let server = serve(&shown).await;
    ask(&server, given(&shown)).await.unwrap();
    let other = Identity::make(&names(&["127.0.0.1"]), IdentityKind::Authority).unwrap();
    let reason = refusal(ask(&server, given(&other)).await, &shown);
    assert_eq!(reason, "its signature is wrong");
}

#[tokio::test]
async fn t04_nobody_is_trusted_unasked() {
    for kind in [IdentityKind::SelfSigned, IdentityKind::Authority] {
        let shown = Identity::make(&names(&["127.0.0.1"]), kind).unwrap();
        let server = serve(&shown).await;
        let reason = refusal(ask(&server, RegistryOptions::default()).await, &shown);
        let (own, issued) =
            ("nobody said to trust it", "(O=idpbuilder, CN=idpbuilder local authority)");
        let wanted = if kind == IdentityKind::SelfSigned { own } else { issued };
        assert!(reason.contains(wanted), "{reason}");
        // Another certificate of the same kind and name does not help.
        assert!(ask(&server, given(&cnoe())).await.is_err());
    }
}

#[tokio::test]
async fn t04_a_wrong_name_is_refused_however_the_certificate_is_trusted() {
    for kind in [IdentityKind::SelfSigned, IdentityKind::Authority] {
        let shown = Identity::make(&names(&["reg.example.com", "10.0.0.1"]), kind).unwrap();
        let server = serve(&shown).await;
        let pin = RegistryOptions { pin: Some(sha256_of(&shown)), ..RegistryOptions::default() };
        for options in [given(&shown), pin] {
            let reason = refusal(ask(&server, options).await, &shown);
            assert_eq!(reason, "it is for reg.example.com, 10.0.0.1, not for 127.0.0.1");
        }
    }
}

#[tokio::test]
async fn t04_a_certificate_out_of_its_time_is_refused_with_the_dates() {
    for kind in [IdentityKind::SelfSigned, IdentityKind::Authority] {
        for (from, to, wanted) in [
            (now() - 9 * DAY_SECONDS, now() - DAY_SECONDS, "it expired on 20"),
            (now() + DAY_SECONDS, now() + 9 * DAY_SECONDS, "it is valid from 20"),
        ] {
            let shown = Identity::make_valid(&names(&["127.0.0.1"]), kind, from, to).unwrap();
            let server = serve(&shown).await;
            let pin =
                RegistryOptions { pin: Some(sha256_of(&shown)), ..RegistryOptions::default() };
            for options in [given(&shown), pin] {
                let reason = refusal(ask(&server, options).await, &shown);
                assert!(reason.starts_with(wanted) && reason.contains("UTC"), "{reason}");
            }
        }
    }
}

#[tokio::test]
async fn t02_a_trusted_certificate_that_changed_stops_everything_and_both_are_shown() {
    let (old, new) = (cnoe(), cnoe());
    let server = serve(&new).await;
    let both = [format_fingerprint(&sha256_of(&old)), format_fingerprint(&sha256_of(&new))];
    let pin = RegistryOptions {
        pin: Some(sha256_of(&old)),
        insecure: true,
        ..RegistryOptions::default()
    };
    let by_pin = refusal(ask(&server, pin).await, &new);
    let folder = tempfile::tempdir().unwrap();
    let store = TrustStore::new(folder.path());
    store.trust(&server.registry(), old.certificate_pem.as_bytes()).unwrap();
    let options = ClientOptions {
        trusted_certificates: Some(folder.path().to_owned()),
        ..ClientOptions::default()
    };
    let by_folder = refusal(impatient(options).unwrap().ping(&server.registry()).await, &new);
    for reason in [by_pin, by_folder] {
        assert!(both.iter().all(|fingerprint| reason.contains(fingerprint)), "{reason}");
    }
}

#[tokio::test]
async fn t01_what_a_server_presents_is_seen_without_being_believed() {
    let shown = cnoe();
    let server = serve(&shown).await;
    let chain = fetch_presented("127.0.0.1", server.address.port(), None).await.unwrap();
    let facts = CertificateFacts::read(&chain[0]).unwrap();
    assert_eq!(facts.sha256, sha256_of(&shown));
    assert!(facts.is_ca);
    let named = fetch_presented("gitea.cnoe.localtest.me", 1, Some(server.address)).await.unwrap();
    assert_eq!(named, chain);
    let plain = Server::start(|_| Reply::new(200)).await;
    assert!(fetch_presented("127.0.0.1", plain.address.port(), None).await.is_err());
}

#[tokio::test]
async fn our_own_registry_is_believed_under_each_of_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let own = Identity::load_or_make(folder.path()).unwrap();
    let server = serve(&own).await;
    let port = server.address.port();
    for host in ["127.0.0.1", "localhost", "registry.localtest.me", "localtest.me"] {
        let place = format!("{host}:{port}");
        let mut options = ClientOptions::default();
        options.registries.insert(place.clone(), given(&own));
        options.resolve.insert("localhost".to_owned(), server.address);
        impatient(options).unwrap().ping(&place).await.unwrap();
    }
}

/// Debian's `docker-registry` with TLS and one user, on a port of its own.
pub(crate) struct RealRegistry {
    child: Child,
    address: String,
    identity: Identity,
    _folder: tempfile::TempDir,
}

const USER: &str = "giteaadmin";
const PASSWORD: &str = "p ä:ss";

impl RealRegistry {
    /// Fails where the distribution's packages are not installed: nothing would be tested.
    pub(crate) async fn start() -> Self {
        for program in ["/usr/bin/docker-registry", "/usr/bin/htpasswd"] {
            assert!(Path::new(program).exists(), "no {program}: run tests/setup/packages first");
        }
        let identity = cnoe();
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(file("cert.pem"), &identity.certificate_pem).unwrap();
        std::fs::write(file("key.pem"), &identity.key_pem).unwrap();
        let users = Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]).output().unwrap();
        std::fs::write(file("users"), users.stdout).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {data}}}}}\n\
             auth: {{htpasswd: {{realm: test, path: {users}}}}}\n\
             http: {{addr: '127.0.0.1:0', tls: {{certificate: {cert}, key: {key}}}}}\n",
            data = file("data"),
            users = file("users"),
            cert = file("cert.pem"),
            key = file("key.pem"),
        );
        std::fs::write(file("config.yml"), config).unwrap();
        let log = file("log");
        let child = Command::new("/usr/bin/docker-registry")
            .args(["serve", &file("config.yml")])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut registry = Self { child, address: String::new(), identity, _folder: folder };
        // It says which port the kernel gave it once it listens there.
        loop {
            let log = std::fs::read_to_string(&log).unwrap();
            let said =
                log.split_once("listening on ").and_then(|(_, rest)| rest.split_once(", tls"));
            if let Some((address, _)) = said {
                registry.address = address.to_owned();
                return registry;
            }
            assert_eq!(registry.child.try_wait().unwrap(), None, "it starts: {log}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn client(&self, password: &str) -> Client {
        let mut options = ClientOptions::default();
        self.introduce(&mut options, password);
        Client::new(options).unwrap()
    }

    /// A client that knows these registries.
    pub(crate) fn client_of(registries: &[&Self]) -> Client {
        let mut options = ClientOptions::default();
        registries.iter().for_each(|registry| registry.introduce(&mut options, PASSWORD));
        Client::new(options).unwrap()
    }

    fn introduce(&self, options: &mut ClientOptions, password: &str) {
        let credentials =
            Credentials::Basic { username: USER.to_owned(), password: password.to_owned() };
        let registry = RegistryOptions { credentials: Some(credentials), ..given(&self.identity) };
        options.registries.insert(self.address.clone(), registry);
    }

    pub(crate) fn image(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

fn described(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::new(media_type), Digest::of(bytes), bytes.len() as u64)
}

async fn push(
    client: &Client,
    image: &Reference,
    blob: &Descriptor,
    bytes: &[u8],
    from: &[String],
) -> Uploaded {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    client.push_blob(image, blob, file.path(), from, &|_| {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_to_a_real_registry_and_comes_back() {
    let real = RealRegistry::start().await;
    let client = real.client(PASSWORD);
    let image = real.image("giteaadmin/demo:v1");
    let layer: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).collect();
    let config = br#"{"architecture":"amd64","os":"linux"}"#;
    let parts = [
        (described(MediaType::LAYER, &layer), layer.as_slice()),
        (described(MediaType::CONFIG, config), config.as_slice()),
        (described(MediaType::LAYER, b""), b"".as_slice()),
    ];
    for (blob, bytes) in &parts {
        assert_eq!(push(&client, &image, blob, bytes, &[]).await, Uploaded::Sent);
        assert_eq!(push(&client, &image, blob, bytes, &[]).await, Uploaded::Existed);
    }
    let other = real.image("else/where:v1");
    let from = ["giteaadmin/demo".to_owned()];
    assert_eq!(push(&client, &other, &parts[0].0, &layer, &from).await, Uploaded::Mounted);

    let manifest = Document::write(Manifest {
        schema_version: 2,
        media_type: Some(MediaType::new(MediaType::MANIFEST)),
        artifact_type: None,
        config: parts[1].0.clone(),
        layers: vec![parts[0].0.clone()],
        subject: None,
        annotations: Default::default(),
    });
    let media_type = MediaType::new(MediaType::MANIFEST);
    assert_eq!(client.peek(&image).await.unwrap(), None);
    let by_digest = image.with_digest(manifest.digest());
    client.push_manifest(&by_digest, &media_type, &manifest.raw).await.unwrap();
    assert_eq!(client.resolve(&by_digest).await.unwrap().digest, manifest.digest());
    client.push_manifest(&image, &media_type, &manifest.raw).await.unwrap();
    let (descriptor, bytes) = client.manifest(&image).await.unwrap();
    assert_eq!((&bytes, descriptor.digest), (&manifest.raw, manifest.digest()));
    assert_eq!(client.resolve(&image).await.unwrap(), descriptor);
    let mut out = Vec::new();
    client.pull_blob(&image, &parts[0].0, &mut out, &|_| {}).await.unwrap();
    assert!(out == layer);

    let missing = client.manifest(&real.image("giteaadmin/demo:no")).await.unwrap_err();
    assert_eq!(missing.to_string(), format!("{}/giteaadmin/demo:no not found", real.address));
    let wrong = real.client("wrong").manifest(&image).await.unwrap_err();
    assert!(matches!(&wrong, RegistryError::Auth { .. }), "{wrong}");
    let facts = client.ping(&real.address).await.unwrap();
    assert!(facts.contains(&format!("credentials: user {USER}")), "{facts:?}");
}
