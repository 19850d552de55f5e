//! What is known around an event: processes, their lineage, cgroups. Pure state, fed by records.

pub mod acting;
pub mod cgroup;
pub mod clients;
pub mod container;
pub mod image;
pub mod process;
pub mod program;
pub mod requests;
pub mod sense;
pub mod standing;
pub mod static_pods;

use std::cell::RefCell;

use rustc_hash::FxHashMap;

use crate::{
    alert::{Ancestor, Origin, Process},
    context::{
        acting::Acting,
        cgroup::Cgroups,
        clients::Clients,
        container::{Container, Containers, FirstExecs, Namespaces},
        image::Images,
        process::Processes,
        static_pods::StaticPods,
    },
    decode::Event,
    record::{Body, BootNs, ContainerInfo, ProcessKey, Record, Start},
};

/// Most cgroups whose container is kept at hand.
const HOMES_MAX: usize = 4096;

/// Everything that detection may look up.
#[derive(Debug, Default)]
pub struct Context {
    pub start: Start,
    pub processes: Processes,
    pub cgroups: Cgroups,
    pub containers: Containers,
    pub first_execs: FirstExecs,
    /// When the last process that was there before was told of.
    seeded: BootNs,
    pub images: Images,
    pub static_pods: StaticPods,
    /// The containers that cgroups are of, as asked for since something was learned of either: nearly every event asks.
    homes: RefCell<FxHashMap<u64, Option<String>>>,
    pub acting: Acting,
    /// The container whose first program runs with the record that was learned last.
    begins: Option<String>,
    pub sense: sense::Sense,
    pub clients: Clients,
    pub requests: requests::Requests,
}

impl Context {
    /// Learns from a record, before detection sees it. `event` is the decoded form of a kernel record.
    pub fn learn(&mut self, time: BootNs, body: &Body, event: Option<&Event>) {
        self.begins = None;
        let of_cgroups = matches!(event, Some(Event::Cgroup { .. } | Event::CgroupGone(_)));
        if of_cgroups || matches!(body, Body::Cgroup { .. } | Body::Container(_) | Body::Tick) {
            self.homes.get_mut().clear();
        }
        match body {
            Body::Start(start) => {
                self.images.policy(&start.policy);
                self.start = Start::clone(start);
                self.containers.of_host(Namespaces::of_host(start));
            }
            Body::Config(rules) => {
                self.images.policy(&rules.policy);
                self.start.policy = rules.policy.clone();
            }
            Body::Process(seed) => {
                self.processes.seed(seed);
                let key = seed.key();
                let has = Namespaces { mnt: seed.mnt_ns, pid: seed.pid_ns, shared: seed.shared };
                if seed.again {
                    // The first program of its container was executed unseen, if it is that.
                    self.executes(seed.cgroup_id, key, seed.inner_pid, &has, time);
                } else {
                    self.seeded = time;
                    self.runs(seed.cgroup_id, key, seed.inner_pid, &has);
                }
            }
            Body::Alive { processes } => {
                for ended in self.processes.alive(processes, time) {
                    self.containers.exited(ended);
                }
            }
            Body::Cgroup { id, path } => self.cgroups.insert(*id, path),
            Body::Container(info) => self.container(info),
            Body::Image(image) => self.images.arrived(image),
            Body::ImageNames(names) => self.images.named(names),
            Body::PauseConfig(config) => self.images.configured(config),
            Body::Manifest(change) => self.static_pods.learn(change),
            Body::Executed(file) => self.acting.learn(file),
            Body::Tick => {
                self.containers.forget(time);
                self.acting.forget(|process| self.processes.get(process).is_some());
                self.clients.forget(|process| self.processes.get(process).is_some());
            }
            Body::Secret(secret) => self.sense.secret(secret),
            Body::Components(components) => self.components(components),
            _ => {}
        }
        self.requested(time, body, event);
        let Some(event) = event else { return };
        match event {
            Event::Cgroup { event, path } => self.cgroups.insert(event.id, path),
            Event::CgroupGone(gone) => self.containers.cgroup_gone(gone.id, time),
            Event::Exit(exit) => self.containers.exited(ProcessKey::from_ns(exit.header.tgid, exit.header.start_ns)),
            Event::Exec(exec) => {
                let header = &exec.event.header;
                let has = Namespaces { mnt: header.mnt_ns, pid: header.pid_ns, shared: exec.event.shared.into() };
                let key = ProcessKey::from_ns(header.tgid, header.start_ns);
                self.acting.executes(key, time);
                self.executes(header.cgroup, key, exec.event.inner_pid, &has, time);
            }
            _ => {}
        }
        self.processes.learn(time, event);
    }

    fn container(&mut self, info: &ContainerInfo) {
        let path = info.cgroup_id.and_then(|cgroup| self.cgroups.path(cgroup));
        self.containers.insert(info, path);
    }

