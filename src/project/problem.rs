//! What can be wrong with a project file, each with the place and the way out.
//!
//! Knows nothing of KDL: a problem is a fault, spans into a text, and words.

use std::fmt;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode, SourceSpan};
use thiserror::Error;

/// What is wrong, without the place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// More text than any project needs.
    #[error("the file has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Size of the file.
        bytes: usize,
        /// Most bytes that are read.
        limit: usize,
    },
    /// Braces or comments inside one another beyond the limit.
    #[error("blocks are nested more than {limit} deep")]
    TooDeep {
        /// Most levels.
        limit: usize,
    },
    /// Not KDL 2.
    #[error("{0}")]
    Syntax(String),
    /// A form of KDL 1.
    #[error("`{found}` is KDL v1: write `{instead}`")]
    Version1 {
        /// As written.
        found: String,
        /// The same in KDL 2.
        instead: String,
    },
    /// Legal KDL that means something else than it looks like, or a word that needs quotes.
    #[error("{0}")]
    Trap(String),
    /// No such node here.
    #[error("unknown node `{name}` in {parent}")]
    UnknownNode {
        /// As written.
        name: String,
        /// What it stands in.
        parent: String,
    },
    /// No such property on this node.
    #[error("`{node}` has no property `{name}`")]
    UnknownProperty {
        /// As written.
        name: String,
        /// The node.
        node: String,
    },
    /// A part of the language that this version does not execute.
    #[error("`{0}` is not supported yet")]
    NotSupported(String),
    /// An argument, property, child or name is missing.
    #[error("{0}")]
    Missing(String),
    /// Something stands where nothing may.
    #[error("{0}")]
    Unexpected(String),
    /// The value has another type or form.
    #[error("{0}")]
    WrongValue(String),
    /// The same thing twice.
    #[error("{0}")]
    Duplicate(String),
    /// A name that nothing declares.
    #[error("unknown {kind} `{name}`")]
    UnknownName {
        /// `image`, `registry`, `secret`, `variable` …
        kind: &'static str,
        /// As written.
        name: String,
    },
    /// Inheritance or needs that lead back to where they start.
    #[error("{0}")]
    Cycle(String),
    /// Something known only at run time is missing (git, an environment variable, a variable).
    #[error("{0}")]
    NoValue(String),
    /// The file is for a newer version.
    #[error("this project needs idpbuilder {wanted} or newer, this is {have}")]
    MinVersion {
        /// From the file.
        wanted: String,
        /// Of this program.
        have: String,
    },
}

/// One problem in one text.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What is wrong.
    pub fault: Fault,
    /// Where; `None` when nothing in the text is to be pointed at (a flag, say).
    pub at: Option<SourceSpan>,
    /// Words at the place.
    pub label: String,
    /// An earlier place that belongs to it, with its words.
    pub earlier: Option<(SourceSpan, String)>,
    /// The way out.
    pub help: Option<String>,
    source: Arc<NamedSource<String>>,
}

/// Everything that is wrong with one project file, in the order of the text.
#[derive(Clone, Debug)]
pub struct ProjectError {
    problems: Vec<Problem>,
}

impl Problem {
    /// Byte offset of the place, 0 when there is none.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.at.map_or(0, |at| at.offset())
    }
}

impl ProjectError {
    /// The problems; never empty.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// Most problems that are kept: nobody reads more, and a hostile file must not fill the memory.
const PROBLEMS_MAX: usize = 64;

/// Gathers problems of one text.
#[derive(Debug)]
pub(super) struct Problems {
    source: Arc<NamedSource<String>>,
    found: Vec<Problem>,
}

impl Problems {
    pub(super) const fn new(source: Arc<NamedSource<String>>) -> Self {
        Self { source, found: Vec::new() }
    }

    /// Adds a problem and hands it out to be completed with words.
    pub(super) fn add(&mut self, at: SourceSpan, fault: Fault) -> &mut Problem {
        self.push(Some(at), fault)
    }

