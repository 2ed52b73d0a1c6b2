//! File operations of a build: what COPY, ADD and WORKDIR select, and the layer they make.
//!
//! Layers go from the source straight into a tar stream; no directory is made and nothing is mounted.
//! `select` says which files, `copy` and `archive` where they go in a `target` that is only thought
//! of, `write` makes the layer of it. `keys` says what all that depends on. Knows no Dockerfile.

use std::{collections::HashMap, fs::File, io};

use thiserror::Error;

use crate::{
    graph::{Chmod, CopySource, FileAction, FilesOp, KeyTree, OpId, SourceRoot, Unpack},
    layer::LayerError,
    oci::{ChainId, DiffId, Digest},
    snapshot::{SnapshotError, View},
    store::{Made, Store, StoreError},
    tree::{Kind, Meta, Timestamp, TreePath},
};

mod accounts;
mod advice;
mod archive;
mod content;
mod context;
mod copy;
mod earlier;
mod items;
mod keys;
mod mode;
mod parts;
mod puts;
mod resolve;
mod select;
mod source;
mod split;
mod stored;
mod target;
#[cfg(test)]
mod tests;
mod write;

pub(super) use earlier::Earlier;
pub(super) use keys::{CONTENT, Selection};
pub(super) use parts::Parting;
pub(super) use split::check_split;

pub use accounts::user_ids;
pub use advice::{Advice, advice};
pub use context::{Context, read_in_folder};
pub(crate) use stored::{holds_archive, newest, read_stored};

pub use archive::is_archive;

use accounts::{Lookup, owner_ids};
use copy::{Look, Manner, Origin, Print};
use mode::ModeChange;
use select::{Parents, Pick, select};
use source::{Node, Opened, Tree};
use target::{Maker, Target};

/// A key with the files that its parts stand for.
pub(super) struct Key {
    /// The parts.
    pub(super) tree: KeyTree,
    /// What was selected, to say which file it was that changed.
    pub(super) selections: Vec<Selection>,
}

impl Key {
    pub(super) fn new(kind: &str) -> Self {
        Self { tree: KeyTree::new(kind), selections: Vec::new() }
    }
}

/// How a layer is made.
#[derive(Clone, Copy)]
pub(super) struct Making<'m> {
    pub(super) clock: Clock,
    /// What the key selected, so that the layer has just that; without, it is selected now.
    pub(super) selections: &'m [Selection],
    /// What the same step made before.
    pub(super) earlier: Option<&'m Earlier>,
    /// Whether it may become several layers.
    pub(super) parting: Option<Parting<'m>>,
}

impl Making<'_> {
    /// Without anything known before.
    pub(super) fn at(clock: Clock) -> Self {
        Self { clock, selections: &[], earlier: None, parting: None }
    }
}

/// Where a source's path starts, resolved.
#[derive(Clone, Copy)]
pub enum Root<'a> {
    /// Local files.
    Context(&'a Context),
    /// The root file system of a stage or image, bottom layer first.
    Layers(&'a [DiffId]),
    /// Files that were fetched as a context, in one layer: each counts by its content.
    Files(DiffId),
    /// One file that was downloaded; the path of the source is not looked at.
    Download(&'a Download),
}

/// A file that came from a URL, as `ADD` sees it: mode 0600, owner 0:0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// Name that it gets inside of a directory.
    pub name: String,
    /// Blob of the store with its bytes.
    pub content: Digest,
    /// Length in bytes.
    pub size: u64,
    /// `Last-Modified`; the epoch when the server named none.
    pub modified: Timestamp,
}

/// Numbers for a user of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserIds {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups; the primary one is among them, as with runc.
    pub groups: Vec<u32>,
    /// Home folder from `/etc/passwd`; `/root` or `/` when there is none.
    pub home: String,
}

/// Times that a build gives to what it makes itself.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Now.
    pub now: Timestamp,
    /// `SOURCE_DATE_EPOCH`, when set.
    pub epoch: Option<Timestamp>,
    /// The latest commit whose time its files are to have, when one is.
    pub commit: Option<Timestamp>,
}

