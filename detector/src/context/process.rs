//! The process table: who is who, and who made whom. Bounded, and right across pid reuse.

use std::{collections::VecDeque, sync::Arc};

use detector_common as wire;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    argv::Argv,
    decode::{Event, Exec},
    record::{BootNs, ProcessKey, ProcessSeed},
};

/// Most processes remembered, exited ones included: what a hash table of 32,768 buckets takes before it doubles.
const MAX: usize = 28_000;
/// How long an exited process without living descendants is remembered, in ns: a short-lived writer is still named.
const RETAIN_NS: u64 = 30_000_000_000;
/// Most steps of a lineage.
const LINEAGE_MAX: usize = 64;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessState {
    /// Who forked it; `None` at the root, and where that is not known.
    pub parent: Option<ProcessKey>,
    pub program: Arc<Program>,
    pub uid: u32,
    pub login_uid: Option<u32>,
    pub cgroup: u64,
    pub mnt_ns: u32,
    pub pid_ns: u32,
    /// When it ended.
    pub exited: Option<BootNs>,
    /// Processes in the table whose parent this is.
    children: u32,
}

/// What a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Program {
    /// Path of the executable in the process's mount namespace; in brackets, its short name, when only that is known.
    pub exe: String,
    pub argv: Argv,
    pub argv_truncated: bool,
    pub tty: Option<Box<str>>,
}

impl ProcessState {
    /// Whether others in the table descend from it.
    #[must_use]
    pub fn is_parent(&self) -> bool {
        self.children > 0
    }
}

/// All processes.
#[derive(Debug, Default)]
pub struct Processes {
    /// Asked several times for each event, so not an ordered map.
    table: FxHashMap<ProcessKey, ProcessState>,
    /// The start of the last process with each pid.
    starts: FxHashMap<u32, u64>,
    /// Exited processes in the order of their end, or of the last look at them.
    exited: VecDeque<(ProcessKey, BootNs)>,
    /// What they run, each kept once.
    programs: FxHashSet<Arc<Program>>,
    /// Processes that the bound dropped before their time.
    dropped: u64,
}

impl Processes {
    #[must_use]
    pub fn get(&self, key: ProcessKey) -> Option<&ProcessState> {
        self.table.get(&key)
    }

