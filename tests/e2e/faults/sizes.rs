//! F13 to F15: logs, numbers of files and layers without end, in memory that does not grow with them (guarantee 5).

use std::{fs, io::Read as _, process::Stdio};

use super::{peak_of, scaled};
use crate::support::{Done, User, base_contexts, registry::Registry};

/// More memory than with a short log, in KiB.
const LOG_GROWTH_MAX: u64 = 16 << 10;

/// Memory for any number of files, in KiB.
const FILES_PEAK_MAX: u64 = 200 << 10;

/// Memory for each of many files, in bytes: about 250 of a million, most of it for paths and digests; of fewer, what pages
/// of one run or another of the allocator differ by counts too. Every structure of its own with all paths takes 200 more.
const FILE_BYTES_MAX: u64 = 1000;

/// Memory for a layer of any size, in KiB.
const LAYER_PEAK_MAX: u64 = 128 << 10;

fn words(flags: &[&str]) -> Vec<String> {
    let flags = flags.iter().map(|flag| (*flag).to_owned());
    flags.chain(base_contexts()).chain([".".to_owned()]).collect()
}

/// Peak memory of a build whose RUN prints something.
fn peak_of_run(user: &User, run: &str) -> u64 {
    user.write("Dockerfile", &format!("FROM debian:bookworm\nRUN {run}\n"));
    let (peak, seconds) = peak_of(user, &words(&["build", "--progress", "plain", "--no-cache"]));
    println!("{peak} KiB, {seconds:.1} s: {run}");
    peak
}

fn log_sizes(user: &User) -> Vec<u64> {
    let entries = fs::read_dir(user.home().join("logs")).unwrap();
    entries.map(|entry| entry.unwrap().metadata().unwrap().len()).collect()
}

/// The full size: `IDPB_LOG_MIB=10240 cargo test --test e2e f13`.
#[test]
fn f13_whatever_is_printed_takes_no_memory_and_is_kept_whole() {
    let mib = scaled("IDPB_LOG_MIB", 1024);
    let user = User::new();
    let short = peak_of_run(&user, "echo short");
    for (run, bytes) in [
        // One line.
        (format!("head -c {} /dev/zero", mib << 20), mib << 20),
        // Lines of eight bytes, each of which is shown; a 64th of the size, for debug binaries show slowly.
        (format!("yes 1234567 | head -c {}", mib << 14), mib << 14),
        // No text at all.
        (format!("head -c {} /dev/urandom", mib << 14), mib << 14),
    ] {
        let peak = peak_of_run(&user, &run);
        assert!(peak < short + LOG_GROWTH_MAX, "{run}: {short} KiB, then {peak} KiB");
        assert!(log_sizes(&user).contains(&bytes), "{run}: {:?}", log_sizes(&user));
        fs::remove_dir_all(user.home().join("logs")).unwrap();
    }
}

