//! What is measured, how often and how large: the command line of the benchmark.

use std::{ops::RangeInclusive, path::PathBuf};

use crate::{cases, growth};

pub(crate) const HELP: &str = "\
The workloads of idpbuilder beside their floors and the rivals that are installed, and how time and memory grow.

    cargo bench                              all workloads, W5 with 256 MiB, and the small sizes of the curves
    cargo bench -- --full                    W5 with 1 GiB, curves to 1,000,000 files, 10 GiB, 64 images, 3,000 steps
    cargo bench -- W2 W6 steps --rounds 15   some workloads and curves, more often
    cargo bench -- --only-ours               without rivals

  NAME...                of workloads and curves; all of them by default
  --rounds N             rounds that count (5; curves 1 or 3); each measures every tool once, after one that warms up
  --files N              files of W4 (20000)
  --large-mib N          size of W5's file (256)
  --max CURVE=SIZE       largest size of a curve; may be given several times
  --program PATH         another build of idpbuilder than the one made for this
  --only-ours            no rivals; floors are measured
  --without TOOL         not this one: buildah, podman, docker; may be given several times
  --list                 names what there is
  --full                 see above; rivals take hours for it, --only-ours an hour

Ratios are to idpbuilder. The target is what the reference machine (two x86-64 cores with SHA extensions) is to take; a
ratio below 1 has missed it.
Rivals: buildah, podman, docker (its daemon, or a dockerd of the benchmark's own), umoci, crun, runc.
As root, each workload has a loop-mounted file system of its own. Results are written below target/bench:
workloads.json, workloads.md, growth.json, and growth-NAME.svg. W1 and W11 need the images of tests/setup/bases.";

/// Rounds that count, unless said otherwise.
const ROUNDS: usize = 5;

/// What was asked for.
pub(crate) struct Options {
    pub(crate) names: Vec<String>,
    rounds: Option<usize>,
    pub(crate) large_mib: usize,
    pub(crate) files: usize,
    pub(crate) rivals: Rivals,
    pub(crate) without: Vec<String>,
    /// Another program to measure.
    pub(crate) program: Option<PathBuf>,
    /// Largest size of each curve, by name.
    max: Vec<(String, usize)>,
    full: Full,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rivals {
    Measured,
    LeftOut,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Full {
    Yes,
    No,
}

/// What to do.
pub(crate) enum Request {
    Measure(Options),
    Print(String),
}

impl Options {
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    /// Rounds of a workload that count.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(ROUNDS)
    }

    /// Rounds of a curve: its own number, unless another was asked for.
    pub(crate) fn rounds_of(&self, curve: &growth::Curve) -> RangeInclusive<usize> {
        *curve.rounds.start()..=self.rounds.unwrap_or(*curve.rounds.end())
    }

    /// The sizes of a curve that are measured: two, unless more is asked for.
    pub(crate) fn sizes<'c>(&self, curve: &'c growth::Curve) -> &'c [usize] {
        let asked = self.max.iter().rev().find(|(name, _)| name == curve.name);
        let count = match (asked, self.full) {
            (Some((_, max)), _) => curve.sizes.iter().filter(|size| **size <= *max).count(),
            (None, Full::Yes) => curve.sizes.len(),
            (None, Full::No) => 2,
        };
        &curve.sizes[..count]
    }
}

pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Request, String> {
    let mut options = Options {
        names: Vec::new(),
        rounds: None,
        large_mib: 256,
        files: 20_000,
        rivals: Rivals::Measured,
        without: Vec::new(),
        program: None,
        max: Vec::new(),
        full: Full::No,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} takes a value"));
        match word.as_str() {
            // What cargo adds.
            "--bench" => {}
            "--help" | "-h" => return Ok(Request::Print(HELP.to_owned())),
            "--list" => return Ok(Request::Print(list())),
            "--full" => (options.full, options.large_mib) = (Full::Yes, 1024),
            "--only-ours" => options.rivals = Rivals::LeftOut,
            "--program" => options.program = Some(value()?.into()),
            "--without" => options.without.push(value()?),
            "--rounds" => options.rounds = Some(number(&value()?)?),
            "--files" => options.files = number(&value()?)?,
            "--large-mib" => options.large_mib = number(&value()?)?,
            "--max" => {
                let (curve, size) = value()?
                    .split_once('=')
                    .map(|(a, b)| (a.to_owned(), b.to_owned()))
                    .ok_or("--max takes CURVE=SIZE")?;
                let known = growth::ALL.iter().find(|known| known.name == curve);
                let known = known.ok_or(format!("{curve}: no such curve; --list names them"))?;
                let (size, least) = (number(&size)?, known.sizes[0]);
                if size < least {
                    return Err(format!("--max {curve}={size}: its smallest size is {least}"));
                }
                options.max.push((curve, size));
            }
            _ if word.starts_with('-') => {
                return Err(format!("{word}: no such flag; --help names them"));
            }
            _ => options.names.push(word),
        }
    }
    let known = |name: &String| names().any(|known| known == name);
    match options.names.iter().find(|name| !known(name)) {
        Some(name) => Err(format!("{name}: no such workload or curve; --list names them")),
        None => Ok(Request::Measure(options)),
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{text}: not a number"))
}

fn names() -> impl Iterator<Item = &'static str> {
    cases::ALL
        .iter()
        .map(|workload| workload.name)
        .chain(growth::ALL.iter().map(|curve| curve.name))
}

fn list() -> String {
    let workloads =
        cases::ALL.iter().map(|workload| format!("{:<7} {}", workload.name, workload.what));
    let curves = growth::ALL
        .iter()
        .map(|curve| format!("{:<7} {}: {:?}", curve.name, curve.what, curve.sizes));
    workloads.chain(curves).collect::<Vec<_>>().join("\n")
}
