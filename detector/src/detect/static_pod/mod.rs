//! `static-pod`: what kubelet would read changed, and who changed it.
//!
//! A [`ManifestChange`] is the effect; kernel events in the time since the old state was last seen are the acts. One
//! change is one finding, however many system calls it took.

mod acts;
mod severity;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use detector_common::kind;

use crate::{
    alert::{Evidence, File, Severity},
    context::Context,
    decode::Event,
    detect::{Detector, Finding, kinds, technique::STATIC_POD},
    escape::escape_to,
    manifest::{Manifest, Parsed},
    record::{Body, ChangeKind, ManifestChange, Record, WatchReason, Watched},
};

use acts::{Act, Acts};

/// Most evidence records in a finding.
const EVIDENCE_MAX: usize = 16;
/// Longest name in a title, in characters.
const TITLE_NAME: usize = 128;

/// Joins acts and effects.
#[derive(Debug, Default)]
pub struct StaticPod {
    acts: Acts,
    /// Watched directories as last told; `None` before the first time.
    watched: Option<Watched>,
    /// What kubelets read when there were any the last time.
    read: Vec<String>,
}

impl Detector for StaticPod {
    fn kinds(&self) -> u64 {
        kinds(&[kind::OPEN, kind::WRITE, kind::MAP, kind::CHANGE, kind::PATH, kind::ENTRY, kind::IO_URING])
    }

    fn observe(&mut self, record: &Record, event: Option<&Event>, context: &Context) -> Vec<Finding> {
        match &record.body {
            Body::Kernel { .. } => {
                if let Some(event) = event {
                    self.acts.observe(record, event);
                }
                Vec::new()
            }
            Body::Manifest(change) => self.changed(record, change, context).into_iter().collect(),
            Body::Watched(watched) => self.moved(record, watched, context),
            _ => Vec::new(),
        }
    }
}

impl StaticPod {
    fn changed(&self, record: &Record, change: &ManifestChange, context: &Context) -> Option<Finding> {
        if change.change == ChangeKind::Present || (change.change == ChangeKind::Removed && !change.visible) {
            return None;
        }
        let act = self.acts.behind(change, record.time);
        let actor = act.map(|act| act.process);
        let origin = actor.map(|actor| context.origin(actor).0);
        let parsed = context.static_pods.last();
        let mut judged = severity::judge(change, parsed, origin);
        if actor.is_none() {
            judged.reasons.insert(0, nobody(context));
        }
        let path = path(change);
        let what = subject(change, parsed);
        let by = match actor.and_then(|actor| context.processes.get(actor)) {
            Some(process) => format!(" by {}", escape_to(&process.program.exe, TITLE_NAME)),
            None => " by nobody that was seen".to_owned(),
        };
        let mut evidence = self.acts.evidence(act, change, record.time);
        evidence.push(Evidence {
            kind: "manifest",
            hook: None,
            sequence: record.seq,
            detail: format!("{} {path}", word(change.change)),
        });
        Some(Finding {
            technique: &STATIC_POD,
            severity: judged.severity,
            time: act.map_or(record.time, |act| act.time),
            title: format!("{what}{by}"),
            blocked: false,
            reasons: judged.reasons,
            actor,
            container: None,
            file: Some(File {
                path,
                sha256: change.after.as_ref().and_then(|after| after.sha256.clone()),
                size: change.after.as_ref().map(|after| after.size),
                change: word(change.change),
                previous_sha256: change.before.as_ref().and_then(|before| before.sha256.clone()),
                symlink: change.after.as_ref().and_then(|after| after.symlink.clone()),
            }),
            manifest: match parsed {
                Some(Parsed::Pods(pods)) => pods.first().cloned(),
                _ => None,
            },
            evidence,
        })
    }

