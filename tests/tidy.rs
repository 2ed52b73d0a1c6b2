//! House rules a compiler cannot check: layers, file size, names, purpose, and what must be absent.
//!
//! Each failure names the file, the line and the rule, so the fix is obvious.

#![expect(clippy::unwrap_used, reason = "a failed read is a failed test")]
#![expect(clippy::string_slice, reason = "cut where a match begins")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Lowest layer first. A module may use its own children and any *earlier row*;
/// modules sharing a row are blind to one another unless listed in [`SAME_ROW`].
const LAYERS: &[&[&str]] = &[
    &["dag", "event", "limits", "oci", "remote", "tree"],
    &["dockerfile", "graph", "plan", "project"],
    &["git", "layer", "registry", "sandbox", "ssh", "store", "trust"],
    &["build", "image", "snapshot"],
    &["exec", "serve", "watch"],
    &["report"],
];

/// `(user, used)` pairs allowed inside one row; each of them is made use of.
const SAME_ROW: &[(&str, &str)] = &[
    ("event", "oci"),
    ("dockerfile", "graph"),
    ("plan", "project"),
    ("registry", "trust"),
    ("build", "image"),
    ("build", "snapshot"),
    ("exec", "serve"),
    ("watch", "exec"),
];

const BANNED_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc"];

/// Spellings that no file may hold, taken apart so that this one does not, and what is wrong with them.
const BANNED: &[(&str, &str, &str)] = &[
    ("super::", "super", "hides which module is used"),
    ("use crate", " as", "hides which module is used"),
    ("to", "do!", "is a stub"),
    ("unimple", "mented!", "is a stub"),
    ("TO", "DO", "belongs into an issue"),
    ("FIX", "ME", "belongs into an issue"),
    ("#[ig", "nore", "is a test that does not run"),
    ("#[al", "low(", "stays when it is not needed any more: use `expect` with a reason"),
    ("/wo", "rk/", "is a path of one machine"),
];

/// What only `cli` and `main.rs` may do.
const BANNED_IN_LIBRARY: &[&str] = &[
    "println!",
    "print!(",
    "eprint!(",
    "dbg!(",
    "io::stdout",
    "io::stderr",
    "io::stdin",
    "std::env::",
    "std::env;",
    "env::args",
    "env::current_",
    "env::home_dir",
    "env::remove_",
    "env::set_",
    "env::temp_dir",
    "env::var",
    "process::exit",
    "process::abort",
];
/// The processor that the program is built for is no matter of the environment; an image may be asked for on standard output.
const ALLOWED_IN_LIBRARY: [&str; 2] = ["std::env::consts::ARCH", "io::stdout().as_fd()"];

/// Rows of [`LAYERS`] of values and pure functions.
const PURE_ROWS: usize = 2;

/// What values and pure functions do not know: files, processes, threads, other machines, time.
const BANNED_IN_PURE: &[&str] = &[
    "std::fs",
    "fs::",
    "std::process",
    "std::thread",
    "std::io",
    "rustix",
    "tokio",
    "async ",
    "Instant",
    "SystemTime",
    "TcpStream",
    "reqwest",
    "heed",
];

/// State of the whole process, which two builds in it share: `(file, name)`.
const MUTABLE_STATICS: &[(&str, &str)] = &[
    // A counter for names.
    ("src/sandbox/cgroup.rs", "NEXT"),
    ("src/store/mod.rs", "OPEN"),
    ("src/store/mod.rs", "CLOSED"),
    // Signals are the whole program's.
    ("src/cli/setup.rs", "STOPPED_BY"),
];

/// Where `unsafe` code may be.
const MAY_BE_UNSAFE: [&str; 3] = ["src/sandbox/", "src/store/", "benches/workloads/measure.rs"];

/// Folders of Rust files.
const FOLDERS: [&str; 3] = ["src", "tests", "benches"];

/// Longest file; unit tests in it do not count.
const FILE_LINES_MAX: usize = 600;

