//! Files of other machines, and archives, as one layer of the store each: fetched, or known to be there.
//!
//! A repository is known by its commit, an archive by its content: what is known is not fetched again.
//! Within one run everything is looked up once, so that all images and platforms see the same. Knows
//! how a layer is made of files; knows no Dockerfile.

use std::{collections::BTreeMap, fs::File, io, path::Path, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use super::{
    BuildError, BuildRequest, ContextSource, DockerfileText, LATEST_MTIME, Workshop,
    downloads::{self, Asked, Known},
    files::{self, Clock, Context, Download, Root},
    once::Once,
};
use crate::{
    event::Event,
    git::{self, GitAccess, GitError, Resolved},
    graph::{CopySource, FileAction, FilesOp, OpGraph, SourceRoot, Unpack},
    oci::{DiffId, Digest},
    plan::{Entitlement, SecretSource},
    registry::{DownloadError, Reach, RegistryError},
    remote::{GitSource, GitTimes, Login, Remote, Submodules, file_name, without_login},
    tree::Timestamp,
};

/// Namespace of the notes about layers that were made of fetched files.
const NAMESPACE: &str = "fetched";

/// The one file of a context that is the text of a Dockerfile, as BuildKit calls it.
const TEXT_NAME: &str = "context";

/// Names of the secrets that open a repository, and whether each is a token instead of a whole header.
const GIT_SECRETS: [(&str, Secret); 2] =
    [("GIT_AUTH_HEADER", Secret::Header), ("GIT_AUTH_TOKEN", Secret::Token)];

/// What a secret holds.
#[derive(Clone, Copy)]
enum Secret {
    Header,
    Token,
}

/// Fetched files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fetched {
    /// The layer; the spelled-out digest keeps it.
    pub(crate) layer: DiffId,
    /// When they were made, in Unix seconds, as far as that is known: the time of the commit, what the
    /// server says, or else that of the newest file.
    pub(crate) time: Option<i64>,
    /// The text that stands there instead of an archive: a Dockerfile.
    pub(crate) text: Option<Digest>,
}

/// What was fetched in this run, by what was asked for.
#[derive(Default)]
pub struct Fetches {
    places: Once<Remote, Fetched>,
    pub(super) downloads: Once<Asked, Known>,
}

/// On whose behalf something is fetched.
#[derive(Clone, Copy)]
pub(crate) struct Errand<'a> {
    pub(crate) workshop: &'a Workshop,
    /// Name of the image, for events.
    pub(crate) image: &'a str,
    pub(crate) secrets: &'a BTreeMap<String, SecretSource>,
    pub(crate) reach: Reach,
}

impl<'a> Errand<'a> {
    /// For a place that the user named: it may be anywhere, but where the machine's secrets are.
    pub(crate) fn of_the_user(
        workshop: &'a Workshop,
        (image, secrets): (&'a str, &'a BTreeMap<String, SecretSource>),
    ) -> Self {
        Self { workshop, image, secrets, reach: Reach::NoMetadata }
    }

    /// For a place that a Dockerfile names, which may not be the user's.
    pub(crate) fn of_a_dockerfile(workshop: &'a Workshop, request: &'a BuildRequest) -> Self {
        let reach = match request.allow.contains(&Entitlement::NetworkPrivate) {
            true => Reach::NoMetadata,
            false => Reach::Public,
        };
        Self { workshop, image: &request.name, secrets: &request.secrets, reach }
    }

    /// The files of a context that is no folder; `None` for a folder.
    pub(crate) fn context(self, source: &ContextSource) -> Result<Option<Fetched>, BuildError> {
        match source {
            ContextSource::Folder(_) => Ok(None),
            ContextSource::Archive { name, path } => self.archive(name, path).map(Some),
            ContextSource::Remote(remote) => self.remote(remote).map(Some),
        }
    }

    /// What is behind a place, once in a run.
    pub(crate) fn remote(self, remote: &Remote) -> Result<Fetched, BuildError> {
        let Workshop { fetches, cancel, .. } = self.workshop;
        fetches.places.get(remote, cancel, || match remote {
            Remote::Git(source) => self.git(source),
            Remote::Web(url) => self.web(url),
        })
    }

