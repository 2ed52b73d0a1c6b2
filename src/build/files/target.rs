//! What a layer will hold: additions and removals over a root file system that is only looked at.
//!
//! Nothing is written here. Knows neither sources nor tar.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    iter::Peekable,
    ops::Bound,
    rc::Rc,
};

use super::{
    FilesError,
    resolve::{Stand, child, resolve_from},
    source::travels,
};
use crate::{
    layer,
    snapshot::View,
    tree::{Entry, Kind, Meta, Timestamp, TreePath},
};

/// Prefix of names that take something of the layers below away.
const WHITEOUT: &[u8] = b".wh.";

/// Name that takes everything away that the layers below have in a directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A root file system with changes on top.
pub(super) struct Target<'a, C> {
    base: Option<&'a View>,
    made: BTreeMap<TreePath, Made<C>>,
    /// Paths at which the base's entry, and what is below it, is gone.
    gone: BTreeSet<TreePath>,
    /// Directories in which everything of the base is gone.
    opaque: BTreeSet<TreePath>,
    /// What the last copy put where the layer had nothing: a tree may have millions of files, and is not held twice.
    rest: Option<Rest<C>>,
}

/// Makes paths in their order, and what stands there.
pub(super) type Rest<C> = Box<dyn Fn() -> Puts<C>>;

type Puts<C> = Box<dyn Iterator<Item = (TreePath, Made<C>)>>;

/// Something that the layer will hold.
pub(super) struct Made<C> {
    pub(super) kind: Kind,
    pub(super) meta: Meta,
    /// Where the bytes come from. Two names with the same one are hard links.
    pub(super) content: Option<Rc<C>>,
}

impl<C> Clone for Made<C> {
    fn clone(&self) -> Self {
        let Self { kind, meta, content } = self;
        Self { kind: kind.clone(), meta: meta.clone(), content: content.clone() }
    }
}

/// Owner, mode and time of directories that are made on the way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maker {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
}

/// What stands at a path of a target.
pub(super) struct Standing {
    pub(super) kind: Kind,
    pub(super) meta: Meta,
}

/// A line of the layer that is to be written.
pub(super) enum Line<'t, C> {
    Whiteout(TreePath),
    Put(TreePath, Cow<'t, Made<C>>),
    /// A directory of the base that holds something new: other tools need it to be listed.
    Above(Entry),
    Opaque(TreePath),
}

impl Standing {
    pub(super) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

impl Maker {
    fn meta(self) -> Meta {
        let Self { mode, uid, gid, mtime } = self;
        Meta { mode, uid, gid, mtime, ..Meta::default() }
    }
}

impl<'a, C: 'static> Target<'a, C> {
    /// `None` is an empty root file system.
    pub(super) fn new(base: Option<&'a View>) -> Self {
        let (made, gone, opaque) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { base, made, gone, opaque, rest: None }
    }

    /// Whether there is a root file system below.
    pub(super) fn has_base(&self) -> bool {
        self.base.is_some()
    }

    /// Whether the layer has put nothing below a path yet.
    pub(super) fn is_free_below(&self, path: &TreePath) -> bool {
        let mut behind = self.made.range((Bound::Excluded(path), Bound::Unbounded));
        behind.next().is_none_or(|(next, _)| !next.starts_with(path))
    }

    /// Puts much at once below a path at which the layer has put nothing, as [`Target::put`] would one by one.
    pub(super) fn put_all(&mut self, rest: Rest<C>) {
        self.rest = Some(rest);
    }

    /// Makes what was put at once findable by its paths.
    fn settle(&mut self) {
        if let Some(rest) = self.rest.take() {
            rest().for_each(|(path, made)| self.put(path, made));
        }
    }

    /// What stands at exactly this path; links are not followed.
    pub(super) fn at(&self, path: &TreePath) -> Option<Standing> {
        if path.is_root() {
            return Some(Standing {
                kind: Kind::Directory,
                meta: Meta { mode: 0o755, ..Meta::default() },
            });
        }
        if let Some(made) = self.made.get(path) {
            return Some(Standing { kind: made.kind.clone(), meta: made.meta.clone() });
        }
        self.in_base(path).map(|Entry { kind, meta, .. }| Standing { kind, meta })
    }

    /// What the base still has at a path.
    fn in_base(&self, path: &TreePath) -> Option<Entry> {
        let hidden = covers(&self.gone, path) || self.is_below_hidden(path);
        if hidden { None } else { self.base?.entry(path) }
    }

    /// What the base has at a path, whatever the layer puts there.
    pub(super) fn before(&self, path: &TreePath) -> Option<Entry> {
        let base = self.base?;
        if self.is_below_hidden(path) { None } else { layer::Below::entry(base, path) }
    }

