//! OCI nouns: digests, references, platforms, descriptors, manifests, image configs.
//!
//! Values and pure functions only; nothing here knows where an image comes from or goes to.

mod config;
mod descriptor;
mod digest;
mod manifest;
mod media_type;
mod platform;
mod reference;

pub use config::{ContainerConfig, Empty, Healthcheck, HistoryEntry, ImageConfig, RootFs};
pub use descriptor::{Annotations, Descriptor};
pub use digest::{ChainId, DiffId, Digest, Hasher, ParseDigestError};
pub use manifest::{Document, DocumentError, Index, Manifest};
pub use media_type::{Codec, MediaType};
pub use platform::{ARCHITECTURES, ParsePlatformError, Platform};
pub use reference::{DEFAULT_REGISTRY, ParseReferenceError, Reference};
