//! Temporary folders of tests, below one folder of this process that goes with the last of them.
//!
//! Who is killed removes nothing: the next run finds the folder unlocked, and takes it and what is mounted in it away.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, Weak},
};

use tempfile::TempDir;

use super::{Done, Turn};

/// How the folders of processes begin. Short: paths of sockets end at 107 bytes.
const PREFIX: &str = "idpb-";

/// A folder that goes when it is dropped.
pub(crate) struct Folder {
    // In this order: what is in the process's folder goes first.
    inner: TempDir,
    _of_process: Arc<OfProcess>,
}

impl Folder {
    /// Where temporary files are.
    pub(crate) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// In another place, such as one in memory.
    pub(crate) fn below(place: &Path) -> Self {
        let of_process = OfProcess::in_place(place);
        let inner = tempfile::tempdir_in(of_process.folder.path()).unwrap();
        Self { inner, _of_process: of_process }
    }

    pub(crate) fn path(&self) -> &Path {
        self.inner.path()
    }
}

/// The folder of all folders that this process has in one place, locked as long as there are any.
struct OfProcess {
    folder: TempDir,
    _lock: File,
}

impl OfProcess {
    fn in_place(place: &Path) -> Arc<Self> {
        static KNOWN: Mutex<BTreeMap<PathBuf, Weak<OfProcess>>> = Mutex::new(BTreeMap::new());
        let mut known = KNOWN.lock().unwrap();
        if let Some(found) = known.get(place).and_then(Weak::upgrade) {
            return found;
        }
        // One that was made and is not locked yet looks abandoned.
        let _turn = Turn::wait("folders");
        sweep(place);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place).unwrap();
        let lock = File::open(folder.path()).unwrap();
        lock.lock().unwrap();
        let made = Arc::new(Self { folder, _lock: lock });
        known.insert(place.to_owned(), Arc::downgrade(&made));
        made
    }
}

/// Removes what processes have left that are gone, as far as it is ours to remove.
fn sweep(place: &Path) {
    let entries = fs::read_dir(place).unwrap().filter_map(Result::ok);
    for entry in
        entries.filter(|it| it.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()))
    {
        let Ok(folder) = File::open(entry.path()) else { continue };
        if folder.try_lock().is_ok() && unmount_below(&entry.path()) {
            // Another user's stays.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// Whether nothing is mounted below a folder any more, the innermost first.
fn unmount_below(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let places = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
    places.filter(|place| Path::new(place).starts_with(folder)).all(|place| {
        let unmounted = Command::new("umount").args(["--lazy", place]).output();
        unmounted.is_ok_and(|output| output.status.success())
    })
}

#[test]
fn what_a_killed_run_leaves_is_taken_by_the_next_one() {
    let place = Folder::new();
    let [dead, alive, foreign] = ["idpb-dead", "idpb-alive", "else"].map(|name| {
        let folder = place.path().join(name);
        fs::create_dir_all(folder.join("mounted")).unwrap();
        folder
    });
    let mut mount = Command::new("mount");
    Done::of(mount.args(["-t", "tmpfs", "tmpfs"]).arg(dead.join("mounted"))).ok();
    let lock = File::open(&alive).unwrap();
    lock.lock().unwrap();
    let next = Folder::below(place.path());
    assert_eq!([dead.exists(), alive.exists(), foreign.exists()], [false, true, true]);
    let own = next.path().parent().unwrap().to_owned();
    drop(next);
    assert!(!own.exists(), "the folder of the process goes with the last one in it");
}
