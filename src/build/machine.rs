//! Runs the ops of one build: each as soon as its inputs are there, or not at all when its result is known.

mod advice;
mod inputs;
mod layers;
mod lookup;
mod making;
mod processes;
mod rejoin;
mod stack;
mod why;

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Instant,
};

use super::{
    BuildError, BuildFailure, BuildRequest, Built, CANCEL_POLL, ContextSource, LATEST_MTIME,
    Workshop, allowed,
    bases::Bases,
    downloads::Local,
    epoch,
    fetch::Errand,
    files::{self, Context},
    mounts::Shown,
    process, reason, result, strict,
};
use lookup::Lookup;
use stack::Stack;

use crate::{
    dag::{self, NodeId, Schedule},
    dockerfile::{self, ImageRequest, Lowered, Warning},
    event::{Event, Outcome},
    graph::{Difference, FilesOp, Op, OpId, OpNode, RunOp},
    image::{self, Image},
    oci::{ChainId, DiffId, Platform},
    plan::CacheUse,
    sandbox::CancelFlag,
    store::CacheRecord,
};

/// What the build checks find, and after it what the rules of our own find, on every platform asked for; only configs of
/// base images are fetched.
///
/// # Errors
///
/// When the Dockerfile cannot be built; what was found before is in the [`dockerfile::DockerfileError`].
pub fn check(
    workshop: &Workshop,
    request: &BuildRequest,
) -> Result<(Vec<Warning>, Vec<Warning>), BuildFailure> {
    let fail = |error: BuildError| BuildFailure::new(request, None, error);
    let parsed = dockerfile::parse(&request.dockerfile.text).map_err(|error| fail(error.into()))?;
    let (mut warnings, mut advice) = (Vec::new(), Vec::new());
    let host = [Platform::host()];
    for platform in asked(request, &host) {
        let bases = Bases::new(workshop, request);
        let lowered = bases.lower(&parsed, platform, dockerfile::lower_for_check)?;
        merge_warnings(&mut warnings, &lowered.warnings);
        merge_warnings(&mut advice, &lowered.advice);
    }
    Ok((warnings, advice))
}

/// Builds an image for every platform asked for; it is in the store afterwards, without a name.
///
/// # Errors
///
/// A [`BuildFailure`] with the place that failed.
pub fn build(workshop: &Workshop, request: &BuildRequest) -> Result<Built, BuildFailure> {
    let built = perform(workshop, request, Mode::Build)?;
    Ok(built.expect("a build makes what is missing"))
}

/// Says of every step, by events, whether [`build`] would do it and why; does none. The image when
/// all of it is known already.
///
/// # Errors
///
/// As [`build`], where the inputs cannot be read.
pub fn explain(workshop: &Workshop, request: &BuildRequest) -> Result<Option<Built>, BuildFailure> {
    perform(workshop, request, Mode::Explain)
}

