//! One image from the layers of its settings: built-in, `defaults`, the images it is `from`, its own.
//!
//! Single values and lists replace; arguments, labels and build contexts add up by name; `#null`
//! unsets.

use std::collections::BTreeMap;
use std::path::PathBuf;

use miette::SourceSpan;

use super::facts::Facts;
use super::links::is_address;
use super::network;
use super::problem::Fault;
use super::problem::Problems;
use super::read::Node;
use super::resolve::Filler;
use super::settings::BuildContext;
use super::settings::Dockerfile;
use super::settings::Files;
use super::settings::Image;
use super::settings::Output;
use super::settings::OutputForm;
use super::settings::Push;
use super::settings::PushRule;
use super::settings::PushTo;
use super::settings::SecretFrom;
use super::template::Scope;
use super::value::Data;
use super::value::Value;
use crate::limits::Limits;
use crate::limits::Split;
use crate::oci::Codec;
use crate::oci::Platform;
use crate::oci::Reference;
use crate::remote::Remote;
use crate::remote::is_web;

/// Blocks of settings, the weakest first.
struct Layers<'n> {
    blocks: Vec<&'n [Node]>,
}

impl<'n> Layers<'n> {
    fn of(image: &'n Node, nodes: &'n [Node]) -> Self {
        let mut chain = vec![image];
        let mut next = image;
        while let Some(from) = next.prop("from").and_then(Value::as_plain) {
            let parent = nodes.iter().find(|node| node.name == "image" && node.label() == from);
            let Some(parent) = parent else { break };
            chain.push(parent);
            next = parent;
        }
        chain.extend(nodes.iter().filter(|node| node.name == "defaults"));
        let blocks = chain.iter().rev().map(|node| node.children.as_slice()).collect();
        Self { blocks }
    }

    /// The nodes of the strongest block that has any with this name; none when it says `#null`.
    fn strongest(&self, name: &str) -> Vec<&'n Node> {
        let mut found = self.blocks.iter().rev().map(|block| named(block, name));
        let nodes = found.find(|nodes| !nodes.is_empty()).unwrap_or_default();
        if nodes.iter().any(|node| node.is_unset()) { Vec::new() } else { nodes }
    }

    fn single(&self, name: &str) -> Option<&'n Node> {
        self.strongest(name).first().copied()
    }

    /// Nodes of all blocks, from the last one that says `#null`.
    fn all(&self, name: &str) -> Vec<&'n Node> {
        let mut found = Vec::new();
        for node in self.blocks.iter().flat_map(|block| named(block, name)) {
            if node.is_unset() {
                found.clear();
            } else {
                found.push(node);
            }
        }
        found
    }

    fn says(&self, name: &str) -> bool {
        self.blocks.iter().any(|block| !named(block, name).is_empty())
    }
}

fn named<'n>(block: &'n [Node], name: &str) -> Vec<&'n Node> {
    block.iter().filter(|node| node.name == name).collect()
}

pub(super) fn resolve_image(
    node: &Node,
    nodes: &[Node],
    (facts, vars): (&Facts, &BTreeMap<String, String>),
    problems: &mut Problems,
) -> Image {
    let layers = Layers::of(node, nodes);
    let name = node.label().to_owned();
    let scope = Scope { facts, vars, image: Some(&name) };
    let mut fill = Filler { scope: &scope, problems };
    let fill = &mut fill;
    let context = match (layers.single("context"), layers.says("context")) {
        (Some(context), _) => files_of(context, fill),
        (None, true) => None,
        (None, false) => Some(Files::Folder(PathBuf::from("."))),
    };
    let export = layers.single("export").and_then(|node| node.args.first());
    let strict = layers.single("strict").and_then(|node| node.args.first());
    Image {
        dockerfile: dockerfile(&layers, context.as_ref(), fill),
        context,
        target: layers.single("target").and_then(|node| fill.first(node)),
        args: merged_props(&layers.all("args"), fill)
            .into_iter()
            .map(|(k, (v, _))| (k, v))
            .collect(),
        build_contexts: build_contexts(&layers, nodes, fill),
        labels: labels(&layers.all("labels"), fill),
        tags: tags(&layers, fill),
        platforms: platforms(&layers, fill),
        needs: needs(&layers, fill),
        pushes: pushes(&layers, fill),
        push_rule: match (layers.says("push"), layers.strongest("push").as_slice()) {
            (false, _) => PushRule::Unsaid,
            (true, []) => PushRule::Never,
            (true, _) => PushRule::Named,
        },
        outputs: layers.strongest("output").into_iter().filter_map(|o| output(o, fill)).collect(),
        export: !matches!(export, Some(Value { data: Data::Flag(false), .. })),
        source_date_epoch: epoch(&layers, fill),
        compression: match layers.single("compression").and_then(|node| fill.first(node)) {
            Some(codec) if codec == "zstd" => Codec::Zstd,
            _ => Codec::Gzip,
        },
        secrets: secrets(&layers, nodes, fill),
        strict: matches!(strict, Some(Value { data: Data::Flag(true), .. })),
        ssh: ssh(&layers, fill),
        limits: limits(&layers, fill),
        split: layers.single("layers").map(|node| split(node, fill)),
        network: layers.single("network").and_then(|node| network::mode(node, fill)),
        hosts: network::hosts(merged_props(&layers.all("hosts"), fill), fill),
        dns: layers.single("dns").map(|node| network::dns(node, fill)).unwrap_or_default(),
        name,
    }
}

