//! F01: the tool is killed as it is about to make a system call, one after another of all that it makes. F05: a call is
//! refused instead, and the tool fails or does what it says, and never claims what is not so.
//!
//! A round: the scene is set; its command meets its fate; another command looks; the laws are checked; the command is
//! given again and must do what it says. Every few rounds a collection follows, which must leave nothing behind.

use std::{fs, process::Command, time::Instant};

use idpbuilder::oci::Digest;

use crate::{
    place::{Names, Place},
    strace::{self, Point},
    support::{Done, registry::Registry},
    tags::{await_rest, judge_tag, tag_of},
    tally::{Finding, Tally, share},
};

/// Kills in the normal suite, of all scenes together.
const KILLS: u64 = 200;
/// Refused calls in the normal suite, of all scenes together.
const REFUSALS: u64 = 80;
/// Calls that are refused: those that change or read files. What becomes of refused connections is tried elsewhere.
const REFUSED: &[&str] = &[
    "chmod",
    "fchmod",
    "fdatasync",
    "flock",
    "fsync",
    "ftruncate",
    "getdents64",
    "lseek",
    "mkdir",
    "mkdirat",
    "openat",
    "pread64",
    "pwrite64",
    "read",
    "rename",
    "renameat2",
    "rmdir",
    "statx",
    "syncfs",
    "unlink",
    "unlinkat",
    "write",
    "writev",
];
/// How calls are refused, in turn.
const ERRORS: [&str; 3] = ["EIO", "ENOSPC", "EINTR"];
/// Exit codes of a tool that failed, as the README lists them, but for those of our own bugs and of interruption.
const CODES: &[i32] = &[1, 2, 3, 4, 5, 6, 8];
/// A collection follows every so many rounds: the others stand on what is left.
const PRUNE_EVERY: u64 = 2;
/// Size of the file that is new in every round, in bytes.
const FILE_BYTES: usize = 300_000;

/// What is killed, and around it.
struct Scene<'a> {
    what: &'a str,
    /// Of a hundred kills, how many are this scene's.
    share: u64,
    place: &'a Place,
    /// Makes what the command of a round works on.
    set: &'a dyn Fn(u64),
    command: &'a dyn Fn(u64) -> Command,
    /// Names of images that it may change.
    touches: &'a dyn Fn(u64) -> Vec<String>,
    /// More to look at, after a fault and after the command was given again.
    look: &'a dyn Fn(u64, Ended, &mut Tally),
}

/// How the command of a round ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Without a word, or with one of failure: it may have done what it should, or not.
    Unsaid,
    /// Well.
    Done,
}

/// What is done to the command of a scene.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Refuse,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "f01 kill",
            Self::Refuse => "f05 refuse",
        }
    }

    /// Rounds in the normal suite, of all scenes together.
    fn rounds(self) -> u64 {
        match self {
            Self::Kill => KILLS,
            Self::Refuse => REFUSALS,
        }
    }

    fn points(self, command: &Command) -> Vec<Point> {
        match self {
            Self::Kill => strace::points(command),
            Self::Refuse => strace::points_of(command, REFUSED, strace::is_of_file),
        }
    }

    /// Runs the command into it; whether it came to that, and how the command ended.
    fn strike(
        self,
        command: &Command,
        point: &Point,
        round: u64,
        tally: &mut Tally,
    ) -> (bool, Ended) {
        let since = Instant::now();
        if self == Self::Kill {
            let done = Done::of(&mut strace::killed_at(command, point));
            let in_time = since.elapsed() < strace::LONGEST;
            return (in_time && done.code == strace::KILLED, Ended::Unsaid);
        }
        let errno = ERRORS[usize::try_from(round).unwrap() % ERRORS.len()];
        // No kernel refuses what is written to an eventfd.
        let Some(done) = strace::refused_at(command, point, errno) else {
            return (false, Ended::Unsaid);
        };
        if since.elapsed() >= strace::LONGEST {
            tally.find(Finding::Wrong, format!("{point} {errno}: it hangs: {done}"));
        }
        if done.code == 0 {
            return (true, Ended::Done);
        }
        // Of what cannot be written, nothing can be seen.
        let is_told = !done.err.is_empty() || point.call.starts_with("write");
        if !CODES.contains(&done.code) || !is_told || done.err.contains("panicked") {
            tally.find(Finding::Wrong, format!("{point} {errno}: {done}"));
        }
        (true, Ended::Unsaid)
    }
}

