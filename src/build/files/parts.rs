//! A target that is written as several layers: those that are as before are found, and only the others are written.
//!
//! A part is known by everything that is in it, contents by their digests, which the key of the step has seen
//! already: what did not change is neither read nor written again.

use std::collections::{BTreeMap, HashMap};

use super::{
    FilesError,
    copy::Content,
    keys::Selection,
    source::{Tree, travels},
    split::{self, Groups, Role},
    target::Target,
    write::{Origins, Planned, plan, write_lines},
};
use crate::{
    graph::{CacheKey, KeyTree},
    layer::{Listed, Listing},
    limits::Split,
    oci::{DiffId, Digest},
    plan::CacheUse,
    store::CacheRecord,
    tree::{Change, Entry, Kind, Timestamp, TreePath, Xattrs},
};

/// Attribute that stands for a content in what a part is known by.
const CONTENT: &[u8] = b"content";

/// How a target becomes several layers.
#[derive(Clone, Copy)]
pub(in crate::build) struct Parting<'a> {
    /// What is wanted.
    pub(in crate::build) split: &'a Split,
    /// Whether parts that were made before may be used.
    pub(in crate::build) cache: CacheUse,
}

/// Files whose content and attributes are known, by number of their source and path in it.
#[derive(Default)]
pub(super) struct KnownFiles(HashMap<(usize, TreePath), (Digest, Xattrs)>);

impl KnownFiles {
    /// Takes in what the key has seen of a source.
    pub(super) fn add(&mut self, source: usize, selection: &Selection) {
        let files = selection.files();
        self.0.extend(files.map(|(path, content, xattrs)| ((source, path), (content, xattrs))));
    }
}

/// Writes a target as one layer or several, bottom first.
pub(super) fn write_parts(
    target: &Target<'_, Content>,
    origins: &Origins<'_>,
    (parting, files): (Parting<'_>, &KnownFiles),
) -> Result<Vec<DiffId>, FilesError> {
    let lines = plan(target, origins).collect::<Result<Vec<_>, _>>()?;
    let outlines: Vec<_> = lines.iter().map(outline).collect();
    let groups =
        Groups::of(parting.split).expect("whoever asks for parts has checked the patterns");
    let mut parts = Vec::new();
    for numbers in split::divide(&outlines, parting.split, &groups) {
        let of_part = || numbers.iter().map(|number| &lines[*number]);
        let key = key(of_part(), origins, files).map(CacheKey);
        let known = key.filter(|_| parting.cache == CacheUse::Use);
        let known = known.map(|key| origins.store.cached(key)).transpose()?.flatten();
        if let Some(record) = known {
            parts.extend(record.made.layers());
            continue;
        }
        let part = write_lines(of_part().map(Ok), origins)?;
        if let Some(key) = key.filter(|_| parting.cache != CacheUse::Discard) {
            origins.store.put_cached(key, &record(part))?;
        }
        parts.push(part);
    }
    Ok(parts)
}

/// What is kept of a part; wherever the same files go to the same places it is the same one.
fn record(part: DiffId) -> CacheRecord {
    CacheRecord {
        made: part.into(),
        tree: KeyTree::new("part"),
        site: "part".to_owned(),
        made_at: jiff::Timestamp::now().as_second(),
        took_ms: 0,
        selections: BTreeMap::new(),
    }
}

fn outline<'l>(line: &'l Planned<'_>) -> split::Line<'l> {
    let (path, role) = match line {
        Planned::Whiteout(path) | Planned::Opaque(path) => (path, Role::Mark),
        Planned::Above(entry) => (&entry.path, Role::Above),
        Planned::Link(entry, file) => (&entry.path, Role::Link(*file)),
        Planned::Put(path, made) => (path, Role::Put(&made.kind)),
    };
    split::Line { path, role }
}

/// What a part is known by; nothing when the content of one of its files is not known without reading it.
fn key<'l>(
    lines: impl Iterator<Item = &'l Planned<'l>>,
    origins: &Origins<'_>,
    files: &KnownFiles,
) -> Option<Digest> {
    let mut listing = Listing::default();
    for line in lines {
        let change = match line {
            Planned::Whiteout(path) => Change::Whiteout(path.clone()),
            Planned::Opaque(path) => Change::Opaque(path.clone()),
            Planned::Above(entry) | Planned::Link(entry, _) => Change::Put(entry.clone()),
            Planned::Put(path, made) => {
                let (kind, meta) = (made.kind.clone(), made.meta.clone());
                let mut entry = Entry { path: path.clone(), kind, meta };
                entry.meta.xattrs.retain(|name, _| travels(name));
                if let Some(content) = made.content.as_deref() {
                    identify(&mut entry, content, origins, files)?;
                }
                Change::Put(entry)
            }
        };
        listing.push(&Listed { change: dated(change, origins.latest), offset: 0 });
    }
    Some(Digest::of(&listing.encode()))
}

/// As it will be written: never too young, and in seconds.
fn dated(mut change: Change, latest: Timestamp) -> Change {
    if let Change::Put(entry) = &mut change {
        let seconds = entry.meta.mtime.min(latest).seconds;
        entry.meta.mtime = Timestamp { seconds, nanos: 0 };
    }
    change
}

/// Adds what stands for the content of a file; `None` when only reading it would tell.
fn identify(
    entry: &mut Entry,
    content: &Content,
    origins: &Origins<'_>,
    files: &KnownFiles,
) -> Option<()> {
    let value = match content {
        Content::Bytes(bytes) => Digest::of(bytes).as_bytes().to_vec(),
        Content::Spooled { .. } | Content::Base(_) => return None,
        Content::Source { tree, path, node } => {
            let known = files.0.get(&(*tree, path.clone()));
            match (&origins.trees[*tree], known) {
                (Tree::Folder(_), Some((content, xattrs))) => {
                    entry.meta.xattrs.clone_from(xattrs);
                    content.as_bytes().to_vec()
                }
                (Tree::Layers(_), Some((content, _))) => content.as_bytes().to_vec(),
                // A socket, which is copied as an empty file.
                (Tree::Folder(_), None) if node.stamp.is_none() => Vec::new(),
                (Tree::Folder(_), None) => return None,
                // A layer never changes: it and the place in it say as much as a digest.
                (Tree::Layers(view), None) => {
                    let (layer, place) = view.origin(path)?;
                    [layer.0.as_bytes(), place.as_bytes()].concat()
                }
                (Tree::Download(download), _) => download.content.as_bytes().to_vec(),
            }
        }
    };
    debug_assert!(matches!(entry.kind, Kind::File { .. }), "only files have content");
    entry.meta.xattrs.insert(CONTENT.to_vec(), value);
    Some(())
}
