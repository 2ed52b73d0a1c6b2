//! Which layers of a deep stack have something to say of a path, so that not each of thousands is asked.
//!
//! Knows where layers have lines; what a line means for a path is the view's business. An index grows with its stack:
//! every step of a build looks at the layers of the one before and one more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::{
    layer::Listing,
    oci::DiffId,
    tree::{Change, TreePath},
};

/// Stacks of fewer layers are asked layer by layer.
pub(super) const LAYERS_MIN: usize = 32;

/// A layer of more lines is always asked: it would take more memory to write down than it saves.
const LINES_MAX: usize = 1000;

/// Stacks whose indexes are kept.
const KEPT_MAX: usize = 4;

/// The indexes of the stacks that were looked at last.
#[derive(Default)]
pub(super) struct Indexes(Mutex<Vec<Shared>>);

type Shared = Arc<RwLock<Index>>;

/// Where the layers of a stack have lines. Layers count from the bottom.
#[derive(Default)]
struct Index {
    layers: Vec<DiffId>,
    large: Vec<usize>,
    places: HashMap<TreePath, Place>,
}

/// Layers by what they have to do with a path, each list from the bottom.
#[derive(Default)]
struct Place {
    /// They have a line for it.
    at: Vec<usize>,
    /// They may hide what lower layers have below it.
    covers: Vec<usize>,
    /// They put something below it.
    puts_below: Vec<usize>,
    /// They take something away below it.
    marks_below: Vec<usize>,
}

/// The index of one stack, which may be the lower part of what is indexed.
pub(super) struct Indexed {
    index: Shared,
    count: usize,
}

impl Indexes {
    /// The index of these layers, bottom first, with their listings: one that is known, with what it lacks, or else a
    /// new one.
    pub(super) fn of(&self, layers: &[(DiffId, &Listing)]) -> Indexed {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |index: &Shared| {
            let index = index.read().unwrap_or_else(PoisonError::into_inner);
            index.layers.iter().zip(layers).all(|(known, (layer, _))| known == layer)
        };
        let index = match known.iter().rposition(fits) {
            Some(number) => known.remove(number),
            None => Shared::default(),
        };
        known.push(Arc::clone(&index));
        let surplus = known.len().saturating_sub(KEPT_MAX);
        drop(known.drain(..surplus));
        let mut grown = index.write().unwrap_or_else(PoisonError::into_inner);
        for (layer, listing) in &layers[grown.layers.len().min(layers.len())..] {
            grown.push(*layer, listing);
        }
        drop(grown);
        Indexed { index, count: layers.len() }
    }
}

impl Index {
    fn push(&mut self, layer: DiffId, listing: &Listing) {
        let number = self.layers.len();
        self.layers.push(layer);
        if listing.len() > LINES_MAX {
            self.large.push(number);
            return;
        }
        for listed in listing {
            let path = listed.change.path();
            let put = match &listed.change {
                Change::Put(entry) => Some(entry),
                Change::Whiteout(_) | Change::Opaque(_) => None,
            };
            let place = self.places.entry(path.clone()).or_default();
            add(&mut place.at, number);
            if put.is_none_or(|entry| !entry.is_directory()) {
                add(&mut place.covers, number);
            }
            let above = path.ancestors().chain(std::iter::once(TreePath::root()));
            for above in above.filter(|above| above != path) {
                let place = self.places.entry(above).or_default();
                match put {
                    Some(_) => add(&mut place.puts_below, number),
                    None => add(&mut place.marks_below, number),
                }
            }
        }
    }
}

/// Adds the newest number once.
fn add(numbers: &mut Vec<usize>, number: usize) {
    if numbers.last() != Some(&number) {
        numbers.push(number);
    }
}

impl Indexed {
    /// The layers, topmost first and the topmost is 0, that decide what stands at a path. Of those that only have
    /// something below it, one does: it says what the others would.
    pub(super) fn speakers(&self, path: &TreePath) -> Vec<usize> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = self.covering(&index, path);
        if let Some(place) = index.places.get(path) {
            found.extend(self.lower(&place.at));
            found.extend(self.lower(&place.puts_below).last());
        }
        self.topmost_first(found)
    }

    /// The layers, as above, that decide which names are in a directory.
    pub(super) fn speakers_of_names(&self, directory: &TreePath) -> Vec<usize> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = self.covering(&index, directory);
        if let Some(place) = index.places.get(directory) {
            found.extend(self.lower(&place.covers));
            found.extend(self.lower(&place.puts_below));
            found.extend(self.lower(&place.marks_below));
        }
        self.topmost_first(found)
    }

    /// Large layers, and those that hide something at or below a directory above.
    fn covering(&self, index: &Index, path: &TreePath) -> Vec<usize> {
        let mut found: Vec<usize> = self.lower(&index.large).collect();
        for above in path.ancestors().chain(std::iter::once(TreePath::root())) {
            if let Some(place) = index.places.get(&above) {
                found.extend(self.lower(&place.covers));
            }
        }
        found
    }

    /// Those that are in this stack; the index may know more.
    fn lower<'n>(&self, numbers: &'n [usize]) -> impl Iterator<Item = usize> + use<'n> {
        let count = numbers.partition_point(|number| *number < self.count);
        numbers[..count].iter().copied()
    }

    fn topmost_first(&self, mut numbers: Vec<usize>) -> Vec<usize> {
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        numbers.dedup();
        numbers.iter_mut().for_each(|number| *number = self.count - 1 - *number);
        numbers
    }
}
