//! The root file system of a process, mounted from inside its own mount namespace.
//!
//! Every target is found by `openat2` within the root, never by a path of the host, and every mount
//! is attached to a descriptor: a link in the image cannot lead anywhere. Makes system calls only.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Uid},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags,
    },
};

use crate::sandbox::{
    Isolation,
    points::{self, Record},
    prepare::{
        Console, Content, OVERLAY_OPTIONS, Plan, PlannedBind, PlannedMount, PlannedRoot,
        PlannedTmpfs, Shield,
    },
    sys::{self, Depth, Sys},
    terminal,
    told::{At as _, Failure, PointKind, Step, Told},
    userns,
};

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const PLAIN: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
const DATA: u64 = PLAIN | libc::MOUNT_ATTR_NOEXEC;

/// Device files that every process sees: name, major, minor.
pub(super) const DEVICES: &[(&CStr, u32, u32)] = &[
    (c"null", 1, 3),
    (c"zero", 1, 5),
    (c"full", 1, 7),
    (c"random", 1, 8),
    (c"urandom", 1, 9),
    (c"tty", 5, 0),
];

/// Links in `/dev`: name and text.
const DEVICE_LINKS: &[(&CStr, &CStr)] = &[
    (c"ptmx", c"pts/ptmx"),
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"core", c"/proc/kcore"),
];

/// Kernel interfaces that are hidden, as Docker hides them.
const MASKED: &[&CStr] = &[
    c"proc/acpi",
    c"proc/asound",
    c"proc/interrupts",
    c"proc/kcore",
    c"proc/keys",
    c"proc/latency_stats",
    c"proc/timer_list",
    c"proc/timer_stats",
    c"proc/sched_debug",
    c"proc/scsi",
    c"sys/firmware",
    c"sys/devices/virtual/powercap",
];

/// Kernel interfaces that may only be read, as with Docker.
const READ_ONLY_PATHS: &[&CStr] =
    &[c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys", c"proc/sysrq-trigger"];

/// Mounts everything and makes it the root of this process.
pub(super) fn enter(plan: &Plan, told: &Told) -> Result<(), Failure> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", private).at(Step::Isolate)?;
    let sources = open_sources(plan)?;
    userns::begin(plan)?;
    let root = root_file_system(plan).at(Step::Overlay)?;
    let root = root.as_fd();
    proc(root, plan, told).at(Step::Proc)?;
    system(root, plan, told).at(Step::Sys)?;
    devices(root, plan, told).at(Step::Dev)?;
    if plan.shield == Shield::Full {
        mask(root, plan).at(Step::Mask)?;
    }
    for (index, file) in plan.etc_files.iter().enumerate() {
        etc_file(root, file, plan, told).at_item(Step::EtcFile, index)?;
    }
    for (index, (mount, source)) in plan.mounts.iter().zip(&sources).enumerate() {
        match (mount, source) {
            (PlannedMount::Bind(bind), Some(source)) => {
                attach_bind(root, bind, source, told).at_item(Step::Bind, index)?;
            }
            (PlannedMount::Tmpfs(tmpfs), _) => {
                mount_tmpfs(root, tmpfs, plan, told).at_item(Step::Tmpfs, index)?;
            }
            (PlannedMount::Bind(_), None) => Err(Errno::BADF).at_item(Step::Bind, index)?,
        }
    }
    points::find(root, &plan.cwd, PointKind::Directory, Record::Nothing)
        .at(Step::MakeWorkingDirectory)?;
    pivot(root).at(Step::Pivot)
}

/// The source of each mount that has one, opened while the host can still be seen. A fixed array,
/// because nothing may be allocated here.
fn open_sources(plan: &Plan) -> Result<Sources, Failure> {
    let mut sources = [const { None }; MOUNTS_MAX];
    for (index, (mount, place)) in plan.mounts.iter().zip(&mut sources).enumerate() {
        if let PlannedMount::Bind(bind) = mount {
            let source = source_of(bind).at_item(Step::Bind, index)?;
            if let Some(users) = &plan.users {
                users.map(&source).at_item(Step::MapIds, index)?;
            }
            *place = Some(source);
        }
    }
    Ok(sources)
}

/// How often a place in a cache that leads out of it is looked at again: who shares the cache may be replacing it.
const EXCHANGES_MAX: usize = 100;
const EXCHANGE_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

