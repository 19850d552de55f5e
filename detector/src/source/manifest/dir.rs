//! One watched directory: what was reported of it, and what is different now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use detector_common::watch;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag};

use super::entry::{self, Entry, Glance};
use super::hold::{Holds, Span};
use crate::record::{Body, BootNs, ChangeKind, DirState, InodeKey, ManifestChange, ManifestFile, WatchReason};
use crate::source::kubelet::Candidate;
use crate::source::root::{Root, file_type, hidden, type_name};

/// Most bytes of content in one batch: a thousand full manifests must not fill the agent's memory at once.
const MAX_BATCH_CONTENT: usize = 32 * 1024 * 1024;

/// A directory (or single file) with its entries as last reported.
pub(super) struct Dir {
    candidate: Candidate,
    root: RootHandle,
    state: DirState,
    /// What stood there when it was last seen, and its inode.
    shape: Shape,
    inode: Option<InodeKey>,
    entries: HashMap<OsString, Entry>,
    /// Changes that are seen and not yet reported.
    pending: HashMap<OsString, Pending>,
    /// When the reported state was last known to hold.
    seen_at: BootNs,
    generation: u32,
    /// Directories on the way, and whether the way ends before the path does.
    way: Vec<InodeKey>,
    /// Nothing was reported yet: what is there is the baseline.
    fresh: bool,
}

/// The root, kept in a way that a process with a reused pid is not mistaken for the kubelet.
enum RootHandle {
    Own,
    /// `/proc/<pid>`.
    Process(OwnedFd),
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Nothing,
    Dir,
    File,
}

struct Pending {
    since: BootNs,
    span: Span,
    /// Digest of the content that looked unfinished.
    hash: Option<[u8; 32]>,
    stamp: entry::Stamp,
    generation: u32,
}

/// What a scan has to know.
pub(super) struct Moment<'a> {
    pub now: BootNs,
    /// The slow timer's scan: looks again at what cannot show a change.
    pub slow: bool,
    pub holds: &'a Holds,
    pub dirty: &'a BTreeSet<InodeKey>,
}

/// What scans find.
#[derive(Default)]
pub(super) struct Output {
    pub bodies: Vec<Body>,
    pub watch_changed: bool,
    content: usize,
}

/// A directory opened for one scan.
struct Place<'a> {
    root: &'a Root,
    fd: &'a OwnedFd,
    path: &'a Path,
}

impl Dir {
    /// Knows nothing yet; [`Self::with`] says which directory it is.
    pub fn new() -> Self {
        Self {
            candidate: Candidate {
                path: PathBuf::new(),
                reason: WatchReason::Flag,
                kubelet: None,
                root: PathBuf::from("/"),
                config_files: Vec::new(),
                url: None,
            },
            root: RootHandle::Gone,
            state: DirState::Missing,
            shape: Shape::Nothing,
            inode: None,
            entries: HashMap::new(),
            pending: HashMap::new(),
            seen_at: BootNs(0),
            generation: 0,
            way: Vec::new(),
            fresh: true,
        }
    }

    /// The same entries, as seen by the kubelet of `candidate`.
    pub fn with(mut self, candidate: Candidate) -> Self {
        if matches!(self.root, RootHandle::Gone) || self.candidate.root != candidate.root {
            self.root = RootHandle::open(&candidate.root);
        }
        self.candidate = candidate;
        self
    }

    /// Whether it stands for that place already.
    pub fn is_of(&self, candidate: &Candidate) -> bool {
        let own = &self.candidate;
        own.path == candidate.path && own.root == candidate.root && own.kubelet == candidate.kubelet
    }

    pub fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    pub fn path(&self) -> &Path {
        &self.candidate.path
    }

    pub fn state(&self) -> &DirState {
        &self.state
    }

    pub fn len(&self) -> usize {
        self.entries.len() + self.pending.len()
    }

