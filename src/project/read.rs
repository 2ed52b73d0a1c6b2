//! From KDL to checked nodes: every name, count and type held against the table.
//!
//! Knows the table and KDL; not what names refer to, and nothing of the world.

use kdl::KdlDocument;
use kdl::KdlEntry;
use kdl::KdlNode;
use kdl::KdlValue;
use miette::SourceSpan;

use super::problem::Fault;
use super::problem::Problems;
use super::problem::suggestion;
use super::table::Children;
use super::table::Count;
use super::table::Kind;
use super::table::NodeSpec;
use super::table::ROOT;
use super::table::Repeat;
use super::table::Support;
use super::table::Unset;
use super::value::Data;
use super::value::Value;
use super::value::read_value;

/// Most nodes in one block.
const NODES_MAX: usize = 1024;
/// Most arguments and properties of one node.
const ENTRIES_MAX: usize = 1024;

/// A node that agrees with its spec.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) spec: &'static NodeSpec,
    pub(super) name: String,
    /// Place of the name.
    pub(super) at: SourceSpan,
    pub(super) args: Vec<Value>,
    pub(super) props: Vec<Prop>,
    pub(super) children: Vec<Self>,
}

/// A property that agrees with its spec.
#[derive(Clone, Debug)]
pub(super) struct Prop {
    pub(super) name: String,
    pub(super) at: SourceSpan,
    pub(super) value: Value,
}

impl Node {
    pub(super) fn prop(&self, name: &str) -> Option<&Value> {
        self.props.iter().find(|prop| prop.name == name).map(|prop| &prop.value)
    }

    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The first argument as it is written, for names.
    pub(super) fn label(&self) -> &str {
        self.args.first().and_then(Value::as_plain).unwrap_or_default()
    }

    /// Whether it is a lone `#null`.
    pub(super) fn is_unset(&self) -> bool {
        matches!(self.args.as_slice(), [Value { data: Data::Null, .. }])
    }
}

/// Parses and checks the text. Nodes that are wrong in themselves are left out.
pub(super) fn read(text: &str, problems: &mut Problems) -> Vec<Node> {
    match KdlDocument::parse_v2(text) {
        Ok(document) => read_block(&document, &ROOT, "the project file", problems),
        Err(error) => {
            // What the scanner found is why the grammar fails, in clearer words.
            if problems.is_empty() {
                syntax(text, &error, problems);
            }
            Vec::new()
        }
    }
}

fn syntax(text: &str, error: &kdl::KdlError, problems: &mut Problems) {
    /// One slip makes the recovering parser stumble on; the first few are what helps.
    const SYNTAX_PROBLEMS_MAX: usize = 8;
    /// Finding the line of each costs time.
    const DIAGNOSTICS_MAX: usize = 64;
    let mut lines = Vec::new();
    for diagnostic in error.diagnostics.iter().take(DIAGNOSTICS_MAX) {
        let start = diagnostic.span.offset().min(text.len());
        let length = diagnostic.span.len().min(text.len() - start);
        let line = text.get(..start).map_or(0, |head| head.matches('\n').count());
        if lines.contains(&line) || lines.len() >= SYNTAX_PROBLEMS_MAX {
            continue;
        }
        lines.push(line);
        let message = diagnostic.message.clone().unwrap_or_else(|| "this is not KDL".to_owned());
        let problem = problems.add((start, length).into(), Fault::Syntax(lower_first(&message)));
        problem.label(diagnostic.label.clone().unwrap_or_else(|| "here".to_owned()));
        problem.help_if(diagnostic.help.clone());
    }
    if lines.is_empty() {
        problems.add((0, 0).into(), Fault::Syntax("this is not KDL".to_owned()));
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.trim_end_matches('.').chars();
    chars.next().map_or_else(String::new, |c| c.to_lowercase().chain(chars).collect())
}

fn read_block(
    document: &KdlDocument,
    parent: &'static NodeSpec,
    place: &str,
    problems: &mut Problems,
) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    if let Some(beyond) = document.nodes().get(NODES_MAX) {
        let message = format!("{place} has more than {NODES_MAX} nodes");
        problems.add(beyond.name().span(), Fault::Unexpected(message)).label("one too many");
        return nodes;
    }
    for written in document.nodes() {
        let Some(node) = read_node(written, parent, place, problems) else { continue };
        let same = |earlier: &&Node| {
            earlier.name == node.name
                && match node.spec.repeat {
                    Repeat::Once => true,
                    Repeat::Named => earlier.label() == node.label() && !node.args.is_empty(),
                    Repeat::Many => matches!(parent.children, Children::Free(_)),
                }
        };
        if let Some(earlier) = nodes.iter().find(same) {
            duplicate(earlier, &node, problems);
        }
        nodes.push(node);
    }
    nodes
}

