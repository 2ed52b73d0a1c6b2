//! The builder's small shell: variables, quotes and escapes of one text.
//!
//! Knows nothing of instructions: what is expanded, and over which variables, is the caller's business.

use thiserror::Error;

use super::quote::quoted;
use super::words::{Escapes, Lexed, Lexer, Quotes, Rules, Unset};

/// How much longer than its text the result of an expansion may be, in bytes: `ENV` lines that double a value sixty times must not fill the memory.
pub const RESULT_BYTES_MAX: usize = 1 << 20;

/// What became of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The result, without quotes.
    pub text: String,
    /// Variables that were asked for and are not set, each once, in order (for the check on undefined variables).
    pub unset: Vec<String>,
    /// Whether `${x//a/b}` put in a `b` with `$`, which stands for a group of the match.
    pub template: bool,
}

/// Why a text cannot be expanded; the message is BuildKit's (`failed to process "${x:?}": …`).
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("failed to process {}: {reason}", quoted(source_text))]
pub struct ExpandError {
    /// The whole text that was being expanded.
    pub source_text: String,
    /// What is wrong with it.
    pub reason: String,
    /// Variables that were asked for and are not set, up to the place of the error.
    pub unset: Vec<String>,
}

impl Expanded {
    fn of(Lexed { text, unset, template, .. }: Lexed) -> Self {
        Self { text, unset, template }
    }
}

/// Expands variables in `word`, and removes quotes and escapes.
///
/// # Errors
///
/// On bad syntax, on `${x:?…}` of a missing variable, and past the limits.
pub fn expand(
    word: &str,
    escape: char,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Expanded, ExpandError> {
    let rules =
        Rules { escape, quotes: Quotes::Remove, escapes: Escapes::Remove, unset: Unset::Empty };
    run(word, rules, env).map(Expanded::of)
}

/// Expands variables in the body of a heredoc that COPY or ADD takes: quotes stay, `\` escapes.
///
/// # Errors
///
/// As [`expand`].
pub fn expand_body(
    body: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Expanded, ExpandError> {
    let rules = Rules {
        escape: '\\',
        quotes: Quotes::Ordinary,
        escapes: Escapes::Remove,
        unset: Unset::Empty,
    };
    run(body, rules, env).map(Expanded::of)
}

/// Expands `text`, then splits the result at the blanks that no quote protects.
///
/// # Errors
///
/// As [`expand`].
pub fn expand_words(
    text: &str,
    escape: char,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, ExpandError> {
    let rules =
        Rules { escape, quotes: Quotes::Remove, escapes: Escapes::Remove, unset: Unset::Empty };
    run(text, rules, env).map(|lexed| lexed.words)
}

/// Expands under any rules.
pub(super) fn run(
    text: &str,
    rules: Rules,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Lexed, ExpandError> {
    let mut lexer = Lexer::new(text, rules, env);
    match lexer.all() {
        Ok((text, words)) => {
            let template = lexer.has_template();
            Ok(Lexed { text, words, unset: lexer.into_unset(), template })
        }
        Err(reason) => Err(ExpandError {
            source_text: text.to_owned(),
            reason: reason.to_string(),
            unset: lexer.into_unset(),
        }),
    }
}

#[cfg(test)]
#[path = "expand_tests.rs"]
mod tests;
