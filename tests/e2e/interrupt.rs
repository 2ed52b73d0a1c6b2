//! What is left when a build is stopped, by ^C or by force: nothing.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::support::{User, registry::Registry};

/// How long a stopped build may take to end.
const STOP_MAX: Duration = Duration::from_secs(2);

/// A build in the middle of a RUN, which has started processes in the background too.
fn running(user: &User, mirror: &Registry, seconds: &str) -> Child {
    running_with(user, mirror, seconds, &[])
}

/// As [`running`], with more flags.
fn running_with(user: &User, mirror: &Registry, seconds: &str, flags: &[&str]) -> Child {
    let sleep = format!("sleep {seconds}");
    let text = format!(
        "FROM busybox\nRUN echo a > /a\nRUN {sleep} & (setsid {sleep} &) ; echo sta''rted; {sleep}\n"
    );
    user.write("Dockerfile", &text);
    let mut command = user.idp();
    command.args([
        "--progress",
        "plain",
        "build",
        "-t",
        "demo:v1",
        "--mirror",
        &mirror.as_mirror(),
        ".",
    ]);
    command.args(flags);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    for line in lines.by_ref() {
        let line = line.unwrap();
        if line.contains("started") {
            // What it says at the end must not fill the pipe.
            std::thread::spawn(move || lines.for_each(drop));
            return child;
        }
        said.push_str(&line);
        said.push('\n');
    }
    let ended = child.wait().unwrap();
    panic!("the build ended before its RUN ran, with {ended}:\n{said}");
}

/// Waits for the end; how the build ended, if it did so in time.
fn end(child: &mut Child, since: Instant) -> Option<i32> {
    while since.elapsed() < STOP_MAX {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code().unwrap_or(-1));
        }
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// Command lines of processes that have a word among their arguments.
fn processes(word: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = all.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.split(' ').any(|argument| argument == word)).collect()
}

fn assert_nothing_is_left(user: &User, seconds: &str) {
    let until = Instant::now() + STOP_MAX;
    while !processes(seconds).is_empty() {
        assert!(Instant::now() < until, "processes: {:?}", processes(seconds));
        std::thread::yield_now();
    }
    let home = user.home().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&home), "mounts are left");
    let images = user.run(["images", "--quiet", "demo"]).ok();
    assert_eq!(images, "", "no image has the name");
    let left = fs::read_dir(user.home().join("images/tmp")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "temporary files are left: {left:?}");
}

/// Numbers of seconds that no other test sleeps for.
fn unique(n: u32) -> String {
    format!("{}{n}", 400_000 + std::process::id())
}

#[test]
fn an_interrupted_build_ends_in_two_seconds_and_leaves_nothing() {
    let mirror = Registry::mirror();
    for (n, user) in [User::new(), User::rootless()].iter().enumerate() {
        for (m, (signal, whole_group)) in
            [(Signal::INT, false), (Signal::INT, true), (Signal::TERM, false), (Signal::HUP, true)]
                .into_iter()
                .enumerate()
        {
            let seconds = unique(u32::try_from(n * 10 + m).unwrap());
            let mut child = running(user, &mirror, &seconds);
            assert!(!processes(&seconds).is_empty());
            let (since, pid) = (Instant::now(), Pid::from_child(&child));
            // A terminal signals the whole group; `kill` one process.
            let sent = if whole_group {
                kill_process_group(pid, signal)
            } else {
                kill_process(pid, signal)
            };
            sent.unwrap();
            assert_eq!(end(&mut child, since), Some(130), "{signal:?} to {:?}", (n, whole_group));
            assert_nothing_is_left(user, &seconds);
        }
    }
}

#[test]
fn a_build_that_waits_for_a_registry_ends_in_two_seconds_too() {
    let user = User::new();
    user.write("Dockerfile", "FROM alpine:3.19\n");
    // Takes the connection, and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("docker.io={}", silent.local_addr().unwrap());
    let mut command = user.idp();
    command.args(["build", "--mirror", &mirror, "."]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let (_connection, _) = silent.accept().unwrap();
    let since = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(end(&mut child, since), Some(130));
}

#[test]
fn a_build_that_compresses_a_large_layer_ends_in_two_seconds_too() {
    let user = User::new();
    user.write("Dockerfile", "FROM scratch\nCOPY big /\n");
    user.script("head -c 400000000 /dev/urandom > big").ok();
    let mut command = user.idp();
    command.args(["build", "--progress", "plain", "-t", "127.0.0.1:9/demo:v1", "--push", "."]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    // What follows is the push, which begins by compressing.
    assert!(lines.any(|line| line.contains("stored as")));
    std::thread::spawn(move || lines.for_each(drop));
    let temporary = user.home().join("images/tmp");
    let writing = || fs::read_dir(&temporary).is_ok_and(|mut entries| entries.next().is_some());
    while !writing() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it compressed");
        std::thread::yield_now();
    }
    let since = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(end(&mut child, since), Some(130));
    assert!(!writing(), "temporary files are left");
}

#[test]
fn a_build_without_isolation_takes_its_processes_with_it_too() {
    let (user, mirror) = (User::new(), Registry::mirror());
    for (n, (signal, code)) in [(Signal::INT, 130), (Signal::KILL, -1)].into_iter().enumerate() {
        let seconds = unique(u32::try_from(200 + n).unwrap());
        let mut child = running_with(&user, &mirror, &seconds, &["--isolation", "chroot"]);
        let since = Instant::now();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(end(&mut child, since), Some(code));
        let until = Instant::now() + STOP_MAX;
        while !processes(&seconds).is_empty() {
            assert!(Instant::now() < until, "processes: {:?}", processes(&seconds));
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_killed_build_leaves_no_process_and_the_next_one_works() {
    let mirror = Registry::mirror();
    for (n, user) in [User::new(), User::rootless()].iter().enumerate() {
        let seconds = unique(u32::try_from(100 + n).unwrap());
        let mut child = running(user, &mirror, &seconds);
        let since = Instant::now();
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        assert_eq!(end(&mut child, since), Some(-1));
        let until = Instant::now() + STOP_MAX;
        while !processes(&seconds).is_empty() {
            assert!(Instant::now() < until, "processes: {:?}", processes(&seconds));
            std::thread::yield_now();
        }
        user.write("Dockerfile", "FROM busybox\nRUN echo a > /a\nRUN cat /a > /b\n");
        user.run(["build", "-t", "demo:v1", "--mirror", &mirror.as_mirror(), "."]).ok();
        // What the killed one left is an hour's grace away from being collected, or gone; either way no image has it.
        user.run(["save", "-o", "demo.tar", "demo:v1"]).ok();
    }
}

/// A build whose outcome is settled does not wait for what else it does.
#[test]
fn a_step_that_fails_ends_the_steps_beside_it() {
    let (user, mirror) = (User::new(), Registry::mirror());
    user.write(
        "Dockerfile",
        "FROM busybox AS one\nRUN --mount=type=cache,target=/c touch /c/begun; sleep 1000\n\
         FROM busybox AS two\nRUN --mount=type=cache,target=/c while [ ! -e /c/begun ]; do sleep 0.1; done; exit 7\n\
         FROM busybox\nCOPY --from=one / /one\nCOPY --from=two / /two\n",
    );
    let words = ["build", "-j", "2", "--mirror", &mirror.as_mirror(), "."];
    user.run(words).fails(1, &["exit code: 7"]);
}
