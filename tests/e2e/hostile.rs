//! Bad input to the language: what a Dockerfile, an ignore file and a context may try, through the binary.
//!
//! | case | what | where |
//! |---|---|---|
//! | C01 | paths that lead out of the context | here; `c01_dots_stop_at_the_root_of_the_context` in `src/build/files/tests.rs` |
//! | C02 | links of the context that lead out | here; `c02_links_never_lead_out_of_the_context` there |
//! | C03 | a folder that becomes a link meanwhile | `c03_swapping_a_folder_for_a_link_never_lets_bytes_of_the_host_in` there, 500 rounds |
//! | C04 | ignore files | here; `c04_…` there and in `src/dockerfile/ignore.rs` |
//! | C05 | Dockerfiles that are none | here; any bytes: `tests/fuzz.rs` |
//! | C06 | expansions that grow | here; limits: `src/dockerfile/expand_tests.rs` |
//! | C12 | `--from` of what is no stage | here |
//! | C13 | links of the root file system | here; `c13_links_of_the_root_file_system_stop_at_its_root` there |
//! | C14 | owners and modes out of range | here; `c14_…` in `accounts.rs` and `mode.rs` beside it |
//! | C15 | pipes, devices, files that change | here; `c15_special_files_are_never_opened`, `c15_c16_…` there |
//! | C16 | a file written between hash and copy | `c15_c16_a_file_that_changes_meanwhile_is_never_copied_in_halves` there |
//! | C17 | our own things as targets | here |
//! | C18 | surroundings of the builder | here |
//! | C19 | hard links | here; `c19_hard_links_stay_one_file_however_many` there |
//! | C20 | heredocs as programs | here |

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    process::Command,
};

use idpbuilder::oci::Digest;

use crate::support::{Done, User, base_contexts, binary};

const CANARY: &str = "canary-7f3a91c2-in-a-file-of-the-host";

/// A user whose context lies beside a file that no build may see.
fn user() -> User {
    let user = User::new();
    fs::create_dir(user.folder().join("outside")).unwrap();
    fs::write(user.folder().join("outside/secret"), CANARY).unwrap();
    user.write("f", "file\n");
    user
}

/// No byte of the canary is in the store, and it is as it was.
#[track_caller]
fn assert_unseen(user: &User) {
    let outside = user.folder().join("outside");
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), CANARY);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "something was put beside it");
    let found = Done::of(Command::new("grep").args(["-rlaF", CANARY]).arg(user.home()));
    assert_eq!((found.code, found.out.as_str()), (1, ""), "{found}");
}

#[test]
fn c01_a_source_never_leads_out_of_the_context() {
    let user = user();
    for source in [
        "../outside/secret",
        "/../../outside/secret",
        "./../bin/../outside/secret",
        "${A}outside/secret",
        "[\".\"]./outside/secret",
    ] {
        let text = format!("FROM scratch\nARG A=../../\nCOPY {source} /x\n");
        let done = user.build(&text, &[]);
        // A wildcard matches nothing, all else is not found.
        assert!(done.code == 1 || source.contains('['), "{done}");
        assert_unseen(&user);
    }
}

#[test]
fn c02_a_link_of_the_context_never_leads_out() {
    let user = user();
    let outside = user.folder().join("outside");
    symlink(outside.join("secret"), user.work().join("l")).unwrap();
    symlink("../outside", user.work().join("d")).unwrap();
    fs::create_dir(user.work().join("in")).unwrap();
    symlink(outside.join("secret"), user.work().join("in/l")).unwrap();
    for source in ["l", "d/secret", "d/", "l*"] {
        let done = user.build(&format!("FROM scratch\nCOPY {source} /x/\n"), &[]);
        assert!(done.code == 1 || source.contains('*'), "{done}");
        assert_unseen(&user);
    }
    // Within a folder a link is copied as what it is.
    user.build("FROM scratch\nCOPY in /x/\n", &["--output", "root"]).ok();
    assert_eq!(fs::read_link(user.work().join("root/x/l")).unwrap(), outside.join("secret"));
    assert_unseen(&user);
}

