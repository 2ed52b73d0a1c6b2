//! From the plan's words to what a build and a client take: files read, contexts and secrets resolved.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{EmbeddedSetup, ExecError, NamedBy, Network, Setup};
use crate::{
    build::{
        self, BuildError, BuildRequest, ContextFolder, ContextSource, DockerfileText, Flights,
        Layout, NamedSource, Slots, Targets, Workshop,
    },
    dockerfile::ignore,
    event::Event,
    image::Image,
    oci::{DEFAULT_REGISTRY, Platform, Reference},
    plan::{
        ContextPlan, DockerfileSource, ImagePlan, NamedContext, Plan, RegistryPlan, SecretSource,
    },
    registry::{Client, ClientOptions, Credentials, Mirror, RegistryOptions},
    remote::Remote,
};

/// Largest Dockerfile or ignore file that is read, in bytes.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// Images that the run has built so far, by name.
pub(super) type BuiltImages = BTreeMap<String, Vec<(Platform, Image)>>;

/// Options of a client that serves the whole plan.
///
/// # Errors
///
/// When a secret or certificate cannot be read.
pub fn client_options(plan: &Plan, setup: &Setup) -> Result<ClientOptions, ExecError> {
    let emit = Arc::clone(&setup.emit);
    let mut options = ClientOptions {
        trusted_certificates: setup.trusted_certificates.clone(),
        proxies: setup.proxies.clone(),
        on_passed_over: Some(Arc::new(move |text| emit(Event::Warning { image: None, text }))),
        ..ClientOptions::default()
    };
    if setup.network == Network::Offline {
        let ours = plan.registries.iter().filter(|(_, registry)| registry.embedded);
        options.only = Some(ours.map(|(address, _)| address.clone()).collect());
    }
    for (address, registry) in &plan.registries {
        let settings = match registry.embedded {
            true => {
                let embedded = (setup.find_embedded)().map_err(ExecError::Embedded)?;
                embedded_options(&embedded)
            }
            false => registry_options(registry, setup)?,
        };
        options.registries.insert(address.clone(), settings);
    }
    for (registry, mirrors) in &plan.mirrors {
        let mirrors = mirrors
            .iter()
            .map(|mirror| Mirror { address: mirror.address.clone(), fallback: mirror.fallback });
        options.mirrors.insert(registry.clone(), mirrors.collect());
    }
    let (named, find) = (named_registries(plan, &options), Arc::clone(&setup.find_credentials));
    options.credentials = Some(Arc::new(move |registry: &str, repository: Option<&str>| {
        let is_named = named.contains(registry);
        find(registry, repository, if is_named { NamedBy::User } else { NamedBy::Others })
    }));
    Ok(options)
}

/// Registries that the project file or the command line names; the one that a name without a registry means, and
/// those that Dockerfiles alone name, are not among them.
fn named_registries(plan: &Plan, options: &ClientOptions) -> BTreeSet<String> {
    let tags = plan.images.iter().flat_map(|image| &image.tags);
    let of_tags = tags.map(Reference::registry).filter(|name| *name != DEFAULT_REGISTRY);
    let of_mirrors = options.mirrors.values().flatten().map(Mirror::host);
    let declared = plan.registries.keys().map(String::as_str);
    of_tags.chain(of_mirrors).chain(declared).map(str::to_owned).collect()
}

pub(super) fn embedded_options(embedded: &EmbeddedSetup) -> RegistryOptions {
    let login = &embedded.login;
    RegistryOptions {
        ca_pem: Some(embedded.identity.authority_pem.clone().into_bytes()),
        credentials: Some(Credentials::Basic {
            username: login.username.clone(),
            password: login.password.clone(),
        }),
        ..RegistryOptions::default()
    }
}

fn registry_options(registry: &RegistryPlan, setup: &Setup) -> Result<RegistryOptions, ExecError> {
    let address = &registry.address;
    let ca_pem = registry.ca_file.as_ref().map(|path| {
        fs::read(path).map_err(|source| ExecError::File {
            image: address.clone(),
            what: "certificate file",
            path: path.clone(),
            source,
        })
    });
    let password = registry.password.as_ref().map(|source| {
        password(source, setup)
            .map_err(|reason| ExecError::Secret { registry: address.clone(), reason })
    });
    let credentials = password.transpose()?.map(|password| Credentials::Basic {
        username: registry.username.clone().unwrap_or_default(),
        password,
    });
    Ok(RegistryOptions {
        plain_http: registry.plain_http,
        insecure: registry.insecure,
        ca_pem: ca_pem.transpose()?,
        pin: registry.pin.as_deref().and_then(parse_fingerprint),
        credentials,
        auth_realms: registry.auth_realms.clone(),
        port: None,
    })
}

/// A secret as a line of text: one trailing newline of a file is dropped.
fn password(source: &SecretSource, setup: &Setup) -> Result<String, String> {
    let bytes = (setup.read_secret)(source)?.ok_or_else(|| match source {
        SecretSource::Env(name) => format!("the environment variable {name} is not set"),
        SecretSource::File(path) => format!("{} does not exist", path.display()),
    })?;
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
    match source {
        SecretSource::Env(_) => Ok(text),
        SecretSource::File(_) => Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned()),
    }
}

