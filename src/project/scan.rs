//! A first look at the text, before the KDL parser: limits, KDL 1 forms, and words that need quotes.
//!
//! It splits text the way KDL 2 does but builds nothing. What it finds is clearer than what a
//! grammar can say, and its limits keep hostile nesting away from a recursive parser.

use miette::SourceSpan;

use super::problem::Fault;
use super::problem::Problems;

/// Most bytes of one project file.
pub(super) const FILE_BYTES_MAX: usize = 4 << 20;
/// Most blocks inside one another.
pub(super) const DEPTH_MAX: usize = 8;
/// Most braces or comments open at once when strings are not told apart from code; the parser
/// recovers from errors in ways that this scanner cannot foresee, so that this one must hold too.
const BLIND_DEPTH_MAX: usize = 64;

/// Most tokens of one node: the parser calls itself along some broken ones.
const NODE_TOKENS_MAX: usize = 3 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Word,
    Quoted,
    Open,
    Close,
    Equals,
    Newline,
    Slashdash,
    /// A backslash at the end of a line.
    Continue,
    Other,
}

/// A part of the file that `/-` takes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disabled {
    /// First word behind the `/-`.
    pub name: String,
    /// Where the `/-` is.
    pub at: SourceSpan,
}

struct Scanner<'t, 'p> {
    text: &'t str,
    at: usize,
    problems: &'p mut Problems,
    /// Kind and end of the last token that was not a newline.
    last: Option<(Token, usize)>,
    /// Whether the token before `last` was `=`.
    after_equals: bool,
    /// Tokens since a node could have ended, and the words among them.
    node_tokens: usize,
    node_words: usize,
    /// Whether a newline came since.
    fresh_line: bool,
    disabled: Vec<Disabled>,
    /// Where the open blocks begin.
    open: Vec<usize>,
    /// The text with its block comments as spaces.
    plain: String,
    grammar: Grammar,
}

/// Whether the parser would see the same strings and comments as this scanner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grammar {
    Sound,
    Broken,
}

/// What the scanner hands on.
pub(super) struct Scanned {
    /// What `/-` takes out.
    pub(super) disabled: Vec<Disabled>,
    /// The text for the parser: block comments are spaces, all offsets are the same. The parser calls
    /// itself for each `*` of a comment, so that it must not see any.
    pub(super) text: String,
}

/// Whether the text is small and flat enough to be parsed.
pub(super) fn within_limits(text: &str, problems: &mut Problems) -> bool {
    if text.len() > FILE_BYTES_MAX {
        let fault = Fault::TooLarge { bytes: text.len(), limit: FILE_BYTES_MAX };
        problems.add_outside(fault).help("a project file names files, it does not contain them");
        return false;
    }
    let bytes = text.as_bytes();
    let (mut braces, mut comments) = (0_usize, 0_usize);
    for (index, byte) in bytes.iter().enumerate() {
        match (byte, bytes.get(index + 1)) {
            (b'{', _) => braces += 1,
            (b'}', _) => braces = braces.saturating_sub(1),
            (b'/', Some(b'*')) => comments += 1,
            (b'*', Some(b'/')) => comments = comments.saturating_sub(1),
            _ => {}
        }
        if braces.max(comments) > BLIND_DEPTH_MAX {
            let fault = Fault::TooDeep { limit: BLIND_DEPTH_MAX };
            problems.add((index, 1).into(), fault).label("one level too many");
            return false;
        }
    }
    true
}

/// Reports what the text has wrong word by word, and lists what `/-` disables.
///
/// `None` when the text must not be handed to the parser: too deep, or strings that do not end.
pub(super) fn scan(text: &str, problems: &mut Problems) -> Option<Scanned> {
    let mut scanner = Scanner {
        text,
        at: 0,
        problems,
        last: None,
        after_equals: false,
        node_tokens: 0,
        node_words: 0,
        fresh_line: true,
        disabled: Vec::new(),
        open: Vec::new(),
        plain: String::with_capacity(text.len()),
        grammar: Grammar::Sound,
    };
    while scanner.at < text.len() {
        if scanner.problems.is_full() {
            return None;
        }
        let start = scanner.at;
        scanner.step();
        let step = text.get(start..scanner.at).unwrap_or_default();
        if step.starts_with("/*") {
            scanner.plain.extend(std::iter::repeat_n(' ', step.len()));
        } else {
            scanner.plain.push_str(step);
        }
        if scanner.open.len() > DEPTH_MAX {
            let fault = Fault::TooDeep { limit: DEPTH_MAX };
            let at = scanner.at.saturating_sub(1);
            scanner.problems.add((at, 1).into(), fault).label("one level too many");
            return None;
        }
    }
    if let Some(open) = scanner.open.last().copied() {
        scanner.broken((open, 1).into(), "`{` is never closed", "close the block with `}`");
    }
    let Scanner { disabled, plain, grammar, .. } = scanner;
    (grammar == Grammar::Sound).then_some(Scanned { disabled, text: plain })
}

