//! `df` and `prune`: what the store takes, and giving it back.

use std::process::ExitCode;

use idpbuilder::{
    report::{Align, Table, bytes},
    store::{GcMode, GcPolicy},
};

use super::{failure::CliError, setup};

/// Seconds of a day.
const DAY_S: u64 = 86_400;

#[derive(clap::Args)]
pub(super) struct DfArgs {}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder prune                  (what no image and no cached step needs)\n",
    "  idpbuilder prune --cache-days 7   (cached steps older than a week, too)"
))]
pub(super) struct PruneArgs {
    /// Forgets cached steps that are older than so many days; 0 forgets all.
    #[arg(long, value_name = "DAYS")]
    cache_days: Option<u64>,
    /// Says what would be removed, and removes nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn df(_args: &DfArgs) -> Result<ExitCode, CliError> {
    let usage = setup::store()?.usage()?;
    let headings = [("WHAT", Align::Left), ("COUNT", Align::Right), ("SIZE", Align::Right)];
    let mut table = Table::new(&headings);
    let mut add = |what: &str, count: String, size: u64| {
        table.add([what.to_owned(), count, bytes(size)]);
    };
    add("blobs", usage.blobs.0.to_string(), usage.blobs.1);
    add("snapshots", usage.snapshots.0.to_string(), usage.snapshots.1);
    add("listings", usage.listings.0.to_string(), usage.listings.1);
    add("facts", String::new(), usage.facts_bytes);
    add("of it, needed by no image", String::new(), usage.reclaimable_bytes);
    setup::print(&format!(
        "{table}\n{} images, {} cached steps\n",
        usage.images, usage.cache_records
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn prune(args: &PruneArgs) -> Result<ExitCode, CliError> {
    let policy = GcPolicy {
        cache_age_max_s: args.cache_days.map(|days| days.saturating_mul(DAY_S)),
        cache_bytes_max: None,
        mode: if args.dry_run { GcMode::DryRun } else { GcMode::Collect },
    };
    let report = setup::store()?.gc(policy)?;
    let verb = if args.dry_run { "would remove" } else { "removed" };
    setup::print(&format!(
        "{verb} {} blobs, {} snapshots, {} cached steps: {}\n",
        report.blobs,
        report.snapshots,
        report.cache_records,
        bytes(report.bytes)
    ));
    Ok(ExitCode::SUCCESS)
}
