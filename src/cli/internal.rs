//! `internal`: one part of the machinery at a time, for diagnosis.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use idpbuilder::{
    dockerfile,
    exec::ImageState,
    image,
    layer::{LayerWriter, read_layer},
    oci::{ContainerConfig, HistoryEntry, ImageConfig, Platform},
    plan::{BuildFlags, DockerfileSource, Plan},
    registry::Client,
    store::{ImageRecord, LayerRecord},
    tree::{Change, Entry, Kind, Meta, TreePath},
};

use super::{
    Global,
    failure::{BUG, CONFIGURATION, CliError, NOT_FOUND},
    images, push, run, setup, show,
};

/// Largest standard input that `save-test-image` takes, in bytes.
const INPUT_BYTES_MAX: u64 = 1 << 30;
/// Name of the file in a test image.
const TEST_FILE: &str = "data";

#[derive(clap::Subcommand)]
pub(super) enum InternalVerb {
    /// Prints the instructions of a Dockerfile, one a line.
    ParseDockerfile {
        /// The Dockerfile.
        file: PathBuf,
    },
    /// Builds a Dockerfile over an empty context and prints how many layers the image has.
    TestExecutor {
        /// The Dockerfile.
        file: PathBuf,
        /// Serves a registry from another address.
        #[arg(long, value_name = "REGISTRY=ADDRESS")]
        mirror: Vec<String>,
        /// Named context, as in `build`.
        #[arg(long, value_name = "NAME=SOURCE")]
        build_context: Vec<String>,
    },
    /// Makes an image with one file, which holds standard input.
    SaveTestImage {
        /// Name of the image.
        image: String,
    },
    /// Prints the file of an image that `save-test-image` made.
    LoadTestImage {
        /// Name of the image.
        image: String,
    },
    /// Checks TLS and `/v2/` of a registry.
    TestConnection {
        /// Host and port of the registry.
        registry: String,
        #[command(flatten)]
        access: push::Access,
    },
}

impl InternalVerb {
    /// Whether the command runs processes in the sandbox.
    pub(super) fn needs_namespace(&self) -> bool {
        matches!(self, Self::TestExecutor { .. })
    }
}

