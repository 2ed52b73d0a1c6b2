//! One command, measured: wall time, processor time and the largest memory of it and what it waited for.
//!
//! Knows processes; knows no tool and no workload.

#![expect(unsafe_code, reason = "wait4, the only call that tells the memory of one child")]

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// What one run of a command took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// Processor time of the command, of what it waited for, and of its daemon: hardly disturbed by what else runs.
    pub(crate) cpu_seconds: f64,
    /// Largest resident memory (`VmHWM`) of the command, or of a process that it waited for, in bytes.
    pub(crate) memory_bytes: u64,
    /// The same of the command itself, as far as it ran long enough to be looked at: without what its steps take.
    pub(crate) own_bytes: Option<u64>,
    /// The same of the daemon that worked for it, since the command was started.
    pub(crate) daemon_bytes: Option<u64>,
}

impl Sample {
    /// Something that is not a process: only time is known.
    pub(crate) fn of_seconds(seconds: f64) -> Self {
        Self { seconds, ..Self::default() }
    }

    /// Two commands that make one workload.
    pub(crate) fn then(self, next: Self) -> Self {
        Self {
            seconds: self.seconds + next.seconds,
            cpu_seconds: self.cpu_seconds + next.cpu_seconds,
            memory_bytes: self.memory_bytes.max(next.memory_bytes),
            own_bytes: self.own_bytes.max(next.own_bytes),
            daemon_bytes: self.daemon_bytes.max(next.daemon_bytes),
        }
    }
}

/// Runs a command to its end; its output goes to `log`, whose end tells why it failed.
pub(crate) fn run(command: &mut Command, log: &Path) -> Result<Sample, String> {
    let shown = format!("{command:?}");
    let failed = |error: io::Error| format!("{shown}: {error}");
    let output = File::create(log).map_err(failed)?;
    let errors = output.try_clone().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let started = Instant::now();
    let child = command.spawn().map_err(failed)?;
    let watched = Watched::start(child.id());
    let (status, usage) = wait(child.id()).map_err(failed)?;
    let seconds = started.elapsed().as_secs_f64();
    let own_bytes = watched.finish();
    if status == 0 {
        let cpu_seconds = duration(usage.ru_utime) + duration(usage.ru_stime);
        let memory_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
        return Ok(Sample { seconds, cpu_seconds, memory_bytes, own_bytes, daemon_bytes: None });
    }
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    let tail: Vec<&str> = lines.into_iter().rev().collect();
    Err(format!("{shown}: status {status}\n{}", tail.join("\n")))
}

/// How often a process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The peak of one process's memory, asked for while it runs: at its end only the largest of it and its children is told.
struct Watched {
    ended: Sender<()>,
    peak: JoinHandle<Option<u64>>,
}

impl Watched {
    fn start(pid: u32) -> Self {
        let (ended, end) = mpsc::channel::<()>();
        let peak = std::thread::spawn(move || {
            let mut peak = None;
            while matches!(end.recv_timeout(LOOK_EVERY), Err(RecvTimeoutError::Timeout)) {
                peak = peak.max(peak_of(pid));
            }
            peak
        });
        Self { ended, peak }
    }

    fn finish(self) -> Option<u64> {
        drop(self.ended);
        self.peak.join().ok().flatten()
    }
}

/// `VmHWM` of a process, in bytes.
fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn duration(time: libc::timeval) -> f64 {
    time.tv_sec as f64 + time.tv_usec as f64 / 1e6
}

fn wait(pid: u32) -> io::Result<(i32, libc::rusage)> {
    let pid = libc::pid_t::try_from(pid).expect("a process id");
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid `rusage`, which holds numbers only.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live values of the right type; the child is ours and nobody
        // else waits for it (`Child` is dropped without waiting).
        if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } == pid {
            return Ok((status, usage));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Processes that go on between commands, and their children at this moment.
pub(crate) struct Daemon(Vec<u32>);

impl Daemon {
    /// A process and those that it has started and still has; their peaks of memory begin anew.
    pub(crate) fn watch(pid: u32) -> Self {
        let mut pids = vec![pid];
        let mut at = 0;
        while let Some(pid) = pids.get(at).copied() {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            pids.extend(
                children
                    .unwrap_or_default()
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
            at += 1;
        }
        for pid in &pids {
            // 5 resets the peak (proc_pid_clear_refs(5)); a kernel without it tells the peak of all time.
            drop(fs::write(format!("/proc/{pid}/clear_refs"), "5"));
        }
        Self(pids)
    }

    /// Peaks of memory since then, added up: they lie in memory at the same time.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.0.iter().filter_map(|pid| peak_of(*pid)).sum()
    }

    /// Processor time that they and what they waited for have used so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let ticks = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name is in brackets and may hold anything.
            let (_, rest) = stat.rsplit_once(") ")?;
            let times =
                rest.split(' ').skip(11).take(4).filter_map(|field| field.parse::<u64>().ok());
            Some(times.sum::<u64>())
        };
        let per_second = rustix::param::clock_ticks_per_second();
        self.0.iter().filter_map(ticks).sum::<u64>() as f64 / per_second as f64
    }
}

/// The middle of some numbers.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => numbers[count / 2],
        count => f64::midpoint(numbers[count / 2 - 1], numbers[count / 2]),
    }
}
