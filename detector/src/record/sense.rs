//! What of this node is worth stealing or talking to: secrets by their inodes, the control plane by its processes and addresses.

use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{InodeKey, ProcessKey};

/// A file whose readers are reported, or a file system of such files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// With inode 0: everything on that file system. A token volume is one of its own.
    pub inode: InodeKey,
    /// Bodies are tagged by `kind` already.
    #[serde(rename = "secret")]
    pub kind: SecretKind,
    /// As the host, or the kubelet whose it is, names it.
    pub path: String,
    /// Tokens: the pod that it is projected for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// It is not there any more.
    #[serde(default)]
    pub gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretKind {
    /// A service account's token.
    Token,
    /// A kubeconfig: a client certificate's key or a token, and where to use it.
    Kubeconfig,
    /// A private key of the cluster.
    Key,
    /// What etcd stores: the whole cluster.
    Etcd,
}

/// The control plane on this node, as its processes and sockets show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Components {
    pub components: Vec<Component>,
    pub endpoints: Vec<Endpoint>,
}

/// A process that is called like a part of Kubernetes, and owns the listening socket that such a one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Component {
    pub kind: ComponentKind,
    pub process: ProcessKey,
    /// Inode number of its network namespace.
    pub net_ns: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentKind {
    Kubelet,
    ApiServer,
    Etcd,
    ControllerManager,
    Scheduler,
    /// containerd, CRI-O.
    Runtime,
}

/// An address of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    pub role: EndpointRole,
    pub address: IpAddr,
    pub port: u16,
    /// Inode number of the network namespace for a loopback address, which is another in each; 0 for any other.
    pub net_ns: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointRole {
    /// An API server of the cluster, by the kubeconfigs and the containers' environment.
    Api,
    /// This node's API server listens there.
    ApiServer,
    /// This node's etcd serves clients there.
    Etcd,
    /// This node's kubelet takes requests there.
    Kubelet,
    /// A container runtime serves sessions there.
    Stream,
}

/// Who was connected to API servers when the kernel had begun to tell of new connections: with those, all connections are known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    pub clients: Vec<Client>,
    /// There are more than were looked at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// A process that holds a connection to an API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Client {
    pub process: ProcessKey,
    /// The connection's own end, and its other one.
    pub local: IpAddr,
    pub remote: IpAddr,
    pub remote_port: u16,
    /// Inode number of the network namespace.
    pub net_ns: u32,
}

/// Whether a file in a volume is a token by its name: pods name projected ones as they like.
#[must_use]
pub fn is_token(name: &str) -> bool {
    name == "token" || name.ends_with("-token") || name.ends_with("_token") || name.ends_with(".token")
}

/// An address as the kernel programs have it: IPv4 ones are IPv4-mapped.
#[must_use]
pub fn ip(octets: &[u8; 16]) -> IpAddr {
    Ipv6Addr::from(*octets).to_canonical()
}

/// `10.1.2.3:443`, `[fd00::1]:443`.
#[must_use]
pub fn address(octets: &[u8; 16], port: u16) -> String {
    std::net::SocketAddr::new(ip(octets), port).to_string()
}

/// The octets that the kernel programs have for an address.
#[must_use]
pub fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped().octets(),
        IpAddr::V6(six) => six.octets(),
    }
}
