//! The tool as its users run it: the binary, real registries, real package tools, other programs as judges.
//!
//! `tests/run` installs what these tests need and makes the base images. No image registry has to be reached: what a
//! Dockerfile takes from docker.io is served by a mirror on loopback.

#![expect(clippy::unwrap_used, reason = "what fails here is a failed test")]

mod acceptance;
mod archives;
mod attacks;
mod cache;
mod contexts;
mod corpus;
mod depth;
mod environments;
mod epochs;
mod errors;
mod exact;
mod explain;
mod faults;
mod filesystems;
mod git;
mod hostile;
mod hosts;
mod internal;
mod kernels;
mod laziness;
mod locking;
mod mistakes;
mod mounts;
mod network;
mod output;
mod outputs;
mod overlap;
mod packages;
mod pins;
mod platforms;
mod projects;
mod publication;
mod reach;
mod readme;
mod registries;
mod repeat;
mod resources;
mod shell;
mod splits;
mod ssh;
mod sshd;
mod store;
mod strict;
mod support;
mod userns;
mod verify;
mod watching;
