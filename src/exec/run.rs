//! The run itself: steps start as soon as their inputs are done, tags move last.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    ExecError, ImageReport, ImageState, OnFailure, Report, Setup, blocking,
    early::Early,
    embedded::{self, Embedded},
    joined,
    prepare::{self, BuiltImages},
    told,
};
use crate::{
    build::{self, BuildError, Built, LogRules, Sweep, Workshop, sweep_logs},
    dag::{self, NodeId, Schedule, State},
    event::Event,
    image::{self, ImageError, Upload},
    oci::{Digest, Document, Index, MediaType, Reference},
    plan::{EMBEDDED_ADDRESS, ImagePlan, OutputPlan, Plan, StepKind},
    registry::Client,
    store::ImageRecord,
    tree::Timestamp,
};

/// How long the answer of a registry is waited for when the user asks to stop while a tag moves.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Carries a plan out; failures are in the report.
pub async fn run(plan: &Plan, setup: &Setup) -> Report {
    let started = Instant::now();
    let images = plan.images.iter().map(|image| image.name.clone()).collect();
    let setup = &Setup { emit: told::once(&setup.emit), ..setup.clone() };
    (setup.emit)(Event::Planned { images, steps: plan.steps.len() });
    setup.store.stop_writing_when(&setup.cancel);
    // Nothing that the run makes or counts on is collected while it lasts.
    let lease = setup.store.lease().map_err(ExecError::from);
    let report = match lease {
        Ok(_lease) => Runner::run_all(plan, setup).await,
        Err(error) => Err(error),
    };
    let report =
        report.unwrap_or_else(|error| Report { images: Vec::new(), failures: vec![error] });
    if let Some(logs) = &setup.logs {
        // What is left is for the next run.
        drop(sweep_logs(logs, LogRules::default(), Sweep::Remove));
    }
    let ok = report.failures.is_empty();
    (setup.emit)(Event::Finished { ok, duration: started.elapsed() });
    report
}

struct Runner {
    plan: Plan,
    setup: Setup,
    client: Client,
    workshop: Workshop,
    progress: Mutex<Progress>,
}

/// What has come out so far.
#[derive(Default)]
struct Progress {
    built: BuiltImages,
    base_layers: BTreeMap<String, Vec<usize>>,
    /// `SOURCE_DATE_EPOCH` that each image was built with.
    epochs: BTreeMap<String, i64>,
    records: BTreeMap<String, ImageRecord>,
    /// Layers that left while the image was still being built.
    early: BTreeMap<String, Arc<Early>>,
    uploads: BTreeMap<(String, String), Upload>,
    reports: BTreeMap<String, ImageReport>,
    /// When the first step of each image began.
    started: BTreeMap<String, Instant>,
    failures: Vec<ExecError>,
}

impl Runner {
    fn new(plan: &Plan, setup: &Setup, embedded: Option<&Embedded>) -> Result<Self, ExecError> {
        let mut options = prepare::client_options(plan, setup)?;
        if let (Some(embedded), Some(registry)) =
            (embedded, options.registries.get_mut(EMBEDDED_ADDRESS))
        {
            registry.port = Some(embedded.port());
        }
        let client = Client::new(options)?;
        let workshop = prepare::workshop(&client, setup);
        let (plan, setup) = (plan.clone(), setup.clone());
        Ok(Self { plan, setup, client, workshop, progress: Mutex::default() })
    }

    async fn run_all(plan: &Plan, setup: &Setup) -> Result<Report, ExecError> {
        let embedded = embedded::start(plan, setup).await?;
        if let Some(text) = embedded.as_ref().and_then(Embedded::warning) {
            (setup.emit)(Event::Warning { image: None, text });
        }
        let runner = Arc::new(Self::new(plan, setup, embedded.as_ref())?);
        runner.drive().await;
        runner.keep_what_was_learned().await;
        runner.lock().early.clear();
        if let Some(embedded) = embedded {
            embedded.stop().await;
        }
        Ok(runner.report())
    }

    /// Starts every step as soon as it may start; ends when nothing runs and nothing may start.
    async fn drive(self: &Arc<Self>) {
        let mut schedule = Schedule::default();
        let mut nodes: Vec<NodeId> = Vec::new();
        for step in &self.plan.steps {
            let inputs: Vec<NodeId> = step.inputs.iter().map(|input| nodes[*input]).collect();
            nodes.push(schedule.add(&inputs));
        }
        let mut running = JoinSet::new();
        loop {
            while self.may_start()
                && let Some(node) = schedule.start_next()
            {
                let index = nodes.iter().position(|known| *known == node);
                let index = index.expect("every node was made from a step");
                let runner = Arc::clone(self);
                running.spawn(async move { (node, runner.perform(index).await) });
            }
            let Some(ended) = running.join_next().await else { break };
            let (node, outcome) = joined(ended);
            let ended = match outcome {
                Ok(()) => dag::Outcome::Done,
                Err(error) => {
                    self.lock().failures.push(error);
                    dag::Outcome::Failed
                }
            };
            schedule.finish(node, ended);
        }
        self.tell_skipped(&schedule, &nodes);
    }

