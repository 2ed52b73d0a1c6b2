//! What ordinary users can do, and what the death of the tool does: tried in forked processes.

#![expect(unsafe_code, reason = "forks, and becomes somebody else in the child")]

use std::{
    io::{Read as _, Write as _},
    os::fd::AsRawFd,
};

use rustix::event::{PollFd, PollFlags};

use super::*;

/// Closes what other tests have open: their locks, connections and pipes end when they say so.
fn close_all_but(kept: &impl AsRawFd) {
    let kept = u32::try_from(kept.as_raw_fd()).unwrap();
    if kept > 3 {
        sys::close_range(3, kept - 1).unwrap();
    }
    sys::close_range(kept + 1, u32::MAX).unwrap();
}

/// What `work` says in a forked process, which may become somebody else for it. Panics come back.
fn in_child(work: impl FnOnce() -> String) -> String {
    let (mut read, mut write) = std::io::pipe().unwrap();
    // SAFETY: the C library's fork makes its allocator fit for use in the child.
    match unsafe { libc::fork() } {
        0 => {
            close_all_but(&write);
            let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let said = said.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                format!("panic: {}", text.unwrap_or_default())
            });
            write.write_all(said.as_bytes()).unwrap_or(());
            sys::exit(0)
        }
        child => {
            drop(write);
            let mut said = String::new();
            read.read_to_string(&mut said).unwrap();
            sys::wait(child).unwrap();
            said
        }
    }
}

const USER: u32 = 1234;

/// From now on, nobody else mounts here.
fn have_own_mounts() {
    // SAFETY: one thread, and everything it has is its own.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    use rustix::mount::MountPropagationFlags as Propagation;
    rustix::mount::mount_change("/", Propagation::PRIVATE | Propagation::REC).unwrap();
}

/// Becomes an ordinary user, with these subordinate ids in a private `/etc`.
fn become_ordinary(place: &Place, subordinate: &str) {
    let table = place.path("subid");
    fs::write(&table, subordinate).unwrap();
    let users = place.path("passwd");
    fs::write(&users, "root:x:0:0::/:/bin/sh\nordinary:x:1234:1234::/:/bin/sh\n").unwrap();
    // Ids that are not mapped could not be copied up.
    for name in tree(&place.path("")).iter().map(String::as_str).chain([""]) {
        std::os::unix::fs::lchown(place.path(name), Some(USER), Some(USER)).unwrap();
    }
    have_own_mounts();
    for (source, target) in
        [(&table, "/etc/subuid"), (&table, "/etc/subgid"), (&users, "/etc/passwd")]
    {
        rustix::mount::mount_bind(source, target).unwrap();
    }
    sys::set_groups(&[], USER).unwrap();
    sys::set_user(USER).unwrap();
    sys::prctl(libc::PR_SET_DUMPABLE, 1, 0).unwrap();
}

#[test]
fn an_ordinary_user_with_subordinate_ids_is_root_with_many_ids() {
    let place = Place::new();
    let said = in_child(|| {
        become_ordinary(&place, "1234:200000:65536\n");
        assert_eq!(enter(None), Privilege::Mapped);
        assert_eq!(enter(None), Privilege::Mapped);
        let found = probe(&place.path(""), &Wanted::default());
        assert_eq!((found.run, found.snapshotter), (Ok(()), Snapshotter::Overlay));
        let mut spec = place.shell(
            "id -u; grep -E 'CapBnd|CapEff' /proc/self/status; \
             echo x > /tmp/x; busybox chown 1000:1000 /tmp/x; busybox rm -rf /root",
        );
        let mut said = says(&spec);
        spec.network = NetworkMode::Host;
        spec.uid = 1000;
        spec.argv[2] = "id -u; ls /sys/class/net | grep -c lo".to_owned();
        said += &says(&spec);
        said
    });
    assert_eq!(said, "0\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n1000\n1\n");
    let owner = fs::metadata(place.upper().join("tmp/x")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (200_999, 200_999));
}

#[test]
fn an_ordinary_user_without_subordinate_ids_is_root_in_name() {
    let place = Place::new();
    let said = in_child(|| {
        become_ordinary(&place, "");
        assert_eq!(enter(None), Privilege::SingleId);
        let found = probe(&place.path(""), &Wanted::default());
        assert_eq!((found.run, found.snapshotter), (Ok(()), Snapshotter::Overlay));
        assert!(found.notes.iter().any(|note| note.contains("uidmap")), "{:?}", found.notes);
        // What dpkg and apt do: answered with success.
        let mut spec = place.shell(
            "echo x > /tmp/x && busybox chown 1000:1000 /tmp/x && mknod /tmp/pipe p && id -u",
        );
        let mut said = says(&spec);
        spec.uid = 1000;
        spec.argv[2] = "id -u".to_owned();
        said += &says(&spec);
        said
    });
    assert_eq!(said, "0\n0\n");
    assert_eq!(fs::metadata(place.upper().join("tmp/x")).unwrap().uid(), USER);
}

