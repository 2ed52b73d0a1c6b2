//! What each repository holds: its tags and manifests, kept as one small document in the store.
//!
//! The blobs themselves belong to the store and are shared by all repositories. Several processes may serve one store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, Weak},
};

use serde::{Deserialize, Serialize};

use crate::{
    graph::CacheKey,
    oci::{Descriptor, Digest},
    store::{SERVED_NAMESPACE, Store, StoreError, Turn, Waiting},
};

const CATALOG: &str = "catalog";

/// What processes take turns at: a document is read and written whole.
const TURN: &[u8] = b"documents of the embedded registry";

/// One repository.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Repository {
    /// What each tag points at.
    pub(super) tags: BTreeMap<String, Digest>,
    /// Every manifest and index pushed, and what it talks about.
    pub(super) manifests: BTreeMap<Digest, Held>,
}

/// A manifest that a repository holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Held {
    /// Type, digest, size; with annotations and artifact type for referrers.
    pub(super) descriptor: Descriptor,
    /// The manifest that this one talks about.
    pub(super) subject: Option<Digest>,
}

/// All repositories of a store.
pub(super) struct Repositories {
    store: Store,
    /// The turn that requests of this process have together; locked by the one that changes a document or waits for
    /// the turn. None where the store cannot be written to.
    turn: Mutex<Weak<Option<Turn>>>,
}

impl Repositories {
    pub(super) fn new(store: Store) -> Self {
        Self { store, turn: Mutex::default() }
    }

    /// The repository; empty when nothing was pushed to it.
    pub(super) fn get(&self, name: &str) -> Result<Repository, StoreError> {
        let bytes = self.store.note(SERVED_NAMESPACE, &key(name))?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    /// Changes a repository durably. Requests that come while others wait for the disk share what they wait for.
    pub(super) fn change<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Repository) -> T,
    ) -> Result<T, StoreError> {
        let mut shared = self.turn.lock().expect("no holder panics");
        let turn = match shared.upgrade().filter(|turn| !is_waited_for(turn)) {
            Some(turn) => turn,
            None => {
                let key_of_turn = CacheKey(Digest::of(TURN));
                let turn = Arc::new(self.store.turn(key_of_turn, &mut |_| Waiting::Further)?);
                *shared = Arc::downgrade(&turn);
                turn
            }
        };
        let mut repository = self.get(name)?;
        let result = change(&mut repository);
        let bytes = serde_json::to_vec(&repository).expect("documents hold only JSON values");
        self.store.put_note(SERVED_NAMESPACE, &key(name), &bytes)?;
        let mut names = self.names()?;
        if names.insert(name.to_owned()) {
            let bytes = serde_json::to_vec(&names).expect("a list of names");
            self.store.put_note(SERVED_NAMESPACE, CATALOG, &bytes)?;
        }
        drop(shared);
        self.store.flush()?;
        drop(turn); // Other processes see what is durable.
        Ok(result)
    }

    /// Names of all repositories, sorted.
    pub(super) fn names(&self) -> Result<BTreeSet<String>, StoreError> {
        let bytes = self.store.note(SERVED_NAMESPACE, CATALOG)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }
}

/// Whether another process wants the turn, so that nobody else may join in it.
fn is_waited_for(turn: &Option<Turn>) -> bool {
    turn.as_ref().is_some_and(Turn::is_waited_for)
}

fn key(name: &str) -> String {
    format!("repository/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_when_two_servers_of_one_store_are_pushed_to() {
        const PUSHES: usize = 20;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let manifest = Digest::of(b"manifest");
        let push = |server: &Repositories, client: &str| {
            for number in 0..PUSHES {
                let tag = format!("{client}{number}");
                let put = |found: &mut Repository| found.tags.insert(tag, manifest);
                server.change("shop/site", put).unwrap();
                server.change(&format!("{client}/{number}"), |_| ()).unwrap();
            }
        };
        let [one, other] = [(); 2].map(|()| Repositories::new(store.clone()));
        std::thread::scope(|scope| {
            for (server, client) in [(&one, "a"), (&one, "b"), (&other, "c"), (&other, "d")] {
                scope.spawn(move || push(server, client));
            }
        });
        assert_eq!(std::fs::read_dir(folder.path().join("turns")).unwrap().count(), 0);
        let repositories = Repositories::new(store);
        assert_eq!(repositories.get("shop/site").unwrap().tags.len(), 4 * PUSHES);
        assert_eq!(repositories.names().unwrap().len(), 1 + 4 * PUSHES);
    }
}
