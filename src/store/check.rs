//! Check: what is damaged, and what cannot be used without it. Changes nothing, and does not even open the facts.
//!
//! Facts are read as bytes (`pages`), so that a file that would kill who opens it is looked at like any other. What is
//! done about it all is for `repair` to know.

mod damage;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

pub use self::damage::Damage;
use crate::{
    oci::{Descriptor, DiffId, Digest, Document, ImageConfig, Index, Manifest},
    store::{
        CacheRecord, FORMAT, ImageRecord, LAYOUT, LayerRecord, ORIGIN_NAMESPACE, SERVED_NAMESPACE,
        Store, StoreError,
        blob::hash,
        boot_id,
        directory::MARK,
        error::at,
        facts::{Row, Table},
        layers::digest,
        lease::share_gate,
        lock,
        names::{image_record, index_of},
        pages,
        queue::MODE_SEALED,
        read_format,
        row::Note,
        sums::parse,
        waits::Patience,
    },
};

/// Largest document that is looked into, in bytes.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
/// What stands in the folder of a store; folders end in `/`.
const KNOWN: [&str; 19] = [
    "blobs/",
    "cache-mounts/",
    "facts/",
    "leases/",
    "listings/",
    "snapshots/",
    "tmp/",
    "turns/",
    "format",
    "gc.lock",
    "index.json",
    "index.json.new",
    "index.lock",
    "oci-layout",
    "sandbox-works",
    "write.lock",
    "blobs/sha256/",
    "facts/data.mdb",
    "facts/lock.mdb",
];

/// Holds the snapshot in a folder against its layer, whose bytes, plain or compressed, come as a file: the first path
/// that differs, and how. What a layer says is not for a store to know.
pub type Compare = fn(File, &Path) -> Option<(String, &'static str)>;

/// How closely a check looks.
#[derive(Clone, Copy, Debug)]
pub enum CheckDepth {
    /// All facts; existence and sizes of content.
    Quick,
    /// Every byte of every blob, listing and snapshot, too.
    Full(Compare),
}

impl CheckDepth {
    const fn is_full(self) -> bool {
        matches!(self, Self::Full(_))
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Everything that is not as it should be, in order.
    pub damages: Vec<Damage>,
    /// Blobs looked at.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Images looked at.
    pub images: u64,
}

impl CheckReport {
    /// Whether nothing was found that a repair would have to mend.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damages.iter().all(Damage::is_harmless)
    }
}

impl Store {
    /// Looks for damage and changes nothing; as [`Store::examine`].
    ///
    /// # Errors
    ///
    /// As [`Store::examine`].
    pub fn check(&self, depth: CheckDepth) -> Result<CheckReport, StoreError> {
        Self::examine(self.root(), depth, &self.shared.patience)
    }

    /// Looks for damage in the folder of a store, opened or not, and changes nothing. Content is not collected
    /// while it lasts.
    ///
    /// # Errors
    ///
    /// When it is of a newer format, or a folder cannot be read at all.
    pub fn examine(
        root: &Path,
        depth: CheckDepth,
        patience: &Patience,
    ) -> Result<CheckReport, StoreError> {
        let root = std::path::absolute(root).map_err(at(root))?;
        if !root.exists() {
            return Ok(CheckReport::default());
        }
        let _gate = share_gate(&root, patience)?;
        look(&root, depth)
    }
}

/// Examines a store whose gate the caller holds.
pub(super) fn look(root: &Path, depth: CheckDepth) -> Result<CheckReport, StoreError> {
    let mut damages = BTreeSet::new();
    let format = root.join("format");
    match read_format(root) {
        Ok(Some(found)) if found > FORMAT => {
            return Err(StoreError::Newer { root: root.to_owned(), found, known: FORMAT });
        }
        Ok(Some(FORMAT)) => {}
        Ok(_) => drop(damages.insert(Damage::Layout(format))),
        Err(StoreError::Damaged { .. }) => drop(damages.insert(Damage::Layout(format))),
        Err(error) => return Err(error),
    }
    let data = root.join("facts/data.mdb");
    let facts = pages::read(&data).map_err(at(&data))?;
    damages.extend(facts.problems.iter().cloned().map(Damage::Facts));
    if !facts.is_there && root.join("index.json").exists() {
        damages.insert(Damage::Facts("they are gone".to_owned()));
    }
    let mut inspection = Inspection { root, tables: facts.tables, held: HashMap::new(), damages };
    let (blobs, bytes) = inspection.check_blobs(depth)?;
    inspection.check_layout()?;
    inspection.check_listings(depth)?;
    let records = inspection.read_records();
    inspection.check_layers(&records);
    if let CheckDepth::Full(compare) = depth {
        inspection.check_snapshots(&records, compare)?;
    }
    inspection.check_cache(&records);
    inspection.check_served(&records);
    for image in &records.images {
        inspection.check_image(image, &records);
    }
    inspection.check_index(&records);
    let images = inspection.rows(Table::Images).len() as u64;
    Ok(CheckReport { damages: inspection.damages.into_iter().collect(), blobs, bytes, images })
}

/// A store being looked at.
struct Inspection<'a> {
    root: &'a Path,
    tables: BTreeMap<Vec<u8>, Vec<Row>>,
    /// Blobs that can be believed, with their sizes in bytes.
    held: HashMap<Digest, u64>,
    damages: BTreeSet<Damage>,
}

