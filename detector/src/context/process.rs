//! The process table: who is who, and who made whom. Bounded, and right across pid reuse.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use detector_common as wire;

use crate::{
    decode::{Event, Exec},
    record::{BootNs, ProcessKey, ProcessSeed},
};

/// Most processes remembered, exited ones included.
const MAX: usize = 32_768;
/// How long an exited process without living descendants is remembered, in ns: a short-lived writer is still named.
const RETAIN_NS: u64 = 30_000_000_000;
/// Most steps of a lineage.
const LINEAGE_MAX: usize = 64;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessState {
    /// Who forked it; `None` at the root, and where that is not known.
    pub parent: Option<ProcessKey>,
    /// Path of the executable in the process's mount namespace; in brackets, its short name, when only that is known.
    pub exe: Arc<str>,
    pub argv: Arc<[String]>,
    pub argv_truncated: bool,
    pub uid: u32,
    pub login_uid: Option<u32>,
    pub tty: Option<Arc<str>>,
    pub cgroup: u64,
    pub mnt_ns: u32,
    pub pid_ns: u32,
    /// When it ended.
    pub exited: Option<BootNs>,
    /// Processes in the table whose parent this is.
    children: u32,
}

/// All processes.
#[derive(Debug, Default)]
pub struct Processes {
    table: BTreeMap<ProcessKey, ProcessState>,
    /// Exited processes in the order of their end.
    exited: VecDeque<ProcessKey>,
    /// Executables, each kept once.
    names: BTreeSet<Arc<str>>,
    /// Processes that the bound dropped before their time.
    dropped: u64,
}

impl Processes {
    #[must_use]
    pub fn get(&self, key: ProcessKey) -> Option<&ProcessState> {
        self.table.get(&key)
    }

    /// How many processes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How many living or recent processes the bound dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Ancestors, parent first, as far as they are known.
    pub fn lineage(&self, key: ProcessKey) -> impl Iterator<Item = (ProcessKey, &ProcessState)> {
        let parent = |key: &ProcessKey| self.table.get(key).and_then(|process| process.parent);
        std::iter::successors(parent(&key), move |key| parent(key))
            .take(LINEAGE_MAX)
            .map_while(|key| self.table.get(&key).map(|process| (key, process)))
    }

    /// A process from `/proc`. What the kernel already told of it is newer and stays.
    pub fn seed(&mut self, seed: &ProcessSeed) {
        let key = ProcessKey { pid: seed.pid, start: seed.start };
        if self.table.contains_key(&key) {
            return;
        }
        // `/proc` gives a parent's pid only: of those that had it, the last that began no later than the child.
        let parent = self
            .table
            .range(
                ProcessKey { pid: seed.parent_pid, start: 0 }..=ProcessKey { pid: seed.parent_pid, start: seed.start },
            )
            .next_back()
            .map(|(key, _)| *key)
            .filter(|parent| *parent != key);
        let state = ProcessState {
            parent,
            exe: self.name(&seed.exe),
            argv: seed.argv.clone().into(),
            argv_truncated: seed.argv_truncated,
            uid: seed.uid,
            login_uid: seed.login_uid,
            tty: seed.tty.as_deref().map(Into::into),
            cgroup: seed.cgroup_id,
            mnt_ns: seed.mnt_ns,
            pid_ns: seed.pid_ns,
            exited: None,
            children: 0,
        };
        self.insert(key, state);
    }

    /// Learns from a kernel event.
    pub fn learn(&mut self, time: BootNs, event: &Event) {
        let header = event.header();
        let actor = ProcessKey::from_ns(header.tgid, header.start_ns);
        match event {
            Event::Fork(fork) => self.fork(header, actor, fork),
            Event::Exec(exec) => self.exec(header, actor, exec),
            Event::Exit(_) => {
                if let Some(process) = self.table.get_mut(&actor)
                    && process.exited.is_none()
                {
                    process.exited = Some(time);
                    self.exited.push_back(actor);
                }
            }
            _ => self.acts(header, actor),
        }
        self.forget(time);
    }

    /// A process that acts is in the table from then on, and where it lives is what the act says.
    fn acts(&mut self, header: &wire::Header, key: ProcessKey) {
        if let Some(process) = self.table.get_mut(&key) {
            process.uid = header.uid;
            process.cgroup = header.cgroup;
            if header.mnt_ns != 0 {
                process.mnt_ns = header.mnt_ns;
            }
            return;
        }
        let state = self.unknown(header);
        self.insert(key, state);
    }

