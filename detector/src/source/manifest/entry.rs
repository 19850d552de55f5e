//! One entry of a manifest directory: what is known about it, and how it is read.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use sha2::{Digest, Sha256};

use crate::manifest;
use crate::record::{InodeKey, MANIFEST_KEEP, ManifestFile};
use crate::source::hex;
use crate::source::root::{Root, file_type, reopen, type_name};

/// Most bytes that are read: kubelet refuses longer files (`maxConfigLength`).
const MAX_READ: u64 = 10 * 1024 * 1024;

/// What shows that an inode may have changed, without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    dev: u64,
    ino: u64,
    size: i64,
    mode: u32,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

/// A quick look at an entry.
pub(super) enum Glance {
    /// Gone, or a directory: kubelet skips those.
    Nothing,
    /// What the entry leads to (all zero when it leads nowhere), and the link itself when it is one.
    Entry { target: Stamp, link: Option<Stamp> },
}

/// An entry as last reported. Without its content: ten thousand of these have to fit into a few MiB.
#[derive(Debug)]
pub(super) struct Entry {
    pub inode: InodeKey,
    pub stamp: Stamp,
    link: Option<Box<Link>>,
    hash: Option<[u8; 32]>,
    uid: u32,
    truncated: bool,
    unreadable: Option<Box<str>>,
    /// Read so soon after a change that another one in the same clock tick would not show.
    pub recheck: bool,
    pub generation: u32,
}

#[derive(Debug)]
struct Link {
    own: Stamp,
    text: Box<str>,
    /// Directories on the way to the target.
    dirs: Box<[InodeKey]>,
}

/// An entry that is open and not yet read.
pub(super) struct Opened {
    pub entry: Entry,
    file: Option<OwnedFd>,
}

/// Looks at the entry `name` of the directory that is open as `dir` and whose path is `path`.
pub(super) fn glance(root: &Root, dir: &OwnedFd, path: &Path, name: &OsStr) -> Glance {
    let own = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::ENOENT) => return Glance::Nothing,
        Err(_) => return Glance::Entry { target: Stamp::default(), link: None },
    };
    match file_type(&own) {
        SFlag::S_IFDIR => Glance::Nothing,
        SFlag::S_IFLNK => {
            let path = path.join(name);
            // One call for the usual link; those through /proc/<pid>/root need the long way.
            let target = root.stat(&path).or_else(|_| root.walk(&path).target.map(|(_, stat)| stat));
            match target {
                Ok(stat) if file_type(&stat) == SFlag::S_IFDIR => Glance::Nothing,
                Ok(stat) => Glance::Entry { target: Stamp::of(&stat), link: Some(Stamp::of(&own)) },
                Err(_) => Glance::Entry { target: Stamp::default(), link: Some(Stamp::of(&own)) },
            }
        }
        _ => Glance::Entry { target: Stamp::of(&own), link: None },
    }
}

/// Opens the entry; `None` when it is gone or is a directory.
pub(super) fn open(root: &Root, dir: &OwnedFd, path: &Path, name: &OsStr) -> Option<Opened> {
    let own = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = match openat(dir, name, own, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return None,
        Err(error) => return Some(Opened { entry: Entry::unreadable(error), file: None }),
    };
    let stat = match fstat(&fd) {
        Ok(stat) => stat,
        Err(error) => return Some(Opened { entry: Entry::unreadable(error), file: None }),
    };
    if file_type(&stat) != SFlag::S_IFLNK {
        return opened(root, fd, &stat, None);
    }
    let text = readlinkat(&fd, "").map(PathBuf::from).unwrap_or_default();
    let walk = root.walk(&path.join(name));
    let link = Box::new(Link {
        own: Stamp::of(&stat),
        text: text.to_string_lossy().into(),
        dirs: walk.dirs.into_boxed_slice(),
    });
    match walk.target {
        Ok((fd, stat)) => opened(root, fd, &stat, Some(link)),
        Err(error) => Some(Opened { entry: Entry { link: Some(link), ..Entry::unreadable(error) }, file: None }),
    }
}

