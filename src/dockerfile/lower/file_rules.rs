//! Which copies are worth a look, once their files are known, by rules of our own. Knows no files.

use crate::dockerfile::ast::Instruction;
use crate::dockerfile::lint::{UNKNOWN_OWNER, UNMATCHED_WILDCARD, UNUSABLE_DIRECTORY};
use crate::dockerfile::pattern::has_wildcard;
use crate::graph::{Chmod, FileAction, SourceRoot};

use super::dispatch::Work;
use super::{Build, FileRules};

/// Bits of a mode that let somebody enter a directory.
const SEARCH_BITS: u32 = 0o111;

impl Build<'_> {
    /// Remembers what to look for in the op of `action`, which is the latest one of `work`.
    pub(super) fn watch_files(&mut self, work: &Work, at: &Instruction, action: &FileAction) {
        let asked = rules(action).into_iter().flatten();
        let rules: Vec<_> = asked.filter(|rule| self.report.speaks(rule, at)).collect();
        if !rules.is_empty() {
            let location = at.location.clone();
            self.file_rules.insert(work.op, FileRules { rules, location });
        }
    }
}

fn rules(action: &FileAction) -> [Option<&'static str>; 3] {
    let (owner, wildcard, unusable) = match action {
        FileAction::MakeDirectory { owner, .. } => (Some(owner), false, false),
        FileAction::Copy { sources, chown, chmod, .. } => {
            let wildcard = sources.iter().any(|source| {
                matches!(source.root, SourceRoot::Op(_)) && has_wildcard(source.path.as_bytes())
            });
            let unusable = matches!(chmod, Some(Chmod::Octal(mode)) if mode & SEARCH_BITS == 0);
            (chown.as_ref(), wildcard, unusable)
        }
    };
    let named = owner.is_some_and(|owner| {
        owner.split(':').any(|part| part.starts_with(|first: char| !first.is_ascii_digit()))
    });
    [
        named.then_some(UNKNOWN_OWNER),
        wildcard.then_some(UNMATCHED_WILDCARD),
        unusable.then_some(UNUSABLE_DIRECTORY),
    ]
}
