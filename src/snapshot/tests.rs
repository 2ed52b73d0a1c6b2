//! Laws of views and snapshots. The oracle of the merged view is the kernel: the same layers,
//! unpacked and mounted for a process that looks around. Needs root and says so by failing.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    sync::{Arc, atomic::AtomicBool},
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    event::Stream,
    layer::{LayerWriter, OverlayMarks},
    oci::Digest,
    sandbox::{self, Bind, Mount, NetworkMode, ProcessSpec, RootFs},
    tree::{Entry, Kind, Meta, TreePath},
};

fn path(text: &str) -> TreePath {
    TreePath::parse(text).unwrap()
}

fn open_store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    (folder, store)
}

/// One line of a layer to be made.
#[derive(Clone, Debug)]
enum Op {
    Directory(u32),
    File(String),
    Symlink(String),
    Hardlink(String),
    Whiteout,
    /// A whiteout and a directory in its place.
    Anew,
    /// A directory with an opaque mark.
    Opaque,
}

fn layer(store: &Store, ops: &[(&str, Op)]) -> DiffId {
    layer_on(store, &[], ops)
}

/// Stores a layer of these lines as a plain tar; directories above are added. Whiteouts of nothing
/// are left out, as honest layers have none: the kernel would list them in directories that only one
/// layer has.
fn layer_on(store: &Store, below: &[DiffId], ops: &[(&str, Op)]) -> DiffId {
    let below = View::open(store, below).unwrap();
    let mut lines: BTreeMap<TreePath, Op> = BTreeMap::new();
    for (at, op) in ops {
        let at = path(at);
        let blocked = at.ancestors().any(|above| {
            lines
                .get(&above)
                .is_some_and(|op| !matches!(op, Op::Directory(_) | Op::Opaque | Op::Anew))
        });
        let used = lines.range(at.clone()..).next().is_some_and(|(next, _)| next.starts_with(&at));
        let alone =
            at.ancestors().any(|above| matches!(lines.get(&above), Some(Op::Opaque | Op::Anew)));
        let of_nothing = matches!(op, Op::Whiteout) && (alone || below.entry(&at).is_none());
        if blocked || used || of_nothing {
            continue;
        }
        for above in at.ancestors() {
            lines.entry(above).or_insert(Op::Directory(0o755));
        }
        lines.insert(at, op.clone());
    }
    let mut writer = LayerWriter::new(store.blob_writer().unwrap());
    for (number, (at, op)) in lines.iter().enumerate() {
        write_line(&mut writer, (number, at, op), &lines);
    }
    let (blob, summary) = writer.finish().unwrap();
    blob.commit(Some(summary.diff_id.0)).unwrap();
    summary.diff_id
}

fn write_line(
    writer: &mut LayerWriter<crate::store::BlobWriter>,
    (number, at, op): (usize, &TreePath, &Op),
    lines: &BTreeMap<TreePath, Op>,
) {
    let meta = |mode| Meta { mode, uid: 10 + number as u32, gid: 7, ..Meta::default() };
    let entry = |kind, mode| Entry { path: at.clone(), kind, meta: meta(mode) };
    let mut none = std::io::empty();
    match op {
        Op::Directory(mode) => writer.put(&entry(Kind::Directory, *mode), &mut none).unwrap(),
        Op::File(text) => {
            let kind = Kind::File { size: text.len() as u64 };
            writer.put(&entry(kind, 0o640), &mut text.as_bytes()).unwrap();
        }
        Op::Symlink(target) => {
            let kind = Kind::Symlink { target: target.clone().into_bytes() };
            writer.put(&entry(kind, 0o777), &mut none).unwrap();
        }
        Op::Hardlink(target) => {
            let target = path(target);
            if target < *at && matches!(lines.get(&target), Some(Op::File(_))) {
                let number = lines.keys().position(|key| *key == target).unwrap();
                let meta = Meta { mode: 0o640, uid: 10 + number as u32, gid: 7, ..Meta::default() };
                let entry = Entry { path: at.clone(), kind: Kind::Hardlink { target }, meta };
                writer.put(&entry, &mut none).unwrap();
            }
        }
        Op::Whiteout => writer.whiteout(at).unwrap(),
        Op::Anew => {
            writer.whiteout(at).unwrap();
            writer.put(&entry(Kind::Directory, 0o711), &mut none).unwrap();
        }
        Op::Opaque => {
            writer.put(&entry(Kind::Directory, 0o700), &mut none).unwrap();
            writer.opaque(at).unwrap();
        }
    }
}

