//! `verify`: builds an image of the store again without the cache, and names the first byte that differs.

use std::{path::PathBuf, process::ExitCode};

use idpbuilder::{
    exec::{self, ImageState},
    image::{self, Difference, Place},
    oci::{Descriptor, Digest, MediaType, Platform, Reference},
    plan::{CacheUse, ImagePlan, Plan},
    store::{ImageRecord, Store},
};

use super::{
    Global,
    build::RecipeArgs,
    failure::{BUILD, CONFIGURATION, CliError},
    images,
    project::{self, ProjectArgs, SelectionArgs},
    run::RunningArgs,
    setup,
    sources::ReadFlags,
};

#[derive(clap::Args)]
#[command(after_help = concat!(
    "Ends with 0 when the bytes of layers and config, and so the image ID, are the same, and with 1 when they are not.\n",
    "What was loaded or pulled may have them in another form (compression, manifest): that is said.\n\n",
    "Examples:\n",
    "  idpbuilder verify site          (an image of the project)\n",
    "  idpbuilder verify demo:v1 .     (with the flags that it was built with)"
))]
pub(super) struct VerifyArgs {
    /// Image of the project by its name or a tag; with a CONTEXT, name or id of an image of the store.
    image: String,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Project file; by default idpbuilder.kdl here or in a folder above.
    #[arg(long, value_name = "FILE", conflicts_with = "folder")]
    project: Option<PathBuf>,
    /// Sets a variable of the project.
    #[arg(long, value_name = "NAME=VALUE")]
    var: Vec<String>,
    #[command(flatten)]
    pub(super) running: RunningArgs,
}

pub(super) fn verify(global: &Global, args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let store = setup::store()?;
    // What came from standard input lives until the build is done.
    let (mut plan, record, _input) = match args.recipe.sources.is_given() {
        true => {
            let ReadFlags { flags, input } = args.recipe.flags()?;
            let plan = args.recipe.sources.plan(flags)?;
            (plan, images::find_one(&store, &args.image)?, input)
        }
        false => {
            let (plan, record) = of_project(&store, args)?;
            (plan, record, None)
        }
    };
    let last = plan.images.last_mut().expect("a plan has an image");
    last.cache = CacheUse::Discard;
    if last.platforms.is_empty() && record.platforms.len() > 1 {
        last.platforms.clone_from(&record.platforms);
    }
    let (name, platforms) = (last.name.clone(), last.platforms.clone());
    for image in &mut plan.images {
        // Nothing but the bytes is wanted: no name moves, no file is written.
        image.export = false;
        image.pushes.clear();
        image.outputs.clear();
    }
    plan.link();
    let runtime = setup::runtime()?;
    let cancel = setup::cancel_on_signals(&runtime);
    let mut setup = setup::exec_setup(global, store.clone(), cancel, &args.running)?;
    args.running.apply(&mut setup, &super::build::lock_folder(&plan))?;
    let report = runtime.block_on(exec::run(&plan, &setup));
    if !report.failures.is_empty() {
        return Err(CliError::Run(report));
    }
    let image = report.images.iter().find(|image| image.name == name);
    let Some(ImageState::Stored { digest, .. }) = image.map(|image| &image.state) else {
        unreachable!("a run without failures stores every image");
    };
    compare(&store, &args.image, (&record, &platforms), *digest)
}

