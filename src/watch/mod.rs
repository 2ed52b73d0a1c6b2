//! Watches the files of a plan, and no others, and says when a quiet moment after changes has come.
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
    dockerfile::ignore::{self, IgnoreFile},
    exec,
    plan::{ContextPlan, DockerfileSource, NamedContext, Plan},
};

/// Why files cannot be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    /// This user watches as many files as the kernel allows (`fs.inotify.max_user_watches`).
    #[error("cannot watch {path}: the kernel watches no more files for this user")]
    Limit {
        /// The folder.
        path: PathBuf,
    },
    /// The kernel's notifications cannot be had.
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
    sources: Sources,
    ignored: Ignored,
    _debouncer: notify_debouncer_full::Debouncer<
        notify::RecommendedWatcher,
        notify_debouncer_full::RecommendedCache,
    >,
}

/// What a plan is made of, as far as it is on this machine, by [`real`] paths.
#[derive(Debug, Default)]
struct Sources {
    folders: Vec<Folder>,
    /// Each alone: what stands beside it is no business of the plan.
    files: BTreeSet<PathBuf>,
}

/// A folder with all below it, as one image sees it.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    ignore: IgnoreFile,
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
        let fail = |path: &Path, error: &notify::Error| {
            let path = path.to_owned();
            if matches!(error.kind, notify::ErrorKind::MaxFilesWatch) {
                return WatchError::Limit { path };
            }
            WatchError::Watch { path, reason: error.to_string() }
        };
        let mut debouncer = new_debouncer(settings.quiet, None, sender)
            .map_err(|error| fail(settings.root, &error))?;
        let sources = Sources::of(plan, files);
        for (folder, mode) in sources.places() {
            debouncer.watch(folder, mode).map_err(|error| fail(folder, &error))?;
        }
        let patterns = IgnoreFile::parse(&settings.ignore.join("\n"))
            .map_err(|error| WatchError::Pattern(error.to_string()))?;
        let outputs = plan.images.iter().flat_map(|image| &image.outputs);
        let written = outputs.filter_map(|output| output.destination.as_ref());
        let own = settings.own.iter().chain(written).map(|path| real(path)).collect();
        let ignored = Ignored { root: real(settings.root), patterns, own };
        Ok(Self { changes, sources, ignored, _debouncer: debouncer })
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
                    changed.extend(paths.filter(|path| self.counts(path)).cloned());
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

    fn counts(&self, path: &Path) -> bool {
        self.sources.hold(path) && self.ignored.counts(path)
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
        match path.strip_prefix(&self.root) {
            Ok(below) => !self.patterns.is_excluded(below.as_os_str().as_encoded_bytes()),
            Err(_) => true,
        }
    }
}

impl Sources {
    fn of(plan: &Plan, files: &[PathBuf]) -> Self {
        let mut sources = Self::default();
        for image in &plan.images {
            let dockerfile = match &image.dockerfile {
                DockerfileSource::File(path) => Some(path.as_path()),
                DockerfileSource::Inline(_)
                | DockerfileSource::Context(_)
                | DockerfileSource::Url(_) => None,
            };
            if let Some(path) = dockerfile {
                sources.add_file(path);
                sources.add_file(&ignore::beside(path));
            }
            image.context.iter().for_each(|context| sources.add(context, dockerfile));
            for context in image.named_contexts.values() {
                match context {
                    NamedContext::Directory(path) => sources.add_folder(path, None),
                    NamedContext::OciLayout { path, .. } => {
                        let ignore = IgnoreFile::default();
                        sources.folders.push(Folder { path: real(path), ignore });
                    }
                    NamedContext::Files(context) => sources.add(context, None),
                    NamedContext::Scratch | NamedContext::Image(_) | NamedContext::PlanImage(_) => {
                    }
                }
            }
        }
        files.iter().for_each(|path| sources.add_file(path));
        sources
    }

    /// A file, and what it is a link to.
    fn add_file(&mut self, path: &Path) {
        self.files.extend([in_real_folder(path), real(path)]);
    }

    /// A folder as a build sees it. What is wrong with an ignore file the build says.
    fn add_folder(&mut self, folder: &Path, dockerfile: Option<&Path>) {
        let text = exec::ignore_text(folder, dockerfile).ok().flatten().unwrap_or_default();
        let ignore = IgnoreFile::parse(&text).unwrap_or_default();
        self.folders.push(Folder { path: real(folder), ignore });
        self.add_file(&folder.join(ignore::FILE_NAME));
    }

