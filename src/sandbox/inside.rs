//! The two processes inside: the init that sets up, waits and reaps, and the process itself.
//!
//! Both run after fork of a process that may have threads: they make system calls, use memory that
//! was there before, and tell what failed through shared memory. The init is process 1 of its
//! namespace: when it ends, the kernel kills everything else in it.

#![expect(unsafe_code, reason = "forks the process from the init")]

use std::{
    ffi::CStr,
    io::Write as _,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Mode, OFlags},
    io::Errno,
    pipe::PipeFlags,
};

use crate::sandbox::{
    Isolation, NetworkMode, Privileges, chroot, emulation,
    identity::Mapping,
    landlock, mounts, network,
    prepare::{Console, Plan, PlannedRoot, Shield},
    sys::{self, Forked, Sys},
    told::{At as _, Failure, Step, Told},
    userns,
};

/// Exit code of the init and the process when the set-up failed; told in detail elsewhere.
pub(super) const FAILED: i32 = 125;

/// Highest capability number that could exist.
const CAPABILITIES_MAX: u64 = 64;

/// How often a program that is open for writing is tried: for five seconds.
const BUSY_TRIES_MAX: u32 = 2_500;
const BUSY_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// What the process sees of file modes by default.
pub(super) const UMASK: u32 = 0o022;

/// The life of process 1. Never unwinds: a panic would end in the abort of this process alone.
pub(super) fn init(plan: &Plan, told: &Told, joined: Joined) -> ! {
    let lived = match plan.isolation {
        Isolation::Full | Isolation::OuterProc => live(plan, told, joined),
        Isolation::Chroot => chroot::live(plan, told),
    };
    if let Err(failure) = lived {
        told.fail(failure);
        sys::exit(FAILED);
    }
    sys::exit(0)
}

/// Whether the init was born in its control group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    AtBirth,
    NotYet,
}

fn live(plan: &Plan, told: &Told, joined: Joined) -> Result<(), Failure> {
    // The tool's death is ours, even when it is killed.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).at(Step::Isolate)?;
    if joined == Joined::NotYet {
        for group in &plan.cgroup.joins {
            rustix::io::write(group, b"0").at(Step::Join)?;
        }
    }
    if let PlannedRoot::Served(fuse) = &plan.root {
        sys::enter_mounts(fuse.namespace.as_fd()).at(Step::Isolate)?;
    }
    // After joining: its root is what the process sees as `/`.
    sys::unshare_cgroup().at(Step::Isolate)?;
    close_all_but_streams(plan).at(Step::Isolate)?;
    end_without_tool(plan).at(Step::Isolate)?;
    if plan.network == NetworkMode::Sandbox {
        // The helper finds our network as long as we may be looked at.
        network::await_link(told).at(Step::Network)?;
        network::close_metadata().at(Step::Network)?;
    }
    // Our memory is the tool's: not for the process to look into.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).at(Step::Isolate)?;
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::empty());
    match rustix::system::sethostname(&plan.hostname) {
        // A filter around us: what the process sees instead is told.
        Err(Errno::PERM) => told.keep_host_name(),
        other => other.at(Step::HostName)?,
    }
    if plan.network != NetworkMode::Host {
        sys::raise_loopback().at(Step::Network)?;
    }
    mounts::enter(plan, told)?;
    // The process may trace us where it has all capabilities.
    network::seal(plan.network).at(Step::Network)?;
    close_all_but_streams(plan).at(Step::Fork)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
    let gate = Gate::new(plan).at(Step::Fork)?;
    // SAFETY: this process has one thread.
    let main = match unsafe { sys::fork(gate.namespaces()) }.at(Step::Fork)? {
        Forked::Child => {
            let entered = userns::enter(plan).and_then(|()| gate.pass(plan));
            let failure = entered.err().unwrap_or_else(|| become_process(plan));
            told.fail(failure);
            sys::exit(FAILED)
        }
        Forked::Parent(pid, pidfd) => {
            std::mem::forget(pidfd);
            gate.open(pid).at(Step::Emulate)?;
            pid
        }
    };
    sys::close_range(0, u32::MAX).at(Step::Fork)?;
    loop {
        let waited = sys::wait(-1).at(Step::Fork)?;
        if waited.pid == main {
            told.end(waited.status);
            return Ok(());
        }
    }
}

