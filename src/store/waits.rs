//! Waiting for locks of other processes: said after a second, with who holds it, and not for ever when told so.
//!
//! A lock (`flock`) dies with its holder, so what is waited for is always alive, if perhaps stopped. Who holds it is
//! asked of the kernel, which knows it better than a number in a file would. Knows nothing of what locks protect.

use std::{
    fmt,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, major, minor},
    io::Errno,
};

use super::{Store, StoreError, error::errno_at};

/// How long a wait is not worth a word.
const QUIET: Duration = Duration::from_secs(1);
/// How often who waits looks again: soon at first, since most locks are held for moments.
pub(super) const LOOK_EVERY: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_millis(20));
/// How often nobody is seen to hold a lock before that counts: it may be let go, or pass to the next, just then, and the
/// kernel's list, which is read a page at a time, leaves out a lock when another before it goes meanwhile.
const UNSEEN_MAX: u32 = 5;

/// How a process waits for others.
#[derive(Clone)]
pub struct Patience {
    /// How long for one lock; `None` for ever.
    pub limit: Option<Duration>,
    /// Is told once of every wait of more than a second, in one line, unless the limit is no longer than that: then
    /// there is the error alone.
    pub tell: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { limit: None, tell: Arc::new(|_| {}) }
    }
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// By one.
    Alone,
    /// By all who share it.
    Shared,
}

/// Who holds a lock, as far as the kernel tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process that runs.
    Running(u32),
    /// A process that was stopped, and will not let go before it goes on.
    Stopped(u32),
    /// What a process that has ended left behind.
    ChildOf(u32),
    /// Somebody in another namespace or container.
    Unknown,
}

impl Holder {
    /// Whether it is the one that asks.
    #[must_use]
    pub fn is_this_process(&self) -> bool {
        *self == Self::Running(std::process::id())
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running(pid) => write!(f, "process {pid}"),
            Self::Stopped(pid) => write!(f, "process {pid} (stopped: `kill -CONT {pid}` wakes it)"),
            Self::ChildOf(pid) => write!(f, "a process that process {pid} started"),
            Self::Unknown => write!(f, "a process that cannot be seen from here"),
        }
    }
}

/// Takes a lock, waiting for it as `patience` says.
pub(super) fn wait(
    file: &File,
    path: &Path,
    hold: Hold,
    patience: &Patience,
) -> Result<(), StoreError> {
    let how = match hold {
        Hold::Alone => FlockOperation::NonBlockingLockExclusive,
        Hold::Shared => FlockOperation::NonBlockingLockShared,
    };
    let (mut waiter, mut pause) = (Waiter::new(patience.clone()), LOOK_EVERY.0);
    loop {
        match rustix::fs::flock(file, how) {
            Err(Errno::WOULDBLOCK) => {}
            Err(Errno::INTR) => continue,
            locked => return locked.map_err(errno_at(path)),
        }
        if let Some(holder) = waiter.look(path, || holder(file))? {
            let path = path.display();
            (patience.tell)(&format!("waiting for {holder}, which holds {path}"));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LOOK_EVERY.1);
    }
}

/// One wait for a lock: when it is worth a word, and when patience has ended. Another part of this process is
/// waited for without either: it ends, and there is nothing to say of it.
pub struct Waiter {
    patience: Patience,
    started: Instant,
    is_told: bool,
    unseen: u32,
}

impl Waiter {
    fn new(patience: Patience) -> Self {
        Self { patience, started: Instant::now(), is_told: false, unseen: 0 }
    }

    /// After each try that failed: who is waited for, when that is to be told now.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] when patience has ended.
    pub fn look(
        &mut self,
        what: &Path,
        holder: impl FnOnce() -> Holder,
    ) -> Result<Option<Holder>, StoreError> {
        let waited = self.started.elapsed();
        let limit = self.patience.limit.filter(|limit| waited >= *limit);
        let is_long = self.patience.limit.is_none_or(|limit| limit > QUIET);
        let is_news = is_long && !self.is_told && waited >= QUIET;
        if limit.is_none() && !is_news {
            return Ok(None);
        }
        let holder = holder();
        if holder == Holder::Unknown && self.unseen < UNSEEN_MAX {
            self.unseen += 1;
            return Ok(None); // Let go by now, perhaps: the next try tells.
        }
        if holder.is_this_process() {
            (self.is_told, self.unseen) = (self.is_told || is_news, 0);
            return Ok(None);
        }
        // Both are due at the same look when this process was given no time for a while: it is said first.
        if let Some(limit) = limit.filter(|_| !is_news) {
            return Err(StoreError::Locked {
                path: what.to_owned(),
                holder,
                seconds: limit.as_secs(),
            });
        }
        self.is_told = true;
        Ok(Some(holder))
    }
}

