//! What a process may use of a machine, and how large layers are: values and how they are written.
//!
//! Knows no kernel interface: whoever starts a process finds out what can be enforced.

mod split;
mod unpack;

use serde::Serialize;

pub use split::{IMAGE_LAYERS_MAX, Split};
pub use unpack::{TooLarge, UnpackLimits};

/// Processes that a step may have at once when nobody says otherwise: far more than a parallel build of a
/// large program has, far fewer than it takes to stop a machine.
pub const PIDS_DEFAULT: u64 = 4096;

/// Length of the time slice that a quota counts for, in microseconds, as in Docker.
pub const CPU_PERIOD_US_DEFAULT: u64 = 100_000;

/// Smallest memory limit, as in Docker: less is not enough to start anything.
const MEMORY_BYTES_MIN: u64 = 6 << 20;

/// Names of the limits, as `Limits::set` takes them and as the project file writes them.
pub const NAMES: [&str; 9] = [
    "memory",
    "memory-swap",
    "cpus",
    "cpu-shares",
    "cpu-period",
    "cpu-quota",
    "pids",
    "shm-size",
    "cgroup-parent",
];

/// What the processes of one step may use together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// Memory in bytes; `None` for all there is.
    pub memory: Option<u64>,
    /// Memory and swap together in bytes; `u64::MAX` for no limit. Twice the memory when not given.
    pub memory_and_swap: Option<u64>,
    /// Processor time in a period, in microseconds.
    pub cpu_quota_us: Option<u64>,
    /// The period, in microseconds; [`CPU_PERIOD_US_DEFAULT`] when not given.
    pub cpu_period_us: Option<u64>,
    /// Weight against others when processors are short; 1024 is one share of the usual size.
    pub cpu_shares: Option<u64>,
    /// Processes and threads at once; `None` for no limit.
    pub pids: Option<u64>,
    /// Size of `/dev/shm` in bytes; 64 MiB when not given.
    pub shm_bytes: Option<u64>,
    /// Limits of each process.
    pub ulimits: Vec<Ulimit>,
    /// Control group that the step's own is made in, from the root of the hierarchy.
    pub cgroup_parent: Option<String>,
}

/// A limit of each process (setrlimit(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ulimit {
    /// What is limited.
    pub kind: UlimitKind,
    /// What is in force; `u64::MAX` for no limit.
    pub soft: u64,
    /// What the process may raise it to.
    pub hard: u64,
}

macro_rules! ulimit_kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What a [`Ulimit`] limits; the names are Docker's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "lowercase")]
        pub enum UlimitKind { $($(#[$doc])* $name,)* }

        impl UlimitKind {
            /// All that there are, each with its name.
            pub const ALL: &[(Self, &str)] = &[$((Self::$name, $text),)*];
        }
    };
}

ulimit_kinds! {
    /// Bytes of a core file.
    Core = "core",
    /// Seconds of processor time.
    Cpu = "cpu",
    /// Bytes of the data segment.
    Data = "data",
    /// Bytes of a file.
    Fsize = "fsize",
    /// File locks.
    Locks = "locks",
    /// Bytes locked in memory.
    Memlock = "memlock",
    /// Bytes in message queues.
    Msgqueue = "msgqueue",
    /// Ceiling of the nice value.
    Nice = "nice",
    /// Open files.
    Nofile = "nofile",
    /// Processes of the user.
    Nproc = "nproc",
    /// Bytes of resident memory.
    Rss = "rss",
    /// Ceiling of the real-time priority.
    Rtprio = "rtprio",
    /// Microseconds of real-time scheduling without a rest.
    Rttime = "rttime",
    /// Pending signals.
    Sigpending = "sigpending",
    /// Bytes of the stack.
    Stack = "stack",
}

impl UlimitKind {
    /// As written.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: None,
            memory_and_swap: None,
            cpu_quota_us: None,
            cpu_period_us: None,
            cpu_shares: None,
            pids: Some(PIDS_DEFAULT),
            shm_bytes: None,
            ulimits: Vec::new(),
            cgroup_parent: None,
        }
    }
}

