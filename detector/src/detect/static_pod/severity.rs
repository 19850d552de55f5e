//! How bad a change is, and why. The table is in `docs/techniques/static-pod.md`.

use crate::{
    alert::{Origin, Severity},
    escape::escape_to,
    manifest::{Manifest, Parsed},
    record::{ChangeKind, ManifestChange},
    risky::{dangerous, sensitive},
};

/// A verdict with its reasons in words, most important first.
pub struct Judged {
    pub severity: Severity,
    pub reasons: Vec<String>,
}

/// Judges a change by what the manifest asks for and who made it. `origin` is `None` when nobody was seen.
pub fn judge(change: &ManifestChange, parsed: Option<&Parsed>, origin: Option<Origin>) -> Judged {
    let mut reasons = Vec::new();
    if !change.visible && !matches!(change.change, ChangeKind::DirReplaced | ChangeKind::DirRemoved) {
        reasons.push("kubelet ignores names with a leading dot: it lies in wait for a rename".to_owned());
        return Judged { severity: Severity::Low, reasons };
    }
    let mut severity = match change.change {
        ChangeKind::DirReplaced => {
            reasons.push("another directory stands where kubelet reads".to_owned());
            Severity::High
        }
        ChangeKind::DirRemoved => {
            reasons.push("kubelet stops the pods of a directory that is gone".to_owned());
            Severity::Medium
        }
        ChangeKind::Removed => {
            reasons.push("kubelet stops the pod".to_owned());
            Severity::Medium
        }
        ChangeKind::Present | ChangeKind::Added | ChangeKind::Modified => content(change, parsed, &mut reasons),
    };
    match origin {
        Some(Origin::Container) => {
            reasons.insert(0, "a process in a container did it".to_owned());
            severity = Severity::Critical;
        }
        Some(Origin::Host | Origin::Unknown) => {}
        None => {
            severity = if severity >= Severity::High { Severity::Critical } else { severity.max(Severity::High) };
        }
    }
    Judged { severity, reasons }
}

fn content(change: &ManifestChange, parsed: Option<&Parsed>, reasons: &mut Vec<String>) -> Severity {
    match parsed {
        None => {
            let why =
                change.after.as_ref().and_then(|after| after.unreadable.as_deref()).unwrap_or("it cannot be read");
            reasons.push(format!("kubelet cannot run it: {}", escape_to(why, 256)));
            Severity::Medium
        }
        Some(Parsed::Empty) => {
            reasons.push("it is empty".to_owned());
            Severity::Low
        }
        Some(Parsed::NotAPod { kind, why }) => {
            reasons.push(format!("kubelet rejects it: kind {:?}: {}", escape_to(kind, 64), escape_to(why, 256)));
            Severity::Medium
        }
        Some(Parsed::Invalid { message, line, column }) => {
            let place = match (line, column) {
                (Some(line), Some(column)) => format!("line {line}, column {column}: "),
                (Some(line), None) => format!("line {line}: "),
                _ => String::new(),
            };
            reasons.push(format!("it does not parse: {place}{}", escape_to(message, 256)));
            Severity::Medium
        }
        Some(Parsed::Pods(pods)) => {
            let before = reasons.len();
            for pod in pods.iter().take(8) {
                asks(pod, reasons);
            }
            if reasons.len() > before { Severity::High } else { Severity::Medium }
        }
    }
}

/// What a pod asks for that gives it the node.
fn asks(pod: &Manifest, reasons: &mut Vec<String>) {
    let list = |names: &[String]| names.iter().take(4).map(|name| escape_to(name, 64)).collect::<Vec<_>>().join(", ");
    if !pod.privileged.is_empty() {
        reasons.push(format!("privileged containers: {}", list(&pod.privileged)));
    }
    for (set, what) in [
        (pod.host_pid, "shares the node's processes (hostPID)"),
        (pod.host_ipc, "shares the node's IPC (hostIPC)"),
        (pod.host_network, "shares the node's network (hostNetwork)"),
    ] {
        if set {
            reasons.push(what.to_owned());
        }
    }
    let paths: Vec<_> = pod.host_paths.iter().filter(|path| sensitive(path)).cloned().collect();
    if !paths.is_empty() {
        reasons.push(format!("mounts of the node: {}", list(&paths)));
    }
    let capabilities: Vec<_> = pod.capabilities.iter().filter(|name| dangerous(name)).cloned().collect();
    if !capabilities.is_empty() {
        reasons.push(format!("capabilities: {}", list(&capabilities)));
    }
}
