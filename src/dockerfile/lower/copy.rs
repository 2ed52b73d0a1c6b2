//! `COPY` and `ADD`: where each source is, and what the line in the history says.

use crate::dockerfile::ast::{Copy, Instruction};
use crate::dockerfile::quote::quoted;
use crate::graph::{CopySource, FileAction, FilesOp, Op, OpId, SourceRoot, Unpack};

use super::dispatch::{Work, cleaned};
use super::history::{Made, commit};
use super::stages::Command;
use crate::dockerfile::lower::{Build, Failure, chmod};
use crate::remote::{GitSource, ParseGitError, TakenFor, file_name, is_web, without_login};

const SHA256_HEX_LEN: usize = 64;
const MODES: &str =
    "--chmod takes an octal mode such as 644, or a symbolic one such as u=rwX,go=rX";

/// The two instructions that copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// `COPY`.
    Copy,
    /// `ADD`.
    Add,
}

/// The words of a copy after expansion.
struct Words {
    sources: Vec<String>,
    destination: String,
    chown: Option<String>,
    chmod: Option<String>,
    checksum: Option<String>,
    heredocs: Vec<(String, String)>,
}

impl Build<'_> {
    /// `COPY`.
    pub(super) fn copy(
        &mut self,
        index: usize,
        work: &mut Work,
        command: &Command,
        copy: &Copy,
    ) -> Result<(), Failure> {
        let words = self.copy_words(work, &command.instruction, copy)?;
        let root = match command.sources.first().copied().flatten() {
            Some(source) => match self.states[source].done {
                Some(done) => Some(done),
                None => {
                    return Err(Failure::new(format!(
                        "cannot copy from stage {}, it needs to be defined before current stage {}",
                        quoted(copy.from.as_deref().unwrap_or_default()),
                        quoted(&self.states[index].label),
                    ))
                    .help("move the stage that has the files above this one"));
                }
            },
            None => None,
        };
        self.copy_files(work, command, copy, (Verb::Copy, root, words))
    }

    /// `ADD`.
    pub(super) fn add(
        &mut self,
        work: &mut Work,
        command: &Command,
        copy: &Copy,
    ) -> Result<(), Failure> {
        let words = self.copy_words(work, &command.instruction, copy)?;
        self.copy_files(work, command, copy, (Verb::Add, None, words))
    }

    fn copy_words(&mut self, work: &Work, at: &Instruction, copy: &Copy) -> Result<Words, Failure> {
        let mut flag = |word: &Option<String>| {
            let expanded = word.as_deref().map(|word| self.expand(work, at, word)).transpose()?;
            Ok(expanded.filter(|text| !text.is_empty()))
        };
        let (chown, chmod) = (flag(&copy.chown)?, flag(&copy.chmod)?);
        let checksum = flag(&copy.checksum)?;
        let sources = self.expand_all(work, at, &copy.sources)?;
        let destination = self.expand(work, at, &copy.destination)?;
        let mut heredocs = Vec::new();
        for heredoc in &copy.heredocs {
            let mut body = heredoc.content.clone();
            if heredoc.chomp {
                body = without_tabs(&body);
            }
            if heredoc.expand {
                let word = work.env.body(&body);
                body = self.told(work, at, word)?;
            }
            heredocs.push((heredoc.name.clone(), body));
        }
        Ok(Words { sources, destination, chown, chmod, checksum, heredocs })
    }

    fn copy_files(
        &mut self,
        work: &mut Work,
        command: &Command,
        copy: &Copy,
        (verb, root, words): (Verb, Option<OpId>, Words),
    ) -> Result<(), Failure> {
        let mode = words.chmod.as_deref().map(chmod::parse).transpose();
        let mode = mode.map_err(|reason| Failure::new(reason).help(MODES))?;
        check_checksum_use(&words)?;
        let shown = shown(verb, copy, &words);
        let mut sources = Vec::new();
        for path in &words.sources {
            let source = match remote(verb, copy, &words, path)? {
                Some(root @ SourceRoot::Git(_)) => CopySource { root, path: "/".to_owned() },
                Some(root) => CopySource { root, path: file_name(path) },
                None => {
                    if root.is_none() {
                        self.check_ignored(&command.instruction, verb, path);
                    }
                    let from = root.unwrap_or_else(|| self.context_op(None));
                    CopySource { root: SourceRoot::Op(from), path: path.clone() }
                }
            };
            sources.push(source);
        }
        for (name, body) in words.heredocs {
            sources.push(CopySource { root: SourceRoot::Inline(body.into_bytes()), path: name });
        }
        let unpack = match (verb, copy.unpack) {
            (Verb::Copy, _) | (Verb::Add, Some(false)) => Unpack::Never,
            (Verb::Add, None) => Unpack::Local,
            (Verb::Add, Some(true)) => Unpack::Always,
        };
        let action = FileAction::Copy {
            sources,
            destination: destination(work.cwd(), &words.destination),
            chown: words.chown,
            chmod: mode.clone(),
            exclude: copy.exclude.clone(),
            parents: copy.parents,
            // BuildKit makes a linked layer only of files that keep their modes.
            link: copy.link && mode.is_none(),
            unpack,
        };
        let op = Op::Files(FilesOp { base: work.op, actions: vec![action.clone()] });
        self.push(work, command, op, "");
        self.watch_files(work, &command.instruction, &action);
        commit(&mut work.image, shown, Made::Layer);
        Ok(())
    }

    /// `CopyIgnoredFile`.
    fn check_ignored(&mut self, at: &Instruction, verb: Verb, source: &str) {
        let Some(ignored) = &self.ignore else { return };
        let clean = match cleaned(source).split_off(1) {
            root if root.is_empty() => if source.starts_with('/') { "/" } else { "." }.to_owned(),
            below if source.starts_with('/') => format!("/{below}"),
            below => below,
        };
        if ignored.hides(&clean) {
            let verb = match verb {
                Verb::Copy => "Copy",
                Verb::Add => "Add",
            };
            let message = format!(
                "Attempting to {verb} file {} that is excluded by .dockerignore",
                quoted(&clean)
            );
            self.report.warn("CopyIgnoredFile", at, message);
        }
    }
}

