//! What stages start from: images, named contexts, nothing, other stages; and their triggers.

use std::{collections::HashSet, sync::Arc};

use crate::dockerfile::ast::{Heredoc, Instruction, Kind, Location};
use crate::dockerfile::parse_trigger;
use crate::dockerfile::quote::quoted;
use crate::graph::{CopySource, FileAction, FilesOp, Op, OpId, OpNode, Place, SourceRoot};
use crate::oci::{ImageConfig, Platform, Reference, RootFs};

use super::dispatch::Work;
use super::history::commit_local;
use super::platform;
use super::stages::{Origin, StateKind};
use crate::dockerfile::lower::{Build, ContextKind, Failure, ImageRequest, Scope};

const SCRATCH: &str = "scratch";
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_TAG: &str = ":latest";

/// What a source op stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// Nothing.
    Scratch,
    /// An image.
    Image(ImageRequest),
    /// Files; `None` for the build context.
    Context(Option<String>),
}

/// Whether all bases are known.
pub(super) enum Resolution {
    /// These images are not.
    Needs(Vec<ImageRequest>),
    /// They are; the states to lower, in order.
    Done(Vec<usize>),
}

/// The name that named contexts are looked up by: short, and without `:latest`.
pub(super) fn lookup_name(name: &str) -> Option<String> {
    let (name, platform) = match name.split_once("::") {
        Some((name, platform)) => (name, Some(platform)),
        None => (name, None),
    };
    let familiar = name.parse::<Reference>().ok()?.familiar();
    let short = familiar.strip_suffix(DEFAULT_TAG).unwrap_or(&familiar);
    Some(match platform {
        Some(platform) => format!("{short}::{platform}"),
        None => short.to_owned(),
    })
}

