//! Path patterns as Docker and Go mean them: a set of ignore patterns, Go's `filepath.Match`,
//! Go's `filepath.Clean`.
//!
//! Knows no file system and no ignore file syntax; paths are relative, `/`-separated bytes.

use std::collections::HashMap;

use thiserror::Error;

mod glob;
mod regex;

pub use glob::{BadPattern, clean, has_wildcard, matches_glob};
use regex::Regex;

/// Why a list of patterns is not valid. The texts are Docker's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PatternError {
    /// `!` with nothing behind it.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneBang,
    /// A bracket or backslash without its end.
    #[error("syntax error in pattern")]
    Syntax,
}

impl From<BadPattern> for PatternError {
    fn from(_: BadPattern) -> Self {
        Self::Syntax
    }
}

/// An ordered list of patterns: the last one that matches decides, `!` takes back.
#[derive(Clone, Debug, Default)]
pub struct PatternSet {
    patterns: Vec<Pattern>,
    screens: Vec<Screen>,
    buckets: Buckets,
}

/// Which patterns are worth a look, by a component or one byte of the path; each list ascending.
#[derive(Clone, Debug, Default)]
struct Buckets {
    /// Patterns that name a component, by it.
    component: HashMap<Vec<u8>, Vec<u32>>,
    /// Others with a literal head, by its first byte.
    first: HashMap<u8, Vec<u32>>,
    /// Others with a literal tail, by its last byte.
    last: HashMap<u8, Vec<u32>>,
    /// All others.
    any: Vec<u32>,
}

/// What a [`PatternSet`] says of one path, and what it has to know for paths below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the path is matched in the end.
    pub matched: bool,
    /// Patterns that took effect here or above, ascending.
    effective: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Pattern {
    negated: bool,
    matcher: Matcher,
    /// Literal text that every match starts with.
    head: Vec<u8>,
    /// Number of components of every match, when there is only one number.
    depth: Option<usize>,
    /// A component that every match has.
    component: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Matcher {
    Exact(Vec<u8>),
    /// `x**`
    Prefix(Vec<u8>),
    /// `**x`, also `**/x`, which matches `x` itself.
    Suffix(Vec<u8>),
    Regex(Regex),
}

/// First and last bytes that a match must have: turns nearly every pattern away in one comparison.
#[derive(Clone, Copy, Debug)]
struct Screen {
    head: u64,
    head_mask: u64,
    tail: u64,
    tail_mask: u64,
}

impl PatternSet {
    /// Compiles patterns in order; blank ones are skipped.
    ///
    /// # Errors
    ///
    /// The first pattern that is not valid, by its index.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, (usize, PatternError)> {
        let mut set = Self::default();
        for (index, text) in patterns.iter().enumerate() {
            let text = text.as_ref().trim();
            if text.is_empty() {
                continue;
            }
            let (pattern, screen) = Pattern::compile(text).map_err(|error| (index, error))?;
            set.buckets.add(set.patterns.len(), &pattern);
            set.patterns.push(pattern);
            set.screens.push(screen);
        }
        Ok(set)
    }

    /// Whether there is no pattern at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Judges a path whose directory was judged as `parent` (the default for the top level).
    #[must_use]
    pub fn judge(&self, parent: &Verdict, path: &[u8]) -> Verdict {
        let window = Screen::of(path, path);
        let mut candidates = parent.effective.clone();
        for bucket in self.buckets.of(path) {
            let admitted =
                bucket.iter().filter(|index| self.screens[**index as usize].admits(&window));
            candidates.extend(admitted);
        }
        candidates.sort_unstable();
        candidates.dedup();
        let mut inherited = parent.effective.iter().copied().peekable();
        let mut verdict = Verdict::default();
        for index in candidates {
            let pattern = &self.patterns[index as usize];
            // Docker skips a pattern that could change nothing; below, it then counts as unmatched.
            let matched = inherited.next_if_eq(&index).is_some()
                || (pattern.negated == verdict.matched && pattern.matcher.matches(path));
            if matched {
                verdict.matched = !pattern.negated;
                verdict.effective.push(index);
            }
        }
        verdict
    }

    /// Whether a path is matched, its parents having been judged first.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let ends = slashes.map(|(end, _)| end).chain([path.len()]);
        let judge = |verdict: Verdict, end: usize| self.judge(&verdict, &path[..end]);
        ends.fold(Verdict::default(), judge).matched
    }

    /// Whether a `!` pattern may match something strictly below a directory. `false` is certain.
    #[must_use]
    pub fn may_unmatch_below(&self, directory: &[u8]) -> bool {
        self.patterns.iter().any(|pattern| pattern.negated && pattern.reaches_below(directory))
    }

    /// Whether a pattern without `!` may match something strictly below a directory that is not
    /// matched itself. `false` is certain.
    #[must_use]
    pub fn may_match_below(&self, directory: &[u8]) -> bool {
        self.patterns.iter().any(|pattern| !pattern.negated && pattern.reaches_below(directory))
    }
}

