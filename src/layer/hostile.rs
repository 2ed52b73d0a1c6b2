//! Archives that mean harm, or that readers disagree on: each is refused, or harms nothing.
//! Numbers are those of the project's list of attacks. Tests only.

use std::{
    fs::{self, File},
    os::{fd::AsFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use proptest::prelude::*;

use super::{
    LayerError, LayerSummary, OverlayMarks,
    header::{BLOCK, Header, push_record},
    read_layer, unpack,
    write::padded,
};
use crate::tree::{Change, Kind, TreePath};

/// An archive made block by block.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, header: &Header, content: &[u8]) -> Self {
        self.0.extend_from_slice(&header.block());
        self.0.extend_from_slice(content);
        self.0.resize(padded(self.0.len()), 0);
        self
    }

    fn with(self, kind: u8, name: &str, link: &str, content: &[u8]) -> Self {
        let header = Header {
            name: name.into(),
            link: link.into(),
            kind,
            mode: 0o644,
            size: content.len() as u64,
            ..Header::default()
        };
        self.raw(&header, content)
    }

    fn file(self, name: &str) -> Self {
        self.with(b'0', name, "", b"evil")
    }

    fn pax(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in records {
            push_record(&mut bytes, key.as_bytes(), value);
        }
        self.with(kind, "pax", "", &bytes)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 2 * BLOCK]);
        self.0
    }

    fn read(self) -> Result<LayerSummary, LayerError> {
        read_layer(self.end().as_slice(), |_, _| Ok(()))
    }

    fn refused(self) -> String {
        self.read().expect_err("must be refused").to_string()
    }
}

/// A place to unpack to, beside something that must not be touched.
struct Arena {
    top: tempfile::TempDir,
}

impl Arena {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("canary")).unwrap();
        fs::set_permissions(top.path().join("canary"), fs::Permissions::from_mode(0o711)).unwrap();
        fs::write(top.path().join("canary/file"), b"alive").unwrap();
        fs::create_dir(top.path().join("root")).unwrap();
        Self { top }
    }

    fn root(&self) -> PathBuf {
        self.top.path().join("root")
    }

    fn canary(&self) -> String {
        self.top.path().join("canary").to_str().unwrap().to_owned()
    }

    fn unpack(&self, tar: Tar) -> Result<LayerSummary, LayerError> {
        let root = File::open(self.root()).unwrap();
        let result = unpack(tar.end().as_slice(), root.as_fd(), OverlayMarks::Trusted);
        let canary = self.top.path().join("canary");
        let names: Vec<_> =
            fs::read_dir(&canary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(fs::read(canary.join("file")).unwrap(), b"alive");
        assert_eq!(fs::metadata(canary.join("file")).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::metadata(&canary).unwrap().permissions().mode() & 0o7777, 0o711);
        assert_eq!(fs::read_dir(self.top.path()).unwrap().count(), 2);
        result
    }
}

fn paths(summary: &LayerSummary) -> Vec<String> {
    summary
        .listing
        .iter()
        .map(|listed| match &listed.change {
            Change::Put(entry) => entry.path.to_string(),
            Change::Whiteout(path) => format!("-{path}"),
            Change::Opaque(path) => format!("!{path}"),
        })
        .collect()
}

#[test]
fn l01_names_cannot_leave_the_tree() {
    for name in ["../x", "a/../../x", "./../x", "..", "", ".", "/", "a/..", "x/"] {
        Arena::new().unpack(Tar::default().file(name)).expect_err(name);
    }
    for (name, place) in
        [("/abs", "/abs"), ("a//b", "/a/b"), ("./x", "/x"), ("a\\..\\b", "/a\\..\\b")]
    {
        assert_eq!(paths(&Arena::new().unpack(Tar::default().file(name)).unwrap()), [place]);
    }
}

