//! The regular expressions that Docker makes of ignore patterns: compiled the same way, corners included.
//!
//! Docker hands brackets and escaped characters to RE2 as they are, so that `a\b` ends at a word
//! boundary and `[*]` is a class with a star behind it. Knows only what such a translation can hold.

use super::{BadPattern, glob::take_char};

/// A compiled pattern. Matching takes time linear in pattern times path, whatever the pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Regex {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Char(char),
    Class(Class),
    /// A class, any number of times.
    Repeat(Class),
    /// `(.*/)?`
    Directories,
    /// `.*`
    Rest,
    Start,
    End,
    WordBoundary,
    NotWordBoundary,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

const NOT_SLASH: &str = "[^/]";
const DIRECTORIES: &str = "(.*/)?";
const REST: &str = ".*";

impl Regex {
    pub(super) fn compile(pattern: &str) -> Result<Self, BadPattern> {
        Parser { left: &translate(pattern) }.nodes().map(|nodes| Self { nodes })
    }

    pub(super) fn matches(&self, path: &[u8]) -> bool {
        let mut at = vec![false; path.len() + 1];
        at[0] = true;
        for node in &self.nodes {
            at = node.advance(&at, path);
            if !at.contains(&true) {
                return false;
            }
        }
        at[path.len()]
    }

    pub(super) fn head(&self) -> Vec<u8> {
        literal(self.nodes.iter()).into_iter().collect::<String>().into_bytes()
    }

    pub(super) fn tail(&self) -> Vec<u8> {
        literal(self.nodes.iter().rev()).into_iter().rev().collect::<String>().into_bytes()
    }
}

fn literal<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<char> {
    let mut characters = Vec::new();
    for node in nodes {
        // U+FFFD also stands for bytes that are no UTF-8, so it is no literal text.
        let Node::Char(character) = node else { break };
        if *character == char::REPLACEMENT_CHARACTER {
            break;
        }
        characters.push(*character);
    }
    characters
}

impl Node {
    /// The positions that can be reached from positions `at`.
    fn advance(&self, at: &[bool], path: &[u8]) -> Vec<bool> {
        let mut next = vec![false; at.len()];
        match self {
            Self::Char(character) => step(at, path, &mut next, |found| found == *character),
            Self::Class(class) => step(at, path, &mut next, |found| class.holds(found)),
            Self::Repeat(class) => {
                next.copy_from_slice(at);
                let from = next.clone();
                flow(&from, path, &mut next, |found| class.holds(found));
            }
            Self::Rest => {
                next.copy_from_slice(at);
                let from = next.clone();
                flow(&from, path, &mut next, |found| found != '\n');
            }
            Self::Directories => {
                let mut reached = at.to_vec();
                flow(at, path, &mut reached, |found| found != '\n');
                next.copy_from_slice(at);
                for end in 1..at.len() {
                    next[end] |= path[end - 1] == b'/' && reached[end - 1];
                }
            }
            Self::Start => next[0] = at[0],
            Self::End => next[path.len()] = at[path.len()],
            Self::WordBoundary | Self::NotWordBoundary => {
                for position in 0..at.len() {
                    let boundary = is_boundary(path, position);
                    next[position] = at[position] && boundary == (*self == Self::WordBoundary);
                }
            }
        }
        next
    }
}

fn step(at: &[bool], path: &[u8], next: &mut [bool], holds: impl Fn(char) -> bool) {
    for position in (0..path.len()).filter(|position| at[*position]) {
        let mut rest = &path[position..];
        if holds(take_char(&mut rest)) {
            next[path.len() - rest.len()] = true;
        }
    }
}

/// Spreads positions over any number of characters that hold.
fn flow(at: &[bool], path: &[u8], next: &mut [bool], holds: impl Fn(char) -> bool) {
    let mut reached = at.to_vec();
    for position in 0..path.len() {
        if !reached[position] {
            continue;
        }
        let mut rest = &path[position..];
        if holds(take_char(&mut rest)) {
            reached[path.len() - rest.len()] = true;
            next[path.len() - rest.len()] = true;
        }
    }
}

fn is_boundary(path: &[u8], position: usize) -> bool {
    let word = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let before = position.checked_sub(1).and_then(|index| path.get(index));
    word(before) != word(path.get(position))
}

