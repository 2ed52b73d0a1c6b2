//! The workloads: what each tool does, and the floor that plain tools set for the unavoidable part.
//!
//! Every workload has a name, a short description, and one contender a tool; `contest` measures them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    contest::{Contender, Contest},
    ground::{self, Ground},
    language,
    measure::{self, Sample},
    registry::Registry,
    runtimes,
    tools::{self, BASE, Bench, Tool},
};

/// Changes a context before a round, which is numbered.
type Change = fn(&Path, usize) -> std::io::Result<()>;

/// What all workloads share.
pub(crate) struct Settings {
    pub(crate) tools: Vec<Tool>,
    /// OCI layout of the base image.
    pub(crate) base: PathBuf,
    pub(crate) rounds: usize,
    /// Size of the large file of W5.
    pub(crate) large_mib: usize,
    /// Number of files of W4.
    pub(crate) files: usize,
}

type Outcome = Result<(), String>;

/// One workload: fills a contest on its own ground.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) fill: fn(&Settings, &Ground, &mut Contest) -> Outcome,
}

pub(crate) const ALL: [Workload; 16] = [
    Workload { name: "start", what: "--version; floor: true", fill: start },
    Workload {
        name: "W2",
        what: "10 instructions, nothing changed; floor: stat",
        fill: nothing_changed,
    },
    Workload {
        name: "W3",
        what: "the file of the last COPY changed; floor: tar | sha256sum",
        fill: last_copy,
    },
    Workload {
        name: "W4a",
        what: "COPY of many files, empty store; floor: tar | sha256sum",
        fill: many_cold,
    },
    Workload {
        name: "W4b",
        what: "COPY of many files, nothing changed; floor: find -printf",
        fill: many_same,
    },
    Workload {
        name: "W4c",
        what: "COPY of many files, one changed; floor: find -printf",
        fill: many_one,
    },
    Workload { name: "W5", what: "COPY of one large file; floor: sha256sum", fill: large_build },
    Workload { name: "W5p", what: "push of it with gzip; floor: gzip -1", fill: large_push },
    Workload {
        name: "W6",
        what: "40 RUN steps, also rootless, beside 40 runs of a ready bundle; floor: overlay + unshare + chroot + sh",
        fill: forty_runs,
    },
    Workload { name: "W7", what: "12 targets on one shared stage", fill: twelve_targets },
    Workload {
        name: "W8",
        what: "two independent stages of 3 s; floor: sleep 3",
        fill: two_stages,
    },
    Workload { name: "W9", what: "push again, nothing changed; floor: one HEAD", fill: push_again },
    Workload {
        name: "W10",
        what: "5,000 files, one changed: build; floor: find + tar | sha256sum",
        fill: tree_build,
    },
    Workload { name: "W10p", what: "push of it; floor: tar | gzip -1", fill: tree_push },
    Workload {
        name: "L1",
        what: "parse and lower a Dockerfile of 1,000 lines",
        fill: language::parse_and_lower,
    },
    Workload {
        name: "L2",
        what: "an ignore file of 1,000 patterns over 20,000 paths",
        fill: language::ignore,
    },
];

fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// A context with a Dockerfile.
fn context(ground: &Path, dockerfile: &str) -> Result<PathBuf, String> {
    let folder = ground.join("context");
    fs::create_dir_all(&folder).map_err(text)?;
    fs::write(folder.join("Dockerfile"), dockerfile).map_err(text)?;
    Ok(folder)
}

/// Builds and cached files are trusted once their time of change is older than a file system's clock
/// may be coarse: measured is a tree that was there before, not one that was written just now.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(2200));
}

/// Every tool builds `context` again and again after `change` (given the number of the round).
fn rebuilds(
    settings: &Settings,
    ground: &Ground,
    contest: &mut Contest,
    (context, change): (&Path, Change),
) -> Outcome {
    for tool in &settings.tools {
        let bench = tool.at(ground.path());
        bench.fresh(&settings.base)?;
        let build = move |bench: &Bench, context: &Path| {
            measure::run(&mut bench.build(context, "localhost/work:1"), &bench.log)
        };
        build(&bench, context)?;
        let folder = context.to_owned();
        contest.add(Contender::new(
            tool.name(),
            {
                let folder = folder.clone();
                move |round| change(&folder, round).map_err(text)
            },
            move |_| build(&bench, &folder),
        ));
    }
    Ok(())
}

