//! Records as they lie in the ring buffers.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Record kinds: the first two bytes of a record.
pub mod kind {
    pub const EXEC: u16 = 1;
    pub const FORK: u16 = 2;
    pub const EXIT: u16 = 3;
    pub const OPEN: u16 = 16;
    pub const CHANGE: u16 = 17;
    pub const PATH: u16 = 18;
    pub const WRITE: u16 = 19;
    pub const IO_URING: u16 = 20;
    pub const ENTRY: u16 = 21;
    pub const MAP: u16 = 22;
    pub const PTRACE: u16 = 23;
    pub const SOCKET: u16 = 24;
    pub const BPF: u16 = 27;
    pub const SIGNAL: u16 = 28;
    pub const CONNECTION: u16 = 25;
    pub const READ: u16 = 26;
    pub const CGROUP: u16 = 32;
    pub const NAMESPACES: u16 = 33;
    pub const CGROUP_MOVE: u16 = 34;
    pub const CGROUP_GONE: u16 = 35;
}

/// Hook numbers: which program made a record, and the index into its loss counter.
pub mod hook {
    pub const EXEC: u16 = 0;
    pub const FORK: u16 = 1;
    pub const EXIT: u16 = 2;
    pub const SYS_EXIT: u16 = 3;
    pub const CTIME_SET: u16 = 4;
    pub const CTIME_XCHG: u16 = 5;
    pub const CTIME_SKIP: u16 = 6;
    pub const IO_URING_SUBMIT: u16 = 7;
    pub const CGROUP_MKDIR: u16 = 8;
    pub const CGROUP_RMDIR: u16 = 9;
    pub const CGROUP_ATTACH: u16 = 10;
    pub const NAMESPACES: u16 = 11;
    pub const SIGNAL: u16 = 15;
    pub const SOCKET_STATE: u16 = 12;
    pub const FILE_OPEN: u16 = 16;
    pub const INODE_CREATE: u16 = 17;
    pub const INODE_LINK: u16 = 18;
    pub const INODE_SYMLINK: u16 = 19;
    pub const INODE_UNLINK: u16 = 20;
    pub const INODE_MKDIR: u16 = 21;
    pub const INODE_RMDIR: u16 = 22;
    pub const INODE_MKNOD: u16 = 23;
    pub const INODE_RENAME: u16 = 24;
    pub const INODE_SETATTR: u16 = 25;
    pub const SB_MOUNT: u16 = 26;
    pub const MOVE_MOUNT: u16 = 27;
    pub const SB_UMOUNT: u16 = 28;
    pub const PIVOT_ROOT: u16 = 29;
    pub const MMAP_FILE: u16 = 30;
    pub const PTRACE: u16 = 31;
    pub const SOCKET_CREATE: u16 = 32;
    pub const SOCKET_CONNECT: u16 = 33;
    pub const BPF: u16 = 37;
    pub const SYS_EXIT_GUARD: u16 = 38;
    pub const TCP_RECEIVE: u16 = 44;
    pub const UNIX_CONNECT: u16 = 45;
    /// Slots of the per-CPU counters; more than there are hooks, so that adding one moves nothing.
    pub const COUNT: u32 = 64;
}

/// Length of `task_struct.comm`.
pub const COMM_LEN: usize = 16;
/// Most bytes of a path, as NUL-terminated components from the leaf up.
pub const PATH_MAX: usize = 1024;
/// Most bytes of an argument vector, NUL-separated as in `/proc/<pid>/cmdline`.
pub const ARGV_MAX: usize = 1024;
/// Most bytes of one path argument of a system call, its NUL included.
pub const ARG_PATH_MAX: usize = 256;
/// Most bytes of one path component, its NUL included.
pub const NAME_MAX: usize = 256;

/// Set in `flags` of a body when a path has more components or bytes than fit.
pub const PATH_TRUNCATED: u32 = 1 << 0;
/// Set in `flags` of a body when an argument vector has more bytes than fit.
pub const ARGV_TRUNCATED: u32 = 1 << 1;
/// The exec record's file has no link left or lies in memory only (`memfd`, unlinked).
pub const EXE_DELETED: u32 = 1 << 2;