#[test]
fn l02_links_are_never_followed() {
    let arena = Arena::new();
    let canary = arena.canary();
    let error = arena.unpack(Tar::default().with(b'2', "d", &canary, b"").file("d/x")).unwrap_err();
    assert!(error.to_string().contains("no directory in the same layer"), "{error}");
    let arena = Arena::new();
    let chain =
        Tar::default().with(b'2', "a", &arena.canary(), b"").with(b'2', "b", "a", b"").file("b/x");
    arena.unpack(chain).unwrap_err();
    // A link that stood there before the layer came.
    let arena = Arena::new();
    std::os::unix::fs::symlink(arena.canary(), arena.root().join("d")).unwrap();
    arena.unpack(Tar::default().file("d/x")).unwrap_err();
    arena.unpack(Tar::default().with(b'0', "d", "", b"now a file")).unwrap();
    assert_eq!(fs::read(arena.root().join("d")).unwrap(), b"now a file");
}

#[test]
fn l03_hard_links_stay_within_the_layer() {
    let arena = Arena::new();
    let canary = format!("{}/file", arena.canary());
    for target in
        [&canary, "../canary/file", "../../canary", "Cargo.toml", "later", "self", "", "/"]
    {
        let tar = Tar::default().with(b'1', "self", target, b"").file("later");
        Arena::new().unpack(tar).expect_err(target);
    }
    let arena = Arena::new();
    let through =
        Tar::default().with(b'2', "d", &arena.canary(), b"").with(b'1', "x", "d/file", b"");
    arena.unpack(through).unwrap_err();
    Arena::new()
        .unpack(Tar::default().with(b'5', "d", "", b"").with(b'1', "x", "d", b""))
        .unwrap_err();
    let replaced = Tar::default().file("a").with(b'1', "b", "a", b"").file("a");
    assert!(replaced.refused().contains("hard links"));
    let inside = Arena::new();
    inside.unpack(Tar::default().file("a").with(b'1', "b", "/a", b"")).unwrap();
    assert_eq!(fs::read(inside.root().join("b")).unwrap(), b"evil");
}

#[test]
fn l04_whiteouts_name_something_within_the_layer() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", ".wh.d/x"] {
        Arena::new().unpack(Tar::default().with(b'0', name, "", b"")).expect_err(name);
    }
    let arena = Arena::new();
    let linked =
        Tar::default().with(b'2', "d", &arena.canary(), b"").with(b'0', "d/.wh.file", "", b"");
    arena.unpack(linked).unwrap_err();
    for order in [[".wh.f", "f"], ["f", ".wh.f"]] {
        let arena = Arena::new();
        let tar = order.iter().fold(Tar::default(), |tar, name| tar.file(name));
        assert_eq!(paths(&arena.unpack(tar).unwrap()), ["-/f", "/f"]);
        assert_eq!(
            fs::read(arena.root().join("f")).unwrap(),
            b"evil",
            "a whiteout is for lower layers"
        );
    }
    let arena = Arena::new();
    let tar =
        Tar::default().file(".wh.d").file("d/x").file(".wh..wh..opq").file(".wh..wh.plnk/1.2");
    assert_eq!(paths(&arena.unpack(tar).unwrap()), ["!/", "-/d", "/d/x"]);
    for place in [arena.root(), arena.root().join("d")] {
        let mut value = [0; 2];
        assert_eq!(rustix::fs::getxattr(&place, "trusted.overlay.opaque", &mut value[..]), Ok(1));
    }
}

#[test]
fn l05_a_directory_in_place_of_a_link_is_a_directory() {
    let arena = Arena::new();
    let directory = Header { name: b"d/".to_vec(), kind: b'5', mode: 0o777, ..Header::default() };
    arena
        .unpack(Tar::default().with(b'2', "d", &arena.canary(), b"").raw(&directory, b""))
        .unwrap();
    let found = fs::symlink_metadata(arena.root().join("d")).unwrap();
    assert!(found.is_dir());
    assert_eq!(found.permissions().mode() & 0o7777, 0o777);
}

