//! The store: blobs as files, facts about them in LMDB, snapshots as directories. An OCI layout.
//!
//! `ROOT/oci-layout`, `ROOT/index.json`, `ROOT/blobs/sha256/HEX` are the layout that other tools read;
//! `ROOT/facts` is LMDB; `ROOT/snapshots/HEX` are layers as overlay directories; `ROOT/listings/HEX`;
//! `ROOT/tmp` is where everything is made before it is renamed. Byte formats: `schema/store.md`.
//! Knows nothing of tar, registries or Dockerfiles.
//!
//! Content comes first: `blob` and `directory` put it in place, `queue` remembers what is not on the
//! disk yet, `layers` and `names` keep the facts about it. A flush brings content to the disk, then all
//! facts in one transaction (`facts`): so no fact ever speaks of content that a power cut could take.

mod backup;
mod blob;
mod cache_dir;
mod check;
mod directory;
mod error;
mod facts;
mod gc;
mod layers;
mod lease;
mod names;
mod pages;
mod pins;
mod queue;
mod record;
mod recover;
mod remove;
mod repair;
mod room;
mod row;
mod sums;
mod turn;
mod usage;
mod waits;

use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::Path,
    sync::{
        Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

pub use self::{
    backup::{BackupReport, NamesTaken, RestoreReport},
    blob::BlobWriter,
    cache_dir::{CacheAnswer, CacheDir, CacheIdentity, CacheInfo, CacheSharing, Freshness},
    check::{CheckDepth, CheckReport, Compare, Damage},
    directory::Staging,
    error::{StoreError, is_read_only, lacks_space},
    gc::{GcMode, GcPolicy, GcReport},
    lease::Lease,
    names::REF_NAME,
    record::{CacheRecord, CompressedForm, FileStamp, ImageRecord, LayerRecord, Made},
    repair::{Remedy, RepairReport},
    room::{Room, room},
    turn::{Turn, Waiting},
    usage::{KeptWithin, Usage},
    waits::{Holder, Patience, Waiter},
};
use self::{
    directory::Decoded,
    error::{at, errno_at},
    facts::Facts,
    layers::Asked,
    lease::{Counters, Session},
    queue::{Queue, Rows, sync_folder},
};
use crate::limits::UnpackLimits;

/// Newest format of the folder that this version reads, and the one it writes.
const FORMAT: u32 = 1;
/// Folders of a store, all of mode 0700.
const FOLDERS: [&str; 7] =
    ["blobs", "blobs/sha256", "facts", "snapshots", "listings", "tmp", "leases"];
/// How often a file of the folder itself is tried to be written.
const WRITES_MAX: usize = 3;
const LAYOUT: &[u8] = b"{\"imageLayoutVersion\":\"1.0.0\"}";
/// Kernel's names of file systems whose locks do not hold between machines (`statfs(2)`).
const REMOTE: [(u64, &str); 5] = [
    (0x6969, "NFS"),
    (0x0102_1997, "9p"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
];

/// Namespace of the notes in which the embedded registry keeps its repositories; every `sha256:…` in
/// them protects that content from garbage collection.
pub const SERVED_NAMESPACE: &str = "served";

/// Namespace of the notes in which repositories are that have a blob, by the blob's digest; such a note
/// stays as long as something needs the blob, which may be nowhere else.
pub const ORIGIN_NAMESPACE: &str = "origin";

/// An open store. Cheap to clone; all clones share one LMDB environment.
#[derive(Clone)]
pub struct Store {
    root: Arc<Path>,
    shared: Arc<Shared>,
}

/// What all handles of one store share in this process.
struct Shared {
    /// `None` only while it is dropped.
    facts: Option<Facts>,
    key: EnvKey,
    boot_id: Vec<u8>,
    queue: Mutex<Queue>,
    /// Held by the one flush that runs.
    flushing: Mutex<()>,
    asked: Mutex<Asked>,
    decoded: Mutex<Decoded>,
    session: Mutex<Option<Session>>,
    counters: Counters,
    /// Set by the user to stop writing blobs.
    stop: Mutex<Option<Arc<AtomicBool>>>,
    unpack_limits: Mutex<UnpackLimits>,
    patience: Patience,
}

/// Device and inode of an environment's data file, which stays taken while it is open.
type EnvKey = (u64, u64);

/// Environments that are open in this process: LMDB forbids opening one twice (`lmdb.h`, caveats), and
/// two parts of a program may open the same store. The one mutable static of the library.
static OPEN: LazyLock<Mutex<HashMap<EnvKey, Weak<Shared>>>> = LazyLock::new(Mutex::default);
/// Signals that an environment was closed.
static CLOSED: Condvar = Condvar::new();

impl Shared {
    fn facts(&self) -> &Facts {
        self.facts.as_ref().expect("only drop takes it away")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut open = lock(&OPEN);
        self.facts = None;
        open.remove(&self.key);
        CLOSED.notify_all();
    }
}

impl Store {
    /// Opens the store, making it when it is not there. One that cannot be written to can be read.
    ///
    /// # Errors
    ///
    /// When the folder cannot be used, is on a network file system, or is of a newer format.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_patiently(root, &Patience::default())
    }

    /// As [`Store::open`], for one that says how it waits for other processes. What is open already in this process
    /// goes on waiting as it did.
    ///
    /// # Errors
    ///
    /// As [`Store::open`], and [`StoreError::Locked`] when patience ends.
    pub fn open_patiently(root: &Path, patience: &Patience) -> Result<Self, StoreError> {
        let root = std::path::absolute(root).map_err(at(root))?;
        match read_format(&root)? {
            Some(found) if found > FORMAT => {
                return Err(StoreError::Newer { root, found, known: FORMAT });
            }
            Some(0) => {
                return Err(StoreError::Damaged {
                    root,
                    what: "the number of the format".to_owned(),
                });
            }
            Some(_) => prepare(&root).or_else(readable)?,
            None => prepare(&root)?,
        }
        refuse_remote(&root)?;
        let orphaned = recover::orphaned_index(&root);
        let store = Self { shared: share(&root, patience)?, root: root.into() };
        let is_new = !store.root.join("index.json").exists();
        if let Some(listed) = orphaned {
            store.recover_images(&listed, |_| true).or_else(readable)?;
        }
        // A kill may have come between an image's record and the list. A damaged record is for a check.
        if store.index_is_current().is_ok_and(|current| !current) {
            store.write_index().or_else(readable)?;
        }
        if is_new {
            store.sync_names().or_else(readable)?;
        }
        Ok(store)
    }

    /// Brings a new store's own names to the disk.
    fn sync_names(&self) -> Result<(), StoreError> {
        let parent = self.root.parent().filter(|parent| parent.metadata().is_ok());
        for folder in [&self.root.join("facts"), &*self.root].into_iter().chain(parent) {
            sync_folder(folder)?;
        }
        Ok(())
    }

    /// From now on, writing of blobs ends with an error as soon as `stop` is set: whatever is being unpacked,
    /// compressed or copied then ends soon, and leaves nothing.
    pub fn stop_writing_when(&self, stop: &Arc<AtomicBool>) {
        *lock(&self.shared.stop) = Some(Arc::clone(stop));
    }

    /// Asked by whoever does something long besides writing: an error as soon as the user stopped everything.
    ///
    /// # Errors
    ///
    /// When the flag of [`Store::stop_writing_when`] is set.
    pub fn go_on(&self) -> io::Result<()> {
        match &*lock(&self.shared.stop) {
            Some(stop) if stop.load(Ordering::Relaxed) => {
                Err(io::Error::other("stopped by the user"))
            }
            _ => Ok(()),
        }
    }

    /// From now on, layers and archives that come from elsewhere may become as large as this when they are opened.
    pub fn limit_unpacking(&self, limits: UnpackLimits) {
        *lock(&self.shared.unpack_limits) = limits;
    }

    /// How large layers and archives that come from elsewhere may become.
    #[must_use]
    pub fn unpack_limits(&self) -> UnpackLimits {
        *lock(&self.shared.unpack_limits)
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes everything queued durable: blobs and snapshots first (synced), facts after, in one
    /// transaction. Without anything queued, it costs nothing.
    ///
    /// # Errors
    ///
    /// When the disk refuses; nothing is half-visible then.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.flush_with(Rows::default())
    }
}

/// A store that cannot be written to can still be read.
fn readable(error: StoreError) -> Result<(), StoreError> {
    if error.is_read_only() { Ok(()) } else { Err(error) }
}

/// The environment of the store at `root`: the one that is open already, or a new one.
fn share(root: &Path, patience: &Patience) -> Result<Arc<Shared>, StoreError> {
    let data = root.join("facts/data.mdb");
    let key_of = || fs::metadata(&data).map(|found| (found.dev(), found.ino()));
    let mut open = lock(&OPEN);
    while let Some(entry) = key_of().ok().and_then(|key| open.get(&key)) {
        if let Some(shared) = entry.upgrade() {
            return Ok(shared);
        }
        // Its last handle is being dropped, and waits for this lock.
        open = CLOSED.wait(open).unwrap_or_else(PoisonError::into_inner);
    }
    let facts = Facts::open(root, patience)?;
    let key = key_of().map_err(at(&data))?;
    let shared = Arc::new(Shared {
        facts: Some(facts),
        key,
        // Unknown is empty, and then no mark is believed.
        boot_id: boot_id(),
        queue: Mutex::default(),
        flushing: Mutex::default(),
        asked: Mutex::default(),
        decoded: Mutex::default(),
        session: Mutex::default(),
        counters: Counters::default(),
        stop: Mutex::default(),
        unpack_limits: Mutex::default(),
        patience: patience.clone(),
    });
    open.insert(key, Arc::downgrade(&shared));
    Ok(shared)
}

/// What names the running boot; nothing where the kernel does not say.
fn boot_id() -> Vec<u8> {
    fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// The format of the folder, when it has one.
fn read_format(root: &Path) -> Result<Option<u32>, StoreError> {
    let path = root.join("format");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(at(&path))?,
    };
    let number = text.trim().parse();
    number.map(Some).map_err(|_| StoreError::Damaged {
        root: root.to_owned(),
        what: "the number of the format".to_owned(),
    })
}

/// Makes what is missing of the folder; the format comes last.
fn prepare(root: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(at(root))?;
    bequeath_nothing(root)?;
    for folder in FOLDERS {
        let path = root.join(folder);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made.map_err(at(&path))?,
        }
    }
    write_once(root, "oci-layout", LAYOUT)?;
    write_once(root, "format", format!("{FORMAT}\n").as_bytes())
}

