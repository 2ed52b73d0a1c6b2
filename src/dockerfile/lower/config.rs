//! Instructions that change the config alone: `ENV`, `LABEL`, `CMD`, `ENTRYPOINT`, `USER`, `VOLUME`,
//! `STOPSIGNAL`, `HEALTHCHECK`.

use std::collections::hash_map::Entry;

use crate::dockerfile::ast::{CommandLine, Instruction, KeyValue, Location};
use crate::oci::{Empty, Healthcheck};

use super::args::secret_message;
use super::dispatch::Work;
use super::history::{self, Made, commit};
use super::secret_names::looks_secret;
use crate::dockerfile::lower::{Build, Failure, signal};

const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A command line as it is executed, the shell in front of shell form.
pub(super) fn command_words(work: &Work, line: &CommandLine) -> Vec<String> {
    match line {
        CommandLine::Exec(words) => words.clone(),
        CommandLine::Shell(text) => {
            let shell = &work.image.config.shell;
            let mut words = if shell.is_empty() {
                DEFAULT_SHELL.map(str::to_owned).to_vec()
            } else {
                shell.clone()
            };
            words.push(text.clone());
            words
        }
    }
}

impl Build<'_> {
    /// `ENV`.
    pub(super) fn env(
        &mut self,
        work: &mut Work,
        at: &Instruction,
        pairs: &[KeyValue],
    ) -> Result<(), Failure> {
        let mut shown = String::from("ENV");
        for (pair, (key, value)) in pairs.iter().zip(self.pairs(work, at, pairs)?) {
            self.check_legacy(at, "ENV", pair);
            if looks_secret(&key) {
                self.report.warn("SecretsUsedInArgOrEnv", at, secret_message("ENV", &key));
            }
            shown.push_str(&format!(" {key}={value}"));
            work.env.set(&key, &value);
            set_in_place(work, key, &value);
        }
        commit(&mut work.image, shown, Made::Nothing);
        Ok(())
    }

    /// `LABEL`.
    pub(super) fn label(
        &mut self,
        work: &mut Work,
        at: &Instruction,
        pairs: &[KeyValue],
    ) -> Result<(), Failure> {
        let mut shown = String::from("LABEL");
        for (pair, (key, value)) in pairs.iter().zip(self.pairs(work, at, pairs)?) {
            self.check_legacy(at, "LABEL", pair);
            shown.push_str(&format!(" {key}={value}"));
            work.image.config.labels.insert(key, value);
        }
        commit(&mut work.image, shown, Made::Nothing);
        Ok(())
    }

    /// All words of an instruction see the variables from before it.
    fn pairs(
        &mut self,
        work: &Work,
        at: &Instruction,
        pairs: &[KeyValue],
    ) -> Result<Vec<(String, String)>, Failure> {
        let expanded = pairs.iter().map(|pair| {
            Ok((self.expand(work, at, &pair.key)?, self.expand(work, at, &pair.value)?))
        });
        expanded.collect()
    }

    fn check_legacy(&mut self, at: &Instruction, keyword: &str, pair: &KeyValue) {
        if pair.legacy {
            let message = format!(
                "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
            );
            self.report.warn("LegacyKeyValueFormat", at, message);
        }
    }

    /// `CMD`.
    pub(super) fn cmd(
        &mut self,
        work: &mut Work,
        at: &Instruction,
        line: &CommandLine,
    ) -> Result<(), Failure> {
        let earlier = work.cmd.replace(at.location.clone());
        self.check_once(at, "CMD", earlier);
        self.check_json(work, at, "CMD", line);
        let words = command_words(work, line);
        let shown = history::quoted_list(&words);
        work.image.config.cmd = (!words.is_empty()).then_some(words);
        work.image.config.args_escaped = true;
        commit(&mut work.image, format!("CMD {shown}"), Made::Nothing);
        Ok(())
    }

    /// `ENTRYPOINT`: an inherited `CMD` was meant for another one.
    pub(super) fn entrypoint(
        &mut self,
        work: &mut Work,
        at: &Instruction,
        line: &CommandLine,
    ) -> Result<(), Failure> {
        let earlier = work.entrypoint.replace(at.location.clone());
        self.check_once(at, "ENTRYPOINT", earlier);
        self.check_json(work, at, "ENTRYPOINT", line);
        let words = command_words(work, line);
        let shown = history::quoted_list(&words);
        work.image.config.entrypoint = (!words.is_empty()).then_some(words);
        if work.cmd.is_none() {
            work.image.config.cmd = None;
        }
        commit(&mut work.image, format!("ENTRYPOINT {shown}"), Made::Nothing);
        Ok(())
    }

    /// `JSONArgsRecommended`.
    fn check_json(&mut self, work: &Work, at: &Instruction, keyword: &str, line: &CommandLine) {
        if matches!(line, CommandLine::Shell(_)) && work.image.config.shell.is_empty() {
            let message = format!(
                "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
            );
            self.report.warn("JSONArgsRecommended", at, message);
        }
    }

    /// `MultipleInstructionsDisallowed`, which points at the one that does not count.
    fn check_once(&mut self, at: &Instruction, keyword: &str, earlier: Option<Location>) {
        if let Some(earlier) = earlier {
            let message = format!(
                "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
            );
            self.report.warn_elsewhere("MultipleInstructionsDisallowed", at, &earlier, message);
        }
    }

    /// `USER`.
    pub(super) fn user(
        &mut self,
        work: &mut Work,
        at: &Instruction,
        user: &str,
    ) -> Result<(), Failure> {
        let user = self.expand(work, at, user)?;
        commit(&mut work.image, format!("USER {user}"), Made::Nothing);
        work.image.config.user = user;
        Ok(())
    }

    /// `VOLUME`.
    pub(super) fn volume(
        &mut self,
        work: &mut Work,
        at: &Instruction,
        paths: &[String],
    ) -> Result<(), Failure> {
        let paths = self.expand_all(work, at, paths)?;
        if paths.iter().any(String::is_empty) {
            return Err(Failure::new("VOLUME specified can not be an empty string"));
        }
        let shown = history::plain_list(&paths);
        work.image.config.volumes.extend(paths.into_iter().map(|path| (path, Empty {})));
        commit(&mut work.image, format!("VOLUME {shown}"), Made::Nothing);
        Ok(())
    }

    /// `STOPSIGNAL`.
    pub(super) fn stop_signal(
        &mut self,
        work: &mut Work,
        at: &Instruction,
        typed: &str,
    ) -> Result<(), Failure> {
        let typed = self.expand(work, at, typed)?;
        if !signal::is_signal(&typed) {
            let failure = Failure::new(format!("invalid signal: {typed}"));
            return Err(failure.help("a name such as SIGTERM or SIGRTMIN+3, or a number above 0"));
        }
        commit(&mut work.image, format!("STOPSIGNAL {typed}"), Made::Nothing);
        work.image.config.stop_signal = typed;
        Ok(())
    }

    /// `HEALTHCHECK`.
    pub(super) fn healthcheck(
        &mut self,
        work: &mut Work,
        at: &Instruction,
        check: &Healthcheck,
    ) -> Result<(), Failure> {
        let earlier = work.healthcheck.replace(at.location.clone());
        self.check_once(at, "HEALTHCHECK", earlier);
        let shown = history::healthcheck(check);
        work.image.config.healthcheck = Some(check.clone());
        commit(&mut work.image, format!("HEALTHCHECK {shown}"), Made::Nothing);
        Ok(())
    }
}

/// A variable that is there keeps its place.
fn set_in_place(work: &mut Work, key: String, value: &str) {
    let pair = format!("{key}={value}");
    let env = &mut work.image.config.env;
    match work.env_places.entry(key) {
        Entry::Occupied(place) => env[*place.get()] = pair,
        Entry::Vacant(place) => {
            place.insert(env.len());
            env.push(pair);
        }
    }
}
