# What is done with container engines. Alerts are in $alerts, a line each.
alerts=$work/alerts
export NO_COLOR=1

# What is shown of a failure beside what the command said.
around() {
    jq -Mc '[.severity, .technique.id, .title, .container, .pod, .reasons]' $alerts | tail -n 12 | sed 's/^/  alert: /'
    tail -n 12 $work/err | sed 's/^/  agent: /'
}

# Whether some alert is so, as jq says it.
is() { jq -es "map(select($1)) | length > 0" $alerts; }
told() { soon is "$1"; }

# A container's name and image, and how somebody came in.
entered() { told ".technique.id == \"container-exec\" and .severity == \"$1\" and .container.name == \"$2\" and .container.image == \"$3\"
    and .process.argv[-1] == \"$4\" and .origin == \"container\" and (.reasons | join(\" \") | contains(\"$5\"))"; }

prepared() {
    busybox insmod /media/overlay.ko || return
    mkdir -p $work/root/bin /etc/docker
    cp /usr/bin/busybox $work/root/bin/
    for program in sh id sleep echo cat; do ln -s busybox $work/root/bin/$program; done
    tar -C $work/root -cf $work/image.tar . || return
    # The kernel has no module for more.
    echo '{"iptables": false, "ip6tables": false, "bridge": "none"}' >/etc/docker/daemon.json
    systemctl unmask docker && systemctl start docker || return
    docker import $work/image.tar app:1 && docker run -d --name early --network none app:1 /bin/sleep 6000 || return
    docker info | grep 'Cgroup Version: 2'
}

watching() {
    /media/detector run --output stdout:json >$alerts 2>$work/err &
    agent=$!
    soon grep '^ready: ' $work/err
}

before() {
    docker exec early /bin/echo early || return
    entered medium early app:1 early "by docker exec"
}

docker_exec() {
    docker run -d --name web --network none app:1 /bin/sleep 6000 && docker exec web /bin/echo mine || return
    entered medium web app:1 mine "by docker exec"
}

docker_terminal() {
    docker exec -t web /bin/echo typed || return
    entered medium web app:1 typed "interactive: it has a terminal"
}

# What the image, or whoever started the container, has Docker execute again and again.
docker_health() {
    docker run -d --name well --network none --health-cmd '/bin/echo health' --health-interval 1s app:1 /bin/sleep 6000 || return
    soon docker_is_well && told '.technique.id == "container-exec" and .severity == "low" and .title == "health check of container well runs: /bin/sh -c /bin/echo health"'
}

docker_is_well() { docker inspect -f '{{.State.Health.Status}}' well | grep -x healthy; }

docker_privileged() {
    docker run --rm --name mighty --network none --privileged -v /:/host app:1 /bin/echo all || return
    told '.technique.id == "malicious-operator" and .container.name == "mighty" and (.reasons | join(" ") | contains("at /host"))'
}

joined() {
    nsenter -t "$(docker inspect -f '{{.State.Pid}}' web)" -a /bin/echo joined || return
    entered high web app:1 joined "nsenter joined its namespaces"
}

by_hand() {
    id=$(docker inspect -f '{{.Id}}' web)
    runc --root /run/docker/runtime-runc/moby exec "$id" /bin/echo runc || return
    entered high web app:1 runc "runc exec by hand"
}

# Podman with its own OCI runtime, and with the other.
podman_exec() {
    podman run -d --runtime "$1" --name "$1-web" --network none localhost/app:1 /bin/sleep 6000 && podman exec "$1-web" /bin/echo "$1" || return
    entered medium "$1-web" localhost/app:1 "$1" "by podman exec"
}

podman_copies() {
    podman cp $work/image.tar crun-web:/copied || return
    told '.technique.id == "container-exec" and .severity == "medium" and .container.name == "crun-web" and .process.argv[1] == "cp"
        and (.reasons | join(" ") | contains("podman itself"))'
}

podman_privileged() {
    podman run --rm --name almighty --network none --privileged -v /etc:/host localhost/app:1 /bin/echo all || return
    told '.technique.id == "malicious-operator" and .container.name == "almighty" and (.reasons | join(" ") | contains("/etc at /host"))'
}

# A user's containers, which share that user's namespace of users.
as_user() { su - tried -c "export XDG_RUNTIME_DIR=/run/user/1000 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus; $*"; }

