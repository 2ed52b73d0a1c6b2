//! What the language promises: every message as it is shown, every trap, and no panic on any input.

use miette::GraphicalReportHandler;
use miette::GraphicalTheme;
use proptest::prelude::*;

use super::Facts;
use super::GitFacts;
use super::Origin;
use super::Project;
use super::ProjectError;
use super::PushTo;
use super::SecretFrom;

fn shown(error: &ProjectError) -> String {
    let mut shown = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .render_report(&mut shown, error)
        .unwrap();
    shown
}

fn refused(text: &str) -> ProjectError {
    match Project::parse("idpbuilder.kdl", text) {
        Ok(_) => panic!("this is accepted:\n{text}"),
        Err(error) => error,
    }
}

fn facts() -> Facts {
    let git = GitFacts {
        sha: "0123456789abcdef0123456789abcdef01234567".to_owned(),
        short: "0123456".to_owned(),
        branch: Some("main".to_owned()),
        tag: Some("v1.4.0".to_owned()),
        dirty: false,
        remote: Some("https://git.example/team/api".to_owned()),
        time: 1_700_000_000,
    };
    Facts { git: Some(git), ..Facts::default() }
}

macro_rules! golden {
    ($($name:ident: $text:expr;)*) => {
        $(#[test]
        fn $name() {
            let shown = shown(&refused($text));
            insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
                insta::assert_snapshot!(stringify!($name), shown);
            });
        })*
    };
}

golden! {
    an_unknown_node: "image app {\n    tag dev\n}\n";
    an_unknown_property: "image app form=base {\n    tags dev\n}\nimage base\n";
    a_wrong_type: "image app {\n    tags 1.5\n    export yes\n}\n";
    a_missing_name: "image {\n    tags dev\n}\n";
    a_duplicate_image: "image app {\n    tags dev\n}\nimage app {\n    tags latest\n}\n";
    an_unknown_registry: "registry gitea \"gitea.cnoe.localtest.me:8443\"\nimage app {\n    push gitae\n}\n";
    an_unknown_variable: "vars {\n    channel dev\n}\nimage app {\n    tags \"x-{chanel}\"\n}\n";
    a_version_1_boolean: "image app {\n    export false\n}\n";
    a_trailing_comma: "image a\nimage b\npipeline default {\n    images a, b\n}\n";
    a_bare_glob: "watch {\n    ignore src/**/x\n}\n";
    two_errors_at_once: "image app {\n    tagz dev\n    push nowhere\n}\n";
    a_part_of_the_language_that_is_not_executed: "image app {\n    sign key-from=cosign\n}\n";
    a_hole_without_quotes: "image app {\n    tags {git.sha}\n}\n";
    a_property_twice: "image app {\n    args A=\"1\" A=\"2\"\n}\n";
    inheritance_in_a_circle: "image a from=b\nimage b from=c\nimage c from=a\n";
    two_sources_of_a_secret: "secret token env=TOKEN file=\"token\"\n";
    broken_grammar: "image app {\n    tags \"dev\n}\n";
    an_address_with_text_before_it_that_is_not_ascii: "// Übergröße → ✓\nimage app {\n    tgas \"é\"\n}\n";
}

