//! Why a step was not cached, in words: which part of its key is another, and which file it was.
//!
//! Knows keys and what was recorded with earlier results; knows no ops.

use std::collections::BTreeMap;

use super::files::{CONTENT, Key};
use crate::{
    graph::Difference,
    layer::Listing,
    oci::Digest,
    store::{CacheRecord, Store},
    tree::{Change, Entry},
};

/// Names that are told of one kind of difference.
const NAMES_MAX: usize = 3;
/// Longest listing of a selection that is kept, in bytes: the store reads documents up to twice that.
const LISTING_BYTES_MAX: usize = 8 << 20;

/// Keeps what the parts of a key stand for, so that a later miss can name files. What is too long to be
/// kept is explained by its digest alone.
pub(super) fn keep(store: &Store, key: &Key) -> BTreeMap<String, Digest> {
    let mut kept = BTreeMap::new();
    for selection in &key.selections {
        let bytes = selection.listing().encode();
        // An explanation is no reason to fail a build.
        if bytes.len() <= LISTING_BYTES_MAX
            && let Ok(blob) = store.put_blob(&bytes)
        {
            kept.insert(selection.component.clone(), blob);
        }
    }
    kept
}

/// The first part in which a key differs from what an earlier result was made of; `base` says what
/// the step stands on. `None` when nothing differs.
pub(super) fn difference(
    store: &Store,
    (now, before): (&Key, &CacheRecord),
    base: &str,
) -> Option<Difference> {
    let Difference { component, words } = now.tree.first_difference(&before.tree)?;
    let words = match component.as_str() {
        "base" => base.to_owned(),
        _ => files(store, now, before, &component).unwrap_or(words),
    };
    Some(Difference { component, words })
}

/// Which files of a part differ, when that was recorded.
fn files(store: &Store, now: &Key, before: &CacheRecord, component: &str) -> Option<String> {
    let earlier = store.read_blob(*before.selections.get(component)?).ok()?;
    let earlier = Listing::decode(&earlier).ok()?;
    let selection = now.selections.iter().find(|selection| selection.component == component)?;
    let words = compare(&selection.listing(), &earlier)?;
    let is_mount = component.starts_with("mount ");
    Some(if is_mount { format!("{component}: {words}") } else { words })
}

/// What became of files, by kind of difference.
#[derive(Default)]
struct Changes {
    content: Vec<String>,
    /// With the modes before and after.
    mode: Vec<(String, u32, u32)>,
    other: Vec<String>,
    new: Vec<String>,
    gone: Vec<String>,
}

fn compare(now: &Listing, before: &Listing) -> Option<String> {
    let (now, before) = (by_path(now), by_path(before));
    let total = now.values().filter(|entry| !entry.is_directory()).count();
    for directories in [false, true] {
        let mut changes = Changes::default();
        for (path, entry) in now.iter().filter(|(_, entry)| entry.is_directory() == directories) {
            changes.add((*path).to_owned(), before.get(path).copied(), entry);
        }
        let gone = before.iter().filter(|(path, entry)| {
            entry.is_directory() == directories && !now.contains_key(*path)
        });
        changes.gone.extend(gone.map(|(path, _)| (*path).to_owned()));
        let noun = if directories { ("directory", "directories") } else { ("file", "files") };
        let words = changes.words(total, noun);
        if !words.is_empty() {
            return Some(words.join("; "));
        }
    }
    None
}

type ByPath<'l> = BTreeMap<&'l str, &'l Entry>;

/// Entries by path; names that are no text are compared with the digest over all alone.
fn by_path(listing: &Listing) -> ByPath<'_> {
    let entries = listing.changes.iter().filter_map(|listed| match &listed.change {
        Change::Put(entry) => Some(entry),
        Change::Whiteout(_) | Change::Opaque(_) => None,
    });
    let named = |entry: &'_ Entry| std::str::from_utf8(entry.path.as_bytes()).is_ok();
    entries
        .filter(|entry| named(entry))
        .map(|entry| (std::str::from_utf8(entry.path.as_bytes()).unwrap_or_default(), entry))
        .collect()
}

