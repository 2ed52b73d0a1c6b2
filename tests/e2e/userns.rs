//! A RUN of root in a user namespace of its own: the same image, by a process that is nobody outside.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::{Command, Stdio},
};

use crate::support::{Done, User, base_contexts, json};

/// What owners, modes, marks and mounts can be, in one image.
const ALL: &str = r#"FROM debian:bookworm
RUN mkdir -p /a/b/c /old /gone && touch /a/b/f /old/x /gone/y && chown 12:34 /a/b/f && chown -R 1000:1000 /old
RUN rm -r /gone && mkdir /gone && mv /old /new && rm /a/b/f && mkdir /opt/own && chown 65535:65535 /opt/own
RUN cp /bin/true /usr/bin/again && chown 0:7 /usr/bin/again && chmod 4755 /usr/bin/again && mkfifo /pipe && ln /usr/bin/again /twice
RUN perl -e 'my ($f, $n, $v) = ("/bin/cat", "security.capability", pack("V5", 0x02000001, 1 << 10, 0, 0, 0)); syscall(188, $f, $n, $v, length $v, 0) == 0 or die $!'
RUN chown 0:5 /bin/dd && touch -d 2020-01-01 /bin/cat
RUN perl -e 'my ($f, $n, $v) = ("/bin/cat", "security.capability", "x" x 99); print syscall(191, $f, $n, $v, 99)' > /of-caps && grep -x 20 /of-caps
RUN --mount=type=cache,target=/cache,uid=1000,gid=1000 touch /cache/by-root && stat -c '%u:%g' /cache > /of-cache
RUN --mount=type=secret,id=key,uid=33,mode=0400 stat -c '%u:%a' /run/secrets/key > /of-secret && cat /run/secrets/key > /dev/null
RUN --mount=type=tmpfs,target=/fast stat -c '%u:%g' /fast /dev/shm /etc/hosts /proc/self/ > /of-mounts
WORKDIR /made/here
USER 1000:1000
RUN --mount=type=cache,target=/cache,uid=1000,gid=1000 touch /cache/by-user && id > /tmp/id && ! touch /etc/x
USER www-data
RUN touch /tmp/data && stat -c '%U' /tmp/data >> /tmp/data
"#;

fn digest(user: &User, flags: &[&str]) -> String {
    let mut all = vec!["--no-cache", "--secret", "id=key,src=key", "--metadata-file", "told.json"];
    all.extend(["--output", "type=oci,dest=image.tar"]);
    all.extend(flags);
    user.build(ALL, &all).ok();
    let told = json(&fs::read_to_string(user.work().join("told.json")).unwrap());
    told["containerimage.digest"].as_str().unwrap_or_else(|| panic!("{told}")).to_owned()
}

#[test]
fn private_ids_make_the_same_image() {
    let user = User::new();
    user.write("key", "hush");
    let plain = digest(&user, &[]);
    for flags in [["--network", "none"], ["--snapshotter", "overlay-mount"]] {
        let flags: Vec<&str> = [["--userns", "private"], flags].concat();
        assert_eq!(digest(&user, &flags), plain, "{flags:?}");
    }
}

#[test]
fn a_process_with_private_ids_is_nobody_outside() {
    let user = User::new();
    user.write(
        "Dockerfile",
        "FROM busybox\nRUN --mount=type=bind,target=/ctx --mount=type=cache,id=door,target=/door \
         id -u && mkfifo /door/way && echo here > /door/way && cat /door/way\n",
    );
    let mut command = user.idp();
    command.args(["build", "--userns", "private", "--progress", "plain"]);
    command.args(base_contexts()).arg(".").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let way = loop {
        let found = Done::of(Command::new("find").arg(user.folder()).args(["-name", "way"]));
        if let Some(path) = found.out.lines().next() {
            break path.to_owned();
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
        std::thread::yield_now();
    };
    // It is the process's file, of root inside and on the disk.
    assert_eq!(fs::metadata(&way).unwrap().uid(), 0);
    assert_eq!(fs::read_to_string(&way).unwrap(), "here\n");
    let pid = child.id();
    let mut uids = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let field = |name: &str| -> String {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()).unwrap_or_default().to_owned()
        };
        let parent = fs::read_to_string(format!("/proc/{}/stat", field("PPid:")));
        let of_ours = parent.is_ok_and(|stat| {
            stat.rsplit(')').next().unwrap().split_whitespace().nth(1) == Some(&pid.to_string())
        });
        if of_ours {
            uids.push(field("Uid:").parse::<u32>().unwrap());
        }
    }
    fs::write(&way, "go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    Done::from_output("build".to_owned(), &output).ok();
    assert_eq!(uids.len(), 1, "{uids:?}");
    assert!(uids[0] >= 65_536, "{uids:?}");
}