    /// When the first of the changes that look unfinished is to be reported.
    pub fn due(&self) -> Option<BootNs> {
        self.pending.values().map(|pending| pending.span.unfinished_until()).min()
    }

    /// Compares with what is there now. False when the process whose view this is has gone.
    pub fn scan(&mut self, moment: &Moment<'_>, output: &mut Output) -> bool {
        let Some(root) = self.root.get() else {
            self.root = RootHandle::Gone;
            return false;
        };
        if self.path().as_os_str().is_empty() {
            // The set has to be built once for its configuration files.
            output.watch_changed |= std::mem::take(&mut self.fresh);
            return true;
        }
        let path = self.candidate.path.clone();
        let walk = root.walk(&path);
        if self.way != walk.dirs {
            self.way = walk.dirs;
            output.watch_changed = true;
        }
        let scanned = match walk.target {
            Ok((fd, stat)) => self.scan_target(&root, &path, &fd, &stat, moment, output),
            Err(Errno::ENOENT) => {
                self.state = DirState::Missing;
                self.take_shape(Shape::Nothing, None, output);
                Ok(())
            }
            Err(error) => Err(error.desc().to_owned()),
        };
        match scanned {
            Ok(()) => {
                self.seen_at = moment.now;
                self.fresh = false;
            }
            // kubelet keeps its pods when it cannot read: nothing is removed, nothing moves on.
            Err(why) => self.state = DirState::Unreadable(why),
        }
        true
    }

