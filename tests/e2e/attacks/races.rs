//! S08, S09 and S14: folders swapped with links while others mount below them, 500 rounds and more.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Attack, everywhere};
use crate::support::Done;

/// Two names that a thread of the test swaps until it is told to stop.
pub(super) struct Swapping {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Swapping {
    /// Ends it: how often they were swapped.
    pub(super) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Swaps two names of the one snapshot in a store that has both.
pub(super) fn swapping_below(home: &Path, one: &str, other: &str) -> Swapping {
    let mut found = Vec::new();
    find(
        &home.join("images/snapshots"),
        &|folder| {
            fs::symlink_metadata(folder.join(one)).is_ok()
                && fs::symlink_metadata(folder.join(other)).is_ok()
        },
        &mut found,
    );
    let folder = found.pop().expect("a snapshot has both names");
    let (one, other) = (folder.join(one), folder.join(other));
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let mut rounds = 0;
        while !told.load(Ordering::Relaxed) {
            renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            rounds += 1;
            // Who is attacked needs a processor too.
            std::thread::sleep(Duration::from_micros(50));
        }
        rounds
    });
    Swapping { stop, thread }
}

fn find(folder: &Path, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    if wanted(folder) {
        found.push(folder.to_owned());
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find(&entry.path(), wanted, found);
        }
    }
}

/// Stages of victims at work on one cache.
const STAGES: usize = 5;

/// Stages that run `victim` in the file system while another stage swaps `/c/a` with `/c/l` in a shared cache. `prepare`
/// fills the cache. The swapper ends when the last victim has.
fn swapped_cache(steps: usize, prepare: &str, victim: &str) -> String {
    let cache = "--mount=type=cache,id=x,target=/c,sharing=shared";
    let mut text = format!("FROM base AS prepared\nRUN {cache} {prepare}\n");
    writeln!(text, "FROM prepared AS swapper\nRUN {cache} {UNTIL_ALL}").unwrap();
    for stage in 0..STAGES {
        writeln!(text, "FROM prepared AS victim{stage}").unwrap();
        for step in 0..steps {
            writeln!(text, "RUN {} # {stage} {step}", victim.replace("CACHE", cache)).unwrap();
        }
        writeln!(text, "RUN {cache} touch /c/stop{stage} /done{stage}").unwrap();
    }
    text.push_str("FROM base\nCOPY --from=swapper /swapped /\n");
    for stage in 0..STAGES {
        writeln!(text, "COPY --from=victim{stage} /done{stage} /").unwrap();
    }
    text
}

/// Waits for all victims, in the shell, while the swapper runs.
const UNTIL_ALL: &str = "(for i in $(seq 6000); do ls /c/stop0 /c/stop1 /c/stop2 /c/stop3 /c/stop4 > /x 2>&1 && break; sleep 0.1; done; touch /c/stop) & \
     attack exchange /c/a /c/l /c/stop | tee /swapped";

/// Nothing is mounted on the host, at the user's or where the links lead.
#[track_caller]
fn assert_no_mount_of_host(attack: &Attack) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for place in [attack.user.folder(), attack.canary.path()] {
        assert!(!mounts.contains(&place.display().to_string()), "mounts are left: {mounts}");
    }
}

#[track_caller]
fn assert_raced(done: &Done) {
    assert_eq!(done.code, 0, "{done}");
    assert!(done.err.contains("exchanged often"), "{done}");
}

/// CVE-2021-30465: a mount point's parent becomes a link while the mount is made.
#[test]
fn s08_mounts_stay_inside_while_their_parents_are_swapped() {
    everywhere("S08 500 rounds", |attack| {
        let (dir, up) = (attack.canary.at("dir"), "/../../../../../../..");
        let text = swapped_cache(
            100,
            &format!("mkdir -p /c/a/b; ln -s {up}{dir} /c/l"),
            "CACHE --mount=type=tmpfs,target=/c/a/b --mount=type=tmpfs,target=/c/a/new true",
        );
        assert_raced(&attack.build_with(&text, &["-j", "8"]));
        assert_no_mount_of_host(attack);
        "no mount of the host"
    });
}

/// CVE-2024-23651: the source of a mount becomes a link while it is mounted.
#[test]
fn s09_sources_stay_inside_while_they_are_swapped() {
    everywhere("S09 500 rounds", |attack| {
        let file = attack.canary.at("file");
        let text = swapped_cache(
            100,
            &format!(
                "mkdir -p /c/a; echo harmless > /c/a/file; ln -s {} /c/l",
                attack.canary.path().display()
            ),
            &format!(
                "CACHE --mount=type=cache,id=x,source=a,target=/seen,sharing=shared cat /seen/file /c/a/file {file}; true"
            ),
        );
        assert_raced(&attack.build_with(&text, &["-j", "8"]));
        "no host byte read"
    });
}

/// CVE-2024-11218: four builds at once, of S08 and of processes that replace their own mount points (S13).
#[test]
fn s14_four_builds_at_once_stay_inside() {
    everywhere("S14 4 x 125 rounds", |attack: &Attack| {
        let (dir, up) = (attack.canary.at("dir"), "/../../../../../../..");
        let victim = format!(
            "CACHE --mount=type=tmpfs,target=/c/a/b --mount=target=/m/n/o mv /m /moved; ln -s {dir} /m; mkdir -p /m/n; \
             rm -rf /m /moved; true"
        );
        attack.user.write("f", "f\n");
        let mut builds = Vec::new();
        for number in 0..4 {
            // A cache of its own for each: who swaps must be the one who knows when to stop.
            let text =
                swapped_cache(25, &format!("mkdir -p /c/a/b; ln -s {up}{dir} /c/l"), &victim);
            let name = format!("Dockerfile{number}");
            attack.user.write(&name, &text.replace("id=x", &format!("id=x{number}")));
            let mut build = attack.idp();
            build
                .args(["--progress", "plain", "build", "-j", "8", "-f", &name])
                .args(attack.flags())
                .arg(".");
            build.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            let child = build.spawn().unwrap();
            builds.push(std::thread::spawn(move || child.wait_with_output().unwrap()));
        }
        for build in builds {
            let done = Done::from_output("build".to_owned(), &build.join().unwrap());
            assert_raced(&attack.heard(done));
        }
        assert_no_mount_of_host(attack);
        "no mount of the host"
    });
}
