//! What a RUN prints: kept whole, told safely, and never waited for longer than the process lives.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::support::{Done, User, base_contexts};

fn logs(user: &User) -> Vec<PathBuf> {
    let entries = fs::read_dir(user.home().join("logs")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn f24_a_step_ends_when_its_process_ends_and_takes_what_it_left_with_it() {
    for user in [User::new(), User::rootless()] {
        // Holds the pipe, in a session of its own, deaf to all that can be ignored. Another run of the tests has its own.
        let seconds = format!("987{:07}", std::process::id());
        let stays = format!("setsid sh -c 'trap \"\" HUP TERM INT; sleep {seconds}' & echo done");
        let closes = "exec > /dev/null 2>&1; sleep 1; echo x > /written";
        let done = user.build(
            &format!("FROM busybox\nRUN {stays}\nRUN {closes}\nRUN cat /written\n"),
            &["--progress", "plain"],
        );
        assert!(done.err.contains("| done") && done.err.contains("| x"), "{done}");
        done.ok();
        let left = fs::read_dir("/proc").unwrap().flatten().any(|process| {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&seconds)
        });
        assert!(!left, "it lives on");
    }
}

/// Also of what went well, and of what was cached since.
#[test]
fn logs_shows_what_the_steps_of_an_image_printed_last() {
    let user = User::new();
    let dockerfile = |word: &str| {
        format!(
            "FROM busybox\nRUN echo {word}; printf '\\377\\033[2J'\nCOPY Dockerfile /\nRUN echo three\n"
        )
    };
    for word in ["one", "other"] {
        user.build(&dockerfile(word), &["-t", "demo:v1"]).ok();
    }
    user.build(&dockerfile("one"), &["-t", "demo:v1"]).ok();
    let name = "demo:v1";
    let list = user.run(["logs"]).ok();
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "PLATFORM", "STEP", "BEGAN", "SIZE"]);
    let steps: Vec<_> = rows[1..].iter().map(|row| (row[0], row[2])).collect();
    assert_eq!(steps, [("demo_v1", "1"), ("demo_v1", "3")], "{list}");
    let both = user.command("sh").args(["-c", "idpbuilder logs demo:v1"]).output().unwrap();
    assert_eq!(both.stdout, b"other\n\xff\x1b[2Jthree\n", "{both:?}");
    assert_eq!(String::from_utf8(both.stderr).unwrap().matches("step ").count(), 2);
    assert_eq!(user.run(["logs", name, "--step", "3"]).ok(), "three\n");
    user.run(["logs", name, "--step", "2"])
        .fails(2, &["no log of step 2 of demo:v1", "only a RUN"]);
    user.run(["logs", "deno"])
        .fails(2, &["there is no log of deno", "`idpbuilder logs` lists them"]);
    user.script("set +o pipefail; idpbuilder logs demo:v1 | true").ok();
    fs::create_dir(user.home().join("logs/odd@linux_amd64-1-5.log")).unwrap();
    let said = user.run(["logs", "odd"]).fails(8, &["cannot read", "odd@", "who ran a build"]);
    assert!(!said.contains("kept in"), "{said}");
}

#[test]
fn every_platform_of_a_step_has_a_log() {
    let user = User::new();
    let text = "FROM --platform=$BUILDPLATFORM busybox\nRUN echo shared\nARG TARGETARCH\nRUN echo for $TARGETARCH\n";
    user.build(text, &["--platform", "linux/amd64,linux/arm64/v8", "-t", "web:v1"]).ok();
    let list = user.run(["logs"]).ok();
    let row = |line: &str| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let rows: Vec<String> = list.lines().skip(1).map(row).collect();
    assert_eq!(rows, ["web_v1 linux/amd64 1", "web_v1 linux/amd64 2", "web_v1 linux/arm64 2"]);
    let said = user.run(["logs", "web:v1", "--step", "2"]);
    assert_eq!(said.out, "for amd64\nfor arm64\n");
    assert!(said.err.contains("step 2 for linux/arm64: /"), "{said}");
    for (platform, wanted) in [("arm64", "for arm64\n"), ("linux/amd64", "shared\nfor amd64\n")] {
        assert_eq!(user.run(["logs", "web:v1", "--platform", platform]).ok(), wanted);
    }
    let shared = ["logs", "web:v1", "--platform", "arm64", "--step", "1"];
    user.run(shared).fails(2, &["no log of step 1 of web:v1 for linux/arm64", "that it ran for"]);
}

