//! From a name to an image: what the store knows of it, or what its registry says, for one platform.
//!
//! Fetches documents only, never layers. What a tag resolved to is kept as a note (`resolved`), where a
//! blob can be had as another (`origin`).

use crate::{
    image::{Image, ImageError},
    oci::{
        Descriptor, Digest, Document, ImageConfig, Index, Manifest, MediaType, Platform, Reference,
    },
    registry::Client,
    store::{CompressedForm, ImageRecord, LayerRecord, ORIGIN_NAMESPACE, Store, StoreError},
};

/// Namespace of notes: full reference with tag → descriptor (JSON).
const RESOLVED: &str = "resolved";
/// Repositories that are remembered for one blob.
const ORIGINS_MAX: usize = 8;
/// Indexes within indexes that are followed.
const INDEX_DEPTH_MAX: usize = 4;
/// Longest image config, in bytes.
const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// Whether a name is looked up in its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refresh {
    /// Only when the store has not got it.
    #[default]
    Missing,
    /// Always.
    Always,
    /// Always; what the store has is good enough when no registry answers.
    Newer,
    /// Not at all: the store must have it.
    Never,
}

/// Gets manifest and config of an image into the store, without its layers: from the store when
/// `reference` is named or was resolved there and `refresh` allows it, else from the registry.
///
/// # Errors
///
/// Any [`ImageError`].
pub async fn resolve(
    store: &Store,
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    refresh: Refresh,
) -> Result<Image, ImageError> {
    Ok(resolve_target(store, client, reference, platform, refresh).await?.0)
}

/// As [`resolve`], with the digest of what the reference itself points at: an index, when the image is
/// for several platforms.
///
/// # Errors
///
/// Any [`ImageError`].
pub async fn resolve_target(
    store: &Store,
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    refresh: Refresh,
) -> Result<(Image, Digest), ImageError> {
    let finder = Finder { store, client, reference, platform };
    if matches!(refresh, Refresh::Missing | Refresh::Never)
        && let Some(found) = finder.at_home()?
    {
        return Ok(found);
    }
    match refresh {
        Refresh::Never => Err(ImageError::NotHere(reference.familiar())),
        Refresh::Missing | Refresh::Always => finder.abroad().await,
        Refresh::Newer => match finder.abroad().await {
            Err(error @ ImageError::Registry(_)) => match finder.at_home()? {
                Some(found) => {
                    tracing::debug!(%error, %reference, "what the store has is taken");
                    Ok(found)
                }
                None => Err(error),
            },
            found => found,
        },
    }
}

/// Whether the store has an image of this name that no registry is known to have had.
///
/// # Errors
///
/// When the store fails.
pub fn is_local(store: &Store, reference: &Reference) -> Result<bool, ImageError> {
    let Some(tag) = reference.tag() else { return Ok(false) };
    let name = reference.with_tag(tag).to_string();
    Ok(store.image(&name)?.is_some() && store.note(RESOLVED, &name)?.is_none())
}

/// The image that a record of the store names, for a platform.
///
/// # Errors
///
/// Any [`ImageError`].
pub fn load(store: &Store, record: &ImageRecord, platform: &Platform) -> Result<Image, ImageError> {
    let name = record.reference.clone().unwrap_or_else(|| record.target.digest.to_string());
    let origin = origins(store, record.target.digest)?.into_iter().next();
    let image = from_store(store, &record.target, platform, (&name, origin.as_ref()))?;
    Ok(Image { pulled: record.pulled, ..image })
}

/// What one [`resolve`] works with.
struct Finder<'a> {
    store: &'a Store,
    client: &'a Client,
    reference: &'a Reference,
    platform: &'a Platform,
}

