//! `supply-chain-compromise`: what runs in a container and was not in its image, images that policy does not allow, and tools that make
//! images or programs.
//!
//! The kernel says where an executed file lies: in the upper layer of the container's overlay, in memory, nowhere any more. A script is
//! its interpreter's, which is the image's. What a runtime executes on its way in, itself from memory among it, still has the host's
//! mount namespace.

use std::collections::BTreeSet;

use detector_common::{self as wire, kind};
use globset::GlobMatcher;

use crate::{
    alert::{Evidence, File, Severity},
    context::{
        Context,
        container::{Container, Namespaces},
    },
    decode::{Event, Exec, hook_name},
    detect::{Detector, Finding, base, container_exec::place, kinds, once::Once, technique::SUPPLY_CHAIN},
    escape::escape_to,
    record::{Body, BootNs, ContainerRole, PATTERNS_MAX, Policy, ProcessKey, Record},
    triage::pattern,
};

/// Most findings remembered, so that they are not told again.
const TOLD_MAX: usize = 8192;

/// Programs that make images, containers or programs.
const TOOLS: [&str; 22] = [
    "buildah",
    "buildctl",
    "buildkitd",
    "cc",
    "cc1",
    "cc1plus",
    "clang",
    "crane",
    "crictl",
    "crun",
    "ctr",
    "docker",
    "dockerd",
    "executor",
    "g++",
    "gcc",
    "img",
    "nerdctl",
    "podman",
    "runc",
    "rustc",
    "skopeo",
];

/// Tells of them.
#[derive(Debug, Default)]
pub struct SupplyChain {
    allowed: Vec<GlobMatcher>,
    /// By container and what it was about.
    told: Once<(String, String), TOLD_MAX>,
}

impl Detector for SupplyChain {
    fn kinds(&self) -> u64 {
        kinds(&[kind::EXEC])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        match &record.body {
            Body::Start(start) => self.learn(&start.policy),
            Body::Config(rules) => self.learn(&rules.policy),
            _ => {}
        }
        let mut findings = Vec::new();
        if let Some(container) = context.begun(record) {
            findings.extend(self.image(record, container, context));
        }
        if let Some(Event::Exec(exec)) = event
            && !context.is_older(record.time)
            && let Some(finding) = self.executed(record, exec, context)
        {
            findings.push(finding);
        }
        findings
    }
}

/// Where an executed file lies that was not in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    Memory,
    Nowhere,
    Tmpfs,
    Upper,
}

impl Lies {
    pub(super) fn of(flags: u32) -> Option<Self> {
        let is = |flag| flags & flag != 0;
        match flags {
            _ if is(wire::EXE_MEMFD) => Some(Self::Memory),
            _ if is(wire::EXE_DELETED) => Some(Self::Nowhere),
            _ if is(wire::EXE_TMPFS) => Some(Self::Tmpfs),
            _ if is(wire::EXE_UPPER) => Some(Self::Upper),
            _ => None,
        }
    }

    fn severity(self) -> Severity {
        match self {
            Self::Memory | Self::Nowhere => Severity::High,
            Self::Tmpfs | Self::Upper => Severity::Medium,
        }
    }

    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Memory => "it was never a file: it lies in anonymous memory (memfd)",
            Self::Nowhere => "it has no name any more: it was removed before it was executed",
            Self::Tmpfs => "it lies in a file system in memory (tmpfs)",
            Self::Upper => {
                "it was written or changed after the container was made: it lies in the upper layer of its overlay"
            }
        }
    }
}

impl SupplyChain {
    fn learn(&mut self, policy: &Policy) {
        self.allowed = patterns(policy);
    }

    fn executed(&mut self, record: &Record, exec: &Exec, context: &Context) -> Option<Finding> {
        let header = &exec.event.header;
        let host = &context.start;
        if header.mnt_ns == host.host_mnt_ns || header.mnt_ns == 0 {
            return None;
        }
        let has = Namespaces { mnt: header.mnt_ns, pid: header.pid_ns, shared: exec.event.shared.into() };
        let container = match context.home(header.cgroup) {
            Some(home) => home,
            None => context.containers.of_namespaces(&has, None)?.0,
        };
        let actor = ProcessKey::from_ns(header.tgid, header.start_ns);
        let Some(lies) = Lies::of(exec.event.flags) else { return self.tool(record, actor, exec, container) };
        let path = escape_to(&exec.path, 256);
        if !self.first(container, &format!("{lies:?} {path}")) {
            return None;
        }
        let mut severity = lies.severity();
        let mut reasons = vec![lies.reason().to_owned()];
        if container.init.is_some_and(|init| !context.descends(actor, init)) {
            reasons.push("who executed it came into the container from outside".to_owned());
            severity = Severity::High;
        }
        let title = format!("Program that is not of its image runs in {}: {path}", place(container));
        let mut finding = finding(record.time, severity, title, reasons, container, evidence(record, exec));
        finding.actor = Some(actor);
        finding.file = Some(File::named(&exec.path, "executed"));
        Some(finding)
    }

