//! Containers: what is known of each, which cgroup and namespaces are its own, and which process is its first.

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::{
    alert,
    context::cgroup::Cgroups,
    record::{BootNs, ContainerInfo, ContainerRole, InfoFrom, ProcessKey, SharedNamespaces, Start},
};

/// Most containers remembered; ended ones go first, the oldest of them before the others.
const MAX: usize = 8192;
/// How long an ended container is remembered, in ns: its last events may still be on their way.
const RETAIN_NS: u64 = 30_000_000_000;

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespace {
    Mnt,
    Pid,
    Net,
    Ipc,
    Uts,
    Cgroup,
    User,
}

impl Namespace {
    /// As `nsenter` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mnt => "mount",
            Self::Pid => "pid",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::User => "user",
        }
    }
}

/// All namespaces of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    pub mnt: u32,
    pub pid: u32,
    pub shared: SharedNamespaces,
}

impl Namespaces {
    /// Each with its kind, those that tell most first.
    #[must_use]
    pub fn each(&self) -> [(Namespace, u32); 7] {
        [
            (Namespace::Mnt, self.mnt),
            (Namespace::Pid, self.pid),
            (Namespace::Net, self.shared.net),
            (Namespace::Ipc, self.shared.ipc),
            (Namespace::Uts, self.shared.uts),
            (Namespace::Cgroup, self.shared.cgroup),
            (Namespace::User, self.shared.user),
        ]
    }

    /// Those of the host's first process.
    #[must_use]
    pub fn of_host(start: &Start) -> Self {
        Self { mnt: start.host_mnt_ns, pid: start.host_pid_ns, shared: start.host_shared }
    }
}

impl From<detector_common::Shared> for SharedNamespaces {
    fn from(wire: detector_common::Shared) -> Self {
        Self { net: wire.net, ipc: wire.ipc, uts: wire.uts, cgroup: wire.cgroup, user: wire.user }
    }
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub info: ContainerInfo,
    /// Its first process: what everything that belongs to it descends from.
    pub init: Option<ProcessKey>,
    /// Where that one lives.
    pub namespaces: Namespaces,
    /// When its first program was executed, if that was while the agent looked.
    pub began: Option<BootNs>,
    /// When its cgroup was removed.
    gone: Option<BootNs>,
}

impl Container {
    /// Whether anything but its id is known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.info.from != InfoFrom::Nothing
    }

    #[must_use]
    pub fn is_sandbox(&self) -> bool {
        self.info.role == ContainerRole::Sandbox
    }

    /// Whether both belong to the same pod.
    #[must_use]
    pub fn is_with(&self, other: &Self) -> bool {
        self.info.id == other.info.id
            || (self.info.sandbox_id.is_some() && self.info.sandbox_id == other.info.sandbox_id)
    }

    /// As an alert shows it.
    #[must_use]
    pub fn shown(&self) -> alert::Container {
        alert::Container {
            id: self.info.id.clone(),
            name: self.info.name.clone(),
            image: self.info.image.clone(),
            image_digest: self.info.image_digest.clone(),
        }
    }

    #[must_use]
    pub fn pod(&self) -> Option<alert::Pod> {
        self.info.pod.as_ref().map(|pod| alert::Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        })
    }
}

/// How well containers were known when their first program ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FirstExecs {
    pub with_pod: u64,
    /// Described by a bundle or the runtime, and of no pod.
    pub plain: u64,
    pub unknown: u64,
}

/// All containers.
#[derive(Debug, Default)]
pub struct Containers {
    by_id: BTreeMap<String, Container>,
    by_cgroup: FxHashMap<u64, String>,
    by_path: BTreeMap<String, String>,
    /// Whose namespaces these are: the first container's of a pod that had them, so that shared ones are its sandbox's.
    owners: FxHashMap<(Namespace, u32), String>,
    /// The host's own, which are no container's.
    host: Namespaces,
    /// First processes that run.
    inits: BTreeMap<ProcessKey, String>,
    /// In the order in which their cgroups went.
    gone: VecDeque<String>,
}

