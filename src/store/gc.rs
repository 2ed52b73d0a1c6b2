//! Garbage collection: what no image, note, lease or kept cache record reaches goes.
//!
//! Conservative: whatever spells a digest in a document or a note keeps what has that digest, so no
//! document format has to be known here. Facts go first, then content moves to `tmp` in one rename
//! each, all under the gate; the slow removal comes after.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use rustix::{fs::FlockOperation, io::Errno};

use crate::{
    oci::{DiffId, Digest},
    store::{
        CacheRecord, ImageRecord, LayerRecord, ORIGIN_NAMESPACE, SERVED_NAMESPACE, Store,
        StoreError,
        directory::{MARK, rename_new},
        error::{at, errno_at, lacks_space},
        facts::{Access, Reader, Table},
        layers::{digest, now_s},
        lease::{GATE, open_gate, read_leases},
        names::image_record,
        pins::PINNED_NAMESPACE,
        remove::remove_tree,
        row::Note,
        sums::parse,
        turn::sweep_turns,
        waits::{Hold, wait},
    },
};

/// Largest blob that is searched for digests, in bytes: the largest document.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// What a collection may take beyond what nothing refers to.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcPolicy {
    /// Cached results and notes that nobody used for this many seconds go (use is recorded once a
    /// day); `None` for never. Zero takes all of them.
    pub cache_age_max_s: Option<u64>,
    /// Bytes that layers of cached results, which no image needs, may take together; the ones used
    /// longest ago go first. `None` for any number.
    pub cache_bytes_max: Option<u64>,
    /// Bytes that all content may take together, images too; cached results go for it, those used longest ago first.
    /// `None` for any number.
    pub bytes_max: Option<u64>,
    /// Names of images that were not stored again for this many seconds go, but for pinned ones; `None` for never.
    pub image_age_max_s: Option<u64>,
    /// Whether to do it.
    pub mode: GcMode,
}

/// Whether a collection removes or only counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GcMode {
    /// Removes.
    #[default]
    Collect,
    /// Removes, unless others are about to count on content at this moment: for who may not wait.
    CollectIfFree,
    /// Counts what would go.
    DryRun,
}

/// What a collection took, or would take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Names that were taken away from images.
    pub untagged: Vec<String>,
    /// Number of blobs.
    pub blobs: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Number of listings.
    pub listings: u64,
    /// Number of cached results.
    pub cache_records: u64,
    /// Number of leftovers of processes that died.
    pub abandoned: u64,
    /// Bytes of blobs, listings, and of snapshots as their layers' records have it.
    pub bytes: u64,
}

/// All that decides what stays, read at one moment.
pub(super) struct State {
    images: Vec<(Vec<u8>, Vec<u8>)>,
    cache: Vec<(Digest, CacheRecord)>,
    /// Cached results that cannot be read.
    damaged: Vec<Vec<u8>>,
    used: HashMap<Vec<u8>, i64>,
    notes: Vec<(Vec<u8>, Note)>,
    layers: HashMap<Digest, LayerRecord>,
    diff_ids: HashMap<Digest, Digest>,
    sites: Vec<(Vec<u8>, Vec<u8>)>,
    sealed: Vec<Vec<u8>>,
}

impl State {
    pub(super) fn read(reader: &Reader<'_>) -> heed::Result<Self> {
        let pair = |(key, value): (Vec<u8>, Vec<u8>)| Some((digest(&key)?, digest(&value)?));
        let layer = |(key, value): (Vec<u8>, Vec<u8>)| Some((digest(&key)?, parse(&key, &value)?));
        let used = |(key, value): (Vec<u8>, Vec<u8>)| {
            Some((key, i64::from_le_bytes(value.try_into().ok()?)))
        };
        let (mut cache, mut damaged) = (Vec::new(), Vec::new());
        for (key, value) in reader.all(Table::Cache)? {
            match (digest(&key), parse(&key, &value)) {
                (Some(key), Some(record)) => cache.push((key, record)),
                _ => damaged.push(key),
            }
        }
        Ok(Self {
            images: reader.all(Table::Images)?,
            cache,
            damaged,
            used: reader.all(Table::Used)?.into_iter().filter_map(used).collect(),
            notes: reader
                .all(Table::Notes)?
                .into_iter()
                .filter_map(|(key, row)| Note::parse(&key, &row).map(|note| (key, note)))
                .collect(),
            layers: reader.all(Table::Layers)?.into_iter().filter_map(layer).collect(),
            diff_ids: reader.all(Table::DiffIds)?.into_iter().filter_map(pair).collect(),
            sites: reader.all(Table::Sites)?,
            sealed: reader.all(Table::Sealed)?.into_iter().map(|(key, _)| key).collect(),
        })
    }

