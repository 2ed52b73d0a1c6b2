//! The language alone, in this process: no file, no store. Only idpbuilder is measured.

use std::{collections::BTreeMap, collections::HashMap, hint::black_box, time::Instant};

use idpbuilder::{
    dockerfile::{self, LowerOptions, Lowering, ignore::IgnoreFile, pattern::Verdict},
    oci::{ImageConfig, Platform},
};

use crate::{
    cases::Place,
    contest::{Contender, Contest},
    measure::Sample,
    tools::Tool,
};

/// Lines of the Dockerfile.
const LINES: usize = 1000;
const PATTERNS: usize = 1000;
const PATHS: usize = 20_000;

/// Parsing and lowering of a Dockerfile; what was aimed at is 5 ms.
pub(crate) fn parse_and_lower(_: &Place<'_>, contest: &mut Contest) -> Result<(), String> {
    let text = dockerfile_of(LINES);
    contest.add(in_process(move || lower(&text)));
    Ok(())
}

/// An ignore file against the paths of a walk, directories first; what was aimed at is 50 ms.
pub(crate) fn ignore(_: &Place<'_>, contest: &mut Contest) -> Result<(), String> {
    let patterns: String = (0..PATTERNS).map(pattern).collect();
    contest.add(in_process(move || {
        let ignored = IgnoreFile::parse(&patterns).map_err(|error| error.to_string())?;
        let mut excluded = 0;
        for directory in 0..PATHS / 100 {
            let above = format!("package-{}", directory % 10);
            let top = ignored.judge(&Verdict::default(), above.as_bytes());
            let folder = format!("{above}/module-{directory}");
            let verdict = ignored.judge(&top, folder.as_bytes());
            for file in 0..100 {
                let path = format!("{folder}/source-{file}.rs");
                excluded += usize::from(ignored.judge(&verdict, path.as_bytes()).matched);
            }
        }
        black_box(excluded);
        Ok(())
    }));
    Ok(())
}

fn in_process(work: impl Fn() -> Result<(), String> + 'static) -> Contender {
    Contender::new(
        Tool::Idpbuilder.name(),
        |_| Ok(()),
        move |_| {
            let started = Instant::now();
            work()?;
            let seconds = started.elapsed().as_secs_f64();
            Ok(Sample { cpu_seconds: seconds, ..Sample::of_seconds(seconds) })
        },
    )
}

/// Stages of every kind of instruction, with variables, continuations and heredocs.
fn dockerfile_of(lines: usize) -> String {
    let mut text = String::from("ARG BASE=busybox\nFROM ${BASE} AS stage0\n");
    let mut count = 2;
    let mut stage = 0;
    while count < lines {
        let more = match count % 100 {
            90..100 => {
                stage += 1;
                format!(
                    "FROM ${{BASE}} AS stage{stage}\nCOPY --from=stage{} /made /made\n",
                    stage - 1
                )
            }
            _ => format!(
                "ENV NAME{count}=\"${{NAME{}:-none}} value\"\nRUN --mount=type=cache,target=/cache \\\n    make \
                 $NAME{count}\nCOPY --chown=1:1 src/{count}/*.c /src/\nLABEL l{count}=x m=\"$NAME{count}\"\n\
                 COPY <<EOF /file{count}\nname $NAME{count}\nEOF\n",
                count.saturating_sub(8)
            ),
        };
        count += more.lines().count();
        text.push_str(&more);
    }
    text
}

fn lower(text: &str) -> Result<(), String> {
    let parsed = dockerfile::parse(text).map_err(|error| error.to_string())?;
    let options = LowerOptions {
        target: None,
        args: BTreeMap::new(),
        labels: BTreeMap::new(),
        platform: Platform::host(),
        build_platform: Platform::host(),
        named_contexts: BTreeMap::new(),
        ignore: None,
    };
    let mut configs = HashMap::new();
    loop {
        match dockerfile::lower(&parsed, &options, &configs).map_err(|error| error.to_string())? {
            Lowering::Done(lowered) => {
                black_box(lowered);
                return Ok(());
            }
            Lowering::Needs(requests) => {
                configs.extend(requests.into_iter().map(|one| (one, ImageConfig::default())));
            }
        }
    }
}

/// What ignore files are made of.
fn pattern(number: usize) -> String {
    match number % 5 {
        0 => format!("**/generated-{number}/**\n"),
        1 => format!("package-{}/build-{number}\n", number % 10),
        2 => format!("**/*.tmp{number}\n"),
        3 => format!("module-{number}/*/target\n"),
        _ => format!("!package-{}/module-{number}/keep.rs\n", number % 10),
    }
}
