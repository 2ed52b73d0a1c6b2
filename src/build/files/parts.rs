//! A target that is written as several layers: those that are as before are found, and only the others are written.
//!
//! A part is known by everything that is in it, contents by their digests, which the key of the step has seen
//! already: what did not change is neither read nor written again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::{
    FilesError,
    copy::Content,
    keys::Selection,
    source::{Tree, travels},
    split::{Cutter, Groups, Layers, Place},
    target::{Line, Target},
    write::{FirstNames, Origins, Planned, write_lines},
};
use crate::{
    graph::{CacheKey, KeyTree},
    layer::{Listed, ListingHasher},
    limits::Split,
    oci::{DiffId, Digest},
    plan::CacheUse,
    store::CacheRecord,
    tree::{Change, Entry, Kind, Timestamp, TreePath},
};

/// Parts that are written at once.
const WRITERS_MAX: usize = 4;

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

/// Writes a target as one layer or several, bottom first.
pub(super) fn write_parts(
    target: &Target<'_>,
    origins: &Origins<'_>,
    (parting, selections): (Parting<'_>, &[Selection]),
) -> Result<Vec<DiffId>, FilesError> {
    let parts = Parts::divide(target, origins, parting.split)?;
    let count = parts.spans.len();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(done);
            }
            match parts.find_or_write(number, origins, (parting.cache, selections)) {
                Ok(layers) => done.push((number, layers)),
                Err(error) => {
                    next.store(count, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let writers = cores.min(WRITERS_MAX).min(count);
    let mut done = if writers <= 1 {
        work()?
    } else {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..writers).map(|_| scope.spawn(work)).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let done: Result<Vec<_>, FilesError> = threads.into_iter().map(join).collect();
            done.map(|done| done.concat())
        })?
    };
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().flat_map(|(_, layers)| layers).collect())
}

/// The parts of a target. What is put is known by its number in path order.
struct Parts<'t> {
    target: &'t Target<'t>,
    /// The part of each, or [`NOWHERE`].
    part_of: Vec<u16>,
    /// Of each part, what is the first in it, and how far it goes. Nothing is put by the one that takes away, which comes
    /// before all others.
    spans: Vec<Option<Span>>,
    /// There is one part, with everything.
    is_whole: bool,
}

struct Span {
    first: usize,
    path: TreePath,
    last: usize,
}

/// Part of what the base has already.
const NOWHERE: u16 = u16::MAX;

/// In place of a group: another name of a file, which goes with it.
const LINK: u16 = u16::MAX - 1;

impl<'t> Parts<'t> {
    fn divide(
        target: &'t Target<'t>,
        origins: &Origins<'_>,
        split: &Split,
    ) -> Result<Self, FilesError> {
        let groups = Groups::of(split).expect("whoever asks for parts has checked the patterns");
        let (mut part_of, has_marks) = group(target, origins, &groups)?;
        let mut counts = vec![0; groups.count()];
        let group_of = |number: u16| (number < LINK).then_some(usize::from(number));
        part_of.iter().copied().filter_map(group_of).for_each(|group| counts[group] += 1);
        let mut cutter = Cutter::new(split.size_bytes);
        for group in (0..groups.count()).filter(|group| counts[*group] > 0) {
            let puts = target.puts.onward(&TreePath::root()).zip(&part_of);
            for ((path, raw), _) in puts.filter(|(_, of)| group_of(**of) == Some(group)) {
                let kind = &target.puts.made(&path, raw).kind;
                cutter.push(&Place { path: &path, group, kind });
            }
        }
        let cuts = cutter.cuts(split.layers_max.saturating_sub(usize::from(has_marks)));
        let is_whole = cuts.is_empty();
        let first = usize::from(has_marks && !is_whole);
        let mut layers = Layers::new(cuts, &counts);
        let mut spans: Vec<Option<Span>> = Vec::new();
        spans.resize_with(first + layers.count(), || None);
        let mut of_files = HashMap::new();
        let puts = target.puts.onward(&TreePath::root()).zip(&mut part_of);
        for (number, ((path, raw), part)) in puts.enumerate().filter(|(_, (_, of))| **of != NOWHERE)
        {
            let file = target.puts.shared(raw);
            *part = match group_of(*part) {
                Some(group) => u16::try_from(first + layers.of_next(group)).expect("few layers"),
                None => of_files[&file],
            };
            of_files.extend(file.map(|_| (file, *part)));
            let span = &mut spans[usize::from(*part)];
            span.get_or_insert(Span { first: number, path, last: number }).last = number;
        }
        Ok(Self { target, part_of, spans, is_whole })
    }

