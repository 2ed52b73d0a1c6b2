//! Durations such as `1h30m` or `1.5s`, as Go reads and refuses them.

use crate::dockerfile::quote::quoted;

/// Nanoseconds in `text`.
pub(super) fn nanoseconds(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quoted(text));
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|l: char| !(l.is_ascii_digit() || l == '.')).unwrap_or(rest.len());
        let (amount, after) = rest.split_at(end);
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || end > 40 {
            return Err(invalid());
        }
        let end = after.find(|l: char| l.is_ascii_digit() || l == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", quoted(text)));
        }
        let Some(scale) = unit_nanoseconds(unit) else {
            return Err(format!(
                "time: unknown unit {} in duration {}",
                quoted(unit),
                quoted(text)
            ));
        };
        total += scaled(whole, fraction, scale).ok_or_else(invalid)?;
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
        rest = after;
    }
    i64::try_from(total * sign).map_err(|_| invalid())
}

fn unit_nanoseconds(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

fn scaled(whole: &str, fraction: &str, scale: i128) -> Option<i128> {
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
    // More digits than these are below a nanosecond.
    let fraction: String = fraction.chars().take(15).collect();
    let tenths = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    digits(whole)?.checked_mul(scale)?.checked_add(digits(&fraction)? * scale / tenths)
}

#[cfg(test)]
mod tests {
    use super::nanoseconds;

    #[test]
    fn durations_are_go_s() {
        for (text, expected) in [
            ("0", Ok(0)),
            ("1s", Ok(1_000_000_000)),
            ("1h30m", Ok(5_400_000_000_000)),
            ("1.5s", Ok(1_500_000_000)),
            (".5ms", Ok(500_000)),
            ("1us", Ok(1_000)),
            ("-1s", Ok(-1_000_000_000)),
            ("5", Err("time: missing unit in duration \"5\"")),
            ("x", Err("time: invalid duration \"x\"")),
            ("", Err("time: invalid duration \"\"")),
            ("1y", Err("time: unknown unit \"y\" in duration \"1y\"")),
            ("1.2.3s", Err("time: invalid duration \"1.2.3s\"")),
            ("9999999h", Err("time: invalid duration \"9999999h\"")),
        ] {
            assert_eq!(nanoseconds(text), expected.map_err(str::to_owned), "{text}");
        }
    }
}
