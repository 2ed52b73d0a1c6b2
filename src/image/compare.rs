//! Two images held against each other: the first layer, entry and byte in which they differ.
//!
//! Reads what the store has; knows nothing of how either was made.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
};

use serde_json::Value;

use super::{
    Image, ImageError,
    assemble::{in_store, listing_of, plain_tar},
};
use crate::{
    layer::Listed,
    oci::DiffId,
    store::Store,
    tree::{Change, Entry, Kind, TreePath},
};

/// Bytes compared at once.
const CHUNK_BYTES: usize = 64 << 10;

/// The first thing in which one image differs from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Something in a layer.
    Layer {
        /// Number of the layer, from 1.
        layer: usize,
        /// What history says made it, in the first image.
        made_by: String,
        /// Where and how.
        place: Place,
    },
    /// One has more layers.
    Layers {
        /// How many the first has.
        one: usize,
        /// How many the second has.
        other: usize,
    },
    /// A value of the config.
    Config {
        /// JSON pointer of the value.
        pointer: String,
        /// JSON text in the first image; nothing when it is not there.
        one: String,
        /// The same of the second.
        other: String,
    },
    /// The layers and the config are the same and the manifest is not: it was written by other hands.
    Manifest,
}

/// Where in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The bytes of one of them are not in the store: it is a layer of a base that was never fetched.
    Absent,
    /// An entry that only one has, or with other metadata.
    Entry {
        /// Its path in the image.
        path: String,
        /// What of it: `mode`, `owner` …
        aspect: String,
        /// What the first has, in words.
        one: String,
        /// What the second has, in words.
        other: String,
    },
    /// The content of a file.
    Content {
        /// Its path in the image.
        path: String,
        /// Offset of the first byte that differs.
        byte: u64,
        /// The byte in the first image, the byte in the second.
        bytes: (u8, u8),
    },
    /// All entries are the same, and the archive around them is not.
    Archive {
        /// Offset of the first byte that differs in the plain tar.
        byte: u64,
    },
}

impl Place {
    fn path(&self) -> Option<&str> {
        match self {
            Self::Entry { path, .. } | Self::Content { path, .. } => Some(path),
            Self::Absent | Self::Archive { .. } => None,
        }
    }

