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

/// Nanoseconds after an act that is about to happen at which its effect is looked for. A hook comes before its act, by
/// microseconds unless the machine is busy; what comes later than the last look, the slow timer finds.
const PENDING: [u64; 6] = [MS / 5, MS, 4 * MS, 20 * MS, 100 * MS, 300 * MS];

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
    /// When an act was last about to happen, and how often its effect was looked for since.
    pending: Option<(BootNs, usize)>,
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
    /// About to happen, a moment after it was seen: the effect is looked for several times.
    Pending,
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
            pending: None,
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
            let wait = match trigger.kind {
                TriggerKind::Writing | TriggerKind::Pending => CONFIG_SETTLE,
                TriggerKind::Atomic | TriggerKind::Mount => 0,
            };
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
        if trigger.kind == TriggerKind::Pending {
            self.pending = Some((now, 0));
            return;
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
        let pending = self.pending.map(|(seen, looks)| after(seen, PENDING[looks]));
        [self.scan_at, pending, self.holds.due(), settled]
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
        self.pending = self.pending.and_then(|(seen, looks)| {
            let next = PENDING.iter().skip(looks).position(|wait| now < after(seen, *wait));
            next.map(|further| (seen, looks + further))
        });
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
    let url = candidate.url.as_ref().map(|url| item(url.clone(), DirState::Url));
    place.into_iter().chain(url)
}

