//! Laws of the store as a whole. Knows only its public face, and damages files by hand.

mod flushes;
mod model;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    thread,
};

use super::*;
use crate::{
    graph::{CacheKey, KeyTree},
    oci::{Codec, Descriptor, DiffId, Digest, MediaType, Platform},
};

/// Without snapshots: these layers are no archives.
const FULL: CheckDepth = CheckDepth::Full(|_, _| None);

fn store() -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    (root, store)
}

/// A real image without layers, different for each seed.
fn image(store: &Store, name: Option<&str>, seed: usize) -> ImageRecord {
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Labels":{{"seed":"{seed}"}}}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    let config = Descriptor::new(
        MediaType::new(MediaType::CONFIG),
        store.put_blob(config.as_bytes()).unwrap(),
        config.len() as u64,
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[]}}"#,
        MediaType::MANIFEST,
        serde_json::to_string(&config).unwrap(),
    );
    let digest = store.put_blob(manifest.as_bytes()).unwrap();
    ImageRecord {
        reference: name.map(str::to_owned),
        target: Descriptor::new(MediaType::new(MediaType::MANIFEST), digest, manifest.len() as u64),
        config: config.digest,
        platforms: vec![Platform::linux("amd64", None)],
        stored_at: seed as i64,
        created: None,
        size: 0,
        pulled: false,
    }
}

fn cache_record(layer: DiffId, site: &str) -> CacheRecord {
    CacheRecord {
        selections: std::collections::BTreeMap::new(),
        made: layer.into(),
        tree: KeyTree::new("run"),
        site: site.to_owned(),
        made_at: 1,
        took_ms: 2,
    }
}

fn layer(name: &str) -> DiffId {
    DiffId(Digest::of(name.as_bytes()))
}

#[test]
fn skopeo_selects_an_image_by_its_full_reference() {
    let (root, store) = store();
    for (seed, name) in
        ["gitea.cnoe.localtest.me:8443/demo:final", "docker.io/library/x:latest"].iter().enumerate()
    {
        let image = image(&store, Some(name), seed);
        store.put_image(&image).unwrap();
        let place = format!("oci:{}:{name}", root.path().display());
        let output = Command::new("skopeo").args(["inspect", "--raw", &place]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(Digest::of(&output.stdout), image.target.digest);
    }
}

#[test]
fn what_was_flushed_is_there_and_the_rest_is_gone_without_a_trace() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let blob = store.put_blob(b"layer").unwrap();
    let kept = CacheKey(Digest::of(b"kept"));
    store.put_cached(kept, &cache_record(DiffId(blob), "site")).unwrap();
    store.flush().unwrap();
    let lost = CacheKey(Digest::of(b"lost"));
    store.put_cached(lost, &cache_record(DiffId(blob), "site")).unwrap();
    assert!(store.cached(lost).unwrap().is_some(), "queued facts are visible here");
    drop(store);
    let store = Store::open(root.path()).unwrap();
    assert_eq!(store.cached(kept).unwrap(), Some(cache_record(DiffId(blob), "site")));
    assert_eq!(store.last_at("site").unwrap(), store.cached(kept).unwrap());
    assert_eq!(store.cached(lost).unwrap(), None);
    assert_eq!(store.read_blob(blob).unwrap(), b"layer");
}

/// Set in a child process: what it has to do, and where.
const CHILD: &str = "STORE_TEST_CHILD";

/// The folder that this process was given when it is the child of a test.
fn child_root() -> Option<std::path::PathBuf> {
    std::env::var_os(CHILD).map(Into::into)
}

/// One test again, in a child process.
fn child(test: &str, root: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("store::tests::{test}"), "--nocapture"]).env(CHILD, root);
    command
}

/// The same after `setup`, in a mount namespace of its own: needs the right to mount.
fn child_with_mounts(test: &str, root: &std::path::Path, setup: &str) -> Command {
    let inner = child(test, root);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &format!("{setup}\nexec \"$@\""), "sh"]);
    command.arg(inner.get_program()).args(inner.get_args()).env(CHILD, root);
    command
}

fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn tree_of(root: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let (mut pending, mut found) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => pending.push(path),
                false => found.push((path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_newer_store_is_refused_untouched() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("format"), "2\n").unwrap();
    let error = Store::open(root.path()).err().unwrap();
    assert!(matches!(error, StoreError::Newer { found: 2, known: 1, .. }), "{error}");
    assert_eq!(tree_of(root.path()), [(root.path().join("format"), b"2\n".to_vec())]);
}

#[test]
fn an_unchanged_image_costs_no_write() {
    let (root, store) = store();
    let record = image(&store, Some("docker.io/library/x:latest"), 1);
    store.put_image(&record).unwrap();
    let before = tree_of(root.path());
    let inode = fs::metadata(root.path().join("index.json")).unwrap().ino();
    store.put_image(&ImageRecord { stored_at: 99, ..record }).unwrap();
    assert!(tree_of(root.path()) == before);
    assert_eq!(fs::metadata(root.path().join("index.json")).unwrap().ino(), inode);
}

#[test]
fn an_image_without_its_documents_is_refused() {
    let (_root, store) = store();
    let mut record = image(&store, Some("docker.io/library/x:latest"), 1);
    record.config = Digest::of(b"nowhere");
    let error = store.put_image(&record).unwrap_err();
    assert!(matches!(error, StoreError::MissingBlob(_)), "{error}");
    assert_eq!(store.images().unwrap(), []);
}

#[test]
fn a_blob_with_another_digest_leaves_nothing() {
    let (root, store) = store();
    let before = tree_of(root.path()).len();
    let mut writer = store.blob_writer().unwrap();
    writer.write_all(b"bytes").unwrap();
    let error = writer.commit(Some(Digest::of(b"others"))).unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error}");
    assert_eq!(store.blob_size(Digest::of(b"bytes")), None);
    drop(store.blob_writer().unwrap());
    assert_eq!(tree_of(root.path()).len(), before + 2, "the lease and the gate are new");
    drop(store);
    assert_eq!(tree_of(root.path()).len(), before + 1, "the gate stays");
}

/// A power cut may leave a name without its bytes: such a blob has not been sealed.
#[test]
fn an_unsealed_blob_is_believed_by_its_bytes_alone() {
    let (root, store) = store();
    let whole = store.put_blob(b"whole").unwrap();
    let cut = store.put_blob(b"cut short").unwrap();
    drop(store);
    fs::write(root.path().join("blobs/sha256").join(cut.hex()), "").unwrap();
    let store = Store::open(root.path()).unwrap();
    assert_eq!((store.blob_size(whole), store.blob_size(cut)), (Some(5), None));
    assert_eq!(store.put_blob(b"cut short").unwrap(), cut);
    store.flush().unwrap();
    drop(store);
    assert_eq!(Store::open(root.path()).unwrap().read_blob(cut).unwrap(), b"cut short");
}

#[test]
fn a_snapshot_is_believed_when_it_was_synced_or_made_since_the_boot() {
    let (root, store) = store();
    let commit = |store: &Store, name: &str, text: &str| {
        let staging = store.staging().unwrap();
        let directory = staging.path().join("layer");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("file"), text).unwrap();
        store.commit_snapshot(&directory, layer(name)).unwrap()
    };
    let read = |store: &Store, name| {
        fs::read_to_string(store.snapshot(layer(name)).unwrap().join("file")).unwrap()
    };
    commit(&store, "sealed", "1");
    store.flush().unwrap();
    commit(&store, "open", "1");
    commit(&store, "open", "2");
    assert_eq!(read(&store, "open"), "1", "losing a race is fine");
    drop(store);
    let store = Store::open(root.path()).unwrap();
    assert_eq!((read(&store, "sealed"), read(&store, "open")), ("1".into(), "1".into()));
    fs::write(store.boot_mark(layer("open")), "another boot").unwrap();
    fs::write(store.boot_mark(layer("sealed")), "another boot").unwrap();
    assert_eq!(store.snapshot(layer("open")), None);
    commit(&store, "open", "3");
    assert_eq!((read(&store, "sealed"), read(&store, "open")), ("1".into(), "3".into()));
    assert!(
        !store
            .root()
            .join("tmp")
            .read_dir()
            .unwrap()
            .any(|entry| { entry.unwrap().path().read_dir().unwrap().next().is_some() })
    );
}

