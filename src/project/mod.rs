//! The project file: `idpbuilder.kdl` in, [`Settings`] or [`ProjectError`] out.
//!
//! Text → checked nodes ([`Project`], needs nothing) → plain values ([`Settings`], needs [`Facts`]).
//! In between the caller looks up what the text names: [`Project::env_names`],
//! [`Project::uses_git`], [`Project::secrets`]. Nothing here reads a file, an environment or a clock.

mod facts;
mod layers;
mod links;
mod network;
mod problem;
mod read;
mod reference;
mod resolve;
mod scan;
mod settings;
mod starter;
mod table;
mod template;
mod value;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use miette::NamedSource;

pub use facts::Facts;
pub use facts::GitFacts;
pub use network::is_host_name;
pub use problem::Fault;
pub use problem::Problem;
pub use problem::ProjectError;
pub(crate) use problem::suggestion;
pub use reference::reference_json;
pub use reference::reference_markdown;
pub use scan::Disabled;
pub use settings::BuildContext;
pub use settings::Dns;
pub use settings::Dockerfile;
pub use settings::Files;
pub use settings::Image;
pub use settings::Mirror;
pub use settings::Origin;
pub use settings::Output;
pub use settings::OutputForm;
pub use settings::Pipeline;
pub use settings::ProjectNetwork;
pub use settings::Push;
pub use settings::PushRule;
pub use settings::PushTo;
pub use settings::Registry;
pub use settings::SecretFrom;
pub use settings::Settings;
pub use settings::Tls;
pub use settings::Variable;
pub use settings::Watch;
pub use starter::starter;
pub use table::ArgSpec;
pub use table::Children;
pub use table::Count;
pub use table::Kind;
pub use table::NodeSpec;
pub use table::PropSpec;
pub use table::ROOT;
pub use table::Repeat;
pub use table::Support;
pub use table::Unset;

use problem::Problems;
use read::Node;
use value::Data;
use value::Value;

/// Name of the registry that a project has without declaring one.
pub const EMBEDDED: &str = "embedded";

/// A project file that is right in itself: every node known, every name declared.
#[derive(Clone, Debug)]
pub struct Project {
    source: Arc<NamedSource<String>>,
    nodes: Vec<Node>,
    disabled: Vec<Disabled>,
}

/// A secret that the project declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Name.
    pub name: String,
    /// Where its value is.
    pub from: SecretFrom,
    /// Whether a run fails without it.
    pub required: bool,
}

impl Project {
    /// Parses and checks the text; `name` is what messages call the file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the text, at once where that is possible.
    pub fn parse(name: &str, text: &str) -> Result<Self, ProjectError> {
        let source = Arc::new(NamedSource::new(name, text.to_owned()));
        let mut problems = Problems::new(Arc::clone(&source));
        let mut nodes = Vec::new();
        let mut disabled = Vec::new();
        if scan::within_limits(text, &mut problems)
            && let Some(scanned) = scan::scan(text, &mut problems)
        {
            disabled = scanned.disabled;
            nodes = read::read(&scanned.text, &mut problems);
            links::check(&nodes, &mut problems);
        }
        problems.into_result()?;
        Ok(Self { source, nodes, disabled })
    }

    /// Fills every hole.
    ///
    /// # Errors
    ///
    /// Values that are missing (git, environment, variables) or turn out to be wrong.
    pub fn resolve(&self, facts: &Facts) -> Result<Settings, ProjectError> {
        let mut problems = Problems::new(Arc::clone(&self.source));
        let settings = resolve::resolve(&self.nodes, facts, &mut problems);
        problems.into_result()?;
        Ok(settings)
    }

    /// Environment variables that holes and conditions name; their values go into [`Facts::env`].
    #[must_use]
    pub fn env_names(&self) -> BTreeSet<String> {
        let env = |name: String| name.strip_prefix("env.").map(str::to_owned);
        self.hole_names().into_iter().filter_map(env).collect()
    }

    /// Whether anything needs [`Facts::git`].
    #[must_use]
    pub fn uses_git(&self) -> bool {
        let epoch = self
            .values()
            .iter()
            .any(|value| value.kind == Kind::Epoch && value.as_plain() == Some("git"));
        epoch || self.hole_names().iter().any(|name| name.starts_with("git."))
    }

    /// Secrets that the file declares; names of those that are optional and have no value go into
    /// [`Facts::absent_secrets`]. A source with holes is not listed: it is known after [`Self::resolve`].
    #[must_use]
    pub fn secrets(&self) -> Vec<Secret> {
        let nodes = self.nodes.iter().filter(|node| node.name == "secret");
        nodes.filter_map(secret).collect()
    }

    /// What `/-` takes out of the file.
    #[must_use]
    pub fn disabled(&self) -> &[Disabled] {
        &self.disabled
    }

    /// Names of the images, in the order of the file.
    #[must_use]
    pub fn image_names(&self) -> Vec<&str> {
        self.nodes.iter().filter(|node| node.name == "image").map(Node::label).collect()
    }

    fn values(&self) -> Vec<&Value> {
        fn gather<'n>(node: &'n Node, values: &mut Vec<&'n Value>) {
            values.extend(&node.args);
            values.extend(node.props.iter().map(|prop| &prop.value));
            node.children.iter().for_each(|child| gather(child, values));
        }
        let mut values = Vec::new();
        self.nodes.iter().for_each(|node| gather(node, &mut values));
        values
    }

    fn hole_names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for value in self.values() {
            match &value.data {
                Data::Text(template) => names.extend(template.holes().map(|h| h.name.clone())),
                Data::Condition(condition) => {
                    names.extend(condition.holes().into_iter().map(|hole| hole.name.clone()));
                }
                Data::Null | Data::Wrong | Data::Flag(_) | Data::Number(_) => {}
            }
        }
        names
    }
}

fn secret(node: &Node) -> Option<Secret> {
    let plain = |name: &str| node.prop(name).and_then(Value::as_plain);
    let from = match plain("env") {
        Some(name) => SecretFrom::Env(name.to_owned()),
        None => SecretFrom::File(PathBuf::from(plain("file")?)),
    };
    let required = !matches!(node.prop("required"), Some(Value { data: Data::Flag(false), .. }));
    Some(Secret { name: node.label().to_owned(), from, required })
}

#[cfg(test)]
mod tests;
