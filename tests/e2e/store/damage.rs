//! F17: a store that something wrote into. `check` finds all that matters, `check --repair` leaves all that is sound.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use idpbuilder::{
    image,
    layer::OverlayMarks,
    oci::{DiffId, Digest, Document, ImageConfig, Manifest},
    plan::{OutputKind, OutputPlan},
    snapshot,
    store::{CheckDepth, ImageRecord, Patience, Store, StoreError},
};

use super::{build, copy, listed};
use crate::support::{Done, Folder, User};

/// Damages in every run; `STORE_DAMAGES` says another number, `STORE_SEED` another beginning.
const DAMAGES: u64 = 500;
/// After every so many repairs, the binary builds, saves and pushes out of what is left.
const USES_EVERY: u64 = 50;

/// The same numbers for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below.max(1)
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.roll(of.len() as u64)).unwrap()]
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Images of one and more layers, cached steps, a name of two, a pin, compressed forms, a repository that is served.
fn filled() -> User {
    let user = User::new();
    user.write("a.txt", "a\n");
    user.write("b/c.txt", "c\n");
    build(&user, "FROM scratch\nCOPY a.txt /\n", "one:v1");
    build(&user, "FROM scratch\nCOPY b /b\nCOPY a.txt /b/\nWORKDIR /b\n", "two:v1");
    build(&user, "FROM one:v1\nCOPY b /more\nLABEL three=3\n", "three:v1");
    user.run(["tag", "two:v1", "localhost:5000/team/two:v2"]).ok();
    user.run(["store", "pin", "one:v1"]).ok();
    user.run(["save", "-o", "two.tar", "two:v1"]).ok();
    user.write("idpbuilder.kdl", PROJECT);
    user.run(["run"]).ok();
    user
}

const PROJECT: &str = "registry local { embedded; namespace shop }
image site { dockerfile inline=\"FROM scratch\\nCOPY a.txt /site/\\n\"; tags v1; push local }
";

fn root(user: &User) -> PathBuf {
    user.home().join("images")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => pending.push(path),
                false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

/// What was done to a store.
struct Hurt {
    what: String,
    /// The file that was changed, cut or taken away.
    path: PathBuf,
}

/// Does one random thing to a store.
fn hurt(root: &Path, dice: &mut Dice) -> Hurt {
    let kind = dice.roll(23);
    let path = match kind {
        0..=4 => dice.pick(&files(&root.join("blobs/sha256"))).clone(),
        5 => dice.pick(&files(&root.join("listings"))).clone(),
        6..=11 => root.join("facts/data.mdb"),
        12 => root.join("facts/lock.mdb"),
        13 => root.join("index.json"),
        14 => root.join("oci-layout"),
        15 => root.join("format"),
        _ => return hurt_otherwise(root, kind, dice),
    };
    let bytes = fs::metadata(&path).unwrap().len();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // Half of the pages of a small file of facts are free: changes go where something stands.
    let at = dice.roll(bytes);
    let how = match (kind, dice.roll(6)) {
        (15, _) => return newer(path, dice),
        (_, 0) => {
            file.set_len(at).unwrap();
            format!("cut to {at} bytes")
        }
        (_, 1) => {
            fs::remove_file(&path).unwrap();
            "removed".to_owned()
        }
        (_, _) => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            let bit = dice.roll(8);
            file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
            format!("bit {bit} of byte {at} changed")
        }
    };
    if path.exists() && path.parent().is_some_and(|folder| folder.ends_with("sha256")) {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    }
    Hurt { what: format!("{}: {how}", path.display()), path }
}

fn newer(path: PathBuf, dice: &mut Dice) -> Hurt {
    let version = 2 + dice.roll(98);
    fs::write(&path, format!("{version}\n")).unwrap();
    Hurt { what: format!("format {version}"), path }
}

fn hurt_otherwise(root: &Path, kind: u64, dice: &mut Dice) -> Hurt {
    let folders = ["", "blobs", "blobs/sha256", "facts", "listings", "snapshots"];
    match kind {
        16 | 17 => {
            let path = root.join(dice.pick(&folders)).join(format!("stray-{}", dice.roll(1000)));
            if kind == 16 {
                fs::write(&path, "stray").unwrap();
            } else {
                fs::create_dir(&path).unwrap();
            }
            Hurt { what: format!("{} is new", path.display()), path }
        }
        18 => {
            let path = root.join(dice.pick(&["listings", "snapshots", "tmp", "leases"]));
            fs::remove_dir_all(&path).unwrap();
            Hurt { what: format!("{} removed", path.display()), path }
        }
        19..=21 => {
            let files: Vec<PathBuf> = tree(&root.join("snapshots")).into_keys().collect();
            let path = dice.pick(&files).clone();
            let mut bytes = fs::read(&path).unwrap();
            let (at, bit) = (dice.roll(bytes.len() as u64), dice.roll(8));
            bytes[usize::try_from(at).unwrap()] ^= 1 << bit;
            // With the time that it had, as when a disk fails.
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, bytes).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            Hurt { what: format!("{}: bit {bit} of byte {at} changed", path.display()), path }
        }
        _ => {
            let path = dice.pick(&files(&root.join("blobs/sha256"))).clone();
            fs::remove_file(&path).unwrap();
            fs::create_dir_all(path.join("a folder")).unwrap();
            Hurt { what: format!("{} is a folder", path.display()), path }
        }
    }
}

