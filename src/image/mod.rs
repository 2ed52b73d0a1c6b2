//! Images: pull, push, assemble, and the outputs (OCI layout, archives, local directory).

mod assemble;
mod caches;
mod clamp;
mod compare;
mod flatten;
mod form;
mod import;
mod output;
mod resolve;
mod stoppable;
mod transfer;
mod upload;

#[cfg(test)]
mod outputs;
#[cfg(test)]
mod travels;

use thiserror::Error;

use crate::{
    layer::LayerError,
    oci::{Descriptor, Document, DocumentError, ImageConfig, Manifest, Reference},
    registry::RegistryError,
    store::StoreError,
};

pub use assemble::{assemble, base_layers, content_bytes, distributable};
pub use caches::{Present, Unpacked, pack_caches, unpack_caches};
pub use clamp::clamp_times;
pub use compare::{Difference, Place, first_difference};
pub use flatten::write_root;
pub use form::check_output;
pub use import::{Imported, import};
pub use output::write_output;
pub use resolve::{Refresh, is_local, load, resolve, resolve_target};
pub use transfer::{Absent, absent_layers, fetch_for_outputs, fetch_layers, has_all_for};
pub use upload::{publish, send_layer, upload};

/// An image whose manifest and config are in the store; its layers may still be in a registry only.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest, byte for byte.
    pub manifest: Document<Manifest>,
    /// The config, byte for byte.
    pub config: Document<ImageConfig>,
    /// Where missing layers can be pulled from.
    pub origin: Option<Reference>,
    /// Whether a registry has this very manifest, and so its layers as they stand in it: plain ones stay plain.
    pub pulled: bool,
}

/// Why something could not be done with an image.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layer failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A document is not valid; it is named.
    #[error("{what}: {source}")]
    Document {
        /// Which.
        what: String,
        /// Why.
        source: DocumentError,
    },
    /// No image of this name, here or there.
    #[error("image {0} not found")]
    NotFound(String),
    /// It is not in the store, and no registry may be asked.
    #[error("image {0} is not in the store, and no registry may be asked for it")]
    NotHere(String),
    /// The image has no variant for what is wanted.
    #[error("{image} has no {wanted}; it has {has}")]
    Platform {
        /// The image.
        image: String,
        /// Wanted.
        wanted: String,
        /// What there is.
        has: String,
    },
    /// The parts of the image contradict each other.
    #[error("{image}: {reason}")]
    Invalid {
        /// The image.
        image: String,
        /// How.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// An uploaded image whose tag has not moved yet.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Where.
    pub to: Reference,
    /// What the tag will point at.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether `to` pointed at it already, so that [`publish`] has nothing to do.
    pub current: bool,
}
