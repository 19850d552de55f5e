//! The manifest view: what kubelet would read, re-read in kubelet's own mount namespace, as a stream of changes.
//!
//! The view has no clock and no thread. Whoever drives it says what time it is, tells it of acts that the kernel saw
//! ([`View::trigger`]), and polls it when [`View::deadline`] is there. Between triggers a slow timer finds what no hook saw.

use std::collections::{BTreeMap, BTreeSet};

use detector_common::{MAX_DEPTH, WATCHED_MAX, watch};

use super::kubelet::{Candidate, Discovery};
use crate::record::{Body, BootNs, DirState, InodeKey, Watched, WatchedDir};

mod dir;
mod entry;
mod hold;

use dir::{Dir, Moment, Output};
use hold::Holds;

const MS: u64 = 1_000_000;

/// Nanoseconds between scans that nothing triggered.
const SLOW_SCAN: u64 = 1_000 * MS;

/// Nanoseconds between looks at which kubelets run and what they are configured to read.
const REDISCOVERY: u64 = 5_000 * MS;

/// Nanoseconds of quiet before a configuration file that is being written is read.
const CONFIG_SETTLE: u64 = 20 * MS;

/// Pause after a scan, in nanoseconds for each entry: a flood of triggers must not keep the agent busy scanning.
const PAUSE_PER_ENTRY: u64 = 2_000;

/// Most directories that are remembered after their kubelet went away.
const MAX_RETIRED: usize = 8;

/// Most inodes of re-read files that are remembered between two scans.
const MAX_DIRTY: usize = 4_096;

/// The manifest directories of all kubelets, as last reported.
pub struct View {
    discovery: Discovery,
    dirs: Vec<Dir>,
    /// Directories whose kubelet is gone: one that comes back is compared with what it read before.
    retired: Vec<Dir>,
    watched: Watched,
    watch: BTreeMap<InodeKey, u32>,
    /// Configuration files and the directories that hold them.
    config: BTreeSet<InodeKey>,
    holds: Holds,
    /// Files to read again even if their times are unchanged.
    dirty: BTreeSet<InodeKey>,
    scan_at: Option<BootNs>,
    slow_at: BootNs,
    discover_at: BootNs,
    /// No scan before this.
    floor: BootNs,
    overflowed: bool,
}

/// What a poll found.
#[derive(Debug, Default)]
pub struct Batch {
    /// `Watched` first, when it changed; then changes, those of one directory together.
    pub bodies: Vec<Body>,
    /// [`View::watch_set`] is another one now.
    pub watch_changed: bool,
    /// What the user should know about the view itself.
    pub warnings: Vec<String>,
}

/// The kernel saw something that may have changed the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The inode that it happened to or in, when known.
    pub inode: Option<InodeKey>,
    pub kind: TriggerKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerKind {
    /// Complete when seen: rename, link, symlink, unlink.
    Atomic,
    /// The content may still be being written.
    Writing,
    /// A mount or unmount.
    Mount,
}

impl View {
    #[must_use]
    pub fn new(discovery: Discovery) -> Self {
        Self {
            discovery,
            dirs: Vec::new(),
            retired: Vec::new(),
            watched: Watched::default(),
            watch: BTreeMap::new(),
            config: BTreeSet::new(),
            holds: Holds::default(),
            dirty: BTreeSet::new(),
            scan_at: None,
            slow_at: BootNs(0),
            discover_at: BootNs(0),
            floor: BootNs(0),
            overflowed: false,
        }
    }

    /// First scan: a `Body::Watched`, and a change of kind `Present` for each entry that is there.
    pub fn start(&mut self, now: BootNs) -> Batch {
        self.discover(now);
        let mut batch = self.scan(now);
        if !matches!(batch.bodies.first(), Some(Body::Watched(_))) {
            batch.bodies.insert(0, Body::Watched(self.watched.clone()));
        }
        batch
    }

    /// Takes note of an act. Nothing is read before the next [`View::poll`].
    pub fn trigger(&mut self, trigger: Trigger, now: BootNs) {
        if trigger.inode.is_some_and(|inode| self.config.contains(&inode)) {
            let wait = if trigger.kind == TriggerKind::Writing { CONFIG_SETTLE } else { 0 };
            self.discover_at = self.discover_at.min(after(now, wait));
        }
        if trigger.kind == TriggerKind::Writing {
            self.holds.add(trigger.inode, now);
            return;
        }
        if let Some(inode) = trigger.inode
            && self.dirty.len() < MAX_DIRTY
        {
            self.dirty.insert(inode);
        }
        self.scan_at = Some(self.scan_at.map_or(now, |at| at.min(now)));
    }

    /// Looks for kubelets at the next poll: one was started, or has exited.
    pub fn rediscover(&mut self) {
        self.discover_at = BootNs(0);
    }

    /// When poll should next be called.
    #[must_use]
    pub fn deadline(&self) -> BootNs {
        let settled = self.dirs.iter().filter_map(Dir::due).min();
        [self.scan_at, self.holds.due(), settled]
            .into_iter()
            .flatten()
            .fold(self.slow_at.min(self.discover_at), BootNs::min)
            .max(self.floor)
    }

