//! What system calls and capabilities a RUN has, beside what Debian's crun gives a container with Docker's defaults.
//!
//! One program makes every call in both. Each line that differs stands in a table here with its reason.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::{
    Done, Folder, User,
    images::{self, Layout},
};

/// Docker's default.
pub(crate) const DOCKER_CAPS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The profile is podman's, which leaves these to the kernel's own check; Docker's forbids them to who lacks a capability.
const CHECKED: &str = "podman leaves it to the kernel, Docker forbids it";
/// What neither list has.
const UNLISTED: &str = "podman answers ENOSYS to what it does not list, Docker EPERM";
/// Calls that are younger than Debian's list.
const NEWER: &str = "younger than Debian's list, and on Docker's";
/// Its flags lie in memory, where a filter cannot look.
const CLONE3: &str = "the C library then takes clone, whose flags a filter can see, as with Docker";

/// What a user namespace forbids, whatever the filter says.
const NAMESPACE: &str = "the kernel forbids it in a user namespace";

/// A line of the probe that may differ: name, with crun, with us, and why.
type Difference = (&'static str, &'static str, &'static str, &'static str);

/// In a user namespace, device files are not made.
const NO_DEVICES: Difference = ("mknod-char", "OK", "EPERM", NAMESPACE);

/// In a user namespace, the machine's network is open to ordinary sockets alone.
const NO_RAW: [Difference; 3] = [
    ("socket-icmp", "OK", "EPERM", NAMESPACE),
    ("socket-packet", "OK", "EPERM", NAMESPACE),
    ("socket-xdp", "OK", "EPERM", NAMESPACE),
];

/// Lines of the probe that may differ: name, with crun, with us, and why. On a kernel without the call they are equal.
const DIFFERENCES: &[Difference] = &[
    ("_sysctl", "ENOSYS", "EPERM", UNLISTED),
    ("add_key", "ENOSYS", "EPERM", UNLISTED),
    ("cachestat", "ENOSYS", "EBADF", NEWER),
    ("clone-user", "OK", "EPERM", CHECKED),
    ("clone3", "EFAULT", "ENOSYS", CLONE3),
    ("create_module", "ENOSYS", "EPERM", UNLISTED),
    ("fchmodat2", "ENOSYS", "ENOENT", NEWER),
    ("fsconfig", "EINVAL", "EPERM", CHECKED),
    ("futex_waitv", "ENOSYS", "EINVAL", NEWER),
    ("futex_wake", "ENOSYS", "EINVAL", NEWER),
    ("get_mempolicy", "OK", "EPERM", CHECKED),
    ("i386-clone3", "EFAULT", "ENOSYS", CLONE3),
    ("i386-keyctl", "EINVAL", "EPERM", CHECKED),
    ("i386-mount", "EFAULT", "EPERM", CHECKED),
    ("i386-socket-alg", "EAFNOSUPPORT", "EPERM", CHECKED),
    ("i386-unshare", "OK", "EPERM", CHECKED),
    ("io_uring_enter", "ENOSYS", "EPERM", UNLISTED),
    ("io_uring_register", "ENOSYS", "EPERM", UNLISTED),
    ("io_uring_setup", "ENOSYS", "EPERM", UNLISTED),
    ("keyctl", "OK", "EPERM", CHECKED),
    ("listmount", "ENOSYS", "EFAULT", NEWER),
    ("lsm_get_self_attr", "ENOSYS", "EPERM", UNLISTED),
    ("mbind", "EINVAL", "EPERM", CHECKED),
    ("mount", "ENOENT", "EPERM", CHECKED),
    ("mount_setattr", "EINVAL", "EPERM", CHECKED),
    ("mseal", "ENOSYS", "EINVAL", NEWER),
    ("name_to_handle_at", "EFAULT", "EOPNOTSUPP", "overlay has no handles of files"),
    ("open_tree", "ENOENT", "EPERM", CHECKED),
    ("personality-bsd", "ENOSYS", "EPERM", UNLISTED),
    ("personality-no-random", "ENOSYS", "EPERM", UNLISTED),
    ("pidfd_getfd", "EBADF", "EPERM", CHECKED),
    ("quotactl_fd", "ENOSYS", "EPERM", UNLISTED),
    ("request_key", "ENOSYS", "EPERM", UNLISTED),
    ("set_mempolicy", "EINVAL", "EPERM", CHECKED),
    ("set_mempolicy_home_node", "ENOSYS", "EPERM", UNLISTED),
    ("setns", "EBADF", "EPERM", CHECKED),
    ("setxattrat", "ENOSYS", "EINVAL", NEWER),
    ("socket-alg", "EAFNOSUPPORT", "EPERM", CHECKED),
    ("socket-vsock", "OK", "EPERM", CHECKED),
    ("statmount", "ENOSYS", "EFAULT", NEWER),
    ("umount2", "ENOENT", "EPERM", CHECKED),
    ("unshare-files", "OK", "EPERM", CHECKED),
    ("unshare-user", "OK", "EPERM", CHECKED),
    ("vmsplice", "EPERM", "EBADF", "Docker's list has it, podman's has not"),
];

