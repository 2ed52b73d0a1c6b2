//! `{name}` in quoted strings and the conditions of `if=`: parsed with spans, then filled from [`Scope`].
//!
//! Total by construction: no functions, no loops, nothing to run.

use std::collections::BTreeMap;

use miette::SourceSpan;

use super::facts::Facts;
use super::facts::GIT_NAMES;

/// Most characters of one `{…}`.
const EXPRESSION_CHARS_MAX: usize = 1024;
/// Most `(` and `!` inside one another.
const CONDITION_DEPTH_MAX: usize = 32;
/// Filters behind `|`.
const FILTERS: &[&str] = &["slug", "lower", "upper"];

/// Text with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Hole(Hole),
}

/// `{name|filter ?? default}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) name: String,
    filters: Vec<String>,
    pub(super) default: Option<String>,
    pub(super) at: SourceSpan,
}

/// `if="{…}"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Always,
    Never,
    Is(Hole),
    Equal(Hole, String),
    In(Hole, Vec<String>),
    Not(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
}

/// Why a template or condition cannot be read: words, the way out, and the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TemplateError {
    pub(super) message: String,
    pub(super) help: String,
    pub(super) at: SourceSpan,
}

/// Why a hole stays empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Absent {
    pub(super) message: String,
    pub(super) help: String,
    pub(super) at: SourceSpan,
}

/// What names stand for.
pub(super) struct Scope<'a> {
    pub(super) facts: &'a Facts,
    pub(super) vars: &'a BTreeMap<String, String>,
    /// Name of the image that the text belongs to.
    pub(super) image: Option<&'a str>,
}

/// How the characters of a value sit in the text.
#[derive(Clone, Copy)]
pub(super) struct Placed {
    /// The whole value.
    pub(super) whole: SourceSpan,
    /// Offset of the first character, when characters and text go side by side (no escapes).
    pub(super) exact: Option<usize>,
}

impl Placed {
    fn span(self, from: usize, bytes: usize) -> SourceSpan {
        self.exact.map_or(self.whole, |start| (start + from, bytes).into())
    }
}

impl Template {
    pub(super) fn plain(text: &str) -> Self {
        Self { parts: vec![Part::Text(text.to_owned())] }
    }

    pub(super) fn parse(text: &str, placed: Placed) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut at = 0;
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            let next = rest.find(['{', '}']).unwrap_or(rest.len());
            plain.push_str(rest.get(..next).unwrap_or_default());
            at += next;
            let rest = text.get(at..).unwrap_or_default();
            if rest.starts_with("{{") || rest.starts_with("}}") {
                plain.extend(rest.chars().next());
                at += 2;
            } else if rest.starts_with('}') {
                plain.push('}');
                at += 1;
            } else if let Some(inner) = rest.strip_prefix('{') {
                let Some(end) = inner.find('}') else {
                    return Err(TemplateError {
                        message: "`{` without `}`".to_owned(),
                        help: "write `{{` for a brace that is meant as text".to_owned(),
                        at: placed.span(at, 1),
                    });
                };
                let written = inner.get(..end).unwrap_or_default();
                let span = placed.span(at, end + 2);
                parts.push(Part::Text(std::mem::take(&mut plain)));
                parts.push(Part::Hole(Hole::parse(written, span)?));
                at += end + 2;
            }
        }
        parts.push(Part::Text(plain));
        parts.retain(|part| *part != Part::Text(String::new()));
        Ok(Self { parts })
    }

    pub(super) fn holes(&self) -> impl Iterator<Item = &Hole> {
        self.parts.iter().filter_map(|part| match part {
            Part::Hole(hole) => Some(hole),
            Part::Text(_) => None,
        })
    }

    /// The text, when there are no holes.
    pub(super) fn as_plain(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    pub(super) fn fill(&self, scope: &Scope<'_>) -> Result<String, Absent> {
        let mut filled = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Hole(hole) => filled.push_str(&hole.fill(scope)?),
            }
        }
        Ok(filled)
    }
}

