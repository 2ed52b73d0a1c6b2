//! What a build leaves: the image, and how much of it was new.

use std::time::Duration;

use crate::{
    dockerfile::{Lowered, Warning},
    image::Image,
    oci::{DiffId, HistoryEntry, ImageConfig, Platform},
};

/// A built image; named nowhere yet.
#[derive(Clone, Debug, Default)]
pub struct Built {
    /// One image a platform, in the order asked for.
    pub images: Vec<(Platform, Image)>,
    /// How many of each image's layers, from the bottom, are its base's.
    pub base_layers: Vec<usize>,
    /// `SOURCE_DATE_EPOCH` in force; of the last platform, should they differ.
    pub epoch: Option<i64>,
    /// Steps whose result was known.
    pub cached: usize,
    /// Steps in all.
    pub steps: usize,
    /// What the build checks found, each once.
    pub warnings: Vec<Warning>,
    /// What the rules of our own found, each once.
    pub advice: Vec<Warning>,
    /// `--build-arg`s that no `ARG` asked for.
    pub unused_args: Vec<String>,
    /// The stages of the Dockerfile, as `--no-cache-filter` names them.
    pub stages: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

/// The config of a finished image: times and layers filled in, history and layers in agreement. `steps` has how many
/// layers each step on the base made, bottom first.
pub(crate) fn complete(
    lowered: &Lowered,
    (layers, steps): (&[DiffId], &[usize]),
    seconds: i64,
) -> ImageConfig {
    let mut config = lowered.config.clone();
    tell_parts(&mut config.history, lowered.history_below, steps);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string();
    for entry in config.history.iter_mut().skip(lowered.history_below) {
        entry.created = Some(time.clone());
    }
    agree(&mut config.history, lowered.history_below, layers.len());
    config.created = Some(time);
    config.rootfs.diff_ids = layers.to_vec();
    config
}

/// An instruction with several layers has as many entries, each of which says which part it is.
fn tell_parts(history: &mut Vec<HistoryEntry>, below: usize, steps: &[usize]) {
    let mut steps = steps.iter().rev();
    for index in (below..history.len()).rev() {
        if history[index].empty_layer {
            continue;
        }
        let Some(&parts) = steps.next() else { return };
        if parts < 2 {
            continue;
        }
        let whole = &history[index];
        let part = |number: usize| {
            let created_by = format!("{}, part {number} of {parts}", whole.created_by);
            HistoryEntry { created_by, ..whole.clone() }
        };
        let told: Vec<HistoryEntry> = (1..=parts).map(part).collect();
        history.splice(index..=index, told);
    }
}

/// A base whose history tells of fewer layers than it has gets entries for the rest, and one that
/// tells of more loses the surplus, as BuildKit's exporter does (`normalizeLayersAndHistory`).
fn agree(history: &mut Vec<HistoryEntry>, below: usize, layers: usize) {
    let told = history.iter().filter(|entry| !entry.empty_layer).count();
    for _ in told..layers {
        history.insert(below, HistoryEntry::default());
    }
    for _ in layers..told {
        if let Some(surplus) = history.iter().position(|entry| !entry.empty_layer) {
            history[surplus].empty_layer = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_an_instruction_has_its_entry() {
        let entry = |created_by: &str| HistoryEntry {
            created_by: created_by.to_owned(),
            empty_layer: created_by == "ENV",
            ..HistoryEntry::default()
        };
        let mut history = ["base", "COPY", "ENV", "RUN", "ADD"].map(entry).to_vec();
        tell_parts(&mut history, 1, &[2, 1, 3]);
        let told: Vec<&str> = history.iter().map(|entry| entry.created_by.as_str()).collect();
        let wanted = ["base", "COPY, part 1 of 2", "COPY, part 2 of 2", "ENV", "RUN"];
        assert_eq!(told[..5], wanted);
        assert_eq!(told[5..], [1, 2, 3].map(|part| format!("ADD, part {part} of 3")));
    }

    #[test]
    fn history_and_layers_agree() {
        let entry = |empty_layer| HistoryEntry { empty_layer, ..HistoryEntry::default() };
        for (mut history, below, layers) in [
            (vec![], 0, 2),
            (vec![entry(true), entry(false)], 1, 3),
            (vec![entry(false), entry(false)], 2, 1),
        ] {
            agree(&mut history, below, layers);
            assert_eq!(history.iter().filter(|entry| !entry.empty_layer).count(), layers);
        }
    }
}
