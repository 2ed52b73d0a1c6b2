//! F25: build after build, and nothing grows.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
};

use rustix::process::{Pid, Signal, kill_process};

use super::scaled;
use crate::support::{Done, User, base_contexts};

/// What the machine has of a kind, as far as this test can have made it.
fn machine(user: &User) -> BTreeMap<&'static str, usize> {
    let place = user.folder().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let loops = Done::of(std::process::Command::new("losetup").arg("-a")).ok();
    let lines = |text: &str| text.lines().filter(|line| line.contains(&place)).count();
    let pid_word = super::processes(&place).len();
    BTreeMap::from([("mounts", lines(&mounts)), ("loops", lines(&loops)), ("processes", pid_word)])
}

/// What a process has: descriptors, threads, and memory in KiB.
fn process(pid: u32) -> [u64; 3] {
    let folder = format!("/proc/{pid}");
    let count = |name: &str| fs::read_dir(Path::new(&folder).join(name)).unwrap().count() as u64;
    let status = fs::read_to_string(format!("{folder}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let memory = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    [count("fd"), count("task"), memory]
}

fn disk_kib(user: &User) -> u64 {
    let done = Done::of(std::process::Command::new("du").arg("-sk").arg(user.home()));
    done.ok().split_whitespace().next().unwrap().parse().unwrap()
}

/// Builds, two thirds of which are held against the first ones: a leak of one descriptor or thread in each is seen.
/// The full count: `IDPB_BUILDS=1000 cargo test --test e2e f25`.
const BUILDS: u64 = 30;

#[test]
fn f25_build_after_build_of_one_process_grows_nothing() {
    let count = scaled("IDPB_BUILDS", BUILDS);
    let user = User::new();
    let base = base_contexts()[1].split_once('=').unwrap().1.to_owned();
    user.write("a", "first");
    user.write("Dockerfile", "FROM busybox\nCOPY a /a\nRUN cat /a > /b\n");
    let project = "image app {\n export #false\n build-context busybox=\"BASE\"\n}\n";
    user.write("idpbuilder.kdl", &project.replace("BASE", &base));
    let mut command = user.idp();
    command.args(["--progress", "plain", "watch", "--no-push"]).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut until_waiting = |number: u64| {
        let mut said = String::new();
        loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {said}"));
            if line.contains("watching") {
                assert!(said.contains("stored as"), "build {number}: {said}");
                return;
            }
            said += &line;
            said.push('\n');
        }
    };
    until_waiting(0);
    let mut early = None;
    for number in 1..=count {
        user.change("a", &format!("content {number}"));
        until_waiting(number);
        if number == count / 3 {
            early = Some((process(child.id()), machine(&user)));
        }
    }
    let (early, late) = (early.unwrap(), (process(child.id()), machine(&user)));
    println!(
        "descriptors, threads, KiB: {:?} after {}, {:?} after {count}",
        early.0,
        count / 3,
        late.0
    );
    assert!(late.0[0] <= early.0[0] + 2, "descriptors: {early:?}, {late:?}");
    assert!(late.0[1] <= early.0[1] + 4, "threads: {early:?}, {late:?}");
    assert!(late.0[2] <= early.0[2] + early.0[2] / 5 + 4096, "memory: {early:?}, {late:?}");
    assert_eq!(late.1, early.1);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    user.run(["prune", "--cache-days", "0"]).ok();
}

#[test]
fn f25_build_after_build_of_many_processes_grows_nothing() {
    let count = scaled("IDPB_BUILDS", BUILDS) / 2;
    let user = User::new();
    let build = |number: u64| {
        // The same layers again, made anew each time, and each with a process and limits.
        user.write("Dockerfile", "FROM busybox\nCOPY <<E /a\nsame\nE\nRUN cat /a > /b\n");
        let mut command = user.idp();
        command.args(["build", "-q", "-t", "same:v1", "--no-cache", "--memory", "64m"]);
        let done = Done::of(command.args(base_contexts()).arg("."));
        assert_eq!(done.code, 0, "build {number}: {done}");
        done.out
    };
    let first = build(0);
    (1..count / 3).for_each(|number| assert_eq!(build(number), first));
    let (early, disk) = (machine(&user), disk_kib(&user));
    (count / 3..count).for_each(|number| assert_eq!(build(number), first));
    let (late, more) = (machine(&user), disk_kib(&user));
    println!("{disk} KiB after {}, {more} KiB after {count}", count / 3);
    assert_eq!(late, early);
    // Logs of a step are ten at most, facts have a map that grows by pages.
    assert!(more <= disk + 1024, "{disk} KiB, then {more} KiB");
    assert_eq!(fs::read_dir(user.home().join("images/tmp")).map_or(0, Iterator::count), 0);
}
