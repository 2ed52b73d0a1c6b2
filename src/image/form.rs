//! What an output's options make of manifests, indexes and descriptors: annotations and media types.
//!
//! Knows the options as text, as docker has them; knows no files and no store.

use std::collections::BTreeMap;

use crate::{
    oci::{Annotations, Codec, Descriptor, Document, Index, Manifest, MediaType, Platform},
    plan::{OutputKind, OutputPlan},
};

/// The options of an output, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Form {
    annotations: Vec<Annotation>,
    types: Types,
    pub(super) level: Option<u32>,
    pub(super) layers: Layers,
}

/// Which layers are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Layers {
    /// Those that are not; others stay as they came.
    #[default]
    Plain,
    /// All that are compressed in another way, too (`force-compression`).
    All,
}

/// Whose media types are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Types {
    #[default]
    Oci,
    Docker,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Annotation {
    place: Place,
    platform: Option<Platform>,
    name: String,
    value: String,
}

/// Which document an annotation goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Manifest,
    Index,
    ManifestDescriptor,
    IndexDescriptor,
}

/// Finds what is wrong with an output's options before anything is built.
///
/// # Errors
///
/// One sentence without the place.
pub fn check_output(output: &OutputPlan) -> Result<(), String> {
    Form::read(output).map(drop)
}

impl Form {
    pub(super) fn read(output: &OutputPlan) -> Result<Self, String> {
        let mut form = Self::default();
        for (name, value) in &output.options {
            match name.as_str() {
                "oci-mediatypes" if truth(name, value)? => form.types = Types::Oci,
                "oci-mediatypes" => form.types = Types::Docker,
                "force-compression" if truth(name, value)? => form.layers = Layers::All,
                "force-compression" => form.layers = Layers::Plain,
                // Done to the image before it is written.
                "rewrite-timestamp" => drop(truth(name, value)?),
                "compression-level" => {
                    let level = value.parse();
                    form.level =
                        Some(level.map_err(|_| format!("{name} `{value}` is not a number"))?);
                }
                _ => form.annotations.push(Annotation::read(name, value)?),
            }
        }
        form.check(output)?;
        Ok(form)
    }

    fn check(&self, output: &OutputPlan) -> Result<(), String> {
        let is_image = matches!(output.kind, OutputKind::Oci | OutputKind::Docker);
        if let Some((name, _)) = output.options.first_key_value()
            && !is_image
            && output.options.keys().any(|name| name != "rewrite-timestamp")
        {
            return Err(format!("{name} is for images: type=oci or type=docker"));
        }
        if self.types == Types::Docker && !self.annotations.is_empty() {
            return Err("Docker's media types have no annotations; leave oci-mediatypes=false out"
                .to_owned());
        }
        if self.types == Types::Docker && output.compression == Some(Codec::Zstd) {
            return Err(
                "Docker's media types know no zstd; leave oci-mediatypes=false out".to_owned()
            );
        }
        Ok(())
    }

    /// The manifest as it is written; byte for byte the same when nothing changes.
    pub(super) fn manifest(
        &self,
        manifest: Document<Manifest>,
        platform: &Platform,
    ) -> Document<Manifest> {
        let mut value = manifest.value.clone();
        value.annotations.extend(self.annotations_of(Place::Manifest, Some(platform)));
        if self.types == Types::Docker {
            value.media_type = Some(MediaType::new(MediaType::DOCKER_MANIFEST));
            value.config.media_type = MediaType::new(MediaType::DOCKER_CONFIG);
            for layer in &mut value.layers {
                layer.media_type = match layer.media_type.codec() {
                    Some(Codec::Gzip) => MediaType::new(MediaType::DOCKER_LAYER_GZIP),
                    Some(Codec::Plain) => MediaType::new(MediaType::DOCKER_LAYER),
                    Some(Codec::Zstd) | None => continue,
                };
            }
        }
        if value == manifest.value { manifest } else { Document::write(value) }
    }

    /// The index as it is written, and whether anything of it is new.
    pub(super) fn index(&self, mut index: Index) -> Index {
        index.annotations.extend(self.annotations_of(Place::Index, None));
        if self.types == Types::Docker {
            index.media_type = Some(MediaType::new(MediaType::DOCKER_INDEX));
        }
        index
    }

