//! The diagnostic commands of the owner's plan.

use crate::support::{User, registry::Registry};

#[test]
fn parse_dockerfile_prints_one_instruction_a_line() {
    let user = User::new();
    let text = "# syntax=docker/dockerfile:1\nARG V=1\nFROM alpine:3.19 AS a\n\nRUN echo one && \\\n    echo two\nCOPY --from=a /x /y\nCMD [\"sh\"]\n";
    user.write("Dockerfile", text);
    let said = user.run(["internal", "parse-dockerfile", "Dockerfile"]).ok();
    let wanted = [
        "ARG V=1",
        "FROM alpine:3.19 AS a",
        "RUN echo one &&     echo two",
        "COPY --from=a /x /y",
        "CMD [\"sh\"]",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), wanted);
    user.write("Dockerfile", "FROM alpine\nFLY away\n");
    user.run(["internal", "parse-dockerfile", "Dockerfile"]).fails(3, &["FLY", "Dockerfile"]);
}

#[test]
fn test_executor_counts_layers() {
    let (user, mirror) = (User::new(), Registry::mirror());
    for (text, layers) in [
        ("FROM alpine\nRUN echo hello\n", 2),
        ("FROM alpine\nENV A=1\n", 1),
        ("FROM alpine\nRUN echo a > /a\nRUN echo b > /b\nUSER nobody\n", 3),
        ("FROM scratch\nENV A=1\n", 0),
    ] {
        // The mirror has one tag of alpine.
        user.write("test.Dockerfile", &text.replace("alpine", "alpine:3.19"));
        let args =
            ["internal", "test-executor", "--mirror", &mirror.as_mirror(), "test.Dockerfile"];
        assert_eq!(user.run(args).ok(), format!("{layers} layers created\n"), "{text}");
    }
}

#[test]
fn a_test_image_gives_back_what_was_put_in() {
    let user = User::new();
    for data in [b"hello\n".to_vec(), Vec::new(), (0..=255).cycle().take(1 << 20).collect()] {
        user.run_with_input(["internal", "save-test-image", "probe:v1"], &data).ok();
        let output = user.idp().args(["internal", "load-test-image", "probe:v1"]).output().unwrap();
        assert!(output.status.success() && output.stdout == data, "{} bytes", data.len());
    }
    user.run(["internal", "load-test-image", "no/such:v1"]).fails(2, &["no/such:v1"]);
}

#[test]
fn test_connection_tells_trust_and_login_apart() {
    let (user, registry) = (User::new(), Registry::tls());
    let address = registry.address();
    let ping = |flags: &[&str]| {
        let mut command = user.idp();
        command.args(["internal", "test-connection", &address]).args(flags);
        crate::support::Done::of(&mut command)
    };
    let login = ["--username", "admin", "--token", "secret"];
    ping(&login).fails(5, &["sha256", "cert trust", "--insecure"]);
    user.trust(&registry);
    ping(&login).ok();
    ping(&["--username", "admin", "--token", "wrong"]).fails(4, &[&address]);
}