/// Who holds a lock on this file.
pub(super) fn holder(file: &File) -> Holder {
    let Ok(found) = file.metadata() else { return Holder::Unknown };
    let wanted = (found.dev(), found.ino());
    if is_held_here(wanted) {
        return Holder::Running(std::process::id());
    }
    listed_holder(wanted).map_or(Holder::Unknown, |pid| describe(pid, wanted))
}

/// Whether a descriptor of this process holds a lock on this file: told by the kernel for each descriptor alone.
fn is_held_here(wanted: (u64, u64)) -> bool {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return false };
    descriptors.flatten().any(|descriptor| {
        let found = fs::metadata(descriptor.path());
        found.is_ok_and(|found| (found.dev(), found.ino()) == wanted)
            && fs::read_to_string(Path::new("/proc/self/fdinfo").join(descriptor.file_name()))
                .is_ok_and(|told| told.lines().any(is_of_a_lock))
    })
}

/// `lock:  1: FLOCK  ADVISORY  WRITE 123 08:01:456 0 EOF`.
fn is_of_a_lock(line: &str) -> bool {
    line.starts_with("lock:") && line.contains(" FLOCK ")
}

/// Who took the lock on this file, from the list of all locks.
fn listed_holder((device, inode): (u64, u64)) -> Option<u32> {
    let place = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let held = locks.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // `1: FLOCK ADVISORY WRITE 123 08:01:456 0 EOF`; who waits has `->` behind the number.
        let [_, "FLOCK", _, _, pid, at, ..] = words[..] else { return None };
        Some((pid.parse::<u32>().ok().filter(|pid| *pid > 0)?, at.to_owned()))
    });
    let held: Vec<(u32, String)> = held.collect();
    // Some file systems show another device to the kernel than to us: then the inode has to do.
    let same_inode = format!(":{inode}");
    let exact = held.iter().find(|(_, at)| *at == place);
    let found = exact.or_else(|| held.iter().find(|(_, at)| at.ends_with(&same_inode)));
    found.map(|(pid, _)| *pid)
}

/// The kernel keeps the number of who took the lock, although only a child may hold it now, or somebody else have
/// the number.
fn describe(pid: u32, wanted: (u64, u64)) -> Holder {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let has_it = match fs::read_dir(process.join("fd")) {
        // Another user's.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => true,
        Err(_) => false,
        Ok(descriptors) => descriptors.flatten().any(|descriptor| {
            let found = fs::metadata(descriptor.path());
            found.is_ok_and(|found| (found.dev(), found.ino()) == wanted)
        }),
    };
    if !has_it {
        return Holder::ChildOf(pid);
    }
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    if matches!(state, Some('T' | 't')) { Holder::Stopped(pid) } else { Holder::Running(pid) }
}

impl Store {
    /// A wait that begins now, in a way of the caller's own.
    #[must_use]
    pub fn waiter(&self) -> Waiter {
        Waiter::new(self.shared.patience.clone())
    }

