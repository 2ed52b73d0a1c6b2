//! Tar → a directory in overlay form, one layer alone.
//!
//! Every step is taken on a descriptor of the parent, without following links; so nothing outside of
//! the directory can be touched, whatever the layer says. Knows no stack of layers.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{
        self as fs, AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid,
        XattrFlags,
    },
    io::Errno,
};

use super::{
    LayerError, LayerSummary, OverlayMarks, attributes, read_layer,
    walk::{self, Parents},
};
use crate::tree::{Change, Entry, Kind, Meta, Timestamp, TreePath};

/// Size of the piece in which content is copied, in bytes.
const COPY_BYTES: usize = 256 << 10;

/// Mode of directories that a layer has no entry for.
const IMPLICIT_MODE: u32 = 0o755;

/// What to do where the place does not allow owners or attributes to be set. Devices become empty files
/// wherever they cannot be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Fail: the snapshot is exactly what the layer says.
    #[default]
    Exact,
    /// Go on with the owner that the process has (a user namespace with a single id): the layer's
    /// listing still says whose the files are.
    Own,
}

/// Unpacks a plain tar alone into an empty directory, in overlay form (whiteouts as character
/// devices 0:0, opaque directories marked). Never follows a link, never leaves `directory`.
///
/// # Errors
///
/// As [`read_layer`], and when the file system refuses.
pub fn unpack(
    tar: impl Read,
    directory: BorrowedFd<'_>,
    marks: OverlayMarks,
) -> Result<LayerSummary, LayerError> {
    unpack_as(tar, directory, marks, Ownership::Exact)
}

/// As [`unpack`], for places where not everything can be set.
///
/// # Errors
///
/// As [`unpack`].
pub fn unpack_as(
    tar: impl Read,
    directory: BorrowedFd<'_>,
    marks: OverlayMarks,
    ownership: Ownership,
) -> Result<LayerSummary, LayerError> {
    let parents = Parents::new(directory);
    let mut target = Target { parents, marks, ownership, implicit: Vec::new() };
    let summary = read_layer(tar, |change, content| {
        target.apply(change, content).map_err(|error| match error {
            LayerError::Io(error) => LayerError::at(change.path().as_bytes(), &error),
            other @ (LayerError::Entry { .. }
            | LayerError::NotTar(_)
            | LayerError::Unmapped { .. }) => other,
        })
    })?;
    // Making what is in a directory changes its time, so times come last.
    for path in std::mem::take(&mut target.implicit) {
        target.set_directory_time(&path, Timestamp::default())?;
    }
    for listed in summary.listing.iter_back() {
        if let Change::Put(entry) = &listed.change
            && entry.is_directory()
        {
            target.set_directory_time(&entry.path, entry.meta.mtime)?;
        }
    }
    Ok(summary)
}

struct Target<'a> {
    parents: Parents<'a>,
    marks: OverlayMarks,
    ownership: Ownership,
    implicit: Vec<TreePath>,
}

