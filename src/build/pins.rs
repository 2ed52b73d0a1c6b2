//! What names of bases and URLs stand for in one run: by the lock, by the store, or by asking; each once.
//!
//! Knows names and digests; knows no Dockerfile.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{
    BuildError, BuildFailure, BuildRequest, ContextSource, NamedSource, Workshop,
    bases::{self, Bases},
    downloads,
    fetch::Errand,
    machine,
    once::Once,
};
use crate::{
    dockerfile,
    graph::{FileAction, FilesOp, Op, SourceRoot},
    image::{self, Image, Refresh},
    oci::{Digest, Platform, Reference},
    plan::{Lock, PinMode, SecretSource},
    remote::{GitSource, Remote, without_login},
};

/// What each tag stood for when this run looked at it first: two images of one run, and two platforms
/// of one image, are built on the same.
#[derive(Default)]
pub struct Targets(Once<String, Digest>);

impl Workshop {
    /// The image that a base's name stands for, without its layers.
    pub(super) fn base(
        &self,
        reference: &Reference,
        platform: &Platform,
        refresh: Refresh,
    ) -> Result<Image, BuildError> {
        let (store, client) = (&self.store, &self.client);
        let refresh = if client.is_offline() { Refresh::Never } else { refresh };
        let resolve = |reference: &Reference, refresh| {
            self.wait(image::resolve_target(store, client, reference, platform, refresh))
        };
        if reference.digest().is_some() {
            return Ok(resolve(reference, refresh)?.0);
        }
        let name = reference.to_string();
        let mut image = None;
        let target = self.targets.0.get(&name, &self.cancel, || {
            if let Some(locked) = self.locked_image(reference)? {
                return Ok(locked);
            }
            let (found, digest) = resolve(reference, refresh)?;
            image = Some(found);
            Ok(digest)
        })?;
        if let Some(image) = image {
            return Ok(image);
        }
        let refresh = if client.is_offline() { Refresh::Never } else { Refresh::Missing };
        Ok(resolve(&reference.with_digest(target), refresh)?.0)
    }

    /// What the lock says of an image, held against its registry where that is asked for.
    fn locked_image(&self, reference: &Reference) -> Result<Option<Digest>, BuildError> {
        let Some(pins) = &self.pins else { return Ok(None) };
        let name = reference.to_string();
        let Some(locked) = pins.lock.images.get(&name).copied() else {
            // An image of this machine alone has no registry in which it could move.
            let is_strict = pins.mode == PinMode::Strict;
            return match is_strict && !image::is_local(&self.store, reference)? {
                true => Err(BuildError::NotLocked { name: reference.familiar() }),
                false => Ok(None),
            };
        };
        if pins.mode == PinMode::Strict && !self.client.is_offline() {
            let asked =
                async { self.client.resolve(reference).await.map_err(image::ImageError::from) };
            let found = self.wait(asked)?.digest;
            if found != locked {
                let (name, locked, found) =
                    (reference.familiar(), locked.to_string(), found.to_string());
                return Err(BuildError::Moved { name, locked, found });
            }
        }
        Ok(Some(locked))
    }

    /// What the lock says of a URL.
    pub(super) fn locked_url(&self, url: &str) -> Result<Option<Digest>, BuildError> {
        let Some(pins) = &self.pins else { return Ok(None) };
        let locked = pins.lock.urls.get(url).copied();
        match locked.is_none() && pins.mode == PinMode::Strict {
            true => Err(BuildError::NotLocked { name: url.to_owned() }),
            false => Ok(locked),
        }
    }

    /// What the lock says of a repository.
    pub(super) fn locked_git(&self, source: &GitSource) -> Result<Option<String>, BuildError> {
        let name = source.to_string();
        let Some(pins) = self.pins.as_ref().filter(|_| source.checksum.is_none()) else {
            return Ok(None);
        };
        let locked = pins.lock.git.get(&name).cloned();
        match locked.is_none() && pins.mode == PinMode::Strict {
            true => Err(BuildError::NotLocked { name }),
            false => Ok(locked),
        }
    }

    /// Whether what the lock names has to be looked up again, to see whether it moved.
    pub(super) fn must_look_again(&self) -> bool {
        let is_strict = self.pins.as_ref().is_some_and(|pins| pins.mode == PinMode::Strict);
        is_strict && !self.client.is_offline()
    }
}

/// What a build takes by name.
#[derive(Default)]
pub struct Sources {
    /// What the names stand for.
    pub lock: Lock,
    /// What is not locked and why, one line each.
    pub notes: Vec<String>,
}

impl Sources {
    /// Takes in what another build takes.
    pub fn add(&mut self, other: Self) {
        self.lock.images.extend(other.lock.images);
        self.lock.urls.extend(other.lock.urls);
        self.lock.git.extend(other.lock.git);
        self.notes.extend(other.notes);
        self.notes.sort();
        self.notes.dedup();
    }
}

