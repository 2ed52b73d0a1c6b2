//! The ignore file as the check on ignored sources sees it.

use crate::dockerfile::ignore::{IgnoreError, IgnoreFile};

/// Patterns that leave nothing of the context.
const EVERYTHING: &[&str] = &["*", "**", "**/*"];

/// An ignore file.
#[derive(Debug)]
pub(super) struct Ignored {
    file: IgnoreFile,
    /// What `!` brings back cannot be told without looking at files.
    has_exceptions: bool,
    hides_everything: bool,
}

impl Ignored {
    /// Reads the text of the file.
    pub(super) fn parse(text: &str) -> Result<Self, IgnoreError> {
        let lines = || text.lines().filter(|line| !line.starts_with('#')).map(str::trim);
        Ok(Self {
            file: IgnoreFile::parse(text)?,
            has_exceptions: lines().any(|line| line.starts_with('!')),
            hides_everything: lines()
                .any(|line| EVERYTHING.contains(&line.trim_start_matches('/'))),
        })
    }

    /// Whether a cleaned source of `COPY` is certainly left out.
    pub(super) fn hides(&self, source: &str) -> bool {
        match source {
            _ if self.has_exceptions => false,
            "." | "/" => self.hides_everything,
            path => self.file.is_excluded(path),
        }
    }
}