/// `5D:0E:…` or plain hex; the plan has checked it.
fn parse_fingerprint(text: &str) -> Option<[u8; 32]> {
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let digest: crate::oci::Digest = format!("sha256:{}", hex.to_lowercase()).parse().ok()?;
    Some(*digest.as_bytes())
}

/// What all builds of a run share; must be called in the runtime.
pub(super) fn workshop(client: &Client, setup: &Setup) -> Workshop {
    Workshop {
        store: setup.store.clone(),
        client: client.clone(),
        runtime: tokio::runtime::Handle::current(),
        ability: Arc::clone(&setup.ability),
        privileges: setup.privileges,
        cancel: Arc::clone(&setup.cancel),
        emit: Arc::clone(&setup.emit),
        logs: setup.logs.clone(),
        slots: Arc::new(Slots::new(setup.jobs)),
        pins: setup.pins.clone(),
        targets: Arc::new(Targets::default()),
        flights: Arc::new(Flights::default()),
        wholes: Arc::default(),
        dns: setup.dns.clone(),
        read_secret: Arc::clone(&setup.read_secret),
        ssh_agent: setup.ssh_agent.clone(),
        git: setup.git.clone(),
        fetches: Arc::default(),
        failed_steps: setup.failed_steps,
        renewed_caches: Arc::default(),
    }
}

/// What `build` takes, for one image of the plan.
pub(super) fn build_request(
    plan: &ImagePlan,
    (setup, workshop): (&Setup, &Workshop),
    built: &BuiltImages,
) -> Result<BuildRequest, ExecError> {
    let path = dockerfile_path(plan);
    let context = plan.context.as_ref().map(|context| context_source(plan, context, path));
    let context = context.transpose()?;
    let dockerfile = read_dockerfile(plan, workshop, context.as_ref())?;
    let mut named = BTreeMap::new();
    for (name, source) in &plan.named_contexts {
        named.insert(name.clone(), named_source(plan, source, built)?);
    }
    Ok(BuildRequest {
        name: plan.name.clone(),
        dockerfile: Arc::new(dockerfile),
        context,
        named,
        target: plan.target.clone(),
        args: plan.args.clone(),
        labels: plan.labels.clone(),
        platforms: distinct(&plan.platforms),
        cache: plan.cache,
        cache_rules: setup.cache_rules.clone(),
        on_layer: None,
        epoch: plan.source_date_epoch,
        refresh: setup.refresh,
        secrets: plan.secrets.clone(),
        ssh: plan.ssh.clone(),
        network: plan.network.clone(),
        allow: plan.allow.clone(),
        strict: plan.strict,
        limits: plan.limits.clone(),
        split: plan.split.clone(),
    })
}

fn dockerfile_path(plan: &ImagePlan) -> Option<&Path> {
    match &plan.dockerfile {
        DockerfileSource::File(path) => Some(path),
        DockerfileSource::Inline(_) | DockerfileSource::Context(_) | DockerfileSource::Url(_) => {
            None
        }
    }
}

/// Looks for the Dockerfiles and folders that a plan names, as its run will; for none that it is to write first.
///
/// # Errors
///
/// The first that cannot be read.
pub fn check_files(plan: &Plan) -> Result<(), ExecError> {
    plan.images.iter().try_for_each(|image| match check_files_of(image) {
        Err(ExecError::File { path, source, .. })
            if source.kind() == io::ErrorKind::NotFound && is_written(plan, &path) =>
        {
            Ok(())
        }
        checked => checked,
    })
}

fn check_files_of(plan: &ImagePlan) -> Result<(), ExecError> {
    let path = dockerfile_path(plan);
    let context = plan.context.as_ref().map(|context| context_source(plan, context, path));
    context.transpose()?;
    path.map(|path| dockerfile_text(plan, path)).transpose()?;
    let nothing = BuiltImages::new();
    let mut named = plan.named_contexts.values();
    named.try_for_each(|source| named_source(plan, source, &nothing).map(drop))
}

/// Whether an output of a plan may make a path.
fn is_written(plan: &Plan, path: &Path) -> bool {
    let outputs = plan.images.iter().flat_map(|image| &image.outputs);
    let mut places = outputs.filter_map(|output| output.destination.as_deref());
    places.any(|place| path.starts_with(place) || place.starts_with(path))
}

fn distinct(platforms: &[Platform]) -> Vec<Platform> {
    let mut seen = Vec::new();
    for platform in platforms {
        let platform = platform.clone().normalized();
        if !seen.contains(&platform) {
            seen.push(platform);
        }
    }
    seen
}

/// A context of the plan, with its ignore file when it is a folder.
fn context_source(
    plan: &ImagePlan,
    context: &ContextPlan,
    dockerfile: Option<&Path>,
) -> Result<ContextSource, ExecError> {
    Ok(match context {
        ContextPlan::Directory(folder) => {
            ContextSource::Folder(context_folder(&plan.name, folder, dockerfile)?)
        }
        ContextPlan::Archive { archive, path } => {
            ContextSource::Archive { name: archive.clone(), path: path.clone() }
        }
        ContextPlan::Remote { remote } => {
            ContextSource::Remote(with_git_dir(remote.clone(), &plan.args))
        }
    })
}

