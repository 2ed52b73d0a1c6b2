//! What hostile images, Dockerfiles and processes try: cases S01 to S35 and L01 to L30, through the binary, at every
//! privilege level. L01 to L12 and L21 to L25 are tried on the reader of layers alone as well (`src/layer/hostile.rs`); L27 is in
//! `platforms.rs`.
//!
//! Each case prints its rows, `case, environment, result`: `cargo test --test e2e attacks -- --show-output` shows the table.
//! A word planted in files of the host and in the tool's environment (the canary) must appear in no store, image, log or
//! temporary file, and the files must be as they were.

mod bombs;
mod canary;
mod documents;
mod kernel;
mod layers;
mod lives;
mod mounts;
mod races;
mod reach;
mod rootfs;
mod secrets;
mod syscalls;
mod users;

pub(crate) use syscalls::DOCKER_CAPS;

use std::{
    cell::RefCell,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
};

use idpbuilder::store::{CheckDepth, Store};
use serde_json::Value;

use self::canary::Canary;
use crate::support::{
    Done, User,
    images::{self, Layer, Layout, Tar},
};

/// The name of what is loaded: no registry answers there.
const LOADED: &str = "loaded.example/evil:v1";

/// Who runs the tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// Root of the machine.
    Root,
    /// The same, with ids for its processes that are nobody's.
    Private,
    /// An ordinary user with subordinate ids.
    Mapped,
    /// An ordinary user without.
    SingleId,
}

impl Level {
    const ALL: [Self; 4] = [Self::Root, Self::Private, Self::Mapped, Self::SingleId];

    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Private => "root, private ids",
            Self::Mapped => "user, subordinate ids",
            Self::SingleId => "user, one id",
        }
    }

    fn user(self) -> User {
        match self {
            Self::Root | Self::Private => User::new(),
            Self::Mapped => User::rootless(),
            Self::SingleId => User::single_id(),
        }
    }
}

/// All but snapshots: their owners are numbers in another user's namespace.
const FULL: CheckDepth = CheckDepth::Full(|_, _| None);

/// One attempt: somebody who builds, a canary, and the hostile images that builds may name.
struct Attack {
    level: Level,
    user: User,
    canary: Canary,
    contexts: RefCell<Vec<String>>,
    printed: RefCell<Vec<String>>,
}

impl Attack {
    fn by(level: Level, user: User) -> Self {
        let attack = Self {
            level,
            user,
            canary: Canary::plant(),
            contexts: RefCell::default(),
            printed: RefCell::default(),
        };
        let temp = attack.user.folder().join("tmp");
        fs::create_dir(&temp).unwrap();
        attack.give(&temp);
        attack.image("base", [], &images::plain_process());
        attack
    }

    /// Makes a path below the user's folder the user's own.
    fn give(&self, path: &std::path::Path) {
        Done::of(
            Command::new("chown").arg("-R").arg("--reference").arg(self.user.account()).arg(path),
        )
        .ok();
    }

    /// An image of the base and more layers, which Dockerfiles find under `name`.
    fn image<const N: usize>(&self, name: &str, layers: [Tar; N], process: &Value) {
        let layers = layers.into_iter().map(|tar| Layer::plain(tar.end()));
        let layers: Vec<_> = images::base_layers().into_iter().chain(layers).collect();
        let layout = Layout::new(self.user.folder().join("layouts").join(name));
        layout.image(&images::config_of(&layers, process), &layers);
        self.give(&layout.0);
        let context = format!("{name}=oci-layout://{}", layout.0.display());
        self.contexts.borrow_mut().extend(["--build-context".to_owned(), context]);
    }

    /// An image `evil` of the base and one layer.
    fn evil(&self, layer: Tar) {
        self.image("evil", [layer], &images::plain_process());
    }

    /// The tool, surrounded by what must not get out.
    fn idp(&self) -> Command {
        let mut command = self.user.idp();
        command.env("CANARY_TOKEN", &self.canary.variable);
        command.env("TMPDIR", self.user.folder().join("tmp"));
        command
    }