    /// Pushes learn where layers are and what they are like compressed: that is made durable for all of them at once,
    /// unless there is no room for it.
    async fn keep_what_was_learned(&self) {
        if self.lock().failures.iter().any(ExecError::lacks_space) {
            return;
        }
        let store = self.setup.store.clone();
        let kept = blocking(move || store.flush()).await;
        let failures = &mut self.lock().failures;
        if failures.is_empty() {
            failures.extend(kept.map_err(ExecError::from).err());
        }
    }

    fn may_start(&self) -> bool {
        let cancelled = self.setup.cancel.load(Ordering::Relaxed);
        let failed = !self.lock().failures.is_empty();
        !cancelled && (!failed || self.setup.on_failure == OnFailure::KeepGoing)
    }

    fn tell_skipped(&self, schedule: &Schedule, nodes: &[NodeId]) {
        for (step, node) in self.plan.steps.iter().zip(nodes) {
            let never_ran =
                matches!(schedule.state(*node), State::Skipped | State::Waiting | State::Ready);
            if never_ran && step.kind == StepKind::Build {
                let stopped = self.setup.cancel.load(Ordering::Relaxed);
                let reason = if stopped { "cancelled" } else { "something before it failed" };
                let reason = reason.to_owned();
                (self.setup.emit)(Event::ImageSkipped { image: step.image.clone(), reason });
            }
        }
    }

    async fn perform(self: &Arc<Self>, index: usize) -> Result<(), ExecError> {
        let step = &self.plan.steps[index];
        let image = self.plan.image(&step.image).expect("steps are made from images").clone();
        let started = Instant::now();
        let result = match &step.kind {
            StepKind::Build => {
                let runner = Arc::clone(self);
                blocking(move || runner.build(&image)).await
            }
            StepKind::Store => {
                let runner = Arc::clone(self);
                blocking(move || runner.store(&image)).await
            }
            StepKind::Push { to } => self.push(&image, to).await,
            StepKind::Publish { to } => self.publish(&image, to).await,
        };
        let result = result.map_err(|error| self.why(error));
        let mut progress = self.lock();
        let since = *progress.started.entry(step.image.clone()).or_insert(started);
        if let Some(report) = progress.reports.get_mut(&step.image) {
            if report.state == ImageState::Failed && matches!(result, Err(ExecError::Cancelled)) {
                report.state = ImageState::Cancelled;
            }
            report.seconds = since.elapsed().as_secs_f64();
        }
        drop(progress);
        if let Err(error) = &result {
            let (image, reason) = (step.image.clone(), error.to_string());
            let cancelled = matches!(error, ExecError::Cancelled);
            (self.setup.emit)(match cancelled {
                true => Event::ImageCancelled { image },
                false => Event::ImageFailed { image, reason },
            });
        }
        result
    }

    fn build(&self, image: &ImagePlan) -> Result<(), ExecError> {
        (self.setup.emit)(Event::ImageStarted { image: image.name.clone() });
        let built = self.lock().built.clone();
        let mut report = ImageReport::new(&image.name, ImageState::Failed);
        self.lock().reports.insert(image.name.clone(), report.clone());
        let mut request = prepare::build_request(image, (&self.setup, &self.workshop), &built)?;
        let early = (!image.pushes.is_empty()).then(|| Early::start(&self.workshop, image));
        request.on_layer = early.as_ref().map(Early::on_layer);
        let outcome = build::build(&self.workshop, &request);
        drop(request);
        if let Some(early) = early {
            // After a failure nobody needs them any more.
            if outcome.is_ok() {
                self.lock().early.insert(image.name.clone(), early);
            }
        }
        let Built {
            images,
            base_layers,
            epoch,
            cached,
            steps,
            warnings,
            advice,
            unused_args,
            stages,
            ..
        } = outcome.map_err(|failure| {
            let is_cancelled = matches!(*failure.error, BuildError::Cancelled);
            if is_cancelled { ExecError::Cancelled } else { ExecError::Build(failure) }
        })?;
        let record = self.record(image, &images).map_err(|source| {
            let image = image.name.clone();
            ExecError::Image { image, source }
        })?;
        report.state = ImageState::Stored {
            id: record.config,
            digest: record.target.digest,
            size: record.size,
            cached,
            steps,
        };
        (report.warnings, report.advice) = (warnings, advice);
        (report.unused_args, report.stages) = (unused_args, stages);
        let mut progress = self.lock();
        progress.reports.insert(image.name.clone(), report);
        progress.base_layers.insert(image.name.clone(), base_layers);
        progress.epochs.extend(epoch.map(|epoch| (image.name.clone(), epoch)));
        progress.built.insert(image.name.clone(), images);
        progress.records.insert(image.name.clone(), record);
        Ok(())
    }

