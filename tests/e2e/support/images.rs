//! Images made byte by byte: layers of any entries, layouts of any layers, and the base with busybox below them.
//!
//! Knows what an image looks like on disk; has no opinion on what one may hold.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, OnceLock},
};

use idpbuilder::oci::Digest;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::{Done, Folder, ROOT, bases};

/// A date that all entries have: 2017-07-14.
const MTIME: u64 = 1_500_000_000;

pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A layer as it is made, entry by entry, without any check.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// An entry from a header; its name and link are taken as they are, up to 100 bytes.
    pub(crate) fn raw(mut self, mut header: Header, name: &[u8], content: &[u8]) -> Self {
        header.as_mut_bytes()[..100].fill(0);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn entry(self, kind: EntryType, name: &str, mode: u32, content: &[u8]) -> Self {
        self.raw(header(kind, mode), name.as_bytes(), content)
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, &format!("{name}/"), mode, b"")
    }

    pub(crate) fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, name, 0o644, content.as_ref())
    }

    pub(crate) fn program(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, name, 0o755, content.as_ref())
    }

    pub(crate) fn fifo(self, name: &str) -> Self {
        self.entry(EntryType::Fifo, name, 0o644, b"")
    }

    pub(crate) fn owned(self, name: &str, (uid, gid): (u64, u64)) -> Self {
        let mut header = header(EntryType::Regular, 0o4755);
        header.set_uid(uid);
        header.set_gid(gid);
        self.raw(header, name.as_bytes(), b"owned\n")
    }

    pub(crate) fn link(self, name: &str, target: impl AsRef<Path>) -> Self {
        self.linked(EntryType::Symlink, name, target.as_ref())
    }

    pub(crate) fn hard_link(self, name: &str, target: impl AsRef<Path>) -> Self {
        self.linked(EntryType::Link, name, target.as_ref())
    }

    fn linked(self, kind: EntryType, name: &str, target: &Path) -> Self {
        let mut header = header(kind, 0o777);
        let target = target.as_os_str().as_encoded_bytes();
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target);
        self.raw(header, name.as_bytes(), b"")
    }

    /// Extended header of the entry that follows.
    pub(crate) fn pax<'a>(
        mut self,
        records: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Self {
        self.0.append_pax_extensions(records).unwrap();
        self
    }

    pub(crate) fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(MTIME);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A layer of an image: the blob, its media type, and the digest of the tar in it.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) media_type: &'static str,
    pub(crate) diff_id: String,
}

impl Layer {
    pub(crate) fn plain(tar: Vec<u8>) -> Self {
        Self { diff_id: digest(&tar), blob: tar, media_type: TAR }
    }

    pub(crate) fn gzip(tar: &[u8]) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(tar).unwrap();
        let blob = encoder.finish().unwrap();
        Self { diff_id: digest(tar), blob, media_type: TAR_GZIP }
    }

    pub(crate) fn descriptor(&self) -> Value {
        descriptor(self.media_type, &self.blob)
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

/// Busybox with accounts, and the programs of `tests/e2e/programs`, below which hostile layers are put.
pub(crate) fn base_layers() -> Vec<Layer> {
    static MADE: OnceLock<Vec<Layer>> = OnceLock::new();
    let make = || {
        let folder = bases().join("corpus/busybox");
        let read = |digest: &Value| {
            let hex = digest.as_str().unwrap().trim_start_matches("sha256:");
            fs::read(folder.join("blobs/sha256").join(hex)).unwrap()
        };
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = parse(&fs::read(folder.join("index.json")).unwrap());
        let manifest = parse(&read(&index["manifests"][0]["digest"]));
        let config = parse(&read(&manifest["config"]["digest"]));
        let busybox = Layer {
            blob: read(&manifest["layers"][0]["digest"]),
            media_type: TAR_GZIP,
            diff_id: config["rootfs"]["diff_ids"][0].as_str().unwrap().to_owned(),
        };
        let programs = ["attack", "probe"]
            .into_iter()
            .fold(Tar::new(), |tar, name| tar.program(&format!("bin/{name}"), program(name)));
        vec![busybox, Layer::gzip(&programs.end())]
    };
    MADE.get_or_init(make).clone()
}

/// A program of `tests/e2e/programs`, as a layer has it.
fn program(name: &str) -> Vec<u8> {
    let folder = Folder::new();
    fs::read(compiled(name, folder.path())).unwrap()
}

/// A program of `tests/e2e/programs`, compiled without any library into a folder, for everybody to run.
pub(crate) fn compiled(name: &str, folder: &Path) -> PathBuf {
    let source = Path::new(ROOT).join("tests/e2e/programs").join(format!("{name}.c"));
    let out = folder.join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-static", "-O1", "-s", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&out).arg(source);
    Done::of(&mut gcc).ok();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o755)).unwrap();
    out
}

