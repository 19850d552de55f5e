//! `malicious-operator`: a container begins that is as good as root on its node.
//!
//! Told when its first program runs, by what the runtime was told to give it. Workloads that are known to need that are configured by
//! namespace and image, and are low: a name alone proves nothing.

use std::cmp::Reverse;

use detector_common::kind;
use globset::GlobMatcher;

use crate::{
    alert::{Evidence, Severity},
    context::{Context, container::Container},
    decode::Event,
    detect::{Detector, Finding, container_exec::place, kinds, once::Once, technique::MALICIOUS_OPERATOR},
    escape::escape_to,
    record::{Body, ContainerRole, HostMount, PATTERNS_MAX, Policy, Privileges, Record},
    risky,
    triage::pattern,
};

/// Most containers remembered, by pod, name and image.
const TOLD_MAX: usize = 4096;
/// Most of one kind that are named.
const NAMED: usize = 4;
/// Labels that say whose a pod is.
const OWNERS: [&str; 6] = [
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "helm.sh/chart",
    "app",
    "k8s-app",
];
/// Capabilities that many network plugins and proxies have.
const NETWORK: [&str; 2] = ["CAP_NET_ADMIN", "CAP_NET_RAW"];

/// Tells of them.
#[derive(Debug, Default)]
pub struct Operator {
    known: Vec<(String, GlobMatcher)>,
    told: Once<String, TOLD_MAX>,
}

impl Detector for Operator {
    fn kinds(&self) -> u64 {
        kinds(&[kind::EXEC])
    }

    fn observe(&mut self, record: &Record, _event: Option<&Event>, context: &Context) -> Vec<Finding> {
        match &record.body {
            Body::Start(start) => self.learn(&start.policy),
            Body::Config(rules) => self.learn(&rules.policy),
            _ => {}
        }
        let Some(container) = context.begun(record) else { return Vec::new() };
        self.begins(record, container, context).into_iter().collect()
    }
}

impl Operator {
    fn learn(&mut self, policy: &Policy) {
        let known = policy.privileged_workloads.iter().take(PATTERNS_MAX);
        self.known = known.filter_map(|known| Some((known.namespace.clone(), pattern(&known.image).ok()?))).collect();
    }

    fn begins(&mut self, record: &Record, container: &Container, context: &Context) -> Option<Finding> {
        // A sandbox is its pod's: what that may do, its containers say.
        let privileges =
            container.info.privileges.as_deref().filter(|_| container.info.role != ContainerRole::Sandbox)?;
        let (mut severity, mut reasons) = judge(container, privileges, context)?;
        if !self.first(container) {
            return None;
        }
        if self.is_known(container) {
            reasons.insert(0, "listed in privileged_workloads, by its namespace and its image".to_owned());
            severity = Severity::Low;
        }
        reasons.extend(owner(container, context));
        Some(Finding {
            technique: &MALICIOUS_OPERATOR,
            severity,
            time: record.time,
            title: format!("Container that is as good as root on the node starts: {}", place(container)),
            blocked: false,
            reasons,
            actor: container.init,
            container: Some(container.info.id.clone()),
            file: None,
            manifest: None,
            evidence: vec![Evidence {
                kind: "container",
                hook: None,
                sequence: record.seq,
                detail: format!("image {}", escape_to(container.info.image.as_deref().unwrap_or("unknown"), 256)),
            }],
        })
    }

    fn is_known(&self, container: &Container) -> bool {
        let (Some(pod), Some(image)) = (&container.info.pod, &container.info.image) else { return false };
        self.known.iter().any(|(namespace, like)| *namespace == pod.namespace && like.is_match(image))
    }

    /// Whether this container of this pod with this image begins for the first time: one that crashes again and again is one.
    fn first(&mut self, container: &Container) -> bool {
        let info = &container.info;
        let key = match &info.pod {
            Some(pod) => format!(
                "{}/{}/{}",
                pod.uid,
                info.name.as_deref().unwrap_or_default(),
                info.image.as_deref().unwrap_or_default()
            ),
            None => info.id.clone(),
        };
        self.told.first(key)
    }
}

