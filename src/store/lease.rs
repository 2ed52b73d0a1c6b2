//! Leases: what a living process has written or looked at is not collected.
//!
//! A process has one file in `leases/`, locked while it lives, with the digests it counts on; and one
//! folder of the same name in `tmp/`. Whoever can lock the file knows that its owner is gone. A digest
//! is written *before* its file is looked for, under the lock that a collection holds alone while it
//! decides: so either the collection sees the digest, or the process sees that the content is gone.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use rustix::fs::FlockOperation;

use crate::{
    oci::Digest,
    store::{
        GcMode, Store, StoreError, bequeath_nothing,
        error::{at, errno_at, is_read_only},
        facts::Access,
        lock,
        remove::remove_tree,
        waits::{Hold, Patience, wait},
    },
};

/// Name of the lock that a collection holds alone.
pub(super) const GATE: &str = "gc.lock";

/// Protects what is being built, pulled or pushed from garbage collection until dropped.
pub struct Lease {
    store: Store,
}

/// What a process has in the store while it lives.
pub(super) struct Session {
    /// Locked; holds the digests that are counted on.
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    gate: File,
    /// Counted on since the lease was last aged.
    protected: HashSet<Digest>,
    /// Counted on before that; in the file, too.
    before: HashSet<Digest>,
}

/// Counts leases and temporary names of one open store.
#[derive(Default)]
pub(super) struct Counters {
    leases: AtomicUsize,
    names: AtomicU64,
}

impl Session {
    fn start(root: &Path) -> Result<Self, StoreError> {
        let (file, path) = locked_file(&root.join("leases"))?;
        let temporary = root.join("tmp").join(path.file_name().expect("a lease has a name"));
        DirBuilder::new().mode(0o700).create(&temporary).map_err(at(&temporary))?;
        bequeath_nothing(&temporary)?;
        let gate = open_gate(root)?;
        let (protected, before) = (HashSet::new(), HashSet::new());
        Ok(Self { file, path, temporary, gate, protected, before })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What cannot be removed here is removed by the next collection.
        drop(remove_tree(&self.temporary));
        drop(fs::remove_file(&self.path));
    }
}

impl Store {
    /// Starts protecting everything that this process adds or looks at. In a store that cannot be
    /// written to, nothing can be collected either, and the lease is an empty one.
    ///
    /// # Errors
    ///
    /// When the lease cannot be written.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        if self.shared.facts().access() == Access::Full {
            self.with_session(|_| Ok(())).or_else(uncollected)?;
        }
        self.shared.counters.leases.fetch_add(1, Ordering::SeqCst);
        Ok(Lease { store: self.clone() })
    }

    /// Counts on this content from now on, when there is a lease.
    pub(super) fn protect(&self, digest: Digest) -> Result<(), StoreError> {
        let unleased = self.shared.counters.leases.load(Ordering::SeqCst) == 0;
        if unleased || self.shared.facts().access() == Access::ReadOnly {
            return Ok(());
        }
        self.with_session(|session| {
            if !session.protected.insert(digest) || session.before.contains(&digest) {
                return Ok(());
            }
            let written = self.with_gate(session, |session| {
                session.file.write_all(digest.as_bytes()).map_err(at(&session.path))
            });
            written.inspect_err(|_| {
                session.protected.remove(&digest);
            })
        })
        .or_else(uncollected)
    }

    /// Acts while no collection decides.
    fn with_gate<T>(
        &self,
        session: &mut Session,
        act: impl FnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let gate = self.root().join(GATE);
        wait(&session.gate, &gate, Hold::Shared, &self.shared.patience)?;
        let acted = act(session);
        rustix::fs::flock(&session.gate, FlockOperation::Unlock).ok(); // Cannot fail on an open file.
        acted
    }

    /// A new name in this process's folder for what is unfinished.
    pub(super) fn temporary_path(&self) -> Result<PathBuf, StoreError> {
        let number = self.shared.counters.names.fetch_add(1, Ordering::Relaxed);
        self.with_session(|session| Ok(session.temporary.join(number.to_string())))
    }

    fn with_session<T>(
        &self,
        act: impl FnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut session = lock(&self.shared.session);
        match &mut *session {
            Some(session) => act(session),
            none => act(none.insert(Session::start(self.root())?)),
        }
    }
}

