//! The text after a keyword → flags and arguments, in each of the forms that instructions have.

use crate::dockerfile::ast::KeyValue;
use crate::dockerfile::quote::quoted;

/// Blanks that separate arguments.
pub(super) const BLANKS: [char; 5] = [' ', '\t', '\u{b}', '\u{c}', '\r'];

const NOT_STRINGS: &str = "when using JSON array syntax, arrays must be comprised of strings only";

/// A line taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) keyword: String,
    /// Leading `--` words, quotes removed.
    pub(super) flags: Vec<String>,
    /// What follows them.
    pub(super) rest: String,
}

/// Splits a logical line.
pub(super) fn split_command(line: &str) -> Command {
    let line = line.trim();
    let Some((keyword, rest)) = line.split_once(BLANKS) else {
        return Command { keyword: line.to_owned(), flags: Vec::new(), rest: String::new() };
    };
    let (flags, rest) = split_flags(rest);
    Command { keyword: keyword.to_owned(), flags, rest: rest.trim().to_owned() }
}

/// Takes leading `--` words off; a bare `--` ends them and goes. The escape is `\` here, always.
fn split_flags(line: &str) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = line.trim_start();
    while rest.starts_with("--") {
        let (word, after) = flag_word(rest);
        rest = after;
        if word == "--" {
            return (flags, rest);
        }
        flags.push(word);
        rest = rest.trim_start();
    }
    (flags, rest)
}

fn flag_word(text: &str) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut letters = text.chars();
    loop {
        let before = letters.as_str();
        let Some(letter) = letters.next() else { return (word, "") };
        match (quote, letter) {
            (None, _) if letter.is_whitespace() => return (word, before),
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), _) if open == letter => quote = None,
            (_, '\\') => word.extend(letters.next()),
            _ => word.push(letter),
        }
    }
}

/// Arguments between blanks.
pub(super) fn blank_separated(rest: &str) -> Vec<String> {
    if rest.is_empty() {
        return Vec::new();
    }
    let mut words = Vec::new();
    let mut rest = rest;
    while let Some((word, after)) = rest.split_once(BLANKS) {
        words.push(word.to_owned());
        rest = after.trim_start_matches(BLANKS);
    }
    words.push(rest.to_owned());
    words
}

/// A JSON list of strings, if `rest` is one; anything that is no JSON list is none.
pub(super) fn json_list(rest: &str) -> Result<Option<Vec<String>>, String> {
    let rest = rest.trim_start();
    if !rest.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(rest) else {
        return Ok(None);
    };
    let strings = values.into_iter().map(|value| {
        if let serde_json::Value::String(text) = value {
            Ok(text)
        } else {
            Err(NOT_STRINGS.to_owned())
        }
    });
    strings.collect::<Result<_, _>>().map(Some)
}

/// Words as a shell sees them, quotes and escapes still in place.
pub(super) fn quoted_words(rest: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut letters = rest.chars().peekable();
    while let Some(letter) = letters.next() {
        if quote.is_none() && letter.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        match quote {
            None if letter == '\'' || letter == '"' => quote = Some(letter),
            Some(open) if open == letter => quote = None,
            _ => {}
        }
        if letter == escape && quote != Some('\'') {
            // An escape at the very end goes.
            let Some(escaped) = letters.next() else { break };
            word.push(letter);
            word.push(escaped);
        } else {
            word.push(letter);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// `ENV` and `LABEL`: `name=value …`, or `name value` to the end of the line.
pub(super) fn key_values(
    rest: &str,
    instruction: &str,
    escape: char,
) -> Result<Vec<KeyValue>, String> {
    let words = quoted_words(rest, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        let Some((key, value)) = rest.split_once(BLANKS) else {
            return Err(format!("{instruction} must have two arguments"));
        };
        let value = value.trim_start_matches(BLANKS).to_owned();
        return Ok(vec![KeyValue { key: key.to_owned(), value, legacy: true }]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((key, value)) => {
            Ok(KeyValue { key: key.to_owned(), value: value.to_owned(), legacy: false })
        }
        None => Err(format!(
            "Syntax error - can't find = in {}. Must be of the form: name=value",
            quoted(word)
        )),
    };
    words.iter().map(pair).collect()
}
