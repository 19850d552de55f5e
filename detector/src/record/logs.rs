//! Logs that lie on this node: those of pods, as kubelet has the runtime write them, and where API servers write their audit logs.

use serde::{Deserialize, Serialize};

use super::{BootNs, InodeKey, PodRef};

/// A directory of logs, or an audit log, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeLogs {
    /// The directory, as the node names it; for an audit log the log.
    pub path: String,
    /// The directory's inode.
    pub dir: InodeKey,
    pub role: LogsRole,
    /// Whose logs these are, as the directory is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    pub change: LogsChange,
    /// When it was last looked at: the acts behind a change happened later than this.
    pub since: BootNs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogsRole {
    /// A container's logs: `/var/log/pods/NAMESPACE_NAME_UID/CONTAINER`.
    Container,
    /// `/var/log/containers`: links to the current log of each container, by which shippers find them.
    Links,
    /// An API server's audit log.
    Audit,
}

/// What became of logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogsChange {
    /// They are watched from now on. An audit log's inode, where there is one.
    Watched { file: Option<InodeKey> },
    /// The directory is gone.
    Unwatched,
    /// A log is shorter than it was.
    Emptied {
        name: String,
        inode: InodeKey,
        /// Its lengths in bytes, before and after.
        had: u64,
        has: u64,
        /// A file that is as long as it was, and not sparse, came to lie beside it, as rotation leaves one.
        copied: bool,
    },
    /// Somebody acted there, and nothing stands in this log.
    Empty { inode: InodeKey },
    /// A log, or a link to one, is not in its directory any more, under whatever name.
    Removed {
        name: String,
        inode: InodeKey,
        had: u64,
        /// It was one that rotation had left, and not the current one.
        rotated: bool,
        /// Another one has its name.
        replaced: bool,
    },
}
