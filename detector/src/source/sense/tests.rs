use std::{fs, os::unix::fs::symlink, path::PathBuf};

use super::*;
use crate::record::SecretKind;

/// A `/proc` with a host process whose root is a directory of its own.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        for (pid, mnt) in [("1", "mnt:[1]"), ("self", "mnt:[2]")] {
            let dir = node.proc().join(pid);
            fs::create_dir_all(dir.join("ns")).unwrap();
            symlink(mnt, dir.join("ns/mnt")).unwrap();
            symlink("/sbin/init", dir.join("exe")).unwrap();
            fs::copy("/proc/self/mountinfo", dir.join("mountinfo")).unwrap();
        }
        fs::create_dir(node.root()).unwrap();
        symlink(node.root(), node.proc().join("1/root")).unwrap();
        node
    }

    fn proc(&self) -> PathBuf {
        self.0.path().join("proc")
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("host")
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A volume as kubelet's atomic writer leaves it.
    fn volume(&self, uid: &str, kind: &str, names: &[&str], generation: &str) {
        let dir = format!("/var/lib/kubelet/pods/{uid}/volumes/{kind}/v");
        for name in names {
            self.file(&format!("{dir}/..{generation}/{name}"), generation);
            let link = self.root().join(format!("{dir}/{name}").trim_start_matches('/'));
            let _ = fs::remove_file(&link);
            symlink(format!("..data/{name}"), link).unwrap();
        }
        let data = self.root().join(format!("{dir}/..data").trim_start_matches('/'));
        let _ = fs::remove_file(&data);
        symlink(format!("..{generation}"), data).unwrap();
    }

    fn process(&self, pid: u32, exe: &str, args: &[&str]) {
        let dir = self.proc().join(pid.to_string());
        fs::create_dir_all(dir.join("ns")).unwrap();
        symlink(exe, dir.join("exe")).unwrap();
        symlink(self.root(), dir.join("root")).unwrap();
        symlink("mnt:[1]", dir.join("ns/mnt")).unwrap();
        fs::copy("/proc/self/mountinfo", dir.join("mountinfo")).unwrap();
        fs::write(dir.join("cmdline"), args.join("\0") + "\0").unwrap();
        fs::write(dir.join("stat"), format!("{pid} (a) b) S {}", "1 ".repeat(30))).unwrap();
    }

    /// A process listens on these ports of 127.0.0.1 and at these paths, in the host's network namespace.
    fn listens(&self, pid: u32, ports: &[u16], paths: &[&str]) {
        let (host, dir) = (self.proc().join("1/ns/net"), self.proc().join(pid.to_string()));
        if !host.exists() {
            fs::write(&host, "").unwrap();
        }
        fs::hard_link(&host, dir.join("ns/net")).unwrap();
        fs::create_dir(dir.join("fd")).unwrap();
        fs::create_dir(dir.join("net")).unwrap();
        let (mut tcp, mut unix) = (String::from("sl\n"), String::from("Num\n"));
        for (inode, port) in (1000..).zip(ports) {
            symlink(format!("socket:[{inode}]"), dir.join(format!("fd/{inode}"))).unwrap();
            tcp += &format!("0: 0100007F:{port:04X} 00000000:0000 0A 0:0 00:0 0 0 0 {inode} 1\n");
        }
        for (inode, path) in (2000..).zip(paths) {
            symlink(format!("socket:[{inode}]"), dir.join(format!("fd/{inode}"))).unwrap();
            unix += &format!("0: 00000002 00000000 00010000 0001 01 {inode} {path}\n");
            self.file(path, "");
        }
        fs::write(dir.join("net/tcp"), tcp).unwrap();
        fs::write(dir.join("net/unix"), unix).unwrap();
    }
}

