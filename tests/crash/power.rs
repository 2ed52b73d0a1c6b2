//! F02: the power of the store's disk is cut while the tool works, and what the disk has is looked at.
//!
//! A round: a disk of ext4 is mounted; a worker builds, names, pushes, pulls, loads and removes, and writes down what
//! was acknowledged; at some moment the file system is shut down without its journal being written; it is mounted again,
//! and the laws are checked. The tool believes to be in another boot in each round, as it would be.

use std::{fs, path::PathBuf, thread, time::Duration};

use crate::{
    kills::noise,
    mounted::Mounted,
    place::{Disk, Names, Place},
    support::{Done, Folder, busybox, registry::Registry},
    tally::{Finding, Tally, rounds},
};

/// Cuts in the normal suite.
const CUTS: u64 = 10;
/// Size of the disk, in bytes.
const DISK_BYTES: u64 = 128 << 20;
/// How large the store may be when a round begins: hundreds of them leave more cached steps than the disk can hold.
const STORE_MAX: &str = "48m";
/// Size of a file that is built, in bytes.
const FILE_BYTES: usize = 200_000;
/// The power is cut at moments up to this one, after the first command.
const CUT_MS_MAX: u64 = 1500;
/// Fraction of the golden ratio, in 2^16: moments that are spread, however many there are.
const GOLDEN: u64 = 40_503;
/// Names in use at once.
const NAMES: u64 = 4;

/// The tool, in a boot of its own.
struct Booted<'a> {
    place: &'a Place,
    boot: &'a PathBuf,
}

impl Booted<'_> {
    fn run(&self, words: &[&str]) -> Done {
        let idp = self.place.words(words);
        let mut command = self.place.user.command("unshare");
        command.args(["--mount", "sh", "-c"]);
        command.arg("mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"");
        command.arg(self.boot).arg(idp.get_program()).args(idp.get_args());
        command.env("IDPBUILDER_HOME", self.place.home());
        Done::of(&mut command)
    }
}

/// Works until the disk fails; what was acknowledged, and the name that was being changed.
fn work(tool: &Booted<'_>, registry: &str, round: u64, mut names: Names) -> (Names, Vec<String>) {
    let base = busybox();
    for n in 0.. {
        let name = format!("docker.io/library/cut:v{}", n % NAMES);
        let other = format!("docker.io/library/other:v{}", n % NAMES);
        let there = format!("{registry}/cut:v{}", n % NAMES);
        let file = tool.place.user.work().join("src/noise");
        fs::write(file, noise(round << 32 | n, FILE_BYTES)).unwrap();
        let build = ["build", "--quiet", "--tag", &name, "--build-context", &base, "."];
        let steps: [(&str, &[&str]); 7] = [
            (&name, &build),
            (&other, &["tag", &name, &other]),
            (&there, &["tag", &name, &there]),
            ("", &["push", "--quiet", "--insecure", &there]),
            (&there, &["rmi", &there]),
            (&there, &["pull", "--quiet", "--insecure", &there]),
            (&other, &["rmi", &other]),
        ];
        for (changed, words) in steps {
            if tool.run(words).code != 0 {
                return (names, vec![changed.to_owned()]);
            }
            // What a build or a pull has made is asked for at once: later nobody knows.
            match tool.run(&["images", "--format", "{{.Image}} {{.Digest}}"]) {
                said if said.code == 0 => names = parse(&said.out),
                _ => return (names, vec![changed.to_owned()]),
            }
        }
    }
    unreachable!("the disk fails in the end")
}

fn parse(told: &str) -> Names {
    let images = told.lines().filter_map(|line| line.split_once(' '));
    let full = |name: &str| match name.contains('/') {
        true => name.to_owned(),
        false => format!("docker.io/library/{name}"),
    };
    images.map(|(name, digest)| (full(name), digest.parse().unwrap())).collect()
}

/// A file with the id of a boot that never was.
fn boot(folder: &Folder, round: u64) -> PathBuf {
    let file = folder.path().join("boot");
    fs::write(&file, format!("00000000-0000-4000-8000-{round:012x}\n")).unwrap();
    file
}

#[test]
fn f02_power_cut() {
    let (mounted, registry) = (Mounted::ext4(DISK_BYTES), Registry::plain());
    let place = Place::on(Disk::MayTear, mounted.path().join("home"));
    let address = format!("127.0.0.1:{}", registry.port());
    fs::create_dir_all(place.user.work().join("src")).unwrap();
    let text = "FROM busybox\nCOPY src /src\nRUN cp /src/noise /copy && rm /bin/vi\n";
    place.user.write("Dockerfile", text);
    let boots = Folder::new();
    let mut tally = Tally::new("f02 power cut");
    let mut names = Names::new();
    for round in 0..rounds(CUTS) {
        let boot = boot(&boots, round);
        let tool = Booted { place: &place, boot: &boot };
        let moment = Duration::from_millis((round * GOLDEN % (1 << 16) * CUT_MS_MAX) >> 16);
        let cutter = mounted.cutter();
        let (believed, open) = thread::scope(|scope| {
            let worker = scope.spawn(|| work(&tool, &address, round, names.clone()));
            thread::sleep(moment);
            cutter.cut();
            worker.join().unwrap()
        });
        mounted.restart();
        let after = format!("a cut in round {round}, at {} ms", moment.as_millis());
        tally.round();
        place.recover(&after, &mut tally);
        place.judge(&believed, &open, &after, &mut tally);
        for name in place.names().keys() {
            let file = place.user.work().join("saved.tar");
            let words = ["save", "--output", file.to_str().unwrap(), name];
            let saved = tool.run(&words);
            if saved.code != 0 {
                tally.find(Finding::Dangling, format!("after {after}: {saved}"));
            }
        }
        place.prune(&["--max-size", STORE_MAX], &after, &mut tally);
        names = place.names();
    }
    place.empty(&mut tally);
    tally.end();
}
