//! Registries, images and downloads that failed: exit codes, and what is said besides.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no way out of its own has none to tell"
)]

use idpbuilder::{
    image::ImageError,
    registry::{DownloadError, RegistryError, Sent},
};

use super::{
    credentials,
    failure::{
        AUTHENTICATION, CONFIGURATION, ENVIRONMENT, NETWORK, NOT_FOUND, TRUST, message_text,
    },
};

pub(super) fn registry_code(error: &RegistryError) -> u8 {
    match error {
        RegistryError::Auth { .. } => AUTHENTICATION,
        RegistryError::Tls { .. } => TRUST,
        RegistryError::NotFound(_) => NOT_FOUND,
        RegistryError::Options(_) => CONFIGURATION,
        RegistryError::Local(_) => ENVIRONMENT,
        RegistryError::Mirrored { error, .. } => registry_code(error),
        _ => NETWORK,
    }
}

pub(super) fn image_text(prefix: &str, error: &ImageError) -> String {
    match error {
        ImageError::Registry(error) => registry_text(prefix, error),
        ImageError::NotFound(name) => message_text(
            &format!("{prefix}image {name} not found"),
            &["`idpbuilder images` lists what is here".to_owned()],
        ),
        other => message_text(&format!("{prefix}{other}"), &[]),
    }
}

pub(super) fn registry_text(prefix: &str, error: &RegistryError) -> String {
    message_text(&format!("{prefix}{error}"), &registry_help(error))
}

/// The ways out, one a line.
fn registry_help(error: &RegistryError) -> Vec<String> {
    match error {
        RegistryError::Auth { sent, help, .. } => {
            let mut lines = vec![help.clone()];
            match sent {
                Sent::Found(place) => lines.push(format!("the credentials came from {place}")),
                Sent::Nothing if credentials::from_environment().is_some() => lines.push(
                    "credentials of the environment (GITEA_TOKEN …) are sent to registries that the project file or the command line names"
                        .to_owned(),
                ),
                Sent::Given | Sent::Nothing => {}
            }
            lines
        }
        RegistryError::Refused { help: Some(help), .. } => vec![help.clone()],
        RegistryError::Refused { status: 400, url, .. } if url.starts_with("http://") => {
            vec!["a server that speaks TLS may answer plain HTTP like this: leave `plain-http` out".to_owned()]
        }
        RegistryError::Tls { registry, fingerprint, presented, .. } => {
            let mut lines = Vec::new();
            if let Some(presented) = presented {
                lines.push(format!("issued to    {presented}"));
            }
            if let Some(fingerprint) = fingerprint {
                lines.push(format!("sha256       {fingerprint}"));
                lines.push(format!(
                    "trust it     idpbuilder cert trust {registry}          (shows it and asks)"
                ));
                lines.push(format!("             idpbuilder cert trust {registry} FILE.pem"));
            }
            lines.push(
                "or skip      --insecure, or `tls insecure-skip-verify` for this registry in idpbuilder.kdl"
                    .to_owned(),
            );
            lines
        }
        RegistryError::Network { .. } => vec![
            "is the address right, and does it answer? a proxy is taken from HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
                .to_owned(),
        ],
        RegistryError::Mirrored { error, mirrors } => {
            let mut lines = registry_help(error);
            for mirror in mirrors {
                lines.push(format!("a mirror     {mirror}"));
                let help = registry_help(mirror);
                lines.extend(help.iter().map(|line| format!("             {line}")));
            }
            lines
        }
        _ => Vec::new(),
    }
}

/// Text for the mark, and the ways out, when a file cannot be fetched.
pub(super) fn download_help(error: &DownloadError) -> (&'static str, Vec<String>) {
    match error {
        DownloadError::Private { .. } => {
            let help = "if you trust this Dockerfile: --allow network.private".to_owned();
            ("leads there", vec![help])
        }
        DownloadError::Status { url, status: 401 | 403 } => {
            let host = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let host = host.split('/').next().unwrap_or_default();
            let help = format!("a token: --secret id=HTTP_AUTH_TOKEN_{host},env=NAME");
            ("this file", vec![help])
        }
        _ => ("here", Vec::new()),
    }
}

/// The ways out when there is no image.
pub(super) fn image_help(error: &ImageError) -> Vec<String> {
    let ImageError::Registry(error) = error else { return Vec::new() };
    let lines = registry_help(error);
    let mut help: Vec<String> = lines.iter().map(|line| line.trim().to_owned()).collect();
    if matches!(error, RegistryError::Network { .. }) {
        help.push("`--mirror REGISTRY=HOST:PORT` asks another place, `--pull=never` takes what the store has".to_owned());
    }
    help
}
