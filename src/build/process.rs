//! One RUN: its key, its root file system, its output, and the layer that its changes become.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use super::{
    BuildError, BuildRequest, LATEST_MTIME, Workshop,
    files::{self, Key, Root},
    foreign,
    mounts::{self, Mounts, Shown},
    network,
    output::Output,
    rootfs::{self, Afterwards, Prepared},
    scene::Scene,
};
use crate::{
    event::Event,
    graph::{KeyTree, OpId, RunOp, Security},
    layer::{LayerSummary, LayerWriter, Settled, Upper, settle, write_upper},
    limits::{Limits, Ulimit},
    oci::{ChainId, DiffId, Digest, Platform},
    sandbox::{self, Ability, Exit, Obstacle, Privilege, ProcessSpec, RootFs, SandboxError},
    snapshot::View,
    store::{LayerRecord, room},
    tree::TreePath,
};

/// Name that processes see as their host's unless another is asked for, as in BuildKit.
pub(super) const HOSTNAME: &str = "buildkitsandbox";

/// A process to run for a step.
pub(super) struct Task<'a> {
    pub(super) workshop: &'a Workshop,
    /// The image's name in events.
    pub(super) image: &'a str,
    /// The platform in events, when the image is built for several.
    pub(super) platform: Option<String>,
    /// The platform that the image is built for.
    pub(super) built_for: Platform,
    /// The step's number in events.
    pub(super) step: usize,
    pub(super) run: &'a RunOp,
    /// Layers below, bottom first; their bytes are in the store.
    pub(super) below: &'a [DiffId],
    /// What names them together.
    pub(super) chain: Option<ChainId>,
    /// Where sources of mounts start; their bytes are in the store.
    pub(super) root_of: &'a dyn Fn(OpId) -> Root<'a>,
    /// What was asked for.
    pub(super) request: &'a BuildRequest,
    /// What mounts of this build show of stages.
    pub(super) shown: &'a Shown,
}

/// What of a stage counts where a mount shows some of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// All that it is made of, which is known at once.
    Definition,
    /// What is shown, which has to be looked at.
    Content,
}

/// Parts of the key: all that the process can see and that is not hidden on purpose.
pub(super) fn key(task: &Task<'_>, by: By) -> Result<Key, BuildError> {
    let run = task.run;
    let mut key = Key::new("run");
    let tree = &mut key.tree;
    tree.add("command", format!("{:?}", run.argv));
    tree.add("base", task.chain.map_or_else(|| "scratch".to_owned(), |chain| chain.to_string()));
    for (name, value) in &run.env {
        tree.add(&format!("environment variable {name}"), value);
    }
    tree.add("working directory", &run.cwd);
    tree.add("user", &run.user);
    network::add_to_key(task, tree);
    add_limits(&task.request.limits, tree);
    tree.add("security", format!("{:?}", run.security));
    if let Some(hostname) = &run.hostname {
        tree.add("host name", hostname);
    }
    for pipe in &run.pipes {
        tree.add(&format!("heredoc {}", pipe.name), Digest::of(&pipe.content));
    }
    mounts::add_to_key(task, by, &mut key)?;
    Ok(key)
}

/// Limits that a process reads as its own; how much it may use of the machine decides how fast it is done, not what it leaves.
fn add_limits(limits: &Limits, tree: &mut KeyTree) {
    for Ulimit { kind, soft, hard } in &limits.ulimits {
        tree.add(&format!("limit {}", kind.name()), format!("{soft}:{hard}"));
    }
    if let Some(bytes) = limits.shm_bytes {
        tree.add("size of /dev/shm", bytes);
    }
}

