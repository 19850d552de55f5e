//! `container-exec`: a process that got into a container from outside.
//!
//! What belongs to a container descends from its first process. Whatever else runs in its cgroup or in its namespaces came in
//! another way: through the runtime (kubectl exec, crictl exec, docker exec), by `nsenter`, by `setns`, by being moved into the
//! cgroup. Names of programs decide nothing but the words for the way. One entry is one finding, whatever it runs later.

mod own;
#[cfg(test)]
mod own_tests;
mod pending;
#[cfg(test)]
pub(crate) mod tests;
mod way;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use detector_common::{ARGV_TRUNCATED, kind};

use crate::{
    alert::{Evidence, Severity},
    argv::Argv,
    context::{
        Context,
        container::{Container, Namespace, Namespaces},
        image::is_sha256,
    },
    decode::{Event, Exec, hook_name},
    detect::{Detector, Finding, kinds, technique::CONTAINER_EXEC},
    escape::escape_to,
    record::{Body, BootNs, ContainerRole, ProcessKey, ProcessSeed, Record},
};

use own::{Command, Own, Whose};
use pending::{Group, Pending};
use way::Way;

/// Most entries remembered, so that what they run later is not told again.
const TOLD_MAX: usize = 4096;
/// How old a process is, in ns, that is not on its way any more.
const SETTLED_NS: u64 = 1_000_000_000;
/// Longest name in a title, in characters.
const NAME: usize = 96;

/// Finds entries.
#[derive(Debug, Default)]
pub struct ContainerExec {
    /// Processes that are on their way in.
    pending: Pending,
    /// Processes that came in, and into which container, until the bound drops them.
    told: BTreeMap<ProcessKey, String>,
    told_order: VecDeque<ProcessKey>,
    /// Probes told once for each container and command.
    probed: BTreeSet<Command>,
    /// What kubelet does by itself, as far as no manifest tells.
    own: Own,
}

impl Detector for ContainerExec {
    fn kinds(&self) -> u64 {
        kinds(&[kind::EXEC, kind::FORK, kind::EXIT, kind::CGROUP_MOVE, kind::NAMESPACES])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        match &record.body {
            Body::Process(seed) if seed.again => return self.found(record, seed, context).into_iter().collect(),
            Body::Process(seed) => self.was_there(seed, context),
            Body::Tick => {
                let late = self.pending.late(record.time, |group| is_monitors(group, context));
                let late = late.into_iter().filter_map(|group| self.without_exec(record, &group, context));
                let mut told: Vec<_> = late.collect();
                for (command, finding) in self.own.decided(record.time, context) {
                    if command.is_none_or(|command| finding.severity > Severity::Low || self.first_probe(command)) {
                        told.push(finding);
                    }
                }
                return told;
            }
            _ => {}
        }
        let Some(event) = event.filter(|_| !context.is_older(record.time)) else { return Vec::new() };
        let header = event.header();
        let actor = ProcessKey::from_ns(header.tgid, header.start_ns);
        let found = match event {
            Event::Exec(exec) => self.executed(record, actor, exec, context),
            Event::Namespaces(entered) => {
                let has = Namespaces { mnt: entered.mnt, pid: entered.pid_children, shared: entered.shared.into() };
                let home = context.container_of(actor);
                if let Some((owner, kinds)) = context.containers.of_namespaces(&has, home) {
                    let detail = format!("entered namespaces: {}", names(&kinds));
                    let entered = way::Entered::Namespaces(kinds);
                    self.pending.enter(
                        actor,
                        &owner.info.id,
                        entered,
                        evidence(record, event, detail),
                        context,
                        record.time,
                    );
                }
                None
            }
            Event::CgroupMove(moved) => {
                let target = ProcessKey::from_ns(moved.target_tgid, moved.target_start_ns);
                if let Some(container) = context.home(moved.id)
                    // Without a first process it is the runtime that fills it.
                    && container.init.is_some_and(|init| !context.descends(target, init))
                    && !self.is_told(target, container, context)
                {
                    let detail = format!("moved into the container's cgroup by pid {}", header.tgid);
                    let (id, evidence) = (&container.info.id, evidence(record, event, detail));
                    self.pending.enter(target, id, way::Entered::Cgroup, evidence, context, record.time);
                }
                None
            }
            Event::Fork(fork) => {
                self.pending.forked(actor, ProcessKey::from_ns(fork.child_tgid, fork.child_start_ns));
                None
            }
            Event::Exit(_) => {
                let left = self.pending.exited(actor);
                left.and_then(|group| self.without_exec(record, &group, context))
            }
            _ => None,
        };
        found.map_or_else(Vec::new, |finding| vec![finding])
    }
}

