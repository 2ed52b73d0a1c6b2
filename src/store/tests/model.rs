//! A map does what the store does.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Act {
    PutImage(u8, u8),
    RemoveImage(u8),
    PutNote(u8, u8),
    PutCached(u8, u8),
    PutLayer(u8),
    Flush,
    Crash,
    Collect,
}

#[derive(Clone, Default, PartialEq)]
struct Model {
    images: BTreeMap<String, ImageRecord>,
    notes: BTreeMap<u8, u8>,
    cached: BTreeMap<u8, u8>,
    layers: BTreeSet<u8>,
}

fn act() -> impl Strategy<Value = Act> {
    let small = 0..4_u8;
    prop_oneof![
        (small.clone(), small.clone()).prop_map(|(name, seed)| Act::PutImage(name, seed)),
        small.clone().prop_map(Act::RemoveImage),
        (small.clone(), small.clone()).prop_map(|(name, value)| Act::PutNote(name, value)),
        (small.clone(), small.clone()).prop_map(|(key, layer)| Act::PutCached(key, layer)),
        small.prop_map(Act::PutLayer),
        Just(Act::Flush),
        Just(Act::Crash),
        Just(Act::Collect),
    ]
}

fn name(number: u8) -> String {
    format!("docker.io/library/image-{number}:latest")
}

fn layer_bytes(number: u8) -> Vec<u8> {
    vec![number; 10]
}

/// The store and the model do it; answers what of the model is durable.
fn apply(act: &Act, store: &mut Store, now: &mut Model, durable: &mut Model) {
    match *act {
        Act::PutImage(number, seed) => {
            let record = image(store, Some(&name(number)), usize::from(seed));
            store.put_image(&record).unwrap();
            now.images.insert(name(number), record);
            durable.clone_from(now);
        }
        Act::RemoveImage(number) => {
            let there = now.images.remove(&name(number)).is_some();
            assert_eq!(store.remove_image(&name(number)).unwrap(), there);
            durable.images.clone_from(&now.images);
        }
        Act::PutNote(name, value) => {
            store.put_note("model", &name.to_string(), &[value]).unwrap();
            now.notes.insert(name, value);
        }
        Act::PutCached(key, layer) => {
            let layer = DiffId(Digest::of(&layer_bytes(layer)));
            store.put_cached(CacheKey(Digest::of(&[key])), &cache_record(layer, "site")).unwrap();
            now.cached.insert(key, layer.0.as_bytes()[0]);
        }
        Act::PutLayer(layer) => {
            let digest = store.put_blob(&layer_bytes(layer)).unwrap();
            now.layers.insert(digest.as_bytes()[0]);
            durable.layers.insert(digest.as_bytes()[0]); // A kill takes no bytes.
        }
        Act::Flush => {
            store.flush().unwrap();
            durable.clone_from(now);
        }
        Act::Crash => {
            *store = reopened(store);
            now.clone_from(durable);
        }
        Act::Collect => {
            store.gc(GcPolicy::default()).unwrap();
            let needed: BTreeSet<u8> = now.cached.values().copied().collect();
            now.layers.retain(|layer| needed.contains(layer));
            durable.clone_from(now);
        }
    }
}

/// The same store as a new process sees it: the last handle goes before the new one comes.
fn reopened(store: &mut Store) -> Store {
    let root = store.root().to_owned();
    let other = tempfile::tempdir().unwrap();
    *store = Store::open(other.path()).unwrap();
    Store::open(&root).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_store_is_a_map_that_survives(acts in prop::collection::vec(act(), 1..24)) {
        let (_root, mut store) = store();
        let (mut now, mut durable) = (Model::default(), Model::default());
        for act in &acts {
            apply(act, &mut store, &mut now, &mut durable);
            let images: BTreeMap<_, _> =
                store.images().unwrap().into_iter().map(|image| (image.key(), image)).collect();
            prop_assert_eq!(&images, &now.images);
            for number in 0..4 {
                let note = store.note("model", &number.to_string()).unwrap();
                prop_assert_eq!(note, now.notes.get(&number).map(|value| vec![*value]));
                let cached = store.cached(CacheKey(Digest::of(&[number]))).unwrap();
                let layer = now.cached.get(&number).filter(|layer| now.layers.contains(layer));
                let made = cached.map(|record| record.made.layers()[0]);
                prop_assert_eq!(made.map(|layer| layer.0.as_bytes()[0]), layer.copied());
            }
        }
    }
}
