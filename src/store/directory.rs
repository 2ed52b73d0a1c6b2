//! Staging directories, snapshots of layers, and listings.
//!
//! A snapshot's files are not synced one by one: until a flush has synced the file system, a mark
//! beside it names the boot that it was made in. A snapshot with neither mark nor sealed row, or with
//! a mark of another boot, may have lost bytes in a power cut, and is made again.

use std::{
    any::Any,
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{CWD, RenameFlags},
    io::Errno,
};

use crate::{
    oci::{DiffId, Digest},
    store::{Store, StoreError, error::at, facts::Table, lock, remove::remove_tree},
};

/// Ending of the names of marks.
pub(super) const MARK: &str = "boot";
/// Bytes of the digest at the end of a listing file.
const SUM_BYTES: usize = 32;

/// Encoded size of the listings that are kept in decoded form, at most; decoded they take about as much.
const DECODED_BYTES_MAX: usize = 4 << 20;

/// Listings in the form that their reader made of them.
#[derive(Default)]
pub(super) struct Decoded {
    listings: HashMap<DiffId, Arc<dyn Any + Send + Sync>>,
    /// Their size as encoded.
    bytes: usize,
    /// What their reader keeps of many at once.
    beside: Option<Arc<dyn Any + Send + Sync>>,
}

impl Decoded {
    fn get(&self, layer: DiffId) -> Option<Arc<dyn Any + Send + Sync>> {
        self.listings.get(&layer).cloned()
    }

    /// Keeps a listing while there is room: what comes first is the base, which is looked at most.
    fn keep(&mut self, layer: DiffId, listing: Arc<dyn Any + Send + Sync>, bytes: usize) {
        if self.bytes + bytes <= DECODED_BYTES_MAX && self.listings.insert(layer, listing).is_none()
        {
            self.bytes += bytes;
        }
    }
}

/// A directory being filled. Dropping it removes it with all content.
pub struct Staging {
    path: PathBuf,
    /// Keeps the process's part of `tmp` alive.
    _store: Store,
}

impl Staging {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        drop(remove_tree(&self.path)); // What stays is removed by the next collection.
    }
}

impl Store {
    /// Makes an empty directory on the store's file system (mode 0755 inside a 0700 parent).
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn staging(&self) -> Result<Staging, StoreError> {
        let path = self.temporary_path()?;
        DirBuilder::new().mode(0o700).create(&path).map_err(at(&path))?;
        // Not by `mkdir`, whose mode the umask cuts.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(at(&path))?;
        Ok(Staging { path, _store: self.clone() })
    }

    /// Directory of a layer's snapshot, when it is unpacked.
    #[must_use]
    pub fn snapshot(&self, layer: DiffId) -> Option<PathBuf> {
        self.protect(layer.0).ok()?;
        let path = self.snapshot_path(layer);
        let there = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
        (there && self.is_believed(layer)).then_some(path)
    }

    fn is_believed(&self, layer: DiffId) -> bool {
        if lock(&self.shared.queue).has_snapshot(layer) {
            return true; // Ours of just now: its mark need not be read.
        }
        // The mark goes after the row came: looking in this order, one of them is seen.
        let mark = fs::read(self.boot_mark(layer)).unwrap_or_default();
        lock(&self.shared.queue).has_snapshot(layer)
            || !mark.is_empty() && mark == self.shared.boot_id
            || matches!(self.get(Table::Sealed, layer.0.as_bytes()), Ok(Some(_)))
    }

