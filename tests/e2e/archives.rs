//! Images as files and folders that other tools read.

use std::{fs, process::Command};

use crate::support::{Done, User, json, succeeds};

const DOCKERFILE: &str = "FROM busybox\nRUN echo hi > /hi\nLABEL a=b\nCMD [\"cat\", \"/hi\"]\n";

#[test]
fn the_store_is_a_layout_that_skopeo_reads() {
    let user = User::new();
    let id = user.build(DOCKERFILE, &["-t", "demo:v1", "-t", "demo:v2"]).ok();
    let images = user.home().join("images");
    assert!(images.join("oci-layout").exists());
    for name in ["docker.io/library/demo:v1", "docker.io/library/demo:v2"] {
        let source = format!("oci:{}:{name}", images.display());
        let shown = json(&succeeds("skopeo", ["inspect", &source]));
        assert_eq!(shown["Labels"]["a"], "b");
        assert_eq!(shown["Layers"].as_array().unwrap().len(), 2);
        let raw = json(&succeeds("skopeo", ["inspect", "--raw", &source]));
        assert_eq!(raw["config"]["digest"], id.trim());
        let copied = user.folder().join("copy");
        succeeds(
            "skopeo",
            ["--insecure-policy", "copy", &source, &format!("dir:{}", copied.display())],
        );
        fs::remove_dir_all(copied).unwrap();
    }
}

#[test]
fn what_is_saved_can_be_loaded_elsewhere_with_the_same_id() {
    let user = User::new();
    let id = user.build(DOCKERFILE, &["-t", "demo:v1"]).ok();
    for (form, path) in [("oci", "demo.tar"), ("oci-dir", "demo"), ("docker", "docker.tar")] {
        let saved = user.folder().join(path).display().to_string();
        user.run(["save", "--form", form, "-o", &saved, "demo:v1"]).ok();
        let other = User::new();
        let said = other.run(["load", "-i", &saved]).ok();
        assert!(said.contains("demo:v1"), "{form}: {said}");
        let found = other.run(["images", "--no-trunc", "--quiet", "demo"]).ok();
        assert_eq!(found.trim(), id.trim(), "{form}");
    }
    user.script("idpbuilder save demo:v1 | gzip > pipe.tar.gz; idpbuilder rmi demo:v1").ok();
    let piped = "idpbuilder load -q < pipe.tar.gz && cat pipe.tar.gz | idpbuilder load --input -";
    assert!(user.script(piped).ok().contains("demo:v1"));
    assert_eq!(user.run(["images", "--no-trunc", "--quiet", "demo"]).ok().trim(), id.trim());
    user.run(["save", "--form", "oci-dir", "demo:v1"]).fails(3, &["--output"]);
    assert!(!user.work().join("-").exists());
}

#[test]
fn skopeo_reads_what_save_writes_and_load_reads_what_skopeo_writes() {
    let user = User::new();
    let id = user.build(DOCKERFILE, &["-t", "demo:v1"]).ok();
    let path = |name: &str| user.folder().join(name).display().to_string();
    for (form, transport) in
        [("oci", "oci-archive"), ("oci-dir", "oci"), ("docker", "docker-archive")]
    {
        user.run(["save", "--form", form, "-o", &path(form), "demo:v1"]).ok();
        let config = succeeds(
            "skopeo",
            ["inspect", "--config", "--raw", &format!("{transport}:{}", path(form))],
        );
        let digest = sha256(&config);
        assert_eq!(digest, id.trim(), "{form}");
    }
    let source = format!("oci:{}", path("oci-dir"));
    for (transport, file) in [("oci-archive", "a.tar"), ("docker-archive", "b.tar"), ("oci", "c")] {
        let target = format!("{transport}:{}:other:v1", path(file));
        let target = if transport == "docker-archive" {
            target.replace(":other", ":docker.io/library/other")
        } else {
            target
        };
        succeeds("skopeo", ["--insecure-policy", "copy", "-q", &source, &target]);
        let other = User::new();
        other.run(["load", "-i", &path(file), "-t", "other:v1"]).ok();
        let shown = json(&other.run(["inspect", "other:v1"]).ok());
        assert_eq!(shown[0]["Config"]["config"]["Labels"]["a"], "b", "{transport}");
    }
}

