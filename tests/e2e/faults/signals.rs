//! F09, F10: what is left when the tool is stopped, by ^C or by force: nothing, whatever it was doing.
//!
//! Guarantee 6 says two seconds. How long each took is printed; a loaded machine does not fail a test.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::processes;
use crate::support::{Done, Patience, Turn, User, base_contexts, busybox, registry::Registry};

/// How long the tool may take to end when it was stopped, of the processor time of who waits: what does not end by itself
/// takes longer.
const STOP_MAX: Duration = Duration::from_secs(30);

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
    let patience = Patience::new(STOP_MAX);
    while !patience.is_over() {
        if let Some(status) = child.try_wait().unwrap() {
            println!("ended {:.2} s after the signal", since.elapsed().as_secs_f64());
            return Some(status.code().unwrap_or(-1));
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// What a shell says of a program that a signal ended.
fn code_of(signal: Signal) -> i32 {
    128 + signal.as_raw()
}

/// Waits until the processes of a build are gone, as they have to be.
#[track_caller]
fn await_processes(seconds: &str) {
    let patience = Patience::new(STOP_MAX);
    while !processes(seconds).is_empty() {
        assert!(!patience.is_over(), "processes: {:?}", processes(seconds));
    }
}

fn assert_nothing_is_left(user: &User, seconds: &str) {
    await_processes(seconds);
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
fn f09_an_interrupted_build_ends_soon_and_leaves_nothing() {
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
            assert_eq!(
                end(&mut child, since),
                Some(code_of(signal)),
                "{signal:?} to {:?}",
                (n, whole_group)
            );
            assert_nothing_is_left(user, &seconds);
        }
    }
}

#[test]
fn f09_a_build_that_waits_for_a_registry_ends_soon_too() {
    let user = User::new();
    user.write("Dockerfile", "FROM alpine:3.19\n");
    // Takes the connection, and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("docker.io={}", silent.local_addr().unwrap());
    let mut command = user.idp();
    let said = user.folder().join("said");
    let file = fs::File::create(&said).unwrap();
    command.args(["build", "--mirror", &mirror, "."]).stdout(Stdio::null()).stderr(file);
    let mut child = command.spawn().unwrap();
    let (_connection, _) = silent.accept().unwrap();
    let since = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(end(&mut child, since), Some(130));
    let said = fs::read_to_string(said).unwrap();
    let table = said.split_once("digest").unwrap().1;
    assert!(table.contains(" cancelled   –") && !table.contains("failed"), "{said}");
}

#[test]
fn f09_a_build_that_compresses_a_large_layer_ends_soon_too() {
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
fn f09_f10_a_build_without_isolation_takes_its_processes_with_it_too() {
    let (user, mirror) = (User::new(), Registry::mirror());
    for (n, (signal, code)) in [(Signal::INT, 130), (Signal::KILL, -1)].into_iter().enumerate() {
        let seconds = unique(u32::try_from(200 + n).unwrap());
        let mut child = running_with(&user, &mirror, &seconds, &["--isolation", "chroot"]);
        let since = Instant::now();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(end(&mut child, since), Some(code));
        await_processes(&seconds);
    }
}

#[test]
fn f10_a_killed_build_leaves_no_process_and_the_next_one_works() {
    let mirror = Registry::mirror();
    for (n, user) in [User::new(), User::rootless()].iter().enumerate() {
        let seconds = unique(u32::try_from(100 + n).unwrap());
        let mut child = running(user, &mirror, &seconds);
        let since = Instant::now();
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        assert_eq!(end(&mut child, since), Some(-1));
        await_processes(&seconds);
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

/// A file that takes long to hash, though it takes no room: the walk over a context and the hashing look for the signal too.
#[test]
fn f09_a_build_that_reads_a_large_file_ends_soon_too() {
    let user = User::new();
    user.write("Dockerfile", "FROM scratch\nCOPY big /\n");
    user.script("truncate -s 1T big").ok();
    let mut command = user.idp();
    command.args(["build", "--progress", "plain", "."]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let reads = || fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
    let read = |text: &str| {
        let first = text.lines().next().unwrap();
        first.strip_prefix("rchar: ").unwrap().parse::<u64>().unwrap()
    };
    while read(&reads()) < 1 << 26 {
        std::thread::yield_now();
    }
    let since = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(end(&mut child, since), Some(130));
}

/// Whether there is a large file in a folder or, as it is being written, in one of the process below it.
fn is_writing(place: &Path) -> bool {
    // What is gone again was there.
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => is_writing(&entry.path()),
        meta => meta.is_ok_and(|meta| meta.len() > 1 << 20),
    })
}

/// What is written to a file of the user is whole or not there.
#[test]
fn f09_save_and_load_end_soon_and_leave_nothing() {
    let user = User::new();
    user.script("head -c 300000000 /dev/urandom > big").ok();
    user.build("FROM scratch\nCOPY big /\n", &["-t", "big:v1"]).ok();
    user.run(["save", "-o", "whole.tar", "big:v1"]).ok();
    fs::create_dir(user.work().join("out")).unwrap();
    let other = User::new();
    let whole = user.work().join("whole.tar").display().to_string();
    let cases: [(&User, &[&str], _); 2] = [
        (&user, &["save", "-o", "out/image.tar", "big:v1"], user.work().join("out")),
        (&other, &["load", "-i", &whole], other.home().join("images/tmp")),
    ];
    for (user, words, place) in cases {
        fs::create_dir_all(&place).unwrap();
        let mut command = user.idp();
        let mut child =
            command.args(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while !is_writing(&place) {
            if let Some(status) = child.try_wait().unwrap() {
                let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
                panic!("{words:?} ended before it was stopped, with {status}: {said}");
            }
        }
        let since = Instant::now();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(end(&mut child, since), Some(143), "{words:?}");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "{words:?}");
    }
}

/// A registry that takes the connection and never answers.
fn silent() -> (std::net::TcpListener, String) {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    (silent, address)
}

#[test]
fn f09_push_and_pull_end_soon_and_leave_nothing() {
    let user = User::new();
    for (verb, signal) in [
        ("push", Signal::INT),
        ("push", Signal::TERM),
        ("pull", Signal::INT),
        ("pull", Signal::HUP),
    ] {
        // One for each: what the one before it was asked for besides waits to be accepted.
        let (silent, address) = silent();
        let image = format!("{address}/demo:v1");
        user.build("FROM scratch\nCOPY <<E /f\ntext\nE\n", &["-t", &image]).ok();
        let mut command = user.idp();
        command.args([verb, &image]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (_connection, _) = silent.accept().unwrap();
        let since = Instant::now();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(end(&mut child, since), Some(code_of(signal)), "{verb} {signal:?}");
        let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(said.ends_with("cancelled\n"), "{said}");
        assert_eq!(fs::read_dir(user.home().join("images/tmp")).unwrap().count(), 0);
        user.run(["inspect", &image]).ok();
    }
}

/// Each image is told once how it stands, and what was asked to stop has not failed.
#[test]
fn f09_an_interrupted_run_says_cancelled_and_not_failed() {
    let user = User::new();
    let busybox = busybox();
    let (_, layout) = busybox.split_once('=').unwrap();
    let image = |name: &str, text: &str| {
        let context = format!("build-context busybox=\"{layout}\"");
        format!("image {name} {{ dockerfile inline=\"{text}\"; {context}; push #null }}\n")
    };
    let sleep = format!("RUN echo sta''rted; sleep {}", unique(500));
    let images = [
        image("a", &format!("FROM busybox\\n{sleep}")),
        image("b", &format!("FROM busybox\\nENV b=b\\n{sleep}")),
        image("c", "FROM a\\nENV c=c"),
    ];
    user.write("idpbuilder.kdl", &images.concat());
    let mut command = user.idp();
    command.args(["run", "-j2", "--no-push", "--progress", "plain"]).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("| started")));
    assert!(lines.any(|line| line.contains("| started")));
    let since = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let said: Vec<String> = lines.collect();
    assert_eq!(end(&mut child, since), Some(130));
    for (line, times) in
        [("a: cancelled", 1), ("b: cancelled", 1), ("c: not built: cancelled", 1), ("cancelled", 1)]
    {
        assert_eq!(said.iter().filter(|said| *said == line).count(), times, "{line}: {said:#?}");
    }
    assert!(said.iter().all(|line| !line.contains("failed")), "{said:#?}");
}

/// A registry that has every blob, takes manifests by digest, and never answers who moves a tag; it says when it is asked to.
fn stuck_at_tags() -> (String, mpsc::Receiver<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (asked, when_asked) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, asked) = (stream.unwrap(), asked.clone());
            std::thread::spawn(move || answer_all_but_tags(&stream, &asked));
        }
    });
    (address, when_asked)
}

