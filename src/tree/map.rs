//! A map from paths to bytes, packed: millions of neighbours take little more than what is new in each.
//!
//! Paths stand in their order in blocks of a few dozen; a look-up goes through one of them. What comes behind all that is
//! there, as most does, costs no look-up. Knows nothing of what the bytes mean.

use std::{cmp::Ordering, collections::BTreeMap, iter};

use super::{
    TreePath,
    packed::{self, Packed},
};

/// A block with more entries becomes two.
const BLOCK: usize = 48;

/// Why packed entries can be read.
const SOUND: &str = "it was packed here";

/// Paths in their order, each with some bytes.
#[derive(Debug, Default)]
pub struct PathMap {
    /// By a path that is behind all of the block before, and behind none of the block's own.
    blocks: BTreeMap<TreePath, Block>,
    /// The last path.
    last: Option<TreePath>,
}

#[derive(Debug, Default)]
struct Block {
    /// For each entry the path, by what it has in common with the one before or, of the first, with the name of the
    /// block; and the bytes.
    entries: Vec<u8>,
    count: usize,
}

/// Where in a block a path is, or would be.
struct Spot {
    /// The path before it.
    before: TreePath,
    /// Where the entry there begins, and where its value does.
    start: usize,
    value: usize,
    /// The path there, unless it is behind all.
    there: Option<TreePath>,
}

impl PathMap {
    /// The bytes of a path.
    #[must_use]
    pub fn get(&self, path: &TreePath) -> Option<&[u8]> {
        let last = self.last.as_ref()?;
        if last < path {
            return None;
        }
        let (name, block) = self.blocks.range(..=path).next_back()?;
        let spot = block.seek(name, path);
        let is_there = spot.there.as_ref() == Some(path);
        is_there.then(|| Packed(&block.entries[spot.value..]).bytes().expect(SOUND))
    }

    /// Sets the bytes of a path.
    pub fn insert(&mut self, path: &TreePath, value: &[u8]) {
        if self.last.as_ref().is_none_or(|last| last < path) {
            self.append(path, value);
            return;
        }
        let before_all = self.blocks.first_key_value().is_some_and(|(name, _)| path < name);
        if before_all && let Some((name, mut block)) = self.blocks.pop_first() {
            block.rename(&name, path);
            self.blocks.insert(path.clone(), block);
        }
        let (name, block) = self.blocks.range_mut(..=path).next_back().expect("one begins before");
        block.insert((name, path), value);
        if block.count > BLOCK {
            let (name, half) = block.split(name);
            self.blocks.insert(name, half);
        }
    }

    /// Adds what comes behind all.
    fn append(&mut self, path: &TreePath, value: &[u8]) {
        let full = self.blocks.last_entry().is_none_or(|mut last| {
            let full = last.get().count >= BLOCK;
            if full {
                last.get_mut().entries.shrink_to_fit();
            }
            full
        });
        if full {
            self.blocks.insert(path.clone(), Block::default());
        }
        let before = if full { Some(path) } else { self.last.as_ref() };
        let before = before.map_or(&[][..], TreePath::as_bytes);
        let mut block = self.blocks.last_entry().expect("made if there was none");
        block.get_mut().push(before, (path, value));
        self.last = Some(path.clone());
    }

    /// Takes a path out.
    pub fn remove(&mut self, path: &TreePath) {
        let Some((name, block)) = self.blocks.range_mut(..=path).next_back() else { return };
        if !block.remove(name, path) {
            return;
        }
        if block.count == 0 {
            let name = name.clone();
            self.blocks.remove(&name);
        }
        if self.last.as_ref() == Some(path) {
            let last = self.blocks.last_key_value();
            self.last =
                last.and_then(|(name, block)| block.iter(name).last()).map(|(path, _)| path);
        }
    }

    /// Everything from a path on.
    pub fn onward<'m>(
        &'m self,
        path: &TreePath,
    ) -> impl Iterator<Item = (TreePath, &'m [u8])> + use<'m> {
        let first = self.blocks.range(..=path).next_back();
        let first = first.filter(|_| self.last.as_ref().is_some_and(|last| path <= last));
        let rest = self
            .blocks
            .range(path.clone()..)
            .filter(move |(name, _)| first.is_none_or(|(first, _)| first != *name));
        let spot = first.map(|(name, block)| (block.seek(name, path), block));
        let first =
            spot.into_iter().flat_map(|(spot, block)| block.iter_at(spot.before, spot.start));
        first.chain(rest.flat_map(|(name, block)| block.iter(name)))
    }
}

impl Block {
    fn push(&mut self, before: &[u8], (path, value): (&TreePath, &[u8])) {
        packed::put_path(&mut self.entries, before, path);
        packed::put_bytes(&mut self.entries, value);
        self.count += 1;
    }

