//! `--chmod`: octal or symbolic.

use crate::graph::Chmod;

const OCTAL_MAX: u64 = 0o7777;

/// Reads a mode; the error is BuildKit's.
pub(super) fn parse(typed: &str) -> Result<Chmod, String> {
    let not_octal = || {
        format!(
            "invalid chmod parameter: '{typed}'. it should be octal string and between 0 and 07777"
        )
    };
    if typed.starts_with(|letter: char| letter.is_ascii_digit()) {
        let mode = u64::from_str_radix(typed, 8).ok().filter(|mode| *mode <= OCTAL_MAX);
        let mode = mode.and_then(|mode| u32::try_from(mode).ok());
        return mode.map(Chmod::Octal).ok_or_else(not_octal);
    }
    if typed.split(',').all(is_clause) {
        Ok(Chmod::Symbolic(typed.to_owned()))
    } else {
        Err("invalid syntax".to_owned())
    }
}

/// `[ugoa]*` followed by operators with their permissions, as chmod(1) has it.
fn is_clause(clause: &str) -> bool {
    let mut rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    if rest.is_empty() {
        return false;
    }
    while let Some(after) = rest.strip_prefix(['+', '-', '=']) {
        let copied = after.strip_prefix(['u', 'g', 'o']);
        rest = copied.unwrap_or_else(|| after.trim_start_matches(['r', 'w', 'x', 'X', 's', 't']));
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_or_symbolic() {
        assert_eq!(parse("0644"), Ok(Chmod::Octal(0o644)));
        assert_eq!(parse("7777"), Ok(Chmod::Octal(0o7777)));
        for good in ["u=rwX,go=rX", "+x", "a-w", "g=u", "u+s", "=", "u=rw-x", "o="] {
            assert_eq!(parse(good), Ok(Chmod::Symbolic(good.to_owned())), "{good}");
        }
        for bad in ["64a", "17777", "8", "u=rwz", "u", "", "u=rw,", "z+x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
