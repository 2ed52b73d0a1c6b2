//! Drives an op graph: key → cached? → do it → change set → commit; explains every miss.
//!
//! Knows Dockerfiles, layers and the sandbox; knows no project, no tags and no terminal.

mod agents;
mod allowed;
mod bases;
mod caches;
mod downloads;
mod epoch;
mod failure;
mod fetch;
pub mod files;
mod flights;
mod foreign;
mod logs;
mod machine;
mod mounts;
mod network;
mod once;
mod output;
mod pins;
mod process;
mod reason;
mod result;
mod rootfs;
mod scene;
mod source;
mod steps;
mod strict;
mod wholes;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, atomic::Ordering},
    time::Duration,
};

pub use failure::{BuildError, BuildFailure, DockerfileText};
pub use fetch::{Fetches, dockerfile_behind, dockerfile_of};
pub use flights::Flights;
pub use logs::{Log, LogCount, LogRules, Sweep, count_logs, latest_logs, name_in_logs, sweep_logs};
pub use machine::{build, check, explain};
pub use network::HostDns;
pub use pins::{Sources, Targets, source_of_dockerfile, sources};
pub use result::Built;
pub use scene::{FailedSteps, Scene};
pub use source::{ContextFolder, ContextSource, Layout, NamedSource, ReadSecret};
pub use steps::{Step, Steps};
pub use wholes::Wholes;

use crate::{
    event::Emit,
    git::GitProgram,
    image::Refresh,
    layer::OverlayMarks,
    limits::{Limits, Split},
    oci::{DiffId, Platform},
    plan::{CacheUse, Entitlement, NetworkPlan, Pins, SecretSource, SshSource},
    registry::Client,
    sandbox::{Ability, CancelFlag, LazyAbility, Privileges},
    store::{CacheIdentity, Store},
    tree::Timestamp,
};

/// No entry of a layer that we make is dated later than this (2024-01-01T00:00:00Z), unless
/// `SOURCE_DATE_EPOCH` says otherwise: the time of a build, or of a checkout, cannot change a digest.
///
/// A process still sees the real time while it runs; sources and what is made from them get the
/// same date, so that tools that compare dates (make, cargo) find nothing to do again.
pub const LATEST_MTIME: Timestamp = Timestamp { seconds: 1_704_067_200, nanos: 0 };

/// What a build works with; shared by all builds of a run.
#[derive(Clone)]
pub struct Workshop {
    /// Where results are kept.
    pub store: Store,
    /// Where bases come from.
    pub client: Client,
    /// Runs the client's futures; builds are synchronous code on their own threads.
    pub runtime: tokio::runtime::Handle,
    /// What this place can do, for who runs processes.
    pub ability: Arc<LazyAbility>,
    /// Whether programs of processes may have more rights than who starts them.
    pub privileges: Privileges,
    /// Set to stop everything.
    pub cancel: CancelFlag,
    /// Told what happens.
    pub emit: Emit,
    /// Folder for the full output of each RUN; `None` to keep none.
    pub logs: Option<PathBuf>,
    /// How many ops run at once, over all builds.
    pub slots: Arc<Slots>,
    /// What names must stand for, when there is a lock.
    pub pins: Option<Arc<Pins>>,
    /// What names stood for when they were looked at.
    pub targets: Arc<Targets>,
    /// Ops being done right now, so that builds that share one do it once.
    pub flights: Arc<Flights>,
    /// Deep stacks of layers as directories.
    pub wholes: Arc<Wholes>,
    /// What the machine's own resolver is configured with.
    pub dns: HostDns,
    /// Reads the secrets that processes mount.
    pub read_secret: ReadSecret,
    /// Socket of the user's SSH agent.
    pub ssh_agent: Option<PathBuf>,
    /// The program that fetches repositories.
    pub git: GitProgram,
    /// What was fetched from other machines so far.
    pub fetches: Arc<Fetches>,
    /// Whether what a failed step leaves is kept to look at.
    pub failed_steps: FailedSteps,
    /// Cache mounts that this run has emptied, since it was not to use earlier results.
    pub renewed_caches: Arc<Mutex<BTreeSet<CacheIdentity>>>,
}

