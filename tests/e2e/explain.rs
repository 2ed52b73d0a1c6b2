//! `explain`: one golden line for each thing that can be different.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::support::{Done, ROOT, User, base_contexts, json};

/// A build that must succeed.
fn build(user: &User, dockerfile: &str, flags: &[&str]) {
    user.build(dockerfile, &[&["-q", "-t", "demo:v1"], flags].concat()).ok();
}

/// Lines that `explain` has for steps that were not cached.
fn explained(user: &User) -> Vec<String> {
    let text = user.run(["explain"]).ok();
    let lines = text.lines().skip(1).filter(|line| !line.contains("] cached"));
    lines.map(|line| line.trim().to_owned()).collect()
}

const COPY: &str = "FROM busybox\nCOPY src/ /src/\nRUN cat /src/a > /all\n";

fn with_files() -> User {
    let user = User::new();
    for name in ["a", "b", "sub/c"] {
        user.write(&format!("src/{name}"), name);
    }
    user
}

#[test]
fn a_changed_file_is_named() {
    let user = with_files();
    build(&user, COPY, &[]);
    user.write("src/sub/c", "other");
    build(&user, COPY, &[]);
    assert_eq!(
        explained(&user),
        [
            "[1/2] built  COPY src/ /src/: 1 of 3 files changed: src/sub/c",
            "[2/2] built  RUN cat /src/a > /all: stands on [1/2] COPY src/ /src/, which changed",
        ]
    );
    user.write("src/new", "new");
    fs::remove_file(user.work().join("src/b")).unwrap();
    build(&user, COPY, &[]);
    assert_eq!(
        explained(&user)[0],
        "[1/2] built  COPY src/ /src/: 1 file more: src/new; 1 file less: src/b"
    );
}

#[test]
fn a_changed_mode_is_named() {
    let user = with_files();
    let mode = |mode: u32| {
        let path = user.work().join("src/a");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o644);
    build(&user, COPY, &[]);
    mode(0o755);
    build(&user, COPY, &[]);
    assert_eq!(
        explained(&user)[0],
        "[1/2] built  COPY src/ /src/: mode of src/a changed: 644 → 755"
    );
}

#[test]
fn a_changed_argument_is_named() {
    let user = User::new();
    let text = "FROM busybox\nARG V=1\nRUN echo $V > /v\n";
    build(&user, text, &[]);
    build(&user, text, &["--build-arg", "V=2"]);
    assert_eq!(
        explained(&user),
        ["[1/1] built  RUN echo 2 > /v: environment variable V changed: 1 → 2"]
    );
}

#[test]
fn a_changed_line_of_the_dockerfile_is_shown() {
    let user = User::new();
    build(&user, "FROM busybox\nRUN echo 1 > /v\n", &[]);
    build(&user, "FROM busybox\nRUN echo 2 > /v\n", &[]);
    assert_eq!(
        explained(&user),
        [
            r#"[1/1] built  RUN echo 2 > /v: command changed: ["/bin/sh", "-c", "echo 1 > /v"] → ["/bin/sh", "-c", "echo 2 > /v"]"#
        ]
    );
    build(&user, "FROM busybox\nWORKDIR /w\n", &[]);
    assert_eq!(explained(&user), ["[1/1] built  WORKDIR /w: kind changed: run → files"]);
}

#[test]
fn a_changed_base_is_named() {
    let user = User::new();
    user.build("FROM busybox\nRUN echo 1 > /base-version\n", &["-q", "-t", "base:1"]).ok();
    build(&user, "FROM base:1\nRUN echo > /v\n", &[]);
    user.build("FROM busybox\nRUN echo 2 > /base-version\n", &["-q", "-t", "base:1"]).ok();
    build(&user, "FROM base:1\nRUN echo > /v\n", &[]);
    assert_eq!(explained(&user), ["[1/1] built  RUN echo > /v: base image base:1 changed"]);
}

#[test]
fn a_changed_platform_is_named() {
    let user = with_files();
    let text = "FROM scratch\nCOPY src/ /src/\n";
    build(&user, text, &["--platform", "linux/amd64"]);
    build(&user, text, &["--platform", "linux/arm64"]);
    assert_eq!(
        explained(&user),
        ["[1/1] built  COPY src/ /src/: platform changed: linux/amd64 → linux/arm64"]
    );
}

#[test]
fn a_changed_mount_is_named() {
    let user = with_files();
    let text = "FROM busybox\nRUN --mount=type=bind,source=src,target=/in cat /in/a > /a\n";
    build(&user, text, &[]);
    user.write("src/a", "other");
    build(&user, text, &[]);
    let said = explained(&user);
    assert!(said[0].ends_with(": mount /in: 1 of 3 files changed: src/a"), "{said:?}");
    let text = text.replace("target=/in", "target=/in,rw").replace("bind,", "bind,from=busybox,");
    build(&user, &text.replace("source=src", "source=/base").replace("/in/a", "/in/file"), &[]);
    assert!(explained(&user)[0].contains("command changed"), "{:?}", explained(&user));
}

