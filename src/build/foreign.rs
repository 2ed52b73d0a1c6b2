//! Processes for another processor than this machine's: what runs them, or that nothing does. Knows no namespaces.

use super::{BuildError, Workshop};
use crate::{
    graph::{Op, OpGraph, Place},
    sandbox::{self, Ability, Emulation, Emulator, SandboxError},
};

/// Fails for the first process that nothing here runs: before any is started.
pub(super) fn check(workshop: &Workshop, graph: &OpGraph) -> Result<(), (Place, BuildError)> {
    for node in graph.ids().map(|id| graph.node(id)) {
        let Op::Run(run) = &node.op else { continue };
        emulator(&workshop.ability, &run.architecture)
            .map_err(|error| (node.place.clone(), error))?;
    }
    Ok(())
}

/// The interpreter that a process has to bring with it, if any.
pub(super) fn emulator(
    ability: &Ability,
    architecture: &str,
) -> Result<Option<Emulator>, BuildError> {
    // Where nothing runs, that is what the first process is told.
    if ability.run.is_err() {
        return Ok(None);
    }
    match sandbox::emulation(architecture, ability) {
        Ok(Emulation::Known) => Ok(None),
        Ok(Emulation::Own(emulator)) => Ok(Some(emulator)),
        Err(sandbox::Obstacle { reason, help }) => {
            Err(SandboxError::Unavailable { reason, help }.into())
        }
    }
}
