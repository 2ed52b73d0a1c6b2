//! F07: who holds a lock is stopped, dead, or has a number that somebody else had before.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use super::build;
use crate::support::{Done, User};

/// A process that holds a lock of the store until it ends.
fn holds(path: &Path) -> Child {
    let script = "echo held; exec sleep 1000";
    let mut command = Command::new("flock");
    command.arg("--no-fork").arg(path).args(["sh", "-c", script]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    child
}

/// Stops a process: the signal is sent at once, and heard when the process is next given time.
fn stop(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED)
        .unwrap()
        .unwrap();
    assert!(status.stopped(), "{status:?}");
}

#[test]
fn f07_a_wait_for_a_stopped_process_is_said_and_ends_when_told_so() {
    let user = User::new();
    user.write("a.txt", "a");
    build(&user, "FROM scratch\nCOPY a.txt /\n", "one:v1");
    let images = user.home().join("images");
    for (lock, args) in [
        ("gc.lock", &["prune"][..]),
        ("gc.lock", &["store", "check", "--repair"]),
        ("write.lock", &["tag", "one:v1", "two:v1"]),
        ("index.lock", &["tag", "one:v1", "three:v1"]),
    ] {
        let mut holder = holds(&images.join(lock));
        stop(&holder);
        let done = Done::of(user.idp().args(args).args(["--lock-timeout", "2"]));
        let pid = holder.id();
        let waiting = format!("waiting for process {pid} (stopped: `kill -CONT {pid}` wakes it)");
        done.fails(8, &[&waiting, lock, &format!("waited 2 s for process {pid}")]);
        // The lock dies with who has it, and no file has to be removed.
        holder.kill().unwrap();
        holder.wait().unwrap();
        let again = Done::of(user.idp().args(args).args(["--lock-timeout", "60"]));
        assert!(again.code == 0 && again.err.is_empty(), "{lock}: {again}");
    }
    assert!(user.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
}

#[test]
fn f07_who_waits_goes_on_when_the_lock_is_free() {
    let user = User::new();
    user.write("a.txt", "a");
    build(&user, "FROM scratch\nCOPY a.txt /\n", "one:v1");
    let mut holder = holds(&user.home().join("images/write.lock"));
    let mut waiting = user.idp();
    let mut waiting = waiting
        .args(["tag", "one:v1", "two:v1"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(waiting.stderr.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert!(
        line.starts_with(&format!("waiting for process {}, which holds ", holder.id())),
        "{line}"
    );
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(waiting.wait().unwrap().success());
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "a wait is said once");
}

#[test]
fn f07_a_number_of_a_process_that_is_gone_means_nothing() {
    let user = User::new();
    user.write("a.txt", "a");
    build(&user, "FROM scratch\nCOPY a.txt /\n", "one:v1");
    let images = user.home().join("images");
    // What a killed process leaves: a lease with its digests, a turn with its number, which another has by now.
    std::fs::write(images.join("leases/0123456789abcdef"), [7; 64]).unwrap();
    std::fs::create_dir(images.join("tmp/0123456789abcdef")).unwrap();
    for key in 0..8 {
        let name = format!("{key:064x}");
        std::fs::create_dir_all(images.join("turns")).unwrap();
        std::fs::write(images.join("turns").join(name), format!("{}\n", std::process::id()))
            .unwrap();
    }
    user.run(["prune", "--cache-days", "0", "--lock-timeout", "30"]).ok();
    assert!(!images.join("leases/0123456789abcdef").exists());
    assert!(!images.join("tmp/0123456789abcdef").exists());
    let again =
        user.build("FROM scratch\nCOPY a.txt /\n", &["-t", "one:v1", "--lock-timeout", "30"]);
    assert!(again.code == 0 && !again.err.contains("waits for"), "{again}");
    // A child that outlives who took the lock is told from the one that has the number.
    let path = images.join("gc.lock");
    let mut parent = Command::new("sh");
    parent.args(["-c", "exec 9<>\"$0\"; flock 9; sleep 1000 & echo $!; exit 0"]).arg(&path);
    let parent = parent.stdout(Stdio::piped()).spawn().unwrap();
    let mut parent = parent;
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    parent.wait().unwrap();
    let refused = user.run(["prune", "--lock-timeout", "1"]);
    let child: i32 = line.trim().parse().unwrap();
    let child = rustix::process::Pid::from_raw(child).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    refused.fails(8, &["a process that process", "started"]);
    drop(File::open(path).unwrap());
}
