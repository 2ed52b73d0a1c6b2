//! `idpbuilder.lock`, `--locked`, `--offline`, `--pull`: what names stand for, and who is asked.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use crate::support::{
    Done, ROOT, User, json,
    registry::{Registry, free_port},
};

/// A user who may push to a registry, with a base image in it.
struct Place {
    user: User,
    registry: Registry,
}

impl Place {
    fn new() -> Self {
        let (user, registry) = (User::new(), Registry::tls());
        let address = format!("localhost:{}", registry.port());
        let ca = registry.certificate().display().to_string();
        user.run(["cert", "trust", &address, &ca]).ok();
        let login = ["login", &address, "-u", "admin", "--password-stdin"];
        user.run_with_input(login, b"secret\n").ok();
        let place = Self { user, registry };
        place.push("one");
        place
    }

    fn base(&self) -> String {
        format!("localhost:{}/base:1", self.registry.port())
    }

    /// Moves the tag of the base; the store forgets the name, so that it is nobody's own image.
    fn push(&self, content: &str) {
        let other = User::new();
        other.write("version", content);
        let address = format!("localhost:{}", self.registry.port());
        let ca = self.registry.certificate().display().to_string();
        other.run(["cert", "trust", &address, &ca]).ok();
        let login = ["login", &address, "-u", "admin", "--password-stdin"];
        other.run_with_input(login, b"secret\n").ok();
        let dockerfile = "FROM scratch\nCOPY version /version\n";
        other.build(dockerfile, &["-q", "-t", &self.base(), "--push"]).ok();
    }

    fn project(&self) {
        let base = self.base();
        let text = format!(
            "image site {{ dockerfile inline=\"FROM {base}\\nWORKDIR /w\\n\"; tags \"1\"; \
             output local=out }}\n"
        );
        self.user.write("idpbuilder.kdl", &text);
    }

    fn version(&self) -> String {
        fs::read_to_string(self.user.work().join("out/version")).unwrap()
    }

    fn lock(&self) -> serde_json::Value {
        json(&fs::read_to_string(self.user.work().join("idpbuilder.lock")).unwrap())
    }
}

#[test]
fn a_locked_base_stays_what_it_was_until_the_lock_is_updated() {
    let place = Place::new();
    let user = &place.user;
    place.project();
    user.run(["run", "--locked"]).fails(3, &["no idpbuilder.lock", "idpbuilder lock"]);
    let said = user.run(["lock"]).ok();
    let first = place.lock()["images"][place.base()].as_str().unwrap().to_owned();
    assert_eq!(said, format!("{} is {first}\n", place.base()));
    assert_eq!(user.run(["lock"]).ok(), "nothing moved\n");
    user.run(["run", "-q", "--locked"]).ok();
    assert_eq!(place.version(), "one");

    place.push("two");
    user.run(["run", "-q", "--pull"]).ok();
    assert_eq!(place.version(), "one", "the lock says what the name stands for");
    let said = user.run(["run", "--locked"]).fails(3, &["moved", &first, "lock --update"]);
    assert!(said.contains(&place.base()), "{said}");
    user.run(["lock"]).ok();
    assert_eq!(place.lock()["images"][place.base()], *first, "what is locked stays locked");

    let said = user.run(["lock", "--update", &place.base()]).ok();
    assert!(said.contains(&format!("was {first} and is sha256:")), "{said}");
    user.run(["run", "-q", "--locked"]).ok();
    assert_eq!(place.version(), "two");
    user.run(["lock", "--update", "nobody"]).fails(3, &["not in idpbuilder.lock", &place.base()]);
}

#[test]
fn what_is_not_in_the_lock_is_refused_when_it_must_be() {
    let place = Place::new();
    place.project();
    place.user.write("idpbuilder.lock", "{\"version\": 1}\n");
    place.user.run(["run", "-q"]).ok();
    place.user.run(["run", "--locked"]).fails(3, &["is not in idpbuilder.lock", "adds it"]);
    place.user.write("idpbuilder.lock", "{\"version\": 9}\n");
    place.user.run(["run"]).fails(3, &["idpbuilder.lock", "version 9"]);
}

#[test]
fn images_of_the_project_itself_need_no_lock() {
    let place = Place::new();
    let text = format!(
        "image base {{ dockerfile inline=\"FROM {}\\nWORKDIR /a\\n\" }}\n\
         image site {{ dockerfile inline=\"FROM base\\nWORKDIR /b\\n\" }}\n",
        place.base()
    );
    place.user.write("idpbuilder.kdl", &text);
    place.user.run(["lock"]).ok();
    assert_eq!(place.lock()["images"].as_object().unwrap().len(), 1);
    place.user.run(["run", "-q", "--locked"]).ok();
}

