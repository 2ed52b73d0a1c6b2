//! The spelling of a git repository: URL, `#ref:subdir`, and the keys of its query. Messages are BuildKit's.

use std::fmt;

use percent_encoding::percent_decode_str;
use thiserror::Error;
use url::Url;

/// Digits of a commit's name by SHA-1 and by SHA-256.
const COMMIT_DIGITS: [usize; 2] = [40, 64];

/// A commit of a repository, as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GitSource {
    /// What git is told, without a password: `https://…`, `ssh://…`, `git://…`, `file://…`, `user@host:path`.
    pub url: String,
    /// User and password that stood in the URL of a web server.
    pub login: Option<Login>,
    /// Branch, tag, full reference or commit; the remote's `HEAD` without one.
    pub reference: Option<String>,
    /// Folder in the repository, relative and clean; empty for all of it.
    pub subdir: String,
    /// First digits of the commit that it must be.
    pub checksum: Option<String>,
    /// Whether `.git` is part of the files; `None` when it is not said.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are fetched too.
    pub submodules: Submodules,
    /// What the files are dated by.
    pub times: GitTimes,
    /// Whether the commit is fetched by its name and not by that of its branch or tag.
    pub by_commit: bool,
}

/// Whether submodules are fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Submodules {
    /// All of them, recursively.
    #[default]
    Fetched,
    /// None; their folders are empty.
    Skipped,
}

/// What the files of a repository are dated by (`mtime=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GitTimes {
    /// When they were fetched: the date that all files without one of their own get.
    #[default]
    Checkout,
    /// The commit.
    Commit,
}

/// User and password in a URL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Login {
    /// User; often empty or a token.
    pub user: String,
    /// Password.
    pub password: String,
}

/// Never shown.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

/// Who reads the text: the same text may be a repository to one and a path to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenFor {
    /// A source of `ADD`: `github.com/u/r` is a path, `file://` is nothing.
    Source,
    /// A context that the user names: `github.com/u/r` and `file://` are repositories.
    Context,
}

/// Why something that looks like a repository is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ParseGitError(pub String);

impl GitSource {
    /// Reads a repository; `None` when `text` is none: a path, an ordinary URL.
    ///
    /// # Errors
    ///
    /// When query or fragment say what they cannot.
    pub fn parse(text: &str, taken_for: TakenFor) -> Result<Option<Self>, ParseGitError> {
        let fail = |message: String| Err(ParseGitError(message));
        let (before_fragment, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (place, query) = before_fragment.split_once('?').unwrap_or((before_fragment, ""));
        let Some(place) = repository(place, taken_for) else { return Ok(None) };
        let (url, login) = match place.split_once("://") {
            None => (place, None),
            Some(_) => split_login(&place)?,
        };
        if host_of(&url).is_none_or(|host| host.starts_with('-')) {
            return fail(format!("{url:?} names no host"));
        }
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut source = Self {
            url,
            login,
            reference: Some(decoded(reference)).filter(|text| !text.is_empty()),
            subdir: decoded(subdir),
            checksum: None,
            keep_git_dir: None,
            submodules: Submodules::Fetched,
            times: GitTimes::Checkout,
            by_commit: false,
        };
        source.take_query(query)?;
        source.subdir = clean(&source.subdir);
        if source.checksum.is_some() && source.reference.is_none() {
            source.reference.clone_from(&source.checksum);
        }
        if let Some(reference) = source.reference.as_ref().filter(|text| !is_reference(text)) {
            return fail(format!("{reference:?} is not the name of a branch, tag or commit"));
        }
        source.checksum.as_deref().map_or(Ok(()), check_checksum)?;
        Ok(Some(source))
    }

    fn take_query(&mut self, query: &str) -> Result<(), ParseGitError> {
        let fail = |message: String| Err(ParseGitError(message));
        let (mut tag, mut branch) = (None, None);
        let mut seen: Vec<&str> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(&value.replace('+', " "));
            if seen.contains(&key) {
                return fail(format!("query {key:?} has multiple values"));
            }
            seen.push(key);
            let is_switch = matches!(key, "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !is_switch {
                return fail(format!("query {key:?} has no value"));
            }
            match key {
                "ref" => self.set_reference(value)?,
                "tag" => tag = Some(prefixed("refs/tags/", value)),
                "branch" => branch = Some(prefixed("refs/heads/", value)),
                "subdir" => {
                    if !self.subdir.is_empty() && self.subdir != value {
                        let message = format!("subdir conflicts: {:?} vs {value:?}", self.subdir);
                        return fail(message);
                    }
                    self.subdir = value;
                }
                "checksum" | "commit" => self.checksum = Some(value),
                "keep-git-dir" => self.keep_git_dir = Some(switch(key, &value)?),
                "submodules" => {
                    let fetched = switch(key, &value)?;
                    self.submodules =
                        if fetched { Submodules::Fetched } else { Submodules::Skipped };
                }
                "fetch-by-commit" => self.by_commit = switch(key, &value)?,
                "mtime" => {
                    self.times = match value.as_str() {
                        "checkout" => GitTimes::Checkout,
                        "commit" => GitTimes::Commit,
                        _ => return fail(format!("invalid mtime value: {value:?}")),
                    }
                }
                other => return fail(format!("unexpected query {other:?}")),
            }
        }
        if tag.is_some() && branch.is_some() {
            return fail("branch conflicts with tag".to_owned());
        }
        tag.or(branch).map_or(Ok(()), |reference| self.set_reference(reference))
    }

