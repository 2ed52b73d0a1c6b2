//! Names of variables that look as if they held a secret.

const SECRET: &[&str] = &[
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];
const HARMLESS: &[&str] = &["public", "file", "version"];

/// Whether a word of the name says secret, and none says that it is no secret itself.
pub(super) fn looks_secret(name: &str) -> bool {
    let has = |words: &[&str]| {
        name.split('_').any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)))
    };
    has(SECRET) && !has(HARMLESS)
}
