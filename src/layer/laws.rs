//! What must hold for every layer: round trips, the law of diff and apply, and that other programs
//! read what we write. Tests only.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::{ffi::OsStrExt as _, fs as unix, fs::MetadataExt as _, net::UnixListener},
    },
    path::Path,
    process::{Command, Stdio},
};

use proptest::prelude::*;
use rustix::fs::{FileType, Mode, XattrFlags};

use super::{
    Below, LayerError, LayerSummary, LayerWriter, Listed, Listing, OverlayMarks, Ownership,
    Settled, Upper, UpperForm, compare, read_layer, settle, unpack, write_upper,
};
use crate::tree::{Change, Entry, Kind, Meta, Timestamp, TreePath};

type Contents = Vec<(Change, Vec<u8>)>;

fn path(text: impl AsRef<[u8]>) -> TreePath {
    TreePath::parse(text).unwrap()
}

fn write(changes: &[(Change, Vec<u8>)]) -> (Vec<u8>, LayerSummary) {
    let mut writer = LayerWriter::new(Vec::new());
    for (change, content) in changes {
        match change {
            Change::Put(entry) => writer.put(entry, &mut content.as_slice()).unwrap(),
            Change::Whiteout(path) => writer.whiteout(path).unwrap(),
            Change::Opaque(path) => writer.opaque(path).unwrap(),
        }
    }
    writer.finish().unwrap()
}

fn read(tar: &[u8]) -> (Contents, LayerSummary) {
    let mut changes = Vec::new();
    let summary = read_layer(tar, |change, content| {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        changes.push((change.clone(), bytes));
        Ok(())
    });
    (changes, summary.unwrap())
}

fn unpacked(tar: &[u8]) -> (tempfile::TempDir, LayerSummary) {
    let target = tempfile::tempdir().unwrap();
    let summary = unpack(tar, open(target.path()).as_fd(), OverlayMarks::Trusted).unwrap();
    (target, summary)
}

fn changes(directory: std::os::fd::BorrowedFd<'_>) -> Upper<'_> {
    Upper { directory, form: UpperForm::Changes, ownership: Ownership::Exact }
}

fn open(directory: &Path) -> File {
    File::open(directory).unwrap()
}

fn packed(upper: BorrowedFd<'_>, below: &dyn Below) -> Result<(Vec<u8>, LayerSummary), LayerError> {
    let (tar, summary, _) = write_upper(changes(upper), below, LayerWriter::new(Vec::new()))?;
    Ok((tar, summary))
}

fn file(at: &str, size: usize) -> Entry {
    Entry { path: path(at), kind: Kind::File { size: size as u64 }, meta: Meta::default() }
}

/// Names with everything that Linux takes.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("not in a name", |byte| !matches!(byte, 0 | b'/'));
    let odd = prop::collection::vec(byte, 1..40);
    let names = prop_oneof![
        "[a-d]".prop_map(String::into_bytes),
        "[a-z]{60,255}".prop_map(String::into_bytes),
        odd
    ];
    names.prop_filter("means something else", |name| {
        name != b"." && name != b".." && !name.starts_with(b".wh.")
    })
}

fn meta() -> impl Strategy<Value = Meta> {
    let id = prop_oneof![0..70_000_u32, any::<u32>().prop_filter("no owner", |id| *id != u32::MAX)];
    let seconds = prop_oneof![0..2_000_000_000_i64, any::<i64>()];
    let xattrs = prop::collection::btree_map(
        "user\\.[a-z]{1,20}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..300),
        0..3,
    );
    (0..=0o7777_u32, id.clone(), id, seconds, xattrs).prop_map(
        |(mode, uid, gid, seconds, xattrs)| Meta {
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanos: 0 },
            xattrs,
        },
    )
}

fn entry() -> impl Strategy<Value = (Change, Vec<u8>)> {
    let place = prop::collection::vec(name(), 1..6).prop_map(|names| path(names.join(&b'/')));
    let content = prop::collection::vec(any::<u8>(), 0..1500);
    let target = prop::collection::vec(1..=255_u8, 1..300);
    (place, meta(), content, target, 0..8_u8).prop_map(|(path, meta, content, target, kind)| {
        let (major, minor) = (meta.uid % 4096, 1 + meta.gid % 0xf_ffff);
        let kind = match kind {
            0..3 => Kind::File { size: content.len() as u64 },
            3 => Kind::Directory,
            4 => Kind::Symlink { target },
            5 => Kind::Fifo,
            6 => Kind::CharDevice { major, minor },
            _ => Kind::BlockDevice { major, minor },
        };
        let content = if matches!(kind, Kind::File { .. }) { content } else { Vec::new() };
        (Change::Put(Entry { path, kind, meta }), content)
    })
}

