//! What a RUN sees of the network: which places each mode reaches, and what it is told of names.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, UdpSocket},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use idpbuilder::remote::{METADATA_V4, METADATA_V6};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Done, Patience, Turn, User, base_contexts, bases, json};

/// Makes names of device files.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Far above what it takes to end a process.
const SOON: Duration = Duration::from_secs(30);

/// Says `reached` to everybody who asks, and counts them.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) asked: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn at(ip: IpAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let (address, asked) = (listener.local_addr().unwrap().to_string(), Arc::default());
        let count: Arc<AtomicUsize> = Arc::clone(&asked);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                drop(client.read(&mut [0; 4096]));
                let answer = b"HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\nreached\n";
                drop(client.write_all(answer));
            }
        });
        Self { address, asked }
    }

    pub(crate) fn port(&self) -> &str {
        self.address.rsplit_once(':').unwrap().1
    }
}

/// The address that this machine speaks to others with.
pub(crate) fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("198.51.100.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}

/// A line of a script that prints what a server says, or `no`.
pub(crate) fn ask(address: &str) -> String {
    let (host, port) = address.rsplit_once(':').unwrap();
    format!(
        "(printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | timeout 60 nc {host} {port} 2>/dev/null | grep -m 1 reached || echo no)"
    )
}

fn out(user: &User, dockerfile: &str, flags: &[&str]) -> String {
    user.write("Dockerfile", dockerfile);
    let mut build = user.idp();
    build.args(["build", "--quiet", "--output", "type=local,dest=out"]).args(flags);
    build.args(base_contexts()).arg(".");
    on_a_usual_machine(user, "", &build).ok();
    fs::read_to_string(user.work().join("out/out")).unwrap()
}

/// In a network of the test's own, where a server stands at the address that clouds serve credentials from.
#[test]
fn s28_cloud_metadata_is_closed_in_a_sandbox_and_the_rest_is_not() {
    let user = User::new();
    let text = format!(
        "FROM busybox\nRUN ({}; {}; ip route get 169.254.169.254; ip route get 100.100.100.200) > /out 2>&1; true\n",
        ask("169.254.169.254:8080"),
        ask("192.0.2.77:8080")
    );
    user.write("Dockerfile", &text);
    user.write("served/name", "reached\n");
    user.write(
        "script",
        "ip link set lo up; ip addr add 169.254.169.254/32 dev lo; ip addr add 192.0.2.77/32 dev lo\n\
         python3 -m http.server -d served 8080 >/dev/null 2>&1 & server=$!\n\
         until curl -sf http://192.0.2.77:8080/name >/dev/null; do :; done\n\
         for mode in host sandbox; do idpbuilder build -q --network=$mode --output type=local,dest=out-$mode \"$@\" .; done\n\
         kill $server\n",
    );
    let mut command = user.command("unshare");
    command.args(["-n", "bash", "-eu", "script"]).args(base_contexts());
    Done::of(&mut command).ok();
    let read =
        |mode: &str| fs::read_to_string(user.work().join(format!("out-{mode}/out"))).unwrap();
    assert!(read("host").starts_with("reached\nreached\n"), "{}", read("host"));
    let sandbox = read("sandbox");
    assert!(sandbox.starts_with("no\nreached\n"), "{sandbox}");
    assert!(!sandbox.contains("via 10.0.2.2"), "{sandbox}");
}

/// As above, by IPv6, which pasta carries; a link-local address comes with an interface.
#[test]
fn s28_cloud_metadata_is_closed_by_ipv6_too() {
    let user = User::new();
    let addresses =
        ["169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe%eth0", "2001:db8::77", "192.0.2.77"];
    let text = format!(
        "FROM busybox\nRUN for a in {}; do mkfifo /f; (printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc $a 8080 > /f 2>&1 &); \\\n\
         timeout 60 grep -m 1 -e reached -e nc: /f >> /out; rm /f; done\n",
        addresses.join(" ")
    );
    user.write("Dockerfile", &text);
    user.write("served/name", "reached\n");
    user.write(
        "script",
        "mount --bind /dev/null /usr/bin/slirp4netns\n\
         ip link add eth0 type veth peer name other; for one in lo eth0 other; do ip link set $one up; done\n\
         ip addr add 169.254.169.254/32 dev lo; ip addr add fd00:ec2::254/128 dev lo; ip addr add 192.0.2.77/24 dev eth0\n\
         for one in 2001:db8::77 2001:db8::1 fe80::a9fe:a9fe; do ip addr add $one/64 dev eth0 nodad; done\n\
         ip route add default via 192.0.2.1; ip route add default via 2001:db8::2 dev eth0\n\
         python3 -m http.server --bind :: -d served 8080 >/dev/null 2>&1 & server=$!\n\
         until curl -sf http://192.0.2.77:8080/name >/dev/null; do :; done\n\
         for mode in host sandbox; do idpbuilder build -q --network=$mode --output type=local,dest=out-$mode \"$@\" .; done\n\
         kill $server\n",
    );
    let mut build = user.command("unshare");
    build.args(["-n", "-m", "bash", "-eu", "script"]).args(base_contexts());
    on_a_usual_machine(&user, "", &build).ok();
    let read = |mode: &str| {
        let text = fs::read_to_string(user.work().join(format!("out-{mode}/out"))).unwrap();
        text.lines().map(|line| line.contains("reached")).collect::<Vec<_>>()
    };
    assert_eq!(read("host"), [true; 5], "they are there");
    assert_eq!(read("sandbox"), [false, false, false, true, true]);
}

/// Kernels without rules for IPv6 cannot close its link-local addresses: a sandbox has no IPv6 there, and all else.
#[test]
fn where_ipv6_has_no_rules_a_sandbox_has_no_ipv6() {
    let (user, lan) = (User::new(), Server::at(own_address()));
    let see = "cat /proc/sys/net/ipv6/conf/all/disable_ipv6; ip -6 addr | grep -c inet6";
    user.write("Dockerfile", &format!("FROM busybox\nRUN ({see}; {}) > /out\n", ask(&lan.address)));
    let build = |prepare: &str, refuse: &[&str]| {
        let mut build = user.command("strace");
        build.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=sendto"]).args(refuse);
        build.args(["idpbuilder", "build", "--quiet", "--no-cache", "--network=sandbox"]);
        build.args(["--output", "type=local,dest=out"]).args(base_contexts()).arg(".");
        on_a_usual_machine(&user, prepare, &build)
    };
    let seen = |refuse: &[&str]| {
        build("", refuse).ok();
        fs::read_to_string(user.work().join("out/out")).unwrap()
    };
    let usual = seen(&[]);
    assert!(usual.starts_with("0\n") && usual.ends_with("reached\n"), "{usual}");
    // The message after those about routes is the rule.
    let rule = METADATA_V4.len() + METADATA_V6.len() + 1;
    let refuse = format!("inject=sendto:error=EAFNOSUPPORT:when={rule}");
    assert_eq!(seen(&["-e", &refuse]), "1\n0\nreached\n");
    // In a container that may switch nothing, there is no such network.
    let fixed = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys;";
    let words = ["no network of its own: set up the network", "--network=none", "Dockerfile:2"];
    build(fixed, &["-e", &refuse]).fails(8, &words);
}

#[test]
fn the_helper_ends_with_its_step_even_when_the_tool_is_killed() {
    let user = User::new();
    user.write("Dockerfile", "FROM busybox\nRUN echo sta''rted; sleep 1000\n");
    let mut command = user.idp();
    command.args(["--progress", "plain", "build", "--network=sandbox"]).args(base_contexts());
    command.arg(".").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let said = child.stderr.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(said));
    assert!(lines.by_ref().any(|line| line.unwrap().contains("started")), "it never started");
    let tool = child.id().to_string();
    let children = || {
        let done = Done::of(Command::new("ps").args(["--ppid", &tool, "-o", "pid=,comm="]));
        done.out
    };
    let helper = children();
    let helper = helper.lines().find(|line| line.contains("slirp4netns")).unwrap();
    let helper = helper.split_whitespace().next().unwrap().to_owned();
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    child.wait().unwrap();
    let patience = Patience::new(SOON);
    while fs::read_to_string(format!("/proc/{helper}/comm"))
        .is_ok_and(|name| name.contains("slirp"))
    {
        assert!(!patience.is_over(), "{helper} goes on");
    }
}

