//! The program `fuse-overlayfs`, for places where the kernel's overlay cannot be mounted.
//!
//! It serves its mount in a mount namespace of its own, which ends with it: nothing is left behind on the host,
//! whatever happens to us. The process that runs on it enters that namespace first.

#![expect(
    unsafe_code,
    reason = "gives the program a mount namespace of its own between fork and exec"
)]

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{mount::MountPropagationFlags, process::Pid, thread::UnshareFlags};

use crate::sandbox::{complaints::Complaints, sys};

/// Where the program is kept: never looked up in `PATH`.
const FOLDERS: &[&str] = &["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"];

/// How long the program may take to mount.
const MOUNT_MAX: Duration = Duration::from_secs(20);

const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A mount that the program serves; the program ends when this is dropped.
pub(super) struct FuseMount {
    child: Child,
    /// The mount namespace in which the mount can be seen.
    pub(super) namespace: OwnedFd,
}

/// The program, where it is installed.
pub(super) fn program() -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join("fuse-overlayfs")).find(|path| path.exists())
}

impl FuseMount {
    /// Mounts at `folder/root` what the short names in `folder` lead to: `u`, `w`, and `0` to `lowers - 1`
    /// in `folder/l`.
    pub(super) fn new(folder: &Path, lowers: usize) -> io::Result<Self> {
        let program = program().ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "fuse-overlayfs is not installed")
        })?;
        let names: Vec<String> = (0..lowers).map(|number| format!("l/{number}")).collect();
        let options = format!("lowerdir={},upperdir=u,workdir=w", names.join(":"));
        let mut command = Command::new(program);
        command.args(["-f", "-o", &options, "root"]).current_dir(folder).env_clear();
        let said = Complaints::new()?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.stream()?);
        // A group of its own: ^C at the terminal is for us, who end it when its time has come.
        command.process_group(0);
        let tool = rustix::process::getpid();
        // SAFETY: makes system calls only.
        unsafe { command.pre_exec(move || leave(tool)) };
        let mut child = command.spawn()?;
        match wait_for_mount(&mut child) {
            Ok(namespace) => Ok(Self { child, namespace }),
            Err(error) => {
                drop(child.kill());
                drop(child.wait());
                let complaint = said.text()?;
                Err(io::Error::new(error.kind(), format!("{error}: {}", complaint.trim())))
            }
        }
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs between fork and exec.
fn leave(tool: Pid) -> io::Result<()> {
    sys::end_with(tool)?;
    // SAFETY: there is one thread, and no descriptor that it would take from others.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change(c"/", private)?)
}

fn wait_for_mount(child: &mut Child) -> io::Result<OwnedFd> {
    let begun = Instant::now();
    let folder = format!("/proc/{}", child.id());
    let before = count_served(&fs::read_to_string("/proc/self/mountinfo")?);
    loop {
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("fuse-overlayfs ended with {status}")));
        }
        let mounts = fs::read_to_string(format!("{folder}/mountinfo")).unwrap_or_default();
        if count_served(&mounts) > before {
            return Ok(OwnedFd::from(File::open(format!("{folder}/ns/mnt"))?));
        }
        if begun.elapsed() > MOUNT_MAX {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "fuse-overlayfs did not mount"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn count_served(mountinfo: &str) -> usize {
    mountinfo.lines().filter(|line| line.contains(" - fuse.fuse-overlayfs ")).count()
}
