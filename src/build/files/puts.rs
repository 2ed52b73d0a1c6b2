//! What a layer will put, packed: a tree may have millions of files.
//!
//! What is copied is held as its place among the items that were selected, everything else by its facts. Knows neither
//! what stands below nor why something is put.

use super::{
    copy::{Content, Copied},
    select::Item,
};
use crate::tree::{
    Kind, Meta, PathMap, TreePath,
    packed::{self, Packed},
};

/// Why what is put can be read.
const SOUND: &str = "it was packed here";

/// Forms of what is put: an item at its place, one under another name, and what is no item.
const ITEM: u8 = 0;
const ITEM_ELSEWHERE: u8 = 1;
const OWN: u8 = 2;

/// What the bytes of what is no item are.
const NO_CONTENT: u8 = 0;
const SPOOLED: u8 = 1;
const BASE: u8 = 2;

/// Something that the layer will hold.
#[derive(Clone)]
pub(super) struct Made {
    pub(super) kind: Kind,
    pub(super) meta: Meta,
    /// Where the bytes come from.
    pub(super) content: Option<Content>,
    /// The file that this is a name of, where others may be.
    pub(super) file: Option<FileNumber>,
}

impl Made {
    /// What has only one name.
    pub(super) fn alone(kind: Kind, meta: Meta, content: Option<Content>) -> Self {
        Self { kind, meta, content, file: None }
    }
}

/// Names of the same number are hard links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileNumber(u32);

/// Something to put, packed.
pub(super) struct Put {
    bytes: Vec<u8>,
    pub(super) is_directory: bool,
}

/// Something that was put, at a path.
#[derive(Clone, Copy)]
pub(super) struct Raw<'t>(&'t [u8]);

/// A file that may have several names.
#[derive(Default)]
struct File {
    /// How many of its names the layer holds.
    names: u32,
    /// What it has instead of what its names say.
    meta: Option<Box<Meta>>,
}

/// What is put so far.
#[derive(Default)]
pub(super) struct Puts {
    map: PathMap,
    copies: Vec<Copied>,
    files: Vec<File>,
}

/// The number of a copy.
#[derive(Clone, Copy)]
pub(super) struct CopyNumber(usize);

impl Puts {
    /// Takes in a copy, whose items can be put from now on.
    pub(super) fn begin(&mut self, copied: Copied) -> CopyNumber {
        self.copies.push(copied);
        CopyNumber(self.copies.len() - 1)
    }

    /// A new file, with no names yet.
    pub(super) fn new_file(&mut self) -> FileNumber {
        self.files.push(File::default());
        let number = u32::try_from(self.files.len() - 1);
        FileNumber(number.expect("fewer files than memory has room for"))
    }

    /// An item, by where it begins among those of its copy, and the number of its digest there.
    pub(super) fn of_item(
        CopyNumber(copy): CopyNumber,
        (position, print): (usize, Option<usize>),
        (is_directory, file): (bool, Option<FileNumber>),
    ) -> Put {
        let mut bytes = head(ITEM, file);
        packed::put_number(&mut bytes, copy as u64);
        packed::put_number(&mut bytes, position as u64);
        packed::put_number(&mut bytes, print.map_or(0, |number| number as u64 + 1));
        Put { bytes, is_directory }
    }

    /// Anything but an item.
    pub(super) fn of_own(made: &Made) -> Put {
        let Made { kind, meta, content, file } = made;
        let mut bytes = head(OWN, *file);
        bytes.push(packed::tag(kind));
        packed::put_facts(&mut bytes, kind, meta);
        match content {
            None => bytes.push(NO_CONTENT),
            Some(Content::Spooled { spool, offset, .. }) => {
                bytes.push(SPOOLED);
                packed::put_number(&mut bytes, *spool as u64);
                packed::put_number(&mut bytes, *offset);
            }
            Some(Content::Base(path)) => {
                bytes.push(BASE);
                packed::put_bytes(&mut bytes, path.as_bytes());
            }
            Some(Content::Source { .. } | Content::Bytes(_)) => {
                unreachable!("what comes from a source or a heredoc is an item")
            }
        }
        Put { bytes, is_directory: *kind == Kind::Directory }
    }

    /// Another name of the file at a path, which has this metadata from now on, whatever its names. Nothing for what
    /// has no content.
    pub(super) fn of_link(&mut self, path: &TreePath, meta: Meta) -> Option<Put> {
        let raw = self.map.get(path)?.to_vec();
        self.made(path, Raw(&raw)).content?;
        let (form, file, rest) = parse(&raw);
        let number = file.unwrap_or_else(|| {
            let number = self.new_file();
            let File { names, .. } = &mut self.files[number.0 as usize];
            *names = 1;
            self.map.insert(path, &[head(form, Some(number)).as_slice(), rest].concat());
            number
        });
        self.files[number.0 as usize].meta = Some(Box::new(meta));
        let mut bytes = head(if form == ITEM { ITEM_ELSEWHERE } else { form }, Some(number));
        bytes.extend_from_slice(rest);
        if form == ITEM {
            let (copy, ..) = self.item(path, Raw(&raw)).expect("it has the form of one");
            packed::put_bytes(&mut bytes, copy.below(path).as_bytes());
        }
        Some(Put { bytes, is_directory: false })
    }

