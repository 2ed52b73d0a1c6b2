//! The patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*`, `?` and backslash escapes, nothing else.
//!
//! `*` and `?` stop at the end of a line, as in BuildKit, which makes regular expressions of them.

/// Most steps that the searches of one expansion may take together.
const STEPS_MAX: usize = 1 << 24;

const TOO_LONG: &str = "the pattern takes too long on this value";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Letter(char),
    AnyLetter,
    AnyText,
}

/// How many steps searches may still take; a step looks at one character in one place of a pattern.
#[derive(Debug)]
pub(super) struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(STEPS_MAX)
    }
}

impl Budget {
    fn spend(&mut self, steps: usize) -> Result<(), &'static str> {
        self.0 = self.0.checked_sub(steps).ok_or(TOO_LONG)?;
        Ok(())
    }
}

/// Which of several matches wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greed {
    Shortest,
    Longest,
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
}

impl Pattern {
    /// Compiles `text`; the error says which escape is none.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            let token = match letter {
                '*' => Token::AnyText,
                '?' => Token::AnyLetter,
                // `}` and `/` had to be escaped to get here: the escape is not part of the pattern.
                '\\' if matches!(letters.peek(), Some('}' | '/')) => continue,
                '\\' => match letters.next() {
                    Some(escaped @ ('*' | '?' | '\\')) => Token::Letter(escaped),
                    other => {
                        let shown = other.unwrap_or(char::REPLACEMENT_CHARACTER);
                        return Err(format!("invalid escape '\\{shown}'"));
                    }
                },
                _ => Token::Letter(letter),
            };
            if !(token == Token::AnyText && tokens.last() == Some(&Token::AnyText)) {
                tokens.push(token);
            }
        }
        Ok(Self { tokens })
    }

    /// `text` from back to front, with every escape still before what it escapes.
    pub(super) fn reversed_text(text: &str) -> String {
        let mut units = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            match (letter, (letter == '\\').then(|| letters.next()).flatten()) {
                (escape, Some(escaped)) => units.push((escape, Some(escaped))),
                (letter, None) => units.push((letter, None)),
            }
        }
        let mut out = String::with_capacity(text.len());
        for (first, second) in units.into_iter().rev() {
            out.push(first);
            out.extend(second);
        }
        out
    }

    /// How many characters at the front of `letters` match; 0 when none do.
    pub(super) fn prefix(
        &self,
        letters: &[char],
        greed: Greed,
        budget: &mut Budget,
    ) -> Result<usize, &'static str> {
        Ok(Search::new(self, budget).match_at(letters, greed)?.unwrap_or(0))
    }
}

/// A pattern at work, with its room.
struct Search<'p> {
    tokens: &'p [Token],
    live: Positions,
    next: Positions,
    budget: &'p mut Budget,
}

impl<'p> Search<'p> {
    fn new(pattern: &'p Pattern, budget: &'p mut Budget) -> Self {
        let places = pattern.tokens.len() + 1;
        Self {
            tokens: &pattern.tokens,
            live: Positions::new(places),
            next: Positions::new(places),
            budget,
        }
    }

    /// Where the match that starts at the front of `letters` ends.
    fn match_at(&mut self, letters: &[char], greed: Greed) -> Result<Option<usize>, &'static str> {
        let accepted = self.tokens.len();
        self.live.clear();
        self.live.enter(0, self.tokens);
        let mut end = None;
        for position in 0..=letters.len() {
            if self.live.contains(accepted) {
                end = Some(position);
                if greed == Greed::Shortest {
                    break;
                }
            }
            let Some(letter) = letters.get(position).filter(|_| !self.live.list.is_empty()) else {
                break;
            };
            self.budget.spend(self.live.list.len())?;
            self.next.clear();
            self.live.advance(*letter, self.tokens, &mut self.next);
            std::mem::swap(&mut self.live, &mut self.next);
        }
        Ok(end)
    }

    /// The first match in `letters` at or after `from`.
    fn find(
        &mut self,
        letters: &[char],
        from: usize,
    ) -> Result<Option<(usize, usize)>, &'static str> {
        for start in from..=letters.len() {
            self.budget.spend(1)?;
            let tail = letters.get(start..).unwrap_or_default();
            if let Some(length) = self.match_at(tail, Greed::Longest)? {
                return Ok(Some((start, start + length)));
            }
        }
        Ok(None)
    }
}

