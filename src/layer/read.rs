//! Tar → changes, for archives that nobody vouches for.
//!
//! Where GNU tar, Go and Python would read an archive differently, it is refused: what was scanned
//! must be what is unpacked. Knows nothing of where entries go.

use std::io::{self, Read};

use super::{
    LayerError, LayerSummary, attributes,
    contents::Contents,
    hashing::PieceHasher,
    header::{self, BLOCK, EXTENSION_BYTES_MAX, Header},
    write::{self, OPAQUE, WHITEOUT},
};
use crate::{
    oci::DiffId,
    tree::{Change, Entry, Kind, Meta, Timestamp, TreePath, Xattrs},
};

/// The archive is read and hashed in pieces of this size, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// Most extension headers before one entry; writers use at most four.
const EXTENSIONS_MAX: usize = 16;

/// Prefix of AUFS's own files, which old layers carry and which mean nothing.
const AUFS: &[u8] = b".wh..wh.";

/// Reads a plain tar to its end, hands each change with its content to `visit`, and sums up.
/// Whatever `visit` leaves of a content is skipped.
///
/// # Errors
///
/// When the archive is hostile or damaged (`L01`–`L30`), or `visit` fails.
pub fn read_layer(
    tar: impl Read,
    mut visit: impl FnMut(&Change, &mut dyn Read) -> Result<(), LayerError>,
) -> Result<LayerSummary, LayerError> {
    let mut input = Input::new(tar);
    let mut contents = Contents::default();
    while let Some(member) = next_member(&mut input)? {
        let Some(change) = member.change()? else {
            input.skip(member.size)?;
            input.pad()?;
            continue;
        };
        match &change {
            Change::Put(entry) => {
                let offset =
                    if matches!(entry.kind, Kind::File { .. }) { input.position } else { 0 };
                contents.put(entry.clone(), offset)?;
            }
            Change::Whiteout(_) | Change::Opaque(_) => contents.mark(change.clone())?,
        }
        let mut content = Content { input: &mut input, left: member.size };
        match &change {
            Change::Put(_) => visit(&change, &mut content)?,
            Change::Whiteout(_) | Change::Opaque(_) => visit(&change, &mut io::empty())?,
        }
        let left = content.left;
        input.skip(left)?;
        input.pad()?;
    }
    // Whatever follows the end belongs to the digest, and to nothing else.
    input.drain()?;
    Ok(LayerSummary {
        diff_id: DiffId(input.hasher.finish()),
        tar_bytes: input.position,
        content_bytes: contents.bytes(),
        listing: contents.into_listing(),
    })
}

/// The archive, counted as it is consumed; a piece is hashed when all of it was, beside the next one being decompressed.
struct Input<R> {
    reader: R,
    hasher: PieceHasher,
    piece: Vec<u8>,
    /// Bytes of the piece that are consumed.
    taken: usize,
    /// What ended the reading, to be told when all before it is consumed.
    failed: Option<io::Error>,
    position: u64,
}

impl<R: Read> Input<R> {
    fn new(reader: R) -> Self {
        let (hasher, piece) = (PieceHasher::new(), Vec::new());
        Self { reader, hasher, piece, taken: 0, failed: None, position: 0 }
    }

    /// What is there and not consumed; empty at the end alone.
    fn fill(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.piece.len() {
            self.next_piece()?;
        }
        Ok(&self.piece[self.taken..])
    }

    fn next_piece(&mut self) -> io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if !self.piece.is_empty() {
            self.piece = self.hasher.take(std::mem::take(&mut self.piece));
        }
        self.taken = 0;
        self.piece.resize(PIECE_BYTES, 0);
        let mut filled = 0;
        while filled < PIECE_BYTES {
            match self.reader.read(&mut self.piece[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        self.piece.truncate(filled);
        self.failed.take_if(|_| filled == 0).map_or(Ok(()), Err)
    }

    fn consume(&mut self, count: usize) {
        self.taken += count;
        self.position += count as u64;
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }

    /// The next block; `None` at the end of the input.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(ends_early()),
                count => filled += count,
            }
        }
        Ok(Some(block))
    }

    fn skip(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let available = self.fill()?.len() as u64;
            if available == 0 {
                return Err(ends_early());
            }
            let step = available.min(count);
            self.consume(usize::try_from(step).expect("no more than a buffer"));
            count -= step;
        }
        Ok(())
    }

    /// Skips to the next whole block.
    fn pad(&mut self) -> io::Result<()> {
        let over = self.position % BLOCK as u64;
        if over == 0 { Ok(()) } else { self.skip(BLOCK as u64 - over) }
    }

    fn drain(&mut self) -> io::Result<()> {
        loop {
            match self.fill()?.len() {
                0 => return Ok(()),
                count => self.consume(count),
            }
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > EXTENSION_BYTES_MAX {
            let reason =
                format!("an extension of {size} bytes, the limit is {EXTENSION_BYTES_MAX}");
            return Err(LayerError::entry("", reason));
        }
        let mut bytes = Vec::new();
        Content { input: self, left: size }.read_to_end(&mut bytes)?;
        self.pad()?;
        Ok(bytes)
    }
}

