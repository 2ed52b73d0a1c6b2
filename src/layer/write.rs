//! Changes → tar: the same changes always make the same bytes.
//!
//! USTAR, with PAX records only for what does not fit. No user or group names, no access times, whole
//! seconds. Knows no directories of the disk and no compression.

use std::io::{self, Read, Write};

use super::{
    LayerError, LayerSummary, attributes,
    contents::Contents,
    hashing::PieceHasher,
    header::{self, BLOCK, Header, OCTAL_7_MAX, OCTAL_11_MAX},
};
use crate::{
    oci::DiffId,
    tree::{Change, Entry, Kind, Timestamp, TreePath},
};

/// The archive is written and hashed in pieces of about this size, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// Prefix of the name that takes something of a lower layer away.
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// Name in a directory that takes away everything that lower layers have there.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";

/// Writes changes as a deterministic tar (PAX where USTAR is too small) and hashes it as it goes.
pub struct LayerWriter<W: Write> {
    out: W,
    hasher: PieceHasher,
    position: u64,
    /// What is neither written nor hashed yet.
    pending: Vec<u8>,
    contents: Contents,
    latest: Option<Timestamp>,
}

impl<W: Write> LayerWriter<W> {
    /// Starts a layer.
    pub fn new(out: W) -> Self {
        Self {
            out,
            hasher: PieceHasher::new(),
            position: 0,
            pending: Vec::new(),
            contents: Contents::default(),
            latest: None,
        }
    }

    /// Dates no entry later than `latest`, so that the time of a build cannot change the layer.
    #[must_use]
    pub fn clamp_mtime(self, latest: Timestamp) -> Self {
        Self { latest: Some(latest), ..self }
    }

    /// Adds an entry; `content` is read to exactly the size that the entry's kind names. Times are
    /// cut to whole seconds; overlay's own attributes are left out.
    ///
    /// # Errors
    ///
    /// When the content ends early or goes on (the file changed while it was read), the entry breaks
    /// a rule that reading would refuse too, or writing fails.
    pub fn put(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), LayerError> {
        let mut entry = normal(entry)?;
        if let Some(latest) = self.latest {
            entry.meta.mtime = entry.meta.mtime.min(latest);
        }
        let (header, records) = describe(&entry)?;
        // Offsets must be known before the entry is taken in; refused entries end the layer anyway.
        let extension = if records.is_empty() { 0 } else { BLOCK + padded(records.len()) };
        let start = self.position + (extension + BLOCK) as u64;
        let offset = if matches!(entry.kind, Kind::File { .. }) { start } else { 0 };
        self.contents.put(entry.clone(), offset)?;
        self.write_header(&header, &records)?;
        self.copy_exactly(&entry, content)
    }

