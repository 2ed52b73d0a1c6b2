//! Stages by name: their bases expanded, the target found, and who needs whom.

use std::collections::HashSet;

use crate::dockerfile::ast::{Instruction, Kind, Location, Stage};
use crate::dockerfile::quote::quoted;
use crate::dockerfile::suggest::{nearest, with_suggestion};
use crate::graph::OpId;
use crate::oci::Platform;

use super::args::{at, undeclared_in_from};
use super::base::lookup_name;
use super::dispatch::Work;
use super::env::{Env, Word};
use crate::dockerfile::lower::{Build, ContextKind, Failure, platform};

/// A stage of the file, or an image or context that one names with `--from`.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Name for messages: the stage's, or `stage-N`; empty when it is alone.
    pub label: String,
    /// `AS`, lower-cased.
    pub name: Option<String>,
    /// Base after expansion.
    pub base_name: String,
    /// An earlier stage of that name.
    pub base: Option<usize>,
    /// A named context that stands for the whole stage.
    pub context: Option<(String, ContextKind)>,
    /// `FROM --platform`.
    pub platform: Option<Platform>,
    /// The `FROM`, or what named this by `--from`.
    pub from: Instruction,
    /// Whether it stands in the file.
    pub kind: StateKind,
    /// What to do, triggers of the base first.
    pub commands: Vec<Command>,
    /// Others whose files it uses.
    pub needs: Vec<usize>,
    /// What it starts from; set when its base is known.
    pub start: Option<Work>,
    /// What came of it, for those who take its files.
    pub done: Option<OpId>,
    /// What came of it, for those who start from it; gone with the last of them.
    pub legacy: Option<Work>,
    /// Whether the triggers of its base are among `commands` already.
    pub triggered: bool,
}

/// Where a state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateKind {
    /// A stage of the file.
    Stage,
    /// Named by `--from` only.
    Outside,
}

/// An instruction, and the states it takes files from: one for `COPY --from`, one a mount for `RUN`.
#[derive(Clone, Debug)]
pub(super) struct Command {
    /// The instruction; that of a trigger stands where the `FROM` does.
    pub instruction: Instruction,
    /// Indices of states.
    pub sources: Vec<Option<usize>>,
    /// Whether a base brought it.
    pub origin: Origin,
}

/// Who wrote an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The stage itself.
    Stage,
    /// `ONBUILD` of a stage of this file.
    StageTrigger,
    /// `ONBUILD` of a base image.
    ImageTrigger,
}

