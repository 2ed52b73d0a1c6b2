//! Watches the files of a plan and says when a quiet moment after changes has come.
//!
//! Knows paths and times; what a change means is for the caller to decide by running the plan again:
//! the cache makes everything that did not change free.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use notify::RecursiveMode;
use notify_debouncer_full::{DebounceEventResult, new_debouncer};
use thiserror::Error;

use crate::{
    dockerfile::ignore::IgnoreFile,
    plan::{ContextPlan, DockerfileSource, NamedContext, Plan},
};

/// Why files cannot be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    /// The kernel's notifications cannot be had (often `fs.inotify.max_user_watches`).
    #[error("cannot watch {path}: {reason}")]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// An ignore pattern of the project is not valid.
    #[error("watch ignore pattern: {0}")]
    Pattern(String),
}

/// What ended a wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// These files changed, and it has been quiet since. Sorted; empty when the kernel lost count.
    Changed(Vec<PathBuf>),
    /// The caller's question was answered with yes.
    Stopped,
}

/// Folders being watched.
pub struct Watch {
    changes: mpsc::Receiver<DebounceEventResult>,
    ignored: Ignored,
    _debouncer: notify_debouncer_full::Debouncer<
        notify::RecommendedWatcher,
        notify_debouncer_full::RecommendedCache,
    >,
}

/// What does not count as a change.
struct Ignored {
    root: PathBuf,
    patterns: IgnoreFile,
    /// Folders that a run itself writes to.
    own: Vec<PathBuf>,
}

impl Watch {
    /// Watches every context and Dockerfile of a plan, and `files` (the project file). `ignore` are
    /// patterns from `root`, `own` are folders that a run writes to; changes of both do not count.
    ///
    /// # Errors
    ///
    /// [`WatchError`].
    pub fn new(
        plan: &Plan,
        files: &[PathBuf],
        settings: WatchSettings<'_>,
    ) -> Result<Self, WatchError> {
        let (sender, changes) = mpsc::channel();
        let fail = |path: &Path, reason: &dyn std::fmt::Display| WatchError::Watch {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let mut debouncer = new_debouncer(settings.quiet, None, sender)
            .map_err(|error| fail(settings.root, &error))?;
        for folder in folders(plan, files) {
            debouncer
                .watch(&folder, RecursiveMode::Recursive)
                .map_err(|error| fail(&folder, &error))?;
        }
        let patterns = IgnoreFile::parse(&settings.ignore.join("\n"))
            .map_err(|error| WatchError::Pattern(error.to_string()))?;
        let mut own = settings.own.to_vec();
        own.extend(plan.images.iter().flat_map(|image| {
            image.outputs.iter().filter_map(|output| output.destination.clone())
        }));
        let ignored = Ignored { root: settings.root.to_owned(), patterns, own };
        Ok(Self { changes, ignored, _debouncer: debouncer })
    }

    /// Waits for a change that counts. `stop` is asked several times a second.
    #[must_use]
    pub fn wait(&self, stop: impl Fn() -> bool) -> Wake {
        const PATIENCE: Duration = Duration::from_millis(100);
        let mut changed = BTreeSet::new();
        loop {
            if stop() {
                return Wake::Stopped;
            }
            match self.changes.recv_timeout(PATIENCE) {
                Ok(Ok(events)) => {
                    let events = events.iter().filter(|event| !event.kind.is_access());
                    let paths = events.flat_map(|event| event.paths.iter());
                    changed.extend(paths.filter(|path| self.ignored.counts(path)).cloned());
                }
                // The kernel lost count: what changed is unknown, that something did is certain.
                Ok(Err(_)) => return Wake::Changed(Vec::new()),
                Err(RecvTimeoutError::Timeout) if !changed.is_empty() => {
                    return Wake::Changed(changed.into_iter().collect());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Wake::Stopped,
            }
        }
    }
}

/// How a plan is watched.
pub struct WatchSettings<'a> {
    /// Folder that `ignore` starts from.
    pub root: &'a Path,
    /// Patterns, as in an ignore file.
    pub ignore: &'a [String],
    /// Folders that a run writes to.
    pub own: &'a [PathBuf],
    /// Time without a change that ends a burst of them.
    pub quiet: Duration,
}

impl Ignored {
    fn counts(&self, path: &Path) -> bool {
        if self.own.iter().any(|own| path.starts_with(own)) {
            return false;
        }
        if path.components().any(|part| part.as_os_str() == ".git") {
            return false;
        }
        match path.strip_prefix(&self.root) {
            Ok(below) => !self.patterns.is_excluded(below.as_os_str().as_encoded_bytes()),
            Err(_) => true,
        }
    }
}

/// The folder in which a change of a context shows; `None` where nothing on this machine changes.
fn local(context: &ContextPlan) -> Option<PathBuf> {
    match context {
        ContextPlan::Directory(folder) => Some(folder.clone()),
        ContextPlan::Archive { path, .. } => path.parent().map(Path::to_owned),
        ContextPlan::Remote { .. } => None,
    }
}

/// The folders to watch: no folder below another one.
fn folders(plan: &Plan, files: &[PathBuf]) -> Vec<PathBuf> {
    let mut wanted = BTreeSet::new();
    let parent_of = |path: &Path| path.parent().map(Path::to_owned);
    for image in &plan.images {
        wanted.extend(image.context.as_ref().and_then(local));
        if let DockerfileSource::File(path) = &image.dockerfile {
            wanted.extend(parent_of(path));
        }
        for context in image.named_contexts.values() {
            match context {
                NamedContext::Directory(path) | NamedContext::OciLayout { path, .. } => {
                    wanted.insert(path.clone());
                }
                NamedContext::Files(context) => wanted.extend(local(context)),
                NamedContext::Scratch | NamedContext::Image(_) | NamedContext::PlanImage(_) => {}
            }
        }
    }
    wanted.extend(files.iter().filter_map(|path| parent_of(path)));
    let mut kept: Vec<PathBuf> = Vec::new();
    for folder in wanted {
        if !kept.iter().any(|above| folder.starts_with(above)) {
            kept.push(folder);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_folder_is_watched_twice() {
        let plan = Plan::default();
        let files = ["/a/x.kdl", "/a/b/Dockerfile", "/c/y"].map(PathBuf::from);
        assert_eq!(folders(&plan, &files), ["/a", "/c"].map(PathBuf::from));
    }

    #[test]
    fn w04_what_a_run_writes_does_not_wake_it() {
        let ignored = Ignored {
            root: "/p".into(),
            patterns: IgnoreFile::parse("**/*.md\n").unwrap(),
            own: vec!["/p/dist".into()],
        };
        for (path, counts) in [
            ("/p/src/a.rs", true),
            ("/p/README.md", false),
            ("/p/docs/x.md", false),
            ("/p/dist/image.tar", false),
            ("/p/.git/index", false),
            ("/elsewhere/file", true),
        ] {
            assert_eq!(ignored.counts(Path::new(path)), counts, "{path}");
        }
    }
}
