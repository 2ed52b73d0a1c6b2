//! Blobs: files named by the digest of their bytes, invisible until that digest is known.
//!
//! A blob that was renamed into place may still be lost by a power cut. Its mode tells: 0600 until its
//! bytes are known to be on the disk, 0400 after. A 0600 blob that this process did not write is read
//! whole before it is believed. Knows nothing of what blobs mean.

#![expect(unsafe_code, reason = "sync_file_range, for which no library has a safe function")]

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Seek as _, Write},
    os::{
        fd::AsRawFd as _,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    oci::{Digest, Hasher},
    store::{
        Store, StoreError,
        error::at,
        facts::Access,
        lock,
        queue::{MODE_SEALED, seal},
    },
};

/// Mode of a blob that is not known to be on the disk.
const MODE_OPEN: u32 = 0o600;
/// Bytes collected before they are written, and read at once.
const BUFFER_BYTES: usize = 128 << 10;
/// So much is written before the disk is told to begin with it, in bytes.
const BEGIN_BYTES: u64 = 8 << 20;
/// Largest blob that is read into memory, in bytes: twice what a document may have.
const READ_BYTES_MAX: u64 = 16 << 20;

/// A blob being written. Dropping it removes the bytes.
pub struct BlobWriter {
    store: Store,
    file: BufWriter<File>,
    path: TemporaryFile,
    hashing: Hashing,
    bytes: u64,
    /// How many of them the disk was told to begin with.
    begun: u64,
    stop: Option<Arc<AtomicBool>>,
}

/// Who hashes the bytes of a blob.
enum Hashing {
    /// The writer, as they come.
    Here(Hasher),
    /// The caller, who has to hash the same bytes anyway.
    Caller,
}

/// A file that goes when this is dropped, unless it was renamed before.
struct TemporaryFile(PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0)); // After a rename there is none; else the next collection finds it.
    }
}

impl Store {
    /// Length of a blob in bytes, when it is there.
    #[must_use]
    pub fn blob_size(&self, digest: Digest) -> Option<u64> {
        self.protect(digest).ok()?;
        let path = self.blob_path(digest);
        let found = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let believed = found.permissions().mode() & 0o777 == MODE_SEALED
            || lock(&self.shared.queue).has_blob(digest)
            || self.verify_open_blob(&path, digest);
        believed.then_some(found.len())
    }