    /// Does what is due by `now`; cheap when nothing is.
    pub fn poll(&mut self, now: BootNs) -> Batch {
        if now < self.deadline() {
            return Batch::default();
        }
        if now >= self.discover_at {
            self.discover(now);
        }
        self.scan(now)
    }

    /// Inodes that the kernel shall watch, with flags of [`detector_common::watch`].
    #[must_use]
    pub fn watch_set(&self) -> &BTreeMap<InodeKey, u32> {
        &self.watch
    }

    /// Directory levels above an opened file that the kernel has to compare: 1, or more while a directory is missing.
    #[must_use]
    pub fn depth(&self) -> u32 {
        if self.watch.values().any(|flags| flags & watch::SUBTREE != 0) { MAX_DEPTH } else { 1 }
    }

    /// Finds out which directories count now, and keeps what is known about those that did before.
    fn discover(&mut self, now: BootNs) {
        self.discover_at = after(now, REDISCOVERY);
        let mut before = std::mem::take(&mut self.dirs);
        let candidates = self.discovery.discover();
        let mut slots: Vec<(Candidate, Option<Dir>)> = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let same = before.iter().position(|dir| dir.is_of(&candidate));
            slots.push((candidate, same.map(|at| before.remove(at))));
        }
        before.append(&mut self.retired);
        for (candidate, known) in slots {
            let dir = match known {
                Some(dir) => dir,
                // The same path under another kubelet: a restarted one, most likely. What it read before still counts.
                None => match before.iter().position(|dir| dir.path() == candidate.path) {
                    Some(at) => before.remove(at),
                    None => Dir::new(),
                },
            };
            self.dirs.push(dir.with(candidate));
        }
        before.retain(|dir| !dir.path().as_os_str().is_empty());
        before.truncate(MAX_RETIRED);
        self.retired = before;
    }

    fn scan(&mut self, now: BootNs) -> Batch {
        let slow = now >= self.slow_at;
        let mut dirty = std::mem::take(&mut self.dirty);
        self.holds.fire(now, &mut dirty);
        let moment = Moment { now, slow, holds: &self.holds, dirty: &dirty };
        let mut output = Output::default();
        for dir in &mut self.dirs {
            if !dir.scan(&moment, &mut output) {
                // Its kubelet is gone. That is no removal: another look at the processes will tell what counts.
                self.discover_at = self.discover_at.min(after(now, 100 * MS));
            }
        }
        self.scan_at = None;
        if slow {
            self.slow_at = after(now, SLOW_SCAN);
        }
        let entries: usize = self.dirs.iter().map(Dir::len).sum();
        self.floor = after(now, PAUSE_PER_ENTRY.saturating_mul(entries as u64).min(SLOW_SCAN));
        let mut batch = Batch { bodies: output.bodies, ..Batch::default() };
        let watched = Watched { dirs: self.dirs.iter().flat_map(watched_dirs).collect() };
        if watched != self.watched {
            batch.bodies.insert(0, Body::Watched(watched.clone()));
            self.watched = watched;
            output.watch_changed = true;
        }
        if output.watch_changed {
            self.rebuild_watch_set(&mut batch);
        }
        batch
    }

    fn rebuild_watch_set(&mut self, batch: &mut Batch) {
        let mut set = BTreeMap::new();
        let mut config = BTreeSet::new();
        for dir in &self.dirs {
            dir.watch_places(&mut set, &mut config);
        }
        // Entries come last: when there are too many, directories and configuration stay watched.
        let mut left_out = 0_usize;
        for (inode, flags) in self.dirs.iter().flat_map(Dir::watch_entries) {
            if set.len() < WATCHED_MAX as usize || set.contains_key(&inode) {
                *set.entry(inode).or_insert(0) |= flags;
            } else {
                left_out += 1;
            }
        }
        if left_out > 0 && !self.overflowed {
            batch.warnings.push(format!(
                "{left_out} manifests are beyond the {WATCHED_MAX} inodes that can be watched: changes of their content \
                 are found by the slow timer only"
            ));
        }
        self.overflowed = left_out > 0;
        self.config = config;
        if set != self.watch {
            self.watch = set;
            batch.watch_changed = true;
        }
    }
}

/// What the `Watched` record says about a directory. Pods that kubelet fetches are an item of their own, whose path is
/// the URL and whose state says so.
fn watched_dirs(dir: &Dir) -> impl Iterator<Item = WatchedDir> {
    let candidate = dir.candidate();
    let item = |path: String, state: DirState| WatchedDir {
        path,
        reason: candidate.reason.clone(),
        kubelet_pid: candidate.kubelet,
        state,
    };
    let place = (!dir.path().as_os_str().is_empty())
        .then(|| item(dir.path().to_string_lossy().into_owned(), dir.state().clone()));
    let url = candidate
        .url
        .as_ref()
        .map(|url| item(url.clone(), DirState::Unreadable("a URL: kubelet fetches pods from it".to_owned())));
    place.into_iter().chain(url)
}

fn after(now: BootNs, ns: u64) -> BootNs {
    BootNs(now.0.saturating_add(ns))
}