pub(super) fn internal(global: &Global, verb: InternalVerb) -> Result<ExitCode, CliError> {
    match verb {
        InternalVerb::ParseDockerfile { file } => parse(&file),
        InternalVerb::TestExecutor { file, mirror, build_context } => {
            execute(global, &file, &mirror, &build_context)
        }
        InternalVerb::SaveTestImage { image } => save(&image),
        InternalVerb::LoadTestImage { image } => load(&image),
        InternalVerb::TestConnection { registry, access } => {
            let client = Client::new(access.client_options(&registry)?)?;
            let facts = setup::runtime()?.block_on(client.ping(&registry))?;
            for fact in facts {
                setup::print(&format!("{fact}\n"));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn parse(file: &Path) -> Result<ExitCode, CliError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| CliError::new(CONFIGURATION, format!("{}: {error}", file.display())))?;
    let parsed = dockerfile::parse(&text).map_err(|error| {
        let named = miette::NamedSource::new(file.display().to_string(), text.clone());
        let label = error
            .location
            .as_ref()
            .map(|location| miette::LabeledSpan::at(location.span.clone(), "here"));
        let mut diagnostic = miette::MietteDiagnostic::new(error.message.clone());
        diagnostic.labels = label.map(|label| vec![label]);
        diagnostic.help = error.help;
        CliError::Drawn(miette::Report::new(diagnostic).with_source_code(named))
    })?;
    for argument in &parsed.global_args {
        setup::print(&format!("{}\n", argument.original));
    }
    for stage in &parsed.stages {
        for instruction in std::iter::once(&stage.from).chain(&stage.instructions) {
            setup::print(&format!("{}\n", instruction.original));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn execute(
    global: &Global,
    file: &Path,
    mirrors: &[String],
    contexts: &[String],
) -> Result<ExitCode, CliError> {
    let mut flags = BuildFlags::new(DockerfileSource::File(setup::absolute(file)?), None);
    for context in contexts {
        let (name, source) = super::sources::named_context(context)?;
        flags.named_contexts.insert(name, source);
    }
    let plan = Plan::from_flags(flags);
    let mut plan = plan.map_err(|error| CliError::Diagnostics(vec![Box::new(error)]))?;
    plan.images.iter_mut().for_each(|image| image.export = false);
    super::project::add_mirrors(&mut plan, mirrors)?;
    let store = setup::store()?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    let setup = setup::exec_setup(global, store.clone(), cancel, &run::RunningArgs::default())?;
    let report = run::perform(global, &runtime, &plan, &setup)?;
    let state = report.images.first().map(|image| image.state.clone());
    let Some(ImageState::Stored { id, .. }) = state else {
        return Err(CliError::new(BUG, "the build left no image"));
    };
    let config: ImageConfig = serde_json::from_slice(&store.read_blob(id)?)
        .map_err(|error| CliError::new(BUG, format!("config {id}: {error}")))?;
    setup::print(&format!("{} layers created\n", config.rootfs.diff_ids.len()));
    Ok(ExitCode::SUCCESS)
}

fn save(name: &str) -> Result<ExitCode, CliError> {
    let reference = images::parse(name)?;
    let mut data = Vec::new();
    let read = std::io::stdin().take(INPUT_BYTES_MAX).read_to_end(&mut data);
    read.map_err(|error| CliError::new(CONFIGURATION, format!("standard input: {error}")))?;
    let store = setup::store()?;
    let layer_failed = |error: idpbuilder::layer::LayerError| CliError::new(BUG, error.to_string());
    let mut writer = LayerWriter::new(store.blob_writer()?);
    let entry = Entry {
        path: TreePath::parse(TEST_FILE).expect("a plain name"),
        kind: Kind::File { size: data.len() as u64 },
        meta: Meta { mode: 0o644, ..Meta::default() },
    };
    writer.put(&entry, &mut data.as_slice()).map_err(layer_failed)?;
    let (blob, summary) = writer.finish().map_err(layer_failed)?;
    let diff_id = summary.diff_id;
    blob.commit(Some(diff_id.0))?;
    store.put_listing(diff_id, &summary.listing.encode())?;
    let (tar_bytes, content_bytes) = (summary.tar_bytes, summary.content_bytes);
    store.put_layer(diff_id, &LayerRecord { tar_bytes, content_bytes, compressed: Vec::new() })?;
    let platform = Platform::host();
    let created_by = "internal save-test-image".to_owned();
    let mut config = ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        config: ContainerConfig::default(),
        history: vec![HistoryEntry { created_by, ..HistoryEntry::default() }],
        ..ImageConfig::default()
    };
    config.rootfs.diff_ids.push(diff_id);
    let image = image::assemble(&store, &config, &[diff_id], &[])?;
    store.put_image(&ImageRecord {
        reference: Some(reference.to_string()),
        target: image.manifest.descriptor(idpbuilder::oci::MediaType::MANIFEST),
        config: image.config.digest(),
        platforms: vec![platform],
        stored_at: jiff::Timestamp::now().as_second(),
        created: None,
        size: content_bytes,
        pulled: false,
    })?;
    setup::print(&format!("saved {} bytes as {reference}\n", data.len()));
    Ok(ExitCode::SUCCESS)
}

fn load(name: &str) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    let record = images::find_one(&store, name)?;
    let image = show::load(&store, &record)?;
    let layer = image
        .config
        .value
        .rootfs
        .diff_ids
        .first()
        .ok_or_else(|| CliError::new(NOT_FOUND, format!("{name} has no layer")))?;
    let wanted = TreePath::parse(TEST_FILE).expect("a plain name");
    let mut data = None;
    let tar = std::io::BufReader::new(store.open_blob(layer.0)?);
    let read = read_layer(tar, |change, content| {
        if let Change::Put(entry) = change
            && entry.path == wanted
        {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            data = Some(bytes);
        }
        Ok(())
    });
    read.map_err(|error| CliError::new(BUG, error.to_string()))?;
    let data = data.ok_or_else(|| {
        CliError::new(NOT_FOUND, format!("{name} was not made by save-test-image"))
    })?;
    // A reader that went away wants no more of it.
    drop(std::io::stdout().write_all(&data));
    Ok(ExitCode::SUCCESS)
}