impl ContainerExec {
    /// A process that was in a container before the agent looked: how it came in cannot be told any more.
    fn was_there(&mut self, seed: &ProcessSeed, context: &Context) {
        let key = seed.key();
        let home = context.container_of(key);
        let has = Namespaces { mnt: seed.mnt_ns, pid: seed.pid_ns, shared: seed.shared };
        let entered = context.containers.of_namespaces(&has, home).map(|(owner, _)| owner);
        let stranger = home.filter(|home| home.init.is_some_and(|init| !context.descends(key, init)));
        if let Some(container) = entered.or(stranger) {
            self.tell(key, &container.info.id);
        }
    }

    /// A process that is looked at because events were lost, and lives in a container that it did not begin in.
    fn found(&mut self, record: &Record, seed: &ProcessSeed, context: &Context) -> Option<Finding> {
        let key = seed.key();
        let home = context.container_of(key);
        let has = Namespaces { mnt: seed.mnt_ns, pid: seed.pid_ns, shared: seed.shared };
        let entered = context.containers.of_namespaces(&has, home);
        // Network plugins' tools are silent until they execute something.
        let entered =
            entered.filter(|(_, kinds)| kinds.iter().any(|kind| matches!(kind, Namespace::Mnt | Namespace::Pid)));
        let stranger = |home: &&Container| {
            // Orphans of a container without pids of its own are adopted outside of it.
            let own_pids =
                home.info.joins_pid_of.is_none() && !home.info.host_pid && home.namespaces.pid == seed.pid_ns;
            own_pids && home.init.is_some_and(|init| !context.descends(key, init))
        };
        let container = entered.map(|(owner, _)| owner).or_else(|| home.filter(stranger))?;
        // A runtime on its way executes in a moment, and that is seen.
        let age = record.time.0.saturating_sub(key.start.saturating_mul(ProcessKey::TICK_NS));
        let argv: Argv = seed.argv.iter().collect();
        let expected = || context.static_pods.probe(container, &argv).is_some();
        if age < SETTLED_NS || self.is_told(key, container, context) || expected() {
            return None;
        }
        let group = self.pending.resolve(key);
        self.tell(key, &container.info.id);
        let way = group.as_ref().map_or(Way::Unseen, |group| way::of(key, Some(group), &[], context));
        let (severity, reasons) = judge(&way, None, seed.tty.is_some(), key, container, context);
        let mut evidence = group.map(|group| group.evidence).unwrap_or_default();
        let detail = format!("executes {}", escape_to(&seed.exe, 256));
        evidence.push(Evidence { kind: "process", hook: None, sequence: record.seq, detail });
        let title = format!("Exec into {}: {}", place(container), escape_to(&argv.joined(), NAME));
        Some(finding(record.time, severity, title, reasons, key, container, evidence))
    }

    fn executed(&mut self, record: &Record, actor: ProcessKey, exec: &Exec, context: &Context) -> Option<Finding> {
        let header = &exec.event.header;
        let host = Namespaces::of_host(&context.start);
        let has = Namespaces { mnt: header.mnt_ns, pid: header.pid_ns, shared: exec.event.shared.into() };
        let home = context.home(header.cgroup);
        if let Some(home) = home.filter(|home| home.init == Some(actor)) {
            self.pending.resolve(actor);
            return self.joins(record, actor, exec, home, context);
        }
        // In another container's namespaces, whatever its own.
        if let Some((owner, kinds)) = context.containers.of_namespaces(&has, home) {
            return self.entered(record, actor, exec, owner, kinds, context);
        }
        let home = home?;
        let init = home.init?;
        if context.descends(actor, init) {
            self.pending.resolve(actor);
            return None;
        }
        if has.mnt == host.mnt {
            // Its cgroup alone is the container's: the runtime on its way in, or a process that somebody moved there.
            if !self.is_told(actor, home, context) {
                let detail = format!("executed {} in the container's cgroup", escape_to(&exec.path, NAME));
                let evidence =
                    Evidence { kind: "exec", hook: Some(hook_name(header.hook)), sequence: record.seq, detail };
                self.pending.enter(actor, &home.info.id, way::Entered::Cgroup, evidence, context, record.time);
            }
            return None;
        }
        self.entered(record, actor, exec, home, Vec::new(), context)
    }

