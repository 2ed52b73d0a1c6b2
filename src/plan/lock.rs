//! The lock: what the names that a project takes things by were resolved to, kept beside the project.
//!
//! Values and text; knows no registry and no file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

/// Version of the form that is read and written.
const VERSION: u32 = 1;

/// What names stand for, by full name. Written sorted, so that a change is one line of a diff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    /// Digest of the manifest or index, by full reference with tag (`docker.io/library/debian:bookworm`).
    #[serde(default)]
    pub images: BTreeMap<String, Digest>,
    /// Digest of the content, by URL.
    #[serde(default)]
    pub urls: BTreeMap<String, Digest>,
    /// Commit, by URL with its fragment.
    #[serde(default)]
    pub git: BTreeMap<String, String>,
}

impl Default for Lock {
    fn default() -> Self {
        let (images, urls, git) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { version: VERSION, images, urls, git }
    }
}

impl Lock {
    /// Reads a lock.
    ///
    /// # Errors
    ///
    /// One sentence without the place.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lock: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match lock.version {
            VERSION => Ok(lock),
            other => Err(format!("version {other} is not known, {VERSION} is")),
        }
    }

    /// The text of the file.
    ///
    /// # Panics
    ///
    /// Never: texts are JSON.
    #[must_use]
    pub fn write(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("texts are JSON");
        format!("{json}\n")
    }

    /// What became of names from `before` to this lock, one line each.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let texts = |map: &BTreeMap<String, Digest>| -> BTreeMap<String, String> {
            map.iter().map(|(name, digest)| (name.clone(), digest.to_string())).collect()
        };
        let all = |lock: &Self| [texts(&lock.images), texts(&lock.urls), lock.git.clone()];
        let mut lines = Vec::new();
        for (now, before) in all(self).iter().zip(&all(before)) {
            for (name, value) in now {
                match before.get(name) {
                    None => lines.push(format!("{name} is {value}")),
                    Some(was) if was != value => {
                        lines.push(format!("{name} was {was} and is {value}"));
                    }
                    Some(_) => {}
                }
            }
            let gone = before.keys().filter(|name| !now.contains_key(*name));
            lines.extend(gone.map(|name| format!("{name} is not used any more")));
        }
        lines
    }
}

/// A lock in force.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// What names stand for.
    pub lock: Lock,
    /// What is asked of it.
    pub mode: PinMode,
}

/// What is asked of a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PinMode {
    /// Names in it stand for what it says; others for what they stand for today.
    #[default]
    Follow,
    /// Every name must be in it, and must still stand for what it says (`--locked`).
    Strict,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_as_it_was_written_and_says_what_changed() {
        let mut lock = Lock::default();
        lock.images.insert("docker.io/library/a:1".to_owned(), Digest::of(b"a"));
        lock.git.insert("https://x/y.git#main".to_owned(), "c0ffee".to_owned());
        assert_eq!(Lock::parse(&lock.write()), Ok(lock.clone()));
        let mut newer = lock.clone();
        newer.git.clear();
        newer.images.insert("docker.io/library/a:1".to_owned(), Digest::of(b"b"));
        newer.urls.insert("https://x/".to_owned(), Digest::of(b"u"));
        let (a, b, u) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"u"));
        let lines = newer.changes_since(&lock);
        assert_eq!(
            lines,
            [
                format!("docker.io/library/a:1 was {a} and is {b}"),
                format!("https://x/ is {u}"),
                "https://x/y.git#main is not used any more".to_owned(),
            ]
        );
        assert_eq!(newer.changes_since(&newer), Vec::<String>::new());
    }

    #[test]
    fn a_lock_of_another_version_or_with_unknown_members_is_refused() {
        for text in ["{}", "{\"version\": 2}", "{\"version\": 1, \"more\": {}}", "x"] {
            assert!(Lock::parse(text).is_err(), "{text}");
        }
    }
}
