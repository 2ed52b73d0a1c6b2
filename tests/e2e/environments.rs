//! Places that forbid one thing or another: what works there, what is said, and whether the way out is one.
//!
//! The places are containers of Debian's crun with the system calls that containers-common allows, the paths that
//! Docker masks and its capabilities; or a namespace made for the purpose.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use serde_json::{Value, json};

use crate::{
    attacks::DOCKER_CAPS,
    support::{Done, User, base_contexts, bases, binary, copy_program},
};

/// Calls that AppArmor's restriction makes useless in a user namespace.
const MOUNT_CALLS: [&str; 9] = [
    "mount",
    "umount2",
    "pivot_root",
    "fsopen",
    "fsconfig",
    "fsmount",
    "move_mount",
    "open_tree",
    "mount_setattr",
];

/// Calls that Docker allows with CAP_SYS_ADMIN alone, and containers-common to everybody.
const ADMIN_CALLS: [&str; 19] = [
    "bpf",
    "clone",
    "clone3",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "quotactl",
    "setdomainname",
    "sethostname",
    "setns",
    "syslog",
    "umount",
    "umount2",
    "unshare",
];

/// Which system calls are allowed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filter {
    Docker,
    ContainersCommon,
    None,
}

/// A kind of container.
#[derive(Clone)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not exclude one another")]
struct Place {
    uid: u32,
    caps: Vec<&'static str>,
    filter: Filter,
    /// Whether parts of /proc are hidden.
    masked: bool,
    no_new_privileges: bool,
    /// Calls that fail with EACCES.
    denied: Vec<&'static str>,
    /// Whether it is in a user namespace of its own, with switches of its own.
    own_users: bool,
}

impl Place {
    fn docker(uid: u32) -> Self {
        let caps = if uid == 0 { DOCKER_CAPS.to_vec() } else { Vec::new() };
        let (filter, masked, no_new_privileges) = (Filter::Docker, true, false);
        Self { uid, caps, filter, masked, no_new_privileges, denied: Vec::new(), own_users: false }
    }

    fn kubernetes_restricted() -> Self {
        Self { no_new_privileges: true, ..Self::docker(1000) }
    }

    fn unconfined(self) -> Self {
        Self { filter: Filter::None, ..self }
    }

    fn unmasked(self) -> Self {
        Self { masked: false, ..self }
    }

