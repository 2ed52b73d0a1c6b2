//! `doctor`: what this machine can do, found by doing, and what would help.

use std::{path::Path, process::ExitCode};

use idpbuilder::{
    report::bytes,
    sandbox::{self, Ability, Isolation, Obstacle, UserIds, Wanted},
    trust::TrustStore,
};

use super::{
    credentials, embedded, failure::CliError, sandbox::SandboxArgs, setup, store::counted,
};

#[derive(clap::Args)]
pub(super) struct DoctorArgs {
    /// Prints what was found as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) sandbox: SandboxArgs,
}

pub(super) fn doctor(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let ability = sandbox::probe(store.root(), &args.sandbox.wanted()?);
    if args.json {
        setup::print(&format!("{:#}\n", json(&ability)));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("idpbuilder {}\n\n", env!("CARGO_PKG_VERSION"));
    line(&mut text, "environment", ability.environment.name());
    match &ability.run {
        Ok(()) => line(&mut text, "RUN", &ability.mechanism()),
        Err(Obstacle { reason, help, .. }) => {
            line(&mut text, "RUN", &format!("not possible: {reason}"));
            line(&mut text, "", &format!("help: {help}"));
        }
    }
    line(&mut text, "limits", &limits(&ability));
    line(&mut text, "processors", &processors(&ability));
    line(&mut text, "--userns", &private_users(store.root(), &args.sandbox.wanted()?));
    line(&mut text, "sockets", abstract_sockets(ability.isolation));
    for note in &ability.notes {
        line(&mut text, "note", note);
    }
    if let (Ok(()), Some(better)) = (&ability.run, ability.environment.improvement()) {
        line(&mut text, "better", &better);
    }
    text.push('\n');
    let usage = store.usage()?;
    let size = bytes(usage.blobs.1 + usage.snapshots.1 + usage.listings.1 + usage.facts_bytes);
    line(
        &mut text,
        "store",
        &format!("{} ({}, {size})", store.root().display(), counted(usage.images, "image")),
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
    let helper = sandbox::network_helper();
    line(
        &mut text,
        "--network",
        helper.map_or("no `sandbox`: install slirp4netns or passt", |name| match name {
            "pasta" => "`sandbox` by pasta",
            _ => "`sandbox` by slirp4netns",
        }),
    );
    setup::print(&text);
    Ok(ExitCode::SUCCESS)
}

/// Which limits are in force, and by what.
fn limits(ability: &Ability) -> String {
    let limits = &ability.limits;
    let all = [(limits.memory, "memory"), (limits.cpu, "processors"), (limits.pids, "processes")];
    let names = |wanted: bool| -> Vec<&str> {
        all.iter().filter(|(is_there, _)| *is_there == wanted).map(|(_, name)| *name).collect()
    };
    let (there, missing) = (names(true), names(false));
    let mut text = match there.is_empty() {
        true => "none".to_owned(),
        false => format!("{} (by {})", there.join(", "), limits.by),
    };
    if !missing.is_empty() {
        text += &format!("; not enforced: {} ({})", missing.join(", "), limits.help);
    }
    text
}

/// Whether RUN can have ids of its own.
fn private_users(folder: &Path, wanted: &Wanted) -> String {
    let wanted = Wanted { users: UserIds::Private, ..wanted.clone() };
    match sandbox::probe(folder, &wanted).run {
        Ok(()) => "`private` gives a RUN ids that are nobody's; ports below 1024 with --network none or sandbox alone"
            .to_owned(),
        Err(Obstacle { reason, .. }) => {
            format!(
                "no `private`: {}",
                reason
                    .trim_start_matches("RUN is not possible here: ")
                    .trim_start_matches("`--userns private`: ")
            )
        }
    }
}

/// Whether a RUN in the machine's network is kept from sockets that no mount could hide.
fn abstract_sockets(isolation: Isolation) -> &'static str {
    match (isolation, sandbox::closes_abstract_sockets(isolation)) {
        (_, true) => "abstract ones of this machine (X11, D-Bus) are closed to a RUN",
        (Isolation::Chroot, false) => {
            "abstract ones of this machine (X11, D-Bus) are open to a RUN without isolation"
        }
        (Isolation::Full | Isolation::OuterProc, false) => {
            "abstract ones of this machine (X11, D-Bus) are open to a RUN in its network: Landlock of Linux 6.12 closes \
             them, and so does --network none or sandbox"
        }
    }
}

/// Processors whose images a RUN can be done for.
fn processors(ability: &Ability) -> String {
    let emulated = sandbox::emulated(ability);
    let own = std::env::consts::ARCH;
    if !emulated.is_empty() {
        return format!("{own}, and by an emulator {}", emulated.join(", "));
    }
    let foreign = if own == "aarch64" { "amd64" } else { "arm64" };
    match (&ability.run, sandbox::emulation(foreign, ability)) {
        (Ok(()), Err(Obstacle { reason, .. })) => format!("{own}, others not: {reason}"),
        (Ok(()) | Err(_), _) => own.to_owned(),
    }
}

fn json(ability: &Ability) -> serde_json::Value {
    let limits = &ability.limits;
    let run = ability.run.as_ref();
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "environment": ability.environment.name(),
        "run": run.is_ok(),
        "reason": run.err().map(|obstacle| &obstacle.reason),
        "help": run.err().map(|obstacle| &obstacle.help),
        "improvement": ability.environment.improvement(),
        "mechanism": ability.mechanism(),
        "snapshotter": ability.snapshotter.name(),
        "scratch": ability.scratch,
        "limits": {
            "by": limits.by, "memory": limits.memory, "cpu": limits.cpu, "pids": limits.pids, "help": limits.help,
        },
        "emulated": sandbox::emulated(ability),
        "abstract_sockets_closed": sandbox::closes_abstract_sockets(ability.isolation),
        "notes": ability.notes,
    })
}

fn line(text: &mut String, name: &str, value: &str) {
    text.push_str(&format!("  {name:<14}{value}\n"));
}

fn find_program(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name));
    found.into_iter().find(|path| path.is_file()).map(|path| path.display().to_string())
}
