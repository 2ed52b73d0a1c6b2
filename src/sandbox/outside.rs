//! A process as seen from outside: started, listened to, cancelled, waited for, cleared up after.

#![expect(unsafe_code, reason = "forks the sandbox's init from a process with threads")]

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    process::ExitStatus,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::OFlags,
    io::Errno,
    pipe::PipeFlags,
    process::Signal,
};

use crate::event::Stream;

use crate::sandbox::{
    Bind, CancelFlag, Exit, Isolation, LimitsMet, Mount, NetworkMode, ProcessSpec, SandboxError,
    cgroup::{Cgroup, Hierarchies},
    chroot,
    inside::{self, Joined},
    network::{self, Link},
    points,
    prepare::{self, Aid, Plan, Streams, setup},
    sys::{self, Forked, SharedMemory},
    told::{Failure, Step, Told},
    userns,
};

/// How long cancellation may go unnoticed, in milliseconds.
const CANCEL_POLL_MS: i64 = 50;

/// How often the control group is asked whether processes are refused.
const CROWD_POLL: Duration = Duration::from_millis(250);

/// How long in a row a step may come up against its number of processes: a build that waits for a place
/// gets one much sooner, a fork bomb never does.
const CROWD_MAX: Duration = Duration::from_secs(5);

/// Bytes read from a pipe at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// First part of an exit code that tells of a signal.
const SIGNAL_BASE: i32 = 128;

/// Signals that everything blocks while forking: all of them.
const SIGNALS_ALL: u64 = u64::MAX;

/// See [`super::run`].
pub(super) fn run(
    spec: &ProcessSpec,
    output: &mut dyn FnMut(Stream, &[u8]),
    cancel: &CancelFlag,
) -> Result<Exit, SandboxError> {
    let told = SharedMemory::<Told>::new().map_err(|errno| setup("share memory", errno.into()))?;
    run_telling(spec, output, cancel, told.get())
}

/// As [`run`]; what was told besides can be read in `told` afterwards.
pub(super) fn run_telling(
    spec: &ProcessSpec,
    output: &mut dyn FnMut(Stream, &[u8]),
    cancel: &CancelFlag,
    told: &Told,
) -> Result<Exit, SandboxError> {
    if cancel.load(Ordering::Relaxed) {
        return Err(SandboxError::Cancelled);
    }
    let (streams, mut ears) = streams().map_err(|error| setup("make pipes", error))?;
    let cgroup = Cgroup::new(&Hierarchies::found(), &spec.limits)
        .map_err(|error| setup("make a control group", error))?;
    let lent = match spec.isolation {
        Isolation::Full | Isolation::OuterProc => None,
        Isolation::Chroot => {
            chroot::check(spec)?;
            Some(chroot::Lent::new(spec)?)
        }
    };
    let plan = prepare::plan(spec, streams, cgroup)?;
    let mut process = start(&plan, told)?;
    // Our ends of the process's streams: their last writer must be inside.
    let Plan { streams, _aid: aid, cgroup, .. } = plan;
    drop(streams);
    let mut crowd = Crowd::new(&cgroup);
    let listened = listen(&mut process, &mut ears, output, (cancel, &mut crowd));
    conclude(spec, told, process, ((aid, lent), crowd, listened))
}

/// What the process needs until it has ended.
pub(super) type Lendings = (Aid, Option<chroot::Lent>);

