//! Why a step was not cached, in words: which part of its key is another, and which file it was.
//!
//! Knows keys and what was recorded with earlier results; knows no ops.

use std::{cmp::Ordering, collections::BTreeMap};

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
/// What comes around the changes of an encoded listing, in bytes, at most.
const OVERHEAD_BYTES: usize = 64;

/// Keeps what the parts of a key stand for, so that a later miss can name files. What is too long to be
/// kept is explained by its digest alone.
pub(super) fn keep(store: &Store, key: &Key) -> BTreeMap<String, Digest> {
    let mut kept = BTreeMap::new();
    for selection in &key.selections {
        let listing = selection.listing(LISTING_BYTES_MAX - OVERHEAD_BYTES);
        // An explanation is no reason to fail a build.
        if let Some(listing) = listing
            && let Ok(blob) = store.put_blob(&listing.into_encoded())
        {
            kept.insert(selection.component.clone(), blob);
        }
    }
    kept
}

/// The first part in which a key differs from what an earlier result was made of; `origin` says of a part that is
/// known by a digest what it comes from. `None` when nothing differs.
pub(super) fn difference(
    store: &Store,
    (now, before): (&Key, &CacheRecord),
    origin: impl Fn(&str) -> Option<String>,
) -> Option<Difference> {
    let Difference { component, words } = now.tree.first_difference(&before.tree)?;
    let told = || files(store, now, before, &component);
    let by_digest = || {
        let [now, before] = [&now.tree, &before.tree].map(|tree| kind(tree.get(&component)?));
        let is_same_kind = component == "base" || now.is_some() && now == before;
        origin(&component).filter(|_| is_same_kind)
    };
    let words = told().or_else(by_digest).unwrap_or(words);
    Some(Difference { component, words })
}

/// What stands in front of the digest that is a part's value, or of its beginning.
fn kind(value: &str) -> Option<&str> {
    value.split_once("sha256:").map(|(kind, _)| kind)
}

/// Which files of a part differ, when that was recorded.
fn files(store: &Store, now: &Key, before: &CacheRecord, component: &str) -> Option<String> {
    let earlier = store.read_blob(*before.selections.get(component)?).ok()?;
    let earlier = Listing::decode(earlier).ok()?;
    let selection = now.selections.iter().find(|selection| selection.component == component)?;
    let words = compare(&selection.listing(usize::MAX)?, &earlier)?;
    let is_mount = component.starts_with("mount ");
    Some(if is_mount { format!("{component}: {words}") } else { words })
}

/// What became of files, by kind of difference.
#[derive(Default)]
struct Changes {
    total: usize,
    content: Named,
    mode: Named,
    /// The first mode that changed, before and after.
    modes: Option<(u32, u32)>,
    other: Named,
    new: Named,
    gone: Named,
}

/// How many there are, and the names of the first.
#[derive(Default)]
struct Named {
    count: usize,
    first: Vec<String>,
}

impl Named {
    fn add(&mut self, name: &str) {
        self.count += 1;
        if self.first.len() < NAMES_MAX {
            self.first.push(name.to_owned());
        }
    }

    fn shown(&self) -> String {
        let shown = self.first.join(", ");
        match self.count - self.first.len() {
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }
}

/// Both are gone through side by side: a listing may have many names.
fn compare(now: &Listing, before: &Listing) -> Option<String> {
    let (mut files, mut directories) = (Changes::default(), Changes::default());
    let (mut now, mut before) = (entries(now).peekable(), entries(before).peekable());
    loop {
        let order = match (now.peek(), before.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(now), Some(before)) => now.path.cmp(&before.path),
        };
        let entry = if order.is_le() { now.next() } else { None };
        let old = if order.is_ge() { before.next() } else { None };
        let is_directory = entry.as_ref().or(old.as_ref()).is_some_and(Entry::is_directory);
        let changes = if is_directory { &mut directories } else { &mut files };
        match (entry, old) {
            (Some(entry), old) => changes.add(old.as_ref(), &entry),
            (None, old) => old.iter().for_each(|old| changes.gone.add(text(old))),
        }
    }
    let words = files.words(("file", "files"));
    let words =
        if words.is_empty() { directories.words(("directory", "directories")) } else { words };
    (!words.is_empty()).then(|| words.join("; "))
}

/// Entries in path order; names that are no text are compared with the digest over all alone.
fn entries(listing: &Listing) -> impl Iterator<Item = Entry> {
    let entries = listing.iter().filter_map(|listed| match listed.change {
        Change::Put(entry) => Some(entry),
        Change::Whiteout(_) | Change::Opaque(_) => None,
    });
    entries.filter(|entry| std::str::from_utf8(entry.path.as_bytes()).is_ok())
}

fn text(entry: &Entry) -> &str {
    std::str::from_utf8(entry.path.as_bytes()).unwrap_or_default()
}

impl Changes {
    fn add(&mut self, before: Option<&Entry>, now: &Entry) {
        self.total += 1;
        let path = text(now);
        let Some(before) = before else { return self.new.add(path) };
        let content = |entry: &Entry| entry.meta.xattrs.get(CONTENT).cloned();
        if before.kind != now.kind || content(before) != content(now) {
            self.content.add(path);
        } else if before.meta.mode != now.meta.mode {
            self.modes.get_or_insert((before.meta.mode, now.meta.mode));
            self.mode.add(path);
        } else if before.meta != now.meta {
            self.other.add(path);
        }
    }

    fn words(&self, (one, several): (&str, &str)) -> Vec<String> {
        let noun = |count: usize| if count == 1 { one } else { several };
        let total = self.total;
        let mut words = Vec::new();
        let mut tell = |named: &Named, verb: &dyn Fn(usize) -> String| {
            if named.count > 0 {
                words.push(format!("{}: {}", verb(named.count), named.shown()));
            }
        };
        tell(&self.content, &|count| match one {
            "file" => format!("{count} of {total} {} changed", noun(total)),
            _ => format!("{count} {} changed", noun(count)),
        });
        tell(&self.new, &|count| format!("{count} {} more", noun(count)));
        tell(&self.gone, &|count| format!("{count} {} less", noun(count)));
        tell(&self.other, &|count| format!("attributes of {count} {} changed", noun(count)));
        match (&self.mode, self.modes) {
            (_, None) => {}
            (Named { count: 1, first }, Some((was, is))) => {
                words.push(format!("mode of {} changed: {was:o} → {is:o}", first.join("")));
            }
            (several, Some(_)) => {
                let count = several.count;
                let noun = noun(count);
                words.push(format!("modes of {count} {noun} changed: {}", several.shown()));
            }
        }
        words
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
        files.iter().map(entry).collect()
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