fn answer_all_but_tags(mut stream: &std::net::TcpStream, asked: &mpsc::Sender<()>) {
    use std::io::{Read as _, Write as _};
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        });
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).unwrap();
        let is_of_tag = head.contains("/manifests/") && !head.contains("/manifests/sha256:");
        let status = match head.split(' ').next() {
            Some("PUT") if is_of_tag => {
                asked.send(()).unwrap();
                // Until the client hangs up.
                drop(reader.read_to_end(&mut body));
                return;
            }
            Some("PUT") => "201 Created",
            Some("HEAD") if head.contains("/manifests/") => "404 Not Found",
            _ => "200 OK",
        };
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
    }
}

#[test]
fn f09_a_tag_that_its_registry_does_not_answer_for_holds_nobody_up() {
    let user = User::new();
    let (address, asked) = stuck_at_tags();
    user.write(
        "idpbuilder.kdl",
        &format!(
            "registry there \"{address}\" {{ plain-http }}\n\
             image a {{ dockerfile inline=\"FROM scratch\\nENV a=a\"; tags one two; push there }}\n"
        ),
    );
    let mut command = user.idp();
    command.args(["run", "--progress", "plain"]).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    asked.recv().unwrap();
    let since = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(end(&mut child, since), Some(130));
    let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(said.contains("a:one may have moved: its registry had not answered yet"), "{said}");
    assert!(asked.try_recv().is_err(), "the other tag was not asked for: {said}");
    assert!(said.ends_with("\ncancelled\n"), "{said}");
}

