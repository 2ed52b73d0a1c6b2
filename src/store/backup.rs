//! Backup: all images, pins, notes and cached results of a store in one tar archive, and back.
//!
//! The archive is an OCI layout with more in it; `schema/store.md` says what. Everything in it is checked by its digest
//! or sum while it is written and while it is read. Nothing of a backup is seen in a store before all of it was
//! read and found right: content waits in the process's folder, and facts come last, in one transaction.

mod restore;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

pub use self::restore::{NamesTaken, RestoreReport};
use crate::{
    oci::{Digest, Hasher},
    store::{
        CacheRecord, FORMAT, GcPolicy, LAYOUT, Store, StoreError,
        facts::{Row, Table},
        gc::State,
        layers::digest,
        names::image_record,
        sums::parse,
    },
};

/// Version of the archive that is written, and the newest that is read.
const VERSION: u32 = 1;
/// First entry of an archive.
const HEAD: &str = "idpbuilder-backup.json";
/// Last entry of an archive.
const END: &str = "idpbuilder-backup.end.json";
/// Tables that travel: what the others say holds for one machine and its disk.
const TABLES: [Table; 7] = [
    Table::Images,
    Table::Layers,
    Table::DiffIds,
    Table::Cache,
    Table::Sites,
    Table::Used,
    Table::Notes,
];
/// Mode of the archive's members.
const MODE: u32 = 0o644;
/// Bytes copied at once.
const BUFFER_BYTES: usize = 128 << 10;

/// What an archive says of itself first.
#[derive(Serialize, Deserialize)]
struct Head {
    /// Version of the archive.
    backup: u32,
    /// Format of the store that it was made of.
    store: u32,
}

/// What an archive says last: whoever finds it has all.
#[derive(Serialize, Deserialize)]
struct End {
    /// Number of entries before.
    entries: u64,
    /// SHA-256 over the names of all entries, each with a newline, and the bytes of all that are no blobs.
    sum: Digest,
}

/// What went into an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupReport {
    /// Images by name.
    pub images: u64,
    /// Cached results.
    pub cache_records: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of the blobs.
    pub bytes: u64,
}

/// The sum over an archive, as it grows.
struct Running {
    hasher: Hasher,
    entries: u64,
}

impl Running {
    fn new() -> Self {
        Self { hasher: Hasher::new(), entries: 0 }
    }

    fn entry(&mut self, name: &str) {
        self.entries += 1;
        self.hasher.update(name.as_bytes());
        self.hasher.update(b"\n");
    }

    fn end(self) -> End {
        End { entries: self.entries, sum: self.hasher.finish() }
    }
}

struct Archive<W: Write> {
    tar: tar::Builder<W>,
    sum: Running,
}

impl<W: Write> Archive<W> {
    /// An entry that the sum counts.
    fn put(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.sum.entry(name);
        self.sum.hasher.update(bytes);
        self.tar.append_data(&mut header(bytes.len() as u64), name, bytes)
    }

    /// A blob, which its name checks.
    fn put_blob(&mut self, digest: Digest, file: &File, bytes: u64) -> io::Result<Digest> {
        let name = format!("blobs/sha256/{}", digest.hex());
        self.sum.entry(&name);
        let mut hashed = Hashed { from: file.take(bytes), hasher: Hasher::new(), bytes: 0 };
        self.tar.append_data(&mut header(bytes), name, &mut hashed)?;
        if hashed.bytes != bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(hashed.hasher.finish())
    }
}

