//! Ignore files (`.dockerignore`): text → what a context leaves out.
//!
//! Knows no file system: who walks asks for each path. What the patterns mean is in `pattern`.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::pattern::{PatternError, PatternSet, Verdict, clean};

/// Longest line that Docker's reader takes, in bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// The patterns of an ignore file.
#[derive(Clone, Debug, Default)]
pub struct IgnoreFile {
    patterns: PatternSet,
}

/// The ignore file of a context.
pub const FILE_NAME: &str = ".dockerignore";

/// The ignore file of one Dockerfile; where there is one, it replaces that of the context.
#[must_use]
pub fn beside(dockerfile: &Path) -> PathBuf {
    let mut name = dockerfile.as_os_str().to_owned();
    name.push(FILE_NAME);
    name.into()
}

/// Why an ignore file is not valid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IgnoreError {
    /// A pattern is malformed. The text is Docker's, and the line is said with it.
    #[error("{error} (line {line}: `{text}`)")]
    Pattern {
        /// What is wrong.
        error: PatternError,
        /// Line, from 1.
        line: usize,
        /// The line as written.
        text: String,
    },
    /// A line is longer than Docker's reader takes.
    #[error("line {line} is {bytes} bytes long, the limit is {LINE_BYTES_MAX}")]
    LongLine {
        /// Line, from 1.
        line: usize,
        /// Its length.
        bytes: usize,
    },
}

impl IgnoreFile {
    /// Reads the text of an ignore file.
    ///
    /// # Errors
    ///
    /// When a pattern is malformed or a line too long.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = Vec::new();
        let mut patterns = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.len() > LINE_BYTES_MAX {
                return Err(IgnoreError::LongLine { line: number, bytes: line.len() });
            }
            if let Some(pattern) = pattern_of(line) {
                lines.push((number, line));
                patterns.push(pattern);
            }
        }
        let patterns = PatternSet::new(&patterns).map_err(|(index, error)| {
            let (line, text) = lines[index];
            IgnoreError::Pattern { error, line, text: text.trim().to_owned() }
        })?;
        Ok(Self { patterns })
    }

    /// Whether nothing is ignored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a path (relative to the context, no leading slash) is left out. The root never is.
    #[must_use]
    pub fn is_excluded(&self, path: impl AsRef<[u8]>) -> bool {
        let path = path.as_ref();
        !path.is_empty() && self.patterns.matches(path)
    }

    /// As [`IgnoreFile::is_excluded`] for a walk: `parent` is the verdict on the directory that holds
    /// the path, the default at the top.
    #[must_use]
    pub fn judge(&self, parent: &Verdict, path: &[u8]) -> Verdict {
        self.patterns.judge(parent, path)
    }

    /// Whether something strictly below an excluded directory may be in the context after all.
    #[must_use]
    pub fn may_reinclude_below(&self, directory: impl AsRef<[u8]>) -> bool {
        self.patterns.may_unmatch_below(directory.as_ref())
    }
}

/// The pattern on a line: cleaned, relative to the root of the context; `None` for comments and blanks.
fn pattern_of(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let line = line.trim();
    let (bang, body) = match line.strip_prefix('!') {
        Some(body) => ("!", body.trim()),
        None => ("", line),
    };
    if body.is_empty() {
        return (!bang.is_empty()).then(|| bang.to_owned());
    }
    let cleaned = clean(body);
    let relative = match cleaned.strip_prefix('/') {
        Some(rest) if !rest.is_empty() => rest,
        _ => &cleaned,
    };
    Some(format!("{bang}{relative}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Corpus {
        paths: Vec<String>,
        rows: Vec<Row>,
    }

    #[derive(Deserialize)]
    struct Row {
        ignore: String,
        excluded: Option<BTreeSet<String>>,
        error: Option<String>,
    }

    #[test]
    fn every_row_of_the_corpus_is_matched_as_docker_does() {
        let corpus: Corpus =
            serde_json::from_str(include_str!("../../tests/corpus/ignore.json")).unwrap();
        assert!(corpus.rows.len() >= 151);
        let mut wrong = Vec::new();
        for row in &corpus.rows {
            let found = IgnoreFile::parse(&row.ignore).map(|file| {
                let excluded =
                    corpus.paths.iter().filter(|path| judged_in_tree(&file, &corpus, path));
                excluded.cloned().collect::<BTreeSet<_>>()
            });
            let right = match (&found, &row.excluded, &row.error) {
                (Ok(found), Some(expected), None) => found == expected,
                (Err(found), None, Some(expected)) => found.to_string().starts_with(expected),
                _ => false,
            };
            if !right {
                wrong.push(format!(
                    "{:?}: {found:?}, expected {:?} {:?}",
                    row.ignore, row.excluded, row.error
                ));
            }
        }
        assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// A directory that is excluded itself is there after all when something below it is.
    fn judged_in_tree(file: &IgnoreFile, corpus: &Corpus, path: &str) -> bool {
        let below = format!("{path}/");
        let mut kept_below = corpus.paths.iter().filter(|other| other.starts_with(&below));
        file.is_excluded(path) && kept_below.all(|other| file.is_excluded(other))
    }

    #[test]
    fn a_walk_and_a_look_up_agree() {
        let file = IgnoreFile::parse("d\n!d/e\nd\n!**/keep\n").unwrap();
        for path in ["d", "d/e", "d/e/f", "d/x/keep", "d/x"] {
            let mut verdict = Verdict::default();
            let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
            for end in ends {
                verdict = file.judge(&verdict, &path.as_bytes()[..end]);
            }
            assert_eq!(verdict.matched, file.is_excluded(path), "{path}");
        }
    }

    #[test]
    fn errors_name_the_line() {
        let error = IgnoreFile::parse("# x\n\na\n [a-\n").unwrap_err();
        assert_eq!(error.to_string(), "syntax error in pattern (line 4: `[a-`)");
        assert!(IgnoreFile::parse("!/").is_err());
    }

    #[test]
    fn c04_hostile_ignore_files_are_read_in_bounded_time() {
        let long = "a".repeat(1 << 20);
        assert!(matches!(IgnoreFile::parse(&long), Err(IgnoreError::LongLine { line: 1, .. })));
        let stars = IgnoreFile::parse(&format!("x{}y", "**".repeat(1000))).unwrap();
        assert!(stars.is_excluded("x/a/b/c/y"));
        // Docker cleans `!../../x` to `x`: the `!` goes with the component that it is glued to.
        assert!(IgnoreFile::parse("!../../x\n/\n").unwrap().is_excluded("x"));
        let many: String = (0..100_000).map(|n| format!("dir{n}/**/*.o\n")).collect();
        let many = IgnoreFile::parse(&many).unwrap();
        assert!(many.is_excluded("dir7/a/b.o") && !many.is_excluded("dir7/a/b.c"));
        assert!(IgnoreFile::parse("a\\").is_err());
    }
}
