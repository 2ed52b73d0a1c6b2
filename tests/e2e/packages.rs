//! Package installations for real: Debian's apt puts openssh-client, postgresql and python3 into its base, as root and as
//! ordinary users, and `umoci` unpacks from the image what the processes inside saw.

use crate::{
    exact::{assert_same_lines, seen_and_unpacked},
    support::{User, registry::Registry},
};

/// Packages that make users, set capabilities and groups of files, and run programs of their own while they install.
const DOCKERFILE: &str = r"FROM debian:bookworm
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends openssh-client POSTGRESQL python3 attr libcap2-bin
RUN ssh -V && python3 -c 'print(6 * 7)' > /answer && test $(cat /answer) = 42
COPY list.sh /list.sh
RUN sh /list.sh > /listing
";

/// What the owner of files is called in a listing, where all owners are one.
fn without_owners(listing: &str) -> String {
    let line = |line: &str| {
        let mut fields: Vec<_> = line.split(' ').collect();
        if fields.get(2).is_some_and(|owner| owner.contains(':')) {
            fields[2] = "-";
        }
        fields.join(" ") + "\n"
    };
    // What the sandbox tells apt is there for the process alone.
    listing.lines().filter(|line| !line.contains("/99one-id")).map(line).collect()
}

fn installed(user: &User, packages: &str, flags: &[&str]) -> (String, String) {
    let (dockerfile, mirror) = (DOCKERFILE.replace("POSTGRESQL", packages), Registry::mirror());
    let (seen, found, _) = seen_and_unpacked(user, (&dockerfile, flags), &mirror);
    for wanted in [" /usr/bin/ssh ", " /usr/bin/python3", " /etc/ssh/ssh_config "] {
        assert!(seen.contains(wanted), "{wanted} is not in the listing");
    }
    (seen, found)
}

fn assert_exact(user: &User, flags: &[&str]) {
    let (seen, found) = installed(user, "postgresql", flags);
    // The cluster belongs to a user whom the installation made, and to nobody else.
    assert!(
        seen.lines().any(|line| line.starts_with("d 700 1") && line.contains("/postgresql/")),
        "owners are not kept"
    );
    assert_same_lines(&seen, &found);
}

#[test]
fn packages_install_as_root() {
    assert_exact(&User::new(), &[]);
}

#[test]
fn packages_install_with_private_ids() {
    assert_exact(&User::new(), &["--userns", "private"]);
}

#[test]
fn packages_install_as_a_user_with_subordinate_ids() {
    assert_exact(&User::rootless(), &[]);
}

/// With one id, nobody can be another user: not the one that a database wants to belong to, and files have one owner. All
/// else is equal.
#[test]
fn packages_install_as_a_user_with_one_id() {
    let (seen, found) = installed(&User::single_id(), "", &[]);
    assert_same_lines(&without_owners(&seen), &without_owners(&found));
}
