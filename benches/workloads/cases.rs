//! The workloads, and those of them that build from local files: what each tool does, and the floor that
//! plain tools set for the unavoidable part.
//!
//! Every workload has a name, a short description, and one contender a tool; `contest` measures them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    bases::Bases,
    contest::{Contender, Contest},
    docker::{Docker, Running},
    ground::{self, Ground, context, settle},
    language, measure, steps,
    targets::Target,
    tools::{self, BASE, Bench, Tool},
    transfers,
};

/// Changes a context before a round, which is numbered.
pub(crate) type Change = fn(&Path, usize) -> std::io::Result<()>;

/// What all workloads share.
pub(crate) struct Settings {
    pub(crate) tools: Vec<Tool>,
    pub(crate) bases: Bases,
    pub(crate) rounds: usize,
    /// Size of the large file of W5.
    pub(crate) large_mib: usize,
    /// Number of files of W4.
    pub(crate) files: usize,
}

pub(crate) type Outcome = Result<(), String>;

/// Where one workload runs, and the docker that is there for its time.
pub(crate) struct Place<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) ground: &'a Ground,
    docker: Option<Running>,
}

impl<'a> Place<'a> {
    /// Starts what the tools need.
    pub(crate) fn new(settings: &'a Settings, ground: &'a Ground) -> Result<Self, String> {
        let wanted = settings.tools.contains(&Tool::Docker);
        let docker = wanted.then(|| Running::start(ground.path())).transpose()?;
        Ok(Self { settings, ground, docker })
    }

    pub(crate) fn path(&self) -> &Path {
        self.ground.path()
    }

    /// The tools with states of their own.
    pub(crate) fn benches(&self) -> impl Iterator<Item = Bench> {
        let docker = self.docker.as_ref().map(|running| &running.docker);
        self.settings.tools.iter().map(move |tool| self.bench(*tool, docker))
    }

    fn bench(&self, tool: Tool, docker: Option<&Docker>) -> Bench {
        Bench::new(tool, self.path(), docker)
    }

    /// A floor without preparation.
    pub(crate) fn floor(&self, contest: &mut Contest, folder: &Path, script: &str) {
        self.script(contest, "floor", folder, script);
    }

    /// Plain tools under a name of their own.
    pub(crate) fn script(
        &self,
        contest: &mut Contest,
        name: &'static str,
        folder: &Path,
        script: &str,
    ) {
        let (log, folder, script) =
            (self.path().join("floor.log"), folder.to_owned(), script.to_owned());
        let run = move |_| measure::run(&mut tools::shell(&script, &folder), &log);
        contest.floor(Contender::new(name, |_| Ok(()), run));
    }
}

/// One workload: fills a contest on its own ground.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) target: Target,
    pub(crate) fill: fn(&Place<'_>, &mut Contest) -> Outcome,
}

