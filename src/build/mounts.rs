//! `RUN --mount`: what a process sees besides its root file system, and what of it the key counts.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
};

use super::{
    BuildError, LATEST_MTIME, agents,
    caches::{self, Caches},
    files::{self, Clock, Key, Root},
    process::{By, Task, io_error},
};
use crate::{
    graph::{CopySource, FileAction, FilesOp, KeyTree, MountKind, MountOp, OpId, SourceRoot},
    oci::DiffId,
    sandbox::{Bind, Mount, Privilege, Tmpfs},
    snapshot::View,
    ssh::Door,
    tree::{Kind, TreePath},
};

/// Where the selected files stand in the directory that is made for a mount.
const SELECTED: &str = "/selected";

/// Where apt looks for settings.
const APT_SETTINGS: &str = "etc/apt/apt.conf.d";

/// Mode of a folder that is mounted, most often.
const FOLDER_MODE: u32 = 0o755;

/// Largest secret in bytes, as in BuildKit.
const SECRET_BYTES_MAX: usize = 500 << 10;

/// Layers of what mounts show of stages, by stage and path: each is made once in a build.
pub(super) type Shown = Mutex<BTreeMap<(OpId, String), DiffId>>;

/// Mounts of one process, ready to use; files behind them live in the step's staging directory.
#[derive(Default)]
pub(super) struct Mounts {
    /// In the order written: a later one may stand within an earlier one.
    pub(super) mounts: Vec<Mount>,
    /// Variables that mounts set.
    pub(super) env: Vec<(String, String)>,
    /// Held while the process runs.
    caches: Caches,
    /// Answer while the process runs.
    _doors: Vec<Door>,
}

/// Adds what a mount means for the result: selected content for binds, names for all else, and how the process finds it.
pub(super) fn add_to_key(task: &Task<'_>, by: By, key: &mut Key) -> Result<(), BuildError> {
    for mount in &task.run.mounts {
        let name = format!("mount {}", mount.target);
        let tree = &mut key.tree;
        match &mount.kind {
            MountKind::Bind { from, source } if by == By::Content && is_stage(task, *from) => {
                tree.add(&name, format!("content {}", shown(task, *from, source)?));
            }
            MountKind::Bind { from, source } => {
                let op = selection(*from, source);
                let selected = files::key(&task.workshop.store, &op, None, &task.root_of)?;
                tree.add(&name, format!("bind {}", selected.tree.key().0));
                for mut selection in selected.selections {
                    selection.component.clone_from(&name);
                    key.selections.push(selection);
                }
                let mode = files::folder_mode(&task.workshop.store, (task.root_of)(*from), source)?;
                let of_folder = mode.filter(|mode| *mode != FOLDER_MODE);
                of_folder.into_iter().for_each(|mode| add_mode(&mut key.tree, mount, mode));
            }
            MountKind::Cache { id, namespace, sharing, from, source, .. } => {
                let seed = from.map(|from| key_of_selection(task, from, source)).transpose()?;
                let seed = seed.unwrap_or_else(|| source.clone());
                tree.add(&name, format!("cache {namespace}/{id} {sharing:?} {seed}"));
            }
            MountKind::Tmpfs { size } => tree.add(&name, format!("tmpfs {size:?}")),
            MountKind::Secret { id, .. } => tree.add(&name, format!("secret {id}")),
            MountKind::Ssh { id, .. } => tree.add(&name, format!("ssh {id}")),
        }
        add_manner(&mut key.tree, mount);
    }
    Ok(())
}

/// Whether a mount of the process shows files of a stage or an image.
pub(super) fn show_stages(task: &Task<'_>) -> bool {
    task.run.mounts.iter().any(|mount| match &mount.kind {
        MountKind::Bind { from, .. } => is_stage(task, *from),
        MountKind::Cache { .. }
        | MountKind::Tmpfs { .. }
        | MountKind::Secret { .. }
        | MountKind::Ssh { .. } => false,
    })
}

fn is_stage(task: &Task<'_>, from: OpId) -> bool {
    matches!((task.root_of)(from), Root::Layers(_))
}

