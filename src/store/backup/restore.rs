//! Restore: a backup read into a store, all of it or nothing.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::atomic::Ordering,
};

use super::{BUFFER_BYTES, END, End, HEAD, Head, Running, TABLES, VERSION, decode};
use crate::{
    oci::{DiffId, Digest, Hasher},
    store::{
        CacheRecord, FORMAT, LAYOUT, LayerRecord, Staging, Store, StoreError,
        error::at,
        facts::{Row, Table},
        layers::digest,
        lock,
        names::image_record,
        row::Note,
        sums::{json, parse},
    },
};

/// Largest entry that is read into memory, in bytes: a table, or a listing.
const ENTRY_BYTES_MAX: u64 = 1 << 30;

/// What a restore does with a name that stands for another image here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamesTaken {
    /// Refuses the archive, before anything is changed.
    Refuse,
    /// The name stands for the archive's image from then on.
    Replace,
}

/// What came out of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Images in it.
    pub images: u64,
    /// Cached results in it.
    pub cache_records: u64,
    /// Blobs in it.
    pub blobs: u64,
    /// Blobs that were not here.
    pub new_blobs: u64,
    /// Bytes of these.
    pub new_bytes: u64,
}

/// What has been read so far.
struct Reading<'a> {
    store: &'a Store,
    place: &'a Path,
    staging: Staging,
    names_taken: NamesTaken,
    sum: Running,
    tables: HashMap<Table, Vec<Row>>,
    /// Blobs that wait in the staging folder, by their names there.
    blobs: BTreeSet<Digest>,
    listings: BTreeSet<Digest>,
    report: RestoreReport,
}

/// Whether an archive goes on.
enum Next {
    Entry,
    End,
}

impl Store {
    /// Reads a backup into this store, which may hold other things and be used by others. What is here stays: of
    /// cached results and notes, those here are kept. Nothing is seen before all was read and found right; a restore that
    /// fails or is interrupted leaves the store as it was. `place` is what errors name.
    ///
    /// # Errors
    ///
    /// [`StoreError::Backup`] for what is no whole backup, [`StoreError::NamesTaken`], or when the disk refuses.
    pub fn restore(
        &self,
        input: impl Read,
        place: &Path,
        names_taken: NamesTaken,
    ) -> Result<RestoreReport, StoreError> {
        let _lease = self.lease()?;
        let mut reading = Reading {
            store: self,
            place,
            staging: self.staging()?,
            names_taken,
            sum: Running::new(),
            tables: HashMap::new(),
            blobs: BTreeSet::new(),
            listings: BTreeSet::new(),
            report: RestoreReport::default(),
        };
        let mut archive = tar::Archive::new(input);
        let mut is_whole = false;
        // As they stand: a backup has no extension headers, which would be held in memory however long they are.
        for entry in archive.entries().map_err(|error| reading.broken(&error))?.raw(true) {
            let entry = entry.map_err(|error| reading.broken(&error))?;
            if is_whole {
                return Err(reading.refused("something follows its end"));
            }
            is_whole = matches!(reading.entry(entry)?, Next::End);
        }
        if !is_whole {
            return Err(reading.refused("it ends too early"));
        }
        reading.commit()
    }
}

