//! S15 to S18, S27, S31 and S32: users, groups, capabilities, the environment, and who owns what an image says.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::json;

use super::{Attack, Level, at_levels, everywhere, said};
use crate::support::{
    Done, User,
    images::{Tar, plain_process},
};

/// CVE-2022-2990, CVE-2023-25173: groups of whoever builds.
#[test]
fn s15_groups_are_those_of_the_image() {
    let build = |attack: &Attack, more: &[&str]| {
        attack.user.write(
            "Dockerfile",
            "FROM base\nUSER 1000\nRUN id -u; id -g; id -G\nUSER 7:8\nRUN id -G\n",
        );
        let mut command = attack.user.command(more.first().copied().unwrap_or("idpbuilder"));
        command
            .args(more.iter().skip(1))
            .args(["--progress", "plain", "build"])
            .args(attack.flags())
            .arg(".");
        let done = attack.heard(Done::of(&mut command));
        assert_eq!(done.code, 0, "{done}");
        said(&done)
    };
    at_levels("S15", &[Level::Root, Level::Private], |attack| {
        let said = build(attack, &["setpriv", "--groups", "4,20,27", "idpbuilder"]);
        assert_eq!(said, "1000\n1001\n1001 29 50\n8\n");
        "groups of the image"
    });
    let caller = |subordinate: bool| {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let id = passwd
            .lines()
            .find_map(|line| line.strip_prefix("idpb:x:")?.split(':').next())
            .unwrap();
        let id = if subordinate { id.to_owned() } else { "64987".to_owned() };
        Attack::by(Level::Mapped, User::ordinary(&id, &id, &["--groups", "4,20,27"]))
    };
    assert_eq!(build(&caller(true), &[]), "1000\n1001\n1001 29 50\n8\n");
    println!("S15, user, subordinate ids, groups of the image");
    // The kernel lets nobody drop groups who maps one id alone: they are there, without their numbers.
    let said = build(&caller(false), &[]);
    for group in said.lines().nth(2).unwrap().split(' ') {
        assert!(["0", "65534"].contains(&group), "{said}");
    }
    println!("S15, user, one id, the groups of the caller, which cannot be dropped");
}

/// CVE-2024-40635, CVE-2026-46680: numbers that one program takes for root.
#[test]
fn s16_no_spelling_of_a_user_is_root_by_accident() {
    everywhere("S16", |attack| {
        for user in [
            "4294967296",
            "-1",
            "2147483648",
            "0x0",
            "00",
            "1000:4294967295",
            "+0",
            "1000:-1",
            "4294967295",
        ] {
            attack.refused(&format!("FROM base\nUSER {user}\nRUN id\n"), &["no user or group"]);
            let mut process = plain_process();
            process["User"] = json!(user);
            attack.image("evil", [], &process);
            attack.refused("FROM evil\nRUN id\n", &["no user or group"]);
        }
        attack.refused("FROM base\nUSER  \nRUN id\n", &["USER"]);
        let mut process = plain_process();
        process["User"] = json!(" ");
        attack.image("evil", [], &process);
        attack.refused("FROM evil\nRUN id\n", &[]);
        "refused"
    });
}

/// CVE-2026-47262, CVE-2024-9676: account files without an end.
#[test]
fn s17_account_files_are_read_up_to_a_limit() {
    everywhere("S17", |attack| {
        let many = "x:x:1:1::/:\n".repeat(1_000_000);
        let line = "y".repeat(15 << 20);
        let large = vec![0; 17 << 20];
        for file in ["passwd", "group"] {
            let name = format!("etc/{file}");
            let text = match file {
                "passwd" => "FROM evil\nUSER nobody-there\nRUN id\n",
                _ => "FROM evil\nUSER 0:nobody-there\nRUN id\n",
            };
            for tar in [
                Tar::new().file(&name, &large),
                Tar::new().fifo(&name),
                Tar::new().link(&name, "/dev/zero"),
                Tar::new().link(&name, &name),
                Tar::new().dir(&name, 0o755),
                Tar::new().file(&name, &many),
                Tar::new().file(&name, &line),
            ] {
                attack.evil(tar);
                attack.refused(text, &[]);
            }
        }
        "refused"
    });
}

/// The sets of Docker's default; the probe beside crun is in `syscalls`.
#[test]
fn s18_capabilities_are_those_of_docker() {
    everywhere("S18", |attack| {
        let text = "FROM base\nRUN grep -E 'Cap|NoNewPrivs' /proc/self/status | tr -d '\\t'\nUSER 1000\nRUN grep -E 'Cap|NoNewPrivs' /proc/self/status | tr -d '\\t'\n";
        let done = attack.build(text);
        let sets = |kept: &str| {
            format!(
                "CapInh:0000000000000000\nCapPrm:{kept}\nCapEff:{kept}\n\
                 CapBnd:00000000a80425fb\nCapAmb:0000000000000000\nNoNewPrivs:0\n"
            )
        };
        let (all, none) = ("00000000a80425fb", "0000000000000000");
        // With one id every user is the same one, which owns everything.
        let user = if attack.level == Level::SingleId { all } else { none };
        assert_eq!(said(&done), sets(all) + &sets(user), "{done}");
        "14 for root, none for others"
    });
}

