//! Git repositories through the `git` program: which commit a name stands for, and its files in a folder.
//!
//! The program is told what it may do at every start (`command`): protocols, no hooks, no prompts, no
//! configuration but how servers are reached and who the user is. Knows no store, no build, no cache.

mod checkout;
mod command;

use std::{ffi::OsString, io, path::PathBuf, sync::Arc, sync::atomic::AtomicBool};

use thiserror::Error;

use crate::remote::GitSource;

pub use checkout::{Checkout, check_out};

use command::Run;

/// The program and the surroundings that it is started in; the caller has read both.
#[derive(Clone, Debug, Default)]
pub struct GitProgram {
    /// Absolute path; `None` when this machine has none.
    pub path: Option<PathBuf>,
    /// All variables that it gets, such as `HOME` and `PATH`; none that begins with `GIT_`, but `GIT_SSH*`.
    pub env: Vec<(OsString, OsString)>,
}

impl GitProgram {
    /// Whether the user has set a proxy: names are then looked up there, and not here.
    #[must_use]
    pub fn has_proxy(&self) -> bool {
        let names = ["http_proxy", "https_proxy", "all_proxy"];
        self.env.iter().any(|(name, value)| {
            !value.is_empty() && names.iter().any(|known| name.eq_ignore_ascii_case(known))
        })
    }
}

/// How the server of one repository is reached.
#[derive(Clone, Default)]
pub struct GitAccess {
    /// `Authorization` header for the server of the repository, for it alone.
    pub authorization: Option<String>,
    /// Proxy for `http` and `https`, as a URL, unless the user has set one.
    pub proxy: Option<String>,
    /// Set to stop the program.
    pub cancel: Arc<AtomicBool>,
}

/// What a name of a repository stood for when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Whole name of the commit.
    pub commit: String,
    /// Full name of the branch or tag; `None` when the commit itself was asked for.
    pub reference: Option<String>,
    /// Whole name of the tag object, when the tag has one.
    pub tag: Option<String>,
}

/// Why there are no files of a repository.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GitError {
    /// This machine has no git.
    #[error("{url}: there is no `git` program to fetch it with")]
    Missing {
        /// The repository.
        url: String,
    },
    /// The server wants to know who asks, or does not like who asks.
    #[error("failed to fetch remote {url}: {said}")]
    Auth {
        /// The repository.
        url: String,
        /// Git's words.
        said: String,
    },
    /// Nobody has said yet that the server's SSH key is the right one, or it is another one than before.
    #[error("failed to fetch remote {url}: {said}")]
    UnknownHost {
        /// The repository.
        url: String,
        /// Git's words.
        said: String,
    },
    /// Git could not do it.
    #[error("{what} {url}: {said}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// The repository.
        url: String,
        /// Git's words.
        said: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("repository does not contain ref {reference}: {url}")]
    NoReference {
        /// The repository.
        url: String,
        /// As asked for.
        reference: String,
        /// What it has instead, in words.
        help: Option<String>,
    },
    /// The commit is not the one that must be.
    #[error("expected checksum to match {expected}, got {found}")]
    Checksum {
        /// First digits, as asked for.
        expected: String,
        /// Whole names of the commit, and of its tag.
        found: String,
    },
    /// There is no such folder in the repository.
    #[error("invalid subdir /{subdir}: {reason}")]
    Subdir {
        /// The folder.
        subdir: String,
        /// Why.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Stopped because the user asked.
    #[error("cancelled")]
    Cancelled,
}

