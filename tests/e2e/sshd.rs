//! Repositories by SSH and `git://`, against OpenSSH's server and git's: in a RUN, by ADD, and as a context.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use crate::support::{Done, Folder, User, base_contexts, succeeds};

/// A server that is started anew for every connection, as inetd does: nobody has to find a free port for it.
struct Server {
    port: u16,
}

impl Server {
    fn start(mut command: impl FnMut() -> Command + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = OwnedFd::from(stream.unwrap());
                let (input, output) = (stream.try_clone().unwrap(), stream);
                let mut child =
                    command().stdin(input).stdout(output).stderr(Stdio::null()).spawn().unwrap();
                std::thread::spawn(move || child.wait().unwrap());
            }
        });
        Self { port }
    }
}

/// A repository of one file below a folder of the machine's root, an SSH server that knows one key, and what a client of
/// it needs.
struct Forge {
    _folder: Folder,
    repository: PathBuf,
    ssh: Server,
    git: Server,
    /// A line of known_hosts.
    known: String,
    /// Keys that it lets in.
    keys: PathBuf,
}

impl Forge {
    /// Lets in who has the key `user/id`, which it makes.
    fn new(user: &User) -> Self {
        let folder = Folder::new();
        let place = folder.path().to_owned();
        let script = "git init -q -b main work && cd work && echo from-the-forge > file && git add file \
            && git -c user.name=t -c user.email=t@t commit -qm one && git clone -q --bare . ../repo.git \
            && ssh-keygen -q -t ed25519 -N '' -f ../host";
        let mut made = Command::new("sh");
        made.args(["-euc", script]).current_dir(&place).env("HOME", &place);
        Done::of(made.env("GIT_CONFIG_NOSYSTEM", "1")).ok();
        let mut key = user.command("ssh-keygen");
        Done::of(key.args(["-q", "-t", "ed25519", "-N", "", "-f", "id"])).ok();
        fs::copy(user.work().join("id.pub"), place.join("keys")).unwrap();
        let options: Arc<Vec<String>> = Arc::new(
            [
                format!("HostKey={}", place.join("host").display()),
                format!("AuthorizedKeysFile={}", place.join("keys").display()),
                "StrictModes=no".to_owned(),
                "UsePAM=no".to_owned(),
                "PasswordAuthentication=no".to_owned(),
                "KbdInteractiveAuthentication=no".to_owned(),
                "PermitRootLogin=prohibit-password".to_owned(),
                "PidFile=none".to_owned(),
            ]
            .into(),
        );
        let ssh = Server::start(move || {
            // It wants its own folder in /run, which this machine need not have.
            let run = "mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd -i -f /dev/null \"$@\"";
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-euc", run, "sshd"]);
            for option in options.iter() {
                command.arg("-o").arg(option);
            }
            command
        });
        let base = place.display().to_string();
        let git = Server::start(move || {
            let mut command = Command::new("git");
            command.args(["daemon", "--inetd", "--export-all"]);
            command.arg(format!("--base-path={base}")).env("HOME", &base);
            command
        });
        let public = fs::read_to_string(place.join("host.pub")).unwrap();
        let known = format!("[127.0.0.1]:{} {public}", ssh.port);
        let (repository, keys) = (place.join("repo.git"), place.join("keys"));
        Self { repository, _folder: folder, ssh, git, known, keys }
    }

    fn url(&self) -> String {
        format!("ssh://root@127.0.0.1:{}{}", self.ssh.port, self.repository.display())
    }
}

