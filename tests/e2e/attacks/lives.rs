//! S25, S29, S30, S34 and S35: what is left running, what was not allowed, what is too much, and what is printed.

use std::{fmt::Write as _, fs, net::TcpListener, os::unix::ffi::OsStrExt as _};

use super::{everywhere, said};
use crate::support::Done;

/// Processes that want to stay.
#[test]
fn s25_nothing_goes_on_after_the_process() {
    everywhere("S25", |attack| {
        let seconds = format!("7{}", std::process::id());
        for (script, code) in [
            (format!("(setsid sleep {seconds} &); exit 0"), 0),
            (format!("attack daemon {seconds}; attack daemon {seconds}; echo out"), 0),
            (format!("sleep {seconds} & (trap '' TERM HUP; sleep {seconds}) & exit 7"), 7),
            // Its output stays open, and is not waited for.
            (format!("exec 3>&1; (sleep {seconds} >&3 &); exit 3"), 3),
        ] {
            let done = attack.build_with(&format!("FROM base\nRUN {script}\n"), &["--no-cache"]);
            assert_eq!(done.code, i32::from(code != 0), "{done}");
            assert!(code == 0 || done.err.contains(&format!("exit code: {code}")), "{done}");
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let left = line.split(|byte| *byte == 0).any(|word| word == seconds.as_bytes());
            assert!(!left, "left running: {}", String::from_utf8_lossy(&line));
        }
        "nothing left, exit code kept"
    });
}

/// CVE-2024-23653: more than a Dockerfile may ask for by itself.
#[test]
fn s29_what_needs_a_yes_is_refused_without_one() {
    everywhere("S29", |attack| {
        attack.refused("FROM base\nRUN --security=insecure id\n", &["security.insecure"]);
        attack.refused("FROM base\nRUN --network=host id\n", &["network.host"]);
        attack.refused("FROM base\nRUN --device=/dev/fuse id\n", &["--device"]);
        attack.refused("FROM base\nRUN --security=nothing id\n", &["security"]);
        attack.refused("FROM base\nRUN --privileged id\n", &["privileged"]);
        "refused by name"
    });
}

/// CVE-2026-33747: frontends are images that are run to read a Dockerfile. We run none.
#[test]
fn s30_no_frontend_is_fetched() {
    everywhere("S30", |attack| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        for (line, flags) in [
            (format!("# syntax={address}/evil/frontend"), vec![]),
            ("# syntax=evil/frontend".to_owned(), vec![]),
            (
                String::new(),
                vec!["--build-arg".to_owned(), format!("BUILDKIT_SYNTAX={address}/evil/frontend")],
            ),
        ] {
            attack.user.write("Dockerfile", &format!("{line}\nFROM base\nRUN echo built\n"));
            let mut build = attack.idp();
            build.args([
                "--progress",
                "plain",
                "build",
                "--no-cache",
                "--mirror",
                &format!("docker.io={address}"),
            ]);
            let done = attack.heard(Done::of(build.args(flags).args(attack.flags()).arg(".")));
            assert_eq!((done.code, said(&done).as_str()), (0, "built\n"), "{done}");
            assert!(listener.accept().is_err(), "somebody was asked: {done}");
        }
        "nobody asked"
    });
}

/// Too many steps, mounts, words and variables.
#[test]
fn s34_too_much_is_explained() {
    everywhere("S34 limits", |attack| {
        let many = (0..500).fold(String::from("FROM base\nRUN"), |mut text, number| {
            write!(text, " --mount=type=tmpfs,target=/m/{number}").unwrap();
            text
        });
        attack.refused(&format!("{many} true\n"), &["128 mounts"]);
        let words = format!("{}\\\n", "x".repeat(60_000)).repeat(35);
        attack.refused(&format!("FROM base\nRUN true {words} y\n"), &["argument list too long"]);
        let variables = (0..100_000).fold(String::from("FROM base\n"), |mut text, number| {
            text.push_str(if number % 1000 == 0 { "\nENV" } else { "" });
            write!(text, " V{number}=some-value-of-a-variable-that-is-not-short").unwrap();
            text
        });
        attack.refused(&format!("{variables}\nRUN true\n"), &["argument list too long"]);
        "explained"
    });
}

/// More steps than any Dockerfile has; what they leave in the tool is counted in `output.rs`.
#[test]
fn s34_many_steps_leave_no_mount() {
    // The full count, with more layers than an overlay takes: IDPB_STEPS=3000 cargo test --test e2e s34
    let steps: usize = std::env::var("IDPB_STEPS").map_or(300, |steps| steps.parse().unwrap());
    everywhere("S34 many steps", |attack| {
        let text = (0..steps).fold(String::from("FROM base\n"), |mut text, step| {
            let change = if step < 600 { "> /step" } else { "" };
            writeln!(text, "RUN echo {step} {change}").unwrap();
            text
        });
        let done = attack.build(&text);
        assert_eq!(done.code, 0, "{}", done.err.lines().last().unwrap_or_default());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = attack.user.folder().display().to_string();
        assert!(!mounts.contains(&place), "mounts are left: {mounts}");
        "done"
    });
}

/// What a process prints is text, whatever bytes it is made of.
#[test]
fn s35_what_is_printed_is_text() {
    everywhere("S35", |attack| {
        let script = r#"printf 'a\033[2Jb\033]0;title\007c\rd\b\n'; printf 'e\200\233f\n'; printf '=> DONE\nwork: [1/1] done in 0.0 s\n'; printf 'g\033P+q\033\\h\0i\n'"#;
        let text = format!("FROM base\nRUN {script}\n");
        let done = attack.build_with(&text, &["--no-cache"]);
        assert_eq!(done.code, 0, "{done}");
        assert_harmless(done.err.as_bytes());
        // A line of the process never looks like one of ours.
        for spoof in ["=> DONE", "work: [1/1] done in 0.0 s"] {
            assert!(done.err.lines().any(|line| line == format!("work:   | {spoof}")), "{done}");
        }
        attack.user.write("Dockerfile", &text);
        let build = format!("idpbuilder build --no-cache {} .", attack.flags().join(" "));
        let live = attack
            .user
            .command("script")
            .args(["-qec", &build, "/dev/null"])
            .env("TERM", "xterm")
            .output()
            .unwrap();
        assert!(live.status.success());
        for sequence in [&b"\x1b[2J"[..], b"\x1b]0;", b"\x1bP", b"\x9b", b"\x07", b"\x08"] {
            assert!(
                !live.stdout.windows(sequence.len()).any(|seen| seen == sequence),
                "{sequence:?} on the terminal"
            );
        }
        "made safe"
    });
}

#[track_caller]
fn assert_harmless(text: &[u8]) {
    let harmful = text.iter().find(|byte| **byte < b' ' && !b"\n\t".contains(byte));
    assert_eq!(harmful, None, "{:?}", std::ffi::OsStr::from_bytes(text));
}
