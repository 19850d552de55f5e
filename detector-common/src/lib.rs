//! Layouts shared by the kernel programs and the agent.
//!
//! Every record starts with a [`Header`] and is followed by a fixed body and, for some kinds, a tail of bytes whose
//! lengths the body gives. All integers are in the byte order of the host that wrote them. Kinds and hook numbers are
//! explicit and gapped: a trace written today must stay readable when more are added.
#![no_std]

mod event;
mod offsets;

pub use event::*;
pub use offsets::KernelOffsets;

/// What a watched inode means to the agent: flags of the value in the `WATCHED` map.
pub mod watch {
    /// The inode is a manifest, or whatever a manifest symlink resolves to.
    pub const FILE: u32 = 1 << 0;
    /// The inode is a directory whose direct children kubelet reads.
    pub const DIR: u32 = 1 << 1;
    /// The inode is a directory on the way to a watched one: replacing an entry of it can change what kubelet reads.
    pub const ANCESTOR: u32 = 1 << 2;
    /// A watched directory below this one does not exist yet: opens at any depth below it are reported.
    pub const SUBTREE: u32 = 1 << 3;
    /// A block device, named by its own number and inode 0: a watched inode's file system lies on it.
    pub const BLOCK: u32 = 1 << 4;
    /// A directory that images arrive in, or a configuration file that names the pause image and its directory: acts are
    /// reported, and never refused.
    pub const STORE: u32 = 1 << 5;
    /// The agent's own: its configuration, and the directories of that, of its traces and of its spool. Never refused.
    pub const OWN: u32 = 1 << 10;
    /// No inode's: the acting task lives in a pod's sandbox.
    pub const SANDBOX: u32 = 1 << 6;
    /// The file is in the `SECRETS` map, or its file system is: it was opened for reading.
    pub const READ: u32 = 1 << 7;
}

/// What an address is to the agent: flags of the value in the `ENDPOINTS` map.
pub mod endpoint {
    /// An API server answers there: who connects is context.
    pub const API: u32 = 1 << 0;
    /// This node's API server listens there: accepted connections are reported.
    pub const SERVER: u32 = 1 << 1;
    /// This node's etcd serves clients there: who connects is reported.
    pub const ETCD: u32 = 1 << 2;
    /// No address's: this node's API server itself connects.
    pub const CLIENT: u32 = 1 << 3;
    /// A container runtime serves sessions there (exec, attach, port-forward): accepted connections, and when it is sent something
    /// over one, are reported.
    pub const STREAM: u32 = 1 << 4;
    /// This node's kubelet listens there: the same.
    pub const KUBELET: u32 = 1 << 5;
}

/// What of a process's connections is reported: flags of the value in the `SERVERS` map.
pub mod server {
    /// Those that it makes: an API server.
    pub const CONNECTS: u32 = 1 << 0;
    /// What it is sent over those that it accepted: a kubelet, a container runtime.
    pub const LISTENS: u32 = 1 << 1;
}

/// Key of the `ENDPOINTS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// The sixteen bytes of an IPv6 address, or of an IPv4-mapped one.
    pub address: [u64; 2],
    /// In host byte order.
    pub port: u32,
    /// Inode number of the network namespace for loopback addresses, which are others in each; 0 for all others.
    pub net_ns: u32,
}

impl EndpointKey {
    /// Of an address as it stands in memory.
    #[must_use]
    pub const fn new(address: [u64; 2], port: u16, net_ns: u32) -> Self {
        let net_ns = if Self::is_loopback(address) { net_ns } else { 0 };
        Self { address, port: port as u32, net_ns }
    }

    /// `::1`, or an IPv4-mapped one in 127.0.0.0/8.
    #[must_use]
    pub const fn is_loopback(address: [u64; 2]) -> bool {
        // In network order, whatever the host's: `::1` ends with the byte 1; mapped ones have 00 00 ff ff 7f.
        let last = u64::from_be(address[1]);
        address[0] == 0 && (last == 1 || last >> 24 == 0x00ff_ff7f)
    }
}

/// Most addresses of interest: API servers and etcd, on each address of the node.
pub const ENDPOINTS_MAX: u32 = 1024;

/// Most API servers, kubelets and container runtimes on a node whose connections are looked at.
pub const SERVERS_MAX: u32 = 64;

/// Most sockets by which container runtimes are asked, and directories of such.
pub const RUNTIMES_MAX: u32 = 256;

