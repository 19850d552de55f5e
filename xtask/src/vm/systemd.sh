# What is done with the package.
dir=/etc/kubernetes/manifests
config=/etc/detector/config.yaml
dropins=/run/systemd/system/detector.service.d

# What is shown of a failure beside what the command said.
around() {
    journalctl --quiet -o short-monotonic --no-hostname -n 40 -u detector | cut -c 1-300 | sed 's/^/  journal: /'
}

# The value of one of the unit's properties.
shown() { systemctl show detector --value -p "$1"; }

# Whether some entry of the journal is so, as jq says it; its programs have $file for a manifest's path.
entry() {
    journalctl --quiet --all -o json -u detector >$work/entries
    jq -es --arg file "$dir/$1.yaml" "map(select($2)) | length > 0" $work/entries
}

# Whether the alert that a manifest was added is in the journal.
told() {
    entry "$1" '.DETECTOR_TECHNIQUE == "static-pod" and .DETECTOR_FILE == $file and (.MESSAGE | startswith("Static pod manifest added"))'
}

# Whether the agent has said something beside its alerts.
says() { journalctl --quiet -o cat -u detector | grep -q -- "$1"; }

# Everything on the disk that a package may leave behind.
files() {
    find / -xdev \( -path /var/lib/dpkg -o -path /var/log -o -path /var/cache -o -path /tmp -o -path /var/tmp -o -path /var/backups \) -prune \
        -o -print | sort
}

plant() {
    mkdir -p $dir
    cat >$work/pod.yaml <<POD
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: kube-system}
spec:
  containers: [{name: web, image: "registry.example/web:1", securityContext: {privileged: true}}]
POD
    cp $work/pod.yaml "$dir/$1.yaml"
}

planted_is_told() {
    plant "$1"
    soon told "$1"
}

installed() {
    dpkg -i /media/detector.deb || return
    systemctl is-active detector && systemctl is-enabled detector || return
    soon says '^ready: '
    # Some are for other kernels.
    shown StatusText | grep '^watching; [23][0-9] of [0-9]* hooks attached' || { shown StatusText; return 1; }
    # What this systemd does not know it ignores, and says so.
    ! journalctl --quiet _PID=1 | grep 'detector.service:[0-9]'
}

sandbox() {
    sort >$work/expected <<PROPERTIES
CapabilityBoundingSet=cap_dac_read_search cap_setgid cap_setuid cap_sys_ptrace cap_perfmon cap_bpf
ExecReload=
KeyringMode=private
LimitMEMLOCK=infinity
LockPersonality=yes
MemoryDenyWriteExecute=yes
MemoryMax=134217728
NoNewPrivileges=yes
NotifyAccess=main
OOMScoreAdjust=-900
PrivateDevices=yes
PrivateMounts=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
Restart=always
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
StateDirectory=detector
StateDirectoryMode=0700
SystemCallArchitectures=native
SystemCallErrorNumber=1
TimeoutStopUSec=20s
Type=notify
UMask=0077
WatchdogSignal=15
WatchdogUSec=30s
PROPERTIES
    systemctl show detector -p "$(sed 's/=.*//' $work/expected | paste -sd,)" |
        sed 's/^ExecReload=.*/ExecReload=/' | sort >$work/properties
    diff $work/expected $work/properties
}

# What the kernel says of the process.
confined() {
    pid=$(shown MainPID)
    sed -n '/^\(Uid\|CapPrm\|CapBnd\|NoNewPrivs\|Seccomp\):/p' /proc/"$pid"/status | tr '\t' ' ' >$work/process
    diff - $work/process <<PROCESS || return
Uid: 0 0 0 65534
CapPrm: 0000000000080004
CapBnd: 000000c0000800c4
NoNewPrivs: 1
Seccomp: 2
PROCESS
    grep ' / / ro' /proc/"$pid"/mountinfo || return
    says '^confined: keeps CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE; writes as nobody; .*use their own files alone' && return
    journalctl --quiet -o cat -u detector
    return 1
}

drilled() {
    detector drill static-pod >$work/drill 2>&1
    grep PASSED $work/drill || { cat $work/drill; return 1; }
    soon entry detector-drill '.DETECTOR_TECHNIQUE == "static-pod" and .DETECTOR_EXE == "/usr/bin/detector"'
}

