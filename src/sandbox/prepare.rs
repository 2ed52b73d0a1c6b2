//! Everything that a process needs, worked out before it is forked: after that nothing may be
//! allocated. Also the few files that lie beside the overlay's work directory meanwhile.

#![expect(unsafe_code, reason = "lists of pointers for execve cross the fork")]

use std::{
    ffi::{CStr, CString, OsString},
    fs, io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Path, PathBuf},
    ptr,
};

use crate::limits::{Limits, UlimitKind};

use crate::sandbox::{
    Bind, Isolation, Mount, NetworkMode, Privileges, ProcessSpec, RootFs, RootKind, SandboxError,
    Tmpfs,
    cgroup::{Cgroup, Controller},
    emulation::{self, Registration},
    filter,
    fuse::FuseMount,
    identity,
    identity::Mapping,
    mounts::{self, MOUNTS_MAX, ReadOnly},
    sys,
    told::Step,
    userns::{self, PrivateUsers},
};

/// Longest string that fsconfig(2) takes, with its end.
const FSCONFIG_BYTES_MAX: usize = 256;

/// Size of `/dev/shm` unless another is asked for, as in Docker.
const SHM_BYTES_DEFAULT: u64 = 64 << 20;

/// Directories that overlay takes below an upper one, less our own (`OVL_MAX_STACK`).
const LOWERS_MAX: usize = 499;

/// Longest text of options that mount(2) takes, with its end: a page.
const MOUNT_OPTIONS_BYTES_MAX: usize = 4096;

/// The capabilities of Docker's default: the bits of `CapBnd: 00000000a80425fb`.
const CAPABILITIES_DOCKER: u64 = 0xa804_25fb;

/// How much is hidden from the process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shield {
    /// Masks, read-only kernel interfaces, 14 capabilities, the system call filter.
    Full,
    /// Nothing (`--security=insecure`).
    Open,
}

/// How the root file system is mounted.
pub(super) enum PlannedRoot {
    /// Paths of the lowers, for `lowerdir+`.
    Overlay(Vec<CString>),
    /// All options, for mount(2); paths are short names.
    ByMount(CString),
    /// Served at the seat, in this mount namespace.
    Served(FuseMount),
    /// The upper directory itself.
    Plain,
}

/// What the streams of the process are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Console {
    /// Descriptors that the caller gave.
    Given,
    /// A terminal of its own, whose other end is sent to the caller.
    Own,
}

/// A bind, ready for the kernel.
pub(super) struct PlannedBind {
    pub(super) source: CString,
    pub(super) inside: Option<CString>,
    pub(super) target: CString,
    pub(super) attributes: u64,
}

/// A tmpfs, ready for the kernel.
pub(super) struct PlannedTmpfs {
    pub(super) target: CString,
    pub(super) mode: CString,
    /// Empty for no limit.
    pub(super) size: CString,
    pub(super) files: Vec<Content>,
    /// Name of the one file that is mounted instead of the directory.
    pub(super) single: Option<CString>,
}

/// One mount, ready for the kernel.
pub(super) enum PlannedMount {
    Bind(PlannedBind),
    Tmpfs(PlannedTmpfs),
}

/// A file to write into a tmpfs.
pub(super) struct Content {
    pub(super) name: CString,
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A list of strings as execve(2) takes it.
pub(super) struct StringList {
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

/// All that the child needs.
pub(super) struct Plan {
    pub(super) root: PlannedRoot,
    pub(super) upper: CString,
    pub(super) work: CString,
    /// The folder that short names start from, and where in it a root file system may be hung up.
    pub(super) aid: CString,
    pub(super) seat: CString,
    pub(super) overlay_flags: &'static [&'static CStr],
    pub(super) hook: CString,
    pub(super) etc_files: Vec<PlannedBind>,
    pub(super) mounts: Vec<PlannedMount>,
    pub(super) masked: Vec<CString>,
    pub(super) cwd: CString,
    pub(super) hostname: Vec<u8>,
    pub(super) candidates: Vec<CString>,
    pub(super) argv: StringList,
    pub(super) env: StringList,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) mapping: Mapping,
    pub(super) users: Option<PrivateUsers>,
    pub(super) capabilities: u64,
    pub(super) filter: Vec<libc::sock_filter>,
    pub(super) shield: Shield,
    pub(super) isolation: Isolation,
    pub(super) privileges: Privileges,
    pub(super) network: NetworkMode,
    pub(super) streams: Streams,
    pub(super) cgroup: Cgroup,
    /// Control groups of version 1 to show, by controller.
    pub(super) shown_groups: Vec<CString>,
    pub(super) shm_size: CString,
    /// Resource, soft and hard limit.
    pub(super) ulimits: Vec<(u32, (u64, u64))>,
    /// An interpreter that the process tells the kernel of, in a user namespace of its own.
    pub(super) emulator: Option<Registration>,
    pub(super) console: Console,
    pub(super) _aid: Aid,
}

