//! Messages and exit codes: the place, the reason, the way out.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no message or code of its own here has those of its kind"
)]

use std::{io::ErrorKind, path::Path};

use idpbuilder::{
    build::{BuildError, BuildFailure, files::FilesError},
    dockerfile::DockerfileError,
    exec::{ExecError, Report},
    git::GitError,
    image::ImageError,
    registry::{DownloadError, RegistryError},
    report::safe,
    sandbox::SandboxError,
    store::{StoreError, is_read_only, lacks_space},
};
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic};

use super::{
    git_failure,
    registry_failure::{download_help, image_help, image_text, registry_code, registry_text},
    room::{READ_ONLY, full_text},
    setup,
};

/// A build step failed.
pub(super) const BUILD: u8 = 1;
/// Image or reference not found.
pub(super) const NOT_FOUND: u8 = 2;
/// Command line, project file or Dockerfile invalid.
pub(super) const CONFIGURATION: u8 = 3;
/// Authentication.
pub(super) const AUTHENTICATION: u8 = 4;
/// TLS or trust.
pub(super) const TRUST: u8 = 5;
/// Network or registry, after retries.
pub(super) const NETWORK: u8 = 6;
/// The environment cannot do it.
pub(super) const ENVIRONMENT: u8 = 8;
/// Our bug.
pub(super) const BUG: u8 = 70;
/// Interrupted; the program ends with the signal's own code.
pub(super) const INTERRUPTED: u8 = 130;

/// Why an invocation failed.
pub(super) enum CliError {
    /// A message, a way out, and an exit code.
    Message {
        /// One sentence.
        message: String,
        /// Lines that say what to do.
        help: Vec<String>,
        /// Exit code.
        code: u8,
        /// Whether a full disk is the reason.
        full: bool,
    },
    /// Something with a place in a text, to be drawn.
    Diagnostics(Vec<Box<dyn Diagnostic + Send + Sync>>),
    /// The same, put together on the spot.
    Drawn(miette::Report),
    /// A run that failed; its failures in order.
    Run(Report),
    /// A registry failed.
    Registry(RegistryError),
    /// An image failed.
    Image(ImageError),
    /// The store failed.
    Store(StoreError),
    /// A step of a run failed before the run.
    Exec(ExecError),
}

impl CliError {
    pub(super) fn new(code: u8, message: impl Into<String>) -> Self {
        Self::Message { message: message.into(), help: Vec::new(), code, full: false }
    }

    pub(super) fn with_help(self, line: impl Into<String>) -> Self {
        match self {
            Self::Message { message, mut help, code, full } => {
                help.push(line.into());
                Self::Message { message, help, code, full }
            }
            other => other,
        }
    }

    /// A failure that stands in no Dockerfile.
    pub(super) fn from_build(error: &BuildError) -> Self {
        let (message, _, help) = describe(error);
        Self::Message { message, help, code: build_code(error), full: error.lacks_space() }
    }

    /// Whether a full disk is the reason.
    pub(super) fn lacks_space(&self) -> bool {
        match self {
            Self::Message { full, .. } => *full,
            Self::Diagnostics(_) | Self::Drawn(_) => false,
            Self::Run(report) => report.failures.iter().any(ExecError::lacks_space),
            Self::Registry(error) => lacks_space(error),
            Self::Image(error) => lacks_space(error),
            Self::Store(error) => lacks_space(error),
            Self::Exec(error) => error.lacks_space(),
        }
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self {
            error if error.lacks_space() => ENVIRONMENT,
            Self::Message { code, .. } => *code,
            Self::Diagnostics(_) | Self::Drawn(_) => CONFIGURATION,
            Self::Run(report) => report.failures.first().map_or(BUG, exec_code),
            Self::Registry(error) => registry_code(error),
            Self::Image(error) => image_code(error),
            Self::Store(error) => store_code(error),
            Self::Exec(error) => exec_code(error),
        }
    }

