//! The lock of what a project takes from elsewhere as a whole: contexts, named contexts, Dockerfiles.

use std::fs;

use crate::{
    git::shop,
    support::{User, json},
};

/// The commit of `next` comes to be what `main` is.
const MOVE_MAIN: &str = "git checkout -q main; git reset -q --hard next";

fn locked(user: &User) -> serde_json::Value {
    json(&fs::read_to_string(user.work().join("idpbuilder.lock")).unwrap())
}

fn written(user: &User, path: &str) -> String {
    fs::read_to_string(user.work().join("out").join(path)).unwrap()
}

#[test]
fn a_repository_that_is_the_context_is_locked_by_its_commit() {
    let (web, user) = (shop(), User::new());
    let url = format!("{}#main", web.url("/git/shop.git"));
    let (one, two) = (web.commit("shop", "main"), web.commit("shop", "next"));
    user.write(
        "idpbuilder.kdl",
        &format!("image a {{ context \"{url}\"; dockerfile inline=\"FROM scratch\\nCOPY README /\\n\"; output local=out }}\n\
                  image b {{ context \"{url}\" }}\n"),
    );
    assert_eq!(user.run(["lock"]).ok(), format!("{url} is {one}\n"));
    user.run(["run", "-q", "--locked"]).ok();
    web.repository("shop", MOVE_MAIN);
    user.run(["run", "--locked"]).fails(3, &[&url, "moved", &one, &two, "lock --update"]);
    user.run(["run", "-q"]).ok();
    assert_eq!(written(&user, "README"), "one\n", "the lock says what the name stands for");
    assert_eq!(user.run(["lock"]).ok(), "nothing moved\n");
    assert_eq!(
        user.run(["lock", "--update", &url]).ok(),
        format!("{url} was {one} and is {two}\n")
    );

    fs::remove_dir_all(user.home()).unwrap();
    drop(web.requests());
    user.run(["run", "--offline"]).fails(6, &["offline"]);
    assert_eq!(web.requests(), [""; 0], "somebody was asked");
    user.run(["run", "-q", "--locked"]).ok();
    assert_eq!(written(&user, "README"), "two\n");
    drop(web.requests());
    user.run(["run", "-q", "--locked", "--offline"]).ok();
    assert_eq!(web.requests(), [""; 0], "what is locked and here is not asked for");

    user.write("idpbuilder.lock", "{\"version\": 1}\n");
    user.run(["run", "--locked"]).fails(3, &[&url, "is not in idpbuilder.lock"]);
}

#[test]
fn named_contexts_archives_and_dockerfiles_are_locked_as_far_as_they_are_needed() {
    let (web, user) = (shop(), User::new());
    let repository = web.url("/git/shop.git");
    let archive = |text: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "f", text.as_bytes()).unwrap();
        web.put("/c.tar", tar.into_inner().unwrap(), &[]);
    };
    archive("archive");
    let dockerfile = |last: &str| {
        let text = format!(
            "FROM scratch AS unneeded\nCOPY --from=other . /\n\
             FROM scratch\nCOPY f /\nCOPY --from=n README /\n{last}\n"
        );
        web.put("/x/Dockerfile", text, &[]);
    };
    dockerfile("");
    let (context, file) = (web.url("/c.tar"), web.url("/x/Dockerfile"));
    user.write(
        "idpbuilder.kdl",
        &format!(
            "image a {{ context \"{context}\"; dockerfile \"{file}\"; output local=out\n\
                build-context n=\"{repository}#next\" other=\"{repository}#nowhere\" }}\n"
        ),
    );
    user.run(["lock"]).ok();
    let lock = locked(&user);
    assert_eq!(
        lock["git"],
        serde_json::json!({ format!("{repository}#next"): web.commit("shop", "next") })
    );
    let mut urls: Vec<&String> = lock["urls"].as_object().unwrap().keys().collect();
    urls.sort();
    assert_eq!(urls, [&context, &file]);
    user.run(["run", "-q", "--locked"]).ok();
    assert_eq!(
        (written(&user, "f"), written(&user, "README")),
        ("archive".to_owned(), "two\n".to_owned())
    );

    // What has no history cannot be had as it was: it is refused, and not taken as it is.
    for (moved, change) in [
        (&context, &(|| archive("another")) as &dyn Fn()),
        (&file, &|| dockerfile("COPY --from=n web /")),
    ] {
        change();
        user.run(["run", "--locked"]).fails(3, &[moved, "moved"]);
        assert_eq!(user.run(["lock"]).ok(), "nothing moved\n", "what is locked stays locked");
        let said = user.run(["lock", "--update", moved]).ok();
        assert!(
            said.starts_with(&format!("{moved} was sha256:")) && said.lines().count() == 1,
            "{said}"
        );
        user.run(["run", "-q", "--locked"]).ok();
    }
    assert_eq!(written(&user, "f"), "another");
}

#[test]
fn a_dockerfile_is_read_out_of_the_commit_that_is_locked() {
    let (web, user) = (shop(), User::new());
    let url = format!("{}#main", web.url("/git/shop.git"));
    user.write("idpbuilder.kdl", &format!("image a {{ context \"{url}\"; output local=out }}\n"));
    user.run(["lock"]).ok();
    web.repository(
        "shop",
        "git checkout -q main; printf 'FROM scratch\\nADD nowhere /\\n' > Dockerfile; git commit -qam worse",
    );
    assert_eq!(user.run(["lock"]).ok(), "nothing moved\n");
    user.run(["run", "-q"]).ok();
    assert_eq!(written(&user, "srv/index.html"), "page\n");
    user.run(["lock", "--update"]).ok();
    user.run(["run", "-q"]).fails(1, &["nowhere"]);
}