/// Names of files that hold tests and nothing else, besides `tests.rs`, `*_tests.rs` and folders `tests`.
/// Each is declared behind `#[cfg(test)]`, which [`test_files_are_for_tests`] checks.
const TEST_FILES: &[&str] = &[
    "image/outputs.rs",
    "image/travels.rs",
    "layer/hostile.rs",
    "layer/laws.rs",
    "registry/faults.rs",
    "registry/leaks.rs",
    "registry/rounds.rs",
    "registry/scripted.rs",
];

#[test]
fn modules_only_use_lower_layers() {
    let mut broken = Vec::new();
    let mut pairs = BTreeSet::new();
    for Source { path, text } in sources("src") {
        let user = module_of(&path);
        for (line, used) in used_modules(&text) {
            if !may_use(&user, &used) {
                broken.push(format!("{path}:{line}: `{user}` must not use `{used}`"));
            }
            pairs.insert((user.clone(), used));
        }
    }
    for (user, used) in SAME_ROW {
        if !pairs.contains(&((*user).to_owned(), (*used).to_owned())) {
            broken.push(format!("`{user}` may use `{used}` and does not: take it off the list"));
        }
    }
    assert!(broken.is_empty(), "layering:\n{}", broken.join("\n"));
}

#[test]
fn braces_hide_no_dependency() {
    let text = "use crate::{\n    a::{B, c::D},\n    e,\n    f::*,\n};\n// crate::not\nfn f() { crate::g::h(\"x\") }\n";
    let expected = [(2, "a"), (3, "e"), (4, "f"), (7, "g")];
    assert_eq!(used_modules(text), expected.map(|(line, used)| (line, used.to_owned())));
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut broken = Vec::new();
    for Source { path, text } in FOLDERS.iter().flat_map(|folder| sources(folder)) {
        let lines = outside_of_tests(&text).count();
        if lines > FILE_LINES_MAX && !is_test_file(&path) {
            broken.push(format!("{path}: {lines} lines, limit {FILE_LINES_MAX}"));
        }
        let names = path.split('/').map(|name| name.trim_end_matches(".rs"));
        for name in names.filter(|name| BANNED_NAMES.contains(name)) {
            broken.push(format!("{path}: the name `{name}` says nothing about what is there"));
        }
        if !text.starts_with("//! ") {
            broken.push(format!("{path}: starts without a `//!` purpose"));
        }
    }
    assert!(broken.is_empty(), "files:\n{}", broken.join("\n"));
}

#[test]
fn test_files_are_for_tests() {
    let mut broken = Vec::new();
    for file in TEST_FILES {
        let path = Path::new("src").join(file);
        let name = path.file_stem().unwrap().to_str().unwrap();
        let parent = read(&path.with_file_name("mod.rs"));
        let declared = ["mod", "pub(crate) mod", "pub(super) mod"]
            .iter()
            .any(|how| parent.contains(&format!("#[cfg(test)]\n{how} {name};")));
        if !declared {
            broken.push(format!("src/{file} is not declared behind `#[cfg(test)]`"));
        }
    }
    assert!(broken.is_empty(), "tests:\n{}", broken.join("\n"));
}

#[test]
fn nothing_is_left_undone_and_nothing_is_switched_off() {
    let mut broken = Vec::new();
    for Source { path, text } in FOLDERS.iter().flat_map(|folder| sources(folder)) {
        for (line, found) in text.lines().enumerate() {
            for (front, back, why) in BANNED {
                let banned = format!("{front}{back}");
                if found.contains(&banned) {
                    broken.push(format!("{path}:{}: `{banned}` {why}", line + 1));
                }
            }
        }
    }
    assert!(broken.is_empty(), "leftovers:\n{}", broken.join("\n"));
}

