//! `df` and `prune`: what the store takes, and giving it back.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use idpbuilder::{
    build::{LogRules, Sweep, count_logs, sweep_logs},
    limits,
    report::{Align, Table, bytes},
    sandbox,
    store::{GcMode, GcPolicy, KeptWithin},
};

use super::{
    failure::{CONFIGURATION, CliError, ENVIRONMENT},
    setup::{self, STORE_MAX_SIZE},
    store::counted,
};

/// Seconds of a day.
const DAY_S: u64 = 86_400;
/// Days after which logs of RUN steps go, unless `--cache-days` says another number.
const LOG_DAYS: u64 = 1;

#[derive(clap::Args)]
pub(super) struct DfArgs {}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Pinned images stay (`idpbuilder store pin`), and so does what a running build needs. With\n",
    "IDPBUILDER_STORE_MAX_SIZE=50g, builds keep the store below that by themselves.\n\n",
    "Examples:\n",
    "  idpbuilder prune                  (what no image and no cached step needs, and logs older than a day)\n",
    "  idpbuilder prune --cache-days 7   (cached steps older than a week, too)\n",
    "  idpbuilder prune --max-size 20g   (cached steps, until all of it takes 20 GiB)"
))]
pub(super) struct PruneArgs {
    /// Forgets cached steps that were not used for so many days, and logs as old; 0 forgets all.
    #[arg(long, value_name = "DAYS")]
    cache_days: Option<u64>,
    /// Forgets cached steps, those used longest ago first, until images and cache take no more than this.
    #[arg(long, value_name = "SIZE")]
    max_size: Option<String>,
    /// Takes names away from images that were not built, pulled or loaded for so many days.
    #[arg(long, value_name = "DAYS")]
    image_days: Option<u64>,
    /// Says what would be removed, and removes nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn df(_args: &DfArgs) -> Result<ExitCode, CliError> {
    let (usage, logs) = (setup::store()?.usage()?, logs()?);
    let logs = count_logs(&logs).map_err(|error| unswept(&logs, &error))?;
    let headings = [("WHAT", Align::Left), ("COUNT", Align::Right), ("SIZE", Align::Right)];
    let mut table = Table::new(&headings);
    let mut add = |what: &str, count: String, size: u64| {
        table.add([what.to_owned(), count, bytes(size)]);
    };
    add("blobs", usage.blobs.0.to_string(), usage.blobs.1);
    add("snapshots", usage.snapshots.0.to_string(), usage.snapshots.1);
    add("listings", usage.listings.0.to_string(), usage.listings.1);
    add("facts", String::new(), usage.facts_bytes);
    add("logs", logs.files.to_string(), logs.bytes);
    add("of it, needed by no image", String::new(), usage.reclaimable_bytes);
    setup::print(&format!(
        "{table}\n{}, {}\n",
        counted(usage.images, "image"),
        counted(usage.cache_records, "cached step")
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn prune(args: &PruneArgs) -> Result<ExitCode, CliError> {
    let seconds = |days: u64| days.saturating_mul(DAY_S);
    let size = args.max_size.as_deref().map(|size| {
        limits::bytes(size)
            .map_err(|reason| CliError::new(CONFIGURATION, format!("--max-size {size}: {reason}")))
    });
    let policy = GcPolicy {
        cache_age_max_s: args.cache_days.map(seconds),
        cache_bytes_max: None,
        bytes_max: size.transpose()?,
        image_age_max_s: args.image_days.map(seconds),
        mode: if args.dry_run { GcMode::DryRun } else { GcMode::Collect },
    };
    let store = setup::store()?;
    if !args.dry_run {
        sandbox::sweep(store.root());
    }
    let report = store.gc(policy)?;
    let days = args.cache_days.unwrap_or(LOG_DAYS);
    let rules = LogRules { age_max: Duration::from_secs(seconds(days)), ..LogRules::default() };
    let (folder, sweep) = (logs()?, if args.dry_run { Sweep::Count } else { Sweep::Remove });
    let logs = sweep_logs(&folder, rules, sweep).map_err(|error| unswept(&folder, &error))?;
    let (verb, untagged) = match args.dry_run {
        true => ("would remove", "Would untag"),
        false => ("removed", "Untagged"),
    };
    for name in &report.untagged {
        setup::print(&format!("{untagged}: {name}\n"));
    }
    setup::print(&format!(
        "{verb} {} blobs, {} snapshots, {} cached steps, {} logs: {}\n",
        report.blobs,
        report.snapshots,
        report.cache_records,
        logs.files,
        bytes(report.bytes + logs.bytes)
    ));
    Ok(ExitCode::SUCCESS)
}

/// The folder with the output of RUN steps.
fn logs() -> Result<PathBuf, CliError> {
    Ok(setup::home()?.join(setup::LOGS))
}

fn unswept(folder: &Path, error: &io::Error) -> CliError {
    CliError::new(ENVIRONMENT, format!("{}: {error}", folder.display()))
}

/// After a build: keeps the store within its cap, when there is one, and never waits for it.
pub(super) fn keep_within_cap() {
    let Ok(Some(most)) = setup::store_cap() else { return };
    // What was asked for is done; that this is not, is no failure of it.
    match setup::store().map(|store| store.keep_within(most)) {
        Ok(Ok(KeptWithin::Above { left, .. })) => setup::tell(&format!(
            "the store takes {}, more than {STORE_MAX_SIZE} says: images need it; `idpbuilder prune --image-days DAYS` takes old ones",
            bytes(left)
        )),
        Ok(Ok(KeptWithin::Nothing | KeptWithin::Freed(_))) => {}
        Ok(Err(error)) => setup::tell(&format!("keeping the store within its size: {error}")),
        Err(error) => error.print(),
    }
}
