//! What a static-pod manifest asks for. Pure: bytes in, facts out.

use serde::Serialize;

/// The facts of a pod manifest that decide how bad it is. All strings are the attacker's: bounded, never interpreted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Manifest {
    pub name: String,
    pub namespace: String,
    /// One per container (init and ephemeral ones too), in the manifest's order.
    pub images: Vec<String>,
    /// Names of privileged containers.
    pub privileged: Vec<String>,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub host_paths: Vec<String>,
    /// Capabilities added, without duplicates.
    pub capabilities: Vec<String>,
}

/// What a file in the manifest directory is to kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Nothing but white space and comments.
    Empty,
    /// A pod. Several when the document is a list of pods.
    Pods(Vec<Manifest>),
    /// Valid YAML or JSON that kubelet will not run: `kind` is what it says it is, empty when it says nothing.
    NotAPod { kind: String, why: String },
    /// Neither YAML nor JSON.
    Invalid { message: String, line: Option<usize>, column: Option<usize> },
}
