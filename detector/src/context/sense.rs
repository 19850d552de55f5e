//! What is worth stealing, and which processes are the control plane: as the source found it, judged by what else is known.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use super::Context;
use crate::{
    alert::Origin,
    record::{
        Component, ComponentKind, Components, Endpoint, EndpointRole, InodeKey, ProcessKey, Secret, SecretKind,
        sense::is_token,
    },
};

/// Most secrets remembered: as many as the kernel takes.
const SECRETS_MAX: usize = detector_common::SECRETS_MAX as usize;
/// Most pods' containers that are remembered to have been a part of the control plane.
const KNOWN_MAX: usize = 64;

/// The secrets and the control plane.
#[derive(Debug, Default)]
pub struct Sense {
    secrets: BTreeMap<InodeKey, Secret>,
    pub components: Components,
    /// Static pods' containers in which a part of the control plane ran: namespace, pod and container, newest last.
    known: VecDeque<(ComponentKind, Place)>,
    /// Processes that had proven to be a part of it and do not any more, newest last: what one did is often found when it has ended.
    former: VecDeque<(ComponentKind, ProcessKey)>,
}

/// Namespace, pod and container.
type Place = (String, String, Option<String>);

impl Sense {
    pub(super) fn secret(&mut self, secret: &Secret) {
        if secret.gone {
            self.secrets.remove(&secret.inode);
        } else if self.secrets.len() < SECRETS_MAX || self.secrets.contains_key(&secret.inode) {
            self.secrets.insert(secret.inode, secret.clone());
        }
    }

    /// Whether part of the control plane listens on this node at this address. What containers say that the API server's address is does not
    /// make it one.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        let listens = |found: &&Endpoint| found.role != EndpointRole::Api;
        self.components.endpoints.iter().filter(listens).any(|found| found.address == address)
    }

    /// The secret that a file is, if it is one: of a token volume only the tokens are.
    #[must_use]
    pub fn secret_of(&self, inode: InodeKey, name: &str) -> Option<&Secret> {
        let whole = || self.secrets.get(&InodeKey { dev: inode.dev, ino: 0 });
        let found = self.secrets.get(&inode).or_else(whole)?;
        let is_one = found.inode.ino != 0 || found.kind != SecretKind::Token || is_token(name);
        is_one.then_some(found)
    }
}

impl Context {
    pub(super) fn components(&mut self, components: &Components) {
        let before = std::mem::replace(&mut self.sense.components, components.clone());
        let is_still = |found: &Component| {
            components.components.iter().any(|now| (now.kind, now.process) == (found.kind, found.process))
        };
        for found in before.components.into_iter().filter(|found| !is_still(found)) {
            if self.sense.former.len() >= KNOWN_MAX {
                self.sense.former.pop_front();
            }
            self.sense.former.push_back((found.kind, found.process));
        }
        let places: BTreeSet<(ComponentKind, Place)> = components
            .components
            .iter()
            .filter(|found| self.is_component(found.process, found.kind))
            .filter_map(|found| Some((found.kind, self.place(found.process)?)))
            .collect();
        for place in places {
            if !self.sense.known.contains(&place) {
                if self.sense.known.len() >= KNOWN_MAX {
                    self.sense.known.pop_front();
                }
                self.sense.known.push_back(place);
            }
        }
    }

    /// Whether a process is this part of the control plane: it has proven it to the source, and it runs on the host, or in a container of no pod, or in a pod of
    /// `kube-system`, where nobody puts one who does not govern the cluster already; or it runs in the container of a pod there in which
    /// such a one ran before.
    #[must_use]
    pub fn is_component(&self, process: ProcessKey, kind: ComponentKind) -> bool {
        let listens =
            self.sense.components.components.iter().any(|found| found.process == process && found.kind == kind);
        let has_ended = || self.processes.get(process).is_some_and(|process| process.exited.is_some());
        let proven = listens || self.sense.former.contains(&(kind, process)) && has_ended();
        match self.origin(process) {
            (Origin::Host, _) => proven,
            (Origin::Container, Some(container)) => {
                // A kubelet may live in a container of no pod.
                let pod = container.info.pod.as_ref();
                let system = pod.is_none_or(|pod| pod.namespace == "kube-system");
                let again = || self.place(process).is_some_and(|place| self.sense.known.contains(&(kind, place)));
                // Its first process: whoever came in later is somebody else.
                system && (proven || container.init == Some(process) && again())
            }
            _ => false,
        }
    }

    fn place(&self, process: ProcessKey) -> Option<Place> {
        let container = self.container_of(process)?;
        let pod = container.info.pod.as_ref()?;
        Some((pod.namespace.clone(), pod.name.clone(), container.info.name.clone()))
    }

    /// Whether `process` is, or descends from, `ancestor`.
    #[must_use]
    pub fn descends(&self, process: ProcessKey, ancestor: ProcessKey) -> bool {
        process == ancestor || self.processes.lineage(process).any(|(key, _)| key == ancestor)
    }

    /// The process that a session began with: in a container the first one that came into it from outside, on the host the one that
    /// started this one (a shell, most likely).
    #[must_use]
    pub fn session(&self, process: ProcessKey) -> ProcessKey {
        match self.container_of(process) {
            Some(home) => {
                let inside =
                    |key: &ProcessKey| self.container_of(*key).is_some_and(|other| other.info.id == home.info.id);
                let above = self.processes.lineage(process).map(|(key, _)| key).take_while(inside);
                let above = above.take_while(|key| home.init != Some(*key));
                above.last().unwrap_or(process)
            }
            None => {
                self.processes.lineage(process).map(|(key, _)| key).next().filter(|key| key.pid > 1).unwrap_or(process)
            }
        }
    }
}
