//! A user namespace for one process that root runs: its ids are a private range of the machine, so that whatever
//! breaks out of it is nobody outside; in files they are as always, by idmapped mounts.
//!
//! The root file system and every mount is set up by the init, which stays in the machine's own namespace; the process
//! enters this one as its last step. Knows neither snapshots nor who asks.

#![expect(unsafe_code, reason = "forks the process that a user namespace is born with")]

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::symlink},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags},
    pipe::PipeFlags,
    process::Signal,
};

use crate::sandbox::{
    Isolation, Mount, NetworkMode, ProcessSpec, RootFs, RootKind, SandboxError, UserIds,
    identity::{self, Mapping},
    inside,
    prepare::{self, Plan, setup},
    sys::{self, Forked, Sys},
    told::{At as _, Failure, Step},
};

/// Ids that a process has: 0 to 65535, as in every container.
const IDS: u32 = 65_536;

/// First id outside when `/etc/subuid` gives root no range: above what systemd gives to containers and below what it
/// keeps for files of others (<https://systemd.io/UIDS-GIDS>).
const FIRST_DEFAULT: u32 = 1_879_048_192;

/// Every signal: nothing that the tool handles may run in the holder.
const SIGNALS_ALL: u64 = u64::MAX;

/// Item of a failure that is about the root file system.
pub(super) const ROOT: usize = u32::MAX as usize;

/// The ids of a process and where its layers are mounted meanwhile.
pub(super) struct PrivateUsers {
    /// The user namespace.
    pub(super) namespace: OwnedFd,
    /// A network that belongs to it, in which the init is born: there the process's capabilities count (ports below
    /// 1024, ping). `None` for the machine's.
    pub(super) network: Option<OwnedFd>,
    first_uid: u32,
    first_gid: u32,
    /// What the init may do, and goes on to do as another id.
    capabilities: u64,
    /// Directories of overlay, and the places beside the work directory where they have the process's ids.
    layers: Vec<(CString, CString)>,
    /// Group of terminals.
    pub(super) terminal_group: CString,
}

/// Makes the namespace that a process asks for; `None` for none.
pub(super) fn plan(
    spec: &ProcessSpec,
    mapping: Mapping,
) -> Result<Option<PrivateUsers>, SandboxError> {
    if spec.users == UserIds::Host {
        return Ok(None);
    }
    check(spec, mapping)?;
    let failed = |error| setup(Step::Users.words(), error);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let range = |ranges: &str, accounts: &str| {
        first(&read(ranges), &read(accounts))
            .map_err(|taken| refused(&format!("{taken} is among its ids ({ranges}, {accounts})")))
    };
    let (first_uid, first_gid) =
        (range("/etc/subuid", "/etc/passwd")?, range("/etc/subgid", "/etc/group")?);
    let (namespace, network) = make(first_uid, first_gid, spec.network).map_err(|error| {
        let all_taken = error.raw_os_error() == Some(libc::ENOSPC);
        if all_taken {
            SandboxError::Unavailable { reason: ALL_TAKEN.to_owned(), help: MORE.to_owned() }
        } else {
            failed(error)
        }
    })?;
    let group = (first_gid + TERMINAL_GROUP).to_string();
    Ok(Some(PrivateUsers {
        namespace,
        network,
        first_uid,
        first_gid,
        capabilities: identity::permitted_capabilities(),
        layers: Vec::new(),
        terminal_group: CString::new(group).expect("digits hold no zero byte"),
    }))
}

/// What ENOSPC is here.
const ALL_TAKEN: &str = "`--userns private`: this machine allows no more user namespaces";
const MORE: &str = "`sysctl user.max_user_namespaces=15000` as root of this machine, or leave `--userns private` out";

/// `tty`, in images and in devpts(5).
const TERMINAL_GROUP: u32 = 5;

fn refused(reason: &str) -> SandboxError {
    let reason = format!("`--userns private`: {reason}");
    let help = "leave `--userns private` out";
    SandboxError::Unavailable { reason, help: help.to_owned() }
}

