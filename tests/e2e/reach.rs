//! Attacks by what is fetched: cases C07 to C11 and K05. A canary outside of everything must stay as it is.

use std::{fs, io::Write as _, net::TcpListener, path::Path};

use crate::{
    git::{PRIVATE, files_of, is_anywhere, names, shop},
    support::{
        Done, Folder, User,
        web::{Web, git_script},
    },
};

/// Builds a Dockerfile of one text with some flags.
fn build(user: &User, dockerfile: &str, flags: &[&str]) -> Done {
    user.write("Dockerfile", dockerfile);
    Done::of(user.idp().arg("build").args(flags).arg("."))
}

#[test]
fn c07_a_dockerfile_outside_of_the_context_makes_nothing_else_reachable() {
    let user = User::new();
    user.write("other/Dockerfile", "FROM scratch\nCOPY canary /\n");
    user.write("other/canary", "canary");
    user.write("app/context/f", "f");
    fs::create_dir_all(user.work().join("app/context")).unwrap();
    let mut command = user.idp();
    let done = Done::of(command.current_dir(user.work().join("app/context")).args([
        "build",
        "-f",
        "../../other/Dockerfile",
        ".",
    ]));
    done.fails(1, &["\"/canary\": not found", "Dockerfile:2"]);
    user.run_with_input(
        ["build", "-f", "-", "app/context"],
        b"FROM scratch\nCOPY ../../../other/canary /\n",
    )
    .fails(1, &["not found"]);
    user.run_with_input(["build", "-q", "-f", "-", "app/context"], b"FROM scratch\nCOPY f /\n")
        .ok();
    // A path inside of what is fetched is no path of this machine.
    let web = shop();
    user.run(["build", "-f", "../../../../etc/passwd", &web.url("/git/shop.git")])
        .fails(3, &["failed to read dockerfile"]);
}

/// One member of a tar: name, type, link, content.
type Member<'a> = (&'a str, u8, &'a str, &'a str);

