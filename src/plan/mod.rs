//! The plan: every default filled, every reference linked, and the steps in order. Pure.
//!
//! `run` makes one from a project, `build` from flags; from there both go one way.

mod error;
mod flags;
mod from_project;
mod lock;
mod network;
mod order;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::Serialize;

use crate::{
    limits::{Limits, Split},
    oci::{Codec, Platform, Reference},
    remote::{Remote, without_login},
};

pub use error::PlanError;
pub use flags::BuildFlags;
pub use flags::Publication;
pub use from_project::References;
pub use lock::{Lock, PinMode, Pins};
pub use network::{NetworkPlan, PlannedNetwork};

/// What the embedded registry is called in a plan; `exec` puts the real host and port in its place.
pub const EMBEDDED_ADDRESS: &str = "localhost:5050";

/// What a run will do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    /// Images to build, dependencies first.
    pub images: Vec<ImagePlan>,
    /// Settings of the registries that the plan names, by host and port.
    pub registries: BTreeMap<String, RegistryPlan>,
    /// Registries served from elsewhere: `docker.io` → mirrors in order of trial.
    pub mirrors: BTreeMap<String, Vec<MirrorPlan>>,
    /// What is done, inputs first.
    pub steps: Vec<Step>,
    /// What the user should know before it starts, one line each.
    pub warnings: Vec<String>,
}

/// One image to build.
#[derive(Clone, Debug, Serialize)]
pub struct ImagePlan {
    /// Name in the project; for `build`, the first tag or the folder's name.
    pub name: String,
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// The build context; `None` for an empty one.
    pub context: Option<ContextPlan>,
    /// Named contexts.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// Stage to build; the last one when not given.
    pub target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Labels put on the image last, without history.
    pub labels: BTreeMap<String, String>,
    /// Platforms to build for; the host's when empty.
    pub platforms: Vec<Platform>,
    /// Names in the store.
    pub tags: Vec<Reference>,
    /// Names in registries, pushed together when everything is in.
    pub pushes: Vec<Reference>,
    /// Images of this plan that it is built from.
    pub needs: Vec<String>,
    /// Whether earlier results may be used.
    pub cache: CacheUse,
    /// Compression of pushed layers.
    pub compression: Codec,
    /// Files to write besides.
    pub outputs: Vec<OutputPlan>,
    /// Seconds since the epoch for all times that the build makes.
    pub source_date_epoch: Option<i64>,
    /// Whether the image is named and kept; `false` for one that only others are built from.
    pub export: bool,
    /// Where the secrets that a RUN may mount come from, by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// What answers the SSH agents that a RUN may mount, by id.
    pub ssh: BTreeMap<String, SshSource>,
    /// What its processes see of the network.
    pub network: NetworkPlan,
    /// What its processes may do besides.
    pub allow: BTreeSet<Entitlement>,
    /// Whether what the rules of our own find fails the build.
    pub strict: bool,
    /// What its processes may use.
    #[serde(skip_serializing_if = "Limits::is_default")]
    pub limits: Limits,
    /// How a large COPY or ADD becomes several layers, when it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

/// What a build may do only when the user allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Entitlement {
    /// `RUN --network=host`.
    #[serde(rename = "network.host")]
    NetworkHost,
    /// `ADD` of a URL or repository of this machine, or of a private network.
    #[serde(rename = "network.private")]
    NetworkPrivate,
    /// `RUN --security=insecure`.
    #[serde(rename = "security.insecure")]
    SecurityInsecure,
}

impl Entitlement {
    /// All that there are.
    pub const ALL: [Self; 3] = [Self::NetworkHost, Self::NetworkPrivate, Self::SecurityInsecure];

    /// As typed behind `--allow`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetworkHost => "network.host",
            Self::NetworkPrivate => "network.private",
            Self::SecurityInsecure => "security.insecure",
        }
    }
}

/// Where the files of a build are. In JSON a folder is its path.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum ContextPlan {
    /// In a folder.
    Directory(PathBuf),
    /// In a tar archive, plain or compressed.
    Archive {
        /// As it is called: its path, or `standard input`.
        archive: String,
        /// The file.
        path: PathBuf,
    },
    /// On another machine.
    Remote {
        /// Where.
        remote: Remote,
    },
}

/// Where a Dockerfile's text comes from.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DockerfileSource {
    /// A file.
    File(PathBuf),
    /// A file of a context that is no folder; `None` for its `Dockerfile`.
    Context(Option<String>),
    /// The text behind a URL.
    Url(#[serde(serialize_with = "shown_url")] String),
    /// Text in the project file, or read from standard input.
    Inline(String),
}

/// A plan is shown and kept: no password is in it.
fn shown_url<S: serde::Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&without_login(url))
}

/// What stands behind a named context.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamedContext {
    /// A folder.
    Directory(PathBuf),
    /// Files that are in no folder.
    Files(ContextPlan),
    /// Nothing (`docker-image://scratch`).
    Scratch,
    /// An OCI layout on disk, with a tag or digest in it when given.
    OciLayout {
        /// The folder.
        path: PathBuf,
        /// `:tag` or `@digest` behind the path.
        selector: Option<String>,
    },
    /// An image of a registry or the store.
    Image(Reference),
    /// Another image of the plan, by name.
    PlanImage(String),
}