    fn seccomp_of(&self) -> Option<Value> {
        if self.filter == Filter::None {
            let rule = json!({"names": self.denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 13});
            let rules = if self.denied.is_empty() { json!([]) } else { json!([rule]) };
            let filter = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
            return (!self.denied.is_empty()).then_some(filter);
        }
        let text = fs::read_to_string("/usr/share/containers/seccomp.json").unwrap();
        let profile: Value = serde_json::from_str(&text).unwrap();
        let has = |cap: &Value| self.caps.contains(&cap.as_str().unwrap_or_default());
        let list = |rule: &Value, side: &str, what: &str| -> Vec<Value> {
            rule[side][what].as_array().cloned().unwrap_or_default()
        };
        let applies = |rule: &&Value| {
            let arches = list(rule, "includes", "arches");
            list(rule, "includes", "caps").iter().all(has)
                && !list(rule, "excludes", "caps").iter().any(has)
                && (arches.is_empty() || arches.contains(&json!("amd64")))
                && !list(rule, "excludes", "arches").contains(&json!("amd64"))
        };
        let rules = profile["syscalls"].as_array().unwrap().iter().filter(applies);
        let admin = self.caps.contains(&"CAP_SYS_ADMIN");
        let allowed = |name: &Value| {
            let name = name.as_str().unwrap();
            // Docker allows it to nobody.
            let refused = name == "pivot_root" || !admin && ADMIN_CALLS.contains(&name);
            self.filter != Filter::Docker || !refused
        };
        let mut rules: Vec<Value> = rules
            .map(|rule| {
                let names = rule["names"].as_array().unwrap().iter().filter(|name| allowed(name));
                let names: Vec<&Value> = names.collect();
                let mut kept = json!({"names": names, "action": rule["action"]});
                for key in ["args", "errnoRet"] {
                    if !rule[key].is_null() && rule[key] != json!([]) {
                        kept[key] = rule[key].clone();
                    }
                }
                kept
            })
            .filter(|rule| rule["names"] != json!([]))
            .collect();
        if self.filter == Filter::Docker && !admin {
            let namespaces = json!({"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"});
            rules.push(
                json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [namespaces]}),
            );
            rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
        }
        Some(json!({
            "defaultAction": profile["defaultAction"],
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": rules,
        }))
    }

    fn config(&self, script: &str, mounts: &[(&Path, &str)]) -> Value {
        let masked = ["acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "scsi"]
            .map(|name| format!("/proc/{name}"));
        let read_only = ["bus", "fs", "irq", "sys", "sysrq-trigger"].map(|n| format!("/proc/{n}"));
        let mut all = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}),
            json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"]}),
            json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777"]}),
            json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"}),
            json!({"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": ["mode=1777"]}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}),
        ];
        all.extend(mounts.iter().map(|(source, target)| {
            json!({"destination": target, "type": "bind", "source": source, "options": ["rbind"]})
        }));
        let (masked, read_only) =
            if self.masked { (masked.to_vec(), read_only.to_vec()) } else { (vec![], vec![]) };
        let mut namespaces = vec!["pid", "ipc", "uts", "mount", "network", "cgroup"];
        if self.own_users {
            namespaces.push("user");
        }
        let namespaces: Vec<_> = namespaces.iter().map(|kind| json!({"type": kind})).collect();
        let all_ids = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        let map = if self.own_users { all_ids } else { json!([]) };
        let caps = json!({"bounding": self.caps, "effective": self.caps, "permitted": self.caps});
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": self.uid, "gid": self.uid},
                "args": ["/bin/sh", "-euc", script],
                "env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/data", "LC_ALL=C.UTF-8"],
                "cwd": "/data",
                "capabilities": caps,
                "noNewPrivileges": self.no_new_privileges,
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
            },
            "root": {"path": "rootfs", "readonly": true},
            "hostname": "place",
            "mounts": all,
            "linux": {
                "namespaces": namespaces,
                "uidMappings": map,
                "gidMappings": map,
                "maskedPaths": masked,
                "readonlyPaths": read_only,
                "seccomp": self.seccomp_of(),
            },
        })
    }

    /// Runs a script in a container of this kind; `/data` is writable, `/bases` has the bases.
    fn run(&self, user: &User, script: &str) -> Done {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let bundle = user.folder().join(format!("bundle{number}"));
        let root = bundle.join("rootfs");
        fs::create_dir_all(&root).unwrap();
        for folder in ["proc", "sys", "dev", "tmp", "data", "bases", "etc", "bin", "usr/local/bin"]
        {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        copy_program("/bin/busybox", &root.join("bin/busybox"));
        for applet in [
            "sh", "cat", "echo", "mkdir", "grep", "id", "sleep", "ps", "su", "chown", "printf",
            "touch",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nu:x:1000:1000::/:/bin/sh\n")
            .unwrap();
        copy_program(binary(), &root.join("usr/local/bin/idpbuilder"));
        fs::set_permissions(&bundle, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let data = user.folder().join("data");
        fs::create_dir_all(&data).unwrap();
        std::os::unix::fs::chown(&data, Some(self.uid), Some(self.uid)).unwrap();
        let bases = bases();
        let mounts = [(data.as_path(), "/data"), (bases.as_path(), "/bases")];
        let config = self.config(script, &mounts);
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let name = format!("idpb-{}-{number}", std::process::id());
        // This crun refuses to start where both versions of control groups are mounted.
        let script = "umount /sys/fs/cgroup/unified 2>/dev/null || true
            exec crun --cgroup-manager=disabled run --bundle \"$0\" \"$1\"";
        let mut crun = Command::new("unshare");
        crun.args(["--mount", "sh", "-euc", script]).arg(&bundle).arg(&name);
        let done = Done::of(crun.stdin(Stdio::null()));
        fs::remove_dir_all(&bundle).unwrap();
        done
    }

    /// Builds a Dockerfile in such a container, with a store of its own.
    fn build(&self, dockerfile: &str, flags: &str) -> Done {
        let user = User::new();
        let context = "--build-context busybox=oci-layout:///bases/corpus/busybox \
             --build-context debian:bookworm=oci-layout:///bases/debian";
        // The folder is on a disk, as a volume is.
        let script = format!(
            "mkdir context; echo content > context/file; touch -d @1600000000 context/file; cat > Dockerfile <<'EOF'\n{dockerfile}\nEOF\n\
             idpbuilder build --progress plain {flags} {context} -f Dockerfile context"
        );
        self.run(&user, &script)
    }
}

const COPY: &str = "FROM busybox\nCOPY file /file";
const RUN: &str = "FROM busybox\nCOPY file /file\nRUN cat /file > /copy; id -u; sleep 1000 & ls /proc/self/fd; cat /proc/self/stat > /dev/null";

/// What the same Dockerfile gives where nothing is forbidden.
fn wanted(dockerfile: &str) -> String {
    let user = User::new();
    user.write("file", "content\n");
    let mut command = user.idp();
    user.write("Dockerfile", dockerfile);
    user.write(".dockerignore", "Dockerfile\n.dockerignore\n");
    Done::of(command.arg("build").args(base_contexts()).arg(".")).ok()
}

/// A place in which COPY works and RUN is refused, before anything is done for it, with words about it.
#[track_caller]
fn only_copies(place: &Place, words: &[&str]) {
    assert_eq!(place.build(COPY, "").ok(), wanted(COPY));
    let done = place.build(RUN, "");
    assert!(
        !done.err.contains("] done") && !done.err.contains("note: "),
        "a step was done: {done}"
    );
    done.fails(8, &[&["RUN is not possible here", "idpbuilder doctor"], words].concat());
}

/// A place in which all works, with words about what is not as it should be.
#[track_caller]
fn runs(place: &Place, words: &[&str]) {
    let done = place.build(RUN, "");
    for word in words {
        assert!(done.err.contains(word), "{word}: {done}");
    }
    assert_eq!(done.err.matches("note: ").count(), words.len(), "{done}");
    assert_eq!(done.ok(), wanted(RUN));
}

const MASKED: &str = "note: this container masks parts of /proc";
const SINGLE: &str = "note: one user id is mapped";
const LIMITS: &str = "note: limits on the number of processes are not enforced here";

#[test]
fn docker_s_default_copies_and_refuses_run_with_a_way_out_that_works() {
    let ways = ["--security-opt seccomp=unconfined", "--cap-add SYS_ADMIN", "hostUsers: false"];
    let place = Place::docker(0);
    only_copies(&place, &ways);
    only_copies(&Place::docker(1000), &ways);
    // Each way out is one.
    runs(&place.clone().unconfined().unmasked(), &[]);
    runs(&Place::docker(1000).unconfined().unmasked(), &[SINGLE]);
    let with_admin = Place { caps: [&DOCKER_CAPS[..], &["CAP_SYS_ADMIN"]].concat(), ..place };
    runs(&with_admin, &[LIMITS]);
}

/// As `crun spec` writes it: root without the right to map itself (CAP_SETFCAP) is not led into a namespace where it is nobody.
#[test]
fn root_that_may_not_map_itself_is_told_what_it_lacks() {
    let few = Place {
        caps: vec!["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        ..Place::docker(0).unconfined().unmasked()
    };
    let done = few.build(RUN, "");
    assert!(!done.err.contains("ext4") && !done.err.contains("--isolation chroot"), "{done}");
    done.fails(8, &["RUN is not possible here", "--cap-add SETFCAP --security-opt seccomp"]);
    let caps = [&few.caps[..], &["CAP_SETFCAP"]].concat();
    runs(&Place { caps, ..few.clone() }, &[SINGLE]);
    // What has no isolation is named only to who could use it.
    let caps = DOCKER_CAPS.iter().copied().filter(|name| *name != "CAP_SETFCAP").collect();
    let place = Place { caps, ..few };
    place.build(RUN, "").fails(8, &["`--isolation chroot` runs", "--cap-add SETFCAP"]);
    let echo = "FROM busybox\nRUN echo content";
    assert_eq!(place.build(echo, "--isolation chroot").ok(), wanted(echo));
}

#[test]
fn chroot_runs_where_nothing_else_can_and_says_that_nothing_is_isolated() {
    const NOT_ISOLATED: &str = "note: --isolation chroot: a RUN is not isolated";
    // A number of seconds that nobody else sleeps for.
    let seconds = format!("{}", 424_000_000 + u64::from(std::process::id()));
    let dockerfile = format!(
        "FROM busybox\nCOPY file /file\nRUN cat /file > /copy; echo x > /dev/null; \
        cat /etc/resolv.conf > /dev/null; setsid sleep {seconds} & mkdir /made\n\
        RUN <<E\nrm /copy\necho y > /made/y\nchown 5:6 /made/y\nE\nUSER 7\nRUN id -u && cat /made/y; exit 0"
    );
    let dockerfile = dockerfile.as_str();
    let here = wanted(dockerfile);
    let place = Place::docker(0);
    let done = place.build(dockerfile, "--isolation chroot");
    assert!(done.err.contains(NOT_ISOLATED) && done.err.contains("| 7\n"), "{done}");
    assert_eq!(done.ok(), here);
    // Never without being asked for, and not for those who may not even do that.
    place.build(dockerfile, "").fails(8, &["--isolation chroot"]);
    Place::docker(1000).build(dockerfile, "--isolation chroot").fails(8, &["not possible"]);
    // Nor is root led into a namespace where it could make no devices.
    assert_eq!(place.clone().unconfined().build(dockerfile, "--isolation chroot").ok(), here);
    let mount = "FROM busybox\nRUN --mount=type=cache,target=/c true";
    place.build(mount, "--isolation chroot").fails(8, &["has no mounts"]);
    let left = fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&seconds)
    });
    assert!(!left, "what was left running is killed");
}

