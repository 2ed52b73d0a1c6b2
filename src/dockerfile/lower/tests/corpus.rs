//! What a real BuildKit made of each case, as far as no op is run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::dockerfile::{ContextKind, LowerOptions, Warning, lower, lower_for_check, parse};

use crate::dockerfile::lower::tests::{layers, lowered, options};

/// What stands for the address of the corpus' web server.
const HTTP: &str = "http://127.0.0.1:1/case";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    name: String,
    dockerfile: String,
    #[serde(default)]
    args: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    build_contexts: BTreeMap<String, Value>,
    target: Option<String>,
    platform: Option<String>,
    dockerignore: Option<String>,
    dockerfile_dockerignore: Option<String>,
    call: Option<String>,
    #[serde(default)]
    volatile: Vec<String>,
    expect: Expect,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Expect {
    #[serde(default)]
    ok: bool,
    error: Option<String>,
    error_core: Option<String>,
    config: Option<Value>,
    author: Option<String>,
    platform: Option<String>,
    layers: Option<usize>,
    history: Option<Vec<HistoryLine>>,
    #[serde(default)]
    images: Vec<Expect>,
    #[serde(default)]
    warnings: Vec<WarningLine>,
    report: Option<String>,
    snippet: Option<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct HistoryLine {
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    empty_layer: bool,
    author: Option<String>,
    comment: Option<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct WarningLine {
    lines: Vec<usize>,
    rule: String,
    message: String,
}

#[derive(Deserialize)]
struct Table {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    setup: String,
    instruction: String,
    created_by: Vec<String>,
    empty_layer: Vec<bool>,
    #[serde(default)]
    args: BTreeMap<String, String>,
}

/// How a failure of the corpus is judged here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    /// Lowering must fail with this text.
    Lowering,
    /// Only doing it fails: files that are missing, processes, sources, entitlements.
    Doing,
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn case_options(case: &Case, platform: &str) -> LowerOptions {
    let mut options = options();
    options.args.clone_from(&case.args);
    options.labels.clone_from(&case.labels);
    options.target.clone_from(&case.target);
    options.platform = platform.parse().unwrap();
    options.ignore = case.dockerfile_dockerignore.clone().or(case.dockerignore.clone());
    for (name, value) in &case.build_contexts {
        let kind = if value.is_string() { ContextKind::Image } else { ContextKind::Files };
        options.named_contexts.insert(name.clone(), kind);
    }
    options
}

fn warning_lines(warnings: &[Warning]) -> Vec<WarningLine> {
    let mut lines: Vec<WarningLine> = warnings
        .iter()
        .map(|warning| WarningLine {
            lines: (warning.location.lines.0..=warning.location.lines.1).collect(),
            rule: warning.rule.to_owned(),
            message: warning.message.clone(),
        })
        .collect();
    lines.sort();
    lines
}

/// What a report of `--check` says, without its snippets: rule, message and the marked lines.
fn report_lines(report: &str) -> Vec<WarningLine> {
    let mut found: Vec<WarningLine> = Vec::new();
    let mut lines = report.lines();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("WARNING: ") {
            let rule = rest.split(" - ").next().unwrap().to_owned();
            let message = lines.next().unwrap().to_owned();
            found.push(WarningLine { lines: Vec::new(), rule, message });
        } else if let Some((number, _)) = line.split_once(" | >>>") {
            found.last_mut().unwrap().lines.push(number.trim().parse().unwrap());
        }
    }
    found
}

/// The part of an error that any builder should say.
fn core(error: &str) -> &str {
    const WRAPS: [&str; 4] = [
        "failed to solve: ",
        "failed to compute cache key: ",
        "failed to load cache key: ",
        "failed to calculate checksum of ref ",
    ];
    let mut rest = error;
    loop {
        let before = rest;
        for wrap in WRAPS {
            rest = rest.strip_prefix(wrap).unwrap_or(rest);
        }
        if let Some(line) = rest.strip_prefix("dockerfile parse error on line ") {
            rest = line.split_once(": ").unwrap().1;
        }
        rest = rest.strip_prefix("REF: ").unwrap_or(rest);
        if rest == before {
            return rest;
        }
    }
}

/// Failures that need a file system, a process or a server are not lowering's.
fn judged(case: &Case) -> Judged {
    let error = case.expect.error.as_deref().unwrap_or_default();
    let doing = [
        "did not complete successfully",
        "failed to compute cache key",
        "failed to load cache key",
        "failed to load LLB",
        "cannot replace to directory",
        "cannot copy to non-directory",
        "not a directory",
        "no such file or directory",
        "invalid user index",
        "invalid includepatterns",
        "digest mismatch",
        "unexpected EOF",
        "no SSH key",
        "secret a: not found",
    ];
    if doing.iter().any(|part| error.contains(part)) { Judged::Doing } else { Judged::Lowering }
}

fn cases() -> Vec<Case> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(corpus().join("cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
}

fn compare_image(case: &Case, expect: &Expect, platform: &str) -> Result<(), String> {
    let text = case.dockerfile.replace("@HTTP@", HTTP);
    let done = lowered(&text, &case_options(case, platform), lower)
        .map_err(|error| format!("failed: {}", error.message))?;
    let config = serde_json::to_value(&done.config.config).unwrap();
    let clean = |value: &Value| value.to_string().replace(HTTP, "@HTTP@");
    let wanted = expect.config.as_ref().unwrap();
    if clean(&config) != clean(wanted) {
        return Err(format!("config: want {wanted}, got {config}"));
    }
    if done.config.author != expect.author {
        return Err(format!("author: got {:?}", done.config.author));
    }
    let history: Vec<HistoryLine> = done.config.history[done.history_below..]
        .iter()
        .map(|entry| HistoryLine {
            created_by: entry.created_by.replace(HTTP, "@HTTP@"),
            empty_layer: entry.empty_layer,
            author: entry.author.clone(),
            comment: entry.comment.clone(),
        })
        .collect();
    let volatile = case.volatile.iter().any(|key| key == "history");
    if Some(&history) != expect.history.as_ref() && !volatile {
        return Err(format!("history: want {:?}, got {history:?}", expect.history));
    }
    let filled =
        done.config.history[done.history_below..].iter().filter(|entry| !entry.empty_layer);
    let (layers, filled) = (layers(&done), filled.count());
    if Some(layers) != expect.layers || layers != filled {
        return Err(format!(
            "layers: want {:?}, got {layers}, history has {filled}",
            expect.layers
        ));
    }
    let got = done.config.platform().to_string();
    if Some(&got) != expect.platform.as_ref() {
        return Err(format!("platform: want {:?}, got {got}", expect.platform));
    }
    compare_warnings(&case.expect.warnings, &done.warnings)
}

fn compare_warnings(wanted: &[WarningLine], got: &[Warning]) -> Result<(), String> {
    // A platform that is asked for twice is told by who asks, not by lowering one of them.
    let mut wanted: Vec<WarningLine> =
        wanted.iter().filter(|warning| !warning.rule.is_empty()).cloned().collect();
    wanted.sort();
    let got = warning_lines(got);
    if got == wanted { Ok(()) } else { Err(format!("warnings: want {wanted:?}, got {got:?}")) }
}

fn compare_report(case: &Case) -> Result<(), String> {
    let platform = case.platform.as_deref().unwrap_or("linux/amd64");
    let warnings = match lowered(&case.dockerfile, &case_options(case, platform), lower_for_check) {
        Ok(done) => done.warnings,
        Err(error) => error.warnings,
    };
    let mut sorted = warnings;
    sorted.sort_by_key(|warning| warning.location.lines.0);
    let got: Vec<WarningLine> =
        sorted.iter().flat_map(|warning| warning_lines(std::slice::from_ref(warning))).collect();
    let wanted = report_lines(case.expect.report.as_deref().unwrap_or_default());
    if got == wanted { Ok(()) } else { Err(format!("report: want {wanted:?}, got {got:?}")) }
}

fn compare_failure(case: &Case) -> Result<(), String> {
    let platform = case.platform.as_deref().unwrap_or("linux/amd64");
    let text = case.dockerfile.replace("@HTTP@", HTTP);
    let outcome = lowered(&text, &case_options(case, platform), lower);
    let error = case.expect.error.as_deref().unwrap();
    if judged(case) == Judged::Doing {
        let done = outcome.map_err(|error| format!("failed too early: {}", error.message))?;
        return compare_warnings(&case.expect.warnings, &done.warnings);
    }
    let wanted = case.expect.error_core.as_deref().unwrap_or_else(|| core(error));
    match outcome {
        Ok(_) => Err(format!("succeeded, want {wanted:?}")),
        Err(error) if !error.message.contains(wanted) => {
            Err(format!("error: want {wanted:?}, got {:?}", error.message))
        }
        Err(error) => {
            let marked = case.expect.snippet.as_deref().map(marked_lines);
            let place = error.location.map(|place| (place.lines.0..=place.lines.1).collect());
            // BuildKit forgets the place of some errors; the parser's places are the parser's tests' business.
            if marked.is_some() && marked != place && parse(&text).is_ok() {
                return Err(format!("place: want {marked:?}, got {place:?}"));
            }
            compare_warnings(&case.expect.warnings, &error.warnings)
        }
    }
}

/// The numbers of the lines that a snippet points at.
fn marked_lines(snippet: &str) -> Vec<usize> {
    let marked = snippet.lines().filter_map(|line| line.split_once(" | >>>"));
    marked.map(|(number, _)| number.trim().parse().unwrap()).collect()
}

#[test]
fn every_case_of_the_corpus_lowers_to_what_buildkit_made() {
    let mut wrong = Vec::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for case in cases() {
        let (kind, outcome) = if case.call.is_some() {
            ("report", compare_report(&case))
        } else if !case.expect.ok {
            let kind = match judged(&case) {
                Judged::Lowering => "failure of lowering",
                Judged::Doing => "failure of doing",
            };
            (kind, compare_failure(&case))
        } else if case.expect.images.is_empty() {
            let platform = case.platform.as_deref().unwrap_or("linux/amd64");
            ("image", compare_image(&case, &case.expect, platform))
        } else {
            let platforms = case.platform.as_deref().unwrap_or("linux/amd64").split(',');
            let mut each = platforms.zip(&case.expect.images);
            ("images", each.try_for_each(|(one, image)| compare_image(&case, image, one)))
        };
        *counts.entry(kind).or_default() += 1;
        if let Err(difference) = outcome {
            wrong.push(format!("{}: {difference}", case.name));
        }
    }
    println!("{counts:?}");
    assert_eq!(counts.values().sum::<usize>(), 610, "the whole corpus is judged");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn history_says_what_buildkit_says() {
    let text = fs::read(corpus().join("history.json")).unwrap();
    let table: Table = serde_json::from_slice(&text).unwrap();
    let mut wrong = Vec::new();
    for row in &table.rows {
        let mut options = options();
        options.args.clone_from(&row.args);
        let above = |text: &str| {
            let done = lowered(text, &options, lower).map_err(|error| error.message)?;
            Ok(done.config.history[done.history_below..].to_vec())
        };
        let outcome: Result<_, String> = above(&row.setup).and_then(|before| {
            Ok((before.len(), above(&format!("{}{}", row.setup, row.instruction))?))
        });
        let Ok((before, after)) = outcome else {
            wrong.push(format!("{:?}: {outcome:?}", row.instruction));
            continue;
        };
        let created_by: Vec<&String> =
            after[before..].iter().map(|entry| &entry.created_by).collect();
        let empty: Vec<bool> = after[before..].iter().map(|entry| entry.empty_layer).collect();
        if created_by != row.created_by.iter().collect::<Vec<_>>() || empty != row.empty_layer {
            wrong.push(format!("{:?}: got {created_by:?} {empty:?}", row.instruction));
        }
    }
    println!("{} rows", table.rows.len());
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
