//! Logs of pods, and the places of audit logs: which there are, and whether one became shorter or went away.
//!
//! Like the manifest view this has no clock and no thread. The kernel reports acts on the directories and on the logs that are written
//! now; each makes the view look at that directory at once and twice again, because security hooks come before the act. A slow timer finds
//! what no hook saw. Who wrote a log is nobody's concern here: it grows all the time.

mod dir;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
};

use detector_common::watch;
use nix::sys::stat::SFlag;

use self::dir::{Dir, Kind};
use super::{
    kubelet,
    root::{Root, file_type},
};
use crate::record::{Body, BootNs, InodeKey, LogsChange, LogsRole, NodeLogs, PodRef, bounded};

const MS: u64 = 1_000_000;
/// Nanoseconds between looks at everything that nothing asked for.
const SLOW: u64 = 10_000 * MS;
/// Nanoseconds after an act, and after the look before, at which its directory is looked at.
const LOOKS: [u64; 3] = [0, 50 * MS, 250 * MS];
/// Nanoseconds at least between two looks at everything.
const FLOOR: u64 = 500 * MS;
/// Nanoseconds after a directory was found at which what is in it counts: the kernel reports acts there by then.
const SETTLES: u64 = 50 * MS;
/// Most directories, and most entries of one that are looked at.
const DIRS_MAX: usize = 2048;
const ENTRIES_MAX: usize = 1024;
/// Most inodes that the kernel is to report: a fourth of what it takes.
const WATCH_MAX: usize = 16_384;
/// Most audit logs.
const AUDIT_MAX: usize = 16;
/// Most directories that wait for a look because of acts; with more, everything is looked at.
const DIRTY_MAX: usize = 1024;

/// Where kubelets have pods' logs written, and where the links to them are.
const PODS: &str = "/var/log/pods";
const LINKS: &str = "/var/log/containers";

/// What a poll found.
#[derive(Debug, Default)]
pub struct Batch {
    pub bodies: Vec<Body>,
    /// [`Logs::watch_set`] is another set now.
    pub watch_changed: bool,
}

/// The logs of this node, as last looked at.
#[derive(Debug)]
pub struct Logs {
    proc: PathBuf,
    /// Directories of pods' logs, and of links to them.
    tops: Vec<(PathBuf, Kind)>,
    /// Audit logs, and their directories' and their own inodes as last told.
    audit: BTreeMap<PathBuf, Option<(InodeKey, Option<InodeKey>)>>,
    dirs: BTreeMap<PathBuf, Dir>,
    watch: BTreeMap<InodeKey, u32>,
    /// What was acted on: when it is to be looked at, and how many looks it had since.
    dirty: BTreeMap<InodeKey, (BootNs, usize)>,
    look_at: BootNs,
    all_at: BootNs,
    looked_at_all: BootNs,
}

impl Logs {
    /// `proc` is `/proc` with the pids of the host. With `usual`, kubelet's own directories beside `more`.
    #[must_use]
    pub fn new(proc: &Path, usual: bool, more: &[PathBuf]) -> Self {
        let mut tops: Vec<_> = more.iter().map(|path| (path.clone(), Kind::Top)).collect();
        if usual {
            tops.push((PathBuf::from(PODS), Kind::Top));
            tops.push((PathBuf::from(LINKS), Kind::Logs { role: LogsRole::Links, pod: None, container: None }));
        }
        let all_at = if tops.is_empty() { BootNs(u64::MAX) } else { BootNs(0) };
        Self {
            proc: proc.to_owned(),
            tops,
            audit: BTreeMap::new(),
            dirs: BTreeMap::new(),
            watch: BTreeMap::new(),
            dirty: BTreeMap::new(),
            look_at: BootNs(u64::MAX),
            all_at,
            looked_at_all: BootNs(0),
        }
    }

    /// When poll should next be called.
    #[must_use]
    pub fn deadline(&self) -> BootNs {
        self.look_at.min(self.all_at)
    }

    /// Inodes whose changes the kernel is to report.
    #[must_use]
    pub fn watch_set(&self) -> &BTreeMap<InodeKey, u32> {
        &self.watch
    }

    /// An audit log is read: acts on it are to be reported.
    pub fn audit_log(&mut self, path: &str, now: BootNs) {
        if self.audit.len() < AUDIT_MAX && !self.audit.contains_key(Path::new(path)) {
            self.audit.insert(PathBuf::from(path), None);
            self.everything(now);
        }
    }

