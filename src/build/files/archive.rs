//! `ADD` of an archive: recognised by content, its members put below the destination.
//!
//! The archive is untrusted: names and links are followed inside of the destination only. Contents
//! wait in an unlinked file until the layer is written, since a layer is in path order.

use std::{
    cell::Cell,
    fs::File,
    io::{self, BufReader, Cursor, Read, Seek as _, SeekFrom, Write as _},
    rc::Rc,
};

use liblzma::{
    read::XzDecoder,
    stream::{CONCATENATED, Stream},
};
use tar::EntryType;

use super::{
    FilesError,
    copy::{Content, Manner},
    puts::{Made, Put, Puts},
    resolve::{child, clamped},
    source::travels,
    target::{Maker, Rule, Target},
};
use crate::{
    layer::{bounded, decompress},
    tree::{Entry, Kind, Meta, Timestamp, TreePath, Xattrs},
};

const BZIP2: &[u8] = b"BZh";
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];

/// Longest of the signatures, in bytes.
const SIGNATURE_BYTES: u64 = 6;

/// Most memory that opening an xz may take, in bytes; its highest level takes 65 MiB.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// What may come before a member of an archive, in bytes: its name and attributes are held in memory, and a layer takes
/// half of it.
const HEADERS_BYTES_MAX: u64 = 2 << 20;

/// Prefix of the PAX records that carry extended attributes.
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// What an archive is read from.
type Input = Box<dyn Read + Send>;

/// Whether a file is a tar archive with at least one member, plain or compressed.
#[must_use]
pub fn is_archive(file: Box<dyn Read + Send>) -> bool {
    // Whatever fails here is not an archive, and is copied as it is.
    let Ok(plain) = decompressed(file) else { return false };
    let mut archive = tar::Archive::new(plain.take(HEADERS_BYTES_MAX));
    archive.entries().is_ok_and(|mut members| matches!(members.next(), Some(Ok(_))))
}

/// Puts the members of an archive below the destination: its name, its bytes, and how many it may have plain.
pub(super) fn unpack(
    target: &mut Target<'_>,
    manner: &Manner<'_>,
    archive: (&str, Input, u64),
    (spool, spool_index): (&mut File, usize),
) -> Result<(), FilesError> {
    let (name, file, most) = archive;
    let (uid, gid) = manner.look.owner.unwrap_or_default();
    let maker = Maker { mode: 0o755, uid, gid, mtime: manner.look.now };
    let root = target.make_directories(manner.destination.as_bytes(), maker)?;
    let failed = |source: io::Error| FilesError::Io { path: name.to_owned(), source };
    let position = spool.seek(SeekFrom::End(0)).map_err(failed)?;
    let mut unpacking = Unpacking {
        target,
        root,
        archive: name,
        owner: manner.look.owner,
        now: manner.look.now,
        spool,
        spool_index,
        position,
        walked: TreePath::root(),
    };
    let plain = decompressed(file).map_err(failed)?;
    let left = Rc::new(Cell::new(HEADERS_BYTES_MAX));
    let plain = Metered { plain: bounded(plain, most), left: Rc::clone(&left) };
    let mut archive = tar::Archive::new(plain);
    for member in archive.entries().map_err(failed)? {
        left.set(u64::MAX);
        unpacking.member(member.map_err(failed)?)?;
        left.set(HEADERS_BYTES_MAX);
    }
    Ok(())
}

/// Hands on so many bytes; reading further is an error.
struct Metered {
    plain: Input,
    left: Rc<Cell<u64>>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            let reason =
                format!("more than {HEADERS_BYTES_MAX} bytes of headers before one member");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.plain.read(&mut buffer[..most])?;
        self.left.set(left - count as u64);
        Ok(count)
    }
}