    /// Reads a blob that another process left unsealed, and seals it when it is whole. One that is not
    /// stays until its bytes come again: removing it here could hit those.
    fn verify_open_blob(&self, path: &Path, digest: Digest) -> bool {
        let Ok(mut file) = File::open(path) else { return false };
        let whole = hash(&mut file).is_ok_and(|(found, _)| found == digest);
        if whole && self.shared.facts().access() == Access::Full {
            drop(seal(&file)); // Failing that, the next look reads it again.
        }
        whole
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    ///
    /// [`StoreError::MissingBlob`], or what the kernel said.
    pub fn open_blob(&self, digest: Digest) -> Result<File, StoreError> {
        self.protect(digest)?; // Whose failure is not a missing blob.
        if self.blob_size(digest).is_none() {
            return Err(StoreError::MissingBlob(digest));
        }
        let path = self.blob_path(digest);
        File::open(&path).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                return StoreError::MissingBlob(digest);
            }
            StoreError::at(&path, error)
        })
    }

    /// Reads a small blob (documents).
    ///
    /// # Errors
    ///
    /// As [`Store::open_blob`], and [`StoreError::DigestMismatch`] when its bytes are damaged. A blob
    /// of more than 16 MiB is no document and is refused.
    pub fn read_blob(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let mut bytes = Vec::new();
        self.open_blob(digest)?
            .take(READ_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(at(&path))?;
        if bytes.len() as u64 > READ_BYTES_MAX {
            return Err(StoreError::at(&path, io::ErrorKind::FileTooLarge.into()));
        }
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(StoreError::DigestMismatch { expected: digest, found });
        }
        Ok(bytes)
    }

    /// Stores a small blob (documents); durable with the next [`Store::flush`] or [`Store::put_image`].
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.blob_size(digest) == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let mut writer = self.blob_writer()?;
        writer.write_all(bytes).map_err(at(&self.blob_path(digest)))?;
        Ok(writer.commit(None)?.0)
    }

    /// Starts a blob of unknown length. Invisible until [`BlobWriter::commit`].
    ///
    /// # Errors
    ///
    /// When the file cannot be made.
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        self.writer(Hashing::Here(Hasher::new()))
    }

    /// As [`Store::blob_writer`], for one whose caller hashes all that it writes, as
    /// a writer of layers does, and hands the digest to [`BlobWriter::commit`], where it is taken
    /// as it is: SHA-256 is what most of a large COPY's time goes into, so it is done once.
    ///
    /// # Errors
    ///
    /// When the file cannot be made.
    pub fn blob_writer_hashed_by_caller(&self) -> Result<BlobWriter, StoreError> {
        self.writer(Hashing::Caller)
    }

    fn writer(&self, hashing: Hashing) -> Result<BlobWriter, StoreError> {
        let path = self.temporary_path()?;
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(MODE_OPEN)
            .open(&path)
            .map_err(at(&path))?;
        Ok(BlobWriter {
            store: self.clone(),
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            path: TemporaryFile(path),
            hashing,
            bytes: 0,
            begun: 0,
            stop: lock(&self.shared.stop).clone(),
        })
    }

    pub(super) fn blobs_folder(&self) -> PathBuf {
        self.root().join("blobs/sha256")
    }

    pub(super) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.blobs_folder().join(digest.hex())
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(io::Error::other("stopped by the user"));
        }
        let written = self.file.write(bytes)?;
        if let Hashing::Here(hasher) = &mut self.hashing {
            hasher.update(&bytes[..written]);
        }
        self.bytes += written as u64;
        self.begin_writing();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter {
    /// Has the kernel begin to bring what was written to the disk, while the rest is read, hashed or compressed: a flush
    /// then waits for the end alone. Says nothing of what is on the disk.
    fn begin_writing(&mut self) {
        let whole = self.bytes - self.bytes % BEGIN_BYTES;
        let (Ok(offset), Ok(length)) =
            (i64::try_from(self.begun), i64::try_from(whole - self.begun))
        else {
            return;
        };
        if length == 0 {
            return;
        }
        let file = self.file.get_ref().as_raw_fd();
        // Where a file system has no such thing, the flush does it all.
        // SAFETY: the descriptor is open as long as `self.file` lives, and no memory is handed over.
        unsafe { libc::sync_file_range(file, offset, length, libc::SYNC_FILE_RANGE_WRITE) };
        self.begun = whole;
    }

    /// Drops what was written.
    ///
    /// # Errors
    ///
    /// When the file cannot be cut.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().set_len(0)?;
        self.file.rewind()?;
        (self.bytes, self.begun) = (0, 0);
        if let Hashing::Here(hasher) = &mut self.hashing {
            *hasher = Hasher::new();
        }
        Ok(())
    }

    /// Makes the blob visible under its digest; durable with the next [`Store::flush`].
    ///
    /// # Errors
    ///
    /// [`StoreError::DigestMismatch`] when `expected` is given and differs; nothing is kept then. What
    /// the caller has hashed is not hashed again, unless `expected` is left out.
    pub fn commit(self, expected: Option<Digest>) -> Result<(Digest, u64), StoreError> {
        let Self { store, mut file, path, hashing, bytes, begun: _, stop: _ } = self;
        file.flush().map_err(at(&path.0))?;
        let found = match (hashing, expected) {
            (Hashing::Here(hasher), _) => hasher.finish(),
            (Hashing::Caller, Some(digest)) => digest,
            (Hashing::Caller, None) => {
                let mut written = File::open(&path.0).map_err(at(&path.0))?;
                hash(&mut written).map_err(at(&path.0))?.0
            }
        };
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(StoreError::DigestMismatch { expected, found });
        }
        if store.blob_size(found) == Some(bytes) {
            return Ok((found, bytes));
        }
        lock(&store.shared.queue).add_blob(found); // First, so that nobody here doubts it.
        fs::rename(&path.0, store.blob_path(found)).map_err(at(&path.0))?;
        Ok((found, bytes))
    }
}

/// Digest and length of all that is left to read.
pub(super) fn hash(source: &mut impl Read) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut bytes, mut buffer) = (Hasher::new(), 0, vec![0; BUFFER_BYTES]);
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), bytes)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
