//! Laws of layers that are split: the file system is the same as of one layer, and cuts stay where they are.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    build::files::{
        parts::Parting,
        split::{Cutter, Groups, Layers, Place},
    },
    limits::Split,
    plan::CacheUse,
};

/// Regular files by path, with their sizes.
type Sizes = BTreeMap<TreePath, u64>;

fn split(size_bytes: u64) -> Split {
    Split { size_bytes, layers_max: 125, often: Vec::new() }
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text).unwrap()
}

/// The files and directories of each part.
fn parts_of(files: &Sizes, split: &Split) -> Vec<BTreeMap<TreePath, Option<u64>>> {
    let mut kinds: BTreeMap<TreePath, Kind> =
        files.iter().map(|(path, size)| (path.clone(), Kind::File { size: *size })).collect();
    for path in files.keys() {
        let above = path.ancestors().filter(|above| !above.is_root());
        kinds.extend(above.map(|above| (above, Kind::Directory)));
    }
    let groups = Groups::of(split).unwrap();
    let mut counts = vec![0; groups.count()];
    let mut cutter = Cutter::new(split.size_bytes);
    for (group, count) in counts.iter_mut().enumerate() {
        for (path, kind) in kinds.iter().filter(|(path, _)| groups.of_path(path) == group) {
            cutter.push(&Place { path, group, kind });
            *count += 1;
        }
    }
    let mut layers = Layers::new(cutter.cuts(split.layers_max), &counts);
    let mut parts = vec![BTreeMap::new(); layers.count()];
    for path in kinds.keys() {
        let part = &mut parts[layers.of_next(groups.of_path(path))];
        part.extend(path.ancestors().filter(|above| !above.is_root()).map(|above| (above, None)));
        part.insert(path.clone(), files.get(path).copied());
    }
    parts
}

/// How many parts there are that were not there before.
fn new_parts(before: &Sizes, after: &Sizes, split: &Split) -> usize {
    let before = parts_of(before, split);
    parts_of(after, split).iter().filter(|part| !before.contains(part)).count()
}

/// Files of up to half a part in a few directories.
fn files() -> impl Strategy<Value = Sizes> {
    let place = "[a-d]{1,2}(/[a-d]{1,2}){0,2}/[a-p]{3}\\.f";
    let of_one = (place, 0..32_000_u64).prop_map(|(place, size)| (path(&place), size));
    prop::collection::btree_map(any::<u8>(), of_one, 1..200)
        .prop_map(|files| files.into_values().collect())
}

proptest! {
    #[test]
    fn every_file_is_in_one_part_and_every_directory_where_its_files_are(files in files()) {
        let split = split(64 << 10);
        let mut seen = BTreeSet::new();
        for part in parts_of(&files, &split) {
            for (path, size) in &part {
                prop_assert!(size.is_none() || seen.insert(path.clone()), "{} is in two", path);
                for above in path.ancestors().filter(|above| !above.is_root()) {
                    prop_assert_eq!(part.get(&above), Some(&None), "{} is without {}", path, above);
                }
            }
        }
        prop_assert_eq!(seen.len(), files.len());
    }

    #[test]
    fn parts_are_neither_small_nor_many(files in files(), most in 2..9_usize) {
        let wanted = Split { layers_max: most, ..split(64 << 10) };
        let parts = parts_of(&files, &wanted);
        prop_assert!(parts.len() <= most);
        let bytes = |part: &BTreeMap<TreePath, Option<u64>>| -> u64 {
            part.values().map(|size| 512 + size.unwrap_or(0).next_multiple_of(512)).sum()
        };
        for part in parts.iter().filter(|_| parts.len() > 1) {
            prop_assert!(bytes(part) >= 32 << 10);
        }
    }

    #[test]
    fn a_change_of_one_file_changes_few_parts(
        files in files(), at in any::<prop::sample::Index>(), size in 0..32_000_u64, name in "[a-d]/[a-p]{4}"
    ) {
        let split = split(64 << 10);
        let changed = at.get(&files.keys().collect::<Vec<_>>()).to_owned().clone();
        let mut after = files.clone();
        after.insert(changed.clone(), size);
        prop_assert!(new_parts(&files, &after, &split) <= 4, "another size");
        after.insert(changed.clone(), 1 << 20);
        prop_assert!(new_parts(&files, &after, &split) <= 5, "as large as a layer");
        after.remove(&changed);
        prop_assert!(new_parts(&files, &after, &split) <= 4, "gone");
        after = files.clone();
        after.insert(path(&name), size);
        prop_assert!(new_parts(&files, &after, &split) <= 4, "new");
    }
}

