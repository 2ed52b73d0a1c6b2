//! Names of signals.

const NAMES: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];
/// Real-time signals above the first, and below the last.
const ABOVE_FIRST_MAX: u8 = 15;
const BELOW_LAST_MAX: u8 = 14;

/// Whether `typed` is a positive number, or a name with or without `SIG`, in either case.
pub(super) fn is_signal(typed: &str) -> bool {
    if let Ok(number) = typed.parse::<i64>() {
        return number > 0;
    }
    let upper = typed.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str, max: u8| {
        let rest = name.strip_prefix(prefix).filter(|rest| !rest.starts_with(['0', '+', '-']));
        rest.and_then(|rest| rest.parse::<u8>().ok()).is_some_and(|n| (1..=max).contains(&n))
    };
    NAMES.contains(&name) || offset("RTMIN+", ABOVE_FIRST_MAX) || offset("RTMAX-", BELOW_LAST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_positive_numbers() {
        for good in ["9", "TERM", "sigterm", "SIGRTMIN+3", "RTMAX-14", "RTMIN", "64"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["0", "-9", "SIGNOPE", "a b", "", "RTMIN+16", "RTMIN+", "RTMAX-0", "RTMIN+03"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
