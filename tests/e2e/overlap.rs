//! What happens at once: pushes beside later steps, and two processes with the same work.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
};

use crate::support::{Done, User, base_contexts, busybox, registry::Registry};

/// Waits for a file that the test makes in the cache mount, and is done then.
const WAIT: &str = "RUN --mount=type=cache,target=/gate touch /gate/here && until [ -e /gate/go ]; do sleep 0.05; done";

fn spawn(user: &User, flags: &[&str]) -> Child {
    let mut command = user.idp();
    command.args(["build", "--progress", "plain"]).args(flags).args(base_contexts()).arg(".");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The folder of the one cache mount, once the step is in it.
fn gate(user: &User) -> PathBuf {
    let folder = user.home().join("images/cache-mounts");
    loop {
        let entries = fs::read_dir(&folder).into_iter().flatten();
        let mut found = entries.filter_map(|entry| Some(entry.ok()?.path()));
        if let Some(cache) = found.find(|path| path.join("data/here").exists()) {
            return cache.join("data");
        }
        std::thread::yield_now();
    }
}

fn finish(mut child: Child) -> String {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    text
}

fn trusted(registry: &Registry) -> (User, String) {
    let user = User::new();
    let address = format!("localhost:{}", registry.port());
    let ca = registry.certificate().display().to_string();
    user.run(["cert", "trust", &address, &ca]).ok();
    let login = ["login", &address, "-u", "admin", "--password-stdin"];
    user.run_with_input(login, b"secret\n").ok();
    (user, format!("{address}/demo:1"))
}

#[test]
fn a_process_that_fails_is_run_and_told_once_for_all_images_that_need_it() {
    let user = User::new();
    let busybox = busybox();
    let (_, layout) = busybox.split_once('=').unwrap();
    let image = |name: &str| {
        format!(
            "image {name} {{ dockerfile inline=\"FROM busybox\\nRUN echo ran; exit 7\\nRUN echo {name}\"\n\
             build-context busybox=\"{layout}\" }}\n"
        )
    };
    user.write("idpbuilder.kdl", &["a", "b", "c"].map(image).concat());
    for flags in [["-j1", "--keep-going"], ["-j4", "--keep-going"]] {
        let mut command = user.idp();
        command.args(["run", "--no-push", "--progress", "plain"]).args(flags);
        let done = Done::of(&mut command);
        assert_eq!(done.err.matches("| ran").count(), 1, "{done}");
        assert_eq!(done.err.matches("error: ").count(), 1, "{done}");
        let said = done.fails(1, &["ended with exit code 7", "failed for "]);
        let too = said.lines().find_map(|line| line.strip_prefix("  fails too    ")).unwrap();
        assert_eq!(too.split(", ").count(), 2, "{said}");
    }
}

#[test]
fn a_layer_is_in_the_registry_while_the_next_step_runs_and_its_tag_is_not() {
    let registry = Registry::tls();
    let (user, name) = trusted(&registry);
    user.write("page", "page\n");
    user.write("Dockerfile", &format!("FROM busybox\nCOPY page /page\n{WAIT}\n"));
    let running = spawn(&user, &["-t", &name, "--push"]);
    let gate = gate(&user);
    while !registry.holds_anything() || registry.blobs().is_empty() {
        std::thread::yield_now();
    }
    assert!(!gate.join("go").exists(), "the step still runs");
    fs::write(gate.join("go"), "").unwrap();
    let said = finish(running);
    let tags = registry.get("/v2/demo/tags/list");
    assert!(tags.contains("\"1\""), "{tags}\n{said}");
}

#[test]
fn a_failed_build_leaves_no_name_in_the_registry() {
    let registry = Registry::tls();
    let (user, name) = trusted(&registry);
    user.write("page", "page\n");
    let text = "FROM busybox\nCOPY page /page\nRUN false\n";
    user.build(text, &["-t", &name, "--push"]).fails(1, &["exit code 1"]);
    let manifests = registry.folder().join("data/docker/registry/v2/repositories/demo/_manifests");
    assert!(!manifests.exists(), "only blobs may have left");
}

#[test]
fn two_processes_do_the_same_step_once_and_say_who_waits_for_whom() {
    let user = User::new();
    user.write("Dockerfile", &format!("FROM busybox\n{WAIT} && echo x >> /gate/count\n"));
    let first = spawn(&user, &["-t", "demo:1"]);
    let gate = gate(&user);
    let mut second = spawn(&user, &["-t", "demo:2"]);
    let mut said = BufReader::new(second.stderr.take().unwrap()).lines();
    let words = format!("waits for process {}", first.id());
    assert!(said.any(|line| line.unwrap().contains(&words)), "nobody said `{words}`");
    fs::write(gate.join("go"), "").unwrap();
    finish(first);
    let rest: Vec<String> = said.map(Result::unwrap).collect();
    assert!(second.wait().unwrap().success(), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("[1/1] cached")), "{rest:?}");
    assert_eq!(fs::read_to_string(gate.join("count")).unwrap(), "x\n", "it was done once");
    let turns = fs::read_dir(user.home().join("images/turns")).unwrap().count();
    assert_eq!(turns, 0, "nothing is left");
}

