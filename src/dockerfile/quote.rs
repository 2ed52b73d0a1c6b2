//! Text between double quotes, as the messages of this language quote it.

use std::fmt::Write as _;

/// Quotes `text` with the escapes that Go's `%q` uses, which BuildKit's messages and history are made of.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        push_escaped(&mut out, letter);
    }
    out.push('"');
    out
}

fn push_escaped(out: &mut String, letter: char) {
    let short = match letter {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\u{7}' => "\\a",
        '\u{8}' => "\\b",
        '\u{c}' => "\\f",
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        '\u{b}' => "\\v",
        _ => "",
    };
    let code = u32::from(letter);
    if !short.is_empty() {
        out.push_str(short);
    } else if code < 0x20 || code == 0x7f {
        write!(out, "\\x{code:02x}").expect("a string takes everything");
    } else if is_printable(letter) {
        out.push(letter);
    } else if code < 0x1_0000 {
        write!(out, "\\u{code:04x}").expect("a string takes everything");
    } else {
        write!(out, "\\U{code:08x}").expect("a string takes everything");
    }
}

/// Letters that need no escape; blanks other than the plain one do.
///
/// The standard library escapes what Go does, and a combining mark that comes first: hence the letter in front.
fn is_printable(letter: char) -> bool {
    let text: String = ['a', letter].iter().collect();
    letter == '\'' || text.escape_debug().nth(1) == Some(letter)
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn quotes_are_go_s() {
        for (text, expected) in [
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("say \"x\"", "\"say \\\"x\\\"\""),
            ("it's", "\"it's\""),
            ("a\\b", "\"a\\\\b\""),
            ("a\nb\tc\u{1}\u{7f}", "\"a\\nb\\tc\\x01\\x7f\""),
            ("é日\u{a0}\u{feff}", "\"é日\\u00a0\\ufeff\""),
            ("e\u{301}\u{200b}\u{f0000}", "\"e\u{301}\\u200b\\U000f0000\""),
        ] {
            assert_eq!(quoted(text), expected);
        }
    }
}
