//! A planned target → the layer in the store: plain tar, listing, record.
//!
//! Contents are streamed; a file that changes while it is read fails the copy.

use std::{
    borrow::{Borrow, Cow},
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
    rc::Rc,
};

use super::{
    Earlier, FilesError,
    copy::Content,
    source::{Opened, Tree, travels},
    target::{Line, Made, Target},
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
pub(super) enum Planned<'t> {
    Whiteout(TreePath),
    Opaque(TreePath),
    /// A directory of the base.
    Above(Entry),
    /// Another name of the file on an earlier line, by number.
    Link(Entry, usize),
    Put(TreePath, Cow<'t, Made<Content>>),
}

/// Writes a target as one layer, and all that the store keeps of it.
pub(super) fn write(
    target: &Target<'_, Content>,
    origins: &Origins<'_>,
) -> Result<DiffId, FilesError> {
    write_lines(plan(target, origins), origins)
}

/// What will be written, in path order: without files that the base has already.
pub(super) fn plan<'t>(
    target: &'t Target<'_, Content>,
    origins: &'t Origins<'_>,
) -> impl Iterator<Item = Result<Planned<'t>, FilesError>> {
    let mut number = 0;
    // The first name of each file that has several.
    let mut first_names: HashMap<*const Content, (TreePath, usize)> = HashMap::new();
    target.lines().filter_map(move |line| {
        let planned = plan_line(line, (target, origins), (&mut first_names, number));
        number += usize::from(matches!(planned, Ok(Some(_))));
        planned.transpose()
    })
}

fn plan_line<'t>(
    line: Line<'t, Content>,
    (target, origins): (&Target<'_, Content>, &Origins<'_>),
    (first_names, number): (&mut HashMap<*const Content, (TreePath, usize)>, usize),
) -> Result<Option<Planned<'t>>, FilesError> {
    let (path, made) = match line {
        Line::Whiteout(path) => return Ok(Some(Planned::Whiteout(path))),
        Line::Opaque(directory) => return Ok(Some(Planned::Opaque(directory))),
        Line::Above(entry) => return Ok(Some(Planned::Above(entry))),
        Line::Put(path, made) => (path, made),
    };
    let stopped = |source| FilesError::Io { path: path.to_string(), source };
    origins.store.go_on().map_err(stopped)?;
    let shared = made.content.as_ref().filter(|content| Rc::strong_count(content) > 1);
    let shared = shared.map(Rc::as_ptr);
    if let Some((target, line)) = shared.and_then(|shared| first_names.get(&shared)).cloned() {
        let kind = Kind::Hardlink { target };
        let entry = Entry { path, kind, meta: made.meta.clone() };
        return Ok(Some(Planned::Link(entry, line)));
    }
    if is_as_before(target, &path, &made, origins)? {
        return Ok(None);
    }
    first_names.extend(shared.map(|shared| (shared, (path.clone(), number))));
    Ok(Some(Planned::Put(path, made)))
}

/// Writes lines as a layer, and all that the store keeps of it.
pub(super) fn write_lines<'l, L: Borrow<Planned<'l>>>(
    lines: impl Iterator<Item = Result<L, FilesError>>,
    origins: &Origins<'_>,
) -> Result<DiffId, FilesError> {
    let store = origins.store;
    let mut layer =
        LayerWriter::new(store.blob_writer_hashed_by_caller()?).clamp_mtime(origins.latest);
    for line in lines {
        match line?.borrow() {
            Planned::Whiteout(path) => layer.whiteout(path)?,
            Planned::Opaque(directory) => layer.opaque(directory)?,
            Planned::Above(entry) | Planned::Link(entry, _) => {
                layer.put(entry, &mut io::empty())?;
            }
            Planned::Put(path, made) => put(&mut layer, path.clone(), made, origins)?,
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
    target: &Target<'_, Content>,
    path: &TreePath,
    made: &Made<Content>,
    origins: &Origins<'_>,
) -> Result<bool, FilesError> {
    let alone = made.content.as_ref().is_none_or(|content| Rc::strong_count(content) == 1);
    let Some(before) = target.before(path).filter(|_| alone) else { return Ok(false) };
    // As it would be written: never too young, and in seconds.
    let seconds = made.meta.mtime.min(origins.latest).seconds;
    let old = Meta { mtime: made.meta.mtime, ..before.meta.clone() };
    let same = before.kind == made.kind && old == made.meta;
    if !same || before.meta.mtime.seconds != seconds || before.is_directory() {
        return Ok(false);
    }
    let (Some(content), Some(view)) = (made.content.as_deref(), origins.base) else {
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
        Content::Bytes(bytes) => Box::new(bytes.as_slice()),
        Content::Spooled { spool, offset, size } => {
            let file = &origins.spools[*spool];
            Box::new(Slice { file, offset: *offset, left: *size })
        }
        Content::Base(path) => {
            origins.base.expect("content of a base comes from one").open_file(path)?
        }
        Content::Source { tree, path, node } => {
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
    made: &Made<Content>,
    origins: &Origins<'_>,
) -> Result<(), FilesError> {
    let mut entry = Entry { path, kind: made.kind.clone(), meta: made.meta.clone() };
    entry.meta.xattrs.retain(|name, _| travels(name));
    match made.content.as_deref() {
        None => layer.put(&entry, &mut io::empty())?,
        Some(Content::Bytes(bytes)) => layer.put(&entry, &mut bytes.as_slice())?,
        Some(Content::Spooled { spool, offset, size }) => {
            let file = &origins.spools[*spool];
            layer.put(&entry, &mut Slice { file, offset: *offset, left: *size })?;
        }
        Some(Content::Base(path)) => {
            let view = origins.base.expect("content of a base comes from one");
            layer.put(&entry, &mut view.open_file(path)?)?;
        }
        Some(Content::Source { tree, path, node }) => {
            let tree = &origins.trees[*tree];
            if let Some(mut kept) = kept(&entry, path, tree, origins) {
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
    source: &TreePath,
    tree: &Tree<'_>,
    origins: &'o Origins<'_>,
) -> Option<Slice<'o>> {
    let earlier = origins.earlier.filter(|_| matches!(tree, Tree::Folder(_)))?;
    let Kind::File { size } = entry.kind else { return None };
    let (tar, offset) = earlier.place(source, &entry.path, size)?;
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
