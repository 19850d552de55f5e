//! The one stream: everything that the agent knows arrives as a [`Record`].
//!
//! A source does I/O and yields records; nothing behind a source reads a clock, a file, a socket or the environment.
//! Time is the record's own, in nanoseconds of `CLOCK_BOOTTIME`; [`Start::boot_time_ns`] turns it into wall time.

mod audit;
pub(crate) mod form;
mod logs;
mod node;
mod rules;
pub mod sense;

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use audit::*;
pub use logs::*;
pub use node::*;
pub use rules::*;
pub use sense::{Client, Clients, Component, ComponentKind, Components, Endpoint, EndpointRole, Secret, SecretKind};

/// Nanoseconds of `CLOCK_BOOTTIME` of the recorded host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootNs(pub u64);

impl BootNs {
    /// Nanoseconds since the epoch, on a host that booted `boot_time_ns` after it.
    #[must_use]
    pub fn wall(self, boot_time_ns: u64) -> i128 {
        i128::from(boot_time_ns) + i128::from(self.0)
    }
}

/// A process, told apart from later ones with the same pid.
///
/// The start is in clock ticks (1/100 s) of `CLOCK_BOOTTIME`: the resolution that `/proc/<pid>/stat` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Thread-group id in the initial pid namespace.
    pub pid: u32,
    /// Start in clock ticks since boot.
    pub start: u64,
}

impl ProcessKey {
    /// Nanoseconds in a clock tick: `USER_HZ` is 100 on every architecture that we build for.
    pub const TICK_NS: u64 = 10_000_000;

    /// The key of a process whose start the kernel gives in nanoseconds.
    #[must_use]
    pub fn from_ns(pid: u32, start_ns: u64) -> Self {
        Self { pid, start: start_ns / Self::TICK_NS }
    }
}

/// An inode as the kernel names it: `s_dev` in the kernel's internal encoding (`major << 20 | minor`), and `i_ino`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InodeKey {
    pub dev: u32,
    pub ino: u64,
}

/// One item of the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Position in the stream, from 1, without gaps.
    pub seq: u64,
    pub time: BootNs,
    pub body: Body,
}

/// What a record says. Small: a burst of kernel records waits in memory, and each takes as much as the largest of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// Always the first record.
    Start(Box<Start>),
    /// What alerts are judged by from now on: behind the start, and whenever the configuration changes.
    Config(Box<Rules>),
    /// A process that was there before the agent, or when events were lost.
    Process(Box<ProcessSeed>),
    /// All processes that lived when they were looked at because events were lost.
    Alive { processes: Vec<ProcessKey> },
    /// A cgroup that was there before the agent, or when events were lost.
    Cgroup { id: u64, path: String },
    /// A record as the kernel wrote it, undecoded: see [`crate::decode`].
    Kernel {
        #[serde(with = "form::hex")]
        raw: Bytes,
    },
    /// The set of watched manifest directories, now; sent at start and whenever it changes.
    Watched(Watched),
    /// What kubelet would read changed.
    Manifest(Box<ManifestChange>),
    /// What is known of a container.
    Container(Box<ContainerInfo>),
    /// An image came into a store of this node.
    Image(Box<ImageArrival>),
    /// The names that a runtime gives an image.
    ImageNames(Box<ImageNames>),
    /// The file that a process executes, in a sandbox or acting on what is watched.
    Executed(Box<ExecutedFile>),
    /// Which pause image a runtime is told to use, at start and whenever it changes.
    PauseConfig(Box<PauseConfig>),
    /// A file or file system of secrets came to be watched, or is gone.
    Secret(Box<Secret>),
    /// Which parts of Kubernetes' control plane run here, and where they and the cluster's API servers listen; whenever it changes.
    Components(Box<Components>),
    /// Who was connected to API servers already, when the kernel begins to tell of their clients, and after it lost some.
    Clients(Box<Clients>),
    /// Records were lost.
    Loss(Box<Loss>),
    /// Hooks that were attached are not any more, or are again.
    Hooks(Box<HooksChanged>),
    /// A request to an API server, as its audit log has it.
    Audit(Box<AuditEvent>),
    /// What became of an audit log.
    AuditLog(Box<AuditLog>),
    /// Logs of pods, and where audit logs lie: what is watched of them, and what became of them.
    NodeLogs(Box<NodeLogs>),
    /// Time passes; sent by the live source about once a second so that windows close on an idle node.
    Tick,
}

const _: () = assert!(size_of::<Body>() <= 40);

/// The recorded host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Start {
    pub agent_version: String,
    pub node: String,
    pub kernel: String,
    /// Wall time of boot in ns since the epoch: wall time = `boot_time_ns` + record time.
    pub boot_time_ns: u64,
    /// Inode numbers of the initial process's namespaces: what "on the host" means.
    pub host_mnt_ns: u32,
    pub host_pid_ns: u32,
    /// The initial process's other namespaces.
    #[serde(default)]
    pub host_shared: SharedNamespaces,
    pub hooks: Vec<HookState>,
    #[serde(default)]
    pub policy: Policy,
    /// The agent itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Box<Own>>,
}

/// One hook, and whether it works here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HookState {
    pub name: String,
    /// `tracepoint`, later `lsm`, `fentry`, `kprobe`; `None` when nothing could be attached.
    pub backend: Option<String>,
    /// Why it is not attached.
    pub reason: Option<String>,
    /// Instructions that the kernel's verifier went through; `None` where it does not tell (before 5.16).
    #[serde(default)]
    pub verified: Option<u32>,
    pub required: bool,
}

