//! Layers of a base are fetched when something looks at them, and not before.

use std::fs;

use crate::support::{Done, User, json, registry::Registry};

/// Builds in the work folder, with docker.io served by a mirror.
fn build(user: &User, mirror: &Registry, dockerfile: &str, flags: &[&str]) -> Done {
    user.write("Dockerfile", dockerfile);
    let mut command = user.idp();
    command.args(["build", "--mirror", &mirror.as_mirror()]).args(flags).arg(".");
    Done::of(&mut command)
}

/// Layers that `inspect` says are in a registry only.
fn remote(user: &User, name: &str) -> Vec<serde_json::Value> {
    let shown = json(&user.run(["inspect", name]).ok());
    shown[0]["Remote"].as_array().unwrap().clone()
}

fn bytes_of_store(user: &User) -> u64 {
    let blobs = fs::read_dir(user.home().join("images/blobs/sha256")).unwrap();
    blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn what_nothing_uses_costs_nothing() {
    let user = User::new();
    user.write("page", "page\n");
    let found_out = || user.home().join("images/sandbox-works").exists();
    // Three layouts are named, and none of them is used.
    user.build("FROM scratch\nCOPY page /page\n", &[]).ok();
    assert!(bytes_of_store(&user) < 100_000, "{} bytes", bytes_of_store(&user));
    assert!(!found_out(), "who runs no process does not ask how one would run");
    user.build("FROM busybox\nRUN true\n", &[]).ok();
    assert!(bytes_of_store(&user) > 500_000, "{} bytes", bytes_of_store(&user));
    assert!(found_out());
    let wrong = ["--build-context", "other=oci-layout://nowhere"];
    user.build("FROM scratch\nCOPY page /page\n", &wrong).fails(3, &["nowhere", "No such file"]);
}

const LINKED: &str = "FROM debian:bookworm\nCOPY --link page /srv/page\nENV A=1\n";

#[test]
fn a_build_that_only_links_fetches_no_layer_of_its_base() {
    let (user, mirror) = (User::new(), Registry::mirror());
    user.write("page", "page\n");
    build(&user, &mirror, LINKED, &["-t", "demo:v1"]).ok();
    let remote = remote(&user, "demo:v1");
    assert!(!remote.is_empty(), "the base's layers are elsewhere");
    assert_eq!(remote[0]["At"], serde_json::json!(["docker.io/library/debian"]));
    assert!(bytes_of_store(&user) < 1 << 20, "{} bytes", bytes_of_store(&user));
    let history = user.run(["history", "demo:v1"]).ok();
    assert!(history.contains("remote"), "{history}");
    assert!(user.run(["images"]).ok().contains("demo"));
}

#[test]
fn what_was_lazy_has_the_digest_of_what_was_not() {
    let (lazy, eager, mirror) = (User::new(), User::new(), Registry::mirror());
    for user in [&lazy, &eager] {
        user.write("page", "page\n");
    }
    eager.run(["pull", "--mirror", &mirror.as_mirror(), "debian:bookworm"]).ok();
    let one = build(&lazy, &mirror, LINKED, &["-t", "demo:v1"]).ok();
    assert_eq!(build(&eager, &mirror, LINKED, &["-t", "demo:v1"]).ok(), one);
    let manifest =
        |user: &User| json(&user.run(["inspect", "demo:v1"]).ok())[0]["Descriptor"].clone();
    assert_eq!(manifest(&lazy), manifest(&eager));
}

#[test]
fn a_lazy_image_is_pushed_whole_without_being_stored_here() {
    let (user, mirror, registry) = (User::new(), Registry::mirror(), Registry::tls());
    user.write("page", "page\n");
    let name = format!("localhost:{}/demo:v1", registry.port());
    let ca = registry.certificate().display().to_string();
    user.run(["cert", "trust", &format!("localhost:{}", registry.port()), &ca]).ok();
    user.run_with_input(
        ["login", &format!("localhost:{}", registry.port()), "-u", "admin", "--password-stdin"],
        b"secret\n",
    )
    .ok();
    build(&user, &mirror, LINKED, &["-t", &name, "--push"]).ok();
    assert!(bytes_of_store(&user) < 1 << 20, "the base went from registry to registry");
    let shown = registry.inspect("demo:v1");
    assert_eq!(shown["Layers"].as_array().unwrap().len(), remote(&user, &name).len() + 1);
    // Whole: another home runs it.
    let other = User::new();
    other.run(["cert", "trust", &format!("localhost:{}", registry.port()), &ca]).ok();
    other
        .run_with_input(
            ["login", &format!("localhost:{}", registry.port()), "-u", "admin", "--password-stdin"],
            b"secret\n",
        )
        .ok();
    let text = format!("FROM {name}\nRUN cat /srv/page /etc/debian_version > /both\n");
    other.build(&text, &["--output", "type=local,dest=out"]).ok();
    let both = fs::read_to_string(other.work().join("out/both")).unwrap();
    assert!(both.starts_with("page\n") && both.len() > 5, "{both}");
}

#[test]
fn what_looks_at_a_lazy_image_later_fetches_it() {
    let (user, mirror) = (User::new(), Registry::mirror());
    user.write("page", "page\n");
    build(&user, &mirror, LINKED, &["-t", "demo:v1"]).ok();
    // A file is to have all layers.
    build(&user, &mirror, LINKED, &["-t", "demo:v2", "--output", "type=local,dest=out"]).ok();
    assert!(user.work().join("out/etc/debian_version").exists());
    assert_eq!(remote(&user, "demo:v1"), Vec::<serde_json::Value>::new());

    let (user, text) =
        (User::new(), "FROM demo:v1\nRUN test -e /etc/debian_version && test -e /srv/page\n");
    user.write("page", "page\n");
    build(&user, &mirror, LINKED, &["-t", "demo:v1"]).ok();
    build(&user, &mirror, text, &["-t", "demo:v2"]).ok();
    assert_eq!(remote(&user, "demo:v2"), Vec::<serde_json::Value>::new());
}

#[test]
fn a_plain_copy_looks_at_its_base() {
    let (user, mirror) = (User::new(), Registry::mirror());
    user.write("page", "page\n");
    // `/bin` is a link of the base: the file lands behind it.
    let text = "FROM debian:bookworm\nCOPY page /bin\n";
    build(&user, &mirror, text, &["-t", "demo:v1", "--output", "type=local,dest=out"]).ok();
    assert!(user.work().join("out/usr/bin/page").exists());
}

#[test]
fn a_layer_that_can_be_had_nowhere_is_named_with_the_places_asked() {
    let (user, mirror) = (User::new(), Registry::mirror());
    user.write("page", "page\n");
    build(&user, &mirror, LINKED, &["-t", "demo:v1"]).ok();
    let blob = remote(&user, "demo:v1")[0]["Blob"].as_str().unwrap().to_owned();
    let gone = mirror.as_mirror();
    drop(mirror);
    user.write("Dockerfile", "FROM demo:v1\nRUN true\n");
    let mut command = user.idp();
    command.args(["build", "--mirror", &gone, "."]);
    // A network that cannot be reached, whatever this machine's is.
    command.env("HTTPS_PROXY", "http://127.0.0.1:9");
    let said = Done::of(&mut command);
    assert_eq!(said.code, 6, "{said}");
    assert!(said.err.contains(&blob) || said.err.contains("docker.io"), "{said}");
}

#[test]
fn pruning_everything_that_is_cache_keeps_where_layers_can_be_had() {
    let (user, mirror) = (User::new(), Registry::mirror());
    user.write("page", "page\n");
    build(&user, &mirror, LINKED, &["-t", "demo:v1"]).ok();
    let before = remote(&user, "demo:v1");
    user.run(["prune", "--cache-days", "0"]).ok();
    assert_eq!(remote(&user, "demo:v1"), before);
}
