//! The upper directory of an overlay → a layer: what a process changed.
//!
//! Reads by descriptor and never through a link, since a process that is not trusted filled the
//! directory. Knows no stack of layers; it is told what stands below.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::File,
    io::{self, Read, Seek as _, Write},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    vec,
};

use rustix::{
    fs::{self as fs, AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::{
    LayerError, LayerSummary, LayerWriter, Ownership, attributes,
    compare::is_same_content,
    snapshot::Surplus,
    walk::{self, Parents},
    write::{OPAQUE, WHITEOUT},
};
use crate::tree::{Entry, Kind, Meta, ParseTreePathError, Timestamp, TreePath, Xattrs};

/// Attributes that say, with the value `y`, that a directory hides what is below it.
pub(super) const OPAQUE_ATTRIBUTES: [&[u8]; 3] =
    [b"trusted.overlay.opaque", b"user.overlay.opaque", b"user.fuseoverlayfs.opaque"];

/// Attributes of overlay features that a layer cannot express; the sandbox mounts without them.
const REFERRING_ATTRIBUTES: [&[u8]; 4] = [
    b"trusted.overlay.redirect",
    b"trusted.overlay.metacopy",
    b"user.overlay.redirect",
    b"user.overlay.metacopy",
];

/// What stands below the upper directory: the layers that the process ran on.
pub trait Below {
    /// What stands at a path, links not followed; a hard link as the file that it is.
    fn entry(&self, path: &TreePath) -> Option<Entry>;

    /// Names in a directory; empty for anything else.
    fn names(&self, directory: &TreePath) -> Vec<Vec<u8>>;

    /// Opens the content of a regular file.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn open(&self, path: &TreePath) -> io::Result<Box<dyn Read + '_>>;
}

/// What a directory with the changes of a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpperForm {
    /// What changed, with marks for what is gone: the upper directory of an overlay.
    Changes,
    /// Everything: the process ran on a copy of its root file system.
    Whole,
}

/// A directory with the changes of a process.
#[derive(Clone, Copy)]
pub struct Upper<'a> {
    /// The directory.
    pub directory: BorrowedFd<'a>,
    /// What it holds.
    pub form: UpperForm,
    /// With [`Ownership::Own`], what was there before keeps the owner that the layers below record: the
    /// directory cannot tell.
    pub ownership: Ownership,
}

/// Writes the upper directory of an overlay as a layer: the change set of whatever ran on it.
///
/// As BuildKit's differ does, what differs from `below` is written, not what was touched: a file that
/// overlay copied up and that is as before is left out, as is a directory of which this holds for all that is
/// in it; one that was removed and made again takes away name by name what it had. So both forms
/// of the directory make the same layer. Whiteouts of nothing are dropped. Sockets are left out. Attributes of overlay itself, `user.*` and
/// `security.selinux` are left out; `security.capability` v3 is written as v2. Hard links within the
/// directory are kept. What is left out is told, too: the directory is no snapshot of the layer while it has that.
///
/// # Errors
///
/// When reading the directory or writing fails, or a file changes while it is read.
pub fn write_upper<W: Write>(
    Upper { directory: upper, form, ownership }: Upper<'_>,
    below: &dyn Below,
    out: LayerWriter<W>,
) -> Result<(W, LayerSummary, Surplus), LayerError> {
    let (linked, held, surplus) = (HashMap::new(), Vec::new(), Surplus::default());
    let mut walk = Walk { below, ownership, out, linked, held, surplus, written: 0 };
    let merge = match form {
        UpperForm::Changes => Merge::Whole,
        UpperForm::Whole => Merge::Hidden,
    };
    let mut parents = Parents::new(upper);
    let root = parents.open(&TreePath::root())?;
    // An explicit stack: trees may be deeper than ours.
    let mut pending = vec![walk.begin(TreePath::root(), &root, merge)?];
    while let Some(Begun { path: directory, names, merge }) = pending.last_mut() {
        let merge = *merge;
        let Some((name, presence)) = names.next() else {
            let directory = directory.clone();
            pending.pop();
            let above = pending.last().map_or(Merge::Whole, |above| above.merge);
            walk.leave(directory, above);
            continue;
        };
        let directory = directory.clone();
        if presence == Presence::Gone {
            let path = directory.child(name.to_bytes());
            walk.remove(&path.map_err(|error| unnamed(name.to_bytes(), &error))?)?;
            continue;
        }
        let parent = parents.open(&directory)?;
        let written = walk.written;
        match walk
            .visit(&parent, &directory, &name)
            .map_err(|error| named(&directory, &name, error))?
        {
            None => {
                if walk.written == written {
                    let path = directory.child(name.to_bytes());
                    walk.leave_out(path.map_err(|error| unnamed(name.to_bytes(), &error))?, merge);
                }
            }
            Some((path, child)) => {
                let child = parents.enter(path.clone(), child);
                pending.push(walk.begin(path, &child, merge)?);
            }
        }
    }
    let (out, summary) = walk.out.finish()?;
    Ok((out, summary, walk.surplus))
}

