//! S28: what each network reaches, of the machine, of its neighbours and of a cloud.

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram, UnixListener},
    },
    sync::atomic::Ordering,
};

use super::{everywhere, said};
use crate::{
    network::{Server, ask, on_a_usual_machine, own_address},
    support::{Done, images},
};

#[test]
fn s28_each_network_reaches_what_it_may() {
    everywhere("S28", |attack| {
        let (lan, canary) = (Server::at(own_address()), Server::at([127, 0, 0, 1].into()));
        let script = format!(
            "{}; {}; {}; ip route get 169.254.169.254 2>&1 | grep -c via; ls /sys/class/net | grep -vc '^lo$'; true",
            ask(&lan.address),
            ask(&canary.address),
            // The gateway of the network inside: helpers would take it to the loopback of the host.
            ask(&format!("10.0.2.2:{}", canary.port())),
        );
        let reached = |run: &str, flags: &[&str]| {
            attack.user.write("Dockerfile", &format!("FROM base\n{run} {script}\n"));
            let mut build = attack.idp();
            build.args(["--progress", "plain", "build", "--no-cache"]).args(flags);
            build.args(attack.flags()).arg(".");
            let done = attack.heard(on_a_usual_machine(&attack.user, "", &build));
            assert_eq!(done.code, 0, "{done}");
            said(&done)
        };
        let none = "no\nno\nno\n0\n0\n";
        assert_eq!(reached("RUN", &["--network=none"]), none);
        assert_eq!(reached("RUN", &["--network=sandbox"]), "reached\nno\nno\n0\n1\n");
        let own = reached("RUN --network=none", &["--network=sandbox"]);
        assert_eq!(own, none, "a RUN chooses for itself");
        assert_eq!(canary.asked.load(Ordering::Relaxed), 0, "nobody came to the loopback");
        let default = reached("RUN", &[]);
        assert!(default.starts_with("reached\nreached\nno\n"), "{default}");
        assert_eq!(reached("RUN", &["--network=host"]), default);
        "none: lo only; sandbox: neither loopback nor metadata; default: host's"
    });
}

/// Sockets of the machine that have no file: X11, D-Bus, containerd's shims. Nothing else changes for who is kept from them.
#[test]
fn s28_abstract_sockets_of_the_machine_are_closed() {
    let name = format!("canary-{}", std::process::id());
    let address = |end: &str| SocketAddr::from_abstract_name(format!("{name}-{end}")).unwrap();
    let _stream = UnixListener::bind_addr(&address("stream")).unwrap();
    let _datagrams = UnixDatagram::bind_addr(&address("datagrams")).unwrap();
    let reach = format!("attack sockets {name}");
    everywhere("S28 abstract sockets", |attack| {
        let program = images::compiled("attack", attack.user.folder());
        let outside = |args: &[&str]| Done::of(attack.user.command(&program).args(args)).ok();
        let open = "stream OK\ndatagram OK\nown OK\n";
        assert_eq!(outside(&["sockets", &name]), open, "they are there");
        let version: u32 = outside(&["landlock"]).trim().parse().unwrap();
        let (wanted, result) = match version >= 6 {
            true => ("stream EPERM\ndatagram EPERM\nown OK\n", "EPERM"),
            false => (open, "open: this kernel cannot close them"),
        };
        assert_eq!(attack.says("base", &reach), wanted);
        let state = if version >= 6 { "are closed to a RUN" } else { "are open to a RUN" };
        let doctor = |flags: &[&str]| Done::of(attack.idp().arg("doctor").args(flags)).ok();
        assert!(doctor(&[]).contains(state), "{}", doctor(&[]));
        let chroot = doctor(&["--isolation", "chroot"]);
        let told = ["are open to a RUN without isolation", "not possible"];
        assert!(told.iter().any(|words| chroot.contains(words)), "{chroot}");
        // All capabilities are all.
        let insecure = format!("FROM base\nRUN --security=insecure {reach}\n");
        let flags = ["--no-cache", "--allow", "security.insecure"];
        assert_eq!(said(&attack.build_with(&insecure, &flags)), open);
        result
    });
}

/// What keeps a process from sockets keeps no program from its owner's rights, and no file from another folder.
#[test]
fn s28_programs_of_root_and_files_are_as_they_were() {
    everywhere("S28 set-user-id programs", |attack| {
        let text = "FROM base\nRUN cp /bin/attack /bin/rooted && chmod 4755 /bin/rooted && mkdir /a /b && echo > /a/f && ln /a/f /b/f && mv /a/f /b/g\n\
            USER 1000\nRUN rooted who\n";
        let done = attack.build_with(text, &["--no-cache"]);
        assert_eq!((done.code, said(&done).as_str()), (0, "0\n"), "{done}");
        "root's rights"
    });
}

/// Who has all capabilities could take the routes away that close the metadata of clouds, or have process 1 do it.
#[test]
fn s28_no_process_changes_the_network_of_a_sandbox() {
    everywhere("S28 routes", |attack| {
        let script = "for c in 'route del 169.254.0.0/16' 'route flush table all' '-6 rule flush' 'link set lo down'; do ip $c 2>/dev/null && echo CHANGED; done; \
            for f in CapPrm CapEff CapBnd; do grep -h ^$f /proc/1/status /proc/self/status; done | while read n v; do echo $((0x$v >> 12 & 1)); done | sort -u; \
            ip route get 169.254.169.254 2>&1 | grep -c via; mount -t tmpfs none /mnt && echo mounted";
        attack.user.write(
            "Dockerfile",
            &format!("FROM base\nRUN mkdir -p /mnt\nRUN --security=insecure {script}\n"),
        );
        let mut build = attack.idp();
        build.args(["--progress", "plain", "build", "--no-cache", "--network=sandbox"]);
        build.args(["--allow", "security.insecure"]).args(attack.flags()).arg(".");
        let done = attack.heard(on_a_usual_machine(&attack.user, "", &build));
        assert_eq!((done.code, said(&done).as_str()), (0, "0\n0\nmounted\n"), "{done}");
        "EPERM, in process 1 too"
    });
}