    /// A tool that makes images, containers or programs.
    fn tool(&mut self, record: &Record, actor: ProcessKey, exec: &Exec, container: &Container) -> Option<Finding> {
        let name = base(&exec.path);
        if container.info.pod.is_none() || !TOOLS.contains(&name) || !self.first(container, "tool") {
            return None;
        }
        let title = format!("Build tool runs in {}: {}", place(container), escape_to(&exec.path, 256));
        let reasons = vec!["what makes images, containers or programs is rarely part of a workload".to_owned()];
        let mut finding = finding(record.time, Severity::Low, title, reasons, container, evidence(record, exec));
        finding.actor = Some(actor);
        Some(finding)
    }

    /// A container begins: is its image one that may run?
    fn image(&mut self, record: &Record, container: &Container, context: &Context) -> Option<Finding> {
        let image = container.info.image.as_deref()?;
        if self.allowed.is_empty() || container.info.role == ContainerRole::Sandbox {
            return None;
        }
        let mut names = context.images.digests(image);
        names.extend(container.info.image_digest.clone());
        names.insert(image.to_owned());
        if allows(&self.allowed, &names) || !self.first(container, "image") {
            return None;
        }
        let title = format!("Image that policy does not allow runs in {}: {}", place(container), escape_to(image, 256));
        let reasons = vec!["no pattern of images.allow is like its reference or its digest".to_owned()];
        let evidence = Evidence { kind: "container", hook: None, sequence: record.seq, detail: escape_to(image, 256) };
        let mut finding = finding(record.time, Severity::Medium, title, reasons, container, evidence);
        finding.actor = container.init;
        Some(finding)
    }

    /// Whether this is found of this container for the first time.
    fn first(&mut self, container: &Container, what: &str) -> bool {
        let key = (container.info.id.clone(), what.to_owned());
        self.told.first(key)
    }
}

/// What policy allows.
pub fn patterns(policy: &Policy) -> Vec<GlobMatcher> {
    policy.images_allow.iter().take(PATTERNS_MAX).filter_map(|allowed| pattern(allowed).ok()).collect()
}

/// Whether one of the names is like one of the patterns.
pub fn allows(patterns: &[GlobMatcher], names: &BTreeSet<String>) -> bool {
    names.iter().any(|name| patterns.iter().any(|pattern| pattern.is_match(name)))
}

fn evidence(record: &Record, exec: &Exec) -> Evidence {
    let detail = format!("executed {}", escape_to(&exec.argv.joined(), 256));
    Evidence { kind: "exec", hook: Some(hook_name(exec.event.header.hook)), sequence: record.seq, detail }
}

