//! Laws of the sandbox, tried on a small root file system of busybox. They need root and say so by
//! failing.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use tempfile::TempDir;

mod attacks;
mod forked;

use super::*;

/// Far below the sleeps of the processes, far above what a busy machine takes.
const SOON: Duration = Duration::from_secs(200);

const BUSYBOX: &str = "/bin/busybox";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A place with one layer below, an upper and a work directory.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["lower/bin", "lower/etc", "lower/tmp", "lower/root", "upper", "work"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let busybox = folder.path().join("lower/bin/busybox");
        // By another process: what this one writes, those that other tests fork just now have open too (ETXTBSY).
        let copied = std::process::Command::new("cp").arg(BUSYBOX).arg(&busybox).status();
        assert!(copied.unwrap().success(), "busybox-static is needed for this test");
        fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).unwrap();
        for applet in ["sh", "cat", "ls", "id", "env", "grep", "sleep", "mount", "mknod", "ip"] {
            symlink("busybox", folder.path().join("lower/bin").join(applet)).unwrap();
        }
        fs::set_permissions(folder.path().join("lower/tmp"), fs::Permissions::from_mode(0o1777))
            .unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn lower(&self) -> PathBuf {
        self.path("lower")
    }

    fn upper(&self) -> PathBuf {
        self.path("upper")
    }

    fn spec(&self, argv: &[&str]) -> ProcessSpec {
        ProcessSpec {
            rootfs: RootFs {
                kind: RootKind::Overlay,
                lowers: vec![self.lower()],
                upper: self.upper(),
                work: self.path("work"),
            },
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: vec![PATH.to_owned()],
            cwd: "/".to_owned(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            hostname: "buildkitsandbox".to_owned(),
            network: NetworkMode::None,
            mounts: Vec::new(),
            hosts: Vec::new(),
            resolv_conf: b"nameserver 192.0.2.1\n".to_vec(),
            isolation: Isolation::Full,
            privileges: Privileges::MayGrow,
            users: UserIds::Host,
            insecure: false,
            limits: Limits::default(),
            emulator: None,
        }
    }

    fn shell(&self, script: &str) -> ProcessSpec {
        self.spec(&["/bin/sh", "-c", script])
    }
}

fn flag() -> CancelFlag {
    Arc::new(AtomicBool::new(false))
}

/// Runs to the end; exit, standard output and standard error.
fn hear(spec: &ProcessSpec) -> (Exit, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = run(
        spec,
        &mut |stream, bytes| match stream {
            Stream::Stdout => out.extend_from_slice(bytes),
            Stream::Stderr => err.extend_from_slice(bytes),
        },
        &flag(),
    );
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(out), text(err));
    (exit.unwrap_or_else(|error| panic!("{error}: {error:?} {err}")), out, err)
}

/// Standard output of a script that succeeds.
fn says(spec: &ProcessSpec) -> String {
    let (exit, out, err) = hear(spec);
    assert_eq!(exit.code, 0, "{out}{err}");
    out
}

fn fails(spec: &ProcessSpec) -> SandboxError {
    run(spec, &mut |_, _| {}, &flag()).unwrap_err()
}

/// Everything in a directory, as sorted relative paths.
fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            found.push(entry.path().strip_prefix(root).unwrap().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn exit_codes_and_signals_are_the_process_s_own() {
    let place = Place::new();
    for (script, code, signal) in [
        ("exit 0", 0, None),
        ("exit 3", 3, None),
        ("exit 255", 255, None),
        ("kill -9 $$", 137, Some(9)),
        ("kill -15 $$", 143, Some(15)),
        ("kill -13 $$", 141, Some(13)),
    ] {
        let (exit, _, _) = hear(&place.shell(script));
        assert_eq!((exit.code, exit.signal), (code, signal), "{script}");
    }
}

#[test]
fn output_comes_in_order_and_whole() {
    let place = Place::new();
    let (_, out, err) =
        hear(&place.shell(
            "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo problem >&2",
        ));
    let expected: String = (0..20000).map(|i| format!("line {i}\n")).collect();
    assert_eq!(out, expected);
    assert_eq!(err, "problem\n");
}

#[test]
fn the_environment_is_exactly_the_one_given() {
    let place = Place::new();
    let mut spec = place.spec(&["env"]);
    spec.env = vec![PATH.to_owned(), "A=b c".to_owned(), "EMPTY=".to_owned()];
    assert_eq!(says(&spec), format!("{PATH}\nA=b c\nEMPTY=\n"));
    // S27: an entry without `=` is refused, it never takes a value from outside.
    spec.env.push("CANARY_TOKEN".to_owned());
    assert!(fails(&spec).to_string().contains("CANARY_TOKEN"));
}

#[test]
fn a_missing_working_directory_is_made_and_stays() {
    let place = Place::new();
    let mut spec = place.shell("pwd; echo hello > file");
    spec.cwd = "/made/for/this".to_owned();
    assert_eq!(says(&spec), "/made/for/this\n");
    let made = fs::metadata(place.upper().join("made/for")).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o755, 0, 0));
    assert_eq!(tree(&place.upper()), ["made", "made/for", "made/for/this", "made/for/this/file"]);
}