fn tar_of(members: &[Member<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, kind, link, content) in members {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[156] = *kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend(header);
        tar.extend(content.as_bytes());
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.extend([0; 1024]);
    tar
}

#[test]
fn c08_an_evil_archive_stays_inside_whether_it_is_added_or_is_the_context() {
    let outside = Folder::new();
    let canary = outside.path().join("canary");
    fs::write(&canary, "as it was").unwrap();
    let (out, file) = (outside.path().to_str().unwrap(), canary.to_str().unwrap());
    let up = format!("../../../../../../../../../..{file}");
    for (name, members) in [
        ("dotdot", vec![(up.as_str(), b'0', "", "evil")]),
        ("absolute", vec![(file, b'0', "", "evil")]),
        ("link-to-directory", vec![("d", b'2', out, ""), ("d/canary", b'0', "", "evil")]),
        ("link-to-file", vec![("c", b'2', file, ""), ("c", b'0', "", "evil")]),
        (
            "two-links",
            vec![("a", b'2', out, ""), ("b", b'2', "a", ""), ("b/canary", b'0', "", "evil")],
        ),
        ("hard-link", vec![("h", b'1', file, ""), ("h", b'0', "", "evil")]),
        (
            "hard-link-up",
            vec![("h", b'1', up.get(..90).unwrap_or(&up), ""), ("h", b'0', "", "evil")],
        ),
        ("link-then-directory", vec![("d", b'2', out, ""), ("d", b'5', "", "")]),
        ("device", vec![("dev", b'3', "", "")]),
        ("fifo", vec![("pipe", b'6', "", "")]),
        ("whiteout", vec![("x/.wh.canary", b'0', "", "")]),
    ] {
        let mut tar = tar_of(&members);
        let dockerfile = tar_of(&[("Dockerfile", b'0', "", "FROM scratch\nCOPY . /all/\n")]);
        let evil = tar.clone();
        tar.truncate(tar.len() - 1024);
        tar.extend(dockerfile);
        let (user, web) = (User::new(), Web::start());
        fs::write(user.work().join("evil.tar"), &evil).unwrap();
        web.put("/c.tar", tar.clone(), &[]);
        let added = build(&user, "FROM scratch\nADD evil.tar /\n", &["--quiet"]);
        let piped = user.run_with_input(["build", "-q", "-"], &tar);
        let fetched = user.run(["build", "-q", &web.url("/c.tar")]);
        for done in [added, piped, fetched] {
            // Refused, or made within the image: never our fault, never outside.
            assert!([0, 1, 3].contains(&done.code), "{name}\n{done}");
            assert_eq!(fs::read_to_string(&canary).unwrap(), "as it was", "{name}");
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{name}");
        }
    }
    // What is cut off, or is no archive behind its first member, is refused.
    let mut cut = tar_of(&[("a", b'0', "", "content"), ("b", b'0', "", &"x".repeat(2000))]);
    cut.truncate(2048);
    let user = User::new();
    let done = user.run_with_input(["build", "-"], &cut);
    assert!(done.code != 0 && done.code != 70, "{done}");
}

#[test]
fn c09_add_goes_to_no_metadata_and_to_no_private_place_unasked() {
    let (user, web) = (User::new(), Web::start());
    web.put("/f", "x", &[]);
    web.repository("r", "echo x > f; git add .; git commit -qm x");
    let port = web.port();
    let never = "a link-local or metadata address";
    let unasked = "an address of this machine or of a private network";
    for (name, source, words) in [
        ("metadata", "http://169.254.169.254/latest".to_owned(), never),
        ("metadata-as-number", "http://2852039166/".to_owned(), never),
        ("metadata-in-v6", "http://[::ffff:169.254.169.254]/".to_owned(), never),
        ("zero", "http://0/".to_owned(), never),
        ("loopback", format!("http://127.0.0.1:{port}/f"), unasked),
        ("loopback-by-name", format!("http://localhost:{port}/f"), unasked),
        ("loopback-by-public-name", format!("http://gitea.cnoe.localtest.me:{port}/f"), unasked),
        ("loopback-octal", format!("http://0177.0.0.1:{port}/f"), unasked),
        ("loopback-short", format!("http://127.1:{port}/f"), unasked),
        ("loopback-v6", format!("http://[::1]:{port}/f"), unasked),
        ("loopback-v6-mapped", format!("http://[::ffff:127.0.0.1]:{port}/f"), unasked),
        ("private", "http://10.0.0.1/f".to_owned(), unasked),
        ("kubernetes", "https://127.0.0.1:6443/".to_owned(), unasked),
        ("git-loopback", format!("http://127.0.0.1:{port}/git/r.git"), unasked),
        ("git-by-name", format!("http://localhost:{port}/git/r.git"), unasked),
        ("git-metadata", "http://169.254.169.254/r.git".to_owned(), never),
        ("git-private", "https://192.168.0.1/r.git".to_owned(), unasked),
        ("git-protocol", "git://127.0.0.1/r.git".to_owned(), unasked),
        ("git-ssh", "git@localhost:r.git".to_owned(), unasked),
        ("git-ssh-metadata", "ssh://169.254.169.254/r.git".to_owned(), never),
    ] {
        let done = build(&user, &format!("FROM scratch\nADD {source} /\n"), &[]);
        let refused = done.code != 0 && done.err.contains(words);
        assert!(refused, "{name}: `{words}` is not said\n{done}");
        if words == unasked {
            assert!(done.err.contains("--allow network.private"), "{name}\n{done}");
        }
    }
    assert_eq!(web.requests(), [""; 0], "nobody was asked");
    // Also with the flag, metadata stays out of reach: at every hop, of URLs and of repositories.
    for (name, path, location) in [
        ("redirect", "/r1", "http://169.254.169.254/latest".to_owned()),
        ("redirect-twice", "/r2", web.url("/r1")),
        ("redirect-to-file", "/r3", "file:///etc/passwd".to_owned()),
        (
            "redirect-of-a-repository",
            "/git/m.git/info/refs",
            "http://169.254.169.254/m.git/info/refs?service=git-upload-pack".to_owned(),
        ),
    ] {
        web.redirect(path, &location);
        let source = path.trim_end_matches("/info/refs");
        let done = build(&user, &format!("FROM scratch\nADD {} /\n", web.url(source)), &[PRIVATE]);
        let said = done.err.contains(never) || done.err.contains("no URL of the web");
        assert!(done.code != 0 && said, "{name}\n{done}");
    }
    for scheme in ["file:///etc/passwd", "gopher://h/x", "ftp://h/x", "ext::sh -c touch% /canary"] {
        // Not a URL: a path of the context, which has none of the kind.
        let json = format!("FROM scratch\nADD [\"{scheme}\", \"/\"]\n");
        build(&user, &json, &[PRIVATE]).fails(1, &["not found"]);
    }
    // The flag, and nothing else, opens the way; a place that the user names needs none.
    build(&user, &format!("FROM scratch\nADD {} /\n", web.url("/f")), &[PRIVATE]).ok();
    user.run(["build", "-q", "--build-context", &format!("n={}", web.url("/git/r.git")), "."])
        .fails(3, &["network.private"]);
    let by_name = build(
        &user,
        "FROM scratch\nCOPY --from=n f /\n",
        &["--build-context", &format!("n={}", web.url("/git/r.git"))],
    );
    by_name.ok();
}

#[test]
fn c10_a_download_has_limits_and_a_name_of_its_own() {
    let (user, web) = (User::new(), Web::start());
    web.put("/a/%2e%2e", "x", &[]);
    web.put("/x", "x", &[("Content-Disposition", "attachment; filename=../../evil")]);
    web.put("/folder/", "x", &[]);
    web.put("/e/%2F..%2F..%2Fevil", "x", &[]);
    for (path, name) in [
        ("/a/%2e%2e/x", ""),
        ("/x", "d/x"),
        ("/folder/", "d/folder"),
        ("/e/%2F..%2F..%2Fevil", "d/evil"),
    ] {
        if !name.is_empty() {
            let listed = files_of(&user, &format!("FROM scratch\nADD {} /d/\n", web.url(path)));
            assert_eq!(names(&listed), [name], "{path}");
        }
    }
    let sum = "0".repeat(64);
    let wrong = format!("FROM scratch\nADD --checksum=sha256:{sum} {} /\n", web.url("/x"));
    build(&user, &wrong, &[PRIVATE]).fails(1, &["digest mismatch sha256:", &sum]);
    web.cut("/cut", 1000, b"only this");
    build(&user, &format!("FROM scratch\nADD {} /\n", web.url("/cut")), &[PRIVATE])
        .fails(6, &["/cut"]);
    web.status("/gone", 410);
    build(&user, &format!("FROM scratch\nADD {} /\n", web.url("/gone")), &[PRIVATE])
        .fails(1, &["invalid response status 410"]);
    // An ETag that stays the same while the content changes: the checksum has the last word.
    web.put("/lie", "one", &[("ETag", "\"e\"")]);
    let lie = format!("FROM scratch\nADD {} /\n", web.url("/lie"));
    build(&user, &lie, &[PRIVATE, "-q"]).ok();
    web.put("/lie", "two", &[("ETag", "\"e\"")]);
    build(&user, &lie, &[PRIVATE, "-q"]).ok();
    let two = "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3";
    let sure = format!("FROM scratch\nADD --checksum=sha256:{two} {} /\n", web.url("/lie"));
    build(&user, &sure, &[PRIVATE]).fails(1, &["digest mismatch"]);
    for loops in ["/l1", "/l2"] {
        web.redirect(loops, &web.url(if loops == "/l1" { "/l2" } else { "/l1" }));
    }
    build(&user, &format!("FROM scratch\nADD {} /\n", web.url("/l1")), &[PRIVATE])
        .fails(3, &["redirects"]);
}

/// Names of the entries of a folder.
fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn c11_a_repository_is_data_and_nothing_of_it_runs() {
    let (user, web) = (User::new(), Web::start());
    let outside = Folder::new();
    let canary = outside.path().join("canary");
    let secret = outside.path().join("secret");
    fs::write(&secret, "canary bytes").unwrap();
    let touch = format!("touch {}", canary.display());
    web.repository(
        "evil",
        &format!(
            "mkdir d; echo x > d/f; ln -s {out} out; ln -s ../.. up; ln -s d s
             printf '* filter=evil diff=evil merge=evil\\n' > .gitattributes
             printf '[filter \"evil\"]\\n smudge = {touch}\\n process = {touch}\\n[core]\\n fsmonitor = {touch}\\n' > .gitconfig
             mkdir hooks; printf '#!/bin/sh\\n{touch}\\n' > hooks/post-checkout; chmod +x hooks/post-checkout
             printf 'version https://git-lfs.github.com/spec/v1\\noid sha256:0\\nsize 1\\n' > lfs
             git add .; git commit -qm x",
            out = outside.path().display(),
        ),
    );
    let url = web.url("/git/evil.git");
    for (name, source, words) in [
        ("subdir-link", format!("{url}#main:out"), "contains non-directory \"out\""),
        ("subdir-link-up", format!("{url}#main:up"), "contains non-directory \"up\""),
        ("subdir-through-link", format!("{url}#main:s/f"), "contains non-directory \"s\""),
        (
            "option-as-ref",
            format!("{url}#--upload-pack=touch"),
            "is not the name of a branch, tag or commit",
        ),
        (
            "option-as-query",
            format!("{url}?ref=-oProxyCommand=x"),
            "is not the name of a branch, tag or commit",
        ),
        ("option-as-host", "ssh://-oProxyCommand=x/r.git".to_owned(), "names no host"),
        ("option-as-scp-host", "git@-oProxyCommand:r.git".to_owned(), "names no host"),
    ] {
        let done = build(&user, &format!("FROM scratch\nADD {source} /\n"), &[PRIVATE]);
        assert!(done.code != 0 && done.err.contains(words), "{name}\n{done}");
    }
    let listed = files_of(
        &user,
        &format!("FROM scratch\nADD {url}#main:../../.. /all/\nADD {url}#main:../d /d/\n"),
    );
    assert!(listed.contains(" d/f") && listed.contains(" all/lfs"), "{listed}");
    assert!(!canary.exists() && entries(outside.path()) == 1, "nothing ran");
    // The same as a context, whose Dockerfile is a link out of it.
    web.repository(
        "linked",
        &format!("ln -s {} Dockerfile; git add .; git commit -qm x", secret.display()),
    );
    let done = user.run(["build", &web.url("/git/linked.git")]);
    assert!(done.code == 3 && !done.err.contains("canary bytes"), "{done}");
    assert!(!is_anywhere(&user.home(), "canary bytes"));
}

#[test]
fn c11_submodules_are_of_the_network() {
    let (user, web) = (User::new(), Web::start());
    let local = Folder::new();
    git_script(local.path(), "git init -q -b main .; echo secret > s; git add .; git commit -qm s");
    let commit = Done::of(std::process::Command::new("git").arg("-C").arg(local.path()).args([
        "-c",
        "safe.directory=*",
        "rev-parse",
        "HEAD",
    ]))
    .ok();
    for (name, target) in [
        ("file", format!("file://{}", local.path().display())),
        ("path", local.path().display().to_string()),
        ("ext", format!("ext::touch%% {}/canary", local.path().display())),
        ("option", "-u./evil".to_owned()),
    ] {
        web.repository(
            name,
            &format!(
                "printf '[submodule \"m\"]\\n path = m\\n url = {target}\\n update = !touch {0}/canary\\n' > .gitmodules
                 git add .; git update-index --add --cacheinfo 160000,{1},m; git commit -qm m",
                local.path().display(),
                commit.trim()
            ),
        );
        let done = build(
            &user,
            &format!("FROM scratch\nADD {} /\n", web.url(&format!("/git/{name}.git"))),
            &[PRIVATE],
        );
        assert!(done.code != 0 && !local.path().join("canary").exists(), "{name}\n{done}");
    }
}

#[test]
fn c11_a_git_server_that_never_answers_ends_with_the_user() {
    let user = User::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x.git", listener.local_addr().unwrap());
    user.write("Dockerfile", &format!("FROM scratch\nADD {url} /\n"));
    let mut command = user.idp();
    let mut child =
        command.args(["build", PRIVATE, "."]).stderr(std::process::Stdio::null()).spawn().unwrap();
    // Somebody asks, so git runs; then the user stops it.
    let (mut asked, _) = listener.accept().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // Git is gone as well: its connection is closed.
    let mut rest = Vec::new();
    drop(std::io::Read::read_to_end(&mut asked, &mut rest));
    drop(asked.write_all(b"x"));
}

#[test]
fn k05_the_password_of_an_address_is_nowhere_afterwards() {
    let (web, user) = (shop(), User::new());
    let canary = "canary-word-7";
    let with =
        |path: &str| web.url(path).replace("http://", &format!("http://canary-user:{canary}@"));
    web.put("/f", "x", &[("ETag", "\"e\"")]);
    let tar = tar_of(&[("Dockerfile", b'0', "", "FROM scratch\nCOPY Dockerfile /\n")]);
    web.put("/c.tar", tar, &[]);
    let (git, file, context) = (with("/git/shop.git"), with("/f"), with("/c.tar"));
    let missing = with("/git/none.git");
    // The Dockerfile itself is the user's file: it comes from standard input, and is kept nowhere.
    let dockerfile =
        format!("FROM scratch\nADD {git} /d/\nADD --keep-git-dir {git} /e/\nADD {file} /f\n");
    let meta = user.work().join("meta.json").display().to_string();
    let runs = [
        user.run_with_input(
            ["build", "-v", PRIVATE, "-t", "k05", "--metadata-file", &meta, "-"],
            dockerfile.as_bytes(),
        ),
        user.run(["build", "-v", &git]),
        user.run(["build", "-v", &context]),
        user.run([
            "build",
            "-v",
            "--progress",
            "json",
            "--build-context",
            &format!("n={git}"),
            &git,
        ]),
        user.run(["history", "--no-trunc", "k05"]),
        user.run(["inspect", "k05"]),
    ];
    for done in runs {
        assert!(done.code == 0, "{done}");
        assert!(!done.err.contains(canary) && !done.out.contains(canary), "{done}");
        assert!(!done.err.contains("canary-user") && !done.out.contains("canary-user"), "{done}");
    }
    let failed = user.run(["build", &missing]);
    assert!(failed.code != 0 && !failed.err.contains(canary), "{failed}");
    let history = user.run(["history", "--no-trunc", "k05"]).ok();
    assert!(history.contains(&format!("ADD {} /d/", web.url("/git/shop.git"))), "{history}");
    user.write("idpbuilder.kdl", &format!("image a {{ context \"{git}\"; push #null }}"));
    let plan = user.run(["plan", "--format", "json"]).ok();
    assert!(!plan.contains(canary) && plan.contains("shop.git"), "{plan}");
    for folder in [user.home(), user.account()] {
        assert!(!is_anywhere(&folder, canary), "it is kept in {}", folder.display());
    }
}
