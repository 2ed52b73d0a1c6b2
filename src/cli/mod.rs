//! Command line: the only code that may print, read the environment, or choose an exit code.
//!
//! One file a verb; each maps flags to library calls. What is shared stands in `setup` (home folder,
//! store, signals), `credentials` and `failure` (messages and exit codes).

mod archive;
mod build;
mod cache;
mod cert;
mod check;
mod clean;
mod credentials;
mod doctor;
mod embedded;
mod explain;
mod facts;
mod failure;
mod format;
mod git_failure;
mod images;
mod init;
mod internal;
mod limits;
mod lock;
mod login;
mod logs;
mod network;
mod output;
mod plan;
mod project;
mod pull;
mod push;
mod registry_failure;
mod room;
mod run;
mod sandbox;
mod serve;
mod setup;
mod shell;
mod show;
mod sources;
mod step;
mod store;
mod verify;
mod watch;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use failure::CliError;
use idpbuilder::sandbox::Isolation;

/// The verbs stand in groups, which clap does not know: [`grouped`] puts them in front of the flags.
const TEMPLATE: &str =
    "{about-with-newline}\n{usage-heading} {usage}\n\n{before-help}Options:\n{options}{after-help}";

const AFTER_HELP: &str = "\
Exit codes:
  0  done                                         4  authentication
  1  a build step failed; verify: other bytes;    5  TLS or trust
     store check: damage                          6  network or registry, after retries
  2  image not found                              8  this machine cannot do it (`doctor`)
  3  command line, project file or Dockerfile    70  our bug
     invalid                                    130  ^C (143 SIGTERM, 129 SIGHUP)

`idpbuilder VERB --help` has the flags of a verb and examples. A first project: idpbuilder init";

/// Verbs by what they are for, in the order of use.
const GROUPS: &[(&str, &[&str])] = &[
    ("Work with a project", &["init", "run", "watch", "plan", "explain", "logs", "lock"]),
    ("Build and move one image", &["build", "check", "push", "pull", "save", "load"]),
    ("Look and name", &["images", "tag", "rmi", "history", "inspect", "verify"]),
    ("Talk to registries", &["login", "logout", "cert", "serve"]),
    ("Keep house", &["df", "prune", "cache", "store", "doctor", "debug", "completions", "version"]),
];

/// Builds, keeps and pushes container images, as declared in idpbuilder.kdl; no daemon needed.
#[derive(Parser)]
#[command(name = "idpbuilder", version, propagate_version = true, max_term_width = 100)]
#[command(help_template = TEMPLATE, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags that every verb takes.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Options of every verb")]
struct Global {
    /// How progress is shown.
    #[arg(long, global = true, value_enum, default_value_t = ProgressMode::Auto, value_name = "MODE")]
    progress: ProgressMode,
    /// Print results only.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Log decisions and their reasons to standard error (-vv for more).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Seconds to wait for a lock that another process holds; for ever without it.
    #[arg(long, global = true, value_name = "SECONDS")]
    lock_timeout: Option<u64>,
}