impl Scene<'_> {
    /// All rounds of this scene.
    fn meet(&self, fault: Fault) {
        let wanted = share(fault.rounds(), self.share);
        (self.set)(0);
        let points = fault.points(&(self.command)(0));
        let case = format!("{} {} ({} points)", fault.name(), self.what, points.len());
        let mut tally = Tally::new(case);
        let order = spread(points.len(), usize::try_from(wanted).unwrap());
        // Which thread comes how far differs: a point may be missed, and the next one is taken.
        for (round, point) in (1..=wanted * 3).zip(order.map(|index| &points[index])) {
            if tally.rounds() == wanted {
                break;
            }
            self.round(fault, round, point, &mut tally);
        }
        if tally.rounds() < wanted {
            tally.find(Finding::Wrong, format!("{} of {wanted} rounds", tally.rounds()));
        }
        self.place.empty(&mut tally);
        tally.end();
    }

    fn round(&self, fault: Fault, round: u64, point: &Point, tally: &mut Tally) {
        (self.set)(round);
        let (place, touches) = (self.place, (self.touches)(round));
        let believed = place.names();
        let after = format!("round {round}, {point}");
        let (is_struck, ended) = fault.strike(&(self.command)(round), point, round, tally);
        place.recover(&after, tally);
        place.judge(&believed, &touches, &after, tally);
        if is_struck {
            tally.round();
            (self.look)(round, ended, tally);
        }
        let again = Done::of(&mut (self.command)(round));
        if again.code != 0 {
            tally.find(Finding::Repaired, format!("after {after}: {again}"));
        }
        place.judge(&believed, &touches, &format!("{after} and once more"), tally);
        if ended != Ended::Done {
            (self.look)(round, Ended::Done, tally);
        }
        if round.is_multiple_of(PRUNE_EVERY) {
            place.prune(&[], &after, tally);
        }
    }
}

/// Indices below `len` again and again, the first `wanted` of them spread over all.
fn spread(len: usize, wanted: usize) -> impl Iterator<Item = usize> {
    let step = len.checked_div(wanted).unwrap_or(1).max(1);
    (0..step).cycle().flat_map(move |offset| (offset..len).step_by(step))
}

/// Bytes that differ from round to round.
pub(crate) fn noise(round: u64, len: usize) -> Vec<u8> {
    let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

/// A folder to build in, with a file that is new.
fn write_context(place: &Place, round: u64) {
    fs::create_dir_all(place.user.work().join("src")).unwrap();
    fs::write(place.user.work().join("src/noise"), noise(round, FILE_BYTES)).unwrap();
    place.user.write("Dockerfile", "FROM scratch\nCOPY src /src\n");
}

/// Builds an image of one new file.
fn build(place: &Place, round: u64, name: &str) {
    write_context(place, round);
    place.run(&["build", "--quiet", "--tag", name, "."]).ok();
}

/// Takes names away, and with them all that was kept for them.
fn forget(place: &Place, names: &[String]) {
    for name in names.iter().filter(|name| place.names().contains_key(*name)) {
        place.run(&["rmi", name]).ok();
    }
    place.run(&["prune", "--cache-days", "0"]).ok();
}

/// The name in full of an image without a registry.
fn full(name: &str) -> String {
    format!("docker.io/library/{name}")
}

fn nothing_more(_: u64, _: Ended, _: &mut Tally) {}

/// Looks for the names that the command must have given when it is done.
fn must_have<'a>(
    place: &'a Place,
    names: &'a dyn Fn(u64) -> Vec<String>,
) -> impl Fn(u64, Ended, &mut Tally) + 'a {
    |round, ended, tally| {
        let now = place.names();
        let missing = names(round).into_iter().filter(|name| !now.contains_key(name));
        for name in missing.filter(|_| ended == Ended::Done) {
            tally.find(Finding::Lost, format!("{name} was acknowledged and is not there"));
        }
    }
}

#[test]
fn f01_kill_build() {
    build_scene(Fault::Kill);
}

#[test]
fn f05_refuse_build() {
    build_scene(Fault::Refuse);
}

fn build_scene(fault: Fault) {
    let (place, mirror) = (Place::in_memory(), Registry::mirror());
    build(&place, 0, "kept:v1");
    let name = |round| vec![full(&format!("built:v{}", round % 3))];
    Scene {
        what: "build",
        share: 30,
        place: &place,
        set: &|round| {
            // The base is fetched anew every other time.
            if round % 2 == 0 {
                forget(&place, &[0, 1, 2].map(name).concat());
            }
            write_context(&place, round);
            let text = "FROM busybox\nCOPY src /src\nRUN --mount=type=cache,target=/c \
                cp /src/noise /c/noise && cat /c/noise /c/noise > /twice && rm /bin/vi\n";
            place.user.write("Dockerfile", text);
        },
        command: &|round| {
            let (tag, mirror) = (name(round).remove(0), mirror.as_mirror());
            place.words(&["build", "--quiet", "--tag", &tag, "--mirror", &mirror, "."])
        },
        touches: &name,
        look: &must_have(&place, &name),
    }
    .meet(fault);
}