/// Whether what is below a directory shines through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Merge {
    Whole,
    Hidden,
}

/// Whether a name is in the upper directory, or only below one that hides it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Presence {
    There,
    Gone,
}

/// A directory of which some names are still to come.
struct Begun {
    path: TreePath,
    names: vec::IntoIter<(CString, Presence)>,
    merge: Merge,
}

struct Walk<'a, W: Write> {
    below: &'a dyn Below,
    ownership: Ownership,
    out: LayerWriter<W>,
    /// First name of every file that has several: (device, inode) → path.
    linked: HashMap<(u64, u64), TreePath>,
    /// Directories above the present place that are as below, not written until something in them is.
    held: Vec<Entry>,
    surplus: Surplus,
    /// Number of changes that were written.
    written: u64,
}

impl<W: Write> Walk<'_, W> {
    /// Reads a directory's names, and of one that hides what is below the names that are gone.
    fn begin(
        &mut self,
        path: TreePath,
        directory: &OwnedFd,
        above: Merge,
    ) -> Result<Begun, LayerError> {
        let names = walk::names(directory.as_fd())?;
        let has = |name: &[u8]| names.binary_search_by(|known| known.as_bytes().cmp(name)).is_ok();
        let is_marked = is_opaque(directory)?;
        let hides = above == Merge::Hidden || has(OPAQUE) || is_marked;
        let merge = if hides { Merge::Hidden } else { Merge::Whole };
        let hidden = if hides { self.below.names(&path) } else { Vec::new() };
        let gone = hidden.into_iter().filter(|name| {
            let marked = has(&[WHITEOUT, name].concat());
            !has(name) && !marked
        });
        // A name has no zero byte.
        let gone: Vec<CString> = gone.filter_map(|name| CString::new(name).ok()).collect();
        self.surplus.hides |= !gone.is_empty();
        let there = names.into_iter().map(|name| (name, Presence::There));
        let gone = gone.into_iter().map(|name| (name, Presence::Gone));
        let mut names: Vec<_> = there.chain(gone).collect();
        if is_marked {
            self.surplus.marks.push(path.clone());
        }
        // A mark by name stands where the name that it hides would.
        names.sort_by(|(one, _), (other, _)| meant(one).cmp(meant(other)));
        Ok(Begun { path, names: names.into_iter(), merge })
    }

    /// Writes what stands at a name; a directory to descend into is handed back.
    fn visit(
        &mut self,
        parent: &OwnedFd,
        directory: &TreePath,
        name: &CString,
    ) -> Result<Option<(TreePath, OwnedFd)>, LayerError> {
        let name = name.to_bytes();
        let path = directory.child(name).map_err(|error| unnamed(name, &error))?;
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if name.starts_with(WHITEOUT) => {
                return self.marked_by_name(directory, name).map(|()| None);
            }
            FileType::RegularFile => return self.put_file(parent, path, &stat).map(|()| None),
            FileType::Directory => return self.put_directory(parent, path).map(Some),
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                return self.whiteout(&path).map(|()| None);
            }
            FileType::Symlink => Kind::Symlink {
                target: fs::readlinkat(parent, name, Vec::new())
                    .map_err(io::Error::from)?
                    .into_bytes(),
            },
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => {
                let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
                Kind::CharDevice { major, minor }
            }
            FileType::BlockDevice => {
                let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
                Kind::BlockDevice { major, minor }
            }
            // A socket is nothing without the process that made it.
            FileType::Socket | FileType::Unknown => return Ok(None),
        };
        if let Some(target) = self.first_name(&stat, &path) {
            self.put_link(path, target, &stat)?;
            return Ok(None);
        }
        let meta = Meta { xattrs: node_attributes(parent, name)?, ..meta(&stat) };
        let entry = self.owned(Entry { path, kind, meta });
        // On a copy, a link or a pipe that nobody touched.
        if self.below.entry(&entry.path).is_some_and(|before| is_like(&before, &entry)) {
            return Ok(None);
        }
        self.put(&entry, &mut io::empty())?;
        Ok(None)
    }

    /// An entry with the owner that is recorded below, where the directory cannot tell it.
    fn owned(&self, mut entry: Entry) -> Entry {
        let before = match self.ownership {
            Ownership::Exact => None,
            Ownership::Own => self.below.entry(&entry.path),
        };
        if let Some(before) = before {
            (entry.meta.uid, entry.meta.gid) = (before.meta.uid, before.meta.gid);
        }
        entry
    }

    /// Writes what was held back, then the entry.
    fn put(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), LayerError> {
        self.release()?;
        self.written += 1;
        self.out.put(entry, content)
    }

    fn remove(&mut self, path: &TreePath) -> Result<(), LayerError> {
        self.release()?;
        self.written += 1;
        self.out.whiteout(path)
    }

    fn release(&mut self) -> Result<(), LayerError> {
        for directory in std::mem::take(&mut self.held) {
            self.out.put(&directory, &mut io::empty())?;
        }
        Ok(())
    }

    /// A directory is done: when it is held still, nothing in it has changed.
    fn leave(&mut self, path: TreePath, above: Merge) {
        if self.held.last().is_some_and(|held| held.path == path) {
            self.held.pop();
            self.leave_out(path, above);
        }
    }

    /// Nothing was written for what stands at a path. Where what is below is hidden, it cannot just be taken away.
    fn leave_out(&mut self, path: TreePath, merge: Merge) {
        match merge {
            Merge::Whole => self.surplus.left_out.push(path),
            Merge::Hidden => self.surplus.hides = true,
        }
    }

    fn put_directory(
        &mut self,
        parent: &OwnedFd,
        path: TreePath,
    ) -> Result<(TreePath, OwnedFd), LayerError> {
        let name = path.file_name().expect("a child has a name");
        let directory = walk::open_child(parent.as_fd(), name)?;
        let stat = fs::fstat(&directory).map_err(io::Error::from)?;
        let meta = Meta { xattrs: file_attributes(&directory, &path)?, ..meta(&stat) };
        let entry = self.owned(Entry::directory(path.clone(), meta));
        if self.below.entry(&path).is_some_and(|before| is_like(&before, &entry)) {
            self.held.push(entry);
        } else {
            self.put(&entry, &mut io::empty())?;
        }
        Ok((path, directory))
    }

    fn put_file(
        &mut self,
        parent: &OwnedFd,
        path: TreePath,
        seen: &Stat,
    ) -> Result<(), LayerError> {
        let name = path.file_name().expect("a child has a name");
        // A pipe that took the file's place must not block us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = fs::openat(parent, name, flags, Mode::empty()).map_err(io::Error::from)?;
        let before = fs::fstat(&file).map_err(io::Error::from)?;
        if (before.st_dev, before.st_ino) != (seen.st_dev, seen.st_ino) {
            return Err(changed(&path));
        }
        let xattrs = file_attributes(&file, &path)?;
        let size = u64::try_from(before.st_size).map_err(io::Error::other)?;
        let entry =
            Entry { kind: Kind::File { size }, meta: Meta { xattrs, ..meta(&before) }, path };
        let entry = self.owned(entry);
        let mut file = File::from(file);
        if self.is_as_below(&entry, &mut file)? {
            return Ok(());
        }
        if let Some(target) = self.first_name(seen, &entry.path) {
            return self.put_link(entry.path, target, seen);
        }
        self.put(&entry, &mut file)?;
        let after = fs::fstat(&file).map_err(io::Error::from)?;
        if state(&before) == state(&after) { Ok(()) } else { Err(changed(&entry.path)) }
    }

    /// Whether overlay copied a file up of which nothing has changed since.
    fn is_as_below(&self, entry: &Entry, file: &mut File) -> Result<bool, LayerError> {
        let Some(before) = self.below.entry(&entry.path) else { return Ok(false) };
        let device = matches!(before.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. });
        if device && entry.size() == 0 {
            // Where no devices can be made, an empty file stands for one.
            return Ok(is_like(&Entry { kind: Kind::File { size: 0 }, ..before }, entry));
        }
        if !is_like(&before, entry) {
            return Ok(false);
        }
        let mut old = self.below.open(&entry.path)?;
        let same = is_same_content(&mut old, file)?;
        file.rewind()?;
        Ok(same)
    }

    fn put_link(
        &mut self,
        path: TreePath,
        target: TreePath,
        stat: &Stat,
    ) -> Result<(), LayerError> {
        let entry = Entry { path, kind: Kind::Hardlink { target }, meta: meta(stat) };
        self.put(&entry, &mut io::empty())
    }

    /// The name under which a file of several names was written before; else this becomes it.
    fn first_name(&mut self, stat: &Stat, path: &TreePath) -> Option<TreePath> {
        if stat.st_nlink < 2 {
            return None;
        }
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.linked.get(&inode) {
            return Some(first.clone());
        }
        self.linked.insert(inode, path.clone());
        None
    }

    fn whiteout(&mut self, path: &TreePath) -> Result<(), LayerError> {
        if self.below.entry(path).is_some() { self.remove(path) } else { Ok(()) }
    }

    /// fuse-overlayfs, where it may make no devices, marks by name as layers do.
    fn marked_by_name(&mut self, directory: &TreePath, name: &[u8]) -> Result<(), LayerError> {
        if name == OPAQUE {
            // Known since the directory was begun.
            return Ok(());
        }
        let hidden = name.strip_prefix(WHITEOUT).unwrap_or_default();
        match directory.child(hidden) {
            Ok(path) if path != *directory => self.whiteout(&path),
            _ => Err(LayerError::entry(name, "a whiteout of nothing that could be there")),
        }
    }
}