#[test]
fn devices_work_and_others_cannot_be_opened() {
    let place = Place::new();
    let said = says(&place.shell(
        "echo x > /dev/null; read -r -n 4 a < /dev/urandom; echo ok > /dev/stdout; \
         mknod /tmp/mem c 1 1 && cat /tmp/mem 2>&1; mknod /dev/disk b 254 0 && cat /dev/disk 2>&1; true",
    ));
    assert!(said.starts_with("ok\n"), "{said}");
    // S23: made, as in a container, but dead.
    assert_eq!(said.matches("Permission denied").count(), 2, "{said}");
}

#[test]
fn nothing_appears_in_the_upper_that_the_process_did_not_make() {
    let place = Place::new();
    assert_eq!(says(&place.shell("cat /etc/resolv.conf")), "nameserver 192.0.2.1\n");
    assert_eq!(tree(&place.upper()), Vec::<String>::new());
    assert_eq!(tree(&place.path("work")), Vec::<String>::new());
    let mut left: Vec<_> =
        fs::read_dir(place.folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    left.sort();
    assert_eq!(left, ["lower", "upper", "work"]);
}

#[test]
fn on_nothing_the_system_s_mount_points_stay_in_the_layer() {
    let place = Place::new();
    let mut spec = place.spec(&["/bb/busybox", "echo", "hello"]);
    spec.rootfs.lowers.clear();
    spec.mounts.push(Mount::Bind(Bind {
        source: place.lower().join("bin"),
        target: "/bb".to_owned(),
        inside: None,
        read_only: true,
    }));
    assert_eq!(says(&spec), "hello\n");
    assert_eq!(tree(&place.upper()), ["dev", "proc", "sys"]);
}

#[test]
fn no_mount_of_the_host_is_visible() {
    let place = Place::new();
    let said = says(&place.shell("cat /proc/self/mountinfo"));
    let points: Vec<_> = said.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    let inside = ["/", "/proc", "/sys", "/dev", "/etc/hosts", "/etc/resolv.conf"];
    for point in points {
        let known = inside.contains(&point)
            || ["/proc/", "/sys/", "/dev/"].iter().any(|above| point.starts_with(above));
        assert!(known, "{point}");
    }
    assert_eq!(says(&place.shell("ls /")), "bin\ndev\netc\nproc\nroot\nsys\ntmp\n");
}

#[test]
fn cancelling_kills_everything_soon() {
    let place = Place::new();
    let cancel = flag();
    let begun = Instant::now();
    let result = run(
        &place.shell("sleep 1000 & echo ready; sleep 1000"),
        &mut |_, _| cancel.store(true, std::sync::atomic::Ordering::Relaxed),
        &cancel,
    );
    assert!(matches!(result, Err(SandboxError::Cancelled)), "{result:?}");
    assert!(begun.elapsed() < SOON);
}

#[test]
fn what_cannot_be_executed_is_said_as_a_shell_says_it() {
    let place = Place::new();
    let lower = place.lower();
    fs::write(lower.join("bin/plain"), b"not executable").unwrap();
    fs::write(lower.join("bin/garbage"), b"\x01\x02garbage").unwrap();
    fs::set_permissions(lower.join("bin/garbage"), fs::Permissions::from_mode(0o755)).unwrap();
    for (program, reason) in [
        ("nowhere", "executable file not found in $PATH"),
        ("plain", "executable file not found in $PATH"),
        ("/bin/nowhere", "no such file or directory"),
        ("/bin/plain", "permission denied"),
        ("/bin", "permission denied"),
        ("/bin/sh/x", "not a directory"),
        ("/bin/garbage", "exec format error"),
        ("garbage", "exec format error"),
    ] {
        let error = fails(&place.spec(&[program])).to_string();
        assert_eq!(error, format!("exec: \"{program}\": {reason}"));
    }
}

#[test]
fn binds_and_tmpfs_are_there_for_the_process_and_gone_afterwards() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), b"content\n").unwrap();
    let before = fs::metadata(place.lower().join("root")).unwrap().modified().unwrap();
    let mut spec = place.shell(
        "cat /root/a/b/file /one /run/secrets/key /root/.netrc; ls -ln /run/secrets/key; \
         (echo x > /root/a/b/new) 2>&1; echo x > /rw/new; echo y > /scratch/y",
    );
    let bind = |source: PathBuf, target: &str, read_only| {
        Mount::Bind(Bind { source, target: target.to_owned(), inside: None, read_only })
    };
    let tmpfs = |target: &str, files: &[(&str, &str, u32)]| {
        let files = files
            .iter()
            .map(|(name, text, mode)| ((*name).to_owned(), text.as_bytes().to_vec(), *mode, 5, 6));
        let files = files.collect();
        Mount::Tmpfs(Tmpfs { target: target.to_owned(), size: Some(1 << 20), files })
    };
    spec.mounts = vec![
        bind(source.clone(), "/root/a/b", true),
        bind(source.join("file"), "/one", true),
        bind(source.clone(), "/rw", false),
        tmpfs("/scratch", &[]),
        tmpfs("/run/secrets", &[("key", "secret\n", 0o400)]),
        tmpfs("/root/.netrc", &[("", "single\n", 0o440)]),
    ];
    let said = says(&spec);
    assert!(
        said.starts_with("content\ncontent\nsecret\nsingle\n-r--------    1 5        6"),
        "{said}"
    );
    assert!(said.contains("Read-only file system"), "{said}");
    assert_eq!(fs::read(source.join("new")).unwrap(), b"x\n");
    // The directory that held a mount point was copied up, and looks as before.
    assert_eq!(tree(&place.upper()), ["root"]);
    assert_eq!(fs::metadata(place.upper().join("root")).unwrap().modified().unwrap(), before);
}