/// Waits for the end, clears up, and says how it went.
pub(super) fn conclude(
    spec: &ProcessSpec,
    told: &Told,
    mut process: Process,
    ((aid, lent), crowd, listened): (Lendings, Crowd<'_>, Result<Listened, SandboxError>),
) -> Result<Exit, SandboxError> {
    let usage = process.wait().map_err(|errno| setup("wait for the process", errno.into()))?;
    let met = crowd.met();
    drop(aid);
    drop(lent);
    let made = told.all_made();
    points::remove(&spec.rootfs.upper, &made)
        .map_err(|error| setup("remove mount points", error))?;
    clear_work(spec);
    if listened? == Listened::Cancelled {
        return Err(SandboxError::Cancelled);
    }
    if met.stopped {
        return Ok(exit(libc::SIGKILL, &usage, met));
    }
    if let Some(failure) = told.failure() {
        return Err(explain(spec, failure));
    }
    // The init itself may be what memory ran out for.
    let killed = (met.oom_kills > 0).then_some(libc::SIGKILL);
    let status = told.ended().or(killed).ok_or_else(|| SandboxError::Setup {
        step: "wait for the process".to_owned(),
        source: io::Error::other("it was killed from outside, or memory ran out"),
    })?;
    Ok(exit(status, &usage, met))
}

/// What is read from the process.
pub(super) struct Ears {
    output: OwnedFd,
    error: OwnedFd,
}

pub(super) fn streams() -> io::Result<(Streams, Ears)> {
    let null = rustix::fs::open(
        c"/dev/null",
        OFlags::RDONLY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let (output_read, output_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (error_read, error_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    for ear in [&output_read, &error_read] {
        rustix::fs::fcntl_setfl(ear, OFlags::NONBLOCK)?;
    }
    let streams = Streams {
        input: prepare::raised(null.as_fd())?,
        output: prepare::raised(output_write.as_fd())?,
        error: prepare::raised(error_write.as_fd())?,
    };
    Ok((streams, Ears { output: output_read, error: error_read }))
}

/// The sandbox's init. Killed and waited for when dropped, so that nothing outlives the call.
pub(super) struct Process {
    /// What ends it: what it started ends with it, or by it.
    end: Signal,
    pid: libc::pid_t,
    pidfd: OwnedFd,
    waited: bool,
    /// Carries its network.
    _link: Option<Link>,
}

impl Process {
    /// Readable when it has ended.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.pidfd
    }

    pub(super) fn kill(&self) {
        // An error says that it has ended already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, self.end);
    }

    fn wait(&mut self) -> Result<libc::rusage, Errno> {
        self.waited = true;
        sys::wait(self.pid).map(|waited| waited.usage)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.waited {
            self.kill();
            let _ = self.wait();
        }
    }
}

pub(super) fn start(plan: &Plan, told: &Told) -> Result<Process, SandboxError> {
    let mut namespaces =
        libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    let network = plan.users.as_ref().and_then(|users| users.network.as_ref());
    if plan.network != NetworkMode::Host && network.is_none() {
        namespaces |= libc::CLONE_NEWNET;
    }
    let mut end = Signal::KILL;
    if plan.isolation == Isolation::Chroot {
        (namespaces, end) = (0, chroot::END);
    }
    let failed = |errno: Errno| setup("start a process in new namespaces", errno.into());
    // Handlers of the tool must not run in the child, where they would speak through shared pipes.
    let mask = sys::set_signal_mask(SIGNALS_ALL).map_err(failed)?;
    let back = network.map(|network| sys::enter_network(network.as_fd()));
    let back = back.transpose().map_err(failed)?;
    let mut joined = Joined::AtBirth;
    let born = plan.cgroup.birthplace.as_ref().map(|group| {
        // SAFETY: the child calls `inside::init` alone, which is made for this and never returns.
        unsafe { sys::fork_into(namespaces, group.as_fd()) }
    });
    let forked = match born {
        Some(Ok(forked)) => Ok(forked),
        None | Some(Err(_)) => {
            joined = Joined::NotYet;
            // SAFETY: as above.
            unsafe { sys::fork(namespaces) }
        }
    };
    if matches!(forked, Ok(Forked::Child)) {
        inside::init(plan, told, joined);
    }
    let returned = back.map(|back| sys::enter_network(back.as_fd())).transpose();
    sys::set_signal_mask(mask).map_err(failed)?;
    match forked.map_err(failed)? {
        Forked::Parent(pid, Some(pidfd)) => {
            let mut process = Process { end, pid, pidfd, waited: false, _link: None };
            returned.map_err(failed)?;
            process._link = network::connect(plan.network, pid)?;
            network::release(told)?;
            Ok(process)
        }
        Forked::Parent(_, None) | Forked::Child => unreachable!("a pidfd was asked for"),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Listened {
    ToTheEnd,
    Cancelled,
}

/// Hands output on until the process has ended, or kills it when the caller asks.
fn listen(
    process: &mut Process,
    ears: &mut Ears,
    output: &mut dyn FnMut(Stream, &[u8]),
    (cancel, crowd): (&CancelFlag, &mut Crowd<'_>),
) -> Result<Listened, SandboxError> {
    let mut buffer = vec![0u8; CHUNK_BYTES];
    let mut open = [true, true];
    let wait = Timespec { tv_sec: 0, tv_nsec: CANCEL_POLL_MS * 1_000_000 };
    let failed = |errno: Errno| setup("read the output", errno.into());
    loop {
        let (heard, ended) = poll(process, ears, open, &wait).map_err(failed)?;
        for (index, heard) in heard.into_iter().enumerate() {
            // After the end, whatever is left in the pipes; nobody writes any more.
            while open[index] && (heard || ended) {
                let (ear, stream) = match index {
                    0 => (&ears.output, Stream::Stdout),
                    _ => (&ears.error, Stream::Stderr),
                };
                match rustix::io::read(ear, &mut buffer) {
                    Ok(0) => open[index] = false,
                    Ok(len) => output(stream, &buffer[..len]),
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => break,
                    Err(errno) => return Err(failed(errno)),
                }
                if !ended {
                    break;
                }
            }
        }
        if cancel.load(Ordering::Relaxed) {
            process.kill();
            return Ok(Listened::Cancelled);
        }
        if ended {
            return Ok(Listened::ToTheEnd);
        }
        if crowd.is_too_much() {
            process.kill();
        }
    }
}

/// Watches whether a step keeps trying to start more processes than it may have.
pub(super) struct Crowd<'a> {
    cgroup: &'a Cgroup,
    looked: Instant,
    refused: u64,
    /// Since when processes are refused without a rest.
    since: Option<Instant>,
    stopped: bool,
}

impl<'a> Crowd<'a> {
    pub(super) fn new(cgroup: &'a Cgroup) -> Self {
        Self { cgroup, looked: Instant::now(), refused: 0, since: None, stopped: false }
    }

    fn is_too_much(&mut self) -> bool {
        let now = Instant::now();
        if now.duration_since(self.looked) < CROWD_POLL {
            return false;
        }
        self.looked = now;
        let refused = self.cgroup.pressure().forks_refused;
        if refused == self.refused {
            self.since = None;
            return false;
        }
        self.refused = refused;
        let since = *self.since.get_or_insert(now);
        self.stopped |= now.duration_since(since) >= CROWD_MAX;
        self.stopped
    }

    fn met(&self) -> LimitsMet {
        let pressure = self.cgroup.pressure();
        LimitsMet {
            oom_kills: pressure.oom_kills,
            forks_refused: pressure.forks_refused,
            stopped: self.stopped,
        }
    }
}

/// Waits for output, the end, or the time: which pipes have something, and whether it has ended.
fn poll(
    process: &Process,
    ears: &Ears,
    open: [bool; 2],
    wait: &Timespec,
) -> Result<([bool; 2], bool), Errno> {
    // A closed pipe would be reported for ever: the process, whose descriptor is asked about anyway, stands in for it.
    let [output, error] = [(open[0], &ears.output), (open[1], &ears.error)]
        .map(|(open, ear)| if open { ear } else { &process.pidfd });
    let mut watched =
        [&process.pidfd, output, error].map(|watched| PollFd::new(watched, PollFlags::IN));
    match rustix::event::poll(&mut watched, Some(wait)) {
        Ok(_) => {
            let [ended, output, error] = watched.map(|one| !one.revents().is_empty());
            Ok(([output, error], ended))
        }
        Err(Errno::INTR) => Ok(([false, false], false)),
        Err(errno) => Err(errno),
    }
}

/// Overlay leaves `work/work` behind, with a mark that forbids its reuse after a crash.
fn clear_work(spec: &ProcessSpec) {
    for name in ["work", "index"] {
        drop(std::fs::remove_dir_all(spec.rootfs.work.join(name)));
    }
}

fn exit(status: i32, usage: &libc::rusage, met: LimitsMet) -> Exit {
    let status = ExitStatus::from_raw(status);
    let signal = status.signal();
    let time = |time: libc::timeval| {
        let micros = time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_usec);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    let kibibytes = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    Exit {
        code: status.code().unwrap_or_else(|| SIGNAL_BASE + signal.unwrap_or(0)),
        signal,
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        memory_peak: kibibytes * 1024,
        met,
    }
}

fn explain(spec: &ProcessSpec, failure: Failure) -> SandboxError {
    let source = io::Error::from(failure.errno);
    let item = failure.item as usize;
    let target = match failure.step {
        Step::Exec => return exec_error(spec, failure.errno),
        Step::Network if spec.network == NetworkMode::Sandbox => {
            return network::unfit(failure.step.words(), failure.errno);
        }
        Step::EtcFile => ["/etc/hosts", "/etc/resolv.conf"].get(item).map(|&name| name.to_owned()),
        Step::MapIds if item == userns::ROOT => Some("the root file system".to_owned()),
        Step::Bind | Step::Tmpfs | Step::MapIds => spec.mounts.get(item).map(|mount| match mount {
            Mount::Bind(Bind { inside: Some(inside), target, .. }) => {
                format!("/{inside} of a cache at {target}")
            }
            Mount::Bind(bind) => format!("{} at {}", bind.source.display(), bind.target),
            Mount::Tmpfs(tmpfs) => tmpfs.target.clone(),
        }),
        Step::WorkingDirectory | Step::MakeWorkingDirectory => Some(spec.cwd.clone()),
        Step::Ulimit => {
            let asked = spec.limits.ulimits.get(item);
            Some(asked.map_or("nproc", |ulimit| ulimit.kind.name()).to_owned())
        }
        Step::User => Some(format!("{}:{}", spec.uid, spec.gid)),
        Step::Join
        | Step::Isolate
        | Step::Overlay
        | Step::Proc
        | Step::Sys
        | Step::Dev
        | Step::Mask
        | Step::Pivot
        | Step::Network
        | Step::HostName
        | Step::Fork
        | Step::Emulate
        | Step::Users
        | Step::Streams
        | Step::Capabilities
        | Step::Sockets
        | Step::Filter => None,
    };
    let words = failure.step.words();
    SandboxError::Setup {
        step: target.map_or_else(|| words.to_owned(), |target| format!("{words} {target}")),
        source,
    }
}

fn exec_error(spec: &ProcessSpec, errno: Errno) -> SandboxError {
    let program = spec.argv.first().cloned().unwrap_or_default();
    let reason = match errno {
        Errno::NOENT | Errno::NOTDIR if !program.contains('/') => {
            "executable file not found in $PATH".to_owned()
        }
        Errno::NOENT => "no such file or directory".to_owned(),
        Errno::NOTDIR => "not a directory".to_owned(),
        Errno::ACCESS => "permission denied".to_owned(),
        Errno::NOEXEC => "exec format error".to_owned(),
        Errno::TOOBIG => {
            "argument list too long: shorten the command or its environment".to_owned()
        }
        other => io::Error::from(other).to_string(),
    };
    SandboxError::Exec { program, reason }
}
