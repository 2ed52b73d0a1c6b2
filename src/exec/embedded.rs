//! The embedded registry during a run: started when the plan pushes to it, stopped at the end.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{EmbeddedSetup, ExecError, Setup, prepare};
use crate::{
    plan::{EMBEDDED_ADDRESS, Plan},
    registry::{Client, ClientOptions},
    serve::{ServeError, ServeOptions, Server},
    store::Store,
};

/// Wait for whoever has the embedded registry's port to say who it is: one that is ours may have little time on a busy
/// machine, and strangers that say nothing at all are rare.
const WHO_SECONDS: u64 = 10;

/// The embedded registry while something is pushed to it.
///
/// It serves the store at its own port, or at a free one when that is taken: by `idpbuilder serve`
/// or another run, which may end before this one and serve the same store, or by a stranger.
pub struct Embedded {
    server: Server,
    /// Whose the port is that it should have, when it is not ours.
    stranger: Option<SocketAddr>,
}

impl Embedded {
    /// Serves the store until the result is stopped or dropped.
    ///
    /// # Errors
    ///
    /// When no address can be listened on.
    pub async fn start(store: &Store, setup: &EmbeddedSetup) -> Result<Self, ServeError> {
        let serve = |address| {
            Server::start(ServeOptions {
                store: store.clone(),
                address,
                identity: Some(setup.identity.clone()),
                login: Some(setup.login.clone()),
            })
        };
        match serve(setup.address).await {
            Err(ServeError::InUse(taken)) => {
                let server = serve(SocketAddr::new(taken.ip(), 0)).await?;
                let stranger = (!is_ours(setup).await).then_some(taken);
                Ok(Self { server, stranger })
            }
            server => Ok(Self { server: server?, stranger: None }),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.address().port()
    }

    /// What to tell the user, when another program has the registry's port.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let port = self.port();
        self.stranger.map(|taken| {
            format!(
                "another program uses {taken}: what is pushed to {EMBEDDED_ADDRESS} goes into the store by \
                 port {port}, and `idpbuilder serve --address 127.0.0.1:0` serves it"
            )
        })
    }

    /// Finishes what is being asked, and stops.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

/// Whether who answers at the registry's own address has its certificate and login.
async fn is_ours(setup: &EmbeddedSetup) -> bool {
    let settings = prepare::embedded_options(setup);
    let client = Client::new(ClientOptions {
        registries: BTreeMap::from([(EMBEDDED_ADDRESS.to_owned(), settings)]),
        ..ClientOptions::default()
    });
    let Ok(client) = client else { return false };
    let answer =
        tokio::time::timeout(Duration::from_secs(WHO_SECONDS), client.ping(EMBEDDED_ADDRESS));
    matches!(answer.await, Ok(Ok(_)))
}

/// Starts the embedded registry when an image of the plan is pushed to it.
pub(super) async fn start(plan: &Plan, setup: &Setup) -> Result<Option<Embedded>, ExecError> {
    let is_embedded =
        |address: &str| plan.registries.get(address).is_some_and(|registry| registry.embedded);
    let mut pushes = plan.images.iter().flat_map(|image| &image.pushes);
    if !pushes.any(|to| is_embedded(to.registry())) {
        return Ok(None);
    }
    let embedded = (setup.find_embedded)().map_err(ExecError::Embedded)?;
    Ok(Some(Embedded::start(&setup.store, &embedded).await?))
}