/// Hooks that others detached, or attached again, while the agent ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HooksChanged {
    /// When they were last looked at: what was done to them was done later than this.
    pub since: BootNs,
    pub hooks: Vec<HookChange>,
}

/// One hook of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HookChange {
    pub name: String,
    /// Why it is not attached; `None` when it is again.
    pub detached: Option<String>,
    /// The kernel's id of its link, where it is by that that it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<u32>,
    /// Without it the main job cannot be done.
    pub required: bool,
    /// What is not seen without it.
    pub without: String,
}

/// A process as `/proc` shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessSeed {
    pub pid: u32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    pub start: u64,
    pub parent_pid: u32,
    /// Where that is known: the parent's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_start: Option<u64>,
    pub exe: String,
    pub argv: Vec<String>,
    pub argv_truncated: bool,
    pub uid: u32,
    pub login_uid: Option<u32>,
    pub tty: Option<String>,
    pub cgroup_id: u64,
    pub mnt_ns: u32,
    pub pid_ns: u32,
    /// Its other namespaces.
    #[serde(default)]
    pub shared: SharedNamespaces,
    /// Its pid in its own pid namespace.
    #[serde(default)]
    pub inner_pid: u32,
    /// It has ended, and others descend from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited: Option<BootNs>,
    /// It was looked at because events were lost: what it says holds from now on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

impl ProcessSeed {
    /// Which process it is of.
    #[must_use]
    pub fn key(&self) -> ProcessKey {
        ProcessKey { pid: self.pid, start: self.start }
    }
}

/// Namespaces of a process that several containers of a pod share, by their inode numbers; 0 for one that could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedNamespaces {
    pub net: u32,
    pub ipc: u32,
    pub uts: u32,
    pub cgroup: u32,
    pub user: u32,
}

/// The directories that are watched, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    pub dirs: Vec<WatchedDir>,
}

/// A directory (or single file) that a kubelet reads static pods from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchedDir {
    /// As kubelet names it, in kubelet's mount namespace.
    pub path: String,
    pub reason: WatchReason,
    /// The kubelet whose view this is; `None` for the agent's own view.
    pub kubelet_pid: Option<u32>,
    pub state: DirState,
}

/// Why a directory is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchReason {
    /// `--manifest-dir`.
    Flag,
    /// A running kubelet's command line.
    KubeletFlag,
    /// A running kubelet's configuration file or drop-in, whose path this is.
    KubeletConfig(String),
    /// The default of kubeadm or of a distribution.
    Default(String),
}

impl fmt::Display for WatchReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("--manifest-dir"),
            Self::KubeletFlag => f.write_str("kubelet's command line"),
            Self::KubeletConfig(file) => write!(f, "kubelet's configuration {}", crate::escape::escape(file)),
            Self::Default(of) => write!(f, "default of {}", crate::escape::escape(of)),
        }
    }
}

/// What stands at a watched path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DirState {
    /// A directory, with its inode.
    Present(InodeKey),
    /// kubelet reads a single file.
    File(InodeKey),
    Missing,
    /// Not a path but a URL that kubelet fetches pods from.
    Url,
    /// There is something, and it cannot be read as a directory.
    Unreadable(String),
}

/// One change of what kubelet would read, or of what lies in wait beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestChange {
    /// The watched directory, as kubelet names it.
    pub dir: String,
    pub dir_inode: Option<InodeKey>,
    /// Entry name inside `dir`, lossily decoded; empty when the change is of the directory itself.
    pub name: String,
    pub change: ChangeKind,
    /// False for what kubelet ignores: a leading dot, a subdirectory.
    pub visible: bool,
    /// The file that the entry resolves to, after the change.
    pub after: Option<ManifestFile>,
    /// And before it.
    pub before: Option<ManifestFile>,
    /// When the view last saw the state before: the acts behind the change happened later than this.
    pub since: BootNs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Was there when the agent started, or when it began to watch the directory: never an alert by itself.
    Present,
    Added,
    Modified,
    Removed,
    /// The directory appeared, or another one stands in its place (renamed in, mounted over).
    DirReplaced,
    DirRemoved,
}

/// A manifest as read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ManifestFile {
    pub inode: InodeKey,
    /// Where the entry's symlink leads, when it is one.
    pub symlink: Option<String>,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    /// Lower-case hex of the SHA-256 of the bytes read; `None` when nothing could be read.
    pub sha256: Option<String>,
    /// The content, at most [`MANIFEST_KEEP`] bytes of it.
    #[serde(with = "form::text")]
    pub content: Bytes,
    /// The file is longer than what was read.
    pub truncated: bool,
    /// Why it could not be read: a fifo, a device, a dangling symlink, an I/O error.
    pub unreadable: Option<String>,
}

/// Most bytes of a manifest that a record keeps. kubelet itself reads up to 10 MiB (`maxConfigLength`).
pub const MANIFEST_KEEP: usize = 256 * 1024;

/// Events that a hook could not deliver since the last such record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    pub hook: String,
    /// `None` when the kernel counts for all of them together.
    pub cpu: Option<u32>,
    pub lost: u64,
    /// The kernel did not run the program, because it was in the middle of another run on that CPU, rather than that the
    /// ring was full. Whether such an event would have been of interest is not known.
    #[serde(default)]
    pub skipped: bool,
    /// What was lost could have raised an alert.
    pub alerting: bool,
}