    /// Flags by which a build finds the images, and is run as the level has it.
    fn flags(&self) -> Vec<String> {
        let private = ["--userns", "private"].iter().filter(|_| self.level == Level::Private);
        let private = private.map(|flag| (*flag).to_owned());
        self.contexts.borrow().iter().cloned().chain(private).collect()
    }

    fn build(&self, dockerfile: &str) -> Done {
        self.build_with(dockerfile, &[])
    }

    fn build_with(&self, dockerfile: &str, flags: &[&str]) -> Done {
        self.user.write("Dockerfile", dockerfile);
        self.heard(Done::of(
            self.idp()
                .args(["--progress", "plain", "build"])
                .args(flags)
                .args(self.flags())
                .arg("."),
        ))
    }

    /// Loads an image of a layout as [`LOADED`].
    fn load(&self, layout: &Layout) -> Done {
        let mut command = self.idp();
        command.args(["load", "-t", LOADED, "-i"]).arg(&layout.0);
        self.heard(Done::of(&mut command))
    }

    /// Takes the store away, so that nothing in it can be of use.
    fn forget(&self) {
        Done::of(self.user.command("rm").arg("-rf").arg(self.user.home())).ok();
    }

    /// Keeps what was printed, for the canary.
    fn heard(&self, done: Done) -> Done {
        self.printed.borrow_mut().extend([done.out.clone(), done.err.clone()]);
        done
    }

    /// What one RUN on `image` says, which must succeed.
    #[track_caller]
    fn says(&self, image: &str, command: &str) -> String {
        let done = self.build_with(&format!("FROM {image}\nRUN {command}\n"), &["--no-cache"]);
        assert_eq!(done.code, 0, "{done}");
        said(&done)
    }

    /// Nothing in the store is damaged, lost or foreign.
    #[track_caller]
    fn assert_store_is_whole(&self) {
        let folder = self.user.home().join("images");
        if folder.exists() {
            let found = Store::open(&folder).unwrap().check(FULL).unwrap();
            assert_eq!(found.damages, []);
        }
    }

    /// The build must be refused in words, neither by a crash nor by what a process inside did.
    #[track_caller]
    fn refused(&self, dockerfile: &str, words: &[&str]) {
        let done = self.build(dockerfile);
        let by_us = [1, 2, 3, 6, 8].contains(&done.code) && !done.err.contains("exit code: ");
        assert!(by_us && !done.err.contains("panicked"), "refused is not what this is: {done}");
        for word in words {
            assert!(done.err.contains(word), "`{word}` is not said\n{done}");
        }
    }
}

/// What the processes of a build said, without the prefix of the plain output.
fn said(done: &Done) -> String {
    let lines = done.err.lines().filter_map(|line| line.split_once(":   | ").map(|(_, text)| text));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Tries `work` at each of the levels, looks after the canary, and prints a row for each: what `work` returns.
#[track_caller]
#[expect(clippy::print_stdout, reason = "the table of results is what a test prints")]
fn at_levels(case: &str, levels: &[Level], work: impl Fn(&Attack) -> &'static str) {
    let tries: Vec<_> = levels.iter().map(|level| (level.name(), level.user(), *level)).collect();
    let mut failed = 0;
    for (environment, user, level) in tries {
        let attempt = || {
            let attack = Attack::by(level, user);
            let result = work(&attack);
            attack.canary.assert_untouched(attack.user.folder(), &attack.printed.borrow());
            attack.assert_store_is_whole();
            result
        };
        let result = catch_unwind(AssertUnwindSafe(attempt));
        failed += usize::from(result.is_err());
        println!("{case}, {environment}, {}", result.unwrap_or("FAILED"));
    }
    assert_eq!(failed, 0, "{case} failed at {failed} levels");
}

#[track_caller]
fn everywhere(case: &str, work: impl Fn(&Attack) -> &'static str) {
    at_levels(case, &Level::ALL, work);
}
