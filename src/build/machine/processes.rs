//! Whether the processes that a build has to run can be run here.
//!
//! Knows which processes an op that has to be done brings with it; what the place can do is the sandbox's business.

use super::Machine;
use crate::{
    build::{BuildError, flights::Given, foreign, network, process},
    event::Event,
    graph::{CacheKey, Op, OpId, OpNode, RunOp},
};

impl Machine<'_> {
    /// A place that can run no process says so before anything is done for one: to be called before the op is done, it
    /// fails for the first process that is the op or stands on it. Where none does, the place is not asked.
    pub(super) fn check_processes_on(&self, id: OpId) -> Result<(), BuildError> {
        let graph = &self.lowered.graph;
        let mut checked = self.checked.lock().expect("no holder panics");
        // What stands on an op that was checked was checked with it.
        if checked.is_empty() {
            checked.resize(graph.len(), false);
        } else if checked[id.index()] {
            return Ok(());
        }
        let mut above = vec![false; graph.len()];
        for other in graph.ids() {
            let node = graph.node(other);
            let stands_on = || node.op.inputs().iter().any(|input| above[input.index()]);
            above[other.index()] = other == id || stands_on();
            if let (true, Op::Run(run)) = (above[other.index()], &node.op) {
                self.check_process(node, run)?;
            }
        }
        checked.iter_mut().zip(above).for_each(|(checked, above)| *checked |= above);
        Ok(())
    }

    /// As above, for every process: where no earlier result may be used, all of them have to run.
    pub(super) fn check_all_processes(&self) -> Result<(), BuildError> {
        let graph = &self.lowered.graph;
        for node in graph.ids().map(|id| graph.node(id)) {
            if let Op::Run(run) = &node.op {
                self.check_process(node, run)?;
            }
        }
        Ok(())
    }

    /// Fails when the same process failed in this run.
    pub(super) fn check_failed_before(&self, key: CacheKey, run: &RunOp) -> Result<(), BuildError> {
        let failed = self.workshop.flights.failed_for(key, &Given::of(run, self.request));
        failed.map_or(Ok(()), |image| {
            Err(BuildError::FailedBefore { image, command: run.argv.join(" ") })
        })
    }

    /// Remembers a process that failed by itself.
    pub(super) fn note_failure<T>(&self, key: CacheKey, run: &RunOp, done: &Result<T, BuildError>) {
        if let Err(BuildError::Exit { .. } | BuildError::Start { .. }) = done {
            let (image, given) = (&self.request.name, Given::of(run, self.request));
            self.workshop.flights.note_failure(key, image, given);
        }
    }

    fn check_process(&self, node: &OpNode, run: &RunOp) -> Result<(), BuildError> {
        let ability = self.workshop.ability.get();
        let possible = process::check_ability(&ability)
            .and_then(|()| foreign::emulator(&ability, &run.architecture))
            .and_then(|_| network::check(run, &self.request.network, ability.isolation));
        possible.map_err(|error| BuildError::At {
            place: Box::new(node.place.clone()),
            source: Box::new(error),
        })?;
        for text in self.workshop.ability.news(&self.request.limits) {
            (self.workshop.emit)(Event::Note { text });
        }
        Ok(())
    }
}
