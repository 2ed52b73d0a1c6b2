//! What each repository holds: its tags and manifests, kept as one small document in the store.
//!
//! The blobs themselves belong to the store and are shared by all repositories. Several processes may serve one store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
};

use serde::{Deserialize, Serialize};

use crate::{
    graph::CacheKey,
    oci::{Descriptor, Digest},
    store::{SERVED_NAMESPACE, Store, StoreError, Waiting},
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
    /// Held by the one request of this process that waits for the turn or has it.
    changing: Mutex<()>,
}

impl Repositories {
    pub(super) fn new(store: Store) -> Self {
        Self { store, changing: Mutex::new(()) }
    }

    /// The repository; empty when nothing was pushed to it.
    pub(super) fn get(&self, name: &str) -> Result<Repository, StoreError> {
        let bytes = self.store.note(SERVED_NAMESPACE, &key(name))?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    /// Changes a repository durably.
    pub(super) fn change<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Repository) -> T,
    ) -> Result<T, StoreError> {
        let _alone = self.lock();
        let key_of_turn = CacheKey(Digest::of(TURN));
        let _turn = self.store.turn(key_of_turn, &mut |_| Waiting::Further)?;
        let mut repository = self.get(name)?;
        let result = change(&mut repository);
        let bytes = serde_json::to_vec(&repository).expect("documents hold only JSON values");
        self.store.put_note(SERVED_NAMESPACE, &key(name), &bytes)?;
        let mut names = self.names()?;
        if names.insert(name.to_owned()) {
            let bytes = serde_json::to_vec(&names).expect("a list of names");
            self.store.put_note(SERVED_NAMESPACE, CATALOG, &bytes)?;
        }
        self.store.flush()?;
        Ok(result)
    }

    /// Names of all repositories, sorted.
    pub(super) fn names(&self) -> Result<BTreeSet<String>, StoreError> {
        let bytes = self.store.note(SERVED_NAMESPACE, CATALOG)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().expect("no holder panics")
    }
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
        let push = |server: &str| {
            let repositories = Repositories::new(store.clone());
            for number in 0..PUSHES {
                let tag = format!("{server}{number}");
                let put = |found: &mut Repository| found.tags.insert(tag, manifest);
                repositories.change("shop/site", put).unwrap();
                repositories.change(&format!("{server}/{number}"), |_| ()).unwrap();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| push("a"));
            scope.spawn(|| push("b"));
        });
        let repositories = Repositories::new(store);
        assert_eq!(repositories.get("shop/site").unwrap().tags.len(), 2 * PUSHES);
        assert_eq!(repositories.names().unwrap().len(), 1 + 2 * PUSHES);
    }
}