#[test]
fn f01_kill_first_use() {
    let place = Place::in_memory();
    let name = |_| vec![full("first:v1")];
    Scene {
        what: "first use",
        share: 10,
        place: &place,
        set: &|round| {
            if place.home().exists() {
                fs::remove_dir_all(place.home()).unwrap();
            }
            place.run(&["images"]).ok();
            fs::remove_dir_all(place.home()).unwrap();
            write_context(&place, round);
        },
        command: &|_| place.words(&["build", "--quiet", "--tag", "first:v1", "."]),
        touches: &name,
        look: &must_have(&place, &name),
    }
    .meet(Fault::Kill);
}

/// A registry, and a place that may push there without a word on trust.
fn with_registry() -> (Place, Registry, String) {
    let (place, registry) = (Place::in_memory(), Registry::plain());
    let address = format!("127.0.0.1:{}", registry.port());
    (place, registry, address)
}

#[test]
fn f01_kill_pull() {
    pull_scene(Fault::Kill);
}

#[test]
fn f05_refuse_pull() {
    pull_scene(Fault::Refuse);
}

fn pull_scene(fault: Fault) {
    const IMAGES: u64 = 3;
    let (place, _registry, address) = with_registry();
    let name = |round: u64| vec![format!("{address}/pulled:v{}", round % IMAGES)];
    for n in 0..IMAGES {
        build(&place, n, &name(n)[0]);
        place.run(&["push", "--quiet", "--insecure", &name(n)[0]]).ok();
    }
    Scene {
        what: "pull",
        share: 12,
        place: &place,
        set: &|round| forget(&place, &name(round)),
        command: &|round| place.words(&["pull", "--quiet", "--insecure", &name(round)[0]]),
        touches: &name,
        look: &must_have(&place, &name),
    }
    .meet(fault);
}

#[test]
fn f01_kill_load() {
    load_scene(Fault::Kill);
}

#[test]
fn f05_refuse_load() {
    load_scene(Fault::Refuse);
}

fn load_scene(fault: Fault) {
    const IMAGES: u64 = 3;
    let place = Place::in_memory();
    let name = |round: u64| vec![full(&format!("loaded:v{}", round % IMAGES))];
    let file = |round: u64| format!("{}.tar", round % IMAGES);
    for n in 0..IMAGES {
        build(&place, n, &name(n)[0]);
        place.run(&["save", "--output", &file(n), &name(n)[0]]).ok();
    }
    Scene {
        what: "load",
        share: 12,
        place: &place,
        set: &|round| forget(&place, &name(round)),
        command: &|round| place.words(&["load", "--quiet", "--input", &file(round)]),
        touches: &name,
        look: &must_have(&place, &name),
    }
    .meet(fault);
}

#[test]
fn f01_kill_push() {
    push_scene(Fault::Kill);
}

#[test]
fn f05_refuse_push() {
    push_scene(Fault::Refuse);
}

fn push_scene(fault: Fault) {
    let (place, _registry, address) = with_registry();
    let name = format!("{address}/crash/pushed:v1");
    let judge = |allowed: &[Option<Digest>], tally: &mut Tally| {
        judge_tag((&address, "crash/pushed", "v1"), allowed, tally);
    };
    let before = std::cell::Cell::new(None);
    Scene {
        what: "push",
        share: 12,
        place: &place,
        set: &|round| {
            before.set(tag_of(&address, "crash/pushed", "v1").map(|(digest, _)| digest));
            build(&place, round, &name);
        },
        command: &|_| place.words(&["push", "--quiet", "--insecure", &name]),
        touches: &|_| Vec::new(),
        look: &|_, ended, tally| {
            await_rest(&address);
            // A compressed layer has another manifest than the one in the store.
            let now = tag_of(&address, "crash/pushed", "v1").map(|(digest, _)| digest);
            let is_new = now != before.get();
            match ended {
                Ended::Unsaid => judge(&[before.get(), now.filter(|_| is_new)], tally),
                Ended::Done if is_new => judge(&[now], tally),
                Ended::Done => {
                    tally.find(Finding::Lost, "a push was acknowledged and moved no tag");
                }
            }
        },
    }
    .meet(fault);
}

