//! What travels to a registry and back: each byte once, to whom it is meant for, and the same.

use std::{fs, os::unix::fs::PermissionsExt as _};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::support::{
    Done, User, json,
    registry::{PASSWORD, Registry, USERNAME},
    web::Web,
};

const DOCKERFILE: &str = "FROM busybox\nRUN echo one > /one\nRUN echo two > /two\n";

/// A user who trusts a registry and is known to it.
fn at(registry: &Registry) -> User {
    let (user, address) = (User::new(), registry.address());
    user.trust(registry);
    let login = ["login", &address, "--username", USERNAME, "--password-stdin"];
    user.run_with_input(login, PASSWORD.as_bytes()).ok();
    user
}

/// Digests of the blobs that a push or pull moved, and those that it did not have to move, with the reason.
fn moved(done: Done) -> (Vec<String>, Vec<(String, String)>) {
    assert_eq!(done.code, 0, "{done}");
    let (mut sent, mut skipped) = (Vec::new(), Vec::new());
    for event in done.err.lines().filter(|line| line.starts_with('{')).map(json) {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        match text("event").as_str() {
            "transfer" if event["done"] == event["total"] => sent.push(text("digest")),
            "transfer-skipped" => skipped.push((text("digest"), text("reason"))),
            _ => {}
        }
    }
    (sent, skipped)
}

#[test]
fn a_second_push_sends_nothing_and_another_repository_gets_its_blobs_mounted() {
    let registry = Registry::tls();
    let user = at(&registry);
    let [one, again, other] = ["team/demo:v1", "team/demo:v2", "team/other:v1"]
        .map(|image| format!("{}/{image}", registry.address()));
    user.build(DOCKERFILE, &["-t", &one, "-t", &again, "-t", &other]).ok();
    let push = |name: &str| moved(user.run(["--progress", "json", "push", name]));
    let (sent, _) = push(&one);
    assert!(sent.len() >= 4, "three layers and a config: {sent:?}");
    let stored = registry.blobs();
    for name in [&one, &again] {
        let (sent, skipped) = push(name);
        assert_eq!(sent, Vec::<String>::new());
        assert!(skipped.iter().all(|(_, reason)| reason == "exists"), "{skipped:?}");
    }
    assert_eq!(registry.blobs(), stored);
    let (sent, skipped) = push(&other);
    assert_eq!(sent, Vec::<String>::new());
    assert!(skipped.iter().filter(|(_, reason)| reason == "mounted").count() >= 4, "{skipped:?}");
    assert_eq!(registry.blobs(), stored);
    let digests = ["team/demo:v1", "team/demo:v2", "team/other:v1"]
        .map(|image| registry.inspect(image)["Digest"].as_str().unwrap().to_owned());
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
}

#[test]
fn what_is_pushed_is_what_is_pulled_elsewhere() {
    let registry = Registry::tls();
    let (user, other) = (at(&registry), at(&registry));
    let name = format!("{}/team/demo:v1", registry.address());
    let id = user.build(DOCKERFILE, &["-t", &name]).ok();
    for compression in ["gzip", "zstd", "uncompressed"] {
        let pushed = user.run(["push", "--compression", compression, &name]).ok();
        let pulled = other.run(["pull", &name]).ok();
        assert_eq!(pulled, pushed, "{compression}: reference and digest");
        let found = other.run(["images", "--quiet", "--no-trunc", "team/demo"]).ok();
        assert_eq!(found, id, "{compression}");
        other.run(["rmi", &name]).ok();
    }
    let manifest = json(&registry.get("/v2/team/demo/manifests/v1"));
    assert_eq!(manifest["config"]["digest"], id.trim());
    let tags = json(&registry.get("/v2/team/demo/tags/list"));
    assert_eq!(tags["tags"], serde_json::json!(["v1"]));
}

#[test]
fn a_build_on_a_pushed_image_moves_no_base_blob_again() {
    let registry = Registry::tls();
    let (user, other) = (at(&registry), at(&registry));
    let [base, derived] =
        ["team/base:v1", "team/derived:v1"].map(|image| format!("{}/{image}", registry.address()));
    user.build(DOCKERFILE, &["-t", &base]).ok();
    user.run(["push", &base]).ok();
    let stored = registry.blobs();
    // Nothing of it has to be seen: only its manifest and config are read.
    other.write("Dockerfile", &format!("FROM {base}\nENV A=1\n"));
    moved(other.run(["--progress", "json", "build", "-t", &derived, "--push", "."]));
    let new: Vec<_> = registry.blobs().into_iter().filter(|blob| !stored.contains(blob)).collect();
    assert_eq!(new.len(), 2, "a config and a manifest: {new:?}");
    let manifest = json(&registry.get("/v2/team/derived/manifests/v1"));
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 3);
}

