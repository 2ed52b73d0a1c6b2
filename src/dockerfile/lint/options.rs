//! `# check=`: which rules speak, where, and whether they fail the build.

use std::collections::HashMap;

use crate::dockerfile::ast::{Directives, Dockerfile, Instruction};
use crate::dockerfile::quote::quoted;

use super::Warning;

/// Rules that speak only when asked to.
const EXPERIMENTAL: &[&str] = &["InvalidDefinitionDescription"];

/// Most options in one text.
const OPTIONS_MAX: usize = 3;

/// Options of the build checks: `skip=RuleA,RuleB|all;error=true;experimental=RuleC|all`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Rules that stay silent.
    pub skip: Selection,
    /// Whether any warning fails the build.
    pub error: bool,
    /// Experimental rules that speak.
    pub experimental: Selection,
}

/// Some rules, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// These, by name.
    Named(Vec<String>),
    /// `all`.
    All,
}

impl Default for Selection {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

impl Selection {
    /// Reads `all` or a list of names.
    fn new(text: &str) -> Self {
        match text {
            "all" => Self::All,
            names => Self::Named(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }

    /// Whether `rule` is one of them.
    #[must_use]
    pub fn contains(&self, rule: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|name| name == rule),
        }
    }
}

impl CheckOptions {
    /// Reads the value of `# check=` or of `BUILDKIT_DOCKERFILE_CHECK` (which replaces the directive).
    ///
    /// # Errors
    ///
    /// When an option is unknown or no `key=value`; the message is BuildKit's.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(options);
        }
        for part in text.splitn(OPTIONS_MAX, ';') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("invalid check option {}", quoted(part)));
            };
            let (key, value) = (key.trim(), value.trim());
            match key.to_ascii_lowercase().as_str() {
                "skip" => options.skip = Selection::new(value),
                "experimental" => options.experimental = Selection::new(value),
                "error" => options.error = truth(value, part)?,
                _ => return Err(format!("invalid check option {}", quoted(key))),
            }
        }
        Ok(options)
    }

    /// The options of a file's directives; the defaults when there is no `# check=`.
    ///
    /// # Errors
    ///
    /// As [`CheckOptions::parse`].
    pub fn of(directives: &Directives) -> Result<Self, String> {
        directives.check.as_ref().map_or_else(|| Ok(Self::default()), |(text, _)| Self::parse(text))
    }

    /// Whether `rule` speaks here: not skipped for the file, nor by a `# check=skip=` comment directly above `instruction`.
    #[must_use]
    pub fn applies(&self, rule: &str, instruction: Option<&Instruction>) -> bool {
        self.speaks(rule) && instruction.is_none_or(|instruction| applies(rule, instruction))
    }

    /// The warnings that may speak, each once, in the order of their lines; the instructions are those of `dockerfile`.
    #[must_use]
    pub fn keep(&self, dockerfile: &Dockerfile, warnings: Vec<Warning>) -> Vec<Warning> {
        let all = dockerfile.instructions();
        // A warning about a part of an instruction stands on one of its lines, most often the first or last.
        let mut by_line = HashMap::new();
        for instruction in all.filter(|instruction| !instruction.comments.is_empty()) {
            let (first, last) = instruction.location.lines;
            by_line.insert(first, instruction);
            by_line.insert(last, instruction);
        }
        let mut kept: Vec<Warning> = Vec::new();
        for warning in warnings {
            let instruction = by_line.get(&warning.location.lines.0).copied();
            if self.applies(warning.rule, instruction) {
                kept.push(warning);
            }
        }
        kept.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
        kept.dedup();
        kept
    }

    fn speaks(&self, rule: &str) -> bool {
        let asked = !EXPERIMENTAL.contains(&rule) || self.experimental.contains(rule);
        asked && !self.skip.contains(rule)
    }
}

fn sort_key(warning: &Warning) -> (usize, &str, &str) {
    (warning.location.lines.0, warning.rule, warning.message.as_str())
}

/// Whether no `# check=skip=` comment directly above `instruction` silences `rule`.
#[must_use]
pub fn applies(rule: &str, instruction: &Instruction) -> bool {
    !instruction.comments.iter().any(|comment| {
        let Some((key, value)) = comment.split_once('=') else { return false };
        let options = CheckOptions::parse(value).unwrap_or_default();
        key.trim().eq_ignore_ascii_case("check") && options.skip.contains(rule)
    })
}

fn truth(value: &str, part: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!(
            "failed to parse check option {}: strconv.ParseBool: parsing {}: invalid syntax",
            quoted(part),
            quoted(value)
        )),
    }
}