    /// What the store will know of the image; an index when it is for several platforms.
    fn record(
        &self,
        plan: &ImagePlan,
        images: &[(crate::oci::Platform, image::Image)],
    ) -> Result<ImageRecord, ImageError> {
        let store = &self.setup.store;
        let descriptor_of = |image: &image::Image| {
            let mut descriptor = image.manifest.descriptor(MediaType::MANIFEST);
            descriptor.platform = Some(image.config.value.platform());
            descriptor
        };
        let (_, first) = images.first().expect("a build makes at least one image");
        let target = match images {
            [(_, only)] => descriptor_of(only),
            several => {
                let index = Document::write(Index {
                    schema_version: 2,
                    media_type: Some(MediaType::new(MediaType::INDEX)),
                    artifact_type: None,
                    manifests: several.iter().map(|(_, image)| descriptor_of(image)).collect(),
                    subject: None,
                    annotations: BTreeMap::new(),
                });
                store.put_blob(&index.raw)?;
                index.descriptor(MediaType::INDEX)
            }
        };
        let sizes = images.iter().map(|(_, image)| image::content_bytes(store, image));
        let size = sizes.sum::<Result<u64, _>>()?;
        Ok(ImageRecord {
            reference: plan.tags.first().map(ToString::to_string),
            target,
            config: first.config.digest(),
            platforms: images.iter().map(|(platform, _)| platform.clone()).collect(),
            stored_at: jiff::Timestamp::now().as_second(),
            created: first.config.value.created.clone(),
            size,
            pulled: false,
        })
    }

    fn store(&self, image: &ImagePlan) -> Result<(), ExecError> {
        let record = self.lock().records[&image.name].clone();
        let mut stored = Vec::new();
        let mut named = Vec::new();
        if image.export {
            stored.extend(image.tags.iter().map(ToString::to_string));
            let tagged =
                |tag: &String| ImageRecord { reference: Some(tag.clone()), ..record.clone() };
            named.extend(stored.iter().map(tagged));
            if stored.is_empty() {
                named.push(record.clone());
            }
        }
        self.setup.store.put_images(&named)?;
        if !image.outputs.is_empty() {
            self.fetch_absent(image)?;
        }
        let mut written = None;
        for output in &image.outputs {
            let record = self.record_for(image, output, &record)?;
            let names: Vec<ImageRecord> = match stored.is_empty() {
                true => vec![record.clone()],
                false => stored
                    .iter()
                    .map(|tag| ImageRecord { reference: Some(tag.clone()), ..record.clone() })
                    .collect(),
            };
            let digest =
                image::write_output(&self.setup.store, &names, output).map_err(|source| {
                    let image = image.name.clone();
                    ExecError::Image { image, source }
                })?;
            written = written.or(digest.map(|digest| (digest, record.config)));
        }
        let mut progress = self.lock();
        let report = progress.reports.get_mut(&image.name).expect("stored after built");
        (report.tags, report.written) = (stored, written);
        if let ImageState::Stored { id, digest, size, cached, steps } = report.state {
            let duration = progress.started[&image.name].elapsed();
            let image = image.name.clone();
            let event = Event::ImageStored { image, id, digest, size, cached, steps, duration };
            drop(progress);
            (self.setup.emit)(event);
        }
        Ok(())
    }

    /// Gets what is in a registry only: a file is to have all layers.
    fn fetch_absent(&self, plan: &ImagePlan) -> Result<(), ExecError> {
        let built = self.lock().built[&plan.name].clone();
        let Workshop { store, client, emit, .. } = &self.workshop;
        let fail = |source| ExecError::Image { image: plan.name.clone(), source };
        for (_, image) in &built {
            let (outputs, name) = (plan.outputs.as_slice(), plan.name.as_str());
            let work = image::fetch_for_outputs(store, client, (image, outputs), name, emit);
            let fetched = self.workshop.runtime.block_on(self.until_cancelled(work));
            fetched
                .unwrap_or(Err(None))
                .map_err(|error| error.map_or(ExecError::Cancelled, fail))?;
        }
        Ok(())
    }

