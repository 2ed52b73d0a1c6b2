//! Cache mounts: who sees which directory, and the verb that lists, removes, exports and imports them.

use std::{
    fs,
    process::{Child, Stdio},
};

use crate::support::{Done, User, base_contexts, json, registry::Registry};

/// Output of a build whose last step writes `/out`.
fn out(user: &User, dockerfile: &str, flags: &[&str]) -> String {
    let flags: Vec<&str> =
        flags.iter().copied().chain(["--quiet", "--output", "type=local,dest=out"]).collect();
    user.build(dockerfile, &flags).ok();
    fs::read_to_string(user.work().join("out/out")).unwrap()
}

fn list(user: &User) -> Vec<serde_json::Value> {
    user.run(["cache", "ls", "--format", "json"]).ok().lines().map(json).collect()
}

#[test]
fn a_cache_is_known_by_id_owner_mode_seed_and_namespace() {
    let user = User::new();
    let add = |mount: &str, flags: &[&str]| {
        static STEP: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let step = STEP.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let text = format!(
            "FROM busybox AS one\nRUN mkdir -p /s/deep && echo 1 > /s/f && chown 3:4 /s\nFROM busybox AS two\n\
             RUN mkdir /s && echo 2 > /s/f\nFROM busybox\nWORKDIR /w\n\
             RUN --mount=type=cache,{mount} cd /c 2>/dev/null || cd /w/c; echo {step} >> log; \
             (wc -l < log; cat f 2>/dev/null; stat -c '%a %u %g' .) | tr '\\n' ' ' > /out\n"
        );
        out(&user, &text, flags)
    };
    assert_eq!(add("target=/c", &[]), "1 755 0 0 ");
    assert_eq!(add("target=/c", &[]), "2 755 0 0 ");
    assert_eq!(add("target=/c,id=/c", &[]), "3 755 0 0 ", "the target is its id");
    // As typed, and not joined with the working directory.
    assert_eq!(add("target=c", &[]), "1 755 0 0 ");
    assert_eq!(add("target=/w/c,id=c", &[]), "2 755 0 0 ");
    assert_eq!(add("target=/c,uid=7,gid=8,mode=0700", &[]), "1 700 7 8 ");
    assert_eq!(add("target=/c,id=other", &[]), "1 755 0 0 ");
    let namespace = ["--build-arg", "BUILDKIT_CACHE_MOUNT_NS=team"];
    assert_eq!(add("target=/c", &namespace), "1 755 0 0 ");
    assert_eq!(add("target=/c,from=one,source=/s", &[]), "1 1 755 3 4 ");
    assert_eq!(add("target=/c,from=one,source=/s", &[]), "2 1 755 3 4 ");
    assert_eq!(add("target=/c,from=two,source=/s", &[]), "1 2 755 0 0 ", "another seed");
    assert_eq!(add("target=/c", &["--no-cache"]), "1 755 0 0 ", "fresh without earlier results");
    assert_eq!(add("target=/c", &[]), "2 755 0 0 ", "and that is what the next one finds");
    let known: Vec<_> = list(&user)
        .iter()
        .map(|row| {
            format!("{}:{}", row["Namespace"].as_str().unwrap(), row["ID"].as_str().unwrap())
        })
        .collect();
    assert_eq!(known, [":/c", ":/c", ":/c", ":/c", ":c", ":other", "team:/c"]);
}

#[test]
fn without_earlier_results_one_build_shares_what_it_puts_there() {
    let user = User::new();
    let text = "FROM busybox\nRUN --mount=type=cache,target=/c echo a >> /c/log\n\
                RUN --mount=type=cache,target=/c echo b >> /c/log; cat /c/log > /out\n";
    assert_eq!(out(&user, text, &["--no-cache"]), "a\nb\n");
    assert_eq!(out(&user, text, &["--no-cache"]), "a\nb\n");
}

