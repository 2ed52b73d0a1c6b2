//! What is being done in a run, by its key: who wants the same waits, and gets what was made or hears that it failed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Condvar, Mutex, atomic::Ordering},
};

use super::{BuildRequest, CANCEL_POLL};
use crate::{
    graph::{CacheKey, RunOp},
    limits::Limits,
    oci::DiffId,
    plan::{SecretSource, SshSource},
    sandbox::CancelFlag,
};

/// Cache keys of what is being done, so that the same work is not done twice at once.
#[derive(Default)]
pub struct Flights {
    keys: Mutex<HashSet<CacheKey>>,
    landed: Condvar,
    made: Mutex<HashMap<CacheKey, Vec<DiffId>>>,
    failed: Mutex<HashMap<CacheKey, Vec<FailedProcess>>>,
}

/// A process that failed, and for which image.
struct FailedProcess {
    image: String,
    given: Given,
}

/// What a process is given that its key does not hold: with other secrets or limits it may not fail.
#[derive(PartialEq, Eq)]
pub(super) struct Given {
    secrets: BTreeMap<String, SecretSource>,
    ssh: BTreeMap<String, SshSource>,
    limits: Limits,
    hidden_env: Vec<(String, String)>,
}

impl Given {
    pub(super) fn of(run: &RunOp, request: &BuildRequest) -> Self {
        Self {
            secrets: request.secrets.clone(),
            ssh: request.ssh.clone(),
            limits: request.limits.clone(),
            hidden_env: run.hidden_env.clone(),
        }
    }
}

/// The only one of its key, until dropped.
pub(crate) struct Flight<'a> {
    flights: &'a Flights,
    key: CacheKey,
}

impl Flights {
    /// Waits until nobody else does the work of a key; `None` when `cancel` is set before.
    pub(crate) fn start(&self, key: CacheKey, cancel: &CancelFlag) -> Option<Flight<'_>> {
        let mut keys = self.keys.lock().expect("no holder panics");
        loop {
            if cancel.load(Ordering::Relaxed) {
                return None;
            }
            if keys.insert(key) {
                break;
            }
            (keys, _) = self.landed.wait_timeout(keys, CANCEL_POLL).expect("no holder panics");
        }
        Some(Flight { flights: self, key })
    }

    /// The layers that were made of a key; to be said by who did its work, before others may.
    pub(super) fn note_made(&self, key: CacheKey, layers: &[DiffId]) {
        self.made.lock().expect("no holder panics").insert(key, layers.to_vec());
    }

    /// The layers that the run itself made of a key: they serve even those who take nothing from before.
    pub(super) fn made(&self, key: CacheKey) -> Option<Vec<DiffId>> {
        self.made.lock().expect("no holder panics").get(&key).cloned()
    }

    /// That a process failed by itself, for an image; to be said by who did its work, before others may.
    pub(super) fn note_failure(&self, key: CacheKey, image: &str, given: Given) {
        let failed = FailedProcess { image: image.to_owned(), given };
        self.failed.lock().expect("no holder panics").entry(key).or_default().push(failed);
    }

    /// The image for which the same process failed before.
    pub(super) fn failed_for(&self, key: CacheKey, given: &Given) -> Option<String> {
        let failed = self.failed.lock().expect("no holder panics");
        let same = failed.get(&key).into_iter().flatten().find(|failed| failed.given == *given);
        same.map(|failed| failed.image.clone())
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.flights.keys.lock().expect("no holder panics").remove(&self.key);
        self.flights.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::KeyTree;

    #[test]
    fn a_process_has_failed_before_if_it_was_given_the_same() {
        let given = |memory, secret: &str| Given {
            secrets: BTreeMap::from([("s".to_owned(), SecretSource::Env(secret.to_owned()))]),
            ssh: BTreeMap::new(),
            limits: Limits { memory, ..Limits::default() },
            hidden_env: Vec::new(),
        };
        let key = |text: &str| {
            let mut tree = KeyTree::default();
            tree.add("command", text);
            tree.key()
        };
        let flights = Flights::default();
        flights.note_failure(key("a"), "one", given(None, "A"));
        flights.note_failure(key("a"), "two", given(Some(1), "A"));
        for (text, memory, secret, image) in [
            ("a", None, "A", Some("one")),
            ("a", Some(1), "A", Some("two")),
            ("a", None, "B", None),
            ("a", Some(2), "A", None),
            ("b", None, "A", None),
        ] {
            let failed = flights.failed_for(key(text), &given(memory, secret));
            assert_eq!(failed.as_deref(), image, "{text} {memory:?} {secret}");
        }
    }
}
