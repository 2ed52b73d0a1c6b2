//! A parsed Dockerfile: instructions with their words as typed, nothing expanded yet.
//!
//! Every value keeps enough of its place to point at. Expansion and meaning are `lower`'s business.

use std::ops::Range;

use super::lint::Warning;

/// Where something stands in the Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// Byte range in the text.
    pub span: Range<usize>,
    /// First and last line, from 1.
    pub lines: (usize, usize),
}

/// A whole Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// `# syntax=`, `# escape=`, `# check=`.
    pub directives: Directives,
    /// `ARG`s before the first `FROM`.
    pub global_args: Vec<Instruction>,
    /// Stages in order; never empty.
    pub stages: Vec<Stage>,
    /// What the parser noticed (empty continuations, casing, legacy forms …).
    pub warnings: Vec<Warning>,
}

impl Dockerfile {
    /// Every instruction in order: global arguments, then each `FROM` and what follows it.
    pub fn instructions(&self) -> impl Iterator<Item = &Instruction> {
        let staged = self.stages.iter();
        let staged =
            staged.flat_map(|stage| std::iter::once(&stage.from).chain(&stage.instructions));
        self.global_args.iter().chain(staged)
    }

    /// The stages as [`crate::graph::Place::stage`] calls them: by name, or else by number.
    #[must_use]
    pub fn stage_names(&self) -> Vec<String> {
        let stages = self.stages.iter().enumerate();
        stages.map(|(index, stage)| stage.name.clone().unwrap_or(index.to_string())).collect()
    }
}

/// Parser directives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// `# syntax=` value, unused but reported.
    pub syntax: Option<String>,
    /// Escape character: `\` or a backtick.
    pub escape: char,
    /// `# check=` value as typed, with its location.
    pub check: Option<(String, Location)>,
}

/// One `FROM` and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Base image or stage, unexpanded.
    pub base: String,
    /// `AS name`, lower-cased.
    pub name: Option<String>,
    /// `AS name` as typed.
    pub name_typed: Option<String>,
    /// `--platform`, unexpanded.
    pub platform: Option<String>,
    /// The `FROM` line itself (for place, text, comments); its kind is [`Kind::From`].
    pub from: Instruction,
    /// What follows, in order.
    pub instructions: Vec<Instruction>,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The keyword as typed (`RUN`, `run`).
    pub keyword: String,
    /// What it says.
    pub kind: Kind,
    /// The logical line: continuations joined, comments dropped, heredoc bodies left out.
    pub original: String,
    /// Where it stands, heredoc bodies included.
    pub location: Location,
    /// Text of the comment lines directly above, without `#`.
    pub comments: Vec<String>,
}

/// A list that may be a command line for a shell or the words of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// Shell form: one text, blanks as typed.
    Shell(String),
    /// JSON form: words, taken as they are.
    Exec(Vec<String>),
}

/// A heredoc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// Delimiter, which names the file.
    pub name: String,
    /// Body. When `<<-` asked for it, the tabs at the start of lines are gone where the builder uses the body itself
    /// (COPY, ADD, a RUN that is only one heredoc); they are still there where the text goes on to a shell or is
    /// parsed again (other RUNs, ONBUILD).
    pub content: String,
    /// Whether variables in the body are expanded (no part of the delimiter was quoted).
    pub expand: bool,
    /// `<<-`.
    pub chomp: bool,
    /// File descriptor in front of `<<`; 0 when none was given.
    pub fd: u32,
}

/// `key=value`, both unexpanded with quotes in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// Name.
    pub key: String,
    /// Value.
    pub value: String,
    /// `key value` (legacy form) instead of `key=value`.
    pub legacy: bool,
}

/// What an instruction says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The `FROM` of a stage; its fields are in [`Stage`].
    From,
    /// `ARG`: names with defaults, unexpanded.
    Arg(Vec<(String, Option<String>)>),
    /// `ENV`.
    Env(Vec<KeyValue>),
    /// `LABEL`.
    Label(Vec<KeyValue>),
    /// `MAINTAINER`.
    Maintainer(String),
    /// `RUN`.
    Run(Run),
    /// `COPY`.
    Copy(Copy),
    /// `ADD`.
    Add(Copy),
    /// `CMD`.
    Cmd(CommandLine),
    /// `ENTRYPOINT`.
    Entrypoint(CommandLine),
    /// `SHELL`.
    Shell(Vec<String>),
    /// `WORKDIR`.
    Workdir(String),
    /// `USER`.
    User(String),
    /// `EXPOSE`: words sorted, unexpanded.
    Expose(Vec<String>),
    /// `VOLUME`: words, unexpanded.
    Volume(Vec<String>),
    /// `STOPSIGNAL`.
    StopSignal(String),
    /// `HEALTHCHECK`; durations in nanoseconds.
    Healthcheck(crate::oci::Healthcheck),
    /// `ONBUILD`: the trigger as typed, with its heredocs.
    OnBuild {
        /// Text after the keyword.
        trigger: String,
        /// Bodies that belong to it.
        heredocs: Vec<Heredoc>,
    },
}

/// `RUN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What to run; when the line is only one heredoc, its body in shell form.
    pub command: CommandLine,
    /// Heredocs of the line. `command` still holds the `<<NAME` words unless the line is only one heredoc.
    pub heredocs: Vec<Heredoc>,
    /// Whether the line is nothing but one heredoc.
    pub heredoc_only: bool,
    /// `--mount`, in order.
    pub mounts: Vec<Mount>,
    /// `--network`.
    pub network: crate::graph::Network,
    /// `--security`.
    pub security: crate::graph::Security,
    /// `--device`, unparsed.
    pub devices: Vec<String>,
    /// Flags as typed, in order, for history and messages.
    pub flags: Vec<String>,
}

/// `RUN --mount`, unexpanded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// `bind`, `cache`, `tmpfs`, `secret`, `ssh`.
    pub kind: String,
    /// `target`.
    pub target: Option<String>,
    /// `source`.
    pub source: Option<String>,
    /// `from`.
    pub from: Option<String>,
    /// `id`.
    pub id: Option<String>,
    /// `env` (secret).
    pub env: Option<String>,
    /// `ro`/`rw`; `None` for the default of the kind.
    pub read_only: Option<bool>,
    /// `required`.
    pub required: bool,
    /// `sharing` (cache), lower-cased.
    pub sharing: Option<String>,
    /// `size` (tmpfs), as typed.
    pub size: Option<String>,
    /// `mode`, as typed.
    pub mode: Option<String>,
    /// `uid`, as typed.
    pub uid: Option<String>,
    /// `gid`, as typed.
    pub gid: Option<String>,
}

/// `COPY` and `ADD`, unexpanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Paths, wildcards, URLs.
    pub sources: Vec<String>,
    /// Heredocs, which come after the paths.
    pub heredocs: Vec<Heredoc>,
    /// Last word.
    pub destination: String,
    /// `--from` (COPY).
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// `--link`.
    pub link: bool,
    /// `--parents` (COPY).
    pub parents: bool,
    /// `--exclude`.
    pub exclude: Vec<String>,
    /// `--checksum` (ADD).
    pub checksum: Option<String>,
    /// `--keep-git-dir` (ADD).
    pub keep_git_dir: Option<bool>,
    /// `--unpack` (ADD).
    pub unpack: Option<bool>,
}