    /// Adds `.wh.NAME`.
    ///
    /// # Errors
    ///
    /// When `path` is the root, or writing fails.
    pub fn whiteout(&mut self, path: &TreePath) -> Result<(), LayerError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(LayerError::entry("/", "the root cannot be taken away"));
        };
        self.contents.mark(Change::Whiteout(path.clone()))?;
        let name = [WHITEOUT, name].concat();
        self.write_mark(&join(&parent, &name))
    }

    /// Adds `DIRECTORY/.wh..wh..opq`.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn opaque(&mut self, directory: &TreePath) -> Result<(), LayerError> {
        self.contents.mark(Change::Opaque(directory.clone()))?;
        self.write_mark(&join(directory, OPAQUE))
    }

    /// Ends the archive.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn finish(mut self) -> Result<(W, LayerSummary), LayerError> {
        self.feed(&[0; 2 * BLOCK])?;
        self.drain()?;
        self.out.flush()?;
        let summary = LayerSummary {
            diff_id: DiffId(self.hasher.finish()),
            tar_bytes: self.position,
            content_bytes: self.contents.bytes(),
            listing: self.contents.into_listing(),
        };
        Ok((self.out, summary))
    }

    fn write_mark(&mut self, name: &[u8]) -> Result<(), LayerError> {
        let header = Header { mode: 0o644, kind: b'0', ..Header::default() };
        let mut records = Vec::new();
        let header = with_name(header, name, &mut records);
        Ok(self.write_header(&header, &records)?)
    }

    fn write_header(&mut self, header: &Header, records: &[u8]) -> io::Result<()> {
        if !records.is_empty() {
            let extension = Header {
                name: b"././@PaxHeader".to_vec(),
                mode: 0o644,
                size: records.len() as u64,
                kind: b'x',
                ..Header::default()
            };
            self.feed(&extension.block())?;
            self.feed(records)?;
            self.pad()?;
        }
        self.feed(&header.block())
    }

    fn copy_exactly(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), LayerError> {
        let size = entry.size();
        let mut left = size;
        while left > 0 {
            // Read to where it is written from.
            let room = PIECE_BYTES.saturating_sub(self.pending.len()).max(BLOCK) as u64;
            let wanted = left.min(room);
            let count = (&mut *content).take(wanted).read_to_end(&mut self.pending)?;
            let count = count as u64;
            if count < wanted {
                let missing = left - count;
                let reason = format!(
                    "its content ended {missing} bytes early; it changed while it was read"
                );
                return Err(LayerError::entry(entry.path.as_bytes(), reason));
            }
            self.position += count;
            left -= count;
            self.drain_full()?;
        }
        if matches!(entry.kind, Kind::File { .. }) && read_some(content, &mut [0])? != 0 {
            let reason =
                format!("its content goes on after {size} bytes; it changed while it was read");
            return Err(LayerError::entry(entry.path.as_bytes(), reason));
        }
        Ok(self.pad()?)
    }

    fn pad(&mut self) -> io::Result<()> {
        let over = usize::try_from(self.position % BLOCK as u64).expect("a remainder of 512");
        match over {
            0 => Ok(()),
            over => self.feed(&[0; BLOCK][over..]),
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.pending.extend_from_slice(bytes);
        self.drain_full()
    }

    fn drain_full(&mut self) -> io::Result<()> {
        if self.pending.len() >= PIECE_BYTES { self.drain() } else { Ok(()) }
    }

    fn drain(&mut self) -> io::Result<()> {
        self.out.write_all(&self.pending)?;
        self.pending = self.hasher.take(std::mem::take(&mut self.pending));
        Ok(())
    }
}

/// The entry as it will be read back.
fn normal(entry: &Entry) -> Result<Entry, LayerError> {
    let refuse = |reason: &str| Err(LayerError::entry(entry.path.as_bytes(), reason));
    if entry.path.components().any(|name| name.starts_with(WHITEOUT)) {
        return refuse("names that begin with `.wh.` mean deletions in a layer; rename it");
    }
    let mut entry = entry.clone();
    entry.meta.mode &= 0o7777;
    entry.meta.mtime = Timestamp { seconds: entry.meta.mtime.seconds, nanos: 0 };
    entry.meta.xattrs.retain(|name, _| !attributes::is_overlay(name));
    for (name, value) in &entry.meta.xattrs {
        if let Some(reason) = attributes::refusal(name, value) {
            return refuse(reason);
        }
    }
    if let Some(reason) = refusal(&entry) {
        return refuse(reason);
    }
    Ok(entry)
}

/// What no layer can hold, if the entry is that; for reader and writer alike.
pub(super) fn refusal(entry: &Entry) -> Option<&'static str> {
    if entry.meta.uid == u32::MAX || entry.meta.gid == u32::MAX {
        return Some("owner 4294967295 means `leave it` to Linux and cannot be set");
    }
    match &entry.kind {
        Kind::CharDevice { major: 0, minor: 0 } => {
            Some("character device 0:0 means a deletion to overlay and cannot be kept")
        }
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            let fits = *major <= 0xfff && *minor <= 0xf_ffff;
            (!fits).then_some("a device number that Linux cannot have")
        }
        Kind::Symlink { target } if target.is_empty() => Some("a symbolic link without a target"),
        Kind::Symlink { target } if target.contains(&0) => {
            Some("a symbolic link with a NUL byte in its target")
        }
        Kind::Symlink { target } if target.len() > 4095 => {
            Some("a symbolic link longer than 4095 bytes")
        }
        Kind::Directory
        | Kind::File { .. }
        | Kind::Symlink { .. }
        | Kind::Hardlink { .. }
        | Kind::Fifo => None,
    }
}