fn source_of(bind: &PlannedBind) -> Sys<OwnedFd> {
    let Some(inside) = &bind.inside else { return clone_mount(&bind.source) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(bind.source.as_c_str(), flags, Mode::empty())?;
    let confined = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut tries = 1;
    let found = loop {
        match rustix::fs::openat2(&folder, inside.as_c_str(), flags, Mode::empty(), confined) {
            Err(Errno::XDEV | Errno::AGAIN) if tries < EXCHANGES_MAX => tries += 1,
            found => break found?,
        }
        // An interrupted wait is a short one.
        let _ = rustix::thread::nanosleep(&EXCHANGE_WAIT);
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(&found, c"", flags)
}

/// Mounts that one process may have.
pub(super) const MOUNTS_MAX: usize = 128;

type Sources = [Option<OwnedFd>; MOUNTS_MAX];

/// The root file system, mounted somewhere in our namespace.
fn root_file_system(plan: &Plan) -> Sys<OwnedFd> {
    let seat = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match &plan.root {
        PlannedRoot::Overlay(lowers) => overlay(plan, lowers),
        PlannedRoot::ByMount(options) => {
            let nodev = rustix::mount::MountFlags::NODEV;
            let flags = match plan.shield {
                Shield::Full => nodev,
                Shield::Open => rustix::mount::MountFlags::empty(),
            };
            rustix::process::chdir(plan.aid.as_c_str())?;
            let options = Some(options.as_c_str());
            rustix::mount::mount(c"overlay", c"root", c"overlay", flags, options)?;
            rustix::fs::open(plan.seat.as_c_str(), seat, Mode::empty())
        }
        PlannedRoot::Served(_) => {
            let root = rustix::fs::open(plan.seat.as_c_str(), seat, Mode::empty())?;
            forbid_devices(plan, root.as_fd())?;
            Ok(root)
        }
        PlannedRoot::Plain => {
            let root = clone_mount(&plan.upper)?;
            if let Some(users) = &plan.users {
                users.map(&root)?;
            }
            forbid_devices(plan, root.as_fd())?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(&root, c"", CWD, plan.seat.as_c_str(), flags)?;
            Ok(root)
        }
    }
}

fn forbid_devices(plan: &Plan, root: BorrowedFd<'_>) -> Sys<()> {
    match plan.shield {
        Shield::Full => sys::set_mount_attributes(root, libc::MOUNT_ATTR_NODEV, Depth::Single),
        Shield::Open => Ok(()),
    }
}

fn overlay(plan: &Plan, lowers: &[CString]) -> Sys<OwnedFd> {
    // Short names start here.
    rustix::process::chdir(plan.aid.as_c_str())?;
    let fs = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, c"source", c"overlay")?;
    for lower in lowers {
        rustix::mount::fsconfig_set_string(&fs, c"lowerdir+", lower.as_c_str())?;
    }
    rustix::mount::fsconfig_set_string(&fs, c"upperdir", plan.upper.as_c_str())?;
    rustix::mount::fsconfig_set_string(&fs, c"workdir", plan.work.as_c_str())?;
    for (option, value) in OVERLAY_OPTIONS {
        rustix::mount::fsconfig_set_string(&fs, option, value)?;
    }
    for flag in plan.overlay_flags {
        rustix::mount::fsconfig_set_flag(&fs, *flag)?;
    }
    rustix::mount::fsconfig_create(&fs)?;
    let attributes = match plan.shield {
        Shield::Full => MountAttrFlags::MOUNT_ATTR_NODEV,
        Shield::Open => MountAttrFlags::empty(),
    };
    let mount = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    // Any directory of the host will do to hang it up; overlay keeps its own way to the upper.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, c"", CWD, plan.seat.as_c_str(), flags)?;
    Ok(mount)
}

/// A new file system, mounted nowhere yet.
fn new_mount(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> Sys<OwnedFd> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, c"source", kind)?;
    for (option, value) in options {
        rustix::mount::fsconfig_set_string(&fs, *option, *value)?;
    }
    rustix::mount::fsconfig_create(&fs)?;
    let attributes = mount_attributes(attributes);
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A copy of the mount at a path of the host, mounted nowhere yet. The path's end is no link.
fn clone_mount(path: &CStr) -> Sys<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let mount = rustix::mount::open_tree(CWD, path, flags)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&mount)?.st_mode) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    Ok(mount)
}

fn attach(mount: &OwnedFd, target: BorrowedFd<'_>) -> Sys<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

/// `/proc`, `/sys` and `/dev` of an image must be directories: a link there is never followed.
fn system_point(root: BorrowedFd<'_>, name: &CStr, told: &Told) -> Sys<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, name, flags, Mode::empty(), inside) {
        Err(Errno::NOENT) => points::find(root, name, PointKind::Directory, Record::In(told)),
        other => other,
    }
}

