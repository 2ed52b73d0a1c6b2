//! The LMDB environment: tables of bytes, read and write transactions, growth.
//!
//! Knows tables by name and nothing of what their bytes mean. Never WRITEMAP (a full disk would kill
//! the process) and never NOSYNC (an acknowledged commit could be lost).

#![expect(unsafe_code, reason = "opening and resizing a memory map are unsafe in heed")]

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
};

use heed::{
    Database, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls, types::Bytes,
};
use rustix::{
    fs::{FallocateFlags, FlockOperation},
    io::Errno,
};

use super::{
    StoreError,
    error::at,
    lock,
    waits::{Hold, Patience, wait},
};

/// Sizes of the map that are tried in turn: sparse, so only address space is taken. The smaller ones
/// are for processes whose address space is limited.
const MAP_BYTES: [usize; 3] = [64 << 30, 4 << 30, 256 << 20];
/// Largest size that the map grows to, in bytes.
const MAP_BYTES_MAX: usize = 1 << 40;
/// Readers of all processes together; 64 bytes each in the lock file.
const READERS_MAX: u32 = 2048;
/// File that is locked by who writes.
const WRITE_LOCK: &str = "write.lock";
/// How often a transaction is tried again after the map grew.
const GROWTHS_MAX: usize = 16;

/// A table of the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Table {
    /// Digest of a reference → image record.
    Images,
    /// Diff ID → layer record.
    Layers,
    /// Digest of a compressed blob → diff ID.
    DiffIds,
    /// Cache key → cache record.
    Cache,
    /// Digest of a site → cache key of its newest record.
    Sites,
    /// Device and inode → stamp and digest.
    Files,
    /// Digest of namespace and name → note.
    Notes,
    /// Diff ID of a snapshot that is known to be on the disk → nothing.
    Sealed,
    /// Cache key → Unix seconds of the last use, roughly.
    Used,
}

/// How many tables there are.
pub(super) const TABLES: usize = 9;

impl Table {
    /// All of them, in the order of [`Table::index`].
    pub(super) const ALL: [Self; TABLES] = [
        Self::Images,
        Self::Layers,
        Self::DiffIds,
        Self::Cache,
        Self::Sites,
        Self::Files,
        Self::Notes,
        Self::Sealed,
        Self::Used,
    ];

    /// Position among the tables.
    pub(super) const fn index(self) -> usize {
        self as usize
    }

    /// Its name in LMDB.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Layers => "layers",
            Self::DiffIds => "diff-ids",
            Self::Cache => "cache",
            Self::Sites => "sites",
            Self::Files => "files",
            Self::Notes => "notes",
            Self::Sealed => "sealed",
            Self::Used => "used",
        }
    }
}

/// Whether the environment can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Read and write.
    Full,
    /// The file system forbids writing.
    ReadOnly,
}

/// Key and value.
pub(super) type Row = (Vec<u8>, Vec<u8>);

type Bytewise = Database<Bytes, Bytes>;

/// An open environment.
pub(super) struct Facts {
    root: PathBuf,
    env: Env<WithoutTls>,
    tables: [Bytewise; TABLES],
    /// Held for reading by every transaction, for writing while the map changes its size.
    gate: RwLock<()>,
    /// Locked while something is written: LMDB's own lock waits without a word.
    writing: Mutex<Option<File>>,
    patience: Patience,
    /// Largest size that the map grows to, in bytes.
    bytes_max: usize,
    access: Access,
}

/// A read transaction.
pub(super) struct Reader<'a> {
    txn: RoTxn<'a, WithoutTls>,
    tables: &'a [Bytewise; TABLES],
}

/// A write transaction. Sees what it wrote.
pub(super) struct Writer<'a> {
    txn: RwTxn<'a>,
    tables: &'a [Bytewise; TABLES],
}

impl Facts {
    /// Opens `root/facts`, making it when it is not there.
    pub(super) fn open(root: &Path, patience: &Patience) -> Result<Self, StoreError> {
        Self::open_sized(root, &MAP_BYTES, patience)
    }