/// The name that a mark by name hides, or the name itself.
fn meant(name: &CString) -> &[u8] {
    let name = name.to_bytes();
    match name.strip_prefix(WHITEOUT) {
        Some(hidden) if name != OPAQUE => hidden,
        _ => name,
    }
}

/// Whether two entries say the same, to the second, of a file whose content may still differ.
fn is_like(before: &Entry, after: &Entry) -> bool {
    let (old, new) = (&before.meta, &after.meta);
    let travelling = old.xattrs.iter().filter(|(name, _)| attributes::is_exported(name));
    before.kind == after.kind
        && (old.mode, old.uid, old.gid) == (new.mode, new.uid, new.gid)
        && old.mtime.seconds == new.mtime.seconds
        && travelling.eq(new.xattrs.iter())
}

fn unnamed(name: &[u8], error: &ParseTreePathError) -> LayerError {
    LayerError::entry(name, error.to_string())
}

fn named(directory: &TreePath, name: &CString, error: LayerError) -> LayerError {
    match error {
        LayerError::Io(error) => {
            let path = [directory.as_bytes(), b"/", name.to_bytes()].concat();
            LayerError::at(path, &error)
        }
        other
        @ (LayerError::Entry { .. } | LayerError::NotTar(_) | LayerError::Unmapped { .. }) => other,
    }
}

