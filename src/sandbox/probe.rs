//! What a place can do, found by doing it: a process that sets everything up and then executes
//! nothing. Knows the ways out of the usual obstacles.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use crate::sandbox::{
    Ability, Enforcement, Environment, Isolation, NetworkMode, Obstacle, Privilege, Privileges,
    ProcessSpec, RootFs, RootKind, SandboxError, Snapshotter, UserIds, Wanted,
    cgroup::{self, Controller, Hierarchies},
    environment, identity, outside,
    sys::SharedMemory,
    told::{HostName, Step, Told},
};

/// A program that no root file system has.
const NOWHERE: &str = "/.idpbuilder-probe";

/// File in the probed folder that tells under which circumstances everything worked, and by which overlay: trying
/// again costs a third of a build in which nothing changed.
const MARK: &str = "sandbox-works";

/// What is remembered: ways that need no words.
const REMEMBERED: [Snapshotter; 2] = [Snapshotter::Overlay, Snapshotter::OverlayMount];

/// Folders that may take the changes of processes when the store's own file system cannot, best first.
const SCRATCH_FOLDERS: &[&str] = &["/var/tmp", "/tmp", "/dev/shm"];

/// Room that such a folder must have when nobody named it, in bytes.
const SCRATCH_BYTES_MIN: u64 = 256 << 20;

/// See [`super::probe`].
pub(super) fn probe(folder: &Path, wanted: &Wanted) -> Ability {
    try_out(folder, wanted, identity::privilege())
}

/// See [`super::ability`].
pub(super) fn ability(folder: &Path, wanted: &Wanted) -> Ability {
    let privilege = identity::privilege();
    let circumstances =
        if *wanted == Wanted::default() { circumstances(folder, privilege) } else { None };
    let mark = folder.join(MARK);
    let text = |way: Snapshotter| Some(format!("{}{}\n", circumstances.as_ref()?, way.name()));
    if let Some(scratch) = &wanted.scratch {
        sweep_one(scratch);
    }
    if let Ok(marked) = fs::read_to_string(&mark)
        && let Some(way) = REMEMBERED.into_iter().find(|way| text(*way).as_ref() == Some(&marked))
    {
        return complete(Found { snapshotter: way, ..Found::best() }, Ok(()), privilege);
    }
    sweep(folder);
    let ability = try_out(folder, wanted, privilege);
    let plain = ability.notes == notes(privilege)
        && ability.keeps_marks
        && REMEMBERED.contains(&ability.snapshotter);
    if let (true, Ok(()), Some(text)) = (plain, &ability.run, text(ability.snapshotter)) {
        // Whoever cannot write it tries again.
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        drop(options.open(&mark).and_then(|mut file| file.write_all(text.as_bytes())));
    }
    ability
}

/// One way to run processes.
#[derive(Clone, Debug)]
struct Found {
    snapshotter: Snapshotter,
    scratch: Option<PathBuf>,
    keeps_marks: bool,
    isolation: Isolation,
    users: UserIds,
    host_name: HostName,
}

impl Found {
    fn best() -> Self {
        let (snapshotter, isolation) = (Snapshotter::Overlay, Isolation::Full);
        let (users, host_name) = (UserIds::Host, HostName::Own);
        Self { snapshotter, scratch: None, keeps_marks: true, isolation, users, host_name }
    }
}

fn complete(found: Found, run: Result<(), SandboxError>, privilege: Privilege) -> Ability {
    let mut notes = notes(privilege);
    if run.is_ok() {
        notes.extend(downgrades(&found));
    }
    let mut ability = Ability {
        privilege,
        run: Ok(()),
        limits: enforcement(privilege),
        notes,
        snapshotter: found.snapshotter,
        scratch: found.scratch,
        keeps_marks: found.keeps_marks,
        isolation: found.isolation,
        users: found.users,
        environment: Environment::Root,
    };
    let step = run.as_ref().err().map_or("", step_of).to_owned();
    let reason = run.as_ref().err().map(|failed| match failed {
        SandboxError::Unavailable { reason, .. } => reason.clone(),
        SandboxError::Setup { .. } | SandboxError::Exec { .. } | SandboxError::Cancelled => {
            failed.to_string()
        }
    });
    let run_help = run.as_ref().err().and_then(help_of);
    let without_room = run.as_ref().err().filter(|failed| is_no_room(failed)).map(step_of);
    let without_room = without_room.map(str::to_owned);
    let unsaid = || Obstacle { reason: String::new(), help: String::new(), without_room };
    ability.run = run.map_err(|_| unsaid());
    ability.environment = environment::environment(&ability, &step);
    if let (Err(obstacle), Some(reason)) = (&mut ability.run, reason) {
        let help = match &run_help {
            Some(help) => help.clone(),
            None => help(&step, ability.environment),
        };
        (obstacle.reason, obstacle.help) = (reason, help);
    }
    ability
}

