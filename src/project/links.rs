//! What the nodes mean together: every name declared, every node complete, no inheritance in circles.
//!
//! Works on checked nodes; needs no facts.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use miette::SourceSpan;

use super::facts::version_numbers;
use super::problem::Fault;
use super::problem::Problems;
use super::problem::suggestion;
use super::read::Node;
use super::table::Kind;
use super::template::Hole;
use super::template::is_git_name;
use super::value::Data;
use super::value::Value;
use crate::oci::Reference;

/// Words that a selection or a Dockerfile takes for something else.
const RESERVED: &[&str] = &["all", "scratch"];

struct Names<'a> {
    images: BTreeSet<&'a str>,
    registries: BTreeSet<&'a str>,
    secrets: BTreeSet<&'a str>,
    pipelines: BTreeSet<&'a str>,
    /// Variables so far, while `vars` is being read; all of them afterwards.
    vars: BTreeSet<&'a str>,
}

/// Reports everything that is wrong between nodes.
pub(super) fn check(nodes: &[Node], problems: &mut Problems) {
    let declared = |kind: &str| {
        nodes.iter().filter(|node| node.name == kind).map(Node::label).collect::<BTreeSet<_>>()
    };
    let mut names = Names {
        images: declared("image"),
        registries: declared("registry"),
        secrets: declared("secret"),
        pipelines: declared("pipeline"),
        vars: BTreeSet::new(),
    };
    for vars in nodes.iter().filter(|node| node.name == "vars") {
        for variable in &vars.children {
            check_variable(variable, problems);
            check_values(variable, &names, Within::File, problems);
            names.vars.insert(&variable.name);
        }
    }
    for node in nodes.iter().filter(|node| node.name != "vars") {
        check_tree(node, &names, Within::File, problems);
    }
    for node in nodes {
        check_node(node, &names, problems);
    }
    check_embedded(nodes, problems);
    check_inheritance(nodes, problems);
}

/// Whether `{image}` means something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    File,
    Image,
}

fn check_tree(node: &Node, names: &Names<'_>, within: Within, problems: &mut Problems) {
    let inner =
        if matches!(node.name.as_str(), "image" | "defaults") { Within::Image } else { within };
    check_values(node, names, inner, problems);
    for child in &node.children {
        check_tree(child, names, inner, problems);
    }
}

fn check_values(node: &Node, names: &Names<'_>, within: Within, problems: &mut Problems) {
    let props = node.props.iter().map(|prop| &prop.value);
    let declares = matches!(node.name.as_str(), "image" | "registry" | "secret" | "pipeline");
    for value in node
        .args
        .iter()
        .skip(usize::from(declares && node.spec.repeat == super::table::Repeat::Named))
        .chain(props)
    {
        let holes: Vec<&Hole> = match &value.data {
            Data::Text(template) => template.holes().collect(),
            Data::Condition(condition) => condition.holes(),
            Data::Null | Data::Wrong | Data::Flag(_) | Data::Number(_) => Vec::new(),
        };
        for hole in holes {
            check_hole(hole, names, within, problems);
        }
        check_reference(value, node, names, problems);
    }
}

fn check_hole(hole: &Hole, names: &Names<'_>, within: Within, problems: &mut Problems) {
    let name = hole.name.as_str();
    let known = is_git_name(name)
        || name.starts_with("env.")
        || (within == Within::Image && name == "image")
        || names.vars.contains(name);
    if known {
        return;
    }
    let mut all: Vec<String> = names.vars.iter().map(|name| (*name).to_owned()).collect();
    all.extend(super::facts::GIT_NAMES.iter().map(|name| format!("git.{name}")));
    let near = super::problem::closest(name, all.iter().map(String::as_str));
    let help = near.map_or_else(
        || {
            "declare it in `vars` above, or use {git.…} or {env.NAME}; for a brace that is text \
             write `{{`, or a raw string #\"…\"#"
                .to_owned()
        },
        |near| format!("did you mean `{near}`?"),
    );
    let fault = Fault::UnknownName { kind: "variable", name: name.to_owned() };
    problems.add(hole.at, fault).label("not declared").help(help);
}

