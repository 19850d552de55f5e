//! What of this node is worth stealing, and where its control plane listens: what the kernel is to report reads of and connections
//! with.
//!
//! Like the manifest view this has no clock and no thread: whoever drives it says what time it is, tells it that something may have
//! changed, and polls it.

mod clients;
mod components;
mod secrets;
mod sockets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use detector_common::{EndpointKey, endpoint, server};

use crate::record::{
    Body, BootNs, Clients, ComponentKind, Components, Endpoint, EndpointRole, InodeKey, Secret, sense,
};
use components::Found;
use secrets::Secrets;

const MS: u64 = 1_000_000;
/// Nanoseconds between looks that nothing asked for.
const SLOW: u64 = 5_000 * MS;
/// Nanoseconds after something came at which is looked: what comes with it is there by then.
const SOON: u64 = 50 * MS;
/// And at least between two looks.
const FLOOR: u64 = 500 * MS;
/// Nanoseconds after a part of the control plane was executed at which it listens, most likely.
const LISTENS: u64 = 1_000 * MS;
/// Most addresses of API servers by containers' environments, which anybody who makes pods can write.
const APIS_MAX: usize = 64;
/// Most addresses of interest that are told.
const ENDPOINTS_MAX: usize = 1024;

/// What a poll found.
#[derive(Debug, Default)]
pub struct Batch {
    pub bodies: Vec<Body>,
    /// [`Sense::secrets`] is another set now.
    pub secrets_changed: bool,
    /// [`Sense::endpoints`] is.
    pub endpoints_changed: bool,
    /// [`Sense::asked`] is.
    pub asked_changed: bool,
}

/// The secrets and the control plane of this node, as last told.
#[derive(Debug)]
pub struct Sense {
    proc: PathBuf,
    /// Look for anything at all.
    on: bool,
    secrets: BTreeMap<InodeKey, Secret>,
    configs: secrets::Configs,
    components: Components,
    /// By containers' environments.
    apis: BTreeSet<SocketAddr>,
    /// Sockets of container runtimes.
    asked: BTreeSet<InodeKey>,
    look_at: BootNs,
    looked: BootNs,
}

impl Sense {
    /// `proc` is `/proc` with the pids of the host; with `on` false nothing is ever found.
    #[must_use]
    pub fn new(proc: &Path, on: bool) -> Self {
        Self {
            proc: proc.to_owned(),
            on,
            secrets: BTreeMap::new(),
            configs: secrets::Configs::default(),
            components: Components::default(),
            apis: BTreeSet::new(),
            asked: BTreeSet::new(),
            look_at: if on { BootNs(0) } else { BootNs(u64::MAX) },
            looked: BootNs(0),
        }
    }

    /// When poll should next be called.
    #[must_use]
    pub fn deadline(&self) -> BootNs {
        self.look_at
    }

    /// A container came: with it, maybe, a token volume.
    pub fn container(&mut self, now: BootNs) {
        self.by(now, SOON);
    }

    /// A program of this name was executed.
    pub fn executed(&mut self, name: &str, now: BootNs) {
        if components::is_one(name) {
            self.by(now, LISTENS);
        }
    }

    /// A container is told that the cluster's API server is there.
    pub fn api(&mut self, address: SocketAddr, now: BootNs) {
        if self.apis.len() < APIS_MAX && self.apis.insert(address) {
            self.by(now, SOON);
        }
    }

    fn by(&mut self, now: BootNs, after: u64) {
        if self.on {
            let at = (now.0 + after).max(self.looked.0 + FLOOR);
            self.look_at = self.look_at.min(BootNs(at));
        }
    }