const fn workload(
    name: &'static str,
    what: &'static str,
    target: Target,
    fill: fn(&Place<'_>, &mut Contest) -> Outcome,
) -> Workload {
    Workload { name, what, target, fill }
}

pub(crate) const ALL: [Workload; 21] = [
    workload("start", "--version; floor: true", Target::At(0.004), start),
    workload(
        "W1",
        "FROM debian, apt-get install of packages that are there, COPY, chmod; floor: overlay + chroot + apt-get",
        Target::AboveFloor(0.2),
        steps::packages,
    ),
    workload(
        "W2",
        "10 instructions, nothing changed; floor: stat",
        Target::At(0.010),
        nothing_changed,
    ),
    workload(
        "W3",
        "the file of the last COPY changed; floor: tar | sha256sum",
        Target::At(0.020),
        last_copy,
    ),
    workload(
        "W4a",
        "COPY of many files, empty store; floor: tar | sha256sum",
        Target::Files(1.3),
        many_cold,
    ),
    workload(
        "W4b",
        "COPY of many files, nothing changed; floor: find -printf",
        Target::Files(0.07),
        many_same,
    ),
    workload(
        "W4c",
        "COPY of many files, one changed; floor: find -printf",
        Target::Files(0.4),
        many_one,
    ),
    workload("W5", "COPY of one large file; floor: sha256sum", Target::Large(1.4), large_build),
    workload(
        "W5p",
        "push of it with gzip; floor: gzip -1",
        Target::Large(7.6),
        transfers::large_gzip,
    ),
    workload(
        "W5z",
        "push of it with zstd; floor: zstd -3 -T2",
        Target::Large(2.1),
        transfers::large_zstd,
    ),
    workload(
        "W6",
        "40 RUN steps, also rootless, beside 40 runs of a ready bundle; floor: overlay + unshare + chroot + sh",
        Target::At(0.3),
        steps::forty,
    ),
    workload(
        "W7",
        "12 targets on one shared stage; floor: 13 times overlay + unshare + chroot + sh",
        Target::At(0.2),
        steps::twelve_targets,
    ),
    workload(
        "W8",
        "two independent stages of 3 s; floor: sleep 3",
        Target::At(3.03),
        steps::two_stages,
    ),
    workload(
        "W9",
        "push again, nothing changed; floor: one HEAD",
        Target::At(0.02),
        transfers::again,
    ),
    workload(
        "W10",
        "5,000 files, one changed: build; floor: find + tar | sha256sum",
        Target::At(0.15),
        tree_build,
    ),
    workload("W10p", "push of it; floor: tar | gzip -1", Target::At(0.25), transfers::tree),
    workload(
        "W10s",
        "20,000 files of 200 MB, one changed: build and push, as one layer and split; floor: find",
        Target::Unset,
        transfers::tree_split,
    ),
    workload(
        "W11",
        "empty store: FROM debian of a registry + one COPY; floors: manifest and config, and the layers unpacked or only read",
        Target::At(0.05),
        transfers::empty_store,
    ),
    workload(
        "W11l",
        "the same with COPY --link; floor: manifest and config",
        Target::At(0.05),
        transfers::empty_store_link,
    ),
    workload(
        "L1",
        "parse and lower a Dockerfile of 1,000 lines",
        Target::At(0.005),
        language::parse_and_lower,
    ),
    workload(
        "L2",
        "an ignore file of 1,000 patterns over 20,000 paths",
        Target::At(0.05),
        language::ignore,
    ),
];

pub(crate) fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// Every tool builds `context` again and again after `change` (given the number of the round).
pub(crate) fn rebuilds(
    place: &Place<'_>,
    contest: &mut Contest,
    (base, context, change): (&Path, &Path, Change),
) -> Outcome {
    for bench in place.benches() {
        let ready = bench.fresh(base);
        let ready = ready.and_then(|()| bench.run(&mut bench.build(context, "localhost/work:1")));
        let (folder, changed) = (context.to_owned(), context.to_owned());
        let contender = Contender::new(
            bench.tool.name(),
            move |round| change(&changed, round).map_err(text),
            move |_| bench.run(&mut bench.build(&folder, "localhost/work:1")),
        );
        contest.add_ready(ready.map(drop), contender);
    }
    Ok(())
}

/// Every tool builds `context` with a state that has nothing but the base.
pub(crate) fn cold(place: &Place<'_>, contest: &mut Contest, context: &Path) {
    for first in place.benches() {
        let base = place.settings.bases.busybox.clone();
        let (context, second) = (context.to_owned(), first.clone());
        contest.add(Contender::new(
            first.tool.name(),
            move |round| {
                if let Some(before) = round.checked_sub(1) {
                    first.numbered(before).discard();
                }
                first.numbered(round).fresh(&base)
            },
            move |round| {
                let bench = second.numbered(round);
                bench.run(&mut bench.build(&context, "localhost/work:1"))
            },
        ));
    }
}

/// umoci makes a compressed layer of local files: what a COPY does, and what a push would still do.
fn insert(place: &Place<'_>, contest: &mut Contest, (context, name): (&Path, &'static str)) {
    if place.settings.tools == [Tool::Idpbuilder] {
        return;
    }
    if !tools::is_installed("umoci") {
        return contest.note("umoci is not installed".to_owned());
    }
    let (image, base) = (place.path().join("umoci"), place.settings.bases.busybox.clone());
    let (log, context, fresh) = (place.path().join("umoci.log"), context.to_owned(), image.clone());
    contest.add(Contender::new(
        "umoci",
        move |_| {
            drop(fs::remove_dir_all(&fresh));
            let mut copy = Command::new("cp");
            measure::run(copy.arg("-r").arg(&base).arg(&fresh), &fresh.with_extension("copy"))
                .map(drop)
        },
        move |_| {
            let mut insert = Command::new("umoci");
            insert.args(["insert", "--image"]).arg(format!("{}:latest", image.display()));
            insert.arg(context.join(name)).arg(format!("/{name}"));
            measure::run(&mut insert, &log)
        },
    ));
}