/// One image to build.
#[derive(Clone)]
pub struct BuildRequest {
    /// Name in events.
    pub name: String,
    /// The Dockerfile.
    pub dockerfile: Arc<DockerfileText>,
    /// The build context.
    pub context: Option<ContextSource>,
    /// Named contexts.
    pub named: BTreeMap<String, NamedSource>,
    /// Stage to build.
    pub target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Labels put on last.
    pub labels: BTreeMap<String, String>,
    /// Platforms asked for. None is the host's, and the image is for what its base says.
    pub platforms: Vec<Platform>,
    /// Whether earlier results may be used.
    pub cache: CacheUse,
    /// Which results may not be used although the cache may.
    pub cache_rules: CacheRules,
    /// Told of every layer of the image that is made, as soon as it is in the store.
    pub on_layer: Option<OnLayer>,
    /// `SOURCE_DATE_EPOCH`.
    pub epoch: Option<i64>,
    /// Whether base images are looked up in their registry even when the store has them.
    pub refresh: Refresh,
    /// Where secrets come from, by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// What answers the SSH agents that processes mount, by id.
    pub ssh: BTreeMap<String, SshSource>,
    /// What processes see of the network.
    pub network: NetworkPlan,
    /// What processes may do besides.
    pub allow: BTreeSet<Entitlement>,
    /// Whether what the rules of our own find fails the build.
    pub strict: bool,
    /// What processes may use.
    pub limits: Limits,
    /// How a large COPY or ADD becomes several layers, when it does.
    pub split: Option<Split>,
}

impl BuildRequest {
    /// Where the files of a context are: of the build's own, or of a named one that is made of files.
    pub(crate) fn files_of(&self, name: Option<&str>) -> Option<&ContextSource> {
        let Some(name) = name else { return self.context.as_ref() };
        match self.named.get(name) {
            Some(NamedSource::Files(source)) => Some(source),
            Some(
                NamedSource::Images(_)
                | NamedSource::Layout(_)
                | NamedSource::Reference(_)
                | NamedSource::Scratch,
            )
            | None => None,
        }
    }
}

/// Takes a layer that was made.
pub type OnLayer = Arc<dyn Fn(DiffId) + Send + Sync>;

/// Which cached results are not used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheRules {
    /// Those of these stages, by name whatever its case, or by number (`--no-cache-filter`).
    pub without_stages: Vec<String>,
    /// Those of a `RUN` that are older than so many seconds (`--run-ttl`).
    pub run_age_max_s: Option<u64>,
}

/// How long a cancellation may go unnoticed.
const CANCEL_POLL: Duration = Duration::from_millis(20);

/// A counted number of places to work in.
pub struct Slots {
    count: usize,
    free: Mutex<usize>,
    freed: Condvar,
}

/// One place, given back when dropped.
pub(crate) struct Slot<'a>(&'a Slots);

impl Slots {
    /// So many places, one at least.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let count = count.max(1);
        Self { count, free: Mutex::new(count), freed: Condvar::new() }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Waits for one that is free; `None` when `cancel` is set before.
    pub(crate) fn take(&self, cancel: &CancelFlag) -> Option<Slot<'_>> {
        let mut free = self.free.lock().expect("no holder panics while counting");
        loop {
            if cancel.load(Ordering::Relaxed) {
                return None;
            }
            if *free > 0 {
                break;
            }
            let waited = self.freed.wait_timeout(free, CANCEL_POLL);
            (free, _) = waited.expect("no holder panics while counting");
        }
        *free -= 1;
        Some(Slot(self))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().expect("no holder panics while counting") += 1;
        self.0.freed.notify_one();
    }
}

impl Workshop {
    /// Waits for work of the client, or for the user to stop it, whichever comes first.
    pub(crate) fn wait<T, E: Into<BuildError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, BuildError> {
        self.runtime.block_on(async {
            tokio::select! {
                done = work => done.map_err(Into::into),
                () = self.cancelled() => Err(BuildError::Cancelled),
            }
        })
    }

    /// Ends when the user stops everything.
    pub(crate) async fn cancelled(&self) {
        while !self.cancel.load(Ordering::Relaxed) {
            tokio::time::sleep(CANCEL_POLL).await;
        }
    }

    pub(crate) fn renewed(&self) -> std::sync::MutexGuard<'_, BTreeSet<CacheIdentity>> {
        self.renewed_caches.lock().expect("no holder panics")
    }

    pub(crate) fn marks(&self) -> OverlayMarks {
        marks(&self.ability.get())
    }
}

fn marks(ability: &Ability) -> OverlayMarks {
    match ability.privilege {
        crate::sandbox::Privilege::Root => OverlayMarks::Trusted,
        crate::sandbox::Privilege::Mapped
        | crate::sandbox::Privilege::SingleId
        | crate::sandbox::Privilege::None => OverlayMarks::User,
    }
}
