//! `watch`: a change of a file is built, a mistake in the project file is survived, ^C ends it.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use crate::support::{Turn, User, copy_program};

/// Longest wait for a line that must come, of a machine that has much else to do.
const LINE_MAX: Duration = Duration::from_secs(600);

/// A running `watch`, and what it says.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(user: &User) -> Self {
        let mut command = user.idp();
        command.args(["--progress", "plain", "watch", "--no-push"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        // Ends with the program, when nothing can be read any more.
        std::thread::spawn(move || {
            said.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// Waits for a line with these words in it; returns what came before.
    fn until(&self, words: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let line = self.lines.recv_timeout(LINE_MAX);
            let line =
                line.unwrap_or_else(|_| panic!("no `{words}` after:\n{}", before.join("\n")));
            if line.contains(words) {
                return before;
            }
            before.push(line);
        }
    }
}

#[test]
fn a_change_is_built_a_mistake_is_survived_and_an_interrupt_ends_it() {
    let _turn = Turn::embedded();
    let user = User::new();
    user.write("docker/Dockerfile", "FROM scratch\nCOPY a /a\n");
    user.write("site/a", "one");
    user.write("site/.dockerignore", "ignored\n");
    let project =
        "image app { context site; dockerfile \"site/../docker/Dockerfile\"; tags dev }\n";
    user.write("idpbuilder.kdl", project);
    let mut watching = Watching::start(&user);
    watching.until("watching");

    user.change("site/a", "two");
    let said = watching.until("watching").join("\n");
    assert!(said.contains("changed: site/a\n") && said.contains("COPY a /a"), "{said}");
    assert!(said.contains("1 of 1"), "the changed file is copied anew: {said}");

    // What stands beside the Dockerfile, the project file and the context is no part of them.
    user.change("beside", "text");
    user.change("docker/beside", "text");
    user.change("docker/Dockerfile", "FROM scratch\nCOPY a /b\n");
    let said = watching.until("watching").join("\n");
    assert!(said.contains("changed: docker/Dockerfile\n") && said.contains("COPY a /b"), "{said}");

    user.change("idpbuilder.kdl", "imagee app { tags dev }\n");
    let said = watching.until("watching").join("\n");
    assert!(said.contains("imagee") && said.contains("did you mean `image`?"), "{said}");

    user.change("idpbuilder.kdl", project);
    let said = watching.until("watching").join("\n");
    assert!(said.contains("cached"), "nothing but the project file changed: {said}");

    // What no image sees is no change, nor is what is said about one.
    user.change("README.md", "x");
    user.change("site/ignored", "x");
    user.change("site/a", "three");
    let said = watching.until("watching").join("\n");
    assert!(said.contains("changed: site/a\n"), "{said}");

    let process = rustix::process::Pid::from_child(&watching.child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    assert!(watching.child.wait().unwrap().success());
}

#[test]
fn what_is_saved_while_the_project_is_read_is_built_too() {
    let user = User::new();
    let project = |name: &str| {
        format!(
            "image app {{ dockerfile inline=\"FROM scratch\\nCOPY a /{name}\\n\"; tags \"{{git.short}}\" }}\n"
        )
    };
    user.write("a", "a");
    user.write("idpbuilder.kdl", &project("first"));
    // Asked of the repository when the project file was read, and before it is watched.
    let git = user.folder().join("bin/git");
    let script = "#!/bin/sh\n[ ! -e ~/next ] || mv ~/next idpbuilder.kdl\n\
        case $* in *log*) echo 0123456789abcdef0123456789abcdef01234567 0123456 1600000000;; *) exit 1;; esac\n";
    user.write("git", script);
    copy_program(user.work().join("git"), &git);
    fs::set_permissions(&git, fs::Permissions::from_mode(0o755)).unwrap();
    let mut watching = Watching::start(&user);
    watching.until("watching");
    fs::write(user.account().join("next"), project("third")).unwrap();
    user.change("idpbuilder.kdl", &project("second"));
    let said = watching.until("watching").join("\n");
    assert!(said.contains("COPY a /third"), "{said}");
    // A mistake in what is to be watched is one of the project, too.
    user.change("idpbuilder.kdl", &format!("{}watch {{ ignore \"[\" }}\n", project("third")));
    let said = watching.until("watching").join("\n");
    assert!(said.contains("watch ignore pattern"), "{said}");
    user.change("idpbuilder.kdl", &project("fourth"));
    let said = watching.until("watching").join("\n");
    assert!(said.contains("COPY a /fourth"), "{said}");
    watching.child.kill().unwrap();
    watching.child.wait().unwrap();
}

#[test]
fn what_watch_says_into_a_file_of_the_project_is_no_change() {
    let user = User::new();
    user.write("Dockerfile", "FROM scratch\nCOPY a /a\n");
    user.write("a", "one");
    user.write("idpbuilder.kdl", "image app { tags dev }\n");
    let log = user.work().join("watch.log");
    let mut command = user.idp();
    command.args(["--progress", "plain", "watch", "--no-push"]);
    command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    let until_watching = |times: usize| {
        let end = Instant::now() + LINE_MAX;
        loop {
            let said = fs::read_to_string(&log).unwrap();
            if said.matches("watching").count() >= times {
                return said;
            }
            assert!(Instant::now() < end, "not {times} times:\n{said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until_watching(1);
    user.change("a", "two");
    until_watching(2);
    user.change("a", "three");
    let said = until_watching(3);
    assert!(said.contains("changed: a\n") && !said.contains("watch.log"), "{said}");
    child.kill().unwrap();
    child.wait().unwrap();
}
