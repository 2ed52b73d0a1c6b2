//! The build checks of a plan: everything is read, nothing is built.

use std::sync::Arc;

use super::{
    ExecError, Setup, blocking,
    prepare::{self, BuiltImages},
};
use crate::{
    build::{self, BuildError, BuildFailure, DockerfileText},
    dockerfile::Warning,
    plan::Plan,
    registry::Client,
};

/// What the checks found in one image's Dockerfile.
#[derive(Debug)]
pub struct Checked {
    /// The Dockerfile.
    pub dockerfile: Arc<DockerfileText>,
    /// Findings, in the order in which they were made.
    pub warnings: Vec<Warning>,
    /// What the rules of our own found.
    pub advice: Vec<Warning>,
    /// Why it cannot be built.
    pub failure: Option<BuildFailure>,
}

/// Checks the Dockerfile of every image, in plan order.
///
/// # Errors
///
/// When a file that the plan names cannot be read. A Dockerfile that cannot be built is no error here.
pub async fn check(plan: &Plan, setup: &Setup) -> Result<Vec<Checked>, ExecError> {
    let client = Client::new(prepare::client_options(plan, setup)?)?;
    let workshop = prepare::workshop(&client, setup);
    let mut checked = Vec::new();
    for image in &plan.images {
        let (workshop, setup, image) = (workshop.clone(), setup.clone(), image.clone());
        let done = blocking(move || {
            let place = (&setup, &workshop);
            let request = prepare::build_request(&image, place, &BuiltImages::new())?;
            let outcome = build::check(&workshop, &request);
            Ok::<_, ExecError>((request.dockerfile, outcome))
        });
        let (dockerfile, outcome) = done.await?;
        checked.push(match outcome {
            Ok((warnings, advice)) => Checked { dockerfile, warnings, advice, failure: None },
            Err(failure) => {
                let warnings = if let BuildError::Dockerfile(error) = failure.error.as_ref() {
                    error.warnings.clone()
                } else {
                    Vec::new()
                };
                Checked { dockerfile, warnings, advice: Vec::new(), failure: Some(failure) }
            }
        });
    }
    Ok(checked)
}
