//! How time and memory grow: the same workload at sizes of which each is some times the one before.

use std::ops::RangeInclusive;

use crate::{
    cases::{self, Outcome, Place, WALK, rebuilds, unchanged, with_large, with_tree},
    contest::Contest,
    steps,
};

/// One line of points.
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// What the sizes count.
    pub(crate) unit: &'static str,
    /// All sizes; which of them are measured is a matter of the options.
    pub(crate) sizes: &'static [usize],
    /// Inodes that a size needs on its ground.
    pub(crate) files: fn(usize) -> u64,
    /// Rounds that count, of which a round 0 is no part: what is measured cold needs no warm-up.
    pub(crate) rounds: RangeInclusive<usize>,
    pub(crate) fill: fn(&Place<'_>, &mut Contest, usize) -> Outcome,
}

pub(crate) const ALL: [Curve; 5] = [
    Curve {
        name: "files",
        what: "COPY of so many small files, empty store; floor: tar | sha256sum",
        unit: "files",
        sizes: &[1_000, 10_000, 100_000, 1_000_000],
        files: |size| size as u64,
        rounds: 1..=1,
        fill: files,
    },
    Curve {
        name: "same",
        what: "the same, nothing changed; floor: find -printf",
        unit: "files",
        sizes: &[1_000, 10_000, 100_000, 1_000_000],
        files: |size| size as u64,
        rounds: 0..=3,
        fill: same,
    },
    Curve {
        name: "layer",
        what: "COPY of one file of so many MiB, empty store; floor: sha256sum",
        unit: "MiB",
        sizes: &[10, 100, 1 << 10, 10 << 10],
        files: |_| 0,
        rounds: 1..=1,
        fill: layer,
    },
    Curve {
        name: "images",
        what: "so many images on one shared stage, one invocation",
        unit: "images",
        sizes: &[1, 4, 16, 64],
        files: |_| 0,
        rounds: 0..=3,
        fill: steps::targets,
    },
    Curve {
        name: "steps",
        what: "so many RUN steps on one another, each of which changes a file",
        unit: "steps",
        sizes: &[100, 300, 1_000, 3_000],
        files: |_| 0,
        rounds: 1..=1,
        fill: steps::many,
    },
];

/// Bytes of a small file.
const FILE_BYTES: usize = 200;

fn files(place: &Place<'_>, contest: &mut Contest, size: usize) -> Outcome {
    let context = with_tree(place.ground, size, FILE_BYTES)?;
    cases::cold(place, contest, &context);
    place.floor(contest, &context, "tar -cf - tree | sha256sum");
    Ok(())
}

fn same(place: &Place<'_>, contest: &mut Contest, size: usize) -> Outcome {
    let context = with_tree(place.ground, size, FILE_BYTES)?;
    rebuilds(place, contest, (&place.settings.bases.busybox, &context, unchanged))?;
    place.floor(contest, &context, WALK);
    Ok(())
}

fn layer(place: &Place<'_>, contest: &mut Contest, size: usize) -> Outcome {
    let context = with_large(place.ground, size)?;
    cases::cold(place, contest, &context);
    place.floor(contest, &context, "sha256sum large");
    Ok(())
}
