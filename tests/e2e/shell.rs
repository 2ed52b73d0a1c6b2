//! Shells on a terminal: in what a failed step left, and in images. A driver in Python types and reads.

use std::{fs, path::PathBuf};

use crate::support::{Done, Turn, User, base_contexts, layout_of};

/// Runs a command on a new terminal of 30 lines and 100 columns. The dialogue is a list of what to wait for and what to
/// type then; `size ROWS COLUMNS` resizes instead. Prints all that was shown, and ends as the command did; one that
/// shows nothing for ten minutes hangs.
const DRIVER: &str = r#"
import fcntl, json, os, pty, re, select, struct, sys, termios, time
dialogue, command = json.loads(sys.argv[1]), sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    os.execvp(command[0], command)
shown, seen, heard = "", 0, time.monotonic()
while True:
    while dialogue:
        found = re.search(dialogue[0][0], shown[seen:])
        if not found:
            break
        seen, text = seen + found.end(), dialogue.pop(0)[1]
        if text.startswith("size "):
            rows, columns = map(int, text.split()[1:])
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        else:
            os.write(terminal, text.encode())
    if time.monotonic() > heard + 600:
        print(shown, "\nstill waiting for", dialogue, file=sys.stderr)
        os.kill(pid, 9)
        sys.exit(99)
    if not select.select([terminal], [], [], 1)[0]:
        continue
    try:
        data = os.read(terminal, 65536)
    except OSError:
        data = b""
    if not data:
        break
    shown, heard = shown + data.decode(errors="replace"), time.monotonic()
