//! What the steps of the last build of an image left: taken down as a build ends, looked up to open a shell in one.
//!
//! Knows layers and places of a Dockerfile; whether the layers are still there is for who looks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::BuildError;
use crate::{
    graph::{OpGraph, OpId, Setting},
    oci::{DiffId, Digest, Platform},
    store::Store,
};

/// Namespace of the notes; the name is that of the image and the platform.
const NAMESPACE: &str = "steps";

/// The steps of the last build of an image for a platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// Each once, though many steps may have the same.
    settings: Vec<Setting>,
    steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// From 1, as progress shows it.
    pub number: usize,
    /// The instruction on one line, as progress shows it.
    pub title: String,
    /// Name of the stage, or its number.
    pub stage: String,
    /// First and last line in the Dockerfile, from 1; 0 for what the Dockerfile does not hold.
    pub lines: (usize, usize),
    /// Place among the settings.
    setting: usize,
    below: Below,
    /// Its own layers, bottom first; `None` when it was not done.
    own: Option<Vec<Hex>>,
}

/// What a step stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Below {
    /// Another step, by its number.
    Step(usize),
    /// The layers of a base, bottom first.
    Layers(Vec<Hex>),
}

/// A diff ID without its algorithm: digests that a note spells out are kept in the store while the note is, and what
/// steps left is to go with the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hex(String);

impl Hex {
    fn of(layer: DiffId) -> Self {
        Self(layer.0.hex())
    }

    fn parse(&self) -> Option<DiffId> {
        format!("sha256:{}", self.0).parse::<Digest>().ok().map(DiffId)
    }
}

impl Steps {
    /// Of the ops that have a number; `layers_of` are the layers that an op itself made or brought, bottom first.
    pub(super) fn of<'l>(
        graph: &OpGraph,
        numbers: &[Option<usize>],
        layers_of: impl Fn(OpId) -> Option<&'l [DiffId]>,
    ) -> Self {
        let mut steps = Self::default();
        for id in graph.ids() {
            let (node, Some(number)) = (graph.node(id), numbers[id.index()]) else { continue };
            let Some(base) = node.op.base() else { continue };
            let hex = |layers: &[DiffId]| layers.iter().copied().map(Hex::of).collect();
            let below = match numbers[base.index()] {
                Some(below) => Below::Step(below),
                None => Below::Layers(hex(layers_of(base).unwrap_or_default())),
            };
            if steps.settings.last() != Some(&*node.setting) {
                steps.settings.push(Setting::clone(&node.setting));
            }
            let own = layers_of(id).map(hex);
            let place = &node.place;
            steps.steps.push(Step {
                number,
                title: place.title.clone(),
                stage: place.stage.clone(),
                lines: place.lines,
                setting: steps.settings.len() - 1,
                below,
                own,
            });
        }
        steps
    }

    /// Notes them down for [`Steps::last`].
    pub(super) fn keep(
        &self,
        store: &Store,
        (image, platform): (&str, &Platform),
    ) -> Result<(), BuildError> {
        let json = serde_json::to_vec(self).expect("texts and numbers");
        let name = name(image, platform);
        // Most builds change nothing, and then nothing is to be written.
        match store.note(NAMESPACE, &name)? == Some(json.clone()) {
            true => Ok(()),
            false => Ok(store.put_note(NAMESPACE, &name, &json)?),
        }
    }

    /// Those of the last build of an image, by its name in progress; `None` when none is known.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn last(
        store: &Store,
        image: &str,
        platform: &Platform,
    ) -> Result<Option<Self>, BuildError> {
        let note = store.note(NAMESPACE, &name(image, platform))?;
        Ok(note.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// All of them, in order.
    #[must_use]
    pub fn all(&self) -> &[Step] {
        &self.steps
    }

    /// What a process would find at a step.
    #[must_use]
    pub fn setting(&self, step: &Step) -> Setting {
        self.settings.get(step.setting).cloned().unwrap_or_default()
    }

    /// The layers of a step, bottom first; `None` when it was not done.
    #[must_use]
    pub fn layers(&self, step: &Step) -> Option<Vec<DiffId>> {
        let by_number: BTreeMap<usize, &Step> =
            self.steps.iter().map(|step| (step.number, step)).collect();
        let mut layers = Vec::new();
        let mut at = step;
        loop {
            for layer in at.own.as_ref()?.iter().rev() {
                layers.push(layer.parse()?);
            }
            match &at.below {
                // Steps stand on earlier ones, or the list would have no end.
                Below::Step(number) => {
                    at = by_number.get(number).filter(|_| *number < at.number)?;
                }
                Below::Layers(below) => {
                    for layer in below.iter().rev() {
                        layers.push(layer.parse()?);
                    }
                    layers.reverse();
                    return Some(layers);
                }
            }
        }
    }
}

impl Step {
    /// Whether it was done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.own.is_some()
    }
}

