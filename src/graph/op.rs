//! Ops: sources, file operations and processes, each a pure description.

use std::{ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{oci::Platform, remote::GitSource};

/// Index of an op in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(u32);

/// A build as ops, inputs first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpGraph {
    nodes: Vec<OpNode>,
}

/// An op and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpNode {
    /// What to do.
    pub op: Op,
    /// Where it was written.
    pub place: Place,
    /// What a process would find there; ops on one another share it while it stays as it is.
    pub setting: Arc<Setting>,
}

/// What a process finds at a place of a Dockerfile besides its files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Environment in order, arguments of the build among it.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute; empty for `/`.
    pub cwd: String,
    /// `USER`; empty for root.
    pub user: String,
    /// `SHELL`; empty for the default.
    pub shell: Vec<String>,
    /// The processor that the files are for, as image configs name it; empty for this machine's.
    pub architecture: String,
}

/// The piece of a Dockerfile that an op came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Name of the stage, or its number.
    pub stage: String,
    /// The instruction on one line, as progress shows it.
    pub title: String,
    /// Byte range in the Dockerfile; empty for triggers that came from a base image.
    pub span: Range<usize>,
    /// First and last line, from 1.
    pub lines: (usize, usize),
}

/// One node of the graph. `Run` and `Files` add exactly one layer to their base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// An empty root file system.
    Scratch,
    /// The layers of an image.
    Image {
        /// As the user wrote it after expansion: the key under which its config was resolved.
        name: String,
        /// What it must run on.
        platform: Platform,
    },
    /// Local files: the build context, or a named one.
    Context {
        /// Name of a named context; `None` for the build context.
        name: Option<String>,
    },
    /// Files copied or made.
    Files(FilesOp),
    /// A process run.
    Run(RunOp),
}

/// Files copied or made on top of a root file system: one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesOp {
    /// The root file system below.
    pub base: OpId,
    /// In order.
    pub actions: Vec<FileAction>,
}

/// One step of a [`FilesOp`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileAction {
    /// `WORKDIR`: makes a directory and its parents, 0755; an existing one is left alone.
    MakeDirectory {
        /// Absolute path.
        path: String,
        /// `USER` in force: owner of what is made (name, id, `user:group`); empty for root.
        owner: String,
    },
    /// `COPY` and `ADD`.
    Copy {
        /// In order.
        sources: Vec<CopySource>,
        /// Absolute path; a trailing slash is kept.
        destination: String,
        /// `--chown`, expanded.
        chown: Option<String>,
        /// `--chmod`, parsed.
        chmod: Option<Chmod>,
        /// `--exclude` patterns.
        exclude: Vec<String>,
        /// `--parents`.
        parents: bool,
        /// `--link`: the result does not look at the base.
        link: bool,
        /// `ADD`: local archives are unpacked. `Some` is `--unpack` as given.
        unpack: Unpack,
    },
}

/// Whether archives among the sources are unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpack {
    /// `COPY`, or `ADD --unpack=false`.
    Never,
    /// `ADD`: local archives only.
    Local,
    /// `ADD --unpack=true`: downloaded ones too.
    Always,
}

/// `--chmod`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chmod {
    /// `0644`: for files and directories alike.
    Octal(u32),
    /// `u=rwX,go=rX`.
    Symbolic(String),
}

/// One source of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySource {
    /// Where its path starts.
    pub root: SourceRoot,
    /// Path or wildcard below the root, as typed after expansion; name of the file for `Inline`.
    pub path: String,
}

/// Where the path of a source starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceRoot {
    /// A context or a root file system.
    Op(OpId),
    /// A heredoc: the file's bytes.
    Inline(Vec<u8>),
    /// A URL to download (`ADD`), with the expected checksum when given.
    Url {
        /// `http://` or `https://`.
        url: String,
        /// `sha256:…`.
        checksum: Option<String>,
    },
    /// A git repository (`ADD`), with what the flags say of it.
    Git(Box<GitSource>),
}

