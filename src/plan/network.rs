//! What processes of an image see of the network.

use std::net::IpAddr;

use serde::Serialize;

use crate::project::is_host_name;

/// What a `RUN` that does not choose for itself sees of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetworkPlan {
    /// Which network; `None` for the default, which is the host's.
    pub mode: Option<PlannedNetwork>,
    /// Lines for `/etc/hosts`: name, and address or `host-gateway`.
    pub hosts: Vec<(String, String)>,
    /// Name servers instead of the host's.
    pub dns: Vec<String>,
    /// Search domains instead of the host's.
    pub dns_search: Vec<String>,
    /// Options of the resolver instead of the host's.
    pub dns_options: Vec<String>,
}

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlannedNetwork {
    /// Loopback only.
    None,
    /// The host's.
    Host,
    /// Its own, with a way out through a helper program.
    Sandbox,
}

impl NetworkPlan {
    /// Whether a line of `/etc/hosts` can be made of these.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn check_host(name: &str, address: &str) -> Result<(), String> {
        if !is_host_name(name) {
            return Err(format!("`{}` is no host name", name.escape_debug()));
        }
        if address != "host-gateway" && address.parse::<IpAddr>().is_err() {
            return Err(format!(
                "`{}` is neither an address nor host-gateway",
                address.escape_debug()
            ));
        }
        Ok(())
    }
}