/// The places of a pattern where a match may be, after some characters.
struct Positions {
    list: Vec<usize>,
    seen: Vec<bool>,
}

impl Positions {
    fn new(places: usize) -> Self {
        Self { list: Vec::new(), seen: vec![false; places] }
    }

    /// Costs what is in it, not what could be.
    fn clear(&mut self) {
        for place in self.list.drain(..) {
            if let Some(seen) = self.seen.get_mut(place) {
                *seen = false;
            }
        }
    }

    fn contains(&self, place: usize) -> bool {
        self.seen.get(place).copied().unwrap_or(false)
    }

    fn enter(&mut self, place: usize, tokens: &[Token]) {
        let mut place = place;
        while let Some(seen) = self.seen.get_mut(place)
            && !*seen
        {
            *seen = true;
            self.list.push(place);
            // Any text may be no text.
            if tokens.get(place) != Some(&Token::AnyText) {
                break;
            }
            place += 1;
        }
    }

    fn advance(&self, letter: char, tokens: &[Token], next: &mut Self) {
        for place in &self.list {
            match tokens.get(*place) {
                Some(Token::Letter(expected)) if *expected == letter => {
                    next.enter(place + 1, tokens);
                }
                Some(Token::AnyLetter) if letter != '\n' => next.enter(place + 1, tokens),
                Some(Token::AnyText) if letter != '\n' => next.enter(*place, tokens),
                _ => {}
            }
        }
    }
}

/// `value` with its first match replaced; `replacement` is taken as it is.
pub(super) fn replace_first(
    pattern: &Pattern,
    value: &str,
    replacement: &str,
    budget: &mut Budget,
) -> Result<String, &'static str> {
    let letters: Vec<char> = value.chars().collect();
    let Some((start, end)) = Search::new(pattern, budget).find(&letters, 0)? else {
        return Ok(value.to_owned());
    };
    let mut out: String = letters.iter().take(start).collect();
    out.push_str(replacement);
    out.extend(letters.iter().skip(end));
    Ok(out)
}

/// `value` with every match replaced; in `replacement`, `$0` is the match, as in BuildKit.
pub(super) fn replace_all(
    pattern: &Pattern,
    value: &str,
    replacement: &str,
    budget: &mut Budget,
) -> Result<String, &'static str> {
    let letters: Vec<char> = value.chars().collect();
    let mut searching = Search::new(pattern, budget);
    let mut out = String::new();
    let mut copied = 0;
    let mut search = 0;
    let mut previous_end = None;
    while search <= letters.len() {
        let Some((start, end)) = searching.find(&letters, search)? else { break };
        out.extend(letters.iter().take(start).skip(copied));
        // An empty match right after another one does not count.
        if !(start == end && previous_end == Some(start)) {
            push_template(&mut out, replacement, letters.get(start..end).unwrap_or_default());
        }
        copied = end;
        previous_end = Some(end);
        search = if end > start { end } else { end + 1 };
        if out.len() > super::expand::RESULT_BYTES_MAX {
            return Err("the result is too long");
        }
    }
    out.extend(letters.iter().skip(copied));
    Ok(out)
}

/// Go's template of replacements: `$0` and `${0}` are the match, other names are empty, `$$` is `$`.
fn push_template(out: &mut String, template: &str, matched: &[char]) {
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let Some((name, after)) = template_name(after) else {
            out.push('$');
            rest = after;
            continue;
        };
        if name == "0" {
            out.extend(matched);
        }
        rest = after;
    }
    out.push_str(rest);
}

fn template_name(text: &str) -> Option<(&str, &str)> {
    let (braced, text) = match text.strip_prefix('{') {
        Some(inner) => (true, inner),
        None => (false, text),
    };
    let end = text.find(|l: char| !(l.is_alphanumeric() || l == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return None;
    }
    if braced { Some((name, rest.strip_prefix('}')?)) } else { Some((name, rest)) }
}
