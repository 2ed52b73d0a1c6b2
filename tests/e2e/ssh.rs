//! `RUN --mount=type=ssh`: the user's agent or keys for the time of a step, with OpenSSH's own programs on both sides.

use std::{
    fs,
    os::unix::net::{UnixListener, UnixStream},
    process::{Child, Command, Stdio},
};

use crate::support::{Done, Turn, User, succeeds};

/// What is signed and checked.
const MESSAGE: &str = "signed inside a build";

/// Puts ssh-add and ssh-keygen with their libraries below `tools/` of the work folder.
fn tools(user: &User) {
    for program in ["/usr/bin/ssh-add", "/usr/bin/ssh-keygen"] {
        let libraries = succeeds("ldd", [program]);
        let files = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        for file in files.chain([program]) {
            let to = user.work().join("tools").join(file.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(file, to).unwrap();
        }
    }
}

/// A key of ours in the work folder.
fn key(user: &User, kind: &str, passphrase: &str) -> String {
    let name = format!("id_{kind}{passphrase}");
    let mut command = user.command("ssh-keygen");
    command.args(["-q", "-t", kind, "-N", passphrase, "-C", &format!("{kind} key"), "-f", &name]);
    Done::of(&mut command).ok();
    name
}

/// An agent of the user with one key; it ends with the test.
struct Agent {
    child: Child,
    socket: String,
}

impl Agent {
    fn start(user: &User, key: &str) -> Self {
        let socket = user.work().join("agent.sock").display().to_string();
        let mut command = user.command("ssh-agent");
        command.args(["-D", "-a", &socket]).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let agent = Self { child, socket };
        // The socket has its name before anybody listens.
        while UnixStream::connect(&agent.socket).is_err() {
            std::thread::yield_now();
        }
        Done::of(agent.known_to(&mut user.command("ssh-add")).args(["-q", key])).ok();
        agent
    }

    fn known_to<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("SSH_AUTH_SOCK", &self.socket)
    }

    fn list(&self, user: &User) -> String {
        Done::of(self.known_to(&mut user.command("ssh-add")).arg("-l")).ok()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn build(user: &User, dockerfile: &str, flags: &[&str]) -> Command {
    user.write("Dockerfile", dockerfile);
    let mut command = user.idp();
    command.args(["build", "--quiet", "--output", "type=local,dest=out"]).args(flags);
    command.args(crate::support::base_contexts()).arg(".");
    command
}

fn out(user: &User, name: &str) -> String {
    fs::read_to_string(user.work().join("out").join(name)).unwrap()
}

/// Whether OpenSSH takes a signature of [`MESSAGE`] for that of a key.
fn verify(user: &User, key: &str) {
    let public = fs::read_to_string(user.work().join(format!("{key}.pub"))).unwrap();
    user.write("allowed", &format!("me {public}"));
    let args = ["-Y", "verify", "-f", "allowed", "-I", "me", "-n", "test", "-s"];
    let signature = format!("out/{key}.sig");
    let mut command = user.command("ssh-keygen");
    command.args(args).arg(signature).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), MESSAGE.as_bytes()).unwrap();
    let done = Done::from_output(format!("{command:?}"), &child.wait_with_output().unwrap());
    assert!(done.ok().starts_with("Good \"test\" signature"), "{key}");
}

fn signing(key: &str) -> String {
    format!(
        "cp /public/{key}.pub /tmp/{key}.pub && printf '{MESSAGE}' > /tmp/m && \
         ssh-keygen -q -Y sign -f /tmp/{key}.pub -n test /tmp/m && mv /tmp/m.sig /{key}.sig"
    )
}

