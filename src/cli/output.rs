//! `--output`: a form, a place and options, as docker has them.

use std::{collections::BTreeMap, path::Path};

use idpbuilder::{
    image,
    oci::Codec,
    plan::{OutputKind, OutputPlan},
};

use super::{
    failure::{CONFIGURATION, CliError},
    setup,
};

/// `type=oci,dest=PATH,tar=false,compression=zstd`, or just a folder for `local`.
pub(super) fn parse(text: &str) -> Result<OutputPlan, CliError> {
    let invalid = |reason: &str| {
        CliError::new(CONFIGURATION, format!("--output {text}: {reason}"))
            .with_help("for example: --output type=oci,dest=image.tar")
    };
    let mut options = BTreeMap::new();
    if !text.contains('=') {
        options.insert("type".to_owned(), "local".to_owned());
        options.insert("dest".to_owned(), text.to_owned());
    }
    for option in text.split(',').filter(|_| text.contains('=')) {
        let (name, value) = option.split_once('=').ok_or_else(|| invalid("expected NAME=VALUE"))?;
        options.insert(name.trim().to_owned(), value.to_owned());
    }
    let kind = match options.remove("type").as_deref() {
        Some("oci") => OutputKind::Oci,
        Some("docker") => OutputKind::Docker,
        Some("tar") => OutputKind::Tar,
        Some("local") => OutputKind::Local,
        _ => return Err(invalid("type is one of oci, docker, tar, local")),
    };
    let archive = match options.remove("tar").as_deref() {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => return Err(invalid("tar is true or false")),
    };
    let compression = match options.remove("compression").as_deref() {
        None => None,
        Some("uncompressed") => Some(Codec::Plain),
        Some("gzip") => Some(Codec::Gzip),
        Some("zstd") => Some(Codec::Zstd),
        Some(_) => return Err(invalid("compression is one of uncompressed, gzip, zstd")),
    };
    let destination = match options.remove("dest").as_deref() {
        None => return Err(invalid("dest=PATH is missing")),
        Some("-") => None,
        Some(path) => Some(setup::absolute(Path::new(path))?),
    };
    let output = OutputPlan { kind, destination, archive, compression, options };
    image::check_output(&output).map_err(|reason| invalid(&reason))?;
    Ok(output)
}
