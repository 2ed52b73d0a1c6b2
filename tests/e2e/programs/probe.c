/* probe: makes system calls, each in a process of its own, and says what the kernel answered: `name answer`, one line a call.
 * Arguments are such that a call which is let through harms nothing. Then the capability sets. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char text[4096];
#define P(value) ((long)(value))
#define HERE P("/")
#define NONE P("/none")

struct call { const char *name; long number, args[6]; };

static const struct call calls[] = {
    {"bpf", 321, {0}}, {"userfaultfd", 323, {0}}, {"io_uring_setup", 425, {1}}, {"io_uring_enter", 426, {-1}},
    {"io_uring_register", 427, {-1}}, {"perf_event_open", 298, {0, 0, -1, -1}}, {"kexec_load", 246, {0, 1}},
    {"kexec_file_load", 320, {-1, -1}}, {"open_by_handle_at", 304, {-1}}, {"name_to_handle_at", 303, {-1, HERE}},
    {"mount", 165, {NONE, NONE, P("tmpfs")}}, {"umount2", 166, {NONE}}, {"move_mount", 429, {-1, HERE, -1, HERE, -1}},
    {"open_tree", 428, {-1, NONE}}, {"fsopen", 430, {P("tmpfs")}}, {"fsconfig", 431, {-1}}, {"fsmount", 432, {-1}},
    {"fspick", 433, {-1, NONE}}, {"mount_setattr", 442, {-1, NONE}}, {"pivot_root", 155, {NONE, NONE}}, {"chroot", 161, {HERE}},
    {"unshare-user", 272, {CLONE_NEWUSER}}, {"unshare-mount", 272, {CLONE_NEWNS}}, {"unshare-net", 272, {CLONE_NEWNET}},
    {"unshare-cgroup", 272, {CLONE_NEWCGROUP}}, {"unshare-pid", 272, {CLONE_NEWPID}}, {"unshare-files", 272, {CLONE_FILES}},
    {"clone-user", 56, {CLONE_NEWUSER | SIGCHLD}}, {"clone-mount", 56, {CLONE_NEWNS | SIGCHLD}},
    {"clone-net", 56, {CLONE_NEWNET | SIGCHLD}}, {"clone-pid", 56, {CLONE_NEWPID | SIGCHLD}}, {"clone", 56, {SIGCHLD}},
    {"clone3", 435, {0, 64}}, {"setns", 308, {-1}}, {"ptrace-attach", 101, {PTRACE_ATTACH, 999999}}, {"ptrace-me", 101, {PTRACE_TRACEME}},
    {"process_vm_readv", 310, {999999, P(text), 1, P(text), 1}}, {"process_vm_writev", 311, {999999, P(text), 1, P(text), 1}},
    {"personality-get", 135, {0xffffffff}}, {"personality-linux", 135, {0}}, {"personality-linux32", 135, {8}},
    {"personality-uname26", 135, {0x20000}}, {"personality-both", 135, {0x20008}}, {"personality-no-random", 135, {0x40000}},
    {"personality-bsd", 135, {6}}, {"socket-alg", 41, {38, SOCK_SEQPACKET}}, {"socket-vsock", 41, {40, SOCK_STREAM}},
    {"socket-inet", 41, {AF_INET, SOCK_STREAM}}, {"socket-icmp", 41, {AF_INET, SOCK_RAW, 1}}, {"socket-packet", 41, {AF_PACKET, SOCK_RAW}},
    {"socket-netlink", 41, {AF_NETLINK, SOCK_RAW}}, {"socket-unix", 41, {AF_UNIX, SOCK_STREAM}}, {"socket-key", 41, {15, SOCK_RAW, 2}},
    {"socket-xdp", 41, {44, SOCK_RAW}}, {"socketpair", 53, {AF_UNIX, SOCK_STREAM, 0, P(text)}}, {"syslog", 103, {3, P(text), 10}},
    {"quotactl", 179, {-1, NONE}}, {"quotactl_fd", 443, {-1}}, {"keyctl", 250, {0, -3}}, {"add_key", 248, {NONE, NONE}},
    {"request_key", 249, {P("user"), P("none")}}, {"acct", 163, {NONE}}, {"swapon", 167, {NONE}}, {"swapoff", 168, {NONE}},
    {"reboot", 169, {0}}, {"sethostname", 170, {P("x"), -1}}, {"setdomainname", 171, {P("x"), -1}}, {"init_module", 175, {P(text), 1, P("")}},
    {"finit_module", 313, {-1, P("")}}, {"delete_module", 176, {P("no-such")}}, {"create_module", 174, {0}}, {"iopl", 172, {4}},
    {"ioperm", 173, {-1, 1, 1}}, {"kcmp", 312, {999999, 999999}}, {"lookup_dcookie", 212, {0}}, {"mbind", 237, {1}}, {"get_mempolicy", 239, {0}},
    {"set_mempolicy", 238, {-1}}, {"migrate_pages", 256, {-1}}, {"move_pages", 279, {999999, 1}}, {"nfsservctl", 180, {0}},
    {"uselib", 134, {NONE}}, {"_sysctl", 156, {0}}, {"sysfs", 139, {3}}, {"ustat", 136, {0}}, {"vhangup", 153, {0}},
    {"settimeofday", 164, {P(text), 1}}, {"clock_settime", 227, {-1, P(text)}}, {"clock_adjtime", 305, {0, 0}}, {"adjtimex", 159, {P(text)}},
    {"modify_ldt", 154, {0, P(text), 16}}, {"arch_prctl", 158, {0x1003, P(text)}}, {"fanotify_init", 300, {0}}, {"fanotify_mark", 301, {-1}},
    {"landlock_create_ruleset", 444, {0, 0, 1}}, {"memfd_secret", 447, {0}}, {"memfd_create", 319, {P("x")}}, {"pidfd_open", 434, {1}},
    {"pidfd_getfd", 438, {-1}}, {"process_madvise", 440, {-1}}, {"process_mrelease", 448, {-1}}, {"seccomp", 317, {2, 0, P(text)}},
    {"getrandom", 318, {P(text), 8}}, {"rseq", 334, {0, 0, 9}}, {"sched_setscheduler", 144, {0, 0, P(text)}}, {"sched_rt", 144, {0, 1, P("\1\0\0")}},
    {"nice", 141, {0, 0, -5}}, {"ioprio_set", 251, {1, 0, 0x2000}}, {"mlock", 149, {P(text), 1}}, {"capget", 125, {0}},
    {"setuid", 105, {0}}, {"setgroups", 116, {0}}, {"mknod-char", 133, {P("/tmp/probe"), S_IFCHR | 0600, 0x103}},
    {"mknod-fifo", 133, {P("/tmp/pipe"), S_IFIFO | 0600}}, {"statx", 332, {AT_FDCWD, HERE, 0, 0, P(text)}},
    {"openat2", 437, {AT_FDCWD, HERE, P(text), 24}}, {"faccessat2", 439, {AT_FDCWD, HERE, 0, 0}}, {"close_range", 436, {1000, 1001}},
    {"epoll_pwait2", 441, {-1}}, {"futex_waitv", 449, {0}}, {"set_mempolicy_home_node", 450, {0}}, {"cachestat", 451, {-1}},
    {"fchmodat2", 452, {-1, NONE}}, {"map_shadow_stack", 453, {0}}, {"futex_wake", 454, {0}}, {"statmount", 457, {0}},
    {"listmount", 458, {0}}, {"lsm_get_self_attr", 459, {0}}, {"mseal", 462, {1}}, {"setxattrat", 463, {-1}},
    {"copy_file_range", 326, {-1, 0, -1}}, {"splice", 275, {-1, 0, -1, 0, 1}}, {"vmsplice", 278, {-1}}, {"preadv2", 327, {-1}},
    {"pkey_alloc", 330, {0, 9}}, {"membarrier", 324, {0}}, {"remap_file_pages", 216, {0}}, {"readahead", 187, {-1}}, {"sync_file_range", 277, {-1}},
    {"unknown-1000", 1000, {0}}, {"unknown-600", 600, {0}}, {"x32-getpid", 0x40000000 | 39, {0}}, {"x32-mount", 0x40000000 | 165, {NONE, NONE}},
};

/* 32-bit calls by the old gate, whose numbers mean something else. */
static const struct call old_calls[] = {
    {"i386-getpid", 20, {0}}, {"i386-mount", 21, {0}}, {"i386-unshare", 310, {0x10000000}}, {"i386-keyctl", 288, {0}},
    {"i386-socket-alg", 359, {38, 5}}, {"i386-clone3", 435, {0, 64}}, {"i386-ptrace", 26, {16, 999999}}, {"i386-swapoff", 115, {0}},
};

