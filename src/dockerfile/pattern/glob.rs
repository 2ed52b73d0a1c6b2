//! Go's `filepath.Match` and `filepath.Clean`, to the letter: Docker's results hang on their corners.
//!
//! Knows no `**`.

use thiserror::Error;

/// A bracket or a backslash without its end.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// The shortest equal path: no `.`, no `//`, `..` applied, no trailing slash; `.` when empty.
#[must_use]
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// Whether a path has `*`, `?` or `[` that no backslash takes the meaning from.
#[must_use]
pub fn has_wildcard(path: &[u8]) -> bool {
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Whether all of `name` matches `pattern`; `*` and `?` never match a slash.
///
/// # Errors
///
/// When the pattern is malformed, wherever in it.
pub fn matches_glob(mut pattern: &[u8], mut name: &[u8]) -> Result<bool, BadPattern> {
    'pattern: while !pattern.is_empty() {
        let (star, chunk, rest) = next_chunk(pattern);
        pattern = rest;
        if star && chunk.is_empty() {
            return Ok(!name.contains(&b'/'));
        }
        if let Some(left) = match_chunk(chunk, name)?
            && (left.is_empty() || !pattern.is_empty())
        {
            name = left;
            continue;
        }
        if star {
            for skipped in 0..name.len() {
                if name[skipped] == b'/' {
                    break;
                }
                let Some(left) = match_chunk(chunk, &name[skipped + 1..])? else { continue };
                if pattern.is_empty() && !left.is_empty() {
                    continue;
                }
                name = left;
                continue 'pattern;
            }
        }
        while !pattern.is_empty() {
            let (_, chunk, rest) = next_chunk(pattern);
            pattern = rest;
            match_chunk(chunk, b"")?;
        }
        return Ok(false);
    }
    Ok(name.is_empty())
}

/// Splits off leading stars and what follows them up to the next star.
fn next_chunk(pattern: &[u8]) -> (bool, &[u8], &[u8]) {
    let stars = pattern.iter().take_while(|byte| **byte == b'*').count();
    let pattern = &pattern[stars..];
    let mut in_brackets = false;
    let mut end = 0;
    while end < pattern.len() {
        match pattern[end] {
            b'\\' if end + 1 < pattern.len() => end += 1,
            b'[' => in_brackets = true,
            b']' => in_brackets = false,
            b'*' if !in_brackets => break,
            _ => {}
        }
        end += 1;
    }
    (stars > 0, &pattern[..end], &pattern[end..])
}

/// Matches a chunk without stars at the start of `name`; what is left of `name` when it does.
/// The chunk is read to its end even when nothing can match any more, to find what is malformed.
fn match_chunk<'a>(mut chunk: &[u8], mut name: &'a [u8]) -> Result<Option<&'a [u8]>, BadPattern> {
    let mut failed = false;
    while let Some((first, rest)) = chunk.split_first() {
        failed |= name.is_empty();
        match first {
            b'[' => {
                let character = if failed { '\0' } else { take_char(&mut name) };
                let (rest, matched) = match_brackets(rest, character)?;
                chunk = rest;
                failed |= !matched;
            }
            b'?' => {
                if !failed {
                    failed = name[0] == b'/';
                    take_char(&mut name);
                }
                chunk = rest;
            }
            _ => {
                let (literal, rest) = match first {
                    b'\\' => rest.split_first().ok_or(BadPattern)?,
                    literal => (literal, rest),
                };
                if !failed {
                    failed = *literal != name[0];
                    name = &name[1..];
                }
                chunk = rest;
            }
        }
    }
    Ok((!failed).then_some(name))
}

