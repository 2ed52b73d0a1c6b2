//! Stacks of layers as one directory each, kept while steps stand on them.
//!
//! Overlay takes only so many directories: of a deeper stack the lowest layers are put into one, which the following
//! steps use too. Knows which layers those are; how they are written is the image's business.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::BuildError;
use crate::{
    oci::{ChainId, DiffId},
    store::{Staging, Store},
};

/// Directories that are laid over one another; the kernel takes 500, of which the sandbox has one.
const LOWERS_MAX: usize = 480;

/// Layers are put into one directory by multiples of this, so that one is of use to as many steps.
const STRIDE: usize = LOWERS_MAX / 2;

/// Directories that are kept though nothing uses them at this moment: each is a root file system on the disk.
const KEPT_MAX: usize = 2;

/// What was put into one directory.
#[derive(Default)]
pub struct Wholes(Mutex<Vec<Entry>>);

/// A directory that is being made by whoever holds the lock, or is there.
type Slot = Arc<Mutex<Option<Arc<Whole>>>>;

struct Entry {
    chain: ChainId,
    slot: Slot,
}

/// All that a stack of layers holds; goes with its last user.
pub(super) struct Whole(Staging);

impl Whole {
    pub(super) fn path(&self) -> PathBuf {
        self.0.path().join("fs")
    }
}

impl Wholes {
    /// The directory of a stack that is not empty, filled by `fill` unless it is here.
    pub(super) fn get(
        &self,
        store: &Store,
        chain: ChainId,
        fill: impl FnOnce(&Path) -> Result<(), BuildError>,
    ) -> Result<Arc<Whole>, BuildError> {
        let slot = self.slot(chain);
        let mut made = slot.lock().expect("a build that panics takes the program with it");
        if let Some(whole) = &*made {
            return Ok(Arc::clone(whole));
        }
        let whole = Whole(store.staging()?);
        super::process::make_folder(whole.0.path(), "fs")?;
        fill(&whole.path())?;
        let whole = Arc::new(whole);
        *made = Some(Arc::clone(&whole));
        Ok(whole)
    }

    /// The place for a stack's directory; the ones that were asked for longest ago are given up.
    fn slot(&self, chain: ChainId) -> Slot {
        let mut entries = self.0.lock().expect("no holder panics");
        let found = entries.iter().position(|entry| entry.chain == chain);
        let entry = match found {
            Some(index) => entries.remove(index),
            None => Entry { chain, slot: Slot::default() },
        };
        let slot = Arc::clone(&entry.slot);
        entries.push(entry);
        let surplus = entries.len().saturating_sub(KEPT_MAX);
        drop(entries.drain(..surplus));
        slot
    }
}

/// How many of the lowest of these layers, bottom first, have to be one directory; none when overlay takes all.
pub(super) fn depth(layers: &[DiffId]) -> usize {
    if fitting(layers, LOWERS_MAX) == layers.len() {
        return 0;
    }
    // The directory itself takes a place.
    let beyond = layers.len() - fitting(layers, LOWERS_MAX - 1);
    beyond.next_multiple_of(STRIDE)
}

/// How many of the topmost layers are no more than `most` different ones: one that comes again is laid over the others
/// once.
fn fitting(layers: &[DiffId], most: usize) -> usize {
    let mut different = BTreeSet::new();
    let fits = |layer: &&DiffId| {
        different.insert(**layer);
        different.len() <= most
    };
    layers.iter().rev().take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn layers(numbers: impl Iterator<Item = usize>) -> Vec<DiffId> {
        numbers.map(|number| DiffId(Digest::of(&number.to_le_bytes()))).collect()
    }

    #[test]
    fn what_overlay_takes_is_left_as_it_is() {
        for count in [0, 1, LOWERS_MAX] {
            assert_eq!(depth(&layers(0..count)), 0);
        }
        // Whatever the number of times that it comes again.
        assert_eq!(depth(&layers((0..5000).map(|number| number % LOWERS_MAX))), 0);
    }

    #[test]
    fn deep_stacks_fit_and_share_their_lowest_layers() {
        let mut depths = BTreeSet::new();
        for count in LOWERS_MAX + 1..3000 {
            let depth = depth(&layers(0..count));
            assert!(
                depth > 0 && depth <= count && count - depth < LOWERS_MAX,
                "{depth} of {count}"
            );
            depths.insert(depth);
        }
        assert_eq!(depths.len(), (3000 - LOWERS_MAX).div_ceil(STRIDE), "{depths:?}");
    }

    #[test]
    fn a_directory_is_made_once_and_goes_when_nobody_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let wholes = Wholes::default();
        let chains: Vec<_> = layers(0..4).into_iter().map(ChainId::bottom).collect();
        let make = |chain: ChainId| wholes.get(&store, chain, |_| Ok(())).unwrap().path();
        let first = make(chains[0]);
        let again = wholes.get(&store, chains[0], |_| unreachable!("it is there")).unwrap();
        assert_eq!(again.path(), first);
        for chain in &chains[1..] {
            make(*chain);
        }
        assert!(first.exists(), "it is in use");
        drop(again);
        assert!(!first.exists());
        // One that could not be filled is none.
        let failed = wholes.get(&store, chains[0], |_| Err(BuildError::Cancelled));
        assert!(failed.is_err());
        assert!(make(chains[0]).exists());
    }
}
