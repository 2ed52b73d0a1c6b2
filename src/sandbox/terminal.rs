//! A process on a terminal: a pseudo-terminal of the sandbox's own, and the user's terminal joined to it from outside.
//!
//! The process never has the user's terminal: what it pushes into its own (TIOCSTI) reaches itself. The inside half makes
//! system calls only.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::atomic::Ordering,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Gid, Mode, OFlags, Uid},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
    termios::{OptionalActions, QueueSelector, Termios, Winsize},
};

use crate::sandbox::{
    CancelFlag, Exit, Isolation, ProcessSpec, SandboxError,
    cgroup::{Cgroup, Hierarchies},
    outside::{self, Crowd, Listened},
    prepare::{self, Console, Plan, Streams, setup},
    sys::{self, SharedMemory, Sys},
    told::Told,
};

/// How long a cancellation or a new size of the window may go unnoticed, in milliseconds.
const POLL_MS: i64 = 50;

/// Bytes read at once.
const CHUNK_BYTES: usize = 4096;

/// Typed bytes that the process has not read yet; more are left in the user's terminal.
const TYPED_BYTES_MAX: usize = 64 * 1024;

/// End of input as a terminal has it (^D).
const END_OF_INPUT: u8 = 4;

/// The user's terminal.
#[derive(Clone, Copy)]
pub struct Terminal<'f> {
    /// Where the user types; put into raw mode for the time.
    pub input: BorrowedFd<'f>,
    /// What the user sees.
    pub output: BorrowedFd<'f>,
}

/// See [`super::attach`].
pub(super) fn attach(
    spec: &ProcessSpec,
    terminal: Terminal<'_>,
    cancel: &CancelFlag,
) -> Result<Exit, SandboxError> {
    let told = SharedMemory::<Told>::new().map_err(|errno| setup("share memory", errno.into()))?;
    if spec.isolation == Isolation::Chroot {
        let reason = "--isolation=chroot has no terminals".to_owned();
        let help = "a place with namespaces can: `idpbuilder doctor` says what this one lacks";
        return Err(SandboxError::Unavailable { reason, help: help.to_owned() });
    }
    let (ours, streams) = streams().map_err(|error| setup("make a terminal", error))?;
    let cgroup = Cgroup::new(&Hierarchies::found(), &spec.limits)
        .map_err(|error| setup("make a control group", error))?;
    let mut plan = prepare::plan(spec, streams, cgroup)?;
    plan.console = Console::Own;
    let mut process = outside::start(&plan, told.get())?;
    let Plan { streams, _aid: aid, cgroup, .. } = plan;
    drop(streams);
    let failed = |error: io::Error| setup("join the terminals", error);
    let joined = match receive(&ours) {
        Ok(Some(master)) => join(&mut process, &master, terminal, cancel).map_err(failed),
        // It failed before there was a terminal, and has told why.
        Ok(None) => Ok(Listened::ToTheEnd),
        Err(errno) => Err(failed(errno.into())),
    };
    if joined.is_err() {
        process.kill();
    }
    outside::conclude(spec, told.get(), process, ((aid, None), Crowd::new(&cgroup), joined))
}

/// Our end of the way by which the terminal comes out, and the streams of the process until then.
fn streams() -> io::Result<(OwnedFd, Streams)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let input = prepare::raised(theirs.as_fd())?;
    let (output, error) = (prepare::raised(theirs.as_fd())?, prepare::raised(theirs.as_fd())?);
    Ok((ours, Streams { input, output, error }))
}

/// Runs inside: opens a terminal of the devpts that the process will see, hands its other end out, and puts it in the
/// place of the streams.
pub(super) fn open(pts: BorrowedFd<'_>, plan: &Plan) -> Sys<()> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(pts, c"ptmx", flags, Mode::empty())?;
    let slave = sys::open_terminal_peer(master.as_fd())?;
    // Whoever the process is may open its own terminal by name; where ids are not mapped, it is ours.
    let (uid, gid) = plan.outside((plan.uid, plan.gid));
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let _ = rustix::fs::fchown(&slave, Some(uid), Some(gid));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sent = [master.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&sent)) {
        return Err(Errno::NOSPC);
    }
    let byte = [IoSlice::new(b"!")];
    rustix::net::sendmsg(&plan.streams.input, &byte, &mut control, SendFlags::NOSIGNAL)?;
    let Streams { input, output, error } = &plan.streams;
    for stream in [input, output, error] {
        sys::duplicate_to(slave.as_raw_fd(), stream.as_raw_fd())?;
    }
    Ok(())
}

/// The terminal from inside; `None` when nobody will send one.
fn receive(from: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    let mut into = [IoSliceMut::new(&mut byte)];
    loop {
        match rustix::net::recvmsg(from, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => break,
        }
    }
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return Ok(descriptors.next());
        }
    }
    Ok(None)
}

/// The user's terminal without echo, lines and signals; as before when dropped.
struct Raw<'f>(BorrowedFd<'f>, Termios);