fn check(spec: &ProcessSpec, mapping: Mapping) -> Result<(), SandboxError> {
    if mapping != Mapping::Initial {
        return Err(refused("we are in a user namespace already, and so is every RUN"));
    }
    if spec.isolation == Isolation::Chroot {
        return Err(refused("--isolation chroot has no namespaces"));
    }
    if spec.rootfs.kind == RootKind::FuseOverlay {
        return Err(refused("what fuse-overlayfs serves cannot be mounted with other ids"));
    }
    let files = spec.mounts.iter().flat_map(|mount| match mount {
        Mount::Tmpfs(tmpfs) => tmpfs.files.as_slice(),
        Mount::Bind(_) => &[],
    });
    let of_files = files.flat_map(|(.., uid, gid)| [*uid, *gid]);
    let of_process = [spec.uid, spec.gid].into_iter().chain(spec.groups.iter().copied());
    let mut ids = of_process.chain(of_files);
    match ids.find(|id| *id >= IDS) {
        Some(id) => Err(refused(&format!("its ids end at {}, and {id} is asked for", IDS - 1))),
        None => Ok(()),
    }
}

/// Where the range begins: at root's own in `/etc/subuid`, else at a default. An account or a range of somebody else
/// within it is an error, and named.
fn first(ranges: &str, accounts: &str) -> Result<u32, String> {
    let parsed = |line: &str| -> Option<(String, u32, u32)> {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?.to_owned();
        Some((owner, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let all: Vec<(String, u32, u32)> = ranges.lines().filter_map(parsed).collect();
    let (own, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(owner, ..)| owner == "root" || owner == "0");
    let own = own.into_iter().find(|(_, first, count)| {
        *count >= IDS && *first > 0 && first.checked_add(*count).is_some()
    });
    let first = own.map_or(FIRST_DEFAULT, |(_, first, _)| first);
    let end = first + IDS;
    if let Some((owner, ..)) =
        others.iter().find(|(_, from, count)| *from < end && from.saturating_add(*count) > first)
    {
        return Err(format!("a range of {owner}"));
    }
    for line in accounts.lines() {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let id = fields.nth(1).and_then(|id| id.parse::<u32>().ok());
        if id.is_some_and(|id| (first..end).contains(&id)) {
            return Err(name.to_owned());
        }
    }
    Ok(first)
}

/// A user namespace with that range, and a network of it unless the process has the machine's. They are born with a
/// process, which is gone on return.
fn make(
    first_uid: u32,
    first_gid: u32,
    network: NetworkMode,
) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let own_network = match network {
        NetworkMode::Host => 0,
        NetworkMode::None | NetworkMode::Sandbox => libc::CLONE_NEWNET,
    };
    let (end, held) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mask = sys::set_signal_mask(SIGNALS_ALL)?;
    // SAFETY: the child makes system calls alone and never returns.
    let forked = unsafe { sys::fork(libc::CLONE_NEWUSER | own_network) };
    if matches!(forked, Ok(Forked::Child)) {
        hold(&end);
    }
    sys::set_signal_mask(mask)?;
    let Forked::Parent(pid, Some(holder)) = forked? else { unreachable!("a pidfd was asked for") };
    let made = (|| {
        let place = PathBuf::from(format!("/proc/{pid}"));
        fs::write(place.join("uid_map"), format!("0 {first_uid} {IDS}\n"))?;
        fs::write(place.join("gid_map"), format!("0 {first_gid} {IDS}\n"))?;
        let open = |name: &str| prepare::raised(fs::File::open(place.join(name))?.as_fd());
        let network = (own_network != 0).then(|| open("ns/net")).transpose()?;
        Ok((open("ns/user")?, network))
    })();
    drop(held);
    // Another process that is being started may still have its own copy.
    rustix::process::pidfd_send_signal(&holder, Signal::KILL)?;
    sys::wait(pid)?;
    made
}

/// The life of a holder: until nobody has the other end of its pipe any more. So it goes with the tool at whatever moment
/// that ends, and keeps no lock of it.
pub(super) fn hold(end: &OwnedFd) -> ! {
    let number = end.as_raw_fd().unsigned_abs();
    let closed = sys::close_range(0, number - 1).and(sys::close_range(number + 1, u32::MAX));
    while closed.is_ok() && rustix::io::read(end, &mut [0; 1]) == Err(Errno::INTR) {}
    sys::exit(0)
}

impl PrivateUsers {
    /// A user and a group as the machine counts them.
    pub(super) fn outside(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (self.first_uid + uid, self.first_gid + gid)
    }

    /// Makes places in `aid` for all directories of an overlay, under the names that it would have them by otherwise:
    /// `l/0`, `l/1` …, `u` and `w`. Upper and work directory have to be on one mount: that of the folder of both.
    pub(super) fn seat(
        &mut self,
        aid: &Path,
        lowers: &[&PathBuf],
        rootfs: &RootFs,
    ) -> io::Result<()> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
        let both = rootfs.upper.parent().filter(|folder| rootfs.work.starts_with(folder));
        let both =
            both.ok_or_else(|| io::Error::other("upper and work have no folder in common"))?;
        let numbered = lowers.iter().enumerate();
        let places = numbered.map(|(number, lower)| (lower.as_path(), format!("l/{number}")));
        for (source, place) in places.chain([(both, "m".to_owned())]) {
            fs::create_dir(aid.join(&place))?;
            let source = std::path::absolute(source)?;
            self.layers.push((text(&source)?, CString::new(place)?));
        }
        for (name, path) in [("u", &rootfs.upper), ("w", &rootfs.work)] {
            let below = path.strip_prefix(both).map_err(io::Error::other)?;
            symlink(Path::new("m").join(below), aid.join(name))?;
        }
        Ok(())
    }

    /// Whether the directories of an overlay have places of their own.
    pub(super) fn has_seats(&self) -> bool {
        !self.layers.is_empty()
    }

    /// Gives a mount that is nowhere yet the ids of the process.
    pub(super) fn map(&self, mount: &OwnedFd) -> Sys<()> {
        sys::map_mount(mount.as_fd(), self.namespace.as_fd())
    }
}

/// Runs in the init: mounts the layers with the process's ids, and makes what the init makes from now on the process's.
pub(super) fn begin(plan: &Plan) -> Result<(), Failure> {
    let Some(users) = &plan.users else { return Ok(()) };
    rustix::process::chdir(plan.aid.as_c_str()).at_item(Step::MapIds, ROOT)?;
    for (source, place) in &users.layers {
        seat_one(users, source, place).at_item(Step::MapIds, ROOT)?;
    }
    let (uid, gid) = users.outside((0, 0));
    sys::set_file_ids(uid, gid);
    // Ids take capabilities and the wish to end with the tool away.
    sys::set_capabilities(users.capabilities).at(Step::Users)?;
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).at(Step::Users)?;
    // It may have ended just then.
    inside::end_without_tool(plan).at(Step::Users)
}