#[test]
fn every_row_of_the_readme_says_when_a_registry_is_asked() {
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let rows = readme
        .lines()
        .filter(|line| line.starts_with("| `--pull") || line.starts_with("| `--offline"));
    let mut tried = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [flags, moved, away, absent] = cells[..] else { panic!("{row}") };
        for flag in flags.split('`').skip(1).step_by(2) {
            pulled(Some(flag), [absent, moved, away]);
            tried += 1;
        }
        if flags.ends_with("the default") {
            pulled(None, [absent, moved, away]);
        }
    }
    assert_eq!(tried, 6);
}

/// Builds with a flag: when the base is not in the store, when its name moved, and when its registry is gone.
fn pulled(flag: Option<&str>, [absent, moved, away]: [&str; 3]) {
    let place = Place::new();
    let dockerfile = format!("FROM {}\nWORKDIR /w\n", place.base());
    let build = |user: &User, flag: Option<&str>| {
        let out = ["--output", "type=local,dest=out"].into_iter();
        user.build(&dockerfile, &out.chain(flag).collect::<Vec<_>>())
    };
    let expect = |done: Done, cell: &str| match cell.strip_prefix("exit code ") {
        Some(code) => drop(done.fails(code.parse().unwrap(), &["localhost"])),
        None => drop(done.ok()),
    };
    expect(build(&place.user, flag), absent);
    build(&place.user, None).ok();
    place.push("two");
    expect(build(&place.user, flag), moved);
    let version = if moved == "the new one" { "two" } else { "one" };
    assert_eq!(place.version(), version, "{flag:?}");
    let user = place.user;
    drop(place.registry);
    expect(build(&user, flag), away);
}

/// Listens where a registry and a web server would be, and answers nobody.
struct Silent(TcpListener);

impl Silent {
    fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    /// Whether anybody has ever knocked.
    fn was_asked(&self) -> bool {
        self.0.accept().is_ok()
    }
}

#[test]
fn offline_asks_nobody() {
    let (user, silent, web) = (User::new(), Silent::new(), Silent::new());
    let mirror = format!("docker.io={}", silent.address());
    user.write("Dockerfile", "FROM alpine:3.19\nRUN true\n");
    let run = |user: &User, words: &[&str]| {
        Done::of(user.idp().args(words).args(["--mirror", &mirror]).args(["--offline", "."]))
    };
    run(&user, &["build"]).fails(2, &["alpine:3.19", "not in the store", "--offline"]);
    run(&user, &["build", "--pull"]).fails(2, &["alpine:3.19"]);
    user.write("Dockerfile", &format!("FROM scratch\nADD http://{}/file /file\n", web.address()));
    run(&user, &["build"]).fails(6, &["offline"]);
    user.write("Dockerfile", "FROM scratch\nWORKDIR /w\n");
    let tag = format!("{}/demo:1", web.address());
    run(&user, &["build", "--push", "-t", &tag]).fails(6, &["offline"]);
    assert!(!silent.was_asked() && !web.was_asked(), "somebody was asked");

    // What is in the store is enough.
    let real = Registry::mirror();
    user.run(["pull", "--mirror", &real.as_mirror(), "alpine:3.19"]).ok();
    user.write("Dockerfile", "FROM alpine:3.19\nRUN true\n");
    run(&user, &["build"]).ok();
    assert!(!silent.was_asked(), "somebody was asked");
}

#[test]
fn a_url_is_locked_by_its_content() {
    let user = User::new();
    let folder = user.folder().join("web");
    fs::create_dir(&folder).unwrap();
    // The server tells versions apart by their whole seconds.
    let put = |text: &str, seconds: u64| {
        fs::write(folder.join("file"), text).unwrap();
        let file = fs::File::options().write(true).open(folder.join("file")).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    };
    put("one", 1_600_000_000);
    let web = Web::of(&folder);
    let url = web.url("file");
    let text = format!("image site {{ dockerfile inline=\"FROM scratch\\nADD {url} /f\\n\" }}\n");
    user.write("idpbuilder.kdl", &text);
    let said = user.run(["lock", "--allow", "network.private"]).ok();
    assert!(said.starts_with(&format!("{url} is sha256:")), "{said}");
    user.run(["run", "-q", "--locked", "--allow", "network.private"]).ok();
    put("two and longer", 1_600_000_001);
    user.run(["run", "-q", "--allow", "network.private"]).ok();
    user.run(["run", "--locked", "--allow", "network.private"]).fails(3, &[&url, "moved"]);
    user.run(["lock", "--update", &url, "--allow", "network.private"]).ok();
    user.run(["run", "-q", "--locked", "--allow", "network.private"]).ok();
}

/// A web server over a folder.
struct Web {
    child: std::process::Child,
    port: u16,
}

impl Web {
    fn of(folder: &Path) -> Self {
        let port = free_port();
        let mut command = std::process::Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "/usr/bin/python3", "-m", "http.server"]);
        command.args(["--bind", "127.0.0.1", &port.to_string()]).current_dir(folder);
        let quiet = std::process::Stdio::null;
        let child = command.stdout(quiet()).stderr(quiet()).spawn().unwrap();
        let web = Self { child, port };
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::yield_now();
        }
        web
    }

    fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it ends");
    }
}
