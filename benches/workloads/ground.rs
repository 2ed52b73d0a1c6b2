//! Where workloads run: a fresh file system each, so that none pays for what another left behind.
//!
//! ext4 gets slower at making files for minutes after many were removed; a new one has no past. As
//! root it is a loop mount in a mount namespace of this program alone, which the kernel takes away
//! when the program ends, however it ends.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Set in the environment of the program once it has a mount namespace of its own.
const INSIDE: &str = "IDPBUILDER_BENCH_INSIDE";

/// Size of a ground, in MiB; sparse, so only what is used is taken.
const GROUND_MIB: u64 = 24 << 10;

/// As root, starts this program again in a mount namespace of its own.
pub(crate) fn enter() {
    if !rustix::process::geteuid().is_root() || std::env::var_os(INSIDE).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut command = Command::new("unshare");
    command.args(["--mount", "--"]).arg(program).args(std::env::args_os().skip(1));
    let error = command.env(INSIDE, "1").exec();
    eprintln!("note: no mount namespace ({error}); workloads share the file system of target/");
}

/// How the folder begins in which a benchmark keeps what needs short paths, or is for other users to see.
const TEMPORARY: &str = "idpbuilder-bench-";

/// That folder; [`tidy_up`] removes it.
pub(crate) fn temporary() -> PathBuf {
    std::env::temp_dir().join(format!("{TEMPORARY}{}", std::process::id()))
}

/// Removes that folder, and those of benchmarks that were killed.
pub(crate) fn tidy_up() {
    drop(fs::remove_dir_all(temporary()));
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(TEMPORARY).and_then(|pid| pid.parse::<u32>().ok());
        if process.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// A file of the context, and what tools that unpack make of it, more than once.
const INODES_PER_FILE: u64 = 3;

/// A folder to work in.
pub(crate) struct Ground {
    root: PathBuf,
    mounted: bool,
}

impl Ground {
    /// A new one below `parent`, for about so many files.
    pub(crate) fn new(parent: &Path, name: &str, files: u64) -> io::Result<Self> {
        let root = parent.join(name);
        drop(fs::remove_dir_all(&root));
        fs::create_dir_all(&root)?;
        let mut ground = Self { root, mounted: false };
        if std::env::var_os(INSIDE).is_some() {
            ground.mounted = ground.mount(&parent.join(format!("{name}.ext4")), files);
        }
        Ok(ground)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    pub(crate) fn is_fresh(&self) -> bool {
        self.mounted
    }

    fn mount(&self, image: &Path, files: u64) -> bool {
        let inodes = (GROUND_MIB << 10 >> 6).max(files.saturating_mul(INODES_PER_FILE)).to_string();
        let made = fs::File::create(image).and_then(|file| file.set_len(GROUND_MIB << 20));
        // Lazy initialisation would go on in the background of the measurement.
        let options = "lazy_itable_init=0,lazy_journal_init=0";
        let mounted = made.is_ok()
            && succeeds(
                Command::new("mkfs.ext4")
                    .args(["-q", "-F", "-N", &inodes, "-E", options])
                    .arg(image),
            )
            && succeeds(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&self.root));
        // The mount holds it; its bytes go with the mount.
        drop(fs::remove_file(image));
        mounted
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if self.mounted {
            succeeds(Command::new("umount").arg("--recursive").arg("--lazy").arg(&self.root));
            drop(fs::remove_dir(&self.root));
        } else {
            drop(fs::remove_dir_all(&self.root));
        }
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Random-looking bytes, the same every time (xorshift64*).
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Half noise, half text: it compresses to about 55 %, as programs do.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for (index, chunk) in bytes.chunks_mut(8).enumerate() {
            let word = if index % 64 < 32 { self.next().to_le_bytes() } else { *b"content " };
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Writes `count` files of about `size` bytes each, 100 in a folder, dated in the past so that a cache
/// by time of change may trust them.
pub(crate) fn write_files(folder: &Path, count: usize, size: usize) -> io::Result<()> {
    let mut noise = Noise::new(count as u64);
    let mut bytes = vec![0; 2 * size];
    for number in 0..count {
        let parent = folder.join(format!("part{}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&parent)?;
        }
        let length = size / 2 + usize::try_from(noise.next() % size as u64).unwrap_or(0);
        noise.fill(&mut bytes[..length]);
        fs::write(parent.join(format!("file{number}.dat")), &bytes[..length])?;
    }
    Ok(())
}

/// A folder for what is measured, with a Dockerfile.
pub(crate) fn context(ground: &Path, dockerfile: &str) -> Result<PathBuf, String> {
    let folder = ground.join("context");
    let made = fs::create_dir_all(&folder);
    made.and_then(|()| fs::write(folder.join("Dockerfile"), dockerfile))
        .map_err(|error| error.to_string())?;
    Ok(folder)
}

/// Files are trusted by their time of change once it is older than a file system's clock may be coarse:
/// measured is a tree that was there before, not one that was written just now.
pub(crate) fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(2200));
}

/// Writes one file of `mib` MiB.
pub(crate) fn write_large(path: &Path, mib: usize) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = fs::File::create(path)?;
    let (mut noise, mut piece) = (Noise::new(1), vec![0; 1 << 20]);
    for _ in 0..mib {
        noise.fill(&mut piece);
        file.write_all(&piece)?;
    }
    Ok(())
}