impl Changes {
    fn add(&mut self, path: String, before: Option<&Entry>, now: &Entry) {
        let Some(before) = before else { return self.new.push(path) };
        let content = |entry: &Entry| entry.meta.xattrs.get(CONTENT).cloned();
        if before.kind != now.kind || content(before) != content(now) {
            self.content.push(path);
        } else if before.meta.mode != now.meta.mode {
            self.mode.push((path, before.meta.mode, now.meta.mode));
        } else if before.meta != now.meta {
            self.other.push(path);
        }
    }

    fn words(&self, total: usize, (one, several): (&str, &str)) -> Vec<String> {
        let noun = |count: usize| if count == 1 { one } else { several };
        let mut words = Vec::new();
        let mut tell = |names: &[String], verb: &dyn Fn(usize) -> String| {
            if !names.is_empty() {
                words.push(format!("{}: {}", verb(names.len()), listed(names)));
            }
        };
        tell(&self.content, &|count| match one {
            "file" => format!("{count} of {total} {} changed", noun(total)),
            _ => format!("{count} {} changed", noun(count)),
        });
        tell(&self.new, &|count| format!("{count} {} more", noun(count)));
        tell(&self.gone, &|count| format!("{count} {} less", noun(count)));
        tell(&self.other, &|count| format!("attributes of {count} {} changed", noun(count)));
        match self.mode.as_slice() {
            [] => {}
            [(path, was, is)] => words.push(format!("mode of {path} changed: {was:o} → {is:o}")),
            several => {
                let names: Vec<String> = several.iter().map(|(path, ..)| path.clone()).collect();
                let count = names.len();
                words.push(format!("modes of {count} {} changed: {}", noun(count), listed(&names)));
            }
        }
        words
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layer::Listed,
        tree::{Kind, Meta, TreePath, Xattrs},
    };

    fn listing(files: &[(&str, u32, &str)]) -> Listing {
        let entry = |(path, mode, content): &(&str, u32, &str)| {
            let xattrs = Xattrs::from([(CONTENT.to_vec(), content.as_bytes().to_vec())]);
            let kind = match path.ends_with('/') {
                true => Kind::Directory,
                false => Kind::File { size: 1 },
            };
            let meta = Meta { mode: *mode, xattrs, ..Meta::default() };
            let path = TreePath::parse(path.trim_end_matches('/')).unwrap();
            Listed { change: Change::Put(Entry { path, kind, meta }), offset: 0 }
        };
        Listing { changes: files.iter().map(entry).collect() }
    }

    #[test]
    fn files_are_named_by_what_became_of_them() {
        let before = listing(&[("d/", 0o755, ""), ("d/a", 0o644, "1"), ("d/b", 0o644, "2")]);
        for (now, words) in [
            (
                &[("d/", 0o755, ""), ("d/a", 0o644, "1"), ("d/b", 0o644, "3")][..],
                "1 of 2 files changed: d/b",
            ),
            (
                &[("d/", 0o755, ""), ("d/a", 0o755, "1"), ("d/b", 0o644, "2")],
                "mode of d/a changed: 644 → 755",
            ),
            (&[("d/", 0o755, ""), ("d/a", 0o644, "1")], "1 file less: d/b"),
            (
                &[("d/", 0o755, ""), ("d/a", 0o600, "1"), ("d/b", 0o600, "2"), ("d/c", 0o644, "x")],
                "1 file more: d/c; modes of 2 files changed: d/a, d/b",
            ),
            (
                &[("d/", 0o700, ""), ("d/a", 0o644, "1"), ("d/b", 0o644, "2")],
                "mode of d changed: 755 → 700",
            ),
        ] {
            assert_eq!(compare(&listing(now), &before).as_deref(), Some(words));
        }
        assert_eq!(compare(&before, &before), None);
    }
}
