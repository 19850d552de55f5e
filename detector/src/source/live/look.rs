//! After events were lost: who lives, and what containers there are, looked at again.
//!
//! A process whose exec was lost would be called by its parent's program for as long as it lives, and what enters a container whose first
//! program was not seen could not be told from what belongs there.

use std::collections::BTreeSet;

use detector_common::hook;

use super::{Live, LiveError};
use crate::{
    decode::hook_name,
    record::{Body, BootNs, Loss, ProcessSeed, Record},
    source::proc,
};

/// How often at most, in ns: `/proc` is read whole, and a flood loses events for as long as it lasts.
const EVERY_NS: u64 = 10_000_000_000;
/// What processes and containers are known by.
const HOOKS: [u16; 7] =
    [hook::FORK, hook::EXEC, hook::EXIT, hook::CGROUP_MKDIR, hook::CGROUP_RMDIR, hook::CGROUP_ATTACH, hook::NAMESPACES];

/// When, and what is known already.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// `None` while nothing was lost since the last look.
    due: Option<BootNs>,
    last: Option<BootNs>,
    /// Cgroups that were told.
    pub cgroups: BTreeSet<u64>,
}

impl Look {
    /// Events were lost.
    pub fn lost(&mut self, loss: &Loss, now: BootNs) {
        if self.due.is_none() && HOOKS.iter().any(|hook| hook_name(*hook) == loss.hook) {
            self.due = Some(self.last.map_or(now, |last| BootNs(now.0.max(last.0.saturating_add(EVERY_NS)))));
        }
    }

    fn is_due(&mut self, now: BootNs) -> bool {
        let due = self.due.is_some_and(|due| due <= now);
        if due {
            (self.due, self.last) = (None, Some(now));
        }
        due
    }
}

impl Live {
    /// Tells of cgroups that were not told, and of the containers that they are.
    pub(super) fn cgroups(&mut self, all: Vec<(u64, String)>, out: &mut Vec<Record>) -> Result<(), LiveError> {
        for (id, path) in all {
            if !self.look.cgroups.insert(id) {
                continue;
            }
            let container = self.bundles.container(id, &path, None);
            self.push(out, proc::now(), Body::Cgroup { id, path });
            if let Some(container) = container {
                self.container(container, proc::now(), out)?;
            }
        }
        Ok(())
    }

    /// Tells of processes, and of what runs in sandboxes what it executes.
    pub(super) fn processes(&mut self, all: Vec<ProcessSeed>, out: &mut Vec<Record>) {
        for process in all {
            let key = process.key();
            let pause = self.sandboxes.contains(&process.cgroup_id) && process.mnt_ns != self.host_mnt;
            self.push(out, proc::now(), Body::Process(Box::new(process)));
            if pause {
                self.executed(key, out);
            }
        }
    }

    /// Looks again where that is due.
    pub(super) fn look_again(&mut self, now: BootNs, out: &mut Vec<Record>) -> Result<(), LiveError> {
        if !self.look.is_due(now) {
            return Ok(());
        }
        // What the rings hold is older than what is read now, and what they get meanwhile is read after it.
        self.drain(out)?;
        let proc::Seeds { cgroups, mut processes } = match proc::seed() {
            Ok(seeds) => seeds,
            Err(error) => {
                self.look.due = Some(BootNs(now.0.saturating_add(EVERY_NS)));
                self.warnings.push(format!("what was lost cannot be looked at again, listing processes: {error}"));
                return Ok(());
            }
        };
        let there: BTreeSet<u64> = cgroups.iter().map(|(id, _)| *id).collect();
        self.look.cgroups.retain(|id| there.contains(id));
        self.bundles.learn_from_shims();
        // As their execs would have told.
        for process in &processes {
            self.bundles.learn(process.argv.iter().map(String::as_str));
        }
        self.cgroups(cgroups, out)?;
        let alive = processes.iter().map(|process| process.key()).collect();
        processes.iter_mut().for_each(|process| process.again = true);
        self.processes(processes, out);
        self.push(out, proc::now(), Body::Alive { processes: alive });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn loss(hook: u16) -> Loss {
        Loss { hook: hook_name(hook).to_owned(), cpu: None, lost: 1, skipped: true, alerting: false }
    }

    #[test]
    fn a_loss_is_followed_by_a_look_and_a_flood_by_one_in_a_while() {
        let mut look = Look::default();
        assert!(!look.is_due(BootNs(SECOND)));
        look.lost(&loss(hook::FILE_OPEN), BootNs(SECOND));
        assert!(!look.is_due(BootNs(SECOND)));
        let looks: Vec<_> = (1..40)
            .filter(|second| {
                let now = BootNs(second * SECOND);
                if *second < 25 {
                    look.lost(&loss(hook::EXEC), now);
                }
                look.is_due(now)
            })
            .collect();
        assert_eq!(looks, [1, 11, 21, 31]);
    }
}
