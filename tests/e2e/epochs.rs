//! `SOURCE_DATE_EPOCH` that names where its time comes from.

use std::{fs, process::Command};

use crate::{
    git::{PRIVATE, shop},
    support::{Done, User, json, web::Web},
};

/// The time that an image says it was created at.
fn created(user: &User, args: &[&str]) -> Result<String, Done> {
    let mut command = user.idp();
    command.args(["--quiet", "build", PRIVATE]).args(args);
    let done = Done::of(&mut command);
    if done.code != 0 {
        return Err(done);
    }
    let image = json(&user.run(["inspect", done.out.trim()]).ok());
    Ok(image[0]["Config"]["created"].as_str().unwrap().to_owned())
}

/// When nothing is known, everything is of this time.
const NEVER: &str = "2024-01-01T00:00:00Z";
/// Of the commits of [`shop`].
const COMMIT: &str = "2022-04-15T05:20:00Z";
const MODIFIED: &str = "2015-10-10T02:34:04Z";
const HEADER: (&str, &str) = ("Last-Modified", "Sat, 10 Oct 2015 02:34:04 GMT");
const NEWEST: &str = "2017-07-14T02:40:00Z";

/// An archive whose newest file is of [`NEWEST`]; its folder is newer.
fn archive(user: &User) -> Vec<u8> {
    let script = "mkdir -p t; echo a > t/a; echo b > t/b; touch -d @1400000000 t/a; touch -d @1500000000 t/b; \
                  touch -d @1600000000 t; tar -cf t.tar t";
    user.script(script).ok();
    fs::read(user.work().join("t.tar")).unwrap()
}

#[test]
fn the_time_of_a_source_is_that_of_the_image() {
    let (web, user) = (shop(), User::new());
    let tar = archive(&user);
    web.put("/dated.tar", tar.clone(), &[HEADER]);
    web.put("/undated.tar", tar, &[]);
    web.put("/dated", "x", &[HEADER]);
    web.put("/undated", "x", &[]);
    let (git, at) = (web.url("/git/shop.git"), |path: &str| web.url(path));
    let tar_path = user.work().join("t.tar").display().to_string();
    let scratch = "FROM scratch\nCOPY . /\n";
    let stage = |add: &str| {
        format!(
            "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nARG F=/\nADD {add} $F\nFROM scratch\nCOPY --from=src / /\n"
        )
    };
    let named = |what: &str| format!("--build-context=n={what}");
    let in_file = "ARG SOURCE_DATE_EPOCH=context\nFROM scratch\nCOPY . /\n";
    let by_name = "ARG SOURCE_DATE_EPOCH=n\nFROM scratch\nCOPY --from=n / /\n";
    for (name, dockerfile, context, more, wanted) in [
        (
            "seconds in the file",
            "ARG SOURCE_DATE_EPOCH=1500000000\nFROM scratch\nCOPY . /\n",
            ".",
            "",
            NEWEST,
        ),
        ("git context", scratch, &git, "--build-arg=SOURCE_DATE_EPOCH=context", COMMIT),
        ("git context in the file", in_file, &git, "", COMMIT),
        ("archive of a URL with a date", in_file, &at("/dated.tar"), "", MODIFIED),
        ("archive of a URL without", in_file, &at("/undated.tar"), "", NEWEST),
        ("archive of this machine", in_file, &tar_path, "", NEWEST),
        ("folder", in_file, ".", "", NEVER),
        ("named git", by_name, ".", &named(&git), COMMIT),
        ("named archive with a date", by_name, ".", &named(&at("/dated.tar")), MODIFIED),
        ("named archive without", by_name, ".", &named(&at("/undated.tar")), NEWEST),
        ("named folder", by_name, ".", &named("t"), NEVER),
        ("stage with git", &stage(&format!("{git}#next:web")), ".", "", COMMIT),
        ("stage with a file", &stage(&at("/dated")), ".", "", MODIFIED),
        ("stage with a file without a date", &stage(&at("/undated")), ".", "", NEVER),
        ("stage with an archive without", &stage(&at("/undated.tar")), ".", "", NEWEST),
        (
            "stage in other letters",
            &stage(&at("/dated")).replace("=src", "=SRC"),
            ".",
            "",
            MODIFIED,
        ),
        (
            "what is asked for wins",
            in_file,
            &git,
            "--build-arg=SOURCE_DATE_EPOCH=1500000000",
            NEWEST,
        ),
    ] {
        let file = user.work().join("the.Dockerfile");
        fs::write(&file, dockerfile).unwrap();
        let mut args = vec!["-f", file.to_str().unwrap(), context];
        args.extend(Some(more).filter(|more| !more.is_empty()));
        match created(&user, &args) {
            Ok(time) => assert_eq!(time, wanted, "{name}"),
            Err(done) => panic!("{name}\n{done}"),
        }
    }
}

#[test]
fn a_source_without_a_time_to_take_is_refused() {
    let (web, user) = (Web::start(), User::new());
    web.put("/f", "x", &[HEADER]);
    let url = web.url("/f");
    user.write("x", "x");
    for (name, stage, words) in [
        (
            "another base",
            format!("FROM busybox AS src\nADD {url} /"),
            "SOURCE_DATE_EPOCH stage must use FROM scratch",
        ),
        ("no ADD", "FROM scratch AS src".to_owned(), "must contain exactly one remote ADD"),
        (
            "two",
            format!("FROM scratch AS src\nADD {url} /\nADD {url} /"),
            "must contain exactly one remote ADD",
        ),
        (
            "two sources",
            format!("FROM scratch AS src\nADD {url} {url} /"),
            "must contain exactly one remote ADD source",
        ),
        (
            "a local file",
            "FROM scratch AS src\nADD x /".to_owned(),
            "must be a single HTTP(S) or Git ADD",
        ),
        (
            "more than ADD",
            format!("FROM scratch AS src\nADD {url} /\nENV A=1"),
            "does not meet source-only requirements: unsupported ENV instruction",
        ),
        (
            "nothing of that name",
            "FROM scratch AS other".to_owned(),
            "invalid SOURCE_DATE_EPOCH: src",
        ),
    ] {
        user.write("Dockerfile", &format!("ARG SOURCE_DATE_EPOCH=src\n{stage}\nFROM scratch\n"));
        let done = user.run(["build", PRIVATE, "."]);
        assert!(done.code == 3 && done.err.contains(words), "{name}\n{done}");
    }
}

/// `rewrite-timestamp` takes the time that was found.
#[test]
fn times_are_rewritten_to_that_of_a_source() {
    let (web, user) = (shop(), User::new());
    user.write("Dockerfile", "FROM scratch\nCOPY --chmod=644 . /\n");
    let out = user.work().join("image");
    let spec = format!("type=oci,tar=false,rewrite-timestamp=true,dest={}", out.display());
    let file = user.work().join("Dockerfile").display().to_string();
    let epoch = "SOURCE_DATE_EPOCH=context";
    user.run([
        "--quiet",
        "build",
        "-f",
        &file,
        "--build-arg",
        epoch,
        "--output",
        &spec,
        &web.url("/git/shop.git"),
    ])
    .ok();
    let script = "for b in image/blobs/sha256/*; do tar -tvzf $b --full-time --utc 2>/dev/null || true; done";
    let listed = user.script(script).ok();
    assert!(listed.contains("2022-04-15 05:20:00 README"), "{listed}");
    Done::of(Command::new("rm").arg("-r").arg(out)).ok();
}