fn the_agent_serves_a_step_and_is_gone_after_it(user: &User, flags: &[&str]) {
    tools(user);
    let key = key(user, "ed25519", "");
    let agent = Agent::start(user, &key);
    let dockerfile = format!(
        "FROM busybox\nCOPY tools/ /\nCOPY *.pub /public/\n\
         RUN --mount=type=ssh,required ssh-add -l > /list && echo $SSH_AUTH_SOCK > /place && \
         stat -c '%F %a %u %g' $SSH_AUTH_SOCK >> /place && {} && ! ssh-add -D 2>/refused && \
         ! ssh-add -x </dev/null 2>/dev/null\n\
         RUN test ! -e /run/buildkit && ! ssh-add -l 2>/dev/null\n",
        signing(&key)
    );
    let flags = [&["--ssh", "default"], flags].concat();
    Done::of(agent.known_to(&mut build(user, &dockerfile, &flags))).ok();
    let listed = agent.list(user);
    assert!(listed.contains("ed25519 key"), "{listed}");
    assert_eq!(out(user, "list"), listed);
    assert_eq!(out(user, "place"), "/run/buildkit/ssh_agent.0\nsocket 600 0 0\n");
    assert!(out(user, "refused").contains("Failed to remove all identities"));
    verify(user, &key);
    assert!(!user.work().join("out/run/buildkit").exists(), "no trace in the layer");
    let sockets = succeeds("find", [user.home().to_str().unwrap(), "-type", "s"]);
    assert_eq!(sockets, "", "no socket stays");
    // Equal steps are found again, whatever agent there is, or none.
    let done = Done::of(&mut build(user, &dockerfile, &[]));
    done.ok();
}

#[test]
fn as_root_the_agent_serves_a_step_and_is_gone_after_it() {
    the_agent_serves_a_step_and_is_gone_after_it(&User::new(), &[]);
}

#[test]
fn as_root_the_agent_serves_a_step_with_private_ids() {
    the_agent_serves_a_step_and_is_gone_after_it(&User::new(), &["--userns", "private"]);
}

#[test]
fn as_an_ordinary_user_the_agent_serves_a_step_and_is_gone_after_it() {
    the_agent_serves_a_step_and_is_gone_after_it(&User::rootless(), &[]);
}

#[test]
fn keys_of_files_sign_without_any_agent() {
    let user = User::new();
    tools(&user);
    let keys = ["ed25519", "rsa", "ecdsa"].map(|kind| key(&user, kind, ""));
    // The older forms of a file, too.
    for (name, form) in [("old_rsa", "PEM"), ("pkcs8_rsa", "PKCS8"), ("pkcs8_ecdsa", "PKCS8")] {
        let kind = name.rsplit('_').next().unwrap();
        let mut command = user.command("ssh-keygen");
        command.args(["-q", "-t", kind, "-N", "", "-m", form, "-f", name]);
        Done::of(&mut command).ok();
    }
    let all: Vec<&str> =
        keys.iter().map(String::as_str).chain(["old_rsa", "pkcs8_rsa", "pkcs8_ecdsa"]).collect();
    let signings: Vec<String> = all.iter().map(|key| signing(key)).collect();
    let dockerfile = format!(
        "FROM busybox\nCOPY tools/ /\nCOPY *.pub /public/\n\
         RUN --mount=type=ssh,id=deploy,required ssh-add -l > /list && {}\n",
        signings.join(" && ")
    );
    let flag = format!("deploy={}", all.join(","));
    Done::of(&mut build(&user, &dockerfile, &["--ssh", &flag])).ok();
    assert_eq!(out(&user, "list").lines().count(), all.len(), "{}", out(&user, "list"));
    all.iter().for_each(|key| verify(&user, key));
    let text = fs::read_to_string(user.work().join(&keys[0])).unwrap();
    let mut grep = Command::new("grep");
    grep.args(["-r", "--text", "-l", "-F", text.lines().nth(3).unwrap()]).arg(user.home());
    assert_eq!(Done::of(&mut grep).code, 1, "no key is in the store");
}