/// Entries of which none stands below what is no directory.
fn entries() -> impl Strategy<Value = Contents> {
    prop::collection::vec(entry(), 0..12).prop_map(|mut all| {
        all.sort_by(|left, right| left.0.path().cmp(right.0.path()));
        all.dedup_by(|right, left| right.0.path().starts_with(left.0.path()));
        all
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back_and_is_the_same_every_time(changes in entries()) {
        let (tar, written) = write(&changes);
        prop_assert_eq!(&write(&changes).0, &tar);
        let (found, read) = read(&tar);
        prop_assert_eq!(&read, &written);
        prop_assert_eq!(&found, &changes);
        prop_assert_eq!(read.tar_bytes, tar.len() as u64);
        for listed in &read.listing {
            if let Change::Put(entry @ Entry { kind: Kind::File { size }, .. }) = &listed.change {
                let start = usize::try_from(listed.offset).unwrap();
                let content = &tar[start..start + usize::try_from(*size).unwrap()];
                let put = &changes.iter().find(|(change, _)| change.path() == &entry.path).unwrap().1;
                prop_assert_eq!(content, put);
            }
        }
        prop_assert_eq!(Listing::decode(read.listing.encode()).unwrap(), read.listing);
    }

}

proptest! {
    // Every case starts a program.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn python_reads_what_we_write(changes in entries()) {
        let (tar, _) = write(&changes);
        let script = "import sys,tarfile,os\nfor m in tarfile.open(fileobj=sys.stdin.buffer,mode='r|'):\n \
            print(os.fsencode(m.name).hex(),m.type.decode(),m.size,m.mode,m.uid,m.gid,int(m.mtime),os.fsencode(m.linkname).hex())";
        let mut child = Command::new("python3").args(["-c", script]).env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&tar).unwrap();
        let output = child.wait_with_output().unwrap();
        prop_assert!(output.status.success());
        let wanted: String = changes.iter().map(|(change, _)| python_line(change)).collect();
        prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), wanted);
    }

}

proptest! {
    #[test]
    fn damaged_listings_are_refused(changes in entries(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut bytes = write(&changes).1.listing.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(Listing::decode(&bytes[..]).is_err());
        prop_assert!(Listing::decode(&bytes[..at]).is_err());
    }
}

fn python_line(change: &Change) -> String {
    let Change::Put(entry) = change else { unreachable!("only entries are made") };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (kind, link): (u8, &[u8]) = match &entry.kind {
        Kind::File { .. } => (0, b""),
        Kind::Hardlink { target } => (1, target.as_bytes()),
        Kind::Symlink { target } => (2, target),
        Kind::CharDevice { .. } => (3, b""),
        Kind::BlockDevice { .. } => (4, b""),
        Kind::Directory => (5, b""),
        Kind::Fifo => (6, b""),
    };
    let Meta { mode, uid, gid, mtime, .. } = &entry.meta;
    // Python holds times as floats, and so loses digits of absurd ones; as it does here.
    let seconds = mtime.seconds as f64 as i128;
    let name = hex(entry.path.as_bytes());
    format!("{name} {kind} {} {mode} {uid} {gid} {seconds} {}\n", entry.size(), hex(link))
}

/// What stands at a path, for the law of diff and apply.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory(u32),
    File(Vec<u8>, u32),
    Symlink(Vec<u8>),
}

type Tree = BTreeMap<TreePath, Node>;

