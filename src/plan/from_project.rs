//! A plan from a project's settings and a selection.
//!
//! Pure: whether files exist, and what a Dockerfile refers to, the caller finds out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use super::CacheUse;
use super::ContextPlan;
use super::DockerfileSource;
use super::EMBEDDED_ADDRESS;
use super::ImagePlan;
use super::MirrorPlan;
use super::NamedContext;
use super::NetworkPlan;
use super::OutputKind;
use super::OutputPlan;
use super::Plan;
use super::PlanError;
use super::PlannedNetwork;
use super::RegistryPlan;
use super::SecretSource;
use super::SshSource;
use super::order::Needs;
use super::order::order;
use crate::oci::Reference;
use crate::project::BuildContext;
use crate::project::Dns;
use crate::project::Dockerfile;
use crate::project::EMBEDDED;
use crate::project::Files;
use crate::project::Image;
use crate::project::Output;
use crate::project::OutputForm;
use crate::project::ProjectNetwork;
use crate::project::Push;
use crate::project::PushRule;
use crate::project::PushTo;
use crate::project::Registry;
use crate::project::SecretFrom;
use crate::project::Settings;
use crate::project::suggestion;

const DEFAULT_PIPELINE: &str = "default";
const DEFAULT_TAG: &str = "latest";

/// Names that each image's Dockerfile uses in FROM and COPY --from, stages of its own left out.
pub type References = BTreeMap<String, Vec<String>>;

impl Plan {
    /// Plans `selection` (pipelines and images; empty for the pipeline `default`, or else all
    /// images) with all that it needs. Paths become `root` and what the file says.
    ///
    /// A name in `references` that is another image of the project makes that image a need.
    ///
    /// # Errors
    ///
    /// Unknown names, circles, names that are none or that two images share.
    pub fn from_project(
        settings: &Settings,
        selection: &[String],
        root: &Path,
        references: &References,
    ) -> Result<Self, PlanError> {
        let wanted = select(settings, selection)?;
        let needs = needs_of(settings, references);
        let mut plan = Self { registries: registries(settings, root)?, ..Self::default() };
        let implicit = !names_a_registry(settings);
        for name in order(&wanted, &needs)? {
            let found = settings.images.iter().find(|image| image.name == name);
            let image = found.expect("only names of images are selected and needed");
            let mut planned = plan_image(image, root, &needs[&name]);
            planned.named_contexts = named_contexts(image, settings, (root, references));
            let implied = [Push { to: PushTo::Registry(EMBEDDED.to_owned()), name: None }];
            let pushes = if implicit && image.push_rule == PushRule::Unsaid {
                &implied
            } else {
                image.pushes.as_slice()
            };
            name_image(&mut planned, image, pushes, settings)?;
            plan.images.push(planned);
        }
        refuse_shared_names(&plan.images)?;
        let pushed = plan.images.iter().any(|image| !image.pushes.is_empty());
        if (implicit && pushed) || pushes_to_undeclared(settings) {
            let address = EMBEDDED_ADDRESS.to_owned();
            let embedded = RegistryPlan { embedded: true, address, ..RegistryPlan::default() };
            plan.registries.entry(embedded.address.clone()).or_insert(embedded);
        }
        plan.add_registries();
        if implicit && pushed {
            plan.warnings.push(
                "the project names no registry: images are pushed to the embedded one".to_owned(),
            );
        }
        for mirror in &settings.mirrors {
            let planned = MirrorPlan { address: mirror.via.clone(), fallback: mirror.fallback };
            plan.mirrors.entry(mirror.registry.clone()).or_default().push(planned);
        }
        plan.link();
        Ok(plan)
    }

    /// Registries that are pushed to by address get default settings.
    pub(super) fn add_registries(&mut self) {
        for reference in self.images.iter().flat_map(|image| &image.pushes) {
            let address = reference.registry().to_owned();
            let embedded = address == EMBEDDED_ADDRESS;
            let new = || RegistryPlan { address: address.clone(), embedded, ..Default::default() };
            self.registries.entry(address.clone()).or_insert_with(new);
        }
    }
}

