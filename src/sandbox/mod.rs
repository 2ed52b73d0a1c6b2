//! One process in one root file system: namespaces, mounts, capabilities, seccomp, at any privilege level.
//!
//! Knows nothing of images, layers or the store: it is given directories and numbers.

mod cgroup;
mod chroot;
mod complaints;
mod emulation;
mod environment;
mod filter;
mod fuse;
mod identity;
mod inside;
mod landlock;
mod lazy;
mod mounts;
mod network;
mod outside;
mod points;
mod prepare;
mod probe;
mod rootless;
mod sys;
mod terminal;
mod told;
mod userns;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use thiserror::Error;

pub use emulation::{Emulation, Emulator};
pub use lazy::LazyAbility;
pub use terminal::Terminal;

use crate::{event::Stream, limits::Limits};

pub use environment::Environment;

/// Makes sure that a process can wait for others, to be called when a program starts: who ignores SIGCHLD hands that on
/// to what it starts, and the kernel then forgets how a child ended (`wait(2)`).
pub fn expect_children() {
    sys::reset_signal(libc::SIGCHLD);
}

/// How the root file system of a process comes about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootKind {
    /// An overlay, set up by fsopen(2) with `lowerdir+` (Linux 6.7).
    #[default]
    Overlay,
    /// An overlay, set up by mount(2).
    OverlayByMount,
    /// An overlay that the program `fuse-overlayfs` serves.
    FuseOverlay,
    /// `upper` itself, which holds everything; there are no lowers.
    Plain,
}

/// The root file system of a process, mounted for the process alone.
#[derive(Clone, Debug)]
pub struct RootFs {
    /// How it comes about.
    pub kind: RootKind,
    /// Read-only directories, topmost first; may be empty (`FROM scratch`).
    pub lowers: Vec<PathBuf>,
    /// Receives the changes.
    pub upper: PathBuf,
    /// Empty directory on the file system of `upper`, for overlay's own use.
    pub work: PathBuf,
}

/// Something mounted into the root file system for the time of the process.
#[derive(Clone, Debug)]
pub struct Bind {
    /// What: a file or directory of the host.
    pub source: PathBuf,
    /// Path within that directory which is mounted in its stead, found as the process starts; whoever
    /// fills the directory cannot lead out of it.
    pub inside: Option<String>,
    /// Where, absolute within the root file system; made when missing and removed afterwards.
    pub target: String,
    /// Whether the process may not write.
    pub read_only: bool,
}

/// A tmpfs for the time of the process.
#[derive(Clone, Debug)]
pub struct Tmpfs {
    /// Where, absolute within the root file system.
    pub target: String,
    /// Limit in bytes.
    pub size: Option<u64>,
    /// Files to put in it before the process starts (secrets): name, bytes, mode, uid, gid. One file
    /// without a name is mounted at `target` itself, as a file.
    pub files: Vec<(String, Vec<u8>, u32, u32, u32)>,
}

/// One mount of a process.
#[derive(Clone, Debug)]
pub enum Mount {
    /// A file or directory of the host.
    Bind(Bind),
    /// A file system in memory.
    Tmpfs(Tmpfs),
}

/// Whose network the process sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// A new one with loopback only.
    None,
    /// The host's.
    Host,
    /// A new one that reaches the world through a helper program, and neither the host's loopback nor
    /// the metadata of clouds.
    Sandbox,
}

/// At which processes in [`NetworkMode::Sandbox`] find the resolver of the host.
pub const SANDBOX_RESOLVER: &str = network::RESOLVER;

/// The program that would connect processes in [`NetworkMode::Sandbox`]; `None` when there is none.
#[must_use]
pub fn network_helper() -> Option<&'static str> {
    network::helper()
}

/// Whether processes in [`NetworkMode::Host`] are kept from the machine's abstract unix sockets: X11, D-Bus and others
/// that have no file.
#[must_use]
pub fn closes_abstract_sockets(isolation: Isolation) -> bool {
    isolation != Isolation::Chroot && landlock::is_there()
}