impl Buckets {
    fn add(&mut self, index: usize, pattern: &Pattern) {
        let index = u32::try_from(index).expect("fewer patterns than bytes in their file");
        let (head, tail) = pattern.matcher.literals();
        let bucket = match (&pattern.component, head.first(), tail.last()) {
            (Some(name), ..) => self.component.entry(name.clone()).or_default(),
            (None, Some(byte), _) => self.first.entry(*byte).or_default(),
            (None, None, Some(byte)) => self.last.entry(*byte).or_default(),
            (None, None, None) => &mut self.any,
        };
        bucket.push(index);
    }

    fn of<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = &'a Vec<u32>> {
        let components = path.split(|byte| *byte == b'/');
        let named = components.filter_map(|component| self.component.get(component));
        let first = path.first().and_then(|byte| self.first.get(byte));
        let last = path.last().and_then(|byte| self.last.get(byte));
        named.chain(first).chain(last).chain([&self.any])
    }
}

impl Pattern {
    fn compile(text: &str) -> Result<(Self, Screen), PatternError> {
        let cleaned = clean(text);
        let (negated, body) = match cleaned.strip_prefix('!') {
            Some("") => return Err(PatternError::LoneBang),
            Some(body) => (true, body),
            None => (false, cleaned.as_str()),
        };
        // Docker asks `filepath.Match` whether the pattern is well-formed, whatever matches later.
        matches_glob(body.as_bytes(), b".")?;
        let matcher = Matcher::compile(body)?;
        let (head, tail) = matcher.literals();
        let screen = Screen::of(&head, &tail);
        let plain = !body.contains("**") && !body.contains(['[', '\\']);
        let depth = plain.then(|| body.split('/').count());
        let component = longest_component(body);
        Ok((Self { negated, matcher, head, depth, component }, screen))
    }

    fn reaches_below(&self, directory: &[u8]) -> bool {
        if directory.is_empty() {
            return true;
        }
        let below = [directory, b"/"].concat();
        let shared = self.head.len().min(below.len());
        let depth = below.iter().filter(|byte| **byte == b'/').count();
        self.head[..shared] == below[..shared] && self.depth.is_none_or(|parts| parts > depth)
    }
}

/// The longest component of a pattern that every match has as it stands there, if one is certain.
fn longest_component(body: &str) -> Option<Vec<u8>> {
    if body.contains(['[', ']', '\\']) {
        return None;
    }
    let is_literal = |part: &&str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !part.is_empty() && part.bytes().all(plain)
    };
    // `a**/b` also matches `ab`: the slash goes with the asterisks, unless these are all there is before it.
    let before = [None].into_iter().chain(body.split('/').map(Some));
    let begins = |before: Option<&str>| before.is_none_or(|it| it == "**" || !it.ends_with("**"));
    let whole = before.zip(body.split('/')).filter(|(before, _)| begins(*before));
    let longest = whole.map(|(_, part)| part).filter(is_literal).max_by_key(|part| part.len());
    longest.map(|part| part.as_bytes().to_vec())
}

impl Matcher {
    /// Chooses the cheapest way of matching, as Docker does: the choice is part of the meaning.
    fn compile(body: &str) -> Result<Self, PatternError> {
        if !body.contains(['*', '?', '[', ']', '\\']) {
            return Ok(Self::Exact(body.as_bytes().to_vec()));
        }
        let plain = |text: &str| !text.contains(['*', '?', '[', ']', '\\']);
        if let Some(rest) = body.strip_prefix("**") {
            // The slash of a `**/` is eaten together with it, for the choice only.
            if plain(rest) {
                return Ok(Self::Suffix(rest.as_bytes().to_vec()));
            }
        } else if let Some(front) = body.strip_suffix("**")
            && plain(front)
        {
            return Ok(Self::Prefix(front.as_bytes().to_vec()));
        }
        Ok(Self::Regex(Regex::compile(body)?))
    }

    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(text) => path == text,
            Self::Prefix(text) => path.starts_with(text),
            Self::Suffix(text) => {
                path.ends_with(text) || text.strip_prefix(b"/").is_some_and(|name| path == name)
            }
            Self::Regex(regex) => regex.matches(path),
        }
    }

    /// Text that every match starts with, and text that every match ends with.
    fn literals(&self) -> (Vec<u8>, Vec<u8>) {
        match self {
            Self::Exact(text) => (text.clone(), text.clone()),
            Self::Prefix(text) => (text.clone(), Vec::new()),
            Self::Suffix(text) => (Vec::new(), text.strip_prefix(b"/").unwrap_or(text).to_vec()),
            Self::Regex(regex) => (regex.head(), regex.tail()),
        }
    }
}

