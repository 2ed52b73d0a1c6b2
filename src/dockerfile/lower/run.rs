//! `RUN`: its forms, what it sees, and what the history says.

use std::collections::HashMap;

use crate::dockerfile::ast::{CommandLine, Run};
use crate::graph::{MountKind, Op, PipeFile, RunOp};

use super::args::proxy_env;
use super::config::command_words;
use super::copy::without_tabs;
use super::dispatch::Work;
use super::history::{Made, commit};
use super::stages::Command;
use crate::dockerfile::lower::{Build, Failure};

const PIPES: &str = "/dev/pipes/";
/// Build argument that names the host of processes.
const HOSTNAME_ARG: &str = "BUILDKIT_SANDBOX_HOSTNAME";
const AGENT_VARIABLE: &str = "SSH_AUTH_SOCK";

impl Build<'_> {
    /// `RUN`.
    pub(super) fn run(
        &mut self,
        index: usize,
        work: &mut Work,
        command: &Command,
        run: &Run,
    ) -> Result<(), Failure> {
        let mounts = self.mounts(index, work, command, run)?;
        let (line, pipes) = script(run);
        let argv = command_words(work, &line);
        let mut shown = vec!["RUN".to_owned()];
        shown.extend(shown_args(work));
        shown.extend(argv.iter().cloned());
        shown.push("# buildkit".to_owned());
        let mut env = work.env.clone();
        let agent = mounts.iter().find(|mount| matches!(mount.kind, MountKind::Ssh { .. }));
        if let Some(agent) = agent
            && env.get(AGENT_VARIABLE).is_none()
        {
            env.set(AGENT_VARIABLE, &agent.target);
        }
        let op = Op::Run(RunOp {
            architecture: work.image.platform().normalized().architecture,
            base: work.op,
            argv,
            env: env.pairs(),
            hidden_env: proxy_env(self.options),
            cwd: work.cwd().to_owned(),
            user: work.image.config.user.clone(),
            network: run.network,
            security: run.security,
            mounts,
            pipes,
            devices: run.devices.clone(),
            hostname: self.options.args.get(HOSTNAME_ARG).cloned(),
        });
        self.push(work, command, op, &summary(run));
        commit(&mut work.image, shown.join(" "), Made::Layer);
        Ok(())
    }
}

/// The beginning of a script that is a lone heredoc, for progress.
fn summary(run: &Run) -> String {
    let Some(first) = run.heredocs.first().filter(|_| run.heredoc_only) else {
        return String::new();
    };
    let mut lines = first.content.trim().lines();
    let line = lines.next().unwrap_or_default();
    let more = if lines.next().is_some() { "..." } else { "" };
    format!(" ({line}{more})")
}

/// The command line with its heredocs: a lone one is the script itself, or a file when it names its
/// interpreter; others are the shell's business.
fn script(run: &Run) -> (CommandLine, Vec<PipeFile>) {
    let (CommandLine::Shell(text), Some(first)) = (&run.command, run.heredocs.first()) else {
        return (run.command.clone(), Vec::new());
    };
    if !run.heredoc_only {
        let mut whole = text.clone();
        for heredoc in &run.heredocs {
            whole.push('\n');
            whole.push_str(&heredoc.content);
            whole.push_str(&heredoc.name);
        }
        return (CommandLine::Shell(whole), Vec::new());
    }
    let mut body = first.content.clone();
    if first.chomp {
        body = without_tabs(&body);
    }
    if !body.starts_with("#!") {
        return (CommandLine::Shell(body), Vec::new());
    }
    let pipe = PipeFile { name: first.name.clone(), content: body.into_bytes() };
    (CommandLine::Shell(format!("{PIPES}{}", first.name)), vec![pipe])
}

/// `|n A=1 B=2`: the `ARG`s so far with what the process sees, each once.
fn shown_args(work: &Work) -> Vec<String> {
    let mut places = HashMap::new();
    let mut shown: Vec<(&str, &str)> = Vec::new();
    for (name, value) in &work.args {
        let value = work.env.get(name).or(value.as_deref()).unwrap_or_default();
        let place = *places.entry(name).or_insert(shown.len());
        match shown.get_mut(place) {
            Some((_, known)) => *known = value,
            None => shown.push((name, value)),
        }
    }
    if shown.is_empty() {
        return Vec::new();
    }
    let pairs = shown.iter().map(|(name, value)| format!("{name}={value}"));
    std::iter::once(format!("|{}", shown.len())).chain(pairs).collect()
}
