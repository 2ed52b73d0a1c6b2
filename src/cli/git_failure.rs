//! What is said besides when a repository could not be fetched.

use idpbuilder::git::GitError;

/// The ways out, one a line.
#[expect(clippy::wildcard_enum_match_arm, reason = "a failure without a way out has none to tell")]
pub(super) fn help(error: &GitError) -> Vec<String> {
    match error {
        GitError::Missing { .. } => {
            vec!["install git; it is the one program that idpbuilder calls".to_owned()]
        }
        GitError::UnknownHost { url, .. } => {
            let server = ssh_server(url);
            vec![
                format!("`{server}` shows its key: compare that with what its owner says, and answer yes"),
                "ssh keeps it in ~/.ssh/known_hosts; in CI, put the line there that its owner publishes".to_owned(),
            ]
        }
        GitError::Auth { url, .. } if !url.starts_with("http") => vec![
            "the keys of your agent are tried (`ssh-add -l`), and those of ~/.ssh without a passphrase".to_owned(),
            format!("`{} -v` says which", ssh_server(url)),
        ],
        GitError::Auth { url, .. } => {
            let host = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let host = host.split('/').next().unwrap_or_default();
            vec![
                format!("a token: --secret id=GIT_AUTH_TOKEN.{host},env=NAME"),
                "or what `git ls-remote` here uses: credential helpers and SSH agents are asked"
                    .to_owned(),
            ]
        }
        GitError::NoReference { help, .. } => help.iter().cloned().collect(),
        _ => Vec::new(),
    }
}

/// How one says hello to the server of a repository that is reached by SSH.
fn ssh_server(url: &str) -> String {
    let Some(rest) = url.strip_prefix("ssh://") else {
        // git@host:path
        return format!("ssh {}", url.split_once(':').map_or(url, |(server, _)| server));
    };
    let server = rest.split('/').next().unwrap_or_default();
    match server.rsplit_once(':') {
        Some((server, port)) if port.parse::<u16>().is_ok() => format!("ssh -p {port} {server}"),
        _ => format!("ssh {server}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_greeted_as_git_would() {
        for (url, wanted) in [
            ("ssh://git@example.org/a.git", "ssh git@example.org"),
            ("ssh://git@example.org:2222/a.git", "ssh -p 2222 git@example.org"),
            ("ssh://[2001:db8::1]/a.git", "ssh [2001:db8::1]"),
            ("git@example.org:a.git", "ssh git@example.org"),
        ] {
            assert_eq!(ssh_server(url), wanted);
        }
    }
}
