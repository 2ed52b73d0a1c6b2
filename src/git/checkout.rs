//! The files of a commit in a folder: fetched, checked out, and made the same on every machine.
//!
//! Modes are git's two, whatever the umask; times are those that the caller wants; a `.git` that is kept
//! holds nothing of when and where it was made. The folder is ours alone while this works on it.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::{
    GitAccess, GitError, GitProgram, Resolved,
    command::{Protocols, Run},
};
use crate::{
    remote::{GitSource, GitTimes, Submodules},
    tree::Timestamp,
};

const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
const EXECUTABLE_MODE: u32 = 0o755;
/// Of git's objects, which are never written again.
const FROZEN_MODE: u32 = 0o444;

/// Whether `.git` is among the files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repository {
    Kept,
    Dropped,
}

/// A commit on the disk.
#[derive(Clone, Debug)]
pub struct Checkout {
    /// The folder that was asked for: below the one that was given, when it is a part of the repository.
    pub folder: PathBuf,
    /// When the commit was made, in Unix seconds.
    pub time: i64,
}

/// Puts the files of `resolved` below `folder`, which is empty and nobody else's. Files are dated `date`
/// unless the source wants the commit's time.
///
/// # Errors
///
/// Any [`GitError`].
pub fn check_out(
    program: &GitProgram,
    (source, resolved): (&GitSource, &Resolved),
    access: &GitAccess,
    folder: &Path,
    date: Timestamp,
) -> Result<Checkout, GitError> {
    let run = Run::new(program, source, access)?;
    let tree = folder.join("tree");
    fs::create_dir(&tree).map_err(io_at(&tree))?;
    fetch(&run, source, resolved, &tree)?;
    let own = Protocols::Own;
    let what = "failed to checkout remote";
    let args = ["checkout", "--quiet", "--force", "--detach", &resolved.commit, "--"];
    run.git_in(&tree, own, (what, &args))?;
    let args = ["log", "-1", "--format=%ct", &resolved.commit, "--"];
    let time = run.git_in(&tree, own, (what, &args))?;
    let time: i64 = time.trim().parse().unwrap_or_default();
    if source.submodules == Submodules::Fetched && tree.join(".gitmodules").exists() {
        fetch_submodules(&run, source, &tree)?;
    }
    let repository = match source.keep_git_dir {
        Some(true) if source.subdir.is_empty() => Repository::Kept,
        Some(_) | None => Repository::Dropped,
    };
    match repository {
        Repository::Kept => make_reproducible(&run, source, &tree)?,
        Repository::Dropped => fs::remove_dir_all(tree.join(".git")).map_err(io_at(&tree))?,
    }
    let subfolder = subfolder(&tree, &source.subdir)?;
    let date = match source.times {
        GitTimes::Checkout => date,
        GitTimes::Commit => Timestamp { seconds: time, nanos: 0 },
    };
    settle(&subfolder, repository, date)?;
    Ok(Checkout { folder: subfolder, time })
}

/// Gets the commit: by its name where the server gives it, alone where that is possible.
fn fetch(
    run: &Run<'_>,
    source: &GitSource,
    resolved: &Resolved,
    tree: &Path,
) -> Result<(), GitError> {
    let format = if resolved.commit.len() == 64 { "sha256" } else { "sha1" };
    let object_format = format!("--object-format={format}");
    let init = ["init", "--quiet", "--template=", &object_format];
    run.git_in(tree, Protocols::Own, ("failed to init repo for", &init))?;
    let by_name = resolved.reference.as_ref().filter(|_| !source.by_commit);
    let by_name = by_name.map(|name| match name.starts_with("refs/") {
        true => format!("+{name}:{name}"),
        false => name.clone(),
    });
    let mut tries: Vec<Vec<&str>> = Vec::new();
    for wanted in by_name.iter().chain([&resolved.commit]) {
        tries.push(vec!["--depth=1", "--", &source.url, wanted]);
    }
    // Old servers and plain web servers give whole histories of what has a name.
    let everything = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
    if let Some(wanted) = &by_name {
        tries.push(vec!["--", &source.url, wanted]);
    }
    tries.push([&["--", source.url.as_str()][..], &everything].concat());
    let object = format!("{}^{{commit}}", resolved.commit);
    let mut first_failure = None;
    for arguments in tries {
        let args = ["fetch", "--quiet", "--no-tags", "--update-head-ok", "--no-write-fetch-head"];
        let args = [&args[..], &arguments].concat();
        match run.git_in(tree, Protocols::Own, ("failed to fetch remote", &args)) {
            Ok(_) => {}
            Err(GitError::Failed { what, url, said }) if may_go_otherwise(&said) => {
                first_failure.get_or_insert(GitError::Failed { what, url, said });
            }
            Err(error) => return Err(error),
        }
        let there = ["cat-file", "-e", &object];
        if run.git_in(tree, Protocols::Own, ("", &there)).is_ok() {
            return Ok(());
        }
    }
    let (url, reference) = (source.url.clone(), resolved.commit.clone());
    let help = Some("no branch or tag of it leads to this commit".to_owned());
    Err(match first_failure {
        Some(failure) if source.commit().is_none() => failure,
        _ => GitError::NoReference { url, reference, help },
    })
}

/// Whether a server that refuses one way of asking may answer another.
fn may_go_otherwise(said: &str) -> bool {
    ["shallow", "--depth", "unadvertised", "not our ref", "find remote ref", "not a valid object"]
        .iter()
        .any(|words| said.contains(words))
}