    pub(super) fn print(&self) {
        let text = match self {
            Self::Message { message, help, .. } => message_text(message, help),
            Self::Diagnostics(found) => {
                let drawn: Vec<String> = found.iter().map(|one| draw_all(one.as_ref())).collect();
                drawn.join("\n")
            }
            Self::Drawn(report) => draw(report.as_ref()),
            Self::Run(report) => run_text(report),
            Self::Registry(error) if lacks_space(error) => full_text("", error),
            Self::Image(error) if lacks_space(error) => full_text("", error),
            Self::Registry(error) => registry_text("", error),
            Self::Image(error) => image_text("", error),
            Self::Store(error @ StoreError::NamesTaken { .. }) => {
                let help = "--replace takes the archive's; nothing was changed".to_owned();
                message_text(&error.to_string(), &[help])
            }
            Self::Store(error) if is_read_only(error) => {
                message_text(&error.to_string(), &[READ_ONLY.to_owned()])
            }
            Self::Store(error) => message_text(&error.to_string(), &[]),
            Self::Exec(error) => exec_text(error),
        };
        setup::tell(&text);
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<RegistryError> for CliError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

impl From<ExecError> for CliError {
    fn from(error: ExecError) -> Self {
        Self::Exec(error)
    }
}

pub(super) fn message_text(message: &str, help: &[String]) -> String {
    let mut text = format!("error: {message}\n");
    if !help.is_empty() {
        text.push('\n');
    }
    for line in help {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

fn store_code(error: &StoreError) -> u8 {
    match error {
        StoreError::MissingBlob(_) | StoreError::NoImage(_) => NOT_FOUND,
        StoreError::Backup { .. } | StoreError::NamesTaken { .. } => CONFIGURATION,
        _ => ENVIRONMENT,
    }
}

fn image_code(error: &ImageError) -> u8 {
    match error {
        ImageError::Registry(error) => registry_code(error),
        ImageError::Store(error) => store_code(error),
        ImageError::NotFound(_) | ImageError::NotHere(_) | ImageError::Platform { .. } => NOT_FOUND,
        ImageError::Io { .. } => ENVIRONMENT,
        _ => BUILD,
    }
}

fn exec_code(error: &ExecError) -> u8 {
    match error {
        error if error.lacks_space() || is_read_only(error) => ENVIRONMENT,
        ExecError::Build(failure) => build_code(&failure.error),
        ExecError::Context { source, .. } => build_code(source),
        ExecError::File { .. } | ExecError::Secret { .. } => CONFIGURATION,
        ExecError::Image { source, .. } | ExecError::Push { source, .. } => image_code(source),
        ExecError::Store(error) => store_code(error),
        ExecError::Registry(error) => registry_code(error),
        ExecError::Embedded(_) | ExecError::Serve(_) => ENVIRONMENT,
        ExecError::Cancelled => INTERRUPTED,
        _ => BUG,
    }
}

fn build_code(error: &BuildError) -> u8 {
    match error {
        BuildError::Dockerfile(_)
        | BuildError::BaseName { .. }
        | BuildError::NotAllowed { .. }
        | BuildError::Moved { .. }
        | BuildError::NotLocked { .. }
        | BuildError::SecretMissing { .. }
        | BuildError::Secret { .. }
        | BuildError::AgentMissing { .. }
        | BuildError::Agent { .. }
        | BuildError::NoArchive { .. }
        | BuildError::NoDockerfile { .. }
        | BuildError::NoText { .. }
        | BuildError::Epoch(_)
        | BuildError::SplitPattern { .. }
        | BuildError::Unsupported { .. } => CONFIGURATION,
        BuildError::NoStage { source, .. } => build_code(source),
        BuildError::Download(error) => match error {
            DownloadError::Private { .. } | DownloadError::Refused { .. } => CONFIGURATION,
            DownloadError::Transport(error) => registry_code(error),
            DownloadError::Status { status: 401 | 403, .. } => AUTHENTICATION,
            _ => BUILD,
        },
        BuildError::Image(error) => image_code(error),
        BuildError::Sandbox(SandboxError::Unavailable { .. }) => ENVIRONMENT,
        BuildError::Store(error) => store_code(error),
        BuildError::Git(error) => match error.as_ref() {
            GitError::Auth { .. } => AUTHENTICATION,
            GitError::UnknownHost { .. } => TRUST,
            GitError::Missing { .. } | GitError::Io { .. } => ENVIRONMENT,
            GitError::NoReference { .. } => NOT_FOUND,
            GitError::Failed { .. } => NETWORK,
            _ => BUILD,
        },
        BuildError::Cancelled => INTERRUPTED,
        _ => BUILD,
    }
}

fn exec_text(error: &ExecError) -> String {
    match error {
        ExecError::Build(failure) => build_text(failure),
        error if is_read_only(error) => message_text(&error.to_string(), &[READ_ONLY.to_owned()]),
        ExecError::Image { image, source } if lacks_space(source) => {
            full_text(&format!("{image}: "), source)
        }
        ExecError::Image { image, source } => image_text(&format!("{image}: "), source),
        ExecError::Push { to, source, .. } => image_text(&format!("pushing {to}: "), source),
        ExecError::Registry(error) => registry_text("", error),
        ExecError::File { image, what, path, source } => {
            let message = match source.kind() {
                ErrorKind::NotFound => format!("{image}: {what} {} does not exist", path.display()),
                _ => format!("{image}: {error}"),
            };
            message_text(&safe_lines(&message), &file_help(what, path))
        }
        ExecError::Context { image, source } => {
            let (message, _, help) = describe(source);
            let help: Vec<String> =
                help.iter().map(|line| format!("help         {line}")).collect();
            message_text(&format!("{image}: {}", safe_lines(&message)), &help)
        }
        ExecError::Cancelled => "cancelled\n".to_owned(),
        other => message_text(&other.to_string(), &[]),
    }
}

/// The ways out when what the plan names cannot be read.
fn file_help(what: &str, path: &Path) -> Vec<String> {
    match what {
        "Dockerfile" => {
            let mut help = vec![
                "`build -f FILE` names another one; so does `dockerfile \"FILE\"`, from the folder of idpbuilder.kdl"
                    .to_owned(),
            ];
            let there = other_dockerfiles(path);
            if !there.is_empty() {
                help.insert(0, format!("there is {}", there.join(", ")));
            }
            help
        }
        "build context" => {
            vec!["`context \"FOLDER\"` is meant from the folder of idpbuilder.kdl".to_owned()]
        }
        _ => Vec::new(),
    }
}

/// Files beside one that is missing, whose names say that they are Dockerfiles.
fn other_dockerfiles(missing: &Path) -> Vec<String> {
    const SHOWN_MAX: usize = 3;
    let folder = missing.parent().filter(|folder| !folder.as_os_str().is_empty());
    let entries =
        std::fs::read_dir(folder.unwrap_or(Path::new("."))).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let name = name.to_ascii_lowercase();
            name.contains("dockerfile") || name.contains("containerfile")
        })
        .filter(|name| !name.ends_with(".dockerignore"))
        .collect();
    names.sort();
    names.truncate(SHOWN_MAX);
    names
}

/// Failures in order; a process that several images share is told once.
fn run_text(report: &Report) -> String {
    let mut texts = Vec::new();
    for error in &report.failures {
        let ExecError::Build(failure) = error else {
            let text = exec_text(error);
            // What ^C stopped is told once, however much it was.
            if !matches!(error, ExecError::Cancelled) || !texts.contains(&text) {
                texts.push(text);
            }
            continue;
        };
        if builds(report).any(|other| failure.repeats(other)) {
            continue;
        }
        let same = builds(report).filter(|other| other.repeats(failure));
        let images: Vec<&str> = same.map(|other| other.image.as_str()).collect();
        let mut text = build_text(failure);
        if !images.is_empty() {
            text.push_str(&format!("  fails too    {}\n", images.join(", ")));
        }
        texts.push(text);
    }
    texts.join("\n")
}

fn builds(report: &Report) -> impl Iterator<Item = &BuildFailure> {
    report.failures.iter().filter_map(|error| match error {
        ExecError::Build(failure) => Some(failure),
        _ => None,
    })
}

fn build_text(failure: &BuildFailure) -> String {
    let (headline, label, help) = describe(failure.error.as_ref());
    let location = match failure.error.as_ref() {
        BuildError::Dockerfile(error) => error.location.as_ref().map(|place| place.span.clone()),
        _ => failure.place.as_ref().map(|place| place.span.clone()),
    };
    let headline = match failure.error.as_ref() {
        // The process said so itself, or did not notice.
        BuildError::Exit { full: Some(_), .. } => {
            "no space left on the disk of the store".to_owned()
        }
        error if error.lacks_space() => format!("no space left: {error}"),
        _ => headline,
    };
    let headline = match (&failure.place, failure.error.as_ref()) {
        (Some(place), BuildError::Exit { code, full: None, .. }) => {
            format!("`{}` ended with exit code {code}", safe(&first_line(&place.title)))
        }
        (_, BuildError::Start { source, .. }) => source.to_string(),
        _ => headline,
    };
    let mut text = format!("error: {}\n", safe_lines(&headline));
    if let BuildError::Exit { .. } | BuildError::Start { .. } = failure.error.as_ref() {
        // The words that logs of other builders are searched for.
        text.push_str(&format!("  {}\n", safe_lines(&failure.error.to_string())));
    }
    if let Some(span) = location
        && !span.is_empty()
    {
        text.push('\n');
        text.push_str(&snippet(failure, span, label));
    }
    if let BuildError::Exit { tail, log, .. } = failure.error.as_ref() {
        text.push_str(&output_text(failure, tail, log.as_deref()));
    }
    for line in help.iter().flat_map(|help| help.lines()) {
        text.push_str(&format!("  help         {}\n", safe(line)));
    }
    if let BuildError::Dockerfile(error) = failure.error.as_ref() {
        text.extend(error.others.iter().map(|other| other_text(failure, other)));
    }
    text
}

/// One more mistake of the same Dockerfile.
fn other_text(failure: &BuildFailure, error: &DockerfileError) -> String {
    let mut text = format!("\nerror: {}\n", safe_lines(&error.message));
    if let Some(location) = &error.location {
        let label = error.label.clone().unwrap_or_else(|| "here".to_owned());
        text.push('\n');
        text.push_str(&snippet(failure, location.span.clone(), label));
    }
    text
}

/// Headline, text for the mark, and the ways out.
fn describe(error: &BuildError) -> (String, String, Vec<String>) {
    let message = error.to_string();
    match error {
        BuildError::Dockerfile(DockerfileError { label, help, .. }) => {
            let label = label.clone().unwrap_or_else(|| "here".to_owned());
            (message, label, help.iter().cloned().collect())
        }
        BuildError::NoStage { near, source } => {
            let (message, label, mut help) = describe(source);
            help.insert(0, format!("no stage has this name: did you mean `{near}`?"));
            (message, label, help)
        }
        BuildError::Exit { code, tail, help, .. } => {
            let said = tail.iter().rev().find(|line| !line.trim().is_empty());
            let label = said.map_or_else(|| format!("exit code {code}"), |line| safe(line));
            (message, label, help.iter().cloned().collect())
        }
        BuildError::Files(FilesError::NotFound { help, .. }) => {
            (message, "this source".to_owned(), help.iter().cloned().collect())
        }
        BuildError::NotAllowed { entitlement } => {
            let help = format!("if you trust this Dockerfile: --allow {}", entitlement.name());
            (message, "asks for it".to_owned(), vec![help])
        }
        BuildError::SecretMissing { id } => {
            let flag = format!("--secret id={id},src=FILE or --secret id={id},env=NAME");
            let file = format!(
                "in idpbuilder.kdl: `secret {id} env=NAME`, and `secrets {id}` in the image"
            );
            let without = "without `required` the build goes on without it".to_owned();
            (message, "needs it".to_owned(), vec![flag, file, without])
        }
        BuildError::AgentMissing { id, offered } => {
            (message, "needs it".to_owned(), agent_help(id, offered))
        }
        BuildError::Moved { name, .. } => {
            let help = format!("`idpbuilder lock --update {name}` takes what it is now");
            (message, "this moved".to_owned(), vec![help])
        }
        BuildError::NotLocked { .. } => {
            let help = "`idpbuilder lock` adds it".to_owned();
            (message, "this is not locked".to_owned(), vec![help])
        }
        BuildError::Image(ImageError::NotHere(name)) => {
            let help = format!("`idpbuilder pull {name}`, or leave --offline and --pull=never out");
            (message, "this image".to_owned(), vec![help])
        }
        BuildError::Unsupported { help, .. } => {
            (message, "here".to_owned(), help.iter().cloned().collect())
        }
        BuildError::Sandbox(SandboxError::Unavailable { help, .. }) => {
            let doctor = "`idpbuilder doctor` shows what this machine can do".to_owned();
            (message, "needs a sandbox".to_owned(), vec![help.clone(), doctor])
        }
        BuildError::Git(error) => (message, "this repository".to_owned(), git_failure::help(error)),
        BuildError::Download(error) => {
            let (label, help) = download_help(error);
            (message, label.to_owned(), help)
        }
        BuildError::NoDockerfile { context, path } => {
            let help = vec![
                format!("{context} has no {path}"),
                "name another one with `-f PATH`, or one of this machine with `-f /PATH`"
                    .to_owned(),
            ];
            (message, "here".to_owned(), help)
        }
        BuildError::Image(error) => (message, "this image".to_owned(), image_help(error)),
        _ => (message, "here".to_owned(), Vec::new()),
    }
}

/// The ways out when there is no agent.
fn agent_help(id: &str, offered: &[String]) -> Vec<String> {
    let name = if id.is_empty() { "default" } else { id };
    let mut help = vec![
        format!("--ssh {name} hands your agent on, --ssh {name}=FILE a key or another agent"),
        format!("in idpbuilder.kdl: `ssh {name}` in the image"),
        "without `required` the build goes on without it".to_owned(),
    ];
    if !offered.is_empty() {
        help.insert(0, format!("offered are: {}", offered.join(", ")));
    }
    help
}

/// The end of what a step printed, and where the rest is.
fn output_text(failure: &BuildFailure, tail: &[String], log: Option<&std::path::Path>) -> String {
    let mut text = String::from("  last lines\n");
    for line in tail {
        text.push_str(&format!("    {}\n", safe(line)));
    }
    if tail.is_empty() {
        text = String::from("  last lines   (it printed nothing)\n");
    }
    if let Some(log) = log {
        text.push_str(&format!("  whole log    {}\n", log.display()));
    }
    if let Some(place) = &failure.place {
        let (line, name) = (place.lines.0, &failure.dockerfile.name);
        text.push_str(&format!("  where        {name}:{line}\n"));
    }
    text
}

/// The lines around a place, drawn; without the headline, which stands above already.
fn snippet(failure: &BuildFailure, span: std::ops::Range<usize>, label: String) -> String {
    let text = &failure.dockerfile.text;
    let end = span.end.min(text.len());
    // A mark that ends with the line break would spill over to the next line.
    let marked = text.get(span.start..end).map_or(0, |marked| marked.trim_end().len());
    let diagnostic = MietteDiagnostic::new("")
        .with_label(LabeledSpan::at(span.start..span.start + marked, label));
    let named = miette::NamedSource::new(&failure.dockerfile.name, text.clone());
    let report = miette::Report::new(diagnostic).with_source_code(named);
    let drawn = draw(report.as_ref());
    let body = drawn.lines().skip_while(|line| !line.contains('╭') && !line.contains(",-["));
    body.map(|line| format!("{line}\n")).collect()
}

/// A diagnostic, or each of those that it stands for.
fn draw_all(diagnostic: &dyn Diagnostic) -> String {
    let related: Vec<String> = diagnostic.related().into_iter().flatten().map(draw).collect();
    if related.is_empty() { draw(diagnostic) } else { related.join("\n") }
}

fn draw(diagnostic: &dyn Diagnostic) -> String {
    let theme = match (setup::is_unicode(), setup::wants_color(&std::io::stderr())) {
        (true, true) => GraphicalTheme::unicode(),
        (true, false) => GraphicalTheme::unicode_nocolor(),
        (false, _) => GraphicalTheme::none(),
    };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(setup::columns());
    let mut drawn = String::new();
    match handler.render_report(&mut drawn, diagnostic) {
        // The headline begins as that of every other failure does.
        Ok(()) => match drawn.trim_start().strip_prefix(['×', 'x']) {
            Some(rest) => format!("error:{rest}"),
            None => drawn,
        },
        Err(_) => format!("error: {diagnostic}\n"),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn safe_lines(text: &str) -> String {
    text.lines().map(safe).collect::<Vec<_>>().join("\n")
}
