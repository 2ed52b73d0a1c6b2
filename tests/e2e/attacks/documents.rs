//! L12 to L17, L19, L20, L26, L27, L29 and L30: hostile manifests, indexes and configs, from a registry and from a layout.

use serde_json::{Value, json};

use super::{Attack, LOADED, Level, at_levels, said};
use crate::support::{
    Done,
    images::{self, CONFIG, INDEX, Layer, Layout, MANIFEST, Served, Tar},
};

const LEVELS: [Level; 2] = [Level::Root, Level::Mapped];

/// Media type and bytes of a document.
type Document = (String, Vec<u8>);

/// A registry that answers the tag `latest` (and every digest that it does not hold) with one document, and has these blobs.
fn registry(document: Document, blobs: Vec<Vec<u8>>) -> Served {
    Served::new(move |path| {
        let (_, name) = path.rsplit_once('/')?;
        if path.contains("/manifests/") {
            return Some(document.clone());
        }
        if !path.contains("/blobs/") {
            return Some(("application/json".to_owned(), b"{}".to_vec()));
        }
        let found = blobs.iter().find(|blob| images::digest(blob) == name).cloned();
        Some(("application/octet-stream".to_owned(), found?))
    })
}

/// A whole and harmless image, to be changed: its layer, config and manifest.
fn parts() -> (Layer, Value, Value) {
    let layer = Layer::plain(Tar::new().file("f", "x").end());
    let config = images::config_of(std::slice::from_ref(&layer), &images::plain_process());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": images::descriptor(CONFIG, config.to_string().as_bytes()), "layers": [layer.descriptor()],
    });
    (layer, config, manifest)
}

/// Pulls, and loads from a layout: both must be refused in words, with nothing in the store.
#[track_caller]
fn refused(attack: &Attack, what: &str, document: &[u8], blobs: &[Vec<u8>]) {
    let served = registry((MANIFEST.to_owned(), document.to_vec()), blobs.to_vec());
    let name = format!("{}/evil:latest", served.address);
    let layout = Layout::new(tempfile::tempdir_in(attack.user.folder()).unwrap().keep());
    for blob in blobs {
        layout.blob(blob);
    }
    layout.manifest(document.to_vec());
    attack.give(&layout.0);
    attack.forget();
    // What is lazily fetched is looked at by a build.
    let taken = |name: &str| format!("FROM {name}\nCOPY --from={name} /f /g\n");
    let built = attack.build(&taken(&name));
    let loaded = match attack.load(&layout) {
        // A layer that is looked at first when it is needed.
        done if done.code == 0 => attack.build(&taken(LOADED)),
        done => done,
    };
    for (way, done) in [("pull", built), ("load", loaded)] {
        let in_words = (1..=8).contains(&done.code)
            && !done.err.contains("panicked")
            && !done.err.contains("overflow");
        assert!(in_words, "{what} by {way}: {done}");
    }
}

#[test]
fn l12_l13_sizes_and_digests_are_kept_to() {
    at_levels("L12 L13", &LEVELS, |attack| {
        let (layer, config, manifest) = parts();
        let blobs = vec![layer.blob.clone(), config.to_string().into_bytes()];
        for (pointer, value) in [
            ("/layers/0/size", json!(layer.blob.len() - 1)),
            ("/layers/0/size", json!(layer.blob.len() + 1)),
            ("/layers/0/size", json!(-1)),
            ("/layers/0/size", json!(9_223_372_036_854_775_808_u64)),
            ("/layers/0/size", Value::Null),
            ("/config/size", json!(1)),
            ("/config/size", json!(-5)),
            ("/layers/0/digest", json!(images::digest(b"another"))),
            ("/config/digest", json!(images::digest(b"another"))),
        ] {
            let mut manifest = manifest.clone();
            *manifest.pointer_mut(pointer).unwrap() = value.clone();
            refused(attack, &format!("{pointer} {value}"), manifest.to_string().as_bytes(), &blobs);
        }
        let mut wrong = config;
        wrong["rootfs"]["diff_ids"][0] = json!(images::digest(b"another"));
        let wrong = wrong.to_string().into_bytes();
        let mut manifest = manifest;
        manifest["config"] = images::descriptor(CONFIG, &wrong);
        refused(attack, "diff id", manifest.to_string().as_bytes(), &[layer.blob, wrong]);
        "refused"
    });
}

