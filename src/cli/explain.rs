//! `explain`: which steps were done again, or would be, and what was different.
//!
//! A run leaves what its steps came to in `last-run.json`; `--plan` asks the cache and does nothing.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
};

use idpbuilder::{
    event::{Emit, Event, Outcome},
    exec,
    plan::PinMode,
};
use serde::{Deserialize, Serialize};

use super::{
    Global,
    failure::{CliError, ENVIRONMENT, NOT_FOUND},
    lock,
    project::{self, ProjectArgs, SelectionArgs},
    run, setup,
};

/// Name of the file that the last run left, in the home folder.
const FILE_NAME: &str = "last-run.json";

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder explain                 (the last run or build)\n",
    "  idpbuilder explain --plan api      (what a run of api would do now)"
))]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    project: ProjectArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    /// Explains what a run would do now, instead of what the last one did.
    #[arg(long)]
    plan: bool,
    /// Form of the explanation.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    format: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// One line a step.
    Text,
    /// `schema/explain.json`.
    Json,
}

/// What the steps of a run came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Explanation {
    /// Images in the order of the plan, when one was announced.
    #[serde(skip)]
    images: Vec<String>,
    steps: Vec<Step>,
}

/// What one step came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Step {
    image: String,
    step: usize,
    steps: usize,
    name: String,
    outcome: String,
    component: Option<String>,
    reason: Option<String>,
}

/// Takes down what steps came to, beside whoever else is told.
pub(super) struct Recorder {
    taken: Arc<Mutex<Explanation>>,
    /// Tells both.
    pub(super) emit: Emit,
}

impl Recorder {
    pub(super) fn beside(emit: &Emit) -> Self {
        let taken = Arc::new(Mutex::new(Explanation::default()));
        let (sink, emit) = (Arc::clone(&taken), Arc::clone(emit));
        let both: Emit = Arc::new(move |event| {
            if let Event::StepDone {
                image, step, steps, name, outcome, reason, component, ..
            } = &event
            {
                let outcome = match outcome {
                    Outcome::Cached => "cached",
                    Outcome::Built => "built",
                    Outcome::Stale => "stale",
                    Outcome::Failed => "failed",
                    Outcome::Cancelled => "cancelled",
                };
                sink.lock().expect("nobody panics while holding it").steps.push(Step {
                    image: image.clone(),
                    step: *step,
                    steps: *steps,
                    name: name.clone(),
                    outcome: outcome.to_owned(),
                    component: component.clone(),
                    reason: reason.clone(),
                });
            } else if let Event::Planned { images, .. } = &event {
                sink.lock().expect("nobody panics while holding it").images.clone_from(images);
            }
            emit(event);
        });
        Self { taken, emit: both }
    }

    /// Keeps it for `explain`. A home that cannot be written to is no reason to fail a run.
    pub(super) fn keep(&self) {
        let json = serde_json::to_vec(&self.explanation()).expect("texts and numbers");
        let Ok(home) = setup::home() else { return };
        // Among the store's temporary files: when this process is killed now, the next collection removes it.
        let written =
            tempfile::NamedTempFile::new_in(home.join("images/tmp")).and_then(|mut file| {
                file.write_all(&json)?;
                file.persist(home.join(FILE_NAME)).map_err(|refused| refused.error)
            });
        drop(written);
    }

    /// In the order of the plan and of the steps, whatever order they ended in.
    fn explanation(&self) -> Explanation {
        let mut taken = self.taken.lock().expect("nobody panics while holding it").clone();
        let mut images = std::mem::take(&mut taken.images);
        for step in &taken.steps {
            if !images.contains(&step.image) {
                images.push(step.image.clone());
            }
        }
        let place = |step: &Step| images.iter().position(|image| *image == step.image);
        taken.steps.sort_by_key(|step| (place(step), step.step));
        taken
    }
}

pub(super) fn explain(global: &Global, args: &ExplainArgs) -> Result<ExitCode, CliError> {
    let mut explanation = if args.plan { planned(global, args)? } else { last()? };
    let wanted = &args.selection.selection;
    if !args.plan && !wanted.is_empty() {
        explanation.steps.retain(|step| wanted.contains(&step.image));
    }
    setup::print(&match args.format {
        Form::Text => text(&explanation),
        Form::Json => {
            let json = serde_json::to_string_pretty(&explanation).expect("texts and numbers");
            format!("{json}\n")
        }
    });
    Ok(ExitCode::SUCCESS)
}

fn last() -> Result<Explanation, CliError> {
    let path: PathBuf = setup::home()?.join(FILE_NAME);
    let bytes = fs::read(&path).map_err(|_| {
        CliError::new(NOT_FOUND, "nothing has run yet that could be explained")
            .with_help("`idpbuilder run` or `build` first, or `explain --plan`")
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| CliError::new(ENVIRONMENT, format!("{}: {error}", path.display())))
}

fn planned(global: &Global, args: &ExplainArgs) -> Result<Explanation, CliError> {
    let loaded = project::load(&args.project)?;
    let plan = project::plan(&loaded, &args.selection)?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    let mut setup =
        setup::exec_setup(global, setup::store()?, cancel, &run::RunningArgs::default())?;
    setup.pins = lock::pins(&loaded.root, PinMode::Follow)?;
    // What is explained is the result; steps are not shown on the way.
    let recorder = Recorder::beside(&idpbuilder::event::silent());
    setup.emit = Arc::clone(&recorder.emit);
    let skipped = runtime.block_on(exec::explain(&plan, &setup)).map_err(CliError::from)?;
    for (image, needed) in skipped {
        run::notice(global, &format!("{image} stands on {needed}, which would be built again"));
    }
    Ok(recorder.explanation())
}

fn text(explanation: &Explanation) -> String {
    let mut text = String::new();
    let mut image = None;
    for step in &explanation.steps {
        if image != Some(&step.image) {
            text.push_str(&format!("{}\n", step.image));
            image = Some(&step.image);
        }
        let reason = step.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let Step { step, steps, name, outcome, .. } = step;
        text.push_str(&format!("  [{step}/{steps}] {outcome:<6} {name}{reason}\n"));
    }
    if text.is_empty() {
        text.push_str("no steps\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn images_are_told_in_the_order_of_the_plan() {
        let recorder = Recorder::beside(&idpbuilder::event::silent());
        let images = ["base", "site"].map(str::to_owned);
        (recorder.emit)(Event::Planned { images: images.to_vec(), steps: 4 });
        for (image, step) in [("site", 1), ("base", 2), ("base", 1)] {
            (recorder.emit)(Event::StepDone {
                image: image.to_owned(),
                platform: None,
                step,
                steps: 2,
                name: String::new(),
                outcome: Outcome::Built,
                reason: None,
                component: None,
                duration: Duration::ZERO,
            });
        }
        let told: Vec<_> =
            recorder.explanation().steps.into_iter().map(|step| (step.image, step.step)).collect();
        let [base, site] = images;
        assert_eq!(told, [(base.clone(), 1), (base, 2), (site, 1)]);
    }
}
