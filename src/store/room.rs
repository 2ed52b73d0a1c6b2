//! How much room a disk has.

use std::path::Path;

/// With less than this, hardly any file can grow, in bytes.
const FULL_BYTES: u64 = 64 << 10;
/// With fewer files than this, those that overlay makes and removes again may have been too many.
const FULL_FILES: u64 = 64;

/// Room on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Size, in bytes.
    pub bytes: u64,
    /// Bytes that this user may still write.
    pub bytes_free: u64,
    /// Files that there may be; zero where nobody counts them.
    pub files: u64,
    /// Files that may still be made.
    pub files_free: u64,
}

impl Room {
    /// Whether there is hardly any.
    #[must_use]
    pub const fn is_full(self) -> bool {
        self.bytes_free < FULL_BYTES || self.files > 0 && self.files_free < FULL_FILES
    }
}

/// Room on the file system of a path; `None` when the kernel does not tell.
#[must_use]
pub fn room(path: &Path) -> Option<Room> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(Room {
        bytes: found.f_blocks.saturating_mul(found.f_frsize),
        bytes_free: found.f_bavail.saturating_mul(found.f_frsize),
        files: found.f_files,
        files_free: found.f_favail,
    })
}