/// Runs the process and keeps its changes as a layer.
pub(super) fn run(task: &Task<'_>) -> Result<DiffId, BuildError> {
    let Workshop { store, ability, wholes, .. } = task.workshop;
    let ability = ability.get();
    let view = View::open(store, task.below)?;
    let staging = store.staging()?;
    let prepared = rootfs::prepare((store, &ability, wholes), task.below, staging.path())?;
    make_system_points(&view, &prepared.rootfs.upper)?;
    let mut mounts = Mounts::prepare(task, staging.path())?;
    if ability.privilege == Privilege::SingleId {
        mounts.add_for_apt(&view, staging.path())?;
    }
    let spec = specify(task, &view, prepared.rootfs.clone(), &mounts)?;
    let mut output = Output::new(task);
    let cancel = &task.workshop.cancel;
    let ended = sandbox::run(&spec, &mut |stream, bytes| output.take(stream, bytes), cancel);
    output.finish();
    let exit = match ended {
        Ok(exit) => exit,
        Err(SandboxError::Cancelled) => return Err(BuildError::Cancelled),
        Err(error @ SandboxError::Exec { .. }) => {
            let scene = Scene::of_step(task.workshop, (spec, mounts, prepared, staging))?;
            let (command, source) = (task.run.argv.join(" "), Box::new(error.into()));
            return Err(BuildError::Start { command, source, scene });
        }
        Err(error) => return Err(error.into()),
    };
    if exit.code != 0 {
        return Err(BuildError::Exit {
            command: task.run.argv.join(" "),
            code: exit.code,
            tail: output.tail(),
            log: output.log(),
            help: meaning(task, &exit),
            full: room(&prepared.rootfs.upper).filter(|room| room.is_full()),
            scene: Scene::of_step(task.workshop, (spec, mounts, prepared, staging))?,
        });
    }
    tell_of_limits(task, &exit);
    keep(task, &view, &prepared)
}

/// Fails where no process can be run.
pub(super) fn check_ability(ability: &Ability) -> Result<(), BuildError> {
    match &ability.run {
        Ok(()) => Ok(()),
        Err(Obstacle { without_room: Some(step), .. }) => {
            let (step, source) = (step.clone(), io::ErrorKind::StorageFull.into());
            Err(SandboxError::Setup { step, source }.into())
        }
        Err(Obstacle { reason, help, .. }) => {
            let (reason, help) = (reason.clone(), help.clone());
            Err(SandboxError::Unavailable { reason, help }.into())
        }
    }
}

