//! Reads `WWW-Authenticate`: several challenges in one header, quoted strings, any order of parameters.
//!
//! Source: RFC 9110 §11.6.1. Total: no input makes it fail, what makes no sense is left out.

use std::collections::BTreeMap;

/// Longest header that is looked at, in bytes; no honest one comes near.
const HEADER_BYTES_MAX: usize = 8 << 10;

/// One challenge. Names of scheme and parameters are lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) scheme: String,
    pub(super) parameters: BTreeMap<String, String>,
}

impl Challenge {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }
}

/// All challenges of one header value, in order.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    if header.len() > HEADER_BYTES_MAX {
        return found;
    }
    let mut rest = header.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (name, after) = token(rest);
        if name.is_empty() {
            rest = skip_one(rest);
            continue;
        }
        let spaced = after.trim_start_matches([' ', '\t']);
        match (spaced.strip_prefix('='), found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
                challenge.parameters.entry(name.to_ascii_lowercase()).or_insert(value);
                rest = after;
            }
            (Some(value), None) => rest = parameter_value(value).1,
            (None, _) => {
                let scheme = name.to_ascii_lowercase();
                found.push(Challenge { scheme, parameters: BTreeMap::new() });
                rest = spaced;
            }
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    found
}

fn token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    text.split_at(end)
}

fn skip_one(text: &str) -> &str {
    let mut chars = text.chars();
    chars.next();
    chars.as_str()
}

/// A quoted string with its escapes undone, or everything up to a comma or blank.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            other => value.push(other),
        }
    }
    (value, chars.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(header: &str) -> String {
        let one = |challenge: Challenge| {
            let parameters: Vec<String> = challenge
                .parameters
                .iter()
                .map(|(name, value)| format!("{name}=<{value}>"))
                .collect();
            format!("{} {}", challenge.scheme, parameters.join(" ")).trim_end().to_owned()
        };
        parse(header).into_iter().map(one).collect::<Vec<_>>().join(" | ")
    }

    #[test]
    fn headers_of_known_registries_and_of_strange_ones() {
        for (header, wanted) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                "bearer realm=<https://auth.docker.io/token> scope=<repository:a/b:pull,push> service=<registry.docker.io>",
            ),
            (
                r#"Bearer realm="https://g:8443/v2/token",service="container_registry",scope="*", Basic realm="Gitea""#,
                "bearer realm=<https://g:8443/v2/token> scope=<*> service=<container_registry> | basic realm=<Gitea>",
            ),
            (r#"Basic realm="a \"quoted\", one""#, r#"basic realm=<a "quoted", one>"#),
            ("Negotiate, Basic realm=x", "negotiate | basic realm=<x>"),
            ("BEARER Realm = \"x\" , Service=y", "bearer realm=<x> service=<y>"),
            ("Bearer realm=\"unterminated", "bearer realm=<unterminated>"),
            ("Bearer realm=\"a\",realm=\"b\"", "bearer realm=<a>"),
            ("realm=\"no scheme\", Basic", "basic"),
            ("", ""),
            (" , ,, ", ""),
            ("Bearer error=\"insufficient_scope\"", "bearer error=<insufficient_scope>"),
        ] {
            assert_eq!(shown(header), wanted, "{header}");
        }
    }

    #[test]
    fn a_huge_header_is_no_challenge() {
        assert_eq!(parse(&format!("Bearer realm=\"{}\"", "x".repeat(64 << 10))), []);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            drop(parse(&text));
        }

        #[test]
        fn quoted_values_survive(value in "[ -~]{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let read = parse(&format!("Bearer a=b, realm=\"{quoted}\", Basic realm=x"));
            prop_assert_eq!(read.len(), 2);
            prop_assert_eq!(read[0].get("realm"), Some(value.as_str()));
        }
    }
}
