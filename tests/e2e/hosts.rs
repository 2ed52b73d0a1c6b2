//! Where and by whom an image is built changes no byte of it (C18, guarantee 11).

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use crate::support::{Done, User, base_contexts, copy_program, ordinary_user};

/// Each makes layers in another way.
const DOCKERFILES: [&str; 3] = [
    // Trees, owners, archives, links, heredocs.
    r#"FROM busybox AS made
WORKDIR /srv/app
COPY --chown=app:staff tree/ tree/
ADD tree.tar /unpacked/
COPY --chmod=u=rwX,go= tree/b /own/b
COPY --parents tree/sub/*.txt /parents/
COPY <<one <<two /docs/
1
one
2
two
FROM busybox
COPY --link --from=made /srv /srv
COPY --from=made / /all
"#,
    // What a process sees and makes. It does not write to a set-user-ID file: the bit stays for root, and the kernel takes
    // it where root is one of a user namespace (`file_remove_privs`).
    r#"FROM busybox
WORKDIR /work
RUN hostname > host && umask > umask && date +%Z > zone && id > id && env | sort > env && pwd > pwd
RUN mkdir -p d/e && touch d/e/f && ln d/e/f d/g && mkfifo p && chmod 2775 d && chown 33:50 d d/g && ls -ln d | awk '{ print $1, $3, $4 }' > listed
RUN --mount=type=bind,source=tree,target=/in --mount=type=tmpfs,target=/t cp -r /in/sub/. /t && cp /t/b.txt b && ls -la /t | awk 'NR > 1 { print $1, $9 }' | sort > modes
USER app
RUN mkdir ~/mine && umask 027 && echo x > ~/mine/x && ls -ld ~/mine | cut -c1-10 > /tmp/mode
"#,
    // The context whole, and the same again on nothing.
    "FROM scratch\nCOPY . /context/\nFROM scratch\nCOPY --from=0 /context/tree /again/\nADD --chown=5:6 tree.tar tree /merged/\n",
];

/// One place to build at.
struct Host {
    umask: &'static str,
    file_system: &'static str,
    user: Option<(u32, u32)>,
    /// The rest varies with this number.
    number: usize,
}

impl Host {
    /// Every mask on every file system by both users, each with one locale and time zone. The whole product, each of
    /// them with both of both: `IDPB_HOSTS=4 cargo test --test e2e c18_where`.
    fn all() -> Vec<Self> {
        let rounds = std::env::var("IDPB_HOSTS").map_or(1, |rounds| rounds.parse().unwrap());
        let users = [None, Some(ordinary_user())].into_iter();
        let places = users.flat_map(|user| ["disk", "tmpfs", "ext4"].map(|place| (user, place)));
        let masked =
            places.flat_map(|place| ["000", "022", "027", "077"].map(|mask| (place, mask)));
        let once: Vec<_> = masked.collect();
        let mut all = Vec::new();
        for round in 0..rounds {
            for ((user, file_system), umask) in &once {
                // The lowest bits are those of zone and locale: each round turns them another way.
                let number = all.len() ^ round;
                all.push(Self { umask, file_system, user: *user, number });
            }
        }
        all
    }

    fn is(&self, every: usize) -> bool {
        (self.number / every) % 2 == 1
    }

    /// The script that makes the place, in namespaces of its own, and prints one digest a Dockerfile. Nothing is left
    /// of its mounts when it ends.
    fn script(&self) -> String {
        let mount = match self.file_system {
            "disk" => String::new(),
            "tmpfs" => "mount -t tmpfs -o mode=755 none place".to_owned(),
            // Directories of ext4 are read in the order of a hash with a seed of the file system's own.
            _ => "truncate -s 96M image; mkfs.ext4 -q image; mount -o loop image place; rm -r place/lost+found".to_owned(),
        };
        let mut steps =
            vec!["mkdir place".to_owned(), mount, format!("hostname host{}", self.number)];
        if self.is(2) {
            // What is made here gets the group 4242 and hands it on.
            steps.push("chgrp 4242 place; chmod 2775 place".to_owned());
        }
        if self.is(3) {
            steps.push(
                "python3 -c 'import os, struct; e = lambda *a: struct.pack(\"<HHI\", *a); n = 0xffffffff; \
                 os.setxattr(\"place\", \"system.posix_acl_default\", struct.pack(\"<I\", 2) + \
                 e(1, 7, n) + e(2, 7, 4343) + e(4, 5, n) + e(16, 7, n) + e(32, 5, n))'"
                    .to_owned(),
            );
        }
        steps.push("mkdir place/context place/home; cd place".to_owned());
        let order = if self.is(1) { "sort -r" } else { "sort" };
        // Modes are the context's own; owners, order and dates are the host's.
        steps.push(format!(
            "list() {{ (cd ../../context; find . -mindepth 1 $@); }}; \
             list -type d | sort | while read -r d; do mkdir context/$d; done; \
             list ! -type d | {order} | while read -r f; do cp -d --preserve=links ../../context/$f context/$f; done; \
             ln context/tree/a context/tree/hard"
        ));
        if let Some((user, group)) = self.user {
            steps.push(format!("chown -R {user}:{group} home context"));
        }
        // With more than four digits the special bits of folders are set as well. A set-group-ID folder makes others.
        steps.push(
            "list ! -type l | while read -r f; do chmod 00$(stat -c %a ../../context/$f) context/$f; done; chmod 00755 context"
                .to_owned(),
        );
        if self.number.is_multiple_of(3) {
            steps.push("python3 -c 'import os; [os.setxattr(p, \"user.note\", b\"x\") for p in (\"context/tree\", \"context/tree/a\", \"context/tree/sub\")]'".to_owned());
        }
        steps.join("\n")
    }
}

/// Prints digests of all Dockerfiles, by the binary at `$idp`; `$@` are flags.
const BUILDS: &str = r#"
umask $mask
for n in 0 1 2; do
  $as env -i PATH=/usr/bin:/bin HOME=/nowhere LC_ALL=$locale TZ=$zone IDPBUILDER_HOME=$PWD/home \
    $idp build -q -j $jobs -t demo:$n -f $files/Dockerfile$n "$@" context >&2
  $as env -i PATH=/usr/bin:/bin HOME=/nowhere IDPBUILDER_HOME=$PWD/home $idp images --format '{{.Digest}}' demo:$n
done
"#;

fn digests(host: &Host, user: &User) -> Vec<String> {
    let folder = user.folder();
    let (jobs, locale) = if host.is(2) { (1, "tr_TR.UTF-8") } else { (8, "C") };
    let zone = if host.is(1) { "Pacific/Kiritimati" } else { "America/St_Johns" };
    let words =
        |(uid, gid): (u32, u32)| format!("setpriv --reuid {uid} --regid {gid} --clear-groups");
    let place = folder.join(format!("host{}", host.number));
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
    let text = format!("{}\n{BUILDS}", host.script());
    let mut command = user.command("unshare");
    command.args(["--mount", "--uts", "bash", "-euc", &text, "host"]).args(base_contexts());
    command.current_dir(&place).env("mask", host.umask).env("jobs", jobs.to_string());
    command.env("locale", locale).env("zone", zone).env("files", folder);
    command
        .env("as", host.user.map(words).unwrap_or_default())
        .env("idp", folder.join("idpbuilder"));
    let found = Done::of(&mut command).ok().lines().map(str::to_owned).collect();
    fs::remove_dir_all(place).unwrap();
    found
}

#[test]
fn c18_where_and_by_whom_an_image_is_built_changes_no_byte() {
    let user = User::new();
    let folder = user.folder();
    // The ordinary user reads what lies here.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    copy_program(crate::support::binary(), &folder.join("idpbuilder"));
    for (number, text) in DOCKERFILES.iter().enumerate() {
        fs::write(folder.join(format!("Dockerfile{number}")), text).unwrap();
    }
    let context = "mkdir -p context/tree/sub/deep context/tree/empty; cd context; chmod 2755 tree/empty; \
                   for n in a b c ä z Z 10 9 .hidden; do echo $n > tree/$n; echo $n > tree/sub/$n.txt; done; \
                   chmod 4755 tree/c; chmod 600 tree/b; chmod 755 tree/sub/a.txt; ln -s ../a tree/sub/link; ln -s /nowhere tree/dangling; \
                   tar --sort=name --owner=7:7 --group=8:8 --mtime=@1500000000 -cf tree.tar tree";
    let made = user.command("bash").args(["-euc", context]).current_dir(folder).status();
    assert!(made.unwrap().success());
    let mut found: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
    for host in Host::all() {
        let digests = digests(&host, &user);
        assert_eq!(digests.len(), DOCKERFILES.len());
        let who = if host.user.is_some() { "ordinary user" } else { "root" };
        let name = format!("{} umask {} {} by {who}", host.number, host.umask, host.file_system);
        found.entry(digests).or_default().push(name);
    }
    assert_eq!(found.len(), 1, "other bytes: {found:#?}");
}
