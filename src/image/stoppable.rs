//! A writer that ends with an error as soon as the user stopped everything.
//!
//! Knows the store, which is told; what is written and where to is nothing to it.

use std::io::{self, Write};

use crate::store::Store;

/// Writes to another writer until the user stops it.
pub(super) struct Stoppable<W> {
    store: Store,
    inner: W,
}

impl<W> Stoppable<W> {
    pub(super) fn new(store: &Store, inner: W) -> Self {
        Self { store: store.clone(), inner }
    }
}

impl<W: Write> Write for Stoppable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.store.go_on()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
