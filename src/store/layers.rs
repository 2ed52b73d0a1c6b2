//! Facts about layers, cached results, files and notes: look-ups and queued writes.
//!
//! Knows the keys and byte forms of `schema/store.md`; nothing here makes anything durable.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::de::DeserializeOwned;

use crate::{
    graph::CacheKey,
    oci::{DiffId, Digest},
    store::{
        CacheRecord, FileStamp, LayerRecord, Made, Store, StoreError,
        facts::{Access, Table},
        lock,
        row::{FileRow, Note},
        sums::{json, parse},
    },
};

/// Coarsest clock of a file system in use, in nanoseconds (FAT counts in two seconds): a file that
/// changed so shortly before it was read can change again without a new stamp.
const CLOCK_STEP_NS: i128 = 2_000_000_000;
/// How many stamps are remembered as asked for; beyond, they count as asked for at the start.
const ASKED_MAX: usize = 1 << 20;
/// A note that has not changed, and the use of a cached result, are written again after this many
/// seconds, so that they stay young.
pub(super) const RENEWAL_S: i64 = 24 * 60 * 60;

/// Since when a file's stamp is known to this process.
pub(super) struct Asked {
    opened_ns: i128,
    missed_ns: HashMap<FileStamp, i128>,
}

impl Default for Asked {
    fn default() -> Self {
        Self { opened_ns: now_ns(), missed_ns: HashMap::new() }
    }
}

impl Asked {
    /// Whether a change after the file was read would have changed its stamp: the file is read after
    /// its digest was asked for and missed.
    fn settles(&mut self, stamp: &FileStamp) -> bool {
        let read_ns = self.missed_ns.remove(stamp).unwrap_or(self.opened_ns);
        stamp.ctime_ns.max(stamp.mtime_ns) < read_ns - CLOCK_STEP_NS
    }
}

