//! [`Dockerfile`] → ops, config and history, for one target and platform.
//!
//! The story: global arguments ([`args`]), names and bases of the stages ([`stages`]), which stages
//! the target needs and what their bases are ([`base`]), then one instruction after another
//! ([`dispatch`] and the files that it names). Pure: images are known by their configs alone, files
//! by their names. Nothing here knows how an op is done, nor what a registry is.

mod args;
mod asking;
mod base;
mod chmod;
mod config;
mod copy;
mod dispatch;
mod env;
mod expose;
mod file_rules;
mod history;
mod ignored;
mod mounts;
mod platform;
mod report;
mod run;
mod secret_names;
mod signal;
mod stages;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use crate::dockerfile::DockerfileError;
use crate::dockerfile::ast::{Dockerfile, Location};
use crate::dockerfile::lint::Warning;
use crate::graph::{OpGraph, OpId};
use crate::oci::{ImageConfig, Platform};

pub use args::Epoch;
use args::Globals;
pub use asking::{Asking, who_asks};
use ignored::Ignored;
use report::Report;
use stages::State;

/// What a build is asked for.
#[derive(Clone, Debug)]
pub struct LowerOptions {
    /// Stage to build; the last one when not given.
    pub target: Option<String>,
    /// `--build-arg`.
    pub args: BTreeMap<String, String>,
    /// `--label`: put on the image last, without history.
    pub labels: BTreeMap<String, String>,
    /// What the image is for.
    pub platform: Platform,
    /// What the build runs on.
    pub build_platform: Platform,
    /// `--build-context` by name, and what kind of thing it is.
    pub named_contexts: BTreeMap<String, ContextKind>,
    /// Text of the ignore file of the build context, for the check that looks at it.
    pub ignore: Option<String>,
}

/// What stands behind a named context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextKind {
    /// Files only.
    Files,
    /// Nothing, as `scratch`.
    Scratch,
    /// An image, with a config.
    Image,
}

/// An image whose config is needed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRequest {
    /// As written, expanded (`busybox`, or the name of a named context of kind image).
    pub name: String,
    /// What it must run on.
    pub platform: Platform,
}

/// A build, or what must be known first.
#[derive(Clone, Debug)]
pub enum Lowering {
    /// Resolve these and call again.
    Needs(Vec<ImageRequest>),
    /// Ready.
    Done(Box<Lowered>),
}

/// A build as ops, and the image that it will be.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// What to do; only what the target needs.
    pub graph: OpGraph,
    /// The op whose layers the image has.
    pub result: OpId,
    /// The image's config without `created` and `rootfs`; `history` is the base's followed by one
    /// entry an instruction, without `created` for the new ones.
    pub config: ImageConfig,
    /// How many entries of `history` are the base's.
    pub history_below: usize,
    /// What the base says that it runs on: the image's platform when the user asked for none
    /// (`config` has the platform of [`LowerOptions`]).
    pub base_platform: Platform,
    /// What the build checks found.
    pub warnings: Vec<Warning>,
    /// What the rules of our own found ([`crate::dockerfile::lint::OWN_RULES`]).
    pub advice: Vec<Warning>,
    /// Rules of our own that only files can answer, and the ops to ask.
    pub file_rules: BTreeMap<OpId, FileRules>,
    /// `--build-arg`s that no `ARG` asks for, one sentence each (rule `UnusedBuildArg`).
    pub unused_args: Vec<String>,
    /// `SOURCE_DATE_EPOCH`, from `--build-arg` or a global `ARG`.
    pub epoch: Option<Epoch>,
}

/// What to look for when the files of an op are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileRules {
    /// Rules that may speak here.
    pub rules: Vec<&'static str>,
    /// Where the instruction stands.
    pub location: Location,
}

impl Lowered {
    /// Makes the image one for what its base runs on.
    pub fn take_platform_of_base(&mut self) {
        let Platform { architecture, os, os_version, variant } = self.base_platform.clone();
        (self.config.architecture, self.config.os) = (architecture, os);
        (self.config.os_version, self.config.variant) = (os_version, variant);
    }
}

/// Which stages are lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// What the target needs.
    Target,
    /// Every stage, so that the checks see all of them.
    All,
}

/// Lowers one target for one platform; `configs` holds what earlier calls asked for.
///
/// # Errors
///
/// When the build cannot be described; messages are BuildKit's.
pub fn lower(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
    configs: &HashMap<ImageRequest, ImageConfig>,
) -> Result<Lowering, DockerfileError> {
    reported(dockerfile, options, configs, Scope::Target)
}

/// As [`lower`], but every stage is lowered when no target is asked for: what `--check` looks at.
///
/// # Errors
///
/// As [`lower`].
pub fn lower_for_check(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
    configs: &HashMap<ImageRequest, ImageConfig>,
) -> Result<Lowering, DockerfileError> {
    let scope = if options.target.is_some() { Scope::Target } else { Scope::All };
    reported(dockerfile, options, configs, scope)
}