fn select(settings: &Settings, selection: &[String]) -> Result<Vec<String>, PlanError> {
    let pipeline = |name: &str| settings.pipelines.iter().find(|pipeline| pipeline.name == name);
    let mut wanted = Vec::new();
    if selection.is_empty() {
        let all = || settings.images.iter().map(|image| image.name.clone()).collect();
        wanted = pipeline(DEFAULT_PIPELINE).map_or_else(all, |default| default.images.clone());
    }
    for name in selection {
        if let Some(pipeline) = pipeline(name) {
            wanted.extend(pipeline.images.iter().cloned());
        } else if settings.images.iter().any(|image| image.name == *name) {
            wanted.push(name.clone());
        } else {
            let pipelines = settings.pipelines.iter().map(|pipeline| pipeline.name.as_str());
            let images = settings.images.iter().map(|image| image.name.as_str());
            let help = suggestion(name, pipelines.chain(images));
            return Err(PlanError::UnknownName { name: name.clone(), help });
        }
    }
    if wanted.is_empty() { Err(PlanError::NothingToBuild) } else { Ok(wanted) }
}

/// Needs of all images: stated, contexts, and names in Dockerfiles.
fn needs_of(settings: &Settings, references: &References) -> Needs {
    let mut needs = Needs::new();
    for image in &settings.images {
        let contexts = image.build_contexts.values().filter_map(|context| match context {
            BuildContext::ProjectImage(name) => Some(name),
            BuildContext::Files(_)
            | BuildContext::Scratch
            | BuildContext::OciLayout(..)
            | BuildContext::Image(_) => None,
        });
        let mut list = Vec::new();
        let referred = referred(image, settings, references);
        for name in image.needs.iter().chain(contexts).chain(referred) {
            if !list.contains(name) {
                list.push(name.clone());
            }
        }
        needs.insert(image.name.clone(), list);
    }
    needs
}

/// Images of the project that the image's Dockerfile names. Its own name means the registry's.
fn referred<'a>(
    image: &'a Image,
    settings: &'a Settings,
    references: &'a References,
) -> impl Iterator<Item = &'a String> {
    let names = references.get(&image.name).into_iter().flatten();
    names.filter(move |name| {
        **name != image.name
            && !image.build_contexts.contains_key(*name)
            && settings.images.iter().any(|other| other.name == **name)
    })
}

fn named_contexts(
    image: &Image,
    settings: &Settings,
    (root, references): (&Path, &References),
) -> BTreeMap<String, NamedContext> {
    let mut contexts = BTreeMap::new();
    for name in referred(image, settings, references) {
        contexts.insert(name.clone(), NamedContext::PlanImage(name.clone()));
    }
    for (name, context) in &image.build_contexts {
        let planned = match context {
            BuildContext::Files(files) => match plan_context(files, root) {
                ContextPlan::Directory(path) => NamedContext::Directory(path),
                other @ (ContextPlan::Archive { .. } | ContextPlan::Remote { .. }) => {
                    NamedContext::Files(other)
                }
            },
            BuildContext::Scratch => NamedContext::Scratch,
            BuildContext::OciLayout(path, selector) => {
                NamedContext::OciLayout { path: under(root, path), selector: selector.clone() }
            }
            BuildContext::Image(reference) => NamedContext::Image(reference.clone()),
            BuildContext::ProjectImage(name) => NamedContext::PlanImage(name.clone()),
        };
        contexts.insert(name.clone(), planned);
    }
    contexts
}

