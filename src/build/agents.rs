//! `RUN --mount=type=ssh`: the socket that a process finds, and what answers behind it.

use std::{path::Path, sync::Arc};

use super::{BuildError, process::Task};
use crate::{
    graph::{MountKind, MountOp},
    plan::SshSource,
    ssh::{Agent, Door},
};

/// What a mount without an id asks for.
const DEFAULT_ID: &str = "default";

/// A socket at `place` for the time of a process; `None` when nobody offers the agent and it may be missing.
pub(super) fn open(
    task: &Task<'_>,
    mount: &MountOp,
    place: &Path,
) -> Result<Option<Door>, BuildError> {
    let MountKind::Ssh { id, required, .. } = &mount.kind else {
        unreachable!("called for ssh mounts only");
    };
    let fail = |reason: String| BuildError::Agent { id: id.clone(), reason };
    let name = if id.is_empty() { DEFAULT_ID } else { id };
    let offered = &task.request.ssh;
    let paths = match offered.get(name) {
        Some(SshSource::Files(paths)) => paths.clone(),
        Some(SshSource::Agent) => match &task.workshop.ssh_agent {
            Some(socket) => vec![socket.clone()],
            None if *required => {
                return Err(fail("SSH_AUTH_SOCK is not set: no agent is running".to_owned()));
            }
            None => return Ok(None),
        },
        None if *required => {
            let (id, offered) = (id.clone(), offered.keys().cloned().collect());
            return Err(BuildError::AgentMissing { id, offered });
        }
        None => return Ok(None),
    };
    let agent = Agent::open(&paths).map_err(|error| fail(error.to_string()))?;
    let door = Door::open(Arc::new(agent), place);
    door.map(Some).map_err(|error| fail(format!("its socket cannot be made: {error}")))
}
