//! `--strict`: what the rules of our own found, as a failure. Knows neither files nor how findings are shown.

use super::{BuildError, BuildRequest};
use crate::dockerfile::{DockerfileError, Lowered, Warning};

/// Fails for the first finding when the user wants none.
pub(super) fn check(request: &BuildRequest, lowered: &Lowered) -> Result<(), BuildError> {
    if !request.strict {
        return Ok(());
    }
    let unused = lowered.unused_args.first();
    match (lowered.advice.is_empty(), unused) {
        (false, _) => Err(refused(&lowered.advice)),
        (true, None) => Ok(()),
        (true, Some(unused)) => Err(BuildError::Dockerfile(DockerfileError {
            message: format!("{unused} (--strict)"),
            location: None,
            label: None,
            help: Some("take the --build-arg away, or declare it: ARG NAME".to_owned()),
            warnings: Vec::new(),
            others: Vec::new(),
        })),
    }
}

/// Findings as one failure, at the place of the first.
pub(super) fn refused(found: &[Warning]) -> BuildError {
    let (first, others) = found.split_first().expect("something was found");
    let Warning { rule, message, location } = first;
    let mut help = format!("`# check=skip={rule}` right above the instruction allows it");
    for other in others {
        let line = other.location.lines.0;
        help.push_str(&format!("\nalso line {line}: {} ({})", other.message, other.rule));
    }
    BuildError::Dockerfile(DockerfileError {
        message: format!("{message} ({rule}, --strict)"),
        location: Some(location.clone()),
        label: Some((*rule).to_owned()),
        help: Some(help),
        warnings: Vec::new(),
        others: Vec::new(),
    })
}