/// How progress is shown.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProgressMode {
    /// Live on a terminal, plain elsewhere.
    Auto,
    /// Live.
    Tty,
    /// One line an event.
    Plain,
    /// One JSON object an event.
    Json,
    /// Nothing.
    Quiet,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds, stores and pushes what the project file declares.
    Run(run::RunArgs),
    /// Runs, and runs again whenever a file of the project changes.
    Watch(watch::WatchArgs),
    /// Shows the steps of a run without running any.
    Plan(plan::PlanArgs),
    /// Says which steps of the last run were done again, and what was different.
    Explain(explain::ExplainArgs),
    /// Writes down what the names in a project stand for (idpbuilder.lock).
    Lock(lock::LockArgs),
    /// Writes a starter idpbuilder.kdl for the Dockerfiles found here.
    Init(init::InitArgs),
    /// Builds one image from a Dockerfile.
    Build(build::BuildArgs),
    /// Checks a Dockerfile without building it.
    Check(check::CheckArgs),
    /// Pushes an image of the store to its registry.
    Push(push::PushArgs),
    /// Pulls an image into the store.
    Pull(pull::PullArgs),
    /// Lists the images of the store.
    #[command(visible_alias = "ls")]
    Images(images::ImagesArgs),
    /// Gives an image of the store another name.
    Tag(images::TagArgs),
    /// Takes names away from images; content goes with the next `prune`.
    Rmi(images::RmiArgs),
    /// Shows how an image was made, newest instruction first.
    History(show::HistoryArgs),
    /// Shows manifest and config of an image as JSON.
    Inspect(show::InspectArgs),
    /// Builds an image again without the cache and compares every byte.
    Verify(verify::VerifyArgs),
    /// Writes images to an archive or folder.
    Save(archive::SaveArgs),
    /// Reads images from an archive or folder.
    Load(archive::LoadArgs),
    /// Stores credentials for a registry where docker and podman find them too.
    Login(login::LoginArgs),
    /// Removes the credentials of a registry.
    Logout(login::LogoutArgs),
    /// Shows and changes which certificates are trusted.
    #[command(subcommand)]
    Cert(cert::CertVerb),
    /// Serves the store as a registry on loopback, with TLS and a login.
    Serve(serve::ServeArgs),
    /// Shows what the store takes on disk.
    Df(clean::DfArgs),
    /// Removes what no image needs.
    #[command(visible_alias = "gc")]
    Prune(clean::PruneArgs),
    /// Lists, removes, exports and imports the directories of cache mounts.
    #[command(subcommand)]
    Cache(cache::CacheVerb),
    /// Checks, repairs, saves and restores the store as a whole.
    #[command(subcommand)]
    Store(store::StoreVerb),
    /// Shows what this machine can do, and what would help.
    Doctor(doctor::DoctorArgs),
    /// Shows what the RUN steps of a build printed.
    Logs(logs::LogsArgs),
    /// Looks into what the store holds.
    #[command(subcommand)]
    Debug(shell::DebugVerb),
    /// Prints a completion script for a shell.
    Completions(init::CompletionsArgs),
    /// Prints the version.
    Version,
    /// Diagnostic commands.
    #[command(subcommand, hide = true)]
    Internal(internal::InternalVerb),
}

/// The command line, with its verbs in groups.
pub(super) fn command() -> clap::Command {
    let command = Cli::command();
    let mut text = String::new();
    for (title, verbs) in GROUPS {
        text.push_str(&format!("{title}:\n"));
        for verb in *verbs {
            let found = command.find_subcommand(verb).expect("the table names verbs");
            let about = found.get_about().map(ToString::to_string).unwrap_or_default();
            let alias = found.get_visible_aliases().next();
            let alias = alias.map(|alias| format!(" [alias: {alias}]")).unwrap_or_default();
            text.push_str(&format!("  {verb:<12} {about}{alias}\n"));
        }
        text.push('\n');
    }
    command.before_help(text.trim_end().to_owned())
}