/// Whether a process could have this network, as far as can be seen before there is one.
///
/// # Errors
///
/// [`SandboxError::Unavailable`].
pub fn check_network(mode: NetworkMode, isolation: Isolation) -> Result<(), SandboxError> {
    match (mode, isolation) {
        (NetworkMode::Host, _) => Ok(()),
        (_, Isolation::Chroot) => chroot::no_network(),
        (NetworkMode::None, _) => Ok(()),
        (NetworkMode::Sandbox, _) => network::obstacle(),
    }
}

/// A process to run.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// Its root file system.
    pub rootfs: RootFs,
    /// Program and arguments; the program is looked up in `PATH` of `env` when it has no slash.
    pub argv: Vec<String>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute; made 0755 when missing.
    pub cwd: String,
    /// Numeric user, as inside the image.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Host name; `buildkitsandbox` by default in builds.
    pub hostname: String,
    /// Network.
    pub network: NetworkMode,
    /// Mounts besides the system's own, in order: a later one may stand within an earlier one.
    pub mounts: Vec<Mount>,
    /// Lines for `/etc/hosts` besides localhost: name and address.
    pub hosts: Vec<(String, String)>,
    /// Name servers and options for `/etc/resolv.conf`, whole text.
    pub resolv_conf: Vec<u8>,
    /// How far the process is kept apart.
    pub isolation: Isolation,
    /// Whether a program may have more rights than the one that started it (set-user-id files).
    pub privileges: Privileges,
    /// What its ids are to the machine.
    pub users: UserIds,
    /// All capabilities, no seccomp filter (`--security=insecure`); but for [`NetworkMode::Sandbox`], whose routes it
    /// must not change.
    pub insecure: bool,
    /// What the process and all that it starts may use together.
    pub limits: Limits,
    /// Interpreter for the programs of another processor that the kernel does not know; needs
    /// [`Privilege::Root`]. The process is in a user namespace of its own then, in which every id is itself.
    pub emulator: Option<Emulator>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Signal, when one ended it.
    pub signal: Option<i32>,
    /// CPU time, user and system.
    pub cpu: Duration,
    /// Peak resident memory in bytes; at least what this program had when it started the process.
    pub memory_peak: u64,
    /// Which limits it came up against.
    pub met: LimitsMet,
}

/// Limits that a process came up against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsMet {
    /// Processes that were killed because memory ran out.
    pub oom_kills: u64,
    /// Times that a process could not be started because there were too many.
    pub forks_refused: u64,
    /// Whether the step was ended because it went on trying to start more processes than it may have.
    pub stopped: bool,
}

/// Which limits can be enforced here.
#[expect(clippy::struct_excessive_bools, reason = "three facts that do not exclude one another")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enforcement {
    /// `control groups, version 1`, for example.
    pub by: String,
    /// Limits on memory.
    pub memory: bool,
    /// Limits on processor time.
    pub cpu: bool,
    /// Limits on the number of processes.
    pub pids: bool,
    /// What would make the missing ones possible; empty when none is missing.
    pub help: String,
}

impl Enforcement {
    /// One line about the limits that are wanted and cannot be enforced; `None` when there are none.
    #[must_use]
    pub fn missing(&self, limits: &Limits) -> Option<String> {
        let wanted = [
            (limits.memory.is_some() && !self.memory, "memory"),
            (
                (limits.cpu_quota_us.is_some() || limits.cpu_shares.is_some()) && !self.cpu,
                "processor time",
            ),
            (limits.pids.is_some() && !self.pids, "the number of processes"),
        ];
        let names: Vec<&str> =
            wanted.iter().filter(|(is_missing, _)| *is_missing).map(|(_, name)| *name).collect();
        let help = &self.help;
        (!names.is_empty())
            .then(|| format!("limits on {} are not enforced here: {help}", names.join(" and ")))
    }
}

/// Why a process could not be run.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// This place cannot isolate a process; the way out is said with it.
    #[error("RUN is not possible here: {reason}")]
    Unavailable {
        /// What failed when it was tried.
        reason: String,
        /// What would make it possible.
        help: String,
    },
    /// A set-up step failed inside.
    #[error("sandbox: {step}: {source}")]
    Setup {
        /// Which step.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program could not be started (not found, not executable, wrong format).
    #[error("exec: \"{program}\": {reason}")]
    Exec {
        /// First word of the command.
        program: String,
        /// As a shell would say it.
        reason: String,
    },
    /// Stopped because the caller asked.
    #[error("cancelled")]
    Cancelled,
}