fn proc(root: BorrowedFd<'_>, plan: &Plan, told: &Told) -> Sys<()> {
    let point = system_point(root, c"proc", told)?;
    let mount = match plan.isolation {
        Isolation::Full => new_mount(c"proc", &[], DATA)?,
        Isolation::OuterProc | Isolation::Chroot => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let copy = rustix::mount::open_tree(CWD, c"/proc", flags)?;
            sys::set_mount_attributes(copy.as_fd(), DATA, Depth::Tree)?;
            copy
        }
    };
    attach(&mount, point.as_fd())?;
    if plan.shield == Shield::Open {
        return Ok(());
    }
    for path in READ_ONLY_PATHS {
        let Some(point) = existing(root, path)? else { continue };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        let copy = rustix::mount::open_tree(&point, c"", flags)?;
        sys::set_mount_attributes(copy.as_fd(), DATA | READ_ONLY, Depth::Tree)?;
        attach(&copy, point.as_fd())?;
    }
    Ok(())
}

fn system(root: BorrowedFd<'_>, plan: &Plan, told: &Told) -> Sys<()> {
    let point = system_point(root, c"sys", told)?;
    let attributes = match plan.shield {
        Shield::Full => DATA | READ_ONLY,
        Shield::Open => DATA,
    };
    let mount = match new_mount(c"sysfs", &[], attributes) {
        // In a user namespace with the host's network: the host's own /sys, read-only.
        Err(Errno::PERM) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let copy = rustix::mount::open_tree(CWD, c"/sys", flags)?;
            sys::set_mount_attributes(copy.as_fd(), DATA | READ_ONLY, Depth::Tree)?;
            copy
        }
        other => other?,
    };
    attach(&mount, point.as_fd())?;
    // The process's own groups, in front of those that the host's /sys brings along.
    let Some(point) = existing(root, c"sys/fs/cgroup")? else { return Ok(()) };
    if plan.shown_groups.is_empty() {
        // Without the unified hierarchy there is nothing to show: an empty directory then.
        let groups = new_mount(c"cgroup2", &[], attributes)
            .or_else(|_| new_mount(c"tmpfs", &[(c"size", c"4096")], DATA | READ_ONLY))?;
        return attach(&groups, point.as_fd());
    }
    groups_v1(plan, attributes, point.as_fd())
}

/// A directory a controller, as Docker shows version 1; the process's own group is the root of each.
fn groups_v1(plan: &Plan, attributes: u64, point: BorrowedFd<'_>) -> Sys<()> {
    let groups = new_mount(c"tmpfs", &[(c"mode", c"0755"), (c"size", c"64k")], DATA)?;
    attach(&groups, point)?;
    for controller in &plan.shown_groups {
        let fs = rustix::mount::fsopen(c"cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_flag(&fs, controller.as_c_str())?;
        // A controller that shares its hierarchy with others is not shown.
        if rustix::mount::fsconfig_create(&fs).is_err() {
            continue;
        }
        let attributes = mount_attributes(attributes);
        let mount = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        rustix::fs::mkdirat(&groups, controller.as_c_str(), Mode::from_raw_mode(0o755))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&groups, controller.as_c_str(), flags, Mode::empty())?;
        attach(&mount, directory.as_fd())?;
    }
    sys::set_mount_attributes(groups.as_fd(), attributes, Depth::Single)
}

fn mount_attributes(attributes: u64) -> MountAttrFlags {
    MountAttrFlags::from_bits_retain(
        u32::try_from(attributes).expect("mount attributes are 32 bits wide"),
    )
}

fn existing(root: BorrowedFd<'_>, path: &CStr) -> Sys<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), inside) {
        Ok(found) => Ok(Some(found)),
        // NOTDIR and ACCESS: a path of the kernel that this kernel keeps differently or closed.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn devices(root: BorrowedFd<'_>, plan: &Plan, told: &Told) -> Sys<()> {
    let point = system_point(root, c"dev", told)?;
    let dev = new_mount(c"tmpfs", &[(c"mode", c"0755"), (c"size", c"65536k")], PLAIN)?;
    attach(&dev, point.as_fd())?;
    for (name, major, minor) in DEVICES {
        let mount = host_device(name, *major, *minor)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dev, *name, flags, Mode::from_raw_mode(0o666))?;
        attach(&mount, file.as_fd())?;
    }
    let group = plan.users.as_ref().map_or(c"5", |users| users.terminal_group.as_c_str());
    let pts_options: &[(&CStr, &CStr)] =
        &[(c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", group)];
    let pts = new_mount(c"devpts", pts_options, PLAIN & !libc::MOUNT_ATTR_NODEV)
        // Where group 5 is not mapped.
        .or_else(|_| new_mount(c"devpts", &pts_options[..2], PLAIN & !libc::MOUNT_ATTR_NODEV))?;
    if plan.console == Console::Own {
        terminal::open(pts.as_fd(), plan)?;
    }
    let shm = new_mount(c"tmpfs", &[(c"mode", c"1777"), (c"size", &plan.shm_size)], DATA)?;
    let mqueue = new_mount(c"mqueue", &[], DATA)?;
    for (name, mount) in [(c"pts", pts), (c"shm", shm), (c"mqueue", mqueue)] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&dev, name, flags, Mode::empty())?;
        attach(&mount, directory.as_fd())?;
    }
    for (name, text) in DEVICE_LINKS {
        rustix::fs::symlinkat(*text, &dev, *name)?;
    }
    Ok(())
}

