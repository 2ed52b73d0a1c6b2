//! The parser where no table goes: places, limits, printing, anything at all.

use proptest::prelude::*;

use super::table_tests::{cases, table};
use super::*;
use crate::dockerfile::ast::CommandLine;

#[test]
fn places_are_those_of_the_text() {
    let text = "\u{feff}# escape=`\r\n\r\nARG a\r\n  # c\r\nFROM `\r\n\r\n  x\r\n\tCOPY <<A <<B /\r\n1\r\nA\r\nB\r\n\r\nRUN y";
    let file = parse(text).unwrap();
    let place = |instruction: &Instruction| {
        (text.get(instruction.location.span.clone()).unwrap(), instruction.location.lines)
    };
    assert_eq!(place(&file.global_args[0]), ("ARG a", (3, 3)));
    assert_eq!(place(&file.stages[0].from), ("FROM `\r\n\r\n  x", (5, 7)));
    assert_eq!(file.stages[0].from.comments, ["c"]);
    let [copy, run] = file.stages[0].instructions.as_slice() else { panic!("two instructions") };
    assert_eq!(place(copy), ("COPY <<A <<B /\r\n1\r\nA\r\nB", (8, 11)));
    assert_eq!(place(run), ("RUN y", (13, 13)));
}

#[test]
fn errors_point_at_the_line_and_carry_what_was_noticed_before() {
    let error = parse("FROM scratch AS Up\nMAINTAINER x\nENV a b\nCOPPY x\n").unwrap_err();
    assert_eq!(
        error.message,
        "dockerfile parse error on line 4: unknown instruction: COPPY (did you mean COPY?)"
    );
    assert_eq!(error.label.as_deref(), Some("unknown instruction: COPPY (did you mean COPY?)"));
    assert_eq!(error.location.unwrap().lines, (4, 4));
    let rules: Vec<&str> = error.warnings.iter().map(|warning| warning.rule).collect();
    assert_eq!(rules, ["StageNameCasing", "MaintainerDeprecated"]);
    let skipped =
        parse("# check=skip=StageNameCasing\nFROM x AS Up\nMAINTAINER x\nCOPPY\n").unwrap_err();
    let rules: Vec<&str> = skipped.warnings.iter().map(|warning| warning.rule).collect();
    assert_eq!(rules, ["MaintainerDeprecated"]);
}

#[test]
fn files_without_stages_are_refused() {
    for (text, message) in [
        ("", "the Dockerfile cannot be empty"),
        ("# only\n", "file with no instructions"),
        ("ARG a\n", "dockerfile contains no stages to build"),
        ("RUN a\nFROM b\n", "no build stage in current context"),
    ] {
        assert_eq!(parse(text).unwrap_err().message, message);
    }
}

#[test]
fn comments_belong_to_the_instruction_directly_below() {
    let file = parse("# check=skip=x\n# a\n#\n# b\n #  c\nFROM x\n# d\n\nRUN y\n").unwrap();
    assert_eq!(file.stages[0].from.comments, ["b", "c"]);
    assert_eq!(file.stages[0].instructions[0].comments, [""; 0]);
}

