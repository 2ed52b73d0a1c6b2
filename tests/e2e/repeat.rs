//! The same input gives the same bytes: again, elsewhere, without the cache, side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Stdio,
};

use crate::support::{Done, ROOT, User, base_contexts, json, registry::Registry};

/// Several stages, files, links, owners, removals, a merge of two stages.
const DOCKERFILE: &str = r#"FROM busybox AS one
RUN mkdir -p /data/sub && echo one > /data/sub/one && ln -s sub/one /data/link && ln /data/sub/one /data/hard
RUN chown -R 1000:1001 /data && chmod 4750 /data/sub/one && rm /base/file && rm -r /base/sub

FROM busybox AS two
WORKDIR /app
COPY --chown=33:33 --chmod=640 files/ files/
RUN --mount=type=bind,source=files,target=/in cat /in/* > /app/all

FROM one
COPY --from=two /app /app
ENV A=1 B=2
RUN rm -r /app/files/b && mkdir /app/files/b && echo new > /app/files/b/new
LABEL x=y
CMD ["sh"]
"#;

fn prepared() -> User {
    let user = User::new();
    user.write("files/a", "a\n");
    user.write("files/b", "b\n");
    user
}

/// Digest of the manifest and of the config, of a build with fixed times.
fn digests(user: &User, flags: &[&str]) -> (String, String) {
    digests_and_outcomes(user, flags).0
}

/// How a step came by its result.
fn outcomes(said: &str) -> impl Iterator<Item = (String, String)> {
    let events = said.lines().map(json).filter(|event| event["event"] == "step-done");
    events.map(|event| {
        let text = |key: &str| event[key].as_str().unwrap().to_owned();
        (text("name"), text("outcome"))
    })
}

/// The same, and in which ways steps came by their results.
fn digests_and_outcomes(user: &User, flags: &[&str]) -> ((String, String), BTreeSet<String>) {
    let mut all = vec![
        "-t",
        "demo:v1",
        "--build-arg",
        "SOURCE_DATE_EPOCH=1700000000",
        "--metadata-file",
        "metadata",
        "--progress",
        "json",
    ];
    all.extend(flags);
    let done = user.build(DOCKERFILE, &all);
    assert_eq!(done.code, 0, "{done}");
    let metadata = json(&fs::read_to_string(user.work().join("metadata")).unwrap());
    let digest = |key: &str| metadata[key].as_str().unwrap().to_owned();
    let digests = (digest("containerimage.digest"), digest("containerimage.config.digest"));
    (digests, outcomes(&done.err).map(|(_, outcome)| outcome).collect())
}

#[test]
fn the_same_input_gives_the_same_digest_with_and_without_the_cache_and_elsewhere() {
    let user = prepared();
    let first = digests(&user, &[]);
    assert_eq!(digests(&user, &[]), first, "from the cache");
    assert_eq!(digests(&user, &["--no-cache"]), first, "without the cache");
    let other = prepared();
    assert_eq!(digests(&other, &["-j", "1"]), first, "in another home, one step at a time");
}

#[test]
fn without_a_given_time_the_cache_gives_the_same_bytes_again() {
    let user = prepared();
    let first = user.build(DOCKERFILE, &["-t", "demo:v1"]).ok();
    assert_eq!(user.build(DOCKERFILE, &["-t", "demo:v1"]).ok(), first);
    // New times of files are no new content.
    fs::write(user.work().join("files/a"), "a\n").unwrap();
    assert_eq!(user.build(DOCKERFILE, &["-t", "demo:v1"]).ok(), first);
    fs::write(user.work().join("files/a"), "other\n").unwrap();
    assert_ne!(user.build(DOCKERFILE, &["-t", "demo:v1"]).ok(), first);
}

/// Whatever a collection leaves of what was built before: all of it, some of it, nothing.
#[test]
fn what_a_collection_takes_changes_no_byte() {
    let user = prepared();
    let first = digests(&user, &[]);
    let mut seen = BTreeSet::new();
    for words in ["--cache-days=9", "--max-size=24k", "--max-size=16k", "--cache-days=0"] {
        // A name would keep the whole image.
        user.run(["rmi", "demo:v1"]).ok();
        user.run(["prune", words]).ok();
        let (digests, outcomes) = digests_and_outcomes(&user, &[]);
        assert_eq!(digests, first, "after prune {words}");
        seen.insert(outcomes.into_iter().collect::<Vec<_>>().join(" and "));
    }
    let all = ["built", "built and cached", "cached"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(all), "each is tried");
}

/// Of every project among the examples: again, after a collection, without the cache, and by somebody else.
#[test]
fn every_example_is_built_to_the_same_bytes_in_every_way() {
    // One of them names a certificate.
    let (mirror, registry) = (Registry::mirror(), Registry::tls());
    let examples = fs::read_dir(Path::new(ROOT).join("examples")).unwrap();
    for example in examples.map(|example| example.unwrap().file_name().into_string().unwrap()) {
        let (user, other) = (User::new(), User::rootless());
        let made = |user: &User, flags: &[&str]| {
            let mut run = user.idp();
            run.args(["run", "--no-push", "--mirror", &mirror.as_mirror()]).args(flags);
            Done::of(&mut run).ok();
            user.run(["images", "--format", "{{.Image}} {{.Digest}}"]).ok()
        };
        for user in [&user, &other] {
            user.copy_of(&format!("examples/{example}"));
            let certificates = user.account().join(".idpbuilder/certs");
            fs::create_dir_all(&certificates).unwrap();
            fs::copy(registry.certificate(), certificates.join("gitea.pem")).unwrap();
        }
        let first = made(&user, &[]);
        assert!(first.contains("sha256:"), "{example}: {first}");
        assert_eq!(made(&user, &[]), first, "{example}: from the cache");
        assert_eq!(made(&user, &["--no-cache"]), first, "{example}: without the cache");
        user.run(["prune", "--cache-days", "0"]).ok();
        assert_eq!(made(&user, &["-j", "1"]), first, "{example}: after a collection");
        assert_eq!(made(&other, &[]), first, "{example}: by an ordinary user");
    }
}

#[test]
fn only_what_changed_is_built_again() {
    let user = prepared();
    user.build(DOCKERFILE, &["-t", "demo:v1"]).ok();
    fs::write(user.work().join("files/a"), "other\n").unwrap();
    let said = user.build(DOCKERFILE, &["-t", "demo:v1", "--progress", "json"]);
    assert_eq!(said.code, 0, "{said}");
    let built = outcomes(&said.err).filter(|(_, outcome)| outcome != "cached");
    let built: Vec<_> =
        built.map(|(name, how)| (name.chars().take(12).collect::<String>(), how)).collect();
    let wanted = ["COPY --chown", "RUN --mount=", "COPY --from=", "RUN rm -r /a"];
    let wanted = wanted.map(|name| (name.to_owned(), "built".to_owned()));
    assert_eq!(built, wanted, "the changed file, and what comes after it");
}

#[test]
fn two_builds_at_once_share_one_store() {
    let user = User::new();
    let users: Vec<String> = (0..4).map(|n| format!("d{n}")).collect();
    for name in &users {
        // The first steps are the same, the last differs.
        let text = format!("FROM busybox\nRUN echo same > /same\nRUN echo {name} > /own\n");
        user.write(&format!("{name}/Dockerfile"), &text);
    }
    let build = |name: &String| {
        let mut command = user.idp();
        command.args(["build", "-q", "-t", &format!("{name}:v1")]).args(base_contexts()).arg(name);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let running: Vec<_> = users.iter().map(build).collect();
    let mut ids = BTreeMap::new();
    for (name, child) in users.iter().zip(running) {
        let done = Done::from_output(format!("build {name}"), &child.wait_with_output().unwrap());
        ids.insert(name.clone(), done.ok());
    }
    for (name, id) in &ids {
        let found = user.run(["images", "--no-trunc", "--format", "{{.ID}}", name]).ok();
        assert_eq!(&found, id);
        let path = format!("out-{name}");
        user.run(["save", "--form", "oci-dir", "-o", &path, &format!("{name}:v1")]).ok();
    }
    let leftover = fs::read_dir(user.home().join("images/tmp")).map_or(0, Iterator::count);
    assert_eq!(leftover, 0, "nothing is left in tmp");
}

/// A step takes unchanged files from the layer that it made before. Whatever changed since, the result is
/// that of a home that has nothing.
#[test]
fn a_layer_made_with_the_help_of_an_earlier_one_is_the_same_as_a_fresh_one() {
    use std::os::unix::fs::PermissionsExt as _;
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change); 8] = [
        ("a file", |work| fs::write(work.join("src/d/1"), "other").unwrap()),
        ("a file of the same size", |work| fs::write(work.join("src/d/2"), "same!").unwrap()),
        ("a new file", |work| fs::write(work.join("src/d/0"), "new").unwrap()),
        ("a file less", |work| fs::remove_file(work.join("src/d/3")).unwrap()),
        ("two names swapped", |work| {
            fs::rename(work.join("src/a"), work.join("src/x")).unwrap();
            fs::rename(work.join("src/b"), work.join("src/a")).unwrap();
            fs::rename(work.join("src/x"), work.join("src/b")).unwrap();
        }),
        ("a mode", |work| {
            fs::set_permissions(work.join("src/a"), fs::Permissions::from_mode(0o700)).unwrap();
        }),
        ("a link for a file", |work| {
            fs::remove_file(work.join("src/b")).unwrap();
            std::os::unix::fs::symlink("a", work.join("src/b")).unwrap();
        }),
        ("what another source covered", |work| fs::remove_file(work.join("over/a")).unwrap()),
    ];
    let dockerfile = "FROM scratch\nCOPY src /one/\nCOPY src over /two/\n";
    let prepare = |user: &User| {
        user.write("over/a", "over!");
        for (name, text) in
            [("a", "aaaaa"), ("b", "bbbbb"), ("d/1", "one"), ("d/2", "two!!"), ("d/3", "3")]
        {
            user.write(&format!("src/{name}"), text);
        }
    };
    let (user, other) = (User::new(), User::new());
    prepare(&user);
    prepare(&other);
    user.build(dockerfile, &["-q"]).ok();
    for (what, change) in changes {
        change(&user.work());
        change(&other.work());
        let helped = user.build(dockerfile, &["-q"]).ok();
        fs::remove_dir_all(other.home()).ok();
        assert_eq!(helped, other.build(dockerfile, &["-q"]).ok(), "{what}");
    }
}

/// Forms in which a registry has one and the same layer; none is the one that we make of it.
const FORMS: [(&str, &str); 3] = [
    ("gzip", "compression=gzip,compression-level=1"),
    ("zstd", "compression=zstd,compression-level=1"),
    ("plain", "compression=uncompressed"),
];

/// What a build leaves in every way out of the store: the manifests, by what asked for them.
fn ways_out(user: &User, dockerfile: &str, name: &str) -> BTreeMap<String, String> {
    let mut left = BTreeMap::new();
    let told = || fs::read_to_string(user.work().join("told")).unwrap();
    user.build(dockerfile, &["-t", name, "--metadata-file", "told"]).ok();
    left.insert("stored".to_owned(), told());
    for output in [
        "type=oci",
        "type=oci,compression=zstd",
        "type=oci,compression=gzip,force-compression=true",
        "type=oci,compression=uncompressed,force-compression=true",
        "type=oci,rewrite-timestamp=true",
        "type=docker",
        "type=docker,compression=gzip",
    ] {
        let flag = format!("{output},dest=out,tar=false");
        let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
        let flags = [&["--output", &flag, "--metadata-file", "told"], &epoch[..]].concat();
        user.build(dockerfile, &flags).ok();
        left.insert(output.to_owned(), told());
        fs::remove_dir_all(user.work().join("out")).unwrap();
    }
    for compression in ["gzip", "zstd", "uncompressed"] {
        let pushed = user.run(["push", "--compression", compression, name]).ok();
        left.insert(format!("push {compression}"), pushed);
    }
    user.run(["save", "--form", "oci-dir", "-o", "saved", name]).ok();
    left.insert(
        "save".to_owned(),
        fs::read_to_string(user.work().join("saved/index.json")).unwrap(),
    );
    fs::remove_dir_all(user.work().join("saved")).unwrap();
    left
}

#[test]
fn what_a_build_writes_does_not_depend_on_the_forms_of_its_layers_that_were_pulled_before() {
    let (registry, maker) = (Registry::plain(), User::new());
    let low: String = (0..4000).map(|n| format!("{n} of many lines\n")).collect();
    let base = |form: &str| format!("127.0.0.1:{}/team/{form}:v1", registry.port());
    let own = "FROM scratch\nCOPY low /low\n";
    maker.write("low", &low);
    for (form, options) in FORMS {
        let output = format!("type=oci,dest={form},tar=false,{options}");
        maker.build(own, &["-t", "base:v1", "--output", &output]).ok();
        let mut skopeo = maker.command("skopeo");
        skopeo.args(["--insecure-policy", "copy", "-q", "--preserve-digests"]);
        skopeo.arg("--dest-tls-verify=false");
        skopeo.args([&format!("oci:{form}:v1"), &format!("docker://{}", base(form))]);
        Done::of(&mut skopeo).ok();
    }
    let cases: Vec<String> = (FORMS.iter())
        .map(|(form, _)| format!("FROM {}\nCOPY --link f /f\n", base(form)))
        .chain([own.to_owned(), format!("{own}COPY f /f\n")])
        .collect();
    let home = |seen: &dyn Fn(&User)| {
        let user = User::new();
        user.write("low", &low);
        user.write("f", "f\n");
        seen(&user);
        user
    };
    let link = |user: &User, form: &str| {
        user.build(&format!("FROM {}\nCOPY --link f /g\n", base(form)), &[]).ok();
    };
    let (fresh, warm): (Vec<User>, Vec<User>) = (
        cases.iter().map(|_| home(&|_| ())).collect(),
        vec![
            home(&|user| drop(user.run(["pull", &base("gzip")]).ok())),
            home(&|user| drop(user.run(["pull", &base("zstd")]).ok())),
            home(&|user| drop(user.run(["pull", &base("plain")]).ok())),
            home(&|user| FORMS.iter().for_each(|(form, _)| link(user, form))),
            // The layer is made here first.
            home(&|user| drop(user.build(own, &["-t", "base:v1"]).ok())),
        ],
    );
    for (number, (dockerfile, fresh)) in cases.iter().zip(&fresh).enumerate() {
        let name = format!("127.0.0.1:{}/built/{number}:v1", registry.port());
        let wanted = ways_out(fresh, dockerfile, &name);
        for (at, warm) in warm.iter().enumerate() {
            assert_eq!(ways_out(warm, dockerfile, &name), wanted, "home {at}: {dockerfile}");
        }
    }
    // What is plain in its registry stays so, in an image on the image too, and nothing says why.
    let (user, [below, above]) = (&fresh[2], ["built/2:v1", "built/on:v1"]);
    let name = |image: &str| format!("127.0.0.1:{}/{image}", registry.port());
    user.build(&format!("FROM {}\nCOPY --link low /on\n", name(below)), &["-t", &name(above)]).ok();
    for (image, types) in [(below, &["", "+gzip"][..]), (above, &["", "+gzip", "+gzip"])] {
        user.run(["push", &name(image)]).ok();
        let mut skopeo = user.command("skopeo");
        skopeo.args(["inspect", "--raw", "--tls-verify=false"]);
        let manifest = json(&Done::of(skopeo.arg(format!("docker://{}", name(image)))).ok());
        let layers = manifest["layers"].as_array().unwrap();
        let found: Vec<_> =
            layers.iter().map(|layer| layer["mediaType"].as_str().unwrap()).collect();
        let media_type = |end: &&str| format!("application/vnd.oci.image.layer.v1.tar{end}");
        assert_eq!(found, types.iter().map(media_type).collect::<Vec<_>>());
        assert!(layers.iter().all(|layer| layer["annotations"].is_null()), "{layers:?}");
    }
}
