//! Which user namespace this process is in, and how many ids are mapped into it.

use std::{fs, io};

use super::Privilege;

/// The id map of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// The initial user namespace: every id is itself.
    Initial,
    /// A user namespace with more than one id.
    Many,
    /// A user namespace with one id.
    Single,
}

/// Number of ids in the initial user namespace.
const IDS_ALL: u64 = 4_294_967_295;

/// Reads the map of this process.
pub(super) fn mapping() -> io::Result<Mapping> {
    Ok(classify(&fs::read_to_string("/proc/self/uid_map")?))
}

/// See [`super::privilege`].
pub(super) fn privilege() -> Privilege {
    let root = rustix::process::geteuid().is_root();
    match mapping() {
        Ok(Mapping::Initial) if root => Privilege::Root,
        Ok(Mapping::Many) if root => Privilege::Mapped,
        Ok(Mapping::Single) if root => Privilege::SingleId,
        _ => Privilege::None,
    }
}

/// The capabilities that this process may use.
pub(super) fn permitted_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).unwrap_or(0)
}

fn classify(map: &str) -> Mapping {
    let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    match counts.sum::<u64>() {
        0 | 1 => Mapping::Single,
        IDS_ALL => Mapping::Initial,
        _ => Mapping::Many,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_tells_the_namespace() {
        let table = [
            ("         0          0 4294967295\n", Mapping::Initial),
            ("         0       1234          1\n", Mapping::Single),
            ("0 1234 1\n1 100000 65536\n", Mapping::Many),
            ("", Mapping::Single),
        ];
        for (map, expected) in table {
            assert_eq!(classify(map), expected, "{map:?}");
        }
    }
}