/// Blobs that an image cannot do without: documents, and layers in the one form that they have.
fn needs(store: &Store, record: &ImageRecord) -> BTreeSet<Digest> {
    let manifest = store.read_blob(record.target.digest).unwrap();
    let manifest = Document::<Manifest>::parse(manifest).unwrap().value;
    let config = Document::<ImageConfig>::parse(store.read_blob(record.config).unwrap()).unwrap();
    let mut needed = BTreeSet::from([record.target.digest, record.config]);
    for (blob, layer) in manifest.layers.iter().zip(config.value.rootfs.diff_ids) {
        let known = store.layer(layer).unwrap().map(|known| known.compressed).unwrap_or_default();
        let forms = known.into_iter().map(|form| form.descriptor.digest);
        let forms = forms.chain([blob.digest, layer.0]);
        let held: BTreeSet<Digest> =
            forms.filter(|form| store.blob_size(*form).is_some()).collect();
        needed.extend(held.first().filter(|_| held.len() == 1));
    }
    needed
}

/// Everything that the rows say that makes a difference to anybody, and all content.
fn meaning(root: &Path, layers: &[Digest]) -> (Vec<String>, BTreeMap<String, Digest>) {
    let store = Store::open(root).unwrap();
    let mut said: Vec<String> =
        store.images().unwrap().iter().map(|image| format!("{image:?}")).collect();
    said.extend(store.pins().unwrap());
    let records = layers.iter().map(|layer| store.layer(DiffId(*layer)).unwrap());
    said.extend(records.map(|record| format!("{record:?}")));
    said.sort();
    let mut content = BTreeMap::new();
    for path in files(&root.join("blobs/sha256")).iter().chain(&files(&root.join("listings"))) {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        content.insert(name, Digest::of(&fs::read(path).unwrap()));
    }
    (said, content)
}

fn named(path: &Path) -> Option<Digest> {
    format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()
}

/// Every byte of every image can be written out.
fn is_usable(store: &Store, to: &Path) {
    let records = store.images().unwrap();
    if records.is_empty() {
        return;
    }
    let output = OutputPlan {
        kind: OutputKind::Oci,
        destination: Some(to.join("all.tar")),
        archive: true,
        compression: None,
        options: BTreeMap::new(),
    };
    image::write_output(store, &records, &output).unwrap();
}

/// A store in which nothing is wrong, and what is to be known of it.
struct Healthy {
    user: User,
    root: PathBuf,
    layers: Vec<Digest>,
    wanted: (Vec<String>, BTreeMap<String, Digest>),
    /// Images: name, manifest, and blobs that they cannot do without.
    needed: Vec<(String, Digest, BTreeSet<Digest>)>,
}

