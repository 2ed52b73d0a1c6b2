//! A process in another root directory and in nothing else of its own: for places that allow no namespace and no
//! mount, and for those alone who ask for it.
//!
//! The root is a copy that the process may change as it likes. It shares the processes, the network and the kernel's
//! interfaces of the place, has a few devices and no `/proc`. What it leaves running is killed all the same.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timestamps},
    io::Errno,
};

use crate::sandbox::{
    Bind, Mount, NetworkMode, ProcessSpec, SandboxError, inside,
    mounts::DEVICES,
    points::{self, Record},
    prepare::{self, Plan, setup},
    sys::{self, Forked, Sys},
    told::{At as _, Failure, PointKind, Step, Told},
};

/// Largest file that is put back afterwards, in bytes; of a larger one the process sees the image's own.
const FILE_BYTES_MAX: i64 = 1 << 20;

/// What this way cannot give.
pub(super) fn check(spec: &ProcessSpec) -> Result<(), SandboxError> {
    let is_file = |mount: &Mount| matches!(mount, Mount::Bind(bind) if bind.source.is_file());
    if !spec.mounts.iter().all(is_file) {
        return unavailable("--isolation=chroot has no mounts");
    }
    if spec.network == NetworkMode::Host { Ok(()) } else { no_network() }
}

/// There is no network but the machine's.
pub(super) fn no_network() -> Result<(), SandboxError> {
    unavailable("--isolation=chroot has the network of this machine alone")
}

fn unavailable(reason: &str) -> Result<(), SandboxError> {
    let help = "a place with namespaces can: `idpbuilder doctor` says what this one lacks";
    Err(SandboxError::Unavailable { reason: reason.to_owned(), help: help.to_owned() })
}

/// Files that are put into the root for the time of the process; taken out when dropped.
pub(super) struct Lent {
    root: OwnedFd,
    files: Vec<LentFile>,
}

struct LentFile {
    path: String,
    /// Content and times of what was there.
    before: Option<(Vec<u8>, Timestamps)>,
    parent_times: Option<Timestamps>,
}

impl Lent {
    pub(super) fn new(spec: &ProcessSpec) -> Result<Self, SandboxError> {
        let root = open_root(&spec.rootfs.upper).map_err(|error| setup("open the root", error))?;
        let mut lent = Self { root, files: Vec::new() };
        let failed = |path: &str, error| setup(&format!("write {path}"), error);
        let hosts = prepare::hosts_text(&spec.hostname, &spec.hosts).into_bytes();
        let etc = [("/etc/hosts", &hosts), ("/etc/resolv.conf", &spec.resolv_conf)];
        for (path, bytes) in etc {
            lent.put(path, bytes, 0o644).map_err(|error| failed(path, error))?;
        }
        for mount in &spec.mounts {
            if let Mount::Bind(Bind { source, target, .. }) = mount {
                let bytes = std::fs::read(source).map_err(|error| failed(target, error))?;
                lent.put(target, &bytes, 0o755).map_err(|error| failed(target, error))?;
            }
        }
        Ok(lent)
    }

    /// Writes a file where the image has none, or a regular one; its directory is made when missing.
    fn put(&mut self, path: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let directory = match open_inside(&self.root, parent, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {
                // A directory of devices is made with them, and goes with them.
                let above = open_inside(&self.root, "/dev", OFlags::RDONLY | OFlags::DIRECTORY);
                let (Ok(above), Some(name)) = (above, parent.strip_prefix("/dev/")) else {
                    return Ok(());
                };
                let now = times(&above)?;
                rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
                rustix::fs::futimens(&above, &now)?;
                open_inside(&self.root, parent, OFlags::RDONLY | OFlags::DIRECTORY)?
            }
            other => other?,
        };
        let parent_times = Some(times(&directory)?);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let before = match rustix::fs::openat(&directory, name, flags, Mode::empty()) {
            Ok(file) => {
                let stat = rustix::fs::fstat(&file)?;
                let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                if !regular || stat.st_size > FILE_BYTES_MAX {
                    return Ok(());
                }
                let (mut content, times) = (Vec::new(), times(&file)?);
                File::from(file).read_to_end(&mut content)?;
                Some((content, times))
            }
            Err(Errno::NOENT) => None,
            // A link leads anywhere: the image's own file is what the process sees.
            Err(Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        write(&directory, name, bytes, mode)?;
        self.files.push(LentFile { path: path.to_owned(), before, parent_times });
        Ok(())
    }

    fn take_back(&self, lent: &LentFile) -> io::Result<()> {
        let (parent, name) = lent.path.rsplit_once('/').unwrap_or(("", &lent.path));
        let directory = open_inside(&self.root, parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let now = times(&directory)?;
        match &lent.before {
            Some((content, before)) => {
                write(&directory, name, content, 0o644)?;
                let file = open_inside(&self.root, &lent.path, OFlags::RDONLY)?;
                rustix::fs::futimens(&file, before)?;
            }
            None => rustix::fs::unlinkat(&directory, name, AtFlags::empty())?,
        }
        let before = lent.parent_times.as_ref().filter(|_| lent.before.is_none());
        rustix::fs::futimens(&directory, before.unwrap_or(&now))?;
        Ok(())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        for lent in self.files.iter().rev() {
            // What the process removed need not be taken back.
            drop(self.take_back(lent));
        }
        if let Ok(dev) = open_inside(&self.root, "/dev", OFlags::RDONLY | OFlags::DIRECTORY)
            && let Ok(now) = times(&dev)
            && rustix::fs::unlinkat(&dev, "pipes", AtFlags::REMOVEDIR).is_ok()
        {
            let _ = rustix::fs::futimens(&dev, &now);
        }
    }
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn open_inside(root: &OwnedFd, path: &str, flags: OFlags) -> Sys<OwnedFd> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), inside)
}

fn times(file: &OwnedFd) -> io::Result<Timestamps> {
    let stat = rustix::fs::fstat(file)?;
    let time = |seconds, nanos: u64| rustix::fs::Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    };
    Ok(Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    })
}

