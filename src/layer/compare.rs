//! A snapshot held against its layer: every name, every byte, and what is said of them. Changes nothing.
//!
//! Steps as `unpack` does, by descriptor and never through a link. Knows no store.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    vec,
};

use rustix::fs::{self as fs, AtFlags, FileType, Mode, OFlags, Stat};

use super::{
    LayerError, Listing, Ownership, attributes,
    compress::fill,
    printable, read_layer, unpack,
    upper::{is_opaque, node_attributes},
    walk::{self, Parents},
};
use crate::tree::{Change, Entry, Kind, Meta, TreePath, Xattrs};

/// Bytes that are compared at once.
const PIECE_BYTES: usize = 64 << 10;

/// Bits of a mode that a process with a single id can set on all that it makes.
const OWN_MODE_BITS: u32 = 0o777;

/// Where a snapshot is not what its layer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first path, fit for a terminal.
    pub path: String,
    /// What differs there.
    pub what: &'static str,
}

/// Reads a plain tar and the directory that it was unpacked into, and answers where they first differ. Owners are
/// compared with [`Ownership::Exact`] only. What no layer has is not looked at: `user.*` attributes, labels, overlay's own
/// book-keeping, fractions of seconds; nor are times beyond 32 bits, which not every file system has.
///
/// # Errors
///
/// As [`read_layer`]. What cannot be read of the directory is a difference.
pub fn compare(
    tar: impl Read,
    directory: BorrowedFd<'_>,
    ownership: Ownership,
) -> Result<Option<Difference>, LayerError> {
    let (mut altered, mut parents) = (BTreeSet::new(), Parents::new(directory));
    let summary = read_layer(tar, |change, content| {
        if let Change::Put(Entry { path, kind: Kind::File { .. }, .. }) = change {
            // Of several entries of one name, the last one counts.
            if has_content(&mut parents, path, content).unwrap_or(false) {
                altered.remove(path);
            } else {
                altered.insert(path.clone());
            }
        }
        Ok(())
    })?;
    let listing = &summary.listing;
    let comparison = Comparison { directory, listing, altered, ownership };
    let found = comparison.walk().unwrap_or_else(|(path, _)| Some((path, UNREADABLE)));
    Ok(found.map(|(path, what)| Difference { path: printable(&path.to_string()), what }))
}

const UNREADABLE: &str = "cannot be read";

/// A path, and what is wrong with it.
type Found = Option<(TreePath, &'static str)>;

fn has_content(
    parents: &mut Parents<'_>,
    path: &TreePath,
    content: &mut dyn Read,
) -> io::Result<bool> {
    // A pipe that took the file's place must not block us.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let (parent, name) = parents.of(path)?;
    let mut file = File::from(fs::openat(&parent, name, flags, Mode::empty())?);
    Ok(file.metadata()?.is_file() && is_same_content(content, &mut file)?)
}

struct Comparison<'a> {
    directory: BorrowedFd<'a>,
    listing: &'a Listing,
    /// Files whose bytes are others.
    altered: BTreeSet<TreePath>,
    ownership: Ownership,
}

/// What a layer says about a path.
enum Said {
    Nothing,
    Gone,
    /// A directory that has no entry, only something in it.
    Implied,
    Put(Entry),
}

