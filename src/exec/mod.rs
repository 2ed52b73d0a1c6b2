//! Drives a plan: builds, stores, uploads, and moves the tags when everything else is in.
//!
//! Knows the plan and the mechanisms; knows no project file and no terminal.

mod check;
mod early;
mod embedded;
mod explain;
mod failure;
mod lock;
mod prepare;
mod run;
mod told;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

pub use check::{Checked, check};
pub use embedded::Embedded;
pub use explain::explain;
pub use failure::ExecError;
pub use lock::lock;
pub use prepare::{check_files, client_options, ignore_text};
pub use run::run;
use tokio::task::JoinError;

use crate::{
    build::{CacheRules, FailedSteps, HostDns, ReadSecret},
    dockerfile::Warning,
    event::Emit,
    git::GitProgram,
    image::Refresh,
    oci::Digest,
    plan::Pins,
    registry::{Found, ProxyOptions},
    sandbox::{CancelFlag, LazyAbility, Privileges},
    serve::Login,
    store::Store,
    trust::Identity,
};

/// Runs synchronous work on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work).await)
}

/// What a task came to. A panic in it is our bug: it is raised here, and ends the program as such.
fn joined<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => unreachable!("nothing aborts it: {error}"),
    })
}

/// Finds credentials for a registry that the plan gives none for, or for one of its repositories alone.
pub type FindCredentials = Arc<dyn Fn(&str, Option<&str>, NamedBy) -> Option<Found> + Send + Sync>;

/// Who says that a registry is to be asked. What is meant for no certain registry is for those that the user names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedBy {
    /// The project file or the command line.
    User,
    /// A Dockerfile, or what an image says of itself; either may be somebody else's.
    Others,
}

/// Finds how the embedded registry is served, or decides it; in words why not. Asked only by a plan that has to do with it.
pub type FindEmbedded = Arc<dyn Fn() -> Result<EmbeddedSetup, String> + Send + Sync>;

/// What a run works with.
#[derive(Clone)]
pub struct Setup {
    /// Where images are kept.
    pub store: Store,
    /// What this place can do, for who runs processes.
    pub ability: Arc<LazyAbility>,
    /// Whether programs of a RUN may have more rights than who starts them.
    pub privileges: Privileges,
    /// Set to stop everything.
    pub cancel: CancelFlag,
    /// Told what happens.
    pub emit: Emit,
    /// Folder for the full output of each RUN.
    pub logs: Option<PathBuf>,
    /// Steps at once.
    pub jobs: usize,
    /// Whether base images are looked up again.
    pub refresh: Refresh,
    /// Which cached results are not used.
    pub cache_rules: CacheRules,
    /// Whether registries may be asked.
    pub network: Network,
    /// What names must stand for, when there is a lock.
    pub pins: Option<Arc<Pins>>,
    /// What else runs after a failure.
    pub on_failure: OnFailure,
    /// Whether what a failed step leaves is kept to look at.
    pub failed_steps: FailedSteps,
    /// Reads secrets.
    pub read_secret: ReadSecret,
    /// Socket of the user's SSH agent (`SSH_AUTH_SOCK`).
    pub ssh_agent: Option<PathBuf>,
    /// Finds credentials.
    pub find_credentials: FindCredentials,
    /// Proxies of the user.
    pub proxies: ProxyOptions,
    /// Folder with trusted certificates.
    pub trusted_certificates: Option<PathBuf>,
    /// What the machine's own resolver is configured with.
    pub dns: HostDns,
    /// The program that fetches repositories.
    pub git: GitProgram,
    /// Finds how the embedded registry is served.
    pub find_embedded: FindEmbedded,
}

/// Whether registries and web servers may be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Yes.
    #[default]
    Online,
    /// None but the embedded one (`--offline`).
    Offline,
}

/// What else runs after a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Nothing new is started.
    #[default]
    Stop,
    /// Whatever does not need what failed (`--keep-going`).
    KeepGoing,
}

/// How the embedded registry is served during a run.
#[derive(Clone)]
pub struct EmbeddedSetup {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its certificate.
    pub identity: Identity,
    /// Who may push to it.
    pub login: Login,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Report {
    /// One line an image, in plan order.
    pub images: Vec<ImageReport>,
    /// What went wrong, in order of time; empty when all is well.
    pub failures: Vec<ExecError>,
}

/// What became of one image.
#[derive(Clone, Debug)]
pub struct ImageReport {
    /// Name in the plan.
    pub name: String,
    /// How far it came.
    pub state: ImageState,
    /// Names in the store.
    pub tags: Vec<String>,
    /// What the first output that has a manifest holds: digest of the manifest or index, and image ID.
    pub written: Option<(Digest, Digest)>,
    /// Tags that point at it now, and the digest that they point at.
    pub pushed: Vec<(String, Digest)>,
    /// What the build checks found.
    pub warnings: Vec<Warning>,
    /// What the rules of our own found.
    pub advice: Vec<Warning>,
    /// `--build-arg`s that no `ARG` asked for.
    pub unused_args: Vec<String>,
    /// The stages of its Dockerfile, by name or else by number.
    pub stages: Vec<String>,
    /// From the beginning of its first step to the end of its last, in seconds.
    pub seconds: f64,
}

impl ImageReport {
    /// Of an image of which nothing is known yet but how far it came.
    fn new(name: &str, state: ImageState) -> Self {
        Self {
            name: name.to_owned(),
            state,
            tags: Vec::new(),
            written: None,
            pushed: Vec::new(),
            warnings: Vec::new(),
            advice: Vec::new(),
            unused_args: Vec::new(),
            stages: Vec::new(),
            seconds: 0.0,
        }
    }
}

/// How far an image came.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageState {
    /// It is in the store.
    Stored {
        /// Image ID.
        id: Digest,
        /// Digest of the manifest as stored.
        digest: Digest,
        /// Bytes of all layers, uncompressed.
        size: u64,
        /// Steps whose result was known.
        cached: usize,
        /// Steps in all.
        steps: usize,
    },
    /// It failed.
    Failed,
    /// The user stopped it.
    Cancelled,
    /// It never began.
    Skipped,
}
