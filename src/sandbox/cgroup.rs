//! Control groups: one for each process that is run, with its limits; made before, removed afterwards.
//!
//! Version 1 (a hierarchy for each controller) and version 2 (one for all), as far as we may write to
//! them. Knows files and numbers; the process joins by itself, or is born inside.

mod seat;

pub(super) use seat::leave;

use std::{
    fs,
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::limits::{CPU_PERIOD_US_DEFAULT, Limits};

/// First word of our groups' names.
const PREFIX: &str = "idpbuilder";

/// How long what was killed may take to leave its group, on a machine that has much else to do.
const REMOVAL_MAX: Duration = Duration::from_secs(5);

/// Time between two looks at whether it has.
const REMOVAL_LOOK_EVERY: Duration = Duration::from_millis(1);

/// Groups beside our own that are looked into for what was left there.
const NEIGHBOURS_MAX: usize = 256;

/// In the place of when a process was started, where it could not be told.
const UNKNOWN: u64 = 0;

/// Numbers the groups of this program.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A kind of limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Pids,
    Cpu,
}

impl Controller {
    pub(super) const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    /// Its name to the kernel.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

/// Where groups of ours can be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    /// Version 1: controllers, the mount, and our own group in it.
    v1: Vec<Hierarchy>,
    v2: Option<Hierarchy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    controllers: Vec<String>,
    mount: PathBuf,
    own: PathBuf,
}

impl Hierarchies {
    /// Those of this process.
    pub(super) fn found() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&text("/proc/self/mountinfo"), &text("/proc/self/cgroup"))
    }

    fn parse(mountinfo: &str, groups: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let ([_, _, _, root, mount, ..], [kind, _, options, ..]) = (&left[..], &right[..])
            else {
                continue;
            };
            let options: Vec<&str> = options.split(',').collect();
            for group in groups.lines() {
                let mut fields = group.splitn(3, ':');
                let (Some(number), Some(names), Some(path)) =
                    (fields.next(), fields.next(), fields.next())
                else {
                    continue;
                };
                // A mount in a container shows a part: what is above its root cannot be reached.
                let own = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
                let own = own.strip_prefix("/").unwrap_or(own).to_owned();
                let names: Vec<String> = names.split(',').map(str::to_owned).collect();
                let hierarchy =
                    Hierarchy { controllers: names.clone(), mount: PathBuf::from(mount), own };
                let is_v1 =
                    *kind == "cgroup" && names.iter().all(|n| options.contains(&n.as_str()));
                if *kind == "cgroup2" && number == "0" && found.v2.is_none() {
                    found.v2 = Some(hierarchy);
                } else if is_v1 && !found.v1.contains(&hierarchy) {
                    found.v1.push(hierarchy);
                }
            }
        }
        found
    }

    fn v1_of(&self, controller: Controller) -> Option<&Hierarchy> {
        let name = controller.name();
        self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|one| one == name))
    }

    /// Which limits can be enforced, without making a group.
    pub(super) fn usable(&self) -> Vec<(Controller, u8)> {
        let mut usable = Vec::new();
        for controller in Controller::ALL {
            if let Some(hierarchy) = self.v1_of(controller) {
                if may_write(&hierarchy.mount.join(&hierarchy.own)) {
                    usable.push((controller, 1));
                }
                continue;
            }
            let mut parents = self.v2.iter().flat_map(Hierarchy::parents);
            if parents.any(|folder| seat::can_enable(&folder, controller)) {
                usable.push((controller, 2));
            }
        }
        usable
    }

    /// Whether version 2 would let us make groups, were it not for other processes in ours.
    pub(super) fn is_shared(&self) -> bool {
        self.v2.iter().flat_map(Hierarchy::parents).any(|folder| seat::is_shared(&folder))
    }

    /// Removes the groups that programs which are gone have left.
    pub(super) fn sweep(&self) {
        let mut folders: Vec<PathBuf> =
            self.v1.iter().map(|one| one.mount.join(&one.own)).collect();
        folders.extend(self.v2.iter().flat_map(Hierarchy::parents));
        folders.extend(self.v1.iter().chain(&self.v2).flat_map(Hierarchy::beside));
        for folder in folders {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if is_left_over(&name) {
                    remove(&entry.path());
                }
            }
        }
    }
}

