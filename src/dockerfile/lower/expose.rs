//! `EXPOSE`: words → ports.

use std::net::IpAddr;

use crate::dockerfile::ast::Instruction;
use crate::dockerfile::quote::quoted;
use crate::oci::Empty;

use super::dispatch::Work;
use super::history::{self, Made, commit};
use crate::dockerfile::lower::{Build, Failure};

impl Build<'_> {
    /// `EXPOSE`: the only instruction whose words are split again after expansion.
    pub(super) fn expose(
        &mut self,
        work: &mut Work,
        at: &Instruction,
        words: &[String],
    ) -> Result<(), Failure> {
        let mut ports = Vec::new();
        for word in words {
            let split = work.env.words(word, self.dockerfile.directives.escape);
            for port in split.map_err(Failure::new)? {
                self.check_port(at, &port);
                ports.extend(parse_port(&port).map_err(Failure::new)?);
            }
        }
        let shown = history::plain_list(&ports);
        work.image.config.exposed_ports.extend(ports.into_iter().map(|port| (port, Empty {})));
        commit(&mut work.image, format!("EXPOSE {shown}"), Made::Nothing);
        Ok(())
    }

    /// `ExposeInvalidFormat` and `ExposeProtoCasing`.
    fn check_port(&mut self, at: &Instruction, typed: &str) {
        if typed.contains(':') {
            let message = format!(
                "EXPOSE instruction should not define an IP address or host-port mapping, found '{typed}'"
            );
            self.report.warn("ExposeInvalidFormat", at, message);
        }
        if typed.split_once('/').is_some_and(|(_, protocol)| protocol != protocol.to_lowercase()) {
            let message =
                format!("Defined protocol '{typed}' in EXPOSE instruction should be lowercase");
            self.report.warn("ExposeProtoCasing", at, message);
        }
    }
}

/// `[[ip:]host:]port[-port][/protocol]` → `port/protocol` for each port.
fn parse_port(typed: &str) -> Result<Vec<String>, String> {
    let mut parts = typed.rsplitn(3, ':');
    let container = parts.next().unwrap_or_default();
    let host = parts.next().unwrap_or_default();
    let address = parts.next().unwrap_or_default();
    let (range, protocol) = protocol_of(container)
        .map_err(|reason| format!("invalid port: {}: {reason}", quoted(typed)))?;
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(address);
    if !address.is_empty() && address.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address: {address}"));
    }
    let ports = port_range(range).ok_or_else(|| format!("invalid containerPort: {range}"))?;
    if !host.is_empty() {
        let hosts = port_range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
        if hosts.len() != ports.len() && ports.len() > 1 {
            return Err(format!(
                "invalid ranges specified for container and host Ports: {range} and {host}"
            ));
        }
    }
    Ok(ports.map(|port| format!("{port}/{protocol}")).collect())
}

fn protocol_of(container: &str) -> Result<(&str, String), String> {
    let (range, protocol) = container.split_once('/').unwrap_or((container, ""));
    if range.is_empty() {
        return Err(format!("no port specified: {container}<empty>"));
    }
    match protocol.to_lowercase().as_str() {
        "" => Ok((range, "tcp".to_owned())),
        known @ ("tcp" | "udp" | "sctp") => Ok((range, known.to_owned())),
        other => Err(format!("invalid proto: {other}")),
    }
}

fn port_range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<u16>().ok()).flatten()
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}