impl<'f> Raw<'f> {
    fn enter(terminal: BorrowedFd<'f>) -> Result<Self, Errno> {
        let before = rustix::termios::tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(terminal, OptionalActions::Now, &raw)?;
        Ok(Self(terminal, before))
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // What is typed and not read yet is nobody's any more: it may be the terminal's answer to what the process
        // printed, and the next who reads would take it for the user's word. One that has gone away needs nothing.
        let _ = rustix::termios::tcflush(self.0, QueueSelector::IFlush);
        let _ = rustix::termios::tcsetattr(self.0, OptionalActions::Now, &self.1);
    }
}

/// What is under way between the two terminals.
struct Joint<'f> {
    terminal: Terminal<'f>,
    master: &'f OwnedFd,
    /// Typed, and not read by the process yet.
    typed: Vec<u8>,
    input_ended: bool,
    /// Nobody inside has the terminal open any more.
    hung_up: bool,
    size: Option<(u16, u16)>,
}

fn join(
    process: &mut outside::Process,
    master: &OwnedFd,
    terminal: Terminal<'_>,
    cancel: &CancelFlag,
) -> io::Result<Listened> {
    rustix::fs::fcntl_setfl(master, OFlags::RDWR | OFlags::NONBLOCK)?;
    let _raw = Raw::enter(terminal.input)?;
    let (typed, input_ended, hung_up) = (Vec::new(), false, false);
    let mut joint = Joint { terminal, master, typed, input_ended, hung_up, size: None };
    loop {
        joint.follow_size();
        let ended = joint.wait(process)?;
        if cancel.load(Ordering::Relaxed) {
            process.kill();
            return Ok(Listened::Cancelled);
        }
        joint.pass_typed()?;
        while joint.pass_shown()? && ended {}
        if ended {
            return Ok(Listened::ToTheEnd);
        }
    }
}

impl Joint<'_> {
    /// Gives the process's terminal the size of the user's; the kernel tells the process.
    fn follow_size(&mut self) {
        let Ok(Winsize { ws_row, ws_col, .. }) =
            rustix::termios::tcgetwinsize(self.terminal.output)
        else {
            return;
        };
        if self.size != Some((ws_row, ws_col)) {
            self.size = Some((ws_row, ws_col));
            let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal without a size is one all the same.
            let _ = rustix::termios::tcsetwinsize(self.master, size);
        }
    }

    /// Waits until something can be done; reads what was typed. Whether the process has ended.
    fn wait(&mut self, process: &outside::Process) -> io::Result<bool> {
        let time = Timespec { tv_sec: 0, tv_nsec: POLL_MS * 1_000_000 };
        let listens = !self.input_ended && self.typed.len() < TYPED_BYTES_MAX;
        let typed = if listens { PollFlags::IN } else { PollFlags::empty() };
        let unread = if self.typed.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut watched = [
            PollFd::new(process.descriptor(), PollFlags::IN),
            PollFd::new(&self.terminal.input, typed),
            PollFd::new(self.master, PollFlags::IN | unread),
        ];
        // Once hung up, it would be reported for ever.
        let count = if self.hung_up { 2 } else { 3 };
        match rustix::event::poll(&mut watched[..count], Some(&time)) {
            Err(Errno::INTR) => return Ok(false),
            other => other?,
        };
        let [ended, input, _] = watched.map(|one| !one.revents().is_empty());
        if listens && input {
            let mut buffer = [0u8; CHUNK_BYTES];
            match rustix::io::read(self.terminal.input, &mut buffer) {
                Ok(0) | Err(Errno::IO) => {
                    self.input_ended = true;
                    self.typed.push(END_OF_INPUT);
                }
                Ok(len) => self.typed.extend_from_slice(&buffer[..len]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(ended)
    }

    fn pass_typed(&mut self) -> io::Result<()> {
        while !self.typed.is_empty() {
            match rustix::io::write(self.master, &self.typed) {
                Ok(len) => drop(self.typed.drain(..len)),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(Errno::IO) => self.typed.clear(),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Shows what the process printed; whether there may be more.
    fn pass_shown(&mut self) -> io::Result<bool> {
        let mut buffer = [0u8; CHUNK_BYTES];
        let len = match rustix::io::read(self.master, &mut buffer) {
            Ok(0) | Err(Errno::IO) => {
                self.hung_up = true;
                return Ok(false);
            }
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            read => read?,
        };
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            match rustix::io::write(self.terminal.output, rest) {
                Ok(len) => rest = &rest[len..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(terminal: &OwnedFd, time: Timespec) -> bool {
        let mut watched = [PollFd::new(terminal, PollFlags::IN)];
        rustix::event::poll(&mut watched, Some(&time)).unwrap() > 0
    }

    /// A process can make a terminal answer: who reads next must not take that for the user's word.
    #[test]
    fn what_nobody_has_read_is_gone_with_the_shell() {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = rustix::fs::open(c"/dev/ptmx", flags, Mode::empty()).unwrap();
        let terminal = sys::open_terminal_peer(master.as_fd()).unwrap();
        let raw = Raw::enter(terminal.as_fd()).unwrap();
        rustix::io::write(&master, b"touch /evil\n").unwrap();
        assert!(waits(&terminal, Timespec { tv_sec: 60, tv_nsec: 0 }), "it has arrived");
        drop(raw);
        assert!(!waits(&terminal, Timespec { tv_sec: 0, tv_nsec: 0 }));
    }
}
