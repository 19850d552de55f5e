//! What the node says of its containers, images and runtimes. All text is the workloads' or an attacker's: bounded by the
//! source that read it, never interpreted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{BootNs, InodeKey, ProcessKey, form};

/// Longest name, image reference, label key or value that a record keeps, in bytes.
pub const TEXT_MAX: usize = 1024;
/// At most [`TEXT_MAX`] bytes of a text.
#[must_use]
pub fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_MAX)].to_owned()
}

/// Most labels of a container that a record keeps.
pub const LABELS_MAX: usize = 64;

/// A container, as its OCI bundle or the container runtime interface (CRI) describes it. Of one container both may come: the
/// bundle first, before its first instruction; the later one fills in what the first did not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// As the runtime calls it and as its cgroup is named.
    pub id: String,
    /// Its cgroup in the v2 hierarchy; `None` where only the CRI speaks of it.
    pub cgroup_id: Option<u64>,
    pub from: InfoFrom,
    pub role: ContainerRole,
    /// Name in the pod's specification.
    pub name: Option<String>,
    /// Image reference as the user wrote it.
    pub image: Option<String>,
    /// Digest or id that the runtime resolved the reference to, `sha256:...`.
    pub image_digest: Option<String>,
    pub pod: Option<PodRef>,
    /// Id of the pod's sandbox; for a sandbox its own.
    pub sandbox_id: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// It has no pid namespace of its own: it sees the node's processes.
    pub host_pid: bool,
    /// Its processes hold every capability, or nearly (CAP_SYS_ADMIN among them).
    pub privileged: bool,
    /// The process whose pid namespace it joins, in the initial pid namespace.
    pub joins_pid_of: Option<u32>,
    /// Commands that kubelet or Docker runs in it by itself, where the runtime knows them (life-cycle hooks, health checks).
    pub expected_execs: Vec<Vec<String>>,
    /// Why there is nothing to tell but the id: no bundle was found, it could not be read or parsed.
    pub unreadable: Option<String>,
    /// What it may do to the node beside that; `None` where no bundle tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privileges: Option<Box<Privileges>>,
}

/// What a container may do to its node, as its OCI bundle has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Privileges {
    /// It has no network namespace of its own. A pod's containers join their sandbox's: there this says whose it is.
    pub host_network: bool,
    /// The same of IPC.
    pub host_ipc: bool,
    /// It has no user namespace of its own, but the one in which it was made: the host's, or that of whoever runs containers without root.
    pub host_user: bool,
    /// No seccomp profile.
    pub unconfined: bool,
    /// It may use every device of the node.
    pub devices: bool,
    /// Capabilities that are as good as root on the node, beyond those that runtimes give everybody: `CAP_SYS_ADMIN`, ... Sorted.
    pub capabilities: Vec<String>,
    /// Sensitive places of the node that are mounted into it, at most [`MOUNTS_MAX`] of them.
    pub mounts: Vec<HostMount>,
}

/// Most mounts of a container that a record keeps.
pub const MOUNTS_MAX: usize = 32;

/// A bind mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMount {
    /// Path on the node.
    pub source: String,
    /// Path in the container.
    pub target: String,
    pub read_only: bool,
}

/// Where facts about a container come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InfoFrom {
    /// The `config.json` of an OCI bundle, whose directory this is.
    Bundle(String),
    /// The CRI, by the socket that this is the path of.
    Cri(String),
    /// Nothing was found.
    #[default]
    Nothing,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerRole {
    /// It holds a pod's namespaces: its process is the pause process, where the runtime has one.
    Sandbox,
    /// One of a pod's containers.
    Member,
    /// A container of no pod: `ctr run`, `docker run`, podman.
    Plain,
    #[default]
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// The agent's process, and the files that it relies on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    pub pid: u32,
    pub files: Vec<OwnFile>,
}

/// A file of the agent's, or a directory of such.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnFile {
    pub role: OwnRole,
    pub path: String,
    /// The directory that holds it.
    pub dir: InodeKey,
    /// The file, when there is one.
    pub file: Option<InodeKey>,
    /// Its name there; `None` when every file of the directory is the agent's.
    pub name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnRole {
    Configuration,
    Traces,
    Spool,
}

/// An image's manifest or index that came into a store of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageArrival {
    /// `sha256:` and 64 hex digits: of the manifest or index.
    pub digest: String,
    pub media_type: String,
    /// References that the blob itself or an index beside it names; often none.
    pub names: Vec<String>,
    /// Digests of the manifests of an index, or of the configuration of a manifest.
    pub children: Vec<String>,
    /// How many layers; 0 for an index.
    pub layers: u32,
    /// Path of the blob in the store.
    pub path: String,
    /// It did not come just now: it was there when the agent started, and is told because it is a pause image's.
    #[serde(default)]
    pub present: bool,
    /// Why nothing more is known.
    pub unreadable: Option<String>,
}

/// The references of an image, as the runtime lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageNames {
    /// The runtime's id of the image: digest of its configuration, `sha256:...`.
    pub id: String,
    /// Tags: `registry.k8s.io/pause:3.9`.
    pub tags: Vec<String>,
    /// References by digest: `registry.k8s.io/pause@sha256:...`.
    pub digests: Vec<String>,
    /// The runtime keeps it whatever happens: so it is with the pause image.
    pub pinned: bool,
}

/// The file that a process executes: one in a sandbox, or one that acts on what is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutedFile {
    pub process: ProcessKey,
    /// Lower-case hex; `None` when it could not be read.
    pub sha256: Option<String>,
    pub size: u64,
    pub unreadable: Option<String>,
    /// When it first acted on what is watched; `None` for what a sandbox executes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acted: Option<BootNs>,
}

/// A runtime's or kubelet's choice of the pause image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseConfig {
    /// The file, or the command line of a process (`kubelet`).
    pub path: String,
    /// What it names; `None` when it leaves the default.
    pub image: Option<String>,
    /// What it named before; `None` when it is seen for the first time.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "form::write_there",
        deserialize_with = "form::there"
    )]
    pub before: Option<Option<String>>,
    /// Why it could not be read, with the line where there is one.
    pub unreadable: Option<String>,
}

/// What the user knows to be good. Part of the stream, so that a replay has it too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Digests of pause images beside those that the detector ships, `sha256:...`.
    pub pause_digests: Vec<String>,
    /// SHA-256 of pause binaries, lower-case hex; empty when any is fine that does not differ from the image's own.
    pub pause_binaries: Vec<String>,
    /// Patterns of images that may run: references or digests; empty when any may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images_allow: Vec<String>,
    /// Workloads that are known to need the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub privileged_workloads: Vec<Workload>,
    /// Networks that requests to the API server may come from, `10.0.0.0/8`; empty for those that are routed nowhere outside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_networks: Vec<String>,
    /// Networks that the API server may connect to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhook_networks: Vec<String>,
    /// Where admission webhooks may send objects: patterns of URLs, and of services as `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub admission_webhooks: Vec<String>,
}

/// Most patterns of images, and most workloads, that are looked at.
pub const PATTERNS_MAX: usize = 256;

/// Containers of this namespace and of images like this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub namespace: String,
    /// A pattern of the image's reference, as the pod names it.
    pub image: String,
}
