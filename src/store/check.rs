//! Check, repair and usage: what is damaged, what can be dropped for it, and what takes the space.
//!
//! A check names everything and changes nothing. A repair drops what is damaged and the names of images
//! that cannot be read without it; it never touches a healthy image.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::{
    oci::{Descriptor, DiffId, Digest, Document, Index, Manifest},
    store::{
        CacheRecord, GcMode, GcPolicy, ImageRecord, LayerRecord, Store, StoreError,
        blob::hash,
        error::at,
        facts::Table,
        layers::{digest, parse},
        names::image_key,
        row::Note,
    },
};

/// How closely a check looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckDepth {
    /// Existence and sizes.
    Quick,
    /// Every byte of every blob and listing.
    Full,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Damage {
    /// Bytes of a blob changed.
    #[error("blob {0} is damaged: its bytes have another digest")]
    Blob(Digest),
    /// A blob has another length than the image says that needs it.
    #[error("blob {blob} has {found} bytes, image `{image}` needs {wanted}")]
    Size {
        /// The blob.
        blob: Digest,
        /// Who needs it.
        image: String,
        /// Length found, in bytes.
        found: u64,
        /// Length needed, in bytes.
        wanted: u64,
    },
    /// A document of an image is not there, or is no such document.
    #[error("image `{image}` lacks {blob}")]
    Missing {
        /// The blob.
        blob: Digest,
        /// Who needs it.
        image: String,
    },
    /// A layer that a cached result or an image of this machine needs is in no form there.
    #[error("cached result {0} has lost its layer")]
    LostLayer(Digest),
    /// A listing is cut or changed.
    #[error("the listing of layer {0} is damaged")]
    Listing(Digest),
    /// A snapshot that was complete is not there.
    #[error("the snapshot of layer {0} is missing")]
    Snapshot(Digest),
    /// A record cannot be read.
    #[error("a record in the table of {table} is damaged (key {key})")]
    Record {
        /// Which table.
        table: &'static str,
        /// Key, in hex.
        key: String,
    },
    /// `index.json` does not list the images that there are.
    #[error("index.json does not say what images there are")]
    Index,
    /// A part of the folder is missing.
    #[error("{0} is missing")]
    Layout(PathBuf),
    /// Something that the store did not make.
    #[error("{0} does not belong here")]
    Stray(PathBuf),
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Everything that is wrong, in order.
    pub damages: Vec<Damage>,
    /// Blobs looked at.
    pub blobs: u64,
    /// Images looked at.
    pub images: u64,
}

/// How many there are, and what they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images by name.
    pub images: u64,
    /// Cached results.
    pub cache_records: u64,
    /// Blobs: number and bytes.
    pub blobs: (u64, u64),
    /// Snapshots: number, and bytes as their layers' records have it.
    pub snapshots: (u64, u64),
    /// Listings: number and bytes.
    pub listings: (u64, u64),
    /// Bytes of the LMDB file.
    pub facts_bytes: u64,
    /// Bytes that a collection without limits on the cache would free.
    pub unreferenced_bytes: u64,
    /// Bytes that a collection of everything but images would free.
    pub reclaimable_bytes: u64,
}

type Damages = BTreeSet<Damage>;

impl Store {
    /// Looks for damage and changes nothing.
    ///
    /// # Errors
    ///
    /// When LMDB or a folder cannot be read at all.
    pub fn check(&self, depth: CheckDepth) -> Result<CheckReport, StoreError> {
        let mut damages = Damages::new();
        let blobs = self.check_blobs(depth, &mut damages)?;
        self.check_listings(depth, &mut damages)?;
        self.check_records(&mut damages)?;
        let images = self.check_images(&mut damages)?;
        let layout = self.root().join("oci-layout");
        if fs::read(&layout).ok().as_deref() != Some(super::LAYOUT) {
            damages.insert(Damage::Layout(layout));
        }
        let damaged_record =
            damages.iter().any(|damage| matches!(damage, Damage::Record { table: "images", .. }));
        if damaged_record || !self.index_is_current()? {
            damages.insert(Damage::Index);
        }
        Ok(CheckReport { damages: damages.into_iter().collect(), blobs, images })
    }

