//! What a build is made from, by flags: Dockerfile, contexts, arguments. The same for `build` and `check`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use idpbuilder::{
    build::files,
    dockerfile,
    oci::{ARCHITECTURES, Platform},
    plan::{BuildFlags, ContextPlan, DockerfileSource, NamedContext, Plan},
    remote::{Remote, is_web, without_login},
};

use super::{
    failure::{CONFIGURATION, CliError},
    images, project, pull, setup,
};

/// Largest Dockerfile read from standard input, in bytes.
const DOCKERFILE_BYTES_MAX: u64 = 16 << 20;

/// Flags that say what a build is made from.
#[derive(clap::Args)]
pub(super) struct SourceArgs {
    /// Build context: a folder, a tar archive, a git repository (https://HOST/PATH.git#REF:FOLDER), the
    /// URL of an archive or of a Dockerfile, or `-` for an archive or a Dockerfile on standard input.
    #[arg(value_name = "CONTEXT")]
    folder: Option<String>,
    /// Build context, as a flag.
    #[arg(long, value_name = "CONTEXT", conflicts_with = "folder")]
    context: Option<String>,
    /// Dockerfile; `-` reads it from standard input, a URL is fetched. `Dockerfile` of the context by
    /// default; a relative path is one in the context when that is no folder.
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
    /// Named context: what CONTEXT may be (but `-`), oci-layout://FOLDER[:TAG], docker-image://REFERENCE,
    /// or docker-image://scratch.
    #[arg(long, value_name = "NAME=SOURCE")]
    build_context: Vec<String>,
    /// Fails for what the rules of idpbuilder itself find, which are no rules of BuildKit (schema/checks.md).
    #[arg(long)]
    pub(super) strict: bool,
    /// Serves a registry from another address: `docker.io=HOST:PORT/PREFIX`.
    #[arg(long, value_name = "REGISTRY=ADDRESS")]
    pub(super) mirror: Vec<String>,
}

/// A platform that an image can be built for. What is only fetched may be for any that somebody made.
fn known_platform(text: &str) -> Result<Platform, CliError> {
    let platform = pull::parse_platform(text)?;
    if platform.is_known() {
        return Ok(platform);
    }
    let architecture = &platform.architecture;
    let message = format!("--platform: no architecture is called `{architecture}`");
    let near = dockerfile::nearest(architecture, &ARCHITECTURES);
    Err(CliError::new(CONFIGURATION, message).with_help(near.map_or_else(
        || format!("known are {}", ARCHITECTURES.join(", ")),
        |near| format!("did you mean `{near}`?"),
    )))
}

/// What there is to build from.
struct Sources {
    dockerfile: DockerfileSource,
    context: Option<ContextPlan>,
    /// Keeps what came from standard input.
    input: Option<File>,
}

/// Flags as a plan takes them, and what they keep open until the build is done.
pub(super) struct ReadFlags {
    pub(super) flags: BuildFlags,
    /// What came from standard input; the plan names it by its descriptor.
    pub(super) input: Option<File>,
}

impl SourceArgs {
    /// Whether a Dockerfile or its context is named.
    pub(super) fn is_given(&self) -> bool {
        self.folder.is_some() || self.context.is_some() || self.file.is_some()
    }

    /// What these flags say; all else as without flags.
    pub(super) fn flags(&self) -> Result<ReadFlags, CliError> {
        let Sources { dockerfile, context, input } = self.sources()?;
        let mut flags = BuildFlags::new(dockerfile, context);
        flags.target.clone_from(&self.target);
        flags.strict = self.strict;
        flags.args = build_args(&self.build_arg)?;
        flags.platforms = self
            .platform
            .iter()
            .map(|platform| known_platform(platform))
            .collect::<Result<_, _>>()?;
        for text in &self.build_context {
            let (name, source) = named_context(text)?;
            flags.named_contexts.insert(name, source);
        }
        Ok(ReadFlags { flags, input })
    }

    fn sources(&self) -> Result<Sources, CliError> {
        let named = self.folder.as_deref().or(self.context.as_deref()).unwrap_or(".");
        let from_input = self.file.as_ref().is_some_and(|file| file.as_os_str() == "-");
        if named == "-" {
            return self.standard_input(if from_input { Taken::Twice } else { Taken::Once });
        }
        let context = files(named).map_err(|reason| {
            let message = format!("the build context {} {reason}", without_login(named));
            CliError::new(CONFIGURATION, message).with_help(CONTEXT_HELP)
        })?;
        let dockerfile = match (&self.file, &context) {
            (Some(_), _) if from_input => DockerfileSource::Inline(read_dockerfile()?),
            (Some(url), _) if url.to_str().is_some_and(is_web) => {
                DockerfileSource::Url(url.to_string_lossy().into_owned())
            }
            (file, ContextPlan::Directory(folder)) => dockerfile(file.as_deref(), folder)?,
            (file, _) => in_context(file.as_deref())?,
        };
        Ok(Sources { dockerfile, context: Some(context), input: None })
    }

