//! The tools that are compared, each with a state folder of its own: how each builds and pushes.
//!
//! Knows command lines; knows no workload.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::{
    docker::Docker,
    ground,
    measure::{self, Daemon, Sample},
};

/// Name of the base image in every tool's store.
pub(crate) const BASE: &str = "localhost/base:latest";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Idpbuilder,
    Buildah,
    /// Whose builds are buildah's, in a program of its own.
    Podman,
    /// Through its daemon, with BuildKit.
    Docker,
}

/// The tools that are here; idpbuilder is first.
pub(crate) fn installed() -> Vec<Tool> {
    let mut tools = vec![Tool::Idpbuilder];
    if is_installed("buildah") {
        tools.push(Tool::Buildah);
    }
    if is_installed("podman") {
        tools.push(Tool::Podman);
    }
    if Docker::is_installed() {
        tools.push(Tool::Docker);
    }
    tools
}

/// Whether a program is here and starts.
pub(crate) fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

impl Tool {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idpbuilder => "idpbuilder",
            Self::Buildah => "buildah",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

/// How layers are pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// What each tool does unasked.
    Gzip,
    /// Docker cannot.
    Zstd,
}

/// One tool with its state and the log of its last command.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) tool: Tool,
    state: PathBuf,
    log: PathBuf,
    docker: Option<Docker>,
}

impl Bench {
    /// A tool that works on `ground`; `docker` is where docker is reached.
    pub(crate) fn new(tool: Tool, ground: &Path, docker: Option<&Docker>) -> Self {
        let state = ground.join(format!("state-{}", tool.name()));
        let log = ground.join(format!("{}.log", tool.name()));
        let docker = docker.filter(|_| tool == Tool::Docker).cloned();
        Self { tool, state, log, docker }
    }

    /// Runs one of its commands, and says what it and its daemon took.
    pub(crate) fn run(&self, command: &mut Command) -> Result<Sample, String> {
        let pid = self.docker.as_ref().and_then(Docker::pid);
        let daemon = pid.map(|pid| (Daemon::watch(pid), Daemon::watch(pid).cpu_seconds()));
        let sample = measure::run(command, &self.log)?;
        Ok(match daemon {
            None => sample,
            Some((daemon, before)) => Sample {
                cpu_seconds: sample.cpu_seconds + daemon.cpu_seconds() - before,
                daemon_bytes: Some(daemon.memory_bytes()),
                ..sample
            },
        })
    }

    /// The same tool with another state.
    pub(crate) fn numbered(&self, number: usize) -> Self {
        let name = format!("state-{}-{number}", self.tool.name());
        Self { state: self.state.with_file_name(name), ..self.clone() }
    }

    /// A state with nothing in it.
    pub(crate) fn empty(&self) -> Result<(), String> {
        self.discard();
        fs::create_dir_all(&self.state).map_err(|error| error.to_string())?;
        let Some(docker) = &self.docker else { return Ok(()) };
        // Of a daemon that is the user's, only the cache of builds goes.
        let mut prune = self.command();
        match docker.is_ours() {
            true => prune.args(["system", "prune", "--all", "--force"]),
            false => prune.args(["builder", "prune", "--all", "--force"]),
        };
        measure::run(&mut prune, &self.log).map(drop)
    }

    /// A state with nothing in it but the base image, an OCI layout.
    pub(crate) fn fresh(&self, base: &Path) -> Result<(), String> {
        self.empty()?;
        let mut loads = Vec::new();
        match self.tool {
            Tool::Idpbuilder => loads.push(load_base(&self.state, base)),
            Tool::Buildah | Tool::Podman => {
                let mut pull = self.command();
                pull.args(["pull", "-q"]).arg(format!("oci:{}:latest", base.display()));
                let mut tag = self.command();
                tag.arg("tag").arg(format!("localhost{}:latest", base.display())).arg(BASE);
                loads.extend([pull, tag]);
            }
            Tool::Docker => {
                let archive = self.state.join("base.tar");
                let home = self.state.join("for-archive");
                let mut save = ours(&home);
                save.args(["save", "--form", "docker", "-o"]).arg(&archive).arg(BASE);
                let mut load = self.command();
                load.arg("load").arg("-i").arg(&archive);
                loads.extend([load_base(&home, base), save, load]);
            }
        }
        loads.iter_mut().try_for_each(|load| measure::run(load, &self.log).map(drop))
    }

