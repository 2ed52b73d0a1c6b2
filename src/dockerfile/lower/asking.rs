//! Who asks for an image that cannot be had, and which stage may have been meant. Knows names only.

use std::collections::HashMap;

use crate::dockerfile::ast::{Dockerfile, Location};
use crate::dockerfile::suggest::nearest;

use super::report::Report;
use super::{Build, ImageRequest, LowerOptions, args};

/// Where an image is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// The `FROM`, or the instruction that takes files from it.
    pub location: Location,
    /// The stage whose name is nearest.
    pub near_stage: Option<String>,
}

/// Finds the instruction that asks for an image; `None` when a trigger of a base does, or nobody.
#[must_use]
pub fn who_asks(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
    wanted: &ImageRequest,
) -> Option<Asking> {
    let report = Report::new(dockerfile, options).ok()?;
    let configs = HashMap::new();
    let mut build = Build::new(dockerfile, options, &configs, report);
    build.globals = args::global_args(dockerfile, options, &mut build.report).ok()?;
    build.register_stages().ok()?;
    build.link_instructions().ok()?;
    let asks = |name: &str| name == wanted.name;
    let state = build.states.iter().find(|state| {
        let replaced = state.context.as_ref().map(|(context, _)| context.as_str());
        let context = build.context(&state.base_name, state.platform.as_ref());
        let through = context.as_ref().map(|(context, _)| context.as_str());
        let is_image = state.base.is_none();
        is_image && asks(replaced.or(through).unwrap_or(&state.base_name))
    })?;
    let stages: Vec<&str> = build.states.iter().filter_map(|state| state.name.as_deref()).collect();
    let near = nearest(&state.base_name.to_lowercase(), &stages).map(str::to_owned);
    Some(Asking { location: state.from.location.clone(), near_stage: near })
}
