//! The language as one table: what the reader checks against and what the reference is made from.
//!
//! Data only. What nodes mean together (references, inheritance) is in `links` and `resolve`.

mod layers;
mod processes;

use serde::Serialize;

use layers::LAYERS;
use processes::{DNS, HOSTS, LIMITS, NETWORK};

/// One node of the language.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeSpec {
    /// Its name; a placeholder in capitals where the user chooses.
    pub name: &'static str,
    /// One sentence for the reference.
    pub doc: &'static str,
    /// Arguments in order.
    pub args: &'static [ArgSpec],
    /// Properties.
    pub props: &'static [PropSpec],
    /// Type of properties with names of the user's choice; `None` when there are none.
    pub free_props: Option<Kind>,
    /// Properties that the language knows and this version refuses.
    pub later_props: &'static [&'static str],
    /// What its block may contain.
    pub children: Children,
    /// How often it may stand in one block.
    pub repeat: Repeat,
    /// Whether a lone `#null` unsets what would be inherited.
    pub unset: Unset,
    /// Whether this version executes it.
    pub support: Support,
    /// How it is written.
    pub example: &'static str,
}

/// One argument.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ArgSpec {
    /// Name in the reference and in messages.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// How many there are.
    pub count: Count,
}

/// One property.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PropSpec {
    /// Name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// One sentence for the reference.
    pub doc: &'static str,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Text, with holes when it is quoted.
    Text,
    /// A name that is written as it is, without holes.
    Name,
    /// A path from the project file's folder; text.
    Path,
    /// Text, integer or boolean; used as text.
    Scalar,
    /// `#true` or `#false`.
    Flag,
    /// An expression in braces, or `#true` or `#false`.
    Condition,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A number of milliseconds, seconds or minutes, such as "150ms".
    Duration,
    /// `git` or seconds since the epoch.
    Epoch,
    /// `amd64`, `"linux/arm/v7"` …
    Platform,
    /// A version such as "0.1".
    Version,
    /// Name of an image of this project.
    Image,
    /// Name of a registry of this project, or host and path.
    Registry,
    /// Name of a secret of this project.
    Secret,
    /// Name of a pipeline of this project.
    Pipeline,
}

/// How many arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Count {
    /// Exactly one.
    One,
    /// None or one.
    Optional,
    /// One or more.
    Many,
    /// None, one or more.
    Any,
}

/// What a block may contain.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Children {
    /// There is no block.
    None,
    /// These nodes.
    Nodes(&'static [NodeSpec]),
    /// Nodes with names of the user's choice, all of this form.
    Free(&'static NodeSpec),
}

/// How often a node may stand in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repeat {
    /// Once.
    Once,
    /// Once for each name.
    Named,
    /// As often as wanted; values add up.
    Many,
}

/// Whether `#null` may stand in place of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unset {
    /// It may.
    Allowed,
    /// It may not.
    Refused,
}

/// Whether this version executes a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Support {
    /// It does.
    Yes,
    /// It knows the name only, and refuses it.
    NotYet,
}

impl NodeSpec {
    const fn new(name: &'static str, doc: &'static str, example: &'static str) -> Self {
        Self {
            name,
            doc,
            args: &[],
            props: &[],
            free_props: None,
            later_props: &[],
            children: Children::None,
            repeat: Repeat::Once,
            unset: Unset::Refused,
            support: Support::Yes,
            example,
        }
    }

    const fn later(name: &'static str) -> Self {
        let mut spec = Self::new(name, "Known to the language, not executed by this version.", "");
        spec.support = Support::NotYet;
        spec.repeat = Repeat::Many;
        spec
    }

    const fn args(mut self, args: &'static [ArgSpec]) -> Self {
        self.args = args;
        self
    }

    const fn props(mut self, props: &'static [PropSpec]) -> Self {
        self.props = props;
        self
    }

    const fn free_props(mut self, kind: Kind) -> Self {
        self.free_props = Some(kind);
        self
    }