fn check_reference(value: &Value, node: &Node, names: &Names<'_>, problems: &mut Problems) {
    let (kind, known) = if value.kind == Kind::Image {
        ("image", &names.images)
    } else if value.kind == Kind::Registry {
        ("registry", &names.registries)
    } else if value.kind == Kind::Secret {
        ("secret", &names.secrets)
    } else if value.kind == Kind::Pipeline {
        ("pipeline", &names.pipelines)
    } else {
        return;
    };
    let Some(name) = value.as_plain() else { return };
    let implied = (node.name == "images" && name == "all")
        || (kind == "pipeline" && name == "default")
        || (kind == "registry" && (is_address(name) || name == super::EMBEDDED));
    if implied || known.contains(name) {
        return;
    }
    let declare = || match kind {
        "registry" => format!(
            "declare it: registry {name} \"host:port\", or push to an address: push \"host:port/path\""
        ),
        _ => format!("declare it: {kind} {name} …"),
    };
    let help = suggestion(name, known.iter().copied()).unwrap_or_else(declare);
    let fault = Fault::UnknownName { kind, name: name.to_owned() };
    problems.add(value.at, fault).label("not declared").help(help);
}

/// Whether the argument of `push` is a host (and path) instead of a name.
pub(super) fn is_address(text: &str) -> bool {
    text.contains(['/', '.', ':']) || text == "localhost"
}

fn check_variable(node: &Node, problems: &mut Problems) {
    let good = node.name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && node.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        && !matches!(node.name.as_str(), "git" | "env" | "image");
    if !good {
        let message = format!("`{}` cannot be the name of a variable", node.name);
        problems
            .add(node.at, Fault::WrongValue(message))
            .label("not a name")
            .help("letters, digits, `-` and `_`; `git`, `env` and `image` are taken");
    }
}

fn check_node(node: &Node, names: &Names<'_>, problems: &mut Problems) {
    match node.name.as_str() {
        "idpbuilder" => check_version(node, problems),
        "registry" => check_registry(node, problems),
        "secret" => one_of_props(node, &["env", "file"], problems),
        "mirror" => one_of_props(node, &["via"], problems),
        "image" => {
            check_image_name(node, problems);
            check_settings(node, problems);
        }
        "defaults" => check_settings(node, problems),
        "pipeline" => check_pipeline(node, names, problems),
        _ => {}
    }
}

fn check_version(node: &Node, problems: &mut Problems) {
    let Some(value) = node.prop("min-version") else {
        one_of_props(node, &["min-version"], problems);
        return;
    };
    let (wanted, have) = (value.as_plain().unwrap_or_default(), env!("CARGO_PKG_VERSION"));
    if version_numbers(wanted) > version_numbers(have) {
        let fault = Fault::MinVersion { wanted: wanted.to_owned(), have: have.to_owned() };
        problems.add(value.at, fault).label("asked for here").help("install a newer idpbuilder");
    }
}

/// Exactly one of these properties must be there.
fn one_of_props(node: &Node, props: &[&str], problems: &mut Problems) {
    let given: Vec<_> =
        node.props.iter().filter(|prop| props.contains(&prop.name.as_str())).collect();
    if given.is_empty() && node.props.iter().any(|prop| matches!(prop.value.data, Data::Wrong)) {
        return; // What was meant to be it is reported already.
    }
    let list: Vec<String> = props.iter().map(|prop| format!("`{prop}`")).collect();
    let list = list.join(" or ");
    match given.as_slice() {
        [_] => {}
        [] => {
            let message = format!("`{}` needs {list}", node.name);
            let example = format!("write: {}", node.spec.example);
            problems.add(node.at, Fault::Missing(message)).label("incomplete").help(example);
        }
        [first, second, ..] => {
            let message = format!("`{}` takes only one of {list}", node.name);
            problems
                .add(second.at, Fault::Unexpected(message))
                .label("and this")
                .earlier(first.at, "this")
                .help("remove one of the two");
        }
    }
}

fn check_registry(node: &Node, problems: &mut Problems) {
    let embedded = node.child("embedded");
    match (node.args.get(1), embedded) {
        (Some(address), Some(embedded)) => {
            let message = "an embedded registry has no address".to_owned();
            problems
                .add(address.at, Fault::Unexpected(message))
                .label("remove this")
                .earlier(embedded.at, "embedded here")
                .help("idpbuilder serves it where a port is free");
        }
        (None, None) if !node.args.is_empty() => {
            let message = format!("registry `{}` needs an address", node.label());
            problems
                .add(node.at, Fault::Missing(message))
                .label("no address")
                .help(format!("write: {}, or `embedded` in its block", node.spec.example));
        }
        _ => {}
    }
    if let Some(auth) = node.child("auth") {
        check_auth(auth, problems);
    }
    if let Some(ca) = node.child("tls").and_then(|tls| tls.prop("ca"))
        && ca.as_plain() == Some("cluster")
    {
        problems
            .add(ca.at, Fault::NotSupported("tls ca=cluster".to_owned()))
            .label("this version reads files only")
            .help(
                "`idpbuilder cert extract` writes one; for a file of this name write \"./cluster\"",
            );
    }
    if let Some(tls) = node.child("tls")
        && tls.args.is_empty()
        && tls.props.is_empty()
    {
        let message = "`tls` says nothing".to_owned();
        problems
            .add(tls.at, Fault::Missing(message))
            .label("incomplete")
            .help("write tls ca=\"file.pem\", tls pin=\"sha256…\" or tls insecure-skip-verify");
    }
}