#[test]
fn a_kubelet_and_its_runtime_are_found_where_they_are_asked_and_not_where_they_only_tell() {
    let node = Node::new();
    node.file("/run/containerd/s/shim", "");
    node.process(40, "/usr/bin/containerd", &["containerd"]);
    node.listens(40, &[40001], &["/run/containerd/containerd.sock", "/run/containerd/containerd.sock.ttrpc"]);
    node.process(41, "/usr/bin/kubelet", &["kubelet"]);
    node.listens(41, &[10250, 10255, 10248], &[]);
    // k3s is the runtime too where it is called like it, and more than a kubelet where it is not.
    node.process(42, "/var/lib/rancher/k3s/data/0/bin/k3s", &["containerd", "-c", "x.toml"]);
    node.listens(42, &[40002], &["/run/k3s/containerd/containerd.sock"]);
    node.process(43, "/usr/local/bin/k3s", &["/usr/local/bin/k3s", "server"]);
    node.listens(43, &[10250, 6443, 10249], &[]);
    // One that nobody can speak to over TCP is not known to be one.
    node.process(44, "/usr/bin/crio", &["crio"]);
    node.listens(44, &[], &["/run/crio/crio.sock"]);
    let mut sense = Sense::new(&node.proc(), true);
    let batch = sense.poll(BootNs(1));
    let Some(Body::Components(told)) = batch.bodies.last() else { panic!("{batch:?}") };
    let found: Vec<_> = told.components.iter().map(|found| (found.process.pid, found.kind)).collect();
    let (kubelet, runtime) = (ComponentKind::Kubelet, ComponentKind::Runtime);
    assert_eq!(found, [(40, runtime), (41, kubelet), (42, runtime), (43, kubelet), (43, ComponentKind::ApiServer)]);
    let at = |role| told.endpoints.iter().filter(move |at| at.role == role).map(|at| at.port).collect::<Vec<_>>();
    assert_eq!(at(EndpointRole::Stream), [40001, 40002]);
    assert_eq!(at(EndpointRole::Kubelet), [10250]);
    let (endpoints, servers) = sense.endpoints();
    let flags: Vec<_> = endpoints.iter().map(|(key, flags)| (key.port, *flags)).collect();
    for wanted in [(10250, endpoint::KUBELET), (40001, endpoint::STREAM), (40002, endpoint::STREAM)] {
        assert!(flags.contains(&wanted), "{flags:?}");
    }
    let both = server::LISTENS | server::CONNECTS;
    let wanted = [(40, server::LISTENS), (41, server::LISTENS), (42, server::LISTENS), (43, both)];
    assert_eq!(servers.into_iter().collect::<Vec<_>>(), wanted);
    let inode = |path: &str| {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(node.root().join(path)).unwrap().ino()
    };
    let asked: BTreeSet<_> = sense.asked().iter().map(|inode| inode.ino).collect();
    let wanted = ["run/containerd/containerd.sock", "run/k3s/containerd/containerd.sock", "run/containerd/s"];
    assert_eq!(asked, wanted.map(inode).into());
    assert!(batch.asked_changed && !sense.poll(BootNs(SLOW + 1)).asked_changed);
}

fn secrets(batch: &Batch) -> Vec<(SecretKind, String, Option<String>, bool)> {
    let mut found: Vec<_> = batch
        .bodies
        .iter()
        .filter_map(|body| match body {
            Body::Secret(secret) => Some((secret.kind, secret.path.clone(), secret.pod_uid.clone(), secret.gone)),
            _ => None,
        })
        .collect();
    found.sort();
    found
}

#[test]
fn tokens_kubeconfigs_keys_and_etcds_files_are_found_and_nothing_beside_them() {
    let node = Node::new();
    node.volume("u1", "kubernetes.io~projected", &["token", "ca.crt"], "one");
    node.volume("u2", "kubernetes.io~secret", &["tls.crt"], "one");
    node.file("/etc/kubernetes/admin.conf", "clusters: [{cluster: {server: 'https://10.9.8.7:6443'}}]");
    node.file("/etc/kubernetes/manifests/etcd.yaml", "");
    node.file("/etc/kubernetes/pki/etcd/server.key", "");
    node.file("/etc/kubernetes/pki/ca.crt", "");
    node.file("/data/member/snap/db", "");
    node.file("/data/member/wal/0-0.wal", "");
    node.process(40, "/usr/bin/etcd", &["etcd", "--data-dir=/data"]);
    node.file("/srv/kubelet/pods/u3/volumes/kubernetes.io~projected/x/token", "");
    node.process(41, "/usr/bin/kubelet", &["kubelet", "--root-dir", "/srv/kubelet"]);
    let mut sense = Sense::new(&node.proc(), true);
    let batch = sense.poll(BootNs(1));
    let volumes = "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~projected/v/token".to_owned();
    let other = "/srv/kubelet/pods/u3/volumes/kubernetes.io~projected/x/token".to_owned();
    let file = |kind, path: &str| (kind, path.to_owned(), None, false);
    assert_eq!(
        secrets(&batch),
        [
            (SecretKind::Token, other, Some("u3".to_owned()), false),
            (SecretKind::Token, volumes, Some("u1".to_owned()), false),
            file(SecretKind::Kubeconfig, "/etc/kubernetes/admin.conf"),
            file(SecretKind::Key, "/etc/kubernetes/pki/etcd/server.key"),
            file(SecretKind::Etcd, "/data/member/snap/db"),
            file(SecretKind::Etcd, "/data/member/wal/0-0.wal"),
        ]
    );
    assert_eq!(sense.secrets().len(), 6);
    // Where the kubeconfig leads is told with the components, none of which has proven to be one.
    let Some(Body::Components(told)) = batch.bodies.last() else { panic!("{batch:?}") };
    assert_eq!(told.components, []);
    let address = "10.9.8.7".parse().unwrap();
    assert_eq!(told.endpoints, [Endpoint { role: EndpointRole::Api, address, port: 6443, net_ns: 0 }]);
    // The same again is not told again.
    assert!(sense.poll(BootNs(SLOW + 1)).bodies.is_empty());
}

