//! `run`: everything that the project declares, built, stored and pushed.

use std::{num::NonZero, path::Path, process::ExitCode, sync::Arc, time::Instant};

use idpbuilder::{
    dockerfile,
    exec::{self, Network, OnFailure, Report, Setup},
    image::Refresh,
    plan::{PinMode, Plan},
    report::{self, seconds},
};

use super::{
    Global, ProgressMode,
    explain::Recorder,
    failure::CliError,
    lock,
    project::{self, ProjectArgs, SelectionArgs},
    sandbox::SandboxArgs,
    setup, shell,
};

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder run\n",
    "  idpbuilder run release --var channel=stable -j 4"
))]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) project: ProjectArgs,
    #[command(flatten)]
    pub(super) selection: SelectionArgs,
    #[command(flatten)]
    pub(super) running: RunningArgs,
    /// Fails for what the rules of idpbuilder itself find, in every image (schema/checks.md).
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    pub(super) failure: shell::FailureArgs,
    /// Shows the plan and runs nothing.
    #[arg(long)]
    dry_run: bool,
}

/// How steps are run.
#[derive(clap::Args, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct RunningArgs {
    /// Steps at once.
    #[arg(short, long, value_name = "N")]
    pub(super) jobs: Option<NonZero<usize>>,
    /// After a failure, goes on with what does not need what failed.
    #[arg(long)]
    pub(super) keep_going: bool,
    /// Whether base images are looked up in their registry: always (also without a mode), missing,
    /// newer (the store's will do when no registry answers), never.
    #[arg(long, value_enum, value_name = "MODE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "always", default_value = "missing", hide_default_value = true)]
    pub(super) pull: PullMode,
    /// Does the steps of these stages again; results are kept.
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// Does a RUN again when its result is older than this: `12h`, `7d`, `30m`, `90s`.
    #[arg(long, value_name = "AGE", value_parser = age)]
    run_ttl: Option<u64>,
    /// Asks no registry and no web server; the store must have everything.
    #[arg(long)]
    pub(super) offline: bool,
    /// Refuses names that are not in idpbuilder.lock, or stand for something else by now.
    #[arg(long)]
    pub(super) locked: bool,
    #[command(flatten)]
    pub(super) sandbox: SandboxArgs,
}

/// Whether base images are looked up in their registry.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PullMode {
    /// Always.
    Always,
    /// When the store has not got them.
    #[default]
    Missing,
    /// Always; the store's will do when no registry answers.
    Newer,
    /// Not at all.
    Never,
}

pub(super) fn run(global: &Global, args: &RunArgs) -> Result<ExitCode, CliError> {
    let loaded = project::load(&args.project)?;
    let mut plan = project::plan(&loaded, &args.selection)?;
    if args.strict {
        plan.images.iter_mut().for_each(|image| image.strict = true);
    }
    if args.dry_run {
        setup::print(&report::plan_table(&plan));
        return Ok(ExitCode::SUCCESS);
    }
    let store = setup::store()?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    let mut setup = setup::exec_setup(global, store, cancel, &args.running)?;
    args.running.apply(&mut setup, &loaded.root)?;
    args.failure.apply(&mut setup)?;
    perform(global, &runtime, &plan, &setup)?;
    Ok(ExitCode::SUCCESS)
}

impl RunningArgs {
    /// Changes how a run goes; the lock in `folder` is in force, when there is one.
    pub(super) fn apply(&self, setup: &mut Setup, folder: &Path) -> Result<(), CliError> {
        if self.keep_going {
            setup.on_failure = OnFailure::KeepGoing;
        }
        setup.refresh = match self.pull {
            PullMode::Always => Refresh::Always,
            PullMode::Missing => Refresh::Missing,
            PullMode::Newer => Refresh::Newer,
            PullMode::Never => Refresh::Never,
        };
        setup.cache_rules.without_stages.clone_from(&self.no_cache_filter);
        setup.cache_rules.run_age_max_s = self.run_ttl;
        if self.offline {
            setup.network = Network::Offline;
        }
        let mode = if self.locked { PinMode::Strict } else { PinMode::Follow };
        setup.pins = lock::pins(folder, mode)?;
        Ok(())
    }
}

/// An age in seconds: a number and its unit.
fn age(text: &str) -> Result<u64, String> {
    let unit = text.chars().last().unwrap_or_default();
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err("expected a number and s, m, h or d, such as 12h".to_owned()),
    };
    let number = text.trim_end_matches(unit).parse::<u64>();
    let number = number.map_err(|_| "expected a whole number before the unit".to_owned())?;
    number.checked_mul(seconds).ok_or_else(|| "it is too long".to_owned())
}

/// Runs a plan, and tells how it went.
pub(super) fn perform(
    global: &Global,
    runtime: &tokio::runtime::Runtime,
    plan: &Plan,
    setup: &Setup,
) -> Result<Report, CliError> {
    let started = Instant::now();
    for warning in &plan.warnings {
        notice(global, warning);
    }
    let recorder = Recorder::beside(&setup.emit);
    let setup = &Setup { emit: Arc::clone(&recorder.emit), ..setup.clone() };
    let report = runtime.block_on(exec::run(plan, setup));
    recorder.keep();
    tell_warnings(global, &report, &setup.cache_rules.without_stages);
    if !is_silent(global) && !report.images.is_empty() {
        setup::tell(&report::summary(&report));
    }
    if report.failures.is_empty() {
        if !is_silent(global) {
            setup::tell(&format!("done in {}", seconds(started.elapsed().as_secs_f64())));
        }
        return Ok(report);
    }
    shell::look_around(&report, &setup.cancel)?;
    Err(CliError::Run(report))
}

pub(super) fn is_silent(global: &Global) -> bool {
    global.quiet || matches!(global.progress, ProgressMode::Quiet | ProgressMode::Json)
}

/// One line that the user should know.
pub(super) fn notice(global: &Global, text: &str) {
    if !is_silent(global) {
        setup::tell(&format!("note: {text}"));
    }
}

/// What of `--no-cache-filter` is the name of no stage of any image; nothing while not all stages are known.
fn without_stage(report: &Report, filter: &[String]) -> Vec<String> {
    if report.images.iter().any(|image| image.stages.is_empty()) {
        return Vec::new();
    }
    let stages = report.images.iter().flat_map(|image| &image.stages);
    let stages: Vec<&str> = stages.map(String::as_str).collect();
    let is_known = |name: &&String| stages.iter().any(|stage| stage.eq_ignore_ascii_case(name));
    let unknown = filter.iter().filter(|name| !is_known(name));
    let text = |name: &String| match dockerfile::nearest(&name.to_lowercase(), &stages) {
        Some(near) => format!("no stage is called {name} (did you mean {near}?)"),
        None => format!("no stage is called {name}"),
    };
    unknown.map(text).collect()
}

/// What the build checks found: counted, and named by rule and line.
fn tell_warnings(global: &Global, report: &Report, filter: &[String]) {
    if is_silent(global) {
        return;
    }
    for text in without_stage(report, filter) {
        setup::tell(&format!("warning: --no-cache-filter: {text}"));
    }
    for image in &report.images {
        for unused in &image.unused_args {
            setup::tell(&format!("warning: {}: {unused}", image.name));
        }
        for warning in image.warnings.iter().chain(&image.advice) {
            let line = warning.location.lines.0;
            let (rule, message) = (warning.rule, &warning.message);
            setup::tell(&format!("warning: {}: line {line}: {message} ({rule})", image.name));
        }
    }
}
