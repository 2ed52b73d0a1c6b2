//! What each repository holds: its tags and manifests, kept as one small document in the store.
//!
//! The blobs themselves belong to the store and are shared by all repositories.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
};

use serde::{Deserialize, Serialize};

use crate::{
    oci::{Descriptor, Digest},
    store::{SERVED_NAMESPACE, Store, StoreError},
};

const CATALOG: &str = "catalog";

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
    /// Held while a document is read, changed and written.
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