    /// An archive is the context, a text is the Dockerfile without any.
    fn standard_input(&self, taken: Taken) -> Result<Sources, CliError> {
        if taken == Taken::Twice {
            let message = "can't use stdin for both build context and dockerfile";
            return Err(CliError::new(CONFIGURATION, message)
                .with_help("give one of them by its path: build -f - FOLDER"));
        }
        let fail =
            |error: io::Error| CliError::new(CONFIGURATION, format!("standard input: {error}"));
        let (path, file, size) = setup::spool_input()?;
        let is_archive = File::open(&path).map(|input| files::is_archive(Box::new(input)));
        if is_archive.map_err(fail)? {
            let context = ContextPlan::Archive { archive: "standard input".to_owned(), path };
            let dockerfile = in_context(self.file.as_deref())?;
            return Ok(Sources { dockerfile, context: Some(context), input: Some(file) });
        }
        if self.file.is_some() {
            let message =
                "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles";
            return Err(CliError::new(CONFIGURATION, message).with_help(
                "what came from standard input is no tar archive; leave out -f or the -",
            ));
        }
        if size > DOCKERFILE_BYTES_MAX {
            let message = format!("standard input: {size} bytes, and no tar archive");
            return Err(CliError::new(CONFIGURATION, message));
        }
        let text = fs::read(&path).map_err(fail)?;
        let text = String::from_utf8(text).map_err(|_| {
            let message = "standard input is neither a tar archive nor the text of a Dockerfile";
            CliError::new(CONFIGURATION, message)
        })?;
        Ok(Sources { dockerfile: DockerfileSource::Inline(text), context: None, input: None })
    }

    /// A plan of these flags, with the mirrors.
    pub(super) fn plan(&self, flags: BuildFlags) -> Result<Plan, CliError> {
        let plan = Plan::from_flags(flags);
        let mut plan = plan.map_err(|error| CliError::Diagnostics(vec![Box::new(error)]))?;
        project::add_mirrors(&mut plan, &self.mirror)?;
        Ok(plan)
    }
}

/// How many things are to come from standard input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Once,
    Twice,
}

/// What a context may be.
const CONTEXT_HELP: &str =
    "a context is a folder, a tar archive, a git repository, an http or https URL, or -";

/// The files that a context is made of; the error is what is wrong with it, behind its name.
fn files(text: &str) -> Result<ContextPlan, String> {
    let path = Path::new(text);
    // A folder that is called like a repository is a folder: docker sees it so as well.
    if !path.exists() {
        match Remote::parse(text) {
            Ok(Some(remote)) => return Ok(ContextPlan::Remote { remote }),
            Ok(None) => {}
            Err(error) => return Err(format!("is no git repository: {error}")),
        }
    }
    let absolute = std::path::absolute(path).map_err(|error| error.to_string())?;
    if absolute.is_dir() {
        return Ok(ContextPlan::Directory(absolute));
    }
    if !absolute.exists() {
        return Err("does not exist".to_owned());
    }
    let is_archive = absolute.is_file()
        && File::open(&absolute).is_ok_and(|file| files::is_archive(Box::new(file)));
    if !is_archive {
        return Err("is neither a folder nor a tar archive".to_owned());
    }
    Ok(ContextPlan::Archive { archive: text.to_owned(), path: absolute })
}

fn read_dockerfile() -> Result<String, CliError> {
    let mut text = String::new();
    let read = io::stdin().take(DOCKERFILE_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| CliError::new(CONFIGURATION, format!("standard input: {error}")))?;
    Ok(text)
}

/// A path in what is fetched or unpacked, or, from the root on, a file of this machine.
fn in_context(file: Option<&Path>) -> Result<DockerfileSource, CliError> {
    let Some(file) = file else { return Ok(DockerfileSource::Context(None)) };
    if file.is_absolute() {
        return Ok(DockerfileSource::File(file.to_owned()));
    }
    let text = file.to_str().map(str::to_owned).ok_or_else(|| {
        CliError::new(CONFIGURATION, format!("-f {}: not UTF-8 text", file.display()))
    })?;
    Ok(DockerfileSource::Context(Some(text)))
}

fn dockerfile(file: Option<&Path>, context: &Path) -> Result<DockerfileSource, CliError> {
    match file {
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
    let context = if source == "docker-image://scratch" {
        NamedContext::Scratch
    } else if let Some(image) = source.strip_prefix("docker-image://") {
        NamedContext::Image(images::parse(image)?)
    } else if let Some(layout) = source.strip_prefix("oci-layout://") {
        let (path, selector) = split_selector(layout);
        NamedContext::OciLayout { path: setup::absolute(Path::new(path))?, selector }
    } else if source.starts_with("target:") {
        let message = format!("--build-context {text}: there is no other image beside this one");
        return Err(CliError::new(CONFIGURATION, message)
            .with_help("declare both in idpbuilder.kdl: build-context NAME=\"target:IMAGE\""));
    } else {
        match files(source) {
            Ok(ContextPlan::Directory(path)) => NamedContext::Directory(path),
            Ok(context) => NamedContext::Files(context),
            Err(reason) => {
                let shown = without_login(source);
                let message = format!("--build-context {name}: {shown} {reason}");
                return Err(CliError::new(CONFIGURATION, message).with_help(
                    "a folder, a tar archive, a git repository, a URL, oci-layout://FOLDER or \
                     docker-image://REFERENCE",
                ));
            }
        }
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
