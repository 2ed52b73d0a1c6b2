//! What must hold for images as files: other programs read them, they import as what they were, and
//! the same image makes the same bytes. Tests only.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use super::{Image, ImageError, assemble, assemble::record_of, distributable, write_output};
use crate::{
    layer::{LayerWriter, read_layer},
    oci::{Codec, Descriptor, DiffId, Document, ImageConfig, Index, Manifest, MediaType},
    plan::{OutputKind, OutputPlan},
    store::{ImageRecord, LayerRecord, Store},
    tree::{Change, Entry, Kind, Meta, TreePath},
};

const NAME: &str = "docker.io/library/demo:1.0";

/// Reads images and names them, as `load` does.
fn import(store: &Store, path: &Path) -> Result<Vec<ImageRecord>, ImageError> {
    let found = super::import(store, path)?;
    let records: Vec<ImageRecord> = found.into_iter().map(|imported| imported.record).collect();
    for record in &records {
        store.put_image(record)?;
    }
    Ok(records)
}

struct Place {
    top: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        Self { top, store }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    /// Writes a layer as a build does: the plain tar, its record and its listing.
    fn layer(&self, changes: &[(Change, &[u8])]) -> DiffId {
        let mut writer = LayerWriter::new(self.store.blob_writer().unwrap());
        for (change, mut content) in changes.iter().cloned() {
            match change {
                Change::Put(entry) => writer.put(&entry, &mut content).unwrap(),
                Change::Whiteout(path) => writer.whiteout(&path).unwrap(),
                Change::Opaque(path) => writer.opaque(&path).unwrap(),
            }
        }
        let (blob, summary) = writer.finish().unwrap();
        blob.commit(Some(summary.diff_id.0)).unwrap();
        self.store.put_listing(summary.diff_id, &summary.listing.encode()).unwrap();
        let (tar_bytes, content_bytes) = (summary.tar_bytes, summary.content_bytes);
        let record = LayerRecord { tar_bytes, content_bytes, compressed: Vec::new() };
        self.store.put_layer(summary.diff_id, &record).unwrap();
        summary.diff_id
    }

    /// Two layers that add, replace, delete and link.
    fn image(&self, architecture: &str) -> Image {
        let below = self.layer(&[
            (directory("etc", 0o755), b""),
            (file("etc/gone", 5), b"gone\n"),
            (file("etc/kept", 5), b"kept\n"),
            (link("etc/second", "etc/gone"), b""),
            (directory("old", 0o700), b""),
            (file("old/file", 4), b"old\n"),
        ]);
        let above = self.layer(&[
            (Change::Whiteout(path("etc/gone")), b""),
            (file("etc/new", 4), b"new\n"),
            (directory("old", 0o711), b""),
            (Change::Opaque(path("old")), b""),
            (symlinked("old/link", "/nowhere"), b""),
        ]);
        let config = ImageConfig {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            created: Some("1970-01-01T00:00:01Z".to_owned()),
            ..ImageConfig::default()
        };
        assemble(&self.store, &config, &[below, above], &[]).unwrap()
    }

    fn record(&self) -> ImageRecord {
        let target = self.image("amd64").manifest.descriptor(MediaType::MANIFEST);
        record_of(&self.store, Some(NAME.to_owned()), target).unwrap()
    }

    fn index(&self) -> ImageRecord {
        let manifests = ["amd64", "arm64"].map(|architecture| {
            let image = self.image(architecture);
            let platform = Some(image.config.value.platform());
            Descriptor { platform, ..image.manifest.descriptor(MediaType::MANIFEST) }
        });
        let index = Document::write(Index {
            schema_version: 2,
            media_type: Some(MediaType::new(MediaType::INDEX)),
            artifact_type: None,
            manifests: manifests.into(),
            subject: None,
            annotations: BTreeMap::new(),
        });
        self.store.put_blob(&index.raw).unwrap();
        record_of(&self.store, Some(NAME.to_owned()), index.descriptor(MediaType::INDEX)).unwrap()
    }

