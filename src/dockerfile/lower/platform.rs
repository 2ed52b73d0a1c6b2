//! Platforms as words of a Dockerfile: containerd's complaints, and names with the OS version.

use crate::dockerfile::quote::quoted;
use crate::oci::Platform;

const COMPONENT: &str = "^[A-Za-z0-9_.-]+$";
const COMPONENTS_MAX: usize = 3;
/// What containerd knows on its own, without an operating system in front.
const KNOWN: &[&str] = &[
    "linux",
    "windows",
    "darwin",
    "macos",
    "freebsd",
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
    "i386",
    "i686",
    "x86_64",
    "x86-64",
    "aarch64",
    "armhf",
    "armel",
];

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
    if let [one] = parts[..]
        && !KNOWN.contains(&one.to_ascii_lowercase().as_str())
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
