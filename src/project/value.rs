//! One value of the file: its type held against what the table wants.

use std::time::Duration;

use kdl::KdlEntry;
use kdl::KdlValue;
use miette::SourceSpan;

use super::facts::is_semver;
use super::problem::Fault;
use super::problem::Problems;
use super::problem::suggestion;
use super::table::Kind;
use super::template::Condition;
use super::template::Placed;
use super::template::Template;
use super::template::TemplateError;
use crate::oci::{ARCHITECTURES, Platform};

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) data: Data,
    pub(super) at: SourceSpan,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Data {
    Null,
    /// Reported already.
    Wrong,
    Flag(bool),
    Number(i64),
    Text(Template),
    Condition(Condition),
}

impl Value {
    /// The text, when it has no holes.
    pub(super) fn as_plain(&self) -> Option<&str> {
        match &self.data {
            Data::Text(template) => template.as_plain(),
            Data::Null | Data::Wrong | Data::Flag(_) | Data::Number(_) | Data::Condition(_) => None,
        }
    }
}

/// Reads the value of an entry; `None` when it is not what the table wants, which is then reported.
pub(super) fn read_value(
    entry: &KdlEntry,
    kind: Kind,
    what: &str,
    problems: &mut Problems,
) -> Option<Value> {
    let repr = entry.format().map_or("", |format| format.value_repr.as_str());
    let at = value_span(entry, repr);
    let written = Written { repr, at, what };
    let data = match (entry.value(), kind) {
        (KdlValue::String(text), Kind::Condition) => {
            let condition = Condition::parse(text, written.placed());
            condition.map(Data::Condition).map_err(|error| template_fault(error, problems)).ok()?
        }
        (KdlValue::String(text), _) if kind != Kind::Flag => written.text(text, kind, problems)?,
        (KdlValue::Bool(flag), Kind::Flag | Kind::Scalar) => Data::Flag(*flag),
        (KdlValue::Bool(true), Kind::Condition) => Data::Condition(Condition::Always),
        (KdlValue::Bool(false), Kind::Condition) => Data::Condition(Condition::Never),
        (KdlValue::Integer(number), Kind::Scalar | Kind::Epoch) => match i64::try_from(*number) {
            Ok(number) => Data::Number(number),
            Err(_) => return written.wrong("a smaller number", kind, problems),
        },
        (KdlValue::Integer(_), _) => return written.wrong("a number", kind, problems),
        (KdlValue::Float(_), _) => return written.wrong("a fraction", kind, problems),
        (KdlValue::Bool(_), _) => return written.wrong("a boolean", kind, problems),
        (KdlValue::Null, _) => return written.wrong("nothing", kind, problems),
        (KdlValue::String(_), _) => return written.wrong("text", kind, problems),
    };
    Some(Value { data, at, kind })
}

/// The entry's span without its key.
fn value_span(entry: &KdlEntry, repr: &str) -> SourceSpan {
    let span = entry.span();
    if entry.name().is_none() || repr.is_empty() || repr.len() > span.len() {
        return span;
    }
    (span.offset() + span.len() - repr.len(), repr.len()).into()
}

struct Written<'a> {
    repr: &'a str,
    at: SourceSpan,
    what: &'a str,
}