/// The rows that say something about others.
struct Records {
    images: Vec<ImageRecord>,
    layers: HashMap<Digest, LayerRecord>,
    cache: Vec<(Digest, CacheRecord)>,
    notes: Vec<Note>,
    /// Digests of blobs that a registry is known to have.
    elsewhere: HashSet<String>,
}

/// What a check has to know of a repository's document.
#[derive(serde::Deserialize)]
struct Served {
    manifests: BTreeMap<Digest, serde::de::IgnoredAny>,
}

/// State of one blob's file.
enum Held {
    Whole(u64),
    /// Never said to be on the disk, and not whole.
    Torn,
    Damaged,
}

impl Inspection<'_> {
    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn rows(&self, table: Table) -> &[Row] {
        self.tables.get(table.name().as_bytes()).map_or(&[], Vec::as_slice)
    }

    /// Looks at all blobs, on all cores; how many there are, and their bytes.
    fn check_blobs(&mut self, depth: CheckDepth) -> Result<(u64, u64), StoreError> {
        let folder = self.blobs();
        let mut digests = Vec::new();
        for path in entries(&folder)? {
            match named_digest(&path) {
                Some(digest) => digests.push(digest),
                None => drop(self.damages.insert(Damage::Stray(path))),
            }
        }
        let look =
            |digest: &Digest| (*digest, look_at_blob(&folder.join(digest.hex()), *digest, depth));
        for (digest, held) in on_all_cores(&digests, look) {
            match held {
                Held::Whole(bytes) => drop(self.held.insert(digest, bytes)),
                Held::Torn => drop(self.damages.insert(Damage::Torn(digest))),
                Held::Damaged => drop(self.damages.insert(Damage::Blob(digest))),
            }
        }
        Ok((digests.len() as u64, self.held.values().sum()))
    }

    fn check_layout(&mut self) -> Result<(), StoreError> {
        let layout = self.root.join("oci-layout");
        if fs::read(&layout).ok().as_deref() != Some(LAYOUT) {
            self.damages.insert(Damage::Layout(layout));
        }
        for folder in super::FOLDERS {
            let path = self.root.join(folder);
            if !path.is_dir() {
                self.damages.insert(Damage::Layout(path));
            }
        }
        for below in ["", "blobs", "facts"] {
            for path in entries(&self.root.join(below))? {
                let name = path.strip_prefix(self.root).unwrap_or(&path).display().to_string();
                let name = if path.is_dir() { format!("{name}/") } else { name };
                if !KNOWN.contains(&name.as_str()) {
                    self.damages.insert(Damage::Stray(path));
                }
            }
        }
        Ok(())
    }

    fn check_listings(&mut self, depth: CheckDepth) -> Result<(), StoreError> {
        for path in entries(&self.root.join("listings"))? {
            match named_digest(&path) {
                None => drop(self.damages.insert(Damage::Stray(path))),
                Some(layer) if depth.is_full() && !is_listing(&path) => {
                    self.damages.insert(Damage::Listing(layer));
                }
                Some(_) => {}
            }
        }
        for path in entries(&self.root.join("snapshots"))? {
            let is_mark = path.extension().is_some_and(|extension| extension == "boot");
            let name = if is_mark { path.with_extension("") } else { path.clone() };
            if named_digest(&name).is_none() {
                self.damages.insert(Damage::Stray(path));
            }
        }
        let snapshots = self.root.join("snapshots");
        let sealed = self.rows(Table::Sealed).iter().filter_map(|(key, _)| digest(key));
        let missing: Vec<_> =
            sealed.filter(|layer| !snapshots.join(layer.hex()).is_dir()).collect();
        self.damages.extend(missing.into_iter().map(Damage::Snapshot));
        Ok(())
    }

    /// Reads every row; those that cannot be are damage.
    fn read_records(&mut self) -> Records {
        let mut bad: Vec<(Table, Vec<u8>)> = Vec::new();
        let mut keep = |table, key: &[u8], is_good: bool| {
            if !is_good {
                bad.push((table, key.to_vec()));
            }
        };
        let mut records = Records {
            images: Vec::new(),
            layers: HashMap::new(),
            cache: Vec::new(),
            notes: Vec::new(),
            elsewhere: HashSet::new(),
        };
        for (key, value) in self.rows(Table::Images) {
            let image = image_record(key, value);
            keep(Table::Images, key, image.is_some());
            records.images.extend(image);
        }
        for (key, value) in self.rows(Table::Layers) {
            let layer = digest(key).zip(parse(key, value));
            keep(Table::Layers, key, layer.is_some());
            records.layers.extend(layer);
        }
        for (key, value) in self.rows(Table::Cache) {
            let cached = digest(key).zip(parse(key, value));
            keep(Table::Cache, key, cached.is_some());
            records.cache.extend(cached);
        }
        for (key, value) in self.rows(Table::Notes) {
            let note = Note::parse(key, value);
            keep(Table::Notes, key, note.is_some());
            let origin = note.as_ref().filter(|note| note.namespace == ORIGIN_NAMESPACE);
            records.elsewhere.extend(origin.map(|note| note.name.clone()));
            records.notes.extend(note);
        }
        for (key, value) in self.rows(Table::DiffIds) {
            let layer = digest(value).and_then(|layer| records.layers.get(&layer));
            let is_known = |layer: &LayerRecord| {
                let mut forms = layer.compressed.iter().map(|form| form.descriptor.digest);
                digest(key).is_some_and(|key| forms.any(|form| form == key))
            };
            keep(Table::DiffIds, key, layer.is_some_and(is_known));
        }
        for (table, bytes) in [(Table::Sites, 32), (Table::Used, 8), (Table::Files, 72)] {
            for (key, value) in self.rows(table) {
                keep(table, key, value.len() == bytes);
            }
        }
        let record =
            |(table, key): (Table, Vec<u8>)| Damage::Record { table: table.name(), key: hex(&key) };
        self.damages.extend(bad.into_iter().map(record));
        records
    }

    /// Blobs of layers have the lengths that were written down.
    fn check_layers(&mut self, records: &Records) {
        for (layer, record) in &records.layers {
            let forms = record.compressed.iter().map(|form| &form.descriptor);
            // Of a layer that nobody has read, only the compressed forms are known.
            let tar = (record.tar_bytes > 0).then_some((*layer, record.tar_bytes));
            let known = forms.map(|blob| (blob.digest, blob.size)).chain(tar);
            for (blob, bytes) in known {
                if self.held.get(&blob).is_some_and(|found| *found != bytes) {
                    self.held.remove(&blob);
                    self.damages.insert(Damage::Blob(blob));
                }
            }
        }
    }

    /// Holds snapshots that are believed against the bytes of their layers, where those are whole.
    fn check_snapshots(&mut self, records: &Records, compare: Compare) -> Result<(), StoreError> {
        let folder = self.root.join("snapshots");
        let boot_id = boot_id();
        let sealed: BTreeSet<Digest> =
            self.rows(Table::Sealed).iter().filter_map(|(key, _)| digest(key)).collect();
        let is_believed = |layer: &Digest| {
            let mark = folder.join(format!("{}.{MARK}", layer.hex()));
            sealed.contains(layer) || fs::read(mark).is_ok_and(|mark| mark == boot_id)
        };
        let layers: Vec<(Digest, Digest)> = entries(&folder)?
            .iter()
            .filter_map(|path| named_digest(path))
            .filter(is_believed)
            .filter_map(|layer| Some((layer, self.form(DiffId(layer), records)?)))
            .collect();
        let blobs = self.blobs();
        let look = |(layer, blob): &(Digest, Digest)| {
            let bytes = File::open(blobs.join(blob.hex())).ok()?;
            let (path, what) = compare(bytes, &folder.join(layer.hex()))?;
            Some(Damage::Altered { layer: *layer, path, what })
        };
        self.damages.extend(on_all_cores(&layers, look).into_iter().flatten());
        Ok(())
    }

    fn check_cache(&mut self, records: &Records) {
        for (key, record) in &records.cache {
            let has_all = record.selections.values().all(|blob| self.held.contains_key(blob));
            let mut layers = record.made.layers().iter();
            if !has_all || !layers.all(|layer| self.has_layer(*layer, records)) {
                self.damages.insert(Damage::LostLayer(*key));
            }
        }
    }

    /// Whether a layer's bytes are here, plain or compressed.
    fn has_layer(&self, layer: DiffId, records: &Records) -> bool {
        self.form(layer, records).is_some()
    }

    /// A blob with a layer's bytes, the plain one before a compressed one.
    fn form(&self, layer: DiffId, records: &Records) -> Option<Digest> {
        let forms = records.layers.get(&layer.0).into_iter().flat_map(|record| &record.compressed);
        let compressed = forms.map(|form| form.descriptor.digest);
        [layer.0].into_iter().chain(compressed).find(|blob| self.held.contains_key(blob))
    }

    /// What was pushed to the embedded registry is nowhere else. A manifest may speak of one that nobody has pushed.
    fn check_served(&mut self, records: &Records) {
        for note in records.notes.iter().filter(|note| note.namespace == SERVED_NAMESPACE) {
            let Ok(served) = serde_json::from_slice::<Served>(&note.value) else { continue };
            let repository = &note.name;
            let parts = served.manifests.into_keys().flat_map(|manifest| {
                self.parts(manifest).into_iter().map(move |blob| (manifest, blob))
            });
            let lost: Vec<_> = parts.filter(|(_, blob)| !self.held.contains_key(blob)).collect();
            let lost = lost.into_iter().map(|(manifest, blob)| Damage::Served {
                blob,
                manifest,
                repository: repository.clone(),
            });
            self.damages.extend(lost);
        }
    }

    /// A manifest, its config and its layers.
    fn parts(&self, manifest: Digest) -> Vec<Digest> {
        let found = self.document::<Manifest>(manifest).into_iter();
        let parts = found.flat_map(|found| found.layers.into_iter().chain([found.config]));
        parts.map(|part| part.digest).chain([manifest]).collect()
    }

    /// Documents must be here; of an index, manifests of other platforms may be elsewhere, and so may layers that
    /// a registry is known to have.
    fn check_image(&mut self, record: &ImageRecord, records: &Records) {
        let image = record.key();
        let mut configs = BTreeSet::new();
        let mut pending = vec![(record.target.clone(), Need::Must)];
        while let Some((descriptor, need)) = pending.pop() {
            let blob = descriptor.digest;
            let found = match (self.held.get(&blob), need) {
                (None, Need::May) => continue,
                (None, Need::Must) => {
                    self.damages.insert(Damage::Missing { blob, image: image.clone() });
                    continue;
                }
                (Some(found), _) => *found,
            };
            if found != descriptor.size {
                let wanted = descriptor.size;
                self.damages.insert(Damage::Size { blob, image: image.clone(), found, wanted });
            }
            if descriptor.media_type.is_index() {
                match self.document::<Index>(blob) {
                    Some(index) => {
                        pending.extend(index.manifests.into_iter().map(|child| (child, Need::May)));
                    }
                    None => {
                        self.damages.insert(Damage::Missing { blob, image: image.clone() });
                    }
                }
            } else if descriptor.media_type.is_manifest() {
                configs.extend(self.check_manifest(blob, &image, records));
            }
        }
        if !configs.contains(&record.config) && !configs.is_empty() {
            let key = hex(&super::names::image_key(&image));
            self.damages.insert(Damage::Record { table: Table::Images.name(), key });
        }
    }

    /// Answers the config's digest, when the manifest can be read.
    fn check_manifest(&mut self, blob: Digest, image: &str, records: &Records) -> Option<Digest> {
        let missing = |blob| Damage::Missing { blob, image: image.to_owned() };
        let Some(manifest) = self.document::<Manifest>(blob) else {
            self.damages.insert(missing(blob));
            return None;
        };
        let config = manifest.config.digest;
        let Some(diff_ids) = self.diff_ids(&manifest.config, image) else {
            return Some(config);
        };
        for (at, descriptor) in manifest.layers.iter().enumerate() {
            let layer = diff_ids.get(at).copied();
            let is_here = self.held.contains_key(&descriptor.digest)
                || layer.is_some_and(|layer| self.has_layer(layer, records));
            if !is_here && !records.elsewhere.contains(&descriptor.digest.to_string()) {
                self.damages.insert(missing(descriptor.digest));
            }
        }
        Some(config)
    }

    /// Diff IDs of a config; none when it is no config of an image, such as that of an artifact.
    fn diff_ids(&mut self, config: &Descriptor, image: &str) -> Option<Vec<DiffId>> {
        let missing = Damage::Missing { blob: config.digest, image: image.to_owned() };
        match self.held.get(&config.digest) {
            Some(found) if *found == config.size => {}
            _ => {
                self.damages.insert(missing);
                return None;
            }
        }
        let Some(raw) = self.bytes_of(config.digest) else {
            self.damages.insert(missing);
            return None;
        };
        let parsed = Document::<ImageConfig>::parse(raw).ok();
        Some(parsed.map(|config| config.value.rootfs.diff_ids).unwrap_or_default())
    }

    fn document<T: serde::de::DeserializeOwned>(&self, blob: Digest) -> Option<T> {
        Document::<T>::parse(self.bytes_of(blob)?).ok().map(|document| document.value)
    }

    fn bytes_of(&self, blob: Digest) -> Option<Vec<u8>> {
        let path = self.blobs().join(blob.hex());
        let is_small = fs::metadata(&path).is_ok_and(|found| found.len() <= DOCUMENT_BYTES_MAX);
        let bytes = fs::read(&path).ok().filter(|_| is_small)?;
        (Digest::of(&bytes) == blob).then_some(bytes)
    }

    fn check_index(&mut self, records: &Records) {
        let of_images = |damage: &Damage| {
            matches!(damage, Damage::Record { table: "images", .. } | Damage::Facts(_))
        };
        if self.damages.iter().any(of_images) {
            return; // What it should say is not known.
        }
        let wanted = index_of(records.images.clone()).raw;
        if fs::read(self.root.join("index.json")).ok() != Some(wanted) {
            self.damages.insert(Damage::Index);
        }
    }
}

