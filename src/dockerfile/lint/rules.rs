//! The checks that a file shows as it stands, in BuildKit's words.

use std::collections::{HashMap, HashSet};

use crate::dockerfile::ast::{CommandLine, Instruction, KeyValue, Kind, Location, Stage};

use super::Warning;

/// Names of stages that mean something else.
const RESERVED: &[&str] = &["context", "scratch"];

fn warning(rule: &'static str, message: String, location: &Location) -> Warning {
    Warning { rule, message, location: location.clone() }
}

/// `NoEmptyContinuation`, told of the last line of the instruction.
pub(in crate::dockerfile) fn empty_continuation(location: &Location) -> Warning {
    let last = Location { lines: (location.lines.1, location.lines.1), ..location.clone() };
    warning("NoEmptyContinuation", "Empty continuation line".to_owned(), &last)
}

/// What the words of a line show before it is understood, and even if it never is.
pub(in crate::dockerfile) fn of_words(
    keyword: &str,
    words: &[String],
    location: &Location,
) -> Vec<Warning> {
    let mut found = Vec::new();
    if keyword.eq_ignore_ascii_case("MAINTAINER") {
        let message = "Maintainer instruction is deprecated in favor of using label";
        found.push(warning("MaintainerDeprecated", message.to_owned(), location));
    }
    if keyword.eq_ignore_ascii_case("FROM")
        && let [_, as_typed, name, more @ ..] = words
    {
        if more.is_empty() {
            found.extend(stage_name_casing(name, location));
        }
        found.extend(from_as_casing(keyword, as_typed, location));
    }
    found
}

/// What the comment above an `ARG`, or a `FROM` with `stage_name`, shows.
pub(in crate::dockerfile) fn of_definition(
    instruction: &Instruction,
    stage_name: Option<&str>,
) -> Option<Warning> {
    if let Kind::Arg(entries) = &instruction.kind {
        let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
        return description("ARG", &names, instruction);
    }
    description("FROM", &[&stage_name?.to_lowercase()], instruction)
}

/// What shows when all of the file is there.
pub(in crate::dockerfile) fn whole_file(stages: &[Stage]) -> Vec<Warning> {
    let mut found = stage_names(stages);
    found.extend(instruction_casing(stages));
    let mut shells: HashMap<&str, Shell> = HashMap::new();
    for stage in stages {
        let inherited = shells.get(stage.base.as_str()).copied().unwrap_or(Shell::Default);
        let shell = in_stage(stage, inherited, &mut found);
        if let Some(name) = &stage.name {
            shells.insert(name, shell);
        }
    }
    found
}

fn stage_name_casing(name: &str, location: &Location) -> Option<Warning> {
    (name.to_lowercase() != name).then(|| {
        let message = format!("Stage name '{name}' should be lowercase");
        warning("StageNameCasing", message, location)
    })
}

fn from_as_casing(keyword: &str, as_typed: &str, location: &Location) -> Option<Warning> {
    let expected = match casing(keyword) {
        Some(Casing::Lower) => as_typed.to_lowercase(),
        Some(Casing::Upper) => as_typed.to_uppercase(),
        None => return None,
    };
    (expected != as_typed).then(|| {
        let message = format!("'{as_typed}' and '{keyword}' keywords' casing do not match");
        warning("FromAsCasing", message, location)
    })
}

/// The last comment above a definition starts with the name that is defined.
fn description(keyword: &str, names: &[&str], instruction: &Instruction) -> Option<Warning> {
    let comment = instruction.comments.last()?;
    let subject = comment.split(' ').next().unwrap_or_default();
    if names.contains(&subject) {
        return None;
    }
    let example = match names {
        [] => return None,
        [name] => name,
        _ => "<arg_key>",
    };
    let message =
        format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    Some(warning("InvalidDefinitionDescription", message, &instruction.location))
}

fn stage_names(stages: &[Stage]) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for stage in stages {
        let Some(name) = stage.name.as_deref() else { continue };
        let location = &stage.from.location;
        if RESERVED.contains(&name) {
            let message =
                format!("Stage name should not use the same name as reserved stage \"{name}\"");
            found.push(warning("ReservedStageName", message, location));
        }
        if !seen.insert(name) {
            let message = format!("Duplicate stage name \"{name}\", stage names should be unique");
            found.push(warning("DuplicateStageName", message, location));
        }
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Casing {
    Lower,
    Upper,
}

/// The casing of a keyword; `None` when it is mixed.
fn casing(keyword: &str) -> Option<Casing> {
    if keyword.to_lowercase() == keyword {
        Some(Casing::Lower)
    } else if keyword.to_uppercase() == keyword {
        Some(Casing::Upper)
    } else {
        None
    }
}

fn instruction_casing(stages: &[Stage]) -> Vec<Warning> {
    let all = || stages.iter().flat_map(|s| std::iter::once(&s.from).chain(&s.instructions));
    let count = |wanted| all().filter(|one| casing(&one.keyword) == Some(wanted)).count();
    let (majority, shown) = if count(Casing::Lower) > count(Casing::Upper) {
        (Casing::Lower, "lowercase")
    } else {
        (Casing::Upper, "uppercase")
    };
    let mut found = Vec::new();
    for odd in all().filter(|one| casing(&one.keyword) != Some(majority)) {
        let message = format!(
            "Command '{}' should match the case of the command majority ({shown})",
            odd.keyword
        );
        found.push(warning("ConsistentInstructionCasing", message, &odd.location));
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shell {
    Default,
    Chosen,
}

/// The checks of [`super::STAGE_RULES`]; returns the shell that the stage ends with.
fn in_stage(stage: &Stage, inherited: Shell, found: &mut Vec<Warning>) -> Shell {
    let mut shell = inherited;
    let mut used: HashMap<&str, &Location> = HashMap::new();
    for instruction in &stage.instructions {
        let keyword = instruction.keyword.as_str();
        let location = &instruction.location;
        if let Kind::Shell(_) = &instruction.kind {
            shell = Shell::Chosen;
        }
        if let Kind::Env(pairs) | Kind::Label(pairs) = &instruction.kind {
            found.extend(legacy_format(keyword, pairs, location));
        }
        let Some((name, command)) = once_a_stage(&instruction.kind) else { continue };
        // The earlier one is told of: it is the one without effect.
        if let Some(earlier) = used.insert(name, location) {
            let message = format!(
                "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
            );
            found.push(warning("MultipleInstructionsDisallowed", message, earlier));
        }
        if shell == Shell::Default && matches!(command, Some(CommandLine::Shell(_))) {
            let message = format!(
                "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
            );
            found.push(warning("JSONArgsRecommended", message, location));
        }
    }
    shell
}

/// An instruction of which only the last one counts, and its command line.
fn once_a_stage(kind: &Kind) -> Option<(&'static str, Option<&CommandLine>)> {
    if let Kind::Cmd(command) = kind {
        Some(("CMD", Some(command)))
    } else if let Kind::Entrypoint(command) = kind {
        Some(("ENTRYPOINT", Some(command)))
    } else if let Kind::Healthcheck(_) = kind {
        Some(("HEALTHCHECK", None))
    } else {
        None
    }
}

fn legacy_format(keyword: &str, pairs: &[KeyValue], location: &Location) -> Option<Warning> {
    pairs.iter().any(|pair| pair.legacy).then(|| {
        let message = format!(
            "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
        );
        warning("LegacyKeyValueFormat", message, location)
    })
}