    fn git(self, source: &GitSource) -> Result<Fetched, BuildError> {
        let Some(locked) = self.workshop.locked_git(source)? else {
            return self.with_access(source, |access| self.checked_out(source, access));
        };
        if self.workshop.must_look_again() {
            let found = self.commit(source)?;
            if found != locked {
                let name = source.to_string();
                return Err(BuildError::Moved { name, locked, found });
            }
        }
        let resolved = Resolved { commit: locked.clone(), reference: None, tag: None };
        let pinned = GitSource { reference: Some(locked), ..source.clone() };
        if let Some(known) = self.known(&note_name(&pinned, &resolved))? {
            return Ok(known);
        }
        self.with_access(&pinned, |access| self.checked_out(&pinned, access))
    }

    /// The commit that a repository's reference stands for: by the lock, or else by asking.
    pub(super) fn locked_commit(self, source: &GitSource) -> Result<String, BuildError> {
        match self.workshop.locked_git(source)? {
            Some(locked) => Ok(locked),
            None => self.commit(source),
        }
    }

    fn commit(self, source: &GitSource) -> Result<String, BuildError> {
        self.with_access(source, |access| {
            Ok(git::resolve(&self.workshop.git, source, access)?.commit)
        })
    }

    fn with_access<T>(
        self,
        source: &GitSource,
        work: impl FnOnce(&GitAccess) -> Result<T, BuildError>,
    ) -> Result<T, BuildError> {
        if self.workshop.client.is_offline() && source.scheme() != "file" {
            let refused = RegistryError::Offline(source.host().to_owned());
            return Err(DownloadError::Transport(refused).into());
        }
        let gate = self.gate(source)?;
        let access = GitAccess {
            authorization: self.authorization(source)?,
            proxy: gate.as_ref().map(|gate| gate.url().to_owned()),
            cancel: Arc::clone(&self.workshop.cancel),
        };
        let done = work(&access);
        // Git only says that the way is closed; the gate knows why.
        let refusal = gate.and_then(|gate| gate.refusal());
        match (done, refusal) {
            (Err(BuildError::Git(_)), Some(refusal)) => Err(refusal.into()),
            (done, _) => done,
        }
    }

