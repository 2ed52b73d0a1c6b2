//! Project files: the examples, the repository's own, and what `plan` and `init` say of them.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
};

use crate::support::{
    Done, ROOT, Turn, User, json,
    registry::{HOST, PASSWORD, Registry},
};

/// `serve` of a user's store: what a run pushed to the embedded registry is read back from it.
struct Embedded<'a> {
    user: &'a User,
    child: Child,
    port: String,
}

impl<'a> Embedded<'a> {
    fn of(user: &'a User) -> Self {
        Self::at(user, 0).expect("a free port is free")
    }

    /// `None` when the port is taken.
    fn at(user: &'a User, port: u16) -> Option<Self> {
        let mut serve = user.idp();
        serve.args(["serve", "--address", &format!("127.0.0.1:{port}")]).stdout(Stdio::piped());
        let mut child = serve.stderr(Stdio::null()).spawn().unwrap();
        let Some(first) = BufReader::new(child.stdout.take().unwrap()).lines().next() else {
            child.wait().unwrap();
            return None;
        };
        let first = first.unwrap();
        let port = first.split("localhost:").nth(1).unwrap().split('/').next().unwrap().to_owned();
        Some(Self { user, child, port })
    }

    /// GET with the certificate and the password that the tool keeps.
    fn get(&self, path: &str) -> serde_json::Value {
        let folder = self.user.home().join("embedded");
        let password = fs::read_to_string(folder.join("password")).unwrap();
        let mut curl = self.user.command("curl");
        curl.args(["-sS", "--fail", "--noproxy", "*", "--cacert"])
            .arg(folder.join("authority.pem"));
        curl.args(["-H", "Accept: application/vnd.oci.image.manifest.v1+json"]);
        curl.args(["-u", &format!("idpbuilder:{}", password.trim())]);
        curl.arg(format!("https://localhost:{}{path}", self.port));
        json(&Done::of(&mut curl).ok())
    }

    /// Config of an image.
    fn config(&self, repository: &str, tag: &str) -> serde_json::Value {
        let manifest = self.get(&format!("/v2/{repository}/manifests/{tag}"));
        let digest = manifest["config"]["digest"].as_str().unwrap();
        self.get(&format!("/v2/{repository}/blobs/{digest}"))
    }
}

impl Drop for Embedded<'_> {
    fn drop(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it ends");
    }
}

/// Runs the project in the work folder, with docker.io served by a mirror.
fn run(user: &User, mirror: &Registry, words: &[&str]) -> Done {
    Done::of(user.idp().arg("run").args(["--mirror", &mirror.as_mirror()]).args(words))
}

#[test]
fn the_example_of_one_image_is_in_the_embedded_registry_after_a_run() {
    let (user, mirror, _turn) = (User::new(), Registry::mirror(), Turn::embedded());
    user.copy_of("examples/single");
    let said = run(&user, &mirror, &[]);
    assert!(said.err.contains("done in"), "{said}");
    said.ok();
    let embedded = Embedded::of(&user);
    let catalog = embedded.get("/v2/hello/tags/list");
    assert_eq!(catalog["tags"], serde_json::json!(["dev"]));
    let config = embedded.config("hello", "dev");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.title"], "hello");
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["hello"]));
    drop(embedded);
    let again = run(&user, &mirror, &[]);
    assert!(again.err.contains("cached"), "{again}");
    again.ok();
}

#[test]
fn the_example_of_a_monorepo_builds_what_was_asked_for_and_what_that_needs() {
    let (user, mirror, _turn) = (User::new(), Registry::mirror(), Turn::embedded());
    user.copy_of("examples/monorepo");
    run(&user, &mirror, &["web"]).ok();
    let names = user.run(["images", "--format", "{{.Image}}"]).ok();
    assert!(names.contains("shop/web") && !names.contains("shop/api"), "{names}");
    run(&user, &mirror, &["--var", "channel=stable"]).ok();
    assert!(user.work().join("dist/web.tar").exists(), "the archive of the stable channel");
    let embedded = Embedded::of(&user);
    let tags = embedded.get("/v2/shop/api/tags/list");
    assert_eq!(tags["tags"], serde_json::json!(["latest", "stable"]));
    let config = embedded.config("shop/api", "stable");
    assert_eq!(config["config"]["Labels"]["org.example.channel"], "stable");
    drop(embedded);
    // The test step is no decoration.
    user.write("services/api/serve.sh", "#!/bin/sh\necho broken\n");
    let said = run(&user, &mirror, &["--keep-going"]).fails(1, &["/test.sh", "exit code 1"]);
    assert!(said.contains("not built"), "api waits for its test: {said}");
}