impl Healthy {
    fn new() -> Self {
        let user = filled();
        let root = root(&user);
        let listings = files(&root.join("listings"));
        let layers: Vec<Digest> = listings.iter().filter_map(|path| named(path)).collect();
        let store = Store::open(&root).unwrap();
        let stack: Vec<DiffId> = layers.iter().copied().map(DiffId).collect();
        snapshot::lowers(&store, &stack, OverlayMarks::Trusted).unwrap();
        store.flush().unwrap();
        assert_eq!(store.check(CheckDepth::Full(snapshot::compare)).unwrap().damages, []);
        let images = store.images().unwrap().into_iter();
        let needed =
            images.map(|image| (image.key(), image.target.digest, needs(&store, &image))).collect();
        let wanted = meaning(&root, &layers);
        Self { user, root, layers, wanted, needed }
    }

    /// Whether a damage that no check has named makes no difference to anybody.
    fn is_of_no_matter(&self, root: &Path, path: &Path) -> bool {
        let is_blob = path.parent().is_some_and(|folder| folder.ends_with("sha256"));
        let is_needed =
            |blob: &Digest| is_blob && self.needed.iter().any(|(.., all)| all.contains(blob));
        let mut wanted = self.wanted.clone();
        // A listing, and a blob that is one of several forms of a layer, are made again.
        if !path.exists() && !named(path).is_some_and(|blob| is_needed(&blob)) {
            wanted.1.remove(&path.strip_prefix(root).unwrap().display().to_string());
        }
        meaning(root, &self.layers) == wanted
    }

    /// Every image that could do without what was hurt is there.
    fn assert_kept(&self, store: &Store, hurt: &Hurt, say: &str) {
        for (name, target, needed) in &self.needed {
            let is_lost = named(&hurt.path).is_some_and(|blob| needed.contains(&blob));
            let there = store.image(name).unwrap();
            let is_there = there.is_some_and(|image| image.target.digest == *target);
            assert!(is_there || is_lost, "{say}: {name} was healthy, and is gone");
        }
    }

    /// Hurts a copy of the store, and repairs it; whether anything was found.
    fn round(&self, home: &Path, dice: &mut Dice, say: &str) -> bool {
        let root = home.join("images");
        copy(&self.root, &root);
        let hurt = hurt(&root, dice);
        let say = format!("{say}: {}", hurt.what);
        let (before, patience) = (tree(&root), Patience::default());
        let report = match Store::examine(&root, CheckDepth::Full(snapshot::compare), &patience) {
            Err(StoreError::Newer { .. }) => {
                assert!(Store::open(&root).is_err(), "{say}");
                assert!(
                    Store::repair(&root, CheckDepth::Full(snapshot::compare), &patience).is_err(),
                    "{say}"
                );
                assert!(tree(&root) == before, "{say}: a newer store was touched");
                return true;
            }
            report => report.unwrap_or_else(|error| panic!("{say}: {error}")),
        };
        let is_found = !report.damages.is_empty();
        let is_in_snapshot =
            hurt.path.starts_with(root.join("snapshots")) && !hurt.path.ends_with("snapshots");
        assert!(is_found || !is_in_snapshot, "{say} is not found");
        assert!(is_found || self.is_of_no_matter(&root, &hurt.path), "{say} is not found");
        let repaired = Store::repair(&root, CheckDepth::Full(snapshot::compare), &patience);
        let repaired = repaired.unwrap_or_else(|error| panic!("{say}: {error}"));
        assert!(repaired.now.is_sound(), "{say}: {repaired:?}");
        let store = Store::open(&root).unwrap_or_else(|error| panic!("{say}: {error}"));
        let left = store.check(CheckDepth::Full(snapshot::compare)).unwrap();
        assert!(left.is_sound(), "{say}: {left:?}");
        self.assert_kept(&store, &hurt, &say);
        is_usable(&store, home);
        is_found
    }
}

#[test]
fn f17_every_damage_is_found_and_a_repair_leaves_all_that_is_sound() {
    let healthy = Healthy::new();
    // Nothing here needs a disk, which would be waited for thousands of times.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { Folder::below(memory) } else { Folder::new() };
    let (seed, rounds) = (number("STORE_SEED", 17), number("STORE_DAMAGES", DAMAGES));
    let mut found = 0;
    for round in 0..rounds {
        let mut dice = Dice(seed.wrapping_mul(1_000_003).wrapping_add(round));
        let home = folder.path().join(format!("home-{round}"));
        let say = format!("seed {seed}, round {round}");
        found += u64::from(healthy.round(&home, &mut dice, &say));
        let is_newer = fs::read(home.join("images/format")).is_ok_and(|text| text != b"1\n");
        if round % USES_EVERY == 0 && !is_newer {
            uses(&healthy.user, &home, &say);
        }
        fs::remove_dir_all(&home).unwrap();
    }
    println!("damages: {found} found, {} without any effect", rounds - found);
    assert!(found > rounds / 2, "{found} of {rounds} found");
}