#[test]
fn c04_an_ignore_file_is_read_or_refused_and_never_followed_out() {
    let user = user();
    let ignore = user.work().join(".dockerignore");
    let text = "FROM scratch\nCOPY . /\n";
    for patterns in ["!../../outside", "/", "\u{feff}# comment\nf", "!**/*\nf", "**/**/**/**/x"] {
        fs::write(&ignore, patterns).unwrap();
        user.build(text, &[]).ok();
        assert_unseen(&user);
    }
    for (patterns, words) in [
        ("!\n", ["illegal exclusion pattern", ".dockerignore"]),
        ("f\\", ["syntax error in pattern (line 1: `f\\`)", ".dockerignore"]),
        ("x\n[a\n", ["line 2", ".dockerignore"]),
    ] {
        fs::write(&ignore, patterns).unwrap();
        user.build(text, &[]).fails(3, &words);
    }
    fs::write(&ignore, vec![b'a'; 17 << 20]).unwrap();
    user.build(text, &[]).fails(3, &["ignore file", "limit"]);
    fs::remove_file(&ignore).unwrap();
    Done::of(Command::new("mkfifo").arg(&ignore)).ok();
    user.build(text, &[]).fails(3, &["not a regular file"]);
}

#[test]
fn c05_a_dockerfile_is_a_text_of_bounded_size() {
    let user = user();
    let place = user.work().join("Dockerfile");
    let build = || Done::of(user.idp().arg("build").args(base_contexts()).arg("."));
    let refused = |words: &[&str]| {
        build().fails(3, words);
        fs::remove_dir(&place).or_else(|_| fs::remove_file(&place)).unwrap();
    };
    fs::create_dir(&place).unwrap();
    refused(&["not a regular file"]);
    Done::of(Command::new("mkfifo").arg(&place)).ok();
    refused(&["not a regular file"]);
    symlink("/dev/zero", &place).unwrap();
    refused(&["not a regular file"]);
    fs::File::create(&place).unwrap().set_len(100 << 20).unwrap();
    refused(&["Dockerfile", "the limit is 16777216"]);
    fs::write(&place, b"FROM scratch\nENV A=\xff\n").unwrap();
    refused(&["not UTF-8"]);
    fs::write(&place, "").unwrap();
    refused(&["the Dockerfile cannot be empty"]);
    fs::write(&place, "FROM scratch\nRUN <<EOF\nx\n").unwrap();
    refused(&["unterminated heredoc", "Dockerfile:2:1"]);
    fs::write(&place, "FROM scratch\n".to_owned() + &"ENV A=1\n".repeat(100_001)).unwrap();
    refused(&["more than 100000 instructions"]);
    fs::write(&place, "FROM scratch\nENV A=".to_owned() + &"x".repeat(70_000)).unwrap();
    refused(&["greater than max allowed size of 65535"]);
    // Odd, and good.
    let long =
        "FROM scratch\nLABEL a=\"b\" \\\n".to_owned() + &"  c=d \\\n".repeat(10_000) + "  e=f\n";
    for text in [
        "\u{feff}FROM scratch\nENV A=1\n",
        "FROM scratch\r\nENV A=1\r\n",
        "FROM scratch\nENV A=1",
        "FROM scratch\nLABEL a=\"\0\"\n",
        &long,
    ] {
        fs::write(&place, text).unwrap();
        build().ok();
    }
    // One that is a link is another name for a file.
    fs::remove_file(&place).unwrap();
    fs::write(user.folder().join("elsewhere"), "FROM scratch\nENV A=1\n").unwrap();
    symlink(user.folder().join("elsewhere"), &place).unwrap();
    build().ok();
}

#[test]
fn c06_an_expansion_has_an_end() {
    let user = user();
    let mut doubling = String::from("FROM scratch\nARG A=aaaaaaaaaaaaaaaa\n");
    for _ in 0..60 {
        doubling.push_str("ENV A=$A$A\n");
    }
    user.build(&doubling, &[]).fails(3, &["Dockerfile:", "ENV A=$A$A"]);
    let deep = format!("FROM scratch\nENV A={}x{}\n", "${B:-".repeat(5_000), "}".repeat(5_000));
    user.build(&deep, &[]).fails(3, &["Dockerfile:2:"]);
    let pattern = format!(
        "FROM scratch\nARG A={}\nENV B=${{A//{}b/x}}\n",
        "a".repeat(60_000),
        "*a".repeat(1_000)
    );
    let done = user.build(&pattern, &[]);
    assert!([0, 3].contains(&done.code), "{done}");
}

