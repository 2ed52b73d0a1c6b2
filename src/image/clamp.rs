//! An image with no file dated later than a given time, in the layers above its base.
//!
//! The base's layers stay as they are: whoever has the base shares them.

use super::{
    Image, ImageError,
    assemble::{self, listing_of, plain_tar},
};
use crate::{
    layer::{LayerWriter, read_layer},
    oci::DiffId,
    store::{LayerRecord, Store},
    tree::{Change, Timestamp},
};

/// The image with every layer above the lowest `below` made anew where it holds later times than
/// `latest`; the same image when there is none.
///
/// # Errors
///
/// Any [`ImageError`].
pub fn clamp_times(
    store: &Store,
    image: &Image,
    below: usize,
    latest: Timestamp,
) -> Result<Image, ImageError> {
    let mut layers = image.config.value.rootfs.diff_ids.clone();
    for layer in layers.iter_mut().skip(below) {
        *layer = clamped(store, *layer, latest)?;
    }
    if layers == image.config.value.rootfs.diff_ids {
        return Ok(image.clone());
    }
    let base = &image.manifest.value.layers[..below.min(layers.len())];
    assemble::assemble(store, &image.config.value, &layers, base)
}

fn clamped(store: &Store, layer: DiffId, latest: Timestamp) -> Result<DiffId, ImageError> {
    let listing = listing_of(store, layer)?;
    let is_later = |change: &Change| match change {
        Change::Put(entry) => entry.meta.mtime > latest,
        Change::Whiteout(_) | Change::Opaque(_) => false,
    };
    if !listing.iter().any(|listed| is_later(&listed.change)) {
        return Ok(layer);
    }
    let mut out = LayerWriter::new(store.blob_writer()?).clamp_mtime(latest);
    let read = read_layer(plain_tar(store, layer)?, |change, content| match change {
        Change::Put(entry) => out.put(entry, content),
        Change::Whiteout(path) => out.whiteout(path),
        Change::Opaque(path) => out.opaque(path),
    });
    read?;
    let (blob, summary) = out.finish()?;
    let made = summary.diff_id;
    blob.commit(Some(made.0))?;
    store.put_listing(made, &summary.listing.encode())?;
    let (tar_bytes, content_bytes) = (summary.tar_bytes, summary.content_bytes);
    store.put_layer(made, &LayerRecord { tar_bytes, content_bytes, compressed: Vec::new() })?;
    Ok(made)
}