    fn check_blobs(&self, depth: CheckDepth, damages: &mut Damages) -> Result<u64, StoreError> {
        let mut count = 0;
        for path in entries(&self.blobs_folder())? {
            count += 1;
            match named_digest(&path) {
                Some(digest) if path.symlink_metadata().is_ok_and(|found| found.is_file()) => {
                    let intact = || {
                        let read = File::open(&path).and_then(|mut file| hash(&mut file));
                        read.is_ok_and(|(found, _)| found == digest)
                    };
                    if depth == CheckDepth::Full && !intact() {
                        damages.insert(Damage::Blob(digest));
                    }
                }
                _ => drop(damages.insert(Damage::Stray(path))),
            }
        }
        Ok(count)
    }

    fn check_listings(&self, depth: CheckDepth, damages: &mut Damages) -> Result<(), StoreError> {
        for path in entries(&self.root().join("listings"))? {
            match named_digest(&path) {
                None => drop(damages.insert(Damage::Stray(path))),
                Some(digest)
                    if depth == CheckDepth::Full && self.listing(DiffId(digest))?.is_none() =>
                {
                    damages.insert(Damage::Listing(digest));
                }
                Some(_) => {}
            }
        }
        for path in entries(&self.root().join("snapshots"))? {
            let is_mark = path.extension().is_some_and(|extension| extension == "boot");
            let name = if is_mark { path.with_extension("") } else { path.clone() };
            if named_digest(&name).is_none() {
                damages.insert(Damage::Stray(path));
            }
        }
        for (key, _) in self.shared.facts().all(Table::Sealed)? {
            let layer = digest(&key).filter(|layer| !self.snapshot_path(DiffId(*layer)).is_dir());
            damages.extend(layer.map(Damage::Snapshot));
        }
        Ok(())
    }

    fn check_records(&self, damages: &mut Damages) -> Result<(), StoreError> {
        type Readable = fn(&[u8]) -> bool;
        let tables: [(Table, Readable); 6] = [
            (Table::Images, |bytes| parse::<ImageRecord>(bytes).is_some()),
            (Table::Layers, |bytes| parse::<LayerRecord>(bytes).is_some()),
            (Table::Cache, |bytes| parse::<CacheRecord>(bytes).is_some()),
            (Table::Notes, |bytes| Note::parse(bytes).is_some()),
            (Table::DiffIds, |bytes| digest(bytes).is_some()),
            (Table::Sites, |bytes| digest(bytes).is_some()),
        ];
        for (table, readable) in tables {
            for (key, value) in self.shared.facts().all(table)? {
                if !readable(&value) {
                    damages.insert(Damage::Record { table: table.name(), key: hex(&key) });
                }
            }
        }
        for (key, value) in self.shared.facts().all(Table::Cache)? {
            let (Some(key), Some(record)) = (digest(&key), parse::<CacheRecord>(&value)) else {
                continue;
            };
            if !self.has_all(&record.made)? {
                damages.insert(Damage::LostLayer(key));
            }
        }
        Ok(())
    }

    fn check_images(&self, damages: &mut Damages) -> Result<u64, StoreError> {
        let rows = self.shared.facts().all(Table::Images)?;
        for record in rows.iter().filter_map(|(_, value)| parse::<ImageRecord>(value)) {
            self.check_image(&record, damages);
        }
        Ok(rows.len() as u64)
    }

    /// Documents must be there; layers may be elsewhere (they are fetched when they are needed), and
    /// of an index, manifests of other platforms may be.
    fn check_image(&self, record: &ImageRecord, damages: &mut Damages) {
        let image = record.key();
        let missing = |blob| Damage::Missing { blob, image: image.clone() };
        if self.blob_size(record.config).is_none() {
            damages.insert(missing(record.config));
        }
        let mut pending = vec![(record.target.clone(), Need::Must)];
        while let Some((descriptor, need)) = pending.pop() {
            let blob = descriptor.digest;
            match (self.blob_size(blob), need) {
                (None, Need::Must) => drop(damages.insert(missing(blob))),
                (Some(found), _) if found != descriptor.size => {
                    let wanted = descriptor.size;
                    damages.insert(Damage::Size { blob, image: image.clone(), found, wanted });
                }
                (Some(_), _)
                    if descriptor.media_type.is_index() || descriptor.media_type.is_manifest() =>
                {
                    match self.children(&descriptor) {
                        Some(children) => pending.extend(children),
                        None => drop(damages.insert(missing(blob))),
                    }
                }
                _ => {}
            }
        }
    }

