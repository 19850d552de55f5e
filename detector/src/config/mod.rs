//! The configuration: one YAML file, whose every key is a field here and whose every comment is one of these.
//!
//! [`file`] reads it, [`show`] writes it, [`watch`] reads it again.

pub mod checks;
pub mod command;
pub mod file;
mod show;
#[cfg(test)]
mod tests;
pub mod watch;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use checks::{
    Digest, Expiry, Expression, HookName, Listen, Network, Output, Pattern, Sha256, Size, Span, Technique, Text,
    Trusted,
};

use crate::{
    cli::Hooks,
    record::{self, OwnRole, PATTERNS_MAX, Policy, Rules},
    recorder::segments::Limits,
    sink::spec::Kind,
    source::{
        audit, kernel,
        kubelet::Discovery,
        live::{self},
    },
    triage::EXCEPTIONS_MAX,
};

/// Configuration of `detector run --config FILE`. Flags override what stands here. A key that is left out has its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directories to watch beside those that kubelets here read static pods from. They need not exist yet.
    pub manifest_dirs: Vec<PathBuf>,
    /// Watch running kubelets' directories and the usual ones too. With false, only manifest_dirs is watched.
    pub default_dirs: bool,
    /// The node's name in alerts; null for the host's name.
    pub node_name: Option<String>,
    /// How acts are seen: lsm, fentry, kprobe or tracepoint; null for the best that this kernel lets attach.
    pub hooks: Option<Hooks>,
    /// Hooks that are not attached, by their names in `detector doctor`.
    pub without_hooks: Vec<HookName>,
    /// A file with the running kernel's BTF; null for /sys/kernel/btf/vmlinux.
    pub btf: Option<PathBuf>,
    /// Container runtimes, which are asked about containers and images.
    pub cri: Cri,
    /// Networks to which the API server may connect: those of admission webhooks and extension API servers. Empty to be told, low, of each
    /// new address; with one or more, each that is outside of them is medium. Applied at once.
    pub webhook_networks: Vec<Network>,
    /// Audit logs of kube-apiservers.
    pub audit: Audit,
    /// Directories of pods' logs beside /var/log/pods, which is watched with default_dirs: those that kubelets here have as podLogsDir.
    pub pod_log_dirs: Vec<PathBuf>,
    /// Networks from which the API server may be used: 10.0.0.0/8, 2001:db8::/32, 192.0.2.7; empty for those that are routed nowhere
    /// outside (RFC 1918, unique local, link-local, loopback). Applied at once.
    pub allowed_networks: Vec<Network>,
    /// Where admission webhooks may send objects: patterns of URLs (https://policy.example/**), and of services as namespace/name. A
    /// configuration that sends them nowhere else is low. Applied at once.
    pub admission_webhooks: Vec<Pattern>,
    /// Pause images and programs that are known to be good. Applied at once when this file changes.
    pub pause: Pause,
    /// Images that may run. Applied at once.
    pub images: Images,
    /// Workloads that need the node to do their work, by their pods' namespace and a pattern of their containers' images: that they
    /// start is low. Whoever can name a pod so can name it so: keep patterns narrow. Applied at once.
    pub privileged_workloads: Vec<PrivilegedWorkload>,
    /// Refusing changes instead of telling of them; needs BPF LSM.
    pub deny: Deny,
    /// The flight recorder: what happens is kept as traces in a directory.
    pub record: Record,
    /// Where alerts go, each as docs/sinks.md has it: stdout:json, syslog:, otlp+http://otel:4318, ...; empty for stdout:pretty on a
    /// terminal and stdout:json elsewhere. Applied at once.
    pub outputs: Vec<Output>,
    /// A directory in which alerts wait whose receiver is away; null to let them wait in memory, 4 MiB each.
    pub spool: Option<PathBuf>,
    /// Identical findings: the first is told at once, those after it are counted and told as one. Applied at once.
    pub grouping: Grouping,
    /// Alerts of one technique about one pod: what is more is added up and told as one. Critical ones are told each. Applied at once.
    pub rate_limit: RateLimit,
    /// What the agent tells about itself.
    pub metrics: Metrics,
    /// What is not to be told. Each needs a name, a reason, a time at which it expires, and at least one of technique, namespace,
    /// image, digest, binary, path and when. All that it names must be so. Applied at once. For example:
    ///
    ///     - name: kubeadm writes its manifests
    ///       reason: upgrades of the control plane, ticket OPS-1234
    ///       expires: 2027-01-31T00:00:00Z
    ///       technique: static-pod
    ///       path: /etc/kubernetes/manifests/*.yaml
    ///       when: alert.process.exe == "/usr/bin/kubeadm"
    pub exceptions: Vec<Exception>,
    /// Give up, once everything is attached, what is not needed any more: capabilities, system calls, writing to files. False only to
    /// look for a fault with.
    pub confine: bool,
}

