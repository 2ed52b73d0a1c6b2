//! `store`: the folder as a whole: checked, repaired, saved and read again; and pins on what it keeps.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::Ordering,
};

use idpbuilder::{
    layer,
    report::{bytes, safe},
    snapshot,
    store::{
        BackupReport, CheckDepth, CheckReport, Damage, NamesTaken, Remedy, RepairReport,
        RestoreReport, Store, StoreError,
    },
};
use serde_json::{Value, json};

use super::{
    failure::{BUILD, CONFIGURATION, CliError, INTERRUPTED},
    images, setup,
};

/// Bytes read and written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// What is done with the store.
#[derive(clap::Subcommand)]
pub(super) enum StoreVerb {
    /// Looks for damage: all facts, existence and sizes of content; every byte with `--full`.
    Check(CheckArgs),
    /// Writes all images, pins and cached steps into one archive, checked on the way.
    Backup(BackupArgs),
    /// Reads such an archive into the store: all of it, or nothing.
    Restore(RestoreArgs),
    /// Keeps images until they are unpinned: `prune` leaves them, `rmi` refuses.
    Pin(PinArgs),
    /// Takes pins away.
    Unpin(PinArgs),
    /// Prints the folder.
    Path,
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "The directories of cache mounts are not in it (`idpbuilder cache export`). The store may be used meanwhile.\n\n",
    "Examples:\n",
    "  idpbuilder store backup store.tar\n",
    "  idpbuilder store backup - | zstd > store.tar.zst"
))]
pub(super) struct BackupArgs {
    /// File to write, or `-` for standard output.
    #[arg(value_name = "FILE")]
    to: PathBuf,
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "What is in the store stays; of cached steps, those that are here are kept. The archive may be compressed.\n\n",
    "Examples:\n",
    "  idpbuilder store restore store.tar\n",
    "  ssh other idpbuilder store backup - | idpbuilder store restore -"
))]
pub(super) struct RestoreArgs {
    /// File to read, or `-` for standard input.
    #[arg(value_name = "FILE")]
    from: PathBuf,
    /// Names that stand for other images here stand for the archive's then; without it, such an archive is refused.
    #[arg(long)]
    replace: bool,
}

#[derive(clap::Args)]
pub(super) struct PinArgs {
    /// Names or ids of images.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Exit codes: 0 sound, or repaired · 1 damage was found (with --repair: is left) · 8 it cannot be looked at\n\n",
    "Examples:\n",
    "  idpbuilder store check --full\n",
    "  idpbuilder store check --full --repair   (takes away what is damaged and what needs it)"
))]
pub(super) struct CheckArgs {
    /// Reads every byte of every blob, listing and snapshot, too.
    #[arg(long)]
    full: bool,
    /// Takes away what is damaged and what cannot be used without it, and says each.
    #[arg(long)]
    repair: bool,
    /// `text` or `json`.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: String,
}

