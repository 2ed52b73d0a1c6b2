//! Numbers and foreign text in the form that people read.

use std::borrow::Cow;

/// A size in binary units with one decimal: `61.3 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = count as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// A duration: `0.4 s`, `2 min 5.0 s`.
#[must_use]
pub fn seconds(value: f64) -> String {
    if value < 60.0 {
        return format!("{value:.1} s");
    }
    format!("{:.0} min {:.1} s", (value / 60.0).floor(), value % 60.0)
}

/// How long ago, as Docker says it: `3 hours ago`.
#[must_use]
pub fn since(then: i64, now: i64) -> String {
    let ago = now.saturating_sub(then).max(0);
    let (minutes, hours, days) = (ago / 60, (ago + 1800) / 3600, ago / 86_400);
    match ago {
        0 => "Less than a second ago".to_owned(),
        1 => "1 second ago".to_owned(),
        2..60 => format!("{ago} seconds ago"),
        60..120 => "About a minute ago".to_owned(),
        _ if minutes < 46 => format!("{minutes} minutes ago"),
        _ if hours < 2 => "About an hour ago".to_owned(),
        _ if hours < 48 => format!("{hours} hours ago"),
        _ if days < 14 => format!("{days} days ago"),
        _ if days < 60 => format!("{} weeks ago", days / 7),
        _ if days < 730 => format!("{} months ago", days / 30),
        _ => format!("{} years ago", days / 365),
    }
}

/// Foreign text made safe for a terminal: escape sequences and control characters are gone, a tab
/// is a blank. The text stays one line.
#[must_use]
pub fn safe(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    // A carriage return redraws the line: what was last drawn is what is seen.
    while let Some(letter) = rest.next() {
        match letter {
            '\u{1b}' => skip_escape(&mut rest),
            '\r' if rest.peek().is_some() => clean.clear(),
            '\t' => clean.push(' '),
            letter if is_hidden(letter) => {}
            letter => clean.push(letter),
        }
    }
    clean
}

/// Text of any number of lines as a terminal may get it, whoever wrote parts of it: line breaks, tabs and colours stay,
/// every other escape sequence and control character is gone. What is safe already is not copied.
#[must_use]
pub fn screened(text: &str) -> Cow<'_, str> {
    let is_plain = |letter: char| letter == '\n' || letter == '\t' || !is_hidden(letter);
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '\u{1b}' => {
                let mut ahead = rest.clone();
                match color(&mut ahead) {
                    Some(sequence) => {
                        clean.push_str(&sequence);
                        rest = ahead;
                    }
                    None => skip_escape(&mut rest),
                }
            }
            letter if is_plain(letter) => clean.push(letter),
            _ => {}
        }
    }
    Cow::Owned(clean)
}

/// What is no letter: control characters, and those that turn the direction of what follows, so that a line reads
/// otherwise than it is.
fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The colours that messages are drawn in (SGR), behind ESC; `None` for anything else, such as letters without a colour.
fn color(rest: &mut impl Iterator<Item = char>) -> Option<String> {
    const BYTES_MAX: usize = 16;
    let mut sequence = String::from('\u{1b}');
    for letter in rest.take(BYTES_MAX) {
        sequence.push(letter);
        if letter == 'm' {
            break;
        }
    }
    let numbers = sequence.strip_prefix("\u{1b}[")?.strip_suffix('m')?;
    let known = |number: &str| {
        matches!(
            number,
            "" | "0" | "1" | "2" | "3" | "4" | "39" | "31" | "32" | "33" | "34" | "35" | "36"
        )
    };
    numbers.split(';').all(known).then_some(sequence)
}

/// Skips the rest of an escape sequence: CSI up to its final byte, OSC up to BEL or ST.
fn skip_escape(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match rest.next() {
        Some('[') => {
            let _final = rest.find(|letter| ('@'..='~').contains(letter));
        }
        Some(']' | 'P' | '_' | '^') => {
            while let Some(letter) = rest.next() {
                if letter == '\u{7}' || (letter == '\u{1b}' && rest.next_if_eq(&'\\').is_some()) {
                    break;
                }
            }
        }
        _ => {}
    }
}

/// Text cut to `columns`, with an ellipsis where something is missing.
#[must_use]
pub fn fit(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

/// A text of several lines as one.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_escapes_only_colors_reach_a_terminal() {
        for (raw, shown) in [
            ("plain\n\tlines\n", "plain\n\tlines\n"),
            ("\u{1b}[31;1mred\u{1b}[0m", "\u{1b}[31;1mred\u{1b}[0m"),
            ("\u{1b}[8mhidden\u{1b}[0m", "hidden\u{1b}[0m"),
            ("\u{1b}[30mblack", "black"),
            ("\u{1b}[2Jgone\u{1b}[1A", "gone"),
            ("\u{1b}]0;title\u{7}a\u{1b}]52;c;eA==\u{1b}\\b", "ab"),
            ("a\rb\u{8}c\u{9b}2Jd\u{7f}", "abc2Jd"),
            ("ver\u{202e}txt.exe", "vertxt.exe"),
            ("\u{1b}[", ""),
            ("\u{1b}", ""),
            ("\u{1b}[111111111111111111111m", ""),
        ] {
            assert_eq!(screened(raw), shown, "{raw:?}");
        }
        assert!(matches!(screened("plain\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn escapes_and_control_bytes_never_reach_a_terminal() {
        for (raw, shown) in [
            ("plain", "plain"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}]0;title\u{7}x", "x"),
            ("\u{1b}]8;;http://x\u{1b}\\link", "link"),
            ("10%\r20%", "20%"),
            ("line\r", "line"),
            ("a\tb\u{8}\u{9b}", "a b"),
            ("\u{1b}[", ""),
        ] {
            assert_eq!(safe(raw), shown, "{raw:?}");
        }
    }

    #[test]
    fn numbers_have_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(61 << 20), "61.0 MiB");
        assert_eq!(seconds(0.04), "0.0 s");
        assert_eq!(seconds(125.04), "2 min 5.0 s");
        assert_eq!(since(0, 0), "Less than a second ago");
        assert_eq!(since(0, 90), "About a minute ago");
        assert_eq!(since(0, 7200), "2 hours ago");
        assert_eq!(since(0, 86_400 * 3), "3 days ago");
        assert_eq!(fit("abcdef", 4), "abc…");
    }
}