const fn is_newline(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{85}' | '\u{b}' | '\u{c}' | '\u{2028}' | '\u{2029}')
}

fn is_word(c: char) -> bool {
    !c.is_whitespace() && !is_newline(c) && !"\\/(){};[]\"#=\u{feff}".contains(c)
}

impl Scanner<'_, '_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn step(&mut self) {
        let start = self.at;
        let Some(c) = self.peek() else { return };
        let rest = self.rest();
        if rest.starts_with("//") {
            self.at += rest.find(is_newline).unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            self.comment(start);
        } else if rest.starts_with("/-") {
            self.at += 2;
            self.twice_slashdash(start);
            self.slashdash(start);
            self.end(Token::Slashdash);
        } else if is_newline(c) {
            self.at += c.len_utf8();
            self.fresh_line = true;
            if !matches!(self.last, Some((Token::Continue, _))) {
                (self.node_tokens, self.node_words) = (0, 0);
            }
        } else if c == '"' {
            self.quoted(start, 0);
        } else if c == '#' {
            self.hash(start);
        } else if is_word(c) || c == '/' {
            self.word(start);
        } else {
            self.at += c.len_utf8();
            self.mark(start, c);
        }
    }

    /// Braces, brackets, `=` and the like.
    fn mark(&mut self, start: usize, c: char) {
        let token = match c {
            '{' => {
                self.lone_brace(start);
                self.open.push(start);
                Token::Open
            }
            '}' => {
                if self.open.pop().is_none() {
                    let help = "remove it, or open the block at the end of a line above";
                    self.broken((start, 1).into(), "`}` without `{`", help);
                }
                Token::Close
            }
            '=' => {
                self.equals(start);
                Token::Equals
            }
            '\\' => {
                let rest = self.rest().trim_start_matches([' ', '\t']);
                if !(rest.is_empty() || rest.starts_with(is_newline) || rest.starts_with('/')) {
                    let help = "`\\` joins two lines; quote it where it is text";
                    self.broken((start, 1).into(), "`\\` inside a line", help);
                }
                Token::Continue
            }
            '(' | ')' => {
                let help = "types are known from the place; quote parentheses that are text";
                self.broken((start, 1).into(), "a type annotation has no meaning here", help);
                Token::Other
            }
            ';' => Token::Newline,
            '[' | ']' => {
                let help = "a list is several arguments on one node: `platforms amd64 arm64`";
                self.broken((start, 1).into(), "KDL has no brackets", help);
                Token::Other
            }
            _ if c.is_whitespace() || c == '\u{feff}' => return,
            _ => {
                self.broken((start, c.len_utf8()).into(), "not expected here", "quote it");
                Token::Other
            }
        };
        self.end(token);
    }

    fn end(&mut self, token: Token) {
        let before = self.last.map(|(token, _)| token);
        self.after_equals = before == Some(Token::Equals);
        let at: SourceSpan = (self.at.saturating_sub(1), 1).into();
        let value = matches!(token, Token::Word | Token::Quoted);
        if self.after_equals && !value {
            self.broken(at, "`=` without a value", "write name=value");
        } else if before == Some(Token::Close) && value && !self.fresh_line {
            self.broken(at, "a node begins behind `}`", "begin it on a line of its own");
        }
        self.node_tokens += 1;
        self.node_words += usize::from(value);
        if matches!(token, Token::Newline | Token::Open | Token::Close) {
            (self.node_tokens, self.node_words) = (0, 0);
        }
        if self.node_tokens > NODE_TOKENS_MAX {
            self.broken(at, "a node has more values than any needs", "spread them over nodes");
        }
        self.last = Some((token, self.at));
        self.fresh_line = token == Token::Newline;
    }

    /// `=` stands between a name and a value.
    fn equals(&mut self, start: usize) {
        let named = matches!(self.last, Some((Token::Word | Token::Quoted, _)));
        if !named || self.after_equals || self.node_words < 2 {
            let help = "write name=value; quote `=` that is text";
            self.broken((start, 1).into(), "`=` without a name before it", help);
        }
    }

    /// `{` alone on a line would be a node without a name.
    fn lone_brace(&mut self, start: usize) {
        if self.node_words == 0 {
            let help = "put `{` at the end of the line that it continues";
            self.broken((start, 1).into(), "`{` without a name before it", help);
        }
    }

    fn slashdash(&mut self, start: usize) {
        let rest = self.rest().trim_start();
        let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
        if name != "kdl-version" {
            self.disabled.push(Disabled { name, at: (start, 2).into() });
        }
    }

    fn twice_slashdash(&mut self, start: usize) {
        if matches!(self.last, Some((Token::Slashdash, _))) {
            self.broken((start, 2).into(), "`/-` stands twice", "one switches off already");
        }
    }

    /// A fault after which the parser would stumble in ways that help nobody.
    fn broken(&mut self, at: SourceSpan, message: &str, help: &str) {
        if self.grammar == Grammar::Broken {
            // One slip has many consequences; the first is the cause.
            return;
        }
        self.grammar = Grammar::Broken;
        let fault = Fault::Trap(message.to_owned());
        self.problems.add(at, fault).label("here").help(help);
    }

    fn comment(&mut self, start: usize) {
        let before = self.text.get(..start).and_then(|text| text.chars().next_back());
        let mut depth = 0_usize;
        loop {
            let rest = self.rest();
            if rest.starts_with("/*") {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    break;
                }
            } else if let Some(c) = rest.chars().next() {
                self.at += c.len_utf8();
            } else {
                self.broken((start, 2).into(), "a comment does not end", "close it with `*/`");
                break;
            }
        }
        let glued = |c: Option<char>| c.is_some_and(|c| is_word(c) || c == '/' || c == '"');
        if glued(before) || glued(self.peek()) {
            self.glued_comment(start);
        }
    }

    fn glued_comment(&mut self, start: usize) {
        const WORD_CHARS_SHOWN: usize = 80;
        let head = self.text.get(..start).unwrap_or_default();
        let from = head.rfind(|c: char| c.is_whitespace()).map_or(0, |at| at + 1);
        let tail = self.text.get(from..).unwrap_or_default();
        let word: String =
            tail.chars().take(WORD_CHARS_SHOWN).take_while(|c| !c.is_whitespace()).collect();
        let shown = word.trim_end_matches([';', '}', '{']);
        let help = if from == start {
            "put a space behind the comment, or quote the word".to_owned()
        } else {
            format!("quote it: \"{shown}\"")
        };
        let fault = Fault::Trap("`/*` inside a word starts a comment".to_owned());
        let span = (from, shown.len().max(1)).into();
        self.problems.add(span, fault).label("part of this is a comment to KDL").help(help);
    }

    /// `#true`, `#null`, or a raw string.
    fn hash(&mut self, start: usize) {
        let hashes = self.rest().chars().take_while(|c| *c == '#').count();
        self.at += hashes;
        if self.peek() == Some('"') {
            self.quoted(start, hashes);
            return;
        }
        while self.peek().is_some_and(is_word) {
            self.at += self.peek().map_or(1, char::len_utf8);
        }
        self.end(Token::Word);
    }

    /// A string that begins here, raw when it has hashes.
    fn quoted(&mut self, start: usize, hashes: usize) {
        if let Some((Token::Word | Token::Quoted, end)) = self.last
            && end == start
        {
            let help = "put a space between two values, or quote the whole";
            self.broken((start, 1).into(), "a quote inside a word", help);
        }
        let multi = self.rest().starts_with("\"\"\"");
        let quotes = if multi { "\"\"\"" } else { "\"" };
        let close = format!("{quotes}{}", "#".repeat(hashes));
        self.at += quotes.len();
        if multi && !self.rest().starts_with(is_newline) {
            self.grammar = Grammar::Broken;
            let fault = Fault::Trap("`\"\"\"` must be followed by a new line".to_owned());
            self.problems
                .add((start, hashes + 3).into(), fault)
                .label("the text starts on the next line")
                .help("write one line as \"…\", several between `\"\"\"` lines");
        }
        loop {
            if self.rest().starts_with(&close) {
                self.at += close.len();
                break;
            }
            let Some(c) = self.peek() else {
                self.broken_line(start);
                break;
            };
            if is_newline(c) && !multi && self.grammar == Grammar::Sound {
                self.broken_line(start);
            }
            self.at += c.len_utf8();
            if c == '\\' && hashes == 0 {
                self.escape();
            }
        }
        self.end(Token::Quoted);
    }

    /// What follows a backslash: one character, or all white space up to the text.
    fn escape(&mut self) {
        let rest = self.rest();
        let spaces = rest.len() - rest.trim_start().len();
        self.at += if spaces > 0 { spaces } else { rest.chars().next().map_or(0, char::len_utf8) };
    }

    fn broken_line(&mut self, start: usize) {
        self.grammar = Grammar::Broken;
        let fault = Fault::Trap("a \"…\" string ends on its own line".to_owned());
        self.problems
            .add((start, 1).into(), fault)
            .label("starts here and does not end on this line")
            .help("text of several lines stands between `\"\"\"` lines");
    }

    fn word(&mut self, start: usize) {
        while let Some(c) = self.peek() {
            let comment = ["//", "/*", "/-"].iter().any(|mark| self.rest().starts_with(mark));
            if !(is_word(c) || c == '/') || (c == '/' && comment && !self.is_url(start)) {
                break;
            }
            self.at += c.len_utf8();
        }
        let word = self.text.get(start..self.at).unwrap_or_default().to_owned();
        if matches!(self.last, Some((Token::Quoted, end)) if end == start) {
            let help = "put a space between two values";
            self.broken((start, word.len()).into(), "a word glued to a quote", help);
        }
        let raw_v1 = word == "r" && (self.rest().starts_with('"') || self.rest().starts_with('#'));
        if raw_v1 {
            self.grammar = Grammar::Broken;
            let at = (start, 2).into();
            let fault = Fault::Version1 { found: "r\"…\"".into(), instead: "#\"…\"#".into() };
            self.problems.add(at, fault).label("raw string of KDL v1");
        } else if let Some((fault, help)) = word_fault(&word) {
            let at = (start, word.len()).into();
            let version_1 = matches!(fault, Fault::Version1 { .. });
            let label = if version_1 { "a bare word of KDL v1" } else { "written without quotes" };
            self.problems.add(at, fault).label(label).help(help);
        }
        self.end(if raw_v1 { Token::Other } else { Token::Word });
    }

    fn is_url(&self, start: usize) -> bool {
        self.text.get(start..self.at).is_some_and(|word| word.ends_with(':'))
    }
}