#[test]
fn a_new_file_is_one_new_part_as_a_rule() {
    let file =
        |number: usize| (path(&format!("d{:02}/s{}/f{number}", number / 50, number % 7)), 10_000);
    let files: Sizes = (0..3000).map(file).collect();
    let split = split(1 << 20);
    let parts = parts_of(&files, &split).len();
    assert!((20..=60).contains(&parts), "{parts} parts of 30 MB");
    let mut new = 0;
    for number in 0..60 {
        let mut after = files.clone();
        after.insert(path(&format!("d{number:02}/s3/new")), 10_000);
        let more = new_parts(&files, &after, &split);
        assert!((1..=3).contains(&more), "{more} for {number}");
        new += more;
    }
    assert!(new <= 75, "{new} parts for 60 files");
}

#[test]
fn what_changes_often_and_what_is_large_has_a_layer_of_its_own() {
    let files: Sizes = [
        ("app/a", 900),
        ("app/big.bin", 900_000),
        ("app/src/main.rs", 500),
        ("app/z", 900),
        ("lib/package.json", 500),
    ]
    .map(|(name, size)| (path(name), size))
    .into();
    let often = [&["app/src"][..], &["**/*.json"]];
    let often = often.map(|group| group.iter().map(|text| (*text).to_owned()).collect()).to_vec();
    let split = Split { often, ..split(128 << 10) };
    let names = |part: &BTreeMap<TreePath, Option<u64>>| {
        let files = part.iter().filter(|(_, size)| size.is_some());
        files.map(|(path, _)| path.to_string()).collect::<Vec<_>>()
    };
    let parts: Vec<_> = parts_of(&files, &split).iter().map(names).collect();
    let wanted: [&[&str]; 5] = [
        &["/app/a"],
        &["/app/big.bin"],
        &["/app/z"],
        &["/app/src/main.rs"],
        &["/lib/package.json"],
    ];
    assert_eq!(parts, wanted);
    let small: Sizes = files.into_iter().filter(|(_, size)| *size < 1000).collect();
    assert_eq!(
        parts_of(&small, &split).len(),
        1,
        "what is small is one layer whatever is asked for"
    );
}

/// A member of an archive: place, and what is there.
#[derive(Clone, Debug)]
enum Member {
    Directory(u32),
    File(Vec<u8>),
    Symlink(String),
    Link(String),
    Mark,
}

fn members() -> impl Strategy<Value = Vec<(String, Member)>> {
    let member = prop_oneof![
        2 => (0..3_u32).prop_map(|mode| Member::Directory(0o750 + mode)),
        6 => (any::<u8>(), 0..6000_usize).prop_map(|(byte, size)| Member::File(vec![byte; size])),
        1 => "[abc](/[abc])?".prop_map(Member::Symlink),
        1 => "[abc](/[abc])?".prop_map(Member::Link),
        1 => Just(Member::Mark),
    ];
    prop::collection::vec(("[abcd](/[abcd]){0,3}", member), 1..24)
}

fn write_archive(to: &Path, members: &[(String, Member)]) {
    let mut archive = tar::Builder::new(fs::File::create(to).unwrap());
    for (number, (place, member)) in members.iter().enumerate() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o640);
        header.set_uid(number as u64 % 3);
        header.set_mtime(number as u64);
        header.set_size(0);
        let mut content: &[u8] = b"";
        let mut name = place.clone();
        let (kind, link) = match member {
            Member::Directory(mode) => {
                header.set_mode(*mode);
                (tar::EntryType::Directory, None)
            }
            Member::File(bytes) => {
                content = bytes;
                header.set_size(bytes.len() as u64);
                (tar::EntryType::Regular, None)
            }
            Member::Symlink(target) => (tar::EntryType::Symlink, Some(target)),
            Member::Link(target) => (tar::EntryType::Link, Some(target)),
            Member::Mark => {
                let (above, last) = place.rsplit_once('/').unwrap_or(("", place));
                name = format!("{above}/.wh.{last}").trim_start_matches('/').to_owned();
                (tar::EntryType::Regular, None)
            }
        };
        header.set_entry_type(kind);
        if let Some(link) = link {
            header.set_link_name(link).unwrap();
        }
        archive.append_data(&mut header, name, content).unwrap();
    }
    archive.finish().unwrap();
}

/// Everything of a stack of layers, hard links by the first of their names.
fn file_system(bench: &Bench, layers: &[DiffId]) -> BTreeMap<TreePath, (Kind, Meta, Vec<u8>)> {
    let view = View::open(&bench.store, layers).unwrap();
    let (mut all, mut names, mut pending) =
        (BTreeMap::new(), BTreeMap::new(), vec![TreePath::root()]);
    while let Some(directory) = pending.pop() {
        for name in view.names(&directory) {
            let path = directory.child(&name).unwrap();
            let mut entry = view.entry(&path).unwrap();
            if entry.is_directory() {
                pending.push(path.clone());
            }
            let (mut content, mut first) = (Vec::new(), Vec::new());
            if matches!(entry.kind, Kind::File { .. } | Kind::Hardlink { .. }) {
                view.open_file(&path).unwrap().read_to_end(&mut content).unwrap();
                // Which name of a file has the content is the archive's business.
                entry.kind = Kind::File { size: content.len() as u64 };
                first = names
                    .entry(view.origin(&path))
                    .or_insert_with(|| path.as_bytes().to_vec())
                    .clone();
            }
            entry.meta.xattrs.insert(b"first".to_vec(), first);
            all.insert(path, (entry.kind, entry.meta, content));
        }
    }
    all
}