impl Clock {
    /// No entry is dated later than this: when a folder was checked out cannot change a layer.
    fn latest(&self) -> Timestamp {
        let known = [self.epoch, self.commit];
        known.into_iter().flatten().fold(self.now, Timestamp::max)
    }
}

/// Why files could not be copied or made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FilesError {
    /// A source does not exist (`"/x": not found`, BuildKit's words), with near names as help.
    #[error("{message}")]
    NotFound {
        /// BuildKit's words.
        message: String,
        /// Near names, or that an ignore file excludes it.
        help: Option<String>,
    },
    /// Files and places do not fit (file over directory, bad mode, unknown user …).
    #[error("{0}")]
    Invalid(String),
    /// Local files were not the same after the copy as before it.
    #[error(
        "files of the context changed while they were copied; build again when nothing writes to them"
    )]
    Changed,
    /// A local file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stack of layers could not be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Writing the layer failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

/// What callers keep to: see [`Root`].
const NOT_FETCHED: &str = "sources of other machines are fetched before, and have an id then";

/// Mode of a downloaded file.
const DOWNLOAD_MODE: u32 = 0o600;

/// Mode of a heredoc.
const HEREDOC_MODE: u32 = 0o644;

/// Parts of the cache key of a files op: the base's chain, every flag, and the name, type, mode,
/// owner, size, link, attributes and content of every file selected from contexts (through the
/// store's stat cache); a stage counts by its chain.
///
/// # Errors
///
/// When a source is missing or cannot be read.
pub(super) fn key<'a>(
    store: &Store,
    op: &FilesOp,
    base: Option<ChainId>,
    root_of: &dyn Fn(OpId) -> Root<'a>,
) -> Result<Key, FilesError> {
    let mut key = Key::new("files");
    let tree = &mut key.tree;
    if looks_at_base(op) {
        tree.add("base", name_of(base));
    }
    for action in &op.actions {
        match action {
            FileAction::MakeDirectory { path, owner } => {
                key.tree.add("directory", path);
                key.tree.add("owner", owner);
            }
            FileAction::Copy { sources, destination, .. } => {
                key.tree.add("destination", destination);
                add_flags(&mut key.tree, action);
                for source in sources {
                    add_source(&mut key, store, (action, source), root_of)?;
                }
            }
        }
    }
    Ok(key)
}

/// Makes the op's one layer: plain tar blob, listing and layer record in the store.
///
/// # Errors
///
/// When a source is missing, changes while it is read, or does not fit its destination.
pub(super) fn make_layer<'a>(
    store: &Store,
    op: &FilesOp,
    base: &[DiffId],
    root_of: &dyn Fn(OpId) -> Root<'a>,
    clock: Clock,
) -> Result<DiffId, FilesError> {
    let made = make_layers(store, op, base, root_of, Making::at(clock))?;
    Ok(made.layers()[0])
}

/// Makes the op's layer, or the layers that it is split into.
///
/// # Errors
///
/// As [`make_layer`].
pub(super) fn make_layers<'a>(
    store: &Store,
    op: &FilesOp,
    base: &[DiffId],
    root_of: &dyn Fn(OpId) -> Root<'a>,
    making: Making<'_>,
) -> Result<Made, FilesError> {
    let Making { clock, selections, earlier, parting } = making;
    let below = looks_at_base(op) && !base.is_empty();
    let view = below.then(|| View::open(store, base)).transpose()?;
    let mut work = Work {
        store,
        target: Target::new(view.as_ref()),
        accounts: view.as_ref().map(|view| view as &dyn Lookup),
        trees: Vec::new(),
        opened: HashMap::new(),
        spools: Vec::new(),
        selections,
        used: 0,
        clock,
    };
    for action in &op.actions {
        work.act(action, root_of)?;
    }
    let Work { target, trees, spools, .. } = work;
    let (base, trees, spools, latest) = (view.as_ref(), &trees, &spools, clock.latest());
    let origins = write::Origins { store, base, trees, spools, earlier, latest };
    let Some(parting) = parting else { return Ok(write::write(&target, &origins)?.into()) };
    Ok(parts::write_parts(&target, &origins, (parting, selections))?.into())
}

