//! Laws of flushes that several ask for at once.

use std::os::unix::fs::symlink;

use super::*;

/// Has every one name an image of its own while nobody can flush yet; what each was told, in no order, and how
/// many images there were when it was.
fn name_at_once(store: &Store, images: &[ImageRecord]) -> Vec<(Result<(), StoreError>, usize)> {
    let name = |record: &ImageRecord| {
        let told = store.put_image(record);
        (told, store.images().unwrap().len())
    };
    thread::scope(|scope| {
        let held = lock(&store.shared.flushing);
        let all: Vec<_> = images.iter().map(|record| scope.spawn(move || name(record))).collect();
        while lock(&store.shared.queue).asked_for() < images.len() {
            thread::yield_now();
        }
        drop(held);
        all.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

fn four(store: &Store) -> Vec<ImageRecord> {
    (0..4).map(|seed| image(store, Some(&format!("localhost/app{seed}:1")), seed)).collect()
}

#[test]
fn who_asks_while_one_runs_shares_the_next() {
    let (root, store) = store();
    let images = four(&store);
    for (told, there) in name_at_once(&store, &images) {
        told.unwrap();
        assert_eq!(there, 4, "one flush brought all");
    }
    drop(store);
    assert_eq!(Store::open(root.path()).unwrap().images().unwrap().len(), 4);
}

#[test]
fn a_flush_that_fails_is_told_to_all_and_names_nothing_later() {
    let (_root, store) = store();
    let images = four(&store);
    let unreadable = Digest::of(b"a link to itself");
    let path = store.blob_path(unreadable);
    symlink(&path, &path).unwrap();
    lock(&store.shared.queue).add_blob(unreadable);
    for (told, there) in name_at_once(&store, &images) {
        assert!(told.is_err() && there == 0, "{told:?} {there}");
    }
    fs::remove_file(&path).unwrap();
    store.flush().unwrap();
    assert_eq!(store.images().unwrap(), []);
    store.put_images(&images).unwrap();
    assert_eq!(store.images().unwrap().len(), 4);
}
