//! Physical lines → logical lines: directives, comments, continuations.
//!
//! Knows the shape of a file and nothing of what instructions mean; heredoc bodies are taken on demand.

use std::{collections::HashSet, ops::Range};

use crate::dockerfile::ast::{Directives, Location};

/// Longest physical line in bytes, without its line feed.
const LINE_BYTES_MAX: usize = 65_535;

/// A physical line: its number from 1, its bytes with the line feed, its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) number: usize,
    pub(super) text: &'a str,
    pub(super) start: usize,
}

impl Line<'_> {
    /// Without line feed and carriage returns.
    pub(super) fn trimmed(&self) -> &str {
        self.text.trim_end_matches(['\r', '\n'])
    }

    pub(super) fn location(&self) -> Location {
        Location {
            span: self.start..self.start + self.trimmed().len(),
            lines: (self.number, self.number),
        }
    }
}

/// One instruction's line, continuations joined.
#[derive(Clone, Debug)]
pub(super) struct Logical {
    pub(super) text: String,
    pub(super) location: Location,
    pub(super) comments: Vec<String>,
    /// Whether blank lines stood inside.
    pub(super) gaps: bool,
}

/// What is wrong with the shape of a file, and where.
#[derive(Clone, Debug)]
pub(super) struct Misshapen {
    pub(super) message: String,
    pub(super) location: Location,
    /// The way out.
    pub(super) help: Option<String>,
}

/// Hands out the lines of one text.
pub(super) struct Reader<'a> {
    text: &'a str,
    position: usize,
    number: usize,
    too_long: Option<Line<'a>>,
    pub(super) directives: Directives,
    directives_open: bool,
    directives_seen: HashSet<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let bom = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        Self {
            text,
            position: bom,
            number: 0,
            too_long: None,
            directives: Directives { syntax: None, escape: '\\', check: None },
            directives_open: true,
            directives_seen: HashSet::new(),
        }
    }

    /// Takes comments that look like directives for comments.
    pub(super) fn close_directives(&mut self) {
        self.directives_open = false;
    }

    /// The directives alone, as far as they are well formed.
    pub(super) fn all_directives(mut self) -> Directives {
        while self.directives_open
            && let Some(line) = self.physical()
            && self.directive(line.trimmed().trim_start(), &line).is_ok()
        {}
        self.directives
    }

    /// How many lines were handed out.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// The line that stopped reading because it is too long.
    pub(super) fn too_long(&self) -> Option<Misshapen> {
        let line = self.too_long?;
        let message = format!("dockerfile line greater than max allowed size of {LINE_BYTES_MAX}");
        Some(Misshapen { message, location: line.location(), help: None })
    }

    /// The next physical line.
    pub(super) fn physical(&mut self) -> Option<Line<'a>> {
        if self.too_long.is_some() {
            return None;
        }
        let rest = self.text.get(self.position..).filter(|rest| !rest.is_empty());
        // A lone byte order mark is a line, too.
        if rest.is_none() && !(self.number == 0 && self.position > 0) {
            return None;
        }
        let rest = rest.unwrap_or_default();
        let length = memchr(rest).map_or(rest.len(), |feed| feed + 1);
        let (text, _) = rest.split_at(length);
        let line = Line { number: self.number + 1, text, start: self.position };
        if text.strip_suffix('\n').unwrap_or(text).len() > LINE_BYTES_MAX {
            self.too_long = Some(line);
            return None;
        }
        self.position += length;
        self.number += 1;
        Some(line)
    }

    /// The next logical line.
    pub(super) fn logical(&mut self) -> Result<Option<Logical>, Misshapen> {
        let mut comments = Vec::new();
        while let Some(line) = self.physical() {
            let trimmed = line.trimmed().trim_start();
            let is_directive = self.directive(trimmed, &line)?;
            if let Some(comment) = trimmed.strip_prefix('#') {
                match comment.trim() {
                    _ if is_directive => {}
                    "" => comments.clear(),
                    comment => comments.push(comment.to_owned()),
                }
                continue;
            }
            if trimmed.is_empty() {
                comments.clear();
                continue;
            }
            return Ok(Some(self.joined(line, trimmed, comments)));
        }
        Ok(None)
    }

    fn joined(&mut self, first: Line<'a>, trimmed: &str, comments: Vec<String>) -> Logical {
        let escape = self.directives.escape;
        let start = first.start + (first.trimmed().len() - trimmed.len());
        let mut last = first;
        let mut gaps = false;
        let (head, mut open) = without_continuation(trimmed, escape);
        let mut text = head.to_owned();
        while open && let Some(line) = self.physical() {
            last = line;
            let content = line.trimmed();
            let visible = content.trim_start();
            if visible.starts_with('#') {
                continue;
            }
            if visible.is_empty() {
                gaps = true;
                continue;
            }
            let (part, more) = without_continuation(content, escape);
            text.push_str(part);
            open = more;
        }
        let location = Location {
            span: start..(last.start + last.trimmed().len()).max(start),
            lines: (first.number, last.number),
        };
        Logical { text, location, comments, gaps }
    }

    /// Takes `line` as a directive if it is one; anything else ends the directives.
    fn directive(&mut self, trimmed: &str, line: &Line<'_>) -> Result<bool, Misshapen> {
        if !self.directives_open {
            return Ok(false);
        }
        let Some((key, value)) = directive_of(trimmed) else {
            self.directives_open = false;
            return Ok(false);
        };
        let refused =
            |message: String| Misshapen { message, location: line.location(), help: None };
        if !["syntax", "escape", "check"].contains(&key.as_str()) {
            self.directives_open = false;
            return Ok(false);
        }
        if !self.directives_seen.insert(key.clone()) {
            return Err(refused(format!("only one {key} parser directive can be used")));
        }
        match (key.as_str(), value) {
            ("syntax", _) => self.directives.syntax = Some(value.to_owned()),
            ("check", _) => self.directives.check = Some((value.to_owned(), line.location())),
            (_, "\\") => self.directives.escape = '\\',
            (_, "`") => self.directives.escape = '`',
            _ => {
                return Err(refused(format!(
                    "invalid escape token '{value}' does not match ` or \\"
                )));
            }
        }
        Ok(true)
    }

    /// Byte range from `start` to the end of the last line handed out.
    pub(super) fn span_from(&self, start: usize) -> Range<usize> {
        let read = self.text.get(start..self.position).unwrap_or_default();
        start..start + read.trim_end_matches(['\r', '\n']).len()
    }
}

