//! Mounts and users of a RUN, by the rules of BuildKit, and what may not get through them.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    process::Command,
};

use crate::support::{Done, User, base_contexts};

fn out(user: &User, dockerfile: &str, flags: &[&str]) -> String {
    let flags: Vec<&str> =
        flags.iter().copied().chain(["--quiet", "--output", "type=local,dest=out"]).collect();
    user.build(dockerfile, &flags).ok();
    fs::read_to_string(user.work().join("out/out")).unwrap()
}

fn binds_show_what_is_selected_and_writes_to_them_are_lost(user: &User) {
    user.write("src/kept", "kept\n");
    user.write("src/ignored", "ignored\n");
    user.write("single", "single\n");
    user.write(".dockerignore", "src/ignored\n");
    let text = "FROM busybox AS stage\nRUN mkdir /s && echo stage > /s/f && chmod 600 /s/f && chown 5:6 /s/f\nFROM busybox\n\
        RUN --mount=target=/m,source=src --mount=target=/one,source=single --mount=from=stage,source=/s,target=/s,rw \
        --mount=from=debian:bookworm,source=/etc/debian_version,target=/v --mount=type=tmpfs,target=/t,size=1m \
        (ls /m; cat /one; stat -c '%a %u %g' /s/f; test -s /v && echo image; (echo x > /m/new) 2>/dev/null || echo ro; \
        echo y > /s/new && cat /s/new; dd if=/dev/zero of=/t/big bs=1M count=3 2>/dev/null || echo full) > /out\n\
        RUN --mount=from=stage,source=/s,target=/s,rw ls /s >> /out; ls -d /m /one /v /t 2>/dev/null >> /out; true\n";
    assert_eq!(out(user, text, &[]), "kept\nsingle\n600 5 6\nimage\nro\ny\nfull\nf\n");
    for name in ["m", "one", "s", "v", "t"] {
        assert!(!user.work().join("out").join(name).exists(), "/{name} is in the layer");
    }
    assert!(!user.work().join("src/new").exists());
    // What is not selected does not count; what is, does.
    let cached = |user: &User| user.build(text, &[]).err.matches("cached in").count() == 3;
    user.write("src/ignored", "changed\n");
    assert!(cached(user));
    user.write("src/kept", "changed\n");
    assert!(!cached(user));
}