/// How the calls of the probe end in one place: answer by name.
type Answers = BTreeMap<String, String>;

fn answers(text: &str) -> Answers {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(name, answer)| (name.to_owned(), answer.to_owned())).collect()
}

/// The rules of containers-common's profile that hold for these capabilities, as a runtime takes them.
fn seccomp() -> Value {
    let text = fs::read_to_string("/usr/share/containers/seccomp.json").unwrap();
    let profile: Value = serde_json::from_str(&text).unwrap();
    let words = |list: &Value| -> Vec<String> {
        list.as_array()
            .into_iter()
            .flatten()
            .map(|word| word.as_str().unwrap().to_owned())
            .collect()
    };
    let has = |capability: &String| DOCKER_CAPS.contains(&capability.as_str());
    let here = |arch: &String| ["amd64", "x86", "x32"].contains(&arch.as_str());
    let mut rules = Vec::new();
    for rule in profile["syscalls"].as_array().unwrap() {
        let (wanted, unwanted) = (&rule["includes"], &rule["excludes"]);
        let arches = words(&wanted["arches"]);
        let holds = words(&wanted["caps"]).iter().all(has)
            && (arches.is_empty() || arches.iter().any(here))
            && !words(&unwanted["caps"]).iter().any(has)
            && !words(&unwanted["arches"]).iter().any(here);
        if holds {
            let mut kept = json!({ "names": rule["names"], "action": rule["action"] });
            for key in ["args", "errnoRet"] {
                if rule.get(key).is_some_and(|value| !value.is_null()) {
                    kept[key] = rule[key].clone();
                }
            }
            rules.push(kept);
        }
    }
    json!({
        "defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": rules,
    })
}

/// A container as dockerd would ask a runtime for.
fn container(uid: u32) -> Value {
    let own: &[&str] = if uid == 0 { &DOCKER_CAPS } else { &[] };
    let mount = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let namespaces = ["pid", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.0", "hostname": "probe", "root": { "path": "root", "readonly": false },
        "process": {
            "user": { "uid": uid, "gid": uid }, "args": ["/bin/probe"], "cwd": "/", "env": [], "noNewPrivileges": false,
            "capabilities": { "bounding": DOCKER_CAPS, "effective": own, "permitted": own },
        },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": seccomp(),
        },
    })
}

