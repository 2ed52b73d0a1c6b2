//! Contexts that are no folder: archives, repositories, URLs, named ones, and where their Dockerfile is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    git::{names, shop},
    support::{
        Done, User, base_contexts, succeeds,
        web::{Web, tar_list},
    },
};

/// Builds with some arguments and standard input; what the image holds.
fn built(user: &User, args: &[&str], input: Option<&Path>) -> Result<String, Done> {
    let out = user.folder().join("built.tar");
    let mut command = user.idp();
    command.args(["--quiet", "build", "--output", &format!("type=tar,dest={}", out.display())]);
    command.args(args);
    if let Some(input) = input {
        command.stdin(Stdio::from(fs::File::open(input).unwrap()));
    }
    let done = Done::of(&mut command);
    if done.code == 0 { Ok(tar_list(&out)) } else { Err(done) }
}

#[track_caller]
fn builds(name: &str, user: &User, args: &[&str], input: Option<&Path>, wanted: &str) {
    match built(user, args, input) {
        Ok(listed) => assert_eq!(names(&listed).join(" "), wanted, "{name}"),
        Err(done) => panic!("{name}\n{done}"),
    }
}

/// An archive with a Dockerfile, another one, and what should be ignored if it were a folder.
fn archive(folder: &Path, compress: &str) -> PathBuf {
    let source = folder.join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    for (path, text) in [
        ("Dockerfile", "FROM scratch\nCOPY . /\n"),
        ("sub/other", "FROM scratch\nCOPY sub/f /other\n"),
        ("sub/f", "f"),
        (".dockerignore", "**\n"),
    ] {
        fs::write(source.join(path), text).unwrap();
    }
    let tar = folder.join("context.tar");
    let path = |path: &Path| path.display().to_string();
    let flags =
        ["--create", "--owner=1234", "--group=567", "--mtime=@1500000000", "--sort=name", "--file"];
    let mut command = Command::new("tar");
    command.args(flags).arg(&tar).arg("--directory").arg(&source).arg(".");
    Done::of(&mut command).ok();
    if compress.is_empty() {
        return tar;
    }
    let packed = path(&tar) + compress;
    let script = match compress {
        ".gz" => "gzip -c",
        ".bz2" => "bzip2 -c",
        ".xz" => "xz -c",
        _ => "zstd -qc",
    };
    succeeds("bash", ["-c", &format!("{script} {} > {packed}", path(&tar))]);
    packed.into()
}

const ALL: &str = ".dockerignore Dockerfile sub/f sub/other";

#[test]
fn an_archive_is_a_context_however_it_is_packed_and_brought() {
    for compress in ["", ".gz", ".bz2", ".xz", ".zst"] {
        let (user, web) = (User::new(), Web::start());
        let tar = archive(user.folder(), compress);
        let path = tar.to_str().unwrap();
        let whole = "FROM scratch\nCOPY . /\n";
        user.write("elsewhere/Dockerfile", whole);
        let elsewhere = user.work().join("elsewhere/Dockerfile").display().to_string();
        web.put("/c", fs::read(&tar).unwrap(), &[]);
        let url = web.url("/c");
        builds("input", &user, &["-"], Some(&tar), ALL);
        builds("input, another file in it", &user, &["-f", "sub/other", "-"], Some(&tar), "other");
        builds("input, a file outside", &user, &["-f", &elsewhere, "-"], Some(&tar), ALL);
        builds("file", &user, &[path], None, ALL);
        builds("file, another file in it", &user, &["-f", "./sub/other", path], None, "other");
        builds("URL", &user, &[&url], None, ALL);
        builds("URL, another file in it", &user, &["-f", "sub/other", &url], None, "other");
        let text = user.work().join("elsewhere/Dockerfile");
        builds("URL, the Dockerfile from input", &user, &["-f", "-", &url], Some(&text), ALL);
        builds("file, the Dockerfile from input", &user, &["-f", "-", path], Some(&text), ALL);
        let named = format!("--build-context=n={path}");
        user.write("Dockerfile", "FROM scratch\nCOPY --from=n sub /s/\n");
        builds("named file", &user, &[&named, "."], None, "s/f s/other");
        let named = format!("--build-context=n={url}");
        builds("named URL", &user, &[&named, "."], None, "s/f s/other");
        user.write("Dockerfile", "FROM n\n");
        builds("FROM a named URL", &user, &[&named, "."], None, ALL);
    }
}