    fn set_reference(&mut self, value: String) -> Result<(), ParseGitError> {
        if let Some(known) = self.reference.as_ref().filter(|known| **known != value) {
            return Err(ParseGitError(format!("ref conflicts: {known:?} vs {value:?}")));
        }
        self.reference = Some(value);
        Ok(())
    }

    /// Takes what `ADD --keep-git-dir` and `--checksum` say besides.
    ///
    /// # Errors
    ///
    /// When the query says otherwise.
    pub fn with_flags(
        mut self,
        keep_git_dir: Option<bool>,
        checksum: Option<&str>,
    ) -> Result<Self, ParseGitError> {
        if let (Some(flag), Some(query)) = (keep_git_dir, self.keep_git_dir)
            && flag != query
        {
            return Err(ParseGitError("inconsistent keep-git-dir configuration".to_owned()));
        }
        if let (Some(flag), Some(query)) = (checksum, &self.checksum)
            && flag != query
        {
            return Err(ParseGitError(format!("checksum mismatch {flag:?} != {query:?}")));
        }
        checksum.map_or(Ok(()), check_checksum)?;
        self.keep_git_dir = self.keep_git_dir.or(keep_git_dir);
        self.checksum = self.checksum.or_else(|| checksum.map(str::to_owned));
        Ok(self)
    }

    /// `http`, `https`, `ssh`, `git` or `file`.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.url.split_once("://").map_or("ssh", |(scheme, _)| scheme)
    }

    /// Host, with the port when one is given; empty for files.
    #[must_use]
    pub fn host(&self) -> &str {
        host_of(&self.url).unwrap_or_default()
    }

    /// The commit, when it is asked for by its whole name.
    #[must_use]
    pub fn commit(&self) -> Option<&str> {
        self.reference.as_deref().filter(|text| is_commit(text))
    }
}

/// As it would be typed, without passwords and without what does not change the files.
impl fmt::Display for GitSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)?;
        match (self.reference.as_deref(), self.subdir.as_str()) {
            (None, "") => Ok(()),
            (reference, "") => write!(f, "#{}", reference.unwrap_or_default()),
            (reference, subdir) => write!(f, "#{}:{subdir}", reference.unwrap_or_default()),
        }
    }
}

/// Whether a text is the whole name of a commit.
#[must_use]
pub(super) fn is_commit(text: &str) -> bool {
    COMMIT_DIGITS.contains(&text.len()) && text.bytes().all(is_digit)
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn check_checksum(checksum: &str) -> Result<(), ParseGitError> {
    if checksum.bytes().all(is_digit) && checksum.len() <= COMMIT_DIGITS[1] {
        return Ok(());
    }
    let message = format!("invalid checksum {checksum:?} for Git source, expected hex commit hash");
    Err(ParseGitError(message))
}

/// The place of a repository with its scheme; `None` when it is none.
fn repository(place: &str, taken_for: TakenFor) -> Option<String> {
    let context = taken_for == TakenFor::Context;
    match place.split_once("://") {
        Some(("git" | "ssh", _)) => Some(place.to_owned()),
        Some(("file", path)) if context && path.starts_with('/') => Some(place.to_owned()),
        Some(("http" | "https", rest)) => {
            let is_git = rest.split_once('/').is_some_and(|(_, path)| path.ends_with(".git"));
            is_git.then(|| place.to_owned())
        }
        Some(_) => None,
        None if context && place.starts_with("github.com/") => Some(format!("https://{place}")),
        None => is_scp_style(place).then(|| place.to_owned()),
    }
}

/// `user@host:path`.
fn is_scp_style(place: &str) -> bool {
    let word = |part: &str, extra: &[u8]| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || extra.contains(&byte))
    };
    place.split_once('@').is_some_and(|(user, rest)| {
        word(user, b"-_")
            && !user.starts_with('-')
            && rest.split_once(':').is_some_and(|(host, _)| word(host, b"-."))
    })
}

/// Takes user and password out of a URL; a user of SSH stays, since it is a part of the address.
fn split_login(place: &str) -> Result<(String, Option<Login>), ParseGitError> {
    let fail = || ParseGitError(format!("{:?} is not a URL", super::without_login(place)));
    let url = Url::parse(place).map_err(|_| fail())?;
    if url.username().starts_with('-') {
        return Err(fail());
    }
    let user = decoded(url.username());
    let password = decoded(url.password().unwrap_or_default());
    let is_web = super::is_web(place);
    let login =
        (is_web && !(user.is_empty() && password.is_empty())).then_some(Login { user, password });
    Ok((super::without_login(place), login))
}

/// Host and port of what git is told.
fn host_of(url: &str) -> Option<&str> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.split_once('@')?.1.split(':').next();
    };
    if scheme == "file" {
        return Some("");
    }
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    (!host.is_empty()).then_some(host)
}

