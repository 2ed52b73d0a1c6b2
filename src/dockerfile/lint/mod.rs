//! Warnings of the build checks: values with rule, message and place.
//!
//! `rules` finds what a file shows without expansion, `own` the same for the rules that BuildKit has not; `options` knows who may speak;
//! `listing` tells it. The checks that need values of variables are found while lowering.

mod listing;
mod options;
mod own;
mod rules;

use super::ast::{Dockerfile, Location};

pub use listing::listing;
pub use options::{CheckOptions, Selection, applies};
pub(super) use own::{DOLLAR_IN_REPLACEMENT, of_instruction};
pub use own::{OWN_RULES, UNKNOWN_OWNER, UNMATCHED_WILDCARD, UNUSABLE_DIRECTORY};
pub(super) use rules::{empty_continuation, of_definition, of_words, whole_file};

/// Rules that BuildKit finds while it goes through a stage: they speak only of stages that are built.
pub const STAGE_RULES: &[&str] =
    &["JSONArgsRecommended", "LegacyKeyValueFormat", "MultipleInstructionsDisallowed"];

/// Something a build check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Name of the rule, such as `StageNameCasing`.
    pub rule: &'static str,
    /// What is wrong here, in BuildKit's words where the rule is BuildKit's.
    pub message: String,
    /// Where.
    pub location: Location,
}

impl Warning {
    /// Page that explains the rule: BuildKit's, or for rules of our own a place in this repository.
    #[must_use]
    pub fn url(&self) -> String {
        if OWN_RULES.contains(&self.rule) {
            return format!("schema/checks.md#{}", self.rule.to_lowercase());
        }
        let mut kebab = String::new();
        let mut previous_is_lower = false;
        let mut letters = self.rule.chars().peekable();
        while let Some(letter) = letters.next() {
            // A word begins at a capital after a small letter, and at the last of several capitals.
            let next_is_lower = letters.peek().is_some_and(char::is_ascii_lowercase);
            let begins = letter.is_ascii_uppercase() && (previous_is_lower || next_is_lower);
            if begins && !kebab.is_empty() {
                kebab.push('-');
            }
            kebab.push(letter.to_ascii_lowercase());
            previous_is_lower = letter.is_ascii_lowercase();
        }
        format!("https://docs.docker.com/go/dockerfile/rule/{kebab}/")
    }
}

impl Dockerfile {
    /// The warnings of the file when only the stages `built` (indexes) are: those of [`STAGE_RULES`] in other stages
    /// are left out.
    #[must_use]
    pub fn warnings_of(&self, built: &[usize]) -> Vec<Warning> {
        let in_built = |warning: &Warning| {
            let line = warning.location.lines.0;
            let stage = self.stages.partition_point(|stage| stage.from.location.lines.0 <= line);
            stage > 0 && built.contains(&(stage - 1))
        };
        let speaks = |warning: &&Warning| !STAGE_RULES.contains(&warning.rule) || in_built(warning);
        self.warnings.iter().filter(speaks).cloned().collect()
    }
}

#[cfg(test)]
mod tests;