/// The exec record's file lies in the upper layer of an overlay: a container's own, and not its image's.
pub const EXE_UPPER: u32 = 1 << 4;
/// The exec record's file lies in a tmpfs or ramfs.
pub const EXE_TMPFS: u32 = 1 << 5;
/// The exec record's file was made by `memfd_create`: it never had a name in a directory.
pub const EXE_MEMFD: u32 = 1 << 6;

/// Set in `flags` of an open or entry that an LSM program refused.
pub const DENIED: u32 = 1 << 3;

/// What every record starts with: the acting task, and when.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Header {
    /// One of [`kind`].
    pub kind: u16,
    /// One of [`hook`].
    pub hook: u16,
    /// Length of the record in bytes, header and tail included.
    pub len: u32,
    /// `CLOCK_BOOTTIME` in ns.
    pub time_ns: u64,
    /// `start_boottime` of the thread group's leader in ns: with `tgid`, the process.
    pub start_ns: u64,
    /// Id of the task's cgroup in the v2 hierarchy: the inode number of its directory.
    pub cgroup: u64,
    /// The process, in the initial pid namespace.
    pub tgid: u32,
    /// The thread, in the initial pid namespace.
    pub tid: u32,
    /// Real user id, in the initial user namespace.
    pub uid: u32,
    /// Audit login uid; `u32::MAX` when unset.
    pub login_uid: u32,
    /// Inode number of the mount namespace; 0 when the task has none left.
    pub mnt_ns: u32,
    /// Inode number of the pid namespace that the task lives in; 0 when it has none left.
    pub pid_ns: u32,
    pub comm: [u8; COMM_LEN],
}

/// A program was executed. Tail: `path_len` bytes of path, then `argv_len` bytes of arguments.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Exec {
    pub header: Header,
    /// Inode of the executed file.
    pub ino: u64,
    pub parent_start_ns: u64,
    pub parent_tgid: u32,
    pub dev: u32,
    /// `PATH_TRUNCATED`, `ARGV_TRUNCATED`, `EXE_DELETED`, `EXE_UPPER`, `EXE_TMPFS`, `EXE_MEMFD`.
    pub flags: u32,
    pub path_len: u16,
    pub argv_len: u16,
    /// Controlling terminal's name, NUL-padded; empty when there is none.
    pub tty: [u8; 16],
    pub shared: Shared,
    /// Its pid in the pid namespace that it lives in.
    pub inner_pid: u32,
}

/// Namespaces that the containers of a pod may share, by inode number; 0 when the kernel was built without one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Shared {
    pub net: u32,
    pub ipc: u32,
    pub uts: u32,
    pub cgroup: u32,
    pub user: u32,
}

/// A process was made; the header is the parent's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Fork {
    pub header: Header,
    pub child_start_ns: u64,
    pub child_tgid: u32,
    pub zero: u32,
    /// The real parent by the kernel's books (`CLONE_PARENT` makes it another than the header's task).
    pub parent_start_ns: u64,
    pub parent_tgid: u32,
    pub zero2: u32,
}

/// The last thread of a process ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Exit {
    pub header: Header,
    /// As `wait(2)` reports it.
    pub code: u32,
    pub zero: u32,
}

/// A watched file, or a file below a watched directory, was opened for writing (`kind::OPEN`), written through a
/// descriptor that is older than the watch (`kind::WRITE`), or mapped so that it can be written (`kind::MAP`); or a secret was
/// opened for reading (`kind::READ`). Tail: `path_len` bytes of path.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Open {
    pub header: Header,
    pub ino: u64,
    /// The directory that holds the file.
    pub parent_ino: u64,
    pub dev: u32,
    /// System call number, as the task's ABI counts; `u32::MAX` when a security hook saw it.
    pub syscall: u32,
    /// `file->f_mode`.
    pub mode: u32,
    /// `file->f_flags`.
    pub open_flags: u32,
    /// Flags of the watched inode that matched.
    pub watch: u32,
    /// `PATH_TRUNCATED`, `DENIED`.
    pub flags: u32,
    pub path_len: u16,
    pub zero: [u8; 6],
}

