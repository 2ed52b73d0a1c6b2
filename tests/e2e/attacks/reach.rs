//! S28: what each network reaches, of the machine, of its neighbours and of a cloud.

use std::sync::atomic::Ordering;

use super::{everywhere, said};
use crate::network::{Server, ask, on_a_usual_machine, own_address};

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