fn tree() -> impl Strategy<Value = Tree> {
    let node = prop_oneof![
        2 => (0..2_u32).prop_map(|mode| Node::Directory(0o750 + mode)),
        3 => (prop::collection::vec(0..3_u8, 0..3), 0..2_u32).prop_map(|(bytes, mode)| Node::File(bytes, 0o640 + mode)),
        1 => "[a-c]{1,3}".prop_map(|target| Node::Symlink(target.into_bytes())),
    ];
    let place = prop::collection::vec("[abc]", 1..5).prop_map(|names| path(names.join("/")));
    prop::collection::btree_map(place, node, 0..10).prop_map(|nodes| {
        let mut tree = Tree::new();
        for (path, node) in nodes {
            for parent in path.ancestors() {
                let below = tree.insert(parent, Node::Directory(0o755));
                let _kept = below;
            }
            tree.insert(path, node);
        }
        let files: Vec<_> = tree
            .iter()
            .filter(|(_, node)| !matches!(node, Node::Directory(_)))
            .map(|(path, _)| path.clone())
            .collect();
        tree.retain(|path, _| !files.iter().any(|file| path != file && path.starts_with(file)));
        tree
    })
}

impl Below for Tree {
    fn entry(&self, path: &TreePath) -> Option<Entry> {
        let (kind, mode) = match self.get(path)? {
            Node::Directory(mode) => (Kind::Directory, *mode),
            Node::File(bytes, mode) => (Kind::File { size: bytes.len() as u64 }, *mode),
            Node::Symlink(target) => (Kind::Symlink { target: target.clone() }, 0o777),
        };
        Some(Entry { path: path.clone(), kind, meta: Meta { mode, ..Meta::default() } })
    }

    fn names(&self, directory: &TreePath) -> Vec<Vec<u8>> {
        let within = self.keys().filter(|path| path.parent().as_ref() == Some(directory));
        within.filter_map(|path| path.file_name().map(<[u8]>::to_vec)).collect()
    }

    fn open(&self, path: &TreePath) -> std::io::Result<Box<dyn std::io::Read + '_>> {
        match self.get(path) {
            Some(Node::File(bytes, _)) => Ok(Box::new(bytes.as_slice())),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        }
    }
}

/// Makes the upper directory that overlay would have after `below` became `above`: new directories are
/// opaque always, as overlay makes them.
fn make_upper(upper: &Path, below: &Tree, above: &Tree) {
    let mut renewed: Vec<&TreePath> = Vec::new();
    for (path, node) in above {
        let place = upper.join(path.as_path());
        let fresh = renewed.iter().any(|directory| path.starts_with(directory));
        let before = if fresh { None } else { below.get(path) };
        match (before, node) {
            (before, Node::Directory(mode)) => {
                fs::create_dir_all(place.parent().unwrap()).unwrap();
                fs::create_dir(&place).unwrap();
                rustix::fs::chmod(&place, Mode::from_raw_mode(*mode)).unwrap();
                if !matches!(before, Some(Node::Directory(_))) {
                    rustix::fs::setxattr(
                        &place,
                        "trusted.overlay.opaque",
                        b"y",
                        XattrFlags::empty(),
                    )
                    .unwrap();
                    renewed.push(path);
                }
            }
            (Some(before), node) if before == node => {}
            (_, Node::File(bytes, mode)) => {
                fs::write(&place, bytes).unwrap();
                rustix::fs::chmod(&place, Mode::from_raw_mode(*mode)).unwrap();
            }
            (_, Node::Symlink(target)) => {
                unix::symlink(Path::new(std::ffi::OsStr::from_bytes(target)), &place).unwrap();
            }
        }
    }
    for path in below.keys().filter(|path| !above.contains_key(*path)) {
        let parent = path.parent().unwrap();
        let kept = |place: &TreePath| {
            place.is_root()
                || matches!(
                    (above.get(place), below.get(place)),
                    (Some(Node::Directory(_)), Some(Node::Directory(_)))
                )
        };
        if kept(&parent) && parent.ancestors().all(|place| kept(&place)) {
            let place = upper.join(path.as_path());
            rustix::fs::mknodat(
                rustix::fs::CWD,
                place,
                FileType::CharacterDevice,
                Mode::empty(),
                0,
            )
            .unwrap();
        }
    }
}