/// Most secrets: token volumes, kubeconfigs, keys, etcd's files.
pub const SECRETS_MAX: u32 = 16_384;

/// Bits in `SECRET_BITS`. An open of a file whose bit is not set is none of a secret, and costs no hash look-up.
pub const SECRET_BITS: u32 = 4096;

/// The bit of an inode, or of a whole file system by its device and inode 0.
#[must_use]
#[inline(always)]
pub const fn secret_bit(key: &WatchKey) -> u32 {
    // Fibonacci hashing: the upper bits are the mixed ones.
    let mixed = (key.ino ^ (key.dev as u64) << 40 ^ key.dev as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 52) as u32
}

/// Key of the `RECENT` map: what was reported a moment ago and is not reported again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecentKey {
    /// An address, or a file.
    pub what: [u64; 2],
    /// The process; 0 for accepted connections.
    pub tgid: u32,
    /// The port, in the upper half [`connection`](crate::connection); `u32::MAX` for a file, one less for a socket's.
    pub port: u32,
}

/// How many of them are remembered.
pub const RECENT_MAX: u32 = 4096;

/// For how long, in ns.
pub const RECENT_NS: u64 = 1_000_000_000;

/// Key of the `WATCHED` map: an inode as the kernel names it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchKey {
    /// `inode->i_ino`.
    pub ino: u64,
    /// `super_block->s_dev`: the kernel's internal encoding, `major << 20 | minor`.
    pub dev: u32,
    /// Always zero: the map compares padding too.
    pub zero: u32,
}

impl WatchKey {
    /// A key from the kernel's own device encoding.
    #[must_use]
    pub const fn new(dev: u32, ino: u64) -> Self {
        Self { ino, dev, zero: 0 }
    }
}

/// Most watched inodes at once: 10,000 manifests with their symlink targets and room to spare.
pub const WATCHED_MAX: u32 = 65_536;

/// Slots of the `SETTINGS` map, written by the agent while it runs.
pub mod setting {
    /// Number of directory levels above an opened file that are compared with the watched set; at least 1.
    pub const DEPTH: u32 = 0;
    /// Non-zero: writers that opened a watched inode before it was watched exist, so writes are resolved too.
    pub const TRACK_WRITES: u32 = 1;
    /// The agent's own thread group, whose acts are not reported.
    pub const SELF: u32 = 2;
    /// Non-zero: inode-change tracepoints are attached, so path syscalls that touched nothing watched stay in the kernel.
    pub const PRECISE: u32 = 3;
    /// Non-zero: `sys_exit` reports changes once they are complete, so the change hooks leave notes for it.
    pub const SYSCALLS: u32 = 4;
    /// Non-zero: `sys_exit` is there for writes alone; security hooks see the rest.
    pub const WRITES_ONLY: u32 = 5;
    /// Non-zero: LSM programs refuse acts on watched files and directories, except by trusted programs.
    pub const DENY: u32 = 6;
    /// Non-zero: there are sandboxes, so who opens a file for writing is looked at.
    pub const SANDBOXES: u32 = 7;
    /// Bit 0: there are secrets, so opens for reading are looked at; bit 1: at `sys_exit` too.
    pub const READS: u32 = 8;
    /// Bit 0: there are addresses of interest, so connections are looked at; bit 1: and what is sent over them.
    pub const CONNECTIONS: u32 = 9;
    /// Inode number of the host's mount namespace: what runs in it is in no container.
    pub const HOST_MNT: u32 = 10;
    /// Bits of [`crate::syscall::about`]: system calls that matter although nothing watched was touched.
    pub const MATTERS: u32 = 11;
    /// How many slots there are.
    pub const COUNT: u32 = 12;
}

/// Slots of per-CPU memory in which records with a tail are put together: one a reporter, so that one that interrupts
/// another never writes into its record; [`scratch::CLAIMS`] for those that may be preempted by another run of themselves.
pub mod scratch {
    pub const EXEC: u32 = 0;
    pub const CGROUP: u32 = 1;
    pub const SYSCALL_OPEN: u32 = 2;
    pub const SYSCALL_PATHS: u32 = 3;
    pub const FILE_OPEN: u32 = 4;
    pub const MMAP_FILE: u32 = FILE_OPEN + CLAIMS;
    pub const COUNT: u32 = MMAP_FILE + CLAIMS;
    /// Runs of one reporter that can be under way on a CPU at once.
    pub const CLAIMS: u32 = 4;
}

