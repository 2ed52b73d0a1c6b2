//! A plan from the flags of `build`: one image, from where on everything goes as in a project.

use std::collections::{BTreeMap, BTreeSet};

use super::CacheUse;
use super::ContextPlan;
use super::DockerfileSource;
use super::Entitlement;
use super::ImagePlan;
use super::MirrorPlan;
use super::NamedContext;
use super::NetworkPlan;
use super::OutputPlan;
use super::Plan;
use super::PlanError;
use super::RegistryPlan;
use super::SecretSource;
use super::SshSource;
use crate::limits::Limits;
use crate::limits::Split;
use crate::oci::Codec;
use crate::oci::Platform;
use crate::oci::Reference;
use crate::remote::Remote;

/// What `build` is told. [`BuildFlags::new`] gives one with nothing but a Dockerfile.
#[derive(Clone, Debug)]
pub struct BuildFlags {
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// The build context; `None` for an empty one.
    pub context: Option<ContextPlan>,
    /// Names of the image.
    pub tags: Vec<Reference>,
    /// Stage; the last one when not given.
    pub target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Platforms; the host's when empty.
    pub platforms: Vec<Platform>,
    /// Named contexts.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// Files to write besides the store.
    pub outputs: Vec<OutputPlan>,
    /// Whether the tags are pushed.
    pub publication: Publication,
    /// Whether earlier results may be used.
    pub cache: CacheUse,
    /// Compression of pushed layers.
    pub compression: Codec,
    /// Seconds since the epoch for all times that the build makes.
    pub source_date_epoch: Option<i64>,
    /// Settings of registries.
    pub registries: Vec<RegistryPlan>,
    /// Mirrors by registry.
    pub mirrors: BTreeMap<String, Vec<MirrorPlan>>,
    /// Where secrets come from, by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// What answers the SSH agents that processes mount, by id.
    pub ssh: BTreeMap<String, SshSource>,
    /// What processes see of the network.
    pub network: NetworkPlan,
    /// What processes may do besides.
    pub allow: BTreeSet<Entitlement>,
    /// Whether what the rules of our own find fails the build.
    pub strict: bool,
    /// What processes may use.
    pub limits: Limits,
    /// How a large COPY or ADD becomes several layers, when it does.
    pub split: Option<Split>,
}

/// Whether an image leaves the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Publication {
    /// It stays in the store.
    #[default]
    Keep,
    /// All its names are pushed.
    Push,
}

impl BuildFlags {
    /// Builds `dockerfile` over `context`; everything else as without flags.
    #[must_use]
    pub fn new(dockerfile: DockerfileSource, context: Option<ContextPlan>) -> Self {
        Self {
            dockerfile,
            context,
            tags: Vec::new(),
            target: None,
            args: BTreeMap::new(),
            labels: BTreeMap::new(),
            platforms: Vec::new(),
            named_contexts: BTreeMap::new(),
            outputs: Vec::new(),
            publication: Publication::Keep,
            cache: CacheUse::Use,
            compression: Codec::Gzip,
            source_date_epoch: None,
            registries: Vec::new(),
            mirrors: BTreeMap::new(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            network: NetworkPlan {
                mode: None,
                hosts: Vec::new(),
                dns: Vec::new(),
                dns_search: Vec::new(),
                dns_options: Vec::new(),
            },
            allow: BTreeSet::new(),
            strict: false,
            limits: Limits::default(),
            split: None,
        }
    }
}

impl Plan {
    /// A plan of one image, called by its first tag or by the folder of its context.
    ///
    /// # Errors
    ///
    /// [`PlanError::PushWithoutTag`].
    pub fn from_flags(flags: BuildFlags) -> Result<Self, PlanError> {
        let name = name(&flags);
        let mut tags: Vec<Reference> = Vec::new();
        for tag in flags.tags {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let pushes = match flags.publication {
            Publication::Keep => Vec::new(),
            Publication::Push if tags.is_empty() => return Err(PlanError::PushWithoutTag),
            Publication::Push => tags.clone(),
        };
        let image = ImagePlan {
            name,
            dockerfile: flags.dockerfile,
            context: flags.context,
            named_contexts: flags.named_contexts,
            target: flags.target,
            args: flags.args,
            labels: flags.labels,
            platforms: flags.platforms,
            tags,
            pushes,
            needs: Vec::new(),
            cache: flags.cache,
            compression: flags.compression,
            outputs: flags.outputs,
            source_date_epoch: flags.source_date_epoch,
            export: true,
            secrets: flags.secrets,
            ssh: flags.ssh,
            network: flags.network,
            allow: flags.allow,
            strict: flags.strict,
            limits: flags.limits,
            split: flags.split,
        };
        let by_address = |registry: RegistryPlan| (registry.address.clone(), registry);
        let mut plan = Self {
            images: vec![image],
            registries: flags.registries.into_iter().map(by_address).collect(),
            mirrors: flags.mirrors,
            ..Self::default()
        };
        plan.add_registries();
        plan.link();
        Ok(plan)
    }
}

fn name(flags: &BuildFlags) -> String {
    if let Some(tag) = flags.tags.first() {
        return tag.familiar();
    }
    let name = match &flags.context {
        Some(ContextPlan::Directory(folder)) => {
            folder.file_name().map(|name| name.to_string_lossy().into_owned())
        }
        Some(ContextPlan::Remote { remote: Remote::Git(source) }) => {
            let last = source.url.rsplit(['/', ':']).next().unwrap_or_default();
            Some(last.trim_end_matches(".git").to_owned())
        }
        Some(ContextPlan::Archive { .. } | ContextPlan::Remote { .. }) | None => None,
    };
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "image".to_owned())
}
