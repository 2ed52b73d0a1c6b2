//! The corpus of Dockerfiles, built by the binary, against what BuildKit makes of them; and in many ways that must not
//! matter, against one another.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::support::{
    Done, Folder, ROOT, bases, binary, copy_program, json, ordinary_user, registry::Registry,
};

/// Lines of `not-yet.txt`, at most.
const EXCEPTIONS_MAX: usize = 10;
/// Any order will do; this one is not that of the names, and every run has the same.
const ORDER: &str = "--shuffle=20200913";
/// How a case fails when `oracles` saw a difference between two ways to build it.
const WAYS: [&str; 4] = ["again: ", "uncached: ", "elsewhere: ", "warmed: "];

/// Case names of `not-yet.txt` by the word in front of them.
fn exceptions() -> BTreeMap<String, BTreeSet<String>> {
    let list = fs::read_to_string(Path::new(ROOT).join("tests/corpus/not-yet.txt")).unwrap();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines.clone() {
        let (place, case) = line.split_once(' ').expect("WHERE CASE");
        assert!(["everywhere", "rootless", "keeps"].contains(&place), "not-yet.txt: {line}");
        found.entry(place.to_owned()).or_default().insert(case.to_owned());
    }
    assert!(lines.count() <= EXCEPTIONS_MAX, "not-yet.txt has at most {EXCEPTIONS_MAX} cases");
    found
}

/// One run of `check` over the corpus.
struct Run {
    done: Done,
    /// What was built, by case.
    digests: BTreeMap<String, String>,
    /// How many images were written, and what the schemas say of them; `None` where none are kept.
    images: Option<(usize, Done)>,
}

impl Run {
    /// Through one of the adapters; `owner` is whose the contexts are, and who builds.
    fn through(adapter: &str, owner: Option<(u32, u32)>, words: &[&str]) -> Self {
        let folder = Path::new(ROOT).join("tests/corpus");
        let work = Folder::new();
        let at = |name: &str| work.path().join(name);
        for name in ["tools", "digests", "layouts", "shared", "work"] {
            fs::create_dir(at(name)).unwrap();
        }
        // The folders of the repository may be closed to other users.
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["adapter", "oracles"] {
            copy_program(folder.join(name), &at("tools").join(name));
        }
        copy_program(binary(), &at("tools/idpbuilder"));
        Done::of(Command::new("cp").arg("-r").arg(bases().join("corpus")).arg(at("base"))).ok();
        let mut check = Command::new(folder.join("check"));
        check.arg(at("tools").join(adapter)).args(words).args(["--jobs", "2"]);
        check.arg("--base").arg(at("base")).arg("--work").arg(at("work"));
        check.env("IDPBUILDER", at("tools/idpbuilder")).env("TMPDIR", at("work"));
        check.env("DIGESTS", at("digests")).env("SHARED", at("shared"));
        if owner.is_none() {
            check.env("LAYOUTS", at("layouts"));
        }
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(at("digests"), Some(user), Some(group)).unwrap();
            check.args(["--owner", &format!("{user}:{group}")]);
        }
        let keeps = exceptions().remove("keeps").unwrap_or_default();
        check.env("KEEP", keeps.into_iter().collect::<Vec<_>>().join(" "));
        let done = Done::of(&mut check);
        let layouts = entries(&at("layouts"));
        let mut validate = Command::new(folder.join("validate"));
        let images =
            (!layouts.is_empty()).then(|| (layouts.len(), Done::of(validate.args(layouts))));
        let read = |path: PathBuf| {
            let case = path.file_name().unwrap().to_str().unwrap().to_owned();
            (case, fs::read_to_string(path).unwrap())
        };
        let digests = entries(&at("digests")).into_iter().map(read).collect();
        Self { done, digests, images }
    }

    fn verdicts(&self, word: &str) -> BTreeSet<String> {
        let lines = self.done.out.lines();
        lines
            .filter_map(|line| line.strip_prefix(word))
            .map(|case| case.trim().to_owned())
            .collect()
    }

    /// Every case passes but the exceptions, and none of those passes.
    #[track_caller]
    fn assert_all_but(&self, places: &[&str]) {
        let (passed, failed) = (self.verdicts("PASS "), self.verdicts("FAIL "));
        let count = passed.len() + failed.len();
        assert!(count > 600, "the corpus was not run\n{}", self.done);
        let all = exceptions();
        let excepted: BTreeSet<String> =
            places.iter().filter_map(|place| all.get(*place)).flatten().cloned().collect();
        let mut why = String::new();
        for (case, reason) in self.done.out.lines().zip(self.done.out.lines().skip(1)) {
            if case.strip_prefix("FAIL ").is_some_and(|name| !excepted.contains(name)) {
                why.push_str(&format!("{case}\n{reason}\n"));
            }
        }
        let mended: Vec<_> = excepted.difference(&failed).collect();
        assert!(why.is_empty(), "cases that must pass:\n{why}");
        assert!(mended.is_empty(), "these pass now: take them out of not-yet.txt: {mended:#?}");
    }

    /// At least so many images were written, and the schemas have nothing against any.
    #[track_caller]
    fn assert_valid(&self, least: usize) {
        let (count, validated) = self.images.as_ref().expect("images are kept");
        assert!(*count >= least, "only {count} layouts were kept");
        assert!(validated.code == 0, "{validated}");
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Whether the case adds from a server: on another port in each run, and the history tells of it.
fn is_served(case: &str) -> bool {
    let path = Path::new(ROOT).join(format!("tests/corpus/cases/{case}.json"));
    json(&fs::read_to_string(path).unwrap()).get("http").is_some()
}

/// The run as root in all ways, made once.
fn as_root() -> &'static Run {
    static RUN: OnceLock<Run> = OnceLock::new();
    RUN.get_or_init(|| Run::through("oracles", None, &[ORDER]))
}

