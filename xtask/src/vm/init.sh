#!/bin/busybox sh
# The first process of a test machine: mounts, does what the command line says, and powers off. Results go to the second
# serial line.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t ext4 /dev/nvme0n1 /disk
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
insmod /overlay.ko || echo "no overlayfs" >/dev/console
hostname "$(uname -r)"
said() { grep -q "$1" /proc/cmdline; }
# Where acts happen: a file system as nodes have it.
export TMPDIR=/disk

# Part of a suite: what fails is named.
part() {
    "$@" && return
    status=$?
    echo "$1 ended with status $status"
}

suite() {
    status=0
    grep -q ' /disk ext4 ' /proc/mounts || { echo "no ext4 disk"; status=1; }
    backends="lsm fentry kprobe"
    [ "$(uname -m)" = aarch64 ] || backends="$backends tracepoint"
    for backend in $backends; do
        echo "backend $backend"
        /suite/detector doctor --hooks $backend --manifest-dir /disk |
            sed -n 's/^  ok  *\([^ ]*\) .*, \([0-9]*\) instructions verified$/verified \2 \1/p'
        part /suite/examples/evasion --flood 10000 --hooks $backend
        part /suite/examples/entries --hooks $backend
        case=27 check "pause" 0 PASSED /suite/detector drill malicious-pause-container --hooks $backend \
            --no-default-dirs --manifest-dir /disk
        cat /tmp/said
        part /suite/examples/techniques --hooks $backend
    done
    echo "backend deny"
    part /suite/examples/evasion --deny --hooks lsm
    echo "backend tmpfs"
    TMPDIR=/tmp part /suite/examples/evasion --flood 10000
    echo "backend doctor"
    taken_away
    echo "verdict $status"
}

# Whether a command ends with the status $2 and says $3. $case is the case's number, where it is one.
check() {
    name=$1 want=$2 says=$3
    shift 3
    "$@" >/tmp/said 2>&1
    got=$?
    result=told
    if [ $got != "$want" ] || ! grep -q "$says" /tmp/said; then
        result=untold
        echo "status $got"
        cat /tmp/said
    fi
    echo "{\"case\":${case:-0},\"name\":\"$name\",\"result\":\"$result\",\"ms\":0}"
}

# What doctor says when something is missing.
taken_away() {
    doctor="/suite/detector doctor --manifest-dir /tmp"
    check "everything there" 0 "lsm file_open" $doctor
    [ "$(uname -m)" != aarch64 ] || check "no registers" 1 "MISSING  *syscall .*x86-64's registers" $doctor --hooks tracepoint
    umount /sys/kernel/security
    check "no securityfs" 0 "securityfs is not mounted" $doctor
    mount -t securityfs securityfs /sys/kernel/security
    umount /sys/kernel/tracing
    umount /sys/kernel/debug
    check "no tracefs" 0 "kprobe security_file_open" $doctor --hooks kprobe
    mount -t tmpfs btf /sys/kernel/btf
    check "no BTF" 1 "CONFIG_DEBUG_INFO_BTF" $doctor
    umount /sys/kernel/btf
    # Not to be undone: last.
    echo confidentiality >/sys/kernel/security/lockdown
    check "lockdown" 1 "BPF may not read kernel memory" $doctor
}

# What each loop takes with nothing attached, with empty programs on the same hooks, and with the agent.
measure() {
    for loop in open-close open-write rename; do
        echo "cost $backend $1 $loop 500 $(/suite/xtask loop $loop 500 /tmp/bench 40)"
    done
    echo "cost $backend $1 fork-exec 20 $(/suite/xtask loop fork-exec 20 /tmp/bench 20)"
}

beside() {
    name=$1
    shift
    : >/tmp/said
    "$@" >/dev/null 2>/tmp/said &
    until grep -q '^ready' /tmp/said; do
        kill -0 $! 2>/dev/null || { cat /tmp/said; return 1; }
        sleep 0.1
    done
    sleep 1
    measure "$name"
    kill $!
    wait $!
}

costs() {
    status=0
    mkdir /tmp/bench /tmp/watched
    echo 0 >/proc/sys/kernel/randomize_va_space
    # Twice over: the least of all counts.
    for backend in lsm fentry kprobe tracepoint lsm fentry kprobe tracepoint; do
        measure none
        beside floor /suite/detector floor --hooks $backend || status=1
        beside agent /suite/detector run --hooks $backend --no-default-dirs --manifest-dir /tmp/watched || status=1
    done
    echo "verdict $status"
}

# What the picture in the README shows.
scene() {
    hostname node-1
    mkdir -p /etc/kubernetes/manifests /usr/bin /disk/bin
    # Programs of their own names and on a disk, as on a node: one that lies in memory is a finding in a container.
    mount --bind /disk/bin /usr/bin
    for program in sh cp; do cp /bin/busybox /usr/bin/$program; done
    cp /suite/detector /usr/bin/detector
    cat >/tmp/web.yaml <<'POD'
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: kube-system}
spec:
  hostPID: true
  containers:
  - name: web
    image: registry.example/web:1
    securityContext: {privileged: true}
    volumeMounts: [{name: node, mountPath: /node}]
  volumes: [{name: node, hostPath: {path: /}}]
POD
    printf '\033[32m$\033[0m sudo detector run\n'
    : >/tmp/said
    /usr/bin/detector run --no-cri 2>/tmp/said &
    until grep -q '^ready' /tmp/said; do
        kill -0 $! 2>/dev/null || { cat /tmp/said; return 1; }
        sleep 0.1
    done
    # An emulated machine is slow: what it takes here to be ready says nothing.
    grep '^watching: /etc/kubernetes/manifests' /tmp/said
    echo
    (cd /tmp && echo '/usr/bin/cp web.yaml /etc/kubernetes/manifests/; exit 0' | /usr/bin/sh)
    sleep 2
    /usr/bin/detector drill container-exec --no-cri >/tmp/drill 2>&1
    status=$?
    [ $status = 0 ] || cat /tmp/drill
    sleep 1
    kill $!
    wait $!
    echo "verdict $status"
}

# Golden traces of the scenes that the command line names, each as a line: its file's name, and the file in base64.
golden() {
    status=0
    hostname node-1
    for scene in $(sed -n 's/.*detector\.golden=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' '); do
        /suite/examples/techniques --record /tmp/golden "$scene" || status=$?
        for file in "$scene.trace" "$scene.ndjson"; do
            echo "golden $file $(base64 /tmp/golden/"$file" | tr -d '\n')"
        done
    done
    echo "verdict $status"
}

if said detector.shell; then
    echo "the agent is /suite/detector, the suite /suite/examples/evasion"
    setsid cttyhack sh
    poweroff -f
fi
results=$(sed -n 's/.*detector\.results=\([^ ]*\).*/\1/p' /proc/cmdline)
exec </dev/null >"$results" 2>&1
if said detector.suite; then suite; fi
if said detector.bench; then costs; fi
if said detector.scene; then scene; fi
if said detector.golden=; then golden; fi
sync
poweroff -f
