//! What processes ask for besides a confined run, against what the user allows.

use std::collections::BTreeSet;

use super::BuildError;
use crate::{
    graph::{Network, Op, OpGraph, Place, RunOp, Security},
    plan::Entitlement,
};

/// Fails for the first process that wants more than `allow` has: before anything is looked up.
pub(super) fn check(
    allow: &BTreeSet<Entitlement>,
    graph: &OpGraph,
) -> Result<(), (Place, BuildError)> {
    for node in graph.ids().map(|id| graph.node(id)) {
        let Op::Run(run) = &node.op else { continue };
        let refused = wanted(run).into_iter().flatten().find(|one| !allow.contains(one));
        if let Some(entitlement) = refused {
            return Err((node.place.clone(), BuildError::NotAllowed { entitlement }));
        }
    }
    Ok(())
}

fn wanted(run: &RunOp) -> [Option<Entitlement>; 2] {
    let insecure = run.security == Security::Insecure;
    let host = run.network == Network::Host;
    [insecure.then_some(Entitlement::SecurityInsecure), host.then_some(Entitlement::NetworkHost)]
}
