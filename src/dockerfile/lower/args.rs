//! Arguments: global scope, the automatic ones, `ARG` in a stage, and the build's own switches.

use crate::dockerfile::ast::{Dockerfile, Instruction, Kind, Location};
use crate::dockerfile::quote::quoted;
use crate::dockerfile::suggest::with_suggestion;
use crate::oci::{Platform, Reference};

use super::dispatch::Work;
use super::env::Env;
use super::history::{Made, commit};
use super::report::Report;
use super::secret_names::looks_secret;
use crate::dockerfile::lower::{Build, Failure, LowerOptions, platform};

const EPOCH: &str = "SOURCE_DATE_EPOCH";
const MULTI_PLATFORM: &str = "BUILDKIT_MULTI_PLATFORM";
/// Arguments that steer an SBOM scanner, not the process.
const NOT_ENV: &[&str] = &["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];
/// Switches of the builder and what every build understands without an `ARG`.
const KNOWN: &[&str] = &[
    EPOCH,
    MULTI_PLATFORM,
    "BUILDKIT_BUILD_NAME",
    "BUILDKIT_CACHE_MOUNT_NS",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_INLINE_CACHE",
    "BUILDKIT_SANDBOX_HOSTNAME",
    "BUILDKIT_SBOM_SCAN_CONTEXT",
    "BUILDKIT_SBOM_SCAN_STAGE",
    "BUILDKIT_SYNTAX",
];
const PROXIES: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];
/// What `TARGETSTAGE` says when the stage has no name.
const UNNAMED_STAGE: &str = "default";

/// Where the build's fixed time comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Epoch {
    /// Seconds since 1970.
    Seconds(i64),
    /// The time of a source: `context`, or the name of a stage or named context. Who knows that time
    /// lowers again with it as `--build-arg`, since an `ARG` may show it.
    Source(String),
}

/// The global scope.
#[derive(Clone, Debug, Default)]
pub(super) struct Globals {
    /// Automatic arguments, then the `ARG`s before the first `FROM` that have a value.
    pub env: Env,
    /// Names of the `ARG`s, with or without a value.
    pub declared: Vec<String>,
    /// `SOURCE_DATE_EPOCH`.
    pub epoch: Option<Epoch>,
}

/// Whether an argument never becomes a variable.
pub(super) fn is_not_env(name: &str) -> bool {
    NOT_ENV.contains(&name)
}

/// Complains about switches with nonsense in them.
pub(super) fn check_control_args(options: &LowerOptions) -> Result<(), Failure> {
    match options.args.get(MULTI_PLATFORM).map(String::as_str) {
        None
        | Some(
            "1" | "t" | "T" | "TRUE" | "true" | "True" | "0" | "f" | "F" | "FALSE" | "false"
            | "False",
        ) => Ok(()),
        Some(other) => {
            Err(Failure::new(format!("invalid boolean value for multi-platform: {other}")))
        }
    }
}

/// Reads the `ARG`s before the first `FROM`, and checks the bases that come of their defaults.
pub(super) fn global_args(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
    report: &mut Report<'_>,
) -> Result<Globals, Failure> {
    let automatic = automatic(dockerfile, options);
    if let Ok(defaults) = global_env(dockerfile, automatic.clone(), &|_| None) {
        check_default_bases(dockerfile, &defaults, report);
    }
    let env = global_env(dockerfile, automatic, &|name| options.args.get(name).cloned())?;
    let mut declared: Vec<String> = Vec::new();
    for name in declared_names(&dockerfile.global_args) {
        if !declared.contains(&name) {
            declared.push(name);
        }
    }
    let asked = options.args.get(EPOCH).cloned();
    let asked = asked.or_else(|| env.get(EPOCH).map(str::to_owned)).unwrap_or_default();
    let epoch = epoch(&asked, dockerfile, options)?;
    Ok(Globals { env, declared, epoch })
}

/// `BUILDPLATFORM` and its like; a `--build-arg` of the same name wins.
fn automatic(dockerfile: &Dockerfile, options: &LowerOptions) -> Env {
    let last = dockerfile.stages.last().and_then(|stage| stage.name.clone());
    let stage = options.target.clone().or(last).unwrap_or_else(|| UNNAMED_STAGE.to_owned());
    let (build, target) = (&options.build_platform, &options.platform);
    let parts = |prefix: &str, whole: String, platform: &Platform| {
        [
            (format!("{prefix}PLATFORM"), whole),
            (format!("{prefix}OS"), platform.os.clone()),
            (format!("{prefix}OSVERSION"), platform.os_version.clone().unwrap_or_default()),
            (format!("{prefix}ARCH"), platform.architecture.clone()),
            (format!("{prefix}VARIANT"), platform.variant.clone().unwrap_or_default()),
        ]
    };
    let build = parts("BUILD", build.to_string(), build);
    let target = parts("TARGET", platform::with_version(target), target);
    let stage = ("TARGETSTAGE".to_owned(), stage);
    let all = build.into_iter().chain(target).chain([stage]);
    all.map(|(name, value)| {
        let value = options.args.get(&name).cloned().unwrap_or(value);
        (name, value)
    })
    .collect()
}

