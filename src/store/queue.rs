//! What this process has stored and not yet made durable: visible here at once, elsewhere after a flush.
//!
//! Knows which tables, blobs and snapshots are waiting; writes them in the one order that is safe:
//! content reaches the disk first, then all facts about it in one transaction. Whoever asks for a flush while one
//! runs shares the next with all that ask meanwhile: a disk takes as long for one as for many.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
};

use crate::{
    oci::{DiffId, Digest},
    store::{
        LayerRecord, Store, StoreError,
        error::{at, errno_at},
        facts::{TABLES, Table, Writer},
        lock,
        sums::{json, parse},
    },
};

/// Mode of a blob whose bytes are known to be on the disk.
pub(super) const MODE_SEALED: u32 = 0o400;
/// With more blobs than this, one sync of the file system is cheaper than one a file.
const FILE_SYNCS_MAX: usize = 16;

/// With more rows waiting for nothing but a flush, they are written.
const ROWS_MAX: usize = 1 << 15;

/// Rows to be written, by table and key.
#[derive(Clone, Default)]
pub(super) struct Rows([HashMap<Vec<u8>, Vec<u8>>; TABLES]);

impl Rows {
    pub(super) fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.0[table.index()].insert(key.to_vec(), value);
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Vec<u8>> {
        self.0[table.index()].get(key)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(HashMap::is_empty)
    }

    /// Takes in rows that are older than those here.
    fn add_older(&mut self, older: Self) {
        for (mine, theirs) in self.0.iter_mut().zip(older.0) {
            for (key, value) in theirs {
                mine.entry(key).or_insert(value);
            }
        }
    }

    fn write(&self, writer: &mut Writer<'_>) -> heed::Result<()> {
        for table in Table::ALL {
            // In order: LMDB fills its pages then.
            let mut rows: Vec<_> = self.0[table.index()].iter().collect();
            rows.sort_unstable();
            for (key, value) in rows {
                if table == Table::Layers {
                    writer.put(table, key, &merged(writer, key, value)?)?;
                } else {
                    writer.put(table, key, value)?;
                }
            }
        }
        Ok(())
    }
}

/// Another process may have learned of other compressed forms meanwhile.
fn merged(writer: &Writer<'_>, key: &[u8], value: &[u8]) -> heed::Result<Vec<u8>> {
    let known = writer.get(Table::Layers, key)?;
    let known: Option<LayerRecord> = known.and_then(|bytes| parse(key, &bytes));
    let (Some(known), Some(mut record)) = (known, parse::<LayerRecord>(key, value)) else {
        return Ok(value.to_vec());
    };
    record.learn(&known);
    Ok(json(key, &record))
}

/// The queue.
#[derive(Default)]
pub(super) struct Queue {
    rows: Rows,
    /// Rows that a flush is writing right now.
    in_flight: Arc<Rows>,
    blobs: HashSet<Digest>,
    snapshots: HashSet<DiffId>,
    /// What comes last in the flush that each one waits for who asked for it, in the order of asking.
    asked: BTreeMap<u64, Arc<Rows>>,
    /// How many have asked so far.
    asked_count: u64,
}

impl Queue {
    /// Asks for a flush.
    fn ask(&mut self, last: Rows) -> u64 {
        self.asked_count += 1;
        self.asked.insert(self.asked_count, Arc::new(last));
        self.asked_count
    }

    /// How many wait for a flush.
    #[cfg(test)]
    pub(super) fn asked_for(&self) -> usize {
        self.asked.len()
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Vec<u8>> {
        self.rows.get(table, key).or_else(|| self.in_flight.get(table, key))
    }

    pub(super) fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.rows.put(table, key, value);
    }

    pub(super) fn add_blob(&mut self, digest: Digest) {
        self.blobs.insert(digest);
    }

    pub(super) fn has_blob(&self, digest: Digest) -> bool {
        self.blobs.contains(&digest)
    }

    pub(super) fn add_snapshot(&mut self, layer: DiffId) {
        self.snapshots.insert(layer);
    }

    pub(super) fn has_snapshot(&self, layer: DiffId) -> bool {
        self.snapshots.contains(&layer)
    }
}

