//! The data file of LMDB, looked at as bytes: what is wrong with it, and every row that can still be read.
//!
//! LMDB believes what stands in its file, and a wrong offset kills the process that follows it. So a check reads the
//! pages itself, before anything opens them. Knows the file format (`mdb.c` of LMDB 0.9: `MDB_meta`, `MDB_page`,
//! `MDB_node`, data version 1, 64-bit little-endian) and nothing of what rows mean.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use super::facts::Row;

const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const NODE_BYTES: usize = 8;
const TREE_BYTES: usize = 48;
const META_BYTES: usize = 24 + 2 * TREE_BYTES + 16;
const NO_PAGE: u64 = u64::MAX;
const FIRST_DATA_PAGE: u64 = 2;
/// `P_BRANCH`, `P_LEAF`, `P_OVERFLOW`, `P_META`.
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
const META: u16 = 8;
/// `F_BIGDATA`, `F_SUBDATA`.
const IS_BIG: u16 = 1;
const IS_TABLE: u16 = 2;
/// Largest key that LMDB takes, in bytes (`MDB_MAXKEYSIZE`).
const KEY_BYTES_MAX: usize = 511;
/// `CURSOR_STACK`: deepest tree.
const DEPTH_MAX: u16 = 32;
/// Largest map that is ever made, in bytes.
const MAP_BYTES_MAX: u64 = 1 << 40;
/// How many problems are told.
const PROBLEMS_MAX: usize = 16;
/// How often a file that others write to is read again.
const TRIES_MAX: usize = 50;

/// What stands in a data file.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// Rows by table, in order of their keys.
    pub(super) tables: BTreeMap<Vec<u8>, Vec<Row>>,
    /// What is wrong, in words for people.
    pub(super) problems: Vec<String>,
    /// Whether there is a file with anything in it.
    pub(super) is_there: bool,
}

/// Reads a data file. Nothing is locked: pages of a state stay as they are until two more were committed, and a
/// state that got as old as that meanwhile is read again.
///
/// # Errors
///
/// When the kernel cannot read it, or it changes faster than it can be read.
pub(super) fn read(path: &Path) -> io::Result<Pages> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pages::default()),
        file => file?,
    };
    if file.metadata()?.len() == 0 {
        return Ok(Pages::default());
    }
    for _ in 0..TRIES_MAX {
        let (before, found) = (newest(&file), walk(&file)?);
        let moved = newest(&file).unwrap_or(0).saturating_sub(before.unwrap_or(0));
        // A meta page may have been read while it was written: what is wrong must stay wrong.
        let is_certain = found.problems.is_empty() || newest(&file) == before;
        if moved <= 1 && is_certain {
            return Ok(found);
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is written to all the time; try again"))
}

/// Number of the newest committed state.
fn newest(file: &File) -> Option<u64> {
    metas(file).0.iter().map(|meta| meta.state).max()
}

/// One of the two pages at the beginning, which say where everything is.
#[derive(Clone, Copy)]
struct Meta {
    free: Tree,
    main: Tree,
    page_bytes: usize,
    last_page: u64,
    state: u64,
}

/// `MDB_db`.
#[derive(Clone, Copy)]
struct Tree {
    pad: u32,
    flags: u16,
    depth: u16,
    /// Pages: branches, leaves, overflow.
    pages: [u64; 3],
    entries: u64,
    root: u64,
}

/// How keys are ordered.
#[derive(Clone, Copy)]
enum Order {
    Bytes,
    Number,
}

struct Walk<'a> {
    file: &'a File,
    page_bytes: usize,
    last_page: u64,
    used: HashSet<u64>,
    problems: Vec<String>,
}

/// What is counted while a tree is walked.
#[derive(Default)]
struct Counted {
    pages: [u64; 3],
    nodes: Vec<Node>,
}

struct Node {
    key: Vec<u8>,
    value: Vec<u8>,
    flags: u16,
}

/// Keys that a page may hold: from the first on, below the second.
#[derive(Clone, Default)]
struct Bounds {
    from: Option<Vec<u8>>,
    below: Option<Vec<u8>>,
}

