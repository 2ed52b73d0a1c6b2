//! Steps in a directory tree that nobody vouches for: by descriptor, never through a link.
//!
//! Knows no tar and no overlay.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self as fs, AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::tree::TreePath;

/// Bytes of a path in one call, at most: less than PATH_MAX.
const PIECE_BYTES: usize = 4000;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

const CONFINED: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens whatever stands at a path below `root`, however long the path is; never through a link.
///
/// # Errors
///
/// As `openat2(2)`: `ELOOP` for a link on the way.
pub fn open_beneath(
    root: BorrowedFd<'_>,
    path: &TreePath,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return fs::openat(root, ".", flags, Mode::empty());
    };
    if !is_long(path) {
        match fs::openat2(root, path.as_path(), flags, Mode::empty(), CONFINED) {
            Err(errno) if is_unanswered(errno) => {}
            opened => return opened,
        }
    }
    let parent = open_parent(root, &parent)?;
    fs::openat(&parent, name, flags | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens a directory below `root`; fails when any part of the path is a link or no directory.
pub(super) fn open_directory(root: BorrowedFd<'_>, path: &TreePath) -> io::Result<OwnedFd> {
    Ok(open_parent(root, path)?)
}

fn open_parent(root: BorrowedFd<'_>, path: &TreePath) -> rustix::io::Result<OwnedFd> {
    if is_long(path) { open_in_pieces(root, path) } else { open_whole(root, path) }
}

/// Old kernels do not have `openat2`, some sandboxes forbid it, and it gives up when names move meanwhile.
fn is_unanswered(errno: Errno) -> bool {
    matches!(errno, Errno::NOSYS | Errno::PERM | Errno::AGAIN)
}

fn is_long(path: &TreePath) -> bool {
    path.as_bytes().len() >= PIECE_BYTES
}

fn open_whole(root: BorrowedFd<'_>, path: &TreePath) -> rustix::io::Result<OwnedFd> {
    match fs::openat2(root, path.as_path(), DIRECTORY, Mode::empty(), CONFINED) {
        Err(errno) if is_unanswered(errno) => open_stepwise(root, path),
        other => other,
    }
}

/// For a path that is longer than one call takes: as many names at a time as it takes.
fn open_in_pieces(root: BorrowedFd<'_>, path: &TreePath) -> rustix::io::Result<OwnedFd> {
    let mut directory = fs::openat(root, ".", DIRECTORY, Mode::empty())?;
    let mut piece = TreePath::root();
    for name in path.components() {
        let name = TreePath::parse(name).expect("a name of a path is a path");
        if piece.as_bytes().len() + name.as_bytes().len() >= PIECE_BYTES {
            directory = open_whole(directory.as_fd(), &piece)?;
            piece = TreePath::root();
        }
        piece = piece.join(&name);
    }
    open_whole(directory.as_fd(), &piece)
}

fn open_stepwise(root: BorrowedFd<'_>, path: &TreePath) -> rustix::io::Result<OwnedFd> {
    let mut directory = fs::openat(root, ".", DIRECTORY, Mode::empty())?;
    for name in path.components() {
        directory = fs::openat(&directory, name, DIRECTORY, Mode::empty())?;
    }
    Ok(directory)
}

/// Opens a directory by one name.
pub(super) fn open_child(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    Ok(fs::openat(parent, name, DIRECTORY, Mode::empty())?)
}

/// Names in a directory, sorted by bytes.
pub(super) fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Removes whatever stands at a name, with everything below, however deep.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return Ok(other?),
    }
    let top = open_child(parent, name)?;
    let mut lifted = 0_u64;
    loop {
        let found = names_of(&top)?;
        if found.is_empty() {
            return Ok(fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?);
        }
        for child in found {
            empty_into(&top, child.to_bytes(), &mut lifted)?;
        }
    }
}

/// Removes a child of `top`; directories within it are lifted to `top` first, so that no depth is
/// ever descended into.
fn empty_into(top: &OwnedFd, child: &[u8], lifted: &mut u64) -> io::Result<()> {
    let stat = fs::statat(top, child, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(fs::unlinkat(top, child, AtFlags::empty())?);
    }
    let directory = fs::openat(top, child, DIRECTORY, Mode::empty())?;
    for name in names_of(&directory)? {
        match fs::unlinkat(&directory, &name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => lift(&directory, &name, top, lifted)?,
            other => other?,
        }
    }
    Ok(fs::unlinkat(top, child, AtFlags::REMOVEDIR)?)
}

fn lift(from: &OwnedFd, name: &CString, top: &OwnedFd, lifted: &mut u64) -> io::Result<()> {
    loop {
        *lifted += 1;
        let free = format!(".lifted-{lifted}");
        match fs::renameat_with(from, name, top, free, fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return Ok(other?),
        }
    }
}

fn names_of(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    names(directory.as_fd())
}
