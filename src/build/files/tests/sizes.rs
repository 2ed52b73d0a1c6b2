//! Files that are large. S17 at its real sizes: what an image says are its accounts, as files with holes, so that the sizes
//! cost nothing here.

use std::os::unix::fs::FileExt as _;

use super::{super::content::PART_BYTES, *};
use crate::{layer::Listed, snapshot::View};

/// What is read of one file at most, in bytes; and a little for whatever a thread reads besides.
const READ_BYTES_MAX: u64 = (16 << 20) + (1 << 20);

/// Bytes that this thread has read so far.
fn bytes_read() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().parse().unwrap()
}

/// A layer with one file of `size` bytes that begins with `start` and ends with `end`; nothing is written between them.
fn layer_of(bench: &Bench, path: &str, (size, start, end): (u64, &str, &str)) -> DiffId {
    let meta = Meta { mode: 0o644, ..Meta::default() };
    let kind = Kind::File { size };
    let entry = Entry { path: TreePath::parse(path).unwrap(), kind, meta };
    let change = Listed { change: Change::Put(entry), offset: 512 };
    let listing = Listing::from_iter([change]).encode();
    let layer = DiffId(Digest::of(&listing));
    let staging = bench.store.staging().unwrap();
    let folder = staging.path().join("layer");
    let place = folder.join(path);
    assert!(place.starts_with(&folder), "below the store");
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let file = fs::File::create(&place).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(start.as_bytes(), 0).unwrap();
    file.write_all_at(end.as_bytes(), size - end.len() as u64).unwrap();
    bench.store.put_listing(layer, &listing).unwrap();
    bench.store.commit_snapshot(&folder, layer).unwrap();
    layer
}

#[test]
fn s17_files_of_accounts_are_read_up_to_16_mib_whatever_their_size() {
    let app = "app:x:1000:1000::/home/app:/bin/sh\n";
    let rows = [
        // A hole, one line without an end, and more than any number of lines.
        ("etc/passwd", 2 << 30, "", ""),
        ("etc/passwd", 1 << 30, "app:x:1000:1000:", "\n"),
        ("etc/group", 2 << 30, "", ""),
        ("etc/passwd", (16 << 20) + 1, app, ""),
        ("etc/passwd", u64::from(u32::MAX) + 1, app, app),
    ];
    for (path, size, start, end) in rows {
        let bench = Bench::new();
        let layer = layer_of(&bench, path, (size, start, end));
        let view = View::open(&bench.store, &[layer]).unwrap();
        let user = if path == "etc/passwd" { "app" } else { "0:staff" };
        let before = bytes_read();
        let refused = user_ids(&view, user).unwrap_err().to_string();
        let read = bytes_read() - before;
        assert!(refused.contains(path) && refused.contains("16777216 bytes"), "{refused}");
        assert!(read <= READ_BYTES_MAX, "{read} bytes were read of {size}");
    }
}

#[test]
fn s17_as_many_lines_as_fit_are_read_and_the_last_one_counts() {
    let bench = Bench::new();
    let lines = "u:x:1:1::/:\n".repeat(1_000_000) + "last:x:77:88::/h:\n";
    let size = lines.len() as u64;
    let layer = layer_of(&bench, "etc/passwd", (size, &lines, ""));
    let view = View::open(&bench.store, &[layer]).unwrap();
    let before = bytes_read();
    let found = user_ids(&view, "last").unwrap();
    assert_eq!((found.uid, found.gid, found.home.as_str()), (77, 88, "/h"));
    assert!(bytes_read() - before <= READ_BYTES_MAX);
    assert!(user_ids(&view, "nobody-there").is_err());
}

#[test]
fn every_part_of_a_large_file_counts_and_it_is_one_content_in_a_folder_and_in_a_layer() {
    let bench = Bench::new();
    let part = usize::try_from(PART_BYTES).unwrap();
    let mut bytes: Vec<u8> = (0..2 * part + 5).map(|at| (at / 3) as u8).collect();
    let copy = copy("large", "/large");
    let key_of = |bytes: &[u8]| {
        fs::write(bench.path("large"), bytes).unwrap();
        bench.key(&copy).key()
    };
    let whole = key_of(&bytes);
    for at in [0, part - 1, part, 2 * part - 1, 2 * part, 2 * part + 4] {
        bytes[at] ^= 1;
        assert_ne!(key_of(&bytes), whole, "byte {at}");
        bytes[at] ^= 1;
    }
    let (one, two) = bytes.split_at_mut(part);
    one.swap_with_slice(&mut two[..part]);
    assert_ne!(key_of(&bytes), whole, "parts in another order");
    let (one, two) = bytes.split_at_mut(part);
    one.swap_with_slice(&mut two[..part]);
    assert_eq!(key_of(&bytes), whole, "the same content, written again");
    let (layer, context) = (bench.layer(&[], &copy).unwrap(), bench.context(None));
    let contents = |root: Root<'_>| {
        let key = key(&bench.store, &copy.op(), None, &|_| root).unwrap();
        let files = key.selections.iter().flat_map(Selection::plain_files);
        files.map(|(.., content)| content).collect::<Vec<_>>()
    };
    let of_folder = contents(Root::Context(&context));
    assert_eq!((of_folder.len(), contents(Root::Files(layer))), (1, of_folder));
}
