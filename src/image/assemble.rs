//! Layers ⇄ manifests: an image from its layers, and the compressed form of it that travels.
//!
//! Knows the store and compression; knows no registry and no archive.

use std::io::{self, Read};
use std::{fs::File, io::Seek as _};

use super::{Image, ImageError, form::Layers};
use crate::{
    layer::{self, LayerError, LayerSummary, Listing, read_layer},
    oci::{
        Annotations, Codec, Descriptor, DiffId, Digest, Document, ImageConfig, Index, Manifest,
        MediaType, Platform,
    },
    store::{CompressedForm, ImageRecord, LayerRecord, Store},
};

/// Annotation of a plain layer in a manifest of ours: it is plain in the registry of the base, and so stays plain when
/// the image travels, where a layer that was made here is compressed. It does not travel itself.
const KEPT: &str = "dev.idpbuilder.layer.kept";

/// Makes manifest and config documents of an image from its layers and puts them into the store: the
/// lowest stand as `below` has them ([`base_layers`]), all others as plain tars, whatever other forms of them
/// the store has. The config's `rootfs` is set to `layers`.
///
/// # Errors
///
/// Any [`ImageError`].
pub fn assemble(
    store: &Store,
    config: &ImageConfig,
    layers: &[DiffId],
    below: &[Descriptor],
) -> Result<Image, ImageError> {
    let mut config = config.clone();
    config.rootfs.diff_ids = layers.to_vec();
    assemble_around(store, Document::write_compact(config), below)
}

/// An image's layers as they stand in the manifest of an image that is made on it.
#[must_use]
pub fn base_layers(image: &Image) -> Vec<Descriptor> {
    let mut layers = image.manifest.value.layers.clone();
    let plain = |layer: &&mut Descriptor| layer.media_type.codec() == Some(Codec::Plain);
    for layer in layers.iter_mut().filter(plain).filter(|_| image.pulled) {
        layer.annotations.insert(KEPT.to_owned(), "plain".to_owned());
    }
    layers
}

/// Bytes of all files of an image's layers; a layer that nobody has looked at yet counts with the
/// length of its blob.
///
/// # Errors
///
/// When the store fails.
pub fn content_bytes(store: &Store, image: &Image) -> Result<u64, ImageError> {
    let sizes = paired(image)?.map(|(descriptor, layer)| {
        let record = store.layer(layer)?.filter(|record| record.tar_bytes > 0);
        Ok(record.map_or(descriptor.size, |record| record.content_bytes))
    });
    sizes.sum()
}

/// As [`assemble`], around a config whose bytes somebody else made.
pub(super) fn assemble_around(
    store: &Store,
    config: Document<ImageConfig>,
    below: &[Descriptor],
) -> Result<Image, ImageError> {
    let made = config.value.rootfs.diff_ids.iter().skip(below.len());
    let made = made.map(|layer| plain_form(store, *layer));
    let below = below.iter().cloned().map(as_oci).map(Ok);
    let layers = below.chain(made).collect::<Result<Vec<_>, _>>()?;
    let manifest = Document::write(Manifest {
        schema_version: 2,
        media_type: Some(MediaType::new(MediaType::MANIFEST)),
        artifact_type: None,
        config: config.descriptor(MediaType::CONFIG),
        layers,
        subject: None,
        annotations: Annotations::new(),
    });
    store.put_blob(&config.raw)?;
    store.put_blob(&manifest.raw)?;
    Ok(Image { manifest, config, origin: None, pulled: false })
}

/// The form of an image that is pushed or exported: layers that were made here are compressed with `codec`, those of
/// a base stay as their registry has them; deterministic, and remembered in the store. Returns the
/// manifest; all its blobs are in the store afterwards, but for layers of the base.
///
/// # Errors
///
/// Any [`ImageError`].
pub fn distributable(
    store: &Store,
    image: &Image,
    codec: Codec,
    level: Option<u32>,
) -> Result<Document<Manifest>, ImageError> {
    with_layers(store, image, |descriptor, layer| match is_made_here(image, descriptor, layer) {
        true => compressed_form(store, layer, codec, level),
        false => Ok(as_kept(image, descriptor)),
    })
}

