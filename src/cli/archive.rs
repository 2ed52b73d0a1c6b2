//! `save` and `load`: images as files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use idpbuilder::{
    image,
    plan::{OutputKind, OutputPlan},
    registry::Client,
    store::{ImageRecord, Store},
};

use super::{
    Global,
    failure::{CONFIGURATION, CliError},
    images, push, setup,
};

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder save -o demo.tar demo:v1\n",
    "  idpbuilder save demo:v1 | ssh other idpbuilder load\n",
    "  idpbuilder save --form docker -o demo.tar demo:v1     (for `docker load`)"
))]
pub(super) struct SaveArgs {
    /// Names or ids of images.
    #[arg(required = true)]
    images: Vec<String>,
    /// File or folder to write; standard output without it, or for `-`.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// What is written.
    #[arg(long, value_enum, default_value_t = Form::Oci)]
    form: Form,
}

/// Forms of saved images.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// OCI layout in a tar file.
    Oci,
    /// OCI layout as a folder.
    OciDir,
    /// What `docker load` reads.
    Docker,
}

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Examples:\n",
    "  idpbuilder load -i demo.tar\n",
    "  idpbuilder load -i layout-folder -t demo:v1"
))]
pub(super) struct LoadArgs {
    /// OCI layout (folder or tar file), or docker archive; standard input without it, or for `-`.
    #[arg(short, long)]
    input: Option<PathBuf>,
    /// Name for the image, when there is one image only.
    #[arg(short, long)]
    tag: Option<String>,
}

pub(super) fn save(global: &Global, args: &SaveArgs) -> Result<ExitCode, CliError> {
    let file = args.output.as_ref().filter(|file| file.as_os_str() != "-");
    if file.is_none() && (args.form == Form::OciDir || io::stdout().is_terminal()) {
        let error = CliError::new(
            CONFIGURATION,
            "an archive is nothing for a terminal, nor a folder for a pipe",
        );
        return Err(error.with_help("--output names a file or folder"));
    }
    let store = setup::store()?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    store.stop_writing_when(&cancel);
    let _lease = store.lease()?;
    let records: Result<Vec<ImageRecord>, CliError> =
        args.images.iter().map(|name| images::find_one(&store, name)).collect();
    let records = records?;
    let output = OutputPlan {
        kind: if args.form == Form::Docker { OutputKind::Docker } else { OutputKind::Oci },
        destination: file.cloned(),
        archive: args.form != Form::OciDir,
        compression: None,
        options: BTreeMap::new(),
    };
    for record in &records {
        let fetched = fetch_absent(global, &store, record, &output);
        runtime.block_on(setup::until_cancelled(&cancel, fetched))?;
    }
    setup::unless_cancelled(&cancel, image::write_output(&store, &records, &output))?;
    if let Some(file) = file {
        setup::print(&format!("{}\n", file.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Gets layers that the output lacks from the registry that has them.
async fn fetch_absent(
    global: &Global,
    store: &Store,
    record: &ImageRecord,
    output: &OutputPlan,
) -> Result<(), CliError> {
    for platform in &record.platforms {
        let found = image::load(store, record, platform)?;
        let wanted = (&found, std::slice::from_ref(output));
        if image::has_all_for(store, wanted.0, wanted.1)? {
            continue;
        }
        let client = Client::new(push::client_options(BTreeSet::new())?)?;
        let (name, emit) = (record.key(), setup::emitter(global));
        image::fetch_for_outputs(store, &client, wanted, &name, &emit).await?;
        store.flush()?;
    }
    Ok(())
}

pub(super) fn load(global: &Global, args: &LoadArgs) -> Result<ExitCode, CliError> {
    let named = args.input.as_ref().filter(|file| file.as_os_str() != "-");
    let (input, _spooled) = match named {
        Some(file) => {
            fs::metadata(file).map_err(|error| {
                CliError::new(CONFIGURATION, format!("{}: {error}", file.display()))
            })?;
            (file.clone(), None)
        }
        None if io::stdin().is_terminal() => {
            let error = CliError::new(
                CONFIGURATION,
                "there is nothing to load: no file is named, and no pipe is there",
            );
            return Err(error.with_help("for example: idpbuilder load --input demo.tar"));
        }
        None => {
            let (path, spooled, _) = setup::spool_input()?;
            (path, Some(spooled))
        }
    };
    let store = setup::store()?;
    let _lease = store.lease()?;
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    store.stop_writing_when(&cancel);
    let found = setup::unless_cancelled(&cancel, image::import(&store, &input))?;
    if args.tag.is_some() && found.len() != 1 {
        let message = format!("--tag names one image, the file holds {}", found.len());
        return Err(CliError::new(CONFIGURATION, message));
    }
    let mut records: Vec<_> = found.into_iter().map(|imported| imported.record).collect();
    if let (Some(tag), [record]) = (&args.tag, &mut records[..]) {
        record.reference = Some(images::parse(tag)?.to_string());
    }
    store.put_images(&records)?;
    for record in &records {
        let name = record.reference.clone().unwrap_or_else(|| record.config.to_string());
        if !global.quiet {
            setup::print(&format!("Loaded image: {name}\n"));
        }
    }
    // While the lease holds: a collection must find the images, or what protects their content.
    store.flush()?;
    Ok(ExitCode::SUCCESS)
}
