//! What is done with what was found: the part of the configuration that decides which alerts there are.

use serde::{Deserialize, Serialize};

use super::Policy;

/// Part of the stream, behind its start and whenever it changes, so that a replay gives the same alerts. By default nothing is
/// grouped, held back or silenced: so it was with agents whose traces have no such record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    pub policy: Policy,
    /// How long findings that are identical with one that was told are counted, and not told each; 0 tells each.
    pub group_ns: u64,
    /// Most alerts of one technique about one pod within `limit_ns`; 0 tells any number.
    pub limit: u64,
    pub limit_ns: u64,
    pub exceptions: Vec<Exception>,
}

/// What is not to be told. Everything that it names must be so.
///
/// A condition that a reader does not know must not be ignored: it would silence more than was meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    pub name: String,
    pub reason: String,
    /// RFC 3339.
    pub expires: String,
    /// A technique's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub technique: Option<String>,
    /// Of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// A pattern of the container's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Of the container's image or the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// SHA-256 of the acting process's executable, lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
    /// A pattern of the file's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A CEL expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}
