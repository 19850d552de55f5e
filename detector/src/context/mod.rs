//! What is known around an event: processes, their lineage, cgroups. Pure state, fed by records.

pub mod cgroup;
pub mod process;

use crate::{
    alert::{Ancestor, Container, Origin, Process},
    context::{cgroup::Cgroups, process::Processes},
    decode::Event,
    record::{Body, BootNs, ProcessKey, Start},
};

/// Everything that detection may look up.
#[derive(Debug, Default)]
pub struct Context {
    pub start: Start,
    pub processes: Processes,
    pub cgroups: Cgroups,
}

impl Context {
    /// Learns from a record, before detection sees it. `event` is the decoded form of a kernel record.
    pub fn learn(&mut self, time: BootNs, body: &Body, event: Option<&Event>) {
        match body {
            Body::Start(start) => self.start = start.clone(),
            Body::Process(seed) => self.processes.seed(seed),
            Body::Cgroup { id, path } => self.cgroups.insert(*id, path),
            _ => {}
        }
        let Some(event) = event else { return };
        if let Event::Cgroup { event, path } = event {
            self.cgroups.insert(event.id, path);
        }
        self.processes.learn(time, event);
    }

    /// RFC 3339 in UTC with nanoseconds.
    #[must_use]
    pub fn wall(&self, time: BootNs) -> String {
        let ns = i128::from(self.start.boot_time_ns) + i128::from(time.0);
        jiff::Timestamp::from_nanosecond(ns).map_or_else(|_| ns.to_string(), |time| format!("{time:.9}"))
    }

    /// The process as an alert shows it; `None` when the table does not know it.
    #[must_use]
    pub fn describe(&self, key: ProcessKey) -> Option<Process> {
        let process = self.processes.get(key)?;
        Some(Process {
            pid: key.pid,
            start_time: Some(self.wall(BootNs(key.start.saturating_mul(ProcessKey::TICK_NS)))),
            exe: process.exe.to_string(),
            argv: process.argv.iter().map(ToString::to_string).collect(),
            argv_truncated: process.argv_truncated,
            uid: process.uid,
            login_uid: process.login_uid,
            tty: process.tty.as_deref().map(str::to_owned),
            cgroup: self.cgroups.path(process.cgroup).map(str::to_owned),
            ancestors: self
                .processes
                .lineage(key)
                .map(|(key, ancestor)| Ancestor { pid: key.pid, exe: ancestor.exe.to_string() })
                .collect(),
        })
    }

    /// Where a process lives, and in which container. The pod behind a container is not known from its cgroup alone.
    #[must_use]
    pub fn origin(&self, key: ProcessKey) -> (Origin, Option<Container>) {
        let Some(process) = self.processes.get(key) else { return (Origin::Unknown, None) };
        if let Some(id) = self.cgroups.path(process.cgroup).and_then(cgroup::container_id) {
            return (Origin::Container, Some(Container { id: id.to_owned(), name: None, image: None }));
        }
        let host =
            process.mnt_ns != 0 && process.mnt_ns == self.start.host_mnt_ns && process.pid_ns == self.start.host_pid_ns;
        (if host { Origin::Host } else { Origin::Unknown }, None)
    }
}