/// Standard input, output and error of the process; all above 2.
pub(super) struct Streams {
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
    pub(super) error: OwnedFd,
}

impl Plan {
    /// The descriptors that stay open, lowest first; one may be there twice.
    pub(super) fn kept(&self) -> [RawFd; 5] {
        let Streams { input, output, error } = &self.streams;
        let interpreter = self.emulator.as_ref().map_or(input, |emulator| &emulator.interpreter);
        let users = self.users.as_ref().map_or(input, |users| &users.namespace);
        let mut all = [input, output, error, interpreter, users].map(|kept| kept.as_raw_fd());
        all.sort_unstable();
        all
    }

    /// A user and a group of the process as the machine counts them.
    pub(super) fn outside(&self, ids: (u32, u32)) -> (u32, u32) {
        self.users.as_ref().map_or(ids, |users| users.outside(ids))
    }
}

impl StringList {
    fn new(strings: Vec<CString>) -> Self {
        let ends = std::iter::once(ptr::null());
        let pointers = strings.iter().map(|string| string.as_ptr()).chain(ends).collect();
        Self { _strings: strings, pointers }
    }

    pub(super) fn pointers(&self) -> &[*const libc::c_char] {
        &self.pointers
    }
}

// SAFETY: the pointers lead into the strings that are owned beside them and never change.
unsafe impl Send for StringList {}

/// Files beside the work directory: the lowest layer with its mount points, `hosts`, `resolv.conf`.
/// Removed when dropped.
pub(super) struct Aid {
    folder: PathBuf,
}