/// Asks the server which commit is meant; nobody is asked when the commit is named in full.
///
/// # Errors
///
/// Any [`GitError`] but those of checkouts; the checksum of the source is checked here.
pub fn resolve(
    program: &GitProgram,
    source: &GitSource,
    access: &GitAccess,
) -> Result<Resolved, GitError> {
    let resolved = match source.commit() {
        Some(commit) => Resolved { commit: commit.to_owned(), reference: None, tag: None },
        None => ask(program, source, access)?,
    };
    let names = || [Some(&resolved.commit), resolved.tag.as_ref()].into_iter().flatten();
    let expected = source.checksum.as_deref().unwrap_or_default();
    if !names().any(|name| name.starts_with(expected)) {
        let found: Vec<&str> = names().map(String::as_str).collect();
        let (expected, found) = (expected.to_owned(), found.join(" or "));
        return Err(GitError::Checksum { expected, found });
    }
    Ok(resolved)
}

/// References of the server as `(name of the object, full name)`.
fn ask(program: &GitProgram, source: &GitSource, access: &GitAccess) -> Result<Resolved, GitError> {
    let run = Run::new(program, source, access)?;
    let wanted = source.reference.as_deref().unwrap_or("HEAD");
    let dereferenced = format!("{wanted}^{{}}");
    let listed = run.git(
        "failed to fetch remote",
        &["ls-remote", "--quiet", "--symref", "--", &source.url, wanted, &dereferenced],
    )?;
    let lines: Vec<(&str, &str)> =
        listed.lines().filter_map(|line| line.split_once('\t')).collect();
    let object = |name: &str| {
        let found = lines.iter().find(|(object, known)| *known == name && !object.contains(' '));
        found.map(|(object, _)| (*object).to_owned())
    };
    let found = |reference: &str| {
        let named = object(reference)?;
        let commit = object(&format!("{reference}^{{}}"));
        let tag = commit.is_some().then(|| named.clone());
        let reference = Some(reference.to_owned());
        Some(Resolved { commit: commit.unwrap_or(named), reference, tag })
    };
    if wanted == "HEAD" {
        let branch = lines
            .iter()
            .find_map(|(target, name)| target.strip_prefix("ref: ").filter(|_| *name == "HEAD"));
        if let Some(found) = found("HEAD") {
            let reference = branch.map(str::to_owned).or(found.reference);
            return Ok(Resolved { reference, ..found });
        }
    }
    // As BuildKit: the name as it is, then a branch, then a tag.
    let bare = wanted.strip_prefix("refs/").unwrap_or(wanted);
    let candidates = [
        format!("refs/{bare}"),
        format!("refs/heads/{}", wanted.strip_prefix("refs/heads/").unwrap_or(wanted)),
        format!("refs/tags/{}", wanted.strip_prefix("refs/tags/").unwrap_or(wanted)),
    ];
    let resolved = candidates.iter().find_map(|name| found(name));
    resolved.ok_or_else(|| {
        let (url, reference) = (source.url.clone(), wanted.to_owned());
        GitError::NoReference { url, reference, help: others(&run, &source.url, wanted) }
    })
}

/// What a repository has instead of a name.
fn others(run: &Run<'_>, url: &str, wanted: &str) -> Option<String> {
    const SHOWN_MAX: usize = 5;
    let listed =
        run.git("failed to fetch remote", &["ls-remote", "--quiet", "--refs", "--", url]).ok()?;
    let name = |line: &str| {
        let full = line.split_once('\t')?.1;
        let short = full.strip_prefix("refs/heads/").or_else(|| full.strip_prefix("refs/tags/"));
        short.map(str::to_owned)
    };
    let mut names: Vec<String> = listed.lines().filter_map(name).collect();
    if names.is_empty() {
        return Some("it has no branch and no tag yet".to_owned());
    }
    let asked = wanted.rsplit('/').next().unwrap_or(wanted);
    let distance = |name: &String| strsim::damerau_levenshtein(name, asked);
    names.sort_by_key(distance);
    if let Some(near) = names.first().filter(|name| distance(name) <= asked.len().div_ceil(3)) {
        return Some(format!("did you mean {near}?"));
    }
    let more = if names.len() > SHOWN_MAX { ", …" } else { "" };
    names.truncate(SHOWN_MAX);
    Some(format!("it has {}{more}", names.join(", ")))
}