/// How bad it is, and why. `None` when it has nothing of the node.
fn judge(container: &Container, may: &Privileges, context: &Context) -> Option<(Severity, Vec<String>)> {
    let mut found: Vec<(Severity, String)> = Vec::new();
    let list =
        |names: Vec<&str>| names.iter().take(NAMED).map(|name| escape_to(name, 64)).collect::<Vec<_>>().join(", ");
    if container.info.privileged && may.devices {
        let more = if may.unconfined { ", without a seccomp profile" } else { "" };
        found.push((Severity::High, format!("privileged: every capability, every device{more}")));
    } else {
        let (usual, rare): (Vec<&str>, Vec<&str>) =
            may.capabilities.iter().map(String::as_str).partition(|name| NETWORK.contains(name));
        if !rare.is_empty() {
            found.push((Severity::Medium, format!("capabilities: {}", list(rare))));
        }
        if !usual.is_empty() {
            found.push((Severity::Low, format!("capabilities: {}", list(usual))));
        }
    }
    if container.info.host_pid {
        found.push((Severity::Medium, "shares the node's processes (hostPID)".to_owned()));
    }
    let mut mounts: Vec<_> = may.mounts.iter().map(|mount| (weigh(mount), shown(mount))).collect();
    mounts.sort_by_key(|one| Reverse(one.0));
    found.extend(mounts.into_iter().take(NAMED));
    let severity = found.iter().map(|(severity, _)| *severity).max()?;
    found.sort_by_key(|one| Reverse(one.0));
    let mut reasons: Vec<_> = found.into_iter().map(|(_, reason)| reason).collect();
    // Common by themselves, and worth knowing beside the rest.
    let sandbox = container.info.sandbox_id.as_deref().and_then(|id| context.containers.get(id));
    let with = sandbox.and_then(|sandbox| sandbox.info.privileges.as_deref()).unwrap_or(may);
    if with.host_network {
        reasons.push("shares the node's network (hostNetwork)".to_owned());
    }
    if with.host_ipc {
        reasons.push("shares the node's IPC (hostIPC)".to_owned());
    }
    Some((severity, reasons))
}

fn weigh(mount: &HostMount) -> Severity {
    // A socket can be used whether its mount may be written or not.
    if risky::is_runtime(&mount.source) {
        return Severity::High;
    }
    match (risky::is_node(&mount.source), mount.read_only) {
        (true, false) => Severity::High,
        (true, true) | (false, false) => Severity::Medium,
        (false, true) => Severity::Low,
    }
}

fn shown(mount: &HostMount) -> String {
    let what = if risky::is_runtime(&mount.source) { "the container runtime's socket" } else { "a place of the node" };
    let how = if mount.read_only { ", read-only" } else { "" };
    format!("mounts {what}: {} at {}{how}", escape_to(&mount.source, 128), escape_to(&mount.target, 128))
}

