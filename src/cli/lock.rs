//! `lock`: what the names in a project stand for, written down; and how a run is held to it.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use idpbuilder::{
    exec,
    plan::{Lock, PinMode, Pins},
};

use super::{
    Global,
    failure::{CONFIGURATION, CliError, ENVIRONMENT},
    project::{self, ProjectArgs, SelectionArgs},
    run, setup,
};

/// Name of the file, beside the project file or in the build context.
pub(super) const FILE_NAME: &str = "idpbuilder.lock";

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder lock                             (adds what is missing)\n",
    "  idpbuilder lock --update debian:bookworm    (looks one name up again)\n",
    "  idpbuilder lock --update                    (looks all names up again)"
))]
pub(super) struct LockArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// Serves a registry from another address: `docker.io=HOST:PORT/PREFIX`.
    #[arg(long, value_name = "REGISTRY=ADDRESS")]
    mirror: Vec<String>,
    /// Lets the builds look further: network.private.
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    allow: Vec<String>,
    /// Looks a name up again; all of them without one.
    #[arg(long, value_name = "NAME", num_args = 0..)]
    update: Option<Vec<String>>,
}

pub(super) fn lock(global: &Global, args: &LockArgs) -> Result<ExitCode, CliError> {
    let loaded = project::load(&args.project)?;
    let selection = SelectionArgs {
        mirror: args.mirror.clone(),
        allow: args.allow.clone(),
        ..project::everything(&loaded)
    };
    let plan = project::plan(&loaded, &selection)?;
    let path = loaded.root.join(FILE_NAME);
    let before = read(&path)?.unwrap_or_default();
    let kept = match &args.update {
        None => before.clone(),
        Some(names) if names.is_empty() => Lock::default(),
        Some(names) => without(&before, names)?,
    };
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    let setup = setup::exec_setup(global, setup::store()?, cancel, &run::RunningArgs::default())?;
    let (after, notes) = runtime.block_on(exec::lock(&plan, &setup, &kept))?;
    for note in notes {
        run::notice(global, &note);
    }
    let changes = after.changes_since(&before);
    if !changes.is_empty() || !path.exists() {
        write(&path, &after.write())?;
    }
    let shown = changes.iter().map(|line| format!("{line}\n")).collect::<String>();
    setup::print(if shown.is_empty() { "nothing moved\n" } else { &shown });
    Ok(ExitCode::SUCCESS)
}

/// The lock of a folder; with `PinMode::Strict` there must be one.
pub(super) fn pins(folder: &Path, mode: PinMode) -> Result<Option<Arc<Pins>>, CliError> {
    match (read(&folder.join(FILE_NAME))?, mode) {
        (Some(lock), _) => Ok(Some(Arc::new(Pins { lock, mode }))),
        (None, PinMode::Follow) => Ok(None),
        (None, PinMode::Strict) => {
            let message = format!("--locked: there is no {FILE_NAME} in {}", folder.display());
            Err(CliError::new(CONFIGURATION, message).with_help("`idpbuilder lock` writes one"))
        }
    }
}

fn read(path: &Path) -> Result<Option<Lock>, CliError> {
    let fail = |reason: String| {
        CliError::new(CONFIGURATION, format!("{}: {reason}", path.display()))
            .with_help("remove it, and `idpbuilder lock` writes a new one")
    };
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(error.to_string())),
        Ok(text) => Lock::parse(&text).map(Some).map_err(fail),
    }
}

/// Whole or not at all.
fn write(path: &PathBuf, text: &str) -> Result<(), CliError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        use std::os::unix::fs::PermissionsExt as _;
        file.write_all(text.as_bytes())?;
        // It is a file of the project, for everybody who reads that.
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.persist(path).map_err(|refused| refused.error)
    });
    written
        .map(drop)
        .map_err(|error| CliError::new(ENVIRONMENT, format!("{}: {error}", path.display())))
}

/// The lock without some names, each as it stands there or as one types it.
fn without(lock: &Lock, names: &[String]) -> Result<Lock, CliError> {
    let mut kept = lock.clone();
    for name in names {
        let full = name.parse().map(|image: idpbuilder::oci::Reference| image.to_string());
        let image = full.is_ok_and(|full| kept.images.remove(&full).is_some());
        let url = kept.urls.remove(name).is_some();
        let git = kept.git.remove(name).is_some();
        if !(image || url || git) {
            let known = lock.images.keys().chain(lock.urls.keys()).chain(lock.git.keys());
            let known = known.cloned().collect::<Vec<_>>().join(", ");
            return Err(CliError::new(CONFIGURATION, format!("{name} is not in {FILE_NAME}"))
                .with_help(format!("in it are: {known}")));
        }
    }
    Ok(kept)
}
