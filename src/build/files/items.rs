//! The entries of a pick, packed: a tree may have millions of files.
//!
//! Knows how an entry is held, and not why it was taken.

use std::sync::Arc;

use super::{
    select::{Item, Role},
    source::{Inode, Node},
};
use crate::{
    store::FileStamp,
    tree::{
        Kind, Meta, TreePath,
        packed::{self, Packed},
    },
};

/// Why packed items can be read.
const SOUND: &str = "it was packed here";

const NANOS: i128 = 1_000_000_000;

/// Bits of the byte that says what comes behind the facts of an item.
const STAMP: u8 = 1;
const LOCAL: u8 = 2;
const LAYER: u8 = 4;
const ALONE: u8 = 8;

/// Items in path order.
#[derive(Debug, Default)]
pub(super) struct Items {
    bytes: Vec<u8>,
    last: TreePath,
}

/// Items on their way out.
#[derive(Debug)]
pub(super) struct Unpacked {
    items: Arc<Items>,
    /// Bytes that were read.
    position: usize,
    path: TreePath,
}

impl Items {
    /// Adds an item, which comes behind all that are there.
    pub(super) fn push(&mut self, item: Item) {
        let Item { below, node, role } = item;
        let Node { kind, meta, inode, stamp } = &node;
        let bytes = &mut self.bytes;
        bytes.extend([role as u8, packed::tag(kind)]);
        packed::put_path(bytes, self.last.as_bytes(), &below);
        packed::put_facts(bytes, kind, meta);
        let of_inode = match inode {
            None => 0,
            Some(Inode::Local(..)) => LOCAL,
            Some(Inode::Layer(..)) => LAYER,
            Some(Inode::Alone) => ALONE,
        };
        bytes.push(of_inode | if stamp.is_some() { STAMP } else { 0 });
        if let Some(FileStamp { device, inode, ctime_ns, .. }) = stamp {
            packed::put_number(bytes, *device);
            packed::put_number(bytes, *inode);
            let seconds = i64::try_from(ctime_ns.div_euclid(NANOS)).unwrap_or_default();
            packed::put_signed(bytes, seconds);
            packed::put_number(bytes, ctime_ns.rem_euclid(NANOS) as u64);
        }
        match inode {
            Some(Inode::Local(device, inode)) => {
                packed::put_number(bytes, *device);
                packed::put_number(bytes, *inode);
            }
            Some(Inode::Layer(layer, path)) => {
                packed::put_number(bytes, *layer as u64);
                packed::put_bytes(bytes, path.as_bytes());
            }
            Some(Inode::Alone) | None => {}
        }
        self.last = below;
    }

    pub(super) fn unpacked(self: &Arc<Self>) -> Unpacked {
        Unpacked { items: Arc::clone(self), position: 0, path: TreePath::root() }
    }

    /// The item that begins at a position, by its path below the pick.
    pub(super) fn at(&self, position: usize, below: TreePath) -> Item {
        let mut rest = Packed(&self.bytes[position..]);
        let skip = |rest: &mut Packed<'_>| rest.number().and(rest.bytes()).map(|_| below);
        unpack(&mut rest, skip).expect(SOUND)
    }
}

impl FromIterator<Item> for Items {
    fn from_iter<I: IntoIterator<Item = Item>>(items: I) -> Self {
        let mut packed = Self::default();
        items.into_iter().for_each(|item| packed.push(item));
        packed
    }
}