    /// The descriptor that stands in an index, or in the layout's own.
    pub(super) fn describe(&self, target: &mut Descriptor, platform: Option<&Platform>) {
        let place = if target.media_type.is_index() {
            Place::IndexDescriptor
        } else {
            Place::ManifestDescriptor
        };
        target.annotations.extend(self.annotations_of(place, platform));
    }

    /// Whether something is said of an index, which an image for one platform has not got.
    pub(super) fn wants_index(&self) -> bool {
        let of_index =
            |one: &Annotation| matches!(one.place, Place::Index | Place::IndexDescriptor);
        self.annotations.iter().any(of_index)
    }

    fn annotations_of(&self, place: Place, platform: Option<&Platform>) -> Annotations {
        let fits = |one: &&Annotation| {
            one.place == place && one.platform.as_ref().is_none_or(|own| Some(own) == platform)
        };
        let (general, own): (Vec<_>, Vec<_>) =
            self.annotations.iter().filter(fits).partition(|one| one.platform.is_none());
        // What is said of one platform goes before what is said of all.
        let all = general.into_iter().chain(own);
        all.map(|one| (one.name.clone(), one.value.clone())).collect::<BTreeMap<_, _>>()
    }
}

impl Annotation {
    /// `annotation[-PLACE][[PLATFORM]].NAME`; source: `exporter/containerimage/exptypes` of BuildKit.
    fn read(option: &str, value: &str) -> Result<Self, String> {
        let unknown = || format!("the option {option} is unknown");
        let rest = option.strip_prefix("annotation").ok_or_else(unknown)?;
        let end = rest.find(['[', '.']).ok_or_else(unknown)?;
        let (place, rest) = rest.split_at(end);
        let place = match place {
            "" | "-manifest" => Place::Manifest,
            "-index" => Place::Index,
            "-manifest-descriptor" => Place::ManifestDescriptor,
            "-index-descriptor" => Place::IndexDescriptor,
            _ => return Err(unknown()),
        };
        let (platform, rest) = match rest.strip_prefix('[') {
            None => (None, rest),
            Some(rest) => {
                let (text, rest) = rest.split_once(']').ok_or_else(unknown)?;
                let platform = text.parse::<Platform>();
                let platform = platform.map_err(|error| format!("{option}: {error}"))?;
                (Some(platform.normalized()), rest)
            }
        };
        let name = rest.strip_prefix('.').filter(|name| !name.is_empty()).ok_or_else(unknown)?;
        if platform.is_some() && matches!(place, Place::Index | Place::IndexDescriptor) {
            return Err(format!("{option}: an index is for all platforms"));
        }
        Ok(Self { place, platform, name: name.to_owned(), value: value.to_owned() })
    }
}

fn truth(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{name} is true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(options: &[(&str, &str)]) -> OutputPlan {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        OutputPlan {
            kind: OutputKind::Oci,
            destination: None,
            archive: true,
            compression: None,
            options: options.collect(),
        }
    }

    #[test]
    fn an_annotation_goes_where_its_name_says() {
        let form = Form::read(&output(&[
            ("annotation.a", "1"),
            ("annotation[linux/arm64].a", "2"),
            ("annotation-manifest-descriptor.d.e", "3"),
            ("annotation-index.i", "4"),
        ]))
        .unwrap();
        let of = |place, platform: &str| {
            let found = form.annotations_of(place, Some(&platform.parse().unwrap()));
            found.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(of(Place::Manifest, "linux/amd64"), ["a=1"]);
        assert_eq!(of(Place::Manifest, "linux/arm64"), ["a=2"]);
        assert_eq!(of(Place::ManifestDescriptor, "linux/amd64"), ["d.e=3"]);
        assert_eq!(of(Place::Index, "linux/amd64"), ["i=4"]);
        assert!(form.wants_index());
    }

    #[test]
    fn what_an_option_cannot_mean_is_refused() {
        for (name, value) in [
            ("annotation", "x"),
            ("annotation.", "x"),
            ("annotation-x.k", "x"),
            ("annotation[linux/arm64.k", "x"),
            ("annotation-index[linux/arm64].k", "x"),
            ("oci-mediatypes", "maybe"),
            ("compression-level", "high"),
            ("store", "true"),
        ] {
            assert!(Form::read(&output(&[(name, value)])).is_err(), "{name}={value}");
        }
        let both = output(&[("annotation.k", "v"), ("oci-mediatypes", "false")]);
        assert!(Form::read(&both).is_err());
    }
}
