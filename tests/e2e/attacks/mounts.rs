//! S10 to S13: what mounts of a RUN are asked to do.

use std::fs;

use super::{everywhere, said};
use crate::support::images::Tar;

/// CVE-2024-9675: names and sources of caches that lead out of the cache.
#[test]
fn s10_cache_mounts_stay_below_the_store() {
    everywhere("S10", |attack| {
        let (long, file) = ("0".repeat(300), attack.canary.at("file"));
        let up = "../../../../../../../..";
        for options in [
            "id=../../etc".to_owned(),
            "id=/etc".to_owned(),
            format!("id={long}"),
            "id=..".to_owned(),
            "id=x,source=../../..".to_owned(),
            "id=y,source=/".to_owned(),
            format!("id=z,source={up}{}", attack.canary.path().display()),
            format!("id=z,from=base,source={up}{}", attack.canary.path().display()),
            "\"id=a\u{1}b\"".to_owned(),
            "\"id=a\\nb\"".to_owned(),
        ] {
            let text = format!(
                "FROM base\nRUN --mount=type=cache,target=/c,{options} echo x > /c/x; cat /c/file /c/{up}{file}; ls /c\n"
            );
            let done = attack.build_with(&text, &["--no-cache"]);
            let contained = done.code == 0 && said(&done).ends_with("x\n");
            assert!(
                contained || (done.code != 70 && !done.err.contains("panicked")),
                "{options}: {done}"
            );
        }
        let folder = attack.user.home().join("images/cache-mounts");
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        // Beside the caches lies the lock that all of them are taken under.
        let caches: Vec<_> = entries.filter(|entry| entry.path().is_dir()).collect();
        assert!(!caches.is_empty());
        for cache in caches {
            let name = cache.file_name().into_string().unwrap();
            let hash = name.split('-').next().unwrap();
            assert!(
                hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{name} is no hash"
            );
        }
        "named by hashes, or refused"
    });
}

/// CVE-2024-1753: the source of a bind is a link to the root of the host.
#[test]
fn s11_sources_of_binds_are_found_within_their_image() {
    everywhere("S11", |attack| {
        let (file, dir) = (attack.canary.at("file"), attack.canary.at("dir"));
        for target in
            ["/", "/proc/1/root", "../../../..", "/proc/self/cwd", "/proc/self/fd/3", &dir]
        {
            attack.evil(Tar::new().link("l", target));
            let text = format!(
                "FROM base\nRUN --mount=type=bind,from=evil,source=/l,target=/m,rw ls /m/; cat /m{file} /m/file /m/ptmx; \
                 rm -rf /m{dir}; touch /m{dir} /m/x; true\n"
            );
            let done = attack.build_with(&text, &["--no-cache"]);
            assert!(
                [0, 1, 3].contains(&done.code) && !done.err.contains("panicked"),
                "{target}: {done}"
            );
            for source in
                [format!("/l{file}"), format!("/../../../../../..{file}"), "/l/..".to_owned()]
            {
                let text = format!(
                    "FROM base\nRUN --mount=type=bind,from=evil,source={source},target=/m cat /m /m/file; true\n"
                );
                attack.build_with(&text, &["--no-cache"]);
            }
        }
        "resolved within the image"
    });
}

/// CVE-2024-9407: options of mounts that would weaken them.
#[test]
fn s12_options_of_mounts_that_are_unknown_are_refused() {
    everywhere("S12", |attack| {
        for option in [
            "bind-propagation=shared",
            "rw,dev,suid",
            "suid",
            "dev",
            "exec",
            "propagation=rshared",
            "z",
            "volume-driver=x",
            "mode=0777",
            "type=bind,type=tmpfs",
        ] {
            let text = format!("FROM base\nRUN --mount=type=bind,target=/m,{option} true\n");
            let known_to_docker = option.starts_with("type=");
            if known_to_docker {
                assert_ne!(attack.build(&text).code, 70);
            } else {
                attack.refused(
                    &text,
                    &[option.split(['=', ',']).find(|word| *word != "rw").unwrap()],
                );
            }
        }
        for kind in ["cache", "tmpfs", "bind,rw"] {
            let said = attack.says(
                "base",
                &format!("--mount=type={kind},target=/m grep ' /m ' /proc/self/mountinfo"),
            );
            let flags = said.split(' ').nth(5).unwrap().to_owned();
            assert!(flags.contains("nosuid") && flags.contains("nodev"), "{kind}: {said}");
        }
        "refused; nosuid and nodev"
    });
}

/// CVE-2024-23652: cleaning up behind a process that replaced its mount point.
#[test]
fn s13_nothing_of_the_host_is_cleaned_up() {
    everywhere("S13", |attack| {
        let dir = attack.canary.at("dir");
        for script in [
            format!("mv /a /gone; ln -s {dir} /a"),
            format!("mv /a/b /gone; ln -s {dir} /a/b; ls -d /a/b"),
            format!("cd /; mv a gone; ln -s ../../../../../../..{dir} a"),
            format!("mkdir /n; mv /a /n/; ln -s {dir} /a"),
        ] {
            let text = format!("FROM base\nRUN --mount=target=/a/b rm -rf /a; {script}; true\n");
            let done = attack.build_with(&text, &["--no-cache", "--output", "type=local,dest=out"]);
            assert_eq!(done.code, 0, "{done}");
        }
        let clean = "FROM base\nRUN --mount=target=/a/b --mount=type=tmpfs,target=/e/f --mount=type=cache,target=/g true\n";
        attack.build_with(clean, &["--output", "type=local,dest=clean"]).ok();
        for name in ["a", "e", "g"] {
            assert!(
                !attack.user.work().join("clean").join(name).exists(),
                "a stub of {name} is in the image"
            );
        }
        "canary kept, no stub in the image"
    });
}