    fn fork(&mut self, header: &wire::Header, actor: ProcessKey, fork: &wire::Fork) {
        self.acts(header, actor);
        let child = ProcessKey::from_ns(fork.child_tgid, fork.child_start_ns);
        let parent = ProcessKey::from_ns(fork.parent_tgid, fork.parent_start_ns);
        if child == actor || self.table.contains_key(&child) {
            return;
        }
        let Some(like) = self.table.get(&actor) else { return };
        let state = ProcessState {
            parent: Some(if self.table.contains_key(&parent) { parent } else { actor }),
            exited: None,
            children: 0,
            ..like.clone()
        };
        self.insert(child, state);
    }

    fn exec(&mut self, header: &wire::Header, key: ProcessKey, exec: &Exec) {
        let parent = ProcessKey::from_ns(exec.event.parent_tgid, exec.event.parent_start_ns);
        let tty_len = exec.event.tty.iter().position(|b| *b == 0).unwrap_or(exec.event.tty.len());
        let tty = String::from_utf8_lossy(&exec.event.tty[..tty_len]);
        let deleted = if exec.event.flags & wire::EXE_DELETED != 0 { " (deleted)" } else { "" };
        let exe = self.name(&format!("{}{deleted}", exec.path));
        let known = self.table.get(&key);
        let state = ProcessState {
            exe,
            argv: exec.argv.clone().into(),
            argv_truncated: exec.event.flags & wire::ARGV_TRUNCATED != 0,
            tty: (!tty.is_empty()).then(|| tty.into()),
            // Who forked it stays, also when that one is gone and another has adopted it.
            parent: known.and_then(|known| known.parent).or((parent != key && parent.pid != 0).then_some(parent)),
            exited: known.and_then(|known| known.exited),
            children: known.map_or(0, |known| known.children),
            ..self.unknown(header)
        };
        if known.is_some() {
            self.table.insert(key, state);
        } else {
            self.insert(key, state);
        }
    }

    /// A process of which nothing is known but an act.
    fn unknown(&self, header: &wire::Header) -> ProcessState {
        let len = header.comm.iter().position(|b| *b == 0).unwrap_or(header.comm.len());
        ProcessState {
            parent: None,
            exe: format!("[{}]", String::from_utf8_lossy(&header.comm[..len])).into(),
            argv: Arc::default(),
            argv_truncated: false,
            uid: header.uid,
            login_uid: (header.login_uid != u32::MAX).then_some(header.login_uid),
            tty: None,
            cgroup: header.cgroup,
            mnt_ns: header.mnt_ns,
            pid_ns: header.pid_ns,
            exited: None,
            children: 0,
        }
    }

    fn insert(&mut self, key: ProcessKey, state: ProcessState) {
        if let Some(parent) = state.parent.and_then(|parent| self.table.get_mut(&parent)) {
            parent.children = parent.children.saturating_add(1);
        }
        self.table.insert(key, state);
        while self.table.len() > MAX {
            self.dropped += 1;
            match self.exited.pop_front() {
                Some(oldest) => self.remove(oldest),
                // All alive: the one that was there first is the least likely to act now. The root stays.
                None => {
                    match self.table.keys().filter(|one| one.pid > 1).min_by_key(|one| (one.start, one.pid)).copied() {
                        Some(oldest) => self.remove(oldest),
                        None => break,
                    }
                }
            }
        }
    }

    /// Drops exited processes that nothing descends from any more, once they have been remembered long enough.
    fn forget(&mut self, now: BootNs) {
        let mut kept = VecDeque::new();
        while let Some(key) = self.exited.front().copied() {
            let Some(process) = self.table.get(&key) else {
                self.exited.pop_front();
                continue;
            };
            if process.exited.is_none_or(|end| now.0.saturating_sub(end.0) < RETAIN_NS) || !kept.is_empty() {
                break;
            }
            self.exited.pop_front();
            if process.children > 0 {
                // Looked at again when it comes up next.
                kept.push_back(key);
            } else {
                self.remove(key);
            }
        }
        self.exited.extend(kept);
    }

    fn remove(&mut self, key: ProcessKey) {
        let Some(removed) = self.table.remove(&key) else { return };
        if let Some(parent) = removed.parent.and_then(|parent| self.table.get_mut(&parent)) {
            parent.children = parent.children.saturating_sub(1);
        }
        // The table's name and ours: nobody else runs it.
        if Arc::strong_count(&removed.exe) <= 2 {
            self.names.remove(&removed.exe);
        }
    }

    /// The one copy of an executable's name.
    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        name
    }
}
