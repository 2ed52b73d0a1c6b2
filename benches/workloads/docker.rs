//! Docker: the daemon that answers, or one of our own on the ground of a workload, gone with it.
//!
//! Its client must be able to build with BuildKit: newer ones want a plugin for that, older ones have it in them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::LazyLock,
    time::{Duration, Instant},
};

use crate::{ground, tools};

/// How long a daemon may take to answer for the first time, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The client, and whether a daemon answers it.
struct Client {
    program: PathBuf,
    daemon_answers: bool,
}

static CLIENT: LazyLock<Option<Client>> = LazyLock::new(|| {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let programs = std::env::split_paths(&folders).map(|folder| folder.join("docker"));
    let program = programs.into_iter().find(|program| builds(program))?;
    let daemon_answers = succeeds(Command::new(&program).arg("info"));
    Some(Client { program, daemon_answers })
});

/// Where workloads reach docker.
#[derive(Clone)]
pub(crate) struct Docker {
    program: PathBuf,
    /// The socket of a daemon of our own.
    socket: Option<PathBuf>,
    pid: Option<u32>,
}

impl Docker {
    /// A client; `None` when there is none, or neither a daemon nor a program to start one.
    pub(crate) fn is_installed() -> bool {
        CLIENT.as_ref().is_some_and(|client| client.daemon_answers || dockerd().is_some())
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("DOCKER_BUILDKIT", "1");
        if let Some(socket) = &self.socket {
            command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        }
        command
    }

    /// Whether nothing but the benchmark is in it.
    pub(crate) fn is_ours(&self) -> bool {
        self.socket.is_some()
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }
}

/// A daemon of our own while it runs, or that of the machine.
pub(crate) struct Running {
    pub(crate) docker: Docker,
    ours: Option<(Child, PathBuf)>,
}

impl Running {
    /// Finds the machine's, or starts one whose data is at `place`.
    pub(crate) fn start(place: &Path) -> Result<Self, String> {
        let client = CLIENT.as_ref().ok_or("docker is not installed")?;
        let program = client.program.clone();
        if client.daemon_answers {
            let pid = fs::read_to_string("/var/run/docker.pid").ok();
            let pid = pid.and_then(|pid| pid.trim().parse().ok());
            return Ok(Self { docker: Docker { program, socket: None, pid }, ours: None });
        }
        let daemon = dockerd().ok_or("no daemon answers and dockerd is not installed")?;
        // A socket's path is short.
        let folder = ground::temporary().join("docker");
        let failed = |error: io::Error| format!("{}: {error}", folder.display());
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).map_err(failed)?;
        let log = fs::File::create(place.join("dockerd.log")).map_err(failed)?;
        let socket = folder.join("socket");
        let mut command = Command::new(daemon);
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
        command.arg("--data-root").arg(place.join("docker"));
        command.arg("--exec-root").arg(folder.join("exec"));
        command.arg("--pidfile").arg(folder.join("pid"));
        command.arg("--host").arg(format!("unix://{}", socket.display()));
        let child = tools::ends_with_us("TERM", &command).stderr(log).spawn().map_err(failed)?;
        let docker = Docker { program, socket: Some(socket), pid: Some(child.id()) };
        let mut running = Self { docker, ours: Some((child, folder)) };
        running.wait_for_answer()?;
        Ok(running)
    }

    fn wait_for_answer(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while !succeeds(self.docker.command().arg("info")) {
            let ended = self.ours.as_mut().and_then(|(child, _)| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                return Err(format!(
                    "dockerd ended with {status}; its log is in the workload's folder"
                ));
            }
            if started.elapsed() > PATIENCE {
                return Err("dockerd does not answer".to_owned());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some((child, folder)) = &mut self.ours else { return };
        // Asked, it ends its own children too.
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let asked =
            pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        if !matches!(asked, Some(Ok(()))) {
            drop(child.kill());
        }
        let since = Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if since.elapsed() > PATIENCE {
                drop(child.kill());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(fs::remove_dir_all(folder));
    }
}

/// Whether a client has BuildKit in it, as up to version 22, or the plugin for it.
fn builds(program: &Path) -> bool {
    let Ok(output) = Command::new(program).arg("--version").output() else { return false };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = text.split("version ").nth(1).and_then(|version| version.split('.').next());
    let major = major.and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major < 23)
        || succeeds(Command::new(program).args(["buildx", "version"]))
}

fn dockerd() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let folders = std::env::split_paths(&folders).chain(more);
    folders
        .map(|folder| folder.join("dockerd"))
        .find(|program| program.is_file() && rustix::process::geteuid().is_root())
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
