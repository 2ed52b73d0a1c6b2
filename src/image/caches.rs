//! Cache mounts as an image: one layer a cache, and a label that says what each is for. So whatever carries images
//! carries them: registries, archives, folders.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Image, ImageError, assemble};
use crate::{
    layer::{self, Below, LayerSummary, LayerWriter, OverlayMarks, Ownership, Upper, UpperForm},
    oci::{DiffId, ImageConfig, MediaType, Platform},
    store::{
        CacheAnswer, CacheIdentity, CacheInfo, CacheSharing, Freshness, ImageRecord, LayerRecord,
        Store,
    },
    tree::{Entry, TreePath},
};

/// Label that lists the caches of an image, in the order of its layers, as JSON.
const LABEL: &str = "dev.idpbuilder.caches";

/// What the label has of one cache.
#[derive(Serialize, Deserialize)]
struct Packed {
    #[serde(flatten)]
    identity: CacheIdentity,
    sharing: CacheSharing,
    /// Mode, owner, group and time of the directory itself, as it was last.
    directory: (u32, u32, u32, u64, u32),
}

/// What became of one cache of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unpacked {
    /// It is here now.
    Taken,
    /// One was here and stayed.
    Kept,
    /// One is here, and is in use.
    Busy,
}

/// Whether an import replaces what is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// What is here stays.
    Keep,
    /// What is here goes.
    Replace,
}

/// Makes an image of caches; the same caches make the same image. Nobody may write to them meanwhile.
///
/// # Errors
///
/// When one is in use by somebody who wants it alone, or cannot be read.
pub fn pack_caches(store: &Store, caches: &[CacheInfo]) -> Result<ImageRecord, ImageError> {
    let (mut packed, mut layers, mut size) = (Vec::new(), Vec::new(), 0);
    for info in caches {
        let Some(cache) = store.hold_cache_dir(&info.name)? else {
            let reason = "it is in use".to_owned();
            return Err(ImageError::Invalid {
                image: format!("cache {}", info.identity.id),
                reason,
            });
        };
        let (layer, bytes) = pack(store, &cache.path())?;
        let (identity, sharing) = (info.identity.clone(), info.sharing);
        let directory = directory(&cache.path())?;
        packed.push(Packed { identity, sharing, directory });
        layers.push(layer);
        size += bytes;
    }
    let label = serde_json::to_string(&packed).expect("strings and numbers are JSON");
    let platform = Platform::host();
    let mut config = ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        ..ImageConfig::default()
    };
    config.config.labels.insert(LABEL.to_owned(), label);
    let image = assemble::assemble(store, &config, &layers, &[])?;
    Ok(ImageRecord {
        reference: None,
        target: image.manifest.descriptor(MediaType::MANIFEST),
        config: image.config.digest(),
        platforms: vec![platform],
        stored_at: 0,
        created: None,
        size,
        pulled: false,
    })
}

fn pack(store: &Store, folder: &Path) -> Result<(DiffId, u64), ImageError> {
    let directory = File::open(folder).map_err(|source| at(folder, source))?;
    let writer = LayerWriter::new(store.blob_writer_hashed_by_caller()?);
    let (directory, ownership) = (directory.as_fd(), Ownership::Exact);
    let whole = Upper { directory, form: UpperForm::Changes, ownership };
    let (blob, summary, _) = layer::write_upper(whole, &Nothing, writer)?;
    let LayerSummary { diff_id, tar_bytes, content_bytes, listing } = summary;
    blob.commit(Some(diff_id.0))?;
    store.put_listing(diff_id, &listing.encode())?;
    store.put_layer(diff_id, &LayerRecord { tar_bytes, content_bytes, compressed: Vec::new() })?;
    Ok((diff_id, content_bytes))
}

fn directory(folder: &Path) -> Result<(u32, u32, u32, u64, u32), ImageError> {
    let found = fs::metadata(folder).map_err(|source| at(folder, source))?;
    let time = found.modified().map_err(|source| at(folder, source))?;
    let time = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok((found.mode() & 0o7777, found.uid(), found.gid(), time.as_secs(), time.subsec_nanos()))
}

/// Puts the caches of an image, whose layers are in the store, in their places; `wanted` chooses among them by id.
///
/// # Errors
///
/// When it is no image of caches, or one cannot be unpacked.
pub fn unpack_caches(
    store: &Store,
    image: &Image,
    wanted: &dyn Fn(&str) -> bool,
    (present, ownership): (Present, Ownership),
) -> Result<Vec<(CacheIdentity, Unpacked)>, ImageError> {
    let invalid = |reason: &str| ImageError::Invalid {
        image: image.manifest.digest().to_string(),
        reason: reason.to_owned(),
    };
    let config = &image.config.value;
    let label = config.config.labels.get(LABEL);
    let label = label.ok_or_else(|| {
        invalid("it holds no caches: `idpbuilder cache export` makes one that does")
    })?;
    let packed: Vec<Packed> =
        serde_json::from_str(label).map_err(|_| invalid("its list of caches cannot be read"))?;
    if packed.len() != config.rootfs.diff_ids.len() {
        return Err(invalid("its list of caches does not fit its layers"));
    }
    let mut done = Vec::new();
    for (cache, layer) in packed.into_iter().zip(&config.rootfs.diff_ids) {
        if wanted(&cache.identity.id) {
            let outcome = unpack(store, &cache, *layer, (present, ownership))?;
            done.push((cache.identity, outcome));
        }
    }
    Ok(done)
}

fn unpack(
    store: &Store,
    packed: &Packed,
    layer: DiffId,
    (present, ownership): (Present, Ownership),
) -> Result<Unpacked, ImageError> {
    let freshness = match present {
        Present::Keep => Freshness::Kept,
        Present::Replace => Freshness::Fresh,
    };
    let cache = match store.take_cache_dir(&packed.identity, packed.sharing, freshness)? {
        CacheAnswer::Busy(_) => return Ok(Unpacked::Busy),
        CacheAnswer::Ready(_) => return Ok(Unpacked::Kept),
        CacheAnswer::New(cache) => cache,
    };
    let staging = store.staging()?;
    let folder = staging.path().join("cache");
    fs::create_dir(&folder).map_err(|source| at(&folder, source))?;
    let place = File::open(&folder).map_err(|source| at(&folder, source))?;
    let tar = io::BufReader::new(assemble::plain_tar(store, layer)?);
    layer::unpack_as(tar, place.as_fd(), OverlayMarks::User, ownership)?;
    let (mode, uid, gid, seconds, nanos) = packed.directory;
    if ownership == Ownership::Exact {
        std::os::unix::fs::chown(&folder, Some(uid), Some(gid))
            .map_err(|source| at(&folder, source))?;
    }
    let time = std::time::UNIX_EPOCH + Duration::new(seconds, nanos.min(999_999_999));
    fs::set_permissions(&folder, fs::Permissions::from_mode(mode & 0o7777))
        .and_then(|()| place.set_modified(time))
        .map_err(|source| at(&folder, source))?;
    store.fill_cache_dir(&cache, &folder)?;
    Ok(Unpacked::Taken)
}

/// A cache stands on nothing.
struct Nothing;

impl Below for Nothing {
    fn entry(&self, _path: &TreePath) -> Option<Entry> {
        None
    }

    fn names(&self, _directory: &TreePath) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn open(&self, _path: &TreePath) -> io::Result<Box<dyn Read + '_>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn at(path: &Path, source: io::Error) -> ImageError {
    ImageError::Io { path: path.to_owned(), source }
}
