//! What the end-to-end tests stand on: the binary with a home of its own, programs that check its work, bases.
//!
//! Knows how to start things and to read their output; expects nothing of it.

mod folder;
pub(crate) mod images;
pub(crate) mod registry;
pub(crate) mod web;

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Once,
    time::{Duration, SystemTime},
};

pub(crate) use folder::Folder;
use registry::Registry;

/// Folder of the repository.
pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What `tests/setup/bases` makes, made when it is not there.
pub(crate) fn bases() -> PathBuf {
    static MADE: Once = Once::new();
    let folder = Path::new(ROOT).join("target/test-bases");
    MADE.call_once(|| {
        let _turn = Turn::wait("bases");
        let made =
            Command::new(Path::new(ROOT).join("tests/setup/bases")).arg(&folder).status().unwrap();
        assert!(made.success(), "tests/setup/bases failed: did tests/setup/packages run?");
    });
    folder
}

/// An id that stands in no account file and in no table of subordinate ids.
const UNKNOWN_ID: &str = "64987";

/// A turn at something of which a machine has one, such as a port. It ends when it is dropped, or with the process.
pub(crate) struct Turn(#[expect(dead_code, reason = "held for its lock")] File);

impl Turn {
    pub(crate) fn wait(what: &str) -> Self {
        let path = std::env::temp_dir().join(format!("idpbuilder-test-{what}.lock"));
        let file = File::options().create(true).append(true).open(path).unwrap();
        file.lock().unwrap();
        Self(file)
    }

    /// The port of the CNOE stack's registry.
    pub(crate) fn port_8443() -> Self {
        Self::wait("port-8443")
    }

    /// The port of the embedded registry.
    pub(crate) fn embedded() -> Self {
        Self::wait("port-5050")
    }
}

/// Patience with what has to happen. It ends when looking whether it has took so much processor time: a machine that has
/// much else to do gives little of it to anybody, and is waited for longer.
pub(crate) struct Patience {
    since: Duration,
    max: Duration,
}

impl Patience {
    pub(crate) fn new(max: Duration) -> Self {
        Self { since: Self::used(), max }
    }

    /// Asked between two looks, without a rest.
    pub(crate) fn is_over(&self) -> bool {
        std::thread::yield_now();
        Self::used() > self.since + self.max
    }

    /// Processor time of this thread: fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
    fn used() -> Duration {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap());
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }
}

/// How a program ended, and what it printed.
#[derive(Debug)]
pub(crate) struct Done {
    shown: String,
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self::from_output(format!("{command:?}"), &output)
    }

    pub(crate) fn from_output(shown: String, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // A program that a signal ended has no code.
        let code = output.status.code().unwrap_or(-1);
        Self { shown, code, out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Standard output, of a program that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.code == 0, "{self}");
        self.out
    }

    /// Standard error, of a program that must have ended with `code` and said all of `words`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> String {
        assert!(self.code == code, "wanted exit code {code}\n{self}");
        for word in words {
            assert!(self.err.contains(word), "`{word}` is not said\n{self}");
        }
        self.err
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { shown, code, out, err } = self;
        write!(f, "{shown}\nended with {code}\n--- stdout\n{out}--- stderr\n{err}")
    }
}

/// One user of the tool: a home for images, a home folder, and a folder to work in, all gone at the end.
pub(crate) struct User {
    folder: Folder,
    /// Words in front of the binary's path: none for root.
    prefix: Vec<OsString>,
}

impl User {
    pub(crate) fn new() -> Self {
        let user = Self { folder: Folder::new(), prefix: Vec::new() };
        for name in ["work", "bin", "user"] {
            fs::create_dir(user.folder.path().join(name)).unwrap();
        }
        // Scripts find the binary by its name.
        std::os::unix::fs::symlink(binary(), user.folder.path().join("bin/idpbuilder")).unwrap();
        user
    }

    /// Trusts the certificate of the registry.
    pub(crate) fn trust(&self, registry: &Registry) {
        let certificate = registry.certificate().display().to_string();
        self.run(["cert", "trust", &registry.address(), &certificate]).ok();
    }

    /// The ordinary user `idpb` of `tests/setup/packages`, with subordinate ids.
    pub(crate) fn rootless() -> Self {
        let (user, group) = ordinary_user();
        Self::with_ids(user, group)
    }

    fn with_ids(uid: u32, gid: u32) -> Self {
        let mut user = Self::new();
        let (uid, gid) = (uid.to_string(), gid.to_string());
        let words = ["setpriv", "--reuid", &uid, "--regid", &gid, "--clear-groups"];
        user.prefix = words.iter().map(OsString::from).collect();
        let id = |flag: &str| Done::of(Command::new("id").args([flag, "idpb"])).ok();
        let (uid, gid) = (id("-u"), id("-g"));
        Self::ordinary(uid.trim(), gid.trim(), &["--clear-groups"])
    }

    /// An ordinary user that no table knows: without a name, and without subordinate ids.
    pub(crate) fn single_id() -> Self {
        Self::ordinary(UNKNOWN_ID, UNKNOWN_ID, &["--clear-groups"])
    }

