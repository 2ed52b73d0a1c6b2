//! Heredocs: the words that announce them, and their bodies.

use crate::dockerfile::ast::Heredoc;
use crate::dockerfile::expand::{ExpandError, run};
use crate::dockerfile::words::{Escapes, Quotes, Rules, Unset};

use super::lines::Reader;

/// Everything stays as typed: this pass only finds words.
const AS_TYPED: Rules =
    Rules { escape: '\\', quotes: Quotes::Keep, escapes: Escapes::Keep, unset: Unset::Keep };

/// The heredocs that `line` announces, in order, without bodies.
pub(super) fn announced(line: &str) -> Result<Vec<Heredoc>, ExpandError> {
    // A line that the builder's lexer cannot read (an odd quote) announces nothing: the shell will tell.
    let Ok(lexed) = run(line, AS_TYPED, &|_| None) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for word in &lexed.words {
        found.extend(heredoc_of(word)?);
    }
    Ok(found)
}

/// `3<<-"EOF"` as a heredoc without body; `None` when `word` is none.
pub(super) fn heredoc_of(word: &str) -> Result<Option<Heredoc>, ExpandError> {
    let digits = word.len() - word.trim_start_matches(|l: char| l.is_ascii_digit()).len();
    let (fd, rest) = word.split_at(digits);
    let Some(rest) = rest.strip_prefix("<<") else { return Ok(None) };
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let plain = Rules { quotes: Quotes::Remove, escapes: Escapes::Remove, ..AS_TYPED };
    let typed = Rules { quotes: Quotes::Keep, ..plain };
    let names = run(rest, plain, &|_| None)?.words;
    let typed_names = run(rest, typed, &|_| None)?.words;
    let ([name], [typed_name]) = (names.as_slice(), typed_names.as_slice()) else {
        return Ok(None);
    };
    Ok(Some(Heredoc {
        name: name.clone(),
        content: String::new(),
        expand: quotes_in(name) == quotes_in(typed_name),
        chomp,
        fd: fd.parse().unwrap_or(0),
    }))
}

fn quotes_in(text: &str) -> usize {
    text.matches(['\'', '"']).count()
}

/// Takes the body of `heredoc` from `reader`, tabs as typed; `false` when the file ends before it does.
pub(super) fn read_body(heredoc: &mut Heredoc, reader: &mut Reader<'_>) -> bool {
    while let Some(line) = reader.physical() {
        let mut candidate = line.trimmed();
        if heredoc.chomp {
            candidate = candidate.trim_start_matches('\t');
        }
        if candidate == heredoc.name {
            return true;
        }
        heredoc.content.push_str(line.text);
    }
    false
}

/// The body without the tabs at the start of its lines, when `<<-` asked for that.
pub(super) fn without_tabs(heredoc: &Heredoc) -> String {
    if !heredoc.chomp {
        return heredoc.content.clone();
    }
    heredoc.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}
