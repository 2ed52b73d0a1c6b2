//! Flags that say how processes are run where this machine leaves a choice.

use std::path::PathBuf;

use clap::ValueEnum;
use idpbuilder::sandbox::{Isolation, Privileges, Snapshotter, UserIds, Wanted};

use super::{failure::CliError, setup};

/// Where the help of a verb shows these flags.
const RUN_HEADING: &str = "How a RUN is run";

/// How processes are run.
#[derive(clap::Args, Clone, Default)]
pub(super) struct SandboxArgs {
    /// Where the root file system of a RUN comes from; the first that works by default.
    #[arg(help_heading = RUN_HEADING, long, value_enum, value_name = "NAME", hide_short_help = true)]
    snapshotter: Option<SnapshotterName>,
    /// Folder for the changes of a RUN with `--snapshotter overlay-elsewhere`: /var/tmp, /tmp or /dev/shm by
    /// default.
    #[arg(help_heading = RUN_HEADING, long, value_name = "FOLDER", hide_short_help = true)]
    scratch: Option<PathBuf>,
    /// `chroot` runs a RUN without isolation, in places that allow no other; `auto` isolates, or refuses.
    #[arg(help_heading = RUN_HEADING, long, value_enum, value_name = "WAY", default_value_t)]
    isolation: IsolationName,
    /// Which ids of this machine root's RUN has: `private` gives it a range that is nobody's, in a user namespace of
    /// its own; files keep the ids that they have with `host`.
    #[arg(help_heading = RUN_HEADING, long, value_enum, value_name = "IDS", default_value_t)]
    userns: UserIdsName,
    /// No program of a RUN gets more rights than who starts it: set-user-id programs such as su do not work.
    #[arg(help_heading = RUN_HEADING, long)]
    hardened: bool,
}

/// A way of isolation by name.
#[derive(Clone, Copy, Default, ValueEnum)]
enum IsolationName {
    /// As much as can be had, and never less than namespaces.
    #[default]
    Auto,
    /// Another root directory and nothing else.
    Chroot,
}

/// The ids of a RUN by name.
#[derive(Clone, Copy, Default, ValueEnum)]
enum UserIdsName {
    /// As they are named.
    #[default]
    Host,
    /// 65536 of their own.
    Private,
}

/// A snapshotter by name.
#[derive(Clone, Copy, ValueEnum)]
enum SnapshotterName {
    /// The kernel's overlay.
    Overlay,
    /// The kernel's overlay by mount(2), as kernels before 6.7 need it.
    OverlayMount,
    /// Overlay whose changes are written to another file system.
    OverlayElsewhere,
    /// The program fuse-overlayfs.
    FuseOverlay,
    /// A copy of all files for each RUN.
    Copy,
}

impl SandboxArgs {
    pub(super) fn privileges(&self) -> Privileges {
        if self.hardened { Privileges::MayNotGrow } else { Privileges::MayGrow }
    }

    /// The way of isolation, when one was asked for.
    pub(super) fn isolation(&self) -> Option<Isolation> {
        match self.isolation {
            IsolationName::Auto => None,
            IsolationName::Chroot => Some(Isolation::Chroot),
        }
    }

    pub(super) fn wanted(&self) -> Result<Wanted, CliError> {
        let snapshotter = self.snapshotter.map(|name| match name {
            SnapshotterName::Overlay => Snapshotter::Overlay,
            SnapshotterName::OverlayMount => Snapshotter::OverlayMount,
            SnapshotterName::OverlayElsewhere => Snapshotter::OverlayElsewhere,
            SnapshotterName::FuseOverlay => Snapshotter::FuseOverlay,
            SnapshotterName::Copy => Snapshotter::Copy,
        });
        let scratch = self.scratch.as_deref().map(setup::absolute).transpose()?;
        let isolation = self.isolation();
        let users = match self.userns {
            UserIdsName::Host => UserIds::Host,
            UserIdsName::Private => UserIds::Private,
        };
        Ok(Wanted { snapshotter, scratch, isolation, users })
    }
}