fields() {
    plant web
    soon told web || return
    jq -s --arg file "$dir/web.yaml" 'map(select(.DETECTOR_FILE == $file))[0]' $work/entries >$work/entry
    cat $work/entry
    jq -e '(.DETECTOR_ALERT | fromjson) as $alert
        | .PRIORITY == "3" and .DETECTOR_SEVERITY == "high" and .SYSLOG_IDENTIFIER == "detector" and ._TRANSPORT == "journal"
        and ._SYSTEMD_UNIT == "detector.service" and ._EXE == "/usr/bin/detector" and ._UID == "0"
        and .MESSAGE_ID == $id and .MESSAGE == $alert.title and .DETECTOR_NODE == "node-1" and .DETECTOR_BLOCKED == "0"
        and .DETECTOR_EXE == "/usr/bin/cp" and .DETECTOR_PID == "\($alert.process.pid)" and (.DETECTOR_UID | startswith("node-1/"))
        and $alert.manifest.images == ["registry.example/web:1"] and $alert.process.ancestors[-1].exe == "/usr/lib/systemd/systemd"' \
        --arg id "$(sed -n 's/.*MESSAGE_ID=//p' $config)" $work/entry || return
    # As the configuration says to look for them.
    journalctl --quiet "$(grep -o 'MESSAGE_ID=.*' $config)" | grep 'detector\[.*Static pod manifest added: kube-system/web'
}

# Characters of six bytes each make it longer than a datagram may be.
long() {
    jq -n '("\u202e" * 250) as $long | {apiVersion: "v1", kind: "Pod", metadata: {name: "long"}, spec: {
        volumes: [range(64) | {name: "v\(.)", hostPath: {path: "/\(.)\($long)"}}],
        containers: [range(64) | {name: "\(.)\($long)", image: "\(.)\($long)", securityContext: {privileged: true}}]}}' \
        >$work/long.yaml
    cp $work/long.yaml $dir/long.yaml
    soon told long || return
    jq -s --arg file "$dir/long.yaml" 'map(select(.DETECTOR_FILE == $file))[0].DETECTOR_ALERT' $work/entries >$work/entry
    most=$(cat /proc/sys/net/core/wmem_default)
    jq -e --argjson most "$most" 'length > $most and (fromjson | .left_out == null and (.manifest.images | length) == 64)' $work/entry ||
        { echo "a datagram: $most; the entry:"; cut -c1-2000 $work/entry; return 1; }
}

# What an attacker calls a file makes neither a field nor a line.
hostile() {
    printf 'kind: Pod\n' >"$dir/$(printf 'x\nPRIORITY=0\n\033[2J.yaml')"
    soon entry '' '(.DETECTOR_FILE // "") | contains("x\\u{a}PRIORITY=0\\u{a}\\u{1b}[2J.yaml")'
}

killed_journal() {
    pid=$(shown MainPID)
    systemctl kill --signal KILL systemd-journald
    plant after-killed-journal
    soon systemctl is-active systemd-journald
    soon told after-killed-journal || return
    [ "$(shown MainPID)" = "$pid" ]
}

absent_journal() {
    pid=$(shown MainPID)
    all="systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket systemd-journald.service"
    systemctl stop $all
    plant without-journal
    sleep 3
    systemctl start systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service
    soon told without-journal || return
    [ "$(shown MainPID)" = "$pid" ] || { echo "it was $pid, is $(shown MainPID)"; return 1; }
    # What it says beside alerts went away with that journal.
    systemctl restart detector
}

reloaded() {
    pid=$(shown MainPID)
    systemctl reload detector || return
    soon says '^config: read again, nothing has changed' || return
    # At once: it would be read half way.
    sed "s|^outputs: .*|outputs: ['journald:', 'file:///var/lib/detector/alerts.json']|" $config >$config.new
    cat >>$config.new <<'EXCEPTION'
exceptions:
- {name: tried, reason: told nobody, expires: 2099-01-01T00:00:00Z, path: /etc/kubernetes/manifests/quiet.yaml}
EXCEPTION
    mv $config.new $config
    systemctl reload detector || return
    soon says '^config: read again, in force from now on' || return
    plant quiet
    planted_is_told loud || return
    soon grep -q loud.yaml /var/lib/detector/alerts.json || return
    ! told quiet && [ "$(shown MainPID)" = "$pid" ]
}