impl Store {
    /// What is known of a layer.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn layer(&self, layer: DiffId) -> Result<Option<LayerRecord>, StoreError> {
        self.record(Table::Layers, layer.0.as_bytes())
    }

    /// Keeps what is known of a layer; compressed forms are merged with those known already.
    /// Queued until [`Store::flush`] (visible to this process at once). Nothing new costs no write.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn put_layer(&self, layer: DiffId, record: &LayerRecord) -> Result<(), StoreError> {
        let key = layer.0.as_bytes();
        let mut queue = lock(&self.shared.queue);
        let durable = match queue.get(Table::Layers, key) {
            Some(_) => None,
            None => self.shared.facts().get(Table::Layers, key)?,
        };
        let known = queue.get(Table::Layers, key).or(durable.as_ref());
        let known: Option<LayerRecord> = known.and_then(|bytes| parse(key, bytes));
        let mut all = record.clone();
        if let Some(known) = &known {
            all.learn(known);
        }
        if known.as_ref() == Some(&all) {
            return Ok(());
        }
        for form in &all.compressed {
            let compressed = form.descriptor.digest;
            queue.put(Table::DiffIds, compressed.as_bytes(), layer.0.as_bytes().to_vec());
        }
        queue.put(Table::Layers, key, json(key, &all));
        Ok(())
    }

    /// Diff ID of a compressed blob, when it was seen before.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn diff_id_of(&self, compressed: Digest) -> Result<Option<DiffId>, StoreError> {
        let found = self.get(Table::DiffIds, compressed.as_bytes())?;
        Ok(found.and_then(|bytes| digest(&bytes)).map(DiffId))
    }

    /// Result of an op. A record whose layer is gone (neither plain nor compressed) is no result.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn cached(&self, key: CacheKey) -> Result<Option<CacheRecord>, StoreError> {
        let record: Option<CacheRecord> = self.record(Table::Cache, key.0.as_bytes())?;
        let Some(record) = record else { return Ok(None) };
        if !self.has_all(&record.made)? {
            return Ok(None);
        }
        self.note_use(key, &record)?;
        Ok(Some(record))
    }

    /// Remembers, once a day, that a cached result is of use.
    fn note_use(&self, key: CacheKey, record: &CacheRecord) -> Result<(), StoreError> {
        let now = now_s();
        let used = self.get(Table::Used, key.0.as_bytes())?;
        let used = used.and_then(|bytes| Some(i64::from_le_bytes(bytes.try_into().ok()?)));
        let last_use = used.unwrap_or(record.made_at).max(record.made_at);
        let writable = self.shared.facts().access() == Access::Full;
        if writable && now.saturating_sub(last_use) >= RENEWAL_S {
            lock(&self.shared.queue).put(Table::Used, key.0.as_bytes(), now.to_le_bytes().to_vec());
        }
        Ok(())
    }

    /// Whether the content of all that an op made is here.
    pub(super) fn has_all(&self, made: &Made) -> Result<bool, StoreError> {
        for layer in made.layers() {
            if !self.has_layer(*layer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the layer's bytes are here, plain or compressed. A snapshot is not enough: nothing could be pushed.
    pub(super) fn has_layer(&self, layer: DiffId) -> Result<bool, StoreError> {
        if self.blob_size(layer.0).is_some() {
            return Ok(true);
        }
        let forms = self.layer(layer)?.map(|record| record.compressed).unwrap_or_default();
        Ok(forms.iter().any(|form| self.blob_size(form.descriptor.digest).is_some()))
    }

    /// Keeps the result of an op. Queued until [`Store::flush`] (visible to this process at once).
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn put_cached(&self, key: CacheKey, record: &CacheRecord) -> Result<(), StoreError> {
        for layer in record.made.layers() {
            self.protect(layer.0)?;
        }
        let mut queue = lock(&self.shared.queue);
        let key = key.0.as_bytes();
        queue.put(Table::Cache, key, json(key, record));
        queue.put(Table::Sites, Digest::of(record.site.as_bytes()).as_bytes(), key.to_vec());
        Ok(())
    }

    /// Remembers a cached result as the newest of a site besides its own.
    pub fn put_site(&self, site: &str, key: CacheKey) {
        let digest = Digest::of(site.as_bytes());
        lock(&self.shared.queue).put(Table::Sites, digest.as_bytes(), key.0.as_bytes().to_vec());
    }

    /// The newest record made at a site, whatever its key: what to explain a miss against.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn last_at(&self, site: &str) -> Result<Option<CacheRecord>, StoreError> {
        let key = self.get(Table::Sites, Digest::of(site.as_bytes()).as_bytes())?;
        key.map_or(Ok(None), |key| self.record(Table::Cache, &key))
    }

    /// Digest of a file that had this stamp when it was hashed. Stamps too young to be trusted (the
    /// racy-timestamp rule) are never kept: ask before reading a file, since a stamp counts as old by
    /// the time at which it was asked for first.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn file_digests(&self, stamps: &[FileStamp]) -> Result<Vec<Option<Digest>>, StoreError> {
        let asked_ns = now_ns();
        let queued: Vec<_> = {
            let queue = lock(&self.shared.queue);
            let row = |stamp: &FileStamp| queue.get(Table::Files, &FileRow::key(stamp));
            stamps
                .iter()
                .map(|stamp| row(stamp).and_then(|row| FileRow::digest(row, stamp)))
                .collect()
        };
        let found: Vec<_> = self.shared.facts().read(|reader| {
            let durable = |stamp: &FileStamp| {
                let row = reader.get(Table::Files, &FileRow::key(stamp))?;
                Ok(row.and_then(|row| FileRow::digest(row, stamp)))
            };
            let both = stamps.iter().zip(queued);
            both.map(|(stamp, queued)| {
                queued.map_or_else(|| durable(stamp), |found| Ok(Some(found)))
            })
            .collect()
        })?;
        let mut asked = lock(&self.shared.asked);
        for (stamp, _) in stamps.iter().zip(&found).filter(|(_, digest)| digest.is_none()) {
            if asked.missed_ns.len() < ASKED_MAX {
                asked.missed_ns.entry(*stamp).or_insert(asked_ns); // The first reader counts.
            }
        }
        Ok(found)
    }

    /// Keeps digests of files. Queued until [`Store::flush`], or until so many wait that they are written at once: they
    /// speak of nothing that has to be on the disk before. Says of each whether it is kept.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn put_file_digests(
        &self,
        digests: &[(FileStamp, Digest)],
    ) -> Result<Vec<bool>, StoreError> {
        let kept: Vec<_> = {
            let mut asked = lock(&self.shared.asked);
            digests.iter().map(|(stamp, _)| asked.settles(stamp)).collect()
        };
        {
            let mut queue = lock(&self.shared.queue);
            for ((stamp, digest), _) in digests.iter().zip(&kept).filter(|(_, kept)| **kept) {
                queue.put(Table::Files, &FileRow::key(stamp), FileRow::write(stamp, *digest));
            }
        }
        if self.shared.facts().access() == Access::Full {
            self.relieve_queue(Table::Files)?;
        }
        Ok(kept)
    }

    /// A small named value (for example what a base image's tag resolved to), by namespace and name.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn note(&self, namespace: &str, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let key = Note::key(namespace, name);
        let row = self.get(Table::Notes, key.as_bytes())?;
        Ok(row.and_then(|row| Note::parse(key.as_bytes(), &row)).map(|note| note.value))
    }

    /// Keeps a small named value. Queued until [`Store::flush`]. An unchanged one costs a write a day.
    /// Blobs whose digests a note spells out (`sha256:HEX`) are kept while the note is.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn put_note(&self, namespace: &str, name: &str, value: &[u8]) -> Result<(), StoreError> {
        let key = Note::key(namespace, name);
        let made_at = now_s();
        let known = self.get(Table::Notes, key.as_bytes())?;
        let known = known.and_then(|row| Note::parse(key.as_bytes(), &row));
        let fresh = |known: &Note| known.made_at.abs_diff(made_at) < RENEWAL_S.unsigned_abs();
        if known.is_some_and(|known| known.value == value && fresh(&known)) {
            return Ok(());
        }
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let row = Note { made_at, namespace, name, value: value.to_vec() }.write();
        lock(&self.shared.queue).put(Table::Notes, key.as_bytes(), row);
        Ok(())
    }

    /// A record; one that cannot be read is none, and is made again.
    fn record<T: DeserializeOwned>(
        &self,
        table: Table,
        key: &[u8],
    ) -> Result<Option<T>, StoreError> {
        Ok(self.get(table, key)?.and_then(|bytes| parse(key, &bytes)))
    }
}

/// A digest from its 32 bytes.
pub(super) fn digest(bytes: &[u8]) -> Option<Digest> {
    Some(Digest::from_bytes(bytes.try_into().ok()?))
}

fn now_ns() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(i128::MAX))
}

/// Unix seconds.
pub(super) fn now_s() -> i64 {
    i64::try_from(now_ns() / 1_000_000_000).unwrap_or(i64::MAX)
}