#[test]
fn credentials_of_the_environment_and_of_other_tools_are_found() {
    let registry = Registry::tls();
    let (user, address) = (User::new(), registry.address());
    user.trust(&registry);
    let name = format!("{address}/team/demo:v1");
    user.build("FROM scratch\nENV A=1\n", &["-t", &name]).ok();
    for (user_variable, secret_variable) in [
        ("IDPBUILDER_REGISTRY_USERNAME", "IDPBUILDER_REGISTRY_PASSWORD"),
        ("IDPBUILDER_REGISTRY_USERNAME", "IDPBUILDER_REGISTRY_TOKEN"),
        ("GITEA_USERNAME", "GITEA_TOKEN"),
    ] {
        let mut push = user.idp();
        push.args(["push", &name]).env(user_variable, USERNAME).env(secret_variable, PASSWORD);
        Done::of(&mut push).ok();
        let mut push = user.idp();
        push.args(["push", &name]).env(user_variable, USERNAME).env(secret_variable, "wrong");
        let from = format!("came from the environment: {user_variable} and {secret_variable}");
        let said = Done::of(&mut push).fails(4, &[&address, &from]);
        assert!(!said.contains("GITEA_TOKEN …"), "that is about registries nobody named: {said}");
    }
    let piped = ["push", "--username", USERNAME, "--password-stdin", &name];
    user.run_with_input(piped, b"secret\n").ok();
    // What skopeo writes when it logs in.
    let file = user.account().join(".config/containers/auth.json");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let mut skopeo = user.command("skopeo");
    skopeo.args(["login", "--tls-verify=false", "--authfile", &file.display().to_string()]);
    skopeo.args(["-u", USERNAME, "-p", PASSWORD, &format!("127.0.0.1:{}", registry.port())]);
    Done::of(&mut skopeo).ok();
    let text = fs::read_to_string(&file).unwrap().replace("127.0.0.1:", "gitea.cnoe.localtest.me:");
    fs::write(&file, text).unwrap();
    user.run(["push", &name]).ok();
    // The password is nowhere but where the user put it.
    let found = user.script("grep -rl secret \"$IDPBUILDER_HOME\" || true").ok();
    assert_eq!(found, "");
}

