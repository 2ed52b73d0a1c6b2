//! Why there is no plan, each with the way out.

use miette::Diagnostic;
use thiserror::Error;

use crate::oci::ParseReferenceError;

/// Why a selection of a project, or a set of flags, makes no plan.
#[derive(Clone, Debug, PartialEq, Eq, Error, Diagnostic)]
#[non_exhaustive]
pub enum PlanError {
    /// Neither a pipeline nor an image is called so.
    #[error("the project has no pipeline and no image `{name}`")]
    UnknownName {
        /// As asked for.
        name: String,
        /// Close or known names.
        #[help]
        help: Option<String>,
    },
    /// The project declares no image.
    #[error("the project has nothing to build")]
    #[diagnostic(help("declare an image: image app {{ tags dev }}"))]
    NothingToBuild,
    /// Images need one another in a circle.
    #[error("images need one another in a circle: {}", chain.join(" → "))]
    #[diagnostic(help("take one FROM, COPY --from, `needs` or `build-context` out of the circle"))]
    Cycle {
        /// Names; the first is also the last.
        chain: Vec<String>,
    },
    /// Two images, or two pushes of one image, have the same full name.
    #[error("images `{first}` and `{second}` would both be {reference}")]
    #[diagnostic(help("give one of them another tag, or another name: push … as=\"name\""))]
    SameReference {
        /// One image.
        first: String,
        /// The other one.
        second: String,
        /// Full reference.
        reference: String,
    },
    /// A name made of registry, namespace, image and tag is none.
    #[error("image `{image}`: `{reference}` is not an image reference: {reason}")]
    Reference {
        /// Name in the project.
        image: String,
        /// What was put together.
        reference: String,
        /// Why.
        reason: ParseReferenceError,
    },
    /// Two declarations of one registry say different things.
    #[error("registries `{first}` and `{second}` have the address {address} but other settings")]
    #[diagnostic(help("give both the same `auth` and `tls`; only `namespace` may differ"))]
    RegistryConflict {
        /// One name.
        first: String,
        /// The other one.
        second: String,
        /// Host and port.
        address: String,
    },
    /// `build --push` without a name to push to.
    #[error("there is nothing to push: the image has no name")]
    #[diagnostic(help("name it: --tag REGISTRY/NAME:TAG"))]
    PushWithoutTag,
}