    fn open_sized(root: &Path, sizes: &[usize], patience: &Patience) -> Result<Self, StoreError> {
        let folder = root.join("facts");
        let (env, access) = match open_env(&folder, sizes, Access::Full) {
            Err(heed::Error::Io(error)) if is_forbidden(&error) => {
                (open_env(&folder, sizes, Access::ReadOnly), Access::ReadOnly)
            }
            opened => (opened, Access::Full),
        };
        let env = env.map_err(|error| StoreError::facts(root, error))?;
        fill_up(root, &folder, &env)?;
        if access == Access::Full {
            env.clear_stale_readers().map_err(|error| StoreError::facts(root, error))?;
        }
        let writing = match access {
            Access::Full => Some(open_lock(&root.join(WRITE_LOCK))?),
            Access::ReadOnly => None,
        };
        let tables = {
            let _alone =
                writing.as_ref().map(|file| Alone::wait(file, root, patience)).transpose()?;
            open_tables(&env, access).map_err(|error| StoreError::facts(root, error))?
        };
        let tables = tables.ok_or_else(|| StoreError::Facts {
            root: root.to_owned(),
            reason: "tables are missing, and the store cannot be written to".to_owned(),
        })?;
        Ok(Self {
            root: root.to_owned(),
            env,
            tables,
            gate: RwLock::default(),
            writing: Mutex::new(writing),
            patience: patience.clone(),
            bytes_max: MAP_BYTES_MAX,
            access,
        })
    }

    /// Looks at one consistent state.
    pub(super) fn read<T>(
        &self,
        look: impl FnOnce(&Reader<'_>) -> heed::Result<T>,
    ) -> Result<T, StoreError> {
        let fail = |error| StoreError::facts(&self.root, error);
        for _ in 0..GROWTHS_MAX {
            {
                let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                match self.env.read_txn() {
                    Ok(txn) => return look(&Reader { txn, tables: &self.tables }).map_err(fail),
                    Err(heed::Error::Mdb(MdbError::MapResized)) => {}
                    Err(error) => return Err(fail(error)),
                }
            }
            self.resize(Size::AsOthersHaveIt)?;
        }
        Err(fail(MdbError::MapResized.into()))
    }

    /// Changes the state in one durable step, or not at all. `change` runs again when the map grows.
    pub(super) fn write<T>(
        &self,
        change: impl Fn(&mut Writer<'_>) -> heed::Result<T>,
    ) -> Result<T, StoreError> {
        if self.access == Access::ReadOnly {
            return Err(StoreError::at(&self.root, Errno::ROFS.into()));
        }
        let writing = lock(&self.writing);
        let file = writing.as_ref().expect("it is open where one can write");
        let _alone = Alone::wait(file, &self.root, &self.patience)?;
        let mut growth = MdbError::MapFull;
        for _ in 0..GROWTHS_MAX {
            let size = match self.write_once(&change) {
                Ok(value) => return Ok(value),
                Err(heed::Error::Mdb(MdbError::MapFull)) => Size::Doubled,
                Err(heed::Error::Mdb(MdbError::MapResized)) => {
                    growth = MdbError::MapResized;
                    Size::AsOthersHaveIt
                }
                Err(error) => return Err(StoreError::facts(&self.root, error)),
            };
            self.resize(size)?;
        }
        Err(StoreError::facts(&self.root, growth.into()))
    }

    fn write_once<T>(
        &self,
        change: impl Fn(&mut Writer<'_>) -> heed::Result<T>,
    ) -> heed::Result<T> {
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let mut writer = Writer { txn: self.env.write_txn()?, tables: &self.tables };
        let value = change(&mut writer)?;
        writer.txn.commit()?;
        Ok(value)
    }

    fn resize(&self, size: Size) -> Result<(), StoreError> {
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let bytes = match size {
            Size::AsOthersHaveIt => 0,
            Size::Doubled => self.env.info().map_size.saturating_mul(2),
        };
        if bytes > self.bytes_max {
            return Err(StoreError::facts(&self.root, MdbError::MapFull.into()));
        }
        // SAFETY: no transaction of this process is active: each holds `gate` for reading.
        unsafe { self.env.resize(bytes) }.map_err(|error| StoreError::facts(&self.root, error))
    }

    /// One value.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|reader| Ok(reader.get(table, key)?.map(<[u8]>::to_vec)))
    }

    /// All keys and values of a table, in order of the keys.
    pub(super) fn all(&self, table: Table) -> Result<Vec<Row>, StoreError> {
        self.read(|reader| reader.all(table))
    }

    /// Whether it can be written to.
    pub(super) const fn access(&self) -> Access {
        self.access
    }
}

/// The right to write, of all processes.
struct Alone<'a>(&'a File);

impl<'a> Alone<'a> {
    fn wait(file: &'a File, root: &Path, patience: &Patience) -> Result<Self, StoreError> {
        wait(file, &root.join(WRITE_LOCK), Hold::Alone, patience)?;
        Ok(Self(file))
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        rustix::fs::flock(self.0, FlockOperation::Unlock).ok(); // Cannot fail on an open file.
    }
}

fn open_lock(path: &Path) -> Result<File, StoreError> {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path);
    file.map_err(at(path))
}