fn name(image: &str, platform: &Platform) -> String {
    format!("{image}#{platform}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::graph::{FilesOp, Op, OpNode, Place};

    fn layer(text: &str) -> DiffId {
        DiffId(Digest::of(text.as_bytes()))
    }

    /// A base, two steps on it, and one of another stage on nothing.
    fn graph() -> OpGraph {
        let mut graph = OpGraph::default();
        let mut add = |op: Op, title: &str, cwd: &str| {
            let place = Place { title: title.to_owned(), ..Place::default() };
            let setting = Setting { cwd: cwd.to_owned(), ..Setting::default() };
            graph.add(OpNode { op, place, setting: Arc::new(setting) })
        };
        let files = |base| Op::Files(FilesOp { base, actions: Vec::new() });
        let platform = Platform::host();
        let base = add(Op::Image { name: "base".to_owned(), platform }, "FROM base", "");
        let one = add(files(base), "one", "/a");
        add(files(one), "two", "/a");
        let scratch = add(Op::Scratch, "FROM scratch", "");
        add(files(scratch), "three", "/b");
        graph
    }

    #[test]
    fn a_step_is_known_with_all_below_it_and_one_that_was_not_done_has_no_layers() {
        let graph = graph();
        let numbers = [None, Some(1), Some(2), None, Some(3)];
        let results = [
            Some(vec![layer("x"), layer("y")]),
            Some(vec![layer("1"), layer("2")]),
            None,
            Some(vec![]),
            Some(vec![layer("3")]),
        ];
        let steps = Steps::of(&graph, &numbers, |id| results[id.index()].as_deref());
        let json = serde_json::to_vec(&steps).unwrap();
        assert!(!String::from_utf8(json.clone()).unwrap().contains("sha256:"));
        let steps: Steps = serde_json::from_slice(&json).unwrap();
        let [one, two, three] = steps.all() else { panic!("{steps:?}") };
        let of_one = [&results[0], &results[1]].map(|layers| layers.as_deref().unwrap());
        assert_eq!(steps.layers(one).unwrap(), of_one.concat());
        assert_eq!((steps.layers(two), two.is_done()), (None, false));
        assert_eq!(steps.layers(three), results[4]);
        assert_eq!(steps.settings.len(), 2, "each once");
        assert_eq!((steps.setting(two).cwd, steps.setting(three).cwd), ("/a".into(), "/b".into()));
    }

    #[test]
    fn a_damaged_note_names_no_layers() {
        let step = |number, below| Step {
            number,
            title: String::new(),
            stage: String::new(),
            lines: (0, 0),
            setting: 7,
            below,
            own: Some(vec![Hex::of(layer("x"))]),
        };
        let steps = Steps {
            settings: Vec::new(),
            steps: vec![
                step(1, Below::Step(2)),
                step(2, Below::Step(1)),
                step(3, Below::Step(9)),
                step(4, Below::Layers(vec![Hex("../../x".to_owned())])),
            ],
        };
        assert!(steps.all().iter().all(|step| steps.layers(step).is_none()));
        assert_eq!(steps.setting(&steps.steps[0]), Setting::default());
    }
}