impl Drop for Aid {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

impl Aid {
    fn new(spec: &ProcessSpec) -> io::Result<Self> {
        let mut folder = OsString::from(&spec.rootfs.work);
        folder.push(".aid");
        let aid = Self { folder: folder.into() };
        match fs::remove_dir_all(&aid.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut directory = fs::DirBuilder::new();
        directory.mode(0o755);
        directory.create(&aid.folder)?;
        for name in
            ["hook", "root", "l", "lower", "lower/proc", "lower/sys", "lower/dev", "lower/etc"]
        {
            directory.create(aid.folder.join(name))?;
        }
        fs::write(aid.folder.join("lower/etc/hosts"), b"")?;
        fs::write(aid.folder.join("lower/etc/resolv.conf"), b"")?;
        fs::write(aid.folder.join("hosts"), hosts_text(&spec.hostname, &spec.hosts))?;
        fs::write(aid.folder.join("resolv.conf"), &spec.resolv_conf)?;
        Ok(aid)
    }

    /// Names that are short and plain, whatever the directories are called: `l/0`, `l/1` …, `u` and `w`.
    fn name_shortly(
        &self,
        lowers: &[&PathBuf],
        rootfs: &RootFs,
        users: Option<&mut PrivateUsers>,
    ) -> io::Result<()> {
        use std::os::unix::fs::symlink;
        if let Some(users) = users {
            return users.seat(&self.folder, lowers, rootfs);
        }
        for (number, lower) in lowers.iter().enumerate() {
            symlink(std::path::absolute(lower)?, self.folder.join(format!("l/{number}")))?;
        }
        symlink(std::path::absolute(&rootfs.upper)?, self.folder.join("u"))?;
        symlink(std::path::absolute(&rootfs.work)?, self.folder.join("w"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// `/etc/hosts`: the lines that every container has, then the ones asked for.
pub(super) fn hosts_text(hostname: &str, hosts: &[(String, String)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n");
    text.push_str(
        "::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for (name, address) in hosts {
        text.push_str(address);
        text.push('\t');
        text.push_str(name);
        text.push('\n');
    }
    text
}

/// Works everything out. The streams and the control group come from the caller.
pub(super) fn plan(
    spec: &ProcessSpec,
    streams: Streams,
    cgroup: Cgroup,
) -> Result<Plan, SandboxError> {
    let mapping = identity::mapping().map_err(|error| setup("read /proc/self/uid_map", error))?;
    check(spec)?;
    let mut users = userns::plan(spec, mapping)?;
    if spec.rootfs.lowers.is_empty() && spec.rootfs.kind != RootKind::Plain {
        make_scratch_points(&spec.rootfs.upper)?;
    }
    let aid = Aid::new(spec)
        .map_err(|error| setup(&format!("write beside {}", spec.rootfs.work.display()), error))?;
    let shield = if spec.insecure { Shield::Open } else { Shield::Full };
    let program = spec.argv.first().map_or("", String::as_str);
    Ok(Plan {
        root: root(&spec.rootfs, &aid, mapping, users.as_mut())?,
        upper: overlay_path(&spec.rootfs.upper, "u", users.as_ref())?,
        work: overlay_path(&spec.rootfs.work, "w", users.as_ref())?,
        overlay_flags: overlay_flags(mapping),
        aid: path(&aid.folder)?,
        seat: path(&aid.path("root"))?,
        hook: path(&aid.path("hook"))?,
        etc_files: etc_files(&aid)?,
        mounts: spec.mounts.iter().map(mount).collect::<Result<_, _>>()?,
        masked: thermal_throttles(),
        cwd: text(&spec.cwd)?,
        hostname: spec.hostname.clone().into_bytes(),
        candidates: candidates(program, &spec.env)?,
        argv: strings(&spec.argv)?,
        env: strings(&spec.env)?,
        uid: spec.uid,
        gid: spec.gid,
        groups: spec.groups.clone(),
        mapping,
        users,
        capabilities: capabilities(shield, spec.isolation),
        filter: filter_for(spec.isolation, shield, mapping),
        shield,
        isolation: spec.isolation,
        privileges: spec.privileges,
        network: spec.network,
        emulator: spec.emulator.as_ref().map(registration).transpose()?,
        streams,
        shown_groups: cgroup.shown().map(|one| text(one.name())).collect::<Result<_, _>>()?,
        shm_size: text(&spec.limits.shm_bytes.unwrap_or(SHM_BYTES_DEFAULT).to_string())?,
        ulimits: ulimits(&spec.limits, mapping, &cgroup),
        cgroup,
        console: Console::Given,
        _aid: aid,
    })
}

/// What a process may have. Without a namespace of our own we cannot give more than we have.
fn capabilities(shield: Shield, isolation: Isolation) -> u64 {
    let wanted = match shield {
        Shield::Full => CAPABILITIES_DOCKER,
        Shield::Open => u64::MAX,
    };
    match isolation {
        Isolation::Full | Isolation::OuterProc => wanted,
        Isolation::Chroot => wanted & identity::permitted_capabilities(),
    }
}

/// Whoever has no namespace of their own cannot filter: what is around us does.
fn filter_for(isolation: Isolation, shield: Shield, mapping: Mapping) -> Vec<libc::sock_filter> {
    match isolation {
        Isolation::Full | Isolation::OuterProc => filter::program(shield, mapping),
        Isolation::Chroot => Vec::new(),
    }
}

/// Limits of each process. An ordinary user who has no control group for the number of processes gets
/// the user's own limit instead: it counts within our user namespace alone.
fn ulimits(limits: &Limits, mapping: Mapping, cgroup: &Cgroup) -> Vec<(u32, (u64, u64))> {
    let mut all: Vec<(u32, (u64, u64))> =
        limits.ulimits.iter().map(|one| (sys::resource(one.kind), (one.soft, one.hard))).collect();
    let counted = cgroup.enforces(Controller::Pids);
    let said = limits.ulimits.iter().any(|one| one.kind == UlimitKind::Nproc);
    if let (Some(pids), false, false) = (limits.pids, counted, said)
        && mapping != Mapping::Initial
    {
        let present = rustix::process::getrlimit(rustix::process::Resource::Nproc);
        let most = present.maximum.map_or(pids, |most| most.min(pids));
        all.push((sys::resource(UlimitKind::Nproc), (most, most)));
    }
    all
}

fn registration(emulator: &emulation::Emulator) -> Result<Registration, SandboxError> {
    let opened = emulation::prepare(emulator, raised);
    opened.map_err(|error| setup(&format!("open {}", emulator.interpreter.display()), error))
}

fn check(spec: &ProcessSpec) -> Result<(), SandboxError> {
    let refuse = |what: &str, why: &str| {
        Err(setup(what, io::Error::new(io::ErrorKind::InvalidInput, why.to_owned())))
    };
    if spec.argv.is_empty() {
        return refuse("execute", "the command is empty");
    }
    // -1 means "leave it" to the kernel, which would leave root.
    if spec.uid == u32::MAX || spec.gid == u32::MAX || spec.groups.contains(&u32::MAX) {
        return refuse("become the user", "4294967295 is no user or group");
    }
    if !spec.cwd.starts_with('/') {
        return refuse("enter the working directory", "it is not absolute");
    }
    if spec.rootfs.lowers.len() > LOWERS_MAX {
        let why = format!(
            "it has more than {LOWERS_MAX} different layers, which overlay cannot stack: join RUN instructions, or copy from another stage"
        );
        return refuse("mount the root file system", &why);
    }
    if spec.mounts.len() > MOUNTS_MAX {
        return refuse("mount", &format!("more than {MOUNTS_MAX} mounts"));
    }
    if let Some(name) = spec.env.iter().find(|entry| !entry.contains('=')) {
        return refuse("prepare the environment", &format!("`{name}` has no `=`"));
    }
    Ok(())
}

/// A process on nothing leaves these directories in its layer, as it does with BuildKit.
fn make_scratch_points(upper: &Path) -> Result<(), SandboxError> {
    for name in ["dev", "proc", "sys"] {
        let place = upper.join(name);
        match fs::DirBuilder::new().mode(0o755).create(&place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(setup(&format!("make {}", place.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn overlay_flags(mapping: Mapping) -> &'static [&'static CStr] {
    match mapping {
        Mapping::Initial => &[c"volatile"],
        Mapping::Many | Mapping::Single => &[c"volatile", c"userxattr"],
    }
}

/// Options of every overlay. Whatever a distribution made the default: the upper must hold whole files and
/// plain marks.
pub(super) const OVERLAY_OPTIONS: [(&CStr, &CStr); 4] =
    [(c"redirect_dir", c"nofollow"), (c"metacopy", c"off"), (c"index", c"off"), (c"xino", c"off")];

fn root(
    rootfs: &RootFs,
    aid: &Aid,
    mapping: Mapping,
    users: Option<&mut PrivateUsers>,
) -> Result<PlannedRoot, SandboxError> {
    let lowest = aid.path("lower");
    let lowers: Vec<&PathBuf> = rootfs.lowers.iter().chain([&lowest]).collect();
    let short = |error| setup("give the layers short names", error);
    match rootfs.kind {
        RootKind::Plain => Ok(PlannedRoot::Plain),
        RootKind::Overlay => {
            let plain =
                lowers.iter().chain([&&rootfs.upper, &&rootfs.work]).all(|one| is_plain(one));
            if plain && users.is_none() {
                let lowers = lowers.iter().map(|lower| path(lower)).collect::<Result<_, _>>()?;
                return Ok(PlannedRoot::Overlay(lowers));
            }
            aid.name_shortly(&lowers, rootfs, users).map_err(short)?;
            let names = (0..lowers.len()).map(|number| text(&format!("l/{number}")));
            Ok(PlannedRoot::Overlay(names.collect::<Result<_, _>>()?))
        }
        RootKind::OverlayByMount => {
            aid.name_shortly(&lowers, rootfs, users).map_err(short)?;
            let names: Vec<String> =
                (0..lowers.len()).map(|number| format!("l/{number}")).collect();
            let mut options = format!("lowerdir={},upperdir=u,workdir=w", names.join(":"));
            for (name, value) in OVERLAY_OPTIONS {
                options += &format!(",{}={}", name.to_string_lossy(), value.to_string_lossy());
            }
            for flag in overlay_flags(mapping) {
                options += &format!(",{}", flag.to_string_lossy());
            }
            if options.len() >= MOUNT_OPTIONS_BYTES_MAX {
                let why = "more layers than mount(2) takes; `--snapshotter copy` takes any number";
                let source = io::Error::new(io::ErrorKind::InvalidInput, why);
                return Err(setup(Step::Overlay.words(), source));
            }
            Ok(PlannedRoot::ByMount(text(&options)?))
        }
        RootKind::FuseOverlay => {
            aid.name_shortly(&lowers, rootfs, None).map_err(short)?;
            let served = FuseMount::new(&aid.folder, lowers.len());
            served.map(PlannedRoot::Served).map_err(|error| setup(Step::Overlay.words(), error))
        }
    }
}

/// Whether a path can be handed to overlay as it is: fsconfig(2) limits its length, and some letters mean
/// something to it.
fn is_plain(place: &Path) -> bool {
    let bytes = place.as_os_str().as_bytes();
    bytes.len() < FSCONFIG_BYTES_MAX && !bytes.iter().any(|byte| b":,\\".contains(byte))
}

/// The path of an upper or work directory as overlay gets it: itself, or its short name.
fn overlay_path(
    place: &Path,
    short: &str,
    users: Option<&PrivateUsers>,
) -> Result<CString, SandboxError> {
    let seated = users.is_some_and(PrivateUsers::has_seats);
    if !seated && is_plain(place) { path(place) } else { text(short) }
}

fn etc_files(aid: &Aid) -> Result<Vec<PlannedBind>, SandboxError> {
    let file = |name: &str| {
        Ok(PlannedBind {
            source: path(&aid.path(name))?,
            inside: None,
            target: text(&format!("/etc/{name}"))?,
            attributes: mounts::bind_attributes(ReadOnly::Yes),
        })
    };
    Ok(vec![file("hosts")?, file("resolv.conf")?])
}

fn mount(mount: &Mount) -> Result<PlannedMount, SandboxError> {
    Ok(match mount {
        Mount::Bind(of_host) => PlannedMount::Bind(bind(of_host)?),
        Mount::Tmpfs(in_memory) => PlannedMount::Tmpfs(tmpfs(in_memory)?),
    })
}

fn bind(bind: &Bind) -> Result<PlannedBind, SandboxError> {
    let read_only = if bind.read_only { ReadOnly::Yes } else { ReadOnly::No };
    Ok(PlannedBind {
        source: path(&bind.source)?,
        inside: bind.inside.as_deref().map(text).transpose()?,
        target: text(&bind.target)?,
        attributes: mounts::bind_attributes(read_only),
    })
}

fn tmpfs(tmpfs: &Tmpfs) -> Result<PlannedTmpfs, SandboxError> {
    let alone = matches!(tmpfs.files.as_slice(), [(name, ..)] if name.is_empty());
    let single = if alone { Some(c"file".to_owned()) } else { None };
    let mut files = Vec::with_capacity(tmpfs.files.len());
    for (name, bytes, mode, uid, gid) in &tmpfs.files {
        let name = match &single {
            Some(single) => single.clone(),
            None => text(name)?,
        };
        files.push(Content { name, bytes: bytes.clone(), mode: *mode, uid: *uid, gid: *gid });
    }
    // A directory of secrets is for looking them up by name; a plain tmpfs is like /tmp.
    let mode = if tmpfs.files.is_empty() { "1777" } else { "0755" };
    Ok(PlannedTmpfs {
        target: text(&tmpfs.target)?,
        mode: text(mode)?,
        size: text(&tmpfs.size.map(|bytes| bytes.to_string()).unwrap_or_default())?,
        files,
        single,
    })
}

/// Per-processor counters that tell of the host's other work.
fn thermal_throttles() -> Vec<CString> {
    let Ok(processors) = fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
    let throttles = processors.flatten().map(|entry| entry.path().join("thermal_throttle"));
    let existing = throttles.filter(|place| place.is_dir());
    existing
        .filter_map(|place| {
            let relative = place.strip_prefix("/").ok()?;
            CString::new(relative.as_os_str().as_bytes()).ok()
        })
        .collect()
}

/// The paths to try for a program, in order: itself when it has a slash, else along `PATH`.
fn candidates(program: &str, env: &[String]) -> Result<Vec<CString>, SandboxError> {
    if program.contains('/') {
        return Ok(vec![text(program)?]);
    }
    if program.is_empty() {
        return Ok(Vec::new());
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
    let folders = path.split(':').filter(|folder| !folder.is_empty());
    folders.map(|folder| text(&format!("{}/{program}", folder.trim_end_matches('/')))).collect()
}

fn strings(list: &[String]) -> Result<StringList, SandboxError> {
    Ok(StringList::new(list.iter().map(|string| text(string)).collect::<Result<_, _>>()?))
}

fn text(string: &str) -> Result<CString, SandboxError> {
    CString::new(string).map_err(|error| setup(&format!("take `{string}`"), error.into()))
}

fn path(place: &Path) -> Result<CString, SandboxError> {
    CString::new(place.as_os_str().as_bytes())
        .map_err(|error| setup(&format!("take {}", place.display()), error.into()))
}

pub(super) fn setup(step: &str, source: io::Error) -> SandboxError {
    SandboxError::Setup { step: step.to_owned(), source }
}

/// A descriptor above 2, closed on exec.
pub(super) fn raised(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const ABOVE_STANDARD: RawFd = 3;
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, ABOVE_STANDARD)?)
}
