//! Where the files and images of a build come from, resolved.

use std::{path::PathBuf, sync::Arc};

use crate::{
    image::Image,
    oci::{Platform, Reference},
    plan::SecretSource,
    remote::Remote,
};

/// Where the files of a context are.
#[derive(Clone, Debug)]
pub enum ContextSource {
    /// In a folder.
    Folder(ContextFolder),
    /// In a tar archive, plain or compressed.
    Archive {
        /// As the user knows it.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// On another machine.
    Remote(Remote),
}

impl ContextSource {
    /// Text of the ignore file in force: only a folder has one.
    #[must_use]
    pub fn ignore(&self) -> Option<&str> {
        match self {
            Self::Folder(folder) => folder.ignore.as_deref(),
            Self::Archive { .. } | Self::Remote(_) => None,
        }
    }
}

/// A folder of local files and the text of its ignore file.
#[derive(Clone, Debug)]
pub struct ContextFolder {
    /// The folder.
    pub folder: PathBuf,
    /// Text of the ignore file in force.
    pub ignore: Option<String>,
}

/// What stands behind a named context.
#[derive(Clone, Debug)]
pub enum NamedSource {
    /// Files.
    Files(ContextSource),
    /// Nothing: an image without files.
    Scratch,
    /// An image that is in the store, for each platform that there is (another image of the plan,
    /// an OCI layout).
    Images(Vec<(Platform, Image)>),
    /// An image of a registry.
    Reference(Reference),
}

/// Reads a secret at the moment it is needed: the environment and files are the caller's to read.
/// `None` says that there is none (the variable is not set); the bytes are all that there are.
pub type ReadSecret = Arc<dyn Fn(&SecretSource) -> Result<Option<Vec<u8>>, String> + Send + Sync>;