    /// Removes the state: what it took is not needed any more.
    pub(crate) fn discard(&self) {
        drop(fs::remove_dir_all(self.run_root()));
        drop(fs::remove_dir_all(&self.state));
    }

    /// What buildah and podman keep while they run; podman refuses long paths.
    fn run_root(&self) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        self.state.hash(&mut hasher);
        ground::temporary().join(format!("{:x}", hasher.finish()))
    }

    /// Builds `context` with its Dockerfile as `tag`.
    pub(crate) fn build(&self, context: &Path, tag: &str) -> Command {
        self.build_target(context, tag, None)
    }

    pub(crate) fn build_target(&self, context: &Path, tag: &str, target: Option<&str>) -> Command {
        let mut command = self.command();
        match self.tool {
            Tool::Idpbuilder => command.args(["build", "-q", "-t", tag]),
            Tool::Buildah => {
                command.args(["bud", "-q", "--layers", "--pull=false", "--isolation", "chroot"]);
                command.args(["--tls-verify=false", "-t", tag])
            }
            Tool::Podman => {
                command.args([
                    "build",
                    "-q",
                    "--layers",
                    "--pull=missing",
                    "--isolation",
                    "chroot",
                ]);
                command.args(["--tls-verify=false", "-t", tag])
            }
            // The machine's network, as with the others: a daemon of our own has no bridge.
            Tool::Docker => command.args(["build", "-q", "--network", "host", "-t", tag]),
        };
        if let Some(target) = target {
            command.args(["--target", target]);
        }
        command.arg(context);
        command
    }

    /// Pushes `tag`, which names a registry on this machine without TLS.
    pub(crate) fn push(&self, tag: &str, compression: Compression) -> Command {
        let mut command = self.command();
        match (self.tool, compression) {
            (Tool::Idpbuilder, _) => command.args(["push", "-q", "--insecure"]),
            (Tool::Buildah | Tool::Podman, _) => command.args(["push", "-q", "--tls-verify=false"]),
            (Tool::Docker, _) => command.args(["push", "-q"]),
        };
        match (self.tool, compression) {
            (_, Compression::Gzip) | (Tool::Docker, Compression::Zstd) => {}
            (Tool::Idpbuilder, Compression::Zstd) => {
                command.args(["--compression", "zstd"]);
            }
            (Tool::Buildah | Tool::Podman, Compression::Zstd) => {
                command.args(["--compression-format", "zstd"]);
            }
        }
        command.arg(tag);
        command
    }

    pub(crate) fn version(&self) -> Command {
        let mut command = self.command();
        command.arg("--version");
        command
    }

    pub(crate) fn command(&self) -> Command {
        match self.tool {
            Tool::Idpbuilder => ours(&self.state),
            Tool::Buildah | Tool::Podman => {
                let mut command = Command::new(self.tool.name());
                command.arg("--root").arg(self.state.join("root"));
                command.arg("--runroot").arg(self.run_root());
                command.args(["--storage-driver", "overlay"]);
                command
            }
            Tool::Docker => self.docker.as_ref().expect("docker was started for it").command(),
        }
    }
}

/// A server that gets this signal when the benchmark ends, however it ends.
pub(crate) fn ends_with_us(signal: &str, server: &Command) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal, "--"]).arg(server.get_program()).args(server.get_args());
    for (name, value) in server.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn load_base(home: &Path, base: &Path) -> Command {
    let mut command = ours(home);
    command.args(["load", "-q", "-t", BASE, "-i"]).arg(base);
    command
}

/// The program under test, when it is not the one that was built with the benchmark.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Measures another build.
pub(crate) fn measure_program(program: PathBuf) {
    PROGRAM.get_or_init(|| program);
}

/// Path of the program under test.
pub(crate) fn program() -> &'static Path {
    PROGRAM.get().map_or(Path::new(env!("CARGO_BIN_EXE_idpbuilder")), PathBuf::as_path)
}

/// The program under test.
pub(crate) fn ours(home: &Path) -> Command {
    let mut command = Command::new(program());
    command.env("IDPBUILDER_HOME", home);
    command
}

/// A command line for the floors.
pub(crate) fn shell(script: &str, folder: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-ec").arg(script).current_dir(folder);
    command
}