#[test]
fn l06_sizes_mean_one_thing() {
    // What hides behind a size of zero in the header is content, not entries.
    let hidden = Tar::default().file("smuggled").0;
    let header = Header { name: b"f".to_vec(), kind: b'0', ..Header::default() };
    let size = hidden.len().to_string();
    let tar =
        Tar::default().pax(b'x', &[("size", size.as_bytes())]).raw(&header, &hidden).file("after");
    assert_eq!(paths(&tar.read().unwrap()), ["/after", "/f"]);
    let twice = Tar::default().pax(b'x', &[("path", b"one"), ("path", b"two")]).file("f");
    assert_eq!(
        paths(&twice.read().unwrap()),
        ["/two"],
        "the last of equal keys, as GNU, Go and Python"
    );
    for value in [&b"-1"[..], b"", b"1e3", b" 1", b"18446744073709551616"] {
        Tar::default().pax(b'x', &[("size", value)]).file("f").refused();
    }
    for key in ["size", "path", "linkpath", "SCHILY.xattr.a", "GNU.sparse.major"] {
        assert!(Tar::default().pax(b'g', &[(key, b"1")]).file("f").refused().contains("global"));
    }
    assert!(Tar::default().pax(b'g', &[("comment", b"a commit")]).file("f").read().is_ok());
    for records in
        [&b"8 path=x\n"[..], b"0 a=b\n", b"path=x\n", b"7 path=x\n", b"99999999999999999999 a=b\n"]
    {
        assert!(
            Tar::default().with(b'x', "pax", "", records).file("f").refused().contains("malformed")
        );
    }
    assert!(Tar::default().pax(b'x', &[("path", b"")]).file("f").refused().contains("disagree"));
    let old = Tar::default().pax(b'x', &[("path", b"f"), ("size", b"4")]).with(0, "f/", "", b"");
    assert!(old.refused().contains("disagree"));
    for kind in *b"23456" {
        let tar = Tar::default().with(kind, "n", "t", &hidden);
        assert!(tar.refused().contains("disagree"), "{kind}");
    }
}

#[test]
fn l07_sparse_files_and_absurd_names_are_refused() {
    Tar::default().with(b'S', "f", "", b"").refused();
    for key in ["GNU.sparse.major", "GNU.sparse.realsize", "GNU.sparse.map"] {
        assert!(
            Tar::default()
                .pax(b'x', &[(key, b"9223372036854775808")])
                .file("f")
                .refused()
                .contains("sparse")
        );
    }
    let long = vec![b'n'; 1 << 20];
    Tar::default().with(b'L', "long", "", &long).file("f").refused();
    let longer =
        Header { name: b"long".to_vec(), kind: b'L', size: (1 << 33) - 1, ..Header::default() };
    Tar::default().raw(&longer, b"").refused();
    assert!(Tar::default().pax(b'x', &[("path", b"a\0b")]).file("f").refused().contains("NUL"));
    let many = (0..100).fold(Tar::default(), |tar, _| tar.pax(b'x', &[("path", b"x")]));
    assert!(many.file("f").refused().contains("extension headers"));
}

#[test]
fn l08_special_files_are_kept_and_unknown_types_refused() {
    let node = |kind, major, minor| Header {
        name: b"n".to_vec(),
        kind,
        major,
        minor,
        ..Header::default()
    };
    let summary = Tar::default().raw(&node(b'3', 1, 5), b"").read().unwrap();
    let Some(Change::Put(entry)) = summary.listing.iter().next().map(|listed| listed.change) else {
        panic!("no entry")
    };
    assert_eq!(entry.kind, Kind::CharDevice { major: 1, minor: 5 });
    assert!(Tar::default().raw(&node(b'3', 0, 0), b"").refused().contains("0:0"));
    assert!(Tar::default().raw(&node(b'4', 5000, 0), b"").refused().contains("device number"));
    for kind in *b"sDMNVXz\xff" {
        assert!(Tar::default().with(kind, "n", "", b"").refused().contains("type") || kind == b'S');
    }
    let arena = Arena::new();
    arena.unpack(Tar::default().with(b'6', "pipe", "", b"")).unwrap();
    assert!(fs::symlink_metadata(arena.root().join("pipe")).is_ok());
}

