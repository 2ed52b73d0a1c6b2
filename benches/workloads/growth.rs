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
    pub(crate) sizes: [usize; 4],
    /// Rounds that count, of which a round 0 is no part: what is measured cold needs no warm-up.
    pub(crate) rounds: RangeInclusive<usize>,
    pub(crate) fill: fn(&Place<'_>, &mut Contest, usize) -> Outcome,
}

impl Curve {
    /// Inodes that a size needs on its ground.
    pub(crate) fn inodes(&self, size: usize) -> u64 {
        if self.unit == FILES { size as u64 } else { 0 }
    }
}

const FILES: &str = "files";
const COLD: RangeInclusive<usize> = 1..=1;
const WARM: RangeInclusive<usize> = 0..=3;

const fn curve(
    (name, what): (&'static str, &'static str),
    (unit, sizes): (&'static str, [usize; 4]),
    rounds: RangeInclusive<usize>,
    fill: fn(&Place<'_>, &mut Contest, usize) -> Outcome,
) -> Curve {
    Curve { name, what, unit, sizes, rounds, fill }
}

pub(crate) const ALL: [Curve; 5] = [
    curve(
        ("files", "COPY of so many small files, empty store; floor: tar | sha256sum"),
        (FILES, [1_000, 10_000, 100_000, 1_000_000]),
        COLD,
        files,
    ),
    curve(
        ("same", "the same, nothing changed; floor: find -printf"),
        (FILES, [1_000, 10_000, 100_000, 1_000_000]),
        WARM,
        same,
    ),
    curve(
        ("layer", "COPY of one file of so many MiB, empty store; floor: sha256sum"),
        ("MiB", [10, 100, 1 << 10, 10 << 10]),
        COLD,
        layer,
    ),
    curve(
        (
            "images",
            "so many images on one shared stage, one invocation; floor: overlay + unshare + chroot + sh for each",
        ),
        ("images", [1, 4, 16, 64]),
        WARM,
        steps::targets,
    ),
    curve(
        (
            "steps",
            "so many RUN steps on one another, each of which changes a file; floor: overlay + unshare + chroot + sh for each",
        ),
        ("steps", [100, 300, 1_000, 3_000]),
        COLD,
        steps::many,
    ),
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
