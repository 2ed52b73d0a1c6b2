//! One command, measured: wall time and the largest memory of it and what it waited for.
//!
//! Knows processes; knows no tool and no workload.

#![expect(unsafe_code, reason = "wait4, the only call that tells the memory of one child")]

use std::{
    fs::File,
    io,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

/// What one run of a command took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// Processor time of the command and of what it waited for: hardly disturbed by what else runs.
    pub(crate) cpu_seconds: f64,
    /// Largest resident memory of the command, or of a process that it waited for, in bytes.
    pub(crate) memory_bytes: u64,
}

impl Sample {
    /// Two commands that make one workload.
    pub(crate) fn then(self, next: Self) -> Self {
        Self {
            seconds: self.seconds + next.seconds,
            cpu_seconds: self.cpu_seconds + next.cpu_seconds,
            memory_bytes: self.memory_bytes.max(next.memory_bytes),
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
    let (status, usage) = wait(child.id()).map_err(failed)?;
    let seconds = started.elapsed().as_secs_f64();
    if status == 0 {
        let cpu_seconds = duration(usage.ru_utime) + duration(usage.ru_stime);
        let memory_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
        return Ok(Sample { seconds, cpu_seconds, memory_bytes });
    }
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    let tail: Vec<&str> = lines.into_iter().rev().collect();
    Err(format!("{shown}: status {status}\n{}", tail.join("\n")))
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

/// The middle of some numbers.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => numbers[count / 2],
        count => f64::midpoint(numbers[count / 2 - 1], numbers[count / 2]),
    }
}
