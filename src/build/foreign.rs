//! Processes for another processor than this machine's: what runs them, or that nothing does. Knows no namespaces.

use super::BuildError;
use crate::sandbox::{self, Ability, Emulation, Emulator, SandboxError};

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
        Err(sandbox::Obstacle { reason, help, .. }) => {
            Err(SandboxError::Unavailable { reason, help }.into())
        }
    }
}