    fn add(&mut self, context: &ContextPlan, dockerfile: Option<&Path>) {
        match context {
            ContextPlan::Directory(folder) => self.add_folder(folder, dockerfile),
            ContextPlan::Archive { path, .. } => self.add_file(path),
            // Nothing on this machine changes.
            ContextPlan::Remote { .. } => {}
        }
    }

    /// The folders to watch, none twice. A file is watched by its folder: who saves one often puts another in its place.
    fn places(&self) -> BTreeMap<&Path, RecursiveMode> {
        let mut places = BTreeMap::new();
        for file in &self.files {
            places.extend(file.parent().map(|folder| (folder, RecursiveMode::NonRecursive)));
        }
        let folders: BTreeSet<&Path> = self.folders.iter().map(|it| it.path.as_path()).collect();
        places.extend(folders.iter().map(|folder| (*folder, RecursiveMode::Recursive)));
        let above = |folder: &Path| folder.ancestors().skip(1).any(|above| folders.contains(above));
        places.retain(|folder, _| !above(folder));
        places
    }

    /// Whether a path is one of them. What git keeps in a folder is none.
    fn hold(&self, path: &Path) -> bool {
        let is_of_git = |below: &Path| below.components().any(|part| part.as_os_str() == ".git");
        let sees = |folder: &Folder| {
            path.strip_prefix(&folder.path).is_ok_and(|below| {
                !is_of_git(below)
                    && !folder.ignore.is_excluded(below.as_os_str().as_encoded_bytes())
            })
        };
        self.files.contains(path) || self.folders.iter().any(sees)
    }
}

/// A path as the kernel's notifications spell it: no links, no `..`. One that is not there is told by its folder.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| in_real_folder(path))
}

/// A path in a folder without links; the last name may be one.
fn in_real_folder(path: &Path) -> PathBuf {
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::BuildFlags;

    /// A plan of one image on these, and the project file `p/x.kdl`.
    fn sources(folder: &Path, dockerfile: &str, context: &str) -> Sources {
        let dockerfile = DockerfileSource::File(folder.join(dockerfile));
        let context = ContextPlan::Directory(folder.join(context));
        let plan = Plan::from_flags(BuildFlags::new(dockerfile, Some(context))).unwrap();
        Sources::of(&plan, &[folder.join("p/x.kdl")])
    }

    #[test]
    fn what_an_image_is_made_of_counts_wherever_it_is_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        for name in ["p/site/.git", "docker", "elsewhere"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        std::fs::write(folder.join("elsewhere/linked"), "").unwrap();
        std::fs::write(folder.join("p/site/.dockerignore"), "left\n.dockerignore\n").unwrap();
        std::os::unix::fs::symlink("../elsewhere/linked", folder.join("docker/link")).unwrap();
        let found = sources(&folder, "p/../docker/link", "p/site");
        for (path, counts) in [
            ("p/x.kdl", true),
            ("p/notes", false),
            ("p/site/deep/a", true),
            ("p/site/.git/index", false),
            ("p/site/left/out", false),
            ("p/site/.dockerignore", true),
            ("docker/link", true),
            ("docker/link.dockerignore", true),
            ("docker/other", false),
            ("elsewhere/linked", true),
            ("elsewhere/other", false),
        ] {
            assert_eq!(found.hold(&folder.join(path)), counts, "{path}");
        }
        let places: Vec<_> = found.places().into_iter().collect();
        let (one, all) = (RecursiveMode::NonRecursive, RecursiveMode::Recursive);
        let wanted = [("docker", one), ("elsewhere", one), ("p", one), ("p/site", all)];
        let wanted = wanted.map(|(name, mode)| (folder.join(name), mode));
        let wanted: Vec<_> = wanted.iter().map(|(path, mode)| (path.as_path(), *mode)).collect();
        assert_eq!(places, wanted);
    }

    #[test]
    fn no_folder_is_watched_twice() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(folder.join("p/site")).unwrap();
        let found = sources(&folder, "p/site/Dockerfile", "p");
        let places: Vec<_> = found.places().into_iter().collect();
        assert_eq!(places, [(folder.join("p").as_path(), RecursiveMode::Recursive)]);
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
            ("/elsewhere/file", true),
        ] {
            assert_eq!(ignored.counts(Path::new(path)), counts, "{path}");
        }
    }
}