/// `BUILDKIT_CONTEXT_KEEP_GIT_DIR` decides where the address of a repository does not.
fn with_git_dir(remote: Remote, args: &BTreeMap<String, String>) -> Remote {
    let asked = args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR").map(String::as_str);
    match (remote, asked) {
        (Remote::Git(mut source), Some("1" | "t" | "T" | "true" | "TRUE" | "True")) => {
            source.keep_git_dir.get_or_insert(true);
            Remote::Git(source)
        }
        (remote, _) => remote,
    }
}

fn read_dockerfile(
    plan: &ImagePlan,
    workshop: &Workshop,
    context: Option<&ContextSource>,
) -> Result<DockerfileText, ExecError> {
    let image = &plan.name;
    let fetched = |found: Result<DockerfileText, BuildError>| {
        found.map_err(|source| {
            if matches!(source, BuildError::Cancelled) {
                return ExecError::Cancelled;
            }
            ExecError::Context { image: image.clone(), source: Box::new(source) }
        })
    };
    match &plan.dockerfile {
        DockerfileSource::Inline(text) => {
            let name = format!("{image} (inline)");
            Ok(DockerfileText { name, text: text.clone() })
        }
        DockerfileSource::File(path) => dockerfile_text(plan, path),
        DockerfileSource::Context(path) => {
            let context = context.expect("a Dockerfile is in the context only where there is one");
            let owner = (image.as_str(), &plan.secrets);
            let wanted = (path.as_deref(), TEXT_BYTES_MAX);
            fetched(build::dockerfile_of(workshop, owner, context, wanted))
        }
        DockerfileSource::Url(url) => {
            let owner = (image.as_str(), &plan.secrets);
            fetched(build::dockerfile_behind(workshop, owner, url, TEXT_BYTES_MAX))
        }
    }
}

fn dockerfile_text(plan: &ImagePlan, path: &Path) -> Result<DockerfileText, ExecError> {
    let text = read_text(path).map_err(|source| ExecError::File {
        image: plan.name.clone(),
        what: "Dockerfile",
        path: path.to_owned(),
        source,
    })?;
    Ok(DockerfileText { name: path.display().to_string(), text })
}

/// Text of the ignore file in force: `<Dockerfile>.dockerignore` replaces the context's own.
///
/// # Errors
///
/// The file that cannot be read, and why.
pub fn ignore_text(
    folder: &Path,
    dockerfile: Option<&Path>,
) -> Result<Option<String>, (PathBuf, io::Error)> {
    let beside = dockerfile.map(ignore::beside);
    for path in beside.into_iter().chain([folder.join(ignore::FILE_NAME)]) {
        match read_text(&path) {
            Ok(text) => return Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err((path, error)),
        }
    }
    Ok(None)
}

/// A folder as a context of an image.
fn context_folder(
    image: &str,
    folder: &Path,
    dockerfile: Option<&Path>,
) -> Result<ContextFolder, ExecError> {
    let unread =
        |what, path, source| ExecError::File { image: image.to_owned(), what, path, source };
    fs::read_dir(folder).map_err(|source| unread("build context", folder.to_owned(), source))?;
    let ignore = ignore_text(folder, dockerfile)
        .map_err(|(path, source)| unread("ignore file", path, source))?;
    Ok(ContextFolder { folder: folder.to_owned(), ignore })
}

/// Reads a text file of bounded size; devices, pipes and folders are refused before they are opened.
fn read_text(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() > TEXT_BYTES_MAX {
        let reason = format!("{} bytes, the limit is {TEXT_BYTES_MAX}", metadata.len());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    let bytes = fs::read(path)?;
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"))
}

fn named_source(
    plan: &ImagePlan,
    source: &NamedContext,
    built: &BuiltImages,
) -> Result<NamedSource, ExecError> {
    let image = plan.name.as_str();
    match source {
        NamedContext::Directory(folder) => {
            Ok(NamedSource::Files(ContextSource::Folder(context_folder(image, folder, None)?)))
        }
        NamedContext::Files(context) => {
            Ok(NamedSource::Files(context_source(plan, context, None)?))
        }
        NamedContext::Scratch => Ok(NamedSource::Scratch),
        NamedContext::Image(reference) => Ok(NamedSource::Reference(reference.clone())),
        NamedContext::PlanImage(name) => {
            Ok(NamedSource::Images(built.get(name).cloned().unwrap_or_default()))
        }
        NamedContext::OciLayout { path, selector } => {
            // A wrong path is a mistake, whether it is used or not.
            fs::metadata(path).map_err(|source| ExecError::File {
                image: image.to_owned(),
                what: "OCI layout",
                path: path.clone(),
                source,
            })?;
            Ok(NamedSource::Layout(Arc::new(Layout::new(path.clone(), selector.clone()))))
        }
    }
}