impl Written<'_> {
    fn placed(&self) -> Placed {
        let simple = self.repr.starts_with('"')
            && !self.repr.starts_with("\"\"\"")
            && !self.repr.contains('\\');
        Placed { whole: self.at, exact: simple.then_some(self.at.offset() + 1) }
    }

    fn wrong<T>(&self, found: &str, kind: Kind, problems: &mut Problems) -> Option<T> {
        let fault =
            Fault::WrongValue(format!("{} is {found}, expected {}", self.what, wanted(kind)));
        let help = if kind == Kind::Flag {
            "write `#true` or `#false`".to_owned()
        } else if kind == Kind::Condition {
            "write if=\"{name == value}\"".to_owned()
        } else if let Kind::OneOf(words) = kind {
            format!("one of: {}", words.join(", "))
        } else {
            format!("quote it: \"{}\"", self.repr.trim_start_matches('#'))
        };
        problems.add(self.at, fault).label(format!("expected {}", wanted(kind))).help(help);
        None
    }

    fn text(&self, text: &str, kind: Kind, problems: &mut Problems) -> Option<Data> {
        // Only quoted strings have holes: raw ones and bare words are what they are.
        let template = if self.repr.starts_with('"') {
            match Template::parse(text, self.placed()) {
                Ok(template) => template,
                Err(error) => {
                    template_fault(error, problems);
                    return None;
                }
            }
        } else {
            Template::plain(text)
        };
        let holes_allowed = matches!(kind, Kind::Text | Kind::Path | Kind::Scalar | Kind::Registry);
        let Some(plain) = template.as_plain() else {
            if holes_allowed {
                return Some(Data::Text(template));
            }
            let fault = Fault::WrongValue(format!("{} cannot have holes", self.what));
            problems
                .add(self.at, fault)
                .label(format!("expected {}", wanted(kind)))
                .help("names are written as they are");
            return None;
        };
        match plain_fault(plain, kind) {
            None => Some(Data::Text(template)),
            Some(help) => {
                let message = format!("`{plain}` is not {}", wanted(kind));
                problems
                    .add(self.at, Fault::WrongValue(message))
                    .label(format!("{} is {}", self.what, wanted(kind)))
                    .help(help);
                None
            }
        }
    }
}

fn template_fault(error: TemplateError, problems: &mut Problems) {
    problems.add(error.at, Fault::WrongValue(error.message)).help(error.help);
}

/// The way out when a text is not of its kind.
/// A platform that images are built for, or the way to one.
fn platform(text: &str) -> Result<Platform, String> {
    let usual = "such as amd64, arm64 or \"linux/arm/v7\"".to_owned();
    let Ok(platform) = text.parse::<Platform>() else { return Err(usual) };
    match platform.is_known() {
        true => Ok(platform),
        false => Err(suggestion(&platform.architecture, ARCHITECTURES).unwrap_or(usual)),
    }
}

fn plain_fault(text: &str, kind: Kind) -> Option<String> {
    let (good, help) = match kind {
        Kind::OneOf(words) => {
            (words.contains(&text), suggestion(text, words.iter().copied()).unwrap_or_default())
        }
        Kind::Duration => (
            duration(text).is_some(),
            "a number with ms, s or m, at most an hour: \"150ms\"".to_owned(),
        ),
        Kind::Epoch => (text == "git", "`git` or seconds since 1970".to_owned()),
        Kind::Version => (is_semver(text), "such as \"0.1\" or \"1.2.3\"".to_owned()),
        Kind::Platform => (platform(text).is_ok(), platform(text).err().unwrap_or_default()),
        Kind::Name | Kind::Image | Kind::Registry | Kind::Secret | Kind::Pipeline | Kind::Path => {
            (!text.is_empty(), "write a name between the quotes".to_owned())
        }
        Kind::Text | Kind::Scalar | Kind::Flag | Kind::Condition => return None,
    };
    (!good).then_some(help)
}

const fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Name => "a name",
        Kind::Path => "a path",
        Kind::Scalar => "text, a whole number or a boolean",
        Kind::Flag => "a boolean",
        Kind::Condition => "a condition",
        Kind::OneOf(_) => "one of the known words",
        Kind::Duration => "a duration",
        Kind::Epoch => "`git` or a whole number",
        Kind::Platform => "a platform",
        Kind::Version => "a version in quotes",
        Kind::Image => "the name of an image",
        Kind::Registry => "the name of a registry",
        Kind::Secret => "the name of a secret",
        Kind::Pipeline => "the name of a pipeline",
    }
}

/// `150ms`, `2s`, `1m`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    const DURATION_MAX: Duration = Duration::from_secs(3600);
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().ok()?;
    let duration = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        _ => return None,
    };
    (duration <= DURATION_MAX).then_some(duration)
}