    /// A program runs in a container that its process came into from outside.
    fn entered(
        &mut self,
        record: &Record,
        actor: ProcessKey,
        exec: &Exec,
        container: &Container,
        kinds: Vec<Namespace>,
        context: &Context,
    ) -> Option<Finding> {
        let group = self.pending.resolve(actor);
        if self.is_told(actor, container, context) {
            return None;
        }
        self.tell(actor, &container.info.id);
        let way = way::of(actor, group.as_ref(), &kinds, context);
        let probe = match &way {
            Way::Cri | Way::Docker if exec.event.tty[0] == 0 => context.static_pods.probe(container, &exec.argv),
            _ => None,
        };
        let command = || (container.info.id.clone(), exec.argv.to_vec());
        if probe.is_some() && !self.first_probe(command()) {
            return None;
        }
        let mut evidence = group.map(|group| group.evidence).unwrap_or_default();
        let header = &exec.event.header;
        evidence.push(Evidence {
            kind: "exec",
            hook: Some(hook_name(header.hook)),
            sequence: record.seq,
            detail: format!("executed {}", escape_to(&exec.path, 256)),
        });
        let what = escape_to(&exec.argv.joined(), NAME);
        let what = if what.is_empty() { escape_to(&exec.path, NAME) } else { what };
        let title = match &probe {
            Some(kind) => format!("{kind} of {} runs: {what}", place(container)),
            None => format!("Exec into {}: {what}", place(container)),
        };
        let interactive = exec.event.tty[0] != 0;
        let (severity, mut reasons) = judge(&way, probe, interactive, actor, container, context);
        let whole = exec.event.flags & ARGV_TRUNCATED == 0;
        let began = if way == Way::Cri && probe.is_none() { own::began(actor, container, context) } else { None };
        let whose = began.map(|began| {
            if interactive {
                self.own.claim(began, context);
                return (began, Whose::Anybodys(None));
            }
            (began, self.own.whose(began, &command(), whole, context))
        });
        match whose {
            Some((_, Whose::Known)) => None,
            Some((began, Whose::Later { own })) => {
                let high = finding(record.time, severity, title, reasons, actor, container, evidence.clone());
                let title = format!("kubelet runs a probe or life-cycle hook of {}: {what}", place(container));
                let why = "nobody had asked kubelet or the container runtime for it".to_owned();
                let low = finding(record.time, Severity::Low, title, vec![why], actor, container, evidence);
                self.own.hold(own, began, (command(), whole), [low, high], record.time)
            }
            Some((_, Whose::Anybodys(why))) => {
                reasons.extend(why);
                Some(finding(record.time, severity, title, reasons, actor, container, evidence))
            }
            None => Some(finding(record.time, severity, title, reasons, actor, container, evidence)),
        }
    }

    /// Processes that got in and executed nothing there: they do what they do by themselves.
    fn without_exec(&mut self, record: &Record, group: &Group, context: &Context) -> Option<Finding> {
        if !group.is_serious() {
            return None;
        }
        let container = context.containers.get(&group.container)?;
        if self.is_told(group.first, container, context) {
            return None;
        }
        let way = way::of(group.first, Some(group), &group.kinds(), context);
        let monitors = is_monitors(group, context);
        if !monitors {
            self.tell(group.first, &group.container);
            for member in &group.members {
                self.tell(*member, &group.container);
            }
        }
        let title =
            format!("{} got into {} without executing a program there", escape_to(&group.by, NAME), place(container));
        let (mut severity, mut reasons) = judge(&way, None, false, group.first, container, context);
        if monitors {
            // What it executes after all is told by itself.
            let why = "the container's own monitor had the runtime begin it: most likely a command that is not there, or a probe \
                       whose time was over";
            reasons.insert(0, why.to_owned());
            severity = Severity::Low;
        }
        let time = if group.evidence.is_empty() { record.time } else { group.since };
        Some(finding(time, severity, title, reasons, group.first, container, group.evidence.clone()))
    }

    /// A container's first program. A container that lives among the processes of another container of its pod (not in the pod's
    /// common namespace) was put there to look into it: that is what `kubectl debug --target` does.
    fn joins(
        &mut self,
        record: &Record,
        actor: ProcessKey,
        exec: &Exec,
        container: &Container,
        context: &Context,
    ) -> Option<Finding> {
        let other = context.containers.owner(Namespace::Pid, exec.event.header.pid_ns)?;
        if other.info.id == container.info.id
            || other.info.role == ContainerRole::Sandbox
            // The same process again, with another program.
            || self.is_told(actor, container, context)
        {
            return None;
        }
        self.tell(actor, &container.info.id);
        let title = format!(
            "Debug container {} joined {}: {}",
            shown(container),
            place(other),
            escape_to(&exec.argv.joined(), NAME)
        );
        let way = Way::Debug(shown(other));
        let interactive = exec.event.tty[0] != 0;
        let (severity, reasons) = judge(&way, None, interactive, actor, container, context);
        let evidence = vec![Evidence {
            kind: "exec",
            hook: Some(hook_name(exec.event.header.hook)),
            sequence: record.seq,
            detail: format!("executed {}", escape_to(&exec.path, 256)),
        }];
        Some(finding(record.time, severity, title, reasons, actor, container, evidence))
    }

