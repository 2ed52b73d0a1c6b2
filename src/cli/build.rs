//! `build`: one image from a Dockerfile, by flags; from the plan on, everything is as in `run`.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
};

use idpbuilder::{
    dockerfile::Warning,
    exec::{ImageReport, ImageState},
    limits::Split,
    plan::{
        CacheUse, ContextPlan, DockerfileSource, Entitlement, OutputPlan, Plan, Publication,
        RegistryPlan, SecretSource, SshSource,
    },
};

use super::{
    Global, check,
    failure::{CONFIGURATION, CliError, ENVIRONMENT},
    images, limits, network, output, run, setup, shell,
    sources::{ReadFlags, SourceArgs},
};

const EPOCH: &str = "SOURCE_DATE_EPOCH";

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder build -t demo:v1 .\n",
    "  idpbuilder build -t gitea.cnoe.localtest.me:8443/giteaadmin/demo:v1 --push ."
))]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct BuildArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Name of the image; may be given several times.
    #[arg(short, long)]
    tag: Vec<String>,
    /// Does everything again; results are kept.
    #[arg(long)]
    no_cache: bool,
    /// Pushes every tag.
    #[arg(long)]
    push: bool,
    /// Writes the image besides: type=oci|docker|tar|local,dest=PATH[,tar=false][,compression=…].
    #[arg(short, long, value_name = "SPEC")]
    output: Vec<String>,
    /// Runs the build checks and builds nothing; as `idpbuilder check`.
    #[arg(long)]
    check: bool,
    /// Writes the image ID to a file.
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Writes digests and names to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// Accepts any certificate of the registries that are pushed to.
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    limits: limits::LimitArgs,
    #[command(flatten)]
    network: network::NetworkArgs,
    #[command(flatten)]
    pub(super) running: run::RunningArgs,
    #[command(flatten)]
    failure: shell::FailureArgs,
}

/// Flags that say what goes into an image, and so which bytes come out. The same for `build` and `verify`.
#[derive(clap::Args)]
pub(super) struct RecipeArgs {
    #[command(flatten)]
    pub(super) sources: SourceArgs,
    /// Label of the image.
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Secret for `RUN --mount=type=secret`: id=NAME[,src=FILE|,env=VARIABLE]; an id alone means the
    /// variable or file of that name.
    #[arg(long, value_name = "SPEC")]
    secret: Vec<String>,
    /// SSH agent or keys for `RUN --mount=type=ssh`: ID for the agent of SSH_AUTH_SOCK, ID=SOCKET for another,
    /// ID=KEY[,KEY] for private keys.
    #[arg(long, value_name = "ID[=PATH]")]
    ssh: Vec<String>,
    /// Makes several layers of a COPY or ADD that is large, so that a change of one file sends one of them: with
    /// =size=16m,most=32,often=PATTERN, each where it is wanted.
    #[arg(long, value_name = "SPEC", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    split_layers: Option<String>,
    /// Lets a build do more: security.insecure, network.host (RUN), network.private (ADD from this machine
    /// or a private network).
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub(super) allow: Vec<String>,
}

impl RecipeArgs {
    /// What these flags say; all else as without flags.
    pub(super) fn flags(&self) -> Result<ReadFlags, CliError> {
        let ReadFlags { mut flags, input } = self.sources.flags()?;
        flags.labels = pairs("--label", &self.label)?;
        flags.secrets = self.secret.iter().map(|text| secret(text)).collect::<Result<_, _>>()?;
        flags.ssh = self.ssh.iter().map(|text| ssh(text)).collect::<Result<_, _>>()?;
        flags.allow = self.allow.iter().map(|text| entitlement(text)).collect::<Result<_, _>>()?;
        flags.source_date_epoch = source_date_epoch(&flags.args)?;
        let split = self.split_layers.as_deref().map(Split::parse).transpose();
        flags.split = split.map_err(|reason| {
            CliError::new(CONFIGURATION, format!("--split-layers: {reason}"))
                .with_help("for example: --split-layers, or --split-layers=size=8m,often=app/src")
        })?;
        Ok(ReadFlags { flags, input })
    }
}