#[test]
fn every_trap_of_kdl_has_its_hint() {
    let table = [
        ("image a { platforms linux/amd64 }", "quote it: \"linux/amd64\""),
        ("watch { ignore **/*.md }", "quote it: \"**/*.md\""),
        ("secret t file=~/.docker/config.json", "quote it: \"~/.docker/config.json\""),
        ("watch { ignore src/**/x }", "quote it: \"src/**/x\""),
        ("watch { debounce 30s }", "quote it: \"30s\"; versions, sizes and durations are strings"),
        ("vars { a 20GiB }", "quote it: \"20GiB\"; versions, sizes and durations are strings"),
        ("vars { a 1.2.3 }", "quote it: \"1.2.3\"; versions, sizes and durations are strings"),
        ("vars { a -1x }", "quote it: \"-1x\"; versions, sizes and durations are strings"),
        ("vars { mode 0755 }", "write `0o755` for octal, or quote it: \"0755\""),
        ("image a { cpus 2 }", "`cpus` is a property of `limits`: limits memory="),
        ("image a { psuh gitea }", "did you mean `push`?"),
        ("image a { tags {git.sha} }", "did you mean \"{git.sha}\"?"),
        ("image a; image b; pipeline p { images a, b }", "write `a`"),
        ("image a { args K=1 K=2 }", "remove one of the two"),
        ("image a { export true }", "for the text, quote it: \"true\""),
        ("image a { context null }", "for the text, quote it: \"null\""),
        ("image a { tags r\"x\" }", "KDL v1"),
        ("image a { tags \"x\ny\" }", "text of several lines stands between `\"\"\"` lines"),
        ("image a { tags \"\"\"x\"\"\" }", "write one line as \"…\""),
        ("image a {\n tags dev", "close the block with `}`"),
        ("image a }", "remove it, or open the block at the end of a line above"),
        ("image a { tags dev } image b", "begin it on a line of its own"),
        ("image a { tags= dev=1 }", "write name=value; quote `=` that is text"),
        ("image a\n{\n tags dev\n}", "put `{` at the end of the line that it continues"),
        ("image a { tags (semver)\"1.2\" }", "types are known from the place"),
        ("image a { tags [a b] }", "a list is several arguments"),
        ("vars { go 1.10 }", "quote it: \"1.10\""),
    ];
    for (text, hint) in table {
        let error = refused(text);
        let mut words = error.problems().iter().map(|p| format!("{p} / {:?}", p.help));
        let hint = hint.replace('"', "\\\"");
        assert!(
            words.any(|words| words.contains(&hint) || words.contains(&hint.replace("\\\"", "\""))),
            "{text}: wanted {hint}\n{}",
            shown(&error)
        );
    }
}

#[test]
fn nothing_of_the_full_language_is_skipped_in_silence() {
    for text in [
        "include \"x.kdl\"",
        "profile ci",
        "builder local",
        "defaults { cache { local } }",
        "image a { sign key-from=k }",
        "image a { attest sbom=spdx }",
        "image a { test \"./x\" }",
        "image a { matrix { python \"3.12\" } }",
        "image a; pipeline p { images a; emit digests=\"x\" }",
        "image a; pipeline p { images a; fail-on vulnerability=critical }",
        "image a; pipeline p { images a; require clean-git=#true }",
        "secret s kube=\"gitea/gitea-credential\"",
        "secret s exec=\"pass show x\"",
        "registry r \"r.example\" { tls ca=cluster }",
        "image a { output load=kind }",
        "image a { context \".\" respect-gitignore=#true }",
        "image a; watch { on a { then run=\"x\" } }",
    ] {
        let error = refused(text);
        let shown = error.to_string();
        assert!(shown.ends_with("is not supported yet"), "{text}: {shown}");
    }
}

#[test]
fn a_slashdash_switches_off_and_is_listed() {
    let text = "/- kdl-version 2\n/-image gone {\n    sign\n}\nimage app {\n    /-tags x\n}\n";
    let project = Project::parse("idpbuilder.kdl", text).unwrap();
    let names: Vec<_> = project.disabled().iter().map(|part| part.name.as_str()).collect();
    assert_eq!((names, project.image_names()), (vec!["image", "tags"], vec!["app"]));
}

#[test]
fn layers_are_split_by_the_strongest_block_that_says_so() {
    let split = |text: &str| {
        let project = Project::parse("idpbuilder.kdl", text).unwrap();
        project.resolve(&facts()).unwrap().images.pop().unwrap().split
    };
    let defaults =
        "defaults { layers split size=\"8m\" most=9 { often \"src\" \"*.json\"; often x } }\n";
    let inherited = split(&format!("{defaults}image a\n")).unwrap();
    assert_eq!((inherited.size_bytes, inherited.layers_max), (8 << 20, 9));
    assert_eq!(inherited.often, [vec!["src", "*.json"], vec!["x"]]);
    assert_eq!(split(&format!("{defaults}image a {{ layers #null }}\n")), None);
    assert_eq!(
        split(&format!("{defaults}image a {{ layers split }}\n")),
        Some(crate::limits::Split::default())
    );
    assert_eq!(split("image a\n"), None);
    for text in ["layers", "layers whole", "layers split size=\"1k\"", "layers split most=1"] {
        let text = format!("image a {{ {text} }}\n");
        let parsed = Project::parse("idpbuilder.kdl", &text);
        assert!(parsed.is_err() || parsed.unwrap().resolve(&facts()).is_err(), "{text}");
    }
}