impl Hole {
    fn parse(written: &str, at: SourceSpan) -> Result<Self, TemplateError> {
        let fail =
            |message: String, help: &str| Err(TemplateError { message, help: help.to_owned(), at });
        if written.len() > EXPRESSION_CHARS_MAX {
            let message = format!("an expression has at most {EXPRESSION_CHARS_MAX} characters");
            return fail(message, "declare a variable for parts of it");
        }
        let (value, default) = match written.split_once("??") {
            Some((value, default)) => (value, Some(unquoted(default).to_owned())),
            None => (written, None),
        };
        let mut words = value.split('|').map(str::trim);
        let name = words.next().unwrap_or_default().to_owned();
        let filters: Vec<String> = words.map(str::to_owned).collect();
        if !is_name(&name) {
            return fail(
                format!("`{{{written}}}` is not a name"),
                "write `{name}`, `{git.sha}` or `{env.NAME ?? default}`; `{{` stands for a brace, \
                 and raw strings #\"…\"# have no holes",
            );
        }
        if let Some(unknown) = filters.iter().find(|filter| !FILTERS.contains(&filter.as_str())) {
            let message = format!("unknown filter `{unknown}`");
            return fail(message, "filters are `slug`, `lower` and `upper`");
        }
        Ok(Self { name, filters, default, at })
    }

    fn fill(&self, scope: &Scope<'_>) -> Result<String, Absent> {
        let found = scope.get(&self.name).or_else(|| self.default.clone());
        let mut value = found.ok_or_else(|| scope.absent(self))?;
        for filter in &self.filters {
            value = match filter.as_str() {
                "lower" => value.to_lowercase(),
                "upper" => value.to_uppercase(),
                _ => slug(&value),
            };
        }
        Ok(value)
    }
}

impl Scope<'_> {
    fn get(&self, name: &str) -> Option<String> {
        if let Some(name) = name.strip_prefix("git.") {
            return self.facts.git.as_ref().and_then(|git| git.get(name));
        }
        if let Some(name) = name.strip_prefix("env.") {
            return self.facts.env.get(name).cloned();
        }
        match (name, self.image) {
            ("image", Some(image)) => Some(image.to_owned()),
            _ => self.vars.get(name).cloned(),
        }
    }

    fn absent(&self, hole: &Hole) -> Absent {
        let name = &hole.name;
        let message = if let Some(variable) = name.strip_prefix("env.") {
            format!("the environment variable {variable} is not set")
        } else if name.starts_with("git.") && self.facts.git.is_none() {
            format!("`{{{name}}}` needs a git repository with a commit, and there is none")
        } else if name.starts_with("git.") {
            format!("`{{{name}}}` has no value here")
        } else {
            format!("the variable `{name}` has no value")
        };
        let help = match name.as_str() {
            "git.semver" => "the commit has no version tag such as v1.4.0; \
                             give a default: `{git.semver ?? 0.0.0-dev}`"
                .to_owned(),
            _ if name.contains('.') => format!("give a default: `{{{name} ?? value}}`"),
            _ => format!("give one in `vars`, or by --var {name}=VALUE"),
        };
        Absent { message, help, at: hole.at }
    }
}

/// Whether `git.x` is one of ours; other names are judged by whoever knows the variables.
pub(super) fn is_git_name(name: &str) -> bool {
    name.strip_prefix("git.").is_some_and(|name| GIT_NAMES.contains(&name))
}

fn is_name(name: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    match name.split_once('.') {
        Some(("git" | "env", rest)) => is_word(rest),
        Some(_) => name.split('.').all(is_word),
        None => is_word(name),
    }
}

fn unquoted(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')).unwrap_or(text)
}

/// Lower case, everything but letters and digits as single `-`, none at the ends: what a tag takes.
fn slug(text: &str) -> String {
    /// A tag has at most 128 characters, a host label 63.
    const SLUG_CHARS_MAX: usize = 63;
    let mut slug = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.truncate(SLUG_CHARS_MAX);
    slug.trim_end_matches('-').to_owned()
}

impl Condition {
    /// Parses the value of `if=`; `placed` is its place.
    pub(super) fn parse(text: &str, placed: Placed) -> Result<Self, TemplateError> {
        let help =
            "write if=\"{channel == stable}\"; there are ==, !=, in [a, b], &&, ||, ! and ( )";
        let trimmed = text.trim();
        let inner = trimmed.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let fail =
            |message: String| TemplateError { message, help: help.to_owned(), at: placed.whole };
        let inner = inner.ok_or_else(|| fail("a condition stands in braces".to_owned()))?;
        if inner.len() > EXPRESSION_CHARS_MAX {
            return Err(fail(format!("a condition has at most {EXPRESSION_CHARS_MAX} characters")));
        }
        let words = words(inner).map_err(fail)?;
        let mut parser = Parser { words: &words, at: 0, span: placed.whole };
        let condition = parser.any(0).map_err(fail)?;
        match parser.peek() {
            None => Ok(condition),
            Some(word) => Err(fail(format!("`{word}` is not expected in a condition here"))),
        }
    }