#[test]
fn private_ids_open_nothing_of_the_machine() {
    let user = User::new();
    // The root of the machine's alone; the same file with an id of the process can be read.
    let canary = user.folder().join("canary");
    fs::write(&canary, "root's alone").unwrap();
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o600)).unwrap();
    let steps = [
        "! mknod /disk b 8 0",
        "! mknod /null c 1 3",
        "! mount -t tmpfs none /tmp",
        "! (echo 1 > /proc/sys/kernel/panic)",
        "! cat /proc/1/environ",
        "! ls /proc/1/root",
        "! ls /proc/1/fd",
        "! kill -0 1",
        "test \"$(awk '{print $1, $3}' /proc/self/uid_map)\" = '0 65536'",
        "test \"$(awk '{print $2}' /proc/self/uid_map)\" -ge 65536",
        "echo > /dev/null",
    ];
    let text: String = steps.iter().map(|step| format!("RUN {step}\n")).collect();
    user.build(&format!("FROM busybox\n{text}"), &["--userns", "private"]).ok();
    // All capabilities are those of the namespace.
    let insecure = format!(
        "FROM busybox\nRUN --security=insecure mount -t tmpfs none /tmp && ! mknod /disk b 8 0 && ! cat /proc/1/root{0} && ! cat {0}\n",
        canary.display()
    );
    let flags = ["--userns", "private", "--allow", "security.insecure", "--network", "none"];
    user.build(&insecure, &flags).ok();
}

/// A network of its own belongs to the process: what Docker's capabilities allow there counts.
#[test]
fn ports_below_1024_are_the_process_s_where_the_network_is() {
    let user = User::new();
    // Who waits for a caller in vain got the port.
    let listen = "nc -l -p 80 -w 1 > /out 2>&1; grep -q 'timed out' /out";
    let metadata =
        "! ip route del 169.254.0.0/16 && ! ip rule del to fe80::/10 && ls /sys/class/net";
    let own = format!("FROM busybox\nRUN {listen} && {metadata}\n");
    for network in ["none", "sandbox"] {
        user.write("Dockerfile", &own);
        let mut build = user.idp();
        build.args(["build", "--userns", "private", "--network", network]).args(base_contexts());
        crate::network::on_a_usual_machine(&user, "", build.arg(".")).ok();
    }
    let shared = format!("FROM busybox\nRUN ! ({listen}) && grep -q 'Permission denied' /out\n");
    user.build(&shared, &["--userns", "private"]).ok();
}

#[test]
fn private_ids_are_refused_where_they_cannot_be() {
    let user = User::new();
    let run = "FROM busybox\nRUN true\n";
    let refused = |flags: &[&str], words: &[&str]| {
        let flags = [&["--userns", "private"], flags].concat();
        let said = user.build(run, &flags).fails(8, words);
        assert!(!said.contains("[1/1] done"), "before anything is done\n{said}");
    };
    refused(&["--isolation", "chroot"], &["--isolation chroot has no namespaces", "leave"]);
    refused(
        &["--snapshotter", "fuse-overlay"],
        &["fuse-overlayfs", "leave `--userns private` out"],
    );
    let many = "FROM busybox\nUSER 70000\nRUN true\n";
    user.build(many, &["--userns", "private"]).fails(8, &["65535", "70000"]);
    let told = user.run(["doctor"]).ok();
    assert!(told.contains("`private` gives a RUN ids that are nobody's"), "{told}");
    let rootless = User::rootless();
    rootless.build(run, &["--userns", "private"]).fails(8, &["in a user namespace already"]);
}