    fn is_below(&self, folder: &Self) -> bool {
        let (Some(path), Some(folder)) = (self.path(), folder.path()) else { return false };
        path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// Where two images differ first, from the lowest layer up, or `None` for the same image.
///
/// # Errors
///
/// Any [`ImageError`].
pub fn first_difference(
    store: &Store,
    one: &Image,
    other: &Image,
) -> Result<Option<Difference>, ImageError> {
    if one.manifest.digest() == other.manifest.digest() {
        return Ok(None);
    }
    let layers = |image: &Image| image.config.value.rootfs.diff_ids.clone();
    let (a, b) = (layers(one), layers(other));
    for (index, (&first, &second)) in a.iter().zip(&b).enumerate() {
        if first != second {
            let (layer, made_by) = (index + 1, made_by(one, index));
            let place = in_layers(store, first, second)?;
            return Ok(Some(Difference::Layer { layer, made_by, place }));
        }
    }
    if a.len() != b.len() {
        return Ok(Some(Difference::Layers { one: a.len(), other: b.len() }));
    }
    let config = |image: &Image| serde_json::from_slice::<Value>(&image.config.raw);
    let (Ok(a), Ok(b)) = (config(one), config(other)) else {
        return Ok(Some(Difference::Manifest));
    };
    let found = in_values(&a, &b, String::new());
    Ok(Some(found.unwrap_or(Difference::Manifest)))
}

/// What history says of a layer, by its index.
fn made_by(image: &Image, index: usize) -> String {
    let with_layers = image.config.value.history.iter().filter(|entry| !entry.empty_layer);
    with_layers.map(|entry| entry.created_by.clone()).nth(index).unwrap_or_default()
}

fn in_layers(store: &Store, one: DiffId, other: DiffId) -> Result<Place, ImageError> {
    let (a, b) = match (plain_tar(store, one), plain_tar(store, other)) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(ImageError::Invalid { .. }), _) | (_, Err(ImageError::Invalid { .. })) => {
            return Ok(Place::Absent);
        }
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let (listed_a, listed_b) = (listing_of(store, one)?, listing_of(store, other)?);
    let (mut changes_a, mut changes_b) = (listed_a.iter().peekable(), listed_b.iter().peekable());
    let mut tars = (a, b);
    let mut folder: Option<Place> = None;
    while let Some(next) = [changes_a.peek(), changes_b.peek()].into_iter().flatten().map(key).min()
    {
        let pair = (
            changes_a.next_if(|listed| key(listed) == next),
            changes_b.next_if(|listed| key(listed) == next),
        );
        let pair = (pair.0.as_ref(), pair.1.as_ref());
        let found = at_path(&mut tars, pair).map_err(|source| in_store(store, source))?;
        match (found, &folder) {
            (None, _) => {}
            (Some(place), Some(folder)) if !place.is_below(folder) => return Ok(folder.clone()),
            // A folder may be listed for the sake of what is in it: that is the better answer.
            (Some(place), _) if is_folder_of_one(pair) => folder = Some(place),
            (Some(place), _) => return Ok(place),
        }
    }
    match folder {
        Some(folder) => Ok(folder),
        None => in_archives(&mut tars).map_err(|source| in_store(store, source)),
    }
}

/// How two changes at one path differ.
fn at_path(
    tars: &mut (File, File),
    (one, other): (Option<&Listed>, Option<&Listed>),
) -> io::Result<Option<Place>> {
    let path = one.or(other).map(|listed| shown(listed.change.path().as_bytes()));
    let path = path.expect("the path is of one of them");
    if let Some((aspect, one, other)) = in_changes(one, other) {
        return Ok(Some(Place::Entry { path, aspect, one, other }));
    }
    let both = one.zip(other).and_then(|(one, other)| Some((one, other, file_size(one)?)));
    let Some((one, other, size)) = both else { return Ok(None) };
    let found = in_files(tars, (one.offset, other.offset), size)?;
    Ok(found.map(|(byte, bytes)| Place::Content { path, byte, bytes }))
}

fn is_folder_of_one((one, other): (Option<&Listed>, Option<&Listed>)) -> bool {
    let is_folder = |listed: &Listed| match &listed.change {
        Change::Put(entry) => entry.is_directory(),
        Change::Whiteout(_) | Change::Opaque(_) => false,
    };
    one.is_none() != other.is_none() && one.or(other).is_some_and(is_folder)
}

fn in_archives(tars: &mut (File, File)) -> io::Result<Place> {
    let length = tars.0.metadata()?.len().min(tars.1.metadata()?.len());
    let found = in_files(tars, (0, 0), length)?;
    Ok(Place::Archive { byte: found.map_or(length, |(byte, _)| byte) })
}

/// Where a change stands in a listing: a whiteout and what replaces it share a path.
fn key(listed: &Listed) -> (TreePath, u8) {
    let rank = match listed.change {
        Change::Whiteout(_) => 0,
        Change::Put(_) => 1,
        Change::Opaque(_) => 2,
    };
    (listed.change.path().clone(), rank)
}

fn file_size(listed: &Listed) -> Option<u64> {
    match &listed.change {
        Change::Put(entry) if matches!(entry.kind, Kind::File { .. }) => Some(entry.size()),
        Change::Put(_) | Change::Whiteout(_) | Change::Opaque(_) => None,
    }
}

/// What of an entry differs, what the first has and what the second.
type Aspect = (String, String, String);

/// What differs but the content; of one of them there may be none.
fn in_changes(one: Option<&Listed>, other: Option<&Listed>) -> Option<Aspect> {
    match (one.map(|listed| &listed.change), other.map(|listed| &listed.change)) {
        (Some(Change::Put(a)), Some(Change::Put(b))) => in_entries(a, b),
        (Some(_), Some(_)) | (None, None) => None,
        (a, b) => Some(("entry".to_owned(), what(a), what(b))),
    }
}

fn what(change: Option<&Change>) -> String {
    match change {
        None => "nothing".to_owned(),
        Some(Change::Put(entry)) => kind(&entry.kind),
        Some(Change::Whiteout(_)) => "its removal".to_owned(),
        Some(Change::Opaque(_)) => "removal of all in it".to_owned(),
    }
}

fn in_entries(a: &Entry, b: &Entry) -> Option<Aspect> {
    let mode = |entry: &Entry| format!("{:04o}", entry.meta.mode);
    let owner = |entry: &Entry| format!("{}:{}", entry.meta.uid, entry.meta.gid);
    let mtime = |entry: &Entry| {
        let mtime = entry.meta.mtime;
        format!("{}.{:09}", mtime.seconds, mtime.nanos)
    };
    let kind_of = |entry: &Entry| kind(&entry.kind);
    let of_both = |aspect: &str, of: &dyn Fn(&Entry) -> String| (aspect.to_owned(), of(a), of(b));
    let mut aspects = [
        of_both("type", &kind_of),
        of_both("mode", &mode),
        of_both("owner", &owner),
        of_both("mtime", &mtime),
    ]
    .into_iter();
    if let Some(differing) = aspects.find(|(_, one, other)| one != other) {
        return Some(differing);
    }
    let (of_a, of_b) = (&a.meta.xattrs, &b.meta.xattrs);
    let value = |value: Option<&Vec<u8>>| match value {
        None => "nothing".to_owned(),
        Some(bytes) => format!("\"{}\"", bytes.escape_ascii()),
    };
    let mut names = of_a.keys().chain(of_b.keys());
    let name = names.find(|name| of_a.get(*name) != of_b.get(*name))?;
    let aspect = format!("extended attribute {}", name.escape_ascii());
    Some((aspect, value(of_a.get(name)), value(of_b.get(name))))
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Directory => "directory".to_owned(),
        Kind::File { size } => format!("file of {size} bytes"),
        Kind::Symlink { target } => format!("link to {}", target.escape_ascii()),
        Kind::Hardlink { target } => format!("hard link to {}", shown(target.as_bytes())),
        Kind::Fifo => "pipe".to_owned(),
        Kind::CharDevice { major, minor } => format!("character device {major}:{minor}"),
        Kind::BlockDevice { major, minor } => format!("block device {major}:{minor}"),
    }
}

