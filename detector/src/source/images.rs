//! Images that come into the stores of this node, and which of them runtimes take for the pause image.
//!
//! Like the manifest view this has no clock and no thread: whoever drives it says what time it is, tells it of acts that the
//! kernel saw, and polls it. What no hook saw, a slow timer finds.

mod blob;
mod config;
pub(super) mod executed;
mod runtime;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use detector_common::watch;

use crate::{
    record::{Body, BootNs, ExecutedFile, InodeKey, ProcessKey},
    source::{kubelet, root::Root},
};

use config::Configs;
use executed::Executables;
use runtime::{Kind, Runtime};
use store::{Place, Store};

const MS: u64 = 1_000_000;
/// Nanoseconds between looks at what no hook told of: runtimes, stores, configurations.
const SLOW: u64 = 5_000 * MS;
/// The same while a containerd runs that has no store yet: it makes one for its first image.
const AWAITED: u64 = 500 * MS;
/// Nanoseconds after an act at which its effect is looked for: a security hook comes before it, and a runtime's configuration
/// may be written in several steps.
const AFTER: [u64; 6] = [MS / 5, MS, 5 * MS, 50 * MS, 300 * MS, 1_100 * MS];
/// Most stores: a node has one or two.
const STORES_MAX: usize = 64;

/// Content stores of containerd on the host, wherever distributions put them.
const STORES: [&str; 6] = [
    "/var/lib/containerd",
    "/var/lib/rancher/k3s/agent/containerd",
    "/var/lib/rancher/rke2/agent/containerd",
    "/var/lib/docker/containerd/daemon",
    "/var/lib/k0s/containerd",
    "/var/snap/microk8s/common/var/lib/containerd",
];
/// Below a root of containerd: what has arrived whole.
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
/// Root of containers/storage, and below it what lists the images.
const CONTAINERS: &str = "/var/lib/containers/storage";
const LISTED: &str = "overlay-images";

/// The file system as runtimes see it.
#[derive(Clone, Debug)]
struct View {
    /// `/`, or `/proc/<pid>/root`.
    root: PathBuf,
    mountinfo: PathBuf,
    /// It is the host's.
    host: bool,
    /// Runtimes that see it so.
    pids: BTreeSet<u32>,
}

impl View {
    fn open(&self) -> Option<Root> {
        Root::open(&self.root, self.mountinfo.clone()).ok()
    }

    /// A path on a process's command line, which may be relative to where it was started.
    fn absolute(&self, path: &str, pid: u32) -> PathBuf {
        let cwd = || fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_else(|_| PathBuf::from("/"));
        if path.starts_with('/') { PathBuf::from(path) } else { cwd().join(path) }
    }
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Where {
    /// `/proc`, with the pids of the host.
    pub proc: PathBuf,
    /// The host's root directory.
    pub root: PathBuf,
    /// Roots of containerd and of containers/storage, beside those of runtimes that run.
    pub defaults: bool,
}

impl Default for Where {
    fn default() -> Self {
        let proc = PathBuf::from("/proc");
        let root = kubelet::host_root(&proc);
        Self { proc, root, defaults: true }
    }
}

/// What a poll found.
#[derive(Debug, Default)]
pub struct Batch {
    pub bodies: Vec<Body>,
    /// [`Images::watch_set`] is another one now.
    pub watch_changed: bool,
}

/// The stores and configurations of this node.
#[derive(Debug)]
pub struct Images {
    place: Where,
    stores: Vec<Store>,
    configs: Configs,
    executables: Executables,
    watch: BTreeMap<InodeKey, u32>,
    /// When an act was last seen, and how often its effect was looked for since.
    pending: Option<(BootNs, usize)>,
    slow_at: BootNs,
    /// A containerd runs whose store does not exist yet.
    awaited: bool,
    /// Wall time in ns at the start: what is younger in a store that is found later has arrived.
    started: i128,
}

impl Images {
    #[must_use]
    pub fn new(place: Where) -> Self {
        let now = jiff::Timestamp::now().as_nanosecond();
        Self {
            place,
            stores: Vec::new(),
            configs: Configs::default(),
            executables: Executables::default(),
            watch: BTreeMap::new(),
            pending: None,
            slow_at: BootNs(0),
            awaited: false,
            started: now,
        }
    }

    /// Those images among `known` digests that are here, and what belongs to them.
    pub fn present(&self, known: &[String]) -> Vec<Body> {
        let present = self.stores.iter().flat_map(|store| store.present(known));
        present.map(|image| Body::Image(Box::new(image))).collect()
    }

    /// The first look: what each configuration names, and those pause images among `known` digests that are here, so that it is
    /// known what belongs to them.
    pub fn start(&mut self, known: &[String], now: BootNs) -> Vec<Body> {
        self.slow_at = BootNs(now.0 + SLOW);
        let mut bodies = self.look(now, true);
        bodies.extend(self.present(known));
        bodies
    }

    /// Inodes whose changes are worth knowing, with their flags.
    #[must_use]
    pub fn watch_set(&self) -> &BTreeMap<InodeKey, u32> {
        &self.watch
    }

    /// Something was renamed into a watched directory, or a watched file written: its name, where that is known.
    pub fn acted(&mut self, dir: Option<InodeKey>, name: &str, now: BootNs) {
        for store in &mut self.stores {
            if dir.is_none_or(|dir| dir == store.inode) {
                store.expect(name);
            }
        }
        self.pending = Some((now, 0));
    }