/// What the names in a Dockerfile stand for: what the lock in force says, or else what is found now.
///
/// # Errors
///
/// A [`BuildFailure`] with the place of the name that stands for nothing.
pub fn sources(workshop: &Workshop, request: &BuildRequest) -> Result<Sources, BuildFailure> {
    let request = &BuildRequest { refresh: Refresh::Newer, ..request.clone() };
    let fail = |error: BuildError| BuildFailure::new(request, None, error);
    let parsed = dockerfile::parse(&request.dockerfile.text).map_err(|error| fail(error.into()))?;
    let mut sources = Sources::default();
    let host = [Platform::host()];
    for platform in machine::asked(request, &host) {
        let bases = Bases::new(workshop, request).with_placeholders();
        let lowered = bases.lower(&parsed, platform, dockerfile::lower)?;
        for id in lowered.graph.ids() {
            let node = lowered.graph.node(id);
            let added = match &node.op {
                Op::Image { name, .. } => sources.add_image(workshop, request, name),
                Op::Files(files) => sources.add_remote(workshop, request, files),
                Op::Context { name } => sources.add_context(workshop, request, name.as_deref()),
                Op::Scratch | Op::Run(_) => Ok(()),
            };
            added.map_err(|error| BuildFailure::new(request, Some(node.place.clone()), error))?;
        }
    }
    Ok(sources)
}

/// What the place that an image's Dockerfile is read from stands for, for an image (by name) with these secrets.
///
/// # Errors
///
/// When it cannot be had.
pub fn source_of_dockerfile(
    workshop: &Workshop,
    owner: (&str, &BTreeMap<String, SecretSource>),
    remote: &Remote,
) -> Result<Sources, BuildError> {
    let mut sources = Sources::default();
    sources.add_place(Errand::of_the_user(workshop, owner), remote)?;
    Ok(sources)
}

impl Sources {
    fn add_image(
        &mut self,
        workshop: &Workshop,
        request: &BuildRequest,
        name: &str,
    ) -> Result<(), BuildError> {
        let reference = match request.named.get(name) {
            Some(NamedSource::Reference(reference)) => reference.clone(),
            // Made by this run, or files.
            Some(_) => return Ok(()),
            None => bases::parse_name(name)?,
        };
        let full = reference.to_string();
        if reference.digest().is_some() || self.lock.images.contains_key(&full) {
            return Ok(());
        }
        let kept = workshop.pins.as_ref().and_then(|pins| pins.lock.images.get(&full));
        if let Some(kept) = kept {
            self.lock.images.insert(full, *kept);
            return Ok(());
        }
        if image::is_local(&workshop.store, &reference)? {
            let name = reference.familiar();
            self.notes.push(format!("{name} is an image of this machine, which no lock can pin"));
            return Ok(());
        }
        // Not what the store has of it: what others find, too.
        let asked =
            async { workshop.client.resolve(&reference).await.map_err(image::ImageError::from) };
        self.lock.images.insert(full, workshop.wait(asked)?.digest);
        Ok(())
    }

    fn add_context(
        &mut self,
        workshop: &Workshop,
        request: &BuildRequest,
        name: Option<&str>,
    ) -> Result<(), BuildError> {
        let Some(ContextSource::Remote(remote)) = request.files_of(name) else { return Ok(()) };
        let owner = (request.name.as_str(), &request.secrets);
        self.add_place(Errand::of_the_user(workshop, owner), remote)
    }

    fn add_place(&mut self, errand: Errand<'_>, remote: &Remote) -> Result<(), BuildError> {
        match remote {
            Remote::Git(git) if git.checksum.is_some() => Ok(()),
            Remote::Git(git) => self.add_git(errand, git),
            Remote::Web(url) => self.add_web(errand, url),
        }
    }

    fn add_git(&mut self, errand: Errand<'_>, git: &GitSource) -> Result<(), BuildError> {
        if let Entry::Vacant(place) = self.lock.git.entry(git.to_string()) {
            place.insert(errand.locked_commit(git)?);
        }
        Ok(())
    }

    fn add_web(&mut self, errand: Errand<'_>, url: &str) -> Result<(), BuildError> {
        let known = downloads::get(errand, url, None)?;
        self.lock.urls.insert(without_login(url), known.content);
        Ok(())
    }

    fn add_remote(
        &mut self,
        workshop: &Workshop,
        request: &BuildRequest,
        op: &FilesOp,
    ) -> Result<(), BuildError> {
        let errand = Errand::of_a_dockerfile(workshop, request);
        for action in &op.actions {
            let FileAction::Copy { sources, .. } = action else { continue };
            for source in sources {
                match &source.root {
                    SourceRoot::Url { url, checksum: None } => self.add_web(errand, url)?,
                    SourceRoot::Git(git) if git.checksum.is_none() => self.add_git(errand, git)?,
                    SourceRoot::Url { .. }
                    | SourceRoot::Git(_)
                    | SourceRoot::Op(_)
                    | SourceRoot::Inline(_) => {}
                }
            }
        }
        Ok(())
    }
}