impl Hierarchy {
    /// Version 2: the groups that ours could stand in, best first. Root keeps them at the top, as other
    /// builders do; everybody else has their own group.
    fn parents(&self) -> Vec<PathBuf> {
        let own = seat::above(self.mount.join(&self.own));
        if own == self.mount { vec![own] } else { vec![self.mount.clone(), own] }
    }

    /// The groups beside our own: a session or job before this one ran there.
    fn beside(&self) -> Vec<PathBuf> {
        let Some(above) = self.own.parent() else { return Vec::new() };
        let entries = fs::read_dir(self.mount.join(above)).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.map(|entry| entry.path()).take(NEIGHBOURS_MAX).collect()
    }

    /// Version 2: the group that somebody names, made when missing, with the controllers of those above it.
    fn named(&self, path: &Path) -> io::Result<PathBuf> {
        let mut group = self.mount.clone();
        for name in path {
            seat::enable(&group);
            group.push(name);
            match fs::create_dir(&group) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    let text = format!("{}: {error}", group.display());
                    return Err(io::Error::new(error.kind(), text));
                }
                _ => {}
            }
        }
        Ok(group)
    }
}

fn has_word(folder: &Path, file: &str, controller: Controller) -> bool {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    text.split_whitespace().any(|word| word == controller.name())
}

