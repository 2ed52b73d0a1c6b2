//! What rules of our own find in the files of steps, and in the Dockerfile.
//!
//! Knows when to look; what is looked for is the business of `files::advice`.

use super::{Local, Machine, Stack};
use crate::{
    build::{BuildError, files, strict},
    dockerfile::Warning,
    graph::OpId,
    oci::DiffId,
};

impl Machine<'_> {
    /// Looks for what rules of our own ask of the files of a step that made `layers`.
    pub(super) fn look(
        &self,
        id: OpId,
        below: &Stack,
        local: Option<&Local>,
        layers: &[DiffId],
    ) -> Result<(), BuildError> {
        let (Some(asked), Some(local)) = (self.lowered.file_rules.get(&id), local) else {
            return Ok(());
        };
        self.fetch_for_files(&local.op, below)?;
        let root_of = |id: OpId| self.root_in(Some(local), id);
        let store = &self.workshop.store;
        let mut found = files::advice(store, &local.op, (&below.layers, layers), &root_of)?;
        found.retain(|(rule, _)| asked.rules.contains(rule));
        let location = || asked.location.clone();
        let warning = |(rule, message)| Warning { rule, message, location: location() };
        let found: Vec<Warning> = found.into_iter().map(warning).collect();
        if self.request.strict && !found.is_empty() {
            return Err(strict::refused(&found));
        }
        self.advice.lock().expect("no holder panics").extend(found);
        Ok(())
    }

    /// What the rules of our own found, in the Dockerfile and in files.
    pub(super) fn advice(&self) -> Vec<Warning> {
        let of_files = self.advice.lock().expect("no holder panics");
        self.lowered.advice.iter().chain(of_files.iter()).cloned().collect()
    }
}
