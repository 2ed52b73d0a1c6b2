//! System calls of a command: how many there are, and a command that is killed or refused at one of them.
//!
//! strace counts the calls of each thread for itself; so a point is "the nth call of this name in any thread".

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    time::Duration,
};

use crate::support::{Done, Folder};

/// Calls that change files, mounts, processes or connections, or decide what happens to them.
const CHANGING: &[&str] = &[
    "chmod",
    "clone",
    "clone3",
    "connect",
    "copy_file_range",
    "fallocate",
    "fchmod",
    "fchmodat",
    "fchown",
    "fdatasync",
    "flock",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fsync",
    "ftruncate",
    "link",
    "linkat",
    "mkdir",
    "mkdirat",
    "mount",
    "move_mount",
    "open",
    "openat",
    "pwrite64",
    "pwritev",
    "recvfrom",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendfile",
    "sendto",
    "symlink",
    "symlinkat",
    "syncfs",
    "umount2",
    "unlink",
    "unlinkat",
    "utimensat",
    "write",
    "writev",
];

/// A command that takes longer has come to a halt, on a machine that has much else to do as well.
pub(crate) const LONGEST: Duration = Duration::from_secs(300);
/// Code of a command that a signal ended: strace and `timeout` end as it did.
pub(crate) const KILLED: i32 = -1;

/// The nth call of a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    pub(crate) nth: u64,
    pub(crate) call: String,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.call, self.nth)
    }
}

/// Runs a command to its end, which must be a good one, and tells all points that it has.
pub(crate) fn points(command: &Command) -> Vec<Point> {
    points_of(command, CHANGING, |_| true)
}

/// As [`points`], of some calls alone, and those whose arguments are wanted in every thread.
pub(crate) fn points_of(
    command: &Command,
    calls: &[&str],
    is_wanted: impl Fn(&str) -> bool,
) -> Vec<Point> {
    let folder = Folder::new();
    let log = folder.path().join("log");
    let calls = calls.join(",");
    let mut strace = wrapped(command, &[&format!("--trace={calls}")], log.to_str().unwrap());
    Done::of(&mut strace).ok();
    let mut counts = BTreeMap::<(String, String), u64>::new();
    let (mut points, mut unwanted) = (BTreeSet::new(), BTreeSet::new());
    let log = fs::read_to_string(log).unwrap_or_default();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        // `<... write resumed>` is the end of a call that was counted, `+++` and `---` are none.
        let Some((call, arguments)) = rest.trim_start().split_once('(') else { continue };
        if call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            let count = counts.entry((call.to_owned(), thread.to_owned())).or_default();
            *count += 1;
            let point = Point { nth: *count, call: call.to_owned() };
            if is_wanted(arguments) { &mut points } else { &mut unwanted }.insert(point);
        }
    }
    points.difference(&unwanted).cloned().collect()
}

/// Whether a call, by its arguments as strace shows them, is about a file, and not about a socket, a pipe or an eventfd.
pub(crate) fn is_of_file(arguments: &str) -> bool {
    let after_number = arguments.trim_start_matches(|c: char| c.is_ascii_digit());
    after_number.strip_prefix('<').is_none_or(|target| target.starts_with('/'))
}

/// The command, killed as it is about to make the call.
pub(crate) fn killed_at(command: &Command, point: &Point) -> Command {
    injected(command, point, "signal=KILL", "/dev/null")
}

/// Runs the command, whose call fails in this way and is not made. `None` when the refused call was not one of a file.
pub(crate) fn refused_at(command: &Command, point: &Point, error: &str) -> Option<Done> {
    let folder = Folder::new();
    let log = folder.path().join("log");
    let how = format!("error={error}");
    let done = Done::of(&mut injected(command, point, &how, log.to_str().unwrap()));
    let log = fs::read_to_string(log).unwrap_or_default();
    let mut refused = log.lines().filter(|line| line.contains("(INJECTED)"));
    let is_of_file = |line: &str| line.split_once('(').is_none_or(|(_, rest)| is_of_file(rest));
    refused.all(is_of_file).then_some(done)
}

fn injected(command: &Command, Point { nth, call }: &Point, how: &str, log: &str) -> Command {
    let (trace, inject) = (format!("--trace={call}"), format!("--inject={call}:{how}:when={nth}"));
    wrapped(command, &[&trace, &inject], log)
}

fn wrapped(command: &Command, flags: &[&str], log: &str) -> Command {
    let mut strace = Command::new("timeout");
    // Its faster way (--seccomp-bpf) delivers no signals.
    strace.args(["--signal=KILL", &LONGEST.as_secs().to_string(), "strace"]);
    strace.args(["-f", "-y", "-qq", "--signal=none", "-o", log]).args(flags);
    strace.arg("--").arg(command.get_program()).args(command.get_args()).env_clear();
    strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    strace.current_dir(command.get_current_dir().unwrap()).stdin(std::process::Stdio::null());
    strace
}
