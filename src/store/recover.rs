//! Images out of `index.json`, for a store whose facts are gone: names survive the loss of LMDB's file.
//!
//! What else was known (cached results, layers, notes) is made again as it is needed.

use std::{fs, path::Path};

use crate::{
    oci::{Descriptor, Document, ImageConfig, Index, Manifest, Platform},
    store::{
        ImageRecord, Store, StoreError,
        facts::Table,
        layers::now_s,
        names::{REF_NAME, image_key},
        queue::Rows,
        sums::json,
    },
};

/// The bytes of `index.json` when the facts they were written from are gone. To be asked for before the
/// facts are opened: whoever finds them empty later writes the list again.
pub(super) fn orphaned_index(root: &Path) -> Option<Vec<u8>> {
    let facts_bytes = fs::metadata(root.join("facts/data.mdb")).map_or(0, |found| found.len());
    if facts_bytes > 0 {
        return None;
    }
    fs::read(root.join("index.json")).ok()
}

impl Store {
    /// Makes the records of the images that `index.json` listed and whose documents are there, all at once.
    /// Only those whose names are wanted, and that have no record.
    pub(super) fn recover_images(
        &self,
        listed: &[u8],
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        let Ok(index) = Document::<Index>::parse(listed.to_vec()) else { return Ok(()) };
        let mut rows = Rows::default();
        for record in
            index.value.manifests.into_iter().filter_map(|listed| self.recover_image(listed))
        {
            let key = image_key(&record.key());
            if !is_wanted(&record.key()) || self.shared.facts().get(Table::Images, &key)?.is_some()
            {
                continue;
            }
            rows.put(Table::Images, &key, json(&key, &record));
        }
        self.flush_with(rows)
    }

    /// A record like the one that was lost, but for its time; its size is that of the blobs.
    fn recover_image(&self, mut target: Descriptor) -> Option<ImageRecord> {
        let reference = target.annotations.remove(REF_NAME);
        target.platform = None;
        let mut found: Vec<(Platform, Manifest)> = self
            .children_of(&target)?
            .iter()
            .filter_map(|child| self.platform_and_manifest(child))
            .collect();
        let host = Platform::host();
        found.sort_by_key(|(platform, _)| !platform.satisfies(&host));
        let (_, manifest) = found.first()?;
        let config =
            Document::<ImageConfig>::parse(self.read_blob(manifest.config.digest).ok()?).ok()?;
        Some(ImageRecord {
            reference,
            target,
            config: manifest.config.digest,
            stored_at: now_s(),
            created: config.value.created,
            size: manifest.layers.iter().map(|layer| layer.size).sum(),
            platforms: found.into_iter().map(|(platform, _)| platform).collect(),
            pulled: false,
        })
    }

    /// The manifests of an index; a manifest is its own.
    fn children_of(&self, target: &Descriptor) -> Option<Vec<Descriptor>> {
        if !target.media_type.is_index() {
            return Some(vec![target.clone()]);
        }
        Some(Document::<Index>::parse(self.read_blob(target.digest).ok()?).ok()?.value.manifests)
    }

    fn platform_and_manifest(&self, child: &Descriptor) -> Option<(Platform, Manifest)> {
        let manifest = Document::<Manifest>::parse(self.read_blob(child.digest).ok()?).ok()?.value;
        let config = Document::<ImageConfig>::parse(self.read_blob(manifest.config.digest).ok()?)
            .ok()?
            .value;
        let platform = Platform {
            architecture: config.architecture,
            os: config.os,
            os_version: config.os_version,
            variant: config.variant,
        };
        Some((platform, manifest))
    }
}
