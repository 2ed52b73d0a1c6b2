//! What kind of place this is: a row of the table of environments, by what we are and what was found out by
//! trying; and what would make it a better one.

use std::fs;

use crate::sandbox::{Ability, Isolation, Privilege, Snapshotter, identity, rootless, told::Step};

const USER_NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";
/// Of Debian's kernels.
const USER_NAMESPACES_FOR_ALL: &str = "/proc/sys/kernel/unprivileged_userns_clone";
/// Of Ubuntu's kernels.
const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
const APPARMOR_LABEL: &str = "/proc/self/attr/apparmor/current";

/// How the profiles begin that containers get by themselves: nobody inside can change them.
const PROFILES_OF_CONTAINERS: [&str; 5] =
    ["docker-default", "containers-default", "cri-containerd", "crio-default", "lxc-"];

/// Beginning of the step that fails in a folder which cannot be written to.
pub(super) const WRITE: &str = "write in ";

/// A kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// Root, with everything.
    Root,
    /// An ordinary user with subordinate ids.
    User,
    /// An ordinary user without subordinate ids, or without the programs that map them.
    UserSingleId,
    /// A container that lets us make namespaces and mounts, and hides parts of `/proc`.
    ContainerMaskedProc,
    /// Root of a container that lets us make no namespaces and mounts.
    ContainerRoot,
    /// An ordinary user in a place that lets us make no namespaces.
    ContainerUser,
    /// User namespaces are switched off.
    NoUserNamespaces,
    /// Root alone may make user namespaces.
    UserNamespacesOfRoot,
    /// AppArmor lets this program have no user namespaces, or none with any rights in them.
    AppArmor,
    /// Namespaces are to be had, mounts are not.
    NoMounts,
}

impl Environment {
    /// The row's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::User => "user with subordinate ids",
            Self::UserSingleId => "user with a single id",
            Self::ContainerMaskedProc => "container without seccomp, /proc masked",
            Self::ContainerRoot => "container, root without the right to mount",
            Self::ContainerUser => "container, user without namespaces",
            Self::NoUserNamespaces => "user namespaces switched off",
            Self::UserNamespacesOfRoot => "user namespaces for root alone",
            Self::AppArmor => "AppArmor restricts user namespaces",
            Self::NoMounts => "namespaces without mounts",
        }
    }

    /// What would make it a better place; `None` when nothing is missing.
    #[must_use]
    pub fn improvement(self) -> Option<String> {
        Some(match self {
            Self::Root | Self::User => return None,
            Self::UserSingleId => "install `uidmap` and give this user ranges in /etc/subuid and /etc/subgid \
                (`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`): owners are real then"
                .to_owned(),
            Self::ContainerMaskedProc => "start the container with `--security-opt systempaths=unconfined`; \
                Kubernetes: `procMount: Unmasked` with `hostUsers: false`"
                .to_owned(),
            Self::ContainerRoot | Self::ContainerUser => self.improvement_of_container(),
            Self::NoUserNamespaces => "`sysctl user.max_user_namespaces=15000` as root of this machine, or run as \
                root; builds without RUN work"
                .to_owned(),
            Self::UserNamespacesOfRoot => "`sysctl kernel.unprivileged_userns_clone=1` as root of this machine, or \
                run as root; builds without RUN work"
                .to_owned(),
            Self::AppArmor => format!(
                "put this into /etc/apparmor.d/idpbuilder and load it with `apparmor_parser -r \
                 /etc/apparmor.d/idpbuilder`: {}{}; or run as root; builds without RUN work",
                apparmor_profile(),
                match number(APPARMOR) {
                    Some(1) => "; or `sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
                    _ => "",
                }
            ),
            Self::NoMounts => "this place forbids mounts in user namespaces: allow mount(2), fsopen(2), fsconfig(2), \
                fsmount(2), move_mount(2), open_tree(2) and pivot_root(2) in its seccomp or AppArmor profile, or run \
                as root; builds without RUN work"
                .to_owned(),
        })
    }

    fn improvement_of_container(self) -> String {
        let root = self == Self::ContainerRoot;
        let chroot = root && may_chroot();
        let chroot = if chroot { "`--isolation chroot` runs without isolation; or " } else { "" };
        let map = if root && !rootless::may_map_root() { "--cap-add SETFCAP " } else { "" };
        format!(
            "{chroot}start the container with `{map}--security-opt seccomp=unconfined --security-opt \
             apparmor=unconfined --security-opt systempaths=unconfined`, or with `--cap-add SYS_ADMIN \
             --security-opt apparmor=unconfined` as root; Kubernetes: {KUBERNETES}; builds without RUN work"
        )
    }
}

/// What a process without isolation cannot be prepared without: CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER,
/// CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_CHROOT, CAP_MKNOD (capabilities(7)).
const OF_CHROOT: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 18 | 1 << 27;

/// Whether a process can be run without isolation by who we are now.
pub(super) fn may_chroot() -> bool {
    identity::permitted_capabilities() & OF_CHROOT == OF_CHROOT
}

/// What a Pod must say, on one line.
const KUBERNETES: &str = "`spec: {hostUsers: false, containers: [{securityContext: {procMount: Unmasked, \
    seccompProfile: {type: Unconfined}}}]}`";

