//! Repair: takes away what is damaged and what cannot be used without it, and saves all else.
//!
//! Nothing is collected and nobody comes to count on content meanwhile: the gate is held alone. Facts that contradict
//! one another are written anew from the rows that can be read, and images whose rows are lost are found again in
//! `index.json`. A healthy image stays, whatever happened around it.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::{fs::FlockOperation, io::Errno};
use serde_json::Value;

use crate::{
    oci::{DiffId, Digest},
    store::{
        CheckDepth, CheckReport, Damage, OPEN, SERVED_NAMESPACE, Store, StoreError,
        check::look,
        error::{at, errno_at},
        facts::{Facts, Row, Table, Writer},
        lease::{GATE, open_gate},
        lock,
        names::image_key,
        pages, prepare,
        queue::sync_folder,
        remove::remove_tree,
        waits::{Hold, Patience, wait},
    },
};

/// What is taken away may leave others without what they need; they show in the next round.
const ROUNDS_MAX: usize = 5;

/// What was done about a damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Taken away: nobody could have used it.
    Removed,
    /// Taken away: it is made again when it is needed.
    Remade,
    /// A cached result was forgotten: its step is done again.
    Forgotten,
    /// The name of an image was taken away: the image cannot be used.
    Untagged,
    /// The embedded registry serves the manifest and its tags no more.
    Withdrawn,
    /// The image was found again in `index.json`.
    Recovered,
    /// Written again as it should be.
    Rewritten,
    /// What could be read of the facts was saved.
    Saved,
    /// Nothing: it is for a person to decide.
    Left,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "removed",
            Self::Remade => "removed; it is made again when it is needed",
            Self::Forgotten => "forgotten; its step is done again when it is needed",
            Self::Untagged => "the image cannot be used, its name is taken away",
            Self::Withdrawn => "the manifest is served no more, until it is pushed again",
            Self::Recovered => "found again in index.json",
            Self::Rewritten => "written again",
            Self::Saved => "all that can be read is saved",
            Self::Left => "left as it is",
        })
    }
}

/// What a repair found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// What the store looks like now.
    pub now: CheckReport,
    /// Every damage, and what was done about it.
    pub remedies: Vec<(Damage, Remedy)>,
}

impl Store {
    /// Repairs the folder of a store: takes away what is damaged and what needs it, and nothing else. Other
    /// processes wait meanwhile.
    ///
    /// # Errors
    ///
    /// When it is of a newer format, the disk refuses, or facts have to be written anew while somebody uses them.
    pub fn repair(
        root: &Path,
        depth: CheckDepth,
        patience: &Patience,
    ) -> Result<RepairReport, StoreError> {
        let root = std::path::absolute(root).map_err(at(root))?;
        if !root.exists() {
            return Ok(RepairReport::default());
        }
        let gate = open_gate(&root)?;
        wait(&gate, &root.join(GATE), Hold::Alone, patience)?;
        let mut found = look(&root, depth)?;
        let mut remedies = Vec::new();
        // Who opens the store next writes the list again.
        let listed = fs::read(root.join("index.json")).unwrap_or_default();
        let facts: Vec<Damage> = take(&mut found, |damage| matches!(damage, Damage::Facts(_)));
        if !facts.is_empty() {
            save_facts(&root, patience)?;
        }
        let layout: Vec<Damage> = take(&mut found, |damage| matches!(damage, Damage::Layout(_)));
        for damage in &layout {
            clear_place(damage)?;
        }
        prepare(&root)?;
        let store = Self::open_patiently(&root, patience)?;
        if !facts.is_empty() {
            store.recover_images(&listed, |_| true)?;
            found = look(&root, depth)?;
        }
        remedies.extend(facts.into_iter().map(|damage| (damage, Remedy::Saved)));
        remedies.extend(layout.into_iter().map(|damage| (damage, Remedy::Rewritten)));
        for _ in 0..ROUNDS_MAX {
            let done = store.mend(&found, &listed)?;
            let is_finished = done.is_empty();
            remedies.extend(done);
            found = look(&root, CheckDepth::Quick)?;
            if is_finished {
                break;
            }
        }
        remedies.extend(found.damages.iter().map(|damage| (damage.clone(), Remedy::Left)));
        Ok(RepairReport { now: found, remedies })
    }

    /// One round; what it did.
    fn mend(
        &self,
        report: &CheckReport,
        listed: &[u8],
    ) -> Result<Vec<(Damage, Remedy)>, StoreError> {
        let mut done = Vec::new();
        let mut rows: Vec<(Table, Vec<u8>)> = Vec::new();
        for damage in &report.damages {
            let remedy = match damage {
                Damage::Blob(blob) | Damage::Torn(blob) | Damage::Size { blob, .. } => {
                    gone(&self.blob_path(*blob))?;
                    Remedy::Removed
                }
                Damage::Listing(layer) => {
                    gone(&self.listing_path(DiffId(*layer)))?;
                    Remedy::Remade
                }
                Damage::Snapshot(layer) => {
                    rows.push((Table::Sealed, layer.as_bytes().to_vec()));
                    Remedy::Remade
                }
                Damage::Altered { layer, .. } => {
                    // The mark goes first: what is not believed any more may be removed in part.
                    let forget =
                        |writer: &mut Writer<'_>| writer.delete(Table::Sealed, layer.as_bytes());
                    self.shared.facts().write(forget)?;
                    gone(&self.boot_mark(DiffId(*layer)))?;
                    self.discard_snapshot(DiffId(*layer))?;
                    Remedy::Remade
                }
                Damage::LostLayer(key) => {
                    rows.push((Table::Cache, key.as_bytes().to_vec()));
                    rows.push((Table::Used, key.as_bytes().to_vec()));
                    Remedy::Forgotten
                }
                Damage::Record { table, key } => self.forget_record(table, key, listed)?,
                Damage::Missing { image, .. } => {
                    self.remove_image(image)?;
                    Remedy::Untagged
                }
                Damage::Index => {
                    self.write_index()?;
                    Remedy::Rewritten
                }
                Damage::Served { manifest, repository, .. } => {
                    self.withdraw(*manifest, repository)?;
                    Remedy::Withdrawn
                }
                Damage::Facts(_) | Damage::Layout(_) | Damage::Stray(_) => continue,
            };
            done.push((damage.clone(), remedy));
        }
        if !rows.is_empty() {
            self.shared.facts().write(|writer| {
                rows.iter().try_for_each(|(table, key)| writer.delete(*table, key).map(drop))
            })?;
        }
        Ok(done)
    }