/// The way out of a failed step.
fn help(step: &str, environment: Environment) -> String {
    if step == Step::Overlay.words() {
        return "put the store on ext4, xfs, btrfs or tmpfs (`IDPBUILDER_HOME=FOLDER`), install fuse-overlayfs, or \
                use `--snapshotter copy`"
            .to_owned();
    }
    if step.starts_with(environment::WRITE) {
        return "choose a store that can be written to: `IDPBUILDER_HOME=FOLDER`".to_owned();
    }
    let improvement = environment.improvement();
    improvement.unwrap_or_else(|| "builds without RUN work".to_owned())
}

/// What is not as it should be, one line each.
fn downgrades(found: &Found) -> Vec<String> {
    let mut lines = Vec::new();
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let (missing, better) = match known.lines().any(|line| line.ends_with("\toverlay")) {
        true => (
            "the kernel's overlay cannot be mounted on the store",
            "a store on ext4, xfs, btrfs or tmpfs is faster",
        ),
        false => ("this kernel has no overlay", "`modprobe overlay` as root makes it faster"),
    };
    match found.snapshotter {
        Snapshotter::Overlay | Snapshotter::OverlayMount => {}
        Snapshotter::OverlayElsewhere => {
            let place = found.scratch.as_deref().unwrap_or(Path::new("another folder"));
            lines.push(format!(
                "the store's file system takes no overlay: changes are written to {}; {better}",
                place.display()
            ));
        }
        Snapshotter::FuseOverlay => {
            lines.push(format!("{missing}: fuse-overlayfs is used; {better}"));
        }
        Snapshotter::Copy if found.isolation == Isolation::Chroot => {}
        Snapshotter::Copy => {
            lines.push(format!("{missing}: every RUN works on a copy of all files; {better}"));
        }
    }
    if found.isolation == Isolation::Chroot {
        lines.push(
            "--isolation chroot: a RUN is not isolated: it shares the processes and the network of this place, and \
             has no /proc"
                .to_owned(),
        );
    }
    if found.isolation == Isolation::OuterProc {
        lines.push(
            "this container masks parts of /proc: a RUN sees the container's own /proc and its \
             processes; `--security-opt systempaths=unconfined` (Kubernetes: `procMount: Unmasked`) \
             gives it one of its own"
                .to_owned(),
        );
    }
    if found.host_name == HostName::Outer {
        lines.push(
            "the host name of a RUN is that of this container: sethostname(2) is forbidden here"
                .to_owned(),
        );
    }
    lines
}

/// Tries one way after the other; the first that works, or what is in the way of the best.
fn try_out(folder: &Path, wanted: &Wanted, privilege: Privilege) -> Ability {
    let keeps_marks = keeps_marks(folder, privilege);
    let mut isolation = wanted.isolation.unwrap_or_default();
    let users = wanted.users;
    let mut first_failure = None;
    // Without mounts there is nothing but a copy.
    let only = match isolation {
        Isolation::Chroot => Some(Snapshotter::Copy),
        Isolation::Full | Isolation::OuterProc => wanted.snapshotter,
    };
    let all = only.map_or_else(|| Snapshotter::ALL.to_vec(), |one| vec![one]);
    for snapshotter in all {
        for scratch in places(folder, snapshotter, wanted) {
            let place = scratch.as_deref().unwrap_or(folder);
            let mut tried = attempt(place, snapshotter.root(), (isolation, users));
            let masked = |failed: &SandboxError| step_of(failed) == Step::Proc.words();
            if isolation == Isolation::Full && tried.as_ref().is_err_and(masked) {
                let way = (Isolation::OuterProc, users);
                let again = attempt(place, snapshotter.root(), way);
                if again.as_ref().err().is_none_or(|failed| !masked(failed)) {
                    isolation = Isolation::OuterProc;
                    tried = again;
                }
            }
            let failed = match tried {
                Ok(host_name) => {
                    let found =
                        Found { snapshotter, scratch, keeps_marks, isolation, users, host_name };
                    return complete(found, Ok(()), privilege);
                }
                Err(failed) => failed,
            };
            let about_files = step_of(&failed) == Step::Overlay.words();
            first_failure.get_or_insert(failed);
            if !about_files {
                break;
            }
        }
        if first_failure.as_ref().is_some_and(|failed| step_of(failed) != Step::Overlay.words()) {
            break;
        }
    }
    let failed = first_failure.unwrap_or_else(|| SandboxError::Setup {
        step: Step::Overlay.words().to_owned(),
        source: io::Error::other(
            "no folder on another file system can be written to; name one: `--scratch FOLDER`",
        ),
    });
    complete(Found { keeps_marks, users, ..Found::best() }, Err(failed), privilege)
}

