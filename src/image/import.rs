//! Files → images: OCI layouts (folder or archive) and docker archives into the store.
//!
//! Everything read is untrusted: names choose nothing but entries of the archive itself, and every
//! byte is checked against the digest that promised it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use rustix::{
    fs::{self, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use serde::Deserialize;

use super::{ImageError, assemble};
use crate::{
    layer::{self, LayerError, read_layer},
    oci::{
        Descriptor, Digest, Document, ImageConfig, Index, Manifest, MediaType, Platform, Reference,
    },
    store::{ImageRecord, Store, lacks_space},
    tree::{Change, Entry, Kind, TreePath},
};

/// Annotations that name an image in a layout, the best first.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// Deepest nesting of indexes.
const DEPTH_MAX: usize = 8;

/// Most manifests in one index.
const MANIFESTS_MAX: usize = 4096;

/// Largest document, in bytes.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// Longest chain of links within an archive.
const LINKS_MAX: usize = 8;

/// An image that came from a layout or archive; its content is in the store, without a name.
#[derive(Clone, Debug)]
pub struct Imported {
    /// What the store would know of it; the name is the one that it had, when that is a reference.
    pub record: ImageRecord,
    /// The name as written in the layout, such as `latest`.
    pub name: Option<String>,
}

/// Reads images from an OCI layout (folder or archive) or a docker archive into the store. The
/// caller names them there.
///
/// # Errors
///
/// Any [`ImageError`].
pub fn import(store: &Store, path: &Path) -> Result<Vec<Imported>, ImageError> {
    let lease = store.lease()?;
    let source = Source::open(store, path)?;
    let records = if source.has("index.json") {
        import_layout(store, &source)?
    } else if source.has("manifest.json") {
        import_docker(store, &source)?
    } else {
        let reason =
            "holds neither `index.json` (an OCI layout) nor `manifest.json` (of `docker save`)";
        return Err(source.invalid(reason));
    };
    drop(lease);
    Ok(records)
}

/// Where files of the layout are.
struct Source<'a> {
    store: &'a Store,
    path: &'a Path,
    files: Files,
}

enum Files {
    /// On disk, by name.
    Folder,
    /// In the store already, by name in the archive; links by what they point at.
    Archive { files: HashMap<TreePath, Digest>, links: HashMap<TreePath, TreePath> },
}

impl<'a> Source<'a> {
    fn open(store: &'a Store, path: &'a Path) -> Result<Self, ImageError> {
        let found = std::fs::metadata(path).map_err(|source| at(path, source))?;
        let mut source = Self { store, path, files: Files::Folder };
        if found.is_dir() {
            return Ok(source);
        }
        let file = File::open(path).map_err(|source| at(path, source))?;
        let tar = layer::decompress(Box::new(file)).map_err(|source| at(path, source))?;
        let tar = layer::bounded(tar, store.unpack_limits().most(found.len()));
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let read = read_layer(tar, |change, content| {
            let Change::Put(entry) = change else { return Ok(()) };
            if let Some(target) = link_target(entry) {
                links.insert(entry.path.clone(), target);
            } else if matches!(entry.kind, Kind::File { .. }) {
                let digest = keep(store, entry, content)?;
                files.insert(entry.path.clone(), digest);
            }
            Ok(())
        });
        read.map_err(|error| {
            let is_ours = layer::is_too_large(&error);
            match error {
                LayerError::Io(error) if !is_ours => copying(path, error),
                error @ (LayerError::Io(_)
                | LayerError::Entry { .. }
                | LayerError::NotTar(_)
                | LayerError::Unmapped { .. }) => source.invalid(&error.to_string()),
            }
        })?;
        source.files = Files::Archive { files, links };
        Ok(source)
    }

    fn has(&self, name: &str) -> bool {
        match &self.files {
            Files::Folder => {
                TreePath::parse(name).is_ok_and(|inside| self.open_inside(&inside).is_ok())
            }
            Files::Archive { .. } => self.archived(name).is_some(),
        }
    }

    /// The blob that an archive's file became.
    fn archived(&self, name: &str) -> Option<Digest> {
        let Files::Archive { files, links } = &self.files else { return None };
        let mut path = TreePath::parse(name).ok()?;
        for _ in 0..LINKS_MAX {
            if let Some(digest) = files.get(&path) {
                return Some(*digest);
            }
            path = links.get(&path)?.clone();
        }
        None
    }

    /// Brings a file into the store; names the blob.
    fn take(&self, name: &str) -> Result<Digest, ImageError> {
        if let Files::Archive { .. } = self.files {
            return self
                .archived(name)
                .ok_or_else(|| self.invalid(&format!("`{name}` is missing")));
        }
        // Files of a folder are named by what is in it: no name may lead out of it.
        let inside = TreePath::parse(name).map_err(|error| self.invalid(&error.to_string()))?;
        self.copy_in(&inside, None)
    }