impl Containers {
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// All of them, ended ones that are still remembered included.
    pub fn iter(&self) -> impl Iterator<Item = &Container> {
        self.by_id.values()
    }

    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Container> {
        self.by_id.get(id)
    }

    /// Learns which namespaces are the host's.
    pub fn of_host(&mut self, host: Namespaces) {
        self.host = host;
    }

    /// Learns what a record says of a container. `path` is its cgroup's.
    pub fn insert(&mut self, info: &ContainerInfo, path: Option<&str>) {
        let ended = |known: &Container| known.gone.is_some() && known.info.cgroup_id != info.cgroup_id;
        if info.cgroup_id.is_some() && self.by_id.get(&info.id).is_some_and(ended) {
            // Another one, for whose id its user took that of one before.
            self.gone.retain(|id| *id != info.id);
            self.remove(&info.id);
        }
        if let Some(cgroup) = info.cgroup_id {
            self.by_cgroup.insert(cgroup, info.id.clone());
        }
        if let Some(path) = path {
            self.by_path.insert(path.to_owned(), info.id.clone());
        }
        let known = self.by_id.entry(info.id.clone()).or_default();
        merge(&mut known.info, info);
        while self.by_id.len() > MAX {
            let victim = self.gone.pop_front().or_else(|| self.by_id.keys().next().cloned());
            let Some(victim) = victim else { break };
            self.remove(&victim);
        }
    }

    /// A cgroup was removed; its container, if it was one's, has ended.
    pub fn cgroup_gone(&mut self, cgroup: u64, now: BootNs) {
        if let Some(id) = self.by_cgroup.get(&cgroup)
            && let Some(container) = self.by_id.get_mut(id)
            && container.gone.is_none()
        {
            container.gone = Some(now);
            self.gone.push_back(id.clone());
        }
    }

    /// Forgets containers that ended long enough ago.
    pub fn forget(&mut self, now: BootNs) {
        while let Some(id) = self.gone.front() {
            let gone = self.by_id.get(id).and_then(|container| container.gone);
            if gone.is_some_and(|gone| now.0.saturating_sub(gone.0) < RETAIN_NS) {
                break;
            }
            let id = id.clone();
            self.gone.pop_front();
            self.remove(&id);
        }
    }

    fn remove(&mut self, id: &str) {
        if let Some(init) = self.by_id.remove(id).and_then(|container| container.init) {
            self.inits.remove(&init);
        }
        self.by_cgroup.retain(|_, of| of != id);
        self.by_path.retain(|_, of| of != id);
        self.owners.retain(|_, of| of != id);
    }

    /// The container that a cgroup is of: its own, or one that it lies inside of. One of which nothing is known, inside a known
    /// one, is that one's doing.
    #[must_use]
    pub fn of_cgroup(&self, cgroup: u64, cgroups: &Cgroups) -> Option<&Container> {
        let own = self.by_cgroup.get(&cgroup).and_then(|id| self.by_id.get(id));
        if own.is_some_and(Container::is_known) {
            return own;
        }
        let above = |path: &str| self.by_id.get(self.by_path.get(path)?).filter(|found| found.is_known());
        let path = cgroups.path(cgroup).unwrap_or_default();
        let around = path.rmatch_indices('/').find_map(|(at, _)| above(&path[..at]));
        around.or(own)
    }

