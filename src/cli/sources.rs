//! What a build is made from, by flags: Dockerfile, contexts, arguments. The same for `build` and `check`.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use idpbuilder::plan::{BuildFlags, DockerfileSource, NamedContext, Plan};

use super::{
    failure::{CONFIGURATION, CliError},
    images, project, pull, setup,
};

/// Largest Dockerfile read from standard input, in bytes.
const DOCKERFILE_BYTES_MAX: u64 = 16 << 20;

/// Flags that say what a build is made from.
#[derive(clap::Args)]
pub(super) struct SourceArgs {
    /// Folder of the build context.
    #[arg(value_name = "CONTEXT")]
    folder: Option<PathBuf>,
    /// Folder of the build context, as a flag.
    #[arg(long, value_name = "CONTEXT", conflicts_with = "folder")]
    context: Option<PathBuf>,
    /// Dockerfile; `-` reads it from standard input. CONTEXT/Dockerfile by default.
    #[arg(short, long, visible_alias = "dockerfile", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Value of an ARG; without a value, the environment's.
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Stage to build.
    #[arg(long)]
    target: Option<String>,
    /// Platforms, separated by commas.
    #[arg(long, value_delimiter = ',')]
    platform: Vec<String>,
    /// Named context: a folder, oci-layout://FOLDER[:TAG], or docker-image://REFERENCE.
    #[arg(long, value_name = "NAME=SOURCE")]
    build_context: Vec<String>,
    /// Fails for what the rules of idpbuilder itself find, which are no rules of BuildKit (schema/checks.md).
    #[arg(long)]
    pub(super) strict: bool,
    /// Serves a registry from another address: `docker.io=HOST:PORT/PREFIX`.
    #[arg(long, value_name = "REGISTRY=ADDRESS")]
    mirror: Vec<String>,
}

impl SourceArgs {
    /// What these flags say; all else as without flags.
    pub(super) fn flags(&self) -> Result<BuildFlags, CliError> {
        let folder = self.folder.clone().or_else(|| self.context.clone());
        let context = setup::absolute(folder.as_deref().unwrap_or(Path::new(".")))?;
        if !context.is_dir() {
            let message = format!("the build context {} is no folder", context.display());
            return Err(CliError::new(CONFIGURATION, message));
        }
        let mut flags = BuildFlags::new(dockerfile(self, &context)?, Some(context));
        flags.target.clone_from(&self.target);
        flags.strict = self.strict;
        flags.args = build_args(&self.build_arg)?;
        flags.platforms = self
            .platform
            .iter()
            .map(|platform| pull::parse_platform(platform))
            .collect::<Result<_, _>>()?;
        for text in &self.build_context {
            let (name, source) = named_context(text)?;
            flags.named_contexts.insert(name, source);
        }
        Ok(flags)
    }

    /// A plan of these flags, with the mirrors.
    pub(super) fn plan(&self, flags: BuildFlags) -> Result<Plan, CliError> {
        let plan = Plan::from_flags(flags);
        let mut plan = plan.map_err(|error| CliError::Diagnostics(vec![Box::new(error)]))?;
        project::add_mirrors(&mut plan, &self.mirror)?;
        Ok(plan)
    }
}

fn dockerfile(args: &SourceArgs, context: &Path) -> Result<DockerfileSource, CliError> {
    match &args.file {
        Some(path) if path.as_os_str() == "-" => {
            let mut text = String::new();
            let read = std::io::stdin().take(DOCKERFILE_BYTES_MAX).read_to_string(&mut text);
            read.map_err(|error| CliError::new(CONFIGURATION, format!("standard input: {error}")))?;
            Ok(DockerfileSource::Inline(text))
        }
        Some(path) => {
            // As docker does: from the current folder, and, when there is none, from the context.
            let here = setup::absolute(path)?;
            let inside = context.join(path);
            Ok(DockerfileSource::File(if here.exists() || !inside.exists() {
                here
            } else {
                inside
            }))
        }
        None => {
            let (usual, lower) = (context.join("Dockerfile"), context.join("dockerfile"));
            Ok(DockerfileSource::File(if !usual.exists() && lower.exists() {
                lower
            } else {
                usual
            }))
        }
    }
}

fn build_args(texts: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut args = BTreeMap::new();
    for text in texts {
        match text.split_once('=') {
            Some(("", _)) => {
                let message = format!("--build-arg {text}: the name is missing");
                return Err(CliError::new(CONFIGURATION, message));
            }
            Some((name, value)) => drop(args.insert(name.to_owned(), value.to_owned())),
            None => {
                if let Ok(value) = std::env::var(text) {
                    args.insert(text.clone(), value);
                }
            }
        }
    }
    Ok(args)
}

pub(super) fn named_context(text: &str) -> Result<(String, NamedContext), CliError> {
    let (name, source) = text.split_once('=').ok_or_else(|| {
        CliError::new(CONFIGURATION, format!("--build-context {text}: expected NAME=SOURCE"))
    })?;
    let context = if let Some(image) = source.strip_prefix("docker-image://") {
        NamedContext::Image(images::parse(image)?)
    } else if let Some(layout) = source.strip_prefix("oci-layout://") {
        let (path, selector) = split_selector(layout);
        NamedContext::OciLayout { path: setup::absolute(Path::new(path))?, selector }
    } else if source.contains("://") {
        let message = format!("--build-context {text}: contexts from URLs are not supported yet");
        return Err(CliError::new(CONFIGURATION, message)
            .with_help("use a folder, oci-layout://FOLDER or docker-image://REFERENCE"));
    } else {
        let path = setup::absolute(Path::new(source))?;
        if !path.is_dir() {
            let message = format!("--build-context {name}: {} is no folder", path.display());
            return Err(CliError::new(CONFIGURATION, message));
        }
        NamedContext::Directory(path)
    };
    Ok((name.to_owned(), context))
}

/// `FOLDER`, `FOLDER:TAG`, `FOLDER@DIGEST`.
fn split_selector(layout: &str) -> (&str, Option<String>) {
    if let Some((path, digest)) = layout.split_once('@') {
        return (path, Some(format!("@{digest}")));
    }
    match layout.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(format!(":{tag}"))),
        _ => (layout, None),
    }
}