    /// Brings the blob of a descriptor into the store.
    fn take_blob(&self, descriptor: &Descriptor) -> Result<(), ImageError> {
        let digest = descriptor.digest;
        if let Files::Folder = self.files
            && self.store.blob_size(digest).is_none()
        {
            self.copy_in(&place(digest), Some(descriptor))?;
        }
        match self.store.blob_size(digest) {
            None => Err(self.invalid(&format!("blob {digest} is missing"))),
            Some(found) if found != descriptor.size => {
                let promised = descriptor.size;
                Err(self
                    .invalid(&format!("blob {digest} has {found} bytes, {promised} are promised")))
            }
            Some(_) => Ok(()),
        }
    }

    fn has_blob(&self, digest: Digest) -> bool {
        let on_disk =
            matches!(self.files, Files::Folder) && self.open_inside(&place(digest)).is_ok();
        on_disk || self.store.blob_size(digest).is_some()
    }

    /// Opens a regular file of the folder; links that lead out of it are refused by the kernel.
    fn open_inside(&self, inside: &TreePath) -> Result<File, ImageError> {
        let path = self.path.join(inside.as_path());
        let open = || -> io::Result<File> {
            let folder = File::open(self.path)?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            let found = fs::openat2(&folder, inside.as_path(), flags, Mode::empty(), resolve);
            let file = match found {
                // Some sandboxes forbid the call: then no link is followed at all.
                Err(Errno::NOSYS | Errno::PERM) => {
                    let mut at = folder;
                    for name in inside.components() {
                        let flags = flags | OFlags::NOFOLLOW;
                        at = fs::openat(&at, name, flags, Mode::empty())?.into();
                    }
                    at
                }
                found => found?.into(),
            };
            if file.metadata()?.is_file() {
                Ok(file)
            } else {
                Err(io::ErrorKind::InvalidInput.into())
            }
        };
        open().map_err(|source| at(&path, source))
    }

    fn copy_in(
        &self,
        inside: &TreePath,
        expected: Option<&Descriptor>,
    ) -> Result<Digest, ImageError> {
        let path = &self.path.join(inside.as_path());
        let file = self.open_inside(inside)?;
        let limit = expected.map_or(u64::MAX, |descriptor| descriptor.size.saturating_add(1));
        let mut writer = self.store.blob_writer()?;
        io::copy(&mut file.take(limit), &mut writer).map_err(|source| copying(path, source))?;
        Ok(writer.commit(expected.map(|descriptor| descriptor.digest))?.0)
    }

    /// A small file as text.
    fn read(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        if self.archived(name).is_some() {
            return Ok(self.store.read_blob(self.take(name)?)?);
        }
        let path = self.path.join(name);
        let inside = TreePath::parse(name).map_err(|error| self.invalid(&error.to_string()))?;
        let file = self.open_inside(&inside)?;
        let mut bytes = Vec::new();
        let read = file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|source| at(&path, source))?;
        Ok(bytes)
    }

    fn invalid(&self, reason: &str) -> ImageError {
        ImageError::Invalid { image: self.path.display().to_string(), reason: reason.to_owned() }
    }

    fn document<T: serde::de::DeserializeOwned>(
        &self,
        digest: Digest,
    ) -> Result<Document<T>, ImageError> {
        assemble::document(self.store, digest)
    }
}

/// Stores a file of an archive; one that is named by its digest must have it.
fn keep(store: &Store, entry: &Entry, content: &mut dyn Read) -> Result<Digest, LayerError> {
    let mut writer = store.blob_writer().map_err(io::Error::other)?;
    io::copy(content, &mut writer)?;
    Ok(writer.commit(promised(&entry.path)).map_err(io::Error::other)?.0)
}

/// Where a layout keeps a blob.
fn place(digest: Digest) -> TreePath {
    let place = format!("blobs/sha256/{}", digest.hex());
    TreePath::parse(place).expect("hex digits are a plain name")
}

fn promised(path: &TreePath) -> Option<Digest> {
    let name = std::str::from_utf8(path.as_bytes()).ok()?;
    format!("sha256:{}", name.strip_prefix("blobs/sha256/")?).parse().ok()
}

fn link_target(entry: &Entry) -> Option<TreePath> {
    match &entry.kind {
        Kind::Hardlink { target } => Some(target.clone()),
        Kind::Symlink { target } => {
            let parent = entry.path.parent().unwrap_or_default();
            TreePath::parse_clamped([parent.as_bytes(), b"/", target].concat()).ok()
        }
        Kind::Directory
        | Kind::File { .. }
        | Kind::Fifo
        | Kind::CharDevice { .. }
        | Kind::BlockDevice { .. } => None,
    }
}

fn import_layout(store: &Store, source: &Source<'_>) -> Result<Vec<Imported>, ImageError> {
    let what = source.path.join("index.json").display().to_string();
    let index: Document<Index> = Document::parse(source.read("index.json")?)
        .map_err(|source| ImageError::Document { what, source })?;
    let mut records = Vec::new();
    for target in &index.value.manifests {
        take_target(source, target, 0)?;
        let reference = name_of(target);
        let plain = Descriptor { annotations: [].into(), ..target.clone() };
        let name = target.annotations.get(NAMES[1]).cloned();
        records.push(Imported { record: assemble::record_of(store, reference, plain)?, name });
    }
    if records.is_empty() {
        return Err(source.invalid("its index lists no image"));
    }
    Ok(records)
}