    /// Takes a lock on a file of the store, alone, waiting for it as the store waits for everything.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] when patience ends.
    pub fn lock_alone(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        wait(file, path, Hold::Alone, &self.shared.patience)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Child, Command, Stdio},
        sync::{
            Mutex,
            atomic::{AtomicBool, Ordering},
        },
    };

    use rustix::fs::flock;

    use super::*;

    /// A process that has the lock of the file until it is killed.
    fn lock_elsewhere(path: &Path) -> Child {
        let file = File::options().append(true).create(true).open(path).unwrap();
        let mut child = Command::new("flock");
        child.arg("--no-fork").arg(path).args(["-c", "echo held; exec sleep 1000"]);
        let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = [0; 5];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        assert!(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err());
        child
    }

    #[test]
    fn f07_who_holds_a_lock_is_said_and_a_wait_has_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate");
        let mut child = lock_elsewhere(&path);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let listen = Arc::clone(&said);
        let tell: Arc<dyn Fn(&str) + Send + Sync> =
            Arc::new(move |text| listen.lock().unwrap().push(text.to_owned()));
        // One that is over before there is anything to tell, and one that is over at the same look.
        for (limit, told) in [(QUIET, 0), (QUIET + Duration::from_millis(1), 1)] {
            let patience = Patience { limit: Some(limit), tell: Arc::clone(&tell) };
            let refused = wait(&file, &path, Hold::Shared, &patience).unwrap_err();
            assert!(
                matches!(&refused, StoreError::Locked { holder, seconds: 1, .. } if *holder == Holder::Running(child.id())),
                "{refused}"
            );
            assert_eq!(said.lock().unwrap().len(), told, "a wait is told once");
        }
        let stop = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(stop, rustix::process::Signal::STOP).unwrap();
        while holder(&file) != Holder::Stopped(child.id()) {
            thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // The lock has died with its holder; who has the number now does not matter.
        wait(&file, &path, Hold::Alone, &Patience::default()).unwrap();
        assert_eq!(holder(&file), Holder::Running(std::process::id()));
    }

    #[test]
    fn f07_who_waits_for_another_part_of_this_process_has_all_patience() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate");
        let open = || File::options().write(true).create(true).truncate(false).open(&path).unwrap();
        let (held, wanted) = (open(), open());
        wait(&held, &path, Hold::Alone, &Patience::default()).unwrap();
        let patience = Patience {
            limit: Some(Duration::ZERO),
            tell: Arc::new(|text| panic!("nobody else is waited for: {text}")),
        };
        let begun = std::sync::Barrier::new(2);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                begun.wait();
                wait(&wanted, &path, Hold::Alone, &patience)
            });
            begun.wait();
            let until = Instant::now() + QUIET + LOOK_EVERY.1 * 2;
            while Instant::now() < until && !waiting.is_finished() {
                thread::yield_now();
            }
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn f07_a_lock_that_is_let_go_while_its_holder_is_looked_for_is_tried_again() {
        let patience = Patience { limit: Some(Duration::ZERO), ..Patience::default() };
        let mut waiter = Waiter::new(patience);
        let mut look = |holder| waiter.look(Path::new("gate"), || holder);
        for _ in 0..UNSEEN_MAX {
            assert_eq!(look(Holder::Unknown).unwrap(), None);
        }
        assert_eq!(look(Holder::Running(std::process::id())).unwrap(), None);
        assert_eq!(look(Holder::Unknown).unwrap(), None, "seen between, it counts from the start");
        assert!(matches!(look(Holder::Running(1)), Err(StoreError::Locked { .. })));
        for _ in 1..UNSEEN_MAX {
            assert_eq!(look(Holder::Unknown).unwrap(), None);
        }
        assert!(matches!(look(Holder::Unknown), Err(StoreError::Locked { .. })));
    }

    #[test]
    fn f07_a_lock_that_is_let_go_at_any_moment_is_taken() {
        const ROUNDS: u32 = 300;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate");
        let file = || File::options().append(true).create(true).open(&path).unwrap();
        let patience = Patience { limit: Some(Duration::ZERO), ..Patience::default() };
        for round in 0..ROUNDS {
            let held = file();
            wait(&held, &path, Hold::Alone, &Patience::default()).unwrap();
            let begun = std::sync::Barrier::new(2);
            thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let file = file();
                    begun.wait();
                    wait(&file, &path, Hold::Alone, &patience)
                });
                begun.wait();
                // At every moment of the search.
                let until = Instant::now() + Duration::from_micros(2) * round;
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                drop(held);
                waiting.join().unwrap().unwrap();
            });
        }
    }

    #[test]
    fn f07_other_locks_that_come_and_go_hide_no_holder() {
        let folder = tempfile::tempdir().unwrap();
        let lock = |name: String| {
            let path = folder.path().join(name);
            let file = File::options().append(true).create(true).open(&path).unwrap();
            wait(&file, &path, Hold::Alone, &Patience::default()).unwrap();
            file
        };
        let gate = folder.path().join("gate");
        let mut child = lock_elsewhere(&gate);
        let here = lock("here".to_owned());
        // More than a page of the kernel's list.
        let before: Vec<File> = (0..200).map(|number| lock(format!("before {number}"))).collect();
        let elsewhere = File::open(&gate).unwrap();
        let is_over = AtomicBool::new(false);
        // The newest stands first in the list: all that come later move up when it goes.
        let unlock =
            || before.iter().rev().try_for_each(|file| flock(file, FlockOperation::Unlock));
        let lock = || before.iter().try_for_each(|file| flock(file, FlockOperation::LockExclusive));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    unlock().and_then(|()| lock()).unwrap();
                }
            });
            let found: Vec<(Holder, Holder)> =
                (0..300).map(|_| (holder(&here), holder(&elsewhere))).collect();
            is_over.store(true, Ordering::Relaxed);
            let wanted = (Holder::Running(std::process::id()), Holder::Running(child.id()));
            assert!(found.iter().all(|(here, _)| *here == wanted.0), "{found:?}");
            // The list may leave one out, but hardly again and again.
            let looks = UNSEEN_MAX as usize + 1;
            let is_seen = |looks: &[_]| looks.iter().any(|(_, elsewhere)| *elsewhere == wanted.1);
            assert!(found.windows(looks).all(is_seen), "{found:?}");
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