#[test]
fn c12_from_is_a_stage_or_the_name_of_an_image() {
    let user = user();
    for (from, words) in [
        ("../../outside", ["Dockerfile:3:", "../../outside"]),
        ("http://127.0.0.1/x", ["Dockerfile:3:", "http://127.0.0.1/x"]),
        ("/outside", ["Dockerfile:3:", "/outside"]),
        ("7", ["Dockerfile:3:", "invalid stage index 7"]),
        ("-1", ["Dockerfile:3:", "invalid stage index -1"]),
        ("self", ["Dockerfile:3:", "circular dependency detected on stage: self"]),
        ("$one", ["Dockerfile:3:", "variable expansion is not supported for --from"]),
    ] {
        let text =
            format!("FROM busybox AS one\nFROM scratch AS self\nCOPY --from={from} /secret /x\n");
        user.build(&text, &[]).fails(3, &words);
        assert_unseen(&user);
    }
    // A number in other clothes is a name, and a name of nothing here.
    let hex = "FROM busybox\nFROM scratch\nCOPY --from=0x0 /secret /x\n";
    assert_ne!(user.build(hex, &["--mirror", "docker.io=127.0.0.1:1"]).code, 0);
}

#[test]
fn c13_a_link_of_the_root_file_system_stops_at_its_root() {
    let user = user();
    let outside = user.folder().join("outside").display().to_string();
    let text = format!(
        "FROM busybox\nRUN ln -s {outside} /l && ln -s ../../../../..{outside} /r && ln -s /l /two\n\
         COPY f /l/f\nCOPY f /r/g\nCOPY f /two/h\nADD f {outside}/i\nWORKDIR /l/w\n"
    );
    user.build(&text, &["--output", "root"]).ok();
    let inside = format!("{}/{outside}", user.work().join("root").display());
    for name in ["f", "g", "h", "i"] {
        assert_eq!(fs::read_to_string(format!("{inside}/{name}")).unwrap(), "file\n");
    }
    assert_unseen(&user);
}

#[test]
fn c14_owners_and_modes_out_of_range_are_refused() {
    let user = user();
    for (flag, words) in [
        ("--chown=4294967296", "no user or group"),
        ("--chown=-1", "no user or group"),
        ("--chown=0x0", "no user or group"),
        ("--chown=1000:4294967295", "no user or group"),
        ("--chmod=99999", "invalid chmod parameter"),
        ("--chmod=-1", "u=rwX,go=rX"),
        ("--chmod=a=z", "u=rwX,go=rX"),
    ] {
        let done = user.build(&format!("FROM busybox\nCOPY {flag} f /f\n"), &[]);
        assert!([1, 3].contains(&done.code) && done.err.contains(words), "{flag}\n{done}");
        assert!(done.err.contains("Dockerfile:2:"), "{done}");
    }
    for user_name in ["4294967296", "-1", "0x0", "00", "1000:4294967295"] {
        let done = user.build(&format!("FROM busybox\nUSER {user_name}\nRUN true\n"), &[]);
        assert!(done.code == 1 && done.err.contains("no user or group"), "{done}");
    }
    // As with Docker: special bits are bits.
    user.build("FROM busybox\nCOPY --chmod=u+s f /f\n", &["--output", "root"]).ok();
    let mode = fs::metadata(user.work().join("root/f")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7000, 0o4000);
}

#[test]
fn c15_special_files_are_copied_as_docker_does_and_never_opened() {
    let user = user();
    let script = "mkdir special && mkfifo special/pipe && mknod special/null c 1 3
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"special/socket\")'
        truncate -s 1T special/sparse";
    user.script(script).ok();
    user.write("Dockerfile", "FROM scratch\nCOPY special/pipe special/null special/socket /x/\n");
    let output = ["build", "--output", "type=local,dest=root", "."];
    user.run(output).ok();
    let kind = |name: &str| fs::symlink_metadata(user.work().join("root/x").join(name)).unwrap();
    assert!(kind("pipe").file_type().is_fifo());
    let null = kind("null");
    assert!(null.file_type().is_char_device() && null.rdev() == rustix::fs::makedev(1, 3));
    assert!(kind("socket").is_file() && kind("socket").len() == 0);
    // One that its owner closed to us is named; root may read all.
    let rootless = User::rootless();
    rootless.write("shut", "x");
    fs::set_permissions(rootless.work().join("shut"), fs::Permissions::from_mode(0o000)).unwrap();
    rootless.write("Dockerfile", "FROM scratch\nCOPY shut /\n");
    rootless.run(["build", "."]).fails(1, &["shut", "ermission denied"]);
}

