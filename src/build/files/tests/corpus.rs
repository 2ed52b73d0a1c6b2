//! Every case of the corpus that only copies files: lowered, made, and compared with what BuildKit made.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::Read as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use base64::Engine as _;
use serde_json::Value;

use crate::{
    build::files::{Clock, Context, Root, key, make_layer},
    dockerfile::{self, ContextKind, Epoch, ImageRequest, LowerOptions, Lowered, Lowering},
    graph::{FileAction, Op, OpGraph, SourceRoot},
    layer::LayerWriter,
    oci::{ChainId, DiffId, Digest, ImageConfig, Platform},
    snapshot::View,
    store::{LayerRecord, Store},
    tree::{Entry, Kind, Meta, Timestamp, TreePath},
};

const BASE_MTIME: i64 = 1_500_000_000;
const SOURCE_MTIME: i64 = 1_600_000_000;
const NOW: i64 = 1_800_000_000;

/// Later than this is `now`.
const NOW_MIN: i64 = 1_700_000_000;

/// Where BuildKit's words are an accident of its implementation and ours are better.
const OTHER_WORDS: &[&str] = &[
    "688-error-copy-file-slash-on-file",
    "698-error-copy-chown-name-scratch",
    "699-error-copy-chown-name-link",
    "710-error-add-archive-symlink-missing",
];

