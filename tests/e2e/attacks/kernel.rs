//! S19 to S23 and S33: keyrings, terminals, kernel switches, control groups, devices, and the sandbox's own processes.

use std::fs;

use super::{everywhere, said};
use crate::support::{Done, images};

/// Keys of the session that the build was started in.
#[test]
fn s19_keys_of_the_caller_are_out_of_reach() {
    everywhere("S19", |attack| {
        attack
            .user
            .write("Dockerfile", "FROM base\nRUN attack keys; cat /proc/keys /proc/key-users\n");
        let mut command = attack.user.command(images::compiled("attack", attack.user.folder()));
        command.args([
            "with-key",
            &attack.canary.token,
            "idpbuilder",
            "--progress",
            "plain",
            "build",
        ]);
        let done = attack.heard(Done::of(command.args(attack.flags()).arg(".")));
        let said = said(&done);
        for call in ["get-session", "add", "request"] {
            let refused = [format!("{call} EPERM"), format!("{call} ENOSYS")];
            assert!(refused.iter().any(|line| said.contains(line)), "{done}");
        }
        "EPERM"
    });
}

/// Letters put into the terminal that the build was started from.
#[test]
fn s20_the_terminal_of_the_caller_gets_no_letters() {
    everywhere("S20", |attack| {
        attack.user.write("Dockerfile", "FROM base\nRUN attack type\n");
        let build = format!(
            "idpbuilder --progress plain build {} . 2>err; read -t 0.2 -n 1 letter; echo \"letter:$letter.\"",
            attack.flags().join(" ")
        );
        // `script` gives the shell a terminal.
        let done = attack.heard(Done::of(
            attack
                .user
                .command("script")
                .args(["-qec", &build, "/dev/null"])
                .env("SHELL", "/bin/bash"),
        ));
        assert!(done.out.contains("letter:."), "{done}");
        let heard = fs::read_to_string(attack.user.work().join("err")).unwrap();
        for call in ["tiocsti", "tioclinux"] {
            assert!(
                heard.contains(&format!("{call} ENOTTY")) && !heard.contains(&format!("{call} OK")),
                "{heard}"
            );
        }
        assert!(heard.contains("open-tty ENXIO"), "{heard}");
        "no controlling terminal"
    });
}

/// Switches and tables of the kernel.
#[test]
fn s21_switches_of_the_kernel_are_masked_or_read_only() {
    everywhere("S21", |attack| {
        let writes = "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sys/vm/drop_caches /proc/sysrq-trigger \
            /proc/irq/default_smp_affinity /proc/fs/x /proc/bus/x /proc/irq/x /sys/x /sys/kernel/uevent_helper \
            /sys/fs/cgroup/x /sys/fs/cgroup/cgroup.procs; do (echo x > $f) 2>&1 && echo WRITTEN $f; done | grep -c WRITTEN; true";
        assert_eq!(attack.says("base", writes), "0\n");
        let reads = "for f in acpi asound interrupts kcore keys latency_stats timer_list timer_stats sched_debug scsi; do \
            [ -d /proc/$f ] && ls /proc/$f; [ -f /proc/$f ] && cat /proc/$f; [ -c /proc/$f ] && cat /proc/$f; done; \
            ls /sys/firmware /sys/devices/virtual/powercap 2>/dev/null | grep -v : ; \
            ls /sys/devices/system/cpu/cpu*/thermal_throttle 2>/dev/null | grep -v : ; true";
        assert_eq!(attack.says("base", reads).trim(), "");
        let mounted = attack.says(
            "base",
            "grep -E ' /proc/(bus|fs|irq|sys|sysrq-trigger) ' /proc/self/mountinfo | cut -d' ' -f6",
        );
        assert!(
            mounted.lines().count() >= 4 && mounted.lines().all(|flags| flags.starts_with("ro,")),
            "{mounted}"
        );
        "read-only or empty"
    });
}

/// CVE-2022-0492: a program that the kernel starts when a control group is empty.
#[test]
fn s22_control_groups_cannot_be_mounted_or_left() {
    everywhere("S22", |attack| {
        let script = "mkdir /g; for o in '' '-o memory' '-o rdma' '-o none,name=x'; do mount -t cgroup $o none /g 2>&1 && echo MOUNTED; done; \
            mount -t cgroup2 none /g 2>&1 && echo MOUNTED; mount -o remount,rw /sys/fs/cgroup 2>&1 && echo MOUNTED; \
            unshare -m true 2>&1 && echo MOUNTED; unshare -Urm true 2>&1 && echo MOUNTED; \
            (find / -xdev -name release_agent -o -name cgroup.procs; find /sys -name release_agent -o -name cgroup.procs) | \
            while read f; do (echo x > $f) 2>&1 && echo WRITTEN; done; true";
        let said = attack.says("base", script);
        assert!(!said.contains("MOUNTED") && !said.contains("WRITTEN"), "{said}");
        assert!(said.matches("ermi").count() >= 8, "{said}");
        "EPERM and EROFS"
    });
}

/// Devices of the machine.
#[test]
fn s23_devices_cannot_be_opened() {
    everywhere("S23", |attack| {
        let script = "cd /root; mknod disk b 254 0; mknod disk8 b 8 0; mknod mem c 1 1; mknod kvm c 10 232; mknod fuse c 10 229; \
            mknod loop c 10 237; mknod port c 1 4; mknod mine c 1 3; \
            attack open disk disk8 mem kvm fuse loop port mine /dev/kvm /dev/fuse /dev/loop-control /dev/mem /dev/sda /dev/vda; \
            dd if=disk bs=1 count=1; rm -f disk disk8 mem kvm fuse loop port mine; true";
        let said = attack.says("base", script);
        let opened: Vec<_> = said.lines().filter(|line| line.ends_with(" OK")).collect();
        assert!(opened.is_empty(), "{opened:?}");
        assert!(
            said.lines()
                .filter(|line| line.starts_with("/dev/") && line.ends_with("ENOENT"))
                .count()
                >= 4,
            "{said}"
        );
        let shared = attack.says(
            "base",
            "--mount=type=tmpfs,target=/m cd /m; mknod mem c 1 1; attack open mem; true",
        );
        assert!(shared.contains("mem E") && !shared.contains("mem OK"), "{shared}");
        "EACCES and ENOENT"
    });
}

/// The processes that keep the process.
#[test]
fn s33_the_keepers_of_a_process_are_out_of_its_reach() {
    everywhere("S33", |attack| {
        let said = attack.says(
            "base",
            "attack keepers; kill -9 1; kill -9 -1; echo alive; ls /proc | grep -c '^[0-9]'",
        );
        for call in ["ptrace", "seize", "readv", "writev", "mem", "exe", "root", "cwd"] {
            let refused = ["EPERM", "EACCES", "ESRCH"].map(|errno| format!("{call} {errno}\n"));
            assert!(refused.iter().any(|line| said.contains(line)), "{call}: {said}");
        }
        assert!(said.contains("alive\n"), "{said}");
        let processes: u32 = said.lines().filter_map(|line| line.parse().ok()).next().unwrap();
        assert!(processes < 8, "processes of the machine are seen: {said}");
        // The tool and the machine went on: another build works.
        let done = attack.build("FROM base\nRUN echo x > /proc/1/oom_score_adj; echo x > /proc/self/oom_score_adj; true\n");
        assert_eq!(done.code, 0, "{done}");
        "own namespace only"
    });
}
