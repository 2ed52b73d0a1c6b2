//! Any bytes for the language: no panic, no endless work, and the laws that hold for every input.
//!
//! Mutations of the corpus by a generator with a seed, some thousands of them with every `cargo test`. For longer:
//!
//!     FUZZ_SECONDS=3600 cargo test --release --test fuzz
//!
//! A failure names the seed; `FUZZ_SEED=N` tries it again. What made it fail is printed with it.

#![expect(clippy::unwrap_used, reason = "what fails here is a failed test")]
#![expect(clippy::print_stdout, reason = "says how much was tried")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use idpbuilder::{
    dockerfile::{
        self, LowerOptions, Lowering,
        ignore::IgnoreFile,
        parse_trigger,
        pattern::{PatternSet, Verdict},
    },
    oci::{ImageConfig, Platform},
};

/// Inputs of each target when no time is given.
const INPUTS: u64 = 1500;

/// Longest time for one input: a hang is a failure, a slow machine is none.
const INPUT_S: u64 = 60;

/// Rounds of configs that a build may ask for.
const ROUNDS_MAX: usize = 50;

/// Vigna's splitmix64: small, and good enough to find bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }

    fn one_of<'t>(&mut self, all: &'t [String]) -> &'t str {
        &all[self.below(all.len())]
    }
}

/// Texts that mean something, to be put in the wrong places.
const TOKENS: &[&str] = &[
    "FROM ",
    "RUN ",
    "COPY ",
    "ADD ",
    "ONBUILD ",
    "HEALTHCHECK ",
    "<<EOF",
    "<<-\"EOF\"",
    "EOF\n",
    "\\\n",
    "`\n",
    "${",
    "}",
    "$",
    ":-",
    ":?",
    "//",
    "%%",
    "##",
    "[\"",
    "\"]",
    "--mount=",
    "type=cache,",
    "--from=",
    "--chmod=",
    "# escape=`\n",
    "# check=skip=all\n",
    "\r\n",
    "\u{feff}",
    "\0",
    "é",
    "𝄞",
    "'",
    "\"",
    "\\",
    " AS ",
    "!",
    "**",
    "/",
    "[",
    "]",
    "[^",
    "a-",
    "=",
    ",",
    "\t",
    "\u{a0}",
    "\u{2028}",
    "18446744073709551616",
    "-1",
    "../",
];

/// Changes a text in a few places.
fn mutated(random: &mut Random, seeds: &[String]) -> String {
    let mut bytes = random.one_of(seeds).as_bytes().to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below(24).min(bytes.len() - at);
        match random.below(6) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.splice(at..at, TOKENS[random.below(TOKENS.len())].bytes()).for_each(drop),
            2 => bytes.splice(at..end, [random.next().to_le_bytes()[0]]).for_each(drop),
            3 => {
                let piece = bytes[at..end].repeat(1 + random.below(300));
                bytes.splice(at..at, piece).for_each(drop);
            }
            4 => {
                let other = random.one_of(seeds).as_bytes();
                let from = random.below(other.len() + 1);
                bytes.splice(at..end, other[from..].iter().copied()).for_each(drop);
            }
            _ => bytes.truncate(at),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Tries a target on many inputs; the first that panics fails the test.
fn fuzz(name: &str, seeds: &[String], target: fn(&str, &mut Random)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seconds, only) = (number("FUZZ_SECONDS"), number("FUZZ_SEED"));
    let (started, first) = (Instant::now(), only.unwrap_or(0));
    for seed in first.. {
        let input = mutated(&mut Random(seed), seeds);
        let began = Instant::now();
        let tried = catch_unwind(AssertUnwindSafe(|| target(&input, &mut Random(!seed))));
        assert!(tried.is_ok(), "{name}: FUZZ_SEED={seed} fails on {input:?}");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(INPUT_S), "{name}: FUZZ_SEED={seed} takes {took:?}");
        let enough = match (seconds, only) {
            (_, Some(_)) => true,
            (Some(seconds), None) => started.elapsed().as_secs() >= seconds,
            (None, None) => seed >= INPUTS,
        };
        if enough {
            return println!("{name}: {} inputs", seed - first + 1);
        }
    }
}

fn corpus(name: &str) -> serde_json::Value {
    let path = format!("{}/tests/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn dockerfiles() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/cases");
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let text =
        |name: &String| corpus(&format!("cases/{name}"))["dockerfile"].as_str().map(str::to_owned);
    names.iter().filter_map(text).filter(|text| text.len() < 4096).collect()
}

/// Every text of a JSON document that has a letter in it.
fn texts(value: &serde_json::Value, found: &mut Vec<String>) {
    found.extend(value.as_str().map(str::to_owned));
    value.as_array().into_iter().flatten().for_each(|one| texts(one, found));
    value.as_object().into_iter().flatten().for_each(|(_, one)| texts(one, found));
}

