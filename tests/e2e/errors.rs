//! What a person sees when a Dockerfile is wrong: golden files of errors, with code, place, reason and way out.
//!
//! A file of `errors/` is a Dockerfile with flags, and what is said of it. With `run` for flags it is the image of a
//! project that asks a mirror and nobody else. `UPDATE_ERRORS=1` writes what is said now.

use std::{fmt::Write as _, fs, path::Path};

use crate::support::{Done, ROOT, User, base_contexts, registry::Registry};

const DOCKERFILE: &str = "=== Dockerfile\n";
const SAID: &str = "=== said, exit code ";

/// A golden file taken apart: flags, Dockerfile, and what follows.
struct Case<'t> {
    flags: Vec<&'t str>,
    dockerfile: &'t str,
}

impl<'t> Case<'t> {
    fn read(text: &'t str) -> Self {
        let (head, rest) = text.split_once(DOCKERFILE).expect("a Dockerfile");
        let dockerfile = rest.split_once(SAID).map_or(rest, |(dockerfile, _)| dockerfile);
        let flags = head.lines().filter(|line| !line.starts_with('#'));
        Self { flags: flags.flat_map(str::split_whitespace).collect(), dockerfile }
    }

    fn run(&self, mirror: &Registry) -> String {
        let user = User::new();
        for file in ["f", "package.json", "src/main.c"] {
            user.write(file, "content\n");
        }
        user.write("Dockerfile", self.dockerfile);
        let mut command = user.idp();
        command.args(["--progress", "quiet"]);
        if self.flags == ["run"] {
            user.write("idpbuilder.kdl", &project(mirror));
            command.arg("run");
        } else {
            command.arg("build").args(&self.flags).args(base_contexts()).arg(".");
        }
        let done = Done::of(&mut command);
        let said = done.err.replace(&user.work().display().to_string(), "@");
        let said = said.replace(&user.home().display().to_string(), "@HOME");
        let said = said.replace(&mirror.port().to_string(), "PORT");
        let mut shown = format!("{SAID}{}\n", done.code);
        for line in said.lines().map(without_log) {
            writeln!(shown, "{}", line.trim_end()).unwrap();
        }
        shown
    }
}

/// A project of one image, for which only `mirror` is asked.
fn project(mirror: &Registry) -> String {
    let port = mirror.port();
    format!(
        "mirror \"docker.io\" via=\"127.0.0.1:{port}\" fallback=#false\nimage app {{ dockerfile \"Dockerfile\" }}\n"
    )
}

/// Logs have names of their own.
fn without_log(line: &str) -> &str {
    line.split_once("@HOME/logs").map_or(line, |(before, _)| before)
}

#[test]
fn a_mistake_is_shown_with_its_place_its_reason_and_the_way_out() {
    let folder = Path::new(ROOT).join("tests/e2e/errors");
    let mirror = Registry::mirror();
    let mut wrong = Vec::new();
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|one| one.unwrap().path()).collect();
    names.sort();
    for path in &names {
        let text = fs::read_to_string(path).unwrap();
        let case = Case::read(&text);
        let said = case.run(&mirror);
        let before = text.split(SAID).next().unwrap_or_default();
        let whole = format!("{before}{said}");
        if whole == text {
            continue;
        }
        if std::env::var_os("UPDATE_ERRORS").is_some() {
            fs::write(path, &whole).unwrap();
        }
        wrong.push(format!("{}\n{whole}", path.display()));
    }
    assert!(names.len() >= 20, "{} cases", names.len());
    assert!(wrong.is_empty(), "not as in the golden files:\n{}", wrong.join("\n"));
}