/// A watched inode's change time was moved: content, links or directory entries changed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Change {
    pub header: Header,
    pub ino: u64,
    pub dev: u32,
    pub watch: u32,
}

/// A system call that names paths, mounts, or completes a change, succeeded. Tail: `len[0]` then `len[1]` bytes of path
/// arguments as the caller passed them (hints: another thread may have changed them since).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct PathCall {
    pub header: Header,
    /// The watched inode that the call changed; 0 when unknown.
    pub ino: u64,
    pub dev: u32,
    /// Flags of that inode; 0 when unknown.
    pub watch: u32,
    pub syscall: u32,
    /// Class of the call: one of [`crate::syscall`].
    pub class: u32,
    pub len: [u16; 2],
    /// 1 when a 32-bit caller's number is in `syscall`.
    pub compat: u32,
}

/// A security hook: an entry of a watched directory, an attribute of a watched inode or a mount is about to change. Which
/// of them the hook number says. Both names are NUL-terminated.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Entry {
    pub header: Header,
    /// What the entry leads to, or the mount point; 0 when there is nothing yet.
    pub ino: u64,
    /// The directory that holds the entry.
    pub dir_ino: u64,
    /// Renames: what stands at the new name.
    pub to_ino: u64,
    /// Renames and links: the directory of the new name.
    pub to_dir_ino: u64,
    pub dev: u32,
    /// Flags of the watched inodes that matched.
    pub watch: u32,
    /// [`DENIED`].
    pub flags: u32,
    /// `iattr->ia_valid` for attributes.
    pub attributes: u32,
    /// Name of the entry; for mounts, what is mounted. Then the new name, a symbolic link's target, or the mount point's name.
    pub names: [[u8; NAME_MAX]; 2],
}

/// Somebody asks to trace, or to write the memory of, a protected process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Ptrace {
    pub header: Header,
    pub target_start_ns: u64,
    pub target_tgid: u32,
    /// `PTRACE_MODE_*`.
    pub mode: u32,
}

/// What [`Bpf`] tells of: the `object` of a record, and the upper half of a key of the `OURS` map.
pub mod object {
    pub const MAP: u32 = 1;
    pub const PROGRAM: u32 = 2;
    pub const LINK: u32 = 3;
}

/// Somebody else uses `bpf(2)` on an object of the agent: gets a descriptor of it, or changes it. A security hook tells of it
/// before, `sys_exit` after.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Bpf {
    pub header: Header,
    /// `enum bpf_cmd`.
    pub command: u32,
    /// One of [`object`].
    pub object: u32,
    /// The kernel's id of it.
    pub id: u32,
    pub zero: u32,
}

/// A signal for the agent that may end or stop it; the header is the sender's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Signal {
    pub header: Header,
    pub target_start_ns: u64,
    pub target_tgid: u32,
    pub signal: u32,
    /// `siginfo_t.si_code`; `SI_KERNEL` (0x80) when the kernel sends it in the name of whoever runs.
    pub code: i32,
    /// 1 when it is for a whole process, 0 for a thread.
    pub group: u32,
    /// `TRACE_SIGNAL_*`: 0 when it was delivered.
    pub result: u32,
    pub zero: u32,
}

/// What [`Socket`] tells of.
pub mod socket {
    /// One is made.
    pub const CREATE: u32 = 1;
    pub const CONNECT: u32 = 2;
    pub const BIND: u32 = 3;
    /// One of these, by a 32-bit caller's `socketcall`, which does not show what.
    pub const ANY: u32 = 4;
    /// Any task connects to a socket by which a container runtime is asked. Its inode is in the arguments: device, lower and
    /// upper half of the number; there is no address.
    pub const RUNTIME: u32 = 5;
}

/// Most bytes of a socket's address: a whole `sockaddr_in6`.
pub const ADDRESS_MAX: usize = 28;

