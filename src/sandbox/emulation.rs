//! Processes for another processor: whether the kernel knows an interpreter for them, and how to tell it of one.
//!
//! The kernel keeps such interpreters (binfmt_misc) in a list for each user namespace since Linux 6.7. In a namespace of
//! our own we fill the list ourselves; where we are root outside of any, the process gets a namespace for that.
//! Never changes the list of the machine. Knows neither images nor who asks.

use std::{
    fs,
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::MemfdFlags,
    io::Errno,
    mount::{FsOpenFlags, MountFlags},
};

use super::{Ability, Isolation, Obstacle, Privilege};

/// Where the list is seen.
const LIST: &str = "/proc/sys/fs/binfmt_misc";

/// Where interpreters are installed.
const FOLDERS: &[&str] = &["/usr/bin", "/usr/local/bin", "/usr/libexec/qemu-binfmt"];

/// Bytes of an ELF header that tell the processor.
const MAGIC_BYTES: usize = 20;

/// A processor as images and as program files name it.
struct Processor {
    /// In image configs.
    architecture: &'static str,
    /// In names of qemu's programs.
    qemu: &'static str,
    /// `e_ident[EI_CLASS]`: 1 for 32 bits, 2 for 64.
    class: u8,
    /// `e_ident[EI_DATA]`: 1 for little endian, 2 for big.
    order: u8,
    /// `e_machine`; source: elf(5).
    machine: u16,
}

const PROCESSORS: &[Processor] = &[
    Processor { architecture: "amd64", qemu: "x86_64", class: 2, order: 1, machine: 62 },
    Processor { architecture: "386", qemu: "i386", class: 1, order: 1, machine: 3 },
    Processor { architecture: "arm64", qemu: "aarch64", class: 2, order: 1, machine: 183 },
    Processor { architecture: "arm", qemu: "arm", class: 1, order: 1, machine: 40 },
    Processor { architecture: "riscv64", qemu: "riscv64", class: 2, order: 1, machine: 243 },
    Processor { architecture: "ppc64le", qemu: "ppc64le", class: 2, order: 1, machine: 21 },
    Processor { architecture: "s390x", qemu: "s390x", class: 2, order: 2, machine: 22 },
    Processor { architecture: "mips64le", qemu: "mips64el", class: 2, order: 1, machine: 8 },
    Processor { architecture: "loong64", qemu: "loongarch64", class: 2, order: 1, machine: 258 },
];

/// How processes for a processor run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// As any other: by the processor itself, or by an interpreter that the kernel knows.
    Known,
    /// By this interpreter, of which each process has to tell the kernel ([`super::ProcessSpec::emulator`]).
    Own(Emulator),
}

/// An interpreter for the programs of another processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulator {
    /// The program, statically linked.
    pub interpreter: PathBuf,
    /// The processor as images name it.
    pub architecture: String,
}

/// See [`super::emulation`].
pub(super) fn emulation(architecture: &str, ability: &Ability) -> Result<Emulation, Obstacle> {
    let Some(processor) = processor(architecture) else {
        return Err(obstacle(architecture, "no interpreter for it is known".to_owned()));
    };
    if is_native(architecture) || is_listed(processor) || starts(processor) {
        return Ok(Emulation::Known);
    }
    let interpreter = interpreter(processor).ok_or_else(|| {
        obstacle(architecture, format!("qemu-{}-static is not installed", processor.qemu))
    })?;
    own_lists().map_err(|reason| obstacle(architecture, reason.to_owned()))?;
    match ability.privilege {
        Privilege::Mapped | Privilege::SingleId => fill_list()
            .map(|()| Emulation::Known)
            .map_err(|error| obstacle(architecture, format!("{LIST}: {error}"))),
        Privilege::Root if ability.isolation == Isolation::OuterProc => {
            let reason = "parts of /proc are hidden from us, and an emulator needs a new one";
            Err(obstacle(architecture, reason.to_owned()))
        }
        Privilege::Root => {
            let architecture = architecture.to_owned();
            Ok(Emulation::Own(Emulator { interpreter, architecture }))
        }
        Privilege::None => {
            let reason = "an ordinary user needs a user namespace for it";
            Err(obstacle(architecture, reason.to_owned()))
        }
    }
}

