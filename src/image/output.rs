//! Images → files: OCI layouts, archives for `docker load`, flat root file systems.
//!
//! Knows how the outputs are laid out; how layers are compressed and merged is told elsewhere.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Image, ImageError, assemble,
    flatten::{self, Links, Owners},
    form::{Form, Layers},
    stoppable::Stoppable,
};
use crate::{
    layer::LayerWriter,
    oci::{
        Annotations, Codec, Descriptor, DiffId, Digest, Document, Index, Manifest, MediaType,
        Platform, Reference,
    },
    plan::{OutputKind, OutputPlan},
    store::{ImageRecord, Store},
    tree::{Entry, Kind, Meta, TreePath},
};

/// Annotations by which tools find an image in a layout: the tag, and the whole name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Content of the file that makes a folder an OCI layout.
const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Writes images to a file or folder as asked. A file appears whole or not at all. Returns the digest that the first image
/// has there; `None` for a bare root file system, which has none.
///
/// # Errors
///
/// Any [`ImageError`].
pub fn write_output(
    store: &Store,
    records: &[ImageRecord],
    output: &OutputPlan,
) -> Result<Option<Digest>, ImageError> {
    match output.kind {
        OutputKind::Oci | OutputKind::Docker => {
            let layout = lay_out(store, records, output)?;
            if output.archive {
                to_file(store, output, |out| layout.write_archive(store, out))?;
            } else {
                layout.write_folder(store, &folder_of(output)?)?;
            }
            Ok(layout.index.value.manifests.first().map(|manifest| manifest.digest))
        }
        OutputKind::Tar => {
            let trees = trees(store, records)?;
            to_file(store, output, |out| {
                let mut out = LayerWriter::new(out);
                for (prefix, layers) in &trees {
                    let what = (Owners::Image, Links::Kept);
                    flatten::write_tree(store, layers, prefix, what, &mut out)?;
                }
                Ok(out.finish()?.0)
            })?;
            Ok(None)
        }
        OutputKind::Local => {
            let root = folder_of(output)?;
            for (prefix, layers) in trees(store, records)? {
                let place =
                    if prefix.is_root() { root.clone() } else { root.join(prefix.as_path()) };
                fs::create_dir_all(&place).map_err(|source| at(&place, source))?;
                let folder = File::open(&place).map_err(|source| at(&place, source))?;
                flatten::write_folder(store, &layers, &folder)?;
            }
            Ok(None)
        }
    }
}

/// Whether an output holds a layer that was not made here byte for byte as its registry has it.
pub(super) fn keeps_blob(output: &OutputPlan, blob: &Descriptor) -> Result<bool, ImageError> {
    let form = Form::read(output).map_err(invalid)?;
    let codec = match (output.kind, output.compression) {
        (OutputKind::Docker, None | Some(Codec::Plain))
        | (OutputKind::Tar | OutputKind::Local, _) => return Ok(false),
        (OutputKind::Oci | OutputKind::Docker, codec) => codec.unwrap_or(Codec::Gzip),
    };
    Ok(form.layers == Layers::Plain || blob.media_type.codec() == Some(codec))
}

/// Everything that a layout holds besides the blobs' bytes.
struct Layout {
    index: Document<Index>,
    /// `manifest.json`, which `docker load` reads.
    docker: Option<Vec<u8>>,
    blobs: BTreeMap<Digest, u64>,
}

/// One image in `manifest.json`; source: `image/spec/spec.md` of moby.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