enum Size {
    AsOthersHaveIt,
    Doubled,
}

impl Reader<'_> {
    pub(super) fn get(&self, table: Table, key: &[u8]) -> heed::Result<Option<&[u8]>> {
        self.tables[table.index()].get(&self.txn, key)
    }

    pub(super) fn all(&self, table: Table) -> heed::Result<Vec<Row>> {
        let rows = self.tables[table.index()].iter(&self.txn)?;
        rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
    }
}

impl Writer<'_> {
    pub(super) fn get(&self, table: Table, key: &[u8]) -> heed::Result<Option<Vec<u8>>> {
        Ok(self.tables[table.index()].get(&self.txn, key)?.map(<[u8]>::to_vec))
    }

    pub(super) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> heed::Result<()> {
        self.tables[table.index()].put(&mut self.txn, key, value)
    }

    pub(super) fn delete(&mut self, table: Table, key: &[u8]) -> heed::Result<bool> {
        self.tables[table.index()].delete(&mut self.txn, key)
    }
}

fn open_env(folder: &Path, sizes: &[usize], access: Access) -> heed::Result<Env<WithoutTls>> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.max_dbs(TABLES as u32).max_readers(READERS_MAX);
    if access == Access::ReadOnly {
        // SAFETY: nobody can write where we may not even lock, or the owner of the store can and a
        // reader sees the state of one commit, as long as fewer than two commits pass while it reads.
        unsafe { options.flags(EnvFlags::READ_ONLY | EnvFlags::NO_LOCK) };
    }
    let mut last = heed::Error::Io(Errno::NOMEM.into());
    for size in sizes {
        options.map_size(*size);
        // SAFETY: the folder is ours (mode 0700), only LMDB changes its files, and the map of open
        // environments keeps this process from opening it twice.
        match unsafe { options.open(folder) } {
            Err(heed::Error::Io(error)) if error.kind() == io::ErrorKind::OutOfMemory => {
                last = heed::Error::Io(error);
            }
            opened => return opened,
        }
    }
    Err(last)
}

fn open_tables(env: &Env<WithoutTls>, access: Access) -> heed::Result<Option<[Bytewise; TABLES]>> {
    let txn = env.read_txn()?;
    let mut found = Vec::with_capacity(TABLES);
    for table in Table::ALL {
        found.extend(env.open_database::<Bytes, Bytes>(&txn, Some(table.name()))?);
    }
    txn.commit()?; // Keeps the handles.
    if let Ok(tables) = <[Bytewise; TABLES]>::try_from(found) {
        return Ok(Some(tables));
    }
    if access == Access::ReadOnly {
        return Ok(None);
    }
    let mut txn = env.write_txn()?;
    let mut made = Vec::with_capacity(TABLES);
    for table in Table::ALL {
        made.push(env.create_database::<Bytes, Bytes>(&mut txn, Some(table.name()))?);
    }
    txn.commit()?;
    Ok(made.try_into().ok())
}

