//! F18 to F20: clocks that jump, surroundings that lack something, file systems that lack something else.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use crate::support::{Done, User, base_contexts};

const DOCKERFILE: &str = "FROM busybox\nCOPY file /file\nRUN cat /file > /copy && echo more >> /copy\nCOPY file /again\n";

fn wanted(content: &str) -> String {
    let user = User::new();
    user.write("context/file", content);
    user.write("Dockerfile", DOCKERFILE);
    let mut command = user.idp();
    command.args(["build", "-q", "-f", "Dockerfile"]).args(base_contexts()).arg("context");
    Done::of(&mut command).ok()
}

/// Runs a script of bash in a mount namespace of its own; `$build` builds [`DOCKERFILE`] and prints the image's id.
fn scripted(user: &User, script: &str) -> Done {
    user.write("Dockerfile", DOCKERFILE);
    let build = format!("idpbuilder build -q -f Dockerfile {} context", base_contexts().join(" "));
    let mut inside = user.command("unshare");
    inside.args(["--mount", "bash", "-euo", "pipefail", "-c", script]).env("build", build);
    Done::of(&mut inside)
}

/// By a clock that is years off, files from the future and files that changed within no time at all, what is built is
/// what is there.
#[test]
fn f18_no_clock_makes_the_cache_lie() {
    let user = User::new();
    let (one, two) = (wanted("one\n"), wanted("two\n"));
    let put = |content: &str, seconds: u64| {
        user.write("context/file", content);
        let file = fs::File::options().write(true).open(user.work().join("context/file")).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    };
    // Far in the future, and the same again with another content of the same length: the time of change tells.
    for (clock, mtime) in [
        ("", 1_600_000_000),
        ("faketime -f +10y", 1_600_000_000),
        ("faketime -f -10y", 1_600_000_000),
        ("faketime -f -10y", 4_000_000_000),
        ("", 4_000_000_000),
        ("faketime -f +10y", 1),
        ("faketime -f @1980-01-01 00:00:00".rsplit_once(' ').unwrap().0, 1_600_000_000),
    ] {
        for (content, wanted) in [("one\n", &one), ("two\n", &two), ("one\n", &one)] {
            put(content, mtime);
            let done = scripted(&user, &format!("{clock} $build"));
            assert_eq!(done.ok(), *wanted, "{clock} {mtime}: {content}");
        }
    }
    // Locks, leases and collections count no years.
    for clock in ["+10y", "-10y", "+0"] {
        let script = format!(
            "faketime -f {clock} idpbuilder prune; faketime -f {clock} idpbuilder df; $build"
        );
        let done = scripted(&user, &script);
        let text = done.ok();
        assert!(text.ends_with(&one), "{clock}: {text}");
    }
}

/// What the surroundings lack is either not needed or named.
#[test]
fn f19_odd_surroundings_are_no_matter_or_are_named() {
    let user = User::new();
    user.write("context/file", "one\n");
    fs::create_dir(user.folder().join("noexec")).unwrap();
    let wanted = wanted("one\n");
    for (what, script) in [
        ("TMPDIR that is not there", "TMPDIR=/nowhere/at/all $build"),
        (
            "TMPDIR that is full",
            "mount -t tmpfs -o size=4k,nr_inodes=2 none ../noexec; touch ../noexec/x; TMPDIR=$PWD/../noexec $build",
        ),
        (
            "TMPDIR and /tmp without exec",
            "cp -r . /var/tmp/idpb-$$; trap 'rm -rf /var/tmp/idpb-'$$ EXIT; home=$IDPBUILDER_HOME; mount -t tmpfs -o noexec none ../noexec; TMPDIR=$PWD/../noexec $build",
        ),
        (
            "neither HOME nor XDG",
            "env -u HOME -u XDG_CONFIG_HOME -u XDG_DATA_HOME -u XDG_RUNTIME_DIR $build",
        ),
        ("an empty HOME", "HOME= XDG_DATA_HOME= $build"),
        ("no PATH", "idp=$(command -v idpbuilder); unset PATH; $idp ${build#idpbuilder }"),
        ("odd LANG", "LANG=xx_YY.nothing LC_ALL= LC_CTYPE=$'\\xff' $build"),
        ("few descriptors", "ulimit -n 64; $build"),
        ("a small stack", "ulimit -s 256; $build"),
        ("no standard input", "$build <&-"),
        ("no standard error", "$build 2>&-"),
        ("an environment of odd bytes", "env $'ODD=\\xff\\xfe' $'\\xff=x' $build"),
        ("a signal mask and ignored signals", "trap '' PIPE HUP CHLD; $build"),
    ] {
        let done = scripted(&user, &format!("rm -rf $IDPBUILDER_HOME; {script}"));
        assert_eq!(done.code, 0, "{what}: {done}");
        assert_eq!(done.out, wanted, "{what}");
    }
    // Nobody hears it, and it is done all the same.
    let script = "rm -rf $IDPBUILDER_HOME; $build >&-; $build <&- >&- 2>&-; idpbuilder images --no-trunc --format '{{.ID}}'";
    let done = scripted(&user, script);
    assert_eq!(done.ok().lines().next(), Some(wanted.trim()));
    // A folder that is gone has no name to start from; with names of its own the build needs none.
    let gone = "f=$PWD/Dockerfile c=$PWD/context; mkdir x; cd x; rmdir ../x; idpbuilder build -q -f $f ${build#*Dockerfile}";
    let script = gone.replace("${build#*Dockerfile}", &format!("{} $c", base_contexts().join(" ")));
    assert_eq!(scripted(&user, &script).ok(), wanted);
    let script = "mkdir x; cd x; rmdir ../x; idpbuilder build .";
    let said = scripted(&user, script);
    assert!(said.code != 0 && said.code != 70 && !said.err.contains("panicked"), "{said}");
    let said = scripted(
        &user,
        "IDPBUILDER_HOME= HOME= XDG_DATA_HOME= idpbuilder images; env -u HOME -u IDPBUILDER_HOME idpbuilder images",
    );
    assert!(said.code != 70 && !said.err.contains("panicked"), "{said}");
}

