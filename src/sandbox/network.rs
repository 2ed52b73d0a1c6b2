//! A network of a process's own that reaches the world: a helper program outside carries what goes through it.
//!
//! Closed are the loopback of the host, by how the helper is started, and the addresses at which clouds hand out
//! credentials, by routes that no process inside has the capability to change, whatever else it may.

#![expect(unsafe_code, reason = "ties the life of the helper to ours before it is executed")]

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType},
};

use crate::{
    remote::{LINK_LOCAL_V6, METADATA_V4, METADATA_V6},
    sandbox::{
        NetworkMode, SandboxError,
        complaints::Complaints,
        prepare::setup,
        sys::{self, Sys},
        told::Told,
    },
};

/// Where the helpers are kept; never looked up in `PATH`.
const FOLDERS: &[&str] =
    &["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/run/current-system/sw/bin"];

/// By which every helper makes the interface inside.
const TUN: &str = "/dev/net/tun";

/// How long a helper may take until the network works.
const START_MAX: Duration = Duration::from_secs(30);

/// How often it is looked whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Address, gateway and resolver of the network inside; those that slirp4netns has by itself.
const ADDRESS: &str = "10.0.2.100";
const GATEWAY: &str = "10.0.2.2";
/// At which the helper forwards to the resolver of the host.
pub(super) const RESOLVER: &str = "10.0.2.3";

/// Switches IPv6 of a network off, of interfaces that are there and of those to come.
const IPV6_SWITCH: &CStr = c"/proc/sys/net/ipv6/conf/all/disable_ipv6";

const CAP_NET_ADMIN: u64 = 12;

/// A helper that runs; it ends when this is dropped, and when we are gone.
pub(super) struct Link {
    child: Child,
}

impl Drop for Link {
    fn drop(&mut self) {
        // An error says that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The programs that can do it, and which of them are here.
fn helpers() -> Vec<(&'static str, PathBuf)> {
    let place = |name: &'static str| {
        let mut paths = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
        paths.find(|path| path.exists()).map(|path| (name, path))
    };
    ["slirp4netns", "pasta"].into_iter().filter_map(place).collect()
}

/// Whether a helper is installed.
pub(super) fn helper() -> Option<&'static str> {
    helpers().first().map(|(name, _)| *name)
}

/// Connects the new network of process `pid`, which waits meanwhile. Nothing for the other modes.
pub(super) fn connect(mode: NetworkMode, pid: libc::pid_t) -> Result<Option<Link>, SandboxError> {
    if mode != NetworkMode::Sandbox {
        return Ok(None);
    }
    obstacle()?;
    let mut refusals = Vec::new();
    for (name, path) in helpers() {
        match start(name, &path, pid) {
            Ok(link) => return Ok(Some(link)),
            Err(error) => refusals.push(format!("{name}: {error}")),
        }
    }
    let reason = format!("no network of its own: {}", refusals.join("; "));
    Err(SandboxError::Unavailable { reason, help: CHOICE.to_owned() })
}

/// What to do where there is no helper.
const CHOICE: &str = "install slirp4netns or passt, or choose --network=host or --network=none";

/// What a network that cannot be closed as it must be is to the user.
pub(super) fn unfit(step: &str, errno: Errno) -> SandboxError {
    let reason = format!("no network of its own: {step}: {}", io::Error::from(errno));
    let help = "choose --network=host or --network=none".to_owned();
    SandboxError::Unavailable { reason, help }
}

/// Fails where nothing could connect a new network, as far as can be seen without one.
pub(super) fn obstacle() -> Result<(), SandboxError> {
    if let Err(error) = File::options().read(true).write(true).open(TUN) {
        let reason = format!("no network of its own: {TUN}: {error}");
        let way = match error.kind() == io::ErrorKind::NotFound {
            true => "`modprobe tun` as root".to_owned(),
            false => format!("`chmod 666 {TUN}` as root, as distributions have it"),
        };
        let help = format!(
            "{way} (in a container: `--device {TUN}`), or choose --network=host or --network=none"
        );
        return Err(SandboxError::Unavailable { reason, help });
    }
    if helpers().is_empty() {
        let reason =
            "a network of its own needs slirp4netns or pasta, and neither is installed".to_owned();
        return Err(SandboxError::Unavailable { reason, help: CHOICE.to_owned() });
    }
    Ok(())
}