/// Limits of all blocks, the weakest first: each sets what it names.
fn limits(layers: &Layers<'_>, fill: &mut Filler<'_, '_>) -> Limits {
    let mut limits = Limits::default();
    let written = merged_props(&layers.all("limits"), fill);
    // The period comes before what is counted in it.
    let first = |name: &String| name != "cpu-period";
    let mut written: Vec<_> = written.into_iter().collect();
    written.sort_by_key(|(name, _)| first(name));
    for (name, (text, at)) in written {
        let set = if name == "ulimits" {
            text.split_whitespace().try_for_each(|one| limits.add_ulimit(one))
        } else {
            limits.set(&name, &text)
        };
        if let Err(reason) = set {
            fill.problems.add(at, Fault::WrongValue(reason)).label("this limit");
        }
    }
    if let (Err(reason), Some(node)) = (limits.check(), layers.single("limits")) {
        fill.problems.add(node.at, Fault::WrongValue(reason)).label("these limits");
    }
    limits
}

fn split(node: &Node, fill: &mut Filler<'_, '_>) -> Split {
    let mut split = Split::default();
    for name in ["size", "most"] {
        let Some(text) = fill.prop(node, name) else { continue };
        if let Err(reason) = split.set(name, &text) {
            let at = node.prop(name).map_or(node.at, |value| value.at);
            fill.problems.add(at, Fault::WrongValue(reason)).label(format!("this {name}"));
        }
    }
    for often in &node.children {
        split.often.push(often.args.iter().filter_map(|value| fill.text(value)).collect());
    }
    split
}

fn dockerfile(
    layers: &Layers<'_>,
    context: Option<&Files>,
    fill: &mut Filler<'_, '_>,
) -> Dockerfile {
    let given = layers.single("dockerfile");
    if let Some(text) = given.and_then(|node| fill.prop(node, "inline")) {
        return Dockerfile::Inline(text);
    }
    let path = given.and_then(|node| fill.first(node));
    match (path, context) {
        (Some(url), _) if is_web(&url) => Dockerfile::Url(url),
        // As with `build -f`: inside of what is fetched, unless it is said from the root.
        (Some(path), Some(Files::Archive(_) | Files::Remote(_))) if !path.starts_with('/') => {
            Dockerfile::InContext(Some(path))
        }
        (Some(path), _) => Dockerfile::File(PathBuf::from(path)),
        (None, Some(Files::Archive(_) | Files::Remote(_))) => Dockerfile::InContext(None),
        (None, Some(Files::Folder(folder))) if folder.as_os_str() != "." => {
            Dockerfile::File(folder.join("Dockerfile"))
        }
        (None, Some(Files::Folder(_)) | None) => Dockerfile::File(PathBuf::from("Dockerfile")),
    }
}

/// What a `context` says; a file that is called like an archive is one.
fn files_of(node: &Node, fill: &mut Filler<'_, '_>) -> Option<Files> {
    let text = fill.first(node)?;
    files(&text, node.args.first()?.at, fill)
}

