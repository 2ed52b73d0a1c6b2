//! What the build checks found, and which of it may be said.

use crate::dockerfile::ast::{Dockerfile, Instruction, Location};
use crate::dockerfile::lint::{
    CheckOptions, DOLLAR_IN_REPLACEMENT, STAGE_RULES, Warning, of_instruction,
};
use crate::dockerfile::suggest::nearest;

use super::Failure;
use super::LowerOptions;
use super::env::{Env, Word};

/// Build argument that stands for `# check=`.
const CHECK_ARG: &str = "BUILDKIT_DOCKERFILE_CHECK";
/// Warnings so far.
pub(super) struct Report<'a> {
    checks: CheckOptions,
    dockerfile: &'a Dockerfile,
    /// In the order in which BuildKit finds them.
    pub warnings: Vec<Warning>,
    /// What the rules of our own found.
    pub advice: Vec<Warning>,
}

impl<'a> Report<'a> {
    /// Starts with what the parser noticed.
    pub(super) fn new(dockerfile: &'a Dockerfile, options: &LowerOptions) -> Result<Self, Failure> {
        let read = match options.args.get(CHECK_ARG) {
            Some(text) => CheckOptions::parse(text),
            None => CheckOptions::of(&dockerfile.directives),
        };
        let checks = read
            .map_err(|reason| Failure::new(format!("failed to parse check options: {reason}")))?;
        let mut report = Self { checks, dockerfile, warnings: Vec::new(), advice: Vec::new() };
        for warning in &dockerfile.warnings {
            // Those are judged when their instruction is lowered: a base may bring a shell.
            if !STAGE_RULES.contains(&warning.rule) {
                let at = report.instruction_at(&warning.location);
                if report.checks.applies(warning.rule, at) {
                    report.warnings.push(warning.clone());
                }
            }
        }
        for instruction in dockerfile.instructions() {
            for Warning { rule, message, .. } in
                of_instruction(instruction, dockerfile.directives.escape)
            {
                report.advise(rule, instruction, message);
            }
        }
        Ok(report)
    }

    /// Says something by a rule of our own, unless it is silenced there.
    pub(super) fn advise(&mut self, rule: &'static str, at: &Instruction, message: String) {
        let advice = Warning { rule, message, location: at.location.clone() };
        if self.speaks(rule, at) && !self.advice.contains(&advice) {
            self.advice.push(advice);
        }
    }

    /// Whether a rule may speak of an instruction.
    pub(super) fn speaks(&self, rule: &str, at: &Instruction) -> bool {
        self.checks.applies(rule, Some(at))
    }

    fn instruction_at(&self, location: &Location) -> Option<&'a Instruction> {
        self.dockerfile
            .instructions()
            .find(|instruction| instruction.location.lines == location.lines)
    }

    /// Says something about an instruction, unless the rule is silenced there.
    pub(super) fn warn(&mut self, rule: &'static str, at: &Instruction, message: String) {
        self.warn_elsewhere(rule, at, &at.location, message);
    }

    /// What was said of a place under a rule.
    pub(super) fn said(&self, rule: &str, location: &Location) -> Option<&str> {
        let mut warnings = self.warnings.iter();
        let found = warnings.find(|said| said.rule == rule && said.location == *location);
        found.map(|warning| warning.message.as_str())
    }

    /// Says something about an earlier place, under the rules of `at`.
    pub(super) fn warn_elsewhere(
        &mut self,
        rule: &'static str,
        at: &Instruction,
        location: &Location,
        message: String,
    ) {
        let warning = Warning { rule, message, location: location.clone() };
        if self.checks.applies(rule, Some(at)) && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// `UndefinedVar`.
    pub(super) fn undefined(
        &mut self,
        at: &Instruction,
        word: &Word,
        env: &Env,
        declared: &[(String, Option<String>)],
    ) {
        if word.template {
            let message = "`$` in the replacement of `${…//…}` is a group of the match, not text";
            self.advise(DOLLAR_IN_REPLACEMENT, at, message.to_owned());
        }
        for name in &word.unset {
            if declared.iter().any(|(known, _)| known == name) || super::args::is_not_env(name) {
                continue;
            }
            let hint = nearest(name, &env.names().collect::<Vec<_>>());
            let hint = hint.map(|known| format!(" (did you mean ${known}?)")).unwrap_or_default();
            self.warn("UndefinedVar", at, format!("Usage of undefined variable '${name}'{hint}"));
        }
    }

    /// Fails when warnings are errors and there are some.
    pub(super) fn violations(&self) -> Result<(), Failure> {
        if !self.checks.error || self.warnings.is_empty() {
            return Ok(());
        }
        let mut rules: Vec<&str> = Vec::new();
        for warning in &self.warnings {
            if !rules.contains(&warning.rule) {
                rules.push(warning.rule);
            }
        }
        Err(Failure::new(format!("lint violation found for rules: {}", rules.join(", "))))
    }
}
