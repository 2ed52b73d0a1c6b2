//! The root file system of a step's process: by overlay, or as a copy where overlay cannot be had.
//!
//! Every way ends in the same layer; what differs is where changes are written, and what can be kept of them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    BuildError,
    process::{io_error, make_folder},
    wholes::{self, Whole, Wholes},
};
use crate::{
    image,
    layer::{Ownership, UpperForm},
    oci::{ChainId, DiffId},
    sandbox::{self, Ability, Privilege, RootFs, Snapshotter},
    snapshot,
    store::Store,
};

/// A root file system, and what becomes of it afterwards.
pub(super) struct Prepared {
    pub(super) rootfs: RootFs,
    /// What `rootfs.upper` holds when the process has ended.
    pub(super) form: UpperForm,
    /// Whether it can become the snapshot of its layer.
    pub(super) afterwards: Afterwards,
    /// Removed at the end.
    _elsewhere: Option<Elsewhere>,
    /// One of the lower directories, unless another step stands on it too.
    _whole: Option<Arc<Whole>>,
}

/// What becomes of the directory with the changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// It is the snapshot of the new layer.
    Snapshot,
    /// It goes; the layer's tar has everything.
    Nothing,
}

/// A folder outside of the store; removed when dropped.
struct Elsewhere(PathBuf);

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Makes what the process is to run on; `staging` is on the store's file system.
pub(super) fn prepare(
    (store, ability, wholes): (&Store, &Ability, &Wholes),
    below: &[DiffId],
    staging: &Path,
) -> Result<Prepared, BuildError> {
    let snapshotter = ability.snapshotter;
    let (folder, elsewhere) = match &ability.scratch {
        Some(scratch) if snapshotter == Snapshotter::OverlayElsewhere => {
            let made = sandbox::own_folder(scratch).map_err(|source| io_error(scratch, source))?;
            let made = Elsewhere(made);
            (made.0.clone(), Some(made))
        }
        _ => (staging.to_owned(), None),
    };
    let upper = make_folder(&folder, "upper")?;
    let work = make_folder(&folder, "work")?;
    // One directory with nothing gone and nothing hidden needs no marks.
    let depth = if ability.keeps_marks { wholes::depth(below) } else { below.len() };
    let (lowest, above) = below.split_at(depth);
    let (lowers, whole) = match snapshotter {
        Snapshotter::Copy => {
            copy_root((store, ability), below, &upper)?;
            (Vec::new(), None)
        }
        Snapshotter::Overlay
        | Snapshotter::OverlayMount
        | Snapshotter::OverlayElsewhere
        | Snapshotter::FuseOverlay => {
            let mut lowers = snapshot::lowers(store, above, super::marks(ability))?;
            let fill = |into: &Path| copy_root((store, ability), lowest, into);
            let whole = ChainId::of(lowest).map(|chain| wholes.get(store, chain, fill));
            let whole = whole.transpose()?;
            lowers.extend(whole.as_ref().map(|whole| whole.path()));
            (lowers, whole)
        }
    };
    let keeps = [Snapshotter::Overlay, Snapshotter::OverlayMount].contains(&snapshotter);
    Ok(Prepared {
        rootfs: RootFs { kind: snapshotter.root(), lowers, upper, work },
        form: match snapshotter {
            Snapshotter::Copy => UpperForm::Whole,
            Snapshotter::Overlay
            | Snapshotter::OverlayMount
            | Snapshotter::OverlayElsewhere
            | Snapshotter::FuseOverlay => UpperForm::Changes,
        },
        afterwards: if keeps { Afterwards::Snapshot } else { Afterwards::Nothing },
        _elsewhere: elsewhere,
        _whole: whole,
    })
}

/// Whether owners can be set and read, or are only recorded.
pub(super) fn ownership(ability: &Ability) -> Ownership {
    match ability.privilege {
        Privilege::Root | Privilege::Mapped => Ownership::Exact,
        Privilege::SingleId | Privilege::None => Ownership::Own,
    }
}

fn copy_root(
    (store, ability): (&Store, &Ability),
    below: &[DiffId],
    into: &Path,
) -> Result<(), BuildError> {
    let directory = File::open(into).map_err(|source| io_error(into, source))?;
    image::write_root(store, below, &directory, ownership(ability))?;
    Ok(())
}
