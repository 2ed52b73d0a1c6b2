//! Flags that say what the processes of a build may use, as docker has them.

use idpbuilder::limits::Limits;

use super::failure::{CONFIGURATION, CliError};

/// What the processes of a `RUN` may use.
#[derive(clap::Args)]
#[command(next_help_heading = "Limits of each RUN")]
pub(super) struct LimitArgs {
    /// Memory, such as 512m or 2g.
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Memory and swap together; -1 for no limit. Twice the memory by default.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Processors, such as 1.5.
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Weight against others when processors are short; 1024 is usual.
    #[arg(short, long, value_name = "WEIGHT")]
    cpu_shares: Option<String>,
    /// Length of the period that --cpu-quota counts in, in microseconds.
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<String>,
    /// Processor time in each period, in microseconds.
    #[arg(long, value_name = "MICROSECONDS", conflicts_with = "cpus")]
    cpu_quota: Option<String>,
    /// Processes and threads at once; -1 for no limit. 4096 by default.
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<String>,
    /// Size of /dev/shm; 64m by default.
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Limit of each process: NAME=SOFT[:HARD], such as nofile=1024:4096.
    #[arg(long, value_name = "LIMIT")]
    ulimit: Vec<String>,
    /// Control group that those of the processes are made in.
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
}

impl LimitArgs {
    pub(super) fn limits(&self) -> Result<Limits, CliError> {
        let fail = |flag: &str, reason: String| {
            CliError::new(CONFIGURATION, format!("--{flag}: {reason}"))
        };
        let mut limits = Limits::default();
        // The period before what is counted in it.
        for (flag, name, text) in [
            ("memory", "memory", &self.memory),
            ("memory-swap", "memory-swap", &self.memory_swap),
            ("cpu-period", "cpu-period", &self.cpu_period),
            ("cpus", "cpus", &self.cpus),
            ("cpu-shares", "cpu-shares", &self.cpu_shares),
            ("cpu-quota", "cpu-quota", &self.cpu_quota),
            ("pids-limit", "pids", &self.pids_limit),
            ("shm-size", "shm-size", &self.shm_size),
            ("cgroup-parent", "cgroup-parent", &self.cgroup_parent),
        ] {
            if let Some(text) = text {
                limits.set(name, text).map_err(|reason| fail(flag, reason))?;
            }
        }
        for text in &self.ulimit {
            limits.add_ulimit(text).map_err(|reason| fail("ulimit", reason))?;
        }
        limits.check().map_err(|reason| fail("memory-swap", reason))?;
        Ok(limits)
    }
}
