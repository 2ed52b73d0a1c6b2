//! File systems of a test's own: one in memory that can be made small, and one on a loop device whose power can be cut.
//!
//! Root may do this, and so the tests that use it run as root.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use crate::{
    place::folder_in_memory,
    support::{Done, Folder},
};

/// Shuts a file system down without writing its journal: the ioctl `EXT4_IOC_SHUTDOWN`, with the flag
/// `EXT4_GOING_FLAGS_NOLOGFLUSH` (`fs/ext4/ext4.h`).
const CUT: &str = "import fcntl, os, struct, sys\n\
    folder = os.open(sys.argv[1], os.O_RDONLY)\n\
    sys.stdin.read(1)\n\
    fcntl.ioctl(folder, 0x8004587d, struct.pack('I', 2))\n";

/// A mounted file system; unmounted when dropped.
pub(crate) struct Mounted {
    folder: Folder,
    /// File of a loop device, and the folder that it is in.
    disk: Option<Folder>,
}

impl Mounted {
    /// In memory, with tmpfs's options for the room that it has.
    pub(crate) fn in_memory(room: &str) -> Self {
        let mounted = Self { folder: Folder::new(), disk: None };
        mount(&["-t", "tmpfs", "-o", &format!("{room},mode=755"), "tmpfs"], mounted.path());
        mounted
    }

    /// ext4 on a loop device.
    pub(crate) fn ext4(bytes: u64) -> Self {
        let disk = folder_in_memory();
        let file = disk.path().join("disk");
        File::create(&file).unwrap().set_len(bytes).unwrap();
        Done::of(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file)).ok();
        let mounted = Self { folder: Folder::new(), disk: Some(disk) };
        mounted.mount_disk();
        mounted
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn disk(&self) -> PathBuf {
        self.disk.as_ref().unwrap().path().join("disk")
    }

    fn mount_disk(&self) {
        mount(&["-o", "loop", self.disk().to_str().unwrap()], self.path());
    }

    /// Mounts it again with other options.
    pub(crate) fn change(&self, options: &str) {
        mount(&["-o", &format!("remount,{options}")], self.path());
    }

    /// Unmounts it and mounts what the disk has: a copy of it, since somebody else may still see the file system that was
    /// shut down, who came into a mount namespace of their own meanwhile.
    pub(crate) fn restart(&self) {
        Done::of(Command::new("umount").arg(self.path())).ok();
        let (disk, copy) = (self.disk(), self.disk().with_extension("copy"));
        Done::of(Command::new("cp").arg("--sparse=always").args([&disk, &copy])).ok();
        fs::rename(copy, disk).unwrap();
        self.mount_disk();
    }

    /// Someone who cuts the power at once when told.
    pub(crate) fn cutter(&self) -> Cutter {
        let mut python = Command::new("python3");
        python.args(["-c", CUT]).arg(self.path()).stdin(Stdio::piped());
        let mut child = python.spawn().unwrap();
        Cutter { wire: child.stdin.take().unwrap(), child }
    }

    /// Bytes and files that are in use.
    pub(crate) fn used(&self) -> Used {
        let found = rustix::fs::statvfs(self.path()).unwrap();
        Used {
            bytes: (found.f_blocks - found.f_bfree) * found.f_frsize,
            files: found.f_files - found.f_ffree,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A test that failed may have left somebody in it.
        let unmounted = Command::new("umount").arg(self.path()).output();
        if !unmounted.is_ok_and(|output| output.status.success()) {
            drop(Command::new("umount").arg("--lazy").arg(self.path()).output());
        }
    }
}

/// What is in use of a file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// A process that waits for a byte, and then shuts a file system down.
pub(crate) struct Cutter {
    child: Child,
    wire: ChildStdin,
}

impl Cutter {
    pub(crate) fn cut(mut self) {
        self.wire.write_all(b"x").unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

fn mount(words: &[&str], place: &Path) {
    fs::create_dir_all(place).unwrap();
    Done::of(Command::new("mount").args(words).arg(place)).ok();
}