#[test]
fn triggers_are_parsed_with_the_usual_escape() {
    let file =
        parse("# escape=`\nFROM x\nONBUILD RUN <<-A cat <<B\n\t1\n\tA\n2\nB\nRUN z").unwrap();
    let Kind::OnBuild { trigger, heredocs } = &file.stages[0].instructions[0].kind else {
        panic!("a trigger")
    };
    let parsed = parse_trigger(trigger, heredocs).unwrap();
    let Kind::Run(run) = &parsed.kind else { panic!("a RUN") };
    assert_eq!(run.command, CommandLine::Shell("<<-A cat <<B".to_owned()));
    let bodies: Vec<&str> = run.heredocs.iter().map(|body| body.content.as_str()).collect();
    assert_eq!(bodies, ["\t1\n", "2\n"]);
    let whole = format!("{trigger}\n\t1\nA\n2\nB");
    assert_eq!(parse_trigger(&whole, &[]).unwrap(), parsed);
    let continued = parse_trigger("run a \\\n b", &[]).unwrap();
    assert_eq!(continued.original, "run a  b");
    for (text, message) in [
        ("ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("from x", "FROM isn't allowed as an ONBUILD trigger"),
        ("MAINTAINER x", "MAINTAINER isn't allowed as an ONBUILD trigger"),
        (
            "FOO x",
            "dockerfile parse error on line 1: unknown instruction: FOO (did you mean FROM?)",
        ),
        ("", "the trigger is empty"),
        ("RUN x\nRUN y", "a trigger is one instruction"),
        ("COPY <<A /", "unterminated heredoc"),
        ("ENV a", "ENV must have two arguments"),
    ] {
        assert_eq!(parse_trigger(text, &[]).unwrap_err().message, message, "{text}");
    }
}

#[test]
fn what_is_too_large_is_refused() {
    let too_long = format!("FROM x\nRUN {}\nRUN y", "a".repeat(65_532));
    let error = parse(&too_long).unwrap_err();
    assert_eq!(error.message, "dockerfile line greater than max allowed size of 65535");
    assert_eq!(error.location.unwrap().lines, (2, 2));
    assert!(parse(&format!("FROM x\nRUN {}\nRUN y", "a".repeat(65_531))).is_ok());

    let huge = format!("FROM x\n{}", "#\n".repeat(DOCKERFILE_BYTES_MAX / 2));
    assert!(parse(&huge).unwrap_err().message.contains("at most 16777216 are read"));

    let many = format!("FROM x\n{}", "USER y\n".repeat(INSTRUCTIONS_MAX));
    assert!(parse(&many).unwrap_err().message.contains("more than 100000 instructions"));

    let body = format!("{}\n", "b".repeat(60_000)).repeat(20);
    let again = format!("FROM x\nCOPY{} /\n{}{body}A\n", " <<A".repeat(100), "A\n".repeat(99));
    assert!(parse(&again).unwrap_err().message.ends_with("more than 16777216 bytes of heredocs"));

    let lines = format!("FROM x\nRUN a{}", " \\\n b".repeat(10_000));
    assert_eq!(parse(&lines).unwrap().stages[0].instructions[0].location.lines, (2, 10_002));
}

#[test]
fn nesting_of_any_kind_does_not_reach_the_stack() {
    for text in [
        format!("FROM x\nONBUILD {}RUN y", "ONBUILD ".repeat(5_000)),
        format!("FROM x\nRUN {}", "[".repeat(60_000)),
        format!("FROM x\nRUN <<A {}\nA\n", "${a:-".repeat(12_000)),
        format!("FROM x\nCOPY {} /\n", "<<".repeat(30_000)),
    ] {
        drop(parse(&text));
    }
}

#[test]
fn directives_end_at_the_first_other_line() {
    let text = "# check=skip=a;error=true\n# Syntax = a/b:1  \n# escape=`\nFROM x\n";
    let directives = parse(text).unwrap().directives;
    assert_eq!(directives.syntax.as_deref(), Some("a/b:1"));
    assert_eq!(directives.escape, '`');
    let (check, location) = directives.check.unwrap();
    assert_eq!((check.as_str(), location.lines), ("skip=a;error=true", (1, 1)));
    assert_eq!(parse("# x\n# syntax=a\nFROM x\n").unwrap().directives.syntax, None);
}

/// What a file says, without its places.
fn meaning(mut file: Dockerfile) -> Dockerfile {
    let nowhere = Location::default();
    if let Some((_, location)) = &mut file.directives.check {
        *location = nowhere.clone();
    }
    let args = file.global_args.iter_mut();
    let staged = file
        .stages
        .iter_mut()
        .flat_map(|stage| std::iter::once(&mut stage.from).chain(&mut stage.instructions));
    for instruction in args.chain(staged) {
        instruction.location = nowhere.clone();
    }
    // Blank lines inside of instructions are not printed, and neither is what they gave rise to.
    file.warnings.retain(|warning| warning.rule != "NoEmptyContinuation");
    for warning in &mut file.warnings {
        warning.location = nowhere.clone();
    }
    file
}

fn printing_keeps_the_meaning(text: &str) -> Result<(), String> {
    let Ok(file) = parse(text) else { return Ok(()) };
    let printed = crate::dockerfile::print(&file);
    let again = parse(&printed).map_err(|error| format!("{text:?} → {printed:?}: {error}"))?;
    let (found, expected) = (meaning(again), meaning(file));
    if found == expected {
        return Ok(());
    }
    Err(format!("{text:?} → {printed:?}\n  {found:?}\n  {expected:?}"))
}

#[test]
fn whatever_the_corpus_holds_survives_printing() {
    let table = table();
    let rows = table["rows"].as_array().unwrap().iter().map(|row| row["dockerfile"].clone());
    let builds = cases().into_iter().map(|(_, case)| case["dockerfile"].clone());
    let wrong: Vec<String> = rows
        .chain(builds)
        .filter_map(|text| printing_keeps_the_meaning(text.as_str().unwrap()).err())
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn long_lines_survive_printing() {
    let long = "ab \\\\é#".repeat(20_000);
    for text in [
        format!("FROM x\nRUN {}", long.replace('b', "b\\\n")),
        format!("FROM x\n#{}\nRUN y", "c".repeat(65_534)),
        format!("#syntax={}\nFROM x", "c".repeat(65_527)),
        "FROM x\n\\\n  RUN y".to_owned(),
        "FROM x\nRUN y \\ \\".to_owned(),
    ] {
        assert!(parse(&text).is_ok());
        assert_eq!(printing_keeps_the_meaning(&text), Ok(()));
    }
}

/// Keyword and arguments on one line, whatever blanks, continued lines and comments are between.
fn plain(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let joined = lines.map(|line| {
        let line = line.trim_end();
        line.strip_suffix('\\').unwrap_or(line).to_owned()
            + if line.ends_with('\\') { "" } else { " " }
    });
    joined.collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn another_parser_reads_the_same() {
    use dockerfile_parser::Instruction as Other;
    let mut compared = 0;
    let mut wrong = Vec::new();
    for (name, case) in cases() {
        let text = case["dockerfile"].as_str().unwrap();
        // It knows neither heredocs nor another escape character, and takes `\\\\` at the end for a continuation.
        if text.contains("<<") || text.contains("escape=") || text.contains("\\\\\n") {
            continue;
        }
        let (Ok(mine), Ok(other)) = (parse(text), dockerfile_parser::Dockerfile::parse(text))
        else {
            continue;
        };
        let stages = mine.stages.iter();
        let mut froms = stages.clone();
        let of_stages =
            stages.flat_map(|stage| std::iter::once(&stage.from).chain(&stage.instructions));
        let mut rest = of_stages.clone();
        for instruction in &other.instructions {
            if let Other::From(from) = instruction {
                let stage = froms.next();
                let found = stage.map(|stage| (stage.base.clone(), stage.name_typed.clone()));
                let alias = from.alias.as_ref().map(|alias| alias.content.clone());
                if found != Some((from.image.content.clone(), alias)) {
                    wrong.push(format!("{name}: {found:?} and {:?}", from.image.content));
                }
            }
            let span = instruction.span();
            let theirs = text.get(span.start..span.end).unwrap();
            // What stands in front of the first stage is kept apart.
            if froms.len() == mine.stages.len() {
                continue;
            }
            compared += 1;
            let line_of = |at: usize| text.get(..at).unwrap().matches('\n').count() + 1;
            let lines = (line_of(span.start), line_of(span.start + theirs.trim_end().len()));
            let ours = rest.next();
            let found = ours.map(|ours| (plain(&ours.original), ours.location.lines));
            if found != Some((plain(theirs), lines)) {
                wrong.push(format!("{name}: {found:?} and {theirs:?} in {lines:?}"));
            }
        }
        let count = mine.global_args.len()
            + mine.stages.iter().map(|stage| stage.instructions.len() + 1).sum::<usize>();
        if count != other.instructions.len() {
            wrong.push(format!("{name}: {count} and {} instructions", other.instructions.len()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 500, "{compared} instructions were compared");
}

/// Texts made of what the language is made of.
fn files() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(vec![
        "FROM ",
        "RUN ",
        "COPY ",
        "ADD ",
        "ENV ",
        "ARG ",
        "ONBUILD ",
        "HEALTHCHECK ",
        "SHELL ",
        "CMD ",
        "LABEL ",
        "EXPOSE ",
        "VOLUME ",
        "x",
        "a=b",
        " AS ",
        "Y",
        "--mount=",
        "type=cache,",
        "target=/a",
        "--link",
        "--from=",
        "--",
        "<<EOF",
        "<<-'E'",
        "EOF",
        "E",
        "[\"a\"]",
        "[",
        "1]",
        "\"",
        "'",
        "\\",
        "`",
        "$a",
        "${",
        "}",
        "\n",
        "\n",
        "\r\n",
        " ",
        "\t",
        "#",
        "# escape=`",
        "# check=skip=all",
        "NONE",
        "80/tcp",
        "é",
        "\u{a0}",
        "\u{feff}",
        ",",
    ]);
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let text = String::from_utf8_lossy(&bytes);
        drop(parse(&text));
        drop(parse(&format!("FROM x\n{text}")));
        drop(parse_trigger(&text, &[]));
        drop(detect_syntax(&text));
    }

    #[test]
    fn any_text_of_the_language_is_read_or_refused_and_survives_printing(text in files()) {
        for text in [text.clone(), format!("FROM x\nRUN {text}"), format!("FROM x AS y\n{text}")] {
            prop_assert_eq!(printing_keeps_the_meaning(&text), Ok(()));
        }
        drop(parse_trigger(&text, &[]));
    }

    #[test]
    fn spans_lie_in_the_text_one_after_the_other(text in files()) {
        let text = format!("FROM x\n{text}");
        if let Ok(file) = parse(&text) {
            let mut end = 0;
            for instruction in file.stages.iter().flat_map(|s| std::iter::once(&s.from).chain(&s.instructions)) {
                let span = instruction.location.span.clone();
                prop_assert!(span.start >= end && text.get(span.clone()).is_some());
                let (first, last) = instruction.location.lines;
                prop_assert!(first <= last);
                prop_assert_eq!(text.get(..span.start).unwrap().matches('\n').count() + 1, first);
                end = span.end;
            }
        }
    }
}
