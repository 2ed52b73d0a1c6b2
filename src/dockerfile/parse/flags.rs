//! Flags of instructions: `--name=value` against what an instruction knows.

use crate::dockerfile::suggest::with_suggestion;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// `--x`, `--x=true`, `--x=false`.
    Truth,
    /// `--x=text`, once.
    Text,
    /// `--x=text`, any number of times.
    Texts,
}

/// The flags that an instruction was given.
#[derive(Debug, Default)]
pub(super) struct Flags {
    given: Vec<(&'static str, String)>,
}

impl Flags {
    /// Reads `flags`, which start with `--`.
    pub(super) fn read(flags: &[String], known: &[(&'static str, Takes)]) -> Result<Self, String> {
        let mut read = Self::default();
        for flag in flags {
            let flag = flag.strip_prefix("--").unwrap_or(flag);
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag, None),
            };
            let Some((known_name, takes)) = known.iter().find(|(known, _)| *known == name) else {
                let mut names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                names.sort_unstable();
                return Err(with_suggestion(format!("unknown flag: --{name}"), name, &names));
            };
            if *takes != Takes::Texts && read.given.iter().any(|(given, _)| given == known_name) {
                return Err(format!("duplicate flag specified: --{name}"));
            }
            read.given.push((known_name, value_of(name, value, *takes)?));
        }
        Ok(read)
    }

    /// The value of a flag; an empty one counts as not given.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let found = self.given.iter().find(|(given, _)| *given == name);
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    }

    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        let of_name = self.given.iter().filter(|(given, _)| *given == name);
        of_name.map(|(_, value)| value.clone()).collect()
    }

    pub(super) fn truth(&self, name: &str) -> Option<bool> {
        self.text(name).map(|value| value == "true")
    }

    /// The value of a flag as typed, empty or not.
    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }
}

fn value_of(name: &str, value: Option<&str>, takes: Takes) -> Result<String, String> {
    match (takes, value) {
        (Takes::Truth, None) => Ok("true".to_owned()),
        (Takes::Truth, Some("")) | (Takes::Text | Takes::Texts, None) => {
            Err(format!("missing a value on flag: --{name}"))
        }
        (Takes::Truth, Some(value)) => {
            let lower = value.to_lowercase();
            if lower == "true" || lower == "false" {
                Ok(lower)
            } else {
                Err(format!("expecting boolean value for flag --{name}, not: {value}"))
            }
        }
        (Takes::Text | Takes::Texts, Some(value)) => Ok(value.to_owned()),
    }
}
