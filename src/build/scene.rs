//! A place to look around in: the root file system of a failed step or of an image, with all that a process there had.

use std::{fmt, sync::Arc};

use super::{
    BuildError, HostDns, Workshop, files, foreign,
    mounts::Mounts,
    network,
    process::{self, HOSTNAME},
    rootfs::{self, Prepared},
    wholes::Wholes,
};
use crate::{
    graph::Setting,
    image::Image,
    limits::Limits,
    oci::{DiffId, ImageConfig},
    plan::NetworkPlan,
    sandbox::{
        self, Ability, CancelFlag, NetworkMode, Privileges, ProcessSpec, SandboxError, Terminal,
    },
    snapshot::View,
    store::{Lease, Staging, Store},
};

/// What is tried where a command does not name a shell of its own; the first one that there is.
const SHELLS: [&str; 4] = ["/bin/bash", "/bin/sh", "/bin/ash", "/busybox/sh"];

/// A root file system, and how a process in it is run. What is changed there is gone with it.
pub struct Scene {
    spec: ProcessSpec,
    /// What the step's own instructions are run by, when they are run by a shell.
    shell: Option<String>,
    _mounts: Mounts,
    /// Holds what is changed outside of the store.
    _root: Prepared,
    /// Holds the changes.
    _staging: Staging,
    /// Keeps what is below.
    _lease: Lease,
}

impl fmt::Debug for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scene").field("cwd", &self.spec.cwd).finish_non_exhaustive()
    }
}

impl Scene {
    /// What is left of a step: its changes, mounts, environment and user. `None` when nobody wants to look.
    pub(super) fn of_step(
        workshop: &Workshop,
        (spec, mounts, root, staging): (ProcessSpec, Mounts, Prepared, Staging),
    ) -> Result<Option<Arc<Self>>, BuildError> {
        if workshop.failed_steps == FailedSteps::Discard {
            return Ok(None);
        }
        let lease = workshop.store.lease()?;
        let shell = match spec.argv.as_slice() {
            // SHELL ["/bin/bash", "-o", "pipefail", "-c"] and the text.
            [shell, .., flag, _text] if flag == "-c" => Some(shell.clone()),
            _ => None,
        };
        let scene =
            Self { spec, shell, _mounts: mounts, _root: root, _staging: staging, _lease: lease };
        Ok(Some(Arc::new(scene)))
    }

    /// Layers of the store, bottom first, as a process would see them that is started in `setting`.
    ///
    /// # Errors
    ///
    /// When a layer is not in the store, the user is unknown, or nothing here runs its programs.
    pub fn of_layers(
        (store, ability): (&Store, &Ability),
        layers: &[DiffId],
        setting: &Setting,
    ) -> Result<Self, BuildError> {
        process::check_ability(ability)?;
        let emulator = match setting.architecture.as_str() {
            "" => None,
            architecture => foreign::emulator(ability, architecture)?,
        };
        let lease = store.lease()?;
        let view = View::open(store, layers)?;
        let staging = store.staging()?;
        let places = (store, ability, &Wholes::default());
        let prepared = rootfs::prepare(places, layers, staging.path())?;
        process::make_system_points(&view, &prepared.rootfs.upper)?;
        let user = files::user_ids(&view, &setting.user)?;
        let mut env: Vec<String> =
            setting.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !setting.env.iter().any(|(name, _)| name == "HOME") {
            env.push(format!("HOME={}", user.home));
        }
        let cwd = Some(&setting.cwd).filter(|cwd| cwd.starts_with('/'));
        let spec = ProcessSpec {
            rootfs: prepared.rootfs.clone(),
            argv: Vec::new(),
            env,
            cwd: cwd.cloned().unwrap_or_else(|| "/".to_owned()),
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
            hostname: HOSTNAME.to_owned(),
            network: NetworkMode::Host,
            mounts: Vec::new(),
            hosts: Vec::new(),
            resolv_conf: Vec::new(),
            isolation: ability.isolation,
            users: ability.users,
            insecure: false,
            privileges: Privileges::MayGrow,
            limits: Limits::default(),
            emulator,
        };
        let (shell, mounts) = (setting.shell.first().cloned(), Mounts::default());
        Ok(Self { spec, shell, _mounts: mounts, _root: prepared, _staging: staging, _lease: lease })
    }

    /// An image of the store as its process would see it, without its last `layers_off` layers.
    ///
    /// # Errors
    ///
    /// As [`Scene::of_layers`].
    pub fn of_image(
        store: (&Store, &Ability),
        image: &Image,
        layers_off: usize,
    ) -> Result<Self, BuildError> {
        let ImageConfig { config, rootfs, .. } = &image.config.value;
        let layers = &rootfs.diff_ids[..rootfs.diff_ids.len().saturating_sub(layers_off)];
        let pair = |entry: &String| {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            (name.to_owned(), value.to_owned())
        };
        let setting = Setting {
            env: config.env.iter().map(pair).collect(),
            cwd: config.working_dir.clone(),
            user: config.user.clone(),
            shell: config.shell.clone(),
            architecture: image.config.value.platform().normalized().architecture,
        };
        Self::of_layers(store, layers, &setting)
    }

    /// With this network, and what it says of names.
    ///
    /// # Errors
    ///
    /// When `host-gateway` is asked for and this machine has no address.
    pub fn with_network(mut self, plan: &NetworkPlan, dns: &HostDns) -> Result<Self, BuildError> {
        let mode = network::asked(plan);
        self.spec.network = mode;
        self.spec.hosts = network::hosts(plan, mode)?;
        self.spec.resolv_conf = network::resolv_conf(dns, plan, mode);
        Ok(self)
    }

    /// With these chances of a program to have more rights than the shell.
    #[must_use]
    pub fn with_privileges(mut self, privileges: Privileges) -> Self {
        self.spec.privileges = privileges;
        self
    }

    /// Opens a shell on a terminal, until it ends; its exit code.
    ///
    /// `kind` is what the terminal is (`TERM`).
    ///
    /// # Errors
    ///
    /// When there is no shell in the file system, or the terminal is none.
    pub fn shell(
        &self,
        terminal: Terminal<'_>,
        kind: Option<&str>,
        cancel: &CancelFlag,
    ) -> Result<i32, BuildError> {
        let mut spec = self.spec.clone();
        if !spec.env.iter().any(|entry| entry.starts_with("TERM=")) {
            spec.env.extend(kind.map(|kind| format!("TERM={kind}")));
        }
        let [best, others @ ..] = SHELLS;
        let tried = std::iter::once(best).chain(self.shell.as_deref()).chain(others);
        for shell in tried {
            spec.argv = vec![shell.to_owned()];
            match sandbox::attach(&spec, terminal, cancel) {
                Err(SandboxError::Exec { .. }) => {}
                Err(SandboxError::Cancelled) => return Err(BuildError::Cancelled),
                ended => return Ok(ended?.code),
            }
        }
        let found = self.shell.iter().map(String::as_str).chain(SHELLS).collect::<Vec<_>>();
        Err(BuildError::NoShell { tried: found.join(", ") })
    }
}

/// Whether what a failed step leaves is kept to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailedSteps {
    /// No.
    #[default]
    Discard,
    /// In the error, until that is dropped.
    Keep,
}
