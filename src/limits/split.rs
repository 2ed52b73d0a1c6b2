//! What is asked of a COPY that becomes several layers: how large they are, how many, what changes often.
//!
//! Values and how they are written. Where a tree is cut is the business of whoever has the files.

use std::fmt;

use serde::Serialize;

use super::{bytes, within};

/// About what a layer holds when nobody says otherwise: a few seconds of an upload, and few layers.
const SIZE_BYTES_DEFAULT: u64 = 16 << 20;

/// A layer that holds less is not worth its request.
const SIZE_BYTES_MIN: u64 = 4 << 10;

/// Most layers of one COPY when nobody says otherwise: three of them leave room for a base.
const LAYERS_MAX_DEFAULT: usize = 32;

/// Most layers of an image that Docker takes (`maxLayerDepth` 125, and two of its own).
pub const IMAGE_LAYERS_MAX: usize = 125;

/// How a large COPY or ADD is made into several layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Split {
    /// About what a layer holds, in bytes of its archive: most have between half of it and twice.
    pub size_bytes: u64,
    /// Most layers of one instruction.
    pub layers_max: usize,
    /// Patterns of paths in the image, as in an ignore file. Each group has layers of its own.
    pub often: Vec<Vec<String>>,
}

impl Default for Split {
    fn default() -> Self {
        let often = Vec::new();
        Self { size_bytes: SIZE_BYTES_DEFAULT, layers_max: LAYERS_MAX_DEFAULT, often }
    }
}

impl Split {
    /// Sets `size` or `most` from a text.
    ///
    /// # Errors
    ///
    /// A sentence about the text.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        match name {
            "size" => {
                let size = bytes(text)?;
                if size < SIZE_BYTES_MIN {
                    return Err(format!("`{text}` is too little for a layer: 4k at least"));
                }
                self.size_bytes = size;
            }
            "most" => {
                let most = within(text, 2, IMAGE_LAYERS_MAX as u64)?;
                self.layers_max = usize::try_from(most).expect("at most 125");
            }
            _ => return Err(format!("`{name}` is none of size, most, often")),
        }
        Ok(())
    }

    /// Reads `size=8m,most=20,often=PATTERN`, each part where it is wanted; every `often` is a group of its own.
    ///
    /// # Errors
    ///
    /// A sentence about the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut split = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("often", "")) | None => {
                    return Err(format!("`{part}` is none of size=…, most=…, often=PATTERN"));
                }
                Some(("often", pattern)) => split.often.push(vec![pattern.to_owned()]),
                Some((name, value)) => split.set(name, value)?,
            }
        }
        Ok(split)
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, at most {}", self.size_bytes, self.layers_max)?;
        for group in &self.often {
            write!(f, ", often {group:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_read_as_it_is_written() {
        let often = |groups: &[&str]| -> Vec<Vec<String>> {
            groups.iter().map(|pattern| vec![(*pattern).to_owned()]).collect()
        };
        let usual = Split::default();
        for (text, wanted) in [
            ("", usual.clone()),
            ("size=8m", Split { size_bytes: 8 << 20, ..usual.clone() }),
            ("most=2,size=4k", Split { size_bytes: 4 << 10, layers_max: 2, ..usual.clone() }),
            (
                "often=app/src,often=**/*.js",
                Split { often: often(&["app/src", "**/*.js"]), ..usual },
            ),
        ] {
            assert_eq!(Split::parse(text), Ok(wanted), "{text}");
        }
        for text in ["size=1k", "size=x", "most=1", "most=126", "often=", "often", "sizes=1m"] {
            assert!(Split::parse(text).is_err(), "{text}");
        }
    }
}
