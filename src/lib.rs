//! Daemonless image builds and the pipelines around them.
//!
//! Modules are listed in layer order: a module may use the ones above it, never one below.
//! `tests/tidy.rs` holds the same table and fails the build when the two disagree.
