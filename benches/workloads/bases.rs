//! The images that workloads stand on, made once below `target/`: by the tests' own scripts, and one with packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    measure,
    tools::{self, BASE},
};

/// Where the images are.
pub(crate) struct Bases {
    /// OCI layout: busybox alone.
    pub(crate) busybox: PathBuf,
    /// The benchmark's folder.
    parent: PathBuf,
    /// What `tests/setup/bases` makes.
    tests: PathBuf,
}

impl Bases {
    /// Makes the small one; the others are made when a workload needs them.
    pub(crate) fn new(parent: &Path, target: &Path) -> Result<Self, String> {
        let out = parent.join("bases");
        let mut make = Command::new("python3");
        make.arg(root().join("tests/corpus/make-base")).arg(&out);
        measure::run(&mut make, &parent.join("make-base.log"))?;
        let (parent, tests) = (parent.to_owned(), target.join("test-bases"));
        Ok(Self { busybox: out.join("busybox"), parent, tests })
    }

    /// Storage of a docker-registry that holds `library/debian:bookworm`.
    pub(crate) fn registry(&self) -> Result<PathBuf, String> {
        self.of_tests("registry")
    }

    /// OCI layout: Debian with the packages of curl in apt's cache, not installed.
    pub(crate) fn packages(&self) -> Result<PathBuf, String> {
        let layout = self.parent.join("debian-packages");
        if layout.exists() {
            return Ok(layout);
        }
        let work = self.parent.join("debian-packages.part");
        let failed = |error: std::io::Error| format!("{}: {error}", work.display());
        drop(fs::remove_dir_all(&work));
        fs::create_dir_all(work.join("context")).map_err(failed)?;
        let dockerfile = format!(
            "FROM {BASE}\nRUN apt-get update -q && apt-get install -y -q --no-install-recommends --download-only curl\n"
        );
        fs::write(work.join("context/Dockerfile"), dockerfile).map_err(failed)?;
        let debian = self.of_tests("debian")?;
        let (home, log) = (work.join("home"), self.parent.join("debian-packages.log"));
        let mut load = tools::ours(&home);
        load.args(["load", "-q", "-t", BASE, "-i"]).arg(debian);
        measure::run(&mut load, &log)?;
        let made = work.join("layout");
        let mut build = tools::ours(&home);
        build.args(["build", "-q", "-t", "localhost/packages:latest", "-o"]);
        build.arg(format!("type=oci,tar=false,compression=gzip,dest={}", made.display()));
        build.arg(work.join("context"));
        measure::run(&mut build, &log)?;
        fs::rename(&made, &layout).map_err(failed)?;
        fs::remove_dir_all(&work).map_err(failed)?;
        Ok(layout)
    }

    /// One of the images of the tests; `tests/setup/bases` makes those that are missing.
    fn of_tests(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.tests.join(name);
        if !path.exists() {
            let mut make = Command::new(root().join("tests/setup/bases"));
            measure::run(make.arg(&self.tests), &self.parent.join("test-bases.log"))?;
        }
        Ok(path)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