fn duplicate(earlier: &Node, node: &Node, problems: &mut Problems) {
    let (first, second, message) = match (node.spec.repeat, earlier.args.first(), node.args.first())
    {
        (Repeat::Named, Some(first), Some(second)) => {
            (first.at, second.at, format!("{} `{}` is declared twice", node.name, node.label()))
        }
        _ => (earlier.at, node.at, format!("`{}` stands here twice", node.name)),
    };
    problems
        .add(second, Fault::Duplicate(message))
        .label("again here")
        .earlier(first, "first here")
        .help(if node.spec.repeat == Repeat::Named {
            "give it another name, or merge the two"
        } else {
            "merge the two"
        });
}

fn read_node(
    written: &KdlNode,
    parent: &'static NodeSpec,
    place: &str,
    problems: &mut Problems,
) -> Option<Node> {
    let name = written.name().value().to_owned();
    let at = written.name().span();
    let Some(spec) = parent.child(&name) else {
        unknown_node(&name, at, (parent, place), problems);
        return None;
    };
    if spec.support == Support::NotYet {
        problems
            .add(at, Fault::NotSupported(name))
            .label("this version does not execute it")
            .help("remove it, or put `/-` in front to switch it off");
        return None;
    }
    let mut node =
        Node { spec, name, at, args: Vec::new(), props: Vec::new(), children: Vec::new() };
    if let Some(beyond) = written.entries().get(ENTRIES_MAX) {
        let message = format!("`{}` has more than {ENTRIES_MAX} values", node.name);
        problems.add(beyond.span(), Fault::Unexpected(message)).label("one too many");
        return None;
    }
    for entry in written.entries() {
        read_entry(entry, &mut node, problems);
    }
    let block = written.children();
    if let (Some(block), Children::None) = (block, spec.children) {
        no_block(&node, block, problems);
    } else {
        arguments_are_complete(&node, problems);
        if let Some(children) = block {
            let name = Some(node.label()).filter(|label| !label.is_empty());
            let place = name.map_or_else(
                || format!("`{}`", node.name),
                |label| format!("`{} {label}`", node.name),
            );
            node.children = read_block(children, spec, &place, problems);
        }
    }
    Some(node)
}