#[test]
fn files_of_an_archive_keep_their_owners_and_times() {
    let user = User::new();
    let tar = archive(user.folder(), "");
    let listed = built(&user, &["-"], Some(&tar)).unwrap();
    assert!(listed.contains("-rw-r--r-- 1234/567 1 2017-07-14 02:40:00 sub/f"), "{listed}");
}

#[test]
fn standard_input_is_an_archive_or_a_dockerfile() {
    let user = User::new();
    let file = |name: &str, text: &str| {
        user.write(name, text);
        user.work().join(name)
    };
    let plain = file("plain", "FROM scratch\nCOPY <<A /a\nx\nA\n");
    builds("a text without files", &user, &["-"], Some(&plain), "a");
    let copies = file("copies", "FROM scratch\nCOPY plain /\n");
    let empty = file("empty", "");
    let tar = archive(user.folder(), ".gz");
    let binary = user.work().join("binary");
    fs::write(&binary, [0xff, 0xfe, 0, 1]).unwrap();
    for (name, args, input, code, words) in [
        ("no files beside a text", vec!["-"], &copies, 1, "\"/plain\": not found"),
        ("nothing", vec!["-"], &empty, 3, "the Dockerfile cannot be empty"),
        (
            "twice",
            vec!["-f", "-", "-"],
            &tar,
            3,
            "can't use stdin for both build context and dockerfile",
        ),
        ("two Dockerfiles", vec!["-f", "plain", "-"], &plain, 3, "ambiguous Dockerfile source"),
        ("neither", vec!["-"], &binary, 3, "neither a tar archive nor the text of a Dockerfile"),
        (
            "not in it",
            vec!["-f", "nope", "-"],
            &tar,
            3,
            "failed to read dockerfile: open nope: no such file or directory",
        ),
    ] {
        let done = built(&user, &args, Some(input)).expect_err(name);
        assert!(done.code == code && done.err.contains(words), "{name}\n{done}");
    }
    assert_eq!(
        fs::read_dir(user.home())
            .unwrap()
            .filter(|entry| {
                entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".tmp")
            })
            .count(),
        0,
        "nothing of standard input stays"
    );
}

#[test]
fn a_url_may_be_a_dockerfile() {
    let (user, web) = (User::new(), Web::start());
    web.put("/text", "FROM scratch\nCOPY context /as\nCOPY . /all/\n", &[]);
    web.put("/Dockerfile", "FROM scratch\nCOPY local /\n", &[]);
    web.put("/binary", vec![0xff, 0xfe, 0, 1], &[]);
    web.put("/page", "<!DOCTYPE html>\n<p>a repository</p>\n", &[]);
    user.write("local", "x");
    builds("text", &user, &[&web.url("/text")], None, "all/context as");
    builds("-f URL", &user, &["-f", &web.url("/Dockerfile"), "."], None, "local");
    let done = built(&user, &[&web.url("/none")], None).unwrap_err();
    assert!(done.code != 0 && done.err.contains("invalid response status 404"), "{done}");
    let done = built(&user, &[&web.url("/binary")], None).unwrap_err();
    assert!(done.err.contains("neither a tar archive nor the text of a Dockerfile"), "{done}");
    let done = built(&user, &[&web.url("/page")], None).unwrap_err();
    assert!(done.code == 3 && done.err.contains("ends with .git"), "{done}");
    let done = built(&user, &["nowhere"], None).unwrap_err();
    assert!(
        done.code == 3 && done.err.contains("the build context nowhere does not exist"),
        "{done}"
    );
    let done = built(&user, &["local"], None).unwrap_err();
    assert!(done.err.contains("is neither a folder nor a tar archive"), "{done}");
    let done = built(&user, &["ftp://h/x.tar"], None).unwrap_err();
    assert!(done.code == 3, "{done}");
}

