//! Bad input: the exit code, the place, the reason and the way out.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use crate::support::{
    Done, User, base_contexts,
    registry::{Registry, free_port},
};

#[test]
fn a_mistake_in_the_project_file_is_shown_at_its_place() {
    let user = User::new();
    user.write(
        "idpbuilder.kdl",
        "/- kdl-version 2\nimage app {\n    dockerfil \"Dockerfile\"\n    tag v1\n}\n",
    );
    let said = user.run(["run"]).fails(3, &["idpbuilder.kdl", "dockerfil", "dockerfile", "tags"]);
    assert!(said.contains(":3:"), "the line is named: {said}");
    user.run(["plan"]).fails(3, &["dockerfil"]);
}

/// A typo in an architecture would be an image that runs nowhere.
#[test]
fn an_architecture_that_nobody_knows_is_refused_where_it_is_written() {
    let user = User::new();
    user.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let near = ["no architecture is called `amd46`", "did you mean `amd64`?"];
    user.run(["build", "--platform", "linux/arm64,linux/amd46", "."]).fails(3, &near);
    user.run(["check", "--platform", "amd46", "."]).fails(3, &near);
    user.run(["build", "-q", "--platform", "linux/loong64", "."]).ok();
    user.write("idpbuilder.kdl", "image app {\n    platforms \"linux/amd46\"\n}\n");
    let words = ["idpbuilder.kdl:2:", "linux/amd46", "did you mean `amd64`?"];
    user.run(["plan"]).fails(3, &words);
}

#[test]
fn a_store_that_cannot_be_made_is_told_with_the_way_out() {
    let user = User::new();
    user.write("file", "");
    for (name, value) in [
        ("HOME", "/proc"),
        ("HOME", "file"),
        ("IDPBUILDER_HOME", "/proc/x"),
        ("IDPBUILDER_HOME", "/sys/x"),
        ("IDPBUILDER_HOME", "file/x"),
    ] {
        let mut command = user.idp();
        command.env_remove("IDPBUILDER_HOME").env(name, value).arg("images");
        let words = ["nothing can be kept in", value, "set IDPBUILDER_HOME to a folder"];
        Done::of(&mut command).fails(8, &words);
    }
    for verb in [&["cert", "list"][..], &["cert", "remove", "reg.invalid"], &["logs"]] {
        let mut command = user.idp();
        command.env_remove("IDPBUILDER_HOME").env("HOME", "file").args(verb);
        let words = ["nothing can be kept in file/", "set IDPBUILDER_HOME to a folder"];
        Done::of(&mut command).fails(8, &words);
    }
}

#[test]
fn a_missing_dockerfile_is_named_with_the_way_out() {
    let user = User::new();
    user.run(["build", "-t", "demo:v1", "."])
        .fails(3, &["Dockerfile", "does not exist", "-f FILE"]);
    user.write("Dockerfile.prod", "FROM scratch\n");
    user.run(["build", "."]).fails(3, &["there is Dockerfile.prod"]);
    user.write(
        "idpbuilder.kdl",
        "/- kdl-version 2\nimage app {\n    dockerfile \"app/Dockerfile\"\n}\n",
    );
    let said = user.run(["run"]).fails(3, &["app/Dockerfile", "from the folder of idpbuilder.kdl"]);
    assert!(!said.contains("failed: app:"), "the image is named once: {said}");
    assert_planned_as_run(&user, &said);
    user.write("idpbuilder.kdl", "image app { context \"nowhere\" }\n");
    let said = user.run(["run"]).fails(3, &["app: build context", "nowhere does not exist"]);
    assert_planned_as_run(&user, &said);
    // What an image before it writes is not there yet.
    user.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    user.write(
        "idpbuilder.kdl",
        "image one { output local=\"made\" }\nimage two { needs one; context \"made\"; dockerfile \"made/Dockerfile\" }\n",
    );
    user.run(["plan"]).ok();
    user.run(["run"]).ok();
}

/// Whether `plan` says the error that a run ends with.
fn assert_planned_as_run(user: &User, said: &str) {
    let (_, error) = said.split_once("error: ").unwrap();
    let planned = user.run(["plan"]).fails(3, &[]);
    assert_eq!(planned.split_once("error: ").unwrap().1, error);
}

#[test]
fn a_mistake_in_a_dockerfile_is_shown_at_its_line() {
    let user = User::new();
    for (dockerfile, code, words) in [
        ("FROM busybox\nRUM echo hi\n", 3, ["RUM", "Dockerfile:2:", "RUN"]),
        (
            "FROM busybox AS one\nFROM busybox\nCOPY --from=7 /a /b\n",
            3,
            ["7", "Dockerfile:3:", "stage"],
        ),
        ("FROM busybox\nCOPY missing.txt /\n", 1, ["missing.txt", "Dockerfile:2:", "not found"]),
        (
            "FROM busybox\nRUN echo last words; exit 42\n",
            1,
            ["exit code 42", "Dockerfile:2:", "last words"],
        ),
    ] {
        let said = user.build(dockerfile, &["-t", "demo:v1"]).fails(code, &words);
        assert!(said.starts_with("error: ") || said.contains("\nerror: "), "{said}");
    }
    let none = user.run(["images", "--quiet", "demo"]).ok();
    assert_eq!(none, "", "what failed leaves no image");
}