#[test]
fn whatever_is_said_of_a_mount_counts() {
    let user = with_files();
    let folder = user.work().join("src");
    let build = |mount: &str| {
        let text = format!("FROM busybox\nRUN --mount={mount} true\n");
        build(&user, &text, &["--secret", "id=t,src=src/a"]);
    };
    let changed = |mount: &str, flag: &str, words: &str| {
        build(mount);
        build(&format!("{mount},{flag}"));
        let said = explained(&user);
        assert!(said[0].ends_with(&format!("true: mount /m {words}")), "{mount} {flag}: {said:?}");
    };
    changed("type=bind,source=src/sub,target=/m", "rw", "access is new: read and write");
    changed("type=cache,target=/m", "ro", "access is new: read only");
    changed("type=cache,target=/m", "mode=0700", "mode is new: 700");
    changed("type=cache,target=/m", "uid=7", "owner is new: 7:0");
    changed("type=secret,id=t,target=/m", "mode=0444", "mode is new: 444");
    changed("type=secret,id=t,target=/m", "gid=7", "owner is new: 0:7");
    changed("type=secret,id=t,target=/m", "required", "required is new: true");
    changed("type=secret,id=t,target=/m", "env=T", "variable is new: T, and a file");
    changed("type=ssh,target=/m", "mode=0666", "mode is new: 666");
    let bind = "type=bind,source=src,target=/m";
    build(bind);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    build(bind);
    assert!(explained(&user)[0].ends_with("mount /m mode is new: 700"), "{:?}", explained(&user));
}

#[test]
fn limits_that_a_process_reads_count() {
    let user = User::new();
    let text = "FROM busybox\nRUN ulimit -n > /n\n";
    build(&user, text, &["--ulimit", "nofile=100"]);
    build(&user, text, &["--ulimit", "nofile=200", "--memory", "1g"]);
    let said = explained(&user);
    assert_eq!(said, ["[1/1] built  RUN ulimit -n > /n: limit nofile changed: 100:100 → 200:200"]);
    build(&user, text, &["--ulimit", "nofile=200", "--shm-size", "1m"]);
    assert!(explained(&user)[0].ends_with("size of /dev/shm is new: 1048576"));
    build(&user, text, &["--ulimit", "nofile=200"]);
    assert!(explained(&user).is_empty(), "how much memory there is says nothing of the result");
}

/// What comes from a stage is told by the step that made it, and what is the same there is not done again.
#[test]
fn a_stage_that_changed_is_named_and_counts_by_what_is_shown_of_it() {
    let user = with_files();
    let text = "FROM busybox AS made\nCOPY src/ /src/\nRUN mkdir /kept && cp /src/a /kept/\n\
                FROM busybox\nCOPY --from=made /kept /kept\n\
                RUN --mount=type=bind,from=made,source=/kept,target=/m cp /m/a /a && date -u > /now\n";
    build(&user, text, &[]);
    user.write("src/b", "other");
    build(&user, text, &[]);
    let steps = explained(&user);
    assert_eq!(
        steps[2..],
        [
            "[3/4] built  COPY --from=made /kept /kept: source /kept comes from [2/4] RUN mkdir /kept && cp /src/a \
             /kept/, which changed"
        ],
        "the last step joins the cache again: {steps:?}"
    );
    build(&user, text, &[]);
    assert!(explained(&user).is_empty(), "and is found at once from then on");
    let moved = text.replace("source=/kept", "source=/src");
    build(&user, &moved, &[]);
    let words = "mount /m shows other files of [2/4] RUN mkdir /kept && cp /src/a /kept/";
    assert!(explained(&user)[0].ends_with(words), "{:?}", explained(&user));
    // What was done anew is what is found again, and not what it took the place of.
    build(&user, text, &["--no-cache-filter", "1"]);
    let digest = |user: &User| user.run(["images", "--format", "{{.Digest}}", "demo:v1"]).ok();
    let anew = digest(&user);
    user.write("src/b", "third");
    build(&user, text, &[]);
    assert_eq!(digest(&user), anew);
}

#[test]
fn the_plan_is_explained_without_doing_it() {
    let user = with_files();
    user.write("Dockerfile", COPY);
    let contexts: Vec<String> = base_contexts();
    let layout = contexts.iter().find_map(|text| text.strip_prefix("busybox=oci-layout://"));
    user.run(["load", "-q", "-i", layout.unwrap(), "-t", "busybox:latest"]).ok();
    user.write(
        "idpbuilder.kdl",
        "image site { tags \"1\" }\nimage shop { dockerfile inline=\"FROM site\\nRUN true\\n\" }\n",
    );
    let plan = |user: &User| user.run(["explain", "--plan"]).ok();
    let fresh = "site\n  [1/2] stale  COPY src/ /src/: not built before\n  \
                 [2/2] stale  RUN cat /src/a > /all: stands on [1/2] COPY src/ /src/\n";
    assert_eq!(plan(&user), fresh);
    assert_eq!(plan(&user), fresh, "nothing was done");
    user.run(["run", "-q"]).ok();
    let known = plan(&user);
    assert!(!known.contains("stale") && known.contains("shop\n  [1/1] cached RUN true"), "{known}");
    user.write("src/a", "other");
    let said = user.run(["explain", "--plan", "shop"]);
    assert!(said.err.contains("shop stands on site, which would be built again"), "{said}");
    assert!(said.ok().contains("[1/2] stale  COPY src/ /src/: 1 of 3 files changed: src/a"));
}

#[test]
fn the_json_form_is_what_its_schema_says() {
    let user = with_files();
    user.run(["explain"]).fails(2, &["nothing has run yet"]);
    build(&user, COPY, &[]);
    user.write("src/a", "other");
    build(&user, COPY, &[]);
    let text = user.run(["explain", "--format", "json"]).ok();
    let steps = json(&text)["steps"].as_array().unwrap().clone();
    assert_eq!(steps[0]["component"], "source src/");
    assert_eq!(steps[1]["component"], "base");
    user.write("explained.json", &text);
    let check = "import json, jsonschema, sys; \
                 jsonschema.validate(json.load(open(sys.argv[1])), json.load(open(sys.argv[2])))";
    let schema = format!("{ROOT}/schema/explain.json");
    let mut python = user.command("/usr/bin/python3");
    Done::of(python.args(["-c", check, "explained.json", &schema])).ok();
}