#[test]
fn s34_no_descriptor_is_left_open() {
    let place = Place::new();
    let said = in_child(|| {
        let count = || fs::read_dir("/proc/self/fd").unwrap().count();
        let spec = place.shell("exit 1");
        hear(&spec);
        let before = count();
        for _ in 0..10 {
            hear(&spec);
            fails(&place.spec(&["/nowhere"]));
        }
        format!("{}", count() - before)
    });
    assert_eq!(said, "0");
}

/// The tool is killed when it has just started a process, which had no time to ask to be told of that.
#[test]
fn s34_a_process_whose_tool_is_gone_already_does_nothing() {
    for isolation in [Isolation::Full, Isolation::Chroot] {
        let place = Place::new();
        let spec = ProcessSpec { isolation, ..place.shell("true") };
        let (streams, ears) = outside::streams().unwrap();
        drop(ears);
        let plan = prepare::plan(&spec, streams, cgroup::Cgroup::default()).unwrap();
        let told = sys::SharedMemory::<told::Told>::new().unwrap();
        let process = outside::start(&plan, told.get()).unwrap();
        let mut ended = [PollFd::new(process.descriptor(), PollFlags::IN)];
        rustix::event::poll(&mut ended, None).unwrap();
        assert_eq!(told.get().ended(), None, "{isolation:?}: it ran");
        assert!(told.get().failure().is_none(), "{isolation:?}: it went on");
    }
}

#[test]
fn s34_what_holds_a_user_namespace_and_what_helps_end_with_the_tool() {
    let (end, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    // SAFETY: the child makes system calls alone.
    let holder = match unsafe { libc::fork() } {
        0 => userns::hold(&end),
        holder => holder,
    };
    // Its own copy, and those of processes that are started by other tests just now, are closed.
    drop(held);
    sys::wait(holder).unwrap();
    let us = rustix::process::getpid();
    let said = in_child(|| {
        format!("{:?} {:?}", sys::end_with(us), sys::end_with(rustix::process::Pid::INIT))
    });
    assert_eq!(said, format!("Ok(()) {:?}", Err::<(), _>(rustix::io::Errno::SRCH)));
}

/// Without a descriptor to look with, everything seems to be gone.
#[test]
fn who_cannot_look_takes_no_group_away() {
    let said = in_child(|| {
        let ours = cgroup::own_name();
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, none).unwrap();
        cgroup::is_left_over(&ours).to_string()
    });
    assert_eq!(said, "false");
}

#[test]
fn s34_two_hundred_runs_leave_no_mount() {
    let place = Place::new();
    let said = in_child(|| {
        have_own_mounts();
        // Without the options, which change when a disk that is mounted elsewhere, too, does.
        let mounts = || {
            let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let what = |line: &str| line.split(' ').take(5).collect::<Vec<_>>().join(" ");
            text.lines().map(what).collect::<Vec<_>>()
        };
        let spec = place.spec(&["/bin/busybox", "true"]);
        says(&spec);
        let before = mounts();
        for _ in 0..200 {
            says(&spec);
        }
        assert_eq!(before, mounts());
        "none".to_owned()
    });
    assert_eq!(said, "none");
    assert_eq!(tree(&place.upper()), Vec::<String>::new());
}

#[test]
fn s34_the_death_of_the_tool_takes_the_process_with_it() {
    let place = Place::new();
    let marker = place.upper().join("tmp/started");
    let (mut read, write) = std::io::pipe().unwrap();
    // SAFETY: the C library's fork makes its allocator fit for use in the child.
    let tool = match unsafe { libc::fork() } {
        0 => {
            close_all_but(&write);
            // Held by the process through its output: closed when the last of it is gone.
            let spec = place.shell("echo > /tmp/started; sleep 1000");
            drop(run(&spec, &mut |_, _| {}, &flag()));
            drop(write);
            sys::exit(0)
        }
        child => child,
    };
    drop(write);
    while !marker.exists() {
        std::thread::yield_now();
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(tool).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    sys::wait(tool).unwrap();
    let mut rest = Vec::new();
    read.read_to_end(&mut rest).unwrap();
    // Nobody has the overlay any more: its folder is no longer in any process's mounts.
    let begun = Instant::now();
    let upper = place.upper().display().to_string();
    loop {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mounts = processes.filter_map(|p| fs::read_to_string(p.path().join("mountinfo")).ok());
        if !mounts.into_iter().any(|text| text.contains(&upper)) {
            break;
        }
        assert!(begun.elapsed() < SOON, "still mounted");
    }
}
