//! The socket that processes speak to: made when a step begins, gone when it ends.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::OpenOptionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::ssh::{
    Agent, Keys, sign,
    wire::{FAILURE, MESSAGE_BYTES_MAX, REQUEST_IDENTITIES, SIGN_REQUEST},
};

/// Connections at once; more are closed at once.
const CONNECTIONS_MAX: usize = 64;

/// Wait after a connection that could not be accepted.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A socket that an agent answers at until this is dropped.
pub struct Door {
    path: PathBuf,
    /// Closed to stop listening.
    open: Option<OwnedFd>,
    listener: Option<JoinHandle<()>>,
    talks: Arc<Talks>,
}

/// Both ends of every conversation, by its number, to be cut off.
#[derive(Default)]
struct Talks(Mutex<HashMap<u64, Vec<UnixStream>>>);

impl Talks {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Vec<UnixStream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, number: u64, stream: &UnixStream) -> io::Result<()> {
        let copy = stream.try_clone()?;
        self.lock().entry(number).or_default().push(copy);
        Ok(())
    }
}

impl Door {
    /// Listens at `path`, which must not be there yet; it may be longer than a socket's address can be.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made.
    pub fn open(agent: Arc<Agent>, path: &Path) -> io::Result<Self> {
        let listener = bind(path)?;
        let (watch, open) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let talks = Arc::new(Talks::default());
        let shared = Arc::clone(&talks);
        let thread = std::thread::Builder::new().name("ssh agent".to_owned());
        let listener = thread.spawn(move || listen(&listener, &watch, &agent, &shared))?;
        Ok(Self { path: path.to_owned(), open: Some(open), listener: Some(listener), talks })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        drop(self.open.take());
        drop(fs::remove_file(&self.path));
        if let Some(listener) = self.listener.take() {
            drop(listener.join());
        }
        for stream in self.talks.lock().drain().flat_map(|(_, streams)| streams) {
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }
}

/// By the folder's descriptor: the address of a socket has 108 bytes, a store's path may have more.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let (folder, name) =
        (path.parent().ok_or_else(invalid)?, path.file_name().ok_or_else(invalid)?);
    let mut options = fs::OpenOptions::new();
    let flags = (rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY).bits();
    let folder = options.read(true).custom_flags(flags.cast_signed()).open(folder)?;
    let short = format!("/proc/self/fd/{}", folder.as_raw_fd());
    UnixListener::bind(Path::new(&short).join(name))
}

fn listen(listener: &UnixListener, watch: &OwnedFd, agent: &Arc<Agent>, talks: &Arc<Talks>) {
    let mut number = 0;
    loop {
        let mut watched = [PollFd::new(watch, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        match rustix::event::poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if !watched[0].revents().is_empty() => return,
            Ok(_) => {}
        }
        let Ok((client, _)) = listener.accept() else {
            // No descriptors left: the next one may do better, but not at once.
            let mut watched = [PollFd::new(watch, PollFlags::IN)];
            let _ = rustix::event::poll(&mut watched, Some(&ACCEPT_PAUSE));
            continue;
        };
        if talks.lock().len() >= CONNECTIONS_MAX || talks.remember(number, &client).is_err() {
            continue; // Closed: the other side sees an agent that does not answer.
        }
        let (agent, talks, this) = (Arc::clone(agent), Arc::clone(talks), number);
        number += 1;
        let thread = std::thread::Builder::new().name("ssh agent talk".to_owned());
        // Where no thread can be had, the connection is closed.
        drop(thread.spawn(move || {
            // Whichever side goes away first, the other is told by closing.
            drop(talk(client, &agent, &talks, this));
            talks.lock().remove(&this);
        }));
    }
}

fn talk(mut client: UnixStream, agent: &Agent, talks: &Talks, number: u64) -> io::Result<()> {
    let mut upstream = match agent {
        Agent::Keys(_) => None,
        Agent::Socket(path) => Some(UnixStream::connect(path)?),
    };
    upstream.iter().try_for_each(|stream| talks.remember(number, stream))?;
    while let Some(message) = receive(&mut client)? {
        let answer = match (agent, &mut upstream) {
            (Agent::Keys(Keys(keys)), _) => sign::answer(keys, &message),
            (Agent::Socket(_), Some(upstream)) => relay(upstream, &message)?,
            (Agent::Socket(_), None) => vec![FAILURE],
        };
        send(&mut client, &answer)?;
    }
    Ok(())
}

/// The answer of the user's own agent, who is asked for what a build may want and for nothing else.
fn relay(upstream: &mut UnixStream, message: &[u8]) -> io::Result<Vec<u8>> {
    if !matches!(message.first(), Some(&(REQUEST_IDENTITIES | SIGN_REQUEST))) {
        return Ok(vec![FAILURE]);
    }
    send(upstream, message)?;
    receive(upstream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The next message, without its length; `None` at the end.
fn receive(from: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    match from.read_exact(&mut len) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let len = u32::from_be_bytes(len) as usize;
    if len == 0 || len > MESSAGE_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; len];
    from.read_exact(&mut message)?;
    Ok(Some(message))
}

fn send(to: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    let len = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    to.write_all(&len.to_be_bytes())?;
    to.write_all(message)
}
