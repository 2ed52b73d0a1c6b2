//! What an op has to have in the store before it is done.
//!
//! Knows which inputs are looked at; how they get here is the image's business.

use std::sync::OnceLock;

use super::{Machine, OpResult, Stack};
use crate::{
    build::{BuildError, files},
    graph::{FilesOp, OpId, RunOp},
};

impl Machine<'_> {
    /// Gets into the store what a files op looks at: sources always, the root file system below only
    /// where the op has to know what stands there.
    pub(super) fn fetch_for_files(&self, op: &FilesOp, below: &Stack) -> Result<(), BuildError> {
        if files::looks_at_base(op) {
            self.fetch(below)?;
        }
        op.sources().into_iter().try_for_each(|source| self.fetch_input(source))
    }

    /// Gets into the store what a process stands on and what it mounts.
    pub(super) fn fetch_for_run(&self, op: &RunOp, below: &Stack) -> Result<(), BuildError> {
        self.fetch(below)?;
        op.sources().into_iter().try_for_each(|source| self.fetch_input(source))
    }

    pub(super) fn fetch_input(&self, input: OpId) -> Result<(), BuildError> {
        // What an op adds from other machines has an id beyond those of the graph, and is here already.
        match self.results.get(input.index()).and_then(OnceLock::get) {
            Some(OpResult::Stack(stack)) => self.fetch(stack),
            Some(OpResult::Layers { .. }) => self.fetch(&self.stack(input)),
            Some(OpResult::Context(_) | OpResult::Files(_) | OpResult::Stale) | None => Ok(()),
        }
    }

    /// Gets the base's layers into the store, once.
    pub(super) fn fetch(&self, stack: &Stack) -> Result<(), BuildError> {
        stack.base.as_ref().map_or(Ok(()), |base| base.fetch(self.workshop))
    }
}