/// What the specification says that a layer does to a tree.
fn apply(below: &Tree, changes: &Contents) -> Tree {
    let mut tree = below.clone();
    for (change, _) in changes {
        match change {
            Change::Whiteout(gone) => tree.retain(|path, _| !path.starts_with(gone)),
            Change::Opaque(cut) => tree.retain(|path, _| path == cut || !path.starts_with(cut)),
            Change::Put(_) => {}
        }
    }
    for (change, content) in changes {
        let Change::Put(entry) = change else { continue };
        let node = match &entry.kind {
            Kind::Directory => Node::Directory(entry.meta.mode),
            Kind::File { .. } => Node::File(content.clone(), entry.meta.mode),
            Kind::Symlink { target } => Node::Symlink(target.clone()),
            other @ (Kind::Hardlink { .. }
            | Kind::Fifo
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. }) => unreachable!("{other:?} is in no tree"),
        };
        if !matches!(node, Node::Directory(_)) {
            tree.retain(|path, _| !path.starts_with(&entry.path));
        }
        tree.insert(entry.path.clone(), node);
    }
    tree
}

proptest! {
    #[test]
    fn applying_a_diff_gives_what_was_diffed(below in tree(), above in tree()) {
        let upper = tempfile::tempdir().unwrap();
        make_upper(upper.path(), &below, &above);
        let directory = open(upper.path());
        let out = LayerWriter::new(Vec::new());
        let (tar, written, surplus) = write_upper(changes(directory.as_fd()), &below, out).unwrap();
        // Without what the layer does not say, it is what the layer is unpacked to.
        if settle(directory.as_fd(), &written.listing, &surplus).unwrap() == Settled::Snapshot {
            prop_assert_eq!(compare(&*tar, directory.as_fd(), Ownership::Exact).unwrap(), None);
        }
        let (changes, summary) = read(&tar);
        prop_assert_eq!(&summary, &written);
        prop_assert_eq!(apply(&below, &changes), above);
        // Unpacked, it is an upper directory again, and makes the same layer.
        let (snapshot, unpacked) = unpacked(&tar);
        prop_assert_eq!(&unpacked, &written);
        let directory = open(snapshot.path());
        prop_assert_eq!(compare(&*tar, directory.as_fd(), Ownership::Exact).unwrap(), None);
        let (again, _) = packed(open(snapshot.path()).as_fd(), &below).unwrap();
        prop_assert_eq!(again, tar);
    }
}

#[test]
fn an_unpacked_layer_packs_to_the_same_bytes() {
    let xattrs = [(b"security.capability".to_vec(), [&[1, 0, 0, 2][..], &[0; 16]].concat())];
    let meta = |mode, seconds| Meta {
        mode,
        uid: 1000,
        gid: 3_000_000,
        mtime: Timestamp { seconds, nanos: 0 },
        xattrs: [].into(),
    };
    let put = |at: &[u8], kind, meta| Change::Put(Entry { path: path(at), kind, meta });
    let long = [b"long/".as_slice(), &[b'x'; 200], b"/", &[b'y'; 255]].concat();
    let capable = Meta { xattrs: xattrs.into(), ..meta(0o4755, 99) };
    let changes = vec![
        (put(b"bin", Kind::Directory, meta(0o1777, -5)), vec![]),
        (put(b"bin/a\xff\n", Kind::File { size: 600 }, capable), vec![7; 600]),
        (put(b"bin/null", Kind::CharDevice { major: 1, minor: 3 }, meta(0o666, 1)), vec![]),
        (
            put(b"bin/other", Kind::Hardlink { target: path(b"bin/a\xff\n") }, meta(0o4755, 99)),
            vec![],
        ),
        (put(b"bin/pipe", Kind::Fifo, meta(0o600, 2)), vec![]),
        (put(b"bin/sh", Kind::Symlink { target: b"/nowhere".to_vec() }, meta(0o777, 3)), vec![]),
        (put(b"long", Kind::Directory, meta(0o700, 4)), vec![]),
        (put(&long[..205], Kind::Directory, meta(0o700, 5)), vec![]),
        (put(&long, Kind::File { size: 0 }, meta(0o600, 1 << 33)), vec![]),
    ];
    let (tar, written) = write(&changes);
    let (snapshot, unpacked) = unpacked(&tar);
    assert_eq!(unpacked, written);
    let (mut again, _) = read(&packed(open(snapshot.path()).as_fd(), &Tree::new()).unwrap().0);
    // The link repeats what its file has; its own attributes are the file's.
    again.iter_mut().for_each(|(change, _)| {
        if let Change::Put(entry) = change
            && matches!(entry.kind, Kind::Hardlink { .. })
        {
            entry.meta.xattrs.clear();
        }
    });
    assert_eq!(again, changes);
    let both = ["bin/other", "bin/null"]
        .map(|name| fs::symlink_metadata(snapshot.path().join(name)).unwrap());
    assert_eq!((both[0].nlink(), both[1].rdev()), (2, rustix::fs::makedev(1, 3)));
}

