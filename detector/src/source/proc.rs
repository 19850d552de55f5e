//! What was there before the agent: the host, its processes and cgroups, and who holds a watched file open.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use detector_common::ARGV_MAX;
use nix::time::{ClockId, clock_gettime};
use procfs::process::{self, Process};

use super::kubelet;
use crate::record::{BootNs, HookState, InodeKey, Policy, ProcessSeed, SharedNamespaces, Start};

/// Most cgroups read at start, against a tree that somebody made endless.
const CGROUPS_MAX: usize = 65_536;

/// `CLOCK_BOOTTIME`, the clock of every record.
#[must_use]
pub fn now() -> BootNs {
    BootNs(clock(ClockId::CLOCK_BOOTTIME))
}

fn clock(id: ClockId) -> u64 {
    // Neither clock can fail on a kernel that runs BPF ring buffers.
    let Ok(time) = clock_gettime(id) else { return 0 };
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0))
}

/// The opening record's content: this host, now.
#[must_use]
pub fn start(hooks: &[HookState], node: Option<String>) -> Start {
    let uname = nix::sys::utsname::uname().ok();
    let field = |of: Option<&std::ffi::OsStr>| of.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    Start {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        node: node.unwrap_or_else(|| field(uname.as_ref().map(|uname| uname.nodename()))),
        kernel: field(uname.as_ref().map(|uname| uname.release())),
        boot_time_ns: clock(ClockId::CLOCK_REALTIME).saturating_sub(clock(ClockId::CLOCK_BOOTTIME)),
        host_mnt_ns: host_namespace("mnt"),
        host_pid_ns: host_namespace("pid"),
        host_shared: shared_namespaces(host_namespace),
        hooks: hooks.to_vec(),
        policy: Policy::default(),
        own: None,
    }
}

/// Whether this process has the pids by which the kernel's records speak; as far as that can be told. The number of the initial pid
/// namespace is `PID_NS_INIT_INO` of `linux/nsfs.h`, the same since 3.8.
#[must_use]
pub fn in_initial_pid_namespace() -> bool {
    matches!(namespace(Path::new("/proc/self/ns/pid")), 0 | 0xEFFF_FFFC)
}

/// The initial process's namespace, or kthreadd's where the initial process may not be looked at (it holds
/// capabilities that the agent does not); 0 when neither can be read.
fn host_namespace(which: &str) -> u32 {
    let of = |pid: u32| namespace(Path::new(&format!("/proc/{pid}/ns/{which}")));
    let kthreadd = fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm.trim_end() == "kthreadd");
    [of(1), if kthreadd { of(2) } else { 0 }].into_iter().find(|inode| *inode != 0).unwrap_or(0)
}

/// Inode number of a namespace link; 0 when it cannot be read.
fn namespace(link: &Path) -> u32 {
    fs::metadata(link).ok().and_then(|found| u32::try_from(found.ino()).ok()).unwrap_or(0)
}

/// What was there before.
#[derive(Debug, Default)]
pub struct Seeds {
    /// Ids and paths of the v2 hierarchy.
    pub cgroups: Vec<(u64, String)>,
    /// By start, so that a parent comes before its child.
    pub processes: Vec<ProcessSeed>,
}

/// Reads which cgroups and processes there are.
///
/// A process that ends while it is read is left out; what of it cannot be read stays empty.
///
/// # Errors
/// When `/proc` itself cannot be listed.
pub fn seed() -> Result<Seeds, procfs::ProcError> {
    let root = cgroup2_root();
    let (cgroups, members) = root.as_deref().map(cgroups).unwrap_or_default();
    let mut processes: Vec<_> =
        process::all_processes()?.filter_map(Result::ok).filter_map(|found| read_process(&found, &members)).collect();
    processes.sort_by_key(|found| (found.start, found.pid));
    Ok(Seeds { cgroups, processes })
}

fn read_process(found: &Process, cgroups: &BTreeMap<u32, u64>) -> Option<ProcessSeed> {
    let stat = found.stat().ok()?;
    let mut argv = Vec::new();
    let mut kept = 0;
    let mut argv_truncated = false;
    for arg in found.cmdline().unwrap_or_default() {
        kept += arg.len() + 1;
        if kept > ARGV_MAX {
            argv_truncated = true;
            break;
        }
        argv.push(arg);
    }
    let exe = found.exe().map(|path| path.to_string_lossy().into_owned());
    let root = PathBuf::from(format!("/proc/{}/ns", found.pid()));
    let pid = u32::try_from(stat.pid).ok()?;
    Some(ProcessSeed {
        pid,
        start: stat.starttime,
        parent_pid: u32::try_from(stat.ppid).unwrap_or(0),
        parent_start: None,
        // Kernel threads have no executable.
        exe: exe.unwrap_or_else(|_| format!("[{}]", stat.comm)),
        argv,
        argv_truncated,
        uid: found.status().map(|status| status.ruid).unwrap_or(0),
        login_uid: found.loginuid().ok().filter(|uid| *uid != u32::MAX),
        tty: terminal(stat.tty_nr),
        cgroup_id: cgroups.get(&pid).copied().unwrap_or(0),
        mnt_ns: namespace(&root.join("mnt")),
        pid_ns: namespace(&root.join("pid")),
        shared: shared_namespaces(|which| namespace(&root.join(which))),
        inner_pid: inner_pid(found.pid()),
        exited: None,
        again: false,
    })
}

