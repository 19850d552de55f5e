//! One directory: what is in it, and what became of that.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    os::fd::OwnedFd,
    path::Path,
    time::SystemTime,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{Mode, SFlag, fstat},
};

use super::{ENTRIES_MAX, SETTLES};
use crate::{
    record::{Body, BootNs, InodeKey, LogsChange, LogsRole, NodeLogs, PodRef, bounded},
    source::root::{Root, file_type, listable},
};

/// How long before a log is emptied a copy of it may have come to lie beside it, in ns.
const COPIED_NS: u64 = 10_000_000_000;
/// Bytes in a block of `st_blocks`.
const BLOCK: u64 = 512;
/// Most logs of one container that are known: kubelet keeps five of each run.
const FILES_MAX: usize = 32;

/// What a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Has a directory for each pod.
    Top,
    /// Has one for each container.
    Pod(PodRef),
    Logs {
        role: LogsRole,
        pod: Option<PodRef>,
        container: Option<String>,
    },
}

/// A directory, as last looked at.
#[derive(Debug)]
pub struct Dir {
    pub inode: InodeKey,
    pub kind: Kind,
    found: BootNs,
    pub looked: BootNs,
    /// The kernel reports acts here since before the last look: what goes away from now on was somebody's act.
    pub settled: bool,
    files: BTreeMap<InodeKey, File>,
    /// Names of directories in it, where those are of interest.
    pub children: Vec<OsString>,
}

#[derive(Clone, Debug)]
struct File {
    name: String,
    size: u64,
    /// It takes as many bytes of the disk.
    allocated: u64,
    /// When it was made, where the file system tells: its inode's number may be another file's a moment later.
    born: Option<SystemTime>,
    /// When it came; `None` when it was there when the directory was found.
    came: Option<BootNs>,
}

impl Dir {
    pub fn new(inode: InodeKey, kind: Kind, now: BootNs) -> Self {
        Self { inode, kind, found: now, looked: now, settled: false, files: BTreeMap::new(), children: Vec::new() }
    }

    /// Whether one of these is this directory, or a log in it.
    pub fn is_one_of(&self, inodes: &BTreeSet<InodeKey>) -> bool {
        inodes.contains(&self.inode) || self.files.keys().any(|inode| inodes.contains(inode))
    }

    /// Logs that are written now.
    pub fn written(&self) -> impl Iterator<Item = InodeKey> {
        let logs = matches!(&self.kind, Kind::Logs { role: LogsRole::Container, .. });
        self.files.iter().filter(move |(_, file)| logs && is_current(&file.name)).map(|(inode, _)| *inode)
    }

    /// Looks at what is in it. `fd` is its own.
    pub fn look(&mut self, root: &Root, fd: &OwnedFd, now: BootNs) -> Vec<LogsChange> {
        let names = fs::read_dir(listable(fd)).into_iter().flatten().filter_map(Result::ok);
        let names = names.take(ENTRIES_MAX).map(|entry| entry.file_name());
        let wanted = match &self.kind {
            Kind::Top | Kind::Pod(_) => {
                self.children = names.collect();
                self.settled = true;
                return Vec::new();
            }
            Kind::Logs { role: LogsRole::Links, .. } => SFlag::S_IFLNK,
            Kind::Logs { .. } => SFlag::S_IFREG,
        };
        let most = if wanted == SFlag::S_IFLNK { ENTRIES_MAX } else { FILES_MAX };
        let first = self.found == now;
        let mut seen = BTreeMap::new();
        for name in names {
            let Ok(file) =
                openat(fd, name.as_os_str(), OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
            else {
                continue;
            };
            let Ok(stat) = fstat(&file) else { continue };
            if file_type(&stat) != wanted || seen.len() >= most {
                continue;
            }
            let inode = root.inode(&file, &stat);
            let born = fs::File::from(file).metadata().and_then(|metadata| metadata.created()).ok();
            let known = self.files.get(&inode).filter(|known| known.born == born);
            let file = File {
                name: bounded(&name.to_string_lossy()),
                size: u64::try_from(stat.st_size).unwrap_or(0),
                allocated: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK),
                born,
                came: known.map_or((!first).then_some(now), |known| known.came),
            };
            seen.insert(inode, file);
        }
        let changes = if self.settled { compare(&self.files, &seen, now) } else { Vec::new() };
        self.files = seen;
        self.settled |= now.0.saturating_sub(self.found.0) >= SETTLES;
        changes
    }

