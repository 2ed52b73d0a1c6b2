//! Version 2 gives the controllers of a group to groups below it only while no process is in the group itself.
//!
//! So this program, when it is alone in its group, moves into one of its own below it, the seat; and back at its end.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::{Controller, Hierarchies, has_word, may_write, name, open_to_write};

/// Last word of the seat's name, in the place of a number.
const SEAT: &str = "seat";

/// Where a group of ours may have to stand: `own`, unless that is our seat.
pub(super) fn above(own: PathBuf) -> PathBuf {
    match own.parent() {
        Some(parent) if is_seat(&own) => parent.to_owned(),
        _ => own,
    }
}

fn is_seat(group: &Path) -> bool {
    group.file_name().is_some_and(|last| last.to_str() == Some(name(SEAT).as_str()))
}

/// Whether a group's children have a controller, or may be given it.
pub(super) fn can_enable(folder: &Path, controller: Controller) -> bool {
    has_word(folder, "cgroup.controllers", controller)
        && may_write(folder)
        && (has_word(folder, "cgroup.subtree_control", controller)
            || is_root_group(folder)
            || only_ours(folder))
}

/// Whether a group could be used, were it not for other processes in it.
pub(super) fn is_shared(folder: &Path) -> bool {
    may_write(folder) && !is_root_group(folder) && !only_ours(folder)
}

fn is_root_group(folder: &Path) -> bool {
    // The real root has no such file.
    !folder.join("cgroup.type").exists()
}

fn only_ours(folder: &Path) -> bool {
    let us = std::process::id().to_string();
    members(folder).is_ok_and(|members| members.lines().all(|member| member == us))
}

/// Numbers of the processes in a group, one a line.
fn members(group: &Path) -> io::Result<String> {
    fs::read_to_string(group.join("cgroup.procs"))
}

/// Gives a group's children the controllers that it has; when we are all that is in it, we move out of the way first.
/// What does not work is found out by looking at what the children have.
pub(super) fn enable(parent: &Path) {
    let missing = || -> Vec<Controller> {
        let lacks = |one: &Controller| {
            has_word(parent, "cgroup.controllers", *one)
                && !has_word(parent, "cgroup.subtree_control", *one)
        };
        Controller::ALL.into_iter().filter(lacks).collect()
    };
    if missing().is_empty() || !may_write(parent) {
        return;
    }
    // Steps that begin at once must not meet a seat that is half taken.
    let Ok(turn) = fs::File::open(parent).and_then(|folder| folder.lock().map(|()| folder)) else {
        return;
    };
    // The kernel would take `+pids` and `+cpu` with us in the group, and then let nobody into the groups below it: to
    // it, they are to hold threads.
    let empty = || is_root_group(parent) || members(parent).is_ok_and(|members| members.is_empty());
    if empty() || only_ours(parent) && sit(parent).is_ok() && empty() {
        // One by one: who is given two of them is not to lose both for the third.
        missing().into_iter().for_each(|one| drop(tell(parent, '+', one)));
    }
    drop(turn);
}

fn tell(parent: &Path, sign: char, controller: Controller) -> io::Result<()> {
    let file = open_to_write(&parent.join("cgroup.subtree_control"))?;
    fs::File::from(file).write_all(format!("{sign}{}", controller.name()).as_bytes())
}

fn join(group: &Path) -> io::Result<()> {
    fs::File::from(open_to_write(&group.join("cgroup.procs"))?).write_all(b"0")
}

fn sit(parent: &Path) -> io::Result<()> {
    let seat = parent.join(name(SEAT));
    match fs::create_dir(&seat) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    join(&seat)
}

/// See [`crate::sandbox::leave`].
pub(in crate::sandbox) fn leave() {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if !groups.contains(SEAT) {
        return;
    }
    let Some(v2) = Hierarchies::found().v2 else { return };
    let seat = v2.mount.join(&v2.own);
    if !is_seat(&seat) {
        return;
    }
    let parent = above(seat.clone());
    // An error leaves the seat: it is removed by the next start.
    for controller in Controller::ALL {
        if has_word(&parent, "cgroup.subtree_control", controller) {
            drop(tell(&parent, '-', controller));
        }
    }
    if join(&parent).is_ok() {
        drop(fs::remove_dir(&seat));
    }
}
