//! Base images of a build: resolved as lowering asks for their configs, fetched when something looks at
//! their layers. Knows names and places in the Dockerfile; knows no ops.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::{BuildError, BuildFailure, BuildRequest, NamedSource, Workshop};
use crate::{
    dockerfile::{
        self, ContextKind, Dockerfile, DockerfileError, ImageRequest, LowerOptions, Lowered,
        Lowering,
    },
    graph::Place,
    image::{self, Image, ImageError},
    oci::{ImageConfig, Platform, Reference},
};

/// Base images by request, resolved as lowering asks for them.
pub(super) struct Bases<'a> {
    workshop: &'a Workshop,
    request: &'a BuildRequest,
    images: Mutex<HashMap<ImageRequest, Arc<Base>>>,
    unbuilt: Unbuilt,
}

/// What becomes of an image of the plan that is not built yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unbuilt {
    Refuse,
    /// An empty config stands for it: enough to see what else is taken.
    Imagine,
}

/// [`dockerfile::lower`] or [`dockerfile::lower_for_check`].
pub(super) type Lower = fn(
    &Dockerfile,
    &LowerOptions,
    &HashMap<ImageRequest, ImageConfig>,
) -> Result<Lowering, DockerfileError>;

/// A base image; its layers are fetched when something looks at them.
pub(super) struct Base {
    pub(super) image: Image,
    name: String,
    fetched: Mutex<Fetched>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fetched {
    No,
    Yes,
}

impl<'a> Bases<'a> {
    pub(super) fn new(workshop: &'a Workshop, request: &'a BuildRequest) -> Self {
        Self { workshop, request, images: Mutex::default(), unbuilt: Unbuilt::Refuse }
    }

    /// With an empty config for each image of the plan that is not built yet.
    pub(super) fn with_placeholders(self) -> Self {
        Self { unbuilt: Unbuilt::Imagine, ..self }
    }

    fn imagine(&self, wanted: &ImageRequest) -> Option<ImageConfig> {
        let is_unbuilt = matches!(
            self.request.named.get(&wanted.name),
            Some(NamedSource::Images(images)) if images.is_empty()
        );
        (self.unbuilt == Unbuilt::Imagine && is_unbuilt).then(|| ImageConfig {
            architecture: wanted.platform.architecture.clone(),
            os: wanted.platform.os.clone(),
            ..ImageConfig::default()
        })
    }

    pub(super) fn lower(
        &self,
        parsed: &Dockerfile,
        platform: &Platform,
        lower: Lower,
    ) -> Result<Box<Lowered>, BuildFailure> {
        let kind_of = |source: &NamedSource| match source {
            NamedSource::Files(_) => ContextKind::Files,
            NamedSource::Scratch => ContextKind::Scratch,
            NamedSource::Images(_) | NamedSource::Layout(_) | NamedSource::Reference(_) => {
                ContextKind::Image
            }
        };
        let request = self.request;
        let named = request.named.iter().map(|(name, source)| (name.clone(), kind_of(source)));
        let mut args = request.args.clone();
        if let Some(epoch) = request.epoch {
            args.entry("SOURCE_DATE_EPOCH".to_owned()).or_insert_with(|| epoch.to_string());
        }
        let options = LowerOptions {
            target: request.target.clone(),
            args,
            labels: request.labels.clone(),
            platform: platform.clone(),
            build_platform: Platform::host(),
            named_contexts: named.collect(),
            ignore: request
                .context
                .as_ref()
                .and_then(|context| context.ignore().map(str::to_owned)),
        };
        let mut configs: HashMap<ImageRequest, ImageConfig> = HashMap::new();
        loop {
            let lowering = lower(parsed, &options, &configs);
            let missing =
                match lowering.map_err(|error| BuildFailure::new(request, None, error.into()))? {
                    Lowering::Done(lowered) => return Ok(lowered),
                    Lowering::Needs(missing) => missing,
                };
            for wanted in missing {
                if let Some(config) = self.imagine(&wanted) {
                    configs.insert(wanted, config);
                    continue;
                }
                let base = self.resolve(&wanted);
                let base = base.map_err(|error| {
                    let asking = dockerfile::who_asks(parsed, &options, &wanted);
                    unresolved(request, asking, error)
                })?;
                configs.insert(wanted.clone(), base.image.config.value.clone());
                self.lock().insert(wanted, Arc::new(base));
            }
        }
    }

    fn resolve(&self, wanted: &ImageRequest) -> Result<Base, BuildError> {
        let reference = match self.request.named.get(&wanted.name) {
            Some(NamedSource::Images(images)) => return choose(images, wanted),
            Some(NamedSource::Layout(layout)) => {
                return choose(layout.images(&self.workshop.store)?, wanted);
            }
            Some(NamedSource::Reference(reference)) => reference.clone(),
            Some(NamedSource::Files(_) | NamedSource::Scratch) | None => parse_name(&wanted.name)?,
        };
        let image = self.workshop.base(&reference, &wanted.platform, self.request.refresh)?;
        Ok(Base { image, name: reference.familiar(), fetched: Mutex::new(Fetched::No) })
    }

    pub(super) fn get(&self, wanted: &ImageRequest) -> Arc<Base> {
        Arc::clone(&self.lock()[wanted])
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ImageRequest, Arc<Base>>> {
        self.images.lock().expect("no holder panics")
    }
}

/// The image that a Dockerfile names.
pub(super) fn parse_name(name: &str) -> Result<Reference, BuildError> {
    name.parse().map_err(|error| {
        let (name, reason) = (name.to_owned(), format!("{error}"));
        BuildError::BaseName { name, reason }
    })
}

/// The variant of a named image that runs on what is wanted; a single one is taken as it is.
fn choose(images: &[(Platform, Image)], wanted: &ImageRequest) -> Result<Base, BuildError> {
    let fitting = images.iter().find(|(platform, _)| platform.satisfies(&wanted.platform));
    let only = if let [only] = images { Some(only) } else { None };
    let Some((_, image)) = fitting.or(only) else {
        let has: Vec<String> = images.iter().map(|(platform, _)| platform.to_string()).collect();
        return Err(BuildError::Image(ImageError::Platform {
            image: wanted.name.clone(),
            wanted: wanted.platform.to_string(),
            has: has.join(", "),
        }));
    };
    let (image, name) = (image.clone(), wanted.name.clone());
    Ok(Base { image, name, fetched: Mutex::new(Fetched::No) })
}

impl Base {
    /// Gets the layers into the store, once.
    pub(super) fn fetch(&self, workshop: &Workshop) -> Result<(), BuildError> {
        let mut fetched = self.fetched.lock().expect("no holder panics");
        if *fetched == Fetched::No {
            let Workshop { store, client, emit, .. } = workshop;
            workshop.wait(image::fetch_layers(store, client, &self.image, &self.name, emit))?;
            *fetched = Fetched::Yes;
        }
        Ok(())
    }
}

/// A failure at the instruction that asks for an image, with the stage that may have been meant.
fn unresolved(
    request: &BuildRequest,
    asking: Option<dockerfile::Asking>,
    error: BuildError,
) -> BuildFailure {
    let Some(dockerfile::Asking { location, near_stage }) = asking else {
        return BuildFailure::new(request, None, error);
    };
    let title = request.dockerfile.text.get(location.span.clone()).unwrap_or_default();
    let place = Place {
        title: title.to_owned(),
        span: location.span,
        lines: location.lines,
        ..Place::default()
    };
    let error = match near_stage {
        Some(near) => BuildError::NoStage { near, source: Box::new(error) },
        None => error,
    };
    BuildFailure::new(request, Some(place), error)
}