#[test]
fn limits_hold_before_the_parser_sees_the_text() {
    for (text, message) in [
        (" ".repeat((4 << 20) + 1), "the file has 4194305 bytes, the limit is 4194304"),
        ("a {\n".repeat(10_000), "blocks are nested more than 64 deep"),
        ("a {\n".repeat(40), "blocks are nested more than 8 deep"),
        ("/* ".repeat(10_000), "blocks are nested more than 64 deep"),
        ("(".repeat(100_000), "this"),
        ("/-".repeat(100_000), "this"),
        ("\\".repeat(100_000), "this"),
        ("\"".repeat(100_001), "this"),
        (format!("/* {} */ x", "* / ".repeat(100_000)), "unknown node `x` in the project file"),
        (format!("a\" /* {} */\"", "* / ".repeat(100_000)), "a quote inside a word"),
        ("(a)".repeat(100_000), "a type annotation has no meaning here"),
        ("a=".repeat(100_000), "`=` without a name before it"),
        ("a=b\n".repeat(50_000), "`=` without a name before it"),
        ("a {}".repeat(50_000), "a node begins behind `}`"),
        ("a ".repeat(50_000), "a node has more values than any needs"),
        ("a #b\n".repeat(2_000), "this"),
        ("image a from=b\n".repeat(1100), "the project file has more than 1024 nodes"),
    ] {
        let error = refused(&text);
        let first = error.problems()[0].to_string();
        assert!(message == "this" || first == message, "{first}");
    }
}

#[test]
fn variables_come_from_the_file_the_environment_and_flags_in_this_order() {
    let text = "vars {\n    a file\n    my-name file\n    b \"{a}-{git.short}\"\n    c \"{env.NONE}\" fallback=none\n}\n";
    let project = Project::parse("idpbuilder.kdl", text).unwrap();
    let values = |facts: &Facts| -> Vec<(Option<String>, Origin)> {
        let settings = project.resolve(facts).unwrap();
        settings.vars.into_iter().map(|variable| (variable.value, variable.origin)).collect()
    };
    let mut facts = facts();
    let value = |text: &str, origin| (Some(text.to_owned()), origin);
    assert_eq!(values(&facts)[2], value("file-0123456", Origin::File));
    assert_eq!(values(&facts)[3], value("none", Origin::File));
    facts.env_vars.insert("MY_NAME".to_owned(), "env".to_owned());
    facts.env_vars.insert("A".to_owned(), "env".to_owned());
    assert_eq!(
        values(&facts)[..2],
        [value("env", Origin::Environment), value("env", Origin::Environment)]
    );
    facts.flag_vars.insert("a".to_owned(), "flag".to_owned());
    assert_eq!(values(&facts)[0], value("flag", Origin::Flag));
    assert_eq!(values(&facts)[2], value("flag-0123456", Origin::File));
    facts.flag_vars.insert("my-nam".to_owned(), String::new());
    let error = project.resolve(&facts).unwrap_err();
    assert_eq!(error.to_string(), "unknown variable `--var my-nam`");
    assert_eq!(error.problems()[0].help.as_deref(), Some("did you mean `my-name`?"));
}

#[test]
fn what_the_caller_must_look_up_can_be_asked_for() {
    let text = r#"
        secret a env=TOKEN required=#false
        secret b file="token"
        image app {
            tags "{env.TAG ?? dev}" if="{env.CI ?? false}"
            labels { x "{env.HOST}" }
        }
    "#;
    let project = Project::parse("idpbuilder.kdl", text).unwrap();
    let names: Vec<_> = project.env_names().into_iter().collect();
    assert_eq!(names, ["CI", "HOST", "TAG"]);
    assert!(!project.uses_git());
    let sources: Vec<_> = project.secrets().into_iter().map(|s| (s.from, s.required)).collect();
    let wanted =
        [(SecretFrom::Env("TOKEN".to_owned()), false), (SecretFrom::File("token".into()), true)];
    assert_eq!(sources, wanted);
    let git = "image a { reproducible source-date-epoch=git }";
    assert!(Project::parse("idpbuilder.kdl", git).unwrap().uses_git());
}