/// Container runtimes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cri {
    /// Ask them. With false, containers are known by their bundles alone.
    pub ask: bool,
    /// Sockets of the runtimes to ask; empty for those that running kubelets use, and the usual ones.
    pub sockets: Vec<PathBuf>,
}

/// Audit logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Follow the logs that kube-apiservers on this node write (--audit-log-path).
    pub find: bool,
    /// Other logs to follow, as the node names them. They need not exist yet.
    pub logs: Vec<PathBuf>,
    /// Read a log from its beginning where no agent before has read it. With false, from its end.
    pub whole: bool,
    /// The directory in which it is kept how far logs were read; null for that of spool, else of record. Without any, logs are read from
    /// their ends when the agent starts again.
    pub state: Option<PathBuf>,
}

/// Pause images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pause {
    /// Digests (sha256:...) of pause images beside the Kubernetes project's own.
    pub digests: Vec<Digest>,
    /// SHA-256 of pause programs; with one or more, pods whose pause is none of them are alerts.
    pub binaries: Vec<Sha256>,
}

/// Images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Patterns of references (registry.example/**) or digests (sha256:...) of images that containers may run; empty for any. * stands
    /// for anything but a slash, ** for anything.
    pub allow: Vec<Pattern>,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrivilegedWorkload {
    /// The namespace of its pods.
    pub namespace: Text,
    /// The image of its containers; * stands for anything but a slash, ** for anything.
    pub image: Pattern,
}

/// Refusing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Deny {
    /// Refuse changes of what kubelets read as static pods.
    pub static_pod: bool,
    /// Programs that may change manifests all the same: PATH or PATH=SHA256.
    pub trust: Vec<Trusted>,
}

/// The flight recorder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    /// The directory; null to record nothing.
    pub dir: Option<PathBuf>,
    /// Most that the traces in it may take. The oldest go first, evidence last.
    pub size: Size,
    /// How long traces are kept that are no evidence.
    pub age: Span,
    /// How much of the directory's file system stays free in any case, in percent; beyond 10 % a kubelet begins to evict pods.
    #[schemars(range(max = 99))]
    pub free_percent: u8,
}

/// Grouping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Grouping {
    /// How long findings like one that was told are counted; 0s to tell each.
    pub window: Span,
}

/// Rate limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// How many are told each; 0 for any number.
    pub alerts: u32,
    /// In how long a time.
    pub per: Span,
}

/// Metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// ADDR:PORT at which /metrics, /healthz, /readyz and /livez are served, to everybody who can reach it; null to listen
    /// nowhere. [::] stands for all addresses, those of IPv4 too.
    pub listen: Option<Listen>,
}

/// An exception.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// What it is called where it is counted and explained.
    pub name: Text,
    /// Why it is right not to be told.
    pub reason: Text,
    /// RFC 3339. From then on it does not apply any more, and that is said.
    pub expires: Expiry,
    /// The technique's id: static-pod, container-exec, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub technique: Option<Technique>,
    /// The namespace of the pod that the alert names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Text>,
    /// The container's image; * stands for anything but a slash, ** for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Pattern>,
    /// The digest (sha256:...) of the container's image or of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// SHA-256 of the executable of the process that acted. It is not known of a process that ended at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<Sha256>,
    /// The file that the alert is about; * stands for anything but a slash, ** for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Pattern>,
    /// A CEL expression over `alert`, which has the fields of an alert as JSON. One that fails, because the alert has no pod,
    /// say, is not true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Expression>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            manifest_dirs: Vec::new(),
            default_dirs: true,
            node_name: None,
            hooks: None,
            without_hooks: Vec::new(),
            btf: None,
            cri: Cri::default(),
            webhook_networks: Vec::new(),
            audit: Audit::default(),
            pod_log_dirs: Vec::new(),
            allowed_networks: Vec::new(),
            admission_webhooks: Vec::new(),
            pause: Pause::default(),
            images: Images::default(),
            privileged_workloads: usual_workloads(),
            deny: Deny::default(),
            record: Record::default(),
            outputs: Vec::new(),
            spool: None,
            grouping: Grouping::default(),
            rate_limit: RateLimit::default(),
            metrics: Metrics::default(),
            exceptions: Vec::new(),
            confine: true,
        }
    }
}

