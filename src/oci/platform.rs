//! Platforms: operating system, architecture and variant, in containerd's normal form.
//!
//! Source: <https://github.com/containerd/platforms> (aliases and normalisation).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Go's names of architectures and their aliases (`go tool dist list`, containerd's `platforms/database.go`).
pub const ARCHITECTURES: [&str; 31] = [
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

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// Go's name of the architecture, such as `amd64`.
    pub architecture: String,
    /// Go's name of the operating system, such as `linux`.
    pub os: String,
    /// Version of the operating system (Windows only).
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Variant of the architecture, such as `v7`; `None` for the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a string is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not a platform; expected OS/ARCH[/VARIANT], such as linux/amd64")]
pub struct ParsePlatformError(String);

impl Platform {
    /// The platform of this binary, which runs on Linux only.
    #[must_use]
    pub fn host() -> Self {
        Self::linux(std::env::consts::ARCH, None).normalized()
    }

    /// `linux/ARCH[/VARIANT]`, as given.
    #[must_use]
    pub fn linux(architecture: &str, variant: Option<&str>) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            os_version: None,
            variant: variant.map(str::to_owned),
        }
    }

    /// The same platform with aliases resolved: `x86_64` is `amd64`, `arm64/v8` is `arm64`.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        self.os = self.os.to_ascii_lowercase();
        if self.os == "macos" {
            "darwin".clone_into(&mut self.os);
        }
        let variant = self.variant.take().map(|variant| variant.to_ascii_lowercase());
        let typed = self.architecture.to_ascii_lowercase();
        let (architecture, variant) = match (typed.as_str(), variant.as_deref()) {
            ("i386" | "i686", _) => ("386", None),
            ("x86_64" | "x86-64" | "amd64", Some("v1") | None) => ("amd64", None),
            ("x86_64" | "x86-64", Some(other)) => ("amd64", Some(other)),
            ("aarch64" | "arm64", Some("8" | "v8") | None) => ("arm64", None),
            ("aarch64", Some(other)) => ("arm64", Some(other)),
            ("armhf", _) => ("arm", Some("v7")),
            ("armel", _) => ("arm", Some("v6")),
            ("arm", Some("7") | None) => ("arm", Some("v7")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            (architecture, variant) => (architecture, variant),
        };
        let (architecture, variant) = (architecture.to_owned(), variant.map(str::to_owned));
        Self { architecture, variant, ..self }
    }

    /// Whether anybody makes images for this architecture.
    #[must_use]
    pub fn is_known(&self) -> bool {
        ARCHITECTURES.contains(&self.architecture.as_str())
    }

    /// Whether an image for `self` is one that `wanted` asks for (both are normalised first).
    #[must_use]
    pub fn satisfies(&self, wanted: &Self) -> bool {
        let (have, want) = (self.clone().normalized(), wanted.clone().normalized());
        have.os == want.os && have.architecture == want.architecture && have.variant == want.variant
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let fail = || ParsePlatformError(s.to_owned());
        let parts: Vec<&str> = s.split('/').collect();
        let good = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.()".contains(&b))
        };
        if !parts.iter().all(good) {
            return Err(fail());
        }
        let (os, architecture, variant) = match parts[..] {
            [one @ ("linux" | "windows" | "darwin" | "freebsd")] => {
                (one, std::env::consts::ARCH, None)
            }
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(fail()),
        };
        let (os, os_version) = match os.split_once('(') {
            Some((os, rest)) => (os, Some(rest.strip_suffix(')').ok_or_else(fail)?.to_owned())),
            None => (os, None),
        };
        let platform =
            Self { architecture: architecture.to_owned(), os: os.to_owned(), os_version, variant };
        Ok(platform.normalized())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_have_one_spelling() {
        for (typed, meant) in [
            ("linux/amd64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
        ] {
            assert_eq!(typed.parse::<Platform>().map(|p| p.to_string()), Ok(meant.to_owned()));
        }
        for typed in ["", "/", "a/b/c/d", "linux/"] {
            assert!(typed.parse::<Platform>().is_err(), "{typed}");
        }
    }
}
