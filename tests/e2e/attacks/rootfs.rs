//! S01 to S07: working directories, our own program, and images whose `/dev`, `/proc`, `/etc` and `/sys` lead elsewhere.

use std::{fmt::Write as _, fs};

use super::{Attack, everywhere, said};
use crate::support::{
    Done,
    images::{Tar, plain_process},
};

/// Steps upwards, enough for any folder.
const UP: &str = "../../../../../../../..";

/// CVE-2024-21626: a descriptor of the host as the working directory.
#[test]
fn s01_a_working_directory_is_no_descriptor_of_the_host() {
    everywhere("S01", |attack| {
        let look =
            format!("cat {UP}{}; readlink /proc/self/cwd; ls {UP}", attack.canary.at("file"));
        for number in 3..=64 {
            attack.refused(
                &format!("FROM base\nWORKDIR /proc/self/fd/{number}\nRUN {look}\n"),
                &["/proc/self/fd"],
            );
        }
        let links = (3..=20).fold(Tar::new(), |tar, number| {
            tar.link(&format!("fd{number}"), format!("/proc/self/fd/{number}"))
        });
        attack.evil(links);
        for number in 3..=20 {
            attack.refused(&format!("FROM evil\nWORKDIR /fd{number}\nRUN {look}\n"), &[]);
        }
        "refused"
    });
}

/// What was open in the caller is not open inside.
#[test]
fn s01_no_descriptor_of_the_caller_is_open_inside() {
    everywhere("S01 descriptors", |attack| {
        attack.user.write(
            "Dockerfile",
            "FROM base\nRUN ls /proc/self/fd; cat /proc/self/fd/[4-9]; true\n",
        );
        let script = format!(
            r#"exec 3<{0} 7<{0} 8</ 9<{0}; exec idpbuilder "$@""#,
            attack.canary.at("file")
        );
        let mut caller = attack.user.command("bash");
        caller
            .args(["-c", &script, "bash", "--progress", "plain", "build"])
            .args(attack.flags())
            .arg(".");
        let done = attack.heard(Done::of(&mut caller));
        // `ls` reads the folder through 3.
        let listed: Vec<_> = said(&done).lines().take(4).map(str::to_owned).collect();
        assert_eq!(listed, ["0", "1", "2", "3"], "{done}");
        let open = "cat: can't open '/proc/self/fd/[4-9]': No such file or directory";
        assert_eq!(said(&done).lines().nth(4), Some(open), "{done}");
        "0, 1 and 2 only"
    });
}

/// CVE-2019-5736: the program that starts the container, written to from inside.
#[test]
fn s02_our_own_program_is_not_written_to() {
    everywhere("S02", |attack| {
        let binary = attack.user.folder().join("bin/idpbuilder");
        let before = fs::read(&binary).unwrap();
        let config = r#"{"credsStore": "evil"}"#;
        attack.image(
            "evil",
            [Tar::new()
                .program("script", "#!/proc/self/exe\n")
                .dir("root/.docker", 0o755)
                .file("root/.docker/config.json", config)
                .link("usr/local/bin/docker-credential-evil", "/bin/attack")
                .link("exe", "/proc/self/exe")],
            &plain_process(),
        );
        for text in [
            "FROM evil\nRUN [\"/proc/self/exe\"]\n",
            "FROM evil\nRUN [\"/exe\"]\n",
            "FROM evil\nRUN [\"/script\"]\n",
            "FROM evil\nRUN [\"/proc/1/exe\"]\n",
            "FROM evil\nSHELL [\"/proc/self/exe\", \"version\"]\nRUN x\n",
            // The tool inside starts a helper, which is the attacker's program.
            "FROM evil\nRUN [\"/proc/self/exe\", \"login\", \"r.example\", \"--username\", \"u\"]\n",
            "FROM evil\nRUN [\"/proc/self/exe\", \"pull\", \"127.0.0.1:1/x\"]\n",
            "FROM evil\nRUN attack overwrite\n",
            "FROM evil\nRUN (attack overwrite &); exec /proc/self/exe\n",
        ] {
            let done = attack.build(text);
            assert!(!done.err.contains("overwritten"), "{text}{done}");
        }
        assert!(fs::read(&binary).unwrap() == before, "the program has changed");
        "program unchanged"
    });
}

/// CVE-2025-52565: terminals as links.
#[test]
fn s04_the_terminals_of_an_image_are_not_used() {
    everywhere("S04", |attack| {
        let dir = attack.canary.at("dir");
        for (name, target) in [
            ("console", "null"),
            ("pts", ""),
            ("pts/0", "null"),
            ("ptmx", "ptmx"),
            ("shm", ""),
            ("mqueue", ""),
        ] {
            let tar =
                if name.contains('/') { Tar::new().dir("dev/pts", 0o755) } else { Tar::new() };
            attack.evil(tar.link(&format!("dev/{name}"), format!("{UP}{dir}/{target}")));
            let listed = attack.says("evil", "ls /dev; echo x > /dev/null; echo x > /dev/shm/x");
            let wanted = "core\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n";
            assert_eq!(listed, wanted, "{name}");
        }
        "/dev of the image unused"
    });
}

