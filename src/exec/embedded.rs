//! The embedded registry during a run: started when the plan pushes to it, stopped at the end.

use super::{EmbeddedSetup, ExecError, Setup};
use crate::{
    plan::Plan,
    serve::{ServeError, ServeOptions, Server},
    store::Store,
};

/// Starts the embedded registry when an image of the plan is pushed to it.
pub(super) async fn start(plan: &Plan, setup: &Setup) -> Result<Option<Server>, ExecError> {
    let is_embedded =
        |address: &str| plan.registries.get(address).is_some_and(|registry| registry.embedded);
    let mut pushes = plan.images.iter().flat_map(|image| &image.pushes);
    match pushes.any(|to| is_embedded(to.registry())) {
        true => Ok(serve_embedded(&setup.store, &setup.embedded).await?),
        false => Ok(None),
    }
}

/// Serves the store at the embedded registry's address until the result is stopped or dropped.
///
/// `None` when the address is taken: `idpbuilder serve` is then taken to be running there. It uses
/// the same certificate and login, so a stranger at the address is refused by the TLS check.
///
/// # Errors
///
/// When the address cannot be listened on for another reason.
pub async fn serve_embedded(
    store: &Store,
    embedded: &EmbeddedSetup,
) -> Result<Option<Server>, ServeError> {
    let options = ServeOptions {
        store: store.clone(),
        address: embedded.address,
        identity: Some(embedded.identity.clone()),
        login: Some(embedded.login.clone()),
    };
    match Server::start(options).await {
        Ok(server) => Ok(Some(server)),
        Err(ServeError::InUse(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
