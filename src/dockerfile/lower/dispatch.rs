//! One stage, instruction by instruction.

use std::{collections::HashMap, sync::Arc};

use crate::dockerfile::ast::{Instruction, Kind, Location};
use crate::dockerfile::quote::quoted;
use crate::graph::{FileAction, FilesOp, Op, OpId, OpNode, Place, Setting};
use crate::oci::ImageConfig;

use super::base::ensure_path;
use super::env::{Env, Word};
use super::history::{Made, commit};
use super::stages::{Command, Origin};
use crate::dockerfile::lower::{Build, Failure};
use crate::remote::without_login;

/// A stage while it is lowered, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Work {
    /// The root file system so far.
    pub op: OpId,
    /// Config and history so far.
    pub image: ImageConfig,
    /// `ENV` and `ARG` together: what words and processes see.
    pub env: Env,
    /// `ARG`s so far, inherited ones first; a name may be there twice.
    pub args: Vec<(String, Option<String>)>,
    /// Places in the config's `Env`.
    pub env_places: HashMap<String, usize>,
    /// Entries of history that are the base image's.
    pub history_below: usize,
    /// Whether this file has said `WORKDIR`.
    pub workdir: Seen,
    /// The `CMD` of this stage.
    pub cmd: Option<Location>,
    /// The `ENTRYPOINT` of this stage.
    pub entrypoint: Option<Location>,
    /// The `HEALTHCHECK` of this stage.
    pub healthcheck: Option<Location>,
    /// Stage for progress.
    pub stage: String,
}

/// Whether something was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Seen {
    /// No.
    #[default]
    No,
    /// Yes.
    Yes,
}

impl Work {
    /// A start.
    pub(super) fn new(op: OpId, image: ImageConfig) -> Self {
        Self {
            op,
            image,
            env: Env::default(),
            args: Vec::new(),
            env_places: HashMap::new(),
            history_below: 0,
            workdir: Seen::No,
            cmd: None,
            entrypoint: None,
            healthcheck: None,
            stage: String::new(),
        }
    }

    /// The working directory, absolute.
    pub(super) fn cwd(&self) -> &str {
        match self.image.config.working_dir.as_str() {
            "" => "/",
            path => path,
        }
    }

    /// What a process would find here.
    pub(super) fn setting(&self) -> Setting {
        Setting {
            env: self.env.pairs(),
            cwd: self.cwd().to_owned(),
            user: self.image.config.user.clone(),
            shell: self.image.config.shell.clone(),
            architecture: self.image.platform().normalized().architecture,
        }
    }
}

