//! What goes into messages about answers: URLs without secrets, the registry's own words, excerpts.
//!
//! Everything that comes from a server passes through here before a person sees it.

use serde::Deserialize;
use url::Url;

/// Most characters of a server's words that a message repeats.
const EXCERPT_CHARS: usize = 300;

/// A URL without user, query and fragment: signed queries are secrets.
pub(super) fn shown_url(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    if shown.set_username("").is_ok() && shown.set_password(None).is_ok() {
        return shown.to_string();
    }
    format!("{}:…", url.scheme())
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    errors: Vec<ErrorLine>,
    message: Option<String>,
    details: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct ErrorLine {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    detail: serde_json::Value,
}

/// The registry's words from an error body: its codes and messages, or else a readable excerpt.
pub(super) fn words(body: &[u8]) -> String {
    let found = serde_json::from_slice::<Envelope>(body).map(|envelope| {
        let line = |line: &ErrorLine| {
            let detail = line.detail.as_str().map(|detail| format!(" ({detail})"));
            format!("{} {}{}", line.code, line.message, detail.unwrap_or_default())
                .trim()
                .to_owned()
        };
        let mut lines: Vec<String> = envelope.errors.iter().map(line).collect();
        lines.extend(
            [envelope.message, envelope.error, envelope.error_description, envelope.details]
                .into_iter()
                .flatten(),
        );
        lines.join("; ")
    });
    let text = match found {
        Ok(words) if !words.is_empty() => words,
        _ => without_tags(&String::from_utf8_lossy(body)),
    };
    let text = excerpt(&text);
    if text.is_empty() { "no reason given".to_owned() } else { text }
}

/// One line, no control characters, no URL queries, not too long.
pub(super) fn excerpt(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = clean
        .split_whitespace()
        .map(|word| match (word.contains("://"), word.split_once('?')) {
            (true, Some((url, _))) => url,
            _ => word,
        })
        .collect();
    let line = words.join(" ");
    match line.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

/// Takes secrets out of a text that may repeat them.
pub(super) fn scrub(text: String, secrets: &[String]) -> String {
    const SECRET_BYTES_MIN: usize = 4;
    let long_enough = secrets.iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN);
    long_enough.fold(text, |text, secret| text.replace(secret.as_str(), "***"))
}

fn without_tags(text: &str) -> String {
    let mut plain = String::new();
    let mut inside = false;
    for c in text.chars() {
        match c {
            '<' => inside = true,
            '>' if inside => {
                inside = false;
                plain.push(' ');
            }
            other if !inside => plain.push(other),
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn error_bodies_become_one_readable_line() {
        for (body, wanted) in [
            (
                &br#"{"errors":[{"code":"DENIED","message":"no","detail":"quota"},{"code":"X"}]}"#
                    [..],
                "DENIED no (quota); X",
            ),
            (
                br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"m","detail":{"Tag":"v1"}}]}"#,
                "MANIFEST_UNKNOWN m",
            ),
            (br#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            (
                br#"{"error":"invalid_grant","error_description":"expired"}"#,
                "invalid_grant; expired",
            ),
            (b"<html><title>Log in</title>\n<body>Please\x1b[31m</body>", "Log in Please [31m"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            (b"", "no reason given"),
            (b"see https://x/y?X-Amz-Signature=abc now", "see https://x/y now"),
        ] {
            assert_eq!(words(body), wanted);
        }
        assert_eq!(words(&[b'x'; 5000]).chars().count(), EXCERPT_CHARS + 1);
    }

    #[test]
    fn urls_are_shown_without_their_secrets() {
        let url = Url::parse("https://user:pw@host:5000/v2/x?sig=secret#f").unwrap();
        assert_eq!(shown_url(&url), "https://host:5000/v2/x");
    }

    proptest! {
        #[test]
        fn any_body_gives_one_bounded_line(body in prop::collection::vec(any::<u8>(), 0..2000)) {
            let line = words(&body);
            prop_assert!(!line.contains(char::is_control));
            prop_assert!(line.chars().count() <= EXCERPT_CHARS + 1);
        }
    }
}
