//! `watch`: `run`, and again after every change.

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
};

use idpbuilder::{
    plan::Plan,
    report::safe,
    watch::{Wake, Watch, WatchError, WatchSettings},
};

use super::{
    Global,
    failure::{CONFIGURATION, CliError, ENVIRONMENT},
    lock,
    project::{self, Loaded, ProjectArgs, SelectionArgs},
    run::{self, RunningArgs},
    setup,
};

/// Names of changed files shown at most.
const NAMES_SHOWN: usize = 3;

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder watch\n",
    "  idpbuilder watch api --no-push"
))]
pub(super) struct WatchArgs {
    #[command(flatten)]
    project: ProjectArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    pub(super) running: RunningArgs,
}

pub(super) fn watch(global: &Global, args: &WatchArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    let mut setup = setup::exec_setup(global, store, Arc::clone(&cancel), &args.running)?;
    // The first project file must be right; one that is being edited may be wrong for a while.
    let (mut loaded, mut plan, mut watching) = begin(args)?;
    args.running.apply(&mut setup, &loaded.root)?;
    let mut is_planned = true;
    loop {
        if is_planned && let Err(error) = run::perform(global, &runtime, &plan, &setup) {
            error.print();
        }
        run::notice(global, "watching; ^C ends it");
        match watching.wait(|| cancel.load(Ordering::Relaxed)) {
            Wake::Stopped => return Ok(ExitCode::SUCCESS),
            Wake::Changed(paths) => run::notice(global, &changed(&paths, &loaded)),
        }
        // Watched from before the run on, so that a change during it is seen after it.
        let next = begin(args).and_then(|next| {
            args.running.apply(&mut setup, &next.0.root)?;
            Ok(next)
        });
        is_planned = match next {
            Ok(next) => {
                (loaded, plan, watching) = next;
                plan.warnings.clear();
                true
            }
            Err(error) => {
                error.print();
                false
            }
        };
    }
}

/// Plans the project and watches what it names. What is saved after it was read and before it is watched nobody sees: it
/// is read again.
fn begin(args: &WatchArgs) -> Result<(Loaded, Plan, Watch), CliError> {
    loop {
        let (loaded, plan) = load(args)?;
        let watching = start(&loaded, &plan)?;
        if !loaded.is_outdated() {
            return Ok((loaded, plan, watching));
        }
    }
}

fn start(loaded: &Loaded, plan: &Plan) -> Result<Watch, CliError> {
    let files = [loaded.file.clone(), loaded.root.join(lock::FILE_NAME)];
    let mut own = vec![setup::home()?];
    own.extend(outputs());
    let settings = WatchSettings {
        root: &loaded.root,
        ignore: &loaded.settings.watch.ignore,
        own: &own,
        quiet: loaded.settings.watch.debounce,
    };
    Watch::new(plan, &files, settings).map_err(|error| explain(&error))
}

/// Files that our own output is redirected to: what is written there is said because of a change, and is none.
fn outputs() -> impl Iterator<Item = PathBuf> {
    let streams = ["/proc/self/fd/1", "/proc/self/fd/2"].into_iter();
    streams.filter_map(|stream| fs::read_link(stream).ok()).filter(|path| path.is_file())
}

fn load(args: &WatchArgs) -> Result<(Loaded, Plan), CliError> {
    let loaded = project::load(&args.project)?;
    let mut selection = args.selection.clone();
    if selection.selection.is_empty() {
        selection.selection.extend(loaded.settings.watch.pipeline.clone());
    }
    let plan = project::plan(&loaded, &selection)?;
    Ok((loaded, plan))
}

fn changed(paths: &[PathBuf], loaded: &Loaded) -> String {
    let shown = paths.iter().take(NAMES_SHOWN).map(|path| {
        let below = path.strip_prefix(&loaded.root).unwrap_or(path);
        safe(&below.display().to_string())
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    match paths.len() {
        0 => "changed: more than can be told".to_owned(),
        count if count > NAMES_SHOWN => {
            format!("changed: {shown} and {} more", count - NAMES_SHOWN)
        }
        _ => format!("changed: {shown}"),
    }
}

fn explain(error: &WatchError) -> CliError {
    let message = error.to_string();
    match error {
        WatchError::Limit { .. } => CliError::new(ENVIRONMENT, message)
            .with_help("raise the limit: sysctl fs.inotify.max_user_watches=524288"),
        WatchError::Watch { .. } => CliError::new(ENVIRONMENT, message),
        WatchError::Pattern(_) => CliError::new(CONFIGURATION, message).with_help(
            "`watch { ignore … }` of the project file takes patterns as .dockerignore does",
        ),
    }
}
