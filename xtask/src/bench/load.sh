# What a busy node does, closer together: stands for an hour of it. Usage: load.sh DIRECTORY SECONDS MANIFESTS
cd "$1" || exit 1
manifests=$3
end=$((SECONDS + $2))

# Scripts and supervisors: short programs, one after the other, with pauses.
programs() {
    while [ $SECONDS -lt $end ]; do
        ls -l /usr/bin | tail -n 3
        grep -c root /etc/passwd
        date +%s | cut -c 1-8 | tr 0-9 a-j
        cat /proc/loadavg | awk '{ print $1 }'
        stat -c %Y /etc/resolv.conf /etc/hosts
        sed -e 's/a/b/' -e "s/x/$RANDOM/" /etc/hostname | sort | uniq -c
        head -c 100 /etc/services | wc -c
        env "JOB=$RANDOM" sh -c 'test -n "$JOB" && basename "$(dirname /usr/lib/os-release)"'
        find /etc -maxdepth 1 -name "*.$RANDOM" -o -maxdepth 1 -name '*.conf' | xargs -r -n 8 md5sum
        mktemp -u; id -u; uname -r; readlink /proc/self/exe
        sleep "0.0$((RANDOM % 9))"
    done
}

# Exec probes, as runtimes run them every second in some dozens of containers.
probes() {
    while [ $SECONDS -lt $end ]; do
        for n in 1 2 3 4 5 6 7 8; do
            sh -c "test -e /proc/$n/status || exit 0"
        done
        sleep 0.2
    done
}

packages() {
    while [ $SECONDS -lt $end ]; do
        dpkg-query --show | sort | tail -n 1
        apt-cache policy bash
        sleep 2
    done
}

builds() {
    while [ $SECONDS -lt $end ]; do
        echo "int main(void) { return $RANDOM & 0; }" > "p$1.c"
        cc -O1 -o "p$1" "p$1.c" && "./p$1"
        ar rcs "l$1.a" "p$1.c" && rm -f "l$1.a" "p$1"
        sleep 0.5
    done
}

# Static pods come, change and go.
pods() {
    n=0
    while [ $SECONDS -lt $end ]; do
        n=$((n + 1))
        printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: web-%s}\nspec:\n  containers:\n  - {name: web, image: "web:%s"}\n' $n $RANDOM > ready.yaml
        mv ready.yaml "$manifests/web-$n.yaml"
        sleep 1
        echo "  hostNetwork: true" >> "$manifests/web-$n.yaml"
        chmod 600 "$manifests/web-$n.yaml"
        sleep 1
        rm "$manifests/web-$n.yaml"
        sleep 3
    done
}

exec > output 2>&1
programs & programs & probes & packages & builds 1 & pods &
wait
