//! What only files can show of a copy: owners that nobody is, wildcards without a match, directories that nobody enters.
//!
//! Answers questions; what becomes of the answers, and whether they were wanted, is decided elsewhere.

use super::{
    FilesError, Root, accounts, copies_below, needs_base,
    select::{Pick, Role},
    select_for,
    source::Tree,
};
use crate::{
    dockerfile::{
        lint::{UNKNOWN_OWNER, UNMATCHED_WILDCARD, UNUSABLE_DIRECTORY},
        pattern::has_wildcard,
    },
    graph::{FileAction, FilesOp, OpId, SourceRoot},
    layer::Listing,
    oci::DiffId,
    snapshot::View,
    store::Store,
    tree::{Change, Kind},
};

/// Bits of a mode that let somebody enter a directory.
const SEARCH_BITS: u32 = 0o111;

/// A rule that has something to say, and what.
pub type Advice = (&'static str, String);

/// What the files of an op show, by rule; `layers` are what was made of it on top of `base`.
///
/// # Errors
///
/// When files or layers cannot be read.
pub fn advice<'a>(
    store: &Store,
    op: &FilesOp,
    (base, layers): (&[DiffId], &[DiffId]),
    root_of: &dyn Fn(OpId) -> Root<'a>,
) -> Result<Vec<Advice>, FilesError> {
    let mut found = Vec::new();
    for action in &op.actions {
        for name in unknown_owners(store, action, base)? {
            found.push((UNKNOWN_OWNER, name));
        }
        for path in unmatched(store, action, root_of)? {
            found
                .push((UNMATCHED_WILDCARD, format!("{path:?} matches no file: nothing is copied")));
        }
    }
    for layer in layers {
        if let Some(path) = unusable(store, *layer)? {
            let message = format!("by --chmod nobody may enter {path}, which is a directory");
            found.push((UNUSABLE_DIRECTORY, message));
            break;
        }
    }
    Ok(found)
}

fn unknown_owners(
    store: &Store,
    action: &FileAction,
    base: &[DiffId],
) -> Result<Vec<String>, FilesError> {
    let (what, owner) = match action {
        FileAction::MakeDirectory { owner, .. } => ("USER", owner.as_str()),
        FileAction::Copy { chown, .. } => ("--chown", chown.as_deref().unwrap_or_default()),
    };
    if owner.is_empty() || base.is_empty() || !needs_base(action) {
        return Ok(Vec::new());
    }
    let view = View::open(store, base)?;
    let unknown = accounts::unknown_names(&view, owner)?;
    Ok(unknown.into_iter().map(|reason| format!("{what}={owner}: {reason}; 0 is taken")).collect())
}

fn unmatched<'a>(
    store: &Store,
    action: &FileAction,
    root_of: &dyn Fn(OpId) -> Root<'a>,
) -> Result<Vec<String>, FilesError> {
    let FileAction::Copy { sources, .. } = action else { return Ok(Vec::new()) };
    let mut unmatched = Vec::new();
    for source in sources {
        let SourceRoot::Op(id) = source.root else { continue };
        let root = root_of(id);
        if !has_wildcard(source.path.as_bytes()) || matches!(root, Root::Download(_)) {
            continue;
        }
        let picks = select_for((store, &Tree::open(store, root)?), &source.path, action)?;
        if !picks.iter().any(|pick| has_chosen(action, pick)) {
            unmatched.push(source.path.clone());
        }
    }
    Ok(unmatched)
}

/// With `--parents` the pick is where the search begins, and no match by itself.
fn has_chosen(action: &FileAction, pick: &Pick) -> bool {
    !copies_below(action) || pick.items.unpacked().any(|item| item.role == Role::Chosen)
}

/// The first directory of a layer that nobody may enter.
fn unusable(store: &Store, layer: DiffId) -> Result<Option<String>, FilesError> {
    let Some(bytes) = store.listing(layer)? else { return Ok(None) };
    let listing = Listing::decode(bytes)?;
    let shut = listing.iter().find_map(|listed| {
        let Change::Put(entry) = &listed.change else { return None };
        let is_shut = entry.kind == Kind::Directory && entry.meta.mode & SEARCH_BITS == 0;
        (is_shut && !entry.path.is_root()).then(|| format!("/{}", entry.path))
    });
    Ok(shut.map(|path| path.replacen("//", "/", 1)))
}