#[test]
fn a_base_without_its_argument_is_told_which() {
    let user = User::new();
    let unset = "FROM argument 'VERSON' is not declared";
    user.build("FROM busybox:${VERSON}\n", &[]).fails(3, &["stage name", unset, "--build-arg"]);
}

#[test]
fn what_cannot_be_asked_or_read_has_a_flag_or_a_file() {
    let user = User::new();
    user.run(["login", "reg.invalid"]).fails(3, &["no terminal to ask on: Username", "--username"]);
    let login = ["login", "reg.invalid", "--username", "me"];
    user.run(login).fails(3, &["no terminal to ask on: Password", "--password-stdin"]);
    user.write("no.pem", "text");
    user.run(["cert", "trust", "reg.invalid", "no.pem"]).fails(5, &["no.pem: not a PEM"]);
    user.run(["load", "--input", "nowhere.tar"]).fails(3, &["nowhere.tar: No such file"]);
    user.run(["run", "--jobs", "0"]).fails(3, &["--jobs"]);
}

#[test]
fn an_unknown_stage_is_answered_with_the_stages_there_are() {
    let user = User::new();
    user.build("FROM busybox AS build\n", &["--target", "biuld"]).fails(3, &["biuld", "build"]);
}

#[test]
fn an_unknown_image_is_answered_with_the_nearest_name() {
    let user = User::new();
    user.build("FROM scratch\nENV A=1\n", &["-t", "localhost:5050/team/api:dev"]).ok();
    user.run(["inspect", "api"]).fails(2, &["did you mean localhost:5050/team/api:dev?"]);
    user.build("FROM busybox\nENV A=1\n", &["-t", "demo:v1"]).ok();
    for args in
        [["push", "deno:v1"], ["history", "deno:v1"], ["inspect", "deno:v1"], ["rmi", "deno:v1"]]
    {
        user.run(args).fails(2, &["deno:v1", "demo:v1"]);
    }
    let mirror = Registry::mirror();
    let missing = format!("127.0.0.1:{}/library/alpine:4.0", mirror.port());
    user.run(["pull", &missing]).fails(2, &[&missing]);
    user.write("Dockerfile", &format!("FROM {missing}\nENV A=1\n"));
    user.run(["build", "."]).fails(2, &[&missing, "Dockerfile:1:"]);
}

/// An image to push, and a registry that nobody trusts yet.
fn with_image(registry: &Registry) -> (User, String) {
    let user = User::new();
    let name = format!("{}/team/demo:v1", registry.address());
    user.build("FROM busybox\nENV A=1\n", &["-t", &name]).ok();
    (user, name)
}

#[test]
fn a_certificate_that_nobody_trusts_is_shown_with_both_ways_to_trust_it() {
    let registry = Registry::tls();
    let (user, name) = with_image(&registry);
    let push = |flags: &[&str]| {
        Done::of(
            user.idp()
                .args(["push", "--username", "admin", "--token", "secret", &name])
                .args(flags),
        )
    };
    let certificate = registry.certificate().display().to_string();
    let openssl = ["x509", "-in", &certificate, "-noout", "-fingerprint", "-sha256"];
    let fingerprint = crate::support::succeeds("openssl", openssl);
    let fingerprint = fingerprint.trim().rsplit('=').next().unwrap();
    let address = registry.address();
    push(&[]).fails(5, &[fingerprint, &format!("cert trust {address}"), "--insecure"]);
    assert!(!registry.holds_anything(), "nothing went to a registry that is not trusted");
    // First way: for once.
    push(&["--insecure"]).ok();
    push(&[]).fails(5, &[fingerprint]);
    // Second way: this certificate, by what was shown.
    user.run(["cert", "trust", &address]).fails(5, &[fingerprint]);
    let (first, rest) = fingerprint.split_at(1);
    let other = format!("{}{rest}", if first == "0" { "1" } else { "0" });
    user.run(["cert", "trust", &address, "--fingerprint", &other]).fails(5, &[]);
    user.run(["cert", "trust", &address, "--fingerprint", fingerprint]).ok();
    push(&[]).ok();
    assert!(user.run(["cert", "list"]).ok().contains(&address));
    user.run(["cert", "remove", &address]).ok();
    push(&[]).fails(5, &[fingerprint]);
}

