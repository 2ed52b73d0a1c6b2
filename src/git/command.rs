//! One start of the `git` program: what it may do, what it is told, and what it said.
//!
//! Everything that could make it run something else, ask somebody, or read a file that nobody named is
//! switched off by the environment, which submodules inherit. Secrets are never on a command line.

use std::{
    fs::File,
    io::Read,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{atomic::Ordering, mpsc},
    time::Duration,
};

use super::{GitAccess, GitError, GitProgram};
use crate::remote::{GitSource, without_login};

/// How often a running program looks whether the user wants to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Most that is kept of what the program prints, in bytes.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;
/// Most that is told of it in a message, in bytes.
const SAID_BYTES_MAX: usize = 2000;
/// Slower than a byte a second for this many seconds is not alive.
const SLOW_SECONDS: &str = "60";

/// Settings of the user that are kept: who they are, and how servers are reached.
const KEPT: &str = r"^(credential\.|http\.|core\.sshcommand$)";

/// Settings for every start. A repository cannot change them: they come after its own.
const SETTINGS: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.autocrlf", "false"),
    ("core.symlinks", "true"),
    ("core.logAllRefUpdates", "false"),
    ("core.protectHFS", "true"),
    ("core.protectNTFS", "true"),
    ("init.defaultBranch", "master"),
    ("advice.detachedHead", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("protocol.ext.allow", "never"),
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", SLOW_SECONDS),
];

/// Which protocols a start may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocols {
    /// That of the repository itself.
    Own,
    /// Those of the network: a submodule is never a file of this machine.
    Network,
}