impl Finder<'_> {
    /// From the store alone; `None` when anything is missing there.
    fn at_home(&self) -> Result<Option<(Image, Digest)>, ImageError> {
        let Some((target, pulled)) = self.known_target()? else { return Ok(None) };
        let name = self.reference.familiar();
        let found = from_store(self.store, &target, self.platform, (&name, Some(self.reference)));
        match found {
            Ok(image) => Ok(Some((Image { pulled, ..image }, target.digest))),
            Err(ImageError::Store(StoreError::MissingBlob(_)) | ImageError::Platform { .. }) => {
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// What the name stands for, and whether a registry has it so: what is asked for by its digest may be known by
    /// another name.
    fn known_target(&self) -> Result<Option<(Descriptor, bool)>, ImageError> {
        let pinned = self.reference.digest();
        let fits = |target: &Descriptor| pinned.is_none_or(|digest| digest == target.digest);
        if let Some(tag) = self.reference.tag() {
            let name = self.reference.with_tag(tag).to_string();
            if let Some(record) = self.store.image(&name)?
                && fits(&record.target)
            {
                let pulled =
                    record.pulled || (pinned.is_some() && self.is_abroad(&record.target)?);
                return Ok(Some((record.target, pulled)));
            }
        }
        let note = self.store.note(RESOLVED, &self.reference.to_string())?;
        let target = note.and_then(|json| serde_json::from_slice::<Descriptor>(&json).ok());
        match (target.filter(fits), pinned) {
            (None, Some(digest)) => {
                let Some(target) = self.described(digest)? else { return Ok(None) };
                let pulled = self.is_abroad(&target)?;
                Ok(Some((target, pulled)))
            }
            (known, _) => Ok(known.map(|target| (target, true))),
        }
    }

    /// Whether a registry is known to have a document.
    fn is_abroad(&self, target: &Descriptor) -> Result<bool, ImageError> {
        Ok(!origin_names(self.store, target.digest)?.is_empty())
    }

    /// A document that the store has under another name.
    fn described(&self, digest: Digest) -> Result<Option<Descriptor>, ImageError> {
        if self.store.blob_size(digest).is_none() {
            return Ok(None);
        }
        let raw = self.store.read_blob(digest)?;
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&raw) else { return Ok(None) };
        let usual = match value.get("manifests") {
            Some(_) => MediaType::INDEX,
            None => MediaType::MANIFEST,
        };
        let said = value.get("mediaType").and_then(serde_json::Value::as_str).unwrap_or(usual);
        Ok(Some(Descriptor::new(MediaType::new(said), digest, raw.len() as u64)))
    }

    async fn abroad(&self) -> Result<(Image, Digest), ImageError> {
        let (target, bytes) = self.client.manifest(self.reference).await?;
        self.keep(&target, bytes)?;
        let mut descriptor = target.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            if !descriptor.media_type.is_index() {
                break;
            }
            let index: Document<Index> = read(self.store, &descriptor, &self.what("index"))?;
            descriptor = choose(&index.value, self.platform, &self.reference.familiar())?.clone();
            self.fetch_document(&descriptor).await?;
        }
        let manifest: Document<Manifest> = read(self.store, &descriptor, &self.what("manifest"))?;
        self.fetch_config(&manifest.value.config).await?;
        for layer in &manifest.value.layers {
            note_origin(self.store, layer.digest, &self.reference.name())?;
        }
        let json = serde_json::to_vec(&target).expect("a descriptor is JSON");
        self.store.put_note(RESOLVED, &self.reference.to_string(), &json)?;
        let name = self.reference.familiar();
        let image = from_store(self.store, &target, self.platform, (&name, Some(self.reference)))?;
        Ok((Image { pulled: true, ..image }, target.digest))
    }

    async fn fetch_document(&self, descriptor: &Descriptor) -> Result<(), ImageError> {
        if self.store.blob_size(descriptor.digest).is_some() {
            return Ok(());
        }
        let one = self.reference.with_digest(descriptor.digest);
        let (_, bytes) = self.client.manifest(&one).await?;
        self.keep(descriptor, bytes)
    }

    async fn fetch_config(&self, config: &Descriptor) -> Result<(), ImageError> {
        if self.store.blob_size(config.digest).is_some() {
            return Ok(());
        }
        if config.size > CONFIG_BYTES_MAX {
            let reason =
                format!("its config has {} bytes, the limit is {CONFIG_BYTES_MAX}", config.size);
            return Err(ImageError::Invalid { image: self.reference.familiar(), reason });
        }
        let mut bytes = Vec::new();
        self.client.pull_blob(self.reference, config, &mut bytes, &|_| {}).await?;
        self.keep(config, bytes)
    }

    fn keep(&self, descriptor: &Descriptor, bytes: Vec<u8>) -> Result<(), ImageError> {
        self.store.put_blob(&bytes)?;
        note_origin(self.store, descriptor.digest, &self.reference.name())
    }

    fn what(&self, kind: &str) -> String {
        format!("{kind} of {}", self.reference.familiar())
    }
}