#[test]
fn a_damaged_listing_is_none() {
    let (_root, store) = store();
    store.put_listing(layer("a"), b"listing").unwrap();
    assert_eq!(store.listing(layer("a")).unwrap().unwrap(), b"listing");
    assert_eq!(store.listing(layer("b")).unwrap(), None);
    for bytes in [&b""[..], b"short", b"listing-with-a-sum-that-is-none-of-its-own"] {
        fs::write(store.listing_path(layer("a")), bytes).unwrap();
        assert_eq!(store.listing(layer("a")).unwrap(), None);
    }
}

#[test]
fn a_cached_result_without_its_layer_is_none() {
    let (_root, store) = store();
    let key = CacheKey(Digest::of(b"key"));
    let compressed = store.put_blob(b"compressed").unwrap();
    let form = CompressedForm {
        codec: Codec::Gzip,
        level: None,
        original: true,
        descriptor: Descriptor::new(MediaType::layer(Codec::Gzip), compressed, 10),
    };
    let record = LayerRecord { tar_bytes: 1, content_bytes: 2, compressed: vec![form] };
    store.put_cached(key, &cache_record(layer("plain"), "site")).unwrap();
    assert_eq!(store.cached(key).unwrap(), None);
    store.put_layer(layer("plain"), &record).unwrap();
    assert!(store.cached(key).unwrap().is_some());
    assert_eq!(store.diff_id_of(compressed).unwrap(), Some(layer("plain")));
    let bare = LayerRecord { compressed: Vec::new(), ..record.clone() };
    store.put_layer(layer("plain"), &bare).unwrap();
    assert_eq!(store.layer(layer("plain")).unwrap(), Some(record), "forms are merged");
    fs::remove_file(store.blob_path(compressed)).unwrap();
    assert_eq!(store.cached(key).unwrap(), None);
    assert!(store.last_at("site").unwrap().is_some());
}

#[test]
fn young_stamps_are_not_kept_and_old_ones_hold_for_one_state() {
    let (root, store) = store();
    let now_ns = i128::from(layers::now_s()) * 1_000_000_000;
    let old = FileStamp { device: 1, inode: 2, size: 3, mtime_ns: 4, ctime_ns: 5 };
    let young = FileStamp { inode: 3, ctime_ns: now_ns, ..old };
    let ahead = FileStamp { inode: 4, mtime_ns: now_ns * 2, ..old };
    let all = [old, young, ahead];
    assert_eq!(store.file_digests(&all).unwrap(), [None; 3]);
    store.put_file_digests(&all.map(|stamp| (stamp, Digest::of(b"x")))).unwrap();
    let kept = [Some(Digest::of(b"x")), None, None];
    assert_eq!(store.file_digests(&all).unwrap(), kept);
    store.flush().unwrap();
    drop(store);
    let store = Store::open(root.path()).unwrap();
    assert_eq!(store.file_digests(&all).unwrap(), kept);
    assert_eq!(store.file_digests(&[FileStamp { mtime_ns: 6, ..old }]).unwrap(), [None]);
}

#[test]
fn many_digests_of_files_wait_for_no_flush() {
    let (root, store) = store();
    let stamp = |inode| FileStamp { device: 1, inode, size: 3, mtime_ns: 4, ctime_ns: 5 };
    let digests: Vec<_> = (0..40_000).map(|inode| (stamp(inode), Digest::of(b"x"))).collect();
    store.put_file_digests(&digests).unwrap();
    drop(store);
    let store = Store::open(root.path()).unwrap();
    let stamps: Vec<_> = digests.iter().map(|(stamp, _)| *stamp).collect();
    assert_eq!(store.file_digests(&stamps).unwrap(), [Some(Digest::of(b"x")); 40_000]);
}

