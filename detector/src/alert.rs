//! Alerts: the stable contract with whoever reads them.

use serde::{Deserialize, Serialize};

/// How bad it is. Ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Low,
    Medium,
    High,
    Critical,
}

impl Severity {
    /// As alerts have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// One alert: a line of JSON on stdout. Fields are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alert {
    /// RFC 3339 with nanoseconds, UTC: when the act happened, or was found when no act was seen.
    pub time: String,
    pub node: String,
    pub severity: Severity,
    pub technique: Technique,
    pub title: String,
    /// The act was refused (`--deny`); nothing changed.
    pub blocked: bool,
    /// What raised the severity, most important first, in words.
    pub reasons: Vec<String>,
    pub origin: Origin,
    /// Who did it; `None` when no hook saw an act.
    pub process: Option<Process>,
    pub container: Option<Container>,
    pub pod: Option<Pod>,
    pub file: Option<File>,
    /// What the manifest asks for, when the alert is about one that parses.
    pub manifest: Option<crate::manifest::Manifest>,
    /// The request to the API server that completed the finding.
    pub request: Option<Request>,
    pub evidence: Vec<Evidence>,
    pub trace: TraceRef,
    /// How many findings this one stands for: those that were identical with one that was told before, or were held back.
    pub count: u64,
    /// When the first and the last of them happened; `None` when it is about one.
    pub first_time: Option<String>,
    pub last_time: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Technique {
    pub id: &'static str,
    pub name: &'static str,
    pub tactic: &'static str,
    pub attack: &'static [&'static str],
    pub microsoft: &'static [&'static str],
}

/// Where the acting process lives. Three different values: not knowing is not "host".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Host,
    Container,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    pub pid: u32,
    /// RFC 3339; `None` when only the pid is known.
    pub start_time: Option<String>,
    pub exe: String,
    /// Lower-case hex of the SHA-256 of what it executed when it acted; `None` when that is not known.
    pub sha256: Option<String>,
    pub argv: Vec<String>,
    pub argv_truncated: bool,
    pub uid: u32,
    pub login_uid: Option<u32>,
    pub tty: Option<String>,
    pub cgroup: Option<String>,
    /// Parent first, up to the root.
    pub ancestors: Vec<Ancestor>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ancestor {
    pub pid: u32,
    pub exe: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Container {
    pub id: String,
    pub name: Option<String>,
    /// As the pod's specification names it.
    pub image: Option<String>,
    /// What the runtime resolved that to.
    pub image_digest: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// The file that the alert is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct File {
    /// As kubelet names it.
    pub path: String,
    pub sha256: Option<String>,
    pub size: Option<u64>,
    /// `added`, `modified`, `removed`, `directory replaced`, `directory removed`.
    pub change: &'static str,
    /// Digest of what it was before.
    pub previous_sha256: Option<String>,
    pub symlink: Option<String>,
}

impl File {
    /// One of which only its name and what became of it are known.
    #[must_use]
    pub fn named(path: &str, change: &'static str) -> Self {
        Self { path: path.to_owned(), sha256: None, size: None, change, previous_sha256: None, symlink: None }
    }
}

/// A request to an API server, as its audit log has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Empty where nobody was authenticated.
    pub user: String,
    pub groups: Vec<String>,
    /// Whom that user acted as.
    pub impersonated_user: Option<String>,
    /// The last one is the connection's other end; those before are what headers claim.
    pub source_ips: Vec<String>,
    pub user_agent: String,
    pub verb: String,
    pub uri: String,
    /// `pods/exec`, `mutatingwebhookconfigurations.admissionregistration.k8s.io`; `None` for what is no resource.
    pub resource: Option<String>,
    pub namespace: Option<String>,
    pub name: Option<String>,
    /// HTTP status of the answer.
    pub code: u16,
    pub audit_id: String,
    /// When the API server received it, RFC 3339, by its own clock.
    pub time: String,
    /// The pod that the service account's token is bound to.
    pub pod: Option<String>,
}

/// A record behind the alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// Record kind: `open`, `change`, `path`, `manifest`, ...
    pub kind: &'static str,
    /// Hook name; `None` for records that no kernel hook made.
    pub hook: Option<&'static str>,
    pub sequence: u64,
    /// What it adds, in words: `openat for writing`, `rename /tmp/x -> /etc/...`.
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TraceRef {
    /// Sequence number of the record that completed the finding.
    pub sequence: u64,
}