    /// Does what is due by `now`; cheap when nothing is.
    pub fn poll(&mut self, now: BootNs) -> Batch {
        if now < self.look_at {
            return Batch::default();
        }
        self.looked = now;
        self.look_at = BootNs(now.0 + SLOW);
        let found = Found::look(&self.proc);
        let mut secrets = Secrets::new(&self.proc, &mut self.configs);
        secrets.look(&found);
        let Secrets { found: marks, servers, .. } = secrets;
        self.configs.forget();
        let mut batch = Batch::default();
        for (inode, secret) in &self.secrets {
            if marks.get(inode) != Some(secret) {
                batch.bodies.push(Body::Secret(Box::new(Secret { gone: true, ..secret.clone() })));
            }
        }
        for (inode, secret) in &marks {
            if self.secrets.get(inode) != Some(secret) {
                batch.bodies.push(Body::Secret(Box::new(secret.clone())));
            }
        }
        batch.secrets_changed = !batch.bodies.is_empty();
        self.secrets = marks;
        let remote = servers.into_iter().chain(self.apis.iter().copied());
        let remote = remote.filter(|server| !server.ip().is_loopback() && !server.ip().is_unspecified());
        let remote = remote.map(|server| Endpoint {
            role: EndpointRole::Api,
            address: server.ip().to_canonical(),
            port: server.port(),
            net_ns: 0,
        });
        let endpoints: BTreeSet<Endpoint> = found.endpoints.iter().copied().chain(remote).collect();
        let asked = found.asked(&self.proc);
        batch.asked_changed = asked != self.asked;
        self.asked = asked;
        let components = Components {
            components: found.components(),
            endpoints: endpoints.into_iter().take(ENDPOINTS_MAX).collect(),
        };
        if components != self.components {
            self.components = components.clone();
            batch.endpoints_changed = true;
            batch.bodies.push(Body::Components(Box::new(components)));
        }
        batch
    }

    /// Processes that are this part of the control plane.
    pub fn processes(&self, kind: ComponentKind) -> impl Iterator<Item = u32> {
        self.components.components.iter().filter(move |found| found.kind == kind).map(|found| found.process.pid)
    }

    /// Files, and with inode 0 whole file systems, whose readers are to be reported.
    #[must_use]
    pub fn secrets(&self) -> BTreeSet<InodeKey> {
        self.secrets.keys().copied().collect()
    }

    /// Who is connected to API servers now; `None` where none runs here, whose audit log could tell of requests.
    #[must_use]
    pub fn clients(&self) -> Option<Clients> {
        let endpoints = &self.components.endpoints;
        let serves = endpoints.iter().any(|found| found.role == EndpointRole::ApiServer);
        serves.then(|| clients::look(&self.proc, endpoints))
    }

    /// Addresses whose connections are to be reported, and the processes of whose connections more is to be.
    #[must_use]
    pub fn endpoints(&self) -> (BTreeMap<EndpointKey, u32>, BTreeMap<u32, u32>) {
        let mut endpoints = BTreeMap::new();
        for found in &self.components.endpoints {
            // As the bytes stand in memory.
            let address = sense::octets(found.address);
            let half =
                |at: usize| address.get(at..at + 8).and_then(|half| half.try_into().ok()).map_or(0, u64::from_ne_bytes);
            let address = [half(0), half(8)];
            *endpoints.entry(EndpointKey::new(address, found.port, found.net_ns)).or_default() |= match found.role {
                EndpointRole::Api => endpoint::API,
                EndpointRole::ApiServer => endpoint::API | endpoint::SERVER,
                EndpointRole::Etcd => endpoint::ETCD,
                EndpointRole::Kubelet => endpoint::KUBELET,
                EndpointRole::Stream => endpoint::STREAM,
            };
        }
        let mut servers = BTreeMap::new();
        for found in &self.components.components {
            *servers.entry(found.process.pid).or_default() |= match found.kind {
                ComponentKind::ApiServer => server::CONNECTS,
                ComponentKind::Kubelet | ComponentKind::Runtime => server::LISTENS,
                ComponentKind::Etcd | ComponentKind::ControllerManager | ComponentKind::Scheduler => continue,
            };
        }
        (endpoints, servers)
    }

    /// Sockets by which container runtimes are asked, and directories of such: who connects is to be reported.
    #[must_use]
    pub fn asked(&self) -> &BTreeSet<InodeKey> {
        &self.asked
    }
}
