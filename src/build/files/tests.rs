//! Laws of file operations: what escapes, what changes meanwhile, what a key depends on.

mod corpus;
mod sizes;
mod splits;

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;
use crate::{
    graph::{Op, OpGraph, OpNode, Place},
    layer::{LayerWriter, Listing},
    store::LayerRecord,
    tree::{Change, Entry, Meta},
};

const CLOCK: Clock =
    Clock { now: Timestamp { seconds: 1_800_000_000, nanos: 0 }, epoch: None, commit: None };
const CANARY: &str = "canary outside of the context";

/// A store, a folder of files and a place outside of both.
struct Bench {
    folder: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        fs::create_dir(folder.path().join("context")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/secret"), CANARY).unwrap();
        Self { folder, store }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join("context").join(below)
    }

    fn write(&self, below: &str, text: &str) {
        fs::create_dir_all(self.path(below).parent().unwrap()).unwrap();
        fs::write(self.path(below), text).unwrap();
    }

    fn context(&self, ignore: Option<&str>) -> Context {
        Context::open(&self.path(""), ignore).unwrap()
    }

    fn layer(&self, base: &[DiffId], copy: &Copy<'_>) -> Result<DiffId, FilesError> {
        let context = self.context(copy.ignore);
        let op = copy.op();
        make_layer(&self.store, &op, base, &|_| Root::Context(&context), CLOCK)
    }

    fn key(&self, copy: &Copy<'_>) -> KeyTree {
        let context = self.context(copy.ignore);
        key(&self.store, &copy.op(), None, &|_| Root::Context(&context)).unwrap().tree
    }

    /// The layer as text, one line a change.
    fn listing(&self, layer: DiffId) -> Vec<String> {
        let bytes = self.store.listing(layer).unwrap().unwrap();
        Listing::decode(bytes).unwrap().iter().map(|listed| line(&listed.change)).collect()
    }

    fn copied(&self, copy: &Copy<'_>) -> Vec<String> {
        self.listing(self.layer(&[], copy).unwrap())
    }

    fn bytes(&self, layer: DiffId) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.store.open_blob(layer.0).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// A layer of files with these contents; a text that starts with `->` is a link.
    fn base(&self, entries: &[(&str, &str)]) -> DiffId {
        let mut writer = LayerWriter::new(self.store.blob_writer().unwrap());
        for (path, text) in entries {
            let kind = match (path.strip_suffix('/'), text.strip_prefix("->")) {
                (Some(_), _) => Kind::Directory,
                (None, Some(target)) => Kind::Symlink { target: target.as_bytes().to_vec() },
                (None, None) => Kind::File { size: text.len() as u64 },
            };
            let content = if matches!(kind, Kind::File { .. }) { text.as_bytes() } else { b"" };
            let meta = Meta { mode: 0o755, ..Meta::default() };
            let entry = Entry { path: TreePath::parse(path).unwrap(), kind, meta };
            writer.put(&entry, &mut &content[..]).unwrap();
        }
        let (blob, summary) = writer.finish().unwrap();
        blob.commit(None).unwrap();
        self.store.put_listing(summary.diff_id, &summary.listing.encode()).unwrap();
        let record = LayerRecord {
            tar_bytes: summary.tar_bytes,
            content_bytes: summary.content_bytes,
            compressed: Vec::new(),
        };
        self.store.put_layer(summary.diff_id, &record).unwrap();
        summary.diff_id
    }
}

struct Copy<'a> {
    source: &'a str,
    destination: &'a str,
    ignore: Option<&'a str>,
    unpack: Unpack,
}

fn copy<'a>(source: &'a str, destination: &'a str) -> Copy<'a> {
    Copy { source, destination, ignore: None, unpack: Unpack::Never }
}

