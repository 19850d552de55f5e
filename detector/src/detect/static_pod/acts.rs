//! Recent acts, and which of them is behind an effect.

use std::collections::VecDeque;

use detector_common::{self as wire, hook, syscall, watch};

use crate::{
    alert::Evidence,
    decode::{self, Event, hook_name},
    detect::{self, static_pod::EVIDENCE_MAX},
    escape::escape_to,
    record::{BootNs, ChangeKind, InodeKey, ManifestChange, ManifestFile, ProcessKey, Record},
};

/// Most acts remembered.
const MAX: usize = 4096;
/// How long an act is remembered, in ns: longer than the view holds a change back.
const KEEP_NS: u64 = 15_000_000_000;

/// Something a process did that may be behind an effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Act {
    pub seq: u64,
    pub time: BootNs,
    pub process: ProcessKey,
    pub kind: &'static str,
    pub hook: &'static str,
    pub detail: String,
    what: What,
    /// Seen before it happened.
    early: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    /// A file opened for writing, or written.
    File {
        inode: InodeKey,
        dir: InodeKey,
        name: String,
    },
    /// A watched inode's change time moved.
    Change {
        inode: InodeKey,
    },
    /// A path call, with the last component of its path arguments; the inode is what it touched, when that is known.
    Path {
        inode: Option<InodeKey>,
        watch: u32,
        names: [String; 2],
    },
    /// A write, a close or the like, by which a change of the inode was complete.
    Done {
        inode: InodeKey,
    },
    /// An entry of a directory, before the act: what it leads to and what stands at a rename's new name, the directories of
    /// both names, and the names.
    Entry {
        inodes: [InodeKey; 2],
        dirs: [InodeKey; 2],
        watch: u32,
        names: [String; 2],
    },
    /// A mount or unmount, with the last component of the path that it happened to.
    Mount {
        onto: String,
    },
    IoUring,
}

/// How well an act explains an effect; the higher the better. Equal ones: the later.
type Score = u32;
/// How long after it a change of kubelet's configuration explains another path, in ns: the view's look for kubelets is
/// every 5 s, and follows a write at once.
const CONFIGURED_NS: u64 = 6_000_000_000;
/// How long after a mount what is found in the new place is explained by it, in ns: what is written there before the agent
/// knows its inodes is seen by no hook.
const MOUNTED_NS: u64 = 2_000_000_000;
/// How long the effect of an act that was seen before it happened may take to show, in ns.
const EARLY_NS: u64 = 400_000_000;
/// Most files opened for writing that are remembered for longer than [`KEEP_NS`]: their descriptors may still be open.
const OPENED_MAX: usize = 512;
/// Below this an act is too old to be more than an open descriptor.
const OLD: Score = 20;

/// An act next door: evidence of what the one who is named did otherwise, and no reason to name anybody.
const BESIDE: Score = 21;

/// Acts, oldest first.
#[derive(Debug, Default)]
pub struct Acts {
    recent: VecDeque<Act>,
    /// Files opened for writing, longer ago.
    opened: VecDeque<Act>,
}

impl Acts {
    /// Remembers what may be an act.
    pub fn observe(&mut self, record: &Record, event: &Event) {
        let Some((kind, what, detail)) = act(event) else { return };
        let header = event.header();
        self.recent.push_back(Act {
            seq: record.seq,
            time: record.time,
            process: ProcessKey::from_ns(header.tgid, header.start_ns),
            kind,
            hook: hook_name(header.hook),
            detail,
            what,
            // A worker of io_uring may do what was asked for long after it was.
            early: matches!(event, Event::Entry(_) | Event::IoUring(_)),
        });
        while self.recent.len() > MAX
            || self.recent.front().is_some_and(|first| record.time.0.saturating_sub(first.time.0) > KEEP_NS)
        {
            let Some(first) = self.recent.pop_front() else { break };
            if matches!(first.what, What::File { .. }) {
                self.opened.push_back(first);
            }
        }
        while self.opened.len() > OPENED_MAX {
            self.opened.pop_front();
        }
    }

    fn all(&self) -> impl DoubleEndedIterator<Item = &Act> {
        self.opened.iter().chain(&self.recent)
    }

