//! Files that `ADD` gets from URLs: downloaded into the store, or known to be there unchanged.

use serde::{Deserialize, Serialize};

use super::{
    BuildError, Workshop,
    files::{Download, Root},
};
use crate::{
    graph::{FileAction, FilesOp, OpGraph, OpId, SourceRoot},
    oci::Digest,
    registry::{DownloadError, Downloaded, Validators},
    store::Store,
    tree::Timestamp,
};

/// Namespace of the notes about downloads, by URL.
const NAMESPACE: &str = "download";

/// A files op whose URLs are files of the store.
pub(super) struct Local {
    /// The op with an id of its own in place of each URL.
    pub(super) op: FilesOp,
    files: Vec<(OpId, Download)>,
}

/// What is remembered of a URL; the spelled-out digest keeps the blob.
#[derive(Serialize, Deserialize)]
struct Known {
    content: Digest,
    size: u64,
    validators: Validators,
}

impl Local {
    /// Downloads what the op adds from URLs and the store has not got.
    pub(super) fn get(
        workshop: &Workshop,
        op: &FilesOp,
        graph: &OpGraph,
    ) -> Result<Self, BuildError> {
        let mut local = Self { op: op.clone(), files: Vec::new() };
        for action in &mut local.op.actions {
            let FileAction::Copy { sources, .. } = action else { continue };
            for source in sources {
                let SourceRoot::Url { url, checksum } = &source.root else { continue };
                let known = get(workshop, url, checksum.as_deref())?;
                let id = graph.id_beyond(local.files.len());
                local.files.push((id, file(&source.path, &known)));
                source.root = SourceRoot::Op(id);
            }
        }
        Ok(local)
    }

    /// The download that stands behind an id of [`Local::op`].
    pub(super) fn root(&self, id: OpId) -> Option<Root<'_>> {
        let found = self.files.iter().find(|(known, _)| *known == id);
        found.map(|(_, download)| Root::Download(download))
    }
}

fn file(name: &str, known: &Known) -> Download {
    // A name comes from a URL: `%2F..` must not become a way out of the destination.
    let name = if name == ".." { "__unnamed__" } else { name };
    let seconds = known.validators.modified().unwrap_or(0);
    Download {
        name: name.to_owned(),
        content: known.content,
        size: known.size,
        modified: Timestamp { seconds, nanos: 0 },
    }
}

fn get(workshop: &Workshop, url: &str, checksum: Option<&str>) -> Result<Known, BuildError> {
    let store = &workshop.store;
    let known = known(store, url)?;
    // What a checksum names cannot have changed.
    let named = |known: &Known| checksum.is_some_and(|sum| sum == known.content.to_string());
    let known = match known {
        Some(known) if named(&known) => return Ok(known),
        known => known,
    };
    let asked = known.as_ref().map(|known| known.validators.clone()).unwrap_or_default();
    let mut out = store.blob_writer()?;
    let outcome = workshop.wait(workshop.client.download(url, &asked, &mut out))?;
    let found = match (outcome, known) {
        (Downloaded::Unchanged, Some(known)) => known,
        (Downloaded::Unchanged, None) => {
            let url = url.to_owned();
            let reason = "HTTP 304 in answer to a request without conditions".to_owned();
            return Err(DownloadError::Refused { url, reason }.into());
        }
        (Downloaded::Fresh(validators), _) => {
            let (content, size) = out.commit(None)?;
            Known { content, size, validators }
        }
    };
    if let Some(expected) = checksum.filter(|expected| *expected != found.content.to_string()) {
        let (expected, found) = (expected.to_owned(), found.content);
        return Err(BuildError::Checksum { found, expected });
    }
    let note = serde_json::to_vec(&found).expect("texts and numbers");
    store.put_note(NAMESPACE, url, &note)?;
    Ok(found)
}

/// What the store has of a URL: nothing when the content is gone.
fn known(store: &Store, url: &str) -> Result<Option<Known>, BuildError> {
    let note = store.note(NAMESPACE, url)?;
    let known = note.and_then(|note| serde_json::from_slice::<Known>(&note).ok());
    Ok(known.filter(|known| store.blob_size(known.content) == Some(known.size)))
}