/// Writes a regular file anew, or one that is not there. What a process may have put in its place is neither waited for
/// (a pipe) nor written to (a device).
fn write(directory: &OwnedFd, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode))?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    rustix::fs::ftruncate(&file, 0)?;
    File::from(file).write_all(bytes)
}

/// The life of the first process. It stays outside of the root; what is orphaned inside becomes its child.
pub(super) fn live(plan: &Plan, told: &Told) -> Result<(), Failure> {
    // The tool's death is told, so that everything inside can be taken along.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as u64, 0).at(Step::Isolate)?;
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).at(Step::Isolate)?;
    for group in &plan.cgroup.joins {
        rustix::io::write(group, b"0").at(Step::Join)?;
    }
    inside::close_all_but_streams(plan).at(Step::Isolate)?;
    inside::end_without_tool(plan).at(Step::Isolate)?;
    sys::prctl(libc::PR_SET_DUMPABLE, 1, 0).at(Step::Isolate)?;
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::empty());
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    let children = rustix::fs::open(c"/proc/thread-self/children", read, Mode::empty());
    let children = children.at(Step::Proc)?;
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(plan.upper.as_c_str(), path, Mode::empty());
    let root = root.at(Step::Pivot)?;
    devices(root.as_fd(), told).at(Step::Dev)?;
    points::find(root.as_fd(), &plan.cwd, PointKind::Directory, Record::Nothing)
        .at(Step::MakeWorkingDirectory)?;
    rustix::process::umask(Mode::from_raw_mode(inside::UMASK));
    let main = match sys::fork_alone().at(Step::Fork)? {
        Forked::Child => {
            let failure = match enter(root.as_fd()).at(Step::Pivot) {
                Ok(()) => inside::become_process(plan),
                Err(failure) => failure,
            };
            told.fail(failure);
            sys::exit(inside::FAILED)
        }
        Forked::Parent(pid, pidfd) => {
            std::mem::forget(pidfd);
            pid
        }
    };
    let ended = wait_for(main).at(Step::Fork);
    kill_children(children.as_fd());
    if let Some(status) = ended? {
        told.end(status);
    }
    Ok(())
}

fn enter(root: BorrowedFd<'_>) -> Sys<()> {
    rustix::process::fchdir(root)?;
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")
}

/// The status of the main process; nothing when we are told to end first.
fn wait_for(main: libc::pid_t) -> Sys<Option<i32>> {
    loop {
        while let Some(waited) = sys::wait_without_waiting(-1)? {
            if waited.pid == main {
                return Ok(Some(waited.status));
            }
        }
        if sys::wait_for_signal(&[libc::SIGCHLD, libc::SIGTERM])? == libc::SIGTERM {
            return Ok(None);
        }
    }
}

/// Kills what is left, and what becomes ours by its death, until there is nothing.
fn kill_children(children: BorrowedFd<'_>) {
    loop {
        let mut buffer = [0u8; 4096];
        let count = rustix::io::pread(children, &mut buffer, 0).unwrap_or(0);
        let numbers = buffer[..count].split(|byte| !byte.is_ascii_digit());
        for digits in numbers.filter(|digits| !digits.is_empty()) {
            let number = digits.iter().fold(0i32, |number, digit| {
                number.wrapping_mul(10).wrapping_add(i32::from(digit - b'0'))
            });
            if let Some(pid) = rustix::process::Pid::from_raw(number) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if sys::wait(-1).is_err() {
            return;
        }
    }
}

/// The usual devices as files, where devices can be made.
fn devices(root: BorrowedFd<'_>, told: &Told) -> Sys<()> {
    let dev = points::find(root, c"/dev", PointKind::Directory, Record::In(told))?;
    let before = points::mtime(dev.as_fd())?;
    for (name, major, minor) in DEVICES {
        let device = rustix::fs::makedev(*major, *minor);
        let mode = Mode::from_raw_mode(0o666);
        match rustix::fs::mknodat(&dev, *name, FileType::CharacterDevice, mode, device) {
            // The image has one of its own.
            Err(Errno::EXIST) => {}
            made => {
                made?;
                let after = points::mtime(dev.as_fd())?;
                told.made([b"/dev", name.to_bytes()], PointKind::File, [before, after])?;
            }
        }
    }
    Ok(())
}

/// Signals that end the first process in good order.
pub(super) const END: rustix::process::Signal = rustix::process::Signal::TERM;
