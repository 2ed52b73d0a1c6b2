//! What is asked of `files` and `process` for an op: its key, its layers, its process.
//!
//! Knows where each of its inputs is; when it is done is for the machine to say.

use super::{Local, Machine, Stack, StepOp};
use crate::{
    build::{
        BuildError, LATEST_MTIME,
        files::{self, Clock, Key, Making, Parting, Root},
        process::{self, By},
    },
    graph::{OpId, RunOp},
    store::Made,
    tree::Timestamp,
};

impl Machine<'_> {
    pub(super) fn key(
        &self,
        id: OpId,
        op: &StepOp<'_>,
        below: &Stack,
        local: Option<&Local>,
    ) -> Result<Key, BuildError> {
        let mut key = match op {
            StepOp::Files(files) => {
                let root_of = |id: OpId| self.root_in(local, id);
                let files = local.map_or(*files, |local| &local.op);
                files::key(&self.workshop.store, files, below.chain, &root_of)?
            }
            StepOp::Run(run) => {
                process::key(&self.task(id, run, below, &|id| self.root(id)), By::Definition)?
            }
        };
        if let Some(split) = self.split_of(id, below) {
            key.tree.add("layers", split);
        }
        self.lead(id, &mut key.tree);
        Ok(key)
    }

    pub(super) fn make_files(
        &self,
        id: OpId,
        local: &Local,
        below: &Stack,
        key: &Key,
    ) -> Result<Made, BuildError> {
        let epoch = self.epoch.map(|seconds| Timestamp { seconds, nanos: 0 });
        let clock = Clock { now: LATEST_MTIME, epoch, commit: local.commit };
        let root_of = |id: OpId| self.root_in(Some(local), id);
        let store = &self.workshop.store;
        let last = store.last_at(&self.site(id))?;
        let earlier = last.and_then(|last| files::Earlier::find(store, key, &last));
        let split = self.split_of(id, below);
        let parting = split.as_ref().map(|split| Parting { split, cache: self.request.cache });
        let selections = &key.selections;
        let making = Making { clock, selections, earlier: earlier.as_ref(), parting };
        let made = files::make_layers(store, &local.op, &below.layers, &root_of, making)?;
        // What was copied must be what the key says, or a later build would find it there.
        for selection in &key.selections {
            // What was fetched is what it is.
            let Root::Context(context) = self.root_in(Some(local), selection.from) else {
                continue;
            };
            if !selection.is_current(store, context)? {
                return Err(files::FilesError::Changed.into());
            }
        }
        Ok(made)
    }

    pub(super) fn root_in<'r>(&'r self, local: Option<&'r Local>, id: OpId) -> Root<'r> {
        local.and_then(|local| local.root(id)).unwrap_or_else(|| self.root(id))
    }

    pub(super) fn task<'t>(
        &'t self,
        id: OpId,
        run: &'t RunOp,
        below: &'t Stack,
        root_of: &'t dyn Fn(OpId) -> Root<'t>,
    ) -> process::Task<'t> {
        let (workshop, image, step) = (self.workshop, self.request.name.as_str(), self.number(id));
        let (chain, below, request) = (below.chain, below.layers.as_slice(), self.request);
        let (platform, shown) = (self.platform_told(), &self.shown);
        let built_for = self.lowered.config.platform();
        process::Task {
            workshop,
            image,
            platform,
            built_for,
            step,
            run,
            below,
            chain,
            root_of,
            request,
            shown,
        }
    }

    /// The platform in events, when there are several.
    pub(super) fn platform_told(&self) -> Option<String> {
        let several = self.request.platforms.len() > 1;
        several.then(|| self.lowered.config.platform().to_string())
    }
}