/// As [`distributable`], for a file: the blobs of all layers that stay as they are must be in the store.
pub(super) fn complete(
    store: &Store,
    image: &Image,
    (codec, level): (Codec, Option<u32>),
    which: Layers,
) -> Result<Document<Manifest>, ImageError> {
    with_layers(store, image, |descriptor, layer| {
        let other = which == Layers::All && descriptor.media_type.codec() != Some(codec);
        if other || is_made_here(image, descriptor, layer) {
            compressed_form(store, layer, codec, level)
        } else if store.blob_size(descriptor.digest).is_some() {
            Ok(as_kept(image, descriptor))
        } else {
            Err(missing(layer))
        }
    })
}

/// Whether a layer stands in a manifest as its tar because it was made here, and not because its registry has it so.
pub(super) fn is_made_here(image: &Image, descriptor: &Descriptor, layer: DiffId) -> bool {
    descriptor.digest == layer.0 && !image.pulled && !descriptor.annotations.contains_key(KEPT)
}

/// The descriptor of a layer that stays as it is, as it travels.
fn as_kept(image: &Image, descriptor: &Descriptor) -> Descriptor {
    let mut descriptor = descriptor.clone();
    if !image.pulled {
        descriptor.annotations.remove(KEPT);
    }
    descriptor
}

/// The image with every layer as a plain tar that is in the store.
pub(super) fn uncompressed(store: &Store, image: &Image) -> Result<Document<Manifest>, ImageError> {
    with_layers(store, image, |_, layer| {
        let size = length(store, &plain_tar(store, layer)?)?;
        Ok(Descriptor::new(MediaType::layer(Codec::Plain), layer.0, size))
    })
}

/// The manifest with other forms of its layers; byte for byte the same when no layer changes.
fn with_layers(
    store: &Store,
    image: &Image,
    form: impl Fn(&Descriptor, DiffId) -> Result<Descriptor, ImageError>,
) -> Result<Document<Manifest>, ImageError> {
    let layers = paired(image)?;
    let forms: Vec<_> =
        layers.map(|(descriptor, layer)| form(descriptor, layer)).collect::<Result<_, _>>()?;
    if forms == image.manifest.value.layers {
        return Ok(image.manifest.clone());
    }
    let mut manifest = image.manifest.value.clone();
    manifest.layers = forms.into_iter().map(as_oci).collect();
    manifest.media_type = Some(MediaType::new(MediaType::MANIFEST));
    manifest.config.media_type = MediaType::new(MediaType::CONFIG);
    let manifest = Document::write(manifest);
    store.put_blob(&manifest.raw)?;
    Ok(manifest)
}

/// Descriptors of an image's layers with their diff IDs.
pub(super) fn paired(
    image: &Image,
) -> Result<impl Iterator<Item = (&Descriptor, DiffId)>, ImageError> {
    let (layers, ids) = (&image.manifest.value.layers, &image.config.value.rootfs.diff_ids);
    if layers.len() != ids.len() {
        let reason =
            format!("the manifest has {} layers and the config {}", layers.len(), ids.len());
        return Err(ImageError::Invalid { image: image.manifest.digest().to_string(), reason });
    }
    Ok(layers.iter().zip(ids.iter().copied()))
}

/// Docker's and OCI's types must not stand in one manifest.
fn as_oci(mut descriptor: Descriptor) -> Descriptor {
    if let Some(codec) = descriptor.media_type.codec() {
        descriptor.media_type = MediaType::layer(codec);
    }
    descriptor
}

/// The form in which a layer that was made here stands in the store's own manifests.
fn plain_form(store: &Store, layer: DiffId) -> Result<Descriptor, ImageError> {
    let size = store.layer(layer)?.map(|record| record.tar_bytes).filter(|size| *size > 0);
    let size = size.or_else(|| store.blob_size(layer.0)).ok_or_else(|| missing(layer))?;
    Ok(Descriptor::new(MediaType::layer(Codec::Plain), layer.0, size))
}

