//! Which files a copy takes: wildcards, links at the top, `--parents`, `--exclude`.
//!
//! Knows sources only; where the files go is none of its business.

use std::sync::Arc;

use super::{
    FilesError,
    items::Items,
    resolve::{child, clamped},
    source::{Node, Tree},
};
use crate::{
    dockerfile::pattern::{PatternSet, Verdict, clean, has_wildcard, matches_glob},
    store::Store,
    tree::TreePath,
};

/// How many files of a directory are looked at before the first of them is gone through.
const LISTED_MAX: usize = 512;

/// Likeness from which on a name is offered instead of one that is not there.
const LIKENESS_MIN: f64 = 0.7;

/// One thing that a source path stands for, with all that is below it.
#[derive(Debug)]
pub(super) struct Pick {
    /// Where it stands in its source, links followed.
    pub(super) path: TreePath,
    /// Name that it gets inside of a directory: the one that was asked for, not the link's target.
    pub(super) name: Vec<u8>,
    /// The thing itself.
    pub(super) top: Node,
    /// In path order, the thing itself first.
    pub(super) items: Arc<Items>,
}

impl Pick {
    /// One file, not looked at any further.
    pub(super) fn single(path: TreePath, name: &[u8], top: Node) -> Self {
        let item = Item { below: TreePath::root(), node: top.clone(), role: Role::Top };
        Self { path, name: name.to_vec(), top, items: Arc::new(Items::from_iter([item])) }
    }
}

/// One entry of a pick.
#[derive(Debug)]
pub(super) struct Item {
    /// Path below the pick; the root for the pick itself.
    pub(super) below: TreePath,
    pub(super) node: Node,
    pub(super) role: Role,
}

/// Why an entry is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is the pick itself.
    Top,
    /// It is selected.
    Chosen,
    /// A directory that is there only for what is below it.
    Passage,
}

/// What narrows a selection.
#[derive(Default)]
pub(super) struct Filter {
    /// `--parents`: patterns below the pick.
    include: Option<PatternSet>,
    /// `--exclude`
    exclude: PatternSet,
}

/// Whether source paths are kept below the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parents {
    Kept,
    Dropped,
}

/// Everything that a source path stands for, in the order of its names.
pub(super) fn select(
    store: &Store,
    tree: &Tree<'_>,
    path: &str,
    exclude: &[String],
    parents: Parents,
) -> Result<Vec<Pick>, FilesError> {
    let exclude = compile(exclude, "excludepatterns")?;
    let (top, include) = match parents {
        Parents::Dropped => (path, None),
        Parents::Kept => {
            let (top, below) = path.split_once("/./").unwrap_or(("/", path));
            let below = clean(&format!("/{below}"));
            let below = below.trim_start_matches('/').to_owned();
            if !has_wildcard(path.as_bytes()) {
                require(tree, &format!("{top}/{below}"))?;
            }
            let include = (!below.is_empty()).then(|| compile(&[below], "includepatterns"));
            (top, include.transpose()?)
        }
    };
    let filter = Filter { include, exclude };
    let mut picks = Vec::new();
    for name in names(tree, top)? {
        let path = tree.resolve(name.as_bytes())?;
        let Some(node) = tree.node(&path)? else {
            // A wildcard may match a link to nothing; a literal must lead somewhere.
            if has_wildcard(top.as_bytes()) {
                continue;
            }
            return Err(not_found(tree, name.as_bytes())?);
        };
        let file_name = name.file_name().or_else(|| path.file_name()).unwrap_or_default().to_vec();
        if !node.is_directory() {
            picks.push(Pick::single(path, &file_name, node));
            continue;
        }
        let below = TreePath::root();
        let mut items = Items::default();
        items.push(Item { below: below.clone(), node: node.clone(), role: Role::Top });
        let walk = Walk { store, tree, filter: &filter, top: &path };
        let (include, exclude) = Default::default();
        walk.descend(Above { below, include, exclude }, &mut items)?;
        picks.push(Pick { path, name: file_name, top: node, items: Arc::new(items) });
    }
    Ok(picks)
}

fn compile(patterns: &[String], what: &str) -> Result<PatternSet, FilesError> {
    PatternSet::new(patterns).map_err(|(_, error)| {
        FilesError::Invalid(format!("invalid {what}: [{}]: {error}", patterns.join(" ")))
    })
}

/// The paths that a source path names, wildcards matched, links at the end not followed.
fn names(tree: &Tree<'_>, path: &str) -> Result<Vec<TreePath>, FilesError> {
    if !has_wildcard(path.as_bytes()) {
        return Ok(vec![clamped(path.as_bytes())?]);
    }
    let cleaned = clean(&format!("/{path}"));
    let parts: Vec<_> = cleaned.split('/').filter(|part| !part.is_empty()).collect();
    let fixed = parts.iter().take_while(|part| !has_wildcard(part.as_bytes())).count();
    let (fixed, patterns) = parts.split_at(fixed);
    for pattern in patterns {
        matches_glob(pattern.as_bytes(), b"").map_err(|error| {
            FilesError::Invalid(format!("invalid includepatterns: [{path}]: {error}"))
        })?;
    }
    // Links are followed in the fixed part only.
    let mut found = vec![tree.resolve(fixed.join("/").as_bytes())?];
    for (index, pattern) in patterns.iter().enumerate() {
        let last = index + 1 == patterns.len();
        let mut deeper = Vec::new();
        for directory in found {
            if !tree.node(&directory)?.is_some_and(|node| node.is_directory()) {
                continue;
            }
            for (name, node) in tree.list(&directory)? {
                let matched = matches_glob(pattern.as_bytes(), &name).unwrap_or(false);
                if matched && (last || node.is_directory()) {
                    deeper.push(child(&directory, &name)?);
                }
            }
        }
        found = deeper;
    }
    Ok(found)
}