/// A floor without preparation.
fn floor(contest: &mut Contest, ground: &Ground, folder: &Path, script: &str) {
    let (log, folder, script) =
        (ground.path().join("floor.log"), folder.to_owned(), script.to_owned());
    contest.floor(Contender::new(
        "floor",
        |_| Ok(()),
        move |_| measure::run(&mut tools::shell(&script, &folder), &log),
    ));
}

fn unchanged(_: &Path, _: usize) -> std::io::Result<()> {
    Ok(())
}

fn start(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    for tool in &settings.tools {
        let bench = tool.at(ground.path());
        contest.add(Contender::new(
            tool.name(),
            |_| Ok(()),
            move |_| measure::run(&mut bench.version(), &bench.log),
        ));
    }
    let log = ground.path().join("floor.log");
    contest.floor(Contender::new(
        "floor",
        |_| Ok(()),
        move |_| measure::run(&mut Command::new("true"), &log),
    ));
    Ok(())
}

fn ten_instructions() -> String {
    format!(
        "FROM {BASE}\nENV A=1\nWORKDIR /srv/app\nCOPY one ./\nRUN echo built > built\n\
         COPY two ./\nRUN cat one two built > all\nENV B=2\nLABEL c=3\nCOPY last ./\nCMD [\"cat\", \"all\"]\n"
    )
}

fn small(ground: &Ground) -> Result<PathBuf, String> {
    let context = context(ground.path(), &ten_instructions())?;
    for name in ["one", "two", "last"] {
        fs::write(context.join(name), name.repeat(2000)).map_err(text)?;
    }
    settle();
    Ok(context)
}

fn nothing_changed(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = small(ground)?;
    rebuilds(settings, ground, contest, (&context, unchanged))?;
    let (log, folder) = (ground.path().join("floor.log"), context.clone());
    let run = move |_| {
        let mut stat = Command::new("stat");
        stat.args(["Dockerfile", "one", "two", "last"]).current_dir(&folder);
        measure::run(&mut stat, &log)
    };
    contest.floor(Contender::new("floor", |_| Ok(()), run));
    Ok(())
}

fn last_copy(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = small(ground)?;
    let change = |folder: &Path, round: usize| {
        fs::write(folder.join("last"), format!("{round} {:?}", std::time::Instant::now()))
    };
    rebuilds(settings, ground, contest, (&context, change))?;
    floor(contest, ground, &context, "tar -cf - last | sha256sum");
    Ok(())
}

fn many(settings: &Settings, ground: &Ground) -> Result<PathBuf, String> {
    let context = context(ground.path(), &format!("FROM {BASE}\nCOPY tree /tree\n"))?;
    ground::write_files(&context.join("tree"), settings.files, 10_000).map_err(text)?;
    settle();
    Ok(context)
}

fn many_cold(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = many(settings, ground)?;
    for tool in &settings.tools {
        let (first, base) = (tool.at(ground.path()), settings.base.clone());
        let (context, second) = (context.clone(), first.clone());
        contest.add(Contender::new(
            tool.name(),
            move |round| first.numbered(round).fresh(&base),
            move |round| {
                let bench = second.numbered(round);
                measure::run(&mut bench.build(&context, "localhost/work:1"), &bench.log)
            },
        ));
    }
    floor(contest, ground, &context, "tar -cf - tree | sha256sum");
    Ok(())
}

const WALK: &str = "find tree -printf '%s %T@ %C@ %i %m\\n'";

fn many_same(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = many(settings, ground)?;
    rebuilds(settings, ground, contest, (&context, unchanged))?;
    floor(contest, ground, &context, WALK);
    Ok(())
}

fn change_one(folder: &Path, round: usize) -> std::io::Result<()> {
    let content = format!("{round} {:?}", std::time::Instant::now());
    fs::write(folder.join("tree/part7/file777.dat"), content)
}

fn many_one(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = many(settings, ground)?;
    rebuilds(settings, ground, contest, (&context, change_one))?;
    floor(contest, ground, &context, WALK);
    Ok(())
}

fn large(settings: &Settings, ground: &Ground) -> Result<PathBuf, String> {
    let context = context(ground.path(), &format!("FROM {BASE}\nCOPY large /large\n"))?;
    ground::write_large(&context.join("large"), settings.large_mib).map_err(text)?;
    settle();
    Ok(context)
}