/// Whether earlier results may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheUse {
    /// Yes.
    #[default]
    Use,
    /// Do everything again; results are kept.
    Ignore,
    /// Do everything again; later builds find what they would have found (`verify`).
    Discard,
}

/// A file to write besides the store.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OutputPlan {
    /// `oci`, `docker`, `tar` or `local`.
    pub kind: OutputKind,
    /// File or folder; `None` for standard output.
    pub destination: Option<PathBuf>,
    /// `false` with `tar=false`: a folder instead of an archive.
    pub archive: bool,
    /// Compression of layers; `None` for the default (gzip for `oci`, none for `docker`).
    pub compression: Option<Codec>,
    /// Other `key=value` options as typed.
    pub options: BTreeMap<String, String>,
}

impl OutputPlan {
    /// Whether its files are dated no later than `SOURCE_DATE_EPOCH` (`rewrite-timestamp=true`).
    #[must_use]
    pub fn rewrites_times(&self) -> bool {
        self.options.get("rewrite-timestamp").is_some_and(|value| value == "true" || value == "1")
    }
}

/// Form of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputKind {
    /// OCI image layout.
    Oci,
    /// What `docker load` reads.
    Docker,
    /// The root file system as one tar.
    Tar,
    /// The root file system as a folder.
    Local,
}

/// How to talk to one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "three facts that do not exclude one another")]
pub struct RegistryPlan {
    /// Host and port, such as `gitea.cnoe.localtest.me:8443`.
    pub address: String,
    /// Served by this process itself, over the store.
    pub embedded: bool,
    /// Plain HTTP although not loopback.
    pub plain_http: bool,
    /// TLS without checking who answers.
    pub insecure: bool,
    /// PEM file of certificates to trust for this registry.
    pub ca_file: Option<PathBuf>,
    /// SHA-256 fingerprint (hex, colons allowed) of the certificate to trust.
    pub pin: Option<String>,
    /// User name, when the file gives it.
    pub username: Option<String>,
    /// Where the password comes from.
    pub password: Option<SecretSource>,
    /// Realm origins besides the registry's own that may be sent the password.
    pub auth_realms: Vec<String>,
}

/// Where a secret comes from; the value is read at the last moment and never kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// An environment variable.
    Env(String),
    /// A file; as a password, without one trailing newline.
    File(PathBuf),
}

/// What stands behind an SSH agent of a build; keys are read at the last moment and never kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SshSource {
    /// The agent of the environment (`SSH_AUTH_SOCK`).
    Agent,
    /// The socket of an agent, or private keys.
    Files(Vec<PathBuf>),
}

/// Another address for a registry.
#[derive(Clone, Debug, Serialize)]
pub struct MirrorPlan {
    /// Host, port and optional path prefix.
    pub address: String,
    /// Whether the registry itself is asked when the mirror has not got it.
    pub fallback: bool,
}

/// One unit of work; `inputs` are positions in [`Plan::steps`].
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What.
    pub kind: StepKind,
    /// Name of the image.
    pub image: String,
    /// Steps that must be done before.
    pub inputs: Vec<usize>,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum StepKind {
    /// Build the image.
    Build,
    /// Name it in the store and write its outputs.
    Store,
    /// Upload its blobs and its manifest by digest.
    Push {
        /// Full reference.
        to: String,
    },
    /// Move the tag. All tags of a run move after all pushes are in.
    Publish {
        /// Full reference.
        to: String,
    },
}

impl Plan {
    /// Derives [`Plan::steps`] from the images: build after what it needs, store after build, push
    /// after store, publish after every push of the run and after the publish before it.
    pub fn link(&mut self) {
        self.steps.clear();
        let mut stored = BTreeMap::new();
        for image in &self.images {
            let needed = image.needs.iter().filter_map(|name| stored.get(name).copied()).collect();
            let build = self.steps.len();
            self.steps.push(Step::new(StepKind::Build, &image.name, needed));
            self.steps.push(Step::new(StepKind::Store, &image.name, vec![build]));
            stored.insert(image.name.clone(), build + 1);
        }
        let pairs = self
            .images
            .iter()
            .flat_map(|image| image.pushes.iter().map(|to| (image.name.clone(), to.to_string())));
        let pairs: Vec<(String, String)> = pairs.collect();
        let mut pushes = Vec::new();
        for (image, to) in &pairs {
            pushes.push(self.steps.len());
            let kind = StepKind::Push { to: to.clone() };
            self.steps.push(Step::new(kind, image, vec![stored[image]]));
        }
        // One tag after another, in the order of the plan: what a reader of the registry sees moves
        // forward only.
        let mut inputs = pushes;
        for (image, to) in &pairs {
            let kind = StepKind::Publish { to: to.clone() };
            self.steps.push(Step::new(kind, image, inputs));
            inputs = vec![self.steps.len() - 1];
        }
    }

    /// Takes out everything that leaves the machine: `run --no-push`.
    pub fn clear_pushes(&mut self) {
        for image in &mut self.images {
            image.pushes.clear();
        }
        self.link();
    }

    /// The image with this name.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&ImagePlan> {
        self.images.iter().find(|image| image.name == name)
    }
}

impl Step {
    fn new(kind: StepKind, image: &str, inputs: Vec<usize>) -> Self {
        Self { kind, image: image.to_owned(), inputs }
    }
}

impl Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests;