#[test]
fn settings_are_inherited_merged_and_unset() {
    let text = r#"
        registry gitea "gitea.cnoe.localtest.me:8443"
        defaults {
            labels { a default; b default }
            args A=default
            tags default
        }
        image base {
            target runtime
            labels { b "{image}"; c base }
            args B=1 C="{{x}}"
            tags one two
            tags three if="{git.branch == main}"
            tags four if="{git.branch != main}"
            push gitea
        }
        image child from=base {
            target #null
            labels { a #null }
            args A=#null
            push #null
            context #null
        }
    "#;
    let project = Project::parse("idpbuilder.kdl", text).unwrap();
    let settings = project.resolve(&facts()).unwrap();
    let [base, child] = settings.images.as_slice() else { panic!("two images") };
    assert_eq!(base.tags, ["one", "two", "three"]);
    assert_eq!(base.pushes[0].to, PushTo::Registry("gitea".to_owned()));
    assert_eq!(
        base.args.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
        ["A=default", "B=1", "C={x}"]
    );
    assert_eq!((child.target.as_deref(), child.context.clone()), (None, None));
    assert_eq!(
        child.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
        ["b=child", "c=base"]
    );
    assert_eq!(child.args.keys().collect::<Vec<_>>(), ["B", "C"]);
    assert!(child.pushes.is_empty() && child.tags == base.tags);
}

#[test]
fn values_are_judged_once_they_are_known() {
    let table = [
        ("image a { tags \"{git.branch}\" }", "`feature/x` is not a tag"),
        ("image a { tags \"{git.tag}\" }", "`{git.tag}` has no value here"),
        (
            "registry r \"https://x.example\"",
            "`https://x.example` is not the address of a registry",
        ),
        (
            "registry r \"x.example\" { namespace GiteaAdmin }",
            "`GiteaAdmin` is not a path in a registry",
        ),
        ("registry r \"x.example\" { tls pin=\"12:34\" }", "this is not a SHA-256 fingerprint"),
        (
            "image a { push \"x.example/a:b\" }",
            "`x.example/a:b` is not host and path of a registry",
        ),
        (
            "image a { build-context x=\"ftp://files.example\" }",
            "`ftp://files.example` is no context",
        ),
        ("vars { a x one-of=\"y z\" }", "`x` is not allowed for variable `a`"),
        ("vars { a x type=bool }", "`x` is not a bool for variable `a`"),
        ("image a { labels { x \"{env.NONE}\" } }", "the environment variable NONE is not set"),
    ];
    let mut facts = facts();
    facts.git =
        facts.git.map(|git| GitFacts { branch: Some("feature/x".to_owned()), tag: None, ..git });
    for (text, message) in table {
        let project = Project::parse("idpbuilder.kdl", text);
        let project = project.unwrap_or_else(|error| panic!("{text}\n{}", shown(&error)));
        assert_eq!(project.resolve(&facts).unwrap_err().to_string(), message, "{text}");
    }
}

#[test]
fn an_optional_secret_without_a_value_leaves_the_registry_to_the_auth_files() {
    let text = "secret t env=TOKEN required=#false\nregistry r \"x.example\" {\n    auth username=u password-from=t\n}\n";
    let project = Project::parse("idpbuilder.kdl", text).unwrap();
    let with = project.resolve(&Facts::default()).unwrap();
    assert_eq!(with.registries[0].password, Some(SecretFrom::Env("TOKEN".to_owned())));
    let absent = Facts { absent_secrets: ["t".to_owned()].into(), ..Facts::default() };
    let without = project.resolve(&absent).unwrap();
    assert_eq!((&without.registries[0].password, &without.registries[0].username), (&None, &None));
}

#[test]
fn what_init_writes_is_a_project() {
    for (files, images) in [
        (vec!["Dockerfile"], vec!["my-app"]),
        (vec!["a/Dockerfile", "b/a/Dockerfile", "Dockerfile.worker"], vec!["a", "a-2", "worker"]),
        (
            vec!["docker/base.Dockerfile", "we ird/{x}/Dockerfile", "scratch/Dockerfile"],
            vec!["base", "x", "app"],
        ),
        (vec!["true/Dockerfile", "9/Dockerfile"], vec!["true", "9"]),
        (vec![], vec!["my-app"]),
    ] {
        let paths: Vec<&std::path::Path> = files.iter().map(std::path::Path::new).collect();
        let text = super::starter("My App", &paths);
        let project = Project::parse("idpbuilder.kdl", &text);
        let project = project.unwrap_or_else(|error| panic!("{text}\n{}", shown(&error)));
        assert_eq!(project.image_names(), images);
        let settings = project.resolve(&Facts::default()).unwrap();
        for (image, file) in settings.images.iter().zip(&files) {
            let super::Dockerfile::File(path) = &image.dockerfile else { panic!("{text}") };
            assert_eq!(path, std::path::Path::new(file), "{text}");
        }
    }
}

#[test]
fn every_example_of_the_table_parses_as_kdl() {
    fn visit(spec: &super::NodeSpec) {
        assert!(spec.example.parse::<kdl::KdlDocument>().is_ok(), "{}", spec.example);
        match spec.children {
            super::Children::None => {}
            super::Children::Nodes(nodes) => nodes.iter().for_each(visit),
            super::Children::Free(spec) => visit(spec),
        }
    }
    visit(&super::ROOT);
}

const WORDS: &[&str] = &[
    "image",
    "app",
    " ",
    " ",
    "\n",
    "{",
    "}",
    "\"",
    "\"\"\"",
    "#",
    "#true",
    "#null",
    "tags",
    "push",
    "vars",
    "registry",
    "=",
    "if",
    "{git.sha}",
    "\"{a ?? b}\"",
    "\"{!a == b}\"",
    "/*",
    "*/",
    "//",
    "/-",
    "(",
    ")",
    ";",
    "\\",
    "é",
    "→",
    "0x",
    "1.5",
    "from",
    "a",
    "defaults",
    "labels",
    "args",
    "\u{feff}",
    "\r\n",
    "#\"",
    "\"#",
    "watch",
    "debounce",
    "\"150ms\"",
    "pipeline",
    "images",
    "all",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        check_total(&text);
    }

    #[test]
    fn no_sequence_of_its_own_words_makes_it_panic(words in prop::collection::vec(prop::sample::select(WORDS), 0..60)) {
        check_total(&words.concat());
        check_total(&words.join(" "));
    }
}