    fn iter<'b>(&'b self, name: &TreePath) -> impl Iterator<Item = (TreePath, &'b [u8])> {
        self.iter_at(name.clone(), 0)
    }

    fn iter_at(&self, mut path: TreePath, start: usize) -> impl Iterator<Item = (TreePath, &[u8])> {
        let mut rest = Packed(&self.entries[start..]);
        iter::from_fn(move || {
            if rest.0.is_empty() {
                return None;
            }
            rest.path(&mut path).expect(SOUND);
            Some((path.clone(), rest.bytes().expect(SOUND)))
        })
    }

    /// The first entry that is not before a path.
    fn seek(&self, name: &TreePath, path: &TreePath) -> Spot {
        let mut rest = Packed(&self.entries);
        let mut at = name.clone();
        let (mut before, mut start) = (at.clone(), 0);
        while !rest.0.is_empty() {
            rest.path(&mut at).expect(SOUND);
            if at.cmp(path) != Ordering::Less {
                let value = self.entries.len() - rest.0.len();
                return Spot { before, start, value, there: Some(at) };
            }
            before.clone_from(&at);
            rest.bytes().expect(SOUND);
            start = self.entries.len() - rest.0.len();
        }
        Spot { before, start, value: start, there: None }
    }

    fn insert(&mut self, (name, path): (&TreePath, &TreePath), value: &[u8]) {
        let Spot { before, start, value: place, there } = self.seek(name, path);
        let mut fresh = Vec::new();
        packed::put_path(&mut fresh, before.as_bytes(), path);
        packed::put_bytes(&mut fresh, value);
        let end = match there {
            Some(there) if there == *path => {
                let mut old = Packed(&self.entries[place..]);
                old.bytes().expect(SOUND);
                self.entries.len() - old.0.len()
            }
            there => {
                self.count += 1;
                there.iter().for_each(|next| packed::put_path(&mut fresh, path.as_bytes(), next));
                place
            }
        };
        self.splice((start, end), &fresh);
    }

    /// Whether the path was there.
    fn remove(&mut self, name: &TreePath, path: &TreePath) -> bool {
        let Spot { before, start, value, there } = self.seek(name, path);
        if there.as_ref() != Some(path) {
            return false;
        }
        let mut rest = Packed(&self.entries[value..]);
        rest.bytes().expect(SOUND);
        let mut fresh = Vec::new();
        if !rest.0.is_empty() {
            let mut next = path.clone();
            rest.path(&mut next).expect(SOUND);
            packed::put_path(&mut fresh, before.as_bytes(), &next);
        }
        let end = self.entries.len() - rest.0.len();
        self.splice((start, end), &fresh);
        self.count -= 1;
        true
    }

    /// Gives the block another name that is not behind its first path.
    fn rename(&mut self, name: &TreePath, other: &TreePath) {
        let mut rest = Packed(&self.entries);
        let mut first = name.clone();
        rest.path(&mut first).expect(SOUND);
        let end = self.entries.len() - rest.0.len();
        let mut fresh = Vec::new();
        packed::put_path(&mut fresh, other.as_bytes(), &first);
        self.splice((0, end), &fresh);
    }

    /// Takes the second half out, by the name that it gets.
    fn split(&mut self, name: &TreePath) -> (TreePath, Self) {
        let stays = self.count / 2;
        let mut half = Self::default();
        let mut before: Option<TreePath> = None;
        for (path, value) in self.iter(name).skip(stays) {
            half.push(before.as_ref().unwrap_or(&path).as_bytes(), (&path, value));
            before = Some(path);
        }
        let (first, _) = self.iter(name).nth(stays).expect("it is the half of more");
        let end = self.seek(name, &first).start;
        self.entries.truncate(end);
        self.count = stays;
        self.entries.shrink_to_fit();
        half.entries.shrink_to_fit();
        (first, half)
    }

    /// Puts bytes in place of others; blocks are many, and none keeps much room that it does not need.
    fn splice(&mut self, (start, end): (usize, usize), fresh: &[u8]) {
        let length = self.entries.len() - (end - start) + fresh.len();
        if length > self.entries.capacity() {
            self.entries.reserve_exact(length + length / 8 - self.entries.len());
        }
        drop(self.entries.splice(start..end, fresh.iter().copied()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(map: &PathMap) -> Vec<(TreePath, Vec<u8>)> {
        map.onward(&TreePath::root()).map(|(path, value)| (path, value.to_vec())).collect()
    }

    /// Few names, so that paths meet; deep, so that they share much.
    fn any_path() -> impl Strategy<Value = TreePath> {
        let name = prop::sample::select(vec!["a", "a-", "aa", "b", "name", "name-1", "name-2"]);
        let path = prop::collection::vec(name, 0..5);
        path.prop_map(|names| TreePath::parse(names.join("/")).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn it_answers_as_a_map_that_is_not_packed(
            steps in prop::collection::vec((any_path(), 0_usize..40, 0_u8..4), 0..400),
        ) {
            let (mut packed, mut plain) = (PathMap::default(), BTreeMap::new());
            for (number, (path, length, what)) in steps.into_iter().enumerate() {
                if what == 0 {
                    packed.remove(&path);
                    plain.remove(&path);
                } else {
                    let value = vec![number as u8; length];
                    packed.insert(&path, &value);
                    plain.insert(path.clone(), value);
                }
                prop_assert_eq!(packed.get(&path), plain.get(&path).map(Vec::as_slice));
                let near = packed.onward(&path).next().map(|(path, value)| (path, value.to_vec()));
                let wanted = plain.range(path..).next();
                prop_assert_eq!(near, wanted.map(|(path, value)| (path.clone(), value.clone())));
            }
            prop_assert_eq!(all(&packed), plain.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn neighbours_take_little_more_than_what_is_new_in_them_in_any_order() {
        let path = |number: usize| {
            TreePath::parse(format!(
                "some/folder/{}/of/many/name-{:03}",
                number / 100,
                number % 100
            ))
        };
        const COUNT: usize = 20_000;
        // In order, backwards, and in steps that meet every number once.
        for order in [|number| number, |number| COUNT - 1 - number, |number| number * 7919 % COUNT]
        {
            let mut map = PathMap::default();
            for number in 0..COUNT {
                map.insert(&path(order(number)).unwrap(), b"value");
            }
            let held: usize = map
                .blocks
                .iter()
                .map(|(name, block)| {
                    name.as_bytes().len()
                        + block.entries.capacity()
                        + size_of::<(TreePath, Block)>()
                })
                .sum();
            assert!(held < 24 * COUNT, "{} bytes each", held / COUNT);
            assert_eq!(map.onward(&TreePath::root()).count(), COUNT);
        }
    }
}