#[test]
fn s09_s10_a_source_or_an_id_never_leads_out_of_the_cache() {
    let user = User::new();
    let canary = user.folder().join("canary");
    fs::write(&canary, "canary\n").unwrap();
    let up = "../".repeat(12);
    let build = |mount: &str| {
        let text = format!(
            "FROM busybox\nRUN --mount=type=cache,id=x,target=/c mkdir -p /c/sub && echo in > /c/sub/f && \
             ln -sfn / /c/root && ln -sfn {up} /c/up && ln -sfn /proc/1/root /c/proc && ln -sfn sub /c/link && echo {mount}\n\
             RUN --mount=type=cache,{mount},target=/d ls /d > /out && cat /d/f /d{} >> /out 2>/dev/null; true\n",
            canary.display()
        );
        user.build(&text, &["--output", "type=local,dest=out"])
    };
    let read = || fs::read_to_string(user.work().join("out/out")).unwrap();
    for source in ["sub", "/sub", "link", "../../sub"] {
        build(&format!("id=x,source={source}")).ok();
        assert_eq!(read(), "f\nin\n", "{source}");
    }
    for source in ["root", "up", "proc", "root/etc"] {
        let said = build(&format!("id=x,source={source}")).fails(1, &["of a cache at /d"]);
        assert!(!said.contains("canary\n"), "{said}");
    }
    build("id=x,source=nowhere").fails(1, &["/nowhere of a cache at /d", "No such file"]);
    let long = "0".repeat(300);
    for id in ["../../etc", "/etc/passwd", long.as_str(), "..", "a b"] {
        build(&format!("\"id={id}\"")).ok();
        assert!(!read().contains("canary"), "{id}");
    }
    let names = fs::read_dir(user.home().join("images/cache-mounts")).unwrap();
    for name in names.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        let plain = name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        assert!(plain || name == "gate", "{name}");
    }
}

/// A build that holds a cache until a file appears in it; it says when it does.
fn holder(user: &User, mount: &str, say: &str) -> Child {
    let text = format!(
        "FROM busybox\nRUN --mount=type=cache,target=/go --mount=type=cache,target=/c,{mount} \
         echo {say} >> /c/log; touch /go/{say}; until test -e /go/end; do :; done; wc -l < /c/log > /out\n"
    );
    let name = format!("{say}.Dockerfile");
    user.write(&name, &text);
    let mut command = user.idp();
    let output = format!("type=local,dest=out-{say}");
    command.args(["build", "--quiet", "-f", &name, "--output", &output]).args(base_contexts());
    command.arg(".").stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Where the cache `/go` is, once it is there.
fn go(user: &User) -> std::path::PathBuf {
    let place = list(user)
        .iter()
        .find(|row| row["ID"] == "/go")
        .map(|row| row["Name"].as_str().unwrap().to_owned())
        .unwrap();
    user.home().join("images/cache-mounts").join(place).join("data")
}

fn wait_for(path: &std::path::Path) {
    while !path.exists() {
        std::thread::yield_now();
    }
}

fn sharing_holds_between_processes(sharing: &str, lines: [&str; 2]) {
    let user = User::new();
    // Both directories are there before anybody waits.
    user.build("FROM busybox\nRUN --mount=type=cache,target=/go true\n", &[]).ok();
    let go = go(&user);
    let mount = format!("id=both,sharing={sharing}");
    let mut first = holder(&user, &mount, "first");
    wait_for(&go.join("first"));
    assert!(list(&user).iter().any(|row| row["ID"] == "both" && row["InUse"] == true));
    user.run(["cache", "rm", "both"]).fails(1, &["both", "in use"]);
    let mut second = holder(&user, &mount, "second");
    if sharing != "locked" {
        wait_for(&go.join("second"));
    }
    fs::write(go.join("end"), "").unwrap();
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());
    let read = |say: &str| fs::read_to_string(user.work().join(format!("out-{say}/out"))).unwrap();
    assert_eq!([read("first").trim(), read("second").trim()], lines, "{sharing}");
}

#[test]
fn one_after_another_when_locked() {
    sharing_holds_between_processes("locked", ["1", "2"]);
}

