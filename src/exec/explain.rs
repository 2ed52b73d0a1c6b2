//! What a run would do again, and why: the cache is asked, and nothing is built.

use super::{
    ExecError, Setup, blocking,
    prepare::{self, BuiltImages},
};
use crate::{build, plan::Plan, registry::Client};

/// Tells of every step of a plan, by events, whether it would be done and what is different. Returns
/// images that stand on one that would be built again, with that one's name: nothing can be said of
/// their steps.
///
/// # Errors
///
/// When a file that the plan names cannot be read, or a base cannot be found.
pub async fn explain(plan: &Plan, setup: &Setup) -> Result<Vec<(String, String)>, ExecError> {
    let client = Client::new(prepare::client_options(plan, setup)?)?;
    let workshop = prepare::workshop(&client, setup);
    let _lease = setup.store.lease()?;
    let (mut built, mut skipped) = (BuiltImages::new(), Vec::new());
    for image in &plan.images {
        if let Some(needed) = image.needs.iter().find(|name| !built.contains_key(*name)) {
            skipped.push((image.name.clone(), needed.clone()));
            continue;
        }
        let (asked, setup, done) = (image.clone(), setup.clone(), built.clone());
        let workshop = workshop.clone();
        let known = blocking(move || {
            let request = prepare::build_request(&asked, (&setup, &workshop), &done)?;
            build::explain(&workshop, &request).map_err(ExecError::Build)
        });
        if let Some(known) = known.await? {
            built.insert(image.name.clone(), known.images);
        }
    }
    Ok(skipped)
}