/// Where the changes could be written; `None` is the probed folder itself.
fn places(folder: &Path, snapshotter: Snapshotter, wanted: &Wanted) -> Vec<Option<PathBuf>> {
    if snapshotter != Snapshotter::OverlayElsewhere {
        return vec![None];
    }
    if let Some(named) = &wanted.scratch {
        return vec![Some(named.clone())];
    }
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    let suits = |path: &&Path| {
        let room = rustix::fs::statvfs(*path).map_or(0, |found| found.f_bavail * found.f_frsize);
        let forced = wanted.snapshotter.is_some();
        room >= SCRATCH_BYTES_MIN && (forced || device(path) != device(folder))
    };
    let folders = SCRATCH_FOLDERS.iter().map(Path::new).filter(suits);
    folders.map(|path| Some(path.to_owned())).collect()
}

/// Whether whiteouts and opaque directories can be kept in a folder.
fn keeps_marks(folder: &Path, privilege: Privilege) -> bool {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags};
    let Ok(place) = temporary_in(folder) else { return false };
    let name = match privilege {
        Privilege::Root => "trusted.overlay.opaque",
        Privilege::Mapped | Privilege::SingleId | Privilege::None => "user.overlay.opaque",
    };
    let whiteout = place.0.join("whiteout");
    let made = rustix::fs::mknodat(CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0);
    made.is_ok() && rustix::fs::setxattr(&place.0, name, b"y", XattrFlags::empty()).is_ok()
}

/// All that an answer depends on and that may change without this program noticing: the boot, the
/// namespaces, the rights and filters that we have, the mount that the folder is on, and this version.
/// `None` when it cannot be told, or when the namespace is one of this process alone.
fn circumstances(folder: &Path, privilege: Privilege) -> Option<String> {
    if privilege != Privilege::Root {
        return None;
    }
    let mut text = format!("{} {}\n", env!("CARGO_PKG_VERSION"), folder.display());
    text += &fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    for namespace in ["user", "mnt", "pid"] {
        let name = fs::read_link(format!("/proc/self/ns/{namespace}")).ok()?;
        text += &format!("{}\n", name.display());
    }
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let told = ["CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:", "Seccomp_filters:"];
    for line in status.lines().filter(|line| told.iter().any(|name| line.starts_with(name))) {
        text += &format!("{line}\n");
    }
    text += fs::read_to_string("/proc/self/attr/current").unwrap_or_default().trim();
    text += &format!("\n{:x}\n", rustix::fs::statfs(folder).ok()?.f_type);
    text += &format!("{}\n", fs::metadata(folder).ok()?.dev());
    Some(text)
}

fn notes(privilege: Privilege) -> Vec<String> {
    let mut notes = Vec::new();
    if privilege == Privilege::SingleId {
        notes.push(
            "one user id is mapped: ownership is recorded, not real; for real ownership install \
             `uidmap` and give this user ranges in /etc/subuid and /etc/subgid"
                .to_owned(),
        );
    }
    notes
}

/// The way out of a container whose group is ours to divide, and not empty.
const SHARED_BY_ROOT: &str = "processes are in the control group that is to be divided; move them into one below it: \
    `cd /sys/fs/cgroup && mkdir -p others && for pid in $(cat cgroup.procs); do echo $pid > others/cgroup.procs; done 2> /dev/null`";

