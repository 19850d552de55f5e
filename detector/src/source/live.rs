//! The live source: kernel, `/proc` and the manifest view as one ordered stream.

mod attached;
mod logs;
mod look;

use std::{
    collections::BTreeSet,
    os::fd::RawFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use detector_common::{hook, kind, syscall, watch};

use crate::{
    context::image::{PAUSE, is_sha256},
    decode::{self, Event},
    record::{Body, BootNs, ContainerInfo, ContainerRole, InodeKey, Own, OwnRole, ProcessKey, Record, Rules, Start},
    source::{
        acting::{self, Acting},
        audit::{self, AuditLogs, find::runs_apiserver},
        bundle::Bundles,
        images::{self, Images},
        kernel::{self, Detached, Kernel, KernelError, Raw, Ring},
        kubelet::Discovery,
        logs::Logs,
        manifest::{Batch, Trigger, TriggerKind, View},
        own, proc,
        runtimes::Runtimes,
        sense::Sense,
        trust::{Trust, TrustError, Trusted},
    },
};

use look::Look;

/// How often the context ring is emptied when nothing wakes the agent, in ns.
const DRAIN_NS: u64 = 250_000_000;
/// The same for a while after a process entered other namespaces: what it executes next may be an alert.
const EAGER_DRAIN_NS: u64 = 5_000_000;
/// How long that while is, in ns.
const EAGER_NS: u64 = 1_000_000_000;
/// How often time is said to pass and losses are counted, in ns.
const TICK_NS: u64 = 1_000_000_000;

/// What the live source is told.
#[derive(Clone, Debug)]
pub struct Options {
    pub kernel: kernel::Options,
    pub discovery: Discovery,
    pub node: Option<String>,
    /// Refuse changes of what is watched, except by these programs.
    pub deny: Option<Vec<Trust>>,
    /// What alerts are judged by; told in the stream.
    pub rules: Rules,
    /// Sockets of container runtimes; empty to look for them, `None` to ask nobody.
    pub cri: Option<Vec<PathBuf>>,
    /// The agent's own files.
    pub own: Vec<(OwnRole, PathBuf)>,
    pub audit: audit::Options,
    /// Directories of pods' logs beside the usual one.
    pub pod_logs: Vec<PathBuf>,
}

/// Look-ups of containers for new cgroups, and the time that they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Identity {
    /// Cgroups that turned out to be containers'.
    pub containers: u64,
    pub mean_us: f64,
    pub max_us: f64,
    #[serde(skip)]
    total: Duration,
}

impl Identity {
    /// The time that all of them took together.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.total.as_secs_f64()
    }

    fn took(&mut self, time: Duration) {
        self.containers += 1;
        self.total += time;
        self.mean_us = self.total.as_secs_f64() * 1e6 / self.containers as f64;
        self.max_us = self.max_us.max(time.as_secs_f64() * 1e6);
    }
}