fn metas(file: &File) -> (Vec<Meta>, Vec<String>) {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    // The second stands behind the first page, whose size only the first tells.
    let sizes = std::iter::successors(Some(512_usize), |size| Some(size * 2)).take(8);
    let first = read_meta(file, 0, 0);
    let page_bytes = first.as_ref().ok().map(|meta| meta.page_bytes);
    let second = match page_bytes {
        Some(bytes) => read_meta(file, bytes as u64, 1),
        None => sizes
            .map(|bytes| read_meta(file, bytes as u64, 1))
            .find(Result::is_ok)
            .unwrap_or_else(|| Err("page 1 is not what it should be".to_owned())),
    };
    for meta in [first, second] {
        match meta {
            Ok(meta) => found.push(meta),
            Err(problem) => problems.push(problem),
        }
    }
    if let [one, other] = found[..] {
        let apart = one.state.abs_diff(other.state);
        if apart != 1 && (one.state, other.state) != (0, 0) {
            problems.push("pages 0 and 1 do not follow one another".to_owned());
        }
        if one.page_bytes != other.page_bytes {
            problems.push("pages 0 and 1 differ in the size of pages".to_owned());
        }
    }
    (found, problems)
}

fn read_meta(file: &File, offset: u64, number: u64) -> Result<Meta, String> {
    let wrong = |what: &str| format!("page {number}: {what}");
    let mut page = [0; HEADER_BYTES + META_BYTES];
    file.read_exact_at(&mut page, offset).map_err(|_| wrong("cannot be read"))?;
    let meta = &page[HEADER_BYTES..];
    let is_meta = u64_at(&page, 0) == number
        && u16_at(&page, 10) == META
        && (u32_at(meta, 0), u32_at(meta, 4)) == (MAGIC, DATA_VERSION);
    if !is_meta {
        return Err(wrong("is not what it should be"));
    }
    let free = Tree::parse(&meta[24..]);
    let main = Tree::parse(&meta[24 + TREE_BYTES..]);
    let (map, last_page, state) =
        (u64_at(meta, 16), u64_at(meta, META_BYTES - 16), u64_at(meta, META_BYTES - 8));
    let page_bytes = free.pad as usize;
    let sane_page = page_bytes.is_power_of_two() && (512..=65_536).contains(&page_bytes);
    let pages_max = MAP_BYTES_MAX / page_bytes.max(1) as u64;
    if !sane_page || offset != number * page_bytes as u64 {
        return Err(wrong("has an impossible size of pages"));
    }
    if map > MAP_BYTES_MAX || last_page > pages_max || last_page == 0 {
        return Err(wrong("has an impossible size of the file"));
    }
    if state != 0 && state % 2 != number {
        return Err(wrong("is of a state that belongs into the other"));
    }
    Ok(Meta { free, main, page_bytes, last_page, state })
}

fn walk(file: &File) -> io::Result<Pages> {
    let (metas, problems) = metas(file);
    let mut pages = Pages { problems, is_there: true, ..Pages::default() };
    let Some(meta) = metas.into_iter().max_by_key(|meta| meta.state) else { return Ok(pages) };
    let mut walk = Walk {
        file,
        page_bytes: meta.page_bytes,
        last_page: meta.last_page,
        used: HashSet::new(),
        problems: Vec::new(),
    };
    for node in walk.tree("the list of tables", &meta.main, Order::Bytes) {
        let name = String::from_utf8_lossy(&node.key).into_owned();
        if node.flags != IS_TABLE || node.value.len() != TREE_BYTES {
            walk.problem(format!("`{name}` is no table"));
            continue;
        }
        let rows = walk.tree(&name, &Tree::parse(&node.value), Order::Bytes);
        if rows.iter().any(|row| row.flags & IS_TABLE != 0) {
            walk.problem(format!("`{name}` has a table in it"));
        }
        let rows = rows.into_iter().map(|row| (row.key, row.value)).collect();
        pages.tables.insert(node.key, rows);
    }
    walk.check_free(&meta.free);
    pages.problems.extend(walk.problems);
    pages.problems.truncate(PROBLEMS_MAX);
    Ok(pages)
}

impl Tree {
    fn parse(bytes: &[u8]) -> Self {
        Self {
            pad: u32_at(bytes, 0),
            flags: u16_at(bytes, 4),
            depth: u16_at(bytes, 6),
            pages: [8, 16, 24].map(|at| u64_at(bytes, at)),
            entries: u64_at(bytes, 32),
            root: u64_at(bytes, 40),
        }
    }
}