/// The image below `target`, all of whose documents must be in the store.
fn from_store(
    store: &Store,
    target: &Descriptor,
    platform: &Platform,
    (name, origin): (&str, Option<&Reference>),
) -> Result<Image, ImageError> {
    let mut descriptor = target.clone();
    for _ in 0..INDEX_DEPTH_MAX {
        if !descriptor.media_type.is_index() {
            break;
        }
        let index: Document<Index> = read(store, &descriptor, &format!("index of {name}"))?;
        descriptor = choose(&index.value, platform, name)?.clone();
    }
    let invalid = |reason: String| ImageError::Invalid { image: name.to_owned(), reason };
    if descriptor.media_type.is_index() {
        return Err(invalid(format!("more than {INDEX_DEPTH_MAX} indexes within one another")));
    }
    let manifest: Document<Manifest> = read(store, &descriptor, &format!("manifest of {name}"))?;
    let config: Document<ImageConfig> =
        read(store, &manifest.value.config, &format!("config of {name}"))?;
    let (layers, diff_ids) = (manifest.value.layers.len(), config.value.rootfs.diff_ids.len());
    if layers != diff_ids {
        return Err(invalid(format!("its manifest has {layers} layers, its config {diff_ids}")));
    }
    let has = config.value.platform().normalized();
    let wanted = platform.clone().normalized();
    let differs = |have: &str, want: &str| !have.is_empty() && have != want;
    if differs(&has.os, &wanted.os) || differs(&has.architecture, &wanted.architecture) {
        let (wanted, has) = (wanted.to_string(), has.to_string());
        return Err(ImageError::Platform { image: name.to_owned(), wanted, has });
    }
    let origin = origin.map(|origin| origin.with_digest(descriptor.digest));
    let image = Image { manifest, config, origin, pulled: false };
    announce(store, &image)?;
    Ok(image)
}

/// Notes the compressed forms of layers that were never here, so that an image on top of them can be
/// made and pushed without them. A length of 0 says that nobody has looked at the content yet.
fn announce(store: &Store, image: &Image) -> Result<(), ImageError> {
    let layers = image.manifest.value.layers.iter().zip(&image.config.value.rootfs.diff_ids);
    for (descriptor, diff_id) in layers {
        // What was examined once is not overruled by what a manifest claims.
        let known = store.layer(*diff_id)?.is_some();
        let Some(codec) = descriptor.media_type.codec().filter(|_| !known) else { continue };
        let form =
            CompressedForm { codec, level: None, original: true, descriptor: descriptor.clone() };
        let record = LayerRecord { tar_bytes: 0, content_bytes: 0, compressed: vec![form] };
        store.put_layer(*diff_id, &record)?;
    }
    Ok(())
}

pub(super) fn read<T: serde::de::DeserializeOwned>(
    store: &Store,
    descriptor: &Descriptor,
    what: &str,
) -> Result<Document<T>, ImageError> {
    let bytes = store.read_blob(descriptor.digest)?;
    Document::parse(bytes).map_err(|source| ImageError::Document { what: what.to_owned(), source })
}

/// The manifest of an index for a platform: the exact variant, else the newest that still runs on it.
fn choose<'a>(
    index: &'a Index,
    platform: &Platform,
    image: &str,
) -> Result<&'a Descriptor, ImageError> {
    let wanted = platform.clone().normalized();
    let fits = |descriptor: &&Descriptor| {
        let Some(have) = descriptor.platform.clone() else { return false };
        let have = have.normalized();
        have.os == wanted.os
            && have.architecture == wanted.architecture
            && runs_on(have.variant.as_deref(), wanted.variant.as_deref())
    };
    let variant = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.clone().map(Platform::normalized);
        platform.and_then(|platform| platform.variant)
    };
    // Of equals the first counts, as the specification says.
    let mut best: Option<&Descriptor> = None;
    for candidate in index.manifests.iter().filter(fits) {
        if best.is_none_or(|best| variant(&best) < variant(&candidate)) {
            best = Some(candidate);
        }
    }
    let only = match index.manifests.as_slice() {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    best.or(only).ok_or_else(|| ImageError::Platform {
        image: image.to_owned(),
        wanted: wanted.to_string(),
        has: listed_platforms(index),
    })
}

