//! Who holds connections to API servers, from which address: what a request in an audit log, which names an address, is joined with.
//!
//! The kernel tells of connections as they are made, and nobody of their ends: one may be open as long as its process is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use detector_common::{connection, endpoint, hook};

use super::Context;
use crate::{
    decode::{Event, hook_name},
    record::{self, AuditEvent, Body, BootNs, ComponentKind, EndpointRole, ProcessKey, Record, sense},
};

/// Most connections remembered, by process and address.
const MAX: usize = 4096;
/// Most addresses that are remembered to arrive as they are.
const ARRIVED_MAX: usize = 4096;
/// How long after the API server received it a request may be read from its log, in ns. What is read later is not joined: whoever made it
/// may be forgotten.
const LATE_NS: u64 = 5_000_000_000;
/// How exactly the clock of an audit log and that of the kernel's records can be compared, in ns.
const CLOCK_NS: u64 = 20_000_000;

/// The connections of a process from one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    pub process: ProcessKey,
    /// Unspecified where the kernel did not say.
    pub local: IpAddr,
    pub remote: (IpAddr, u16),
    net_ns: u32,
    /// The container that it lived in.
    pub container: Option<String>,
    /// When it first connected; 0 when it had before that was told.
    first: BootNs,
    /// The record of the last connection, and its hook where a hook saw it.
    pub sequence: u64,
    pub hook: Option<u16>,
}

/// All that are known.
#[derive(Debug, Default)]
pub struct Clients {
    known: BTreeMap<(ProcessKey, IpAddr), Connected>,
    /// Addresses by which this node's API server knew clients.
    arrived: BTreeSet<IpAddr>,
    /// Since when it is known who was connected before; `None` where that was never looked at.
    since: Option<BootNs>,
    /// None was lost since.
    complete: bool,
}

/// Who may have made a request.
#[derive(Debug)]
pub struct Candidates<'a> {
    pub all: Vec<&'a Connected>,
    /// It was one of these and nobody else.
    pub complete: bool,
}

impl Clients {
    /// Forgets processes that are forgotten.
    pub(super) fn forget(&mut self, is_known: impl Fn(ProcessKey) -> bool) {
        self.known.retain(|(process, _), _| is_known(*process));
    }

    fn insert(&mut self, new: Connected) {
        let key = (new.process, new.local);
        let first = self.known.get(&key).map_or(new.first, |known| known.first.min(new.first));
        if self.known.len() >= MAX && !self.known.contains_key(&key) {
            self.complete = false;
            return;
        }
        self.known.insert(key, Connected { first, ..new });
    }

    /// As a look at the node would find them.
    #[must_use]
    pub fn standing(&self) -> Option<record::Clients> {
        self.since?;
        let clients = self.known.values().map(|known| record::Client {
            process: known.process,
            local: known.local,
            remote: known.remote.0,
            remote_port: known.remote.1,
            net_ns: known.net_ns,
        });
        Some(record::Clients { clients: clients.collect(), cut: !self.complete })
    }
}

impl Context {
    /// Learns who connects to API servers from a record that the rest of the context has learned from.
    pub fn connected(&mut self, record: &Record, event: Option<&Event>) {
        match (&record.body, event) {
            (Body::Clients(found), _) => self.found(found, record),
            (Body::Loss(loss), _) if loss.hook == hook_name(hook::SOCKET_STATE) => self.clients.complete = false,
            (Body::Audit(event), _) => self.arrived(event.sources.last().copied()),
            (_, Some(Event::Connection(made)))
                if made.act == connection::ACCEPT && made.endpoint & endpoint::SERVER != 0 =>
            {
                self.arrived(Some(sense::ip(&made.remote)));
            }
            (_, Some(Event::Connection(made))) if made.endpoint & endpoint::API != 0 => {
                let process = ProcessKey::from_ns(made.header.tgid, made.header.start_ns);
                let container = self.home(made.header.cgroup).map(|home| home.info.id.clone());
                self.clients.insert(Connected {
                    process,
                    local: sense::ip(&made.local),
                    remote: (sense::ip(&made.remote), made.remote_port),
                    net_ns: made.net_ns,
                    container,
                    first: record.time,
                    sequence: record.seq,
                    hook: Some(made.header.hook),
                });
            }
            _ => {}
        }
    }

