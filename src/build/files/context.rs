//! A folder of local files as a source, through descriptors only: nothing outside of it can be named.
//!
//! Applies the ignore file; knows nothing of copying. Owners are always 0:0.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, makedev, openat, readlinkat, statx,
};

use super::{
    FilesError,
    resolve::child,
    source::{Inode, Node},
};
use crate::{
    dockerfile::{ignore::IgnoreFile, pattern::Verdict},
    layer::open_beneath,
    store::FileStamp,
    tree::{Kind, Meta, Timestamp, TreePath, Xattrs},
};

/// The one attribute of local files that belongs into an image.
const CAPABILITY: &str = "security.capability";

/// Length of that attribute in its second and in its third version, in bytes.
const CAPABILITY_V2_BYTES: usize = 20;
const CAPABILITY_V3_BYTES: usize = 24;

/// A folder of local files, filtered by an ignore file. Never looks outside of the folder.
pub struct Context {
    folder: Option<OwnedFd>,
    shown: String,
    ignore: IgnoreFile,
    walked: Mutex<Walked>,
}

/// What the last look at the context said of directories: the next one is most often near it.
#[derive(Default)]
struct Walked {
    /// A directory, and what the ignore file says of it and of each one above it, outermost first.
    directory: TreePath,
    verdicts: Vec<Verdict>,
    /// Something that is taken back out of a directory that is ignored.
    taken_back: Option<TreePath>,
}

impl Context {
    /// A context without files.
    #[must_use]
    pub fn empty() -> Self {
        let (ignore, walked) = Default::default();
        Self { folder: None, shown: String::new(), ignore, walked }
    }

    /// Opens a folder with the text of its ignore file (`None` when there is none).
    ///
    /// # Errors
    ///
    /// When the folder cannot be opened or the ignore file is not valid.
    pub fn open(folder: &Path, ignore: Option<&str>) -> Result<Self, FilesError> {
        let shown = folder.display().to_string();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(folder, flags, Mode::empty())
            .map_err(|error| FilesError::Io { path: shown.clone(), source: error.into() })?;
        let ignore = IgnoreFile::parse(ignore.unwrap_or_default())
            .map_err(|error| FilesError::Invalid(error.to_string()))?;
        Ok(Self { folder: Some(opened), shown, ignore, walked: Mutex::default() })
    }

    /// What stands at exactly this path; links are not followed. What is ignored is not there.
    pub(super) fn node(&self, path: &TreePath) -> Result<Option<Node>, FilesError> {
        let Some(node) = self.node_unfiltered(path)? else { return Ok(None) };
        let there = path.is_root()
            || !self.verdict(path).matched
            || (node.kind == Kind::Directory && self.holds_something(path)?);
        Ok(there.then_some(node))
    }

    /// As [`Context::node`], whatever the ignore file says.
    pub(super) fn node_unfiltered(&self, path: &TreePath) -> Result<Option<Node>, FilesError> {
        let Some(folder) = &self.folder else { return Ok(path.is_root().then(Node::empty_root)) };
        match open_beneath(folder.as_fd(), path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(file) => {
                let mut node = self.stat(file.as_fd(), b"", path)?;
                if path.is_root() {
                    // The folder itself is not part of the context: its time and its mode say nothing.
                    node.meta = Node::empty_root().meta;
                }
                Ok(Some(node))
            }
            Err(error) if is_absence(error) => Ok(None),
            Err(error) => Err(self.failed(path, error.into())),
        }
    }

    /// Names in a directory, sorted, and of what is ignored too.
    pub(super) fn names(&self, directory: &TreePath) -> Result<Vec<Vec<u8>>, FilesError> {
        if self.folder.is_none() {
            return Ok(Vec::new());
        }
        self.names_in(&self.open_confined(directory, OFlags::DIRECTORY)?, directory)
    }