/// The binary builds everything again, out of the cache or not, and pushes it.
fn uses(user: &User, home: &Path, say: &str) {
    let idp = |args: &[&str]| {
        let done = Done::of(user.idp().env("IDPBUILDER_HOME", home).args(args));
        assert!(done.code == 0, "{say}\n{done}");
        done.out
    };
    idp(&["run"]);
    user.write("Again", "FROM scratch\nCOPY b /b\nCOPY a.txt /b/\nWORKDIR /b\n");
    idp(&["build", "-q", "-f", "Again", "-t", "again:v1", "."]);
    idp(&["store", "check", "--full"]);
}

#[test]
fn a_damage_and_what_is_done_about_it_are_said() {
    let user = filled();
    let all = listed(&user);
    assert!(user.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
    let store = Store::open(&root(&user)).unwrap();
    let config = store.find_images("one:v1").unwrap()[0].config;
    drop(store);
    let path = root(&user).join("blobs/sha256").join(config.hex());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    fs::write(root(&user).join("stray"), "").unwrap();
    let check = user.run(["store", "check", "--full"]);
    assert!(check.out.contains(&format!("blob {config} is damaged")), "{check}");
    assert!(check.out.contains("stray does not belong here (harmless)"), "{check}");
    check.fails(1, &["`idpbuilder store check --repair` takes away"]);
    let json = user.run(["store", "check", "--full", "--format", "json"]);
    assert_eq!(json.code, 1, "{json}");
    let json = crate::support::json(&json.out);
    assert_eq!(json["sound"], false);
    assert_eq!(json["damages"][0]["kind"], "blob");
    assert_eq!(listed(&user), all, "a check changes nothing");
    let repaired = user.run(["store", "check", "--full", "--repair"]).ok();
    assert!(repaired.contains("docker.io/library/one:v1` lacks"), "{repaired}");
    assert!(repaired.contains("its name is taken away"), "{repaired}");
    let left: Vec<&str> = all.lines().filter(|line| !line.starts_with("one:v1 ")).collect();
    assert_eq!(listed(&user).lines().collect::<Vec<_>>(), left);
    assert!(root(&user).join("stray").exists(), "what is not ours stays");
    build(&user, "FROM scratch\nCOPY a.txt /\n", "one:v1");
    assert!(user.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
    user.run(["store", "check", "--format", "yaml"]).fails(3, &["text and json"]);
}

#[test]
fn a_listing_that_a_power_cut_took_a_part_of_matters_to_nobody() {
    let user = User::new();
    let (first, second) =
        ("FROM scratch\nCOPY a.txt /x/\n", "FROM scratch\nCOPY a.txt /x/\nCOPY a.txt /x/b\n");
    user.write("a.txt", "a");
    build(&user, first, "one:v1");
    let listings: Vec<_> = fs::read_dir(root(&user).join("listings")).unwrap().collect();
    assert!(!listings.is_empty());
    for listing in listings {
        fs::write(listing.unwrap().path(), "").unwrap();
    }
    let check = user.run(["store", "check", "--full"]).ok();
    assert!(check.contains("is damaged (harmless)"), "{check}");
    assert!(check.ends_with(": sound\n"), "{check}");
    build(&user, second, "one:v2");
    let other = User::new();
    other.write("a.txt", "a");
    build(&other, second, "one:v2");
    assert_eq!(
        listed(&user).lines().find(|line| line.starts_with("one:v2 ")),
        listed(&other).lines().next()
    );
    let repaired = user.run(["store", "check", "--full", "--repair"]).ok();
    assert!(repaired.ends_with(": sound\n"), "{repaired}");
    assert_eq!(user.run(["store", "check", "--full"]).ok().lines().count(), 1);
}