    /// Those of these logs, on which somebody acted, in which nothing stands.
    pub fn empty_of<'a>(&'a self, acted: &'a BTreeSet<InodeKey>) -> impl Iterator<Item = LogsChange> + 'a {
        let empty = self.files.iter().filter(|(inode, file)| file.size == 0 && acted.contains(inode));
        empty.map(|(inode, _)| LogsChange::Empty { inode: *inode })
    }

    /// The directory is gone, and everything in it.
    pub fn empty(&mut self) -> Vec<LogsChange> {
        let files = std::mem::take(&mut self.files);
        if self.settled { compare(&files, &BTreeMap::new(), self.looked) } else { Vec::new() }
    }

    /// What is told of a change; nothing of directories of directories.
    pub fn body(&self, path: &Path, change: LogsChange) -> Option<Body> {
        let Kind::Logs { role, pod, container } = &self.kind else { return None };
        Some(Body::NodeLogs(Box::new(NodeLogs {
            path: bounded(&path.to_string_lossy()),
            dir: self.inode,
            role: *role,
            pod: pod.clone(),
            container: container.clone(),
            change,
            since: self.looked,
        })))
    }
}

/// What became of files between two looks.
fn compare(before: &BTreeMap<InodeKey, File>, after: &BTreeMap<InodeKey, File>, now: BootNs) -> Vec<LogsChange> {
    let mut changes = Vec::new();
    for (inode, file) in before {
        let File { name, size, .. } = file.clone();
        match after.get(inode).filter(|is| is.born == file.born) {
            None => changes.push(LogsChange::Removed {
                rotated: !name.ends_with(".log"),
                replaced: after.values().any(|other| other.name == name),
                name,
                inode: *inode,
                had: size,
            }),
            Some(is) if is.size < size => {
                let copied = after.iter().any(|(other, copy)| {
                    let new = copy.came.is_some_and(|came| now.0.saturating_sub(came.0) <= COPIED_NS);
                    other != inode && new && copy.size >= size && copy.allocated >= size
                });
                changes.push(LogsChange::Emptied { name, inode: *inode, had: size, has: is.size, copied });
            }
            Some(_) => {}
        }
    }
    changes
}

/// `3.log`: what the runtime writes of a container's fourth run. Rotation leaves `3.log.20261125-101112`.
fn is_current(name: &str) -> bool {
    name.strip_suffix(".log").is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_log_that_has_the_number_of_one_that_is_gone_is_another() {
        let file = |name: &str, size, born| {
            let born = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(born));
            File { name: name.to_owned(), size, allocated: size, born, came: None }
        };
        let inode = InodeKey { dev: 8, ino: 12 };
        let before = BTreeMap::from([(inode, file("0.log.20261126-010203", 700, 1))]);
        let new = BTreeMap::from([(inode, file("0.log", 10, 2))]);
        let [LogsChange::Removed { name, rotated: true, had: 700, .. }] = &compare(&before, &new, BootNs(0))[..] else {
            panic!("the rotated one is gone");
        };
        assert_eq!(name, "0.log.20261126-010203");
        let emptied = BTreeMap::from([(inode, file("0.log", 10, 1))]);
        assert!(matches!(compare(&before, &emptied, BootNs(0))[..], [LogsChange::Emptied { had: 700, has: 10, .. }]));
    }
}