/// Adds how a process finds a mount, where that is not as usual.
fn add_manner(tree: &mut KeyTree, mount: &MountOp) {
    let part = |what: &str| format!("mount {} {what}", mount.target);
    let (usual, found, is_required) = match &mount.kind {
        MountKind::Tmpfs { .. } => return,
        MountKind::Bind { .. } => {
            if !mount.read_only {
                tree.add(&part("access"), "read and write");
            }
            return;
        }
        MountKind::Cache { mode, uid, gid, .. } => {
            if mount.read_only {
                tree.add(&part("access"), "read only");
            }
            (MountKind::CACHE_MODE, (*mode, *uid, *gid), false)
        }
        MountKind::Secret { env, file, required, mode, uid, gid, .. } => {
            if let Some(variable) = env {
                let besides = if *file { ", and a file" } else { "" };
                tree.add(&part("variable"), format!("{variable}{besides}"));
            }
            (MountKind::SECRET_MODE, (*mode, *uid, *gid), *required)
        }
        MountKind::Ssh { required, mode, uid, gid, .. } => {
            (MountKind::SSH_MODE, (*mode, *uid, *gid), *required)
        }
    };
    let (mode, uid, gid) = found;
    if mode != usual {
        add_mode(tree, mount, mode);
    }
    if (uid, gid) != (0, 0) {
        tree.add(&part("owner"), format!("{uid}:{gid}"));
    }
    if is_required {
        tree.add(&part("required"), "true");
    }
}

fn add_mode(tree: &mut KeyTree, mount: &MountOp, mode: u32) {
    tree.add(&format!("mount {} mode", mount.target), format!("{mode:o}"));
}

impl Mounts {
    /// Prepares every mount of the process below `staging`.
    pub(super) fn prepare(task: &Task<'_>, staging: &Path) -> Result<Self, BuildError> {
        let mut mounts = Self { caches: caches::take(task, staging)?, ..Self::default() };
        for (index, pipe) in task.run.pipes.iter().enumerate() {
            let source = staging.join(format!("pipe{index}"));
            write_executable(&source, &pipe.content)?;
            let target = format!("/dev/pipes/{}", pipe.name);
            mounts.mounts.push(Mount::Bind(Bind { source, inside: None, target, read_only: true }));
        }
        for (index, mount) in task.run.mounts.iter().enumerate() {
            mounts.add(task, mount, &staging.join(format!("mount{index}")))?;
        }
        Ok(mounts)
    }

    /// Where one id is mapped, apt cannot become the user that it downloads as, and looks whether it did: it is told to stay.
    pub(super) fn add_for_apt(&mut self, view: &View, staging: &Path) -> Result<(), BuildError> {
        let folder = TreePath::parse(APT_SETTINGS).expect("it is a path");
        if !view.entry(&folder).is_some_and(|entry| entry.kind == Kind::Directory) {
            return Ok(());
        }
        let source = staging.join("apt");
        write_executable(&source, b"APT::Sandbox::User \"root\";\n")?;
        let target = format!("/{APT_SETTINGS}/99one-id");
        self.mounts.push(Mount::Bind(Bind { source, inside: None, target, read_only: true }));
        Ok(())
    }

    fn bind(&mut self, source: PathBuf, mount: &MountOp) {
        let (target, read_only) = (mount.target.clone(), mount.read_only);
        self.mounts.push(Mount::Bind(Bind { source, inside: None, target, read_only }));
    }

    fn add(&mut self, task: &Task<'_>, mount: &MountOp, folder: &Path) -> Result<(), BuildError> {
        match &mount.kind {
            MountKind::Bind { from, source } => {
                materialize(task, *from, source, folder)?;
                let source = select(folder);
                self.bind(source, mount);
            }
            MountKind::Cache { .. } => {
                let source = caches::of(task, mount, &self.caches)?.path();
                let (target, read_only) = (mount.target.clone(), mount.read_only);
                let inside = caches::path_inside(&mount.kind);
                self.mounts.push(Mount::Bind(Bind { source, inside, target, read_only }));
            }
            MountKind::Tmpfs { size } => {
                let target = mount.target.clone();
                let tmpfs = Tmpfs { target, size: *size, files: Vec::new() };
                self.mounts.push(Mount::Tmpfs(tmpfs));
            }
            MountKind::Secret { .. } => self.add_secret(task, mount)?,
            MountKind::Ssh { mode, uid, gid, .. } => {
                if let Some(door) = agents::open(task, mount, folder)? {
                    own(task, door.path(), (*mode, *uid, *gid))?;
                    self._doors.push(door);
                    self.bind(folder.to_owned(), mount);
                }
            }
        }
        Ok(())
    }

