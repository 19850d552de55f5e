//! The file system as another process sees it: paths resolved inside its root, in its mount namespace, without escaping.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, major, minor};

use crate::record::InodeKey;

/// Most symbolic links followed for one path, as in the kernel.
const MAX_HOPS: usize = 40;

/// Tries of an `openat2` that raced with a rename or a mount.
const RACES: usize = 8;

/// Where paths are resolved: opened once and meant for one scan, so that a root that changes is seen by the next one.
pub(super) struct Root {
    fd: OwnedFd,
    mountinfo: PathBuf,
    /// Kernel device numbers by mount id, read when first needed.
    devices: OnceCell<HashMap<u64, u32>>,
}

/// A path walked component by component.
pub(super) struct Walk {
    /// What the path leads to, every symbolic link followed.
    pub target: Result<(OwnedFd, FileStat), Errno>,
    /// Every directory in which a component was looked up, in order: replacing an entry of one can change the target.
    pub dirs: Vec<InodeKey>,
}

impl Root {
    /// Opens the root directory at `root` (`/`, or `/proc/<pid>/root`), of which `mountinfo` lists the mounts.
    pub fn open(root: &Path, mountinfo: PathBuf) -> nix::Result<Self> {
        let fd = open(root, PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        Ok(Self { fd, mountinfo, devices: OnceCell::new() })
    }

    /// Opens the root of the process whose `/proc/<pid>` directory is `process`: fails when that very process is gone,
    /// even if another one has its pid by now.
    pub fn of_process(process: &OwnedFd) -> nix::Result<Self> {
        let fd = openat(process, "root", PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        let mountinfo = PathBuf::from(format!("/proc/self/fd/{}/mountinfo", process.as_raw_fd()));
        Ok(Self { fd, mountinfo, devices: OnceCell::new() })
    }

    /// Opens `path` without access to its content (`O_PATH`), symbolic links followed inside the root.
    pub fn find(&self, path: &Path) -> nix::Result<OwnedFd> {
        let how = OpenHow::new().flags(PATH_ONLY).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let mut result = Err(Errno::EAGAIN);
        for _ in 0..RACES {
            result = openat2(&self.fd, path, how);
            if !matches!(result, Err(Errno::EAGAIN | Errno::EINTR)) {
                break;
            }
        }
        result
    }

    /// The status of what `path` leads to.
    pub fn stat(&self, path: &Path) -> nix::Result<FileStat> {
        fstat(self.find(path)?)
    }

    /// Walks `path` by hand, one component at a time and never through more than one link at once, so that each
    /// directory on the way is known. `..` above the root stays at the root; `/proc/<pid>/root` is the root.
    pub fn walk(&self, path: &Path) -> Walk {
        let mut dirs = Vec::new();
        let target = self.walk_into(path, &mut dirs);
        Walk { target, dirs }
    }

    fn walk_into(&self, path: &Path, dirs: &mut Vec<InodeKey>) -> Result<(OwnedFd, FileStat), Errno> {
        let mut todo = Vec::new();
        push_components(&mut todo, path);
        let mut above: Vec<OwnedFd> = Vec::new();
        let mut hops = 0;
        while let Some(component) = todo.pop() {
            let here = above.last().unwrap_or(&self.fd);
            if component == ".." {
                above.pop();
                continue;
            }
            let key = self.inode(here, &fstat(here)?);
            if !dirs.contains(&key) {
                dirs.push(key);
            }
            let fd = openat(here, component.as_os_str(), PATH_ONLY | OFlag::O_NOFOLLOW, Mode::empty())?;
            let stat = fstat(&fd)?;
            match file_type(&stat) {
                SFlag::S_IFLNK => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return Err(Errno::ELOOP);
                    }
                    let link = PathBuf::from(readlinkat(&fd, "")?);
                    if link.is_absolute() {
                        above.clear();
                    }
                    push_components(&mut todo, &link);
                }
                SFlag::S_IFDIR => above.push(fd),
                _ if todo.is_empty() => return Ok((fd, stat)),
                _ => return Err(Errno::ENOTDIR),
            }
        }
        let dir = match above.pop() {
            Some(dir) => dir,
            None => self.fd.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or_default()))?,
        };
        let stat = fstat(&dir)?;
        Ok((dir, stat))
    }

    /// Names an open inode as the kernel does.
    ///
    /// `st_dev` is the kernel's `s_dev` on file systems with a block device. Others (btrfs subvolumes, overlay) may show
    /// a made-up one, so there the mount says which device it is and `fdinfo` which inode. Falls back to `st_*`.
    pub fn inode(&self, fd: impl AsFd, stat: &FileStat) -> InodeKey {
        let plain = InodeKey { dev: kernel_dev(stat), ino: stat.st_ino };
        if major(stat.st_dev) != 0 {
            return plain;
        }
        let Ok(info) = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())) else {
            return plain;
        };
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let devices = self.devices.get_or_init(|| mount_devices(&self.mountinfo));
        let dev = field("mnt_id:").and_then(|id| devices.get(&id).copied());
        match dev {
            Some(dev) => InodeKey { dev, ino: field("ino:").unwrap_or(stat.st_ino) },
            None => plain,
        }
    }
}

