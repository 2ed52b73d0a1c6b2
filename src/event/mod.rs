//! What happens during a run, as values: `build` and `exec` emit them, `report` folds them.
//!
//! An event says what happened and never how it is shown. Secrets never appear in one.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use crate::oci::Digest;

/// Takes events as they happen; called from any thread, must not block for long.
pub type Emit = Arc<dyn Fn(Event) + Send + Sync>;

/// Which of a process's two outputs some bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a step came to its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// An earlier result was used.
    Cached,
    /// The work was done.
    Built,
    /// The work would have to be done; only an explanation was asked for.
    Stale,
    /// The work failed.
    Failed,
    /// The step was stopped before its end.
    Cancelled,
}

/// Which way bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From a registry.
    Pull,
    /// To a registry.
    Push,
}

/// One thing that happened. `image` is the image's name in the plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The plan is made; nothing has run.
    Planned {
        /// Names of the images, in plan order.
        images: Vec<String>,
        /// Number of plan steps (build, store, push, publish).
        steps: usize,
    },
    /// Work on an image begins.
    ImageStarted {
        /// The image.
        image: String,
    },
    /// An instruction of an image begins.
    StepStarted {
        /// The image.
        image: String,
        /// The platform that it is for, when the image is built for several.
        platform: Option<String>,
        /// Number of the step within the image, from 1.
        step: usize,
        /// Steps of the image.
        steps: usize,
        /// The instruction as the user wrote it, on one line.
        name: String,
    },
    /// Output of a RUN step, raw as the process wrote it.
    StepOutput {
        /// The image.
        image: String,
        /// The platform that it is for, when the image is built for several.
        platform: Option<String>,
        /// The step.
        step: usize,
        /// Which output.
        stream: Stream,
        /// The bytes, as text with invalid UTF-8 replaced.
        text: String,
    },
    /// An instruction of an image ended.
    StepDone {
        /// The image.
        image: String,
        /// The platform that it is for, when the image is built for several.
        platform: Option<String>,
        /// The step.
        step: usize,
        /// Steps of the image.
        steps: usize,
        /// The instruction.
        name: String,
        /// How it ended.
        outcome: Outcome,
        /// For a miss: the first difference to what was cached, in words.
        reason: Option<String>,
        /// For a miss: name of the first part of the cache key that differs.
        component: Option<String>,
        /// How long it took.
        #[serde(rename = "seconds", serialize_with = "as_seconds")]
        duration: Duration,
    },
    /// Bytes of one blob travelled.
    Transfer {
        /// The image.
        image: String,
        /// Which way.
        direction: Direction,
        /// The blob.
        digest: Digest,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A blob needed no transfer.
    TransferSkipped {
        /// The image.
        image: String,
        /// Which way.
        direction: Direction,
        /// The blob.
        digest: Digest,
        /// Why: `exists` or `mounted`.
        reason: &'static str,
    },
    /// Files of another machine are looked at: fetched now, or known already.
    Source {
        /// The image.
        image: String,
        /// Repository or URL, without passwords.
        source: String,
        /// Commit, or digest of the content; `None` while it is not known.
        identity: Option<String>,
        /// Whether they have to be fetched.
        fetch: bool,
    },
    /// A request is made again after a failure.
    Retrying {
        /// The image.
        image: String,
        /// What failed, in one line.
        reason: String,
        /// Which try comes next, from 2.
        attempt: u32,
        /// Wait before it.
        #[serde(rename = "seconds", serialize_with = "as_seconds")]
        wait: Duration,
    },
    /// The image is in the store.
    ImageStored {
        /// The image.
        image: String,
        /// Image ID: digest of the config.
        id: Digest,
        /// Digest of the manifest as stored.
        digest: Digest,
        /// Bytes of all layers, uncompressed.
        size: u64,
        /// Instructions that were cached.
        cached: usize,
        /// Instructions in all.
        steps: usize,
        /// How long it took.
        #[serde(rename = "seconds", serialize_with = "as_seconds")]
        duration: Duration,
    },
    /// A tag of a registry points at the image now.
    Pushed {
        /// The image.
        image: String,
        /// Where.
        reference: String,
        /// Digest of the manifest that was pushed.
        digest: Digest,
        /// How long it took.
        #[serde(rename = "seconds", serialize_with = "as_seconds")]
        duration: Duration,
    },
    /// Work on an image ended without a result.
    ImageFailed {
        /// The image.
        image: String,
        /// Why, in one line.
        reason: String,
    },
    /// Work on an image was stopped before its end, because the user asked.
    ImageCancelled {
        /// The image.
        image: String,
    },
    /// Work on an image never began: another failed, or the user asked to stop.
    ImageSkipped {
        /// The image.
        image: String,
        /// Why.
        reason: String,
    },
    /// Something the user should know; the run goes on.
    Warning {
        /// The image, when it is about one.
        image: Option<String>,
        /// One line.
        text: String,
    },
    /// Something about this place that the user should know, once; the run goes on.
    Note {
        /// One line.
        text: String,
    },
    /// The run ended.
    Finished {
        /// Whether all went well.
        ok: bool,
        /// How long it took.
        #[serde(rename = "seconds", serialize_with = "as_seconds")]
        duration: Duration,
    },
}

fn as_seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((time.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// An [`Emit`] that forgets everything.
#[must_use]
pub fn silent() -> Emit {
    Arc::new(|_| {})
}