#[test]
fn an_archive_that_has_not_changed_is_asked_about_and_not_fetched() {
    let (user, web) = (User::new(), Web::start());
    let tar = fs::read(archive(user.folder(), ".gz")).unwrap();
    for (name, headers, condition) in [
        ("etag", vec![("ETag", "\"v1\"")], "GET /etag if-none-match=\"v1\""),
        (
            "date",
            vec![("Last-Modified", "Sat, 10 Oct 2015 02:34:04 GMT")],
            "GET /date if-modified-since=Sat, 10 Oct 2015 02:34:04 GMT",
        ),
    ] {
        let path = format!("/{name}");
        web.put(&path, tar.clone(), &headers);
        let url = web.url(&path);
        builds(name, &user, &[&url], None, ALL);
        assert_eq!(web.requests(), [format!("GET {path}")], "{name}");
        builds(name, &user, &[&url], None, ALL);
        assert_eq!(web.requests(), [condition], "{name}: one question, no download");
    }
}

#[test]
fn a_file_that_is_added_is_asked_about_and_fetched_when_it_has_changed() {
    let (user, web) = (User::new(), Web::start());
    user.write("Dockerfile", &format!("FROM scratch\nADD {} /\n", web.url("/f")));
    let image = || {
        let mut build = user.idp();
        build.args(["--quiet", "build", "--allow", "network.private", "."]);
        Done::of(&mut build).ok()
    };
    web.put("/f", "one", &[("ETag", "\"v1\"")]);
    let first = image();
    assert_eq!(web.requests(), ["GET /f"]);
    assert_eq!(image(), first);
    assert_eq!(web.requests(), ["GET /f if-none-match=\"v1\""], "one question, no download");
    web.put("/f", "two", &[("ETag", "\"v2\"")]);
    let second = image();
    assert_ne!(second, first);
    assert_eq!(web.requests(), ["GET /f if-none-match=\"v1\""], "the answer is the new file");
    assert_eq!(image(), second);
    assert_eq!(web.requests(), ["GET /f if-none-match=\"v2\""]);
}

/// Two platforms, and two images of one run, see the same file, though the server has another for each who asks.
#[test]
fn a_file_that_is_added_is_asked_for_once_in_a_run() {
    let (user, web) = (User::new(), Web::start());
    web.put("/f", "one", &[("Cache-Control", "no-store")]);
    user.write("a/Dockerfile", &format!("FROM scratch\nADD {} /\n", web.url("/f")));
    user.write(
        "b/Dockerfile",
        &format!("FROM scratch AS x\nADD {0} /x\nADD {0} /y\n", web.url("/f")),
    );
    let image =
        |name: &str| format!("image {name} {{\n context \"{name}\"\n platforms amd64 arm64\n}}\n");
    user.write("idpbuilder.kdl", &[image("a"), image("b")].concat());
    user.run(["run", "--allow", "network.private"]).ok();
    assert_eq!(web.requests(), ["GET /f"]);
    user.run(["run", "--allow", "network.private"]).ok();
    assert_eq!(web.requests(), ["GET /f"], "another run asks again");
}

#[test]
fn a_repository_is_a_context() {
    let web = shop();
    web.repository("lower", "mkdir sub; echo 'FROM scratch\nCOPY f /low' > sub/dockerfile; echo x > sub/f; echo '**' > sub/.dockerignore; git add .; git commit -qm x");
    let user = User::new();
    let (url, lower) = (web.url("/git/shop.git"), web.url("/git/lower.git"));
    user.write("all", "FROM scratch\nCOPY . /\n");
    user.write("readme", "FROM scratch\nCOPY README /\n");
    let all = user.work().join("all").display().to_string();
    let readme = user.work().join("readme");
    let files = "srv/deep/f srv/index.html srv/link -> index.html srv/run";
    builds("whole", &user, &[&url], None, files);
    builds("branch", &user, &[&format!("{url}#next")], None, files);
    builds("tag by query", &user, &[&format!("{url}?tag=v1.1")], None, files);
    builds("commit", &user, &[&format!("{url}#{}", web.commit("shop", "v1"))], None, files);
    builds("folder with its own dockerfile", &user, &[&format!("{lower}#main:sub")], None, "low");
    builds("Dockerfile outside", &user, &["-f", &all, &format!("{url}#main:web/deep")], None, "f");
    builds("Dockerfile from input", &user, &["-f", "-", &url], Some(&readme), "README");
    let bare = web.repositories().join("shop.git");
    // A repository of another owner needs git's own consent; here it is the same.
    builds("of this machine", &user, &[&format!("file://{}", bare.display())], None, files);
    let listed =
        built(&user, &["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1", "-f", &all, &url], None)
            .unwrap();
    assert!(listed.contains(" .git/HEAD"), "{listed}");
    let listed = built(&user, &["-f", &all, &format!("{url}?keep-git-dir=true")], None).unwrap();
    assert!(listed.contains(" .git/index"), "{listed}");
    let done = built(&user, &[&format!("{url}#main:web")], None).unwrap_err();
    assert!(
        done.code == 3 && done.err.contains("failed to read dockerfile: open Dockerfile"),
        "{done}"
    );
    let done = built(&user, &[&format!("{url}?nope=1")], None).unwrap_err();
    assert!(done.code == 3 && done.err.contains("unexpected query \"nope\""), "{done}");
}

