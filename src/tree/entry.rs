//! What stands at a path: type, owner, mode, times, attributes; and a change of it.

use std::collections::BTreeMap;

use super::TreePath;

/// Extended attributes by full name (`security.capability`), sorted.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A point in time since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

/// Everything about an entry but its place, type and content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u32,
    /// Numeric owner, as inside the image.
    pub uid: u32,
    /// Numeric group, as inside the image.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes that belong into the image.
    pub xattrs: Xattrs,
}

/// Type of an entry, with what only that type has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file of so many bytes.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// A symbolic link and its text.
    Symlink {
        /// The text, byte for byte; it may point anywhere.
        target: Vec<u8>,
    },
    /// Another name for a file of the same layer.
    Hardlink {
        /// The name that came first.
        target: TreePath,
    },
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// One thing in a tree, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Where it stands.
    pub path: TreePath,
    /// What it is.
    pub kind: Kind,
    /// Owner, mode, time, attributes.
    pub meta: Meta,
}

/// One line of a layer: something added or replaced, or something taken away.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// The entry stands here now. A directory over a directory keeps what is below.
    Put(Entry),
    /// Whatever lower layers had here is gone.
    Whiteout(TreePath),
    /// Whatever lower layers had below this directory is gone; the directory stays.
    Opaque(TreePath),
}

impl Entry {
    /// A directory.
    #[must_use]
    pub fn directory(path: TreePath, meta: Meta) -> Self {
        Self { path, kind: Kind::Directory, meta }
    }

    /// Whether this is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// Length of the content in bytes; zero for all but regular files.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self.kind {
            Kind::File { size } => size,
            Kind::Directory
            | Kind::Symlink { .. }
            | Kind::Hardlink { .. }
            | Kind::Fifo
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. } => 0,
        }
    }
}

impl Change {
    /// The path that the change is about.
    #[must_use]
    pub fn path(&self) -> &TreePath {
        match self {
            Self::Put(entry) => &entry.path,
            Self::Whiteout(path) | Self::Opaque(path) => path,
        }
    }
}
