//! F22: stores of every format are opened by what is built now, and those of later ones are left as they are.

use std::{collections::BTreeMap, fs, path::Path};

use super::{build, listed};
use crate::support::{Done, ROOT, User};

/// What the oldest program that wrote format 1 left: two images built from these files, one with two names.
const FIRST: &str = "tests/e2e/stores/format-1.tar.zst";
const LISTED: &str = "\
fixture:v1 sha256:1712b4f99f03f0b0790b297b4b4711d8f52c3f3ec45f2cd3ff0c9c544cdf2106
localhost:5000/team/fixture:v1 sha256:1712b4f99f03f0b0790b297b4b4711d8f52c3f3ec45f2cd3ff0c9c544cdf2106
second:v1 sha256:c3f629551beab395686cbe9669ea5e3affb1397b3dfbf484bb7cc43866f2ffe0
";

fn unpacked() -> User {
    let user = User::new();
    fs::create_dir(user.home()).unwrap();
    let archive = Path::new(ROOT).join(FIRST);
    Done::of(
        std::process::Command::new("tar")
            .arg("-C")
            .arg(user.home())
            .arg("--zstd")
            .arg("-xf")
            .arg(archive),
    )
    .ok();
    user
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn f22_a_store_of_the_first_program_is_used_by_this_one() {
    let user = unpacked();
    assert!(user.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
    assert_eq!(sorted(&listed(&user)), LISTED);
    let facts = user.run(["df"]).ok();
    assert!(facts.ends_with("3 images, 4 cached steps\n"), "{facts}");
    // Images are stood upon, and what they are made of is written out again.
    user.write("site/index.html", "<h1>one</h1>\n");
    build(&user, "FROM fixture:v1\nCOPY site /again\n", "again:v1");
    let layers = user.run(["history", "again:v1"]).ok();
    assert!(layers.contains("COPY /srv/index.html /www/"), "{layers}");
    user.run(["save", "-o", "again.tar", "again:v1"]).ok();
    user.run(["rmi", "again:v1"]).ok();
    user.run(["store", "pin", "second:v1"]).ok();
    user.run(["save", "-o", "all.tar", "fixture:v1", "second:v1"]).ok();
    user.run(["prune", "--cache-days", "0"]).ok();
    assert_eq!(sorted(&listed(&user)), LISTED);
    assert!(user.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
}

fn contents(root: &Path) -> BTreeMap<std::path::PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            let bytes = if path.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            if path.is_dir() {
                pending.push(path.clone());
            }
            found.insert(path, (bytes, modified));
        }
    }
    found
}

#[test]
fn f22_a_store_of_a_newer_format_is_refused_and_untouched() {
    let user = unpacked();
    user.write("Dockerfile", "FROM scratch\nWORKDIR /x\n");
    user.write("backup.tar", "");
    let images = user.home().join("images");
    fs::write(images.join("format"), "2\n").unwrap();
    let before = contents(&images);
    for args in [
        &["images"][..],
        &["build", "."],
        &["prune"],
        &["df"],
        &["rmi", "second:v1"],
        &["store", "check"],
        &["store", "check", "--full", "--repair"],
        &["store", "backup", "out.tar"],
        &["store", "restore", "backup.tar"],
        &["store", "pin", "second:v1"],
    ] {
        let done = Done::of(user.idp().args(args));
        done.fails(8, &["has format 2, this version reads up to 1", "use a newer idpbuilder"]);
        assert!(contents(&images) == before, "{args:?} touched it");
    }
    assert!(!user.work().join("out.tar").exists());
}