    /// A runtime may have been started.
    pub fn rediscover(&mut self) {
        self.slow_at = BootNs(0);
    }

    /// When poll should next be called.
    #[must_use]
    pub fn deadline(&self) -> BootNs {
        let pending =
            self.pending.map_or(BootNs(u64::MAX), |(seen, looks)| BootNs(seen.0.saturating_add(AFTER[looks])));
        pending.min(self.slow_at)
    }

    /// Does what is due by `now`; cheap when nothing is.
    pub fn poll(&mut self, now: BootNs) -> Batch {
        if now < self.deadline() {
            return Batch::default();
        }
        let before = self.watch.clone();
        let mut bodies = Vec::new();
        let slow = now >= self.slow_at;
        // An act's last looks are at configurations too, and at what else has come.
        let late = self.pending.is_some_and(|(_, looks)| looks >= 3);
        if let Some((seen, looks)) = self.pending {
            self.pending = (looks + 1 < AFTER.len()).then_some((seen, looks + 1));
        }
        if slow || late {
            bodies.extend(self.look(now, false));
        }
        if slow {
            self.slow_at = BootNs(now.0 + if self.awaited { AWAITED } else { SLOW });
        }
        // After that, so that what has come into a store that is new itself is found too.
        for store in &mut self.stores {
            bodies.extend(store.arrived(slow || late).into_iter().map(|image| Body::Image(Box::new(image))));
        }
        if self.pending.is_none() && self.configs.doubts() {
            self.slow_at = self.slow_at.min(BootNs(now.0 + 1_000 * MS));
        }
        Batch { bodies, watch_changed: self.watch != before }
    }

    /// What this process executes.
    #[must_use]
    pub fn executed(&mut self, process: ProcessKey) -> ExecutedFile {
        self.executables.executed(process)
    }

    /// Looks for runtimes, their stores and their configurations.
    fn look(&mut self, now: BootNs, first: bool) -> Vec<Body> {
        let runtimes = runtime::running(&self.place.proc);
        let views = self.views(&runtimes);
        let (bodies, roots) = self.configs.look(&views, &runtimes, now);
        let mut places = Vec::new();
        for view in &views {
            let mut add = |place: Place, root: &Path, runs: bool| {
                let dir = root.join(if place == Place::Blobs { BLOBS } else { LISTED });
                places.push((view.clone(), place, dir, runs));
            };
            if view.host && self.place.defaults {
                STORES.iter().for_each(|root| add(Place::Blobs, Path::new(root), false));
                add(Place::Listed, Path::new(CONTAINERS), false);
            }
            for runtime in runtimes.iter().filter(|runtime| view.pids.contains(&runtime.pid)) {
                let flag = runtime.flag(&["--root"]).map(|root| view.absolute(root, runtime.pid));
                let root = flag.or_else(|| roots.get(&runtime.pid).cloned());
                match runtime.kind {
                    Kind::Containerd => add(Place::Blobs, &root.unwrap_or_else(|| STORES[0].into()), true),
                    Kind::Crio => add(Place::Listed, &root.unwrap_or_else(|| CONTAINERS.into()), false),
                    Kind::Kubelet => {}
                }
            }
        }
        let mut stores: Vec<Store> = Vec::new();
        self.awaited = false;
        for (view, place, dir, runs) in places {
            let Some(inode) = store::directory(&view, &dir) else {
                self.awaited |= runs;
                continue;
            };
            if stores.len() >= STORES_MAX || stores.iter().any(|store| store.inode == inode) {
                continue;
            }
            let known = self.stores.iter().position(|store| store.inode == inode);
            stores.push(match known {
                Some(at) => self.stores.swap_remove(at),
                None => {
                    let mut store = Store::new(view, place, dir, inode);
                    // What was there before the agent has not arrived.
                    store.remember(if first { None } else { Some(self.started) });
                    store
                }
            });
        }
        self.stores = stores;
        self.watch = self.configs.watch.clone();
        self.watch.extend(self.stores.iter().map(|store| (store.inode, watch::STORE)));
        bodies
    }

    /// The host's view of the file system, and those of runtimes that have another.
    fn views(&self, runtimes: &[Runtime]) -> Vec<View> {
        let identity = |root: &Path| fs::metadata(root).ok().map(|root| (root.dev(), root.ino()));
        let own = "/proc/self/mountinfo".into();
        let of_host = self.place.root.parent().filter(|_| self.place.root.ends_with("root"));
        let host = View {
            mountinfo: of_host.map_or(own, |process| process.join("mountinfo")),
            root: self.place.root.clone(),
            host: true,
            pids: BTreeSet::new(),
        };
        let mut views = vec![(identity(&host.root), host)];
        for runtime in runtimes {
            let process = self.place.proc.join(runtime.pid.to_string());
            let root = process.join("root");
            let Some(id) = identity(&root) else { continue };
            match views.iter_mut().find(|(known, _)| *known == Some(id)) {
                Some((_, view)) => {
                    view.pids.insert(runtime.pid);
                }
                None => {
                    let mountinfo = process.join("mountinfo");
                    views.push((Some(id), View { root, mountinfo, host: false, pids: [runtime.pid].into() }));
                }
            }
        }
        views.into_iter().map(|(_, view)| view).collect()
    }
}
