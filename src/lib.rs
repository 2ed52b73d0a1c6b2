//! Daemonless image builds and the pipelines around them.
//!
//! Modules are listed in layer order: a module may use the ones above it, never one below.
//! `tests/tidy.rs` holds the same table and fails the build when the two disagree.

// 0. Nouns: values and pure functions. No I/O, no async, no clock.
pub mod dag;
pub mod event;
pub mod limits;
pub mod oci;
pub mod remote;
pub mod tree;
// 1. Languages: text in, values out. Still pure.
pub mod dockerfile;
pub mod graph;
pub mod plan;
pub mod project;
// 2. Mechanisms: one resource each (bytes, disk, kernel, network). Blind to one another.
pub mod git;
pub mod layer;
pub mod registry;
pub mod sandbox;
pub mod ssh;
pub mod store;
pub mod trust;
// 3. Image work: mechanisms combined.
pub mod build;
pub mod image;
pub mod snapshot;
// 4. Running: pipelines over image work.
pub mod exec;
pub mod serve;
pub mod watch;
// 5. Telling: events to people and machines.
pub mod report;