fn lay_out(
    store: &Store,
    records: &[ImageRecord],
    output: &OutputPlan,
) -> Result<Layout, ImageError> {
    let form = Form::read(output).map_err(invalid)?;
    let mut blobs = BTreeMap::new();
    let mut manifests = Vec::new();
    let mut docker: Vec<DockerImage> = Vec::new();
    for record in records {
        if form.wants_index() && !record.target.media_type.is_index() {
            let reason = "index annotations are for images of several platforms".to_owned();
            return Err(invalid(reason));
        }
        let travels = Travels { store, output, form: &form, pulled: record.pulled };
        let mut target = travels.target(&record.target, &mut blobs)?;
        form.describe(&mut target, record.platforms.first());
        target.annotations.extend(names(record));
        if output.kind == OutputKind::Docker {
            add_docker(store, &mut docker, record, &target)?;
        }
        manifests.push(target);
    }
    let index = Document::write(Index {
        schema_version: 2,
        media_type: Some(MediaType::new(MediaType::INDEX)),
        artifact_type: None,
        manifests,
        subject: None,
        annotations: Annotations::new(),
    });
    let docker = (output.kind == OutputKind::Docker).then(|| Document::write_compact(docker).raw);
    Ok(Layout { index, docker, blobs })
}

/// Images on their way out of the store.
struct Travels<'a> {
    store: &'a Store,
    output: &'a OutputPlan,
    form: &'a Form,
    /// Whether a registry has them as they stand.
    pulled: bool,
}

impl Travels<'_> {
    /// The descriptor of what travels for a manifest or index of the store; all its blobs are noted.
    fn target(
        &self,
        target: &Descriptor,
        blobs: &mut BTreeMap<Digest, u64>,
    ) -> Result<Descriptor, ImageError> {
        if target.media_type.is_index() {
            return self.index(target, blobs);
        }
        let store = self.store;
        let manifest = if assemble::is_image(target) {
            let image = assemble::open(store, target.digest)?;
            let image = Image { pulled: self.pulled, ..image };
            let manifest = match (self.output.kind, self.output.compression) {
                (OutputKind::Docker, None | Some(Codec::Plain)) => {
                    assemble::uncompressed(store, &image)?
                }
                (_, codec) => {
                    let codec = (codec.unwrap_or(Codec::Gzip), self.form.level);
                    assemble::complete(store, &image, codec, self.form.layers)?
                }
            };
            self.form.manifest(manifest, &image.config.value.platform().normalized())
        } else {
            assemble::document::<Manifest>(store, target.digest)?
        };
        let content = manifest.value.layers.iter().chain([&manifest.value.config]);
        blobs.extend(content.map(|blob| (blob.digest, blob.size)));
        let media_type = manifest.value.media_type.clone();
        let media_type = media_type.unwrap_or_else(|| target.media_type.clone());
        moved(store, target, media_type, manifest.raw, blobs)
    }

    fn index(
        &self,
        target: &Descriptor,
        blobs: &mut BTreeMap<Digest, u64>,
    ) -> Result<Descriptor, ImageError> {
        let store = self.store;
        let index: Document<Index> = assemble::document(store, target.digest)?;
        let mut manifests = Vec::new();
        for child in &index.value.manifests {
            if store.blob_size(child.digest).is_none() {
                let platform = child.platform.as_ref().map(ToString::to_string).unwrap_or_default();
                return Err(ImageError::Invalid {
                    image: target.digest.to_string(),
                    reason: format!(
                        "its variant {platform} is not in the store; pull it, or ask for one platform"
                    ),
                });
            }
            let mut travels = self.target(child, blobs)?;
            let platform = child.platform.clone().map(Platform::normalized);
            self.form.describe(&mut travels, platform.as_ref());
            manifests.push(travels);
        }
        let value = self.form.index(Index { manifests, ..index.value.clone() });
        let media_type = value.media_type.clone().unwrap_or_else(|| target.media_type.clone());
        let raw = if value == index.value { index.raw } else { Document::write(value).raw };
        moved(store, target, media_type, raw, blobs)
    }
}

/// `target` pointing at a document's bytes, which are noted as a blob.
fn moved(
    store: &Store,
    target: &Descriptor,
    media_type: MediaType,
    raw: Vec<u8>,
    blobs: &mut BTreeMap<Digest, u64>,
) -> Result<Descriptor, ImageError> {
    let (digest, size) = (store.put_blob(&raw)?, raw.len() as u64);
    blobs.insert(digest, size);
    Ok(Descriptor { media_type, digest, size, ..target.clone() })
}

