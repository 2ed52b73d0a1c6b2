//! Flags about the network that processes of a build see.

use std::net::IpAddr;

use idpbuilder::plan::{NetworkPlan, PlannedNetwork};

use super::failure::{CONFIGURATION, CliError};

/// The network of every `RUN` that does not choose its own.
#[derive(clap::Args)]
pub(super) struct NetworkArgs {
    /// Network of a RUN that does not say: that of the machine (the default), none, or one of its own that reaches
    /// neither the machine's loopback nor the metadata of clouds (needs slirp4netns or passt).
    #[arg(long, value_enum, value_name = "MODE")]
    network: Option<Mode>,
    /// Another line of /etc/hosts; the address `host-gateway` is this machine.
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Name server.
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Domain in which names are looked up; `.` for none.
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of the resolver, such as `ndots:2`.
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
}

/// Names of networks.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Mode {
    /// As without the flag.
    Default,
    /// The machine's.
    Host,
    /// Loopback only.
    None,
    /// Its own.
    Sandbox,
}

impl NetworkArgs {
    pub(super) fn plan(&self) -> Result<NetworkPlan, CliError> {
        Ok(NetworkPlan {
            mode: match self.network {
                None | Some(Mode::Default) => None,
                Some(Mode::Host) => Some(PlannedNetwork::Host),
                Some(Mode::None) => Some(PlannedNetwork::None),
                Some(Mode::Sandbox) => Some(PlannedNetwork::Sandbox),
            },
            hosts: self.add_host.iter().map(|text| host(text)).collect::<Result<_, _>>()?,
            dns: self.dns.iter().map(ToString::to_string).collect(),
            dns_search: words("--dns-search", &self.dns_search)?,
            dns_options: words("--dns-option", &self.dns_option)?,
        })
    }
}

/// `name:address` or `name=address`; brackets around an address of IPv6 are dropped.
fn host(text: &str) -> Result<(String, String), CliError> {
    let invalid = |reason: &str| {
        CliError::new(CONFIGURATION, format!("--add-host {text}: {reason}"))
            .with_help("for example: --add-host registry.internal:10.0.0.7, or NAME:host-gateway")
    };
    let cut = text.split_once(['=', ':']);
    let (name, address) = cut.ok_or_else(|| invalid("expected NAME:ADDRESS"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    NetworkPlan::check_host(name, address).map_err(|reason| invalid(&reason))?;
    Ok((name.to_owned(), address.to_owned()))
}

/// Words that become part of a line of their own file.
fn words(flag: &str, texts: &[String]) -> Result<Vec<String>, CliError> {
    match texts.iter().find(|text| text.is_empty() || text.contains(char::is_whitespace)) {
        Some(text) => {
            Err(CliError::new(CONFIGURATION, format!("{flag} {text:?}: it must be one word")))
        }
        None => Ok(texts.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_and_an_address() {
        for (text, wanted) in [
            ("a:10.0.0.1", Some(("a", "10.0.0.1"))),
            ("a=10.0.0.1", Some(("a", "10.0.0.1"))),
            ("a.b-c:::1", Some(("a.b-c", "::1"))),
            ("a:[2001:db8::1]", Some(("a", "2001:db8::1"))),
            ("a:host-gateway", Some(("a", "host-gateway"))),
            ("a", None),
            (":10.0.0.1", None),
            ("a:nowhere", None),
            ("a b:10.0.0.1", None),
            ("a\nb:10.0.0.1", None),
        ] {
            let found = host(text).ok();
            let wanted = wanted.map(|(name, address)| (name.to_owned(), address.to_owned()));
            assert_eq!(found, wanted, "{text}");
        }
    }
}