pub(super) fn close_all_but_streams(plan: &Plan) -> Sys<()> {
    let mut first = 0;
    for kept in plan.kept() {
        let kept = kept.unsigned_abs();
        if kept > first {
            sys::close_range(first, kept - 1)?;
        }
        first = kept + 1;
    }
    sys::close_range(first, u32::MAX)
}

/// Ends this process when the tool ended before it was asked to be told of that: nobody hears us any more. Our own copies of
/// the ends that we are heard at must be closed.
pub(super) fn end_without_tool(plan: &Plan) -> Sys<()> {
    let mut heard = [PollFd::new(&plan.streams.output, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut heard, Some(&now))? {
        0 => Ok(()),
        _ => sys::exit(FAILED),
    }
}

/// Holds a process with an emulator back until its user namespace has ids; open for every other.
///
/// In a user namespace with ids of its own it has waited already.
struct Gate(Option<(OwnedFd, OwnedFd)>);

impl Gate {
    fn new(plan: &Plan) -> Sys<Self> {
        let needed = plan.emulator.is_some() && plan.users.is_none();
        let pipe = needed.then(|| rustix::pipe::pipe_with(PipeFlags::CLOEXEC));
        pipe.transpose().map(Self)
    }

    fn namespaces(&self) -> libc::c_int {
        self.0.as_ref().map_or(0, |_| libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
    }

    /// In the process: waits, then tells the kernel of the emulator.
    fn pass(&self, plan: &Plan) -> Result<(), Failure> {
        let Some(emulator) = &plan.emulator else { return Ok(()) };
        if let Some((wait, _)) = &self.0 {
            rustix::io::read(wait, &mut [0]).at(Step::Emulate)?;
        }
        emulation::register(emulator).at(Step::Emulate)
    }

    /// In the init: gives the process every id as itself, then lets it pass.
    fn open(&self, pid: libc::pid_t) -> Sys<()> {
        let Some((_, go)) = &self.0 else { return Ok(()) };
        for name in [&b"uid_map\0"[..], b"gid_map\0"] {
            let mut path = [0; PROC_PATH_BYTES];
            let path = proc_path(&mut path, pid, name).ok_or(Errno::NAMETOOLONG)?;
            let map = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&map, b"0 0 4294967295\n")?;
        }
        rustix::io::write(go, b"!").map(drop)
    }
}

/// Longest path of a file about a process, in bytes: `/proc/4194304/uid_map` and its end.
const PROC_PATH_BYTES: usize = 32;

/// `/proc/PID/NAME`, made without allocating; `name` has its end.
fn proc_path<'b>(
    buffer: &'b mut [u8; PROC_PATH_BYTES],
    pid: libc::pid_t,
    name: &[u8],
) -> Option<&'b CStr> {
    let mut rest = &mut buffer[..];
    write!(rest, "/proc/{pid}/").ok()?;
    rest.write_all(name).ok()?;
    CStr::from_bytes_until_nul(buffer).ok()
}

/// Becomes the process; returns only on failure.
pub(super) fn become_process(plan: &Plan) -> Failure {
    match prepare_process(plan) {
        Ok(()) => execute(plan),
        Err(failure) => failure,
    }
}

