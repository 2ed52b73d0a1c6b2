//! Steps in a directory tree that nobody vouches for: by descriptor, never through a link.
//!
//! Knows no tar and no overlay.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{self as fs, AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::tree::TreePath;

/// Bytes of a path in one call, at most: less than PATH_MAX.
const PIECE_BYTES: usize = 4000;

/// Directories that are kept open at once.
const OPEN_MAX: usize = 64;

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

/// Directories below `root` that were used last, open: neighbours come one after another, and what is opened from the
/// root costs as much as it is deep.
pub(super) struct Parents<'a> {
    root: BorrowedFd<'a>,
    /// Each is below the one before it; no more than [`OPEN_MAX`].
    open: Vec<(TreePath, Rc<OwnedFd>)>,
}

impl<'a> Parents<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, open: Vec::new() }
    }

    /// As [`open_directory`].
    pub(super) fn open(&mut self, path: &TreePath) -> io::Result<Rc<OwnedFd>> {
        self.open_by(path, |parent, name, _| open_child(parent, name))
    }

    /// The parent of a path that is not the root, and its name there.
    pub(super) fn of<'p>(&mut self, path: &'p TreePath) -> io::Result<(Rc<OwnedFd>, &'p [u8])> {
        let parent = self.open(&path.parent().unwrap_or_default())?;
        Ok((parent, path.file_name().unwrap_or_default()))
    }

    /// Opens a directory, by one step for each that is not open: parent, name there and path.
    pub(super) fn open_by(
        &mut self,
        path: &TreePath,
        mut step: impl FnMut(BorrowedFd<'_>, &[u8], &TreePath) -> io::Result<OwnedFd>,
    ) -> io::Result<Rc<OwnedFd>> {
        while self.open.pop_if(|(at, _)| !path.starts_with(at)).is_some() {}
        if self.open.is_empty() {
            self.enter(TreePath::root(), open_directory(self.root, &TreePath::root())?);
        }
        let (mut at, mut opened) = self.open.last().expect("the root at least").clone();
        let rest = path.strip_prefix(&at).expect("the starting point is above the path");
        for name in rest.components() {
            at = at.child(name).map_err(io::Error::other)?;
            opened = self.enter(at.clone(), step(opened.as_fd(), name, &at)?);
        }
        Ok(opened)
    }

    /// Takes in a directory that was opened in the last one.
    pub(super) fn enter(&mut self, path: TreePath, opened: OwnedFd) -> Rc<OwnedFd> {
        if self.open.len() == OPEN_MAX {
            self.open.remove(0);
        }
        let opened = Rc::new(opened);
        self.open.push((path, Rc::clone(&opened)));
        opened
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_are_near_are_opened_by_the_steps_between_them() {
        let folder = tempfile::tempdir().unwrap();
        let deep = TreePath::parse("d/".repeat(2 * OPEN_MAX)).unwrap();
        std::fs::create_dir_all(folder.path().join(deep.as_path())).unwrap();
        std::fs::create_dir(folder.path().join("e")).unwrap();
        std::os::unix::fs::symlink("e", folder.path().join("link")).unwrap();
        let root = std::fs::File::open(folder.path()).unwrap();
        let mut parents = Parents::new(root.as_fd());
        let mut steps = |path: &TreePath| {
            let mut taken = 0;
            let opened = parents.open_by(path, |parent, name, _| {
                taken += 1;
                open_child(parent, name)
            })?;
            let place = folder.path().join(path.as_path());
            let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(place)?);
            assert_eq!(fs::fstat(&opened)?.st_ino, inode, "{path}");
            io::Result::Ok(taken)
        };
        assert_eq!(steps(&deep).unwrap(), 2 * OPEN_MAX);
        let mut above: Vec<_> = deep.ancestors().collect();
        above.reverse();
        let taken: Vec<_> = above.iter().map(|path| steps(path).unwrap()).collect();
        // What is no longer open is opened from the root, once for all that is then kept.
        assert!(taken.iter().filter(|taken| **taken > 0).count() <= 2, "{taken:?}");
        assert_eq!(steps(&TreePath::parse("e").unwrap()).unwrap(), 1);
        assert!(steps(&TreePath::parse("link").unwrap()).is_err());
        assert_eq!(steps(&TreePath::parse("e").unwrap()).unwrap(), 1);
    }
}
