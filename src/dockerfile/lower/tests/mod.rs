//! Lowering against the corpus, against goldens of ops, and against laws.

mod corpus;
mod graphs;
mod laws;

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::dockerfile::{
    ContextKind, Dockerfile, DockerfileError, ImageRequest, LowerOptions, Lowered, Lowering, parse,
};
use crate::graph::Op;
use crate::oci::{ImageConfig, Platform};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn stub(config: Value) -> ImageConfig {
    let history = serde_json::json!([
        {"created_by": "stub layer"}, {"created_by": "stub config", "empty_layer": true}
    ]);
    serde_json::from_value(serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": config, "history": history
    }))
    .unwrap()
}

fn busybox() -> ImageConfig {
    stub(serde_json::json!({"Env": [PATH], "Cmd": ["sh"]}))
}

fn onbuild() -> ImageConfig {
    stub(serde_json::json!({
        "User": "app", "WorkingDir": "/srv", "Env": [PATH, "BASE=one", "KEEP=kept"],
        "Entrypoint": ["/bin/entry", "-x"], "Cmd": ["base-arg"], "StopSignal": "SIGQUIT",
        "ExposedPorts": {"8080/tcp": {}}, "Volumes": {"/data": {}},
        "Labels": {"base": "yes", "over": "base"},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000_i64, "Retries": 2},
        "Shell": ["/bin/sh", "-ec"],
        "OnBuild": ["ENV TRIGGER=fired", "RUN echo $TRIGGER > /tmp/trigger", "LABEL trigger=$TRIGGER"]
    }))
}

fn options() -> LowerOptions {
    let host = Platform::linux("amd64", None);
    let stubs = ["busybox", "onbuild"].map(|name| (name.to_owned(), ContextKind::Image));
    LowerOptions {
        target: None,
        args: BTreeMap::new(),
        labels: BTreeMap::new(),
        platform: host.clone(),
        build_platform: host,
        named_contexts: BTreeMap::from(stubs),
        ignore: None,
    }
}

/// One of the two ways to lower.
type Call = fn(
    &Dockerfile,
    &LowerOptions,
    &HashMap<ImageRequest, ImageConfig>,
) -> Result<Lowering, DockerfileError>;

/// Lowers a text, answering each request for a config with a stub.
fn lowered(text: &str, options: &LowerOptions, call: Call) -> Result<Lowered, DockerfileError> {
    let dockerfile = parse(text)?;
    let mut configs = HashMap::new();
    loop {
        match call(&dockerfile, options, &configs)? {
            Lowering::Done(lowered) => return Ok(*lowered),
            Lowering::Needs(requests) => {
                assert!(!requests.is_empty(), "asked for nothing");
                for request in requests {
                    let config = answer(&request).ok_or_else(|| not_found(&request.name))?;
                    assert!(configs.insert(request, config).is_none(), "asked twice");
                }
            }
        }
    }
}

fn not_found(name: &str) -> DockerfileError {
    let message = format!("{name}: not found");
    let (warnings, others) = (Vec::new(), Vec::new());
    DockerfileError { message, location: None, label: None, help: None, warnings, others }
}

/// The corpus gives the stub `busybox` other names too.
fn answer(request: &ImageRequest) -> Option<ImageConfig> {
    match request.name.as_str() {
        "busybox" | "alpine" => Some(busybox()),
        "onbuild" => Some(onbuild()),
        _ => None,
    }
}

fn layers(lowered: &Lowered) -> usize {
    let mut count = 0;
    let mut id = lowered.result;
    loop {
        match &lowered.graph.node(id).op {
            Op::Files(files) => id = files.base,
            Op::Run(run) => id = run.base,
            Op::Scratch | Op::Image { .. } => return count,
            Op::Context { .. } => panic!("an image cannot stand on a bare context"),
        }
        count += 1;
    }
}
