//! Plans of whole projects: the examples of the repository, and the rules between images.

use std::path::Path;
use std::path::PathBuf;

use super::BuildFlags;
use super::ContextPlan;
use super::DockerfileSource;
use super::EMBEDDED_ADDRESS;
use super::NamedContext;
use super::Plan;
use super::PlanError;
use super::Publication;
use super::References;
use super::SecretSource;
use super::StepKind;
use crate::project::Dockerfile;
use crate::project::Facts;
use crate::project::GitFacts;
use crate::project::Project;
use crate::project::Settings;

fn facts() -> Facts {
    let git = GitFacts {
        sha: "0123456789abcdef0123456789abcdef01234567".to_owned(),
        short: "0123456".to_owned(),
        branch: Some("feature/new".to_owned()),
        tag: Some("v1.4.0".to_owned()),
        time: 1_700_000_000,
        ..GitFacts::default()
    };
    let env = [("HOME".to_owned(), "/home/user".to_owned())].into();
    Facts { git: Some(git), env, ..Facts::default() }
}

fn settings(text: &str) -> Settings {
    let project = Project::parse("idpbuilder.kdl", text);
    let project = project.unwrap_or_else(|error| panic!("{:?}\n{text}", error.problems()));
    project.resolve(&facts()).unwrap_or_else(|error| panic!("{:?}", error.problems()))
}

fn plan(text: &str, selection: &[&str], references: &[(&str, &[&str])]) -> Result<Plan, PlanError> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let references: References =
        references.iter().map(|(image, names)| ((*image).to_owned(), owned(names))).collect();
    Plan::from_project(&settings(text), &owned(selection), Path::new("/p"), &references)
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.images.iter().map(|image| image.name.as_str()).collect()
}

fn pushes(plan: &Plan) -> Vec<String> {
    plan.images.iter().flat_map(|image| &image.pushes).map(ToString::to_string).collect()
}

/// The words behind FROM and `--from=`, stages left out: enough for the examples.
fn references_of(dockerfile: &str) -> Vec<String> {
    let (mut stages, mut found) = (Vec::new(), Vec::new());
    for line in dockerfile.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let from = words.iter().find_map(|word| word.strip_prefix("--from="));
        let base = if words.first() == Some(&"FROM") { words.get(1).copied() } else { None };
        found.extend(from.or(base).filter(|name| !stages.contains(name)).map(str::to_owned));
        if let ["FROM", _, "AS", stage] = words.as_slice() {
            stages.push(*stage);
        }
    }
    found
}

fn plan_of_folder(folder: &str) -> Plan {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let settings = settings(&std::fs::read_to_string(root.join("idpbuilder.kdl")).unwrap());
    let mut references = References::new();
    for image in &settings.images {
        let text = match &image.dockerfile {
            Dockerfile::File(path) => std::fs::read_to_string(root.join(path)).unwrap(),
            Dockerfile::Inline(text) => text.clone(),
            Dockerfile::InContext(_) | Dockerfile::Url(_) => unreachable!("the examples have none"),
        };
        references.insert(image.name.clone(), references_of(&text));
    }
    let plan = Plan::from_project(&settings, &[], &root, &references).unwrap();
    for image in &plan.images {
        assert!(matches!(&image.context, None | Some(ContextPlan::Directory(_))), "{image:?}");
    }
    plan
}

#[test]
fn the_project_of_the_repository_is_planned() {
    let plan = plan_of_folder("");
    let image = plan.image("idpbuilder").unwrap();
    let tagged =
        ["localhost:5050/cnoe-io/idpbuilder:1.4.0", "localhost:5050/cnoe-io/idpbuilder:latest"];
    assert_eq!(pushes(&plan), tagged);
    assert_eq!(image.source_date_epoch, Some(1_700_000_000));
    assert_eq!(image.labels["org.opencontainers.image.created"], "2023-11-14T22:13:20Z");
    let DockerfileSource::Inline(text) = &image.dockerfile else { panic!("inline") };
    assert!(text.starts_with("FROM scratch\nCOPY "), "{text}");
}

#[test]
fn one_image_without_a_registry_goes_to_the_embedded_one() {
    let plan = plan_of_folder("examples/single");
    assert_eq!(pushes(&plan), ["localhost:5050/hello:dev"]);
    assert!(plan.registries[EMBEDDED_ADDRESS].embedded);
    assert_eq!(plan.warnings.len(), 1);
}

#[test]
fn the_smallest_project_names_an_image_and_a_place() {
    let text =
        "image app {\n    tags \"dev\"\n    push \"gitea.cnoe.localtest.me:8443/giteaadmin\"\n}\n";
    let plan = plan(text, &[], &[]).unwrap();
    assert_eq!(pushes(&plan), ["gitea.cnoe.localtest.me:8443/giteaadmin/app:dev"]);
    assert!(plan.warnings.is_empty() && !plan.registries.values().any(|found| found.embedded));
}

