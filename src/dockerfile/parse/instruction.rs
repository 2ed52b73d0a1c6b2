//! One logical line → what it says.
//!
//! In two steps, as errors come in that order: [`Node::new`] for the form of a line, which is read for the whole
//! file first, and [`read`] for what the instruction makes of it.

use crate::dockerfile::ast::{CommandLine, Heredoc, KeyValue, Kind};
use crate::dockerfile::suggest::with_suggestion;
use crate::oci::Healthcheck;

use super::arguments::{blank_separated, json_list, key_values, quoted_words, split_command};
use super::copy::{add, copy};
use super::duration::nanoseconds;
use super::flags::{Flags, Takes};
use super::run::run;

const KEYWORDS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Shortest interval of a health check, in nanoseconds.
const INTERVAL_MIN: i64 = 1_000_000;

/// The form of a line.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) keyword: String,
    pub(super) flags: Vec<String>,
    pub(super) arguments: Arguments,
    pub(super) heredocs: Vec<Heredoc>,
}

/// Arguments in the form that the keyword asks for.
#[derive(Clone, Debug)]
pub(super) enum Arguments {
    /// One text, or none.
    Text(String),
    /// Words between blanks.
    Words(Vec<String>),
    /// A JSON list.
    Json(Vec<String>),
    /// `key=value` pairs.
    Pairs(Vec<KeyValue>),
    /// `HEALTHCHECK`: the type, and the rest.
    Health(String, Option<Box<Arguments>>),
    /// `ONBUILD`: another line.
    Trigger(Option<Box<Node>>),
    /// Of a keyword that is none.
    Unknown,
}

impl Arguments {
    /// The words of a list in either form; none of any other form.
    pub(super) fn into_words(self) -> Vec<String> {
        if let Self::Words(words) | Self::Json(words) = self { words } else { Vec::new() }
    }

    /// A command line; an empty one when there is none.
    pub(super) fn into_command_line(self) -> CommandLine {
        if let Self::Json(words) = self {
            CommandLine::Exec(words)
        } else {
            CommandLine::Shell(self.into_text())
        }
    }

    /// The text; an empty one in other forms.
    fn into_text(self) -> String {
        if let Self::Text(text) = self { text } else { String::new() }
    }
}

/// What an instruction says, with the parts of a stage if it starts one.
pub(super) enum Read {
    Kind(Kind),
    From(From),
}

/// A `FROM` line.
pub(super) struct From {
    pub(super) base: String,
    /// As typed.
    pub(super) name: Option<String>,
    pub(super) platform: Option<String>,
}

impl Node {
    /// Reads the form of `line`.
    pub(super) fn new(line: &str, escape: char) -> Result<Self, String> {
        let command = split_command(line);
        let rest = command.rest.as_str();
        let upper = command.keyword.to_ascii_uppercase();
        let arguments = match upper.as_str() {
            "ADD" | "COPY" | "VOLUME" => match json_list(rest)? {
                Some(list) => Arguments::Json(list),
                None => Arguments::Words(blank_separated(rest)),
            },
            "EXPOSE" | "FROM" => Arguments::Words(blank_separated(rest)),
            "ARG" => Arguments::Words(quoted_words(rest, escape)),
            "CMD" | "ENTRYPOINT" | "RUN" | "SHELL" => text_or_json(rest)?,
            "ENV" | "LABEL" => Arguments::Pairs(key_values(rest, &upper, escape)?),
            "HEALTHCHECK" => health_form(rest)?,
            "MAINTAINER" | "STOPSIGNAL" | "USER" | "WORKDIR" => Arguments::Text(rest.to_owned()),
            "ONBUILD" if rest.is_empty() => Arguments::Trigger(None),
            "ONBUILD" => Arguments::Trigger(Some(Box::new(Self::trigger(rest, escape)?))),
            _ => Arguments::Unknown,
        };
        Ok(Self { keyword: command.keyword, flags: command.flags, arguments, heredocs: Vec::new() })
    }

    /// The line after `ONBUILD`; one more `ONBUILD` is read no further, it is refused anyway.
    fn trigger(rest: &str, escape: char) -> Result<Self, String> {
        let command = split_command(rest);
        if command.keyword.eq_ignore_ascii_case("ONBUILD") {
            let (keyword, flags) = (command.keyword, command.flags);
            return Ok(Self {
                keyword,
                flags,
                arguments: Arguments::Unknown,
                heredocs: Vec::new(),
            });
        }
        Self::new(rest, escape)
    }

    /// Whether `<<` may announce heredocs here.
    pub(super) fn takes_heredocs(&self) -> bool {
        match (&self.arguments, self.keyword.to_ascii_uppercase().as_str()) {
            (Arguments::Trigger(Some(node)), _) => node.takes_heredocs(),
            (Arguments::Json(_), _) => false,
            (_, "ADD" | "COPY" | "RUN") => true,
            _ => false,
        }
    }
}

fn text_or_json(rest: &str) -> Result<Arguments, String> {
    Ok(match json_list(rest)? {
        Some(list) => Arguments::Json(list),
        None => Arguments::Text(rest.to_owned()),
    })
}

