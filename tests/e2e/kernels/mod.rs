//! The tool on kernels that this machine does not run: Debian's 6.12 and 6.1 in virtual machines without anything but
//! busybox, with control groups of version 2, AppArmor, and switches that a container has no hand on.

mod cuts;
mod machine;

use crate::support::{Done, Turn, User, base_contexts};

use machine::{Disk, Kernel, Machine};

const RUN: &str = "FROM busybox\nCOPY --chown=5:6 file /file\nRUN cat /file > /copy && rm /file && mkdir -m 700 /made";

/// Loads what a kernel does not have built in.
const OVERLAY: &str = "insmod /modules/overlay.ko";

/// A script that builds in a folder of its own.
fn build(dockerfile: &str, flags: &str) -> String {
    format!(
        "cd $(mktemp -d -p /data) && echo content > file && touch -d @1600000000 file && printf '%s\\n' Dockerfile .dockerignore > .dockerignore
         cat > Dockerfile <<'EOF'\n{dockerfile}\nEOF
         idpbuilder build --progress plain --no-cache --build-context busybox=oci-layout:///bases/busybox {flags} ."
    )
}

/// The image that the kernel of this machine gives.
fn here(dockerfile: &str) -> String {
    let user = User::new();
    user.write("file", "content\n");
    user.write("Dockerfile", dockerfile);
    user.write(".dockerignore", "Dockerfile\n.dockerignore\n");
    Done::of(user.idp().arg("build").args(base_contexts()).arg(".")).ok()
}

/// One row of `doctor`.
#[track_caller]
fn row(doctor: &str, name: &str) -> String {
    let line = doctor.lines().find_map(|line| line.strip_prefix(&format!("  {name:<14}")));
    line.unwrap_or_else(|| panic!("no `{name}`: {doctor}")).to_owned()
}

/// Groups below a folder of control groups, but for those of other programs.
fn groups(machine: &mut Machine, below: &str) -> String {
    machine.root(&format!("cd /sys/fs/cgroup/{below} && find . -type d | sort")).ok()
}

#[test]
fn control_groups_of_version_2_hold_root_s_limits() {
    let _turn = Turn::wait("machine");
    let disk = Disk::new(Kernel::Trixie);
    let mut machine = disk.start();
    machine.root(OVERLAY).ok();
    let doctor = machine.root("idpbuilder doctor").ok();
    assert_eq!(row(&doctor, "environment"), "root");
    let all = "memory, processors, processes (by control groups, version 2)";
    assert_eq!(row(&doctor, "limits"), all);

    let show = "FROM busybox\nRUN cd /sys/fs/cgroup && cat memory.max memory.swap.max pids.max cpu.max cpu.weight && \
        cat /proc/self/cgroup && ! mkdir x && ! (echo 9 > pids.max)";
    let flags = "--memory 64m --memory-swap 96m --pids-limit 77 --cpus 0.5 --cpu-shares 1024";
    let done = machine.root(&build(show, flags));
    for word in ["67108864", "33554432", "77", "50000 100000", "39", "0::/"] {
        assert!(done.err.contains(&format!("| {word}\n")), "{word}: {done}");
    }
    done.ok();
    let eat = "FROM busybox\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1";
    let limit = "--memory 32m --memory-swap 32m";
    machine.root(&build(eat, limit)).fails(1, &["137", "out of memory (limit 32.0 MiB)"]);
    let bomb = "FROM busybox\nRUN while true; do sleep 1000 & done";
    machine.root(&build(bomb, "--pids-limit 30")).fails(1, &["limit of 30 processes"]);
    assert_eq!(groups(&mut machine, "."), ".\n");

    // A group that is named gets what those above it have to give first.
    let parent = "FROM busybox\nRUN cat /sys/fs/cgroup/memory.max";
    let done = machine.root(&build(parent, "--memory 64m --cgroup-parent builds/mine"));
    assert!(done.err.contains("| 67108864\n"), "{done}");
    done.ok();
    assert_eq!(groups(&mut machine, "builds"), ".\n./mine\n");

    // A container whose group is the tool's to divide, with its shell in it.
    let inside = |script: &str| {
        format!(
            "mkdir -p /sys/fs/cgroup/container && echo $$ > /sys/fs/cgroup/container/cgroup.procs
             exec /usr/bin/unshare --cgroup --mount sh -euc '\
                umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup\n{script}'"
        )
    };
    let doctor = machine.root(&inside("idpbuilder doctor; true")).ok();
    let told = row(&doctor, "limits");
    assert!(told.starts_with("none; not enforced"), "{told}");
    let way = told.split('`').nth(1).unwrap().to_owned();
    let doctor = machine.root(&inside(&format!("({way}) || true\nidpbuilder doctor"))).ok();
    assert_eq!(row(&doctor, "limits"), all);
}