#[test]
fn every_case_that_only_copies_makes_the_files_that_buildkit_makes() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/cases");
    let mut names: Vec<_> = fs::read_dir(cases).unwrap().map(|case| case.unwrap().path()).collect();
    names.sort();
    let (mut ran, mut wrong) = (0, Vec::new());
    // One store for all: each layer is made again, so nothing is remembered but the base.
    let runner = Runner::new();
    for path in names {
        let case: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        match runner.run(&case) {
            Outcome::NotOurs => {}
            Outcome::Right => ran += 1,
            Outcome::Wrong(what) => {
                ran += 1;
                wrong.push(format!("{}: {what}", case["name"].as_str().unwrap()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {ran} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(ran >= 190, "only {ran} cases ran");
}

enum Outcome {
    NotOurs,
    Right,
    Wrong(String),
}

struct Runner {
    folder: tempfile::TempDir,
    store: Store,
    base: DiffId,
}

enum Done {
    Stack(Vec<DiffId>),
    Context(Context),
}

impl Runner {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let base = busybox(&store);
        Self { folder, store, base }
    }

    fn run(&self, case: &Value) -> Outcome {
        // What stages and lints mean is tested where they are read.
        if matches!(case["topic"].as_str(), Some("from" | "lint")) {
            return Outcome::NotOurs;
        }
        let unfit = ["http", "call", "platform", "secrets"];
        if unfit.iter().any(|unfit| !case[*unfit].is_null()) {
            return Outcome::NotOurs;
        }
        let Some(lowered) = lower(case) else { return Outcome::NotOurs };
        if !only_copies(&lowered.graph) {
            return Outcome::NotOurs;
        }
        let expect = &case["expect"];
        let epoch = match lowered.epoch {
            Some(Epoch::Seconds(seconds)) => Some(seconds),
            Some(Epoch::Source(_)) => return Outcome::NotOurs,
            None => None,
        };
        let made = self.make(case, &lowered, epoch);
        match (made, expect["error"].as_str()) {
            (Ok(layers), None) => self.compare(&layers, expect, epoch),
            (Err(found), Some(expected)) => {
                let core = expected.rsplit("REF: ").next().unwrap().replace("@ROOTFS@", "");
                let core = core.trim_start_matches("rpc error: code = Unknown desc = ");
                let name = case["name"].as_str().unwrap();
                if found.contains(core) || OTHER_WORDS.contains(&name) {
                    Outcome::Right
                } else {
                    Outcome::Wrong(format!("error {found:?}, expected {core:?}"))
                }
            }
            (Ok(_), Some(expected)) => Outcome::Wrong(format!("no error, expected {expected:?}")),
            (Err(found), None) => Outcome::Wrong(format!("error {found:?}, expected none")),
        }
    }

    fn make(
        &self,
        case: &Value,
        lowered: &Lowered,
        epoch: Option<i64>,
    ) -> Result<Vec<DiffId>, String> {
        let mut done: Vec<Done> = Vec::new();
        let clock = Clock { now: seconds(NOW), epoch: epoch.map(seconds), commit: None };
        for id in lowered.graph.ids() {
            let result = match &lowered.graph.node(id).op {
                Op::Scratch => Done::Stack(Vec::new()),
                Op::Image { .. } => Done::Stack(vec![self.base]),
                Op::Context { name } => Done::Context(self.context(case, name.as_deref())?),
                Op::Files(op) => {
                    let Done::Stack(below) = &done[op.base.index()] else { panic!("a base") };
                    let root_of = |id: crate::graph::OpId| match &done[id.index()] {
                        Done::Stack(layers) => Root::Layers(layers),
                        Done::Context(context) => Root::Context(context),
                    };
                    let before = key(&self.store, op, ChainId::of(below), &root_of)
                        .map_err(|e| e.to_string())?;
                    let layer = make_layer(&self.store, op, below, &root_of, clock);
                    let layer = layer.map_err(|error| error.to_string())?;
                    let after = key(&self.store, op, ChainId::of(below), &root_of)
                        .map_err(|e| e.to_string())?;
                    assert_eq!(before.tree.key(), after.tree.key(), "looking changes no key");
                    Done::Stack([&below[..], &[layer]].concat())
                }
                Op::Run(_) => unreachable!("cases with processes are left out"),
            };
            done.push(result);
        }
        match done.swap_remove(lowered.result.index()) {
            Done::Stack(layers) => Ok(layers),
            Done::Context(_) => panic!("the result is an image"),
        }
    }

    fn context(&self, case: &Value, name: Option<&str>) -> Result<Context, String> {
        let case_name = case["name"].as_str().unwrap();
        let folder = self.folder.path().join(case_name).join(name.unwrap_or("context"));
        fs::create_dir_all(&folder).unwrap();
        let entries = name.map_or(&case["context"], |name| &case["buildContexts"][name]);
        fill(&folder, entries);
        let mut ignore = None;
        if name.is_none() {
            if let Some(text) = case["dockerignore"].as_str() {
                fs::write(folder.join(".dockerignore"), text).unwrap();
                ignore = Some(text.to_owned());
            }
            if case["dockerfileInContext"] == true {
                let file = case["dockerfileName"].as_str().unwrap_or("Dockerfile");
                fs::write(folder.join(file), case["dockerfile"].as_str().unwrap()).unwrap();
            }
            ignore = case["dockerfileDockerignore"].as_str().map(str::to_owned).or(ignore);
        } else if let Ok(text) = fs::read_to_string(folder.join(".dockerignore")) {
            ignore = Some(text);
        }
        Context::open(&folder, ignore.as_deref()).map_err(|error| error.to_string())
    }

    fn compare(&self, layers: &[DiffId], expect: &Value, epoch: Option<i64>) -> Outcome {
        let below = if layers.first() == Some(&self.base) { &layers[..1] } else { &[] };
        let (old, new) = (self.flat(below), self.flat(layers));
        let mut found = BTreeMap::new();
        for (path, facts) in &new {
            let same = old.get(path).is_some_and(|old| {
                old == facts
                    || (facts["type"] == "dir" && without_mtime(old) == without_mtime(facts))
            });
            if !same {
                found.insert(path.clone(), facts.clone());
            }
        }
        let mut wrong = Vec::new();
        let expected: BTreeMap<_, _> = expect["tree"]
            .as_array()
            .map(|tree| tree.iter().map(|e| (e["path"].as_str().unwrap().to_owned(), e)).collect())
            .unwrap_or_default();
        for path in expected.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
            match (expected.get(path), found.get(path)) {
                (Some(expected), Some(found)) => {
                    wrong.extend(differences(path, expected, found, epoch));
                }
                (Some(_), None) => wrong.push(format!("{path} is missing")),
                (None, Some(_)) => wrong.push(format!("{path} should not be there")),
                (None, None) => {}
            }
        }
        let gone = |path: &&String| !new.contains_key(*path);
        let topmost =
            |path: &&String| path.rsplit_once('/').is_none_or(|(up, _)| new.contains_key(up));
        let removed: Vec<_> = old.keys().filter(gone).filter(topmost).cloned().collect();
        let expected: Vec<String> =
            serde_json::from_value(expect["removed"].clone()).unwrap_or_default();
        if removed != expected {
            wrong.push(format!("removed {removed:?}, expected {expected:?}"));
        }
        if wrong.is_empty() { Outcome::Right } else { Outcome::Wrong(wrong.join("; ")) }
    }

    /// The flattened tree in the corpus' words.
    fn flat(&self, layers: &[DiffId]) -> BTreeMap<String, BTreeMap<&'static str, String>> {
        let view = View::open(&self.store, layers).unwrap();
        let mut flat = BTreeMap::new();
        let mut first_names = HashMap::new();
        let mut pending = vec![TreePath::root()];
        while let Some(directory) = pending.pop() {
            for name in view.names(&directory) {
                pending.push(directory.child(&name).unwrap());
            }
            if let Some(entry) = view.entry(&directory).filter(|_| !directory.is_root()) {
                let name = directory.to_string().trim_start_matches('/').to_owned();
                flat.insert(name, facts(&view, &entry));
            }
        }
        for (name, facts) in &mut flat {
            let Some(inode) = view.inode(&TreePath::parse(name).unwrap()) else { continue };
            let first = first_names.entry(inode).or_insert_with(|| name.clone());
            if first != name {
                facts.insert("hardlink", first.clone());
            }
        }
        flat
    }
}

fn without_mtime(facts: &BTreeMap<&'static str, String>) -> BTreeMap<&'static str, String> {
    facts.iter().filter(|(name, _)| **name != "mtime").map(|(k, v)| (*k, v.clone())).collect()
}

fn facts(view: &View, entry: &Entry) -> BTreeMap<&'static str, String> {
    let kind = match &entry.kind {
        Kind::Directory => "dir",
        Kind::File { .. } | Kind::Hardlink { .. } => "file",
        Kind::Symlink { .. } => "symlink",
        Kind::Fifo => "fifo",
        Kind::CharDevice { .. } => "char",
        Kind::BlockDevice { .. } => "block",
    };
    let Meta { mode, uid, gid, mtime, xattrs } = &entry.meta;
    let mut facts = BTreeMap::from([
        ("type", kind.to_owned()),
        ("mode", format!("{mode:04o}")),
        ("uid", uid.to_string()),
        ("gid", gid.to_string()),
        ("mtime", mtime.seconds.to_string()),
    ]);
    assert!(xattrs.is_empty(), "{entry:?}");
    match &entry.kind {
        Kind::Symlink { target } => {
            facts.insert("target", String::from_utf8(target.clone()).unwrap());
        }
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            facts.insert("dev", format!("{major}:{minor}"));
        }
        Kind::File { .. } | Kind::Hardlink { .. } => {
            let mut bytes = Vec::new();
            view.open_file(&entry.path).unwrap().read_to_end(&mut bytes).unwrap();
            facts.insert("sha256", Digest::of(&bytes).to_string());
        }
        Kind::Directory | Kind::Fifo => {}
    }
    facts
}