fn health_form(rest: &str) -> Result<Arguments, String> {
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = command.trim_start();
    let command = if command.is_empty() { None } else { Some(Box::new(text_or_json(command)?)) };
    Ok(Arguments::Health(kind.to_owned(), command))
}

/// Reads what `node` says; `line` is its text.
pub(super) fn read(node: Node, line: &str) -> Result<Read, String> {
    let upper = node.keyword.to_ascii_uppercase();
    let kind = match upper.as_str() {
        "FROM" => return from(node).map(Read::From),
        "ADD" => Kind::Add(add(node)?),
        "COPY" => Kind::Copy(copy(node)?),
        "RUN" => Kind::Run(run(node)?),
        "ARG" => Kind::Arg(arg(node)?),
        "ENV" => Kind::Env(pairs(node, "ENV")?),
        "LABEL" => Kind::Label(pairs(node, "LABEL")?),
        "CMD" => Kind::Cmd(command_line(node)?),
        "ENTRYPOINT" => Kind::Entrypoint(command_line(node)?),
        "SHELL" => Kind::Shell(shell(node)?),
        "MAINTAINER" => Kind::Maintainer(one_text(node, "MAINTAINER", &FlagUse::Refused)?),
        "STOPSIGNAL" => Kind::StopSignal(one_text(node, "STOPSIGNAL", &FlagUse::Ignored)?),
        "USER" => Kind::User(one_text(node, "USER", &FlagUse::Refused)?),
        "WORKDIR" => Kind::Workdir(one_text(node, "WORKDIR", &FlagUse::Refused)?),
        "EXPOSE" => Kind::Expose(expose(node)?),
        "VOLUME" => Kind::Volume(volume(node)?),
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(node)?),
        "ONBUILD" => onbuild(node, line)?,
        _ => return Err(unknown(&node.keyword)),
    };
    Ok(Read::Kind(kind))
}

/// The suggestion is in the case of what was typed.
fn unknown(keyword: &str) -> String {
    let message = format!("unknown instruction: {keyword}");
    let upper = keyword.to_uppercase();
    if upper == keyword {
        return with_suggestion(message, keyword, KEYWORDS);
    }
    let lower: Vec<String> = KEYWORDS.iter().map(|known| known.to_lowercase()).collect();
    let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
    with_suggestion(message, &keyword.to_lowercase(), &lower)
}

/// Whether an instruction without flags looks at those it was given.
enum FlagUse {
    Refused,
    Ignored,
}

fn at_least_one(keyword: &str) -> String {
    format!("{keyword} requires at least one argument")
}

fn one_text(node: Node, keyword: &str, flags: &FlagUse) -> Result<String, String> {
    let text = node.arguments.into_text();
    if text.is_empty() {
        return Err(format!("{keyword} requires exactly one argument"));
    }
    if matches!(flags, FlagUse::Refused) {
        Flags::read(&node.flags, &[])?;
    }
    Ok(text)
}

fn pairs(node: Node, keyword: &str) -> Result<Vec<KeyValue>, String> {
    Flags::read(&node.flags, &[])?;
    let Arguments::Pairs(pairs) = node.arguments else { return Err(at_least_one(keyword)) };
    if pairs.is_empty() {
        return Err(at_least_one(keyword));
    }
    if pairs.iter().any(|pair| pair.key.is_empty()) {
        return Err(format!("{keyword} names can not be blank"));
    }
    Ok(pairs)
}

fn arg(node: Node) -> Result<Vec<(String, Option<String>)>, String> {
    let words = node.arguments.into_words();
    if words.is_empty() {
        return Err(at_least_one("ARG"));
    }
    let entry = |word: String| match word.split_once('=') {
        Some(("", _)) => Err("ARG names can not be blank".to_owned()),
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((word, None)),
    };
    words.into_iter().map(entry).collect()
}

fn command_line(node: Node) -> Result<CommandLine, String> {
    Flags::read(&node.flags, &[])?;
    Ok(node.arguments.into_command_line())
}

fn shell(node: Node) -> Result<Vec<String>, String> {
    Flags::read(&node.flags, &[])?;
    match node.arguments.into_command_line() {
        CommandLine::Exec(list) if !list.is_empty() => Ok(list),
        CommandLine::Shell(text) if !text.is_empty() => {
            Err("SHELL requires the arguments to be in JSON form".to_owned())
        }
        CommandLine::Exec(_) | CommandLine::Shell(_) => Err(at_least_one("SHELL")),
    }
}

fn expose(node: Node) -> Result<Vec<String>, String> {
    let mut ports = node.arguments.into_words();
    if ports.is_empty() {
        return Err(at_least_one("EXPOSE"));
    }
    Flags::read(&node.flags, &[])?;
    ports.sort_unstable();
    Ok(ports)
}