#[test]
fn images_are_found_by_any_name_people_use() {
    let (_root, store) = store();
    let hub = image(&store, Some("docker.io/library/busybox:latest"), 1);
    let own = image(&store, Some("localhost:5000/demo:v1"), 2);
    let bare = image(&store, None, 3);
    for record in [&hub, &own, &bare] {
        store.put_image(record).unwrap();
    }
    assert_eq!(store.images().unwrap(), [bare.clone(), own.clone(), hub.clone()]);
    let pinned = format!("busybox@{}", hub.target.digest);
    let (id, short) = (hub.config.to_string(), own.config.short());
    for (text, wanted) in [
        ("busybox", vec![&hub]),
        ("busybox:latest", vec![&hub]),
        ("docker.io/library/busybox:latest", vec![&hub]),
        (&pinned, vec![&hub]),
        (&id, vec![&hub]),
        (&short, vec![&own]),
        ("localhost:5000/demo:v1", vec![&own]),
        ("localhost:5000/demo", vec![]),
        (&bare.config.short(), vec![&bare]),
        ("demo", vec![]),
        ("", vec![]),
    ] {
        let found = store.find_images(text).unwrap();
        assert_eq!(found.iter().collect::<Vec<_>>(), wanted, "{text}");
    }
    store.tag("localhost:5000/demo:v1", "localhost:5000/demo:v2").unwrap();
    assert_eq!(store.find_images(&short).unwrap().len(), 2);
    assert!(matches!(store.tag("nobody", "x").unwrap_err(), StoreError::NoImage(_)));
    assert!(store.remove_image("localhost:5000/demo:v1").unwrap());
    assert!(!store.remove_image("localhost:5000/demo:v1").unwrap());
    assert!(store.remove_image(&bare.key()).unwrap());
}

#[test]
fn a_collection_takes_what_nothing_reaches_and_nothing_else() {
    let (root, store) = store();
    let named = image(&store, Some("docker.io/library/x:latest"), 1);
    store.put_image(&named).unwrap();
    let noted = image(&store, None, 2);
    store.put_note("base", "debian", noted.target.digest.to_string().as_bytes()).unwrap();
    let cached = store.put_blob(b"cached layer").unwrap();
    let key = CacheKey(Digest::of(b"key"));
    store.put_cached(key, &cache_record(DiffId(cached), "site")).unwrap();
    let orphan = store.put_blob(b"orphan").unwrap();
    store.put_listing(layer("orphan"), b"x").unwrap();
    fs::create_dir(root.path().join("tmp/0000000000000000")).unwrap();
    let dry = store.gc(GcPolicy { mode: GcMode::DryRun, ..GcPolicy::default() }).unwrap();
    assert_eq!((dry.blobs, dry.abandoned, store.blob_size(orphan)), (4, 1, Some(6)));
    let report = store.gc(GcPolicy::default()).unwrap();
    // Six bytes of the blob, one of the listing and 32 of its sum.
    let wanted = GcReport { blobs: 1, listings: 1, abandoned: 1, bytes: 39, ..GcReport::default() };
    assert_eq!(report, wanted);
    assert!(store.cached(key).unwrap().is_some());
    assert_eq!(store.blob_size(orphan), None);
    let all = GcPolicy { cache_age_max_s: Some(0), ..GcPolicy::default() };
    let report = store.gc(all).unwrap();
    assert_eq!((report.blobs, report.cache_records), (3, 1));
    assert_eq!((store.cached(key).unwrap(), store.last_at("site").unwrap()), (None, None));
    assert_eq!(store.blob_size(noted.config), None);
    assert_eq!(
        store.check(FULL).unwrap(),
        CheckReport { damages: vec![], blobs: 2, bytes: 359, images: 1 }
    );
    store.remove_image("docker.io/library/x:latest").unwrap();
    assert_eq!(store.gc(all).unwrap().blobs, 2);
}