#[test]
fn l10_ends_are_those_that_docker_takes() {
    let read = |bytes: &[u8]| {
        read_layer(bytes, |_, _| Ok(())).map(|summary| (paths(&summary), summary.tar_bytes))
    };
    let whole = Tar::default().file("f").end();
    assert_eq!(read(&whole).unwrap(), (vec!["/f".to_owned()], 2048));
    assert_eq!(read(&whole[..1024]).unwrap().0, ["/f"], "no end at all");
    assert_eq!(read(&whole[..1536]).unwrap().0, ["/f"], "half an end");
    assert_eq!(
        read(&[whole.clone(), vec![9; 700]].concat()).unwrap(),
        (vec!["/f".to_owned()], 2748)
    );
    assert_eq!(read(&[]).unwrap().0, [""; 0]);
    assert_eq!(read(&[0; 512]).unwrap().0, [""; 0]);
    for cut in [1, 511, 513, 515, 1023] {
        read(&whole[..cut]).expect_err("truncated");
    }
    let only = Tar::default().pax(b'x', &[("path", b"x")]).0;
    read(&only).expect_err("an extension of nothing");
}

fn name_of(bytes: usize) -> Vec<u8> {
    vec![b'n'; bytes]
}

#[test]
fn l21_any_name_that_linux_takes_arrives() {
    let arena = Arena::new();
    let deep = "d/".repeat(1900) + "f";
    let names: [&[u8]; 6] =
        [b"new\nline", b"\xff\xfe", b"\x1b[2J", b"a:b,c\\d", b"space ", deep.as_bytes()];
    let tar =
        names.iter().fold(Tar::default(), |tar, name| tar.pax(b'x', &[("path", name)]).file("f"));
    let summary = arena.unpack(tar).unwrap();
    for name in names {
        assert!(summary.listing.at(&TreePath::parse(name).unwrap()).is_some());
    }
    // Longer than one call of the kernel takes.
    let deeper = [&name_of(255)[..], b"/"].concat().repeat(20);
    let tar = Tar::default().pax(b'x', &[("path", &[&deeper[..], b"f"].concat())]).file("f");
    assert_eq!(paths(&Arena::new().unpack(tar).unwrap()).len(), 1);
    let long = name_of((16 << 10) + 1);
    assert!(Tar::default().pax(b'x', &[("path", &long)]).file("f").refused().contains("limit"));
    let shown = Tar::default().pax(b'x', &[("path", b"\x1b[2J/../x")]).file("f").refused();
    assert!(!shown.contains('\x1b'), "{shown:?}");
    // Something in place of the deep directory takes it away without descending.
    let arena = Arena::new();
    let tar = Tar::default()
        .pax(b'x', &[("path", deep.as_bytes())])
        .file("f")
        .with(b'5', "d", "", b"")
        .file("d");
    assert_eq!(paths(&arena.unpack(tar).unwrap()), ["/d"]);
}

#[test]
fn l22_many_entries_take_linear_time() {
    let mut tar = Tar::default();
    for number in 0..100_000 {
        let header =
            Header { name: format!("d/{number}").into_bytes(), kind: b'0', ..Header::default() };
        tar.0.extend_from_slice(&header.block());
    }
    assert_eq!(tar.read().unwrap().listing.len(), 100_000);
    let mut turns = Tar::default();
    for turn in 0..3000 {
        turns = turns.with(if turn % 2 == 0 { b'5' } else { b'6' }, "d", "", b"");
    }
    assert!(turns.refused().contains("change their type"));
}