    fn scan_target(
        &mut self,
        root: &Root,
        path: &Path,
        fd: &OwnedFd,
        stat: &FileStat,
        moment: &Moment<'_>,
        output: &mut Output,
    ) -> Result<(), String> {
        let inode = root.inode(fd, stat);
        match file_type(stat) {
            SFlag::S_IFDIR => {
                let entries = std::fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd()));
                let names = entries
                    .and_then(|entries| entries.map(|e| e.map(|e| e.file_name())).collect::<Result<Vec<_>, _>>())
                    .map_err(|e| e.to_string())?;
                self.state = DirState::Present(inode);
                self.take_shape(Shape::Dir, Some(inode), output);
                self.compare(&Place { root, fd, path }, names, moment, output);
                Ok(())
            }
            SFlag::S_IFREG => {
                // A file is its directory's only entry that counts.
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err("it has no name".to_owned());
                };
                let (fd, _) = root.walk(parent).target.map_err(|e| e.desc().to_owned())?;
                self.state = DirState::File(inode);
                self.take_shape(Shape::File, None, output);
                self.compare(&Place { root, fd: &fd, path: parent }, vec![name.to_os_string()], moment, output);
                Ok(())
            }
            kind => Err(format!("it is {}", type_name(kind))),
        }
    }

    /// Reports that something else stands at the path than before.
    fn take_shape(&mut self, shape: Shape, inode: Option<InodeKey>, output: &mut Output) {
        let before = std::mem::replace(&mut self.shape, shape);
        let inode_before = std::mem::replace(&mut self.inode, inode);
        if before == shape && inode_before == inode {
            return;
        }
        output.watch_changed = true;
        if self.fresh {
            return;
        }
        if before == Shape::Dir && shape != Shape::Dir {
            self.emit_dir(ChangeKind::DirRemoved, inode_before, output);
        }
        if before != shape {
            let mut names: Vec<OsString> = self.entries.keys().cloned().collect();
            names.sort_unstable();
            for name in names {
                self.remove(&name, before, inode_before, output);
            }
            self.pending.clear();
        }
        if shape == Shape::Dir {
            self.emit_dir(ChangeKind::DirReplaced, inode, output);
        }
    }

    /// Compares the entries with those that were reported.
    fn compare(&mut self, place: &Place<'_>, names: Vec<OsString>, moment: &Moment<'_>, output: &mut Output) {
        self.generation = self.generation.wrapping_add(1);
        let mut look_at = Vec::new();
        for name in names {
            let Glance::Entry { target, link } = entry::glance(place.root, place.fd, place.path, &name) else {
                continue;
            };
            let mut look = true;
            if let Some(known) = self.entries.get_mut(&name) {
                known.generation = self.generation;
                look = known.differs(&target, link.as_ref())
                    || moment.dirty.contains(&known.inode)
                    || (moment.slow && (known.recheck || known.is_unreadable()));
            }
            if let Some(pending) = self.pending.get_mut(&name) {
                pending.generation = self.generation;
                look = true;
            }
            if look {
                look_at.push(name);
            }
        }
        let generation = self.generation;
        let (shape, inode) = (self.shape, self.inode);
        let missed = |(name, entry): (&OsString, &Entry)| (entry.generation != generation).then(|| name.clone());
        let mut gone: Vec<OsString> = self.entries.iter().filter_map(missed).collect();
        gone.sort_unstable();
        for name in gone {
            // Reading a directory while it changes may miss an entry that stays.
            if matches!(entry::glance(place.root, place.fd, place.path, &name), Glance::Nothing) {
                self.remove(&name, shape, inode, output);
            }
        }
        self.pending.retain(|_, pending| pending.generation == generation);
        look_at.sort_unstable();
        for name in look_at {
            self.look(place, name, moment, output);
        }
    }

    /// Reads one entry, and reports it when it is different and settled.
    fn look(&mut self, place: &Place<'_>, name: OsString, moment: &Moment<'_>, output: &mut Output) {
        let Some(opened) = entry::open(place.root, place.fd, place.path, &name) else {
            return;
        };
        let now = moment.now;
        let dirty = moment.dirty.contains(&opened.entry.inode);
        let mut since = self.seen_at;
        if !self.fresh {
            let pending = self.pending.entry(name.clone()).or_insert_with(|| Pending {
                since,
                span: Span::new(now),
                hash: None,
                stamp: entry::Stamp::default(),
                generation: self.generation,
            });
            since = pending.since;
            if moment.holds.is_held(opened.entry.inode, self.inode) {
                pending.span.last = now;
                return;
            }
            let waiting = pending.hash.is_some() && now < pending.span.unfinished_until();
            if waiting && pending.stamp == opened.entry.stamp && !dirty {
                return;
            }
        }
        let (mut entry, content) = opened.read();
        entry.generation = self.generation;
        if let Some(known) = self.entries.get_mut(&name)
            && known.same_content(&entry)
        {
            output.watch_changed |= !known.same_places(&entry);
            // One more look on the slow timer: a second write in the same clock tick leaves the same times.
            entry.recheck = known.stamp != entry.stamp;
            *known = entry;
            self.pending.remove(&name);
            return;
        }
        if !self.fresh {
            if entry.looks_unfinished(&content)
                && let Some(pending) = self.pending.get_mut(&name)
            {
                if dirty || pending.hash != entry.hash() {
                    pending.span.last = now;
                }
                pending.hash = entry.hash();
                pending.stamp = entry.stamp;
                if now < pending.span.unfinished_until() {
                    return;
                }
            }
            entry.recheck = true;
        }
        self.pending.remove(&name);
        self.report(name, entry, content, since, output);
    }

    fn report(&mut self, name: OsString, entry: Entry, content: Vec<u8>, since: BootNs, output: &mut Output) {
        let cut = output.content + content.len() > MAX_BATCH_CONTENT;
        let content = if cut { Bytes::new() } else { Bytes::from(content) };
        output.content += content.len();
        output.watch_changed = true;
        let after = Some(entry.to_record(content, cut));
        let before = self.entries.get(&name).map(Entry::without_content);
        let change = match (&before, self.fresh) {
            (_, true) => ChangeKind::Present,
            (None, false) => ChangeKind::Added,
            (Some(_), false) => ChangeKind::Modified,
        };
        let change = self.change(change, &name, (self.shape, self.inode), (before, after), since);
        output.bodies.push(Body::Manifest(Box::new(change)));
        self.entries.insert(name, entry);
    }

    fn remove(&mut self, name: &OsStr, shape: Shape, inode: Option<InodeKey>, output: &mut Output) {
        let before = self.entries.remove(name).map(|entry| entry.without_content());
        let change = self.change(ChangeKind::Removed, name, (shape, inode), (before, None), self.seen_at);
        output.bodies.push(Body::Manifest(Box::new(change)));
        output.watch_changed = true;
    }

    fn emit_dir(&self, change: ChangeKind, inode: Option<InodeKey>, output: &mut Output) {
        let change = self.change(change, OsStr::new(""), (Shape::Dir, inode), (None, None), self.seen_at);
        output.bodies.push(Body::Manifest(Box::new(change)));
    }

    /// The record of a change of an entry below what had that shape and inode.
    fn change(
        &self,
        change: ChangeKind,
        name: &OsStr,
        (shape, dir_inode): (Shape, Option<InodeKey>),
        (before, after): (Option<ManifestFile>, Option<ManifestFile>),
        since: BootNs,
    ) -> ManifestChange {
        let path = self.path();
        let dir = if shape == Shape::File { path.parent().unwrap_or(path) } else { path };
        ManifestChange {
            dir: dir.to_string_lossy().into_owned(),
            dir_inode,
            name: name.to_string_lossy().into_owned(),
            change,
            // kubelet reads a single file whatever its name is.
            visible: shape == Shape::File || !hidden(name),
            after,
            before,
            since,
        }
    }

    /// Directories and configuration files that the kernel shall watch; `config` gets the inodes that matter for
    /// which directories count.
    pub fn watch_places(&self, set: &mut BTreeMap<InodeKey, u32>, config: &mut BTreeSet<InodeKey>) {
        let mut add = |inode: InodeKey, flags: u32| *set.entry(inode).or_insert(0) |= flags;
        for inode in &self.way {
            add(*inode, watch::ANCESTOR);
        }
        match (&self.state, self.way.last()) {
            (DirState::Missing, Some(nearest)) => add(*nearest, watch::SUBTREE),
            (DirState::File(inode), _) => add(*inode, watch::FILE),
            _ => {}
        }
        if let Some(inode) = self.inode {
            add(inode, watch::DIR);
        }
        let Some(root) = self.root.get() else {
            return;
        };
        for path in &self.candidate.config_files {
            let walk = root.walk(path);
            if let Some(holder) = walk.dirs.last() {
                add(*holder, watch::ANCESTOR);
                config.insert(*holder);
            }
            if let Ok((fd, stat)) = walk.target {
                let inode = root.inode(&fd, &stat);
                let is_dir = file_type(&stat) == SFlag::S_IFDIR;
                // A drop-in is a new file: opens in its directory matter.
                add(inode, if is_dir { watch::DIR } else { watch::FILE });
                config.insert(inode);
            }
        }
    }

    /// Inodes of the entries, and the directories that their symbolic links lead through.
    pub fn watch_entries(&self) -> impl Iterator<Item = (InodeKey, u32)> {
        self.entries.values().flat_map(|entry| {
            let target = (entry.inode != InodeKey::default()).then_some((entry.inode, watch::FILE));
            target.into_iter().chain(entry.link_dirs().iter().map(|dir| (*dir, watch::ANCESTOR)))
        })
    }
}

impl RootHandle {
    fn open(root: &Path) -> Self {
        match root.parent() {
            None => Self::Own,
            Some(process) => File::open(process).map_or(Self::Gone, |dir| Self::Process(dir.into())),
        }
    }

    /// The root as it is now; `None` when its process is gone.
    fn get(&self) -> Option<Root> {
        match self {
            Self::Own => Root::open(Path::new("/"), PathBuf::from("/proc/self/mountinfo")).ok(),
            Self::Process(dir) => Root::of_process(dir).ok(),
            Self::Gone => None,
        }
    }
}

impl Entry {
    fn without_content(&self) -> ManifestFile {
        self.to_record(Bytes::new(), false)
    }
}