fn fetch_submodules(run: &Run<'_>, source: &GitSource, tree: &Path) -> Result<(), GitError> {
    let what = "failed to update submodules for";
    let origin = ["config", "remote.origin.url", &source.url];
    run.git_in(tree, Protocols::Own, (what, &origin))?;
    let update = ["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"];
    match run.git_in(tree, Protocols::Network, (what, &update)) {
        Err(GitError::Failed { said, .. }) if may_go_otherwise(&said) => {
            let whole = &update[..update.len() - 1];
            run.git_in(tree, Protocols::Network, (what, whole)).map(drop)
        }
        other => other.map(drop),
    }
}

/// Makes a kept `.git`, and those of submodules in it, say the same wherever and whenever it was fetched.
fn make_reproducible(run: &Run<'_>, source: &GitSource, tree: &Path) -> Result<(), GitError> {
    let what = "failed to checkout remote";
    for (key, value) in [
        ("remote.origin.url", source.url.as_str()),
        ("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
    ] {
        run.git_in(tree, Protocols::Own, (what, &["config", key, value]))?;
    }
    let mut open = vec![tree.join(".git")];
    while let Some(folder) = open.pop() {
        let entries = fs::read_dir(&folder).map_err(io_at(&folder))?;
        for entry in entries {
            let path = entry.map_err(io_at(&folder))?.path();
            let is_folder = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
            if is_folder && !path.ends_with("objects") {
                open.push(path);
            }
        }
        if folder.join("HEAD").exists() && folder.join("objects").is_dir() {
            settle_repository(run, &folder)?;
        }
    }
    Ok(())
}

fn settle_repository(run: &Run<'_>, folder: &Path) -> Result<(), GitError> {
    // A pack is as the server made it; objects alone are always the same.
    let packs = folder.join("objects/pack");
    for entry in fs::read_dir(&packs).into_iter().flatten() {
        let path = entry.map_err(io_at(&packs))?.path();
        if path.extension().is_some_and(|extension| extension == "pack") {
            // Git does not take out of a pack what it still sees in it.
            let aside = folder.join("aside.pack");
            fs::rename(&path, &aside).map_err(io_at(&path))?;
            let index = path.with_extension("idx");
            drop(fs::remove_file(&index));
            let input = File::open(&aside).map_err(io_at(&aside))?;
            run.git_dir(folder, Some(input), &["unpack-objects", "-q"])?;
            fs::remove_file(&aside).map_err(io_at(&aside))?;
        }
    }
    for leftover in [packs.as_path(), &folder.join("logs"), &folder.join("objects/info")] {
        drop(fs::remove_dir_all(leftover));
    }
    for file in ["FETCH_HEAD", "ORIG_HEAD", "index"] {
        drop(fs::remove_file(folder.join(file)));
    }
    for emptied in [&packs, &folder.join("objects/info")] {
        fs::create_dir(emptied).map_err(io_at(emptied))?;
    }
    // An index of names and contents alone: times and inodes are those of this machine.
    run.git_dir(folder, None, &["read-tree", "HEAD"]).map(drop)
}

/// The folder that was asked for, with no link on the way.
fn subfolder(tree: &Path, subdir: &str) -> Result<PathBuf, GitError> {
    let fail = |reason: String| Err(GitError::Subdir { subdir: subdir.to_owned(), reason });
    let mut folder = tree.to_owned();
    for part in subdir.split('/').filter(|part| !part.is_empty()) {
        folder.push(part);
        match fs::symlink_metadata(&folder) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                let path = format!("git subpath \"/{subdir}\" contains non-directory {part:?}");
                return fail(path);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return fail(format!("the repository has no {part:?} there"));
            }
            Err(source) => return Err(GitError::Io { path: folder, source }),
        }
    }
    Ok(folder)
}

/// Gives every file its mode and its time, and takes the links to removed repositories away.
fn settle(folder: &Path, repository: Repository, date: Timestamp) -> Result<(), GitError> {
    let time = Timespec { tv_sec: date.seconds, tv_nsec: date.nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    let (mut open, mut directories) = (vec![folder.to_owned()], Vec::new());
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).map_err(io_at(&directory))? {
            let path = entry.map_err(io_at(&directory))?.path();
            let found = fs::symlink_metadata(&path).map_err(io_at(&path))?;
            if repository == Repository::Dropped
                && path.file_name().is_some_and(|name| name == ".git")
            {
                let removed =
                    if found.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(io_at(&path))?;
                continue;
            }
            let bits = found.permissions().mode();
            let mode = match (found.is_dir(), bits & 0o100 != 0, bits & 0o200 != 0) {
                (true, ..) => DIRECTORY_MODE,
                (false, true, _) => EXECUTABLE_MODE,
                (false, false, true) => FILE_MODE,
                (false, false, false) => FROZEN_MODE,
            };
            if found.is_dir() {
                open.push(path.clone());
            }
            if !found.is_symlink() {
                fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(io_at(&path))?;
            }
        }
        directories.push(directory);
    }
    // Taking something out of a directory changes its time, so times come last.
    directories.iter().try_for_each(|directory| date_all(directory, &times))
}

/// Dates what a folder holds; its own time is set with those beside it.
fn date_all(directory: &Path, times: &Timestamps) -> Result<(), GitError> {
    for entry in fs::read_dir(directory).map_err(io_at(directory))? {
        let path = entry.map_err(io_at(directory))?.path();
        utimensat(CWD, &path, times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| GitError::Io { path: path.clone(), source: error.into() })?;
    }
    Ok(())
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> GitError {
    let path = path.to_owned();
    move |source| GitError::Io { path: path.clone(), source }
}