fn perform(
    workshop: &Workshop,
    request: &BuildRequest,
    mode: Mode,
) -> Result<Option<Built>, BuildFailure> {
    let started = Instant::now();
    let fail = |error: BuildError| BuildFailure::new(request, None, error);
    let parsed = dockerfile::parse(&request.dockerfile.text).map_err(|error| fail(error.into()))?;
    request.split.iter().try_for_each(files::check_split).map_err(fail)?;
    let mut built = Built { stages: parsed.stage_names(), ..Built::default() };
    let mut is_whole = true;
    let host = [Platform::host()];
    for platform in asked(request, &host) {
        let timed = epoch::settle(workshop, request, &parsed, platform)?;
        let request = timed.as_ref().unwrap_or(request);
        let bases = Bases::new(workshop, request);
        let mut lowered = bases.lower(&parsed, platform, dockerfile::lower)?;
        allowed::check(&request.allow, &lowered.graph)
            .map_err(|(place, error)| BuildFailure::new(request, Some(place), error))?;
        if request.platforms.is_empty() {
            lowered.take_platform_of_base();
        }
        strict::check(request, &lowered).map_err(fail)?;
        let alone = Workshop { cancel: CancelFlag::default(), ..workshop.clone() };
        let machine = Machine::new(&alone, request, &lowered, bases, mode);
        built.epoch = machine.epoch;
        let Some(stack) = machine.run(&workshop.cancel)? else {
            is_whole = false;
            continue;
        };
        let base = stack.base.as_ref();
        let base_layers = base.map_or(0, |base| base.image.config.value.rootfs.diff_ids.len());
        built.base_layers.push(base_layers);
        let image = machine.finish(stack).map_err(fail)?;
        built.steps += machine.steps.iter().flatten().count();
        built.cached += machine.cached.load(Ordering::Relaxed);
        built.images.push((platform.clone(), image));
        merge_warnings(&mut built.warnings, &lowered.warnings);
        merge_warnings(&mut built.advice, &machine.advice());
        built.unused_args.clone_from(&lowered.unused_args);
    }
    built.warnings.sort_by_key(|warning| warning.location.lines.0);
    built.advice.sort_by_key(|warning| warning.location.lines.0);
    built.duration = started.elapsed();
    Ok(is_whole.then_some(built))
}

/// Platforms to build for: those that were named, or else this machine's.
pub(super) fn asked<'p>(request: &'p BuildRequest, host: &'p [Platform]) -> &'p [Platform] {
    if request.platforms.is_empty() { host } else { &request.platforms }
}

fn merge_warnings(known: &mut Vec<Warning>, found: &[Warning]) {
    for warning in found {
        if !known.contains(warning) {
            known.push(warning.clone());
        }
    }
}

/// The layers of an op, and for one that had to be made the reason; no layers when it is only explained.
type Found = (Option<Vec<DiffId>>, Option<Difference>);

/// How an op ended.
type Ended = (NodeId, std::thread::Result<Result<(), BuildFailure>>);

enum OpResult {
    Stack(Stack),
    /// Layers on top of what another op made, bottom first, and the chain that ends in them. Whole stacks are put together when
    /// they are looked at: one of each of thousands of steps would take memory by the square of their number.
    Layers {
        below: OpId,
        layers: Vec<DiffId>,
        chain: ChainId,
    },
    Context(Arc<Context>),
    /// Files that were fetched, in one layer.
    Files(DiffId),
    /// It would have to be made, and is only explained.
    Stale,
}

/// Whether a machine makes what is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Build,
    Explain,
}

struct Machine<'a> {
    /// With a flag of its own, which ends what runs of this build alone.
    workshop: &'a Workshop,
    request: &'a BuildRequest,
    lowered: &'a Lowered,
    bases: Bases<'a>,
    mode: Mode,
    results: Vec<OnceLock<OpResult>>,
    /// Stacks that other ops take files from.
    sources: Vec<OnceLock<Stack>>,
    /// Number of each op that is a step, from 1.
    steps: Vec<Option<usize>>,
    cached: AtomicUsize,
    /// Ops whose processes, and those of what stands on them, can be run here; empty before any was asked about.
    checked: Mutex<Vec<bool>>,
    /// `SOURCE_DATE_EPOCH` in force.
    epoch: Option<i64>,
    /// What the files of steps showed.
    advice: Mutex<Vec<Warning>>,
    /// What mounts show of stages.
    shown: Shown,
}

impl<'a> Machine<'a> {
    fn new(
        workshop: &'a Workshop,
        request: &'a BuildRequest,
        lowered: &'a Lowered,
        bases: Bases<'a>,
        mode: Mode,
    ) -> Self {
        let mut count = 0;
        let number = |id: OpId| match lowered.graph.node(id).op {
            Op::Files(_) | Op::Run(_) => {
                count += 1;
                Some(count)
            }
            Op::Scratch | Op::Image { .. } | Op::Context { .. } => None,
        };
        let steps = lowered.graph.ids().map(number).collect();
        let results = lowered.graph.ids().map(|_| OnceLock::new()).collect();
        let sources = lowered.graph.ids().map(|_| OnceLock::new()).collect();
        let epoch = epoch::in_force(request, lowered);
        let (cached, checked, advice) = (AtomicUsize::new(0), Mutex::default(), Mutex::default());
        Self {
            workshop,
            request,
            lowered,
            bases,
            mode,
            results,
            sources,
            steps,
            cached,
            checked,
            epoch,
            advice,
            shown: Shown::default(),
        }
    }