    /// Adds a problem that is not in the text.
    pub(super) fn add_outside(&mut self, fault: Fault) -> &mut Problem {
        self.push(None, fault)
    }

    fn push(&mut self, at: Option<SourceSpan>, fault: Fault) -> &mut Problem {
        self.found.truncate(PROBLEMS_MAX - 1);
        let source = Arc::clone(&self.source);
        let label = "here".to_owned();
        self.found.push(Problem { fault, at, label, earlier: None, help: None, source });
        self.found.last_mut().expect("one was just pushed")
    }

    /// Whether there are as many as anybody reads.
    pub(super) const fn is_full(&self) -> bool {
        self.found.len() >= PROBLEMS_MAX
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// `Ok` when nothing was found.
    pub(super) fn into_result(mut self) -> Result<(), ProjectError> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort_by_key(Problem::offset);
        // One place has one cause: the first finder had the clearest view of it.
        self.found.dedup_by(|second, first| first.at.is_some() && first.at == second.at);
        Err(ProjectError { problems: self.found })
    }
}

impl Problem {
    pub(super) fn label(&mut self, words: impl Into<String>) -> &mut Self {
        self.label = words.into();
        self
    }

    pub(super) fn help(&mut self, words: impl Into<String>) -> &mut Self {
        self.help = Some(words.into());
        self
    }

    pub(super) fn help_if(&mut self, words: Option<String>) -> &mut Self {
        self.help = words;
        self
    }

    pub(super) fn earlier(&mut self, at: SourceSpan, words: impl Into<String>) -> &mut Self {
        self.earlier = Some((at, words.into()));
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.at.is_some().then_some(self.source.as_ref() as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let at = self.at?;
        let earlier = self
            .earlier
            .as_ref()
            .map(|(at, words)| LabeledSpan::new_with_span(Some(words.clone()), *at));
        let main = LabeledSpan::new_primary_with_span(Some(self.label.clone()), at);
        Some(Box::new(earlier.into_iter().chain([main])))
    }
}

impl fmt::Display for ProjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [problem] => problem.fmt(f),
            problems => write!(f, "the project file has {} problems", problems.len()),
        }
    }
}

impl std::error::Error for ProjectError {}

/// One problem shows as itself, several as a list.
impl Diagnostic for ProjectError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.only().and_then(Diagnostic::help)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.only().and_then(Diagnostic::source_code)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.only().and_then(Diagnostic::labels)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        if self.only().is_some() {
            return None;
        }
        Some(Box::new(self.problems.iter().map(|problem| problem as &dyn Diagnostic)))
    }
}

impl ProjectError {
    fn only(&self) -> Option<&Problem> {
        match self.problems.as_slice() {
            [problem] => Some(problem),
            _ => None,
        }
    }
}

/// Most edits between a typed name and a suggestion: no more than one for each three letters, so that most stays.
const EDITS_MAX: usize = 2;
const CHARS_PER_EDIT: usize = 3;

/// The closest of `known` to `typed`, when few edits make it so and it shares something with it.
pub(crate) fn closest<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    /// No name is longer, and the distance of longer ones costs time.
    const NAME_CHARS_MAX: usize = 128;
    let chars = typed.chars().count();
    if chars > NAME_CHARS_MAX {
        return None;
    }
    let edits_max = (chars / CHARS_PER_EDIT).clamp(1, EDITS_MAX);
    known
        .into_iter()
        .filter(|name| name.len() <= NAME_CHARS_MAX)
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(edits, name)| *edits <= edits_max && *edits < name.chars().count())
        .min()
        .map(|(_, name)| name)
}

/// ``did you mean `x`?``, or the known names, or nothing when there are none.
pub(crate) fn suggestion<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    /// More names than this are a wall, not a help.
    const NAMES_MAX: usize = 24;
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(name) = closest(typed, known.iter().copied()) {
        return Some(format!("did you mean `{name}`?"));
    }
    if known.is_empty() || known.len() > NAMES_MAX {
        return None;
    }
    let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    Some(format!("known here: {}", names.join(", ")))
}
