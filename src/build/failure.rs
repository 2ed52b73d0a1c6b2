//! How a build fails: what, at which place of which Dockerfile, with the last output.

use std::{path::PathBuf, sync::Arc};

use thiserror::Error;

use super::{BuildRequest, files::FilesError, scene::Scene};
use crate::{
    dockerfile::DockerfileError,
    git::GitError,
    graph::Place,
    image::ImageError,
    layer::LayerError,
    oci::Digest,
    plan::Entitlement,
    registry::DownloadError,
    sandbox::SandboxError,
    snapshot::SnapshotError,
    store::{Room, StoreError, lacks_space},
};

/// A Dockerfile's text and the name it is shown under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerfileText {
    /// Path as the user knows it.
    pub name: String,
    /// The text.
    pub text: String,
}

/// A failed build, with where it failed.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct BuildFailure {
    /// The image's name in the plan.
    pub image: String,
    /// The Dockerfile.
    pub dockerfile: Arc<DockerfileText>,
    /// The instruction, when one is to blame.
    pub place: Option<Place>,
    /// What went wrong.
    #[source]
    pub error: Box<BuildError>,
}

impl BuildFailure {
    /// What the failed step left, when it was to be kept.
    #[must_use]
    pub fn scene(&self) -> Option<&Arc<Scene>> {
        let (BuildError::Exit { scene, .. } | BuildError::Start { scene, .. }) =
            self.error.as_ref()
        else {
            return None;
        };
        scene.as_ref()
    }

    /// Whether it says of a process what `other` says already.
    #[must_use]
    pub fn repeats(&self, other: &Self) -> bool {
        let BuildError::FailedBefore { image, command } = self.error.as_ref() else { return false };
        let (BuildError::Exit { command: failed, .. } | BuildError::Start { command: failed, .. }) =
            other.error.as_ref()
        else {
            return false;
        };
        other.image == *image && failed == command
    }

    /// A failure of `request`, at a place when one is to blame.
    pub(super) fn new(request: &BuildRequest, place: Option<Place>, error: BuildError) -> Self {
        let (place, error) = if let BuildError::At { place, source } = error {
            (Some(*place), *source)
        } else {
            (place, error)
        };
        Self {
            image: request.name.clone(),
            dockerfile: Arc::clone(&request.dockerfile),
            place,
            error: Box::new(error),
        }
    }
}