fn memchr(text: &str) -> Option<usize> {
    text.as_bytes().iter().position(|byte| *byte == b'\n')
}

/// `# key = value`: the key in lower case, the value without blanks around it.
pub(super) fn directive_of(line: &str) -> Option<(String, &str)> {
    directive_after(line.strip_prefix('#')?)
}

/// `key = value`, what a directive is without its comment sign.
pub(super) fn directive_after(text: &str) -> Option<(String, &str)> {
    let (key, value) = text.trim_start().split_once('=')?;
    let key = key.trim_end_matches(BLANKS);
    let named = key.starts_with(|l: char| l.is_ascii_alphabetic())
        && key.chars().all(|l| l.is_ascii_alphanumeric());
    let trimmed = value.trim_matches(BLANKS);
    // A value of nothing but blanks is its last blank.
    let value = if trimmed.is_empty() {
        let last = value.char_indices().next_back()?.0;
        value.split_at(last).1
    } else {
        trimmed
    };
    named.then(|| (key.to_ascii_lowercase(), value))
}

/// Blanks of regular expressions.
const BLANKS: [char; 5] = [' ', '\t', '\n', '\r', '\u{c}'];

/// Whether `line` goes on in the next one.
pub(in crate::dockerfile) fn continues(line: &str, escape: char) -> bool {
    without_continuation(line, escape).1
}

/// The line before its continuation sign, and whether it had one.
///
/// A sign after a sign is none, whatever stands before the two: BuildKit looks at one character only.
fn without_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before, true),
        _ => (line, false),
    }
}
