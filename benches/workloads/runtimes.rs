//! What a step costs elsewhere: container runtimes with a bundle that is ready, and ourselves as an ordinary user.
//!
//! A runtime gets the root file system as it is, mounts no overlay, makes no layer and looks nothing up: it does a part
//! of what a step does.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    contest::{Contender, Contest},
    ground::{self, Ground},
    measure,
    tools::{self, BASE},
};

/// The ordinary user of `tests/setup/packages`.
const USER: &str = "idpb";

/// As crun and runc want it: Docker's namespaces, the usual mounts, no filter.
const CONFIG: &str = r#"{"ociVersion": "1.0.2",
"process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", ":"], "env": ["PATH=/bin"], "cwd": "/",
 "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
 "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]},
"root": {"path": "rootfs/lower"},
"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
 {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
 {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
 {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
 {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}],
"linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]}}"#;

/// Adds the runtimes that are installed: 40 runs each of a bundle beside `rootfs/lower`.
pub(crate) fn add(contest: &mut Contest, ground: &Ground) -> Result<(), String> {
    let folder = ground.path().to_owned();
    fs::write(folder.join("config.json"), CONFIG).map_err(|error| error.to_string())?;
    for (name, program) in
        [("crun", "crun --cgroup-manager=disabled run"), ("runc", "runc run --no-new-keyring")]
    {
        if !tools::is_installed(name) {
            contest.note(format!("{name} is not installed"));
            continue;
        }
        // crun refuses to start where both versions of control groups are mounted.
        let script = format!(
            "unshare --mount sh -ec 'umount /sys/fs/cgroup/unified 2>/dev/null || :; \
             for step in $(seq 40); do {program} --bundle . bench-$$-$step; done'"
        );
        let (folder, log) = (folder.clone(), folder.join(format!("{name}.log")));
        contest.add(Contender::new(
            name,
            |_| Ok(()),
            move |_| measure::run(&mut tools::shell(&script, &folder), &log),
        ));
    }
    Ok(())
}

/// Adds ourselves as an ordinary user: the same 40 steps in a user namespace.
pub(crate) fn add_rootless(
    contest: &mut Contest,
    base: &Path,
    change: impl Fn(&Path, usize) -> std::io::Result<()> + 'static,
) -> Result<(), String> {
    let known = Command::new("id").arg(USER).output().is_ok_and(|output| output.status.success());
    if !known {
        contest.note(format!("the user {USER} of tests/setup/packages is not there"));
        return Ok(());
    }
    // Folders above target/ may be closed to other users.
    let folder = ground::temporary().join("rootless");
    let place = Place(folder.clone());
    let script = format!(
        "mkdir -p {0}/context; cp {1} {0}/idpbuilder; cp -r {2} {0}/base; chown -R {USER}: {0}",
        folder.display(),
        tools::program().display(),
        base.display()
    );
    let log = folder.with_extension("log");
    measure::run(&mut tools::shell(&script, Path::new("/")), &log)?;
    let load = ["load", "-q", "-t", BASE, "-i"].map(String::from).to_vec();
    let load = [load, vec![folder.join("base").display().to_string()]].concat();
    measure::run(&mut as_user(&folder, &load), &log)?;
    let build: Vec<String> =
        ["build", "-q", "-t", "localhost/work:1", "context"].map(String::from).to_vec();
    let context = folder.join("context");
    contest.add(Contender::new(
        "rootless",
        move |round| change(&context, round).map_err(|error| error.to_string()),
        move |_| {
            // Held by the contender that needs it; gone with it.
            let _place = &place;
            measure::run(&mut as_user(&folder, &build), &log)
        },
    ));
    Ok(())
}

fn as_user(folder: &Path, arguments: &[String]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups"]);
    command.arg(folder.join("idpbuilder")).args(arguments).current_dir(folder);
    command.env("IDPBUILDER_HOME", folder.join("home"));
    command
}

/// A folder that is removed when dropped.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
        drop(fs::remove_file(self.0.with_extension("log")));
    }
}
