//! A step of an image's last build, chosen by its number, its text or its line.
//!
//! Knows what builds noted down; what is done with a step is for others.

use idpbuilder::{
    build::{Step, Steps},
    graph::Setting,
    oci::{DiffId, Platform},
    report::{Align, Table, fit, safe},
    store::Store,
};

use super::failure::{CONFIGURATION, CliError, NOT_FOUND};

/// Columns for an instruction in a list.
const INSTRUCTION_COLUMNS: usize = 70;

/// Which step.
#[derive(clap::Args)]
pub(super) struct StepArgs {
    /// What a step of the last build left, of any stage: its number, or a part of its text as progress shows it.
    #[arg(long, value_name = "NUMBER|TEXT", conflicts_with = "line")]
    step: Option<String>,
    /// The same by a line of the Dockerfile.
    #[arg(long, value_name = "NUMBER")]
    line: Option<usize>,
    /// For which platform it was built; this machine's by default.
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
}

/// A step that was done.
pub(super) struct Found {
    /// Bottom first.
    pub(super) layers: Vec<DiffId>,
    /// What a process finds there.
    pub(super) setting: Setting,
    /// The step in words.
    pub(super) words: String,
}

impl StepArgs {
    /// The step that was asked for; `None` when none was.
    pub(super) fn find(&self, store: &Store, image: &str) -> Result<Option<Found>, CliError> {
        if self.step.is_none() && self.line.is_none() {
            return match &self.platform {
                Some(_) => Err(CliError::new(CONFIGURATION, "--platform needs --step or --line")),
                None => Ok(None),
            };
        }
        let platform = self.platform.clone().unwrap_or_else(Platform::host);
        let known = Steps::last(store, image, &platform);
        let steps = known.map_err(|error| CliError::from_build(&error))?.ok_or_else(|| {
            let message = format!("no build of `{image}` for {platform} is known");
            CliError::new(NOT_FOUND, message).with_help(
                "the name is the one that progress shows in front of steps, as in `NAME: [1/2] RUN …`",
            )
        })?;
        let step = self.choose(image, &steps)?;
        let words = format!("step {} of {image}, `{}`", step.number, step.title);
        let Some(layers) = steps.layers(step) else {
            let earlier = steps.all().iter().rev().find(|earlier| {
                earlier.is_done() && earlier.stage == step.stage && earlier.number < step.number
            });
            let error = CliError::new(CONFIGURATION, format!("{} was not done", safe(&words)));
            return Err(match earlier {
                Some(earlier) => error.with_help(format!(
                    "step {} is the last one before it: --step {}",
                    earlier.number, earlier.number
                )),
                None => error.with_help(
                    "`--on-failure=shell` of a build opens a shell in a step that fails",
                ),
            });
        };
        Ok(Some(Found { layers, setting: steps.setting(step), words }))
    }

    fn choose<'s>(&self, image: &str, steps: &'s Steps) -> Result<&'s Step, CliError> {
        let all = steps.all();
        let number = self.step.as_ref().and_then(|text| text.parse::<usize>().ok());
        let (asked, found): (String, Vec<&Step>) = match (number, &self.step, self.line) {
            (Some(number), ..) => (
                format!("step {number}"),
                all.iter().filter(|step| step.number == number).collect(),
            ),
            (None, Some(text), _) => (
                format!("step with `{text}`"),
                all.iter().filter(|step| step.title.contains(text.as_str())).collect(),
            ),
            (None, None, line) => {
                let line = line.unwrap_or_default();
                let holds = |step: &&Step| (step.lines.0..=step.lines.1).contains(&line);
                (format!("step on line {line}"), all.iter().filter(holds).collect())
            }
        };
        match found.as_slice() {
            [step] => Ok(step),
            [] => Err(CliError::new(CONFIGURATION, format!("{image} has no {}", safe(&asked)))
                .with_help(list("its steps", &all.iter().collect::<Vec<_>>()))),
            several => {
                let message = format!("{image} has more than one {}", safe(&asked));
                Err(CliError::new(CONFIGURATION, message)
                    .with_help(list("choose one by its number", several)))
            }
        }
    }
}

/// Steps as a table below a line.
fn list(title: &str, steps: &[&Step]) -> String {
    let headings = [
        ("step", Align::Right),
        ("line", Align::Right),
        ("stage", Align::Left),
        ("what", Align::Left),
    ];
    let mut table = Table::new(&headings);
    for step in steps {
        let line = match step.lines {
            (0, _) => "–".to_owned(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        let done = if step.is_done() { "" } else { " (not done)" };
        let what = format!("{}{done}", fit(&safe(&step.title), INSTRUCTION_COLUMNS));
        table.add([step.number.to_string(), line, safe(&step.stage), what]);
    }
    format!("{title}:\n{}", table.to_string().trim_end())
}