/// Starts of the program for one repository.
pub(super) struct Run<'a> {
    program: &'a Path,
    env: &'a GitProgram,
    source: &'a GitSource,
    access: &'a GitAccess,
    settings: Vec<(String, String)>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        program: &'a GitProgram,
        source: &'a GitSource,
        access: &'a GitAccess,
    ) -> Result<Self, GitError> {
        let Some(path) = &program.path else {
            return Err(GitError::Missing { url: source.url.clone() });
        };
        let mut run = Self { program: path, env: program, source, access, settings: Vec::new() };
        let mut settings = run.of_the_user()?;
        let has_proxy = settings.iter().any(|(key, _)| key == "http.proxy");
        settings.extend(SETTINGS.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        if let (Some(proxy), false) = (&access.proxy, has_proxy) {
            settings.push(("http.proxy".to_owned(), proxy.clone()));
        }
        if let Some(authorization) = &access.authorization {
            let scope = format!("http.{}.extraHeader", scope(source));
            settings.push((scope, format!("Authorization: {authorization}")));
            // Git would send the header to wherever the server points.
            settings.push(("http.followRedirects".to_owned(), "false".to_owned()));
        }
        run.settings = settings;
        Ok(run)
    }

    /// What the user's own configuration says of servers and credentials.
    fn of_the_user(&self) -> Result<Vec<(String, String)>, GitError> {
        let mut settings = Vec::new();
        for file in ["--system", "--global"] {
            let mut command = self.bare();
            command.args(["config", "--null", file, "--get-regexp", KEPT]);
            let (_, listed, _) = self.finish(command, Stdio::null())?;
            for entry in listed.split('\0').filter(|entry| !entry.is_empty()) {
                let (key, value) = entry.split_once('\n').unwrap_or((entry, "true"));
                settings.push((key.to_owned(), value.to_owned()));
            }
        }
        Ok(settings)
    }

    /// The program with the caller's environment and no terminal.
    fn bare(&self) -> Command {
        let mut command = Command::new(self.program);
        command.env_clear().envs(self.env.env.iter().cloned());
        command.env("LC_ALL", "C").current_dir("/").process_group(0);
        command
    }

    fn command(&self, protocols: Protocols) -> Command {
        let mut command = self.bare();
        let own = match self.source.scheme() {
            "http" => "http:https",
            scheme => scheme,
        };
        let allowed = match protocols {
            Protocols::Own => own,
            Protocols::Network => "http:https:ssh:git",
        };
        for (name, value) in [
            ("GIT_ALLOW_PROTOCOL", allowed),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_SYSTEM", "/dev/null"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", ""),
            ("GIT_LFS_SKIP_SMUDGE", "1"),
        ] {
            command.env(name, value);
        }
        let is_set = |name: &str| self.env.env.iter().any(|(known, _)| known == name);
        let configured = self.settings.iter().any(|(key, _)| key == "core.sshcommand");
        if !configured && !is_set("GIT_SSH_COMMAND") && !is_set("GIT_SSH") {
            command.env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oConnectTimeout=30");
        }
        if self.access.proxy.is_some() {
            for name in ["NO_PROXY", "no_proxy"] {
                command.env_remove(name);
            }
        }
        command.env("GIT_CONFIG_COUNT", self.settings.len().to_string());
        for (index, (key, value)) in self.settings.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{index}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        command
    }

    /// What a start outside of any repository prints.
    pub(super) fn git(&self, what: &'static str, args: &[&str]) -> Result<String, GitError> {
        let mut command = self.command(Protocols::Own);
        command.args(args);
        self.checked(what, command, Stdio::null())
    }

    /// What a start in the folder of a repository prints.
    pub(super) fn git_in(
        &self,
        folder: &Path,
        protocols: Protocols,
        (what, args): (&'static str, &[&str]),
    ) -> Result<String, GitError> {
        let mut command = self.command(protocols);
        let above = folder.parent().unwrap_or(folder);
        command.env("GIT_CEILING_DIRECTORIES", above).current_dir(folder).args(args);
        self.checked(what, command, Stdio::null())
    }

    /// The same for the part of a repository that is usually called `.git`, with some input.
    pub(super) fn git_dir(
        &self,
        folder: &Path,
        input: Option<File>,
        args: &[&str],
    ) -> Result<String, GitError> {
        let mut command = self.command(Protocols::Own);
        command.arg("--git-dir").arg(folder).args(args).current_dir(folder);
        let input = input.map_or_else(Stdio::null, Stdio::from);
        self.checked("failed to checkout remote", command, input)
    }

    fn checked(
        &self,
        what: &'static str,
        command: Command,
        input: Stdio,
    ) -> Result<String, GitError> {
        let (status, out, err) = self.finish(command, input)?;
        if status.success() {
            return Ok(out);
        }
        let (url, said) = (self.source.url.clone(), self.words(&err, status));
        if err.contains("Host key verification failed") {
            return Err(GitError::UnknownHost { url, said });
        }
        let unknown = [
            "Authentication failed",
            "could not read Username",
            "could not read Password",
            "Permission denied (",
            "returned error: 401",
            "returned error: 403",
        ];
        if unknown.iter().any(|words| err.contains(words)) {
            return Err(GitError::Auth { url, said });
        }
        Err(GitError::Failed { what, url, said })
    }

    /// The program's complaint without what it says at every failure, and without secrets.
    fn words(&self, err: &str, status: ExitStatus) -> String {
        let noise = ["Cloning into", "From ", "Initialized", "hint:"];
        let lines = err
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !noise.iter().any(|start| line.starts_with(start)));
        let strip = |line: &str| {
            let line = line.strip_prefix("fatal: ").or_else(|| line.strip_prefix("error: "));
            line.map(str::to_owned)
        };
        let lines: Vec<String> =
            lines.map(|line| strip(line).unwrap_or_else(|| line.to_owned())).collect();
        let mut said = without_login(&lines.join("; "));
        let secrets = [self.access.authorization.as_ref(), self.access.proxy.as_ref()];
        for secret in secrets.into_iter().flatten() {
            said = said.replace(secret.as_str(), "***");
        }
        if said.is_empty() {
            said = format!("git ended with {status}");
        }
        let end = (0..=SAID_BYTES_MAX.min(said.len())).rev().find(|at| said.is_char_boundary(*at));
        said.truncate(end.unwrap_or_default());
        said
    }

    /// Runs the program to its end, or ends it and all that it started when the user asks for that.
    fn finish(
        &self,
        mut command: Command,
        input: Stdio,
    ) -> Result<(ExitStatus, String, String), GitError> {
        let failed = |source| GitError::Io { path: self.program.to_owned(), source };
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (told, heard) = mpsc::channel();
        let pipes: [(usize, Box<dyn Read + Send>); 2] = [
            (0, Box::new(child.stdout.take().expect("it is piped"))),
            (1, Box::new(child.stderr.take().expect("it is piped"))),
        ];
        for (which, pipe) in pipes {
            let told = told.clone();
            // Whoever waits no more has stopped the program.
            std::thread::spawn(move || drop(told.send((which, read_all(pipe)))));
        }
        let mut texts = [String::new(), String::new()];
        for _ in 0..texts.len() {
            let (which, text) = loop {
                match heard.recv_timeout(LOOK_EVERY) {
                    Ok(read) => break read,
                    Err(_) if self.access.cancel.load(Ordering::Relaxed) => {
                        stop(&mut child);
                        return Err(GitError::Cancelled);
                    }
                    Err(_) => {}
                }
            };
            texts[which] = text;
        }
        let status = child.wait().map_err(failed)?;
        let [out, err] = texts;
        Ok((status, out, err))
    }
}

/// The server that a header is for: all of its repositories, so that submodules of it are reached too.
fn scope(source: &GitSource) -> String {
    format!("{}://{}/", source.scheme(), source.host())
}

/// Reads to the end and keeps the beginning.
fn read_all(mut pipe: impl Read) -> String {
    let mut kept = Vec::new();
    // A pipe that breaks has ended as well.
    drop(pipe.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut kept));
    drop(std::io::copy(&mut pipe, &mut std::io::sink()));
    String::from_utf8_lossy(&kept).into_owned()
}

/// Ends the program and what it has started: they are one process group.
fn stop(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    // One that has ended by itself is fine.
    let _ended = group
        .map(|group| rustix::process::kill_process_group(group, rustix::process::Signal::KILL));
    drop(child.wait());
}