/// Which limits can be enforced; also the moment at which left-over groups are removed.
fn enforcement(privilege: Privilege) -> Enforcement {
    let found = Hierarchies::found();
    found.sweep();
    let usable = found.usable();
    let has = |controller| usable.iter().any(|(one, _)| *one == controller);
    let versions: std::collections::BTreeSet<u8> =
        usable.iter().map(|(_, version)| *version).collect();
    let rootless = matches!(privilege, Privilege::Mapped | Privilege::SingleId);
    let mut ways: Vec<String> =
        versions.iter().map(|version| format!("control groups, version {version}")).collect();
    if rootless && !has(Controller::Pids) {
        ways.push("the limit of the user for the number of processes".to_owned());
    }
    let all = Controller::ALL.into_iter().all(has);
    let help = if all {
        ""
    } else if found.is_shared() {
        match privilege {
            Privilege::Root => SHARED_BY_ROOT,
            Privilege::Mapped | Privilege::SingleId | Privilege::None => {
                "other processes share the control group of this one; with systemd: `systemd-run --user --scope -p Delegate=yes idpbuilder …`"
            }
        }
    } else if privilege == Privilege::Root {
        "no control group can be written to; in a container, mount /sys/fs/cgroup read-write"
    } else {
        "no control group is delegated to this user; with systemd: `systemd-run --user --scope -p Delegate=yes idpbuilder …`"
    };
    Enforcement {
        by: if ways.is_empty() { "nothing".to_owned() } else { ways.join(", ") },
        memory: has(Controller::Memory),
        cpu: has(Controller::Cpu),
        pids: has(Controller::Pids) || rootless,
        help: help.to_owned(),
    }
}

/// Goes all the way to the execution of nothing.
fn attempt(
    folder: &Path,
    kind: RootKind,
    (isolation, users): (Isolation, UserIds),
) -> Result<HostName, SandboxError> {
    let made = temporary_in(folder);
    let place = made.as_ref().map_err(|error| SandboxError::Setup {
        step: format!("{}{}", environment::WRITE, folder.display()),
        source: io::Error::new(error.kind(), error.to_string()),
    })?;
    let spec = ProcessSpec {
        rootfs: RootFs {
            kind,
            lowers: Vec::new(),
            upper: place.0.join("upper"),
            work: place.0.join("work"),
        },
        argv: vec![NOWHERE.to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        hostname: "probe".to_owned(),
        network: NetworkMode::Host,
        mounts: Vec::new(),
        hosts: Vec::new(),
        resolv_conf: Vec::new(),
        isolation,
        privileges: Privileges::MayGrow,
        users,
        insecure: false,
        limits: crate::limits::Limits { pids: None, ..Default::default() },
        emulator: None,
    };
    let told = SharedMemory::<Told>::new().map_err(|errno| SandboxError::Setup {
        step: "share memory".to_owned(),
        source: errno.into(),
    })?;
    let go_on = Arc::new(AtomicBool::new(false));
    match outside::run_telling(&spec, &mut |_, _| {}, &go_on, told.get()) {
        Ok(_) | Err(SandboxError::Exec { .. }) => Ok(told.get().host_name()),
        Err(error) => Err(error),
    }
}

/// A folder that is removed when dropped.
struct Temporary(std::path::PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn temporary_in(folder: &Path) -> std::io::Result<Temporary> {
    let place = Temporary(own_folder(folder)?);
    for name in ["upper", "work"] {
        fs::create_dir(place.0.join(name))?;
    }
    Ok(place)
}

/// See [`super::own_folder`].
pub(super) fn own_folder(parent: &Path) -> std::io::Result<PathBuf> {
    const TRIES_MAX: u32 = 1000;
    for _ in 0..TRIES_MAX {
        let path = parent.join(format!(".{}", cgroup::own_name()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            // Others may write there, too; and before the machine was started anew, a process like this one did.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
    Err(std::io::Error::other("no name is free in it"))
}

/// See [`super::sweep`].
pub(super) fn sweep(folder: &Path) {
    SCRATCH_FOLDERS.iter().map(Path::new).chain([folder]).for_each(sweep_one);
}

/// Removes what programs that were killed have left in a folder.
fn sweep_one(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix('.'));
        if name.is_some_and(cgroup::is_left_over) {
            drop(Temporary(entry.path()));
        }
    }
}

/// The way out that a refusal brings with it.
fn help_of(failed: &SandboxError) -> Option<String> {
    match failed {
        SandboxError::Unavailable { help, .. } => Some(help.clone()),
        SandboxError::Setup { step, .. } if step.contains("--userns private") => {
            let help = "file systems with idmapped mounts (ext4, xfs, btrfs, tmpfs) and Linux 5.19 are needed, and overlay \
                        is none: put the store on one (`IDPBUILDER_HOME=FOLDER`), or leave `--userns private` out";
            Some(help.to_owned())
        }
        SandboxError::Setup { .. } | SandboxError::Exec { .. } | SandboxError::Cancelled => None,
    }
}

fn is_no_room(failed: &SandboxError) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    matches!(failed, SandboxError::Setup { source, .. } if kinds.contains(&source.kind()))
}

fn step_of(failed: &SandboxError) -> &str {
    if let SandboxError::Setup { step, .. } = failed { step } else { "" }
}
