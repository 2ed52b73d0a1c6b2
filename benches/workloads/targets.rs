//! What each workload is meant to take: times of the reference machine, which has two x86-64 cores with SHA extensions
//! and a fast disk. Elsewhere they are something to compare with and no more.

use crate::cases::Settings;

/// Files of W4 and MiB of W5 for which the targets are.
const FILES: usize = 20_000;
const LARGE_MIB: usize = 1024;

/// Most memory of the tool itself in any workload, in bytes.
pub(crate) const MEMORY_BYTES: u64 = 64 << 20;

/// How long a workload is meant to take, in seconds.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    At(f64),
    /// So much more than the floor that is measured beside it: the work of other programs.
    AboveFloor(f64),
    /// For as many files as W4 has on the reference machine, and proportionally.
    Files(f64),
    /// For as large a file as W5 has there, and proportionally.
    Large(f64),
    /// None: two ways of ours are held against each other.
    Unset,
}

impl Target {
    /// Seconds for what was measured; `None` where there is no target, or not the floor that it stands on.
    pub(crate) fn seconds(self, settings: &Settings, floor: Option<f64>) -> Option<f64> {
        let share = |count: usize, of: usize| count as f64 / of as f64;
        match self {
            Self::At(seconds) => Some(seconds),
            Self::AboveFloor(seconds) => floor.map(|floor| floor + seconds),
            Self::Files(seconds) => Some(seconds * share(settings.files, FILES)),
            Self::Large(seconds) => Some(seconds * share(settings.large_mib, LARGE_MIB)),
            Self::Unset => None,
        }
    }
}
