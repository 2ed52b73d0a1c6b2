//! The directory of a process's changes becomes the snapshot of its layer: what unpacking the layer would make.
//!
//! A snapshot is used wherever its layer is, on other layers too. So it must say what the layer says and no more: what a
//! process touched and left as it was would hide what another base has there.

use std::{io, os::fd::BorrowedFd};

use rustix::{
    fs::{self as fs, AtFlags},
    io::Errno,
};

use super::{Listing, unpack::times, upper::OPAQUE_ATTRIBUTES, walk::Parents};
use crate::tree::{Change, TreePath};

/// What a directory holds that its layer does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surplus {
    /// What stands there and is as below, or in no layer; what is in a directory comes before it.
    pub(super) left_out: Vec<TreePath>,
    /// Directories with the mark of hiding what is below, which the layer says by names, if at all.
    pub(super) marks: Vec<TreePath>,
    /// Whether such a mark hides something that is there for the layer, or names one by one.
    pub(super) hides: bool,
}

/// Whether a directory became the snapshot of its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is what [`unpack`](super::unpack) would make.
    Snapshot,
    /// It cannot become it; the layer has to be unpacked when it is needed.
    Other,
}

/// Takes away what the layer of `listing` does not say, and gives everything the time that it records.
///
/// # Errors
///
/// When something is not there, or the file system refuses.
pub fn settle(
    directory: BorrowedFd<'_>,
    listing: &Listing,
    surplus: &Surplus,
) -> io::Result<Settled> {
    if surplus.hides {
        return Ok(Settled::Other);
    }
    let mut parents = Parents::new(directory);
    for path in &surplus.marks {
        let marked = parents.open(path)?;
        for name in OPAQUE_ATTRIBUTES {
            match fs::fremovexattr(&marked, name) {
                Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    for path in &surplus.left_out {
        let (parent, name) = parents.of(path)?;
        match fs::unlinkat(&parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?,
            removed => removed?,
        }
    }
    // What is in a directory comes before it, since making and removing changes its time.
    for listed in listing.iter_back() {
        let Change::Put(entry) = &listed.change else { continue };
        let times = times(entry.meta.mtime);
        if entry.path.is_root() {
            fs::futimens(directory, &times)?;
        } else {
            let (parent, name) = parents.of(&entry.path)?;
            fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    Ok(Settled::Snapshot)
}
