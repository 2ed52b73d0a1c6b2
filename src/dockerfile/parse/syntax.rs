//! Which frontend a file asks for: wider than the parser's own directives, as other languages use it, too.

use crate::dockerfile::ast::Location;

use super::lines::{directive_after, directive_of};

/// What `# syntax=` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syntax {
    /// The frontend's image.
    pub image: String,
    /// The whole value: the image and what is handed to it.
    pub command: String,
    /// Where it stands.
    pub location: Location,
}

/// Finds `# syntax=…`, `// syntax=…` or `{"syntax": "…"}`; a `#!` line before it does not count.
#[must_use]
pub fn detect_syntax(text: &str) -> Option<Syntax> {
    let bom = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut start = bom;
    let mut number = 1;
    let mut body = text.get(start..).unwrap_or_default();
    if body.starts_with("#!") {
        let (shebang, rest) = body.split_once('\n').unwrap_or((body, ""));
        start += shebang.len() + 1;
        number += 1;
        body = rest;
    }
    in_comments(body, start, number, directive_of)
        .or_else(|| in_comments(body, start, number, |l| directive_after(l.strip_prefix("//")?)))
        .or_else(|| in_json(body, start, number))
}

fn in_comments(
    body: &str,
    start: usize,
    number: usize,
    read: impl Fn(&str) -> Option<(String, &str)>,
) -> Option<Syntax> {
    let mut start = start;
    for (index, line) in body.split_inclusive('\n').enumerate() {
        let trimmed = line.trim_end_matches(['\r', '\n']);
        let (key, value) = read(trimmed)?;
        match key.as_str() {
            "syntax" => {
                let span = start..start + trimmed.len();
                let lines = (number + index, number + index);
                return Some(syntax(value, Location { span, lines }));
            }
            "escape" | "check" => {}
            _ => return None,
        }
        start += line.len();
    }
    None
}

fn in_json(body: &str, start: usize, number: usize) -> Option<Syntax> {
    let value: serde_json::Value = serde_json::from_str(body).ok()?;
    let text = value.get("syntax")?.as_str()?.to_owned();
    let location = Location { span: start..start + body.len(), lines: (number, number) };
    Some(Syntax { image: text.clone(), command: text, location })
}

fn syntax(value: &str, location: Location) -> Syntax {
    let image = value.split(' ').next().unwrap_or_default().to_owned();
    Syntax { image, command: value.to_owned(), location }
}

#[cfg(test)]
mod tests {
    use super::detect_syntax;

    #[test]
    fn a_frontend_is_found_where_buildkit_finds_it() {
        for (text, expected) in [
            ("# syntax=a/b:1\nFROM x", Some(("a/b:1", "a/b:1", 1))),
            ("#!/usr/bin/x\n# Syntax = a  \nFROM x", Some(("a", "a", 2))),
            ("# escape=`\n# syntax=a b c\n", Some(("a", "a b c", 2))),
            ("// syntax=a\n", Some(("a", "a", 1))),
            ("{\"syntax\": \"a b\"}", Some(("a b", "a b", 1))),
            ("\u{feff}# syntax=a", Some(("a", "a", 1))),
            ("# comment\n# syntax=a", None),
            ("# other=b\n# syntax=a", None),
            ("\n# syntax=a", None),
            ("{\"syntax\": 1}", None),
            ("#!", None),
            ("", None),
        ] {
            let found = detect_syntax(text);
            let found =
                found.as_ref().map(|s| (s.image.as_str(), s.command.as_str(), s.location.lines.0));
            assert_eq!(found, expected, "{text}");
        }
    }
}
