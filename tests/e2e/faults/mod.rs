//! Faults: what goes wrong around the tool, and what must hold all the same.
//!
//! Each case has a test whose name begins with its number. Where they are:
//!
//! | case | fault | tests |
//! |---|---|---|
//! | F01, F02, F05 | killed at each call, power cut, errors of single calls | `tests/crash` |
//! | F03 | full disk | `tests/crash`, `mistakes.rs`, S26 in `attacks/bombs.rs` |
//! | F04, F06, F07, F17, F21, F22 | the store's map, many processes, locks, damage, collection, formats | `tests/crash`, `src/store/tests.rs` |
//! | F08 | read-only store | `tests/crash` |
//! | F09 | signals, closed terminal, closed pipe | `faults/signals.rs` |
//! | F10 | the tool is killed | `faults/signals.rs`, `resources.rs`, `tests/crash` |
//! | F11, F12 | memory and processes run out | `resources.rs`, S26 in `attacks/bombs.rs` |
//! | F13 | logs without end | `faults/sizes.rs` |
//! | F14, F15 | many files, large layers | `faults/sizes.rs`, L22 in `attacks/layers.rs` |
//! | F16 | deep trees, long and odd names | `faults/trees.rs`, L21 in `attacks/layers.rs`, the corpus' additions 940 to 942 |
//! | F18 | the clock jumps | `faults/places.rs` |
//! | F19 | temporary folder, environment, descriptors, stack | `faults/places.rs` |
//! | F20 | file systems that lack something | `faults/places.rs`, `filesystems.rs`, `hosts.rs` |
//! | F23 | network | R01 to R22 below |
//! | F24 | output that is closed, or held open | `output.rs`, S25 in `attacks/lives.rs` |
//! | F25 | a thousand builds | `faults/endurance.rs`, `output.rs` |
//!
//! R01 to R13, R15, R18 and R22 are tests of `src/registry/faults.rs`; R08 bit by bit, R16, R19 and R21 of
//! `src/registry/answers.rs`; R20 of `src/registry/leaks.rs`. R14 has no test: what a push was answered is compared with
//! what was sent, and not asked for again. R17 has none either: the client asks for no referrers.

#![expect(clippy::print_stdout, reason = "what was measured is shown with --nocapture")]

mod endurance;
mod places;
mod signals;
mod sizes;
mod trees;

use std::fs;

use crate::support::{Done, User};

/// Command lines of processes that have a word among their arguments.
fn processes(word: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = all.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.split(' ').any(|argument| argument == word)).collect()
}

/// Peak memory of the tool, in KiB, and how long it took, in seconds. It must succeed.
fn peak_of(user: &User, words: &[String]) -> (u64, f64) {
    let mut time = user.command("python3");
    let script = "import resource, subprocess, sys, time
since = time.time()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
if done.returncode:
    sys.exit(done.stderr[-4000:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, time.time() - since)";
    time.args(["-c", script]).arg(user.folder().join("bin/idpbuilder")).args(words);
    let said = Done::of(&mut time).ok();
    let (peak, seconds) = said.trim().split_once(' ').unwrap();
    (peak.parse().unwrap(), seconds.parse().unwrap())
}

/// A count that a variable of the environment makes larger: the full size takes too long for every run.
fn scaled(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}