/// The second signal ends what the first one only asked to end: a server whose client is in the middle of something.
#[test]
fn f09_the_second_signal_ends_it_at_once() {
    use std::io::{Read as _, Write as _};
    let user = User::new();
    let mut command = user.idp();
    command.args(["serve", "--address", "127.0.0.1:0", "--plain-http", "--no-login"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let port: u16 =
        first.split("localhost:").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut ask = |request: &str| {
        write!(client, "{request}Host: localhost:{port}\r\n\r\n").unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            head.push(byte[0].into());
        }
        head
    };
    let begun = ask("POST /v2/demo/blobs/uploads/ HTTP/1.1\r\nContent-Length: 0\r\n");
    let place = begun.lines().find_map(|line| line.strip_prefix("location: ")).unwrap();
    // Ten bytes are promised, and none comes.
    let answer =
        ask(&format!("PATCH {place} HTTP/1.1\r\nContent-Length: 10\r\nExpect: 100-continue\r\n"));
    assert!(answer.contains("100 Continue"), "the server reads the body: {answer}");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    // Two signals of a kind at once would be one: the first has come when nobody else is let in.
    let patience = Patience::new(STOP_MAX);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(!patience.is_over(), "it goes on");
    }
    assert!(child.try_wait().unwrap().is_none(), "it waits for the client");
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(end(&mut child, Instant::now()), Some(130));
}

#[test]
fn f09_a_build_told_twice_ends_at_once_and_a_collection_takes_the_rest() {
    let (user, mirror) = (User::new(), Registry::mirror());
    let seconds = unique(300);
    let mut child = running(&user, &mirror, &seconds);
    let (pid, since) = (Pid::from_child(&child), Instant::now());
    kill_process(pid, Signal::TERM).unwrap();
    let _ = kill_process(pid, Signal::TERM);
    assert_eq!(end(&mut child, since), Some(143));
    // Whoever asks twice does not wait for what is unfinished to be taken away, nor for what still holds it.
    await_processes(&seconds);
    user.run(["prune"]).ok();
    assert_nothing_is_left(&user, &seconds);
}