/// Gives the user a group with these controllers, and enters it.
fn delegated(controllers: &str, script: &str) -> String {
    format!(
        "group=/sys/fs/cgroup/for-u; mkdir -p $group/own
         echo '+memory +pids +cpu' > /sys/fs/cgroup/cgroup.subtree_control
         echo '{controllers}' > $group/cgroup.subtree_control
         chown u $group/own $group/own/cgroup.procs $group/own/cgroup.subtree_control $group/own/cgroup.threads
         cat > /run/delegated <<'SCRIPT'\n{script}\nSCRIPT
         echo $$ > $group/own/cgroup.procs
         exec su u -c 'cd /data; . /run/delegated'"
    )
}

#[test]
fn a_group_that_is_delegated_to_an_ordinary_user_holds_the_limits_and_is_left_as_it_was() {
    const ALL: &str = "+memory +pids +cpu";
    let _turn = Turn::wait("machine");
    let disk = Disk::new(Kernel::Trixie);
    let mut machine = disk.start();
    machine.root(OVERLAY).ok();
    let user = machine.user("idpbuilder doctor").ok();
    assert_eq!(row(&user, "environment"), "user with subordinate ids");
    assert!(row(&user, "limits").contains("no control group is delegated"), "{user}");
    // Its own group alone is shown to it, whatever the machine has.
    let shown = "FROM busybox\nRUN cat /sys/fs/cgroup/memory.max; ls /sys/fs/cgroup; true";
    let done = machine.user(&build(shown, ""));
    assert!(!done.err.contains("for-u") && !done.err.contains("| init.scope"), "{done}");
    done.ok();

    let doctor = machine.root(&delegated(ALL, "exec idpbuilder doctor")).ok();
    let all = "memory, processors, processes (by control groups, version 2)";
    assert_eq!(row(&doctor, "limits"), all);
    // Several steps, at once and one after the other: there is one seat, and it is left.
    let steps = "FROM busybox AS a\nRUN cat /sys/fs/cgroup/memory.max\nFROM busybox AS b\nRUN cat /sys/fs/cgroup/pids.max\n\
        FROM busybox\nCOPY --from=a /bin/sh /a\nCOPY --from=b /bin/sh /b\nRUN cat /sys/fs/cgroup/cpu.max";
    let flags = "--memory 64m --memory-swap 64m --pids-limit 77 --cpus 0.5";
    // The tool takes the place of the shell, which would be another process of the group.
    let exec = |script: String| script.replace("         idpbuilder", "exec idpbuilder");
    let done = machine.root(&delegated(ALL, &exec(build(steps, flags))));
    for word in ["67108864", "77", "50000 100000"] {
        assert!(done.err.contains(&format!("| {word}\n")), "{word}: {done}");
    }
    assert!(!done.err.contains("not enforced"), "{done}");
    done.ok();
    let left = |machine: &mut Machine| {
        let words = machine.root("cat /sys/fs/cgroup/for-u/own/cgroup.subtree_control").ok();
        (groups(machine, "for-u"), words.trim().to_owned())
    };
    assert_eq!(left(&mut machine), (".\n./own\n".to_owned(), String::new()));
    let eat = "FROM busybox\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1";
    let done = machine.root(&delegated(ALL, &exec(build(eat, flags))));
    done.fails(1, &["137", "out of memory (limit 64.0 MiB)"]);
    assert_eq!(left(&mut machine), (".\n./own\n".to_owned(), String::new()));

    // Two of three: those are enforced, the third is told.
    let shared = machine.root(&delegated(ALL, "idpbuilder doctor; true")).ok();
    assert!(row(&shared, "limits").contains("other processes share"), "{shared}");
    let less = machine.root("echo -cpu > /sys/fs/cgroup/for-u/cgroup.subtree_control");
    less.ok();
    let show = "FROM busybox\nRUN cat /sys/fs/cgroup/memory.max";
    let done = machine.root(&delegated("+memory", &exec(build(show, flags))));
    assert!(done.err.contains("limits on processor time are not enforced"), "{done}");
    assert!(done.err.contains("| 67108864\n"), "{done}");
    done.ok();
}

