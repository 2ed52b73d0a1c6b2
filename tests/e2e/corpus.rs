//! The corpus of Dockerfiles, built by the binary, against what BuildKit makes of them.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use crate::support::{Done, ROOT, bases, binary};

/// Every case passes but those in `not-yet.txt`, and none of those passes: the list can only shrink.
#[test]
fn the_corpus_builds_as_with_buildkit() {
    let folder = Path::new(ROOT).join("tests/corpus");
    let list = fs::read_to_string(folder.join("not-yet.txt")).unwrap();
    let not_yet: BTreeSet<&str> =
        list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let work = tempfile::tempdir().unwrap();
    let mut check = Command::new(folder.join("check"));
    check.arg(folder.join("adapter")).env("IDPBUILDER", binary()).env("TMPDIR", work.path());
    check.arg("--base").arg(bases().join("corpus")).arg("--work").arg(work.path());
    check.args(["--jobs", "2"]);
    let done = Done::of(&mut check);
    let passed: BTreeSet<&str> =
        done.out.lines().filter_map(|line| line.strip_prefix("PASS ")).collect();
    let failed: BTreeSet<&str> =
        done.out.lines().filter_map(|line| line.strip_prefix("FAIL ")).collect();
    assert!(passed.len() + failed.len() > 600, "the corpus was not run\n{done}");
    println!("{} of {} cases of the corpus pass", passed.len(), passed.len() + failed.len());
    let broken: Vec<&str> = failed.difference(&not_yet).copied().collect();
    let mut why = String::new();
    for (case, reason) in done.out.lines().zip(done.out.lines().skip(1)) {
        if case.strip_prefix("FAIL ").is_some_and(|name| broken.contains(&name)) {
            why.push_str(&format!("{case}\n{reason}\n"));
        }
    }
    let mended: Vec<&str> = not_yet.difference(&failed).copied().collect();
    assert!(broken.is_empty(), "cases that must pass:\n{why}");
    assert!(mended.is_empty(), "these pass now: take them out of not-yet.txt: {mended:#?}");
}