pub(super) fn store(verb: &StoreVerb) -> Result<ExitCode, CliError> {
    match verb {
        StoreVerb::Check(args) => check(args),
        StoreVerb::Backup(args) => backup(args),
        StoreVerb::Restore(args) => restore(args),
        StoreVerb::Pin(args) => pin(args, "Pinned", Store::pin),
        StoreVerb::Unpin(args) => pin(args, "Unpinned", Store::unpin),
        StoreVerb::Path => {
            setup::print(&format!("{}\n", setup::store_root()?.display()));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn check(args: &CheckArgs) -> Result<ExitCode, CliError> {
    let is_json = match args.format.as_str() {
        "text" => false,
        "json" => true,
        other => {
            let message = format!("--format {other}: there are text and json");
            return Err(CliError::new(CONFIGURATION, message));
        }
    };
    let (root, patience) = (setup::store_root()?, setup::patience());
    let depth = if args.full { CheckDepth::Full(snapshot::compare) } else { CheckDepth::Quick };
    let report = match args.repair {
        true => Store::repair(&root, depth, &patience)?,
        false => {
            let now = Store::examine(&root, depth, &patience)?;
            let left = |damage: &Damage| (damage.clone(), Remedy::Left);
            let remedies = now.damages.iter().map(left).collect();
            RepairReport { now, remedies }
        }
    };
    setup::print(&if is_json { as_json(&report) } else { as_text(&report) });
    if report.now.is_sound() {
        return Ok(ExitCode::SUCCESS);
    }
    if !is_json {
        setup::tell(match args.repair {
            true => "what is left can only be pushed or pulled again",
            false => {
                "`idpbuilder store check --repair` takes away what is damaged and what needs it"
            }
        });
    }
    Ok(ExitCode::from(BUILD))
}

fn backup(args: &BackupArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let said = |report: &BackupReport| {
        let BackupReport { images, cache_records, blobs, bytes: size } = report;
        let what = [counted(*images, "image"), counted(*cache_records, "cached step")];
        format!("{}, {}, {}\n", what.join(", "), counted(*blobs, "blob"), bytes(*size))
    };
    if args.to.as_os_str() == "-" {
        if io::stdout().is_terminal() {
            let error = CliError::new(CONFIGURATION, "an archive is nothing for a terminal");
            return Err(error.with_help("name a file, or pipe it on"));
        }
        let out = io::BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
        setup::tell(&said(&store.backup(out, Path::new("standard output"))?));
        return Ok(ExitCode::SUCCESS);
    }
    let failed = |error| CliError::from(StoreError::at(&args.to, error));
    let folder = args.to.parent().filter(|folder| !folder.as_os_str().is_empty());
    // Whole or not at all, and nothing is lost of what had the name.
    let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(failed)?;
    let out = io::BufWriter::with_capacity(BUFFER_BYTES, file.as_file());
    let report = store.backup(out, &args.to)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&args.to).map_err(|refused| failed(refused.error))?;
    setup::print(&format!("{}: {}", args.to.display(), said(&report)));
    Ok(ExitCode::SUCCESS)
}

fn restore(args: &RestoreArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    store.stop_writing_when(&cancel);
    let is_stdin = args.from.as_os_str() == "-";
    let input: Box<dyn io::Read + Send> = match is_stdin {
        true => Box::new(io::stdin()),
        false => match File::open(&args.from) {
            Ok(file) => Box::new(file),
            Err(error) => {
                let message = format!("{}: {error}", args.from.display());
                return Err(CliError::new(CONFIGURATION, message));
            }
        },
    };
    let place = if is_stdin { Path::new("standard input") } else { &args.from };
    let names_taken = if args.replace { NamesTaken::Replace } else { NamesTaken::Refuse };
    let plain = layer::decompress(Box::new(io::BufReader::with_capacity(BUFFER_BYTES, input)))
        .map_err(|error| CliError::new(CONFIGURATION, format!("{}: {error}", place.display())))?;
    let report = match store.restore(plain, place, names_taken) {
        Err(error) if cancel.load(Ordering::Relaxed) => {
            return Err(CliError::new(INTERRUPTED, error.to_string()));
        }
        report => report?,
    };
    let RestoreReport { images, cache_records, blobs, new_blobs, new_bytes } = report;
    let what =
        [counted(images, "image"), counted(cache_records, "cached step"), counted(blobs, "blob")];
    let new = bytes(new_bytes);
    setup::print(&format!("{}, {new_blobs} of them new: {new}\n", what.join(", ")));
    Ok(ExitCode::SUCCESS)
}

fn pin(
    args: &PinArgs,
    said: &str,
    change: impl Fn(&Store, &str) -> Result<bool, StoreError>,
) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let found: Result<Vec<_>, CliError> =
        args.images.iter().map(|name| images::find_one(&store, name)).collect();
    // All are looked up first: a typo in one changes none.
    for record in found? {
        change(&store, &record.key())?;
        setup::print(&format!("{said}: {}\n", record.key()));
    }
    Ok(ExitCode::SUCCESS)
}

fn as_text(report: &RepairReport) -> String {
    let mut text = String::new();
    for (damage, remedy) in &report.remedies {
        let what = safe(&damage.to_string());
        text.push_str(&match (remedy, damage.is_harmless()) {
            (Remedy::Left, true) => format!("{what} (harmless)\n"),
            (Remedy::Left, false) => format!("{what}\n"),
            (done, _) => format!("{what}: {done}\n"),
        });
    }
    let CheckReport { images, blobs, bytes: size, .. } = report.now;
    let harmful = report.now.damages.iter().filter(|damage| !damage.is_harmless()).count();
    let state = match harmful {
        0 => "sound".to_owned(),
        count => counted(count as u64, "damage"),
    };
    let what = [counted(images, "image"), counted(blobs, "blob"), bytes(size)];
    format!("{text}{}: {state}\n", what.join(", "))
}

/// `1 image`, `2 images`.
pub(super) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn as_json(report: &RepairReport) -> String {
    let damage = |(damage, remedy): &(Damage, Remedy)| -> Value {
        json!({
            "kind": damage.kind(),
            "text": damage.to_string(),
            "harmless": damage.is_harmless(),
            "remedy": (*remedy != Remedy::Left).then(|| remedy.to_string()),
        })
    };
    let damages: Vec<Value> = report.remedies.iter().map(damage).collect();
    let now = &report.now;
    let object = json!({
        "images": now.images,
        "blobs": now.blobs,
        "bytes": now.bytes,
        "sound": now.is_sound(),
        "damages": damages,
    });
    format!("{object}\n")
}