/// The plan that ends in the image, and what the store has under its name.
fn of_project(store: &Store, args: &VerifyArgs) -> Result<(Plan, ImageRecord), CliError> {
    let of_project = ProjectArgs { file: args.project.clone(), var: args.var.clone() };
    let loaded = project::load(&of_project).map_err(|error| {
        error.with_help(format!("`idpbuilder verify {} CONTEXT` needs no project", args.image))
    })?;
    let plan_of = |selection: &[String]| {
        let (selection, mirror) = (selection.to_vec(), args.recipe.sources.mirror.clone());
        let allow = args.recipe.allow.clone();
        let args = SelectionArgs { selection, no_push: true, no_cache: false, mirror, allow };
        project::plan(&loaded, &args)
    };
    let known = loaded.settings.images.iter().map(|image| image.name.clone());
    let all = plan_of(&known.collect::<Vec<_>>())?;
    let wanted = args.image.parse::<Reference>().ok();
    let is_wanted = |image: &&ImagePlan| {
        image.name == args.image || image.tags.iter().any(|tag| Some(tag) == wanted.as_ref())
    };
    let image = all.images.iter().find(is_wanted).ok_or_else(|| {
        let message = format!("the project has no image {}", args.image);
        CliError::new(CONFIGURATION, message).with_help("`idpbuilder plan` shows its images")
    })?;
    let stored = image.tags.first().map_or_else(|| args.image.clone(), ToString::to_string);
    let record = images::find_one(store, &stored)?;
    let name = image.name.clone();
    let mut plan = plan_of(std::slice::from_ref(&name))?;
    // What the image needs comes before it; `verify` asks for the last.
    plan.images.sort_by_key(|image| image.name == name);
    Ok((plan, record))
}

/// Compares for these platforms; without any, for those that the stored one has.
fn compare(
    store: &Store,
    name: &str,
    (stored, platforms): (&ImageRecord, &[Platform]),
    rebuilt: Digest,
) -> Result<ExitCode, CliError> {
    let again = ImageRecord { target: descriptor(store, rebuilt)?, ..stored.clone() };
    let mut other_form = false;
    for platform in if platforms.is_empty() { &stored.platforms } else { platforms } {
        let (one, other) =
            (image::load(store, stored, platform)?, image::load(store, &again, platform)?);
        let difference = image::first_difference(store, &one, &other)?;
        if difference == Some(Difference::Manifest) && one.config.digest() == other.config.digest()
        {
            other_form = true;
            continue;
        }
        if let Some(difference) = difference {
            let of = match stored.platforms.len() {
                1 => String::new(),
                _ => format!(" for {platform}"),
            };
            setup::print(&format!("{name}{of} is not what it was: {}\n", in_words(&difference)));
            return Ok(ExitCode::from(BUILD));
        }
    }
    let form = match other_form {
        true => format!(
            "; the manifest is another ({rebuilt}), since the stored one came with its layers in another form"
        ),
        false => String::new(),
    };
    let of = match platforms.len() {
        0 => String::new(),
        some if some == stored.platforms.len() => String::new(),
        _ => format!(
            " for {}",
            platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
        ),
    };
    let digest = stored.target.digest;
    setup::print(&format!("{name}{of} is the same when built again: {digest}{form}\n"));
    Ok(ExitCode::SUCCESS)
}

/// Of a manifest, or of an index of several.
fn descriptor(store: &Store, digest: Digest) -> Result<Descriptor, CliError> {
    let raw = store.read_blob(digest)?;
    let is_index = serde_json::from_slice::<serde_json::Value>(&raw)
        .is_ok_and(|document| document.get("manifests").is_some());
    let media_type = if is_index { MediaType::INDEX } else { MediaType::MANIFEST };
    Ok(Descriptor::new(MediaType::new(media_type), digest, raw.len() as u64))
}

fn in_words(difference: &Difference) -> String {
    match difference {
        Difference::Layer { layer, made_by, place } => {
            format!("layer {layer} ({made_by}): {}", place_in_words(place))
        }
        Difference::Layers { one, other } => format!("it has {one} layers, built again {other}"),
        Difference::Config { pointer, one, other } => {
            let shown =
                |json: &str| if json.is_empty() { "nothing".to_owned() } else { json.to_owned() };
            format!("config {pointer}: stored {}, built again {}", shown(one), shown(other))
        }
        Difference::Manifest => "only its manifest: layers and config are the same".to_owned(),
    }
}

fn place_in_words(place: &Place) -> String {
    match place {
        Place::Absent => "a layer of another base".to_owned(),
        Place::Entry { path, aspect, one, other } => {
            format!("{path}: {aspect}: stored {one}, built again {other}")
        }
        Place::Content { path, byte, bytes: (one, other) } => {
            format!("{path}: byte {byte}: stored {one:#04x}, built again {other:#04x}")
        }
        Place::Archive { byte } => format!("byte {byte} of its archive; every entry is the same"),
    }
}