    /// A kubelet reads static pods from somewhere else than before.
    fn moved(&mut self, record: &Record, watched: &Watched, context: &Context) -> Vec<Finding> {
        let by_kubelet =
            |reason: &WatchReason| matches!(reason, WatchReason::KubeletFlag | WatchReason::KubeletConfig(_));
        let reads: Vec<_> = watched.dirs.iter().filter(|dir| by_kubelet(&dir.reason)).collect();
        // A kubelet that was away, as for its upgrade, comes back to what it read.
        let read = if reads.is_empty() {
            self.read.clone()
        } else {
            std::mem::replace(&mut self.read, reads.iter().map(|dir| dir.path.clone()).collect())
        };
        let before = self.watched.replace(watched.clone());
        let Some(before) = before else { return Vec::new() };
        let known: BTreeSet<&str> = before.dirs.iter().map(|dir| &dir.path).chain(&read).map(String::as_str).collect();
        reads
            .into_iter()
            .filter(|dir| !known.contains(dir.path.as_str()))
            .map(|dir| {
                let act = match &dir.reason {
                    WatchReason::KubeletConfig(file) => self.acts.on_configuration(file, record.time),
                    _ => None,
                };
                let actor = match dir.reason {
                    WatchReason::KubeletFlag => dir.kubelet_pid.and_then(|pid| context.processes.latest(pid)),
                    _ => act.map(|act| act.process),
                };
                let mut evidence: Vec<_> = act.iter().map(|act| act.evidence("")).collect();
                evidence.push(Evidence { kind: "watched", hook: None, sequence: record.seq, detail: dir.path.clone() });
                Finding {
                    technique: &STATIC_POD,
                    severity: Severity::High,
                    time: act.map_or(record.time, |act| act.time),
                    title: format!("A kubelet now reads static pods from {}", escape_to(&dir.path, TITLE_NAME)),
                    blocked: false,
                    reasons: vec![format!("the path comes from {}", dir.reason)],
                    actor,
                    container: None,
                    file: None,
                    manifest: None,
                    evidence,
                }
            })
            .collect()
    }
}

/// Why nobody is named.
fn nobody(context: &Context) -> String {
    let missing: Vec<_> = context
        .start
        .hooks
        .iter()
        .filter(|hook| hook.required && hook.backend.is_none())
        .map(|hook| hook.name.as_str())
        .collect();
    if missing.is_empty() {
        "no hook saw an act: it came by a way around the kernel's file calls, or was lost, of which there is an alert then".to_owned()
    } else {
        format!("nobody could be seen: required hooks are not attached: {}", missing.join(", "))
    }
}

/// Path of the changed entry as kubelet names it.
fn path(change: &ManifestChange) -> String {
    if change.name.is_empty() {
        change.dir.clone()
    } else {
        format!("{}/{}", change.dir.trim_end_matches('/'), change.name)
    }
}

fn word(change: ChangeKind) -> &'static str {
    match change {
        ChangeKind::Present => "present",
        ChangeKind::Added => "added",
        ChangeKind::Modified => "modified",
        ChangeKind::Removed => "removed",
        ChangeKind::DirReplaced => "directory replaced",
        ChangeKind::DirRemoved => "directory removed",
    }
}

/// What happened to what, without who.
fn subject(change: &ManifestChange, parsed: Option<&Parsed>) -> String {
    let name = escape_to(&change.name, TITLE_NAME);
    match (change.change, parsed) {
        (ChangeKind::DirReplaced, _) => format!("Static pod directory {} replaced", escape_to(&change.dir, TITLE_NAME)),
        (ChangeKind::DirRemoved, _) => format!("Static pod directory {} removed", escape_to(&change.dir, TITLE_NAME)),
        (ChangeKind::Removed, _) => format!("Static pod manifest removed: {name}"),
        (kind, _) if !change.visible => format!("File {} that kubelet ignores: {name}", word(kind)),
        (kind, Some(Parsed::Pods(pods))) if !pods.is_empty() => {
            format!("Static pod manifest {}: {}", word(kind), pods.first().map(pod).unwrap_or_default())
        }
        (kind, _) => format!("Static pod manifest {} that kubelet rejects: {name}", word(kind)),
    }
}

/// `namespace/name (privileged, hostPID)`.
fn pod(manifest: &Manifest) -> String {
    let mut asks = Vec::new();
    if !manifest.privileged.is_empty() {
        asks.push("privileged");
    }
    for (set, name) in
        [(manifest.host_pid, "hostPID"), (manifest.host_ipc, "hostIPC"), (manifest.host_network, "hostNetwork")]
    {
        if set {
            asks.push(name);
        }
    }
    if !manifest.host_paths.is_empty() {
        asks.push("hostPath");
    }
    let asks = if asks.is_empty() { String::new() } else { format!(" ({})", asks.join(", ")) };
    format!("{}/{}{asks}", escape_to(&manifest.namespace, TITLE_NAME), escape_to(&manifest.name, TITLE_NAME))
}

impl Act {
    fn evidence(&self, note: &str) -> Evidence {
        Evidence {
            kind: self.kind,
            hook: Some(self.hook),
            sequence: self.seq,
            detail: format!("{}{note}", self.detail),
        }
    }
}
