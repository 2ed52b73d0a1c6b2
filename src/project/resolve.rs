//! From checked nodes and facts to [`Settings`]: variables, conditions, inheritance.
//!
//! Pure; the only errors left are values that are missing or wrong once they are known.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::facts::Facts;
use super::facts::is_semver;
use super::layers::resolve_image;
use super::problem::Fault;
use super::problem::Problems;
use super::problem::suggestion;
use super::read::Node;
use super::settings::Mirror;
use super::settings::Origin;
use super::settings::Pipeline;
use super::settings::Registry;
use super::settings::SecretFrom;
use super::settings::Settings;
use super::settings::Tls;
use super::settings::Variable;
use super::settings::Watch;
use super::template::Absent;
use super::template::Scope;
use super::value::Data;
use super::value::Value;
use super::value::duration;

pub(super) fn resolve(nodes: &[Node], facts: &Facts, problems: &mut Problems) -> Settings {
    let vars = variables(nodes, facts, problems);
    let values: BTreeMap<String, String> = vars
        .iter()
        .filter_map(|variable| Some((variable.name.clone(), variable.value.clone()?)))
        .collect();
    let scope = Scope { facts, vars: &values, image: None };
    let of = |kind: &'static str| nodes.iter().filter(move |node| node.name == kind);
    let mut fill = Filler { scope: &scope, problems };
    let registries = of("registry").map(|node| registry(node, nodes, &mut fill)).collect();
    let mirrors = of("mirror").filter_map(|node| mirror(node, &mut fill)).collect();
    let watch = of("watch").next().map_or_else(Watch::default, |node| watch(node, &mut fill));
    let images: Vec<_> =
        of("image").map(|node| resolve_image(node, nodes, (facts, &values), problems)).collect();
    let pipelines = of("pipeline").map(|node| pipeline(node, nodes)).collect();
    Settings { vars, registries, mirrors, images, pipelines, watch }
}

/// Fills values and reports what has none.
pub(super) struct Filler<'a, 'p> {
    pub(super) scope: &'a Scope<'a>,
    pub(super) problems: &'p mut Problems,
}

impl Filler<'_, '_> {
    /// The value as text; `None` for `#null`, and for what is reported.
    pub(super) fn text(&mut self, value: &Value) -> Option<String> {
        match &value.data {
            Data::Text(template) => match template.fill(self.scope) {
                Ok(text) => Some(text),
                Err(absent) => {
                    self.absent(absent);
                    None
                }
            },
            Data::Flag(flag) => Some(flag.to_string()),
            Data::Number(number) => Some(number.to_string()),
            Data::Null | Data::Wrong | Data::Condition(_) => None,
        }
    }

    pub(super) fn absent(&mut self, absent: Absent) {
        let Absent { message, help, at } = absent;
        self.problems.add(at, Fault::NoValue(message)).label("asked for here").help(help);
    }

    pub(super) fn prop(&mut self, node: &Node, name: &str) -> Option<String> {
        node.prop(name).and_then(|value| self.text(value))
    }

    pub(super) fn first(&mut self, node: &Node) -> Option<String> {
        node.args.first().and_then(|value| self.text(value))
    }

    /// Whether the node's `if` holds.
    pub(super) fn holds(&mut self, node: &Node) -> bool {
        let Some(Value { data: Data::Condition(condition), .. }) = node.prop("if") else {
            return true;
        };
        condition.holds(self.scope).unwrap_or_else(|absent| {
            self.absent(absent);
            false
        })
    }
}

/// Names of variables are compared without regard to case and `-` or `_`.
fn folded(name: &str) -> String {
    name.to_ascii_lowercase().replace('-', "_")
}

fn variables(nodes: &[Node], facts: &Facts, problems: &mut Problems) -> Vec<Variable> {
    let declared: Vec<&Node> =
        nodes.iter().filter(|node| node.name == "vars").flat_map(|node| &node.children).collect();
    let mut values = BTreeMap::new();
    let mut found = Vec::new();
    for node in &declared {
        let overriding = overridden(&node.name, facts);
        let (value, origin) = match overriding {
            Some((value, origin)) => (Some(value.to_owned()), origin),
            None => (default_of(node, facts, &values, problems), Origin::File),
        };
        let one_of = node.prop("one-of").and_then(Value::as_plain).unwrap_or_default();
        let one_of: Vec<String> = one_of.split_whitespace().map(str::to_owned).collect();
        if let Some(value) = &value {
            check_variable(node, (value, origin), &one_of, problems);
            values.insert(node.name.clone(), value.clone());
        }
        let help = node.prop("help").and_then(Value::as_plain).map(str::to_owned);
        found.push(Variable { name: node.name.clone(), value, origin, help, one_of });
    }
    let given = facts.flag_vars.keys().map(|name| (name, "--var "));
    let given = given.chain(facts.env_vars.keys().map(|name| (name, "IDPBUILDER_VAR_")));
    for (name, from) in given {
        if declared.iter().any(|node| folded(&node.name) == folded(name)) {
            continue;
        }
        let known = declared.iter().map(|node| node.name.as_str());
        let help = suggestion(name, known).unwrap_or_else(|| {
            format!("declare it in the project file: vars {{ {name} default }}")
        });
        let fault = Fault::UnknownName { kind: "variable", name: format!("{from}{name}") };
        problems.add_outside(fault).help(help);
    }
    found
}

