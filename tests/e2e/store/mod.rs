//! The store as a whole: damage and repair (F17), many processes (F06, F07, F21), formats (F22), snapshots, backups, pins, caps.

mod backups;
mod crowd;
mod damage;
mod formats;
mod snapshots;
mod waits;

use std::{fs, path::Path};

use super::support::{Done, User};

/// A copy of a folder, as it is.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let from = from.join(".");
    Done::of(std::process::Command::new("cp").arg("-a").arg(from).arg(to)).ok();
}

/// What `images` lists, as `NAME ID` lines.
fn listed(user: &User) -> String {
    user.run(["images", "--no-trunc", "--format", "{{.Image}} {{.ID}}"]).ok()
}

/// Builds a Dockerfile of one text in the work folder, without any base: a small store stays small.
fn build(user: &User, dockerfile: &str, name: &str) {
    user.write("Dockerfile", dockerfile);
    user.run(["build", "-q", "-t", name, "."]).ok();
}
