//! Cache keys: a tree of named components first, a digest second, so that a miss can be explained.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Hasher};

/// Identity of an op's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CacheKey(pub Digest);

/// One named part of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// What the part is, such as `argument` or `file`.
    pub name: String,
    /// Its value in words that may be shown; secrets are named, never quoted.
    pub value: String,
}

/// The parts of a key, in a fixed order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyTree {
    components: Vec<Component>,
}

impl KeyTree {
    /// A key of an op of this kind, such as `run`.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        let mut tree = Self::default();
        tree.add("kind", kind);
        tree
    }

    /// Adds a part.
    pub fn add(&mut self, name: &str, value: impl fmt::Display) {
        self.components.push(Component { name: name.to_owned(), value: value.to_string() });
    }

    /// Adds a part in front of all but the kind: what explains a difference best comes first.
    pub fn lead(&mut self, name: &str, value: impl fmt::Display) {
        let index = self.components.len().min(1);
        let component = Component { name: name.to_owned(), value: value.to_string() };
        self.components.insert(index, component);
    }

    /// The parts.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// The digest over all parts; lengths are hashed too, so parts cannot run together.
    #[must_use]
    pub fn key(&self) -> CacheKey {
        let mut hasher = Hasher::new();
        for Component { name, value } in &self.components {
            for part in [name, value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
        }
        CacheKey(hasher.finish())
    }

    /// The value of a part; of several of one name, the first.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.components.iter().find(|component| component.name == name);
        found.map(|component| component.value.as_str())
    }

    /// The first part in which `self` differs from `earlier`; `None` when they are equal. A part that
    /// came or went is named as such, although all that follows it has moved.
    #[must_use]
    pub fn first_difference(&self, earlier: &Self) -> Option<Difference> {
        let (now, before) = (&self.components, &earlier.components);
        let same = now.iter().zip(before).take_while(|(now, before)| now == before).count();
        let known = |parts: &[Component], name: &str| parts.iter().any(|part| part.name == name);
        let difference = |component: &str, words| Difference { component: component.into(), words };
        let changed = |now: &Component, before: &Component| {
            let (was, is) = (clip(&before.value), clip(&now.value));
            difference(&now.name, format!("{} changed: {was} → {is}", now.name))
        };
        let new = |part: &Component| {
            difference(&part.name, format!("{} is new: {}", part.name, clip(&part.value)))
        };
        let gone = |part: &Component| difference(&part.name, format!("{} is gone", part.name));
        Some(match (now.get(same), before.get(same)) {
            (None, None) => return None,
            (Some(now), Some(before)) if now.name == before.name => changed(now, before),
            (Some(part), _) if !known(before, &part.name) => new(part),
            (_, Some(part)) if !known(now, &part.name) => gone(part),
            (Some(now), Some(before)) => {
                difference(&now.name, format!("{} instead of {}", now.name, before.name))
            }
            (Some(part), None) => new(part),
            (None, Some(part)) => gone(part),
        })
    }
}

/// The first part in which two keys differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Name of the part.
    pub component: String,
    /// What became of it, in words.
    pub words: String,
}

/// Long values are shown by their beginning.
fn clip(value: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    if value.chars().count() <= SHOWN_CHARS_MAX {
        return value.to_owned();
    }
    value.chars().take(SHOWN_CHARS_MAX).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(parts: &[(&str, &str)]) -> KeyTree {
        let mut tree = KeyTree::new("run");
        parts.iter().for_each(|(name, value)| tree.add(name, value));
        tree
    }

    #[test]
    fn parts_cannot_run_together() {
        let (a, b) = (tree(&[("x", "ab")]), tree(&[("x", "a"), ("x", "b")]));
        assert_ne!(a.key(), b.key());
    }

    #[test]
    fn the_first_difference_is_named() {
        for (before, now, words) in [
            (&[("x", "a")][..], &[("x", "b")][..], Some("x changed: a → b")),
            (&[("x", "a")], &[("x", "a")], None),
            (&[("x", "a")], &[("x", "a"), ("y", "b")], Some("y is new: b")),
            (&[("x", "a"), ("z", "c")], &[("y", "b"), ("z", "c")], Some("y is new: b")),
            (&[("y", "b"), ("z", "c")], &[("z", "c")], Some("y is gone")),
            (&[("y", "b")], &[], Some("y is gone")),
            (&[("y", "b"), ("z", "c")], &[("z", "c"), ("y", "b")], Some("z instead of y")),
        ] {
            let found = tree(now).first_difference(&tree(before));
            assert_eq!(found.map(|difference| difference.words).as_deref(), words);
        }
    }
}
