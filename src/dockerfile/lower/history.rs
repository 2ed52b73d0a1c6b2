//! Entries of the image's history, in the spelling that Go's formatting gives BuildKit's.

use crate::dockerfile::quote::quoted;
use crate::oci::{Healthcheck, HistoryEntry, ImageConfig};

/// Marks entries that a Dockerfile made.
const COMMENT: &str = "buildkit.dockerfile.v0";
/// Marks entries that BuildKit makes up for layers that no instruction made.
const EXPORTER_COMMENT: &str = "buildkit.exporter.image.v0";

/// Whether an instruction made a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// Config only.
    Nothing,
    /// A layer.
    Layer,
}

/// Adds the entry of an instruction.
pub(super) fn commit(image: &mut ImageConfig, created_by: String, made: Made) {
    image.history.push(HistoryEntry {
        created: None,
        created_by,
        author: None,
        comment: Some(COMMENT.to_owned()),
        empty_layer: made == Made::Nothing,
    });
}

/// Adds the entry of a layer of local files below a stage.
pub(super) fn commit_local(image: &mut ImageConfig, context: &str) {
    image.history.push(HistoryEntry {
        created: None,
        created_by: format!("local source for {context}"),
        author: None,
        comment: Some(EXPORTER_COMMENT.to_owned()),
        empty_layer: false,
    });
}

/// `["a" "b"]`: Go's `%q` of a list.
pub(super) fn quoted_list(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("[{}]", quoted.join(" "))
}

/// `[a b]`: Go's `%v` of a list.
pub(super) fn plain_list(words: &[String]) -> String {
    format!("[{}]", words.join(" "))
}

/// `{Test:[CMD-SHELL true] Interval:1s …}`: Go's `%+v`.
pub(super) fn healthcheck(check: &Healthcheck) -> String {
    format!(
        "{{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        plain_list(&check.test),
        duration(check.interval),
        duration(check.timeout),
        duration(check.start_period),
        duration(check.start_interval),
        check.retries,
    )
}

/// `1h0m1.5s`: a Go duration, from nanoseconds.
fn duration(ns: i64) -> String {
    const SECOND: u64 = 1_000_000_000;
    let sign = if ns < 0 { "-" } else { "" };
    let size = ns.unsigned_abs();
    let small = |unit: u64, name: &str| format!("{sign}{}{name}", decimal(size, unit));
    match size {
        0 => "0s".to_owned(),
        1..1_000 => small(1, "ns"),
        1_000..1_000_000 => small(1_000, "µs"),
        1_000_000..SECOND => small(1_000_000, "ms"),
        _ => {
            let (minutes, rest) = (size / (60 * SECOND), size % (60 * SECOND));
            let seconds = decimal(rest, SECOND);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// `size` in units, without trailing zeros.
fn decimal(size: u64, unit: u64) -> String {
    let (whole, mut rest, mut scale) = (size / unit, size % unit, unit);
    let mut out = whole.to_string();
    if rest > 0 {
        out.push('.');
    }
    while rest > 0 {
        scale /= 10;
        let digit = u8::try_from(rest / scale).expect("the rest is below ten times the scale");
        out.push(char::from(b'0' + digit));
        rest %= scale;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spelled_as_go_does() {
        for (ns, shown) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (100_000_000, "100ms"),
            (1_500_000_000, "1.5s"),
            (180_000_000_000, "3m0s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (5_400_050_000_000, "1h30m0.05s"),
            (-2_000_000_000, "-2s"),
        ] {
            assert_eq!(duration(ns), shown);
        }
    }
}