/// Our own form of the layer in this compression: one that is in the store, or a new one. What others made of the same
/// tar is never taken: whether it is here depends on what was pulled before.
pub(super) fn compressed_form(
    store: &Store,
    layer: DiffId,
    codec: Codec,
    level: Option<u32>,
) -> Result<Descriptor, ImageError> {
    let mut forms = store.layer(layer)?.map(|record| record.compressed).unwrap_or_default();
    forms.retain(|form| !form.original && form.codec == codec && form.level == level);
    forms.retain(|form| store.blob_size(form.descriptor.digest).is_some());
    if let Some(form) = forms.into_iter().min_by_key(|form| form.descriptor.digest) {
        return Ok(form.descriptor);
    }
    let tar = plain_tar(store, layer)?;
    let tar_bytes = length(store, &tar)?;
    if codec == Codec::Plain {
        return Ok(Descriptor::new(MediaType::layer(codec), layer.0, tar_bytes));
    }
    let writer = layer::compress(codec, level, tar, store.blob_writer()?);
    let (digest, size) = writer.map_err(|source| in_store(store, source))?.commit(None)?;
    let descriptor = Descriptor::new(MediaType::layer(codec), digest, size);
    let form = CompressedForm { codec, level, original: false, descriptor: descriptor.clone() };
    let record = match store.layer(layer)? {
        Some(record) => LayerRecord { compressed: vec![form], ..record },
        None => {
            let content_bytes = listed_bytes(&listing_of(store, layer)?);
            LayerRecord { tar_bytes, content_bytes, compressed: vec![form] }
        }
    };
    store.put_layer(layer, &record)?;
    Ok(descriptor)
}

/// The plain tar of a layer, decompressed into the store when it is not there.
pub(super) fn plain_tar(store: &Store, layer: DiffId) -> Result<File, ImageError> {
    if store.blob_size(layer.0).is_some() {
        return Ok(store.open_blob(layer.0)?);
    }
    let forms = store.layer(layer)?.map(|record| record.compressed).unwrap_or_default();
    let here = forms.iter().find(|form| store.blob_size(form.descriptor.digest).is_some());
    let form = here.ok_or_else(|| missing(layer))?;
    let blob = store.open_blob(form.descriptor.digest)?;
    let mut writer = store.blob_writer()?;
    let copied =
        layer::decompress(Box::new(blob)).and_then(|mut tar| io::copy(&mut tar, &mut writer));
    copied.map_err(|source| in_store(store, source))?;
    writer.commit(Some(layer.0))?;
    Ok(store.open_blob(layer.0)?)
}

/// What a layer holds; read from its tar when that was not noted down before.
pub(super) fn listing_of(store: &Store, layer: DiffId) -> Result<Listing, ImageError> {
    if let Some(bytes) = store.listing(layer)?
        && let Ok(listing) = Listing::decode(bytes)
    {
        return Ok(listing);
    }
    let summary = read_layer(plain_tar(store, layer)?, |_, _| Ok(()))?;
    store.put_listing(layer, &summary.listing.encode())?;
    Ok(summary.listing)
}

fn listed_bytes(listing: &Listing) -> u64 {
    let sizes = listing.iter().map(|listed| match &listed.change {
        crate::tree::Change::Put(entry) => entry.size(),
        crate::tree::Change::Whiteout(_) | crate::tree::Change::Opaque(_) => 0,
    });
    sizes.sum()
}

/// Takes note of a layer whose blob is in the store, in whatever compression: its listing and record
/// are added. `layer` is what the config promises. Returns what the blob is, whatever `descriptor` says of its type.
pub(super) fn take_layer(
    store: &Store,
    descriptor: &Descriptor,
    layer: DiffId,
) -> Result<Descriptor, ImageError> {
    let blob = descriptor.digest;
    let mut file = store.open_blob(blob)?;
    let codec = codec_of(&mut file).map_err(|source| in_store(store, source))?;
    drop(file);
    let found = Descriptor::new(MediaType::layer(codec), blob, descriptor.size);
    let known = blob == layer.0 || store.diff_id_of(blob)? == Some(layer);
    if known && store.layer(layer)?.is_some() && store.listing(layer)?.is_some() {
        return Ok(found);
    }
    let summary = read_foreign(store, blob)?;
    if summary.diff_id != layer {
        let found = summary.diff_id;
        let reason = format!("the config promises layer {layer}, its blob holds {found}");
        return Err(ImageError::Invalid { image: blob.to_string(), reason });
    }
    store.put_listing(layer, &summary.listing.encode())?;
    let form = CompressedForm { codec, level: None, original: true, descriptor: found.clone() };
    let compressed = if codec == Codec::Plain { Vec::new() } else { vec![form] };
    let (tar_bytes, content_bytes) = (summary.tar_bytes, summary.content_bytes);
    store.put_layer(layer, &LayerRecord { tar_bytes, content_bytes, compressed })?;
    Ok(found)
}