fn files(text: &str, at: SourceSpan, fill: &mut Filler<'_, '_>) -> Option<Files> {
    const ARCHIVES: [&str; 8] =
        [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"];
    match Remote::parse(text) {
        Ok(Some(remote)) => return Some(Files::Remote(remote)),
        Ok(None) => {}
        Err(error) => {
            fill.problems.add(at, Fault::WrongValue(error.0)).label("not a repository");
            return None;
        }
    }
    if text.contains("://") {
        let fault = Fault::WrongValue(format!("`{text}` is no context"));
        let help =
            "a folder, a tar archive, a git repository, or an http or https URL of an archive";
        fill.problems.add(at, fault).label("an unknown scheme").help(help);
        return None;
    }
    let path = PathBuf::from(text);
    let is_archive = ARCHIVES.iter().any(|ending| text.ends_with(ending));
    Some(if is_archive { Files::Archive(path) } else { Files::Folder(path) })
}

/// Properties of all nodes by key, later ones first in rank; `#null` removes.
fn merged_props(
    nodes: &[&Node],
    fill: &mut Filler<'_, '_>,
) -> BTreeMap<String, (String, SourceSpan)> {
    let mut merged = BTreeMap::new();
    for prop in nodes.iter().flat_map(|node| &node.props) {
        if matches!(prop.value.data, Data::Null) {
            merged.remove(&prop.name);
        } else if let Some(text) = fill.text(&prop.value) {
            merged.insert(prop.name.clone(), (text, prop.value.at));
        }
    }
    merged
}

fn labels(nodes: &[&Node], fill: &mut Filler<'_, '_>) -> BTreeMap<String, String> {
    let mut merged = BTreeMap::new();
    for label in nodes.iter().flat_map(|node| &node.children) {
        if label.is_unset() {
            merged.remove(&label.name);
        } else if let Some(text) = fill.first(label) {
            merged.insert(label.name.clone(), text);
        }
    }
    merged
}

fn build_contexts(
    layers: &Layers<'_>,
    nodes: &[Node],
    fill: &mut Filler<'_, '_>,
) -> BTreeMap<String, BuildContext> {
    let written = merged_props(&layers.all("build-context"), fill);
    let mut contexts = BTreeMap::new();
    for (name, (text, at)) in written {
        if let Some(context) = build_context(&text, at, nodes, fill) {
            contexts.insert(name, context);
        }
    }
    contexts
}

fn build_context(
    text: &str,
    at: SourceSpan,
    nodes: &[Node],
    fill: &mut Filler<'_, '_>,
) -> Option<BuildContext> {
    if let Some(layout) = text.strip_prefix("oci-layout://") {
        return Some(oci_layout(layout));
    }
    if text == "docker-image://scratch" {
        return Some(BuildContext::Scratch);
    }
    if let Some(reference) = text.strip_prefix("docker-image://") {
        return match reference.parse::<Reference>() {
            Ok(reference) => Some(BuildContext::Image(reference)),
            Err(error) => {
                let fault = Fault::WrongValue(format!("`{reference}` is not an image: {error}"));
                fill.problems.add(at, fault).label("not a reference");
                None
            }
        };
    }
    if let Some(name) = text.strip_prefix("target:") {
        let mut images = nodes.iter().filter(|node| node.name == "image").map(Node::label);
        if images.clone().any(|image| image == name) {
            return Some(BuildContext::ProjectImage(name.to_owned()));
        }
        let help = super::problem::suggestion(name, images.by_ref());
        let fault = Fault::UnknownName { kind: "image", name: name.to_owned() };
        fill.problems.add(at, fault).label("not declared").help_if(help);
        return None;
    }
    files(text, at, fill).map(BuildContext::Files)
}

/// `PATH`, `PATH:TAG` or `PATH@DIGEST`; a tag has no slash.
fn oci_layout(text: &str) -> BuildContext {
    if let Some((path, digest)) = text.split_once('@') {
        return BuildContext::OciLayout(PathBuf::from(path), Some(format!("@{digest}")));
    }
    match text.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => {
            BuildContext::OciLayout(PathBuf::from(path), Some(format!(":{tag}")))
        }
        _ => BuildContext::OciLayout(PathBuf::from(text), None),
    }
}

