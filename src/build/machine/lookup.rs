//! What is known of an op before it is done: its earlier result, whether that may be used, who does it now.
//!
//! Knows the rules of the request; why a result is missing is for `why` to say.

use std::sync::atomic::Ordering;

use super::{Found, Local, Machine, Mode, OpResult, Stack};
use crate::{
    build::{BuildError, BuildRequest, Steps},
    event::Event,
    graph::{CacheKey, Op, OpId},
    oci::DiffId,
    plan::CacheUse,
    store::{Turn, Waiting},
};

/// The earlier result of an op.
pub(super) enum Lookup {
    /// Its layers, bottom first.
    Found(Vec<DiffId>),
    /// There is none.
    Missing,
    /// What forbids to use any, in words.
    Refused(String),
}

impl Machine<'_> {
    /// The earlier result of an op, as far as the request allows to use it.
    pub(super) fn look_up(&self, id: OpId, key: CacheKey) -> Result<Lookup, BuildError> {
        let BuildRequest { cache, cache_rules: rules, .. } = self.request;
        let node = self.lowered.graph.node(id);
        let stage = &node.place.stage;
        let refused = |words: String| match self.workshop.flights.made(key) {
            Some(layers) => Lookup::Found(layers),
            None => Lookup::Refused(words),
        };
        if *cache != CacheUse::Use {
            return Ok(refused("the cache is not used".to_owned()));
        }
        if rules.without_stages.iter().any(|filtered| filtered.eq_ignore_ascii_case(stage)) {
            return Ok(refused(format!("the cache is not used for stage {stage}")));
        }
        let Some(record) = self.workshop.store.cached(key)? else { return Ok(Lookup::Missing) };
        let age_s = jiff::Timestamp::now().as_second().saturating_sub(record.made_at);
        let is_run = matches!(node.op, Op::Run(_));
        let limit_s = rules.run_age_max_s.filter(|_| is_run);
        Ok(match limit_s.filter(|limit| u64::try_from(age_s).is_ok_and(|age| age >= *limit)) {
            Some(_) => refused(format!("its result is {age_s} s old")),
            None => Lookup::Found(record.made.layers().to_vec()),
        })
    }

    /// Waits until no other process does this op.
    pub(super) fn wait_for_turn(
        &self,
        id: OpId,
        key: CacheKey,
    ) -> Result<Option<Turn>, BuildError> {
        let turn = self.workshop.store.turn(key, &mut |holder| {
            if let Some(holder) = holder {
                let image = Some(self.request.name.clone());
                let step = self.step_words(id);
                let text = format!("{step} waits for {holder}, which does the same");
                (self.workshop.emit)(Event::Warning { image, text });
            }
            match self.workshop.cancel.load(Ordering::Relaxed) {
                true => Waiting::No,
                false => Waiting::Further,
            }
        })?;
        self.check_cancelled()?;
        Ok(turn)
    }

    /// A result that is known already.
    pub(super) fn take(
        &self,
        id: OpId,
        below: &Stack,
        local: Option<&Local>,
        known: Vec<DiffId>,
    ) -> Result<Found, BuildError> {
        if self.request.strict && self.mode == Mode::Build {
            self.look(id, below, local, &known)?;
        }
        Ok((Some(known), None))
    }

    /// Notes down what the steps left, for who wants to look at one afterwards.
    pub(super) fn keep_steps(&self) -> Result<(), BuildError> {
        if self.mode == Mode::Explain || self.request.cache == CacheUse::Discard {
            return Ok(());
        }
        let layers_of = |id: OpId| match self.results[id.index()].get()? {
            OpResult::Stack(stack) => Some(stack.layers.as_slice()),
            OpResult::Layers { layers, .. } => Some(layers.as_slice()),
            OpResult::Context(_) | OpResult::Files(_) | OpResult::Stale => None,
        };
        let steps = Steps::of(&self.lowered.graph, &self.steps, layers_of);
        let platform = self.lowered.config.platform();
        steps.keep(&self.workshop.store, (&self.request.name, &platform))
    }

    /// Whether the image has the op's layer, and not only what is copied from it.
    pub(super) fn is_of_image(&self, id: OpId) -> bool {
        let below = |at: &OpId| self.lowered.graph.node(*at).op.base();
        std::iter::successors(Some(self.lowered.result), below).any(|at| at == id)
    }
}