    /// The layer of a part: the one that was made of the same before, or else a new one.
    fn find_or_write(
        &self,
        number: usize,
        origins: &Origins<'_>,
        (cache, selections): (CacheUse, &[Selection]),
    ) -> Result<Vec<DiffId>, FilesError> {
        let key = key((self.lines(number).count(), self.lines(number)), origins, selections);
        let key = key.map(CacheKey);
        let known = key.filter(|_| cache == CacheUse::Use);
        let known = known.map(|key| origins.store.cached(key)).transpose()?.flatten();
        if let Some(record) = known {
            return Ok(record.made.layers().to_vec());
        }
        let part = write_lines(self.lines(number).map(Ok), origins)?;
        if let Some(key) = key.filter(|_| cache != CacheUse::Discard) {
            origins.store.put_cached(key, &record(part))?;
        }
        Ok(vec![part])
    }

    /// The lines of a part. A directory is in every part with something below it, so that none changes it.
    fn lines(&self, number: usize) -> Box<dyn Iterator<Item = Planned> + '_> {
        let mut names = FirstNames::default();
        if self.is_whole {
            let mut part_of = self.part_of.iter();
            let lines = self.target.lines().filter(move |line| {
                !matches!(line, Line::Put(..)) || part_of.next() != Some(&NOWHERE)
            });
            return Box::new(lines.map(move |line| names.plan(line, self.target)));
        }
        let own: Box<dyn Iterator<Item = Line<'_>> + '_> = match &self.spans[number] {
            Some(Span { first, path, last }) => {
                let puts = self.target.puts.onward(path).zip(&self.part_of[*first..=*last]);
                let puts = puts.filter(move |(_, part)| usize::from(**part) == number);
                Box::new(puts.map(|((path, raw), _)| Line::Put(path, raw)))
            }
            None => {
                let is_mark = |line: &Line<'_>| matches!(line, Line::Whiteout(_) | Line::Opaque(_));
                Box::new(self.target.lines().filter(is_mark))
            }
        };
        let mut before = TreePath::root();
        let lines = own.flat_map(move |line| {
            let path = line.path();
            let mut lines: Vec<_> = path
                .ancestors_beyond(path.common(&before))
                .chain(matches!(line, Line::Opaque(_)).then(|| path.clone()))
                .filter_map(|above| self.target.directory(&above))
                .collect();
            before.clone_from(path);
            lines.push(line);
            lines
        });
        Box::new(lines.map(move |line| names.plan(line, self.target)))
    }
}

/// The group of each thing that is put, or [`LINK`] or [`NOWHERE`]; and whether anything is taken away.
fn group(
    target: &Target<'_>,
    origins: &Origins<'_>,
    groups: &Groups,
) -> Result<(Vec<u16>, bool), FilesError> {
    let (mut group_of, mut has_marks) = (Vec::new(), false);
    let mut names = FirstNames::default();
    for line in target.lines() {
        let planned = names.plan(line, target);
        let group = match &planned {
            Planned::Whiteout(_) | Planned::Opaque(_) => {
                has_marks = true;
                continue;
            }
            Planned::Above(_) => continue,
            Planned::Link(_) => LINK,
            Planned::Put(..) if !planned.is_needed(target, origins)? => NOWHERE,
            Planned::Put(path, _) => u16::try_from(groups.of_path(path)).unwrap_or(LINK - 1),
        };
        group_of.push(group);
    }
    Ok((group_of, has_marks))
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

/// What a part of so many lines is known by; nothing when the content of one of its files is not known without reading
/// it.
fn key(
    (count, lines): (usize, impl Iterator<Item = Planned>),
    origins: &Origins<'_>,
    selections: &[Selection],
) -> Option<Digest> {
    let mut hasher = ListingHasher::new(count);
    for line in lines {
        let change = match line {
            Planned::Whiteout(path) => Change::Whiteout(path),
            Planned::Opaque(path) => Change::Opaque(path),
            Planned::Above(entry) | Planned::Link(entry) => Change::Put(entry),
            Planned::Put(path, made) => {
                let mut entry = Entry { path, kind: made.kind, meta: made.meta };
                entry.meta.xattrs.retain(|name, _| travels(name));
                if let Some(content) = &made.content {
                    identify(&mut entry, content, origins, selections)?;
                }
                Change::Put(entry)
            }
        };
        hasher.push(&Listed { change: dated(change, origins.latest), offset: 0 });
    }
    Some(hasher.finish())
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
    selections: &[Selection],
) -> Option<()> {
    let value = match content {
        Content::Bytes(bytes) => Digest::of(bytes).as_bytes().to_vec(),
        Content::Spooled { .. } | Content::Base(_) => return None,
        Content::Source { tree, path, node, print } => {
            let known = print.and_then(|print| selections[print.selection].file(print.number));
            match (&origins.trees[*tree], known) {
                (Tree::Folder(_), Some((content, xattrs))) => {
                    entry.meta.xattrs = xattrs;
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