fn seat_one(users: &PrivateUsers, source: &CStr, place: &CStr) -> Sys<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, source, flags)?;
    users.map(&mount)?;
    rustix::mount::move_mount(&mount, c"", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Runs in the process: enters the namespace, as its root, with mounts that are not the init's any more.
pub(super) fn enter(plan: &Plan) -> Result<(), Failure> {
    let Some(users) = &plan.users else { return Ok(()) };
    sys::enter_users(users.namespace.as_fd()).at(Step::Users)?;
    sys::unshare_mounts().at(Step::Users)?;
    sys::set_groups(&[], 0).at(Step::Users)?;
    sys::set_user(0).at(Step::Users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_root_s_own_or_one_of_nobody() {
        assert_eq!(first("", ""), Ok(FIRST_DEFAULT));
        let table = "a:100000:65536\nroot:500000:65535\nroot:700000:65536\n";
        assert_eq!(first(table, "root:x:0:0::/:/bin/sh\n"), Ok(700_000));
        assert_eq!(first("0:800000:70000\n", ""), Ok(800_000));
        // Never from 0: that is root, nor past the last id.
        assert_eq!(first("root:0:70000\nroot:4294967290:65536\n", ""), Ok(FIRST_DEFAULT));
        assert_eq!(first("root:700000:65536\nb:765535:1\n", ""), Err("a range of b".to_owned()));
        let account = format!("x:x:{}:0::/:/bin/sh\n", FIRST_DEFAULT + IDS - 1);
        assert_eq!(first("", &account), Err("x".to_owned()));
        assert_eq!(
            first("", &format!("x:x:{}:0::/:/bin/sh\n", FIRST_DEFAULT + IDS)),
            Ok(FIRST_DEFAULT)
        );
    }
}
