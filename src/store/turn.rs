//! Turns: of several processes that would do the same work, one does it and the others take its result.
//!
//! A turn is a locked file in `turns/`, named by the cache key. Who waits adds a byte: the holder then makes its result
//! durable before it lets go, since only what is durable is seen by other processes. The file goes with the turn.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
};

use rustix::{fs::FlockOperation, io::Errno};

use crate::{
    graph::CacheKey,
    store::{
        Store, StoreError,
        error::{at, errno_at},
        facts::Access,
        waits::{self, Holder, LOOK_EVERY},
    },
};

/// The right to do some work, until dropped.
pub struct Turn {
    store: Store,
    file: File,
    path: PathBuf,
}

/// Whether to go on waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Yes.
    Further,
    /// No: the user asked to stop.
    No,
}

impl Store {
    /// Waits until no other process does the work of `key`. `look` is asked again and again while it
    /// waits; once, after a second, with who is waited for. `None` when `look` says no, and
    /// where the store cannot be written to.
    ///
    /// # Errors
    ///
    /// When the file cannot be made or locked.
    pub fn turn(
        &self,
        key: CacheKey,
        look: &mut dyn FnMut(Option<&Holder>) -> Waiting,
    ) -> Result<Option<Turn>, StoreError> {
        if self.shared.facts().access() == Access::ReadOnly {
            return Ok(None);
        }
        let folder = self.root().join("turns");
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::at(&folder, error));
            }
            _ => {}
        }
        let path = folder.join(key.0.hex());
        let (mut waiter, mut has_asked, mut pause) = (self.waiter(), None, LOOK_EVERY.0);
        loop {
            let file = File::options().read(true).append(true).create(true).mode(0o600).open(&path);
            let mut file = file.map_err(at(&path))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_named(&file, &path) => {
                    // Whoever asked one that was killed asks this one as well: what stands in it stays.
                    return Ok(Some(Turn { store: self.clone(), file, path }));
                }
                // The one before took its file with it.
                Ok(()) => continue,
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(errno_at(&path)(errno)),
            }
            let inode = file.metadata().map_err(at(&path))?.ino();
            if has_asked != Some(inode) {
                file.write_all(b".").map_err(at(&path))?;
                has_asked = Some(inode);
            }
            let holder = waiter.look(&path, || waits::holder(&file))?;
            if look(holder.as_ref()) == Waiting::No {
                return Ok(None);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LOOK_EVERY.1);
        }
    }
}

impl Turn {
    /// Whether somebody waits for the end of this one.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.len() > 0)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_waited_for() {
            // What cannot be made durable is done again by who waits.
            drop(self.store.flush());
        }
        drop(fs::remove_file(&self.path)); // A file that stays is found unlocked, and used again.
    }
}

/// Removes the files of turns whose process was killed.
pub(super) fn sweep_turns(root: &Path) -> Result<(), StoreError> {
    let folder = root.join("turns");
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()), // Nobody had one yet.
        entries => entries.map_err(at(&folder))?,
    };
    for entry in entries {
        let path = entry.map_err(at(&folder))?.path();
        let Ok(file) = File::open(&path) else { continue };
        // While it is locked: who is just taking it finds out, and makes another. Of one that ended just now the name
        // may be the next one's already.
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_named(&file, &path)
        {
            drop(fs::remove_file(&path));
        }
    }
    Ok(())
}

/// Whether the file is still the one of that name.
fn is_named(file: &File, path: &Path) -> bool {
    let inode =
        |found: io::Result<fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
    inode(file.metadata()) == inode(fs::metadata(path))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use crate::{oci::Digest, store::GcPolicy};

    #[test]
    fn one_at_a_time_has_a_turn_and_no_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let key = CacheKey(Digest::of(b"work"));
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            for _ in 0..5 {
                let turn = store.turn(key, &mut |_| Waiting::Further).unwrap();
                let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                thread::yield_now();
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(turn.unwrap());
            }
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
        assert_eq!(most.load(Ordering::SeqCst), 1);
        assert_eq!(fs::read_dir(store.root().join("turns")).unwrap().count(), 0);
    }

    #[test]
    fn a_turn_is_one_s_own_whoever_looks_for_those_of_the_killed() {
        const ROUNDS: usize = 2000;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let key = CacheKey(Digest::of(b"work"));
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let sweep = || {
                while !is_over.load(Ordering::Relaxed) {
                    sweep_turns(store.root()).unwrap();
                }
            };
            (0..2).for_each(|_| drop(scope.spawn(sweep)));
            let lost = (0..ROUNDS).filter(|_| {
                let turn = store.turn(key, &mut |_| Waiting::Further).unwrap().unwrap();
                thread::yield_now();
                !is_named(&turn.file, &turn.path)
            });
            let lost = lost.count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(lost, 0, "turns that somebody else could have had, too");
        });
    }

    #[test]
    fn a_collection_takes_the_file_of_a_turn_that_nobody_has() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let key = CacheKey(Digest::of(b"work"));
        let held = store.turn(key, &mut |_| Waiting::Further).unwrap();
        let left = store.root().join("turns").join(Digest::of(b"killed").hex());
        fs::write(&left, "1\n").unwrap();
        store.gc(GcPolicy::default()).unwrap();
        assert!(!left.exists());
        assert!(held.unwrap().path.exists());
    }

    #[test]
    fn who_does_not_want_to_wait_gets_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let key = CacheKey(Digest::of(b"work"));
        let held = store.turn(key, &mut |_| Waiting::Further).unwrap();
        assert!(held.is_some());
        assert!(store.turn(key, &mut |_| Waiting::No).unwrap().is_none());
    }
}
