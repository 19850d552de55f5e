//! Processes on their way into a container: they joined its cgroup or its namespaces and have executed nothing there yet.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    alert::Evidence,
    context::{Context, container::Namespace},
    record::{BootNs, ProcessKey},
};

use super::way::{self, Entered, is_runtime};

/// Most ways in at once.
const MAX: usize = 1024;
/// Most processes of one.
const MEMBERS_MAX: usize = 64;
/// Most evidence of one.
const EVIDENCE_MAX: usize = 8;
/// How long a process may be on its way, in ns, before it is told without an exec.
const PATIENCE_NS: u64 = 1_000_000_000;
/// The same for a container runtime, which prepares what it executes.
const RUNTIME_PATIENCE_NS: u64 = 10_000_000_000;

/// The same where the container's own monitor had the runtime begin: on a node that is overloaded it takes that long.
const MONITOR_PATIENCE_NS: u64 = 60_000_000_000;

/// One way in: a process and what it forked since.
#[derive(Clone, Debug)]
pub struct Group {
    pub container: String,
    /// The process that got in.
    pub first: ProcessKey,
    /// What it was executing then.
    pub by: String,
    pub entered: Vec<Entered>,
    pub since: BootNs,
    pub members: BTreeSet<ProcessKey>,
    pub evidence: Vec<Evidence>,
    /// The container's own monitor had the runtime begin it. When it ends that cannot be told any more: the container may have ended first.
    pub own_monitor: bool,
    patience: u64,
}

impl Group {
    /// Whether being there matters without an exec: every network plugin enters pods' network namespaces to set them up.
    pub fn is_serious(&self) -> bool {
        self.entered.iter().any(|entered| match entered {
            Entered::Cgroup => true,
            Entered::Namespaces(kinds) => kinds.iter().any(|kind| matches!(kind, Namespace::Mnt | Namespace::Pid)),
        })
    }

    /// The namespaces that it entered.
    pub fn kinds(&self) -> Vec<Namespace> {
        let all: BTreeSet<_> = self
            .entered
            .iter()
            .flat_map(|entered| match entered {
                Entered::Cgroup => &[][..],
                Entered::Namespaces(kinds) => kinds,
            })
            .copied()
            .collect();
        all.into_iter().collect()
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Pending {
    groups: BTreeMap<u64, Group>,
    members: BTreeMap<ProcessKey, u64>,
    next: u64,
}

impl Pending {
    /// A process takes a step into a container.
    pub fn enter(
        &mut self,
        process: ProcessKey,
        container: &str,
        entered: Entered,
        evidence: Evidence,
        context: &Context,
        now: BootNs,
    ) {
        let known = self.members.get(&process).and_then(|number| self.groups.get_mut(number));
        if let Some(group) = known.filter(|group| group.container == container) {
            if !group.entered.contains(&entered) {
                group.entered.push(entered);
            }
            if group.evidence.len() < EVIDENCE_MAX {
                group.evidence.push(evidence);
            }
            return;
        }
        self.leave(process);
        if self.groups.len() >= MAX
            && let Some(oldest) = self.groups.keys().next().copied()
        {
            self.take(oldest);
        }
        let by =
            context.processes.get(process).map_or_else(|| "a process".to_owned(), |state| state.program.exe.clone());
        let runtime = context.processes.get(process).is_some_and(is_runtime)
            || context.processes.lineage(process).any(|(_, state)| is_runtime(state));
        let own_monitor = context
            .containers
            .get(container)
            .is_some_and(|container| way::is_of_own_monitor(process, container, context));
        self.next += 1;
        self.members.insert(process, self.next);
        self.groups.insert(
            self.next,
            Group {
                container: container.to_owned(),
                first: process,
                by,
                entered: vec![entered],
                since: now,
                members: BTreeSet::from([process]),
                evidence: vec![evidence],
                own_monitor,
                patience: if runtime { RUNTIME_PATIENCE_NS } else { PATIENCE_NS },
            },
        );
    }

    /// What a process on its way forks is on the same way.
    pub fn forked(&mut self, parent: ProcessKey, child: ProcessKey) {
        if let Some(number) = self.members.get(&parent).copied()
            && let Some(group) = self.groups.get_mut(&number)
            && group.members.len() < MEMBERS_MAX
        {
            group.members.insert(child);
            self.members.insert(child, number);
        }
    }

    /// A process has arrived, or turns out to belong there.
    pub fn resolve(&mut self, process: ProcessKey) -> Option<Group> {
        let number = self.members.get(&process).copied()?;
        self.take(number)
    }

    /// A process ended. Yields its group when it was the last of it.
    pub fn exited(&mut self, process: ProcessKey) -> Option<Group> {
        let number = self.leave(process)?;
        let group = self.groups.get(&number)?;
        if group.members.is_empty() { self.take(number) } else { None }
    }

    /// Groups that have been on their way for longer than it takes; `is_monitors` are those that containers' own monitors began.
    pub fn late(&mut self, now: BootNs, is_monitors: impl Fn(&Group) -> bool) -> Vec<Group> {
        let is_late = |group: &Group| {
            let age = now.0.saturating_sub(group.since.0);
            age > group.patience && (age > MONITOR_PATIENCE_NS || !is_monitors(group))
        };
        let late: Vec<_> = self.groups.iter().filter(|(_, group)| is_late(group)).map(|(number, _)| *number).collect();
        late.into_iter().filter_map(|number| self.take(number)).collect()
    }

    fn leave(&mut self, process: ProcessKey) -> Option<u64> {
        let number = self.members.remove(&process)?;
        if let Some(group) = self.groups.get_mut(&number) {
            group.members.remove(&process);
        }
        Some(number)
    }

    fn take(&mut self, number: u64) -> Option<Group> {
        let group = self.groups.remove(&number)?;
        for member in &group.members {
            self.members.remove(member);
        }
        Some(group)
    }
}
