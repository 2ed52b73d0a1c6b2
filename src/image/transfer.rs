//! Getting layers from registries into the store: several at once, each verified twice.
//!
//! The digest says that the bytes are those of the manifest; the diff ID, that the manifest and the
//! config speak of the same layer.

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    Image, ImageError,
    assemble::{is_made_here, paired, read_foreign},
    output::keeps_blob,
    resolve::origins,
};
use crate::{
    event::{Direction, Emit, Event},
    oci::{Codec, Descriptor, DiffId, Digest, Reference},
    plan::OutputPlan,
    registry::{Client, RegistryError, Sink, Travel},
    store::{BlobWriter, CompressedForm, LayerRecord, Store},
};

/// Blobs of one image that travel at once.
pub(super) const TRANSFERS_MAX: usize = 4;
/// Shortest time between two events about one blob.
const EVENT_EVERY: Duration = Duration::from_millis(100);

/// Makes sure that the bytes of all layers are in the store, as blob or tar, pulling what is missing, several at once;
/// records diff IDs. A snapshot alone will not do: nothing that is pushed or saved can be made of one.
///
/// # Errors
///
/// Any [`ImageError`].
pub async fn fetch_layers(
    store: &Store,
    client: &Client,
    image: &Image,
    name: &str,
    emit: &Emit,
) -> Result<(), ImageError> {
    let layers = image.manifest.value.layers.iter().zip(&image.config.value.rootfs.diff_ids);
    let layers = layers.map(|(descriptor, layer)| (descriptor, *layer, Need::Content)).collect();
    fetch(store, client, (image, layers), name, emit).await
}

/// As [`fetch_layers`], of what outputs lack, and without a word of what they do not: a layer that an output holds as its registry has
/// it is pulled even when the store has another form of it.
///
/// # Errors
///
/// Any [`ImageError`].
pub async fn fetch_for_outputs(
    store: &Store,
    client: &Client,
    (image, outputs): (&Image, &[OutputPlan]),
    name: &str,
    emit: &Emit,
) -> Result<(), ImageError> {
    let lacking = lacking(store, image, outputs)?;
    fetch(store, client, (image, lacking), name, emit).await
}

/// Whether [`fetch_for_outputs`] has nothing to do.
///
/// # Errors
///
/// Any [`ImageError`].
pub fn has_all_for(
    store: &Store,
    image: &Image,
    outputs: &[OutputPlan],
) -> Result<bool, ImageError> {
    Ok(lacking(store, image, outputs)?.is_empty())
}

fn lacking<'i>(
    store: &Store,
    image: &'i Image,
    outputs: &[OutputPlan],
) -> Result<Vec<(&'i Descriptor, DiffId, Need)>, ImageError> {
    let mut lacking = Vec::new();
    for (descriptor, layer) in paired(image)? {
        let kept = outputs.iter().map(|output| keeps_blob(output, descriptor));
        let kept = kept.collect::<Result<Vec<_>, _>>()?.contains(&true);
        if kept && !is_made_here(image, descriptor, layer) {
            if store.blob_size(descriptor.digest).is_none() {
                lacking.push((descriptor, layer, Need::Blob));
            }
        } else if is_absent(store, descriptor, layer)? {
            lacking.push((descriptor, layer, Need::Content));
        }
    }
    Ok(lacking)
}

async fn fetch(
    store: &Store,
    client: &Client,
    (image, layers): (&Image, Vec<(&Descriptor, DiffId, Need)>),
    name: &str,
    emit: &Emit,
) -> Result<(), ImageError> {
    let slots = Arc::new(Semaphore::new(TRANSFERS_MAX));
    let mut running = JoinSet::new();
    for (descriptor, diff_id, need) in layers {
        let fetch = Fetch {
            store: store.clone(),
            client: client.clone(),
            descriptor: descriptor.clone(),
            diff_id,
            need,
            origin: image.origin.clone(),
            teller: Teller::new(name, emit, Direction::Pull, descriptor),
        };
        let slots = Arc::clone(&slots);
        running.spawn(async move {
            let _slot = slots.acquire_owned().await.expect("nobody closes it");
            fetch.run().await
        });
    }
    while let Some(done) = running.join_next().await {
        joined(done)?;
    }
    Ok(())
}

/// Layers of an image that are in the store neither as blob nor as tar: [`fetch_layers`] gets them.
///
/// # Errors
///
/// When the store fails.
pub fn absent_layers(store: &Store, image: &Image) -> Result<Vec<Absent>, ImageError> {
    let mut absent = Vec::new();
    for (descriptor, layer) in paired(image)? {
        if is_absent(store, descriptor, layer)? {
            let blob = descriptor.clone();
            let places = places(store, image.origin.as_ref(), blob.digest)?;
            absent.push(Absent { layer, blob, places });
        }
    }
    Ok(absent)
}

/// Whether the bytes of a layer are in the store in no form.
fn is_absent(store: &Store, descriptor: &Descriptor, layer: DiffId) -> Result<bool, ImageError> {
    let forms = store.layer(layer)?.map(|record| record.compressed).unwrap_or_default();
    let blobs = forms.iter().map(|form| form.descriptor.digest);
    let mut blobs = blobs.chain([layer.0, descriptor.digest]);
    Ok(!blobs.any(|blob| store.blob_size(blob).is_some()))
}

/// A layer whose bytes are not in the store.
#[derive(Clone, Debug)]
pub struct Absent {
    /// The layer.
    pub layer: DiffId,
    /// Its blob.
    pub blob: Descriptor,
    /// Repositories that are known to have it, best first.
    pub places: Vec<Reference>,
}

/// What of a layer has to be here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Its bytes: as blob or tar.
    Content,
    /// The blob that its manifest names.
    Blob,
}