    pub(super) fn holes(&self) -> Vec<&Hole> {
        match self {
            Self::Always | Self::Never => Vec::new(),
            Self::Is(hole) | Self::Equal(hole, _) | Self::In(hole, _) => vec![hole],
            Self::Not(inner) => inner.holes(),
            Self::And(left, right) | Self::Or(left, right) => {
                let mut holes = left.holes();
                holes.extend(right.holes());
                holes
            }
        }
    }

    pub(super) fn holds(&self, scope: &Scope<'_>) -> Result<bool, Absent> {
        Ok(match self {
            Self::Always => true,
            Self::Never => false,
            Self::Is(hole) => !matches!(hole.fill(scope)?.as_str(), "" | "false" | "0" | "no"),
            Self::Equal(hole, text) => hole.fill(scope)? == *text,
            Self::In(hole, list) => list.contains(&hole.fill(scope)?),
            Self::Not(inner) => !inner.holds(scope)?,
            Self::And(left, right) => left.holds(scope)? && right.holds(scope)?,
            Self::Or(left, right) => left.holds(scope)? || right.holds(scope)?,
        })
    }
}

/// Splits a condition into words, operators and 'quoted' literals (kept with their quotes).
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let two = ["==", "!=", "&&", "||", "??"].into_iter().find(|two| rest.starts_with(two));
        let length = if let Some(two) = two {
            two.len()
        } else if first == '\'' {
            let end = rest.chars().skip(1).position(|c| c == '\'');
            let end = end.ok_or("a quote is not closed")?;
            rest.chars().take(end + 2).map(char::len_utf8).sum()
        } else if "!()[],|".contains(first) {
            1
        } else if "=&{}\"".contains(first) {
            return Err(format!("`{first}` is not expected in a condition"));
        } else {
            rest.find(|c: char| c.is_whitespace() || "!=()[],|&{}'\"?".contains(c))
                .unwrap_or(rest.len())
                .max(first.len_utf8())
        };
        let (word, more) = rest.split_at(length);
        words.push(word.to_owned());
        rest = more.trim_start();
    }
    Ok(words)
}

