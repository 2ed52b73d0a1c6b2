//! `--chmod`: octal for everything alike, symbolic for each file by its own mode.
//!
//! Knows no files.

use super::FilesError;
use crate::{graph::Chmod, tree::Kind};

/// A `--chmod` that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ModeChange {
    Octal(u32),
    Symbolic(Vec<Clause>),
}

/// One operation, such as `go=rX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clause {
    /// Permission bits of the users named.
    who: u32,
    operator: char,
    letters: Vec<char>,
}

const ALL: u32 = 0o7777;

impl ModeChange {
    pub(super) fn parse(chmod: &Chmod) -> Result<Self, FilesError> {
        match chmod {
            Chmod::Octal(mode) if *mode <= ALL => Ok(Self::Octal(*mode)),
            Chmod::Octal(mode) => Err(FilesError::Invalid(format!(
                "invalid chmod parameter: '{mode:o}'. it should be octal string and between 0 and 07777"
            ))),
            Chmod::Symbolic(text) => {
                let clauses = text.split(',').map(clauses_of).collect::<Option<Vec<_>>>();
                let clauses = clauses.ok_or_else(|| {
                    FilesError::Invalid(format!(
                        "invalid chmod parameter: '{text}': invalid syntax"
                    ))
                })?;
                Ok(Self::Symbolic(clauses.concat()))
            }
        }
    }

    /// The mode of something copied that had `mode`.
    pub(super) fn apply(&self, mode: u32, kind: &Kind) -> u32 {
        match self {
            Self::Octal(octal) => *octal,
            Self::Symbolic(clauses) => {
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, kind))
            }
        }
    }

    /// The mode of a directory that is made on the way: `mkdir` takes no special bits, and there is
    /// no mode that a symbolic change could change.
    pub(super) fn of_made(change: Option<&Self>) -> u32 {
        match change {
            Some(Self::Octal(mode)) => mode & 0o777,
            Some(Self::Symbolic(_)) | None => 0o755,
        }
    }
}

fn clauses_of(text: &str) -> Option<Vec<Clause>> {
    let split = text.find(['+', '-', '='])?;
    let (users, mut rest) = text.split_at(split);
    let mut who = 0;
    for user in users.chars() {
        who |= match user {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => ALL,
            _ => return None,
        };
    }
    let who = if users.is_empty() { ALL } else { who };
    let mut clauses = Vec::new();
    while let Some(operator) = rest.chars().next() {
        let after = rest.strip_prefix(operator)?;
        let end = after.find(['+', '-', '=']).unwrap_or(after.len());
        let (letters, left) = after.split_at(end);
        let copies = letters.len() == 1 && letters.contains(['u', 'g', 'o']);
        if !copies && !letters.chars().all(|letter| "rwxXst".contains(letter)) {
            return None;
        }
        clauses.push(Clause { who, operator, letters: letters.chars().collect() });
        rest = left;
    }
    Some(clauses)
}

impl Clause {
    fn apply(&self, mode: u32, kind: &Kind) -> u32 {
        let is_directory = *kind == Kind::Directory;
        let mut bits = 0;
        for letter in &self.letters {
            bits |= match letter {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if is_directory || mode & 0o111 != 0 => 0o111,
                's' => 0o6000,
                't' => 0o1000,
                'u' => 0o111 * (mode >> 6 & 7),
                'g' => 0o111 * (mode >> 3 & 7),
                'o' => 0o111 * (mode & 7),
                _ => 0,
            };
        }
        // `t` has no user of its own: it goes with any.
        let who = if bits & 0o1000 == 0 { self.who } else { self.who | 0o1000 };
        match self.operator {
            '+' => mode | (bits & who),
            '-' => mode & !(bits & who),
            _ => {
                // A directory keeps its special bits unless they are named, as with GNU chmod.
                let cleared = if is_directory { who & (0o777 | bits) } else { who };
                (mode & !cleared) | (bits & who)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_modes_change_as_chmod_does() {
        // change, mode before, file after, directory after
        let rows = [
            ("+x", 0o644, 0o755, 0o755),
            ("u=rwX,go=rX", 0o600, 0o644, 0o755),
            ("u=rwX,go=rX", 0o700, 0o755, 0o755),
            ("go-r", 0o644, 0o600, 0o600),
            ("a=", 0o777, 0, 0),
            ("u+s", 0o755, 0o4755, 0o4755),
            ("g+s,o+t", 0o755, 0o3755, 0o3755),
            ("g=u", 0o740, 0o770, 0o770),
            ("u+x-w", 0o644, 0o544, 0o544),
            ("+X", 0o644, 0o644, 0o755),
        ];
        for (text, before, file, directory) in rows {
            let change = ModeChange::parse(&Chmod::Symbolic(text.to_owned())).unwrap();
            assert_eq!(change.apply(before, &Kind::File { size: 0 }), file, "{text} on a file");
            assert_eq!(change.apply(before, &Kind::Directory), directory, "{text} on a directory");
        }
    }

    #[test]
    fn c14_modes_out_of_range_or_out_of_shape_are_refused() {
        for text in ["u=rwz", "", "rwx", "u", "z+r", "u=rw,", "u+gx"] {
            assert!(ModeChange::parse(&Chmod::Symbolic(text.to_owned())).is_err(), "{text}");
        }
        assert!(ModeChange::parse(&Chmod::Octal(0o17777)).is_err());
    }
}
