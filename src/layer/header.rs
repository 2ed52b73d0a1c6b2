//! The 512-byte blocks of tar and the records of PAX, as bytes: numbers, text fields, check sums.
//!
//! Knows no entries, no trees and no streams. Sources: POSIX.1-2017 `pax`, GNU tar's `tar.h`, and
//! Go's `archive/tar` where the two leave room.

/// Length of a header and unit of all content, in bytes.
pub(super) const BLOCK: usize = 512;

/// Largest extension (PAX records, GNU long names) that is read, in bytes; Go's limit as well.
pub(super) const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Largest number that fits 11 octal digits (`size`, `mtime`).
pub(super) const OCTAL_11_MAX: u64 = 0o777_7777_7777;

/// Largest number that fits 7 octal digits (owners, devices).
pub(super) const OCTAL_7_MAX: u64 = 0o777_7777;

const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const MTIME: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..265;
const MAJOR: std::ops::Range<usize> = 329..337;
const MINOR: std::ops::Range<usize> = 337..345;
const PREFIX: std::ops::Range<usize> = 345..500;
/// Schilling's `star` keeps times behind a shorter prefix, and signs the end of the block.
const STAR_PREFIX: std::ops::Range<usize> = 345..476;
const STAR_MARK: std::ops::Range<usize> = 508..512;

/// The fields of a header as numbers and bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) prefix: Vec<u8>,
    pub(super) mode: u64,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) kind: u8,
    pub(super) link: Vec<u8>,
    pub(super) major: u64,
    pub(super) minor: u64,
}

impl Header {
    /// The block of these fields. Numbers and names must fit (the writer moves what does not into
    /// PAX records before).
    pub(super) fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[NAME][..self.name.len()].copy_from_slice(&self.name);
        put_octal(&mut block[MODE], self.mode);
        put_octal(&mut block[UID], self.uid);
        put_octal(&mut block[GID], self.gid);
        put_octal(&mut block[SIZE], self.size);
        put_octal(&mut block[MTIME], u64::try_from(self.mtime).unwrap_or(0));
        block[TYPE] = self.kind;
        block[LINK][..self.link.len()].copy_from_slice(&self.link);
        block[MAGIC].copy_from_slice(b"ustar\x0000");
        put_octal(&mut block[MAJOR], self.major);
        put_octal(&mut block[MINOR], self.minor);
        block[PREFIX][..self.prefix.len()].copy_from_slice(&self.prefix);
        block[CHECKSUM].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        put_octal(&mut block[CHECKSUM.start..CHECKSUM.end - 1], sum);
        block
    }

    /// Reads a block that is not all zero.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, String> {
        if !checksum_holds(block) {
            return Err("the check sum of the header is wrong".to_owned());
        }
        let number = |range: std::ops::Range<usize>, field: &str| {
            let value = number(&block[range])
                .ok_or_else(|| format!("the header's {field} is not a number"))?;
            u64::try_from(value).map_err(|_| format!("the header's {field} is negative"))
        };
        let posix = block[MAGIC.start..MAGIC.start + 6] == *b"ustar\0";
        let gnu = block[MAGIC] == *b"ustar  \0";
        let prefix = match (posix, &block[STAR_MARK]) {
            (true, b"tar\0") => text(&block[STAR_PREFIX]),
            (true, _) => text(&block[PREFIX]),
            (false, _) => Vec::new(),
        };
        let kind = block[TYPE];
        let device = (posix || gnu) && matches!(kind, b'3' | b'4');
        Ok(Self {
            name: text(&block[NAME]),
            prefix,
            mode: number(MODE, "mode")?,
            uid: number(UID, "uid")?,
            gid: number(GID, "gid")?,
            size: number(SIZE, "size")?,
            mtime: self::number(&block[MTIME]).ok_or("the header's mtime is not a number")?,
            kind,
            link: text(&block[LINK]),
            major: if device { number(MAJOR, "major device number")? } else { 0 },
            minor: if device { number(MINOR, "minor device number")? } else { 0 },
        })
    }

    /// Prefix and name joined.
    pub(super) fn full_name(&self) -> Vec<u8> {
        if self.prefix.is_empty() {
            return self.name.clone();
        }
        [self.prefix.as_slice(), b"/", &self.name].concat()
    }
}

