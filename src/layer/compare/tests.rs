//! What a comparison of a snapshot finds, one change at a time.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
};

use rustix::fs::{Timespec, Timestamps, XattrFlags};

use super::*;
use crate::{
    layer::{LayerWriter, OverlayMarks, unpack},
    tree::{Timestamp, Xattrs},
};

/// A layer with something of every kind.
fn layer() -> Vec<u8> {
    let path = |text: &str| TreePath::parse(text).unwrap();
    let capability = [&[1, 0, 0, 2][..], &[0; 16]].concat();
    let xattrs: Xattrs = [(b"security.capability".to_vec(), capability)].into();
    let meta =
        Meta { mode: 0o755, mtime: Timestamp { seconds: 1000, nanos: 0 }, ..Meta::default() };
    let mut out = LayerWriter::new(Vec::new());
    let mut put = |at: &str, kind, xattrs: &Xattrs, content: &[u8]| {
        let meta = Meta { xattrs: xattrs.clone(), ..meta.clone() };
        out.put(&Entry { path: path(at), kind, meta }, &mut &*content).unwrap();
    };
    let none = Xattrs::new();
    put("dir", Kind::Directory, &none, b"");
    put("dir/file", Kind::File { size: 5 }, &xattrs, b"bytes");
    put("dir/link", Kind::Symlink { target: b"file".to_vec() }, &none, b"");
    put("dir/other", Kind::Hardlink { target: path("dir/file") }, &none, b"");
    put("dir/pipe", Kind::Fifo, &none, b"");
    put("implied/file", Kind::File { size: 0 }, &none, b"");
    put("opaque", Kind::Directory, &none, b"");
    out.whiteout(&path("gone")).unwrap();
    out.opaque(&path("opaque")).unwrap();
    out.finish().unwrap().0
}

/// How the snapshot differs after something was done to it.
fn after(change: impl Fn(&Path)) -> Option<String> {
    let (tar, folder) = (layer(), tempfile::tempdir().unwrap());
    let directory = File::open(folder.path()).unwrap();
    unpack(&*tar, directory.as_fd(), OverlayMarks::Trusted).unwrap();
    change(folder.path());
    let found = compare(&*tar, directory.as_fd(), Ownership::Exact).unwrap();
    found.map(|found| format!("{} {}", found.path, found.what))
}

/// Changes something, and gives what was changed its time again, as a disk that fails does.
fn quietly(root: &Path, changed: &str, change: impl Fn(&Path)) {
    change(&root.join(changed));
    let time = Timespec { tv_sec: 1000, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    for touched in [changed, "dir"] {
        let at = root.join(touched);
        if at.symlink_metadata().is_ok() {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            fs_utimens(&at, &times, flags);
        }
    }
}

fn fs_utimens(at: &Path, times: &Timestamps, flags: AtFlags) {
    rustix::fs::utimensat(rustix::fs::CWD, at, times, flags).unwrap();
}

#[test]
fn a_snapshot_as_it_was_made_does_not_differ() {
    assert_eq!(after(|_| ()), None);
}

#[test]
fn whatever_differs_is_found() {
    let opaque = "trusted.overlay.opaque";
    type Change = Box<dyn Fn(&Path)>;
    let quiet = |changed: &'static str, change: fn(&Path)| -> Change {
        Box::new(move |root| quietly(root, changed, change))
    };
    let cases: [(Change, &str); 16] = [
        (quiet("dir/file", |at| fs::write(at, "byteS").unwrap()), "/dir/file has other bytes"),
        (quiet("dir/file", |at| fs::write(at, "byte").unwrap()), "/dir/file has other bytes"),
        (
            quiet("dir/pipe", |at| {
                fs::set_permissions(at, fs::Permissions::from_mode(0o750)).unwrap();
            }),
            "/dir/pipe has another mode",
        ),
        (quiet("dir/pipe", |at| chown(at, Some(7), None).unwrap()), "/dir/pipe has another owner"),
        (
            quiet("dir/file", |at| rustix::fs::removexattr(at, "security.capability").unwrap()),
            "/dir/file has other extended attributes",
        ),
        (
            quiet("dir", |at| {
                rustix::fs::setxattr(at, "trusted.more", b"", XattrFlags::empty()).unwrap();
            }),
            "/dir has other extended attributes",
        ),
        (
            Box::new(|root| fs::write(root.join("implied/file"), "").unwrap()),
            "/implied/file has another time",
        ),
        (quiet("dir/link", |at| fs::remove_file(at).unwrap()), "/dir/link is missing"),
        (quiet("dir/more", |at| fs::write(at, "").unwrap()), "/dir/more is not in the layer"),
        (
            quiet("dir/link", |at| {
                fs::remove_file(at).unwrap();
                symlink("fils", at).unwrap();
            }),
            "/dir/link is something else",
        ),
        (
            quiet("dir/other", |at| {
                fs::remove_file(at).unwrap();
                fs::write(at, "bytes").unwrap();
            }),
            "/dir/other is not the same file as its other name",
        ),
        (quiet("gone", |at| fs::remove_file(at).unwrap()), "/gone is missing"),
        (
            quiet("gone", |at| {
                fs::remove_file(at).unwrap();
                fs::write(at, "").unwrap();
            }),
            "/gone is there, and should not be",
        ),
        (quiet("implied", |at| fs::remove_dir_all(at).unwrap()), "/implied/file is missing"),
        (
            Box::new(move |root| rustix::fs::removexattr(root.join("opaque"), opaque).unwrap()),
            "/opaque hides what is below it, or does not",
        ),
        (
            Box::new(move |root| {
                rustix::fs::setxattr(root.join("implied"), opaque, b"y", XattrFlags::empty())
                    .unwrap();
            }),
            "/implied hides what is below it, or does not",
        ),
    ];
    for (change, wanted) in cases {
        assert_eq!(after(change).as_deref(), Some(wanted));
    }
}

#[test]
fn a_link_out_of_a_snapshot_is_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "bytes").unwrap();
    let found = after(|root| {
        fs::remove_dir_all(root.join("dir")).unwrap();
        symlink(outside.path(), root.join("dir")).unwrap();
    });
    assert_eq!(found.as_deref(), Some("/dir is something else"));
}

#[test]
fn owners_and_their_bits_are_not_compared_where_they_cannot_be_set() {
    let (tar, folder) = (layer(), tempfile::tempdir().unwrap());
    let directory = File::open(folder.path()).unwrap();
    unpack(&*tar, directory.as_fd(), OverlayMarks::Trusted).unwrap();
    quietly(folder.path(), "dir/pipe", |at| chown(at, Some(7), Some(7)).unwrap());
    assert_eq!(compare(&*tar, directory.as_fd(), Ownership::Own).unwrap(), None);
}
