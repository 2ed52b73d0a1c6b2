//! Pins: names of images that stay until they are unpinned.
//!
//! A pin is a note in a namespace of its own, and goes with the name.

use std::collections::BTreeSet;

use crate::store::{Store, StoreError, facts::Table, layers::now_s, row::Note};

/// Namespace of the notes that are pins; their values are empty.
pub(super) const PINNED_NAMESPACE: &str = "pinned";

impl Store {
    /// Pins the image of this full reference (of an untagged image: the digest of its manifest), durably.
    /// Whether it was not pinned before.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoImage`], or when LMDB fails.
    pub fn pin(&self, reference: &str) -> Result<bool, StoreError> {
        if self.image(reference)?.is_none() {
            return Err(StoreError::NoImage(reference.to_owned()));
        }
        let key = pin_key(reference);
        let (namespace, name) = (PINNED_NAMESPACE.to_owned(), reference.to_owned());
        let row = Note { made_at: now_s(), namespace, name, value: Vec::new() }.write();
        self.shared.facts().write(|writer| {
            let is_new = writer.get(Table::Notes, &key)?.is_none();
            writer.put(Table::Notes, &key, &row)?;
            Ok(is_new)
        })
    }

    /// Takes a pin away; whether there was one.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn unpin(&self, reference: &str) -> Result<bool, StoreError> {
        self.shared.facts().write(|writer| writer.delete(Table::Notes, &pin_key(reference)))
    }

    /// Names of all pinned images.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn pins(&self) -> Result<BTreeSet<String>, StoreError> {
        let rows = self.shared.facts().all(Table::Notes)?;
        let notes = rows.iter().filter_map(|(key, row)| Note::parse(key, row));
        Ok(notes.filter(|note| note.namespace == PINNED_NAMESPACE).map(|note| note.name).collect())
    }
}

/// The key of the pin on a name.
pub(super) fn pin_key(reference: &str) -> [u8; 32] {
    *Note::key(PINNED_NAMESPACE, reference).as_bytes()
}
