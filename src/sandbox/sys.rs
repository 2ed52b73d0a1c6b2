//! System calls as a forked child may make them: no allocation, no lock, no word to other threads.
//!
//! rustix has most of them; here is what it lacks. Knows nothing of mounts or processes as a whole.

#![expect(unsafe_code, reason = "raw system calls that no crate wraps for use after fork")]

use std::{
    ffi::CStr,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{io::Errno, process::Pid};

use crate::limits::UlimitKind;

/// Result of a system call.
pub(super) type Sys<T> = Result<T, Errno>;

/// Signals of Linux are numbered 1 to 64.
const SIGNALS_MAX: i32 = 64;

/// Size of the kernel's signal set in bytes.
const SIGNAL_SET_BYTES: usize = 8;

/// `KEYCTL_JOIN_SESSION_KEYRING` of keyctl(2).
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Both halves of what clone(2) returns twice.
pub(super) enum Forked {
    /// In the parent: the child and a descriptor of it when asked for.
    Parent(libc::pid_t, Option<OwnedFd>),
    /// In the child.
    Child,
}

/// What a system call returned, or why it failed.
pub(super) fn check(result: libc::c_long) -> Sys<libc::c_long> {
    if result == -1 {
        // SAFETY: the address of this thread's errno is always valid.
        let errno = unsafe { *libc::__errno_location() };
        return Err(Errno::from_raw_os_error(errno));
    }
    Ok(result)
}

/// Forks into new namespaces (`CLONE_NEW*`).
///
/// # Safety
///
/// The child of a process with threads may only make system calls and touch memory that it has.
pub(super) unsafe fn fork(namespaces: libc::c_int) -> Sys<Forked> {
    let mut pidfd: RawFd = -1;
    let flags = namespaces | libc::CLONE_PIDFD | libc::SIGCHLD;
    let none = ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM and with no stack given this is fork(2); `pidfd` outlives the call.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone, libc::c_long::from(flags), none, &raw mut pidfd, none, none)
    })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok(Forked::Parent(libc::pid_t::try_from(pid).expect("a process id fits its type"), pidfd))
}

/// `CLONE_INTO_CGROUP` of clone3(2), which does not fit the type that libc gives it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Arguments of clone3(2), its third version.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks into new namespaces and into a control group of version 2. ENOSYS where clone3(2) is not to be had.
///
/// # Safety
///
/// As [`fork`].
pub(super) unsafe fn fork_into(namespaces: libc::c_int, group: BorrowedFd<'_>) -> Sys<Forked> {
    let mut pidfd: RawFd = -1;
    let flags = u64::from((namespaces | libc::CLONE_PIDFD).cast_unsigned());
    let arguments = CloneArguments {
        flags: flags | CLONE_INTO_CGROUP,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        cgroup: u64::from(group.as_raw_fd().cast_unsigned()),
        ..CloneArguments::default()
    };
    let size = size_of::<CloneArguments>();
    // SAFETY: the arguments and `pidfd` outlive the call; without a stack this is fork(2).
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok(Forked::Parent(libc::pid_t::try_from(pid).expect("a process id fits its type"), pidfd))
}

/// Between fork and exec: makes this process end with `tool`, which started it.
pub(super) fn end_with(tool: Pid) -> Sys<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0)?;
    // What ended before it was asked tells nobody.
    if rustix::process::getppid() == Some(tool) { Ok(()) } else { Err(Errno::SRCH) }
}

/// Ends this process at once.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: never returns and touches nothing.
    unsafe { libc::_exit(code) }
}

/// What `wait4` told of a child.
pub(super) struct Waited {
    pub(super) pid: libc::pid_t,
    pub(super) status: libc::c_int,
    pub(super) usage: libc::rusage,
}

/// Waits for a child; -1 for any.
pub(super) fn wait(pid: libc::pid_t) -> Sys<Waited> {
    loop {
        match wait4(pid, 0) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// As [`wait`], but `None` when no child has ended, or none is left.
pub(super) fn wait_without_waiting(pid: libc::pid_t) -> Sys<Option<Waited>> {
    match wait4(pid, libc::WNOHANG) {
        Err(Errno::CHILD) => Ok(None),
        other => other.map(|waited| (waited.pid != 0).then_some(waited)),
    }
}

fn wait4(pid: libc::pid_t, options: libc::c_int) -> Sys<Waited> {
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_wait4,
            libc::c_long::from(pid),
            &raw mut status,
            libc::c_long::from(options),
            &raw mut usage,
        )
    })?;
    let pid = libc::pid_t::try_from(pid).expect("a process id fits its type");
    Ok(Waited { pid, status, usage })
}