/// Splits a name into prefix and name as USTAR wants them; `None` when it does not fit or is not
/// ASCII, and so needs a PAX record.
pub(super) fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= NAME.len() {
        return Some((b"", name));
    }
    // A directory's last slash belongs to its name.
    let body = name.strip_suffix(b"/").unwrap_or(name);
    let first = name.len().checked_sub(NAME.len() + 1)?;
    let last = PREFIX.len().min(body.len().checked_sub(1)?);
    let cut = (first.max(1)..=last).find(|cut| name[*cut] == b'/')?;
    Some((&name[..cut], &name[cut + 1..]))
}

/// Whether a link's text fits its field as it is.
pub(super) fn link_fits(link: &[u8]) -> bool {
    link.is_ascii() && link.len() <= LINK.len()
}

/// Appends `LENGTH KEY=VALUE\n`, whose length counts itself.
pub(super) fn push_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    if rest + digits(length) > length {
        length += 1;
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Splits PAX records into keys and values, in order.
pub(super) fn parse_records(mut bytes: &[u8]) -> Result<Vec<Record<'_>>, String> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = parse_record(bytes).ok_or("a PAX record is malformed")?;
        records.push(record);
        bytes = rest;
    }
    Ok(records)
}

/// Key and value.
type Record<'a> = (&'a [u8], &'a [u8]);

fn parse_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    if length > bytes.len() || length <= space + 1 {
        return None;
    }
    let (record, rest) = bytes.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some(((key, value), rest))
}

/// Reads digits and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

fn put_octal(field: &mut [u8], number: u64) {
    let width = field.len() - 1;
    let text = format!("{number:0width$o}");
    debug_assert_eq!(text.len(), width, "the writer moves larger numbers into PAX");
    field[..width].copy_from_slice(text.as_bytes());
}

/// Up to the first NUL.
fn text(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// Octal digits between spaces and NULs, or GNU's base-256.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        return base_256(field);
    }
    let padding = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !padding(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(padding).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if !rest.iter().all(padding) || !digits.iter().all(|byte| matches!(byte, b'0'..=b'7')) {
        return None;
    }
    digits
        .iter()
        .try_fold(0_i64, |sum, digit| sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')))
}

/// Two's complement, most significant byte first; the top bit only says that this is base-256.
fn base_256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let mut value: i128 = if negative { -1 } else { 0 };
    for byte in std::iter::once(&first).chain(&field[1..]) {
        // Twelve bytes fit 128 bits.
        value = value << 8 | i128::from(*byte);
    }
    i64::try_from(value).ok()
}

fn checksum_holds(block: &[u8; BLOCK]) -> bool {
    let Some(wanted) = number(&block[CHECKSUM]) else { return false };
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (index, byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&index) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    // Some old writers summed signed bytes.
    wanted == unsigned || wanted == signed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_reads_back_as_written(
            name in "[a-z/]{1,100}", prefix in "[a-z/]{0,155}", size in 0..=OCTAL_11_MAX,
            owner in 0..=OCTAL_7_MAX, mtime in 0..=OCTAL_11_MAX.cast_signed(),
        ) {
            let header = Header {
                name: name.into_bytes(), prefix: prefix.into_bytes(), mode: 0o4755, uid: owner,
                gid: owner, size, mtime, kind: b'4', link: b"x".to_vec(), major: owner, minor: 7,
            };
            prop_assert_eq!(Header::parse(&header.block()), Ok(header));
        }

        #[test]
        fn records_read_back_as_written(
            pairs in prop::collection::vec(("[A-Za-z.]{1,120}", prop::collection::vec(any::<u8>(), 0..1100)), 0..5)
        ) {
            let mut bytes = Vec::new();
            for (key, value) in &pairs {
                push_record(&mut bytes, key.as_bytes(), value);
            }
            let read = parse_records(&bytes).unwrap();
            let written: Vec<_> = pairs.iter().map(|(key, value)| (key.as_bytes(), value.as_slice())).collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn a_split_name_joins_to_itself(name in "[a-z]{1,60}(/[a-z]{1,60}){0,6}/?") {
            if let Some((prefix, rest)) = split_name(name.as_bytes()) {
                let header = Header { name: rest.to_vec(), prefix: prefix.to_vec(), ..Header::default() };
                prop_assert_eq!(header.full_name(), name.as_bytes());
                prop_assert!(rest.len() <= 100 && prefix.len() <= 155);
            }
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse_records(&bytes));
            let mut block = [0; BLOCK];
            block[..bytes.len()].copy_from_slice(&bytes);
            drop(Header::parse(&block));
        }
    }

    #[test]
    fn numbers_in_both_forms() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"0000648\0", None),
            (b"64 4   \0", None),
            (b"\x80\0\0\0\0\x20\0\0", Some(0x20_0000)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