    /// The process that has, or had last, this pid.
    #[must_use]
    pub fn latest(&self, pid: u32) -> Option<ProcessKey> {
        self.starts.get(&pid).map(|start| ProcessKey { pid, start: *start })
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (ProcessKey, &ProcessState)> {
        self.table.iter().map(|(key, process)| (*key, process))
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
        let parent = match seed.parent_start {
            Some(start) => Some(ProcessKey { pid: seed.parent_pid, start }),
            // `/proc` gives a parent's pid only: it cannot be one that began later than the child.
            None => self.latest(seed.parent_pid).filter(|parent| *parent != key && parent.start <= key.start),
        };
        let state = ProcessState {
            parent,
            program: self.program(Program {
                exe: seed.exe.clone(),
                argv: seed.argv.iter().collect(),
                argv_truncated: seed.argv_truncated,
                tty: seed.tty.as_deref().map(Into::into),
            }),
            uid: seed.uid,
            login_uid: seed.login_uid,
            cgroup: seed.cgroup_id,
            mnt_ns: seed.mnt_ns,
            pid_ns: seed.pid_ns,
            exited: seed.exited,
            children: 0,
        };
        self.insert(key, state);
        if let Some(end) = seed.exited {
            self.exited.push_back((key, end));
        }
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
                    self.exited.push_back((actor, time));
                }
            }
            Event::CgroupMove(moved) => {
                self.acts(header, actor);
                let target = ProcessKey::from_ns(moved.target_tgid, moved.target_start_ns);
                if let Some(target) = self.table.get_mut(&target) {
                    target.cgroup = moved.id;
                }
            }
            Event::Namespaces(entered) => {
                self.acts(header, actor);
                if let Some(process) = self.table.get_mut(&actor)
                    && entered.mnt != 0
                {
                    process.mnt_ns = entered.mnt;
                }
            }
            // In nobody's name.
            Event::Connection(connection) if connection.act == wire::connection::ACCEPT => {}
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
        let program = self.program(Program { exe: comm(header), ..Program::default() });
        self.insert(key, by_header(header, program));
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
            parent: Some(if parent == actor || self.table.contains_key(&parent) { parent } else { actor }),
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
        // A file that is mounted by itself, as runc mounts itself, has no name in any directory.
        let mut exe = if exec.path == "/" { comm(header) } else { exec.path.clone() };
        if exec.event.flags & wire::EXE_DELETED != 0 {
            exe.push_str(" (deleted)");
        }
        let program = self.program(Program {
            exe,
            argv: exec.argv.clone(),
            argv_truncated: exec.event.flags & wire::ARGV_TRUNCATED != 0,
            tty: (!tty.is_empty()).then(|| tty.into()),
        });
        let known = self.table.get(&key);
        let state = ProcessState {
            // Who forked it stays, also when that one is gone and another has adopted it.
            parent: known.and_then(|known| known.parent).or((parent != key && parent.pid != 0).then_some(parent)),
            exited: known.and_then(|known| known.exited),
            children: known.map_or(0, |known| known.children),
            ..by_header(header, program)
        };
        if known.is_some() {
            self.replace(key, state);
        } else {
            self.insert(key, state);
        }
    }

    fn insert(&mut self, key: ProcessKey, state: ProcessState) {
        if let Some(parent) = state.parent.and_then(|parent| self.table.get_mut(&parent)) {
            parent.children = parent.children.saturating_add(1);
        }
        self.table.insert(key, state);
        let last = self.starts.entry(key.pid).or_default();
        *last = key.start.max(*last);
        while self.table.len() > MAX && self.evict() {
            self.dropped += 1;
        }
    }

    /// Drops the process that is the least likely to act, or to be asked for, again.
    fn evict(&mut self) -> bool {
        /// Exited processes with descendants that are passed over: their lineage is worth more.
        const PASSED_OVER: usize = 8;
        let mut passed_over = 0;
        while let Some((key, end)) = self.exited.pop_front() {
            match self.table.get(&key) {
                None => continue,
                Some(process) if process.children > 0 && passed_over < PASSED_OVER => {
                    passed_over += 1;
                    self.exited.push_back((key, end));
                }
                Some(_) => {
                    self.remove(key);
                    return true;
                }
            }
        }
        // All alive: the one that was there first. The root stays.
        let oldest = self.table.keys().filter(|key| key.pid > 1).min_by_key(|key| (key.start, key.pid)).copied();
        oldest.is_some_and(|oldest| {
            self.remove(oldest);
            true
        })
    }

    /// Drops exited processes that nothing descends from any more, once they have been remembered long enough.
    fn forget(&mut self, now: BootNs) {
        while let Some((key, end)) = self.exited.front().copied() {
            if now.0.saturating_sub(end.0) < RETAIN_NS {
                return;
            }
            self.exited.pop_front();
            match self.table.get(&key) {
                // Looked at again in a while.
                Some(process) if process.children > 0 => self.exited.push_back((key, now)),
                Some(_) => self.remove(key),
                None => {}
            }
        }
    }

    fn remove(&mut self, key: ProcessKey) {
        let Some(removed) = self.table.remove(&key) else { return };
        if self.starts.get(&key.pid) == Some(&key.start) {
            self.starts.remove(&key.pid);
        }
        if let Some(parent) = removed.parent.and_then(|parent| self.table.get_mut(&parent)) {
            parent.children = parent.children.saturating_sub(1);
        }
        self.unused(removed.program);
    }

    /// Another state of a process that is in the table.
    fn replace(&mut self, key: ProcessKey, state: ProcessState) {
        if let Some(before) = self.table.insert(key, state) {
            self.unused(before.program);
        }
    }

    /// The one copy of a program.
    fn program(&mut self, program: Program) -> Arc<Program> {
        if let Some(known) = self.programs.get(&program) {
            return Arc::clone(known);
        }
        let program = Arc::new(program);
        self.programs.insert(Arc::clone(&program));
        program
    }

    /// A process no longer runs this.
    fn unused(&mut self, program: Arc<Program>) {
        // The set's copy and this one: nobody else runs it.
        if Arc::strong_count(&program) <= 2 {
            self.programs.remove(&program);
        }
    }
}

/// What a kernel record's header says of a process.
fn by_header(header: &wire::Header, program: Arc<Program>) -> ProcessState {
    ProcessState {
        parent: None,
        program,
        uid: header.uid,
        login_uid: (header.login_uid != u32::MAX).then_some(header.login_uid),
        cgroup: header.cgroup,
        mnt_ns: header.mnt_ns,
        pid_ns: header.pid_ns,
        exited: None,
        children: 0,
    }
}

