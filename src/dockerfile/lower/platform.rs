//! Platforms as words of a Dockerfile: containerd's complaints, and names with the OS version.

use crate::dockerfile::quote::quoted;
use crate::oci::{ARCHITECTURES, Platform};

const COMPONENT: &str = "^[A-Za-z0-9_.-]+$";
const COMPONENTS_MAX: usize = 3;
/// Operating systems that containerd knows on their own, without an architecture.
const SYSTEMS: [&str; 5] = ["linux", "windows", "darwin", "macos", "freebsd"];

/// Reads a platform; the error is containerd's.
pub(super) fn parse(text: &str) -> Result<Platform, String> {
    let shown = quoted(text);
    let parts: Vec<&str> = text.splitn(COMPONENTS_MAX + 1, '/').collect();
    for (index, part) in parts.iter().enumerate() {
        let name = if index == 0 { part.split_once('(').map_or(*part, |(os, _)| os) } else { part };
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.is_empty() || !name.bytes().all(good) {
            return Err(format!(
                "{} is an invalid component of {shown}: platform specifier component must match {}: invalid argument",
                quoted(part),
                quoted(COMPONENT)
            ));
        }
    }
    if parts.len() > COMPONENTS_MAX {
        return Err(format!("{shown}: cannot parse platform specifier: invalid argument"));
    }
    let knows = |one: &str| SYSTEMS.contains(&one) || ARCHITECTURES.contains(&one);
    if let [one] = parts[..]
        && !knows(&one.to_ascii_lowercase())
    {
        return Err(format!("{shown}: unknown operating system or architecture: invalid argument"));
    }
    text.parse::<Platform>()
        .map_err(|_| format!("{shown}: cannot parse platform specifier: invalid argument"))
}

/// `os(version)/architecture/variant`.
pub(super) fn with_version(platform: &Platform) -> String {
    match &platform.os_version {
        Some(version) => platform.to_string().replacen('/', &format!("({version})/"), 1),
        None => platform.to_string(),
    }
}