/// Takes from a new folder what it got from the one above and would hand on to all that is made in it, and so into
/// layers: a group (set-group-ID) and a default access control list.
fn bequeath_nothing(folder: &Path) -> Result<(), StoreError> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(at(folder))?;
    match rustix::fs::removexattr(folder, c"system.posix_acl_default") {
        Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(errno_at(folder)(error)),
    }
}

/// Writes a file that is not there yet, whole or not at all.
fn write_once(root: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let path = root.join(name);
    for attempt in 1.. {
        if path.exists() {
            break;
        }
        // Where the next collection finds it, should this process be killed now.
        let written = tempfile::NamedTempFile::new_in(root.join("tmp")).and_then(|mut file| {
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|refused| refused.error)
        });
        match written {
            // A collection was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < WRITES_MAX => {}
            written => return written.map(drop).map_err(at(&path)),
        }
    }
    Ok(())
}

fn refuse_remote(root: &Path) -> Result<(), StoreError> {
    let kind = rustix::fs::statfs(root).map_err(errno_at(root))?.f_type;
    let remote = REMOTE.iter().find(|(magic, _)| *magic == kind as u64 & 0xffff_ffff);
    remote.map_or(Ok(()), |(_, kind)| Err(StoreError::Remote { root: root.to_owned(), kind }))
}

/// A value that a panic elsewhere did not make unusable: none of ours is left half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All of it is used from many threads.
const _: () = {
    const fn shared_between_threads<T: Send + Sync>() {}
    shared_between_threads::<(Store, BlobWriter, Staging, Lease)>();
};

#[cfg(test)]
mod tests;
