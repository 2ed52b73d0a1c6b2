//! Watches the files of a plan and says when a quiet moment after changes has come.
//!
//! Knows paths and times; what a change means is for the caller to decide by running the plan again:
//! the cache makes everything that did not change free.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use notify::RecursiveMode;
use notify_debouncer_full::{DebounceEventResult, new_debouncer};
use thiserror::Error;

use crate::{
    dockerfile::ignore::IgnoreFile,
    exec,
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
    places: Vec<Place>,
    _debouncer: notify_debouncer_full::Debouncer<
        notify::RecommendedWatcher,
        notify_debouncer_full::RecommendedCache,
    >,
}

/// What does not count as a change.
struct Ignored {
    root: PathBuf,
    patterns: IgnoreFile,
    /// Files and folders that a run itself writes to.
    own: Vec<PathBuf>,
}

impl Watch {
    /// Watches every context and Dockerfile of a plan, as far as no ignore file leaves it out, and `files` (the project
    /// file). `ignore` are patterns from `root`, `own` is what a run writes to; changes of both do not count.
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
        let places = places(plan, files);
        for (folder, mode) in folders(&places) {
            debouncer.watch(&folder, mode).map_err(|error| fail(&folder, &error))?;
        }
        let patterns = IgnoreFile::parse(&settings.ignore.join("\n"))
            .map_err(|error| WatchError::Pattern(error.to_string()))?;
        let mut own = settings.own.to_vec();
        own.extend(plan.images.iter().flat_map(|image| {
            image.outputs.iter().filter_map(|output| output.destination.clone())
        }));
        let ignored = Ignored { root: settings.root.to_owned(), patterns, own };
        Ok(Self { changes, ignored, places, _debouncer: debouncer })
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
                    let counts = |path: &&PathBuf| {
                        self.ignored.counts(path)
                            && self.places.iter().any(|place| place.is_changed_by(path))
                    };
                    changed.extend(paths.filter(counts).cloned());
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
    /// Files and folders that a run writes to.
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

/// Something that an image is made of.
struct Place {
    path: PathBuf,
    /// What of a folder no image sees.
    ignore: IgnoreFile,
}

impl Place {
    fn all_of(path: &Path) -> Self {
        Self { path: path.to_owned(), ignore: IgnoreFile::default() }
    }

    /// A folder as a build sees it. What is wrong with an ignore file the build says.
    fn context(folder: &Path, dockerfile: Option<&Path>) -> Self {
        let text = exec::ignore_text(folder, dockerfile).ok().flatten().unwrap_or_default();
        Self { path: folder.to_owned(), ignore: IgnoreFile::parse(&text).unwrap_or_default() }
    }

    /// Whether a change of `changed` may be one of this: it is in it, or above it and may have moved it.
    fn is_changed_by(&self, changed: &Path) -> bool {
        match changed.strip_prefix(&self.path) {
            Ok(below) => !self.ignore.is_excluded(below.as_os_str().as_encoded_bytes()),
            Err(_) => self.path.starts_with(changed),
        }
    }

    /// The folder in which a change of it shows, and whether what is below counts, too.
    fn watched(&self) -> Option<(PathBuf, RecursiveMode)> {
        if self.path.is_dir() {
            return Some((self.path.clone(), RecursiveMode::Recursive));
        }
        self.path.parent().map(|folder| (folder.to_owned(), RecursiveMode::NonRecursive))
    }
}

/// Where a change counts: the files that images are made of, and `files`.
fn places(plan: &Plan, files: &[PathBuf]) -> Vec<Place> {
    let mut places: Vec<Place> = files.iter().map(|file| Place::all_of(file)).collect();
    for image in &plan.images {
        let dockerfile = match &image.dockerfile {
            DockerfileSource::File(path) => Some(path.as_path()),
            DockerfileSource::Inline(_)
            | DockerfileSource::Context(_)
            | DockerfileSource::Url(_) => None,
        };
        if let Some(path) = dockerfile {
            places.extend([Place::all_of(path), Place::all_of(&exec::ignore_file_of(path))]);
        }
        places.extend(image.context.as_ref().and_then(|context| place_of(context, dockerfile)));
        for context in image.named_contexts.values() {
            places.extend(match context {
                NamedContext::Directory(path) => Some(Place::context(path, None)),
                NamedContext::OciLayout { path, .. } => Some(Place::all_of(path)),
                NamedContext::Files(context) => place_of(context, None),
                NamedContext::Scratch | NamedContext::Image(_) | NamedContext::PlanImage(_) => None,
            });
        }
    }
    places
}

/// `None` where nothing on this machine changes.
fn place_of(context: &ContextPlan, dockerfile: Option<&Path>) -> Option<Place> {
    match context {
        ContextPlan::Directory(folder) => Some(Place::context(folder, dockerfile)),
        ContextPlan::Archive { path, .. } => Some(Place::all_of(path)),
        ContextPlan::Remote { .. } => None,
    }
}

/// The folders to watch: no folder below another one of which all is watched.
fn folders(places: &[Place]) -> BTreeMap<PathBuf, RecursiveMode> {
    let mut kept: BTreeMap<PathBuf, RecursiveMode> = BTreeMap::new();
    let wanted: Vec<_> = places.iter().filter_map(Place::watched).collect();
    let is_whole = |mode: &RecursiveMode| *mode == RecursiveMode::Recursive;
    let whole: BTreeSet<&PathBuf> =
        wanted.iter().filter(|(_, mode)| is_whole(mode)).map(|(folder, _)| folder).collect();
    for (folder, mode) in &wanted {
        let above = folder.ancestors().skip(usize::from(is_whole(mode)));
        if !above.into_iter().any(|above| whole.contains(&above.to_owned())) {
            kept.insert(folder.clone(), *mode);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_folder_is_watched_twice() {
        let folder = tempfile::tempdir().unwrap();
        let at = |below: &str| folder.path().join(below);
        std::fs::create_dir_all(at("web/src")).unwrap();
        let of = |paths: &[&str]| {
            let places: Vec<_> = paths.iter().map(|path| Place::all_of(&at(path))).collect();
            let whole = |(path, mode)| (path, mode == RecursiveMode::Recursive);
            folders(&places).into_iter().map(whole).collect::<Vec<_>>()
        };
        let files = of(&["x.kdl", "web/Dockerfile", "web/src"]);
        assert_eq!(
            files,
            [(at(""), false), (at("web"), false), (at("web/src"), true)]
                .map(|(path, whole)| (path.components().collect(), whole))
        );
        assert_eq!(of(&["web/Dockerfile", "web", "web/src"]), [(at("web"), true)]);
    }

    #[test]
    fn a_change_counts_where_an_image_sees_it() {
        let ignore = IgnoreFile::parse("target\n*.log\n!keep.log\n").unwrap();
        let context = Place { path: "/p/web".into(), ignore };
        for (path, counts) in [
            ("/p/web/src/main.js", true),
            ("/p/web/keep.log", true),
            ("/p/web/target/x", false),
            ("/p/web/run.log", false),
            ("/p/website/x", false),
            ("/p/README.md", false),
            ("/p/web", true),
            ("/p", true),
        ] {
            assert_eq!(context.is_changed_by(Path::new(path)), counts, "{path}");
        }
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
