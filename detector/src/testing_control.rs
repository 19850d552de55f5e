//! A node with a control plane, for tests of what concerns it.

use detector_common::{self as wire, connection, hook, kind, watch};

use bytes::Bytes;

use crate::{
    record::{
        Body, Component, ComponentKind, Components, Endpoint, EndpointRole, InodeKey, Policy, ProcessKey, Rules,
        Secret, SecretKind, sense,
    },
    testing::{self, Actor, HOST_MNT, HOST_PID, SECOND, Stream, raw, walked},
};

/// A kube-apiserver, an etcd and a kubelet on the host.
pub const API_SERVER: Actor = Actor { pid: 700, start: 30, cgroup: 1, mnt_ns: HOST_MNT, pid_ns: HOST_PID };
pub const ETCD: Actor = Actor { pid: 701, ..API_SERVER };
pub const KUBELET: Actor = Actor { pid: 702, ..API_SERVER };
/// File system of the token volume of the pod `shop/web-node-1`, and its token.
pub const TOKEN: InodeKey = InodeKey { dev: 77, ino: 5 };

/// What a component is called by.
pub fn component(kind: ComponentKind, actor: Actor) -> Component {
    Component { kind, process: ProcessKey::from_ns(actor.pid, actor.start * SECOND), net_ns: 9 }
}

/// Its addresses, and those three processes as the source finds them.
pub fn components(components: Vec<Component>) -> Body {
    let endpoint = |role, port| Endpoint { role, address: "10.0.0.5".parse().unwrap(), port, net_ns: 0 };
    let endpoints = vec![endpoint(EndpointRole::ApiServer, 6443), endpoint(EndpointRole::Etcd, 2379)];
    Body::Components(Box::new(Components { components, endpoints }))
}

pub fn secret(inode: InodeKey, kind: SecretKind, path: &str, pod_uid: Option<&str>) -> Body {
    let pod_uid = pod_uid.map(str::to_owned);
    Body::Secret(Box::new(Secret { inode, kind, path: path.to_owned(), pod_uid, gone: false }))
}

/// Adds the control plane, and the token volume of the pod `shop/web-node-1`, to a node.
pub fn add(stream: &mut Stream) {
    for (actor, exe) in
        [(API_SERVER, "/usr/bin/kube-apiserver"), (ETCD, "/usr/bin/etcd"), (KUBELET, "/usr/bin/kubelet")]
    {
        let init = Actor::host(1, 0);
        stream.kernel(testing::fork(init, actor));
        stream.kernel(testing::exec(actor, init, exe, &[exe]));
    }
    stream.push(components(vec![
        component(ComponentKind::Kubelet, KUBELET),
        component(ComponentKind::ApiServer, API_SERVER),
        component(ComponentKind::Etcd, ETCD),
    ]));
    let path = "/var/lib/kubelet/pods/0a1b/volumes/kubernetes.io~projected/token";
    stream.push(secret(InodeKey { ino: 0, ..TOKEN }, SecretKind::Token, path, Some("0a1b")));
}

pub fn node() -> Stream {
    let mut stream = Stream::new();
    add(&mut stream);
    stream
}

pub fn policy(change: impl FnOnce(&mut Policy)) -> Body {
    let mut rules = Rules::default();
    change(&mut rules.policy);
    Body::Config(Box::new(rules))
}

/// A secret is opened for reading.
pub fn read(actor: Actor, inode: InodeKey, path: &str) -> Bytes {
    let path = walked(path);
    let event = wire::Open {
        header: actor.header(kind::READ, hook::FILE_OPEN),
        ino: inode.ino,
        parent_ino: 1,
        dev: inode.dev,
        syscall: u32::MAX,
        mode: 1,
        open_flags: 0,
        watch: watch::READ,
        flags: 0,
        path_len: u16::try_from(path.len()).unwrap(),
        zero: [0; 6],
    };
    raw(&event, &path)
}

/// `to` is `10.0.0.1:443`.
pub fn connect(actor: Actor, to: &str, endpoint: u32) -> Bytes {
    let to: std::net::SocketAddr = to.parse().unwrap();
    raw(
        &wire::Connection {
            header: actor.header(kind::CONNECTION, hook::SOCKET_STATE),
            local: [0; 16],
            remote: sense::octets(to.ip()),
            local_port: 0,
            remote_port: to.port(),
            act: connection::CONNECT,
            endpoint,
            net_ns: 9,
        },
        &[],
    )
}

/// The same from an address, in a network namespace.
pub fn connect_from(actor: Actor, from: &str, to: &str, net_ns: u32) -> Bytes {
    let mut raw = connect(actor, to, wire::endpoint::API).to_vec();
    let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
    put(std::mem::offset_of!(wire::Connection, local), &sense::octets(from.parse().unwrap()));
    put(std::mem::offset_of!(wire::Connection, net_ns), &net_ns.to_ne_bytes());
    raw.into()
}

/// This node's API server accepts a connection, in nobody's name.
pub fn accept(from: &str, at: &str) -> Bytes {
    accept_at(from, at, wire::endpoint::SERVER)
}

/// A connection to an address of interest is accepted.
pub fn accept_at(from: &str, at: &str, endpoint: u32) -> Bytes {
    let [from, at]: [std::net::SocketAddr; 2] = [from, at].map(|text| text.parse().unwrap());
    let mut header = Actor::host(0, 0).header(kind::CONNECTION, hook::SOCKET_STATE);
    (header.cgroup, header.mnt_ns, header.pid_ns) = (0, 0, 0);
    raw(
        &wire::Connection {
            header,
            local: sense::octets(at.ip()),
            remote: sense::octets(from.ip()),
            local_port: at.port(),
            remote_port: from.port(),
            act: connection::ACCEPT,
            endpoint,
            net_ns: 9,
        },
        &[],
    )
}

/// A process is sent something over a connection that it has accepted.
pub fn receive(actor: Actor, from: &str, at: &str, endpoint: u32) -> Bytes {
    let [from, at]: [std::net::SocketAddr; 2] = [from, at].map(|text| text.parse().unwrap());
    raw(
        &wire::Connection {
            header: actor.header(kind::CONNECTION, hook::TCP_RECEIVE),
            local: sense::octets(at.ip()),
            remote: sense::octets(from.ip()),
            local_port: at.port(),
            remote_port: from.port(),
            act: connection::RECEIVE,
            endpoint,
            net_ns: 9,
        },
        &[],
    )
}

/// A process connects to a socket by which a container runtime is asked.
pub fn ask_runtime(actor: Actor) -> Bytes {
    raw(
        &wire::Socket {
            header: actor.header(kind::SOCKET, hook::UNIX_CONNECT),
            call: wire::socket::RUNTIME,
            args: [25, 7, 0],
            address: [0; wire::ADDRESS_MAX],
            zero: 0,
        },
        &[],
    )
}