/// A task's short name, in brackets.
fn comm(header: &wire::Header) -> String {
    let len = header.comm.iter().position(|b| *b == 0).unwrap_or(header.comm.len());
    format!("[{}]", String::from_utf8_lossy(&header.comm[..len]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decode,
        testing::{self, Actor, SECOND, seed},
    };

    fn key(actor: Actor) -> ProcessKey {
        ProcessKey::from_ns(actor.pid, actor.start * SECOND)
    }

    fn learn(table: &mut Processes, second: u64, raw: &[u8]) {
        table.learn(BootNs(second * SECOND), &decode::event(raw).unwrap());
    }

    fn exes(table: &Processes, of: Actor) -> Vec<String> {
        table.lineage(key(of)).map(|(_, process)| process.program.exe.clone()).collect()
    }

    /// init, and a shell below it.
    fn table() -> (Processes, Actor) {
        let mut table = Processes::default();
        table.seed(&seed(1, 0, 0, "/sbin/init"));
        table.seed(&seed(50, 10, 1, "/bin/bash"));
        (table, Actor::host(50, 10))
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let (mut table, shell) = table();
        let (first, second) = (Actor::host(60, 20), Actor::host(60, 30));
        for (actor, exe) in [(first, "/bin/one"), (second, "/bin/two")] {
            learn(&mut table, actor.start, &testing::fork(shell, actor));
            learn(&mut table, actor.start, &testing::exec(actor, shell, exe, &[exe]));
            learn(&mut table, actor.start, &testing::exit(actor));
        }
        assert_eq!(table.get(key(first)).unwrap().program.exe, "/bin/one");
        assert_eq!(table.get(key(second)).unwrap().program.exe, "/bin/two");
    }

    #[test]
    fn lineage_is_who_forked_also_when_those_are_gone_and_init_has_adopted() {
        let (mut table, shell) = table();
        let (middle, leaf) = (Actor::host(60, 20), Actor::host(61, 21));
        learn(&mut table, 20, &testing::fork(shell, middle));
        learn(&mut table, 20, &testing::exec(middle, shell, "/bin/launcher", &["launcher"]));
        learn(&mut table, 21, &testing::fork(middle, leaf));
        learn(&mut table, 22, &testing::exit(middle));
        // The kernel now says that init is the parent.
        learn(&mut table, 23, &testing::exec(leaf, Actor::host(1, 0), "/bin/leaf", &["leaf"]));
        assert_eq!(exes(&table, leaf), ["/bin/launcher", "/bin/bash", "/sbin/init"]);
        // Long after, the launcher is still what it descends from.
        learn(&mut table, 500, &testing::fork(shell, Actor::host(70, 500)));
        assert_eq!(exes(&table, leaf), ["/bin/launcher", "/bin/bash", "/sbin/init"]);
    }

    #[test]
    fn the_exited_are_forgotten_after_a_while() {
        let (mut table, shell) = table();
        let child = Actor::host(60, 20);
        learn(&mut table, 20, &testing::fork(shell, child));
        learn(&mut table, 21, &testing::exit(child));
        learn(&mut table, 50, &testing::change(shell, testing::FILE, 1));
        assert!(table.get(key(child)).is_some());
        learn(&mut table, 52, &testing::change(shell, testing::FILE, 1));
        assert!(table.get(key(child)).is_none());
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn a_parent_that_proc_names_by_pid_is_one_that_began_earlier() {
        let mut table = Processes::default();
        table.seed(&seed(1, 0, 0, "/sbin/init"));
        table.seed(&seed(60, 30, 1, "/bin/later"));
        table.seed(&seed(61, 20, 60, "/bin/orphan"));
        assert_eq!(exes(&table, Actor::host(61, 20)), Vec::<String>::new());
    }

    #[test]
    fn what_the_kernel_said_is_newer_than_proc() {
        let (mut table, shell) = table();
        let child = Actor::host(60, 20);
        learn(&mut table, 20, &testing::exec(child, shell, "/bin/new", &["new"]));
        table.seed(&seed(60, 20, 50, "/bin/old"));
        assert_eq!(table.get(key(child)).unwrap().program.exe, "/bin/new");
    }

    #[test]
    fn a_process_of_which_nothing_is_known_but_an_act_is_there_from_then_on() {
        let mut table = Processes::default();
        let stranger = Actor::host(99, 5);
        learn(&mut table, 6, &testing::change(stranger, testing::FILE, 1));
        assert_eq!(table.get(key(stranger)).unwrap().program.exe, "[comm]");
    }

    #[test]
    fn an_accepted_connection_is_nobodys_act() {
        let (mut table, shell) = table();
        let before = table.len();
        learn(&mut table, 6, &crate::testing_control::accept("203.0.113.9:5000", "10.0.0.5:6443"));
        assert_eq!(table.len(), before);
        learn(&mut table, 6, &crate::testing_control::connect(Actor::host(99, 5), "10.0.0.5:6443", 1));
        assert_eq!(table.len(), before + 1);
        assert!(table.get(key(shell)).is_some());
    }

    #[test]
    fn the_table_is_bounded_and_the_long_lived_survive_a_storm() {
        let (mut table, shell) = table();
        let daemon = Actor::host(51, 11);
        learn(&mut table, 11, &testing::fork(shell, daemon));
        learn(&mut table, 12, &testing::exit(shell));
        for n in 0..2 * u32::try_from(MAX).unwrap() {
            let child = Actor::host(1000 + n, 20);
            learn(&mut table, 20, &testing::fork(daemon, child));
            learn(&mut table, 20, &testing::exit(child));
        }
        assert!(table.len() <= MAX);
        assert!(table.dropped() > 0);
        assert_eq!(exes(&table, daemon), ["/bin/bash", "/sbin/init"]);
        assert!(table.exited.len() <= MAX);
        assert_eq!(table.programs.len(), 2);
    }
}