#[test]
fn the_example_of_a_release_reaches_the_gitea_of_a_cnoe_stack() {
    let (user, mirror, registry) = (User::new(), Registry::mirror(), Registry::cnoe());
    user.copy_of("examples/cnoe-gitea");
    let release = |token: &str, channel: &str| {
        let mut command = user.idp();
        command.args(["run", "release", "--mirror", &mirror.as_mirror(), "--var"]);
        command.arg(format!("channel={channel}")).env("GITEA_TOKEN", token);
        Done::of(&mut command)
    };
    let certificates = user.account().join(".idpbuilder/certs");
    fs::create_dir_all(&certificates).unwrap();
    fs::copy(registry.certificate(), certificates.join("gitea.pem")).unwrap();
    release("wrong", "dev").fails(4, &[HOST]);
    release(PASSWORD, "dev").ok();
    let tags = json(&registry.get("/v2/giteaadmin/demo/tags/list"));
    let mut tags: Vec<_> =
        tags["tags"].as_array().unwrap().iter().map(|tag| tag.as_str()).collect();
    tags.sort();
    assert_eq!(tags, [Some("0.0.0-dev"), Some("dev")]);
    release(PASSWORD, "stable").ok();
    let shown = registry.inspect("giteaadmin/demo:latest");
    assert_eq!(shown["Labels"]["org.opencontainers.image.version"], "0.0.0-dev");
    let versions: Vec<_> = ["0.0.0-dev", "dev", "latest"]
        .map(|tag| registry.inspect(&format!("giteaadmin/demo:{tag}"))["Digest"].clone())
        .into();
    assert!(versions.iter().all(|digest| *digest == versions[0]), "{versions:?}");
}

/// The image holds the release binary, which its own RUN has started in the sandbox.
#[test]
fn the_repository_builds_its_own_release_image() {
    let (user, _turn) = (User::new(), Turn::embedded());
    let release = Path::new(ROOT).join("target/x86_64-unknown-linux-gnu/release/idpbuilder");
    assert!(release.exists(), "`cargo build --release` comes first, as in tests/run");
    let project = Path::new(ROOT).join("idpbuilder.kdl").display().to_string();
    user.run(["run", "-f", &project]).ok();
    // Cargo may be told to build elsewhere.
    let elsewhere = user.folder().join("built").display().to_string();
    let own = |folder: &str| {
        let mut command = user.idp();
        command.args(["run", "-f", &project, "--no-push"]).env("CARGO_TARGET_DIR", folder);
        Done::of(&mut command)
    };
    own(&elsewhere).fails(3, &["built does not exist"]);
    own(&Path::new(ROOT).join("target").display().to_string()).ok();
    let names = user.run(["images", "--format", "{{.Repository}} {{.Tag}}"]).ok();
    assert!(names.contains("cnoe-io/idpbuilder latest"), "{names}");
    let embedded = Embedded::of(&user);
    let config = embedded.config("cnoe-io/idpbuilder", "latest");
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/idpbuilder"]));
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2, "{config}");
    let mut git = std::process::Command::new("git");
    let head = Done::of(git.args(["-C", ROOT, "rev-parse", "HEAD"])).ok();
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.revision"], head.trim());
}

