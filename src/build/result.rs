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
    /// How long it took.
    pub duration: Duration,
}

/// The config of a finished image: times and layers filled in, history and layers in agreement.
pub(crate) fn complete(lowered: &Lowered, layers: &[DiffId], seconds: i64) -> ImageConfig {
    let mut config = lowered.config.clone();
    let time = jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string();
    for entry in config.history.iter_mut().skip(lowered.history_below) {
        entry.created = Some(time.clone());
    }
    agree(&mut config.history, lowered.history_below, layers.len());
    config.created = Some(time);
    config.rootfs.diff_ids = layers.to_vec();
    config
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