/// See [`super::emulated`].
pub(super) fn emulated(ability: &Ability) -> Vec<&'static str> {
    if ability.run.is_err() {
        return Vec::new();
    }
    let names = PROCESSORS.iter().map(|processor| processor.architecture);
    let foreign = names.filter(|name| !is_native(name));
    foreign.filter(|name| emulation(name, ability).is_ok()).collect()
}

fn obstacle(architecture: &str, reason: String) -> Obstacle {
    let help = "install Debian's qemu-user-static (rootless, and as root on Linux 6.7 or newer, nothing else is needed), or \
                register an interpreter for the whole machine: `docker run --privileged --rm tonistiigi/binfmt --install all`";
    Obstacle {
        reason: format!("this machine does not run {architecture}: {reason}"),
        help: help.to_owned(),
        without_room: None,
    }
}

fn processor(architecture: &str) -> Option<&'static Processor> {
    PROCESSORS.iter().find(|processor| processor.architecture == architecture)
}

fn is_native(architecture: &str) -> bool {
    match std::env::consts::ARCH {
        "x86_64" => matches!(architecture, "amd64" | "386"),
        "aarch64" => architecture == "arm64",
        other => processor(architecture).is_some_and(|known| known.qemu == other),
    }
}

/// The beginning of a program file for `processor`.
fn magic(processor: &Processor) -> [u8; MAGIC_BYTES] {
    let number =
        |value: u16| if processor.order == 2 { value.to_be_bytes() } else { value.to_le_bytes() };
    let mut magic = [0; MAGIC_BYTES];
    magic[..4].copy_from_slice(b"\x7fELF");
    magic[4..7].copy_from_slice(&[processor.class, processor.order, 1]);
    magic[16..18].copy_from_slice(&number(2));
    magic[18..].copy_from_slice(&number(processor.machine));
    magic
}

/// Which bits of [`magic`] count: neither the system, nor whether it is position-independent.
fn mask(processor: &Processor) -> [u8; MAGIC_BYTES] {
    let mut mask = [0xff; MAGIC_BYTES];
    mask[7] = 0;
    mask[if processor.order == 2 { 17 } else { 16 }] = 0xfe;
    mask
}

/// A line for `register`; `F` opens the interpreter now, so that no root file system has to hold it.
fn registration(processor: &Processor, interpreter: &str) -> Vec<u8> {
    let hex = |bytes: [u8; MAGIC_BYTES]| -> String {
        bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
    };
    let (name, magic, mask) = (processor.qemu, hex(magic(processor)), hex(mask(processor)));
    format!(":qemu-{name}:M::{magic}:{mask}:{interpreter}:POF").into_bytes()
}

/// Whether the list that we see has an interpreter that works in any root file system.
fn is_listed(processor: &Processor) -> bool {
    let entries = fs::read_dir(LIST).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let wanted: String = magic(processor).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut fitting = texts.filter(|text| is_for(text, &wanted));
    fitting.any(|text| text.lines().any(|line| line.starts_with("flags:") && line.contains('F')))
}

/// Whether an entry is switched on and for programs that begin with `magic` (hex), whatever their system.
fn is_for(entry: &str, magic: &str) -> bool {
    let on = entry.lines().any(|line| line == "enabled");
    let told = entry.lines().find_map(|line| line.strip_prefix("magic ")).unwrap_or_default();
    let same = |range: std::ops::Range<usize>| told.get(range.clone()) == magic.get(range);
    on && same(0..14) && same(36..40)
}

/// Whether the kernel starts a program for `processor`, though the list is out of our sight: in a container.
fn starts(processor: &Processor) -> bool {
    let empty = fs::read_dir(LIST).map_or(true, |mut entries| entries.next().is_none());
    let started = || -> io::Result<()> {
        let file = fs::File::from(rustix::fs::memfd_create(c"program", MemfdFlags::empty())?);
        (&file).write_all(&magic(processor))?;
        (&file).write_all(&[0; 44])?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut command = Command::new(path);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // It is no whole program: that its interpreter began with it is all that counts.
        command.status().map(drop)
    };
    empty && started().is_ok()
}

fn interpreter(processor: &Processor) -> Option<PathBuf> {
    let name = format!("qemu-{}-static", processor.qemu);
    FOLDERS.iter().map(|folder| Path::new(folder).join(&name)).find(|path| path.is_file())
}