fn names(record: &ImageRecord) -> Annotations {
    let mut names = Annotations::new();
    if let Some(reference) = &record.reference {
        names.insert(IMAGE_NAME.to_owned(), reference.clone());
        let tag = reference.parse::<Reference>().ok();
        let tag = tag.and_then(|reference| reference.tag().map(str::to_owned));
        names.extend(tag.map(|tag| (REF_NAME.to_owned(), tag)));
    }
    names
}

fn add_docker(
    store: &Store,
    images: &mut Vec<DockerImage>,
    record: &ImageRecord,
    target: &Descriptor,
) -> Result<(), ImageError> {
    if target.media_type.is_index() {
        return Err(ImageError::Invalid {
            image: record.reference.clone().unwrap_or_else(|| target.digest.to_string()),
            reason: "a docker archive holds one platform; use `type=oci`, or build for one"
                .to_owned(),
        });
    }
    let manifest: Document<Manifest> = assemble::document(store, target.digest)?;
    let place = |descriptor: &Descriptor| format!("blobs/sha256/{}", descriptor.digest.hex());
    let config = place(&manifest.value.config);
    let tags = record.reference.iter().cloned();
    if let Some(known) = images.iter_mut().find(|image| image.config == config) {
        known.repo_tags.extend(tags);
        return Ok(());
    }
    let layers = manifest.value.layers.iter().map(place).collect();
    images.push(DockerImage { config, repo_tags: tags.collect(), layers });
    Ok(())
}

fn invalid(reason: String) -> ImageError {
    ImageError::Invalid { image: "output".to_owned(), reason }
}

impl Layout {
    fn documents(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let docker = self.docker.iter().map(|bytes| ("manifest.json", bytes.as_slice()));
        [("index.json", self.index.raw.as_slice())]
            .into_iter()
            .chain(docker)
            .chain([("oci-layout", OCI_LAYOUT)])
    }

    fn write_archive<W: Write>(&self, store: &Store, out: W) -> Result<W, ImageError> {
        let mut out = LayerWriter::new(out);
        for directory in ["blobs", "blobs/sha256"] {
            let meta = Meta { mode: 0o755, ..Meta::default() };
            out.put(&Entry::directory(plain(directory), meta), &mut io::empty())?;
        }
        for (digest, size) in &self.blobs {
            let name = format!("blobs/sha256/{}", digest.hex());
            put_file(&mut out, &name, *size, &mut store.open_blob(*digest)?)?;
        }
        for (name, mut bytes) in self.documents() {
            put_file(&mut out, name, bytes.len() as u64, &mut bytes)?;
        }
        Ok(out.finish()?.0)
    }

    fn write_folder(&self, store: &Store, folder: &Path) -> Result<(), ImageError> {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|source| at(&blobs, source))?;
        for (digest, size) in &self.blobs {
            let place = blobs.join(digest.hex());
            if fs::metadata(&place).is_ok_and(|there| there.len() == *size) {
                continue;
            }
            replace(&place, |out| {
                io::copy(&mut store.open_blob(*digest)?, out)
                    .map_err(|source| at(&place, source))?;
                Ok(())
            })?;
        }
        // The index last: until then nothing points at the new blobs.
        for (name, bytes) in self.documents().collect::<Vec<_>>().into_iter().rev() {
            let place = folder.join(name);
            replace(&place, |out| out.write_all(bytes).map_err(|source| at(&place, source)))?;
        }
        Ok(())
    }
}

fn put_file<W: Write>(
    out: &mut LayerWriter<W>,
    name: &str,
    size: u64,
    content: &mut dyn Read,
) -> Result<(), ImageError> {
    let meta = Meta { mode: 0o644, ..Meta::default() };
    let entry = Entry { path: plain(name), kind: Kind::File { size }, meta };
    Ok(out.put(&entry, content)?)
}

fn plain(name: &str) -> TreePath {
    TreePath::parse(name).expect("names in a layout are plain")
}

