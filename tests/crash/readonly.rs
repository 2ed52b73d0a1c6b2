//! F08: the store cannot be written to, from the start or from the middle of a build on.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use crate::{
    kills::noise,
    mounted::Mounted,
    place::{Disk, Place},
    support::{Done, busybox, registry::Registry},
    tally::{Finding, Tally},
};

/// Size of a file that is built, in bytes.
const FILE_BYTES: usize = 300_000;
/// Size of a disk, in bytes.
const DISK_BYTES: u64 = 64 << 20;
/// Exit code of what a machine cannot do.
const ENVIRONMENT: i32 = 8;

fn write_context(place: &Place, dockerfile: &str) {
    fs::create_dir_all(place.user.work().join("src")).unwrap();
    fs::write(place.user.work().join("src/noise"), noise(1, FILE_BYTES)).unwrap();
    place.user.write("Dockerfile", dockerfile);
}

#[test]
fn f08_read_only_store() {
    let mut tally = Tally::new("f08 read-only store");
    let (mounted, registry) = (Mounted::in_memory("size=64m"), Registry::plain());
    let place = Place::on(Disk::Whole, mounted.path().join("home"));
    let name = format!("127.0.0.1:{}/demo:v1", registry.port());
    write_context(&place, "FROM scratch\nCOPY src /src\n");
    place.run(&["build", "--quiet", "--tag", &name, "."]).ok();
    // Layers are compressed once, and that is remembered.
    place.run(&["push", "--quiet", "--insecure", &name]).ok();
    let believed = place.names();
    mounted.change("ro");
    let works: [&[&str]; 7] = [
        &["images"],
        &["inspect", &name],
        &["history", &name],
        &["df"],
        &["save", "--output", "saved.tar", &name],
        &["push", "--quiet", "--insecure", &name],
        &["prune", "--dry-run"],
    ];
    for words in works {
        tally.round();
        let done = tally.timed(|| place.run(words));
        if done.code != 0 {
            tally.find(Finding::Repaired, done.to_string());
        }
    }
    place.user.write("new", "FROM scratch\nCOPY Dockerfile /\n");
    let refused: [&[&str]; 6] = [
        &["build", "--file", "new", "--tag", "new:v1", "."],
        &["tag", &name, "new:v1"],
        &["rmi", &name],
        &["pull", "--insecure", &name],
        &["load", "--input", "saved.tar", "--tag", "new:v1"],
        &["prune"],
    ];
    for words in refused {
        tally.round();
        let done = place.run(words);
        let is_told = done.code == ENVIRONMENT && done.err.contains("Read-only file system");
        if !is_told || done.err.contains("panicked") {
            tally.find(Finding::Wrong, done.to_string());
        }
    }
    place.judge(&believed, &[], "it was read-only", &mut tally);
    mounted.change("rw");
    place.recover("it was writable again", &mut tally);
    place.judge(&believed, &[], "it was writable again", &mut tally);
    tally.end();
}

/// ext4 does so by itself when its disk fails (`errors=remount-ro`); `abort` asks it to.
#[test]
fn f08_store_that_becomes_read_only() {
    let mut tally = Tally::new("f08 store becomes read-only");
    let mounted = Mounted::ext4(DISK_BYTES);
    let place = Place::on(Disk::MayTear, mounted.path().join("home"));
    let base = busybox();
    write_context(&place, "FROM scratch\nCOPY src /src\n");
    place.run(&["build", "--quiet", "--tag", "kept:v1", "."]).ok();
    let believed = place.names();
    // It ends when it cannot write any more.
    let text =
        "FROM busybox\nRUN echo star''ted; while echo x > /x; do sleep 0.1; done\nCOPY src /s\n";
    place.user.write("Dockerfile", text);
    let mut command = place.words(&["build", "--progress", "plain", "--tag", "new:v1"]);
    command.args(["--build-context", &base, "."]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut said: Vec<_> = lines.by_ref().take_while(|line| !line.contains("started")).collect();
    mounted.change("abort");
    said.extend(lines);
    let code = child.wait().unwrap().code();
    let said = said.join("\n");
    tally.round();
    let is_told = said.contains("Read-only file system") || said.contains("Input/output error");
    if code == Some(0) || code.is_none() || !is_told || said.contains("panicked") {
        tally.find(Finding::Wrong, format!("the build ended with {code:?}:\n{said}"));
    }
    let looks: [&[&str]; 3] = [&["images"], &["inspect", "kept:v1"], &["history", "kept:v1"]];
    for words in looks {
        let done = tally.timed(|| place.run(words));
        if done.code != 0 {
            tally.find(Finding::Repaired, done.to_string());
        }
    }
    mounted.restart();
    place.recover("it was mounted again", &mut tally);
    place.judge(&believed, &[], "it was mounted again", &mut tally);
    let mut again = place.words(&["build", "--quiet", "--file", "again", "--tag", "kept:v2", "."]);
    place.user.write("again", "FROM scratch\nCOPY src /again\n");
    let again = Done::of(&mut again);
    if again.code != 0 {
        tally.find(Finding::Repaired, again.to_string());
    }
    place.is_sound("a build on what the disk has", &mut tally);
    tally.end();
}