wrong_configuration() {
    cp $config $work/edited.yaml
    echo 'grouping: {windw: 1m}' >>$config
    systemctl reload detector || return
    soon says "^config: $config:[0-9]*:[0-9]*: .*What was read before stays in force" || return
    systemctl is-active detector && planted_is_told still-watching || return
    detector config check $config && return 1
    cp $work/edited.yaml $config
    detector config check $config && systemctl reload detector
}

dropin() {
    mkdir -p $dropins
    printf '[Service]\n%s\n' "$1" >$dropins/tried.conf
    systemctl daemon-reload
    systemctl restart detector
}

started_again() {
    now=$(shown MainPID)
    [ "$now" != 0 ] && [ "$now" != "$pid" ] && systemctl is-active --quiet detector
}

# One that is stopped is ended by the watchdog, tells what happened meanwhile, and is started again.
stopped() {
    dropin WatchdogSec=10s
    pid=$(shown MainPID)
    kill -STOP "$pid"
    plant meanwhile
    soon started_again || return
    journalctl --quiet _PID=1 | grep 'detector.service: Watchdog timeout (limit 10s)!' || return
    told meanwhile || { echo "the manifest is not told"; return 1; }
    entry '' '.DETECTOR_TECHNIQUE == "detector-tampering" and (.MESSAGE | contains("is sent SIGSTOP"))' ||
        { echo "who stopped it is not told"; return 1; }
    planted_is_told after-watchdog
}

killed() {
    pid=$(shown MainPID)
    kill -KILL "$pid"
    soon started_again || return
    planted_is_told after-killing
}

# The same package with another version, over an edited configuration.
upgraded() {
    rm -r $dropins
    systemctl daemon-reload
    dpkg-deb -R /media/detector.deb /var/tmp/next
    sed -i 's/^Version: .*/&+next/' /var/tmp/next/DEBIAN/control
    dpkg-deb -Znone -b /var/tmp/next /var/tmp/next.deb
    pid=$(shown MainPID)
    dpkg -i /var/tmp/next.deb || return
    grep tried $config || return
    ls /etc/detector
    [ "$(ls /etc/detector)" = config.yaml ] || return
    started_again || return
    planted_is_told after-upgrade || return
    dpkg-query -W -f '${Version}\n' detector | grep '+next$'
}

ended() {
    systemctl stop detector || return
    shown Result | grep -x success || return
    says '^stats: ' || return
    systemctl start detector
}

removed() {
    dpkg -r detector || return
    ! pgrep -x detector && ! systemctl is-active detector && [ -e $config ] && [ ! -e /usr/bin/detector ] || return
    dpkg -i /media/detector.deb || return
    grep tried $config && systemctl is-active detector
}

# What is left is what somebody put there: a recording, say.
purged() {
    rm /var/lib/detector/alerts.json
    mkdir -p /var/lib/detector/evidence
    echo kept >/var/lib/detector/evidence/1.trace
    dpkg -P detector || return
    files >$work/after
    rm -r /var/lib/detector/evidence
    diff $work/before $work/after | grep '^[<>]' >$work/left
    diff - $work/left <<'LEFT'
> /var/lib/detector
> /var/lib/detector/evidence
> /var/lib/detector/evidence/1.trace
LEFT
}

# Nothing that the agent does is refused by its filter of system calls, nor by the unit's.
unrefused() { ! dmesg | grep 'type=1326.*detector'; }

# Alerts of what nobody attacked.
benign() {
    journalctl --quiet --all -o json -u detector >$work/entries
    jq -r 'select(.DETECTOR_TECHNIQUE != null and .DETECTOR_TECHNIQUE != "static-pod") | "\(.DETECTOR_SEVERITY) \(.MESSAGE)"' $work/entries |
        sort | uniq -c
}

files >$work/before
mkdir -p $dir
check "installed, enabled, started" installed
check "the sandbox that the unit asks for" sandbox
check "what the process has left" confined
check "a drill is told" drilled
check "an entry's fields" fields
check "an entry longer than a datagram" long
check "a hostile name" hostile
check "a journal that is killed" killed_journal
check "a journal that is away" absent_journal
check "reloaded" reloaded
check "a wrong configuration" wrong_configuration
check "a stopped agent" stopped
check "a killed agent" killed
check "upgraded over an edited configuration" upgraded
check "ended" ended
check "no system call is refused" unrefused
benign
rm -r /etc/kubernetes
check "removed" removed
check "purged" purged
end