#[test]
fn umoci_unpacks_what_a_build_writes_as_a_layout() {
    let user = User::new();
    let output = [
        "-t",
        "demo:v1",
        "--output",
        "type=oci,dest=layout,tar=false,compression=uncompressed",
        "--iidfile",
        "id",
        "--metadata-file",
        "metadata",
    ];
    let id = user.build(DOCKERFILE, &output).ok();
    let read = |name: &str| fs::read_to_string(user.work().join(name)).unwrap();
    assert_eq!(read("id"), id.trim());
    let metadata = json(&read("metadata"));
    let layout = user.work().join("layout");
    let index = json(&fs::read_to_string(layout.join("index.json")).unwrap());
    assert_eq!(metadata["containerimage.digest"], index["manifests"][0]["digest"]);
    assert_eq!(metadata["containerimage.config.digest"], id.trim());
    let tag = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"].as_str();
    let tag = tag.unwrap();
    let bundle = user.folder().join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image", &format!("{}:{tag}", layout.display())]).arg(&bundle);
    Done::of(&mut umoci).ok();
    assert_eq!(fs::read_to_string(bundle.join("rootfs/hi")).unwrap(), "hi\n");
}

/// The digest by which others will know the image: that of the layout whose layers are compressed, not the store's.
#[test]
fn the_metadata_file_names_what_was_written() {
    let user = User::new();
    for (output, epoch) in [
        ("type=oci,dest=out,tar=false", "0"),
        ("type=oci,dest=out,tar=false,compression=zstd", "0"),
        ("type=docker,dest=out,tar=false", "0"),
        ("type=oci,dest=out,tar=false,rewrite-timestamp=true", "1000000000"),
        ("type=oci,dest=out,tar=false,annotation.a=b", "0"),
    ] {
        let epoch = format!("SOURCE_DATE_EPOCH={epoch}");
        let flags = ["--build-arg", &epoch, "--output", output, "--metadata-file", "metadata"];
        user.build(DOCKERFILE, &flags).ok();
        let read = |name: &str| json(&fs::read_to_string(user.work().join(name)).unwrap());
        let (metadata, index) = (read("metadata"), read("out/index.json"));
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        assert_eq!(metadata["containerimage.digest"], digest, "{output}");
        let manifest = read(&format!("out/blobs/sha256/{}", digest.trim_start_matches("sha256:")));
        let config = &manifest["config"]["digest"];
        assert_eq!(metadata["containerimage.config.digest"], *config, "{output}");
        fs::remove_dir_all(user.work().join("out")).unwrap();
    }
}

#[test]
fn tags_and_untagging_change_names_only() {
    let user = User::new();
    let id = user.build(DOCKERFILE, &["-t", "demo:v1"]).ok();
    user.run(["tag", "demo:v1", "registry.example:5000/team/demo:v2"]).ok();
    user.run(["rmi", "demo:v1"]).ok();
    user.run(["rmi", "demo:v1"]).fails(2, &["demo:v1"]);
    let format = ["images", "--no-trunc", "--format", "{{.Image}} {{.ID}}", "demo"];
    let left = user.run(format).ok();
    assert_eq!(left, format!("registry.example:5000/team/demo:v2 {id}"));
    user.run(["prune"]).ok();
    user.run(["save", "-o", "demo.tar", "registry.example:5000/team/demo:v2"]).ok();
    let steps = user.run(["history", "--no-trunc", "registry.example:5000/team/demo:v2"]).ok();
    assert!(steps.contains("echo hi > /hi"), "{steps}");
}

fn sha256(text: &str) -> String {
    idpbuilder::oci::Digest::of(text.as_bytes()).to_string()
}
