//! A project with every hole filled: plain values, the input of a plan.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::limits::Limits;
use crate::limits::Split;
use crate::oci::Codec;
use crate::oci::Platform;
use crate::oci::Reference;
use crate::remote::Remote;

/// What a project says, for given facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Variables in the order of the file.
    pub vars: Vec<Variable>,
    /// Declared registries in the order of the file.
    pub registries: Vec<Registry>,
    /// Mirrors in the order of the file.
    pub mirrors: Vec<Mirror>,
    /// Images in the order of the file.
    pub images: Vec<Image>,
    /// Pipelines in the order of the file.
    pub pipelines: Vec<Pipeline>,
    /// The development loop.
    pub watch: Watch,
}

/// A variable and where its value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Name.
    pub name: String,
    /// Value; `None` when it has none and nothing asks for it.
    pub value: Option<String>,
    /// Who gave the value.
    pub origin: Origin,
    /// What it is for.
    pub help: Option<String>,
    /// Values that it may have; empty for any.
    pub one_of: Vec<String>,
}

/// Who gave a variable its value; later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The project file.
    File,
    /// `IDPBUILDER_VAR_NAME`.
    Environment,
    /// `--var`.
    Flag,
}

/// A registry of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registry {
    /// Short name.
    pub name: String,
    /// Host and port; `None` for the embedded one.
    pub address: Option<String>,
    /// Path in front of images.
    pub namespace: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<SecretFrom>,
    /// How certificates are judged.
    pub tls: Tls,
    /// Plain HTTP although not loopback.
    pub plain_http: bool,
    /// Realm origins that may be sent the password.
    pub auth_realms: Vec<String>,
}

/// How a registry's certificate is judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file, from the project's folder.
    pub ca: Option<PathBuf>,
    /// SHA-256 fingerprint.
    pub pin: Option<String>,
    /// Nobody is asked for a certificate.
    pub skip_verify: bool,
}

/// Where a secret's value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretFrom {
    /// An environment variable.
    Env(String),
    /// A file, from the project's folder.
    File(PathBuf),
}

/// Another address to pull from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Host and port of the registry.
    pub registry: String,
    /// Host, port and path prefix of the mirror.
    pub via: String,
    /// Whether the registry is asked after it.
    pub fallback: bool,
}

/// An image with everything inherited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Name.
    pub name: String,
    /// The Dockerfile; paths are from the project's folder.
    pub dockerfile: Dockerfile,
    /// The context; `None` for an empty one.
    pub context: Option<Files>,
    /// Stage.
    pub target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Named contexts.
    pub build_contexts: BTreeMap<String, BuildContext>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Tags whose condition holds.
    pub tags: Vec<String>,
    /// Platforms.
    pub platforms: Vec<Platform>,
    /// Images of the project to be built before.
    pub needs: Vec<String>,
    /// Where it goes, as far as conditions hold.
    pub pushes: Vec<Push>,
    /// What the file says of pushes, whether or not their conditions hold.
    pub push_rule: PushRule,
    /// Files to write.
    pub outputs: Vec<Output>,
    /// `false` for one that only others are built from.
    pub export: bool,
    /// Seconds since the epoch.
    pub source_date_epoch: Option<i64>,
    /// Compression of pushed layers.
    pub compression: Codec,
    /// Secrets that its processes may read, by name; without optional ones that have no value.
    pub secrets: BTreeMap<String, SecretFrom>,
    /// Whether what the rules of our own find fails the build.
    pub strict: bool,
    /// Agents and keys that its processes may use, by name; `None` is the agent of the environment.
    pub ssh: BTreeMap<String, Option<PathBuf>>,
    /// What its processes may use.
    pub limits: Limits,
    /// How a large COPY or ADD becomes several layers, when it does.
    pub split: Option<Split>,
    /// Network of its processes; `None` for the default.
    pub network: Option<ProjectNetwork>,
    /// Names that its processes know besides, with their addresses or `host-gateway`.
    pub hosts: BTreeMap<String, String>,
    /// Who its processes ask for other names.
    pub dns: Dns,
}

/// What a resolver is configured with; what is empty is as on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Domains in which names are looked up; a lone `.` for none.
    pub search: Vec<String>,
    /// Options such as `ndots:2`.
    pub options: Vec<String>,
}

/// A network of processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectNetwork {
    /// Loopback only.
    None,
    /// The host's.
    Host,
    /// Its own.
    Sandbox,
}

/// A Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dockerfile {
    /// A file.
    File(PathBuf),
    /// A file of a context that is no folder; `None` for its `Dockerfile`.
    InContext(Option<String>),
    /// The text behind a URL.
    Url(String),
    /// Its text.
    Inline(String),
}

/// Where the files of a context are; paths are from the project's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Files {
    /// In a folder.
    Folder(PathBuf),
    /// In a tar archive.
    Archive(PathBuf),
    /// On another machine.
    Remote(Remote),
}

/// What a named context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildContext {
    /// Files.
    Files(Files),
    /// Nothing.
    Scratch,
    /// An OCI layout and what is in it (`:tag` or `@digest`).
    OciLayout(PathBuf, Option<String>),
    /// An image of a registry.
    Image(Reference),
    /// An image of the project.
    ProjectImage(String),
}

/// What the file says of the pushes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushRule {
    /// Nothing.
    Unsaid,
    /// `push #null`.
    Never,
    /// It names a registry.
    Named,
}

/// Where an image goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Registry of the file, or host and path.
    pub to: PushTo,
    /// Name there, when it is not the image's.
    pub name: Option<String>,
}

/// A registry, or host and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushTo {
    /// By its name in the file.
    Registry(String),
    /// Host and path.
    Address(String),
}

/// A file or folder to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Form.
    pub form: OutputForm,
    /// Where, from the project's folder.
    pub path: PathBuf,
    /// Compression of layers.
    pub compression: Option<Codec>,
}

/// Form of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputForm {
    /// OCI layout in a tar file.
    OciArchive,
    /// OCI layout in a folder.
    OciLayout,
    /// For `docker load`.
    DockerArchive,
    /// Root file system as a tar file.
    Tar,
    /// Root file system as a folder.
    Local,
}

/// A named list of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Name.
    pub name: String,
    /// Images in the order of the file, `all` spelled out.
    pub images: Vec<String>,
}

/// The development loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Quiet time before a new run.
    pub debounce: Duration,
    /// Paths whose changes do not count.
    pub ignore: Vec<String>,
    /// What is run; `None` for the same as `run` without a name.
    pub pipeline: Option<String>,
}

impl Default for Watch {
    fn default() -> Self {
        /// Shorter than a person notices, longer than an editor takes to save.
        const DEBOUNCE: Duration = Duration::from_millis(150);
        Self { debounce: DEBOUNCE, ignore: Vec::new(), pipeline: None }
    }
}
