//! `store`: the folder as a whole: checked, repaired, saved and read again; and pins on what it keeps.

use std::process::ExitCode;

use idpbuilder::{
    report::{bytes, safe},
    store::{CheckDepth, CheckReport, Damage, Remedy, RepairReport, Store},
};
use serde_json::{Value, json};

use super::{
    failure::{BUILD, CONFIGURATION, CliError},
    setup,
};

/// What is done with the store.
#[derive(clap::Subcommand)]
pub(super) enum StoreVerb {
    /// Looks for damage: all facts, existence and sizes of content; every byte with `--full`.
    Check(CheckArgs),
    /// Prints the folder.
    Path,
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Exit codes: 0 sound, or repaired · 1 damage was found (with --repair: is left) · 8 it cannot be looked at\n\n",
    "Examples:\n",
    "  idpbuilder store check --full\n",
    "  idpbuilder store check --full --repair   (takes away what is damaged and what needs it)"
))]
pub(super) struct CheckArgs {
    /// Reads every byte of every blob and listing, too.
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
    let depth = if args.full { CheckDepth::Full } else { CheckDepth::Quick };
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
        1 => "1 damage".to_owned(),
        count => format!("{count} damages"),
    };
    format!("{text}{images} images, {blobs} blobs, {}: {state}\n", bytes(size))
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
