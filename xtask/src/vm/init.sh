#!/bin/busybox sh
# The first process of a test machine: mounts, runs the suite, says the verdict on the second serial line, powers off.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
hostname "$(uname -r)"

if grep -q detector.shell /proc/cmdline; then
    echo "the agent is /suite/detector, the suite /suite/examples/evasion"
    setsid cttyhack sh
    poweroff -f
fi

exec </dev/null >/dev/ttyS1 2>&1
status=0
for backend in lsm fentry kprobe tracepoint; do
    echo "backend $backend"
    /suite/examples/evasion --hooks $backend || status=$?
done
echo "verdict $status"
sync
poweroff -f
