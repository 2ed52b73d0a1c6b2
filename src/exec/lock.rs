//! What the names in a plan's Dockerfiles stand for today; nothing is built.

use std::sync::Arc;

use super::{
    ExecError, Setup,
    prepare::{self, BuiltImages},
};
use crate::{
    build,
    plan::{Lock, PinMode, Pins, Plan},
    registry::Client,
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
        let work = tokio::task::spawn_blocking(move || {
            let nothing = BuiltImages::new();
            let request = prepare::build_request(&image, (&setup, &workshop), &nothing)?;
            build::sources(&workshop, &request).map_err(ExecError::Build)
        });
        let sources = match work.await {
            Ok(sources) => sources?,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => unreachable!("nothing aborts a look-up: {error}"),
            },
        };
        found.add(sources);
    }
    setup.store.flush()?;
    Ok((found.lock, found.notes))
}