impl Bench {
    /// As one layer, and as several.
    fn both(
        &self,
        base: &[DiffId],
        copy: &Copy<'_>,
        split: &Split,
    ) -> Option<(DiffId, Vec<DiffId>)> {
        let whole = self.layer(base, copy);
        let parts = self.parts(base, copy, split, CacheUse::Use);
        assert_eq!(
            whole.as_ref().err().map(ToString::to_string),
            parts.as_ref().err().map(ToString::to_string)
        );
        Some((whole.ok()?, parts.ok()?))
    }

    fn parts(
        &self,
        base: &[DiffId],
        copy: &Copy<'_>,
        split: &Split,
        cache: CacheUse,
    ) -> Result<Vec<DiffId>, FilesError> {
        let context = self.context(copy.ignore);
        let (op, root_of) = (copy.op(), |_| Root::Context(&context));
        let key = key(&self.store, &op, ChainId::of(base), &root_of)?;
        let parting = Some(Parting { split, cache });
        let making = Making { clock: CLOCK, selections: &key.selections, earlier: None, parting };
        Ok(make_layers(&self.store, &op, base, &root_of, making)?.layers().to_vec())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn parts_of_an_archive_over_anything_are_the_same_file_system(below in members(), above in members()) {
        let bench = Bench::new();
        write_archive(&bench.path("a.tar"), &below);
        write_archive(&bench.path("b.tar"), &above);
        let add = |name| Copy { unpack: Unpack::Local, ..copy(name, "/") };
        let split = split(8 << 10);
        let Some((whole, parts)) = bench.both(&[], &add("a.tar"), &split) else { return Ok(()) };
        prop_assert_eq!(file_system(&bench, &[whole]), file_system(&bench, &parts));
        let Some((upper, more)) = bench.both(&[whole], &add("b.tar"), &split) else { return Ok(()) };
        let wanted = file_system(&bench, &[whole, upper]);
        prop_assert_eq!(&wanted, &file_system(&bench, &[vec![whole], more.clone()].concat()));
        // Parts of the one stand on parts of the other as well.
        let Some((_, again)) = bench.both(&parts, &add("b.tar"), &split) else { return Ok(()) };
        prop_assert_eq!(&wanted, &file_system(&bench, &[parts, again].concat()));
    }
}

#[test]
fn parts_that_are_as_before_are_found_and_not_written() {
    let bench = Bench::new();
    for number in 0..40 {
        bench.write(&format!("d{}/f{number}", number % 5), &"x".repeat(3000 + number));
    }
    fs::hard_link(bench.path("d0/f0"), bench.path("d4/other")).unwrap();
    symlink("f1", bench.path("d1/link")).unwrap();
    fs::set_permissions(bench.path("d2"), fs::Permissions::from_mode(0o2750)).unwrap();
    let (split, all) = (split(16 << 10), copy(".", "/app/"));
    let (whole, parts) = bench.both(&[], &all, &split).unwrap();
    assert!(parts.len() > 4, "{}", parts.len());
    let wanted = file_system(&bench, &[whole]);
    assert_eq!(file_system(&bench, &parts), wanted);
    let first = |name: &str| &wanted[&path(name)].1.xattrs;
    assert_eq!(first("app/d4/other"), first("app/d0/f0"), "one file with two names");

    bench.write("d3/f8", &"y".repeat(3008));
    let edited = bench.parts(&[], &all, &split, CacheUse::Ignore).unwrap();
    assert_eq!(edited.iter().filter(|part| !parts.contains(part)).count(), 1);
    let blob = |layer: &DiffId| bench.store.root().join("blobs/sha256").join(layer.0.hex());
    // Whatever wrote a part again would mend its blob.
    edited.iter().for_each(|part| fs::write(blob(part), "damaged").unwrap());
    assert_eq!(bench.parts(&[], &all, &split, CacheUse::Use).unwrap(), edited);
    assert!(edited.iter().all(|part| fs::read(blob(part)).unwrap() == b"damaged"));
    assert_eq!(bench.parts(&[], &all, &split, CacheUse::Discard).unwrap(), edited);
    assert!(edited.iter().all(|part| fs::read(blob(part)).unwrap() != b"damaged"));
    assert_eq!(file_system(&bench, &edited).len(), wanted.len());
}