    /// Runs every op; independent ones at once, until one fails: then the others end too. `None` when the
    /// result was only explained.
    fn run(&self, cancel: &CancelFlag) -> Result<Option<Stack>, BuildFailure> {
        if self.mode == Mode::Build && self.request.cache != CacheUse::Use {
            let checked = self.check_all_processes();
            checked.map_err(|error| BuildFailure::new(self.request, None, error))?;
        }
        let mut schedule = Schedule::default();
        let mut nodes: Vec<NodeId> = Vec::new();
        for id in self.lowered.graph.ids() {
            let inputs = self.lowered.graph.node(id).op.inputs();
            let inputs: Vec<NodeId> = inputs.iter().map(|input| nodes[input.index()]).collect();
            nodes.push(schedule.add(&inputs));
        }
        let op_of: HashMap<NodeId, OpId> =
            nodes.iter().copied().zip(self.lowered.graph.ids()).collect();
        let mut first_failure = None;
        std::thread::scope(|scope| {
            let (done, finished) = mpsc::channel();
            let mut running = 0_usize;
            loop {
                // Further ones could only wait for a place to work in.
                while first_failure.is_none()
                    && running < self.workshop.slots.count()
                    && let Some(node) = schedule.start_next()
                {
                    let (id, done) = (op_of[&node], done.clone());
                    running += 1;
                    // A receiver that is gone means that the build has failed already.
                    let perform = move || catch_unwind(AssertUnwindSafe(|| self.perform(id)));
                    scope.spawn(move || drop(done.send((node, perform()))));
                }
                if running == 0 {
                    break;
                }
                let (node, outcome) = self.next_of(&finished, cancel);
                running -= 1;
                let stop = || self.workshop.cancel.store(true, Ordering::Relaxed);
                // A panic in an op is our bug: it is raised here, since nobody else waits for the op.
                let outcome = outcome.unwrap_or_else(|panic| {
                    stop();
                    resume_unwind(panic)
                });
                let outcome = outcome.map_err(|failure| first_failure.get_or_insert(failure));
                if outcome.is_err() {
                    stop();
                }
                let ended = outcome.map_or(dag::Outcome::Failed, |()| dag::Outcome::Done);
                schedule.finish(node, ended);
            }
        });
        let kept = self.keep_steps();
        match first_failure {
            Some(failure) => {
                // What was done before the failure is found again by the next build, unless there is no room for it.
                if !failure.error.lacks_space() {
                    drop(self.workshop.store.flush());
                }
                Err(failure)
            }
            None => {
                kept.map_err(|error| BuildFailure::new(self.request, None, error))?;
                match self.results[self.lowered.result.index()].get() {
                    Some(OpResult::Stack(_) | OpResult::Layers { .. }) => {
                        Ok(Some(self.stack(self.lowered.result)))
                    }
                    _ => Ok(None),
                }
            }
        }
    }

    /// Waits for the next op that ends, and hands the user's cancellation on to all that run.
    fn next_of(&self, finished: &mpsc::Receiver<Ended>, cancel: &CancelFlag) -> Ended {
        loop {
            match finished.recv_timeout(CANCEL_POLL) {
                Ok(ended) => return ended,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if cancel.load(Ordering::Relaxed) {
                        self.workshop.cancel.store(true, Ordering::Relaxed);
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    unreachable!("a running op holds a sender")
                }
            }
        }
    }

    fn perform(&self, id: OpId) -> Result<(), BuildFailure> {
        let node = self.lowered.graph.node(id);
        let result = self.result_of(id, node);
        let result = result
            .map_err(|error| BuildFailure::new(self.request, Some(node.place.clone()), error))?;
        self.results[id.index()].get_or_init(|| result);
        Ok(())
    }

