//! SSH agents for processes: sockets that answer for as long as a step lasts.
//!
//! Behind a socket stands the user's own agent, or private keys that were read from files. Whoever speaks to it may
//! list identities and have something signed, and nothing else: nobody adds, removes or locks keys from inside a build.
//! Knows nothing of builds and mounts; it is given paths.

mod door;
mod key;
mod sign;
mod wire;

use std::{
    fs,
    io::{self, Read as _},
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::{Path, PathBuf},
};

use thiserror::Error;

pub use door::Door;
use key::Key;

/// Largest key file, in bytes, as in BuildKit.
const KEY_BYTES_MAX: u64 = 100 << 10;

/// What answers behind a socket.
#[derive(Debug)]
pub enum Agent {
    /// The agent that listens at this socket.
    Socket(PathBuf),
    /// Keys of our own.
    Keys(Keys),
}

/// Private keys, ready to sign; what they are is never shown.
pub struct Keys(Vec<Key>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

/// Why there is no agent.
#[derive(Debug, Error)]
pub enum SshError {
    /// A file cannot be read, or a socket does not answer.
    #[error("{path}: {source}")]
    Io {
        /// The file or socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file holds no key that can be used.
    #[error("{path}: {reason}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not, and the way out.
        reason: String,
    },
    /// Sockets and keys do not go together.
    #[error("{path}: one socket, or only key files: an agent and keys cannot stand behind one id")]
    Mixed {
        /// The path that is too many.
        path: PathBuf,
    },
}

impl Agent {
    /// One socket, or any number of private keys.
    ///
    /// # Errors
    ///
    /// When a path cannot be read, holds no usable key, or sockets and keys are mixed.
    pub fn open(paths: &[PathBuf]) -> Result<Self, SshError> {
        let mut keys = Vec::new();
        for path in paths {
            let found = fs::metadata(path).map_err(|source| io_error(path, source))?;
            if !found.file_type().is_socket() {
                keys.push(read_key(path)?);
                continue;
            }
            if paths.len() > 1 {
                return Err(SshError::Mixed { path: path.clone() });
            }
            // A socket that nobody listens at is told now, and not by a puzzled ssh.
            UnixStream::connect(path).map_err(|source| io_error(path, source))?;
            return Ok(Self::Socket(path.clone()));
        }
        Ok(Self::Keys(Keys(keys)))
    }
}

fn read_key(path: &Path) -> Result<Key, SshError> {
    let invalid = |reason: String| SshError::Key { path: path.to_owned(), reason };
    let file = fs::File::open(path).map_err(|source| io_error(path, source))?;
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return Err(invalid("neither a socket nor a file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(KEY_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| io_error(path, source))?;
    if bytes.len() as u64 > KEY_BYTES_MAX {
        return Err(invalid(format!("more than {KEY_BYTES_MAX} bytes, which is no key")));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Key::parse(&bytes, &name).map_err(|error| invalid(error.to_string()))
}

fn io_error(path: &Path, source: io::Error) -> SshError {
    SshError::Io { path: path.to_owned(), source }
}
