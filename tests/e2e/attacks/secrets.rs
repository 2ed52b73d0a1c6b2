//! K01, K13 and K14: secrets of a build, and who may look at what it keeps.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Stdio};

use super::{everywhere, said};
use crate::support::{Done, Folder};

#[test]
fn k01_a_secret_is_nowhere_afterwards() {
    everywhere("K01", |attack| {
        // Outside of all that is searched.
        let folder = Folder::new();
        let secret = folder.path().join("secret");
        fs::write(&secret, &attack.canary.token).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
        let text = "FROM base\n\
            RUN --mount=type=secret,id=s --mount=type=tmpfs,target=/t cp /run/secrets/s /t/copy; wc -c < /t/copy; \
              stat -c %a /run/secrets/s; grep ' /run/secrets/s ' /proc/self/mountinfo | grep -c tmpfs; test ! -s /x\n\
            RUN --mount=type=secret,id=v,env=VALUE test ${#VALUE} = 64 && echo seen\n\
            RUN --mount=type=secret,id=s,mode=0444 false\n";
        let file = format!("id=s,src={}", secret.display());
        for told in ["64\n400\n1\nseen\n", ""] {
            let flags = [
                "--secret",
                &file,
                "--secret",
                "id=v,env=CANARY_TOKEN",
                "--output",
                "type=oci,dest=out.tar",
                "-t",
                "secret:v1",
            ];
            let failing = attack.build_with(text, &flags);
            assert_eq!(failing.code, 1, "{failing}");
            // The second time, what has not failed comes from the cache.
            assert_eq!(said(&failing), told, "{failing}");
            let whole = attack.build_with(text.rsplit_once("RUN").unwrap().0, &flags);
            assert_eq!(whole.code, 0, "{whole}");
        }
        for words in [&["history", "secret:v1"][..], &["inspect", "secret:v1"], &["-v", "images"]] {
            assert_eq!(attack.heard(Done::of(attack.idp().args(words))).code, 0);
        }
        "nowhere"
    });
}

/// What a crash would leave: the tool's memory, while a secret is in it.
#[test]
fn k13_the_memory_of_the_tool_is_not_dumped() {
    everywhere("K13", |attack| {
        let text = "FROM base\nRUN --mount=type=secret,id=v,env=VALUE echo sta''rted; sleep 1000\n";
        attack.user.write("Dockerfile", text);
        let script = format!(
            "ulimit -c unlimited; exec idpbuilder --progress plain build --secret id=v,env=CANARY_TOKEN {} .",
            attack.flags().join(" ")
        );
        let mut bash = attack.user.command("bash");
        bash.args(["-c", &script]).env("CANARY_TOKEN", &attack.canary.variable);
        let mut child = bash.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
        let mut heard = lines.map(Result::unwrap);
        assert!(heard.any(|line| line.contains("| started")), "the RUN did not start");
        let pid = rustix::process::Pid::from_child(&child);
        let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
        let ended = child.wait().unwrap();
        let dumped = std::os::unix::process::ExitStatusExt::core_dumped(&ended);
        assert!(!dumped, "{ended}\n{limits}");
        "no core file"
    });
}

#[test]
fn k14_what_is_kept_is_for_its_owner_alone() {
    everywhere("K14", |attack| {
        attack.user.write("Dockerfile", "FROM base\nRUN echo x > /x\n");
        attack.user.write("f", "f\n");
        let script =
            format!("umask 000; exec idpbuilder build -t open:v1 {} .", attack.flags().join(" "));
        attack.heard(Done::of(attack.user.command("bash").args(["-c", &script]))).ok();
        let mut find = attack.user.command("find");
        // What an image says of its own files is closed off by the folders above.
        find.arg(attack.user.home()).args([
            "-path",
            "*/snapshots/*",
            "-prune",
            "-o",
            "-perm",
            "/077",
            "!",
            "-type",
            "l",
            "-print",
        ]);
        assert_eq!(Done::of(&mut find).ok(), "", "open to others");
        "0700 and 0600"
    });
}
