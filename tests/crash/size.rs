//! How long the first command after a kill takes in a store of ten thousand blobs, and a check of it.

use std::fs;

use idpbuilder::store::Store;

use crate::{
    kills::noise,
    place::{Disk, Place},
    strace,
    support::{Done, Folder},
    tally::{Finding, Tally},
};

/// Blobs of the store.
const BLOBS: u64 = 10_000;
/// Size of what differs from one to the next, in bytes. The rest of a blob are zeros.
const BLOB_BYTES: usize = 2000;
/// Environment variable with the size of each in KiB, of blobs that do not fit into memory: 1024 make 10 GiB.
const BLOB_KIB: &str = "CRASH_BLOB_KIB";
/// Namespace of the notes that keep them.
const NAMESPACE: &str = "kept";

#[test]
fn f01_recovery_with_ten_thousand_blobs() {
    let kib = std::env::var(BLOB_KIB).ok().map(|kib| kib.parse::<usize>().unwrap());
    let folder = Folder::new();
    let (place, bytes) = match kib {
        Some(kib) => (Place::on(Disk::Whole, folder.path().join("home")), kib << 10),
        None => (Place::in_memory(), BLOB_BYTES),
    };
    let of = format!("{} MiB in 10,000 blobs", (bytes * usize::try_from(BLOBS).unwrap()) >> 20);
    let mut tally = Tally::new(format!("f01 recovery at {of}"));
    fs::create_dir_all(place.user.work().join("src")).unwrap();
    place.user.write("src/a", "a\n");
    place.user.write("Dockerfile", "FROM scratch\nCOPY src /src\n");
    place.run(&["build", "--quiet", "--tag", "kept:v1", "."]).ok();
    {
        let store = Store::open(&place.root()).unwrap();
        for n in 0..BLOBS {
            let mut content = noise(n + 1, BLOB_BYTES);
            content.resize(bytes, 0);
            let blob = store.put_blob(&content).unwrap();
            store.put_note(NAMESPACE, &n.to_string(), blob.to_string().as_bytes()).unwrap();
        }
        store.flush().unwrap();
    }
    let believed = place.names();
    place.user.write("src/a", "b\n");
    let command = || place.words(&["build", "--quiet", "--tag", "new:v1", "."]);
    let points = strace::points_of(&command(), &["rename", "fdatasync", "unlink"], |_| true);
    place.run(&["rmi", "new:v1"]).ok();
    for (round, point) in points.iter().enumerate() {
        place.user.write("src/a", &format!("{round}\n"));
        drop(strace::killed_at(&command(), point).output().unwrap());
        tally.round();
        let after = point.to_string();
        place.recover(&after, &mut tally);
        let again = tally.timed(|| Done::of(&mut command()));
        if again.code != 0 {
            tally.find(Finding::Repaired, format!("after {after}: {again}"));
        }
    }
    let new = ["docker.io/library/new:v1".to_owned()];
    place.judge(&believed, &new, "all kills", &mut tally);
    tally.end();
    let mut tally = Tally::new(format!("quick check of {of}"));
    tally.round();
    let checked = tally.timed(|| place.run(&["store", "check"]));
    if checked.code != 0 {
        tally.find(Finding::Dangling, checked.to_string());
    }
    tally.end();
}
