//! Entries as few bytes: numbers that grow with their value, paths by what is new in them.
//!
//! The forms are those of `schema/listing.md`. Knows neither what is packed together nor where it is kept.

use super::{Kind, Meta, Timestamp, TreePath, Xattrs};

/// Seven bits a byte, lowest first; the top bit says that more follow (LEB128).
pub fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// As [`put_number`], small whatever the sign.
pub fn put_signed(bytes: &mut Vec<u8>, number: i64) {
    put_number(bytes, (number << 1 ^ number >> 63).cast_unsigned());
}

/// A length and so many bytes.
pub fn put_bytes(bytes: &mut Vec<u8>, text: &[u8]) {
    put_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text);
}

/// A path by how many bytes it begins with of the one before, and the rest.
pub fn put_path(bytes: &mut Vec<u8>, before: &[u8], path: &TreePath) {
    let path = path.as_bytes();
    let shared = before.iter().zip(path).take_while(|(left, right)| left == right).count();
    put_number(bytes, shared as u64);
    put_bytes(bytes, &path[shared..]);
}

/// Number of a type.
#[must_use]
pub fn tag(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 2,
        Kind::Directory => 3,
        Kind::Symlink { .. } => 4,
        Kind::Hardlink { .. } => 5,
        Kind::Fifo => 6,
        Kind::CharDevice { .. } => 7,
        Kind::BlockDevice { .. } => 8,
    }
}

/// All of an entry but its path and the number of its type, which come before.
pub fn put_facts(bytes: &mut Vec<u8>, kind: &Kind, meta: &Meta) {
    for number in [meta.mode, meta.uid, meta.gid] {
        put_number(bytes, number.into());
    }
    put_signed(bytes, meta.mtime.seconds);
    put_number(bytes, meta.mtime.nanos.into());
    put_number(bytes, meta.xattrs.len() as u64);
    for (name, value) in &meta.xattrs {
        put_bytes(bytes, name);
        put_bytes(bytes, value);
    }
    match kind {
        Kind::File { size } => put_number(bytes, *size),
        Kind::Symlink { target } => put_bytes(bytes, target),
        Kind::Hardlink { target } => put_bytes(bytes, target.as_bytes()),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            put_number(bytes, (*major).into());
            put_number(bytes, (*minor).into());
        }
        Kind::Directory | Kind::Fifo => {}
    }
}

/// What is left to read.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a>(pub &'a [u8]);

impl<'a> Packed<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// What [`put_number`] wrote.
    pub fn number(&mut self) -> Option<u64> {
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

    /// As [`Packed::number`], of 32 bits.
    pub fn number32(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    /// What [`put_signed`] wrote.
    pub fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1).cast_signed() ^ -((number & 1).cast_signed()))
    }

    /// What [`put_bytes`] wrote.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Makes the path before into what [`put_path`] wrote.
    pub fn path(&mut self, path: &mut TreePath) -> Option<()> {
        let shared = usize::try_from(self.number()?).ok()?;
        path.change_end(shared, self.bytes()?)
    }

    /// What [`put_facts`] wrote, of a type by its number.
    pub fn facts(&mut self, tag: u8) -> Option<(Kind, Meta)> {
        let (mode, uid, gid) = (self.number32()?, self.number32()?, self.number32()?);
        let mtime = Timestamp { seconds: self.signed()?, nanos: self.number32()? };
        let mut xattrs = Xattrs::new();
        for _ in 0..self.number()? {
            xattrs.insert(self.bytes()?.to_vec(), self.bytes()?.to_vec());
        }
        let kind = match tag {
            2 => Kind::File { size: self.number()? },
            3 => Kind::Directory,
            4 => Kind::Symlink { target: self.bytes()?.to_vec() },
            5 => Kind::Hardlink { target: TreePath::parse(self.bytes()?).ok()? },
            6 => Kind::Fifo,
            7 => Kind::CharDevice { major: self.number32()?, minor: self.number32()? },
            8 => Kind::BlockDevice { major: self.number32()?, minor: self.number32()? },
            _ => return None,
        };
        Some((kind, Meta { mode, uid, gid, mtime, xattrs }))
    }
}
