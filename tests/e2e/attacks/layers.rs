//! L01 to L11 and L18 to L25: hostile layers, each through `load`, `pull`, as a base, and as an archive that ADD unpacks.

use std::fs;

use tar::{EntryType, Header};

use super::{Attack, LOADED, Level, at_levels};
use crate::support::{
    Done,
    images::{self, Layer, Layout, Served, Tar},
};

const LEVELS: [Level; 2] = [Level::Root, Level::Mapped];

/// What became of a layer on each of its ways in.
struct Tried(Vec<(&'static str, Done)>);

impl Tried {
    /// As a layer it is refused. ADD is no stricter than Docker's: it may take it, and the canary decides.
    #[track_caller]
    fn refused(&self, what: &str) {
        self.harmless(what);
        for (way, done) in self.0.iter().filter(|(way, _)| *way != "ADD") {
            let in_words = [1, 3, 6, 8].contains(&done.code) && !done.err.contains("panicked");
            assert!(in_words, "{what} by {way}: {done}");
        }
    }

    #[track_caller]
    fn taken(&self, what: &str) {
        for (way, done) in &self.0 {
            assert_eq!(done.code, 0, "{what} by {way}: {done}");
        }
    }

    /// Neither way crashes; the canary decides the rest.
    #[track_caller]
    fn harmless(&self, what: &str) {
        for (way, done) in &self.0 {
            assert!(
                (0..=8).contains(&done.code) && !done.err.contains("panicked"),
                "{what} by {way}: {done}"
            );
        }
    }
}

/// A layer above the base: built on (which unpacks it), pulled and built on, loaded and built on, and added.
fn try_layers(attack: &Attack, layers: &[Layer]) -> Tried {
    let all: Vec<_> = images::base_layers().into_iter().chain(layers.iter().cloned()).collect();
    let layout = Layout::new(attack.user.folder().join("layouts/evil"));
    layout.image(&images::config_of(&all, &images::plain_process()), &all);
    attack.give(&layout.0);
    let served = Served::layout(&layout.0);
    let context = format!("evil=oci-layout://{}", layout.0.display());
    let run = |way: &'static str, from: &str, flags: &[&str]| {
        let done = attack.build_with(
            &format!("FROM {from}\nRUN test -e /bin/sh\nCOPY --from={from} /bin/sh /copy\n"),
            flags,
        );
        (way, done)
    };
    let mut tried = vec![run("base", "evil", &["--no-cache", "--build-context", &context])];
    let pulled = format!("{}/evil:latest", served.address);
    tried.push(run("pull", &pulled, &["--no-cache"]));
    let loaded = attack.load(&layout);
    tried.push(if loaded.code == 0 {
        run("load", LOADED, &["--no-cache"])
    } else {
        ("load", loaded)
    });
    for (number, layer) in layers.iter().enumerate() {
        let name = format!("evil{number}.tar");
        fs::write(attack.user.work().join(&name), &layer.blob).unwrap();
        let text = format!("FROM base\nADD {name} /\nRUN test -e /bin/sh\n");
        tried.push(("ADD", attack.build_with(&text, &["--no-cache"])));
    }
    Tried(tried)
}

fn try_tar(attack: &Attack, tar: Tar) -> Tried {
    try_layers(attack, &[Layer::plain(tar.end())])
}

fn header(kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o777);
    header.set_mtime(1_500_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[test]
fn l01_names_stay_within_the_tree() {
    at_levels("L01", &LEVELS, |attack| {
        for name in ["../x", "a/../../x", "./../x", "..", "", "a/.."] {
            let tar = Tar::new().raw(header(EntryType::Regular), name.as_bytes(), b"evil");
            try_tar(attack, tar).refused(name);
        }
        let canary = attack.canary.at("new");
        for name in [canary.as_str(), "a//b", "a\\..\\b"] {
            try_tar(attack, Tar::new().file(name, "evil")).taken(name);
        }
        "refused, or made relative"
    });
}

#[test]
fn l02_l03_l05_links_lead_nowhere() {
    at_levels("L02 L03 L05", &LEVELS, |attack| {
        let (dir, file) = (attack.canary.at("dir"), attack.canary.at("file"));
        let up = format!("../../../../../../../..{dir}");
        for target in [&dir, &up] {
            try_tar(attack, Tar::new().link("d", target).file("d/x", "evil"))
                .harmless("file below a link");
            try_tar(attack, Tar::new().link("a", target).link("b", "a").file("b/x", "evil"))
                .harmless("chain");
            try_tar(attack, Tar::new().link("d", target).dir("d", 0o700))
                .harmless("folder over a link");
            let below = Layer::plain(Tar::new().link("d", target).end());
            for above in [
                Tar::new().file("d/x", "evil"),
                Tar::new().dir("d", 0o700),
                Tar::new().file("d/.wh.ptmx", ""),
            ] {
                try_layers(attack, &[below.clone(), Layer::plain(above.end())])
                    .harmless("link of an earlier layer");
            }
            try_tar(attack, Tar::new().link("d", target).hard_link("x", "d/ptmx"))
                .refused("hard link through a link");
        }
        for target in [file.as_str(), "../../canary", "Cargo.toml", "later", "self", "/"] {
            try_tar(attack, Tar::new().hard_link("self", target).file("later", "x"))
                .refused(target);
        }
        "within the tree, or refused"
    });
}

#[test]
fn l04_whiteouts_hide_what_is_below_and_nothing_else() {
    at_levels("L04", &LEVELS, |attack| {
        for name in [".wh.", ".wh..", ".wh..."] {
            try_tar(attack, Tar::new().file(name, "")).refused(name);
        }
        try_tar(attack, Tar::new().link("d", attack.canary.at("dir")).file("d/.wh.ptmx", ""))
            .harmless("below a link");
        try_tar(attack, Tar::new().file("etc/.wh.passwd", "").file("etc/passwd", "x\n"))
            .taken("both");
        "canary kept"
    });
}

#[test]
fn l06_l07_l10_l11_l24_what_readers_disagree_on_is_refused() {
    at_levels("L06 L07 L10 L11 L24", &LEVELS, |attack| {
        let hidden = Tar::new().file("smuggled", "x").end();
        for (key, value) in [
            ("size", "-1"),
            ("size", "18446744073709551616"),
            ("GNU.sparse.realsize", "9223372036854775808"),
            ("path", "a\0b"),
            ("path", "../../x"),
            ("linkpath", "x\0y"),
            ("mtime", "nan"),
            ("uid", "-1"),
        ] {
            try_tar(attack, Tar::new().pax([(key, value.as_bytes())]).file("f", &hidden))
                .refused(key);
        }
        let whole = Tar::new().file("f", vec![7; 5000]).end();
        let zipped = Layer::gzip(&whole);
        for cut in [zipped.blob.len() - 1, zipped.blob.len() - 9, zipped.blob.len() / 2, 11] {
            let mut layer = zipped.clone();
            layer.blob.truncate(cut);
            try_layers(attack, &[layer]).refused("cut short");
        }
        let mut wrong = zipped.clone();
        let end = wrong.blob.len() - 6;
        wrong.blob[end] ^= 0xff;
        try_layers(attack, &[wrong]).refused("wrong check sum");
        // What the media type says is a hint: the bytes decide, and the digests.
        let plain = Layer { media_type: images::TAR_GZIP, ..Layer::plain(whole.clone()) };
        try_layers(attack, &[plain]).taken("plain, said to be gzip");
        let gzip = Layer { media_type: images::TAR, ..zipped };
        try_layers(attack, &[gzip]).taken("gzip, said to be plain");
        "refused"
    });
}

#[test]
fn l08_l23_special_files_and_repetitions() {
    at_levels("L08 L23", &LEVELS, |attack| {
        let mut disk = header(EntryType::Block);
        disk.set_device_major(8).unwrap();
        disk.set_device_minor(0).unwrap();
        let tar = Tar::new().raw(disk, b"disk", b"").fifo("pipe");
        try_tar(attack, tar).harmless("device");
        for kind in *b"sDMVXz" {
            let tried = try_tar(attack, Tar::new().raw(header(EntryType::new(kind)), b"n", b""));
            tried.refused("unknown type");
        }
        let tar = Tar::new()
            .file("t", "1")
            .dir("t", 0o755)
            .file("t/in", "2")
            .link("t", attack.canary.at("dir"))
            .file("f", "1")
            .file("f", "2");
        try_tar(attack, tar).taken("repetition");
        "kept, or refused"
    });
}

#[test]
fn l18_many_layers_work_or_are_explained() {
    at_levels("L18", &LEVELS, |attack| {
        let empty = Layer::plain(vec![0; 1024]);
        let many: Vec<_> =
            (0..200).map(|n| Layer::plain(Tar::new().file(&format!("f{n}"), "x").end())).collect();
        let layout = Layout::new(attack.user.folder().join("layouts/many"));
        // An empty layer is one layer, however often it is there.
        let many = many.into_iter().chain(vec![empty; 1000]);
        let all: Vec<_> = images::base_layers().into_iter().chain(many).collect();
        layout.image(&images::config_of(&all, &images::plain_process()), &all);
        attack.give(&layout.0);
        let context = format!("many=oci-layout://{}", layout.0.display());
        let done = attack.build_with(
            "FROM many\nRUN ls / | grep -c '^f[0-9]'\n",
            &["--build-context", &context],
        );
        assert_eq!((done.code, super::said(&done).as_str()), (0, "200\n"), "{done}");
        "1200 layers, 1000 of them empty; 499 is the limit that S34 tells"
    });
}

#[test]
fn l21_l25_names_and_attributes_arrive_or_are_dropped() {
    at_levels("L21 L25", &LEVELS, |attack| {
        let mut tar = Tar::new();
        for name in ["new\nline", "\u{1b}[2J", "a:b,c\\d", "space ", "Case", "case", "-rf"] {
            tar = tar.pax([("path", name.as_bytes())]).file("x", name);
        }
        let tar = tar.pax([("path", &b"\xff\xfe"[..])]).file("x", "y");
        let marks: [(&str, &[u8]); 4] = [
            ("SCHILY.xattr.trusted.overlay.redirect", b"/bin"),
            ("SCHILY.xattr.user.overlay.redirect", b"/bin"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ];
        let tar = tar.pax(marks).dir("etc", 0o755);
        attack.evil(tar);
        let text = "FROM evil\nRUN test -e /etc/passwd && ls / | wc -l && cat /-rf && echo && cat /case && echo\n";
        let done = attack.build_with(text, &["--output", "type=tar,dest=out.tar"]);
        let said = super::said(&done);
        assert!(done.code == 0 && said.ends_with("-rf\ncase\n"), "{done}");
        let bytes = fs::read(attack.user.work().join("out.tar")).unwrap();
        assert!(
            !bytes.windows(14).any(|seen| seen == b"overlay.opaque" || seen == b"verlay.redirec"),
            "marks are exported"
        );
        "byte-exact; overlay's marks dropped"
    });
}

#[test]
fn l22_a_hundred_thousand_entries_in_one_folder() {
    at_levels("L22", &[Level::Root], |attack| {
        let tar =
            (0..100_000).fold(Tar::new().dir("d", 0o755), |tar, n| tar.file(&format!("d/{n}"), ""));
        attack.evil(tar);
        assert_eq!(attack.says("evil", "ls /d | wc -l"), "100000\n");
        "done"
    });
}

#[test]
fn l28_eight_pulls_of_one_layer_beside_a_collection_leave_one_blob() {
    at_levels("L28", &[Level::Root], |attack| {
        // Bytes that do not compress, so that pulling takes a while.
        let noise: Vec<u8> = (0_u64..1 << 20)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).to_le_bytes())
            .collect();
        let layer = Layer::gzip(&Tar::new().file("noise", noise).end());
        let all: Vec<_> = images::base_layers().into_iter().chain([layer.clone()]).collect();
        let layout = Layout::new(attack.user.folder().join("layouts/many"));
        layout.image(&images::config_of(&all, &images::plain_process()), &all);
        let served = Served::layout(&layout.0);
        let pulls: Vec<_> = (0..8)
            .map(|n| {
                let mut pull = attack.idp();
                pull.args(["pull", &format!("{}/many{n}:latest", served.address)]);
                std::thread::spawn(move || Done::of(&mut pull))
            })
            .collect();
        while pulls.iter().any(|pull| !pull.is_finished()) {
            attack.user.run(["prune"]).ok();
        }
        for pull in pulls {
            attack.heard(pull.join().unwrap()).ok();
        }
        attack.user.run(["prune"]).ok();
        let blobs = fs::read_dir(attack.user.home().join("images/blobs/sha256")).unwrap();
        let name = images::digest(&layer.blob).replace("sha256:", "");
        let same = blobs.filter(|blob| *blob.as_ref().unwrap().file_name() == *name);
        assert_eq!(same.count(), 1);
        "one blob, all succeed"
    });
}