    /// Renames `directory` (below a [`Staging`]) to the snapshot of `layer`. Losing a race is fine.
    ///
    /// # Errors
    ///
    /// When the rename fails.
    pub fn commit_snapshot(&self, directory: &Path, layer: DiffId) -> Result<PathBuf, StoreError> {
        self.protect(layer.0)?;
        let path = self.snapshot_path(layer);
        if self.snapshot(layer).is_some() {
            remove_tree(directory).map_err(at(directory))?;
            return Ok(path);
        }
        self.discard_snapshot(layer)?;
        if self.shared.facts().get(Table::Sealed, layer.0.as_bytes())?.is_some() {
            // Said of a snapshot that somebody took away; it must not vouch for this one.
            self.shared.facts().write(|writer| writer.delete(Table::Sealed, layer.0.as_bytes()))?;
        }
        // By a rename, so that nobody sees an empty mark and doubts a snapshot in use.
        let (temporary, mark) = (self.temporary_path()?, self.boot_mark(layer));
        let written = fs::write(&temporary, &self.shared.boot_id);
        written.and_then(|()| fs::rename(&temporary, &mark)).map_err(at(&mark))?;
        match rename_new(directory, &path) {
            Ok(()) => lock(&self.shared.queue).add_snapshot(layer),
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                remove_tree(directory).map_err(at(directory))?;
            }
            Err(errno) => return Err(StoreError::at(directory, errno.into())),
        }
        Ok(path)
    }

    /// Takes a snapshot away in one step, then removes it. None there is fine.
    pub(super) fn discard_snapshot(&self, layer: DiffId) -> Result<(), StoreError> {
        let path = self.snapshot_path(layer);
        if fs::symlink_metadata(&path).is_err() {
            return Ok(());
        }
        let trash = self.temporary_path()?;
        match rename_new(&path, &trash) {
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(StoreError::at(&path, errno.into())),
            Ok(()) => remove_tree(&trash).map_err(at(&trash)),
        }
    }

    /// Encoded listing of a layer. A damaged one is none: it can be made again.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be read.
    pub fn listing(&self, layer: DiffId) -> Result<Option<Vec<u8>>, StoreError> {
        self.protect(layer.0)?;
        let path = self.listing_path(layer);
        let mut bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(at(&path))?,
        };
        let Some(at_sum) = bytes.len().checked_sub(SUM_BYTES) else { return Ok(None) };
        let sum = bytes.split_off(at_sum);
        Ok((Digest::of(&bytes).as_bytes()[..] == sum).then_some(bytes))
    }

    /// Encoded listing of a layer with its sum, as it stands on the disk.
    pub(super) fn summed_listing(&self, layer: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let listing = self.listing(DiffId(layer))?;
        Ok(listing.map(|bytes| [&bytes[..], Digest::of(&bytes).as_bytes()].concat()))
    }

    /// What `decode` makes of the listing of a layer. Made once and then shared, as long as there is
    /// room: every RUN looks at the listings of all layers below it.
    ///
    /// # Errors
    ///
    /// As [`Store::listing`].
    pub fn decoded_listing<T: Send + Sync + 'static>(
        &self,
        layer: DiffId,
        decode: impl FnOnce(Vec<u8>) -> Option<T>,
    ) -> Result<Option<Arc<T>>, StoreError> {
        let known = lock(&self.shared.decoded).get(layer);
        if let Some(known) = known.and_then(|known| known.downcast().ok()) {
            self.protect(layer.0)?;
            return Ok(Some(known));
        }
        let Some(bytes) = self.listing(layer)? else { return Ok(None) };
        let length = bytes.len();
        let Some(decoded) = decode(bytes).map(Arc::new) else { return Ok(None) };
        let shared = Arc::clone(&decoded);
        lock(&self.shared.decoded).keep(layer, shared, length);
        Ok(Some(decoded))
    }

    /// What the reader of listings keeps of many at once, for as long as the store is open in this process.
    #[must_use]
    pub fn beside_listings<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut decoded = lock(&self.shared.decoded);
        if let Some(known) = decoded.beside.clone().and_then(|known| known.downcast().ok()) {
            return known;
        }
        let new = Arc::<T>::default();
        let shared = Arc::clone(&new);
        decoded.beside = Some(shared);
        new
    }

    /// Keeps the encoded listing of a layer.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn put_listing(&self, layer: DiffId, bytes: &[u8]) -> Result<(), StoreError> {
        self.protect(layer.0)?;
        let temporary = self.temporary_path()?;
        let open = File::options().write(true).create_new(true).mode(0o600).open(&temporary);
        let written = open.and_then(|mut file| {
            file.write_all(bytes)?;
            file.write_all(Digest::of(bytes).as_bytes())
        });
        let renamed = written.and_then(|()| fs::rename(&temporary, self.listing_path(layer)));
        renamed.map_err(at(&temporary)).inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    pub(super) fn snapshot_path(&self, layer: DiffId) -> PathBuf {
        self.root().join("snapshots").join(layer.0.hex())
    }

    /// The file beside a snapshot that names the boot it was made in.
    pub(super) fn boot_mark(&self, layer: DiffId) -> PathBuf {
        self.root().join("snapshots").join(format!("{}.{MARK}", layer.0.hex()))
    }

    pub(super) fn listing_path(&self, layer: DiffId) -> PathBuf {
        self.root().join("listings").join(layer.0.hex())
    }
}

/// Renames a directory to a name that is free. One that its owner may not write needs the right to,
/// since the kernel changes its `..`.
pub(super) fn rename_new(from: &Path, to: &Path) -> Result<(), Errno> {
    let rename = || match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::rename(from, to),
        renamed => renamed,
    };
    match rename() {
        Err(Errno::ACCESS) => {
            let mode = fs::symlink_metadata(from).map_err(|_| Errno::ACCESS)?.permissions();
            let writable = fs::Permissions::from_mode(mode.mode() | 0o200);
            fs::set_permissions(from, writable).map_err(|_| Errno::ACCESS)?;
            rename()?;
            fs::set_permissions(to, mode).map_err(|_| Errno::ACCESS)
        }
        renamed => renamed,
    }
}