#[test]
fn f13_who_does_not_read_makes_the_process_wait_and_the_end_is_told() {
    let user = User::new();
    let text = "FROM busybox\nRUN seq 1 1000000; exit 3\n";
    user.write("Dockerfile", text);
    let mut command = user.idp();
    command.args(words(&["build", "--progress", "plain"])).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let peak = || -> u64 {
        let status = fs::read_to_string(&status).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // Nobody reads until the log has stopped growing: the pipe is full, and the process waits.
    let logs = || log_sizes(&user).into_iter().sum::<u64>();
    let mut said = child.stderr.take().unwrap();
    let mut first = [0; 1];
    said.read_exact(&mut first).unwrap();
    let mut before = (u64::MAX, 0);
    while before.0 != before.1 || before.1 == 0 {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let size = if user.home().join("logs").exists() { logs() } else { 0 };
        before = (before.1, size);
    }
    let waiting = peak();
    let mut rest = Vec::new();
    said.read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(waiting < 64 << 10, "{waiting} KiB while nobody reads");
    let text = String::from_utf8(rest).unwrap();
    // All of it went by; the last lines are told again with the failure.
    let after = text.split("last lines").nth(1).unwrap_or_default();
    assert!(after.contains("999999") && after.contains("1000000"), "no tail: {after}");
    assert!(logs() > 6_000_000, "{}", logs());
}

/// A folder of empty files, a thousand in each folder.
fn make_files(user: &User, count: u64) {
    let script = "import os, sys
count = int(sys.argv[1])
for folder in range(count // 1000):
    os.makedirs(f'many/{folder}')
    there = os.open(f'many/{folder}', os.O_RDONLY)
    for name in range(1000):
        os.close(os.open(str(name), os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=there))
    os.close(there)";
    Done::of(user.command("python3").args(["-c", script, &count.to_string()])).ok();
}

/// Peaks of building an image with so many files in every way that files come into a layer, and of giving it away.
fn peaks_of_files(count: u64) -> Vec<(&'static str, u64)> {
    let user = User::new();
    make_files(&user, count);
    user.script("mkdir added && tar -cf added/many.tar many").ok();
    user.write(
        "Dockerfile",
        "FROM busybox\nCOPY many /many\nRUN find /many -type f | wc -l > /count && rm -r /many/0\n\
         FROM scratch\nCOPY --from=0 /many /again\n",
    );
    user.write("Whole", "FROM scratch\nCOPY many /many\n");
    // Folders of the one lie between those of the other.
    user.write("Several", "FROM scratch\nCOPY --parents many/*[02468] many/*[13579] /several/\n");
    user.write("Added", "FROM scratch\nADD added/many.tar /added/\n");
    let tag = ["-t", "many:v1", "--progress", "plain"];
    let build = |flags: &[&str]| words(&[&["build"], flags].concat());
    let cases = [
        ("build", build(&tag)),
        ("again", build(&tag)),
        ("save", ["save", "-o", "many.tar", "many:v1"].map(str::to_owned).to_vec()),
        ("load", ["load", "-i", "many.tar"].map(str::to_owned).to_vec()),
        ("several folders", build(&["-f", "Several"])),
        ("an archive", build(&["-f", "Added"])),
        ("a split layer", build(&["-f", "Whole", "--split-layers=size=1m"])),
        ("a tar", build(&["-f", "Whole", "--output", "type=tar,dest=out.tar"])),
        ("a folder", build(&["-f", "Whole", "--output", "type=local,dest=out"])),
    ];
    let peak = |(what, all): (_, Vec<_>)| {
        let (peak, seconds) = peak_of(&user, &all);
        println!("{count} files, {what}: {peak} KiB, {seconds:.1} s");
        (what, peak)
    };
    cases.into_iter().map(peak).collect()
}

/// The full count: `IDPB_FILES=1000000 cargo test --test e2e f14`.
#[test]
fn f14_many_files_take_little_memory() {
    let count = scaled("IDPB_FILES", 20_000);
    let few = peaks_of_files(1000);
    for ((what, few), (_, many)) in few.into_iter().zip(peaks_of_files(count)) {
        assert!(many < FILES_PEAK_MAX, "{what}: {many} KiB");
        let growth = many.saturating_sub(few) << 10;
        assert!(growth < FILE_BYTES_MAX * count, "{what}: {few} KiB, then {many} KiB");
    }
}

/// Peaks of building, pushing and pulling a layer of so many MiB that is one file.
fn peaks_of_layer(registry: &Registry, mib: u64) -> [(&'static str, u64); 4] {
    let user = User::new();
    let image = format!("127.0.0.1:{}/large/m{mib}:v1", registry.port());
    user.script(&format!("truncate -s {mib}M file")).ok();
    user.write("Dockerfile", "FROM scratch\nCOPY file /file\n");
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let other = User::new();
    let copy = format!("FROM {image}\nCOPY --from={image} /file /copy\n");
    other.write("Dockerfile", &copy);
    let cases = [
        ("build", &user, owned(&["build", "-t", &image, "."])),
        ("push", &user, owned(&["push", &image])),
        ("pull", &other, owned(&["pull", &image])),
        ("copy", &other, owned(&["build", "-t", "copied:v1", "."])),
    ];
    cases.map(|(what, user, words)| {
        let (peak, seconds) = peak_of(user, &words);
        println!("{mib} MiB, {what}: {peak} KiB, {seconds:.1} s");
        (what, peak)
    })
}

/// The full size: `IDPB_LAYER_MIB=10240 cargo test --test e2e f15`.
#[test]
fn f15_memory_does_not_grow_with_a_layer() {
    let large = scaled("IDPB_LAYER_MIB", 192);
    let registry = Registry::plain();
    let (small, large) = (peaks_of_layer(&registry, 48), peaks_of_layer(&registry, large));
    for ((what, small), (_, large)) in small.into_iter().zip(large) {
        assert!(large < LAYER_PEAK_MAX, "{what}: {large} KiB");
        // A tenth more, and what pages of a run or another of the allocator differ by.
        assert!(large < small + small / 10 + (8 << 10), "{what}: {small} KiB, then {large} KiB");
    }
}
