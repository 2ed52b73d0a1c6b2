//! A registry to push to: the distribution's when it is installed, else our own; and its floor, one HEAD.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use crate::tools;

/// How long a registry may take to answer for the first time.
const START_MAX: Duration = Duration::from_secs(20);

/// A registry that runs while this lives.
pub(crate) struct Registry {
    child: Child,
    folder: PathBuf,
    pub(crate) address: String,
    pub(crate) kind: &'static str,
}

/// What may be done with the content of a registry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Full,
    ReadOnly,
}

impl Registry {
    /// An empty one below `ground`.
    pub(crate) fn start(ground: &Path) -> io::Result<Self> {
        Self::serve(ground, &ground.join("registry/blobs"), Access::Full)
    }

    /// One with what is in the storage of another, which stays as it is.
    pub(crate) fn of(ground: &Path, storage: &Path) -> io::Result<Self> {
        Self::serve(ground, storage, Access::ReadOnly)
    }

    fn serve(ground: &Path, storage: &Path, access: Access) -> io::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let folder = ground.join("registry");
        fs::create_dir_all(&folder)?;
        let config = folder.join("config.yml");
        let read_only = access == Access::ReadOnly;
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}, maintenance: {{readonly: {{enabled: {read_only}}}}}}}\nhttp: {{addr: {address}}}\n",
                storage.display()
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let mut kind = "docker-registry";
        if !tools::is_installed(kind) {
            if access == Access::ReadOnly {
                return Err(io::Error::other(format!("{kind} is not installed")));
            }
            (command, kind) = (tools::ours(&folder), "idpbuilder serve");
            command.args(["serve", "--plain-http", "--no-login", "--address", &address]);
        }
        let child = tools::ends_with_us("KILL", &command).spawn()?;
        let registry = Self { child, folder, address, kind };
        let started = Instant::now();
        while registry.request("GET", "/v2/").is_err() {
            if started.elapsed() > START_MAX {
                return Err(io::Error::other(format!("{kind} does not answer")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    /// What all that was pushed to it takes, in bytes.
    pub(crate) fn bytes(&self) -> io::Result<u64> {
        let mut pending = vec![self.folder.clone()];
        let mut bytes = 0;
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let found = entry.metadata()?;
                if found.is_dir() {
                    pending.push(entry.path());
                } else {
                    bytes += found.len();
                }
            }
        }
        Ok(bytes)
    }

    /// One request on a connection of its own: what was answered, headers and all.
    pub(crate) fn request(&self, method: &str, path: &str) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(&self.address)?;
        let accept = "application/vnd.oci.image.manifest.v1+json";
        let host = &self.address;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        if answer.starts_with(b"HTTP/1.1 200") {
            return Ok(answer);
        }
        Err(io::Error::other(
            String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned(),
        ))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
