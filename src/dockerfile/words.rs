//! The shell lexer: one pass over a text that expands variables, takes quotes and escapes away, and finds words.
//!
//! Its rules are BuildKit's, not a shell's: no command substitution, no `${x:=y}`, and `<<` binds to the word after it.

use std::{borrow::Cow, collections::HashSet};

use super::expand::RESULT_BYTES_MAX;
use super::shell_pattern::{Budget, Greed, Pattern, replace_all, replace_first};

/// Deepest nesting of `${a:-${b:-…}}`; each level costs stack.
const DEPTH_MAX: usize = 100;

/// Most bytes that one expansion may produce on the way, thrown away ones included.
const WORK_BYTES_MAX: usize = 16 << 20;

/// What a [`Lexer`] does with each kind of character.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// The character that takes meaning away from the next one.
    pub(super) escape: char,
    pub(super) quotes: Quotes,
    pub(super) escapes: Escapes,
    pub(super) unset: Unset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quotes {
    /// They protect what they enclose, and go.
    Remove,
    /// They protect what they enclose, and stay.
    Keep,
    /// They are ordinary characters.
    Ordinary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escapes {
    Remove,
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unset {
    /// A variable without value is empty.
    Empty,
    /// It stays as typed.
    Keep,
}

/// The result of a whole text.
#[derive(Clone, Debug, Default)]
pub(super) struct Lexed {
    pub(super) text: String,
    pub(super) words: Vec<String>,
    pub(super) unset: Vec<String>,
    pub(super) template: bool,
}

/// What is wrong with a text.
pub(super) type Reason = Cow<'static, str>;

/// Reads one text from front to back.
pub(super) struct Lexer<'a> {
    rest: &'a str,
    rules: Rules,
    env: &'a dyn Fn(&str) -> Option<String>,
    unset: Vec<String>,
    unset_seen: HashSet<String>,
    /// Whether a replacement of `${x//a/b}` had a `$` in it.
    template: bool,
    depth: usize,
    work_bytes: usize,
    work_bytes_max: usize,
    result_bytes_max: usize,
    budget: Budget,
}

#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
}

impl Words {
    fn push(&mut self, letter: char) {
        if letter.is_whitespace() {
            self.end();
        } else {
            self.word.push(letter);
        }
    }

    fn end(&mut self) {
        if !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
        }
    }

    fn finish(mut self) -> Vec<String> {
        self.end();
        self.done
    }
}

const MISSING_BRACE: Reason = Cow::Borrowed("syntax error: missing '}'");

impl<'a> Lexer<'a> {
    pub(super) fn new(
        text: &'a str,
        rules: Rules,
        env: &'a dyn Fn(&str) -> Option<String>,
    ) -> Self {
        Self {
            rest: text,
            rules,
            env,
            unset: Vec::new(),
            unset_seen: HashSet::new(),
            template: false,
            depth: 0,
            work_bytes: 0,
            work_bytes_max: text.len() + WORK_BYTES_MAX,
            // A text without variables never grows, however long it is.
            result_bytes_max: text.len() + RESULT_BYTES_MAX,
            budget: Budget::default(),
        }
    }

    /// Reads everything: the text and its words.
    pub(super) fn all(&mut self) -> Result<(String, Vec<String>), Reason> {
        self.until(None)
    }

    pub(super) fn into_unset(self) -> Vec<String> {
        self.unset
    }

    pub(super) fn has_template(&self) -> bool {
        self.template
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut letters = self.rest.chars();
        let letter = letters.next();
        self.rest = letters.as_str();
        letter
    }