impl Copy<'_> {
    fn op(&self) -> FilesOp {
        let mut graph = OpGraph::default();
        let base =
            graph.add(OpNode { op: Op::Scratch, place: Place::default(), setting: Arc::default() });
        let from = graph.add(OpNode {
            op: Op::Context { name: None },
            place: Place::default(),
            setting: Arc::default(),
        });
        let action = FileAction::Copy {
            sources: vec![CopySource { root: SourceRoot::Op(from), path: self.source.to_owned() }],
            destination: self.destination.to_owned(),
            chown: None,
            chmod: None,
            exclude: Vec::new(),
            parents: false,
            link: false,
            unpack: self.unpack,
        };
        FilesOp { base, actions: vec![action] }
    }
}

fn line(change: &Change) -> String {
    match change {
        Change::Whiteout(path) => format!("whiteout {path}"),
        Change::Opaque(path) => format!("opaque {path}"),
        Change::Put(Entry { path, kind, .. }) => match kind {
            Kind::Directory => format!("{path}/"),
            Kind::File { size } => format!("{path} {size}"),
            Kind::Symlink { target } => format!("{path} -> {}", String::from_utf8_lossy(target)),
            Kind::Hardlink { target } => format!("{path} = {target}"),
            Kind::Fifo => format!("{path} fifo"),
            Kind::CharDevice { .. } => format!("{path} char"),
            Kind::BlockDevice { .. } => format!("{path} block"),
        },
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn not_found(result: Result<DiffId, FilesError>) -> (String, Option<String>) {
    match result {
        Err(FilesError::NotFound { message, help }) => (message, help),
        other => panic!("{other:?}"),
    }
}

#[test]
fn c01_dots_stop_at_the_root_of_the_context() {
    let bench = Bench::new();
    for source in ["../outside/secret", "/../../outside/secret", "x/../../outside/secret"] {
        let (message, _) = not_found(bench.layer(&[], &copy(source, "/x")));
        assert_eq!(message, "\"/outside/secret\": not found");
    }
}

#[test]
fn c02_links_never_lead_out_of_the_context() {
    let bench = Bench::new();
    let outside = bench.folder.path().join("outside");
    symlink(outside.join("secret"), bench.path("absolute")).unwrap();
    symlink("../outside/secret", bench.path("relative")).unwrap();
    symlink(&outside, bench.path("folder")).unwrap();
    symlink("/", bench.path("root")).unwrap();
    for source in ["absolute", "relative", "folder", "folder/secret", "root/etc/passwd"] {
        not_found(bench.layer(&[], &copy(source, "/x")));
    }
    let layer = bench.layer(&[], &copy(".", "/x/")).unwrap();
    assert_eq!(bench.listing(layer).len(), 5, "links are copied as links");
    assert!(!contains(&bench.bytes(layer), CANARY));
}

#[test]
fn c03_swapping_a_folder_for_a_link_never_lets_bytes_of_the_host_in() {
    let bench = Bench::new();
    bench.write("d/secret", "inside");
    let (folder, link) = (bench.path("d"), bench.path("l"));
    symlink(bench.folder.path().join("outside"), &link).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            let here = rustix::fs::CWD;
            while !done.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(here, &folder, here, &link, exchange).unwrap();
            }
        });
        for _ in 0..500 {
            for source in ["d", "d/secret", "."] {
                if let Ok(layer) = bench.layer(&[], &copy(source, "/x/")) {
                    assert!(!contains(&bench.bytes(layer), CANARY));
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn c04_an_ignore_file_that_is_a_link_or_a_pipe_is_refused() {
    let bench = Bench::new();
    let folder = bench.path("");
    assert!(read_in_folder(&folder, ".dockerignore", 100).unwrap().is_none());
    symlink("../outside/secret", bench.path(".dockerignore")).unwrap();
    assert!(read_in_folder(&folder, ".dockerignore", 100).is_err());
    fs::remove_file(bench.path(".dockerignore")).unwrap();
    fifo(&bench.path(".dockerignore"));
    assert!(read_in_folder(&folder, ".dockerignore", 100).is_err());
    fs::remove_file(bench.path(".dockerignore")).unwrap();
    bench.write(".dockerignore", "a\n");
    assert_eq!(read_in_folder(&folder, ".dockerignore", 100).unwrap().unwrap(), b"a\n");
    assert!(read_in_folder(&folder, ".dockerignore", 1).is_err());
}

fn fifo(path: &Path) {
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o644.into(), 0).unwrap();
}

#[test]
fn c13_links_of_the_root_file_system_stop_at_its_root() {
    let bench = Bench::new();
    bench.write("f", "f");
    let base = bench.base(&[("l", "->/etc"), ("up", "->../../.."), ("loop", "->loop")]);
    let rows = [
        ("/l/", ["/etc/", "/etc/f 1"].as_slice()),
        ("/l/x", &["/etc/", "/etc/x 1"]),
        ("/up/x", &["/x 1"]),
        ("/../../x", &["/x 1"]),
    ];
    for (destination, expected) in rows {
        let layer = bench.layer(&[base], &copy("f", destination)).unwrap();
        assert_eq!(bench.listing(layer), expected, "COPY f {destination}");
    }
    let error = bench.layer(&[base], &copy("f", "/loop/x")).unwrap_err().to_string();
    assert!(error.contains("too many links"), "{error}");
}

#[test]
fn c15_special_files_are_never_opened() {
    let bench = Bench::new();
    fifo(&bench.path("pipe"));
    drop(std::os::unix::net::UnixListener::bind(bench.path("socket")).unwrap());
    let kind = rustix::fs::FileType::CharacterDevice;
    let zero = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(rustix::fs::CWD, bench.path("zero"), kind, 0o644.into(), zero).unwrap();
    bench.key(&copy(".", "/"));
    assert_eq!(bench.copied(&copy(".", "/")), ["/pipe fifo", "/socket 0", "/zero char"]);
}

#[test]
fn c15_c16_a_file_that_changes_meanwhile_is_never_copied_in_halves() {
    let bench = Bench::new();
    let path = bench.path("f");
    let stop = AtomicBool::new(false);
    fs::write(&path, vec![b'a'; 100_000]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0_usize.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let byte = if round % 2 == 0 { b'b' } else { b'a' };
                // No two contents of one size within a tick of a kernel's clock, which is all that says so of them.
                fs::write(&path, vec![byte; 100_000 + round % 10_000]).unwrap();
            }
        });
        for _ in 0..100 {
            match bench.layer(&[], &copy("f", "/f")) {
                Err(error) => {
                    assert!(error.to_string().contains("changed while it was read"), "{error}");
                }
                Ok(layer) => {
                    let bytes = bench.bytes(layer);
                    let content = &bytes[512..];
                    let (a, b) = (content.contains(&b'a'), content.contains(&b'b'));
                    assert!(!(a && b), "halves of two contents in one file");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn c19_hard_links_stay_one_file_however_many() {
    let bench = Bench::new();
    bench.write("d/0", "one");
    for name in 1..2000 {
        fs::hard_link(bench.path("d/0"), bench.path(&format!("d/{name}"))).unwrap();
    }
    let listing = bench.copied(&copy("d", "/d/"));
    assert_eq!(listing.iter().filter(|line| line.ends_with(" = /d/0")).count(), 1999);
    assert_eq!(listing[1], "/d/0 3");
}

#[test]
fn s17_account_files_that_are_no_small_regular_files_are_refused() {
    let bench = Bench::new();
    let big = "x".repeat((16 << 20) + 1);
    let refused =
        [[("etc/", ""), ("etc/passwd", big.as_str())], [("etc/", ""), ("etc/passwd/", "")]];
    for entries in refused {
        let view = View::open(&bench.store, &[bench.base(&entries)]).unwrap();
        assert!(user_ids(&view, "app").is_err());
    }
    let lines: String = (0..200_000).map(|n| format!("u{n}:x:{n}:{n}::/:\n")).collect();
    let base = bench.base(&[("etc/", ""), ("etc/passwd", &lines), ("passwd", "->etc/passwd")]);
    let view = View::open(&bench.store, &[base]).unwrap();
    assert_eq!(user_ids(&view, "u199999").unwrap().uid, 199_999);
}

#[test]
fn a_missing_source_is_named_in_buildkits_words_with_what_may_be_meant() {
    let bench = Bench::new();
    bench.write("package.json", "{}");
    bench.write("secret.txt", "x");
    let (message, help) = not_found(bench.layer(&[], &copy("pakage.json", "/")));
    assert_eq!(message, "\"/pakage.json\": not found");
    assert_eq!(help.as_deref(), Some("near names: `/package.json`"));
    let ignored = Copy { ignore: Some("*.txt"), ..copy("secret.txt", "/") };
    let (message, help) = not_found(bench.layer(&[], &ignored));
    assert_eq!(message, "\"/secret.txt\": not found");
    assert!(help.unwrap().contains(".dockerignore"));
}

#[test]
fn a_key_depends_on_what_is_copied_and_on_nothing_else() {
    let bench = Bench::new();
    bench.write("d/a", "a");
    bench.write("d/b", "b");
    bench.write("other", "x");
    let copy = copy("d", "/d/");
    let first = bench.key(&copy);
    assert_eq!(first.components().last().unwrap().name, "source d");
    assert!(first.components().last().unwrap().value.starts_with("2 files, sha256:"));
    bench.write("other", "changed");
    fs::write(bench.path("d/a"), "a").unwrap();
    assert_eq!(bench.key(&copy), first, "neither other files nor times count");
    let changes: [(&str, &dyn Fn()); 5] = [
        ("content", &|| bench.write("d/a", "A")),
        ("mode", &|| {
            fs::set_permissions(bench.path("d/b"), fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("a new name", &|| bench.write("d/c", "c")),
        ("a link instead of a file", &|| {
            fs::remove_file(bench.path("d/c")).unwrap();
            symlink("a", bench.path("d/c")).unwrap();
        }),
        ("the link's text", &|| {
            fs::remove_file(bench.path("d/c")).unwrap();
            symlink("b", bench.path("d/c")).unwrap();
        }),
    ];
    let mut seen = vec![first];
    for (what, change) in changes {
        change();
        let key = bench.key(&copy);
        assert!(!seen.contains(&key), "{what} changes the key");
        seen.push(key);
    }
}

#[test]
fn a_known_file_is_not_read_again_and_a_changed_one_is() {
    let bench = Bench::new();
    bench.write("f", "first");
    let stat = fs::metadata(bench.path("f")).unwrap();
    let before = bench.key(&copy("f", "/"));
    // Same length, same times of modification: only the time of change tells.
    fs::write(bench.path("f"), "other").unwrap();
    let time = rustix::fs::Timespec { tv_sec: stat.mtime(), tv_nsec: stat.mtime_nsec() };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::empty();
    rustix::fs::utimensat(rustix::fs::CWD, bench.path("f"), &times, flags).unwrap();
    assert_ne!(bench.key(&copy("f", "/")), before);
}

#[test]
fn capabilities_of_files_are_copied_and_count() {
    let bench = Bench::new();
    bench.write("f", "program");
    let before = bench.key(&copy("f", "/"));
    let mut value = [0_u8; 20];
    (value[0], value[3], value[5]) = (1, 2, 4);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(bench.path("f"), "security.capability", &value, flags).unwrap();
    for _ in 0..2 {
        assert_ne!(bench.key(&copy("f", "/")), before, "also when the file is known");
    }
    let layer = bench.layer(&[], &copy("f", "/")).unwrap();
    let view = View::open(&bench.store, &[layer]).unwrap();
    let entry = view.entry(&TreePath::parse("f").unwrap()).unwrap();
    assert_eq!(entry.meta.xattrs.get(b"security.capability".as_slice()), Some(&value.to_vec()));
}

#[test]
fn an_archive_member_replaces_whatever_stands_there() {
    let bench = Bench::new();
    let mut archive = tar::Builder::new(fs::File::create(bench.path("a.tar")).unwrap());
    let mut add = |path: &str, kind, link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        if let Some(link) = link {
            header.set_link_name(link).unwrap();
        }
        archive.append_data(&mut header, path, std::io::empty()).unwrap();
    };
    add("dir", tar::EntryType::Regular, None);
    add("dir", tar::EntryType::Directory, None);
    add("file", tar::EntryType::Directory, None);
    add("name", tar::EntryType::Link, Some("kept"));
    add(".wh.gone", tar::EntryType::Regular, None);
    add("sub/.wh..wh..opq", tar::EntryType::Regular, None);
    archive.finish().unwrap();
    let base = bench.base(&[
        ("dir/", ""),
        ("dir/old", "x"),
        ("file", "x"),
        ("gone", "x"),
        ("kept", "kept"),
        ("sub/", ""),
        ("sub/old", "x"),
    ]);
    let add = Copy { unpack: Unpack::Local, ..copy("a.tar", "/") };
    let layer = bench.layer(&[base], &add).unwrap();
    let expected = [
        "whiteout /dir",
        "/dir/",
        "whiteout /file",
        "/file/",
        "whiteout /gone",
        "/kept 4",
        "/name = /kept",
        "/sub/",
        "opaque /sub",
    ];
    assert_eq!(bench.listing(layer), expected);
    let view = View::open(&bench.store, &[base, layer]).unwrap();
    assert!(view.names(&TreePath::parse("dir").unwrap()).is_empty());
    assert!(view.names(&TreePath::parse("sub").unwrap()).is_empty());
}

#[test]
fn a_directory_made_for_a_process_is_made_once() {
    let bench = Bench::new();
    let base = bench.base(&[("l", "->real"), ("real/", "")]);
    let mut graph = OpGraph::default();
    let id =
        graph.add(OpNode { op: Op::Scratch, place: Place::default(), setting: Arc::default() });
    let make = |path: &str| FileAction::MakeDirectory { path: path.into(), owner: "77".into() };
    let op = FilesOp { base: id, actions: vec![make("/l/a/b"), make("/real")] };
    let epoch = Timestamp { seconds: 7, nanos: 0 };
    let clock = Clock { epoch: Some(epoch), ..CLOCK };
    let layer = make_layer(&bench.store, &op, &[base], &|_| Root::Layers(&[]), clock).unwrap();
    assert_eq!(bench.listing(layer), ["/real/", "/real/a/", "/real/a/b/"]);
    let view = View::open(&bench.store, &[base, layer]).unwrap();
    let made = view.entry(&TreePath::parse("real/a").unwrap()).unwrap().meta;
    assert_eq!((made.mode, made.uid, made.gid, made.mtime), (0o755, 77, 77, epoch));
}

#[test]
fn the_time_of_a_checkout_cannot_change_a_layer() {
    let bench = Bench::new();
    bench.write("f", "f");
    let dated = |seconds: i64| {
        let file = fs::File::options().write(true).open(bench.path("f")).unwrap();
        let age = std::time::Duration::from_secs(seconds.unsigned_abs());
        file.set_modified(std::time::UNIX_EPOCH + age).unwrap();
        bench.layer(&[], &copy("f", "/f")).unwrap()
    };
    let latest = CLOCK.now.seconds;
    assert_eq!(dated(latest + 1), dated(latest + 1000));
    assert_ne!(dated(latest - 1), dated(latest + 1), "an older date is the file's own");
}

#[test]
fn a_download_is_a_private_file_with_the_servers_time() {
    let bench = Bench::new();
    let content = bench.store.put_blob(b"body").unwrap();
    let modified = Timestamp { seconds: 5, nanos: 0 };
    let download = Download { name: "f.txt".to_owned(), content, size: 4, modified };
    let op = copy("ignored", "/x/").op();
    let root = |_| Root::Download(&download);
    let layer = make_layer(&bench.store, &op, &[], &root, CLOCK).unwrap();
    assert_eq!(bench.listing(layer), ["/x/", "/x/f.txt 4"]);
    let view = View::open(&bench.store, &[layer]).unwrap();
    let made = view.entry(&TreePath::parse("x/f.txt").unwrap()).unwrap().meta;
    assert_eq!((made.mode, made.uid, made.mtime), (0o600, 0, modified));
    let tree = key(&bench.store, &op, None, &root).unwrap().tree;
    assert_eq!(tree.components().last().unwrap().name, "download f.txt");
}
