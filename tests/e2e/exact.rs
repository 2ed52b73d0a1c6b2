//! A layer holds exactly what its RUN changed: umoci unpacks what the process in the sandbox saw.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, process::Command};

use crate::support::{Done, Folder, User, registry::Registry};

/// Lists a whole tree: type, mode, owner, links, time, target of each path, the content of files, and capabilities.
/// Directories have no time of their own in a layer that only lists them as parents; sizes come with the content.
pub(crate) const LIST: &str = r#"set -eu
outside='( -path /proc -o -path /sys -o -path /dev -o -path /listing -o -path /etc/resolv.conf -o -path /etc/hosts -o -path /etc/hostname )'
find / $outside -prune -o -type d -printf '%y %m %U:%G %p\n' -o -printf '%y %m %U:%G %n %T@ %p %l\n' | sed -E 's/(\.[0-9]+) / /' | sort
find / $outside -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
getcap -r / 2>/dev/null | sort
getfattr --absolute-names -R -h -d -m user / 2>/dev/null || true
"#;

/// An installation with set-user-id programs, capabilities and accounts; then what package tools do not do: removals,
/// replacements of one kind by another, opaque folders, hard links across, names with blanks and newlines.
const DOCKERFILE: &str = r#"FROM debian:bookworm
RUN apt-get update && apt-get install -y --no-install-recommends attr libcap2-bin iputils-ping openssh-client sudo
RUN useradd --create-home someone && chown someone:users /srv && chmod 2770 /srv \
 && rm -r /usr/share/common-licenses && mkdir /usr/share/common-licenses && echo new > /usr/share/common-licenses/new \
 && rm /etc/issue && mkdir /etc/issue && echo in > /etc/issue/in \
 && rm -r /var/lib/apt/lists && ln -s /nowhere /var/lib/apt/lists \
 && mkdir -p "/odd/a b" && printf x > "/odd/a b/$(printf 'n\nl')" && touch /odd/ü /odd/-f \
 && mkfifo /odd/fifo && ln /odd/ü /odd/ü2 && chmod 0 /odd/-f && touch -h -d @1 /odd/ü \
 && dd if=/dev/zero of=/odd/sparse bs=1 count=1 seek=5M status=none \
 && setcap cap_net_bind_service+ep /usr/bin/find && setcap -r /usr/bin/find
COPY list.sh /list.sh
RUN mv /odd/sparse /odd/moved && rm /etc/debian_version
RUN sh /list.sh > /listing
"#;

/// Builds an image, whose last RUN has left [`LIST`]'s output at `/listing`: that, and what the same says of what umoci
/// unpacks; last, where umoci unpacked it.
pub(crate) fn seen_and_unpacked(
    user: &User,
    (dockerfile, flags): (&str, &[&str]),
    mirror: &Registry,
) -> (String, String, Folder) {
    user.write("list.sh", LIST);
    user.write("Dockerfile", dockerfile);
    let output =
        ["--output", "type=oci,dest=layout,tar=false", "--mirror", &mirror.as_mirror(), "."];
    Done::of(user.idp().args(["build", "-t", "exact:v1"]).args(flags).args(output)).ok();
    let (layout, bundle) = (user.work().join("layout"), Folder::new());
    let index = crate::support::json(&fs::read_to_string(layout.join("index.json")).unwrap());
    let name =
        index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
    let unpacked = bundle.path().join("unpacked");
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image", &format!("{}:{name}", layout.display())]).arg(&unpacked);
    Done::of(&mut umoci).ok();
    let root = unpacked.join("rootfs");
    let seen = fs::read_to_string(root.join("listing")).unwrap();
    let found = Done::of(Command::new("chroot").arg(&root).args(["sh", "/list.sh"])).ok();
    (seen, found, bundle)
}

fn assert_layers_are_exact(user: &User) {
    let mirror = Registry::mirror();
    let (seen, found, bundle) = seen_and_unpacked(user, (DOCKERFILE, &[]), &mirror);
    let root = bundle.path().join("unpacked/rootfs");
    assert_same_lines(&seen, &found);
    // The list is no list of nothing.
    for wanted in [
        "f 4755 0:0 1 ",
        " /usr/bin/sudo ",
        "/usr/bin/ping cap_net_raw=ep",
        "d 2770 1000:100 /srv",
        "p 644 0:0 1 ",
        "/odd/moved",
        "l 777 0:0 1 ",
        "/usr/share/common-licenses/new",
    ] {
        assert!(seen.contains(wanted), "{wanted} is not in the listing");
    }
    assert!(!seen.contains("common-licenses/GPL"), "a folder made anew has nothing of the old one");
    let mode = fs::symlink_metadata(root.join("usr/bin/sudo")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o4755);
}

#[track_caller]
pub(crate) fn assert_same_lines(seen: &str, found: &str) {
    let (a, b): (BTreeSet<_>, BTreeSet<_>) = (seen.lines().collect(), found.lines().collect());
    let only = |one: &BTreeSet<&str>, other: &BTreeSet<&str>| {
        one.difference(other).take(20).map(|line| format!("  {line}\n")).collect::<String>()
    };
    assert!(
        a == b && a.len() > 1000,
        "of {} lines, in the sandbox only:\n{}in the unpacked image only:\n{}",
        a.len(),
        only(&a, &b),
        only(&b, &a)
    );
}

#[test]
fn layers_are_exact_as_root() {
    assert_layers_are_exact(&User::new());
}

#[test]
fn layers_are_exact_rootless() {
    assert_layers_are_exact(&User::rootless());
}

/// The same Dockerfile, by root and by an ordinary user: the same image.
#[test]
fn privileges_do_not_change_a_digest() {
    let mirror = Registry::mirror();
    let text = "FROM busybox\nRUN mkdir /d && chown 33:50 /d && chmod 2775 /d && echo x > /d/f && chown app /d/f\nCOPY --chown=app f /f\nRUN rm -r /base && ln -s d /e\n";
    let digest = |user: &User| {
        user.write("f", "f\n");
        user.write("Dockerfile", text);
        let flags =
            ["--build-arg", "SOURCE_DATE_EPOCH=1700000000", "--mirror", &mirror.as_mirror(), "."];
        Done::of(user.idp().args(["build", "-t", "demo:v1"]).args(flags)).ok();
        user.run(["images", "--format", "{{.Digest}}", "demo"]).ok()
    };
    let (root, rootless) = (User::new(), User::rootless());
    assert_eq!(digest(&root), digest(&rootless));
}