/// A profile that lets this program, and no other, have user namespaces.
fn apparmor_profile() -> String {
    let program = fs::read_link("/proc/self/exe").unwrap_or_else(|_| "idpbuilder".into());
    let program = quoted(&program.display().to_string());
    format!("`abi <abi/4.0>, profile idpbuilder {program} flags=(unconfined) {{ userns, }}`")
}

/// A path as AppArmor's profiles take it: some letters are patterns there, and a space ends it.
fn quoted(path: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "/._-+".contains(letter);
    if path.chars().all(plain) {
        return path.to_owned();
    }
    let escape = |letter: char| match letter {
        '*' | '?' | '[' | ']' | '{' | '}' | '^' | '"' | '\\' => format!("\\{letter}"),
        letter => letter.to_string(),
    };
    format!("\"{}\"", path.chars().map(escape).collect::<String>())
}

/// Whether a profile confines us that is of this machine, and not of a container.
fn is_confined(label: &str) -> bool {
    let name = label.trim().strip_suffix("(enforce)");
    let of_container =
        |name: &str| PROFILES_OF_CONTAINERS.iter().any(|start| name.starts_with(start));
    name.is_some_and(|name| !of_container(name))
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The row of a place where something was found out.
pub(super) fn environment(ability: &Ability, failed_step: &str) -> Environment {
    // What is wrong with a folder says nothing of the place.
    let about_files = failed_step.starts_with(WRITE) || failed_step == Step::Overlay.words();
    if ability.run.is_ok() || about_files && ability.privilege != Privilege::None {
        return match (ability.isolation, ability.privilege) {
            (Isolation::OuterProc, _) => Environment::ContainerMaskedProc,
            (Isolation::Chroot, _) => Environment::ContainerRoot,
            (Isolation::Full, Privilege::Root) => Environment::Root,
            (Isolation::Full, Privilege::SingleId) => Environment::UserSingleId,
            (Isolation::Full, Privilege::Mapped | Privilege::None) => Environment::User,
        };
    }
    let label = fs::read_to_string(APPARMOR_LABEL).unwrap_or_default();
    let restricted = number(APPARMOR) == Some(1) || is_confined(&label);
    if [Privilege::Mapped, Privilege::SingleId].contains(&ability.privilege) {
        return if restricted { Environment::AppArmor } else { Environment::NoMounts };
    }
    let root = rustix::process::geteuid().is_root();
    match (number(USER_NAMESPACES), number(USER_NAMESPACES_FOR_ALL)) {
        (Some(0), _) if !root => Environment::NoUserNamespaces,
        (_, Some(0)) if !root => Environment::UserNamespacesOfRoot,
        _ if restricted && !root => Environment::AppArmor,
        _ if root && !rootless::may_mount() => Environment::ContainerRoot,
        _ if root && !failed_step.is_empty() && failed_step != START => Environment::NoMounts,
        _ if root => Environment::ContainerRoot,
        _ => Environment::ContainerUser,
    }
}

/// The step that makes namespaces.
pub(super) const START: &str = "start a process in new namespaces";

impl Ability {
    /// How processes are run, in words: for people who look whether this is as they want it.
    #[must_use]
    pub fn mechanism(&self) -> String {
        let files = match self.snapshotter {
            Snapshotter::Overlay => "overlay".to_owned(),
            Snapshotter::OverlayMount => "overlay by mount(2)".to_owned(),
            Snapshotter::OverlayElsewhere => {
                let place = self.scratch.as_deref().map(|path| path.display().to_string());
                format!("overlay with changes in {}", place.unwrap_or_default())
            }
            Snapshotter::FuseOverlay => "fuse-overlayfs".to_owned(),
            Snapshotter::Copy => "a copy of all files".to_owned(),
        };
        let apart = match self.isolation {
            Isolation::Full => "namespaces, seccomp",
            Isolation::OuterProc => "namespaces, seccomp, the /proc of this container",
            Isolation::Chroot => "chroot, no isolation",
        };
        let ids = match self.privilege {
            Privilege::Root => "root",
            Privilege::Mapped => "a user namespace with many ids",
            Privilege::SingleId => "a user namespace with one id",
            Privilege::None => "no privileges",
        };
        format!("{files}; {apart}; {ids}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_of_the_machine_is_told_from_those_of_containers() {
        for (label, confined) in [
            ("", false),
            ("unconfined\n", false),
            ("idpbuilder (unconfined)\n", false),
            ("unprivileged_userns (enforce)\n", true),
            ("some profile (complain)\n", false),
            ("docker-default (enforce)\n", false),
            ("cri-containerd.apparmor.d (enforce)\n", false),
        ] {
            assert_eq!(is_confined(label), confined, "{label:?}");
        }
    }

    #[test]
    fn a_path_in_a_profile_is_no_pattern() {
        assert_eq!(quoted("/usr/local/bin/idpbuilder-1.0"), "/usr/local/bin/idpbuilder-1.0");
        assert_eq!(quoted("/my tools/{a}*"), r#""/my tools/\{a\}\*""#);
    }
}