fn require(tree: &Tree<'_>, path: &str) -> Result<(), FilesError> {
    let typed = clamped(path.as_bytes())?;
    let resolved = tree.resolve(typed.as_bytes())?;
    if tree.node(&resolved)?.is_none() { Err(not_found(tree, typed.as_bytes())?) } else { Ok(()) }
}

/// BuildKit's words, and what was probably meant.
fn not_found(tree: &Tree<'_>, path: &[u8]) -> Result<FilesError, FilesError> {
    let typed = clamped(path)?;
    let message = format!("{:?}: not found", typed.to_string());
    let resolved = tree.resolve(path)?;
    if let Tree::Folder(context) = tree
        && context.node_unfiltered(&resolved)?.is_some()
    {
        let help = format!(
            "{typed} exists, but the ignore file of the context (.dockerignore) excludes it"
        );
        return Ok(FilesError::NotFound { message, help: Some(help) });
    }
    let (Some(directory), Some(name)) = (resolved.parent(), resolved.file_name()) else {
        return Ok(FilesError::NotFound { message, help: None });
    };
    let name = String::from_utf8_lossy(name);
    let mut near = Vec::new();
    if tree.node(&directory)?.is_some_and(|node| node.is_directory()) {
        for (other, _) in tree.list(&directory)? {
            let other = String::from_utf8_lossy(&other).into_owned();
            let likeness = strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
            if likeness >= LIKENESS_MIN {
                near.push((likeness, other));
            }
        }
    }
    near.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    let near: Vec<_> = near
        .iter()
        .take(3)
        .filter_map(|(_, name)| directory.child(name.as_bytes()).ok())
        .map(|path| format!("`{path}`"))
        .collect();
    let help = (!near.is_empty()).then(|| format!("near names: {}", near.join(", ")));
    Ok(FilesError::NotFound { message, help })
}

struct Walk<'a> {
    store: &'a Store,
    tree: &'a Tree<'a>,
    filter: &'a Filter,
    top: &'a TreePath,
}

/// A directory being walked, as its children have to know it.
struct Above {
    below: TreePath,
    include: Verdict,
    exclude: Verdict,
}

/// A directory of which some names are still to come.
struct Open {
    above: Above,
    names: std::vec::IntoIter<Vec<u8>>,
    /// Those of them that were looked at already.
    listed: std::vec::IntoIter<(Vec<u8>, Node)>,
    /// How many passages there are with this directory, when it is one.
    passage: Option<usize>,
}

impl Walk<'_> {
    /// Adds what is selected below a directory. The stack is our own: a tree may be deeper than a thread's.
    fn descend(&self, start: Above, items: &mut Items) -> Result<(), FilesError> {
        // Directories above that are not selected themselves and were not added yet.
        let mut passages: Vec<Item> = Vec::new();
        let mut open = vec![self.begin(start, None)?];
        while let Some(directory) = open.last_mut() {
            let Some((name, node)) = self.next_of(directory)? else {
                // Still there: nothing below was selected.
                if directory.passage == Some(passages.len()) {
                    passages.pop();
                }
                open.pop();
                continue;
            };
            let above = &directory.above;
            let below = child(&above.below, &name)?;
            let include = self.filter.include.as_ref();
            let included = include.map(|set| set.judge(&above.include, below.as_bytes()));
            let excluded = self.filter.exclude.judge(&above.exclude, below.as_bytes());
            let chosen =
                included.as_ref().is_none_or(|verdict| verdict.matched) && !excluded.matched;
            let enter = node.is_directory()
                && (chosen || self.may_choose_below(&below, included.as_ref(), &excluded));
            if chosen {
                passages.drain(..).for_each(|passage| items.push(passage));
                items.push(Item { below: below.clone(), node, role: Role::Chosen });
            } else if enter {
                passages.push(Item { below: below.clone(), node, role: Role::Passage });
            }
            if enter {
                let next =
                    Above { below, include: included.unwrap_or_default(), exclude: excluded };
                open.push(self.begin(next, (!chosen).then_some(passages.len()))?);
            }
        }
        Ok(())
    }

    fn begin(&self, above: Above, passage: Option<usize>) -> Result<Open, FilesError> {
        let place = self.top.join(&above.below);
        let names = self.tree.names(&place)?.into_iter();
        Ok(Open { above, names, listed: Vec::new().into_iter(), passage })
    }

    fn next_of(&self, open: &mut Open) -> Result<Option<(Vec<u8>, Node)>, FilesError> {
        loop {
            if let Some(next) = open.listed.next() {
                return Ok(Some(next));
            }
            let place = self.top.join(&open.above.below);
            let stopped = |source| FilesError::Io { path: place.to_string(), source };
            self.store.go_on().map_err(stopped)?;
            let names: Vec<_> = open.names.by_ref().take(LISTED_MAX).collect();
            if names.is_empty() {
                return Ok(None);
            }
            open.listed = self.tree.nodes(&place, names)?.into_iter();
        }
    }

    fn may_choose_below(
        &self,
        directory: &TreePath,
        included: Option<&Verdict>,
        excluded: &Verdict,
    ) -> bool {
        let path = directory.as_bytes();
        let reachable = match (&self.filter.include, included) {
            (Some(set), Some(verdict)) => verdict.matched || set.may_match_below(path),
            _ => true,
        };
        reachable && (!excluded.matched || self.filter.exclude.may_unmatch_below(path))
    }
}
