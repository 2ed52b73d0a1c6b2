//! Groups on folders that imitate the kernel's, and what is read from real ones.

use super::*;

const V1_GROUPS: &str = "8:pids:/\n4:memory:/process_api/x\n2:cpu,cpuacct:/docker/abc\n0::/\n";
const V1_MOUNTS: &str = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
    31 30 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
    32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
    33 30 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
    34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

#[test]
fn hierarchies_are_found_at_their_mounts_and_in_our_own_group() {
    let found = Hierarchies::parse(V1_MOUNTS, V1_GROUPS);
    let place = |controller| {
        let hierarchy = found.v1_of(controller).unwrap();
        hierarchy.mount.join(&hierarchy.own).display().to_string()
    };
    assert_eq!(place(Controller::Pids), "/sys/fs/cgroup/pids/");
    assert_eq!(place(Controller::Memory), "/sys/fs/cgroup/memory/process_api/x");
    // In a container only its own part is mounted.
    assert_eq!(place(Controller::Cpu), "/sys/fs/cgroup/cpu,cpuacct/");
    let mounts = "35 24 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    let found = Hierarchies::parse(mounts, "0::/user.slice/user-1000.slice/run-1.scope\n");
    let v2 = found.v2.unwrap();
    let own = "/sys/fs/cgroup/user.slice/user-1000.slice/run-1.scope";
    assert_eq!(v2.parents(), [PathBuf::from("/sys/fs/cgroup"), PathBuf::from(own)]);
    assert_eq!(Hierarchies::parse("", ""), Hierarchies::default());
}

/// A folder that looks like a delegated group of version 2.
fn unified(controllers: &str) -> (tempfile::TempDir, Hierarchies) {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("cgroup.controllers", "cpu memory pids\n"),
        ("cgroup.subtree_control", controllers),
        ("cgroup.procs", "1\n"),
        ("cgroup.type", "domain\n"),
    ] {
        fs::write(folder.path().join(file), text).unwrap();
    }
    let mount = folder.path().to_owned();
    let v2 = Hierarchy { controllers: vec![String::new()], mount, own: PathBuf::new() };
    (folder, Hierarchies { v1: Vec::new(), v2: Some(v2) })
}

#[test]
fn a_delegated_group_enforces_what_it_has_and_one_with_strangers_in_it_nothing() {
    for (controllers, usable) in [("cpu memory pids", Controller::ALL.to_vec()), ("", Vec::new())] {
        let (_folder, found) = unified(controllers);
        let told: Vec<_> = found.usable().into_iter().map(|(one, _)| one).collect();
        assert_eq!(told, usable, "{controllers:?}");
    }
    let (folder, found) = unified("");
    fs::write(folder.path().join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
    assert_eq!(found.usable().len(), 3, "alone in it, we can make room");
}

#[test]
fn each_limit_is_written_as_its_version_wants_it() {
    let mut limits = Limits::default();
    for (name, text) in
        [("memory", "64m"), ("memory-swap", "96m"), ("cpus", "1.5"), ("cpu-shares", "1024")]
    {
        limits.set(name, text).unwrap();
    }
    let written = |version| -> Vec<String> {
        let all = Controller::ALL.into_iter().flat_map(|one| settings(one, version, &limits));
        all.map(|(file, value, _)| format!("{file}={value}")).collect()
    };
    assert_eq!(
        written(1),
        [
            "memory.limit_in_bytes=67108864",
            "memory.memsw.limit_in_bytes=100663296",
            "pids.max=4096",
            "cpu.shares=1024",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=150000",
        ]
    );
    assert_eq!(
        written(2),
        [
            "memory.max=67108864",
            "memory.swap.max=33554432",
            "pids.max=4096",
            "cpu.weight=39",
            "cpu.max=150000 100000",
        ]
    );
    limits.pids = None;
    assert_eq!(settings(Controller::Pids, 1, &limits).len(), 0);
}

#[test]
fn groups_of_programs_that_are_gone_are_left_overs() {
    let (namespace, us) = (pid_namespace(), std::process::id());
    let begun = started(us).unwrap().unwrap();
    for (name, left) in [
        (format!("idpbuilder-{namespace}-{us}-{begun}-0"), false),
        (format!("idpbuilder-{namespace}-{us}-{}-0", begun + 1), true),
        (format!("idpbuilder-{namespace}-{us}-{UNKNOWN}-0"), false),
        (format!("idpbuilder-{namespace}-4194304-{UNKNOWN}-0"), true),
        (format!("idpbuilder-{namespace}-4194304-1-0"), true),
        ("idpbuilder-1-4194304-1-0".to_owned(), false),
        (format!("idpbuilder-{namespace}-4194304-1-seat"), true),
        (name("seat"), false),
        ("idpbuilder-x".to_owned(), false),
        ("docker".to_owned(), false),
    ] {
        assert_eq!(is_left_over(&name), left, "{name}");
    }
}

#[test]
fn what_was_left_in_our_group_or_beside_it_is_swept_and_nothing_else() {
    let mount = tempfile::tempdir().unwrap();
    let (left, ours) = (
        format!("idpbuilder-{}-4194304-1-0", pid_namespace()),
        format!(
            "idpbuilder-{}-{}-{}-0",
            pid_namespace(),
            std::process::id(),
            started(std::process::id()).unwrap().unwrap()
        ),
    );
    for group in ["jobs/one", "jobs/two", "jobs/two/deep", "others"] {
        for name in [&left, &ours] {
            fs::create_dir_all(mount.path().join(group).join(name)).unwrap();
        }
    }
    let own = PathBuf::from("jobs/one");
    let hierarchy =
        Hierarchy { controllers: vec!["memory".to_owned()], mount: mount.path().into(), own };
    Hierarchies { v1: vec![hierarchy], v2: None }.sweep();
    for (group, kept) in
        [("jobs/one", false), ("jobs/two", false), ("jobs/two/deep", true), ("others", true)]
    {
        let group = mount.path().join(group);
        assert_eq!(group.join(&left).exists(), kept, "{group:?}");
        assert!(group.join(&ours).exists(), "{group:?}");
    }
}

#[test]
fn what_happened_is_read_from_the_events() {
    let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
    assert_eq!(value_of(text, "oom_kill"), Some(3));
    assert_eq!(value_of("max 12\n", "max"), Some(12));
    assert_eq!(value_of("", "max"), None);
}
