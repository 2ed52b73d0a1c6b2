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

    /// The first part in which `self` differs from `earlier`, in words; `None` when they are equal.
    #[must_use]
    pub fn first_difference(&self, earlier: &Self) -> Option<String> {
        let (now, before) = (&self.components, &earlier.components);
        let differing = now.iter().zip(before).find(|(now, before)| now != before);
        match differing {
            Some((now, before)) if now.name == before.name => Some(format!(
                "{} changed: {} → {}",
                now.name,
                clip(&before.value),
                clip(&now.value)
            )),
            Some((now, before)) => Some(format!("{} instead of {}", now.name, before.name)),
            None if now.len() > before.len() => Some(format!("{} is new", now[before.len()].name)),
            None if now.len() < before.len() => Some(format!("{} is gone", before[now.len()].name)),
            None => None,
        }
    }
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

    #[test]
    fn parts_cannot_run_together_and_a_difference_is_named() {
        let (mut a, mut b) = (KeyTree::new("run"), KeyTree::new("run"));
        a.add("argument", "ab");
        b.add("argument", "a");
        b.add("argument", "b");
        assert_ne!(a.key(), b.key());
        assert_eq!(a.first_difference(&b).as_deref(), Some("argument changed: a → ab"));
        assert_eq!(a.first_difference(&a), None);
    }
}
