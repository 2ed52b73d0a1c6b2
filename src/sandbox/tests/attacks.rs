//! What hostile images and processes try, each by the number of its case.

use super::*;

#[test]
fn s27_the_memory_of_the_tool_is_out_of_sight() {
    let place = Place::new();
    let said = says(&place.shell(
        "for f in environ mem maps; do cat /proc/1/$f 2>&1; done; ls /proc/1/root 2>&1; ls /proc/1/fd",
    ));
    assert_eq!(said.matches("Permission denied").count(), 4, "{said}");
    assert_eq!(said.lines().count(), 4, "{said}");
}

#[test]
fn s01_a_working_directory_cannot_be_a_descriptor() {
    let place = Place::new();
    for number in 0..16 {
        let mut spec = place.shell("cat ../../../../canary");
        spec.cwd = format!("/proc/self/fd/{number}");
        let error = fails(&spec).to_string();
        assert!(error.contains("working directory /proc/self/fd"), "{error}");
    }
}

#[test]
fn s01_only_three_descriptors_are_open() {
    let place = Place::new();
    let leak = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    // `ls` itself opens the directory as 3.
    assert_eq!(says(&place.shell("ls /proc/self/fd")), "0\n1\n2\n3\n");
    assert_eq!(says(&place.shell("ls -l /proc/self/fd/0 | grep -c '/dev/null'")), "1\n");
}

#[test]
fn s05_a_proc_that_is_no_directory_is_refused() {
    for prepare in [
        |lower: &Path| symlink("/tmp", lower.join("proc")).unwrap(),
        |lower: &Path| fs::write(lower.join("proc"), b"fake").unwrap(),
        |lower: &Path| symlink("../../../../../../tmp", lower.join("proc")).unwrap(),
    ] {
        let place = Place::new();
        prepare(&place.lower());
        let error = fails(&place.shell("true"));
        assert!(error.to_string().contains("/proc"), "{error}");
    }
    let place = Place::new();
    fs::create_dir_all(place.lower().join("proc/self/attr")).unwrap();
    fs::write(place.lower().join("proc/self/attr/current"), b"fake").unwrap();
    assert_eq!(says(&place.shell("grep -c '^proc /proc proc' /proc/mounts")), "1\n");
}