/// What is wrong with a word outside of quotes, and the way out.
fn word_fault(word: &str) -> Option<(Fault, String)> {
    if let "true" | "false" | "null" | "inf" | "nan" = word {
        let fault = Fault::Version1 { found: word.to_owned(), instead: format!("#{word}") };
        return Some((fault, format!("for the text, quote it: \"{word}\"")));
    }
    if let Some(stem) = word.strip_suffix(',') {
        let fault = Fault::Trap("a list has no commas".to_owned());
        let help = if stem.is_empty() { "remove it".to_owned() } else { format!("write `{stem}`") };
        return Some((fault, help));
    }
    let quote = format!("quote it: \"{word}\"");
    if word.contains('/') {
        return Some((Fault::Trap(format!("`{word}` needs quotes because of its `/`")), quote));
    }
    let unsigned = word.strip_prefix(['+', '-']).unwrap_or(word);
    let mut chars = unsigned.chars();
    let (first, second) = (chars.next(), chars.next());
    let numeric = first.is_some_and(|c| c.is_ascii_digit())
        || (first == Some('.') && second.is_some_and(|c| c.is_ascii_digit()));
    if !numeric {
        return None;
    }
    let digits = unsigned.trim_start_matches('0').len() < unsigned.len()
        && unsigned.len() > 1
        && unsigned.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    if digits {
        let fault = Fault::Trap(format!("`{word}` is decimal to KDL, in spite of its 0"));
        let octal = unsigned.trim_start_matches('0');
        return Some((fault, format!("write `0o{octal}` for octal, or quote it: \"{word}\"")));
    }
    if is_number(unsigned) {
        return None;
    }
    let fault = Fault::Trap(format!("`{word}` is neither a number nor a word"));
    Some((fault, format!("{quote}; versions, sizes and durations are strings")))
}

/// KDL numbers without their sign.
fn is_number(text: &str) -> bool {
    let digits = |text: &str, radix: u32| {
        text.starts_with(|c: char| c.is_digit(radix))
            && text.chars().all(|c| c.is_digit(radix) || c == '_')
    };
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(rest) = text.strip_prefix(prefix) {
            return digits(rest, radix);
        }
    }
    let (mantissa, exponent) =
        text.split_once(['e', 'E']).map_or((text, None), |(m, e)| (m, Some(e)));
    let (whole, part) = mantissa.split_once('.').map_or((mantissa, None), |(w, p)| (w, Some(p)));
    digits(whole, 10)
        && part.is_none_or(|part| digits(part, 10))
        && exponent.is_none_or(|exponent| {
            digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent), 10)
        })
}
