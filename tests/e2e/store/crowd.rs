//! F06 and F21: many processes on one store, that build, pull, push, collect, tag, save and load what they share.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::support::{Done, User, registry::Registry};

/// How long eight processes go on; `STORE_CROWD_SECONDS=600` says another time.
const CROWD_SECONDS: u64 = 20;
/// Rounds of building, pushing and pulling while others collect.
const ROUNDS: usize = 12;

/// What one of the eight does again and again: commands, and what the last of them prints. `{n}` is its own number,
/// `{r}` the registry.
const WORK: [&[&str]; 8] = [
    &["build -q -f A -t a:{n} .", "images -q --no-trunc a:{n}"],
    &[
        "build -q -f B -t b:{n} .",
        "tag b:{n} b:other-{n}",
        "rmi b:{n}",
        "images -q --no-trunc b:other-{n}",
    ],
    &["build -q --no-cache -f B -t c:{n} .", "images -q --no-trunc c:{n}", "rmi c:{n}"],
    &[
        "pull -q --insecure {r}/base:1",
        "build -q -f P -t p:{n} .",
        "images -q --no-trunc p:{n}",
        "rmi p:{n}",
    ],
    &[
        "build -q -f A -t {r}/pushed:{n} .",
        "push -q --insecure {r}/pushed:{n}",
        "rmi {r}/pushed:{n}",
    ],
    &[
        "load -i base.tar -t loaded:{n}",
        "save -o out-{n}.tar loaded:{n}",
        "images -q --no-trunc loaded:{n}",
        "rmi loaded:{n}",
    ],
    &["prune", "store check"],
    &["prune --cache-days 0", "store backup backup.tar", "df"],
];
/// What of it prints a time, a size or a place that others change.
const SAYS_NOTHING_FIXED: [&str; 6] = ["prune", "store", "df", "tag", "rmi", "save"];

fn words(text: &str, number: usize, registry: &Registry) -> Vec<String> {
    let address = format!("localhost:{}", registry.port());
    let text = text.replace("{n}", &number.to_string()).replace("{r}", &address);
    text.split_whitespace().map(str::to_owned).collect()
}

/// A user with what the work needs, and a registry with a base in it.
fn prepared(registry: &Registry) -> User {
    let user = User::new();
    user.write("a/one.txt", "one\n");
    user.write("a/two.txt", "two\n");
    user.write("b.txt", &"b\n".repeat(100_000));
    user.write("A", "FROM scratch\nCOPY a /a\nCOPY b.txt /\nWORKDIR /w\n");
    user.write("B", "FROM scratch AS one\nCOPY a /a\nFROM scratch\nCOPY --from=one /a/two.txt /\nCOPY b.txt /\n");
    let base = format!("localhost:{}/base:1", registry.port());
    user.write("P", &format!("FROM {base}\nCOPY a /more\n"));
    user.write("Base", "FROM scratch\nCOPY b.txt /base/\nCOPY a /base/\nLABEL base=1\n");
    user.run(["build", "-q", "-f", "Base", "-t", &base, "."]).ok();
    user.run(["push", "-q", "--insecure", &base]).ok();
    user.run(["save", "-o", "base.tar", &base]).ok();
    user
}

/// Does the work of one once; what its commands said.
fn once(user: &User, number: usize, registry: &Registry) -> Vec<String> {
    let mut said = Vec::new();
    for text in WORK[number] {
        let args = words(text, number, registry);
        let done = Done::of(user.idp().args(&args));
        assert!(done.code == 0, "{number}: {done}");
        if !SAYS_NOTHING_FIXED.contains(&&*args[0]) {
            said.push(format!("{text}: {}", done.out));
        }
    }
    said
}

#[test]
fn f06_eight_processes_on_one_store_do_what_each_would_do_alone() {
    let seconds = std::env::var("STORE_CROWD_SECONDS").ok().and_then(|text| text.parse().ok());
    let registry = Registry::plain();
    let alone: BTreeMap<usize, Vec<String>> = {
        let user = prepared(&registry);
        (0..WORK.len()).map(|number| (number, once(&user, number, &registry))).collect()
    };
    let user = prepared(&registry);
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(CROWD_SECONDS));
    let work = |number: usize| {
        let mut rounds = 0;
        while rounds == 0 || Instant::now() < until {
            assert_eq!(once(&user, number, &registry), alone[&number], "round {rounds}");
            rounds += 1;
        }
        rounds
    };
    let rounds: Vec<usize> = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..WORK.len()).map(|number| scope.spawn(move || work(number))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    println!("rounds of each of the eight: {rounds:?}");
    let check = user.run(["store", "check", "--full"]).ok();
    assert!(check.ends_with(": sound\n"), "{check}");
    assert!(!check.contains("harmless"), "{check}");
    // Nothing is left of those that have ended, but for what the last of them may still have held.
    user.run(["prune"]).ok();
    for folder in ["tmp", "leases", "turns"] {
        let left: Vec<_> = std::fs::read_dir(user.home().join("images").join(folder))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn f21_a_collection_takes_nothing_that_is_built_pushed_or_pulled() {
    let registry = Registry::plain();
    let user = prepared(&registry);
    let address = format!("localhost:{}", registry.port());
    let is_done = AtomicBool::new(false);
    let collect = || {
        while !is_done.load(Ordering::Relaxed) {
            user.run(["prune", "--cache-days", "0"]).ok();
        }
    };
    // The same blobs for all three, and no name that would keep them from one round to the next.
    let shared = |number: usize| {
        let name = format!("{address}/same:{number}");
        for _ in 0..ROUNDS {
            user.run(["build", "-q", "-f", "A", "-t", &name, "."]).ok();
            user.run(["push", "-q", "--insecure", &name]).ok();
            user.run(["rmi", &name]).ok();
            user.run(["pull", "-q", "--insecure", &name]).ok();
            let archive = format!("same-{number}.tar");
            user.run(["save", "-o", &archive, &name]).ok();
            user.run(["rmi", &name]).ok();
        }
    };
    thread::scope(|scope| {
        let collectors = [scope.spawn(collect), scope.spawn(collect)];
        let workers: Vec<_> = (0..3).map(|number| scope.spawn(move || shared(number))).collect();
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        is_done.store(true, Ordering::Relaxed);
        for end in ends.into_iter().chain(collectors.map(|collector| collector.join())) {
            end.unwrap();
        }
    });
    assert!(user.run(["store", "check", "--full"]).ok().ends_with(": sound\n"));
}