fn in_crun(uid: u32) -> Answers {
    let folder = Folder::new();
    let root = folder.path().join("root");
    for name in ["bin", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    fs::set_permissions(root.join("tmp"), open).unwrap();
    for path in [folder.path(), &root] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    images::compiled("probe", &root.join("bin"));
    fs::write(folder.path().join("config.json"), container(uid).to_string()).unwrap();
    let name = format!("probe-{}-{uid}", std::process::id());
    // crun knows no control groups of version 1 beside an empty version 2, as they are on some machines: it gets none.
    let script =
        "umount -R /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup; exec timeout 60 crun \"$@\"";
    let mut crun = Command::new("unshare");
    crun.args(["--mount", "bash", "-c", script, "crun", "--root"]).arg(folder.path().join("state"));
    crun.args(["--cgroup-manager", "disabled", "run", "--bundle"]).arg(folder.path()).arg(name);
    answers(&Done::of(crun.stdin(std::process::Stdio::null())).ok())
}

/// The probe as RUN, by root and by user 1000.
fn in_run(user: &User, flags: &[&str]) -> [Answers; 2] {
    let layout = Layout::new(user.folder().join("layout"));
    let layers = images::base_layers();
    layout.image(&images::config_of(&layers, &images::plain_process()), &layers);
    own(user, &layout.0);
    user.write(
        "Dockerfile",
        "FROM base\nRUN probe; rm -f /tmp/probe /tmp/pipe\nUSER 1000:1000\nRUN echo user; probe\n",
    );
    let context = format!("base=oci-layout://{}", layout.0.display());
    let done = Done::of(
        user.idp()
            .args(["--progress", "plain", "build", "--build-context", &context, "."])
            .args(flags),
    );
    assert_eq!(done.code, 0, "{done}");
    let lines = done.err.lines().filter_map(|line| line.split_once(":   | ").map(|(_, text)| text));
    let text = lines.fold(String::new(), |text, line| text + line + "\n");
    let (root, other) = text.split_once("user\n").unwrap();
    [answers(root), answers(other)]
}

fn own(user: &User, path: &Path) {
    Done::of(Command::new("chown").arg("-R").arg("--reference").arg(user.account()).arg(path)).ok();
}

/// Lines that differ and should not, or should and do not.
fn differences(uid: u32, crun: &Answers, ours: &Answers, known: &[Difference]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, theirs) in crun {
        let answer = ours.get(name).map_or("nothing", String::as_str);
        let known = known.iter().find(|(known, ..)| known == name);
        match known {
            None if answer != theirs => {
                wrong.push(format!("uid {uid}: {name}: crun {theirs}, we {answer}"));
            }
            Some(&(_, expected, with_us, _))
                if answer != theirs && (expected, with_us) != (theirs.as_str(), answer) =>
            {
                wrong.push(format!("uid {uid}: {name}: crun {theirs}, we {answer}, the table says {expected}, {with_us}"));
            }
            _ => {}
        }
    }
    if crun.keys().ne(ours.keys()) {
        wrong.push(format!("uid {uid}: not the same calls"));
    }
    wrong
}

/// S24, S18.
#[track_caller]
#[expect(clippy::print_stdout, reason = "the table of results is what a test prints")]
fn assert_as_in_crun(
    environment: &str,
    (user, flags): (&User, &[&str]),
    more: &[Difference],
    uids: &[u32],
) {
    let ours = in_run(user, flags);
    assert!(ours[0].len() > 140, "{} calls", ours[0].len());
    let known: Vec<_> = DIFFERENCES.iter().chain(more).copied().collect();
    let wrong = uids
        .iter()
        .zip(&ours)
        .flat_map(|(uid, ours)| differences(*uid, &in_crun(*uid), ours, &known));
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (name, crun, ours, reason) in &known {
        println!("S24, {environment}, {name}: crun {crun}, here {ours}: {reason}");
    }
    println!("S24, {environment}, {} answers as in crun", ours[0].len() - known.len());
}

#[test]
fn s24_root_has_the_system_calls_and_capabilities_of_a_container_of_docker() {
    assert_as_in_crun("root", (&User::new(), &[]), &[], &[0, 1000]);
}

#[test]
fn s24_private_ids_have_the_system_calls_and_capabilities_of_a_container_of_docker() {
    let more = [NO_DEVICES, NO_RAW[0], NO_RAW[1], NO_RAW[2]];
    let user = User::new();
    assert_as_in_crun("root, private ids", (&user, &["--userns", "private"]), &more, &[0, 1000]);
}

#[test]
fn s24_an_ordinary_user_has_the_system_calls_and_capabilities_of_a_container_of_docker() {
    let user = User::rootless();
    assert_as_in_crun(
        "user, subordinate ids",
        (&user, &[]),
        &[NO_DEVICES, NO_RAW[0], NO_RAW[1], NO_RAW[2]],
        &[0, 1000],
    );
}

/// With one id, user 1000 is the same as root.
#[test]
fn s24_a_user_with_one_id_has_the_system_calls_and_capabilities_of_a_container_of_docker() {
    assert_as_in_crun("user, one id", (&User::single_id(), &[]), &NO_RAW, &[0]);
}
