//! A planned target → the layer in the store: plain tar, listing, record.
//!
//! Contents are streamed; a file that changes while it is read fails the copy.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
};

use super::{
    Earlier, FilesError,
    copy::{Content, Print},
    puts::{FileNumber, Made},
    source::{Opened, Tree, travels},
    target::{Line, Target},
};
use crate::{
    layer::{self, LayerWriter},
    oci::DiffId,
    snapshot::View,
    store::{BlobWriter, LayerRecord, Store},
    tree::{Entry, Kind, Meta, Timestamp, TreePath, Xattrs},
};

/// What the contents of a target refer to.
pub(super) struct Origins<'a> {
    pub(super) store: &'a Store,
    pub(super) base: Option<&'a View>,
    pub(super) trees: &'a [Tree<'a>],
    pub(super) spools: &'a [File],
    /// What the same step made before.
    pub(super) earlier: Option<&'a Earlier>,
    /// No entry is dated later.
    pub(super) latest: Timestamp,
}

/// A line of a layer, as it will be written.
pub(super) enum Planned {
    Whiteout(TreePath),
    Opaque(TreePath),
    /// A directory of the base.
    Above(Entry),
    /// Another name of the file on an earlier line.
    Link(Entry),
    Put(TreePath, Made),
}

/// Writes a target as one layer, and all that the store keeps of it.
pub(super) fn write(target: &Target<'_>, origins: &Origins<'_>) -> Result<DiffId, FilesError> {
    let mut names = FirstNames::default();
    let lines = target.lines().filter_map(|line| {
        let planned = names.plan(line, target);
        let is_needed = planned.is_needed(target, origins);
        is_needed.map(|needed| needed.then_some(planned)).transpose()
    });
    write_lines(lines, origins)
}

/// The first name of each file that has several, among lines in path order.
#[derive(Default)]
pub(super) struct FirstNames(HashMap<FileNumber, TreePath>);

impl FirstNames {
    /// What becomes of a line.
    pub(super) fn plan(&mut self, line: Line<'_>, target: &Target<'_>) -> Planned {
        let (path, raw) = match line {
            Line::Whiteout(path) => return Planned::Whiteout(path),
            Line::Opaque(directory) => return Planned::Opaque(directory),
            Line::Above(entry) => return Planned::Above(entry),
            Line::Put(path, raw) => (path, raw),
        };
        let made = target.puts.made(&path, raw);
        if let Some(file) = target.puts.shared(raw) {
            if let Some(first) = self.0.get(&file) {
                let kind = Kind::Hardlink { target: first.clone() };
                return Planned::Link(Entry { path, kind, meta: made.meta });
            }
            self.0.insert(file, path.clone());
        }
        Planned::Put(path, made)
    }
}

impl Planned {
    /// Whether the layer has to say it: the base may have that file already.
    pub(super) fn is_needed(
        &self,
        target: &Target<'_>,
        origins: &Origins<'_>,
    ) -> Result<bool, FilesError> {
        let Self::Put(path, made) = self else { return Ok(true) };
        let stopped = |source| FilesError::Io { path: path.to_string(), source };
        origins.store.go_on().map_err(stopped)?;
        Ok(!is_as_before(target, path, made, origins)?)
    }
}

/// Writes lines as a layer, and all that the store keeps of it.
pub(super) fn write_lines(
    lines: impl Iterator<Item = Result<Planned, FilesError>>,
    origins: &Origins<'_>,
) -> Result<DiffId, FilesError> {
    let store = origins.store;
    let mut layer =
        LayerWriter::new(store.blob_writer_hashed_by_caller()?).clamp_mtime(origins.latest);
    for line in lines {
        match line? {
            Planned::Whiteout(path) => layer.whiteout(&path)?,
            Planned::Opaque(directory) => layer.opaque(&directory)?,
            Planned::Above(entry) | Planned::Link(entry) => {
                layer.put(&entry, &mut io::empty())?;
            }
            Planned::Put(path, made) => put(&mut layer, path, made, origins)?,
        }
    }
    let (blob, summary) = layer.finish()?;
    blob.commit(Some(summary.diff_id.0))?;
    store.put_listing(summary.diff_id, &summary.listing.into_encoded())?;
    let record = LayerRecord {
        tar_bytes: summary.tar_bytes,
        content_bytes: summary.content_bytes,
        compressed: Vec::new(),
    };
    store.put_layer(summary.diff_id, &record)?;
    Ok(summary.diff_id)
}

