//! Limits on memory, processors and processes: in force, told when they are met, told when they cannot be had.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::support::{Done, User, base_contexts};

/// A process that starts others until it may not, and never gives up.
const BOMB: &str = "perl -e 'fork while 1'";

/// The group of this process in a hierarchy of version 1.
fn own_group(controller: &str) -> PathBuf {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let line = groups.lines().find(|line| line.split(':').nth(1) == Some(controller));
    let path = line.unwrap_or_else(|| panic!("{controller} of version 1 is needed: {groups}"));
    let path = path.splitn(3, ':').nth(2).unwrap().trim_start_matches('/');
    Path::new("/sys/fs/cgroup").join(controller).join(path)
}

/// Groups of the tool that exist.
fn groups() -> Vec<PathBuf> {
    let all = ["memory", "pids", "cpu"].map(own_group);
    let entries = all.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("idpb")).collect()
}

/// Groups of a process: `idpbuilder-NAMESPACE-PROCESS-BEGUN-NUMBER`. Soon after a start, when another one began may be the
/// same number.
fn groups_of(pid: u32) -> Vec<PathBuf> {
    let is_its = |path: &PathBuf| {
        path.to_string_lossy().rsplit('-').nth(2) == Some(pid.to_string().as_str())
    };
    groups().into_iter().filter(is_its).collect()
}

#[test]
fn limits_hold_inside_and_their_groups_are_gone_afterwards() {
    let user = User::new();
    user.write(
        "Dockerfile",
        "FROM busybox\n\
         RUN cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max \
             /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares && \
             ulimit -n && ulimit -Hn && df -k /dev/shm | tail -n 1 && \
             cut -d: -f2- /proc/self/cgroup | grep -E '^(memory|pids|cpu):' | sort && \
             ! mkdir /sys/fs/cgroup/pids/x && ! (echo 9 > /sys/fs/cgroup/pids/pids.max)\n",
    );
    let mut command = user.idp();
    command.args(["build", "--progress", "plain", "--memory", "64m", "--pids-limit", "77"]);
    command.args(["--cpus", "0.5", "--cpu-shares", "512", "--ulimit", "nofile=100:200"]);
    command.args(["--shm-size", "1m"]).args(base_contexts()).arg(".");
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    let words = ["| 67108864", "| 77", "| 50000", "| 512", "| 100", "| 200", " 1024 "];
    for word in words.into_iter().chain(["| cpu:/", "| memory:/", "| pids:/"]) {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("not enforced"), "{said}");
    assert_eq!(groups_of(pid), Vec::<PathBuf>::new());
}

#[test]
fn groups_that_a_step_with_all_rights_makes_are_gone_with_its_own() {
    let user = User::new();
    let nest = "FROM busybox\nRUN --security=insecure cd /sys/fs/cgroup/pids && mkdir -p a/b c && (sleep 1000 & echo $! > a/b/cgroup.procs)\n";
    user.write("Dockerfile", nest);
    let mut command = user.idp();
    command.args(["build", "--no-cache", "--allow", "security.insecure"]).args(base_contexts());
    let child = command.arg(".").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(groups_of(pid), Vec::<PathBuf>::new());
}

#[test]
fn f11_memory_that_runs_out_is_said_with_its_limit() {
    let user = User::new();
    let eat = "FROM busybox\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1\n";
    let flags = ["--memory", "32m", "--memory-swap", "32m"];
    user.build(eat, &flags).fails(1, &["137", "out of memory (limit 32.0 MiB)", "--memory"]);
    // A step that goes on without what was killed is told about, and done.
    let done = user.build(&eat.replace("count=1", "count=1 || true"), &flags);
    assert!(done.err.contains("out of memory (limit 32.0 MiB)"), "{done}");
    done.ok();
    user.build(eat, &["--memory", "512m"]).ok();
}

#[test]
fn f12_a_fork_bomb_ends_in_a_clear_message() {
    let user = User::new();
    let bomb = format!("FROM debian:bookworm\nRUN {BOMB}\n");
    let flags = ["--pids-limit", "100", "--no-cache"];
    user.build(&bomb, &flags)
        .fails(1, &["137", "it kept starting processes beyond the limit of 100", "--pids-limit"]);
    // One that gives up by itself has its own exit code.
    let modest = "FROM busybox\nRUN while true; do sleep 1000 & done\n";
    user.build(modest, &flags).fails(1, &["limit of 100 processes", "exit code 2"]);
}

#[test]
fn f12_many_more_zombies_than_there_may_be_processes_are_reaped() {
    let user = User::new();
    let zombies = "FROM debian:bookworm\n\
        RUN perl -e 'for (1..20_000) { my $p = fork // die \"$!\"; if (!$p) { fork or exit; exit } waitpid $p, 0 }'\n";
    user.build(zombies, &[]).ok();
}