/// CVE-2025-52881: a `/proc` that is none.
#[test]
fn s05_proc_is_the_kernel_s_or_the_build_ends() {
    everywhere("S05", |attack| {
        let dir = attack.canary.at("dir");
        for tar in [
            Tar::new().link("proc", &dir),
            Tar::new().link("proc", format!("{UP}{dir}")),
            Tar::new().link("proc", "/nowhere"),
            Tar::new().file("proc", "fake"),
            Tar::new().fifo("proc"),
        ] {
            attack.evil(tar);
            attack.refused("FROM evil\nRUN true\n", &["/proc"]);
        }
        let fake = ["self", "self/attr", "sys", "sys/kernel"]
            .iter()
            .fold(Tar::new(), |tar, name| tar.dir(&format!("proc/{name}"), 0o777));
        let tar = fake
            .link("proc/self/attr/current", attack.canary.at("file"))
            .link("proc/self/attr/exec", attack.canary.at("file"))
            .link("proc/sys/kernel/core_pattern", attack.canary.at("file"))
            .link("proc/sysrq-trigger", attack.canary.at("file"));
        attack.evil(tar);
        let said = attack.says("evil", "stat -f -c %T /proc /proc/sys /proc/self/attr");
        assert_eq!(said, "proc\nproc\nproc\n");
        "refused, or replaced by procfs"
    });
}

/// CVE-2026-41579: `/dev` as a link to a folder of the host.
#[test]
fn s06_dev_as_a_link_is_refused() {
    everywhere("S06", |attack| {
        let dir = attack.canary.at("dir");
        for tar in [
            Tar::new().link("dev", &dir),
            Tar::new().link("dev", format!("{UP}{dir}")),
            Tar::new().link("dev", "tmp"),
            Tar::new().link("dev", "/proc/1/root/dev"),
            Tar::new().file("dev", "x"),
        ] {
            attack.evil(tar);
            attack.refused("FROM evil\nRUN true\n", &["/dev"]);
        }
        "refused"
    });
}

/// CVE-2024-45310, CVE-2024-9676: files and folders that the sandbox or the tool looks at, as links.
#[test]
fn s07_links_of_the_image_lead_within_the_image() {
    everywhere("S07", |attack| {
        let (file, dir) = (attack.canary.at("file"), attack.canary.at("dir"));
        for target in [dir.clone(), format!("{UP}{dir}"), "/nowhere/at/all".to_owned()] {
            attack.evil(Tar::new().link("sys", &target));
            attack.refused("FROM evil\nRUN true\n", &["/sys"]);
            // In place of /tmp: the canary itself lies in that.
            attack.evil(Tar::new().link("srv", &target));
            attack.user.write("f", "f\n");
            let text = "FROM evil\nWORKDIR /srv/x\nRUN echo x > y\nCOPY f /srv/f\nADD f /srv/g\n\
                        RUN --mount=type=tmpfs,target=/srv/t --mount=target=/srv/c echo x > /srv/t/x\n\
                        RUN <<EOF\ncat /srv/x/y /srv/f\nEOF\n";
            let done = attack.build_with(text, &["--no-cache"]);
            assert_eq!((done.code, said(&done).as_str()), (0, "x\nf\n"), "{done}");
            attack.evil(Tar::new().link("etc", &target));
            let hosts = attack.says("evil", "cat /etc/hosts; ls /etc");
            assert!(hosts.contains("127.0.0.1"), "{hosts}");
        }
        for name in ["resolv.conf", "hosts", "hostname"] {
            for target in
                [file.clone(), format!("{UP}{file}"), "/nowhere".to_owned(), format!("/etc/{name}")]
            {
                attack.evil(Tar::new().link(&format!("etc/{name}"), &target));
                let done = attack.build(&format!(
                    "FROM evil\nRUN cat /etc/{name}; (echo x > /etc/{name}); true\n"
                ));
                let looped = target.starts_with("/etc") && done.code == 1;
                assert!(looped || done.code == 0, "{name} -> {target}: {done}");
            }
        }
        // `canary` is a user of that file alone.
        for target in [format!("{dir}/etc/passwd"), format!("{UP}{dir}/etc/passwd")] {
            attack.evil(Tar::new().link("etc/passwd", &target));
            attack.refused("FROM evil\nUSER canary\nRUN id\n", &["canary"]);
            attack.refused(
                "FROM evil\nCOPY --chown=canary:canary f /f\nUSER canary\nRUN id\n",
                &["canary"],
            );
        }
        "resolved within the image, or refused"
    });
}

/// CVE-2025-31133: what masks paths of `/proc` is swapped while processes start.
#[test]
fn s03_masks_stay_while_dev_null_is_swapped() {
    everywhere("S03 1000 rounds", |attack: &Attack| {
        let pattern = || fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        let before = pattern();
        let tar = Tar::new()
            .link("dev/null", "/proc/sys/kernel/core_pattern")
            .file("dev/other", "")
            .link("dev/zero", attack.canary.at("file"));
        attack.evil(tar);
        // The layer's folder is in the store after this.
        attack.says("evil", "true");
        let swapped = super::races::swapping_below(&attack.user.home(), "dev/null", "dev/other");
        let check = "for f in interrupts kcore timer_list; do ! test -e /proc/$f || test -c /proc/$f || exit 1; done; \
                     test -c /dev/null && ! test -s /proc/keys && ! (echo x > /proc/sys/kernel/core_pattern) && echo x > /dev/null";
        for round in 0..10 {
            let mut text = String::from("FROM evil\n");
            for step in 0..100 {
                writeln!(text, "RUN {check} # {round} {step}").unwrap();
            }
            let done = attack.build(&text);
            assert_eq!(done.code, 0, "{done}");
        }
        assert!(swapped.stop() > 1000, "the swaps are no race");
        assert_eq!(pattern(), before);
        "masked paths masked"
    });
}
