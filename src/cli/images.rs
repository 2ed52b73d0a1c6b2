//! `images`, `tag`, `rmi`: names of the store.

use std::process::ExitCode;

use idpbuilder::{
    oci::Reference,
    report::{Align, Table, since},
    store::{ImageRecord, Store},
};
use serde_json::{Value, json};

use super::{
    Global,
    failure::{CONFIGURATION, CliError, NOT_FOUND},
    format::Format,
    setup,
};

const FIELDS: &[&str] = &[
    "Repository",
    "Tag",
    "Image",
    "ID",
    "Digest",
    "CreatedSince",
    "CreatedAt",
    "Size",
    "Bytes",
    "Pinned",
];

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder images\n",
    "  idpbuilder images --format '{{.Repository}}:{{.Tag}} {{.ID}}'"
))]
pub(super) struct ImagesArgs {
    /// Only images whose name has this in it.
    filter: Option<String>,
    /// `table`, `json`, or a template with .Repository .Tag .ID .Digest .CreatedSince .Size .Pinned …
    #[arg(long)]
    format: Option<String>,
    /// Shows digests of manifests too.
    #[arg(long)]
    digests: bool,
    /// Shows whole ids.
    #[arg(long)]
    no_trunc: bool,
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Example:\n",
    "  idpbuilder tag demo:v1 gitea.cnoe.localtest.me:8443/giteaadmin/demo:v1"
))]
pub(super) struct TagArgs {
    /// Name or id of an image.
    source: String,
    /// New name.
    target: String,
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Example:\n",
    "  idpbuilder rmi demo:v1"
))]
pub(super) struct RmiArgs {
    /// Names or ids of images.
    #[arg(required = true)]
    images: Vec<String>,
    /// Takes the names of pinned images away, too.
    #[arg(short, long)]
    force: bool,
}

pub(super) fn images(global: &Global, args: &ImagesArgs) -> Result<ExitCode, CliError> {
    let format = Format::parse(args.format.as_deref(), FIELDS)?;
    let store = setup::store()?;
    let now = jiff::Timestamp::now().as_second();
    let pins = store.pins()?;
    let mut headings = vec![("IMAGE", Align::Left), ("IMAGE ID", Align::Left)];
    if args.digests {
        headings.insert(1, ("DIGEST", Align::Left));
    }
    headings.extend([("CREATED", Align::Left), ("SIZE", Align::Left)]);
    // Most stores have none.
    headings.extend((!pins.is_empty()).then_some(("", Align::Left)));
    let mut table = Table::new(&headings);
    let mut lines = String::new();
    for record in store.images()? {
        let mut row = row(&record, now, if args.no_trunc { Ids::Whole } else { Ids::Short });
        let is_pinned = pins.contains(&record.key());
        row["Pinned"] = is_pinned.into();
        let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        if args.filter.as_ref().is_some_and(|filter| !text("Image").contains(filter)) {
            continue;
        }
        if global.quiet {
            lines.push_str(&format!("{}\n", text("ID")));
            continue;
        }
        lines.push_str(&format.row(&row));
        let cells = ["Image", "ID", "CreatedSince", "Size"].map(text);
        let [image, id, created, size] = cells;
        let mut cells = vec![image, id, created, size];
        if args.digests {
            cells.insert(1, text("Digest"));
        }
        cells.extend((!pins.is_empty()).then(|| if is_pinned { "pinned" } else { "" }.to_owned()));
        table.add(cells);
    }
    if !global.quiet && matches!(format, Format::Table) {
        lines = table.to_string();
    }
    setup::print(&lines);
    Ok(ExitCode::SUCCESS)
}

/// How ids are shown.
#[derive(Clone, Copy)]
enum Ids {
    /// All of them.
    Whole,
    /// As many digits as people read.
    Short,
}