/// Forks a process of one thread.
pub(super) fn fork_alone() -> Sys<Forked> {
    // SAFETY: called from processes that were forked and have one thread.
    unsafe { fork(0) }
}

/// Waits for one of these signals, which are blocked, and takes it.
pub(super) fn wait_for_signal(signals: &[i32]) -> Sys<i32> {
    let set: u64 = signals.iter().fold(0, |set, signal| set | 1 << (signal - 1));
    let none = ptr::null_mut::<libc::c_void>();
    loop {
        // SAFETY: the set has the kernel's size; nothing is asked back, and there is no time limit.
        let taken = check(unsafe {
            libc::syscall(libc::SYS_rt_sigtimedwait, &raw const set, none, none, SIGNAL_SET_BYTES)
        });
        match taken {
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other.map(|signal| i32::try_from(signal).unwrap_or(0)),
        }
    }
}

/// Sets attributes (`MOUNT_ATTR_*`) of a mount that is not in use yet.
pub(super) fn set_mount_attributes(mount: BorrowedFd<'_>, set: u64, whole_tree: Depth) -> Sys<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    change_mount(mount, &attributes, whole_tree)
}

/// Gives a mount that is not in use yet the ids of a user namespace (since Linux 5.12, where the file system can).
pub(super) fn map_mount(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> Sys<()> {
    let userns_fd = u64::from(namespace.as_raw_fd().unsigned_abs());
    let attr_set = libc::MOUNT_ATTR_IDMAP;
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd };
    change_mount(mount, &attributes, Depth::Single)
}

fn change_mount(
    mount: BorrowedFd<'_>,
    attributes: &libc::mount_attr,
    whole_tree: Depth,
) -> Sys<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if whole_tree == Depth::Tree {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: path and attributes are valid for the call, the size is that of the struct.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// How much of a mount tree is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// The one mount.
    Single,
    /// With everything mounted below.
    Tree,
}

/// prctl(2) with up to two arguments.
pub(super) fn prctl(option: libc::c_int, first: u64, second: u64) -> Sys<()> {
    // SAFETY: only options without pointers are used in this module.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, first, second, 0u64, 0u64) }).map(drop)
}

/// Groups and group, of this thread alone.
pub(super) fn set_groups(groups: &[u32], gid: u32) -> Sys<()> {
    // SAFETY: the pointer and length are those of a slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// User, of this thread alone.
pub(super) fn set_user(uid: u32) -> Sys<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// `_LINUX_CAPABILITY_VERSION_3` of capset(2), and this thread.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

/// Makes `permitted` permitted and effective, and nothing inheritable.
pub(super) fn set_capabilities(permitted: u64) -> Sys<()> {
    let header = CAPABILITY_HEADER;
    let (low, high) = (permitted as u32, (permitted >> 32) as u32);
    // Effective, permitted, inheritable of the low half, then of the high half.
    let sets: [u32; 6] = [low, low, 0, high, high, 0];
    // SAFETY: header and sets have the layout of capset(2), version 3.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }).map(drop)
}

/// Takes a capability from this process and from all that it starts, for good.
pub(super) fn give_up_capability(number: u64) -> Sys<()> {
    prctl(libc::PR_CAPBSET_DROP, number, 0)?;
    let header = CAPABILITY_HEADER;
    // As in `set_capabilities`.
    let mut sets = [0u32; 6];
    // SAFETY: header and sets have the layout of capget(2), version 3.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) })?;
    let (half, bit) = ((number / 32) as usize, 1 << (number % 32));
    for set in &mut sets[half * 3..half * 3 + 3] {
        *set &= !bit;
    }
    // SAFETY: as above, for capset(2).
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }).map(drop)
}

/// Installs a seccomp filter on this thread.
pub(super) fn set_filter(program: &[libc::sock_filter]) -> Sys<()> {
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::TOOBIG)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program is valid for the call; the kernel copies it and writes nothing.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    })
    .map(drop)
}