rootless() {
    echo "tried:x:1000:1000::/home/tried:/bin/sh" >>/etc/passwd
    echo "tried:x:1000:" >>/etc/group
    echo "tried:*:19000:0:99999:7:::" >>/etc/shadow
    echo "tried:100000:65536" | tee /etc/subuid >/etc/subgid
    mkdir -p /home/tried && chown tried:tried /home/tried && chmod 755 $work || return
    loginctl enable-linger tried && soon test -S /run/user/1000/bus || return
    as_user podman import --quiet $work/image.tar app:1 || return
    as_user podman run -d --name mine --network none localhost/app:1 /bin/sleep 6000 || return
    as_user podman run --rm --network none localhost/app:1 /bin/echo benign || return
    as_user podman exec mine /bin/echo rootless || return
    entered medium mine localhost/app:1 rootless "by podman exec"
}

ctr_exec() {
    docker save app:1 | ctr image import - || return
    ctr run -d docker.io/library/app:1 by-ctr /bin/sleep 6000 && ctr task exec --exec-id one by-ctr /bin/echo ctr || return
    told '.technique.id == "container-exec" and .severity == "high" and .container.id == "by-ctr" and .process.argv[-1] == "ctr"
        and (.reasons | join(" ") | contains("ctr task exec"))'
}

# A pod, by containerd's CRI: its first program has its name already.
pod() {
    pause=$(containerd config dump | sed -n "s/^ *sandbox\(_image\)\? = ['\"]\(.*\/pause:.*\)['\"]/\2/p" | head -n 1)
    echo "the pause image is $pause"
    docker import --change 'ENTRYPOINT ["/bin/sleep", "6000"]' $work/image.tar "$pause" && docker save "$pause" app:1 | ctr -n k8s.io image import - || return
    container=$(/media/xtask node-run-pod /run/containerd/containerd.sock web docker.io/library/app:1 /bin/sleep 6000) || return
    ctr -n k8s.io task exec --exec-id two "$container" /bin/echo pod || return
    told '.technique.id == "container-exec" and .process.argv[-1] == "pod" and .container.name == "app" and .severity == "high"
        and .pod == {namespace: "shop", name: "web", uid: "0d1c9c1e-5f0e-4f57-9d0c-6f4f5d1c3a52"}' || return
    echo go | /media/xtask node-exec-sync /run/containerd/containerd.sock "$container" /bin/echo sync || return
    told '.technique.id == "container-exec" and .process.argv[-1] == "sync" and .pod.name == "web" and .container.image == "docker.io/library/app:1"
        and .severity == "medium" and (.container.image_digest | startswith("sha256:")) and (.reasons | join(" ") | contains("container runtime interface"))'
}

# Containers that come and go have each other's numbers of namespaces.
turnover() {
    for _ in 1 2 3; do
        docker run --rm --network none app:1 /bin/echo benign && podman run --rm --network none localhost/app:1 /bin/echo benign || return
        ctr run --rm docker.io/library/app:1 again /bin/echo benign || return
    done
}

# Nothing else is an alert above low.
benign() {
    sleep 12
    jq -Mc 'select(.severity != "low" and .severity != "info")
        | select((.technique.id == "container-exec" and (.process.argv[-1] | IN("early", "mine", "typed", "joined", "runc", "crun", "ctr", "pod", "sync", "rootless", "crun-web:/copied")))
            or (.technique.id == "malicious-operator" and (.container.name | IN("mighty", "almighty")))
            or (.technique.id == "malicious-pause-container" and .pod.name == "web") | not)
        | [.severity, .technique.id, .title, .container, .reasons]' $alerts >$work/others
    [ ! -s $work/others ] || { cat $work/others; return 1; }
}

ended() {
    kill -TERM $agent && wait $agent || return
    sed -n 's/^stats: //p' $work/err | jq -e '.lost == {} and .undecodable == 0'
}

check "docker is up, with a container" prepared
check "the agent watches" watching
check "docker exec into a container that was there before" before
check "docker exec" docker_exec
check "docker exec with a terminal" docker_terminal
check "a health check of docker" docker_health
check "a container with everything, by docker" docker_privileged
check "nsenter into a container of docker" joined
check "runc exec by hand into a container of docker" by_hand
podman import --quiet $work/image.tar app:1 >/dev/null 2>&1
check "podman exec, by crun" podman_exec crun
check "podman exec, by runc" podman_exec runc
check "podman cp" podman_copies
check "a container with everything, by podman" podman_privileged
check "podman exec without root" rootless
check "ctr task exec" ctr_exec
check "a pod by the CRI of containerd" pod
check "containers that come and go" turnover
check "nothing else is above low" benign
check "the agent ends, and lost nothing" ended
end