fn plan_image(image: &Image, root: &Path, needs: &[String]) -> ImagePlan {
    ImagePlan {
        name: image.name.clone(),
        dockerfile: match &image.dockerfile {
            Dockerfile::File(path) => DockerfileSource::File(under(root, path)),
            Dockerfile::InContext(path) => DockerfileSource::Context(path.clone()),
            Dockerfile::Url(url) => DockerfileSource::Url(url.clone()),
            Dockerfile::Inline(text) => DockerfileSource::Inline(text.clone()),
        },
        context: image.context.as_ref().map(|context| plan_context(context, root)),
        named_contexts: BTreeMap::new(),
        target: image.target.clone(),
        args: image.args.clone(),
        labels: image.labels.clone(),
        platforms: image.platforms.clone(),
        tags: Vec::new(),
        pushes: Vec::new(),
        needs: needs.to_vec(),
        cache: CacheUse::Use,
        compression: image.compression,
        outputs: image.outputs.iter().map(|output| plan_output(output, root)).collect(),
        source_date_epoch: image.source_date_epoch,
        export: image.export,
        secrets: secrets(image, root),
        ssh: ssh(image, root),
        network: network(image),
        allow: BTreeSet::new(),
        strict: image.strict,
        limits: image.limits.clone(),
        split: image.split.clone(),
    }
}

fn plan_context(context: &Files, root: &Path) -> ContextPlan {
    match context {
        Files::Folder(path) => ContextPlan::Directory(under(root, path)),
        Files::Archive(path) => {
            let path = under(root, path);
            ContextPlan::Archive { archive: path.display().to_string(), path }
        }
        Files::Remote(remote) => ContextPlan::Remote { remote: remote.clone() },
    }
}

fn secrets(image: &Image, root: &Path) -> BTreeMap<String, SecretSource> {
    let secrets = image.secrets.iter();
    secrets.map(|(name, from)| (name.clone(), secret_source(from, root))).collect()
}

fn network(image: &Image) -> NetworkPlan {
    let mode = image.network.map(|network| match network {
        ProjectNetwork::None => PlannedNetwork::None,
        ProjectNetwork::Host => PlannedNetwork::Host,
        ProjectNetwork::Sandbox => PlannedNetwork::Sandbox,
    });
    let hosts = image.hosts.iter().map(|(name, address)| (name.clone(), address.clone())).collect();
    let Dns { servers: dns, search: dns_search, options: dns_options } = image.dns.clone();
    NetworkPlan { mode, hosts, dns, dns_search, dns_options }
}

fn ssh(image: &Image, root: &Path) -> BTreeMap<String, SshSource> {
    let source = |path: &Option<PathBuf>| match path {
        None => SshSource::Agent,
        Some(path) => SshSource::Files(vec![under(root, path)]),
    };
    image.ssh.iter().map(|(name, path)| (name.clone(), source(path))).collect()
}

/// `root` and `path`, without the `.` parts that would end up in messages.
fn under(root: &Path, path: &Path) -> PathBuf {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let path: PathBuf = parts.collect();
    if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) }
}

fn plan_output(output: &Output, root: &Path) -> OutputPlan {
    let (kind, archive) = match output.form {
        OutputForm::OciArchive => (OutputKind::Oci, true),
        OutputForm::OciLayout => (OutputKind::Oci, false),
        OutputForm::DockerArchive => (OutputKind::Docker, true),
        OutputForm::Tar => (OutputKind::Tar, true),
        OutputForm::Local => (OutputKind::Local, false),
    };
    OutputPlan {
        kind,
        destination: Some(under(root, &output.path)),
        archive,
        compression: output.compression,
        options: BTreeMap::new(),
    }
}

/// Fills tags and pushes.
fn name_image(
    planned: &mut ImagePlan,
    image: &Image,
    pushes: &[Push],
    settings: &Settings,
) -> Result<(), PlanError> {
    if !image.export {
        return Ok(());
    }
    let default = [DEFAULT_TAG.to_owned()];
    let tags = if image.tags.is_empty() { default.as_slice() } else { image.tags.as_slice() };
    for push in pushes {
        let prefix = prefix(push, settings);
        let name = push.name.as_ref().unwrap_or(&image.name);
        for tag in tags {
            let reference = parse(image, format!("{prefix}/{name}:{tag}"))?;
            if planned.pushes.contains(&reference) {
                return Err(PlanError::SameReference {
                    first: image.name.clone(),
                    second: image.name.clone(),
                    reference: reference.to_string(),
                });
            }
            planned.pushes.push(reference);
        }
    }
    planned.tags.clone_from(&planned.pushes);
    if pushes.is_empty() {
        for tag in tags {
            planned.tags.push(parse(image, format!("{}:{tag}", image.name))?);
        }
    }
    Ok(())
}

