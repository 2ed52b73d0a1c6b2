//! `SOURCE_DATE_EPOCH` that names a source: its time is looked up, and the build is asked for again with it.
//!
//! The time of a commit, what a web server says, or else that of the newest file of an archive; a folder
//! has none. Messages are BuildKit's.

use super::{
    BuildError, BuildFailure, BuildRequest, NamedSource, Workshop, bases::Bases, downloads,
    fetch::Errand,
};
use crate::{
    dockerfile::{self, Dockerfile, Epoch, Lowered, ast},
    graph::{FileAction, Op, Place, SourceRoot},
    oci::Platform,
    remote::Remote,
};

const ARGUMENT: &str = "SOURCE_DATE_EPOCH";
/// The build context, as a source of time.
const CONTEXT: &str = "context";
const SCRATCH: &str = "scratch";

/// The request with the time of the source that it, or its Dockerfile, names; `None` when no source is
/// named.
pub(super) fn settle(
    workshop: &Workshop,
    request: &BuildRequest,
    parsed: &Dockerfile,
    platform: &Platform,
) -> Result<Option<BuildRequest>, BuildFailure> {
    let is_ours = |instruction: &ast::Instruction| {
        matches!(&instruction.kind, ast::Kind::Arg(entries)
            if entries.iter().any(|(name, _)| name == ARGUMENT))
    };
    let is_said = request.args.contains_key(ARGUMENT) || parsed.global_args.iter().any(is_ours);
    if request.epoch.is_some() || !is_said {
        return Ok(None);
    }
    let bases = Bases::new(workshop, request);
    let lowered = bases.lower(parsed, platform, dockerfile::lower)?;
    let Some(Epoch::Source(name)) = &lowered.epoch else { return Ok(None) };
    let seconds = match stage_named(request, parsed, name) {
        Some(stage) => {
            let place = Place {
                stage: name.clone(),
                title: stage.from.original.clone(),
                span: stage.from.location.span.clone(),
                lines: stage.from.location.lines,
            };
            let fail = |error| BuildFailure::new(request, Some(place), error);
            of_stage(workshop, request, (parsed, platform), stage).map_err(fail)?
        }
        None => of_context(workshop, request, name)
            .map_err(|error| BuildFailure::new(request, None, error))?,
    };
    let mut timed = request.clone();
    let seconds = seconds.map(|seconds| seconds.to_string()).unwrap_or_default();
    timed.args.insert(ARGUMENT.to_owned(), seconds);
    Ok(Some(timed))
}

/// As asked for, or as the Dockerfile says.
pub(super) fn in_force(request: &BuildRequest, lowered: &Lowered) -> Option<i64> {
    request.epoch.or(match lowered.epoch {
        Some(Epoch::Seconds(seconds)) => Some(seconds),
        // Settled before; a source without a time is none.
        Some(Epoch::Source(_)) | None => None,
    })
}

/// The stage of this name, unless a context has it.
fn stage_named<'p>(
    request: &BuildRequest,
    parsed: &'p Dockerfile,
    name: &str,
) -> Option<&'p ast::Stage> {
    if name == CONTEXT || request.named.contains_key(name) {
        return None;
    }
    let is_it = |stage: &&ast::Stage| {
        stage.name.as_ref().is_some_and(|known| known.eq_ignore_ascii_case(name))
    };
    parsed.stages.iter().find(is_it)
}

fn of_context(
    workshop: &Workshop,
    request: &BuildRequest,
    name: &str,
) -> Result<Option<i64>, BuildError> {
    let source = match (name, request.named.get(name)) {
        (CONTEXT, _) => request.context.as_ref(),
        (_, Some(NamedSource::Files(source))) => Some(source),
        (_, _) => None,
    };
    let errand = Errand::of_the_user(workshop, (&request.name, &request.secrets));
    let fetched = source.map(|source| errand.context(source)).transpose()?.flatten();
    Ok(fetched.and_then(|fetched| fetched.time))
}

/// The time of what a stage adds, and does nothing besides.
fn of_stage(
    workshop: &Workshop,
    request: &BuildRequest,
    (parsed, platform): (&Dockerfile, &Platform),
    stage: &ast::Stage,
) -> Result<Option<i64>, BuildError> {
    let fail = |message: &str| BuildError::Epoch(format!("{ARGUMENT} stage {message}"));
    if stage.base != SCRATCH && !stage.base.contains('$') {
        return Err(fail("must use FROM scratch"));
    }
    let is_add = |one: &&ast::Instruction| matches!(one.kind, ast::Kind::Add(_));
    let is_arg = |one: &&ast::Instruction| matches!(one.kind, ast::Kind::Arg(_));
    let mut instructions = stage.instructions.iter();
    if let Some(other) = instructions.find(|one| !is_add(one) && !is_arg(one)) {
        return Err(fail(&format!(
            "does not meet source-only requirements: unsupported {} instruction",
            other.keyword.to_uppercase()
        )));
    }
    if stage.instructions.iter().filter(is_add).count() != 1 {
        return Err(fail("must contain exactly one remote ADD"));
    }
    let mut alone = request.clone();
    alone.target.clone_from(&stage.name);
    alone.args.remove(ARGUMENT);
    let bases = Bases::new(workshop, &alone);
    let lowered = bases.lower(parsed, platform, dockerfile::lower);
    let lowered = lowered.map_err(|failure| *failure.error)?;
    let sources = lowered.graph.ids().filter_map(|id| {
        let Op::Files(files) = &lowered.graph.node(id).op else { return None };
        let [FileAction::Copy { sources, .. }] = &files.actions[..] else { return None };
        Some((matches!(lowered.graph.node(files.base).op, Op::Scratch), sources))
    });
    let sources: Vec<_> = sources.collect();
    let [(true, sources)] = &sources[..] else { return Err(fail("must use FROM scratch")) };
    let [source] = &sources[..] else {
        return Err(fail("must contain exactly one remote ADD source"));
    };
    let errand = Errand::of_a_dockerfile(workshop, request);
    match &source.root {
        SourceRoot::Git(git) => Ok(errand.remote(&Remote::Git(git.clone()))?.time),
        SourceRoot::Url { url, checksum } => {
            let known = downloads::get(errand, url, checksum.as_deref())?;
            match known.validators.modified() {
                Some(seconds) => Ok(Some(seconds)),
                None => Ok(errand.remote(&Remote::Web(url.clone()))?.time),
            }
        }
        SourceRoot::Op(_) | SourceRoot::Inline(_) => {
            Err(fail("source must be a single HTTP(S) or Git ADD"))
        }
    }
}
