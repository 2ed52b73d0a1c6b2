//! `store backup` and `restore`, pins, `prune` by size and age, and the cap that builds keep.

use std::{
    fs,
    io::Write as _,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
};

use idpbuilder::store::{ImageRecord, Store};

use super::{build, copy, listed};
use crate::support::{Done, User, registry::Registry};

const STEPS: &str =
    "FROM scratch AS one\nCOPY a /a\nFROM scratch\nCOPY --from=one /a /b\nWORKDIR /b\n";

fn filled() -> User {
    let user = User::new();
    user.write("a/one.txt", "one\n");
    user.write("a/large", &"0123456789".repeat(40_000));
    build(&user, STEPS, "one:v1");
    user.run(["tag", "one:v1", "localhost:5000/two:v1"]).ok();
    user.run(["store", "pin", "one:v1"]).ok();
    user
}

#[test]
fn a_restored_store_has_all_images_pins_and_a_warm_cache() {
    let user = filled();
    user.run(["store", "backup", "all.tar"]).ok();
    let other = User::new();
    copy(&user.work(), &other.work());
    other.run(["store", "restore", "all.tar"]).ok();
    assert_eq!(listed(&other), listed(&user));
    let pinned = other.run(["images", "--format", "{{.Image}} {{.Pinned}}", "one:v1"]).ok();
    assert_eq!(pinned, "one:v1 true\n");
    other.run(["rmi", "one:v1"]).fails(3, &["docker.io/library/one:v1 is pinned", "store unpin"]);
    let built = other.build(STEPS, &["-t", "again:v1"]);
    assert_eq!(built.err.matches(" cached in ").count(), 3, "{built}");
    assert!(other.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
    // Other programs read it as what it also is.
    let name = "docker.io/library/one:v1";
    let raw = Done::of(user.command("skopeo").args([
        "inspect",
        "--config",
        &format!("oci-archive:all.tar:{name}"),
    ]));
    assert!(raw.ok().contains("/b"));
    // Packed by another program, and through pipes.
    user.script("idpbuilder store backup - 2>/dev/null | zstd -q > all.tar.zst").ok();
    let third = User::new();
    let packed = fs::read(user.work().join("all.tar.zst")).unwrap();
    third.run_with_input(["store", "restore", "-"], &packed).ok();
    assert_eq!(listed(&third), listed(&user));
}

/// Several platforms, a manifest of docker, zstd, an image without a name, a base of which nothing was fetched.
#[test]
fn images_in_any_form_are_the_same_when_restored() {
    let user = User::new();
    let registry = Registry::plain();
    let place = format!("127.0.0.1:{}", registry.port());
    user.write("a/amd64", "one");
    user.write("a/arm64", "two");
    let both = "FROM scratch\nARG TARGETARCH\nCOPY a/$TARGETARCH /f\n";
    let name = format!("{place}/both:v1");
    user.build(both, &["-t", &name, "--platform", "linux/amd64,linux/arm64", "--push"]).ok();
    user.build(both, &["-t", &format!("{place}/one:v1"), "--push"]).ok();
    let output = ["--output", "type=oci,dest=zstd.tar,compression=zstd"];
    user.build(both, &output).ok();
    let copied = |from: &str, flags: &[&str], to: &str| {
        let mut skopeo = user.command("skopeo");
        skopeo.args(["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"]);
        Done::of(skopeo.args(flags).args([from, &format!("docker://{place}/{to}:v1")])).ok();
    };
    copied(&format!("docker://{place}/one:v1"), &["--format", "v2s2"], "docker");
    copied("oci-archive:zstd.tar", &[], "zstd");
    let other = User::new();
    for name in ["docker", "zstd"] {
        other.run(["pull", &format!("{place}/{name}:v1")]).ok();
    }
    let digest = other.run(["images", "--format", "{{.Digest}}", &format!("{place}/zstd:v1")]).ok();
    let by_digest = format!("{place}/zstd@{}", digest.trim());
    assert_eq!(other.run(["pull", "-q", &by_digest]).ok(), format!("{by_digest}\n"));
    user.run(["save", "-q", "-o", "both.tar", &name]).ok();
    copy(&user.work(), &other.work());
    other.run(["load", "-q", "-i", "both.tar"]).ok();
    let lazy = format!("FROM {place}/one:v1\nCOPY --link a /a\n");
    other.build(&lazy, &["-t", "lazy:v1"]).ok();
    other.run(["store", "backup", "all.tar"]).ok();
    let third = User::new();
    copy(&other.work(), &third.work());
    third.run(["store", "restore", "all.tar"]).ok();
    assert_eq!(listed(&third), listed(&other));
    assert!(third.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
    let built = third.build(&lazy, &["-t", "lazy:v1", "--offline"]);
    assert!(built.err.contains("[1/1] cached"), "{built}");
    // The layer that was never here is where it was, and all are what they were where they go.
    third.run(["save", "-q", "-o", "lazy.tar", "lazy:v1"]).ok();
    for name in ["docker", "zstd", "both"] {
        let (from, to) = (format!("{place}/{name}:v1"), format!("{place}/again/{name}:v1"));
        third.run(["tag", &from, &to]).ok();
        third.run(["push", &to]).ok();
        let raw = |image: &str| {
            let mut skopeo = user.command("skopeo");
            skopeo.args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{image}")]);
            Done::of(&mut skopeo).ok()
        };
        assert_eq!(raw(&from), raw(&to), "{name}");
    }
}

#[test]
fn an_interrupted_or_wrong_restore_leaves_the_store_as_it_was() {
    let user = filled();
    user.run(["store", "backup", "all.tar"]).ok();
    let archive = fs::read(user.work().join("all.tar")).unwrap();
    let other = User::new();
    other.write("x.txt", "x");
    build(&other, "FROM scratch\nCOPY x.txt /\n", "here:v1");
    other.build("FROM scratch\nCOPY x.txt /\nWORKDIR /x\n", &["-q", "-t", "one:v1"]).ok();
    let before = listed(&other);
    let blobs = || fs::read_dir(other.home().join("images/blobs/sha256")).unwrap().count();
    let had = blobs();
    fs::write(other.work().join("all.tar"), &archive).unwrap();
    fs::write(other.work().join("half.tar"), &archive[..archive.len() / 2]).unwrap();
    let refused = other.run(["store", "restore", "all.tar"]);
    refused.fails(
        3,
        &[
            "docker.io/library/one:v1 stands here for other images",
            "--replace",
            "nothing was changed",
        ],
    );
    other.run(["store", "restore", "--replace", "half.tar"]).fails(3, &["it ends too early"]);
    other.run(["store", "restore", "--replace", "x.txt"]).fails(3, &["no backup"]);
    other.run(["store", "restore", "nowhere.tar"]).fails(3, &["nowhere.tar: No such file"]);
    // ^C, and no chance to say good-bye.
    for (signal, code) in [(rustix::process::Signal::INT, 130), (rustix::process::Signal::KILL, -1)]
    {
        let mut command = other.idp();
        command
            .args(["store", "restore", "--replace", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&archive[..archive.len() / 2]).unwrap();
        let tmp = other.home().join("images/tmp");
        let is_reading = || {
            let folders = fs::read_dir(&tmp).unwrap().flatten();
            let inner =
                folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten());
            inner
                .flatten()
                .any(|staging| fs::read_dir(staging.path()).is_ok_and(|found| found.count() > 0))
        };
        while !is_reading() {
            std::thread::yield_now();
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        // What it waits for never comes, or too slowly.
        while child.try_wait().unwrap().is_none() && input.write_all(&[0]).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        let done = Done::from_output("restore".to_owned(), &output);
        assert_eq!(done.code, code, "{done}");
    }
    assert_eq!((listed(&other), blobs()), (before, had));
    other.run(["prune"]).ok();
    assert!(other.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
    other.run(["store", "restore", "--replace", "all.tar"]).ok();
    assert!(listed(&other).contains(listed(&user).lines().next().unwrap()));
    assert!(listed(&other).contains("here:v1 "));
}

#[test]
fn a_backup_is_whole_while_others_change_the_store() {
    let user = filled();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let change = scope.spawn(|| {
            for round in 0.. {
                if is_done.load(Ordering::Relaxed) {
                    break;
                }
                user.write("a/one.txt", &format!("{round}\n"));
                build(&user, STEPS, "other:v1");
                user.run(["rmi", "other:v1"]).ok();
                user.run(["prune", "--cache-days", "0"]).ok();
            }
        });
        for _ in 0..5 {
            user.run(["store", "backup", "all.tar"]).ok();
            let other = User::new();
            let archive = fs::read(user.work().join("all.tar")).unwrap();
            other.run_with_input(["store", "restore", "-"], &archive).ok();
            assert!(other.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
            assert!(listed(&other).contains("one:v1 "));
        }
        is_done.store(true, Ordering::Relaxed);
        change.join().unwrap();
    });
}

#[test]
fn images_go_by_age_and_steps_by_size_but_not_what_is_pinned() {
    let user = filled();
    let dry = user.run(["prune", "--image-days", "0", "--dry-run"]).ok();
    assert!(dry.starts_with("Would untag: localhost:5000/two:v1\nwould remove"), "{dry}");
    assert_eq!(listed(&user).lines().count(), 2);
    user.run(["prune", "--image-days", "1"]).ok();
    assert_eq!(listed(&user).lines().count(), 2);
    let gone = user.run(["gc", "--image-days", "0"]).ok();
    assert!(gone.starts_with("Untagged: localhost:5000/two:v1\nremoved"), "{gone}");
    assert!(listed(&user).starts_with("one:v1 "));
    user.run(["store", "unpin", "one:v1"]).ok();
    user.run(["rmi", "one:v1"]).ok();
    let cached = || user.build(STEPS, &["-t", "again:v1"]).err.matches(" cached in ").count();
    user.run(["prune", "--max-size", "100g"]).ok();
    assert_eq!(cached(), 3);
    user.run(["rmi", "again:v1"]).ok();
    user.run(["prune", "--max-size", "0"]).ok();
    assert_eq!(cached(), 0);
    user.run(["prune", "--max-size", "much"]).fails(3, &["--max-size much: `much` is no size"]);
}

/// Though nothing of it changed.
#[test]
fn an_image_that_is_built_again_is_as_young_as_a_new_one() {
    const DAY_S: i64 = 24 * 60 * 60;
    let user = filled();
    user.run(["store", "unpin", "one:v1"]).ok();
    let store = Store::open(&user.home().join("images")).unwrap();
    for name in ["docker.io/library/one:v1", "localhost:5000/two:v1"] {
        let record = store.image(name).unwrap().unwrap();
        let stored_at = record.stored_at - 10 * DAY_S;
        store.put_image(&ImageRecord { stored_at, ..record }).unwrap();
    }
    drop(store);
    build(&user, STEPS, "one:v1");
    user.run(["prune", "--image-days", "5"]).ok();
    let left = listed(&user);
    assert!(left.contains("one:v1 ") && !left.contains("two:v1 "), "{left}");
}

#[test]
fn a_cap_is_kept_by_who_builds_and_nobody_waits_for_it() {
    let user = filled();
    user.run(["rmi", "localhost:5000/two:v1"]).ok();
    let blobs = || -> u64 {
        let entries = fs::read_dir(user.home().join("images/blobs/sha256")).unwrap().flatten();
        entries.map(|entry| entry.metadata().unwrap().len()).sum()
    };
    let build = |round: usize, cap: &str| {
        user.write("a/one.txt", &format!("round {round}\n"));
        user.write("Dockerfile", STEPS);
        Done::of(
            user.idp()
                .env("IDPBUILDER_STORE_MAX_SIZE", cap)
                .args(["build", "-q", "-t", "new:v1", "."]),
        )
    };
    for round in 0..4 {
        let built = build(round, "3m");
        assert!(built.code == 0 && built.err.is_empty(), "{built}");
        assert!(blobs() <= 3 << 20, "{} bytes", blobs());
    }
    assert!(blobs() > 1 << 20, "steps stay while there is room");
    // Images are never taken: it is said.
    let built = build(5, "100k");
    assert!(
        built.code == 0 && built.err.contains("more than IDPBUILDER_STORE_MAX_SIZE says"),
        "{built}"
    );
    assert!(listed(&user).contains("one:v1 ") && listed(&user).contains("new:v1 "));
    // Somebody is about to count on content: the collection is left to the next build.
    let gate = fs::File::open(user.home().join("images/gc.lock")).unwrap();
    rustix::fs::flock(&gate, rustix::fs::FlockOperation::LockShared).unwrap();
    assert!(build(6, "100k").code == 0);
    build(7, "a lot").fails(3, &["IDPBUILDER_STORE_MAX_SIZE: `a lot` is no size"]);
}
