//! F03: the disk of the store is full, at every size. F03 too: there is no room for one more file.
//!
//! A round: the disk gets so much more room than what is on it; the verb is run; when it fails, it says why and what
//! helps, and what helps does. What was there before is there afterwards, and nothing else is.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::Command,
};

use crate::{
    kills::noise,
    mounted::Mounted,
    place::{Disk, Place},
    support::{Done, busybox, registry::Registry},
    tally::{Finding, Tally},
};

const MIB: u64 = 1 << 20;
/// Room to set a scene in.
const ROOMY: &str = "size=256m,nr_inodes=100000";
/// What may be left of a verb that failed, in bytes.
const LEFT_MAX: u64 = MIB;
/// Size of the files of an image, in bytes.
const FILE_BYTES: usize = 3 << 20;
/// Steps in which the number of files grows.
const FILES_STEP: u64 = 15;
/// Most rounds of a sweep, after which a verb must have had enough.
const ROUNDS_MAX: u64 = 64;
/// Exit code of what a machine cannot do.
const ENVIRONMENT: i32 = 8;

/// What is swept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Bytes,
    Files,
}

fn write_context(place: &Place) {
    fs::create_dir_all(place.user.work().join("src")).unwrap();
    for n in 0..2 {
        let file = place.user.work().join(format!("src/{n}"));
        fs::write(file, noise(n, FILE_BYTES)).unwrap();
    }
    let text = "FROM busybox\nCOPY src/0 /0\nRUN for n in 1 2 3 4; do mkdir $n && cp 0 $n/0 || exit 1; done\nCOPY src/1 /1\n";
    place.user.write("Dockerfile", text);
}

fn build(place: &Place, name: &str) -> Command {
    let mut command = place.words(&["build", "--quiet", "--tag", name]);
    let base = busybox();
    command.args(["--build-context", &base, "."]);
    command
}

/// Gives more and more room to a command until it is enough.
fn sweep(case: &str, room: Room, mounted: &Mounted, place: &Place, command: &dyn Fn() -> Command) {
    let mut tally = Tally::new(case);
    place.prune(&["--cache-days", "0"], "the scene was set", &mut tally);
    let step = if room == Room::Bytes { MIB } else { FILES_STEP };
    // Without a file more, not even the store can be opened for writing.
    for more in (0..ROUNDS_MAX).map(|round| round * step) {
        mounted.change(ROOMY);
        let (believed, before) = (place.names(), mounted.used());
        mounted.change(&match room {
            Room::Bytes => format!("size={}", before.bytes + more),
            Room::Files => format!("nr_inodes={}", before.files + more),
        });
        let after = format!("{more} more");
        let done = Done::of(&mut command());
        tally.round();
        if done.code == 0 {
            mounted.change(ROOMY);
            place.is_sound(&after, &mut tally);
            place.empty(&mut tally);
            return tally.end();
        }
        explains(&done, room, &after, &mut tally);
        let left = mounted.used().bytes.saturating_sub(before.bytes);
        if left > LEFT_MAX {
            tally.find(Finding::Wrong, format!("with {after}, {left} bytes are left behind"));
        }
        place.recover(&after, &mut tally);
        place.judge(&believed, &[], &after, &mut tally);
        place.prune(&[], &after, &mut tally);
    }
    tally.find(Finding::Wrong, "no room was enough");
    tally.end();
}

/// A failure names the reason, how much room there is, and the way out.
fn explains(done: &Done, room: Room, after: &str, tally: &mut Tally) {
    let amount = if room == Room::Bytes { " are free" } else { " files" };
    let is_told = ["no space left", "prune", amount].iter().all(|word| done.err.contains(word));
    if done.code != ENVIRONMENT || !is_told || done.err.contains("panicked") {
        tally.find(Finding::Wrong, format!("with {after}: {done}"));
    }
}

fn swept(case: &str, room: Room, set: &dyn Fn(&Place), command: &dyn Fn(&Place) -> Command) {
    let mounted = Mounted::in_memory(ROOMY);
    let place = Place::on(Disk::Whole, mounted.path().join("home"));
    write_context(&place);
    place.user.write("old", "FROM scratch\nCOPY old /\n");
    place.run(&["build", "--quiet", "--tag", "old:v1", "--file", "old", "."]).ok();
    set(&place);
    sweep(case, room, &mounted, &place, &|| command(&place));
}

#[test]
fn f03_full_disk_build() {
    swept("f03 full disk, build", Room::Bytes, &|_| {}, &|place| build(place, "new:v1"));
}

#[test]
fn f03_no_more_files_build() {
    swept("f03 no more files, build", Room::Files, &|_| {}, &|place| build(place, "new:v1"));
}

#[test]
fn f03_full_disk_load() {
    let set = |place: &Place| {
        Done::of(&mut build(place, "new:v1")).ok();
        place.run(&["save", "--output", "new.tar", "new:v1"]).ok();
        place.run(&["rmi", "new:v1"]).ok();
    };
    let command = |place: &Place| place.words(&["load", "--quiet", "--input", "new.tar"]);
    swept("f03 full disk, load", Room::Bytes, &set, &command);
}

#[test]
fn f03_full_disk_pull() {
    let registry = Registry::plain();
    let name = format!("127.0.0.1:{}/new:v1", registry.port());
    let set = |place: &Place| {
        Done::of(&mut build(place, &name)).ok();
        place.run(&["push", "--quiet", "--insecure", &name]).ok();
        place.run(&["rmi", &name]).ok();
    };
    let command = |place: &Place| place.words(&["pull", "--quiet", "--insecure", &name]);
    swept("f03 full disk, pull", Room::Bytes, &set, &command);
}

/// Writes until nothing can be written any more.
fn fill(folder: &Path) {
    for n in 0.. {
        let Ok(mut file) = File::create(folder.join(format!("filler{n}"))) else { return };
        while file.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
        drop(file.sync_all());
        if n > 0 && file.metadata().unwrap().len() == 0 {
            return;
        }
    }
}

/// What a full disk's owner is told to do works on a disk without room for a byte or a file.
#[test]
fn f03_prune_without_any_room() {
    let mut tally = Tally::new("f03 prune without any room");
    for mounted in [Mounted::in_memory("size=64m,nr_inodes=600"), Mounted::ext4(64 * MIB)] {
        let place = Place::on(Disk::Whole, mounted.path().join("home"));
        write_context(&place);
        place.user.write("old", "FROM scratch\nCOPY old /\n");
        place.run(&["build", "--quiet", "--tag", "old:v1", "--file", "old", "."]).ok();
        let believed = place.names();
        Done::of(&mut build(&place, "gone:v1")).ok();
        place.run(&["rmi", "gone:v1"]).ok();
        // A process that was killed leaves these; nobody else is there to remove them.
        let abandoned = place.root().join("tmp/0123456789abcdef");
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join("0"), [1; 5000]).unwrap();
        fill(mounted.path());
        let before = mounted.used();
        tally.round();
        place.recover("the disk was filled", &mut tally);
        place.prune(&["--cache-days", "0"], "the disk was filled", &mut tally);
        place.judge(&believed, &[], "the disk was filled", &mut tally);
        let freed = before.bytes.saturating_sub(mounted.used().bytes);
        if freed < 2 * FILE_BYTES as u64 {
            tally.find(Finding::Wrong, format!("prune freed {freed} bytes"));
        }
    }
    tally.end();
}