static long gate(const struct call *call) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result)
                     : "a"(call->number), "b"(call->args[0]), "c"(call->args[1]), "d"(call->args[2]), "S"(0), "D"(0)
                     : "memory", "r8", "r9", "r10", "r11");
    return result;
}

static void report(const char *name, int status) {
    if (WIFSIGNALED(status)) printf("%s signal %d\n", name, WTERMSIG(status));
    else if (WEXITSTATUS(status) == 0) printf("%s OK\n", name);
    else printf("%s %s\n", name, strerrorname_np(WEXITSTATUS(status)) ? strerrorname_np(WEXITSTATUS(status)) : "?");
    fflush(stdout);
}

static void try(const struct call *call, int old) {
    pid_t self = getpid();
    pid_t child = fork();
    if (child == 0) {
        if (old) {
            long result = gate(call);
            _exit(result < 0 && result > -4096 ? (int)-result : 0);
        }
        const long *a = call->args;
        long result = syscall(call->number, a[0], a[1], a[2], a[3], a[4], a[5]);
        _exit(result < 0 ? errno : 0);
    }
    int status;
    waitpid(child, &status, 0);
    if (getpid() == self) report(call->name, status);
}

int main(void) {
    for (size_t n = 0; n < sizeof calls / sizeof *calls; n++) try(&calls[n], 0);
    for (size_t n = 0; n < sizeof old_calls / sizeof *old_calls; n++) try(&old_calls[n], 1);
    FILE *status = fopen("/proc/self/status", "r");
    char line[256], name[64], value[64];
    while (fgets(line, sizeof line, status))
        if ((!strncmp(line, "Cap", 3) || !strncmp(line, "NoNewPrivs", 10) || !strncmp(line, "Seccomp:", 8)) && sscanf(line, "%63s %63s", name, value) == 2)
            printf("%s %s\n", name, value);
    return 0;
}
