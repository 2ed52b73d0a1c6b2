//! The checks against what BuildKit reports for the corpus.

use serde_json::Value;

use super::*;
use crate::dockerfile::parse;

/// Rules that the parser finds by itself.
const FOUND_HERE: &[&str] = &[
    "StageNameCasing",
    "FromAsCasing",
    "NoEmptyContinuation",
    "ConsistentInstructionCasing",
    "DuplicateStageName",
    "ReservedStageName",
    "JSONArgsRecommended",
    "MaintainerDeprecated",
    "MultipleInstructionsDisallowed",
    "LegacyKeyValueFormat",
    "InvalidDefinitionDescription",
];

type Told = (String, String, Vec<usize>);

fn cases() -> Vec<(String, Value)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/cases");
    let read = |path: std::path::PathBuf| {
        let case = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        (path.file_name().unwrap().to_string_lossy().into_owned(), case)
    };
    let mut cases: Vec<(String, Value)> =
        std::fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap().path())).collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    cases
}

/// What BuildKit told: from the list of warnings, or from the text of a check.
fn expected(case: &Value) -> Vec<Told> {
    if let Some(report) = case["expect"]["report"].as_str() {
        return report.split("\nWARNING: ").skip(1).map(reported).collect();
    }
    let listed = case["expect"]["warnings"].as_array().cloned().unwrap_or_default();
    let told = |warning: &Value| {
        let text = |key: &str| warning[key].as_str().unwrap().to_owned();
        let lines = serde_json::from_value(warning["lines"].clone()).unwrap_or_default();
        (text("rule"), text("message"), lines)
    };
    listed.iter().map(told).collect()
}

fn reported(text: &str) -> Told {
    let rule = text.split(" - ").next().unwrap().to_owned();
    let message = text.lines().nth(1).unwrap().to_owned();
    let marked = text.lines().filter(|line| line.contains("| >>> "));
    let lines = marked.map(|line| line.split('|').next().unwrap().trim().parse().unwrap());
    (rule, message, lines.collect())
}

/// What is told here, with every stage built unless the case asks for one.
fn told(case: &Value) -> Vec<Told> {
    let warnings = match parse(case["dockerfile"].as_str().unwrap()) {
        Err(error) => error.warnings,
        Ok(file) => {
            let options = match case["args"]["BUILDKIT_DOCKERFILE_CHECK"].as_str() {
                Some(text) => CheckOptions::parse(text),
                None => CheckOptions::of(&file.directives),
            };
            let Ok(options) = options else { return Vec::new() };
            let built: Vec<usize> = match case["target"].as_str() {
                None if case["call"] == "lint" => (0..file.stages.len()).collect(),
                None => vec![file.stages.len() - 1],
                Some(name) => {
                    let named = |stage: &crate::dockerfile::ast::Stage| {
                        stage.name.as_deref() == Some(&name.to_lowercase())
                    };
                    file.stages.iter().position(named).into_iter().collect()
                }
            };
            options.keep(&file, file.warnings_of(&built))
        }
    };
    let line_list =
        |warning: &Warning| (warning.location.lines.0..=warning.location.lines.1).collect();
    warnings.iter().map(|w| (w.rule.to_owned(), w.message.clone(), line_list(w))).collect()
}

#[test]
fn the_checks_of_the_corpus_are_found() {
    let mut wrong = Vec::new();
    let mut found = std::collections::BTreeSet::new();
    for (name, case) in cases() {
        // Its base image brings a SHELL, which no parser knows of.
        if name.contains("shell-inherited") {
            continue;
        }
        let ours = |told: &Told| FOUND_HERE.contains(&told.0.as_str());
        let mut expected: Vec<Told> = expected(&case).into_iter().filter(ours).collect();
        let mut told = told(&case);
        expected.sort();
        told.sort();
        if told != expected {
            wrong.push(format!("{name}: {told:?}, not {expected:?}"));
        }
        found.extend(expected.into_iter().map(|told| told.0));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(found.len(), FOUND_HERE.len(), "every rule is in the corpus: {found:?}");
}

#[test]
fn options_are_read_as_in_buildkit() {
    let read = |text: &str| CheckOptions::parse(text);
    let options = read("skip=A, B ;error=true;experimental=all").unwrap();
    assert_eq!(options.skip, Selection::Named(vec!["A".to_owned(), "B".to_owned()]));
    assert!(options.error && options.experimental == Selection::All);
    assert!(read("SKIP=all").unwrap().skip.contains("Any"));
    assert_eq!(read(" ").unwrap(), CheckOptions::default());
    for (text, error) in [
        ("nonsense", "invalid check option \"nonsense\""),
        ("a=b", "invalid check option \"a\""),
        (
            "error=maybe",
            "failed to parse check option \"error=maybe\": strconv.ParseBool: parsing \"maybe\": invalid syntax",
        ),
    ] {
        assert_eq!(read(text).unwrap_err(), error);
    }
}

#[test]
fn a_comment_above_an_instruction_silences_it_alone() {
    let file = parse("FROM x\n# check=skip=A,B\nRUN y\nRUN z\n").unwrap();
    let [first, second] = file.stages[0].instructions.as_slice() else { panic!("two RUNs") };
    assert!(!applies("A", first) && applies("C", first) && applies("A", second));
    let options = CheckOptions::default();
    assert!(!options.applies("B", Some(first)) && options.applies("B", None));
    assert!(
        !options.applies("InvalidDefinitionDescription", None),
        "experimental rules are asked for"
    );
}

#[test]
fn a_shell_of_a_stage_is_inherited() {
    let told = |text: &str| {
        let file = parse(text).unwrap();
        file.warnings.iter().filter(|w| w.rule == "JSONArgsRecommended").count()
    };
    assert_eq!(told("FROM x AS a\nSHELL [\"s\"]\nFROM a\nCMD b\n"), 0);
    assert_eq!(told("FROM x AS a\nFROM a\nCMD b\nSHELL [\"s\"]\n"), 1);
}

#[test]
fn every_rule_has_a_page() {
    let page = |rule| Warning { rule, message: String::new(), location: Location::default() }.url();
    assert_eq!(
        page("JSONArgsRecommended"),
        "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"
    );
    assert_eq!(
        page("FromPlatformFlagConstDisallowed"),
        "https://docs.docker.com/go/dockerfile/rule/from-platform-flag-const-disallowed/"
    );
}
