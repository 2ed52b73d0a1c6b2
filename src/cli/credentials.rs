//! Credentials of a registry, first found wins: environment, then the auth files of containers and Docker.

use std::{env, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use idpbuilder::{
    exec::NamedBy,
    registry::{Credentials, Found},
};

/// What the environment or an auth file has for a registry (host and port). The environment does not say whose its
/// credentials are: no registry gets them because a Dockerfile begins with it.
pub(super) fn find(registry: &str, named_by: NamedBy) -> Option<Found> {
    if let Some(credentials) = super::login::embedded_credentials(registry) {
        return Some(Found { credentials, place: "the embedded registry itself".to_owned() });
    }
    if named_by == NamedBy::User
        && let Some((credentials, variables)) = from_environment()
    {
        return Some(Found { credentials, place: format!("the environment: {variables}") });
    }
    from_auth_files(registry)
}

/// `IDPBUILDER_REGISTRY_{USERNAME,PASSWORD,TOKEN}`, then `GITEA_{USERNAME,TOKEN}`; and the variables that it was.
pub(super) fn from_environment() -> Option<(Credentials, String)> {
    const TOKEN: &str = "IDPBUILDER_REGISTRY_TOKEN";
    let get = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    for (user, secret) in [
        ("IDPBUILDER_REGISTRY_USERNAME", TOKEN),
        ("IDPBUILDER_REGISTRY_USERNAME", "IDPBUILDER_REGISTRY_PASSWORD"),
        ("GITEA_USERNAME", "GITEA_TOKEN"),
    ] {
        if let (Some(username), Some(password)) = (get(user), get(secret)) {
            return Some((
                Credentials::Basic { username, password },
                format!("{user} and {secret}"),
            ));
        }
    }
    get(TOKEN).map(|token| (Credentials::Bearer(token), TOKEN.to_owned()))
}

/// Auth files in the order in which containers' tools look at them; Docker's, which `login` writes,
/// is the last.
pub(super) fn auth_files() -> Vec<PathBuf> {
    let folder =
        |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut files = Vec::new();
    files.extend(folder("REGISTRY_AUTH_FILE"));
    files.extend(folder("XDG_RUNTIME_DIR").map(|base| base.join("containers/auth.json")));
    files.extend(folder("HOME").map(|base| base.join(".config/containers/auth.json")));
    files.extend(docker_file());
    files
}

/// Docker's own auth file.
pub(super) fn docker_file() -> Option<PathBuf> {
    let folder =
        |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = folder("DOCKER_CONFIG").or_else(|| folder("HOME").map(|home| home.join(".docker")));
    base.map(|base| base.join("config.json"))
}

fn from_auth_files(registry: &str) -> Option<Found> {
    auth_files().iter().find_map(|path| {
        let text = std::fs::read(path).ok()?;
        let document: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let credentials = keys(registry).iter().find_map(|key| from_document(&document, key))?;
        Some(Found { credentials, place: path.display().to_string() })
    })
}

/// Names under which an auth file may hold a registry: exactly this host and port, never another.
pub(super) fn keys(registry: &str) -> Vec<String> {
    let mut keys = vec![registry.to_owned(), format!("https://{registry}")];
    if registry == "docker.io" {
        keys.push("https://index.docker.io/v1/".to_owned());
        keys.push("index.docker.io".to_owned());
    }
    keys
}

fn from_document(document: &serde_json::Value, key: &str) -> Option<Credentials> {
    let helper = document["credHelpers"][key].as_str().or_else(|| document["credsStore"].as_str());
    let entry = &document["auths"][key];
    if let Some(token) = entry["identitytoken"].as_str().filter(|token| !token.is_empty()) {
        return Some(Credentials::IdentityToken(token.to_owned()));
    }
    if let Some(encoded) = entry["auth"].as_str().filter(|encoded| !encoded.is_empty()) {
        let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
        let (username, password) = decoded.split_once(':')?;
        let (username, password) =
            (username.to_owned(), password.trim_end_matches('\0').to_owned());
        return Some(Credentials::Basic { username, password });
    }
    // Helpers are programs: the crate that knows their protocol runs them.
    helper?;
    match docker_credential::get_credential(key).ok()? {
        docker_credential::DockerCredential::IdentityToken(token) => {
            Some(Credentials::IdentityToken(token))
        }
        docker_credential::DockerCredential::UsernamePassword(username, password) => {
            Some(Credentials::Basic { username, password })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_for_its_own_host_and_port_only() {
        let document = serde_json::json!({ "auths": {
            "reg.example.com": { "auth": BASE64_STANDARD.encode("me:secret") }
        }});
        let found = |registry: &str| {
            keys(registry).iter().find_map(|key| from_document(&document, key)).is_some()
        };
        assert!(found("reg.example.com"));
        for other in ["reg.example.com:5000", "reg.example.com.evil.io", "docker.io"] {
            assert!(!found(other), "{other}");
        }
    }
}