/// Reads a layer's blob to its end, which may come from anybody.
pub(super) fn read_foreign(store: &Store, blob: Digest) -> Result<LayerSummary, ImageError> {
    let file = store.open_blob(blob)?;
    let packed = file.metadata().map_err(|source| in_store(store, source))?.len();
    let most = store.unpack_limits().most(packed);
    let plain = layer::decompress(Box::new(file)).map_err(LayerError::from)?;
    read_layer(layer::bounded(plain, most), |_, _| Ok(())).map_err(|error| match error {
        error if layer::is_too_large(&error) => {
            let (image, reason) = (format!("layer {blob}"), error.to_string());
            ImageError::Invalid { image, reason }
        }
        error => error.into(),
    })
}

/// Compression by the first bytes, whatever a media type says.
fn codec_of(file: &mut File) -> io::Result<Codec> {
    let mut first = Vec::new();
    file.by_ref().take(4).read_to_end(&mut first)?;
    file.rewind()?;
    Ok(match first.as_slice() {
        [0x1f, 0x8b, ..] => Codec::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] | [_, 0x2a, 0x4d, 0x18] => Codec::Zstd,
        _ => Codec::Plain,
    })
}

/// The image that a manifest in the store describes.
pub(super) fn open(store: &Store, manifest: Digest) -> Result<Image, ImageError> {
    let manifest: Document<Manifest> = document(store, manifest)?;
    let config = document(store, manifest.value.config.digest)?;
    Ok(Image { manifest, config, origin: None, pulled: false })
}

/// Reads a document from the store.
pub(super) fn document<T: serde::de::DeserializeOwned>(
    store: &Store,
    digest: Digest,
) -> Result<Document<T>, ImageError> {
    let raw = store.read_blob(digest)?;
    Document::parse(raw).map_err(|source| ImageError::Document { what: digest.to_string(), source })
}

/// Whether a manifest in an index is an image, and not an attestation beside one.
pub(super) fn is_image(descriptor: &Descriptor) -> bool {
    let unknown = |platform: &Platform| platform.os == "unknown";
    descriptor.media_type.is_manifest() && !descriptor.platform.as_ref().is_some_and(unknown)
}

/// The record of an image whose manifest or index, and all else but layers, is in the store.
pub(super) fn record_of(
    store: &Store,
    reference: Option<String>,
    target: Descriptor,
) -> Result<ImageRecord, ImageError> {
    let images = if target.media_type.is_index() {
        let index: Document<Index> = document(store, target.digest)?;
        let here = |child: &&Descriptor| is_image(child) && store.blob_size(child.digest).is_some();
        let children = index.value.manifests.iter().filter(here);
        children.map(|child| open(store, child.digest)).collect::<Result<Vec<_>, _>>()?
    } else {
        vec![open(store, target.digest)?]
    };
    let host = Platform::host();
    let platform = |image: &Image| image.config.value.platform();
    let shown = images.iter().find(|image| platform(image).satisfies(&host)).or(images.first());
    let shown = shown.ok_or_else(|| ImageError::Invalid {
        image: target.digest.to_string(),
        reason: "the index holds no image".to_owned(),
    })?;
    let mut size = 0_u64;
    for (descriptor, layer) in paired(shown)? {
        let bytes = store.layer(layer)?.map_or(descriptor.size, |record| record.tar_bytes);
        size = size.saturating_add(bytes);
    }
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    Ok(ImageRecord {
        reference,
        config: shown.config.digest(),
        platforms: images.iter().map(platform).collect(),
        stored_at: i64::try_from(now).unwrap_or(i64::MAX),
        created: shown.config.value.created.clone(),
        size,
        target,
        pulled: false,
    })
}

fn missing(layer: DiffId) -> ImageError {
    ImageError::Invalid {
        image: layer.to_string(),
        reason: "no form of this layer is in the store; pull or build the image again".to_owned(),
    }
}

fn length(store: &Store, file: &File) -> Result<u64, ImageError> {
    Ok(file.metadata().map_err(|source| in_store(store, source))?.len())
}

pub(super) fn in_store(store: &Store, source: io::Error) -> ImageError {
    ImageError::Io { path: store.root().to_owned(), source }
}
