//! Credentials of a registry, first found wins: environment, then the auth files of containers and Docker.

use std::{env, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use idpbuilder::{
    exec::NamedBy,
    plan::EMBEDDED_ADDRESS,
    registry::{Credentials, Found},
};
use serde_json::Value;

/// What the environment or an auth file has for a registry (host and port); or, with a repository, what an auth file has
/// for that one or a namespace above it and not for all of the registry. The environment does not say whose its
/// credentials are: no registry gets them because a Dockerfile begins with it.
pub(super) fn find(registry: &str, repository: Option<&str>, named_by: NamedBy) -> Option<Found> {
    let is_whole = repository.is_none();
    if registry == EMBEDDED_ADDRESS {
        let credentials = is_whole.then(super::login::embedded_credentials).flatten()?;
        return Some(Found { credentials, place: "the embedded registry itself".to_owned() });
    }
    if named_by == NamedBy::User
        && let Some((credentials, variables)) = from_environment()
    {
        let place = format!("the environment: {variables}");
        return is_whole.then_some(Found { credentials, place });
    }
    from_auth_files(registry, repository)
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

/// What the first auth file has that knows the registry or the repository.
fn from_auth_files(registry: &str, repository: Option<&str>) -> Option<Found> {
    for path in auth_files() {
        let Ok(text) = std::fs::read(&path) else { continue };
        let Ok(document) = serde_json::from_slice::<Value>(&text) else { continue };
        let found = match repository {
            None => of_registry(&document, registry),
            Some(repository) => of_repository(&document, registry, repository),
        };
        if let Some(credentials) = found {
            return Some(Found { credentials, place: path.display().to_string() });
        }
        if repository.is_some() && knows(&document, registry) {
            return None;
        }
    }
    None
}

/// Whether an auth file says something about all of a registry; what a helper for all hosts has, nobody knows before it
/// is asked.
fn knows(document: &Value, registry: &str) -> bool {
    keys(registry).iter().any(|key| {
        helper_of(document, key).is_some() || from_entry(&document["auths"][key]).is_some()
    })
}

/// Names under which an auth file may hold a registry: exactly this host and port, never another.
fn keys(registry: &str) -> Vec<String> {
    let mut keys = vec![registry.to_owned(), format!("https://{registry}")];
    if registry == "docker.io" {
        keys.push("https://index.docker.io/v1/".to_owned());
        keys.push("index.docker.io".to_owned());
    }
    keys
}

/// What an auth file has for all of a registry. A helper that is named for the host comes first, the one for all hosts
/// last, as with docker.
fn of_registry(document: &Value, registry: &str) -> Option<Credentials> {
    let keys = keys(registry);
    let store = document["credsStore"].as_str().filter(|helper| !helper.is_empty());
    let named = keys.iter().find_map(|key| from_helper(helper_of(document, key)?, key));
    let noted = || keys.iter().find_map(|key| from_entry(&document["auths"][key]));
    let stored = || keys.iter().find_map(|key| from_helper(store?, key));
    named.or_else(noted).or_else(stored)
}

/// What it has for a repository, or the nearest namespace above it, as containers-auth.json(5) says: the longest name
/// wins. Helpers are for hosts alone, and one that is named for the host counts more.
fn of_repository(document: &Value, registry: &str, repository: &str) -> Option<Credentials> {
    if keys(registry).iter().any(|key| helper_of(document, key).is_some()) {
        return None;
    }
    let mut namespaces =
        std::iter::successors(Some(repository), |path| Some(path.rsplit_once('/')?.0));
    namespaces.find_map(|path| from_entry(&document["auths"][format!("{registry}/{path}")]))
}

fn helper_of<'d>(document: &'d Value, key: &str) -> Option<&'d str> {
    document["credHelpers"][key].as_str().filter(|helper| !helper.is_empty())
}

fn from_entry(entry: &Value) -> Option<Credentials> {
    if let Some(token) = entry["identitytoken"].as_str().filter(|token| !token.is_empty()) {
        return Some(Credentials::IdentityToken(token.to_owned()));
    }
    let encoded = entry["auth"].as_str().filter(|encoded| !encoded.is_empty())?;
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    let (username, password) = (username.to_owned(), password.trim_end_matches('\0').to_owned());
    Some(Credentials::Basic { username, password })
}

/// Helpers are programs (`docker-credential-NAME`): the crate that knows their protocol runs them.
fn from_helper(helper: &str, key: &str) -> Option<Credentials> {
    let alone = serde_json::json!({ "credHelpers": { key: helper } }).to_string();
    match docker_credential::get_credential_from_reader(alone.as_bytes(), key).ok()? {
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

    fn document(logins: &[(&str, &str)]) -> Value {
        let entry = |(key, user): &(&str, &str)| {
            let auth = BASE64_STANDARD.encode(format!("{user}:secret"));
            ((*key).to_owned(), serde_json::json!({ "auth": auth }))
        };
        let auths: serde_json::Map<_, _> = logins.iter().map(entry).collect();
        serde_json::json!({ "auths": auths })
    }

    fn user(found: Option<Credentials>) -> Option<String> {
        match found? {
            Credentials::Basic { username, .. } => Some(username),
            Credentials::IdentityToken(_) | Credentials::Bearer(_) => None,
        }
    }

    #[test]
    fn an_entry_is_for_its_own_host_and_port_only() {
        let document = document(&[("reg.example.com", "me")]);
        assert_eq!(user(of_registry(&document, "reg.example.com")).unwrap(), "me");
        for other in ["reg.example.com:5000", "reg.example.com.evil.io", "docker.io"] {
            assert!(of_registry(&document, other).is_none(), "{other}");
        }
    }

    #[test]
    fn the_longest_name_of_a_repository_wins_and_ends_at_a_slash() {
        let mut document = document(&[
            ("reg.example.com", "host"),
            ("reg.example.com/team", "team"),
            ("reg.example.com/team/app", "app"),
            ("docker.io/library", "library"),
            ("https://index.docker.io/v1/", "hub"),
        ]);
        for (registry, repository, wanted) in [
            ("reg.example.com", "team/app", Some("app")),
            ("reg.example.com", "team/app/part", Some("app")),
            ("reg.example.com", "team/application", Some("team")),
            ("reg.example.com", "team", Some("team")),
            ("reg.example.com", "teams/app", None),
            ("reg.example.com:5000", "team/app", None),
            ("docker.io", "library/alpine", Some("library")),
            ("docker.io", "team/app", None),
        ] {
            let found = user(of_repository(&document, registry, repository));
            assert_eq!(found.as_deref(), wanted, "{registry}/{repository}");
        }
        assert_eq!(user(of_registry(&document, "docker.io")).unwrap(), "hub");
        document["credHelpers"] = serde_json::json!({ "reg.example.com": "keeper" });
        assert!(of_repository(&document, "reg.example.com", "team/app").is_none());
        assert!(of_repository(&document, "docker.io", "library/alpine").is_some());
    }
}
