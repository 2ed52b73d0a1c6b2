//! What every verb stands on: the home folder, the store, signals, and the two output streams.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    num::NonZero,
    os::{fd::AsRawFd as _, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use idpbuilder::{
    build::CacheRules,
    build::{FailedSteps, HostDns},
    event::{self, Emit},
    exec::{Network, OnFailure, Setup},
    git::GitProgram,
    image,
    limits::{self, UnpackLimits},
    plan::SecretSource,
    registry::ProxyOptions,
    report,
    sandbox::{self, CancelFlag, Isolation, LazyAbility},
    store::{Patience, Store, StoreError, is_read_only},
};

use super::{
    Global, ProgressMode, credentials, embedded,
    failure::{CONFIGURATION, CliError, ENVIRONMENT, INTERRUPTED},
    run::RunningArgs,
};

/// What is read of a secret in a file, in bytes: more than any that a build takes.
const SECRET_FILE_BYTES_MAX: u64 = 1 << 20;

/// What a layer or archive may have when it is opened, for who needs more than the usual or wants less.
const MAX_LAYER_SIZE: &str = "IDPBUILDER_MAX_LAYER_SIZE";

/// What images and cached results may take together on the disk.
pub(super) const STORE_MAX_SIZE: &str = "IDPBUILDER_STORE_MAX_SIZE";

/// Folder of the output of RUN steps, below [`home`].
pub(super) const LOGS: &str = "logs";

/// Columns of a terminal that does not say how wide it is.
const COLUMNS_DEFAULT: usize = 100;

/// Folder of everything that outlives a command: `IDPBUILDER_HOME`, or `.idpbuilder` in the home
/// folder.
pub(super) fn home() -> Result<PathBuf, CliError> {
    if let Some(home) = env::var_os("IDPBUILDER_HOME").filter(|home| !home.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    let home = env::var_os("HOME").filter(|home| !home.is_empty()).ok_or_else(|| {
        CliError::new(CONFIGURATION, "neither IDPBUILDER_HOME nor HOME is set")
            .with_help("set IDPBUILDER_HOME to a folder for images and settings")
    })?;
    Ok(PathBuf::from(home).join(".idpbuilder"))
}

/// How long is waited for locks of other processes: what the flag of the invocation says.
static LOCK_TIMEOUT: OnceLock<Option<u64>> = OnceLock::new();

/// Remembers how long to wait for locks, in seconds.
pub(super) fn be_patient(seconds: Option<u64>) {
    LOCK_TIMEOUT.get_or_init(|| seconds);
}

/// How this invocation waits for other processes: it says so after a second.
pub(super) fn patience() -> Patience {
    let seconds = LOCK_TIMEOUT.get().copied().flatten();
    Patience { limit: seconds.map(Duration::from_secs), tell: Arc::new(tell) }
}

/// Folder of the store.
pub(super) fn store_root() -> Result<PathBuf, CliError> {
    Ok(home()?.join("images"))
}

/// Opens the store, making it when it is not there.
pub(super) fn store() -> Result<Store, CliError> {
    store_cap()?; // What it says must be right before anything is done.
    let opened = Store::open_patiently(&store_root()?, &patience());
    let store = opened.map_err(|error| {
        if let StoreError::Io { path, source } = &error
            && !is_read_only(&error)
        {
            return unusable(path, source);
        }
        CliError::Store(error)
    })?;
    if let Some(bytes) = size_of(MAX_LAYER_SIZE)? {
        store.limit_unpacking(UnpackLimits::up_to(bytes));
    }
    Ok(store)
}

/// What cannot be made, or looked into, below the home folder.
pub(super) fn unusable(path: &Path, error: &io::Error) -> CliError {
    let message = format!("nothing can be kept in {}: {error}", path.display());
    CliError::new(ENVIRONMENT, message)
        .with_help("set IDPBUILDER_HOME to a folder that can be written to: images and settings are kept there")
}

/// Bytes that the store may take, when that is limited.
pub(super) fn store_cap() -> Result<Option<u64>, CliError> {
    size_of(STORE_MAX_SIZE)
}

/// A size in the environment, in bytes.
fn size_of(name: &str) -> Result<Option<u64>, CliError> {
    let size = env::var_os(name).filter(|size| !size.is_empty());
    let bytes = size.map(|size| limits::bytes(&size.to_string_lossy()));
    bytes.transpose().map_err(|reason| CliError::new(CONFIGURATION, format!("{name}: {reason}")))
}

/// A folder below the home folder, made when missing, for us alone.
pub(super) fn private_folder(name: &str) -> Result<PathBuf, CliError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let path = home()?.join(name);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.map_err(|error| unusable(&path, &error))?;
    Ok(path)
}

/// As an ordinary user: goes on inside a user namespace, where there can be one.
pub(super) fn enter_namespace(isolation: Option<Isolation>) {
    forbid_core_files();
    let _ = sandbox::enter(isolation);
}

/// A runtime for what waits: requests, timers, signals.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all();
    builder.build().map_err(|error| CliError::new(ENVIRONMENT, format!("no threads: {error}")))
}