    /// Somebody acted on these.
    pub fn acted(&mut self, inodes: &[InodeKey], now: BootNs) {
        for inode in inodes.iter().filter(|inode| self.watch.contains_key(inode)) {
            if self.dirty.len() >= DIRTY_MAX && !self.dirty.contains_key(inode) {
                self.everything(now);
                return;
            }
            self.dirty.insert(*inode, (now, 0));
            self.look_at = now;
        }
    }

    /// Somebody may have acted on any of them: a path call of which the kernel does not tell what it touched.
    pub fn hinted(&mut self, now: BootNs) {
        if !self.dirs.is_empty() {
            self.everything(now);
        }
    }

    fn everything(&mut self, now: BootNs) {
        self.all_at = self.all_at.min(BootNs(now.0.max(self.looked_at_all.0 + FLOOR)));
    }

    /// Does what is due by `now`; cheap when nothing is. `servers` are the node's API servers, in whose file systems audit logs are.
    pub fn poll(&mut self, now: BootNs, servers: &[u32]) -> Batch {
        if now < self.deadline() {
            return Batch::default();
        }
        let all = now >= self.all_at;
        let due = self.dirty.iter().filter(|(_, (at, _))| *at <= now);
        let dirty: BTreeSet<InodeKey> = due.map(|(inode, _)| *inode).collect();
        if all {
            self.looked_at_all = now;
            self.all_at = BootNs(now.0 + SLOW);
        }
        let mut look = Look { now, all, dirty, found: BTreeSet::new(), bodies: Vec::new(), unsettled: false };
        let host = kubelet::host_root(&self.proc);
        let mountinfo =
            if host.ends_with("root") { host.with_file_name("mountinfo") } else { "/proc/self/mountinfo".into() };
        if let Ok(root) = Root::open(&host, mountinfo) {
            for (path, kind) in self.tops.clone() {
                self.visit(&root, &path, kind, &mut look);
            }
            if all {
                self.forget(&mut look);
            }
            self.look_at_audit_logs(&root, servers, &mut look);
        }
        self.schedule(now, look.unsettled);
        let watch = self.watched();
        let watch_changed = watch != self.watch;
        self.watch = watch;
        Batch { bodies: look.bodies, watch_changed }
    }

    /// Looks at a directory, and at those below it that are to be looked at.
    fn visit(&mut self, root: &Root, path: &Path, kind: Kind, look: &mut Look) {
        look.found.insert(path.to_owned());
        let known = self.dirs.get(path);
        let due = known.is_none_or(|dir| look.all || !dir.settled || dir.is_one_of(&look.dirty));
        if due {
            let opened = root.find(path).and_then(|fd| {
                let stat = nix::sys::stat::fstat(&fd)?;
                Ok((fd, stat))
            });
            match opened {
                Ok((fd, stat)) if file_type(&stat) == SFlag::S_IFDIR => {
                    let inode = root.inode(&fd, &stat);
                    // Another one in its place: what was known of the one before is gone.
                    if known.is_some_and(|dir| dir.inode != inode) {
                        self.drop_dir(path, look);
                    }
                    if !self.dirs.contains_key(path) {
                        if self.dirs.len() >= DIRS_MAX {
                            return;
                        }
                        let dir = Dir::new(inode, kind.clone(), look.now);
                        look.bodies.extend(dir.body(path, LogsChange::Watched { file: None }));
                        self.dirs.insert(path.to_owned(), dir);
                    }
                    if let Some(dir) = self.dirs.get_mut(path) {
                        let changes = dir.look(root, &fd, look.now);
                        look.unsettled |= !dir.settled;
                        let changes = changes.into_iter().chain(dir.empty_of(&look.dirty));
                        let bodies: Vec<_> = changes.filter_map(|change| dir.body(path, change)).collect();
                        look.bodies.extend(bodies);
                        dir.looked = look.now;
                    }
                }
                _ => return self.drop_dir(path, look),
            }
        }
        if matches!(kind, Kind::Logs { .. }) {
            return;
        }
        let children: Vec<OsString> = self.dirs.get(path).map(|dir| dir.children.clone()).unwrap_or_default();
        for name in &children {
            if let Some(below) = below(&kind, &name.to_string_lossy()) {
                self.visit(root, &path.join(name), below, look);
            }
        }
        if due {
            let depth = path.components().count() + 1;
            let gone: Vec<_> = self
                .dirs
                .range(path.to_owned()..)
                .map(|(known, _)| known)
                .take_while(|known| known.starts_with(path))
                .filter(|known| known.components().count() == depth)
                .filter(|known| !known.file_name().is_some_and(|name| children.iter().any(|child| child == name)))
                .cloned()
                .collect();
            gone.iter().for_each(|path| self.drop_dir(path, look));
        }
    }