    fn children(&self, descriptor: &Descriptor) -> Option<Vec<(Descriptor, Need)>> {
        let raw = self.read_blob(descriptor.digest).ok()?;
        let may = |descriptor| (descriptor, Need::May);
        if descriptor.media_type.is_index() {
            let index = Document::<Index>::parse(raw).ok()?.value;
            return Some(index.manifests.into_iter().map(may).collect());
        }
        let manifest = Document::<Manifest>::parse(raw).ok()?.value;
        let layers = manifest.layers.into_iter().map(may);
        Some(layers.chain([(manifest.config, Need::Must)]).collect())
    }

    /// Drops what a check found damaged: blobs, listings and records; the names of images whose
    /// documents are damaged or missing; and writes `index.json` again. Strays are left alone.
    ///
    /// # Errors
    ///
    /// When the disk refuses.
    pub fn repair(&self, report: &CheckReport) -> Result<(), StoreError> {
        let mut keys: Vec<(Table, Vec<u8>)> = Vec::new();
        for damage in &report.damages {
            match damage {
                Damage::Blob(blob) | Damage::Size { blob, .. } => gone(&self.blob_path(*blob))?,
                Damage::Listing(layer) => gone(&self.listing_path(DiffId(*layer)))?,
                Damage::Snapshot(layer) => keys.push((Table::Sealed, layer.as_bytes().to_vec())),
                Damage::LostLayer(key) => keys.push((Table::Cache, key.as_bytes().to_vec())),
                Damage::Record { table, key } => {
                    let table = Table::ALL.into_iter().find(|known| known.name() == *table);
                    keys.extend(table.zip(bytes(key)));
                }
                Damage::Layout(path) => gone(path)?,
                Damage::Missing { .. } | Damage::Index | Damage::Stray(_) => {}
            }
        }
        super::prepare(self.root())?;
        // What hung on the blobs that are gone now shows as missing.
        let mut left = Damages::new();
        self.check_images(&mut left)?;
        for damage in left {
            if let Damage::Missing { image, .. } = damage {
                keys.push((Table::Images, image_key(&image).to_vec()));
            }
        }
        if !keys.is_empty() {
            self.shared.facts().write(|writer| {
                keys.iter().try_for_each(|(table, key)| writer.delete(*table, key).map(drop))
            })?;
        }
        self.write_index()
    }

    /// What the store holds, and what of it could go.
    ///
    /// # Errors
    ///
    /// When LMDB or a folder cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let facts = self.shared.facts();
        let data = self.root().join("facts/data.mdb");
        let collected = |cache_age_max_s| -> Result<u64, StoreError> {
            let policy = GcPolicy { cache_age_max_s, cache_bytes_max: None, mode: GcMode::DryRun };
            Ok(self.gc(policy)?.bytes)
        };
        let mut snapshots = (0, 0);
        for layer in
            entries(&self.root().join("snapshots"))?.iter().filter_map(|path| named_digest(path))
        {
            snapshots.0 += 1;
            snapshots.1 += self.layer(DiffId(layer))?.map_or(0, |layer| layer.content_bytes);
        }
        Ok(Usage {
            images: facts.all(Table::Images)?.len() as u64,
            cache_records: facts.all(Table::Cache)?.len() as u64,
            blobs: count(&self.blobs_folder())?,
            snapshots,
            listings: count(&self.root().join("listings"))?,
            facts_bytes: fs::metadata(&data).map_err(at(&data))?.len(),
            unreferenced_bytes: collected(None)?,
            reclaimable_bytes: collected(Some(0))?,
        })
    }
}

/// Whether an image is broken without some content.
#[derive(Clone, Copy)]
enum Need {
    Must,
    May,
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(folder).map_err(at(folder))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(at(folder))).collect()
}

fn count(folder: &Path) -> Result<(u64, u64), StoreError> {
    let sizes: Vec<u64> = entries(folder)?
        .iter()
        .filter_map(|path| path.symlink_metadata().ok())
        .map(|found| found.len())
        .collect();
    Ok((sizes.len() as u64, sizes.iter().sum()))
}

fn named_digest(path: &Path) -> Option<Digest> {
    format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()
}

fn gone(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::at(path, error))
        }
        _ => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
