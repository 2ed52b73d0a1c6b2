//! Rules of our own: where BuildKit's result is kept, and is hardly what was meant (`schema/checks.md`).
//!
//! Knows what an instruction says as it stands. What only files can show (owners, wildcards, modes of directories) is
//! found by who copies them, under the names that stand here.

use crate::dockerfile::ast::{Instruction, Kind, Run};
use crate::dockerfile::mount;
use crate::dockerfile::quote::quoted;

use super::Warning;

/// A name in `--chown` or `USER` that the image does not know.
pub const UNKNOWN_OWNER: &str = "UnknownOwner";
/// A wildcard that matches nothing.
pub const UNMATCHED_WILDCARD: &str = "UnmatchedWildcard";
/// A directory that nobody may enter.
pub const UNUSABLE_DIRECTORY: &str = "UnusableDirectory";
/// `$` in what `${x//a/b}` puts in.
pub(in crate::dockerfile) const DOLLAR_IN_REPLACEMENT: &str = "DollarInReplacement";
const IGNORED_FLAG: &str = "IgnoredFlag";
const ESCAPED_CONTINUATION: &str = "EscapedContinuation";
const MOUNT_TYPE_FIRST: &str = "MountTypeFirst";
const LINK_IGNORED: &str = "LinkIgnored";
const HEALTHCHECK_LOST: &str = "HealthcheckNotInOci";

/// All rules of our own, in the order of `schema/checks.md`.
pub const OWN_RULES: [&str; 9] = [
    UNKNOWN_OWNER,
    UNMATCHED_WILDCARD,
    UNUSABLE_DIRECTORY,
    LINK_IGNORED,
    IGNORED_FLAG,
    MOUNT_TYPE_FIRST,
    ESCAPED_CONTINUATION,
    DOLLAR_IN_REPLACEMENT,
    HEALTHCHECK_LOST,
];

/// Fewest escape characters at the end of a line that a shell takes for a continuation and BuildKit does not.
const ESCAPES_MIN: usize = 3;

/// What an instruction shows by itself; `escape` is the file's escape character.
pub(in crate::dockerfile) fn of_instruction(at: &Instruction, escape: char) -> Vec<Warning> {
    let found = [
        escaped_continuation(at, escape).map(|message| (ESCAPED_CONTINUATION, message)),
        ignored_flag(at).map(|message| (IGNORED_FLAG, message)),
        link_ignored(&at.kind).map(|message| (LINK_IGNORED, message)),
        mount_type(&at.kind).map(|message| (MOUNT_TYPE_FIRST, message)),
        healthcheck(&at.kind).map(|message| (HEALTHCHECK_LOST, message)),
    ];
    let warning = |(rule, message)| Warning { rule, message, location: at.location.clone() };
    found.into_iter().flatten().map(warning).collect()
}

/// BuildKit looks at the one character before the last: `\\\` is an escaped escape and no continuation to it.
fn escaped_continuation(at: &Instruction, escape: char) -> Option<String> {
    let line = at.original.trim_end_matches([' ', '\t']);
    let escapes = line.chars().rev().take_while(|letter| *letter == escape).count();
    (escapes >= ESCAPES_MIN && escapes % 2 == 1).then(|| {
        let shown: String = std::iter::repeat_n(escape, escapes).collect();
        format!("`{shown}` does not continue the line: the instruction ends here")
    })
}

fn ignored_flag(at: &Instruction) -> Option<String> {
    let drops_flags = if let Kind::Healthcheck(check) = &at.kind {
        check.test.first().is_some_and(|test| test == "NONE")
    } else {
        matches!(at.kind, Kind::Arg(_) | Kind::StopSignal(_))
    };
    let flag = at.original.split_whitespace().nth(1)?;
    let given = drops_flags && flag.starts_with("--") && flag != "--";
    given.then(|| format!("{} takes no flags: {} is dropped", at.keyword, quoted(flag)))
}

fn link_ignored(kind: &Kind) -> Option<String> {
    let (Kind::Copy(copy) | Kind::Add(copy)) = kind else { return None };
    (copy.link && copy.chmod.is_some())
        .then(|| "--link has no effect together with --chmod".to_owned())
}

/// Keys in front of `type=` are read as those of a bind mount.
fn mount_type(kind: &Kind) -> Option<String> {
    let Kind::Run(Run { flags, .. }) = kind else { return None };
    let mut mounts = flags.iter().filter_map(|flag| flag.strip_prefix("--mount="));
    let late = mounts.find(|text| mount::type_comes_late(text))?;
    Some(format!("`type=` should be the first key of --mount={late}"))
}

fn healthcheck(kind: &Kind) -> Option<String> {
    let Kind::Healthcheck(check) = kind else { return None };
    let asks = check.test.first().is_some_and(|test| test != "NONE");
    asks.then(|| {
        "HEALTHCHECK is an extension of Docker: tools that keep to the OCI format drop it"
            .to_owned()
    })
}