impl Screen {
    fn of(head: &[u8], tail: &[u8]) -> Self {
        let (mut heads, mut head_mask) = ([0_u8; 8], [0_u8; 8]);
        for (index, byte) in head.iter().take(8).enumerate() {
            (heads[index], head_mask[index]) = (*byte, 0xff);
        }
        let (mut tails, mut tail_mask) = ([0_u8; 8], [0_u8; 8]);
        for (index, byte) in tail.iter().rev().take(8).enumerate() {
            (tails[index], tail_mask[index]) = (*byte, 0xff);
        }
        Self {
            head: u64::from_le_bytes(heads),
            head_mask: u64::from_le_bytes(head_mask),
            tail: u64::from_le_bytes(tails),
            tail_mask: u64::from_le_bytes(tail_mask),
        }
    }

    /// A path has no NUL, so a byte beyond its end never equals a literal one.
    fn admits(self, path: &Self) -> bool {
        ((self.head ^ path.head) & self.head_mask) | ((self.tail ^ path.tail) & self.tail_mask) == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(patterns: &[&str]) -> PatternSet {
        PatternSet::new(patterns).unwrap()
    }

    #[test]
    fn a_pattern_that_was_skipped_above_counts_as_unmatched_below() {
        // Docker's incremental matcher: the second `d` could change nothing at `d`.
        assert!(!set(&["d", "!d/e", "d"]).matches(b"d/e"));
        assert!(set(&["d", "!d/e", "d/e"]).matches(b"d/e"));
    }

    #[test]
    fn errors_name_the_pattern() {
        assert_eq!(PatternSet::new(&["a", "["]).unwrap_err(), (1, PatternError::Syntax));
        assert_eq!(PatternSet::new(&["!"]).unwrap_err(), (0, PatternError::LoneBang));
        assert_eq!(PatternSet::new(&["a\\"]).unwrap_err(), (0, PatternError::Syntax));
        assert_eq!(PatternSet::new(&["[z-a]"]).unwrap_err(), (0, PatternError::Syntax));
    }

    #[test]
    fn brackets_and_backslashes_reach_the_regular_expression() {
        // pattern, path, matched
        let rows = [
            ("[*]", "]", true), // `[[^/]*]`: `[`, `^` and `/` any number of times, then `]`
            ("[*]", "*", false),
            ("[*]", "[^]", true),
            ("^a*", "abc", true),
            ("\\d*", "7up", true),
            ("\\d*", "up", false),
            ("\\w\\W", "a-", true),
            ("a\\bc*", "abc", false),
            ("\\x41?", "AB", true),
            ("[[:digit:]]*", "1a", true),
            ("[^a]b", "/b", true),
            ("a]*", "a]x", true),
            ("**/*.rs", "a/b/c.rs", true),
            ("a**/b", "axx/yy/b", true),
            ("a**/b", "ab", true),
            ("a**", "abc/d", true),
            ("***", "a/b", true),
            ("x\\*?", "x*y", true),
        ];
        for (pattern, path, matched) in rows {
            assert_eq!(set(&[pattern]).matches(path.as_bytes()), matched, "{pattern} on {path}");
        }
    }

    #[test]
    fn a_directory_is_entered_only_where_a_taken_back_path_can_be() {
        let rows = [
            ("!d/e/f", "d", true),
            ("!d/e/f", "d/e", true),
            ("!d/e/f", "d/e/f", false),
            ("!d/e/f", "d2", false),
            ("!*.log", "d", false),
            ("!*/keep", "d", true),
            ("!*/keep", "d/x", false),
            ("!**/keep", "d/x", true),
            ("!d/**", "d/x/y", true),
            ("!d/**", "e", false),
            ("d/e", "d", false),
        ];
        for (pattern, directory, may) in rows {
            let found = set(&["*", pattern]).may_unmatch_below(directory.as_bytes());
            assert_eq!(found, may, "{pattern} below {directory}");
        }
    }

    proptest! {
        #[test]
        fn buckets_turn_no_match_away(
            pattern in "[ab*?/]{1,8}",
            path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
        ) {
            let Ok(set) = PatternSet::new(&[&pattern]) else { return Ok(()) };
            let Some(alone) = set.patterns.first() else { return Ok(()) };
            if alone.matcher.matches(path.as_bytes()) != alone.negated {
                prop_assert!(set.judge(&Verdict::default(), path.as_bytes()).matched);
            }
        }

        #[test]
        fn what_is_not_entered_holds_nothing_taken_back(
            patterns in proptest::collection::vec("!?[ab*?/]{1,6}", 1..5),
            path in "[ab]{1,2}(/[ab]{1,2}){1,3}",
        ) {
            let Ok(set) = PatternSet::new(&patterns) else { return Ok(()) };
            let directory = path.rsplit_once('/').unwrap().0.as_bytes();
            if set.matches(directory) && !set.may_unmatch_below(directory) {
                prop_assert!(set.matches(path.as_bytes()));
            }
        }

        #[test]
        fn any_text_is_a_pattern_or_an_error(text in "\\PC{0,12}", path in "[ -~/]{0,12}") {
            if let Ok(set) = PatternSet::new(&[text]) {
                prop_assert_eq!(set.matches(path.as_bytes()), set.matches(path.as_bytes()));
            }
        }
    }
}
