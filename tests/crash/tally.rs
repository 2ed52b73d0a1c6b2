//! What a case has seen, as a row of the table, and as the reasons for which it fails.
//!
//! Counts and prints; knows nothing of the tool.

use std::{
    fmt::Write as _,
    io::Write as _,
    sync::Once,
    time::{Duration, Instant},
};

/// Environment variable with the number of rounds of each case.
const ROUNDS: &str = "CRASH_ROUNDS";
/// Most findings that are shown of a case.
const SHOWN_MAX: usize = 20;

/// How many rounds a case goes through: `CRASH_ROUNDS`, when it is set.
pub(crate) fn rounds(in_the_suite: u64) -> u64 {
    std::env::var(ROUNDS).map_or(in_the_suite, |rounds| {
        rounds.parse().unwrap_or_else(|error| panic!("{ROUNDS}: {error}"))
    })
}

/// `share` of a hundred of [`rounds`], for a case of several that make up one count.
pub(crate) fn share(in_the_suite: u64, of_hundred: u64) -> u64 {
    (rounds(in_the_suite) * of_hundred).div_ceil(100)
}

/// What a finding says about the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Something acknowledged is gone or other than it was.
    Lost,
    /// A name or fact about content that is not there.
    Dangling,
    /// The next command did not just work.
    Repaired,
    /// Anything else that must not be.
    Wrong,
}

/// A case being counted.
pub(crate) struct Tally {
    case: String,
    rounds: u64,
    slowest: Duration,
    findings: Vec<(Finding, String)>,
}

impl Tally {
    pub(crate) fn new(case: impl Into<String>) -> Self {
        Self { case: case.into(), rounds: 0, slowest: Duration::ZERO, findings: Vec::new() }
    }

    pub(crate) fn round(&mut self) {
        self.rounds += 1;
    }

    pub(crate) fn rounds(&self) -> u64 {
        self.rounds
    }

    pub(crate) fn find(&mut self, finding: Finding, what: impl Into<String>) {
        self.findings.push((finding, what.into()));
    }

    /// Times what is done; the slowest of them all is told.
    pub(crate) fn timed<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let since = Instant::now();
        let done = act();
        self.slowest = self.slowest.max(since.elapsed());
        done
    }

    /// Prints the row, and fails when anything was found.
    #[track_caller]
    pub(crate) fn end(self) {
        let count = |wanted| self.findings.iter().filter(|(found, _)| *found == wanted).count();
        row(&[
            self.case.clone(),
            self.rounds.to_string(),
            count(Finding::Lost).to_string(),
            count(Finding::Dangling).to_string(),
            count(Finding::Repaired).to_string(),
            format!("{} ms", self.slowest.as_millis()),
        ]);
        let mut shown = String::new();
        for (finding, what) in self.findings.iter().take(SHOWN_MAX) {
            writeln!(shown, "{finding:?}: {what}").unwrap();
        }
        assert!(
            self.findings.is_empty(),
            "{}: {} findings\n{shown}",
            self.case,
            self.findings.len()
        );
    }
}

/// A line of the table. It goes past the test harness, which shows the output of failed tests alone.
fn row(cells: &[String; 6]) {
    static HEADING: Once = Once::new();
    let line = |cells: [&str; 6]| {
        let [case, rounds, lost, dangling, repaired, slowest] = cells;
        let line =
            format!("{case:<44} {rounds:>7} {lost:>5} {dangling:>9} {repaired:>9} {slowest:>17}\n");
        // A closed standard error fails no test.
        drop(std::io::stderr().write_all(line.as_bytes()));
    };
    HEADING.call_once(|| {
        line(["case", "rounds", "lost", "dangling", "repaired", "slowest recovery"]);
    });
    line(cells.each_ref().map(String::as_str));
}
