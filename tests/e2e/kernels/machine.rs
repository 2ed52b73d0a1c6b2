//! Virtual machines that do scripts: a kernel of Debian, a disk with busybox, the tool and the programs that it works
//! with, two serial lines. Knows how to start one and to talk to it; expects nothing.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::{
        Once,
        mpsc::{self, Receiver},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::support::{Done, Folder, ROOT, Turn, bases, binary, succeeds};

/// How long a machine may say nothing: emulated on a loaded machine, it is slow.
const SILENCE_MAX: Duration = Duration::from_secs(1800);

/// Size of a disk; most of it is a hole.
const DISK: &str = "2G";

/// Programs of this machine that the tool looks for, or that the tests use. With their libraries.
const PROGRAMS: [&str; 7] = [
    "/usr/bin/newuidmap",
    "/usr/bin/newgidmap",
    "/usr/bin/fuse-overlayfs",
    "/usr/bin/fusermount3",
    "/usr/bin/slirp4netns",
    "/usr/bin/unshare",
    "/usr/bin/qemu-aarch64-static",
];

/// A release of Debian, for its kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Linux 6.12.
    Trixie,
    /// Linux 6.1.
    Bookworm,
}

impl Kernel {
    /// What `tests/setup/kernels` makes, made when it is not there.
    fn folder(self) -> PathBuf {
        static MADE: Once = Once::new();
        let folder = Path::new(ROOT).join("target/test-kernels");
        MADE.call_once(|| {
            let _turn = Turn::wait("kernels");
            let script = Path::new(ROOT).join("tests/setup/kernels");
            let made = Command::new(script).arg(&folder).status().unwrap();
            assert!(made.success(), "tests/setup/kernels failed: see what it said");
        });
        folder.join(match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        })
    }
}

/// A disk to start a machine from. One that was switched off in the middle of things can be started from again.
pub(super) struct Disk {
    folder: Folder,
    kernel: Kernel,
}