#[test]
fn everybody_one_of_their_own_when_private() {
    sharing_holds_between_processes("private", ["1", "1"]);
}

#[test]
fn everybody_at_once_when_shared() {
    sharing_holds_between_processes("shared", ["2", "2"]);
}

#[test]
fn a_locked_cache_twice_in_one_step_waits_for_nobody() {
    let user = User::new();
    let text = "FROM busybox\nRUN --mount=type=cache,id=a,target=/a,sharing=locked \
                --mount=type=cache,id=a,target=/b,sharing=locked echo x > /a/f && cat /b/f > /out\n";
    assert_eq!(out(&user, text, &[]), "x\n");
}

/// Caches with all that a tool may count on: owners, modes, times to the nanosecond, links.
const FILL: &str = "FROM busybox\n\
    RUN --mount=type=cache,id=go,target=/c,uid=70,gid=71,mode=0750 --mount=type=cache,id=other,target=/o \
        cd /c && mkdir -p a/b && echo data > a/b/f && ln a/b/f hard && ln -s a/b soft && \
        chown -R 70:71 a && chmod 4711 a/b/f && touch -d '2001-02-03 04:05:06' a/b/f a && echo other > /o/f\n";
const SHOW: &str = "FROM busybox\n\
    RUN --mount=type=cache,id=go,target=/c,uid=70,gid=71,mode=0750 --mount=type=cache,id=other,target=/o \
        cd /c && find . | sort | while read f; do stat -c '%n %F %a %u %g %h %Y %s' $f; done > /out; \
        readlink soft >> /out; cat a/b/f /o/f >> /out\n";

fn caches_travel(one: &User, two: &User, place: &str, flags: &[&str]) {
    one.build(FILL, &[]).ok();
    let before = out(one, SHOW, &[]);
    assert!(before.contains("./a/b/f regular file 4711 70 71 2 981173106 5"), "{before}");
    let with = |user: &User, words: &[&str]| {
        let mut command = user.idp();
        command.arg("cache").args(words).args(flags);
        Done::of(&mut command)
    };
    let said = with(one, &["export", place]).ok();
    assert_eq!(with(one, &["export", place]).ok(), said, "the same caches, the same bytes");
    with(two, &["import", place]).ok();
    assert_eq!(out(two, SHOW, &[]), before);
    let ids = |user: &User| -> Vec<String> {
        list(user).iter().map(|row| row["ID"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(two), ["go", "other"]);
    // What is there already stays, unless it is to be replaced.
    two.build("FROM busybox\nRUN --mount=type=cache,id=other,target=/o echo mine > /o/f\n", &[])
        .ok();
    let kept = with(two, &["import", place]).ok();
    assert!(kept.contains("kept"), "{kept}");
    two.run(["cache", "rm", "go"]).ok();
    assert_eq!(ids(two), ["other"]);
    with(two, &["import", "--id", "go", place]).ok();
    assert_eq!(ids(two), ["go", "other"]);
    two.run(["cache", "prune", "--all"]).ok();
    assert!(ids(two).is_empty());
}

#[test]
fn as_root_caches_travel_in_an_archive() {
    let (one, two) = (User::new(), User::new());
    let place = one.folder().join("caches.tar").display().to_string();
    caches_travel(&one, &two, &place, &[]);
}

#[test]
fn as_an_ordinary_user_caches_travel_in_an_archive() {
    let (one, two) = (User::rootless(), User::rootless());
    let place = one.work().join("caches.tar").display().to_string();
    // Both are the same account; their folders are closed to all others.
    caches_travel(&one, &two, &place, &[]);
}

#[test]
fn caches_travel_through_a_registry() {
    let (one, two, registry) = (User::new(), User::new(), Registry::tls());
    for user in [&one, &two] {
        user.trust(&registry);
        let login = ["login", &registry.address(), "-u", "admin", "--password-stdin"];
        user.run_with_input(login, b"secret\n").ok();
    }
    let place = format!("{}/team/app-cache:main", registry.address());
    caches_travel(&one, &two, &place, &[]);
}