fn differences(
    path: &str,
    expected: &Value,
    found: &BTreeMap<&'static str, String>,
    epoch: Option<i64>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, expected) in expected.as_object().unwrap() {
        let text = expected.as_str().map_or_else(|| expected.to_string(), str::to_owned);
        let right = match name.as_str() {
            "path" | "size" => true,
            "mode" | "content" | "sha256" if found["type"] == "symlink" => true,
            "content" => found.get("sha256") == Some(&Digest::of(text.as_bytes()).to_string()),
            "sha256" => found["sha256"].ends_with(&text),
            "mtime" => {
                let seconds: i64 = found["mtime"].parse().unwrap();
                match text.as_str() {
                    "src" => seconds == SOURCE_MTIME,
                    "epoch" => Some(seconds) == epoch,
                    "now" => seconds > NOW_MIN,
                    text => found["mtime"] == text,
                }
            }
            name => found.get(name) == Some(&text),
        };
        if !right {
            wrong.push(format!(
                "{path}: {name} is {:?}, expected {text:?}",
                found.get(name.as_str())
            ));
        }
    }
    if found.contains_key("hardlink") && expected["hardlink"].is_null() {
        wrong.push(format!("{path}: should not be a hard link"));
    }
    wrong
}

fn lower(case: &Value) -> Option<Lowered> {
    let text = case["dockerfile"].as_str()?.replace("@HTTP@", "http://127.0.0.1:1");
    let dockerfile = dockerfile::parse(&text).ok()?;
    let contexts = case["buildContexts"].as_object();
    let contexts = contexts.into_iter().flatten().map(|(name, value)| {
        let kind = if value.is_string() { ContextKind::Image } else { ContextKind::Files };
        (name.clone(), kind)
    });
    let words = |value: &Value| -> BTreeMap<String, String> {
        serde_json::from_value(value.clone()).unwrap_or_default()
    };
    let options = LowerOptions {
        target: case["target"].as_str().map(str::to_owned),
        args: words(&case["args"]),
        labels: words(&case["labels"]),
        platform: Platform::linux("amd64", None),
        build_platform: Platform::linux("amd64", None),
        named_contexts: contexts.collect(),
        ignore: None,
    };
    let mut configs: HashMap<ImageRequest, ImageConfig> = HashMap::new();
    for _ in 0..4 {
        match dockerfile::lower(&dockerfile, &options, &configs).ok()? {
            Lowering::Done(lowered) => return Some(*lowered),
            Lowering::Needs(requests) => {
                for request in requests {
                    // The other base image of the corpus has triggers that run processes.
                    if request.name.contains("onbuild") {
                        return None;
                    }
                    let config = r#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]},"history":[]}"#;
                    configs.insert(request, serde_json::from_str(config).unwrap());
                }
            }
        }
    }
    None
}