fn overridden<'f>(name: &str, facts: &'f Facts) -> Option<(&'f str, Origin)> {
    let find = |given: &'f BTreeMap<String, String>| {
        given.get(name).or_else(|| {
            given.iter().find(|(key, _)| folded(key) == folded(name)).map(|(_, value)| value)
        })
    };
    let flag = find(&facts.flag_vars).map(|value| (value.as_str(), Origin::Flag));
    flag.or_else(|| find(&facts.env_vars).map(|value| (value.as_str(), Origin::Environment)))
}

fn default_of(
    node: &Node,
    facts: &Facts,
    values: &BTreeMap<String, String>,
    problems: &mut Problems,
) -> Option<String> {
    let scope = Scope { facts, vars: values, image: None };
    let mut fill = Filler { scope: &scope, problems };
    let first = node.args.first()?;
    if let (Data::Text(template), Some(fallback)) = (&first.data, node.prop("fallback"))
        && template.fill(&scope).is_err()
    {
        return fill.text(fallback);
    }
    fill.text(first)
}

fn check_variable(
    node: &Node,
    (value, origin): (&str, Origin),
    one_of: &[String],
    problems: &mut Problems,
) {
    let form = node.prop("type").and_then(Value::as_plain).unwrap_or("string");
    let fits = match form {
        "bool" => matches!(value, "true" | "false"),
        "int" => value.parse::<i64>().is_ok(),
        "semver" => is_semver(value),
        _ => true,
    };
    let from = match origin {
        Origin::File => "",
        Origin::Environment => " (from the environment)",
        Origin::Flag => " (from --var)",
    };
    let at = node.args.first().filter(|_| origin == Origin::File).map_or(node.at, |arg| arg.at);
    if !fits {
        let message = format!("`{value}`{from} is not a {form} for variable `{}`", node.name);
        problems.add(at, Fault::WrongValue(message)).label(format!("a {form}"));
    } else if !one_of.is_empty() && !one_of.iter().any(|one| one == value) {
        let message = format!("`{value}`{from} is not allowed for variable `{}`", node.name);
        let help = suggestion(value, one_of.iter().map(String::as_str));
        problems
            .add(at, Fault::WrongValue(message))
            .label(format!("one of: {}", one_of.join(", ")))
            .help_if(help);
    }
}

fn registry(node: &Node, nodes: &[Node], fill: &mut Filler<'_, '_>) -> Registry {
    let mut found = Registry { name: node.label().to_owned(), ..Registry::default() };
    found.address = node.args.get(1).and_then(|value| {
        let address = fill.text(value)?;
        let good = valid_address(&address, value, fill);
        good.then(|| canonical(address))
    });
    found.plain_http = node.child("plain-http").is_some();
    found.namespace = node.child("namespace").and_then(|child| {
        let namespace = fill.first(child)?;
        let namespace = namespace.trim_matches('/').to_owned();
        valid_namespace(&namespace, &child.args[0], fill).then_some(namespace)
    });
    if let Some(auth) = node.child("auth") {
        found.password = password(auth, nodes, fill);
        // A name without a password would be sent as a failed log-in.
        found.username = fill.prop(auth, "username").filter(|_| found.password.is_some());
    }
    if let Some(tls) = node.child("tls") {
        found.tls = Tls {
            ca: fill.prop(tls, "ca").map(PathBuf::from),
            pin: fingerprint(tls, fill),
            skip_verify: tls.args.first().and_then(Value::as_plain) == Some("insecure-skip-verify"),
        };
    }
    for realm in node.children.iter().filter(|child| child.name == "auth-realm") {
        found.auth_realms.extend(realm.args.iter().filter_map(|value| fill.text(value)));
    }
    found
}

/// References know the Docker Hub under one name.
fn canonical(address: String) -> String {
    if address == "index.docker.io" { "docker.io".to_owned() } else { address }
}

fn valid_address(address: &str, value: &Value, fill: &mut Filler<'_, '_>) -> bool {
    let help = if address.contains("://") {
        "leave out the scheme; `plain-http` in the block turns TLS off"
    } else if address.contains('/') {
        "the path belongs into `namespace`"
    } else {
        "host and port, such as \"localhost:5000\""
    };
    let parsed = format!("{address}/x").parse::<crate::oci::Reference>();
    let good = !address.contains('/')
        && parsed.is_ok_and(|parsed| parsed.registry() == address || address == "index.docker.io");
    if !good {
        let fault = Fault::WrongValue(format!("`{address}` is not the address of a registry"));
        fill.problems.add(value.at, fault).label("host and port").help(help);
    }
    good
}

