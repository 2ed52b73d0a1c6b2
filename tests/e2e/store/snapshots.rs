//! Snapshots: what a RUN stands on is what the layers below it say, no less and no more.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::support::User;

/// A base that has `text` in a file, which the same process touches and leaves as it was; what the next one sees of it.
fn seen(user: &User, text: &str) -> String {
    let dockerfile = format!(
        "FROM busybox\nCOPY <<E /etc/x\n{text}\nE\nRUN chmod 644 /etc/x && echo new > /new\nRUN cat /etc/x > /seen\n"
    );
    user.build(&dockerfile, &["--quiet", "--output", "type=local,dest=out"]).ok();
    fs::read_to_string(user.work().join("out/seen")).unwrap()
}

fn users() -> [User; 3] {
    [User::new(), User::rootless(), User::single_id()]
}

#[test]
fn what_a_process_only_touched_hides_nothing_of_another_base() {
    for user in users() {
        assert_eq!(seen(&user, "one"), "one\n");
        assert_eq!(seen(&user, "two"), "two\n");
        assert!(user.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
    }
}

/// Processes that leave more in their directory than their layer says, or less.
const STEPS: &str = "FROM busybox
RUN mkdir -p /a/b /c && echo one > /a/b/file && ln /a/b/file /c/second && ln -s file /a/b/link && mkfifo /c/pipe
RUN rm -r /a/b && mkdir /a/b && echo two > /a/b/other && touch -d @1 /c/pipe && chmod 4755 /c/second
RUN chmod 755 /a /bin && mkdir -p /a/b/deep/er && mv /c/second /c/third && ln -s /c/socket /dev/log && syslogd && \\
    until test -S /c/socket; do sleep 0.05; done
RUN rm -r /c && test -s /a/b/other && test ! -e /a/b/file
";

/// The file of a snapshot with this name.
fn file_of_snapshot(user: &User, name: &str) -> PathBuf {
    let snapshots = fs::read_dir(user.home().join("images/snapshots")).unwrap();
    let mut files = snapshots.map(|snapshot| snapshot.unwrap().path().join(name));
    files.find(|path| path.is_file()).unwrap()
}

/// Changes a byte of a file, and nothing else that can be seen.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let time = fs::metadata(path).unwrap().modified().unwrap();
    bytes[0] ^= 1;
    fs::write(path, bytes).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn f17_a_snapshot_that_is_not_its_layer_is_found_and_made_again() {
    for user in users() {
        user.build(STEPS, &["--quiet", "--tag", "made:v1"]).ok();
        assert!(user.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
        flip(&file_of_snapshot(&user, "a/b/other"));
        let check = user.run(["store", "check", "--full"]);
        assert!(check.out.contains("is damaged: `/a/b/other` has other bytes\n"), "{check}");
        check.fails(1, &["store check --repair"]);
        let repaired = user.run(["store", "check", "--full", "--repair"]).ok();
        assert!(
            repaired.contains("bytes: removed; it is made again when it is needed"),
            "{repaired}"
        );
        let again = STEPS.replace("&& test ! -e", "&& grep -q two /a/b/other && test ! -e");
        user.build(&again, &["--quiet", "--tag", "made:v1"]).ok();
        assert!(user.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
    }
}