#[test]
fn a_program_that_is_still_being_written_is_waited_for_a_moment() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::copy(place.lower().join("bin/busybox"), source.join("busybox")).unwrap();
    // As a process has it that another thread is just starting.
    let written = fs::File::options().append(true).open(source.join("busybox")).unwrap();
    let mut spec = place.spec(&["/tools/busybox", "echo", "hello"]);
    let target = "/tools".to_owned();
    spec.mounts = vec![Mount::Bind(Bind { source, target, inside: None, read_only: true })];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let until = Instant::now() + Duration::from_millis(100);
            while Instant::now() < until {
                std::thread::yield_now();
            }
            drop(written);
        });
        assert_eq!(says(&spec), "hello\n");
    });
}

#[test]
fn mounts_stand_in_the_order_asked_for() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content\n").unwrap();
    let tmpfs = Tmpfs { target: "/m".to_owned(), size: None, files: Vec::new() };
    let bind = Bind { source, target: "/m/d".to_owned(), inside: None, read_only: true };
    let mut spec = place.shell("cat /m/d/file");
    spec.mounts = vec![Mount::Tmpfs(tmpfs.clone()), Mount::Bind(bind.clone())];
    assert_eq!(says(&spec), "content\n");
    let mut spec = place.shell("ls /m");
    spec.mounts = vec![Mount::Bind(bind), Mount::Tmpfs(tmpfs)];
    assert_eq!(says(&spec), "");
}

#[test]
fn usage_is_told() {
    let place = Place::new();
    let (exit, _, _) = hear(&place.shell("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"));
    assert!(exit.cpu > Duration::from_millis(1));
    assert!(exit.memory_peak > 100_000);
}

#[test]
fn root_can_run_and_the_probe_finds_out_by_doing() {
    let folder = tempfile::tempdir().unwrap();
    let found = probe(folder.path(), &Wanted::default());
    assert_eq!((found.privilege, &found.run), (Privilege::Root, &Ok(())));
    assert_eq!((found.snapshotter, found.isolation), (Snapshotter::Overlay, Isolation::Full));
    assert_eq!(tree(folder.path()), Vec::<String>::new());
    assert_eq!(enter(None), Privilege::Root);
}

/// As where a machine was switched off in the middle of a probe, and is started again just as before.
#[test]
fn a_probe_finds_a_folder_of_its_own_where_its_name_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let name = cgroup::own_name();
    let (process, number) = name.rsplit_once('-').unwrap();
    let next: u64 = number.parse::<u64>().unwrap() + 1;
    for taken in next..next + 50 {
        fs::create_dir(folder.path().join(format!(".{process}-{taken}"))).unwrap();
    }
    let found = probe(folder.path(), &Wanted::default());
    assert_eq!((found.snapshotter, found.run), (Snapshotter::Overlay, Ok(())));
    assert_eq!(tree(folder.path()).len(), 50);
}

#[test]
fn what_worked_is_remembered_for_the_same_circumstances_and_tried_again_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("sandbox-works");
    let tried = ability(folder.path(), &Wanted::default());
    assert_eq!(tried, probe(folder.path(), &Wanted::default()));
    let written = std::fs::read_to_string(&mark).unwrap();
    assert_eq!(ability(folder.path(), &Wanted::default()), tried);
    std::fs::write(&mark, "another boot").unwrap();
    assert_eq!(ability(folder.path(), &Wanted::default()), tried);
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), written);
    // Another way than the best is remembered as what it is.
    std::fs::write(&mark, written.replace("\noverlay\n", "\noverlay-mount\n")).unwrap();
    let remembered = ability(folder.path(), &Wanted::default());
    assert_eq!((remembered.snapshotter, remembered.run), (Snapshotter::OverlayMount, Ok(())));
}

#[test]
fn the_probe_names_what_is_in_the_way() {
    let found = probe(Path::new("/proc"), &Wanted::default());
    let obstacle = found.run.unwrap_err();
    assert!(obstacle.reason.contains("/proc"), "{obstacle:?}");
}
