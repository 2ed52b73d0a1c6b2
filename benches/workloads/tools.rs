//! The tools that are compared, each with a state folder of its own: how each builds and pushes.
//!
//! Knows command lines; knows no workload.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::measure;

/// Name of the base image in every tool's store.
pub(crate) const BASE: &str = "localhost/base:latest";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Idpbuilder,
    Buildah,
    /// Through its daemon, which must be running.
    Docker,
}

/// The tools that answer here; idpbuilder is first.
pub(crate) fn installed() -> Vec<Tool> {
    let answers = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    let mut tools = vec![Tool::Idpbuilder];
    if answers("buildah", &["--version"]) {
        tools.push(Tool::Buildah);
    }
    if answers("docker", &["info"]) {
        tools.push(Tool::Docker);
    }
    tools
}

impl Tool {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idpbuilder => "idpbuilder",
            Self::Buildah => "buildah",
            Self::Docker => "docker",
        }
    }

    pub(crate) fn at(self, ground: &Path) -> Bench {
        let state = ground.join(format!("state-{}", self.name()));
        Bench { tool: self, state, log: ground.join(format!("{}.log", self.name())) }
    }
}

/// One tool with its state and the log of its last command.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) tool: Tool,
    state: PathBuf,
    pub(crate) log: PathBuf,
}

impl Bench {
    /// The same tool with another state.
    pub(crate) fn numbered(&self, number: usize) -> Self {
        let name = format!("state-{}-{number}", self.tool.name());
        Self { state: self.state.with_file_name(name), ..self.clone() }
    }

    /// A state with nothing in it but the base image, an OCI layout.
    pub(crate) fn fresh(&self, base: &Path) -> Result<(), String> {
        drop(fs::remove_dir_all(&self.state));
        fs::create_dir_all(&self.state).map_err(|error| error.to_string())?;
        let mut loads = Vec::new();
        match self.tool {
            Tool::Idpbuilder => loads.push(load_base(&self.state, base)),
            Tool::Buildah => {
                let mut pull = self.command();
                pull.args(["pull", "-q"]).arg(format!("oci:{}:latest", base.display()));
                let mut tag = self.command();
                tag.arg("tag").arg(format!("localhost{}:latest", base.display())).arg(BASE);
                loads.extend([pull, tag]);
            }
            Tool::Docker => {
                // The daemon's state is the user's: only the cache of builds goes.
                let mut prune = self.command();
                prune.args(["builder", "prune", "--all", "--force"]);
                let archive = self.state.join("base.tar");
                let home = self.state.join("for-archive");
                let mut save = ours(&home);
                save.args(["save", "--form", "docker", "-o"]).arg(&archive).arg(BASE);
                let mut load = self.command();
                load.arg("load").arg("-i").arg(&archive);
                loads.extend([load_base(&home, base), save, prune, load]);
            }
        }
        loads.iter_mut().try_for_each(|load| measure::run(load, &self.log).map(drop))
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
                command.args(["bud", "-q", "--layers", "--pull-never", "--isolation", "chroot"]);
                command.args(["-t", tag])
            }
            Tool::Docker => command.args(["build", "-q", "-t", tag]),
        };
        if let Some(target) = target {
            command.args(["--target", target]);
        }
        command.arg(context);
        command
    }

    /// Pushes `tag`, which names a registry on this machine without TLS.
    pub(crate) fn push(&self, tag: &str) -> Command {
        let mut command = self.command();
        match self.tool {
            Tool::Idpbuilder => command.args(["push", "-q", "--insecure", tag]),
            Tool::Buildah => command.args(["push", "-q", "--tls-verify=false", tag]),
            Tool::Docker => command.args(["push", "-q", tag]),
        };
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
            Tool::Buildah => {
                let mut command = Command::new("buildah");
                command.arg("--root").arg(self.state.join("root"));
                command.arg("--runroot").arg(self.state.join("run"));
                command.args(["--storage-driver", "overlay"]);
                command
            }
            Tool::Docker => {
                let mut command = Command::new("docker");
                command.env("DOCKER_BUILDKIT", "1");
                command
            }
        }
    }
}

fn load_base(home: &Path, base: &Path) -> Command {
    let mut command = ours(home);
    command.args(["load", "-q", "-t", BASE, "-i"]).arg(base);
    command
}

/// The program under test.
pub(crate) fn ours(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idpbuilder"));
    command.env("IDPBUILDER_HOME", home);
    command
}

/// A command line for the floors.
pub(crate) fn shell(script: &str, folder: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-ec").arg(script).current_dir(folder);
    command
}