impl Build<'_> {
    /// Expands each `FROM` and looks its base up among the stages before it.
    pub(super) fn register_stages(&mut self) -> Result<(), Failure> {
        let dockerfile = self.dockerfile;
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            let base_name = self.expand_base(stage)?;
            let platform = self.expand_platform(stage)?;
            let context =
                stage.name.as_deref().and_then(|name| self.context(name, platform.as_ref()));
            let base = match context {
                Some(_) => None,
                None => self.names.get(&base_name).copied(),
            };
            if let Some(name) = &stage.name {
                self.names.insert(name.clone(), index);
            }
            self.states.push(State {
                label: stage.name.clone().unwrap_or_else(|| format!("stage-{index}")),
                name: stage.name.clone(),
                base_name,
                base,
                context,
                platform,
                from: stage.from.clone(),
                kind: StateKind::Stage,
                commands: Vec::new(),
                needs: Vec::new(),
                start: None,
                done: None,
                legacy: None,
                triggered: false,
            });
        }
        Ok(())
    }

    fn expand_base(&mut self, stage: &Stage) -> Result<String, Failure> {
        let word = self.expand_in_from(stage, &stage.base);
        let base = word.text.map_err(at(&stage.from.location))?;
        if base.is_empty() {
            let message = format!("base name ({}) should not be blank", stage.base);
            let help = "give the ARG a default, or say --build-arg";
            return Err(Failure::new(message).at(&stage.from.location).help(help));
        }
        Ok(base)
    }

    fn expand_in_from(&mut self, stage: &Stage, word: &str) -> Word {
        let word = self.globals.env.word(word, self.dockerfile.directives.escape);
        for message in undeclared_in_from(self, &word.unset) {
            self.report.warn("UndefinedArgInFrom", &stage.from, message);
        }
        word
    }

    fn expand_platform(&mut self, stage: &Stage) -> Result<Option<Platform>, Failure> {
        let Some(typed) = stage.platform.as_deref().filter(|typed| !typed.is_empty()) else {
            return Ok(None);
        };
        let word = self.expand_in_from(stage, typed);
        self.check_platform_word(stage, typed, &word);
        let fail = at(&stage.from.location);
        let known: Vec<&str> = self.globals.env.names().collect();
        let hinted = |message: String| {
            let near = word.unset.iter().find(|name| nearest(name, &known).is_some());
            match near {
                Some(name) => with_suggestion(message, name, &known),
                None => message,
            }
        };
        let text = word.text.clone().map_err(|message| {
            fail(format!("failed to process arguments for platform : {message}"))
        })?;
        if text.is_empty() {
            return Err(fail(hinted(format!("empty platform value from expression {typed}"))));
        }
        let platform = platform::parse(&text);
        let platform = platform.map_err(|message| {
            fail(hinted(format!("failed to parse platform {typed}: {message}")))
        })?;
        Ok(Some(platform))
    }

    /// `RedundantTargetPlatform` and `FromPlatformFlagConstDisallowed`.
    fn check_platform_word(&mut self, stage: &Stage, typed: &str, word: &Word) {
        let Ok(text) = &word.text else { return };
        let target = self.globals.env.get("TARGETPLATFORM");
        if word.used == ["TARGETPLATFORM"] && word.unset.is_empty() && target == Some(text) {
            let message = format!(
                "Setting platform to predefined {typed} in FROM is redundant as this is the default behavior"
            );
            self.report.warn("RedundantTargetPlatform", &stage.from, message);
        }
        let name = stage.name.as_deref().unwrap_or_default();
        if word.used.is_empty()
            && word.unset.is_empty()
            && let Ok(platform) = platform::parse(text)
            && !name.contains(&platform.os)
            && !name.contains(&platform.architecture)
        {
            let message =
                format!("FROM --platform flag should not use constant value {}", quoted(text));
            self.report.warn("FromPlatformFlagConstDisallowed", &stage.from, message);
        }
    }

    /// The named context that an image or stage name stands for, the one for its platform first.
    pub(super) fn context(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Option<(String, ContextKind)> {
        let name = lookup_name(name)?;
        let platform = platform.unwrap_or(&self.options.platform).clone().normalized();
        let special = format!("{name}::{}", platform::with_version(&platform));
        self.contexts.get(&special).or_else(|| self.contexts.get(&name)).cloned()
    }

    /// The latest stage with this name, whatever its case.
    fn stage_named(&self, name: &str) -> Option<usize> {
        self.names.get(&name.to_lowercase()).copied()
    }

    /// The stage asked for, or the last.
    pub(super) fn find_target(&self) -> Result<usize, Failure> {
        let Some(asked) = &self.options.target else { return Ok(self.states.len() - 1) };
        self.stage_named(asked).ok_or_else(|| {
            let message = format!("target stage {} could not be found", quoted(asked));
            let known: Vec<&str> = self.states.iter().map(|state| state.label.as_str()).collect();
            let names: Vec<&str> =
                self.states.iter().filter_map(|state| state.name.as_deref()).collect();
            let help = if names.is_empty() {
                "no stage has a name: say `FROM … AS name`".to_owned()
            } else {
                format!("stages with a name: {}", names.join(", "))
            };
            Failure::new(with_suggestion(message, asked, &known)).help(help)
        })
    }

    /// Finds what each instruction takes files from.
    pub(super) fn link_instructions(&mut self) -> Result<(), Failure> {
        let dockerfile = self.dockerfile;
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            for instruction in &stage.instructions {
                let command = self.link(instruction.clone(), Origin::Stage)?;
                self.states[index].needs.extend(command.sources.iter().flatten());
                self.states[index].commands.push(command);
            }
        }
        self.check_circles()?;
        if let [alone] = &mut self.states[..] {
            alone.label.clear();
        }
        Ok(())
    }

    /// An instruction with its sources; images that are named for the first time become states.
    pub(super) fn link(
        &mut self,
        instruction: Instruction,
        origin: Origin,
    ) -> Result<Command, Failure> {
        let mut sources = Vec::new();
        if let Kind::Copy(copy) = &instruction.kind
            && let Some(from) = copy.from.as_deref().filter(|from| !from.is_empty())
        {
            sources.push(Some(self.copy_source(from, &instruction)?));
        }
        if let Kind::Run(run) = &instruction.kind {
            for mount in &run.mounts {
                let from = mount.from.as_deref().filter(|from| !from.is_empty());
                let from = from.filter(|_| matches!(mount.kind.as_str(), "bind" | "cache"));
                sources.push(from.map(|from| self.source_named(from, &instruction)));
            }
        }
        Ok(Command { instruction, sources, origin })
    }

    fn copy_source(&mut self, from: &str, instruction: &Instruction) -> Result<usize, Failure> {
        let fail = at(&instruction.location);
        let word = Env::default().word(from, self.dockerfile.directives.escape);
        if word.text.map_err(&fail)? != from {
            return Err(fail(
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global \
                 scope as a workaround"
                    .to_owned(),
            )
            .help("ARG BASE=… before the first FROM, FROM $BASE AS name, COPY --from=name"));
        }
        match from.parse::<i64>() {
            Ok(number) => {
                let index = usize::try_from(number).ok().filter(|index| *index < self.states.len());
                index.ok_or_else(|| fail(format!("invalid stage index {number}")))
            }
            Err(_) => Ok(self.source_named(from, instruction)),
        }
    }

    fn source_named(&mut self, from: &str, instruction: &Instruction) -> usize {
        if let Some(index) = self.stage_named(from) {
            return index;
        }
        self.states.push(State {
            label: String::new(),
            name: None,
            base_name: from.to_owned(),
            base: None,
            context: None,
            platform: None,
            from: instruction.clone(),
            kind: StateKind::Outside,
            commands: Vec::new(),
            needs: Vec::new(),
            start: None,
            done: None,
            legacy: None,
            triggered: true,
        });
        self.states.len() - 1
    }

    /// No stage may take files from itself, however far around.
    fn check_circles(&self) -> Result<(), Failure> {
        let mut seen = HashSet::new();
        for (index, state) in self.states.iter().enumerate() {
            if let Some(place) = self.circle(index, &mut seen) {
                let message = format!("circular dependency detected on stage: {}", state.label);
                let help = "files can be taken from a stage that does not need this one";
                return Err(Failure::new(message).at(&place).help(help));
            }
        }
        Ok(())
    }

    /// The instruction that closes a circle, depth first; a list instead of recursion, since a file
    /// may have very many stages.
    fn circle(&self, start: usize, seen: &mut HashSet<usize>) -> Option<Location> {
        if !seen.insert(start) {
            return None;
        }
        let mut on_path = HashSet::from([start]);
        let mut path = vec![(start, self.uses(start))];
        while let Some((index, open)) = path.last_mut() {
            let Some((source, place)) = open.pop() else {
                on_path.remove(index);
                path.pop();
                continue;
            };
            if on_path.contains(&source) {
                return Some(place);
            }
            if seen.insert(source) {
                on_path.insert(source);
                path.push((source, self.uses(source)));
            }
        }
        None
    }

    /// Whose files a state takes and where it says so, last first.
    fn uses(&self, index: usize) -> Vec<(usize, Location)> {
        let commands = self.states[index].commands.iter().rev();
        let uses = commands.flat_map(|command| {
            let sources = command.sources.iter().rev().flatten();
            sources.map(|source| (*source, command.instruction.location.clone()))
        });
        uses.collect()
    }

    /// Counts who starts from each state; the image itself is the target's heir.
    pub(super) fn count_heirs(&mut self, needed: &[usize], target: usize) {
        self.heirs = vec![0; self.states.len()];
        self.heirs[target] += 1;
        for base in needed.iter().filter_map(|index| self.states[*index].base) {
            self.heirs[base] += 1;
        }
    }

    /// What came of a state, for one heir; the last one needs no copy.
    pub(super) fn inherit(&mut self, index: usize) -> Work {
        self.heirs[index] -= 1;
        let legacy = &mut self.states[index].legacy;
        let work = if self.heirs[index] == 0 { legacy.take() } else { legacy.clone() };
        work.expect("what others start from is an earlier stage, and needed as well")
    }

    /// The target and all it needs.
    pub(super) fn reachable(&self, target: usize) -> HashSet<usize> {
        let (mut reached, mut open) = (HashSet::new(), vec![target]);
        while let Some(index) = open.pop() {
            if reached.insert(index) {
                open.extend(self.states[index].base);
                open.extend(&self.states[index].needs);
            }
        }
        reached
    }
}
