//! What a program beside a process says, kept for the case that it fails: so much, and no more, whatever it is made to say.
//!
//! A pipe that nobody reads would hold it up, and a file without a limit would grow as long as a process inside can
//! provoke it.

use std::{fs::File, io, os::unix::fs::FileExt as _, process::Stdio};

use rustix::fs::{MemfdFlags, SealFlags};

/// What is kept, in bytes; all beyond is lost.
const COMPLAINT_BYTES_MAX: usize = 16 << 10;

/// A place for a program's complaints.
pub(super) struct Complaints(File);

impl Complaints {
    pub(super) fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create(c"complaints", flags)?);
        file.set_len(COMPLAINT_BYTES_MAX as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self(file))
    }

    /// A stream of the program.
    pub(super) fn stream(&self) -> io::Result<Stdio> {
        Ok(self.0.try_clone()?.into())
    }

    /// What it said so far.
    pub(super) fn text(&self) -> io::Result<String> {
        let mut bytes = vec![0; COMPLAINT_BYTES_MAX];
        // Where the program writes next stays as it is.
        self.0.read_exact_at(&mut bytes, 0)?;
        let said = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..said]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_that_never_stops_talking_is_neither_held_up_nor_kept_whole() {
        let complaints = Complaints::new().unwrap();
        assert_eq!(complaints.text().unwrap(), "");
        let mut talker = Command::new("sh");
        talker.args(["-c", "echo first >&2; head -c 10000000 /dev/zero | tr '\\0' x >&2; exit 3"]);
        let status = talker.stderr(complaints.stream().unwrap()).status().unwrap();
        assert_eq!(status.code(), Some(3));
        let text = complaints.text().unwrap();
        assert!(text.starts_with("first\nxxx"), "{}", text.len());
        assert!(text.len() <= COMPLAINT_BYTES_MAX);
    }
}