#[test]
fn two_runs_of_one_image_have_a_log_each() {
    let user = User::new();
    let start = |word: &str| {
        let name = format!("{word}.Dockerfile");
        let text =
            format!("FROM busybox\nRUN echo first {word}; sleep 1; echo last {word}; exit 7\n");
        user.write(&name, &text);
        let mut command = user.idp();
        command.args(["build", "-t", "same:v1", "-f", &name]).args(base_contexts()).arg(".");
        command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    };
    let words = ["one", "two"];
    let running = words.map(start);
    for (word, child) in words.iter().zip(running) {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let log = said.lines().find_map(|line| line.split_once("whole log")).unwrap().1.trim();
        let kept = fs::read_to_string(log).unwrap();
        assert_eq!(kept, format!("first {word}\nlast {word}\n"));
    }
    // A step that is run again and again keeps its latest logs.
    for _ in 0..12 {
        user.build("FROM busybox\nRUN echo again\n", &["--no-cache", "-t", "many"]).ok();
    }
    let many = logs(&user).iter().filter(|log| log.to_string_lossy().contains("/many")).count();
    assert_eq!(many, 10);
    // A folder's name may be as long as that of a file.
    let long = user.work().join("n".repeat(255));
    fs::create_dir(&long).unwrap();
    fs::write(long.join("Dockerfile"), "FROM busybox\nRUN echo long; false\n").unwrap();
    let mut command = user.idp();
    command.arg("build").args(base_contexts()).arg(&long);
    Done::of(&mut command).fails(1, &["whole log"]);
}

/// Runs the tool on a terminal, in a folder: its exit code, and all that the terminal got.
fn on_terminal(user: &User, folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = user.command("python3");
    let pty = "import os, pty, sys
code = pty.spawn(sys.argv[1:])
sys.exit(os.waitstatus_to_exitcode(code))";
    command.args(["-c", pty]).arg(user.folder().join("bin/idpbuilder")).args(args);
    command.env("NO_COLOR", "1").stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir(folder);
    let mut child = command.spawn().unwrap();
    let mut said = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    (child.wait().unwrap().code(), String::from_utf8_lossy(&said).into_owned())
}

#[track_caller]
fn assert_plain(text: &str) {
    let bad = |letter: char| letter.is_control() && !"\r\n\t".contains(letter);
    assert_eq!(text.find(bad), None, "{text:?}");
}

/// Names of folders and files, lines of Dockerfiles and of project files, what images say of themselves.
#[test]
fn s35_nothing_that_is_named_drives_the_terminal() {
    let user = User::new();
    let evil = "a\u{1b}]0;evil\u{7}b\u{1b}[2Jc\u{9b}1Ad\u{202e}e";
    let folder = user.work().join(evil);
    std::fs::create_dir(&folder).unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    write("Dockerfile", format!("FROM scratch\nCOPY \"no{evil}\" /x # {evil}\n"));
    write("bogus", format!("FROM scratch\nBOGUS {evil}\n"));
    write("from", format!("FROM scratch{evil}\n"));
    write(
        "good",
        format!("FROM scratch\nLABEL a=\"{evil}\"\nWORKDIR /w{evil}\nENV X=\"{evil}\"\n"),
    );
    write("idpbuilder.kdl", format!("image \"{evil}\" {{ }}\nvars {{ x \"{evil}\" }}\n"));
    let plain = ["--progress", "plain"];
    let tries: [(&[&str], &str); 9] = [
        (&["build", "."], "COPY"),
        (&["build", "-f", "bogus", "."], "BOGUS"),
        (&["build", "-f", "from", "."], "FROM"),
        (&["build", "-f", "good", "-t", "good:v1", "."], "WORKDIR"),
        (&["build", "-f", "good", "."], "cached"),
        (&["history", "--no-trunc", "good:v1"], "WORKDIR"),
        (&["inspect", "good:v1"], "WorkingDir"),
        (&["debug", "shell", "good:v1", "--step", "9"], "WORKDIR"),
        (&["plan"], "error"),
    ];
    for (args, word) in tries {
        let (_, text) = on_terminal(&user, &folder, &[&plain, args].concat());
        assert!(text.contains(word), "{args:?}: {text:?}");
        assert_plain(&text);
        assert!(!text.contains('\u{202e}') && !text.contains("evil\u{7}"), "{args:?}: {text:?}");
    }
    // Live, where the display itself moves the cursor.
    let (_, text) = on_terminal(&user, &folder, &["--progress", "tty", "build", "."]);
    assert!(!text.contains("]0;evil") && !text.contains("\u{1b}[2Jc"), "{text:?}");
}

