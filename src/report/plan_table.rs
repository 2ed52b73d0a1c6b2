//! A plan as a table, before anything runs.

use super::{Align, Table, one_line};
use crate::{
    plan::{ContextPlan, DockerfileSource, ImagePlan, Plan, StepKind},
    remote::without_login,
};

/// One line a step: number, what, image, from or to where, what it waits for.
#[must_use]
pub fn plan_table(plan: &Plan) -> String {
    let mut table = Table::new(&[
        ("step", Align::Right),
        ("what", Align::Left),
        ("image", Align::Left),
        ("where", Align::Left),
        ("after", Align::Left),
    ]);
    for (index, step) in plan.steps.iter().enumerate() {
        let image = plan.image(&step.image);
        let (what, place) = match &step.kind {
            StepKind::Build => {
                let place = image.map_or_else(String::new, |image| match &image.dockerfile {
                    DockerfileSource::File(path) => path.display().to_string(),
                    DockerfileSource::Inline(text) => {
                        one_line(text.lines().next().unwrap_or_default())
                    }
                    DockerfileSource::Context(path) => in_context(image, path.as_deref()),
                    DockerfileSource::Url(url) => without_login(url),
                });
                ("build", place)
            }
            StepKind::Store => {
                let tags = image.map(|image| {
                    image.tags.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
                });
                ("store", tags.unwrap_or_default())
            }
            StepKind::Push { to } => ("push", to.clone()),
            StepKind::Publish { to } => ("publish", to.clone()),
        };
        let after: Vec<String> = step.inputs.iter().map(|input| (input + 1).to_string()).collect();
        let number = (index + 1).to_string();
        table.add([number, what.to_owned(), step.image.clone(), place, after.join(" ")]);
    }
    table.to_string()
}

/// A Dockerfile that is where the files are.
fn in_context(image: &ImagePlan, path: Option<&str>) -> String {
    let context = match &image.context {
        Some(ContextPlan::Directory(folder)) => folder.display().to_string(),
        Some(ContextPlan::Archive { archive, .. }) => archive.clone(),
        Some(ContextPlan::Remote { remote }) => remote.to_string(),
        None => String::new(),
    };
    path.map_or_else(|| context.clone(), |path| format!("{path} of {context}"))
}