/// The window is closed: the terminal hangs up, and cannot be written to any more.
#[test]
fn f09_a_closed_terminal_ends_the_build() {
    for (number, user) in [User::new(), User::rootless()].iter().enumerate() {
        let seconds = unique(310 + u32::try_from(number).unwrap());
        user.write("Dockerfile", &format!("FROM busybox\nRUN echo sta''rted; sleep {seconds}\n"));
        let script = "import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
said = b''
while b'started\\r' not in said:
    said += os.read(terminal, 4096)
os.close(terminal)
since = time.time()
_, status = os.waitpid(pid, 0)
print('ended %.2f s after the terminal' % (time.time() - since), file=sys.stderr)
print(os.waitstatus_to_exitcode(status))";
        let mut command = user.command("python3");
        command.args(["-c", script]).arg(user.folder().join("bin/idpbuilder"));
        command.args(["build", "--progress", "plain"]).args(base_contexts()).arg(".");
        let done = Done::of(&mut command);
        println!("{}", done.err);
        assert_eq!(done.ok(), "129\n");
        assert_nothing_is_left(user, &seconds);
    }
}

/// Who reads the output has gone: that is no failure of a build, and no reason to panic.
#[test]
fn f09_a_closed_pipe_is_no_failure() {
    let user = User::new();
    let contexts = base_contexts().join(" ");
    user.write("Dockerfile", "FROM busybox\nRUN seq 1 100000\n");
    user.write("idpbuilder.kdl", "image a { dockerfile inline=\"FROM scratch\\nENV A=1\\n\" }\n");
    for (words, code) in [
        (format!("build --progress plain {contexts} ."), 0),
        (format!("build --no-cache --progress json {contexts} ."), 0),
        ("images".to_owned(), 0),
        ("plan".to_owned(), 0),
        ("run --no-push".to_owned(), 0),
        ("df".to_owned(), 0),
        ("doctor".to_owned(), 0),
        ("--help".to_owned(), 0),
        ("inspect nothing".to_owned(), 2),
    ] {
        // Both ends are closed before the tool writes: each write fails.
        let script = "import os, signal, subprocess, sys
r, w = os.pipe()
os.close(r)
done = subprocess.run(['idpbuilder', *sys.argv[1:]], stdout=w, stderr=w)
print(done.returncode)";
        let mut command = user.command("python3");
        let done = Done::of(command.args(["-c", script]).args(words.split(' ')));
        assert_eq!(done.ok(), format!("{code}\n"), "{words}");
    }
}

/// Several images at once, and `watch` while it builds.
#[test]
fn f09_runs_and_watches_take_all_their_processes_with_them() {
    let _turn = Turn::embedded();
    for (number, verb, code) in [(320, "run", 130), (321, "watch", 0)] {
        let user = User::new();
        let seconds = unique(number);
        let base = base_contexts()[1].split_once('=').unwrap().1.to_owned();
        let images = ["one", "two", "three"].map(|name| {
            format!(
                "image {name} {{\n dockerfile inline=\"FROM busybox\\nRUN echo sta''rted; sleep {seconds}\\n\"\n \
                 build-context busybox=\"{base}\"\n push #null\n}}\n"
            )
        });
        user.write("idpbuilder.kdl", &images.concat());
        let mut command = user.idp();
        command.args(["--progress", "plain", verb, "-j", "3"]).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut said = String::new();
        // The three images have equal steps but for their names: the step is done once, and the others wait for it.
        while !said.contains("| started") {
            said += &lines.next().unwrap_or_else(|| panic!("it ended: {said}"));
        }
        std::thread::spawn(move || lines.for_each(drop));
        let since = Instant::now();
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        assert_eq!(end(&mut child, since), Some(code), "{verb}");
        assert_nothing_is_left(&user, &seconds);
    }
}

/// Who starts it with nohup(1) wants it to outlive the terminal.
#[test]
fn f09_a_hangup_that_is_ignored_ends_nothing() {
    let user = User::new();
    user.write("Dockerfile", "FROM busybox\nRUN echo sta''rted; sleep 2; echo d''one\n");
    let mut command = user.command("sh");
    let build = format!(
        "trap '' HUP; exec idpbuilder build --progress plain {} .",
        base_contexts().join(" ")
    );
    command.args(["-c", &build]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("| started")));
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    assert!(lines.any(|line| line.contains("| done")));
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
}