#[test]
fn switches_and_profiles_that_forbid_user_namespaces_are_named_and_their_ways_out_work() {
    let _turn = Turn::wait("machine");
    let wanted = here(RUN);
    let copy = "FROM busybox\nCOPY --chown=5:6 file /file";
    let copied = here(copy);
    let disk = Disk::new(Kernel::Trixie);
    let mut machine = disk.start();
    machine.root(OVERLAY).ok();
    // What forbids it, which row that is, and what stands in the way out.
    let denied = "abi <abi/4.0>,\nprofile denied /usr/local/bin/* { allow all, deny userns, }";
    // As on Ubuntu: a namespace can be had, and rights in it cannot.
    let powerless = "abi <abi/4.0>,\nprofile powerless /usr/local/bin/* flags=(attach_disconnected) { \
        capability, network, signal, unix, ptrace, userns, file rwlkm /**, \
        deny capability setgid, deny mount, deny pivot_root, \
        pix /** -> &powerless, /usr/bin/newuidmap ux, /usr/bin/newgidmap ux, }";
    let apparmor =
        |profile: &str| format!("echo '{profile}' > /run/profile; apparmor_parser -r /run/profile");
    for (forbid, name, help, allow) in [
        (
            "sysctl user.max_user_namespaces=0".to_owned(),
            "user namespaces switched off",
            "sysctl user.max_user_namespaces=15000",
            None,
        ),
        (
            "sysctl kernel.unprivileged_userns_clone=0".to_owned(),
            "user namespaces for root alone",
            "sysctl kernel.unprivileged_userns_clone=1",
            None,
        ),
        (
            apparmor(denied),
            "AppArmor restricts user namespaces",
            "/etc/apparmor.d/idpbuilder",
            Some("apparmor_parser -R /etc/apparmor.d/idpbuilder; apparmor_parser -R /run/profile"),
        ),
        (
            apparmor(powerless),
            "AppArmor restricts user namespaces",
            "/etc/apparmor.d/idpbuilder",
            Some("true"),
        ),
    ] {
        machine.root(&forbid).ok();
        let doctor = machine.user("idpbuilder doctor").ok();
        assert_eq!(row(&doctor, "environment"), name, "{doctor}");
        let done = machine.user(&build(RUN, ""));
        assert!(!done.err.contains("[1/2]") && !done.err.contains("limits on"), "{done}");
        done.fails(8, &["RUN is not possible here", help]);
        assert_eq!(machine.user(&build(copy, "")).ok(), copied, "{forbid}");
        // What is printed is what helps: the command between the first quotes, or the profile between the third.
        let told = doctor.lines().find(|line| line.contains("help: ")).unwrap();
        let quoted: Vec<&str> = told.split('`').collect();
        let way = match allow {
            None => quoted[1].to_owned(),
            Some(_) => {
                format!("echo '{}' > /etc/apparmor.d/idpbuilder && {}", quoted[3], quoted[1])
            }
        };
        machine.root(&way).ok();
        assert_eq!(machine.user(&build(RUN, "")).ok(), wanted, "{way}");
        machine.root(allow.unwrap_or("true")).ok();
    }
    // Root needs none, unless it asks for one.
    machine.root("sysctl user.max_user_namespaces=0").ok();
    assert_eq!(machine.root(&build(RUN, "")).ok(), wanted);
    let done = machine.root(&build(RUN, "--userns private"));
    done.fails(8, &["no more user namespaces", "sysctl user.max_user_namespaces"]);
}

