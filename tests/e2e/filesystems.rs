//! The root file system of a RUN by every mechanism: the same digests, whichever of them this machine has.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{Done, Patience, User, base_contexts};

/// What processes do to files, and what of it is hard for one mechanism or another.
const CASES: &[(&str, &str)] = &[
    (
        "whiteouts",
        "FROM debian:bookworm\nRUN rm /etc/passwd /bin/ls && rm -r /usr/share\nRUN test ! -e /usr/share && echo x > /etc/passwd\n",
    ),
    (
        "opaque directories",
        "FROM busybox\nRUN mkdir -p /o/p && echo a > /o/p/a && echo b > /o/b\nRUN rm -rf /o && mkdir /o && echo new > /o/new\nRUN rm -rf /o && mkdir -p /o/deep/er && ls -A /o > /list\n",
    ),
    (
        "hard links",
        "FROM busybox\nRUN echo a > /a && ln /a /b && mkdir /d && ln /a /d/c\nRUN echo more >> /b && cat /a /d/c > /seen && chmod 600 /d/c\nRUN ln /b /e && rm /a\n",
    ),
    (
        "attributes",
        "FROM debian:bookworm\nRUN cp /bin/true /cap && perl -e 'my ($p, $n, $v) = (\"/cap\", \"security.capability\", pack(\"V5\", 0x02000001, 0x2000, 0, 0, 0)); syscall(188, $p, $n, $v, 20, 0) == 0 or die $!'\nRUN chmod 4755 /bin/true && chown 7:8 /bin/false && chmod 1777 /mnt\n",
    ),
    (
        "renamed directories",
        "FROM busybox\nRUN mkdir -p /one/two && echo x > /one/two/three && touch -d '2001-02-03 00:00:00' /one/two /one\nRUN mv /one /other && mv /other/two /back\n",
    ),
    (
        "nothing in the end",
        "FROM busybox\nRUN chmod 700 /bin && chmod 755 /bin; true >> /etc/passwd; echo x > /tmp/x; rm /tmp/x; true\n",
    ),
    (
        "files become directories and links",
        "FROM busybox\nRUN echo f > /f && mkdir /d && echo x > /d/x && ln -s d /l && mkfifo /p\nRUN rm /f && mkdir /f && rm -r /d && ln -s /f /d && rm /l && echo l > /l\nRUN cp -a /f /g && test -p /p\n",
    ),
    (
        "a stage out of another",
        "FROM busybox AS one\nRUN mkdir /out && echo a > /out/a && chown -R 5:6 /out\nFROM busybox\nCOPY --from=one /out /in\nRUN rm /in/a && stat -c '%u %g %a' /in > /told\n",
    ),
];

const MECHANISMS: [&str; 5] =
    ["overlay", "overlay-mount", "overlay-elsewhere", "fuse-overlay", "copy"];

fn id_by(user: &User, mechanism: &str, dockerfile: &str) -> String {
    user.build(dockerfile, &["--snapshotter", mechanism]).ok().trim().to_owned()
}

/// Images of all cases by one mechanism, from a store of its own.
fn ids_by(user: &User, mechanism: &str) -> Vec<(&'static str, String)> {
    CASES.iter().map(|(name, dockerfile)| (*name, id_by(user, mechanism, dockerfile))).collect()
}

/// Where fuse-overlayfs 1.10 is no overlay to its processes, whoever runs them: what is written to one name of a lower
/// file with several is written to another; and the folder of a file that is copied up gets a new date.
const OTHERWISE_BY_FUSE: [&str; 2] = ["hard links", "nothing in the end"];

#[test]
fn every_mechanism_makes_the_same_image() {
    let wanted = ids_by(&User::new(), "overlay");
    for mechanism in &MECHANISMS[1..] {
        let is_comparable = |(name, _): &(&str, String)| {
            *mechanism != "fuse-overlay" || !OTHERWISE_BY_FUSE.contains(name)
        };
        let comparable = |ids: Vec<(&'static str, String)>| -> Vec<_> {
            ids.into_iter().filter(is_comparable).collect()
        };
        let made = comparable(ids_by(&User::new(), mechanism));
        assert_eq!(made, comparable(wanted.clone()), "{mechanism}");
    }
}

#[test]
fn every_mechanism_makes_the_same_image_for_an_ordinary_user() {
    let wanted = ids_by(&User::new(), "overlay");
    // /dev/fuse is root's on many machines; the others are everybody's.
    for mechanism in MECHANISMS.into_iter().filter(|one| *one != "fuse-overlay") {
        assert_eq!(ids_by(&User::rootless(), mechanism), wanted, "{mechanism}");
    }
}

#[test]
fn a_mechanism_that_is_asked_for_and_cannot_be_had_is_refused_with_the_reason() {
    let user = User::new();
    let said = user.run(["doctor", "--snapshotter", "overlay-elsewhere", "--scratch", "/proc"]);
    assert!(said.ok().contains("not possible"));
    let way = ["--snapshotter", "overlay-elsewhere", "--scratch", "/proc", "--progress", "plain"];
    let refused = ["RUN is not possible here", "/proc"];
    user.write("file", "one\n");
    let under = "FROM busybox\nCOPY file /file\nRUN true\n";
    // Nothing is done of which is known that a process has to run on it.
    let said = user.build(under, &way).fails(8, &[&refused[..], &["Dockerfile:3"]].concat());
    assert!(!said.contains("] done"), "{said}");
    // What is known needs no process, and what stands on it none either.
    let above = "FROM busybox\nRUN true\nCOPY file /file\n";
    user.build(above, &way).fails(8, &[&refused[..], &["Dockerfile:2"]].concat());
    let wanted = user.build(above, &[]).ok();
    assert_eq!(user.build(above, &way).ok(), wanted);
    user.write("file", "two\n");
    assert_ne!(user.build(above, &way).ok(), wanted);
    let said = user.build(above, &[&way[..], &["--no-cache"]].concat()).fails(8, &refused);
    assert!(!said.contains("[1/2]"), "a step began: {said}");
}