#[test]
fn the_cache_keeps_what_was_used_last_within_its_bytes() {
    let (_root, store) = store();
    let keys = [1_u8, 2, 3].map(|number| {
        let blob = store.put_blob(&[number; 100]).unwrap();
        let key = CacheKey(Digest::of(&[number]));
        let record =
            CacheRecord { made_at: i64::from(number), ..cache_record(DiffId(blob), "site") };
        store.put_cached(key, &record).unwrap();
        key
    });
    assert!(store.cached(keys[0]).unwrap().is_some(), "used now");
    let policy = GcPolicy { cache_bytes_max: Some(250), ..GcPolicy::default() };
    assert_eq!(store.gc(policy).unwrap().cache_records, 1);
    let kept = keys.map(|key| store.cached(key).unwrap().is_some());
    assert_eq!(kept, [true, false, true]);
}

#[test]
fn a_lease_that_ages_gives_up_what_nobody_asked_for_since() {
    let (_root, store) = store();
    let lease = store.lease().unwrap();
    let [used, unused] = [b"used", b"idle"].map(|bytes| store.put_blob(bytes).unwrap());
    store.flush().unwrap();
    let collect = || store.gc(GcPolicy::default()).unwrap().blobs;
    lease.age().unwrap();
    assert_eq!(collect(), 0, "both were asked for just now");
    assert!(store.blob_size(used).is_some());
    {
        // What somebody else in this process counts on is not known by whom.
        let _other = store.lease().unwrap();
        lease.age().unwrap();
        assert_eq!(collect(), 0);
    }
    lease.age().unwrap();
    assert_eq!((collect(), store.blob_size(unused)), (1, None));
    assert!(store.blob_size(used).is_some(), "asked for in every round");
    lease.age().unwrap();
    assert_eq!(collect(), 0);
    lease.age().unwrap();
    lease.age().unwrap();
    assert_eq!(collect(), 1);
}

#[test]
fn what_a_lease_has_touched_stays_until_it_ends() {
    let (_root, store) = store();
    let seen = store.put_blob(b"seen").unwrap();
    let unseen = store.put_blob(b"unseen").unwrap();
    let lease = store.lease().unwrap();
    let added = store.put_blob(b"added").unwrap();
    assert_eq!(store.blob_size(seen), Some(4));
    assert_eq!(store.gc(GcPolicy::default()).unwrap().blobs, 1);
    assert_eq!(store.blob_size(unseen), None);
    drop(lease);
    assert_eq!(store.gc(GcPolicy::default()).unwrap().blobs, 2);
    assert_eq!((store.blob_size(seen), store.blob_size(added)), (None, None));
}