    /// The act that explains the change best, of those since the old state was last seen. What a file was moved or linked
    /// to is the act of who did that, whatever was done to it before: its inode may have been another file's until then.
    pub fn behind(&self, change: &ManifestChange, found: BootNs) -> Option<&Act> {
        let scored = |act| self.score(act, change, found).filter(|score| *score != BESIDE).map(|score| (score, act));
        let arrived = self.all().rev().find(|act| brings(&act.what, change) && scored(act).is_some());
        self.all()
            .filter(|act| arrived.is_none_or(|arrived| act.time >= arrived.time))
            .filter_map(scored)
            .max_by_key(|(score, act)| (*score, act.time, act.seq))
            .map(|(_, act)| act)
    }

    /// The last act on a configuration file of kubelet.
    pub fn on_configuration(&self, file: &str, found: BootNs) -> Option<&Act> {
        let name = base(file);
        self.all().rev().find(|act| {
            let named = match &act.what {
                What::File { name: acted_on, .. } => acted_on == name,
                What::Path { names, .. } | What::Entry { names, .. } => names.iter().any(|acted_on| acted_on == name),
                What::Mount { onto } => onto == name,
                _ => false,
            };
            named && act.time <= found && found.0 - act.time.0 <= CONFIGURED_NS
        })
    }

    /// Records behind a change: those of the process that did it, then a note of each other process that acted too.
    pub fn evidence(&self, chosen: Option<&Act>, change: &ManifestChange, found: BootNs) -> Vec<Evidence> {
        let Some(chosen) = chosen else { return Vec::new() };
        let scored: Vec<_> = self.all().filter(|act| self.score(act, change, found).is_some()).collect();
        let own = scored.iter().filter(|act| act.process == chosen.process);
        let count = own.clone().count();
        let held = chosen.time <= change.since && matches!(chosen.what, What::File { .. });
        let note = if held { ", and held open since" } else { "" };
        let mut evidence: Vec<_> = own.take(EVIDENCE_MAX).map(|act| act.evidence(note)).collect();
        if count > EVIDENCE_MAX
            && let Some(last) = evidence.last_mut()
        {
            last.detail.push_str(&format!(" (and {} records more)", count - EVIDENCE_MAX));
        }
        let mut others: Vec<&&Act> = scored.iter().filter(|act| act.process != chosen.process).collect();
        others.sort_by_key(|act| (act.process, std::cmp::Reverse(act.seq)));
        others.dedup_by_key(|act| act.process);
        evidence.extend(
            others.iter().take(4).map(|act| act.evidence(&format!(" by another process, pid {}", act.process.pid))),
        );
        evidence
    }

    fn score(&self, act: &Act, change: &ManifestChange, found: BootNs) -> Option<Score> {
        if act.time > found {
            return None;
        }
        let recent = act.time > change.since;
        let early = act.early && act.time.0.saturating_add(EARLY_NS) > change.since.0;
        let opened = matches!(act.what, What::File { .. }) && change.change == ChangeKind::Modified;
        // Most acts are too old to explain anything, whatever they were about.
        if !recent && !early && !opened && !matches!(act.what, What::Mount { .. }) {
            return None;
        }
        let score = explains(&act.what, change)?;
        if recent || (early && score >= OLD) {
            return Some(score);
        }
        if let What::Mount { onto } = &act.what {
            return (onto == base(&change.dir) && found.0.saturating_sub(act.time.0) < MOUNTED_NS).then_some(OLD);
        }
        // Older than the last look at the old state: only a descriptor that may still be open explains anything.
        (opened && score >= 90).then_some(OLD)
    }
}

