#!/bin/sh
# Process 1 of a virtual machine: mounts what a bare system has, then does the scripts that come over the second serial
# line, each a line of base64, and answers with exit code, output and errors.
export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
ifconfig lo 127.0.0.1
hostname machine
# Modules are loaded by the tests.
echo /bin/false > /proc/sys/kernel/modprobe

exec 3<>/dev/ttyS1
stty raw -echo <&3
echo ready >&3
while read -r line <&3; do
    echo "$line" | base64 -d > /run/script
    sh /run/script < /dev/null > /run/out 2> /run/err 3>&-
    code=$?
    sync
    { echo "$code"; base64 -w 0 /run/out; echo; base64 -w 0 /run/err; echo; } >&3
done
poweroff -f
