//! Findings about processes that are called like a part of the control plane and have not proven to be one yet: it takes a moment
//! from their start until they listen.

use std::collections::VecDeque;

use super::{Finding, base};
use crate::{
    context::Context,
    record::{BootNs, ComponentKind, ProcessKey},
};

/// How long such a process has, in ns. A kube-apiserver asks etcd first, and listens when it has what it asked for.
const HOLD_NS: u64 = 30_000_000_000;
/// Most findings that are held; what comes when there are more is told at once.
const MAX: usize = 256;

/// Findings that wait.
#[derive(Debug, Default)]
pub struct Held(VecDeque<(BootNs, ComponentKind, ProcessKey, Finding)>);

impl Held {
    /// Takes a finding about a process that may still prove to be of this kind; gives back one about any other.
    pub fn hold(&mut self, kind: ComponentKind, finding: Finding, now: BootNs, context: &Context) -> Option<Finding> {
        match finding.actor {
            Some(actor) => self.hold_for(actor, kind, finding, now, context),
            None => Some(finding),
        }
    }

    /// The same, where it hangs on what another process than the finding's is.
    pub fn hold_for(
        &mut self,
        process: ProcessKey,
        kind: ComponentKind,
        finding: Finding,
        now: BootNs,
        context: &Context,
    ) -> Option<Finding> {
        if !is_called(kind, process, context) || self.0.len() >= MAX {
            return Some(finding);
        }
        self.0.push_back((now, kind, process, finding));
        None
    }

    /// Those whose processes have not proven it in time.
    pub fn ripe(&mut self, now: BootNs, context: &Context) -> Vec<Finding> {
        let mut ripe = Vec::new();
        self.0.retain(|(_, kind, process, _)| !context.is_component(*process, *kind));
        while self.0.front().is_some_and(|(since, ..)| now.0.saturating_sub(since.0) >= HOLD_NS) {
            ripe.extend(self.0.pop_front().map(|(.., finding)| finding));
        }
        ripe
    }
}

/// Whether a process's executable has the name of such a program.
fn is_called(kind: ComponentKind, process: ProcessKey, context: &Context) -> bool {
    let Some(process) = context.processes.get(process) else { return false };
    let name = base(process.program.exe.trim_end_matches(" (deleted)"));
    match kind {
        ComponentKind::Kubelet => matches!(name, "kubelet" | "k3s" | "kubelite" | "hyperkube"),
        ComponentKind::ApiServer => matches!(name, "kube-apiserver" | "k3s" | "kubelite" | "hyperkube"),
        ComponentKind::Etcd => name == "etcd",
        ComponentKind::ControllerManager => name == "kube-controller-manager",
        ComponentKind::Scheduler => name == "kube-scheduler",
        ComponentKind::Runtime => matches!(name, "containerd" | "crio"),
    }
}