#[test]
fn f01_kill_run() {
    let (place, _registry, address) = with_registry();
    let tags = [("one", "a"), ("one", "b"), ("two", "a"), ("two", "b")];
    let names: Vec<_> =
        tags.iter().map(|(image, tag)| format!("{address}/team/{image}:{tag}")).collect();
    let told = || -> Names {
        let all = tags.iter().zip(&names);
        let found = all.filter_map(|((image, tag), name)| {
            Some((name.clone(), tag_of(&address, &format!("team/{image}"), tag)?.0))
        });
        found.collect()
    };
    let before = std::cell::RefCell::new(Names::new());
    Scene {
        what: "run, several tags",
        share: 12,
        place: &place,
        set: &|round| {
            before.replace(told());
            write_context(&place, round);
            let text = format!(
                "registry there \"{address}\" {{ namespace team; tls insecure-skip-verify; }}\n\
                 image one {{ tags a b; push there }}\n\
                 image two {{ dockerfile inline=\"FROM scratch\\nENV ROUND={round}\\n\"; tags a b; push there }}\n",
            );
            place.user.write("idpbuilder.kdl", &text);
        },
        // One tag after another: the registry's links are no matter of ours.
        command: &|_| place.words(&["run", "--quiet", "--jobs", "1"]),
        touches: &|_| names.clone(),
        look: &|_, ended, tally| {
            await_rest(&address);
            let (was, now) = (before.borrow(), told());
            for ((image, tag), name) in tags.iter().zip(&names) {
                let (was, now) = (was.get(name).copied(), now.get(name).copied());
                if ended == Ended::Done && was == now {
                    tally.find(Finding::Lost, format!("{name} was acknowledged and did not move"));
                }
                judge_tag((&address, &format!("team/{image}"), tag), &[was, now], tally);
            }
            // All tags of one image are one manifest when a run is done.
            if ended == Ended::Done && now[&names[0]] != now[&names[1]] {
                tally.find(Finding::Lost, "two tags of one image differ");
            }
        },
    }
    .meet(Fault::Kill);
}

#[test]
fn f01_kill_tag() {
    tag_scene(Fault::Kill);
}

#[test]
fn f05_refuse_tag() {
    tag_scene(Fault::Refuse);
}

fn tag_scene(fault: Fault) {
    let place = Place::in_memory();
    build(&place, 0, "one:v1");
    build(&place, 1, "two:v1");
    Scene {
        what: "tag",
        share: 6,
        place: &place,
        set: &|_| {},
        command: &|round| {
            place.words(&["tag", ["one:v1", "two:v1"][(round % 2) as usize], "moved:v1"])
        },
        touches: &|_| vec![full("moved:v1")],
        look: &|round, ended, tally| {
            let names = place.names();
            let of = |name: &str| names.get(&full(name)).copied();
            let (one, two, moved) = (of("one:v1"), of("two:v1"), of("moved:v1"));
            let wanted = [one, two][(round % 2) as usize];
            if ended == Ended::Done && moved != wanted || moved != one && moved != two {
                tally.find(Finding::Lost, format!("moved:v1 is {moved:?}"));
            }
        },
    }
    .meet(fault);
}

#[test]
fn f01_kill_rmi() {
    rmi_scene(Fault::Kill);
}

#[test]
fn f05_refuse_rmi() {
    rmi_scene(Fault::Refuse);
}

fn rmi_scene(fault: Fault) {
    let place = Place::in_memory();
    build(&place, 0, "kept:v1");
    Scene {
        what: "rmi",
        share: 6,
        place: &place,
        set: &|_| drop(place.run(&["tag", "kept:v1", "gone:v1"]).ok()),
        // A kill may have come after the name went: then nothing is left to be done.
        command: &|_| {
            let is_there = place.names().contains_key(&full("gone:v1"));
            place.words(if is_there { &["rmi", "gone:v1"] } else { &["images"] })
        },
        touches: &|_| vec![full("gone:v1")],
        look: &|_, ended, tally| {
            if ended == Ended::Done && place.names().contains_key(&full("gone:v1")) {
                tally.find(Finding::Lost, "the removal of gone:v1 was acknowledged");
            }
        },
    }
    .meet(fault);
}

#[test]
fn f01_kill_prune() {
    prune_scene(Fault::Kill);
}

#[test]
fn f05_refuse_prune() {
    prune_scene(Fault::Refuse);
}

fn prune_scene(fault: Fault) {
    let (place, mirror) = (Place::in_memory(), Registry::mirror());
    build(&place, 0, "kept:v1");
    Scene {
        what: "prune",
        share: 10,
        place: &place,
        set: &|round| {
            write_context(&place, round);
            let text = "FROM busybox\nCOPY src /src\nRUN mkdir -p /a/b && cp /src/noise /a/b/c\n";
            place.user.write("Dockerfile", text);
            let mirror = mirror.as_mirror();
            place.run(&["build", "--quiet", "--tag", "gone:v1", "--mirror", &mirror, "."]).ok();
            place.run(&["rmi", "gone:v1"]).ok();
        },
        command: &|_| place.words(&["prune", "--cache-days", "0"]),
        touches: &|_| Vec::new(),
        look: &nothing_more,
    }
    .meet(fault);
}
