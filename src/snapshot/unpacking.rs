//! Layers become directories: unpacked when missing, checked, each once however many ask.
//!
//! Knows where the bytes of a layer may lie; knows nothing of what they mean.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::SnapshotError;
use crate::{
    layer::{self, LayerSummary, OverlayMarks, Ownership},
    oci::{DiffId, Digest},
    sandbox::{self, Privilege},
    store::{LayerRecord, Store, StoreError},
};

/// Layers unpacked at once, at most: they share one disk.
const THREADS_MAX: usize = 4;

/// See [`super::lowers`].
pub(super) fn lowers(
    store: &Store,
    layers: &[DiffId],
    marks: OverlayMarks,
) -> Result<Vec<PathBuf>, SnapshotError> {
    let mut seen = BTreeSet::new();
    // A layer that comes again adds nothing where it was before, and overlay refuses it (ELOOP).
    let once = layers.iter().rev().copied().filter(|layer| seen.insert(*layer));
    let mut found: Vec<_> = once.map(|layer| (layer, store.snapshot(layer))).collect();
    let missing = found.iter().filter(|(_, path)| path.is_none());
    let missing: Vec<_> = missing.map(|(layer, _)| *layer).collect();
    unpack_all(store, &missing, marks)?;
    for (layer, path) in found.iter_mut().filter(|(_, path)| path.is_none()) {
        *path = store.snapshot(*layer);
    }
    found.into_iter().map(|(layer, path)| path.ok_or(SnapshotError::Missing(layer))).collect()
}

fn unpack_all(store: &Store, missing: &[DiffId], marks: OverlayMarks) -> Result<(), SnapshotError> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let workers = processors.min(THREADS_MAX).min(missing.len());
    if workers <= 1 {
        return missing.iter().try_for_each(|layer| unpack_one(store, *layer, marks));
    }
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        while let Some(layer) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = unpack_one(store, *layer, marks) {
                next.store(missing.len(), Ordering::Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

fn unpack_one(store: &Store, layer: DiffId, marks: OverlayMarks) -> Result<(), SnapshotError> {
    // Whoever unpacks holds the blob: other threads and processes wait here, and then find it done.
    let lock = open_blob(store, layer)?;
    store.lock_alone(&lock, &store.root().join("snapshots").join(layer.0.hex()))?;
    if store.snapshot(layer).is_some() {
        return Ok(());
    }
    let blob = open_blob(store, layer)?;
    let staging = store.staging()?;
    let directory = staging.path().join("fs");
    let made = fs::DirBuilder::new().mode(0o755).create(&directory);
    made.and_then(|()| fill(store, layer, &directory, (blob, marks)))
        .map_err(|error| broken(layer, error.into()))??;
    store.commit_snapshot(&directory, layer)?;
    drop(lock);
    Ok(())
}

type Filled = Result<(), SnapshotError>;

fn fill(
    store: &Store,
    layer: DiffId,
    directory: &Path,
    (blob, marks): (File, OverlayMarks),
) -> std::io::Result<Filled> {
    let target = File::open(directory)?;
    let tar = layer::decompress(Box::new(blob))?;
    let summary = layer::unpack_as(tar, target.as_fd(), marks, ownership());
    Ok(summary
        .map_err(|error| broken(layer, error))
        .and_then(|summary| keep(store, layer, &summary)))
}

/// See [`super::compare`].
pub(super) fn compare(blob: File, snapshot: &Path) -> Option<(String, &'static str)> {
    let unreadable = || ("/".to_owned(), "cannot be read");
    let Ok(directory) = File::open(snapshot) else { return Some(unreadable()) };
    // A layer that cannot be read is no damage of its snapshot, and a check of blobs names it.
    let tar = layer::decompress(Box::new(blob)).ok()?;
    let found = layer::compare(tar, directory.as_fd(), ownership()).ok()??;
    Some((found.path, found.what))
}

/// With one id, owners are recorded in listings and cannot be set.
fn ownership() -> Ownership {
    match sandbox::privilege() {
        Privilege::Root | Privilege::Mapped => Ownership::Exact,
        Privilege::SingleId | Privilege::None => Ownership::Own,
    }
}

/// Checks what was read against what was asked for, and keeps what was learned on the way.
pub(super) fn keep(
    store: &Store,
    layer: DiffId,
    summary: &LayerSummary,
) -> Result<(), SnapshotError> {
    if summary.diff_id != layer {
        let (expected, found) = (layer.0, summary.diff_id.0);
        return Err(StoreError::DigestMismatch { expected, found }.into());
    }
    store.put_listing(layer, &summary.listing.encode())?;
    let record = LayerRecord {
        tar_bytes: summary.tar_bytes,
        content_bytes: summary.content_bytes,
        compressed: Vec::new(),
    };
    store.put_layer(layer, &record)?;
    Ok(())
}

/// The bytes of a layer, plain or compressed.
pub(super) fn open_blob(store: &Store, layer: DiffId) -> Result<File, SnapshotError> {
    if store.blob_size(layer.0).is_some() {
        return Ok(store.open_blob(layer.0)?);
    }
    let compressed = compressed_blob(store, layer)?.ok_or(SnapshotError::Missing(layer))?;
    Ok(store.open_blob(compressed)?)
}

fn compressed_blob(store: &Store, layer: DiffId) -> Result<Option<Digest>, SnapshotError> {
    let Some(record) = store.layer(layer)? else { return Ok(None) };
    let blobs = record.compressed.iter().map(|form| form.descriptor.digest);
    let mut here = blobs.filter(|digest| store.blob_size(*digest).is_some());
    Ok(here.next())
}

/// The plain tar of a layer as a stream.
pub(super) fn open_tar(
    store: &Store,
    layer: DiffId,
) -> Result<Box<dyn Read + Send>, SnapshotError> {
    let blob = open_blob(store, layer)?;
    layer::decompress(Box::new(blob)).map_err(|error| broken(layer, error.into()))
}

/// Keeps the plain tar of a layer, for whoever wants single files of it.
pub(super) fn decompress(store: &Store, layer: DiffId) -> Result<(), SnapshotError> {
    let (mut tar, mut blob) = (open_tar(store, layer)?, store.blob_writer()?);
    std::io::copy(&mut tar, &mut blob).map_err(|error| broken(layer, error.into()))?;
    blob.commit(Some(layer.0))?;
    Ok(())
}

pub(super) fn broken(layer: DiffId, source: layer::LayerError) -> SnapshotError {
    SnapshotError::Layer { layer, source }
}
