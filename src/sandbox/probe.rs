//! What a place can do, found by doing it: a process that sets everything up and then executes
//! nothing. Knows the ways out of the usual obstacles.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use crate::sandbox::{
    Ability, Enforcement, NetworkMode, Obstacle, Privilege, ProcessSpec, RootFs, SandboxError,
    cgroup::{Controller, Hierarchies},
    identity, outside,
    told::Step,
};

/// A program that no root file system has.
const NOWHERE: &str = "/.idpbuilder-probe";

/// File in the probed folder that tells under which circumstances everything worked: trying again costs
/// a third of a build in which nothing changed.
const MARK: &str = "sandbox-works";

const USER_NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";
const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

/// See [`super::probe`].
pub(super) fn probe(folder: &Path) -> Ability {
    try_out(folder, identity::privilege())
}

/// See [`super::ability`].
pub(super) fn ability(folder: &Path) -> Ability {
    let privilege = identity::privilege();
    let circumstances = circumstances(folder, privilege);
    let mark = folder.join(MARK);
    let works = circumstances.is_some() && fs::read_to_string(&mark).ok() == circumstances;
    let ability = if works {
        let (limits, notes) = (enforcement(privilege), notes(privilege));
        Ability { privilege, run: Ok(()), overlay: Ok(()), limits, notes }
    } else {
        try_out(folder, privilege)
    };
    if let (false, Ok(()), Some(text)) = (works, &ability.run, circumstances) {
        // Whoever cannot write it tries again.
        drop(fs::write(&mark, text));
    }
    ability
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

fn try_out(folder: &Path, privilege: Privilege) -> Ability {
    let (run, overlay) = match attempt(folder) {
        Ok(()) => (Ok(()), Ok(())),
        Err(failed) => {
            let obstacle = obstacle(&failed, privilege);
            let mounted = passed_overlay(step_of(&failed));
            let overlay = if mounted { Ok(()) } else { Err(obstacle.clone()) };
            (Err(obstacle), overlay)
        }
    };
    Ability { privilege, run, overlay, limits: enforcement(privilege), notes: notes(privilege) }
}

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
fn attempt(folder: &Path) -> Result<(), SandboxError> {
    let made = temporary_in(folder);
    let place = made.as_ref().map_err(|error| SandboxError::Setup {
        step: format!("write in {}", folder.display()),
        source: std::io::Error::new(error.kind(), error.to_string()),
    })?;
    let spec = ProcessSpec {
        rootfs: RootFs {
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
        insecure: false,
        limits: crate::limits::Limits { pids: None, ..Default::default() },
    };
    match outside::run(&spec, &mut |_, _| {}, &Arc::new(AtomicBool::new(false))) {
        Ok(_) | Err(SandboxError::Exec { .. }) => Ok(()),
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
    let place = Temporary(folder.join(format!(".probe-{}", std::process::id())));
    for name in ["upper", "work"] {
        fs::create_dir_all(place.0.join(name))?;
    }
    Ok(place)
}

/// Whether a step comes after the mounting of overlay.
fn passed_overlay(step: &str) -> bool {
    let after = [Step::Proc, Step::Sys, Step::Dev, Step::Mask, Step::EtcFile, Step::Pivot];
    let late = [Step::Fork, Step::Capabilities, Step::User, Step::Filter];
    after.iter().chain(&late).any(|after| step.starts_with(after.words()))
}

fn step_of(failed: &SandboxError) -> &str {
    if let SandboxError::Setup { step, .. } = failed { step } else { "" }
}

fn obstacle(failed: &SandboxError, privilege: Privilege) -> Obstacle {
    let step = step_of(failed);
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let help = if privilege == Privilege::None && number(USER_NAMESPACES) == Some(0) {
        "user namespaces are switched off: `sysctl user.max_user_namespaces=15000`, or run as root"
    } else if privilege == Privilege::None && number(APPARMOR) == Some(1) {
        "AppArmor refuses user namespaces to unconfined programs: give this program a profile with \
         `userns,`, or `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or run as root"
    } else if privilege == Privilege::None {
        "user namespaces are refused here: in a container start it with \
         `--security-opt seccomp=unconfined --security-opt systempaths=unconfined` (Kubernetes: \
         `hostUsers: false` and `procMount: Unmasked`), or run as root; builds without RUN work"
    } else if step == Step::Overlay.words() {
        "overlay cannot be mounted on this file system: put the store on ext4, xfs, btrfs or tmpfs, \
         not on another overlay or a network"
    } else if step == Step::Proc.words() {
        "this container masks parts of /proc: start it with \
         `--security-opt systempaths=unconfined` (Kubernetes: `procMount: Unmasked`)"
    } else {
        "this place refuses mounts or namespaces: start the container with \
         `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`, or `--privileged`; \
         builds without RUN work"
    };
    Obstacle { reason: failed.to_string(), help: help.to_owned() }
}
