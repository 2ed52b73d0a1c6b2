//! `cache`: the directories of `RUN --mount=type=cache`: listed, removed, and carried from one machine to another.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use idpbuilder::{
    event::{self, Event},
    image::{self, Present, Refresh, Unpacked},
    layer::Ownership,
    oci::{Codec, Platform, Reference},
    plan::{OutputKind, OutputPlan},
    registry::Client,
    report::{Align, Table, bytes, safe},
    sandbox::{self, Privilege},
    store::{CacheInfo, CacheSharing, Store},
};
use serde_json::{Value, json};

use super::{
    Global,
    failure::{BUILD, CliError, NOT_FOUND},
    format::Format,
    images,
    push::{self, Access},
    setup,
};

/// Seconds of a day.
const DAY_S: i64 = 86_400;

/// Fields of a row of the list.
const FIELDS: &[&str] =
    &["ID", "Namespace", "Name", "Size", "Bytes", "LastUsed", "CreatedAt", "Sharing", "InUse"];

/// What is done with cache mounts.
#[derive(clap::Subcommand)]
pub(super) enum CacheVerb {
    /// Lists the directories of cache mounts.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Removes directories of cache mounts, unless a build uses them.
    Rm(RmArgs),
    /// Removes those that were not used for a while.
    Prune(PruneArgs),
    /// Packs them into an image: in a registry, or in a file.
    Export(ExportArgs),
    /// Takes them out of such an image.
    Import(ImportArgs),
}

#[derive(clap::Args)]
pub(super) struct LsArgs {
    /// `table`, `json`, or a template with .ID .Namespace .Name .Size .Bytes .LastUsed .CreatedAt .Sharing .InUse.
    #[arg(long)]
    format: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct RmArgs {
    /// Ids, or names as `cache ls` shows them.
    #[arg(required = true, value_name = "ID")]
    caches: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct PruneArgs {
    /// Those not used for so many days.
    #[arg(long, value_name = "N", default_value_t = 30)]
    days: u32,
    /// All that are not in use.
    #[arg(long, conflicts_with = "days")]
    all: bool,
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder cache export caches.tar\n",
    "  idpbuilder cache export gitea.cnoe.localtest.me:8443/giteaadmin/app-cache:main --id /root/.cargo"
))]
pub(super) struct ExportArgs {
    /// File that ends in .tar or has a `/` in front, or reference in a registry.
    #[arg(value_name = "REF|FILE")]
    to: String,
    /// Those with this id; all without it.
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    #[command(flatten)]
    access: Access,
}

#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// File, or reference in a registry.
    #[arg(value_name = "REF|FILE")]
    from: String,
    /// Those with this id; all without it.
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// Replaces those that are here already.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    access: Access,
}

