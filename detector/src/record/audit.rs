//! What a kube-apiserver's audit log says. All text is that of whoever made the request: bounded by the source that read it, never
//! interpreted.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

/// Most groups, addresses, webhooks and rules of one event that a record keeps.
pub const AUDIT_LIST_MAX: usize = 16;

/// A request to an API server, as its audit log has it (`audit.k8s.io/v1`). The record's own time is when the agent read the line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditEvent {
    /// `auditID`: the same for all stages of a request.
    pub id: String,
    /// `ResponseComplete`, `ResponseStarted` or `Panic`.
    pub stage: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; of what is no resource, the method.
    pub verb: String,
    /// With its query.
    pub uri: String,
    /// Who it was authenticated as; empty where it was not.
    pub user: String,
    pub groups: Vec<String>,
    pub uid: String,
    /// Whom that user acted as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated: Option<String>,
    /// The pod and the node that a service account's token is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// From where. The last one is the connection's other end; those before are what headers claim.
    pub sources: Vec<IpAddr>,
    /// What the client calls itself.
    pub agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<AuditObject>,
    /// HTTP status of the answer; 0 where there was none.
    pub code: u16,
    /// When the API server received it, RFC 3339.
    pub received: String,
    /// `allow` or `forbid`, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of a change of admission webhooks: what they are afterwards. `None` where the log does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhooks: Option<Vec<Webhook>>,
    /// The line was longer than what is read of one: objects are not known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// The file, and where in it the line begins, in bytes.
    pub log: String,
    pub offset: u64,
}

/// What a request was about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditObject {
    /// Plural: `pods`.
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
    /// Empty for the core group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Empty for what is in no namespace, and for all of them.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

impl fmt::Display for AuditObject {
    /// `pods/exec`, `mutatingwebhookconfigurations.admissionregistration.k8s.io`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        Ok(())
    }
}

/// One webhook of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Webhook {
    pub name: String,
    /// Where the API server sends objects: a URL, or `namespace/name` of a service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    pub rules: Vec<WebhookRule>,
    /// `Fail` or `Ignore`; empty where it was not said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub failure: String,
    /// It looks at some namespaces or objects only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub selects: bool,
}

/// Which requests a webhook sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebhookRule {
    pub operations: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
}

/// An audit log, and what became of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLog {
    /// As the node, or the API server that writes it, names it.
    pub path: String,
    pub state: LogState,
}

/// What became of an audit log. Rotation is not told: the file goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogState {
    /// There is none yet; it is read once it is made.
    #[default]
    Awaited,
    /// It is read from this byte on, for the first time.
    Begun { at: u64 },
    /// It is read on where an agent before left off: in so many files, from this byte of the oldest.
    Resumed { files: u64, at: u64 },
    /// It was made shorter, and no copy of what it held lies beside it.
    Truncated { had: u64, has: u64 },
    /// Another file stands in its place, and it was not kept beside it.
    Replaced { had: u64 },
    /// It is gone, and nothing stands in its place.
    Removed { had: u64 },
    /// What the agent before had not read is gone: removed, compressed or rewritten.
    Lost,
    /// It cannot be read.
    Unreadable(String),
}