/// Looks at all of these, on as many cores as there are.
fn on_all_cores<T: Sync, R: Send>(all: &[T], look: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(all.len())));
    let work = || {
        while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let seen = look(one);
            lock(&found).push(seen);
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (0..cores.min(all.len())).for_each(|_| drop(scope.spawn(work)));
    });
    std::mem::take(&mut *lock(&found))
}

/// Whether an image is broken without some content.
#[derive(Clone, Copy)]
enum Need {
    Must,
    May,
}

fn look_at_blob(path: &Path, digest: Digest, depth: CheckDepth) -> Held {
    let Ok(found) = path.symlink_metadata() else { return Held::Damaged };
    if !found.is_file() {
        return Held::Damaged;
    }
    let is_sealed = found.permissions().mode() & 0o777 == MODE_SEALED;
    if is_sealed && !depth.is_full() {
        return Held::Whole(found.len());
    }
    let read = File::open(path).and_then(|mut file| hash(&mut file));
    match read {
        Ok((found, bytes)) if found == digest => Held::Whole(bytes),
        Ok(_) | Err(_) if is_sealed => Held::Damaged,
        Ok(_) | Err(_) => Held::Torn,
    }
}

fn is_listing(path: &Path) -> bool {
    let Ok(bytes) = fs::read(path) else { return false };
    let Some((listing, sum)) = bytes.split_last_chunk::<32>() else { return false };
    Digest::of(listing).as_bytes() == sum
}

/// What is in a folder; nothing, when there is none.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(folder))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(at(folder))).collect()
}

pub(super) fn named_digest(path: &Path) -> Option<Digest> {
    format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