    fn checked_out(self, source: &GitSource, access: &GitAccess) -> Result<Fetched, BuildError> {
        let Workshop { store, git: program, .. } = self.workshop;
        let resolved = git::resolve(program, source, access)?;
        let name = note_name(source, &resolved);
        let known = self.known(&name)?;
        (self.workshop.emit)(Event::Source {
            image: self.image.to_owned(),
            source: source.to_string(),
            identity: Some(resolved.commit.clone()),
            fetch: known.is_none(),
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let staging = store.staging()?;
        let wanted = (source, &resolved);
        let checkout = git::check_out(program, wanted, access, staging.path(), LATEST_MTIME)?;
        let folder = Context::open(&checkout.folder, None)?;
        let layer = self.layer(Root::Context(&folder), Unpack::Never)?;
        self.keep(&name, Fetched { layer, time: Some(checkout.time), text: None })
    }

    /// A door for git through which it comes no farther than a download; `None` where it has another way.
    fn gate(self, source: &GitSource) -> Result<Option<crate::registry::Gate>, BuildError> {
        let Workshop { client, git: program, .. } = self.workshop;
        match source.scheme() {
            "file" => Ok(None),
            "http" | "https" if program.has_proxy() => Ok(None),
            "http" | "https" => Ok(Some(self.workshop.wait(client.open_gate(self.reach))?)),
            _ => {
                self.workshop.wait(client.check_host(source.host(), self.reach))?;
                Ok(None)
            }
        }
    }

    /// The header that says who asks: from the URL, or from the secrets of the build.
    fn authorization(self, source: &GitSource) -> Result<Option<String>, BuildError> {
        let basic = |pair: String| format!("basic {}", BASE64_STANDARD.encode(pair));
        if let Some(Login { user, password }) = &source.login {
            return Ok(Some(basic(format!("{user}:{password}"))));
        }
        if !matches!(source.scheme(), "http" | "https") {
            return Ok(None);
        }
        let own = GIT_SECRETS.map(|(name, kind)| (format!("{name}.{}", source.host()), kind));
        let any = GIT_SECRETS.map(|(name, kind)| (name.to_owned(), kind));
        for (id, kind) in own.into_iter().chain(any) {
            if let Some(text) = self.secret(&id)? {
                return Ok(Some(match kind {
                    Secret::Header => text,
                    Secret::Token => basic(format!("x-access-token:{text}")),
                }));
            }
        }
        Ok(None)
    }

    /// The header for a web server, from the secrets of the build; a login in the URL is the client's.
    pub(super) fn http_authorization(self, url: &str) -> Result<Option<String>, BuildError> {
        let host = url::Url::parse(url).ok().and_then(|url| {
            let host = url.host_str()?.to_owned();
            Some(url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}")))
        });
        let Some(host) = host else { return Ok(None) };
        if let Some(header) = self.secret(&format!("HTTP_AUTH_HEADER_{host}"))? {
            return Ok(Some(header));
        }
        let token = self.secret(&format!("HTTP_AUTH_TOKEN_{host}"))?;
        Ok(token.map(|token| format!("Bearer {token}")))
    }

    /// A secret of one line, when the build has it.
    fn secret(self, id: &str) -> Result<Option<String>, BuildError> {
        let Some(from) = self.secrets.get(id) else { return Ok(None) };
        let fail =
            |reason: &str| BuildError::Secret { id: id.to_owned(), reason: reason.to_owned() };
        let value = (self.workshop.read_secret)(from).map_err(|reason| fail(&reason))?;
        let Some(value) = value else { return Ok(None) };
        let text = String::from_utf8(value).map_err(|_| fail("it is no text"))?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.contains(['\r', '\n', '\0']) {
            return Err(fail("it has more than one line"));
        }
        Ok(Some(text.to_owned()))
    }

    /// An archive or a text behind a URL.
    fn web(self, url: &str) -> Result<Fetched, BuildError> {
        (self.workshop.emit)(Event::Source {
            image: self.image.to_owned(),
            source: without_login(url),
            identity: None,
            fetch: true,
        });
        let known = downloads::get(self, url, None)?;
        let name = file_name(url);
        let modified = known.validators.modified();
        let (content, size) = (known.content, known.size);
        let fetched = self.archived(&name, (content, size), modified)?;
        Ok(Fetched { time: modified.or(fetched.time), ..fetched })
    }

    fn archive(self, name: &str, path: &Path) -> Result<Fetched, BuildError> {
        let failed = |source| BuildError::Io { path: path.to_owned(), source };
        let mut out = self.workshop.store.blob_writer()?;
        let mut file = File::open(path).map_err(failed)?;
        io::copy(&mut file, &mut out).map_err(failed)?;
        let stored = out.commit(None)?;
        let fetched = self.archived(name, stored, None)?;
        match fetched.text {
            None => Ok(fetched),
            Some(_) => Err(BuildError::NoArchive { name: name.to_owned() }),
        }
    }

    /// The members of an archive, or a text, as a layer.
    fn archived(
        self,
        name: &str,
        (content, size): (Digest, u64),
        modified: Option<i64>,
    ) -> Result<Fetched, BuildError> {
        let store = &self.workshop.store;
        let is_archive = files::holds_archive(store, content)?;
        let note = match is_archive {
            true => format!("archive {content}"),
            false => format!("text {content} {}", modified.unwrap_or_default()),
        };
        if let Some(known) = self.known(&note)? {
            return Ok(known);
        }
        let shown = if is_archive { name } else { TEXT_NAME };
        let modified = Timestamp { seconds: modified.unwrap_or_default(), nanos: 0 };
        let download = Download { name: shown.to_owned(), content, size, modified };
        let unpack = if is_archive { Unpack::Always } else { Unpack::Never };
        let layer = self.layer(Root::Download(&download), unpack)?;
        let (time, text) = match is_archive {
            true => (files::newest(store, layer)?, None),
            false => (None, Some(content)),
        };
        self.keep(&note, Fetched { layer, time, text })
    }

    /// A layer of everything that is below `root`.
    fn layer(self, root: Root<'_>, unpack: Unpack) -> Result<DiffId, BuildError> {
        let graph = OpGraph::default();
        let (base, from) = (graph.id_beyond(0), graph.id_beyond(1));
        let everything = FileAction::Copy {
            sources: vec![CopySource { root: SourceRoot::Op(from), path: "/".to_owned() }],
            destination: "/".to_owned(),
            chown: None,
            chmod: None,
            exclude: Vec::new(),
            parents: false,
            link: false,
            unpack,
        };
        let op = FilesOp { base, actions: vec![everything] };
        // What is copied from here is dated as all else is; here the files keep their times.
        let forever = Timestamp { seconds: i64::MAX, nanos: 0 };
        let clock = Clock { now: LATEST_MTIME, epoch: None, commit: Some(forever) };
        let store = &self.workshop.store;
        Ok(files::make_layer(store, &op, &[], &|_| root, clock)?)
    }

    fn known(self, name: &str) -> Result<Option<Fetched>, BuildError> {
        let store = &self.workshop.store;
        let note = store.note(NAMESPACE, name)?;
        let known = note.and_then(|note| serde_json::from_slice::<Fetched>(&note).ok());
        let Some(known) = known else { return Ok(None) };
        Ok(store.layer(known.layer)?.is_some().then_some(known))
    }

    fn keep(self, name: &str, fetched: Fetched) -> Result<Fetched, BuildError> {
        let note = serde_json::to_vec(&fetched).expect("texts and numbers");
        self.workshop.store.put_note(NAMESPACE, name, &note)?;
        Ok(fetched)
    }
}

/// All that the files of a repository depend on, in words.
fn note_name(source: &GitSource, resolved: &Resolved) -> String {
    let mut name = format!("git {} {}:{}", source.url, resolved.commit, source.subdir);
    if source.keep_git_dir == Some(true) && source.subdir.is_empty() {
        name.push_str(" .git ");
        name.push_str(resolved.reference.as_deref().unwrap_or_default());
    }
    if source.submodules == Submodules::Skipped {
        name.push_str(" without submodules");
    }
    if source.times == GitTimes::Commit {
        name.push_str(" dated by the commit");
    }
    name
}

/// The Dockerfile of a context that is no folder, for an image (by name) with these secrets: at a path in it, or else `Dockerfile` or `dockerfile`; a
/// context that is a text is one itself.
///
/// # Errors
///
/// When the context cannot be had, or has no such file.
pub fn dockerfile_of(
    workshop: &Workshop,
    owner: (&str, &BTreeMap<String, SecretSource>),
    context: &ContextSource,
    (path, bytes_max): (Option<&str>, u64),
) -> Result<DockerfileText, BuildError> {
    let errand = Errand::of_the_user(workshop, owner);
    let fetched = errand.context(context)?.expect("the Dockerfile of a folder is a file");
    let shown = match context {
        ContextSource::Archive { name, .. } => name.clone(),
        ContextSource::Remote(remote) => remote.to_string(),
        ContextSource::Folder(folder) => folder.folder.display().to_string(),
    };
    if let Some(text) = fetched.text {
        return stored_text(workshop, text, (shown, bytes_max));
    }
    let candidates: &[&str] =
        path.as_ref().map_or(&["Dockerfile", "dockerfile"], std::slice::from_ref);
    for path in candidates {
        let found = files::read_stored(&workshop.store, fetched.layer, path, bytes_max)?;
        if let Some(bytes) = found {
            return text_of(bytes, format!("{path} of {shown}"));
        }
    }
    let path = candidates.first().copied().unwrap_or_default().to_owned();
    Err(BuildError::NoDockerfile { context: shown, path })
}

/// The text of a Dockerfile behind a URL.
///
/// # Errors
///
/// When it cannot be downloaded, or is no text.
pub fn dockerfile_behind(
    workshop: &Workshop,
    owner: (&str, &BTreeMap<String, SecretSource>),
    url: &str,
    bytes_max: u64,
) -> Result<DockerfileText, BuildError> {
    let known = downloads::get(Errand::of_the_user(workshop, owner), url, None)?;
    stored_text(workshop, known.content, (without_login(url), bytes_max))
}

fn stored_text(
    workshop: &Workshop,
    content: Digest,
    (name, bytes_max): (String, u64),
) -> Result<DockerfileText, BuildError> {
    let size = workshop.store.blob_size(content).unwrap_or_default();
    if size > bytes_max {
        let reason = format!("{size} bytes, the limit of a Dockerfile is {bytes_max}");
        return Err(BuildError::NoText { name, reason });
    }
    text_of(workshop.store.read_blob(content)?, name)
}

fn text_of(bytes: Vec<u8>, name: String) -> Result<DockerfileText, BuildError> {
    match String::from_utf8(bytes) {
        Ok(text) if text.trim_start().starts_with('<') => {
            let reason = "a web page, neither a tar archive nor the text of a Dockerfile; the \
                          address of a git repository ends with .git";
            Err(BuildError::NoText { name, reason: reason.to_owned() })
        }
        Ok(text) => Ok(DockerfileText { name, text }),
        Err(_) => {
            let reason = "neither a tar archive nor the text of a Dockerfile".to_owned();
            Err(BuildError::NoText { name, reason })
        }
    }
}

impl From<GitError> for BuildError {
    fn from(error: GitError) -> Self {
        if matches!(error, GitError::Cancelled) {
            return Self::Cancelled;
        }
        Self::Git(Box::new(error))
    }
}
