//! Places besides this machine that files come from, told by their spelling: git repositories and URLs.
//!
//! Pure: knows what a text asks for; not whether it is there, nor how it is fetched.

mod git;
mod metadata;

use std::fmt;

use serde::Serialize;
use url::Url;

pub use git::{GitSource, GitTimes, Login, ParseGitError, Submodules, TakenFor};
pub use metadata::{LINK_LOCAL_V6, METADATA_V4, METADATA_V6, is_metadata};

/// Where the files of a context are, when they are not on this machine.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Remote {
    /// A commit of a git repository.
    Git(Box<GitSource>),
    /// A tar archive, or the text of a Dockerfile, behind a URL (`http` or `https`), as typed.
    Web(String),
}

impl Remote {
    /// Reads what stands where a context is expected; `None` for a path of this machine.
    ///
    /// # Errors
    ///
    /// When it is a repository by its form and says something that no repository has.
    pub fn parse(text: &str) -> Result<Option<Self>, ParseGitError> {
        if let Some(source) = GitSource::parse(text, TakenFor::Context)? {
            return Ok(Some(Self::Git(Box::new(source))));
        }
        Ok(is_web(text).then(|| Self::Web(text.to_owned())))
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Git(source) => source.fmt(f),
            Self::Web(url) => f.write_str(&without_login(url)),
        }
    }
}

/// As shown: nothing that is made for programmers prints a password either.
impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({self})")
    }
}

impl Serialize for Remote {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether a text is a URL of the web.
#[must_use]
pub fn is_web(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// A text with the user and the password taken out of every URL in it.
///
/// `https://user:word@host/x` becomes `https://host/x`; a user alone stays (`ssh://git@host/x`), since
/// it is no secret there, but for `http` and `https`, where a token often stands in its place.
#[must_use]
pub fn without_login(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let web = before.ends_with("http") || before.ends_with("https");
        let end = after
            .find(|c: char| matches!(c, '/' | '?' | '#' | '"' | '\'') || c.is_whitespace())
            .unwrap_or(after.len());
        let (authority, behind) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((login, host)) if !web && !login.contains(':') => {
                shown.push_str(login);
                shown.push('@');
                shown.push_str(host);
            }
            Some((login, host)) if !web => {
                shown.push_str(login.split(':').next().unwrap_or_default());
                shown.push('@');
                shown.push_str(host);
            }
            Some((_, host)) => shown.push_str(host),
            None => shown.push_str(authority),
        }
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

/// The name that a download gets: the last part of the URL's path.
#[must_use]
pub fn file_name(source: &str) -> String {
    const UNNAMED: &str = "__unnamed__";
    let Ok(url) = Url::parse(source) else { return UNNAMED.to_owned() };
    let path = percent_encoding::percent_decode_str(url.path()).decode_utf8_lossy().into_owned();
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | "." | "..") => UNNAMED.to_owned(),
        Some(name) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (typed, shown) in [
            ("https://user:word@h/x.git#main", "https://h/x.git#main"),
            ("https://token@h:8443/x", "https://h:8443/x"),
            ("ssh://git@h/x", "ssh://git@h/x"),
            ("ssh://git:word@h/x", "ssh://git@h/x"),
            ("git@h:x/y", "git@h:x/y"),
            ("ADD http://a:b@h/f https://c:d@h/g /x", "ADD http://h/f https://h/g /x"),
            ("https://h/a@b", "https://h/a@b"),
            ("https://a:b@c@h/x", "https://h/x"),
            ("ADD --checksum=x https://u:p@h /", "ADD --checksum=x https://h /"),
            ("no URL", "no URL"),
        ] {
            assert_eq!(without_login(typed), shown, "{typed}");
        }
    }

    #[test]
    fn a_download_is_named_by_the_path_alone() {
        for (url, name) in [
            ("http://h/a/b.txt?x=/c", "b.txt"),
            ("http://h/", "__unnamed__"),
            ("http://h/a/", "a"),
            ("http://h/%2e%2e", "__unnamed__"),
            ("http://h/a%20b", "a b"),
            ("http://h/x/%2F..", "__unnamed__"),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
    }
}