    #[expect(clippy::fn_params_excessive_bools, reason = "as in the plan of an output")]
    fn write(&self, records: &[ImageRecord], kind: OutputKind, archive: bool, to: &str) -> PathBuf {
        let destination = self.at(to);
        write_output(&self.store, records, &output(kind, archive, &destination)).unwrap();
        destination
    }
}

#[expect(clippy::fn_params_excessive_bools, reason = "as in the plan of an output")]
fn output(kind: OutputKind, archive: bool, destination: &Path) -> OutputPlan {
    OutputPlan {
        kind,
        archive,
        destination: Some(destination.to_owned()),
        compression: None,
        options: BTreeMap::new(),
    }
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text).unwrap()
}

fn entry(at: &str, kind: Kind, mode: u32) -> Change {
    Change::Put(Entry {
        path: path(at),
        kind,
        meta: Meta { mode, uid: 7, gid: 8, ..Meta::default() },
    })
}

fn directory(at: &str, mode: u32) -> Change {
    entry(at, Kind::Directory, mode)
}

fn file(at: &str, size: u64) -> Change {
    entry(at, Kind::File { size }, 0o640)
}

fn link(at: &str, target: &str) -> Change {
    entry(at, Kind::Hardlink { target: path(target) }, 0o640)
}

fn symlinked(at: &str, target: &str) -> Change {
    entry(at, Kind::Symlink { target: target.into() }, 0o777)
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn skopeo_and_umoci_read_oci_layouts() {
    let place = Place::new();
    let record = place.record();
    let folder = place.write(std::slice::from_ref(&record), OutputKind::Oci, false, "layout");
    let archive = place.write(std::slice::from_ref(&record), OutputKind::Oci, true, "layout.tar");
    for source in
        [format!("oci:{}:1.0", folder.display()), format!("oci-archive:{}:1.0", archive.display())]
    {
        let said: serde_json::Value =
            serde_json::from_str(&run("skopeo", &["inspect", &source])).unwrap();
        assert_eq!(said["Architecture"], "amd64");
        assert_eq!(said["Layers"].as_array().unwrap().len(), 2);
    }
    let bundle = place.at("bundle");
    let image = format!("{}:1.0", folder.display());
    run("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
    assert_root(&bundle.join("rootfs"), (7, 8));
}

#[test]
fn skopeo_reads_docker_archives() {
    let place = Place::new();
    let record = place.record();
    let archive =
        place.write(std::slice::from_ref(&record), OutputKind::Docker, true, "docker.tar");
    let copy = place.at("copy");
    let source = format!("docker-archive:{}:{NAME}", archive.display());
    run(
        "skopeo",
        &["--insecure-policy", "copy", "-q", &source, &format!("oci:{}:1.0", copy.display())],
    );
    let bundle = place.at("bundle");
    run(
        "umoci",
        &["unpack", "--image", &format!("{}:1.0", copy.display()), bundle.to_str().unwrap()],
    );
    assert_root(&bundle.join("rootfs"), (7, 8));
    let saved = place.at("saved.tar");
    let target = format!("docker-archive:{}:again:2", saved.display());
    run("skopeo", &["--insecure-policy", "copy", "-q", &source, &target]);
    let other = Place::new();
    let records = import(&other.store, &saved).unwrap();
    assert_eq!(records[0].reference.as_deref(), Some("docker.io/library/again:2"));
    assert_eq!(records[0].config, record.config, "the image ID survives");
}

/// The two layers of [`Place::image`] over one another.
fn assert_root(root: &Path, owner: (u32, u32)) {
    let shown = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    assert_eq!(
        (shown("etc/kept"), shown("etc/new"), shown("etc/second")),
        ("kept\n".into(), "new\n".into(), "gone\n".into())
    );
    let names = |folder: &str| {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["etc", "old"]);
    assert_eq!(names("etc"), ["kept", "new", "second"]);
    assert_eq!(names("old"), ["link"]);
    assert_eq!(fs::read_link(root.join("old/link")).unwrap(), Path::new("/nowhere"));
    let old = fs::metadata(root.join("old")).unwrap();
    assert_eq!(
        (old.permissions().mode() & 0o7777, old.uid(), old.gid()),
        (0o711, owner.0, owner.1)
    );
    let kept = fs::metadata(root.join("etc/kept")).unwrap();
    assert_eq!(
        (kept.permissions().mode() & 0o7777, kept.uid(), kept.gid()),
        (0o640, owner.0, owner.1)
    );
}

#[test]
fn the_flat_outputs_are_the_layers_over_one_another() {
    let place = Place::new();
    let record = place.record();
    let root = place.write(std::slice::from_ref(&record), OutputKind::Local, false, "rootfs");
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    assert_root(&root, me);
    let tar = place.write(std::slice::from_ref(&record), OutputKind::Tar, true, "rootfs.tar");
    let target = place.at("unpacked");
    fs::create_dir(&target).unwrap();
    run("tar", &["-xf", tar.to_str().unwrap(), "-C", target.to_str().unwrap()]);
    assert_root(&target, (7, 8));
    // Hard links stay links, and the folder is written over in place.
    let linked =
        place.layer(&[(file("z", 2), b"z\n"), (link("a", "z"), b""), (link("m", "z"), b"")]);
    let above = place.layer(&[(Change::Whiteout(path("z")), b"")]);
    let image = assemble(&place.store, &ImageConfig::default(), &[linked, above], &[]).unwrap();
    let target = image.manifest.descriptor(MediaType::MANIFEST);
    let record = record_of(&place.store, None, target).unwrap();
    fs::write(root.join("a"), b"before").unwrap();
    place.write(&[record], OutputKind::Local, false, "rootfs");
    assert!(!root.join("z").exists());
    let [a, m] = ["a", "m"].map(|name| fs::metadata(root.join(name)).unwrap());
    assert_eq!((a.ino(), a.nlink()), (m.ino(), 2));
    assert_eq!(fs::read(root.join("a")).unwrap(), b"z\n");
}

#[test]
fn several_platforms_are_folders_of_a_flat_output_and_no_docker_archive() {
    let place = Place::new();
    let record = place.index();
    let root = place.write(std::slice::from_ref(&record), OutputKind::Local, false, "rootfs");
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    assert_root(&root.join("linux_amd64"), me);
    assert_root(&root.join("linux_arm64"), me);
    let refused = write_output(
        &place.store,
        &[record],
        &output(OutputKind::Docker, true, &place.at("x.tar")),
    );
    assert!(refused.unwrap_err().to_string().contains("holds one platform"));
    assert!(!place.at("x.tar").exists(), "a file appears whole or not at all");
}

#[test]
fn what_is_written_imports_as_what_it_was() {
    let place = Place::new();
    for (record, kind, archive, name) in [
        (place.record(), OutputKind::Oci, true, "one.tar"),
        (place.record(), OutputKind::Oci, false, "one"),
        (place.record(), OutputKind::Docker, true, "docker.tar"),
        (place.record(), OutputKind::Docker, false, "docker"),
        (place.index(), OutputKind::Oci, true, "both.tar"),
        (place.index(), OutputKind::Oci, false, "both"),
    ] {
        let written = place.write(std::slice::from_ref(&record), kind, archive, name);
        let other = Place::new();
        let records = import(&other.store, &written).unwrap();
        let [found] = &records[..] else { panic!("{name}: {} images", records.len()) };
        assert_eq!(found.reference.as_deref(), Some(NAME), "{name}");
        assert_eq!(
            (found.config, &found.platforms, found.size),
            (record.config, &record.platforms, record.size)
        );
        assert!(other.store.image(NAME).unwrap().is_some());
        // What came compressed goes out the same, byte for byte.
        let again = other.write(&records, kind, archive, name);
        if archive {
            assert!(fs::read(&again).unwrap() == fs::read(&written).unwrap(), "{name}");
        }
    }
}

#[test]
fn the_same_image_makes_the_same_file() {
    let bytes = || {
        let place = Place::new();
        let record = place.record();
        [OutputKind::Oci, OutputKind::Docker, OutputKind::Tar].map(|kind| {
            fs::read(place.write(std::slice::from_ref(&record), kind, true, "file")).unwrap()
        })
    };
    assert!(bytes() == bytes());
}

#[test]
fn two_names_of_an_image_are_one_image_of_a_docker_archive() {
    let place = Place::new();
    let record = place.record();
    let second = ImageRecord { reference: Some("example.org/x:2".to_owned()), ..record.clone() };
    let archive = place.write(&[record, second], OutputKind::Docker, false, "docker");
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(archive.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest.as_array().unwrap().len(), 1);
    assert_eq!(manifest[0]["RepoTags"], serde_json::json!([NAME, "example.org/x:2"]));
}

#[test]
fn a_layer_is_compressed_once_and_stays_what_it_is() {
    let place = Place::new();
    let image = place.image("amd64");
    let first = distributable(&place.store, &image, Codec::Gzip, None).unwrap();
    let blobs = || fs::read_dir(place.at("store/blobs/sha256")).unwrap().count();
    let before = blobs();
    assert_eq!(distributable(&place.store, &image, Codec::Gzip, None).unwrap(), first);
    assert_eq!(blobs(), before);
    let zstd = distributable(&place.store, &image, Codec::Zstd, None).unwrap();
    let types: Vec<_> = zstd.value.layers.iter().map(|layer| layer.media_type.as_str()).collect();
    assert_eq!(types, [MediaType::LAYER_ZSTD; 2]);
    assert_eq!(distributable(&place.store, &image, Codec::Plain, None).unwrap(), image.manifest);
    for (layer, id) in first.value.layers.iter().zip(&image.config.value.rootfs.diff_ids) {
        let blob = place.store.open_blob(layer.digest).unwrap();
        let tar = crate::layer::decompress(Box::new(blob)).unwrap();
        assert_eq!(read_layer(tar, |_, _| Ok(())).unwrap().diff_id, *id);
        assert_eq!(place.store.diff_id_of(layer.digest).unwrap(), Some(*id));
    }
}

#[test]
fn l13_a_layer_that_is_not_what_the_config_promises_is_refused() {
    let place = Place::new();
    let image = place.image("amd64");
    let mut config = image.config.value.clone();
    config.rootfs.diff_ids.swap(0, 1);
    let config = Document::write_compact(config);
    place.store.put_blob(&config.raw).unwrap();
    let manifest =
        Manifest { config: config.descriptor(MediaType::CONFIG), ..image.manifest.value };
    let manifest = Document::write(manifest);
    let folder = place.at("layout");
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    let target = manifest.descriptor(MediaType::MANIFEST);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        serde_json::to_string(&target).unwrap()
    );
    fs::write(folder.join("index.json"), index).unwrap();
    let blob = |bytes: &[u8]| {
        let name = crate::oci::Digest::of(bytes).hex();
        fs::write(folder.join("blobs/sha256").join(name), bytes).unwrap();
    };
    blob(&manifest.raw);
    blob(&config.raw);
    for layer in &manifest.value.layers {
        blob(&place.store.read_blob(layer.digest).unwrap());
    }
    let other = Place::new();
    let error = import(&other.store, &folder).unwrap_err();
    assert!(matches!(error, ImageError::Invalid { .. }), "{error}");
    assert_eq!(other.store.images().unwrap(), []);
    // Damage of a blob, and a name that leads out of the folder.
    let layer = folder.join("blobs/sha256").join(manifest.value.layers[0].digest.hex());
    fs::write(&layer, b"other bytes").unwrap();
    import(&Place::new().store, &folder).unwrap_err();
    let docker = place.at("docker");
    fs::create_dir(&docker).unwrap();
    fs::write(place.at("secret"), config.raw).unwrap();
    fs::write(docker.join("manifest.json"), r#"[{"Config":"../secret","Layers":[]}]"#).unwrap();
    let error = import(&Place::new().store, &docker).unwrap_err();
    assert!(error.to_string().contains("leaves the tree"), "{error}");
    let config =
        r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    fs::write(place.at("secret"), config).unwrap();
    fs::write(docker.join("manifest.json"), r#"[{"Config":"config","Layers":[]}]"#).unwrap();
    for (target, fine) in [("../secret", false), ("inside", true)] {
        fs::write(docker.join("inside"), config).unwrap();
        symlink(target, docker.join("config")).unwrap();
        assert_eq!(import(&Place::new().store, &docker).is_ok(), fine, "a link to {target}");
        fs::remove_file(docker.join("config")).unwrap();
    }
}
