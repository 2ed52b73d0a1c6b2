//! `--split-layers` and `layers split`: the same files in more layers, of which a change sends one.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::Command,
};

use crate::support::{Done, Folder, User, json, registry::Registry};

/// What makes layers of the tests' trees.
const SPLIT: &str = "--split-layers=size=64k";

/// Some 400 KB: plain files, names of one file, links, and directories of all kinds.
fn grow(user: &User) {
    for number in 0..160_usize {
        let text = format!("{number} ").repeat(300 + number % 500);
        user.write(&format!("tree/d{}/s{}/f{number}", number % 9, number % 3), &text);
    }
    let tree = user.work().join("tree");
    fs::create_dir(tree.join("empty")).unwrap();
    fs::create_dir(tree.join("d1/.hidden")).unwrap();
    fs::hard_link(tree.join("d0/s0/f0"), tree.join("z")).unwrap();
    std::os::unix::fs::symlink("d2/s0", tree.join("link")).unwrap();
    let mode = |name: &str, mode| {
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("d3", 0o2750);
    mode("d4/s1", 0o1777);
    let everything = format!("find {} -exec touch -h -d @1600000000 {{}} +", tree.display());
    Done::of(Command::new("sh").args(["-c", &everything])).ok();
    let owner = fs::metadata(user.work()).unwrap();
    let owner = format!("{}:{}", owner.uid(), owner.gid());
    Done::of(Command::new("chown").args(["-hR", &owner]).arg(&tree)).ok();
    mode("d0/s0/f0", 0o4755); // A new owner takes the bit away.
}

/// The config of an image of the store.
fn config(user: &User, image: &str) -> serde_json::Value {
    json(&user.run(["inspect", image]).ok())[0].clone()
}

#[test]
fn a_change_of_one_file_sends_one_layer() {
    let (user, registry) = (User::new(), Registry::plain());
    grow(&user);
    let image = format!("127.0.0.1:{}/app", registry.port());
    user.write("Dockerfile", "FROM scratch\nCOPY tree /app\nENV A=1\nCOPY tree/z /last\n");
    let project = format!(
        "image app {{ layers split size=\"64k\"; push \"127.0.0.1:{}\"; tags \"1\" }}\n",
        registry.port()
    );
    user.write("idpbuilder.kdl", &project);
    user.run(["run"]).ok();
    let first: BTreeSet<String> = registry.blobs().into_iter().collect();
    let image = format!("{image}:1");
    let shown = user.run(["history", "--format", "{{.CreatedBy}}", &image]).ok();
    let parts =
        shown.lines().filter(|line| line.starts_with("COPY tree /app # buildkit, part ")).count();
    assert!(parts > 4, "{shown}");
    assert!(shown.contains(&format!(", part {parts} of {parts}")), "{shown}");
    assert!(
        shown.starts_with("COPY tree/z /last # buildkit\nENV A=1\n"),
        "what is small is one layer: {shown}"
    );
    let inspected = config(&user, &image);
    assert_eq!(
        inspected["Config"]["rootfs"]["diff_ids"].as_array().unwrap().len(),
        parts + 1,
        "{inspected}"
    );
    assert_eq!(first.len(), parts + 1 + 2, "layers, config and manifest");

    user.write("tree/d4/s1/f49", "something else\n");
    let said = user.run(["run", "--progress", "plain"]);
    assert!(said.err.contains("changed: tree/d4/s1/f49"), "{said}");
    said.ok();
    let second: BTreeSet<String> = registry.blobs().into_iter().collect();
    assert_eq!(second.difference(&first).count(), 3, "one layer, config and manifest");
    let explained = user.run(["explain"]).ok();
    assert!(explained.contains("tree/d4/s1/f49"), "{explained}");
    user.run(["verify", "app"]).ok();

    // Under another name and in another order of builds the parts are known too, and the bytes are the same.
    let digest = |flags: &[&str]| {
        let done = Done::of(user.idp().args(["build", "-q", SPLIT]).args(flags).arg("."));
        done.ok()
    };
    let id = digest(&["-t", "other:v1"]);
    assert_eq!(digest(&["-t", "other:v2", "--no-cache"]), id);
    assert_eq!(config(&user, &image)["Id"].as_str().unwrap(), id.trim());
    assert_ne!(user.run(["build", "-q", "."]).ok(), id, "without a word there is one layer");
}

#[test]
fn other_tools_see_the_files_of_one_layer_and_so_does_a_run() {
    const LIST: &str = "find . ! -name listing -printf '%y %m %U:%G %n %T@ %p %l\\n' | sed -E 's/^(d.*) [0-9]+ ([0-9.]+ )/\\1 \\2/' | sort; find . -type f ! -name listing -print0 | sort -z | xargs -0 sha256sum";
    let user = User::new();
    grow(&user);
    Done::of(Command::new("setcap").arg("cap_net_raw=ep").arg(user.work().join("tree/d7/s1/f7")))
        .ok();
    user.write("over/d2/s2/f2", "over\n");
    let list = "find /app | sort | while read -r name; do stat -c '%n %F %a %u:%g %Y %h' \"$name\"; done; find /app -type f -print0 | sort -z | xargs -0 sha256sum";
    let text = format!(
        "FROM busybox\nCOPY over /app\nCOPY tree /app\nRUN rm -r /app/d8 && touch -d @5 /app && {{ {list}; }} > /listing\nCOPY --link tree /linked\n"
    );
    let mut found = Vec::new();
    for flags in [&[][..], &[SPLIT]] {
        let flags =
            [flags, &["-t", "demo:v1", "--output", "type=oci,dest=layout,tar=false"]].concat();
        user.build(&text, &flags).ok();
        let (layout, folder) = (user.work().join("layout"), Folder::new());
        let index = json(&fs::read_to_string(layout.join("index.json")).unwrap());
        let name = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
            .as_str()
            .unwrap();
        let bundle = folder.path().join("bundle");
        let source = format!("{}:{name}", layout.display());
        Done::of(Command::new("umoci").args(["unpack", "--image", &source]).arg(&bundle)).ok();
        let root = bundle.join("rootfs");
        let seen = fs::read_to_string(root.join("listing")).unwrap();
        let listed = Done::of(Command::new("sh").args(["-c", LIST]).current_dir(&root)).ok();
        let capable = Done::of(Command::new("getcap").arg("-r").arg(".").current_dir(&root)).ok();
        let layers =
            config(&user, "demo:v1")["Config"]["rootfs"]["diff_ids"].as_array().unwrap().len();
        found.push((layers, (seen, listed, capable)));
        fs::remove_dir_all(layout).unwrap();
    }
    let [(one, whole), (several, split)] = <[_; 2]>::try_from(found).unwrap();
    assert!(several > one + 8, "{several} layers instead of {one}");
    for (whole, split) in [(&whole.0, &split.0), (&whole.1, &split.1), (&whole.2, &split.2)] {
        let (whole, split): (BTreeSet<_>, BTreeSet<_>) =
            (whole.lines().collect(), split.lines().collect());
        assert_eq!(whole.symmetric_difference(&split).collect::<Vec<_>>(), Vec::<&&str>::new());
    }
    assert!(whole.2.contains("linked/d7/s1/f7 cap_net_raw=ep"), "{}", whole.2);
    assert!(whole.0.contains("/app/z regular file 4755"), "{}", whole.0);
}

#[test]
fn who_builds_changes_no_part() {
    let id = |user: &User| {
        grow(user);
        user.build(
            "FROM busybox\nCOPY --chown=33:50 tree /app\nRUN rm -r /app/d1\n",
            &["-q", SPLIT],
        )
        .ok()
    };
    assert_eq!(id(&User::new()), id(&User::rootless()));
}

#[test]
fn an_image_has_no_more_layers_than_others_take() {
    let user = User::new();
    grow(&user);
    let copies = (0..8).map(|number| format!("COPY tree /{number}\n")).collect::<String>();
    let flags = ["-t", "demo:v1", "--split-layers=size=4k,most=125"];
    user.build(&format!("FROM scratch\n{copies}"), &flags).ok();
    assert_eq!(
        config(&user, "demo:v1")["Config"]["rootfs"]["diff_ids"].as_array().unwrap().len(),
        125
    );
    let flag = |flag: &str| Done::of(user.idp().args(["build", flag, "."]));
    flag("--split-layers=size=1k").fails(3, &["1k", "for example: --split-layers"]);
    flag("--split-layers=often=[").fails(3, &["often \"[\"", "pattern"]);
}