    /// Whether what the base has in a directory above this path is gone.
    fn is_below_hidden(&self, path: &TreePath) -> bool {
        let above = path.parent();
        above.is_some_and(|above| covers(&self.gone, &above) || covers(&self.opaque, &above))
    }

    /// What the layer will hold at a path.
    pub(super) fn made(&self, path: &TreePath) -> Option<&Made<C>> {
        self.made.get(path)
    }

    /// The base's own look-ups, for content that has to be copied up.
    pub(super) fn base_entry(&self, path: &TreePath) -> Option<Entry> {
        if self.made.contains_key(path) { None } else { self.in_base(path) }
    }

    /// Follows links inside of the target, the last component included.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<TreePath, FilesError> {
        self.resolve_within(&TreePath::root(), TreePath::root(), path)
    }

    /// As [`Target::resolve`], with `root` as the root that absolute links and `..` stop at, of a path that begins at
    /// `start` below that root, with no link on the way to it.
    pub(super) fn resolve_within(
        &self,
        root: &TreePath,
        start: TreePath,
        path: &[u8],
    ) -> Result<TreePath, FilesError> {
        let below = resolve_from(start, path, |at| {
            Ok(match self.at(&root.join(at)) {
                Some(Standing { kind: Kind::Symlink { target }, .. }) => Stand::Link(target),
                _ => Stand::Other,
            })
        })?;
        Ok(root.join(&below))
    }

    /// Makes a directory and those above it, following links; returns where it stands. What exists is
    /// left alone. Whatever else is put begins with this.
    pub(super) fn make_directories(
        &mut self,
        path: &[u8],
        maker: Maker,
    ) -> Result<TreePath, FilesError> {
        self.settle();
        let place = self.resolve(path)?;
        self.make_directories_at(&place, maker)?;
        Ok(place)
    }

    /// As [`Target::make_directories`], at a place that has been resolved.
    pub(super) fn make_directories_at(
        &mut self,
        place: &TreePath,
        maker: Maker,
    ) -> Result<(), FilesError> {
        for directory in place.ancestors().chain([place.clone()]).filter(|path| !path.is_root()) {
            match self.at(&directory) {
                Some(standing) if standing.is_directory() => {}
                Some(_) => {
                    return Err(FilesError::Invalid(format!(
                        "cannot make directory {place}: {directory} is not a directory"
                    )));
                }
                None => self.put(
                    directory,
                    Made { kind: Kind::Directory, meta: maker.meta(), content: None },
                ),
            }
        }
        Ok(())
    }

    /// Puts something in place of whatever stands there. Its directory must exist.
    pub(super) fn put(&mut self, path: TreePath, made: Made<C>) {
        if path.is_root() || self.took_away(&path) {
            return;
        }
        let stays =
            made.kind == Kind::Directory && self.at(&path).is_some_and(|old| old.is_directory());
        if !stays {
            self.clear(&path);
        }
        self.made.insert(path, made);
    }

    /// Changes the metadata of a directory that stands there, in the base or new.
    pub(super) fn change_directory(&mut self, path: &TreePath, change: impl FnOnce(&mut Meta)) {
        let Some(Standing { kind: Kind::Directory, mut meta }) = self.at(path) else { return };
        if !path.is_root() {
            change(&mut meta);
            self.made.insert(path.clone(), Made { kind: Kind::Directory, meta, content: None });
        }
    }

    /// Changes the metadata of files of the layer, each by its content.
    pub(super) fn change_files(&mut self, change: impl Fn(&Rc<C>, &mut Meta)) {
        for Made { meta, content, .. } in self.made.values_mut() {
            content.iter().for_each(|content| change(content, meta));
        }
    }

    /// A name that a layer reads as a removal removes: there is no other way to write it.
    fn took_away(&mut self, path: &TreePath) -> bool {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
        let Some(hidden) = name.strip_prefix(WHITEOUT) else { return false };
        if name == OPAQUE {
            let below: Vec<_> = self.strictly_below(&parent);
            below.iter().for_each(|path| drop(self.made.remove(path)));
            if self.in_base(&parent).is_some() {
                self.opaque.insert(parent);
            }
        } else if let Ok(hidden) = child(&parent, hidden) {
            self.clear(&hidden);
        }
        true
    }

    /// Takes away whatever stands at a path, with all that is below.
    fn clear(&mut self, path: &TreePath) {
        for below in self.strictly_below(path) {
            self.made.remove(&below);
        }
        self.made.remove(path);
        if self.in_base(path).is_some() {
            self.gone.insert(path.clone());
        }
    }

    fn strictly_below(&self, path: &TreePath) -> Vec<TreePath> {
        let after = self.made.range(path.clone()..).map(|(key, _)| key);
        after.take_while(|key| key.starts_with(path)).filter(|key| *key != path).cloned().collect()
    }

    /// The layer, in path order.
    pub(super) fn lines(&self) -> Lines<'_, C> {
        let rest: Puts<C> = match &self.rest {
            Some(rest) => rest(),
            None => Box::new(std::iter::empty()),
        };
        let made = self.made.iter().map(|(path, made)| (path.clone(), Cow::Borrowed(made)));
        let made: Lined<'_, C> = Box::new(made);
        let rest: Lined<'_, C> = Box::new(rest.map(|(path, made)| (path, Cow::Owned(made))));
        let marks = self.gone.union(&self.opaque);
        Lines {
            target: self,
            made: made.peekable(),
            rest: rest.peekable(),
            marks: (Box::new(marks) as Box<dyn Iterator<Item = _>>).peekable(),
            before: TreePath::root(),
            ready: VecDeque::new(),
        }
    }

    /// What becomes of a path, and what is put there.
    fn lines_at<'t>(&'t self, path: &TreePath, made: Option<Cow<'t, Made<C>>>) -> Vec<Line<'t, C>> {
        let mut lines = Vec::new();
        // A file in place of something needs no whiteout; a directory would keep what was below.
        let replaced = made.as_ref().is_some_and(|made| made.kind != Kind::Directory);
        if self.gone.contains(path) && !replaced {
            lines.push(Line::Whiteout(path.clone()));
        }
        match made {
            Some(made) => lines.push(Line::Put(path.clone(), made)),
            None => {
                if let Some(mut entry) = self.in_base(path).filter(Entry::is_directory) {
                    entry.meta.xattrs.retain(|name, _| travels(name));
                    lines.push(Line::Above(entry));
                }
            }
        }
        if self.opaque.contains(path) {
            lines.push(Line::Opaque(path.clone()));
        }
        lines
    }
}

