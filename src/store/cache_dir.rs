//! Directories of cache mounts: what a build keeps between its runs and never ships.
//!
//! Each is a folder `cache-mounts/NAME` with `about.json`, `data/` and `lock`. Whoever uses one holds its lock, shared
//! or alone; whoever makes, takes or removes one holds `cache-mounts/gate` for that moment. Knows nothing of mounts.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::{
    oci::Digest,
    store::{
        Store, StoreError,
        error::{at, errno_at},
        remove::remove_tree,
        waits::{self, Holder},
    },
};

/// Folder of all of them, in the store.
const FOLDER: &str = "cache-mounts";
/// Directories with one identity, for processes that want their own at the same time.
const SLOTS_MAX: usize = 256;
/// Hex digits of a name.
const NAME_DIGITS: usize = 32;

/// What tells one cache from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CacheIdentity {
    /// As the Dockerfile says, or its target.
    pub id: String,
    /// `BUILDKIT_CACHE_MOUNT_NS`.
    pub namespace: String,
    /// Mode of the directory when it was made.
    pub mode: u32,
    /// Owner when it was made.
    pub uid: u32,
    /// Group when it was made.
    pub gid: u32,
    /// What it was filled with when it was made, by the key of the content.
    pub seed: Option<String>,
}

/// Who may use a cache at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheSharing {
    /// Everybody.
    Shared,
    /// Everybody one of their own.
    Private,
    /// One after another.
    Locked,
}

/// Whether what a cache holds is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// As it is.
    Kept,
    /// Empty.
    Fresh,
}

/// A cache in use; free again when dropped.
#[derive(Debug)]
pub struct CacheDir {
    folder: PathBuf,
    lock: File,
    sharing: CacheSharing,
}

/// What came of asking for a cache.
#[derive(Debug)]
pub enum CacheAnswer {
    /// It may be used.
    Ready(CacheDir),
    /// It is new: to be filled by [`Store::fill_cache_dir`] before it is used.
    New(CacheDir),
    /// Somebody uses it; ask again later.
    Busy(Holder),
}

/// A cache in a list.
#[derive(Clone, Debug)]
pub struct CacheInfo {
    /// Name in the store.
    pub name: String,
    /// What it is for.
    pub identity: CacheIdentity,
    /// How it was used last.
    pub sharing: CacheSharing,
    /// Made at, in Unix seconds.
    pub made_at: i64,
    /// Used last at, in Unix seconds.
    pub used_at: i64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether a process uses it now.
    pub in_use: bool,
}

/// `about.json`.
#[derive(Serialize, Deserialize)]
struct About {
    #[serde(flatten)]
    identity: CacheIdentity,
    sharing: CacheSharing,
    made_at: i64,
}

impl Drop for CacheDir {
    fn drop(&mut self) {
        unlock(&self.lock);
    }
}

impl CacheDir {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Name in the store.
    #[must_use]
    pub fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl CacheIdentity {
    /// Ids come from Dockerfiles: only their hash becomes a file name.
    fn name(&self, slot: usize) -> String {
        let text = serde_json::to_string(self).expect("strings and numbers are JSON");
        let hash: String = Digest::of(text.as_bytes()).hex().chars().take(NAME_DIGITS).collect();
        if slot == 0 { hash } else { format!("{hash}-{slot}") }
    }
}

impl Store {
    /// Takes a cache if it is free for this use; it is made when there is none.
    ///
    /// # Errors
    ///
    /// When the disk refuses.
    pub fn take_cache_dir(
        &self,
        identity: &CacheIdentity,
        sharing: CacheSharing,
        freshness: Freshness,
    ) -> Result<CacheAnswer, StoreError> {
        let _gate = self.cache_gate()?;
        let slots = if sharing == CacheSharing::Private { SLOTS_MAX } else { 1 };
        for slot in 0..slots {
            let folder = self.root().join(FOLDER).join(identity.name(slot));
            let taken = self.take_slot(&folder, (identity, sharing), freshness)?;
            match taken {
                CacheAnswer::Busy(_) if slot + 1 < slots => {}
                CacheAnswer::Ready(_) | CacheAnswer::New(_) | CacheAnswer::Busy(_) => {
                    return Ok(taken);
                }
            }
        }
        Ok(CacheAnswer::Busy(Holder::Unknown))
    }