impl Build<'_> {
    /// Lowers a stage that is needed, unless that is done already.
    pub(super) fn dispatch_stage(&mut self, index: usize) -> Result<(), Failure> {
        if self.states[index].done.is_some() {
            return Ok(());
        }
        let place = self.states[index].from.location.clone();
        let mut work = self.start(index);
        self.make_root(&mut work);
        ensure_path(&mut work.image.config.env);
        work.env_places.clear();
        for (number, pair) in work.image.config.env.iter().enumerate() {
            // Some tools take a name alone, or `*`, for "as on the host".
            let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty())
            else {
                let message =
                    format!("the base image's environment has {pair:?}, which sets nothing");
                return Err(Failure::new(message).at(&place));
            };
            work.env.set(name, value);
            work.env_places.entry(name.to_owned()).or_insert(number);
        }
        if !work.image.config.working_dir.is_empty() {
            work.image.config.working_dir = joined("/", &work.image.config.working_dir);
        }
        let commands = std::mem::take(&mut self.states[index].commands);
        for command in &commands {
            let outcome = self.dispatch(index, &mut work, command);
            outcome.map_err(|failure| failure.at(&command.instruction.location).at(&place))?;
        }
        self.states[index].commands = commands;
        self.states[index].done = Some(work.op);
        if self.heirs[index] > 0 {
            self.states[index].legacy = Some(work);
        }
        Ok(())
    }

    fn start(&mut self, index: usize) -> Work {
        let mut work = match self.states[index].base {
            Some(base) => {
                let mut work = self.inherit(base);
                work.image.config.on_build.clear();
                (work.cmd, work.entrypoint, work.healthcheck) = (None, None, None);
                work
            }
            None => self.states[index].start.take().expect("bases are resolved before"),
        };
        work.stage = self.states[index].name.clone().unwrap_or_else(|| index.to_string());
        work
    }

    fn dispatch(
        &mut self,
        index: usize,
        work: &mut Work,
        command: &Command,
    ) -> Result<(), Failure> {
        let at = &command.instruction;
        match &at.kind {
            Kind::From => Ok(()),
            Kind::Arg(entries) => self.arg(work, at, entries),
            Kind::Env(pairs) => self.env(work, at, pairs),
            Kind::Label(pairs) => self.label(work, at, pairs),
            Kind::Maintainer(name) => {
                work.image.author = Some(name.clone());
                commit(&mut work.image, format!("MAINTAINER {name}"), Made::Nothing);
                Ok(())
            }
            Kind::Run(run) => self.run(index, work, command, run),
            Kind::Copy(copy) => self.copy(index, work, command, copy),
            Kind::Add(copy) => self.add(work, command, copy),
            Kind::Cmd(line) => self.cmd(work, at, line),
            Kind::Entrypoint(line) => self.entrypoint(work, at, line),
            Kind::Shell(words) => {
                work.image.config.shell.clone_from(words);
                let shown = super::history::plain_list(words);
                commit(&mut work.image, format!("SHELL {shown}"), Made::Nothing);
                Ok(())
            }
            Kind::Workdir(path) => self.workdir(work, command, path),
            Kind::User(user) => self.user(work, at, user),
            Kind::Expose(ports) => self.expose(work, at, ports),
            Kind::Volume(paths) => self.volume(work, at, paths),
            Kind::StopSignal(signal) => self.stop_signal(work, at, signal),
            Kind::Healthcheck(check) => self.healthcheck(work, at, check),
            Kind::OnBuild { trigger, heredocs } => {
                let mut stored = trigger.clone();
                for heredoc in heredocs {
                    stored.push('\n');
                    stored.push_str(&heredoc.content);
                    stored.push_str(&heredoc.name);
                }
                work.image.config.on_build.push(stored);
                Ok(())
            }
        }
    }

    /// Expands a word of an instruction, and reports what is not defined.
    pub(super) fn expand(
        &mut self,
        work: &Work,
        at: &Instruction,
        word: &str,
    ) -> Result<String, Failure> {
        let word = work.env.word(word, self.dockerfile.directives.escape);
        self.told(work, at, word)
    }

    /// Expands several words, all over the same variables.
    pub(super) fn expand_all(
        &mut self,
        work: &Work,
        at: &Instruction,
        words: &[String],
    ) -> Result<Vec<String>, Failure> {
        words.iter().map(|word| self.expand(work, at, word)).collect()
    }

    /// The text of an expansion; undefined variables are reported even when it failed.
    pub(super) fn told(
        &mut self,
        work: &Work,
        at: &Instruction,
        word: Word,
    ) -> Result<String, Failure> {
        self.report.undefined(at, &word, &work.env, &work.args);
        word.text.map_err(Failure::new)
    }

    /// Adds the op of an instruction on top of the stage; `addition` follows its line in progress.
    pub(super) fn push(&mut self, work: &mut Work, command: &Command, op: Op, addition: &str) {
        let at = &command.instruction;
        let original = at.original.trim();
        let rest = original.get(at.keyword.len()..).unwrap_or_default().replace('\n', " ");
        let rest = work.env.shown(&rest, self.dockerfile.directives.escape);
        let mut title = format!("{}{rest}{addition}", at.keyword.to_uppercase());
        if matches!(at.kind, Kind::Add(_)) {
            title = without_login(&title);
        }
        if command.origin != Origin::Stage {
            title.insert_str(0, "ONBUILD ");
        }
        let span = match command.origin {
            Origin::ImageTrigger => 0..0,
            Origin::Stage | Origin::StageTrigger => at.location.span.clone(),
        };
        let place = Place { stage: work.stage.clone(), title, span, lines: at.location.lines };
        work.op = self.graph.add(OpNode { op, place, setting: Arc::new(work.setting()) });
    }

    fn workdir(&mut self, work: &mut Work, command: &Command, path: &str) -> Result<(), Failure> {
        let at = &command.instruction;
        let path = self.expand(work, at, path)?;
        if work.workdir == Seen::No && !path.starts_with('/') {
            let message = format!(
                "Relative workdir {} can have unexpected results if the base image changes",
                quoted(&path)
            );
            self.report.warn("WorkdirRelativePath", at, message);
        }
        work.workdir = Seen::Yes;
        let path = joined(work.cwd(), &path);
        work.image.config.working_dir.clone_from(&path);
        let mut made = Made::Nothing;
        if path != "/" {
            let owner = work.image.config.user.clone();
            let action = FileAction::MakeDirectory { path: path.clone(), owner };
            let op = Op::Files(FilesOp { base: work.op, actions: vec![action.clone()] });
            self.push(work, command, op, "");
            self.watch_files(work, at, &action);
            made = Made::Layer;
        }
        commit(&mut work.image, format!("WORKDIR {path}"), made);
        Ok(())
    }
}

/// An absolute path as it is; a relative one below `directory`, cleaned.
fn joined(directory: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { cleaned(&format!("{directory}/{path}")) }
}

/// Go's `path.Join("/", path)`: absolute, without `.`, `..`, empty parts and a trailing slash.
pub(super) fn cleaned(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