fn may_write(folder: &Path) -> bool {
    use rustix::fs::{Access, AtFlags, CWD};
    rustix::fs::accessat(CWD, folder, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// What was noticed of the limits while a process ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pressure {
    /// Processes killed because memory ran out.
    pub(super) oom_kills: u64,
    /// Processes that could not be started because there were too many.
    pub(super) forks_refused: u64,
}

/// The groups of one process; emptied and removed when dropped.
#[derive(Debug, Default)]
pub(super) struct Cgroup {
    folders: Vec<(Controller, PathBuf)>,
    /// Files to write `0` to in order to join.
    pub(super) joins: Vec<OwnedFd>,
    /// Version 2: the group to be born into.
    pub(super) birthplace: Option<OwnedFd>,
    version: u8,
}

impl Cgroup {
    /// Makes groups for what is limited and can be; [`Cgroup::enforces`] tells what that is.
    pub(super) fn new(found: &Hierarchies, limits: &Limits) -> io::Result<Self> {
        let mut group = Self::default();
        let wanted: Vec<Controller> = Controller::ALL
            .into_iter()
            .filter(|one| !settings(*one, 1, limits).is_empty())
            .collect();
        let name = own_name();
        for controller in &wanted {
            let Some(hierarchy) = found.v1_of(*controller) else { continue };
            let above = limits.cgroup_parent.as_ref();
            let parent = above.map_or_else(
                || hierarchy.mount.join(&hierarchy.own),
                |parent| hierarchy.mount.join(parent),
            );
            // One hierarchy may have several controllers.
            let known = group.folders.iter().any(|(_, folder)| *folder == parent.join(&name));
            if above.is_some() {
                fs::create_dir_all(&parent)?;
            }
            if !known && make(&parent.join(&name)).is_err() {
                continue;
            }
            group.folders.push((*controller, parent.join(&name)));
            group.version = 1;
            group.apply(*controller, limits)?;
            if !known {
                group.joins.push(open_to_write(&parent.join(&name).join("tasks"))?);
            }
        }
        if let (Some(v2), true) = (&found.v2, group.folders.is_empty() && !wanted.is_empty()) {
            group.make_unified(v2, &wanted, limits, &name)?;
        }
        Ok(group)
    }

    fn make_unified(
        &mut self,
        v2: &Hierarchy,
        wanted: &[Controller],
        limits: &Limits,
        name: &str,
    ) -> io::Result<()> {
        let parents = match &limits.cgroup_parent {
            Some(parent) => vec![v2.named(Path::new(parent))?],
            None => v2.parents(),
        };
        for parent in parents {
            seat::enable(&parent);
            let (here, missing): (Vec<&Controller>, Vec<&Controller>) =
                wanted.iter().partition(|one| has_word(&parent, "cgroup.subtree_control", **one));
            if let (Some(one), true) = (missing.first(), limits.cgroup_parent.is_some()) {
                let reason = format!("{} has no controller `{}`", parent.display(), one.name());
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
            if here.is_empty() || make(&parent.join(name)).is_err() {
                continue;
            }
            self.version = 2;
            let folder = parent.join(name);
            for controller in here {
                self.folders.push((*controller, folder.clone()));
                self.apply(*controller, limits)?;
            }
            self.birthplace = Some(OwnedFd::from(fs::File::open(&folder)?));
            self.joins.push(open_to_write(&folder.join("cgroup.procs"))?);
            return Ok(());
        }
        Ok(())
    }

    fn apply(&self, controller: Controller, limits: &Limits) -> io::Result<()> {
        let Some((_, folder)) = self.folders.iter().find(|(one, _)| *one == controller) else {
            return Ok(());
        };
        for (file, value, need) in settings(controller, self.version, limits) {
            let written = open_to_write(&folder.join(file))
                .and_then(|file| fs::File::from(file).write_all(value.as_bytes()));
            match (written, need) {
                // Swap is not counted everywhere.
                (Err(_), Need::Wish) => {}
                (Err(error), Need::Must) => {
                    let place = folder.join(file);
                    let text = format!("{value} into {}: {error}", place.display());
                    return Err(io::Error::new(error.kind(), text));
                }
                (Ok(()), _) => {}
            }
        }
        Ok(())
    }

    /// Whether a kind of limit is in force.
    pub(super) fn enforces(&self, controller: Controller) -> bool {
        self.folders.iter().any(|(one, _)| *one == controller)
    }

    /// Controllers of version 1 that have groups: what `/sys/fs/cgroup` shows inside.
    pub(super) fn shown(&self) -> impl Iterator<Item = Controller> {
        let v1 = self.version == 1;
        self.folders.iter().filter(move |_| v1).map(|(controller, _)| *controller)
    }

    pub(super) fn pressure(&self) -> Pressure {
        let count = |controller: Controller, file: &str, word: &str| {
            let folder = self.folders.iter().find(|(one, _)| *one == controller);
            let text = folder.and_then(|(_, folder)| fs::read_to_string(folder.join(file)).ok());
            text.and_then(|text| value_of(&text, word)).unwrap_or(0)
        };
        let oom = if self.version == 2 { "memory.events" } else { "memory.oom_control" };
        Pressure {
            oom_kills: count(Controller::Memory, oom, "oom_kill"),
            forks_refused: count(Controller::Pids, "pids.events", "max"),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for (_, folder) in &self.folders {
            remove(folder);
        }
    }
}

/// Whether a value that cannot be set is a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Must,
    Wish,
}

/// The files of a controller and what is written to them, in order; none when nothing is limited.
fn settings(
    controller: Controller,
    version: u8,
    limits: &Limits,
) -> Vec<(&'static str, String, Need)> {
    let mut all = Vec::new();
    match (controller, version) {
        (Controller::Pids, _) => {
            all.extend(limits.pids.map(|pids| ("pids.max", pids.to_string(), Need::Must)));
        }
        (Controller::Memory, version) => {
            let Some(memory) = limits.memory else { return all };
            let total = limits.memory_and_swap.unwrap_or_else(|| memory.saturating_mul(2));
            if version == 1 {
                let total = if total == u64::MAX { "-1".to_owned() } else { total.to_string() };
                all.push(("memory.limit_in_bytes", memory.to_string(), Need::Must));
                all.push(("memory.memsw.limit_in_bytes", total, Need::Wish));
            } else {
                let swap = match total {
                    u64::MAX => "max".to_owned(),
                    total => total.saturating_sub(memory).to_string(),
                };
                all.push(("memory.max", memory.to_string(), Need::Must));
                all.push(("memory.swap.max", swap, Need::Wish));
            }
        }
        (Controller::Cpu, version) => {
            let period = limits.cpu_period_us.unwrap_or(CPU_PERIOD_US_DEFAULT);
            if let Some(shares) = limits.cpu_shares {
                all.push(match version {
                    1 => ("cpu.shares", shares.to_string(), Need::Must),
                    // The kernel documentation's scale: 2 to 262144 onto 1 to 10000.
                    _ => ("cpu.weight", weight(shares).to_string(), Need::Must),
                });
            }
            match (limits.cpu_quota_us, version) {
                (Some(quota), 1) => {
                    all.push(("cpu.cfs_period_us", period.to_string(), Need::Must));
                    all.push(("cpu.cfs_quota_us", quota.to_string(), Need::Must));
                }
                (Some(quota), _) => all.push(("cpu.max", format!("{quota} {period}"), Need::Must)),
                (None, _) => {}
            }
        }
    }
    all
}

fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn make(folder: &Path) -> io::Result<()> {
    let made = fs::create_dir(folder);
    made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))
}

