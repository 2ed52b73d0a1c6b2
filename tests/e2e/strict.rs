//! Rules of our own: told by a build, errors with `--strict`, silent where BuildKit's report is asked for.

use crate::support::{Done, User, base_contexts, json};

/// A Dockerfile, the rule that speaks, the words that it says, and the line.
struct Row {
    rule: &'static str,
    dockerfile: &'static str,
    said: &'static str,
    line: usize,
    /// Whether `check` finds it, who sees no files.
    found_by_check: bool,
}

const ROWS: &[Row] = &[
    Row {
        rule: "UnknownOwner",
        dockerfile: "FROM busybox\nCOPY --chown=www-dta f /f\n",
        said: "unable to find user www-dta",
        line: 2,
        found_by_check: false,
    },
    Row {
        rule: "UnknownOwner",
        dockerfile: "FROM busybox\nCOPY --chown=app:staf f /f\n",
        said: "did you mean `staff`?",
        line: 2,
        found_by_check: false,
    },
    Row {
        rule: "UnknownOwner",
        dockerfile: "FROM busybox\nUSER nobody-here\nWORKDIR /made\n",
        said: "USER=nobody-here",
        line: 3,
        found_by_check: false,
    },
    Row {
        rule: "UnmatchedWildcard",
        dockerfile: "FROM busybox\nCOPY *.conf /etc/\n",
        said: "*.conf",
        line: 2,
        found_by_check: false,
    },
    Row {
        rule: "UnmatchedWildcard",
        dockerfile: "FROM busybox AS one\nFROM busybox\nCOPY --from=one /base/*.nothing /x/\n",
        said: "/base/*.nothing",
        line: 3,
        found_by_check: false,
    },
    Row {
        rule: "UnmatchedWildcard",
        dockerfile: "FROM busybox\nCOPY --parents **/*.nothing /x/\n",
        said: "**/*.nothing",
        line: 2,
        found_by_check: false,
    },
    Row {
        rule: "UnusableDirectory",
        dockerfile: "FROM busybox\nCOPY --chmod=644 d /made/on/the/way/\n",
        said: "nobody may enter /made",
        line: 2,
        found_by_check: false,
    },
    Row {
        rule: "LinkIgnored",
        dockerfile: "FROM busybox\nCOPY --link --chmod=755 f /f\n",
        said: "--link has no effect",
        line: 2,
        found_by_check: true,
    },
    Row {
        rule: "IgnoredFlag",
        dockerfile: "FROM busybox\nARG --required A=1\n",
        said: "ARG takes no flags",
        line: 2,
        found_by_check: true,
    },
    Row {
        rule: "IgnoredFlag",
        dockerfile: "FROM busybox\nHEALTHCHECK --interval=1s NONE\n",
        said: "--interval=1s",
        line: 2,
        found_by_check: true,
    },
    Row {
        rule: "MountTypeFirst",
        dockerfile: "FROM busybox\nRUN --mount=target=/c,type=cache true\n",
        said: "type=",
        line: 2,
        found_by_check: true,
    },
    Row {
        rule: "EscapedContinuation",
        dockerfile: "FROM busybox\nRUN echo a \\\\\\\nUSER app\n",
        said: "does not continue",
        line: 2,
        found_by_check: true,
    },
    Row {
        rule: "DollarInReplacement",
        dockerfile: "FROM busybox\nARG A=abc\nENV B=${A//b/\\$0}\n",
        said: "group of the match",
        line: 3,
        found_by_check: true,
    },
    Row {
        rule: "HealthcheckNotInOci",
        dockerfile: "FROM busybox\nHEALTHCHECK CMD [\"true\"]\n",
        said: "extension of Docker",
        line: 2,
        found_by_check: true,
    },
];

fn user() -> User {
    let user = User::new();
    user.write("f", "f\n");
    user.write("d/e/g", "g\n");
    user
}

fn check(user: &User, flags: &[&str]) -> Done {
    Done::of(user.idp().arg("check").args(flags).args(base_contexts()).arg("."))
}

#[test]
fn a_build_tells_what_a_rule_of_ours_finds_and_strict_makes_it_an_error() {
    let user = user();
    for row in ROWS {
        let Row { rule, dockerfile, said, line, .. } = row;
        let done = user.build(dockerfile, &["--metadata-file", "metadata"]);
        assert_eq!(done.code, 0, "{done}");
        let told = done.err.lines().find(|told| told.contains(&format!("({rule})")));
        let told = told.unwrap_or_else(|| panic!("{rule} is not told\n{done}"));
        assert!(told.contains(said) && told.contains(&format!("line {line}:")), "{told}");
        let metadata = std::fs::read_to_string(user.work().join("metadata")).unwrap();
        assert_eq!(
            json(&metadata)["warnings"].as_array().unwrap().len(),
            0,
            "not BuildKit's: {rule}"
        );
        // Now its result is known, and still it is an error to those who ask.
        let words = [*rule, said, "--strict", &format!("Dockerfile:{line}:"), "check=skip"];
        user.build(dockerfile, &["--strict"]).fails(3, &words);
    }
}