/// Puts programs of this machine with their libraries below `tools/` of the work folder.
fn tools(user: &User, programs: &[&str]) {
    for program in programs {
        let program = user.script(&format!("command -v {program}")).ok();
        let program = fs::canonicalize(program.trim()).unwrap();
        let libraries = succeeds("ldd", [program.to_str().unwrap()]);
        let files =
            libraries.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
        for file in files.chain([program.as_path()]) {
            let to = user.work().join("tools").join(file.strip_prefix("/").unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(file, to).unwrap();
        }
    }
}

/// Builds with the SSH of this machine, which knows the forge by `known` and has no other settings.
fn build(user: &User, (dockerfile, known): (&str, &str), args: &[&str]) -> Done {
    user.write("Dockerfile", dockerfile);
    user.write("known", known);
    let mut command = user.idp();
    let ssh = format!(
        "ssh -F /dev/null -oBatchMode=yes -oIdentitiesOnly=yes -oIdentityFile={0}/id -oUserKnownHostsFile={0}/known",
        user.work().display()
    );
    command.env("GIT_SSH_COMMAND", ssh);
    command.args(["build", "--progress", "plain", "--output", "type=local,dest=out"]).args(args);
    Done::of(command.args(base_contexts()))
}

/// A file of the repository that is the context.
const FROM_CONTEXT: &str = "FROM scratch\nCOPY file /context\n";

/// The Dockerfile of this machine, and none of the context.
fn dockerfile(user: &User) -> String {
    user.work().join("Dockerfile").display().to_string()
}

fn out(user: &User, name: &str) -> String {
    fs::read_to_string(user.work().join("out").join(name)).unwrap()
}

fn a_step_clones_with_the_keys_that_it_is_lent(user: &User) {
    let forge = Forge::new(user);
    tools(user, &["git", "ssh"]);
    user.write("known_hosts", &forge.known);
    let dockerfile = format!(
        "FROM busybox\nCOPY tools/ /\nCOPY known_hosts /root/.ssh/known_hosts\n\
         RUN --mount=type=ssh,required export GIT_SSH_COMMAND=/usr/bin/ssh PATH=$PATH:/usr/local/bin && \
         git clone -q {} /src && cat /src/file > /cloned && ! ls /root/.ssh/id*\n",
        forge.url()
    );
    let known = (dockerfile.as_str(), forge.known.as_str());
    build(user, known, &["--ssh", "default=id", "."]).ok();
    assert_eq!(out(user, "cloned"), "from-the-forge\n");
    let none =
        build(user, (&dockerfile.replace(",required", ""), &forge.known), &["--no-cache", "."]);
    assert!(none.code == 1 && none.err.contains("Permission denied (publickey)"), "{none}");
}

#[test]
fn as_root_a_step_clones_with_the_keys_that_it_is_lent() {
    a_step_clones_with_the_keys_that_it_is_lent(&User::new());
}

#[test]
fn as_an_ordinary_user_a_step_clones_with_the_keys_that_it_is_lent() {
    a_step_clones_with_the_keys_that_it_is_lent(&User::rootless());
}

#[test]
fn keys_of_every_kind_and_signature_log_in_from_a_step() {
    let user = User::new();
    let forge = Forge::new(&user);
    tools(&user, &["ssh"]);
    user.write("known_hosts", &forge.known);
    let (mut lent, mut logins) = (Vec::new(), String::new());
    for (name, bits, algorithms) in [
        ("ed25519", "256", vec!["ssh-ed25519"]),
        ("ecdsa", "256", vec!["ecdsa-sha2-nistp256"]),
        ("ecdsa", "384", vec!["ecdsa-sha2-nistp384"]),
        ("rsa", "2048", vec!["rsa-sha2-256", "rsa-sha2-512"]),
        ("rsa", "4096", vec!["rsa-sha2-512"]),
    ] {
        let file = format!("{name}-{bits}");
        let mut key = user.command("ssh-keygen");
        Done::of(key.args(["-q", "-t", name, "-b", bits, "-N", "", "-f", &file])).ok();
        let public = fs::read_to_string(user.work().join(format!("{file}.pub"))).unwrap();
        let known = fs::read_to_string(&forge.keys).unwrap();
        fs::write(&forge.keys, known + &public).unwrap();
        for algorithm in algorithms {
            logins += &format!(
                "RUN --mount=type=ssh ssh -p {} -oBatchMode=yes -oIdentitiesOnly=yes -i /public/{file}.pub \
                 -oPubkeyAcceptedAlgorithms={algorithm} root@127.0.0.1 echo {file} {algorithm} >> /said\n",
                forge.ssh.port
            );
        }
        lent.push(file);
    }
    let dockerfile = format!(
        "FROM busybox\nCOPY tools/ /\nCOPY known_hosts /root/.ssh/known_hosts\nCOPY *.pub /public/\n{logins}"
    );
    let flag = format!("default={}", lent.join(","));
    build(&user, (&dockerfile, &forge.known), &["--ssh", &flag, "."]).ok();
    assert_eq!(
        out(&user, "said"),
        "ed25519-256 ssh-ed25519\necdsa-256 ecdsa-sha2-nistp256\necdsa-384 ecdsa-sha2-nistp384\n\
         rsa-2048 rsa-sha2-256\nrsa-2048 rsa-sha2-512\nrsa-4096 rsa-sha2-512\n"
    );
}

#[test]
fn add_and_contexts_fetch_by_ssh_with_the_keys_of_this_machine() {
    let user = User::new();
    let forge = Forge::new(&user);
    let url = forge.url();
    let private = ["--allow", "network.private", "."];
    let text = format!("FROM scratch\nADD {url}#main /src/\n");
    build(&user, (&text, &forge.known), &private).ok();
    assert_eq!(out(&user, "src/file"), "from-the-forge\n");
    // As a context, and by the form of scp, whose port is a setting of ssh.
    build(&user, (FROM_CONTEXT, &forge.known), &["-f", &dockerfile(&user), &url]).ok();
    assert_eq!(out(&user, "context"), "from-the-forge\n");
    let short = format!("root@127.0.0.1:{}", forge.repository.display());
    let text = format!("FROM scratch\nADD {short} /short/\n");
    user.write("Dockerfile", &text);
    let ssh = format!(
        "ssh -F /dev/null -p {} -oBatchMode=yes -oIdentityFile={1}/id -oUserKnownHostsFile={1}/known",
        forge.ssh.port,
        user.work().display()
    );
    let mut command = user.idp();
    command.env("GIT_SSH_COMMAND", ssh).args(["build", "--output", "type=local,dest=out"]);
    Done::of(command.args(private)).ok();
    assert_eq!(out(&user, "short/file"), "from-the-forge\n");
}

/// None of it waits for somebody who types.
#[test]
fn servers_and_keys_that_are_not_known_are_told_with_the_way_out() {
    let user = User::new();
    let forge = Forge::new(&user);
    let text = format!("FROM scratch\nADD {} /src/\n", forge.url());
    let private = ["--allow", "network.private", "."];
    let greeting = format!("ssh -p {} root@127.0.0.1", forge.ssh.port);
    let words = ["Host key verification failed", &greeting, "known_hosts", "Dockerfile:2"];
    build(&user, (&text, ""), &private).fails(5, &words);
    let other = fs::read_to_string(user.work().join("id.pub")).unwrap();
    let changed = format!("[127.0.0.1]:{} {other}", forge.ssh.port);
    build(&user, (&text, &changed), &private).fails(5, &["Host key verification failed"]);
    let mut key = user.command("ssh-keygen");
    Done::of(key.args(["-q", "-t", "ed25519", "-N", "locked", "-f", "id"]).stdin(yes(&user))).ok();
    let said = build(&user, (&text, &forge.known), &private)
        .fails(4, &["Permission denied (publickey)", "ssh-add -l", &greeting]);
    assert!(!said.contains("GIT_AUTH_TOKEN"), "{said}");
}

/// Standard input that says yes once.
fn yes(user: &User) -> fs::File {
    user.write("yes", "y\n");
    fs::File::open(user.work().join("yes")).unwrap()
}

#[test]
fn add_and_contexts_fetch_by_the_protocol_of_git() {
    let user = User::new();
    let forge = Forge::new(&user);
    let url = format!("git://127.0.0.1:{}/repo.git", forge.git.port);
    let text = format!("FROM scratch\nADD {url}#main /src/\n");
    build(&user, (&text, ""), &["--allow", "network.private", "."]).ok();
    assert_eq!(out(&user, "src/file"), "from-the-forge\n");
    build(&user, (FROM_CONTEXT, ""), &["-f", &dockerfile(&user), &url]).ok();
    assert_eq!(out(&user, "context"), "from-the-forge\n");
    let missing = url.replace("repo.git", "none.git");
    let text = format!("FROM scratch\nADD {missing} /src/\n");
    build(&user, (&text, ""), &["--allow", "network.private", "."]).fails(6, &["none.git"]);
}