/// Whose pod it is, as its labels or those of its sandbox say.
fn owner(container: &Container, context: &Context) -> Option<String> {
    let sandbox = container.info.sandbox_id.as_deref().and_then(|id| context.containers.get(id));
    let of = |container: &Container| -> Vec<String> {
        let labels = OWNERS.iter().filter_map(|key| Some((key, container.info.labels.get(*key)?)));
        labels.take(NAMED).map(|(key, value)| format!("{key}={}", escape_to(value, 64))).collect()
    };
    let mut labels = of(container);
    if labels.is_empty() {
        labels = sandbox.map(of).unwrap_or_default();
    }
    (!labels.is_empty()).then(|| format!("labels: {}", labels.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        alert::Alert,
        record::{ContainerInfo, Rules, Workload},
        testing::{self, Actor, Stream},
    };

    fn mount(source: &str, read_only: bool) -> HostMount {
        HostMount { source: source.to_owned(), target: "/host".to_owned(), read_only }
    }

    fn privileged() -> Privileges {
        let capabilities = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"].map(str::to_owned).to_vec();
        Privileges { unconfined: true, devices: true, capabilities, ..Privileges::default() }
    }

    /// A stream in which a container begins.
    fn begins(change: impl FnOnce(ContainerInfo) -> ContainerInfo, rules: Option<Rules>) -> Vec<Alert> {
        let mut stream = Stream::new();
        if let Some(rules) = rules {
            stream.push(Body::Config(Box::new(rules)));
        }
        begin(&mut stream, change);
        stream.alerts()
    }

    fn begin(stream: &mut Stream, change: impl FnOnce(ContainerInfo) -> ContainerInfo) {
        let (shell, id) = (Actor::host(50, 10), "c".repeat(64));
        stream.kernel(testing::cgroup(shell, 900, &format!("/kubepods/pod1/{id}")));
        let info = testing::container(&id, 900, ContainerRole::Member, "app");
        stream.push(Body::Container(Box::new(change(info))));
        let first = Actor { pid: 300, start: 99, cgroup: 900, mnt_ns: 70, pid_ns: 71 };
        stream.kernel(testing::fork(shell, first));
        stream.kernel(testing::exec_in(first, shell, "/app", &["app"], detector_common::Shared::default(), 1, ""));
    }

    fn with(may: Privileges) -> impl FnOnce(ContainerInfo) -> ContainerInfo {
        |info| ContainerInfo { privileged: may.devices, privileges: Some(Box::new(may)), ..info }
    }

    #[test]
    fn a_privileged_container_is_high_with_its_pod_and_reasons_and_an_ordinary_one_is_silent() {
        let alerts = begins(with(Privileges { mounts: vec![mount("/", false)], ..privileged() }), None);
        assert_eq!(alerts.len(), 1, "{alerts:#?}");
        assert_eq!((alerts[0].technique.id, alerts[0].severity), ("malicious-operator", Severity::High));
        assert_eq!(alerts[0].title, "Container that is as good as root on the node starts: app of pod shop/web-node-1");
        assert_eq!(
            alerts[0].reasons,
            [
                "privileged: every capability, every device, without a seccomp profile",
                "mounts a place of the node: / at /host"
            ]
        );
        assert_eq!(alerts[0].process.as_ref().unwrap().pid, 300);
        let ordinary = Privileges { host_network: true, unconfined: true, ..Privileges::default() };
        assert_eq!(begins(with(ordinary), None), []);
        assert_eq!(begins(|info| info, None), [], "nothing is known");
    }

    #[test]
    fn severity_follows_what_a_container_has_of_the_node() {
        let mounts =
            |source: &str, read_only| Privileges { mounts: vec![mount(source, read_only)], ..Privileges::default() };
        let capabilities = |name: &str| Privileges { capabilities: vec![name.to_owned()], ..Privileges::default() };
        for (may, severity) in [
            (mounts("/run/containerd/containerd.sock", true), Severity::High),
            (mounts("/etc/kubernetes", false), Severity::High),
            (mounts("/etc/kubernetes/pki", true), Severity::Medium),
            (mounts("/sys/fs/bpf", false), Severity::Medium),
            (mounts("/etc/ssl/certs", true), Severity::Low),
            (capabilities("CAP_SYS_PTRACE"), Severity::Medium),
            (capabilities("CAP_NET_ADMIN"), Severity::Low),
        ] {
            let alerts = begins(with(may.clone()), None);
            assert_eq!(alerts.iter().map(|alert| alert.severity).collect::<Vec<_>>(), [severity], "{may:?}");
        }
        let pids = begins(|info| ContainerInfo { host_pid: true, ..with(Privileges::default())(info) }, None);
        assert_eq!(pids[0].severity, Severity::Medium);
    }

    #[test]
    fn a_listed_workload_is_low_and_one_that_only_shares_its_namespace_or_image_is_not() {
        let rules = |namespace: &str, image: &str| {
            let listed = Workload { namespace: namespace.to_owned(), image: image.to_owned() };
            Some(Rules {
                policy: Policy { privileged_workloads: vec![listed], ..Policy::default() },
                ..Rules::default()
            })
        };
        let severity = |rules| begins(with(privileged()), rules)[0].severity;
        assert_eq!(severity(rules("shop", "registry.example/app:*")), Severity::Low);
        assert_eq!(severity(rules("kube-system", "registry.example/app:*")), Severity::High);
        assert_eq!(severity(rules("shop", "registry.example/other:*")), Severity::High);
    }

    #[test]
    fn a_container_that_begins_again_is_told_once_and_one_that_was_there_is_not() {
        let mut stream = Stream::new();
        begin(&mut stream, with(privileged()));
        begin(&mut stream, |info| ContainerInfo { id: "d".repeat(64), ..with(privileged())(info) });
        assert_eq!(stream.alerts().len(), 1);
        let mut stream = Stream::new();
        let id = "c".repeat(64);
        stream.push(Body::Cgroup { id: 900, path: format!("/kubepods/pod1/{id}") });
        let info = testing::container(&id, 900, ContainerRole::Member, "app");
        stream.push(Body::Container(Box::new(with(privileged())(info))));
        let mut seed = testing::seed(300, 20, 50, "/app");
        (seed.cgroup_id, seed.mnt_ns, seed.pid_ns, seed.inner_pid) = (900, 70, 71, 1);
        stream.push(Body::Process(Box::new(seed)));
        let first = Actor { pid: 300, start: 20, cgroup: 900, mnt_ns: 70, pid_ns: 71 };
        let again =
            testing::exec_in(first, Actor::host(50, 10), "/app", &["app"], detector_common::Shared::default(), 1, "");
        stream.kernel(again);
        assert_eq!(stream.alerts(), []);
    }
}
