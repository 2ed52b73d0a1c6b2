//! `login` and `logout`: the auth file that docker, podman and skopeo read too.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    process::ExitCode,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use idpbuilder::registry::{Client, Credentials, RegistryOptions};

use super::{
    credentials,
    failure::{CONFIGURATION, CliError, ENVIRONMENT, NOT_FOUND},
    push, setup,
};

/// Longest password read from standard input, in bytes.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder login gitea.cnoe.localtest.me:8443 --username giteaAdmin --password-stdin < token\n",
    "  idpbuilder login ghcr.io -u me"
))]
pub(super) struct LoginArgs {
    /// Host and port of the registry.
    registry: String,
    /// User name.
    #[arg(short, long)]
    username: Option<String>,
    /// Reads the password from standard input.
    #[arg(long)]
    password_stdin: bool,
    /// Accepts any certificate.
    #[arg(long)]
    insecure: bool,
}

#[derive(clap::Args)]
pub(super) struct LogoutArgs {
    /// Host and port of the registry.
    registry: String,
}

pub(super) fn login(args: &LoginArgs) -> Result<ExitCode, CliError> {
    let username = match &args.username {
        Some(username) => username.clone(),
        None => ask("Username: ", "--username NAME gives it")?,
    };
    let password = if args.password_stdin { read_password()? } else { ask_hidden("Password: ")? };
    let given = Credentials::Basic { username: username.clone(), password: password.clone() };
    let mut options = push::client_options(BTreeSet::new())?;
    let settings = RegistryOptions {
        credentials: Some(given),
        insecure: args.insecure,
        ..RegistryOptions::default()
    };
    options.registries.insert(args.registry.clone(), settings);
    // Credentials that the registry refuses are not kept.
    let client = Client::new(options)?;
    setup::runtime()?.block_on(client.ping(&args.registry))?;
    let path = auth_file()?;
    let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
    change(&path, |auths| {
        auths.insert(args.registry.clone(), serde_json::json!({ "auth": encoded }));
        true
    })?;
    setup::print(&format!("logged in to {}; kept in {}\n", args.registry, path.display()));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn logout(args: &LogoutArgs) -> Result<ExitCode, CliError> {
    let path = auth_file()?;
    let removed = change(&path, |auths| auths.remove(&args.registry).is_some())?;
    if !removed {
        let message =
            format!("there are no credentials for {} in {}", args.registry, path.display());
        return Err(CliError::new(NOT_FOUND, message));
    }
    setup::print(&format!("logged out of {}\n", args.registry));
    Ok(ExitCode::SUCCESS)
}

/// The login of the embedded registry.
pub(super) fn embedded_credentials() -> Option<Credentials> {
    let login = super::embedded::setup().ok()?.login;
    Some(Credentials::Basic { username: login.username, password: login.password })
}

fn auth_file() -> Result<std::path::PathBuf, CliError> {
    credentials::docker_file().ok_or_else(|| {
        CliError::new(CONFIGURATION, "neither DOCKER_CONFIG nor HOME is set")
            .with_help("set DOCKER_CONFIG to the folder for config.json")
    })
}

/// Changes the `auths` of an auth file, keeping all else, atomically and for us alone. Returns what
/// `change` does; `false` writes nothing.
fn change(
    path: &Path,
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>) -> bool,
) -> Result<bool, CliError> {
    let fail =
        |error: io::Error| CliError::new(ENVIRONMENT, format!("{}: {error}", path.display()));
    let invalid = |reason: &dyn std::fmt::Display| {
        CliError::new(CONFIGURATION, format!("{}: {reason}", path.display()))
            .with_help("mend or remove the file, then try again")
    };
    let mut document = match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| invalid(&error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => serde_json::json!({}),
        Err(error) => return Err(fail(error)),
    };
    let root = document.as_object_mut().ok_or_else(|| invalid(&"not a JSON object"))?;
    let auths = root.entry("auths").or_insert_with(|| serde_json::json!({}));
    let auths = auths.as_object_mut().ok_or_else(|| invalid(&"`auths` is no object"))?;
    if !change(auths) {
        return Ok(false);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    let text = serde_json::to_string_pretty(&document).expect("a JSON value");
    file.write_all(text.as_bytes()).map_err(fail)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    Ok(true)
}

/// The whole of standard input, without the line break at its end.
pub(super) fn read_password() -> Result<String, CliError> {
    let mut text = String::new();
    let read = io::stdin().take(PASSWORD_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| CliError::new(CONFIGURATION, format!("standard input: {error}")))?;
    let password = text.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(CliError::new(CONFIGURATION, "standard input holds no password"));
    }
    Ok(password.to_owned())
}

/// Asks on the terminal; without one there is nobody to ask, and `instead` says what does.
pub(super) fn ask(question: &str, instead: &str) -> Result<String, CliError> {
    if !io::stdin().is_terminal() {
        let asked = question.trim_end_matches([':', ' ']);
        let message = format!("there is no terminal to ask on: {asked}");
        return Err(CliError::new(CONFIGURATION, message).with_help(instead));
    }
    let mut out = io::stderr();
    drop(out.write_all(question.as_bytes()).and_then(|()| out.flush()));
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.map_err(|error| CliError::new(CONFIGURATION, format!("standard input: {error}")))?;
    Ok(answer.trim().to_owned())
}

fn ask_hidden(question: &str) -> Result<String, CliError> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = io::stdin();
    let instead = "--password-stdin reads it from standard input";
    let Ok(before) = tcgetattr(&stdin) else { return ask(question, instead) };
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    // A terminal that cannot be told shows what is typed.
    let _shown = tcsetattr(&stdin, OptionalActions::Flush, &hidden);
    let answer = ask(question, instead);
    let _shown = tcsetattr(&stdin, OptionalActions::Flush, &before);
    setup::tell("");
    answer
}
