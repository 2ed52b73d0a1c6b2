//! Images by name, and `index.json`, the list of them that other tools read.
//!
//! LMDB is the truth; `index.json` is written again from it, whole, under a lock.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
};

use crate::{
    oci::{Descriptor, Digest, Document, Index, MediaType, Reference},
    store::{
        ImageRecord, Store, StoreError,
        error::at,
        facts::Table,
        layers::RENEWAL_S,
        pins::pin_key,
        queue::{Rows, sync_folder},
        sums::{json, parse},
    },
};

/// Annotation by which `skopeo inspect oci:ROOT:NAME` and others select an image.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Fewest hex digits that are taken for an image ID.
const ID_DIGITS_MIN: usize = 2;

impl Store {
    /// Names an image durably (flushes first), replacing what had the name, and updates `index.json`.
    /// A record that differs in nothing but [`ImageRecord::stored_at`] is unchanged and costs a write a day.
    ///
    /// # Errors
    ///
    /// When a blob it needs is missing, or the disk refuses.
    pub fn put_image(&self, record: &ImageRecord) -> Result<(), StoreError> {
        self.put_images(std::slice::from_ref(record))
    }

    /// Names images as [`Store::put_image`] does, all in one step; without any, it is a [`Store::flush`].
    ///
    /// # Errors
    ///
    /// As [`Store::put_image`].
    pub fn put_images(&self, records: &[ImageRecord]) -> Result<(), StoreError> {
        if records.is_empty() {
            return self.flush();
        }
        // From the look at the documents to the names, nobody may take them away.
        let _lease = self.lease()?;
        let mut last = Rows::default();
        for record in records {
            for digest in [record.target.digest, record.config] {
                if self.blob_size(digest).is_none() {
                    return Err(StoreError::MissingBlob(digest));
                }
            }
            let known = self.image(&record.key())?;
            let is_young = |known: &ImageRecord| {
                known.stored_at.abs_diff(record.stored_at) < RENEWAL_S.unsigned_abs()
            };
            let known = known
                .filter(is_young)
                .map(|known| ImageRecord { stored_at: record.stored_at, ..known });
            if known.as_ref() != Some(record) {
                let key = image_key(&record.key());
                last.put(Table::Images, &key, json(&key, record));
            }
        }
        self.flush_with(last)?;
        self.write_index()
    }