impl Target<'_> {
    fn apply(&mut self, change: &Change, content: &mut dyn Read) -> Result<(), LayerError> {
        match change {
            Change::Put(entry) if entry.path.is_root() => {
                let root = self.parents.open(&entry.path)?;
                self.set_meta(&root, entry)
            }
            Change::Put(entry) => self.put(entry, content),
            Change::Whiteout(path) => Ok(self.whiteout(path)?),
            Change::Opaque(path) => {
                let directory = self.enter(path)?;
                Ok(self.mark_opaque(directory.as_fd())?)
            }
        }
    }

    fn put(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), LayerError> {
        let parent = self.enter(&entry.path.parent().unwrap_or_default())?;
        let name = entry.path.file_name().expect("the root is handled before");
        let there = stat(&parent, name)?;
        if let (Some(there), Kind::Directory) = (&there, &entry.kind)
            && is_directory(there)
        {
            let directory = walk::open_child(parent.as_fd(), name)?;
            return self.set_meta(&directory, entry);
        }
        if there.is_some() {
            walk::remove(parent.as_fd(), name)?;
        }
        match &entry.kind {
            Kind::Directory => {
                let directory = make_directory(parent.as_fd(), name)?;
                if there.as_ref().is_some_and(is_whiteout) {
                    self.mark_opaque(directory.as_fd())?;
                }
                self.set_meta(&directory, entry)?;
            }
            Kind::File { .. } => self.put_file(&parent, entry, content)?,
            Kind::Hardlink { target } => {
                let (from, old) = self.parents.of(target)?;
                fs::linkat(&from, old, &parent, name, AtFlags::empty()).map_err(io::Error::from)?;
            }
            Kind::Symlink { target } => {
                fs::symlinkat(target.as_slice(), &parent, name).map_err(io::Error::from)?;
                self.set_meta_at(&parent, name, entry)?;
            }
            Kind::Fifo => self.put_node(&parent, entry, FileType::Fifo, (0, 0))?,
            Kind::CharDevice { major, minor } => {
                self.put_node(&parent, entry, FileType::CharacterDevice, (*major, *minor))?;
            }
            Kind::BlockDevice { major, minor } => {
                self.put_node(&parent, entry, FileType::BlockDevice, (*major, *minor))?;
            }
        }
        Ok(())
    }

    fn put_file(
        &self,
        parent: &OwnedFd,
        entry: &Entry,
        content: &mut dyn Read,
    ) -> Result<(), LayerError> {
        let name = entry.path.file_name().expect("a file has a name");
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(made.map_err(io::Error::from)?);
        copy(content, &mut file, entry.size())?;
        let file = OwnedFd::from(file);
        self.set_meta(&file, entry)?;
        Ok(fs::futimens(&file, &times(entry.meta.mtime)).map_err(io::Error::from)?)
    }

    fn put_node(
        &self,
        parent: &OwnedFd,
        entry: &Entry,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), LayerError> {
        let name = entry.path.file_name().expect("a node has a name");
        let made = fs::mknodat(parent, name, kind, Mode::RUSR, fs::makedev(major, minor));
        match made {
            // No user namespace may make devices, whatever else it may do. Processes get a /dev of
            // their own, and the layer's listing and tar still say what this is.
            Err(Errno::PERM) if kind != FileType::Fifo => {
                fs::mknodat(parent, name, FileType::RegularFile, Mode::RUSR, 0)
            }
            made => made,
        }
        .map_err(io::Error::from)?;
        self.set_meta_at(parent, name, entry)
    }

    fn whiteout(&mut self, path: &TreePath) -> io::Result<()> {
        let parent = self.enter(&path.parent().unwrap_or_default())?;
        let name = path.file_name().expect("the reader refuses a whiteout of the root");
        match stat(&parent, name)? {
            // Only lower layers are meant: what this layer has stays, and hides what is below.
            Some(there) if is_directory(&there) => {
                let directory = walk::open_child(parent.as_fd(), name)?;
                self.mark_opaque(directory.as_fd())?;
            }
            Some(_) => {}
            None => {
                fs::mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0)?;
            }
        }
        Ok(())
    }

    /// A descriptor of a directory, which is made when it is not there.
    fn enter(&mut self, path: &TreePath) -> io::Result<Rc<OwnedFd>> {
        let Self { parents, marks, implicit, .. } = self;
        parents.open_by(path, |parent, name, path| {
            let (directory, presence) = step(parent, name, *marks)?;
            if presence == Presence::Made {
                implicit.push(path.clone());
            }
            Ok(directory)
        })
    }

    fn mark_opaque(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        mark_opaque(directory, self.marks)
    }

    /// Owner first: changing it drops set-id bits and file capabilities.
    fn set_meta(&self, file: &OwnedFd, entry: &Entry) -> Result<(), LayerError> {
        let (uid, gid) = owner(&entry.meta);
        self.owned(fs::fchown(file, Some(uid), Some(gid)), entry)?;
        Ok(self.set_mode(file, &entry.meta)?)
    }

    fn set_mode(&self, file: &OwnedFd, meta: &Meta) -> io::Result<()> {
        self.tolerate(fs::fchmod(file, Mode::from_raw_mode(meta.mode)))?;
        for (name, value) in meta.xattrs.iter().filter(|(name, _)| attributes::is_applied(name)) {
            let set = fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
            self.tolerate_attribute(set)?;
        }
        Ok(())
    }

    /// The same for what cannot be opened without consequences: links, pipes and devices.
    fn set_meta_at(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let ((uid, gid), flags) = (owner(&entry.meta), AtFlags::SYMLINK_NOFOLLOW);
        self.owned(fs::chownat(parent, name, Some(uid), Some(gid), flags), entry)?;
        Ok(self.set_mode_at(parent, name, entry)?)
    }

    fn set_mode_at(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
        let (meta, flags) = (&entry.meta, AtFlags::SYMLINK_NOFOLLOW);
        if !matches!(entry.kind, Kind::Symlink { .. }) {
            // The node was made just now, so the name is no link.
            let mode = Mode::from_raw_mode(meta.mode);
            self.tolerate(fs::chmodat(parent, name, mode, AtFlags::empty()))?;
        }
        if meta.xattrs.keys().any(|name| attributes::is_applied(name)) {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let node = fs::openat(parent, name, flags, Mode::empty())?;
            let place = format!("/proc/self/fd/{}", node.as_raw_fd());
            for (name, value) in meta.xattrs.iter().filter(|(name, _)| attributes::is_applied(name))
            {
                let set = fs::setxattr(&place, name.as_slice(), value, XattrFlags::empty());
                self.tolerate_attribute(set)?;
            }
        }
        Ok(fs::utimensat(parent, name, &times(meta.mtime), flags)?)
    }

    fn set_directory_time(&mut self, path: &TreePath, mtime: Timestamp) -> io::Result<()> {
        match self.parents.open(path) {
            Ok(directory) => Ok(fs::futimens(&directory, &times(mtime))?),
            // Something else took its place later in the layer.
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The result of giving an entry to its owner.
    fn owned(&self, result: rustix::io::Result<()>, entry: &Entry) -> Result<(), LayerError> {
        if (&result, self.ownership) == (&Err(Errno::INVAL), Ownership::Exact) {
            return Err(LayerError::unmapped(entry));
        }
        Ok(self.tolerate(result)?)
    }

    fn tolerate(&self, result: rustix::io::Result<()>) -> io::Result<()> {
        match (result, self.ownership) {
            (Err(Errno::PERM | Errno::INVAL), Ownership::Own) => Ok(()),
            (result, _) => Ok(result?),
        }
    }

    /// Some file systems have no attributes, and some types take none; Docker goes on as well.
    fn tolerate_attribute(&self, result: rustix::io::Result<()>) -> io::Result<()> {
        match result {
            Err(Errno::NOTSUP) => Ok(()),
            other => self.tolerate(other),
        }
    }
}

/// Whether a directory on the way was there already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    There,
    Made,
}