#[test]
fn the_cache_of_a_stage_or_of_an_old_run_is_left_out_when_asked() {
    let user = User::new();
    let text = "FROM busybox AS one\nRUN echo a > /a\nFROM busybox AS two\nRUN echo b > /b\n\
                COPY --from=one /a /a\n";
    user.write("Dockerfile", text);
    let outcomes = |flags: &[&str]| {
        let mut command = user.idp();
        command.args(["build", "-q"]).args(flags).args(base_contexts()).arg(".");
        Done::of(&mut command).ok();
        let text = user.run(["explain"]).ok();
        text.lines()
            .skip(1)
            .map(|line| line.split_once("] ").unwrap().1.to_owned())
            .collect::<Vec<_>>()
    };
    outcomes(&[]);
    let without = "the cache is not used for stage two";
    assert_eq!(
        outcomes(&["--no-cache-filter", "TWO,none"]),
        [
            "cached RUN echo a > /a".to_owned(),
            format!("built  RUN echo b > /b: {without}"),
            format!("built  COPY --from=one /a /a: {without}"),
        ]
    );
    let mut typo = user.idp();
    typo.args(["build", "--no-cache-filter", "one,tow,7", "."]).args(base_contexts());
    let said = Done::of(&mut typo);
    for text in ["no stage is called tow (did you mean two?)", "no stage is called 7\n"] {
        assert!(said.err.contains(&format!("warning: --no-cache-filter: {text}")), "{said}");
    }
    assert!(!said.err.contains("called one"), "{said}");
    let old = outcomes(&["--run-ttl", "0s"]);
    assert!(old[0].starts_with("built  RUN echo a > /a: its result is "), "{old:?}");
    assert!(old[1].starts_with("built  RUN echo b > /b: its result is "), "{old:?}");
    assert_eq!(old[2], "cached COPY --from=one /a /a", "equal content joins the cache again");
    assert!(outcomes(&["--run-ttl", "1d"]).iter().all(|line| line.starts_with("cached")));
    user.run(["build", "--run-ttl", "soon", "."]).fails(3, &["--run-ttl", "12h"]);
}

#[test]
fn steps_that_wait_for_their_turn_are_no_threads() {
    const STAGES: usize = 400;
    let user = User::new();
    user.write("page", "page\n");
    let jobs = std::thread::available_parallelism().unwrap().get().max(2);
    let (mut text, mut last) = (String::new(), "FROM scratch\n".to_owned());
    // As many as work at once: one does the step, the others wait for its result.
    for number in 0..jobs {
        text += &format!("FROM busybox AS wait{number}\n{WAIT}\n");
        last += &format!("COPY --from=wait{number} /bin/busybox /busybox{number}\n");
    }
    for number in 0..STAGES {
        text += &format!("FROM scratch AS stage{number}\nCOPY page /page{number}\n");
        last += &format!("COPY --from=stage{number} / /\n");
    }
    user.write("Dockerfile", &(text + &last));
    let running = spawn(&user, &["-t", "demo:1"]);
    let gate = gate(&user);
    let status = fs::read_to_string(format!("/proc/{}/status", running.id())).unwrap();
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
    let threads: usize = threads.trim().parse().unwrap();
    fs::write(gate.join("go"), "").unwrap();
    finish(running);
    assert!(threads < jobs + STAGES / 4, "{threads} threads");
}
