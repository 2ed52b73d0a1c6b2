//! Landlock (landlock(7)): keeps a process that shares the machine's network from the machine's abstract unix sockets.
//!
//! Those have no file that a mount could hide: X11, D-Bus and containerd's shims are found by whoever has the network.
//! No right over files or ports is handled, so that mounts, renames and set-user-id programs are as without it.

#![expect(unsafe_code, reason = "system calls that no crate wraps")]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::sandbox::sys::{self, Sys};

/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET`, since Linux 6.12: sockets made by who is within the ruleset, and no others.
/// Signals need no scope: a namespace of process ids ends them.
const ABSTRACT_SOCKETS: u64 = 1;

/// `struct landlock_ruleset_attr` of version 6.
#[repr(C)]
struct Attributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

fn ruleset() -> Sys<OwnedFd> {
    let scoped = ABSTRACT_SOCKETS;
    let attributes = Attributes { handled_access_fs: 0, handled_access_net: 0, scoped };
    let size = size_of::<Attributes>();
    // SAFETY: the attributes are valid for the call and as large as is said.
    let made = sys::check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0)
    })?;
    let made = RawFd::try_from(made).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// Whether this kernel can do it.
pub(super) fn is_there() -> bool {
    ruleset().is_ok()
}

/// Runs in the process, as long as it may mount: it would need `no_new_privs` otherwise. Nothing happens on kernels that
/// cannot do it.
pub(super) fn close_abstract_sockets() -> Sys<()> {
    let Ok(ruleset) = ruleset() else { return Ok(()) };
    // SAFETY: takes numbers only.
    let closed = sys::check(unsafe {
        libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0)
    });
    match closed {
        // Sixteen rulesets are around us already: the kernel takes no more.
        Err(Errno::TOOBIG) => Ok(()),
        other => other.map(drop),
    }
}