fn parse(image: &Image, reference: String) -> Result<Reference, PlanError> {
    reference.parse().map_err(|reason| PlanError::Reference {
        image: image.name.clone(),
        reference,
        reason,
    })
}

/// Host and path in front of the image's name.
fn prefix(push: &Push, settings: &Settings) -> String {
    let name = match &push.to {
        PushTo::Address(address) => return address.clone(),
        PushTo::Registry(name) => name,
    };
    let declared = settings.registries.iter().find(|registry| registry.name == *name);
    let Some(registry) = declared else { return EMBEDDED_ADDRESS.to_owned() };
    let namespace = registry.namespace.as_deref().map(|path| format!("/{path}"));
    address(registry).to_owned() + &namespace.unwrap_or_default()
}

fn address(registry: &Registry) -> &str {
    registry.address.as_deref().unwrap_or(EMBEDDED_ADDRESS)
}

fn names_a_registry(settings: &Settings) -> bool {
    !settings.registries.is_empty()
        || settings.images.iter().any(|image| image.push_rule == PushRule::Named)
}

/// Whether an image says `push embedded` and no registry is called so.
fn pushes_to_undeclared(settings: &Settings) -> bool {
    let declared = |name: &str| settings.registries.iter().any(|registry| registry.name == name);
    let mut pushes = settings.images.iter().flat_map(|image| &image.pushes);
    pushes.any(|push| matches!(&push.to, PushTo::Registry(name) if !declared(name)))
}

fn registries(
    settings: &Settings,
    root: &Path,
) -> Result<BTreeMap<String, RegistryPlan>, PlanError> {
    let mut planned: BTreeMap<String, RegistryPlan> = BTreeMap::new();
    for registry in &settings.registries {
        let plan = plan_registry(registry, root);
        let earlier = planned.insert(plan.address.clone(), plan.clone());
        if earlier.is_none_or(|earlier| earlier == plan) {
            continue;
        }
        let same = |other: &&Registry| address(other) == address(registry);
        let first = settings.registries.iter().find(same).map(|first| first.name.clone());
        return Err(PlanError::RegistryConflict {
            first: first.unwrap_or_default(),
            second: registry.name.clone(),
            address: plan.address,
        });
    }
    Ok(planned)
}

fn plan_registry(registry: &Registry, root: &Path) -> RegistryPlan {
    RegistryPlan {
        address: address(registry).to_owned(),
        embedded: registry.address.is_none(),
        plain_http: registry.plain_http,
        insecure: registry.tls.skip_verify,
        ca_file: registry.tls.ca.as_ref().map(|path| under(root, path)),
        pin: registry.tls.pin.clone(),
        username: registry.username.clone(),
        password: registry.password.as_ref().map(|secret| secret_source(secret, root)),
        auth_realms: registry.auth_realms.clone(),
    }
}

fn secret_source(secret: &SecretFrom, root: &Path) -> SecretSource {
    match secret {
        SecretFrom::Env(name) => SecretSource::Env(name.clone()),
        SecretFrom::File(path) => SecretSource::File(under(root, path)),
    }
}

fn refuse_shared_names(images: &[ImagePlan]) -> Result<(), PlanError> {
    let mut owners: BTreeMap<&Reference, &str> = BTreeMap::new();
    for image in images {
        for reference in &image.tags {
            if let Some(first) = owners.insert(reference, &image.name) {
                return Err(PlanError::SameReference {
                    first: first.to_owned(),
                    second: image.name.clone(),
                    reference: reference.to_string(),
                });
            }
        }
    }
    Ok(())
}
