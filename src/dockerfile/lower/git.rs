//! Sources of `ADD` that are git repositories, told apart from URLs and paths by their spelling.

use crate::dockerfile::quote::quoted;

/// What the spelling of a repository says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GitRef {
    /// `?keep-git-dir=`.
    pub keep_git_dir: Option<bool>,
    /// `?checksum=` or `?commit=`.
    pub checksum: Option<String>,
}

/// `None` when `source` is no repository: a path, an ordinary URL, or `github.com/…`, which `ADD`
/// takes for a path.
pub(super) fn parse(source: &str) -> Result<Option<GitRef>, String> {
    let (before_fragment, _) = source.split_once('#').unwrap_or((source, ""));
    let (place, query) = before_fragment.split_once('?').unwrap_or((before_fragment, ""));
    let is_git = match place.split_once("://") {
        Some(("git" | "ssh", _)) => true,
        Some(("http" | "https", rest)) => {
            rest.split_once('/').is_some_and(|(_, path)| path.ends_with(".git"))
        }
        Some(_) => false,
        None => is_scp_style(place),
    };
    if !is_git {
        return Ok(None);
    }
    let mut found = GitRef::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "keep-git-dir" => found.keep_git_dir = Some(switch(key, value)?),
            "checksum" | "commit" => found.checksum = Some(value.to_owned()),
            "submodules" | "fetch-by-commit" => {
                switch(key, value)?;
            }
            "ref" | "tag" | "branch" | "subdir" | "mtime" => {}
            other => return Err(format!("unexpected query {}", quoted(other))),
        }
    }
    Ok(Some(found))
}

/// A query without a value switches on.
fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("invalid {key} value: {}", quoted(other))),
    }
}

/// `user@host:path`.
fn is_scp_style(place: &str) -> bool {
    let word = |part: &str, extra: &[u8]| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || extra.contains(&byte))
    };
    place.split_once('@').is_some_and(|(user, rest)| {
        word(user, b"-_") && rest.split_once(':').is_some_and(|(host, _)| word(host, b"-."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_told_from_paths_and_urls() {
        for git in [
            "https://example.org/x.git",
            "https://example.org/x.git#main:sub",
            "https://example.org/x.git?ref=main&subdir=a",
            "git@example.org:x/y.git",
            "ssh://git@example.org/x",
            "git://example.org/x",
        ] {
            assert!(parse(git).unwrap().is_some(), "{git}");
        }
        for other in [
            "./x.git",
            "x.git",
            "../x.git",
            "github.com/u/r",
            "github.com/u/r.git",
            "https://example.org/x.tar.gz",
            "https://example.org/a?b=x.git",
            "a@b",
            "http://h.git",
        ] {
            assert_eq!(parse(other), Ok(None), "{other}");
        }
        let both = parse("https://h/x.git?keep-git-dir=true&checksum=abc").unwrap();
        let wanted = GitRef { keep_git_dir: Some(true), checksum: Some("abc".to_owned()) };
        assert_eq!(both, Some(wanted));
    }
}