pub(crate) fn unchanged(_: &Path, _: usize) -> std::io::Result<()> {
    Ok(())
}

fn start(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    for bench in place.benches() {
        let name = bench.tool.name();
        contest.add(Contender::new(name, |_| Ok(()), move |_| bench.run(&mut bench.version())));
    }
    let log = place.path().join("floor.log");
    let run = move |_| measure::run(&mut Command::new("true"), &log);
    contest.floor(Contender::new("floor", |_| Ok(()), run));
    Ok(())
}

fn ten_instructions() -> String {
    format!(
        "FROM {BASE}\nENV A=1\nWORKDIR /srv/app\nCOPY one ./\nRUN echo built > built\n\
         COPY two ./\nRUN cat one two built > all\nENV B=2\nLABEL c=3\nCOPY last ./\nCMD [\"cat\", \"all\"]\n"
    )
}

/// A small context with ten instructions.
pub(crate) fn small(ground: &Ground) -> Result<PathBuf, String> {
    let context = context(ground.path(), &ten_instructions())?;
    for name in ["one", "two", "last"] {
        fs::write(context.join(name), name.repeat(2000)).map_err(text)?;
    }
    settle();
    Ok(context)
}

fn nothing_changed(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = small(place.ground)?;
    rebuilds(place, contest, (&place.settings.bases.busybox, &context, unchanged))?;
    let (log, folder) = (place.path().join("floor.log"), context.clone());
    let run = move |_| {
        let mut stat = Command::new("stat");
        stat.args(["Dockerfile", "one", "two", "last"]).current_dir(&folder);
        measure::run(&mut stat, &log)
    };
    contest.floor(Contender::new("floor", |_| Ok(()), run));
    Ok(())
}

fn last_copy(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = small(place.ground)?;
    let change = |folder: &Path, round: usize| {
        fs::write(folder.join("last"), format!("{round} {:?}", std::time::Instant::now()))
    };
    rebuilds(place, contest, (&place.settings.bases.busybox, &context, change))?;
    place.floor(contest, &context, "tar -cf - last | sha256sum");
    Ok(())
}

/// A context with a tree of so many files of about so many bytes.
pub(crate) fn with_tree(ground: &Ground, files: usize, bytes: usize) -> Result<PathBuf, String> {
    let context = context(ground.path(), &format!("FROM {BASE}\nCOPY tree /tree\n"))?;
    ground::write_files(&context.join("tree"), files, bytes).map_err(text)?;
    settle();
    Ok(context)
}

fn many(place: &Place<'_>) -> Result<PathBuf, String> {
    with_tree(place.ground, place.settings.files, 10_000)
}

fn many_cold(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = many(place)?;
    cold(place, contest, &context);
    insert(place, contest, (&context, "tree"));
    place.floor(contest, &context, "tar -cf - tree | sha256sum");
    Ok(())
}

/// Looks at every file as a build must that reads none.
pub(crate) const WALK: &str = "find tree -printf '%s %T@ %C@ %i %m\\n'";

fn many_same(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = many(place)?;
    rebuilds(place, contest, (&place.settings.bases.busybox, &context, unchanged))?;
    place.floor(contest, &context, WALK);
    Ok(())
}

pub(crate) fn change_one(folder: &Path, round: usize) -> std::io::Result<()> {
    let content = format!("{round} {:?}", std::time::Instant::now());
    fs::write(folder.join("tree/part7/file777.dat"), content)
}

fn many_one(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = many(place)?;
    rebuilds(place, contest, (&place.settings.bases.busybox, &context, change_one))?;
    place.floor(contest, &context, WALK);
    Ok(())
}

/// A context with one file of so many MiB.
pub(crate) fn with_large(ground: &Ground, mib: usize) -> Result<PathBuf, String> {
    let context = context(ground.path(), &format!("FROM {BASE}\nCOPY large /large\n"))?;
    ground::write_large(&context.join("large"), mib).map_err(text)?;
    settle();
    Ok(context)
}

fn large_build(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = with_large(place.ground, place.settings.large_mib)?;
    cold(place, contest, &context);
    insert(place, contest, (&context, "large"));
    place.floor(contest, &context, "sha256sum large");
    Ok(())
}

fn tree_build(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = with_tree(place.ground, 5000, 4000)?;
    rebuilds(place, contest, (&place.settings.bases.busybox, &context, change_one))?;
    place.floor(contest, &context, &format!("{WALK} > /dev/null; tar -cf - tree | sha256sum"));
    Ok(())
}