/// What can go wrong in a build.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Another instruction is to blame than the one that was to be done.
    #[error("{source}")]
    At {
        /// That instruction.
        place: Box<Place>,
        /// What is wrong with it.
        source: Box<BuildError>,
    },
    /// The Dockerfile is not valid.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// A process ended with another code than zero.
    #[error("process {command:?} did not complete successfully: exit code: {code}")]
    Exit {
        /// The command on one line.
        command: String,
        /// Its exit code.
        code: i32,
        /// Last lines of output, oldest first.
        tail: Vec<String>,
        /// File with the whole output.
        log: Option<PathBuf>,
        /// What the code usually means, when it is known.
        help: Option<String>,
        /// The room on the disk that it wrote to, when there was none.
        full: Option<Room>,
        /// What the step left, when it was to be kept.
        scene: Option<Arc<Scene>>,
    },
    /// A process could not be started: no such program or user.
    #[error("process {command:?} did not complete successfully: {source}")]
    Start {
        /// The command on one line.
        command: String,
        /// Why.
        source: Box<BuildError>,
        /// What the step left, when it was to be kept.
        scene: Option<Arc<Scene>>,
    },
    /// The same process failed in this run, for another image.
    #[error("process {command:?} failed for {image} already")]
    FailedBefore {
        /// The other image.
        image: String,
        /// The command on one line.
        command: String,
    },
    /// The sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Files could not be copied.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// An image failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A name is no image reference.
    #[error("failed to parse stage name \"{name}\": {reason}")]
    BaseName {
        /// As written.
        name: String,
        /// Why.
        reason: String,
    },
    /// A name is no stage, and no image can be had by it.
    #[error("{source}")]
    NoStage {
        /// The stage that may have been meant.
        near: String,
        /// Why there is no image.
        source: Box<BuildError>,
    },
    /// A stack of layers failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A layer failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The instruction is understood, and this version cannot do it.
    #[error("{what} is not supported yet")]
    Unsupported {
        /// What.
        what: String,
        /// The way out.
        help: Option<String>,
    },
    /// A process wants more than the user allows.
    #[error("failed to load LLB: {} is not allowed", entitlement.name())]
    NotAllowed {
        /// What it wants.
        entitlement: Entitlement,
    },
    /// A download failed.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// A download is not what `--checksum` says; BuildKit's words.
    #[error("digest mismatch {found}: {expected}")]
    Checksum {
        /// What it is.
        found: Digest,
        /// As asked for.
        expected: String,
    },
    /// A repository could not be fetched.
    #[error(transparent)]
    Git(Box<GitError>),
    /// Something that must be a tar archive is none.
    #[error("{name} is no tar archive, plain or compressed, or an empty one")]
    NoArchive {
        /// As the user knows it.
        name: String,
    },
    /// A context has no Dockerfile at a path; BuildKit's words.
    #[error("failed to read dockerfile: open {path}: no such file or directory")]
    NoDockerfile {
        /// The context.
        context: String,
        /// The path in it.
        path: String,
    },
    /// What must be the text of a Dockerfile is none.
    #[error("{name}: {reason}")]
    NoText {
        /// What.
        name: String,
        /// Why.
        reason: String,
    },
    /// The time of a source cannot be taken.
    #[error("{0}")]
    Epoch(String),
    /// Something has another content than the lock says.
    #[error("{name} moved: idpbuilder.lock has {locked}, and it is {found} now")]
    Moved {
        /// As the Dockerfile names it.
        name: String,
        /// Locked.
        locked: String,
        /// Found.
        found: String,
    },
    /// Something is not in the lock.
    #[error("{name} is not in idpbuilder.lock")]
    NotLocked {
        /// As the Dockerfile names it.
        name: String,
    },
    /// A secret that a process must have is not there.
    #[error("secret {id}: not found")]
    SecretMissing {
        /// Its id.
        id: String,
    },
    /// A secret cannot be handed to a process.
    #[error("secret {id}: {reason}")]
    Secret {
        /// Its id.
        id: String,
        /// Why.
        reason: String,
    },
    /// An SSH agent that a process must have is not offered; BuildKit's words.
    #[error("{}", agent_missing(id, offered))]
    AgentMissing {
        /// Its id; empty for the default one.
        id: String,
        /// The ids that are offered.
        offered: Vec<String>,
    },
    /// An SSH agent cannot be handed to a process.
    #[error("ssh {id}: {reason}")]
    Agent {
        /// Its id.
        id: String,
        /// Why.
        reason: String,
    },
    /// `host-gateway` has no meaning here.
    #[error("{name}:host-gateway: this machine has no address to be reached at: {source}")]
    HostGateway {
        /// The name that was to stand for it.
        name: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file system to look around in has nothing to do it with.
    #[error("there is no shell in it: none of {tried}")]
    NoShell {
        /// What was tried.
        tried: String,
    },
    /// A pattern of `layers split` that is none.
    #[error("layers split: often {pattern:?}: {reason}")]
    SplitPattern {
        /// As it is written.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Stopped because the user asked.
    #[error("cancelled")]
    Cancelled,
}

impl BuildError {
    /// Whether a full disk is the reason, wherever it was noticed.
    #[must_use]
    pub fn lacks_space(&self) -> bool {
        matches!(self, Self::Exit { full: Some(_), .. }) || lacks_space(self)
    }
}

fn agent_missing(id: &str, offered: &[String]) -> String {
    match offered {
        [_, ..] => format!("unset ssh forward key {}", if id.is_empty() { "default" } else { id }),
        [] => format!("no SSH key {id:?} forwarded from the client"),
    }
}