fn opened(root: &Root, fd: OwnedFd, stat: &FileStat, link: Option<Box<Link>>) -> Option<Opened> {
    let kind = file_type(stat);
    let regular = kind == SFlag::S_IFREG;
    if kind == SFlag::S_IFDIR {
        return None;
    }
    let entry = Entry {
        inode: root.inode(&fd, stat),
        stamp: Stamp::of(stat),
        link,
        hash: None,
        uid: stat.st_uid,
        truncated: false,
        unreadable: (!regular).then(|| type_name(kind).into()),
        recheck: false,
        generation: 0,
    };
    Some(Opened { entry, file: regular.then_some(fd) })
}

impl Opened {
    /// Reads it: the entry with its digest, and the content to keep.
    pub fn read(self) -> (Entry, Vec<u8>) {
        let Self { mut entry, file } = self;
        let mut content = Vec::new();
        if let Some(fd) = file {
            match digest(&fd, &mut content) {
                Ok((hash, true)) => entry.hash = Some(hash),
                Ok((hash, false)) => {
                    entry.hash = Some(hash);
                    entry.truncated = true;
                    entry.unreadable = Some("exceeds 10 MiB: kubelet refuses it".into());
                }
                Err(error) => {
                    content = Vec::new();
                    entry.unreadable = Some(error.to_string().into());
                }
            }
        }
        (entry, content)
    }
}

/// Hashes at most [`MAX_READ`] bytes and keeps the first of them; false when there are more.
fn digest(fd: &OwnedFd, content: &mut Vec<u8>) -> std::io::Result<([u8; 32], bool)> {
    let mut file = reopen(fd)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 64 * 1024];
    let mut left = MAX_READ;
    loop {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        if want == 0 {
            let whole = file.read(&mut chunk[..1])? == 0;
            return Ok((hasher.finalize().into(), whole));
        }
        let n = match file.read(&mut chunk[..want]) {
            Ok(0) => return Ok((hasher.finalize().into(), true)),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = &chunk[..n];
        hasher.update(bytes);
        content.extend_from_slice(&bytes[..n.min(MANIFEST_KEEP - content.len())]);
        left -= n as u64;
    }
}

impl Stamp {
    fn of(stat: &FileStat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size,
            mode: stat.st_mode,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

impl Entry {
    fn unreadable(error: Errno) -> Self {
        Self {
            inode: InodeKey::default(),
            stamp: Stamp::default(),
            link: None,
            hash: None,
            uid: 0,
            truncated: false,
            unreadable: Some(error.desc().into()),
            recheck: false,
            generation: 0,
        }
    }

    /// Whether a look at the entry gives reason to read it again.
    pub fn differs(&self, target: &Stamp, link: Option<&Stamp>) -> bool {
        self.stamp != *target || self.link.as_deref().map(|link| &link.own) != link
    }

    /// Whether it may become readable without a visible change (a lease that ends, a link whose target appears).
    pub fn is_unreadable(&self) -> bool {
        self.unreadable.is_some() && !self.truncated
    }

    /// Whether kubelet would read the same.
    pub fn same_content(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.unreadable == other.unreadable
            && self.link.as_deref().map(|link| &link.text) == other.link.as_deref().map(|link| &link.text)
    }

    /// Whether the kernel has to watch the same inodes.
    pub fn same_places(&self, other: &Self) -> bool {
        self.inode == other.inode
            && self.link.as_deref().map(|link| &link.dirs) == other.link.as_deref().map(|link| &link.dirs)
    }

    /// Whether content read for it looks as if its writer were not done.
    pub fn looks_unfinished(&self, content: &[u8]) -> bool {
        // What was cut off here says nothing about the writer.
        self.hash.is_some() && content.len() < MANIFEST_KEEP && manifest::parse(content).looks_unfinished()
    }

    pub fn hash(&self) -> Option<[u8; 32]> {
        self.hash
    }

    /// Directories on the way of a symbolic link.
    pub fn link_dirs(&self) -> &[InodeKey] {
        self.link.as_deref().map_or(&[], |link| &link.dirs)
    }

    /// As a record shows it. `cut` when `content` was dropped to bound a batch.
    pub fn to_record(&self, content: Bytes, cut: bool) -> ManifestFile {
        ManifestFile {
            inode: self.inode,
            symlink: self.link.as_deref().map(|link| link.text.to_string()),
            size: u64::try_from(self.stamp.size).unwrap_or(0),
            mode: self.stamp.mode,
            uid: self.uid,
            sha256: self.hash.map(|hash| hex(&hash)),
            content,
            truncated: self.truncated || cut,
            unreadable: self.unreadable.as_deref().map(str::to_owned),
        }
    }
}
