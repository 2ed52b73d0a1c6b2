//! `init` and `completions`: the first files of a new user.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::CommandFactory as _;
use idpbuilder::project::starter;

use super::{
    Cli,
    failure::{CONFIGURATION, CliError},
    project::FILE_NAME,
    setup,
};

/// Folders below the current one in which Dockerfiles are looked for, at most so deep.
const DEPTH_MAX: usize = 4;
/// Folders that hold no Dockerfiles of the project.
const SKIPPED: &[&str] = &["node_modules", "target", "vendor", "dist"];

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Example:\n",
    "  idpbuilder init"
))]
pub(super) struct InitArgs {
    /// Folder of the project.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Prints the file instead of writing it.
    #[arg(long)]
    stdout: bool,
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Example:\n",
    "  idpbuilder completions bash > /etc/bash_completion.d/idpbuilder"
))]
pub(super) struct CompletionsArgs {
    /// Shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub(super) fn init(args: &InitArgs) -> Result<ExitCode, CliError> {
    let folder = setup::absolute(&args.folder)?;
    let mut found = Vec::new();
    find_dockerfiles(&folder, Path::new(""), 0, &mut found);
    found.sort();
    let name = folder.file_name().map_or_else(|| "app".into(), |name| name.to_string_lossy());
    let paths: Vec<&Path> = found.iter().map(PathBuf::as_path).collect();
    let text = starter(&name, &paths);
    if args.stdout {
        setup::print(&text);
        return Ok(ExitCode::SUCCESS);
    }
    let path = folder.join(FILE_NAME);
    let written = OpenOptions::new().write(true).create_new(true).open(&path);
    let written = written.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            return CliError::new(CONFIGURATION, format!("{} exists already", path.display()))
                .with_help("`idpbuilder init --stdout` shows what would be written");
        }
        CliError::new(CONFIGURATION, format!("{}: {error}", path.display()))
    })?;
    let count = match found.len() {
        0 => "no Dockerfile found: it builds an inline one".to_owned(),
        1 => "for 1 Dockerfile".to_owned(),
        count => format!("for {count} Dockerfiles"),
    };
    setup::print(&format!("wrote {} ({count})\nnext: idpbuilder plan\n", path.display()));
    Ok(ExitCode::SUCCESS)
}

fn find_dockerfiles(root: &Path, below: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(root.join(below)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < DEPTH_MAX && !name.starts_with('.') {
            if !SKIPPED.contains(&name.as_str()) {
                find_dockerfiles(root, &below.join(&name), depth + 1, found);
            }
        } else if kind.is_file() && is_dockerfile(&name) {
            found.push(below.join(&name));
        }
    }
}

fn is_dockerfile(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let named = lower == "dockerfile" || lower == "containerfile" || lower.ends_with(".dockerfile");
    (named || lower.starts_with("dockerfile.")) && !lower.ends_with(".dockerignore")
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "idpbuilder", &mut script);
    setup::print(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}
