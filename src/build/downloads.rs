//! What `ADD` gets from other machines: brought into the store, or known to be there unchanged.

use serde::{Deserialize, Serialize};

use super::{
    BuildError, Workshop,
    fetch::{Errand, Fetched},
    files::{Download, Root},
};
use crate::{
    graph::{FileAction, FilesOp, OpGraph, OpId, SourceRoot},
    oci::Digest,
    registry::{DownloadError, DownloadTerms, Downloaded, Reach, Validators},
    remote::{GitTimes, Remote, without_login},
    store::Store,
    tree::Timestamp,
};

/// Namespace of the notes about downloads, by URL.
const NAMESPACE: &str = "download";

/// A files op whose sources are all in the store.
pub(super) struct Local {
    /// The op with an id of its own in place of each URL and each repository.
    pub(super) op: FilesOp,
    /// The latest commit whose time its files are to have.
    pub(super) commit: Option<Timestamp>,
    sources: Vec<(OpId, Source)>,
}

/// What stands behind an id.
enum Source {
    File(Download),
    Repository(Fetched),
}

/// What is remembered of a URL; the spelled-out digest keeps the blob.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) content: Digest,
    pub(super) size: u64,
    pub(super) validators: Validators,
}

/// What is asked for, and by whom: what one may have is not for another.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    url: String,
    reach: Reach,
    authorization: Option<String>,
}

impl Local {
    /// Gets what the op adds from other machines and the store has not got.
    pub(super) fn get(
        errand: Errand<'_>,
        op: &FilesOp,
        graph: &OpGraph,
    ) -> Result<Self, BuildError> {
        let mut local = Self { op: op.clone(), commit: None, sources: Vec::new() };
        for action in &mut local.op.actions {
            let FileAction::Copy { sources, .. } = action else { continue };
            for source in sources {
                let got = match &source.root {
                    SourceRoot::Url { url, checksum } => {
                        let known = get(errand, url, checksum.as_deref())?;
                        Source::File(file(&source.path, &known))
                    }
                    SourceRoot::Git(git) => {
                        let fetched = errand.remote(&Remote::Git(git.clone()))?;
                        let dated = fetched.time.filter(|_| git.times == GitTimes::Commit);
                        let dated = dated.map(|seconds| Timestamp { seconds, nanos: 0 });
                        local.commit = local.commit.max(dated);
                        Source::Repository(fetched)
                    }
                    SourceRoot::Op(_) | SourceRoot::Inline(_) => continue,
                };
                let id = graph.id_beyond(local.sources.len());
                local.sources.push((id, got));
                source.root = SourceRoot::Op(id);
            }
        }
        Ok(local)
    }

    /// What stands behind an id of [`Local::op`].
    pub(super) fn root(&self, id: OpId) -> Option<Root<'_>> {
        let (_, found) = self.sources.iter().find(|(known, _)| *known == id)?;
        Some(match found {
            Source::File(download) => Root::Download(download),
            Source::Repository(fetched) => Root::Layers(std::slice::from_ref(&fetched.layer)),
        })
    }
}

fn file(name: &str, known: &Known) -> Download {
    let seconds = known.validators.modified().unwrap_or(0);
    Download {
        name: name.to_owned(),
        content: known.content,
        size: known.size,
        modified: Timestamp { seconds, nanos: 0 },
    }
}

/// What is behind a URL, asked for once in a run, and only whether it has changed.
pub(super) fn get(
    errand: Errand<'_>,
    url: &str,
    checksum: Option<&str>,
) -> Result<Known, BuildError> {
    let workshop = errand.workshop;
    let store = &workshop.store;
    // What is kept must not hold the password of a URL.
    let name = without_login(url);
    let locked = match checksum {
        Some(_) => None,
        None => workshop.locked_url(&name)?,
    };
    let known = known(store, &name)?;
    // What a checksum names cannot have changed, nor has what the lock names.
    let named = |known: &Known| {
        let by_sum = checksum.is_some_and(|sum| sum == known.content.to_string());
        by_sum || (locked == Some(known.content) && !workshop.must_look_again())
    };
    let is_final = |known: &Known| named(known) || workshop.client.is_offline();
    let found = match known {
        Some(known) if is_final(&known) => known,
        known => download(errand, url, known)?,
    };
    if let Some(locked) = locked.filter(|locked| *locked != found.content) {
        let (name, locked, found) = (name, locked.to_string(), found.content.to_string());
        return Err(BuildError::Moved { name, locked, found });
    }
    if let Some(expected) = checksum.filter(|expected| *expected != found.content.to_string()) {
        let (expected, found) = (expected.to_owned(), found.content);
        return Err(BuildError::Checksum { found, expected });
    }
    let note = serde_json::to_vec(&found).expect("texts and numbers");
    store.put_note(NAMESPACE, &name, &note)?;
    Ok(found)
}

fn download(errand: Errand<'_>, url: &str, known: Option<Known>) -> Result<Known, BuildError> {
    let Errand { workshop, reach, .. } = errand;
    let authorization = errand.http_authorization(url)?;
    let asked = Asked { url: url.to_owned(), reach, authorization };
    workshop.fetches.downloads.get(&asked, &workshop.cancel, || request(workshop, &asked, known))
}

fn request(workshop: &Workshop, asked: &Asked, known: Option<Known>) -> Result<Known, BuildError> {
    let Asked { url, reach, authorization } = asked;
    let validators = known.as_ref().map(|known| known.validators.clone()).unwrap_or_default();
    let authorization = authorization.as_deref();
    let terms = DownloadTerms { known: &validators, reach: *reach, authorization };
    let mut out = workshop.store.blob_writer()?;
    let outcome = workshop.wait(workshop.client.download(url, terms, &mut out))?;
    match (outcome, known) {
        (Downloaded::Unchanged, Some(known)) => Ok(known),
        (Downloaded::Unchanged, None) => {
            let url = without_login(url);
            let reason = "HTTP 304 in answer to a request without conditions".to_owned();
            Err(DownloadError::Refused { url, reason }.into())
        }
        (Downloaded::Fresh(validators), _) => {
            let (content, size) = out.commit(None)?;
            Ok(Known { content, size, validators })
        }
    }
}

/// What the store has of a URL: nothing when the content is gone.
fn known(store: &Store, url: &str) -> Result<Option<Known>, BuildError> {
    let note = store.note(NAMESPACE, url)?;
    let known = note.and_then(|note| serde_json::from_slice::<Known>(&note).ok());
    Ok(known.filter(|known| store.blob_size(known.content) == Some(known.size)))
}