    const fn later_props(mut self, names: &'static [&'static str]) -> Self {
        self.later_props = names;
        self
    }

    const fn children(mut self, children: Children) -> Self {
        self.children = children;
        self
    }

    const fn repeat(mut self, repeat: Repeat) -> Self {
        self.repeat = repeat;
        self
    }

    const fn unset(mut self) -> Self {
        self.unset = Unset::Allowed;
        self
    }
}

const fn arg(name: &'static str, kind: Kind, count: Count) -> ArgSpec {
    ArgSpec { name, kind, count }
}

const fn prop(name: &'static str, kind: Kind, doc: &'static str) -> PropSpec {
    PropSpec { name, kind, doc }
}

const IF: PropSpec = prop("if", Kind::Condition, "Counts only when this holds.");
const CODECS: Kind = Kind::OneOf(&["gzip", "zstd"]);

/// The whole file.
pub static ROOT: NodeSpec =
    NodeSpec::new("the project file", "One project.", "").children(Children::Nodes(ROOT_NODES));

static ROOT_NODES: &[NodeSpec] = &[
    NodeSpec::new(
        "idpbuilder",
        "What the file needs of the program.",
        r#"idpbuilder min-version="0.1""#,
    )
    .props(&[prop("min-version", Kind::Version, "Oldest version that reads this file.")]),
    NodeSpec::new(
        "vars",
        "Variables with their defaults; `IDPBUILDER_VAR_NAME` and `--var NAME=VALUE` override them.",
        r#"vars { channel dev one-of="dev stable" help="release channel" }"#,
    )
    .children(Children::Free(&VARIABLE)),
    NodeSpec::new(
        "registry",
        "A registry by a short name; `address` is its host and port.",
        r#"registry gitea "gitea.cnoe.localtest.me:8443" { namespace giteaadmin }"#,
    )
    .args(&[arg("name", Kind::Name, Count::One), arg("address", Kind::Text, Count::Optional)])
    .children(Children::Nodes(REGISTRY_NODES))
    .repeat(Repeat::Named),
    NodeSpec::new(
        "secret",
        "A secret by name; its value is read at the last moment and is never shown or kept.",
        "secret token env=GITEA_TOKEN",
    )
    .args(&[arg("name", Kind::Name, Count::One)])
    .props(&[
        prop("env", Kind::Name, "Environment variable that has the value."),
        prop("file", Kind::Path, "File that has the value; one trailing newline is dropped."),
        prop("required", Kind::Flag, "`#false`: go on without when there is no value."),
    ])
    .later_props(&["kube", "exec", "context"])
    .repeat(Repeat::Named),
    NodeSpec::new(
        "mirror",
        "Another address to pull the images of a registry from.",
        r#"mirror "docker.io" via="mirror.example:5000/hub" fallback=#true"#,
    )
    .args(&[arg("registry", Kind::Text, Count::One)])
    .props(&[
        prop("via", Kind::Text, "Host, port and optional path prefix of the mirror."),
        prop("fallback", Kind::Flag, "Whether the registry itself is asked after it (default)."),
    ])
    .repeat(Repeat::Many),
    NodeSpec::new(
        "defaults",
        "Settings that every image starts from.",
        "defaults { platforms amd64; push gitea }",
    )
    .later_props(&["from"])
    .children(Children::Nodes(DEFAULTS_NODES)),
    NodeSpec::new(
        "image",
        "One image; `from` takes over the settings of another image, to be overridden here.",
        r#"image api { context "services/api"; tags "{git.short}" latest; push gitea }"#,
    )
    .args(&[arg("name", Kind::Name, Count::One)])
    .props(&[prop("from", Kind::Image, "Image whose settings this one starts from.")])
    .children(Children::Nodes(IMAGE_NODES))
    .repeat(Repeat::Named),
    NodeSpec::new(
        "pipeline",
        "Images that `idpbuilder run NAME` builds; `default` is run without a name.",
        "pipeline default { images api web }",
    )
    .args(&[arg("name", Kind::Name, Count::One)])
    .children(Children::Nodes(PIPELINE_NODES))
    .repeat(Repeat::Named),
    NodeSpec::new(
        "watch",
        "The development loop.",
        r#"watch { debounce "150ms"; ignore "**/*.md"; pipeline default }"#,
    )
    .children(Children::Nodes(WATCH_NODES)),
    NodeSpec::later("include"),
    NodeSpec::later("import"),
    NodeSpec::later("profile"),
    NodeSpec::later("builder"),
];