/// Sets a flag at the first SIGINT, SIGTERM or SIGHUP, and ends the program at the second. Those that were ignored when the
/// program started, as by nohup(1), stay so.
pub(super) fn cancel_on_signals(runtime: &tokio::runtime::Runtime) -> CancelFlag {
    use tokio::signal::unix::{SignalKind, signal};
    let cancel = Arc::new(AtomicBool::new(false));
    let ignored = ignored_signals();
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    // They are heard from here on, and not from when a task of the runtime gets its turn.
    let _context = runtime.enter();
    for kind in kinds.into_iter().filter(|kind| ignored >> (kind.as_raw_value() - 1) & 1 == 0) {
        let cancel = Arc::clone(&cancel);
        let Ok(mut signals) = signal(kind) else { continue };
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
                // The first one counts, and is known before anybody sees the flag.
                let _ = STOPPED_BY.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst);
                if cancel.swap(true, Ordering::SeqCst) {
                    // Processes of the sandbox die with us.
                    #[expect(clippy::exit, reason = "the user asked twice")]
                    std::process::exit(i32::from(code_of_signal(INTERRUPTED)));
                }
            }
        });
    }
    cancel
}

/// The signal that asked this program to end; 0 for none. Signals are the whole program's.
static STOPPED_BY: AtomicU8 = AtomicU8::new(0);

/// What a shell adds to the number of the signal that ended a program.
const SIGNAL_BASE: u8 = 128;

/// The exit code of a program that was asked to end: it names the signal, as a shell does.
pub(super) fn code_of_signal(code: u8) -> u8 {
    match (code, STOPPED_BY.load(Ordering::Relaxed)) {
        (INTERRUPTED, number @ 1..) => SIGNAL_BASE + number,
        (code, _) => code,
    }
}

/// The signals that are ignored, a bit each, the first the lowest (`proc_pid_status(5)`).
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let digits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    digits.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}