struct Parser<'w> {
    words: &'w [String],
    at: usize,
    span: SourceSpan,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&str> {
        self.words.get(self.at).map(String::as_str)
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        self.at += usize::from(found);
        found
    }

    fn any(&mut self, depth: usize) -> Result<Condition, String> {
        let mut left = self.all(depth)?;
        while self.take("||") {
            left = Condition::Or(Box::new(left), Box::new(self.all(depth)?));
        }
        Ok(left)
    }

    fn all(&mut self, depth: usize) -> Result<Condition, String> {
        let mut left = self.one(depth)?;
        while self.take("&&") {
            left = Condition::And(Box::new(left), Box::new(self.one(depth)?));
        }
        Ok(left)
    }

    fn one(&mut self, depth: usize) -> Result<Condition, String> {
        if depth > CONDITION_DEPTH_MAX {
            return Err(format!("a condition is at most {CONDITION_DEPTH_MAX} levels deep"));
        }
        if self.take("!") {
            return Ok(Condition::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.take("(") {
            let inner = self.any(depth + 1)?;
            return if self.take(")") { Ok(inner) } else { Err("`(` without `)`".to_owned()) };
        }
        let hole = self.hole()?;
        if self.take("==") {
            return Ok(Condition::Equal(hole, self.literal()?));
        }
        if self.take("!=") {
            return Ok(Condition::Not(Box::new(Condition::Equal(hole, self.literal()?))));
        }
        if self.take("in") {
            return Ok(Condition::In(hole, self.list()?));
        }
        Ok(Condition::Is(hole))
    }

    fn hole(&mut self) -> Result<Hole, String> {
        let name = self.next("a name")?;
        if !is_name(&name) {
            return Err(format!("`{name}` is not a name; the left side of a comparison is one"));
        }
        let mut filters = Vec::new();
        while self.take("|") {
            let filter = self.next("a filter")?;
            if !FILTERS.contains(&filter.as_str()) {
                return Err(format!("unknown filter `{filter}`"));
            }
            filters.push(filter);
        }
        let default = if self.take("??") { Some(self.literal()?) } else { None };
        Ok(Hole { name, filters, default, at: self.span })
    }

    fn literal(&mut self) -> Result<String, String> {
        let word = self.next("a value")?;
        if matches!(word.as_str(), "==" | "!=" | "&&" | "||" | "??" | "!")
            || "()[],|".contains(word.as_str())
        {
            return Err(format!("`{word}` stands where a value is expected"));
        }
        Ok(unquoted(&word).to_owned())
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        if !self.take("[") {
            return Err("`in` is followed by a list such as [a, b]".to_owned());
        }
        let mut list = vec![self.literal()?];
        while self.take(",") {
            list.push(self.literal()?);
        }
        if self.take("]") { Ok(list) } else { Err("`[` without `]`".to_owned()) }
    }

    fn next(&mut self, wanted: &str) -> Result<String, String> {
        let word = self.peek().map(str::to_owned);
        self.at += 1;
        word.ok_or_else(|| format!("the condition ends where {wanted} is expected"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed() -> Placed {
        Placed { whole: (0, 0).into(), exact: Some(0) }
    }

    fn facts() -> (Facts, BTreeMap<String, String>) {
        let git = crate::project::GitFacts {
            sha: "0123456789".into(),
            short: "0123".into(),
            branch: Some("feature/New_Thing".into()),
            ..Default::default()
        };
        let mut facts = Facts { git: Some(git), ..Facts::default() };
        facts.env.insert("SET".into(), "yes".into());
        let vars = BTreeMap::from([("channel".to_owned(), "stable".to_owned())]);
        (facts, vars)
    }

    #[test]
    fn holes_are_filled_and_doubled_braces_are_text() {
        let (facts, vars) = facts();
        let scope = Scope { facts: &facts, vars: &vars, image: Some("api") };
        for (text, filled) in [
            ("", Ok("")),
            ("a", Ok("a")),
            ("{channel}-{git.short}", Ok("stable-0123")),
            ("{{channel}}", Ok("{channel}")),
            ("{git.branch|slug}", Ok("feature-new-thing")),
            ("{env.UNSET ?? y}{env.SET ?? y}", Ok("yyes")),
            ("{env.UNSET ?? '' }", Ok("")),
            ("{image}", Ok("api")),
            ("{git.tag}", Err("`{git.tag}` has no value here")),
            ("{env.UNSET}", Err("the environment variable UNSET is not set")),
        ] {
            let template = Template::parse(text, placed()).unwrap();
            let shown = template.fill(&scope).map_err(|absent| absent.message);
            assert_eq!(shown, filled.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
        for broken in ["{", "{}", "{a b}", "{a|rot13}", "{ }", "${1}"] {
            assert!(Template::parse(broken, placed()).is_err(), "{broken}");
        }
    }

    #[test]
    fn conditions_follow_the_usual_precedence() {
        let (facts, vars) = facts();
        let scope = Scope { facts: &facts, vars: &vars, image: None };
        for (text, holds) in [
            ("{channel == stable}", true),
            ("{channel != stable}", false),
            ("{!channel == stable}", false),
            ("{channel in [dev, 'stable']}", true),
            ("{channel in [dev]}", false),
            ("{channel == dev && channel == dev || channel == stable}", true),
            ("{channel == dev && (channel == dev || channel == stable)}", false),
            ("{env.UNSET ?? false}", false),
            ("{env.SET}", true),
            ("{git.branch|slug == feature-new-thing}", true),
            ("{channel == 'sta ble'}", false),
        ] {
            let condition = Condition::parse(text, placed()).unwrap();
            assert_eq!(condition.holds(&scope), Ok(holds), "{text}");
        }
        let deep = format!("{{{}channel}}", "!".repeat(500));
        for broken in
            ["channel", "{}", "{==}", "{a ==}", "{a = b}", "{(a}", "{a b}", "{a in b}", &deep]
        {
            assert!(Condition::parse(broken, placed()).is_err(), "{broken}");
        }
    }
}