/// Opens a directory on the way, which is made when it is not there.
fn step(
    parent: BorrowedFd<'_>,
    name: &[u8],
    marks: OverlayMarks,
) -> io::Result<(OwnedFd, Presence)> {
    let there = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => None,
        other => Some(other?),
    };
    let hidden = there.as_ref().is_some_and(is_whiteout);
    if there.is_some() && !hidden {
        return Ok((walk::open_child(parent, name)?, Presence::There));
    }
    if hidden {
        fs::unlinkat(parent, name, AtFlags::empty())?;
    }
    let directory = make_directory(parent, name)?;
    fs::fchmod(&directory, Mode::from_raw_mode(IMPLICIT_MODE))?;
    if hidden {
        mark_opaque(directory.as_fd(), marks)?;
    }
    Ok((directory, Presence::Made))
}

fn mark_opaque(directory: BorrowedFd<'_>, marks: OverlayMarks) -> io::Result<()> {
    Ok(fs::fsetxattr(directory, marks.opaque(), b"y", XattrFlags::empty())?)
}

fn owner(meta: &Meta) -> (Uid, Gid) {
    (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid))
}

fn make_directory(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    fs::mkdirat(parent, name, Mode::RWXU)?;
    walk::open_child(parent, name)
}

fn stat(parent: &OwnedFd, name: &[u8]) -> io::Result<Option<Stat>> {
    match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        other => Ok(Some(other?)),
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_gone(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whole seconds: other programs see the same times whatever unpacked the layer.
pub(super) fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn copy(content: &mut dyn Read, file: &mut File, size: u64) -> io::Result<()> {
    use io::Write as _;
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(COPY_BYTES).clamp(1, COPY_BYTES)];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(()),
            count => file.write_all(&buffer[..count])?,
        }
    }
}