/// What kubeadm runs on nodes.
fn usual_workloads() -> Vec<PrivilegedWorkload> {
    ["kube-proxy", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"]
        .into_iter()
        .filter_map(|name| {
            let namespace = Text::try_from("kube-system".to_owned()).ok()?;
            let image = Pattern::try_from(format!("registry.k8s.io/{name}:*")).ok()?;
            Some(PrivilegedWorkload { namespace, image })
        })
        .collect()
}

impl Default for Cri {
    fn default() -> Self {
        Self { ask: true, sockets: Vec::new() }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self { find: true, logs: Vec::new(), whole: false, state: None }
    }
}

impl Default for Record {
    fn default() -> Self {
        Self { dir: None, size: Size(1 << 30), age: Span(Duration::from_secs(24 * 3600)), free_percent: 15 }
    }
}

impl Default for Grouping {
    fn default() -> Self {
        Self { window: Span(Duration::from_secs(60)) }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { alerts: 60, per: Span(Duration::from_secs(60)) }
    }
}

/// What is wrong with a configuration though each value is right, and the keys that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub key: &'static [&'static str],
    /// Of a list.
    pub item: Option<usize>,
    pub what: String,
}

impl Conflict {
    /// The same where there is no file.
    #[must_use]
    pub fn on_the_command_line(&self) -> String {
        match self.key {
            ["default_dirs"] => {
                "--no-default-dirs: nothing would be watched; name directories with --manifest-dir".to_owned()
            }
            ["deny", ..] => "--trust: programs to trust, and nothing is denied; give --deny too".to_owned(),
            key => format!("{}: {}", key.join("."), self.what),
        }
    }
}

impl Config {
    /// What does not fit together.
    ///
    /// # Errors
    /// The first such thing.
    pub fn fits(&self) -> Result<(), Conflict> {
        let conflict = |key, item, what: &str| Err(Conflict { key, item, what: what.to_owned() });
        if !self.default_dirs && self.manifest_dirs.is_empty() {
            return conflict(
                &["default_dirs"],
                None,
                "nothing would be watched; expected true, or manifest_dirs with a directory",
            );
        }
        if !self.cri.ask && !self.cri.sockets.is_empty() {
            return conflict(
                &["cri", "sockets"],
                None,
                "sockets to ask, and cri.ask is false; expected one or the other",
            );
        }
        if !self.deny.static_pod && !self.deny.trust.is_empty() {
            return conflict(
                &["deny", "trust"],
                None,
                "programs to trust, and nothing is denied; expected deny.static_pod: true",
            );
        }
        if self.record.free_percent > 99 {
            return conflict(&["record", "free_percent"], None, "more than there is; expected 0 to 99");
        }
        for (key, count) in
            [("images", self.images.allow.len()), ("privileged_workloads", self.privileged_workloads.len())]
        {
            if count > PATTERNS_MAX {
                let what = format!("{count} of them; expected at most {PATTERNS_MAX}");
                return conflict(
                    if key == "images" { &["images", "allow"] } else { &["privileged_workloads"] },
                    Some(PATTERNS_MAX),
                    &what,
                );
            }
        }
        let is_stdout = |output: &Output| matches!(output.spec().kind(), Kind::Stdout(_));
        if let Some((second, _)) = self.outputs.iter().enumerate().filter(|(_, output)| is_stdout(output)).nth(1) {
            return conflict(&["outputs"], Some(second), "standard output twice; expected one of its forms");
        }
        if self.exceptions.len() > EXCEPTIONS_MAX {
            let what = format!("{} exceptions; expected at most {EXCEPTIONS_MAX}", self.exceptions.len());
            return conflict(&["exceptions"], Some(EXCEPTIONS_MAX), &what);
        }
        let mut names = BTreeSet::new();
        for (at, exception) in self.exceptions.iter().enumerate() {
            if !names.insert(exception.name.as_ref()) {
                return conflict(&["exceptions"], Some(at), "another exception has this name; expected one of its own");
            }
            if exception.names_nothing() {
                return conflict(
                    &["exceptions"],
                    Some(at),
                    "it would silence everything; expected one or more of technique, namespace, image, digest, binary, path, when",
                );
            }
        }
        Ok(())
    }