#[test]
fn the_release_binary_is_one_small_static_file() {
    let release = Path::new(ROOT).join("target/x86_64-unknown-linux-gnu/release/idpbuilder");
    let size = fs::metadata(&release).expect("`cargo build --release` comes first").len();
    assert!(size < 20_000_000, "{size} bytes");
    let bytes = fs::read(&release).unwrap();
    assert_eq!(&bytes[..4], b"\x7fELF");
    // Program headers: a dynamic program asks for an interpreter (PT_INTERP, 3).
    let word = |at: usize, size: usize| {
        bytes[at..at + size].iter().rev().fold(0, |sum: usize, byte| sum << 8 | usize::from(*byte))
    };
    let (start, each, count) = (word(32, 8), word(54, 2), word(56, 2));
    assert!(
        count > 0 && (0..count).all(|n| word(start + n * each, 4) != 3),
        "it has an interpreter"
    );
}

#[test]
fn a_plan_tells_everything_before_anything_runs() {
    let user = User::new();
    user.copy_of("examples/monorepo");
    let table = user.run(["plan"]).ok();
    let rows: Vec<Vec<&str>> =
        table.lines().skip(1).map(|line| line.split_whitespace().take(3).collect()).collect();
    let position = |what: &str, image: &str| {
        let found = rows.iter().position(|row| row[1..] == [what, image]);
        found.unwrap_or_else(|| panic!("no {what} of {image}:\n{table}"))
    };
    assert!(position("build", "base") < position("build", "api-test"));
    assert!(position("build", "api-test") < position("build", "api"));
    assert!(position("build", "base") < position("build", "web"));
    assert!(position("push", "web") < position("publish", "web"));
    let plan = json(&user.run(["plan", "--format", "json"]).ok());
    assert_eq!(plan["steps"].as_array().unwrap().len(), rows.len());
    assert_eq!(user.run(["run", "--dry-run"]).ok(), table);
    assert!(!user.home().exists(), "nothing was made");
}

#[test]
fn init_writes_a_project_that_runs() {
    let (user, mirror, _turn) = (User::new(), Registry::mirror(), Turn::embedded());
    user.write("Dockerfile", "FROM busybox\nRUN echo a > /a\n");
    user.write("services/web/Dockerfile", "FROM busybox\nCOPY page /page\n");
    user.write("services/web/page", "page\n");
    user.write("node_modules/x/Dockerfile", "FROM nothing\n");
    user.run(["init"]).ok();
    let text = fs::read_to_string(user.work().join("idpbuilder.kdl")).unwrap();
    assert!(text.contains("services/web") && !text.contains("node_modules"), "{text}");
    run(&user, &mirror, &[]).ok();
    let names = user.run(["images", "--format", "{{.Repository}}"]).ok();
    assert!(names.contains("/web") && names.lines().count() >= 2, "{names}");
    user.run(["init"]).fails(3, &["exists already", "--stdout"]);
    assert_eq!(user.run(["init", "--stdout"]).ok(), text);
}

/// Tries until it can be had: a run of another test has the embedded registry's port for a moment.
fn soon<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = attempt() {
            return found;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("port 5050 is never free");
}

#[test]
fn whoever_has_the_embedded_registrys_port_a_run_and_a_push_go_on() {
    let (user, stranger, _turn) = (User::new(), User::new(), Turn::embedded());
    user.write(
        "idpbuilder.kdl",
        "image site { dockerfile inline=\"FROM scratch\\nCOPY a /\\n\"; tags \"1\" }\n",
    );
    user.write("a", "one\n");
    let pushed = |text: &str| {
        user.write("a", text);
        let done = user.run(["run"]);
        let said = done.err.clone();
        done.ok();
        said
    };
    let serve = soon(|| Embedded::at(&user, 5050));
    assert!(!pushed("two\n").contains("another program"), "it is ours");
    let first = serve.get("/v2/site/manifests/1");
    drop(serve);

    let serve = soon(|| Embedded::at(&stranger, 5050));
    let said = pushed("three\n");
    assert!(said.contains("another program uses 127.0.0.1:5050"), "{said}");
    let done = user.run(["push", "localhost:5050/site:1"]);
    assert!(done.err.contains("another program uses 127.0.0.1:5050"), "{}", done.err);
    done.ok();
    drop(serve);

    let silent = soon(|| std::net::TcpListener::bind("127.0.0.1:5050").ok());
    assert!(pushed("four\n").contains("another program"), "it says nothing");
    drop(silent);
    let ours = Embedded::of(&user);
    assert_ne!(ours.get("/v2/site/manifests/1"), first);
}
