//! What the store takes on the disk, and what of it could go.

use std::fs;

use crate::{
    oci::DiffId,
    store::{
        GcMode, GcPolicy, Store, StoreError,
        check::{entries, named_digest},
        error::at,
        facts::Table,
    },
};

/// How many there are, and what they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images by name.
    pub images: u64,
    /// Cached results.
    pub cache_records: u64,
    /// Blobs: number and bytes.
    pub blobs: (u64, u64),
    /// Snapshots: number, and bytes as their layers' records have it.
    pub snapshots: (u64, u64),
    /// Listings: number and bytes.
    pub listings: (u64, u64),
    /// Bytes of the LMDB file.
    pub facts_bytes: u64,
    /// Bytes that a collection of everything but images would free.
    pub reclaimable_bytes: u64,
}

/// What came of keeping the store within a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptWithin {
    /// It was.
    Nothing,
    /// It is, after so many bytes went.
    Freed(u64),
    /// It is not: images need more, or somebody else was collecting.
    Above {
        /// Bytes that went.
        freed: u64,
        /// Bytes that are left.
        left: u64,
    },
}

impl Store {
    /// What the store holds, and what of it could go.
    ///
    /// # Errors
    ///
    /// When LMDB or a folder cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let facts = self.shared.facts();
        let data = self.root().join("facts/data.mdb");
        let all_but_images =
            GcPolicy { cache_age_max_s: Some(0), mode: GcMode::DryRun, ..GcPolicy::default() };
        Ok(Usage {
            images: facts.all(Table::Images)?.len() as u64,
            cache_records: facts.all(Table::Cache)?.len() as u64,
            blobs: count(&self.blobs_folder())?,
            snapshots: self.count_snapshots()?,
            listings: count(&self.root().join("listings"))?,
            facts_bytes: fs::metadata(&data).map_err(at(&data))?.len(),
            reclaimable_bytes: self.gc(all_but_images)?.bytes,
        })
    }

    fn count_snapshots(&self) -> Result<(u64, u64), StoreError> {
        let mut snapshots = (0, 0);
        for layer in
            entries(&self.root().join("snapshots"))?.iter().filter_map(|path| named_digest(path))
        {
            snapshots.0 += 1;
            snapshots.1 += self.layer(DiffId(layer))?.map_or(0, |layer| layer.content_bytes);
        }
        Ok(snapshots)
    }

    /// Keeps content below so many bytes, when it can be done without waiting for anybody: cached results go, those
    /// used longest ago first, until a tenth is free again. Content of images stays.
    ///
    /// # Errors
    ///
    /// When LMDB or the disk fails.
    pub fn keep_within(&self, bytes_max: u64) -> Result<KeptWithin, StoreError> {
        let content = || -> Result<u64, StoreError> {
            let (blobs, listings) =
                (count(&self.blobs_folder())?.1, count(&self.root().join("listings"))?.1);
            Ok(blobs + listings + self.count_snapshots()?.1)
        };
        if content()? <= bytes_max {
            return Ok(KeptWithin::Nothing);
        }
        let bytes_max_then = Some(bytes_max - bytes_max / 10);
        let mode = GcMode::CollectIfFree;
        let report =
            self.gc(GcPolicy { bytes_max: bytes_max_then, mode, ..GcPolicy::default() })?;
        let left = content()?;
        Ok(if left > bytes_max {
            KeptWithin::Above { freed: report.bytes, left }
        } else {
            KeptWithin::Freed(report.bytes)
        })
    }
}

fn count(folder: &std::path::Path) -> Result<(u64, u64), StoreError> {
    let sizes: Vec<u64> = entries(folder)?
        .iter()
        .filter_map(|path| path.symlink_metadata().ok())
        .map(|found| found.len())
        .collect();
    Ok((sizes.len() as u64, sizes.iter().sum()))
}
