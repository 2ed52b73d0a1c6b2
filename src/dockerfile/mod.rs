//! The Dockerfile language: text → instructions → ops. Pure; every value knows its place.

pub mod ast;
pub mod expand;
pub mod ignore;
pub mod lint;
mod lower;
pub mod mount;
mod parse;
pub mod pattern;
mod print;
pub mod quote;
mod shell_pattern;
mod suggest;
mod words;

use thiserror::Error;

pub use ast::{Dockerfile, Location};
pub use lint::Warning;
pub use lower::{
    Asking, ContextKind, Epoch, FileRules, ImageRequest, LowerOptions, Lowered, Lowering, lower,
    lower_for_check, who_asks,
};
pub use parse::{
    DOCKERFILE_BYTES_MAX, INSTRUCTIONS_MAX, Syntax, detect_syntax, parse, parse_trigger,
};
pub use print::print;
pub use suggest::nearest;

/// Why a Dockerfile cannot be built.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct DockerfileError {
    /// BuildKit's words (`dockerfile parse error on line 3: …` included where BuildKit says it).
    pub message: String,
    /// Where; `None` when it is about the whole file.
    pub location: Option<Location>,
    /// Short text for the mark in the source; the message when not given.
    pub label: Option<String>,
    /// The way out.
    pub help: Option<String>,
    /// What was noticed before.
    pub warnings: Vec<Warning>,
    /// What is wrong further down, as far as one mistake does not follow from another.
    pub others: Vec<DockerfileError>,
}