fn open_to_write(file: &Path) -> io::Result<OwnedFd> {
    Ok(OwnedFd::from(fs::OpenOptions::new().write(true).open(file)?))
}

/// Kills what is in a group and those below it, and removes them. What stays in spite of that is the next start's.
fn remove(folder: &Path) {
    let until = Instant::now() + REMOVAL_MAX;
    while !is_removed(folder) && Instant::now() < until {
        std::thread::sleep(REMOVAL_LOOK_EVERY);
    }
}

/// Tries once; whether the group is gone, or cannot go whatever is killed.
fn is_removed(folder: &Path) -> bool {
    let removed = || match fs::remove_dir(folder) {
        Err(error) => error.kind() != io::ErrorKind::ResourceBusy,
        Ok(()) => true,
    };
    if removed() {
        return true;
    }
    kill_all(folder);
    // A process that may do everything makes groups of its own.
    let below: Vec<fs::DirEntry> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
    for entry in below {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            is_removed(&entry.path());
        }
    }
    removed()
}

/// Kills everything in a group.
fn kill_all(folder: &Path) {
    let at_once = open_to_write(&folder.join("cgroup.kill"))
        .and_then(|file| fs::File::from(file).write_all(b"1"));
    if at_once.is_ok() {
        return;
    }
    let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for member in members.lines().filter_map(|line| line.parse().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(member) {
            // An error says that it has ended already.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// A name for something of this process, by which [`is_left_over`] tells when it is gone.
fn name(which: &str) -> String {
    let us = std::process::id();
    let begun = started(us).ok().flatten().unwrap_or(UNKNOWN);
    format!("{PREFIX}-{}-{us}-{begun}-{which}", pid_namespace())
}

/// A new name for something of this process.
pub(super) fn own_name() -> String {
    name(&NEXT.fetch_add(1, Relaxed).to_string())
}

/// Whether something was made by a program of this process namespace that is gone.
pub(super) fn is_left_over(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    let parts: Vec<&str> = rest.split('-').collect();
    match parts[..] {
        [namespace, pid, begun, _] => {
            let (Ok(pid), Ok(begun)) = (pid.parse::<u32>(), begun.parse::<u64>()) else {
                return false;
            };
            // Whoever cannot look takes nothing away.
            let is_another =
                |now: Option<u64>| now.is_none_or(|now| begun != UNKNOWN && now != begun);
            namespace == pid_namespace() && started(pid).is_ok_and(is_another)
        }
        _ => false,
    }
}

/// When a process was started, in ticks since boot; `None` when it is not there.
fn started(pid: u32) -> io::Result<Option<u64>> {
    const START_TIME: usize = 19;
    // The name in brackets may hold anything, even what is no text.
    let stat = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => String::from_utf8_lossy(&stat).into_owned(),
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let field = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(START_TIME));
    let begun = field.and_then(|field| field.parse().ok());
    begun.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether a look at a process found it gone: before the look, or in the middle of it.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Number of our process namespace: numbers of processes mean something in it alone.
fn pid_namespace() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().chars().filter(char::is_ascii_digit).collect()
}

/// The number behind a word at the beginning of a line.
fn value_of(text: &str, word: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == word).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests;