    /// The user of these ids, with what `setpriv` is told of groups.
    pub(crate) fn ordinary(uid: &str, gid: &str, groups: &[&str]) -> Self {
        let mut user = Self::new();
        let words = ["setpriv", "--reuid", uid, "--regid", gid];
        user.prefix = words.iter().chain(groups).map(OsString::from).collect();
        // The folders that hold target/ may be closed to other users.
        let copy = user.folder.path().join("bin/idpbuilder");
        fs::remove_file(&copy).unwrap();
        copy_program(binary(), &copy);
        let owner = format!("{uid}:{gid}");
        Done::of(Command::new("chown").arg("-R").arg(owner).arg(user.folder.path())).ok();
        user
    }

    /// The folder that commands start in.
    pub(crate) fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// `IDPBUILDER_HOME`.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// The home folder of the account.
    pub(crate) fn account(&self) -> PathBuf {
        self.folder.path().join("user")
    }

    /// A folder for everything else.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file below the work folder.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.work().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        // Copied files keep their times: the same for every test.
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    /// Puts a file below the work folder in the place of another, whole, as editors do: it is one change, however much time
    /// this thread is given meanwhile.
    pub(crate) fn change(&self, path: &str, text: &str) {
        let whole = self.folder.path().join("change");
        fs::write(&whole, text).unwrap();
        fs::rename(whole, self.work().join(path)).unwrap();
    }

    /// A command in this user's surroundings and in no others.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut words = self.prefix.clone();
        words.push(program.as_ref().to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.work()).stdin(Stdio::null());
        command.env_clear();
        let path = format!(
            "{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            self.folder.path().join("bin").display()
        );
        command.env("PATH", path).env("HOME", self.account()).env("IDPBUILDER_HOME", self.home());
        // Curl reads names that no server needs to know from here.
        command.env("CURL_HOME", self.account()).env("LC_ALL", "C.UTF-8");
        command
    }

    /// The tool.
    pub(crate) fn idp(&self) -> Command {
        self.command(self.folder.path().join("bin/idpbuilder"))
    }

    /// Runs the tool to its end.
    pub(crate) fn run<const N: usize>(&self, args: [&str; N]) -> Done {
        Done::of(self.idp().args(args))
    }

    /// Runs the tool to its end with some standard input.
    pub(crate) fn run_with_input<const N: usize>(&self, args: [&str; N], input: &[u8]) -> Done {
        let mut command = self.idp();
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Done::from_output(format!("{command:?}"), &child.wait_with_output().unwrap())
    }

    /// Runs a script of bash that ends at the first failing line.
    pub(crate) fn script(&self, text: &str) -> Done {
        Done::of(self.command("bash").args(["-euo", "pipefail", "-c", text]))
    }

    /// Builds a Dockerfile of one text in the work folder.
    pub(crate) fn build(&self, dockerfile: &str, flags: &[&str]) -> Done {
        self.write("Dockerfile", dockerfile);
        Done::of(self.idp().arg("build").args(flags).args(base_contexts()).arg("."))
    }

    /// Copies a folder of the repository into the work folder.
    pub(crate) fn copy_of(&self, folder: &str) {
        let from = Path::new(ROOT).join(folder).join(".");
        Done::of(Command::new("cp").arg("-r").arg(from).arg(self.work())).ok();
    }
}

/// User and group id of the ordinary user `idpb` of `tests/setup/packages`, who has subordinate ids.
pub(crate) fn ordinary_user() -> (u32, u32) {
    let id = |flag: &str| Done::of(Command::new("id").args([flag, "idpb"])).ok().trim().parse();
    (id("-u").unwrap(), id("-g").unwrap())
}

/// Flags by which a build finds the bases without any registry.
pub(crate) fn base_contexts() -> Vec<String> {
    let all =
        [busybox(), layout_of("alpine:3.19", "alpine"), layout_of("debian:bookworm", "debian")];
    all.into_iter().flat_map(|context| ["--build-context".to_owned(), context]).collect()
}

/// Value of `--build-context` by which a base of this folder has this name.
pub(crate) fn layout_of(name: &str, folder: &str) -> String {
    format!("{name}=oci-layout://{}", bases().join(folder).display())
}

/// The same of busybox, on which most stands.
pub(crate) fn busybox() -> String {
    layout_of("busybox", "corpus/busybox")
}

/// The binary of the profile that the tests are built in.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_idpbuilder"))
}

/// Copies a program that is to be run. It is not this process that has the copy open for writing: whatever its other
/// threads start just then would have it open too for a moment, and the kernel runs nothing that somebody writes to.
pub(crate) fn copy_program(from: impl AsRef<OsStr>, to: &Path) {
    Done::of(Command::new("cp").arg(from).arg(to)).ok();
}

/// Standard output of a program that must succeed.
#[track_caller]
pub(crate) fn succeeds<const N: usize>(program: &str, args: [&str; N]) -> String {
    Done::of(Command::new(program).args(args)).ok()
}

/// JSON out of a text.
#[track_caller]
pub(crate) fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
