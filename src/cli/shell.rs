//! Shells on the user's terminal: in what a failed step left (`--on-failure=shell`), and in any image (`debug shell`).

use std::{
    io::{self, IsTerminal as _},
    os::fd::{AsFd as _, BorrowedFd},
    process::ExitCode,
};

use idpbuilder::{
    build::{BuildError, FailedSteps, Scene},
    exec::{ExecError, Report, Setup},
    image::Image,
    report,
    sandbox::{self, CancelFlag, Terminal},
    snapshot::SnapshotError,
    store::Store,
};

use super::{
    failure::{CONFIGURATION, CliError, NOT_FOUND},
    images,
    network::NetworkArgs,
    sandbox::SandboxArgs,
    setup, show,
    step::{Found, StepArgs},
};

/// What comes after a failed step.
#[derive(clap::Args, Clone)]
pub(super) struct FailureArgs {
    /// After a failed RUN: stop, or open a shell in what it left, with its environment and mounts.
    #[arg(long, value_enum, default_value_t = AfterFailure::Stop, value_name = "WHAT")]
    on_failure: AfterFailure,
}

/// What comes after a failed step.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AfterFailure {
    /// The build ends.
    Stop,
    /// A shell on this terminal, and then the build ends.
    Shell,
}

/// Commands to look into things.
#[derive(clap::Subcommand)]
pub(super) enum DebugVerb {
    /// Opens a shell in an image of the store; what is changed there is discarded.
    Shell(ShellArgs),
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder debug shell demo:v1\n",
    "  idpbuilder debug shell demo:v1~2           (as it was before its last two layers)\n",
    "  idpbuilder debug shell demo:v1 --step 3    (what step 3 of its last build left)\n",
    "  idpbuilder debug shell web --line 7        (the same, by the line of the Dockerfile)"
))]
pub(super) struct ShellArgs {
    /// Image of the store; `~N` behind it takes its last N layers off. With `--step` or `--line`, a name as progress
    /// shows it in front of steps.
    #[arg(value_name = "IMAGE[~N]")]
    image: String,
    #[command(flatten)]
    step: StepArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

impl FailureArgs {
    /// Refused without a terminal, before anything is built.
    pub(super) fn apply(&self, setup: &mut Setup) -> Result<(), CliError> {
        if self.on_failure == AfterFailure::Shell {
            with_terminal("--on-failure=shell", |_| Ok(()))?;
            setup.failed_steps = FailedSteps::Keep;
        }
        Ok(())
    }
}

/// Opens a shell in what the first failed step left, when that was kept.
pub(super) fn look_around(report: &Report, cancel: &CancelFlag) -> Result<(), CliError> {
    let scene = report.failures.iter().find_map(|failure| {
        let ExecError::Build(failure) = failure else { return None };
        Some((failure, failure.scene()?))
    });
    let Some((failure, scene)) = scene else { return Ok(()) };
    let title = failure.place.as_ref().map_or("a step", |place| place.title.as_str());
    setup::tell(&format!(
        "\n`{}` failed: this is a shell where it did. Its end ends the build.",
        report::safe(title)
    ));
    open(scene, "--on-failure=shell", cancel).map(drop)
}

pub(super) fn debug(verb: &DebugVerb) -> Result<ExitCode, CliError> {
    let DebugVerb::Shell(args) = verb;
    let (store, network) = (setup::store()?, args.network.plan()?);
    let choice = match args.step.find(&store, &args.image)? {
        Some(step) => Choice::Step(step),
        None => of_image(&store, &args.image)?,
    };
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    let ability = sandbox::ability(store.root(), &args.sandbox.wanted()?);
    let (scene, what) = match &choice {
        Choice::Step(Found { layers, setting, words }) => {
            (Scene::of_layers((&store, &ability), layers, setting), words.as_str())
        }
        Choice::Image(image, layers_off) => {
            (Scene::of_image((&store, &ability), image, *layers_off), args.image.as_str())
        }
    };
    let failed = |error: BuildError| {
        if let BuildError::Snapshot(SnapshotError::Missing(_)) = error {
            let message = format!("{} is not in the store any more", report::safe(what));
            return CliError::new(NOT_FOUND, message)
                .with_help("a part was pruned: build it again");
        }
        CliError::from_build(&error)
    };
    let scene = scene
        .and_then(|scene| scene.with_network(&network, &setup::dns()))
        .map_err(failed)?
        .with_privileges(args.sandbox.privileges());
    with_terminal("debug shell", |_| Ok(()))?;
    let what = report::safe(what);
    setup::tell(&format!("this is a shell in {what}: what is changed here is discarded"));
    let code = open(&scene, "debug shell", &cancel)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// What is looked into.
enum Choice {
    Step(Found),
    /// An image, without so many of its layers.
    Image(Box<Image>, usize),
}

fn of_image(store: &Store, typed: &str) -> Result<Choice, CliError> {
    let (name, layers_off) = split(typed);
    let record = images::find_one(store, name)?;
    let image = show::load(store, &record)?;
    let layers = image.config.value.rootfs.diff_ids.len();
    if layers_off > layers {
        return Err(CliError::new(CONFIGURATION, format!("{typed}: {name} has {layers} layers")));
    }
    Ok(Choice::Image(Box::new(image), layers_off))
}

/// `IMAGE~N`.
fn split(text: &str) -> (&str, usize) {
    let number = text.rsplit_once('~').and_then(|(name, off)| Some((name, off.parse().ok()?)));
    number.unwrap_or((text, 0))
}

fn open(scene: &Scene, what: &str, cancel: &CancelFlag) -> Result<i32, CliError> {
    let kind = std::env::var("TERM").ok();
    with_terminal(what, |terminal| {
        let code = scene.shell(terminal, kind.as_deref(), cancel);
        code.map_err(|error| CliError::from_build(&error))
    })
}

/// Standard input and whichever of the outputs is a terminal.
fn with_terminal<T>(
    what: &str,
    act: impl FnOnce(Terminal<'_>) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
    let shown: Option<BorrowedFd<'_>> = match (output.is_terminal(), error.is_terminal()) {
        (true, _) => Some(output.as_fd()),
        (false, true) => Some(error.as_fd()),
        (false, false) => None,
    };
    match shown.filter(|_| input.is_terminal()) {
        Some(shown) => act(Terminal { input: input.as_fd(), output: shown }),
        None => Err(CliError::new(CONFIGURATION, format!("{what} needs a terminal to type on"))
            .with_help("without one, `idpbuilder logs NAME` shows the whole output of its steps")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_taken_off_by_number() {
        for (text, wanted) in [
            ("demo:v1", ("demo:v1", 0)),
            ("demo:v1~2", ("demo:v1", 2)),
            ("demo~x", ("demo~x", 0)),
            ("~1", ("", 1)),
        ] {
            assert_eq!(split(text), wanted);
        }
    }
}