fn specify(
    task: &Task<'_>,
    view: &View,
    rootfs: RootFs,
    mounts: &Mounts,
) -> Result<ProcessSpec, BuildError> {
    let run = task.run;
    if let Some(device) = run.devices.first() {
        let what = format!("RUN --device={device}");
        return Err(BuildError::Unsupported { what, help: None });
    }
    let ability = task.workshop.ability.get();
    let network = network::mode(run, &task.request.network);
    let user = files::user_ids(view, &run.user).map_err(|error| unstarted(task, error.into()))?;
    let mut env: Vec<String> = Vec::new();
    for (name, value) in run.env.iter().chain(&run.hidden_env).chain(&mounts.env) {
        env.push(format!("{name}={value}"));
    }
    if !run.env.iter().any(|(name, _)| name == "HOME") {
        env.push(format!("HOME={}", user.home));
    }
    Ok(ProcessSpec {
        rootfs,
        argv: run.argv.clone(),
        env,
        cwd: run.cwd.clone(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        hostname: run.hostname.clone().unwrap_or_else(|| HOSTNAME.to_owned()),
        network,
        mounts: mounts.mounts.clone(),
        hosts: network::hosts(&task.request.network, network)?,
        resolv_conf: network::resolv_conf(&task.workshop.dns, &task.request.network, network),
        isolation: ability.isolation,
        users: ability.users,
        privileges: task.workshop.privileges,
        insecure: run.security == Security::Insecure,
        limits: task.request.limits.clone(),
        emulator: foreign::emulator(&ability, &run.architecture)?,
    })
}

fn unstarted(task: &Task<'_>, source: BuildError) -> BuildError {
    BuildError::Start { command: task.run.argv.join(" "), source: Box::new(source), scene: None }
}

/// What an exit code usually means, where the code alone says little.
fn meaning(task: &Task<'_>, exit: &Exit) -> Option<String> {
    if let Some(limit) = limit_met(task, exit) {
        return Some(limit);
    }
    match (exit.code, exit.signal) {
        (137, Some(9)) => Some("it was killed, most often because memory ran out".to_owned()),
        (127, _) => Some("127 means that a command was not found".to_owned()),
        (126, _) => Some("126 means that a command was found and is not executable".to_owned()),
        (_, Some(signal)) => Some(format!("signal {signal} ended it")),
        _ => None,
    }
}

/// The limit that a process came up against, in words.
fn limit_met(task: &Task<'_>, exit: &Exit) -> Option<String> {
    let limits = &task.request.limits;
    if exit.met.oom_kills > 0 {
        let limit = limits
            .memory
            .map_or_else(String::new, |bytes| format!(" (limit {})", mebibytes(bytes)));
        return Some(format!("killed: out of memory{limit}; `--memory` sets the limit"));
    }
    let most = limits.pids.filter(|_| exit.met.forks_refused > 0)?;
    Some(if exit.met.stopped {
        format!(
            "killed: it kept starting processes beyond the limit of {most}; `--pids-limit` sets it"
        )
    } else {
        format!("it came up against the limit of {most} processes; `--pids-limit` sets it")
    })
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// A step that succeeded although something of it was killed or refused.
fn tell_of_limits(task: &Task<'_>, exit: &Exit) {
    if let Some(met) = limit_met(task, exit) {
        let text = format!("step {} went on: {met}", task.step);
        (task.workshop.emit)(Event::Warning { image: Some(task.image.to_owned()), text });
    }
}

/// Turns the upper directory into a layer: tar for registries, directory for the next step.
fn keep(task: &Task<'_>, view: &View, prepared: &Prepared) -> Result<DiffId, BuildError> {
    let (store, upper) = (&task.workshop.store, &prepared.rootfs.upper);
    let folder = fs::File::open(upper).map_err(|source| io_error(upper, source))?;
    let writer = LayerWriter::new(store.blob_writer_hashed_by_caller()?).clamp_mtime(LATEST_MTIME);
    let changes = Upper {
        directory: std::os::fd::AsFd::as_fd(&folder),
        form: prepared.form,
        ownership: rootfs::ownership(&task.workshop.ability.get()),
    };
    let (blob, summary, surplus) = write_upper(changes, view, writer)?;
    let LayerSummary { diff_id, tar_bytes, content_bytes, listing } = summary;
    blob.commit(Some(diff_id.0))?;
    store.put_listing(diff_id, &listing.encode())?;
    let compressed = Vec::new();
    store.put_layer(diff_id, &LayerRecord { tar_bytes, content_bytes, compressed })?;
    if prepared.afterwards == Afterwards::Nothing {
        return Ok(diff_id);
    }
    // A later step sees the same, whether this one was cached or not, and on whatever base it was done.
    let settled = settle(folder.as_fd(), &listing, &surplus);
    if settled.map_err(|source| io_error(upper, source))? == Settled::Snapshot {
        store.commit_snapshot(upper, diff_id)?;
    }
    Ok(diff_id)
}

/// Where the image has no place for the system's own mounts, they stay in the layer, as with BuildKit.
pub(super) fn make_system_points(view: &View, upper: &Path) -> Result<(), BuildError> {
    for name in ["dev", "proc", "sys"] {
        let path = TreePath::parse(name).expect("a name is a path");
        if view.entry(&path).is_none() {
            make_folder(upper, name)?;
        }
    }
    Ok(())
}

pub(super) fn make_folder(parent: &Path, name: &str) -> Result<PathBuf, BuildError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let path = parent.join(name);
    let made = fs::DirBuilder::new().mode(0o755).create(&path);
    // The umask of the caller must not reach the root of an image.
    let made = made.and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
    made.map_err(|source| io_error(&path, source))?;
    Ok(path)
}

pub(super) fn io_error(path: &Path, source: std::io::Error) -> BuildError {
    BuildError::Io { path: path.to_owned(), source }
}
