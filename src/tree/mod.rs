//! File trees as values: a path that cannot escape, entries, and the changes that a layer is made of.
//!
//! Knows nothing of tar, directories or overlay; `layer` turns these values into bytes and files.

mod entry;
mod map;
pub mod packed;
mod path;

pub use entry::{Change, Entry, Kind, Meta, Timestamp, Xattrs};
pub use map::PathMap;
pub use path::{ParseTreePathError, TreePath};