fn finding(
    time: BootNs,
    severity: Severity,
    title: String,
    reasons: Vec<String>,
    container: &Container,
    evidence: Evidence,
) -> Finding {
    Finding {
        technique: &SUPPLY_CHAIN,
        severity,
        time,
        title,
        blocked: false,
        reasons,
        actor: None,
        container: Some(container.info.id.clone()),
        file: None,
        manifest: None,
        evidence: vec![evidence],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::Rules,
        testing::{self, Actor, HOST_MNT, Stream},
    };

    const SHELL: Actor = Actor { pid: 50, start: 10, cgroup: 1, mnt_ns: HOST_MNT, pid_ns: testing::HOST_PID };
    const FIRST: Actor = Actor { pid: 300, start: 99, cgroup: 900, mnt_ns: 70, pid_ns: 71 };

    fn exec(actor: Actor, parent: Actor, path: &str, flags: u32) -> bytes::Bytes {
        let inner = if actor.pid == FIRST.pid { 1 } else { 7 };
        let mut raw = testing::exec_in(actor, parent, path, &[path], wire::Shared::default(), inner, "").to_vec();
        let at = std::mem::offset_of!(wire::Exec, flags);
        raw[at..at + 4].copy_from_slice(&flags.to_ne_bytes());
        raw.into()
    }

    /// A container whose first program runs.
    fn running(rules: Option<Rules>) -> Stream {
        let mut stream = Stream::new();
        if let Some(rules) = rules {
            stream.push(Body::Config(Box::new(rules)));
        }
        let id = "c".repeat(64);
        stream.kernel(testing::cgroup(SHELL, 900, &format!("/kubepods/pod1/{id}")));
        stream.push(Body::Container(Box::new(testing::container(&id, 900, ContainerRole::Member, "app"))));
        stream.kernel(testing::fork(SHELL, FIRST));
        // The runtime on its way in: itself, from memory, in the host's mount namespace.
        let runtime = Actor { mnt_ns: HOST_MNT, ..FIRST };
        stream.kernel(exec(
            runtime,
            SHELL,
            "/memfd:runc_cloned:",
            wire::EXE_MEMFD | wire::EXE_DELETED | wire::EXE_TMPFS,
        ));
        stream.kernel(exec(FIRST, SHELL, "/bin/sh", 0));
        stream
    }

    fn child(pid: u32) -> Actor {
        Actor { pid, start: 100, ..FIRST }
    }

    fn told(stream: &Stream) -> Vec<(Severity, String)> {
        let alerts = stream.alerts();
        let ours = alerts.into_iter().filter(|alert| alert.technique.id == SUPPLY_CHAIN.id);
        ours.map(|alert| (alert.severity, alert.title)).collect()
    }

    #[test]
    fn what_was_not_in_the_image_is_told_by_where_it_lies_once_for_each_path() {
        let mut stream = running(None);
        for (pid, path, flags) in [
            (301, "/memfd:x", wire::EXE_MEMFD | wire::EXE_DELETED | wire::EXE_TMPFS),
            (302, "/tmp/gone", wire::EXE_DELETED | wire::EXE_UPPER),
            (303, "/dev/shm/x", wire::EXE_TMPFS),
            (304, "/tmp/x", wire::EXE_UPPER),
            (305, "/tmp/x", wire::EXE_UPPER),
        ] {
            stream.kernel(testing::fork(FIRST, child(pid)));
            stream.kernel(exec(child(pid), FIRST, path, flags));
        }
        let told = told(&stream);
        let severities: Vec<_> = told.iter().map(|(severity, _)| *severity).collect();
        assert_eq!(severities, [Severity::High, Severity::High, Severity::Medium, Severity::Medium], "{told:?}");
        assert_eq!(told[3].1, "Program that is not of its image runs in app of pod shop/web-node-1: /tmp/x");
    }

    #[test]
    fn the_images_own_programs_and_the_runtime_on_its_way_in_are_silent() {
        let mut stream = running(None);
        stream.kernel(testing::fork(FIRST, child(301)));
        // A script in a volume is its interpreter's.
        stream.kernel(exec(child(301), FIRST, "/bin/sh", 0));
        // On the host everybody may execute from memory.
        stream.kernel(exec(Actor::host(60, 99), SHELL, "/memfd:x", wire::EXE_MEMFD));
        // So may whoever has a mount namespace of their own and is in no container.
        stream.kernel(exec(Actor { mnt_ns: 99, ..Actor::host(61, 99) }, SHELL, "/run/x", wire::EXE_TMPFS));
        assert_eq!(told(&stream), []);
    }

    #[test]
    fn who_came_in_from_outside_and_runs_what_was_dropped_is_high() {
        let mut stream = running(None);
        let outsider = child(400);
        stream.kernel(testing::fork(SHELL, outsider));
        stream.kernel(exec(outsider, SHELL, "/tmp/x", wire::EXE_UPPER));
        assert_eq!(told(&stream).iter().map(|(severity, _)| *severity).collect::<Vec<_>>(), [Severity::High]);
    }

    #[test]
    fn a_build_tool_in_a_pod_is_low_and_told_once() {
        let mut stream = running(None);
        for (pid, path) in [(301, "/usr/bin/buildah"), (302, "/usr/bin/runc"), (303, "/usr/bin/sed")] {
            stream.kernel(exec(child(pid), FIRST, path, 0));
        }
        assert_eq!(
            told(&stream),
            [(Severity::Low, "Build tool runs in app of pod shop/web-node-1: /usr/bin/buildah".to_owned())]
        );
    }

    #[test]
    fn an_image_that_policy_does_not_allow_is_medium_and_one_that_it_allows_is_silent() {
        let rules = |allowed: &str| {
            let policy = Policy { images_allow: vec![allowed.to_owned()], ..Policy::default() };
            Some(Rules { policy, ..Rules::default() })
        };
        assert_eq!(told(&running(rules("registry.example/**"))), []);
        assert_eq!(
            told(&running(rules("registry.k8s.io/**"))),
            [(
                Severity::Medium,
                "Image that policy does not allow runs in app of pod shop/web-node-1: registry.example/app:1"
                    .to_owned()
            )]
        );
    }
}