    fn result_of(&self, id: OpId, node: &OpNode) -> Result<OpResult, BuildError> {
        self.check_cancelled()?;
        match &node.op {
            Op::Scratch => Ok(OpResult::Stack(Stack::default())),
            Op::Image { name, platform } => {
                let wanted = ImageRequest { name: name.clone(), platform: platform.clone() };
                let base = self.bases.get(&wanted);
                let layers = base.image.config.value.rootfs.diff_ids.clone();
                Ok(OpResult::Stack(Stack::of(layers, base)))
            }
            Op::Context { name } => self.open_context(name.as_deref()),
            Op::Files(files) => self.step(id, files.base, &StepOp::Files(files)),
            Op::Run(run) => self.step(id, run.base, &StepOp::Run(run)),
        }
    }

    fn open_context(&self, name: Option<&str>) -> Result<OpResult, BuildError> {
        let source = self.request.files_of(name);
        let errand =
            Errand::of_the_user(self.workshop, (&self.request.name, &self.request.secrets));
        let fetched = source.map(|source| errand.context(source)).transpose()?.flatten();
        let context = match (source, fetched) {
            (_, Some(fetched)) => return Ok(OpResult::Files(fetched.layer)),
            (Some(ContextSource::Folder(folder)), None) => {
                Context::open(&folder.folder, folder.ignore.as_deref())?
            }
            (_, None) => Context::empty(),
        };
        Ok(OpResult::Context(Arc::new(context)))
    }

    /// A step that adds a layer: looked up first, done only when nobody has done it.
    fn step(&self, id: OpId, base: OpId, op: &StepOp<'_>) -> Result<OpResult, BuildError> {
        let (step, steps) = (self.number(id), self.step_count());
        let title = self.lowered.graph.node(id).place.title.clone();
        let (image, name) = (self.request.name.clone(), title);
        let started = Instant::now();
        let cancel = &self.workshop.cancel;
        let slot = self.workshop.slots.take(cancel).ok_or(BuildError::Cancelled)?;
        let emit = &self.workshop.emit;
        let platform = self.platform_told();
        emit(Event::StepStarted {
            image: image.clone(),
            platform: platform.clone(),
            step,
            steps,
            name: name.clone(),
        });
        let done = self.find_or_make(id, base, op);
        drop(slot);
        let (outcome, reason) = match &done {
            Ok((Some(_), None)) => (Outcome::Cached, None),
            Ok((Some(_), reason)) => (Outcome::Built, reason.clone()),
            Ok((None, reason)) => (Outcome::Stale, reason.clone()),
            Err(BuildError::Cancelled | BuildError::At { .. }) => (Outcome::Cancelled, None),
            Err(_) => (Outcome::Failed, None),
        };
        let duration = started.elapsed();
        let (reason, component) =
            reason.map(|Difference { component, words }| (words, component)).unzip();
        emit(Event::StepDone {
            image,
            platform,
            step,
            steps,
            name,
            outcome,
            reason,
            component,
            duration,
        });
        if outcome == Outcome::Cached {
            self.cached.fetch_add(1, Ordering::Relaxed);
        }
        let (layers, _) = done?;
        let Some(layers) = layers else { return Ok(OpResult::Stale) };
        if let Some(on_layer) = &self.request.on_layer
            && outcome == Outcome::Built
            && self.is_of_image(id)
        {
            layers.iter().for_each(|layer| on_layer(*layer));
        }
        Ok(OpResult::Layers { below: base, chain: self.chain_on(base, &layers), layers })
    }

    fn find_or_make(&self, id: OpId, base: OpId, op: &StepOp<'_>) -> Result<Found, BuildError> {
        if let Some(stale) = self.stale_input(id) {
            return Ok((None, Some(stale)));
        }
        match self.try_find_or_make(id, base, op) {
            // An editor that saves is not a reason to fail; one that never stops is.
            Err(BuildError::Files(files::FilesError::Changed)) => {
                self.try_find_or_make(id, base, op)
            }
            other => other,
        }
    }