    fn take_slot(
        &self,
        folder: &Path,
        (identity, sharing): (&CacheIdentity, CacheSharing),
        freshness: Freshness,
    ) -> Result<CacheAnswer, StoreError> {
        make_folder(folder)?;
        let lock = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(folder.join("lock"))
            .map_err(at(folder))?;
        let is_new = !folder.join("data").exists() || freshness == Freshness::Fresh;
        let alone = is_new || sharing != CacheSharing::Shared;
        let how = if alone {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        match rustix::fs::flock(&lock, how) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Ok(CacheAnswer::Busy(waits::holder(&lock)));
            }
            locked => locked.map_err(errno_at(folder))?,
        }
        lock.set_modified(SystemTime::now()).map_err(at(folder))?;
        let known = about(folder);
        if is_new || known.as_ref().is_none_or(|known| known.sharing != sharing) {
            let made_at = known.map_or_else(super::layers::now_s, |known| known.made_at);
            let about = About { identity: identity.clone(), sharing, made_at };
            let text = serde_json::to_vec_pretty(&about).expect("strings and numbers are JSON");
            let temporary = self.temporary_path()?;
            let written = fs::write(&temporary, text);
            written
                .and_then(|()| fs::rename(&temporary, folder.join("about.json")))
                .map_err(at(folder))?;
        }
        let taken = CacheDir { folder: folder.to_owned(), lock, sharing };
        Ok(if is_new { CacheAnswer::New(taken) } else { CacheAnswer::Ready(taken) })
    }

    /// Gives a cache its first content, a directory below a staging one; what it had before is gone.
    ///
    /// # Errors
    ///
    /// When the disk refuses.
    pub fn fill_cache_dir(&self, cache: &CacheDir, from: &Path) -> Result<(), StoreError> {
        let _gate = self.cache_gate()?;
        let data = cache.path();
        if data.exists() {
            self.discard(&data)?;
        }
        super::directory::rename_new(from, &data).map_err(errno_at(&data))?;
        if cache.sharing == CacheSharing::Shared {
            // With the gate held nobody can come between.
            rustix::fs::flock(&cache.lock, FlockOperation::LockShared).map_err(errno_at(&data))?;
        }
        Ok(())
    }

    /// All caches, by id.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn cache_dirs(&self) -> Result<Vec<CacheInfo>, StoreError> {
        let gate = self.cache_gate()?;
        let mut found = Vec::new();
        for folder in self.cache_folders()? {
            let Some(about) = about(&folder).filter(|_| folder.join("data").is_dir()) else {
                continue;
            };
            let lock = File::open(folder.join("lock")).map_err(at(&folder))?;
            let used = lock.metadata().and_then(|found| found.modified()).map_err(at(&folder))?;
            let in_use =
                rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err();
            if !in_use {
                unlock(&lock);
            }
            found.push(CacheInfo {
                name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                identity: about.identity,
                sharing: about.sharing,
                made_at: about.made_at,
                used_at: seconds(used),
                bytes: 0,
                in_use,
            });
        }
        drop(gate);
        for info in &mut found {
            info.bytes = bytes_below(&self.root().join(FOLDER).join(&info.name).join("data"));
        }
        let key = |info: &CacheInfo| {
            (info.identity.namespace.clone(), info.identity.id.clone(), info.name.clone())
        };
        found.sort_by_key(key);
        Ok(found)
    }

    /// Takes a cache by its name, as one of several who use it; `None` when somebody has it alone.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn hold_cache_dir(&self, name: &str) -> Result<Option<CacheDir>, StoreError> {
        let _gate = self.cache_gate()?;
        let folder = self.root().join(FOLDER).join(name);
        let lock = File::open(folder.join("lock")).map_err(at(&folder))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            locked => {
                locked.map_err(errno_at(&folder))?;
                Ok(Some(CacheDir { folder, lock, sharing: CacheSharing::Shared }))
            }
        }
    }

    /// Removes a cache, unless a process uses it; whether it is gone.
    ///
    /// # Errors
    ///
    /// When the disk refuses.
    pub fn remove_cache_dir(&self, name: &str) -> Result<bool, StoreError> {
        let folder = self.root().join(FOLDER).join(name);
        let gate = self.cache_gate()?;
        if let Ok(lock) = File::open(folder.join("lock"))
            && rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
        {
            return Ok(false);
        }
        let trash = self.temporary_path()?;
        super::directory::rename_new(&folder, &trash).map_err(errno_at(&folder))?;
        drop(gate);
        remove_tree(&trash).map_err(at(&trash))?;
        Ok(true)
    }

    /// Names of what stands there and is no cache: half-made ones of processes that died.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn broken_cache_dirs(&self) -> Result<Vec<String>, StoreError> {
        let _gate = self.cache_gate()?;
        let broken = self
            .cache_folders()?
            .into_iter()
            .filter(|folder| about(folder).is_none() || !folder.join("data").is_dir());
        let name = |folder: PathBuf| Some(folder.file_name()?.to_str()?.to_owned());
        Ok(broken.filter_map(name).collect())
    }

    fn cache_folders(&self) -> Result<Vec<PathBuf>, StoreError> {
        let all = self.root().join(FOLDER);
        let mut folders = Vec::new();
        for entry in fs::read_dir(&all).map_err(at(&all))? {
            let entry = entry.map_err(at(&all))?;
            if entry.file_name() != "gate" {
                folders.push(entry.path());
            }
        }
        Ok(folders)
    }

    fn cache_gate(&self) -> Result<File, StoreError> {
        let folder = self.root().join(FOLDER);
        make_folder(&folder)?;
        let path = folder.join("gate");
        let gate =
            File::options().create(true).append(true).mode(0o600).open(&path).map_err(at(&path))?;
        self.lock_alone(&gate, &path)?;
        Ok(gate)
    }

    fn discard(&self, path: &Path) -> Result<(), StoreError> {
        let trash = self.temporary_path()?;
        super::directory::rename_new(path, &trash).map_err(errno_at(path))?;
        remove_tree(&trash).map_err(at(&trash))
    }
}

