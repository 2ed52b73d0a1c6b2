//! How long the first command after a kill takes in a store of ten thousand blobs.

use std::fs;

use idpbuilder::store::Store;

use crate::{
    kills::noise,
    place::Place,
    strace,
    support::Done,
    tally::{Finding, Tally},
};

/// Blobs of the store.
const BLOBS: u64 = 10_000;
/// Size of each, in bytes.
const BLOB_BYTES: usize = 2000;
/// Namespace of the notes that keep them.
const NAMESPACE: &str = "kept";

#[test]
fn f01_recovery_with_ten_thousand_blobs() {
    let place = Place::in_memory();
    let mut tally = Tally::new("f01 recovery at 10,000 blobs");
    fs::create_dir_all(place.user.work().join("src")).unwrap();
    place.user.write("src/a", "a\n");
    place.user.write("Dockerfile", "FROM scratch\nCOPY src /src\n");
    place.run(&["build", "--quiet", "--tag", "kept:v1", "."]).ok();
    {
        let store = Store::open(&place.root()).unwrap();
        for n in 0..BLOBS {
            let blob = store.put_blob(&noise(n + 1, BLOB_BYTES)).unwrap();
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
}