/// Lists of what may go wrong, and how long each is: faults, hostile layers, attacks on the sandbox.
const CASES: [(char, usize); 3] = [('f', 25), ('l', 30), ('s', 35)];
/// Not tested under its own number: it stands for the cases of registries.
const CASES_BY_OTHER_NAMES: [&str; 1] = ["f23"];

#[test]
fn every_case_has_a_test_that_is_named_after_it() {
    let sources: Vec<Source> = sources("src").into_iter().chain(sources("tests")).collect();
    let tests = sources.iter().flat_map(|source| source.text.split("#[test]").skip(1));
    let names =
        tests.filter_map(|after| after.split_once("fn ")?.1.split_once('(')).map(|name| name.0);
    let named: BTreeSet<&str> = names.flat_map(|name| name.split('_')).collect();
    let cases =
        CASES.iter().flat_map(|(list, most)| (1..=*most).map(move |n| format!("{list}{n:02}")));
    let missing: Vec<String> = cases
        .filter(|case| !named.contains(&**case) && !CASES_BY_OTHER_NAMES.contains(&&**case))
        .collect();
    assert!(missing.is_empty(), "no test is named after {missing:?}");
}

#[test]
fn the_library_neither_prints_nor_looks_around_nor_exits() {
    let is_library = |module: &str| !["cli", "main"].contains(&module);
    let found = code_with(is_library, BANNED_IN_LIBRARY);
    let broken: Vec<_> = found
        .iter()
        .filter(|line| !ALLOWED_IN_LIBRARY.iter().any(|it| line.contains(it)))
        .collect();
    assert!(broken.is_empty(), "only `cli` may: {broken:#?}");
}

#[test]
fn languages_and_nouns_are_values_and_pure_functions() {
    let pure = LAYERS[..PURE_ROWS].concat();
    let broken = code_with(|module| pure.contains(&module), BANNED_IN_PURE);
    assert!(broken.is_empty(), "not pure: {broken:#?}");
}

#[test]
fn two_builds_in_one_process_share_no_state() {
    let mut broken = Vec::new();
    for Source { path, text } in sources("src").into_iter().filter(|it| !is_test_file(&it.path)) {
        for (line, found) in outside_of_tests(&text) {
            let found = found.trim_start().trim_start_matches("pub(crate) ");
            let Some((name, kind)) = found
                .trim_start_matches("pub ")
                .strip_prefix("static ")
                .and_then(|it| it.split_once(':'))
            else {
                continue;
            };
            let is_changed = ["Mutex", "RwLock", "Atomic", "Cell", "Condvar"]
                .iter()
                .any(|word| kind.contains(word));
            let is_known = MUTABLE_STATICS.contains(&(path.as_str(), name));
            if name.starts_with("mut ") || is_changed && !is_known {
                broken.push(format!("{path}:{line}: {name}"));
            }
        }
    }
    assert!(broken.is_empty(), "state of the process:\n{}", broken.join("\n"));
}

#[test]
fn what_is_unsafe_is_where_the_kernel_and_the_map_are() {
    // The lint of Cargo.toml denies it where no attribute names the lint.
    let spelling = ["unsafe", "_code"].concat();
    let broken: Vec<String> = FOLDERS
        .iter()
        .flat_map(|folder| sources(folder))
        .filter(|source| source.text.contains(&spelling))
        .map(|source| source.path)
        .filter(|path| !MAY_BE_UNSAFE.iter().any(|place| path.starts_with(place)))
        .collect();
    assert!(broken.is_empty(), "unsafe: {broken:#?}");
}

#[test]
fn every_module_has_a_layer() {
    let lib = read(Path::new("src/lib.rs"));
    let declared = lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'));
    let listed: Vec<_> = LAYERS.iter().copied().flatten().copied().collect();
    assert_eq!(declared.collect::<Vec<_>>(), listed, "`lib.rs` and `LAYERS` list the same");
}

/// One file, by its path from the root of the repository.
struct Source {
    path: String,
    text: String,
}