/// Closes every descriptor from `first` to `last`.
pub(super) fn close_range(first: u32, last: u32) -> Sys<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: closes descriptors; the caller no longer uses any of them.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Makes `to` another name of `from`.
pub(super) fn duplicate_to(from: RawFd, to: RawFd) -> Sys<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_dup3, from, to, 0) }).map(drop)
}

/// All signals back to their defaults and none blocked.
pub(super) fn reset_signals() {
    // KILL and STOP fail, as they may.
    (1..=SIGNALS_MAX).for_each(reset_signal);
    let _ = set_signal_mask(0);
}

/// One signal back to its default.
pub(super) fn reset_signal(signal: i32) {
    // The kernel's own sigaction: handler, flags, restorer, mask; all zero is the default.
    let (default, none) = ([0u64; 4], ptr::null_mut::<libc::c_void>());
    // SAFETY: `default` is as large as the kernel's struct.
    let _ = check(unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, SIGNAL_SET_BYTES)
    });
}

/// Replaces the set of blocked signals of this thread and returns the old one.
pub(super) fn set_signal_mask(blocked: u64) -> Sys<u64> {
    let mut old = 0u64;
    // SAFETY: both sets have the kernel's size.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const blocked,
            &raw mut old,
            SIGNAL_SET_BYTES,
        )
    })?;
    Ok(old)
}

/// No core files, whatever the limit was.
pub(super) fn forbid_core_files() -> Sys<()> {
    set_limit(libc::RLIMIT_CORE, (0, 0))
}

/// The kernel's number of a limit.
pub(super) fn resource(kind: UlimitKind) -> u32 {
    match kind {
        UlimitKind::Core => libc::RLIMIT_CORE,
        UlimitKind::Cpu => libc::RLIMIT_CPU,
        UlimitKind::Data => libc::RLIMIT_DATA,
        UlimitKind::Fsize => libc::RLIMIT_FSIZE,
        UlimitKind::Locks => libc::RLIMIT_LOCKS,
        UlimitKind::Memlock => libc::RLIMIT_MEMLOCK,
        UlimitKind::Msgqueue => libc::RLIMIT_MSGQUEUE,
        UlimitKind::Nice => libc::RLIMIT_NICE,
        UlimitKind::Nofile => libc::RLIMIT_NOFILE,
        UlimitKind::Nproc => libc::RLIMIT_NPROC,
        UlimitKind::Rss => libc::RLIMIT_RSS,
        UlimitKind::Rtprio => libc::RLIMIT_RTPRIO,
        UlimitKind::Rttime => libc::RLIMIT_RTTIME,
        UlimitKind::Sigpending => libc::RLIMIT_SIGPENDING,
        UlimitKind::Stack => libc::RLIMIT_STACK,
    }
}

/// A limit of this process: soft, hard.
pub(super) fn set_limit(resource: u32, (soft, hard): (u64, u64)) -> Sys<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let none = ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the struct is valid for the call, and nothing is asked back.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, none) })
        .map(drop)
}

/// Leaves the mount namespace for a copy of another.
pub(super) fn enter_mounts(namespace: BorrowedFd<'_>) -> Sys<()> {
    // SAFETY: takes numbers only; the process has one thread.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), libc::CLONE_NEWNS) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWNS) }).map(drop)
}

/// Enters a user namespace, with every capability in it.
pub(super) fn enter_users(namespace: BorrowedFd<'_>) -> Sys<()> {
    // SAFETY: takes numbers only; the process has one thread.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), libc::CLONE_NEWUSER) })
        .map(drop)
}

/// Leaves the mount namespace for a copy.
pub(super) fn unshare_mounts() -> Sys<()> {
    // SAFETY: takes numbers only; the process has one thread.
    check(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWNS) }).map(drop)
}

/// Enters a network, with this thread alone; what it starts is born there. Gives back the one that it was in.
pub(super) fn enter_network(namespace: BorrowedFd<'_>) -> Sys<OwnedFd> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let own = rustix::fs::open(c"/proc/thread-self/ns/net", flags, rustix::fs::Mode::empty())?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(own)
}

/// Whose the files are that this thread makes. Takes capabilities over files away from it.
pub(super) fn set_file_ids(uid: u32, gid: u32) {
    // SAFETY: takes numbers only. Tells the former id and never fails for who may.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}

/// Leaves the control group namespace for one whose root is our group.
pub(super) fn unshare_cgroup() -> Sys<()> {
    // SAFETY: takes numbers only; the process has one thread.
    check(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWCGROUP) }).map(drop)
}