    /// A program runs in a container's cgroup. The first one in namespaces of its own is the container's.
    ///
    /// What the runtime executes there before, on its way in, still has the host's mount namespace. A container with a pid
    /// namespace of its own begins with pid 1 in it.
    ///
    /// Returns the container when this is its first program.
    pub fn runs(
        &mut self,
        id: &str,
        process: ProcessKey,
        inner_pid: u32,
        has: &Namespaces,
        host: &Namespaces,
    ) -> Option<&Container> {
        let container = self.by_id.get_mut(id)?;
        // A bundle says whether it has its own: then what lives in the host's is a runtime's step, whatever it has of the container.
        let may_own = has.pid != host.pid || matches!(container.info.from, InfoFrom::Bundle(_));
        let own_pids = may_own && container.info.joins_pid_of.is_none() && !container.info.host_pid;
        if container.init.is_some() || has.mnt == host.mnt || has.mnt == 0 || (own_pids && inner_pid != 1) {
            return None;
        }
        container.init = Some(process);
        container.namespaces = *has;
        self.inits.insert(process, id.to_owned());
        let container = self.by_id.get(id)?;
        // All of a user's containers without root have that user's.
        let inherits_user = container.info.privileges.as_ref().is_some_and(|may| may.host_user);
        for ((kind, inode), (_, hosts)) in has.each().into_iter().zip(host.each()) {
            let is_new = match kind {
                Namespace::Mnt | Namespace::Cgroup => true,
                Namespace::Pid => inner_pid == 1,
                _ => false,
            };
            // Numbers are used again as soon as they are free.
            let keeps = !is_new && self.owner(kind, inode).is_some_and(|owner| owner.is_with(container));
            let inherited = kind == Namespace::User && inherits_user;
            if inode != 0 && inode != hosts && !keeps && !inherited {
                self.owners.insert((kind, inode), id.to_owned());
            }
        }
        Some(container)
    }

    /// A container's first program was executed just now.
    pub fn began(&mut self, id: &str, time: BootNs) {
        if let Some(container) = self.by_id.get_mut(id) {
            container.began = Some(time);
        }
    }

    /// A process ends. With a container's first one its namespaces go, and their numbers are free for others.
    pub(super) fn exited(&mut self, process: ProcessKey) {
        if let Some(id) = self.inits.remove(&process) {
            self.owners.retain(|_, owner| *owner != id);
        }
    }

    /// The container whose namespace this is.
    #[must_use]
    pub fn owner(&self, kind: Namespace, inode: u32) -> Option<&Container> {
        self.owners.get(&(kind, inode)).and_then(|id| self.by_id.get(id))
    }

    /// The container in whose namespaces a process lives, by the one that tells most, and the kinds that are of its pod. Those of
    /// `home`, the container that its cgroup is of, do not count.
    #[must_use]
    pub fn of_namespaces(&self, has: &Namespaces, home: Option<&Container>) -> Option<(&Container, Vec<Namespace>)> {
        // Nearly every process on the host.
        if *has == self.host {
            return None;
        }
        let own = home.map(|home| home.namespaces).unwrap_or_default().each();
        let owned: Vec<_> = has
            .each()
            .into_iter()
            .zip(own.into_iter().zip(self.host.each()))
            .filter(|((_, inode), ((_, own), (_, hosts)))| inode != own && inode != hosts)
            .filter_map(|((kind, inode), _)| Some((kind, self.owner(kind, inode)?)))
            .filter(|(_, owner)| home.is_none_or(|home| !home.is_with(owner)))
            .collect();
        let (_, first) = owned.first()?;
        let kinds = owned.iter().filter(|(_, owner)| owner.is_with(first)).map(|(kind, _)| *kind).collect();
        Some((first, kinds))
    }

    /// Sandboxes that run: containers of that role whose cgroup is there.
    pub fn sandboxes(&self) -> impl Iterator<Item = &Container> {
        self.by_id.values().filter(|container| container.is_sandbox() && container.gone.is_none())
    }
}