/// Runs a script with the home folder on an overlay, in a mount namespace of its own.
fn on_overlay(user: &User, script: &str) -> Done {
    let script = format!(
        "mkdir -p lower over && mount -t tmpfs tmpfs over && mkdir over/u over/w over/m
         mount -t overlay overlay -o lowerdir=lower,upperdir=over/u,workdir=over/w over/m
         export IDPBUILDER_HOME=$PWD/over/m/home
         {script}"
    );
    let mut inside = user.command("unshare");
    Done::of(inside.args(["--mount", "bash", "-euo", "pipefail", "-c", &script]))
}

#[test]
fn f20_a_store_on_overlay_works_and_says_what_it_costs() {
    let user = User::new();
    let (_, dockerfile) = CASES[0];
    let wanted = user.build(dockerfile, &["--no-cache"]).ok();
    let contexts = base_contexts().join(" ");
    for (flags, note) in [
        ("", "note: the store's file system takes no overlay: changes are written to"),
        ("--snapshotter fuse-overlay", "note: the kernel's overlay cannot be mounted on the store"),
        ("--snapshotter copy", "every RUN works on a copy of all files"),
    ] {
        let script = format!("idpbuilder build --no-cache {flags} {contexts} .");
        let done = on_overlay(&user, &script);
        assert!(done.err.contains(note), "{note}: {done}");
        assert_eq!(done.ok(), wanted, "{flags}");
    }
    let told = on_overlay(&user, "idpbuilder doctor").ok();
    assert!(told.contains("overlay with changes in /"), "{told}");
}

#[test]
fn a_store_may_have_any_name_and_any_depth() {
    let (user, plain) = (User::new(), User::new());
    let (_, dockerfile) = CASES[1];
    let wanted = plain.build(dockerfile, &[]).ok();
    let long = "long".repeat(50);
    for (name, mechanism) in [
        ("odd:name,with\\all", "overlay"),
        ("odd:name,with\\all", "overlay-mount"),
        (long.as_str(), "overlay"),
        (long.as_str(), "overlay-mount"),
    ] {
        let home = user.folder().join(name).join(mechanism);
        fs::create_dir_all(&home).unwrap();
        user.write("Dockerfile", dockerfile);
        let mut command = user.idp();
        command.env("IDPBUILDER_HOME", &home).args(["build", "--snapshotter", mechanism]);
        assert_eq!(Done::of(command.args(base_contexts()).arg(".")).ok(), wanted, "{name}");
    }
}

#[test]
fn many_layers_are_no_hindrance() {
    let user = User::new();
    let mut dockerfile = String::from("FROM busybox\n");
    for number in 0..300 {
        dockerfile += &format!("COPY <<E /n/{number}\n{number}\nE\n");
    }
    dockerfile += "RUN ls /n | wc -l > /count && grep -x 300 /count\n";
    let wanted = user.build(&dockerfile, &[]).ok();
    assert_eq!(user.build(&dockerfile, &["--snapshotter", "overlay-mount"]).ok(), wanted);
    // Beyond what overlay stacks.
    let more: String = (300..520).map(|n| format!("COPY <<E /n/{n}\n{n}\nE\n")).collect();
    let deep = dockerfile.replace("RUN ls", &format!("{more}RUN ls")).replace("-x 300", "-x 520");
    user.build(&deep, &[]).ok();
}

#[test]
fn nothing_stays_in_the_scratch_folder() {
    let user = User::new();
    let scratch = user.folder().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let scratch = scratch.display().to_string();
    let flags = ["--snapshotter", "overlay-elsewhere", "--scratch", &scratch];
    user.build("FROM busybox\nRUN echo a > /a\n", &flags).ok();
    user.build("FROM busybox\nRUN exit 9\n", &flags).fails(1, &["exit code 9"]);
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    let left = Done::of(Command::new("pgrep").args(["-f", &scratch]));
    assert_eq!(left.out, "");
    // What is killed leaves a folder, which the next build takes away.
    user.write("Dockerfile", "FROM busybox\nRUN echo sta''rted; sleep 60\n");
    let mut command = user.idp();
    command.arg("build").args(flags).args(base_contexts()).arg(".").stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("| started")));
    child.kill().and_then(|()| child.wait()).unwrap();
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 1);
    let after = || {
        user.build("FROM busybox\nRUN echo b > /b\n", &flags).ok();
        fs::read_dir(&scratch).unwrap().count()
    };
    let patience = Patience::new(Duration::from_secs(1));
    // Its process ends soon after it; what it stands on goes with it.
    while after() > 0 {
        assert!(!patience.is_over(), "it stays");
        user.run(["prune", "--cache-days", "0"]).ok();
    }
}
