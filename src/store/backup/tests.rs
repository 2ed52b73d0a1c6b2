//! Laws of backups, on small stores made by hand.

use std::fs;

use super::*;
use crate::{
    graph::{CacheKey, KeyTree},
    oci::{Descriptor, DiffId, MediaType, Platform},
    store::{CheckDepth, ImageRecord, NamesTaken},
};

/// There are no snapshots here.
const FULL: CheckDepth = CheckDepth::Full(|_, _| None);

/// An image without layers, whose config has this text in it.
fn put_image(store: &Store, name: &str, text: &str) -> ImageRecord {
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","author":"{text}","rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    let of = |kind, bytes: &str| {
        let blob = store.put_blob(bytes.as_bytes()).unwrap();
        Descriptor::new(MediaType::new(kind), blob, bytes.len() as u64)
    };
    let config = of(MediaType::CONFIG, &config);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[]}}"#,
        MediaType::MANIFEST,
        serde_json::to_string(&config).unwrap()
    );
    let record = ImageRecord {
        reference: Some(name.to_owned()),
        target: of(MediaType::MANIFEST, &manifest),
        config: config.digest,
        platforms: vec![Platform::linux("amd64", None)],
        stored_at: 7,
        created: None,
        size: 0,
        pulled: false,
    };
    store.put_image(&record).unwrap();
    record
}

fn filled(root: &Path) -> (Store, CacheKey) {
    let store = Store::open(root).unwrap();
    put_image(&store, "docker.io/library/one:latest", "one");
    put_image(&store, "docker.io/library/two:latest", "two");
    let layer = DiffId(store.put_blob(b"a layer").unwrap());
    store.put_listing(layer, b"a listing").unwrap();
    let record = CacheRecord {
        made: layer.into(),
        tree: KeyTree::new("run"),
        site: "site".to_owned(),
        made_at: 1,
        took_ms: 2,
        selections: std::collections::BTreeMap::new(),
    };
    let key = CacheKey(Digest::of(b"key"));
    store.put_cached(key, &record).unwrap();
    store.put_note("space", "name", b"value").unwrap();
    store.put_blob(b"nobody needs it").unwrap();
    store.flush().unwrap();
    store.pin("docker.io/library/two:latest").unwrap();
    (store, key)
}

fn saved(store: &Store) -> (Vec<u8>, BackupReport) {
    let mut archive = Vec::new();
    let report = store.backup(&mut archive, Path::new("x")).unwrap();
    (archive, report)
}

#[test]
fn a_backup_brings_everything_back_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (store, key) = filled(&folder.path().join("from"));
    let (archive, report) = saved(&store);
    assert_eq!((report.images, report.cache_records, report.blobs), (2, 1, 5));
    assert_eq!(saved(&store).0, archive, "the same store makes the same bytes");
    let other = Store::open(&folder.path().join("to")).unwrap();
    let report = other.restore(&archive[..], Path::new("x"), NamesTaken::Refuse).unwrap();
    assert_eq!((report.images, report.new_blobs), (2, 5));
    assert_eq!(other.images().unwrap(), store.images().unwrap());
    assert_eq!(other.cached(key).unwrap(), store.cached(key).unwrap());
    assert_eq!(other.note("space", "name").unwrap().unwrap(), b"value");
    assert_eq!(other.pins().unwrap(), store.pins().unwrap());
    let layer = DiffId(Digest::of(b"a layer"));
    assert_eq!(other.listing(layer).unwrap().unwrap(), b"a listing");
    assert_eq!(other.check(FULL).unwrap().damages, []);
    // Once more is no news.
    let report = other.restore(&archive[..], Path::new("x"), NamesTaken::Refuse).unwrap();
    assert_eq!(report.new_blobs, 0);
}

#[test]
fn a_damaged_or_cut_backup_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = filled(&folder.path().join("from"));
    let (archive, _) = saved(&store);
    let other = Store::open(&folder.path().join("to")).unwrap();
    put_image(&other, "docker.io/library/here:latest", "here");
    let state = || {
        let names = |below: &str| {
            let entries = fs::read_dir(other.root().join(below)).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        (other.images().unwrap(), names("blobs/sha256"), names("listings"))
    };
    let before = state();
    let refused = |bad: &[u8], at: usize| {
        let restored = other.restore(bad, Path::new("x"), NamesTaken::Refuse);
        assert!(restored.is_err(), "byte {at} makes no difference");
        assert_eq!(state(), before, "byte {at}");
    };
    // What fills up the last block of a file is nobody's.
    let mut tar = tar::Archive::new(&archive[..]);
    let entries = tar.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.raw_header_position(), entry.raw_file_position() + entry.size())
    });
    let used: Vec<usize> = entries.flat_map(|(from, to)| from as usize..to as usize).collect();
    for at in used.iter().step_by(97).copied() {
        let mut damaged = archive.clone();
        damaged[at] ^= 0x10;
        refused(&damaged, at);
        refused(&archive[..at], at);
    }
    assert!(used.len() > 97 * 50);
    assert_eq!(other.check(FULL).unwrap().damages, []);
}

#[test]
fn a_name_that_stands_for_another_image_is_refused_or_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = filled(&folder.path().join("from"));
    let (archive, _) = saved(&store);
    let other = Store::open(&folder.path().join("to")).unwrap();
    let name = "docker.io/library/one:latest";
    let here = put_image(&other, name, "another");
    let refused = other.restore(&archive[..], Path::new("x"), NamesTaken::Refuse).unwrap_err();
    assert_eq!(refused.to_string(), format!("x: {name} stands here for other images"));
    assert_eq!(other.images().unwrap(), [here]);
    other.restore(&archive[..], Path::new("x"), NamesTaken::Replace).unwrap();
    assert_eq!(other.image(name).unwrap(), store.image(name).unwrap());
    let index = fs::read_to_string(other.root().join("index.json")).unwrap();
    assert_eq!(index, fs::read_to_string(store.root().join("index.json")).unwrap());
}