impl Build<'_> {
    /// Every base must be a name, also those of stages that are not needed.
    fn check_base_names(&self) -> Result<(), Failure> {
        for state in &self.states {
            let is_image = state.base.is_none() && state.base_name != SCRATCH;
            if is_image && let Err(error) = state.base_name.parse::<Reference>() {
                let message =
                    format!("failed to parse stage name {}: {error}", quoted(&state.base_name));
                let failure = Failure::new(message).at(&state.from.location);
                return Err(match self.report.said("UndefinedArgInFrom", &state.from.location) {
                    Some(unset) => failure.help(format!(
                        "{unset}: `ARG NAME=VALUE` before the first FROM, or --build-arg"
                    )),
                    None => failure,
                });
            }
        }
        Ok(())
    }

    /// Gives every needed state its start, and its triggers, which may need further states.
    pub(super) fn resolve_bases(
        &mut self,
        target: usize,
        scope: Scope,
    ) -> Result<Resolution, Failure> {
        loop {
            self.check_base_names()?;
            let mut needed: Vec<usize> = match scope {
                Scope::Target => self.reachable(target).into_iter().collect(),
                Scope::All => (0..self.states.len()).collect(),
            };
            needed.sort_unstable();
            let mut missing = Vec::new();
            for &index in &needed {
                self.resolve(index, &mut missing)?;
            }
            if !missing.is_empty() {
                return Ok(Resolution::Needs(missing));
            }
            let before = self.states.len();
            let mut grown = HashSet::new();
            for &index in &needed {
                if self.add_triggers(index)? {
                    grown.insert(index);
                }
            }
            if grown.is_empty() && self.states.len() == before {
                return Ok(Resolution::Done(needed));
            }
        }
    }

    /// The start of a state that is no child of another stage.
    fn resolve(&mut self, index: usize, missing: &mut Vec<ImageRequest>) -> Result<(), Failure> {
        let state = &self.states[index];
        if state.base.is_some() || state.start.is_some() || state.done.is_some() {
            return Ok(());
        }
        let (own, name) = (state.context.clone(), state.base_name.clone());
        let replaced = own.is_some();
        let outside = state.kind == StateKind::Outside;
        let wanted = state.platform.clone().unwrap_or_else(|| self.options.platform.clone());
        let work = if name == SCRATCH && !replaced {
            let target = self.options.platform.clone();
            Some(self.scratch(&target))
        } else {
            let context = own.or_else(|| self.context(&name, Some(&wanted)));
            match context {
                Some((context, ContextKind::Files)) => Some(self.local(context, &wanted)),
                Some((_, ContextKind::Scratch)) => Some(self.scratch(&wanted)),
                Some((context, ContextKind::Image)) => {
                    self.image(ImageRequest { name: context, platform: wanted }, missing)
                }
                None => {
                    let request = ImageRequest { name, platform: wanted.clone() };
                    let work = self.image(request, missing);
                    self.check_base_platform(index, &wanted, work.as_ref());
                    work
                }
            }
        };
        let state = &mut self.states[index];
        if replaced || outside {
            // Triggers are for those who write FROM.
            if let Some(mut work) = work {
                work.image.config.on_build.clear();
                state.done = Some(work.op);
                state.legacy = Some(work);
            }
        } else {
            state.start = work;
        }
        Ok(())
    }

    /// `InvalidBaseImagePlatform`.
    fn check_base_platform(&mut self, index: usize, wanted: &Platform, work: Option<&Work>) {
        let Some(have) = work.map(|work| work.image.platform()) else { return };
        if have.os == wanted.os && have.architecture == wanted.architecture {
            return;
        }
        let state = &self.states[index];
        let message = format!(
            "Base image {} was pulled with platform {}, expected {} for current build",
            state.base_name,
            quoted(&platform::with_version(&have.normalized())),
            quoted(&platform::with_version(&wanted.clone().normalized())),
        );
        let from = state.from.clone();
        self.report.warn("InvalidBaseImagePlatform", &from, message);
    }

    fn scratch(&mut self, platform: &Platform) -> Work {
        let op = self.source(Source::Scratch, Op::Scratch);
        Work::new(op, empty_image(platform))
    }

    fn local(&mut self, context: String, platform: &Platform) -> Work {
        let op = self.context_op(Some(context));
        Work::new(op, empty_image(platform))
    }

    fn image(&mut self, request: ImageRequest, missing: &mut Vec<ImageRequest>) -> Option<Work> {
        let Some(config) = self.configs.get(&request) else {
            if !missing.contains(&request) {
                missing.push(request);
            }
            return None;
        };
        let mut config = config.clone();
        config.created = None;
        config.rootfs = RootFs::default();
        let ImageRequest { name, platform } = request.clone();
        let op = self.source(Source::Image(request), Op::Image { name, platform });
        let mut work = Work::new(op, config);
        work.history_below = work.image.history.len();
        Some(work)
    }

    /// The op of a context, which is in the graph once.
    pub(super) fn context_op(&mut self, name: Option<String>) -> OpId {
        self.source(Source::Context(name.clone()), Op::Context { name })
    }

    fn source(&mut self, source: Source, op: Op) -> OpId {
        if let Some(&known) = self.sources.get(&source) {
            return known;
        }
        let title = match &source {
            Source::Scratch => "FROM scratch".to_owned(),
            Source::Image(request) => format!("FROM {}", request.name),
            Source::Context(None) => "build context".to_owned(),
            Source::Context(Some(name)) => format!("context {name}"),
        };
        let place = Place { title, ..Place::default() };
        let id = self.graph.add(OpNode { op, place, setting: Arc::default() });
        self.sources.insert(source, id);
        id
    }

    /// Turns the files of a named context into a layer, for a stage to stand on.
    pub(super) fn make_root(&mut self, work: &mut Work) {
        let node = self.graph.node(work.op);
        let Op::Context { name } = &node.op else { return };
        let name = name.clone().unwrap_or_default();
        let base = self.source(Source::Scratch, Op::Scratch);
        let all = CopySource { root: SourceRoot::Op(work.op), path: "/".to_owned() };
        let copy = FileAction::plain_copy(all, "/");
        let place = Place { title: format!("FROM {name}"), ..Place::default() };
        let op = Op::Files(FilesOp { base, actions: vec![copy] });
        work.op = self.graph.add(OpNode { op, place, setting: Arc::new(work.setting()) });
        commit_local(&mut work.image, &name);
    }

    /// Puts the triggers of the base in front; tells whether something new is needed.
    fn add_triggers(&mut self, index: usize) -> Result<bool, Failure> {
        let state = &mut self.states[index];
        if state.triggered {
            return Ok(false);
        }
        state.triggered = true;
        let (base, place) = (state.base, state.from.location.clone());
        let mut triggers: Vec<(String, Vec<Heredoc>, Origin)> = Vec::new();
        if let Some(start) = &mut state.start {
            let stored = std::mem::take(&mut start.image.config.on_build);
            triggers
                .extend(stored.into_iter().map(|text| (text, Vec::new(), Origin::ImageTrigger)));
        }
        if let Some(base) = base {
            for command in &self.states[base].commands {
                if let Kind::OnBuild { trigger, heredocs } = &command.instruction.kind {
                    triggers.push((trigger.clone(), heredocs.clone(), Origin::StageTrigger));
                }
            }
        }
        let mut commands = Vec::new();
        for (text, heredocs, origin) in triggers {
            let parsed = parse_trigger(&text, &heredocs);
            let instruction = parsed.map_err(|error| Failure::new(error.message).at(&place))?;
            let moved = moved_to(instruction, &place);
            commands.push(self.link(moved, origin).map_err(|failure| failure.at(&place))?);
        }
        let sources: Vec<usize> =
            commands.iter().flat_map(|command| command.sources.iter().flatten().copied()).collect();
        let state = &mut self.states[index];
        state.needs.extend(&sources);
        state.commands.splice(0..0, commands);
        Ok(!sources.is_empty())
    }
}

fn moved_to(instruction: Instruction, place: &Location) -> Instruction {
    Instruction { location: place.clone(), ..instruction }
}

/// The config of `FROM scratch`.
fn empty_image(platform: &Platform) -> ImageConfig {
    let mut image = ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        os_version: platform.os_version.clone(),
        variant: platform.variant.clone(),
        ..ImageConfig::default()
    };
    "/".clone_into(&mut image.config.working_dir);
    image.config.env = vec![DEFAULT_PATH.to_owned()];
    image
}

/// A base without `PATH` gets one.
pub(super) fn ensure_path(env: &mut Vec<String>) {
    if !env.iter().any(|pair| pair.split('=').next() == Some("PATH")) {
        env.push(DEFAULT_PATH.to_owned());
    }
}