print(shown)
if dialogue:
    print("never asked:", dialogue, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

fn driver(user: &User) -> PathBuf {
    let path = user.folder().join("driver.py");
    fs::write(&path, DRIVER).unwrap();
    path
}

fn on_terminal(user: &User, dialogue: &[(&str, &str)], args: &[&str]) -> Done {
    let dialogue = serde_json::to_string(dialogue).unwrap();
    let mut command = user.command("python3");
    command.arg(driver(user)).arg(&dialogue).arg(user.folder().join("bin/idpbuilder")).args(args);
    command.env("TERM", "xterm");
    Done::of(&mut command)
}

fn build_on_terminal(user: &User, dialogue: &[(&str, &str)], flags: &[&str]) -> Done {
    let contexts = base_contexts();
    let args: Vec<&str> = ["build", "--on-failure=shell"]
        .into_iter()
        .chain(flags.iter().copied())
        .chain(contexts.iter().map(String::as_str))
        .chain(["."])
        .collect();
    on_terminal(user, dialogue, &args)
}

/// What processes that are gone left in the store's folder for the unfinished.
fn unfinished(user: &User) -> usize {
    fs::read_dir(user.home().join("images/tmp")).unwrap().count()
}

const FAILING: &str = "FROM busybox\n\
    RUN mkdir /w && chown 77:88 /w && echo looker:x:77:88::/w:/bin/sh >> /etc/passwd\n\
    WORKDIR /w\n\
    ENV GREETING=hello\n\
    ARG NAME=world\n\
    USER looker\n\
    RUN --mount=type=tmpfs,target=/m --mount=type=cache,target=/c,uid=77 \
        echo left > /w/written; echo kept > /c/kept; exit 7\n";

fn a_shell_opens_where_the_step_failed(user: &User, flags: &[&str]) {
    user.write("Dockerfile", FAILING);
    let prompt = r"/?\w* \$ ";
    let done = build_on_terminal(
        user,
        &[
            (
                prompt,
                "echo \"[$(id -u):$(id -g) $(pwd) $GREETING $NAME $(cat written) $(cat /c/kept)]\"\n",
            ),
            (r"\[77:88 /w hello world left kept\]", "echo $(tty) $(stty size) $((40+2))\n"),
            (r"/dev/pts/0 30 100 42", "size 20 60"),
            (prompt, "while test \"$(stty size)\" != '20 60'; do :; done; echo re$((1))sized\n"),
            (r"re1sized", "grep -c ' /m tmpfs ' /proc/mounts; (: < /dev/tty) && echo tty-$((2))\n"),
            (r"tty-2", "touch /w/shelled; sh -c 'echo go$((1)); exec sleep 1000'\n"),
            ("go1", "\u{3}"),
            (prompt, "echo interrupted $?\n"),
            (r"interrupted 130", "exit 5\n"),
        ],
        &[&["-t", "demo:v1"], flags].concat(),
    );
    assert_eq!(done.code, 1, "{done}");
    let (before, after) = done.out.split_once("exit 5").unwrap();
    assert!(before.contains("failed: this is a shell where it did"), "{done}");
    assert!(after.contains("ended with exit code 7"), "{done}");
    assert!(done.err.is_empty(), "{done}");
    assert_eq!(unfinished(user), 0, "what was kept is gone");
    user.run(["inspect", "demo:v1"]).fails(2, &["demo:v1"]);
    // Nothing of it reaches a later build, but for the cache, which is meant to last.
    let good = FAILING.replace("exit 7", "ls /w > /w/list; cat /c/kept >> /w/list");
    user.build(&good, &["--output", "type=local,dest=out"]).ok();
    let list = fs::read_to_string(user.work().join("out/w/list")).unwrap();
    assert_eq!(list, "list\nwritten\nkept\n");
}

#[test]
fn as_root_a_shell_opens_where_the_step_failed() {
    a_shell_opens_where_the_step_failed(&User::new(), &[]);
}

#[test]
fn as_root_a_shell_opens_where_a_step_with_private_ids_failed() {
    a_shell_opens_where_the_step_failed(&User::new(), &["--userns", "private"]);
}

#[test]
fn as_an_ordinary_user_a_shell_opens_where_the_step_failed() {
    a_shell_opens_where_the_step_failed(&User::rootless(), &[]);
}

#[test]
fn a_run_of_a_project_opens_it_too_and_builds_that_succeed_do_not() {
    let (user, _turn) = (User::new(), Turn::embedded());
    let project = |script: &str| {
        format!(
            "image app {{\n    context #null\n    dockerfile inline=\"FROM busybox\\nRUN {script}\"\n    \
             build-context busybox=\"oci-layout://{}\"\n}}\n",
            crate::support::bases().join("corpus/busybox").display()
        )
    };
    user.write("idpbuilder.kdl", &project("echo deep > /found; false"));
    let dialogue = [("/ # ", "echo \"[$(cat /found)]\"\n"), (r"\[deep\]", "exit\n")];
    let done = on_terminal(&user, &dialogue, &["run", "--on-failure=shell"]);
    assert_eq!(done.code, 1, "{done}");
    user.write("idpbuilder.kdl", &project("true"));
    let done = on_terminal(&user, &[], &["run", "--on-failure=shell"]);
    assert_eq!(done.code, 0, "{done}");
}

#[test]
fn without_a_terminal_it_is_refused_before_anything_is_built() {
    let user = User::new();
    user.write("Dockerfile", "FROM busybox\nRUN touch /ran; false\n");
    let mut command = user.idp();
    command.args(["build", "--on-failure=shell"]).args(base_contexts()).arg(".");
    let said = Done::of(&mut command).fails(3, &["needs a terminal"]);
    assert!(!said.contains("RUN touch"), "{said}");
    user.build("FROM busybox\n", &["-t", "demo:v1"]).ok();
    user.run(["debug", "shell", "demo:v1"]).fails(3, &["debug shell needs a terminal"]);
}

fn any_image_can_be_looked_into(user: &User, flags: &[&str]) {
    let text = "FROM busybox\nRUN mkdir /site && chown 5:6 /site\nWORKDIR /site\nENV A=b\nUSER 5:6\nRUN echo one > one\nRUN echo two > two\n";
    user.build(text, &["-t", "demo:v1"]).ok();
    let look = [(r"\$ ", "echo \"[$(id -u) $(pwd) $A $(ls | tr '\\n' ' ')]\"; touch new; ls\n")];
    let seen = |image: &str, wanted: &str| {
        let dialogue = [look[0], (wanted, "exit 4\n")];
        let done = on_terminal(user, &dialogue, &[&["debug", "shell", image], flags].concat());
        assert_eq!(done.code, 4, "its own exit code\n{done}");
    };
    seen("demo:v1", r"\[5 /site b one two \]");
    seen("demo:v1", r"\[5 /site b one two \]");
    seen("demo:v1~1", r"\[5 /site b one \]");
    user.run(["debug", "shell", "demo:v1~99"]).fails(3, &["layers"]);
    user.run(["debug", "shell", "no/such:v1"]).fails(2, &["no/such:v1"]);
    assert_eq!(unfinished(user), 0);
}

#[test]
fn as_root_any_image_can_be_looked_into() {
    any_image_can_be_looked_into(&User::new(), &[]);
}

#[test]
fn as_root_any_image_can_be_looked_into_with_private_ids() {
    any_image_can_be_looked_into(&User::new(), &["--userns", "private", "--network", "none"]);
}

#[test]
fn as_an_ordinary_user_any_image_can_be_looked_into() {
    any_image_can_be_looked_into(&User::rootless(), &[]);
}

/// Two stages, and a step that fails with one behind it.
const STAGES: &str = "FROM busybox AS tools\n\
    ENV A=tool\n\
    RUN mkdir /t && echo t > /t/x\n\
    FROM busybox\n\
    ARG WHO=me\n\
    WORKDIR /w\n\
    USER 5:6\n\
    ENV B=c\n\
    RUN echo one > /tmp/one\n\
    ENV B=later\n\
    RUN echo two > /tmp/two && \\\n    false\n\
    COPY --from=tools /t /t\n";

fn any_step_can_be_looked_into(user: &User) {
    user.build(STAGES, &["-t", "demo:v1"]).fails(1, &["exit code 1"]);
    let look = "echo \"[$(id -u):$(id -g) $(pwd) $A $B $WHO $(ls -d /t/* /tmp/* | tr '\\n' ' ')]\"; touch /tmp/new\n";
    let seen = |flags: &[&str], wanted: &str| {
        let args = [&["debug", "shell", "demo:v1"], flags].concat();
        let done = on_terminal(user, &[(r"[#$] ", look), (wanted, "exit 4\n")], &args);
        assert_eq!(done.code, 4, "its own exit code\n{done}");
        assert!(done.out.contains("what is changed here is discarded"), "{done}");
    };
    seen(&["--step", "1"], r"\[0:0 / tool   /t/x \]");
    seen(&["--step", "echo one"], r"\[5:6 /w  c me /tmp/one \]");
    seen(&["--line", "9"], r"\[5:6 /w  c me /tmp/one \]");
    seen(&["--line", "6"], r"\[0:0 /w   me \]");
    assert_eq!(unfinished(user), 0);
    let refused = |flags: &[&str], code: i32, words: &[&str]| {
        let mut command = user.idp();
        command.args(["debug", "shell", "demo:v1"]).args(flags);
        Done::of(&mut command).fails(code, words);
    };
    refused(&["--step", "4"], 3, &["step 4 of demo:v1", "was not done", "--step 3"]);
    refused(&["--line", "12"], 3, &["was not done", "--step 3"]);
    let steps =
        ["has no step on line 1", "RUN mkdir /t", "11-12", "COPY --from=tools /t /t (not done)"];
    refused(&["--line", "1"], 3, &steps);
    refused(&["--step", "echo"], 3, &["more than one", "RUN echo one > /tmp/one", "4   11-12"]);
    refused(
        &["--step", "1", "--platform", "linux/arm64"],
        2,
        &["no build of `demo:v1` for linux/arm64"],
    );
    user.run(["debug", "shell", "demo", "--step", "1"])
        .fails(2, &["no build of `demo`", "in front of steps"]);
    // A build that ends in an image counts the same way; what is gone with the cache is said to be.
    user.build(&STAGES.replace("false", "true"), &["-t", "demo:v1"]).ok();
    seen(&["--step", "5"], r"\[5:6 /w  later me /t/x /tmp/one /tmp/two \]");
    user.run(["rmi", "demo:v1"]).ok();
    user.run(["prune", "--cache-days", "0"]).ok();
    refused(&["--step", "5"], 2, &["no build of `demo:v1`"]);
}

#[test]
fn as_root_any_step_can_be_looked_into() {
    any_step_can_be_looked_into(&User::new());
}

#[test]
fn as_an_ordinary_user_any_step_can_be_looked_into() {
    any_step_can_be_looked_into(&User::rootless());
}

#[test]
fn an_image_for_another_processor_can_be_looked_into() {
    let user = User::new();
    user.write("Dockerfile", "FROM busybox\nRUN echo deep > /found\n");
    let layout = layout_of("busybox", "multi");
    let mut command = user.idp();
    command.args([
        "build",
        "--platform",
        "linux/arm64",
        "-t",
        "foreign:v1",
        "--build-context",
        &layout,
    ]);
    Done::of(command.arg(".")).ok();
    let look =
        [(r"[#$] ", "echo \"[$(uname -m) $(cat /found)]\"\n"), (r"\[aarch64 deep\]", "exit\n")];
    let ways: [&[&str]; 3] =
        [&[], &["--userns", "private"], &["--step", "1", "--platform", "linux/arm64"]];
    for flags in ways {
        let args = [&["debug", "shell", "foreign:v1"][..], flags].concat();
        let done = on_terminal(&user, &look, &args);
        assert_eq!(done.code, 0, "{done}");
    }
}

#[test]
fn a_step_whose_layers_are_gone_says_so() {
    let user = User::new();
    // The layers of its base are in no image and no cache.
    user.build("FROM busybox\nRUN echo one > /one\nRUN false\n", &["-t", "demo:v1"])
        .fails(1, &["exit code 1"]);
    user.run(["prune"]).ok();
    let gone = user.run(["debug", "shell", "demo:v1", "--step", "1"]);
    gone.fails(2, &["step 1 of demo:v1", "not in the store any more", "build it again"]);
}

#[test]
fn an_image_without_a_shell_says_so_and_the_terminal_is_as_before() {
    let user = User::new();
    user.write("file", "content\n");
    user.build("FROM scratch\nCOPY file /\n", &["-t", "bare:v1"]).ok();
    user.write(
        "script",
        "stty -a > before; idpbuilder debug shell bare:v1; echo \"code $?\"; stty -a > after\n",
    );
    let mut command = user.command("python3");
    command.arg(driver(&user)).args(["[]", "sh", "script"]).env("TERM", "xterm");
    let done = Done::of(&mut command);
    assert!(done.out.contains("there is no shell in it: none of /bin/bash"), "{done}");
    assert!(done.out.contains("code 1"), "{done}");
    let read = |name: &str| fs::read_to_string(user.work().join(name)).unwrap();
    assert_eq!(read("before"), read("after"));
}