/// Leaves the session keyring of whoever started us.
pub(super) fn leave_keyring() -> Sys<()> {
    let anonymous = ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) })
        .map(drop)
}

/// Sleeps while a number in shared memory is zero.
pub(super) fn sleep_while_zero(number: &AtomicU32) -> Sys<()> {
    while number.load(Ordering::Acquire) == 0 {
        let forever = ptr::null::<libc::timespec>();
        // SAFETY: the number is mapped, and the kernel only compares it.
        let woken = check(unsafe {
            libc::syscall(libc::SYS_futex, number.as_ptr(), libc::FUTEX_WAIT, 0, forever)
        });
        match woken {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Wakes who sleeps by [`sleep_while_zero`].
pub(super) fn wake(number: &AtomicU32) -> Sys<()> {
    // SAFETY: the kernel uses the address as a name only.
    check(unsafe { libc::syscall(libc::SYS_futex, number.as_ptr(), libc::FUTEX_WAKE, i32::MAX) })
        .map(drop)
}

/// The other end of a pseudo-terminal, given one's master.
pub(super) fn open_terminal_peer(master: BorrowedFd<'_>) -> Sys<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the number is valid for the call, which only reads it.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            master.as_raw_fd(),
            libc::TIOCSPTLCK as libc::c_ulong,
            &raw const unlocked,
        )
    })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes numbers only.
    let peer = check(unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            master.as_raw_fd(),
            libc::TIOCGPTPEER as libc::c_ulong,
            flags,
        )
    })?;
    let peer = RawFd::try_from(peer).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(peer) })
}

/// Makes the terminal at standard input the controlling one of this session.
pub(super) fn take_terminal() -> Sys<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_ioctl, 0, libc::TIOCSCTTY as libc::c_ulong, 0) })
        .map(drop)
}

/// Switches the loopback interface of this network namespace on.
pub(super) fn raise_loopback() -> Sys<()> {
    // SAFETY: takes numbers only.
    let socket = check(unsafe {
        libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    })?;
    let socket = RawFd::try_from(socket).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is valid for the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            socket.as_raw_fd(),
            libc::c_ulong::from(libc::SIOCSIFFLAGS as u32),
            &raw const request,
        )
    })
    .map(drop)
}

/// First byte of the kernel's name for the working directory: `(` when it is out of the root.
pub(super) fn working_directory_starts_with() -> Sys<u8> {
    let mut name = [0u8; 4096];
    // SAFETY: the buffer has the length that is told.
    check(unsafe { libc::syscall(libc::SYS_getcwd, name.as_mut_ptr(), name.len()) })?;
    Ok(name[0])
}

/// Becomes the program; returns only on failure. Both lists end with a null pointer.
pub(super) fn execute(
    path: &CStr,
    argv: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> Errno {
    debug_assert!(argv.last().is_some_and(|end| end.is_null()));
    // SAFETY: both lists end with null and their strings outlive the call.
    let result = check(unsafe {
        libc::syscall(libc::SYS_execve, path.as_ptr(), argv.as_ptr(), env.as_ptr())
    });
    result.err().unwrap_or(Errno::NOEXEC)
}

/// Memory that a process shares with the children it forks, zeroed, unmapped when dropped.
pub(super) struct SharedMemory<T> {
    place: ptr::NonNull<T>,
}

impl<T: Shareable> SharedMemory<T> {
    pub(super) fn new() -> Sys<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: asks for new memory; nothing is replaced.
        let place =
            unsafe { libc::mmap(ptr::null_mut(), size_of::<T>(), protection, flags, -1, 0) };
        if place == libc::MAP_FAILED {
            return Err(Errno::NOMEM);
        }
        Ok(Self { place: ptr::NonNull::new(place.cast()).ok_or(Errno::NOMEM)? })
    }

    pub(super) fn get(&self) -> &T {
        // SAFETY: mapped until dropped; zeroes are a valid `T`, and `T` is made of atomics.
        unsafe { self.place.as_ref() }
    }
}

impl<T> Drop for SharedMemory<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, and no reference outlives `self`.
        unsafe { libc::munmap(self.place.as_ptr().cast(), size_of::<T>()) };
    }
}

/// Types of atomics alone, valid when zeroed.
///
/// # Safety
///
/// All-zero bytes are a valid value, and every part may be written by another process at any time.
pub(super) unsafe trait Shareable {}