impl Class {
    fn not_slash() -> Self {
        Self { negated: true, ranges: vec![('/', '/')] }
    }

    fn holds(&self, character: char) -> bool {
        let within = self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&character));
        within != self.negated
    }

    /// Adds everything but `ranges` (sorted, apart).
    fn add_all_but(&mut self, ranges: &[(char, char)]) {
        let mut from = '\0';
        for (low, high) in ranges {
            if let Some(before) = char::from_u32(*low as u32 - 1).filter(|before| from <= *before) {
                self.ranges.push((from, before));
            }
            from = char::from_u32(*high as u32 + 1).expect("ranges of ASCII");
        }
        self.ranges.push((from, char::MAX));
    }
}

/// Docker's translation of a pattern into a regular expression, without the anchors.
fn translate(pattern: &str) -> Vec<char> {
    let mut regex = Vec::new();
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '*' if characters.next_if_eq(&'*').is_some() => {
                characters.next_if_eq(&'/');
                let last = characters.peek().is_none();
                regex.extend(if last { REST } else { DIRECTORIES }.chars());
            }
            '*' => regex.extend(NOT_SLASH.chars().chain(['*'])),
            '?' => regex.extend(NOT_SLASH.chars()),
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => regex.extend(['\\', character]),
            '\\' => regex.extend(['\\', characters.next().unwrap_or('\\')]),
            character => regex.push(character),
        }
    }
    regex
}

/// Reads a translated pattern as RE2 would.
struct Parser<'a> {
    left: &'a [char],
}

/// What an escape stands for.
enum Escape {
    Char(char),
    Class(Class),
    Node(Node),
}