/// The content of one entry; an early end of the archive is an error, not an end.
struct Content<'a, R> {
    input: &'a mut Input<R>,
    left: u64,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        match self.input.read(&mut buffer[..wanted])? {
            0 => Err(ends_early()),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
    }
}

fn ends_early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the layer's tar ends in the middle of an entry")
}

/// A header with its extensions applied.
struct Member {
    name: Vec<u8>,
    link: Vec<u8>,
    header: Header,
    size: u64,
    mtime: Timestamp,
    xattrs: Xattrs,
}

/// What extension headers say about the next entry.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Timestamp>,
    xattrs: Xattrs,
    seen: usize,
}

fn next_member<R: Read>(input: &mut Input<R>) -> Result<Option<Member>, LayerError> {
    let mut extensions = Extensions::default();
    loop {
        let at = input.position;
        let header = match input.block()? {
            None => None,
            Some(block) if block == [0; BLOCK] => None,
            Some(block) => Some(Header::parse(&block).map_err(|reason| match at {
                0 => LayerError::NotTar(reason),
                at => LayerError::entry(format!("at byte {at}"), reason),
            })?),
        };
        let Some(header) = header else {
            if extensions.seen > 0 {
                return Err(LayerError::Io(ends_early()));
            }
            return Ok(None);
        };
        match header.kind {
            b'x' => extensions.take_pax(&input.extension(header.size)?)?,
            b'g' => check_global(&input.extension(header.size)?)?,
            b'L' => extensions.name = Some(c_string(input.extension(header.size)?)),
            b'K' => extensions.link = Some(c_string(input.extension(header.size)?)),
            _ => return extensions.apply(header).map(Some),
        }
        if header.kind != b'g' {
            extensions.seen += 1;
        }
        if extensions.seen > EXTENSIONS_MAX {
            let reason = format!("more than {EXTENSIONS_MAX} extension headers before one entry");
            return Err(LayerError::entry(header.full_name(), reason));
        }
    }
}

impl Extensions {
    fn take_pax(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        let records =
            header::parse_records(bytes).map_err(|reason| LayerError::entry("", reason))?;
        for (key, value) in records {
            self.take_record(key, value).map_err(|reason| {
                let name = self.name.clone().unwrap_or_default();
                LayerError::entry(name, format!("PAX record `{}`: {reason}", key.escape_ascii()))
            })?;
        }
        Ok(())
    }

    /// The last of equal keys counts.
    fn take_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let number = || header::decimal(value).ok_or("not a number").map(Some);
        match key {
            b"path" | b"linkpath" if value.contains(&0) => return Err("has a NUL byte".to_owned()),
            // POSIX takes the header's own name then, Python none.
            b"path" | b"linkpath" if value.is_empty() => {
                return Err("is empty; readers disagree on what that means".to_owned());
            }
            b"path" => self.name = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = Some(timestamp(value).ok_or("not a time")?),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err("sparse files are not supported in layers".to_owned());
            }
            key => {
                let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { return Ok(()) };
                if let Some(reason) = attributes::refusal(name, value) {
                    return Err(reason.to_owned());
                }
                if !attributes::is_overlay(name) {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }

    fn apply(self, header: Header) -> Result<Member, LayerError> {
        let name = self.name.unwrap_or_else(|| header.full_name());
        let link = self.link.unwrap_or_else(|| header.link.clone());
        let mut header = header;
        header.uid = self.uid.unwrap_or(header.uid);
        header.gid = self.gid.unwrap_or(header.gid);
        let size = self.size.unwrap_or(header.size);
        let mtime = self.mtime.unwrap_or(Timestamp { seconds: header.mtime, nanos: 0 });
        let size = match header.kind {
            // All readers agree that a hard link has no content, whatever its header says.
            b'1' => 0,
            b'2'..=b'6' if size != 0 => {
                let reason =
                    "a type without content claims to have some; readers disagree on what follows";
                return Err(LayerError::entry(name, reason));
            }
            _ => size,
        };
        Ok(Member { name, link, header, size, mtime, xattrs: self.xattrs })
    }
}

/// Global records change every entry for some readers and none for others.
fn check_global(bytes: &[u8]) -> Result<(), LayerError> {
    let records = header::parse_records(bytes).map_err(|reason| LayerError::entry("", reason))?;
    for (key, _) in records {
        let meaningful =
            matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"hdrcharset");
        if meaningful || key.starts_with(b"GNU.") || key.starts_with(b"SCHILY.") {
            let reason =
                format!("`{}` in a global PAX header; readers disagree on it", key.escape_ascii());
            return Err(LayerError::entry("", reason));
        }
    }
    Ok(())
}

