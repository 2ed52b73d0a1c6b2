//! What is written, as other programs read it: dockerd, podman, the image-spec's schemas.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::{Done, Folder, ROOT, User, json, layout_of};

/// Every kind of config that a Dockerfile sets, two layers and one that is empty.
const DOCKERFILE: &str = "FROM busybox\nRUN echo hi > /hi\nENV A=1 B=\"two words\"\nLABEL org.example.a=b\nWORKDIR /w/x\n\
    COPY --chown=app:staff --chmod=640 f /w/f\nUSER app:staff\nEXPOSE 80 443/udp\nVOLUME /v\nSTOPSIGNAL SIGINT\n\
    HEALTHCHECK --interval=5s --retries=2 CMD [\"true\"]\nENTRYPOINT [\"cat\"]\nCMD [\"/hi\", \"/w/f\"]\n";

fn built(output: &str) -> (User, serde_json::Value) {
    let user = User::new();
    user.write("f", "file\n");
    user.build(DOCKERFILE, &["-t", "demo:v1", "--output", output]).ok();
    let shown = json(&user.run(["inspect", "demo:v1"]).ok());
    let config = shown[0]["Config"].clone();
    (user, config)
}

/// A dockerd of this test alone; it and all that it made are gone at the end.
struct Dockerd {
    child: Child,
    folder: Folder,
}

impl Dockerd {
    const START_S: u64 = 600;

    fn start() -> Self {
        let folder = Folder::new();
        let mut dockerd = Self { child: Self::spawn(&folder), folder };
        let until = Instant::now() + Duration::from_secs(Self::START_S);
        while dockerd.docker(&["version"]).code != 0 {
            let ended = dockerd.child.try_wait().unwrap();
            let log = fs::read_to_string(dockerd.folder.path().join("log")).unwrap();
            assert!(Instant::now() < until, "no dockerd: {ended:?}\n{log}");
            if ended.is_some() {
                // It gives its containerd 15 s, however busy the machine is.
                assert!(log.contains("timeout waiting for containerd"), "{ended:?}\n{log}");
                dockerd.child = Self::spawn(&dockerd.folder);
            }
        }
        dockerd
    }

    fn spawn(folder: &Folder) -> Child {
        let place = |name: &str| folder.path().join(name).display().to_string();
        let log = fs::File::create(place("log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "dockerd", "--iptables=false", "--bridge=none"]);
        command.args(["--storage-driver=vfs", "--data-root", &place("data")]);
        command.args(["--exec-root", &place("exec"), "--pidfile", &place("pid")]);
        command.arg(format!("--host=unix://{}", place("socket")));
        command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null());
        command.spawn().unwrap()
    }

    fn docker(&self, arguments: &[&str]) -> Done {
        let socket = format!("unix://{}", self.folder.path().join("socket").display());
        Done::of(Command::new("docker").args(["--host", &socket]).args(arguments))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        drop(Command::new("kill").args(["-TERM", &pid]).status());
        drop(self.child.wait());
    }
}

/// A podman with a storage of its own.
struct Podman {
    folder: Folder,
}

impl Podman {
    fn new() -> Self {
        Self { folder: Folder::new() }
    }

