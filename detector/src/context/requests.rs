//! What was asked of kubelet and of the container runtimes, and by whom: what tells a session in a container from what kubelet
//! does there by itself.
//!
//! `kubectl exec` has kubelet ask the runtime for a session, which is then spoken to over TCP. kubelet's own `/run` comes over
//! kubelet's port. Anybody else who has the runtime execute something has connected to its socket. A probe or a life-cycle hook has
//! none of that: kubelet asks over the connection that it always has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use detector_common::{connection, endpoint, socket};

use super::Context;
use crate::{
    alert::Origin,
    decode::Event,
    detect::base,
    record::{Body, BootNs, ComponentKind, Components, ProcessKey, Start, sense},
};

/// How long before an exec began what it was asked by may have come, in ns. The kernel tells once a second of each sender, and
/// kubelet has to find out who asks.
const LOOK_BACK_NS: u64 = 5_000_000_000;
/// How long all of it must have been looked at before what was not seen counts as not there, in ns.
const WARM_UP_NS: u64 = 1_000_000_000;
/// Most clients of runtimes that are remembered.
const CLIENTS_MAX: usize = 256;
/// Hooks that all of this is seen by: one of each.
const HOOKS: [&[&str]; 3] = [&["connection"], &["tcp-receive"], &["unix-connect", "syscall-guard"]];

/// Who had the runtime execute something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// kubelet, which nobody had asked to.
    Kubelet,
    /// Somebody who speaks to the runtime over TCP, as sessions do.
    Session,
    /// Maybe another process that is connected to the runtime's socket.
    Client(ProcessKey),
    /// Maybe whoever asked kubelet from this address.
    Port(IpAddr),
    /// Records were lost, the one that tells maybe among them.
    Lost,
    /// kubelet or the runtime, or the agent, have only just begun.
    Early,
    /// This node does not tell: a hook is missing, or there is no kubelet or runtime that is known.
    Unseen,
    /// The agent that recorded this did not look.
    Unasked,
}

#[derive(Debug)]
struct Client {
    /// The one that connected: this one may have the connection from it.
    first: ProcessKey,
    ended: Option<BootNs>,
}

/// What was asked lately.
#[derive(Debug, Default)]
pub struct Requests {
    /// Whether the kernel tells; `None` where the agent did not ask it to.
    seen: Option<bool>,
    /// Kubelets and runtimes.
    known: BTreeSet<ProcessKey>,
    /// Since when both are known; `None` while one is not.
    since: Option<BootNs>,
    /// Both were known once.
    ever: bool,
    /// When kubelet was last connected to or sent something, and by whom; when a runtime's server of sessions was; when that last accepted
    /// a connection.
    kubelet: Option<(BootNs, IpAddr)>,
    stream: Option<BootNs>,
    accepted: Option<BootNs>,
    /// Processes that are connected to a runtime's socket, beside kubelets, runtimes and the agent.
    clients: BTreeMap<ProcessKey, Client>,
    /// When there were last more of them than are remembered.
    many: Option<(BootNs, ProcessKey)>,
    lost: Option<BootNs>,
}

impl Requests {
    pub(super) fn start(&mut self, start: &Start) {
        let has = |name: &&str| start.hooks.iter().find(|hook| hook.name == **name);
        let asked =
            HOOKS.iter().flat_map(|names| names.iter()).any(|name| name.starts_with("tcp") && has(name).is_some());
        let seen =
            || HOOKS.iter().all(|names| names.iter().any(|name| has(name).is_some_and(|hook| hook.backend.is_some())));
        self.seen = asked.then(seen);
    }

    /// When a runtime's server of sessions last accepted a connection.
    #[must_use]
    pub fn accepted(&self) -> Option<BootNs> {
        self.accepted
    }

    /// Whether records were lost about then.
    #[must_use]
    pub fn lost(&self, began: BootNs) -> bool {
        self.lost.is_some_and(|time| is_about(time, began))
    }
}

fn is_about(time: BootNs, began: BootNs) -> bool {
    time.0.saturating_add(LOOK_BACK_NS) >= began.0
}