impl Limits {
    /// Whether nothing else was asked for than what everybody gets.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Sets one limit from its text: `memory` `512m`, `cpus` `1.5`, `pids` `1000` …; the names are [`NAMES`].
    ///
    /// # Errors
    ///
    /// A sentence about the value.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        match name {
            "memory" => {
                let bytes = bytes(text)?;
                if bytes < MEMORY_BYTES_MIN {
                    return Err(format!("`{text}` is less than the 6m that a process needs"));
                }
                self.memory = Some(bytes);
            }
            "memory-swap" if text.trim() == "-1" => self.memory_and_swap = Some(u64::MAX),
            "memory-swap" => self.memory_and_swap = Some(bytes(text)?),
            "cpus" => {
                let period = self.cpu_period_us.unwrap_or(CPU_PERIOD_US_DEFAULT);
                self.cpu_quota_us = Some(quota(text, period)?);
            }
            "cpu-shares" => self.cpu_shares = Some(within(text, 2, 262_144)?),
            "cpu-period" => self.cpu_period_us = Some(within(text, 1000, 1_000_000)?),
            "cpu-quota" => self.cpu_quota_us = Some(within(text, 1000, u64::MAX)?),
            "pids" if ["-1", "0", "unlimited"].contains(&text.trim()) => self.pids = None,
            "pids" => self.pids = Some(within(text, 1, 4_194_304)?),
            "shm-size" => self.shm_bytes = Some(bytes(text)?),
            "cgroup-parent" => self.cgroup_parent = Some(parent(text)?),
            _ => return Err(format!("`{name}` is no limit; there are {}", NAMES.join(", "))),
        }
        Ok(())
    }

    /// Adds `NAME=SOFT[:HARD]`; a later one of the same name replaces.
    ///
    /// # Errors
    ///
    /// A sentence about the value.
    pub fn add_ulimit(&mut self, text: &str) -> Result<(), String> {
        let (name, values) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is not NAME=SOFT[:HARD], such as nofile=1024:4096"))?;
        let found = UlimitKind::ALL.iter().find(|(_, known)| *known == name.trim());
        let Some((kind, _)) = found else {
            let names: Vec<&str> = UlimitKind::ALL.iter().map(|(_, name)| *name).collect();
            return Err(format!("`{name}` is no ulimit; there are {}", names.join(", ")));
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (ulimit_value(soft)?, ulimit_value(hard)?);
        if soft > hard {
            return Err(format!("`{text}`: the soft limit is above the hard one"));
        }
        self.ulimits.retain(|known| known.kind != *kind);
        self.ulimits.push(Ulimit { kind: *kind, soft, hard });
        Ok(())
    }

    /// Looks at the limits together.
    ///
    /// # Errors
    ///
    /// A sentence about two that contradict one another.
    pub fn check(&self) -> Result<(), String> {
        match (self.memory, self.memory_and_swap) {
            (None, Some(total)) if total != u64::MAX => {
                Err("memory-swap is memory and swap together: give memory too".to_owned())
            }
            (Some(memory), Some(total)) if total < memory => {
                Err("memory-swap is memory and swap together: it is less than memory".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// A size: a number with nothing, `b`, `k`, `m`, `g` or `t` behind it (also `kb`, `KiB` …), each 1024 times the one
/// before, as in Docker.
///
/// # Errors
///
/// A sentence about the text.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size, such as 512m or 2g");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
    let (number, unit) = lower.split_at(digits.unwrap_or(lower.len()));
    let shift = match unit.trim().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(wrong);
    }
    let (whole, part) = number.split_once('.').ok_or_else(wrong)?;
    let (whole, places): (u64, u32) =
        (whole.parse().map_err(|_| wrong())?, u32::try_from(part.len()).map_err(|_| wrong())?);
    let part: u64 = part.parse().map_err(|_| wrong())?;
    let scale = 10_u64.checked_pow(places).ok_or_else(wrong)?;
    let part = part.checked_mul(1 << shift).ok_or_else(wrong)? / scale;
    whole.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add(part)).ok_or_else(wrong)
}

/// `1.5` processors as a part of the period, in microseconds.
fn quota(text: &str, period_us: u64) -> Result<u64, String> {
    const MILLIS: u64 = 1000;
    let wrong = || format!("`{text}` is no number of processors, such as 2 or 0.5");
    let (whole, part) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
    if !part.bytes().all(|letter| letter.is_ascii_digit()) {
        return Err(wrong());
    }
    let places = part.get(..part.len().min(3)).ok_or_else(wrong)?;
    let (whole, millis): (u64, u64) = (
        whole.parse().map_err(|_| wrong())?,
        format!("{places:0<3}").parse().map_err(|_| wrong())?,
    );
    let millis = whole.checked_mul(MILLIS).and_then(|all| all.checked_add(millis));
    let quota = millis.and_then(|millis| millis.checked_mul(period_us)).ok_or_else(wrong)? / MILLIS;
    // Less than a millisecond is refused by the kernel.
    if quota < MILLIS { Err(wrong()) } else { Ok(quota) }
}

fn within(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = text.trim().parse::<u64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| match most {
        u64::MAX => format!("`{text}` is no number from {least} on"),
        most => format!("`{text}` is no number from {least} to {most}"),
    })
}

fn ulimit_value(text: &str) -> Result<u64, String> {
    match text.trim() {
        "-1" | "unlimited" => Ok(u64::MAX),
        number => number.parse().map_err(|_| format!("`{number}` is no number, nor unlimited")),
    }
}

/// A path below the hierarchy's root that cannot leave it.
fn parent(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    let good = !parts.is_empty()
        && !parts.iter().any(|part| [".", ".."].contains(part) || part.contains(['\0', '\n']));
    if good { Ok(parts.join("/")) } else { Err(format!("`{text}` is no control group")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_docker_s() {
        for (text, wanted) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("512b", Some(512)),
            ("64k", Some(64 << 10)),
            ("64KB", Some(64 << 10)),
            ("1.5g", Some(3 << 29)),
            ("2GiB", Some(2 << 30)),
            (" 1t ", Some(1 << 40)),
            ("0.1m", Some(104_857)),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1x", None),
            ("1.2.3m", None),
            ("99999999999999999999", None),
            ("18446744073709551615k", None),
        ] {
            assert_eq!(bytes(text).ok(), wanted, "{text:?}");
        }
    }

    #[test]
    fn limits_are_set_by_name_or_refused_with_a_reason() {
        let mut limits = Limits::default();
        for (name, text) in [
            ("memory", "64m"),
            ("memory-swap", "-1"),
            ("cpus", "1.5"),
            ("cpu-shares", "512"),
            ("pids", "100"),
            ("shm-size", "1m"),
            ("cgroup-parent", "/a//b"),
        ] {
            limits.set(name, text).unwrap();
        }
        limits.add_ulimit("nofile=100").unwrap();
        limits.add_ulimit("nofile=1024:-1").unwrap();
        let wanted = Limits {
            memory: Some(64 << 20),
            memory_and_swap: Some(u64::MAX),
            cpu_quota_us: Some(150_000),
            cpu_period_us: None,
            cpu_shares: Some(512),
            pids: Some(100),
            shm_bytes: Some(1 << 20),
            ulimits: vec![Ulimit { kind: UlimitKind::Nofile, soft: 1024, hard: u64::MAX }],
            cgroup_parent: Some("a/b".to_owned()),
        };
        assert_eq!(limits, wanted);
        for (name, text) in [
            ("memory", "5m"),
            ("memory", "much"),
            ("cpus", "0"),
            ("cpus", "0.001"),
            ("cpus", "many"),
            ("cpus", "1.500x"),
            ("cpu-shares", "1"),
            ("cpu-period", "10"),
            ("pids", "-2"),
            ("cgroup-parent", "../x"),
            ("cgroup-parent", "/"),
            ("colour", "red"),
        ] {
            assert!(limits.set(name, text).is_err(), "{name} {text}");
        }
        for text in ["nofile", "nofile=x", "nofile=2:1", "colour=1"] {
            assert!(limits.add_ulimit(text).is_err(), "{text}");
        }
        limits.set("pids", "-1").unwrap();
        assert_eq!((limits.pids, &limits), (None, &Limits { pids: None, ..wanted }));
    }

    #[test]
    fn swap_is_counted_with_memory() {
        let of = |memory, memory_and_swap| {
            Limits { memory, memory_and_swap, ..Limits::default() }.check().is_ok()
        };
        assert!(of(Some(10), Some(20)) && of(None, None) && of(None, Some(u64::MAX)));
        assert!(!of(Some(20), Some(10)) && !of(None, Some(10)));
    }
}
