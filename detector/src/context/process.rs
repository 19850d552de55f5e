//! The process table: who is who, and who made whom. Bounded, and right across pid reuse.

use std::collections::{VecDeque, hash_map::Entry};

use detector_common as wire;
use rustc_hash::{FxHashMap, FxHashSet};

use super::program::{Kept, Program, Programs};
use crate::{
    decode::{Event, Exec},
    record::{BootNs, ProcessKey, ProcessSeed},
};

/// Most processes remembered while one of them has exited. A hash table that is never more than half of what its buckets take
/// makes room for what comes by moving what it has; a fuller one doubles, since what was removed leaves marks. So a storm of
/// short-lived processes costs 32,768 buckets, some 3 MiB.
const EXITED_MAX: usize = 14_000;
/// Most processes remembered: where so many live, it may double once.
const MAX: usize = 2 * EXITED_MAX;
/// How long an exited process without living descendants is remembered, in ns: a short-lived writer is still named.
const RETAIN_NS: u64 = 30_000_000_000;
/// Most steps of a lineage.
const LINEAGE_MAX: usize = 64;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessState {
    /// Who forked it; `None` at the root, and where that is not known.
    pub parent: Option<ProcessKey>,
    pub program: Kept,
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

impl ProcessState {
    fn acts(&mut self, header: &wire::Header) {
        self.uid = header.uid;
        self.cgroup = header.cgroup;
        if header.mnt_ns != 0 {
            self.mnt_ns = header.mnt_ns;
        }
    }

    /// Whether others in the table descend from it.
    #[must_use]
    pub fn is_parent(&self) -> bool {
        self.children > 0
    }
}

/// All processes.
#[derive(Debug, Default)]
pub struct Processes {
    /// The last process with each pid, and its start. Asked several times for each event, so not an ordered map.
    table: FxHashMap<u32, (u64, ProcessState)>,
    /// Those that had a pid before the one in the table.
    earlier: FxHashMap<ProcessKey, ProcessState>,
    /// Exited processes in the order of their end, or of the last look at them.
    exited: VecDeque<(ProcessKey, BootNs)>,
    /// What they run, each kept once.
    programs: Programs,
    /// Processes that the bound dropped before their time.
    dropped: u64,
}

impl Processes {
    #[must_use]
    pub fn get(&self, key: ProcessKey) -> Option<&ProcessState> {
        match self.table.get(&key.pid) {
            Some((start, process)) if *start == key.start => Some(process),
            _ if self.earlier.is_empty() => None,
            _ => self.earlier.get(&key),
        }
    }

    fn get_mut(&mut self, key: ProcessKey) -> Option<&mut ProcessState> {
        match self.table.get_mut(&key.pid) {
            Some((start, process)) if *start == key.start => Some(process),
            _ if self.earlier.is_empty() => None,
            _ => self.earlier.get_mut(&key),
        }
    }

    /// The process that has, or had last, this pid.
    #[must_use]
    pub fn latest(&self, pid: u32) -> Option<ProcessKey> {
        self.table.get(&pid).map(|(start, _)| ProcessKey { pid, start: *start })
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (ProcessKey, &ProcessState)> {
        let last = self.table.iter().map(|(pid, (start, process))| (ProcessKey { pid: *pid, start: *start }, process));
        last.chain(self.earlier.iter().map(|(key, process)| (*key, process)))
    }

    /// How many processes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len() + self.earlier.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many living or recent processes the bound dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Ancestors, parent first, as far as they are known.
    pub fn lineage(&self, key: ProcessKey) -> impl Iterator<Item = (ProcessKey, &ProcessState)> {
        let parent = |key: &ProcessKey| self.get(*key).and_then(|process| process.parent);
        std::iter::successors(parent(&key), move |key| parent(key))
            .take(LINEAGE_MAX)
            .map_while(|key| self.get(key).map(|process| (key, process)))
    }

    /// A process from `/proc`. What the kernel already told of it is newer and stays, unless it is looked at again because events were
    /// lost: everything that was not is in the table by then.
    pub fn seed(&mut self, seed: &ProcessSeed) {
        let key = seed.key();
        if seed.again {
            self.correct(key, seed);
        }
        if self.get(key).is_some() {
            return;
        }
        let parent = self.parent_of(key, seed);
        let state = ProcessState {
            parent,
            program: self.programs.keep(seeded(seed)),
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

    fn parent_of(&self, key: ProcessKey, seed: &ProcessSeed) -> Option<ProcessKey> {
        match seed.parent_start {
            Some(start) => Some(ProcessKey { pid: seed.parent_pid, start }),
            // `/proc` gives a parent's pid only: it cannot be one that began later than the child.
            None => self.latest(seed.parent_pid).filter(|parent| *parent != key && parent.start <= key.start),
        }
    }

    /// Whether the lineage ends before the first process, or the kernel's first thread: at one whose fork was lost.
    fn is_broken(&self, key: ProcessKey) -> bool {
        let top = self.lineage(key).last().map_or(key, |(top, _)| top);
        top.pid > 2
    }

    /// What is known of a process is brought to what it is now.
    fn correct(&mut self, key: ProcessKey, seed: &ProcessSeed) {
        if self.get(key).is_none() {
            return;
        }
        // Who forked it stays, unless nobody knows any more whom that one descended from: then it is who has adopted it.
        let adopted = self.parent_of(key, seed).filter(|parent| self.is_broken(key) && !self.is_broken(*parent));
        if let Some(parent) = adopted {
            let before = self.get_mut(key).and_then(|known| known.parent.replace(parent));
            if let Some(before) = before.and_then(|before| self.get_mut(before)) {
                before.children = before.children.saturating_sub(1);
            }
            if let Some(parent) = self.get_mut(parent) {
                parent.children = parent.children.saturating_add(1);
            }
        }
        let Some(known) = self.get(key) else { return };
        // Arguments and short names are the process's to change: by them alone it is no other program.
        if !seed.exe.starts_with('[') && known.program.exe != seed.exe {
            let program = self.programs.keep(seeded(seed));
            if let Some(known) = self.get_mut(key) {
                let before = std::mem::replace(&mut known.program, program);
                self.programs.unused(before);
            }
        }
        let Some(known) = self.get_mut(key) else { return };
        known.uid = seed.uid;
        for (known, now) in [(&mut known.mnt_ns, seed.mnt_ns), (&mut known.pid_ns, seed.pid_ns)] {
            *known = if now == 0 { *known } else { now };
        }
        if seed.cgroup_id != 0 {
            known.cgroup = seed.cgroup_id;
        }
    }

    /// Who is not among those that live has ended. Yields them, in order.
    pub fn alive(&mut self, living: &[ProcessKey], now: BootNs) -> Vec<ProcessKey> {
        let living: FxHashSet<ProcessKey> = living.iter().copied().collect();
        let ended = |(key, process): &(ProcessKey, &ProcessState)| process.exited.is_none() && !living.contains(key);
        let mut ended: Vec<_> = self.iter().filter(ended).map(|(key, _)| key).collect();
        ended.sort_unstable();
        for key in &ended {
            if let Some(process) = self.get_mut(*key) {
                process.exited = Some(now);
                self.exited.push_back((*key, now));
            }
        }
        ended
    }

    /// Learns from a kernel event.
    pub fn learn(&mut self, time: BootNs, event: &Event) {
        let header = event.header();
        let actor = ProcessKey::from_ns(header.tgid, header.start_ns);
        match event {
            Event::Fork(fork) => self.fork(header, actor, fork),
            Event::Exec(exec) => self.exec(header, actor, exec),
            Event::Exit(_) => {
                if let Some(process) = self.get_mut(actor)
                    && process.exited.is_none()
                {
                    process.exited = Some(time);
                    self.exited.push_back((actor, time));
                }
            }
            Event::CgroupMove(moved) => {
                self.acts(header, actor);
                let target = ProcessKey::from_ns(moved.target_tgid, moved.target_start_ns);
                if let Some(target) = self.get_mut(target) {
                    target.cgroup = moved.id;
                }
            }
            Event::Namespaces(entered) => {
                self.acts(header, actor);
                if let Some(process) = self.get_mut(actor)
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
        if let Some(process) = self.get_mut(key) {
            process.acts(header);
            return;
        }
        let program = self.programs.named(header);
        self.insert(key, by_header(header, program));
    }

    fn fork(&mut self, header: &wire::Header, actor: ProcessKey, fork: &wire::Fork) {
        let like = match self.get_mut(actor) {
            Some(process) => {
                process.acts(header);
                process.clone()
            }
            None => {
                let program = self.programs.named(header);
                let process = by_header(header, program);
                self.insert(actor, process.clone());
                process
            }
        };
        let child = ProcessKey::from_ns(fork.child_tgid, fork.child_start_ns);
        let parent = ProcessKey::from_ns(fork.parent_tgid, fork.parent_start_ns);
        if child == actor || self.get(child).is_some() {
            return;
        }
        let parent = if parent == actor || self.get(parent).is_some() { parent } else { actor };
        self.insert(child, ProcessState { parent: Some(parent), exited: None, children: 0, ..like });
    }

    fn exec(&mut self, header: &wire::Header, key: ProcessKey, exec: &Exec) {
        let parent = ProcessKey::from_ns(exec.event.parent_tgid, exec.event.parent_start_ns);
        let parent = (parent != key && parent.pid != 0).then_some(parent);
        let state = by_header(header, self.programs.executed(exec));
        let Some(known) = self.get_mut(key) else {
            self.insert(key, ProcessState { parent, ..state });
            return;
        };
        // Who forked it stays, also when that one is gone and another has adopted it.
        let (parent, exited, children) = (known.parent.or(parent), known.exited, known.children);
        let before = std::mem::replace(known, ProcessState { parent, exited, children, ..state });
        self.programs.unused(before.program);
    }

    /// Takes a process that is not in the table.
    fn insert(&mut self, key: ProcessKey, state: ProcessState) {
        if let Some(parent) = state.parent.and_then(|parent| self.get_mut(parent)) {
            parent.children = parent.children.saturating_add(1);
        }
        match self.table.entry(key.pid) {
            Entry::Vacant(free) => drop(free.insert((key.start, state))),
            Entry::Occupied(mut taken) if taken.get().0 < key.start => {
                let (start, before) = taken.insert((key.start, state));
                self.earlier.insert(ProcessKey { start, ..key }, before);
            }
            Entry::Occupied(_) => drop(self.earlier.insert(key, state)),
        }
        while self.len() > EXITED_MAX && self.evict(self.len() > MAX) {
            self.dropped += 1;
        }
    }

    /// Drops the process that is the least likely to act, or to be asked for, again; unless it has to be, none that lives or has
    /// descendants.
    fn evict(&mut self, has_to_be: bool) -> bool {
        /// Exited processes with descendants that are passed over: their lineage is worth more.
        const PASSED_OVER: usize = 8;
        let mut passed_over = 0;
        while let Some((key, end)) = self.exited.pop_front() {
            match self.get(key) {
                None => continue,
                Some(process) if process.children > 0 && passed_over < PASSED_OVER => {
                    passed_over += 1;
                    self.exited.push_back((key, end));
                }
                Some(process) if process.children > 0 && !has_to_be => {
                    self.exited.push_back((key, end));
                    return false;
                }
                Some(_) => {
                    self.remove(key);
                    return true;
                }
            }
        }
        if !has_to_be {
            return false;
        }
        // All alive: the one that was there first. The root stays.
        let keys = self.iter().map(|(key, _)| key);
        let oldest = keys.filter(|key| key.pid > 1).min_by_key(|key| (key.start, key.pid));
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
            match self.get(key) {
                // Looked at again in a while.
                Some(process) if process.children > 0 => self.exited.push_back((key, now)),
                Some(_) => self.remove(key),
                None => {}
            }
        }
    }

    fn remove(&mut self, key: ProcessKey) {
        let removed = match self.table.entry(key.pid) {
            Entry::Occupied(found) if found.get().0 == key.start => Some(found.remove().1),
            _ => self.earlier.remove(&key),
        };
        let Some(removed) = removed else { return };
        if let Some(parent) = removed.parent.and_then(|parent| self.get_mut(parent)) {
            parent.children = parent.children.saturating_sub(1);
        }
        self.programs.unused(removed.program);
    }
}

/// What a process from `/proc` runs.
fn seeded(seed: &ProcessSeed) -> Program {
    Program {
        exe: seed.exe.clone(),
        argv: seed.argv.iter().collect(),
        argv_truncated: seed.argv_truncated,
        tty: seed.tty.as_deref().map(Into::into),
    }
}

/// What a kernel record's header says of a process.
fn by_header(header: &wire::Header, program: Kept) -> ProcessState {
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
    fn what_was_lost_is_looked_at_again_and_arguments_alone_make_no_other_program() {
        let (mut table, shell) = table();
        let (child, unseen) = (Actor::host(60, 20), Actor::host(61, 21));
        let again = |actor: Actor, exe: &str, argv: &str| ProcessSeed {
            again: true,
            argv: vec![argv.to_owned()],
            ..seed(actor.pid, actor.start, 50, exe)
        };
        // Its exec was lost, and of the other everything.
        learn(&mut table, 20, &testing::fork(shell, child));
        assert_eq!(table.get(key(child)).unwrap().program.exe, "/bin/bash");
        let programs = table.programs.count();
        for (actor, exe) in [(child, "/bin/thief"), (unseen, "/bin/other")] {
            table.seed(&again(actor, exe, exe));
            assert_eq!(table.get(key(actor)).unwrap().program.exe, exe);
            assert_eq!(exes(&table, actor), ["/bin/bash", "/sbin/init"]);
        }
        assert_eq!(table.programs.count(), programs + 2);
        // The fork of a process was lost that forked another and ended: whoever has adopted that one knows more.
        let (lost, orphan) = (Actor::host(62, 22), Actor::host(63, 23));
        learn(&mut table, 23, &testing::fork(lost, orphan));
        learn(&mut table, 23, &testing::exit(lost));
        assert_eq!(exes(&table, orphan), ["[comm]"]);
        table.seed(&again(orphan, "/bin/orphan", "orphan"));
        assert_eq!(exes(&table, orphan), ["/bin/bash", "/sbin/init"]);
        assert_eq!(table.get(key(shell)).unwrap().children, 3);
        for exe in ["/bin/thief", "[thief]"] {
            table.seed(&again(child, exe, "kworker/0:1"));
            let program = &table.get(key(child)).unwrap().program;
            assert_eq!((program.exe.as_str(), program.argv.to_vec()), ("/bin/thief", vec!["/bin/thief".to_owned()]));
        }
    }

    #[test]
    fn who_does_not_live_any_more_has_ended_and_is_forgotten_in_time() {
        let (mut table, shell) = table();
        let (lives, gone) = (Actor::host(60, 20), Actor::host(61, 20));
        for child in [lives, gone] {
            learn(&mut table, 20, &testing::fork(shell, child));
        }
        let living = [Actor::host(1, 0), shell, lives].map(key);
        assert_eq!(table.alive(&living, BootNs(30 * SECOND)), [key(gone)]);
        assert_eq!(table.alive(&living, BootNs(40 * SECOND)), []);
        learn(&mut table, 61, &testing::change(shell, testing::FILE, 1));
        assert_eq!([lives, gone].map(|child| table.get(key(child)).is_some()), [true, false]);
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
        // Numbers that come one after the other lie so evenly in the table that nothing removed leaves a mark.
        let mut pids = fastrand::Rng::with_seed(7);
        for n in 0..4 * u32::try_from(MAX).unwrap() {
            let child = Actor::host(1000 + pids.u32(..4_000_000), 20 + u64::from(n));
            learn(&mut table, 20, &testing::fork(daemon, child));
            learn(&mut table, 20, &testing::exit(child));
            assert!(table.table.capacity() <= BUCKETS * 7 / 8, "{} after {n}", table.table.capacity());
        }
        assert!(table.len() <= EXITED_MAX);
        assert!(table.dropped() > 0);
        assert_eq!(exes(&table, daemon), ["/bin/bash", "/sbin/init"]);
        assert!(table.exited.len() <= EXITED_MAX);
        assert_eq!(table.programs.count(), 2);
    }

    /// Of the table while processes exit; each takes one, and seven in eight may be taken.
    const BUCKETS: usize = 32_768;

    #[test]
    fn so_many_as_live_are_remembered_and_more_of_them_come_and_go_without_more_memory() {
        let (mut table, shell) = table();
        // Where all live, the oldest gives way, and that is looked for among all of them.
        let (max, few) = (u32::try_from(MAX).unwrap(), 50);
        let last = Actor::host(51, 50_000);
        learn(&mut table, 20, &testing::fork(shell, last));
        for n in 0..max + few {
            learn(&mut table, 20, &testing::fork(last, Actor::host(1000 + n, 20 + u64::from(n))));
        }
        assert_eq!((table.len(), table.dropped()), (MAX, u64::from(few) + 3));
        let mut pids = fastrand::Rng::with_seed(7);
        for n in 0..4 * max {
            let child = Actor::host(100_000 + pids.u32(..4_000_000), 50_000 + u64::from(n));
            learn(&mut table, 20, &testing::fork(last, child));
            learn(&mut table, 20, &testing::exit(child));
            assert!(table.table.capacity() <= 2 * BUCKETS * 7 / 8, "{} after {n}", table.table.capacity());
        }
        assert_eq!(table.len(), MAX);
    }

    #[test]
    fn a_living_process_keeps_its_lineage_while_there_is_room() {
        let (mut table, shell) = table();
        let launchers = u32::try_from(EXITED_MAX).unwrap() / 2 + 100;
        for n in 0..launchers {
            let (launcher, daemon) = (Actor::host(1000 + n, 20), Actor::host(100_000 + n, 20));
            learn(&mut table, 20, &testing::fork(shell, launcher));
            learn(&mut table, 20, &testing::fork(launcher, daemon));
            learn(&mut table, 20, &testing::exit(launcher));
        }
        assert_eq!((table.len(), table.dropped()), (2 + 2 * launchers as usize, 0));
    }
}