impl Reading<'_> {
    fn refused(&self, reason: &str) -> StoreError {
        StoreError::Backup { place: self.place.to_owned(), reason: reason.to_owned() }
    }

    fn broken(&self, error: &io::Error) -> StoreError {
        self.refused(&format!("it is no backup, or not all of one: {error}"))
    }

    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<Next, StoreError> {
        let name = entry.path().ok().and_then(|path| path.to_str().map(str::to_owned));
        let is_file = entry.header().entry_type() == tar::EntryType::Regular;
        let Some(name) = name.filter(|_| is_file) else {
            return Err(self.refused("it holds what no backup holds"));
        };
        if self.sum.entries == 0 && name != HEAD {
            return Err(self.refused("it is no backup of a store"));
        }
        if name == END {
            let bytes = self.read(&mut entry)?;
            let end = serde_json::from_slice::<End>(&bytes).ok();
            let mine = std::mem::replace(&mut self.sum, Running::new()).end();
            let is_same = end.is_some_and(|end| end.sum == mine.sum && end.entries == mine.entries);
            return if is_same { Ok(Next::End) } else { Err(self.refused("its sum is wrong")) };
        }
        self.sum.entry(&name);
        let named = |hex: &str| format!("sha256:{hex}").parse::<Digest>().ok();
        if let Some(blob) = name.strip_prefix("blobs/sha256/").and_then(named) {
            self.blob(blob, &mut entry)?;
            return Ok(Next::Entry);
        }
        let bytes = self.read(&mut entry)?;
        self.sum.hasher.update(&bytes);
        if let Some(layer) = name.strip_prefix("listings/").and_then(named) {
            self.listing(layer, &bytes)?;
        } else if let Some(table) = name.strip_prefix("facts/") {
            self.table(table, &bytes)?;
        } else {
            self.document(&name, &bytes)?;
        }
        Ok(Next::Entry)
    }

    fn read<R: Read>(&self, entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, StoreError> {
        if entry.size() > ENTRY_BYTES_MAX {
            return Err(self.refused("a part of it is too large"));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|error| self.broken(&error))?;
        self.go_on()?;
        Ok(bytes)
    }

    fn go_on(&self) -> Result<(), StoreError> {
        let stop = lock(&self.store.shared.stop);
        if stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(self.refused("reading it was stopped; nothing was changed"));
        }
        Ok(())
    }

    fn document(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        match name {
            "index.json" => Ok(()),
            "oci-layout" if bytes == LAYOUT => Ok(()),
            HEAD => {
                let head = serde_json::from_slice::<Head>(bytes)
                    .map_err(|_| self.refused("its first entry cannot be read"))?;
                if head.backup > VERSION || head.store > FORMAT {
                    return Err(self.refused("it is of a newer version; use a newer idpbuilder"));
                }
                Ok(())
            }
            _ => Err(self.refused("it holds what no backup holds")),
        }
    }

    fn table(&mut self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let table = TABLES.into_iter().find(|table| table.name() == name);
        let Some((table, rows)) = table.zip(decode(bytes)) else {
            return Err(self.refused("a table of it cannot be read"));
        };
        let is_good = |(key, row): &Row| match table {
            Table::Images => image_record(key, row).is_some(),
            Table::Layers => parse::<LayerRecord>(key, row).is_some() && digest(key).is_some(),
            Table::Cache => parse::<CacheRecord>(key, row).is_some() && digest(key).is_some(),
            Table::Notes => Note::parse(key, row).is_some(),
            Table::DiffIds | Table::Sites => digest(key).and(digest(row)).is_some(),
            Table::Used => digest(key).is_some() && row.len() == 8,
            Table::Files | Table::Sealed => false,
        };
        let Some(rows) = Some(rows).filter(|rows| rows.iter().all(is_good)) else {
            return Err(self.refused("a row of it cannot be read"));
        };
        match table {
            Table::Images => {
                self.report.images = rows.len() as u64;
                self.check_names(&rows)?;
            }
            Table::Cache => self.report.cache_records = rows.len() as u64,
            Table::Layers
            | Table::DiffIds
            | Table::Sites
            | Table::Files
            | Table::Notes
            | Table::Sealed
            | Table::Used => {}
        }
        self.tables.insert(table, rows);
        Ok(())
    }

    /// Names come before content, so that nothing large is read in vain.
    fn check_names(&self, rows: &[Row]) -> Result<(), StoreError> {
        let mut taken = Vec::new();
        for record in rows.iter().filter_map(|(key, row)| image_record(key, row)) {
            let here = self.store.image(&record.key())?;
            if here.is_some_and(|here| here.target.digest != record.target.digest) {
                taken.push(record.key());
            }
        }
        if taken.is_empty() || self.names_taken == NamesTaken::Replace {
            return Ok(());
        }
        Err(StoreError::NamesTaken { place: self.place.to_owned(), names: taken })
    }

    fn blob<R: Read>(
        &mut self,
        blob: Digest,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), StoreError> {
        self.report.blobs += 1;
        let is_here = self.store.blob_size(blob) == Some(entry.size());
        let path = self.staging.path().join(format!("blob-{}", blob.hex()));
        let mut out: Box<dyn Write> = if is_here {
            Box::new(io::sink())
        } else {
            let mut options = File::options();
            let file = options.write(true).create_new(true).mode(0o600).open(&path);
            Box::new(file.map_err(at(&path))?)
        };
        let (mut hasher, mut buffer, mut bytes) = (Hasher::new(), vec![0; BUFFER_BYTES], 0);
        loop {
            self.go_on()?;
            let read = entry.read(&mut buffer).map_err(|error| self.broken(&error))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            out.write_all(&buffer[..read]).map_err(at(&path))?;
            bytes += read as u64;
        }
        if bytes != entry.size() {
            return Err(self.refused("it ends too early"));
        }
        if hasher.finish() != blob {
            return Err(self.refused(&format!("blob {blob} of it is damaged")));
        }
        if !is_here {
            self.report.new_blobs += 1;
            self.report.new_bytes += bytes;
            self.blobs.insert(blob);
        }
        Ok(())
    }

    fn listing(&mut self, layer: Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let sum = bytes.split_last_chunk::<32>();
        if sum.is_none_or(|(listing, sum)| Digest::of(listing).as_bytes() != sum) {
            return Err(self.refused(&format!("the listing of layer {layer} in it is damaged")));
        }
        let path = self.staging.path().join(format!("listing-{}", layer.hex()));
        fs::write(&path, bytes).map_err(at(&path))?;
        self.listings.insert(layer);
        Ok(())
    }

    /// All is there and right: content first, facts last.
    fn commit(self) -> Result<RestoreReport, StoreError> {
        let store = self.store;
        for blob in &self.blobs {
            store.protect(*blob)?;
            let from = self.staging.path().join(format!("blob-{}", blob.hex()));
            lock(&store.shared.queue).add_blob(*blob); // First, so that nobody here doubts it.
            fs::rename(&from, store.blob_path(*blob)).map_err(at(&from))?;
        }
        for layer in &self.listings {
            store.protect(*layer)?;
            let from = self.staging.path().join(format!("listing-{}", layer.hex()));
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(&from, mode).map_err(at(&from))?;
            fs::rename(&from, store.listing_path(DiffId(*layer))).map_err(at(&from))?;
        }
        for (key, row) in self.tables.get(&Table::Images).into_iter().flatten() {
            let Some(record) = image_record(key, row) else { continue };
            for blob in [record.target.digest, record.config] {
                if store.blob_size(blob).is_none() {
                    return Err(self.refused(&format!("it lacks blob {blob} of {}", record.key())));
                }
            }
        }
        store.flush()?;
        store.shared.facts().write(|writer| {
            let rows =
                self.tables.iter().flat_map(|(table, rows)| rows.iter().map(|row| (*table, row)));
            for (table, (key, row)) in rows {
                if let Some(row) = self.chosen(table, (key, row), writer.get(table, key)?) {
                    writer.put(table, key, &row)?;
                }
            }
            Ok(())
        })?;
        store.write_index()?;
        Ok(self.report)
    }
}

impl Reading<'_> {
    /// What is to stand in the place of what is here; `None` for what is here.
    fn chosen(
        &self,
        table: Table,
        (key, row): (&[u8], &[u8]),
        here: Option<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        let replaces = self.names_taken == NamesTaken::Replace;
        match (table, here) {
            (_, None) => Some(row.to_vec()),
            (Table::Images, Some(_)) if replaces => Some(row.to_vec()),
            (Table::Layers, Some(here)) => Some(both(key, &here, row)),
            (_, Some(_)) => None,
        }
    }
}

/// A layer's record with the compressed forms of two.
fn both(key: &[u8], here: &[u8], there: &[u8]) -> Vec<u8> {
    let parsed = parse::<LayerRecord>(key, here).zip(parse::<LayerRecord>(key, there));
    let Some((mut record, other)) = parsed else { return there.to_vec() };
    record.learn(&other);
    json(key, &record)
}