static VARIABLE: NodeSpec = NodeSpec::new(
    "NAME",
    "One variable and its default; without a default it must be given.",
    r#"go "1.26" type=semver"#,
)
.args(&[arg("default", Kind::Scalar, Count::Optional)])
.props(&[
    prop("help", Kind::Text, "What it is for."),
    prop("one-of", Kind::Text, "Values that it may have, separated by spaces."),
    prop("type", Kind::OneOf(&["string", "bool", "int", "semver"]), "Form of its values."),
    prop("fallback", Kind::Text, "Used when the default asks for something that is not there."),
])
.repeat(Repeat::Many);

static REGISTRY_NODES: &[NodeSpec] = &[
    NodeSpec::new("namespace", "Path in front of the images' names.", "namespace giteaadmin")
        .args(&[arg("path", Kind::Text, Count::One)]),
    NodeSpec::new(
        "auth",
        "Who we say we are; without it, and with `docker-config`, the auth files of docker and containers are asked.",
        "auth username=giteaAdmin password-env=GITEA_TOKEN",
    )
    .args(&[arg("way", Kind::OneOf(&["docker-config"]), Count::Optional)])
    .props(&[
        prop("username", Kind::Text, "User name."),
        prop("password-env", Kind::Name, "Environment variable with the password or token."),
        prop("password-file", Kind::Path, "File with the password or token."),
        prop("password-from", Kind::Secret, "Secret with the password or token."),
    ]),
    NodeSpec::new("tls", "How the registry's certificate is judged.", r#"tls ca="certs/ca.pem""#)
        .args(&[arg("way", Kind::OneOf(&["insecure-skip-verify"]), Count::Optional)])
        .props(&[
            prop("ca", Kind::Path, "PEM file of certificates to trust for this registry."),
            prop("pin", Kind::Text, "SHA-256 fingerprint of the certificate to trust."),
        ])
        .later_props(&["cluster"]),
    NodeSpec::new("plain-http", "Plain HTTP although the host is not loopback.", "plain-http"),
    NodeSpec::new("embedded", "Served by idpbuilder itself; has no address.", "embedded"),
    NodeSpec::new(
        "auth-realm",
        "Another origin that may be sent the password when the registry names it.",
        r#"auth-realm "https://auth.example""#,
    )
    .args(&[arg("origin", Kind::Text, Count::Many)])
    .repeat(Repeat::Many),
];

const CONTEXT: NodeSpec = NodeSpec::new(
    "context",
    "What the Dockerfile copies from (default \".\"): a folder, a tar archive, a git repository (`https://HOST/PATH.git#REF:FOLDER`) or the URL of an archive; `#null` for nothing.",
    r#"context "services/api""#,
)
.args(&[arg("folder", Kind::Path, Count::One)])
.later_props(&["respect-gitignore"])
.unset();
const ARGS: NodeSpec =
    NodeSpec::new("args", "Build arguments; they add up by name.", r#"args GO_VERSION="{go}""#)
        .free_props(Kind::Scalar)
        .repeat(Repeat::Many)
        .unset();
const LABELS: NodeSpec = NodeSpec::new(
    "labels",
    "Labels of the image; they add up by name, a later one replaces.",
    r#"labels { org.opencontainers.image.revision "{git.sha}" }"#,
)
.children(Children::Free(&LABEL))
.repeat(Repeat::Many)
.unset();
static LABEL: NodeSpec =
    NodeSpec::new("KEY", "One label.", r#"org.opencontainers.image.title api"#)
        .args(&[arg("value", Kind::Scalar, Count::One)])
        .unset();
const TAGS: NodeSpec = NodeSpec::new(
    "tags",
    "Tags of the image (default latest); every push gets all of them.",
    r#"tags "{git.short}" latest if="{channel == stable}""#,
)
.args(&[arg("tag", Kind::Text, Count::Many)])
.props(&[IF])
.repeat(Repeat::Many)
.unset();
const PLATFORMS: NodeSpec = NodeSpec::new(
    "platforms",
    "Platforms to build for; the host's when not given.",
    r#"platforms amd64 "linux/arm/v7""#,
)
.args(&[arg("platform", Kind::Platform, Count::Many)])
.repeat(Repeat::Many)
.unset();
const PUSH: NodeSpec = NodeSpec::new(
    "push",
    "Where the image goes: a registry of this file, or host and path; the image's name follows.",
    r#"push gitea as="team/api" if="{channel == stable}""#,
)
.args(&[arg("registry", Kind::Registry, Count::One)])
.props(&[prop("as", Kind::Text, "Name there instead of the image's."), IF])
.repeat(Repeat::Many)
.unset();
const REPRODUCIBLE: NodeSpec = NodeSpec::new(
    "reproducible",
    "Times in the image: `git` for the commit's, or seconds since the epoch.",
    "reproducible source-date-epoch=git",
)
.props(&[prop("source-date-epoch", Kind::Epoch, "All times that the build makes.")])
.unset();
const COMPRESSION: NodeSpec = NodeSpec::new(
    "compression",
    "Compression of pushed layers (default gzip).",
    "compression zstd",
)
.args(&[arg("codec", CODECS, Count::One)])
.unset();

const STRICT: NodeSpec = NodeSpec::new(
    "strict",
    "`#true`: what the rules of our own find fails the build; see `checks.md`.",
    "strict #true",
)
.args(&[arg("value", Kind::Flag, Count::One)])
.unset();

static DEFAULTS_NODES: &[NodeSpec] = &[
    CONTEXT,
    ARGS,
    LABELS,
    TAGS,
    PLATFORMS,
    PUSH,
    REPRODUCIBLE,
    COMPRESSION,
    STRICT,
    LIMITS,
    LAYERS,
    NETWORK,
    HOSTS,
    DNS,
    NodeSpec::later("cache"),
];

static IMAGE_NODES: &[NodeSpec] = &[
    NodeSpec::new(
        "dockerfile",
        "The Dockerfile (default: `Dockerfile` in the context), or its text. With a context that is no folder, a path in it; a URL is fetched.",
        r#"dockerfile "docker/base.Dockerfile""#,
    )
    .args(&[arg("file", Kind::Path, Count::Optional)])
    .props(&[prop("inline", Kind::Text, "The text itself; a raw string keeps its braces.")])
    .unset(),
    CONTEXT,
    NodeSpec::new("target", "Stage to build (default: the last one).", "target runtime")
        .args(&[arg("stage", Kind::Text, Count::One)])
        .unset(),
    ARGS,
    NodeSpec::new(
        "build-context",
        "What a name stands for in FROM and COPY --from: what `context` may be, `oci-layout://PATH`, `docker-image://NAME` or `target:IMAGE`.",
        r#"build-context src="shared/proto" "alpine:3.19"="oci-layout://bases:alpine""#,
    )
    .free_props(Kind::Text)
    .repeat(Repeat::Many)
    .unset(),
    LABELS,
    TAGS,
    PLATFORMS,
    NodeSpec::new(
        "needs",
        "Images of this project to be built before; FROM and COPY --from of their names need no mention.",
        "needs base",
    )
    .args(&[arg("image", Kind::Image, Count::Many)])
    .later_props(&["src"])
    .repeat(Repeat::Many)
    .unset(),
    PUSH,
    NodeSpec::new(
        "output",
        "A file or folder to write besides the store.",
        r#"output oci-archive="dist/api.tar""#,
    )
    .props(&[
        prop("oci-archive", Kind::Path, "OCI image layout in one tar file."),
        prop("oci-layout", Kind::Path, "OCI image layout in a folder."),
        prop("docker-archive", Kind::Path, "File for `docker load`."),
        prop("tar", Kind::Path, "The root file system as one tar file."),
        prop("local", Kind::Path, "The root file system in a folder."),
        prop("compression", CODECS, "Compression of layers."),
        IF,
    ])
    .later_props(&["load", "cluster"])
    .repeat(Repeat::Many)
    .unset(),
    NodeSpec::new(
        "export",
        "`#false`: only others are built from it; it gets no name and is not pushed.",
        "export #false",
    )
    .args(&[arg("value", Kind::Flag, Count::One)])
    .unset(),
    REPRODUCIBLE,
    COMPRESSION,
    STRICT,
    LIMITS,
    LAYERS,
    NodeSpec::new(
        "secrets",
        "Secrets that `RUN --mount=type=secret,id=NAME` may read.",
        "secrets npm-token",
    )
    .args(&[arg("name", Kind::Secret, Count::Many)])
    .unset(),
    NodeSpec::new(
        "ssh",
        "What `RUN --mount=type=ssh,id=NAME` may use: a name alone is the agent of SSH_AUTH_SOCK, `NAME=FILE` an agent's socket or a private key.",
        r#"ssh default deploy="keys/deploy""#,
    )
    .args(&[arg("name", Kind::Text, Count::Any)])
    .free_props(Kind::Path)
    .unset(),
    NETWORK,
    HOSTS,
    DNS,
    NodeSpec::later("sign"),
    NodeSpec::later("attest"),
    NodeSpec::later("test"),
    NodeSpec::later("matrix"),
    NodeSpec::later("cache"),
];

static PIPELINE_NODES: &[NodeSpec] = &[
    NodeSpec::new("images", "The images; `all` for every one.", "images api web")
        .args(&[arg("image", Kind::Image, Count::Many)])
        .later_props(&["tag"])
        .repeat(Repeat::Many),
    NodeSpec::later("platforms"),
    NodeSpec::later("publish"),
    NodeSpec::later("require"),
    NodeSpec::later("fail-on"),
    NodeSpec::later("emit"),
    NodeSpec::later("sign"),
    NodeSpec::later("attest"),
    NodeSpec::later("test"),
    NodeSpec::later("no-cache"),
];

static WATCH_NODES: &[NodeSpec] = &[
    NodeSpec::new(
        "debounce",
        "Quiet time before a new run (default 150ms).",
        r#"debounce "150ms""#,
    )
    .args(&[arg("time", Kind::Duration, Count::One)]),
    NodeSpec::new("ignore", "Paths whose changes do not count.", r#"ignore "**/*.md" "dist/**""#)
        .args(&[arg("pattern", Kind::Text, Count::Many)])
        .repeat(Repeat::Many),
    NodeSpec::new("pipeline", "What is run (default: `default`).", "pipeline default")
        .args(&[arg("name", Kind::Pipeline, Count::One)]),
    NodeSpec::later("on"),
];

impl NodeSpec {
    /// The spec of a child with this name.
    pub(super) fn child(&self, name: &str) -> Option<&'static Self> {
        match self.children {
            Children::None => None,
            Children::Nodes(nodes) => nodes.iter().find(|spec| spec.name == name),
            Children::Free(spec) => Some(spec),
        }
    }

    /// Names of children to suggest.
    pub(super) fn child_names(&self) -> impl Iterator<Item = &'static str> {
        let nodes = if let Children::Nodes(nodes) = self.children { nodes } else { &[] };
        nodes.iter().filter(|spec| spec.support == Support::Yes).map(|spec| spec.name)
    }
}