/// The context itself is nobody's work: what a clone's umask made of its folder is not seen.
#[test]
fn the_folder_of_the_context_is_mounted_as_any_other() {
    use std::os::unix::fs::PermissionsExt as _;
    let user = User::new();
    let text = "FROM busybox\nRUN --mount=type=bind,target=/m stat -c '%a %u' /m > /out\n";
    fs::set_permissions(user.work(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(out(&user, text, &[]), "755 0\n");
}

#[test]
fn as_root_binds_show_what_is_selected_and_writes_to_them_are_lost() {
    binds_show_what_is_selected_and_writes_to_them_are_lost(&User::new());
}

#[test]
fn as_an_ordinary_user_binds_show_what_is_selected_and_writes_to_them_are_lost() {
    binds_show_what_is_selected_and_writes_to_them_are_lost(&User::rootless());
}

#[test]
fn s11_the_source_of_a_bind_is_found_in_its_own_root() {
    let user = User::new();
    let canary = user.folder().join("canary");
    fs::write(&canary, "canary\n").unwrap();
    for link in ["/", "/proc/1/root", "../../../../../../.."] {
        let text = format!(
            "FROM busybox AS evil\nRUN ln -s {link} /l\nFROM busybox\n\
             RUN --mount=type=bind,from=evil,source=/l,target=/d cat /d{} /d/tmp/.tmp*/canary > /out 2>/dev/null; \
             ls /d >> /out\n",
            canary.display()
        );
        let done = user.build(&text, &["--output", "type=local,dest=out"]);
        if done.code == 0 {
            let read = fs::read_to_string(user.work().join("out/out")).unwrap();
            assert!(!read.contains("canary"), "{link}: {read}");
        }
    }
}

#[test]
fn s12_options_that_mounts_do_not_have_are_refused() {
    let user = User::new();
    for (mount, words) in [
        ("type=bind,bind-propagation=shared,target=/m", "unexpected key 'bind-propagation'"),
        ("type=bind,target=/m,dev", "invalid field 'dev' must be a key=value pair"),
        ("type=bind,target=/m,suid", "invalid field 'suid' must be a key=value pair"),
        ("type=bind,target=/m,sharing=locked", "invalid cache sharing set for bind mount"),
        ("type=bind,target=/m,mode=777", "mode not allowed for \"bind\" type mounts"),
        ("type=volume,target=/m", "unsupported mount type \"volume\""),
        ("type=tmpfs,target=/", "invalid mount target \"/\""),
        ("type=cache,target=/m,sharing=all", "unsupported sharing value \"all\""),
        ("type=tmpfs,target=/m,size=big", "size"),
        ("type=secret,from=x,target=/m", "secret mount should not have a from"),
        ("type=ssh,source=x", "ssh does not support source"),
    ] {
        user.build(&format!("FROM busybox\nRUN --mount={mount} true\n"), &[]).fails(3, &[words]);
    }
    // Whatever is mounted: no devices, no set-user-id.
    let text = "FROM busybox\nRUN --mount=target=/m,rw --mount=type=cache,target=/c --mount=type=tmpfs,target=/t \
                grep -E ' /(m|c|t) ' /proc/mounts | grep -vc 'nosuid,nodev' > /out; true\n";
    assert_eq!(out(&user, text, &[]), "0\n");
}

#[test]
fn a_secret_is_there_for_its_step_and_nowhere_else() {
    let user = User::new();
    user.write("token", "canary-in-a-file\n");
    let text = "FROM busybox\n\
        RUN --mount=type=secret,id=a --mount=type=secret,id=a,target=/x/key,mode=0440,uid=7,gid=8 \
            --mount=type=secret,id=b,env=TOKEN --mount=type=secret,id=none --mount=type=secret,id=none,env=EMPTY \
            (wc -c < /run/secrets/a; stat -c '%a %u %g' /run/secrets/a /x/key; echo ${#TOKEN} [${EMPTY-unset}]; \
            test -e /run/secrets/none || echo missing; test -e /run/secrets/b || echo no file; \
            grep -c ' /x/key tmpfs ' /proc/mounts) > /out\n\
        RUN ls /run/secrets /x 2>/dev/null >> /out; echo [$TOKEN] >> /out\n";
    user.write("Dockerfile", text);
    let mut build = user.idp();
    build.args([
        "build",
        "-t",
        "demo:v1",
        "--secret",
        "id=a,src=token",
        "--secret",
        "id=b,env=CANARY",
    ]);
    build.args(["--output", "type=local,dest=out"]).args(base_contexts()).arg(".");
    build.env("CANARY", "canary-in-a-variable");
    Done::of(&mut build).ok();
    let said = fs::read_to_string(user.work().join("out/out")).unwrap();
    assert_eq!(said, "17\n400 0 0\n440 7 8\n20 []\nmissing\nno file\n1\n[]\n");
    let mut grep = Command::new("grep");
    grep.args(["-r", "--text", "-l", "canary-in-a"]).arg(user.home()).arg(user.work().join("out"));
    assert_eq!(Done::of(&mut grep).code, 1, "the value is on no disk");
    user.build("FROM busybox\nRUN --mount=type=secret,id=gone,required true\n", &[])
        .fails(3, &["secret gone: not found", "--secret id=gone"]);
}

/// USER, and what a process finds: ids, groups of the image, home.
#[test]
fn users_are_those_of_the_image() {
    let user = User::new();
    for (name, wanted) in [
        ("app", "1000 1001 29 50 1001 /home/app\n"),
        ("1000", "1000 1001 29 50 1001 /home/app\n"),
        ("app:staff", "1000 50 50 /home/app\n"),
        ("77", "77 0 0 /\n"),
        ("77:88", "77 88 88 /\n"),
    ] {
        let text = format!(
            "FROM busybox\nRUN touch /out && chmod 666 /out\nUSER {name}\n\
             RUN echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n | uniq) $HOME > /out\n"
        );
        assert_eq!(out(&user, &text, &[]), wanted, "USER {name}");
    }
    for name in ["4294967296", "-1", "0x0", "00", "nosuch", "1000:nosuch"] {
        let said = user.build(&format!("FROM busybox\nUSER {name}\nRUN id -u\n"), &[]);
        assert_ne!(said.code, 0, "USER {name}: {said}");
    }
}

/// S17: account files that are no account files, or too long. Nothing waits for a pipe, and nothing reads a device.
#[test]
fn s17_strange_account_files_are_refused_soon() {
    let user = User::new();
    let sparse = user.work().join("sparse");
    File::create(&sparse).unwrap().set_len(64 << 20).unwrap();
    let line = File::create(user.work().join("line")).unwrap();
    line.set_len(64 << 20).unwrap();
    line.write_all_at(b"app:x:1000:1000:", 0).unwrap();
    for (make, words) in [
        ("RUN rm /etc/passwd && mkfifo /etc/passwd", "/etc/passwd of the image is no regular file"),
        ("RUN ln -sf /dev/zero /etc/passwd", "unable to find user app"),
        ("RUN rm /etc/group && mkdir /etc/group", "/etc/group of the image is no regular file"),
        ("COPY sparse /etc/passwd", "16777216 bytes"),
        ("COPY line /etc/passwd", "16777216 bytes"),
    ] {
        let text = format!("FROM busybox\n{make}\nUSER app\nRUN id\n");
        user.build(&text, &[]).fails(1, &[words]);
    }
    // Many short lines are fine, and the last one counts.
    let lines: String = (0..200_000).map(|n| format!("u{n}:x:{n}:{n}::/h:/bin/sh\n")).collect();
    fs::write(user.work().join("many"), lines + "last:x:424242:7::/last:/bin/sh\n").unwrap();
    let text = "FROM busybox\nCOPY many /etc/passwd\nRUN touch /out && chmod 666 /out\nUSER last\nRUN echo $(id -u) $HOME > /out\n";
    assert_eq!(out(&user, text, &[]), "424242 /last\n");
}
