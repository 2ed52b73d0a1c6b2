//! Laws that hold for any file: lines of the corpus, shuffled together.

use std::collections::HashSet;
use std::fs;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value;

use crate::dockerfile::{Lowered, lower, lower_for_check};

use crate::dockerfile::lower::tests::{layers, lowered, options};

/// Every line of every Dockerfile of the corpus, each once.
static LINES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/cases");
    let mut lines = HashSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let case: Value =
            serde_json::from_slice(&fs::read(entry.unwrap().path()).unwrap()).unwrap();
        let text = case["dockerfile"].as_str().unwrap().to_owned();
        lines.extend(text.lines().filter(|line| line.len() < 200).map(str::to_owned));
    }
    let mut lines: Vec<String> = lines.into_iter().collect();
    lines.sort();
    lines
});

/// Those that are a build on their own.
static GOOD_LINES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let builds = |line: &&String| {
        !line.trim().is_empty()
            && lowered(&format!("FROM busybox\n{line}\n"), &options(), lower).is_ok()
    };
    LINES.iter().filter(builds).cloned().collect()
});

/// Stages that exist, so that shuffled lines find some.
const STAGES: &[&str] =
    &["FROM busybox AS a", "FROM scratch AS b", "FROM onbuild", "FROM a AS c", "FROM b"];

fn file() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        40 => (0..GOOD_LINES.len()).prop_map(|index| GOOD_LINES[index].clone()),
        4 => prop::sample::select(STAGES).prop_map(str::to_owned),
        1 => (0..LINES.len()).prop_map(|index| LINES[index].clone()),
        1 => "(ENV|ARG|RUN|COPY|ADD|WORKDIR|EXPOSE|VOLUME|USER|STOPSIGNAL) [ -~]{1,20}",
    ];
    prop::collection::vec(line, 0..8)
        .prop_map(|lines| format!("FROM busybox\n{}\n", lines.join("\n")))
}

fn used_ops(done: &Lowered) -> usize {
    let (mut seen, mut open) = (HashSet::new(), vec![done.result]);
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            open.extend(done.graph.node(id).op.inputs());
        }
    }
    seen.len()
}

#[test]
fn the_laws_are_tried_on_files_that_build() {
    assert!(GOOD_LINES.len() > 300, "{} lines build", GOOD_LINES.len());
    let text = format!("FROM busybox\n{}\n", GOOD_LINES[100..110].join("\n"));
    assert!(lowered(&text, &options(), lower).is_ok(), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_file_lowers_or_is_refused_and_says_the_same_twice(text in file()) {
        let outcome = lowered(&text, &options(), lower);
        let again = lowered(&text, &options(), lower);
        prop_assert_eq!(format!("{outcome:?}"), format!("{again:?}"));
        let _checked = lowered(&text, &options(), lower_for_check);
        if let Ok(done) = outcome {
            let new = &done.config.history[done.history_below..];
            let filled = new.iter().filter(|entry| !entry.empty_layer).count();
            prop_assert_eq!(layers(&done), filled, "layers and history agree");
            prop_assert_eq!(used_ops(&done), done.graph.len(), "every op is needed");
        }
    }
}

#[test]
fn long_chains_of_stages_need_no_stack() {
    const STAGES_MANY: usize = 2000;
    let copies =
        (0..STAGES_MANY).map(|n| format!("FROM scratch AS s{n}\nCOPY --from=s{} / /\n", n + 1));
    let forward = copies.collect::<String>() + &format!("FROM scratch AS s{STAGES_MANY}\n");
    let mut first = options();
    first.target = Some("s0".to_owned());
    let error = lowered(&forward, &first, lower).unwrap_err();
    assert!(error.message.starts_with("cannot copy from stage"), "{}", error.message);
    let bases = (0..STAGES_MANY).map(|n| format!("FROM s{n} AS s{}\nLABEL l{n}=x\n", n + 1));
    let heirs = "FROM scratch AS s0\n".to_owned() + &bases.collect::<String>();
    let done = lowered(&heirs, &options(), lower).unwrap();
    assert_eq!(done.config.config.labels.len(), STAGES_MANY);
}