    /// Reads a secret, now and not before, into a variable, a file in memory, or both.
    fn add_secret(&mut self, task: &Task<'_>, mount: &MountOp) -> Result<(), BuildError> {
        let MountKind::Secret { id, env, file, required, mode, uid, gid } = &mount.kind else {
            unreachable!("called for secret mounts only");
        };
        let fail = |reason: String| BuildError::Secret { id: id.clone(), reason };
        let source = task.request.secrets.get(id);
        let value = source.map(|source| (task.workshop.read_secret)(source)).transpose();
        let Some(value) = value.map_err(fail)?.flatten() else {
            if *required {
                return Err(BuildError::SecretMissing { id: id.clone() });
            }
            // BuildKit: one that is missing leaves an empty variable and no file.
            self.env.extend(env.iter().map(|name| (name.clone(), String::new())));
            return Ok(());
        };
        if value.len() > SECRET_BYTES_MAX {
            let bytes = value.len();
            return Err(fail(format!("{bytes} bytes, the limit is {SECRET_BYTES_MAX}")));
        }
        if let Some(name) = env {
            let text = String::from_utf8(value.clone()).ok().filter(|text| !text.contains('\0'));
            let text = text.ok_or_else(|| {
                fail(format!("it is no text and cannot be the variable {name}; mount it as a file"))
            })?;
            self.env.push((name.clone(), text));
        }
        if *file {
            let files = vec![(String::new(), value, *mode, *uid, *gid)];
            let tmpfs = Tmpfs { target: mount.target.clone(), size: None, files };
            self.mounts.push(Mount::Tmpfs(tmpfs));
        }
        Ok(())
    }
}

/// A copy of the mount's source to [`SELECTED`]: a folder's content, or a file under that name.
fn selection(from: OpId, source: &str) -> FilesOp {
    let source = CopySource { root: SourceRoot::Op(from), path: source.to_owned() };
    FilesOp { base: from, actions: vec![FileAction::plain_copy(source, SELECTED)] }
}

/// What the content that a mount selects comes to.
pub(super) fn key_of_selection(
    task: &Task<'_>,
    from: OpId,
    source: &str,
) -> Result<String, BuildError> {
    let op = selection(from, source);
    let selected = files::key(&task.workshop.store, &op, None, &task.root_of)?;
    Ok(selected.tree.key().0.to_string())
}

/// Where [`materialize`] has put it.
pub(super) fn select(folder: &Path) -> PathBuf {
    folder.join(SELECTED.trim_start_matches('/'))
}

/// Puts the selected files into a directory of their own, so that writes to it are lost with it.
pub(super) fn materialize(
    task: &Task<'_>,
    from: OpId,
    source: &str,
    folder: &Path,
) -> Result<(), BuildError> {
    let store = &task.workshop.store;
    let layer = shown(task, from, source)?;
    fs::create_dir(folder).map_err(|source| io_error(folder, source))?;
    let directory = File::open(folder).map_err(|source| io_error(folder, source))?;
    let tar = std::io::BufReader::new(store.open_blob(layer.0)?);
    crate::layer::unpack(tar, std::os::fd::AsFd::as_fd(&directory), task.workshop.marks())?;
    // A copy makes its destination anew; a mount shows the folder itself.
    let selected = select(folder);
    match files::source_meta(store, (task.root_of)(from), source)? {
        Some(meta) if is_folder(&selected) => own(task, &selected, (meta.mode, meta.uid, meta.gid)),
        _ => Ok(()),
    }
}

/// The selected files as a layer. What a stage has at a path stays the same while it is built with.
fn shown(task: &Task<'_>, from: OpId, source: &str) -> Result<DiffId, BuildError> {
    let known = || task.shown.lock().expect("no holder panics");
    let place = (from, source.to_owned());
    if let Some(layer) = known().get(&place) {
        return Ok(*layer);
    }
    let clock = Clock { now: LATEST_MTIME, epoch: None, commit: None };
    let op = selection(from, source);
    let layer = files::make_layer(&task.workshop.store, &op, &[], &task.root_of, clock)?;
    if is_stage(task, from) {
        known().insert(place, layer);
    }
    Ok(layer)
}

/// Whether it is a directory, and no link to one.
fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// Gives a file or directory, which is no link, the mode and owner that it is to have; where only one id is mapped, all
/// owners are that one.
pub(super) fn own(
    task: &Task<'_>,
    path: &Path,
    (mode, uid, gid): (u32, u32, u32),
) -> Result<(), BuildError> {
    if task.workshop.ability.get().privilege != Privilege::SingleId {
        let owned = std::os::unix::fs::lchown(path, Some(uid), Some(gid));
        owned.map_err(|source| io_error(path, source))?;
    }
    let changed = fs::set_permissions(path, fs::Permissions::from_mode(mode));
    changed.map_err(|source| io_error(path, source))
}

fn write_executable(path: &Path, content: &[u8]) -> Result<(), BuildError> {
    let written = fs::write(path, content)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
    written.map_err(|source| io_error(path, source))
}
