//! Events as plain lines, for logs and pipes.

use super::{bytes, safe, seconds};
use crate::event::{Direction, Event, Outcome};

/// The lines of one event; none for what only a live display shows.
pub(super) fn lines(event: &Event) -> Vec<String> {
    match event {
        Event::Planned { images, steps } => {
            let counted = match images.len() {
                1 => "1 image".to_owned(),
                count => format!("{count} images"),
            };
            vec![format!("plan: {counted}, {steps} steps: {}", images.join(", "))]
        }
        Event::StepStarted { image, platform, step, steps, name } => {
            vec![format!("{image}: [{}{step}/{steps}] {}", before(platform), safe(name))]
        }
        Event::StepOutput { image, text, .. } => vec![format!("{image}:   | {}", safe(text))],
        Event::StepDone { image, platform, step, steps, outcome, reason, duration, .. } => {
            let platform = before(platform);
            let outcome = match outcome {
                Outcome::Cached => "cached",
                Outcome::Built => "done",
                Outcome::Stale => "stale",
                Outcome::Failed => "failed",
                Outcome::Cancelled => "cancelled",
            };
            let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let time = seconds(duration.as_secs_f64());
            vec![format!("{image}: [{platform}{step}/{steps}] {outcome} in {time}{reason}")]
        }
        Event::Transfer { image, direction, digest, done, total } if done == total => {
            let verb = match direction {
                Direction::Pull => "pulled",
                Direction::Push => "pushed",
            };
            vec![format!("{image}: {verb} blob sha256:{} {}", digest.short(), bytes(*total))]
        }
        Event::TransferSkipped { image, digest, reason, .. } => {
            vec![format!("{image}: blob sha256:{} {reason}", digest.short())]
        }
        Event::Source { image, source, identity, fetch } => {
            let done = if *fetch { "fetching" } else { "known" };
            let identity = identity.as_ref().map(|identity| format!(" is {identity}"));
            let identity = identity.unwrap_or_default();
            vec![format!("{image}: {}{identity}, {done}", safe(source))]
        }
        Event::Retrying { image, reason, attempt, wait } => {
            let wait = seconds(wait.as_secs_f64());
            vec![format!("{image}: {reason}; try {attempt} in {wait}")]
        }
        Event::ImageStored { image, id, .. } => {
            vec![format!("{image}: stored as sha256:{}", id.short())]
        }
        Event::Pushed { image, reference, digest, .. } => {
            vec![format!("{image}: {reference} is {digest}")]
        }
        Event::ImageFailed { image, reason } => {
            vec![format!("{image}: failed: {}", safe(&super::one_line(reason)))]
        }
        Event::ImageCancelled { image } => vec![format!("{image}: cancelled")],
        Event::ImageSkipped { image, reason } => vec![format!("{image}: not built: {reason}")],
        Event::Warning { image, text } => {
            let image = image.as_ref().map(|image| format!("{image}: ")).unwrap_or_default();
            vec![format!("{image}warning: {}", safe(text))]
        }
        Event::Note { text } => vec![format!("note: {}", safe(text))],
        Event::Transfer { .. } | Event::ImageStarted { .. } | Event::Finished { .. } => Vec::new(),
    }
}

/// What stands before the number of a step: BuildKit's way of naming the platform.
pub(super) fn before(platform: &Option<String>) -> String {
    platform.as_ref().map(|platform| format!("{platform} ")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_step_tells_its_number_outcome_and_reason() {
        let mut event = Event::StepDone {
            image: "api".into(),
            platform: None,
            step: 2,
            steps: 5,
            name: "RUN make".into(),
            outcome: Outcome::Built,
            reason: Some("command changed: a → b".into()),
            component: Some("command".into()),
            duration: Duration::from_millis(1240),
        };
        assert_eq!(lines(&event), ["api: [2/5] done in 1.2 s (command changed: a → b)"]);
        let Event::StepDone { platform, .. } = &mut event else { unreachable!() };
        *platform = Some("linux/arm64".into());
        let [line] = &lines(&event)[..] else { panic!("{event:?}") };
        assert!(line.starts_with("api: [linux/arm64 2/5] done in"), "{line}");
    }
}