fn large_build(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = large(settings, ground)?;
    for tool in &settings.tools {
        let (first, base) = (tool.at(ground.path()), settings.base.clone());
        let (context, second) = (context.clone(), first.clone());
        contest.add(Contender::new(
            tool.name(),
            move |round| first.numbered(round).fresh(&base),
            move |round| {
                let bench = second.numbered(round);
                measure::run(&mut bench.build(&context, "localhost/work:1"), &bench.log)
            },
        ));
    }
    floor(contest, ground, &context, "sha256sum large");
    Ok(())
}

/// Every tool builds (not measured) and then pushes to a name of its own and of the round.
fn pushes(
    settings: &Settings,
    ground: &Ground,
    contest: &mut Contest,
    (context, change): (&Path, Change),
) -> Outcome {
    let registry = std::rc::Rc::new(Registry::start(ground.path()).map_err(text)?);
    contest.note(format!("registry: {}", registry.kind));
    for tool in &settings.tools {
        let (first, base) = (tool.at(ground.path()), settings.base.clone());
        let (context, second) = (context.to_owned(), first.clone());
        let (here, there) = (std::rc::Rc::clone(&registry), std::rc::Rc::clone(&registry));
        let name = tool.name();
        let tag = move |registry: &Registry, round: usize| {
            format!("{}/{name}{round}:1", registry.address)
        };
        contest.add(Contender::new(
            name,
            move |round| {
                // A state of its own: what was compressed before is not compressed again.
                let bench = first.numbered(round);
                bench.fresh(&base)?;
                change(&context, round).map_err(text)?;
                let mut build = bench.build(&context, &tag(&here, round));
                measure::run(&mut build, &bench.log).map(drop)
            },
            move |round| {
                let bench = second.numbered(round);
                measure::run(&mut bench.push(&tag(&there, round)), &bench.log)
            },
        ));
    }
    Ok(())
}

fn large_push(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = large(settings, ground)?;
    pushes(settings, ground, contest, (&context, unchanged))?;
    floor(contest, ground, &context, "gzip -1 < large > /dev/null");
    Ok(())
}

fn forty_runs(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = context(ground.path(), "")?;
    let change = |folder: &Path, round: usize| {
        // New commands each round: nothing is cached.
        let run = |step: usize| format!("RUN : {step} {round} {}\n", std::process::id());
        let runs: String = (0..40).map(run).collect();
        fs::write(folder.join("Dockerfile"), format!("FROM {BASE}\n{runs}"))
    };
    change(&context, 999).map_err(text)?;
    rebuilds(settings, ground, contest, (&context, change))?;
    if ground.is_fresh() {
        runtimes::add_rootless(contest, &settings.base, change)?;
        // The base unpacked, and the least that isolates a step.
        let root = ground.path().join("rootfs");
        let script = "mkdir -p ../rootfs/lower && cd ../rootfs && for blob in \"$BASE\"/blobs/sha256/*; do \
             tar -xzf $blob -C lower 2>/dev/null || :; done; test -x lower/bin/sh";
        let mut unpack = tools::shell(script, &context);
        unpack.env("BASE", &settings.base);
        measure::run(&mut unpack, &ground.path().join("floor.log"))?;
        let script = "rm -rf steps; for step in $(seq 40); do mkdir -p steps/$step/u steps/$step/w steps/$step/m; \
             unshare --mount --pid --ipc --uts --fork sh -ec \"mount -t overlay overlay -o \
             lowerdir=lower,upperdir=steps/$step/u,workdir=steps/$step/w,volatile steps/$step/m; \
             exec chroot steps/$step/m /bin/sh -c :\"; done";
        floor(contest, ground, &root, script);
        runtimes::add(contest, ground)?;
    }
    Ok(())
}

/// The project that has twelve images, and the same as commands for tools that build one at a time.
fn twelve_targets(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = context(ground.path(), "")?;
    for tool in &settings.tools {
        let bench = tool.at(ground.path());
        bench.fresh(&settings.base)?;
        let (folder, second) = (context.clone(), context.clone());
        contest.add(Contender::new(
            tool.name(),
            move |round| write_targets(&folder, round).map_err(text),
            move |_| build_targets(&bench, &second),
        ));
    }
    Ok(())
}