/// Runs a build where some programs cannot be started.
fn without(user: &User, programs: &[&str]) -> Done {
    let hidden = programs.iter().map(|name| format!("mount --bind /dev/null /usr/bin/{name}; "));
    let mut build = user.idp();
    build.args(["build", "--quiet", "--network=sandbox", "--output", "type=local,dest=out"]);
    build.args(base_contexts()).arg(".");
    on_a_usual_machine(user, &hidden.collect::<String>(), &build)
}

/// Runs a command where everybody may open `/dev/net/tun`, as distributions have it, after some preparation by root.
pub(crate) fn on_a_usual_machine(user: &User, prepare: &str, build: &Command) -> Done {
    let script = format!(
        "set -e; mknod -m 666 \"$0\" c 10 200; mount --bind \"$0\" /dev/net/tun; {prepare} exec \"$@\""
    );
    let tun = user.folder().join(format!("tun-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]).arg(tun);
    command.arg(build.get_program()).args(build.get_args());
    command.current_dir(user.work()).env_clear().stdin(Stdio::null());
    for (name, value) in build.get_envs() {
        command.env(name, value.unwrap());
    }
    Done::of(&mut command)
}

#[test]
fn without_a_helper_the_way_out_is_said() {
    let user = User::new();
    user.write("Dockerfile", "FROM busybox\nRUN true\n");
    let said = without(&user, &["slirp4netns", "pasta"])
        .fails(8, &["no network of its own", "slirp4netns", "passt", "--network=none"]);
    assert!(said.contains("Dockerfile:2"), "{said}");
}

#[test]
fn a_closed_tun_is_named_with_the_way_out() {
    let user = User::rootless();
    user.write("Dockerfile", "FROM busybox\nRUN true\n");
    let mut build = user.idp();
    build.args(["build", "--network=sandbox"]).args(base_contexts()).arg(".");
    let said = on_a_usual_machine(&user, "chmod 600 /dev/net/tun;", &build)
        .fails(8, &["/dev/net/tun: Permission denied", "chmod 666 /dev/net/tun", "Dockerfile:2"]);
    assert!(!said.contains("] done"), "before the first step\n{said}");
}

#[test]
fn as_root_pasta_carries_it_where_slirp4netns_does_not() {
    pasta_carries_it_where_slirp4netns_does_not(&User::new());
}

#[test]
fn as_an_ordinary_user_pasta_carries_it_where_slirp4netns_does_not() {
    pasta_carries_it_where_slirp4netns_does_not(&User::rootless());
}

fn pasta_carries_it_where_slirp4netns_does_not(user: &User) {
    let (lan, canary) = (Server::at(own_address()), Server::at([127, 0, 0, 1].into()));
    let text = format!(
        "FROM busybox\nRUN ({}; {}; {}; ls /sys/class/net | grep -v '^lo$') > /out\n",
        ask(&lan.address),
        ask(&canary.address),
        ask(&format!("10.0.2.2:{}", canary.port()))
    );
    user.write("Dockerfile", &text);
    without(user, &["slirp4netns"]).ok();
    let said = fs::read_to_string(user.work().join("out/out")).unwrap();
    assert_eq!(said, "reached\nno\nno\neth0\n");
    assert_eq!(canary.asked.load(Ordering::Relaxed), 0);
}

#[test]
fn names_and_resolvers_are_as_asked_for() {
    let user = User::new();
    let text = "FROM busybox\nRUN cat /etc/hosts /etc/resolv.conf > /out\n";
    let usual = out(&user, text, &[]);
    let own = fs::read_to_string("/etc/resolv.conf").unwrap();
    let hosts = "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    assert!(usual.starts_with(hosts) && usual.ends_with(&own), "{usual}");
    let flags = [
        "--add-host",
        "one:10.0.0.1",
        "--add-host=two=[2001:db8::2]",
        "--add-host",
        "me:host-gateway",
        "--dns",
        "9.9.9.9",
        "--dns",
        "2620:fe::fe",
        "--dns-search",
        "lan",
        "--dns-option",
        "ndots:2",
    ];
    let wanted = "ff02::2\tip6-allrouters\n10.0.0.1\tone\n2001:db8::2\ttwo\n127.0.0.1\tme\nsearch lan\n\
                  nameserver 9.9.9.9\nnameserver 2620:fe::fe\noptions ndots:2\n";
    assert!(out(&user, text, &flags).ends_with(wanted));
    let inside: Vec<&str> = flags.iter().copied().chain(["--network=sandbox"]).collect();
    let wanted = wanted.replace("127.0.0.1\tme", &format!("{}\tme", own_address()));
    assert!(out(&user, text, &inside).ends_with(&wanted));
    for (flag, value) in
        [("--add-host", "one"), ("--add-host", "o ne:1.2.3.4"), ("--add-host", "x:y")]
    {
        user.build(text, &[flag, value]).fails(3, &["--add-host", "for example"]);
    }
    user.build(text, &["--dns-search", "a b"]).fails(3, &["one word"]);
}

/// Names count for the result, name servers and proxies do not.
#[test]
fn the_key_counts_names_and_not_servers_or_proxies() {
    let user = User::new();
    let text = "FROM busybox\nRUN echo \"$HTTP_PROXY $http_proxy $NO_PROXY\" > /out\n";
    let built = |flags: &[&str]| {
        let flags: Vec<&str> = flags.iter().copied().chain(["-t", "demo:v1"]).collect();
        !user.build(text, &flags).err.contains("cached in")
    };
    let proxy = ["--build-arg", "HTTP_PROXY=http://user:canary@p:1", "--build-arg", "NO_PROXY=x"];
    assert!(built(&proxy));
    let history = user.run(["history", "--no-trunc", "demo:v1"]);
    let config = user.run(["inspect", "demo:v1"]).ok();
    assert!(!history.out.contains("canary") && !config.contains("canary"), "{history} {config}");
    assert!(!built(&["--build-arg", "HTTP_PROXY=http://other:2"]), "found again");
    assert!(!built(&[]), "found again");
    assert!(!built(&["--dns", "9.9.9.9"]), "found again");
    assert!(built(&["--add-host", "a:10.0.0.1"]));
    assert!(!built(&["--add-host", "a:10.0.0.1"]), "found again");
    assert!(built(&["--add-host", "a:10.0.0.2"]));
    assert!(built(&["--network=none"]));
    let said = out(&user, "FROM busybox\nRUN echo \"$HTTP_PROXY $NO_PROXY\" > /out # x\n", &proxy);
    assert_eq!(said, "http://user:canary@p:1 x\n");
}

#[test]
fn a_project_says_it_for_all_images_or_for_one() {
    let (user, _turn) = (User::new(), Turn::embedded());
    let image = |name: &str, more: &str| {
        format!(
            "image {name} {{\n    context #null\n    dockerfile inline=\"FROM busybox\\nRUN (ls /sys/class/net; \
             tail -n 1 /etc/hosts) > /out\"\n    build-context busybox=\"oci-layout://{}\"\n    output local=\"{name}\"\n    \
             {more}\n}}\n",
            bases().join("corpus/busybox").display()
        )
    };
    let text = format!(
        "defaults {{ network none; hosts one=\"10.0.0.1\" }}\n{}{}",
        image("plain", ""),
        image("own", "network sandbox; hosts two=\"10.0.0.2\"")
    );
    user.write("idpbuilder.kdl", &text);
    user.run(["run", "--progress", "quiet"]).ok();
    let read = |name: &str| fs::read_to_string(user.work().join(name).join("out")).unwrap();
    assert_eq!(read("plain"), "lo\n10.0.0.1\tone\n");
    assert_eq!(read("own"), "lo\ntap0\n10.0.0.2\ttwo\n");
    let plan = json(&user.run(["plan", "--format", "json"]).ok());
    assert_eq!(plan["images"][1]["network"]["mode"], "sandbox");
    user.write("idpbuilder.kdl", &text.replace("10.0.0.1", "nowhere"));
    user.run(["plan"]).fails(3, &["is no address", "host-gateway"]);
}

#[test]
fn a_project_names_servers_and_hosts_in_words_that_a_resolver_takes() {
    let (user, _turn) = (User::new(), Turn::embedded());
    let image = |name: &str, more: &str| {
        format!(
            "image {name} {{\n    context #null\n    dockerfile inline=\"FROM busybox\\nRUN cat /etc/resolv.conf > /out # {name}\"\n    \
             build-context busybox=\"oci-layout://{}\"\n    output local=\"{name}\"\n    {more}\n}}\n",
            bases().join("corpus/busybox").display()
        )
    };
    let defaults = "defaults { dns \"192.0.2.53\" \"2001:db8::53\" search=\"corp.example lan\" options=\"ndots:2 timeout:1\" }\n";
    let own = image("own", "dns \"192.0.2.54\" search=\".\" options=\"ndots:3\"");
    user.write("idpbuilder.kdl", &format!("{defaults}{}{own}", image("plain", "")));
    user.run(["run", "--progress", "quiet"]).ok();
    let read = |name: &str| fs::read_to_string(user.work().join(name).join("out")).unwrap();
    let servers = "nameserver 192.0.2.53\nnameserver 2001:db8::53\n";
    assert_eq!(
        read("plain"),
        format!("search corp.example lan\n{servers}options ndots:2 timeout:1\n")
    );
    assert_eq!(read("own"), "nameserver 192.0.2.54\noptions ndots:3\n");
    for (wrong, words) in [
        ("dns nowhere", ["`nowhere` is no address", "9.9.9.9"]),
        ("dns \"192.0.2.53\\nx\"", ["is no address", "by its address"]),
        ("hosts \"a b\"=\"10.0.0.1\"", ["`a b` is no host name", "letters, digits"]),
        ("hosts \"a\\n10.0.0.9 b\"=\"10.0.0.1\"", ["is no host name", "letters, digits"]),
    ] {
        user.write("idpbuilder.kdl", &image("wrong", wrong));
        user.run(["plan"]).fails(3, &words);
    }
}
