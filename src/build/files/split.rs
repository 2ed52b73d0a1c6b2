//! Where a large layer is cut into several: by paths and sizes alone, so that every machine cuts in the same places.
//!
//! The lines stand in the order of their groups and paths. Before each of them there could be a cut; a hash of its
//! path says how well it lies, and a directory lies better than a file, one near the root better than one below.
//! A cut is made where none that lies better is within half the wanted size on either side. So whether there is a
//! cut depends on its neighbourhood alone: a file that comes, goes or grows moves no cut elsewhere, two cuts
//! are never near, and a tree smaller than the wanted size is not cut at all. What is as large as a whole layer
//! has one to itself. Knows neither sources nor tar.

use crate::{
    build::BuildError,
    dockerfile::pattern::PatternSet,
    limits::Split,
    oci::Digest,
    tree::{Kind, TreePath},
};

/// A line without content takes a block of an archive.
const LINE_BYTES: u64 = 512;

/// Patterns that say which paths have layers of their own.
pub(super) struct Groups(Vec<PatternSet>);

/// A line before which there may be a cut.
pub(super) struct Place<'a> {
    pub(super) path: &'a TreePath,
    pub(super) group: usize,
    pub(super) kind: &'a Kind,
}

/// How well a cut lies; less is better.
type Merit = (u32, u64);

/// Whether the patterns can be read.
pub(in crate::build) fn check_split(split: &Split) -> Result<(), BuildError> {
    Groups::of(split)
        .map(drop)
        .map_err(|(pattern, reason)| BuildError::SplitPattern { pattern, reason })
}

impl Groups {
    /// Reads the patterns; the error is one that is none, and why.
    pub(super) fn of(split: &Split) -> Result<Self, (String, String)> {
        let compile = |patterns: &Vec<String>| {
            PatternSet::new(patterns)
                .map_err(|(index, error)| (patterns[index].clone(), error.to_string()))
        };
        Ok(Self(split.often.iter().map(compile).collect::<Result<_, _>>()?))
    }

    /// How many there are, with that of what is in none.
    pub(super) fn count(&self) -> usize {
        self.0.len() + 1
    }

    /// 0 for what is in none.
    pub(super) fn of_path(&self, path: &TreePath) -> usize {
        let found = self.0.iter().position(|patterns| patterns.matches(path.as_bytes()));
        found.map_or(0, |index| index + 1)
    }
}

/// Finds the cuts in places that are told in the order of their groups and paths. Of all that were told, it holds those
/// that nothing behind them beats yet, and those that may be cuts.
pub(super) struct Cutter {
    size_bytes: u64,
    count: usize,
    /// Bytes of all places so far.
    total: u64,
    /// Group and bytes of the last place.
    last: Option<(usize, u64)>,
    /// Each lies better than the next.
    unbeaten: Vec<Candidate>,
    lonely: Vec<Candidate>,
}

/// A place that a cut may be made before.
struct Candidate {
    number: usize,
    start: u64,
    merit: Merit,
    /// Bytes to the nearest place that lies better, or to an end; without limit for a wall.
    reach: u64,
}

/// Between two groups, or beside what has a layer to itself.
const WALL: u32 = 0;
const FILE: u32 = u32::MAX;

impl Cutter {
    pub(super) fn new(size_bytes: u64) -> Self {
        let (unbeaten, lonely) = Default::default();
        Self { size_bytes, count: 0, total: 0, last: None, unbeaten, lonely }
    }

    pub(super) fn push(&mut self, place: &Place<'_>) {
        let size = if let Kind::File { size } = place.kind { *size } else { 0 };
        let bytes = LINE_BYTES + size.next_multiple_of(LINE_BYTES);
        let merit = self.merit(place, bytes);
        let start = self.total;
        while let Some(mut beaten) = self.unbeaten.pop_if(|last| last.merit > merit) {
            beaten.reach = beaten.reach.min(start - beaten.start);
            self.keep(beaten);
        }
        let reach = self.unbeaten.last().map_or(start, |better| start - better.start);
        self.unbeaten.push(Candidate { number: self.count, start, merit, reach });
        self.count += 1;
        self.total = self.total.saturating_add(bytes);
        self.last = Some((place.group, bytes));
    }

    fn merit(&self, place: &Place<'_>, bytes: u64) -> Merit {
        let hash = Digest::of(place.path.as_bytes());
        let hash = hash.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
        let is_wall = self.last.is_some_and(|(group, before)| {
            group != place.group || before.max(bytes) > self.size_bytes
        });
        if is_wall {
            return (WALL, hash);
        }
        let depth = u32::try_from(place.path.components().count()).unwrap_or(FILE - 1);
        let is_directory = *place.kind == Kind::Directory;
        (if is_directory { depth.clamp(1, FILE - 1) } else { FILE }, hash)
    }

    fn keep(&mut self, mut candidate: Candidate) {
        if candidate.merit.0 == WALL {
            candidate.reach = u64::MAX;
        }
        if candidate.number > 0 && candidate.reach >= self.size_bytes / 2 {
            self.lonely.push(candidate);
        }
    }

    /// Numbers of the places before which a layer begins, in order; not the first.
    pub(super) fn cuts(mut self, layers_max: usize) -> Vec<usize> {
        if self.total < self.size_bytes || layers_max < 2 {
            return Vec::new();
        }
        for mut candidate in std::mem::take(&mut self.unbeaten) {
            candidate.reach = candidate.reach.min(self.total - candidate.start);
            self.keep(candidate);
        }
        // Those that stand alone in the widest neighbourhood stay.
        self.lonely.sort_by_key(|one| (std::cmp::Reverse(one.reach), one.merit, one.number));
        self.lonely.truncate(layers_max - 1);
        let mut cuts: Vec<usize> = self.lonely.iter().map(|one| one.number).collect();
        cuts.sort_unstable();
        cuts
    }
}

/// Says which layer each place goes to.
pub(super) struct Layers {
    cuts: Vec<usize>,
    /// Of each group, the number of the next place.
    next: Vec<usize>,
}

impl Layers {
    /// Of so many places in each group.
    pub(super) fn new(cuts: Vec<usize>, counts: &[usize]) -> Self {
        let mut first = 0;
        let next = counts.iter().map(|count| {
            first += count;
            first - count
        });
        Self { cuts, next: next.collect() }
    }

    /// How many layers there are.
    pub(super) fn count(&self) -> usize {
        self.cuts.len() + 1
    }

    /// The layer of the next place of a group, bottom first.
    pub(super) fn of_next(&mut self, group: usize) -> usize {
        let number = self.next[group];
        self.next[group] += 1;
        self.cuts.partition_point(|cut| *cut <= number)
    }
}