/// Only what a `COPY` takes counts, as with a folder.
#[test]
fn a_commit_that_changes_other_files_rebuilds_nothing() {
    let web = shop();
    let user = User::new();
    user.write("Dockerfile", "FROM scratch\nCOPY web/index.html /\nCOPY README /\n");
    let file = user.work().join("Dockerfile").display().to_string();
    let url = web.url("/git/shop.git");
    let first = user.run(["build", "-q", "-f", &file, &url]).ok();
    web.repository("shop", "echo more > web/more; git add .; git commit -qm more");
    let done = user.run(["build", "-f", &file, &url]);
    assert_eq!(done.out, first);
    assert_eq!(done.err.matches(" cached in ").count(), 2, "{done}");
    web.repository("shop", "echo other > README; git commit -qam other");
    let done = user.run(["build", "-f", &file, &url]);
    assert_eq!(done.err.matches(" cached in ").count(), 1, "{done}");
    assert!(done.err.contains("1 of 1 file changed: README"), "the reason is said\n{done}");
}

#[test]
fn a_named_context_may_be_anything_that_a_context_may_be() {
    let (web, user) = (shop(), User::new());
    let url = web.url("/git/shop.git");
    user.write("folder/x", "x");
    for (name, context, dockerfile, wanted) in [
        ("git", format!("n={url}#main:web/deep"), "FROM scratch\nCOPY --from=n . /d/", "d/f"),
        ("git-from", format!("n={url}#main:web/deep"), "FROM n\nCOPY --from=n f /g", "f g"),
        ("git-query", format!("n={url}?ref=next&subdir=web/deep"), "FROM n", "f"),
        ("folder", "n=folder".to_owned(), "FROM scratch\nCOPY --from=n . /d/", "d/x"),
        ("scratch", "n=docker-image://scratch".to_owned(), "FROM n\nCOPY folder/x /", "x"),
        (
            "scratch-for-an-image",
            "busybox=docker-image://scratch".to_owned(),
            "FROM busybox\nCOPY folder/x /",
            "x",
        ),
    ] {
        user.write("Dockerfile", &format!("{dockerfile}\n"));
        builds(name, &user, &["--build-context", &context, "."], None, wanted);
    }
    let bases = base_contexts();
    let mounts = "FROM busybox AS b\nRUN --mount=type=bind,from=n,target=/m cp /m/f /got && ! touch /m/y\nFROM scratch\nCOPY --from=b /got /";
    user.write("Dockerfile", mounts);
    let context = format!("n={url}#main:web/deep");
    let mut args: Vec<&str> = bases.iter().map(String::as_str).collect();
    args.extend(["--build-context", &context, "."]);
    builds("bind mount", &user, &args, None, "got");
    let done = built(&user, &["--build-context", "n=target:other", "."], None).unwrap_err();
    assert!(done.code == 3 && done.err.contains("idpbuilder.kdl"), "{done}");
}

/// `testEagerNamedContextLookup`: what the target does not need is not looked up.
#[test]
fn a_named_context_of_a_stage_that_is_not_needed_is_left_alone() {
    let (web, user) = (shop(), User::new());
    user.write("Dockerfile", "FROM n AS unused\nFROM scratch AS used\nCOPY Dockerfile /\n");
    let context = format!("n={}", web.url("/git/none.git"));
    builds(
        "git",
        &user,
        &["--build-context", &context, "--target", "used", "."],
        None,
        "Dockerfile",
    );
    assert_eq!(web.requests(), [""; 0]);
}