impl Member {
    /// What the member means; `None` for what means nothing (AUFS's own files).
    fn change(&self) -> Result<Option<Change>, LayerError> {
        let path = TreePath::parse(&self.name)
            .map_err(|error| LayerError::entry(&self.name, error.to_string()))?;
        if self.name.is_empty() {
            return Err(LayerError::entry("", "an entry without a name"));
        }
        if path.components().any(|name| name.starts_with(AUFS) && name != OPAQUE) {
            return Ok(None);
        }
        if let Some(mark) = self.mark(&path)? {
            return Ok(Some(mark));
        }
        let kind = self.kind(&path)?;
        let entry = Entry { meta: self.meta()?, kind, path };
        match write::refusal(&entry) {
            Some(reason) => Err(LayerError::entry(&self.name, reason)),
            None => Ok(Some(Change::Put(entry))),
        }
    }

    fn mark(&self, path: &TreePath) -> Result<Option<Change>, LayerError> {
        let parent = path.parent().unwrap_or_default();
        if parent.components().any(|name| name.starts_with(WHITEOUT)) {
            return Err(LayerError::entry(&self.name, "an entry below a whiteout"));
        }
        let name = path.file_name().unwrap_or_default();
        let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(None) };
        if !matches!(self.header.kind, b'0' | 0 | b'1' | b'7') {
            return Err(LayerError::entry(&self.name, "a whiteout that is no regular file"));
        }
        if name == OPAQUE {
            return Ok(Some(Change::Opaque(parent)));
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerError::entry(&self.name, "a whiteout of nothing that could be there"));
        }
        let hidden = parent.child(hidden);
        hidden
            .map(|path| Some(Change::Whiteout(path)))
            .map_err(|error| LayerError::entry(&self.name, error.to_string()))
    }

    fn kind(&self, path: &TreePath) -> Result<Kind, LayerError> {
        let refuse = |reason: String| Err(LayerError::entry(&self.name, reason));
        let device = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let (major, minor) = (device(self.header.major), device(self.header.minor));
        let slash = self.name.ends_with(b"/");
        Ok(match self.header.kind {
            0 if slash != self.header.name.ends_with(b"/") => {
                return refuse("a directory by one of its names only; readers disagree".to_owned());
            }
            // The oldest tars had no type for directories.
            0 if slash && self.size == 0 => Kind::Directory,
            0 | b'0' | b'7' if slash || path.is_root() => {
                return refuse("a regular file with the name of a directory".to_owned());
            }
            0 | b'0' | b'7' => Kind::File { size: self.size },
            b'1' => Kind::Hardlink { target: self.hardlink_target()? },
            b'2' => Kind::Symlink { target: self.link.clone() },
            b'3' => Kind::CharDevice { major, minor },
            b'4' => Kind::BlockDevice { major, minor },
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return refuse("sparse files are not supported in layers".to_owned()),
            other => return refuse(format!("unknown type `{}`", other.escape_ascii())),
        })
    }

    fn hardlink_target(&self) -> Result<TreePath, LayerError> {
        let target = TreePath::parse(&self.link)
            .map_err(|error| LayerError::entry(&self.name, format!("a hard link to {error}")))?;
        if target.is_root() {
            return Err(LayerError::entry(&self.name, "a hard link to the root directory"));
        }
        Ok(target)
    }

    fn meta(&self) -> Result<Meta, LayerError> {
        let id = |number: u64, what: &str| {
            u32::try_from(number).map_err(|_| {
                LayerError::entry(&self.name, format!("{what} {number} does not fit 32 bits"))
            })
        };
        Ok(Meta {
            mode: u32::try_from(self.header.mode & 0o7777).expect("twelve bits"),
            uid: id(self.header.uid, "owner")?,
            gid: id(self.header.gid, "group")?,
            mtime: self.mtime,
            xattrs: self.xattrs.clone(),
        })
    }
}

/// Seconds with an optional fraction, rounded down to nanoseconds.
fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    header::decimal(digits.as_bytes())?;
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some(Timestamp { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Timestamp { seconds, nanos })
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}
