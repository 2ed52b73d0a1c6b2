//! Root in a user namespace of our own: entered once, in place, before any thread is started.
//!
//! A helper process outside runs `newuidmap` and `newgidmap`, which give us all subordinate ids; where
//! they are missing we map our one id ourselves. Nothing is run again and nobody has to forward signals.

#![expect(unsafe_code, reason = "forks the helper and leaves the namespace of the caller")]

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
};

use rustix::{pipe::PipeFlags, process::Pid, thread::UnshareFlags};

use crate::sandbox::{
    Isolation, Privilege, environment, identity,
    identity::Mapping,
    sys::{self, Forked},
};

/// Where the programs that map subordinate ids are kept.
const FOLDERS: &[&str] = &["/usr/bin", "/usr/sbin", "/bin", "/run/wrappers/bin", "/usr/local/bin"];

/// Most ids mapped when nobody limits them.
const IDS_MAX: u32 = 65_536;

const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Without it nobody may map the id 0 of the namespace outside, its own included (user_namespaces(7), Linux 5.12).
const CAP_SETFCAP: u64 = 1 << 31;

/// See [`super::enter`].
pub(super) fn enter(isolation: Option<Isolation>) -> Privilege {
    let privilege = identity::privilege();
    let without = isolation == Some(Isolation::Chroot) && environment::may_chroot();
    let ready = match privilege {
        // Root in a container often may not mount; in a namespace that nobody maps it would be nobody.
        Privilege::Root => may_mount() || !may_map_root() || without,
        Privilege::Mapped | Privilege::SingleId => true,
        Privilege::None => false,
    };
    if ready { privilege } else { unshare().unwrap_or(privilege) }
}

/// Whether root may make a user namespace that it has an id in.
pub(super) fn may_map_root() -> bool {
    is_capable(CAP_SETFCAP)
}

/// Whether we may mount outside of a user namespace.
pub(super) fn may_mount() -> bool {
    is_capable(CAP_SYS_ADMIN)
}

fn is_capable(capability: u64) -> bool {
    identity::permitted_capabilities() & capability != 0
}

/// Ids to map: inside, outside, how many.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ranges(Vec<(u32, u32, u32)>);

impl Ranges {
    fn arguments(&self) -> Vec<String> {
        let numbers = self.0.iter().flat_map(|(inside, outside, count)| [inside, outside, count]);
        numbers.map(ToString::to_string).collect()
    }

    fn text(&self) -> String {
        let lines = self.0.iter();
        lines.map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect()
    }
}

fn unshare() -> io::Result<Privilege> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let us = rustix::process::getpid();
    let (wait, go) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the caller has started no thread, so the child may do as it likes.
    let mapper = match unsafe { sys::fork(0) }? {
        Forked::Child => {
            drop(go);
            sys::exit(map_from_outside(&wait, us, (uid, gid)))
        }
        Forked::Parent(pid, _) => pid,
    };
    drop(wait);
    // SAFETY: there is one thread, and no descriptor or directory that it would take from others.
    let unshared =
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) };
    if unshared.is_ok() {
        rustix::io::write(&go, b"!")?;
    }
    drop(go);
    let mapped = sys::wait(mapper)?.status == 0;
    unshared?;
    if !mapped {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/gid_map", Ranges(vec![(0, gid, 1)]).text())?;
        fs::write("/proc/self/uid_map", Ranges(vec![(0, uid, 1)]).text())?;
    }
    if mapped {
        sys::set_groups(&[], 0)?;
    }
    sys::set_user(0)?;
    // Changing the user closed our own /proc entries to us.
    sys::prctl(libc::PR_SET_DUMPABLE, 1, 0)?;
    Ok(match identity::mapping()? {
        Mapping::Single => Privilege::SingleId,
        Mapping::Initial | Mapping::Many => Privilege::Mapped,
    })
}

/// Runs in the helper: waits until `target` is in its namespace, then maps; the exit code.
fn map_from_outside(wait: &OwnedFd, target: Pid, (uid, gid): (u32, u32)) -> i32 {
    let mut byte = [0];
    if !matches!(rustix::io::read(wait, &mut byte), Ok(1)) {
        return 1;
    }
    let mapped = match uid {
        0 => map_as_root(target),
        uid => map_by_programs(target, (uid, gid)),
    };
    i32::from(mapped.is_none())
}

/// Root without the capability to mount may still map ids to themselves.
fn map_as_root(target: Pid) -> Option<()> {
    let ranges = Ranges(vec![(0, 0, IDS_MAX)]).text();
    let folder = format!("/proc/{}", target.as_raw_nonzero());
    fs::write(Path::new(&folder).join("gid_map"), &ranges).ok()?;
    fs::write(Path::new(&folder).join("uid_map"), &ranges).ok()
}

fn map_by_programs(target: Pid, (uid, gid): (u32, u32)) -> Option<()> {
    let name = fs::read_to_string("/etc/passwd").ok().and_then(|text| name_of(&text, uid));
    for (program, file, own) in
        [("newuidmap", "/etc/subuid", uid), ("newgidmap", "/etc/subgid", gid)]
    {
        let text = fs::read_to_string(file).ok()?;
        let ranges = ranges(&text, (uid, name.as_deref()), own)?;
        let folder = FOLDERS.iter().find(|folder| Path::new(folder).join(program).exists())?;
        let mut command = Command::new(Path::new(folder).join(program));
        command.arg(target.as_raw_nonzero().to_string()).args(ranges.arguments());
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().ok().filter(|status| status.success())?;
    }
    Some(())
}

fn name_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Our own id becomes 0, the subordinate ones follow; `None` when there are none.
fn ranges(table: &str, (uid, name): (u32, Option<&str>), own: u32) -> Option<Ranges> {
    let mut ranges = vec![(0, own, 1)];
    let mut inside: u32 = 1;
    for line in table.lines() {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        if owner.parse() != Ok(uid) && Some(owner) != name {
            continue;
        }
        let (Some(Ok(first)), Some(Ok(count))) =
            (fields.next().map(str::parse::<u32>), fields.next().map(str::parse::<u32>))
        else {
            continue;
        };
        let Some(next) = inside.checked_add(count) else { break };
        ranges.push((inside, first, count));
        inside = next;
    }
    (ranges.len() > 1).then_some(Ranges(ranges))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_follow_our_own() {
        let table = "root:1:2\nalice:100000:65536\n# comment\n1000:300000:10\nalice:x:y\n";
        assert_eq!(
            ranges(table, (1000, Some("alice")), 1000),
            Some(Ranges(vec![(0, 1000, 1), (1, 100_000, 65_536), (65_537, 300_000, 10)]))
        );
        assert_eq!(ranges(table, (1001, Some("bob")), 1001), None);
        assert_eq!(ranges("", (1000, None), 1000), None);
        assert_eq!(name_of("root:x:0:0::/:/bin/sh\na:x:1000:7::/:\n", 1000), Some("a".to_owned()));
    }
}