fn write_targets(folder: &Path, round: usize) -> std::io::Result<()> {
    let mut dockerfile =
        format!("FROM {BASE} AS shared\nRUN echo {round} {} > /shared\n", std::process::id());
    let mut project = String::new();
    for number in 0..12 {
        fs::write(folder.join(format!("file{number}")), format!("{number}"))?;
        dockerfile.push_str(&format!(
            "FROM shared AS target{number}\nCOPY file{number} /file\nRUN cat /shared /file > /both{number}\n"
        ));
        project.push_str(&format!(
            "image app{number} {{\n    context \".\"\n    target target{number}\n}}\n"
        ));
    }
    fs::write(folder.join("Dockerfile"), dockerfile)?;
    fs::write(folder.join("idpbuilder.kdl"), project)
}

fn build_targets(bench: &Bench, folder: &Path) -> Result<Sample, String> {
    if bench.tool == Tool::Idpbuilder {
        let mut run = bench.command();
        run.args(["run", "-q"]).current_dir(folder);
        return measure::run(&mut run, &bench.log);
    }
    let mut all: Option<Sample> = None;
    for number in 0..12 {
        let (tag, target) = (format!("localhost/app{number}:1"), format!("target{number}"));
        let mut build = bench.build_target(folder, &tag, Some(&target));
        let sample = measure::run(&mut build, &bench.log)?;
        all = Some(all.map_or(sample, |all| all.then(sample)));
    }
    Ok(all.expect("twelve builds"))
}

fn two_stages(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = context(ground.path(), "")?;
    let change = |folder: &Path, round: usize| {
        let nonce = format!("{round} {}", std::process::id());
        fs::write(
            folder.join("Dockerfile"),
            format!(
                "FROM {BASE} AS left\nRUN sleep 3; echo {nonce} > /left\nFROM {BASE} AS right\n\
                 RUN sleep 3; echo {nonce} > /right\nFROM {BASE}\nCOPY --from=left /left /\nCOPY --from=right /right /\n"
            ),
        )
    };
    change(&context, 999).map_err(text)?;
    rebuilds(settings, ground, contest, (&context, change))?;
    floor(contest, ground, &context, "exec sleep 3");
    Ok(())
}

fn push_again(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = small(ground)?;
    let registry = std::rc::Rc::new(Registry::start(ground.path()).map_err(text)?);
    contest.note(format!("registry: {}", registry.kind));
    for tool in &settings.tools {
        let bench = tool.at(ground.path());
        bench.fresh(&settings.base)?;
        let tag = format!("{}/{}:1", registry.address, tool.name());
        measure::run(&mut bench.build(&context, &tag), &bench.log)?;
        measure::run(&mut bench.push(&tag), &bench.log)?;
        let keep = std::rc::Rc::clone(&registry);
        contest.add(Contender::new(
            tool.name(),
            |_| Ok(()),
            move |_| {
                let _running = &keep;
                measure::run(&mut bench.push(&tag), &bench.log)
            },
        ));
    }
    contest.floor(Contender::new(
        "floor",
        |_| Ok(()),
        move |_| {
            let seconds = registry.request("HEAD", "/v2/idpbuilder/manifests/1").map_err(text)?;
            Ok(Sample { seconds, cpu_seconds: 0.0, memory_bytes: 0 })
        },
    ));
    Ok(())
}

fn tree(ground: &Ground) -> Result<PathBuf, String> {
    let context = context(ground.path(), &format!("FROM {BASE}\nCOPY tree /tree\n"))?;
    ground::write_files(&context.join("tree"), 5000, 4000).map_err(text)?;
    settle();
    Ok(context)
}

fn tree_build(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = tree(ground)?;
    rebuilds(settings, ground, contest, (&context, change_one))?;
    floor(contest, ground, &context, &format!("{WALK} > /dev/null; tar -cf - tree | sha256sum"));
    Ok(())
}

fn tree_push(settings: &Settings, ground: &Ground, contest: &mut Contest) -> Outcome {
    let context = tree(ground)?;
    pushes(settings, ground, contest, (&context, change_one))?;
    floor(contest, ground, &context, "tar -cf - tree | gzip -1 > /dev/null");
    Ok(())
}

/// Makes the base image with the corpus's own script.
pub(crate) fn make_base(parent: &Path) -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/make-base");
    let out = parent.join("bases");
    let mut make = Command::new("python3");
    make.arg(script).arg(&out);
    measure::run(&mut make, &parent.join("make-base.log"))?;
    Ok(out.join("busybox"))
}
