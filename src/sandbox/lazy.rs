//! What a place can do, tried out when somebody has to know.
//!
//! Knows when, and what was said of it; `probe` knows how.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use super::{Ability, Wanted, probe};
use crate::limits::Limits;

/// The [`Ability`] of a place, found out once, when it is first asked for: what runs no process pays for none. A full disk
/// is no verdict: it is tried again.
pub struct LazyAbility {
    folder: PathBuf,
    wanted: Wanted,
    found: Mutex<Option<Arc<Ability>>>,
    told: Mutex<BTreeSet<String>>,
}

impl LazyAbility {
    /// Of a folder on the store's file system; nothing is tried yet.
    #[must_use]
    pub fn new(folder: PathBuf, wanted: Wanted) -> Self {
        Self { folder, wanted, found: Mutex::default(), told: Mutex::default() }
    }

    /// What was found out; tries it the first time, as [`super::ability`] does. Others wait meanwhile.
    ///
    /// # Panics
    ///
    /// When the attempt did so in another thread.
    pub fn get(&self) -> Arc<Ability> {
        let mut found = self.found.lock().expect("no holder panics");
        if let Some(known) = &*found {
            return Arc::clone(known);
        }
        let ability = Arc::new(probe::ability(&self.folder, &self.wanted));
        if ability.run.as_ref().err().is_none_or(|obstacle| obstacle.without_room.is_none()) {
            *found = Some(Arc::clone(&ability));
        }
        ability
    }

    /// What who runs processes within `limits` should know of this place, and has not been told yet; a line each.
    pub fn news(&self, limits: &Limits) -> Vec<String> {
        let ability = self.get();
        let lines = ability.notes.iter().cloned().chain(ability.limits.missing(limits));
        let mut told = self.told.lock().expect("no holder panics");
        lines.filter(|line| told.insert(line.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Enforcement;

    #[test]
    fn nothing_is_tried_before_it_is_asked_for_and_nothing_is_told_twice() {
        let folder = tempfile::tempdir().unwrap();
        let lazy = LazyAbility::new(folder.path().join("later"), Wanted::default());
        // It is asked only now: a folder that was not there when it was made will do.
        std::fs::create_dir(folder.path().join("later")).unwrap();
        let found = lazy.get();
        assert!(found.run.is_ok() && Arc::ptr_eq(&found, &lazy.get()));

        let of = |notes: &[&str]| {
            let notes = notes.iter().map(|note| (*note).to_owned()).collect();
            Ability { notes, limits: Enforcement::default(), ..Ability::clone(&found) }
        };
        let lazy = LazyAbility {
            found: Mutex::new(Some(of(&["a", "b"]).into())),
            ..lazy_of(folder.path())
        };
        let none = Limits { pids: None, ..Limits::default() };
        let some = Limits { memory: Some(1 << 20), ..none.clone() };
        assert_eq!(lazy.news(&none), ["a", "b"]);
        let news = lazy.news(&some);
        assert!(news.len() == 1 && news[0].starts_with("limits on memory"), "{news:?}");
        assert_eq!((lazy.news(&some), lazy.news(&none)), (Vec::new(), Vec::new()));
    }

    fn lazy_of(folder: &std::path::Path) -> LazyAbility {
        LazyAbility::new(folder.to_owned(), Wanted::default())
    }
}