#[test]
fn s35_control_bytes_never_reach_the_terminal() {
    let user = User::new();
    let dockerfile = "FROM busybox\nRUN printf '\\033]0;title\\007\\033[2Jred\\033[31m \\033P$q\\033\\\\end\\b\\x9bx\\n'; exit 3\n";
    user.write("Dockerfile", dockerfile);
    let contexts = base_contexts();
    let args = contexts.iter().map(String::as_str);
    let args: Vec<&str> =
        ["build", "--progress", "plain"].into_iter().chain(args).chain(["."]).collect();
    let (code, text) = on_terminal(&user, &user.work(), &args);
    assert_eq!(code, Some(1));
    assert!(text.contains("| red end\u{fffd}x\r"), "{text:?}");
    assert_plain(&text);
    // The log has it all.
    assert!(logs(&user).iter().any(|log| fs::read(log).unwrap().starts_with(b"\x1b]0;title")));
}

#[test]
fn hardened_runs_give_no_program_more_rights() {
    let user = User::new();
    let dockerfile = "FROM busybox\nUSER 1000\nRUN grep NoNewPrivs /proc/self/status\n";
    let plain = user.build(dockerfile, &["--progress", "plain"]);
    assert!(plain.err.contains("NoNewPrivs: 0"), "{plain}");
    let hard = user.build(dockerfile, &["--progress", "plain", "--no-cache", "--hardened"]);
    assert!(hard.err.contains("NoNewPrivs: 1"), "{hard}");
    hard.ok();
}

#[test]
fn many_steps_leave_no_descriptor_mount_group_or_process() {
    let user = User::new();
    // The full count: IDPB_STEPS=3000 cargo test --test e2e many_steps
    let steps: usize = std::env::var("IDPB_STEPS").map_or(300, |steps| steps.parse().unwrap());
    let per_build = 100;
    // What others mount meanwhile is not counted.
    let mut command = user.command("unshare");
    let mut dockerfile = String::from("FROM busybox AS base\n");
    for number in 0..steps {
        if number % per_build == 0 {
            dockerfile += &format!("FROM base AS s{}\n", number / per_build);
        }
        dockerfile += &format!("RUN echo {number} > /n; echo step {number}\n");
    }
    let stages = steps.div_ceil(per_build);
    dockerfile += "FROM base\n";
    for stage in 0..stages {
        dockerfile += &format!("COPY --from=s{stage} /n /n{stage}\n");
    }
    user.write("Dockerfile", &dockerfile);
    command.args(["--mount", "idpbuilder", "build", "--progress", "plain", "-j", "1"]);
    command.args(base_contexts()).arg(".");
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let process = format!("/proc/{}", child.id());
    let count = || {
        let descriptors = fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count);
        let mounts = fs::read_to_string(format!("{process}/mountinfo")).unwrap_or_default();
        (descriptors, mounts.lines().count())
    };
    let (mut early, mut late) = (None, (0, 0));
    let mut all = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(number) = line.split("| step ").nth(1).and_then(|n| n.parse::<usize>().ok()) {
            let now = count();
            if number == 20 {
                early = Some(now);
            }
            if now.0 > 0 {
                late = now;
            }
        }
        all.push_str(&line);
        all.push('\n');
    }
    assert!(child.wait().unwrap().success(), "{all}");
    let early = early.unwrap();
    // A descriptor more or less is on its way at any moment.
    assert!(late.0 <= early.0 + 8 && late.1 <= early.1, "{early:?}, then {late:?}");
}
