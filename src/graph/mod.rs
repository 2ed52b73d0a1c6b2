//! The build graph: the waist between languages that describe a build and the machinery that does it.
//!
//! Pure values. Ops are listed inputs first, so that an op can only use earlier ones.

mod key;
mod op;

pub use key::{CacheKey, Component, Difference, KeyTree};
pub use op::{
    Chmod, CopySource, FileAction, FilesOp, MountKind, MountOp, Network, Op, OpGraph, OpId, OpNode,
    PipeFile, Place, RunOp, Security, Setting, Sharing, SourceRoot, Unpack,
};