/// Closing is not enough: a process that is being started by another thread has everything open for a moment.
fn unlock(lock: &File) {
    rustix::fs::flock(lock, FlockOperation::Unlock).ok(); // Cannot fail on an open file.
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(at(path)),
    }
}

fn about(folder: &Path) -> Option<About> {
    serde_json::from_slice(&fs::read(folder.join("about.json")).ok()?).ok()
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Bytes of the regular files below a directory; what goes away meanwhile does not count.
fn bytes_below(folder: &Path) -> u64 {
    let mut sum = 0;
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    sum += entry.metadata().map_or(0, |found| found.len());
                }
                _ => {}
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(id: &str) -> CacheIdentity {
        let (id, namespace) = (id.to_owned(), String::new());
        CacheIdentity { id, namespace, mode: 0o755, uid: 0, gid: 0, seed: None }
    }

    fn take(store: &Store, sharing: CacheSharing) -> Option<CacheDir> {
        match store.take_cache_dir(&identity("a"), sharing, Freshness::Kept).unwrap() {
            CacheAnswer::Busy(_) => None,
            CacheAnswer::Ready(cache) => Some(cache),
            CacheAnswer::New(cache) => {
                let staging = store.staging().unwrap();
                let fresh = staging.path().join("fresh");
                fs::create_dir(&fresh).unwrap();
                store.fill_cache_dir(&cache, &fresh).unwrap();
                Some(cache)
            }
        }
    }

    #[test]
    fn sharing_holds_between_users_of_one_cache() {
        use CacheSharing::{Locked, Private, Shared};
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let one = take(&store, Shared).unwrap();
        let two = take(&store, Shared).unwrap();
        assert_eq!(one.path(), two.path());
        assert!(take(&store, Locked).is_none(), "others are in it");
        let own = take(&store, Private).unwrap();
        assert_ne!(own.path(), one.path());
        assert_ne!(own.path(), take(&store, Private).unwrap().path());
        drop((one, two));
        let alone = take(&store, Locked).unwrap();
        assert!(take(&store, Locked).is_none() && take(&store, Shared).is_none());
        assert!(!store.remove_cache_dir(&alone.name()).unwrap(), "it is in use");
        assert!(store.cache_dirs().unwrap().iter().any(|info| info.in_use));
        drop((alone, own));
        for info in store.cache_dirs().unwrap() {
            assert!(!info.in_use && store.remove_cache_dir(&info.name).unwrap());
        }
        assert!(store.cache_dirs().unwrap().is_empty());
    }

    #[test]
    fn a_cache_is_free_although_a_process_that_starts_has_its_lock_open() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let cache = take(&store, CacheSharing::Locked).unwrap();
        let inherited = cache.lock.try_clone().unwrap();
        drop(cache);
        drop(take(&store, CacheSharing::Locked).expect("nobody uses it"));
        drop(inherited);
    }

    #[test]
    fn what_was_not_filled_is_no_cache_and_is_filled_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let asked = || store.take_cache_dir(&identity("a"), CacheSharing::Shared, Freshness::Kept);
        let CacheAnswer::New(first) = asked().unwrap() else { panic!("it cannot be there") };
        assert!(matches!(asked().unwrap(), CacheAnswer::Busy(_)), "one fills it");
        drop(first);
        assert!(store.cache_dirs().unwrap().is_empty());
        assert_eq!(store.broken_cache_dirs().unwrap().len(), 1);
        assert!(matches!(asked().unwrap(), CacheAnswer::New(_)));
    }
}
