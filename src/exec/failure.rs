//! What can go wrong in a run, step by step.

use std::path::PathBuf;

use thiserror::Error;

use crate::{
    build::{BuildError, BuildFailure},
    image::ImageError,
    registry::RegistryError,
    serve::ServeError,
    store::{StoreError, lacks_space},
};

/// A failed step of a run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExecError {
    /// A build failed.
    #[error("{0}")]
    Build(#[from] BuildFailure),
    /// A file or folder that the plan names cannot be read.
    #[error("{what} {path}: {source}")]
    File {
        /// The image.
        image: String,
        /// What it is, such as `Dockerfile`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A context that is no folder cannot be had, or its Dockerfile cannot.
    #[error("{source}")]
    Context {
        /// The image.
        image: String,
        /// Why.
        source: Box<BuildError>,
    },
    /// Naming or writing an image failed.
    #[error("{source}")]
    Image {
        /// The image.
        image: String,
        /// Why.
        source: ImageError,
    },
    /// Pushing an image failed.
    #[error("pushing {to}: {source}")]
    Push {
        /// The image.
        image: String,
        /// Where.
        to: String,
        /// Why.
        source: ImageError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The client could not be set up.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A secret could not be read.
    #[error("password of {registry}: {reason}")]
    Secret {
        /// The registry.
        registry: String,
        /// Why.
        reason: String,
    },
    /// The certificate or login of the embedded registry could not be read or made.
    #[error("embedded registry: {0}")]
    Embedded(String),
    /// The embedded registry could not start.
    #[error("embedded registry: {0}")]
    Serve(#[from] ServeError),
    /// Stopped because the user asked.
    #[error("cancelled")]
    Cancelled,
}

impl ExecError {
    /// Whether a full disk is why it failed, wherever that was noticed.
    #[must_use]
    pub fn lacks_space(&self) -> bool {
        let is_of_process = matches!(self, Self::Build(failure) if failure.error.lacks_space());
        is_of_process || lacks_space(self)
    }
}