/// CVE-2026-57231, CVE-2021-3602: the environment of the tool.
#[test]
fn s27_the_environment_of_the_tool_is_not_the_process_s() {
    everywhere("S27", |attack| {
        let said = attack
            .says("base", "env; cat /proc/1/environ /proc/self/environ /proc/[0-9]*/environ; true");
        assert!(said.contains("PATH=") && !said.contains("CANARY"), "{said}");
        for env in [
            json!(["CANARY_TOKEN"]),
            json!(["*"]),
            json!(["PATH"]),
            json!(["PATH=/bin", "CANARY_*"]),
            json!([""]),
        ] {
            attack.image("evil", [], &json!({ "Env": env }));
            let done = attack.build("FROM evil\nRUN env\n");
            assert!(done.code != 0 && done.code != 70, "{env}: {done}");
        }
        for text in [
            "FROM base\nENV A=$CANARY_TOKEN B=${CANARY_TOKEN:-none}\nRUN echo $A$B\n",
            "FROM base\nARG CANARY_TOKEN\nRUN echo $CANARY_TOKEN\n",
            "FROM base\nRUN --mount=type=secret,id=CANARY_TOKEN,env=X echo $X\n",
        ] {
            assert!(!attack.build(text).err.contains(&attack.canary.variable));
        }
        "never shown; malformed ones refused"
    });
}

/// CVE-2021-41091: programs with privileges stay out of the reach of the machine's other users, and in the image.
#[test]
fn s31_privileged_files_are_kept_and_kept_away() {
    everywhere("S31", |attack| {
        // Version 2 names no user; version 3 names the root of a namespace: here the machine's.
        let two: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let attribute = "SCHILY.xattr.security.capability";
        let tar =
            Tar::new().pax([(attribute, two)]).program("bin/cap2", "x").owned("bin/suid", (0, 0));
        attack.evil(tar);
        let text = "FROM evil\nRUN ls -l /bin/suid | cut -c1-10; echo y > /y\n";
        let done = attack.build_with(
            text,
            &["--output", "type=oci,dest=layout,tar=false,compression=uncompressed"],
        );
        assert_eq!((done.code, said(&done).as_str()), (0, "-rwsr-xr-x\n"), "{done}");
        let mut grep = std::process::Command::new("grep");
        grep.args(["-rlaF", "SCHILY.xattr.security.capability"])
            .arg(attack.user.work().join("layout"));
        assert_eq!(Done::of(&mut grep).ok().lines().count(), 1);
        for folder in [attack.user.home(), attack.user.home().join("images")] {
            let mode = fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o700, "{}", folder.display());
        }
        "in the image; closed to others"
    });
}

/// Owners for whom this user has no numbers.
#[test]
fn s32_owners_beyond_the_mapped_ids_are_not_squashed() {
    everywhere("S32", |attack| {
        for id in [70_000, 200_000] {
            attack.evil(Tar::new().owned("theirs", (id, id)));
            let text = format!("FROM evil\nRUN test \"$(stat -c %u:%g /theirs)\" = {id}:{id}\n");
            let done =
                attack.build_with(&text, &["--no-cache", "--output", "type=tar,dest=out.tar"]);
            match attack.level {
                Level::Root => assert_eq!(done.code, 0, "{done}"),
                Level::Mapped => {
                    assert!(done.code == 8 || done.code == 1, "{done}");
                    assert!(
                        done.err.contains(&id.to_string()) && !done.err.contains("exit code: "),
                        "{done}"
                    );
                }
                // The process sees another owner, the image has the right one.
                Level::SingleId | Level::Private => {
                    assert_eq!(done.code, 1, "{done}");
                    let copied = attack.build_with(
                        "FROM evil\nRUN true\n",
                        &["--output", "type=tar,dest=out.tar"],
                    );
                    assert_eq!(copied.code, 0, "{copied}");
                    let mut tar = std::process::Command::new("tar");
                    tar.args(["--numeric-owner", "-tvf"])
                        .arg(attack.user.work().join("out.tar"))
                        .arg("theirs");
                    assert!(Done::of(&mut tar).ok().contains(&format!("{id}/{id}")));
                }
            }
        }
        match attack.level {
            Level::Root => "real",
            Level::Mapped => "refused",
            Level::SingleId => "recorded",
            Level::Private => "nobody's to the process, kept",
        }
    });
}
