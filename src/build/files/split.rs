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

/// Every line of a layer, as far as cutting goes.
pub(super) struct Line<'a> {
    pub(super) path: &'a TreePath,
    pub(super) role: Role<'a>,
}

/// What a line is to the layers that it may go to.
#[derive(Clone, Copy)]
pub(super) enum Role<'a> {
    /// It goes to one of them.
    Put(&'a Kind),
    /// Another name of the file on a line before, and goes with it.
    Link(usize),
    /// A directory that stands wherever something below it does, and for nothing else.
    Above,
    /// It takes something of the base away, and so comes before all that is put.
    Mark,
}

/// Patterns that say which paths have layers of their own.
pub(super) struct Groups(Vec<PatternSet>);

/// Lines before which there may be a cut.
struct Place<'a> {
    line: usize,
    path: &'a TreePath,
    group: usize,
    is_directory: bool,
    bytes: u64,
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

    /// 0 for what is in none.
    fn of_path(&self, path: &TreePath) -> usize {
        let found = self.0.iter().position(|patterns| patterns.matches(path.as_bytes()));
        found.map_or(0, |index| index + 1)
    }
}

/// The lines of each layer, in their order, bottom layer first; `lines` are in path order, and so is what comes of
/// them. A line of a directory is in every layer with something below it, so that none changes it. One layer
/// with everything when it is not worth while to cut.
pub(super) fn divide(lines: &[Line<'_>], split: &Split, groups: &Groups) -> Vec<Vec<usize>> {
    let has_marks = lines.iter().any(|line| matches!(line.role, Role::Mark));
    let mut places = places(lines, groups);
    places.sort_by_key(|place| (place.group, place.line));
    let layers_max = split.layers_max.saturating_sub(usize::from(has_marks));
    let cuts = cuts(&places, split.size_bytes, layers_max);
    if cuts.is_empty() {
        return vec![(0..lines.len()).collect()];
    }
    let first = usize::from(has_marks);
    let mut layer_of = vec![0; lines.len()];
    for (index, place) in places.iter().enumerate() {
        layer_of[place.line] = first + cuts.partition_point(|cut| *cut <= index);
    }
    for (index, line) in lines.iter().enumerate() {
        if let Role::Link(file) = line.role {
            layer_of[index] = layer_of[file];
        }
    }
    gather(lines, &layer_of, first + cuts.len() + 1)
}

fn places<'a>(lines: &[Line<'a>], groups: &Groups) -> Vec<Place<'a>> {
    let place = |(line, Line { path, role }): (usize, &Line<'a>)| {
        let Role::Put(kind) = role else { return None };
        let size = if let Kind::File { size } = kind { *size } else { 0 };
        let bytes = LINE_BYTES + size.next_multiple_of(LINE_BYTES);
        let (group, is_directory) = (groups.of_path(path), **kind == Kind::Directory);
        Some(Place { line, path, group, is_directory, bytes })
    };
    lines.iter().enumerate().filter_map(place).collect()
}

/// Places before which a layer begins, in order; not the first.
fn cuts(places: &[Place<'_>], size_bytes: u64, layers_max: usize) -> Vec<usize> {
    let mut starts = Vec::with_capacity(places.len() + 1);
    let mut total = 0_u64;
    for place in places {
        starts.push(total);
        total = total.saturating_add(place.bytes);
    }
    starts.push(total);
    if total < size_bytes || layers_max < 2 {
        return Vec::new();
    }
    let merits = merits(places, size_bytes);
    let reach = reach(&starts, &merits);
    let mut cuts: Vec<usize> =
        (1..places.len()).filter(|index| reach[*index] >= size_bytes / 2).collect();
    // Those that stand alone in the widest neighbourhood stay.
    cuts.sort_by_key(|index| (std::cmp::Reverse(reach[*index]), merits[*index]));
    cuts.truncate(layers_max - 1);
    cuts.sort_unstable();
    cuts
}

fn merits(places: &[Place<'_>], size_bytes: u64) -> Vec<Merit> {
    const WALL: u32 = 0;
    const FILE: u32 = u32::MAX;
    let is_wall = |index: usize| {
        let (before, after) = (&places[index - 1], &places[index]);
        before.group != after.group || before.bytes.max(after.bytes) > size_bytes
    };
    let merit = |(index, place): (usize, &Place<'_>)| {
        let hash = Digest::of(place.path.as_bytes());
        let hash = hash.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
        let depth = u32::try_from(place.path.components().count()).unwrap_or(FILE - 1);
        match place.is_directory {
            _ if index > 0 && is_wall(index) => (WALL, hash),
            true => (depth.clamp(1, FILE - 1), hash),
            false => (FILE, hash),
        }
    };
    places.iter().enumerate().map(merit).collect()
}

/// Bytes from each place to the nearest one that lies better, or to an end; without limit for a wall. `starts` has
/// the end as its last.
fn reach(starts: &[u64], merits: &[Merit]) -> Vec<u64> {
    let end = starts[merits.len()];
    let mut reach: Vec<u64> = starts.iter().map(|start| *start.min(&(end - start))).collect();
    // Places so far that nothing behind them beats; each lies better than the next.
    let mut unbeaten: Vec<usize> = Vec::new();
    for index in 0..merits.len() {
        while let Some(last) = unbeaten.pop_if(|last| merits[*last] > merits[index]) {
            reach[last] = reach[last].min(starts[index] - starts[last]);
        }
        if let Some(last) = unbeaten.last() {
            reach[index] = reach[index].min(starts[index] - starts[*last]);
        }
        unbeaten.push(index);
    }
    for (index, (level, _)) in merits.iter().enumerate() {
        if *level == 0 {
            reach[index] = u64::MAX;
        }
    }
    reach
}

/// Puts each line into its layer, and the directories above it too.
fn gather(lines: &[Line<'_>], layer_of: &[usize], layers: usize) -> Vec<Vec<usize>> {
    let mut gathered: Vec<Vec<usize>> = vec![Vec::new(); layers];
    let mut layers_of: Vec<Vec<usize>> = vec![Vec::new(); lines.len()];
    let mut above: Vec<usize> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        while above.pop_if(|last| !line.path.starts_with(lines[*last].path)).is_some() {}
        let layer = layer_of[index];
        let own = (!matches!(line.role, Role::Above)).then_some(index);
        // Where a directory is, those above it are.
        for line in own.into_iter().chain(above.iter().rev().copied()) {
            if layers_of[line].contains(&layer) {
                break;
            }
            layers_of[line].push(layer);
            gathered[layer].push(line);
        }
        if matches!(line.role, Role::Above | Role::Put(Kind::Directory)) {
            above.push(index);
        }
    }
    for lines in &mut gathered {
        lines.sort_unstable();
    }
    gathered
}