    /// Exceptions that do not apply any more, in words.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> Vec<String> {
        let expired = self.exceptions.iter().filter(|exception| exception.expires.time() <= now);
        expired
            .map(|exception| {
                let name = crate::escape::escape(exception.name.as_ref());
                format!("exception \"{name}\" expired at {} and does not apply any more", exception.expires.as_ref())
            })
            .collect()
    }

    /// What decides which alerts there are.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            policy: Policy {
                pause_digests: self.pause.digests.iter().map(|digest| digest.as_ref().to_owned()).collect(),
                pause_binaries: self.pause.binaries.iter().map(|binary| binary.as_ref().to_owned()).collect(),
                images_allow: self.images.allow.iter().map(|pattern| pattern.as_ref().to_owned()).collect(),
                privileged_workloads: self.privileged_workloads.iter().map(Into::into).collect(),
                webhook_networks: self.webhook_networks.iter().map(|network| network.as_ref().to_owned()).collect(),
                allowed_networks: self.allowed_networks.iter().map(|network| network.as_ref().to_owned()).collect(),
                admission_webhooks: self.admission_webhooks.iter().map(|target| target.as_ref().to_owned()).collect(),
            },
            group_ns: self.grouping.window.ns(),
            limit: self.rate_limit.alerts.into(),
            limit_ns: self.rate_limit.per.ns(),
            exceptions: self.exceptions.iter().map(Into::into).collect(),
        }
    }

    /// As the live source takes it.
    #[must_use]
    pub fn options(&self) -> live::Options {
        live::Options {
            kernel: kernel::Options {
                btf: self.btf.clone(),
                without: self.without_hooks.iter().map(|hook| hook.as_ref().to_owned()).collect(),
                backend: self.hooks.map(Into::into),
            },
            discovery: Discovery {
                explicit: self.manifest_dirs.clone(),
                defaults: self.default_dirs,
                proc: PathBuf::from("/proc"),
            },
            node: self.node_name.clone(),
            deny: self.deny.static_pod.then(|| self.deny.trust.iter().map(Trusted::program).collect()),
            rules: self.rules(),
            cri: self.cri.ask.then(|| self.cri.sockets.clone()),
            own: [(OwnRole::Traces, &self.record.dir), (OwnRole::Spool, &self.spool)]
                .into_iter()
                .filter_map(|(role, dir)| Some((role, dir.clone()?)))
                .collect(),
            audit: audit::Options {
                logs: self.audit.logs.clone(),
                find: self.audit.find,
                whole: self.audit.whole,
                state: self.audit.state.as_ref().or(self.spool.as_ref()).or(self.record.dir.as_ref()).cloned(),
                proc: PathBuf::from("/proc"),
            },
            pod_logs: self.pod_log_dirs.clone(),
        }
    }

    /// Bounds of the recording.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { size: self.record.size.0, age: self.record.age.0, free: self.record.free_percent }
    }

    /// Keys whose change takes effect only when the agent starts again.
    #[must_use]
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let changed = [
            ("manifest_dirs", self.manifest_dirs != new.manifest_dirs),
            ("default_dirs", self.default_dirs != new.default_dirs),
            ("node_name", self.node_name != new.node_name),
            ("hooks", self.hooks != new.hooks),
            ("without_hooks", self.without_hooks != new.without_hooks),
            ("btf", self.btf != new.btf),
            ("cri", self.cri != new.cri),
            ("audit", self.audit != new.audit),
            ("pod_log_dirs", self.pod_log_dirs != new.pod_log_dirs),
            ("deny", self.deny != new.deny),
            ("record", self.record != new.record),
            ("spool", self.spool != new.spool),
            ("confine", self.confine != new.confine),
            ("metrics", self.metrics != new.metrics),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }
}

impl Exception {
    fn names_nothing(&self) -> bool {
        let Self { name: _, reason: _, expires: _, technique, namespace, image, digest, binary, path, when } = self;
        technique.is_none()
            && namespace.is_none()
            && image.is_none()
            && digest.is_none()
            && binary.is_none()
            && path.is_none()
            && when.is_none()
    }
}

impl From<&PrivilegedWorkload> for record::Workload {
    fn from(workload: &PrivilegedWorkload) -> Self {
        Self { namespace: workload.namespace.as_ref().to_owned(), image: workload.image.as_ref().to_owned() }
    }
}

impl From<&Exception> for record::Exception {
    fn from(exception: &Exception) -> Self {
        fn text(text: Option<&impl AsRef<str>>) -> Option<String> {
            text.map(|text| text.as_ref().to_owned())
        }
        Self {
            name: exception.name.as_ref().to_owned(),
            reason: exception.reason.as_ref().to_owned(),
            expires: exception.expires.as_ref().to_owned(),
            technique: text(exception.technique.as_ref()),
            namespace: text(exception.namespace.as_ref()),
            image: text(exception.image.as_ref()),
            digest: text(exception.digest.as_ref()),
            binary: text(exception.binary.as_ref()),
            path: text(exception.path.as_ref()),
            when: text(exception.when.as_ref()),
        }
    }
}
