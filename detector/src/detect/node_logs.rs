//! `delete-kubernetes-events`: logs of pods emptied, removed, or opened so that they can be overwritten, past kubelet and the runtime.
//!
//! A log that is gone or shorter is an effect, which is told whoever did it, and though nobody was seen. What kubelet removes is silent: it is known by
//! what it listens on. The runtime needs no exception: it only makes logs and adds to them. Rotation leaves what it rotated beside the
//! log, which is looked at by its inode.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    alert::{Evidence, File, Origin, Severity},
    context::Context,
    decode::Event,
    detect::{
        Detector, Finding, base,
        container_exec::place,
        held::Held,
        log_acts::{Act, Acts, Effect, What, kinds_of_acts},
        once::Lately,
        technique::DELETE_EVENTS,
    },
    escape::escape_to,
    record::{
        Body, BootNs, ComponentKind, InodeKey, LogsChange, LogsRole, NodeLogs as Logs, PodRef, ProcessKey, Record,
    },
};

/// Most directories of logs.
const DIRS_MAX: usize = 4096;
/// A process that does the same to the same container's logs again within this time, in ns, is the same alert.
const AGAIN_NS: u64 = 10_000_000_000;
const TOLD_MAX: usize = 256;
/// How long after it was opened for writing something may become of a log, in ns.
const PATIENCE_NS: u64 = 2_000_000_000;
/// A log that is empty so long after it was opened for writing, in ns, was neither changed nor written.
const WRITTEN_NS: u64 = 200_000_000;
/// Most logs that are waited for.
const OPENED_MAX: usize = 256;
/// How long after a copy was made and the log emptied the oldest copy may go, in ns.
const ROTATION_NS: u64 = 10_000_000_000;