/// Reads a character class behind its `[`.
fn match_brackets(mut chunk: &[u8], character: char) -> Result<(&[u8], bool), BadPattern> {
    let negated = chunk.first() == Some(&b'^');
    if negated {
        chunk = &chunk[1..];
    }
    let mut matched = false;
    let mut ranges = 0;
    loop {
        if chunk.first() == Some(&b']') && ranges > 0 {
            return Ok((&chunk[1..], matched != negated));
        }
        let low = take_class_char(&mut chunk)?;
        let mut high = low;
        if chunk.first() == Some(&b'-') {
            chunk = &chunk[1..];
            high = take_class_char(&mut chunk)?;
        }
        matched |= (low..=high).contains(&character);
        ranges += 1;
    }
}

fn take_class_char(chunk: &mut &[u8]) -> Result<char, BadPattern> {
    match chunk.first() {
        None | Some(b'-' | b']') => return Err(BadPattern),
        Some(b'\\') => *chunk = &chunk[1..],
        Some(_) => {}
    }
    if chunk.is_empty() {
        return Err(BadPattern);
    }
    let before = chunk.len();
    let character = take_char(chunk);
    let invalid = character == char::REPLACEMENT_CHARACTER && before - chunk.len() == 1;
    if invalid || chunk.is_empty() { Err(BadPattern) } else { Ok(character) }
}

/// Takes one character; a byte that is no UTF-8 counts as U+FFFD, as in Go.
pub(super) fn take_char(bytes: &mut &[u8]) -> char {
    let length = match bytes[0] {
        0..0x80 => 1,
        0xC0..0xE0 => 2,
        0xE0..0xF0 => 3,
        _ => 4,
    };
    let decoded = bytes.get(..length).and_then(|piece| std::str::from_utf8(piece).ok());
    match decoded.and_then(|text| text.chars().next()) {
        Some(character) => {
            *bytes = &bytes[length..];
            character
        }
        None => {
            *bytes = &bytes[1..];
            char::REPLACEMENT_CHARACTER
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_go() {
        // The table of Go's own test of `filepath.Match`; `None` is a malformed pattern.
        let rows: &[(&str, &str, Option<bool>)] = &[
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*", "ab/c", Some(false)),
            ("a*/b", "abc/b", Some(true)),
            ("a*/b", "a/c/b", Some(false)),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", Some(true)),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", Some(true)),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", Some(false)),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", Some(false)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[e-g]", "abc", Some(false)),
            ("ab[^c]", "abc", Some(false)),
            ("ab[^e-g]", "abc", Some(true)),
            ("a\\*b", "a*b", Some(true)),
            ("a\\*b", "ab", Some(false)),
            ("a?b", "a☺b", Some(true)),
            ("a[^a]b", "a☺b", Some(true)),
            ("a???b", "a☺b", Some(false)),
            ("[a-ζ]*", "α", Some(true)),
            ("*[a-ζ]", "A", Some(false)),
            ("a?b", "a/b", Some(false)),
            ("a*b", "a/b", Some(false)),
            ("[\\]a]", "]", Some(true)),
            ("[\\-x]", "-", Some(true)),
            ("[x\\-]", "z", Some(false)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[x-]", "x", None),
            ("[-x]", "x", None),
            ("\\", "a", None),
            ("[a-b-c]", "a", None),
            ("[", "a", None),
            ("[^", "a", None),
            ("[^bc", "a", None),
            ("a[", "a", None),
            ("a[", "ab", None),
            ("a[", "x", None),
            ("a/b[", "x", None),
            ("*x", "xxx", Some(true)),
        ];
        for (pattern, name, expected) in rows {
            let found = matches_glob(pattern.as_bytes(), name.as_bytes()).ok();
            assert_eq!(found, *expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_in_go() {
        let rows = [
            ("", "."),
            ("abc//def//ghi", "abc/def/ghi"),
            ("//abc", "/abc"),
            ("abc/./../def", "def"),
            ("abc/def/../../..", ".."),
            ("/../abc", "/abc"),
            ("../../abc", "../../abc"),
            ("abc/", "abc"),
            ("/", "/"),
            ("abc/../../././../def", "../../def"),
        ];
        for (path, expected) in rows {
            assert_eq!(clean(path), expected, "{path}");
        }
    }
}