    /// A program was executed in this cgroup: with the first one its container begins.
    fn executes(&mut self, cgroup: u64, process: ProcessKey, inner_pid: u32, has: &Namespaces, time: BootNs) {
        if let Some((id, count)) = self.runs(cgroup, process, inner_pid, has) {
            *count += 1;
            self.containers.began(&id, time);
            self.begins = Some(id);
        }
    }

    /// A program runs in this cgroup. Returns its container, and how well that is known, when it is the first there.
    fn runs(
        &mut self,
        cgroup: u64,
        process: ProcessKey,
        inner_pid: u32,
        has: &Namespaces,
    ) -> Option<(String, &mut u64)> {
        let container = self.home(cgroup).filter(|container| container.init.is_none())?;
        let id = container.info.id.clone();
        let host = Namespaces::of_host(&self.start);
        let container = self.containers.runs(&id, process, inner_pid, has, &host)?;
        let count = if container.info.pod.is_some() {
            &mut self.first_execs.with_pod
        } else if container.is_known() {
            &mut self.first_execs.plain
        } else {
            &mut self.first_execs.unknown
        };
        Some((id, count))
    }

    /// The container that begins with the record that was learned last, or that began since the agent looks and of which that
    /// record tells more. Those that were there before never begin.
    #[must_use]
    pub fn begun(&self, record: &Record) -> Option<&Container> {
        let id = match (&self.begins, &record.body) {
            (Some(id), _) => id,
            (None, Body::Container(info)) => &info.id,
            _ => return None,
        };
        self.containers.get(id).filter(|container| container.is_known() && container.began.is_some())
    }

    /// Whether something happened before the node's processes were looked at. Hooks come first, so what the rings hold then is
    /// read after the processes that came of it: a runtime's steps on its way into a container that already runs.
    #[must_use]
    pub fn is_older(&self, time: BootNs) -> bool {
        time < self.seeded
    }

    /// The container that a cgroup is of, or lies inside of.
    #[must_use]
    pub fn home(&self, cgroup: u64) -> Option<&Container> {
        if let Some(known) = self.homes.borrow().get(&cgroup) {
            return self.containers.get(known.as_deref()?);
        }
        let found = self.containers.of_cgroup(cgroup, &self.cgroups);
        let mut homes = self.homes.borrow_mut();
        if homes.len() >= HOMES_MAX {
            homes.clear();
        }
        homes.insert(cgroup, found.map(|container| container.info.id.clone()));
        found
    }

    /// The container that a process is in by its cgroup.
    #[must_use]
    pub fn container_of(&self, key: ProcessKey) -> Option<&Container> {
        self.home(self.processes.get(key)?.cgroup)
    }

    /// RFC 3339 in UTC with nanoseconds.
    #[must_use]
    pub fn wall(&self, time: BootNs) -> String {
        let ns = time.wall(self.start.boot_time_ns);
        jiff::Timestamp::from_nanosecond(ns).map_or_else(|_| ns.to_string(), |time| format!("{time:.9}"))
    }

    /// The process as an alert shows it, but for its executable's digest, which depends on when it acted; `None` when the table does not
    /// know it.
    #[must_use]
    pub fn describe(&self, key: ProcessKey) -> Option<Process> {
        let process = self.processes.get(key)?;
        Some(Process {
            pid: key.pid,
            start_time: Some(self.wall(BootNs(key.start.saturating_mul(ProcessKey::TICK_NS)))),
            exe: process.program.exe.clone(),
            sha256: None,
            argv: process.program.argv.to_vec(),
            argv_truncated: process.program.argv_truncated,
            uid: process.uid,
            login_uid: process.login_uid,
            tty: process.program.tty.as_deref().map(str::to_owned),
            cgroup: self.cgroups.path(process.cgroup).map(str::to_owned),
            ancestors: self
                .processes
                .lineage(key)
                .map(|(key, ancestor)| Ancestor { pid: key.pid, exe: ancestor.program.exe.clone() })
                .collect(),
        })
    }

    /// Where a process lives, and in which container.
    ///
    /// A cgroup that is called like a container, of which nothing is known, makes no container of a process that lives in the
    /// host's namespaces: anybody who may make cgroups can call one so.
    #[must_use]
    pub fn origin(&self, key: ProcessKey) -> (Origin, Option<&Container>) {
        let Some(process) = self.processes.get(key) else { return (Origin::Unknown, None) };
        let host =
            process.mnt_ns != 0 && process.mnt_ns == self.start.host_mnt_ns && process.pid_ns == self.start.host_pid_ns;
        match self.home(process.cgroup) {
            Some(container) if container.is_known() || !host => return (Origin::Container, Some(container)),
            _ if host => return (Origin::Host, None),
            _ => {}
        }
        // A host without the v2 hierarchy, or a process that entered: its namespaces say whose it is.
        let has = Namespaces { mnt: process.mnt_ns, pid: process.pid_ns, ..Namespaces::default() };
        match self.containers.of_namespaces(&has, None) {
            Some((container, _)) => (Origin::Container, Some(container)),
            None => (Origin::Unknown, None),
        }
    }
}