    fn run(&self, arguments: &[&str]) -> Done {
        let place = |name: &str| self.folder.path().join(name);
        let mut command = Command::new("podman");
        command.arg("--root").arg(place("root")).arg("--runroot").arg(place("run"));
        command.arg("--tmpdir").arg(place("tmp"));
        command.args(["--storage-driver=vfs", "--events-backend=none"]);
        Done::of(command.args(["--cgroup-manager=cgroupfs", "--runtime=runc"]).args(arguments))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        drop(self.run(&["unmount", "--all"]));
    }
}

/// What docker and podman show of an image, against its config.
fn assert_same_config(shown: &serde_json::Value, config: &serde_json::Value) {
    let (shown, wanted) = (&shown[0]["Config"], &config["config"]);
    for key in [
        "User",
        "Env",
        "Entrypoint",
        "Cmd",
        "WorkingDir",
        "Labels",
        "Volumes",
        "ExposedPorts",
        "StopSignal",
    ] {
        assert_eq!(shown[key], wanted[key], "{key} of {shown}");
    }
    assert_eq!(shown["Healthcheck"]["Test"], wanted["Healthcheck"]["Test"]);
}

#[test]
fn docker_loads_and_runs_a_docker_archive() {
    let dockerd = Dockerd::start();
    for output in ["type=docker,dest=demo.tar", "type=docker,dest=demo.tar,compression=gzip"] {
        let (user, config) = built(output);
        let id = user.run(["images", "--no-trunc", "--quiet", "demo"]).ok();
        let archive = user.work().join("demo.tar").display().to_string();
        assert!(dockerd.docker(&["load", "--input", &archive]).ok().contains("demo:v1"));
        let shown = json(&dockerd.docker(&["image", "inspect", "demo:v1"]).ok());
        assert_eq!(shown[0]["Id"], id.trim(), "the image ID is the config's digest: {output}");
        assert_same_config(&shown, &config);
        assert_eq!(shown[0]["RootFS"]["Layers"], config["rootfs"]["diff_ids"]);
        let history = dockerd.docker(&["history", "--no-trunc", "--quiet", "demo:v1"]).ok();
        assert_eq!(history.lines().count(), config["history"].as_array().unwrap().len());
        let run = dockerd.docker(&["run", "--rm", "--network=none", "demo:v1"]);
        assert_eq!(run.ok(), "hi\nfile\n", "{output}");
        dockerd.docker(&["rmi", "demo:v1"]).ok();
    }
}

#[test]
fn podman_loads_and_runs_archives_of_both_forms() {
    for output in [
        "type=docker,dest=demo.tar",
        "type=oci,dest=demo.tar",
        "type=oci,dest=demo.tar,compression=zstd",
        "type=oci,dest=demo.tar,compression=uncompressed",
    ] {
        let podman = Podman::new();
        let (user, config) = built(output);
        let id = user.run(["images", "--no-trunc", "--quiet", "demo"]).ok();
        let archive = user.work().join("demo.tar").display().to_string();
        podman.run(&["load", "--quiet", "--input", &archive]).ok();
        let shown = json(&podman.run(&["image", "inspect", "demo:v1"]).ok());
        assert_eq!(shown[0]["Id"], id.trim().trim_start_matches("sha256:"), "{output}");
        assert_eq!(shown[0]["RootFS"]["Layers"], config["rootfs"]["diff_ids"], "{output}");
        let wanted = &config["config"];
        for key in ["User", "Env", "Entrypoint", "Cmd", "WorkingDir", "Labels", "Volumes"] {
            assert_eq!(shown[0]["Config"][key], wanted[key], "{key} with {output}");
        }
        // Podman asks for more than a container that tests run in may have.
        let run = [
            "run",
            "--rm",
            "--network=none",
            "--ulimit=nofile=64:64",
            "--ulimit=nproc=64:64",
            "demo:v1",
        ];
        assert_eq!(podman.run(&run).ok(), "hi\nfile\n", "{output}");
    }
}

/// The layers' media types in a layout.
fn layer_types(user: &User, layout: &str) -> Vec<String> {
    let read =
        |path: String| json(&fs::read_to_string(user.work().join(layout).join(path)).unwrap());
    let index = read("index.json".to_owned());
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let manifest = read(format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")));
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["mediaType"].as_str().unwrap().to_owned()).collect()
}

fn blob_bytes(user: &User, layout: &str) -> u64 {
    let folder: PathBuf = user.work().join(layout).join("blobs/sha256");
    fs::read_dir(folder).unwrap().map(|blob| blob.unwrap().metadata().unwrap().len()).sum()
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[test]
fn compression_is_as_asked_for_and_force_is_for_the_base_too() {
    let user = User::new();
    user.write("f", &"a line that packs well\n".repeat(20_000));
    let text = "FROM busybox\nCOPY f /f\n";
    for (options, base, own) in [
        ("", "+gzip", "+gzip"),
        (",compression=zstd", "+gzip", "+zstd"),
        (",compression=zstd,force-compression=true", "+zstd", "+zstd"),
        (",compression=uncompressed", "+gzip", ""),
        (",compression=uncompressed,force-compression=true", "", ""),
        (",compression=gzip,compression-level=9", "+gzip", "+gzip"),
    ] {
        let output = format!("type=oci,dest=out,tar=false{options}");
        user.build(text, &["-t", "demo:v1", "--output", &output]).ok();
        let types = [format!("{LAYER}{base}"), format!("{LAYER}{own}")];
        assert_eq!(layer_types(&user, "out"), types, "{options}");
        let validate = std::path::Path::new(ROOT).join("tests/corpus/validate");
        Done::of(Command::new(validate).arg(user.work().join("out"))).ok();
        fs::remove_dir_all(user.work().join("out")).unwrap();
    }
}

#[test]
fn a_level_makes_a_difference() {
    let user = User::new();
    user.script("seq 1 200000 > f").ok();
    let bytes = |level: &str| {
        let output =
            format!("type=oci,dest=out,tar=false,compression=gzip,compression-level={level}");
        user.build("FROM scratch\nCOPY f /f\n", &["--output", &output]).ok();
        let bytes = blob_bytes(&user, "out");
        fs::remove_dir_all(user.work().join("out")).unwrap();
        bytes
    };
    let (fast, small) = (bytes("1"), bytes("9"));
    assert!(small < fast, "{small} bytes at level 9, {fast} at level 1");
}

#[test]
fn annotations_are_where_they_were_asked_for() {
    let user = User::new();
    let layout = layout_of("busybox", "multi");
    let output = "type=oci,dest=out,tar=false,annotation.a=manifest,annotation-manifest[linux/arm64].b=arm,\
                  annotation-index.c=index,annotation-manifest-descriptor.d=descriptor,annotation-index-descriptor.e=top";
    user.write("Dockerfile", "FROM busybox\nENV A=1\n");
    let mut command = user.idp();
    command.args(["build", "--platform", "linux/amd64,linux/arm64", "--build-context", &layout]);
    Done::of(command.args(["--output", output, "."])).ok();
    let read =
        |path: String| json(&fs::read_to_string(user.work().join("out").join(path)).unwrap());
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        read(format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")))
    };
    let top = read("index.json".to_owned())["manifests"][0].clone();
    assert_eq!(top["annotations"]["e"], "top");
    let index = blob(&top);
    assert_eq!(index["annotations"]["c"], "index");
    for child in index["manifests"].as_array().unwrap() {
        assert_eq!(child["annotations"]["d"], "descriptor", "{child}");
        let annotations = blob(child)["annotations"].clone();
        let is_arm = child["platform"]["architecture"] == "arm64";
        assert_eq!(annotations["a"], "manifest");
        assert_eq!(annotations["b"] == "arm", is_arm, "{annotations}");
    }
}
