//! `cert`: certificates that are trusted for a registry, beside the platform's roots.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use idpbuilder::{
    report::{Align, Table},
    trust::{self, CertificateFacts, TrustError, TrustStore},
};

use super::{
    failure::{CONFIGURATION, CliError, NOT_FOUND, TRUST},
    login, setup,
};

/// Port of HTTPS.
const HTTPS_PORT: u16 = 443;

#[derive(clap::Subcommand)]
pub(super) enum CertVerb {
    /// Lists trusted certificates.
    #[command(visible_alias = "ls")]
    List,
    /// Shows the certificate that a registry presents.
    Show {
        /// Host and port of the registry.
        registry: String,
    },
    /// Trusts a certificate for one registry.
    ///
    /// Without FILE, the certificate that the registry presents is shown and asked about; without a
    /// terminal, `--fingerprint` says which one is meant.
    Trust {
        /// Host and port of the registry.
        registry: String,
        /// PEM file.
        file: Option<PathBuf>,
        /// SHA-256 that the presented certificate must have.
        #[arg(long)]
        fingerprint: Option<String>,
    },
    /// Trusts a certificate no more.
    #[command(visible_alias = "rm")]
    Remove {
        /// Host and port of the registry.
        registry: String,
    },
}

pub(super) fn cert(verb: &CertVerb) -> Result<ExitCode, CliError> {
    let store = TrustStore::new(&setup::home()?.join("certs"));
    match verb {
        CertVerb::List => list(&store),
        CertVerb::Show { registry } => show(registry),
        CertVerb::Trust { registry, file: Some(file), .. } => trust_file(&store, registry, file),
        CertVerb::Trust { registry, file: None, fingerprint } => {
            trust_presented(&store, registry, fingerprint.as_deref())
        }
        CertVerb::Remove { registry } => {
            if !store.remove(registry).map_err(|error| failed(&error))? {
                let message = format!("no certificate is trusted for {registry}");
                return Err(CliError::new(NOT_FOUND, message)
                    .with_help("`idpbuilder cert list` shows what is trusted"));
            }
            setup::print(&format!("removed the certificate of {registry}\n"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn failed(error: &TrustError) -> CliError {
    if let TrustError::Io { path, source } = error {
        return setup::unusable(path, source);
    }
    CliError::new(TRUST, error.to_string())
}

fn list(store: &TrustStore) -> Result<ExitCode, CliError> {
    let headings = [
        ("REGISTRY", Align::Left),
        ("SUBJECT", Align::Left),
        ("VALID UNTIL", Align::Left),
        ("SHA256", Align::Left),
    ];
    let mut table = Table::new(&headings);
    for trusted in store.list().map_err(|error| failed(&error))? {
        match trusted.facts {
            Ok(facts) => {
                let until = jiff::Timestamp::from_second(facts.not_after).unwrap_or_default();
                let fingerprint = trust::format_fingerprint(&facts.sha256);
                table.add([trusted.registry, facts.subject, until.to_string(), fingerprint]);
            }
            Err(reason) => {
                table.add([trusted.registry, reason, String::new(), String::new()]);
            }
        }
    }
    setup::print(&table.to_string());
    Ok(ExitCode::SUCCESS)
}

fn show(registry: &str) -> Result<ExitCode, CliError> {
    for der in presented(registry)? {
        setup::print(&describe(&der));
    }
    Ok(ExitCode::SUCCESS)
}

fn trust_file(store: &TrustStore, registry: &str, file: &PathBuf) -> Result<ExitCode, CliError> {
    let pem = std::fs::read(file)
        .map_err(|error| CliError::new(CONFIGURATION, format!("{}: {error}", file.display())))?;
    let path = store.trust(registry, &pem).map_err(|error| {
        let is_other = matches!(error, TrustError::NotPem(_));
        failed(&if is_other { TrustError::NotPem(file.display().to_string()) } else { error })
    })?;
    setup::print(&format!("trusted for {registry}: {}\n", path.display()));
    Ok(ExitCode::SUCCESS)
}

fn trust_presented(
    store: &TrustStore,
    registry: &str,
    fingerprint: Option<&str>,
) -> Result<ExitCode, CliError> {
    let chain = presented(registry)?;
    let der = chain
        .first()
        .ok_or_else(|| CliError::new(TRUST, format!("{registry} presents no certificate")))?;
    let found = trust::fingerprint(der);
    setup::tell(&describe(der));
    match fingerprint {
        Some(wanted) => {
            if trust::parse_fingerprint(wanted).map_err(|error| failed(&error))? != found {
                let message = format!("{registry} presents another certificate than {wanted}");
                return Err(CliError::new(TRUST, message));
            }
        }
        None if !std::io::stdin().is_terminal() => {
            let shown = trust::format_fingerprint(&found);
            return Err(CliError::new(TRUST, "there is no terminal to ask on")
                .with_help(format!("idpbuilder cert trust {registry} --fingerprint {shown}")));
        }
        None => {
            let answer = login::ask(
                "Trust it for this registry? [y/N] ",
                "--fingerprint says which is meant",
            )?;
            if !matches!(answer.as_str(), "y" | "Y" | "yes") {
                return Err(CliError::new(TRUST, "nothing was trusted"));
            }
        }
    }
    let pem = trust::to_pem(&chain[..1]);
    let path = store.trust(registry, pem.as_bytes()).map_err(|error| failed(&error))?;
    setup::print(&format!("trusted for {registry}: {}\n", path.display()));
    Ok(ExitCode::SUCCESS)
}

fn presented(registry: &str) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, CliError> {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let port = port.parse().map_err(|_| {
                CliError::new(CONFIGURATION, format!("{registry}: {port} is no port"))
            })?;
            (host, port)
        }
        _ => (registry, HTTPS_PORT),
    };
    // As the client does: public DNS points these names at this machine, and may be out of reach.
    let is_local = host == "localtest.me" || host.ends_with(".localtest.me");
    let address = is_local.then(|| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let fetched = trust::fetch_presented(host, port, address);
    setup::runtime()?
        .block_on(fetched)
        .map_err(|error| CliError::new(super::failure::NETWORK, error.to_string()))
}

/// All that can be read of a certificate, and what is wrong with it.
fn describe(der: &[u8]) -> String {
    let sha256 = trust::format_fingerprint(&trust::fingerprint(der));
    let facts = match CertificateFacts::read(der) {
        Ok(facts) => facts,
        Err(error) => return format!("refused      {error}\nsha256       {sha256}\n"),
    };
    let fault = facts.fault(jiff::Timestamp::now().as_second());
    let fault = fault.map(|fault| format!("refused      {fault}\n")).unwrap_or_default();
    format!(
        "issued to    {}\nissued by    {}\nfor          {}\n{fault}sha256       {sha256}\n",
        facts.summary(),
        facts.issuer,
        facts.names.join(", "),
    )
}
