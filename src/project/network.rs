//! What the project file says of the network of processes: which one, names with addresses, and who is asked for others.

use std::collections::BTreeMap;
use std::net::IpAddr;

use miette::SourceSpan;

use super::problem::Fault;
use super::read::Node;
use super::resolve::Filler;
use super::settings::Dns;
use super::settings::ProjectNetwork;

/// An address that stands for the machine that builds.
const HOST_GATEWAY: &str = "host-gateway";

/// Whether a line of `/etc/hosts` can begin with this name.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    !name.is_empty() && name.chars().all(fits)
}

pub(super) fn mode(node: &Node, fill: &mut Filler<'_, '_>) -> Option<ProjectNetwork> {
    match fill.first(node)?.as_str() {
        "none" => Some(ProjectNetwork::None),
        "sandbox" => Some(ProjectNetwork::Sandbox),
        _ => Some(ProjectNetwork::Host),
    }
}

/// Names and addresses that can stand in `/etc/hosts`.
pub(super) fn hosts(
    written: BTreeMap<String, (String, SourceSpan)>,
    fill: &mut Filler<'_, '_>,
) -> BTreeMap<String, String> {
    let mut hosts = BTreeMap::new();
    for (name, (address, at)) in written {
        if !is_host_name(&name) {
            let fault = Fault::WrongValue(format!("`{}` is no host name", name.escape_debug()));
            let help = "letters, digits, `-`, `.` and `_`";
            fill.problems.add(at, fault).label("the address of no name").help(help);
        } else if address == HOST_GATEWAY || address.parse::<IpAddr>().is_ok() {
            hosts.insert(name, address);
        } else {
            let fault = Fault::WrongValue(format!("`{}` is no address", address.escape_debug()));
            let help = "an address such as \"10.0.0.7\", or host-gateway for this machine";
            fill.problems.add(at, fault).label("not an address").help(help);
        }
    }
    hosts
}

/// Servers as arguments; search domains and options in one text each.
pub(super) fn dns(node: &Node, fill: &mut Filler<'_, '_>) -> Dns {
    let mut servers = Vec::new();
    for value in &node.args {
        let Some(server) = fill.text(value) else { continue };
        if server.parse::<IpAddr>().is_ok() {
            servers.push(server);
            continue;
        }
        let fault = Fault::WrongValue(format!("`{}` is no address", server.escape_debug()));
        let help = "a name server is named by its address, such as \"9.9.9.9\"";
        fill.problems.add(value.at, fault).label("not an address").help(help);
    }
    let mut words = |name: &str| {
        let text = fill.prop(node, name).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    Dns { servers, search: words("search"), options: words("options") }
}
