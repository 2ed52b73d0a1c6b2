//! What a project file may ask about the world: git through its program, variables from the environment.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::Path,
    process::{Command, Stdio},
};

use idpbuilder::project::{Facts, GitFacts, Project, SecretFrom};

use super::failure::{CONFIGURATION, CliError};

/// Prefix of variables that set a project's `vars`.
const VAR_PREFIX: &str = "IDPBUILDER_VAR_";

/// Looks up what `project` names; `vars` are `NAME=VALUE` of `--var`.
pub(super) fn gather(project: &Project, root: &Path, vars: &[String]) -> Result<Facts, CliError> {
    let mut flag_vars = BTreeMap::new();
    for var in vars {
        let (name, value) = var.split_once('=').ok_or_else(|| {
            CliError::new(CONFIGURATION, format!("--var {var}: expected NAME=VALUE"))
        })?;
        flag_vars.insert(name.to_owned(), value.to_owned());
    }
    let named = project.env_names().into_iter();
    let env_vars = env::vars_os().filter_map(|(name, value)| {
        let name = name.to_str()?.strip_prefix(VAR_PREFIX)?.to_owned();
        Some((name, value.to_str()?.to_owned()))
    });
    Ok(Facts {
        git: if project.uses_git() { git(root) } else { None },
        env: named.filter_map(|name| Some((name.clone(), env::var(name).ok()?))).collect(),
        env_vars: env_vars.collect(),
        flag_vars,
        absent_secrets: absent_secrets(project, root),
    })
}

fn absent_secrets(project: &Project, root: &Path) -> BTreeSet<String> {
    let is_absent = |from: &SecretFrom| match from {
        SecretFrom::Env(name) => env::var_os(name).is_none(),
        SecretFrom::File(path) => !root.join(path).exists(),
    };
    let absent = project.secrets().into_iter().filter(|secret| is_absent(&secret.from));
    absent.map(|secret| secret.name).collect()
}

/// Facts of the repository that `root` is in; `None` outside of one, or before the first commit.
pub(super) fn git(root: &Path) -> Option<GitFacts> {
    let ask = |args: &[&str]| -> Option<String> {
        let output = Command::new("git")
            .arg("-C")
            .arg(root)
            // Settings of the repository must not start programs of its choice.
            .args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"])
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = ask(&["log", "-1", "--format=%H %h %ct"])?;
    let mut words = commit.split(' ');
    let (sha, short, time) = (words.next()?, words.next()?, words.next()?);
    let remote = ask(&["remote", "get-url", "origin"]).filter(|remote| !remote.is_empty());
    Some(GitFacts {
        sha: sha.to_owned(),
        short: short.to_owned(),
        branch: ask(&["symbolic-ref", "--short", "-q", "HEAD"]),
        tag: ask(&["describe", "--tags", "--exact-match", "HEAD"]),
        dirty: ask(&["status", "--porcelain", "--untracked-files=no"])
            .is_some_and(|changes| !changes.is_empty()),
        remote: remote.map(|remote| without_userinfo(&remote)),
        time: time.parse().ok()?,
    })
}

/// A remote's address without user name and password: it ends up in labels.
fn without_userinfo(remote: &str) -> String {
    match remote.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = host.rsplit('@').next().unwrap_or(host);
            format!("{scheme}://{host}/{path}")
        }
        None => remote.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k05_credentials_of_a_remote_never_reach_a_label() {
        for (remote, shown) in [
            ("https://me:secret@example.com/a/b.git", "https://example.com/a/b.git"),
            ("https://example.com/a@b.git", "https://example.com/a@b.git"),
            ("git@example.com:a/b.git", "git@example.com:a/b.git"),
        ] {
            assert_eq!(without_userinfo(remote), shown);
        }
    }
}
