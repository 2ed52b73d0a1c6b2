//! Images into registries: blobs first, then manifests by digest, the tag last and apart.
//!
//! A layer that is not in the store is mounted, or else goes from its registry through a temporary file.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    Image, ImageError, Upload,
    assemble::compressed_form,
    distributable,
    resolve::{note_origin, origins, read},
    transfer::{TRANSFERS_MAX, Teller, blocking, joined, nowhere, places},
};
use crate::{
    event::{Direction, Emit},
    oci::{
        Codec, Descriptor, DiffId, Digest, Document, ImageConfig, Index, Manifest, MediaType,
        Reference,
    },
    registry::{Client, Travel, Uploaded},
    store::{ImageRecord, Store},
};

/// Uploads the blobs of a stored image (manifest or index with all its children) and its manifest
/// by digest; no tag moves. Returns what [`publish`] needs. When `to` points at it already, that is
/// found out by one HEAD and nothing else is asked. What was learned of layers on the way is for the caller to flush.
///
/// # Errors
///
/// Any [`ImageError`].
#[expect(clippy::too_many_arguments, reason = "the contract of this module")]
pub async fn upload(
    store: &Store,
    client: &Client,
    record: &ImageRecord,
    to: &Reference,
    codec: Codec,
    name: &str,
    emit: &Emit,
) -> Result<Upload, ImageError> {
    let prepared = {
        let (store, record) = (store.clone(), record.clone());
        blocking(move || prepare(&store, &record.target, (codec, record.pulled))).await?
    };
    let descriptor = prepared.descriptor.clone();
    let bytes = prepared.bytes.clone();
    let wanted = if to.tag().is_some() { to.clone() } else { to.with_digest(descriptor.digest) };
    let current =
        client.peek(&wanted).await?.is_some_and(|found| found.digest == descriptor.digest);
    if !current {
        let sender = Sender { store, client, to, name, emit };
        sender.send(&prepared).await?;
    }
    Ok(Upload { to: to.clone(), descriptor, bytes, current })
}

/// Moves the tag to what was uploaded.
///
/// # Errors
///
/// Any [`ImageError`].
pub async fn publish(client: &Client, upload: &Upload) -> Result<Digest, ImageError> {
    if !upload.current && upload.to.tag().is_some() {
        let media_type = &upload.descriptor.media_type;
        client.push_manifest(&upload.to, media_type, &upload.bytes).await?;
    }
    Ok(upload.descriptor.digest)
}

/// Sends one layer that is in the store, in the form in which a push of an image with it would.
///
/// # Errors
///
/// Any [`ImageError`].
pub async fn send_layer(
    store: &Store,
    client: &Client,
    layer: DiffId,
    (to, codec): (&Reference, Codec),
    (name, emit): (&str, &Emit),
) -> Result<(), ImageError> {
    let own = store.clone();
    let blob = blocking(move || compressed_form(&own, layer, codec, None)).await?;
    let teller = Teller::new(name, emit, Direction::Push, &blob);
    let (store, client) = (store.clone(), client.clone());
    Send { store, client, to: to.clone(), blob, teller }.run().await
}

/// A document in the form that is sent, with what has to be there before it.
struct Prepared {
    descriptor: Descriptor,
    bytes: Vec<u8>,
    children: Vec<Prepared>,
    /// Config and layers, each once.
    blobs: Vec<Descriptor>,
}

fn prepare(
    store: &Store,
    target: &Descriptor,
    (codec, pulled): (Codec, bool),
) -> Result<Prepared, ImageError> {
    if target.media_type.is_index() {
        return prepare_index(store, target, (codec, pulled));
    }
    let what = format!("manifest {}", target.digest);
    let manifest: Document<Manifest> = read(store, target, &what)?;
    let kind = manifest.value.config.media_type.as_str();
    let is_image = matches!(kind, MediaType::CONFIG | MediaType::DOCKER_CONFIG)
        && manifest.value.layers.iter().all(|layer| layer.media_type.codec().is_some());
    let sent = if is_image {
        let config: Document<ImageConfig> = read(store, &manifest.value.config, &what)?;
        let image = Image { manifest, config, origin: None, pulled };
        distributable(store, &image, codec, None)?
    } else {
        manifest
    };
    let media_type = sent.value.media_type.clone().unwrap_or_else(|| target.media_type.clone());
    let mut descriptor = target.clone();
    descriptor.digest = sent.digest();
    descriptor.size = sent.raw.len() as u64;
    descriptor.media_type = media_type;
    let mut blobs: BTreeMap<Digest, Descriptor> = BTreeMap::new();
    for blob in sent.value.layers.iter().chain([&sent.value.config]) {
        blobs.insert(blob.digest, blob.clone());
    }
    let blobs = blobs.into_values().collect();
    Ok(Prepared { descriptor, bytes: sent.raw, children: Vec::new(), blobs })
}