fn changed(path: &TreePath) -> LayerError {
    LayerError::entry(path.as_bytes(), "it changed while it was read")
}

/// What differs when a file was written to.
fn state(stat: &Stat) -> (i64, i64, u64, i64, u64) {
    #[expect(clippy::useless_conversion, reason = "the fields' types differ between targets")]
    (
        stat.st_size,
        i64::from(stat.st_mtime),
        u64::from(stat.st_mtime_nsec),
        i64::from(stat.st_ctime),
        u64::from(stat.st_ctime_nsec),
    )
}

fn meta(stat: &Stat) -> Meta {
    Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp { seconds: stat.st_mtime, nanos: 0 },
        xattrs: Xattrs::new(),
    }
}

pub(super) fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    for name in OPAQUE_ATTRIBUTES {
        match fs::fgetxattr(directory, name, vec![0_u8; 2].as_mut_slice()) {
            Ok(1) => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Attributes of an open file or directory that belong into the layer.
fn file_attributes(file: &OwnedFd, path: &TreePath) -> Result<Xattrs, LayerError> {
    let mut xattrs = Xattrs::new();
    let list = sized(|buffer| fs::flistxattr(file, buffer))?;
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if REFERRING_ATTRIBUTES.contains(&name) {
            let reason =
                "overlay kept it as a reference (`redirect_dir` or `metacopy`); mount without them";
            return Err(LayerError::entry(path.as_bytes(), reason));
        }
        if attributes::is_exported(name) {
            let value = sized(|buffer| fs::fgetxattr(file, name, buffer))?;
            xattrs.insert(name.to_vec(), attributes::exported_value(name, value));
        }
    }
    Ok(xattrs)
}

/// The same for links, pipes and devices, which cannot be opened.
pub(super) fn node_attributes(parent: &OwnedFd, name: &[u8]) -> io::Result<Xattrs> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = fs::openat(parent, name, flags, Mode::empty())?;
    let place = format!("/proc/self/fd/{}", node.as_raw_fd());
    let mut xattrs = Xattrs::new();
    let list = sized(|buffer| fs::listxattr(&place, buffer))?;
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if attributes::is_exported(name) {
            let value = sized(|buffer| fs::getxattr(&place, name, buffer))?;
            xattrs.insert(name.to_vec(), attributes::exported_value(name, value));
        }
    }
    Ok(xattrs)
}

/// Calls with room for the largest answer that Linux gives when a small one does not do; file systems
/// without attributes have none.
fn sized(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    for size in [256, 64 << 10] {
        let mut buffer = vec![0; size];
        match call(&mut buffer) {
            Err(Errno::RANGE) if size == 256 => {}
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            count => {
                buffer.truncate(count?);
                return Ok(buffer);
            }
        }
    }
    Ok(Vec::new())
}