#[test]
fn a_comment_silences_a_rule_of_ours() {
    let user = user();
    for Row { rule, dockerfile, line, .. } in ROWS {
        let mut lines: Vec<&str> = dockerfile.lines().collect();
        let comment = format!("# check=skip={rule}");
        lines.insert(line - 1, &comment);
        for text in [lines.join("\n") + "\n", format!("# check=skip=all\n{dockerfile}")] {
            let done = user.build(&text, &["--strict"]);
            assert_eq!(done.code, 0, "{done}");
            assert!(!done.err.contains(rule), "{done}");
        }
    }
}

#[test]
fn check_reports_rules_of_ours_only_when_asked() {
    let user = user();
    for Row { rule, dockerfile, said, line, found_by_check } in ROWS {
        user.write("Dockerfile", dockerfile);
        let plain = check(&user, &[]);
        assert_eq!((plain.code, plain.out.as_str()), (0, ""), "{plain}");
        assert_eq!(plain.err.contains("--strict"), *found_by_check, "{plain}");
        let strict = check(&user, &["--strict"]);
        let report = [
            format!("WARNING: {rule} - schema/checks.md#{}", rule.to_lowercase()),
            (*said).to_owned(),
            format!("Dockerfile:{line}\n--------------------\n"),
        ];
        let told = report.iter().all(|text| strict.out.contains(text.as_str()));
        assert_eq!((strict.code, told), (i32::from(*found_by_check), *found_by_check), "{strict}");
    }
}

#[test]
fn a_careful_dockerfile_is_strict_as_it_stands() {
    let user = user();
    let text = "FROM busybox\nARG A=1\nCOPY --chown=app:staff --chmod=u=rwX,go=rX d /made/d/\nCOPY --link f* /\n\
                RUN --mount=type=cache,target=/c true \\\\\nWORKDIR /w\n";
    let done = user.build(text, &["--strict", "--build-arg", "A=2"]);
    assert_eq!(done.code, 0, "{done}");
    assert!(!done.err.contains("warning"), "{done}");
}

#[test]
fn a_build_argument_that_nobody_asks_for_is_told_and_an_error_when_strict() {
    let user = user();
    let text = "ARG BASE=busybox\nFROM ${BASE}\nARG VERSION=1\nENV V=$VERSION\n";
    let told =
        user.build(text, &["--build-arg", "VERISON=2", "--build-arg", "HTTP_PROXY=http://p"]);
    assert_eq!(told.code, 0, "{told}");
    assert!(told.err.contains("VERISON is not used by any ARG (did you mean VERSION?)"), "{told}");
    assert!(!told.err.contains("HTTP_PROXY"), "{told}");
    user.build(text, &["--strict", "--build-arg", "VERISON=2"])
        .fails(3, &["VERISON", "did you mean VERSION?", "--strict"]);
    user.build(text, &["--strict", "--build-arg", "VERSION=2", "--build-arg", "BASE=busybox"]).ok();
}

#[test]
fn a_project_is_strict_by_its_file_or_by_the_flag() {
    let user = user();
    let project = |more: &str| {
        format!(
            "image app {{\n    dockerfile inline=\"FROM scratch\\nARG --x A\\nCOPY f /f\"\n    {more}\n}}\n"
        )
    };
    user.write("idpbuilder.kdl", &project("strict #true"));
    user.run(["run"]).fails(3, &["IgnoredFlag", "(inline)"]);
    user.write("idpbuilder.kdl", &format!("defaults {{ strict #true }}\n{}", project("")));
    user.run(["run"]).fails(3, &["IgnoredFlag"]);
    user.write("idpbuilder.kdl", &project(""));
    user.run(["run", "--strict"]).fails(3, &["IgnoredFlag"]);
    let told = user.run(["run"]);
    assert!(told.code == 0 && told.err.contains("(IgnoredFlag)"), "{told}");
}

/// The page that `check --strict` names has every rule.
#[test]
fn every_rule_of_ours_has_its_place_in_the_page() {
    let page = include_str!("../../schema/checks.md");
    let named: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(named, idpbuilder::dockerfile::lint::OWN_RULES);
    for rule in named {
        assert!(ROWS.iter().any(|row| row.rule == rule), "{rule} is not tried");
    }
}
