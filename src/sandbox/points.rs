//! Mount points within a root: found as a process inside would find them, made when missing, and
//! taken away afterwards.
//!
//! Finding and making happen after fork: system calls and fixed buffers only. Removal happens in the
//! upper directory, after everything inside has ended.

use std::{
    ffi::CStr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps},
    io::Errno,
};

use crate::sandbox::{
    sys::Sys,
    told::{Made, Mtime, PointKind, Told},
};

/// Links that are followed for one mount point (Linux follows as many).
const LINKS_MAX: usize = 40;

/// How often a path with `..` is tried: whenever something is renamed or mounted anywhere at the same time, the
/// kernel cannot vouch for it and says EAGAIN (openat2(2)).
const OPEN_TRIES_MAX: usize = 10_000;

/// Longest path (`PATH_MAX`).
const PATH_BYTES_MAX: usize = 4096;

/// Whether what is made is noted for removal.
#[derive(Clone, Copy)]
pub(super) enum Record<'a> {
    /// It is a mount point only.
    In(&'a Told),
    /// It is meant to stay.
    Nothing,
}

/// Finds `path` within `root`, making it (and the directories above it) when it is missing.
pub(super) fn find(
    root: BorrowedFd<'_>,
    path: &CStr,
    kind: PointKind,
    record: Record<'_>,
) -> Sys<OwnedFd> {
    let mut route = Route::new(path.to_bytes())?;
    for _ in 0..LINKS_MAX {
        match open_inside(root, route.whole(), OFlags::PATH) {
            Ok(found) => return check_kind(found, kind),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        make(root, &mut route, kind, record)?;
    }
    Err(Errno::LOOP)
}

fn check_kind(found: OwnedFd, kind: PointKind) -> Sys<OwnedFd> {
    let directory =
        FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Directory;
    match (kind, directory) {
        (PointKind::Directory, false) => Err(Errno::NOTDIR),
        (PointKind::File, true) => Err(Errno::ISDIR),
        _ => Ok(found),
    }
}

fn open_inside(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Sys<OwnedFd> {
    let mut buffer = [0u8; PATH_BYTES_MAX];
    let path = terminated(path, &mut buffer)?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 1;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), inside) {
            Err(Errno::AGAIN) if tries < OPEN_TRIES_MAX => tries += 1,
            other => return other,
        }
    }
}

fn terminated<'a>(bytes: &[u8], buffer: &'a mut [u8; PATH_BYTES_MAX]) -> Sys<&'a CStr> {
    if bytes.len() >= buffer.len() {
        return Err(Errno::NAMETOOLONG);
    }
    let bytes = if bytes.is_empty() { b"." } else { bytes };
    buffer[..bytes.len()].copy_from_slice(bytes);
    buffer[bytes.len()] = 0;
    CStr::from_bytes_until_nul(buffer.as_slice()).map_err(|_| Errno::INVAL)
}

/// A path that is being walked, in a buffer of its own.
struct Route {
    bytes: [u8; PATH_BYTES_MAX],
    len: usize,
}

impl Route {
    fn new(path: &[u8]) -> Sys<Self> {
        let mut route = Self { bytes: [0; PATH_BYTES_MAX], len: 0 };
        route.push(path)?;
        Ok(route)
    }

    fn whole(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, more: &[u8]) -> Sys<()> {
        let end = self.len + more.len();
        self.bytes.get_mut(self.len..end).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(more);
        self.len = end;
        Ok(())
    }

    /// The component that starts at or after `from`: where it starts and where it ends.
    fn component(&self, from: usize) -> Option<(usize, usize)> {
        let start = from + self.whole().get(from..)?.iter().position(|byte| *byte != b'/')?;
        let rest = &self.whole()[start..];
        let len = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        Some((start, start + len))
    }

    /// Puts a link's text in the place of the component `start..end`.
    fn replace(&mut self, (start, end): (usize, usize), link: &[u8]) -> Sys<()> {
        let old = Self { bytes: self.bytes, len: self.len };
        self.len = if link.starts_with(b"/") { 0 } else { start };
        self.push(link)?;
        self.push(&old.whole()[end..])
    }
}