impl Disk {
    /// A bare system: busybox, two users, the tool, the bases, and the modules of the kernel, none of them loaded.
    pub(super) fn new(kernel: Kernel) -> Self {
        let disk = Self { folder: Folder::new(), kernel };
        let root = disk.folder.path().join("root");
        for name in
            ["bin", "sbin", "etc", "proc", "sys", "dev", "run", "root", "home/u", "bases", "data"]
        {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["tmp", "data"] {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o1777)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in succeeds("busybox", ["--list"]).lines().filter(|name| *name != "busybox") {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        for (file, text) in [
            ("passwd", "root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n"),
            ("group", "root:x:0:\nu:x:1000:\n"),
            ("subuid", "u:100000:65536\n"),
            ("subgid", "u:100000:65536\n"),
        ] {
            fs::write(root.join("etc").join(file), text).unwrap();
        }
        std::os::unix::fs::chown(root.join("home/u"), Some(1000), Some(1000)).unwrap();
        let agent = root.join("sbin/agent");
        fs::write(&agent, include_str!("agent.sh")).unwrap();
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
        for program in PROGRAMS {
            copy_with_libraries(program, &root);
        }
        // What it says about places in its source makes it twice as large.
        let tool = root.join("usr/local/bin/idpbuilder");
        fs::create_dir_all(tool.parent().unwrap()).unwrap();
        Done::of(Command::new("strip").arg("-g").arg("-o").arg(&tool).arg(binary())).ok();
        for (from, to) in [
            (bases().join("corpus/busybox"), "bases/busybox"),
            (bases().join("multi"), "bases/multi"),
            (kernel.folder().join("modules"), "modules"),
            (kernel.folder().with_file_name("apparmor").join("."), ""),
        ] {
            Done::of(Command::new("cp").arg("-a").arg(from).arg(root.join(to))).ok();
        }
        let mut make = Command::new("/sbin/mke2fs");
        make.args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(disk.image()).arg(DISK);
        Done::of(&mut make).ok();
        fs::remove_dir_all(&root).unwrap();
        disk
    }

    /// Copies a folder of a disk that nobody uses, and that was left whole, to below a folder here.
    pub(super) fn copy_out(&self, folder: &str, to: &Path) {
        let request = format!("rdump {folder} {}", to.display());
        let mut command = Command::new("/sbin/debugfs");
        Done::of(command.args(["-R", &request]).arg(self.image())).ok();
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn console(&self) -> PathBuf {
        self.folder.path().join("console")
    }

    /// Starts a machine.
    pub(super) fn start(&self) -> Machine<'_> {
        self.start_with("")
    }

    /// Starts a machine whose root is the file system that its kernel was started with; the disk stays as it is.
    pub(super) fn start_in_memory(&self) -> Machine<'_> {
        self.start_with("in_memory")
    }

    fn start_with(&self, word: &str) -> Machine<'_> {
        // As much of a processor as its emulator gets right: this one is wrong about cmpxchg16b. On a thread for each
        // processor it is wrong about code that changes under another one too, as the kernel's does when the first group
        // gets a limit on processor time (`Oops: int3` in the scheduler).
        let (accelerator, processor) =
            if has_kvm() { ("kvm", "host") } else { ("tcg,thread=single", "Nehalem,-cx16") };
        // It ends with the thread that started it, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(["-accel", accelerator, "-cpu", processor, "-M", "q35", "-m", "1024"]);
        command.args(["-smp", "2", "-nodefaults", "-display", "none", "-no-reboot", "-kernel"]);
        command.arg(self.kernel.folder().join("vmlinuz")).arg("-initrd");
        command.arg(self.kernel.folder().join("initrd")).arg("-append");
        // It tries its clock once, for ten ticks, and does not start when the machine around it is too busy to tick.
        command.arg(format!("console=ttyS0 quiet panic=-1 no_timer_check {word}")).arg("-serial");
        command.arg(format!("file:{}", self.console().display())).args(["-serial", "stdio"]);
        let image = self.image();
        command.arg("-drive").arg(format!("file={},if=virtio,format=raw", image.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (tell, output_lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.try_for_each(|line| tell.send(line))
        });
        let machine = Machine { disk: self, child, input, output: output_lines };
        assert_eq!(machine.line("start"), "ready");
        machine
    }
}

/// A virtual machine; switched off when dropped, without any notice to what runs in it.
pub(super) struct Machine<'d> {
    disk: &'d Disk,
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Machine<'_> {
    /// Runs a script of busybox's sh as root, to its end.
    pub(super) fn root(&mut self, script: &str) -> Done {
        self.begin(script);
        let code: i32 = self.line(script).parse().unwrap();
        let text = || STANDARD.decode(self.line(script)).unwrap();
        let (stdout, stderr) = (text(), text());
        let output = Output { status: ExitStatus::from_raw(code << 8), stdout, stderr };
        Done::from_output(script.to_owned(), &output)
    }

    /// Runs a script as the user `u`, who has subordinate ids, in a folder that everybody may write to.
    pub(super) fn user(&mut self, script: &str) -> Done {
        self.root(&format!(
            "cat > /run/u <<'SCRIPT'\n{script}\nSCRIPT\nexec su u -c 'cd /data; . /run/u'"
        ))
    }

    /// Begins a script as root and does not wait for it.
    pub(super) fn begin(&mut self, script: &str) {
        let line = STANDARD.encode(format!("cd /data\n{script}")) + "\n";
        self.input.write_all(line.as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    /// What the kernel has said.
    pub(super) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.disk.console()).unwrap_or_default()).into_owned()
    }

    /// The next line that it says; that of an answer, or one that a script wrote to the serial line by itself.
    pub(super) fn line(&self, during: &str) -> String {
        let line = self.output.recv_timeout(SILENCE_MAX);
        line.unwrap_or_else(|error| {
            panic!("the machine says nothing: {error}, during: {during}\n{}", self.console())
        })
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // An error says that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether this machine has a working KVM: some have the device and no processor for it.
fn has_kvm() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |name: &str| flags.split_whitespace().any(|word| word == name);
    (has("vmx") || has("svm")) && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Copies a program of this machine to where it is here, and what it is linked with.
fn copy_with_libraries(program: &str, root: &Path) {
    let linked = Command::new("ldd").arg(program).output().unwrap();
    let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
    let files = linked.split_whitespace().filter(|word| word.starts_with('/'));
    for file in files.chain([program]) {
        let place = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(file, &place)
            .unwrap_or_else(|error| panic!("{file}: {error}: did tests/setup/packages run?"));
    }
}
