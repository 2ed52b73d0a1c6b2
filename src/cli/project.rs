//! The project file on disk: found, read, resolved, planned.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use idpbuilder::{
    dockerfile::{self, ast},
    plan::{CacheUse, Plan, References},
    project::{Dockerfile, Image, Project, Settings},
};

use super::{
    facts,
    failure::{CONFIGURATION, CliError},
    setup,
};

/// Name of a project file.
pub(super) const FILE_NAME: &str = "idpbuilder.kdl";
/// Largest project file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Which project, and how it is changed by flags.
#[derive(clap::Args, Clone)]
pub(super) struct ProjectArgs {
    /// Project file; by default idpbuilder.kdl here or in a folder above.
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Sets a variable of the project.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) var: Vec<String>,
}

/// How a run is changed by flags.
#[derive(clap::Args, Clone)]
pub(super) struct SelectionArgs {
    /// Pipelines and images; the pipeline `default`, or all images, without any.
    #[arg(value_name = "PIPELINE|IMAGE")]
    pub(super) selection: Vec<String>,
    /// Builds and stores, and pushes nothing.
    #[arg(long)]
    pub(super) no_push: bool,
    /// Does everything again; results are kept.
    #[arg(long)]
    pub(super) no_cache: bool,
    /// Serves a registry from another address: `docker.io=HOST:PORT/PREFIX`.
    #[arg(long, value_name = "REGISTRY=ADDRESS")]
    pub(super) mirror: Vec<String>,
    /// Lets every build do more: security.insecure, network.host, network.private.
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub(super) allow: Vec<String>,
}

/// A project with everything filled in.
pub(super) struct Loaded {
    /// What it says.
    pub(super) settings: Settings,
    /// Folder that its paths start from.
    pub(super) root: PathBuf,
    /// The file itself.
    pub(super) file: PathBuf,
    /// Its text when it was read.
    text: String,
}

impl Loaded {
    /// Whether the file says something else by now.
    pub(super) fn is_outdated(&self) -> bool {
        read(&self.file).map_or(true, |text| text != self.text)
    }
}

/// Finds, reads and resolves the project file.
pub(super) fn load(args: &ProjectArgs) -> Result<Loaded, CliError> {
    let path = match &args.file {
        Some(path) => setup::absolute(path)?,
        None => find()?,
    };
    let text = read(&path)?;
    let root = path.parent().unwrap_or(Path::new("/")).to_owned();
    let shown = shown_name(&path);
    let invalid = |error: idpbuilder::project::ProjectError| {
        CliError::Diagnostics(vec![Box::new(error) as Box<_>])
    };
    let project = Project::parse(&shown, &text).map_err(invalid)?;
    let facts = facts::gather(&project, &root, &args.var)?;
    let settings = project.resolve(&facts).map_err(invalid)?;
    Ok(Loaded { settings, root, file: path, text })
}

/// A selection of every image.
pub(super) fn everything(loaded: &Loaded) -> SelectionArgs {
    SelectionArgs {
        selection: loaded.settings.images.iter().map(|image| image.name.clone()).collect(),
        no_push: true,
        no_cache: false,
        mirror: Vec::new(),
        allow: Vec::new(),
    }
}

/// Plans a selection of a project, changed by flags.
pub(super) fn plan(loaded: &Loaded, args: &SelectionArgs) -> Result<Plan, CliError> {
    let Loaded { settings, root, .. } = loaded;
    let references =
        settings.images.iter().map(|image| (image.name.clone(), names_in(image, root)));
    let references: References = references.collect();
    let plan = Plan::from_project(settings, &args.selection, root, &references);
    let mut plan = plan.map_err(|error| CliError::Diagnostics(vec![Box::new(error)]))?;
    if args.no_push {
        plan.images.iter_mut().for_each(|image| image.pushes.clear());
        plan.link();
    }
    if args.no_cache {
        plan.images.iter_mut().for_each(|image| image.cache = CacheUse::Ignore);
    }
    for text in &args.allow {
        let allowed = super::build::entitlement(text)?;
        for image in &mut plan.images {
            image.allow.insert(allowed);
        }
    }
    add_mirrors(&mut plan, &args.mirror)?;
    Ok(plan)
}

/// Adds mirrors of flags in front of the project's own.
pub(super) fn add_mirrors(plan: &mut Plan, texts: &[String]) -> Result<(), CliError> {
    for (registry, mirror) in super::pull::parse_mirrors(texts)? {
        let mirror =
            idpbuilder::plan::MirrorPlan { address: mirror.address, fallback: mirror.fallback };
        plan.mirrors.entry(registry).or_default().insert(0, mirror);
    }
    Ok(())
}

/// Names that a Dockerfile takes images by. One that cannot be read or parsed names none here: the
/// build says what is wrong with it.
fn names_in(image: &Image, root: &Path) -> Vec<String> {
    let text = match &image.dockerfile {
        Dockerfile::Inline(text) => Some(text.clone()),
        Dockerfile::File(path) => fs::read_to_string(root.join(path)).ok(),
        // Nothing is fetched for a plan.
        Dockerfile::InContext(_) | Dockerfile::Url(_) => None,
    };
    let parsed = text.and_then(|text| dockerfile::parse(&text).ok());
    let Some(parsed) = parsed else { return Vec::new() };
    let stages: BTreeSet<&str> =
        parsed.stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
    let mut names = Vec::new();
    for stage in &parsed.stages {
        names.push(stage.base.clone());
        for instruction in &stage.instructions {
            if let ast::Kind::Copy(copy) = &instruction.kind {
                names.extend(copy.from.clone());
            }
            if let ast::Kind::Run(run) = &instruction.kind {
                names.extend(run.mounts.iter().filter_map(|mount| mount.from.clone()));
            }
        }
    }
    names.retain(|name| !stages.contains(name.as_str()));
    names
}

/// The project file here or in the nearest folder above that has one.
fn find() -> Result<PathBuf, CliError> {
    let here = std::env::current_dir().map_err(|error| {
        CliError::new(CONFIGURATION, format!("the current folder is gone: {error}"))
    })?;
    let found = here.ancestors().map(|folder| folder.join(FILE_NAME)).find(|path| path.is_file());
    found.ok_or_else(|| {
        CliError::new(
            CONFIGURATION,
            format!("there is no {FILE_NAME} in {} or above", here.display()),
        )
        .with_help("`idpbuilder init` writes one for the Dockerfiles it finds")
        .with_help("`idpbuilder build` builds a single Dockerfile without one")
    })
}

fn read(path: &Path) -> Result<String, CliError> {
    let fail = |reason: &dyn std::fmt::Display| {
        CliError::new(CONFIGURATION, format!("{}: {reason}", path.display()))
    };
    let metadata = fs::metadata(path).map_err(|error| {
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        if is_missing { fail(&"no such file") } else { fail(&error) }
    })?;
    if !metadata.is_file() {
        return Err(fail(&"not a regular file"));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(fail(&format!("{} bytes, the limit is {FILE_BYTES_MAX}", metadata.len())));
    }
    let bytes = fs::read(path).map_err(|error| fail(&error))?;
    String::from_utf8(bytes).map_err(|_| fail(&"not UTF-8 text"))
}

/// A path as it is shown: from the current folder when it is below.
fn shown_name(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    below.unwrap_or_else(|| path.to_owned()).display().to_string()
}