    /// The record of what an output gets: another image when its times are to be rewritten.
    fn record_for(
        &self,
        image: &ImagePlan,
        output: &OutputPlan,
        record: &ImageRecord,
    ) -> Result<ImageRecord, ExecError> {
        let epoch = self.lock().epochs.get(&image.name).copied();
        let Some(seconds) = epoch.filter(|_| output.rewrites_times()) else {
            return Ok(record.clone());
        };
        let latest = Timestamp { seconds, nanos: 0 };
        let (built, below) = {
            let progress = self.lock();
            (progress.built[&image.name].clone(), progress.base_layers[&image.name].clone())
        };
        let clamped = built.into_iter().zip(below).map(|((platform, image), below)| {
            let image = image::clamp_times(&self.setup.store, &image, below, latest)?;
            Ok((platform, image))
        });
        let record = clamped.collect::<Result<Vec<_>, _>>();
        record.and_then(|images| self.record(image, &images)).map_err(|source| {
            let image = image.name.clone();
            ExecError::Image { image, source }
        })
    }

    /// What fails after the user asked to stop, fails because of it.
    fn why(&self, error: ExecError) -> ExecError {
        if self.setup.cancel.load(Ordering::Relaxed) { ExecError::Cancelled } else { error }
    }

    async fn push(&self, image: &ImagePlan, to: &str) -> Result<(), ExecError> {
        let record = self.lock().records[&image.name].clone();
        let reference = self.reference(image, to);
        let early = self.lock().early.get(&image.name).cloned();
        if let Some(early) = early {
            let there = async {
                early.finish().await;
                Ok(())
            };
            if self.until_cancelled(there).await.is_none() {
                return Err(ExecError::Cancelled);
            }
        }
        let upload = image::upload(
            &self.setup.store,
            &self.client,
            &record,
            &reference,
            image.compression,
            &image.name,
            &self.setup.emit,
        );
        let upload = self.until_cancelled(upload).await.unwrap_or(Err(None));
        let upload = upload.map_err(|source| push_error(image, to, source))?;
        self.lock().uploads.insert((image.name.clone(), to.to_owned()), upload);
        Ok(())
    }

    async fn publish(&self, image: &ImagePlan, to: &str) -> Result<(), ExecError> {
        let started = Instant::now();
        let upload = self.lock().uploads[&(image.name.clone(), to.to_owned())].clone();
        let moves = image::publish(&self.client, &upload);
        // What was asked of the registry may be answered yet: then it is known that the tag moved.
        let stopped = async {
            self.workshop.cancelled().await;
            tokio::time::sleep(ANSWER_WAIT).await;
        };
        let digest = tokio::select! {
            digest = moves => digest.map_err(|source| push_error(image, to, Some(source)))?,
            () = stopped => {
                let text = format!("{to} may have moved: its registry had not answered yet");
                (self.setup.emit)(Event::Warning { image: Some(image.name.clone()), text });
                return Err(ExecError::Cancelled);
            }
        };
        self.pushed(image, to, digest, started);
        Ok(())
    }

    fn pushed(&self, image: &ImagePlan, to: &str, digest: Digest, started: Instant) {
        if let Some(report) = self.lock().reports.get_mut(&image.name) {
            report.pushed.push((to.to_owned(), digest));
        }
        (self.setup.emit)(Event::Pushed {
            image: image.name.clone(),
            reference: to.to_owned(),
            digest,
            duration: started.elapsed(),
        });
    }

    fn reference(&self, image: &ImagePlan, to: &str) -> Reference {
        let found = image.pushes.iter().find(|reference| reference.to_string() == to);
        found.expect("push steps are made from pushes").clone()
    }

    /// The future's result with its error optional, or `None` when the user asked to stop first.
    async fn until_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, ImageError>>,
    ) -> Option<Result<T, Option<ImageError>>> {
        tokio::select! {
            result = work => Some(result.map_err(Some)),
            () = self.workshop.cancelled() => None,
        }
    }

    fn report(&self) -> Report {
        let mut progress = self.lock();
        let mut report =
            Report { images: Vec::new(), failures: std::mem::take(&mut progress.failures) };
        if self.setup.cancel.load(Ordering::Relaxed) && report.failures.is_empty() {
            report.failures.push(ExecError::Cancelled);
        }
        for image in &self.plan.images {
            let known = progress.reports.get(&image.name).cloned();
            let skipped = || ImageReport::new(&image.name, ImageState::Skipped);
            report.images.push(known.unwrap_or_else(skipped));
        }
        report
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no holder panics")
    }
}

fn push_error(image: &ImagePlan, to: &str, source: Option<ImageError>) -> ExecError {
    match source {
        None => ExecError::Cancelled,
        Some(source) => ExecError::Push { image: image.name.clone(), to: to.to_owned(), source },
    }
}