/// Mode and owner of what a source path stands for.
pub(super) fn source_meta(
    store: &Store,
    root: Root<'_>,
    path: &str,
) -> Result<Option<Meta>, FilesError> {
    let tree = Tree::open(store, root)?;
    let path = tree.resolve(path.as_bytes())?;
    Ok(tree.node(&path)?.map(|node| node.meta))
}

/// Mode of the folder that a source path stands for, when it is one that counts by its files: a stage counts as a whole.
pub(super) fn folder_mode(
    store: &Store,
    root: Root<'_>,
    path: &str,
) -> Result<Option<u32>, FilesError> {
    if matches!(root, Root::Layers(_)) {
        return Ok(None);
    }
    let tree = Tree::open(store, root)?;
    let node = tree.node(&tree.resolve(path.as_bytes())?)?;
    Ok(node.filter(Node::is_directory).map(|node| node.meta.mode))
}

/// Whether the op's layer depends on what stands in the root file system below.
pub(super) fn looks_at_base(op: &FilesOp) -> bool {
    op.actions.iter().any(needs_base)
}

/// Whether source paths are kept below the destination.
fn copies_below(action: &FileAction) -> bool {
    matches!(action, FileAction::Copy { parents: true, .. })
}

/// `--link` makes its layer on nothing; BuildKit ignores it together with `--chmod`.
fn needs_base(action: &FileAction) -> bool {
    match action {
        FileAction::MakeDirectory { .. } => true,
        FileAction::Copy { link, chmod, .. } => !link || chmod.is_some(),
    }
}

fn name_of(chain: Option<ChainId>) -> String {
    chain.map_or_else(|| "scratch".to_owned(), |chain| chain.to_string())
}

fn add_flags(tree: &mut KeyTree, action: &FileAction) {
    let FileAction::Copy { chown, chmod, exclude, parents, link, unpack, .. } = action else {
        return;
    };
    if let Some(chown) = chown {
        tree.add("--chown", chown);
    }
    match chmod {
        Some(Chmod::Octal(mode)) => tree.add("--chmod", format!("{mode:04o}")),
        Some(Chmod::Symbolic(text)) => tree.add("--chmod", text),
        None => {}
    }
    for pattern in exclude {
        tree.add("--exclude", pattern);
    }
    let switches = [("--parents", *parents), ("--link", *link && !needs_base(action))];
    for (name, _) in switches.iter().filter(|(_, on)| *on) {
        tree.add(name, "true");
    }
    let unpack = match unpack {
        Unpack::Never => return,
        Unpack::Local => "local archives",
        Unpack::Always => "archives",
    };
    tree.add("unpack", unpack);
}

fn add_source<'a>(
    key: &mut Key,
    store: &Store,
    (action, source): (&FileAction, &CopySource),
    root_of: &dyn Fn(OpId) -> Root<'a>,
) -> Result<(), FilesError> {
    let path = &source.path;
    let tree = &mut key.tree;
    match &source.root {
        SourceRoot::Inline(bytes) => {
            tree.add(&format!("heredoc {path}"), Digest::of(bytes));
        }
        SourceRoot::Url { .. } | SourceRoot::Git(_) => unreachable!("{NOT_FETCHED}"),
        SourceRoot::Op(id) => match root_of(*id) {
            Root::Layers(layers) => {
                tree.add(
                    &format!("source {path}"),
                    format!("from {}", name_of(ChainId::of(layers))),
                );
            }
            Root::Files(layer) => {
                let files = Tree::open(store, Root::Files(layer))?;
                add_files(key, store, (&files, *id), (path, action))?;
            }
            Root::Download(Download { name, content, size, .. }) => {
                tree.add(&format!("download {name}"), format!("{size} bytes, {content}"));
            }
            Root::Context(context) => {
                add_files(key, store, (&Tree::Folder(context), *id), (path, action))?;
            }
        },
    }
    Ok(())
}

