//! The workloads that talk to a registry: pushes, and builds that start with nothing.

use std::{cell::Cell, fs, path::Path, rc::Rc, time::Instant};

use crate::{
    cases::{
        Change, Outcome, Place, WALK, change_one, small, text, unchanged, with_large, with_tree,
    },
    contest::{Contender, Contest},
    ground::{context, settle},
    measure::Sample,
    registry::Registry,
    tools::{Bench, Compression, Tool},
};

/// Every tool builds (not measured) and then pushes to a name of its own and of the round.
fn pushes(
    place: &Place<'_>,
    contest: &mut Contest,
    (context, change, compression): (&Path, Change, Compression),
) -> Outcome {
    let registry = Rc::new(Registry::start(place.path()).map_err(text)?);
    contest.note(format!("registry: {}", registry.kind));
    for first in place.benches() {
        if (first.tool, compression) == (Tool::Docker, Compression::Zstd) {
            contest.note("docker push knows no zstd".to_owned());
            continue;
        }
        let base = place.settings.bases.busybox.clone();
        let (context, second) = (context.to_owned(), first.clone());
        let (here, there) = (Rc::clone(&registry), Rc::clone(&registry));
        let name = first.tool.name();
        let tag = move |registry: &Registry, round: usize| {
            format!("{}/{name}{round}:1", registry.address)
        };
        contest.add(Contender::new(
            name,
            move |round| {
                if let Some(before) = round.checked_sub(1) {
                    first.numbered(before).discard();
                }
                // A state of its own: what was compressed before is not compressed again.
                let bench = first.numbered(round);
                bench.fresh(&base)?;
                change(&context, round).map_err(text)?;
                bench.run(&mut bench.build(&context, &tag(&here, round))).map(drop)
            },
            move |round| {
                let bench = second.numbered(round);
                bench.run(&mut bench.push(&tag(&there, round), compression))
            },
        ));
    }
    Ok(())
}

pub(crate) fn large_gzip(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = with_large(place.ground, place.settings.large_mib)?;
    pushes(place, contest, (&context, unchanged, Compression::Gzip))?;
    place.floor(contest, &context, "gzip -1 < large > /dev/null");
    Ok(())
}

pub(crate) fn large_zstd(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = with_large(place.ground, place.settings.large_mib)?;
    pushes(place, contest, (&context, unchanged, Compression::Zstd))?;
    place.floor(contest, &context, "zstd -3 -T2 < large > /dev/null");
    Ok(())
}

pub(crate) fn tree(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = with_tree(place.ground, 5000, 4000)?;
    pushes(place, contest, (&context, change_one, Compression::Gzip))?;
    place.floor(
        contest,
        &context,
        &format!("{WALK} > /dev/null; tar -cf - tree | gzip -1 > /dev/null"),
    );
    Ok(())
}

