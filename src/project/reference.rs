//! The language reference, made from the table: for people (Markdown) and for machines (JSON).

use std::fmt::Write as _;

use super::table::Children;
use super::table::Count;
use super::table::Kind;
use super::table::NodeSpec;
use super::table::ROOT;
use super::table::Repeat;
use super::table::Support;
use super::table::Unset;

/// The table as JSON, for editors and other tools.
///
/// # Panics
///
/// Never: the table is plain data.
#[must_use]
pub fn reference_json() -> String {
    serde_json::to_string_pretty(&ROOT).expect("the table is plain data") + "\n"
}

/// One section for each node, in the order of the table.
#[must_use]
pub fn reference_markdown() -> String {
    let mut text = String::new();
    if let Children::Nodes(nodes) = ROOT.children {
        for node in nodes.iter().filter(|node| node.support == Support::Yes) {
            section(node, "", &mut text);
        }
        later(nodes, "the top of the file", &mut text);
    }
    text
}

fn section(node: &NodeSpec, parent: &str, text: &mut String) {
    let level = if parent.is_empty() { "##" } else { "###" };
    let title = if parent.is_empty() {
        node.name.to_owned()
    } else {
        format!("{parent} › {}", node.name)
    };
    let doc = node.doc;
    write_line(text, &format!("{level} `{title}`\n\n{doc}\n"));
    write_line(text, &format!("```kdl\n{}\n```\n", node.example));
    for arg in node.args {
        let count = match arg.count {
            Count::One => "one",
            Count::Optional => "one or none",
            Count::Many => "one or more",
            Count::Any => "any number",
        };
        write_line(text, &format!("* value *{}*: {} ({count})", arg.name, kind(arg.kind)));
    }
    for prop in node.props {
        write_line(text, &format!("* `{}=`: {}. {}", prop.name, kind(prop.kind), prop.doc));
    }
    if let Some(free) = node.free_props {
        write_line(text, &format!("* `NAME=`: {}, as many as wanted", kind(free)));
    }
    let repeat = match node.repeat {
        Repeat::Once => "once",
        Repeat::Named => "once for each name",
        Repeat::Many => "may be repeated",
    };
    let unset = if node.unset == Unset::Allowed { "; `#null` unsets" } else { "" };
    write_line(text, &format!("* {repeat}{unset}\n"));
    let path = if parent.is_empty() {
        node.name.to_owned()
    } else {
        format!("{parent} › {}", node.name)
    };
    match node.children {
        Children::None => {}
        Children::Free(child) => section(child, &path, text),
        Children::Nodes(children) => {
            for child in children.iter().filter(|child| child.support == Support::Yes) {
                section(child, &path, text);
            }
            later(children, &format!("`{path}`"), text);
        }
    }
}

fn later(nodes: &[NodeSpec], place: &str, text: &mut String) {
    let later = nodes.iter().filter(|node| node.support == Support::NotYet);
    let names: Vec<String> = later.map(|node| format!("`{}`", node.name)).collect();
    if !names.is_empty() {
        let names = names.join(", ");
        write_line(text, &format!("Known in {place} but refused by this version: {names}.\n"));
    }
}

fn write_line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a string takes all text");
}

fn kind(kind: Kind) -> String {
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Name => "name".to_owned(),
        Kind::Path => "path from the project file's folder".to_owned(),
        Kind::Scalar => "text, whole number or boolean".to_owned(),
        Kind::Flag => "`#true` or `#false`".to_owned(),
        Kind::Condition => "condition".to_owned(),
        Kind::OneOf(words) => {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            words.join(" or ")
        }
        Kind::Duration => "duration such as \"150ms\"".to_owned(),
        Kind::Epoch => "`git` or seconds since 1970".to_owned(),
        Kind::Platform => "platform such as amd64 or \"linux/arm/v7\"".to_owned(),
        Kind::Version => "version such as \"0.1\"".to_owned(),
        Kind::Image => "name of an image".to_owned(),
        Kind::Registry => "name of a registry, or host and path".to_owned(),
        Kind::Secret => "name of a secret".to_owned(),
        Kind::Pipeline => "name of a pipeline".to_owned(),
    }
}