/// Root file systems to write: one at the root, or one a platform in folders as BuildKit names them.
fn trees(
    store: &Store,
    records: &[ImageRecord],
) -> Result<Vec<(TreePath, Vec<DiffId>)>, ImageError> {
    // Several names of one image are one tree.
    let mut targets: Vec<&Descriptor> = Vec::new();
    for record in records {
        if !targets.iter().any(|known| known.digest == record.target.digest) {
            targets.push(&record.target);
        }
    }
    let mut found: Vec<(Platform, Vec<DiffId>)> = Vec::new();
    for target in targets {
        let manifests = if target.media_type.is_index() {
            let index: Document<Index> = assemble::document(store, target.digest)?;
            index.value.manifests.into_iter().filter(assemble::is_image).collect()
        } else {
            vec![target.clone()]
        };
        for manifest in manifests {
            let image = assemble::open(store, manifest.digest)?;
            found.push((image.config.value.platform(), image.config.value.rootfs.diff_ids));
        }
    }
    if found.len() == 1 {
        return Ok(found.into_iter().map(|(_, layers)| (TreePath::root(), layers)).collect());
    }
    let folder = |platform: &Platform| platform.to_string().replace('/', "_");
    let mut trees: Vec<(TreePath, Vec<DiffId>)> = Vec::new();
    for (platform, layers) in found {
        let place = plain(&folder(&platform));
        if trees.iter().any(|(known, _)| *known == place) {
            return Err(ImageError::Invalid {
                image: platform.to_string(),
                reason: "two images for this platform in one output; write them apart".to_owned(),
            });
        }
        trees.push((place, layers));
    }
    trees.sort();
    Ok(trees)
}

fn folder_of(output: &OutputPlan) -> Result<PathBuf, ImageError> {
    output.destination.clone().ok_or_else(|| ImageError::Invalid {
        image: "output".to_owned(),
        reason: "a folder cannot be written to standard output; give it a destination".to_owned(),
    })
}

/// A buffered file that an archive goes to.
type Out = BufWriter<Stoppable<File>>;

/// Size of the buffer in bytes; the writers hand over larger pieces untouched.
const BUFFER_BYTES: usize = 64 << 10;

fn to_file(
    store: &Store,
    output: &OutputPlan,
    write: impl FnOnce(Out) -> Result<Out, ImageError>,
) -> Result<(), ImageError> {
    let buffered = |file| BufWriter::with_capacity(BUFFER_BYTES, Stoppable::new(store, file));
    let Some(place) = &output.destination else {
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = File::from(stdout.map_err(|source| at(Path::new("-"), source))?);
        return finish(write(buffered(stdout))?, Path::new("-"));
    };
    // Pipes and devices cannot be replaced by a rename.
    let special = |there: fs::Metadata| {
        let kind = there.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_socket() || kind.is_block_device()
    };
    if fs::metadata(place).is_ok_and(special) {
        let file = File::options().write(true).open(place).map_err(|source| at(place, source))?;
        return finish(write(buffered(file))?, place);
    }
    let temporary = beside(place)?;
    let file = temporary.reopen().map_err(|source| at(place, source))?;
    finish(write(buffered(file))?, place)?;
    keep(temporary, place)
}

fn finish(mut out: Out, place: &Path) -> Result<(), ImageError> {
    out.flush().map_err(|source| at(place, source))
}

fn replace(
    place: &Path,
    write: impl FnOnce(&mut File) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut temporary = beside(place)?;
    write(temporary.as_file_mut())?;
    keep(temporary, place)
}

fn beside(place: &Path) -> Result<tempfile::NamedTempFile, ImageError> {
    let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|source| at(parent, source))?;
    tempfile::NamedTempFile::new_in(parent).map_err(|source| at(place, source))
}

fn keep(temporary: tempfile::NamedTempFile, place: &Path) -> Result<(), ImageError> {
    let mode = fs::Permissions::from_mode(0o644);
    temporary.as_file().set_permissions(mode).map_err(|source| at(place, source))?;
    temporary.persist(place).map_err(|error| at(place, error.error))?;
    Ok(())
}

fn at(place: &Path, source: io::Error) -> ImageError {
    ImageError::Io { path: place.to_owned(), source }
}