    fn last_use(&self, key: Digest, record: &CacheRecord) -> i64 {
        let used = self.used.get(&key.as_bytes()[..]).copied();
        used.unwrap_or(record.made_at).max(record.made_at)
    }
}

/// What a collection will do.
#[derive(Default)]
struct Verdict {
    live: HashSet<Digest>,
    /// Rows to be deleted.
    rows: Vec<(Table, Vec<u8>)>,
    cache_records: u64,
    untagged: Vec<String>,
}

impl Store {
    /// Collects what nothing needs. Content of living leases stays, and so does all that images reach.
    /// Content that a process without a lease has added and not named yet is fair game.
    ///
    /// # Errors
    ///
    /// When LMDB or the disk fails; what is not removed then goes with the next collection.
    pub fn gc(&self, policy: GcPolicy) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        let fate = match policy.mode {
            GcMode::DryRun => Fate::Stay,
            GcMode::Collect | GcMode::CollectIfFree => {
                self.flush().or_else(without_room)?;
                self.make_trash().map_or_else(
                    |error| without_room(error).map(|()| self.gone()),
                    |trash| Ok(Fate::Trash(trash)),
                )?
            }
        };
        {
            // Nothing in this block may look at content as others do: that would wait for the gate.
            let Gate::Closed(_gate) = self.close_gate(policy.mode)? else { return Ok(report) };
            let leases = read_leases(self.root(), policy.mode)?;
            let state = self.shared.facts().read(State::read)?;
            let verdict = self.judge(&state, &leases, policy);
            report.cache_records = verdict.cache_records;
            report.untagged.clone_from(&verdict.untagged);
            if policy.mode != GcMode::DryRun && !verdict.rows.is_empty() {
                self.delete(&verdict.rows).or_else(|error| {
                    without_room(error)?;
                    self.make_room(&state, &leases, &mut report)?;
                    self.delete(&verdict.rows)
                })?;
            }
            self.sweep(&verdict.live, &state, &fate, &mut report)?;
        }
        if !report.untagged.is_empty() && policy.mode != GcMode::DryRun {
            self.write_index()?;
        }
        if let Fate::Trash(trash) = fate {
            remove_tree(&trash).map_err(at(&trash))?;
        }
        self.sweep_abandoned(policy.mode, &mut report)?;
        if policy.mode != GcMode::DryRun {
            sweep_turns(self.root())?;
        }
        Ok(report)
    }

    fn make_trash(&self) -> Result<PathBuf, StoreError> {
        let trash = self.temporary_path()?;
        fs::create_dir(&trash).map_err(at(&trash))?;
        Ok(trash)
    }

    fn delete(&self, rows: &[(Table, Vec<u8>)]) -> Result<(), StoreError> {
        self.shared.facts().write(|writer| {
            rows.iter().try_for_each(|(table, key)| writer.delete(*table, key).map(drop))
        })
    }

    /// On a disk so full that not even rows can be deleted: removes what is reached from none. Called with the gate closed.
    fn make_room(
        &self,
        state: &State,
        leases: &HashSet<Digest>,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        self.sweep_abandoned(GcMode::Collect, report)?;
        let live = self.judge(state, leases, GcPolicy::default()).live;
        self.sweep(&live, state, &self.gone(), report)
    }

    /// The fate of what is removed without a folder for it.
    fn gone(&self) -> Fate {
        Fate::Go(self.root().join("tmp"))
    }

    /// Waits until nobody is about to count on content, and keeps it so. Where nothing can be written,
    /// nobody can collect, and a count needs no gate.
    fn close_gate(&self, mode: GcMode) -> Result<Gate, StoreError> {
        if mode == GcMode::DryRun && self.shared.facts().access() == Access::ReadOnly {
            return Ok(Gate::Closed(None));
        }
        let (gate, path) = (open_gate(self.root())?, self.root().join(GATE));
        if mode != GcMode::CollectIfFree {
            wait(&gate, &path, Hold::Alone, &self.shared.patience)?;
            return Ok(Gate::Closed(Some(gate)));
        }
        match rustix::fs::flock(&gate, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Gate::Closed(Some(gate))),
            Err(Errno::WOULDBLOCK) => Ok(Gate::Busy),
            Err(errno) => Err(errno_at(&path)(errno)),
        }
    }

    /// What a collection by this policy would keep.
    pub(super) fn live(&self, state: &State, policy: GcPolicy) -> HashSet<Digest> {
        self.judge(state, &HashSet::new(), policy).live
    }

    fn judge(&self, state: &State, leases: &HashSet<Digest>, policy: GcPolicy) -> Verdict {
        let mut verdict = Verdict::default();
        let images = verdict.keep_images(state, policy);
        let roots = images.into_iter().flat_map(digests_in);
        self.mark(roots.chain(leases.iter().copied()).collect(), state, &mut verdict.live);
        self.judge_notes(state, policy, &mut verdict);
        self.judge_cache(state, leases, policy, &mut verdict);
        verdict.bury_layers(state);
        verdict
    }

    fn judge_notes(&self, state: &State, policy: GcPolicy, verdict: &mut Verdict) {
        let is_old = older_than(policy.cache_age_max_s);
        for (key, note) in &state.notes {
            // What was pushed to the embedded registry is no cache: it stays until it is deleted there.
            // Nor is it one where the blob of a living image can be had.
            let is_origin_of_living = note.namespace == ORIGIN_NAMESPACE
                && note.name.parse().is_ok_and(|blob| verdict.live.contains(&blob));
            let is_lasting = [SERVED_NAMESPACE, PINNED_NAMESPACE].contains(&&*note.namespace);
            let stays = is_lasting || is_origin_of_living;
            if is_old(note.made_at) && !stays {
                verdict.rows.push((Table::Notes, key.clone()));
            } else {
                self.mark(digests_in(&note.value), state, &mut verdict.live);
            }
        }
    }

    fn judge_cache(
        &self,
        state: &State,
        leases: &HashSet<Digest>,
        policy: GcPolicy,
        verdict: &mut Verdict,
    ) {
        let is_old = older_than(policy.cache_age_max_s);
        let mut cache: Vec<_> = state
            .cache
            .iter()
            .map(|(key, record)| (state.last_use(*key, record), key, record))
            .collect();
        cache.sort_by_key(|(last_use, key, _)| (std::cmp::Reverse(*last_use), **key));
        let left_of_all =
            policy.bytes_max.map(|most| most.saturating_sub(self.bytes_of(&verdict.live, state)));
        let most = [policy.cache_bytes_max, left_of_all].into_iter().flatten().min();
        let mut bytes_left = most.unwrap_or(u64::MAX);
        let mut gone: HashSet<Vec<u8>> = state.damaged.iter().cloned().collect();
        for (last_use, key, record) in cache {
            let layers: Vec<Digest> = record.made.layers().iter().map(|layer| layer.0).collect();
            let not_kept = layers.iter().filter(|layer| !verdict.live.contains(*layer));
            let cost = not_kept.map(|layer| self.layer_bytes(*layer, state)).sum();
            let leased = layers.iter().all(|layer| leases.contains(layer));
            if leased || !is_old(last_use) && cost <= bytes_left {
                bytes_left = bytes_left.saturating_sub(cost);
                let kept = record.selections.values().copied().chain(layers);
                self.mark(kept.collect(), state, &mut verdict.live);
            } else {
                gone.insert(key.as_bytes().to_vec());
            }
        }
        verdict.cache_records = gone.len() as u64;
        let sites = state.sites.iter().filter(|(_, key)| gone.contains(key));
        verdict.rows.extend(sites.map(|(site, _)| (Table::Sites, site.clone())));
        verdict.rows.extend(
            gone.into_iter().flat_map(|key| [(Table::Used, key.clone()), (Table::Cache, key)]),
        );
    }

    /// What all of this takes on the disk.
    fn bytes_of(&self, live: &HashSet<Digest>, state: &State) -> u64 {
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |found| found.len());
        let bytes = live.iter().map(|digest| {
            let layer = DiffId(*digest);
            let unpacked = self.snapshot_path(layer).exists();
            let record = state.layers.get(digest).filter(|_| unpacked);
            let content_bytes = record.map_or(0, |record| record.content_bytes);
            size(self.blob_path(*digest)) + size(self.listing_path(layer)) + content_bytes
        });
        bytes.sum()
    }

    /// Adds all that `roots` reach to `live`.
    fn mark(&self, roots: Vec<Digest>, state: &State, live: &mut HashSet<Digest>) {
        let mut pending = roots;
        while let Some(digest) = pending.pop() {
            if !live.insert(digest) {
                continue;
            }
            pending.extend(state.diff_ids.get(&digest));
            let forms = state.layers.get(&digest).into_iter().flat_map(|layer| &layer.compressed);
            pending.extend(forms.map(|form| form.descriptor.digest));
            pending.extend(pointers(&self.blob_path(digest)));
        }
    }

    /// What a layer takes on the disk in all its forms.
    fn layer_bytes(&self, layer: Digest, state: &State) -> u64 {
        let record = state.layers.get(&layer);
        let forms = record.into_iter().flat_map(|record| &record.compressed);
        let blobs = forms.map(|form| form.descriptor.digest).chain([layer]);
        let blob_bytes = blobs
            .filter_map(|blob| fs::metadata(self.blob_path(blob)).ok())
            .map(|found| found.len());
        let unpacked = self.snapshot_path(DiffId(layer)).exists();
        let content_bytes = record.filter(|_| unpacked).map_or(0, |record| record.content_bytes);
        blob_bytes.sum::<u64>() + content_bytes
    }

    /// Lets everything dead meet its fate: what was made of something before that, so that whoever is killed in between
    /// leaves no layer that seems to be here and cannot be looked at.
    fn sweep(
        &self,
        live: &HashSet<Digest>,
        state: &State,
        fate: &Fate,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        for (digest, path) in dead(&self.root().join("snapshots"), live)? {
            report.snapshots += 1;
            report.bytes += state.layers.get(&digest).map_or(0, |layer| layer.content_bytes);
            // Before the snapshot, so that nobody believes in a part of it; and there is none when it was sealed.
            if !matches!(fate, Fate::Stay) {
                fs::remove_file(self.boot_mark(DiffId(digest))).ok();
            }
            discard(&path, fate, &format!("snapshot-{}", digest.hex()))?;
        }
        if !matches!(fate, Fate::Stay) {
            self.sweep_marks(live)?;
        }
        for (digest, path) in dead(&self.root().join("listings"), live)? {
            report.listings += 1;
            report.bytes += fs::symlink_metadata(&path).map_or(0, |found| found.len());
            discard(&path, fate, &format!("listing-{}", digest.hex()))?;
        }
        for (digest, path) in dead(&self.blobs_folder(), live)? {
            report.blobs += 1;
            report.bytes += fs::symlink_metadata(&path).map_or(0, |found| found.len());
            discard(&path, fate, &format!("blob-{}", digest.hex()))?;
        }
        Ok(())
    }

    /// Removes the marks of snapshots that did not come: who writes a mark and a snapshot may die between the two.
    fn sweep_marks(&self, live: &HashSet<Digest>) -> Result<(), StoreError> {
        let folder = self.root().join("snapshots");
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let mark = entry.map_err(at(&folder))?.path();
            let name = mark.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some((layer, MARK)) = name.split_once('.') else { continue };
            let is_dead = named(layer).is_some_and(|layer| !live.contains(&layer));
            if is_dead && !mark.with_extension("").exists() {
                remove_tree(&mark).map_err(at(&mark))?;
            }
        }
        Ok(())
    }

    /// Removes what processes that are gone were making.
    fn sweep_abandoned(&self, mode: GcMode, report: &mut GcReport) -> Result<(), StoreError> {
        let folder = self.root().join("tmp");
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let entry = entry.map_err(at(&folder))?;
            if self.root().join("leases").join(entry.file_name()).exists() {
                continue; // A session's lease is there before its folder, and goes after it.
            }
            report.abandoned += 1;
            if mode != GcMode::DryRun {
                remove_tree(&entry.path()).map_err(at(&entry.path()))?;
            }
        }
        Ok(())
    }
}