#[test]
fn l14_digests_are_digests() {
    at_levels("L14", &LEVELS, |attack| {
        let (layer, config, manifest) = parts();
        let blobs = vec![layer.blob, config.to_string().into_bytes()];
        let hex = "0".repeat(64);
        for digest in [
            "sha256:../../../x".to_owned(),
            "sha256:".to_owned(),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{hex}0"),
            format!("sha256:{}", "0".repeat(63)),
            "sha256:..%2f".to_owned(),
            "md5:0".to_owned(),
            format!("sha512:{hex}"),
            "sha256+b64:x".to_owned(),
            hex.clone(),
        ] {
            for pointer in ["/layers/0/digest", "/config/digest"] {
                let mut manifest = manifest.clone();
                *manifest.pointer_mut(pointer).unwrap() = json!(digest);
                refused(attack, &digest, manifest.to_string().as_bytes(), &blobs);
            }
            attack.refused(&format!("FROM x.example/y@{digest}\n"), &[]);
        }
        "refused"
    });
}

#[test]
fn l15_l16_l17_documents_that_can_be_read_in_two_ways_are_refused() {
    at_levels("L15 L16 L17", &LEVELS, |attack| {
        let (layer, config, manifest) = parts();
        let blobs = vec![layer.blob.clone(), config.to_string().into_bytes()];
        let text = manifest.to_string();
        let mut both = manifest.clone();
        both["manifests"] = json!([images::descriptor(MANIFEST, b"x")]);
        let twice = text.replacen('{', r#"{"layers":[],"#, 1);
        let nested = "[".repeat(100_000);
        for (what, document) in [
            ("both kinds", both.to_string()),
            ("a key twice", twice),
            ("a byte order mark", format!("\u{feff}{text}")),
            (
                "schema 1",
                r#"{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[],"history":[]}"#.to_owned(),
            ),
            (
                "an index that says it is a manifest",
                json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }).to_string(),
            ),
            ("nothing", String::new()),
            ("no JSON", "x".to_owned()),
            ("nested", format!(r#"{{"schemaVersion":2,"config":{nested}"#)),
            ("large", format!("{text}{}", " ".repeat(9 << 20))),
        ] {
            refused(attack, what, document.as_bytes(), &blobs);
        }
        for (what, change) in [
            ("too few diff ids", json!({ "rootfs": { "type": "layers", "diff_ids": [] } })),
            (
                "too many diff ids",
                json!({ "rootfs": { "type": "layers", "diff_ids": [layer.diff_id, layer.diff_id] } }),
            ),
            ("a command that is no list", json!({ "config": { "Cmd": "sh" } })),
            ("large", json!({ "comment": "x".repeat(9 << 20) })),
        ] {
            let mut config = config.clone();
            config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let config = config.to_string().into_bytes();
            let mut manifest = manifest.clone();
            manifest["config"] = images::descriptor(CONFIG, &config);
            refused(attack, what, manifest.to_string().as_bytes(), &[layer.blob.clone(), config]);
        }
        "refused"
    });
}

/// An index that leads to itself, and indexes in indexes without an end.
#[test]
fn l16_indexes_end() {
    at_levels("L16 loops", &LEVELS, |attack| {
        let index = |list: Value| {
            json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": list })
                .to_string()
                .into_bytes()
        };
        let platform = json!({ "os": "linux", "architecture": "amd64" });
        let mut nested = vec![index(json!([]))];
        for _ in 0..1000 {
            let mut below = images::descriptor(INDEX, nested.last().unwrap());
            below["platform"] = platform.clone();
            nested.push(index(json!([below])));
        }
        let entry = json!({ "mediaType": MANIFEST, "digest": images::digest(b"x"), "size": 1, "platform": platform });
        let many = index(Value::Array(vec![entry; 100_000]));
        for first in [nested.last().unwrap().clone(), many] {
            let nested = nested.clone();
            let served = Served::new(move |path| {
                let (_, name) = path.rsplit_once('/')?;
                let found = nested
                    .iter()
                    .find(|document| name.contains(':') && images::digest(document) == name);
                let document = found.cloned().unwrap_or_else(|| first.clone());
                path.contains("/manifests/")
                    .then_some((INDEX.to_owned(), document))
                    .or_else(|| path.ends_with("/v2/").then(Default::default))
            });
            attack.refused(
                &format!("FROM {}/evil:latest\nCOPY --from=base / /\n", served.address),
                &[],
            );
            let asked = served.asked.lock().unwrap().len();
            assert!(asked < 40, "asked {asked} times");
        }
        "refused"
    });
}

#[test]
fn l19_l20_addresses_and_labels_are_data() {
    at_levels("L19 L20", &LEVELS, |attack| {
        let elsewhere = Served::new(|_| None);
        let (layer, mut config, mut manifest) = parts();
        let words = ["binary:///bin/sh", "$(touch /canary)", "\u{1b}[2J", "../../x", "a\nb"];
        for word in words {
            config["config"]["Labels"][format!("evil {word}")] = json!(word);
        }
        let config = config.to_string().into_bytes();
        manifest["config"] = images::descriptor(CONFIG, &config);
        manifest["annotations"] =
            json!({ "org.opencontainers.image.title": "../../x", "evil": "$(id)" });
        manifest["layers"][0]["annotations"] =
            json!({ "org.opencontainers.image.title": attack.canary.at("file") });
        manifest["layers"][0]["urls"] = json!([
            format!("http://{}/layer", elsewhere.address),
            "file:///etc/passwd",
            "http://169.254.169.254/"
        ]);
        let served = registry(
            (MANIFEST.to_owned(), manifest.to_string().into_bytes()),
            vec![layer.blob, config.clone()],
        );
        let name = format!("{}/evil:latest", served.address);
        let pulled = attack.heard(Done::of(attack.idp().args(["pull", &name])));
        assert_eq!(pulled.code, 0, "{pulled}");
        for verb in ["inspect", "history"] {
            let shown = attack.heard(Done::of(attack.idp().args([verb, &name])));
            assert!(shown.code == 0 && !shown.out.contains('\u{1b}'), "{shown}");
        }
        // Not even when nobody else has the layer.
        attack.forget();
        manifest["layers"][0]["digest"] = json!(images::digest(b"elsewhere"));
        let served =
            registry((MANIFEST.to_owned(), manifest.to_string().into_bytes()), vec![config]);
        attack.refused(
            &format!("FROM {0}/evil:latest\nCOPY --from={0}/evil:latest /f /g\n", served.address),
            &[],
        );
        assert_eq!(*elsewhere.asked.lock().unwrap(), Vec::<String>::new());
        "data only; nobody asked"
    });
}

#[test]
fn l26_what_an_image_says_of_its_processes_stays_inside() {
    at_levels("L26", &LEVELS, |attack| {
        let plain = images::plain_process();
        let with = |key: &str, value: Value| {
            let mut process = plain.clone();
            process[key] = value;
            process
        };
        attack.image(
            "evil",
            [Tar::new().link("w", attack.canary.at("dir"))],
            &with("WorkingDir", json!("/w/../../..")),
        );
        attack.says("evil", "pwd; ls; touch x");
        attack.image(
            "evil",
            [Tar::new().link("w", attack.canary.at("dir"))],
            &with("WorkingDir", json!("/w")),
        );
        let done = attack.build_with(
            "FROM evil\nWORKDIR new\nRUN touch y; pwd\nCOPY --from=base /bin/sh z\n",
            &["--no-cache"],
        );
        assert_eq!(done.code, 0, "{done}");
        attack.image("evil", [], &with("User", json!("u".repeat(100_000))));
        attack.refused("FROM evil\nRUN id\n", &[]);
        for trigger in [
            "FROM base",
            "MAINTAINER x",
            "ONBUILD RUN id",
            "ONBUILD ONBUILD RUN id",
            "NOTHING x",
            "RUN --privileged id",
            "COPY ../x /",
        ] {
            attack.image("evil", [], &with("OnBuild", json!([trigger])));
            let done = attack.build("FROM evil\nRUN true\n");
            assert!(done.code != 0 && done.code != 70, "{trigger}: {done}");
        }
        attack.image("evil", [], &with("OnBuild", json!(["RUN echo triggered"])));
        assert_eq!(said(&attack.build("FROM evil\n")), "triggered\n");
        "inside, or refused"
    });
}

/// CVE-2024-24557: a cache that is asked by what an image says of itself.
#[test]
fn l29_an_image_cannot_put_words_into_the_cache() {
    at_levels("L29", &LEVELS, |attack| {
        let text = "FROM base\nRUN echo mine > /x; echo mine\n";
        // It says that it is the result of this very Dockerfile, and holds something else.
        let layers: Vec<_> = images::base_layers()
            .into_iter()
            .chain([Layer::plain(Tar::new().file("x", "evil\n").end())])
            .collect();
        let mut config = images::config_of(&layers, &images::plain_process());
        config["history"] = json!([{ "created_by": "base" }, { "created_by": "programs" }, { "created_by": "RUN /bin/sh -c echo mine > /x; echo mine # buildkit" }]);
        let layout = Layout::new(attack.user.folder().join("layouts/poison"));
        layout.image(&config, &layers);
        attack.give(&layout.0);
        let path = layout.0.display().to_string();
        for name in ["base", "docker.io/library/base:latest", "work"] {
            let loaded =
                attack.heard(Done::of(attack.idp().args(["load", "-i", &path, "-t", name])));
            assert_eq!(loaded.code, 0, "{loaded}");
        }
        let done = attack.build_with(text, &["--output", "type=local,dest=out"]);
        assert_eq!(said(&done), "mine\n", "{done}");
        assert_eq!(std::fs::read_to_string(attack.user.work().join("out/x")).unwrap(), "mine\n");
        "done again"
    });
}

/// GHSA-qv35: who names a digest gets that or nothing.
#[test]
fn l30_a_pinned_digest_is_what_comes() {
    at_levels("L30", &LEVELS, |attack| {
        let (layer, config, manifest) = parts();
        let document = manifest.to_string().into_bytes();
        let served = registry(
            (MANIFEST.to_owned(), document.clone()),
            vec![layer.blob, config.to_string().into_bytes()],
        );
        let wanted = images::digest(b"another");
        for reference in [
            format!("{}/evil:latest@{wanted}", served.address),
            format!("{}/evil@{wanted}", served.address),
        ] {
            attack.refused(&format!("FROM {reference}\n"), &[]);
            attack.refused(&format!("FROM base\nCOPY --from={reference} /f /f\n"), &[]);
            let pulled = attack.heard(Done::of(attack.idp().args(["pull", &reference])));
            assert!(pulled.code != 0 && pulled.code != 70, "{pulled}");
        }
        let right = format!("{}/evil:latest@{}", served.address, images::digest(&document));
        let pulled = attack.heard(Done::of(attack.idp().args(["pull", &right])));
        assert_eq!(pulled.code, 0, "{pulled}");
        "refused"
    });
}