/// Config of an image of these layers, with what it says of its processes.
pub(crate) fn config_of(layers: &[Layer], process: &Value) -> Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    json!({
        "architecture": "amd64", "os": "linux", "config": process,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

/// The environment of every base.
pub(crate) fn plain_process() -> Value {
    json!({ "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] })
}

/// An OCI layout that may be wrong in every way.
pub(crate) struct Layout(pub(crate) PathBuf);

impl Layout {
    pub(crate) fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self(folder)
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        self.blob_as(&digest, bytes);
        digest
    }

    /// Bytes under a name that may not be theirs.
    pub(crate) fn blob_as(&self, digest: &str, bytes: &[u8]) {
        let hex = digest.trim_start_matches("sha256:");
        fs::write(self.0.join("blobs/sha256").join(hex), bytes).unwrap();
    }

    /// A whole image of a config and layers; the manifest is written and returned.
    pub(crate) fn image(&self, config: &Value, layers: &[Layer]) -> Vec<u8> {
        for layer in layers {
            self.blob(&layer.blob);
        }
        let config = config.to_string();
        self.blob(config.as_bytes());
        let layers: Vec<_> = layers.iter().map(Layer::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config.as_bytes()), "layers": layers,
        });
        self.manifest(manifest.to_string().into_bytes())
    }

    /// A manifest as `latest`, whatever it says.
    pub(crate) fn manifest(&self, manifest: Vec<u8>) -> Vec<u8> {
        self.blob(&manifest);
        let mut named = descriptor(MANIFEST, &manifest);
        named["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        self.index(
            &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [named] }).to_string(),
        );
        manifest
    }

    pub(crate) fn index(&self, text: &str) {
        fs::write(self.0.join("index.json"), text).unwrap();
    }
}

/// Media type and bytes, or not found.
type Answer = Option<(String, Vec<u8>)>;

/// A server on loopback that knows no registry's rules: it answers each path as it is told to.
pub(crate) struct Served {
    /// Host and port.
    pub(crate) address: String,
    /// Paths asked for, in order.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

impl Served {
    /// Answers `GET` by path: a media type and bytes, or not found. It ends with the tests.
    pub(crate) fn new(answer: impl Fn(&str) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let served =
            Self { address: listener.local_addr().unwrap().to_string(), asked: Arc::default() };
        let asked = Arc::clone(&served.asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who goes away has had enough.
                drop(reply(stream, &answer, &asked));
            }
        });
        served
    }

    /// The image `latest` of a layout, as any repository.
    pub(crate) fn layout(folder: &Path) -> Self {
        let folder = folder.to_owned();
        Self::new(move |path| {
            let blob =
                |digest: &str| fs::read(folder.join("blobs").join(digest.replace(':', "/"))).ok();
            let (_, name) = path.rsplit_once('/')?;
            if path.contains("/blobs/") {
                return Some(("application/octet-stream".to_owned(), blob(name)?));
            }
            if !path.contains("/manifests/") {
                return Some(("application/json".to_owned(), b"{}".to_vec()));
            }
            let index: Value =
                serde_json::from_slice(&fs::read(folder.join("index.json")).ok()?).ok()?;
            let digest =
                if name.contains(':') { name } else { index["manifests"][0]["digest"].as_str()? };
            let manifest = blob(digest)?;
            let kind = serde_json::from_slice::<Value>(&manifest).ok();
            let kind = kind.and_then(|json| Some(json["mediaType"].as_str()?.to_owned()));
            Some((kind.unwrap_or_else(|| MANIFEST.to_owned()), manifest))
        })
    }
}

fn reply(
    mut stream: TcpStream,
    answer: &dyn Fn(&str) -> Answer,
    asked: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    asked.lock().unwrap().push(path.to_owned());
    let found = answer(path);
    let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
    let (kind, bytes) = found.unwrap_or_default();
    let length = bytes.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    if method != "HEAD" {
        stream.write_all(&bytes)?;
    }
    Ok(())
}
