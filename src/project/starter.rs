//! The first project file of a folder, from the Dockerfiles found in it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use crate::oci::Reference;

/// Text of a project file that builds `dockerfiles` (paths from the project's folder, `/` between).
///
/// `folder` is the name of the project's folder: the image of a Dockerfile at the top is called so.
#[must_use]
pub fn starter(folder: &str, dockerfiles: &[&Path]) -> String {
    let mut text = String::from(
        "/- kdl-version 2\n// What is built here: `idpbuilder run`, `idpbuilder plan`, `idpbuilder watch`.\n\n",
    );
    let mut taken = BTreeSet::new();
    for path in dockerfiles {
        let name = unused_name(&image_name(folder, path), &mut taken);
        write_image(&mut text, &name, path);
    }
    if dockerfiles.is_empty() {
        text.push_str("image ");
        text.push_str(&quoted(&image_name(folder, Path::new("Dockerfile"))));
        text.push_str(" {\n    dockerfile inline=#\"\"\"\n        FROM scratch\n        COPY . /\n        \"\"\"#\n    tags dev\n}\n");
    }
    text
}

fn write_image(text: &mut String, name: &str, path: &Path) {
    let file = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let context = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let name = quoted(name);
    writeln!(text, "image {name} {{").expect("a string takes all text");
    if let Some(context) = context {
        let context = escaped(&context.to_string_lossy());
        writeln!(text, "    context {context}").expect("a string takes all text");
    }
    if file != "Dockerfile" {
        let path = escaped(&path.to_string_lossy());
        writeln!(text, "    dockerfile {path}").expect("a string takes all text");
    }
    text.push_str("    tags dev\n}\n\n");
}

/// `services/api/Dockerfile` is `api`; `docker/base.Dockerfile` and `Dockerfile.base` are `base`.
fn image_name(folder: &str, path: &Path) -> String {
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let part = file
        .strip_prefix("Dockerfile.")
        .or_else(|| file.strip_suffix(".Dockerfile"))
        .map(str::to_owned)
        .or_else(|| {
            let parent = path.parent()?.file_name()?;
            Some(parent.to_string_lossy().into_owned())
        });
    let name = clean(part.as_deref().unwrap_or(folder));
    let usable = format!("h.x/{name}").parse::<Reference>().is_ok();
    if usable && !matches!(name.as_str(), "all" | "scratch") { name } else { "app".to_owned() }
}

fn clean(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c.to_ascii_lowercase());
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.trim_end_matches('-').to_owned()
}

fn unused_name(wanted: &str, taken: &mut BTreeSet<String>) -> String {
    let mut name = wanted.to_owned();
    let mut number = 2;
    while !taken.insert(name.clone()) {
        name = format!("{wanted}-{number}");
        number += 1;
    }
    name
}

/// Bare where KDL allows it.
fn quoted(name: &str) -> String {
    let bare = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && !matches!(name, "true" | "false" | "null" | "inf" | "nan");
    if bare { name.to_owned() } else { format!("\"{name}\"") }
}

fn escaped(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '{' => quoted.push_str("{{"),
            '}' => quoted.push_str("}}"),
            c if c.is_control() => {
                write!(quoted, "\\u{{{:x}}}", u32::from(c)).expect("a string takes all text");
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