/// Set by the caller to stop the process; looked at at least every 100 ms.
pub type CancelFlag = Arc<AtomicBool>;

/// Where the root file systems of processes come from, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Snapshotter {
    /// The kernel's overlay over the directories of the store.
    Overlay,
    /// The same by mount(2), for kernels before 6.7.
    OverlayMount,
    /// Overlay whose changes are written to a folder on another file system.
    OverlayElsewhere,
    /// The program `fuse-overlayfs`.
    FuseOverlay,
    /// A copy of all files for each process.
    Copy,
}

impl Snapshotter {
    /// All that there are, best first.
    pub const ALL: [Self; 5] =
        [Self::Overlay, Self::OverlayMount, Self::OverlayElsewhere, Self::FuseOverlay, Self::Copy];

    /// As typed behind `--snapshotter`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::OverlayMount => "overlay-mount",
            Self::OverlayElsewhere => "overlay-elsewhere",
            Self::FuseOverlay => "fuse-overlay",
            Self::Copy => "copy",
        }
    }

    /// How the sandbox makes the root file system then.
    #[must_use]
    pub const fn root(self) -> RootKind {
        match self {
            Self::Overlay | Self::OverlayElsewhere => RootKind::Overlay,
            Self::OverlayMount => RootKind::OverlayByMount,
            Self::FuseOverlay => RootKind::FuseOverlay,
            Self::Copy => RootKind::Plain,
        }
    }
}

/// Whether a program may have more rights than the one that started it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Privileges {
    /// It may: `su`, `sudo` and `ping` work, as in Docker and BuildKit.
    #[default]
    MayGrow,
    /// It never may (`no_new_privs`).
    MayNotGrow,
}

/// What the ids of a process are to the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserIds {
    /// Themselves, in our own user namespace.
    #[default]
    Host,
    /// A private range of 65536 that are nobody's, in a user namespace of its own; files keep the ids that they have
    /// with [`UserIds::Host`]. Needs [`Privilege::Root`] and file systems that take idmapped mounts.
    Private,
}

/// How far a process is kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces, mounts and a `/proc` of its own.
    #[default]
    Full,
    /// As [`Isolation::Full`], with the `/proc` that we see ourselves, because parts of it are hidden from us
    /// and the kernel then gives nobody a new one.
    OuterProc,
    /// In another root directory and not at all otherwise; never without being asked for.
    Chroot,
}

/// What the user wants of a probe; everything is found out when nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// This one and no other.
    pub snapshotter: Option<Snapshotter>,
    /// Folder for [`Snapshotter::OverlayElsewhere`].
    pub scratch: Option<PathBuf>,
    /// No isolation ([`Isolation::Chroot`]) instead of as much as can be had.
    pub isolation: Option<Isolation>,
    /// What the ids of processes are to be.
    pub users: UserIds,
}

/// What this place can do, found by doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ability {
    /// Where root file systems come from.
    pub snapshotter: Snapshotter,
    /// Folder for changes, with [`Snapshotter::OverlayElsewhere`].
    pub scratch: Option<PathBuf>,
    /// Whether the probed folder's file system keeps the marks of overlay: what is gone, what hides all below.
    pub keeps_marks: bool,
    /// How far processes are kept apart.
    pub isolation: Isolation,
    /// What the ids of processes are to the machine.
    pub users: UserIds,
    /// What kind of place this is.
    pub environment: Environment,
    /// Who we are to the kernel.
    pub privilege: Privilege,
    /// Whether processes can be run in isolation.
    pub run: Result<(), Obstacle>,
    /// Which limits can be enforced.
    pub limits: Enforcement,
    /// One line a downgrade or fact worth knowing.
    pub notes: Vec<String>,
}

/// Why something is not possible, and what would make it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What failed.
    pub reason: String,
    /// The way out.
    pub help: String,
    /// The step that found the disk full: then nothing is wrong with the place, and it may be possible later.
    pub without_room: Option<String>,
}