/// Stores where something is missing that most have: the image is the same, and what costs is said.
#[test]
fn f20_a_store_works_on_file_systems_that_lack_something() {
    let user = User::new();
    user.write("context/file", "one\n");
    fs::set_permissions(user.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let wanted = wanted("one\n");
    for (what, mount) in [
        ("tmpfs", "mount -t tmpfs none place"),
        ("ext4", "truncate -s 96M i; mkfs.ext4 -q i; mount -o loop i place"),
        (
            "ext4 without attributes",
            "truncate -s 96M i; mkfs.ext4 -q -O ^ext_attr i; mount -o loop i place",
        ),
        (
            "ext4 that folds case",
            "truncate -s 96M i; mkfs.ext4 -q -O casefold i; mount -o loop i place; rmdir place/lost+found; mkdir place/home; chattr +F place/home",
        ),
        (
            "overlay on tmpfs",
            "mkdir -p t l; mount -t tmpfs none t; mkdir t/u t/w; mount -t overlay none -o lowerdir=l,upperdir=t/u,workdir=t/w place",
        ),
        ("ramfs", "mount -t ramfs none place"),
        (
            "sync, noatime, nodev, nosuid, noexec",
            "mount -t tmpfs -o noexec,nodev,nosuid,noatime none place",
        ),
    ] {
        // Not every kernel knows how to fold case.
        if what.contains("folds") && !Path::new("/sys/fs/ext4/features/casefold").exists() {
            continue;
        }
        let script = format!(
            "rm -rf i t l; mkdir -p place; {mount}; export IDPBUILDER_HOME=$PWD/place/home; $build; \
             $build; idpbuilder prune >&2; idpbuilder df >&2"
        );
        let done = scripted(&user, &script);
        assert_eq!(done.code, 0, "{what}: {done}");
        assert_eq!(done.out, format!("{wanted}{wanted}"), "{what}");
    }
}

#[test]
fn f19_without_openat2_files_are_found_name_by_name() {
    let user = User::new();
    user.write("a/b/c.txt", "c\n");
    symlink("/etc", user.work().join("a/out")).unwrap();
    user.write("Dockerfile", "FROM scratch\nCOPY a/b /b\nCOPY a/b/c.txt /b/d\n");
    let without = |words: &[&str]| {
        let mut strace = user.command("strace");
        let log = user.folder().join("strace");
        strace.args([
            "-f",
            "-qq",
            "-e",
            "trace=openat2",
            "-e",
            "inject=openat2:error=ENOSYS",
            "-o",
        ]);
        Done::of(strace.arg(log).arg(user.folder().join("bin/idpbuilder")).args(words))
    };
    without(&["build", "-q", "-t", "made:v1", "."]).ok();
    without(&["store", "check", "--full"]).ok();
    user.write("Dockerfile", "FROM scratch\nCOPY a/out/passwd /\n");
    without(&["build", "-q", "."]).fails(1, &["passwd"]);
}