fn runs_on(have: Option<&str>, wanted: Option<&str>) -> bool {
    match (have, wanted) {
        (None, _) => true,
        // `v5` to `v7` of arm and `v1` to `v4` of amd64 each include what came before.
        (Some(have), Some(wanted)) => have.len() == wanted.len() && have <= wanted,
        (Some(_), None) => false,
    }
}

fn listed_platforms(index: &Index) -> String {
    let known = index.manifests.iter().filter_map(|descriptor| descriptor.platform.as_ref());
    let names: Vec<String> =
        known.filter(|platform| platform.os != "unknown").map(ToString::to_string).collect();
    if names.is_empty() { "no platform at all".to_owned() } else { names.join(", ") }
}

/// Remembers that a repository has a blob, the newest first.
pub(super) fn note_origin(store: &Store, blob: Digest, name: &str) -> Result<(), ImageError> {
    let mut names = origin_names(store, blob)?;
    if names.first().is_some_and(|first| first == name) {
        return Ok(());
    }
    names.retain(|known| known != name);
    names.insert(0, name.to_owned());
    names.truncate(ORIGINS_MAX);
    let json = serde_json::to_vec(&names).expect("a list of names is JSON");
    Ok(store.put_note(ORIGIN_NAMESPACE, &blob.to_string(), &json)?)
}

/// Repositories that are known to have a blob, the newest first.
pub(super) fn origins(store: &Store, blob: Digest) -> Result<Vec<Reference>, ImageError> {
    let names = origin_names(store, blob)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

fn origin_names(store: &Store, blob: Digest) -> Result<Vec<String>, ImageError> {
    let note = store.note(ORIGIN_NAMESPACE, &blob.to_string())?;
    Ok(note.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms.iter().enumerate().map(|(at, platform)| {
            let digest = Digest::of(at.to_string().as_bytes());
            let descriptor = Descriptor::new(MediaType::new(MediaType::MANIFEST), digest, 2);
            Descriptor { platform: platform.parse().ok(), ..descriptor }
        });
        Index {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests: manifests.collect(),
            subject: None,
            annotations: Default::default(),
        }
    }

    #[test]
    fn the_exact_variant_is_chosen_or_else_the_newest_that_runs() {
        for (has, wanted, chosen) in [
            (&["linux/amd64", "linux/arm64"][..], "linux/arm64", Some(1)),
            (&["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm/v7", Some(1)),
            (&["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", Some(1)),
            (&["linux/arm/v7"], "linux/arm/v6", None),
            (&["linux/amd64/v3", "linux/amd64"], "linux/amd64", Some(1)),
            (&["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", Some(1)),
            (&["unknown/unknown", "linux/amd64"], "linux/amd64", Some(1)),
            (&["windows/amd64"], "linux/amd64", None),
            (&["linux/amd64", "linux/amd64"], "linux/amd64", Some(0)),
            (&[""], "linux/amd64", Some(0)),
            (&[], "linux/amd64", None),
        ] {
            let index = index(has);
            let found = choose(&index, &wanted.parse().unwrap(), "x").ok();
            assert_eq!(found, chosen.map(|at: usize| &index.manifests[at]), "{has:?} {wanted}");
        }
    }

    #[test]
    fn a_missing_platform_is_told_with_what_there_is() {
        let index = index(&["linux/amd64", "unknown/unknown", "linux/arm64"]);
        let error = choose(&index, &"linux/s390x".parse().unwrap(), "app:1").unwrap_err();
        assert_eq!(error.to_string(), "app:1 has no linux/s390x; it has linux/amd64, linux/arm64");
    }
}
