//! Blobs in: sessions that take bytes in order and become a blob when the digest is right.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::BodyExt as _;
use hyper::{
    StatusCode,
    body::Incoming,
    header::{self, HeaderMap},
};
use tokio::sync::Mutex;

use super::answer::{Answer, CONTENT_DIGEST, Refusal, empty, put};
use crate::{
    oci::Digest,
    store::{BlobWriter, Store},
};

/// Sessions open at once; the oldest idle one gives way to a new one, which is refused while all are busy.
const SESSIONS_MAX: usize = 1024;

/// Open upload sessions.
pub(super) struct Uploads {
    store: Store,
    sessions: Mutex<Sessions>,
}

/// By their ids.
type Sessions = HashMap<String, Arc<Mutex<Session>>>;

struct Session {
    repository: String,
    writer: Option<BlobWriter>,
    bytes: u64,
    used: Instant,
}

impl Uploads {
    pub(super) fn new(store: Store) -> Self {
        Self { store, sessions: Mutex::default() }
    }

    /// POST: starts a session, or with `digest` takes the whole blob at once.
    pub(super) async fn start(
        &self,
        repository: &str,
        digest: Option<Digest>,
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        let writer = self.store.blob_writer()?;
        let (repository_name, used) = (repository.to_owned(), Instant::now());
        let mut session =
            Session { repository: repository_name, writer: Some(writer), bytes: 0, used };
        if let Some(digest) = digest {
            session.take(body).await?;
            return session.finish(digest);
        }
        let id = random_id();
        let mut sessions = self.sessions.lock().await;
        make_room(&mut sessions)?;
        sessions.insert(id.clone(), Arc::new(Mutex::new(session)));
        Ok(progress(StatusCode::ACCEPTED, repository, &id, 0))
    }

    /// PATCH: the next bytes.
    pub(super) async fn patch(
        &self,
        repository: &str,
        id: &str,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        let session = self.find(repository, id).await?;
        let mut session = session.lock().await;
        if let Some(answer) = session.go_on(id, headers, body).await? {
            return Ok(answer);
        }
        Ok(progress(StatusCode::ACCEPTED, repository, id, session.bytes))
    }

    /// PUT: the last bytes, and the digest of all.
    pub(super) async fn finish(
        &self,
        repository: &str,
        id: &str,
        (headers, digest): (&HeaderMap, Option<Digest>),
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        let digest = digest.ok_or_else(|| {
            let message = "the query needs digest=sha256:…";
            Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
        })?;
        let session = self.find(repository, id).await?;
        let mut session = session.lock().await;
        if let Some(answer) = session.go_on(id, headers, body).await? {
            return Ok(answer);
        }
        let answer = session.finish(digest);
        self.sessions.lock().await.remove(id);
        answer
    }

    /// GET: how far it is.
    pub(super) async fn status(&self, repository: &str, id: &str) -> Result<Answer, Refusal> {
        let session = self.find(repository, id).await?;
        let bytes = session.lock().await.bytes;
        Ok(progress(StatusCode::NO_CONTENT, repository, id, bytes))
    }

    /// DELETE: forgets the session and its bytes.
    pub(super) async fn cancel(&self, repository: &str, id: &str) -> Result<Answer, Refusal> {
        drop(self.find(repository, id).await?);
        self.sessions.lock().await.remove(id);
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// Forgets sessions that nobody has used for so long, with their bytes.
    pub(super) async fn sweep(&self, idle: Duration) {
        let is_used = |session: &Arc<Mutex<Session>>| {
            session.try_lock().map_or(true, |session| session.used.elapsed() < idle)
        };
        self.sessions.lock().await.retain(|_, session| is_used(session));
    }

    async fn find(&self, repository: &str, id: &str) -> Result<Arc<Mutex<Session>>, Refusal> {
        let unknown = || {
            let message = "upload session unknown";
            Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", message)
        };
        let session = self.sessions.lock().await.get(id).cloned().ok_or_else(unknown)?;
        {
            let mut session = session.lock().await;
            if session.repository != repository {
                return Err(unknown());
            }
            session.used = Instant::now();
        }
        Ok(session)
    }
}

/// Lets go of the oldest idle session where there are too many for another one.
fn make_room(sessions: &mut Sessions) -> Result<(), Refusal> {
    if sessions.len() < SESSIONS_MAX {
        return Ok(());
    }
    let idle = sessions.iter().filter_map(|(id, session)| {
        session.try_lock().ok().map(|session| (session.used, id.clone()))
    });
    let Some((_, oldest)) = idle.min() else {
        let message = format!("{SESSIONS_MAX} uploads are under way");
        let status = StatusCode::TOO_MANY_REQUESTS;
        return Err(Refusal::new(status, "TOOMANYREQUESTS", message));
    };
    sessions.remove(&oldest);
    Ok(())
}

impl Session {
    /// Takes the next bytes; where they are others, the answer says which are the next ones.
    async fn go_on(
        &mut self,
        id: &str,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Option<Answer>, Refusal> {
        if range_start(headers)?.is_some_and(|start| start != self.bytes) {
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            return Ok(Some(progress(status, &self.repository, id, self.bytes)));
        }
        self.take(body).await.map(|()| None)
    }

    async fn take(&mut self, mut body: Incoming) -> Result<(), Refusal> {
        let lost =
            |reason: String| Refusal::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", reason);
        let writer = self.writer.as_mut().ok_or_else(|| lost("the upload has ended".to_owned()))?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| lost(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                writer.write_all(&data).map_err(|error| unwritten(&error))?;
                self.bytes += data.len() as u64;
            }
        }
        self.used = Instant::now();
        Ok(())
    }