fn take_target(source: &Source<'_>, target: &Descriptor, depth: usize) -> Result<(), ImageError> {
    source.take_blob(target)?;
    if target.media_type.is_index() {
        return take_index(source, target, depth);
    }
    if !target.media_type.is_manifest() {
        let reason = format!("`{}` is no type of an image", target.media_type);
        return Err(source.invalid(&reason));
    }
    let manifest: Document<Manifest> = source.document(target.digest)?;
    source.take_blob(&manifest.value.config)?;
    for layer in &manifest.value.layers {
        source.take_blob(layer)?;
    }
    if !assemble::is_image(target) {
        return Ok(());
    }
    let image = assemble::open(source.store, target.digest)?;
    for (descriptor, layer) in assemble::paired(&image)? {
        if descriptor.media_type.codec().is_none() {
            let reason = format!("a layer has the unknown type `{}`", descriptor.media_type);
            return Err(source.invalid(&reason));
        }
        assemble::take_layer(source.store, descriptor, layer)?;
    }
    Ok(())
}

fn take_index(source: &Source<'_>, target: &Descriptor, depth: usize) -> Result<(), ImageError> {
    if depth >= DEPTH_MAX {
        return Err(source.invalid(&format!("indexes nested deeper than {DEPTH_MAX}")));
    }
    let index: Document<Index> = source.document(target.digest)?;
    if index.value.manifests.len() > MANIFESTS_MAX {
        return Err(source.invalid(&format!("an index of more than {MANIFESTS_MAX} manifests")));
    }
    for child in &index.value.manifests {
        // Tools copy single platforms out of an index and leave the others out of the layout.
        if source.has_blob(child.digest) {
            take_target(source, child, depth + 1)?;
        }
    }
    Ok(())
}

/// The full name of an image; a tag alone is none.
fn name_of(target: &Descriptor) -> Option<String> {
    let names = NAMES.iter().filter_map(|key| target.annotations.get(*key));
    let full = |name: &&String| name.contains([':', '/']);
    let parsed = names.filter(full).find_map(|name| name.parse::<Reference>().ok());
    parsed.map(|reference| reference.to_string())
}

/// One image in `manifest.json`; source: `image/spec/spec.md` of moby.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

fn import_docker(store: &Store, source: &Source<'_>) -> Result<Vec<Imported>, ImageError> {
    let what = source.path.join("manifest.json").display().to_string();
    let images: Document<Vec<DockerImage>> = parse_list(source.read("manifest.json")?)
        .map_err(|source| ImageError::Document { what, source })?;
    let mut records = Vec::new();
    for docker in images.value {
        let target = take_docker(store, source, &docker)?;
        let tags = docker.repo_tags.unwrap_or_default();
        let mut names = Vec::new();
        for tag in &tags {
            let name: Reference = tag
                .parse()
                .map_err(|error| source.invalid(&format!("the name `{tag}`: {error}")))?;
            names.push(Some(name.to_string()));
        }
        if names.is_empty() {
            names.push(None);
        }
        for name in names {
            let record = assemble::record_of(store, name.clone(), target.clone())?;
            records.push(Imported { record, name });
        }
    }
    if records.is_empty() {
        return Err(source.invalid("its `manifest.json` lists no image"));
    }
    Ok(records)
}

fn parse_list(raw: Vec<u8>) -> Result<Document<Vec<DockerImage>>, crate::oci::DocumentError> {
    if raw.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(crate::oci::DocumentError::TooLarge(raw.len()));
    }
    Ok(Document { value: serde_json::from_slice(&raw)?, raw })
}

fn take_docker(
    store: &Store,
    source: &Source<'_>,
    docker: &DockerImage,
) -> Result<Descriptor, ImageError> {
    let config: Document<ImageConfig> = source.document(source.take(&docker.config)?)?;
    let layers = docker.layers.as_deref().unwrap_or_default();
    let ids = &config.value.rootfs.diff_ids;
    if layers.len() != ids.len() {
        let (found, promised) = (layers.len(), ids.len());
        let reason = format!("an image of {found} layers whose config promises {promised}");
        return Err(source.invalid(&reason));
    }
    let mut blobs = Vec::new();
    for (name, layer) in layers.iter().zip(ids) {
        let blob = source.take(name)?;
        let size = store.blob_size(blob).unwrap_or_default();
        let blob = Descriptor::new(MediaType::new(MediaType::LAYER), blob, size);
        blobs.push(assemble::take_layer(store, &blob, *layer)?);
    }
    let image = assemble::assemble_around(store, config, &blobs)?;
    let mut target = image.manifest.descriptor(MediaType::MANIFEST);
    target.platform = None::<Platform>;
    Ok(target)
}

/// A failure to copy a file into the store: of the two, the store's alone can lack room.
fn copying(path: &Path, source: io::Error) -> ImageError {
    if lacks_space(&source) { LayerError::Io(source).into() } else { at(path, source) }
}

fn at(path: &Path, source: io::Error) -> ImageError {
    ImageError::Io { path: path.to_owned(), source }
}