fn add_files(
    key: &mut Key,
    store: &Store,
    (files, from): (&Tree<'_>, OpId),
    (path, action): (&str, &FileAction),
) -> Result<(), FilesError> {
    let picks = select_for((store, files), path, action)?;
    let selection = Selection::of(store, files, (format!("source {path}"), from, picks))?;
    key.tree.add(&selection.component, selection.describe());
    key.selections.push(selection);
    Ok(())
}

fn select_for(
    (store, tree): (&Store, &Tree<'_>),
    path: &str,
    action: &FileAction,
) -> Result<Vec<Pick>, FilesError> {
    let FileAction::Copy { exclude, .. } = action else { return Ok(Vec::new()) };
    let parents = if copies_below(action) { Parents::Kept } else { Parents::Dropped };
    select(store, tree, path, exclude, parents)
}

/// A layer being planned.
struct Work<'a, 'v> {
    store: &'v Store,
    target: Target<'v>,
    accounts: Option<&'v dyn Lookup>,
    trees: Vec<Tree<'a>>,
    /// Sources that were opened before, in `trees`.
    opened: HashMap<OpId, usize>,
    /// Contents of archive members.
    spools: Vec<File>,
    /// What was selected from contexts for the key, in the order in which it is used.
    selections: &'v [Selection],
    /// How many of them were used.
    used: usize,
    clock: Clock,
}

impl<'a, 'v> Work<'a, 'v> {
    fn act(
        &mut self,
        action: &FileAction,
        root_of: &dyn Fn(OpId) -> Root<'a>,
    ) -> Result<(), FilesError> {
        match action {
            FileAction::MakeDirectory { path, owner } => {
                let (uid, gid) = owner_ids(self.accounts, owner)?;
                let mtime = self.clock.epoch.unwrap_or(self.clock.now);
                let maker = Maker { mode: 0o755, uid, gid, mtime };
                self.target.make_directories(path.as_bytes(), maker)?;
            }
            FileAction::Copy { sources, destination, chown, chmod, parents, .. } => {
                let chown = chown.as_deref().filter(|chown| !chown.is_empty());
                let look = Look {
                    owner: chown.map(|chown| owner_ids(self.accounts, chown)).transpose()?,
                    mode: chmod.as_ref().map(ModeChange::parse).transpose()?,
                    now: self.clock.now,
                };
                let manner = Manner { destination, look };
                if *parents {
                    // Even a wildcard without a match makes the destination.
                    let directory = target::destination_parent(destination);
                    self.target.make_directories(directory.as_bytes(), manner.look.maker())?;
                }
                for source in sources {
                    self.copy_source((action, source), &manner, root_of)?;
                }
            }
        }
        Ok(())
    }

    fn copy_source(
        &mut self,
        (action, source): (&FileAction, &CopySource),
        manner: &Manner<'_>,
        root_of: &dyn Fn(OpId) -> Root<'a>,
    ) -> Result<(), FilesError> {
        let id = match &source.root {
            SourceRoot::Op(id) => *id,
            SourceRoot::Inline(bytes) => {
                let mut node = Node::plain(Kind::File { size: bytes.len() as u64 }, HEREDOC_MODE);
                node.meta.mtime = self.clock.now;
                let pick = single(source.path.as_bytes(), node);
                let (text, time) = (Origin::Text(bytes.as_slice().into()), pick.top.meta.mtime);
                return copy::copy(&mut self.target, manner, (&pick, time), text);
            }
            SourceRoot::Url { .. } | SourceRoot::Git(_) => unreachable!("{NOT_FETCHED}"),
        };
        let index = match self.opened.get(&id) {
            Some(index) => *index,
            None => {
                self.trees.push(Tree::open(self.store, root_of(id))?);
                self.opened.insert(id, self.trees.len() - 1);
                self.trees.len() - 1
            }
        };
        let selected;
        let known = self.selected(id);
        let picks = match &self.trees[index] {
            Tree::Download(download) => {
                let mut node = Node::plain(Kind::File { size: download.size }, DOWNLOAD_MODE);
                node.meta.mtime = download.modified;
                selected = vec![single(download.name.as_bytes(), node)];
                &selected
            }
            tree @ (Tree::Layers(_) | Tree::Folder(_)) => match known {
                Some(number) => &self.selections[number].picks,
                None => {
                    selected = select_for((self.store, tree), &source.path, action)?;
                    &selected
                }
            },
        };
        let mut first = known.map(|selection| Print { selection, number: 0 });
        for pick in picks {
            let origin = Origin::Tree { tree: index, path: pick.path.clone(), first };
            if let Some(print) = &mut first {
                print.number += keys::count_hashed(pick);
            }
            if self.unpacks(action, index, pick)? {
                self.unpack(manner, index, pick)?;
                continue;
            }
            let time = self.top_time(index, pick);
            copy::copy(&mut self.target, manner, (pick, time), origin)?;
        }
        Ok(())
    }

    /// Number of what the key has selected from a source, where it has looked at files.
    fn selected(&mut self, from: OpId) -> Option<usize> {
        self.selections.get(self.used).filter(|next| next.from == from)?;
        self.used += 1;
        Some(self.used - 1)
    }

    /// Time that a destination gets from the folder that is copied into it.
    fn top_time(&self, index: usize, pick: &Pick) -> Timestamp {
        match &self.trees[index] {
            // The folder of the context itself is nobody's work: only what it holds was sent.
            Tree::Folder(_) if pick.path.is_root() => self.clock.now,
            Tree::Folder(_) | Tree::Layers(_) | Tree::Download(_) => pick.top.meta.mtime,
        }
    }

    /// Whether a pick is an archive that is to be unpacked.
    fn unpacks(&self, action: &FileAction, index: usize, pick: &Pick) -> Result<bool, FilesError> {
        let FileAction::Copy { unpack, .. } = action else { return Ok(false) };
        let wanted = match (unpack, &self.trees[index]) {
            (Unpack::Never, _) | (Unpack::Local, Tree::Download(_)) => false,
            (Unpack::Local | Unpack::Always, _) => true,
        };
        if !wanted || !matches!(pick.top.kind, Kind::File { .. }) {
            return Ok(false);
        }
        Ok(archive::is_archive(self.read(index, pick)?))
    }

    fn unpack(&mut self, manner: &Manner<'_>, index: usize, pick: &Pick) -> Result<(), FilesError> {
        let content = self.read(index, pick)?;
        let packed = if let Kind::File { size } = pick.top.kind { size } else { 0 };
        let most = self.store.unpack_limits().most(packed);
        if self.spools.is_empty() {
            let place = self.store.root().display().to_string();
            let failed = |source: io::Error| FilesError::Io { path: place, source };
            let staging = self.store.staging()?;
            self.spools.push(tempfile::tempfile_in(staging.path()).map_err(failed)?);
        }
        let name = match pick.path.is_root() {
            true => String::from_utf8_lossy(&pick.name).into_owned(),
            false => pick.path.to_string(),
        };
        let spool = (&mut self.spools[0], 0);
        archive::unpack(&mut self.target, manner, (&name, content, most), spool)
    }

    fn read(&self, index: usize, pick: &Pick) -> Result<Box<dyn io::Read + Send>, FilesError> {
        let opened = self.trees[index].open_file(self.store, &pick.path, &pick.top)?;
        Ok(match opened {
            Opened::Local(file, _) => Box::new(io::BufReader::new(file)),
            Opened::Other(content) => content,
        })
    }
}

fn single(name: &[u8], node: Node) -> Pick {
    Pick::single(TreePath::root(), name, node)
}
