//! `verify`: what can be built again to the same bytes, and what cannot, by the first byte that differs.

use crate::support::{Done, User, base_contexts};

/// `verify demo:v1 .` with the bases.
fn verify(user: &User, flags: &[&str]) -> Done {
    Done::of(user.idp().args(["verify", "demo:v1", "."]).args(flags).args(base_contexts()))
}

const STEADY: &str = "FROM busybox AS one\nRUN mkdir /d && echo one > /d/f && ln -s f /d/l\nFROM busybox\nARG A=1\nCOPY f /f\nCOPY --from=one /d /d\nRUN echo $A > /a && date > /dev/null\n";

#[test]
fn what_depends_on_nothing_else_is_the_same_when_built_again() {
    for user in [User::new(), User::rootless()] {
        user.write("f", "f\n");
        let id = user.build(STEADY, &["-t", "demo:v1", "--label", "a=b"]).ok();
        let all = || user.run(["images", "--no-trunc", "--format", "{{.Image}} {{.Digest}}"]).ok();
        let before = all();
        let said = verify(&user, &["--label", "a=b"]).ok();
        assert!(said.starts_with("demo:v1 is the same when built again: sha256:"), "{said}");
        assert_eq!(all(), before, "no image came or went");
        assert_eq!(user.build(STEADY, &["-t", "demo:v1", "--label", "a=b"]).ok(), id);
        // What was saved and loaded is the same image, in another form.
        user.script("idpbuilder save --form docker -o demo.tar demo:v1; idpbuilder rmi demo:v1; idpbuilder load -i demo.tar").ok();
        let said = verify(&user, &["--label", "a=b"]).ok();
        let words = "; the manifest is another (sha256:";
        assert!(
            said.starts_with("demo:v1 is the same when built again: ") && said.contains(words),
            "{said}"
        );
        verify(&user, &["--label", "a=c"]).fails(1, &[]);
    }
}

/// Without a platform it is built for those that the image has; with one, that one is compared.
#[test]
fn an_image_of_several_platforms_is_compared_for_each() {
    let user = User::new();
    let text = "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /f\n";
    user.write("amd64", "one");
    user.write("arm64", "two");
    user.build(text, &["-t", "demo:v1", "--platform", "linux/amd64,linux/arm64"]).ok();
    let words = "demo:v1 is the same when built again: sha256:";
    let said = verify(&user, &[]).ok();
    assert!(said.starts_with(words) && !said.contains("another"), "{said}");
    let of_one = |arch: &str| verify(&user, &["--platform", &format!("linux/{arch}")]).ok();
    assert!(of_one("arm64").starts_with("demo:v1 for linux/arm64 is the same when built again: "));
    user.write("arm64", "other");
    assert!(of_one("amd64").starts_with("demo:v1 for linux/amd64 is the same when built again: "));
    let said = verify(&user, &[]);
    assert!(said.out.starts_with("demo:v1 for linux/arm64 is not what it was: "), "{said}");
    user.write("riscv64", "three");
    verify(&user, &["--platform", "linux/riscv64"])
        .fails(2, &["demo:v1 has no linux/riscv64", "linux/amd64, linux/arm64"]);
}

#[test]
fn the_first_layer_entry_and_byte_that_differ_are_named() {
    let user = User::new();
    user.write("f", "f\n");
    // What follows is never reached; what comes before is the same.
    let random = "printf 'same same '; cat /proc/sys/kernel/random/uuid";
    let text = format!(
        "FROM busybox\nCOPY f /f\nRUN mkdir /d && echo x > /d/a && {{ {random}; }} > /d/b && {random} > /d/c\nRUN {random} > /z\n"
    );
    let id = user.build(&text, &["-t", "demo:v1"]).ok();
    let done = verify(&user, &[]);
    assert_eq!(done.code, 1, "{done}");
    let said = done.out.clone();
    assert!(
        said.starts_with("demo:v1 is not what it was: layer 3 (RUN /bin/sh -c mkdir /d "),
        "{said}"
    );
    assert!(said.contains("): /d/b: byte "), "{said}");
    let byte: u64 = said.split("byte ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
    assert!(byte >= "same same ".len() as u64, "{said}");
    // The image that was stored is still what the cache gives.
    assert_eq!(user.build(&text, &["-t", "demo:v1"]).ok(), id, "the cache is as it was");
}

/// Each row is built as its first text and verified as its second.
#[test]
fn every_kind_of_difference_has_its_words() {
    let user = User::new();
    user.write("f", "f\n");
    for (built, again, wanted) in [
        (
            "RUN echo 1 > /a",
            "RUN echo 22 > /a",
            "/a: type: stored file of 2 bytes, built again file of 3 bytes",
        ),
        ("RUN echo 1 > /a", "RUN echo 2 > /a", "/a: byte 0: stored 0x31, built again 0x32"),
        (
            "RUN touch /a /b",
            "RUN touch /b",
            "/a: entry: stored file of 0 bytes, built again nothing",
        ),
        (
            "RUN touch /a",
            "RUN touch /a && rm /base/file",
            "/base/file: entry: stored nothing, built again its removal",
        ),
        ("COPY --chmod=600 f /", "COPY --chmod=640 f /", "/f: mode: stored 0600, built again 0640"),
        ("COPY --chown=1:2 f /", "COPY f /", "/f: owner: stored 1:2, built again 0:0"),
        (
            "RUN touch -d @1 /a",
            "RUN touch -d @2 /a",
            "/a: mtime: stored 1.000000000, built again 2.000000000",
        ),
        ("RUN ln -s a /l", "RUN ln -s b /l", "/l: type: stored link to a, built again link to b"),
        ("ENV A=1", "ENV A=2", "config /config/Env/1: stored \"A=1\", built again \"A=2\""),
        ("RUN mkdir /a", "RUN mkdir /a /b", "/b: entry: stored nothing, built again directory"),
        ("COPY f /", "COPY f /\nRUN true", "it has 2 layers, built again 3"),
    ] {
        user.build(&format!("FROM busybox\n{built}\n"), &["-t", "demo:v1"]).ok();
        user.write("Dockerfile", &format!("FROM busybox\n{again}\n"));
        let done = verify(&user, &[]);
        assert_eq!(done.code, 1, "{done}");
        assert!(done.out.trim_end().ends_with(wanted), "wanted {wanted}\n{done}");
    }
}

#[test]
fn an_image_of_the_project_is_verified_by_name_and_by_tag() {
    let user = User::new();
    user.write("idpbuilder.kdl", "image low {\n dockerfile inline=\"FROM scratch\\nCOPY a /\"\n tags one\n}\nimage top {\n dockerfile inline=\"FROM low\\nCOPY b /\"\n tags \"v1\"\n push local\n}\nregistry local { embedded; namespace shop }\n");
    user.write("a", "a");
    user.write("b", "b");
    user.run(["run", "--no-push"]).ok();
    let said = user.run(["verify", "top"]).ok();
    assert!(said.starts_with("top is the same when built again: sha256:"), "{said}");
    user.run(["verify", "localhost:5050/shop/top:v1"]).ok();
    user.write("b", "c");
    let said = user.run(["verify", "top"]);
    assert_eq!(said.code, 1, "{said}");
    assert!(
        said.out
            .contains("layer 2 (COPY b / # buildkit): /b: byte 0: stored 0x62, built again 0x63"),
        "{said}"
    );
    user.run(["verify", "nothing"]).fails(3, &["the project has no image nothing"]);
    user.run(["verify", "nothing", "."]).fails(2, &["nothing not found in the store"]);
}