#[test]
fn an_auth_file_may_be_for_a_namespace_alone_or_name_a_helper() {
    let registry = Registry::tls();
    let (user, address) = (User::new(), registry.address());
    user.trust(&registry);
    let [team, other] = ["team", "other"].map(|owner| format!("{address}/{owner}/demo:v1"));
    user.build("FROM scratch\nENV A=1\n", &["-t", &team, "-t", &other]).ok();
    let file = user.account().join(".config/containers/auth.json");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let auth = BASE64_STANDARD.encode(format!("{USERNAME}:{PASSWORD}"));
    fs::write(&file, format!(r#"{{"auths":{{"{address}/team":{{"auth":"{auth}"}}}}}}"#)).unwrap();
    user.run(["push", &team]).ok();
    user.run(["push", &other]).fails(4, &["no credentials were sent"]);
    // The helper is this file's, and no other tool's.
    fs::write(&file, format!(r#"{{"credHelpers":{{"{address}":"keeper"}}}}"#)).unwrap();
    let login = format!(r#"{{"ServerURL":"x","Username":"{USERNAME}","Secret":"{PASSWORD}"}}"#);
    let helper = user.folder().join("docker-credential-keeper");
    fs::write(&helper, format!("#!/bin/sh\ncat > /dev/null\necho '{login}'\n")).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", user.folder().display(), std::env::var("PATH").unwrap());
    let mut push = user.idp();
    push.args(["push", &other]).env("PATH", path);
    Done::of(&mut push).ok();
}

#[test]
fn credentials_of_the_environment_are_for_registries_that_the_user_names() {
    let registry = Registry::tls();
    let address = registry.address();
    at(&registry)
        .build("FROM scratch\nENV A=1\n", &["-t", &format!("{address}/team/base"), "--push"])
        .ok();
    let user = User::new();
    user.trust(&registry);
    user.write("Dockerfile", &format!("FROM {address}/team/base\nENV B=1\n"));
    let build = |tag: &str| {
        let mut build = user.idp();
        build.env("GITEA_USERNAME", USERNAME).env("GITEA_TOKEN", PASSWORD);
        build.args(["build", "-t", tag, "."]);
        Done::of(&mut build)
    };
    // A Dockerfile may be somebody else's, and would have the token sent wherever it likes.
    build("demo:v1").fails(4, &["no credentials were sent", "GITEA_TOKEN", "idpbuilder login"]);
    build(&format!("{address}/team/demo:v1")).ok();
}

#[test]
fn what_a_mirror_said_is_told_with_what_the_registry_said() {
    let registry = Registry::tls();
    let user = User::new();
    user.write("Dockerfile", "FROM upstream.invalid/base\nENV A=1\n");
    let mirror = format!("upstream.invalid={}", registry.address());
    let untrusted = user.run(["build", "--mirror", &mirror, "."]);
    let trust = format!("idpbuilder cert trust {}", registry.address());
    untrusted.fails(
        6,
        &[
            "cannot resolve upstream.invalid",
            "a mirror",
            "nobody said to trust it",
            &trust,
            "HTTPS_PROXY",
        ],
    );
    user.trust(&registry);
    let stranger = user.run(["build", "--mirror", &mirror, "."]);
    stranger.fails(6, &["a mirror", &format!("idpbuilder login {}", registry.address())]);
}

#[test]
fn proxies_of_the_environment_are_used_and_lead_nowhere_else() {
    let web = Web::start();
    let user = User::new();
    let build = |url: &str, exempt: &str| {
        user.write("Dockerfile", &format!("FROM scratch\nADD {url} /file\n"));
        let mut build = user.idp();
        build.env("HTTP_PROXY", format!("http://localhost:{}", web.port()));
        build.env("NO_PROXY", exempt).args(["build", "-q", "."]);
        Done::of(&mut build)
    };
    let url = "http://files.invalid/file";
    web.put(url, "content", &[]);
    build(url, "").ok();
    assert_eq!(web.requests(), [format!("GET {url}")]);
    build("http://others.invalid/file", "invalid").fails(6, &["cannot resolve others.invalid"]);
    // What a Dockerfile may not reach it may not reach through somebody else, nor where the proxy is.
    for private in ["http://127.0.0.1:1/x", "http://x.localtest.me/x", "http://localhost/x"] {
        web.put(private, "content", &[]);
        build(private, "").fails(3, &["network.private"]);
    }
    user.write("Dockerfile", "FROM proxied.invalid:5000/base\nENV A=1\n");
    let mut build = user.idp();
    build.env("https_proxy", web.url("")).args(["build", "."]);
    Done::of(&mut build).fails(6, &["proxied.invalid:5000"]);
    let asked = web.requests();
    assert!(asked.iter().any(|asked| asked == "CONNECT proxied.invalid:5000"), "{asked:?}");
}

#[test]
fn no_certificate_is_made_for_a_registry_that_is_not_asked() {
    let user = User::new();
    let nobody = "127.0.0.1:1/team/demo:v1";
    user.build("FROM scratch\nENV A=1\n", &["-t", nobody]).ok();
    user.run(["push", nobody]).fails(6, &["127.0.0.1:1"]);
    user.run(["pull", nobody]).fails(6, &["127.0.0.1:1"]);
    assert!(!user.home().join("embedded/authority.pem").exists());
}

#[test]
fn the_embedded_registry_serves_other_tools() {
    use std::{
        io::{BufRead as _, BufReader},
        process::Stdio,
    };
    let user = User::new();
    user.build(DOCKERFILE, &["-t", "demo:v1"]).ok();
    let platforms = "linux/amd64,linux/arm64";
    user.write("page", "page\n");
    let both = ["--platform", platforms, "-t", "localhost:5050/team/both:v1"];
    user.build("FROM scratch\nCOPY page /\n", &both).ok();
    let mut serve = user.idp();
    serve.args(["serve", "--address", "127.0.0.1:0"]).stdout(Stdio::piped());
    let mut serve = serve.spawn().unwrap();
    let first = BufReader::new(serve.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    let port = first.split("localhost:").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let folder = user.home().join("embedded");
    let password = fs::read_to_string(folder.join("password")).unwrap().trim().to_owned();
    let certificates = user.folder().join("certs.d");
    fs::create_dir(&certificates).unwrap();
    fs::copy(folder.join("authority.pem"), certificates.join("ca.crt")).unwrap();
    let credentials = format!("idpbuilder:{password}");
    let archive = user.folder().join("demo.tar").display().to_string();
    user.run(["save", "-o", &archive, "demo:v1"]).ok();
    let skopeo = |words: &[&str]| {
        let mut skopeo = user.command("skopeo");
        Done::of(skopeo.arg("--insecure-policy").args(words))
    };
    let (there, certificates) =
        (format!("docker://localhost:{port}/team/demo:v1"), certificates.display().to_string());
    let (source, back) =
        (format!("oci-archive:{archive}"), format!("dir:{}/back", user.folder().display()));
    let to = ["--dest-creds", &credentials, "--dest-cert-dir", &certificates];
    let from = ["--src-creds", &credentials, "--src-cert-dir", &certificates];
    skopeo(&[&["copy", "-q"], &to[..], &[&source, &there]].concat()).ok();
    skopeo(&[&["copy", "-q"], &from[..], &[&there, &back]].concat()).ok();
    // An image that was never pushed, with those of its platforms.
    let both = format!("docker://localhost:{port}/team/both:v1");
    skopeo(&[&["copy", "-q", "--all"], &from[..], &[&both, &back]].concat()).ok();
    let wrong = ["--dest-creds", "idpbuilder:wrong", "--dest-cert-dir", &certificates];
    let refused = skopeo(&[&["copy", "-q"], &wrong[..], &[&source, &there]].concat());
    assert_ne!(refused.code, 0, "a wrong password lets nobody in");
    let untrusted = skopeo(&["copy", "-q", "--dest-creds", &credentials, &source, &there]);
    assert!(
        untrusted.err.contains("x509"),
        "its certificate is no certificate for everybody: {untrusted}"
    );
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&serve),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(serve.wait().unwrap().code().is_some(), "it ends by itself");
}
