//! What processes ask for besides a confined run, against what the user allows and this machine can.

use std::collections::BTreeSet;

use super::{BuildError, Workshop, foreign};
use crate::{
    graph::{Network, Op, OpGraph, Place, RunOp, Security},
    plan::Entitlement,
};

/// Fails for the first process that wants more than `allow` has, or another processor than there is: before anything runs.
pub(super) fn check(
    workshop: &Workshop,
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
    foreign::check(workshop, graph)
}

fn wanted(run: &RunOp) -> [Option<Entitlement>; 2] {
    let insecure = run.security == Security::Insecure;
    let host = run.network == Network::Host;
    [insecure.then_some(Entitlement::SecurityInsecure), host.then_some(Entitlement::NetworkHost)]
}