fn after(now: BootNs, ns: u64) -> BootNs {
    BootNs(now.0.saturating_add(ns))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, symlink},
        path::{Path, PathBuf},
    };

    use super::*;
    use crate::{
        record::{ChangeKind, ManifestChange},
        testing::POD,
    };

    /// A view of one directory of its own, on a clock that the test moves.
    struct Bench {
        _root: tempfile::TempDir,
        dir: PathBuf,
        view: View,
        now: BootNs,
    }

    impl Bench {
        fn new(prepare: impl FnOnce(&Path)) -> (Self, Vec<(String, ChangeKind)>) {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("manifests");
            prepare(&dir);
            let discovery = Discovery { explicit: vec![dir.clone()], defaults: false, proc: PathBuf::from("/proc") };
            let mut bench = Self { _root: root, dir, view: View::new(discovery), now: BootNs(1_000 * MS) };
            let first = bench.view.start(bench.now);
            assert!(matches!(first.bodies.first(), Some(Body::Watched(_))));
            (bench, names(&changes(first)))
        }

        /// What an atomic act shows at once.
        fn after_act(&mut self) -> Vec<ManifestChange> {
            self.now = after(self.now, 10 * MS);
            self.view.trigger(Trigger { inode: None, kind: TriggerKind::Atomic }, self.now);
            changes(self.view.poll(self.now))
        }

        /// What is found in the next `ms`, without any trigger.
        fn within(&mut self, ms: u64) -> Vec<ManifestChange> {
            let end = after(self.now, ms * MS);
            let mut found = Vec::new();
            while self.view.deadline() <= end {
                self.now = self.view.deadline().max(after(self.now, 1));
                found.extend(changes(self.view.poll(self.now)));
            }
            self.now = end;
            found
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.join(name)
        }
    }

    fn changes(batch: Batch) -> Vec<ManifestChange> {
        let of = |body| if let Body::Manifest(change) = body { Some(*change) } else { None };
        batch.bodies.into_iter().filter_map(of).collect()
    }

    fn names(changes: &[ManifestChange]) -> Vec<(String, ChangeKind)> {
        let mut names: Vec<_> = changes.iter().map(|change| (change.name.clone(), change.change)).collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        names
    }

    fn one(changes: Vec<ManifestChange>) -> ManifestChange {
        assert_eq!(changes.len(), 1, "{changes:?}");
        changes.into_iter().next().unwrap()
    }

    #[test]
    fn what_is_there_is_the_baseline_and_then_each_change_is_told_once() {
        let (mut bench, first) = Bench::new(|dir| {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("old.yaml"), POD).unwrap();
        });
        assert_eq!(first, [("old.yaml".to_owned(), ChangeKind::Present)]);
        assert_eq!(bench.after_act(), []);

        fs::write(bench.path("new.yaml"), POD).unwrap();
        let added = one(bench.after_act());
        assert_eq!((added.name.as_str(), added.change, added.visible), ("new.yaml", ChangeKind::Added, true));
        let file = added.after.unwrap();
        assert_eq!(file.content, POD.as_bytes());
        assert_eq!(file.inode.ino, fs::metadata(bench.path("new.yaml")).unwrap().ino());
        assert_eq!(bench.after_act(), []);

        fs::write(bench.path("old.yaml"), POD.replace("web:1", "web:2")).unwrap();
        let modified = one(bench.after_act());
        assert_eq!(modified.change, ChangeKind::Modified);
        assert_ne!(modified.before.unwrap().sha256, modified.after.unwrap().sha256);

        fs::remove_file(bench.path("old.yaml")).unwrap();
        let removed = one(bench.after_act());
        assert_eq!((removed.change, removed.after), (ChangeKind::Removed, None));
        assert_eq!(bench.within(3_000), []);
    }

    #[test]
    fn what_is_about_to_happen_is_looked_for_until_it_has() {
        for late in [0, 3, 50, 250] {
            let (mut bench, _) = Bench::new(|dir| fs::create_dir(dir).unwrap());
            bench.now = after(bench.now, 10 * MS);
            bench.view.trigger(Trigger { inode: None, kind: TriggerKind::Pending }, bench.now);
            assert_eq!(bench.within(late), []);
            fs::write(bench.path("a.yaml"), POD).unwrap();
            assert_eq!(one(bench.within(320 - late)).change, ChangeKind::Added, "{late} ms late");
        }
    }

    #[test]
    fn the_slow_timer_finds_what_nothing_told_of() {
        let (mut bench, _) = Bench::new(|dir| fs::create_dir(dir).unwrap());
        fs::write(bench.path("a.yaml"), POD).unwrap();
        assert_eq!(one(bench.within(2_000)).change, ChangeKind::Added);
    }

    #[test]
    fn the_same_bytes_written_again_and_a_touch_are_no_change() {
        let (mut bench, _) = Bench::new(|dir| {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("a.yaml"), POD).unwrap();
        });
        fs::write(bench.path("a.yaml"), POD).unwrap();
        assert_eq!(bench.after_act(), []);
        assert_eq!(bench.within(3_000), []);
    }

    #[test]
    fn a_file_that_is_being_written_is_told_when_it_is_whole() {
        let (mut bench, _) = Bench::new(|dir| fs::create_dir(dir).unwrap());
        let (half, _) = POD.split_at(POD.len() / 2);
        fs::write(bench.path("a.yaml"), half).unwrap();
        assert_eq!(bench.after_act(), [], "half a manifest");
        bench.now = after(bench.now, 20 * MS);
        fs::write(bench.path("a.yaml"), POD).unwrap();
        let added = one(bench.after_act());
        assert_eq!(added.after.unwrap().content, POD.as_bytes());
        assert_eq!(bench.within(3_000), []);
    }

    #[test]
    fn half_a_manifest_that_nobody_completes_is_told_too() {
        let (mut bench, _) = Bench::new(|dir| fs::create_dir(dir).unwrap());
        fs::write(bench.path("a.yaml"), &POD[..POD.len() / 2]).unwrap();
        assert_eq!(bench.after_act(), []);
        assert_eq!(one(bench.within(2_000)).change, ChangeKind::Added);
    }

    #[test]
    fn names_with_a_leading_dot_are_seen_and_marked_and_directories_are_not_entries() {
        let (mut bench, _) = Bench::new(|dir| fs::create_dir(dir).unwrap());
        fs::write(bench.path(".hidden"), POD).unwrap();
        fs::create_dir(bench.path("sub")).unwrap();
        let hidden = one(bench.after_act());
        assert!(!hidden.visible);
        fs::rename(bench.path(".hidden"), bench.path("seen")).unwrap();
        let found = bench.after_act();
        assert_eq!(
            names(&found),
            [(".hidden".to_owned(), ChangeKind::Removed), ("seen".to_owned(), ChangeKind::Added)]
        );
    }

    #[test]
    fn what_cannot_be_read_as_a_file_is_an_entry_that_says_why() {
        let (mut bench, _) = Bench::new(|dir| fs::create_dir(dir).unwrap());
        nix::unistd::mkfifo(&bench.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("loop", bench.path("loop")).unwrap();
        symlink("/nowhere/at/all", bench.path("dangling")).unwrap();
        let huge = fs::File::create(bench.path("huge")).unwrap();
        huge.set_len(11 << 20).unwrap();
        bench.after_act();
        bench.within(2_000);
        // All of them, whichever scan told it.
        let (bench, first) = Bench::new(|dir| fs::rename(&bench.dir, dir).unwrap());
        assert_eq!(
            first.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["dangling", "fifo", "huge", "loop"]
        );
        drop(bench);
    }

    #[test]
    fn a_symbolic_link_is_followed_and_its_target_watched() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("target");
        fs::write(&target, POD).unwrap();
        let (mut bench, _) = Bench::new(|dir| fs::create_dir(dir).unwrap());
        symlink(&target, bench.path("a.yaml")).unwrap();
        let added = one(bench.after_act());
        assert_eq!(added.after.unwrap().symlink.as_deref(), target.to_str());
        let ino = fs::metadata(&target).unwrap().ino();
        assert!(bench.view.watch_set().iter().any(|(key, flags)| key.ino == ino && flags & watch::FILE != 0));
        let holder = fs::metadata(outside.path()).unwrap().ino();
        assert!(bench.view.watch_set().keys().any(|key| key.ino == holder), "another link's target could be put there");
        fs::write(&target, POD.replace("web:1", "web:2")).unwrap();
        assert_eq!(one(bench.after_act()).change, ChangeKind::Modified);
    }

    #[test]
    fn a_directory_that_comes_late_goes_and_is_replaced_is_followed() {
        let (mut bench, _) = Bench::new(|_| {});
        assert!(bench.view.watch_set().values().any(|flags| flags & watch::SUBTREE != 0));
        assert!(bench.view.depth() > 1);
        fs::create_dir(&bench.dir).unwrap();
        fs::write(bench.path("a.yaml"), POD).unwrap();
        let found = names(&bench.after_act());
        assert!(found.contains(&("a.yaml".to_owned(), ChangeKind::Added)), "{found:?}");
        assert_eq!(bench.view.depth(), 1);

        let aside = bench.dir.with_extension("aside");
        fs::rename(&bench.dir, &aside).unwrap();
        fs::create_dir(&bench.dir).unwrap();
        fs::write(bench.path("b.yaml"), POD).unwrap();
        let found = names(&bench.after_act());
        assert!(found.contains(&(String::new(), ChangeKind::DirReplaced)), "{found:?}");
        assert!(found.contains(&("a.yaml".to_owned(), ChangeKind::Removed)), "{found:?}");
        assert!(found.contains(&("b.yaml".to_owned(), ChangeKind::Added)), "{found:?}");

        fs::remove_dir_all(&bench.dir).unwrap();
        let found = names(&bench.after_act());
        assert!(found.contains(&(String::new(), ChangeKind::DirRemoved)), "{found:?}");
    }

    #[test]
    fn a_kubelet_that_starts_unnoticed_is_found_by_the_slow_timer() {
        let node = crate::source::kubelet::tests::Node::new();
        let mut view = View::new(node.discovery());
        view.start(BootNs(0));
        node.process(7, "/usr/bin/kubelet", &["kubelet", "--pod-manifest-path=/p"]);
        let batch = view.poll(BootNs(REDISCOVERY));
        let Some(Body::Watched(watched)) = batch.bodies.first() else { panic!("{batch:?}") };
        assert!(watched.dirs.iter().any(|dir| dir.path == "/p" && dir.kubelet_pid == Some(7)), "{watched:?}");
    }

    #[test]
    fn a_flood_of_triggers_does_not_keep_it_scanning() {
        let (mut bench, _) = Bench::new(|dir| {
            fs::create_dir(dir).unwrap();
            for n in 0..1_000 {
                fs::write(dir.join(format!("{n}.yaml")), POD).unwrap();
            }
        });
        bench.view.trigger(Trigger { inode: None, kind: TriggerKind::Atomic }, bench.now);
        let first = bench.view.deadline();
        bench.view.poll(first);
        bench.view.trigger(Trigger { inode: None, kind: TriggerKind::Atomic }, first);
        assert!(bench.view.deadline().0 >= first.0 + 1_000 * PAUSE_PER_ENTRY);
    }
}