#[test]
fn an_image_that_says_so_stays_here() {
    let plan = plan("image a { push #null }\nimage b", &[], &[]).unwrap();
    assert_eq!(pushes(&plan), ["localhost:5050/b:latest"]);
    assert_eq!(plan.image("a").unwrap().tags[0].familiar(), "a:latest");
}

#[test]
fn a_monorepo_is_planned_from_what_its_dockerfiles_say() {
    let plan = plan_of_folder("examples/monorepo");
    assert_eq!(names(&plan), ["base", "api-test", "api", "web"]);
    assert_eq!(plan.image("api").unwrap().needs, ["api-test", "base"]);
    let web = plan.image("web").unwrap();
    assert_eq!(web.needs, ["base"]);
    assert!(matches!(&web.named_contexts["base"], NamedContext::PlanImage(name) if name == "base"));
    assert!(
        matches!(&web.named_contexts["assets"], NamedContext::Directory(path) if path.is_dir())
    );
    assert!(web.outputs.is_empty() && plan.image("base").unwrap().tags.is_empty());
    let wanted = [
        "localhost:5050/shop/api:latest",
        "localhost:5050/shop/api:dev",
        "localhost:5050/shop/web:dev",
    ];
    assert_eq!(pushes(&plan), wanted);
}

#[test]
fn a_release_into_gitea_has_its_certificate_and_its_secret() {
    let plan = plan_of_folder("examples/cnoe-gitea");
    let wanted = [
        "gitea.cnoe.localtest.me:8443/giteaadmin/demo:1.4.0",
        "gitea.cnoe.localtest.me:8443/giteaadmin/demo:feature-new",
    ];
    assert_eq!(pushes(&plan), wanted);
    let gitea = &plan.registries["gitea.cnoe.localtest.me:8443"];
    assert_eq!(gitea.username.as_deref(), Some("giteaAdmin"));
    assert_eq!(gitea.password, Some(SecretSource::Env("GITEA_TOKEN".to_owned())));
    assert_eq!(gitea.ca_file, Some(PathBuf::from("/home/user/.idpbuilder/certs/gitea.pem")));
}

#[test]
fn a_selection_is_names_and_what_they_need() {
    let text = "image a { needs base }\nimage b\nimage base\npipeline default { images b }\n\
                pipeline some { images a b }\nregistry r \"r.example\"";
    for (selection, wanted) in [
        (&[] as &[&str], Ok(&["b"] as &[&str])),
        (&["a"], Ok(&["base", "a"])),
        (&["some"], Ok(&["base", "a", "b"])),
        (&["b", "some", "b"], Ok(&["b", "base", "a"])),
        (&["bse"], Err("did you mean `base`?")),
        (&["defualt"], Err("did you mean `default`?")),
    ] {
        match (plan(text, selection, &[]), wanted) {
            (Ok(plan), Ok(wanted)) => assert_eq!(names(&plan), wanted),
            (Err(PlanError::UnknownName { help, .. }), Err(wanted)) => {
                assert_eq!(help.as_deref(), Some(wanted));
            }
            (planned, wanted) => panic!("{selection:?}: {planned:?}, wanted {wanted:?}"),
        }
    }
    assert_eq!(plan("", &[], &[]).unwrap_err(), PlanError::NothingToBuild);
}

#[test]
fn circles_are_refused_by_name_however_they_come_about() {
    let text = "image a { needs b }\nimage b { build-context x=\"target:c\" }\nimage c";
    let error = plan(text, &["a"], &[("c", &["alpine:3.19", "a"])]).unwrap_err();
    assert_eq!(error.to_string(), "images need one another in a circle: a → b → c → a");
    assert!(
        plan("image alpine", &[], &[("alpine", &["alpine"])]).is_ok(),
        "its own name is a base"
    );
    let shadowed = "image a { build-context b=\"dir\" }\nimage b { needs a }";
    assert!(plan(shadowed, &[], &[("a", &["b"])]).is_ok(), "a build context comes first");
}