    /// The image with this full reference.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn image(&self, reference: &str) -> Result<Option<ImageRecord>, StoreError> {
        let key = image_key(reference);
        let found = self.shared.facts().get(Table::Images, &key)?;
        found.map(|bytes| self.parse_image(&key, &bytes)).transpose()
    }

    pub(super) fn parse_image(&self, key: &[u8], bytes: &[u8]) -> Result<ImageRecord, StoreError> {
        image_record(key, bytes).ok_or_else(|| StoreError::Damaged {
            root: self.root().to_owned(),
            what: "the record of an image".to_owned(),
        })
    }

    /// All images, newest first.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let rows = self.shared.facts().all(Table::Images)?;
        let mut images: Vec<ImageRecord> = rows
            .iter()
            .map(|(key, bytes)| self.parse_image(key, bytes))
            .collect::<Result<_, _>>()?;
        images.sort_by(|a, b| b.stored_at.cmp(&a.stored_at).then_with(|| a.key().cmp(&b.key())));
        Ok(images)
    }

    /// Images that somebody means by `text`: a reference in full or in short form (`busybox`,
    /// `busybox:1.36`, `name@sha256:…`), or, when nothing has that name, the beginning of an image ID
    /// or manifest digest, with or without `sha256:`.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn find_images(&self, text: &str) -> Result<Vec<ImageRecord>, StoreError> {
        let images = self.images()?;
        let named: Vec<_> = images.iter().filter(|image| is_named(image, text)).cloned().collect();
        if !named.is_empty() {
            return Ok(named);
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_id = digits.len() >= ID_DIGITS_MIN
            && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let has_id = |image: &ImageRecord| {
            [image.config, image.target.digest].iter().any(|id| id.hex().starts_with(digits))
        };
        Ok(images.into_iter().filter(|image| is_id && has_id(image)).collect())
    }

    /// Gives the image called `from` the name `to` as well, replacing what had it.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoImage`], or as [`Store::put_image`].
    pub fn tag(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let image = self.image(from)?.ok_or_else(|| StoreError::NoImage(from.to_owned()))?;
        self.put_image(&ImageRecord { reference: Some(to.to_owned()), ..image })
    }

    /// Takes the name away (of an untagged image: the digest of its manifest); says whether there was
    /// one. Content goes with the next collection.
    ///
    /// # Errors
    ///
    /// When LMDB fails.
    pub fn remove_image(&self, reference: &str) -> Result<bool, StoreError> {
        if self.image(reference).is_ok_and(|image| image.is_none()) {
            return Ok(false);
        }
        let removed = self.shared.facts().write(|writer| {
            writer.delete(Table::Notes, &pin_key(reference))?;
            writer.delete(Table::Images, &image_key(reference))
        })?;
        self.write_index()?;
        Ok(removed)
    }

    /// Writes `index.json` from the images, when it says anything else.
    pub(super) fn write_index(&self) -> Result<(), StoreError> {
        let path = self.root().join("index.json");
        if self.index_is_current()? {
            return Ok(());
        }
        let lock_path = self.root().join("index.lock");
        let open =
            File::options().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let alone = open.map_err(at(&lock_path))?;
        self.lock_alone(&alone, &lock_path)?;
        // Read under the lock: whoever writes last writes the newest state.
        let raw = self.index()?.raw;
        let temporary = self.root().join("index.json.new");
        let created =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        let written = created.and_then(|mut file| {
            file.write_all(&raw)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        });
        written.map_err(at(&path))?;
        sync_folder(self.root())
    }

    /// Whether `index.json` lists the images that there are.
    pub(super) fn index_is_current(&self) -> Result<bool, StoreError> {
        let raw = self.index()?.raw;
        Ok(fs::read(self.root().join("index.json")).is_ok_and(|there| there == raw))
    }

    fn index(&self) -> Result<Document<Index>, StoreError> {
        Ok(index_of(self.images()?))
    }
}

/// What `index.json` says when there are these images.
pub(super) fn index_of(mut images: Vec<ImageRecord>) -> Document<Index> {
    images.sort_by_key(ImageRecord::key);
    Document::write(Index {
        schema_version: 2,
        media_type: Some(MediaType::new(MediaType::INDEX)),
        artifact_type: None,
        manifests: images.into_iter().map(listed).collect(),
        subject: None,
        annotations: crate::oci::Annotations::new(),
    })
}

/// The record of an image; one that stands under another name's key is none.
pub(super) fn image_record(key: &[u8], bytes: &[u8]) -> Option<ImageRecord> {
    parse::<ImageRecord>(key, bytes).filter(|record| image_key(&record.key())[..] == *key)
}

/// The descriptor that stands for an image in `index.json`.
fn listed(image: ImageRecord) -> Descriptor {
    let mut descriptor = image.target;
    if let Some(reference) = image.reference {
        descriptor.annotations.insert(REF_NAME.to_owned(), reference);
    }
    if let ([platform], true) = (&image.platforms[..], descriptor.media_type.is_manifest()) {
        descriptor.platform = Some(platform.clone());
    }
    descriptor
}

fn is_named(image: &ImageRecord, text: &str) -> bool {
    let Some(reference) = &image.reference else { return image.key() == text };
    if reference == text {
        return true;
    }
    let Ok(wanted) = text.parse::<Reference>() else { return false };
    match wanted.digest() {
        None => *reference == wanted.to_string(),
        Some(digest) => {
            let same_name =
                reference.parse::<Reference>().is_ok_and(|have| have.name() == wanted.name());
            same_name && image.target.digest == digest
        }
    }
}

/// The key of an image in LMDB, whose keys have at most 511 bytes.
pub(super) fn image_key(reference: &str) -> [u8; 32] {
    *Digest::of(reference.as_bytes()).as_bytes()
}
