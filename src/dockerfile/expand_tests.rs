//! Expansion against tables whose truth is BuildKit's.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn table(name: &str) -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn variables(table: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(table["env"].clone()).unwrap()
}

fn escape_of(row: &Value) -> char {
    row["escape"].as_str().and_then(|text| text.chars().next()).unwrap_or('\\')
}

#[test]
fn every_word_expands_as_in_buildkit() {
    let table = table("env.json");
    let variables = variables(&table);
    let env = |name: &str| variables.get(name).cloned();
    let mut wrong = Vec::new();
    for row in table["rows"].as_array().unwrap() {
        let word = row["word"].as_str().unwrap();
        let (text, unset) = match expand(word, escape_of(row), &env) {
            Ok(expanded) => (Ok(expanded.text), expanded.unset),
            Err(error) => (Err(error.to_string()), Vec::new()),
        };
        let expected = match row["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(row["result"].as_str().unwrap().to_owned()),
        };
        let mut expected_unset: Vec<String> =
            serde_json::from_value(row["unmatched"].clone()).unwrap_or_default();
        let mut unset = unset;
        unset.sort();
        expected_unset.sort();
        if text != expected || unset != expected_unset {
            wrong.push(format!("{word}: {text:?} {unset:?}, not {expected:?} {expected_unset:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_text_splits_as_in_buildkit() {
    let table = table("words.json");
    let variables = variables(&table);
    let env = |name: &str| variables.get(name).cloned();
    let mut wrong = Vec::new();
    for row in table["rows"].as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        let words = expand_words(text, escape_of(row), &env).map_err(|error| error.to_string());
        let expected = match row["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(serde_json::from_value(row["words"].clone()).unwrap()),
        };
        if words != expected {
            wrong.push(format!("{text}: {words:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bodies_keep_quotes_and_lose_escapes() {
    let env = |name: &str| (name == "a").then(|| "1".to_owned());
    for (body, expected) in [
        ("'$a' \"$a\"", "'1' \"1\""),
        ("\\$a \\x `$a", "$a x `1"),
        ("a\\\nb", "a\nb"),
        ("it's", "it's"),
        ("x << y", "x << y"),
    ] {
        assert_eq!(expand_body(body, &env).unwrap().text, expected, "{body}");
    }
}

#[test]
fn replacements_follow_go_s_templates() {
    let env = |name: &str| (name == "x").then(|| "aXbXc".to_owned());
    for (word, expected) in [
        ("${x//X/'$0$0'}", "aXXbXXc"),
        ("${x//X/'${0}-$$'}", "aX-$bX-$c"),
        ("${x//X/'$'}", "a$b$c"),
        ("${x//X/'$n'}", "abc"),
        ("${x///-}", "-a-X-b-X-c-"),
        ("${x//b*/-}", "aX-"),
    ] {
        assert_eq!(expand(word, '\\', &env).unwrap().text, expected, "{word}");
    }
}

#[test]
fn doubling_a_value_sixty_times_is_refused() {
    let mut value = "aa".to_owned();
    let mut refused = None;
    for _ in 0..60 {
        match expand("$A$A", '\\', &|_| Some(value.clone())) {
            Ok(expanded) => value = expanded.text,
            Err(error) => {
                refused = Some(error.reason);
                break;
            }
        }
    }
    assert_eq!(
        refused.unwrap(),
        format!("the result is longer than {} bytes", RESULT_BYTES_MAX + 4)
    );
}

#[test]
fn values_thrown_away_count_too() {
    let value = "a".repeat(RESULT_BYTES_MAX);
    let word = "${A:+}${B:-$A}${A:+${B+$A}}".repeat(100);
    let error =
        expand(&word.replace(":-$A", ":+$A"), '\\', &|name| (name == "A").then(|| value.clone()));
    assert!(error.unwrap_err().reason.contains("more than"), "work is bounded");
    let error = expand(&"${A:+}".repeat(100), '\\', &|_| Some(value.clone()));
    assert!(error.unwrap_err().reason.contains("more than"), "looking at values counts");
}

#[test]
fn deep_nesting_is_refused_before_the_stack_is() {
    for deep in [101, 10_000, 200_000] {
        let word = "${A:-".repeat(deep) + "x" + &"}".repeat(deep);
        let error = expand(&word, '\\', &|_| None).unwrap_err();
        assert!(error.reason.contains("nested") || error.reason.contains("missing"), "{error:?}");
        let quoted = "\"${A:-".repeat(deep);
        assert!(expand(&quoted, '\\', &|_| None).is_err());
    }
    let word = "${A:-".repeat(100) + "x" + &"}".repeat(100);
    assert_eq!(expand(&word, '\\', &|_| None).unwrap().text, "x");
}

#[test]
fn patterns_cannot_be_made_to_take_forever() {
    let value = "a".repeat(200_000);
    let word = format!("${{A//{}b/x}}", "*a".repeat(500));
    let error = expand(&word, '\\', &|_| Some(value.clone())).unwrap_err();
    assert!(error.reason.contains("too long"), "{}", error.reason);
    // A long pattern costs what it matches, not its length at every character.
    let word = format!("${{A//b{}/x}}", "a".repeat(200_000));
    assert_eq!(expand(&word, '\\', &|_| Some(value.clone())).unwrap().text, value);
}

proptest! {
    #[test]
    fn nothing_panics_and_text_without_signs_stays(word in "[$'\"\\\\{}:/#%?*+<a-c \n-]{0,40}") {
        let env = |name: &str| (name == "a").then(|| "b*c".to_owned());
        drop(expand(&word, '\\', &env));
        drop(expand_words(&word, '`', &env));
        drop(expand_body(&word, &env));
        if !word.contains(['$', '\'', '"', '\\']) {
            prop_assert_eq!(expand(&word, '\\', &env).unwrap().text, word);
        }
    }
}
