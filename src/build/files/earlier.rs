//! Bytes that need not be read again: files of an earlier layer of the same step that did not change.
//!
//! Their content is taken from that layer's tar, in one piece of the disk, instead of from one file each.

use std::{collections::BTreeSet, fs::File};

use super::{CONTENT, Key, Selection, copy::Print};
use crate::{
    graph::KeyTree,
    layer::Listing,
    oci::DiffId,
    store::{CacheRecord, Store},
    tree::{Change, Kind, TreePath},
};

/// The layers that the same step made before, as far as they are of use.
pub(in crate::build) struct Earlier {
    layers: Vec<(File, Listing)>,
    /// Of each selection, which of its files were the same then, by their numbers.
    same: Vec<Vec<bool>>,
}

impl Earlier {
    /// The layers of `record`, when they differ from what `key` asks for in the content of files of
    /// contexts alone, and each of their files came from one of them.
    pub(in crate::build) fn find(store: &Store, key: &Key, record: &CacheRecord) -> Option<Self> {
        let names: BTreeSet<&str> =
            key.selections.iter().map(|selection| selection.component.as_str()).collect();
        // Paths name files of one source only.
        let sources: BTreeSet<_> = key.selections.iter().map(|selection| selection.from).collect();
        if sources.len() != 1
            || names.len() != key.selections.len()
            || !differs_in(&key.tree, &record.tree, &names)
        {
            return None;
        }
        let (mut files, mut same) = (0, Vec::new());
        for selection in &key.selections {
            let blob = *record.selections.get(&selection.component)?;
            let before = Listing::decode(store.read_blob(blob).ok()?).ok()?;
            files += before.iter().filter(|listed| is_file(&listed.change)).count();
            same.push(same_files(selection, &before));
        }
        let layers: Option<Vec<_>> =
            record.made.layers().iter().map(|layer| open(store, *layer)).collect();
        let layers = layers?;
        // Two sources that met in one place would leave one file of two.
        let listed = layers.iter().flat_map(|(_, listing)| listing);
        let made = listed.filter(|listed| is_file(&listed.change)).count();
        if made != files {
            return None;
        }
        Some(Self { layers, same })
    }

    /// The tar that has the content of a file of the context that goes to `destination`, and where.
    pub(super) fn place(
        &self,
        Print { selection, number }: Print,
        destination: &TreePath,
        size: u64,
    ) -> Option<(&File, u64)> {
        if !self.same[selection][number] {
            return None;
        }
        self.layers.iter().find_map(|(tar, listing)| {
            let listed = listing.at(destination)?;
            let Change::Put(entry) = listed.change else { return None };
            (entry.kind == Kind::File { size }).then_some((tar, listed.offset))
        })
    }
}

/// Whether two keys are the same but for the values of these parts, which must be all that name
/// sources; what is unpacked has other files than were selected.
fn differs_in(now: &KeyTree, before: &KeyTree, names: &BTreeSet<&str>) -> bool {
    let (now, before) = (now.components(), before.components());
    now.len() == before.len()
        && now.iter().zip(before).all(|(now, before)| {
            let is_selection = names.contains(now.name.as_str());
            let is_other_source = now.name.starts_with("source ") && !is_selection;
            now.name == before.name
                && !is_other_source
                && now.name != "unpack"
                && (is_selection || now.value == before.value)
        })
}

fn open(store: &Store, layer: DiffId) -> Option<(File, Listing)> {
    store.blob_size(layer.0)?;
    let listing = Listing::decode(store.listing(layer).ok()??).ok()?;
    Some((store.open_blob(layer.0).ok()?, listing))
}

fn is_file(change: &Change) -> bool {
    let Change::Put(entry) = change else { return false };
    matches!(entry.kind, Kind::File { .. } | Kind::Hardlink { .. })
}

/// Which files have the content that they had. One with attributes is read again: they come with it.
fn same_files(selection: &Selection, before: &Listing) -> Vec<bool> {
    let mut same = vec![false; selection.hashed()];
    let mut before = before.iter().filter_map(|listed| match listed.change {
        Change::Put(entry) => Some(entry),
        Change::Whiteout(_) | Change::Opaque(_) => None,
    });
    let mut old = before.next();
    for (number, path, size, content) in selection.plain_files() {
        while old.as_ref().is_some_and(|entry| entry.path < path) {
            old = before.next();
        }
        let Some(entry) = old.as_ref().filter(|entry| entry.path == path) else { continue };
        let was = entry.meta.xattrs.get(CONTENT).map(Vec::as_slice);
        let is_plain = entry.meta.xattrs.len() == 1 && entry.kind == Kind::File { size };
        same[number] = is_plain && was == Some(content.as_bytes().as_slice());
    }
    same
}
