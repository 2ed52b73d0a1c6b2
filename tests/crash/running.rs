//! F10: the tool is killed while a RUN runs: its processes, mounts and control groups go.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    place::Place,
    support::{Patience, busybox},
    tally::{Finding, Tally, rounds},
};

/// Kills in the normal suite.
const KILLS: u64 = 5;
/// When processes that are still there will not go any more.
const GONE_MAX: Duration = Duration::from_secs(20);
/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";

/// A build in the middle of a RUN that has processes in the background and sleeps for so many seconds.
fn running(place: &Place, seconds: &str) -> Child {
    let base = busybox();
    let text = format!(
        "FROM busybox\nRUN sleep {seconds} & (setsid sleep {seconds} &) ; echo star''ted; sleep {seconds}\n"
    );
    place.user.write("Dockerfile", &text);
    let mut command = place.words(&["build", "--progress", "plain", "--tag", &tag_of(seconds)]);
    command.args(["--build-context", &base, "."]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("started")), "the RUN did not run");
    std::thread::spawn(move || lines.for_each(drop));
    child
}

/// The name that a build gives: all processes of the tool have it among their arguments.
fn tag_of(seconds: &str) -> String {
    format!("gone:v{seconds}")
}

/// Processes of a build, and those that it runs, by their arguments.
fn processes(seconds: &str) -> usize {
    let words = [seconds.to_owned(), tag_of(seconds)];
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = all.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let is_ours = |argument: &[u8]| words.iter().any(|word| word.as_bytes() == argument);
    lines.filter(|line| line.split(|byte| *byte == 0).any(is_ours)).count()
}

/// Control groups that a process of this number has made.
fn groups(pid: u32) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![Path::new(GROUPS).to_owned()]);
    while let Some(folder) = pending.pop() {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| path.is_dir()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("idpbuilder-")
                && name.split('-').any(|part| part == pid.to_string())
            {
                found.push(path.clone());
            }
            pending.push(path);
        }
    }
    found
}

#[test]
fn f10_killed_while_a_run_runs() {
    let place = Place::in_memory();
    let mut tally = Tally::new("f10 kill while a RUN runs");
    for round in 0..rounds(KILLS) {
        // A number of seconds that nobody else sleeps for.
        let seconds = format!("{}{round}", 700_000 + u64::from(std::process::id()));
        let mut child = running(&place, &seconds);
        let pid = child.id();
        assert!(processes(&seconds) > 0 && !groups(pid).is_empty(), "nothing to be left");
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        tally.round();
        tally.timed(|| {
            child.wait().unwrap();
            let patience = Patience::new(GONE_MAX);
            while processes(&seconds) > 0 && !patience.is_over() {}
        });
        if processes(&seconds) > 0 {
            tally.find(Finding::Wrong, format!("{} processes are left", processes(&seconds)));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        if mounts.contains(place.home().to_str().unwrap()) {
            tally.find(Finding::Wrong, "mounts are left");
        }
        place.recover("a kill", &mut tally);
        place.judge(&place.names(), &[], "a kill", &mut tally);
        let text = format!("FROM busybox\nRUN echo {round} > /x\n");
        place.user.write("Dockerfile", &text);
        let base = busybox();
        place.run(&["build", "--quiet", "--tag", "next:v1", "--build-context", &base, "."]).ok();
        if !groups(pid).is_empty() {
            tally.find(Finding::Repaired, format!("control groups are left: {:?}", groups(pid)));
        }
        place.prune(&[], "a kill", &mut tally);
    }
    place.empty(&mut tally);
    tally.end();
}