fn valid_namespace(namespace: &str, value: &Value, fill: &mut Filler<'_, '_>) -> bool {
    let good = format!("h.x/{namespace}/i").parse::<crate::oci::Reference>().is_ok()
        && !namespace.contains([':', '@']);
    if !good {
        let fault = Fault::WrongValue(format!("`{namespace}` is not a path in a registry"));
        let lower = namespace.to_lowercase();
        let help = if lower == namespace {
            "lower-case letters and digits, with `.`, `_`, `-` and `/` between".to_owned()
        } else {
            format!("paths are in lower case: \"{lower}\"")
        };
        fill.problems.add(value.at, fault).label("not a path").help(help);
    }
    good
}

fn password(auth: &Node, nodes: &[Node], fill: &mut Filler<'_, '_>) -> Option<SecretFrom> {
    if let Some(name) = fill.prop(auth, "password-env") {
        return Some(SecretFrom::Env(name));
    }
    if let Some(path) = fill.prop(auth, "password-file") {
        return Some(SecretFrom::File(PathBuf::from(path)));
    }
    let name = fill.prop(auth, "password-from")?;
    if fill.scope.facts.absent_secrets.contains(&name) {
        return None;
    }
    let secret = nodes.iter().find(|node| node.name == "secret" && node.label() == name)?;
    secret_source(secret, fill)
}

pub(super) fn secret_source(secret: &Node, fill: &mut Filler<'_, '_>) -> Option<SecretFrom> {
    match fill.prop(secret, "env") {
        Some(name) => Some(SecretFrom::Env(name)),
        None => fill.prop(secret, "file").map(|path| SecretFrom::File(PathBuf::from(path))),
    }
}

/// A SHA-256 as hex, with colons and a `sha256:` in front if wanted.
fn fingerprint(tls: &Node, fill: &mut Filler<'_, '_>) -> Option<String> {
    const HEX_DIGITS: usize = 64;
    let pin = fill.prop(tls, "pin")?;
    let hex = pin.strip_prefix("sha256").unwrap_or(&pin).trim_start_matches([':', '-', ' ']);
    let digits: String = hex.chars().filter(|c| *c != ':').collect();
    if digits.len() == HEX_DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Some(digits.to_ascii_lowercase());
    }
    let at = tls.prop("pin").map_or(tls.at, |value| value.at);
    fill.problems
        .add(at, Fault::WrongValue("this is not a SHA-256 fingerprint".to_owned()))
        .label(format!("{HEX_DIGITS} hex digits, colons allowed"))
        .help("`idpbuilder cert show HOST:PORT` shows it");
    None
}

fn mirror(node: &Node, fill: &mut Filler<'_, '_>) -> Option<Mirror> {
    let registry = fill.first(node)?;
    let via = fill.prop(node, "via")?.trim_end_matches('/').to_owned();
    let (host, path) = via.split_once('/').map_or((via.as_str(), None), |(h, p)| (h, Some(p)));
    let value = node.prop("via")?;
    let good = valid_address(host, value, fill)
        && path.is_none_or(|path| valid_namespace(path, value, fill))
        && valid_address(&registry, &node.args[0], fill);
    let fallback = !matches!(node.prop("fallback"), Some(Value { data: Data::Flag(false), .. }));
    good.then(|| Mirror { registry: canonical(registry), via, fallback })
}

fn watch(node: &Node, fill: &mut Filler<'_, '_>) -> Watch {
    let mut watch = Watch::default();
    for child in &node.children {
        match child.name.as_str() {
            "debounce" => {
                watch.debounce =
                    fill.first(child).and_then(|text| duration(&text)).unwrap_or(watch.debounce);
            }
            "ignore" => {
                watch.ignore.extend(child.args.iter().filter_map(|value| fill.text(value)));
            }
            _ => watch.pipeline = fill.first(child),
        }
    }
    watch
}

fn pipeline(node: &Node, nodes: &[Node]) -> Pipeline {
    let mut images = Vec::new();
    let lists = node.children.iter().filter(|child| child.name == "images");
    for name in lists.flat_map(|list| &list.args).filter_map(Value::as_plain) {
        let all = nodes.iter().filter(|node| node.name == "image").map(Node::label);
        let named: Vec<&str> = if name == "all" { all.collect() } else { vec![name] };
        for name in named {
            if !images.iter().any(|image| image == name) {
                images.push(name.to_owned());
            }
        }
    }
    Pipeline { name: node.label().to_owned(), images }
}