    /// Puts something in place of whatever this path has.
    pub(super) fn insert(&mut self, path: &TreePath, put: &Put) {
        self.count(self.map.get(path).and_then(file_of), |names| *names -= 1);
        self.count(file_of(&put.bytes), |names| *names += 1);
        self.map.insert(path, &put.bytes);
    }

    /// Puts nothing there.
    pub(super) fn remove(&mut self, path: &TreePath) {
        self.count(self.map.get(path).and_then(file_of), |names| *names -= 1);
        self.map.remove(path);
    }

    fn count(&mut self, file: Option<FileNumber>, change: impl FnOnce(&mut u32)) {
        if let Some(FileNumber(number)) = file {
            change(&mut self.files[number as usize].names);
        }
    }

    /// What is put at a path.
    pub(super) fn get(&self, path: &TreePath) -> Option<Raw<'_>> {
        self.map.get(path).map(Raw)
    }

    /// All that is put, from a path on.
    pub(super) fn onward<'p>(
        &'p self,
        path: &TreePath,
    ) -> impl Iterator<Item = (TreePath, Raw<'p>)> + use<'p> {
        self.map.onward(path).map(|(path, raw)| (path, Raw(raw)))
    }

    /// The file that something is a name of, when the layer holds others.
    pub(super) fn shared(&self, Raw(bytes): Raw<'_>) -> Option<FileNumber> {
        file_of(bytes).filter(|file| self.has_several_names(*file))
    }

    /// Whether the layer holds more than one name of a file.
    pub(super) fn has_several_names(&self, FileNumber(number): FileNumber) -> bool {
        self.files[number as usize].names > 1
    }

    /// What stands at the path of something that was put.
    pub(super) fn made(&self, path: &TreePath, raw: Raw<'_>) -> Made {
        let mut made = match self.item(path, raw) {
            Some((copy, item, print)) => copy.made(item, print),
            None => own(raw.0).expect(SOUND),
        };
        made.file = file_of(raw.0);
        let file = made.file.map(|file| &self.files[file.0 as usize]);
        if let Some(meta) = file.and_then(|file| file.meta.as_deref()) {
            made.meta.clone_from(meta);
        }
        made
    }

    /// The item that was put, with its copy and the number of its digest.
    fn item(&self, path: &TreePath, Raw(bytes): Raw<'_>) -> Option<(&Copied, Item, Option<usize>)> {
        let (form, _, rest) = parse(bytes);
        if form == OWN {
            return None;
        }
        let mut rest = Packed(rest);
        let mut number = || usize::try_from(rest.number().expect(SOUND)).expect(SOUND);
        let (copy, position, print) = (number(), number(), number());
        let copy = &self.copies[copy];
        let below = match form {
            ITEM => copy.below(path),
            _ => TreePath::parse(rest.bytes().expect(SOUND)).expect(SOUND),
        };
        Some((copy, copy.items.at(position, below), print.checked_sub(1)))
    }
}

/// What is no item.
fn own(bytes: &[u8]) -> Option<Made> {
    let (_, _, rest) = parse(bytes);
    let mut rest = Packed(rest);
    let tag = rest.byte()?;
    let (kind, meta) = rest.facts(tag)?;
    let content = rest.byte()?;
    let mut number = || usize::try_from(rest.number()?).ok();
    let content = match content {
        SPOOLED => {
            let Kind::File { size } = kind else { return None };
            Some(Content::Spooled { spool: number()?, offset: number()? as u64, size })
        }
        BASE => Some(Content::Base(TreePath::parse(rest.bytes()?).ok()?)),
        _ => None,
    };
    Some(Made::alone(kind, meta, content))
}

/// What every form begins with.
fn head(form: u8, file: Option<FileNumber>) -> Vec<u8> {
    let mut bytes = vec![form];
    packed::put_number(&mut bytes, file.map_or(0, |FileNumber(number)| u64::from(number) + 1));
    bytes
}

/// The form, the file and the rest.
fn parse(bytes: &[u8]) -> (u8, Option<FileNumber>, &[u8]) {
    let mut rest = Packed(bytes);
    let form = rest.byte().expect(SOUND);
    let file = rest.number32().expect(SOUND).checked_sub(1).map(FileNumber);
    (form, file, rest.0)
}

fn file_of(bytes: &[u8]) -> Option<FileNumber> {
    parse(bytes).1
}