/// A device file of the host, after a look at what it really is.
fn host_device(name: &CStr, major: u32, minor: u32) -> Sys<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let host_dev = rustix::fs::open(c"/dev", path, Mode::empty())?;
    let mount = rustix::mount::open_tree(&host_dev, name, flags)?;
    let stat = rustix::fs::fstat(&mount)?;
    let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !character || stat.st_rdev != rustix::fs::makedev(major, minor) {
        return Err(Errno::NXIO);
    }
    Ok(mount)
}

fn mask(root: BorrowedFd<'_>, plan: &Plan) -> Sys<()> {
    let own = plan.masked.iter().map(|path| path.as_c_str());
    for path in MASKED.iter().copied().chain(own) {
        let Some(point) = existing(root, path)? else { continue };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&point)?.st_mode);
        let cover = if kind == FileType::Directory {
            new_mount(c"tmpfs", &[(c"size", c"4096"), (c"mode", c"0555")], DATA | READ_ONLY)?
        } else {
            host_device(c"null", 1, 3)?
        };
        attach(&cover, point.as_fd())?;
    }
    Ok(())
}

fn etc_file(root: BorrowedFd<'_>, bind: &PlannedBind, plan: &Plan, told: &Told) -> Sys<()> {
    let mount = clone_mount(&bind.source)?;
    if let Some(users) = &plan.users {
        users.map(&mount)?;
    }
    attach_bind(root, bind, &mount, told)
}

fn attach_bind(root: BorrowedFd<'_>, bind: &PlannedBind, mount: &OwnedFd, told: &Told) -> Sys<()> {
    let found = FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode);
    let directory = found == FileType::Directory;
    let kind = if directory { PointKind::Directory } else { PointKind::File };
    sys::set_mount_attributes(mount.as_fd(), bind.attributes, Depth::Single)?;
    let point = points::find(root, &bind.target, kind, Record::In(told))?;
    attach(mount, point.as_fd())
}

/// Attributes of a bind.
pub(super) fn bind_attributes(read_only: ReadOnly) -> u64 {
    match read_only {
        ReadOnly::Yes => PLAIN | READ_ONLY,
        ReadOnly::No => PLAIN,
    }
}

/// Whether writing is refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadOnly {
    Yes,
    No,
}

fn mount_tmpfs(root: BorrowedFd<'_>, tmpfs: &PlannedTmpfs, plan: &Plan, told: &Told) -> Sys<()> {
    let options: &[(&CStr, &CStr)] = &[(c"mode", &tmpfs.mode), (c"size", &tmpfs.size)];
    let options = if tmpfs.size.is_empty() { &options[..1] } else { options };
    let mount = new_mount(c"tmpfs", options, PLAIN)?;
    for content in &tmpfs.files {
        write_file(mount.as_fd(), content, plan)?;
    }
    let Some(single) = &tmpfs.single else {
        let point = points::find(root, &tmpfs.target, PointKind::Directory, Record::In(told))?;
        return attach(&mount, point.as_fd());
    };
    // A file alone: hung up where the old root is about to vanish, and bound from there.
    let aid = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let aid = rustix::fs::open(plan.hook.as_c_str(), aid, Mode::empty())?;
    attach(&mount, aid.as_fd())?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let file = rustix::mount::open_tree(&mount, single.as_c_str(), flags)?;
    let point = points::find(root, &tmpfs.target, PointKind::File, Record::In(told))?;
    attach(&file, point.as_fd())
}

fn write_file(directory: BorrowedFd<'_>, content: &Content, plan: &Plan) -> Sys<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(directory, content.name.as_c_str(), flags, Mode::from_raw_mode(0o600))?;
    let mut rest = content.bytes.as_slice();
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    let (uid, gid) = plan.outside((content.uid, content.gid));
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(content.mode))
}

fn pivot(root: BorrowedFd<'_>) -> Sys<()> {
    rustix::process::fchdir(root)?;
    match rustix::process::pivot_root(c".", c".") {
        // Docker's filter allows it to nobody, and the kernel not in the file system that it was started with: as
        // an initramfs does it then. What it covers cannot be reached without the right to unmount.
        Err(Errno::PERM | Errno::INVAL) => {
            rustix::mount::mount_move(c".", c"/")?;
            rustix::process::chroot(c".")?;
        }
        other => {
            other?;
            rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        }
    }
    rustix::process::chdir(c"/")
}