/// Whatever becomes of the build, the warnings are told.
fn reported(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
    configs: &HashMap<ImageRequest, ImageConfig>,
    scope: Scope,
) -> Result<Lowering, DockerfileError> {
    let started = Report::new(dockerfile, options);
    let outcome = match started {
        Ok(report) => {
            let mut build = Build::new(dockerfile, options, configs, report);
            let lowering = build.lower(scope);
            lowering.map_err(|failure| (failure, build.report.warnings))
        }
        Err(failure) => Err((failure, dockerfile.warnings.clone())),
    };
    outcome.map_err(|(failure, warnings)| DockerfileError {
        message: failure.message,
        location: failure.location,
        label: None,
        help: failure.help,
        warnings,
        others: Vec::new(),
    })
}

/// Why lowering stops, before it is told to the outside.
#[derive(Clone, Debug)]
struct Failure {
    message: String,
    location: Option<Location>,
    help: Option<String>,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), location: None, help: None }
    }

    /// Says the way out.
    fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    fn at(mut self, location: &Location) -> Self {
        self.location.get_or_insert_with(|| location.clone());
        self
    }
}

/// Everything that lowering knows, and what it has made so far.
struct Build<'a> {
    dockerfile: &'a Dockerfile,
    options: &'a LowerOptions,
    configs: &'a HashMap<ImageRequest, ImageConfig>,
    /// `--build-context` under the names that images are looked up by.
    contexts: BTreeMap<String, (String, ContextKind)>,
    report: Report<'a>,
    globals: Globals,
    states: Vec<State>,
    /// The latest stage of each name.
    names: HashMap<String, usize>,
    /// How many have yet to start from each state, or to end with it.
    heirs: Vec<usize>,
    graph: OpGraph,
    file_rules: BTreeMap<OpId, FileRules>,
    /// Sources are in the graph once.
    sources: HashMap<base::Source, OpId>,
    ignore: Option<Ignored>,
}

impl<'a> Build<'a> {
    fn new(
        dockerfile: &'a Dockerfile,
        options: &'a LowerOptions,
        configs: &'a HashMap<ImageRequest, ImageConfig>,
        report: Report<'a>,
    ) -> Self {
        let contexts = options.named_contexts.iter().map(|(name, kind)| {
            (base::lookup_name(name).unwrap_or_else(|| name.clone()), (name.clone(), *kind))
        });
        Self {
            dockerfile,
            options,
            configs,
            contexts: contexts.collect(),
            report,
            globals: Globals::default(),
            states: Vec::new(),
            names: HashMap::new(),
            heirs: Vec::new(),
            graph: OpGraph::default(),
            file_rules: BTreeMap::new(),
            sources: HashMap::new(),
            ignore: None,
        }
    }

    fn lower(&mut self, scope: Scope) -> Result<Lowering, Failure> {
        args::check_control_args(self.options)?;
        self.globals = args::global_args(self.dockerfile, self.options, &mut self.report)?;
        self.register_stages()?;
        let target = self.find_target()?;
        self.link_instructions()?;
        let needed = match self.resolve_bases(target, scope)? {
            base::Resolution::Needs(requests) => return Ok(Lowering::Needs(requests)),
            base::Resolution::Done(needed) => needed,
        };
        self.ignore = self.read_ignore()?;
        self.count_heirs(&needed, target);
        for index in needed {
            self.dispatch_stage(index)?;
        }
        self.finish(target)
    }

    fn read_ignore(&self) -> Result<Option<Ignored>, Failure> {
        let read = self.options.ignore.as_deref().map(Ignored::parse).transpose();
        let help = "the line is one of the ignore file of the context (.dockerignore)";
        read.map_err(|error| Failure::new(error.to_string()).help(help))
    }

    fn finish(&mut self, target: usize) -> Result<Lowering, Failure> {
        let mut work = self.inherit(target);
        self.make_root(&mut work);
        self.report.violations()?;
        let (mut config, platform) = (work.image, &self.options.platform);
        config.config.labels.extend(self.options.labels.clone());
        let base_platform = config.platform().normalized();
        let same = config.os == platform.os && config.architecture == platform.architecture;
        config.os.clone_from(&platform.os);
        config.architecture.clone_from(&platform.architecture);
        if platform.variant.is_some() || !same {
            config.variant.clone_from(&platform.variant);
        }
        if platform.os_version.is_some() || !same {
            config.os_version.clone_from(&platform.os_version);
        }
        let normal = config.platform().normalized();
        (config.architecture, config.variant) = (normal.architecture, normal.variant);
        Ok(Lowering::Done(Box::new(Lowered {
            graph: std::mem::take(&mut self.graph),
            result: work.op,
            config,
            history_below: work.history_below,
            base_platform,
            warnings: std::mem::take(&mut self.report.warnings),
            advice: std::mem::take(&mut self.report.advice),
            file_rules: std::mem::take(&mut self.file_rules),
            unused_args: args::unused_args(self.dockerfile, self.options),
            epoch: self.globals.epoch.clone(),
        })))
    }
}