#[test]
fn an_ordinary_user_has_limits_as_far_as_they_go_and_is_told_of_the_others() {
    let user = User::rootless();
    let count = "FROM debian:bookworm\n\
        RUN perl -e 'my $n = 0; while (defined(my $p = fork)) { if (!$p) { sleep 1000; exit } $n++ } print \"started $n\\n\"'\n";
    let done = user.build(count, &["--pids-limit", "60", "--progress", "plain"]);
    assert!(!done.err.contains("note: limits"), "{done}");
    let started = done.err.lines().find_map(|line| line.split("| started ").nth(1)).unwrap();
    let started: u32 = started.trim().parse().unwrap();
    assert!((10..60).contains(&started), "{started}");
    let flags = ["--memory", "64m", "--pids-limit", "60"];
    // Where nothing has to run, nothing is to be limited.
    assert!(!user.build(count, &flags).err.contains("note: "));
    let done = user.build(count, &[&flags[..], &["--no-cache"]].concat());
    let note = "note: limits on memory are not enforced here";
    assert!(done.err.contains(note) && done.err.contains("systemd-run --user"), "{done}");
    done.ok();
}

#[test]
fn f10_groups_of_a_killed_tool_are_gone_with_the_next_start() {
    let user = User::new();
    let folder = own_group("pids");
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap().display().to_string();
    let number: String = namespace.chars().filter(char::is_ascii_digit).collect();
    // No process has the number of the tool; that of the tests keeps two runs of them apart.
    let gone = format!("4194304-1-{}", std::process::id());
    let left = folder.join(format!("idpbuilder-{number}-{gone}"));
    fs::create_dir(&left).unwrap();
    let foreign = folder.join(format!("idpbuilder-1{number}-{gone}"));
    fs::create_dir(&foreign).unwrap();
    user.run(["doctor"]).ok();
    let kept = (left.exists(), foreign.exists());
    fs::remove_dir(&foreign).unwrap();
    assert_eq!(kept, (false, true));
}

#[test]
fn a_project_sets_limits_for_all_images_and_for_one() {
    let user = User::new();
    user.write(
        "idpbuilder.kdl",
        "/- kdl-version 2\n\
         defaults { limits pids=66 shm-size=\"2m\" }\n\
         image a {\n    dockerfile inline=\"FROM busybox\\nRUN cat /sys/fs/cgroup/pids/pids.max && df -k /dev/shm\"\n\
         build-context busybox=\"BUSYBOX\"\n    limits pids=55 ulimits=\"nofile=90 core=0\"\n    push #null\n}\n"
            .replace("BUSYBOX", base_contexts()[1].split_once('=').unwrap().1)
            .as_str(),
    );
    let done = user.run(["run", "--progress", "plain"]);
    assert!(done.err.contains("| 55\n") && done.err.contains(" 2048 "), "{done}");
    done.ok();
    user.write("idpbuilder.kdl", "image a {\n    limits memory=\"lots\"\n}\n");
    user.run(["plan"]).fails(3, &["`lots` is no size", "idpbuilder.kdl:2"]);
}

#[test]
fn limits_that_make_no_sense_are_mistakes_in_the_command_line() {
    let user = User::new();
    for (flags, word) in [
        (["--memory", "1m"], "--memory: `1m` is less"),
        (["--memory-swap", "1g"], "give memory too"),
        (["--cpus", "none"], "--cpus: `none`"),
        (["--pids-limit", "-7"], "--pids-limit"),
        (["--ulimit", "colour=1"], "--ulimit: `colour`"),
        (["--cgroup-parent", "../../x"], "--cgroup-parent"),
    ] {
        user.build("FROM scratch\n", &flags).fails(3, &[word]);
    }
    // A limit that cannot be set ends the build, it is not forgotten.
    user.build("FROM busybox\nRUN true\n", &["--ulimit", "nofile=1000:999999999"])
        .fails(1, &["set the limit nofile"]);
}

#[test]
fn a_parent_group_holds_the_groups_of_the_steps() {
    let user = User::new();
    let parent = format!("idpbuilder-test-{}", std::process::id());
    user.write("Dockerfile", "FROM busybox\nRUN cat /proc/self/cgroup\n");
    let mut command = user.idp();
    command.args(["build", "--progress", "plain", "--cgroup-parent", &parent]);
    let done = Done::of(command.args(base_contexts()).arg("."));
    let made = Path::new("/sys/fs/cgroup/pids").join(&parent);
    let left =
        fs::read_dir(&made).map(|entries| entries.flatten().filter(|e| e.path().is_dir()).count());
    fs::remove_dir(&made).unwrap();
    assert_eq!(left.unwrap(), 0, "{done}");
    done.ok();
}