    fn found(&mut self, found: &record::Clients, record: &Record) {
        let mut hooks = self.start.hooks.iter().filter(|hook| hook.name == hook_name(hook::SOCKET_STATE));
        if hooks.any(|hook| hook.backend.is_none()) {
            return;
        }
        self.clients.complete = !found.cut;
        self.clients.since = Some(record.time);
        for client in &found.clients {
            if self.clients.known.contains_key(&(client.process, client.local)) {
                continue;
            }
            let container = self.container_of(client.process).map(|home| home.info.id.clone());
            self.clients.insert(Connected {
                process: client.process,
                local: client.local,
                remote: (client.remote, client.remote_port),
                net_ns: client.net_ns,
                container,
                first: BootNs(0),
                sequence: record.seq,
                hook: None,
            });
        }
    }

    fn arrived(&mut self, from: Option<IpAddr>) {
        if let Some(from) = from
            && self.clients.arrived.len() < ARRIVED_MAX
        {
            self.clients.arrived.insert(from);
        }
    }

    /// Who may have made a request that was read from a log at this time: whoever had a connection from its address. `None` where that
    /// cannot be told.
    #[must_use]
    pub fn candidates(&self, event: &AuditEvent, read: BootNs) -> Option<Candidates<'_>> {
        let source = *event.sources.last()?;
        let received: jiff::Timestamp = event.received.parse().ok()?;
        let received = received.as_nanosecond().checked_sub(i128::from(self.start.boot_time_ns))?;
        let received = u64::try_from(received).ok()?;
        let in_time = received <= read.0.saturating_add(CLOCK_NS) && read.0.saturating_sub(received) <= LATE_NS;
        if !in_time || self.clients.since?.0 > received {
            return None;
        }
        let serving = self.sense.components.components.iter().filter(|found| found.kind == ComponentKind::ApiServer);
        let serving: BTreeSet<u32> = serving.map(|found| found.net_ns).collect();
        let is_own = self
            .sense
            .components
            .endpoints
            .iter()
            .any(|found| found.role == EndpointRole::ApiServer && found.address == source);
        let from = |made: &Connected| {
            if made.local == source {
                // Every network namespace has a loopback of its own.
                return !source.is_loopback() || serving.contains(&made.net_ns);
            }
            // The node may give its own address to what its pods send, unless theirs were seen to arrive.
            let masked = is_own && !source.is_loopback() && !serving.contains(&made.net_ns);
            made.local.is_unspecified()
                || masked && !made.local.is_loopback() && !self.clients.arrived.contains(&made.local)
        };
        let there = |made: &Connected| {
            made.first.0 <= received.saturating_add(CLOCK_NS)
                && self
                    .processes
                    .get(made.process)
                    .is_some_and(|process| process.exited.is_none_or(|end| end.0.saturating_add(CLOCK_NS) >= received))
        };
        let all = self.clients.known.values();
        let all = all.filter(|made| from(made) && there(made) && self.may_be(made.process, &event.user)).collect();
        Some(Candidates { all, complete: self.clients.complete })
    }

    /// Whether a process may be known to an API server by this name: parts of the control plane have names of their own.
    fn may_be(&self, process: ProcessKey, user: &str) -> bool {
        let proven = self.sense.components.components.iter().filter(|found| found.process == process);
        let mut kinds = proven.map(|found| found.kind).filter(|kind| self.is_component(process, *kind));
        // One that is several of them at once has several names.
        let (Some(kind), None) = (kinds.next(), kinds.next()) else { return true };
        let begins = |names: &[&str]| names.iter().any(|name| user.starts_with(name));
        match kind {
            // It probes API servers as nobody.
            ComponentKind::Kubelet => {
                user.is_empty() || begins(&["system:node:", "system:bootstrap:", "system:anonymous"])
            }
            ComponentKind::ApiServer => begins(&["system:apiserver"]),
            ComponentKind::ControllerManager => {
                begins(&["system:kube-controller-manager", "system:serviceaccount:kube-system:"])
            }
            ComponentKind::Scheduler => begins(&["system:kube-scheduler"]),
            ComponentKind::Etcd | ComponentKind::Runtime => true,
        }
    }
}