/// Whether it could be closed.
enum Gate {
    /// Yes, or there is no need to.
    Closed(Option<File>),
    Busy,
}

/// Whether a time (Unix seconds) is so many seconds ago, or more.
fn older_than(age_s: Option<u64>) -> impl Fn(i64) -> bool {
    let oldest = age_s.map(|age| now_s().saturating_sub_unsigned(age));
    move |time| oldest.is_some_and(|oldest| time <= oldest)
}

impl Verdict {
    /// The records of images that stay. One that cannot be read stays: it is for a check to name.
    fn keep_images<'a>(&mut self, state: &'a State, policy: GcPolicy) -> Vec<&'a [u8]> {
        let is_old = older_than(policy.image_age_max_s);
        let pinned: HashSet<&str> = state
            .notes
            .iter()
            .filter(|(_, note)| note.namespace == PINNED_NAMESPACE)
            .map(|(_, note)| &*note.name)
            .collect();
        let mut kept = Vec::new();
        for (key, row) in &state.images {
            let record = image_record(key, row);
            let goes =
                |record: &ImageRecord| is_old(record.stored_at) && !pinned.contains(&*record.key());
            match record.filter(goes) {
                None => kept.push(&**row),
                Some(record) => {
                    self.untagged.push(record.key());
                    self.rows.push((Table::Images, key.clone()));
                }
            }
        }
        kept
    }

    /// Facts about layers that are not live go with them.
    fn bury_layers(&mut self, state: &State) {
        let live = &self.live;
        let dead = |digest: &&Digest| !live.contains(*digest);
        let layers =
            state.layers.keys().filter(dead).map(|key| (Table::Layers, key.as_bytes().to_vec()));
        let diff_ids = state.diff_ids.iter().filter(|(_, layer)| !live.contains(*layer));
        let diff_ids = diff_ids.map(|(blob, _)| (Table::DiffIds, blob.as_bytes().to_vec()));
        let sealed =
            state.sealed.iter().filter(|key| digest(key).is_none_or(|key| !live.contains(&key)));
        let sealed = sealed.map(|key| (Table::Sealed, key.clone()));
        let rows: Vec<_> = layers.chain(diff_ids).chain(sealed).collect();
        self.rows.extend(rows);
    }
}