impl Lease {
    /// Counts no longer on what was not asked for since this was last called, as long as there is no other lease: for who
    /// keeps one for days.
    ///
    /// # Errors
    ///
    /// When the lease cannot be written. Then it protects nothing but what is asked for from now on.
    pub fn age(&self) -> Result<(), StoreError> {
        let store = &self.store;
        if store.shared.facts().access() == Access::ReadOnly {
            return Ok(());
        }
        store.with_session(|session| {
            if store.shared.counters.leases.load(Ordering::SeqCst) != 1 {
                return Ok(());
            }
            session.before = std::mem::take(&mut session.protected);
            let written = store.with_gate(session, |session| {
                let kept: Vec<u8> =
                    session.before.iter().flat_map(Digest::as_bytes).copied().collect();
                let cut = session.file.set_len(0);
                cut.and_then(|()| session.file.write_all(&kept)).map_err(at(&session.path))
            });
            if written.is_err() {
                session.before.clear();
            }
            written
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut session = lock(&self.store.shared.session);
        let left = self.store.shared.counters.leases.fetch_sub(1, Ordering::SeqCst) - 1;
        if let (0, Some(session)) = (left, &mut *session) {
            session.protected.clear();
            session.before.clear();
            drop(session.file.set_len(0)); // At worst it protects for longer than it must.
        }
    }
}

/// Keeps content from being collected until the file is closed. Where nothing can be written, nobody can collect.
pub(super) fn share_gate(root: &Path, patience: &Patience) -> Result<Option<File>, StoreError> {
    match open_gate(root) {
        Err(error) if error.is_read_only() => Ok(None),
        Err(error) => Err(error),
        Ok(gate) => {
            wait(&gate, &root.join(GATE), Hold::Shared, patience)?;
            Ok(Some(gate))
        }
    }
}

/// Where nothing can be written any more, since the disk has failed, nothing can be collected either.
fn uncollected(error: StoreError) -> Result<(), StoreError> {
    if is_read_only(&error) { Ok(()) } else { Err(error) }
}

/// The lock that a collection holds alone while it decides.
pub(super) fn open_gate(root: &Path) -> Result<File, StoreError> {
    let path = root.join(GATE);
    let options =
        File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    options.map_err(at(&path))
}

/// A new file in `folder`, locked by this process.
fn locked_file(folder: &Path) -> Result<(File, PathBuf), StoreError> {
    loop {
        let mut name = [0_u8; 8];
        getrandom::fill(&mut name)
            .map_err(|error| StoreError::at(folder, io::Error::other(error)))?;
        let path = folder.join(format!("{:016x}", u64::from_be_bytes(name)));
        let created = File::options().append(true).create_new(true).mode(0o600).open(&path);
        let file = match created {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            created => created.map_err(at(&path))?,
        };
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(errno_at(&path))?;
        // A collection may have taken it for an orphan between the two calls.
        let ours = file.metadata().map_err(at(&path))?.ino();
        if fs::metadata(&path).is_ok_and(|there| there.ino() == ours) {
            return Ok((file, path));
        }
    }
}

/// Reads what living processes count on, and removes the leases of those that are gone. The caller
/// holds the gate alone.
pub(super) fn read_leases(root: &Path, mode: GcMode) -> Result<HashSet<Digest>, StoreError> {
    let folder = root.join("leases");
    let mut protected = HashSet::new();
    for entry in fs::read_dir(&folder).map_err(at(&folder))? {
        let path = entry.map_err(at(&folder))?.path();
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(at(&path))?,
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            // By the open file: its owner may be just ending, and takes the name away.
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(at(&path))?;
            protected.extend(bytes.as_chunks().0.iter().copied().map(Digest::from_bytes));
        } else if mode != GcMode::DryRun {
            // While it is locked: a process that is just starting finds out, and makes another.
            drop(fs::remove_file(&path));
        }
    }
    Ok(protected)
}