/// A process on top of a root file system: one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOp {
    /// The processor that its root file system is for, as image configs name it.
    pub architecture: String,
    /// The root file system below.
    pub base: OpId,
    /// Program and arguments; shell form has the shell in front already.
    pub argv: Vec<String>,
    /// Environment in order, without `HOME`.
    pub env: Vec<(String, String)>,
    /// Variables that neither the key nor the history may hold (proxy arguments).
    pub hidden_env: Vec<(String, String)>,
    /// Working directory, absolute; made when missing.
    pub cwd: String,
    /// `USER` as typed; empty for root.
    pub user: String,
    /// `--network`.
    pub network: Network,
    /// `--security`.
    pub security: Security,
    /// `--mount`, in order.
    pub mounts: Vec<MountOp>,
    /// Heredocs that are executed as files below `/dev/pipes`.
    pub pipes: Vec<PipeFile>,
    /// `--device` names.
    pub devices: Vec<String>,
    /// Host name, when one was asked for.
    pub hostname: Option<String>,
}

/// A heredoc that becomes an executable file for the time of one RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipeFile {
    /// File name below `/dev/pipes`.
    pub name: String,
    /// The bytes.
    pub content: Vec<u8>,
}

/// `RUN --network`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// What the run was started with.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's; needs the entitlement.
    Host,
}

/// `RUN --security`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// Confined.
    #[default]
    Sandbox,
    /// All capabilities, no filter; needs the entitlement.
    Insecure,
}

/// `RUN --mount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOp {
    /// Where, absolute.
    pub target: String,
    /// What.
    pub kind: MountKind,
    /// Whether the process may write.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// Files of a context or root file system; writes are discarded.
    Bind {
        /// Where the source path starts.
        from: OpId,
        /// Path below it.
        source: String,
    },
    /// A directory that outlives the build.
    Cache {
        /// Identity.
        id: String,
        /// Builds of different namespaces have different caches.
        namespace: String,
        /// What it is filled with when new.
        from: Option<OpId>,
        /// Path below `from`, or below the cache.
        source: String,
        /// Who may use it at once.
        sharing: Sharing,
        /// Mode of the directory when new.
        mode: u32,
        /// Owner when new.
        uid: u32,
        /// Group when new.
        gid: u32,
    },
    /// Memory.
    Tmpfs {
        /// Limit in bytes; `None` for half the memory.
        size: Option<u64>,
    },
    /// A secret by name.
    Secret {
        /// The name.
        id: String,
        /// Variable that carries it.
        env: Option<String>,
        /// Whether it is a file at the target too.
        file: bool,
        /// Whether its absence is an error.
        required: bool,
        /// Mode of the file.
        mode: u32,
        /// Owner of the file.
        uid: u32,
        /// Group of the file.
        gid: u32,
    },
    /// An SSH agent by name.
    Ssh {
        /// The name.
        id: String,
        /// Whether its absence is an error.
        required: bool,
        /// Mode of the socket.
        mode: u32,
        /// Owner of the socket.
        uid: u32,
        /// Group of the socket.
        gid: u32,
    },
}

impl MountKind {
    /// Mode of the directory of a cache that says none.
    pub const CACHE_MODE: u32 = 0o755;
    /// Mode of the file of a secret that says none.
    pub const SECRET_MODE: u32 = 0o400;
    /// Mode of the socket of an agent that says none.
    pub const SSH_MODE: u32 = 0o600;
}

/// Who may use a cache mount at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Everybody.
    #[default]
    Shared,
    /// Each build its own.
    Private,
    /// One after another.
    Locked,
}

impl OpGraph {
    /// Adds an op; its inputs must have been added before.
    ///
    /// # Panics
    ///
    /// If an input is not in the graph yet: the front end has lost count.
    pub fn add(&mut self, mut node: OpNode) -> OpId {
        let id = OpId(u32::try_from(self.nodes.len()).expect("fewer than 2^32 ops"));
        for input in node.op.inputs() {
            assert!(input < id, "an op uses one that comes later");
        }
        if let Some(last) = self.nodes.last().filter(|last| last.setting == node.setting) {
            node.setting = Arc::clone(&last.setting);
        }
        self.nodes.push(node);
        id
    }

    /// The op with this id.
    #[must_use]
    pub fn node(&self, id: OpId) -> &OpNode {
        &self.nodes[id.0 as usize]
    }