fn tags(layers: &Layers<'_>, fill: &mut Filler<'_, '_>) -> Vec<String> {
    let mut tags = Vec::new();
    for node in layers.strongest("tags") {
        if !fill.holds(node) {
            continue;
        }
        for value in &node.args {
            let Some(tag) = fill.text(value) else { continue };
            if format!("h.x/i:{tag}").parse::<Reference>().is_err() || tag.contains('@') {
                let fault = Fault::WrongValue(format!("`{tag}` is not a tag"));
                fill.problems
                    .add(value.at, fault)
                    .label("at most 128 letters, digits, `_`, `.` and `-`")
                    .help("`{name|slug}` makes a tag of any text");
            } else if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
    }
    tags
}

fn platforms(layers: &Layers<'_>, fill: &mut Filler<'_, '_>) -> Vec<Platform> {
    let mut platforms = Vec::new();
    for value in layers.strongest("platforms").into_iter().flat_map(|node| &node.args) {
        let parsed = fill.text(value).and_then(|text| text.parse::<Platform>().ok());
        platforms.extend(parsed.filter(|platform| !platforms.contains(platform)));
    }
    platforms
}

fn needs(layers: &Layers<'_>, fill: &mut Filler<'_, '_>) -> Vec<String> {
    let mut needs = Vec::new();
    for value in layers.strongest("needs").into_iter().flat_map(|node| &node.args) {
        needs.extend(fill.text(value).filter(|name| !needs.contains(name)));
    }
    needs
}

/// The secrets that an image's processes may read; optional ones that have no value are left out.
fn secrets(
    layers: &Layers<'_>,
    nodes: &[Node],
    fill: &mut Filler<'_, '_>,
) -> BTreeMap<String, SecretFrom> {
    let mut found = BTreeMap::new();
    let names = layers.strongest("secrets").into_iter().flat_map(|node| &node.args);
    for name in names.filter_map(Value::as_plain) {
        if fill.scope.facts.absent_secrets.contains(name) {
            continue;
        }
        let declared = nodes.iter().find(|node| node.name == "secret" && node.label() == name);
        let source = declared.and_then(|secret| super::resolve::secret_source(secret, fill));
        found.extend(source.map(|source| (name.to_owned(), source)));
    }
    found
}

fn ssh(layers: &Layers<'_>, fill: &mut Filler<'_, '_>) -> BTreeMap<String, Option<PathBuf>> {
    let nodes = layers.strongest("ssh");
    let mut found = BTreeMap::new();
    for value in nodes.iter().flat_map(|node| &node.args) {
        found.extend(fill.text(value).map(|name| (name, None)));
    }
    for (name, (path, _)) in merged_props(&nodes, fill) {
        found.insert(name, Some(PathBuf::from(path)));
    }
    found
}

fn pushes(layers: &Layers<'_>, fill: &mut Filler<'_, '_>) -> Vec<Push> {
    let mut pushes = Vec::new();
    for node in layers.strongest("push") {
        if !fill.holds(node) {
            continue;
        }
        let name = fill.prop(node, "as");
        let Some(to) = fill.first(node) else { continue };
        let declared = node.args.first().and_then(Value::as_plain).is_some_and(|t| !is_address(t));
        let to = if declared {
            PushTo::Registry(to)
        } else {
            PushTo::Address(to.trim_end_matches('/').to_owned())
        };
        let push = Push { to, name };
        if push_is_valid(&push, node, fill) && !pushes.contains(&push) {
            pushes.push(push);
        }
    }
    pushes
}

fn push_is_valid(push: &Push, node: &Node, fill: &mut Filler<'_, '_>) -> bool {
    let name = push.name.as_deref().unwrap_or("image");
    let bad_name = format!("h.x/{name}").parse::<Reference>().is_err() || name.contains([':', '@']);
    if bad_name {
        let at = node.prop("as").map_or(node.at, |value| value.at);
        let fault = Fault::WrongValue(format!("`{name}` is not a name in a registry"));
        fill.problems.add(at, fault).label("lower case, without a tag").help("tags are in `tags`");
        return false;
    }
    let PushTo::Address(address) = &push.to else { return true };
    let parsed = format!("{address}/{name}").parse::<Reference>();
    let host = address.split('/').next().unwrap_or_default();
    let good =
        parsed.as_ref().is_ok_and(|parsed| parsed.registry() == host && parsed.digest().is_none());
    if !good {
        let fault = Fault::WrongValue(format!("`{address}` is not host and path of a registry"));
        fill.problems
            .add(node.args.first().map_or(node.at, |value| value.at), fault)
            .label("not an address")
            .help("such as \"gitea.cnoe.localtest.me:8443/giteaadmin\"; the image's name and its tags follow");
    }
    good
}

fn output(node: &Node, fill: &mut Filler<'_, '_>) -> Option<Output> {
    if !fill.holds(node) {
        return None;
    }
    let forms = [
        ("oci-archive", OutputForm::OciArchive),
        ("oci-layout", OutputForm::OciLayout),
        ("docker-archive", OutputForm::DockerArchive),
        ("tar", OutputForm::Tar),
        ("local", OutputForm::Local),
    ];
    let (name, form) = forms.into_iter().find(|(name, _)| node.prop(name).is_some())?;
    let compression = match fill.prop(node, "compression").as_deref() {
        Some("zstd") => Some(Codec::Zstd),
        Some(_) => Some(Codec::Gzip),
        None => None,
    };
    Some(Output { form, path: PathBuf::from(fill.prop(node, name)?), compression })
}

fn epoch(layers: &Layers<'_>, fill: &mut Filler<'_, '_>) -> Option<i64> {
    let value = layers.single("reproducible")?.prop("source-date-epoch")?;
    if let Data::Number(seconds) = value.data {
        return Some(seconds);
    }
    let git = fill.scope.facts.git.as_ref();
    if git.is_none() {
        let message = "`source-date-epoch=git` needs a git repository with a commit".to_owned();
        fill.problems
            .add(value.at, Fault::NoValue(message))
            .label("there is none")
            .help("give seconds since 1970: source-date-epoch=0");
    }
    git.map(|git| git.time)
}