/// P01: text → instructions → ops; what was parsed prints to what parses the same.
fn language(text: &str, _: &mut Random) {
    drop((dockerfile::detect_syntax(text), parse_trigger(text, &[])));
    let Ok(parsed) = dockerfile::parse(text) else { return };
    let printed = dockerfile::print(&parsed);
    let again = dockerfile::parse(&printed).unwrap_or_else(|error| panic!("{error}: {printed:?}"));
    assert_eq!(again.stages.len(), parsed.stages.len(), "{printed:?}");
    let kinds = |file: &dockerfile::Dockerfile| -> Vec<_> {
        file.instructions().map(|instruction| instruction.kind.clone()).collect()
    };
    assert_eq!(kinds(&again), kinds(&parsed), "{printed:?}");
    let platform: Platform = "linux/amd64".parse().unwrap();
    let options = LowerOptions {
        target: None,
        args: BTreeMap::from([("A".to_owned(), "${B}\\".to_owned())]),
        labels: BTreeMap::new(),
        platform: platform.clone(),
        build_platform: platform,
        named_contexts: BTreeMap::new(),
        ignore: Some("f\n!g\n".to_owned()),
    };
    let mut configs = HashMap::new();
    for _ in 0..ROUNDS_MAX {
        match dockerfile::lower(&parsed, &options, &configs) {
            Ok(Lowering::Needs(requests)) => {
                let known = configs.len();
                configs.extend(requests.into_iter().map(|one| (one, ImageConfig::default())));
                assert!(configs.len() > known, "asks again for what it has");
            }
            Ok(Lowering::Done(done)) => {
                let told = done.config.history.iter().filter(|entry| !entry.empty_layer).count();
                assert!(told <= done.graph.len(), "more history than ops");
                return;
            }
            Err(_) => return,
        }
    }
}

#[test]
fn p01_any_text_is_a_dockerfile_or_refused() {
    fuzz("P01", &dockerfiles(), language);
}

/// A path out of the letters that patterns are made of.
fn path(random: &mut Random) -> String {
    let parts: Vec<&str> = ["a", "b", "foo", "x.go", ".git", "-", "[", "é", "dir"].to_vec();
    let count = 1 + random.below(5);
    (0..count).map(|_| parts[random.below(parts.len())]).collect::<Vec<_>>().join("/")
}

/// P02: a directory is passed by only if nothing below it can count, and walking says what looking up says.
fn patterns(text: &str, random: &mut Random) {
    let lines: Vec<&str> = text.lines().collect();
    let set = PatternSet::new(&lines);
    let ignored = IgnoreFile::parse(text);
    for _ in 0..20 {
        let path = path(random);
        if let Ok(ignored) = &ignored {
            check_walk(
                &path,
                &|parent, path| ignored.judge(parent, path),
                Found(ignored.is_excluded(&path)),
            );
        }
        let Ok(set) = &set else { continue };
        check_walk(
            &path,
            &|parent, path| set.judge(parent, path),
            Found(set.matches(path.as_bytes())),
        );
        let mut verdict = Verdict::default();
        for (end, _) in path.match_indices('/') {
            let directory = &path.as_bytes()[..end];
            verdict = set.judge(&verdict, directory);
            let below = set.matches(path.as_bytes());
            if verdict.matched {
                assert!(below || set.may_unmatch_below(directory), "{path} of {lines:?}");
            } else {
                assert!(!below || set.may_match_below(directory), "{path} of {lines:?}");
            }
        }
    }
}

fn check_walk(path: &str, judge: &dyn Fn(&Verdict, &[u8]) -> Verdict, looked_up: Found) {
    let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
    let step = |verdict: Verdict, end: usize| judge(&verdict, &path.as_bytes()[..end]);
    assert_eq!(Found(ends.fold(Verdict::default(), step).matched), looked_up, "{path}");
}

/// Whether a path is matched.
#[derive(Debug, PartialEq, Eq)]
struct Found(bool);

#[test]
fn p02_any_text_is_an_ignore_file_or_refused() {
    let mut seeds = Vec::new();
    texts(&corpus("ignore.json"), &mut seeds);
    seeds.retain(|seed| !seed.is_empty() && seed.len() < 2048);
    fuzz("P02", &seeds, patterns);
}

/// Expansion and words of the small shell, over values that look like syntax themselves.
fn expansion(text: &str, _: &mut Random) {
    let env = |name: &str| match name {
        "e" => Some(String::new()),
        "d" => Some("$x${".to_owned()),
        name if name.len() < 3 => Some(format!("{name}/a*b\\")),
        _ => None,
    };
    for escape in ['\\', '`'] {
        drop(dockerfile::expand::expand(text, escape, &env));
        drop(dockerfile::expand::expand_words(text, escape, &env));
    }
    drop(dockerfile::expand::expand_body(text, &env));
    drop(dockerfile::mount::read(text, &|value| Ok(value.to_owned())));
}

#[test]
fn p01_any_word_expands_or_is_refused() {
    let mut seeds = Vec::new();
    texts(&corpus("env.json"), &mut seeds);
    texts(&corpus("words.json"), &mut seeds);
    seeds.retain(|seed| seed.contains(['$', '\\', '"', '\'']));
    fuzz("P01 words", &seeds, expansion);
}
