//! The layers that an op's root file system is made of.
//!
//! Knows how results stand on one another; knows nothing of what layers hold.

use std::sync::Arc;

use super::{Machine, OpResult};
use crate::{
    build::{bases::Base, files::Root},
    graph::{Op, OpId},
    oci::{ChainId, DiffId, Platform},
};

/// Layers that stand on one another, and the base image that the lowest of them came from.
#[derive(Clone, Default)]
pub(super) struct Stack {
    /// Bottom first.
    pub(super) layers: Vec<DiffId>,
    /// What names them together.
    pub(super) chain: Option<ChainId>,
    pub(super) base: Option<Arc<Base>>,
    /// How many layers each step on the base made, bottom first.
    pub(super) steps: Vec<usize>,
}

impl Stack {
    /// The layers of a base image.
    pub(super) fn of(layers: Vec<DiffId>, base: Arc<Base>) -> Self {
        Self { chain: ChainId::of(&layers), layers, base: Some(base), steps: Vec::new() }
    }
}

impl Machine<'_> {
    /// All layers of an op's result, which is a root file system.
    pub(super) fn stack(&self, id: OpId) -> Stack {
        let mut above: Vec<&[DiffId]> = Vec::new();
        let mut top = None;
        let mut at = id;
        loop {
            match self.result(at) {
                OpResult::Layers { below, layers, chain } => {
                    top.get_or_insert(*chain);
                    above.push(layers);
                    at = *below;
                }
                OpResult::Stack(stack) => {
                    above.push(&stack.layers);
                    above.reverse();
                    let steps = above[1..].iter().map(|layers| layers.len());
                    return Stack {
                        layers: above.concat(),
                        chain: top.or(stack.chain),
                        base: stack.base.clone(),
                        steps: stack.steps.iter().copied().chain(steps).collect(),
                    };
                }
                OpResult::Context(_) | OpResult::Files(_) | OpResult::Stale => {
                    unreachable!(
                        "the front end builds on root file systems, and stale inputs end before"
                    )
                }
            }
        }
    }

    /// The chain of layers, at least one, on an op's result.
    pub(super) fn chain_on(&self, below: OpId, layers: &[DiffId]) -> ChainId {
        let chain = match self.result(below) {
            OpResult::Layers { chain, .. } => Some(*chain),
            OpResult::Stack(stack) => stack.chain,
            OpResult::Context(_) | OpResult::Files(_) | OpResult::Stale => None,
        };
        let put = |chain: Option<ChainId>, layer: &DiffId| {
            Some(chain.map_or_else(|| ChainId::bottom(*layer), |chain| chain.push(*layer)))
        };
        layers.iter().fold(chain, put).expect("a step makes a layer")
    }

    /// Where sources of copies and mounts start.
    pub(super) fn root(&self, id: OpId) -> Root<'_> {
        match self.result(id) {
            OpResult::Stack(stack) => Root::Layers(&stack.layers),
            OpResult::Layers { .. } => {
                Root::Layers(&self.sources[id.index()].get_or_init(|| self.stack(id)).layers)
            }
            OpResult::Context(context) => Root::Context(context),
            OpResult::Stale => {
                unreachable!("an op with a stale input ends before its sources are opened")
            }
            OpResult::Files(layer) => Root::Files(*layer),
        }
    }

    /// What the root file system that an op adds to runs on. One for this machine is the same whatever the image is for.
    pub(super) fn platform_of(&self, id: OpId) -> Platform {
        let graph = &self.lowered.graph;
        let below = |at: &OpId| graph.node(*at).op.base();
        let lowest = std::iter::successors(Some(id), below).last();
        match lowest.map(|lowest| &graph.node(lowest).op) {
            Some(Op::Image { platform, .. }) => platform.clone().normalized(),
            _ => self.lowered.config.platform(),
        }
    }

    pub(super) fn result(&self, id: OpId) -> &OpResult {
        self.results[id.index()].get().expect("inputs are done before")
    }
}