/// A path of an image as people write it; bytes that are no text or would leave the line are escaped.
fn shown(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}

/// Offset and values of the first byte that differs between equally long pieces of two files.
fn in_files(
    files: &mut (File, File),
    offsets: (u64, u64),
    length: u64,
) -> io::Result<Option<(u64, (u8, u8))>> {
    files.0.seek(SeekFrom::Start(offsets.0))?;
    files.1.seek(SeekFrom::Start(offsets.1))?;
    let (mut a, mut b) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut at = 0;
    while at < length {
        let step = usize::try_from(length - at).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        files.0.read_exact(&mut a[..step])?;
        files.1.read_exact(&mut b[..step])?;
        if let Some(index) = a[..step].iter().zip(&b[..step]).position(|(a, b)| a != b) {
            return Ok(Some((at + index as u64, (a[index], b[index]))));
        }
        at += step as u64;
    }
    Ok(None)
}

/// The first value that differs, members in the order of their names.
fn in_values(a: &Value, b: &Value, pointer: String) -> Option<Difference> {
    let text = |value: Option<&Value>| value.map_or_else(String::new, ToString::to_string);
    let differing = |pointer: String, a: Option<&Value>, b: Option<&Value>| {
        Some(Difference::Config { pointer, one: text(a), other: text(b) })
    };
    let below = |name: &str, a: Option<&Value>, b: Option<&Value>| {
        let pointer = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        match (a, b) {
            (Some(a), Some(b)) => in_values(a, b, pointer),
            _ => differing(pointer, a, b),
        }
    };
    match (a, b) {
        (Value::Object(of_a), Value::Object(of_b)) => {
            let names: BTreeSet<_> = of_a.keys().chain(of_b.keys()).collect();
            names.into_iter().find_map(|name| below(name, of_a.get(name), of_b.get(name)))
        }
        (Value::Array(of_a), Value::Array(of_b)) => {
            let mut all = 0..of_a.len().max(of_b.len());
            all.find_map(|index| below(&index.to_string(), of_a.get(index), of_b.get(index)))
        }
        _ if a == b => None,
        _ => differing(pointer, Some(a), Some(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Meta;

    #[test]
    fn the_first_value_that_differs_is_named_by_its_pointer() {
        for (a, b, wanted) in [
            ("{}", "{}", None),
            (r#"{"a":[1,{"b":2}]}"#, r#"{"a":[1,{"b":3}]}"#, Some(("/a/1/b", "2", "3"))),
            (r#"{"a":[1]}"#, r#"{"a":[1,2]}"#, Some(("/a/1", "", "2"))),
            (r#"{"b":1,"a/~":1}"#, r#"{"b":2}"#, Some(("/a~1~0", "1", ""))),
            (r#"{"a":{}}"#, r#"{"a":[]}"#, Some(("/a", "{}", "[]"))),
        ] {
            let value = |text| serde_json::from_str::<Value>(text).unwrap();
            let wanted = wanted.map(|(pointer, one, other): (&str, &str, &str)| {
                let (one, other) = (one.to_owned(), other.to_owned());
                Difference::Config { pointer: pointer.to_owned(), one, other }
            });
            assert_eq!(in_values(&value(a), &value(b), String::new()), wanted, "{a} {b}");
        }
    }

    #[test]
    fn every_fact_of_an_entry_counts() {
        let path = TreePath::parse("a/b\n").unwrap();
        let entry = |kind, meta| Entry { path: path.clone(), kind, meta };
        let file = |size| Kind::File { size };
        let plain = entry(file(1), Meta::default());
        let xattrs = [(b"user.x".to_vec(), b"1".to_vec())].into();
        let mtime = crate::tree::Timestamp { seconds: 0, nanos: 1 };
        for (other, aspect) in [
            (entry(file(2), Meta::default()), "type"),
            (entry(Kind::Fifo, Meta::default()), "type"),
            (entry(file(1), Meta { mode: 1, ..Meta::default() }), "mode"),
            (entry(file(1), Meta { gid: 1, ..Meta::default() }), "owner"),
            (entry(file(1), Meta { mtime, ..Meta::default() }), "mtime"),
            (entry(file(1), Meta { xattrs, ..Meta::default() }), "extended attribute user.x"),
        ] {
            let found = in_entries(&plain, &other).unwrap();
            assert_eq!(found.0, aspect);
            assert_ne!(found.1, found.2);
        }
        assert_eq!(in_entries(&plain, &plain.clone()), None);
        assert_eq!(shown(path.as_bytes()), "/a/b\\n");
    }
}
