//! L07, L09, S26: what is small and becomes large, and processes that take all there is.

use std::{fs, io::Write as _};

use tar::{EntryType, Header};

use super::{Attack, Level, at_levels, everywhere, said};
use crate::{
    network::on_a_usual_machine,
    support::{
        Done,
        images::{self, Layer, Layout, Served, Tar},
    },
};

/// Every way in: name, and what became of it with this limit.
fn open_with(attack: &Attack, layer: &Layer, limit: &str) -> Vec<(&'static str, Done)> {
    let layers: Vec<_> = images::base_layers().into_iter().chain([layer.clone()]).collect();
    let layout = Layout::new(attack.user.folder().join("layouts/bomb"));
    layout.image(&images::config_of(&layers, &images::plain_process()), &layers);
    attack.give(&layout.0);
    let served = Served::layout(&layout.0);
    let path = layout.0.display().to_string();
    fs::write(attack.user.work().join("bomb.tar"), &layer.blob).unwrap();
    attack.user.write("Dockerfile", "FROM scratch\nADD bomb.tar /\n");
    attack.user.write("other/Dockerfile", "FROM bomb\nCOPY --from=bomb /bin/sh /copy\n");
    let pulled = format!("{}/bomb:latest", served.address);
    let named = format!("bomb=oci-layout://{path}");
    let ways: [(&str, &[&str]); 5] = [
        ("pull", &["pull", &pulled]),
        ("load", &["load", "-i", &path, "-t", "loaded.example/bomb:v1"]),
        ("base", &["build", "--build-context", &named, "other"]),
        ("ADD", &["build", "."]),
        ("context", &["build", "-f", "/Dockerfile.none", "bomb.tar"]),
    ];
    let ways = ways.map(|(way, args)| {
        attack.forget();
        attack.user.write("text", "FROM scratch\nCOPY zeros /\n");
        let mut command = attack.idp();
        command.env("IDPBUILDER_MAX_LAYER_SIZE", limit);
        let text = attack.user.work().join("text").display().to_string();
        command.args(args.iter().map(|arg| arg.replace("/Dockerfile.none", &text)));
        (way, attack.heard(Done::of(&mut command)))
    });
    ways.into()
}

fn zeros(mib: usize) -> Vec<u8> {
    Tar::new().file("zeros", vec![0; mib << 20]).end()
}

fn zstd(tar: &[u8], window: u32) -> Layer {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(window).unwrap();
    encoder.write_all(tar).unwrap();
    Layer { blob: encoder.finish().unwrap(), ..Layer::plain(tar.to_vec()) }
}

#[test]
fn l09_what_unpacks_beyond_the_limit_is_refused_wherever_it_comes_from() {
    at_levels("L09", &[Level::Root], |attack| {
        let tar = zeros(64);
        let bombs = [Layer::gzip(&tar), zstd(&tar, 20)];
        for layer in &bombs {
            assert!(layer.blob.len() < 1 << 20);
            let digest = images::digest(&layer.blob);
            for (way, done) in open_with(attack, layer, "48m") {
                let name = if ["ADD", "context"].contains(&way) { "bomb.tar" } else { &digest };
                let words =
                    ["unpacks to more than 50331648 bytes", "IDPBUILDER_MAX_LAYER_SIZE", name];
                for word in words {
                    assert!(done.code == 1 && done.err.contains(word), "{way}, {word}: {done}");
                }
            }
        }
        for (way, done) in open_with(attack, &bombs[0], "80m") {
            assert_eq!(done.code, 0, "{way}: {done}");
        }
        "refused with the way out"
    });
}

#[test]
fn l07_headers_without_end_are_refused_before_they_are_held() {
    at_levels("L07 long", &[Level::Root], |attack| {
        let long = vec![b'x'; 8 << 20];
        for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            let tar = Tar::new().file("first", "1").raw(header, b"long", &long).file("f", "2");
            for (way, done) in open_with(attack, &Layer::gzip(&tar.end()), "64g") {
                let word = if way == "ADD" || way == "context" {
                    "more than 2097152 bytes of headers before one member"
                } else {
                    "an extension of 8388608 bytes, the limit is 1048576"
                };
                assert!(done.code == 1 && done.err.contains(word), "{way}, {kind:?}: {done}");
            }
        }
        "refused"
    });
}

#[test]
fn l09_a_window_that_takes_much_memory_is_refused() {
    at_levels("L09 window", &[Level::Root], |attack| {
        for (way, done) in open_with(attack, &zstd(&zeros(1), 28), "64g") {
            // What cannot be opened is no archive to ADD and no context.
            let wanted = if way == "ADD" { 0 } else { done.code.max(1) };
            assert_eq!(done.code, wanted, "{way}: {done}");
            assert!(done.code != 70 && !done.err.contains("panicked"), "{way}: {done}");
        }
        "refused"
    });
}

#[test]
fn s26_who_takes_all_there_is_harms_nobody_else() {
    everywhere("S26", |attack| {
        let run = |script: &str, flags: &[&str]| {
            attack.build_with(&format!("FROM base\nRUN {script}\n"), flags)
        };
        let bomb = run("while true; do sleep 1000 & done", &["--no-cache", "--pids-limit", "60"]);
        assert!(bomb.code == 1 && bomb.err.contains("exit code"), "{bomb}");
        let full = run("dd if=/dev/zero of=/dev/shm/x bs=1M count=100 2>&1; ls -l /dev/shm", &[]);
        assert!(
            said(&full).contains("No space left") && said(&full).contains("67108864"),
            "{full}"
        );
        let long = run("yes > /f", &["--ulimit", "fsize=1000000"]);
        assert!(long.code == 1 && long.err.contains("exit code"), "{long}");
        assert_eq!(run("echo alive", &["--no-cache"]).code, 0);
        "ended; the next build works"
    });
}

#[test]
fn s26_memory_and_disk_end_and_the_builder_lives() {
    at_levels("S26 memory, disk", &[Level::Root, Level::Private], |attack| {
        let text = "FROM base\nRUN dd if=/dev/zero of=/dev/shm/x bs=1M count=100\n";
        let flags = ["--memory", "32m", "--memory-swap", "32m", "--shm-size", "200m"];
        let done = attack.build_with(text, &flags);
        for word in ["137", "out of memory (limit 32.0 MiB)"] {
            assert!(done.code == 1 && done.err.contains(word), "{word}: {done}");
        }
        attack.user.write("Dockerfile", "FROM base\nRUN yes > /f\n");
        let mut build = attack.idp();
        // Should the file be elsewhere, it ends before the machine's disk does.
        build.args(["build", "--ulimit", "fsize=200000000"]).args(attack.flags()).arg(".");
        let home = attack.user.home().display().to_string();
        let small = format!("mkdir -p {home}; mount -t tmpfs -o size=64m,mode=700 none {home};");
        let done = attack.heard(on_a_usual_machine(&attack.user, &small, &build));
        assert!(done.code != 0 && done.err.contains("o space left"), "{done}");
        assert_eq!(attack.build("FROM base\nRUN echo alive\n").code, 0);
        "told with the limit; the next build works"
    });
}