/// Who we are to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root in the initial user namespace, with the capabilities that it takes.
    Root,
    /// Root in a user namespace of our own, with many ids mapped.
    Mapped,
    /// Root in a user namespace of our own, with one id mapped: ownership is recorded, not real.
    SingleId,
    /// An ordinary user that cannot have a user namespace.
    None,
}

/// Runs a process to its end. `output` is called with raw bytes as they come, from this thread.
/// Nothing is left behind: no process, no mount, no file but the changes in `upper`. Meanwhile a folder
/// named as `work` with `.aid` appended lies beside it. The changes are not on the disk yet: overlay is
/// mounted `volatile`, so that a process's fsync costs nothing; who keeps `upper` must sync it.
///
/// # Errors
///
/// When it cannot be started, or was cancelled. A non-zero exit is no error.
pub fn run(
    spec: &ProcessSpec,
    output: &mut dyn FnMut(Stream, &[u8]),
    cancel: &CancelFlag,
) -> Result<Exit, SandboxError> {
    outside::run(spec, output, cancel)
}

/// As [`run`], but on a terminal of the process's own, to which the user's is joined until the process ends: keys, signals
/// and the size of the window reach it.
///
/// # Errors
///
/// As [`run`]; and when the user's terminal is none.
pub fn attach(
    spec: &ProcessSpec,
    terminal: Terminal<'_>,
    cancel: &CancelFlag,
) -> Result<Exit, SandboxError> {
    terminal::attach(spec, terminal, cancel)
}

/// Who this process is to the kernel, without trying anything: [`Privilege::None`] says that it has
/// not entered a user namespace of its own.
#[must_use]
pub fn privilege() -> Privilege {
    identity::privilege()
}

/// Finds out what this place can do; tries mounts in `folder` (on the store's file system).
#[must_use]
pub fn probe(folder: &std::path::Path, wanted: &Wanted) -> Ability {
    probe::probe(folder, wanted)
}

/// As [`probe`], but does not try again what worked under the very same circumstances (boot,
/// namespaces, rights, filters, file system): a mark in `folder` tells. What failed is always tried
/// again.
#[must_use]
pub fn ability(folder: &std::path::Path, wanted: &Wanted) -> Ability {
    probe::ability(folder, wanted)
}

/// Makes a new folder of this process (mode 0700) in `parent`, whose name [`sweep`] knows when nothing else removed it.
///
/// # Errors
///
/// When it cannot be made.
pub fn own_folder(parent: &std::path::Path) -> std::io::Result<std::path::PathBuf> {
    probe::own_folder(parent)
}

/// Removes what probes in `folder`, and processes that wrote elsewhere, have left whose program was killed; an [`ability`]
/// that tries does so too.
pub fn sweep(folder: &std::path::Path) {
    probe::sweep(folder);
}

/// How processes for a processor (`arm64`, as in image configs) run here. As an ordinary user this tells the
/// kernel of the interpreters that are installed, for this process and its children alone.
///
/// # Errors
///
/// When they do not; the way out is said with it.
pub fn emulation(architecture: &str, ability: &Ability) -> Result<Emulation, Obstacle> {
    emulation::emulation(architecture, ability)
}

/// The processors besides this machine's own whose processes run here, as images name them.
#[must_use]
pub fn emulated(ability: &Ability) -> Vec<&'static str> {
    emulation::emulated(ability)
}

/// As an ordinary user: enters a user and mount namespace in which we are root (with all subordinate
/// ids mapped by `newuidmap` where possible, else one id), in place: nothing is run again. Returns at
/// once when we are root and may mount, or are inside already. With [`Privilege::None`] nothing has
/// changed: [`probe`] tells why, and what would help.
///
/// Root that may run processes with [`Isolation::Chroot`] stays where it is when that is wanted: in the namespace it
/// could make no devices.
///
/// Must be called before any thread is started. What is on the host by other ids than ours is out of
/// reach afterwards.
pub fn enter(isolation: Option<Isolation>) -> Privilege {
    rootless::enter(isolation)
}

/// Leaves the control group that this program moved into so that limits could be enforced below its own, if it did:
/// to be called when the last process has ended.
pub fn leave() {
    cgroup::leave();
}

#[cfg(test)]
mod tests;