#[test]
fn a_project_takes_contexts_from_elsewhere() {
    let (web, user) = (shop(), User::new());
    let url = web.url("/git/shop.git");
    let tar = archive(user.folder(), ".gz");
    fs::copy(tar, user.work().join("c.tar.gz")).unwrap();
    user.write(
        "idpbuilder.kdl",
        &format!(
            "image a {{ context \"{url}#next\"; push #null }}\n\
             image b {{ context \"c.tar.gz\"; dockerfile \"sub/other\"; push #null }}\n\
             image c {{ context #null; dockerfile inline=\"FROM scratch\\nCOPY --from=n f /\\nCOPY --from=t /srv/run /\"\n\
                build-context n=\"{url}#main:web/deep\" t=\"target:a\"; push #null }}\n"
        ),
    );
    let plan = user.run(["plan"]).ok();
    assert!(plan.contains(&format!("{url}#next")), "{plan}");
    assert!(plan.contains("sub/other of "), "{plan}");
    user.run(["run"]).ok();
    for (image, wanted) in [("a", "/srv/"), ("b", "sub/f /other"), ("c", "COPY f /")] {
        let history = user.run(["history", "--no-trunc", &format!("{image}:latest")]).ok();
        assert!(history.contains(wanted), "{image}: {history}");
    }
}

/// Everybody in a run sees the same commit, and it is asked for once.
#[test]
fn a_repository_is_looked_up_once_in_a_run() {
    let (web, user) = (shop(), User::new());
    let url = web.url("/git/shop.git");
    user.write(
        "Dockerfile",
        &format!(
            "FROM scratch AS a\nADD {url} /a/\nFROM scratch\nADD {url} /b/\nCOPY --from=a /a /a\n"
        ),
    );
    let platforms = ["--platform", "linux/amd64,linux/arm64"];
    let mut command = user.idp();
    command.args(["--quiet", "build", "--allow", "network.private"]).args(platforms).arg(".");
    Done::of(&mut command).ok();
    let lists = web.requests().iter().filter(|one| one.contains("info/refs")).count();
    assert_eq!(lists, 2, "one to ask, one to fetch");
}

/// An ordinary user inside of a user namespace reads the same, whoever owns what is fetched.
#[test]
fn an_ordinary_user_builds_from_elsewhere_as_well() {
    let (web, user) = (shop(), User::rootless());
    let url = web.url("/git/shop.git");
    let tar = archive(user.folder(), ".gz");
    let root = User::new();
    for (name, args, input) in
        [("git", vec![url.as_str()], None), ("archive", vec!["-"], Some(tar.as_path()))]
    {
        let digests = [&root, &user].map(|user| {
            let mut command = user.idp();
            command.args(["--quiet", "build"]).args(&args);
            if let Some(input) = input {
                command.stdin(Stdio::from(fs::File::open(input).unwrap()));
            }
            Done::of(&mut command).ok()
        });
        assert_eq!(digests[0], digests[1], "{name}");
    }
}

#[test]
fn the_checks_read_the_same_sources() {
    let (web, user) = (Web::start(), User::new());
    let text = "FROM scratch\nMAINTAINER x\n";
    web.put("/d", text, &[]);
    web.repository(
        "r",
        "printf 'FROM scratch\\nMAINTAINER x\\n' > Dockerfile; git add .; git commit -qm x",
    );
    user.run_with_input(["check", "-"], text.as_bytes()).fails(1, &["1 warning"]);
    user.run(["check", &web.url("/d")]).fails(1, &["1 warning"]);
    user.run(["build", "--check", &web.url("/git/r.git")]).fails(1, &["1 warning"]);
}

#[test]
fn without_git_everything_else_works_and_a_repository_says_what_is_missing() {
    let (web, user) = (shop(), User::new());
    let build = |context: &str| {
        let mut command = user.idp();
        Done::of(command.env("PATH", user.folder()).args(["build", context]))
    };
    web.put("/d", "FROM scratch\nCOPY context /\n", &[]);
    assert_eq!(build(&web.url("/d")).code, 0);
    let url = web.url("/git/shop.git");
    build(&url).fails(8, &["there is no `git` program", "install git"]);
}