/// What a process sees in the mounted layers below these names, one line each.
fn seen_by_a_process(folder: &TempDir, lowers: Vec<PathBuf>, names: &[&str]) -> Vec<String> {
    let place = |name: &str| folder.path().join(name);
    for name in ["upper", "work", "tools"] {
        fs::create_dir_all(place(name)).unwrap();
    }
    fs::copy("/bin/busybox", place("tools").join("busybox")).expect("busybox-static is needed");
    let script = format!(
        "for n in {}; do if [ -e $n ] || [ -L $n ]; then \
         /.tools/busybox find $n -exec /.tools/busybox stat -c '%n|%a|%u|%g|%F|%N' {{}} +; \
         /.tools/busybox find $n -type f -exec /.tools/busybox grep -H '' {{}} +; fi; done",
        names.join(" ")
    );
    let spec = ProcessSpec {
        rootfs: RootFs {
            kind: crate::sandbox::RootKind::Overlay,
            lowers,
            upper: place("upper"),
            work: place("work"),
        },
        argv: ["/.tools/busybox", "sh", "-c", &script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/".to_owned()],
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        hostname: "view".to_owned(),
        network: NetworkMode::Host,
        mounts: vec![Mount::Bind(Bind {
            source: place("tools"),
            target: "/.tools".to_owned(),
            inside: None,
            read_only: true,
        })],
        hosts: Vec::new(),
        resolv_conf: Vec::new(),
        isolation: crate::sandbox::Isolation::Full,
        privileges: crate::sandbox::Privileges::MayGrow,
        users: crate::sandbox::UserIds::Host,
        insecure: false,
        limits: crate::limits::Limits::default(),
        emulator: None,
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = sandbox::run(
        &spec,
        &mut |stream, bytes| match stream {
            Stream::Stdout => out.extend_from_slice(bytes),
            Stream::Stderr => err.extend_from_slice(bytes),
        },
        &Arc::new(AtomicBool::new(false)),
    );
    let succeeded = exit.as_ref().is_ok_and(|exit| exit.code == 0);
    assert!(succeeded && err.is_empty(), "{exit:?} {}", String::from_utf8_lossy(&err));
    let mut lines: Vec<_> = String::from_utf8(out).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The same lines by the view.
fn seen_by_the_view(view: &View, names: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending: Vec<_> = names.iter().map(|name| path(name)).collect();
    while let Some(at) = pending.pop() {
        let Some(entry) = view.entry(&at) else { continue };
        let name = String::from_utf8(at.as_bytes().to_vec()).unwrap();
        let (kind, quoted) = match &entry.kind {
            Kind::Directory => ("directory", name.clone()),
            Kind::Symlink { target } => {
                ("symbolic link", format!("'{name}' -> '{}'", String::from_utf8_lossy(target)))
            }
            Kind::File { .. }
            | Kind::Hardlink { .. }
            | Kind::Fifo
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. } => ("regular file", name.clone()),
        };
        let Meta { mode, uid, gid, .. } = entry.meta;
        lines.push(format!("{name}|{mode:o}|{uid}|{gid}|{kind}|{quoted}"));
        if kind == "regular file" {
            let mut text = String::new();
            view.open_file(&at).unwrap().read_to_string(&mut text).unwrap();
            lines.push(format!("{name}:{text}"));
        }
        for child in view.names(&at) {
            pending.push(at.child(&child).unwrap());
        }
    }
    lines.sort();
    lines
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn any_path() -> impl Strategy<Value = String> {
    proptest::collection::vec(0..3usize, 1..4)
        .prop_map(|parts| parts.iter().map(|part| NAMES[*part]).collect::<Vec<_>>().join("/"))
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..4u32).prop_map(|bit| Op::Directory(0o700 | bit)),
        3 => "[x-z]{1,4}".prop_map(Op::File),
        1 => any_path().prop_map(Op::Symlink),
        1 => any_path().prop_map(Op::Hardlink),
        3 => Just(Op::Whiteout),
        1 => Just(Op::Anew),
        1 => Just(Op::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn the_view_is_what_the_kernel_mounts(
        layers in proptest::collection::vec(
            proptest::collection::vec((any_path(), any_op()), 0..8), 1..5),
    ) {
        let (folder, store) = open_store();
        let mut ids = Vec::new();
        for ops in &layers {
            let ops: Vec<_> = ops.iter().map(|(at, op)| (at.as_str(), op.clone())).collect();
            ids.push(layer_on(&store, &ids, &ops));
        }
        let view = View::open(&store, &ids).unwrap();
        let before = seen_by_the_view(&view, &NAMES);
        let lowers = lowers(&store, &ids, OverlayMarks::Trusted).unwrap();
        prop_assert_eq!(&before, &seen_by_a_process(&folder, lowers, &NAMES));
        // Now from the snapshots.
        prop_assert_eq!(&before, &seen_by_the_view(&view, &NAMES));
    }
}

/// All that a view says of the paths that its layers can have.
fn said(view: &View) -> Vec<String> {
    let mut paths = vec![TreePath::root()];
    for depth in 1..4 {
        for number in 0..3_usize.pow(depth) {
            let parts = (0..depth).map(|at| NAMES[number / 3_usize.pow(at) % 3]);
            paths.push(path(&parts.collect::<Vec<_>>().join("/")));
        }
    }
    let say =
        |at: &TreePath| format!("{:?} {:?} {:?}", view.entry(at), view.names(at), view.inode(at));
    paths.iter().map(say).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn an_index_of_many_layers_changes_nothing(
        layers in proptest::collection::vec(
            proptest::collection::vec((any_path(), any_op()), 0..4), 1..8),
    ) {
        let (_folder, store) = open_store();
        let mut ids = Vec::new();
        for ops in &layers {
            let ops: Vec<_> = ops.iter().map(|(at, op)| (at.as_str(), op.clone())).collect();
            ids.push(layer_on(&store, &ids, &ops));
        }
        let indexes = index::Indexes::default();
        // A stack, its lower half, the stack again, and it with all of its layers once more.
        let twice = ids.repeat(2);
        for count in [ids.len(), ids.len() / 2, ids.len(), twice.len()] {
            let mut view = View::open(&store, &twice[..count]).unwrap();
            let plain = said(&view);
            view.index = Some(view.indexed(&indexes));
            prop_assert_eq!(plain, said(&view));
        }
    }
}

#[test]
fn links_are_followed_within_the_root() {
    let (_folder, store) = open_store();
    let link = |target: &str| Op::Symlink(target.to_owned());
    let id = layer(
        &store,
        &[
            ("usr/bin/tool", Op::File("x".to_owned())),
            ("bin", link("usr/bin")),
            ("up", link("../../../../usr")),
            ("absolute", link("/usr/bin/tool")),
            ("dangling", link("/not/there")),
            ("one", link("two")),
            ("two", link("one")),
            ("self", link("self/x")),
        ],
    );
    let view = View::open(&store, &[id]).unwrap();
    for (asked, expected) in [
        ("/bin/tool", "usr/bin/tool"),
        ("bin/../bin/tool", "usr/bin/tool"),
        ("/up/bin/tool", "usr/bin/tool"),
        ("absolute", "usr/bin/tool"),
        ("/../../bin", "usr/bin"),
        ("dangling/more", "not/there/more"),
        ("/new/file", "new/file"),
        ("/bin/", "usr/bin"),
    ] {
        assert_eq!(view.resolve(asked.as_bytes()).unwrap(), path(expected), "{asked}");
    }
    assert_eq!(view.resolve_parent(b"/bin").unwrap(), path("bin"));
    assert_eq!(view.resolve_parent(b"/up/bin").unwrap(), path("usr/bin"));
    for looping in ["one", "two/x", "self"] {
        assert!(matches!(view.resolve(looping.as_bytes()), Err(SnapshotError::Loop(_))));
    }
    assert!(matches!(view.resolve(b"a\0b"), Err(SnapshotError::Path(_))));
}

#[test]
fn hard_links_share_an_inode_until_a_layer_replaces_one() {
    let (_folder, store) = open_store();
    let lower = layer(
        &store,
        &[
            ("a", Op::File("text".to_owned())),
            ("b", Op::Hardlink("a".to_owned())),
            ("c", Op::File("text".to_owned())),
        ],
    );
    let upper = layer(&store, &[("a", Op::File("new".to_owned()))]);
    let view = View::open(&store, &[lower]).unwrap();
    assert_eq!(view.inode(&path("a")), Some((0, path("a"))));
    assert_eq!(view.inode(&path("b")), view.inode(&path("a")));
    assert_ne!(view.inode(&path("c")), view.inode(&path("a")));
    assert_eq!(view.inode(&path("nowhere")), None);
    let view = View::open(&store, &[lower, upper]).unwrap();
    assert_ne!(view.inode(&path("b")), view.inode(&path("a")));
    let mut text = String::new();
    view.open_file(&path("b")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "text");
    assert!(matches!(view.open_file(&TreePath::root()), Err(SnapshotError::NotAFile(_))));
}

#[test]
fn many_askers_get_one_snapshot() {
    let (_folder, store) = open_store();
    let ids: Vec<_> = (0..6)
        .map(|number| layer(&store, &[("file", Op::File(format!("content {number}")))]))
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let found = lowers(&store, &ids, OverlayMarks::Trusted).unwrap();
                let expected: Vec<_> =
                    ids.iter().rev().map(|id| store.snapshot(*id).unwrap()).collect();
                assert_eq!(found, expected);
            });
        }
    });
    let top = lowers(&store, &ids, OverlayMarks::Trusted).unwrap();
    assert_eq!(fs::read_to_string(top[0].join("file")).unwrap(), "content 5");
}

#[test]
fn an_absent_layer_is_named() {
    let (_folder, store) = open_store();
    let absent = DiffId(Digest::of(b"nowhere"));
    assert!(
        matches!(View::open(&store, &[absent]), Err(SnapshotError::Missing(id)) if id == absent)
    );
    let found = lowers(&store, &[absent], OverlayMarks::Trusted);
    assert!(matches!(found, Err(SnapshotError::Missing(id)) if id == absent));
}

#[test]
fn an_empty_stack_is_an_empty_root() {
    let (_folder, store) = open_store();
    let view = View::open(&store, &[]).unwrap();
    assert!(view.entry(&TreePath::root()).unwrap().is_directory());
    assert!(view.names(&TreePath::root()).is_empty());
    assert_eq!(lowers(&store, &[], OverlayMarks::Trusted).unwrap(), Vec::<PathBuf>::new());
}