/// Ours alone, since no other tool splits a COPY.
pub(crate) fn tree_split(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = with_tree(place.ground, 20_000, 10_000)?;
    let registry = Rc::new(Registry::start(place.path()).map_err(text)?);
    contest.note(format!("registry: {}", registry.kind));
    let Some(bench) = place.benches().find(|bench| bench.tool == Tool::Idpbuilder) else {
        return Ok(());
    };
    let ways: [(&'static str, &'static [&'static str]); 2] =
        [("idpbuilder", &[]), ("idpbuilder, split", &["--split-layers"])];
    for (number, (name, flags)) in ways.into_iter().enumerate() {
        let (bench, context) = (bench.numbered(number), context.clone());
        let tag = format!("{}/tree{number}:1", registry.address);
        let build = move |bench: &Bench, context: &Path, tag: &str| {
            let mut build = bench.build(context, tag);
            bench.run(build.args(flags))
        };
        let ready = bench.fresh(&place.settings.bases.busybox);
        let ready = ready.and_then(|()| build(&bench, &context, &tag));
        let ready = ready.and_then(|_| bench.run(&mut bench.push(&tag, Compression::Gzip)));
        let sent = Rc::new(Cell::new(0));
        let (last, changed, there) = (Rc::clone(&sent), context.clone(), Rc::clone(&registry));
        contest.note_at_the_end(move || {
            format!("{name}: the last push sent {:.1} MB", last.get() as f64 / 1e6)
        });
        let run = move |_| {
            let before = there.bytes().map_err(text)?;
            let built = build(&bench, &context, &tag)?;
            let pushed = bench.run(&mut bench.push(&tag, Compression::Gzip))?;
            sent.set(there.bytes().map_err(text)? - before);
            Ok(built.then(pushed))
        };
        let change = move |round| change_one(&changed, round).map_err(text);
        contest.add_ready(ready.map(drop), Contender::new(name, change, run));
    }
    place.floor(contest, &context, &format!("{WALK} > /dev/null"));
    Ok(())
}

pub(crate) fn again(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let context = small(place.ground)?;
    let registry = Rc::new(Registry::start(place.path()).map_err(text)?);
    contest.note(format!("registry: {}", registry.kind));
    for bench in place.benches() {
        let tag = format!("{}/{}:1", registry.address, bench.tool.name());
        let ready = bench.fresh(&place.settings.bases.busybox);
        let ready = ready.and_then(|()| bench.run(&mut bench.build(&context, &tag)));
        let ready = ready.and_then(|_| bench.run(&mut bench.push(&tag, Compression::Gzip)));
        let (keep, name) = (Rc::clone(&registry), bench.tool.name());
        let run = move |_| {
            let _running = &keep;
            bench.run(&mut bench.push(&tag, Compression::Gzip))
        };
        contest.add_ready(ready.map(drop), Contender::new(name, |_| Ok(()), run));
    }
    let run = move |_| timed(|| registry.request("HEAD", "/v2/idpbuilder/manifests/1").map(drop));
    contest.floor(Contender::new("floor", |_| Ok(()), run));
    Ok(())
}

fn timed(work: impl Fn() -> std::io::Result<()>) -> Result<Sample, String> {
    let started = Instant::now();
    work().map_err(text)?;
    Ok(Sample::of_seconds(started.elapsed().as_secs_f64()))
}

/// The name of the Debian base in the registry of the tests.
const DEBIAN: &str = "library/debian";
const DEBIAN_TAG: &str = "bookworm";

pub(crate) fn empty_store(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let registry = first_builds(place, contest, "COPY")?;
    // What stands where a COPY goes is in the layers: to know it, they are read. Tools that keep base images
    // as folders unpack them.
    let manifest =
        document(&registry, &format!("/v2/{DEBIAN}/manifests/{DEBIAN_TAG}")).map_err(text)?;
    let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
    let fetch = |then: &str| {
        let urls = layers.iter().filter_map(|layer| layer["digest"].as_str());
        let get = |digest| {
            format!("curl -s http://{}/v2/{DEBIAN}/blobs/{digest} | {then}", registry.address)
        };
        urls.map(get).collect::<Vec<_>>().join("; ")
    };
    let unpack = format!("rm -rf unpacked; mkdir unpacked; {}", fetch("tar -xz -C unpacked"));
    place.script(contest, "floor, unpacked", place.path(), &unpack);
    place.script(contest, "floor, read", place.path(), &fetch("gzip -d | sha256sum"));
    documents_alone(contest, registry);
    Ok(())
}

pub(crate) fn empty_store_link(place: &Place<'_>, contest: &mut Contest) -> Outcome {
    let registry = first_builds(place, contest, "COPY --link")?;
    documents_alone(contest, registry);
    Ok(())
}

/// Every tool builds with an empty state.
fn first_builds(
    place: &Place<'_>,
    contest: &mut Contest,
    copy: &str,
) -> Result<Rc<Registry>, String> {
    let storage = place.settings.bases.registry()?;
    let registry = Rc::new(Registry::of(place.path(), &storage).map_err(text)?);
    let text_of_file =
        format!("FROM {}/{DEBIAN}:{DEBIAN_TAG}\n{copy} file /file\n", registry.address);
    let context = context(place.path(), &text_of_file)?;
    fs::write(context.join("file"), "content").map_err(text)?;
    settle();
    for first in place.benches() {
        if copy.contains("--link") && first.tool != Tool::Idpbuilder {
            // Buildah refuses it, and docker takes it by a frontend that it would have to fetch.
            continue;
        }
        let (context, second, keep) = (context.clone(), first.clone(), Rc::clone(&registry));
        contest.add(Contender::new(
            first.tool.name(),
            move |round| first.numbered(round).empty(),
            move |round| {
                let (_running, bench) = (&keep, second.numbered(round));
                bench.run(&mut bench.build(&context, "localhost/work:1"))
            },
        ));
    }
    Ok(registry)
}

/// The floor of a build that needs no layer.
fn documents_alone(contest: &mut Contest, registry: Rc<Registry>) {
    let run = move |_| {
        timed(|| {
            let manifest = document(&registry, &format!("/v2/{DEBIAN}/manifests/{DEBIAN_TAG}"))?;
            let config = manifest["config"]["digest"].as_str().unwrap_or_default();
            document(&registry, &format!("/v2/{DEBIAN}/blobs/{config}")).map(drop)
        })
    };
    contest.floor(Contender::new("floor", |_| Ok(()), run));
}

fn document(registry: &Registry, path: &str) -> std::io::Result<serde_json::Value> {
    let answer = registry.request("GET", path)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(answer.len());
    serde_json::from_slice(answer.get(end + 4..).unwrap_or_default()).map_err(std::io::Error::other)
}
