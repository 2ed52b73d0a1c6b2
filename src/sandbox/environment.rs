//! What kind of place this is: a row of the table of environments, by what we are and what was found out by
//! trying; and what would make it a better one.

use std::fs;

use crate::sandbox::{Ability, Isolation, Privilege, Snapshotter};

const USER_NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";
const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

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
    /// AppArmor lets unconfined programs have user namespaces without any rights in them.
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
            Self::ContainerRoot | Self::ContainerUser => format!(
                "{}start the container with `--security-opt seccomp=unconfined --security-opt \
                 apparmor=unconfined --security-opt systempaths=unconfined`, or with `--cap-add SYS_ADMIN \
                 --security-opt apparmor=unconfined` as root; Kubernetes: {KUBERNETES}; builds without RUN work",
                if self == Self::ContainerRoot {
                    "`--isolation chroot` runs without isolation; or "
                } else {
                    ""
                }
            ),
            Self::NoUserNamespaces => "`sysctl user.max_user_namespaces=15000` as root of this machine, or run as \
                root; builds without RUN work"
                .to_owned(),
            Self::AppArmor => format!(
                "put this into /etc/apparmor.d/idpbuilder and load it with `apparmor_parser -r`: {}; or \
                 `sysctl kernel.apparmor_restrict_unprivileged_userns=0`; or run as root; builds without RUN work",
                apparmor_profile()
            ),
            Self::NoMounts => "this place forbids mounts in user namespaces: allow mount(2), fsopen(2), fsconfig(2), \
                fsmount(2), move_mount(2), open_tree(2) and pivot_root(2) in its seccomp or AppArmor profile, or run \
                as root; builds without RUN work"
                .to_owned(),
        })
    }
}

/// What a Pod must say, on one line.
const KUBERNETES: &str = "`spec: {hostUsers: false, containers: [{securityContext: {procMount: Unmasked, \
    seccompProfile: {type: Unconfined}}}]}`";

/// A profile that lets this program, and no other, have user namespaces.
fn apparmor_profile() -> String {
    let program = fs::read_link("/proc/self/exe").unwrap_or_else(|_| "idpbuilder".into());
    format!(
        "`abi <abi/4.0>, profile idpbuilder {} flags=(unconfined) {{ userns, }}`",
        program.display()
    )
}

/// The row of a place where something was found out.
pub(super) fn environment(ability: &Ability, failed_step: &str) -> Environment {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    if ability.run.is_ok() {
        return match (ability.isolation, ability.privilege) {
            (Isolation::OuterProc, _) => Environment::ContainerMaskedProc,
            (Isolation::Chroot, _) => Environment::ContainerRoot,
            (Isolation::Full, Privilege::Root) => Environment::Root,
            (Isolation::Full, Privilege::SingleId) => Environment::UserSingleId,
            (Isolation::Full, Privilege::Mapped | Privilege::None) => Environment::User,
        };
    }
    if [Privilege::Mapped, Privilege::SingleId].contains(&ability.privilege) {
        let restricted = number(APPARMOR) == Some(1);
        return if restricted { Environment::AppArmor } else { Environment::NoMounts };
    }
    let root = rustix::process::geteuid().is_root();
    match (number(USER_NAMESPACES), number(APPARMOR)) {
        (Some(0), _) if !root => Environment::NoUserNamespaces,
        (_, Some(1)) if !root => Environment::AppArmor,
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
