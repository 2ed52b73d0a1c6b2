//! The listing of a layer: look-ups by path, and its compact binary form (`schema/listing.md`).
//!
//! Knows nothing of where listings are kept.

use super::{LayerError, Listed, Listing};
use crate::{
    oci::Digest,
    tree::{Change, Entry, Kind, Meta, Timestamp, TreePath, Xattrs},
};

/// First bytes of an encoded listing; the last one is the version.
const MAGIC: &[u8; 8] = b"IDPLIST\x01";

/// Bytes of the SHA-256 of everything before that end an encoded listing.
const CHECKSUM_BYTES: usize = 8;

impl Listing {
    /// The bytes of the listing as the store keeps it (format in `schema/listing.md`).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        put_number(&mut bytes, self.changes.len() as u64);
        let mut before: &[u8] = b"";
        for listed in &self.changes {
            let path = listed.change.path().as_bytes();
            let shared = before.iter().zip(path).take_while(|(left, right)| left == right).count();
            bytes.push(tag(&listed.change));
            put_number(&mut bytes, shared as u64);
            put_bytes(&mut bytes, &path[shared..]);
            if let Change::Put(entry) = &listed.change {
                put_entry(&mut bytes, entry, listed.offset);
            }
            before = path;
        }
        let checksum = Digest::of(&bytes);
        bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM_BYTES]);
        bytes
    }

    /// Reads what [`Listing::encode`] wrote.
    ///
    /// # Errors
    ///
    /// When the bytes are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, LayerError> {
        decode(bytes).map_err(|reason| LayerError::entry("listing", reason))
    }

    /// The last thing listed for exactly this path: `Put`, or else `Whiteout`. O(log n).
    #[must_use]
    pub fn at(&self, path: &TreePath) -> Option<&Listed> {
        let mut found = self.exactly(path).iter();
        found.rfind(|listed| !matches!(listed.change, Change::Opaque(_)))
    }

    /// Whether the directory is marked opaque by this layer, or taken away and made anew by it.
    #[must_use]
    pub fn is_opaque(&self, directory: &TreePath) -> bool {
        let mut found = self.exactly(directory).iter();
        found.any(|listed| !matches!(listed.change, Change::Put(_)))
    }

    /// What is listed strictly below a directory, in path order.
    pub fn below(&self, directory: &TreePath) -> impl Iterator<Item = &Listed> {
        let start = self.changes.partition_point(|listed| listed.change.path() <= directory);
        let below = self.changes[start..].iter();
        below.take_while(move |listed| listed.change.path().starts_with(directory))
    }

    fn exactly(&self, path: &TreePath) -> &[Listed] {
        let start = self.changes.partition_point(|listed| listed.change.path() < path);
        let rest = &self.changes[start..];
        let count = rest.iter().take_while(|listed| listed.change.path() == path).count();
        &rest[..count]
    }
}

fn tag(change: &Change) -> u8 {
    match change {
        Change::Whiteout(_) => 0,
        Change::Opaque(_) => 1,
        Change::Put(entry) => match entry.kind {
            Kind::File { .. } => 2,
            Kind::Directory => 3,
            Kind::Symlink { .. } => 4,
            Kind::Hardlink { .. } => 5,
            Kind::Fifo => 6,
            Kind::CharDevice { .. } => 7,
            Kind::BlockDevice { .. } => 8,
        },
    }
}

fn put_entry(bytes: &mut Vec<u8>, entry: &Entry, offset: u64) {
    let meta = &entry.meta;
    put_number(bytes, meta.mode.into());
    put_number(bytes, meta.uid.into());
    put_number(bytes, meta.gid.into());
    put_number(bytes, zigzag(meta.mtime.seconds));
    put_number(bytes, meta.mtime.nanos.into());
    put_number(bytes, meta.xattrs.len() as u64);
    for (name, value) in &meta.xattrs {
        put_bytes(bytes, name);
        put_bytes(bytes, value);
    }
    match &entry.kind {
        Kind::File { size } => {
            put_number(bytes, *size);
            put_number(bytes, offset);
        }
        Kind::Symlink { target } => put_bytes(bytes, target),
        Kind::Hardlink { target } => put_bytes(bytes, target.as_bytes()),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            put_number(bytes, (*major).into());
            put_number(bytes, (*minor).into());
        }
        Kind::Directory | Kind::Fifo => {}
    }
}

fn decode(bytes: &[u8]) -> Result<Listing, &'static str> {
    let end = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or("is too short")?;
    let (body, checksum) = bytes.split_at(end);
    let rest = body.strip_prefix(MAGIC).ok_or("is of another version")?;
    if Digest::of(body).as_bytes()[..CHECKSUM_BYTES] != *checksum {
        return Err("is damaged: its check sum is wrong");
    }
    decode_changes(&mut Cursor(rest)).ok_or("is damaged")
}

fn decode_changes(cursor: &mut Cursor<'_>) -> Option<Listing> {
    let count = cursor.number()?;
    // Four bytes is the shortest change, so a false count cannot ask for much memory.
    let capacity = usize::try_from(count).ok()?.min(cursor.0.len() / 4);
    let mut changes: Vec<Listed> = Vec::with_capacity(capacity);
    let mut path = Vec::new();
    for _ in 0..count {
        let tag = cursor.byte()?;
        path.truncate(usize::try_from(cursor.number()?).ok()?);
        path.extend_from_slice(cursor.bytes()?);
        let place = TreePath::parse(&path).ok()?;
        changes.push(match tag {
            0 => Listed { change: Change::Whiteout(place), offset: 0 },
            1 => Listed { change: Change::Opaque(place), offset: 0 },
            tag => decode_entry(cursor, tag, place)?,
        });
    }
    cursor.0.is_empty().then_some(Listing { changes })
}

fn decode_entry(cursor: &mut Cursor<'_>, tag: u8, path: TreePath) -> Option<Listed> {
    let (mode, uid, gid) = (cursor.number32()?, cursor.number32()?, cursor.number32()?);
    let mtime = Timestamp { seconds: unzigzag(cursor.number()?), nanos: cursor.number32()? };
    let mut xattrs = Xattrs::new();
    for _ in 0..cursor.number()? {
        xattrs.insert(cursor.bytes()?.to_vec(), cursor.bytes()?.to_vec());
    }
    let mut offset = 0;
    let kind = match tag {
        2 => {
            let size = cursor.number()?;
            offset = cursor.number()?;
            Kind::File { size }
        }
        3 => Kind::Directory,
        4 => Kind::Symlink { target: cursor.bytes()?.to_vec() },
        5 => Kind::Hardlink { target: TreePath::parse(cursor.bytes()?).ok()? },
        6 => Kind::Fifo,
        7 => Kind::CharDevice { major: cursor.number32()?, minor: cursor.number32()? },
        8 => Kind::BlockDevice { major: cursor.number32()?, minor: cursor.number32()? },
        _ => return None,
    };
    let meta = Meta { mode, uid, gid, mtime, xattrs };
    Some(Listed { change: Change::Put(Entry { path, kind, meta }), offset })
}

/// What is left to read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return None;
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn number32(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }
}

/// Seven bits a byte, lowest first; the top bit says that more follow (LEB128).
fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn put_bytes(bytes: &mut Vec<u8>, text: &[u8]) {
    put_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text);
}

fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}
