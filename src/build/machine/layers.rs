//! How many layers an op may become.
//!
//! Knows how much room an image has; where a tree is cut is the business of `files::split`.

use super::{Machine, Stack};
use crate::{
    graph::{FileAction, Op, OpId},
    limits::{IMAGE_LAYERS_MAX, Split},
};

impl Machine<'_> {
    /// How the op is split on top of `below`: as asked for, within what an image may have. `None` when it is one layer.
    pub(super) fn split_of(&self, id: OpId, below: &Stack) -> Option<Split> {
        let split = self.request.split.as_ref()?;
        let Op::Files(files) = &self.lowered.graph.node(id).op else { return None };
        files.actions.iter().find(|action| matches!(action, FileAction::Copy { .. }))?;
        let taken = below.layers.len() + self.steps_above(id);
        let layers_max = split.layers_max.min(IMAGE_LAYERS_MAX.saturating_sub(taken));
        (layers_max > 1).then(|| Split { layers_max, ..split.clone() })
    }

    /// Most steps that stand on an op.
    fn steps_above(&self, id: OpId) -> usize {
        let mut above = vec![0; self.lowered.graph.len()];
        for other in self.lowered.graph.ids().rev() {
            let Some(base) = self.lowered.graph.node(other).op.base() else { continue };
            above[base.index()] = above[base.index()].max(above[other.index()] + 1);
        }
        above[id.index()]
    }
}