/// Reading a page behind the end of a mapped file kills the process. A file that was cut gets its
/// length back as zeros, which LMDB reports as corrupted pages instead. (Pages that were never
/// needed may lack at the end of a sound file; they stay unread.)
fn fill_up(root: &Path, folder: &Path, env: &Env<WithoutTls>) -> Result<(), StoreError> {
    let data = folder.join("data.mdb");
    let bytes = fs::metadata(&data).map_err(at(&data))?.len();
    let pages = env.info().last_page_number as u64 + 1;
    let wanted = pages * u64::from(env.stat().page_size);
    if bytes >= wanted {
        return Ok(());
    }
    let file = fs::File::options().write(true).open(&data).map_err(at(&data))?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), wanted - 1, 1).map_err(|errno| {
        let reason = format!("{} has {bytes} bytes of {wanted}: {errno}", data.display());
        StoreError::Facts { root: root.to_owned(), reason }
    })
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f04_a_full_map_grows_and_nobody_notices() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("facts")).unwrap();
        let facts = Facts::open_sized(root.path(), &[256 << 10], &Patience::default()).unwrap();
        for index in 0..2000_u32 {
            let key = index.to_be_bytes();
            facts.write(|writer| writer.put(Table::Notes, &key, &[7; 1000])).unwrap();
        }
        assert_eq!(facts.all(Table::Notes).unwrap().len(), 2000);
    }

    const SMALL: [usize; 1] = [256 << 10];
    /// Set in a child process: the folder to write into.
    const CHILD: &str = "STORE_FACTS_CHILD";

    fn fill(facts: &Facts, from: u32) -> Result<(), StoreError> {
        (from..from + 1000).try_for_each(|index| {
            let key = index.to_be_bytes();
            facts.write(|writer| writer.put(Table::Notes, &key, &[7; 1000]))
        })
    }

    #[test]
    fn f04_a_map_that_another_process_made_larger_is_larger_here_too() {
        let quiet = Patience::default();
        if let Some(root) = std::env::var_os(CHILD) {
            let facts = Facts::open_sized(Path::new(&root), &SMALL, &quiet).unwrap();
            return fill(&facts, 1000).unwrap();
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("facts")).unwrap();
        let facts = Facts::open_sized(root.path(), &SMALL, &quiet).unwrap();
        let name =
            "store::facts::tests::f04_a_map_that_another_process_made_larger_is_larger_here_too";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let child = child.args(["--exact", name]).env(CHILD, root.path()).output().unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        assert_eq!(facts.all(Table::Notes).unwrap().len(), 1000);
        fill(&facts, 0).unwrap();
        assert_eq!(facts.all(Table::Notes).unwrap().len(), 2000);
    }

    #[test]
    fn f04_a_map_that_cannot_grow_is_said_in_our_words_and_loses_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("facts")).unwrap();
        let mut facts = Facts::open_sized(root.path(), &SMALL, &Patience::default()).unwrap();
        facts.bytes_max = 512 << 10;
        let refused = fill(&facts, 0).unwrap_err().to_string();
        assert!(refused.contains("no address space") && refused.contains("ulimit"), "{refused}");
        assert!(!refused.contains("MDB") && !refused.contains("mapsize"), "{refused}");
        let kept = facts.all(Table::Notes).unwrap();
        assert!(kept.len() > 100 && kept.iter().all(|(_, value)| value == &[7; 1000]));
        facts.bytes_max = MAP_BYTES_MAX;
        fill(&facts, 0).unwrap();
        assert_eq!(facts.all(Table::Notes).unwrap().len(), 1000);
    }

    #[test]
    fn f04_words_of_lmdb_are_never_told() {
        for error in [
            MdbError::Corrupted,
            MdbError::PageNotFound,
            MdbError::Panic,
            MdbError::MapFull,
            MdbError::MapResized,
            MdbError::ReadersFull,
            MdbError::VersionMismatch,
            MdbError::Invalid,
            MdbError::TxnFull,
        ] {
            let said = StoreError::facts(Path::new("/store"), error.into()).to_string();
            assert!(!said.contains(&error.to_string()) && !said.contains("MDB"), "{said}");
        }
    }

    #[test]
    fn a_cut_file_is_refused_and_does_not_kill() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("facts")).unwrap();
        let facts = Facts::open(root.path(), &Patience::default()).unwrap();
        facts.write(|writer| writer.put(Table::Notes, b"key", &[7; 100_000])).unwrap();
        drop(facts);
        let data =
            fs::File::options().write(true).open(root.path().join("facts/data.mdb")).unwrap();
        data.set_len(3 * 4096).unwrap();
        drop(data);
        let read = Facts::open(root.path(), &Patience::default())
            .and_then(|facts| facts.get(Table::Notes, b"key"));
        assert_ne!(read.ok(), Some(Some(vec![7; 100_000])));
    }
}
