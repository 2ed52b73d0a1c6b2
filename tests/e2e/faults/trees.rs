//! F16: trees deeper than any path may be long, and names of any bytes, from one end to the other and away again.

use std::{fs, process::Command};

use super::scaled;
use crate::support::{Done, User};

/// Makes a chain of folders with a file at its end, of names that no one call reaches.
const CHAIN: &str = "perl -e 'my ($d, $n) = @ARGV; for (1..$n) { mkdir $d or die $!; chdir $d or die $! } open F, \">f\" or die; print F \"leaf\"' --";

/// Prints how deep the chain below the present folder is, and what the file at its end says.
const DEPTH: &str = "perl -e 'my ($d, $n) = (@ARGV, 0); while (chdir $d) { $n++ } open F, \"<f\" or die \"no file at $n\"; print \"$n \", <F>, \"\\n\"' --";

/// Thousands of folders within one another. The full depth: `IDPB_DEPTH=5000 cargo test --test e2e f16`.
#[test]
fn f16_a_tree_thousands_deep_is_made_copied_saved_changed_and_removed() {
    let depth = scaled("IDPB_DEPTH", 1000);
    let user = User::new();
    let text = format!(
        "FROM debian:bookworm AS made\nRUN mkdir /deep && cd /deep && {CHAIN} d {depth}\n\
         FROM debian:bookworm\nCOPY --from=made /deep /copied\n\
         RUN cd /copied && {DEPTH} d > /depth && perl -e 'chdir \"/copied\"; while (chdir \"d\") {{ chmod 0700, \".\" }}'\n\
         RUN cat /depth && rm -r /copied\n\
         FROM scratch\nCOPY --from=made /deep /copied\nCOPY --from=1 /depth /depth\n"
    );
    let id = user.build(&text, &["-t", "deep:v1", "--output", "type=local,dest=out"]).ok();
    assert_eq!(
        fs::read_to_string(user.work().join("out/depth")).unwrap(),
        format!("{depth} leaf\n")
    );
    let count = |folder: &str| user.script(&format!("cd {folder} && {DEPTH} d")).ok();
    assert_eq!(count("out/copied"), format!("{depth} leaf\n"));
    // Out and in again, and as the context, behind an ignore file that takes the end back.
    user.run(["save", "-o", "deep.tar", "deep:v1"]).ok();
    let other = User::new();
    let archive = user.work().join("deep.tar").display().to_string();
    other.run(["load", "-i", &archive]).ok();
    assert_eq!(other.run(["images", "--quiet", "--no-trunc", "deep"]).ok(), id);
    user.write("out/.dockerignore", "copied/d/d\n!**/f\n");
    user.write("out/Dockerfile", "FROM scratch\nCOPY copied /copied\n");
    user.run(["build", "--output", "type=tar,dest=again.tar", "out"]).ok();
    // An archive is added as what it holds.
    user.write("add/Dockerfile", "FROM scratch\nADD again.tar /\n");
    fs::rename(user.work().join("again.tar"), user.work().join("add/again.tar")).unwrap();
    user.run(["build", "--output", "type=local,dest=added", "add"]).ok();
    assert_eq!(count("added/copied"), format!("{depth} leaf\n"));
    // What is not needed any more goes, however deep it is.
    for name in ["deep:v1", "out", "add"] {
        drop(user.run(["rmi", name]));
    }
    user.run(["prune", "--cache-days", "0"]).ok();
    remove(&user);
}

/// Standard libraries remove by path, or by a descriptor a level.
fn remove(user: &User) {
    Done::of(Command::new("rm").arg("-rf").args(["out", "added"]).current_dir(user.work())).ok();
    Done::of(Command::new("rm").arg("-rf").arg(user.home())).ok();
}

/// A process leaves paths that no call takes, with names of any bytes, changes them and takes a part away.
#[test]
fn f16_a_process_may_leave_paths_that_no_call_takes() {
    for user in [User::new(), User::rootless()] {
        let long = "n".repeat(200);
        let odd = "$(printf '\\303\\050 \\n\\t\\\\\\377')";
        let text = format!(
            "FROM debian:bookworm AS made\nRUN mkdir /long && cd /long && {CHAIN} {long} 40\n\
             RUN cd /long && {DEPTH} {long} > /depth && mkdir /odd && echo odd > \"/odd/{odd}\"\n\
             RUN cd /long && for i in $(seq 30); do cd -P ./{long}; done && rm -r {long} && ls -A | wc -l > /left\n\
             FROM scratch\nCOPY --from=made /long /long\nCOPY --from=made /odd /odd\nCOPY --from=made /depth /left /\n"
        );
        user.build(&text, &["-t", "long:v1", "--output", "type=local,dest=out"]).ok();
        let read = |name: &str| fs::read_to_string(user.work().join("out").join(name)).unwrap();
        assert_eq!((read("depth"), read("left")), ("40 leaf\n".to_owned(), "0\n".to_owned()));
        let deep = "perl -e 'my ($d, $n) = (@ARGV, 0); while (chdir $d) { $n++ } print $n' --";
        let found = user.script(&format!("cd out/long && {deep} {long}")).ok();
        assert_eq!(found, "30");
        let names: Vec<_> = fs::read_dir(user.work().join("out/odd"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_encoded_bytes())
            .collect();
        assert_eq!(names, [b"\xc3\x28 \n\t\\\xff".to_vec()]);
        remove(&user);
    }
}

/// Owners that an ordinary user has no id for are named where a process would have to stand on them.
#[test]
fn f16_owners_without_an_id_here_are_named() {
    let user = User::rootless();
    user.script(
        "mkdir -p tree && echo x > tree/theirs && \
         tar --owner=70000 --group=70001 -C tree -cf tree.tar theirs",
    )
    .ok();
    let text = "FROM busybox\nADD tree.tar /\nRUN true\n";
    user.build(text, &[]).fails(1, &["theirs", "70000:70001", "/etc/subuid"]);
    // Who only copies needs no owner.
    let text = "FROM busybox\nADD tree.tar /\n";
    user.build(text, &["--output", "type=tar,dest=out.tar"]).ok();
    let listed = user.script("tar --numeric-owner -tvf out.tar theirs").ok();
    assert!(listed.contains("70000/70001"), "{listed}");
}
