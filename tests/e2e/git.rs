//! `ADD` of git repositories: which commit, which files of it, what is fetched again, and who may.

use std::{fs, path::Path, process::Command};

use crate::support::{
    Done, User,
    web::{Web, git_script, listing},
};

/// Two branches, two tags, a folder, a program and links.
pub(crate) const SHOP: &str = r"
    mkdir -p web/deep; echo one > README; echo page > web/index.html
    printf '#!/bin/sh\n' > web/run; chmod +x web/run; echo deep > web/deep/f
    ln -s index.html web/link; ln -s web site; ln -s /etc outside
    printf 'FROM scratch\nCOPY web /srv/\n' > Dockerfile
    git add .; git commit -qm one; git tag v1; git tag -am note v1.1
    git checkout -q -b next; echo two > README; git commit -qam two; git checkout -q main";

pub(crate) fn shop() -> Web {
    let web = Web::start();
    web.repository("shop", SHOP);
    web
}

pub(crate) const PRIVATE: &str = "--allow=network.private";

/// The files of an image that a Dockerfile of one text makes.
pub(crate) fn files_of(user: &User, dockerfile: &str) -> String {
    user.write("Dockerfile", dockerfile);
    listing(user, &[PRIVATE, "."])
}

/// Names of the files of an image, without directories.
pub(crate) fn names(listing: &str) -> Vec<&str> {
    let files = listing.lines().filter(|line| !line.starts_with('d'));
    let mut names: Vec<&str> =
        files.map(|line| line.splitn(6, ' ').nth(5).unwrap_or_default()).collect();
    names.sort_unstable();
    names
}

