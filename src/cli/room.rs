//! Failures of a disk that is full or cannot be written to: what the command wrote goes, and the way out is said.

use idpbuilder::{
    report::bytes,
    store::{GcMode, GcPolicy, Store, room},
};

use super::{failure::message_text, setup};

/// The way out where nothing can be written.
pub(super) const READ_ONLY: &str = "mount the file system of the store for writing, or put the store on another: IDPBUILDER_HOME=FOLDER";

/// A failure for want of room.
pub(super) fn full_text(prefix: &str, error: &dyn std::error::Error) -> String {
    message_text(&format!("{prefix}no space left: {error}"), &[])
}

/// Frees what the command that failed wrote, and nothing needs; how much room there is then, and what makes more.
pub(super) fn made() -> Option<String> {
    let store = setup::store().ok()?;
    // What cannot be removed now is removed by the next collection.
    drop(store.gc(GcPolicy::default()));
    let room = room(store.root())?;
    let files = match room.files {
        0 => String::new(),
        files => format!(", {} of {files} files", room.files_free),
    };
    let mut text = format!(
        "  room         {} of {} are free on the disk of the store{files}\n",
        bytes(room.bytes_free),
        bytes(room.bytes),
    );
    text.push_str(&format!("  help         {}\n", way_out(&store)));
    Some(text)
}

fn way_out(store: &Store) -> String {
    let all = GcPolicy { cache_age_max_s: Some(0), mode: GcMode::DryRun, ..GcPolicy::default() };
    let reclaimable = store.gc(all).map_or(0, |report| report.bytes);
    if reclaimable == 0 {
        return "`idpbuilder prune` finds nothing more: remove images (`idpbuilder rmi`) or other files, or put the \
                store on a larger disk (`IDPBUILDER_HOME=FOLDER`)"
            .to_owned();
    }
    format!(
        "`idpbuilder prune --cache-days 0` frees {}: cached steps that no image needs",
        bytes(reclaimable)
    )
}