fn describe(entry: &Entry) -> Result<(Header, Vec<u8>), LayerError> {
    let mut name = entry.path.as_bytes().to_vec();
    if entry.path.is_root() {
        name = b".".to_vec();
    }
    if entry.is_directory() {
        name.push(b'/');
    }
    let mut header = Header { mode: entry.meta.mode.into(), ..Header::default() };
    let mut link: &[u8] = b"";
    match &entry.kind {
        Kind::File { size } => (header.kind, header.size) = (b'0', *size),
        Kind::Directory => header.kind = b'5',
        Kind::Fifo => header.kind = b'6',
        Kind::Symlink { target } => (header.kind, link) = (b'2', target),
        Kind::Hardlink { target } => (header.kind, link) = (b'1', target.as_bytes()),
        Kind::CharDevice { major, minor } => {
            (header.kind, header.major, header.minor) = (b'3', (*major).into(), (*minor).into());
        }
        Kind::BlockDevice { major, minor } => {
            (header.kind, header.major, header.minor) = (b'4', (*major).into(), (*minor).into());
        }
    }
    let mut records = Vec::new();
    // In a fixed order: numbers, names, attributes (sorted).
    header.uid = fitted(&mut records, b"uid", entry.meta.uid.into(), OCTAL_7_MAX);
    header.gid = fitted(&mut records, b"gid", entry.meta.gid.into(), OCTAL_7_MAX);
    header.size = fitted(&mut records, b"size", header.size, OCTAL_11_MAX);
    header.mtime = entry.meta.mtime.seconds;
    if !(0..=OCTAL_11_MAX.cast_signed()).contains(&header.mtime) {
        header::push_record(&mut records, b"mtime", header.mtime.to_string().as_bytes());
        header.mtime = 0;
    }
    if header::link_fits(link) {
        header.link = link.to_vec();
    } else {
        header::push_record(&mut records, b"linkpath", link);
    }
    let header = with_name(header, &name, &mut records);
    for (name, value) in &entry.meta.xattrs {
        header::push_record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    if records.len() as u64 > header::EXTENSION_BYTES_MAX {
        let reason =
            "its extended attributes take more than 1 MiB, which no reader of layers takes";
        return Err(LayerError::entry(entry.path.as_bytes(), reason));
    }
    Ok((header, records))
}

fn with_name(mut header: Header, name: &[u8], records: &mut Vec<u8>) -> Header {
    if let Some((prefix, name)) = header::split_name(name) {
        header.prefix = prefix.to_vec();
        header.name = name.to_vec();
    } else {
        header::push_record(records, b"path", name);
        // What a reader without PAX sees; never empty, and a directory still looks like one.
        header.name = if header.kind == b'5' { b"@long/".to_vec() } else { b"@long".to_vec() };
    }
    header
}

/// The number when it fits its field; else a record, and zero for the field.
fn fitted(records: &mut Vec<u8>, key: &[u8], number: u64, max: u64) -> u64 {
    if number <= max {
        return number;
    }
    header::push_record(records, key, number.to_string().as_bytes());
    0
}

fn join(directory: &TreePath, name: &[u8]) -> Vec<u8> {
    match directory.as_bytes() {
        b"" => name.to_vec(),
        directory => [directory, b"/", name].concat(),
    }
}

/// Length with padding to whole blocks.
pub(super) fn padded(length: usize) -> usize {
    length.div_ceil(BLOCK) * BLOCK
}

fn read_some(content: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match content.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