/// What in `folder` is named by a digest that is not live.
fn dead(folder: &Path, live: &HashSet<Digest>) -> Result<Vec<(Digest, PathBuf)>, StoreError> {
    let mut dead = Vec::new();
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        let digest = entry.file_name().to_str().and_then(named);
        dead.extend(
            digest.filter(|digest| !live.contains(digest)).map(|digest| (digest, entry.path())),
        );
    }
    Ok(dead)
}

fn named(hex: &str) -> Option<Digest> {
    format!("sha256:{hex}").parse().ok()
}

/// What becomes of that which nobody needs.
enum Fate {
    /// It is only counted.
    Stay,
    /// It is moved here, in no time, and removed when others may work again.
    Trash(PathBuf),
    /// It is removed at once, where there is no room for a folder, by way of this one: so no part of it is left in place.
    Go(PathBuf),
}

fn discard(path: &Path, fate: &Fate, name: &str) -> Result<(), StoreError> {
    match fate {
        Fate::Stay => Ok(()),
        Fate::Trash(trash) => rename_new(path, &trash.join(name)).map_err(errno_at(path)),
        Fate::Go(folder) => {
            let gone = folder.join(name);
            match rename_new(path, &gone) {
                Ok(()) => remove_tree(&gone).map_err(at(&gone)),
                // Not even for a name; a file goes as a whole anyway.
                Err(Errno::NOSPC) if !path.is_dir() => fs::remove_file(path).map_err(at(path)),
                Err(errno) => Err(errno_at(path)(errno)),
            }
        }
    }
}

/// A collection is what makes room, and so it does without.
fn without_room(error: StoreError) -> Result<(), StoreError> {
    if lacks_space(&error) { Ok(()) } else { Err(error) }
}

/// Digests that a blob spells out, when it may be a document.
fn pointers(path: &Path) -> Vec<Digest> {
    let Ok(mut file) = File::open(path) else { return Vec::new() };
    if !file.metadata().is_ok_and(|found| found.len() <= DOCUMENT_BYTES_MAX) {
        return Vec::new();
    }
    let mut bytes = vec![0];
    let is_json = file.read_exact(&mut bytes).is_ok() && b"{[ \t\r\n".contains(&bytes[0]);
    if is_json && file.read_to_end(&mut bytes).is_ok() { digests_in(&bytes) } else { Vec::new() }
}

/// Every `sha256:HEX` in some bytes.
fn digests_in(bytes: &[u8]) -> Vec<Digest> {
    const MARK: &[u8] = b"sha256:";
    let starts = bytes.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK);
    let text = |(start, _): (usize, &[u8])| bytes.get(start..start + MARK.len() + 64);
    let digest = |text: &[u8]| std::str::from_utf8(text).ok()?.parse().ok();
    starts.filter_map(text).filter_map(digest).collect()
}