/// What every kernel has to do, whatever it lacks.
fn bare_system(kernel: Kernel, overlay: &str, emulator: Result<(), &str>) {
    let wanted = here(RUN);
    let disk = Disk::new(kernel);
    let mut machine = disk.start();
    // No overlay at all: the next best is taken, and said.
    let done = machine.root(&build(RUN, "--snapshotter copy"));
    let copies = "note: this kernel has no overlay: every RUN works on a copy";
    assert!(done.err.contains(copies) && done.err.contains("modprobe overlay"), "{done}");
    assert_eq!(done.ok(), wanted);
    let done = machine.user(&build(RUN, ""));
    assert!(done.err.contains(copies), "{done}");
    assert_eq!(done.ok(), wanted);
    machine.root("[ ! -e /modules/fuse.ko ] || insmod /modules/fuse.ko; chmod 666 /dev/fuse").ok();
    let done = machine.user(&build(RUN, ""));
    assert!(done.err.contains("no overlay: fuse-overlayfs is used"), "{done}");
    assert_eq!(done.ok(), wanted);

    // As root twice: the second time, what was found out is remembered.
    machine.root(OVERLAY).ok();
    let doctor = machine.root("idpbuilder doctor").ok();
    assert_eq!(row(&doctor, "RUN"), format!("{overlay}; namespaces, seccomp; root"));
    for _ in 0..2 {
        let done = machine.root(&build(RUN, ""));
        assert!(!done.err.contains("note: "), "{done}");
        assert_eq!(done.ok(), wanted);
    }
    let done = machine.user(&build(RUN, ""));
    assert!(!done.err.contains("note: "), "{done}");
    assert_eq!(done.ok(), wanted);

    // Programs for another processor: a module is missing, then an interpreter is all that it takes, or more.
    let arm = "FROM other\nRUN true";
    let other = "--platform linux/arm64 --build-context other=oci-layout:///bases/multi";
    if emulator.is_ok() {
        let missing = machine.root(&build(arm, other));
        missing.fails(8, &["modprobe binfmt_misc"]);
    }
    machine.root("insmod /modules/binfmt_misc.ko").ok();
    for done in [machine.root(&build(arm, other)), machine.user(&build(arm, other))] {
        match emulator {
            Ok(()) => drop(done.ok()),
            Err(reason) => drop(done.fails(8, &[reason, "for the whole machine"])),
        }
    }

    // A network of its own without the module for it, and with.
    let network = "FROM busybox\nRUN grep -q tap0 /proc/net/dev";
    machine.user(&build(network, "--network sandbox")).fails(8, &["modprobe tun"]);
    machine.root("insmod /modules/tun.ko && chmod 666 /dev/net/tun").ok();
    machine.user(&build(network, "--network sandbox")).ok();

    // Nobody may trace anybody, nothing in /tmp may be executed, and there are no accounts, names or certificates.
    machine.root("sysctl kernel.yama.ptrace_scope=3; mount -t tmpfs -o noexec,nosuid,nodev,mode=1777 tmp /tmp").ok();
    for user in [Machine::root, Machine::user] {
        let done = user(&mut machine, &build(RUN, "").replace("/data", "/tmp"));
        assert_eq!(done.ok(), wanted);
    }
    let bare = build(RUN, "").replace(
        "idpbuilder build",
        "mv /etc /e; umount /tmp; rmdir /tmp; env -i PATH=/bin IDPBUILDER_HOME=/home/bare /usr/local/bin/idpbuilder build",
    );
    assert_eq!(machine.root(&bare).ok(), wanted);
    let alone = "env -i IDPBUILDER_HOME=/home/bare /usr/local/bin/idpbuilder";
    let words = ["cannot resolve registry-1.docker.io"];
    machine.root(&format!("{alone} pull alpine")).fails(6, &words);
    let git = machine.root(&format!("{alone} build https://example.org/shop.git"));
    git.fails(8, &["git"]);
    let homeless = machine.root("env -i /usr/local/bin/idpbuilder images");
    homeless.fails(3, &["neither IDPBUILDER_HOME nor HOME"]);

    // Nothing but a folder in memory can be written to.
    machine.root("mv /e /etc; mount -o remount,ro / && mount -t tmpfs home /run").ok();
    let doctor = machine.root("idpbuilder doctor").ok();
    assert_eq!(row(&doctor, "environment"), "root", "{doctor}");
    assert!(row(&doctor, "RUN").contains("Read-only file system"), "{doctor}");
    let memory = build(RUN, "").replace("/data", "/run");
    let refused = machine.root(&memory);
    assert!(refused.code != 0 && refused.err.contains("Read-only file system"), "{refused}");
    let memory = memory.replace("idpbuilder build", "IDPBUILDER_HOME=/run/home idpbuilder build");
    assert_eq!(machine.root(&memory).ok(), wanted);
}

#[test]
fn in_the_file_system_that_the_kernel_was_started_with_run_works_too() {
    let _turn = Turn::wait("machine");
    let wanted = here(RUN);
    let disk = Disk::new(Kernel::Trixie);
    let mut machine = disk.start_in_memory();
    machine.root(OVERLAY).ok();
    assert!(machine.root("cat /proc/mounts").ok().starts_with("rootfs / rootfs"));
    assert_eq!(machine.root(&build(RUN, "")).ok(), wanted);
    assert_eq!(machine.user(&build(RUN, "")).ok(), wanted);
    // What was the root before is out of reach for whoever climbs.
    let climb = "FROM busybox\nRUN mkdir /deep && cd / && chroot /deep /bin/true; ls /../../bases /proc/1/root/bases; \
        ! ls -d /../data && ! umount -l /";
    machine.root(&build(climb, "")).ok();
}

/// `IDPBUILDER_TEST_KERNELS=all` takes every kernel: each takes a minute.
#[test]
fn another_kernel_on_a_bare_system_makes_the_same_image_by_every_way() {
    let _turn = Turn::wait("machine");
    bare_system(Kernel::Bookworm, "overlay by mount(2)", Err("before Linux 6.7"));
    if std::env::var_os("IDPBUILDER_TEST_KERNELS").is_some_and(|which| which == "all") {
        bare_system(Kernel::Trixie, "overlay", Ok(()));
    }
}