/// Waits for work, or for the user to stop it, whichever comes first.
pub(super) async fn until_cancelled<T, E>(
    cancel: &CancelFlag,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, CliError>
where
    CliError: From<E>,
{
    const LOOK_EVERY: Duration = Duration::from_millis(50);
    let stopped = async {
        while !cancel.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        done = work => unless_cancelled(cancel, done),
        () = stopped => Err(CliError::new(INTERRUPTED, "cancelled")),
    }
}

/// What fails after the user asked to stop, fails because of it.
pub(super) fn unless_cancelled<T, E>(cancel: &CancelFlag, done: Result<T, E>) -> Result<T, CliError>
where
    CliError: From<E>,
{
    done.map_err(|error| match cancel.load(Ordering::Relaxed) {
        true => CliError::new(INTERRUPTED, "cancelled"),
        false => CliError::from(error),
    })
}

/// What a run works with, from flags and surroundings.
pub(super) fn exec_setup(
    global: &Global,
    store: Store,
    cancel: CancelFlag,
    running: &RunningArgs,
) -> Result<Setup, CliError> {
    let ability = LazyAbility::new(store.root().to_owned(), running.sandbox.wanted()?);
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    Ok(Setup {
        store,
        ability: Arc::new(ability),
        privileges: running.sandbox.privileges(),
        cancel,
        emit: emitter(global),
        logs: Some(private_folder(LOGS)?),
        jobs: running.jobs.map_or(cores.max(2), NonZero::get),
        refresh: image::Refresh::Missing,
        cache_rules: CacheRules::default(),
        network: Network::Online,
        pins: None,
        on_failure: OnFailure::Stop,
        failed_steps: FailedSteps::Discard,
        read_secret: Arc::new(read_secret),
        ssh_agent: ssh_agent(),
        find_credentials: Arc::new(credentials::find),
        proxies: proxies(),
        trusted_certificates: Some(home()?.join("certs")),
        git: git_program(),
        dns: dns(),
        find_embedded: embedded::find()?,
    })
}

/// All of standard input as a file, with the path that it has while the file is open, and its size in bytes.
pub(super) fn spool_input() -> Result<(PathBuf, fs::File, u64), CliError> {
    let fail = |error: io::Error| CliError::new(CONFIGURATION, format!("standard input: {error}"));
    // Without a name, so that nothing of it stays, whatever ends this program.
    let mut file = tempfile::tempfile_in(private_folder("")?).map_err(fail)?;
    let size = io::copy(&mut io::stdin(), &mut file).map_err(fail)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())), file, size))
}

/// Proxies by the variables that curl, git and Go know, in either case.
pub(super) fn proxies() -> ProxyOptions {
    let get = |name: &str| {
        let names = [name.to_owned(), name.to_ascii_uppercase()];
        let mut values = names.iter().filter_map(|name| env::var(name).ok());
        values.find(|value| !value.is_empty())
    };
    ProxyOptions { https: get("https_proxy"), http: get("http_proxy"), exempt: get("no_proxy") }
}

/// What the machine's own resolver is configured with.
pub(super) fn dns() -> HostDns {
    HostDns {
        resolv_conf: fs::read("/etc/resolv.conf").unwrap_or_default(),
        upstream: fs::read("/run/systemd/resolve/resolv.conf").ok(),
    }
}

/// Socket of the user's SSH agent, when there is one.
pub(super) fn ssh_agent() -> Option<PathBuf> {
    env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()).map(PathBuf::from)
}

/// Git, with our environment but for what would change what it does.
fn git_program() -> GitProgram {
    let folders = env::var_os("PATH").unwrap_or_default();
    let candidates = env::split_paths(&folders).filter(|folder| folder.is_absolute());
    let path = candidates.map(|folder| folder.join("git")).find(|path| path.is_file());
    let is_kept = |name: &OsString| {
        let name = name.to_string_lossy();
        !name.starts_with("GIT_") || name.starts_with("GIT_SSH")
    };
    GitProgram { path, env: env::vars_os().filter(|(name, _)| is_kept(name)).collect() }
}