#[test]
fn targets_owners_and_the_variable_are_as_buildkit_has_them() {
    let user = User::new();
    let key = key(&user, "ed25519", "");
    let flag = format!("default={key}");
    let dockerfile = "FROM busybox\n\
        RUN --mount=type=ssh,id=default,target=/a/sock,mode=0660,uid=7,gid=8 --mount=type=ssh \
            stat -c '%a %u %g' /a/sock > /one && echo $SSH_AUTH_SOCK >> /one && test -S /run/buildkit/ssh_agent.1\n\
        WORKDIR /w\n\
        RUN --mount=type=ssh,target=rel.sock test -S /w/rel.sock && echo $SSH_AUTH_SOCK > /two\n\
        ENV SSH_AUTH_SOCK=/mine\n\
        RUN --mount=type=ssh,target=/else echo $SSH_AUTH_SOCK > /three && test -S /else\n";
    Done::of(&mut build(&user, dockerfile, &["--ssh", &flag])).ok();
    assert_eq!(out(&user, "one"), "660 7 8\n/a/sock\n");
    assert_eq!(out(&user, "two"), "/w/rel.sock\n");
    assert_eq!(out(&user, "three"), "/mine\n");
    assert!(!user.work().join("out/a").exists());
}

#[test]
fn what_is_missing_is_named_with_the_way_out() {
    let user = User::new();
    let key = key(&user, "ed25519", "");
    let locked = self::key(&user, "ed25519", "secret");
    let needs = "FROM busybox\nRUN --mount=type=ssh,required true\n";
    let done = |text: &str, flags: &[&str]| Done::of(&mut build(&user, text, flags));
    let words = ["no SSH key \"\" forwarded from the client", "--ssh default", "Dockerfile:2"];
    done(needs, &[]).fails(3, &words);
    let other = format!("other={key}");
    let words = ["unset ssh forward key default", "offered are: other"];
    done(needs, &["--ssh", &other]).fails(3, &words);
    done(needs, &["--ssh", "default"]).fails(3, &["make sure SSH_AUTH_SOCK is set"]);
    done(needs, &["--ssh", "default=nowhere"]).fails(3, &["nowhere does not exist"]);
    done(needs, &["--ssh", "=x"]).fails(3, &["the id is missing"]);
    let locked = format!("default={locked}");
    done(needs, &["--ssh", &locked]).fails(3, &["passphrase", "ssh-add"]);
    done(needs, &["--ssh", "default=Dockerfile"]).fails(3, &["no private key"]);
    let mut long = user.command("ssh-keygen");
    Done::of(long.args(["-q", "-t", "ecdsa", "-b", "521", "-N", "", "-f", "id_521"])).ok();
    let words = ["ecdsa-sha2-nistp521 is not supported", "ssh-add FILE", "nistp384"];
    done(needs, &["--ssh", "default=id_521"]).fails(3, &words);
    user.write("idle", "");
    fs::remove_file(user.work().join("idle")).unwrap();
    drop(UnixListener::bind(user.work().join("idle")).unwrap());
    done(needs, &["--ssh", "default=idle"]).fails(3, &["Connection refused"]);
    done(needs, &["--ssh", &format!("default=idle,{key}")]).fails(3, &["one socket"]);
    done("FROM busybox\nRUN --mount=type=ssh test ! -e /run/buildkit\n", &[]).ok();
}

#[test]
fn a_project_names_agents_and_keys() {
    let (user, _turn) = (User::new(), Turn::embedded());
    let key = key(&user, "ed25519", "");
    user.write(
        "idpbuilder.kdl",
        &format!(
            "image app {{\n    context #null\n    dockerfile inline=\"FROM busybox\\nRUN --mount=type=ssh,id=deploy,required \
             test -S /run/buildkit/ssh_agent.0\\nRUN --mount=type=ssh true\"\n    build-context busybox=\"oci-layout://{}\"\n    \
             ssh default deploy=\"{key}\"\n}}\n",
            crate::support::bases().join("corpus/busybox").display()
        ),
    );
    user.run(["run", "--progress", "quiet"]).ok();
}
