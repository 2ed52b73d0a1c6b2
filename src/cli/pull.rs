//! `pull`: an image of a registry into the store.

use std::{collections::BTreeSet, process::ExitCode, sync::Arc, time::Instant};

use idpbuilder::{
    event::Event,
    image,
    oci::{MediaType, Platform},
    registry::{Client, Mirror},
    store::ImageRecord,
};

use super::{
    Global,
    failure::{CONFIGURATION, CliError},
    images,
    push::Access,
    setup,
};

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder pull alpine:3.19\n",
    "  idpbuilder pull --platform linux/arm64 --mirror docker.io=mirror.example:5000 alpine"
))]
pub(super) struct PullArgs {
    /// Reference of the image.
    image: String,
    /// Platform; this machine's by default.
    #[arg(long)]
    platform: Option<String>,
    /// Serves a registry from another address: `docker.io=HOST:PORT/PREFIX`.
    #[arg(long, value_name = "REGISTRY=ADDRESS")]
    mirror: Vec<String>,
    #[command(flatten)]
    access: Access,
}

pub(super) fn pull(global: &Global, args: &PullArgs) -> Result<ExitCode, CliError> {
    let reference = images::parse(&args.image)?;
    let platform = match &args.platform {
        None => Platform::host(),
        Some(text) => parse_platform(text)?,
    };
    let store = setup::store()?;
    let _lease = store.lease()?;
    let mirrors = parse_mirrors(&args.mirror)?;
    let mut named: BTreeSet<_> =
        mirrors.iter().map(|(_, mirror)| mirror.host().to_owned()).collect();
    // `alpine` names no registry.
    if args.image.starts_with(reference.registry()) {
        named.insert(reference.registry().to_owned());
    }
    let mut options = args.access.options_naming(reference.registry(), named)?;
    for (registry, mirror) in mirrors {
        options.mirrors.entry(registry).or_default().push(mirror);
    }
    let emit = setup::emitter(global);
    let warn = Arc::clone(&emit);
    options.on_passed_over = Some(Arc::new(move |text| warn(Event::Warning { image: None, text })));
    let client = Client::new(options)?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    store.stop_writing_when(&cancel);
    let (shown, started) = (reference.familiar(), Instant::now());
    emit(Event::ImageStarted { image: shown.clone() });
    let pulled = runtime.block_on(setup::until_cancelled(&cancel, async {
        let image =
            image::resolve(&store, &client, &reference, &platform, image::Refresh::Always).await?;
        image::fetch_layers(&store, &client, &image, &shown, &emit).await?;
        Ok::<_, idpbuilder::image::ImageError>(image)
    }));
    emit(Event::Finished { ok: pulled.is_ok(), duration: started.elapsed() });
    let image = pulled?;
    let mut size = 0;
    for layer in &image.config.value.rootfs.diff_ids {
        size += store.layer(*layer)?.map_or(0, |layer| layer.content_bytes);
    }
    let media_type = image.manifest.value.media_type.clone();
    let media_type = media_type.unwrap_or_else(|| MediaType::new(MediaType::MANIFEST));
    let record = ImageRecord {
        reference: Some(reference.to_string()),
        target: image.manifest.descriptor(media_type.as_str()),
        config: image.config.digest(),
        platforms: vec![image.config.value.platform()],
        stored_at: jiff::Timestamp::now().as_second(),
        created: image.config.value.created.clone(),
        size,
        pulled: true,
    };
    store.put_image(&record)?;
    // While the lease holds: a collection must find the image, or what protects its content.
    store.flush()?;
    let name = match reference.digest() {
        Some(_) => reference.to_string(),
        None => format!("{reference}@{}", record.target.digest),
    };
    setup::print(&format!("{name}\n"));
    Ok(ExitCode::SUCCESS)
}

/// `REGISTRY=ADDRESS` pairs.
pub(super) fn parse_mirrors(texts: &[String]) -> Result<Vec<(String, Mirror)>, CliError> {
    texts
        .iter()
        .map(|text| {
            let (registry, address) = text.split_once('=').ok_or_else(|| {
                CliError::new(CONFIGURATION, format!("--mirror {text}: expected REGISTRY=ADDRESS"))
                    .with_help("for example: --mirror docker.io=localhost:5000")
            })?;
            Ok((registry.to_owned(), Mirror { address: address.to_owned(), fallback: true }))
        })
        .collect()
}

/// A platform of a flag.
pub(super) fn parse_platform(text: &str) -> Result<Platform, CliError> {
    text.parse().map_err(|error| CliError::new(CONFIGURATION, format!("--platform: {error}")))
}
