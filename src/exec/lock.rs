//! What the names in a plan's Dockerfiles stand for today; nothing is built.

use std::sync::Arc;

use super::{
    ExecError, Setup, blocking,
    prepare::{self, BuiltImages},
};
use crate::{
    build::{self, Sources, Workshop},
    plan::{ContextPlan, DockerfileSource, ImagePlan, Lock, PinMode, Pins, Plan},
    registry::Client,
    remote::Remote,
};

/// Looks up every name that is not in `kept`, and drops what is not used any more. Returns the lock, and
/// what is not locked and why, one line each.
///
/// # Errors
///
/// When a file that the plan names cannot be read, or a name stands for nothing.
pub async fn lock(
    plan: &Plan,
    setup: &Setup,
    kept: &Lock,
) -> Result<(Lock, Vec<String>), ExecError> {
    let client = Client::new(prepare::client_options(plan, setup)?)?;
    let pins = Pins { lock: kept.clone(), mode: PinMode::Follow };
    let setup = Setup { pins: Some(Arc::new(pins)), ..setup.clone() };
    let workshop = prepare::workshop(&client, &setup);
    let _lease = setup.store.lease()?;
    let mut found = build::Sources::default();
    for image in &plan.images {
        let (image, setup, workshop) = (image.clone(), setup.clone(), workshop.clone());
        found.add(blocking(move || sources(&image, &setup, workshop)).await?);
    }
    setup.store.flush()?;
    Ok((found.lock, found.notes))
}

/// What the names of one image stand for. Its Dockerfile is read as of what its place was found to be.
fn sources(image: &ImagePlan, setup: &Setup, mut workshop: Workshop) -> Result<Sources, ExecError> {
    let mut found = Sources::default();
    if let Some(remote) = place_of_dockerfile(image) {
        let owner = (image.name.as_str(), &image.secrets);
        found = build::source_of_dockerfile(&workshop, owner, &remote).map_err(|source| {
            ExecError::Context { image: image.name.clone(), source: Box::new(source) }
        })?;
        let mut pins = workshop.pins.as_deref().cloned().unwrap_or_default();
        pins.lock.urls.extend(found.lock.urls.clone());
        pins.lock.git.extend(found.lock.git.clone());
        workshop.pins = Some(Arc::new(pins));
    }
    let nothing = BuiltImages::new();
    let request = prepare::build_request(image, (setup, &workshop), &nothing)?;
    found.add(build::sources(&workshop, &request).map_err(ExecError::Build)?);
    Ok(found)
}

/// The place of another machine that a Dockerfile is read from.
fn place_of_dockerfile(image: &ImagePlan) -> Option<Remote> {
    match (&image.dockerfile, &image.context) {
        (DockerfileSource::Url(url), _) => Some(Remote::Web(url.clone())),
        (DockerfileSource::Context(_), Some(ContextPlan::Remote { remote })) => {
            Some(remote.clone())
        }
        (
            DockerfileSource::Context(_) | DockerfileSource::File(_) | DockerfileSource::Inline(_),
            _,
        ) => None,
    }
}