/// `<<-` takes leading tabs away.
pub(super) fn without_tabs(body: &str) -> String {
    body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

fn check_checksum_use(words: &Words) -> Result<(), Failure> {
    if words.checksum.is_none() {
        return Ok(());
    }
    let [source] = &words.sources[..] else {
        return Err(Failure::new("checksum can't be specified for multiple sources"));
    };
    if !is_web(source) && repository(source)?.is_none() {
        return Err(Failure::new("checksum requires HTTP(S) or Git sources"));
    }
    Ok(())
}

/// A source that is a git repository.
fn repository(source: &str) -> Result<Option<GitSource>, Failure> {
    GitSource::parse(source, TakenFor::Source).map_err(told)
}

fn told(error: ParseGitError) -> Failure {
    Failure::new(error.0)
}

/// A source that is downloaded; `None` for a path.
fn remote(
    verb: Verb,
    copy: &Copy,
    words: &Words,
    source: &str,
) -> Result<Option<SourceRoot>, Failure> {
    if let Some(found) = repository(source)? {
        if verb == Verb::Copy {
            return Err(Failure::new("source can't be a git ref for COPY")
                .help("ADD takes git repositories"));
        }
        let found = found.with_flags(copy.keep_git_dir, words.checksum.as_deref()).map_err(told)?;
        return Ok(Some(SourceRoot::Git(Box::new(found))));
    }
    if !is_web(source) {
        return Ok(None);
    }
    if verb == Verb::Copy {
        return Err(Failure::new("source can't be a URL for COPY").help("ADD takes URLs"));
    }
    let checksum = words.checksum.clone();
    checksum.as_deref().map(check_digest).transpose()?;
    Ok(Some(SourceRoot::Url { url: source.to_owned(), checksum }))
}

/// The complaints of the digest library.
fn check_digest(checksum: &str) -> Result<(), Failure> {
    let hex = |hex: &str| hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match checksum.split_once(':') {
        Some(("sha256", digits)) if digits.len() != SHA256_HEX_LEN => {
            Err(Failure::new("invalid checksum digest length"))
        }
        Some(("sha256", digits)) if hex(digits) => Ok(()),
        Some(("sha256", _)) | None => Err(Failure::new("invalid checksum digest format")),
        Some(_) => Err(Failure::new("unsupported digest algorithm")),
    }
}

/// The line for the history: flags in a fixed order, heredocs by name.
fn shown(verb: Verb, copy: &Copy, words: &Words) -> String {
    let mut parts = vec![
        match verb {
            Verb::Copy => "COPY",
            Verb::Add => "ADD",
        }
        .to_owned(),
    ];
    if copy.parents {
        parts.push("--parents".to_owned());
    }
    parts.extend(words.chown.as_ref().map(|chown| format!("--chown={chown}")));
    parts.extend(words.chmod.as_ref().map(|chmod| format!("--chmod={chmod}")));
    // A history travels with the image: whose password fetched a file does not.
    parts.extend(words.sources.iter().map(|source| without_login(source)));
    parts.extend(words.heredocs.iter().map(|(name, _)| format!("<<{name}")));
    parts.push(words.destination.clone());
    parts.push("# buildkit".to_owned());
    parts.join(" ")
}

/// Absolute and cleaned; what names a directory by `/`, `/.` or `.` ends with a slash.
fn destination(cwd: &str, typed: &str) -> String {
    let is_directory =
        matches!(typed, "" | "." | "..") || typed.ends_with('/') || typed.ends_with("/.");
    let mut path =
        if typed.starts_with('/') { cleaned(typed) } else { cleaned(&format!("{cwd}/{typed}")) };
    if is_directory && typed != ".." && !path.ends_with('/') {
        path.push('/');
    }
    path
}
