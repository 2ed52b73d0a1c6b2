//! A web server on loopback: files with the headers that a test wants, redirects, and git repositories.
//!
//! Answers one request a connection, and remembers what was asked. Knows HTTP/1.1 as far as curl and the
//! binary speak it; expects nothing.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use super::{Done, Folder, User};

/// How something is answered.
#[derive(Clone)]
enum Answer {
    /// With these bytes and headers; 304 to a question whether they have changed.
    File(Vec<u8>, Vec<(String, String)>),
    /// With a status and no more.
    Status(u16),
    /// With another place.
    Redirect(String),
    /// With bytes that do not end, or so much of what was announced.
    Cut(usize, Vec<u8>),
}

/// What is shared with the thread of each connection.
#[derive(Default)]
struct Shared {
    answers: Mutex<BTreeMap<String, Answer>>,
    requests: Mutex<Vec<String>>,
    /// What must be sent as `Authorization` for anything below these paths.
    locked: Mutex<Vec<(String, String)>>,
}

/// A running server; it ends with the test.
pub(crate) struct Web {
    address: SocketAddr,
    shared: Arc<Shared>,
    folder: Folder,
}

impl Web {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, folder) = (Arc::<Shared>::default(), Folder::new());
        let (known, root) = (Arc::clone(&shared), folder.path().to_owned());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (known, root) = (Arc::clone(&known), root.clone());
                // Whoever hangs up in the middle has got what the test wanted.
                thread::spawn(move || drop(serve(stream.unwrap(), &known, &root)));
            }
        });
        Self { address, shared, folder }
    }

    /// The URL of a path, by number.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn put(&self, path: &str, bytes: impl Into<Vec<u8>>, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        self.set(path, Answer::File(bytes.into(), headers.collect()));
    }

    pub(crate) fn status(&self, path: &str, status: u16) {
        self.set(path, Answer::Status(status));
    }

    pub(crate) fn redirect(&self, path: &str, location: &str) {
        self.set(path, Answer::Redirect(location.to_owned()));
    }

    /// Announces so many bytes and hangs up after fewer.
    pub(crate) fn cut(&self, path: &str, announced: usize, bytes: &[u8]) {
        self.set(path, Answer::Cut(announced, bytes.to_vec()));
    }

    fn set(&self, path: &str, answer: Answer) {
        self.shared.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Asks for a header below a path.
    pub(crate) fn lock(&self, path: &str, authorization: &str) {
        let lock = (path.to_owned(), authorization.to_owned());
        self.shared.locked.lock().unwrap().push(lock);
    }

    /// Asks for this header below a path, and for no other anywhere.
    pub(crate) fn relock(&self, path: &str, authorization: &str) {
        self.shared.locked.lock().unwrap().clear();
        self.lock(path, authorization);
    }

    /// What was asked since the last call: method, path, and what makes a question conditional.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.requests.lock().unwrap())
    }

    /// Folder whose bare repositories are below `/git/`.
    pub(crate) fn repositories(&self) -> PathBuf {
        self.folder.path().join("git")
    }

    /// A bare repository below `/git/` that a script has filled: it starts in an empty work tree.
    pub(crate) fn repository(&self, name: &str, script: &str) -> PathBuf {
        self.repository_of(name, script, "sha1")
    }

    pub(crate) fn repository_of(&self, name: &str, script: &str, format: &str) -> PathBuf {
        let bare = self.repositories().join(format!("{name}.git"));
        let work = self.folder.path().join("work").join(name);
        fs::create_dir_all(&work).unwrap();
        let whole = format!(
            "export GIT_CONFIG_GLOBAL=/dev/null\n[ -d .git ] || git init -q -b main --object-format={format}\n{script}\n\
             mkdir -p {bare}\n[ -d {bare}/objects ] || git init -q --bare -b main --object-format={format} {bare}\n\
             git push -q --force --mirror {bare}\ngit -C {bare} update-server-info\n",
            bare = bare.display()
        );
        git_script(&work, &whole);
        bare
    }

    /// The commit that a name of a repository stands for.
    pub(crate) fn commit(&self, name: &str, reference: &str) -> String {
        let bare = self.repositories().join(format!("{name}.git"));
        let mut command = Command::new("git");
        command.arg("--git-dir").arg(bare).args(["rev-parse", "--verify", reference]);
        Done::of(&mut command).ok().trim().to_owned()
    }
}

/// Runs a script in a folder, with an author and a date that are always the same.
pub(crate) fn git_script(folder: &Path, script: &str) {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(folder).env_clear();
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", folder);
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "A").env(format!("GIT_{role}_EMAIL"), "a@example");
        command.env(format!("GIT_{role}_DATE"), "1650000000 +0000");
    }
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_ALLOW_PROTOCOL", "file");
    Done::of(&mut command).ok();
}

struct Request {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn read(stream: &TcpStream) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if let Some(length) = headers.get("content-length").and_then(|text| text.parse().ok()) {
        reader.take(length).read_to_end(&mut body)?;
    } else if headers.contains_key("transfer-encoding") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece)?;
            if size == 0 {
                break;
            }
            body.extend(&piece[..size]);
        }
    }
    Ok(Request { method, path, query, headers, body })
}

