//! Work that is done once in a run, by what it is for: who wants the same waits, until told to stop.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Condvar, Mutex, MutexGuard, atomic::Ordering},
};

use super::{BuildError, CANCEL_POLL};
use crate::sandbox::CancelFlag;

/// Results by key.
pub(super) struct Once<K, V> {
    entries: Mutex<HashMap<K, State<V>>>,
    changed: Condvar,
}

enum State<V> {
    Running,
    Done(V),
}

impl<K, V> Default for Once<K, V> {
    fn default() -> Self {
        Self { entries: Mutex::default(), changed: Condvar::new() }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Once<K, V> {
    /// The result for a key, made by `work` when nobody has made it. What fails is tried again by who wants it next.
    ///
    /// # Errors
    ///
    /// That of `work`; [`BuildError::Cancelled`] when `cancel` is set while somebody else works.
    pub(super) fn get(
        &self,
        key: &K,
        cancel: &CancelFlag,
        work: impl FnOnce() -> Result<V, BuildError>,
    ) -> Result<V, BuildError> {
        let mut entries = self.lock();
        loop {
            match entries.get(key) {
                Some(State::Done(value)) => return Ok(value.clone()),
                Some(State::Running) if cancel.load(Ordering::Relaxed) => {
                    return Err(BuildError::Cancelled);
                }
                Some(State::Running) => {}
                None => break,
            }
            (entries, _) =
                self.changed.wait_timeout(entries, CANCEL_POLL).expect("no holder panics");
        }
        entries.insert(key.clone(), State::Running);
        drop(entries);
        let running = Running { once: self, key };
        let value = work()?;
        self.lock().insert(key.clone(), State::Done(value.clone()));
        drop(running);
        Ok(value)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, State<V>>> {
        self.entries.lock().expect("no holder panics")
    }
}

/// Lets the others go on when the work ends, however it ends.
struct Running<'a, K: Clone + Eq + Hash, V: Clone> {
    once: &'a Once<K, V>,
    key: &'a K,
}

impl<K: Clone + Eq + Hash, V: Clone> Drop for Running<'_, K, V> {
    fn drop(&mut self) {
        let mut entries = self.once.lock();
        if matches!(entries.get(self.key), Some(State::Running)) {
            entries.remove(self.key);
        }
        self.once.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn work_is_done_once_and_a_wait_for_it_ends_when_it_is_told_to() {
        let (once, cancel) = (Once::default(), CancelFlag::default());
        let (begun, end) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                once.get(&"key", &CancelFlag::default(), || {
                    begun.wait();
                    end.wait();
                    Ok(1)
                })
            });
            begun.wait();
            let second = scope.spawn(|| once.get(&"key", &cancel, || unreachable!("it runs")));
            cancel.store(true, Ordering::Relaxed);
            assert!(matches!(second.join().unwrap(), Err(BuildError::Cancelled)));
            end.wait();
            assert_eq!(first.join().unwrap().unwrap(), 1);
        });
        assert_eq!(once.get(&"key", &cancel, || unreachable!("it is done")).unwrap(), 1);
        assert!(once.get(&"other", &cancel, || Err(BuildError::Cancelled)).is_err());
        assert_eq!(once.get(&"other", &cancel, || Ok(2)).unwrap(), 2);
    }
}