/// Tells of them.
#[derive(Debug, Default)]
pub struct NodeLogs {
    /// By the directory's inode.
    dirs: BTreeMap<InodeKey, Whose>,
    acts: Acts,
    /// Logs that were opened for writing, and of which nothing became yet.
    opened: VecDeque<(Act, InodeKey)>,
    told: Lately<(Option<ProcessKey>, InodeKey, &'static str), TOLD_MAX>,
    /// Who rotated the logs of a directory by copying and emptying, lately.
    rotated: VecDeque<(Option<ProcessKey>, InodeKey, BootNs)>,
    held: Held,
}

/// Whose logs a directory has.
#[derive(Clone, Debug)]
struct Whose {
    path: String,
    role: LogsRole,
    pod: Option<PodRef>,
    container: Option<String>,
}

impl Detector for NodeLogs {
    fn kinds(&self) -> u64 {
        kinds_of_acts()
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        match (&record.body, event) {
            (Body::NodeLogs(logs), _) => self.logs(record, logs, context).into_iter().collect(),
            (Body::Tick, _) => self.tick(record, context),
            (_, Some(event)) => {
                self.act(record, event);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }
}

impl NodeLogs {
    fn act(&mut self, record: &Record, event: &Event) {
        let Some(act) = self.acts.observe(record, event) else { return };
        let dir = act.dirs.iter().find(|dir| self.dirs.get(dir).is_some_and(|dir| dir.role == LogsRole::Container));
        if let (What::Opened { append: false }, Some(dir)) = (act.what, dir) {
            let known = self.opened.iter().any(|(known, _)| (known.actor, known.file) == (act.actor, act.file));
            if !known && self.opened.len() < OPENED_MAX {
                self.opened.push_back((act.clone(), *dir));
            }
        }
    }

    fn logs(&mut self, record: &Record, logs: &Logs, context: &Context) -> Option<Finding> {
        let whose = Whose {
            path: logs.path.clone(),
            role: logs.role,
            pod: logs.pod.clone(),
            container: logs.container.clone(),
        };
        let (name, inode, had, emptied) = match &logs.change {
            LogsChange::Watched { .. } => {
                if self.dirs.len() < DIRS_MAX || self.dirs.contains_key(&logs.dir) {
                    self.dirs.insert(logs.dir, whose);
                }
                return None;
            }
            LogsChange::Unwatched => {
                self.dirs.remove(&logs.dir);
                return None;
            }
            LogsChange::Empty { inode } => {
                let after = |act: &Act| record.time.0.saturating_sub(act.time.0) >= WRITTEN_NS;
                self.opened.retain(|(opened, _)| opened.file != Some(*inode) || !after(opened));
                return None;
            }
            // Nothing stood in it.
            LogsChange::Removed { had: 0, rotated: true, .. } => return None,
            LogsChange::Emptied { name, inode, had, .. } => (name, *inode, *had, true),
            LogsChange::Removed { name, inode, had, .. } => (name, *inode, *had, false),
        };
        let effect = Effect { file: inode, dir: logs.dir, name, path: &logs.path, emptied, since: logs.since };
        let is_kubelet = |actor| context.is_component(actor, ComponentKind::Kubelet);
        let act = self.acts.who(&effect, |actor| !is_kubelet(actor));
        self.opened.retain(|(opened, _)| opened.file != Some(inode));
        if act.is_some_and(|act| is_kubelet(act.actor)) {
            return None;
        }
        let actor = act.map(|act| act.actor);
        let mut reasons = Vec::new();
        let (mut weight, verb) = match &logs.change {
            LogsChange::Emptied { copied: true, .. } => {
                if self.rotated.len() >= TOLD_MAX {
                    self.rotated.pop_front();
                }
                self.rotated.push_back((actor, logs.dir, record.time));
                reasons.push("a copy of it came to lie beside it, as rotation leaves one".to_owned());
                (Some(Severity::Low), "rotated")
            }
            LogsChange::Emptied { has, .. } => {
                reasons.push(format!("it had {had} bytes, and has {has}"));
                (None, "emptied")
            }
            LogsChange::Removed { replaced: true, .. } => {
                reasons.push(format!("it had {had} bytes; another file has its name"));
                (None, "replaced")
            }
            LogsChange::Removed { rotated, .. } => {
                let lately = |when: BootNs| record.time.0.saturating_sub(when.0) < ROTATION_NS;
                let mut rotations = self.rotated.iter();
                let rotates = rotations.any(|(who, dir, when)| (*who, *dir) == (actor, logs.dir) && lately(*when));
                let weight = (*rotated && rotates).then_some(Severity::Low);
                reasons.push(format!("it had {had} bytes"));
                (weight, "removed")
            }
            _ => return None,
        };
        if logs.role == LogsRole::Links {
            weight = Some(weight.unwrap_or(Severity::Low));
            reasons = vec!["the log itself is where it was; what ships logs does not find it any more".to_owned()];
        }
        if !self.told.first((actor, logs.dir, verb), record.time, AGAIN_NS) {
            return None;
        }
        if actor.is_none() {
            reasons.push("nobody was seen to do it".to_owned());
        }
        let mut evidence: Vec<_> = act.map(|act| act.evidence.clone()).into_iter().collect();
        let detail = format!("{verb}: {}", escape_to(name, 128));
        evidence.push(Evidence { kind: "logs", hook: None, sequence: record.seq, detail });
        let finding = finding(record.time, &whose, name, verb, weight, reasons, actor, evidence, context);
        self.held.hold(ComponentKind::Kubelet, finding, record.time, context)
    }

    /// Logs that were opened for writing a while ago, and did not become shorter.
    fn tick(&mut self, record: &Record, context: &Context) -> Vec<Finding> {
        let mut findings = self.held.ripe(record.time, context);
        while self.opened.front().is_some_and(|(act, _)| record.time.0.saturating_sub(act.time.0) >= PATIENCE_NS) {
            let Some((act, dir)) = self.opened.pop_front() else { break };
            let Some(whose) = self.dirs.get(&dir) else { continue };
            let kubelet = context.is_component(act.actor, ComponentKind::Kubelet);
            if kubelet || !self.told.first((Some(act.actor), dir, "opened"), record.time, AGAIN_NS) {
                continue;
            }
            let name = base(&act.names[0]).to_owned();
            let reasons =
                vec!["the runtime only adds to it; whoever else writes there can change what it says".to_owned()];
            let (actor, evidence) = (Some(act.actor), vec![act.evidence]);
            let verb = "opened for writing";
            let finding = finding(act.time, whose, &name, verb, None, reasons, actor, evidence, context);
            findings.extend(self.held.hold(ComponentKind::Kubelet, finding, record.time, context));
        }
        findings
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one finding")]
fn finding(
    time: BootNs,
    whose: &Whose,
    name: &str,
    verb: &str,
    weight: Option<Severity>,
    mut reasons: Vec<String>,
    actor: Option<ProcessKey>,
    evidence: Vec<Evidence>,
    context: &Context,
) -> Finding {
    let container = context.containers.iter().find(|known| {
        let pod = known.info.pod.as_ref().zip(whose.pod.as_ref());
        pod.is_some_and(|(pod, of)| (&pod.namespace, &pod.name) == (&of.namespace, &of.name))
            && known.info.name.is_some()
            && known.info.name == whose.container
    });
    let of = match (container, &whose.pod, &whose.container) {
        (Some(container), ..) => place(container),
        (None, Some(pod), Some(container)) => {
            let [container, namespace, pod] = [container, &pod.namespace, &pod.name].map(|text| escape_to(text, 96));
            format!("{container} of pod {namespace}/{pod}")
        }
        _ => escape_to(name, 128),
    };
    let by = actor.map_or_else(String::new, |actor| {
        let exe = context.processes.get(actor).map(|process| escape_to(&process.program.exe, 128));
        format!(" by {}", exe.unwrap_or_else(|| format!("pid {}", actor.pid)))
    });
    let what = if whose.role == LogsRole::Links { "Link to the log" } else { "Log" };
    let mut severity = weight.unwrap_or(Severity::Medium);
    if actor.is_some_and(|actor| context.origin(actor).0 == Origin::Container) {
        reasons.insert(0, "a process in a container did it".to_owned());
        severity = severity.max(match (weight, whose.role) {
            (None, _) => Severity::High,
            (Some(_), LogsRole::Links) => Severity::Medium,
            (Some(weight), _) => weight,
        });
    }
    if whose.pod.as_ref().is_some_and(|pod| pod.namespace == "kube-system") && weight.is_none() {
        reasons.push("the pod is part of the cluster itself (kube-system)".to_owned());
        severity = severity.max(Severity::High);
    }
    let change = if verb == "removed" { "removed" } else { "modified" };
    Finding {
        technique: &DELETE_EVENTS,
        severity,
        time,
        title: format!("{what} of {of} {verb}{by}"),
        blocked: false,
        reasons,
        actor,
        container: container.map(|container| container.info.id.clone()),
        file: Some(File::named(&format!("{}/{name}", whose.path), change)),
        manifest: None,
        evidence,
    }
}

#[cfg(test)]
#[path = "node_logs_tests.rs"]
mod tests;