/// A query without a value switches on.
fn switch(key: &str, value: &str) -> Result<bool, ParseGitError> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(ParseGitError(format!("invalid {key} value: {other:?}"))),
    }
}

fn prefixed(prefix: &str, name: String) -> String {
    if name.starts_with(prefix) { name } else { format!("{prefix}{name}") }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// A path inside of the repository, whatever was typed: `/a/../../b` is `b`.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// What git would take for a name, and for nothing else (`git check-ref-format`).
fn is_reference(text: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    !text.starts_with(['-', '/', '+']) && !text.contains("..") && !text.contains(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<GitSource>, String> {
        GitSource::parse(text, TakenFor::Source).map_err(|error| error.0)
    }

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
            "https://example.org/x.git/",
            "https://example.org/a?b=x.git",
            "custom.xyz/moby/buildkit.git",
            "file:///x.git",
            "ext::sh -c x",
            "a@b",
            "http://h.git",
        ] {
            assert_eq!(parse(other), Ok(None), "{other}");
        }
        for context in ["github.com/u/r", "github.com/u/r.git#main:x", "file:///x"] {
            let found = GitSource::parse(context, TakenFor::Context).unwrap();
            assert!(found.is_some(), "{context}");
        }
    }

    #[test]
    fn what_is_asked_for_is_read() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (text, url, reference, subdir, checksum) in [
            ("https://h/x.git#b/c:d/e", "https://h/x.git", Some("b/c"), "d/e", None),
            ("https://h/x.git#:d", "https://h/x.git", None, "d", None),
            ("https://h/x.git?ref=v1&subdir=/d", "https://h/x.git", Some("v1"), "d", None),
            ("https://h/x.git?tag=v1", "https://h/x.git", Some("refs/tags/v1"), "", None),
            ("https://h/x.git?branch=b", "https://h/x.git", Some("refs/heads/b"), "", None),
            ("https://h/x.git?commit=abc", "https://h/x.git", Some("abc"), "", Some("abc")),
            ("https://h/x.git#m?ref=m", "https://h/x.git", Some("m?ref=m"), "", None),
            ("https://u:p@h:1/x.git", "https://h:1/x.git", None, "", None),
            ("ssh://git:p@h/x", "ssh://git@h/x", None, "", None),
            ("git@h:x.git#m:../../d", "git@h:x.git", Some("m"), "d", None),
        ] {
            let found = match parse(text) {
                Ok(found) => found.unwrap(),
                Err(error) => {
                    assert_eq!(reference, Some("m?ref=m"), "{text}: {error}");
                    continue;
                }
            };
            assert_eq!(found.url, url, "{text}");
            assert_eq!(found.reference.as_deref(), reference, "{text}");
            assert_eq!(found.subdir, subdir, "{text}");
            assert_eq!(found.checksum.as_deref(), checksum, "{text}");
            assert!(!found.to_string().contains("p@"), "{found}");
        }
        let by_name = parse(&format!("https://h/x.git#{commit}")).unwrap().unwrap();
        assert_eq!(by_name.commit(), Some(commit));
    }

    #[test]
    fn what_no_repository_has_is_refused_in_the_known_words() {
        for (text, message) in [
            ("https://h/x.git?foo=1", "unexpected query \"foo\""),
            ("https://h/x.git?ref=a&ref=b", "query \"ref\" has multiple values"),
            ("https://h/x.git?ref=", "query \"ref\" has no value"),
            ("https://h/x.git?ref=a#b", "ref conflicts: \"b\" vs \"a\""),
            ("https://h/x.git?subdir=a#:b", "subdir conflicts: \"b\" vs \"a\""),
            ("https://h/x.git?tag=a&branch=b", "branch conflicts with tag"),
            ("https://h/x.git?keep-git-dir=2", "invalid keep-git-dir value: \"2\""),
            ("https://h/x.git?mtime=now", "invalid mtime value: \"now\""),
            (
                "https://h/x.git?checksum=foobar",
                "invalid checksum \"foobar\" for Git source, expected hex commit hash",
            ),
            (
                "https://h/x.git#--upload-pack=x",
                "\"--upload-pack=x\" is not the name of a branch, tag or commit",
            ),
            ("https://h/x.git#a..b", "\"a..b\" is not the name of a branch, tag or commit"),
            ("ssh://-oProxyCommand=x/y", "\"ssh://-oProxyCommand=x/y\" names no host"),
            ("git@-oProxyCommand:y", "\"git@-oProxyCommand:y\" names no host"),
        ] {
            assert_eq!(parse(text), Err(message.to_owned()), "{text}");
        }
        let both = parse("https://h/x.git?keep-git-dir=true&checksum=abc").unwrap().unwrap();
        let flags = both.clone().with_flags(Some(false), None).unwrap_err();
        assert_eq!(flags.0, "inconsistent keep-git-dir configuration");
        let flags = both.clone().with_flags(None, Some("abd")).unwrap_err();
        assert_eq!(flags.0, "checksum mismatch \"abd\" != \"abc\"");
        assert!(both.with_flags(Some(true), Some("abc")).is_ok());
    }
}