    /// Takes a manifest and the tags that stand for it out of what the embedded registry serves: the one thing that the
    /// store knows of its documents, which are objects with `tags` and `manifests`.
    fn withdraw(&self, manifest: Digest, repository: &str) -> Result<(), StoreError> {
        let Some(value) = self.note(SERVED_NAMESPACE, repository)? else { return Ok(()) };
        let Ok(mut served) = serde_json::from_slice::<Value>(&value) else { return Ok(()) };
        let digest = manifest.to_string();
        if let Some(manifests) = served["manifests"].as_object_mut() {
            manifests.remove(&digest);
        }
        if let Some(tags) = served["tags"].as_object_mut() {
            tags.retain(|_, target| *target != *digest);
        }
        let value = serde_json::to_vec(&served).expect("it was JSON");
        self.put_note(SERVED_NAMESPACE, repository, &value)?;
        self.flush()
    }

    /// Deletes a row that cannot be read; an image's is made again if it can be.
    fn forget_record(&self, table: &str, key: &str, listed: &[u8]) -> Result<Remedy, StoreError> {
        let known = Table::ALL.into_iter().find(|known| known.name() == table);
        let Some((table, key)) = known.zip(bytes(key)) else { return Ok(Remedy::Left) };
        self.shared.facts().write(|writer| writer.delete(table, &key))?;
        if table != Table::Images {
            return Ok(Remedy::Removed);
        }
        self.recover_images(listed, |name| image_key(name)[..] == key)?;
        let is_back = self.shared.facts().get(table, &key)?.is_some();
        self.write_index()?;
        Ok(if is_back { Remedy::Recovered } else { Remedy::Untagged })
    }
}

/// Takes some damages out of a report.
fn take(report: &mut CheckReport, wanted: impl Fn(&Damage) -> bool) -> Vec<Damage> {
    let (taken, left) = std::mem::take(&mut report.damages).into_iter().partition(wanted);
    report.damages = left;
    taken
}

/// Makes room for a part of the folder that is to be made again.
fn clear_place(damage: &Damage) -> Result<(), StoreError> {
    if let Damage::Layout(path) = damage
        && !path.is_dir()
    {
        gone(path)?;
    }
    Ok(())
}

/// Writes the rows that can be read into a new file, which takes the place of the old one.
fn save_facts(root: &Path, patience: &Patience) -> Result<(), StoreError> {
    let data = root.join("facts/data.mdb");
    let found = pages::read(&data).map_err(at(&data))?;
    if !found.is_there {
        return Ok(()); // Opening makes a new one.
    }
    let _alone = nobody_uses(root)?;
    let folder = root.join("tmp").join(format!("repair-{}", std::process::id()));
    remove_tree(&folder).map_err(at(&folder))?;
    fs::create_dir_all(folder.join("facts")).map_err(at(&folder))?;
    let saved = save_rows(&folder, &found.tables, patience);
    let renamed = saved.and_then(|()| {
        fs::rename(folder.join("facts/data.mdb"), &data).map_err(at(&data))?;
        sync_folder(&root.join("facts"))
    });
    remove_tree(&folder).map_err(at(&folder))?;
    renamed
}

fn save_rows(
    folder: &Path,
    tables: &BTreeMap<Vec<u8>, Vec<Row>>,
    patience: &Patience,
) -> Result<(), StoreError> {
    let facts = Facts::open(folder, patience)?;
    facts.write(|writer| {
        for table in Table::ALL {
            for (key, value) in tables.get(table.name().as_bytes()).into_iter().flatten() {
                // LMDB takes no empty key; a row with one is nobody's.
                if !key.is_empty() {
                    writer.put(table, key, value)?;
                }
            }
        }
        Ok(())
    })
}

/// The lock by which LMDB itself knows whether it is alone (`mdb_env_excl_lock`), so that nobody goes on writing into
/// a file that is no longer there. Whoever opens the facts now, waits.
fn nobody_uses(root: &Path) -> Result<fs::File, StoreError> {
    let in_use = || StoreError::Facts {
        root: root.to_owned(),
        reason: "they have to be written anew, and another process uses them; end it and try again"
            .to_owned(),
    };
    let data = fs::metadata(root.join("facts/data.mdb")).map_err(at(root))?;
    // A lock of this process would not be in the way, and would end with the file that is closed here.
    if lock(&OPEN).contains_key(&(data.dev(), data.ino())) {
        return Err(in_use());
    }
    let path = root.join("facts/lock.mdb");
    let mut options = fs::File::options();
    let file = options.read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(at(&path))?;
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::AGAIN | Errno::ACCESS) => Err(in_use()),
        Err(errno) => Err(errno_at(&path)(errno)),
    }
}

fn gone(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if is_folder(&error) => remove_tree(path).map_err(at(path)),
        removed => removed.map_err(at(path)),
    }
}

fn is_folder(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::IsADirectory | ErrorKind::PermissionDenied)
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