#[test]
fn s04_s06_the_image_s_own_dev_is_never_used() {
    let place = Place::new();
    let canary = place.path("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("ptmx"), b"canary").unwrap();
    fs::create_dir(place.lower().join("dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", place.lower().join("dev/null")).unwrap();
    symlink("/tmp", place.lower().join("dev/pts")).unwrap();
    assert_eq!(
        says(&place.shell("cd /dev; ls; ls pts")),
        "core\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\nptmx\n"
    );
    fs::remove_dir_all(place.lower().join("dev")).unwrap();
    symlink(&canary, place.lower().join("dev")).unwrap();
    assert!(fails(&place.shell("true")).to_string().contains("/dev"));
    assert_eq!(tree(&canary), ["ptmx"]);
    assert_eq!(fs::read(canary.join("ptmx")).unwrap(), b"canary");
}

#[test]
fn s07_etc_files_are_found_within_the_root() {
    let place = Place::new();
    // Where the machine's temporary files are is the user's business, and not always a folder of the image.
    let outside = tempfile::tempdir_in("/tmp").unwrap();
    let canary = outside.path().join("canary");
    fs::write(&canary, b"canary").unwrap();
    symlink(&canary, place.lower().join("etc/hosts")).unwrap();
    symlink("../../../../../../../run/resolve/conf", place.lower().join("etc/resolv.conf"))
        .unwrap();
    let mut spec = place.shell("cat /etc/resolv.conf; cat /etc/hosts; echo x > /etc/hosts");
    spec.hosts = vec![("registry.test".to_owned(), "192.0.2.7".to_owned())];
    let (exit, out, err) = hear(&spec);
    assert_ne!(exit.code, 0);
    assert!(err.contains("Read-only file system"), "{err}");
    assert!(
        out.starts_with("nameserver 192.0.2.1\n127.0.0.1\tlocalhost buildkitsandbox\n"),
        "{out}"
    );
    assert!(out.ends_with("192.0.2.7\tregistry.test\n"), "{out}");
    assert_eq!(fs::read(&canary).unwrap(), b"canary");
    // The link's text leads to /tmp of the image, which was copied up for the mount point.
    assert_eq!(tree(&place.upper()), ["tmp"]);
}

#[test]
fn s07_etc_itself_may_be_a_link() {
    let place = Place::new();
    fs::remove_dir(place.lower().join("etc")).unwrap();
    symlink("/../../elsewhere", place.lower().join("etc")).unwrap();
    assert!(says(&place.shell("cat /etc/hosts")).starts_with("127.0.0.1"));
    assert_eq!(tree(&place.upper()), Vec::<String>::new());
}

#[test]
fn s18_capabilities_are_docker_s() {
    let place = Place::new();
    let mut spec = place.shell("grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status");
    assert_eq!(
        says(&spec),
        "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
         CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n"
    );
    spec.uid = 1000;
    assert_eq!(
        says(&spec),
        "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
         CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n"
    );
    spec.insecure = true;
    spec.uid = 0;
    assert!(says(&spec).contains("Seccomp:\t0"));
}

#[test]
fn s15_user_and_groups_are_the_ones_given() {
    let place = Place::new();
    let mut spec = place.shell("id -u; id -g; id -G");
    (spec.uid, spec.gid, spec.groups) = (1000, 1001, vec![7, 8]);
    assert_eq!(says(&spec), "1000\n1001\n1001 7 8\n");
    spec.groups.clear();
    assert_eq!(says(&spec), "1000\n1001\n1001\n");
}

#[test]
fn s16_no_number_means_root_by_accident() {
    let place = Place::new();
    let mut spec = place.shell("id -u");
    spec.uid = u32::MAX;
    assert!(fails(&spec).to_string().contains("4294967295"));
    (spec.uid, spec.gid) = (0, u32::MAX);
    assert!(fails(&spec).to_string().contains("4294967295"));
    (spec.uid, spec.gid) = (u32::MAX - 1, 0);
    assert_eq!(says(&spec), "4294967294\n");
}

#[test]
fn s20_there_is_no_controlling_terminal() {
    let place = Place::new();
    let (exit, _, err) = hear(&place.shell("echo x > /dev/tty"));
    assert_ne!(exit.code, 0);
    assert!(err.contains("No such device or address"), "{err}");
}

#[test]
fn s21_the_kernel_s_switches_are_masked_or_read_only() {
    let place = Place::new();
    let switches = ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/irq/x"];
    let folders = ["/proc/fs/x", "/proc/bus/x", "/sys/x", "/sys/fs/cgroup/x"];
    for path in switches.iter().chain(&folders) {
        if !Path::new(path).exists() && !Path::new(path).parent().unwrap().exists() {
            continue; // Not in this kernel.
        }
        let said = says(&place.shell(&format!("(echo x > {path}) 2>&1; true")));
        let refused = said.contains("Read-only file system") || said.contains("nonexistent");
        assert!(refused, "{path}: {said}");
    }
    assert!(
        says(&place.shell("(echo x > /proc/sys/kernel/hostname) 2>&1; true")).contains("Read-only")
    );
    let said = says(&place.shell(
        "for f in acpi asound interrupts kcore keys latency_stats timer_list sched_debug scsi; do \
         [ -d /proc/$f ] && ls /proc/$f; [ -f /proc/$f ] && cat /proc/$f; [ -c /proc/$f ] && cat /proc/$f; done; \
         ls /sys/firmware; true",
    ));
    assert_eq!(said, "");
    assert_eq!(says(&place.shell("ls -l /proc/interrupts | grep -c '^crw.*1,   3'")), "1\n");
}

#[test]
fn s22_s24_mounting_and_namespaces_are_refused() {
    let place = Place::new();
    let said = says(&place.shell(
        "busybox mount -t tmpfs none /tmp 2>&1; busybox mount -t cgroup none /tmp 2>&1; \
         busybox umount /proc 2>&1; busybox unshare -U true 2>&1; busybox unshare -m true 2>&1; true",
    ));
    let denied = said.matches("ermitted").count() + said.matches("ermission denied").count();
    assert_eq!(denied, 5, "{said}");
}

#[test]
fn s25_what_is_left_running_ends_with_the_process() {
    let place = Place::new();
    let begun = Instant::now();
    let (exit, out, _) =
        hear(&place.shell("(busybox setsid sleep 1000 &) ; sleep 1000 & echo started; exit 7"));
    assert!(begun.elapsed() < SOON);
    assert_eq!((exit.code, out.as_str()), (7, "started\n"));
}

#[test]
fn s28_network_none_has_loopback_alone() {
    let place = Place::new();
    let said = says(&place.shell("ls /sys/class/net; ip -o link | grep -c UP"));
    assert_eq!(said, "lo\n1\n");
    let mut spec = place.shell("ls -l /proc/self/ns/net");
    spec.network = NetworkMode::Host;
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    assert!(says(&spec).contains(host.to_str().unwrap()));
}

#[test]
fn s34_arguments_too_long_are_explained() {
    let place = Place::new();
    let error = fails(&place.spec(&["/bin/sh", &"x".repeat(2 << 20)])).to_string();
    assert!(error.contains("argument list too long"), "{error}");
}

#[test]
fn s13_mount_points_that_the_process_turned_into_links_are_left_alone() {
    let place = Place::new();
    let canary = place.path("canary");
    fs::create_dir_all(canary.join("b")).unwrap();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    let script = format!("busybox mv /a /moved && busybox ln -s {} /a", canary.display());
    let mut spec = place.shell(&script);
    let bind = Bind { source, target: "/a/b".to_owned(), inside: None, read_only: true };
    spec.mounts.push(Mount::Bind(bind));
    let (exit, _, err) = hear(&spec);
    assert_eq!(exit.code, 0, "{err}");
    assert_eq!(tree(&canary), ["b"]);
    assert!(place.upper().join("a").is_symlink());
}

#[test]
fn s33_the_process_cannot_reach_its_keepers() {
    let place = Place::new();
    let (exit, out, _) =
        hear(&place.shell(
            "kill -9 1; kill -9 -1; echo alive; (echo x > /proc/1/mem) 2>&1 | grep -c denied",
        ));
    assert_eq!((exit.code, out.as_str()), (0, "alive\n1\n"));
}
