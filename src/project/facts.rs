//! What a project file may ask about the world: git, environment, overridden variables.
//!
//! Only values: the caller looks them up. Nothing here reads anything.

use std::collections::{BTreeMap, BTreeSet};

/// The world, as far as a project names it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The repository; `None` outside of one.
    pub git: Option<GitFacts>,
    /// Values of the variables in [`super::Project::env_names`] that are set.
    pub env: BTreeMap<String, String>,
    /// `IDPBUILDER_VAR_NAME=value`, as `name` → value. Names match with `-` and `_` and case alike,
    /// because most shells take neither `-` nor lower case kindly.
    pub env_vars: BTreeMap<String, String>,
    /// `--var name=value`.
    pub flag_vars: BTreeMap<String, String>,
    /// Names of secrets declared `required=#false` that have no value (see
    /// [`super::Project::secrets`]).
    pub absent_secrets: BTreeSet<String>,
}

/// What `{git.…}` stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitFacts {
    /// Full hash of the commit.
    pub sha: String,
    /// Its abbreviation.
    pub short: String,
    /// Branch; `None` when detached.
    pub branch: Option<String>,
    /// Tag on this commit.
    pub tag: Option<String>,
    /// Whether the work tree has changes.
    pub dirty: bool,
    /// Address of `origin`.
    pub remote: Option<String>,
    /// Commit time, seconds since the epoch.
    pub time: i64,
}

/// Names after `git.`.
pub(super) const GIT_NAMES: &[&str] =
    &["sha", "short", "branch", "tag", "semver", "dirty", "remote", "time"];

impl GitFacts {
    /// The tag without its `v`, when it is a semantic version.
    #[must_use]
    pub fn semver(&self) -> Option<String> {
        let tag = self.tag.as_deref()?;
        let version = tag.strip_prefix('v').unwrap_or(tag);
        is_semver(version).then(|| version.to_owned())
    }

    pub(super) fn get(&self, name: &str) -> Option<String> {
        match name {
            "sha" => Some(self.sha.clone()),
            "short" => Some(self.short.clone()),
            "branch" => self.branch.clone(),
            "tag" => self.tag.clone(),
            "semver" => self.semver(),
            "dirty" => Some(self.dirty.to_string()),
            "remote" => self.remote.clone(),
            "time" => jiff::Timestamp::from_second(self.time).ok().map(|time| time.to_string()),
            _ => None,
        }
    }
}

/// `MAJOR[.MINOR[.PATCH]][-PRE][+BUILD]`: short forms are what people tag with.
pub(super) fn is_semver(text: &str) -> bool {
    let (text, build) = text.split_once('+').map_or((text, None), |(v, b)| (v, Some(b)));
    let (core, pre) = text.split_once('-').map_or((text, None), |(v, p)| (v, Some(p)));
    let numbers: Vec<&str> = core.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_words = |words: &str| {
        words.split('.').all(|word| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
    };
    numbers.len() <= 3
        && numbers.iter().all(is_number)
        && pre.is_none_or(is_words)
        && build.is_none_or(is_words)
}

/// The three numbers of a version, missing ones 0.
pub(super) fn version_numbers(text: &str) -> Option<[u64; 3]> {
    if !is_semver(text) {
        return None;
    }
    let core = text.split(['-', '+']).next().unwrap_or(text);
    let mut numbers = [0; 3];
    for (number, part) in numbers.iter_mut().zip(core.split('.')) {
        *number = part.parse().ok()?;
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_tag_is_a_semver_and_others_are_not() {
        for (tag, semver) in [
            ("v1.4.0", Some("1.4.0")),
            ("1.4", Some("1.4")),
            ("v2.0.0-rc.1+b5", Some("2.0.0-rc.1+b5")),
            ("release-1", None),
            ("v1..2", None),
            ("v", None),
        ] {
            let git = GitFacts { tag: Some(tag.to_owned()), ..GitFacts::default() };
            assert_eq!(git.semver().as_deref(), semver, "{tag}");
        }
    }
}