fn unpack(
    rest: &mut Packed<'_>,
    below: impl FnOnce(&mut Packed<'_>) -> Option<TreePath>,
) -> Option<Item> {
    let role = usize::from(rest.byte()?);
    let role = *[Role::Top, Role::Chosen, Role::Passage].get(role)?;
    let tag = rest.byte()?;
    let below = below(rest)?;
    let (kind, meta) = rest.facts(tag)?;
    let bits = rest.byte()?;
    let stamp = if bits & STAMP == 0 { None } else { Some(stamp(rest, &kind, &meta)?) };
    let inode = match bits & !STAMP {
        LOCAL => Some(Inode::Local(rest.number()?, rest.number()?)),
        LAYER => {
            let layer = usize::try_from(rest.number()?).ok()?;
            Some(Inode::Layer(layer, TreePath::parse(rest.bytes()?).ok()?))
        }
        ALONE => Some(Inode::Alone),
        _ => None,
    };
    Some(Item { below, node: Node { kind, meta, inode, stamp }, role })
}

/// Size and time of a file's stamp are those of the file.
fn stamp(rest: &mut Packed<'_>, kind: &Kind, meta: &Meta) -> Option<FileStamp> {
    let Kind::File { size } = *kind else { return None };
    let (device, inode) = (rest.number()?, rest.number()?);
    let (seconds, nanos) = (rest.signed()?, rest.number()?);
    let ctime_ns = i128::from(seconds) * NANOS + i128::from(nanos);
    let mtime_ns = i128::from(meta.mtime.seconds) * NANOS + i128::from(meta.mtime.nanos);
    Some(FileStamp { device, inode, size, mtime_ns, ctime_ns })
}

impl Unpacked {
    /// Where the next item begins.
    pub(super) fn position(&self) -> usize {
        self.position
    }
}

impl Iterator for Unpacked {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let mut rest = Packed(&self.items.bytes[self.position..]);
        if rest.0.is_empty() {
            return None;
        }
        let path = &mut self.path;
        let below = |rest: &mut Packed<'_>| rest.path(path).map(|()| path.clone());
        let item = unpack(&mut rest, below).expect(SOUND);
        self.position = self.items.bytes.len() - rest.0.len();
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Timestamp, Xattrs};

    #[test]
    fn items_come_out_as_they_went_in() {
        let time = |seconds, nanos| Timestamp { seconds, nanos };
        let item = |below: &str, role, kind, (mtime, inode): (Timestamp, Option<Inode>)| {
            let xattrs = Xattrs::from([(b"a".to_vec(), b"b".to_vec())]);
            let stamp = if let Kind::File { size } = kind {
                let mtime_ns = i128::from(mtime.seconds) * NANOS + i128::from(mtime.nanos);
                Some(FileStamp { device: 1 << 40, inode: 7, size, mtime_ns, ctime_ns: -1 })
            } else {
                None
            };
            let meta = Meta { mode: 0o4755, uid: 1, gid: u32::MAX, mtime, xattrs };
            let below = TreePath::parse(below).unwrap();
            Item { below, node: Node { kind, meta, inode, stamp }, role }
        };
        let place = TreePath::parse("x/y").unwrap();
        let items = || {
            [
                item("", Role::Top, Kind::Directory, (time(0, 0), None)),
                item("a", Role::Passage, Kind::Directory, (time(-5, 999_999_999), None)),
                item("a/b", Role::Chosen, Kind::File { size: 1 << 33 }, (time(-1, 5), None)),
                item("a/c", Role::Chosen, Kind::Fifo, (time(9, 0), Some(Inode::Local(3, 4)))),
                item(
                    "a/cd",
                    Role::Chosen,
                    Kind::File { size: 0 },
                    (time(9, 0), Some(Inode::Alone)),
                ),
                item(
                    "b",
                    Role::Chosen,
                    Kind::Symlink { target: b"..".to_vec() },
                    (time(i64::MAX, 0), Some(Inode::Layer(9, place.clone()))),
                ),
            ]
        };
        let packed = Arc::new(Items::from_iter(items()));
        let (found, wanted): (Vec<_>, Vec<_>) = (packed.unpacked().collect(), items().into());
        assert_eq!(format!("{found:?}"), format!("{wanted:?}"));
        let mut unpacked = packed.unpacked();
        for item in wanted {
            let one = packed.at(unpacked.position(), item.below.clone());
            assert_eq!(format!("{one:?}"), format!("{item:?}"));
            drop(unpacked.next());
        }
    }
}
