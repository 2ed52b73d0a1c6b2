//! `RUN --mount=type=cache`: which directory, taken as its sharing says, and filled when it is new.

use std::{collections::BTreeMap, fs, path::Path, sync::atomic::Ordering, time::Duration};

use super::{
    BuildError,
    mounts::{key_of_selection, materialize, own, select},
    process::{Task, io_error},
};
use crate::{
    event::Event,
    graph::{MountKind, MountOp, Sharing},
    plan::CacheUse,
    store::{CacheAnswer, CacheDir, CacheIdentity, CacheSharing, Freshness},
};

/// How often a cache that others use is asked for again.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The caches of one process by what they are for, held until they are dropped.
pub(super) type Caches = BTreeMap<CacheIdentity, CacheDir>;

/// Takes every cache that the mounts of a process name. In one order, so that two processes that want the
/// same ones alone cannot wait for one another.
pub(super) fn take(task: &Task<'_>, staging: &Path) -> Result<Caches, BuildError> {
    let mut wanted = BTreeMap::new();
    for mount in &task.run.mounts {
        let MountKind::Cache { sharing, .. } = &mount.kind else { continue };
        let identity = identity(task, mount)?;
        wanted.insert(identity, (mount, sharing_of(*sharing)));
    }
    let mut caches = Caches::new();
    for (index, (identity, (mount, sharing))) in wanted.into_iter().enumerate() {
        let folder = staging.join(format!("cache{index}"));
        let cache = wait_for(task, &identity, sharing, |cache| fill(task, mount, &folder, cache))?;
        caches.insert(identity, cache);
    }
    Ok(caches)
}

/// The one that a mount shows.
pub(super) fn of<'c>(
    task: &Task<'_>,
    mount: &MountOp,
    caches: &'c Caches,
) -> Result<&'c CacheDir, BuildError> {
    Ok(&caches[&identity(task, mount)?])
}

/// What of the mount's source is below the cache: its content is looked for there, not at the seed's.
pub(super) fn path_inside(kind: &MountKind) -> Option<String> {
    let MountKind::Cache { from: None, source, .. } = kind else { return None };
    (source != "/").then(|| source.trim_start_matches('/').to_owned())
}

fn sharing_of(sharing: Sharing) -> CacheSharing {
    match sharing {
        Sharing::Shared => CacheSharing::Shared,
        Sharing::Private => CacheSharing::Private,
        Sharing::Locked => CacheSharing::Locked,
    }
}

/// Different owners, modes and seeds are different caches, as in BuildKit; with a source below the cache
/// they count for nothing.
fn identity(task: &Task<'_>, mount: &MountOp) -> Result<CacheIdentity, BuildError> {
    let MountKind::Cache { id, namespace, from, source, mode, uid, gid, .. } = &mount.kind else {
        unreachable!("called for cache mounts only");
    };
    let (mode, uid, gid) = match source == "/" && from.is_none() {
        true => (*mode, *uid, *gid),
        false => (MountKind::CACHE_MODE, 0, 0),
    };
    let seed = from.map(|from| key_of_selection(task, from, source)).transpose()?;
    let (id, namespace) = (id.clone(), namespace.clone());
    Ok(CacheIdentity { id, namespace, mode, uid, gid, seed })
}

fn wait_for(
    task: &Task<'_>,
    identity: &CacheIdentity,
    sharing: CacheSharing,
    fill: impl Fn(&CacheDir) -> Result<(), BuildError>,
) -> Result<CacheDir, BuildError> {
    let freshness = freshness(task, identity);
    let mut waiter = task.workshop.store.waiter();
    loop {
        match task.workshop.store.take_cache_dir(identity, sharing, freshness)? {
            CacheAnswer::Ready(cache) => return Ok(cache),
            CacheAnswer::New(cache) => {
                fill(&cache)?;
                if freshness == Freshness::Fresh {
                    task.workshop.renewed().insert(identity.clone());
                }
                return Ok(cache);
            }
            CacheAnswer::Busy(_) if task.workshop.cancel.load(Ordering::Relaxed) => {
                return Err(BuildError::Cancelled);
            }
            CacheAnswer::Busy(holder) => {
                let what = Path::new(&identity.id);
                if let Some(holder) = waiter.look(what, || holder)? {
                    let text =
                        format!("waiting for {holder}, which uses the cache {}", identity.id);
                    let image = Some(task.request.name.clone());
                    (task.workshop.emit)(Event::Warning { image, text });
                }
                std::thread::sleep(ASK_EVERY);
            }
        }
    }
}

/// Without earlier results, a cache begins empty too, once in a run: what the run puts there it may find again.
fn freshness(task: &Task<'_>, identity: &CacheIdentity) -> Freshness {
    let renewed = task.workshop.renewed().contains(identity);
    match task.request.cache {
        CacheUse::Ignore if !renewed => Freshness::Fresh,
        CacheUse::Ignore | CacheUse::Use | CacheUse::Discard => Freshness::Kept,
    }
}

fn fill(
    task: &Task<'_>,
    mount: &MountOp,
    folder: &Path,
    cache: &CacheDir,
) -> Result<(), BuildError> {
    let MountKind::Cache { from, source, mode, uid, gid, .. } = &mount.kind else {
        unreachable!("called for cache mounts only");
    };
    let fresh = match from {
        Some(from) => {
            materialize(task, *from, source, folder)?;
            select(folder)
        }
        None => {
            fs::create_dir(folder).map_err(|source| io_error(folder, source))?;
            let root = source == "/";
            own(
                task,
                folder,
                if root { (*mode, *uid, *gid) } else { (MountKind::CACHE_MODE, 0, 0) },
            )?;
            folder.to_owned()
        }
    };
    Ok(task.workshop.store.fill_cache_dir(cache, &fresh)?)
}