/// Lines of code of some modules of the library that hold one of these words, with their places; tests are left out.
fn code_with(is_asked: impl Fn(&str) -> bool, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for Source { path, text } in sources("src") {
        if !is_asked(&module_of(&path)) || is_test_file(&path) {
            continue;
        }
        for (line, text) in outside_of_tests(&text) {
            let code = text.trim_start();
            if !code.starts_with("//") && words.iter().any(|word| code.contains(word)) {
                found.push(format!("{path}:{line}: {code}"));
            }
        }
    }
    found
}

/// Lines that are not part of a test, with their numbers from 1.
fn outside_of_tests(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut lines = (1..).zip(text.lines());
    std::iter::from_fn(move || {
        loop {
            let (number, line) = lines.next()?;
            if line != "#[cfg(test)]" {
                return Some((number, line));
            }
            // What is for tests alone: a line, or all up to the brace that closes it.
            lines.find(|(_, line)| line.ends_with([';', '}']) && !line.starts_with(' '));
        }
    })
}

#[test]
fn what_is_for_tests_is_left_out_and_no_more() {
    let text = "a\n#[cfg(test)]\n#[path = \"b.rs\"]\nmod b;\nc\n#[cfg(test)]\nmod d {\n    e;\n    }\n}\nf";
    assert_eq!(outside_of_tests(text).collect::<Vec<_>>(), [(1, "a"), (5, "c"), (11, "f")]);
}

fn may_use(user: &str, used: &str) -> bool {
    let row = |name: &str| LAYERS.iter().position(|row| row.contains(&name));
    match (row(user), row(used)) {
        _ if user == used => true,
        (Some(user_row), Some(used_row)) if user_row == used_row => {
            SAME_ROW.contains(&(user, used))
        }
        (Some(user_row), Some(used_row)) => used_row < user_row,
        // A macro or item of the crate's root.
        (Some(_), None) => false,
        // `lib.rs` and the binary.
        (None, _) => true,
    }
}

/// Every module of the crate that code names after `crate::`, in groups of braces too, with its line.
fn used_modules(text: &str) -> Vec<(usize, String)> {
    let code: String =
        text.lines()
            .map(|line| {
                if line.trim_start().starts_with("//") { "\n".into() } else { format!("{line}\n") }
            })
            .collect();
    let mut used = Vec::new();
    for (start, prefix) in code.match_indices("crate::") {
        let begin = start + prefix.len();
        let is_path = !code[..start].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if is_path {
            let mut starts = vec![begin];
            if code[begin..].starts_with('{') {
                starts = members(&code, begin);
            }
            for at in starts {
                let is_name = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_';
                let name: String = code[at..].chars().take_while(is_name).collect();
                used.push((code[..at].matches('\n').count() + 1, name));
            }
        }
    }
    used
}

/// Where the members of the group that opens at `open` begin; members of inner groups are not counted.
fn members(code: &str, open: usize) -> Vec<usize> {
    let mut starts = Vec::new();
    let (mut depth, mut expected) = (0, false);
    for (offset, letter) in code[open..].char_indices() {
        match letter {
            '{' => {
                depth += 1;
                expected = depth == 1;
            }
            '}' => depth -= 1,
            ',' => expected = depth == 1,
            _ if expected && !letter.is_whitespace() => {
                starts.push(open + offset);
                expected = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    starts
}

fn is_test_file(path: &str) -> bool {
    let Some(inner) = path.strip_prefix("src/") else { return false };
    inner.contains("/tests/")
        || inner.ends_with("/tests.rs")
        || inner.ends_with("_tests.rs")
        || TEST_FILES.contains(&inner)
}

fn module_of(path: &str) -> String {
    let first = path.split('/').nth(1).expect("paths are src/MODULE");
    first.trim_end_matches(".rs").to_owned()
}

/// All Rust files below a folder of the repository, in order.
fn sources(folder: &str) -> Vec<Source> {
    let mut pending = vec![root().join(folder)];
    let mut found = Vec::new();
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
