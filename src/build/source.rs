//! Where the files and images of a build come from, resolved.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use crate::{
    image::{self, Image, ImageError, Imported},
    oci::{Platform, Reference},
    plan::SecretSource,
    remote::Remote,
    store::Store,
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

/// An OCI layout, a folder or an archive. It is read into the store when an image of it is asked for, and not before: a
/// project may name more than a build uses.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    selector: Option<String>,
    images: OnceLock<Vec<(Platform, Image)>>,
}

impl Layout {
    /// The images at `path` that a selector (`:tag` or `@digest`) names; all of them without one.
    #[must_use]
    pub fn new(path: PathBuf, selector: Option<String>) -> Self {
        Self { path, selector, images: OnceLock::new() }
    }

    /// The images, in the store by now.
    ///
    /// # Errors
    ///
    /// When the layout cannot be read, or has no such image.
    pub(crate) fn images(&self, store: &Store) -> Result<&[(Platform, Image)], ImageError> {
        if let Some(known) = self.images.get() {
            return Ok(known);
        }
        let selector = self.selector.as_deref().unwrap_or_default();
        let wanted = selector.trim_start_matches([':', '@']);
        let mut images = Vec::new();
        for Imported { record, name } in image::import(store, &self.path)? {
            let ends_so = |name: &String| name == wanted || name.ends_with(&format!(":{wanted}"));
            let is_named = || name.as_ref().is_some_and(ends_so);
            if wanted.is_empty() || record.target.digest.to_string() == wanted || is_named() {
                for platform in &record.platforms {
                    images.push((platform.clone(), image::load(store, &record, platform)?));
                }
            }
        }
        if images.is_empty() {
            return Err(ImageError::NotFound(format!("{}{selector}", self.path.display())));
        }
        Ok(self.images.get_or_init(|| images))
    }
}

/// What stands behind a named context.
#[derive(Clone, Debug)]
pub enum NamedSource {
    /// Files.
    Files(ContextSource),
    /// Nothing: an image without files.
    Scratch,
    /// An image that is in the store, for each platform that there is (another image of the plan).
    Images(Vec<(Platform, Image)>),
    /// Images of an OCI layout.
    Layout(Arc<Layout>),
    /// An image of a registry.
    Reference(Reference),
}

/// Reads a secret at the moment it is needed: the environment and files are the caller's to read.
/// `None` says that there is none (the variable is not set); the bytes are all that there are.
pub type ReadSecret = Arc<dyn Fn(&SecretSource) -> Result<Option<Vec<u8>>, String> + Send + Sync>;