#[test]
fn c17_what_we_need_for_a_process_is_out_of_its_reach() {
    let user = user();
    let before = Digest::of(&fs::read(binary()).unwrap());
    let text = "FROM busybox\nCOPY f /.idpbuilder-probe\nCOPY f /dev/pipes/f\nCOPY f /etc/resolv.conf\n\
        RUN <<END\n#!/bin/sh\ncat /etc/resolv.conf > /resolv\n(echo x > /proc/1/exe) 2> /dev/null && exit 1\n\
        (echo x > /proc/self/exe) 2> /dev/null\n! find / -xdev -name '*idpbuilder*' | grep -v probe\nEND\n\
        ONBUILD RUN echo x > /dev/pipes/y\n";
    user.build(text, &["--output", "root", "-t", "base:v1"]).ok();
    assert_eq!(Digest::of(&fs::read(binary()).unwrap()), before, "the tool is what it was");
    let root = user.work().join("root");
    assert_eq!(
        fs::read_to_string(root.join("etc/resolv.conf")).unwrap(),
        "file\n",
        "it is the image's"
    );
    assert_ne!(
        fs::read_to_string(root.join("resolv")).unwrap(),
        "file\n",
        "the process had another"
    );
}

#[test]
fn c18_the_surroundings_of_the_builder_leave_no_trace() {
    let user = user();
    user.write(
        "Dockerfile",
        "FROM busybox\nCOPY d /d/\nRUN mkdir /made && echo x > /made/x\nWORKDIR /made/w\n",
    );
    user.write("d/e/g", "g\n");
    let build = |name: &str, prefix: &str| {
        let contexts = base_contexts().join(" ");
        let home = user.folder().join(name);
        let script = format!(
            "{prefix} IDPBUILDER_HOME={} idpbuilder build --quiet {contexts} .",
            home.display()
        );
        user.script(&script).ok()
    };
    let plain = build("plain", "");
    for (number, prefix) in [
        "umask 000;",
        "umask 027;",
        "umask 077;",
        "LC_ALL=tr_TR.UTF-8 TZ=Asia/Kathmandu",
        "HOSTNAME=other USER=nobody LOGNAME=nobody",
        "chmod g+s d; setfattr -n user.note -v x d/e/g 2>/dev/null || true; touch -a -d @5 d/e/g; chmod g-s d;",
        "unshare --uts bash -c 'hostname elsewhere';",
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(build(&format!("home{number}"), prefix), plain, "{prefix}");
    }
}

#[test]
fn c19_hard_links_of_the_context_are_one_file() {
    let user = user();
    user.script("mkdir d && echo same > d/a && ln d/a d/b && ln d/a c").ok();
    let text = "FROM scratch\nCOPY d /d/\nCOPY c d/a /e/\n";
    user.build(text, &["--output", "root"]).ok();
    let inode = |path: &str| fs::metadata(user.work().join("root").join(path)).unwrap().ino();
    assert_eq!(inode("d/a"), inode("d/b"), "within one source");
    assert_ne!(inode("d/a"), inode("e/a"), "of two instructions");
    let first = user.build(text, &["--no-cache"]).ok();
    assert_eq!(user.build(text, &["--no-cache"]).ok(), first);
}

#[test]
fn c20_a_heredoc_is_text_until_it_is_in_the_sandbox() {
    let user = user();
    let marker = user.folder().join("outside/made").display().to_string();
    let text = format!(
        "FROM busybox\nARG A=value\nCOPY <<one <<\"two\" <<'$(touch {marker})' /d/\n\
         $A ${{A}} $(touch {marker}) `touch {marker}` \\$A\none\n$A $(touch {marker})\ntwo\nthree\n$(touch {marker})\n\
         RUN <<EOF\necho $(echo inside) > /ran\nEOF\n"
    );
    let done = user.build(&text, &["--output", "root"]);
    assert_unseen(&user);
    if done.code == 0 {
        let read = |path: &str| fs::read_to_string(user.work().join("root").join(path)).unwrap();
        assert_eq!(read("d/one"), format!("value value $(touch {marker}) `touch {marker}` $A\n"));
        assert_eq!(read("d/two"), format!("$A $(touch {marker})\n"));
        assert_eq!(read("ran"), "inside\n");
    } else {
        // A name with blanks is two words to the lexer.
        assert!(done.code == 3 && done.err.contains("Dockerfile:3:"), "{done}");
    }
    // Larger than what the kernel hands to a program as one word.
    let long =
        format!("FROM busybox\nRUN <<EOF\n{}EOF\n", "# a line of a script\n".repeat(500_000));
    user.build(&long, &[]).fails(1, &["argument list too long"]);
}