#[test]
fn a_container_without_seccomp_runs_with_its_own_proc_and_says_so() {
    runs(&Place::docker(0).unconfined(), &[MASKED]);
    runs(&Place::docker(1000).unconfined(), &[MASKED, SINGLE]);
}

#[test]
fn podman_s_default_runs_and_says_what_differs() {
    let name = "note: the host name of a RUN is that of this container";
    let place = Place { filter: Filter::ContainersCommon, ..Place::docker(0) };
    runs(&place, &[MASKED, name]);
    runs(&Place { uid: 1000, caps: Vec::new(), ..place }, &[MASKED, SINGLE, name]);
}

#[test]
fn kubernetes_restricted_copies_and_names_what_the_pod_must_say() {
    let place = Place::kubernetes_restricted();
    only_copies(&place, &["hostUsers: false", "procMount: Unmasked", "seccompProfile"]);
    runs(&place.unconfined(), &[MASKED, SINGLE]);
}

#[test]
fn mounts_that_are_denied_are_told_from_namespaces_that_are() {
    let place =
        Place { denied: MOUNT_CALLS.to_vec(), ..Place::docker(1000).unconfined().unmasked() };
    only_copies(&place, &["forbids mounts", "fsopen(2)"]);
    runs(&Place { denied: Vec::new(), ..place }, &[SINGLE]);
}