#[test]
fn a_check_names_every_damage_and_a_repair_spares_the_healthy() {
    let (root, store) = store();
    let healthy = image(&store, Some("docker.io/library/healthy:latest"), 1);
    let broken = image(&store, Some("docker.io/library/broken:latest"), 2);
    let lost = image(&store, Some("docker.io/library/lost:latest"), 3);
    for record in [&healthy, &broken, &lost] {
        store.put_image(record).unwrap();
    }
    let damaged = store.put_blob(b"damaged").unwrap();
    store.put_listing(layer("listing"), b"listing").unwrap();
    let key = Digest::of(b"key");
    store.put_cached(CacheKey(key), &cache_record(layer("nowhere"), "site")).unwrap();
    store.flush().unwrap();
    assert_eq!(store.check(FULL).unwrap().damages, [Damage::LostLayer(key)]);
    let flip = |path: &std::path::Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[0] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    flip(&store.blob_path(damaged));
    flip(&store.blob_path(broken.config));
    flip(&store.listing_path(layer("listing")));
    fs::remove_file(store.blob_path(lost.target.digest)).unwrap();
    fs::write(root.path().join("index.json"), "{}").unwrap();
    fs::remove_file(root.path().join("oci-layout")).unwrap();
    let stray = root.path().join("blobs/sha256/stray");
    fs::write(&stray, "").unwrap();
    store
        .shared
        .facts()
        .write(|writer| writer.put(facts::Table::Layers, b"key", b"no json"))
        .unwrap();
    let missing = |image: &ImageRecord, blob| Damage::Missing { blob, image: image.key() };
    let mut wanted = vec![
        Damage::LostLayer(key),
        Damage::Blob(damaged),
        Damage::Blob(broken.config),
        Damage::Listing(layer("listing").0),
        missing(&broken, broken.config),
        missing(&lost, lost.target.digest),
        Damage::Index,
        Damage::Layout(root.path().join("oci-layout")),
        Damage::Stray(stray.clone()),
        Damage::Record { table: "layers", key: "6b6579".to_owned() },
    ];
    wanted.sort();
    let report = store.check(FULL).unwrap();
    assert_eq!(report.damages, wanted);
    // The config is a document, which is always looked into.
    assert_eq!(store.check(CheckDepth::Quick).unwrap().damages.len(), wanted.len() - 3);
    let report = Store::repair(root.path(), FULL, &Patience::default()).unwrap();
    let left = [Damage::Stray(stray.clone())];
    assert_eq!(store.check(FULL).unwrap().damages, left);
    assert_eq!(report.now.damages, left);
    let remedy =
        |damage: &Damage| report.remedies.iter().find(|(found, _)| found == damage).unwrap().1;
    for (damage, expected) in [
        (Damage::Blob(damaged), Remedy::Removed),
        (missing(&lost, lost.target.digest), Remedy::Untagged),
        (Damage::LostLayer(key), Remedy::Forgotten),
        (Damage::Stray(stray), Remedy::Left),
    ] {
        assert_eq!(remedy(&damage), expected, "{damage}");
    }
    assert_eq!(store.images().unwrap(), [healthy]);
}

#[test]
fn threads_and_processes_share_a_store() {
    const PARTS: usize = 8;
    const IMAGES: usize = 6;
    let work = |store: &Store, part: usize| {
        for number in 0..IMAGES {
            let _lease = store.lease().unwrap();
            let name = format!("docker.io/library/part-{part}:{number}");
            let blob = store.put_blob(format!("shared {number}").as_bytes()).unwrap();
            let key = CacheKey(Digest::of(name.as_bytes()));
            store.put_cached(key, &cache_record(DiffId(blob), &name)).unwrap();
            store.put_image(&image(store, Some(&name), part * IMAGES + number)).unwrap();
            store.gc(GcPolicy::default()).unwrap();
            assert!(store.cached(key).unwrap().is_some());
        }
    };
    if let Some(root) = child_root() {
        return work(&Store::open(&root).unwrap(), PARTS);
    }
    let (root, store) = store();
    let other = thread::spawn({
        let command = child("threads_and_processes_share_a_store", root.path());
        move || succeed(command)
    });
    thread::scope(|scope| {
        for part in 0..PARTS {
            let root = root.path();
            scope.spawn(move || work(&Store::open(root).unwrap(), part));
        }
    });
    other.join().unwrap();
    assert_eq!(store.images().unwrap().len(), (PARTS + 1) * IMAGES);
    assert_eq!(store.check(FULL).unwrap().damages, []);
}

#[test]
fn a_store_that_cannot_be_written_to_can_be_read() {
    const NAME: &str = "docker.io/library/x:latest";
    if let Some(root) = child_root() {
        let store = Store::open(&root).unwrap();
        let record = store.image(NAME).unwrap().unwrap();
        let _lease = store.lease().unwrap();
        store.read_blob(record.target.digest).unwrap();
        store.put_image(&record).unwrap(); // Nothing changes.
        assert_eq!(store.check(FULL).unwrap().damages, []);
        assert_eq!(store.usage().unwrap().images, 1);
        for error in [store.remove_image(NAME).unwrap_err(), store.put_blob(b"new").unwrap_err()] {
            assert!(error.to_string().contains("Read-only file system"), "{error}");
        }
        return;
    }
    let (root, store) = store();
    store.put_image(&image(&store, Some(NAME), 1)).unwrap();
    let setup =
        format!("mount --bind {0} {0}; mount -o remount,ro,bind {0}", root.path().display());
    succeed(child_with_mounts(
        "a_store_that_cannot_be_written_to_can_be_read",
        root.path(),
        &setup,
    ));
}