const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// The type bits of a file's mode.
pub(super) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// What a file that is no regular file is called.
pub(super) fn type_name(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFLNK => "a symbolic link",
        SFlag::S_IFIFO => "a fifo",
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFCHR => "a character device",
        SFlag::S_IFBLK => "a block device",
        _ => "of an unknown type",
    }
}

/// Opens for reading what `fd` (an `O_PATH` one, of a regular file) refers to. Does not wait for a writer or a lease.
pub(super) fn reopen(fd: &OwnedFd) -> io::Result<File> {
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY).bits())
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Where the directory that `fd` refers to can be listed.
pub(super) fn listable(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Reads a whole regular file below `root`, when it has at most `limit` bytes.
///
/// # Errors
/// When the path cannot be resolved, is no regular file, cannot be read, or is longer.
pub(super) fn read_file(root: &Root, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let fd = root.walk(path).target?.0;
    let kind = file_type(&fstat(&fd)?);
    if kind != SFlag::S_IFREG {
        return Err(io::Error::other(type_name(kind)));
    }
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    reopen(&fd)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::other("too long"));
    }
    Ok(bytes)
}

/// The kernel's own encoding of `st_dev`: `major << 20 | minor`.
fn kernel_dev(stat: &FileStat) -> u32 {
    let (major, minor) = (major(stat.st_dev), minor(stat.st_dev));
    // Both fit: the kernel has 12 bits for the major and 20 for the minor number.
    ((major as u32) << 20) | (minor as u32 & 0xf_ffff)
}

/// `mountinfo`: `36 35 98:0 /mnt1 /mnt2 ...`: mount id, parent, `major:minor` of the superblock's device.
fn mount_devices(mountinfo: &Path) -> HashMap<u64, u32> {
    let bytes = std::fs::read(mountinfo).unwrap_or_default();
    let parse = |line: &[u8]| {
        let text = std::str::from_utf8(line.get(..line.len().min(64))?.split(|b| *b == b'/').next()?).ok()?;
        let mut fields = text.split_ascii_whitespace();
        let id = fields.next()?.parse().ok()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        Some((id, (major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?))
    };
    bytes.split(|b| *b == b'\n').filter_map(parse).collect()
}

/// Puts the components of `path` on top of the stack, the first one uppermost.
fn push_components(todo: &mut Vec<OsString>, path: &Path) {
    let from = todo.len();
    todo.extend(path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_os_string()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    }));
    todo[from..].reverse();
}

/// Whether kubelet ignores an entry of that name.
pub(super) fn hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn root(dir: &Path) -> Root {
        Root::open(dir, PathBuf::from("/proc/self/mountinfo")).unwrap()
    }

    #[test]
    fn links_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/file"), "in").unwrap();
        symlink("/a/file", dir.path().join("a/b/absolute")).unwrap();
        symlink("../../../../../a/file", dir.path().join("a/b/dots")).unwrap();
        let root = root(dir.path());
        let want = std::fs::metadata(dir.path().join("a/file")).unwrap().ino();
        for link in ["/a/b/absolute", "/a/b/dots", "../a/b/../b/absolute"] {
            let walk = root.walk(Path::new(link));
            assert_eq!(walk.target.unwrap().1.st_ino, want, "{link}");
            assert_eq!(root.stat(Path::new(link)).unwrap().st_ino, want, "{link}");
        }
        let walk = root.walk(Path::new("/a/b/absolute"));
        assert_eq!(walk.dirs.len(), 3, "the root, a and b: {:?}", walk.dirs);
    }

    #[test]
    fn a_link_to_itself_ends() {
        let dir = tempfile::tempdir().unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        assert_eq!(root(dir.path()).walk(Path::new("/loop")).target.unwrap_err(), Errno::ELOOP);
    }

    #[test]
    fn a_fifo_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).unwrap();
        assert!(read_file(&root(dir.path()), Path::new("/fifo"), 10).is_err());
    }

    #[test]
    fn mountinfo_gives_the_devices_of_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mountinfo");
        std::fs::write(&file, "36 35 98:7 / /mnt rw - ext4 /dev/x rw\ngarbage\n40 1 0:52 / / rw - btrfs x rw\n")
            .unwrap();
        assert_eq!(mount_devices(&file), HashMap::from([(36, 98 << 20 | 7), (40, 52)]));
    }
}