    fn try_find_or_make(&self, id: OpId, base: OpId, op: &StepOp<'_>) -> Result<Found, BuildError> {
        let store = &self.workshop.store;
        let below = &self.stack(base);
        let errand = Errand::of_a_dockerfile(self.workshop, self.request);
        let local = match op {
            StepOp::Files(files) => Some(Local::get(errand, files, &self.lowered.graph)?),
            StepOp::Run(_) => None,
        };
        let key_parts = self.key(id, op, below, local.as_ref())?;
        let key = key_parts.tree.key();
        let flights = &self.workshop.flights;
        let _flight = flights.start(key, &self.workshop.cancel).ok_or(BuildError::Cancelled)?;
        let reason = match self.look_up(id, key)? {
            Lookup::Found(known) => return self.take(id, below, local.as_ref(), known),
            Lookup::Refused(words) => Difference { component: "cache".to_owned(), words },
            Lookup::Missing => match self.rejoin(id, op, below, &key_parts)? {
                Some(known) => return Ok((Some(known), None)),
                None => self.reason(id, base, &key_parts)?,
            },
        };
        if self.mode == Mode::Explain {
            return Ok((None, Some(reason)));
        }
        self.check_processes_on(id)?;
        let _turn = self.wait_for_turn(id, key)?;
        // Another process may have done it meanwhile.
        if let Lookup::Found(known) = self.look_up(id, key)? {
            return self.take(id, below, local.as_ref(), known);
        }
        let started = Instant::now();
        let made = match op {
            StepOp::Files(files) => {
                self.fetch_for_files(files, below)?;
                let local = local.as_ref().expect("made for files above");
                self.make_files(id, local, below, &key_parts)?
            }
            StepOp::Run(run) => {
                self.check_failed_before(key, run)?;
                self.fetch_for_run(run, below)?;
                let done = process::run(&self.task(id, run, below, &|id| self.root(id)));
                self.note_failure(key, run, &done);
                done?.into()
            }
        };
        let made_at = jiff::Timestamp::now().as_second();
        let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let selections = reason::keep(store, &key_parts);
        let (site, layers) = (self.site(id), made.layers().to_vec());
        flights.note_made(key, &layers);
        if self.request.cache != CacheUse::Discard {
            let by_content = self.key_by_content(id, op, below)?;
            let tree = key_parts.tree;
            let record = CacheRecord { made, tree, site, made_at, took_ms, selections };
            self.keep_record(id, (key, by_content), &record)?;
        }
        self.look(id, below, local.as_ref(), &layers)?;
        Ok((Some(layers), Some(reason)))
    }

    /// Config and manifest of the finished stack. Layers of the base that nothing looked at stay where
    /// they are: their descriptors are known, and so is the registry that has them.
    fn finish(&self, stack: Stack) -> Result<Image, BuildError> {
        let seconds = self.epoch.unwrap_or(LATEST_MTIME.seconds);
        let config = result::complete(self.lowered, (&stack.layers, &stack.steps), seconds);
        let below = stack.base.as_ref().map(|base| image::base_layers(&base.image));
        let below = below.unwrap_or_default();
        Ok(image::assemble(&self.workshop.store, &config, &stack.layers, &below)?)
    }

    /// The number of an op that is a step.
    fn number(&self, id: OpId) -> usize {
        self.steps[id.index()].expect("every op that adds a layer is numbered")
    }

    fn step_count(&self) -> usize {
        self.steps.iter().flatten().count()
    }

    fn check_cancelled(&self) -> Result<(), BuildError> {
        match self.workshop.cancel.load(Ordering::Relaxed) {
            true => Err(BuildError::Cancelled),
            false => Ok(()),
        }
    }
}

enum StepOp<'a> {
    Files(&'a FilesOp),
    Run(&'a RunOp),
}
