//! Which system calls matter, by number: the table that the kernel program looks classes up in.

use detector_common::syscall::{
    AFTER, BIND, BPF, CONNECT, CREAT, IO_URING, MOUNT, MOVE_MOUNT, NAMESPACES, OPEN, OPENAT, OPENAT2, PATH, PATH_AT,
    PATHS, PATHS_AT, PTRACE, SOCKET, SOCKET_CALL, SYMLINK_AT, TABLE, VM_WRITE, WRITE_FD0, WRITE_FD2,
};

/// A system call: its name, its number for 64-bit and for 32-bit callers, its class.
struct Syscall(&'static str, Option<u16>, Option<u16>, u8);

/// From the kernel's `arch/x86/entry/syscalls/syscall_64.tbl` and `syscall_32.tbl`. The program that looks calls up here is
/// attached on x86-64 alone; what it recorded is named on any machine.
const SYSCALLS: &[Syscall] = &[
    Syscall("open", Some(2), Some(5), OPEN),
    Syscall("openat", Some(257), Some(295), OPENAT),
    Syscall("creat", Some(85), Some(8), CREAT),
    Syscall("openat2", Some(437), Some(437), OPENAT2),
    Syscall("open_by_handle_at", Some(304), Some(342), OPENAT),
    Syscall("rename", Some(82), Some(38), PATHS),
    Syscall("renameat", Some(264), Some(302), PATHS_AT),
    Syscall("renameat2", Some(316), Some(353), PATHS_AT),
    Syscall("link", Some(86), Some(9), PATHS),
    Syscall("linkat", Some(265), Some(303), PATHS_AT),
    Syscall("symlink", Some(88), Some(83), PATHS),
    Syscall("symlinkat", Some(266), Some(304), SYMLINK_AT),
    Syscall("unlink", Some(87), Some(10), PATH),
    Syscall("unlinkat", Some(263), Some(301), PATH_AT),
    Syscall("rmdir", Some(84), Some(40), PATH),
    Syscall("mkdir", Some(83), Some(39), PATH),
    Syscall("mkdirat", Some(258), Some(296), PATH_AT),
    Syscall("mknod", Some(133), Some(14), PATH),
    Syscall("mknodat", Some(259), Some(297), PATH_AT),
    Syscall("truncate", Some(76), Some(92), PATH),
    Syscall("truncate64", None, Some(193), PATH),
    Syscall("mount", Some(165), Some(21), MOUNT),
    Syscall("umount", None, Some(22), MOUNT),
    Syscall("umount2", Some(166), Some(52), MOUNT),
    Syscall("pivot_root", Some(155), Some(217), MOUNT),
    Syscall("move_mount", Some(429), Some(429), MOVE_MOUNT),
    Syscall("write", Some(1), Some(4), WRITE_FD0),
    Syscall("pwrite64", Some(18), Some(181), WRITE_FD0),
    Syscall("writev", Some(20), Some(146), WRITE_FD0),
    Syscall("pwritev", Some(296), Some(334), WRITE_FD0),
    Syscall("pwritev2", Some(328), Some(379), WRITE_FD0),
    Syscall("ftruncate", Some(77), Some(93), WRITE_FD0),
    Syscall("ftruncate64", None, Some(194), WRITE_FD0),
    Syscall("fallocate", Some(285), Some(324), WRITE_FD0),
    Syscall("sendfile", Some(40), Some(187), WRITE_FD0),
    Syscall("sendfile64", None, Some(239), WRITE_FD0),
    Syscall("splice", Some(275), Some(313), WRITE_FD2),
    Syscall("copy_file_range", Some(326), Some(377), WRITE_FD2),
    Syscall("vmsplice", Some(278), Some(316), WRITE_FD0),
    Syscall("io_uring_enter", Some(426), Some(426), IO_URING),
    Syscall("socket", Some(41), Some(359), SOCKET),
    Syscall("connect", Some(42), Some(362), CONNECT),
    Syscall("bind", Some(49), Some(361), BIND),
    Syscall("socketcall", None, Some(102), SOCKET_CALL),
    Syscall("io_submit", Some(209), Some(248), AFTER),
    Syscall("ioctl", Some(16), Some(54), AFTER),
    Syscall("close", Some(3), Some(6), AFTER),
    Syscall("close_range", Some(436), Some(436), AFTER),
    Syscall("fsync", Some(74), Some(118), AFTER),
    Syscall("fdatasync", Some(75), Some(148), AFTER),
    Syscall("msync", Some(26), Some(144), AFTER),
    Syscall("munmap", Some(11), Some(91), AFTER),
    Syscall("setns", Some(308), Some(346), NAMESPACES),
    Syscall("unshare", Some(272), Some(310), NAMESPACES),
    Syscall("bpf", Some(321), Some(357), BPF),
    // The number of 32-bit callers is that of a 64-bit call that matters too.
    Syscall("ptrace", Some(101), None, PTRACE),
    Syscall("process_vm_writev", Some(311), Some(348), VM_WRITE),
];

/// The table for the kernel program: native numbers, then those of 32-bit callers.
#[must_use]
pub fn table() -> [u8; 2 * TABLE] {
    let mut table = [0; 2 * TABLE];
    for Syscall(_, native, compat, class) in SYSCALLS {
        if let Some(slot) = native.and_then(|number| table.get_mut(usize::from(number))) {
            *slot = *class;
        }
        if let Some(slot) = compat.and_then(|number| table.get_mut(TABLE + usize::from(number))) {
            *slot = *class;
        }
    }
    table
}

/// Name of a system call that the table has.
#[must_use]
pub fn name(number: u32, compat: bool) -> Option<&'static str> {
    let number = u16::try_from(number).ok();
    SYSCALLS
        .iter()
        .find(|Syscall(_, native, other, _)| number.is_some() && number == if compat { *other } else { *native })
        .map(|Syscall(name, ..)| *name)
}