#[test]
fn names_are_registry_namespace_image_and_tag() {
    let text = r#"
        registry one "one.example:5000" { namespace "team/x" }
        registry two "two.example"
        image a {
            tags "1" "2"
            push one
            push two as="other/name"
            push "three.example/path"
        }
        image b { push #null }
        image c { export #false; push one }
        image d { push embedded }
    "#;
    let plan = plan(text, &[], &[]).unwrap();
    let shown = |name: &str| -> Vec<String> {
        plan.image(name).unwrap().tags.iter().map(ToString::to_string).collect()
    };
    let wanted = [
        "one.example:5000/team/x/a:1",
        "one.example:5000/team/x/a:2",
        "two.example/other/name:1",
        "two.example/other/name:2",
        "three.example/path/a:1",
        "three.example/path/a:2",
    ];
    assert_eq!(shown("a"), wanted);
    assert_eq!(shown("b"), ["docker.io/library/b:latest"]);
    assert_eq!(shown("c"), [] as [&str; 0]);
    assert_eq!(shown("d"), ["localhost:5050/d:latest"]);
    let hosts: Vec<_> = plan.registries.keys().map(String::as_str).collect();
    assert_eq!(hosts, ["localhost:5050", "one.example:5000", "three.example", "two.example"]);
    assert!(plan.registries[EMBEDDED_ADDRESS].embedded && plan.warnings.is_empty());
}

#[test]
fn two_images_never_share_a_name() {
    let text = "image a { push \"r.example\" as=x }\nimage b { push \"r.example\" as=x }";
    let error = plan(text, &[], &[]).unwrap_err();
    assert_eq!(error.to_string(), "images `a` and `b` would both be r.example/x:latest");
}

#[test]
fn registries_at_one_address_agree_but_for_the_namespace() {
    let same = "registry a \"r.example\" { namespace a }\nregistry b \"r.example\"\nimage i { push a; push b }";
    assert_eq!(
        pushes(&plan(same, &[], &[]).unwrap()),
        ["r.example/a/i:latest", "r.example/i:latest"]
    );
    let other = "registry a \"r.example\" { plain-http }\nregistry b \"r.example\"\nimage i";
    let conflict = PlanError::RegistryConflict {
        first: "a".to_owned(),
        second: "b".to_owned(),
        address: "r.example".to_owned(),
    };
    assert_eq!(plan(other, &[], &[]).unwrap_err(), conflict);
}

#[test]
fn tags_move_after_every_push_and_no_push_clears_both() {
    let mut plan = plan("image a\nimage b { needs a }", &[], &[]).unwrap();
    let position = |plan: &Plan, wanted: fn(&StepKind) -> bool| {
        plan.steps
            .iter()
            .enumerate()
            .filter(|(_, step)| wanted(&step.kind))
            .map(|(at, _)| at)
            .collect::<Vec<_>>()
    };
    let pushes = position(&plan, |kind| matches!(kind, StepKind::Push { .. }));
    let mut before = pushes;
    for publish in position(&plan, |kind| matches!(kind, StepKind::Publish { .. })) {
        assert_eq!(plan.steps[publish].inputs, before);
        before = vec![publish];
    }
    assert!(
        plan.steps.iter().enumerate().all(|(at, step)| step.inputs.iter().all(|input| *input < at))
    );
    plan.clear_pushes();
    assert!(plan.steps.iter().all(|step| matches!(step.kind, StepKind::Build | StepKind::Store)));
    assert_eq!(plan.steps.len(), 4);
}

#[test]
fn flags_make_a_plan_of_the_same_kind() {
    let dockerfile = || DockerfileSource::File("app/Dockerfile".into());
    let mut flags = BuildFlags::new(dockerfile(), Some(ContextPlan::Directory("some/app".into())));
    let plan = Plan::from_flags(flags.clone()).unwrap();
    assert_eq!((names(&plan), plan.steps.len()), (vec!["app"], 2));
    flags.publication = Publication::Push;
    assert_eq!(Plan::from_flags(flags.clone()).unwrap_err(), PlanError::PushWithoutTag);
    flags.tags = vec!["r.example/x:1".parse().unwrap(), "r.example/x:1".parse().unwrap()];
    let plan = Plan::from_flags(flags).unwrap();
    assert_eq!(
        (names(&plan), pushes(&plan)),
        (vec!["r.example/x:1"], vec!["r.example/x:1".to_owned()])
    );
    assert!(plan.registries.contains_key("r.example") && plan.steps.len() == 4);
}

#[test]
fn paths_are_under_the_root_unless_they_are_absolute() {
    let text = "image a { context \"./x\"; dockerfile \"/abs/Dockerfile\"; output local=\"out\" }\nimage b";
    let plan = plan(text, &[], &[]).unwrap();
    let shown = serde_json::to_value(&plan.images).unwrap();
    assert_eq!(shown[0]["context"], "/p/x");
    assert_eq!(shown[0]["dockerfile"]["file"], "/abs/Dockerfile");
    assert_eq!(shown[0]["outputs"][0]["destination"], "/p/out");
    assert_eq!(
        (&shown[1]["context"], &shown[1]["dockerfile"]["file"]),
        (&"/p".into(), &"/p/Dockerfile".into())
    );
}

#[test]
fn the_documented_example_is_what_a_plan_looks_like() {
    let text = "image app {\n    tags dev\n    push \"localhost:5000/team\"\n}";
    let plan = plan(text, &[], &[]).unwrap();
    let shown = serde_json::to_string_pretty(&plan).unwrap();
    let written = include_str!("../../schema/plan.md");
    let (_, example) = written.split_once("```json\n").unwrap();
    let (example, _) = example.split_once("\n```\n").unwrap();
    assert_eq!(example, shown, "schema/plan.md");
    let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let fields =
        |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let parts =
        [&value, &value["images"][0], &value["registries"]["localhost:5000"], &value["steps"][0]];
    for field in parts.into_iter().flat_map(fields).filter(|field| !field.contains(':')) {
        assert!(written.contains(&format!("`{field}`")), "`{field}` is not documented");
    }
}