fn check_auth(auth: &Node, problems: &mut Problems) {
    if auth.args.is_empty() {
        one_of_props(auth, &["password-env", "password-file", "password-from"], problems);
        if auth.prop("username").is_none() && !auth.props.is_empty() {
            one_of_props(auth, &["username"], problems);
        }
    } else if let Some(prop) = auth.props.first() {
        problems
            .add(prop.at, Fault::Unexpected("`docker-config` stands alone".to_owned()))
            .label("remove this")
            .help("the auth file has the user name and the password");
    }
}

fn check_image_name(node: &Node, problems: &mut Problems) {
    let (name, Some(value)) = (node.label(), node.args.first()) else { return };
    if matches!(value.data, Data::Wrong | Data::Null) {
        return;
    }
    let reserved = RESERVED.contains(&name);
    if reserved || format!("h.x/{name}:t").parse::<Reference>().is_err() || name.contains(':') {
        let message = format!("`{name}` cannot be the name of an image");
        let help = if reserved {
            "the word means something else to pipelines and Dockerfiles"
        } else {
            "lower-case letters and digits, with `.`, `_`, `-` and `/` between"
        };
        problems.add(value.at, Fault::WrongValue(message)).label("not a name").help(help);
    }
}

fn check_settings(node: &Node, problems: &mut Problems) {
    for child in node.children.iter().filter(|child| !child.is_unset()) {
        match child.name.as_str() {
            "dockerfile" if child.args.is_empty() => one_of_props(child, &["inline"], problems),
            "dockerfile" => {
                if let Some(prop) = child.props.first() {
                    problems
                        .add(prop.at, Fault::Unexpected("a file and its text exclude".to_owned()))
                        .label("and the text")
                        .earlier(child.args[0].at, "the file")
                        .help("remove one of the two");
                }
            }
            "output" => one_of_props(
                child,
                &["oci-archive", "oci-layout", "docker-archive", "tar", "local"],
                problems,
            ),
            "reproducible" => one_of_props(child, &["source-date-epoch"], problems),
            _ => {}
        }
    }
}

fn check_pipeline(node: &Node, names: &Names<'_>, problems: &mut Problems) {
    let name = node.label();
    if names.images.contains(name) || RESERVED.contains(&name) {
        let message = format!("`{name}` is the name of an image already");
        problems
            .add(node.args.first().map_or(node.at, |value| value.at), Fault::Duplicate(message))
            .label("`run` could not tell them apart")
            .help("give the pipeline another name");
    }
    if node.child("images").is_none() && !node.args.is_empty() {
        let message = format!("pipeline `{name}` has no images");
        problems
            .add(node.at, Fault::Missing(message))
            .label("empty")
            .help(format!("write: {}", node.spec.example));
    }
}

fn check_embedded(nodes: &[Node], problems: &mut Problems) {
    let registries = nodes.iter().filter(|node| node.name == "registry");
    let mut embedded = registries.filter_map(|node| node.child("embedded"));
    if let (Some(first), Some(second)) = (embedded.next(), embedded.next()) {
        problems
            .add(second.at, Fault::Duplicate("there is one embedded registry".to_owned()))
            .label("a second one")
            .earlier(first.at, "the first one")
            .help("remove one; images can be told apart by `namespace`");
    }
}

/// `from` must not lead back.
fn check_inheritance(nodes: &[Node], problems: &mut Problems) {
    let parents: BTreeMap<&str, (&str, SourceSpan)> = nodes
        .iter()
        .filter(|node| node.name == "image")
        .filter_map(|node| {
            let from = node.prop("from")?;
            Some((node.label(), (from.as_plain()?, from.at)))
        })
        .collect();
    let mut judged: BTreeSet<&str> = BTreeSet::new();
    for start in parents.keys() {
        let mut chain = vec![*start];
        while let Some((parent, at)) = parents.get(chain.last().copied().unwrap_or_default()) {
            if judged.contains(parent) {
                break;
            }
            if let Some(position) = chain.iter().position(|name| name == parent) {
                let circle = [chain.get(position..).unwrap_or_default(), &[*parent]].concat();
                let message = format!("images inherit in a circle: {}", circle.join(" → "));
                problems
                    .add(*at, Fault::Cycle(message))
                    .label("closes the circle")
                    .help("put what they share into `defaults` or a third image");
                break;
            }
            chain.push(parent);
        }
        judged.extend(chain);
    }
}