#[test]
fn add_takes_every_way_to_name_a_commit() {
    let web = shop();
    let user = User::new();
    let (one, two) = (web.commit("shop", "v1"), web.commit("shop", "next"));
    let note = web.commit("shop", "v1.1");
    for (asked, content) in [
        ("", "one"),
        ("#main", "one"),
        ("#next", "two"),
        ("#refs/heads/next", "two"),
        ("#v1", "one"),
        ("#v1.1", "one"),
        ("#refs/tags/v1.1", "one"),
        (&format!("#{two}"), "two"),
        ("?ref=next", "two"),
        ("?branch=next", "two"),
        ("?tag=v1.1", "one"),
        (&format!("?checksum={one}"), "one"),
        (&format!("?commit={one}&ref=main"), "one"),
        (&format!("?ref=next&checksum={}", two.get(..7).unwrap()), "two"),
        (&format!("?tag=v1.1&checksum={note}"), "one"),
        ("?ref=next&fetch-by-commit=true", "two"),
        ("?ref=next&submodules=false", "two"),
    ] {
        let url = web.url("/git/shop.git");
        let dockerfile = format!("FROM scratch\nADD {url}{asked} /r/\n");
        let out = user.work().join("out");
        let spec = format!("type=local,dest={}", out.display());
        let done = user.build(&dockerfile, &[PRIVATE, "--quiet", "--output", &spec]);
        assert!(done.code == 0, "{asked}\n{done}");
        assert_eq!(fs::read_to_string(out.join("r/README")).unwrap().trim(), content, "{asked}");
        assert!(!out.join("r/.git").exists(), "{asked}");
        fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn add_puts_the_files_of_a_commit_as_git_has_them() {
    let web = shop();
    let user = User::new();
    let url = web.url("/git/shop.git");
    let web_folder = "d/deep/f d/index.html d/link -> index.html d/run";
    for (name, source, flags, wanted) in [
        (
            "all",
            "",
            "",
            "d/Dockerfile d/README d/outside -> /etc d/site -> web d/web/deep/f d/web/index.html d/web/link -> index.html d/web/run",
        ),
        ("folder", "#main:web", "", web_folder),
        ("folder-without-ref", "#:web", "", web_folder),
        ("folder-with-slash", "#main:/web/", "", web_folder),
        ("folder-by-query", "?subdir=web&ref=v1", "", web_folder),
        ("folder-clamped", "#main:../../web", "", web_folder),
        ("deeper-folder", "#main:web/deep", "", "d/f"),
        (
            "exclude",
            "#main:web",
            "--exclude=deep --exclude=run ",
            "d/index.html d/link -> index.html",
        ),
        ("keep-git-dir-of-a-folder", "#main:web", "--keep-git-dir=true ", web_folder),
        ("unpack", "#main:web/deep", "--unpack=true ", "d/f"),
        ("link", "#main:web", "--link ", web_folder),
    ] {
        let listed = files_of(&user, &format!("FROM scratch\nADD {flags}{url}{source} /d/\n"));
        assert_eq!(names(&listed).join(" "), wanted, "{name}");
    }
}

#[test]
fn files_of_a_commit_have_gits_modes_and_a_date_that_is_always_the_same() {
    let web = shop();
    let user = User::new();
    let url = web.url("/git/shop.git");
    for (name, source, flags, wanted) in [
        (
            "modes",
            "#main:web",
            "",
            [
                "-rw-r--r-- 0/0 5 2024-01-01 00:00:00 d/index.html",
                "-rwxr-xr-x 0/0 10 2024-01-01 00:00:00 d/run",
                "drwxr-xr-x 0/0 0 2024-01-01 00:00:00 d/deep/",
            ],
        ),
        (
            "mtime-checkout",
            "?mtime=checkout&subdir=web",
            "",
            [
                "-rw-r--r-- 0/0 5 2024-01-01 00:00:00 d/index.html",
                "-rw-r--r-- 0/0 5 2024-01-01 00:00:00 d/deep/f",
                "lrwxrwxrwx 0/0 0 2024-01-01 00:00:00 d/link -> index.html",
            ],
        ),
        (
            "mtime-commit",
            "?mtime=commit&subdir=web",
            "",
            [
                "-rw-r--r-- 0/0 5 2022-04-15 05:20:00 d/index.html",
                "drwxr-xr-x 0/0 0 2022-04-15 05:20:00 d/deep/",
                "lrwxrwxrwx 0/0 0 2022-04-15 05:20:00 d/link -> index.html",
            ],
        ),
        (
            "chown-chmod",
            "#main:web",
            "--chown=7:8 --chmod=640 ",
            [
                "-rw-r----- 7/8 5 2024-01-01 00:00:00 d/index.html",
                "-rw-r----- 7/8 10 2024-01-01 00:00:00 d/run",
                "drw-r----- 7/8 0 2024-01-01 00:00:00 d/deep/",
            ],
        ),
    ] {
        let listed = files_of(&user, &format!("FROM scratch\nADD {flags}{url}{source} /d/\n"));
        for line in wanted {
            assert!(listed.lines().any(|known| known == line), "{name}: {line}\n{listed}");
        }
    }
}

/// Commits of today are dated as they are when that is asked for, and not before.
#[test]
fn mtime_commit_dates_later_than_everything_else() {
    let web = Web::start();
    web.repository(
        "new",
        "export GIT_COMMITTER_DATE='1780000000 +0000'; echo x > f; git add .; git commit -qm x",
    );
    let user = User::new();
    let url = web.url("/git/new.git");
    let listed =
        files_of(&user, &format!("FROM scratch\nADD {url}?mtime=commit /d/\nADD {url} /e/\n"));
    assert!(listed.contains("2026-05-28 20:26:40 d/f"), "{listed}");
    assert!(listed.contains("2024-01-01 00:00:00 e/f"), "{listed}");
}

#[test]
fn a_kept_git_dir_is_whole_and_the_same_everywhere() {
    let web = shop();
    let url = web.url("/git/shop.git");
    let mut digests = Vec::new();
    for (source, flag) in [("#v1.1", "--keep-git-dir=true "), ("?keep-git-dir=true&tag=v1.1", "")] {
        let user = User::new();
        let dockerfile = format!("FROM scratch\nADD {flag}{url}{source} /d/\n");
        let out = user.work().join("out");
        let spec = format!("type=local,dest={}", out.display());
        user.build(&dockerfile, &[PRIVATE, "--quiet", "--output", &spec]).ok();
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(out.join("d")).args(["-c", "safe.directory=*"]).args(args);
            Done::of(&mut command).ok()
        };
        assert_eq!(git(&["status", "--porcelain"]), "", "{source}");
        assert_eq!(git(&["rev-parse", "HEAD"]).trim(), web.commit("shop", "main"));
        assert_eq!(git(&["describe"]).trim(), "v1.1");
        assert_eq!(git(&["remote", "get-url", "origin"]).trim(), url);
        for gone in ["FETCH_HEAD", "logs", "hooks", "index.lock"] {
            assert!(!out.join("d/.git").join(gone).exists(), "{gone}");
        }
        let digest = user.build(&dockerfile, &[PRIVATE, "--quiet"]).ok();
        user.write("Dockerfile", &dockerfile);
        // History shows the source as it is written: the layers are what must agree.
        let inspected = crate::support::json(&user.run(["inspect", digest.trim()]).ok());
        digests.push(inspected[0]["Config"]["rootfs"]["diff_ids"].clone());
    }
    assert!(digests[0].is_array(), "{digests:?}");
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn submodules_come_along_unless_they_are_not_wanted() {
    let web = Web::start();
    web.repository("inner", "echo inner > i; git add .; git commit -qm i");
    let sub = |path: &str, url: &str| {
        format!(
            "git -c protocol.file.allow=always submodule --quiet add -b main {bare} {path}; \
         git config -f .gitmodules submodule.{path}.url {url}; git add .",
            bare = web.repositories().join("inner.git").display()
        )
    };
    web.repository(
        "middle",
        &format!("echo middle > m; {}; git commit -qm m", sub("inner", "../inner.git")),
    );
    let middle = web.repositories().join("middle.git");
    let outer = sub("lib", "../middle.git").replace("inner.git", "middle.git");
    web.repository("outer", &format!("echo outer > o; {outer}; git commit -qm o"));
    assert!(middle.exists());
    let user = User::new();
    let url = web.url("/git/outer.git");
    for (name, source, wanted) in [
        ("recursive", "", "d/.gitmodules d/lib/.gitmodules d/lib/inner/i d/lib/m d/o"),
        ("said", "?submodules=true", "d/.gitmodules d/lib/.gitmodules d/lib/inner/i d/lib/m d/o"),
        ("skipped", "?submodules=0", "d/.gitmodules d/o"),
        ("below", "#main:lib", "d/.gitmodules d/inner/i d/m"),
    ] {
        let listed = files_of(&user, &format!("FROM scratch\nADD {url}{source} /d/\n"));
        assert_eq!(names(&listed).join(" "), wanted, "{name}");
    }
    let kept = |user: &User| {
        let listed = files_of(user, &format!("FROM scratch\nADD --keep-git-dir {url} /d/\n"));
        let digest = user.run(["--quiet", "build", PRIVATE, "."]).ok();
        (listed, digest)
    };
    let (listed, digest) = kept(&user);
    assert!(listed.contains(" d/.git/modules/lib/HEAD"), "{listed}");
    assert_eq!(digest, kept(&User::new()).1, "kept submodules are the same everywhere");
}

#[test]
fn every_kind_of_repository_is_understood() {
    let web = shop();
    let user = User::new();
    web.repository_of("sha256", "echo new > f; git add .; git commit -qm x; git tag t", "sha256");
    web.repository(
        "empty-branch",
        "git checkout -q -b trunk; echo t > f; git add .; git commit -qm t",
    );
    let sha256 = web.commit("sha256", "t");
    assert_eq!(sha256.len(), 64);
    for (name, source, file) in [
        ("sha256", "/git/sha256.git".to_owned(), "d/f"),
        ("sha256-tag", "/git/sha256.git#t".to_owned(), "d/f"),
        ("sha256-commit", format!("/git/sha256.git#{sha256}"), "d/f"),
        ("other-default-branch", "/git/empty-branch.git#trunk".to_owned(), "d/f"),
        ("plain-web-server", "/dumb/shop.git#next:web/deep".to_owned(), "d/f"),
        (
            "plain-web-server-commit",
            format!("/dumb/shop.git#{}:web/deep", web.commit("shop", "v1")),
            "d/f",
        ),
    ] {
        let listed = files_of(&user, &format!("FROM scratch\nADD {} /d/\n", web.url(&source)));
        assert_eq!(names(&listed).join(" "), file, "{name}");
    }
}

#[test]
fn what_is_known_is_not_fetched_again() {
    let web = shop();
    let user = User::new();
    let dockerfile =
        |source: &str| format!("FROM scratch\nADD {}{source} /d/\n", web.url("/git/shop.git"));
    let asked = |dockerfile: &str| {
        let digest = user.build(dockerfile, &[PRIVATE, "--quiet"]).ok();
        let requests = web.requests();
        let fetches = requests.iter().filter(|one| one.starts_with("POST")).count();
        (digest, requests.len(), fetches)
    };
    let (first, _, fetches) = asked(&dockerfile("#main"));
    assert!(fetches > 1, "it is fetched");
    // One question what there is, one which commit it is.
    let (second, requests, fetches) = asked(&dockerfile("#main"));
    assert_eq!((first, requests, fetches), (second, 2, 1), "an unchanged branch");
    let commit = web.commit("shop", "main");
    let (_, requests, _) = asked(&dockerfile(&format!("#{commit}")));
    assert_eq!(requests, 0, "a commit that is known by another name");
    let (_, requests, _) = asked(&dockerfile(&format!("#{commit}:web")));
    assert!(requests > 0, "another folder");
    web.repository("shop", "echo three > README; git commit -qam three");
    let (third, _, fetches) = asked(&dockerfile("#main"));
    assert!(fetches > 1, "a branch that moved");
    let done = user.build(&dockerfile("#main"), &[PRIVATE]);
    assert!(done.err.contains("cached"), "{done}");
    let told =
        format!("{} is {}, known", web.url("/git/shop.git#main"), web.commit("shop", "main"));
    assert!(done.err.contains(&told), "`{told}` is not said\n{done}");
    assert_ne!(third, asked(&dockerfile(&format!("#{commit}"))).0);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_repository_that_cannot_be_had_says_why() {
    let web = shop();
    let user = User::new();
    let url = web.url("/git/shop.git");
    let commit = web.commit("shop", "main");
    web.lock("/git/locked.git", "none is right");
    let port = web.port();
    for (name, instruction, code, words) in [
        (
            "no-ref",
            format!("ADD {url}#mian /d/"),
            2,
            vec!["repository does not contain ref mian", "did you mean main?", "Dockerfile:2"],
        ),
        ("no-ref-at-all", format!("ADD {url}#zzzzzzzzz /d/"), 2, vec!["it has main, "]),
        (
            "no-commit",
            format!("ADD {url}#{} /d/", commit.replace(['0', '1', '2'], "3")),
            2,
            vec!["does not contain ref"],
        ),
        (
            "other-checksum",
            format!("ADD --checksum=abc0 {url} /d/"),
            1,
            vec!["expected checksum to match abc0, got ", &commit],
        ),
        (
            "no-subdir",
            format!("ADD {url}#main:wab /d/"),
            1,
            vec!["invalid subdir /wab", "has no \"wab\" there"],
        ),
        (
            "file-as-subdir",
            format!("ADD {url}#main:README /d/"),
            1,
            vec!["contains non-directory \"README\""],
        ),
        (
            "no-repository",
            format!("ADD {} /d/", web.url("/git/none.git")),
            6,
            vec!["failed to fetch remote", "not found"],
        ),
        (
            "locked",
            format!("ADD {} /d/", web.url("/git/locked.git")),
            4,
            vec!["failed to fetch remote", &format!("GIT_AUTH_TOKEN.127.0.0.1:{port}")],
        ),
        (
            "nobody-listens",
            "ADD http://127.0.0.1:1/x.git /d/".to_owned(),
            6,
            vec!["failed to fetch remote"],
        ),
        ("copy", format!("COPY {url} /d/"), 3, vec!["source can't be a git ref for COPY"]),
        (
            "bad-checksum",
            format!("ADD --checksum=foobar {url} /d/"),
            3,
            vec!["invalid checksum", "expected hex commit hash"],
        ),
        (
            "both-keep",
            format!("ADD --keep-git-dir=false {url}?keep-git-dir=1 /d/"),
            3,
            vec!["inconsistent keep-git-dir configuration"],
        ),
        (
            "both-checksums",
            format!("ADD --checksum=aa {url}?checksum=bb /d/"),
            3,
            vec!["checksum mismatch \"aa\" != \"bb\""],
        ),
        ("query", format!("ADD {url}?depth=1 /d/"), 3, vec!["unexpected query \"depth\""]),
        ("two-refs", format!("ADD {url}?ref=a#b /d/"), 3, vec!["ref conflicts: \"b\" vs \"a\""]),
    ] {
        user.write("Dockerfile", &format!("FROM scratch\n{instruction}\n"));
        let done = user.run(["build", PRIVATE, "."]);
        assert!(done.code == code, "{name}: wanted {code}\n{done}");
        for word in words {
            assert!(done.err.contains(word), "{name}: `{word}` is not said\n{done}");
        }
    }
}

/// Whether a text is in any file below a folder.
pub(crate) fn is_anywhere(folder: &Path, text: &str) -> bool {
    let mut command = Command::new("grep");
    command
        .args(["--recursive", "--binary", "--text", "--quiet", "--fixed-strings", "-e", text])
        .arg(folder);
    command.status().unwrap().success()
}

#[test]
fn who_asks_is_said_to_the_server_alone() {
    let web = shop();
    let token = "canary-token-1";
    // `x-access-token:canary-token-1` and `canary:canary-token-1`.
    let as_token = "basic eC1hY2Nlc3MtdG9rZW46Y2FuYXJ5LXRva2VuLTE=";
    let as_login = "basic Y2FuYXJ5OmNhbmFyeS10b2tlbi0x";
    let (host, url) = (format!("127.0.0.1:{}", web.port()), web.url("/git/shop.git"));
    let with_login = url.replace("http://", "http://canary:canary-token-1@");
    for (name, key, id, source) in [
        ("token", as_token, "GIT_AUTH_TOKEN".to_owned(), &url),
        ("token-of-the-host", as_token, format!("GIT_AUTH_TOKEN.{host}"), &url),
        ("header", "Bearer canary-token-1", "GIT_AUTH_HEADER".to_owned(), &url),
        ("header-of-the-host", "Bearer canary-token-1", format!("GIT_AUTH_HEADER.{host}"), &url),
        ("login-in-the-url", as_login, "unused".to_owned(), &with_login),
    ] {
        let web_of_case = &web;
        web_of_case.relock("/git/", key);
        let user = User::new();
        user.write("Dockerfile", &format!("FROM scratch\nADD --keep-git-dir {source} /d/\n"));
        let value = if name.starts_with("header") { "Bearer canary-token-1\n" } else { token };
        let mut command = user.idp();
        command.args(["build", "-v", PRIVATE, "--secret", &format!("id={id},env=CANARY"), "."]);
        let done = Done::of(command.env("CANARY", value));
        assert!(done.code == 0, "{name}\n{done}");
        for canary in [
            token,
            "canary:",
            as_token.trim_start_matches("basic "),
            as_login.trim_start_matches("basic "),
        ] {
            assert!(!done.err.contains(canary) && !done.out.contains(canary), "{name}\n{done}");
            assert!(!is_anywhere(&user.home(), canary), "{name}: {canary} is kept");
        }
        let refused = web.requests().iter().filter(|one| !one.contains("authorization")).count();
        assert_eq!(refused, 0, "{name}: git asks without its credentials first");
    }
}

/// A credential helper is the user's way to say who they are; what else their configuration says is not ours.
#[test]
fn the_credential_helper_of_the_user_is_asked() {
    let web = shop();
    web.relock("/git/", "Basic Y2FuYXJ5OmNhbmFyeS10b2tlbi0x");
    let user = User::new();
    let canary = user.folder().join("canary");
    git_script(
        &user.account(),
        &format!(
            "git config --global credential.helper '!f() {{ echo username=canary; echo password=canary-token-1; }}; f'
             git config --global core.hooksPath {0}/hooks; git config --global core.fsmonitor 'touch {0}'
             mkdir -p {0}.hooks; git config --global url.http://127.0.0.1:1/.insteadOf http://127.0.0.1",
            canary.display()
        ),
    );
    let listed = files_of(
        &user,
        &format!("FROM scratch\nADD {}#main:web/deep /d/\n", web.url("/git/shop.git")),
    );
    assert_eq!(names(&listed), ["d/f"]);
    assert!(!canary.exists());
}

/// The same for files: the server that was named gets the header, and none that it points at.
#[test]
fn a_download_is_authorized_for_its_own_server() {
    let (web, other) = (Web::start(), Web::start());
    web.put("/f", "x", &[]);
    web.put("/g", "y", &[]);
    other.put("/away", "z", &[]);
    web.redirect("/here", "/g");
    web.redirect("/there", &other.url("/away"));
    let host = format!("127.0.0.1:{}", web.port());
    for (name, id, key) in [
        ("token", format!("HTTP_AUTH_TOKEN_{host}"), "Bearer canary-token-2"),
        ("header", format!("HTTP_AUTH_HEADER_{host}"), "Basic canary-token-2"),
    ] {
        web.relock("/", key);
        let user = User::new();
        let sources = ["/f", "/here", "/there"].map(|path| web.url(path)).join(" ");
        user.write("Dockerfile", &format!("FROM scratch\nADD {sources} /d/\n"));
        let value = if name == "header" { key } else { "canary-token-2\n" };
        let mut command = user.idp();
        command.args(["build", "-v", PRIVATE, "--secret", &format!("id={id},env=CANARY"), "."]);
        let done = Done::of(command.env("CANARY", value));
        assert!(done.code == 0 && !done.err.contains("canary"), "{name}\n{done}");
        assert_eq!(other.requests(), ["GET /away"], "{name}");
        assert!(!is_anywhere(&user.home(), "canary-token-2"), "{name}");
        let without = user.run(["build", "--no-cache", PRIVATE, "."]);
        without.fails(4, &["invalid response status 401", &format!("HTTP_AUTH_TOKEN_{host}")]);
    }
}