/// Most processes that are protected: the agent and the node's kubelets.
pub const PROTECTED_MAX: u32 = 128;

/// Most BPF objects of the agent that are looked after: its maps, programs and links.
pub const OURS_MAX: u32 = 512;

/// Most sandboxes whose tasks are looked at: a node runs some hundred pods.
pub const SANDBOXES_MAX: u32 = 4096;

/// Most programs that are trusted to act on what is watched.
pub const TRUSTED_MAX: u32 = 64;

/// Most directory levels that [`setting::DEPTH`] can ask for.
pub const MAX_DEPTH: u32 = 8;

/// What the agent wants to know about a system call, by its number: entries of the `SYSCALLS` table.
pub mod syscall {
    /// Not of interest.
    pub const NONE: u8 = 0;
    /// `open`: flags in the second argument.
    pub const OPEN: u8 = 1;
    /// `openat`, `open_by_handle_at`: flags in the third argument.
    pub const OPENAT: u8 = 2;
    /// `creat`: always for writing.
    pub const CREAT: u8 = 3;
    /// `openat2`: flags in the caller's memory, where the third argument points.
    pub const OPENAT2: u8 = 4;
    /// One path: `unlink`, `truncate`, `mkdir`, `rmdir`, `mknod`. The class of the `*at` forms is [`AT`] more.
    pub const PATH: u8 = 16;
    /// Two paths: `rename`, `link`, `symlink`.
    pub const PATHS: u8 = 17;
    /// Path in the second argument: the `*at` forms with one path.
    pub const PATH_AT: u8 = 18;
    /// Paths in the second and fourth arguments: `renameat`, `renameat2`, `linkat`.
    pub const PATHS_AT: u8 = 19;
    /// `symlinkat`: target in the first, path in the third argument.
    pub const SYMLINK_AT: u8 = 20;
    /// `mount`, `umount2`, `pivot_root`, `chroot`: always reported.
    pub const MOUNT: u8 = 24;
    /// `move_mount`: paths in the second and fourth arguments, always reported.
    pub const MOVE_MOUNT: u8 = 25;
    /// Write-like: `write`, `pwrite64`, `writev`, `ftruncate`, ...: descriptor in the first argument.
    pub const WRITE_FD0: u8 = 32;
    /// `splice`, `copy_file_range`: descriptor in the third argument.
    pub const WRITE_FD2: u8 = 33;
    /// `io_uring_enter`.
    pub const IO_URING: u8 = 40;
    /// `socket`: reported for sandboxes, as the next one. As far apart as in [`crate::socket`].
    pub const SOCKET: u8 = 41;
    /// `bind`: address and its length in the second and third arguments.
    pub const BIND: u8 = 43;
    /// Anything else that may follow a change of a watched inode (`close`, `fsync`, `msync`, `munmap`, `chmod`).
    pub const AFTER: u8 = 48;
    /// `setns`, `unshare`: the caller is in other namespaces now.
    pub const NAMESPACES: u8 = 56;
    /// Set in the classes of calls that a program of its own looks at, and in no other.
    pub const GUARD: u8 = 64;
    /// `bpf`: command in the first, attributes in the caller's memory where the second argument points.
    pub const BPF: u8 = GUARD + 1;
    /// `ptrace`: request in the first, process in the second argument.
    pub const PTRACE: u8 = GUARD + 2;
    /// `process_vm_writev`: process in the first argument.
    pub const VM_WRITE: u8 = GUARD + 3;
    /// `connect`: as `bind`, and reported for sockets of container runtimes.
    pub const CONNECT: u8 = GUARD + 4;
    /// `socketcall` of 32-bit callers: any of the three, and their arguments in the caller's memory.
    pub const SOCKET_CALL: u8 = GUARD + 5;
    /// Entries for the native table; a compat (32-bit) table of the same size follows.
    pub const TABLE: usize = 512;

    /// What is done about a class, in bits.
    pub mod about {
        pub const OPENS: u8 = 1 << 0;
        pub const WRITES: u8 = 1 << 1;
        pub const NAMES: u8 = 1 << 2;
        pub const MOUNTS: u8 = 1 << 3;
        pub const SOCKETS: u8 = 1 << 4;
        pub const NAMESPACES: u8 = 1 << 5;
    }
}