fn prepare_process(plan: &Plan) -> Result<(), Failure> {
    rustix::process::setsid().at(Step::Streams)?;
    let streams = &plan.streams;
    for (number, stream) in [&streams.input, &streams.output, &streams.error].iter().enumerate() {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        sys::duplicate_to(stream.as_raw_fd(), number).at(Step::Streams)?;
    }
    sys::close_range(3, u32::MAX).at(Step::Streams)?;
    if plan.console == Console::Own {
        sys::take_terminal().at(Step::Streams)?;
    }
    sys::forbid_core_files().at(Step::Streams)?;
    for (index, (resource, limit)) in plan.ulimits.iter().enumerate() {
        sys::set_limit(*resource, *limit).at_item(Step::Ulimit, index)?;
    }
    // Kernels without keyrings, and filters around us, have nothing to leave.
    let _ = sys::leave_keyring();
    enter_working_directory(plan).at(Step::WorkingDirectory)?;
    sys::reset_signals();
    // A namespace of its own has given it everything again.
    network::seal(plan.network).at(Step::Network)?;
    if plan.shield == Shield::Full {
        limit_capabilities(plan.capabilities).at(Step::Capabilities)?;
    }
    become_user(plan)
}

fn enter_working_directory(plan: &Plan) -> Sys<()> {
    rustix::process::chdir(plan.cwd.as_c_str())?;
    match sys::working_directory_starts_with()? {
        b'/' => Ok(()),
        _ => Err(Errno::XDEV),
    }
}

fn limit_capabilities(kept: u64) -> Sys<()> {
    const CLEAR_ALL: u64 = libc::PR_CAP_AMBIENT_CLEAR_ALL as u64;
    // Kernels before 4.3 have no ambient set.
    let _ = sys::prctl(libc::PR_CAP_AMBIENT, CLEAR_ALL, 0);
    for capability in (0..CAPABILITIES_MAX).filter(|number| kept & (1 << number) == 0) {
        match sys::prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            // Past the last capability of this kernel.
            Err(Errno::INVAL) => break,
            other => other?,
        }
    }
    Ok(())
}

fn become_user(plan: &Plan) -> Result<(), Failure> {
    let real = plan.mapping != Mapping::Single;
    if real {
        sys::set_groups(&plan.groups, plan.gid).at(Step::User)?;
    }
    // This and the filter need a capability that goes with the user. In a network of its own there are no sockets of the
    // machine, and without isolation nothing is kept from anything.
    let isolated = plan.shield == Shield::Full && plan.isolation != Isolation::Chroot;
    if isolated && plan.network == NetworkMode::Host {
        landlock::close_abstract_sockets().at(Step::Sockets)?;
    }
    if !plan.filter.is_empty() {
        sys::set_filter(&plan.filter).at(Step::Filter)?;
    }
    if real {
        sys::set_user(plan.uid).at(Step::User)?;
    }
    if plan.privileges == Privileges::MayNotGrow {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).at(Step::Capabilities)?;
    }
    if plan.shield == Shield::Full {
        let kept = if plan.uid == 0 || !real { plan.capabilities } else { 0 };
        sys::set_capabilities(kept).at(Step::Capabilities)?;
    }
    Ok(())
}

/// A file that this program has just written is open for writing still in a process that another thread is starting,
/// until that closes what it got: then it is busy for a moment, and nothing is wrong with it.
fn become_program(program: &CStr, plan: &Plan) -> Errno {
    let mut tries = 0;
    loop {
        let errno = sys::execute(program, plan.argv.pointers(), plan.env.pointers());
        tries += 1;
        if errno != Errno::TXTBSY || tries == BUSY_TRIES_MAX {
            return errno;
        }
        let _ = rustix::thread::nanosleep(&BUSY_WAIT);
    }
}

/// Tries the candidates as runc does: the first that exists and may be executed is the one.
fn execute(plan: &Plan) -> Failure {
    let mut told = Errno::NOENT;
    let alone = plan.candidates.len() == 1;
    for candidate in &plan.candidates {
        let errno = become_program(candidate.as_c_str(), plan);
        let missing = matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::ACCESS);
        if !missing || alone {
            told = errno;
            break;
        }
    }
    Failure { step: Step::Exec, item: 0, errno: told }
}