fn start(name: &str, path: &Path, pid: libc::pid_t) -> io::Result<Link> {
    let said = Complaints::new()?;
    let mut command = Command::new(path);
    if name == "slirp4netns" {
        command.args(["--configure", "--mtu=65520", "--disable-host-loopback"]);
        command.args(["--enable-sandbox", "--enable-seccomp", &pid.to_string(), "tap0"]);
        command.stdin(Stdio::null());
    } else {
        command.args(["--quiet", "--foreground", "--config-net", "--no-map-gw", "--ns-ifname"]);
        command.args(["eth0", "-a", ADDRESS, "-n", "24", "-g", GATEWAY, "--dns-forward", RESOLVER]);
        command.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--runas", "0"]);
        // It drops the capabilities by which it could open the network of another process: that is opened for it.
        command.args(["--stderr", "--netns", "/proc/self/fd/0"]);
        command.stdin(File::open(format!("/proc/{pid}/ns/net"))?);
    }
    command.env_clear().current_dir("/").stdout(said.stream()?).stderr(said.stream()?);
    let tool = rustix::process::getpid();
    // SAFETY: makes system calls only.
    unsafe { command.pre_exec(move || Ok(sys::end_with(tool)?)) };
    let mut link = Link { child: command.spawn()? };
    let until = Instant::now() + START_MAX;
    while !is_connected(pid) {
        if link.child.try_wait()?.is_some() || Instant::now() > until {
            return Err(reason(&said.text()?));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(link)
}

/// What a helper said before it gave up.
fn reason(words: &str) -> io::Error {
    // Notices are no reasons: of slirp4netns about itself, of pasta about its log.
    let reasons = words.lines().filter(|line| {
        !line.trim().is_empty() && !line.contains("WARNING") && !line.contains("syslog")
    });
    let reasons: Vec<&str> = reasons.collect();
    io::Error::other(match reasons.as_slice() {
        [] => "it does not connect".to_owned(),
        reasons => reasons.join(", "),
    })
}

/// Whether the network of a process has a way out: a route to everywhere.
fn is_connected(pid: libc::pid_t) -> bool {
    let routes = std::fs::read_to_string(format!("/proc/{pid}/net/route")).unwrap_or_default();
    routes.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000"))
}

/// Lets the process go on that waits in [`await_link`].
pub(super) fn release(told: &Told) -> Result<(), SandboxError> {
    told.connect();
    sys::wake(told.connected()).map_err(|errno| setup("start the process", errno.into()))
}

/// Runs inside: waits until the network is connected.
pub(super) fn await_link(told: &Told) -> Sys<()> {
    sys::sleep_while_zero(told.connected())
}

/// Runs inside: makes the addresses of cloud metadata unreachable.
pub(super) fn close_metadata() -> Sys<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE is protocol 0.
    )?;
    for (address, bits) in METADATA_V4 {
        close(&socket, By::Route, &address.octets(), *bits)?;
    }
    for (address, bits) in METADATA_V6 {
        match close(&socket, By::Route, &address.octets(), *bits) {
            Ok(()) => {}
            // A kernel without IPv6, or with it switched off, reaches none of them.
            Err(Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM | Errno::AFNOSUPPORT) => {
                return Ok(());
            }
            Err(errno) => return Err(errno),
        }
    }
    // Who names a link-local address names the interface too, which no route of another one overrules.
    let (address, bits) = LINK_LOCAL_V6;
    match close(&socket, By::Rule, &address.octets(), bits) {
        // A kernel whose IPv6 has no rules.
        Err(errno @ (Errno::OPNOTSUPP | Errno::AFNOSUPPORT)) => {
            switch_ipv6_off().map_err(|_| errno)
        }
        other => other,
    }
}

/// In the network that we are in, with the `/proc` that is still the machine's.
fn switch_ipv6_off() -> Sys<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let switch = rustix::fs::open(IPV6_SWITCH, flags, Mode::empty())?;
    rustix::io::write(&switch, b"1").map(drop)
}

/// Runs inside: takes the right to change the network from this process and all that it starts, also from those that
/// have all other rights.
pub(super) fn seal(mode: NetworkMode) -> Sys<()> {
    match mode {
        NetworkMode::Sandbox => sys::give_up_capability(CAP_NET_ADMIN),
        NetworkMode::None | NetworkMode::Host => Ok(()),
    }
}

/// How a destination is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// A route that leads nowhere.
    Route,
    /// A rule that is looked at before any route but those to ourselves.
    Rule,
}

/// Longest message that is sent, in bytes: header, route, one address, one device.
const MESSAGE_BYTES: usize = 16 + 12 + 20;
/// The routing table that is looked at (`RT_TABLE_MAIN`).
const TABLE_MAIN: u8 = 254;

/// One `RTM_NEWROUTE` or `RTM_NEWRULE` of an unreachable destination (rtnetlink(7), linux/fib_rules.h), and the kernel's
/// answer. The two are alike: `FRA_DST` is `RTA_DST`, and `FR_ACT_UNREACHABLE` is `RTN_UNREACHABLE`.
fn close(socket: &OwnedFd, by: By, address: &[u8], bits: u8) -> Sys<()> {
    const REQUEST: u16 = 1 | 4 | 0x400; // NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE.
    let family = if address.len() == 4 { libc::AF_INET } else { libc::AF_INET6 };
    let (kind, protocol) = match by {
        By::Route => (libc::RTM_NEWROUTE, libc::RTPROT_BOOT),
        By::Rule => (libc::RTM_NEWRULE, 0),
    };
    let mut message = [0u8; MESSAGE_BYTES];
    let len = 16 + 12 + 4 + address.len();
    message[..4].copy_from_slice(&(len as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    let route = [family as u8, bits, 0, 0, TABLE_MAIN, protocol, 0, libc::RTN_UNREACHABLE];
    message[16..24].copy_from_slice(&route);
    message[28..30].copy_from_slice(&(4 + address.len() as u16).to_ne_bytes());
    message[30..32].copy_from_slice(&libc::RTA_DST.to_ne_bytes());
    message[32..32 + address.len()].copy_from_slice(address);
    rustix::net::send(socket, &message[..len], SendFlags::empty())?;
    let mut answer = [0u8; 512];
    let (_, len) = rustix::net::recv(socket, &mut answer, rustix::net::RecvFlags::empty())?;
    // NLMSG_ERROR: the header, then the error, negative; zero is success.
    if len < 20 {
        return Err(Errno::PROTO);
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(-error)),
    }
}