fn read_secret(source: &SecretSource) -> Result<Option<Vec<u8>>, String> {
    match source {
        SecretSource::Env(name) => Ok(env::var_os(name).map(OsString::into_vec)),
        SecretSource::File(path) => {
            // One byte too many is enough to see that it is too long; a device has no end.
            let file = fs::File::open(path).and_then(|file| {
                let mut bytes = Vec::new();
                file.take(SECRET_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
                Ok(bytes)
            });
            file.map(Some).map_err(|error| format!("{}: {error}", path.display()))
        }
    }
}

/// Where progress goes, as asked for or as fits the place.
pub(super) fn emitter(global: &Global) -> Emit {
    let sink = || -> report::Sink {
        Arc::new(std::sync::Mutex::new(Box::new(io::stderr()) as Box<dyn io::Write + Send>))
    };
    let mode = match (global.quiet, global.progress) {
        (true, _) => ProgressMode::Quiet,
        (false, ProgressMode::Auto) if is_live() => ProgressMode::Tty,
        (false, ProgressMode::Auto) => ProgressMode::Plain,
        (false, mode) => mode,
    };
    match mode {
        ProgressMode::Quiet | ProgressMode::Auto => event::silent(),
        ProgressMode::Plain => report::plain(sink()),
        ProgressMode::Json => report::json(sink()),
        ProgressMode::Tty => {
            report::live(indicatif::ProgressDrawTarget::stderr_with_hz(10), columns())
        }
    }
}

/// Whether standard error is a terminal that can be redrawn.
fn is_live() -> bool {
    let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stderr().is_terminal() && !dumb && env::var_os("CI").is_none()
}

/// Columns of the terminal.
pub(super) fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr());
    size.ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0)
        .unwrap_or(COLUMNS_DEFAULT)
}

/// Whether colours are welcome on a stream.
pub(super) fn wants_color(stream: &impl io::IsTerminal) -> bool {
    let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !dumb && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether lines and marks may be drawn with other letters than ASCII: yes, unless a locale says no.
pub(super) fn is_unicode() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()));
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8") || locale == "c" || locale == "posix"
    })
}

/// Prints a result; to a terminal without what would drive it. A reader that went away ends the program quietly, as
/// `yes | head` does.
pub(super) fn print(text: &str) {
    let is_terminal = io::stdout().is_terminal();
    let text = if is_terminal { report::screened(text) } else { text.into() };
    print_bytes(text.as_bytes());
}

/// As [`print`], of what is no text or goes to no terminal.
pub(super) fn print_bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) else { return };
    let code = if error.kind() == io::ErrorKind::BrokenPipe {
        0
    } else {
        tell(&format!("error: standard output: {error}"));
        ENVIRONMENT
    };
    #[expect(clippy::exit, reason = "nobody reads the result, or it cannot be written")]
    std::process::exit(i32::from(code));
}

/// Tells the user something that is no result, without what would drive a terminal: names of images and files, and
/// lines of Dockerfiles, may be somebody else's.
pub(super) fn tell(text: &str) {
    let mut out = io::stderr().lock();
    let text = report::screened(text);
    // Nobody listens: nothing can be told.
    drop(out.write_all(text.as_bytes()));
    if !text.ends_with('\n') {
        drop(out.write_all(b"\n"));
    }
}

/// Starts logging of decisions, when asked for.
pub(super) fn start_logging(verbosity: u8) {
    let level = match verbosity {
        0 => return,
        1 => "idpbuilder=debug",
        _ => "debug",
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
}

/// An absolute path without `.` and `..`; the path need not exist.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path)
        .map_err(|error| CliError::new(CONFIGURATION, format!("{}: {error}", path.display())))
}

/// Has the kernel gather randomness, on a machine that was just started and has no device for it: who asks by getrandom(2)
/// makes it do so, while who waits for `/dev/random`, as a library in a static program does, may wait for ever.
pub(super) fn have_randomness() {
    use rustix::rand::{GetRandomFlags, getrandom};
    // Without the call there are only the files.
    let _ = getrandom(&mut [0_u8; 1], GetRandomFlags::empty());
}

/// A crash must not leave secrets on the disk. A limit of 1 also keeps the kernel from handing the memory to a program,
/// where core files go to one (core(5)).
fn forbid_core_files() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let one = Rlimit { current: Some(1), maximum: Some(1) };
    // Where it may not be lowered, nothing else can be done.
    let _ = setrlimit(Resource::Core, one);
}
