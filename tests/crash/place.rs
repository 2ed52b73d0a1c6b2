//! A user whose images are on a file system of the test's choice, and what must hold of them whatever happened.
//!
//! Knows the laws of a store; has no opinion on what was done to it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use idpbuilder::{
    oci::{Descriptor, Digest, Document, ImageConfig, Manifest},
    snapshot,
    store::{CheckDepth, Damage, ImageRecord, Store},
};

use crate::{
    support::{Done, Folder, User},
    tally::{Finding, Tally},
};

/// Where files cost least, when there is such a place.
const MEMORY: &str = "/dev/shm";
/// What `schema/store.md` and the tool's own notes have at the top of a store.
const TOP: &[&str] = &[
    "blobs",
    "cache-mounts",
    "facts",
    "format",
    "gc.lock",
    "index.json",
    "index.lock",
    "leases",
    "listings",
    "oci-layout",
    "sandbox-works",
    "snapshots",
    "tmp",
    "turns",
    "write.lock",
];

/// What a home has besides.
const HOME: &[&str] = &["certs", "embedded", "images", "last-run.json", "logs"];

/// What a home is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// What was written stays.
    Whole,
    /// Its power may be cut: what was not synced may be there in part.
    MayTear,
}

/// Names of images, and the manifests that they stand for.
pub(crate) type Names = BTreeMap<String, Digest>;

/// A user, and the home of the user's images.
pub(crate) struct Place {
    pub(crate) user: User,
    home: PathBuf,
    disk: Disk,
    _folder: Option<Folder>,
}

impl Place {
    /// A home in memory: who is killed leaves what was written.
    pub(crate) fn in_memory() -> Self {
        let folder = folder_in_memory();
        let home = folder.path().join("home");
        Self { user: User::new(), home, disk: Disk::Whole, _folder: Some(folder) }
    }

    /// A home on a disk.
    pub(crate) fn on(disk: Disk, home: PathBuf) -> Self {
        Self { user: User::new(), home, disk, _folder: None }
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// The store's folder.
    pub(crate) fn root(&self) -> PathBuf {
        self.home.join("images")
    }

    /// The tool.
    pub(crate) fn idp(&self) -> Command {
        let mut command = self.user.idp();
        command.env("IDPBUILDER_HOME", &self.home);
        command
    }

    /// The tool with these words.
    pub(crate) fn words(&self, words: &[&str]) -> Command {
        let mut command = self.idp();
        command.args(words);
        command
    }

    /// Runs the tool to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Done {
        Done::of(&mut self.words(words))
    }

    /// The names that there are.
    pub(crate) fn names(&self) -> Names {
        let images = Store::open(&self.root()).unwrap().images().unwrap();
        images.into_iter().map(|image| (image.key(), image.target.digest)).collect()
    }

    /// A command that only looks: it must work at once. Its time is that of the recovery.
    pub(crate) fn recover(&self, after: &str, tally: &mut Tally) {
        let done = tally.timed(|| self.run(&["images", "--quiet"]));
        if done.code != 0 {
            tally.find(Finding::Repaired, format!("after {after}: {done}"));
        }
    }

    /// Whether all that is acknowledged is there as it was, and all that is named is whole. Names in `open` may have
    /// changed, since nobody said yet that they have.
    pub(crate) fn judge(&self, believed: &Names, open: &[String], after: &str, tally: &mut Tally) {
        let now = self.names();
        let is_settled = |name: &&String| !open.contains(name);
        for name in believed.keys().chain(now.keys()).filter(is_settled) {
            let (was, is) = (believed.get(name), now.get(name));
            if was != is {
                tally.find(
                    Finding::Lost,
                    format!("after {after}: {name} was {was:?} and is {is:?}"),
                );
            }
        }
        self.is_sound(after, tally);
    }

    /// Whether the store has no damage, and every image all its content. Of what a cut power took a part, nobody may speak.
    pub(crate) fn is_sound(&self, after: &str, tally: &mut Tally) {
        let store = Store::open(&self.root()).unwrap();
        for damage in store.check(CheckDepth::Full(snapshot::compare)).unwrap().damages {
            // What is of nobody's, such as a killed probe's folder, must go with the next collection: see `prune`.
            if matches!(damage, Damage::Stray(_)) {
                continue;
            }
            if self.disk == Disk::MayTear && damage.is_harmless() {
                continue;
            }
            tally.find(Finding::Dangling, format!("after {after}: {damage}"));
        }
        for image in store.images().unwrap() {
            if let Err(reason) = is_whole(&store, &image) {
                let name = image.key();
                tally.find(Finding::Dangling, format!("after {after}: {name}: {reason}"));
            }
        }
    }

    /// Collects, and looks for what a collection must not leave.
    pub(crate) fn prune(&self, words: &[&str], after: &str, tally: &mut Tally) {
        let done = Done::of(self.words(&["prune"]).args(words));
        if done.code != 0 {
            tally.find(Finding::Repaired, format!("after {after}: {done}"));
        }
        for stray in self.strays() {
            tally.find(Finding::Wrong, format!("after {after}: {} is left", stray.display()));
        }
    }

    /// Files that no format names, and leftovers of processes that are gone.
    fn strays(&self) -> Vec<PathBuf> {
        let root = self.root();
        let entries = |folder: &str| {
            let found = fs::read_dir(root.join(folder)).into_iter().flatten();
            found.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
        };
        let is_foreign = |path: &PathBuf, known: &[&str]| {
            !known.iter().any(|name| path.file_name().is_some_and(|found| found == *name))
        };
        let mut strays = entries("");
        strays.retain(|path| is_foreign(path, TOP));
        strays.extend(entries("..").into_iter().filter(|path| is_foreign(path, HOME)));
        strays.extend(["tmp", "leases", "turns"].into_iter().flat_map(entries));
        strays
    }

    /// Removes every name and everything kept for later: nothing but an empty store may be left.
    pub(crate) fn empty(&self, tally: &mut Tally) {
        for name in self.names().keys() {
            self.run(&["rmi", name]).ok();
        }
        self.prune(&["--cache-days", "0"], "everything was removed", tally);
        for folder in ["blobs/sha256", "snapshots", "listings"] {
            for left in fs::read_dir(self.root().join(folder)).unwrap() {
                let left = left.unwrap().path();
                tally.find(Finding::Wrong, format!("{} is left in an empty store", left.display()));
            }
        }
    }
}

/// A folder of its own where files cost least.
pub(crate) fn folder_in_memory() -> Folder {
    let place = Some(Path::new(MEMORY)).filter(|place| place.is_dir());
    place.map_or_else(Folder::new, Folder::below)
}

/// Whether the documents of an image can be read, and each of its layers is there in some form.
fn is_whole(store: &Store, image: &ImageRecord) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let read = |blob: &Descriptor| store.read_blob(blob.digest).map_err(|error| text(&error));
    let manifest =
        Document::<Manifest>::parse(read(&image.target)?).map_err(|error| text(&error))?;
    let config = read(&manifest.value.config)?;
    let config = Document::<ImageConfig>::parse(config).map_err(|error| text(&error))?;
    for (layer, diff_id) in manifest.value.layers.iter().zip(&config.value.rootfs.diff_ids) {
        let is_here = store.blob_size(layer.digest).is_some()
            || store.blob_size(diff_id.0).is_some()
            || store.snapshot(*diff_id).is_some();
        if !is_here {
            return Err(format!("layer {} is in no form here", layer.digest));
        }
    }
    Ok(())
}