    fn finish(&mut self, digest: Digest) -> Result<Answer, Refusal> {
        let writer = self.writer.take().ok_or_else(|| {
            Refusal::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", "the upload has ended")
        })?;
        writer.commit(Some(digest))?;
        Ok(created(&self.repository, digest))
    }
}

/// 201 for a blob that is there now.
pub(super) fn created(repository: &str, digest: Digest) -> Answer {
    let mut answer = empty(StatusCode::CREATED);
    put(&mut answer, header::LOCATION, &format!("/v2/{repository}/blobs/{digest}"));
    put(&mut answer, CONTENT_DIGEST, &digest.to_string());
    answer
}

fn progress(status: StatusCode, repository: &str, id: &str, bytes: u64) -> Answer {
    let mut answer = empty(status);
    put(&mut answer, header::LOCATION, &format!("/v2/{repository}/blobs/uploads/{id}"));
    put(&mut answer, header::RANGE, &format!("0-{}", bytes.saturating_sub(1)));
    let name = header::HeaderName::from_static("docker-upload-uuid");
    put(&mut answer, name, id);
    answer
}

/// First byte of `Content-Range: A-B` (the specification has no `bytes ` in front; some send it).
fn range_start(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let start = range.to_str().ok().and_then(|range| {
        let range = range.strip_prefix("bytes ").unwrap_or(range);
        range.split_once('-')?.0.parse().ok()
    });
    match start {
        Some(start) => Ok(Some(start)),
        None => Err(Refusal::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "BLOB_UPLOAD_INVALID",
            "Content-Range is not FIRST-LAST",
        )),
    }
}

/// 128 random bits as hex: cannot be guessed.
fn random_id() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel has randomness");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unwritten(error: &std::io::Error) -> Refusal {
    let status = if error.kind() == std::io::ErrorKind::StorageFull {
        StatusCode::INSUFFICIENT_STORAGE
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    Refusal::new(status, "UNKNOWN", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_that_nobody_uses_is_forgotten_with_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let uploads = Uploads::new(store.clone());
        for (id, idle_s) in [("new", 0), ("old", 100)] {
            let used = Instant::now().checked_sub(Duration::from_secs(idle_s)).unwrap();
            let mut writer = store.blob_writer().unwrap();
            writer.write_all(b"bytes").unwrap();
            let session =
                Session { repository: "a".to_owned(), writer: Some(writer), bytes: 5, used };
            uploads.sessions.lock().await.insert(id.to_owned(), Arc::new(Mutex::new(session)));
        }
        let files = || {
            let tmp = std::fs::read_dir(folder.path().join("tmp")).unwrap().flatten();
            tmp.map(|folder| std::fs::read_dir(folder.path()).unwrap().count()).sum::<usize>()
        };
        assert_eq!(files(), 2);
        uploads.sweep(Duration::from_secs(50)).await;
        assert_eq!(files(), 1);
        assert!(uploads.status("a", "new").await.is_ok());
        assert!(uploads.status("a", "old").await.is_err());
    }

    #[tokio::test]
    async fn a_session_too_many_takes_the_place_of_the_oldest_idle_one_or_is_refused() {
        let now = Instant::now();
        let session = |age: usize| {
            let used = now.checked_sub(Duration::from_secs(age as u64)).unwrap();
            Arc::new(Mutex::new(Session { repository: "a".into(), writer: None, bytes: 0, used }))
        };
        let mut sessions: Sessions =
            (0..SESSIONS_MAX).map(|age| (age.to_string(), session(age))).collect();
        let [last, before_last] = [1, 2].map(|back| (SESSIONS_MAX - back).to_string());
        let busy = Arc::clone(&sessions[&last]).lock_owned().await;
        make_room(&mut sessions).unwrap();
        assert!(sessions.contains_key(&last) && !sessions.contains_key(&before_last));
        make_room(&mut sessions).unwrap();
        assert_eq!(sessions.len(), SESSIONS_MAX - 1, "there is room");
        sessions.insert("one more".to_owned(), session(0));
        let mut all = Vec::new();
        for session in sessions.values().filter(|session| session.try_lock().is_ok()) {
            all.push(Arc::clone(session).lock_owned().await);
        }
        assert_eq!(all.len(), SESSIONS_MAX - 1);
        assert!(make_room(&mut sessions).is_err_and(|error| error.status == 429));
        drop((busy, all));
        make_room(&mut sessions).unwrap();
    }
}
