//! The variables that instructions see, and the expansion of words over them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use crate::dockerfile::expand::{ExpandError, Expanded, expand, expand_body, expand_words, run};
use crate::dockerfile::words::{Escapes, Quotes, Rules, Unset};

/// Variables in the order in which they were last set.
#[derive(Clone, Debug, Default)]
pub(super) struct Env {
    /// By when they were set.
    pairs: BTreeMap<usize, (String, String)>,
    /// When each was set.
    set: HashMap<String, usize>,
    /// How often anything was set.
    count: usize,
}

/// A word after expansion.
#[derive(Clone, Debug)]
pub(super) struct Word {
    /// The result, or why there is none.
    pub text: Result<String, String>,
    /// Variables that were used and are set.
    pub used: Vec<String>,
    /// Variables that were asked for and are not set.
    pub unset: Vec<String>,
    /// Whether a replacement had a `$` in it.
    pub template: bool,
}

impl Env {
    /// Sets a variable; one that is set again moves to the end, as in BuildKit.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        if let Some(earlier) = self.set.insert(name.to_owned(), self.count) {
            self.pairs.remove(&earlier);
        }
        self.pairs.insert(self.count, (name.to_owned(), value.to_owned()));
        self.count += 1;
    }

    /// The value of a variable.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.set.get(name).and_then(|when| self.pairs.get(when)).map(|(_, value)| value.as_str())
    }

    /// Names in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.values().map(|(name, _)| name.as_str())
    }

    /// The pairs, in order.
    pub(super) fn pairs(&self) -> Vec<(String, String)> {
        self.pairs.values().cloned().collect()
    }

    /// Expands one word.
    pub(super) fn word(&self, word: &str, escape: char) -> Word {
        self.watched(|env| expand(word, escape, env))
    }

    /// Expands the body of a heredoc.
    pub(super) fn body(&self, body: &str) -> Word {
        self.watched(|env| expand_body(body, env))
    }

    /// Expands a word and splits what comes out.
    pub(super) fn words(&self, word: &str, escape: char) -> Result<Vec<String>, String> {
        let get = |name: &str| self.get(name).map(str::to_owned);
        expand_words(word, escape, &get).map_err(|error| error.to_string())
    }

    /// A line for people to read: known variables are filled in, all else stays as typed.
    pub(super) fn shown(&self, line: &str, escape: char) -> String {
        let rules =
            Rules { escape, quotes: Quotes::Keep, escapes: Escapes::Keep, unset: Unset::Keep };
        let get = |name: &str| self.get(name).map(str::to_owned);
        run(line, rules, &get).map_or_else(|_| line.to_owned(), |lexed| lexed.text)
    }

    fn watched(
        &self,
        expand: impl FnOnce(&dyn Fn(&str) -> Option<String>) -> Result<Expanded, ExpandError>,
    ) -> Word {
        let used = RefCell::new(Vec::new());
        let get = |name: &str| {
            let value = self.get(name).map(str::to_owned);
            let mut used = used.borrow_mut();
            if value.is_some() && !used.iter().any(|known| known == name) {
                used.push(name.to_owned());
            }
            value
        };
        let (text, unset, template) = match expand(&get) {
            Ok(done) => (Ok(done.text), done.unset, done.template),
            Err(error) => (Err(error.to_string()), error.unset, false),
        };
        Word { text, used: used.into_inner(), unset, template }
    }
}

impl FromIterator<(String, String)> for Env {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        let mut env = Self::default();
        for (name, value) in pairs {
            env.set(&name, &value);
        }
        env
    }
}