fn row(record: &ImageRecord, now: i64, ids: Ids) -> Value {
    let reference = record.reference.as_deref().and_then(|name| name.parse::<Reference>().ok());
    let none = || "<none>".to_owned();
    let repository = reference.as_ref().map_or_else(none, Reference::familiar_name);
    let tag =
        reference.as_ref().and_then(|name| name.tag().map(str::to_owned)).unwrap_or_else(none);
    let id = match ids {
        Ids::Whole => record.config.to_string(),
        Ids::Short => record.config.short(),
    };
    let created = jiff::Timestamp::from_second(record.stored_at).unwrap_or_default();
    let local = created.to_zoned(jiff::tz::TimeZone::system());
    json!({
        "Image": format!("{repository}:{tag}"),
        "Repository": repository,
        "Tag": tag,
        "ID": id,
        "Digest": record.target.digest.to_string(),
        "CreatedSince": since(record.stored_at, now),
        "CreatedAt": local.strftime("%Y-%m-%d %H:%M:%S %z").to_string(),
        "Size": docker_size(record.size),
        "Bytes": record.size,
    })
}

/// A size in decimal units with three digits, as docker prints it: `7.8MB`.
fn docker_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 || value >= 100.0 => 0,
        _ if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

pub(super) fn tag(args: &TagArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let record = find_one(&store, &args.source)?;
    let target = parse(&args.target)?;
    store.put_image(&ImageRecord { reference: Some(target.to_string()), ..record })?;
    setup::print(&format!("{target}\n"));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn rmi(args: &RmiArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let mut names = Vec::new();
    // All are looked up first: a typo in one takes none away.
    for image in &args.images {
        let found = store.find_images(image)?;
        if found.is_empty() {
            return Err(not_found(&store, image)?);
        }
        names.extend(found.into_iter().map(|record| record.key()));
    }
    let pins = store.pins()?;
    if let Some(pinned) = names.iter().find(|name| pins.contains(*name) && !args.force) {
        return Err(CliError::new(
            CONFIGURATION,
            format!("{pinned} is pinned; no name was taken away"),
        )
        .with_help(format!("`idpbuilder store unpin {pinned}` first, or --force")));
    }
    for name in names {
        store.remove_image(&name)?;
        setup::print(&format!("Untagged: {name}\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The one image that a name or id means.
pub(super) fn find_one(store: &Store, name: &str) -> Result<ImageRecord, CliError> {
    let mut found = store.find_images(name)?;
    if found.is_empty() {
        return Err(not_found(store, name)?);
    }
    let first = found.remove(0);
    if found.iter().any(|other| other.config != first.config) {
        let message = format!("{name} is the beginning of several image ids");
        return Err(CliError::new(CONFIGURATION, message).with_help("type more of the id"));
    }
    Ok(first)
}

/// Why there is no such image, with the nearest name.
fn not_found(store: &Store, name: &str) -> Result<CliError, CliError> {
    const NEAR: f64 = 0.7;
    let names = store.images()?.into_iter().filter_map(|record| record.reference);
    let names: Vec<Reference> = names.filter_map(|name| name.parse().ok()).collect();
    let error = CliError::new(NOT_FOUND, format!("image {name} not found in the store"));
    // Images of a project have short names there, and long ones in the store.
    let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let short = last(name).split([':', '@']).next().unwrap_or_default().to_owned();
    if let Some(known) = names.iter().find(|known| last(known.repository()) == short) {
        return Ok(error.with_help(format!("did you mean {}?", known.familiar())));
    }
    let names = names.iter().map(Reference::familiar);
    let nearest = names.map(|known| (strsim::normalized_damerau_levenshtein(&known, name), known));
    let nearest = nearest.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score >= NEAR);
    Ok(match nearest {
        Some((_, known)) => error.with_help(format!("did you mean {known}?")),
        None => error.with_help("`idpbuilder images` lists what is here"),
    })
}

/// A reference typed by the user.
pub(super) fn parse(text: &str) -> Result<Reference, CliError> {
    text.parse().map_err(|error| {
        CliError::new(CONFIGURATION, format!("{text}: {error}"))
            .with_help("expected [REGISTRY[:PORT]/]NAME[:TAG], such as localhost:5000/team/app:v1")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dockers() {
        for (bytes, shown) in [
            (0, "0B"),
            (999, "999B"),
            (7_800_000, "7.80MB"),
            (61_000_000, "61.0MB"),
            (123_456_789, "123MB"),
        ] {
            assert_eq!(docker_size(bytes), shown);
        }
    }
}