/// One layer to get.
struct Fetch {
    store: Store,
    client: Client,
    descriptor: Descriptor,
    diff_id: DiffId,
    need: Need,
    origin: Option<Reference>,
    teller: Teller,
}

impl Fetch {
    async fn run(self) -> Result<(), ImageError> {
        // Images that share a base fetch it once.
        let _turn = self.client.turn(Travel::Here(self.descriptor.digest)).await;
        if self.is_here()? {
            self.teller.skipped("exists");
            return Ok(());
        }
        if self.store.blob_size(self.descriptor.digest).is_none() {
            let writer = self.download().await?;
            let expected = self.descriptor.digest;
            blocking(move || writer.commit(Some(expected))).await?;
        }
        let (store, descriptor, diff_id) =
            (self.store.clone(), self.descriptor.clone(), self.diff_id);
        blocking(move || examine(&store, &descriptor, diff_id)).await
    }

    /// The blob, from the first place that has it.
    async fn download(&self) -> Result<BlobWriter, ImageError> {
        let mut writer = self.store.blob_writer()?;
        let places = places(&self.store, self.origin.as_ref(), self.descriptor.digest)?;
        let progress = |done| self.teller.moved(done);
        for place in &places {
            match self.client.pull_blob(place, &self.descriptor, &mut writer, &progress).await {
                Ok(()) => return Ok(writer),
                Err(error) if Some(place) == places.last() => return Err(error.into()),
                Err(error) => tracing::debug!(%error, %place, "next place"),
            }
        }
        Err(nowhere(self.descriptor.digest))
    }

    /// In a form that can be used, with all that is to be known of it.
    fn is_here(&self) -> Result<bool, ImageError> {
        let known = self.store.layer(self.diff_id)?;
        let examined = known.is_some_and(|record| record.tar_bytes > 0);
        let has = |blob| self.store.blob_size(blob).is_some();
        let has_tar = self.need == Need::Content && has(self.diff_id.0);
        Ok(examined && (has_tar || has(self.descriptor.digest)))
    }
}

impl Sink for BlobWriter {
    fn begin_anew(&mut self) -> io::Result<()> {
        self.restart()
    }
}

/// Decompresses a layer's blob, holds it against its diff ID, and records what it is.
fn examine(store: &Store, descriptor: &Descriptor, diff_id: DiffId) -> Result<(), ImageError> {
    let summary = read_foreign(store, descriptor.digest)?;
    if summary.diff_id != diff_id {
        return Err(ImageError::Invalid {
            image: format!("layer {}", descriptor.digest),
            reason: format!("its content is {}, the config says {diff_id}", summary.diff_id),
        });
    }
    store.put_listing(diff_id, &summary.listing.encode())?;
    let form = CompressedForm {
        codec: descriptor.media_type.codec().unwrap_or(Codec::Plain),
        level: None,
        original: true,
        descriptor: descriptor.clone(),
    };
    let record = LayerRecord {
        tar_bytes: summary.tar_bytes,
        content_bytes: summary.content_bytes,
        compressed: vec![form],
    };
    Ok(store.put_layer(diff_id, &record)?)
}

/// Where a blob may be had: wherever it was seen, then where the image is said to come from. A name
/// alone says little: an image that was built here has one before any registry has it.
pub(super) fn places(
    store: &Store,
    origin: Option<&Reference>,
    blob: Digest,
) -> Result<Vec<Reference>, ImageError> {
    let mut places = origins(store, blob)?;
    places.extend(
        origin.filter(|origin| places.iter().all(|place| place.name() != origin.name())).cloned(),
    );
    Ok(places)
}

pub(super) fn nowhere(blob: Digest) -> ImageError {
    let what = format!("blob {blob} (neither in the store nor in any registry it is known from)");
    RegistryError::NotFound(what).into()
}

/// Tells about one blob, not too often.
pub(super) struct Teller {
    image: String,
    emit: Emit,
    direction: Direction,
    digest: Digest,
    total: u64,
    last: Mutex<Option<(Instant, u64)>>,
}

impl Teller {
    pub(super) fn new(image: &str, emit: &Emit, direction: Direction, blob: &Descriptor) -> Self {
        Self {
            image: image.to_owned(),
            emit: Arc::clone(emit),
            direction,
            digest: blob.digest,
            total: blob.size,
            last: Mutex::new(None),
        }
    }

    pub(super) fn moved(&self, done: u64) {
        let now = Instant::now();
        {
            let mut last = self.last.lock().expect("nobody panics while holding it");
            let is_due = match *last {
                None => true,
                Some((_, told)) if done == told => false,
                Some((at, _)) => done == self.total || now - at >= EVENT_EVERY,
            };
            if !is_due {
                return;
            }
            *last = Some((now, done));
        }
        (self.emit)(Event::Transfer {
            image: self.image.clone(),
            direction: self.direction,
            digest: self.digest,
            done,
            total: self.total,
        });
    }

    pub(super) fn skipped(&self, reason: &'static str) {
        (self.emit)(Event::TransferSkipped {
            image: self.image.clone(),
            direction: self.direction,
            digest: self.digest,
            reason,
        });
    }
}

/// Runs something long that is not async where it may block.
pub(super) async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ImageError>
where
    T: Send + 'static,
    E: Into<ImageError> + Send + 'static,
{
    joined(tokio::task::spawn_blocking(move || work().map_err(Into::into)).await)
}

/// The result of a task; its panic goes on here.
pub(super) fn joined<T>(
    done: Result<Result<T, ImageError>, tokio::task::JoinError>,
) -> Result<T, ImageError> {
    match done {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ImageError::Invalid {
            image: "transfer".to_owned(),
            reason: "the runtime is shutting down".to_owned(),
        }),
    }
}
