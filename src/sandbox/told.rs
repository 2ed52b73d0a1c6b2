//! What the inside tells the outside: which step failed, how the process ended, what was made.
//!
//! A page or two of shared memory, written by the sandbox's init, read after its end.

#![expect(unsafe_code, reason = "marks the struct as fit for shared memory")]

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU32, Ordering::Relaxed};

use rustix::io::Errno;

use super::sys::{Shareable, Sys};

/// Mount points that may be made for one process.
const MADE_MAX: usize = 128;

/// Longest path of a mount point that is made, in bytes.
const MADE_PATH_BYTES_MAX: usize = 1024;

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $words:literal,)*) => {
        /// A step of the set-up.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub(super) enum Step { $($(#[$doc])* $name,)* }

        impl Step {
            const ALL: &[(Self, &str)] = &[$((Self::$name, $words),)*];
        }
    };
}

steps! {
    Join = "join the control group",
    Isolate = "leave the host's mounts",
    MapIds = "map ids (`--userns private`) of",
    Overlay = "mount the root file system",
    Proc = "mount /proc",
    Sys = "mount /sys",
    Dev = "mount /dev",
    Mask = "hide parts of /proc and /sys",
    EtcFile = "mount a file over",
    Bind = "mount",
    Tmpfs = "mount a tmpfs at",
    MakeWorkingDirectory = "make the working directory",
    Pivot = "enter the root file system",
    Network = "set up the network",
    HostName = "set the host name",
    Fork = "start a process",
    Emulate = "tell the kernel of an emulator",
    Users = "make a user namespace (`--userns private`)",
    Streams = "connect the output",
    Ulimit = "set the limit",
    WorkingDirectory = "enter the working directory",
    Capabilities = "drop capabilities",
    User = "become the user",
    Sockets = "close the machine's abstract sockets",
    Filter = "install the system call filter",
    Exec = "execute",
}

impl Step {
    pub(super) fn words(self) -> &'static str {
        Self::ALL.iter().find(|(step, _)| *step == self).map_or("", |(_, words)| words)
    }
}

/// A failed step; `item` says which of several.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) item: u32,
    pub(super) errno: Errno,
}

/// Names the step of a failed system call.
pub(super) trait At<T> {
    fn at(self, step: Step) -> Result<T, Failure>;
    fn at_item(self, step: Step, item: usize) -> Result<T, Failure>;
}

impl<T> At<T> for Sys<T> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.at_item(step, 0)
    }

    fn at_item(self, step: Step, item: usize) -> Result<T, Failure> {
        let item = u32::try_from(item).unwrap_or(u32::MAX);
        self.map_err(|errno| Failure { step, item, errno })
    }
}

/// Whose host name the process sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HostName {
    #[default]
    Own,
    Outer,
}

/// A modification time: seconds and nanoseconds.
pub(super) type Mtime = (i64, i64);

/// The shared memory.
#[repr(C)]
pub(super) struct Told {
    failed: AtomicU32,
    step: AtomicU32,
    item: AtomicU32,
    errno: AtomicI32,
    ended: AtomicU32,
    connected: AtomicU32,
    status: AtomicI32,
    made_len: AtomicU32,
    host_name_kept: AtomicU32,
    made: [MadeSlot; MADE_MAX],
}

#[repr(C)]
struct MadeSlot {
    directory: AtomicU32,
    before: [AtomicI64; 2],
    after: [AtomicI64; 2],
    len: AtomicU32,
    path: [AtomicU8; MADE_PATH_BYTES_MAX],
}

// SAFETY: atomics alone, and zero is a value of each.
unsafe impl Shareable for Told {}

/// A mount point that was made because it was missing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Made {
    /// Absolute within the root file system, free of links.
    pub(super) path: Vec<u8>,
    pub(super) kind: PointKind,
    /// Modification time of the parent before and after.
    pub(super) before: Mtime,
    pub(super) after: Mtime,
}

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PointKind {
    Directory,
    File,
}

impl Told {
    pub(super) fn fail(&self, failure: Failure) {
        self.step.store(failure.step as u32, Relaxed);
        self.item.store(failure.item, Relaxed);
        self.errno.store(failure.errno.raw_os_error(), Relaxed);
        self.failed.store(1, Relaxed);
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        if self.failed.load(Relaxed) == 0 {
            return None;
        }
        let told = self.step.load(Relaxed);
        let step = Step::ALL.iter().find(|(step, _)| *step as u32 == told)?.0;
        let errno = Errno::from_raw_os_error(self.errno.load(Relaxed));
        Some(Failure { step, item: self.item.load(Relaxed), errno })
    }

    /// The host name could not be set.
    pub(super) fn keep_host_name(&self) {
        self.host_name_kept.store(1, Relaxed);
    }

    pub(super) fn host_name(&self) -> HostName {
        if self.host_name_kept.load(Relaxed) == 1 { HostName::Outer } else { HostName::Own }
    }

    /// Says that the network works.
    pub(super) fn connect(&self) {
        self.connected.store(1, Relaxed);
    }

    /// Not zero when the network works.
    pub(super) fn connected(&self) -> &AtomicU32 {
        &self.connected
    }

    /// The wait status of the process.
    pub(super) fn end(&self, status: i32) {
        self.status.store(status, Relaxed);
        self.ended.store(1, Relaxed);
    }

    pub(super) fn ended(&self) -> Option<i32> {
        (self.ended.load(Relaxed) == 1).then(|| self.status.load(Relaxed))
    }

    /// Notes a mount point: `directory/name`.
    pub(super) fn made(&self, path: [&[u8]; 2], kind: PointKind, times: [Mtime; 2]) -> Sys<()> {
        let index = self.made_len.load(Relaxed);
        let slot = self.made.get(index as usize).ok_or(Errno::NOSPC)?;
        let [directory, name] = path;
        let bytes = directory.iter().chain(b"/").chain(name);
        let mut len = 0;
        for (place, byte) in slot.path.iter().zip(bytes) {
            place.store(*byte, Relaxed);
            len += 1;
        }
        if len as usize != directory.len() + 1 + name.len() {
            return Err(Errno::NAMETOOLONG);
        }
        slot.len.store(len, Relaxed);
        slot.directory.store(u32::from(kind == PointKind::Directory), Relaxed);
        for (place, (seconds, nanos)) in [&slot.before, &slot.after].into_iter().zip(times) {
            place[0].store(seconds, Relaxed);
            place[1].store(nanos, Relaxed);
        }
        self.made_len.store(index + 1, Relaxed);
        Ok(())
    }

    /// All mount points made, in order.
    pub(super) fn all_made(&self) -> Vec<Made> {
        let count = self.made_len.load(Relaxed) as usize;
        self.made.iter().take(count).map(MadeSlot::read).collect()
    }
}

impl MadeSlot {
    fn read(&self) -> Made {
        let len = self.len.load(Relaxed) as usize;
        let time = |place: &[AtomicI64; 2]| (place[0].load(Relaxed), place[1].load(Relaxed));
        Made {
            path: self.path.iter().take(len).map(|byte| byte.load(Relaxed)).collect(),
            kind: match self.directory.load(Relaxed) {
                0 => PointKind::File,
                _ => PointKind::Directory,
            },
            before: time(&self.before),
            after: time(&self.after),
        }
    }
}