impl Walk<'_> {
    fn problem(&mut self, what: String) {
        self.problems.push(what);
    }

    /// All entries of a tree, in order.
    fn tree(&mut self, name: &str, tree: &Tree, order: Order) -> Vec<Node> {
        let mut counted = Counted::default();
        if matches!(order, Order::Bytes) && (tree.flags != 0 || tree.pad != 0) {
            self.problem(format!("`{name}` has flags that nobody set"));
        }
        if tree.depth > DEPTH_MAX {
            self.problem(format!("`{name}` has an impossible depth"));
        } else if tree.root != NO_PAGE {
            self.page((tree.root, tree.depth), &Bounds::default(), order, &mut counted);
        } else if tree.depth != 0 {
            self.problem(format!("`{name}` has lost its beginning"));
        }
        if tree.pages != counted.pages || tree.entries != counted.nodes.len() as u64 {
            self.problem(format!("`{name}` has not as many pages or rows as it says"));
        }
        counted.nodes
    }

    /// Reads a page's bytes; a wrong one is a problem and none.
    fn fetch(&mut self, number: u64, kind: u16) -> Option<Vec<u8>> {
        if !(FIRST_DATA_PAGE..=self.last_page).contains(&number) {
            self.problem(format!("page {number} is outside of the file"));
            return None;
        }
        if !self.used.insert(number) {
            self.problem(format!("page {number} is used twice"));
            return None;
        }
        let mut page = vec![0; self.page_bytes];
        if self.file.read_exact_at(&mut page, number * self.page_bytes as u64).is_err() {
            self.problem(format!("page {number} is missing"));
            return None;
        }
        if u64_at(&page, 0) != number || u16_at(&page, 10) != kind {
            self.problem(format!("page {number} is not what it should be"));
            return None;
        }
        Some(page)
    }

    fn page(
        &mut self,
        (number, depth): (u64, u16),
        bounds: &Bounds,
        order: Order,
        counted: &mut Counted,
    ) {
        let (kind, count) = if depth > 1 { (BRANCH, 0) } else { (LEAF, 1) };
        let Some(page) = self.fetch(number, kind) else { return };
        counted.pages[count] += 1;
        let nodes = self.nodes(number, kind, &page);
        let mut keys: Vec<Option<Vec<u8>>> = Vec::new();
        for (index, at) in nodes.iter().enumerate() {
            let key = &page[at + NODE_BYTES..at + NODE_BYTES + key_bytes(&page, *at)];
            // The first of a branch stands for all that is smaller.
            let key =
                if kind == BRANCH && index == 0 { bounds.from.clone() } else { Some(key.to_vec()) };
            keys.push(key);
        }
        self.check_order(number, &keys, bounds, order);
        for (index, at) in nodes.iter().enumerate() {
            if kind == LEAF {
                self.leaf_node(&page, *at, counted);
                continue;
            }
            let child = u64::from(u32_at(&page, *at)) | u64::from(u16_at(&page, at + 4)) << 32;
            let below = keys.get(index + 1).cloned().flatten().or_else(|| bounds.below.clone());
            let bounds = Bounds { from: keys[index].clone(), below };
            self.page((child, depth - 1), &bounds, order, counted);
        }
    }

    /// Where the nodes of a page begin: those that lie in it as LMDB lays them, without a gap.
    fn nodes(&mut self, number: u64, kind: u16, page: &[u8]) -> Vec<usize> {
        let (lower, upper) = (usize::from(u16_at(page, 12)), usize::from(u16_at(page, 14)));
        let sane = lower >= HEADER_BYTES && lower % 2 == 0 && lower <= upper && upper <= page.len();
        if !sane || lower == HEADER_BYTES {
            self.problem(format!("page {number} has impossible bounds"));
        }
        let lower = lower.min(page.len());
        let starts = (HEADER_BYTES..lower.max(HEADER_BYTES))
            .step_by(2)
            .filter(|at| at + 2 <= page.len())
            .map(|at| usize::from(u16_at(page, at)));
        let mut found = Vec::new();
        let mut extents = Vec::new();
        for at in starts {
            let end = (at >= lower).then(|| node_end(kind, page, at)).flatten();
            match end {
                Some(end) => {
                    found.push(at);
                    extents.push((at, end));
                }
                None => self.problem(format!("page {number} has a row that is not in it")),
            }
        }
        extents.sort_unstable();
        let ends: Vec<usize> = extents.iter().map(|(_, end)| *end).collect();
        let begins = extents.iter().map(|(at, _)| *at).chain([page.len()]);
        if !begins.eq([upper].into_iter().chain(ends)) {
            self.problem(format!("the rows of page {number} overlap or leave a gap"));
        }
        found
    }

    fn check_order(
        &mut self,
        number: u64,
        keys: &[Option<Vec<u8>>],
        bounds: &Bounds,
        order: Order,
    ) {
        let first = std::iter::once(&bounds.from).filter(|from| from.is_some());
        let known: Vec<&Vec<u8>> = first.clone().chain(keys).flatten().collect();
        let mut in_order = true;
        for (index, pair) in known.windows(2).enumerate() {
            let may_be_equal = index == 0 && bounds.from.is_some();
            let [one, other] = pair else { continue };
            in_order &= order.is_less(one, other) || may_be_equal && one == other;
        }
        if let (Some(last), Some(below)) = (known.last(), &bounds.below) {
            in_order &= order.is_less(last, below);
        }
        if !in_order {
            self.problem(format!("page {number} is out of order"));
        }
    }

    fn leaf_node(&mut self, page: &[u8], at: usize, counted: &mut Counted) {
        let (flags, key_bytes) = (u16_at(page, at + 4), key_bytes(page, at));
        let from = at + NODE_BYTES + key_bytes;
        let key = page[at + NODE_BYTES..from].to_vec();
        let bytes = u32_at(page, at) as usize;
        if flags & IS_BIG == 0 {
            let value = page[from..from + bytes].to_vec();
            counted.nodes.push(Node { key, value, flags });
            return;
        }
        let first = u64_at(page, from);
        let pages = (HEADER_BYTES + bytes).div_ceil(self.page_bytes) as u64;
        let Some(head) = self.fetch(first, OVERFLOW) else { return };
        counted.pages[2] += pages;
        if u64::from(u32_at(&head, 12)) != pages || first + pages - 1 > self.last_page {
            return self.problem(format!("page {first} has another length than its row says"));
        }
        for number in first + 1..first + pages {
            if !self.used.insert(number) {
                self.problem(format!("page {number} is used twice"));
            }
        }
        let mut value = vec![0; bytes];
        let start = first * self.page_bytes as u64 + HEADER_BYTES as u64;
        match self.file.read_exact_at(&mut value, start) {
            Ok(()) => counted.nodes.push(Node { key, value, flags: flags & !IS_BIG }),
            Err(_) => self.problem(format!("page {first} is cut")),
        }
    }

    /// A page that is free and in use would be written over.
    fn check_free(&mut self, tree: &Tree) {
        let lists = self.tree("the list of free pages", tree, Order::Number);
        let mut free = 0;
        for Node { value, .. } in lists {
            let numbers: Vec<u64> =
                value.as_chunks::<8>().0.iter().copied().map(u64::from_le_bytes).collect();
            let Some((count, numbers)) = numbers.split_first().filter(|_| value.len() % 8 == 0)
            else {
                self.problem("a list of free pages is cut".to_owned());
                continue;
            };
            let Some(numbers) = usize::try_from(*count).ok().and_then(|count| numbers.get(..count))
            else {
                self.problem("a list of free pages is shorter than it says".to_owned());
                continue;
            };
            free += count;
            for number in numbers {
                let inside = (FIRST_DATA_PAGE..=self.last_page).contains(number);
                if !inside || !self.used.insert(*number) {
                    self.problem(format!("page {number} is listed as free and is not"));
                }
            }
            if !numbers.is_sorted_by(|one, other| one > other) {
                self.problem("a list of free pages is out of order".to_owned());
            }
        }
        let known = self.used.len() as u64;
        if self.problems.is_empty() && known != self.last_page - 1 {
            let lost = (self.last_page - 1).abs_diff(known);
            self.problem(format!("{lost} pages are neither used nor free ({free} are free)"));
        }
    }
}

impl Order {
    fn is_less(self, one: &[u8], other: &[u8]) -> bool {
        let number = |key: &[u8]| key.try_into().map(u64::from_le_bytes).unwrap_or_default();
        match self {
            Self::Bytes => one < other,
            Self::Number => number(one) < number(other),
        }
    }
}

fn key_bytes(page: &[u8], at: usize) -> usize {
    usize::from(u16_at(page, at + 6))
}

/// Where a node ends, when it fits into the page; nodes begin at even places.
fn node_end(kind: u16, page: &[u8], at: usize) -> Option<usize> {
    if !at.is_multiple_of(2) || at + NODE_BYTES > page.len() || key_bytes(page, at) > KEY_BYTES_MAX
    {
        return None;
    }
    let flags = u16_at(page, at + 4);
    let value_bytes = match (kind, flags) {
        (BRANCH, _) => 0,
        (_, IS_BIG) => 8,
        (_, 0 | IS_TABLE) => u32_at(page, at) as usize,
        _ => return None,
    };
    let bytes = NODE_BYTES + key_bytes(page, at) + value_bytes;
    let end = at + bytes.next_multiple_of(2);
    (end <= page.len()).then_some(end)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