    /// A directory is gone, with everything below it.
    fn drop_dir(&mut self, path: &Path, look: &mut Look) {
        let below = self.dirs.range(path.to_owned()..).map(|(known, _)| known);
        let gone: Vec<_> = below.take_while(|known| known.starts_with(path)).cloned().collect();
        for path in gone {
            if let Some(mut dir) = self.dirs.remove(&path) {
                let removed = dir.empty();
                look.bodies.extend(removed.into_iter().filter_map(|change| dir.body(&path, change)));
                look.bodies.extend(dir.body(&path, LogsChange::Unwatched));
            }
        }
    }

    /// What a look at everything did not come by.
    fn forget(&mut self, look: &mut Look) {
        let gone: Vec<_> = self.dirs.keys().filter(|path| !look.found.contains(*path)).cloned().collect();
        gone.iter().for_each(|path| self.drop_dir(path, look));
    }

    fn look_at_audit_logs(&mut self, host: &Root, servers: &[u32], look: &mut Look) {
        let due = |known: &Option<(InodeKey, Option<InodeKey>)>| match known {
            Some((dir, file)) => look.all || look.dirty.contains(dir) || file.is_some_and(|f| look.dirty.contains(&f)),
            None => true,
        };
        for (path, known) in self.audit.iter_mut().filter(|(_, known)| due(known)) {
            let processes = servers.iter().map(|pid| self.proc.join(pid.to_string()));
            let views = processes.filter_map(|dir| Root::open(&dir.join("root"), dir.join("mountinfo")).ok());
            let found = views.into_iter().find_map(|view| place(&view, path)).or_else(|| place(host, path));
            if found.is_some() && found != *known {
                if let Some((dir, file)) = found {
                    let logs = NodeLogs {
                        path: bounded(&path.to_string_lossy()),
                        dir,
                        role: LogsRole::Audit,
                        pod: None,
                        container: None,
                        change: LogsChange::Watched { file },
                        since: look.now,
                    };
                    look.bodies.push(Body::NodeLogs(Box::new(logs)));
                }
                *known = found;
            }
        }
    }

    /// When to look next, after a look at `now`.
    fn schedule(&mut self, now: BootNs, unsettled: bool) {
        self.dirty.retain(|_, (at, looks)| {
            if *at > now {
                return true;
            }
            *looks += 1;
            LOOKS.get(*looks).is_some_and(|after| {
                *at = BootNs(now.0 + after);
                true
            })
        });
        let next = self.dirty.values().map(|(at, _)| at.0).min();
        let settles = unsettled.then_some(now.0 + SETTLES);
        self.look_at = BootNs(next.into_iter().chain(settles).min().unwrap_or(u64::MAX));
    }

    fn watched(&self) -> BTreeMap<InodeKey, u32> {
        let audit = self.audit.values().flatten().flat_map(|(dir, file)| [Some(*dir), *file]).flatten();
        let logs = self.dirs.values().flat_map(|dir| std::iter::once(dir.inode).chain(dir.written()));
        audit.chain(logs).take(WATCH_MAX).map(|inode| (inode, watch::OWN)).collect()
    }
}

/// One look.
struct Look {
    now: BootNs,
    /// At everything.
    all: bool,
    dirty: BTreeSet<InodeKey>,
    found: BTreeSet<PathBuf>,
    bodies: Vec<Body>,
    /// There are directories that were found just now.
    unsettled: bool,
}

/// What a directory of this name is, inside of one of this kind.
fn below(kind: &Kind, name: &str) -> Option<Kind> {
    match kind {
        Kind::Top => Some(Kind::Pod(pod(name)?)),
        Kind::Pod(pod) => {
            let container = Some(bounded(name));
            Some(Kind::Logs { role: LogsRole::Container, pod: Some(pod.clone()), container })
        }
        Kind::Logs { .. } => None,
    }
}

/// `NAMESPACE_NAME_UID`: none of the three may have the character between them.
fn pod(name: &str) -> Option<PodRef> {
    let mut parts = name.splitn(3, '_');
    let mut part = || parts.next().filter(|part| !part.is_empty()).map(bounded);
    Some(PodRef { namespace: part()?, name: part()?, uid: part()? })
}

/// The inodes of an audit log's directory and of the log.
fn place(root: &Root, path: &Path) -> Option<(InodeKey, Option<InodeKey>)> {
    let inode = |path: &Path| {
        let fd = root.find(path).ok()?;
        let stat = nix::sys::stat::fstat(&fd).ok()?;
        Some(root.inode(&fd, &stat))
    };
    Some((inode(path.parent()?)?, inode(path)))
}