fn serve(mut stream: TcpStream, shared: &Shared, root: &Path) -> std::io::Result<()> {
    let request = read(&stream)?;
    let header = |name: &str| request.headers.get(name).map(String::as_str);
    let mut asked = format!("{} {}", request.method, request.path);
    for name in ["if-none-match", "if-modified-since", "authorization"] {
        if let Some(value) = header(name) {
            asked.push_str(&format!(" {name}={value}"));
        }
    }
    shared.requests.lock().unwrap().push(asked);
    let locks = shared.locked.lock().unwrap().clone();
    let closed = locks.iter().any(|(path, key)| {
        request.path.starts_with(path) && header("authorization") != Some(key.as_str())
    });
    if closed {
        let head = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\n";
        return write!(stream, "{head}Content-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let known = shared.answers.lock().unwrap().get(&request.path).cloned();
    match known {
        None if request.path.starts_with("/git/") => backend(&mut stream, &request, root),
        // As a plain web server has a repository: files, and nothing that understands git.
        None if request.path.starts_with("/dumb/") => {
            let below = request.path.trim_start_matches("/dumb/");
            let found = fs::read(root.join("git").join(below));
            respond(&mut stream, found.map_or((404, Vec::new()), |bytes| (200, bytes)), &[])
        }
        None => respond(&mut stream, (404, Vec::new()), &[]),
        Some(Answer::Status(status)) => respond(&mut stream, (status, Vec::new()), &[]),
        Some(Answer::Redirect(location)) => {
            let headers = [("Location".to_owned(), location)];
            respond(&mut stream, (302, Vec::new()), &headers)
        }
        Some(Answer::Cut(announced, bytes)) => {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {announced}\r\n\r\n")?;
            stream.write_all(&bytes)
        }
        Some(Answer::File(bytes, headers)) => {
            let own = |name: &str| {
                let found = headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.as_str())
            };
            let same =
                |asked: &str, name: &str| header(asked).is_some() && header(asked) == own(name);
            if same("if-none-match", "etag") || same("if-modified-since", "last-modified") {
                return respond(&mut stream, (304, Vec::new()), &headers);
            }
            respond(&mut stream, (200, bytes), &headers)
        }
    }
}

fn respond(
    stream: &mut TcpStream,
    (status, body): (u16, Vec<u8>),
    headers: &[(String, String)],
) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\n")?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    if status != 304 {
        write!(stream, "Content-Length: {}\r\n", body.len())?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&body)
}

/// Hands a request to git's own server (`git help http-backend`).
fn backend(stream: &mut TcpStream, request: &Request, root: &Path) -> std::io::Result<()> {
    let mut command = Command::new("git");
    command.arg("http-backend").env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    command.env("GIT_PROJECT_ROOT", root.join("git")).env("GIT_HTTP_EXPORT_ALL", "1");
    command.env("PATH_INFO", request.path.trim_start_matches("/git"));
    command.env("QUERY_STRING", &request.query).env("REQUEST_METHOD", &request.method);
    command.env("REMOTE_ADDR", "127.0.0.1").env("GIT_CONFIG_COUNT", "1");
    command.env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    for (name, header) in [
        ("CONTENT_TYPE", "content-type"),
        ("HTTP_GIT_PROTOCOL", "git-protocol"),
        ("GIT_PROTOCOL", "git-protocol"),
        ("HTTP_CONTENT_ENCODING", "content-encoding"),
    ] {
        if let Some(value) = request.headers.get(header) {
            command.env(name, value);
        }
    }
    command.env("CONTENT_LENGTH", request.body.len().to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    child.stdin.take().unwrap().write_all(&request.body)?;
    let output = child.wait_with_output()?.stdout;
    let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(output.len());
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let status = head.lines().find_map(|line| line.strip_prefix("Status: "));
    let status = status.and_then(|text| text.split(' ').next()).unwrap_or("200");
    write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\n{head}\r\n\r\n")?;
    stream.write_all(output.get(end + 4..).unwrap_or_default())
}

/// The files of an image as `tar` lists them: mode, owner, time in Unix seconds, name, target.
pub(crate) fn listing(user: &User, build: &[&str]) -> String {
    let out = user.folder().join("listing.tar");
    let spec = format!("type=tar,dest={}", out.display());
    let mut command = user.idp();
    command.args(["--quiet", "build", "--output", &spec]).args(build);
    Done::of(&mut command).ok();
    tar_list(&out)
}

pub(crate) fn tar_list(tar: &Path) -> String {
    let mut command = Command::new("tar");
    command.args(["--list", "--verbose", "--numeric-owner", "--full-time", "--utc", "-f"]).arg(tar);
    let listed = Done::of(&mut command).ok();
    fs::remove_file(tar).unwrap();
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    listed.lines().map(line).collect::<Vec<_>>().join("\n")
}