/// A task in a sandbox makes, connects or binds a socket. A security hook tells of it before, `sys_exit` after.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Socket {
    pub header: Header,
    /// One of [`socket`].
    pub call: u32,
    /// Where one is made: `AF_*`, `SOCK_*` with its flags, `IPPROTO_*`. Else the last is the length of the address in bytes,
    /// and may be more than [`ADDRESS_MAX`].
    pub args: [u32; 3],
    /// A `struct sockaddr`, cut off where it does not fit; zero behind its end, and where none was given or read.
    pub address: [u8; ADDRESS_MAX],
    pub zero: u32,
}

/// What [`Connection`] tells of.
pub mod connection {
    /// The header's task connects.
    pub const CONNECT: u32 = 1;
    /// Somebody's connection was accepted. The kernel does that in the name of whoever runs: the header has the time alone.
    pub const ACCEPT: u32 = 2;
    /// The header's task is sent something over a connection that it has accepted.
    pub const RECEIVE: u32 = 3;
}

/// A TCP connection from or to an address that is of interest. IPv4 addresses are IPv4-mapped ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Connection {
    pub header: Header,
    /// All zero where one that connects has not been given an address yet.
    pub local: [u8; 16],
    pub remote: [u8; 16],
    /// 0 where one that connects has not been given one yet.
    pub local_port: u16,
    pub remote_port: u16,
    /// One of [`connection`].
    pub act: u32,
    /// Why it is of interest: flags of [`crate::endpoint`].
    pub endpoint: u32,
    /// Inode number of the network namespace.
    pub net_ns: u32,
}

/// An io_uring request that can change a directory or open a file was submitted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct IoUring {
    pub header: Header,
    /// `IORING_OP_*`.
    pub opcode: u32,
    pub zero: u32,
}

/// A process left namespaces for others: `setns`, `unshare`. The header has the old ones where a security hook made the
/// record, the new ones where the end of a system call did.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Namespaces {
    pub header: Header,
    pub mnt: u32,
    /// The pid namespace that its children will live in.
    pub pid_children: u32,
    pub shared: Shared,
    pub zero: u32,
}

/// A process, or one thread of it, was moved into another cgroup of the v2 hierarchy. The header is the mover's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct CgroupMove {
    pub header: Header,
    pub id: u64,
    pub target_start_ns: u64,
    pub target_tgid: u32,
    pub zero: u32,
}

/// A cgroup of the v2 hierarchy was removed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct CgroupGone {
    pub header: Header,
    pub id: u64,
}

/// A cgroup of the v2 hierarchy was made. Tail: `path_len` bytes, the path below the root.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
pub struct Cgroup {
    pub header: Header,
    pub id: u64,
    pub flags: u32,
    pub path_len: u16,
    pub zero: [u8; 2],
}

const _: () = assert!(size_of::<Header>() == 72 && core::mem::offset_of!(Header, comm) % 8 == 0);
const _: () = assert!(size_of::<Exec>() == 72 + 16 + 16 + 16 + 24 && core::mem::offset_of!(Exec, tty) % 8 == 0);
const _: () = assert!(size_of::<Fork>() == 72 + 32);
const _: () = assert!(size_of::<Exit>() == 72 + 8);
const _: () = assert!(size_of::<Open>() == 72 + 48);
const _: () = assert!(size_of::<Change>() == 72 + 16);
const _: () = assert!(size_of::<PathCall>() == 72 + 32);
const _: () = assert!(size_of::<Entry>() == 72 + 48 + 2 * NAME_MAX);
const _: () = assert!(size_of::<Ptrace>() == 72 + 16);
const _: () = assert!(size_of::<Socket>() == 72 + 20 + ADDRESS_MAX);
const _: () = assert!(size_of::<Bpf>() == 72 + 16);
const _: () = assert!(size_of::<Signal>() == 72 + 32);
const _: () = assert!(size_of::<Connection>() == 72 + 48 && core::mem::offset_of!(Connection, local) % 8 == 0);
const _: () = assert!(size_of::<IoUring>() == 72 + 8);
const _: () = assert!(size_of::<Namespaces>() == 72 + 32);
const _: () = assert!(size_of::<CgroupMove>() == 72 + 24);
const _: () = assert!(size_of::<CgroupGone>() == 72 + 8);
const _: () = assert!(size_of::<Cgroup>() == 72 + 16);