pub(super) fn build(global: &Global, args: BuildArgs) -> Result<ExitCode, CliError> {
    if args.check {
        return check::perform(global, &args.recipe.sources);
    }
    // What came from standard input lives until the build is done.
    let (plan, _input) = plan_of(&args)?;
    let store = setup::store()?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    let mut setup = setup::exec_setup(global, store, cancel, &args.running)?;
    let folder = lock_folder(&plan);
    args.running.apply(&mut setup, &folder)?;
    args.failure.apply(&mut setup)?;
    let report = run::perform(global, &runtime, &plan, &setup)?;
    let image = report.images.first().expect("a build has one image");
    write_results(&args, image)?;
    if let ImageState::Stored { id, .. } = image.state {
        setup::print(&format!("{id}\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the lock of a build is: in the folder of its context, or here.
pub(super) fn lock_folder(plan: &Plan) -> PathBuf {
    match &plan.images[0].context {
        Some(ContextPlan::Directory(folder)) => folder.clone(),
        _ => PathBuf::new(),
    }
}

fn plan_of(args: &BuildArgs) -> Result<(Plan, Option<File>), CliError> {
    let ReadFlags { mut flags, input } = args.recipe.flags()?;
    flags.tags = args.tag.iter().map(|tag| images::parse(tag)).collect::<Result<_, _>>()?;
    flags.outputs = args.output.iter().map(|text| output::parse(text)).collect::<Result<_, _>>()?;
    flags.limits = args.limits.limits()?;
    flags.network = args.network.plan()?;
    if args.push {
        flags.publication = Publication::Push;
    }
    if args.no_cache {
        flags.cache = CacheUse::Ignore;
    }
    if args.insecure {
        let registries = flags.tags.iter().map(|tag| RegistryPlan {
            address: tag.registry().to_owned(),
            insecure: true,
            ..RegistryPlan::default()
        });
        flags.registries = registries.collect();
    }
    let rewritten = flags.outputs.iter().any(OutputPlan::rewrites_times);
    // A time that is a source's is not known yet; the Dockerfile may name one too.
    let is_dated = flags.source_date_epoch.is_some() || flags.args.contains_key(EPOCH);
    if rewritten && !is_dated && !names_epoch(&flags.dockerfile) {
        let message = "--output …,rewrite-timestamp=true: there is no time to rewrite to";
        return Err(CliError::new(CONFIGURATION, message)
            .with_help("give one: --build-arg SOURCE_DATE_EPOCH=SECONDS"));
    }
    Ok((args.recipe.sources.plan(flags)?, input))
}

/// Whether a Dockerfile may say what the time is; one that has to be fetched may.
fn names_epoch(dockerfile: &DockerfileSource) -> bool {
    match dockerfile {
        DockerfileSource::Inline(text) => text.contains(EPOCH),
        DockerfileSource::File(path) => {
            std::fs::read_to_string(path).is_ok_and(|text| text.contains(EPOCH))
        }
        DockerfileSource::Context(_) | DockerfileSource::Url(_) => true,
    }
}

/// `id=NAME`, with `src=FILE` or `env=VARIABLE`; `type=file` and `type=env` as docker has them.
fn secret(text: &str) -> Result<(String, SecretSource), CliError> {
    let invalid = |reason: &str| {
        CliError::new(CONFIGURATION, format!("--secret {text}: {reason}")).with_help(
            "for example: --secret id=token,src=token.txt or --secret id=token,env=TOKEN",
        )
    };
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for option in text.split(',') {
        let (name, value) = option.split_once('=').ok_or_else(|| invalid("expected NAME=VALUE"))?;
        let known = match name.trim().to_ascii_lowercase().as_str() {
            "id" => &mut id,
            "src" | "source" => &mut file,
            "env" => &mut variable,
            "type" => &mut kind,
            _ => return Err(invalid(&format!("the option {name} is unknown"))),
        };
        *known = Some(value.to_owned());
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| invalid("id=NAME is missing"))?;
    // docker: `type=env,src=NAME` is a variable.
    if kind.as_deref() == Some("env") && variable.is_none() {
        variable = file.take();
    }
    let of_file = |path: &str| setup::absolute(Path::new(path)).map(SecretSource::File);
    let source = match (kind.as_deref(), file, variable) {
        (Some(kind), ..) if !["file", "env"].contains(&kind) => {
            return Err(invalid("type is file or env"));
        }
        (_, Some(_), Some(_)) => return Err(invalid("either src or env")),
        (_, Some(path), None) => of_file(&path)?,
        (_, None, Some(name)) => SecretSource::Env(name),
        (Some("file"), None, None) => of_file(&id)?,
        (Some(_), None, None) => SecretSource::Env(id.clone()),
        (None, None, None) if std::env::var_os(&id).is_some() => SecretSource::Env(id.clone()),
        (None, None, None) => of_file(&id)?,
    };
    if let SecretSource::File(path) = &source
        && !path.exists()
    {
        return Err(invalid(&format!("{} does not exist", path.display())));
    }
    Ok((id, source))
}

/// `default`, `id=SOCKET`, `id=KEY,KEY`.
fn ssh(text: &str) -> Result<(String, SshSource), CliError> {
    let invalid = |reason: &str| {
        CliError::new(CONFIGURATION, format!("--ssh {text}: {reason}"))
            .with_help("for example: --ssh default, or --ssh deploy=~/.ssh/id_ed25519")
    };
    let (id, paths) = text.split_once('=').unwrap_or((text, ""));
    if id.is_empty() {
        return Err(invalid("the id is missing"));
    }
    if paths.is_empty() {
        return match setup::ssh_agent() {
            Some(_) => Ok((id.to_owned(), SshSource::Agent)),
            None => Err(invalid("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")),
        };
    }
    let mut files = Vec::new();
    for path in paths.split(',') {
        let path = setup::absolute(Path::new(path))?;
        if !path.exists() {
            return Err(invalid(&format!("{} does not exist", path.display())));
        }
        files.push(path);
    }
    Ok((id.to_owned(), SshSource::Files(files)))
}

pub(super) fn entitlement(text: &str) -> Result<Entitlement, CliError> {
    Entitlement::ALL.into_iter().find(|one| one.name() == text).ok_or_else(|| {
        let known = Entitlement::ALL.map(Entitlement::name).join(", ");
        CliError::new(CONFIGURATION, format!("--allow {text}: expected one of {known}"))
    })
}

/// `SOURCE_DATE_EPOCH` of the build arguments, or else of the environment.
fn source_date_epoch(args: &BTreeMap<String, String>) -> Result<Option<i64>, CliError> {
    let name = EPOCH;
    let from_env = std::env::var(name).ok().filter(|value| !value.is_empty());
    match (args.get(name), from_env) {
        // Names of sources (`context`) are for the Dockerfile's own reading.
        (Some(value), _) => Ok(value.parse().ok()),
        (None, None) => Ok(None),
        (None, Some(value)) => value.parse().map(Some).map_err(|_| {
            CliError::new(CONFIGURATION, format!("{name}={value} is no number of seconds"))
        }),
    }
}

fn pairs(flag: &str, texts: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut pairs = BTreeMap::new();
    for text in texts {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            return Err(CliError::new(
                CONFIGURATION,
                format!("{flag} {text}: the name is missing"),
            ));
        }
        pairs.insert(name.to_owned(), value.to_owned());
    }
    Ok(pairs)
}

fn write_results(args: &BuildArgs, image: &ImageReport) -> Result<(), CliError> {
    let ImageState::Stored { id, digest, .. } = image.state else { return Ok(()) };
    let write = |path: &Path, text: String| {
        std::fs::write(path, text)
            .map_err(|error| CliError::new(ENVIRONMENT, format!("{}: {error}", path.display())))
    };
    if let Some(path) = &args.iidfile {
        write(path, id.to_string())?;
    }
    if let Some(path) = &args.metadata_file {
        // What left the store counts: its layers are compressed there, and so its digest is another one.
        let pushed = image.pushed.first().map(|(_, digest)| (*digest, id));
        let (digest, config) = pushed.or(image.written).unwrap_or((digest, id));
        let document = serde_json::json!({
            "containerimage.config.digest": config,
            "containerimage.digest": digest,
            "image.name": image.tags.join(","),
            "warnings": image.warnings.iter().map(warning_json).collect::<Vec<_>>(),
        });
        let text = serde_json::to_string_pretty(&document).expect("JSON values");
        write(path, format!("{text}\n"))?;
    }
    Ok(())
}

/// A finding of the build checks, with lines from 1.
fn warning_json(warning: &Warning) -> serde_json::Value {
    let (first, last) = warning.location.lines;
    serde_json::json!({
        "rule": warning.rule,
        "message": warning.message,
        "lines": (first..=last).collect::<Vec<_>>(),
        "url": warning.url(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_name_with_one_source() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "x").unwrap();
        let path = file.display();
        let env = |name: &str| Some(SecretSource::Env(name.to_owned()));
        let from_file = || Some(SecretSource::File(file.clone()));
        for (text, wanted) in [
            (format!("id=a,src={path}"), from_file()),
            (format!("id=a,type=file,source={path}"), from_file()),
            ("id=a,env=B".to_owned(), env("B")),
            ("id=a,type=env,src=B".to_owned(), env("B")),
            ("id=a,type=env".to_owned(), env("a")),
            ("id=PATH".to_owned(), env("PATH")),
            (format!("id=a,src={path},env=B"), None),
            ("id=a,src=/nowhere/at/all".to_owned(), None),
            ("src=x".to_owned(), None),
            ("id=".to_owned(), None),
            ("id=a,type=x,env=B".to_owned(), None),
            ("id=a,mode=0400".to_owned(), None),
            ("a".to_owned(), None),
        ] {
            let found = secret(&text).ok().map(|(_, source)| source);
            assert_eq!(found, wanted, "{text}");
        }
    }
}