#[test]
fn a_swapped_token_is_another_inode_and_a_pod_that_went_is_told() {
    let node = Node::new();
    node.volume("u1", "kubernetes.io~projected", &["token"], "one");
    let mut sense = Sense::new(&node.proc(), true);
    assert_eq!(secrets(&sense.poll(BootNs(1))).len(), 1);
    node.volume("u1", "kubernetes.io~projected", &["token"], "two");
    let swapped = sense.poll(BootNs(SLOW + 1));
    let gone: Vec<_> = secrets(&swapped).into_iter().map(|(.., gone)| gone).collect();
    assert_eq!(gone, [false, true]);
    fs::remove_dir_all(node.root().join("var/lib/kubelet/pods/u1")).unwrap();
    let gone: Vec<_> = secrets(&sense.poll(BootNs(2 * SLOW + 1))).into_iter().map(|(.., gone)| gone).collect();
    assert_eq!(gone, [true]);
    assert!(sense.secrets().is_empty());
}

#[test]
fn a_process_that_is_only_called_like_a_part_of_the_control_plane_is_none() {
    // The real thing: this process's own listening socket, under any name, is no API server's.
    let node = Node::new();
    node.process(40, "/usr/bin/kube-apiserver", &["kube-apiserver"]);
    let mut sense = Sense::new(&node.proc(), true);
    assert!(sense.poll(BootNs(1)).bodies.is_empty());
    assert_eq!(sense.endpoints(), Default::default());
}

#[test]
fn addresses_of_the_kernels_map_are_those_of_the_endpoints() {
    let mut sense = Sense::new(std::path::Path::new("/nonexistent"), true);
    let endpoint =
        |role, address: &str, net_ns| Endpoint { role, address: address.parse().unwrap(), port: 6443, net_ns };
    sense.components.endpoints = vec![
        endpoint(EndpointRole::ApiServer, "127.0.0.1", 7),
        endpoint(EndpointRole::Etcd, "::1", 7),
        endpoint(EndpointRole::Api, "10.0.0.1", 0),
        endpoint(EndpointRole::Api, "fd00::1", 0),
    ];
    let (keys, servers) = sense.endpoints();
    let of = |address: &str, net_ns| {
        let octets = sense::octets(address.parse().unwrap());
        let half = |at: usize| u64::from_ne_bytes(octets[at..at + 8].try_into().unwrap());
        EndpointKey { address: [half(0), half(8)], port: 6443, net_ns }
    };
    let wanted = BTreeMap::from([
        (of("127.0.0.1", 7), endpoint::API | endpoint::SERVER),
        (of("::1", 7), endpoint::ETCD),
        (of("10.0.0.1", 0), endpoint::API),
        (of("fd00::1", 0), endpoint::API),
    ]);
    assert_eq!(keys, wanted);
    assert!(servers.is_empty());
    assert!(EndpointKey::is_loopback(of("127.9.9.9", 0).address) && EndpointKey::is_loopback(of("::1", 0).address));
    assert!(!EndpointKey::is_loopback(of("10.0.0.1", 0).address) && !EndpointKey::is_loopback(of("::2", 0).address));
}

#[test]
fn what_is_asked_for_soon_does_not_come_more_often_than_the_floor_allows() {
    let node = Node::new();
    let mut sense = Sense::new(&node.proc(), true);
    sense.poll(BootNs(1));
    sense.container(BootNs(2));
    assert_eq!(sense.deadline(), BootNs(1 + FLOOR));
    sense.executed("bash", BootNs(3));
    assert_eq!(sense.deadline(), BootNs(1 + FLOOR));
    let mut off = Sense::new(&node.proc(), false);
    off.container(BootNs(2));
    off.api("10.0.0.1:443".parse().unwrap(), BootNs(2));
    assert_eq!(off.deadline(), BootNs(u64::MAX));
    assert!(off.poll(BootNs(3)).bodies.is_empty());
}
