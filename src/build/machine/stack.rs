//! The layers that an op's root file system is made of.
//!
//! Knows how results stand on one another; knows nothing of what layers hold.

use std::sync::Arc;

use super::{Machine, OpResult};
use crate::{
    build::{bases::Base, files::Root},
    graph::OpId,
    oci::{ChainId, DiffId},
};

/// Layers that stand on one another, and the base image that the lowest of them came from.
#[derive(Clone, Default)]
pub(super) struct Stack {
    /// Bottom first.
    pub(super) layers: Vec<DiffId>,
    /// What names them together.
    pub(super) chain: Option<ChainId>,
    pub(super) base: Option<Arc<Base>>,
}

impl Stack {
    /// The layers of a base image.
    pub(super) fn of(layers: Vec<DiffId>, base: Arc<Base>) -> Self {
        Self { chain: ChainId::of(&layers), layers, base: Some(base) }
    }
}

impl Machine<'_> {
    /// All layers of an op's result, which is a root file system.
    pub(super) fn stack(&self, id: OpId) -> Stack {
        let mut above = Vec::new();
        let mut top = None;
        let mut at = id;
        loop {
            match self.result(at) {
                OpResult::Layer { below, layer, chain } => {
                    top.get_or_insert(*chain);
                    above.push(*layer);
                    at = *below;
                }
                OpResult::Stack(stack) => {
                    let mut layers = Vec::with_capacity(stack.layers.len() + above.len());
                    layers.extend_from_slice(&stack.layers);
                    layers.extend(above.iter().rev());
                    let base = stack.base.clone();
                    return Stack { layers, chain: top.or(stack.chain), base };
                }
                OpResult::Context(_) | OpResult::Files(_) | OpResult::Stale => {
                    unreachable!(
                        "the front end builds on root file systems, and stale inputs end before"
                    )
                }
            }
        }
    }

    /// The chain of a layer on an op's result.
    pub(super) fn chain_on(&self, below: OpId, layer: DiffId) -> ChainId {
        let chain = match self.result(below) {
            OpResult::Layer { chain, .. } => Some(*chain),
            OpResult::Stack(stack) => stack.chain,
            OpResult::Context(_) | OpResult::Files(_) | OpResult::Stale => None,
        };
        chain.map_or_else(|| ChainId::bottom(layer), |chain| chain.push(layer))
    }

    /// Where sources of copies and mounts start.
    pub(super) fn root(&self, id: OpId) -> Root<'_> {
        match self.result(id) {
            OpResult::Stack(stack) => Root::Layers(&stack.layers),
            OpResult::Layer { .. } => {
                Root::Layers(&self.sources[id.index()].get_or_init(|| self.stack(id)).layers)
            }
            OpResult::Context(context) => Root::Context(context),
            OpResult::Stale => {
                unreachable!("an op with a stale input ends before its sources are opened")
            }
            OpResult::Files(layer) => Root::Files(*layer),
        }
    }

    fn result(&self, id: OpId) -> &OpResult {
        self.results[id.index()].get().expect("inputs are done before")
    }
}