#[test]
fn l23_the_last_of_several_entries_counts() {
    let arena = Arena::new();
    let tar = Tar::default().with(b'0', "f", "", b"one").with(b'0', "f", "", b"two");
    assert_eq!(paths(&arena.unpack(tar).unwrap()), ["/f"]);
    assert_eq!(fs::read(arena.root().join("f")).unwrap(), b"two");
    let arena = Arena::new();
    let canary = arena.canary();
    let tar = Tar::default()
        .file("t")
        .with(b'5', "t", "", b"")
        .file("t/in")
        .with(b'2', "t", &canary, b"");
    assert_eq!(paths(&arena.unpack(tar).unwrap()), ["/t"]);
    assert_eq!(fs::read_link(arena.root().join("t")).unwrap(), Path::new(&canary));
    let late = Arena::new();
    let directory =
        Header { name: b"d/".to_vec(), kind: b'5', mode: 0o700, mtime: 77, ..Header::default() };
    late.unpack(Tar::default().file("d/x").raw(&directory, b"")).unwrap();
    let found = fs::metadata(late.root().join("d")).unwrap();
    assert_eq!(
        (found.permissions().mode() & 0o7777, std::os::unix::fs::MetadataExt::mtime(&found)),
        (0o700, 77)
    );
}

#[test]
fn l24_absurd_numbers_are_cut_or_refused() {
    let base_256 = |range: std::ops::Range<usize>, value: i64, fill: u8| {
        let mut block = Tar::default().file("f").0;
        let bytes =
            [vec![fill; range.len().saturating_sub(8)], value.to_be_bytes().to_vec()].concat();
        block[range.clone()].copy_from_slice(&bytes[bytes.len() - range.len()..]);
        block[range.start] |= 0x80;
        block[148..156].fill(b' ');
        let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        Tar(block)
    };
    for (range, value) in [
        (108..116, 1 << 40),
        (116..124, i64::from(u32::MAX)),
        (108..116, -1),
        (124..136, -1),
        (124..136, i64::MAX),
    ] {
        let fill = if value < 0 { 0xff } else { 0 };
        base_256(range, value, fill).refused();
    }
    for seconds in [i64::MIN, i64::MAX] {
        let fill = if seconds < 0 { 0xff } else { 0 };
        Arena::new().unpack(base_256(136..148, seconds, fill)).unwrap();
    }
    for (text, fine) in [
        ("-9223372036854775808", true),
        ("1.999999999999", true),
        ("-1.5", true),
        ("9223372036854775808", false),
        ("1.2.3", false),
        ("+1", false),
        ("nan", false),
    ] {
        let read = Tar::default().pax(b'x', &[("mtime", text.as_bytes())]).file("f").read();
        assert_eq!(read.is_ok(), fine, "{text}");
    }
    let header = Header { name: b"f".to_vec(), kind: b'0', mode: 0o177_777, ..Header::default() };
    let summary = Tar::default().raw(&header, b"").read().unwrap();
    let Some(Change::Put(entry)) = summary.listing.iter().next().map(|listed| listed.change) else {
        panic!("no entry")
    };
    assert_eq!(entry.meta.mode, 0o7777);
}

#[test]
fn l25_overlays_own_attributes_are_never_applied() {
    let names = [
        "trusted.overlay.redirect",
        "trusted.overlay.opaque",
        "user.overlay.metacopy",
        "user.overlay.origin",
    ];
    let keys = names.map(|name| format!("SCHILY.xattr.{name}"));
    let mut records: Vec<_> = keys.iter().map(|key| (key.as_str(), &b"y"[..])).collect();
    records.push(("SCHILY.xattr.user.kept", b"1"));
    records.push(("SCHILY.xattr.security.selinux", b"label"));
    let arena = Arena::new();
    arena.unpack(Tar::default().pax(b'x', &records).with(b'5', "d", "", b"")).unwrap();
    let mut list = [0_u8; 1024];
    let count = rustix::fs::listxattr(arena.root().join("d"), &mut list[..]).unwrap();
    assert_eq!(&list[..count], b"user.kept\0");
    let large = vec![0; (64 << 10) + 1];
    assert!(
        Tar::default()
            .pax(b'x', &[("SCHILY.xattr.user.a", &large)])
            .file("f")
            .refused()
            .contains("64 KiB")
    );
    let long = format!("SCHILY.xattr.user.{}", "n".repeat(251));
    assert!(Tar::default().pax(b'x', &[(&long, b"")]).file("f").refused().contains("255"));
}