/// Fills in what is new. A bundle's word stands against the CRI's: it is what the runtime was told to do.
fn merge(known: &mut ContainerInfo, new: &ContainerInfo) {
    if known.from == InfoFrom::Nothing {
        let cgroup_id = known.cgroup_id.or(new.cgroup_id);
        *known = ContainerInfo { cgroup_id, ..new.clone() };
        return;
    }
    if new.from == InfoFrom::Nothing {
        return;
    }
    fn fill<T: Clone>(known: &mut Option<T>, new: &Option<T>) {
        if known.is_none() {
            known.clone_from(new);
        }
    }
    fill(&mut known.cgroup_id, &new.cgroup_id);
    fill(&mut known.name, &new.name);
    fill(&mut known.image, &new.image);
    fill(&mut known.image_digest, &new.image_digest);
    fill(&mut known.pod, &new.pod);
    fill(&mut known.sandbox_id, &new.sandbox_id);
    fill(&mut known.privileges, &new.privileges);
    if known.role == ContainerRole::Unknown {
        known.role = new.role;
    }
    if known.labels.is_empty() {
        known.labels.clone_from(&new.labels);
    }
    if known.expected_execs.is_empty() {
        known.expected_execs.clone_from(&new.expected_execs);
    }
    known.privileged |= new.privileged;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Privileges;

    const HOST: Namespaces =
        Namespaces { mnt: 1, pid: 2, shared: SharedNamespaces { net: 3, ipc: 4, uts: 5, cgroup: 6, user: 7 } };

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start: 1 }
    }

    fn info(id: &str, cgroup: u64) -> ContainerInfo {
        ContainerInfo {
            id: id.to_owned(),
            cgroup_id: Some(cgroup),
            from: InfoFrom::Bundle("/run".to_owned()),
            ..ContainerInfo::default()
        }
    }

    #[test]
    fn the_first_program_in_namespaces_of_its_own_is_the_containers() {
        let mut containers = Containers::default();
        containers.insert(&info("a", 10), None);
        // The runtime on its way in, then a process that cannot be the first, then the first.
        containers.runs("a", key(1), 5, &HOST, &HOST);
        let inside = Namespaces { mnt: 11, pid: 12, ..HOST };
        containers.runs("a", key(2), 7, &inside, &HOST);
        assert_eq!(containers.get("a").unwrap().init, None);
        containers.runs("a", key(3), 1, &inside, &HOST);
        containers.runs("a", key(4), 1, &inside, &HOST);
        assert_eq!(containers.get("a").unwrap().init, Some(key(3)));
        let (owner, kinds) = containers.of_namespaces(&Namespaces { pid: 12, ..HOST }, None).unwrap();
        assert_eq!((owner.info.id.as_str(), kinds), ("a", vec![Namespace::Pid]));
        assert_eq!(containers.of_namespaces(&HOST, None), None);
    }

    #[test]
    fn a_namespace_number_that_is_used_again_is_the_later_containers() {
        for exit_is_seen in [true, false] {
            let mut containers = Containers::default();
            let inside = Namespaces { mnt: 11, pid: 12, ..HOST };
            for (id, pid) in [("a", 3), ("b", 4)] {
                // Two containers of one pod.
                containers.insert(&ContainerInfo { sandbox_id: Some("s".to_owned()), ..info(id, pid.into()) }, None);
                containers.runs(id, key(pid), 1, &inside, &HOST);
                assert_eq!(containers.owner(Namespace::Pid, 12).unwrap().info.id, id);
                if exit_is_seen {
                    containers.exited(key(pid));
                    assert_eq!(containers.of_namespaces(&inside, None), None);
                }
            }
        }
    }

    #[test]
    fn a_user_namespace_is_the_containers_only_where_it_was_made_for_it() {
        for host_user in [false, true] {
            let mut containers = Containers::default();
            let privileges = Some(Box::new(Privileges { host_user, ..Privileges::default() }));
            containers.insert(&ContainerInfo { privileges, ..info("a", 10) }, None);
            let users = SharedNamespaces { user: 17, ..HOST.shared };
            containers.runs("a", key(3), 1, &Namespaces { mnt: 11, pid: 12, shared: users }, &HOST);
            let owner = containers.owner(Namespace::User, 17).map(|owner| owner.info.id.as_str());
            assert_eq!(owner, (!host_user).then_some("a"));
            assert!(containers.owner(Namespace::Mnt, 11).is_some());
        }
    }

    #[test]
    fn a_container_that_sees_the_nodes_processes_begins_with_any_pid() {
        let mut containers = Containers::default();
        containers.insert(&ContainerInfo { host_pid: true, ..info("a", 10) }, None);
        containers.runs("a", key(3), 300, &Namespaces { mnt: 11, ..HOST }, &HOST);
        assert_eq!(containers.get("a").unwrap().init, Some(key(3)));
    }

    #[test]
    fn a_cgroup_below_a_containers_is_the_containers_and_one_beside_it_is_not() {
        let (mut containers, mut cgroups) = (Containers::default(), Cgroups::default());
        containers.insert(&info("a", 10), Some("/kubepods/pod1/a"));
        cgroups.insert(10, "/kubepods/pod1/a");
        cgroups.insert(11, "/kubepods/pod1/a/init.scope/deep");
        cgroups.insert(12, "/kubepods/pod1/ab");
        assert_eq!(containers.of_cgroup(11, &cgroups).unwrap().info.id, "a");
        assert_eq!(containers.of_cgroup(12, &cgroups), None);
        assert_eq!(containers.of_cgroup(99, &cgroups), None);
    }

    #[test]
    fn a_container_is_forgotten_a_while_after_its_cgroup_and_with_it_all_that_led_to_it() {
        let (mut containers, cgroups) = (Containers::default(), Cgroups::default());
        containers.insert(&info("a", 10), Some("/a"));
        containers.runs("a", key(3), 1, &Namespaces { mnt: 11, ..HOST }, &HOST);
        containers.cgroup_gone(10, BootNs(5));
        containers.forget(BootNs(RETAIN_NS));
        assert!(containers.of_cgroup(10, &cgroups).is_some());
        containers.forget(BootNs(RETAIN_NS + 5));
        assert!(containers.is_empty() && containers.of_cgroup(10, &cgroups).is_none());
        assert!(containers.by_path.is_empty() && containers.owners.is_empty());
        assert!(containers.gone.is_empty() && containers.inits.is_empty());
    }

    #[test]
    fn a_container_with_the_id_of_one_that_has_ended_is_another() {
        let mut containers = Containers::default();
        for (cgroup, time) in [(10, 5), (11, 6)] {
            containers.insert(&info("a", cgroup), Some("/a"));
            containers.runs("a", key(3), 1, &Namespaces { mnt: 11, ..HOST }, &HOST);
            containers.cgroup_gone(cgroup, BootNs(time));
        }
        containers.insert(&info("a", 12), Some("/a"));
        assert_eq!(containers.get("a").unwrap().init, None);
        containers.insert(&ContainerInfo { cgroup_id: None, ..info("a", 0) }, None);
        containers.forget(BootNs(2 * RETAIN_NS));
        assert_eq!(containers.get("a").unwrap().info.cgroup_id, Some(12));
        assert_eq!((containers.by_cgroup.len(), containers.by_path.len()), (1, 1));
    }

    #[test]
    fn there_are_never_more_than_the_bound_and_ended_ones_go_first() {
        let mut containers = Containers::default();
        for n in 0..=MAX as u64 {
            containers.insert(&info(&format!("{n:05}"), n), None);
            if n == 7 {
                containers.cgroup_gone(7, BootNs(1));
            }
        }
        assert_eq!(containers.len(), MAX);
        assert!(containers.get("00007").is_none() && containers.get("00000").is_some());
    }

    #[test]
    fn the_cri_fills_in_what_the_bundle_did_not_say_and_overrides_nothing() {
        let mut containers = Containers::default();
        containers.insert(&ContainerInfo { image: Some("app:1".to_owned()), ..info("a", 10) }, None);
        let cri = ContainerInfo {
            cgroup_id: None,
            from: InfoFrom::Cri("/run/x.sock".to_owned()),
            image: Some("other:2".to_owned()),
            image_digest: Some("sha256:00".to_owned()),
            ..info("a", 10)
        };
        containers.insert(&cri, None);
        let known = &containers.get("a").unwrap().info;
        assert_eq!(known.image.as_deref(), Some("app:1"));
        assert_eq!(known.image_digest.as_deref(), Some("sha256:00"));
        assert_eq!(known.cgroup_id, Some(10));
        containers.insert(&ContainerInfo { from: InfoFrom::Nothing, ..info("a", 10) }, None);
        assert!(containers.get("a").unwrap().is_known());
    }
}
