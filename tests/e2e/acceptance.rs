//! The owner's acceptance script.

use crate::support::{User, json, registry::Registry};

const FILES: &str = r#"
printf 'FROM alpine:3.19\nRUN apk add --no-cache curl\nWORKDIR /app\nCOPY hello.sh .\nRUN chmod +x hello.sh\nCMD ["./hello.sh"]\n' > Dockerfile
printf '#!/bin/sh\necho "IDPBuilder works without Docker!"\n' > hello.sh
"#;

/// As it was handed in. What is `alpine:3.19` here is a stand-in that a mirror on loopback serves, and the package step
/// uses the stand-in's own `apk`: no image registry can be counted on. It is pulled first, so the script names no mirror.
#[test]
fn the_script_as_handed_in_ends_with_its_tag_in_the_registry() {
    let (user, mirror, registry) = (User::new(), Registry::mirror(), Registry::cnoe());
    registry.known_to_curl_of(&user);
    user.run(["pull", "--mirror", &mirror.as_mirror(), "alpine:3.19"]).ok();
    drop(mirror);
    let script = format!(
        r#"{FILES}
idpbuilder build -t gitea.cnoe.localtest.me:8443/demo:final .
idpbuilder images | grep "demo:final"
idpbuilder push --username admin --token secret --insecure gitea.cnoe.localtest.me:8443/demo:final
curl -k -u admin:secret https://gitea.cnoe.localtest.me:8443/v2/demo/tags/list | grep "final"
"#
    );
    let said = user.script(&script).ok();
    assert!(said.ends_with("{\"name\":\"demo\",\"tags\":[\"final\"]}\n"), "{said}");
    let image = registry.inspect("demo:final");
    assert_eq!(image["Layers"].as_array().unwrap().len(), 5, "the base and four steps: {image}");
}

/// Its variants, with the flags that it also names, and a mirror given to the build itself.
#[test]
fn every_variant_of_the_script_ends_with_its_tag_in_the_registry() {
    let (mirror, registry) = (Registry::mirror(), Registry::cnoe());
    for (name, tag, flags) in [
        ("demo", "final", "-t"),
        ("demo", "v1.0", "--dockerfile Dockerfile --tag"),
        ("test", "v1", "--file Dockerfile --tag"),
    ] {
        let user = User::new();
        registry.known_to_curl_of(&user);
        let (image, mirror) =
            (format!("gitea.cnoe.localtest.me:8443/{name}:{tag}"), mirror.as_mirror());
        let script = format!(
            r#"{FILES}
idpbuilder build --mirror {mirror} {flags} {image} .
idpbuilder images | grep "{image}"
idpbuilder push --username admin --token secret --insecure {image}
curl -k -u admin:secret https://gitea.cnoe.localtest.me:8443/v2/{name}/tags/list | grep "{tag}"
"#
        );
        user.script(&script).ok();
        let found = registry.inspect(&format!("{name}:{tag}"));
        assert_eq!(found["Digest"].as_str().unwrap().len(), "sha256:".len() + 64);
    }
}

/// The same content with a Debian, whose package tool fetches and installs for real; what was pushed is run once more
/// from the registry, with the real curl in it.
#[test]
fn with_debian_the_package_tool_fetches_and_installs() {
    let (user, mirror, registry) = (User::new(), Registry::mirror(), Registry::cnoe());
    registry.known_to_curl_of(&user);
    let mirror = mirror.as_mirror();
    let files = FILES
        .replace("FROM alpine:3.19", "FROM debian:bookworm")
        .replace("RUN apk add --no-cache curl", "RUN apt-get update && apt-get install -y curl");
    let script = format!(
        r#"{files}
idpbuilder build --mirror {mirror} -t gitea.cnoe.localtest.me:8443/demo:final .
idpbuilder images | grep "demo:final"
idpbuilder push --username admin --token secret --insecure gitea.cnoe.localtest.me:8443/demo:final
curl -k -u admin:secret https://gitea.cnoe.localtest.me:8443/v2/demo/tags/list | grep "final"
"#
    );
    user.script(&script).ok();

    let other = User::new();
    other.trust(&registry);
    other
        .run_with_input(
            ["login", &registry.address(), "-u", "admin", "--password-stdin"],
            b"secret\n",
        )
        .ok();
    let dockerfile = format!(
        "FROM {}/demo:final\nRUN ./hello.sh > /said && curl --version > /curl\n",
        registry.address()
    );
    let said = other.build(&dockerfile, &["--output", "type=local,dest=out"]);
    said.ok();
    let read = |name: &str| std::fs::read_to_string(other.work().join("out").join(name)).unwrap();
    assert_eq!(read("said"), "IDPBuilder works without Docker!\n");
    assert!(read("curl").starts_with("curl 7."), "{}", read("curl"));
    let status = read("var/lib/dpkg/status");
    assert!(status.contains("Package: libcurl4\n"), "its dependencies are installed too");
}

/// `images` prints what scripts look for, in each form.
#[test]
fn images_names_what_was_built() {
    let user = User::new();
    let name = "gitea.cnoe.localtest.me:8443/demo:v1.0";
    let id = user.build("FROM busybox\nRUN echo hi > /hi\n", &["-t", name]).ok();
    let table = user.run(["images"]).ok();
    let heading = table.lines().next().unwrap();
    assert_eq!(
        heading.split_whitespace().collect::<Vec<_>>(),
        ["IMAGE", "IMAGE", "ID", "CREATED", "SIZE"]
    );
    assert!(table.lines().any(|line| line.starts_with(&format!("{name} "))), "{table}");
    let format = "{{.Repository}}|{{.Tag}}|{{.ID}}";
    let lines = user.run(["images", "--no-trunc", "--format", format]).ok();
    let wanted = format!("gitea.cnoe.localtest.me:8443/demo|v1.0|{}", id.trim());
    assert!(lines.lines().any(|line| line == wanted), "{lines}");
    let objects = user.run(["images", "--format", "json"]).ok();
    assert!(objects.lines().any(|line| json(line)["Tag"] == "v1.0"), "{objects}");
}