/// Whether the base has the very same file or link already: such a copy changes nothing.
fn is_as_before(
    target: &Target<'_>,
    path: &TreePath,
    made: &Made,
    origins: &Origins<'_>,
) -> Result<bool, FilesError> {
    let alone = !made.file.is_some_and(|file| target.puts.has_several_names(file));
    let Some(before) = target.before(path).filter(|_| alone) else { return Ok(false) };
    // As it would be written: never too young, and in seconds.
    let seconds = made.meta.mtime.min(origins.latest).seconds;
    let old = Meta { mtime: made.meta.mtime, ..before.meta.clone() };
    let same = before.kind == made.kind && old == made.meta;
    if !same || before.meta.mtime.seconds != seconds || before.is_directory() {
        return Ok(false);
    }
    let (Some(content), Some(view)) = (made.content.as_ref(), origins.base) else {
        return Ok(true);
    };
    let (mut new, xattrs) = open(content, origins)?;
    if !xattrs.is_empty() {
        return Ok(false);
    }
    let mut old = view.open_file(path)?;
    layer::is_same_content(&mut old, &mut new)
        .map_err(|source| FilesError::Io { path: path.to_string(), source })
}

/// The bytes of a file of the layer, and the attributes that come with them.
fn open<'o>(
    content: &'o Content,
    origins: &'o Origins<'_>,
) -> Result<(Box<dyn Read + 'o>, Xattrs), FilesError> {
    let bytes: Box<dyn Read + 'o> = match content {
        Content::Bytes(bytes) => Box::new(&bytes[..]),
        Content::Spooled { spool, offset, size } => {
            let file = &origins.spools[*spool];
            Box::new(Slice { file, offset: *offset, left: *size })
        }
        Content::Base(path) => {
            origins.base.expect("content of a base comes from one").open_file(path)?
        }
        Content::Source { tree, path, node, .. } => {
            match origins.trees[*tree].open_file(origins.store, path, node)? {
                Opened::Other(content) => content,
                Opened::Local(file, xattrs) => return Ok((Box::new(file), xattrs)),
            }
        }
    };
    Ok((bytes, Xattrs::new()))
}

fn put(
    layer: &mut LayerWriter<BlobWriter>,
    path: TreePath,
    made: Made,
    origins: &Origins<'_>,
) -> Result<(), FilesError> {
    let mut entry = Entry { path, kind: made.kind, meta: made.meta };
    entry.meta.xattrs.retain(|name, _| travels(name));
    match &made.content {
        None => layer.put(&entry, &mut io::empty())?,
        Some(Content::Bytes(bytes)) => layer.put(&entry, &mut &bytes[..])?,
        Some(Content::Spooled { spool, offset, size }) => {
            let file = &origins.spools[*spool];
            layer.put(&entry, &mut Slice { file, offset: *offset, left: *size })?;
        }
        Some(Content::Base(path)) => {
            let view = origins.base.expect("content of a base comes from one");
            layer.put(&entry, &mut view.open_file(path)?)?;
        }
        Some(Content::Source { tree, path, node, print }) => {
            let tree = &origins.trees[*tree];
            if let Some(mut kept) = kept(&entry, *print, tree, origins) {
                return Ok(layer.put(&entry, &mut kept)?);
            }
            match tree.open_file(origins.store, path, node)? {
                Opened::Other(mut content) => layer.put(&entry, &mut content)?,
                Opened::Local(mut file, xattrs) => {
                    entry.meta.xattrs = xattrs;
                    let written = layer.put(&entry, &mut file);
                    // A file that grew or shrank is better named as such than by what it broke.
                    if let Tree::Folder(context) = tree {
                        context.check_unchanged(&file, path, node)?;
                    }
                    written?;
                }
            }
        }
    }
    Ok(())
}

/// The content of a file that did not change, in the tar of the layer made before.
fn kept<'o>(
    entry: &Entry,
    print: Option<Print>,
    tree: &Tree<'_>,
    origins: &'o Origins<'_>,
) -> Option<Slice<'o>> {
    let earlier = origins.earlier.filter(|_| matches!(tree, Tree::Folder(_)))?;
    let Kind::File { size } = entry.kind else { return None };
    let (tar, offset) = earlier.place(print?, &entry.path, size)?;
    Some(Slice { file: tar, offset, left: size })
}

/// A part of a file, read without moving its position.
struct Slice<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
