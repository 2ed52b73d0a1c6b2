//! The workloads that run processes, and those that build several things at once.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cases::{Outcome, Place, rebuilds, text},
    contest::{Contender, Contest},
    ground::{context, settle},
    measure::{self, Sample},
    runtimes,
    tools::{self, BASE, Bench, Tool},
};

/// What apt is asked for, without a network: the packages lie in the base.
const INSTALL: &str = "apt-get install -y -q --no-install-recommends --no-download curl";

/// The root file system of a layout's layers, unpacked beside the workloads' folders; not measured.
fn unpack(place: &Place<'_>, layout: &Path) -> Result<PathBuf, String> {
    let root = place.path().join("rootfs");
    let script = "mkdir -p lower; for blob in \"$BASE\"/blobs/sha256/*; do \
         tar -xzf $blob -C lower 2>/dev/null || tar -xf $blob -C lower 2>/dev/null || :; done; test -x lower/bin/sh";
    fs::create_dir_all(&root).map_err(text)?;
    let mut unpack = tools::shell(script, &root);
    unpack.env("BASE", layout);
    measure::run(&mut unpack, &place.path().join("floor.log"))?;
    Ok(root)
}

/// W1. New words each round, so that nothing is cached.
pub(crate) fn packages(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let base = place.settings.bases.packages()?;
    let change = |folder: &Path, round: usize| {
        let text = format!(
            "FROM {BASE}\nENV DEBIAN_FRONTEND=noninteractive\nRUN : {round} {}; {INSTALL}\n\
             COPY script /usr/local/bin/\nRUN chmod 755 /usr/local/bin/script\n",
            std::process::id()
        );
        fs::write(folder.join("Dockerfile"), text)
    };
    let context = context(place.path(), "")?;
    fs::write(context.join("script"), "#!/bin/sh\nexec curl \"$@\"\n").map_err(text)?;
    change(&context, 999).map_err(text)?;
    settle();
    rebuilds(place, contest, (&base, &context, change))?;
    if !place.ground.is_fresh() {
        contest.note("without a file system of its own there is no floor".to_owned());
        return Ok(());
    }
    let root = unpack(place, &base)?;
    let script = format!(
        "rm -rf step; mkdir -p step/u step/w step/m; unshare --mount --pid --ipc --uts --fork sh -ec \
         'mount -t overlay overlay -o lowerdir=lower,upperdir=step/u,workdir=step/w,volatile step/m; \
         mount -t proc proc step/m/proc; mount --rbind /dev step/m/dev; \
         DEBIAN_FRONTEND=noninteractive chroot step/m /bin/sh -c \"{INSTALL}\"; \
         cp ../context/script step/m/usr/local/bin/; chmod 755 step/m/usr/local/bin/script'"
    );
    place.floor(contest, &root, &script);
    Ok(())
}

/// W6.
pub(crate) fn forty(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = context(place.path(), "")?;
    let change = |folder: &Path, round: usize| {
        // New commands each round: nothing is cached.
        let run = |step: usize| format!("RUN : {step} {round} {}\n", std::process::id());
        let runs: String = (0..40).map(run).collect();
        fs::write(folder.join("Dockerfile"), format!("FROM {BASE}\n{runs}"))
    };
    change(&context, 999).map_err(text)?;
    let base = &place.settings.bases.busybox;
    rebuilds(place, contest, (base, &context, change))?;
    if !place.ground.is_fresh() {
        return Ok(());
    }
    runtimes::add_rootless(contest, base, change)?;
    isolated(place, contest, 40)?;
    runtimes::add(contest, place.ground)
}

/// The floor of so many steps: the base unpacked, and the least that isolates each.
fn isolated(place: &Place<'_>, contest: &mut Contest, count: usize) -> Outcome {
    if !place.ground.is_fresh() {
        return Ok(());
    }
    let root = unpack(place, &place.settings.bases.busybox)?;
    let script = format!(
        "rm -rf steps; for step in $(seq {count}); do mkdir -p steps/$step/u steps/$step/w steps/$step/m; \
         unshare --mount --pid --ipc --uts --fork sh -ec \"mount -t overlay overlay -o \
         lowerdir=lower,upperdir=steps/$step/u,workdir=steps/$step/w,volatile steps/$step/m; \
         exec chroot steps/$step/m /bin/sh -c :\"; done"
    );
    place.floor(contest, &root, &script);
    Ok(())
}

/// W7.
pub(crate) fn twelve_targets(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    targets(place, contest, 12)
}

/// The project that has so many images on a shared stage, and the same as commands for tools that build one at a time.
pub(crate) fn targets(place: &Place<'_>, contest: &mut Contest, count: usize) -> Outcome {
    let context = context(place.path(), "")?;
    let folder = context.clone();
    let change = move |round| write_targets(&folder, round, count).map_err(text);
    on_the_base(place, contest, change, move |bench| build_targets(bench, &context, count));
    isolated(place, contest, count + 1)
}

/// Every tool works on a state that has the base, after `change` (given the number of the round).
fn on_the_base(
    place: &Place<'_>,
    contest: &mut Contest,
    change: impl FnMut(usize) -> Outcome + Clone + 'static,
    work: impl Fn(&Bench) -> Result<Sample, String> + Clone + 'static,
) {
    for bench in place.benches() {
        let ready = bench.fresh(&place.settings.bases.busybox);
        let (name, work) = (bench.tool.name(), work.clone());
        contest.add_ready(ready, Contender::new(name, change.clone(), move |_| work(&bench)));
    }
}

fn write_targets(folder: &Path, round: usize, count: usize) -> std::io::Result<()> {
    let mut dockerfile =
        format!("FROM {BASE} AS shared\nRUN echo {round} {} > /shared\n", std::process::id());
    let mut project = String::new();
    for number in 0..count {
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

fn build_targets(bench: &Bench, folder: &Path, count: usize) -> Result<Sample, String> {
    if bench.tool == Tool::Idpbuilder {
        let mut run = bench.command();
        run.args(["run", "-q"]).current_dir(folder);
        return bench.run(&mut run);
    }
    let mut all: Option<Sample> = None;
    for number in 0..count {
        let (tag, target) = (format!("localhost/app{number}:1"), format!("target{number}"));
        let sample = bench.run(&mut bench.build_target(folder, &tag, Some(&target)))?;
        all = Some(all.map_or(sample, |all| all.then(sample)));
    }
    all.ok_or_else(|| "no targets".to_owned())
}

/// W8.
pub(crate) fn two_stages(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = context(place.path(), "")?;
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
    rebuilds(place, contest, (&place.settings.bases.busybox, &context, change))?;
    place.floor(contest, &context, "exec sleep 3");
    Ok(())
}

/// So many RUN steps on one another, each of which changes a file; they are other steps each round.
pub(crate) fn many(place: &Place<'_>, contest: &mut Contest, count: usize) -> Outcome {
    let context = context(place.path(), "")?;
    let folder = context.clone();
    let change = move |round| {
        let nonce = format!("{round} {}", std::process::id());
        let runs: String =
            (0..count).map(|step| format!("RUN echo {step} {nonce} > /step\n")).collect();
        fs::write(folder.join("Dockerfile"), format!("FROM {BASE}\n{runs}")).map_err(text)
    };
    on_the_base(place, contest, change, move |bench| {
        bench.run(&mut bench.build(&context, "localhost/work:1"))
    });
    isolated(place, contest, count)
}
