//! `RUN`.

use crate::dockerfile::ast::{CommandLine, Run};
use crate::dockerfile::mount;
use crate::dockerfile::quote::quoted;
use crate::graph::{Network, Security};

use super::flags::{Flags, Takes};
use super::heredoc::{heredoc_of, without_tabs};
use super::instruction::Node;

const FLAGS: [(&str, Takes); 4] = [
    ("mount", Takes::Texts),
    ("network", Takes::Text),
    ("security", Takes::Text),
    ("device", Takes::Texts),
];

pub(super) fn run(node: Node) -> Result<Run, String> {
    let flags = Flags::read(&node.flags, &FLAGS)?;
    let texts = flags.texts("mount");
    texts.iter().try_for_each(|text| mount::check_form(text))?;
    let network = match flags.raw("network") {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some("host") => Network::Host,
        Some(other) => return Err(format!("invalid network mode {}", quoted(other))),
    };
    let security = match flags.raw("security") {
        None | Some("sandbox") => Security::Sandbox,
        Some("insecure") => Security::Insecure,
        Some(other) => return Err(format!("security {} is not valid", quoted(other))),
    };
    let mut heredocs = node.heredocs;
    let mut command = node.arguments.into_command_line();
    let heredoc_only = match &command {
        CommandLine::Shell(text) => !heredocs.is_empty() && matches!(heredoc_of(text), Ok(Some(_))),
        CommandLine::Exec(_) => false,
    };
    if heredoc_only && let Some(heredoc) = heredocs.first_mut() {
        heredoc.content = without_tabs(heredoc);
        command = CommandLine::Shell(heredoc.content.clone());
    }
    Ok(Run {
        command,
        heredocs,
        heredoc_only,
        mounts: Vec::new(),
        network,
        security,
        devices: flags.texts("device"),
        flags: node.flags,
    })
}

/// Reads the mounts of `run`, which BuildKit does later than the rest: these errors have no line in their text.
pub(super) fn read_mounts(run: &mut Run) -> Result<(), String> {
    let texts = run.flags.iter().filter_map(|flag| flag.strip_prefix("--mount="));
    run.mounts = texts.map(mount::read_unexpanded).collect::<Result<_, _>>()?;
    Ok(())
}