/// Makes what is missing of `route`, or steps over the first dangling link in it.
fn make(root: BorrowedFd<'_>, route: &mut Route, kind: PointKind, record: Record<'_>) -> Sys<()> {
    let mut from = 0;
    while let Some((start, end)) = route.component(from) {
        from = end;
        match open_inside(root, &route.whole()[..end], OFlags::PATH) {
            Ok(_) => continue,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        let last = route.component(end).is_none();
        let kind = if last { kind } else { PointKind::Directory };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let parent = match open_inside(root, &route.whole()[..start], flags) {
            // It was there a moment ago: somebody else is at work here, and a new look will tell.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        let name = &route.whole()[start..end];
        match make_one(root, &parent, name, (kind, record)) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST) => {
                let mut buffer = [0u8; PATH_BYTES_MAX];
                return match read_link(&parent, name, &mut buffer) {
                    Ok(len) => route.replace((start, end), &buffer[..len]),
                    // No link any more.
                    Err(Errno::INVAL | Errno::NOENT) => Ok(()),
                    Err(errno) => Err(errno),
                };
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn make_one(
    root: BorrowedFd<'_>,
    parent: &OwnedFd,
    name: &[u8],
    (kind, record): (PointKind, Record<'_>),
) -> Sys<()> {
    let before = mtime(parent.as_fd())?;
    let mut buffer = [0u8; PATH_BYTES_MAX];
    let c_name = terminated(name, &mut buffer)?;
    match kind {
        PointKind::Directory => {
            rustix::fs::mkdirat(parent, c_name, Mode::from_raw_mode(0o755))?;
        }
        PointKind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(parent, c_name, flags, Mode::from_raw_mode(0o644))?;
        }
    }
    let Record::In(told) = record else { return Ok(()) };
    let after = mtime(parent.as_fd())?;
    let (mut root_name, mut parent_name) = ([0u8; PATH_BYTES_MAX], [0u8; PATH_BYTES_MAX]);
    let root_len = descriptor_path(root, &mut root_name)?;
    let parent_len = descriptor_path(parent.as_fd(), &mut parent_name)?;
    let directory =
        parent_name[..parent_len].strip_prefix(&root_name[..root_len]).ok_or(Errno::XDEV)?;
    told.made([directory, name], kind, [before, after])
}

pub(super) fn mtime(file: BorrowedFd<'_>) -> Sys<Mtime> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)))
}

fn read_link(parent: &OwnedFd, name: &[u8], into: &mut [u8; PATH_BYTES_MAX]) -> Sys<usize> {
    let mut buffer = [0u8; PATH_BYTES_MAX];
    let name = terminated(name, &mut buffer)?;
    rustix::fs::readlinkat_raw(parent, name, into.as_mut_slice())
}

/// The kernel's name for an open directory.
fn descriptor_path(fd: BorrowedFd<'_>, into: &mut [u8; PATH_BYTES_MAX]) -> Sys<usize> {
    use std::os::fd::AsRawFd as _;
    let mut link = Route::new(b"/proc/self/fd/")?;
    let mut digits = [0u8; 10];
    let mut rest = fd.as_raw_fd().unsigned_abs();
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    link.push(&digits[at..])?;
    let mut buffer = [0u8; PATH_BYTES_MAX];
    let link = terminated(link.whole(), &mut buffer)?;
    rustix::fs::readlinkat_raw(rustix::fs::CWD, link, into.as_mut_slice())
}

/// Removes from `upper` what was made as a mount point and is empty still, last made first, and
/// gives the directories above it their times back. A link that the process put somewhere on the
/// way is not followed.
pub(super) fn remove(upper: &Path, made: &[Made]) -> std::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = rustix::fs::open(upper, flags, Mode::empty())?;
    for point in made.iter().rev() {
        match remove_one(upper.as_fd(), point) {
            // Filled, replaced or moved by the process: its own change now.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn remove_one(upper: BorrowedFd<'_>, point: &Made) -> Sys<()> {
    let cut = point.path.iter().rposition(|byte| *byte == b'/').ok_or(Errno::NOENT)?;
    let (directory, name) = (&point.path[..cut], &point.path[cut + 1..]);
    let directory = directory.strip_prefix(b"/").unwrap_or(directory);
    let directory = if directory.is_empty() { b"." } else { directory };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let parent = rustix::fs::openat2(upper, directory, flags, Mode::empty(), inside)?;
    let last = mtime(parent.as_fd())?;
    match point.kind {
        PointKind::Directory => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?,
        PointKind::File => {
            let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
            if !device && (!regular || stat.st_size != 0) {
                return Err(Errno::NOTEMPTY);
            }
            rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
        }
    }
    let (seconds, nanos) = if last == point.after { point.before } else { last };
    let keep = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let times = Timestamps {
        last_access: keep,
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos },
    };
    rustix::fs::futimens(&parent, &times)
}