fn explains(what: &What, change: &ManifestChange) -> Option<Score> {
    // What the name leads to, or led to before it was removed. The number of a file that is gone is soon another file's, anywhere: what is
    // done to that one explains nothing, and what was done to the file before it was replaced next to nothing.
    let (now, was) = match (&change.after, &change.before) {
        (Some(after), before) => (Some(after), before.as_ref().filter(|before| before.inode != after.inode)),
        (None, before) => (None, before.as_ref()),
    };
    let of =
        |file: Option<&ManifestFile>, inode: &InodeKey| file.is_some_and(|file| file.inode == *inode) && inode.ino != 0;
    let is_former = |inode: &InodeKey| of(was, inode);
    let is_dir = |inode: &InodeKey| change.dir_inode == Some(*inode);
    let whole = matches!(change.change, ChangeKind::DirReplaced | ChangeKind::DirRemoved);
    let dir_name = base(&change.dir);
    let named = |name: &str| !name.is_empty() && (name == change.name || (whole && name == dir_name));
    let nameless = |names: &[String; 2]| names.iter().all(String::is_empty);
    // What the name leads to may change with a link of another name.
    let is_link = [&change.after, &change.before].into_iter().flatten().any(|file| file.symlink.is_some());
    // A directory above the manifest's, or above what its symbolic link leads to, may have been replaced.
    let on_the_way = |names: &[String; 2]| {
        let link = change.after.as_ref().and_then(|after| after.symlink.as_deref()).unwrap_or_default();
        let above = |name: &String| change.dir.split('/').chain(link.split('/')).any(|part| part == name);
        if names.iter().any(|name| name == dir_name) {
            Some(48)
        } else {
            names.iter().any(|name| !name.is_empty() && above(name)).then_some(35)
        }
    };
    match what {
        What::File { inode, .. } | What::Done { inode } if of(now, inode) => Some(100),
        What::File { inode, dir, name } if is_former(inode) && !(is_dir(dir) && named(name)) => Some(25),
        What::Done { inode } if is_former(inode) => Some(25),
        What::Path { inode: Some(inode), .. } if of(now.or(was), inode) => Some(99),
        What::Entry { inodes, .. } if inodes.iter().any(|inode| of(now, inode)) => Some(98),
        What::Entry { dirs, names, .. } if dirs.iter().any(is_dir) && names.iter().any(|name| named(name)) => Some(95),
        What::Entry { inodes, .. } if inodes.iter().any(is_dir) => Some(90),
        What::Entry { dirs, names, .. } if dirs.iter().any(is_dir) && (whole || nameless(names)) => Some(60),
        What::Entry { dirs, .. } if dirs.iter().any(is_dir) && is_link => Some(52),
        What::Entry { watch, names, .. } if watch & watch::ANCESTOR != 0 => on_the_way(names),
        What::Change { inode } if of(now, inode) => Some(97),
        What::File { dir, name, .. } if is_dir(dir) && named(name) => Some(95),
        What::Path { inode, names, .. } if names.iter().any(|name| named(name)) => {
            Some(if inode.as_ref().is_some_and(is_dir) { 90 } else { 50 })
        }
        What::Path { inode: Some(inode), .. } | What::Change { inode } if is_former(inode) => Some(61),
        What::Entry { inodes, .. } if inodes.iter().any(is_former) => Some(61),
        // The caller's names, which may be others by now: worth less than that the process changed the directory.
        What::Path { inode: Some(inode), watch, names } if is_dir(inode) || watch & watch::DIR != 0 => {
            Some(if whole || nameless(names) { 60 } else { 52 })
        }
        What::Done { inode } | What::Change { inode } if is_dir(inode) => Some(55),
        What::Path { watch, names, .. } if watch & watch::ANCESTOR != 0 => on_the_way(names),
        // A directory that was replaced changed for all its entries.
        What::Path { names, .. } if names.iter().any(|name| name == dir_name) => Some(45),
        What::Mount { onto } => Some(if onto == dir_name { 42 } else { 40 }),
        What::IoUring => Some(30),
        // By the kernel's names, on another entry.
        What::Entry { dirs, .. } if dirs.iter().any(is_dir) => Some(BESIDE),
        _ => None,
    }
}

/// Whether the act gave a file the name that changed, in its directory: a rename, a link.
fn brings(what: &What, change: &ManifestChange) -> bool {
    let new = |dir: Option<InodeKey>, name: &str| {
        !change.name.is_empty() && name == change.name && dir.is_some() && dir == change.dir_inode
    };
    match what {
        What::Path { inode, names, .. } => new(*inode, &names[1]),
        What::Entry { dirs, names, .. } => new(Some(dirs[1]), &names[1]),
        _ => false,
    }
}