fn volume(node: Node) -> Result<Vec<String>, String> {
    let paths = node.arguments.into_words();
    if paths.is_empty() {
        return Err(at_least_one("VOLUME"));
    }
    Flags::read(&node.flags, &[])?;
    let paths: Vec<String> = paths.iter().map(|path| path.trim().to_owned()).collect();
    if paths.iter().any(String::is_empty) {
        return Err("VOLUME specified can not be an empty string".to_owned());
    }
    Ok(paths)
}

fn from(node: Node) -> Result<From, String> {
    let arguments = node.arguments.into_words();
    let (base, name) = match arguments.as_slice() {
        [base] => (base, None),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => (base, Some(name.clone())),
        _ => return Err("FROM requires either one or three arguments".to_owned()),
    };
    if let Some(name) = &name {
        check_stage_name(name)?;
    }
    let flags = Flags::read(&node.flags, &[("platform", Takes::Text)])?;
    Ok(From { base: base.clone(), name, platform: flags.text("platform") })
}

fn check_stage_name(name: &str) -> Result<(), String> {
    let lower = name.to_lowercase();
    let valid = lower.starts_with(|letter: char| letter.is_ascii_lowercase())
        && lower.chars().all(|letter| {
            letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-_.".contains(letter)
        });
    if valid {
        return Ok(());
    }
    Err(format!(
        "invalid name for build stage: {}, name can't start with a number or contain symbols",
        crate::dockerfile::quote::quoted(name)
    ))
}

fn healthcheck(node: Node) -> Result<Healthcheck, String> {
    let Arguments::Health(kind, command) = node.arguments else {
        return Err(at_least_one("HEALTHCHECK"));
    };
    let kind = kind.to_uppercase();
    if kind.is_empty() {
        return Err(at_least_one("HEALTHCHECK"));
    }
    if kind == "NONE" {
        let none = command.map_or(CommandLine::Exec(Vec::new()), |c| c.into_command_line());
        return if none == CommandLine::Exec(Vec::new()) {
            Ok(Healthcheck { test: vec![kind], ..Healthcheck::default() })
        } else {
            Err("HEALTHCHECK NONE takes no arguments".to_owned())
        };
    }
    let names = ["interval", "timeout", "start-period", "start-interval", "retries"];
    let flags = Flags::read(&node.flags, &names.map(|name| (name, Takes::Text)))?;
    if kind != "CMD" {
        let kind = crate::dockerfile::quote::quoted(&kind);
        return Err(format!("Unknown type {kind} in HEALTHCHECK (try CMD)"));
    }
    let test = match command.map(|command| *command) {
        Some(Arguments::Json(list)) if !list.is_empty() => [vec!["CMD".to_owned()], list].concat(),
        Some(Arguments::Text(text)) => vec!["CMD-SHELL".to_owned(), text],
        _ => return Err("Missing command after HEALTHCHECK CMD".to_owned()),
    };
    Ok(Healthcheck {
        test,
        interval: interval(&flags, "interval")?,
        timeout: interval(&flags, "timeout")?,
        start_period: interval(&flags, "start-period")?,
        start_interval: interval(&flags, "start-interval")?,
        retries: retries(&flags)?,
    })
}

fn interval(flags: &Flags, name: &str) -> Result<i64, String> {
    let Some(text) = flags.text(name) else { return Ok(0) };
    let duration = nanoseconds(&text)?;
    if duration != 0 && duration < INTERVAL_MIN {
        return Err(format!("Interval \"{name}\" cannot be less than 1ms"));
    }
    Ok(duration)
}

fn retries(flags: &Flags) -> Result<i64, String> {
    let Some(text) = flags.text("retries") else { return Ok(0) };
    let digits = text.strip_prefix(['-', '+']).unwrap_or(&text);
    let numeric = !digits.is_empty() && digits.chars().all(|letter| letter.is_ascii_digit());
    let Ok(number) = text.parse::<i32>() else {
        let reason = if numeric { "value out of range" } else { "invalid syntax" };
        let shown = crate::dockerfile::quote::quoted(&text);
        return Err(format!("strconv.ParseInt: parsing {shown}: {reason}"));
    };
    if number < 0 {
        return Err(format!("--retries cannot be negative ({number})"));
    }
    Ok(number.into())
}

fn onbuild(node: Node, line: &str) -> Result<Kind, String> {
    let Arguments::Trigger(Some(trigger)) = node.arguments else {
        return Err(at_least_one("ONBUILD"));
    };
    Flags::read(&node.flags, &[])?;
    check_trigger(&trigger.keyword)?;
    let typed = line.trim_start();
    let (_, text) = typed.split_at_checked("ONBUILD".len()).unwrap_or((typed, ""));
    let trigger = text.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']).to_owned();
    Ok(Kind::OnBuild { trigger, heredocs: node.heredocs })
}

/// Refuses what may not be triggered.
pub(super) fn check_trigger(keyword: &str) -> Result<(), String> {
    match keyword.to_ascii_uppercase().as_str() {
        "ONBUILD" => Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned()),
        refused @ ("MAINTAINER" | "FROM") => {
            Err(format!("{refused} isn't allowed as an ONBUILD trigger"))
        }
        _ => Ok(()),
    }
}
