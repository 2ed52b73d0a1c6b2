//! Other processors than this machine's: RUN by an emulator, several platforms at once, and what is refused.

use std::{fs, process::Command};

use crate::support::{Done, User, bases, json, layout_of};

/// What a process of the other processor sees of itself, and files that it gives away.
const FOREIGN: &str = "FROM busybox\nRUN uname -m > /m && id -u >> /m && mkdir /d && chown app:staff /d && chmod 2750 /d\n\
                       USER app\nRUN [\"/bin/sh\", \"-c\", \"id -un > /tmp/u && sh -c 'uname -m' >> /tmp/u\"]\n";

/// Runs `build` with a busybox that is there for amd64 and arm64.
fn build(user: &User, dockerfile: &str, flags: &[&str]) -> Done {
    user.write("Dockerfile", dockerfile);
    let layout = layout_of("busybox", "multi");
    Done::of(user.idp().arg("build").args(flags).args(["--build-context", &layout, "."]))
}

fn read(user: &User, path: &str) -> String {
    let path = user.work().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The interpreters that the machine as a whole knows.
fn registered() -> Vec<String> {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn assert_foreign_process_runs(user: &User) {
    let before = registered();
    let output = ["--platform", "linux/arm64", "--output", "type=local,dest=root", "-t", "app:v1"];
    build(user, FOREIGN, &output).ok();
    assert_eq!(read(user, "root/m"), "aarch64\n0\n");
    assert_eq!(read(user, "root/tmp/u"), "app\naarch64\n");
    let config = json(&user.run(["inspect", "app:v1"]).ok());
    assert_eq!(config[0]["Config"]["architecture"], "arm64");
    assert!(user.run(["doctor"]).ok().contains("by an emulator"), "doctor knows");
    let told = json(&user.run(["doctor", "--json"]).ok());
    assert!(told["emulated"].as_array().unwrap().contains(&"arm64".into()), "{told}");
    assert_eq!(registered(), before, "the machine knows no more than before");
}

#[test]
fn l27_a_foreign_process_runs_as_root() {
    assert_foreign_process_runs(&User::new());
}

#[test]
fn l27_a_foreign_process_runs_rootless() {
    assert_foreign_process_runs(&User::rootless());
}

#[test]
fn l27_privileges_do_not_change_what_a_foreign_process_leaves() {
    let digest = |user: &User, flags: &[&str]| {
        let all = [&["--platform", "linux/arm64", "-t", "app:v1"], flags].concat();
        build(user, FOREIGN, &all).ok();
        user.run(["images", "--format", "{{.Digest}}", "app"]).ok()
    };
    let as_root = digest(&User::new(), &[]);
    assert_eq!(as_root, digest(&User::rootless(), &[]));
    assert_eq!(as_root, digest(&User::new(), &["--userns", "private"]));
}

/// As on a machine where `systemd-binfmt` or `tonistiigi/binfmt` did it.
#[test]
fn l27_an_interpreter_that_the_kernel_knows_is_used() {
    let user = User::new();
    user.write("Dockerfile", "FROM busybox\nRUN uname -m > /m\n");
    let script = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
        cat /usr/lib/binfmt.d/qemu-aarch64.conf > /proc/sys/fs/binfmt_misc/register
        before=$(ls /proc/sys/fs/binfmt_misc)
        idpbuilder build --platform linux/arm64 --build-context busybox=oci-layout://$BASE --output root .
        test \"$before\" = \"$(ls /proc/sys/fs/binfmt_misc)\"";
    let mut inside = user.command("unshare");
    inside.args(["--user", "--map-root-user", "--mount", "bash", "-euc", script]);
    Done::of(inside.env("BASE", bases().join("multi"))).ok();
    assert_eq!(read(&user, "root/m"), "aarch64\n");
}

#[test]
fn l27_without_an_interpreter_nothing_runs_and_the_way_out_is_said() {
    let user = User::new();
    let dockerfile = "FROM --platform=$BUILDPLATFORM busybox AS native\nRUN echo native > /n\n\
                      FROM busybox\nCOPY --from=native /n /n\nRUN uname -m\n";
    user.write("Dockerfile", dockerfile);
    // A machine without the program: what is removed is removed in this namespace alone.
    let script = "mkdir up work
        mount -t overlay overlay -o lowerdir=/usr/bin,upperdir=$PWD/up,workdir=$PWD/work /usr/bin
        rm /usr/bin/qemu-aarch64-static
        idpbuilder build --platform linux/arm64 --build-context busybox=oci-layout://$BASE .";
    let mut inside = user.command("unshare");
    inside.args(["--mount", "bash", "-euc", script]);
    let words = [
        "does not run arm64",
        "qemu-aarch64-static is not installed",
        "Dockerfile:5:",
        "qemu-user-static",
        "tonistiigi/binfmt",
    ];
    let said = Done::of(inside.env("BASE", bases().join("multi"))).fails(8, &words);
    assert!(!said.contains("] done"), "nothing was done: {said}");
    // Without a process there is nothing to run.
    let copied = "FROM busybox\nCOPY Dockerfile /f\nWORKDIR /w\n";
    build(&user, copied, &["--platform", "linux/arm64", "--output", "root"]).ok();
    assert_eq!(read(&user, "root/f"), copied);
}

#[test]
fn l27_a_processor_that_nobody_knows_is_refused_before_the_first_step() {
    let user = User::new();
    let dockerfile = "FROM scratch\nCOPY Dockerfile /f\nRUN [\"/f\"]\n";
    let said = build(&user, dockerfile, &["--platform", "linux/sparc64"])
        .fails(8, &["does not run sparc64", "Dockerfile:3:"]);
    assert!(!said.contains("] done"), "{said}");
}

/// A cross build: compiled here, for there.
const CROSS: &str = "FROM --platform=$BUILDPLATFORM busybox AS build\n\
    ARG TARGETPLATFORM TARGETOS TARGETARCH TARGETVARIANT BUILDPLATFORM BUILDARCH\n\
    RUN echo \"$BUILDPLATFORM $BUILDARCH $(uname -m) for $TARGETPLATFORM $TARGETOS $TARGETARCH\" > /out\n\
    FROM busybox\nARG TARGETARCH\nCOPY --from=build /out /out\n\
    RUN echo \"$TARGETARCH $(uname -m)\" > /ran\nLABEL arch=$TARGETARCH\n";

/// What is made here and knows of no other processor is the same for all.
#[test]
fn a_stage_for_this_machine_is_done_once_for_all_platforms() {
    let user = User::new();
    let text = "FROM --platform=$BUILDPLATFORM busybox AS here\nRUN cat /proc/sys/kernel/random/uuid > /id\n\
                FROM --platform=$BUILDPLATFORM here AS there\nARG TARGETARCH\nRUN echo $TARGETARCH > /arch\n\
                FROM busybox\nCOPY --from=there /id /arch /\n";
    let mut ids = Vec::new();
    for flag in [&[][..], &["--no-cache"], &["--no-cache-filter", "here"]] {
        let done = build(&user, text, &[&BOTH[..], &["--output", "root"], flag].concat());
        assert!(done.err.contains("[linux/amd64 1/3] done"), "{done}");
        assert!(done.err.contains("[linux/arm64 1/3] cached"), "{done}");
        let read = |name: &str| {
            ["amd64", "arm64"].map(|arch| read(&user, &format!("root/linux_{arch}/{name}")))
        };
        assert_eq!(read("arch"), ["amd64\n", "arm64\n"]);
        let [one, other] = read("id");
        assert_eq!(one, other);
        assert!(!ids.contains(&one), "nothing of an earlier run is taken");
        ids.push(one);
    }
}

const BOTH: [&str; 2] = ["--platform", "linux/amd64,linux/arm64"];

#[test]
fn several_platforms_are_an_index_with_an_image_for_each() {
    let user = User::new();
    let output = ["--output", "type=oci,dest=layout,tar=false", "--metadata-file", "metadata"];
    let done = build(&user, CROSS, &[&BOTH[..], &output, &["-t", "cross:v1"]].concat());
    for platform in ["linux/amd64", "linux/arm64"] {
        for line in [format!("[{platform} 1/3] RUN echo"), format!("[{platform} 3/3] done in")] {
            assert!(done.err.contains(&line), "{line}: {done}");
        }
    }
    done.ok();
    let index = json(&read(&user, "layout/index.json"));
    let top = &index["manifests"][0];
    assert_eq!(top["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(json(&read(&user, "metadata"))["containerimage.digest"], top["digest"]);
    let blob = |digest: &serde_json::Value| {
        let digest = digest.as_str().unwrap().trim_start_matches("sha256:");
        json(&read(&user, &format!("layout/blobs/sha256/{digest}")))
    };
    let children = blob(&top["digest"]);
    let mut found = Vec::new();
    for child in children["manifests"].as_array().unwrap() {
        let config = blob(&blob(&child["digest"])["config"]["digest"]);
        assert_eq!(config["architecture"], child["platform"]["architecture"]);
        assert_eq!(config["config"]["Labels"]["arch"], config["architecture"]);
        found.push(config["architecture"].as_str().unwrap().to_owned());
    }
    assert_eq!(found, ["amd64", "arm64"]);
    let layout = user.work().join("layout");
    let validate = std::path::Path::new(crate::support::ROOT).join("tests/corpus/validate");
    Done::of(Command::new(validate).arg(&layout)).ok();
    for (architecture, other) in [("amd64", "x86_64"), ("arm64", "aarch64")] {
        let source = format!("oci:{}:v1", layout.display());
        let flags = ["--override-arch", architecture, "inspect", &source];
        let shown = json(&crate::support::succeeds("skopeo", flags));
        assert_eq!(shown["Architecture"], architecture, "{other}");
    }
}

fn assert_trees(user: &User, root: &str) {
    for (platform, machine) in [("amd64", "x86_64"), ("arm64", "aarch64")] {
        let ran = read(user, &format!("{root}/linux_{platform}/ran"));
        assert_eq!(ran, format!("{platform} {machine}\n"));
        let out = read(user, &format!("{root}/linux_{platform}/out"));
        let native = "linux/amd64 amd64 x86_64";
        assert_eq!(out, format!("{native} for linux/{platform} linux {platform}\n"));
    }
}

#[test]
fn output_of_a_step_says_for_which_of_several_platforms_it_is() {
    let user = User::new();
    let dockerfile = "FROM busybox\nRUN uname -m\n";
    let told = |flags: &[&str]| -> Vec<(serde_json::Value, serde_json::Value)> {
        let done =
            build(&user, dockerfile, &[&["--no-cache", "--progress", "json"], flags].concat());
        let events: Vec<serde_json::Value> = done.err.lines().map(json).collect();
        done.ok();
        let outputs = events.iter().filter(|event| event["event"] == "step-output");
        outputs.map(|event| (event["platform"].clone(), event["text"].clone())).collect()
    };
    let both = [("linux/amd64", "x86_64"), ("linux/arm64", "aarch64")];
    assert_eq!(told(&BOTH), both.map(|(platform, text)| (platform.into(), text.into())));
    assert_eq!(told(&[]), [(serde_json::Value::Null, "x86_64".into())]);
}

#[test]
fn several_platforms_are_folders_of_a_local_output_and_of_a_tar() {
    let user = User::new();
    build(&user, CROSS, &[&BOTH[..], &["--output", "type=local,dest=out"]].concat()).ok();
    assert_trees(&user, "out");
    build(&user, CROSS, &[&BOTH[..], &["--output", "type=tar,dest=out.tar"]].concat()).ok();
    user.script("mkdir unpacked && tar -xf out.tar -C unpacked").ok();
    assert_trees(&user, "unpacked");
    // One platform is no folder of its own.
    let one = ["--platform", "linux/arm64", "--output", "type=local,dest=one"];
    build(&user, CROSS, &one).ok();
    assert_eq!(read(&user, "one/ran"), "arm64 aarch64\n");
}

#[test]
fn a_docker_archive_of_several_platforms_is_refused_with_the_way_out() {
    let user = User::new();
    build(&user, CROSS, &[&BOTH[..], &["--output", "type=docker,dest=out.tar"]].concat())
        .fails(1, &["holds one platform", "type=oci"]);
    assert!(!user.work().join("out.tar").exists());
}

#[test]
fn platforms_are_normalised_and_each_is_built_once() {
    let user = User::new();
    let flags = ["--platform", "arm64,linux/aarch64,linux/arm64/v8", "-t", "one:v1"];
    build(&user, "FROM busybox\nENV A=1\n", &flags).ok();
    let shown = json(&user.run(["inspect", "one:v1"]).ok());
    assert_eq!(shown.as_array().unwrap().len(), 1);
    assert_eq!(shown[0]["Config"]["architecture"], "arm64");
    assert_eq!(shown[0]["Config"]["variant"], serde_json::Value::Null);
}

#[test]
fn a_stage_may_be_for_another_platform_than_the_image() {
    let user = User::new();
    let dockerfile = "FROM --platform=linux/arm64 busybox AS arm64-tools\nRUN uname -m > /m\n\
                      FROM busybox\nCOPY --from=arm64-tools /m /m\nRUN uname -m >> /m\n";
    build(&user, dockerfile, &["--output", "root"]).ok();
    assert_eq!(read(&user, "root/m"), "aarch64\nx86_64\n");
}