fn shared_namespaces(of: impl Fn(&str) -> u32) -> SharedNamespaces {
    SharedNamespaces { net: of("net"), ipc: of("ipc"), uts: of("uts"), cgroup: of("cgroup"), user: of("user") }
}

/// The last of `NSpid` in `/proc/<pid>/status`: the pid in the innermost namespace; 0 when it cannot be read.
fn inner_pid(pid: i32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    pids.and_then(|pids| pids.split_whitespace().last()?.parse().ok()).unwrap_or(0)
}

/// Name of a terminal by its device number, as the kernel calls it: `pts3`, `tty1`, `ttyS0`.
fn terminal(number: i32) -> Option<String> {
    let number = u32::try_from(number).ok().filter(|number| *number != 0)?;
    let major = number >> 8 & 0xfff;
    let minor = number & 0xff | number >> 12 & 0xfff00;
    Some(match major {
        136..=143 => format!("pts{}", (major - 136) * 256 + minor),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        _ => format!("{major}:{minor}"),
    })
}

/// Ids and paths of the cgroups of a v2 hierarchy, and which process is in which.
///
/// Each cgroup is asked for its processes, and not each process for its cgroup: what `/proc/<pid>/cgroup` says is relative to
/// the reader's cgroup namespace, and an agent in a container has one of its own.
fn cgroups(root: &Path) -> (Vec<(u64, String)>, BTreeMap<u32, u64>) {
    let (mut found, mut members) = (Vec::new(), BTreeMap::new());
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(metadata) = fs::metadata(&dir) else { continue };
        let path = dir.strip_prefix(root).map(|below| format!("/{}", below.display())).unwrap_or_default();
        let id = metadata.ino();
        found.push((id, path));
        // Fails for a threaded cgroup: its processes are listed by the one above it.
        let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        members.extend(pids.lines().filter_map(|pid| Some((pid.parse().ok()?, id))));
        if found.len() >= CGROUPS_MAX {
            break;
        }
        let entries = fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok);
        todo.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    (found, members)
}

/// Where the v2 hierarchy is mounted on the host, as this process reaches it: in a container, what is mounted shows the
/// container's own part of it.
#[must_use]
pub fn cgroup2_root() -> Option<PathBuf> {
    let host = kubelet::host_root(Path::new("/proc"));
    // The process through which the host is seen.
    let process = host.parent().map_or_else(Process::myself, |dir| Process::new_with_root(dir.to_owned()));
    let mounts = process.and_then(|process| process.mountinfo()).ok()?;
    let mount = mounts.0.into_iter().find(|mount| mount.fs_type == "cgroup2")?;
    Some(host.join(mount.mount_point.strip_prefix("/").unwrap_or(&mount.mount_point)))
}

/// Block devices that the file systems of these inodes lie on, in the kernel's encoding: the device, the disk of a partition,
/// what a mapped device is made of.
#[must_use]
pub fn devices_under<'a>(inodes: impl Iterator<Item = &'a InodeKey>) -> BTreeSet<u32> {
    /// Most devices followed: a mapped device is made of a few.
    const DEVICES_MAX: usize = 64;
    let mut found = BTreeSet::new();
    // Major 0 is no device.
    let mut todo: Vec<u32> =
        inodes.map(|inode| inode.dev).filter(|dev| dev >> 20 != 0).collect::<BTreeSet<_>>().into_iter().collect();
    while let Some(dev) = todo.pop() {
        if found.len() >= DEVICES_MAX || !found.insert(dev) {
            continue;
        }
        let dir = PathBuf::from(format!("/sys/dev/block/{}:{}", dev >> 20, dev & 0xf_ffff));
        let slaves = fs::read_dir(dir.join("slaves")).into_iter().flatten().filter_map(Result::ok);
        let below = slaves.map(|slave| slave.path().join("dev"));
        // A partition's directory lies in its disk's.
        let disk = dir.join("partition").exists().then(|| dir.join("../dev"));
        todo.extend(below.chain(disk).filter_map(|file| parse_device(&fs::read_to_string(file).ok()?)));
    }
    found
}

/// `major:minor` in the kernel's encoding.
fn parse_device(text: &str) -> Option<u32> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()? & 0xf_ffff)
}

/// Whether some process may hold one of `inodes` open for writing.
///
/// Compares inode numbers alone (a device number is not the kernel's own on every file system): it may say yes too
/// often, never no. Costs a `stat` for each open file on the node: only called when an inode becomes watched.
#[must_use]
pub fn has_writer(inodes: &BTreeMap<InodeKey, u32>) -> bool {
    let numbers: BTreeSet<u64> = inodes.keys().map(|inode| inode.ino).collect();
    let Ok(all) = process::all_processes() else { return false };
    all.filter_map(Result::ok)
        .filter_map(|found| fs::read_dir(format!("/proc/{}/fd", found.pid())).ok())
        .flatten()
        .filter_map(Result::ok)
        .any(|fd| {
            // The link's own permissions say how the file was opened.
            let writable = fd.metadata().is_ok_and(|link| link.mode() & 0o200 != 0);
            writable && fs::metadata(fd.path()).is_ok_and(|file| numbers.contains(&file.ino()))
        })
}