fn act(event: &Event) -> Option<(&'static str, What, String)> {
    let watched = match event {
        Event::Open(open) | Event::Write(open) | Event::Map(open) => open.event.watch,
        Event::Entry(entry) => entry.watch,
        Event::Path(call) => call.event.watch,
        _ => 0,
    };
    // Image stores and sandboxes are others' concern.
    if watched != 0 && watched & !(watch::STORE | watch::SANDBOX | watch::OWN) == 0 {
        return None;
    }
    Some(match event {
        Event::Open(open) => {
            ("open", file(open), format!("{} for writing: {}", call(open.event.syscall, false), shown(&open.path)))
        }
        Event::Write(open) => {
            ("write", file(open), format!("{}: {}", call(open.event.syscall, false), shown(&open.path)))
        }
        Event::Change(change) => {
            let inode = InodeKey { dev: change.dev, ino: change.ino };
            let of = if change.watch & watch::FILE != 0 { "a manifest" } else { "the directory" };
            ("change", What::Change { inode }, format!("{of} changed (inode {})", change.ino))
        }
        Event::Map(open) => ("map", file(open), format!("mapped for writing: {}", shown(&open.path))),
        Event::Entry(entry) => return Some(entry_act(entry)),
        Event::Path(path) => return Some(path_act(path)),
        Event::IoUring(ring) => ("io_uring", What::IoUring, format!("io_uring request {}", ring.opcode)),
        Event::Exec(_)
        | Event::Fork(_)
        | Event::Exit(_)
        | Event::Ptrace(_)
        | Event::Socket(_)
        | Event::Bpf(_)
        | Event::Signal(_)
        | Event::Cgroup { .. }
        | Event::CgroupGone(_)
        | Event::CgroupMove(_)
        | Event::Namespaces(_)
        | Event::Read(_)
        | Event::Connection(_) => return None,
    })
}

fn file(open: &decode::Open) -> What {
    let key = |ino| InodeKey { dev: open.event.dev, ino };
    What::File { inode: key(open.event.ino), dir: key(open.event.parent_ino), name: base(&open.path).to_owned() }
}

fn path_act(path: &decode::PathCall) -> (&'static str, What, String) {
    let event: &wire::PathCall = &path.event;
    let name = call(event.syscall, event.compat != 0);
    let shown: Vec<_> = path.paths.iter().filter(|path| !path.is_empty()).map(|path| shown(path)).collect();
    let detail = if shown.is_empty() { name } else { format!("{name} {}", shown.join(" -> ")) };
    let inode = (event.ino != 0).then_some(InodeKey { dev: event.dev, ino: event.ino });
    let names = path.paths.each_ref().map(|path| base(path).to_owned());
    let what = match (u8::try_from(event.class), inode) {
        (Ok(syscall::MOUNT | syscall::MOVE_MOUNT), _) => return ("mount", What::Mount { onto: onto(names) }, detail),
        (Ok(class), Some(inode)) if class >= syscall::WRITE_FD0 => What::Done { inode },
        _ => What::Path { inode, watch: event.watch, names },
    };
    ("path", what, detail)
}

/// A mount names its source first, an unmount has one path only.
fn onto([first, second]: [String; 2]) -> String {
    if second.is_empty() { first } else { second }
}

fn entry_act(entry: &decode::Entry) -> (&'static str, What, String) {
    let key = |ino| InodeKey { dev: if ino == 0 { 0 } else { entry.dev }, ino };
    let hook = hook_name(entry.header.hook);
    let names: Vec<_> = entry.names.iter().filter(|name| !name.is_empty()).map(|name| shown(name)).collect();
    let detail = format!("{hook} {}", names.join(" -> "));
    match entry.header.hook {
        hook::SB_MOUNT | hook::MOVE_MOUNT | hook::SB_UMOUNT | hook::PIVOT_ROOT => {
            ("mount", What::Mount { onto: entry.names[1].clone() }, detail)
        }
        hook::INODE_SETATTR => ("attributes", What::Done { inode: key(entry.ino) }, detail),
        _ => {
            let inodes = [key(entry.ino), key(entry.to_ino)];
            let dirs = [key(entry.dir_ino), key(entry.to_dir_ino)];
            // A symbolic link's target is text of any length: its last component is what may be a name here.
            let names = entry.names.each_ref().map(|name| base(name).to_owned());
            ("entry", What::Entry { inodes, dirs, watch: entry.watch, names }, detail)
        }
    }
}

fn call(number: u32, compat: bool) -> String {
    // A security hook sees the file, not the call.
    if number == u32::MAX {
        return "opened".to_owned();
    }
    decode::syscall_name(number, compat).map_or_else(|| format!("system call {number}"), str::to_owned)
}

fn shown(path: &str) -> String {
    escape_to(path, 256)
}

fn base(path: &str) -> &str {
    detect::base(path.trim_end_matches('/'))
}