impl Context {
    /// What concerns [`Requests`] of a record.
    pub(super) fn requested(&mut self, time: BootNs, body: &Body, event: Option<&Event>) {
        match body {
            Body::Start(start) => self.requests.start(start),
            Body::Components(components) => self.serves(time, components),
            Body::Loss(_) => self.requests.lost = Some(time),
            Body::Tick => {
                let ends = |client: &Client| client.ended.is_none_or(|end| is_about(end, time));
                self.requests.clients.retain(|_, client| ends(client));
            }
            _ => {}
        }
        let Some(event) = event.filter(|_| self.requests.seen == Some(true)) else { return };
        let header = event.header();
        let actor = || ProcessKey::from_ns(header.tgid, header.start_ns);
        let requests = &mut self.requests;
        match event {
            Event::Connection(made) if made.act != connection::CONNECT => {
                if made.endpoint & endpoint::STREAM != 0 {
                    requests.stream = requests.stream.max(Some(time));
                    if made.act == connection::ACCEPT {
                        requests.accepted = requests.accepted.max(Some(time));
                    }
                }
                if made.endpoint & endpoint::KUBELET != 0 {
                    let from = sense::ip(&made.remote);
                    requests.kubelet = requests.kubelet.max(Some((time, from)));
                }
            }
            Event::Socket(made) if made.call == socket::RUNTIME => self.connects(actor(), time),
            Event::Fork(fork) if !requests.clients.is_empty() => {
                // A descriptor is its children's too.
                let child = ProcessKey::from_ns(fork.child_tgid, fork.child_start_ns);
                if let Some(first) = requests.clients.get(&actor()).map(|client| client.first) {
                    requests.client(child, first, time);
                }
            }
            Event::Exit(_) => {
                let actor = actor();
                if let Some(client) = requests.clients.get_mut(&actor) {
                    client.ended = Some(time);
                }
                if requests.known.remove(&actor) {
                    requests.since = None;
                }
            }
            _ => {}
        }
    }

    /// The control plane is another one.
    fn serves(&mut self, time: BootNs, components: &Components) {
        use ComponentKind::{Kubelet, Runtime};
        let found = |kind: ComponentKind| {
            let each = components.components.iter().filter(move |found| found.kind == kind);
            each.map(|found| found.process).filter(|process| self.is_component(*process, kind)).collect::<BTreeSet<_>>()
        };
        let (kubelets, runtimes) = (found(Kubelet), found(Runtime));
        let known: BTreeSet<_> = kubelets.union(&runtimes).copied().collect();
        let whole = !kubelets.is_empty() && !runtimes.is_empty();
        let requests = &mut self.requests;
        // Connected before they had proven to be what they are.
        requests.clients.retain(|_, client| !known.contains(&client.first));
        if requests.known != known || requests.since.is_none() {
            requests.since = whole.then_some(time);
        }
        requests.ever |= whole;
        requests.known = known;
    }

    /// A process connects to a runtime's socket, or to that of a shim.
    fn connects(&mut self, actor: ProcessKey, time: BootNs) {
        let own = self.start.own.as_ref().is_some_and(|own| own.pid == actor.pid);
        if own || self.requests.known.contains(&actor) || self.is_shim(actor) {
            return;
        }
        self.requests.client(actor, actor, time);
    }

    /// A runtime's own child that looks whether there is a shim already.
    fn is_shim(&self, process: ProcessKey) -> bool {
        let Some(state) = self.processes.get(process) else { return false };
        let by_runtime = state.parent.is_some_and(|parent| self.is_component(parent, ComponentKind::Runtime));
        by_runtime
            && base(&state.program.exe).starts_with("containerd-shim")
            && matches!(self.origin(process), (Origin::Host, _))
    }

    /// Who may have had the runtime execute something, which began then.
    #[must_use]
    pub fn asked(&self, began: BootNs) -> By {
        let requests = &self.requests;
        match requests.seen {
            None => return By::Unasked,
            Some(false) => return By::Unseen,
            Some(true) => {}
        }
        if requests.stream.is_some_and(|time| is_about(time, began)) {
            return By::Session;
        }
        let about = |client: &Client| client.ended.is_none_or(|end| is_about(end, began));
        let many = requests.many.filter(|(time, _)| is_about(*time, began)).map(|(_, process)| process);
        if let Some(process) =
            requests.clients.iter().find(|(_, client)| about(client)).map(|(process, _)| *process).or(many)
        {
            return By::Client(process);
        }
        if let Some((_, from)) = requests.kubelet.filter(|(time, _)| is_about(*time, began)) {
            return By::Port(from);
        }
        if requests.lost(began) {
            return By::Lost;
        }
        match requests.since {
            Some(since) if began.0 >= since.0.saturating_add(WARM_UP_NS) => By::Kubelet,
            None if !requests.ever => By::Unseen,
            _ => By::Early,
        }
    }
}

impl Requests {
    fn client(&mut self, process: ProcessKey, first: ProcessKey, time: BootNs) {
        if self.clients.len() >= CLIENTS_MAX && !self.clients.contains_key(&process) {
            self.many = Some((time, process));
            return;
        }
        self.clients.insert(process, Client { first, ended: None });
    }
}