/// Decompresses by content: what layers may be compressed with, and bzip2 and xz.
fn decompressed(mut file: Input) -> io::Result<Input> {
    let mut first = Vec::new();
    file.by_ref().take(SIGNATURE_BYTES).read_to_end(&mut first)?;
    let (bzip2, xz) = (first.starts_with(BZIP2), first.starts_with(XZ));
    let whole = Cursor::new(first).chain(file);
    if bzip2 {
        Ok(Box::new(bzip2::read::MultiBzDecoder::new(BufReader::new(whole))))
    } else if xz {
        let stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, CONCATENATED)?;
        Ok(Box::new(XzDecoder::new_stream(BufReader::new(whole), stream)))
    } else {
        decompress(Box::new(whole))
    }
}

/// Old tar programs leave fields empty instead of writing zero.
fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

struct Unpacking<'u, 't> {
    target: &'u mut Target<'t>,
    root: TreePath,
    archive: &'u str,
    owner: Option<(u32, u32)>,
    now: Timestamp,
    spool: &'u mut File,
    spool_index: usize,
    position: u64,
    /// A directory with no link on the way to it, that of the last member or one above: the next one is most often near.
    walked: TreePath,
}

impl Unpacking<'_, '_> {
    fn member<R: Read>(&mut self, mut member: tar::Entry<'_, R>) -> Result<(), FilesError> {
        let entry_type = member.header().entry_type();
        if entry_type == EntryType::XGlobalHeader {
            return Ok(());
        }
        let name = member.path_bytes().into_owned();
        let below = clamped(&name)?;
        let Some(file_name) = below.file_name() else { return Ok(()) };
        let directory = self.directory(&below)?;
        let path = child(&directory, file_name)?;
        let put = if entry_type == EntryType::Link {
            self.hard_link(&mut member, &below)?
        } else {
            let made = self.plain(&mut member, &below)?;
            Puts::of_own(&made)
        };
        self.target.put(&path, &put, Rule::Any)
    }

    /// The directory that a member goes into, made when nothing of that name is there.
    fn directory(&mut self, below: &TreePath) -> Result<TreePath, FilesError> {
        let above = below.parent().unwrap_or_default();
        let directory = self.resolved(&above)?;
        // Members are put below it, so that it stays a directory until the next one.
        self.walked =
            if directory == self.root.join(&above) { above.clone() } else { TreePath::root() };
        if self.target.at(&directory).is_some_and(|standing| standing.is_directory()) {
            return Ok(directory);
        }
        if directory != self.root.join(&above) {
            return Err(self.invalid(below, "lies below a link that leads to no directory"));
        }
        let maker = Maker { mode: 0o755, uid: 0, gid: 0, mtime: self.now };
        self.target.make_directories_at(&directory, maker)?;
        Ok(directory)
    }

    /// Where a directory of the archive is, links followed.
    fn resolved(&self, directory: &TreePath) -> Result<TreePath, FilesError> {
        let start = directory.upper(directory.common(&self.walked));
        let rest = directory.strip_prefix(&start).expect("it starts above the directory");
        self.target.resolve_within(&self.root, start, rest.as_bytes())
    }

    fn hard_link<R: Read>(
        &mut self,
        member: &mut tar::Entry<'_, R>,
        below: &TreePath,
    ) -> Result<Put, FilesError> {
        let meta = self.meta(member, below)?;
        let link = member.link_name_bytes().unwrap_or_default().into_owned();
        let link = clamped(&link)?;
        let nothing = |this: &Self| {
            this.invalid(below, &format!("is a hard link to {link}, which is not there"))
        };
        let name = link.file_name().ok_or_else(|| nothing(self))?;
        let above = link.parent().unwrap_or_default();
        let path = child(&self.resolved(&above)?, name)?;
        if let Some(entry) = self.target.base_entry(&path) {
            self.take_up(&path, entry)?;
        }
        let first = self.target.made(&path).filter(|made| made.kind != Kind::Directory);
        let Made { kind, .. } = first.ok_or_else(|| nothing(self))?;
        let link = self.target.puts.of_link(&path, meta.clone());
        Ok(link.unwrap_or_else(|| Puts::of_own(&Made::alone(kind, meta, None))))
    }