    /// An id that no op of this graph has, a different one for each number: for what is only known
    /// while the graph runs.
    ///
    /// # Panics
    ///
    /// When there would be more than 2^32 ids.
    #[must_use]
    pub fn id_beyond(&self, number: usize) -> OpId {
        OpId(u32::try_from(self.nodes.len() + number).expect("fewer than 2^32 ids"))
    }

    /// All ids, inputs first.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = OpId> + use<> {
        (0..u32::try_from(self.nodes.len()).expect("checked by add")).map(OpId)
    }

    /// Number of ops.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no op.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

impl OpId {
    /// Position in the graph, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Op {
    /// The op on whose root file system this one adds a layer; `None` for one that adds to nothing.
    #[must_use]
    pub fn base(&self) -> Option<OpId> {
        match self {
            Self::Scratch | Self::Image { .. } | Self::Context { .. } => None,
            Self::Files(files) => Some(files.base),
            Self::Run(run) => Some(run.base),
        }
    }

    /// Ops whose results this one needs, base first, each once.
    #[must_use]
    pub fn inputs(&self) -> Vec<OpId> {
        let mut inputs = match self {
            Self::Scratch | Self::Image { .. } | Self::Context { .. } => Vec::new(),
            Self::Files(files) => [vec![files.base], files.sources()].concat(),
            Self::Run(run) => [vec![run.base], run.sources()].concat(),
        };
        let mut seen = Vec::new();
        inputs.retain(|id| {
            !seen.contains(id) && {
                seen.push(*id);
                true
            }
        });
        inputs
    }
}

impl FileAction {
    /// A copy of one path without any flag; archives stay archives.
    #[must_use]
    pub fn plain_copy(source: CopySource, destination: &str) -> Self {
        Self::Copy {
            sources: vec![source],
            destination: destination.to_owned(),
            chown: None,
            chmod: None,
            exclude: Vec::new(),
            parents: false,
            link: false,
            unpack: Unpack::Never,
        }
    }
}

impl FilesOp {
    /// The op that a source of this path is copied from.
    #[must_use]
    pub fn origin(&self, path: &str) -> Option<OpId> {
        self.actions.iter().find_map(|action| match action {
            FileAction::Copy { sources, .. } => {
                let source = sources.iter().find(|source| source.path == path);
                source.and_then(|source| source.root.op())
            }
            FileAction::MakeDirectory { .. } => None,
        })
    }

    /// Ops that files are copied from; one may come several times.
    #[must_use]
    pub fn sources(&self) -> Vec<OpId> {
        let mut sources = Vec::new();
        for action in &self.actions {
            if let FileAction::Copy { sources: copied, .. } = action {
                sources.extend(copied.iter().filter_map(|source| source.root.op()));
            }
        }
        sources
    }
}

impl RunOp {
    /// The op whose files a mount shows at a path.
    #[must_use]
    pub fn origin(&self, target: &str) -> Option<OpId> {
        self.mounts.iter().find(|mount| mount.target == target).and_then(|mount| {
            match &mount.kind {
                MountKind::Bind { from, .. } => Some(*from),
                MountKind::Cache { .. }
                | MountKind::Tmpfs { .. }
                | MountKind::Secret { .. }
                | MountKind::Ssh { .. } => None,
            }
        })
    }

    /// Ops that mounts show or are filled from; one may come several times.
    #[must_use]
    pub fn sources(&self) -> Vec<OpId> {
        let mut sources = Vec::new();
        for mount in &self.mounts {
            match &mount.kind {
                MountKind::Bind { from, .. } => sources.push(*from),
                MountKind::Cache { from, .. } => sources.extend(from),
                MountKind::Tmpfs { .. } | MountKind::Secret { .. } | MountKind::Ssh { .. } => {}
            }
        }
        sources
    }
}

impl SourceRoot {
    /// The op, when the source is in the graph.
    #[must_use]
    pub fn op(&self) -> Option<OpId> {
        match self {
            Self::Op(id) => Some(*id),
            Self::Inline(_) | Self::Url { .. } | Self::Git(_) => None,
        }
    }
}