fn only_copies(graph: &OpGraph) -> bool {
    let mut copies = 0;
    for id in graph.ids() {
        match &graph.node(id).op {
            Op::Run(_) => return false,
            Op::Files(op) => {
                copies += 1;
                let remote =
                    |root: &SourceRoot| matches!(root, SourceRoot::Url { .. } | SourceRoot::Git(_));
                let is_remote = |action: &FileAction| match action {
                    FileAction::Copy { sources, .. } => sources.iter().any(|s| remote(&s.root)),
                    FileAction::MakeDirectory { .. } => false,
                };
                if op.actions.iter().any(is_remote) {
                    return false;
                }
            }
            Op::Scratch | Op::Image { .. } | Op::Context { .. } => {}
        }
    }
    copies > 0
}

fn fill(folder: &Path, entries: &Value) {
    let mut directories = BTreeMap::new();
    let entries = entries.as_array().cloned().unwrap_or_default();
    for entry in &entries {
        let path = folder.join(entry["path"].as_str().unwrap());
        let above = path.parent().unwrap().to_owned();
        fs::create_dir_all(&above).unwrap();
        for above in
            above.ancestors().take_while(|above| above.starts_with(folder) && *above != folder)
        {
            directories.entry(above.to_owned()).or_insert((0o755, SOURCE_MTIME));
        }
        let mode =
            entry["mode"].as_str().map_or(0o644, |mode| u32::from_str_radix(mode, 8).unwrap());
        let mtime = entry["mtime"].as_i64().unwrap_or(SOURCE_MTIME);
        let target = entry["target"].as_str().unwrap_or_default();
        match entry["type"].as_str().unwrap_or("file") {
            "dir" => {
                fs::create_dir_all(&path).unwrap();
                directories.insert(path, (mode, mtime));
                continue;
            }
            "symlink" => symlink(target, &path).unwrap(),
            "hardlink" => {
                fs::hard_link(folder.join(target), &path).unwrap();
                continue;
            }
            "fifo" => {
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode.into(), 0).unwrap();
            }
            "socket" => drop(std::os::unix::net::UnixListener::bind(&path).unwrap()),
            _ => {
                let base64 = entry["base64"].as_str();
                let bytes =
                    base64.map(|b| base64::engine::general_purpose::STANDARD.decode(b).unwrap());
                let text = || entry["content"].as_str().unwrap_or_default().as_bytes().to_vec();
                fs::write(&path, bytes.unwrap_or_else(text)).unwrap();
            }
        }
        if entry["type"] != "symlink" {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        set_mtime(&path, mtime);
    }
    for (path, (mode, mtime)) in directories.iter().rev() {
        fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
        set_mtime(path, *mtime);
    }
}