    /// Makes a file of the base a part of the layer: a layer links only to its own files.
    fn take_up(&mut self, path: &TreePath, entry: Entry) -> Result<(), FilesError> {
        let Entry { kind: Kind::File { size }, meta, .. } = entry else { return Ok(()) };
        let content = Some(Content::Base(path.clone()));
        let put = Puts::of_own(&Made::alone(Kind::File { size }, meta, content));
        self.target.put(path, &put, Rule::Any)
    }

    fn plain<R: Read>(
        &mut self,
        member: &mut tar::Entry<'_, R>,
        below: &TreePath,
    ) -> Result<Made, FilesError> {
        let meta = self.meta(member, below)?;
        let header = member.header();
        let device = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or_default();
        let (major, minor) = (device(header.device_major()), device(header.device_minor()));
        let entry_type = header.entry_type();
        if entry_type.is_file() || entry_type.is_contiguous() || entry_type.is_gnu_sparse() {
            let size = self.spool(member)?;
            let offset = self.position - size;
            let content = Content::Spooled { spool: self.spool_index, offset, size };
            return Ok(Made::alone(Kind::File { size }, meta, Some(content)));
        }
        let kind = if entry_type.is_dir() {
            Kind::Directory
        } else if entry_type.is_symlink() {
            Kind::Symlink { target: member.link_name_bytes().unwrap_or_default().into_owned() }
        } else if entry_type.is_fifo() {
            Kind::Fifo
        } else if entry_type.is_character_special() {
            Kind::CharDevice { major, minor }
        } else if entry_type.is_block_special() {
            Kind::BlockDevice { major, minor }
        } else {
            return Err(self.invalid(below, "has a type that no file has"));
        };
        Ok(Made::alone(kind, meta, None))
    }

    fn meta<R: Read>(
        &self,
        member: &mut tar::Entry<'_, R>,
        below: &TreePath,
    ) -> Result<Meta, FilesError> {
        let mut xattrs = Xattrs::new();
        if let Ok(Some(records)) = member.pax_extensions() {
            for record in records.flatten() {
                let name = record.key().ok().and_then(|key| key.strip_prefix(ATTRIBUTE));
                if let Some(name) = name.filter(|name| travels(name.as_bytes())) {
                    xattrs.insert(name.as_bytes().to_vec(), record.value_bytes().to_vec());
                }
            }
        }
        let header = member.header();
        let failed = |source: io::Error| FilesError::Io { path: self.archive.to_owned(), source };
        let id = |id: io::Result<u64>| {
            let id = u32::try_from(id.map_err(failed)?).ok();
            id.ok_or_else(|| self.invalid(below, "has an owner beyond the largest number"))
        };
        let (uid, gid) = match self.owner {
            Some(owner) => owner,
            None => {
                let old = header.as_old();
                let uid = if is_blank(&old.uid) { Ok(0) } else { header.uid() };
                let gid = if is_blank(&old.gid) { Ok(0) } else { header.gid() };
                (id(uid)?, id(gid)?)
            }
        };
        let seconds = i64::try_from(header.mtime().unwrap_or_default()).unwrap_or_default();
        let mode = if is_blank(&header.as_old().mode) { Ok(0) } else { header.mode() };
        Ok(Meta {
            mode: mode.map_err(failed)? & 0o7777,
            uid,
            gid,
            mtime: Timestamp { seconds, nanos: 0 },
            xattrs,
        })
    }

    /// Keeps the content of a member; its length in bytes.
    fn spool<R: Read>(&mut self, member: &mut tar::Entry<'_, R>) -> Result<u64, FilesError> {
        let failed = |source: io::Error| FilesError::Io { path: self.archive.to_owned(), source };
        let expected = member.size();
        let size = io::copy(member, self.spool).map_err(failed)?;
        if size != expected {
            return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF")));
        }
        self.spool.flush().map_err(failed)?;
        self.position += size;
        Ok(size)
    }

    fn invalid(&self, below: &TreePath, reason: &str) -> FilesError {
        FilesError::Invalid(format!("{}: member {below} {reason}", self.archive))
    }
}