/// A reader that hashes what is read.
struct Hashed<R> {
    from: R,
    hasher: Hasher,
    bytes: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

fn header(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(MODE);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

impl Store {
    /// Writes the images, pins, notes and cached results that there are, with all that they need of what is here.
    /// `place` is what errors name. Others go on meanwhile: what they add later is not in it, and what it needs
    /// is not collected.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] when something is not what its digest says, or when either side cannot be read or written.
    pub fn backup(&self, out: impl Write, place: &Path) -> Result<BackupReport, StoreError> {
        self.flush()?;
        let _lease = self.lease()?;
        let (tables, live) = {
            let _gate = super::lease::share_gate(self.root(), &self.shared.patience)?;
            let (state, tables) = self.shared.facts().read(|reader| {
                let rows = TABLES.iter().map(|table| Ok((*table, reader.all(*table)?)));
                Ok((State::read(reader)?, rows.collect::<heed::Result<HashMap<_, _>>>()?))
            })?;
            let live = self.live(&state, GcPolicy::default());
            live.iter().try_for_each(|digest| self.protect(*digest))?;
            (self.travelling(tables, &live)?, live)
        };
        let mut archive = Archive { tar: tar::Builder::new(out), sum: Running::new() };
        let said = |error| StoreError::at(place, error);
        let head = Head { backup: VERSION, store: FORMAT };
        archive.put(HEAD, &text(&head)).map_err(said)?;
        archive.put("oci-layout", LAYOUT).map_err(said)?;
        let images: Vec<_> =
            tables[&Table::Images].iter().filter_map(|(key, row)| image_record(key, row)).collect();
        archive.put("index.json", &super::names::index_of(images).raw).map_err(said)?;
        for table in TABLES {
            let name = format!("facts/{}", table.name());
            archive.put(&name, &encode(&tables[&table])).map_err(said)?;
        }
        let mut report = BackupReport {
            images: tables[&Table::Images].len() as u64,
            cache_records: tables[&Table::Cache].len() as u64,
            ..BackupReport::default()
        };
        let mut live: Vec<Digest> = live.into_iter().collect();
        live.sort();
        for layer in &live {
            if let Some(listing) = self.summed_listing(*layer)? {
                archive.put(&format!("listings/{}", layer.hex()), &listing).map_err(said)?;
            }
        }
        for blob in live {
            let Some(bytes) = self.blob_size(blob) else { continue };
            let file = self.open_blob(blob)?;
            if archive.put_blob(blob, &file, bytes).map_err(said)? != blob {
                let (root, what) = (self.root().to_owned(), format!("blob {blob}"));
                return Err(StoreError::Damaged { root, what });
            }
            report.blobs += 1;
            report.bytes += bytes;
        }
        let Archive { mut tar, sum } = archive;
        let end = text(&sum.end());
        tar.append_data(&mut header(end.len() as u64), END, &end[..]).map_err(said)?;
        tar.into_inner().and_then(|mut out| out.flush()).map_err(said)?;
        Ok(report)
    }

    /// Rows that can be read, and whose content goes with them.
    fn travelling(
        &self,
        mut tables: HashMap<Table, Vec<Row>>,
        live: &std::collections::HashSet<Digest>,
    ) -> Result<HashMap<Table, Vec<Row>>, StoreError> {
        let is_live = |key: &[u8]| digest(key).is_some_and(|digest| live.contains(&digest));
        let mut cache = Vec::new();
        for (key, row) in tables.remove(&Table::Cache).unwrap_or_default() {
            let Some(record) = parse::<CacheRecord>(&key, &row) else { continue };
            if self.has_all(&record.made)? {
                cache.push((key, row));
            }
        }
        tables.insert(Table::Cache, cache);
        for (table, rows) in &mut tables {
            match table {
                Table::Layers => rows.retain(|(key, _)| is_live(key)),
                Table::DiffIds => rows.retain(|(_, layer)| is_live(layer)),
                Table::Images => {
                    for (key, row) in rows {
                        self.parse_image(key, row)?;
                    }
                }
                Table::Cache
                | Table::Sites
                | Table::Files
                | Table::Notes
                | Table::Sealed
                | Table::Used => {}
            }
        }
        Ok(tables)
    }
}

fn text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("numbers and digests are JSON")
}

/// Rows one after another: lengths of key and value (u32 little-endian each), key, value.
fn encode(rows: &[Row]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in rows {
        for part in [key, value] {
            let length = u32::try_from(part.len()).expect("LMDB takes no value as long as that");
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
    }
    bytes
}

/// The rows that [`encode`] wrote.
fn decode(mut bytes: &[u8]) -> Option<Vec<Row>> {
    let mut rows = Vec::new();
    while !bytes.is_empty() {
        let (key_bytes, rest) = bytes.split_first_chunk()?;
        let (value_bytes, rest) = rest.split_first_chunk()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_bytes) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_bytes) as usize)?;
        rows.push((key.to_vec(), value.to_vec()));
        bytes = rest;
    }
    Some(rows)
}

#[cfg(test)]
mod tests;