type Lined<'t, C> = Box<dyn Iterator<Item = (TreePath, Cow<'t, Made<C>>)> + 't>;

/// The lines of a layer, one by one: what is put, what is gone, and directories above both.
pub(super) struct Lines<'t, C: 'static> {
    target: &'t Target<'t, C>,
    made: Peekable<Lined<'t, C>>,
    rest: Peekable<Lined<'t, C>>,
    marks: Peekable<Box<dyn Iterator<Item = &'t TreePath> + 't>>,
    /// The path of the line before.
    before: TreePath,
    ready: VecDeque<Line<'t, C>>,
}

impl<'t, C: 'static> Iterator for Lines<'t, C> {
    type Item = Line<'t, C>;

    fn next(&mut self) -> Option<Line<'t, C>> {
        while self.ready.is_empty() {
            let put = [self.made.peek(), self.rest.peek()].into_iter().flatten();
            let path = put.map(|(path, _)| path).chain(self.marks.peek().copied()).min()?.clone();
            let made = self.made.next_if(|(made, _)| *made == path);
            let rest = self.rest.next_if(|(made, _)| *made == path);
            self.marks.next_if(|mark| **mark == path);
            for above in path.ancestors_beyond(path.common(&self.before)) {
                self.ready.extend(self.target.lines_at(&above, None));
            }
            let made = made.or(rest).map(|(_, made)| made);
            self.ready.extend(self.target.lines_at(&path, made));
            self.before = path;
        }
        self.ready.pop_front()
    }
}

/// Whether a name takes something of the layers below away.
pub(super) fn is_mark(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT)
}

/// Whether a path, or one above it, is in the set; in a few steps, however deep the path is.
fn covers(set: &BTreeSet<TreePath>, path: &TreePath) -> bool {
    let mut at = path.clone();
    // What is above `at` sorts before it, and whatever sorts between the two is below what is above.
    while let Some(before) = set.range(..=&at).next_back() {
        if path.starts_with(before) {
            return true;
        }
        at = at.upper(at.common(before));
    }
    false
}

/// Where a destination is, as typed: its last name, unless it ends in a slash.
pub(super) fn destination_parent(destination: &str) -> &str {
    let end = destination.rfind('/').map_or(0, |slash| slash + 1);
    let (directory, name) = destination.split_at(end);
    if name.is_empty() || name == "." { destination } else { directory }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_covers_what_is_in_it_and_what_is_below() {
        let path = |text: &str| TreePath::parse(text).unwrap();
        let set: BTreeSet<_> = ["a/b", "a/b.c", "a/d/e/f", "x"].into_iter().map(path).collect();
        for (text, covered) in [
            ("a/b", true),
            ("a/b/c/d", true),
            ("a/b.d", false),
            ("a/c", false),
            ("a/d/e/g", false),
            ("a", false),
            ("", false),
            ("x/y/z", true),
            ("xy", false),
        ] {
            assert_eq!(covers(&set, &path(text)), covered, "{text}");
        }
        // What sorts in between is below something else that is covered.
        let set: BTreeSet<_> = ["a", "a/b/c"].into_iter().map(path).collect();
        assert!(covers(&set, &path("a/b/d")) && !covers(&BTreeSet::new(), &path("a")));
    }
}