/// What no client accepts is shown all the same, with what is wrong with it.
#[test]
fn a_certificate_of_an_old_form_or_out_of_its_time_is_shown() {
    let user = User::new();
    user.script(
        "openssl req -new -newkey rsa:2048 -nodes -keyout key -subj /CN=localhost -out request
         echo subjectAltName=DNS:localhost > names
         openssl x509 -req -in request -signkey key -days 9 -out v1.pem
         openssl x509 -req -in request -signkey key -days -1 -extfile names -out expired.pem",
    )
    .ok();
    for (file, words) in
        [("v1.pem", "X.509 version 1: version 3 is needed"), ("expired.pem", "expired on 20")]
    {
        let port = free_port();
        let mut server = user.command("openssl");
        server.args(["s_server", "-cert", file, "-key", "key", "-accept"]);
        server.arg(format!("127.0.0.1:{port}")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = server.stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "ACCEPT"));
        std::thread::spawn(move || lines.for_each(drop));
        let shown = user.run(["cert", "show", &format!("localhost:{port}")]);
        server.kill().and_then(|()| server.wait()).unwrap();
        let shown = shown.ok();
        let fingerprint = ["x509", "-in", file, "-noout", "-fingerprint", "-sha256"];
        let fingerprint = Done::of(user.command("openssl").args(fingerprint)).ok();
        let fingerprint = fingerprint.trim().rsplit('=').next().unwrap();
        for word in
            ["issued to    CN=localhost, valid from", fingerprint, &format!("refused      {words}")]
        {
            assert!(shown.contains(word), "{word}: {shown}");
        }
    }
}

#[test]
fn a_wrong_password_is_no_reason_to_try_again() {
    let registry = Registry::tls();
    let (user, name) = with_image(&registry);
    let address = registry.address();
    user.trust(&registry);
    user.run(["push", "--username", "admin", "--token", "wrong", &name])
        .fails(4, &[&address, "refused"]);
    user.run(["push", &name]).fails(4, &[&address, "idpbuilder login"]);
    user.run_with_input(["login", &address, "-u", "admin", "--password-stdin"], b"wrong")
        .fails(4, &[&address]);
    user.run(["push", &name]).fails(4, &[]);
    user.run_with_input(["login", &address, "-u", "admin", "--password-stdin"], b"secret").ok();
    user.run(["push", &name]).ok();
    user.run(["logout", &address]).ok();
    user.run(["push", &name]).fails(4, &[]);
}

#[test]
fn plain_http_to_a_registry_with_tls_is_told() {
    let (registry, user) = (Registry::tls(), User::new());
    let text = format!(
        "registry r \"{}\" {{ plain-http }}\nimage a {{ dockerfile inline=\"FROM scratch\\nENV a=b\"; push r }}\n",
        registry.address()
    );
    user.write("idpbuilder.kdl", &text);
    user.run(["run"]).fails(6, &["HTTP 400", "leave `plain-http` out"]);
}

#[test]
fn a_registry_that_is_down_is_named() {
    let user = User::new();
    let address = format!("127.0.0.1:{}", free_port());
    let name = format!("{address}/demo:v1");
    user.build("FROM busybox\nENV A=1\n", &["-t", &name]).ok();
    user.run(["push", &name]).fails(6, &[&address]);
    user.run(["pull", &name]).fails(6, &[&address]);
}

#[test]
fn a_flag_that_does_not_exist_is_a_mistake_in_the_command_line() {
    let user = User::new();
    user.run(["build", "--tagg", "x", "."]).fails(3, &["--tagg", "--tag"]);
    user.run(["buidl"]).fails(3, &["buidl", "build"]);
    let mut command = user.idp();
    command.args(["build", "-t", "UPPER:v1"]).args(base_contexts()).arg(".");
    Done::of(&mut command).fails(3, &["UPPER:v1"]);
}

#[test]
fn a_full_disk_is_named_and_nothing_half_written_stays() {
    let user = User::new();
    user.write("Dockerfile", "FROM scratch\nCOPY big /\n");
    user.script("head -c 8000000 /dev/urandom > big; mkdir small").ok();
    // In a mount namespace of its own: the small disk is gone with the script.
    let script = "mount -t tmpfs -o size=3m tmpfs small
        code=0; IDPBUILDER_HOME=$PWD/small/home idpbuilder build . || code=$?
        find small/home/images/tmp -type f | sed 's/^/half-written: /' >&2
        IDPBUILDER_HOME=$PWD/small/home idpbuilder images >&2
        exit $code";
    let mut inside = user.command("unshare");
    inside.args(["--mount", "bash", "-uc", script]);
    let said = Done::of(&mut inside).fails(8, &["no space left", "idpbuilder prune"]);
    assert!(!said.contains("half-written:"), "{said}");
}