/// Whatever comes out, it can be resolved or shown.
fn check_total(text: &str) {
    match Project::parse("idpbuilder.kdl", text) {
        Ok(project) => {
            if let Err(error) = project.resolve(&facts()) {
                shown(&error);
            }
        }
        Err(error) => {
            assert!(!error.problems().is_empty());
            shown(&error);
        }
    }
}

/// `UPDATE_SCHEMA=1` writes what the table says, to be looked at and committed.
#[test]
fn the_reference_in_the_repository_is_that_of_the_table() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let (markdown, json) = (folder.join("project.md"), folder.join("project.json"));
    let written = std::fs::read_to_string(&markdown).unwrap();
    let (head, nodes) = written.split_once("# Nodes\n\n").unwrap();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        let text = format!("{head}# Nodes\n\n{}", super::reference_markdown());
        std::fs::write(&markdown, text).unwrap();
        std::fs::write(&json, super::reference_json()).unwrap();
        return;
    }
    assert!(nodes == super::reference_markdown(), "schema/project.md is older than the table");
    let written = std::fs::read_to_string(&json).unwrap();
    assert!(written == super::reference_json(), "schema/project.json is older than the table");
    let (head, _) = written_head();
    assert!(Project::parse("idpbuilder.kdl", head).is_ok());
}

/// The example of the reference.
fn written_head() -> (&'static str, &'static str) {
    let text = include_str!("../../schema/project.md");
    let (_, text) = text.split_once("```kdl\n").unwrap();
    text.split_once("```\n").unwrap()
}