impl Parser<'_> {
    fn nodes(mut self) -> Result<Vec<Node>, BadPattern> {
        let mut nodes = Vec::new();
        while !self.left.is_empty() {
            let node = self.node()?;
            // Two in a row match what one matches; a thousand would only cost time.
            let again = matches!(node, Node::Repeat(_) | Node::Directories | Node::Rest);
            if !again || nodes.last() != Some(&node) {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }

    fn node(&mut self) -> Result<Node, BadPattern> {
        if self.eat(DIRECTORIES) {
            return Ok(Node::Directories);
        }
        if self.eat(REST) {
            return Ok(Node::Rest);
        }
        let node = match self.left {
            ['[', '^', '/', ']', ..] => {
                self.eat(NOT_SLASH);
                Node::Class(Class::not_slash())
            }
            ['[', ..] => Node::Class(self.class()?),
            ['^', ..] => {
                self.next()?;
                Node::Start
            }
            ['\\', ..] => match self.escape()? {
                Escape::Char(character) => Node::Char(character),
                Escape::Class(class) => Node::Class(class),
                Escape::Node(node) => node,
            },
            _ => Node::Char(self.next()?),
        };
        // A star is left over only behind a class that swallowed the beginning of `[^/]*`.
        Ok(if let Node::Class(class) = node {
            if self.eat("*") { Node::Repeat(class) } else { Node::Class(class) }
        } else {
            node
        })
    }

    fn next(&mut self) -> Result<char, BadPattern> {
        let (first, rest) = self.left.split_first().ok_or(BadPattern)?;
        self.left = rest;
        Ok(*first)
    }

    fn eat(&mut self, text: &str) -> bool {
        let length = text.chars().count();
        let found =
            self.left.len() >= length && text.chars().eq(self.left[..length].iter().copied());
        if found {
            self.left = &self.left[length..];
        }
        found
    }

    fn class(&mut self) -> Result<Class, BadPattern> {
        self.next()?;
        let mut class = Class { negated: self.eat("^"), ranges: Vec::new() };
        let mut first = true;
        while first || self.left.first() != Some(&']') {
            first = false;
            if self.left.starts_with(&['[', ':']) {
                self.named(&mut class)?;
                continue;
            }
            let low = match self.class_item()? {
                Escape::Char(character) => character,
                Escape::Class(inner) => {
                    class.ranges.extend(inner.ranges);
                    continue;
                }
                Escape::Node(_) => return Err(BadPattern),
            };
            let ranged = matches!(self.left, ['-', end, ..] if *end != ']');
            let high = if ranged {
                self.next()?;
                match self.class_item()? {
                    Escape::Char(character) => character,
                    Escape::Class(_) | Escape::Node(_) => return Err(BadPattern),
                }
            } else {
                low
            };
            if high < low {
                return Err(BadPattern);
            }
            class.ranges.push((low, high));
        }
        self.next()?;
        Ok(class)
    }

    fn class_item(&mut self) -> Result<Escape, BadPattern> {
        if self.left.first() == Some(&'\\') { self.escape() } else { self.next().map(Escape::Char) }
    }

    /// `[:alpha:]` within a class; without a `:]` it is a plain `[`.
    fn named(&mut self, class: &mut Class) -> Result<(), BadPattern> {
        let text: String = self.left.iter().collect();
        let Some((name, _)) = text.trim_start_matches("[:").split_once(":]") else {
            class.ranges.push(('[', '['));
            self.next()?;
            return Ok(());
        };
        let (name, negated) = name.strip_prefix('^').map_or((name, false), |name| (name, true));
        let ranges: &[(char, char)] = match name {
            "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
            "alpha" => &[('A', 'Z'), ('a', 'z')],
            "ascii" => &[('\0', '\x7f')],
            "blank" => &[('\t', '\t'), (' ', ' ')],
            "cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
            "digit" => &[('0', '9')],
            "graph" => &[('!', '~')],
            "lower" => &[('a', 'z')],
            "print" => &[(' ', '~')],
            "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
            "space" => &[('\t', '\r'), (' ', ' ')],
            "upper" => &[('A', 'Z')],
            "word" => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
            "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
            _ => return Err(BadPattern),
        };
        let length = name.len() + 4 + usize::from(negated);
        self.left = &self.left[length..];
        if negated {
            class.add_all_but(ranges);
        } else {
            class.ranges.extend(ranges);
        }
        Ok(())
    }

    fn escape(&mut self) -> Result<Escape, BadPattern> {
        self.next()?;
        let character = self.next()?;
        Ok(match character {
            'd' | 'D' => perl(&[('0', '9')], character),
            's' | 'S' => perl(&[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')], character),
            'w' | 'W' => perl(&[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')], character),
            'A' => Escape::Node(Node::Start),
            'z' => Escape::Node(Node::End),
            'b' => Escape::Node(Node::WordBoundary),
            'B' => Escape::Node(Node::NotWordBoundary),
            'a' => Escape::Char('\x07'),
            'f' => Escape::Char('\x0c'),
            't' => Escape::Char('\t'),
            'n' => Escape::Char('\n'),
            'r' => Escape::Char('\r'),
            'v' => Escape::Char('\x0b'),
            'x' => Escape::Char(self.hexadecimal()?),
            '0'..='7' => Escape::Char(self.octal(character)?),
            character if character.is_ascii_alphanumeric() || !character.is_ascii() => {
                return Err(BadPattern);
            }
            character => Escape::Char(character),
        })
    }

    fn hexadecimal(&mut self) -> Result<char, BadPattern> {
        let mut value = 0;
        if self.eat("{") {
            while !self.eat("}") {
                value = value * 16 + self.next()?.to_digit(16).ok_or(BadPattern)?;
                char::from_u32(value).ok_or(BadPattern)?;
            }
        } else {
            for _ in 0..2 {
                value = value * 16 + self.next()?.to_digit(16).ok_or(BadPattern)?;
            }
        }
        char::from_u32(value).ok_or(BadPattern)
    }

    /// Up to three octal digits; a single one that is not 0 would be a back reference.
    fn octal(&mut self, first: char) -> Result<char, BadPattern> {
        let mut value = first.to_digit(8).ok_or(BadPattern)?;
        let mut digits = 1;
        while digits < 3
            && let Some(digit) = self.left.first().and_then(|next| next.to_digit(8))
        {
            value = value * 8 + digit;
            digits += 1;
            self.next()?;
        }
        if digits == 1 && first != '0' {
            Err(BadPattern)
        } else {
            char::from_u32(value).ok_or(BadPattern)
        }
    }
}

/// `\d` and the like; the capital letter is everything else.
fn perl(ranges: &[(char, char)], letter: char) -> Escape {
    let mut class = Class::default();
    if letter.is_ascii_uppercase() {
        class.add_all_but(ranges);
    } else {
        class.ranges.extend(ranges);
    }
    Escape::Class(class)
}
