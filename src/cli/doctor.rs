//! `doctor`: what this machine can do, found by doing, and what would help.

use std::process::ExitCode;

use idpbuilder::{
    report::bytes,
    sandbox::{self, Obstacle, Privilege},
    trust::TrustStore,
};

use super::{credentials, embedded, failure::CliError, setup};

#[derive(clap::Args)]
pub(super) struct DoctorArgs {}

pub(super) fn doctor(_args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let ability = sandbox::probe(store.root());
    let mut text = format!("idpbuilder {}\n\n", env!("CARGO_PKG_VERSION"));
    let privilege = match ability.privilege {
        Privilege::Root => "root",
        Privilege::Mapped => "ordinary user, with subordinate ids in a user namespace",
        Privilege::SingleId => "ordinary user, with a single id in a user namespace",
        Privilege::None => "ordinary user, without a user namespace",
    };
    line(&mut text, "privilege", privilege);
    result(&mut text, "RUN", "in a sandbox of its own", &ability.run);
    result(&mut text, "overlay", "works on the store's file system", &ability.overlay);
    for note in &ability.notes {
        line(&mut text, "note", note);
    }
    text.push('\n');
    let usage = store.usage()?;
    let size = bytes(usage.blobs.1 + usage.snapshots.1 + usage.listings.1 + usage.facts_bytes);
    line(
        &mut text,
        "store",
        &format!("{} ({}, {size})", store.root().display(), images(usage.images)),
    );
    let certificates = TrustStore::new(&setup::home()?.join("certs"));
    let trusted = certificates.list().map_or(0, |trusted| trusted.len());
    line(&mut text, "certificates", &format!("{trusted} trusted besides the platform's"));
    let files = credentials::auth_files().into_iter().filter(|path| path.exists());
    let files: Vec<String> = files.map(|path| path.display().to_string()).collect();
    let files = if files.is_empty() { "no auth file".to_owned() } else { files.join(", ") };
    line(&mut text, "credentials", &files);
    let port = embedded::address();
    let free = std::net::TcpListener::bind(port).is_ok();
    let state = if free { "free" } else { "in use (by `idpbuilder serve`?)" };
    line(&mut text, "registry", &format!("embedded at {port}: {state}"));
    for (program, purpose) in
        [("git", "facts for labels and tags"), ("newuidmap", "rootless builds")]
    {
        let found = find_program(program);
        let state = found.unwrap_or_else(|| format!("not installed (wanted for {purpose})"));
        line(&mut text, program, &state);
    }
    setup::print(&text);
    Ok(ExitCode::SUCCESS)
}

fn images(count: u64) -> String {
    if count == 1 { "1 image".to_owned() } else { format!("{count} images") }
}

fn line(text: &mut String, name: &str, value: &str) {
    text.push_str(&format!("  {name:<14}{value}\n"));
}

fn result(text: &mut String, name: &str, good: &str, found: &Result<(), Obstacle>) {
    match found {
        Ok(()) => line(text, name, good),
        Err(Obstacle { reason, help }) => {
            line(text, name, &format!("not possible: {reason}"));
            line(text, "", &format!("help: {help}"));
        }
    }
}

fn find_program(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name));
    found.into_iter().find(|path| path.is_file()).map(|path| path.display().to_string())
}