/// Runs one invocation.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let argv: Vec<OsString> = std::iter::once("idpbuilder".into()).chain(args).collect();
    let cli = match on_own_stack(|| parse(&argv)) {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` are answers; all else is a mistake in the command line.
            let code = if error.use_stderr() { failure::CONFIGURATION } else { 0 };
            // A closed pipe is no failure of ours.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    setup::start_logging(cli.global.verbose);
    setup::be_patient(cli.global.lock_timeout);
    setup::have_randomness();
    idpbuilder::sandbox::expect_children();
    let Cli { global, verb } = cli;
    // A namespace is entered by a program with one thread.
    if needs_namespace(&verb) {
        setup::enter_namespace(isolation(&verb));
    }
    let done = on_own_stack(|| dispatch(&global, verb));
    idpbuilder::sandbox::leave();
    match done {
        Ok(code) => code,
        Err(error) => {
            error.print();
            if error.lacks_space() {
                room::made().iter().for_each(|text| setup::tell(text));
            }
            ExitCode::from(setup::code_of_signal(error.exit_code()))
        }
    }
}

fn parse(argv: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command().try_get_matches_from(argv)?)
}

/// Works on a stack of a known size: that of the first thread is as large as whoever started us wanted (`ulimit -s`).
fn on_own_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const STACK_BYTES: usize = 8 << 20;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("main".to_owned()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work).expect("a thread can be started");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn dispatch(global: &Global, verb: Verb) -> Result<ExitCode, CliError> {
    let builds = matches!(verb, Verb::Run(_) | Verb::Watch(_) | Verb::Build(_));
    let done = perform(global, verb);
    if builds && done.is_ok() {
        clean::keep_within_cap();
    }
    done
}

fn perform(global: &Global, verb: Verb) -> Result<ExitCode, CliError> {
    match verb {
        Verb::Run(args) => run::run(global, &args),
        Verb::Watch(args) => watch::watch(global, &args),
        Verb::Plan(args) => plan::plan(global, &args),
        Verb::Explain(args) => explain::explain(global, &args),
        Verb::Lock(args) => lock::lock(global, &args),
        Verb::Init(args) => init::init(&args),
        Verb::Build(args) => build::build(global, args),
        Verb::Check(args) => check::check(global, &args),
        Verb::Push(args) => push::push(global, &args),
        Verb::Pull(args) => pull::pull(global, &args),
        Verb::Images(args) => images::images(global, &args),
        Verb::Tag(args) => images::tag(&args),
        Verb::Rmi(args) => images::rmi(&args),
        Verb::History(args) => show::history(global, &args),
        Verb::Inspect(args) => show::inspect(&args),
        Verb::Verify(args) => verify::verify(global, &args),
        Verb::Save(args) => archive::save(global, &args),
        Verb::Load(args) => archive::load(global, &args),
        Verb::Login(args) => login::login(&args),
        Verb::Logout(args) => login::logout(&args),
        Verb::Cert(verb) => cert::cert(&verb),
        Verb::Serve(args) => serve::serve(&args),
        Verb::Df(args) => clean::df(&args),
        Verb::Prune(args) => clean::prune(&args),
        Verb::Cache(verb) => cache::cache(global, &verb),
        Verb::Store(verb) => store::store(&verb),
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::Logs(args) => logs::logs(&args),
        Verb::Debug(verb) => shell::debug(&verb),
        Verb::Completions(args) => init::completions(&args),
        Verb::Version => {
            setup::print(concat!("idpbuilder ", env!("CARGO_PKG_VERSION"), "\n"));
            Ok(ExitCode::SUCCESS)
        }
        Verb::Internal(verb) => internal::internal(global, verb),
    }
}

/// How a verb is told to isolate processes.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others run none, or on a terminal alone")]
fn isolation(verb: &Verb) -> Option<Isolation> {
    let flags = match verb {
        Verb::Run(args) => &args.running.sandbox,
        Verb::Watch(args) => &args.running.sandbox,
        Verb::Build(args) => &args.running.sandbox,
        Verb::Verify(args) => &args.running.sandbox,
        Verb::Doctor(args) => &args.sandbox,
        _ => return None,
    };
    flags.isolation()
}

/// Verbs that make or remove root file systems, which an ordinary user can do only as root of a
/// user namespace.
fn needs_namespace(verb: &Verb) -> bool {
    match verb {
        Verb::Run(_)
        | Verb::Watch(_)
        | Verb::Build(_)
        | Verb::Verify(_)
        | Verb::Prune(_)
        | Verb::Doctor(_)
        | Verb::Store(_)
        | Verb::Cache(_)
        | Verb::Debug(_) => true,
        Verb::Internal(verb) => verb.needs_namespace(),
        Verb::Plan(_)
        | Verb::Explain(_)
        | Verb::Lock(_)
        | Verb::Init(_)
        | Verb::Check(_)
        | Verb::Push(_)
        | Verb::Pull(_)
        | Verb::Images(_)
        | Verb::Tag(_)
        | Verb::Rmi(_)
        | Verb::History(_)
        | Verb::Inspect(_)
        | Verb::Save(_)
        | Verb::Load(_)
        | Verb::Login(_)
        | Verb::Logout(_)
        | Verb::Cert(_)
        | Verb::Serve(_)
        | Verb::Df(_)
        | Verb::Logs(_)
        | Verb::Completions(_)
        | Verb::Version => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn help_shows_every_verb_once() {
        let command = Cli::command();
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        let verbs: BTreeSet<&str> = verbs.map(clap::Command::get_name).collect();
        let shown: Vec<&str> = GROUPS.iter().flat_map(|(_, verbs)| *verbs).copied().collect();
        assert_eq!(shown.len(), verbs.len());
        assert_eq!(shown.into_iter().collect::<BTreeSet<_>>(), verbs);
    }
}
