//! Why an op is done again, told by what was made at its place last.
//!
//! Knows places and keys; what differs between two keys is for `reason` to say.

use super::{Machine, OpResult};
use crate::{
    build::{BuildError, files::Key, reason},
    graph::{Difference, Op, OpId},
};

impl Machine<'_> {
    /// What an op stands on that would have to be made first: its own key is not known before.
    pub(super) fn stale_input(&self, id: OpId) -> Option<Difference> {
        let inputs = self.lowered.graph.node(id).op.inputs();
        let stale =
            |input: &&OpId| matches!(self.results[input.index()].get(), Some(OpResult::Stale));
        let input = *inputs.iter().find(stale)?;
        let component = if inputs.first() == Some(&input) { "base" } else { "source" };
        let words = format!("stands on {}", self.step_words(input));
        Some(Difference { component: component.to_owned(), words })
    }

    /// An op as a reader of the Dockerfile knows it.
    pub(super) fn step_words(&self, id: OpId) -> String {
        let node = self.lowered.graph.node(id);
        match (&node.op, self.steps[id.index()]) {
            (Op::Image { name, .. }, _) => format!("image {name}"),
            (_, Some(step)) => format!("[{step}/{}] {}", self.step_count(), node.place.title),
            (_, None) => node.place.title.clone(),
        }
    }

    /// Where an op stands, to find what was made there last.
    pub(super) fn site(&self, id: OpId) -> String {
        format!("{}#{}#{}", self.request.name, self.lowered.config.platform(), self.number(id))
    }

    pub(super) fn site_of_any_platform(&self, id: OpId) -> String {
        format!("{}##{}", self.request.name, self.number(id))
    }

    pub(super) fn reason(&self, id: OpId, base: OpId, key: &Key) -> Result<Difference, BuildError> {
        let store = &self.workshop.store;
        let of_cache =
            |words: &str| Ok(Difference { component: "cache".to_owned(), words: words.to_owned() });
        let last = match store.last_at(&self.site(id))? {
            Some(last) => Some(last),
            None => store.last_at(&self.site_of_any_platform(id))?,
        };
        let Some(last) = last else { return of_cache("not built before") };
        match reason::difference(store, (key, &last), |part| self.origin(id, base, part)) {
            Some(difference) => Ok(difference),
            None => of_cache("its layer is gone from the store"),
        }
    }

    /// What a part of an op's key comes from, as a reader of the Dockerfile knows it.
    fn origin(&self, id: OpId, base: OpId, part: &str) -> Option<String> {
        let graph = &self.lowered.graph;
        if part == "base" {
            let words = self.step_words(base);
            return Some(match graph.node(base).op {
                Op::Image { .. } => format!("base {words} changed"),
                Op::Scratch | Op::Context { .. } | Op::Files(_) | Op::Run(_) => {
                    format!("stands on {words}, which changed")
                }
            });
        }
        let (from, verb) = match &graph.node(id).op {
            Op::Files(files) => (files.origin(part.strip_prefix("source ")?)?, "comes from"),
            Op::Run(run) => (run.origin(part.strip_prefix("mount ")?)?, "shows other files of"),
            Op::Scratch | Op::Image { .. } | Op::Context { .. } => return None,
        };
        let after = if matches!(graph.node(id).op, Op::Files(_)) { ", which changed" } else { "" };
        Some(format!("{part} {verb} {}{after}", self.step_words(from)))
    }
}