/// A layer with some of everything, to be damaged.
fn varied() -> Vec<u8> {
    let link = "l".repeat(90);
    Tar::default()
        .with(b'5', "d", "", b"")
        .pax(b'x', &[("path", b"d/long"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"1")])
        .file("f")
        .with(b'L', "long", "", b"d/other\0")
        .file("f")
        .with(b'2', "d/link", &link, b"")
        .with(b'1', "hard", "d/other", b"")
        .with(b'0', "d/.wh.gone", "", b"")
        .end()
}

proptest! {
    #[test]
    fn damage_is_refused_or_harmless(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        sums in any::<bool>(),
    ) {
        let mut tar = varied();
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
            let block = at / BLOCK * BLOCK;
            // With a fitting check sum the damage gets further.
            if sums {
                tar[block + 148..block + 156].fill(b' ');
                let sum: u32 = tar[block..block + BLOCK].iter().map(|byte| u32::from(*byte)).sum();
                tar[block + 148..block + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
        tar.truncate(tar.len() - 2 * BLOCK);
        let arena = Arena::new();
        // Either way the canary is looked after.
        drop(arena.unpack(Tar(tar)));
    }
}

/// A stream that breaks off is told of after what came before, whichever way its bytes come.
#[test]
fn what_comes_before_a_failure_is_seen_and_bytes_may_come_in_any_pieces() {
    struct Drops<'a>(&'a [u8], usize);
    impl std::io::Read for Drops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = buffer.len().min(self.1).min(self.0.len());
            if count == 0 {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }
    let large = vec![7; 3 << 20];
    let tar = Tar::default().file("first").with(b'0', "large", "", &large).file("last").end();
    let wanted = read_layer(tar.as_slice(), |_, _| Ok(())).unwrap();
    assert_eq!(wanted.diff_id.0, crate::oci::Digest::of(&tar));
    for step in [1000, 512 << 10] {
        let whole = std::io::Read::take(Drops(&tar, step), tar.len() as u64);
        assert_eq!(read_layer(whole, |_, _| Ok(())).unwrap().diff_id, wanted.diff_id);
        let mut seen = 0;
        let broken = read_layer(Drops(&tar[..tar.len() - 3 * BLOCK], step), |_, _| {
            seen += 1;
            Ok(())
        });
        let reset = |error: &LayerError| matches!(error, LayerError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(broken.as_ref().is_err_and(reset) && seen == 3, "{seen} {:?}", broken.err());
    }
}

proptest! {
    // Every case starts a program.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn l06_what_is_accepted_is_what_python_sees(
        records in prop::collection::vec((0..4_usize, "[0-9]{1,4}|[a-z]{1,8}|"), 0..5),
        size in 0..2000_u64,
        kind in prop::sample::select(&b"0157\0"[..]),
        slash in any::<bool>(),
    ) {
        let keys = ["path", "size", "linkpath", "uid"];
        let records: Vec<_> = records.iter().map(|(key, value)| (keys[*key], value.as_bytes())).collect();
        let name = if slash { b"name/".to_vec() } else { b"name".to_vec() };
        let header = Header { name, kind, size, link: b"first".to_vec(), ..Header::default() };
        let inner = Tar::default().file("inner").file("inner2").0;
        let mut tar = Tar::default().file("first");
        if !records.is_empty() {
            tar = tar.pax(b'x', &records);
        }
        let tar = tar.raw(&header, &inner).file("last").end();
        let mut seen = String::new();
        let read = read_layer(tar.as_slice(), |change, _| {
            if let Change::Put(entry) = change {
                let name = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
                seen += &format!("{name} {} {}\n", entry.size(), entry.meta.uid);
            }
            Ok(())
        });
        if read.is_ok() {
            let script = "import sys,tarfile\nfor m in tarfile.open(fileobj=sys.stdin.buffer,mode='r|'):\n \
                print(m.name.strip('/'),m.size if m.isreg() else 0,m.uid)";
            let mut child = Command::new("python3").args(["-c", script])
                .stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), &tar).unwrap();
            let python = child.wait_with_output().unwrap();
            prop_assert_eq!(String::from_utf8_lossy(&python.stdout), seen);
        }
    }
}