    /// Whether the process, or one that it descends from, was told to have come into this container.
    fn is_told(&self, actor: ProcessKey, container: &Container, context: &Context) -> bool {
        let told = |key: ProcessKey| self.told.get(&key).is_some_and(|id| *id == container.info.id);
        told(actor) || context.processes.lineage(actor).any(|(key, _)| told(key))
    }

    fn tell(&mut self, actor: ProcessKey, container: &str) {
        if self.told.insert(actor, container.to_owned()).is_none() {
            self.told_order.push_back(actor);
        }
        if self.told_order.len() > TOLD_MAX
            && let Some(oldest) = self.told_order.pop_front()
        {
            self.told.remove(&oldest);
        }
    }

    /// Whether this probe of this container is seen for the first time.
    fn first_probe(&mut self, command: Command) -> bool {
        while self.probed.len() >= TOLD_MAX {
            self.probed.pop_first();
        }
        self.probed.insert(command)
    }
}

/// Whether a container's own monitor had the runtime go in, as it is done day by day. The runtime may be late, or be ended on its way: by a
/// probe whose time is over, above all on a node that is overloaded.
fn is_monitors(group: &Group, context: &Context) -> bool {
    group.own_monitor && way::of(group.first, Some(group), &group.kinds(), context).is_usual()
}

fn judge(
    way: &Way,
    probe: Option<&str>,
    interactive: bool,
    actor: ProcessKey,
    container: &Container,
    context: &Context,
) -> (Severity, Vec<String>) {
    let mut reasons = vec![way.to_string()];
    let mut severity = if way.is_usual() { Severity::Medium } else { Severity::High };
    if probe.is_some() {
        let why = if container.info.pod.is_some() {
            "the pod's specification has kubelet run this command"
        } else {
            "the container's health check is this command"
        };
        reasons.insert(0, why.to_owned());
        return (Severity::Low, reasons);
    }
    if interactive {
        reasons.push("interactive: it has a terminal".to_owned());
    }
    if container.info.privileged {
        reasons.push("the container is privileged".to_owned());
        severity = severity.max(Severity::High);
    }
    if container.info.host_pid {
        reasons.push("the container sees the node's processes (hostPID)".to_owned());
        severity = severity.max(Severity::High);
    }
    if container.info.pod.as_ref().is_some_and(|pod| pod.namespace == "kube-system") {
        reasons.push("the pod is part of the cluster itself (kube-system)".to_owned());
        severity = severity.max(Severity::High);
    }
    // Where it came from: the last process of its lineage that lives in a container of another pod.
    let from = std::iter::once(actor)
        .chain(context.processes.lineage(actor).map(|(key, _)| key))
        .filter_map(|key| context.container_of(key))
        .find(|other| !other.is_with(container));
    if let Some(from) = from {
        reasons.insert(0, format!("it comes from {}", place(from)));
        severity = Severity::Critical;
    }
    (severity, reasons)
}

fn finding(
    time: BootNs,
    severity: Severity,
    title: String,
    reasons: Vec<String>,
    actor: ProcessKey,
    container: &Container,
    evidence: Vec<Evidence>,
) -> Finding {
    Finding {
        technique: &CONTAINER_EXEC,
        severity,
        time,
        title,
        blocked: false,
        reasons,
        actor: Some(actor),
        container: Some(container.info.id.clone()),
        file: None,
        manifest: None,
        evidence,
    }
}

fn evidence(record: &Record, event: &Event, detail: String) -> Evidence {
    let kind = match event {
        Event::Namespaces(_) => "namespaces",
        Event::CgroupMove(_) => "cgroup_move",
        _ => "exec",
    };
    Evidence { kind, hook: Some(hook_name(event.header().hook)), sequence: record.seq, detail }
}

fn names(kinds: &[Namespace]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

/// `container app of pod shop/web`, or as much of it as is known.
pub(crate) fn place(container: &Container) -> String {
    match &container.info.pod {
        Some(pod) => {
            format!("{} of pod {}/{}", shown(container), escape_to(&pod.namespace, NAME), escape_to(&pod.name, NAME))
        }
        None => format!("container {}", shown(container)),
    }
}

/// A container's name, its role, or the beginning of its id.
fn shown(container: &Container) -> String {
    match &container.info.name {
        Some(name) => escape_to(name, NAME),
        None if container.is_sandbox() => "the sandbox".to_owned(),
        // As Docker and podman show it.
        None if is_sha256(&container.info.id) => container.info.id.chars().take(12).collect(),
        None => escape_to(&container.info.id, NAME),
    }
}