impl Store {
    /// A value, queued or durable.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(value) = lock(&self.shared.queue).get(table, key) {
            return Ok(Some(value.clone()));
        }
        self.shared.facts().get(table, key)
    }

    /// Writes the rows of a table that need no content on the disk, when there are many.
    pub(super) fn relieve_queue(&self, table: Table) -> Result<(), StoreError> {
        if lock(&self.shared.queue).rows.0[table.index()].len() < ROWS_MAX {
            return Ok(());
        }
        let _alone = lock(&self.shared.flushing);
        let rows = {
            let mut queue = lock(&self.shared.queue);
            let mut rows = Rows::default();
            rows.0[table.index()] = std::mem::take(&mut queue.rows.0[table.index()]);
            queue.in_flight = Arc::new(rows);
            Arc::clone(&queue.in_flight)
        };
        let written = self.write_rows(&[&rows], &HashSet::new());
        let mut queue = lock(&self.shared.queue);
        queue.in_flight = Arc::default();
        if written.is_err() {
            queue.rows.add_older(Arc::unwrap_or_clone(rows));
        }
        written
    }

    /// Makes everything queued durable, and `last` after it, in the same transaction.
    pub(super) fn flush_with(&self, last: Rows) -> Result<(), StoreError> {
        let mine = lock(&self.shared.queue).ask(last);
        let _alone = lock(&self.shared.flushing);
        let (rows, blobs, snapshots, asked) = {
            let mut queue = lock(&self.shared.queue);
            if !queue.asked.contains_key(&mine) {
                return Ok(()); // The flush before this one has taken it along.
            }
            queue.in_flight = Arc::new(std::mem::take(&mut queue.rows));
            let rows = Arc::clone(&queue.in_flight);
            (rows, queue.blobs.clone(), queue.snapshots.clone(), queue.asked.clone())
        };
        // Without the queue's lock: who holds that may wait for the map to grow.
        let written = self.sync_content(&blobs, &snapshots).and_then(|()| {
            let all: Vec<&Rows> =
                std::iter::once(&rows).chain(asked.values()).map(|rows| &**rows).collect();
            self.write_rows(&all, &snapshots)
        });
        let mut queue = lock(&self.shared.queue);
        queue.in_flight = Arc::default();
        if written.is_err() {
            queue.rows.add_older(Arc::unwrap_or_clone(rows));
            // The others try for themselves, and are told for themselves what is wrong.
            queue.asked.remove(&mine);
        } else {
            queue.asked.retain(|one, _| !asked.contains_key(one));
            queue.blobs.retain(|blob| !blobs.contains(blob));
            queue.snapshots.retain(|layer| !snapshots.contains(layer));
        }
        written
    }

    fn write_rows(&self, rows: &[&Rows], sealed: &HashSet<DiffId>) -> Result<(), StoreError> {
        if sealed.is_empty() && rows.iter().all(|rows| rows.is_empty()) {
            return Ok(());
        }
        self.shared.facts().write(|writer| {
            for layer in sealed {
                writer.put(Table::Sealed, layer.0.as_bytes(), &[])?;
            }
            rows.iter().try_for_each(|rows| rows.write(writer))
        })?;
        for layer in sealed {
            drop(fs::remove_file(self.boot_mark(*layer))); // Says less than the row; may stay.
        }
        Ok(())
    }

    /// Content and the names it has reach the disk.
    fn sync_content(
        &self,
        blobs: &HashSet<Digest>,
        snapshots: &HashSet<DiffId>,
    ) -> Result<(), StoreError> {
        let all_at_once = !snapshots.is_empty() || blobs.len() > FILE_SYNCS_MAX;
        if all_at_once {
            let root = File::open(self.root()).map_err(at(self.root()))?;
            rustix::fs::syncfs(&root).map_err(errno_at(self.root()))?;
        }
        for blob in blobs {
            let path = self.blob_path(*blob);
            match File::open(&path) {
                Ok(file) if all_at_once => mark_sealed(&file).map_err(at(&path))?,
                Ok(file) => seal(&file).map_err(at(&path))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // Removed meanwhile.
                Err(error) => return Err(StoreError::at(&path, error)),
            }
        }
        if !blobs.is_empty() && !all_at_once {
            sync_folder(&self.blobs_folder())?;
        }
        Ok(())
    }
}

/// Brings the bytes to the disk, then says so in the file's mode.
pub(super) fn seal(file: &File) -> io::Result<()> {
    file.sync_all()?;
    mark_sealed(file)
}

fn mark_sealed(file: &File) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(MODE_SEALED))
}

/// Brings the names in a folder to the disk.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
}