fn unknown_node(
    name: &str,
    at: SourceSpan,
    (parent, place): (&'static NodeSpec, &str),
    problems: &mut Problems,
) {
    let elsewhere: Vec<String> = match ROOT.children {
        Children::Nodes(nodes) => nodes
            .iter()
            .filter(|spec| matches!(spec.children, Children::Nodes(_)))
            .filter(|spec| spec.child(name).is_some())
            .map(|spec| format!("`{}`", spec.name))
            .collect(),
        Children::None | Children::Free(_) => Vec::new(),
    };
    let at_root = ROOT.child(name).is_some();
    let help = if at_root {
        Some(format!("`{name}` stands at the top of the file"))
    } else if elsewhere.is_empty() {
        property_of_one(name, parent).or_else(|| suggestion(name, parent.child_names()))
    } else {
        Some(format!("`{name}` stands inside {}", elsewhere.join(" or ")))
    };
    let fault = Fault::UnknownNode { name: name.to_owned(), parent: place.to_owned() };
    problems.add(at, fault).label("not known here").help_if(help);
}

/// Where a name is a property of the one node that has it among those of a block.
fn property_of_one(name: &str, block: &NodeSpec) -> Option<String> {
    let nodes = if let Children::Nodes(nodes) = block.children { nodes } else { &[] };
    let mut having = nodes.iter().filter(|spec| spec.props.iter().any(|prop| prop.name == name));
    match (having.next(), having.next()) {
        (Some(only), None) => {
            Some(format!("`{name}` is a property of `{}`: {}", only.name, only.example))
        }
        _ => None,
    }
}

/// `tags {git.sha}` is a block to KDL.
fn no_block(node: &Node, children: &KdlDocument, problems: &mut Problems) {
    if let [only] = children.nodes()
        && only.entries().is_empty()
        && only.children().is_none()
    {
        let word = only.name().value();
        problems
            .add(only.name().span(), Fault::Trap("braces without quotes are a block".to_owned()))
            .label("a node to KDL, not a value")
            .help(format!("did you mean \"{{{word}}}\"?"));
        return;
    }
    let message = format!("`{}` has no block", node.name);
    let example = format!("write: {}", node.spec.example);
    problems.add(node.at, Fault::Unexpected(message)).label("takes no { }").help(example);
}

fn read_entry(entry: &KdlEntry, node: &mut Node, problems: &mut Problems) {
    match entry.name() {
        Some(name) => read_prop(entry, name, node, problems),
        None => read_arg(entry, node, problems),
    }
}

fn read_prop(entry: &KdlEntry, key: &kdl::KdlIdentifier, node: &mut Node, problems: &mut Problems) {
    let (name, at) = (key.value().to_owned(), key.span());
    if let Some(earlier) = node.props.iter().find(|prop| prop.name == name) {
        problems
            .add(at, Fault::Duplicate(format!("`{name}` is given twice")))
            .label("KDL would take this one in silence")
            .earlier(earlier.at, "first here")
            .help("remove one of the two");
        return;
    }
    let known = node.spec.props.iter().find(|prop| prop.name == name).map(|prop| prop.kind);
    let Some(kind) = known.or(node.spec.free_props) else {
        unknown_property(&name, at, node, problems);
        let value = Value { data: Data::Wrong, at: entry.span(), kind: Kind::Text };
        node.props.push(Prop { name, at, value });
        return;
    };
    let nullable = node.spec.free_props.is_some();
    if nullable && matches!(entry.value(), KdlValue::Null) {
        let value = Value { data: Data::Null, at: entry.span(), kind };
        node.props.push(Prop { name, at, value });
    } else if let Some(value) = read_value(entry, kind, &name, problems) {
        node.props.push(Prop { name, at, value });
    }
}

fn unknown_property(name: &str, at: SourceSpan, node: &Node, problems: &mut Problems) {
    if node.spec.later_props.contains(&name) {
        problems
            .add(at, Fault::NotSupported(format!("{} {name}=", node.name)))
            .label("this version does not execute it")
            .help(format!("remove it; what there is: {}", node.spec.example));
        return;
    }
    let fault = Fault::UnknownProperty { name: name.to_owned(), node: node.name.clone() };
    let known = suggestion(name, node.spec.props.iter().map(|prop| prop.name));
    let block = !matches!(node.spec.children, Children::None);
    let help = match known {
        Some(help) => Some(help),
        None if node.spec.child(name).is_some() || block => {
            Some(format!("settings stand in its block: {}", node.spec.example))
        }
        None => Some(format!("write: {}", node.spec.example)),
    };
    problems.add(at, fault).label("not known here").help_if(help);
}

fn read_arg(entry: &KdlEntry, node: &mut Node, problems: &mut Problems) {
    let specs = node.spec.args;
    let index = node.args.len();
    let spec = specs
        .get(index)
        .or_else(|| specs.last().filter(|spec| matches!(spec.count, Count::Many | Count::Any)));
    if matches!(entry.value(), KdlValue::Null) {
        read_null(entry, node, problems);
        return;
    }
    let Some(spec) = spec else {
        let message = match specs.len() {
            0 => format!("`{}` takes no value", node.name),
            1 => format!("`{}` takes one value", node.name),
            count => format!("`{}` takes at most {count} values", node.name),
        };
        let example = format!("write: {}", node.spec.example);
        problems.add(entry.span(), Fault::Unexpected(message)).label("too much").help(example);
        return;
    };
    let what = format!("{} of `{}`", spec.name, node.name);
    let value = read_value(entry, spec.kind, &what, problems).unwrap_or(Value {
        // Kept so that the node does not also count as incomplete.
        data: Data::Wrong,
        at: entry.span(),
        kind: spec.kind,
    });
    node.args.push(value);
}

fn read_null(entry: &KdlEntry, node: &mut Node, problems: &mut Problems) {
    if node.spec.unset == Unset::Refused {
        let message = format!("`{}` cannot be unset", node.name);
        problems
            .add(entry.span(), Fault::WrongValue(message))
            .label("#null is for settings of an image")
            .help(format!("write: {}", node.spec.example));
    }
    let kind = node.spec.args.first().map_or(Kind::Text, |spec| spec.kind);
    node.args.push(Value { data: Data::Null, at: entry.span(), kind });
}

fn arguments_are_complete(node: &Node, problems: &mut Problems) {
    if node.is_unset() {
        return;
    }
    if let Some(null) = node.args.iter().find(|value| matches!(value.data, Data::Null))
        && node.spec.unset == Unset::Allowed
    {
        let message = "#null stands alone".to_owned();
        problems.add(null.at, Fault::Unexpected(message)).label("with other values here");
    }
    let mut needed =
        node.spec.args.iter().filter(|spec| matches!(spec.count, Count::One | Count::Many));
    if let Some(missing) = needed.nth(node.args.len()) {
        let article = if missing.name.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" };
        let message = format!("`{}` needs {article} {}", node.name, missing.name);
        problems
            .add(node.at, Fault::Missing(message))
            .label(format!("{} is missing", missing.name))
            .help(format!("write: {}", node.spec.example));
    }
}
