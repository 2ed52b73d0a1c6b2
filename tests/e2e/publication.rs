//! What reaches a registry, and when: all tags of a run or none, and only with a login that holds.

use std::fs;

use crate::support::{
    Done, User, json,
    registry::{PASSWORD, Registry, USERNAME},
};

fn project(user: &User, registry: &Registry, second: &str) {
    let (address, certificate) = (registry.address(), registry.certificate().display().to_string());
    user.write(
        "idpbuilder.kdl",
        &format!(
            r##"
            registry there "{address}" {{
                namespace team
                auth username={USERNAME} password-env=REGISTRY_PASSWORD
                tls ca="{certificate}"
            }}
            image first {{ dockerfile inline="FROM scratch\nENV A=1\n"; tags v1; push there }}
            image second {{ dockerfile inline="{second}"; tags v1 v2; push there }}
            "##
        ),
    );
}

fn run(user: &User, words: &[&str]) -> Done {
    Done::of(user.idp().arg("run").args(words).env("REGISTRY_PASSWORD", PASSWORD))
}

#[test]
fn a_run_that_fails_moves_no_tag_and_the_next_one_moves_all() {
    let registry = Registry::tls();
    let user = User::new();
    project(&user, &registry, "FROM scratch\\nCOPY missing /\\n");
    for words in [&[][..], &["--keep-going"]] {
        run(&user, words).fails(1, &["/missing", "second"]);
        for repository in ["first", "second"] {
            let name = format!("{}/team/{repository}:v1", registry.address());
            let access = ["--insecure", "--username", USERNAME, "--token", PASSWORD];
            Done::of(user.idp().args(["pull", &name]).args(access)).fails(2, &["not found"]);
        }
    }
    project(&user, &registry, "FROM scratch\\nENV B=2\\n");
    run(&user, &[]).ok();
    let tags = |repository: &str| {
        let list = json(&registry.get(&format!("/v2/team/{repository}/tags/list")));
        list["tags"].as_array().unwrap().len()
    };
    assert_eq!((tags("first"), tags("second")), (1, 2));
}

#[test]
fn a_run_without_push_leaves_the_registry_alone() {
    let registry = Registry::tls();
    let user = User::new();
    project(&user, &registry, "FROM scratch\\nENV B=2\\n");
    run(&user, &["--no-push"]).ok();
    assert!(!registry.holds_anything());
    user.run(["inspect", &format!("{}/team/second:v2", registry.address())]).ok();
}

#[test]
fn every_event_is_a_json_object_and_the_last_one_says_how_it_ended() {
    let registry = Registry::tls();
    let user = User::new();
    project(&user, &registry, "FROM scratch\\nENV B=2\\n");
    let mut command = user.idp();
    command.args(["--progress", "json", "run"]).env("REGISTRY_PASSWORD", PASSWORD);
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let events: Vec<serde_json::Value> = told.lines().map(json).collect();
    assert_eq!(events[0]["event"], "planned");
    let last = &events[events.len() - 1];
    assert_eq!((&last["event"], &last["ok"]), (&"finished".into(), &true.into()));
    let pushed = events.iter().filter(|event| event["event"] == "pushed").count();
    assert_eq!(pushed, 3, "{told}");
    let stored = events.iter().find(|event| event["event"] == "image-stored").unwrap();
    assert!(stored["seconds"].as_f64().unwrap() > 0.0, "{stored}");
}

#[test]
fn a_login_is_kept_only_when_the_registry_takes_it_and_gone_after_logout() {
    let registry = Registry::tls();
    let (user, address) = (User::new(), registry.address());
    user.trust(&registry);
    let name = format!("{address}/team/demo:v1");
    user.build("FROM scratch\nENV A=1\n", &["-t", &name]).ok();
    let login = ["login", &address, "--username", USERNAME, "--password-stdin"];
    user.run_with_input(login, b"wrong\n").fails(4, &[&address]);
    user.run(["push", &name]).fails(4, &["idpbuilder login"]);
    user.run_with_input(login, format!("{PASSWORD}\n").as_bytes()).ok();
    user.run(["push", &name]).ok();
    let file = user.account().join(".docker/config.json");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    user.run(["logout", &address]).ok();
    user.run(["logout", &address]).fails(2, &[&address]);
    user.run(["tag", &name, &format!("{address}/team/other:v1")]).ok();
    user.run(["push", &format!("{address}/team/other:v1")]).fails(4, &["idpbuilder login"]);
}