#[test]
fn a_full_disk_is_said_and_harms_nothing() {
    const NAME: &str = "docker.io/library/x:latest";
    if let Some(root) = child_root() {
        let store = Store::open(&root).unwrap();
        store.put_image(&image(&store, Some(NAME), 1)).unwrap();
        let mut number = 0_u32;
        let error = loop {
            number += 1;
            let mut noise = vec![0_u8; 64 << 10];
            noise[..4].copy_from_slice(&number.to_le_bytes());
            store.put_note("test", &number.to_string(), &noise[..1000]).unwrap();
            if let Err(error) = store.put_blob(&noise).and_then(|_| store.flush()) {
                break error;
            }
        };
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
        assert_eq!(store.check(FULL).unwrap().damages, []);
        drop(store);
        let store = Store::open(&root).unwrap();
        assert!(store.image(NAME).unwrap().is_some());
        return;
    }
    for kib in [900, 1100, 1300, 1700] {
        let root = tempfile::tempdir().unwrap();
        let setup = format!("mount -t tmpfs -o size={kib}k tmpfs {}", root.path().display());
        succeed(child_with_mounts("a_full_disk_is_said_and_harms_nothing", root.path(), &setup));
    }
}

#[test]
fn a_kill_at_any_moment_loses_nothing_acknowledged() {
    const ROUNDS: usize = 12;
    let name = |number: usize| format!("docker.io/library/image-{number}:latest");
    if let Some(root) = child_root() {
        let store = Store::open(&root).unwrap();
        for number in store.images().unwrap().len().. {
            let _lease = store.lease().unwrap();
            let layer = DiffId(store.put_blob(name(number).as_bytes()).unwrap());
            store.put_cached(CacheKey(layer.0), &cache_record(layer, "site")).unwrap();
            store.put_image(&image(&store, Some(&name(number)), number)).unwrap();
            println!("acknowledged {number}");
            store.gc(GcPolicy::default()).unwrap();
        }
    }
    let root = tempfile::tempdir().unwrap();
    for round in 0..ROUNDS {
        let mut command = child("a_kill_at_any_moment_loses_nothing_acknowledged", root.path());
        let mut killed = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(killed.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut acknowledged = lines.filter_map(|line| {
            line.rsplit_once("acknowledged ").map(|(_, number)| number.parse::<usize>().unwrap())
        });
        let last = acknowledged.nth(round % 4).unwrap();
        killed.kill().unwrap();
        killed.wait().unwrap();
        let store = Store::open(root.path()).unwrap();
        assert!((0..=last).all(|number| store.image(&name(number)).unwrap().is_some()));
        assert_eq!(store.check(FULL).unwrap().damages, []);
    }
    let store = Store::open(root.path()).unwrap();
    store.gc(GcPolicy::default()).unwrap();
    assert_eq!(store.root().join("leases").read_dir().unwrap().count(), 1, "our own");
    assert_eq!(store.root().join("tmp").read_dir().unwrap().count(), 1, "our own");
}

#[test]
fn images_survive_the_loss_of_all_facts() {
    let (root, store) = store();
    let named = image(&store, Some("docker.io/library/x:latest"), 1);
    let bare = image(&store, None, 2);
    store.put_image(&named).unwrap();
    store.put_image(&bare).unwrap();
    drop(store);
    fs::write(root.path().join("facts/data.mdb"), "").unwrap();
    let store = Store::open(root.path()).unwrap();
    for wanted in [named, bare] {
        let found = store.image(&wanted.key()).unwrap().unwrap();
        assert_eq!(ImageRecord { stored_at: wanted.stored_at, ..found }, wanted);
    }
    assert_eq!(store.check(FULL).unwrap().damages, []);
}