/// Lists of user namespaces came with Linux 6.7; what is in the way of one otherwise.
fn own_lists() -> Result<(), &'static str> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
    let version = (next(), next());
    if version < (6, 7) {
        return Err("before Linux 6.7 only the machine as a whole may be told of it");
    }
    // Asking for it loads its module, where that can be.
    match rustix::mount::fsopen(c"binfmt_misc", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => Err("this kernel has no binfmt_misc (`modprobe binfmt_misc`)"),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// In a user namespace of our own: makes its list, of every interpreter that is installed.
fn fill_list() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("binfmt_misc", LIST, "binfmt_misc", flags, None)?;
    for processor in PROCESSORS.iter().filter(|one| !is_native(one.architecture)) {
        let Some(interpreter) = interpreter(processor) else { continue };
        let line = registration(processor, &interpreter.display().to_string());
        match fs::write(Path::new(LIST).join("register"), line) {
            // Another build of this process was here at the same time.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(())
}

/// An emulator, ready for a process that tells the kernel of it.
pub(super) struct Registration {
    /// The interpreter, whose number is in `line`; open until that is written.
    pub(super) interpreter: OwnedFd,
    /// The line to write.
    pub(super) line: Vec<u8>,
}

/// Opens an emulator for [`register`]; `raise` gives a descriptor a number that stays free in the child.
pub(super) fn prepare(
    emulator: &Emulator,
    raise: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd>,
) -> io::Result<Registration> {
    let processor = processor(&emulator.architecture).ok_or(io::ErrorKind::Unsupported)?;
    let interpreter = raise(fs::File::open(&emulator.interpreter)?.as_fd())?;
    let line = registration(processor, &format!("/proc/self/fd/{}", interpreter.as_raw_fd()));
    Ok(Registration { interpreter, line })
}

/// Runs in the process, in a user and mount namespace of its own: makes the list and leaves it to be read.
/// Allocates nothing.
pub(super) fn register(registration: &Registration) -> rustix::io::Result<()> {
    const PLACE: &std::ffi::CStr = c"/proc/sys/fs/binfmt_misc";
    const REGISTER: &std::ffi::CStr = c"/proc/sys/fs/binfmt_misc/register";
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(c"binfmt_misc", PLACE, c"binfmt_misc", flags, None)?;
    let open = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(REGISTER, open, rustix::fs::Mode::empty())?;
    rustix::io::write(&file, &registration.line)?;
    drop(file);
    rustix::mount::mount_remount(PLACE, flags | MountFlags::BIND | MountFlags::RDONLY, c"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_the_one_that_debian_installs() {
        let line = registration(processor("arm64").unwrap(), "/qemu");
        assert_eq!(
            String::from_utf8(line).unwrap(),
            concat!(
                r":qemu-aarch64:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
                r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/qemu:POF"
            )
        );
        let line = registration(processor("s390x").unwrap(), "/qemu");
        assert!(String::from_utf8(line).unwrap().contains(r"\x00\x02\x00\x16:"));
    }

    #[test]
    fn an_entry_of_the_list_counts_when_it_is_on_and_for_the_processor() {
        let entry = "enabled\ninterpreter /q\nflags: POF\noffset 0\nmagic 7f454c460201010000000000000000000200b700\nmask ff\n";
        let hex = |name: &str| -> String {
            magic(processor(name).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        assert!(is_for(entry, &hex("arm64")));
        assert!(!is_for(entry, &hex("riscv64")) && !is_for(entry, &hex("arm")));
        assert!(!is_for(&entry.replace("enabled", "disabled"), &hex("arm64")));
        assert!(!is_for("", &hex("arm64")));
    }

    #[test]
    fn what_nobody_can_run_is_said_with_the_way_out() {
        let ability =
            crate::sandbox::probe(&std::env::temp_dir(), &crate::sandbox::Wanted::default());
        let refused = emulation("vax", &ability).unwrap_err();
        assert!(
            refused.reason.contains("does not run vax")
                && refused.help.contains("qemu-user-static")
        );
        let own = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
        assert_eq!(emulation(own, &ability), Ok(Emulation::Known));
        let own_proc = Ability { privilege: Privilege::Root, ..ability };
        let outer = Ability { isolation: Isolation::OuterProc, ..own_proc };
        // Where the kernel of this machine knows the interpreter already, there is nothing to refuse.
        let other = processor("s390x").unwrap();
        let known = is_listed(other) || starts(other);
        let told = emulation("s390x", &outer).map_err(|refused| refused.reason);
        assert_eq!(told.is_ok(), known, "{told:?}");
        assert!(known || told.unwrap_err().contains("hidden from us"));
    }
}