impl Comparison<'_> {
    /// Goes through the whole directory; an error comes with its place.
    fn walk(&self) -> Result<Found, (TreePath, io::Error)> {
        let mut met = 0;
        let (root, mut parents) = (TreePath::root(), Parents::new(self.directory));
        let names = parents.open(&root).and_then(|opened| self.enter(&root, &opened));
        // An explicit stack: trees may be deeper than ours.
        let mut pending = match names.map_err(|error| (root.clone(), error))? {
            Ok(names) => vec![(root, names)],
            Err(what) => return Ok(Some((root, what))),
        };
        while let Some((directory, names)) = pending.last_mut() {
            let Some(name) = names.next() else {
                pending.pop();
                continue;
            };
            let failed = |error: io::Error| (directory.clone(), error);
            let path = directory.child(name.to_bytes()).map_err(|e| failed(io::Error::other(e)))?;
            let parent = parents.open(directory).map_err(failed)?;
            let seen = self.look(&parent, &path).map_err(|error| (path.clone(), error))?;
            match seen {
                Err(what) => return Ok(Some((path, what))),
                Ok(Seen { said, below: None }) => met += said,
                Ok(Seen { said, below: Some((names, opened)) }) => {
                    met += said;
                    parents.enter(path.clone(), opened);
                    pending.push((path, names));
                }
            }
        }
        Ok(self.missing(met))
    }

    /// The names in a directory, or what is wrong with it.
    fn enter(
        &self,
        path: &TreePath,
        opened: &OwnedFd,
    ) -> io::Result<Result<vec::IntoIter<CString>, &'static str>> {
        if is_opaque(opened)? != self.listing.is_opaque(path) {
            return Ok(Err("hides what is below it, or does not"));
        }
        Ok(Ok(walk::names(opened.as_fd())?.into_iter()))
    }

    /// Holds what stands at a path against the layer.
    fn look(&self, parent: &OwnedFd, path: &TreePath) -> io::Result<Result<Seen, &'static str>> {
        let name = path.file_name().unwrap_or_default();
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let said = self.said(path);
        let wrong = match &said {
            Said::Nothing => Some("is not in the layer"),
            Said::Gone => (!unpack::is_whiteout(&stat)).then_some("is there, and should not be"),
            Said::Implied => (!is_directory).then_some("is no directory"),
            Said::Put(entry) => self.differs(parent, entry, &stat)?,
        };
        if let Some(wrong) = wrong {
            return Ok(Err(wrong));
        }
        let said = usize::from(self.listing.exactly(path).next().is_some());
        if !is_directory {
            return Ok(Ok(Seen { said, below: None }));
        }
        let opened = walk::open_child(parent.as_fd(), name)?;
        let names = self.enter(path, &opened)?;
        Ok(names.map(|names| Seen { said, below: Some((names, opened)) }))
    }

    fn said(&self, path: &TreePath) -> Said {
        let mut exactly = self.listing.exactly(path);
        let implied = exactly.any(|listed| matches!(listed.change, Change::Opaque(_)))
            || self.listing.below(path).next().is_some();
        match self.listing.at(path).map(|listed| listed.change) {
            Some(Change::Put(entry)) => Said::Put(entry),
            _ if implied => Said::Implied,
            Some(_) => Said::Gone,
            None => Said::Nothing,
        }
    }

    fn differs(
        &self,
        parent: &OwnedFd,
        entry: &Entry,
        stat: &Stat,
    ) -> io::Result<Option<&'static str>> {
        let name = entry.path.file_name().unwrap_or_default();
        let kind = FileType::from_raw_mode(stat.st_mode);
        // Where no devices can be made, an empty file stands for one.
        let stands = kind == FileType::RegularFile && stat.st_size == 0;
        let device =
            |of, major, minor| stands || kind == of && stat.st_rdev == fs::makedev(major, minor);
        let is_of_kind = match &entry.kind {
            Kind::Hardlink { target } => {
                let first =
                    walk::open_beneath(self.directory, target, OFlags::PATH | OFlags::NOFOLLOW)?;
                let first = fs::fstat(&first)?;
                let is_same = (first.st_dev, first.st_ino) == (stat.st_dev, stat.st_ino);
                return Ok((!is_same).then_some("is not the same file as its other name"));
            }
            Kind::Directory => kind == FileType::Directory,
            Kind::File { .. } => kind == FileType::RegularFile,
            Kind::Symlink { target } => {
                kind == FileType::Symlink
                    && fs::readlinkat(parent, name, Vec::new())?.as_bytes() == target
            }
            Kind::Fifo => kind == FileType::Fifo,
            Kind::CharDevice { major, minor } => device(FileType::CharacterDevice, *major, *minor),
            Kind::BlockDevice { major, minor } => device(FileType::BlockDevice, *major, *minor),
        };
        if !is_of_kind {
            return Ok(Some("is something else"));
        }
        if self.altered.contains(&entry.path) {
            return Ok(Some("has other bytes"));
        }
        if let Some(what) = self.differs_in_meta(entry, stat) {
            return Ok(Some(what));
        }
        Ok((!self.has_attributes(parent, name, &entry.meta)?)
            .then_some("has other extended attributes"))
    }

    fn differs_in_meta(&self, entry: &Entry, stat: &Stat) -> Option<&'static str> {
        let (meta, is_exact) = (&entry.meta, self.ownership == Ownership::Exact);
        let bits = if is_exact { 0o7777 } else { OWN_MODE_BITS };
        let is_link = matches!(entry.kind, Kind::Symlink { .. });
        if !is_link && stat.st_mode & bits != meta.mode & bits {
            Some("has another mode")
        } else if is_exact && (stat.st_uid, stat.st_gid) != (meta.uid, meta.gid) {
            Some("has another owner")
        } else if i32::try_from(meta.mtime.seconds).is_ok() && stat.st_mtime != meta.mtime.seconds {
            Some("has another time")
        } else {
            None
        }
    }

    fn has_attributes(&self, parent: &OwnedFd, name: &[u8], meta: &Meta) -> io::Result<bool> {
        let wanted = meta.xattrs.iter().filter(|(name, _)| attributes::is_exported(name));
        let wanted: Xattrs = wanted
            .map(|(name, value)| (name.clone(), attributes::exported_value(name, value.clone())))
            .collect();
        let found = node_attributes(parent, name)?;
        // Where not everything can be set, none may be.
        Ok(found == wanted || self.ownership == Ownership::Own && found.is_empty())
    }

    /// The first path that the layer has and the directory does not, when fewer were met than there are.
    fn missing(&self, met: usize) -> Found {
        let distinct = || {
            let mut last = TreePath::root();
            let paths = self.listing.iter().map(|listed| listed.change.path().clone());
            paths.filter(move |path| std::mem::replace(&mut last, path.clone()) != *path)
        };
        if met == distinct().count() {
            return None;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let mut missing =
            distinct().filter(|path| walk::open_beneath(self.directory, path, flags).is_err());
        missing.next().map(|path| (path, "is missing"))
    }
}

/// What was found at a path: how many paths of the layer it is (one or none), and what is in it.
struct Seen {
    said: usize,
    below: Option<(vec::IntoIter<CString>, OwnedFd)>,
}

/// Compares two contents to their ends.
///
/// # Errors
///
/// When one of them cannot be read.
pub fn is_same_content(mut one: &mut dyn Read, mut other: &mut dyn Read) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    loop {
        let (a, b) = (fill(&mut one, &mut left)?, fill(&mut other, &mut right)?);
        if left[..a] != right[..b] {
            return Ok(false);
        }
        if a == 0 {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests;
