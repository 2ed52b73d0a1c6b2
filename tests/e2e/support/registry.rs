//! Debian's docker-registry in two roles: with TLS and a login to push to, and as a mirror that serves the bases.
//!
//! The certificate signs itself and says CA:TRUE, as that of the CNOE stack does.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use idpbuilder::trust::{Identity, IdentityKind};

use super::{Done, Folder, Turn, User, bases};

/// Host of the CNOE stack's registry.
pub(crate) const HOST: &str = "gitea.cnoe.localtest.me";
/// The user of a registry with a login.
pub(crate) const USERNAME: &str = "admin";
/// Another, with the name that the CNOE stack gives its first user.
const GITEA_USERNAME: &str = "giteaAdmin";
/// The password of both.
pub(crate) const PASSWORD: &str = "secret";
/// How long a registry may take to start.
const START_S: u64 = 600;

/// A running docker-registry; killed when dropped.
pub(crate) struct Registry {
    child: Child,
    port: u16,
    folder: Folder,
    turn: Option<Turn>,
}

impl Registry {
    /// With TLS and a login, at the name and port of the CNOE stack.
    pub(crate) fn cnoe() -> Self {
        let turn = Turn::port_8443();
        let mut registry = Self::with_login(8443);
        registry.turn = Some(turn);
        registry
    }

    /// The same on any free port.
    pub(crate) fn tls() -> Self {
        Self::with_login(free_port())
    }

    fn with_login(port: u16) -> Self {
        let folder = Folder::new();
        let names = ["*.cnoe.localtest.me", "cnoe.localtest.me", "localhost", "127.0.0.1"];
        let identity = Identity::make(&names.map(str::to_owned), IdentityKind::SelfSigned).unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("cert.pem"), &identity.certificate_pem).unwrap();
        fs::write(file("key.pem"), &identity.key_pem).unwrap();
        let users = [USERNAME, GITEA_USERNAME]
            .map(|name| Done::of(Command::new("htpasswd").args(["-Bbn", name, PASSWORD])).ok());
        fs::write(file("users"), users.concat()).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: '{data}'}}}}\n\
             auth: {{htpasswd: {{realm: test, path: '{users}'}}}}\n\
             http: {{addr: '127.0.0.1:{port}', tls: {{certificate: '{cert}', key: '{key}'}}}}\n",
            data = file("data").display(),
            users = file("users").display(),
            cert = file("cert.pem").display(),
            key = file("key.pem").display(),
        );
        Self::start(folder, port, &config)
    }

    /// Plain HTTP, read only: it holds alpine:3.19, busybox:latest and debian:bookworm below `library`.
    pub(crate) fn mirror() -> Self {
        let (folder, port) = (Folder::new(), free_port());
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: '{data}'}}, maintenance: {{readonly: {{enabled: true}}}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n",
            data = bases().join("registry").display(),
        );
        Self::start(folder, port, &config)
    }

    /// Plain HTTP and empty, for whoever wants to push.
    pub(crate) fn plain() -> Self {
        let (folder, port) = (Folder::new(), free_port());
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: '{data}'}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            data = folder.path().join("data").display(),
        );
        Self::start(folder, port, &config)
    }

    fn start(folder: Folder, port: u16, config: &str) -> Self {
        let path = folder.path().join("config.yml");
        fs::write(&path, config).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        // It dies with this test even if the test is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(path)
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        let mut registry = Self { child, port, folder, turn: None };
        let until = Instant::now() + Duration::from_secs(START_S);
        while !registry.answers() {
            let ended = registry.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "no registry: {ended:?}\n{}",
                registry.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        registry
    }

    fn answers(&self) -> bool {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
            return false;
        };
        // Any byte will do: a TLS server answers plain HTTP with a complaint.
        let asked = stream.write_all(b"GET /v2/ HTTP/1.0\r\n\r\n");
        asked.is_ok() && stream.read(&mut [0; 1]).is_ok_and(|count| count > 0)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Host and port by name.
    pub(crate) fn address(&self) -> String {
        format!("{HOST}:{}", self.port)
    }

    /// `--mirror` value by which docker.io is served from here.
    pub(crate) fn as_mirror(&self) -> String {
        format!("docker.io=127.0.0.1:{}", self.port)
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where it keeps everything.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// PEM file of the certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// Bytes below the storage folder's blobs, by digest: what uploads left.
    pub(crate) fn blobs(&self) -> Vec<String> {
        let all = self.folder.path().join("data/docker/registry/v2/blobs/sha256");
        let mut found = Vec::new();
        // The folders come with the first blob.
        for two in fs::read_dir(all).into_iter().flatten() {
            for blob in fs::read_dir(two.unwrap().path()).unwrap() {
                found.push(blob.unwrap().file_name().into_string().unwrap());
            }
        }
        found.sort();
        found
    }

    /// Whether any upload ever reached it.
    pub(crate) fn holds_anything(&self) -> bool {
        self.folder.path().join("data/docker").exists()
    }

    /// Lets a user's curl find the registry by its name.
    pub(crate) fn known_to_curl_of(&self, user: &User) {
        let line = format!("resolve = \"{HOST}:{}:127.0.0.1\"\n", self.port);
        fs::write(user.account().join(".curlrc"), line).unwrap();
    }

    /// GET with the login, over TLS that is checked against the certificate.
    pub(crate) fn get(&self, path: &str) -> String {
        let (port, address) = (self.port, self.address());
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "--fail",
            "--noproxy",
            "*",
            "--resolve",
            &format!("{HOST}:{port}:127.0.0.1"),
        ]);
        curl.arg("--cacert").arg(self.certificate());
        curl.args(["-H", "Accept: application/vnd.oci.image.manifest.v1+json"]);
        curl.args(["-u", &format!("{USERNAME}:{PASSWORD}"), &format!("https://{address}{path}")]);
        Done::of(&mut curl).ok()
    }

    /// What skopeo says of an image here.
    pub(crate) fn inspect(&self, image: &str) -> serde_json::Value {
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "inspect",
            "--tls-verify=false",
            "--creds",
            &format!("{USERNAME}:{PASSWORD}"),
        ]);
        skopeo.arg(format!("docker://127.0.0.1:{}/{image}", self.port));
        super::json(&Done::of(&mut skopeo).ok())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it ends");
    }
}

/// A port that nobody else gets: below those that the kernel gives to connections, and locked among the tests until this
/// program ends. It is knocked at and never taken, not for a moment: what another thread starts just then holds for as long
/// as it takes to start all that is open here.
pub(crate) fn free_port() -> u16 {
    static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().unwrap();
    for port in 20_000..32_000 {
        let path = std::env::temp_dir().join(format!("idpbuilder-test-port-{port}.lock"));
        let file = File::options().create(true).append(true).open(path).unwrap();
        if file.try_lock().is_ok() && TcpStream::connect(("127.0.0.1", port)).is_err() {
            taken.push(file);
            return port;
        }
    }
    panic!("no port is free");
}