#[test]
fn doctor_names_the_place_in_words_and_in_json() {
    for (place, name, works) in [
        (Place::docker(0), "container, root without the right to mount", false),
        (Place::docker(1000), "container, user without namespaces", false),
        (Place::docker(1000).unconfined(), "container without seccomp, /proc masked", true),
        (Place::docker(1000).unconfined().unmasked(), "user with a single id", true),
        (Place::docker(0).unconfined().unmasked(), "user with subordinate ids", true),
    ] {
        let user = User::new();
        let done = place.run(&user, "idpbuilder doctor; idpbuilder doctor --json").ok();
        let (text, object) = done.split_at(done.find("\n{").unwrap());
        assert!(text.contains(&format!("environment   {name}\n")), "{name}: {text}");
        let found: Value = serde_json::from_str(object).unwrap();
        assert_eq!((&found["environment"], &found["run"]), (&json!(name), &json!(works)));
        assert_eq!(text.contains("not possible"), !works, "{text}");
    }
}

#[test]
fn user_namespaces_that_are_switched_off_are_named_with_the_switch() {
    let place = Place { own_users: true, ..Place::docker(0).unconfined().unmasked() };
    let caps = [&DOCKER_CAPS[..], &["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"]].concat();
    let place = Place { caps, ..place };
    for (switch, code) in [("0", 8), ("100", 0)] {
        let script = format!(
            "echo {switch} > /proc/sys/user/max_user_namespaces
             mkdir context home; echo content > context/file; touch -d @1600000000 context/file; chown 1000:1000 home
             printf '%s\n' '{}' > Dockerfile
             exec su u -s /bin/sh -c 'export IDPBUILDER_HOME=/data/home; idpbuilder build --progress plain \
                 --build-context busybox=oci-layout:///bases/corpus/busybox -f Dockerfile context'",
            RUN.replace('\n', "' '")
        );
        let done = place.run(&User::new(), &script);
        if code == 0 {
            assert!(done.err.contains(SINGLE), "{done}");
            assert_eq!(done.ok(), wanted(RUN));
        } else {
            done.fails(code, &["sysctl user.max_user_namespaces", "RUN is not possible"]);
        }
    }
}

/// What was lent to the image's files is taken back afterwards: from a file, and from nothing that was put in its place.
#[test]
fn chroot_waits_for_no_pipe_in_the_place_of_a_file() {
    let user = User::new();
    user.write("hosts", "192.0.2.1 own\n");
    let dockerfile = "FROM busybox\nCOPY hosts /etc/hosts\nRUN grep -q localhost /etc/hosts\n\
        RUN rm /etc/hosts && mkfifo /etc/hosts\nRUN test -p /etc/hosts\n";
    user.build(dockerfile, &["--isolation", "chroot"]).ok();
    let kept = "FROM busybox\nCOPY hosts /etc/hosts\nRUN cat /etc/hosts > /seen\n";
    user.build(kept, &["--isolation", "chroot", "--output", "type=local,dest=out"]).ok();
    let read = |name: &str| fs::read_to_string(user.work().join("out").join(name)).unwrap();
    assert!(read("seen").contains("localhost"));
    assert_eq!(read("etc/hosts"), "192.0.2.1 own\n");
    // What is too large to be put back is left alone.
    let many = "192.0.2.1 own\n".repeat(100_000);
    user.write("hosts", &many);
    user.build(kept, &["--isolation", "chroot", "--output", "type=local,dest=out"]).ok();
    assert!(read("etc/hosts") == many && read("seen") == many);
}