    /// Reads up to `stop`, or to the end when there is none; `stop` itself is taken and dropped.
    fn until(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), Reason> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(letter) = self.peek() {
            if Some(letter) == stop {
                self.next();
                return Ok((text, words.finish()));
            }
            let special = self.rules.quotes != Quotes::Ordinary;
            match letter {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|letter| words.push(letter));
                    text.push_str(&value);
                }
                '\'' | '"' | '<' if special => {
                    let raw = match letter {
                        '\'' => self.single_quoted()?,
                        '"' => self.double_quoted()?,
                        _ => self.heredoc_mark(),
                    };
                    words.word.push_str(&raw);
                    text.push_str(&raw);
                }
                _ => {
                    self.next();
                    self.plain(letter, &mut text, &mut words);
                }
            }
            self.check_size(&text)?;
        }
        match stop {
            Some(stop) => {
                Err(format!("unexpected end of statement while looking for matching {stop}").into())
            }
            None => Ok((text, words.finish())),
        }
    }

    /// A character without meaning, or the escape and what it protects.
    fn plain(&mut self, letter: char, text: &mut String, words: &mut Words) {
        if letter != self.rules.escape {
            words.push(letter);
            text.push(letter);
            return;
        }
        if self.rules.escapes == Escapes::Keep {
            words.word.push(letter);
            text.push(letter);
        }
        if let Some(protected) = self.next() {
            words.word.push(protected);
            text.push(protected);
        }
    }

    fn check_size(&self, text: &str) -> Result<(), Reason> {
        if text.len() > self.result_bytes_max {
            return Err(format!("the result is longer than {} bytes", self.result_bytes_max).into());
        }
        Ok(())
    }

    fn single_quoted(&mut self) -> Result<String, Reason> {
        let mut letters = self.rest.char_indices().skip(1);
        let Some((end, _)) = letters.find(|(_, letter)| *letter == '\'') else {
            self.rest = "";
            return Err(
                "unexpected end of statement while looking for matching single-quote".into()
            );
        };
        let (quoted, rest) = self.rest.split_at(end + 1);
        self.rest = rest;
        Ok(match self.rules.quotes {
            Quotes::Keep => quoted.to_owned(),
            Quotes::Remove | Quotes::Ordinary => quoted.trim_matches('\'').to_owned(),
        })
    }

    fn double_quoted(&mut self) -> Result<String, Reason> {
        let mut text = String::new();
        let keep = self.rules.quotes == Quotes::Keep;
        text.extend(self.next().filter(|_| keep));
        loop {
            self.check_size(&text)?;
            match self.peek() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching double-quote"
                            .into(),
                    );
                }
                Some('"') => {
                    text.extend(self.next().filter(|_| keep));
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.dollar()?),
                Some(letter) => {
                    self.next();
                    self.plain_in_double_quotes(letter, &mut text);
                }
            }
        }
    }

    /// Inside double quotes the escape protects only `"`, `$` and itself; before anything else it is a character.
    fn plain_in_double_quotes(&mut self, letter: char, text: &mut String) {
        if letter != self.rules.escape {
            text.push(letter);
            return;
        }
        if self.rules.escapes == Escapes::Keep {
            text.push(letter);
        }
        match self.peek() {
            None => {}
            Some(protected) if protected == '"' || protected == '$' || protected == letter => {
                self.next();
                text.push(protected);
            }
            Some(_) => text.push(letter),
        }
    }

    /// `<<` takes the blanks after it into the word, so that `<< EOF` is one.
    fn heredoc_mark(&mut self) -> String {
        self.next();
        if self.peek() != Some('<') {
            return "<".to_owned();
        }
        self.next();
        let blanks = self.rest.len() - self.rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
        let (taken, rest) = self.rest.split_at(blanks);
        self.rest = rest;
        format!("<<{taken}")
    }

    fn dollar(&mut self) -> Result<String, Reason> {
        self.next();
        let value = if self.peek() == Some('{') {
            if self.depth == DEPTH_MAX {
                return Err(format!("substitutions are nested more than {DEPTH_MAX} deep").into());
            }
            self.depth += 1;
            let value = self.braced();
            self.depth -= 1;
            value?
        } else {
            let name = self.name();
            match (name.as_str(), self.lookup(&name)) {
                ("", _) => "$".to_owned(),
                (_, Some(value)) => value,
                (_, None) if self.rules.unset == Unset::Keep => format!("${name}"),
                (_, None) => String::new(),
            }
        };
        self.work_bytes += value.len();
        if self.work_bytes > self.work_bytes_max {
            let limit = self.work_bytes_max;
            return Err(format!("expanding it takes more than {limit} bytes").into());
        }
        Ok(value)
    }

    fn braced(&mut self) -> Result<String, Reason> {
        self.next();
        match self.peek() {
            None => return Err(MISSING_BRACE),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".into()),
            Some(_) => {}
        }
        let name = self.name();
        let modifier = self.next();
        match modifier {
            Some('}') => {
                let value = self.lookup(&name);
                Ok(value.unwrap_or_else(|| self.unset_text(|| format!("${{{name}}}"))))
            }
            Some(':') => {
                let second = self.next();
                let typed = format!(":{}", shown(second));
                self.modified(&name, second, &typed)
            }
            Some('+' | '-' | '?' | '#' | '%') => {
                let typed = shown(modifier).to_string();
                self.modified(&name, modifier, &typed)
            }
            Some('/') => self.replaced(&name),
            other => Err(unsupported(&shown(other).to_string())),
        }
    }

    fn unset_text(&self, typed: impl FnOnce() -> String) -> String {
        match self.rules.unset {
            Unset::Keep => typed(),
            Unset::Empty => String::new(),
        }
    }

    /// Reads up to `stop` under `escapes`; running out of text is told as `missing`.
    fn operand(
        &mut self,
        stop: char,
        escapes: Escapes,
        missing: &'static str,
    ) -> Result<String, Reason> {
        let before = std::mem::replace(&mut self.rules.escapes, escapes);
        let read = self.until(Some(stop));
        self.rules.escapes = before;
        match read {
            Ok((text, _)) => Ok(text),
            Err(_) if self.rest.is_empty() => Err(missing.into()),
            Err(reason) => Err(reason),
        }
    }

    /// `${name:-word}` and its kin; `typed` is the modifier as it stands there.
    fn modified(
        &mut self,
        name: &str,
        modifier: Option<char>,
        typed: &str,
    ) -> Result<String, Reason> {
        let escapes = match modifier {
            Some('#' | '%') => Escapes::Keep,
            // The words of `-`, `+` and `?` lose their escapes even where the text around keeps them.
            _ => Escapes::Remove,
        };
        let word = self.operand('}', escapes, "syntax error: missing '}'")?;
        let value = self.lookup(name);
        if value.is_none() && self.rules.unset == Unset::Keep {
            return Ok(format!("${{{name}{typed}{word}}}"));
        }
        let missing = match &value {
            None => true,
            Some(value) => typed.starts_with(':') && value.is_empty(),
        };
        match modifier {
            Some('-') => Ok(if missing { word } else { value.unwrap_or_default() }),
            Some('+') => Ok(if missing { String::new() } else { word }),
            Some('?') if missing => {
                let default = match value {
                    None => "is not allowed to be unset",
                    Some(_) => "is not allowed to be empty",
                };
                let message = if word.is_empty() { default } else { &word };
                Err(format!("{name}: {message}").into())
            }
            Some('?') => Ok(value.unwrap_or_default()),
            Some('#') => self.trimmed(&word, '#', &value.unwrap_or_default()),
            Some('%') => self.trimmed(&word, '%', &value.unwrap_or_default()),
            _ => Err(unsupported(typed)),
        }
    }

    /// `#`, `##` cut at the front of `value`, `%`, `%%` at its end; a doubled `mark` still leads `word`.
    fn trimmed(&mut self, word: &str, mark: char, value: &str) -> Result<String, Reason> {
        let (greed, typed) = match word.strip_prefix(mark) {
            Some(rest) => (Greed::Longest, rest),
            None => (Greed::Shortest, word),
        };
        if mark == '#' {
            let pattern = Pattern::new(typed).map_err(|reason| invalid_pattern(typed, &reason))?;
            let letters: Vec<char> = value.chars().collect();
            let cut =
                pattern.prefix(&letters, greed, &mut self.budget).map_err(Reason::Borrowed)?;
            return Ok(letters.into_iter().skip(cut).collect());
        }
        // The end of the text is the front of the reversed one; messages show the pattern reversed, too.
        let reversed = Pattern::reversed_text(typed);
        let pattern =
            Pattern::new(&reversed).map_err(|reason| invalid_pattern(&reversed, &reason))?;
        let letters: Vec<char> = value.chars().rev().collect();
        let cut = pattern.prefix(&letters, greed, &mut self.budget).map_err(Reason::Borrowed)?;
        Ok(letters.into_iter().skip(cut).rev().collect())
    }

    fn replaced(&mut self, name: &str) -> Result<String, Reason> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.operand('/', Escapes::Keep, "syntax error: missing '/' in ${}")?;
        let replacement = self.operand('}', Escapes::Keep, "syntax error: missing '}'")?;
        let value = self.lookup(name);
        if value.is_none() && self.rules.unset == Unset::Keep {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let compiled =
            Pattern::new(&pattern).map_err(|reason| invalid_pattern(&pattern, &reason))?;
        let value = value.unwrap_or_default();
        self.template |= all && replacement.contains('$');
        let replace = if all { replace_all } else { replace_first };
        replace(&compiled, &value, &replacement, &mut self.budget).map_err(Reason::Borrowed)
    }

    /// A name: digits, or one special character, or letters, digits and `_`.
    fn name(&mut self) -> String {
        let rest = self.rest;
        let first = self.peek();
        let end = match first {
            Some(digit) if digit.is_ascii_digit() => rest.find(|l: char| !l.is_ascii_digit()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => Some(1),
            _ => rest.find(|letter: char| {
                !(letter.is_alphabetic() || letter.is_ascii_digit() || letter == '_')
            }),
        };
        let (name, rest) = rest.split_at(end.unwrap_or(rest.len()));
        self.rest = rest;
        name.to_owned()
    }

    fn lookup(&mut self, name: &str) -> Option<String> {
        if name.is_empty() {
            return None;
        }
        let value = (self.env)(name);
        self.work_bytes += value.as_ref().map_or(0, String::len);
        if value.is_none() && self.unset_seen.insert(name.to_owned()) {
            self.unset.push(name.to_owned());
        }
        value
    }
}

/// A character for a message; the end of the text is shown as Go shows it.
fn shown(letter: Option<char>) -> char {
    letter.unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn unsupported(modifier: &str) -> Reason {
    format!("unsupported modifier ({modifier}) in substitution").into()
}

fn invalid_pattern(pattern: &str, reason: &str) -> Reason {
    format!("invalid pattern ({pattern}) in substitution: {reason}").into()
}
