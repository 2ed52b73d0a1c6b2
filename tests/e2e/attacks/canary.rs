//! What must not be touched or seen: files of the host that look back, and a word that must appear nowhere.
//!
//! Knows what it planted and how to find it; nothing of what is tried against it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use idpbuilder::oci::Digest;

use crate::support::Folder;

/// A folder of the host outside of every root file system, store and context. Everybody may read and write in it, so that
/// only the sandbox keeps a process from doing so.
pub(super) struct Canary {
    folder: Folder,
    /// Content of its files: appears nowhere else.
    pub(super) token: String,
    /// Value of `CANARY_TOKEN` in the tool's environment: appears nowhere else.
    pub(super) variable: String,
    before: BTreeMap<PathBuf, String>,
}

impl Canary {
    pub(super) fn plant() -> Self {
        let folder = Folder::new();
        // The name of the folder stands in Dockerfiles: the words are another.
        let word =
            |salt: &str| Digest::of(format!("{salt}{}", folder.path().display()).as_bytes()).hex();
        let (token, variable) = (word("file"), word("variable"));
        for name in ["dir", "dir/b", "dir/etc"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["file", "dir/ptmx", "dir/null", "dir/b/file"] {
            fs::write(folder.path().join(name), format!("{token}\n")).unwrap();
        }
        let passwd = format!("root:x:0:0:{token}:/:/bin/sh\ncanary:x:0:0:{token}:/:/bin/sh\n");
        fs::write(folder.path().join("dir/etc/passwd"), passwd).unwrap();
        for path in everything(folder.path()) {
            let mode = if path.is_dir() { 0o777 } else { 0o666 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let before = state(folder.path());
        Self { folder, token, variable, before }
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the folder.
    pub(super) fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Nothing of it changed; no word of it is anywhere below `places` or in what was printed.
    #[track_caller]
    pub(super) fn assert_untouched(&self, places: &Path, printed: &[String]) {
        assert_eq!(state(self.folder.path()), self.before, "the canary is hurt");
        for word in [&self.token, &self.variable] {
            for text in printed {
                assert!(!text.contains(word.as_str()), "the canary was heard: {text}");
            }
        }
        let mut grep = Command::new("grep");
        grep.args(["-rlaF", "-e", &self.token, "-e", &self.variable]).arg(places);
        let found = grep.output().unwrap();
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        assert_eq!(found, "", "the canary was copied");
    }
}

/// The folder and all below it.
fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_owned()];
    let mut at = 0;
    while let Some(path) = all.get(at).cloned() {
        at += 1;
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            all.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all
}

/// Inode, mode, owner, links, size, time and digest of each.
fn state(folder: &Path) -> BTreeMap<PathBuf, String> {
    let one = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() {
            Digest::of(&fs::read(&path).unwrap()).hex()
        } else {
            String::new()
        };
        let state = format!(
            "{} {:o} {}:{} {} {} {}.{} {content}",
            meta.ino(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
        );
        (path, state)
    };
    everything(folder).into_iter().map(one).collect()
}