fn set_mtime(path: &Path, seconds: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

/// The corpus' base image, without its programs (`make-base` holds the same lists).
fn busybox(store: &Store) -> DiffId {
    let passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
                  www-data:x:33:33:www-data:/var/www:/bin/false\napp:x:1000:1001:app:/home/app:/bin/sh\n";
    let group = "root:x:0:\ndaemon:x:1:\nstaff:x:50:app\nwww-data:x:33:\napp:x:1001:\n\
                 audio:x:29:app,www-data\nwheel:x:10:root\n";
    let directory = |path, mode| (path, Kind::Directory, mode, "");
    let file =
        |path, text: &'static str, mode| (path, Kind::File { size: text.len() as u64 }, mode, text);
    let link = |path, target: &str| {
        (path, Kind::Symlink { target: target.as_bytes().to_vec() }, 0o777, "")
    };
    let mut entries = vec![
        directory("bin", 0o755),
        directory("dev", 0o755),
        directory("etc", 0o755),
        directory("home", 0o755),
        directory("home/app", 0o755),
        directory("proc", 0o755),
        directory("root", 0o700),
        directory("run", 0o755),
        directory("srv", 0o755),
        directory("sys", 0o755),
        directory("tmp", 0o1777),
        directory("usr", 0o755),
        directory("usr/bin", 0o755),
        directory("usr/local", 0o755),
        directory("usr/local/bin", 0o755),
        directory("var", 0o755),
        directory("var/tmp", 0o1777),
        directory("base", 0o750),
        directory("base/sub", 0o755),
        file("etc/passwd", passwd, 0o644),
        file("etc/group", group, 0o644),
        file("base/file", "base file\n", 0o640),
        file("base/sub/one", "one\n", 0o644),
        file("base/sub/two", "two\n", 0o644),
        link("base/link-dir", "sub"),
        link("base/link-file", "file"),
        link("base/abs-link", "/base/sub"),
        link("base/dangling", "nowhere"),
        link("base/escape", "../../../../srv"),
    ];
    entries.sort_by_key(|(path, ..)| TreePath::parse(path).unwrap());
    let mut layer = LayerWriter::new(store.blob_writer().unwrap());
    for (path, kind, mode, text) in entries {
        let (uid, gid) = if path == "home/app" { (1000, 1001) } else { (0, 0) };
        let meta = Meta { mode, uid, gid, mtime: seconds(BASE_MTIME), ..Meta::default() };
        let entry = Entry { path: TreePath::parse(path).unwrap(), kind, meta };
        layer.put(&entry, &mut text.as_bytes()).unwrap();
    }
    let (blob, summary) = layer.finish().unwrap();
    blob.commit(None).unwrap();
    store.put_listing(summary.diff_id, &summary.listing.encode()).unwrap();
    let record = LayerRecord {
        tar_bytes: summary.tar_bytes,
        content_bytes: summary.content_bytes,
        compressed: Vec::new(),
    };
    store.put_layer(summary.diff_id, &record).unwrap();
    summary.diff_id
}