#[test]
fn the_corpus_builds_as_with_buildkit() {
    as_root().assert_all_but(&["everywhere"]);
}

/// In the same store from the cache and without it, in an empty store with other surroundings, and in one that has seen
/// all other cases in another order: always the same bytes, and the same words where the build fails.
#[test]
fn neither_cache_nor_surroundings_nor_what_was_built_before_change_a_byte_of_the_corpus() {
    let lines = as_root().done.out.lines().map(str::trim);
    let other: Vec<_> = lines.filter(|line| WAYS.iter().any(|way| line.starts_with(way))).collect();
    assert!(other.is_empty(), "built otherwise: {other:#?}");
    assert!(as_root().verdicts("PASS ").len() > 600, "{}", as_root().done);
}

/// Every image that was written is one by the image-spec's JSON schemas, with as many layers as its history tells of.
#[test]
fn every_image_of_the_corpus_is_valid_and_its_history_counts_its_layers() {
    as_root().assert_valid(350);
}

/// What the corpus leaves out, expected by what BuildKit's source and the catalogue say: bases of a real registry, names of
/// any bytes, trees of any depth. In all ways as well.
#[test]
fn the_additions_to_the_corpus_build_as_reasoned() {
    let registry = Registry::plain();
    let folder = Path::new(ROOT).join("tests/corpus/additions");
    let address = format!("127.0.0.1:{}", registry.port());
    let words = ["--folder", folder.to_str().unwrap(), "--registry", &address];
    let run = Run::through("oracles", None, &words);
    assert!(run.done.code == 0, "{}", run.done);
    assert_eq!(run.verdicts("PASS ").len(), fs::read_dir(&folder).unwrap().count());
    run.assert_valid(30);
    let rootless = Run::through("adapter", Some(ordinary_user()), &words);
    assert!(rootless.done.code == 0, "by an ordinary user: {}", rootless.done);
}

/// Owners and all: the subordinate ids stand for those of the image. Not only equal to what BuildKit makes, but the
/// same bytes as root's.
#[test]
fn the_corpus_builds_rootless_as_with_buildkit_and_to_the_bytes_of_root() {
    let run = Run::through("adapter", Some(ordinary_user()), &[]);
    run.assert_all_but(&["everywhere", "rootless"]);
    let (root, rootless) = (&as_root().digests, &run.digests);
    assert!(rootless.len() > 350, "{} cases were built", rootless.len());
    let other =
        rootless.iter().filter(|(case, digest)| root[*case] != **digest && !is_served(case));
    let other: Vec<_> = other.collect();
    assert!(other.is_empty(), "built to other bytes by root: {other:#?}");
}