/// Each entry sees the ones before it, also those of its own line.
fn global_env(
    dockerfile: &Dockerfile,
    mut env: Env,
    given: &dyn Fn(&str) -> Option<String>,
) -> Result<Env, Failure> {
    for instruction in &dockerfile.global_args {
        let Kind::Arg(entries) = &instruction.kind else { continue };
        for (name, default) in entries {
            let value = match (given(name), default) {
                (Some(value), _) => Some(value),
                (None, Some(word)) => {
                    let text = env.word(word, dockerfile.directives.escape).text;
                    Some(text.map_err(|message| Failure::new(message).at(&instruction.location))?)
                }
                (None, None) => None,
            };
            if let Some(value) = value {
                env.set(name, &value);
            }
        }
    }
    Ok(env)
}

/// `InvalidDefaultArgInFrom`: the file should build without any `--build-arg`.
fn check_default_bases(dockerfile: &Dockerfile, defaults: &Env, report: &mut Report<'_>) {
    for stage in &dockerfile.stages {
        let Ok(name) = defaults.word(&stage.base, dockerfile.directives.escape).text else {
            return;
        };
        if name.parse::<Reference>().is_err() {
            let message = format!(
                "Default value for ARG {} results in empty or invalid base image name",
                stage.base
            );
            report.warn("InvalidDefaultArgInFrom", &stage.from, message);
        }
    }
}

fn epoch(
    asked: &str,
    dockerfile: &Dockerfile,
    options: &LowerOptions,
) -> Result<Option<Epoch>, Failure> {
    if asked.is_empty() {
        return Ok(None);
    }
    if let Ok(seconds) = asked.parse() {
        return Ok(Some(Epoch::Seconds(seconds)));
    }
    let lower = asked.to_lowercase();
    let is_stage = dockerfile.stages.iter().any(|stage| stage.name.as_deref() == Some(&lower));
    if asked == "context" || is_stage || options.named_contexts.contains_key(asked) {
        return Ok(Some(Epoch::Source(asked.to_owned())));
    }
    Err(Failure::new(format!("invalid {EPOCH}: {asked}")))
}

fn declared_names(instructions: &[Instruction]) -> impl Iterator<Item = String> {
    let names = |instruction: &Instruction| -> Vec<String> {
        let Kind::Arg(entries) = &instruction.kind else { return Vec::new() };
        entries.iter().map(|(name, _)| name.clone()).collect()
    };
    instructions.iter().flat_map(names)
}

/// A sentence for each `--build-arg` that nothing in the file asks for.
pub(super) fn unused_args(dockerfile: &Dockerfile, options: &LowerOptions) -> Vec<String> {
    let mut declared: Vec<String> = declared_names(&dockerfile.global_args).collect();
    for stage in &dockerfile.stages {
        declared.extend(declared_names(&stage.instructions));
    }
    let automatic = automatic(dockerfile, options);
    let understood = |name: &str| {
        declared.iter().any(|known| known == name)
            || KNOWN.contains(&name)
            || PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
            || automatic.names().any(|known| known == name)
    };
    let known: Vec<&str> =
        declared.iter().map(String::as_str).chain(KNOWN.iter().copied()).collect();
    let unused = options.args.keys().filter(|name| !understood(name));
    unused
        .map(|name| {
            let message = format!("build argument {name} is not used by any ARG");
            with_suggestion(message, name, &known)
        })
        .collect()
}

/// Proxy settings for processes: both spellings of each that was given, in either.
pub(super) fn proxy_env(options: &LowerOptions) -> Vec<(String, String)> {
    let mut env = Vec::new();
    for proxy in PROXIES {
        let mut given = options.args.iter().filter(|(name, _)| name.eq_ignore_ascii_case(proxy));
        if let Some((_, value)) = given.next_back()
            && !value.is_empty()
        {
            env.push(((*proxy).to_owned(), value.clone()));
            env.push((proxy.to_ascii_lowercase(), value.clone()));
        }
    }
    env
}

impl Build<'_> {
    /// `ARG` in a stage: the build's value, else the default, else the global value.
    pub(super) fn arg(
        &mut self,
        work: &mut Work,
        instruction: &Instruction,
        entries: &[(String, Option<String>)],
    ) -> Result<(), Failure> {
        let mut shown = Vec::new();
        for (name, default) in entries {
            if looks_secret(name) {
                self.report.warn("SecretsUsedInArgOrEnv", instruction, secret_message("ARG", name));
            }
            let value = match (self.options.args.get(name), default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(word)) => Some(self.expand(work, instruction, word)?),
                (None, None) => self.globals.env.get(name).map(str::to_owned),
            };
            shown.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
            if let Some(value) = &value
                && !is_not_env(name)
            {
                work.env.set(name, value);
            }
            work.args.push((name.clone(), value));
        }
        commit(&mut work.image, format!("ARG {}", shown.join(" ")), Made::Nothing);
        Ok(())
    }
}

/// `SecretsUsedInArgOrEnv`.
pub(super) fn secret_message(keyword: &str, name: &str) -> String {
    format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {})", quoted(name))
}

/// The words of a `FROM` see the global scope alone.
pub(super) fn undeclared_in_from(build: &Build<'_>, unset: &[String]) -> Vec<String> {
    let known: Vec<&str> = {
        let declared = build.globals.declared.iter().map(String::as_str);
        build.globals.env.names().chain(declared).collect()
    };
    let missing = unset.iter().filter(|name| !known.contains(&name.as_str()));
    missing
        .map(|name| {
            let message = format!("FROM argument '{name}' is not declared");
            with_suggestion(message, name, &known)
        })
        .collect()
}

/// Place of a failure in a `FROM`.
pub(super) fn at(location: &Location) -> impl Fn(String) -> Failure + '_ {
    move |message| Failure::new(message).at(location)
}