pub(super) fn cache(global: &Global, verb: &CacheVerb) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    match verb {
        CacheVerb::Ls(args) => list(&store, args)?,
        CacheVerb::Rm(args) => remove(&store, &args.caches)?,
        CacheVerb::Prune(args) => prune(&store, args)?,
        CacheVerb::Export(args) => export(global, &store, args)?,
        CacheVerb::Import(args) => import(global, &store, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(store: &Store, args: &LsArgs) -> Result<(), CliError> {
    let format = Format::parse(args.format.as_deref(), FIELDS)?;
    let headings = [
        ("ID", Align::Left),
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("LAST USED", Align::Left),
        ("SHARING", Align::Left),
        ("", Align::Left),
    ];
    let mut table = Table::new(&headings);
    let mut lines = String::new();
    for info in store.cache_dirs()? {
        let row = row(&info);
        lines.push_str(&format.row(&row));
        let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let used = if info.in_use { "in use" } else { "" };
        let id = safe(&shown(&info));
        table.add([
            id,
            text("Name"),
            text("Size"),
            text("LastUsed"),
            text("Sharing"),
            used.to_owned(),
        ]);
    }
    match format {
        Format::Table => setup::print(&table.to_string()),
        Format::Json | Format::Template(_) => setup::print(&lines),
    }
    Ok(())
}

fn row(info: &CacheInfo) -> Value {
    let time = |seconds: i64| jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string();
    json!({
        "ID": info.identity.id,
        "Namespace": info.identity.namespace,
        "Name": info.name,
        "Size": bytes(info.bytes),
        "Bytes": info.bytes,
        "LastUsed": time(info.used_at),
        "CreatedAt": time(info.made_at),
        "Sharing": match info.sharing {
            CacheSharing::Shared => "shared",
            CacheSharing::Private => "private",
            CacheSharing::Locked => "locked",
        },
        "InUse": info.in_use,
    })
}

/// The id behind its namespace.
fn shown(info: &CacheInfo) -> String {
    match info.identity.namespace.as_str() {
        "" => info.identity.id.clone(),
        namespace => format!("{namespace}/{}", info.identity.id),
    }
}

fn remove(store: &Store, names: &[String]) -> Result<(), CliError> {
    let known = store.cache_dirs()?;
    for name in names {
        let meant = |info: &&CacheInfo| {
            info.identity.id == *name || shown(info) == *name || info.name == *name
        };
        let found: Vec<&CacheInfo> = known.iter().filter(meant).collect();
        if found.is_empty() {
            return Err(CliError::new(NOT_FOUND, format!("there is no cache {name}"))
                .with_help("`idpbuilder cache ls` lists what there is"));
        }
        for info in found {
            if !store.remove_cache_dir(&info.name)? {
                let message = format!("cache {name} is in use by a build");
                return Err(
                    CliError::new(BUILD, message).with_help("when the build has ended it can go")
                );
            }
            setup::print(&format!("{}\n", info.name));
        }
    }
    Ok(())
}

fn prune(store: &Store, args: &PruneArgs) -> Result<(), CliError> {
    let days = if args.all { 0 } else { i64::from(args.days) };
    let latest = jiff::Timestamp::now().as_second() - days * DAY_S;
    let (mut count, mut freed) = (0, 0);
    for info in store.cache_dirs()? {
        if info.used_at <= latest && store.remove_cache_dir(&info.name)? {
            count += 1;
            freed += info.bytes;
        }
    }
    for name in store.broken_cache_dirs()? {
        store.remove_cache_dir(&name)?;
    }
    setup::print(&format!("removed {count} caches: {}\n", bytes(freed)));
    Ok(())
}

fn export(global: &Global, store: &Store, args: &ExportArgs) -> Result<(), CliError> {
    let wanted = |info: &CacheInfo| args.id.is_empty() || args.id.contains(&info.identity.id);
    let mut caches = store.cache_dirs()?;
    // Those with a number behind their name are what builds had for themselves at the same time.
    caches.retain(|info| wanted(info) && !info.name.contains('-'));
    if caches.is_empty() {
        return Err(CliError::new(NOT_FOUND, "there is no cache to export")
            .with_help("`idpbuilder cache ls` lists what there is"));
    }
    let _lease = store.lease()?;
    let record = image::pack_caches(store, &caches)?;
    if is_file(&args.to) {
        let output = OutputPlan {
            kind: OutputKind::Oci,
            destination: Some(setup::absolute(Path::new(&args.to))?),
            archive: true,
            compression: Some(Codec::Zstd),
            options: BTreeMap::new(),
        };
        image::write_output(store, std::slice::from_ref(&record), &output)?;
        setup::print(&format!("{}\n", record.target.digest));
        return Ok(());
    }
    let reference = images::parse(&args.to)?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    store.stop_writing_when(&cancel);
    let sent = (&reference, Codec::Zstd);
    runtime.block_on(push::send(global, &args.access, (store, &record), sent, &cancel))
}

fn import(global: &Global, store: &Store, args: &ImportArgs) -> Result<(), CliError> {
    let _lease = store.lease()?;
    let path = PathBuf::from(&args.from);
    let image = if is_file(&args.from) || path.exists() {
        let found = image::import(store, &path)?;
        let imported = found.first().ok_or_else(|| {
            CliError::new(NOT_FOUND, format!("{}: there is no image in it", args.from))
        })?;
        let platform = imported.record.platforms.first().cloned().unwrap_or_else(Platform::host);
        image::load(store, &imported.record, &platform)?
    } else {
        fetch(global, store, &images::parse(&args.from)?, &args.access)?
    };
    let wanted = |id: &str| args.id.is_empty() || args.id.iter().any(|known| known == id);
    let present = if args.replace { Present::Replace } else { Present::Keep };
    let ownership = match sandbox::privilege() {
        Privilege::Root | Privilege::Mapped => Ownership::Exact,
        Privilege::SingleId | Privilege::None => Ownership::Own,
    };
    for (identity, outcome) in image::unpack_caches(store, &image, &wanted, (present, ownership))? {
        let what = match outcome {
            Unpacked::Taken => "imported",
            Unpacked::Kept => "kept as it is here (--replace takes the other)",
            Unpacked::Busy => "kept as it is here: a build uses it",
        };
        setup::print(&format!("{}: {what}\n", safe(&identity.id)));
    }
    store.flush()?;
    Ok(())
}

fn fetch(
    global: &Global,
    store: &Store,
    reference: &Reference,
    access: &Access,
) -> Result<image::Image, CliError> {
    let client = Client::new(access.client_options(reference.registry())?)?;
    let runtime = setup::runtime()?;
    let emit = if global.quiet { event::silent() } else { setup::emitter(global) };
    let shown = reference.familiar();
    emit(Event::ImageStarted { image: shown.clone() });
    let started = std::time::Instant::now();
    let fetched = runtime.block_on(async {
        let platform = Platform::host();
        let image = image::resolve(store, &client, reference, &platform, Refresh::Always).await?;
        image::fetch_layers(store, &client, &image, &shown, &emit).await?;
        Ok::<_, image::ImageError>(image)
    });
    emit(Event::Finished { ok: fetched.is_ok(), duration: started.elapsed() });
    Ok(fetched?)
}

fn is_file(text: &str) -> bool {
    text.starts_with(['/', '.']) || Path::new(text).extension().is_some_and(|end| end == "tar")
}