    /// What stands at some names of a directory, without what is ignored.
    pub(super) fn nodes(
        &self,
        directory: &TreePath,
        names: Vec<Vec<u8>>,
    ) -> Result<Vec<(Vec<u8>, Node)>, FilesError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let opened = self.open_confined(directory, OFlags::DIRECTORY)?;
        let above = self.verdict(directory);
        let mut listed = Vec::with_capacity(names.len());
        for name in names {
            let path = child(directory, &name)?;
            let excluded = self.ignore.judge(&above, path.as_bytes()).matched;
            if excluded && !self.ignore.may_reinclude_below(path.as_bytes()) {
                continue;
            }
            let Some(node) = self.stat_listed(&opened, &name, &path)? else { continue };
            let hidden =
                excluded && !(node.kind == Kind::Directory && self.holds_something(&path)?);
            if !hidden {
                listed.push((name, node));
            }
        }
        Ok(listed)
    }

    /// Opens a regular file that was seen as `node`.
    pub(super) fn open_file(&self, path: &TreePath, node: &Node) -> Result<File, FilesError> {
        // A pipe that took the file's place must not make the open wait.
        let file = File::from(self.open_confined(path, OFlags::NONBLOCK | OFlags::NOFOLLOW)?);
        self.check_unchanged(&file, path, node)?;
        Ok(file)
    }

    /// Whether an open file still is what `node` says: what was hashed is what is copied.
    pub(super) fn check_unchanged(
        &self,
        file: &File,
        path: &TreePath,
        node: &Node,
    ) -> Result<(), FilesError> {
        let now = self.stat(file.as_fd(), b"", path)?;
        if now.stamp == node.stamp && now.kind == node.kind {
            return Ok(());
        }
        let name = self.name_of(path);
        Err(FilesError::Invalid(format!(
            "{name} changed while it was read; build again once nothing writes to it"
        )))
    }

    /// The attributes of an open file that belong into an image.
    pub(super) fn attributes(&self, file: &File, path: &TreePath) -> Result<Xattrs, FilesError> {
        let mut value = [0_u8; CAPABILITY_V3_BYTES];
        match rustix::fs::fgetxattr(file, CAPABILITY, &mut value[..]) {
            Ok(length) => {
                let value = capability_v2(&value[..length]);
                Ok(Xattrs::from([(CAPABILITY.as_bytes().to_vec(), value)]))
            }
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(Xattrs::new()),
            Err(error) => Err(self.failed(path, error.into())),
        }
    }

    /// A file of the context as a person finds it.
    pub(super) fn name_of(&self, path: &TreePath) -> String {
        format!("{}{path}", self.shown.trim_end_matches('/'))
    }

    fn open_confined(&self, path: &TreePath, flags: OFlags) -> Result<OwnedFd, FilesError> {
        let missing = || self.failed(path, io::Error::from(io::ErrorKind::NotFound));
        let folder = self.folder.as_ref().ok_or_else(missing)?;
        open_beneath(folder.as_fd(), path, flags | OFlags::RDONLY)
            .map_err(|error| self.failed(path, error.into()))
    }

    fn names_in(&self, opened: &OwnedFd, path: &TreePath) -> Result<Vec<Vec<u8>>, FilesError> {
        let failed = |error: rustix::io::Errno| self.failed(path, error.into());
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(opened).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
            if !matches!(name.as_slice(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// `None` when the file went away since its name was read.
    fn stat_listed(
        &self,
        directory: &OwnedFd,
        name: &[u8],
        path: &TreePath,
    ) -> Result<Option<Node>, FilesError> {
        match self.stat(directory.as_fd(), name, path) {
            Err(FilesError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    fn stat(&self, at: BorrowedFd<'_>, name: &[u8], path: &TreePath) -> Result<Node, FilesError> {
        let failed = |error: rustix::io::Errno| self.failed(path, error.into());
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
        let stat = statx(at, std::ffi::OsStr::from_bytes(name), flags, StatxFlags::BASIC_STATS)
            .map_err(failed)?;
        let target = || readlinkat(at, std::ffi::OsStr::from_bytes(name), Vec::new());
        let kind = match FileType::from_raw_mode(u32::from(stat.stx_mode)) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink { target: target().map_err(failed)?.into_bytes() },
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => {
                Kind::CharDevice { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor }
            }
            FileType::BlockDevice => {
                Kind::BlockDevice { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor }
            }
            // A socket becomes an empty file, as in BuildKit.
            FileType::Socket => Kind::File { size: 0 },
            FileType::RegularFile | FileType::Unknown => Kind::File { size: stat.stx_size },
        };
        Ok(node_of(kind, &stat))
    }

    fn verdict(&self, directory: &TreePath) -> Verdict {
        if self.ignore.is_empty() {
            return Verdict::default();
        }
        let mut walked = self.walked();
        let common = directory.common(&walked.directory);
        let known = directory.upper(common).components().count();
        walked.verdicts.truncate(known);
        let beyond = directory.ancestors_beyond(common);
        let itself = (directory.as_bytes().len() > common).then(|| directory.clone());
        for path in beyond.chain(itself) {
            let above = walked.verdicts.last().cloned().unwrap_or_default();
            walked.verdicts.push(self.ignore.judge(&above, path.as_bytes()));
        }
        walked.directory = directory.clone();
        walked.verdicts.last().cloned().unwrap_or_default()
    }

    fn walked(&self) -> MutexGuard<'_, Walked> {
        self.walked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an ignored directory holds something that is taken back.
    fn holds_something(&self, directory: &TreePath) -> Result<bool, FilesError> {
        if self.walked().taken_back.as_ref().is_some_and(|path| path.starts_with(directory)) {
            return Ok(true);
        }
        // The stack is our own: a tree may be deeper than a thread's.
        let mut pending = vec![(directory.clone(), self.verdict(directory))];
        while let Some((directory, above)) = pending.pop() {
            if !self.ignore.may_reinclude_below(directory.as_bytes()) {
                continue;
            }
            let opened = self.open_confined(&directory, OFlags::DIRECTORY)?;
            for name in self.names_in(&opened, &directory)? {
                let path = child(&directory, &name)?;
                let verdict = self.ignore.judge(&above, path.as_bytes());
                if !verdict.matched {
                    self.walked().taken_back = Some(path);
                    return Ok(true);
                }
                let is_directory = |node: Node| node.kind == Kind::Directory;
                if self.stat_listed(&opened, &name, &path)?.is_some_and(is_directory) {
                    pending.push((path, verdict));
                }
            }
        }
        Ok(false)
    }

    fn failed(&self, path: &TreePath, source: io::Error) -> FilesError {
        FilesError::Io { path: self.name_of(path), source }
    }
}

/// Nothing there, or a link on the way: who follows links does it before asking.
fn is_absence(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG)
}

fn node_of(kind: Kind, stat: &Statx) -> Node {
    let device = makedev(stat.stx_dev_major, stat.stx_dev_minor);
    let nanoseconds = |time: rustix::fs::StatxTimestamp| {
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    let stamp = FileStamp {
        device,
        inode: stat.stx_ino,
        size: stat.stx_size,
        mtime_ns: nanoseconds(stat.stx_mtime),
        ctime_ns: nanoseconds(stat.stx_ctime),
    };
    let regular = FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::RegularFile;
    let linked = stat.stx_nlink > 1 && kind != Kind::Directory;
    Node {
        inode: linked.then_some(Inode::Local(device, stat.stx_ino)),
        stamp: regular.then_some(stamp),
        meta: Meta {
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: 0,
            gid: 0,
            mtime: Timestamp { seconds: stat.stx_mtime.tv_sec, nanos: stat.stx_mtime.tv_nsec },
            xattrs: Xattrs::new(),
        },
        kind,
    }
}

/// Version 3 names the root of a user namespace, which has no meaning in an image.
fn capability_v2(value: &[u8]) -> Vec<u8> {
    let mut value = value.to_vec();
    if value.len() == CAPABILITY_V3_BYTES {
        value.truncate(CAPABILITY_V2_BYTES);
        value[3] = 2;
    }
    value
}

/// Reads a small regular file that stands directly in a folder, such as an ignore file; `None` when
/// there is none. Links are not followed.
///
/// # Errors
///
/// When it is no regular file, is larger than `bytes_max`, or cannot be read.
pub fn read_in_folder(
    folder: &Path,
    name: &str,
    bytes_max: u64,
) -> Result<Option<Vec<u8>>, FilesError> {
    let shown = folder.join(name).display().to_string();
    let failed = |source: io::Error| FilesError::Io { path: shown.clone(), source };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(&directory, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() || facts.len() > bytes_max {
        return Err(FilesError::Invalid(format!(
            "{shown} must be a regular file of at most {bytes_max} bytes"
        )));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, bytes_max), &mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}
