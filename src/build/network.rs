//! The network of a process: which one, what `/etc/hosts` adds, and what `/etc/resolv.conf` says.

use std::net::UdpSocket;

use super::{BuildError, process::Task};
use crate::{
    graph::{KeyTree, Network, RunOp},
    plan::{NetworkPlan, PlannedNetwork},
    sandbox::{self, Isolation, NetworkMode, SANDBOX_RESOLVER},
};

/// An address that stands for the machine that builds.
const HOST_GATEWAY: &str = "host-gateway";

/// Where systemd-resolved listens, which only the host reaches.
const RESOLVED_STUB: &str = "127.0.0.53";

/// What the machine's own resolver is configured with.
#[derive(Clone, Debug, Default)]
pub struct HostDns {
    /// Text of `/etc/resolv.conf`.
    pub resolv_conf: Vec<u8>,
    /// Text of the file with the servers that systemd-resolved asks itself, when that runs.
    pub upstream: Option<Vec<u8>>,
}

/// The network of a step: its own choice, or what the build was started with.
pub(super) fn mode(run: &RunOp, plan: &NetworkPlan) -> NetworkMode {
    match run.network {
        Network::None => NetworkMode::None,
        Network::Host => NetworkMode::Host,
        Network::Default => asked(plan),
    }
}

/// Fails for a process whose network cannot be had here.
pub(super) fn check(
    run: &RunOp,
    plan: &NetworkPlan,
    isolation: Isolation,
) -> Result<(), BuildError> {
    Ok(sandbox::check_network(mode(run, plan), isolation)?)
}

/// The network of a process that does not choose for itself.
pub(super) fn asked(plan: &NetworkPlan) -> NetworkMode {
    match plan.mode {
        Some(PlannedNetwork::None) => NetworkMode::None,
        Some(PlannedNetwork::Sandbox) => NetworkMode::Sandbox,
        None | Some(PlannedNetwork::Host) => NetworkMode::Host,
    }
}

/// What of it the result depends on.
pub(super) fn add_to_key(task: &Task<'_>, tree: &mut KeyTree) {
    let network = match (task.run.network, task.request.network.mode) {
        (Network::Default, Some(asked)) => format!("{asked:?}"),
        (written, _) => format!("{written:?}"),
    };
    tree.add("network", network);
    for (name, address) in &task.request.network.hosts {
        tree.add(&format!("extra host {name}"), address);
    }
}

/// Lines for `/etc/hosts`: name and address.
pub(super) fn hosts(
    plan: &NetworkPlan,
    mode: NetworkMode,
) -> Result<Vec<(String, String)>, BuildError> {
    let resolved = |(name, address): &(String, String)| {
        let address = match (address.as_str(), mode) {
            (HOST_GATEWAY, NetworkMode::Host) => "127.0.0.1".to_owned(),
            (HOST_GATEWAY, NetworkMode::None | NetworkMode::Sandbox) => own_address(name)?,
            (address, _) => address.to_owned(),
        };
        Ok((name.clone(), address))
    };
    plan.hosts.iter().map(resolved).collect()
}

/// The address that this machine speaks to others with. Nothing is sent.
fn own_address(name: &str) -> Result<String, BuildError> {
    // Any address that is not ours: the kernel looks up the route, and with it the source.
    let found = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("198.51.100.1:9")?;
        socket.local_addr()
    });
    found
        .map(|address| address.ip().to_string())
        .map_err(|source| BuildError::HostGateway { name: name.to_owned(), source })
}

/// Text of `/etc/resolv.conf`: what was asked for, and the host's where nothing was. Where the host's loopback cannot be
/// reached its servers there are replaced: systemd-resolved's by those it asks itself, others by the way to the host's.
pub(super) fn resolv_conf(host: &HostDns, plan: &NetworkPlan, mode: NetworkMode) -> Vec<u8> {
    let own = String::from_utf8_lossy(&host.resolv_conf);
    let asked = !(plan.dns.is_empty() && plan.dns_search.is_empty() && plan.dns_options.is_empty());
    if mode == NetworkMode::Host && !asked {
        return host.resolv_conf.clone();
    }
    let mut servers = plan.dns.clone();
    if servers.is_empty() {
        servers = values(&own, "nameserver");
        if mode != NetworkMode::Host {
            if servers.iter().any(|server| server == RESOLVED_STUB)
                && let Some(upstream) = &host.upstream
            {
                servers.extend(values(&String::from_utf8_lossy(upstream), "nameserver"));
            }
            servers.retain(|server| !server.starts_with("127.") && server != "::1");
        }
        if servers.is_empty() && mode == NetworkMode::Sandbox {
            servers.push(SANDBOX_RESOLVER.to_owned());
        }
    }
    let or_own = |asked: &[String], keyword: &str| match asked {
        [] => values(&own, keyword),
        asked => asked.to_vec(),
    };
    let mut text = String::new();
    let search = or_own(&plan.dns_search, "search");
    // A lone dot asks for none, as with docker.
    if !search.is_empty() && search != ["."] {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    let options = or_own(&plan.dns_options, "options");
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text.into_bytes()
}

/// The words behind a keyword; of `search` and `options` the last line counts (resolv.conf(5)).
fn values(text: &str, keyword: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some(keyword) {
            continue;
        }
        if keyword != "nameserver" {
            found.clear();
        }
        found.extend(words.map(str::to_owned));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_only_the_host_reaches_are_replaced() {
        use NetworkMode::{Host, None, Sandbox};
        let stub = "# managed\nnameserver 127.0.0.53\noptions edns0\nsearch old\nsearch lan\n";
        let real = "nameserver 192.0.2.53\nnameserver 2001:db8::53\n";
        let plan = |dns: &[&str], search: &[&str], options: &[&str]| {
            let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            NetworkPlan {
                dns: own(dns),
                dns_search: own(search),
                dns_options: own(options),
                ..NetworkPlan::default()
            }
        };
        let nothing = plan(&[], &[], &[]);
        let rows = [
            (stub, Some(real), &nothing, Host, stub),
            (
                stub,
                Some(real),
                &nothing,
                Sandbox,
                "search lan\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions edns0\n",
            ),
            (
                stub,
                Option::None,
                &nothing,
                Sandbox,
                "search lan\nnameserver 10.0.2.3\noptions edns0\n",
            ),
            (
                "nameserver 127.0.0.1\nnameserver 192.0.2.7\n",
                Option::None,
                &nothing,
                None,
                "nameserver 192.0.2.7\n",
            ),
            ("", Option::None, &nothing, Sandbox, "nameserver 10.0.2.3\n"),
            ("", Option::None, &nothing, None, ""),
            (
                stub,
                Some(real),
                &plan(&["9.9.9.9"], &["a", "b"], &["ndots:2"]),
                Host,
                "search a b\nnameserver 9.9.9.9\noptions ndots:2\n",
            ),
            (
                stub,
                Some(real),
                &plan(&[], &["."], &[]),
                Host,
                "nameserver 127.0.0.53\noptions edns0\n",
            ),
        ];
        for (own, upstream, plan, mode, wanted) in rows {
            let host = HostDns {
                resolv_conf: own.as_bytes().to_vec(),
                upstream: upstream.map(|text| text.as_bytes().to_vec()),
            };
            let text = String::from_utf8(resolv_conf(&host, plan, mode)).unwrap();
            assert_eq!(text, wanted, "{own:?} {mode:?} {plan:?}");
        }
    }
}