/// Why the live source cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error(
        "this is not the host's pid namespace, so that no process is the one that the kernel speaks of: run in the host's (hostPID: true in a \
         pod, --pid=host with docker and podman; with kind, on the machine itself, which sees its nodes)"
    )]
    PidNamespace,
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("listing processes: {0}. Is /proc mounted?")]
    Proc(#[from] procfs::ProcError),
    #[error("looking at what processes execute: {0}")]
    Acting(std::io::Error),
    #[error("asking container runtimes: {0}")]
    Cri(std::io::Error),
    #[error("following audit logs: {0}")]
    Audit(std::io::Error),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Yields the stream of this host.
pub struct Live {
    kernel: Kernel,
    view: View,
    bundles: Bundles,
    identity: Identity,
    images: Images,
    acting: Acting,
    sense: Sense,
    logs: Logs,
    runtimes: Option<Runtimes>,
    own: Own,
    /// `None` where there is nothing to follow.
    audit: Option<AuditLogs>,
    /// Processes are looked at again, because events were lost.
    look: Look,
    /// Cgroups of the sandboxes that run.
    sandboxes: BTreeSet<u64>,
    /// Mount namespace of the host.
    host_mnt: u32,
    seq: u64,
    raws: Vec<Raw>,
    warnings: Vec<String>,
    /// The user knows that writes through old descriptors are not attributed.
    told_of_writers: bool,
    /// Under `--deny`: nobody else may write to these executables.
    trusted: Option<Trusted>,
    /// Hooks that are not attached any more, and when that was looked at.
    detached: Vec<Detached>,
    hooks_looked: BootNs,
    next_drain: BootNs,
    eager_until: BootNs,
    next_tick: BootNs,
}

impl Live {
    /// Attaches the hooks, reads what is there, and yields the opening records.
    ///
    /// Hooks come first: a process that is made while `/proc` is read is then seen at least once.
    ///
    /// # Errors
    /// When the kernel source cannot start at all, or `/proc` cannot be read.
    pub fn start(options: &Options, out: &mut Vec<Record>) -> Result<Self, LiveError> {
        if !proc::in_initial_pid_namespace() {
            return Err(LiveError::PidNamespace);
        }
        let mut kernel = Kernel::attach(&options.kernel)?;
        let trusted = options.deny.as_deref().map(Trusted::new).transpose()?;
        if let Some(trusted) = &trusted {
            kernel.deny(&trusted.inodes().collect())?;
        }
        let now = proc::now();
        let mut live = Self {
            view: View::new(options.discovery.clone()),
            bundles: Bundles::default(),
            identity: Identity::default(),
            images: Images::new(images::Where::default()),
            acting: Acting::start().map_err(LiveError::Acting)?,
            sense: Sense::new(
                &options.discovery.proc,
                options.discovery.defaults || options.discovery.explicit.is_empty(),
            ),
            logs: Logs::new(&options.discovery.proc, options.discovery.defaults, &options.pod_logs),
            runtimes: None,
            own: own::find(&options.own),
            audit: None,
            look: Look::default(),
            sandboxes: BTreeSet::new(),
            host_mnt: 0,
            seq: 0,
            raws: Vec::new(),
            warnings: Vec::new(),
            told_of_writers: false,
            trusted,
            detached: Vec::new(),
            hooks_looked: now,
            next_drain: BootNs(now.0 + DRAIN_NS),
            eager_until: now,
            next_tick: BootNs(now.0 + TICK_NS),
            kernel,
        };
        let policy = options.rules.policy.clone();
        let own = Some(Box::new(live.own.clone()));
        let start = Start { policy, own, ..proc::start(live.kernel.hooks(), options.node.clone()) };
        live.host_mnt = start.host_mnt_ns;
        live.kernel.host(live.host_mnt)?;
        live.push(out, now, Body::Start(Box::new(start)));
        live.push(out, now, Body::Config(Box::new(options.rules.clone())));
        let shipped = PAUSE.iter().map(|known| known.digest.clone());
        let pauses: Vec<_> = shipped.chain(options.rules.policy.pause_digests.iter().cloned()).collect();
        for body in live.images.start(&pauses, now) {
            live.push(out, now, body);
        }
        // Containers before processes: which of them is a container's first is told by the order of their starts.
        live.bundles.learn_from_shims();
        let proc::Seeds { cgroups, processes } = proc::seed()?;
        live.cgroups(cgroups, out)?;
        // Which asks for everything that is there.
        if let Some(sockets) = &options.cri {
            live.runtimes = Some(Runtimes::start(sockets, &options.discovery.proc).map_err(LiveError::Cri)?);
        }
        if options.audit.find || !options.audit.logs.is_empty() {
            live.audit = Some(AuditLogs::start(&options.audit).map_err(LiveError::Audit)?);
        }
        live.processes(processes, out);
        let batch = live.view.start(proc::now());
        live.apply(batch, out)?;
        live.sense(proc::now(), out)?;
        // What changed between the first look and the kernel's knowing what to watch.
        live.view.trigger(Trigger { inode: None, kind: TriggerKind::Atomic }, proc::now());
        live.step(out)?;
        Ok(live)
    }

    /// The hooks, attached or not.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Does what is done to the kernel's maps and programs later on, without effect. Whether it could be done.
    pub fn rehearse(&mut self) -> bool {
        self.kernel.rehearse().is_ok()
    }

    /// The rings, and the most that was found in each at once since the last call.
    pub fn rings(&mut self) -> [Ring; 2] {
        self.kernel.rings()
    }

    /// Readable when container runtimes have answered.
    #[must_use]
    pub fn runtimes_fd(&self) -> Option<RawFd> {
        self.runtimes.as_ref().map(Runtimes::fd)
    }

    /// What looking containers up has cost.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How long nothing needs to be done unless a descriptor of the kernel source becomes readable.
    #[must_use]
    pub fn idle(&self) -> Duration {
        if self.audit.as_ref().is_some_and(AuditLogs::has_more) {
            return Duration::ZERO;
        }
        let runtimes = self.runtimes.as_ref().map_or(BootNs(u64::MAX), Runtimes::deadline);
        let next =
            self.view.deadline().min(self.images.deadline()).min(runtimes).min(self.next_drain).min(self.next_tick);
        let next = next.min(self.sense.deadline()).min(self.logs.deadline());
        Duration::from_nanos(next.0.saturating_sub(proc::now().0))
    }

    /// What the user should know about the source itself, since the last call.
    pub fn warnings(&mut self) -> impl Iterator<Item = String> + '_ {
        self.warnings.drain(..)
    }

    /// Does what is due, and yields what happened, in order.
    ///
    /// # Errors
    /// When the kernel's maps refuse.
    pub fn step(&mut self, out: &mut Vec<Record>) -> Result<(), LiveError> {
        self.drain(out)?;
        let now = proc::now();
        let mut batch = self.view.poll(now);
        let images = self.images.poll(now);
        if let Some(runtimes) = &mut self.runtimes {
            if images.bodies.iter().any(|body| matches!(body, Body::Image(_))) {
                runtimes.image_arrived(now);
            }
            batch.bodies.extend(runtimes.poll(now, &mut self.warnings));
        }
        batch.bodies.extend(images.bodies);
        if let Some(audit) = &mut self.audit {
            batch.bodies.extend(audit.poll(&mut self.warnings));
        }
        for body in &batch.bodies {
            if let Body::AuditLog(log) = body {
                self.logs.audit_log(&log.path, now);
            }
        }
        self.look_at_logs(now, &mut batch);
        batch.watch_changed |= images.watch_changed;
        if now >= self.next_tick
            && let Some(trusted) = &mut self.trusted
            && trusted.look(&mut self.warnings)
        {
            self.kernel.deny(&trusted.inodes().collect())?;
            batch.watch_changed = true;
        }
        self.apply(batch, out)?;
        self.sense(now, out)?;
        if now >= self.next_tick {
            self.next_tick = BootNs(now.0 + TICK_NS);
            let losses = self.kernel.lost()?;
            let unseen = losses.iter().any(|loss| loss.hook == decode::hook_name(hook::SOCKET_STATE));
            for loss in losses {
                self.look.lost(&loss, now);
                self.push(out, now, Body::Loss(Box::new(loss)));
            }
            self.attached(out)?;
            if unseen {
                self.clients(out);
            }
            self.look_again(now, out)?;
            self.push(out, now, Body::Tick);
        }
        Ok(())
    }

    /// Everything that was yielded until now was told.
    pub fn told(&mut self) {
        if let Some(audit) = &mut self.audit {
            audit.told();
        }
    }

    /// What was read of audit logs; `None` where none is followed.
    #[must_use]
    pub fn audit(&self) -> Option<audit::Counts> {
        self.audit.as_ref().map(AuditLogs::counts)
    }

    /// Alerts are judged by other rules from now on. What belongs to the pause images that the user knows is told again.
    pub fn configure(&mut self, rules: Rules, out: &mut Vec<Record>) {
        let now = proc::now();
        let known = rules.policy.pause_digests.clone();
        self.push(out, now, Body::Config(Box::new(rules)));
        for body in self.images.present(&known) {
            self.push(out, now, body);
        }
    }

    /// What is left to say at the end: losses and detached hooks since the last look.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn last(&mut self, out: &mut Vec<Record>) -> Result<(), LiveError> {
        let now = proc::now();
        for loss in self.kernel.lost()? {
            self.push(out, now, Body::Loss(Box::new(loss)));
        }
        self.attached(out)?;
        self.push(out, now, Body::Tick);
        Ok(())
    }

    /// Empties the rings, and lets the view know what may have changed.
    fn drain(&mut self, out: &mut Vec<Record>) -> Result<(), LiveError> {
        let mut raws = std::mem::take(&mut self.raws);
        self.kernel.drain(&mut raws);
        let acts = acting::acts(&raws);
        if !acts.is_empty() || !self.acting.is_idle() {
            self.acting.doubt(&raws);
            let files = self.acting.look(acts);
            // With what happened while they were looked at.
            self.kernel.drain(&mut raws);
            self.acting.doubt(&raws);
            for file in self.acting.settle(files, &raws) {
                self.push(out, proc::now(), Body::Executed(Box::new(file)));
            }
        }
        let now = proc::now();
        for raw in raws.drain(..) {
            let time = BootNs(raw.time_ns);
            let (container, executed) = self.notice(&raw, now)?;
            self.push(out, time, Body::Kernel { raw: raw.bytes });
            if let Some(container) = container {
                self.container(container, time, out)?;
            }
            if let Some(process) = executed {
                self.executed(process, out);
            }
        }
        // A burst must not leave its high-water mark behind for good.
        raws.shrink_to(1024);
        self.raws = raws;
        self.next_drain = BootNs(now.0 + if now < self.eager_until { EAGER_DRAIN_NS } else { DRAIN_NS });
        Ok(())
    }

    /// Passes on what the view found. The acts behind it are in the rings by now: they go first.
    fn apply(&mut self, mut batch: Batch, out: &mut Vec<Record>) -> Result<(), LiveError> {
        self.warnings.append(&mut batch.warnings);
        if batch.watch_changed {
            let mut set = self.view.watch_set().clone();
            for device in proc::devices_under(set.keys()) {
                set.insert(InodeKey { dev: device, ino: 0 }, watch::BLOCK);
            }
            let protected = self.trusted.iter().flat_map(Trusted::inodes).map(|inode| (inode, watch::FILE));
            let logs = self.logs.watch_set().iter().map(|(inode, flags)| (*inode, *flags));
            let stores = self.images.watch_set().iter().map(|(inode, flags)| (*inode, *flags));
            for (inode, flags) in protected.chain(stores).chain(own::watch_set(&self.own)).chain(logs) {
                *set.entry(inode).or_insert(0) |= flags;
            }
            self.kernel.watch(&set, self.view.depth())?;
            if !self.kernel.is_precise() {
                let tracked = self.kernel.track_writes(proc::has_writer(self.view.watch_set()));
                if let Err(error) = tracked
                    && !std::mem::replace(&mut self.told_of_writers, true)
                {
                    self.warnings.push(format!(
                        "a descriptor older than the watch is open for writing, and who writes through it is not seen: {error}"
                    ));
                }
            }
        }
        for body in &batch.bodies {
            if let Body::Watched(watched) = body {
                let kubelets = watched.dirs.iter().filter_map(|dir| dir.kubelet_pid);
                self.kernel.protect(&kubelets.chain([std::process::id()]).collect())?;
            }
        }
        if !batch.bodies.is_empty() {
            self.drain(out)?;
            let now = proc::now();
            for body in batch.bodies {
                self.push(out, now, body);
            }
        }
        Ok(())
    }

    /// Looks for secrets and the control plane where that is due, tells what is new, and has the kernel report what concerns them.
    fn sense(&mut self, now: BootNs, out: &mut Vec<Record>) -> Result<(), LiveError> {
        let batch = self.sense.poll(now);
        if batch.asked_changed {
            self.kernel.runtimes(self.sense.asked())?;
        }
        if batch.bodies.is_empty() {
            return Ok(());
        }
        // What was read before is judged by what was known then.
        self.drain(out)?;
        for body in batch.bodies {
            self.push(out, proc::now(), body);
        }
        if batch.secrets_changed {
            self.kernel.secrets(&self.sense.secrets())?;
        }
        if batch.endpoints_changed {
            let (endpoints, servers) = self.sense.endpoints();
            self.kernel.endpoints(&endpoints, &servers)?;
            self.clients(out);
        }
        Ok(())
    }

    /// Tells who is connected to API servers of which the kernel did not tell. Those that connect meanwhile are told of twice.
    fn clients(&mut self, out: &mut Vec<Record>) {
        if let Some(clients) = self.sense.clients() {
            self.push(out, proc::now(), Body::Clients(Box::new(clients)));
        }
    }

    /// A container is known: where it is a sandbox, the kernel tells what its tasks do.
    fn container(&mut self, info: ContainerInfo, time: BootNs, out: &mut Vec<Record>) -> Result<(), LiveError> {
        if let (ContainerRole::Sandbox, Some(cgroup)) = (info.role, info.cgroup_id)
            && self.sandboxes.insert(cgroup)
        {
            self.kernel.sandboxes(&self.sandboxes)?;
        }
        if let Some(runtimes) = &mut self.runtimes {
            runtimes.appeared(&info);
        }
        self.sense.container(time);
        if let Some(api) = self.bundles.api() {
            self.sense.api(api, time);
        }
        self.push(out, time, Body::Container(Box::new(info)));
        Ok(())
    }

    /// A process in a sandbox has begun to execute something.
    fn executed(&mut self, process: ProcessKey, out: &mut Vec<Record>) {
        let file = self.images.executed(process);
        self.push(out, proc::now(), Body::Executed(Box::new(file)));
    }

    /// Triggers the views where a kernel record may mean a change of what they look at. Yields what is known of a container
    /// whose cgroup was just made, and a process in a sandbox that began to execute something.
    fn notice(&mut self, raw: &Raw, now: BootNs) -> Result<(Option<ContainerInfo>, Option<ProcessKey>), LiveError> {
        let nothing = Ok((None, None));
        let Ok(header) = decode::header(&raw.bytes) else { return nothing };
        if matches!(header.kind, kind::FORK | kind::EXIT) {
            return nothing;
        }
        let Ok(event) = decode::event(&raw.bytes) else { return nothing };
        self.acted_on_logs(&event, now);
        match &event {
            Event::Cgroup { event, path } => {
                self.look.cgroups.insert(event.id);
                let started = Instant::now();
                let container = self.bundles.container(event.id, path, Some(event.header.tgid));
                if container.is_some() {
                    self.identity.took(started.elapsed());
                }
                return Ok((container, None));
            }
            Event::CgroupGone(gone) => {
                self.look.cgroups.remove(&gone.id);
                if self.sandboxes.remove(&gone.id) {
                    self.kernel.sandboxes(&self.sandboxes)?;
                }
            }
            Event::Exec(exec) => {
                self.bundles.learn(exec.argv.iter());
                let name = exec.path.rsplit('/').next().unwrap_or_default();
                self.sense.executed(name, now);
                if runs_kubelet(name) {
                    self.view.rediscover();
                }
                if let Some(audit) = self.audit.as_ref().filter(|_| runs_apiserver(name)) {
                    audit.find();
                }
                if runs_kubelet(name) || matches!(name, "containerd" | "crio" | "cri-dockerd") {
                    self.images.rediscover();
                    if let Some(runtimes) = &mut self.runtimes {
                        runtimes.look_again(now);
                    }
                }
                let inside = self.sandboxes.contains(&header.cgroup) && header.mnt_ns != self.host_mnt;
                return Ok((None, inside.then(|| ProcessKey::from_ns(header.tgid, header.start_ns))));
            }
            Event::Namespaces(_) => self.eager_until = BootNs(now.0 + EAGER_NS),
            _ if self.stored(&event, now) => {}
            _ => self.trigger(&event, now),
        }
        nothing
    }

    /// Whether an event is about image stores and configurations of runtimes, or sandboxes, alone.
    fn stored(&mut self, event: &Event, now: BootNs) -> bool {
        let (dir, name, watch) = match event {
            Event::Open(open) | Event::Write(open) | Event::Map(open) => {
                (InodeKey { dev: open.event.dev, ino: open.event.parent_ino }, &open.path, open.event.watch)
            }
            Event::Entry(entry) => (InodeKey { dev: entry.dev, ino: entry.to_dir_ino }, &entry.names[1], entry.watch),
            Event::Path(call) => {
                (InodeKey { dev: call.event.dev, ino: call.event.ino }, &call.paths[1], call.event.watch)
            }
            _ => return false,
        };
        let name = name.rsplit('/').next().unwrap_or_default();
        // Without the change hooks a path call says what it was told, and not what it touched.
        let hint = matches!(event, Event::Path(_)) && watch == 0 && (is_sha256(name) || name == "images.json");
        if watch & watch::STORE != 0 || hint {
            // A rename touches two directories, of which one is named.
            let certain = matches!(event, Event::Entry(_));
            self.images.acted(certain.then_some(dir), name, now);
        }
        watch != 0 && watch & !(watch::STORE | watch::SANDBOX | watch::OWN) == 0
    }

    fn trigger(&mut self, event: &Event, now: BootNs) {
        let inode = |dev, ino| (ino != 0).then_some(crate::record::InodeKey { dev, ino });
        let trigger = match event {
            Event::Entry(entry) => {
                if entry.to_dir_ino != 0 && entry.to_dir_ino != entry.dir_ino {
                    self.view.trigger(
                        Trigger { inode: inode(entry.dev, entry.to_dir_ino), kind: TriggerKind::Pending },
                        now,
                    );
                }
                let at = if entry.dir_ino != 0 { entry.dir_ino } else { entry.ino };
                if entry.header.hook == hook::INODE_SETATTR {
                    self.view.trigger(Trigger { inode: inode(entry.dev, entry.ino), kind: TriggerKind::Writing }, now);
                }
                Trigger { inode: inode(entry.dev, at), kind: TriggerKind::Pending }
            }
            Event::Open(open) | Event::Write(open) | Event::Map(open) => {
                Trigger { inode: inode(open.event.dev, open.event.ino), kind: TriggerKind::Writing }
            }
            Event::Change(change) => Trigger { inode: inode(change.dev, change.ino), kind: TriggerKind::Writing },
            Event::Path(call) => Trigger {
                inode: inode(call.event.dev, call.event.ino),
                kind: match u8::try_from(call.event.class) {
                    Ok(syscall::MOUNT | syscall::MOVE_MOUNT) => TriggerKind::Mount,
                    Ok(class) if class < syscall::MOUNT => TriggerKind::Atomic,
                    _ => TriggerKind::Writing,
                },
            },
            Event::IoUring(_) => {
                self.view.trigger(Trigger { inode: None, kind: TriggerKind::Writing }, now);
                Trigger { inode: None, kind: TriggerKind::Pending }
            }
            _ => return,
        };
        self.view.trigger(trigger, now);
    }

    fn push(&mut self, out: &mut Vec<Record>, time: BootNs, body: Body) {
        self.seq += 1;
        out.push(Record { seq: self.seq, time, body });
    }
}

/// Whether a program of this name may be, or contain, a kubelet.
fn runs_kubelet(name: &str) -> bool {
    matches!(name, "kubelet" | "hyperkube" | "k3s" | "rke2" | "k0s" | "kubelite")
}
