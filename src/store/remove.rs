//! Removal of directory trees of any depth, by descriptor, never following links.
//!
//! A directory inside another is first moved up, so that two descriptors are enough for any depth.

use std::{
    ffi::{CString, OsStr},
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::Path,
};

use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
};

/// Removes `path` and all below it. A path that is not there is fine.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let kind = match open_folder(CWD, path.as_os_str()) {
        Ok(top) => {
            empty(&top)?;
            AtFlags::REMOVEDIR
        }
        Err(Errno::NOTDIR | Errno::LOOP) => AtFlags::empty(),
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    // Whoever made it may be faster: a store that is just being made moves its first files to their places.
    match rustix::fs::unlinkat(CWD, path, kind) {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

/// Removes all that is in `top`, in passes: each empties the directories found, moving theirs up.
fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut moved = 0_u64;
    loop {
        let folders = remove_files(top)?;
        if folders.is_empty() {
            return Ok(());
        }
        for name in folders {
            let folder = match open_folder(top.as_fd(), OsStr::from_bytes(name.as_bytes())) {
                Err(Errno::NOENT) => continue,
                folder => folder?,
            };
            for inner in remove_files(&folder)? {
                lift(&folder, &inner, top, &mut moved)?;
            }
            match rustix::fs::unlinkat(top, &name, AtFlags::REMOVEDIR) {
                Err(Errno::NOENT) | Ok(()) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Moves a directory up under a name that is free.
fn lift(from: &OwnedFd, name: &CString, to: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        let free = format!(".removed-{moved}");
        match rustix::fs::renameat_with(from, name, to, &free, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            // The kernel wants to write `..` of what moves.
            Err(Errno::ACCESS) => {
                drop(open_folder(from.as_fd(), OsStr::from_bytes(name.as_bytes()))?);
            }
            Err(Errno::INVAL) => return Ok(rustix::fs::renameat(from, name, to, &free)?),
            Err(Errno::NOENT) | Ok(()) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Unlinks what is no directory; names the directories that are left.
fn remove_files(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut folders = Vec::new();
    let mut files = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_folder = entry.file_type() == FileType::Directory;
        (if is_folder { &mut folders } else { &mut files }).push(name.to_owned());
    }
    for name in files {
        match rustix::fs::unlinkat(folder, &name, AtFlags::empty()) {
            Err(Errno::ISDIR) => folders.push(name), // A file system that does not tell types.
            Err(Errno::NOENT) | Ok(()) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(folders)
}

/// Opens a directory that is no link, with the rights to empty it.
fn open_folder(base: impl AsFd + Copy, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(base, name, flags | OFlags::PATH, Mode::empty())?;
    let mode = rustix::fs::fstat(&place)?.st_mode;
    if mode & 0o700 != 0o700 {
        // `fchmod` refuses an `O_PATH` descriptor, its name in `/proc` does not.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
        rustix::fs::chmod(path, Mode::RWXU).ok(); // Failing that, the next call says why.
    }
    rustix::fs::openat(base, name, flags | OFlags::RDONLY, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[test]
    fn any_depth_goes_and_links_are_not_followed() {
        const DEPTH: usize = 5000;
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("kept")).unwrap();
        fs::write(root.path().join("kept/file"), "x").unwrap();
        let top = root.path().join("tree");
        fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink("../kept", top.join("link")).unwrap();
        let mut here = open_folder(CWD, top.as_os_str()).unwrap();
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/", &here, "link").ok();
            here = open_folder(here.as_fd(), OsStr::new("d")).unwrap();
        }
        let closed = top.join("closed");
        fs::create_dir_all(closed.join("inner")).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&top).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert!(root.path().join("kept/file").exists());
    }
    #[test]
    fn what_goes_away_by_itself_meanwhile_is_gone_too() {
        const ROUNDS: usize = 5000;
        let root = tempfile::tempdir().unwrap();
        let (file, is_over) = (root.path().join("file"), AtomicBool::new(false));
        let remove = || {
            while !is_over.load(Ordering::Relaxed) {
                remove_tree(&file).unwrap();
            }
        };
        std::thread::scope(|scope| {
            (0..2).for_each(|_| drop(scope.spawn(remove)));
            (0..ROUNDS).for_each(|_| fs::write(&file, "x").unwrap());
            is_over.store(true, Ordering::Relaxed);
        });
    }
}
