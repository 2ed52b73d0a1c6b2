//! The second look-up: a process that finds what it found before was done before, whatever that was made by.
//!
//! Knows that a mount shows a part of a stage, which stays as it is while the rest of the stage changes.

use super::{Machine, Mode, Stack, StepOp, lookup::Lookup};
use crate::{
    build::{
        BuildError,
        files::Key,
        mounts,
        process::{self, By},
        reason,
    },
    graph::{CacheKey, KeyTree, OpId},
    oci::DiffId,
    store::CacheRecord,
};

impl Machine<'_> {
    /// The earlier result of a process that found the same, which is kept under the step's key from now on.
    pub(super) fn rejoin(
        &self,
        id: OpId,
        op: &StepOp<'_>,
        below: &Stack,
        key: &Key,
    ) -> Result<Option<Vec<DiffId>>, BuildError> {
        // To look at what mounts show may take a fetch, which an explanation is not to do.
        if self.mode == Mode::Explain {
            return Ok(None);
        }
        let store = &self.workshop.store;
        let Some(by_content) = self.key_by_content(id, op, below)? else { return Ok(None) };
        let Lookup::Found(known) = self.look_up(id, by_content)? else { return Ok(None) };
        let Some(earlier) = store.cached(by_content)? else { return Ok(None) };
        let (tree, selections) = (key.tree.clone(), reason::keep(store, key));
        let record = CacheRecord { tree, selections, site: self.site(id), ..earlier };
        self.keep_record(id, (key.tree.key(), None), &record)?;
        Ok(Some(known))
    }

    /// Keeps what a step made, under all its keys.
    pub(super) fn keep_record(
        &self,
        id: OpId,
        (key, by_content): (CacheKey, Option<CacheKey>),
        record: &CacheRecord,
    ) -> Result<(), BuildError> {
        let store = &self.workshop.store;
        if let Some(by_content) = by_content {
            store.put_cached(by_content, record)?;
        }
        // The last one is what the next miss is explained by.
        store.put_cached(key, record)?;
        store.put_site(&self.site_of_any_platform(id), key);
        Ok(())
    }

    /// The key of a process to which stages count by what mounts show of them; `None` for one without such a mount.
    pub(super) fn key_by_content(
        &self,
        id: OpId,
        op: &StepOp<'_>,
        below: &Stack,
    ) -> Result<Option<CacheKey>, BuildError> {
        let StepOp::Run(run) = op else { return Ok(None) };
        let root_of = |id: OpId| self.root(id);
        let task = self.task(id, run, below, &root_of);
        if !mounts::show_stages(&task) {
            return Ok(None);
        }
        run.sources().into_iter().try_for_each(|source| self.fetch_input(source))?;
        let mut tree = process::key(&task, By::Content)?.tree;
        self.lead(id, &mut tree);
        Ok(Some(tree.key()))
    }

    /// What counts of every step.
    pub(super) fn lead(&self, id: OpId, tree: &mut KeyTree) {
        if let Some(epoch) = self.epoch {
            tree.lead("source date epoch", epoch);
        }
        tree.lead("platform", self.platform_of(id));
    }
}
