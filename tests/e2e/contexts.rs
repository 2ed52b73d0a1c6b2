//! Contexts that are no folder, and `ADD` from other machines: git, archives, URLs.

use crate::support::{
    Done, User,
    web::{Web, listing},
};

/// A repository with a branch, tags, a folder and a link.
const SHOP: &str = "
    mkdir -p web/deep; echo one > README; echo page > web/index.html; echo '#!/bin/sh' > web/run; chmod +x web/run
    echo deep > web/deep/f; ln -s index.html web/link; echo 'FROM scratch\nCOPY web /srv/' > Dockerfile
    git add .; git commit -qm one; git tag v1; git tag -am note v1.1
    git checkout -q -b next; echo two > README; git commit -qam two; git checkout -q main";

fn shop() -> Web {
    let web = Web::start();
    web.repository("shop", SHOP);
    web
}

const PRIVATE: &str = "--allow=network.private";

/// Builds a Dockerfile of one text; what the image holds.
fn files_of(user: &User, dockerfile: &str) -> String {
    user.write("Dockerfile", dockerfile);
    listing(user, &[PRIVATE, "."])
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
        (&format!("?ref=next&checksum={}", &two[..7]), "two"),
        (&format!("?tag=v1.1&checksum={note}"), "one"),
        ("?ref=next&fetch-by-commit=true", "two"),
        ("?ref=next&submodules=false", "two"),
    ] {
        let dockerfile = format!(
            "FROM busybox AS a\nADD {}{asked} /r/\nRUN test \"$(cat /r/README)\" = {content} && test ! -e /r/.git",
            web.url("/git/shop.git")
        );
        let done = user.build(&dockerfile, &[PRIVATE, "--quiet"]);
        assert!(done.code == 0, "{asked}\n{done}");
    }
}
