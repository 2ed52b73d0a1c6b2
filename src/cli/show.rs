//! `history` and `inspect`: what is inside of an image.

use std::process::ExitCode;

use idpbuilder::{
    image::{self, Image},
    oci::Platform,
    report::{Align, Table, fit, one_line},
    store::{ImageRecord, Store},
};

use super::{Global, failure::CliError, format::Format, images, setup};

/// Columns for an instruction at most, unless asked for the whole.
const INSTRUCTION_COLUMNS: usize = 60;

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Example:\n",
    "  idpbuilder history demo:v1"
))]
pub(super) struct HistoryArgs {
    /// Name or id of an image.
    image: String,
    /// Shows instructions whole.
    #[arg(long)]
    no_trunc: bool,
    /// `table`, `json`, or a template with .CreatedBy .Size .Comment .CreatedAt.
    #[arg(long)]
    format: Option<String>,
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Example:\n",
    "  idpbuilder inspect demo:v1"
))]
pub(super) struct InspectArgs {
    /// Names or ids of images.
    #[arg(required = true)]
    images: Vec<String>,
}

pub(super) fn history(global: &Global, args: &HistoryArgs) -> Result<ExitCode, CliError> {
    let fields = ["CreatedBy", "Size", "Comment", "CreatedAt"];
    let format = Format::parse(args.format.as_deref(), &fields)?;
    let store = setup::store()?;
    let record = images::find_one(&store, &args.image)?;
    let image = load(&store, &record)?;
    let headings = [("CREATED BY", Align::Left), ("SIZE", Align::Right), ("COMMENT", Align::Left)];
    let mut table = Table::new(&headings);
    let mut lines = String::new();
    let mut layers = image.config.value.rootfs.diff_ids.iter();
    let mut rows = Vec::new();
    for entry in &image.config.value.history {
        let layer = if entry.empty_layer { None } else { layers.next() };
        let size = match layer {
            None => Some(0),
            Some(layer) => {
                let record = store.layer(*layer)?.filter(|record| record.tar_bytes > 0);
                record.map(|record| record.content_bytes)
            }
        };
        rows.push((entry, size));
    }
    for (entry, size) in rows.into_iter().rev() {
        let by = one_line(&entry.created_by);
        let by = if args.no_trunc || global.quiet { by } else { fit(&by, INSTRUCTION_COLUMNS) };
        // Nobody has looked at such a layer yet: it is in a registry only.
        let size = size.map_or_else(|| "remote".to_owned(), idpbuilder::report::bytes);
        let comment = entry.comment.clone().unwrap_or_default();
        lines.push_str(&format.row(&serde_json::json!({
            "CreatedBy": entry.created_by, "Size": size, "Comment": comment,
            "CreatedAt": entry.created,
        })));
        table.add([by, size, comment]);
    }
    let text = if matches!(format, Format::Table) { table.to_string() } else { lines };
    setup::print(&text);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn inspect(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let mut shown = Vec::new();
    for name in &args.images {
        let record = images::find_one(&store, name)?;
        let image = load(&store, &record)?;
        shown.push(serde_json::json!({
            "Id": record.config,
            "Names": record.reference,
            "Descriptor": record.target,
            "Platforms": record.platforms.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "Size": record.size,
            "Config": image.config.value,
            "Manifest": image.manifest.value,
            "Remote": remote(&store, &image)?,
        }));
    }
    let text = serde_json::to_string_pretty(&shown).expect("JSON values");
    setup::print(&format!("{text}\n"));
    Ok(ExitCode::SUCCESS)
}

/// Layers that are in a registry only, and where.
fn remote(store: &Store, image: &Image) -> Result<Vec<serde_json::Value>, CliError> {
    let absent = image::absent_layers(store, image)?;
    let described = absent.into_iter().map(|absent| {
        let places = absent.places.iter().map(idpbuilder::oci::Reference::name);
        serde_json::json!({
            "DiffId": absent.layer,
            "Blob": absent.blob.digest,
            "At": places.collect::<Vec<_>>(),
        })
    });
    Ok(described.collect())
}

/// The image of a record for this machine, or its first one.
pub(super) fn load(store: &Store, record: &ImageRecord) -> Result<Image, CliError> {
    let host = Platform::host();
    let fitting = record.platforms.iter().find(|platform| platform.satisfies(&host));
    let platform = fitting.or_else(|| record.platforms.first()).unwrap_or(&host);
    Ok(image::load(store, record, platform)?)
}