fn prepare_index(
    store: &Store,
    target: &Descriptor,
    how: (Codec, bool),
) -> Result<Prepared, ImageError> {
    let index: Document<Index> = read(store, target, &format!("index {}", target.digest))?;
    let mut children = Vec::new();
    for child in &index.value.manifests {
        if child.media_type.is_index() {
            return Err(ImageError::Invalid {
                image: target.digest.to_string(),
                reason: "it has an index within an index, which registries refuse".to_owned(),
            });
        }
        children.push(prepare(store, child, how)?);
    }
    let unchanged =
        index.value.manifests.iter().zip(&children).all(|(was, is)| *was == is.descriptor);
    let sent = if unchanged {
        index
    } else {
        let manifests = children.iter().map(|child| child.descriptor.clone()).collect();
        Document::write(Index { manifests, ..index.value })
    };
    let mut descriptor = target.clone();
    descriptor.digest = sent.digest();
    descriptor.size = sent.raw.len() as u64;
    Ok(Prepared { descriptor, bytes: sent.raw, children, blobs: Vec::new() })
}

/// What one [`upload`] works with.
struct Sender<'a> {
    store: &'a Store,
    client: &'a Client,
    to: &'a Reference,
    name: &'a str,
    emit: &'a Emit,
}

impl Sender<'_> {
    async fn send(&self, prepared: &Prepared) -> Result<(), ImageError> {
        for child in &prepared.children {
            self.send_one(child).await?;
        }
        self.send_one(prepared).await
    }

    async fn send_one(&self, prepared: &Prepared) -> Result<(), ImageError> {
        let slots = Arc::new(Semaphore::new(TRANSFERS_MAX));
        let mut running = JoinSet::new();
        for blob in &prepared.blobs {
            let send = Send {
                store: self.store.clone(),
                client: self.client.clone(),
                to: self.to.clone(),
                blob: blob.clone(),
                teller: Teller::new(self.name, self.emit, Direction::Push, blob),
            };
            let slots = Arc::clone(&slots);
            running.spawn(async move {
                let _slot = slots.acquire_owned().await.expect("nobody closes it");
                send.run().await
            });
        }
        while let Some(done) = running.join_next().await {
            joined(done)?;
        }
        let digest = prepared.descriptor.digest;
        let by_digest = self.to.with_digest(digest);
        // Not every registry takes the same document twice at once.
        let _turn = self.client.turn(Travel::To(self.to.name(), digest)).await;
        let media_type = &prepared.descriptor.media_type;
        self.client.push_manifest(&by_digest, media_type, &prepared.bytes).await?;
        note_origin(self.store, digest, &self.to.name())
    }
}

/// One blob to send.
struct Send {
    store: Store,
    client: Client,
    to: Reference,
    blob: Descriptor,
    teller: Teller,
}

impl Send {
    async fn run(self) -> Result<(), ImageError> {
        let digest = self.blob.digest;
        // Tags of one image, and images that share a layer, send it once: the second finds it there.
        let _turn = self.client.turn(Travel::To(self.to.name(), digest)).await;
        let mount_from: Vec<String> = origins(&self.store, digest)?
            .into_iter()
            .filter(|seen| seen.registry() == self.to.registry())
            .map(|seen| seen.repository().to_owned())
            .collect();
        let uploaded = if self.store.blob_size(digest).is_some() {
            let path = blob_path(&self.store, digest);
            self.send_file(&path, &mount_from).await?
        } else {
            match self.client.offer_blob(&self.to, &self.blob, &mount_from).await? {
                Some(uploaded) => uploaded,
                None => self.send_through_file().await?,
            }
        };
        match uploaded {
            Uploaded::Existed => self.teller.skipped("exists"),
            Uploaded::Mounted => self.teller.skipped("mounted"),
            Uploaded::Sent => self.teller.moved(self.blob.size),
        }
        note_origin(&self.store, digest, &self.to.name())
    }

    async fn send_file(&self, path: &Path, mount_from: &[String]) -> Result<Uploaded, ImageError> {
        let progress = |done| self.teller.moved(done);
        Ok(self.client.push_blob(&self.to, &self.blob, path, mount_from, &progress).await?)
    }

    /// From the registry that has it, by way of a file that goes away again.
    async fn send_through_file(&self) -> Result<Uploaded, ImageError> {
        let staging = self.store.staging()?;
        let path = staging.path().join("blob");
        let failed = |source| ImageError::Io { path: path.clone(), source };
        let places = places(&self.store, None, self.blob.digest)?;
        let mut file = File::create(&path).map_err(failed)?;
        for place in &places {
            match self.client.pull_blob(place, &self.blob, &mut file, &|_| {}).await {
                Ok(()) => return self.send_file(&path, &[]).await,
                Err(error) if Some(place) == places.last() => return Err(error.into()),
                Err(error) => tracing::debug!(%error, %place, "next place"),
            }
        }
        Err(nowhere(self.blob.digest))
    }
}

/// The store is an OCI layout: a blob is the file of its digest.
fn blob_path(store: &Store, digest: Digest) -> PathBuf {
    store.root().join("blobs").join("sha256").join(digest.hex())
}