#[test]
fn gnu_tar_reads_what_we_write() {
    let long = "d/".repeat(90) + &"n".repeat(200);
    let entries = [file("plain", 3), file(&long, 3), file("ünïcode", 3)];
    let changes: Vec<_> = entries.map(|entry| (Change::Put(entry), b"abc".to_vec())).into();
    let (tar, _) = write(&changes);
    let target = tempfile::tempdir().unwrap();
    let mut child =
        Command::new("tar").arg("-xC").arg(target.path()).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&tar).unwrap();
    assert!(child.wait().unwrap().success());
    for (change, content) in &changes {
        assert_eq!(&fs::read(target.path().join(change.path().as_path())).unwrap(), content);
    }
}

#[test]
fn what_gnu_tar_and_python_write_is_read() {
    let source = tempfile::tempdir().unwrap();
    let deep = "d/".repeat(60) + &"n".repeat(150);
    fs::create_dir_all(source.path().join(&deep).parent().unwrap()).unwrap();
    fs::write(source.path().join(&deep), b"content").unwrap();
    fs::hard_link(source.path().join(&deep), source.path().join("z")).unwrap();
    unix::symlink("x".repeat(150), source.path().join("link")).unwrap();
    let mut listings = Vec::new();
    for format in ["gnu", "pax", "oldgnu"] {
        let format = format!("--format={format}");
        let output = Command::new("tar")
            .args(["--sort=name", "--mtime=@5", &format, "-cC"])
            .arg(source.path())
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success());
        let (changes, summary) = read(&output.stdout);
        let at =
            |place: &str| changes.iter().find(|(change, _)| *change.path() == path(place)).unwrap();
        assert_eq!(at(&deep).1, b"content");
        let Change::Put(link) = &at("link").0 else { panic!("no entry") };
        assert_eq!(link.kind, Kind::Symlink { target: vec![b'x'; 150] });
        let Change::Put(hard) = &at("z").0 else { panic!("no entry") };
        assert_eq!(hard.kind, Kind::Hardlink { target: path(&deep) });
        listings.push(summary.listing.iter().map(|listed| listed.change).collect::<Vec<_>>());
    }
    assert!(listings.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn an_empty_upper_is_the_empty_layer() {
    let upper = tempfile::tempdir().unwrap();
    let (tar, summary) = packed(open(upper.path()).as_fd(), &Tree::new()).unwrap();
    assert_eq!(tar, [0; 1024]);
    assert_eq!(
        summary.diff_id.to_string(),
        "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
    );
    assert_eq!(read(&tar).1, summary);
}

/// A change as one line: `/put`, `-/whiteout`, `!/opaque`.
fn line(change: Change) -> String {
    let Entry { path, kind, meta } = match change {
        Change::Put(entry) => entry,
        Change::Whiteout(path) => return format!("-{path}"),
        Change::Opaque(path) => return format!("!{path}"),
    };
    let sized = |(name, value): (&Vec<u8>, &Vec<u8>)| {
        (String::from_utf8_lossy(name).into_owned(), value.len())
    };
    let kept: Vec<_> = meta.xattrs.iter().map(sized).collect();
    let kind = match kind {
        Kind::Hardlink { target } => format!("={target}"),
        Kind::Directory => "/".to_owned(),
        Kind::File { .. }
        | Kind::Symlink { .. }
        | Kind::Fifo
        | Kind::CharDevice { .. }
        | Kind::BlockDevice { .. } => String::new(),
    };
    format!("{path}{kind}{}", if kept.is_empty() { String::new() } else { format!(" {kept:?}") })
}

#[test]
fn an_upper_directory_says_what_changed_and_nothing_else() {
    let upper = tempfile::tempdir().unwrap();
    let at = |name: &str| upper.path().join(name);
    let device = |name: &str| {
        rustix::fs::mknodat(rustix::fs::CWD, at(name), FileType::CharacterDevice, Mode::empty(), 0)
            .unwrap();
    };
    for directory in ["old", "new", "fuse"] {
        fs::create_dir(at(directory)).unwrap();
    }
    for directory in ["old", "new"] {
        rustix::fs::setxattr(at(directory), "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .unwrap();
    }
    fs::write(at("new/file"), b"x").unwrap();
    fs::hard_link(at("new/file"), at("second")).unwrap();
    rustix::fs::setxattr(at("new/file"), "user.mine", b"1", XattrFlags::empty()).unwrap();
    let capability = [&[1, 0, 0, 3][..], &[0; 16], &[0xa0, 0x86, 1, 0]].concat();
    rustix::fs::setxattr(at("new/file"), "security.capability", &capability, XattrFlags::empty())
        .unwrap();
    fs::write(at("old/kept"), b"other").unwrap();
    for (name, content) in [("touched", b"same"), ("written", b"thus")] {
        fs::write(at(name), content).unwrap();
        rustix::fs::chmod(at(name), Mode::from_raw_mode(0o644)).unwrap();
        let file = File::options().write(true).open(at(name)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    fs::write(at("fuse/.wh.gone"), b"").unwrap();
    fs::write(at("fuse/.wh..wh..opq"), b"").unwrap();
    device("gone");
    device("never");
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let (directory, file) = (Node::Directory(0o755), Node::File(b"same".to_vec(), 0o644));
    let files = ["old/kept", "old/was", "gone", "fuse/gone", "touched", "written"];
    let mut below: Tree = files.map(|name| (path(name), file.clone())).into();
    below.extend(["old", "fuse"].map(|name| (path(name), directory.clone())));
    let out = LayerWriter::new(Vec::new());
    let (tar, ..) = write_upper(changes(open(upper.path()).as_fd()), &below, out).unwrap();
    let shown: Vec<_> = read(&tar).0.into_iter().map(|(change, _)| line(change)).collect();
    assert_eq!(
        shown,
        [
            "/fuse/",
            "-/fuse/gone",
            "-/gone",
            "/new/",
            "/new/file [(\"security.capability\", 20)]",
            "/old/",
            "/old/kept",
            "-/old/was",
            "/second=/new/file",
            "/written",
        ]
    );
}

#[test]
fn l12_content_of_another_length_than_promised_is_an_error() {
    for content in [&b"ab"[..], b"abcd"] {
        let mut writer = LayerWriter::new(Vec::new());
        let error = writer.put(&file("f", 3), &mut &*content).unwrap_err();
        assert!(error.to_string().contains("changed while it was read"), "{error}");
    }
}

#[test]
fn a_listing_answers_for_paths() {
    let put = |at: &str, kind| Change::Put(Entry { path: path(at), kind, meta: Meta::default() });
    let changes = [
        put("a", Kind::Directory),
        Change::Opaque(path("a")),
        put("a/b", Kind::Fifo),
        put("a.c", Kind::Fifo),
        Change::Whiteout(path("d")),
        put("d", Kind::Directory),
        Change::Whiteout(path("e")),
    ];
    let listing =
        changes.clone().map(|change| Listed { change, offset: 0 }).into_iter().collect::<Listing>();
    let at = |place: &str| listing.at(&path(place)).map(|listed| listed.change);
    assert_eq!(at("a"), Some(changes[0].clone()));
    assert_eq!(at("d"), Some(changes[5].clone()));
    assert_eq!(at("e"), Some(changes[6].clone()));
    assert_eq!(at("b"), None);
    let opaque: Vec<_> =
        ["a", "a.c", "d", "x"].iter().filter(|place| listing.is_opaque(&path(*place))).collect();
    assert_eq!(opaque, [&"a", &"d"]);
    let below: Vec<_> =
        listing.below(&path("a")).map(|listed| listed.change.path().to_string()).collect();
    assert_eq!(below, ["/a/b"]);
    assert_eq!(listing.below(&TreePath::root()).count(), changes.len());
}

#[test]
fn a_listing_of_another_version_is_refused() {
    let mut bytes = Listing::default().encode();
    bytes[7] = 2;
    assert!(Listing::decode(bytes).unwrap_err().to_string().contains("another version"));
    assert!(
        matches!(read_layer(&b"plain text"[..], |_, _| Ok(())), Err(LayerError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof)
    );
    assert!(matches!(read_layer(&[7; 1024][..], |_, _| Ok(())), Err(LayerError::NotTar(_))));
}
